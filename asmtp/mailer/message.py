"""A message on its way: :class:`QueuedMessage` keeps the account of each of its recipients.

A message is usually one transaction, but it may take several: a server takes only so many recipients at a time,
some of them are refused for now and tried again later, a connection breaks.  No I/O, no clock.
"""

from __future__ import annotations

import email.policy
from collections.abc import Callable, Collection, Iterable
from email.message import Message
from typing import TYPE_CHECKING, Any

from asmtp.client.content import PIECE, WHOLE, check_content
from asmtp.errors import DeliveryState, SMTPException, SMTPRecipientsRefused
from asmtp.mailer.delivery import Delivery, Receipt, own_copy, refusals, state_of
from asmtp.protocol.command import spelt_out
from asmtp.protocol.content import to_octets
from asmtp.protocol.envelope import Envelope
from asmtp.protocol.message import flatten, weight
from asmtp.protocol.reply import Reply

if TYPE_CHECKING:
    from asmtp.protocol.verdict import Outcome

__all__ = ["QueuedMessage", "envelope_of", "is_heavy"]


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
    """Whether a :class:`QueuedMessage` of it is better made off the event loop: a large email.message.Message."""
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


class QueuedMessage:
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

    def __init__(self, item: Any, envelope: Envelope, arrived: Callable[[QueuedMessage], None], time: float) -> None:
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
                reply, relay = outcome.reply, request.connection.relay.name
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
