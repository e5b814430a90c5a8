"""A message on its way, and the transactions that it takes.

A message is usually one transaction, but it may take several: a server takes only so many recipients at a time,
it refuses some of them for now, a connection breaks.  A :class:`DeliveryRequest` is one transaction, and
:class:`QueuedMessage` keeps the account of each recipient over all of them.  No I/O, no clock.
"""

from __future__ import annotations

import email.policy
import enum
import math
from collections.abc import Callable, Collection, Iterable
from email.message import Message
from typing import TYPE_CHECKING, Any, Protocol

from asmtp.client.content import PIECE, WHOLE, check_content
from asmtp.errors import DeliveryState, SMTPException, SMTPRecipientsRefused, SMTPResponseException, known, reason
from asmtp.mailer.delivery import (
    Delivery,
    FailedDelivery,
    Receipt,
    SentDelivery,
    own_copy,
    refusals,
    replies_of,
    state_of,
)
from asmtp.protocol.command import spelt_out
from asmtp.protocol.content import to_octets
from asmtp.protocol.envelope import Envelope
from asmtp.protocol.message import flatten, weight
from asmtp.protocol.reply import Reply

if TYPE_CHECKING:
    import asyncio

    from asmtp.mailer.policy import Limit
    from asmtp.mailer.relay_state import RelayState
    from asmtp.protocol.exchange import Exchange
    from asmtp.protocol.transaction import Transaction
    from asmtp.protocol.verdict import Outcome

__all__ = ["DeliveryRequest", "QueuedMessage", "RequestState", "envelope_of", "is_heavy"]


