"""What is on its way: messages on connections, in line, and waiting to be tried again."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
import random
from collections.abc import Callable, Collection

from asmtp.errors import (
    DeliveryState,
    SMTPException,
    SMTPRecipientsRefused,
    SMTPResponseException,
    SMTPSenderRefused,
    SMTPStateError,
    SMTPTimeoutError,
    reason,
)
from asmtp.mailer.connection import DeliveryRequest
from asmtp.mailer.delivery import own_copy, refusals, replies_of, state_of
from asmtp.mailer.limits import Limit, any_throttling, limit_of
from asmtp.mailer.message import QueuedMessage
from asmtp.mailer.policy import Retry
from asmtp.mailer.pool import Pool
from asmtp.mailer.relay_state import RelayState
from asmtp.protocol.envelope import Envelope
from asmtp.protocol.reply import Reply
from asmtp.protocol.verdict import Outcome

__all__ = ["DeliveryQueue"]


class DeliveryQueue:
    """Judges what became of each transaction: to be told, to be tried again, or to be divided.

    Args:
        open_pool: makes the pool; it is given two functions: one is called with each request that has come to an end,
            the other when a batch of them has.
        retry: what is tried again, and when.
        settled: is called when a batch of messages has been seen to.

    Attributes:
        loop: the event loop that it belongs to.
        in_flight: how many messages have no outcome yet.
        retried: how often one was sent again.
    """

    def __init__(
        self,
        open_pool: Callable[[Callable[[DeliveryRequest, RelayState], None], Callable[[], None]], Pool],
        retry: Retry | None,
        settled: Callable[[], None],
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.in_flight = 0
        self.retried = 0
        self.pool = open_pool(self._ended, self._settled)
        self._retry = retry
        self._tell_settled = settled
        self._aborted = False
        self._quiet: asyncio.Future[None] | None = None
        self._later: list[tuple[float, int, DeliveryRequest]] = []  # a heap: requests that are tried again at a time
        self._counter = itertools.count()
        self._timer: asyncio.TimerHandle | None = None
        self._ending: asyncio.TimerHandle | None = None  # of what was put back

    @property
    def waiting(self) -> int:
        """How many requests are on no connection now."""
        return len(self._later) + len(self.pool.waiting)

    # ---- what its owner does ----------------------------------------------------------------

    def submit(self, message: QueuedMessage) -> None:
        """Put a message in line.  `pool.dispatch` is to be called then."""
        self.in_flight += 1
        self.pool.submit(DeliveryRequest(message, message.envelope))

    def withdraw(self, message: QueuedMessage, why: SMTPException | None = None) -> DeliveryState:
        """Nobody wants it any more: it is stopped, as far as it can be stopped.

        Returns:
            What is known of it at this moment.
        """
        for request in self._taken_back(lambda request: request.message is message):
            self._give_up(request)
        for request in list(message.pending):
            self.pool.withdraw(request, why or SMTPException("given up"))
        known = message.known({request.state for request in message.pending})
        self.pool.dispatch()
        self._settled()
        return known

    def expire(self, message: QueuedMessage, seconds: float) -> None:
        """Its time is up: it is stopped as far as it can be, and told at once, with what is known of it."""
        why = SMTPTimeoutError(f"timed out: not sent within {seconds:g} seconds")
        self.withdraw(message, why)
        for request in list(message.pending):
            if not request.over:  # what is, is told in a moment; the server has not said what became of this one
                told = SMTPTimeoutError(*why.args)
                told.state = request.state
                message.failed_for(request.envelope.recipients, told)
                self._close(request)
        self._settled()

    def give_up(self, chosen: Callable[[DeliveryRequest], bool]) -> None:
        """End those that are chosen, of what is on no connection."""
        waiting = self.pool.waiting
        found = [request for request in waiting if chosen(request)]
        if found:
            rest = [request for request in waiting if not chosen(request)]
            waiting.clear()
            waiting.extend(rest)
        for request in [*found, *self._taken_back(chosen)]:
            self._give_up(request)
        self._settled()

    async def quiet(self) -> None:
        """Until nothing is in flight."""
        while self.in_flight:
            if self._quiet is None or self._quiet.done():
                self._quiet = self.loop.create_future()
            await asyncio.shield(self._quiet)

    def abort(self) -> None:
        """Close all connections at once; what is in flight is ended with what is known of it."""
        self._aborted = True
        for timer in (self._timer, self._ending):
            if timer is not None:
                timer.cancel()
        self.pool.abort()
        self._give_up_later()
        self._settled()

    def orphaned(self) -> None:
        """The event loop was closed: what is in flight is ended with what is known of it."""
        self._aborted = True
        self.pool.orphaned()
        self._give_up_later()

    def _give_up_later(self) -> None:
        later, self._later = self._later, []
        for _, _, request in later:
            self._give_up(request)

    # ---- the end of a try -------------------------------------------------------------------

    def _ended(self, request: DeliveryRequest, relay: RelayState) -> None:
        """A request has come to an end: to tell, or to try again."""
        message = request.message
        if request not in message.pending:
            return  # it was told that its time was up
        message.attempts = max(message.attempts, request.attempts)
        outcome, error = request.outcome, request.error
        if error is None and outcome is not None:
            message.took(outcome, relay.name)
            if outcome.refused:
                self._refused_for_some(request, outcome, relay)
        elif request.withdrawn is not None or not isinstance(error, Exception):
            message.failed_for(request.envelope.recipients, _given_up(request, error))
        else:
            self._failed(request, error, relay)
            return
        self._close(request)

    def _close(self, request: DeliveryRequest) -> None:
        """A request of a message is done with."""
        message = request.message
        message.pending.remove(request)
        if not message.pending:
            self.in_flight -= 1
            message.arrived(message)

    def _failed(self, request: DeliveryRequest, error: Exception, relay: RelayState) -> None:
        """It came to nothing: try again, or leave it at that."""
        self._heed(request, error, relay)
        delay = None
        if self._retry is not None and not request.message.once and not self._aborted:
            if request.limit is not None and self._put_back(request, error):
                return
            delay = self._retry.delay(request.attempts, self._elapsed(request.message), error, random.random())
        if delay is not None:
            self._drop_refused(request, error)
            self._try_later(request, delay)
            return
        request.message.failed_for(request.envelope.recipients, error)
        self._close(request)

    def _elapsed(self, message: QueuedMessage) -> float:
        """Seconds since it was tried first."""
        return 0.0 if message.began is None else self.loop.time() - message.began

    def _drop_refused(self, request: DeliveryRequest, error: Exception) -> None:
        """What is tried again is tried for those only whom the server may take later."""
        if isinstance(error, SMTPRecipientsRefused):
            final = {who: reply for who, reply in refusals(error).items() if not 400 <= reply.code <= 499}
            if final:
                request.message.refused.update(final)
                request.envelope = _only(request, set(request.envelope.recipients) - set(final))

    def _refused_for_some(self, request: DeliveryRequest, outcome: Outcome, relay: RelayState) -> None:
        """It was taken, but not for everyone: some may get a transaction of their own."""
        message, refused = request.message, outcome.refused
        others = SMTPRecipientsRefused({who: reply for who, reply in refused.items() if not _too_many(reply)})
        limit = limit_of(others, 0)
        self._heed_rate(limit, others, relay)
        if message.once or request.withdrawn or self._aborted:
            message.refused.update(refused)
            return
        crowded = self._crowded_out(request, outcome, relay)
        later = {who: reply for who, reply in refused.items() if 400 <= reply.code <= 499 and who not in crowded}
        if later and not self._again_for(request, later, limit):
            later = {}
        message.refused.update({who: reply for who, reply in refused.items() if not (who in crowded or who in later)})

    def _again_for(self, request: DeliveryRequest, later: dict[str, Reply], limit: Limit | None) -> bool:
        """Whether there is another transaction for these, who were refused for now."""
        if self._retry is None:
            return False
        error = SMTPRecipientsRefused(dict(later))  # if that is the end of it
        error.state = "refused"
        delay = self._retry.wait(request.attempts, self._elapsed(request.message), random.random())
        free = limit is not None and self._until(request) > self.loop.time()
        if delay is None and not free:
            return False
        again = DeliveryRequest(request.message, _only(request, later), request.attempts)
        again.error = error
        if free:
            self._put_back(again, error)
        elif delay is not None:
            self._try_later(again, delay)
        return True

    def _crowded_out(self, request: DeliveryRequest, outcome: Outcome, relay: RelayState) -> set[str]:
        """Those behind the server's limit of recipients, who get a transaction of their own (RFC 5321 §4.5.3.1.10)."""
        crowded = {who: reply for who, reply in outcome.refused.items() if _too_many(reply)}
        if crowded:
            recipients = request.envelope.recipients
            if set(recipients[-len(crowded) :]) == set(crowded):
                certain = all(map(_says_too_many, crowded.values()))
                relay.crowded(len(recipients) - len(crowded), self.loop.time(), certain=certain)
            self.pool.submit(DeliveryRequest(request.message, _only(request, crowded), request.attempts), 0)
        return set(crowded)

    def _heed(self, request: DeliveryRequest, error: Exception, relay: RelayState) -> None:
        """What the reply says of the server, not of the message."""
        replies = replies_of(error)
        if any_throttling(replies) or request.limit is not None:
            self._heed_rate(request.limit, error, relay)
        elif isinstance(error, SMTPSenderRefused) and replies[0].enhanced.startswith("4.3."):
            self.pool.distrust(relay, error)  # RFC 3463 §3.4: the system's status

    def _heed_rate(self, limit: Limit | None, error: Exception, relay: RelayState) -> None:
        """A server that says it is sent too much is sent less."""
        if limit is Limit.RATE or any_throttling(replies_of(error)):
            find = limit is Limit.RATE and self._retry is not None
            self.pool.slow_down(relay, error, find=find)

    # ---- back in line -----------------------------------------------------------------------

    def _until(self, request: DeliveryRequest) -> float:
        """The loop's time up to which a request may be put back; without a limit none is, as there would be no end."""
        if self._retry is None or self._retry.within is None or request.message.began is None:
            return -math.inf
        return request.message.began + self._retry.within

    def _put_back(self, request: DeliveryRequest, error: Exception) -> bool:
        """Have a request go again that met a limit of the server's, if there is time: no try is counted."""
        until = self._until(request)
        if until <= self.loop.time():
            return False
        self._drop_refused(request, error)
        request.returned += 1
        request.said = error
        request.until = until
        self.retried += 1
        self.pool.put_back(request)
        self._end_at(until)
        return True

    def _end_at(self, when: float) -> None:
        """Look at `when` whether there are requests whose time is over."""
        if when < math.inf and (self._ending is None or when < self._ending.when()):
            if self._ending is not None:
                self._ending.cancel()
            self._ending = self.loop.call_at(when, self._end_of_time)

    def _end_of_time(self) -> None:
        """End the requests that were put back and were not taken in time, by what the server said."""
        self._ending = None
        now, waiting = self.loop.time(), self.pool.waiting
        over = [request for request in waiting if request.until <= now]
        for request in over:
            request.error = request.said
        if over and self._retry is not None and self.pool.meter.last < now - (self._retry.within or 0):
            # Nothing was taken: those that waited as long behind them have had their time, too.
            for request in waiting:
                if request.until == math.inf and request.since <= now - (self._retry.within or 0):
                    request.until = now
                    request.error = _not_tried(over[0])
        self.give_up(lambda request: request.until <= now)
        self._end_at(min((request.until for request in waiting), default=math.inf))

    # ---- trying again -----------------------------------------------------------------------

    def _try_later(self, request: DeliveryRequest, delay: float) -> None:
        """Try a request again, in so many seconds."""
        self.retried += 1
        heapq.heappush(self._later, (self.loop.time() + delay, next(self._counter), request))
        if self._later[0][2] is request:
            self._set_timer()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_at(self._later[0][0], self._due) if self._later else None

    def _due(self) -> None:
        """It is time for some requests."""
        now = self.loop.time()
        while self._later and self._later[0][0] <= now:
            self.pool.submit(heapq.heappop(self._later)[2])
        self._set_timer()
        self.pool.dispatch()

    def _taken_back(self, chosen: Callable[[DeliveryRequest], bool]) -> list[DeliveryRequest]:
        """Those that were to be tried again, and are not any more."""
        found = [entry[2] for entry in self._later if chosen(entry[2])]
        if found:
            self._later = [entry for entry in self._later if not chosen(entry[2])]
            heapq.heapify(self._later)
            self._set_timer()
        return found

    def _give_up(self, request: DeliveryRequest) -> None:
        """A request that is on no connection is not tried any more."""
        error = request.error
        if not isinstance(error, Exception):
            error = SMTPStateError("not begun: the mailer was closed, or the loop over send_all left")
            error.state = "not_sent"
        request.message.failed_for(request.envelope.recipients, error)
        self._close(request)

    def _settled(self) -> None:
        """A batch of requests has been seen to."""
        self._tell_settled()
        if self._quiet is not None and not self.in_flight and not self._quiet.done():
            self._quiet.set_result(None)


