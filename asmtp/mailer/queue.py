"""The messages on their way: those that may be sent now, and those that are tried again later.

:class:`DeliveryQueue` has two lines, as Postfix's queue manager: the active one, from which the pool's connections are
given messages, and the deferred one.  It judges each try that has ended: :meth:`DeliveryQueue._try_again` is the one
place that decides whether there is another.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
import random
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from asmtp.errors import (
    DeliveryState,
    SMTPException,
    SMTPRecipientsRefused,
    SMTPResponseException,
    SMTPSenderRefused,
    SMTPServerDisconnected,
    SMTPStateError,
    SMTPTimeoutError,
    known,
)
from asmtp.mailer.delivery import replies_of
from asmtp.mailer.message import DeliveryRequest, QueuedMessage, RequestState
from asmtp.mailer.policy import (
    Limit,
    any_throttling,
    is_closing,
    limit_of,
    says_too_many_recipients,
    too_many_recipients,
)
from asmtp.protocol.verdict import NotBegun, Outcome

if TYPE_CHECKING:
    from asmtp.mailer.connection import PooledConnection
    from asmtp.mailer.policy import Retry
    from asmtp.mailer.pool import Pool
    from asmtp.mailer.relay_state import RelayState
    from asmtp.protocol.reply import Reply

__all__ = ["DeliveryQueue"]

CHANCES = 3
"""How many times a message is tried again silently as the server closed the connection before it saw the message."""

ACTIVE = RequestState.ACTIVE
DEFERRED = RequestState.DEFERRED
SENDING = RequestState.SENDING
ENDED = RequestState.ENDED
DONE = RequestState.DONE


class DeliveryQueue:
    """The messages of one event loop that have no outcome yet.

    Args:
        pool: sends them; it is told of the queue.
        retry: what is tried again, and when.
        on_settled: is called when a batch of messages was judged.

    Attributes:
        loop: the event loop that it belongs to.
        pool: sends what is in the active line.
        in_flight: how many messages have no outcome yet.
        retried: how many times one was sent again.
    """

    def __init__(self, pool: Pool, retry: Retry | None, on_settled: Callable[[], None]) -> None:
        self.loop = pool.loop
        self.in_flight = 0
        self.retried = 0
        pool.queue = self
        self.pool = pool
        self._retry = retry
        self._on_settled = on_settled
        self._closed = False
        self._quiet: asyncio.Future[None] | None = None
        self._active: deque[DeliveryRequest] = deque()
        self._deferred: list[tuple[float, int, DeliveryRequest]] = []  # a heap
        self._again: list[DeliveryRequest] = []  # of the batch that is judged, for the head of the active line
        self._counter = itertools.count()
        self._timer: asyncio.TimerHandle | None = None  # for the deferred line
        self._ending: asyncio.TimerHandle | None = None  # for those that are tried again while a limit holds

    # ---- what the mailer does ---------------------------------------------------------------

    @property
    def waiting(self) -> int:
        """Return how many requests are on no connection now."""
        return len(self._deferred) + len(self._active)

    def submit(self, message: QueuedMessage) -> None:
        """Put a message in line.  `dispatch` is to be called then."""
        self.in_flight += 1
        self._enqueue(DeliveryRequest(message, message.envelope, 1))

    def dispatch(self) -> None:
        """Send what is in line, as far as there is room."""
        self.pool.dispatch()

    def withdraw(self, message: QueuedMessage, why: SMTPException | None = None) -> DeliveryState:
        """Stop a message that the caller gives up, as far as it can be stopped.

        Returns:
            The state of the message at this moment.
        """
        for request in self._taken_back(lambda request: request.message is message):
            self._give_up(request)
        for request in list(message.pending):
            request.withdrawn = why or SMTPException("given up")
            if request.state is SENDING and request.connection is not None:
                request.connection.withdraw(request)
            elif request.state is ACTIVE:
                self._active.remove(request)
                self.pool.finish(request)
        state = message.delivery_state({request.delivery_state for request in message.pending})
        self.pool.dispatch()
        self.settled()
        return state

    def expire(self, message: QueuedMessage, seconds: float) -> None:
        """Stop a message whose time is up, as far as it can be; tell the caller at once what is known of it."""
        why = SMTPTimeoutError(f"timed out: not sent within {seconds:g} seconds")
        self.withdraw(message, why)
        for request in list(message.pending):
            if request.state is not ENDED:  # one that has ended is judged in a moment
                told = known(SMTPTimeoutError(*why.args), request.delivery_state)
                message.failed_for(request.envelope.recipients, told)
                self._close(request)
        self.settled()

    def give_up(self, chosen: Callable[[DeliveryRequest], bool]) -> None:
        """End the chosen requests, if they are on no connection."""
        found = [request for request in self._active if chosen(request)]
        if found:
            self._active = deque(request for request in self._active if not chosen(request))
        for request in [*found, *self._taken_back(chosen)]:
            self._give_up(request)
        self.settled()

    async def quiet(self) -> None:
        """Wait until nothing is in flight."""
        while self.in_flight:
            if self._quiet is None or self._quiet.done():
                self._quiet = self.loop.create_future()
            await asyncio.shield(self._quiet)

    def abort(self) -> None:
        """Close all connections at once; what is in flight is ended with what is known of it."""
        self._closed = True
        for timer in (self._timer, self._ending):
            if timer is not None:
                timer.cancel()
        self.pool.abort()
        self._give_up_deferred()
        self.settled()

    def orphaned(self) -> None:
        """End what is in flight, with what is known of it, as the event loop was closed."""
        self._closed = True
        self.pool.orphaned()
        self._give_up_deferred()

    def _give_up_deferred(self) -> None:
        deferred, self._deferred = self._deferred, []
        for _, _, request in deferred:
            self._give_up(request)

    # ---- what the pool does -----------------------------------------------------------------

    @property
    def ready(self) -> int:
        """Return how many requests are in the active line."""
        return len(self._active)

    def recipients(self) -> Iterator[int]:
        """Return how many recipients each of them has, in order."""
        return (len(request.envelope.recipients) for request in self._active)

    def next(self, most: int | None) -> DeliveryRequest:
        """Take the first one out of the line; if it has more than `most` recipients, the others stay."""
        request = self._active.popleft()
        if most is not None and len(request.envelope.recipients) > most and not request.message.once:
            self._active.extendleft(reversed(request.split(most)))
        return request

    def turn_away(self, relay: RelayState, error: BaseException, until: float, begun: float) -> None:
        """End the requests that have waited since `until` or longer: there is no connection, and will not be soon.

        Args:
            relay: the one that cannot be reached.
            begun: the loop's time at which the pool began to look for a connection.
        """
        waiting, self._active = self._active, deque()
        for request in waiting:
            if request.since > until:
                self._active.append(request)
                continue
            message = request.message
            if message.began is None:
                message.began = max(request.since, begun)
            request.error = relay.no_connection(error)
            self.pool.finish(request)

    def close(self) -> None:
        """End all requests in the active line: nothing is sent any more."""
        waiting, self._active = self._active, deque()
        for request in waiting:
            request.error = SMTPStateError("the mailer was closed")
            self.pool.finish(request)

    def settled(self) -> None:
        """Tell those who wait that a batch was judged, and others are on their way."""
        self._on_settled()
        if self._quiet is not None and not self.in_flight and not self._quiet.done():
            self._quiet.set_result(None)

    # ---- a try has ended --------------------------------------------------------------------

    def ended(self, request: DeliveryRequest, connection: PooledConnection | None) -> None:
        """Judge a request whose try has ended, on a connection or in the line: tell what became of it, or try again."""
        message, outcome, error = request.message, request.outcome, request.error
        if error is not None:
            request.keep_doubt()
        request.connection = request.exchange = request.transaction = None
        if request.state is DONE:
            return  # the caller was told that the message's time was up
        if request.attempts > message.attempts:
            message.attempts = request.attempts
        relay = self.pool.relays[0] if connection is None else connection.relay
        if outcome is not None and error is None:
            message.took(outcome, relay.name)
            if outcome.refused:
                self._refused_for_some(request, outcome, relay)
        elif request.withdrawn is not None or not isinstance(error, Exception):
            request.give_up()
        elif self._try_again(request, error, connection, relay):
            return
        else:
            assert isinstance(request.error, Exception)
            message.failed_for(request.envelope.recipients, request.error)
        self._close(request)

    def _close(self, request: DeliveryRequest) -> None:
        """Close a request: its message's account has what became of it."""
        request.state = DONE
        message = request.message
        message.pending.remove(request)
        if not message.pending:
            self.in_flight -= 1
            message.arrived(message)

    def _give_up(self, request: DeliveryRequest) -> None:
        """End a request that is on no connection."""
        error = request.error
        if not isinstance(error, Exception):
            error = SMTPStateError("not begun: the mailer was closed, or the loop over send_all left")
        request.message.failed_for(request.envelope.recipients, error)
        self._close(request)

    def _refused_for_some(self, request: DeliveryRequest, outcome: Outcome, relay: RelayState) -> None:
        """Give the recipients whom the server did not take another transaction, if that makes sense."""
        message, refused = request.message, outcome.refused
        others = SMTPRecipientsRefused({who: reply for who, reply in refused.items() if not too_many_recipients(reply)})
        limit = limit_of(others, 0)
        self._heed_rate(limit, others, relay)
        if message.once or request.withdrawn or self._closed:
            message.refused.update(refused)
            return
        crowded = self._crowded_out(request, outcome, relay)
        later = {who: reply for who, reply in refused.items() if 400 <= reply.code <= 499 and who not in crowded}
        if later and not self._again_for(request, later, limit):
            later = {}
        message.refused.update({who: reply for who, reply in refused.items() if not (who in crowded or who in later)})

    def _crowded_out(self, request: DeliveryRequest, outcome: Outcome, relay: RelayState) -> set[str]:
        """Give the recipients behind the server's limit a transaction of their own (RFC 5321 §4.5.3.1.10).

        Returns:
            Those recipients.
        """
        crowded = {who: reply for who, reply in outcome.refused.items() if too_many_recipients(reply)}
        if crowded:
            recipients = request.envelope.recipients
            if set(recipients[-len(crowded) :]) == set(crowded):
                certain = all(map(says_too_many_recipients, crowded.values()))
                relay.crowded(len(recipients) - len(crowded), self.loop.time(), certain=certain)
            self._enqueue(DeliveryRequest(request.message, request.only(crowded), request.attempts))
        return set(crowded)

    def _again_for(self, request: DeliveryRequest, later: dict[str, Reply], limit: Limit | None) -> bool:
        """Try again for recipients who were refused for now, if that makes sense; return whether it is tried."""
        if self._retry is None:
            return False
        again = DeliveryRequest(request.message, request.only(later), request.attempts)
        again.error = error = known(SMTPRecipientsRefused(dict(later)), "refused")  # if that is the end of it
        if self._by_retry(again, error, limit):
            return True
        again.message.pending.remove(again)
        return False

    # ---- whether there is another try -------------------------------------------------------

    def _try_again(
        self, request: DeliveryRequest, error: Exception, connection: PooledConnection | None, relay: RelayState
    ) -> bool:
        """Try a request again, if that makes sense; return whether it is tried.

        There are three ways, in this order; :class:`~asmtp.Retry` documents them for callers:

        * silently, if the server closed the connection before it saw the message (`_is_unseen`): at once;
        * if the server has reached a limit that says nothing of the message (`_in_time`): at once, as soon as the
          limit allows it, for `Retry.within` seconds;
        * as Retry says: later, which counts as a try.
        """
        if connection is not None and not self._closed:
            request.limit = self._heed_limit(request, error, connection)
            if request.limit is None and self._is_unseen(request, error, connection):
                self._put_back(request)
                return True
        assert isinstance(request.error, Exception)
        error, limit = request.error, request.limit  # the error may have been replaced
        if limit is not None or any_throttling(replies_of(error)):
            self._heed_rate(limit, error, relay)
        elif isinstance(error, SMTPSenderRefused) and replies_of(error)[0].enhanced.startswith("4.3."):
            self.pool.distrust(relay, error)  # RFC 3463 §3.4: the system's status
        return self._by_retry(request, error, limit)

    def _by_retry(self, request: DeliveryRequest, error: Exception, limit: Limit | None) -> bool:
        """Try a request again, if `Retry` says so: at once if the server has reached a limit, else later."""
        retry, message = self._retry, request.message
        if retry is None or message.once or self._closed:
            return False
        if limit is not None and self._in_time(request, error):
            request.drop_refused(error)
            self._put_back(request)
            return True
        elapsed = 0.0 if message.began is None else self.loop.time() - message.began
        delay = retry.delay(request.attempts, elapsed, error, random.random())
        if delay is None:
            return False
        request.drop_refused(error)
        self._defer(request, delay)
        return True

    def _is_unseen(self, request: DeliveryRequest, error: Exception, connection: PooledConnection) -> bool:
        """Tell whether the server closed the connection, or was out of step, before it saw the message.

        A message that was not begun is tried again once.  One at which a connection has ended that had served others
        is tried again `CHANCES` times: there are messages that servers do not survive.  Those behind it are tried again
        each time.
        """
        session = connection.session
        if isinstance(error, NotBegun) or (connection.relay.overlap and not session.overlap):
            self.pool.alone(connection)
        if isinstance(error, NotBegun):
            request.not_begun += 1
            if request.not_begun < 2:
                return True
            request.error = known(SMTPResponseException(*error.reply), "not_sent")
            return False
        ended = isinstance(error, SMTPServerDisconnected) and error.state == "not_sent"
        if request.message.once or not (ended or is_closing(error)):
            return False
        if ended and connection.at_probe:
            return True  # the relay is not probed again
        if not connection.answered:
            return False
        if connection.suspect is None:
            connection.suspect = request
            if not connection.stale:
                request.unseen += 1
                self.pool.heed_end(connection, connection.answered)
        return connection.suspect is not request or request.unseen <= CHANCES

    def _heed_limit(self, request: DeliveryRequest, error: Exception, connection: PooledConnection) -> Limit | None:
        """Return the limit of the server's that a message met, or None; the pool is told of it."""
        limit = limit_of(error, connection.taken)
        if limit is Limit.CONNECTIONS:
            self.pool.crowded(connection, error)
        elif limit is Limit.MESSAGES:
            if not connection.retiring:
                self.pool.heed_end(connection, connection.taken, certain=True)
            connection.retire()  # and the pool closes it
        elif limit is Limit.SENDER:
            connection.retire()
            several = len(self.pool.relays) > 1
            if request.returned or (several and replies_of(error)[0].enhanced.startswith("4.3.")):
                return None  # another connection does not help, or another relay does
            request.spent = connection.taken
        return limit

    def _heed_rate(self, limit: Limit | None, error: Exception, relay: RelayState) -> None:
        """Send less to a server that says it is sent too much."""
        if limit is Limit.RATE or any_throttling(replies_of(error)):
            find = limit is Limit.RATE and self._retry is not None
            self.pool.slow_down(relay, error, find=find)

    # ---- the lines --------------------------------------------------------------------------

    def _enqueue(self, request: DeliveryRequest) -> None:
        """Put a request at the tail of the active line."""
        request.state = ACTIVE
        request.since = self.loop.time()
        self._active.append(request)

    def _put_back(self, request: DeliveryRequest) -> None:
        """Have a request go again at once, at the head of the active line: no try is counted."""
        self.retried += 1
        request.since = self.loop.time()
        self._again.append(request)

    def refill(self) -> None:
        """Put the requests of a batch that are tried again at once at the head of the active line."""
        if self._again:
            again, self._again = self._again, []
            for request in again:
                request.state = ACTIVE
            self._active.extendleft(reversed(again))

    def _defer(self, request: DeliveryRequest, delay: float) -> None:
        """Try a request again in `delay` seconds."""
        self.retried += 1
        request.state = DEFERRED
        heapq.heappush(self._deferred, (self.loop.time() + delay, next(self._counter), request))
        if self._deferred[0][2] is request:
            self._set_timer()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_at(self._deferred[0][0], self._due) if self._deferred else None

    def _due(self) -> None:
        """Put the requests whose time has come in the active line."""
        now = self.loop.time()
        while self._deferred and self._deferred[0][0] <= now:
            request = heapq.heappop(self._deferred)[2]
            request.attempts += 1
            self._enqueue(request)
        self._set_timer()
        self.pool.dispatch()

    def _taken_back(self, chosen: Callable[[DeliveryRequest], bool]) -> list[DeliveryRequest]:
        """Take the chosen requests out of the deferred line."""
        found = [entry[2] for entry in self._deferred if chosen(entry[2])]
        if found:
            self._deferred = [entry for entry in self._deferred if not chosen(entry[2])]
            heapq.heapify(self._deferred)
            self._set_timer()
        return found

    # ---- those that are tried again while a limit of the server's holds ---------------------

    def _in_time(self, request: DeliveryRequest, error: Exception) -> bool:
        """Tell whether a request that met a limit has time for another try; without `Retry.within` it has none.

        If the server does not take it in that time, it ends with `error`, the server's words.
        """
        began, within = request.message.began, None if self._retry is None else self._retry.within
        if within is None or began is None or began + within <= self.loop.time():
            return False
        request.returned += 1
        request.said = error
        request.until = began + within
        self._end_at(request.until)
        return True

    def _end_at(self, when: float) -> None:
        """Look at `when` whether there are requests whose time is over."""
        if when < math.inf and (self._ending is None or when < self._ending.when()):
            if self._ending is not None:
                self._ending.cancel()
            self._ending = self.loop.call_at(when, self._end_of_time)

    def _end_of_time(self) -> None:
        """End the requests that met a limit and were not taken in time, with the server's words."""
        self._ending = None
        now = self.loop.time()
        over = [request for request in self._active if request.until <= now]
        for request in over:
            request.error = request.said
        since = now - (0 if self._retry is None else self._retry.within or 0)
        if over and self.pool.last_taken < since:
            # The server took nothing: requests that waited as long behind those have had their time, too.
            for request in self._active:
                if request.until == math.inf and request.since <= since:
                    request.until = now
                    request.error = over[0].said_to_others()
        self.give_up(lambda request: request.until <= now)
        self._end_at(min((request.until for request in self._active), default=math.inf))
