"""Keeps secrets out of what a server says: it may echo the line that held one, and replies end up in logs."""

from __future__ import annotations

import base64
import binascii
import contextlib
import re

from asmtp.protocol.reply import Reply

__all__ = ["Redaction"]

_BEARER = re.compile(rb"auth=Bearer ([^\1]+)")

SHORTEST = 4
"""Octets that a password has at least to be looked for: shorter ones are in any text."""

CUT = 8
"""Octets of the beginning of a line or token that a server gives back, cut off: as many are in no other text."""

HIDDEN = b"(not shown)"


class Redaction:
    """What was written that nobody shall read, in the forms in which a server could give it back."""

    __slots__ = ("_name_is_said", "secrets")

    def __init__(self) -> None:
        self.secrets: list[tuple[bytes, bytes]] = []  # how each begins, and the rest; the long ones first
        self._name_is_said = False  # of LOGIN: what comes next is the password

    def learn(self, written: bytes) -> None:
        """A line that holds a SASL response, or may hold one: AUTH with its arguments, or the response alone."""
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
        """The same without the secrets in it."""
        for beginning, rest in self.secrets:
            if beginning in text:
                before, *parts = text.split(beginning)
                text = b"".join([before, *(HIDDEN + _without(part, rest) for part in parts)])
        return text

    def reply(self, reply: Reply) -> Reply:
        """The same, but for a challenge, which is a mechanism's to read."""
        if reply.code == 334:
            return reply
        text = self.text(reply.message)
        return reply if text is reply.message else Reply(reply.code, text)


def _cut(secret: bytes) -> tuple[bytes, bytes]:
    """A secret of which a beginning gives much away."""
    return secret[:CUT], secret[CUT:]


def _without(text: bytes, rest: bytes) -> bytes:
    """A text behind the beginning of a secret, without as much of the rest of it as is there, on however many lines."""
    end = 0
    for octet in rest:
        at = end
        while text[at : at + 1].isspace():
            at += 1
        if text[at : at + 1] != bytes([octet]):
            break
        end = at + 1
    return text[end:]