def _given_up(request: DeliveryRequest, error: BaseException | None) -> Exception:
    """What is told of a request that was withdrawn, or met what is not to be raised: what a server said, or why."""
    if isinstance(error, Exception) and error is not request.withdrawn and state_of(error) == "refused":
        return error
    why = request.withdrawn
    if why is None:
        why = SMTPException(f"given up: {reason(error)}")
    told = own_copy(why)
    told.state = state_of(error) if error is not None else "not_sent"
    told.__cause__ = error
    return told


def _only(request: DeliveryRequest, chosen: Collection[str]) -> Envelope:
    return request.envelope.only([place for place, who in enumerate(request.envelope.recipients) if who in chosen])


def _not_tried(other: DeliveryRequest) -> Exception:
    """Return what is said of a message that waited while the server took nothing: its words to another."""
    assert other.said is not None
    replies = replies_of(other.said)
    error: SMTPException = SMTPException(str(other.said))
    if replies:
        error = SMTPResponseException(*replies[0])
    error.state = "not_sent"
    return error


def _too_many(reply: Reply) -> bool:
    """RFC 5321 §4.5.3.1.10: 452, and 552 of old servers, may mean that there are too many recipients."""
    return reply.code in (452, 552) and (_says_too_many(reply) or (reply.code == 452 and not reply.enhanced))


def _says_too_many(reply: Reply) -> bool:
    text = reply.message.lower()  # not: a mailbox with too many messages
    return reply.enhanced.endswith(".5.3") or (b"too many" in text and (b"recipient" in text or b"rcpt" in text))