def envelope_of(item: Any) -> Envelope:
    """Return an item of `send_all` as an envelope with its content.

    Raises:
        TypeError: it cannot be sent.
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
    """Tell whether to make the QueuedMessage off the event loop, as the item has a large email.message.Message."""
    message = item.content if isinstance(item, Envelope) else item[2] if type(item) is tuple and item[2:] else item
    return isinstance(message, Message) and weight(message) > PIECE


def _each_once(envelope: Envelope) -> Envelope:
    """Return the envelope with each recipient once."""
    recipients = envelope.recipients
    if len(recipients) == 1 or len(set(recipients)) == len(recipients):
        return envelope
    first: dict[str, int] = {}
    for place, who in enumerate(recipients):
        first.setdefault(who, place)
    return envelope.only(list(first.values()))


class QueuedMessage:
    """One message on its way, and the account of each of its recipients.

    Args:
        item: the item that the caller gave.
        envelope: sender, recipients, and the content.
        arrived: is called once, with the message, when the outcome of each recipient is known.
        time: the same as `time.time()`.

    Attributes:
        content: the content as it is sent: of an email.message.Message the octets, as the caller may change the object
            and use it for the next message.
        eight_bit: the content was made of such an object, and a server without 8BITMIME is sent `seven_bit` instead.
        octets: about how much memory its content takes.
        once: the content can be read only once, so that there is no second try.
        began: the loop's time at which its first try began, or None.
        pending: its delivery requests that are not done.
        doubted: the recipients who may have the message by a try that is in doubt: the error of that try, and whether
            the server had accepted the recipient in it.

    Raises:
        TypeError: the content cannot be sent.
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
        self.pending: list[DeliveryRequest] = []
        self.attempts = 0
        self.accepted: dict[str, Reply] = {}
        self.refused: dict[str, Reply] = {}
        self.failed: dict[str, Exception] = {}
        self.doubted: dict[str, tuple[Exception, bool]] = {}
        self.reply: Reply | None = None
        self.relay = ""

    def seven_bit(self) -> bytes:
        """Return the content for a server without 8BITMIME: 8-bit parts are re-encoded (RFC 6152 §3)."""
        if self._seven_bit is None:
            message = email.message_from_bytes(self.content, policy=email.policy.default)
            self._seven_bit = flatten(message, utf8=self.envelope.international, seven_bit=True)
        return self._seven_bit

    def took(self, outcome: Outcome, relay: str) -> None:
        """Enter that a server took the message for some of the recipients."""
        if self.accepted:
            self.accepted.update(outcome.accepted)
        else:
            self.accepted = outcome.accepted
        self.reply = outcome.reply
        self.relay = relay

    def failed_for(self, recipients: Iterable[str], error: Exception) -> None:
        """Enter that a try has failed for these recipients."""
        if isinstance(error, SMTPRecipientsRefused):
            replies = refusals(error)
            self.refused.update(replies)
            recipients = [who for who in recipients if who not in replies]  # a 421 ended it before it came to these
        self.failed.update(dict.fromkeys(recipients, error))

    def doubt(self, who: str, error: Exception, *, accepted: bool) -> None:
        """Remember that a recipient may have the message by a try that ended in `error`.

        Args:
            accepted: the server had accepted the recipient; else it had not answered to that.
        """
        before = self.doubted.get(who)
        self.doubted[who] = (error, accepted or (before is not None and before[1]))

    def delivery_state(self, states: Collection[DeliveryState]) -> DeliveryState:
        """Return the state of the message at this moment.

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
        """Return the receipt at this moment, for a caller who was cancelled; None if no recipient has the message.

        Args:
            time: as `time.time()`.
        """
        accepted, refused, failed = dict(self.accepted), dict(self.refused), dict(self.failed)
        reply, relay = self.reply, self.relay
        for request in self.pending:
            outcome, connection = request.outcome, request.connection
            if outcome is not None and connection is not None:  # its try has ended, and is judged in a moment
                accepted |= outcome.accepted
                refused |= outcome.refused
                reply, relay = outcome.reply, connection.relay.name
                continue
            error = request.error
            if not isinstance(error, Exception):
                error = known(SMTPException("given up"), request.delivery_state)
            failed |= dict.fromkeys(request.envelope.recipients, error)
        if reply is None:
            return None
        self._keep_doubts(accepted, refused, failed)
        attempts = max([self.attempts, *(request.attempts for request in self.pending)])
        return Receipt(accepted, refused, failed, reply, relay, attempts, self.started, time)

    def verdict(self, time: float) -> tuple[Receipt | None, Exception | None]:
        """Return the receipt, or the error if there is none, when the outcome of each recipient is known.

        Both are returned if some recipients have the message, and others are in doubt.

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
            error = known(SMTPRecipientsRefused(self.refused), "refused")
        elif isinstance(error, SMTPException) and (receipt is not None or self.refused):
            error = own_copy(error)
        if isinstance(error, SMTPException):
            known(error, state_of(error)).receipt = receipt
        return receipt, error

    def _keep_doubts(self, accepted: dict[str, Reply], refused: dict[str, Reply], failed: dict[str, Exception]) -> None:
        """Enter as in doubt the recipients who may have the message by an earlier try, whatever the last came to."""
        for who, error in self._doubts(accepted, refused, failed).items():
            refused.pop(who, None)
            failed[who] = error

    def _doubts(
        self, accepted: dict[str, Reply], refused: dict[str, Reply], failed: dict[str, Exception]
    ) -> dict[str, Exception]:
        """Return who may have it by an earlier try though the last one says otherwise, and the earlier error.

        A recipient that the server has refused for good is not in doubt, unless it had been accepted before.
        """
        found = {}
        for who, (error, was_accepted) in self.doubted.items():
            if who in accepted or (who in failed and state_of(failed[who]) == "in_doubt"):
                continue
            if was_accepted or who not in refused or refused[who].code < 500:
                found[who] = error
        return found

    def delivery(self, time: float) -> Delivery[Any]:
        """Return the delivery for the caller of `send_all`, when the outcome of each recipient is known."""
        receipt, error = self.verdict(time)
        if error is not None:
            return FailedDelivery(self.item, self.envelope, state_of(error), receipt, error)
        assert receipt is not None
        return SentDelivery(self.item, self.envelope, "sent", receipt)


class RequestState(enum.Enum):
    """The states of a delivery request.

    ======== ================================================== ==========================================
    state    what happens                                       next state
    ======== ================================================== ==========================================
    ACTIVE   a connection has room for it                       SENDING
             it is withdrawn, or no relay can be reached        ENDED
    SENDING  its try ends                                       ENDED
             the time for the message is over                   DONE (what the try comes to is dropped)
    ENDED    it is tried again at once                          ACTIVE, at the head of the line
             it is tried again later                            DEFERRED
             it is not tried again                              DONE
    DEFERRED its time has come                                  ACTIVE
             the caller gives the message up                    DONE
    DONE     the message's account has what became of it        none
    ======== ================================================== ==========================================

    A request has a `connection` while it is SENDING or ENDED (not if it ended in the line).  `outcome` and `error` are
    those of the last try, until the next one begins.
    """

    ACTIVE = "active"
    DEFERRED = "deferred"
    SENDING = "sending"
    ENDED = "ended"
    DONE = "done"


class Carrier(Protocol):
    """The part of a :class:`~asmtp.mailer.connection.PooledConnection` that a request on it refers to."""

    @property
    def relay(self) -> RelayState:
        """Return where it leads."""

    def withdraw(self, request: DeliveryRequest) -> None:
        """Stop a request if it can be stopped."""


ACTIVE = RequestState.ACTIVE  # a member that is reached through its class costs 70 ns on Python 3.11


