"""What became of a message: Receipt and Delivery, and the account that leads to them.

A message is usually one transaction, but it may take several: a server takes only so many recipients at a time,
some of them are refused for now and tried again later, a connection breaks.  :class:`Shipment` keeps the
account of each recipient over all of them.  No I/O, no clock.
"""

from __future__ import annotations

import copy
import email.policy
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from email.message import Message
from typing import TYPE_CHECKING, Any

from asmtp.client.content import PIECE, WHOLE, check_content
from asmtp.errors import DeliveryState, SMTPException, SMTPRecipientsRefused, SMTPResponseException, reason
from asmtp.protocol.command import spelt_out
from asmtp.protocol.content import to_octets
from asmtp.protocol.envelope import Envelope
from asmtp.protocol.message import flatten, weight
from asmtp.protocol.reply import Reply

if TYPE_CHECKING:
    from asmtp.protocol.transaction import Outcome

__all__ = [
    "Delivery",
    "Receipt",
    "Shipment",
    "envelope_of",
    "is_heavy",
    "own_copy",
    "refusals",
    "replies_of",
    "state_of",
]


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


def envelope_of(item: Any) -> Envelope:
    """What `send_all` takes, as an envelope with its content.

    Raises:
        TypeError: it is nothing that can be sent.
        ValueError: an address is wrong, or missing.
    """
    if type(item) is tuple and len(item) == 3:
        return Envelope(item[0], item[1], content=item[2])
    if isinstance(item, Envelope):
        return item
    if isinstance(item, Message):
        return Envelope.from_message(item)
    raise TypeError(
        f"a message must be an EmailMessage, an Envelope or (sender, recipients, content), not {type(item).__name__}"
    )


def is_heavy(item: Any) -> bool:
    """Whether a :class:`Shipment` of it is better made off the event loop: a large email.message.Message."""
    message = item.content if isinstance(item, Envelope) else item[2] if type(item) is tuple and item[2:] else item
    return isinstance(message, Message) and weight(message) > PIECE


def _each_once(envelope: Envelope) -> Envelope:
    """A recipient that is listed twice gets the message once."""
    recipients = envelope.recipients
    if len(recipients) == 1 or len(set(recipients)) == len(recipients):
        return envelope
    first: dict[str, int] = {}
    for place, who in enumerate(recipients):
        first.setdefault(who, place)
    return envelope.only(list(first.values()))


