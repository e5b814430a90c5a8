"""Show what is written and read, without secrets: a server may repeat the line that held one, and logs keep it."""

from __future__ import annotations

import base64
import binascii
import contextlib
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from asmtp.protocol.reply import Reply

if TYPE_CHECKING:
    from asmtp.protocol.exchange import Group

__all__ = ["Display", "Observer", "Redaction"]

_BEARER = re.compile(rb"auth=Bearer ([^\1]+)")

SHORTEST = 4
"""The least length of a password that is looked for, in octets: shorter ones are in any text."""

CUT = 8
"""The length of the prefix by which a repeated secret is recognised, in octets: a server may cut off the rest."""

HIDDEN = b"(not shown)"


class Redaction:
    """The secrets that were written, in the forms in which a server may repeat them.

    Attributes:
        secrets: the beginning of each, and the rest; the longest first.
    """

    __slots__ = ("_name_is_said", "secrets")

    def __init__(self) -> None:
        self.secrets: list[tuple[bytes, bytes]] = []
        self._name_is_said = False  # LOGIN: the next response is the password

    def learn(self, written: bytes) -> None:
        """Take the secrets from a line that may hold a SASL response: AUTH with arguments, or the response alone."""
        words = written.split()
        if words and words[0].upper() == b"AUTH":
            self._name_is_said = False
            words = words[2:]
        if not words:
            return
        encoded = words[-1]
        found = [_cut(encoded), (encoded.rstrip(b"="), b"")]
        with contextlib.suppress(binascii.Error):
            response = base64.b64decode(encoded, validate=True)
            name, _, password = response.rpartition(b"\0")  # PLAIN
            bearer = _BEARER.search(response)
            if name or self._name_is_said:
                found.append((password, b""))
            if bearer:
                found.append(_cut(bearer[1]))
        self._name_is_said = True
        new = {secret for secret in found if len(secret[0]) >= SHORTEST and secret not in self.secrets}
        self.secrets = sorted([*self.secrets, *new], key=lambda secret: len(b"".join(secret)), reverse=True)

    def text(self, text: bytes) -> bytes:
        """Return a text without the secrets in it."""
        for beginning, rest in self.secrets:
            if beginning in text:
                before, *parts = text.split(beginning)
                text = b"".join([before, *(HIDDEN + _without(part, rest) for part in parts)])
        return text

    def reply(self, reply: Reply) -> Reply:
        """Return a reply without the secrets in it; a challenge as it is, as the mechanism has to read it."""
        if reply.code == 334:
            return reply
        text = self.text(reply.message)
        return reply if text is reply.message else Reply(reply.code, text)


class Observer(Protocol):
    """The part of the I/O layer that is told of what is written and read."""

    def wrote(self, group: Group) -> None:
        """Take note of a group that is written."""

    def replied(self, replies: list[Reply]) -> None:
        """Take note of replies that have come in one read; a secret that they repeat was taken out."""


class Display:
    """Shows what is written and read to a trace and an observer, without the secrets in it.

    Attributes:
        trace: called with ">" and what is written, or "<" and what is read.
        observer: told of groups and replies.
        redaction: the secrets that were written.
    """

    __slots__ = ("observer", "redaction", "trace")

    def __init__(self) -> None:
        self.trace: Callable[[str, bytes], None] | None = None
        self.observer: Observer | None = None
        self.redaction = Redaction()

    def wrote(self, group: Group) -> None:
        """Learn the secret of a group, if it is one, and show the group."""
        data = group.data
        if group.secret:
            self.redaction.learn(data)
        if data and self.observer is not None:
            self.observer.wrote(group)
        if data and self.trace is not None:
            self.trace(">", HIDDEN if group.secret else data)

    def replied(self, replies: list[Reply], *, parsed: bool) -> list[Reply]:
        """Show replies, and return them without the secrets that they repeat.

        Args:
            parsed: the replies are parsed, so they are returned as they are.
        """
        redaction = self.redaction
        if self.trace is not None:
            for reply in replies:
                self.trace("<", redaction.text(b"%d %s" % reply))
        if redaction.secrets and not parsed:
            replies = [redaction.reply(reply) for reply in replies]
        if self.observer is not None and replies:
            self.observer.replied(replies)
        return replies


def _cut(secret: bytes) -> tuple[bytes, bytes]:
    """Return a secret in two parts, as its beginning alone gives much away."""
    return secret[:CUT], secret[CUT:]


def _without(text: bytes, rest: bytes) -> bytes:
    """Return a text without the rest of a secret at its beginning, which may be cut off, or broken into lines.

    Args:
        text: the text behind the secret's beginning.
        rest: the rest of the secret.
    """
    end = 0
    for octet in rest:
        at = end
        while text[at : at + 1].isspace():
            at += 1
        if text[at : at + 1] != bytes([octet]):
            break
        end = at + 1
    return text[end:]
