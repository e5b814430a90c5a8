"""The exceptions: smtplib's, subclassed, so that `except smtplib.SMTPException` keeps working.

Each class here derives from the class of the same name in :mod:`smtplib` and from
:class:`asmtp.SMTPException`.  The name says who is at fault:

* ``ValueError``, ``TypeError``, :exc:`SMTPStateError`: a wrong call of ours, before a byte was written;
* :exc:`SMTPNotSupportedError`: the server does not offer what the call needs, before a byte was written;
* :exc:`SMTPProtocolError`, :exc:`SMTPTimeoutError`: the server broke the protocol, or went silent;
* the others that have an ``smtp_code``: the server said no.
"""

from __future__ import annotations

import contextlib
import smtplib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeVar

if TYPE_CHECKING:
    from asmtp.mailer.delivery import Receipt

__all__ = [
    "DeliveryState",
    "SMTPAuthenticationError",
    "SMTPConnectError",
    "SMTPDataError",
    "SMTPException",
    "SMTPHeloError",
    "SMTPNotSupportedError",
    "SMTPProtocolError",
    "SMTPRecipientsRefused",
    "SMTPResponseException",
    "SMTPSenderRefused",
    "SMTPServerDisconnected",
    "SMTPStateError",
    "SMTPTimeoutError",
]

DeliveryState = Literal["sent", "refused", "not_sent", "in_doubt"]

_TEXT = 500  # characters of a reply that stand in a sentence
_NAMED = 3  # recipients that a sentence names


class SMTPException(smtplib.SMTPException):
    """Base class of every exception that asmtp raises on its own account.

    Attributes:
        state: the state of the message that was being sent, or None if none was.
            ``"refused"``: the server said no.  ``"not_sent"``: the server cannot have it, it may be
            sent again.  ``"in_doubt"``: the end of the content was written and the final reply never
            came, so the server may or may not have it; sending again may deliver it twice.
        receipt: of a mailer: the receipt for some of the recipients, if they have the message all the same.
    """

    state: DeliveryState | None = None
    receipt: Receipt | None = None

    @property
    def transient(self) -> bool:
        """Tell whether to send the same message again later can help, and cannot deliver it twice.

        That is so if the server said 4yz (RFC 5321 §4.2.1), or cannot have the message because the connection failed.
        """
        return False


class SMTPStateError(SMTPException):
    """The call is not possible in the present state of the connection or mailer; nothing was written."""

    state: DeliveryState | None = "not_sent"


class SMTPNotSupportedError(SMTPException, smtplib.SMTPNotSupportedError):
    """The server does not offer the extension that the call needs; nothing was written."""


class SMTPServerDisconnected(SMTPException, smtplib.SMTPServerDisconnected):
    """The connection is gone, or was never made.

    Attributes:
        lasting: another try would fail in the same way, as the port is the wrong one, say.
    """

    lasting = False

    @property
    def transient(self) -> bool:
        """Tell whether the server cannot have the message, so that it may be sent again."""
        return self.state == "not_sent" and not self.lasting


class SMTPTimeoutError(SMTPServerDisconnected, TimeoutError):
    """No answer within the time allowed for the phase that the message names; the connection is closed."""


class SMTPResponseException(SMTPException, smtplib.SMTPResponseException):
    """The server's reply was not the one needed.

    As a str it is a sentence; `args` and repr are those of smtplib.

    Attributes:
        smtp_code: the reply code, an int.
        smtp_error: the text of the reply, bytes.
    """

    def __str__(self) -> str:
        return said(self.smtp_code, self.smtp_error)

    @property
    def transient(self) -> bool:
        """Tell whether the server said that a later try may succeed (RFC 5321 §4.2.1: 4yz)."""
        return 400 <= self.smtp_code <= 499