class Shipment:
    """One message on its way, and what is known of each of its recipients.

    Args:
        item: what the caller gave.
        envelope: sender, recipients, and the content.
        arrived: is called once, with this, when all is known.
        time: the same as `time.time()`.

    Attributes:
        content: an email.message.Message is written as octets here, so it can be used for the next message.
        eight_bit: the content was made of such an object, and is not for servers without 8BITMIME: see `seven_bit`.
        octets: about how much memory its content takes.
        once: there is no second try, as the content is gone when it was sent.
        began: the loop's time at which it was tried first, or None.
        doubted: the recipients of whom a try is in doubt, with its error, and whether it had accepted them.

    Raises:
        TypeError: the content is nothing that can be sent.
        UnicodeEncodeError: a str that is not ASCII.
    """

    __slots__ = (
        "accepted", "arrived", "attempts", "began", "content", "doubted", "eight_bit", "envelope", "failed", "item",
        "once", "pending", "octets", "refused", "relay", "reply", "started", "_seven_bit",
    )  # fmt: skip

    def __init__(self, item: Any, envelope: Envelope, arrived: Callable[[Shipment], None], time: float) -> None:
        content = envelope.content
        self.once = False
        self.eight_bit = False
        if type(content) is not bytes:
            content = spelt_out(content)
            check_content(content)
            if isinstance(content, Message):
                content = flatten(content, utf8=envelope.international)
                self.eight_bit = not content.isascii()
            # A file object or an iterator has been read when it was sent: there is no second time.
            self.once = hasattr(content, "read") or hasattr(content, "__aiter__")
            if isinstance(content, str | bytearray | memoryview) and len(content) <= WHOLE:
                content = to_octets(content)
        self.octets = len(content) if isinstance(content, bytes | str | bytearray | memoryview) else 0
        self.item = item
        self.envelope = _each_once(envelope)
        self.content: Any = content
        self._seven_bit: bytes | None = None
        self.arrived = arrived
        self.began: float | None = None
        self.started = time
        self.pending: list[Any] = []  # its transactions that are under way
        self.attempts = 0
        self.accepted: dict[str, Reply] = {}
        self.refused: dict[str, Reply] = {}
        self.failed: dict[str, Exception] = {}
        self.doubted: dict[str, tuple[Exception, bool]] = {}
        self.reply: Reply | None = None
        self.relay = ""

    def seven_bit(self) -> bytes:
        """The content for a server without 8BITMIME: 8-bit parts are re-encoded (RFC 6152 §3)."""
        if self._seven_bit is None:
            message = email.message_from_bytes(self.content, policy=email.policy.default)
            self._seven_bit = flatten(message, utf8=self.envelope.international, seven_bit=True)
        return self._seven_bit

    def took(self, outcome: Outcome, relay: str) -> None:
        """A server took it for some of the recipients."""
        if self.accepted:
            self.accepted.update(outcome.accepted)
        else:
            self.accepted = outcome.accepted
        self.reply = outcome.reply
        self.relay = relay

    def failed_for(self, recipients: Iterable[str], error: Exception) -> None:
        """It came to nothing for these."""
        if isinstance(error, SMTPRecipientsRefused):
            replies = refusals(error)
            self.refused.update(replies)
            recipients = [who for who in recipients if who not in replies]  # a 421 ended it before it came to these
        self.failed.update(dict.fromkeys(recipients, error))

    def doubt(self, who: str, error: Exception, *, accepted: bool) -> None:
        """Keep in mind that a recipient may have it by a try that ended in `error`.

        Args:
            accepted: the server had accepted the recipient; else it had not answered to that.
        """
        before = self.doubted.get(who)
        self.doubted[who] = (error, accepted or (before is not None and before[1]))

    def known(self, states: Collection[DeliveryState]) -> DeliveryState:
        """What is known of it, where the rest is not waited for.

        Args:
            states: those of its transactions that are under way.
        """
        found = {*states, *map(state_of, self.failed.values())}
        if self.accepted:
            found.add("sent")
        if self.refused:
            found.add("refused")
        if self._doubts(self.accepted, self.refused, self.failed):
            found.add("in_doubt")
        order: tuple[DeliveryState, ...] = ("in_doubt", "sent", "not_sent", "refused")
        return next((state for state in order if state in found), "not_sent")

    def so_far(self, time: float) -> Receipt | None:
        """Return the receipt where the rest is not waited for; None where nobody has it.

        Args:
            time: as `time.time()`.
        """
        accepted, refused, failed = dict(self.accepted), dict(self.refused), dict(self.failed)
        reply, relay = self.reply, self.relay
        for request in self.pending:
            outcome = request.outcome
            if outcome is not None:  # and is told in a moment
                accepted |= outcome.accepted
                refused |= outcome.refused
                reply, relay = outcome.reply, request.connection.source.name
                continue
            error = request.error
            if not isinstance(error, Exception):
                error = SMTPException("given up")
                error.state = request.state
            failed |= dict.fromkeys(request.envelope.recipients, error)
        if reply is None:
            return None
        self._keep_doubts(accepted, refused, failed)
        attempts = max([self.attempts, *(request.attempts for request in self.pending)])
        return Receipt(accepted, refused, failed, reply, relay, attempts, self.started, time)

    def verdict(self, time: float) -> tuple[Receipt | None, Exception | None]:
        """All is known: the receipt, or why there is none.  Both, where it was sent to some and others are in doubt.

        Args:
            time: as `time.time()`.
        """
        if self.doubted:
            self._keep_doubts(self.accepted, self.refused, self.failed)
        receipt = None
        if self.accepted:
            assert self.reply is not None
            receipt = Receipt(
                self.accepted, self.refused, self.failed, self.reply, self.relay, self.attempts, self.started, time
            )
            if not self.failed:
                return receipt, None
        error: Exception | None = None
        for candidate in self.failed.values():
            if error is None or state_of(candidate) == "in_doubt":
                error = candidate
        if receipt is not None and state_of(error) != "in_doubt":
            return receipt, None
        if error is None:
            error = SMTPRecipientsRefused(self.refused)
            error.state = "refused"
        elif isinstance(error, SMTPException) and (receipt is not None or self.refused):
            error = own_copy(error)
        if isinstance(error, SMTPException):
            error.state = state_of(error)
            error.receipt = receipt
        return receipt, error

    def _keep_doubts(self, accepted: dict[str, Reply], refused: dict[str, Reply], failed: dict[str, Exception]) -> None:
        """Say of those who may have it by an earlier try that it is in doubt, whatever the last one came to."""
        for who, error in self._doubts(accepted, refused, failed).items():
            refused.pop(who, None)
            failed[who] = error

    def _doubts(
        self, accepted: dict[str, Reply], refused: dict[str, Reply], failed: dict[str, Exception]
    ) -> dict[str, Exception]:
        """Return who may have it by an earlier try, though the last one says otherwise, and how that try ended.

        Not a recipient that a later try has refused for good, where the earlier one had no answer to it.
        """
        found = {}
        for who, (error, was_accepted) in self.doubted.items():
            if who in accepted or (who in failed and state_of(failed[who]) == "in_doubt"):
                continue
            if was_accepted or who not in refused or refused[who].code < 500:
                found[who] = error
        return found

    def delivery(self, time: float) -> Delivery:
        """All is known: what `send_all` tells of it."""
        receipt, error = self.verdict(time)
        return Delivery(self.item, self.envelope, state_of(error), receipt, error)