class DeliveryRequest:
    """One transaction of a message, to some of its recipients or, as a rule, to all (Postfix has the same term).

    Attributes:
        state: where it is.
        attempts: how many tries were counted, the present one included.
        since: the loop's time at which it was put in line.
        begun: when it was given to a connection, by events.clock, if events are listened to.
        connection: the connection that it is or was on.
        exchange, task: what is under way there: an exchange for a short content, a task for what is large or has to be
            read first.
        transaction: the transaction of the present try, once it has begun.
        outcome, error: how the last try ended.
        withdrawn: why the caller gave the message up, or None.
        not_begun, unseen: how often it was tried again silently: see :class:`~asmtp.Retry`.
        limit: the limit of the server's that its last try met, or None.
        returned: how often it was tried again after a limit.
        until: the loop's time at which it is not tried again after a limit any more.
        said: the server's error at the limit, with which it ends then.
        spent: how many messages a connection had taken when the server refused the sender on it, which may be a limit
            of the connection; or 0.
    """

    __slots__ = (
        "attempts", "begun", "connection", "envelope", "error", "exchange", "limit", "message", "not_begun", "outcome",
        "returned", "said", "since", "spent", "state", "task", "transaction", "unseen", "until", "withdrawn",
    )  # fmt: skip

    def __init__(self, message: QueuedMessage, envelope: Envelope, attempts: int = 0) -> None:
        message.pending.append(self)
        self.message = message
        self.envelope = envelope
        self.attempts = attempts
        self.state = ACTIVE
        self.since = self.begun = 0.0
        self.connection: Carrier | None = None
        self.exchange: Exchange[Outcome] | None = None
        self.task: asyncio.Task[None] | None = None
        self.transaction: Transaction | None = None
        self.outcome: Outcome | None = None
        self.error: BaseException | None = None
        self.withdrawn: SMTPException | None = None
        self.not_begun = self.unseen = self.returned = self.spent = 0
        self.limit: Limit | None = None
        self.until = math.inf
        self.said: Exception | None = None

    @property
    def delivery_state(self) -> DeliveryState:
        """Return the state of the message at this moment, by this request."""
        if self.outcome is not None or self.error is not None:
            return state_of(self.error)
        return "not_sent" if self.transaction is None else self.transaction.state

    def keep_doubt(self) -> None:
        """Remember the recipients who may have the message by this try: a later one does not change that."""
        error, transaction = self.error, self.transaction
        if isinstance(error, Exception) and transaction is not None and state_of(error) == "in_doubt":
            answers = transaction.answers()
            for who in self.envelope.recipients:
                if who not in answers or answers[who].ok:
                    self.message.doubt(who, error, accepted=who in answers)

    def only(self, recipients: Collection[str]) -> Envelope:
        """Return its envelope with no more than these recipients."""
        return self.envelope.only([place for place, who in enumerate(self.envelope.recipients) if who in recipients])

    def split(self, most: int) -> list[DeliveryRequest]:
        """Leave it the first `most` recipients, and return requests for the others (RFC 9422 §3.2)."""
        envelope = self.envelope
        count = len(envelope.recipients)
        self.envelope = envelope.only(range(most))
        others = [
            DeliveryRequest(self.message, envelope.only(range(at, min(at + most, count))), self.attempts)
            for at in range(most, count, most)
        ]
        for other in others:
            other.since = self.since
        return others

    def drop_refused(self, error: Exception) -> None:
        """Drop the recipients whom the server refused for good, before a request is tried again after `error`."""
        if isinstance(error, SMTPRecipientsRefused):
            final = {who: reply for who, reply in refusals(error).items() if not 400 <= reply.code <= 499}
            if final:
                self.message.refused.update(final)
                self.envelope = self.only(set(self.envelope.recipients) - set(final))

    def said_to_others(self) -> Exception:
        """Return an error with the server's words, for a message that waited behind this one in vain."""
        assert self.said is not None
        replies = replies_of(self.said)
        error: SMTPException = SMTPException(str(self.said))
        if replies:
            error = SMTPResponseException(*replies[0])
        return known(error, "not_sent")

    def give_up(self) -> None:
        """Fail for its recipients, as it was withdrawn, or as its error is not an Exception."""
        error, why = self.error, self.withdrawn
        told = error
        if not (isinstance(error, Exception) and error is not why and state_of(error) == "refused"):
            state = state_of(error) if error is not None else "not_sent"
            told = known(own_copy(why or SMTPException(f"given up: {reason(error)}")), state)
            told.__cause__ = error
        assert isinstance(told, Exception)
        self.message.failed_for(self.envelope.recipients, told)
