"""smtplib's way, for subclasses that override a step of it: a transaction that is written as a whole calls none."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import ssl
from collections.abc import Mapping, Sequence
from email.message import Message
from typing import Any

from asmtp.errors import (
    SMTPDataError,
    SMTPException,
    SMTPRecipientsRefused,
    SMTPSenderRefused,
    SMTPServerDisconnected,
)
from asmtp.protocol.command import options_text
from asmtp.protocol.content import encode_content, to_octets, wire_size
from asmtp.protocol.envelope import path
from asmtp.protocol.message import flatten
from asmtp.protocol.reply import Reply

__all__ = ["Steps", "is_local", "overridden", "socket_from"]


def overridden(smtp: Any, originals: Mapping[str, Any]) -> list[str]:
    """Which methods a subclass, the object itself, or a test's patch has replaced.

    Args:
        originals: the methods by name, as the class was made with them.
    """
    kind, own = type(smtp), vars(smtp)
    return [name for name, method in originals.items() if name in own or getattr(kind, name) is not method]


class Steps:
    """A message through a facade's `mail`, `rcpt` and `data`; or through `putcmd` and `getreply`.

    Args:
        smtp: the facade.
        replaced: which of these are not asmtp's own.
    """

    def __init__(self, smtp: Any, replaced: Sequence[str]) -> None:
        self._smtp = smtp
        self._replaced = replaced
        self._by_hand = "putcmd" in replaced or "getreply" in replaced

    def sendmail(
        self,
        sender: str,
        recipients: Sequence[str],
        msg: Any,
        mail_options: Sequence[str],
        rcpt_options: Sequence[str],
    ) -> dict[str, Reply]:
        """Send one message; the recipients that were refused.

        Raises:
            TypeError: the content can only be streamed.
            SMTPSenderRefused, SMTPRecipientsRefused, SMTPDataError: the server said no.
        """
        smtp = self._smtp
        octets = self._octets(msg)
        options = [*mail_options] if smtp.does_esmtp else []
        if smtp.does_esmtp and smtp.has_extn("size"):
            options.insert(0, f"size={wire_size(octets)}")
        unsure = "not_sent"
        try:
            reply = self._say("mail", "FROM:", sender, options)
            if not reply.ok:
                raise SMTPSenderRefused(*reply, sender)
            refused = self._recipients(recipients, rcpt_options if smtp.does_esmtp else ())
            unsure = "in_doubt"
            reply = self._data(octets)
            if not reply.ok:
                raise SMTPDataError(*reply)
        except SMTPException as error:
            if error.state is None:
                error.state = unsure if isinstance(error, SMTPServerDisconnected) else "refused"  # type: ignore[assignment]
            self._give_up(error)
            raise
        return refused

    def _say(self, verb: str, preposition: str, address: str, options: Sequence[str]) -> Reply:
        """MAIL or RCPT."""
        smtp = self._smtp
        if verb in self._replaced or not self._by_hand:
            return Reply(*getattr(smtp, verb)(address, options))
        if verb == "mail" and "smtputf8" in [option.lower() for option in options] and smtp.has_extn("smtputf8"):
            smtp.command_encoding = "utf-8"
        smtp.putcmd(verb, f"{preposition}{path(address, 'address')}{options_text(options, 'options')}")
        return Reply(*smtp.getreply())

    def _recipients(self, recipients: Sequence[str], options: Sequence[str]) -> dict[str, Reply]:
        """Those that were refused.

        Raises:
            SMTPRecipientsRefused: all were, or the server is closing.
        """
        refused: dict[str, Reply] = {}
        for recipient in recipients:
            reply = self._say("rcpt", "TO:", recipient, options)
            if not reply.ok:
                refused[recipient] = reply
            if reply.code == 421:
                raise SMTPRecipientsRefused(refused)
        if len(refused) == len(recipients):
            raise SMTPRecipientsRefused(refused)
        return refused

    def _data(self, octets: bytes) -> Reply:
        smtp = self._smtp
        if "data" in self._replaced or not self._by_hand:
            return Reply(*smtp.data(octets))
        smtp.putcmd("data")
        reply = Reply(*smtp.getreply())
        if reply.code != 354:
            raise SMTPDataError(*reply)
        smtp.send(encode_content(octets, stuff=True) + b".\r\n")
        return Reply(*smtp.getreply())

    def _give_up(self, error: SMTPException) -> None:
        """After a refusal: RSET; a server that said 421 is left."""
        if isinstance(error, SMTPServerDisconnected):
            return
        replies: Any = error.recipients.values() if isinstance(error, SMTPRecipientsRefused) else [error.args]
        if any(reply[:1] == (421,) for reply in replies):
            self._smtp.close()
            return
        with contextlib.suppress(SMTPServerDisconnected):
            self._smtp.rset()

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


def socket_from(made: Any) -> socket.socket:
    """What an overridden `_get_socket` has returned.

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
    """Whether a host is this machine, by its name."""
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host.lower() == "localhost"
