"""What callers are told of a message, Receipt and Delivery, and what is told by an exception."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from asmtp.errors import DeliveryState, SMTPException, SMTPRecipientsRefused, SMTPResponseException, reason
from asmtp.protocol.envelope import Envelope
from asmtp.protocol.reply import Reply

if TYPE_CHECKING:
    pass

__all__ = ["Delivery", "Receipt", "own_copy", "refusals", "replies_of", "state_of"]


@dataclass(slots=True)
class Receipt:
    """A server has taken a message, for one recipient at least.

    Attributes:
        accepted: the recipients it was taken for, and the replies that said so.  A reply is (code, text), with
            ``enhanced``, the enhanced status code.
        refused: the recipients it was not taken for, and the replies that said so.
        failed: the recipients of whom neither is known, with the exception whose `state` tells what is.  Empty unless
            the message took several transactions and one of them came to nothing.
        reply: the server's reply to the end of the content; of the last transaction, if it took several.
        relay: who took it, ``"host:port"``.
        attempts: how often it was tried, 1 where nothing went wrong.
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
        """Whether it was taken for every recipient."""
        return not self.refused and not self.failed


@dataclass(slots=True)
class Delivery:
    """What became of one message of :meth:`~asmtp.AsyncMailer.send_all`.

    Attributes:
        item: what the iterable gave.
        envelope: sender and recipients; None where the item could not be read as a message.
        state: ``"sent"``, ``"refused"``, ``"not_sent"`` or ``"in_doubt"``, as :attr:`asmtp.SMTPException.state`.
        receipt: where the server took it, for one recipient at least.
        error: why it was not sent, or is in doubt.
    """

    item: Any = field(repr=False)  # what is in a message does not belong into logs
    envelope: Envelope | None
    state: DeliveryState
    receipt: Receipt | None = field(default=None)
    error: Exception | None = field(default=None)

    @property
    def ok(self) -> bool:
        """Whether it was sent, to one recipient at least; `receipt.complete` tells whether to all."""
        return self.state == "sent"


def state_of(error: BaseException | None) -> DeliveryState:
    """What is known of a message that met `error`."""
    return "sent" if error is None else getattr(error, "state", None) or "not_sent"


def refusals(error: SMTPRecipientsRefused) -> dict[str, Reply]:
    """Who was refused, and the replies that did it; nobody where it was made by hand, of something else."""
    found = error.recipients if isinstance(error.recipients, dict) else {}
    return {who: Reply(*reply) for who, reply in found.items() if isinstance(reply, tuple)}


def replies_of(error: BaseException) -> list[Reply]:
    """What the server said, where an error is made of that."""
    if isinstance(error, SMTPRecipientsRefused):
        return list(refusals(error).values())
    if isinstance(error, SMTPResponseException):
        text = error.smtp_error
        return [Reply(error.smtp_code, text if isinstance(text, bytes) else text.encode())]
    return []


def own_copy(error: SMTPException) -> SMTPException:
    """An exception of the caller's own, to be raised; its class is another where it is one that cannot be copied."""
    try:
        told = copy.copy(error)
        told.__traceback__ = None
        told.__cause__ = error.__cause__  # which a copy does not have
    except Exception:  # a class of the caller's, with an __init__ of its own
        told = SMTPException(reason(error))
        told.__cause__ = error
    told.state = error.state
    return told
