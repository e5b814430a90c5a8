"""Step by step, as smtplib sends, for subclasses that override a step: a transaction written as a whole calls none."""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import os
import socket
import ssl
from collections.abc import Callable, Coroutine, Mapping, Sequence
from email.message import Message
from typing import Any, TypeVar

from asmtp.errors import (
    DeliveryState,
    SMTPDataError,
    SMTPException,
    SMTPRecipientsRefused,
    SMTPSenderRefused,
    SMTPServerDisconnected,
    known,
)
from asmtp.protocol.content import to_octets, wire_size
from asmtp.protocol.exchange import Dialogue, Group
from asmtp.protocol.message import flatten
from asmtp.protocol.reply import Reply
from asmtp.protocol.state import Trigger
from asmtp.protocol.trampoline import trampoline

__all__ = ["Steps", "conduct", "is_local", "overridden", "say", "socket_from"]

T = TypeVar("T")

_BY_DOCMD = frozenset({"noop", "quit", "rset"})
"""Commands that smtplib says through `docmd`; the rest it says by `putcmd`, and takes the reply by `getreply`."""


def overridden(smtp: Any, originals: Mapping[str, Any]) -> list[str]:
    """Return the methods that a subclass, the object itself, or a patch of a test has replaced.

    Args:
        originals: the methods by name, as the class was made with them.
    """
    kind, own = type(smtp), vars(smtp)
    return [name for name, method in originals.items() if name in own or getattr(kind, name) is not method]


class Steps:
    """Send a message through the methods `mail`, `rcpt` and `data` of a facade.

    Args:
        smtp: the facade.
        replaced: the methods that are not asmtp's own.
    """

    def __init__(self, smtp: Any, replaced: Sequence[str]) -> None:
        self._smtp = smtp
        self._replaced = replaced

    def sendmail(
        self,
        sender: str,
        recipients: Sequence[str],
        msg: Any,
        mail_options: Sequence[str],
        rcpt_options: Sequence[str],
    ) -> dict[str, Reply]:
        """Send one message; return the recipients that were refused.

        Raises:
            TypeError: the content can only be streamed.
            SMTPSenderRefused, SMTPRecipientsRefused, SMTPDataError: the server said no.
        """
        smtp = self._smtp
        octets = self._octets(msg)
        options = [*mail_options] if smtp.does_esmtp else []
        if smtp.does_esmtp and smtp.has_extn("size"):
            options.insert(0, f"size={wire_size(octets)}")
        unsure: DeliveryState = "not_sent"
        try:
            reply = Reply(*smtp.mail(sender, options))
            if not reply.ok:
                raise SMTPSenderRefused(*reply, sender)
            refused = self._recipients(recipients, rcpt_options if smtp.does_esmtp else ())
            unsure = "in_doubt"
            reply = Reply(*smtp.data(octets))
            if not reply.ok:
                raise SMTPDataError(*reply)
        except SMTPException as error:
            if error.state is None:
                known(error, unsure if isinstance(error, SMTPServerDisconnected) else "refused")
            self._give_up(error)
            raise
        return refused

    def _recipients(self, recipients: Sequence[str], options: Sequence[str]) -> dict[str, Reply]:
        """Say RCPT for each recipient; return those that were refused.

        Raises:
            SMTPRecipientsRefused: all were, or the server is closing.
        """
        refused: dict[str, Reply] = {}
        for recipient in recipients:
            reply = Reply(*self._smtp.rcpt(recipient, options))
            if not reply.ok:
                refused[recipient] = reply
            if reply.code == 421:
                raise SMTPRecipientsRefused(refused)
        if len(refused) == len(recipients):
            raise SMTPRecipientsRefused(refused)
        return refused

    def _give_up(self, error: SMTPException) -> None:
        """Say RSET after a refusal, or close if the server said 421."""
        if isinstance(error, SMTPServerDisconnected):
            return
        replies: Any = error.recipients.values() if isinstance(error, SMTPRecipientsRefused) else [error.args]
        if any(reply[:1] == (421,) for reply in replies):
            self._smtp.close()
            return
        self._smtp._rset()

    def _octets(self, msg: Any) -> bytes:
        if isinstance(msg, Message):
            return flatten(msg)
        if isinstance(msg, os.PathLike):
            with open(msg, "rb") as file:
                return file.read()
        if isinstance(msg, str | bytes | bytearray | memoryview):
            return to_octets(msg)
        if hasattr(msg, "read"):
            return bytes(msg.read())
        raise TypeError(f"msg: {type(msg).__name__} is not possible where a subclass has its own {self._replaced[0]}()")


def conduct(smtp: Any, hands_out: Callable[[bool], None], coroutine: Coroutine[Any, Any, T]) -> T:
    """Take a command of the client's through the facade's `putcmd`, `docmd`, `send` and `getreply`.

    Args:
        smtp: the facade.
        hands_out: tells the client to await its dialogues (False), or to yield them to this function.
        coroutine: the client's command; it awaits nothing else.
    """

    def resume(how: Callable[[Any], Any], value: Any) -> Dialogue[Any]:
        hands_out(True)
        try:
            handed: Dialogue[Any] = how(value)
            return handed
        finally:
            hands_out(False)

    try:
        handed = resume(coroutine.send, None)
        while True:
            try:
                result = say(smtp, handed)
            except Exception as error:
                handed = resume(coroutine.throw, error)
            else:
                handed = resume(coroutine.send, result)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]


def say(smtp: Any, dialogue: Dialogue[Any]) -> Any:
    """Return the result of a dialogue that goes through a facade's own steps."""
    return trampoline(dialogue, functools.partial(_replies, smtp))


def _replies(smtp: Any, group: Any) -> list[Reply]:
    """Write a group of commands, or content, and return the replies of the server."""
    assert isinstance(group, Group)  # commands pull nothing
    if group.triggers == (Trigger.dot,):
        smtp.send(group.data)
    else:
        verb, _, args = group.data[:-2].decode(smtp.command_encoding).partition(" ")
        if verb in _BY_DOCMD:
            return [Reply(*smtp.docmd(verb))]
        if verb in ("mail", "rcpt"):
            preposition, _, rest = args.partition(":")
            args = f"{preposition.upper()}:{rest}"  # as smtplib writes it
        smtp.putcmd(*([verb] if verb == "data" else [verb, args]))  # as smtplib does
    return [Reply(*smtp.getreply()) for _ in range(group.owed)]


def socket_from(made: Any) -> socket.socket:
    """Return the socket that an overridden `_get_socket` has made.

    Raises:
        TypeError: it has TLS already, or is no socket; it is closed.
    """
    tls = isinstance(made, ssl.SSLSocket)
    if isinstance(made, socket.socket) and not tls:
        return made
    with contextlib.suppress(Exception):
        made.close()
    if tls:
        raise TypeError(
            "_get_socket returned a socket with TLS, which asmtp begins by itself: return it without TLS, or leave the"
            " method out and pass proxy='socks5://...' to the constructor"
        )
    raise TypeError(
        f"_get_socket must return a connected socket.socket, not {type(made).__name__}; there is proxy= too"
    )


def is_local(host: str) -> bool:
    """Return whether a host is this machine, by its name."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host.lower() == "localhost"
