"""Connections, and the messages that wait for one.

Messages wait in one line.  A connection is opened where that is worth its while, given messages as long as it has
room for them, left alone where it is silent, and replaced in time: see :func:`asmtp.mailer.schedule.assign`.  A
delivery request that has come to an end is handed back with its outcome or its error: its owner judges what becomes of
the message.

Of several relays one serves: the first that has a connection.  One that failed is tried by a single connection when it
has rested, while another serves.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from asmtp.errors import SMTPException, SMTPResponseException, SMTPServerDisconnected, SMTPStateError, SMTPTimeoutError
from asmtp.mailer.connection import DeliveryRequest, PooledConnection, PooledLMTPConnection
from asmtp.mailer.delivery import replies_of
from asmtp.mailer.limits import Limit, any_throttling, is_crowded, limit_of
from asmtp.mailer.policy import Backoff
from asmtp.mailer.rate import AdaptiveRateLimiter, RateLimiter, RateMeter
from asmtp.mailer.relay_state import RelayState
from asmtp.mailer.schedule import assign, choose_relay
from asmtp.protocol.verdict import NotBegun

__all__ = ["Pool"]

LATE = 1.01
"""A timer may be a little early: it is set for so many times as long."""

BATCH = 0.0005
"""Seconds that a message which is done waits for others, where its connection has enough to do meanwhile."""

CHANCES = 3
"""How often a connection may end at a message, which nobody is told."""


@dataclass(slots=True)
class _Opening:
    """A connection that is being opened."""

    relay: RelayState
    begun: float
    now: float = 0.0
    load: int = 0
    room: int = 0

    @property
    def left(self) -> float:
        elapsed = self.now - self.begun
        # What is overdue may take as long again.
        return self.relay.connect - elapsed if elapsed < self.relay.connect else elapsed

    @property
    def service(self) -> float:
        return self.relay.service

    def hangs(self, now: float) -> bool:
        """Whether it has taken so long that something else should be tried."""
        return now >= self.begun + self.relay.patience


class Pool:
    """Connections to one relay, or to several of which the first that can be reached is used.

    Args:
        relays: the relays, in the order of preference.
        most: how many connections may be open.
        idle: seconds after which an unused connection is closed, or None.
        max_messages, max_age: messages, and seconds, after which a connection is replaced, or None; about so many.
        limiter: how fast messages may go, or None.
        ended: is called with each request that has come to an end, and the relay.
        settled: is called when a batch of them has been.
    """

    def __init__(
        self,
        relays: Sequence[RelayState],
        most: int,
        *,
        idle: float | None,
        max_messages: int | None,
        max_age: float | None,
        limiter: RateLimiter | None,
        ended: Callable[[DeliveryRequest, RelayState], None],
        settled: Callable[[], None],
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.relays = relays
        self.most = most
        self.idle = idle
        self.max_messages = max_messages
        self.max_age = max_age
        self.limiter: RateLimiter | AdaptiveRateLimiter | None = limiter
        self.meter = RateMeter()
        self.connections: list[PooledConnection] = []
        self.waiting: deque[DeliveryRequest] = deque()
        self._ended = ended
        self._settled = settled
        self._opening: dict[asyncio.Task[None], _Opening] = {}
        self._retiring: set[asyncio.Task[None]] = set()
        self._over: list[DeliveryRequest] = []
        self._again: list[DeliveryRequest] = []
        self._gone: list[PooledConnection] = []
        self._sweeping: asyncio.TimerHandle | None = None
        self._sweeping_soon = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        self._short_since = math.inf  # the loop's time since which there was no room for more
        self._closed = False

    @property
    def opening(self) -> int:
        """How many connections are being opened."""
        return len(self._opening)

    @property
    def _total(self) -> int:
        """How many connections there are, open or being opened."""
        return len(self.connections) + len(self._opening)

    # ---- what the owner does ----------------------------------------------------------------

    def submit(self, request: DeliveryRequest, tries: int = 1) -> None:
        """Put a request in line.  `dispatch` is to be called then.

        Args:
            tries: 0 if it goes on with a try that was counted.
        """
        request.attempts += tries
        request.since = self.loop.time()
        self.waiting.append(request)

    def put_back(self, request: DeliveryRequest) -> None:
        """Have a request that was just handed back at the head of the line again: no try is counted."""
        request.since = self.loop.time()
        self._again.append(request)

    def slow_down(self, relay: RelayState, error: Exception, *, find: bool) -> None:
        """Send less: a relay says that it is sent too much.

        Args:
            find: find out how much it takes, where no rate was given.
        """
        now = self.loop.time()
        limiter = self.limiter
        if isinstance(limiter, RateLimiter):
            self.limiter = limiter.throttled(now)
        elif limiter is None:
            self.limiter = AdaptiveRateLimiter.of(self.meter.rate(now), now) if find else None
        elif len(self.relays) > 1 and limiter.blocked(self.meter.last):
            self.limiter = None  # another one may take what this one does not
            self.distrust(relay, error)
        else:
            self.limiter = limiter.throttled(now, self.meter.rate(now))

    def withdraw(self, request: DeliveryRequest, why: SMTPException) -> None:
        """Nobody wants it any more: it is stopped if it can be stopped, and handed back in any case."""
        request.withdrawn = why
        if request.over:
            return
        if request.connection is not None:
            request.connection.withdraw(request)
        elif request in self.waiting:
            self.waiting.remove(request)
            self._finish(request)

    def dispatch(self) -> None:
        """Give the messages that wait to connections, and open some if need be."""
        if self._closed:
            self._close_line()
        if not self.waiting:
            self._short_since = math.inf
            return
        now = self.loop.time()
        allowed = self._allowed(now)
        if not allowed:
            self._wake_for_line((), now, paced=True)
            return
        relay = self._choose(now)
        connections = [
            connection for connection in self.connections if connection.relay is relay and connection.serves(now)
        ]
        if len(self.relays) > 1:
            self._try_again(relay, now, served=bool(connections))
        if relay.lasting is not None and not (connections or self._opening or relay.backoff.expired(now)):
            self._turn_away(relay, relay.lasting, now, now)
            return
        trying, spare = self._spare(relay, now, served=bool(connections))
        candidates: list[Any] = [*connections, *trying]  # what is being opened has no room, and is not chosen
        chosen, opened = assign(candidates, allowed, spare, relay.connect, relay.service)
        for connection in chosen:
            request = self.waiting.popleft()
            most = connection.most_recipients(now)
            if most is not None and len(request.envelope.recipients) > most and not request.message.once:
                self._split(request, most)
            if self.limiter is not None:
                self.limiter = self.limiter.sent(now, len(request.envelope.recipients))
            connection.begin(request, now)
        least = 0
        # What can be seen of the load is what is in flight: where there was no room left for as long, there is more.
        if len(chosen) == allowed and any(connection.room for connection in connections):
            self._short_since = math.inf
        elif opened or self._opening or self._short_since == math.inf:
            self._short_since = now
        elif spare and now - self._short_since > 2 * relay.connect:
            least = 1
        for _ in range(max(opened, least)):
            self._open(relay, now)
        if self.waiting:
            self._wake_for_line(connections, now, paced=len(chosen) == allowed)

    def _wake_for_line(self, connections: Sequence[PooledConnection], now: float, *, paced: bool) -> None:
        """Look again at the line when it may be time, though nothing happens before."""
        if paced and self.limiter is not None:  # they wait for their time, not for room
            self._wake(now + self.limiter.wait(now))
        elif connections:
            self._wake(now + LATE * max(0.0, min(connection.silent_at() for connection in connections) - now))

    def _allowed(self, now: float) -> int:
        """How many messages may go by the rate."""
        if isinstance(self.limiter, AdaptiveRateLimiter) and self.limiter.expired(now):
            self.limiter = None
        limiter = self.limiter
        if limiter is None:
            return len(self.waiting)
        count = 0
        for request in self.waiting:
            if limiter.wait(now) > 0:
                break
            limiter = limiter.sent(now, len(request.envelope.recipients))
            count += 1
        return count

    # ---- which relay ------------------------------------------------------------------------

    def _choose(self, now: float) -> RelayState:
        """The relay that serves."""
        if len(self.relays) == 1:
            return self.relays[0]
        serving = {connection.relay for connection in self.connections if connection.serves(now)}
        hanging = {opening.relay for opening in self._opening.values() if opening.hangs(now)}
        return choose_relay(self.relays, serving, hanging, now)

    def _try_again(self, serving: RelayState, now: float, *, served: bool) -> None:
        """See whether a relay that is preferred to the one that serves is back, by one connection."""
        for task, opening in list(self._opening.items()):
            if served and opening.relay is not serving and opening.hangs(now):
                opening.relay.failed(now, SMTPTimeoutError("timed out: not connected"), random.random())
                task.cancel()
        for relay in self.relays[: self.relays.index(serving)]:
            trying = any(opening.relay is relay for opening in self._opening.values())
            if trying or not relay.backoff.expired(now):
                continue
            if self._total < max(2, self.most):
                self._open(relay, now)
            else:
                self._make_room(relay)

    def _make_room(self, relay: RelayState) -> None:
        """All connections are to other relays than the one that is preferred: one of them has to go."""
        others = [connection for connection in self.connections if connection.relay is not relay]
        if others and not any(connection.retiring for connection in others):
            self._retire(min(others, key=lambda connection: connection.load))

    def _spare(self, relay: RelayState, now: float, *, served: bool) -> tuple[list[_Opening], int]:
        """Its connections that are being opened; how many more may be."""
        trying = [opening for opening in self._opening.values() if opening.relay is relay]
        for opening in trying:
            opening.now = now
        here = sum(connection.relay is relay for connection in self.connections) + len(trying)
        # One more than allowed, where that is one: it is not given up for a relay that may not be back, or is left for.
        limit = self.most if here else max(2, self.most)
        spare = max(0, min(limit - self._total, relay.most_connections(self.most, now) - here))
        if served:
            return trying, spare
        # One finds out whether the relay can be had (several with a wrong password, and the account is locked), and
        # another if that one hangs.
        if any(not opening.hangs(now) for opening in trying):
            return trying, 0
        due = relay.next_try(alone=not any(self._may_be_had(other, now) for other in self.relays))
        if due > now:
            self._wake(due)
            return trying, 0
        return trying, min(spare, 1)

    def _may_be_had(self, relay: RelayState, now: float) -> bool:
        """Whether it need not rest, as far as is known."""
        return relay.backoff.expired(now) and not any(
            opening.relay is relay and opening.hangs(now) for opening in self._opening.values()
        )

    def distrust(self, relay: RelayState, error: Exception) -> None:
        """It takes connections, but no messages: another one, if there is any, should serve for a while."""
        if len(self.relays) > 1:
            relay.failed(self.loop.time(), error, random.random())
            for connection in self.connections:
                if connection.relay is relay and not connection.retiring:
                    self._retire(connection)

    # ---- the line ---------------------------------------------------------------------------

    def _split(self, request: DeliveryRequest, most: int) -> None:
        """More recipients than the server takes in a transaction (RFC 9422 §3.2): the others get one of their own."""
        envelope = request.envelope
        count = len(envelope.recipients)
        request.envelope = envelope.only(range(most))
        others = [
            DeliveryRequest(request.message, envelope.only(range(at, min(at + most, count))), request.attempts)
            for at in range(most, count, most)
        ]
        for other in others:
            other.since = request.since
        self.waiting.extendleft(reversed(others))

    # ---- connections ------------------------------------------------------------------------

    def _open(self, relay: RelayState, now: float) -> None:
        kind = PooledLMTPConnection if relay.config.lmtp else PooledConnection
        connection = kind(relay, self._finish, self._lost, self._care)
        if self.max_messages is not None:
            connection.limit = max(1, round(self.max_messages * random.uniform(0.9, 1)))
        task = self.loop.create_task(self._bring_up(connection))
        self._opening[task] = _Opening(relay, now)
        task.add_done_callback(self._opened)
        self._wake(now + LATE * relay.patience)

    async def _bring_up(self, connection: PooledConnection) -> None:
        await asyncio.sleep(0)  # an eager task, which could be over before it is known of, begins here
        relay = connection.relay
        begun = self.loop.time()
        try:
            await connection.open()
            if not connection.is_connected:  # it was closed in the same breath
                raise connection.session.error or SMTPServerDisconnected("Connection unexpectedly closed")
        except BaseException as error:
            released = connection.close()
            if _ends_tasks(error):
                raise
            await released
            self._not_opened(self._forget_opening(), error)
            return
        now = self.loop.time()
        relay.lasting = None
        relay.connect += (now - begun - relay.connect) / 2
        connection.idle_since = now
        if self.max_age is not None:
            connection.until = now + self.max_age * random.uniform(0.9, 1)
            self._wake(connection.until)
        self._forget_opening()
        self.connections.append(connection)
        serving = self._choose(now)
        for other in self.connections:  # that helped out, or came too late for that
            if other.relay is not serving and not other.retiring:
                self._retire(other)
        self.dispatch()
        self._care(connection)

    def _forget_opening(self) -> _Opening:
        task = asyncio.current_task()
        assert task is not None
        return self._opening.pop(task)

    def _opened(self, task: asyncio.Task[None]) -> None:
        self._opening.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error  # a mistake of ours: for the loop's exception handler

    def _not_opened(self, opening: _Opening, error: BaseException) -> None:
        """A connection could not be opened."""
        now = self.loop.time()
        relay = opening.relay
        here = sum(connection.relay is relay and not connection.retiring for connection in self.connections)
        if here:
            # There are others: so many it takes.
            relay.shrink(here, now)
        else:
            relay.failed(now, error, random.random())
        if not (here or any(connection.usable for connection in self.connections)):
            # Each relay is tried for each message, but for those of which it is known that there is no use in it.
            tried = [other.failed_at for other in self.relays if other.lasting is None or other.backoff.expired(now)]
            until = min([*tried, self._waited_for(opening, now)])
            self._turn_away(relay, error, until, opening.begun)
        self.dispatch()

    def _waited_for(self, failed: _Opening, now: float) -> float:
        """Up to when a message must have been put in line, to be turned away as this connection was not opened.

        Another one may be open in time, but where this one has hung, those that have waited for it from its beginning
        have had the time that there is for each phase.  (There is always another: one is begun where one hangs.)
        """
        if not self._opening:
            return now
        if not failed.hangs(now):
            return -math.inf
        return now if all(other.hangs(now) for other in self._opening.values()) else failed.begun

    def _turn_away(self, relay: RelayState, error: BaseException, until: float, begun: float) -> None:
        """There is no connection for those that wait since `until` or longer, and will not be soon.

        Args:
            begun: when it was begun to look for one.
        """
        waiting, self.waiting = self.waiting, deque()
        for request in waiting:
            if request.since > until:
                self.waiting.append(request)
            else:
                if request.message.began is None:
                    request.message.began = max(request.since, begun)
                request.error = relay.no_connection(error)
                self._finish(request)

    def _lost(self, connection: PooledConnection) -> None:
        """A connection is gone."""
        if connection in self.connections:
            self.connections.remove(connection)
            self._gone.append(connection)
        if not self._closed:
            self._sweep_soon()

    def _bury(self, connection: PooledConnection, now: float) -> None:
        """A connection was lost, and it is known how much it answered."""
        relay, why = connection.relay, connection.session.error
        if why is None or connection.retiring:
            return
        others = [other for other in self.connections if other.relay is relay]
        if is_crowded(str(why)):
            self._crowded(connection, why, now)
            return
        served = connection.answered or any(other.answered for other in others)
        if connection.begun and not (served or connection.cut or connection.at_probe):
            relay.failed(now, why, random.random())  # to greet is not enough

    def _crowded(self, connection: PooledConnection, why: Exception, now: float) -> None:
        """Its relay has too many connections: this one is used no more, and so many as are left are enough."""
        connection.retiring = True  # and closed by `_care`
        left = sum(other.relay is connection.relay and not other.retiring for other in self.connections)
        if left:
            connection.relay.shrink(left, now)
        else:
            connection.relay.failed(now, why, random.random())

    def _retire(self, connection: PooledConnection) -> None:
        """Give it no more messages, and close it when it has none left."""
        connection.retiring = True
        if connection.load == connection.tidying and not self._closed:
            task = self.loop.create_task(connection.retire())
            self._retiring.add(task)
            task.add_done_callback(self._retiring.discard)

    def _care(self, connection: PooledConnection) -> None:
        """See to a connection that has nothing to do, but for a RSET of its own, the end of which nobody is told."""
        if connection.load > connection.tidying or connection not in self.connections:
            return
        connection.idle_since = now = self.loop.time()
        if connection.retiring or (connection.limit is not None and connection.begun >= connection.limit):
            self._retire(connection)
            return
        connection.tidy()
        due = min(
            math.inf if self.idle is None else now + self.idle,
            math.inf if connection.until is None else connection.until,
        )
        if due < math.inf:
            self._wake(due)

    def _wake(self, when: float) -> None:
        """Look again at `when`."""
        if self._closed or self._timer_at <= when:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = when
        self._timer = self.loop.call_at(when, self._look)

    def _look(self) -> None:
        """It is time for something."""
        self._timer = None
        self._timer_at = math.inf
        now = self.loop.time()
        for connection in list(self.connections):
            if connection.retiring:
                continue
            idle = (
                math.inf
                if self.idle is None or connection.load != connection.tidying
                else connection.idle_since + self.idle
            )
            due = min(idle, math.inf if connection.until is None else connection.until)
            if now >= due:
                self._retire(connection)
            elif due < math.inf:
                self._wake(due)
        self.dispatch()

    # ---- messages that have come to an end --------------------------------------------------

    def _finish(self, request: DeliveryRequest) -> None:
        """A request is done with; it is looked at together with others, behind what is being read."""
        request.over = True
        self._over.append(request)
        if request.connection is None or not request.connection.busy:
            self._sweep_soon()
        elif self._sweeping is None:
            self._sweeping = self.loop.call_later(BATCH, self._sweep)

    def _sweep_soon(self) -> None:
        if not self._sweeping_soon:
            self._sweeping_soon = True
            self.loop.call_soon(self._sweep)

    def _sweep(self) -> None:
        """Hand back what is done with, and let others go."""
        if self._sweeping is not None:
            self._sweeping.cancel()
            self._sweeping = None
        self._sweeping_soon = False
        over, self._over = self._over, []
        now = self.loop.time()
        answered: dict[PooledConnection, int] = {}
        taken = 0
        for request in over:
            if (connection := request.connection) is not None:
                answered[connection] = answered.get(connection, 0) + _is_answered(request.error)
                taken += request.error is None
        if taken:
            self.meter.took(now, taken)
            if isinstance(self.limiter, AdaptiveRateLimiter):
                self.limiter = self.limiter.took(now)
        for served, count in answered.items():
            if count:
                served.measure(now, count)
        gone, self._gone = self._gone, []
        for lost in gone:
            self._bury(lost, now)
        for request in over:
            connection, error = request.connection, request.error
            if error is None and connection is not None:
                connection.taken += 1
                if request.spent or connection.relay.backoff.failures:
                    self._heed_taken(request, connection.relay, now)
            if error is not None:
                request.keep_doubt()
            request.connection = request.exchange = request.transaction = None
            request.over = False
            if connection is None:  # it did not come to any
                self._ended(request, self.relays[0])
            elif (
                error is not None
                and not (request.withdrawn or self._closed)
                and self._stays(request, connection, error, now)
            ):
                self.put_back(request)
            else:
                self._ended(request, connection.relay)
        again, self._again = self._again, []
        self.waiting.extendleft(reversed(again))
        self.dispatch()
        for served in answered:
            self._care(served)
        self._settled()

    def _heed_taken(self, request: DeliveryRequest, relay: RelayState, now: float) -> None:
        """A message was taken, which says something of its relay, too."""
        relay.backoff = Backoff()
        if request.spent and len(self.relays) == 1:  # it was the connection, not the sender
            relay.ended(request.spent, now)
            request.spent = 0

    def _stays(self, request: DeliveryRequest, connection: PooledConnection, error: BaseException, now: float) -> bool:
        """Whether a message goes back into the line without its owner's knowing; else it is told why it met a limit."""
        request.limit = limit = limit_of(error, connection.taken)
        if limit is None or not isinstance(error, Exception):
            return self._silently(request, connection, error)
        if limit is Limit.CONNECTIONS:
            self._crowded(connection, error, now)
        elif limit in (Limit.MESSAGES, Limit.SENDER):
            if limit is Limit.MESSAGES and not connection.retiring:
                self._heed_end(connection, connection.taken, certain=True)
            elif limit is Limit.SENDER:
                if request.returned or (len(self.relays) > 1 and replies_of(error)[0].enhanced.startswith("4.3.")):
                    request.limit = None  # it is not the connection, or all of the relay
                else:
                    request.spent = connection.taken
            connection.retiring = True  # and closed by `_care`
        return False

    def _silently(self, request: DeliveryRequest, connection: PooledConnection, error: BaseException) -> bool:
        """Whether a message goes back into the line without anyone's knowing."""
        if isinstance(error, NotBegun) or (connection.relay.overlap and not connection.session.overlap):
            # A server that does not take a RSET behind an unanswered message (Haraka: 503), or loses it (Courier).
            for other in {connection, *self.connections}:
                if other.relay is connection.relay:
                    other.alone()
        if isinstance(error, NotBegun):
            request.not_begun += 1
            if request.not_begun < 2:
                return True
            request.error = SMTPResponseException(*error.reply)
            request.error.state = "not_sent"
            return False
        ended = isinstance(error, SMTPServerDisconnected) and error.state == "not_sent"
        if connection.at_probe and ended and not request.message.once:
            return True  # it was not begun, and the relay is not probed again
        if not connection.answered or request.message.once or not (ended or _is_closing(error)):
            return False
        # A connection that has served others came to its end: of this message that says nothing, unless it is the one
        # that it ended at.  There are messages that servers do not survive, so that counts when it happens again.
        if connection.suspect is None:
            connection.suspect = request
            if not connection.stale:
                request.silently += 1
                self._heed_end(connection, connection.answered)
        return connection.suspect is not request or request.silently <= CHANCES

    def _heed_end(self, connection: PooledConnection, messages: int, *, certain: bool = False) -> None:
        """Some servers take so many messages on a connection, and end it, or say so."""
        relay, now = connection.relay, self.loop.time()
        relay.ended(messages, now, certain=certain)
        for other in self.connections:
            if other.relay is relay:
                other.at_most(relay.most_messages(now))

    # ---- the end ----------------------------------------------------------------------------

    async def aclose(self) -> None:
        """Say QUIT on every connection, and close it.  Nothing should be under way any more."""
        for connection in self.connections:
            if not connection.retiring:
                self._retire(connection)
        try:
            for task in [*self._retiring, *self._opening]:
                if task in self._opening:
                    task.cancel()
                await asyncio.wait([task])
        finally:
            self.abort()

    async def wait_closed(self) -> None:
        """Until nothing of ours goes on any more."""
        tasks = {*self._opening, *self._retiring}
        if tasks:
            await asyncio.wait(tasks)

    def abort(self) -> None:
        """Close everything at once; what is under way is handed back with what is known of it."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for task in [*self._opening, *self._retiring]:
            task.cancel()
        for connection in list(self.connections):
            connection.close()
        self._close_line()

    def orphaned(self) -> None:
        """The loop was closed, and the connections with it: what is under way is handed back at once."""
        self._closed = self._sweeping_soon = True  # nothing can be put off any more
        for connection in self.connections:
            connection.orphaned()
        self._close_line()
        self._sweep()

    def _close_line(self) -> None:
        """Nothing goes any more."""
        waiting, self.waiting = self.waiting, deque()
        for request in waiting:
            request.error = SMTPStateError("the mailer was closed")
            request.error.state = "not_sent"
            self._finish(request)


def _ends_tasks(error: BaseException) -> bool:
    """Whether it is not to be told to those who wait: the program ends, or the pool has cancelled the task.

    A CancelledError out of a function of the caller's (a token's refresh that was shared, and cancelled) is neither.
    """
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        return task is None or task.cancelling() > 0
    return isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit)


def _is_answered(error: BaseException | None) -> bool:
    """Whether a server has given its answer to a message; 421 is none, but the end of the connection."""
    if error is None:
        return True
    return getattr(error, "state", None) == "refused" and not _is_closing(error)


def _is_closing(error: BaseException) -> bool:
    """Whether the server said 421: it closes, whatever it was asked (RFC 5321 §3.8).  Not, that it is sent too much."""
    replies = replies_of(error)
    return any(reply.code == 421 for reply in replies) and not any_throttling(replies)