class SMTPProtocolError(SMTPServerDisconnected, SMTPResponseException):
    """The server broke the protocol, and the connection is closed.

    `smtp_code` is -1 (smtplib's mark for an unreadable reply) or 500 (a line or reply over the limit);
    `smtp_error` says what was wrong, with a printable, shortened copy of what the server sent.
    """

    def __str__(self) -> str:
        return said(-1, self.smtp_error)  # the words are ours, not those of a reply


class SMTPSenderRefused(SMTPResponseException, smtplib.SMTPSenderRefused):
    """The sender was refused: see `smtp_code`, `smtp_error` and `sender`."""

    def __str__(self) -> str:
        return f"sender {one_line(self.sender or '<>')}: {super().__str__()}"


class SMTPRecipientsRefused(SMTPException, smtplib.SMTPRecipientsRefused):
    """Every recipient was refused: `recipients` is a dict of address to (code, text)."""

    def __init__(self, recipients: Any) -> None:
        # Tests and mocks make it by hand, and of anything, which smtplib keeps as it is.
        super().__init__(dict(recipients) if isinstance(recipients, Mapping) else recipients)

    def __str__(self) -> str:
        refused: Any = self.recipients
        if not isinstance(refused, Mapping) or not all(_is_reply(reply) for reply in refused.values()):
            return super().__str__()
        named = [f"{one_line(who)}: {said(*reply)}" for who, reply in list(refused.items())[:_NAMED]]
        more = [f"and {len(refused) - _NAMED:,} more"] if len(refused) > _NAMED else []
        return "; ".join(named + more) or "every recipient was refused"

    @property
    def transient(self) -> bool:
        """Tell whether a later try may succeed for at least one recipient."""
        recipients: Any = self.recipients  # a dict, unless it was made by hand
        replies = recipients.values() if isinstance(recipients, Mapping) else ()
        return any(isinstance(reply, tuple) and 400 <= reply[0] <= 499 for reply in replies)


class SMTPDataError(SMTPResponseException, smtplib.SMTPDataError):
    """The server refused the content."""


class SMTPConnectError(SMTPResponseException, smtplib.SMTPConnectError):
    """The server's greeting was not 220."""


class SMTPHeloError(SMTPResponseException, smtplib.SMTPHeloError):
    """The server refused EHLO and HELO."""


class SMTPAuthenticationError(SMTPResponseException, smtplib.SMTPAuthenticationError):
    """The server did not accept the credentials.

    Attributes:
        advice: what else the cause may be; empty if there is nothing to say.
    """

    advice = ""

    def __str__(self) -> str:
        told = super().__str__()
        return f"{told}; {self.advice}" if self.advice else told


E = TypeVar("E", bound=SMTPException)


def known(error: E, state: DeliveryState) -> E:
    """Set the state of the message in an error, and return the error."""
    error.state = state
    return error


def _is_reply(reply: Any) -> bool:
    return isinstance(reply, tuple) and len(reply) == 2


def said(code: Any, text: Any) -> str:
    """Return a reply as it stands in a sentence; without its code if that is -1."""
    line = one_line(text)
    return line if code == -1 else f"{code} {line}".rstrip()


def reason(error: object, limit: int | None = _TEXT) -> str:
    """Return the text of an exception as one line, else the name of its class: anybody's `__str__` may raise."""
    words = ""
    with contextlib.suppress(Exception):
        words = one_line(error, limit)
    return words or type(error).__name__


def one_line(text: Any, limit: int | None = _TEXT) -> str:
    """Return text from outside as one line, printable, and short: a server may send anything.

    Control characters, line and paragraph separators, characters that turn the direction of writing, and lone
    surrogates are escaped.  All text of servers that goes into exceptions, logs and terminals passes through here.

    Args:
        text: bytes, a str, or an object that has a str, such as an exception.
        limit: characters after which it is cut; None: it is not.
    """
    words = text.decode("utf-8", "backslashreplace") if isinstance(text, bytes) else str(text)
    line = words[:limit].replace("\n", " ")
    if not line.isprintable():
        line = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in line)
    return line if limit is None or len(words) <= limit else f"{line}..."
