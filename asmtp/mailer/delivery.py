"""The outcome of a message as callers are told: a Receipt, a Delivery or an exception."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, Literal, TypeAlias, TypeVar

from asmtp.errors import DeliveryState, SMTPException, SMTPRecipientsRefused, SMTPResponseException, reason
from asmtp.protocol.envelope import Envelope
from asmtp.protocol.reply import Reply

__all__ = ["Delivery", "FailedDelivery", "Receipt", "SentDelivery", "own_copy", "refusals", "replies_of", "state_of"]

T = TypeVar("T")


@dataclass(slots=True)
class Receipt:
    """Proof that a server has taken a message, for at least one recipient.

    Attributes:
        accepted: the recipients it was taken for, and the replies that said so.  A reply is (code, text), with
            ``enhanced``, the enhanced status code.
        refused: the recipients it was not taken for, and the replies that said so.
        failed: recipients whose outcome is unknown, and the exception (its `state` says "not_sent" or "in_doubt").
            It is empty unless the message took several transactions, and one of them failed.
        reply: the server's reply to the end of the content; of the last transaction, if it took several.
        relay: the server that took it, ``"host:port"``.
        attempts: how many times it was tried: 1 if nothing went wrong.
        started, finished: when it was given to the mailer, and when the last reply was in; seconds, as `time.time()`.
    """

    accepted: dict[str, Reply]
    refused: dict[str, Reply]
    failed: dict[str, Exception]
    reply: Reply
    relay: str
    attempts: int
    started: float
    finished: float

    @property
    def complete(self) -> bool:
        """Tell whether the message was taken for every recipient."""
        return not self.refused and not self.failed


@dataclass(slots=True)
class _Delivery(Generic[T]):
    """The outcome of one message of :meth:`~asmtp.AsyncMailer.send_all`: a SentDelivery or a FailedDelivery.

    To type checkers it is the union of the two, so that ``if delivery.ok:`` says which it is.

    Attributes:
        item: what the iterable gave.
        envelope: sender and recipients; None if the item could not be read as a message.
        state: ``"sent"``, ``"refused"``, ``"not_sent"`` or ``"in_doubt"``, as :attr:`asmtp.SMTPException.state`.
        receipt: the server's receipt, if it took the message for at least one recipient.
        error: why the message was not sent, or is in doubt.
    """

    item: T = field(repr=False)  # the content of a message does not belong into logs
    envelope: Envelope | None
    state: DeliveryState
    receipt: Receipt | None = None
    error: Exception | None = None

    @property
    def ok(self) -> bool:
        """Tell whether it was sent to at least one recipient; `receipt.complete` says whether to all."""
        return self.state == "sent"


@dataclass(slots=True)
class SentDelivery(_Delivery[T]):
    """The outcome of a message that was sent to at least one recipient: there is a receipt, and no error."""

    state: Literal["sent"]
    receipt: Receipt
    error: None = None

    @property
    def ok(self) -> Literal[True]:
        """Return True: it was sent."""
        return True


@dataclass(slots=True)
class FailedDelivery(_Delivery[T]):
    """The outcome of a message that was not sent, or is in doubt: there is an error.

    There is a receipt, too, if some of the recipients have it and others are in doubt.
    """

    receipt: Receipt | None
    error: Exception

    @property
    def ok(self) -> Literal[False]:
        """Return False: it was not sent, or that is not known."""
        return False


if TYPE_CHECKING:  # so that `if delivery.ok:` narrows; at run time it is a class, for isinstance
    Delivery: TypeAlias = SentDelivery[T] | FailedDelivery[T]
else:
    Delivery = _Delivery
    Delivery.__name__ = Delivery.__qualname__ = "Delivery"  # in repr and help


def state_of(error: BaseException | None) -> DeliveryState:
    """Return the state of a message whose last try ended in `error`, or None."""
    return "sent" if error is None else getattr(error, "state", None) or "not_sent"


def refusals(error: SMTPRecipientsRefused) -> dict[str, Reply]:
    """Return the recipients who were refused, and the replies; none if the error was made by hand of something else."""
    found = error.recipients if isinstance(error.recipients, dict) else {}
    return {who: Reply(*reply) for who, reply in found.items() if isinstance(reply, tuple)}


def replies_of(error: BaseException) -> list[Reply]:
    """Return the replies that an error was made of."""
    if isinstance(error, SMTPRecipientsRefused):
        return list(refusals(error).values())
    if isinstance(error, SMTPResponseException):
        text = error.smtp_error
        return [Reply(error.smtp_code, text if isinstance(text, bytes) else text.encode())]
    return []


def own_copy(error: SMTPException) -> SMTPException:
    """Return a copy of an exception for a caller to raise; an SMTPException if its class cannot be copied."""
    try:
        told = copy.copy(error)
        told.__traceback__ = None
        told.__cause__ = error.__cause__  # which a copy does not have
    except Exception:  # a class of the caller's, with an __init__ of its own
        told = SMTPException(reason(error))
        told.__cause__ = error
    told.state = error.state
    return told
