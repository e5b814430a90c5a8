"""The connections of a mailer.

They are opened as the load asks, given messages while they have room, left alone while they are silent, and replaced in
time: :func:`asmtp.mailer.schedule.decide` decides that, and :meth:`Pool.dispatch` carries it out.  The queue has the
messages that wait, and judges those whose try has ended: see :class:`asmtp.mailer.queue.DeliveryQueue`.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

from asmtp.errors import SMTPServerDisconnected, SMTPTimeoutError
from asmtp.mailer.message import DeliveryRequest, RequestState
from asmtp.mailer.policy import Backoff, is_answered, is_crowded
from asmtp.mailer.rate import AdaptiveRateLimiter, RateLimiter, RateMeter
from asmtp.mailer.schedule import LATE, Decision, Opening, View, decide, serving_relay

if TYPE_CHECKING:
    from asmtp.mailer.connection import PooledConnection
    from asmtp.mailer.relay_state import RelayState

__all__ = ["Pool", "Queue"]

BATCH = 0.0005
"""Seconds that a message which is done waits for others, if its connection has enough to do meanwhile."""

ENDED = RequestState.ENDED
DONE = RequestState.DONE


class Queue(Protocol):
    """The part of the :class:`~asmtp.mailer.queue.DeliveryQueue` that a pool uses."""

    @property
    def ready(self) -> int:
        """Return how many requests wait to be sent."""

    def recipients(self) -> Iterable[int]:
        """Return how many recipients each of them has, in order."""

    def next(self, most: int | None) -> DeliveryRequest:
        """Take the first one out of the line; if it has more than `most` recipients, the others stay."""

    def ended(self, request: DeliveryRequest, connection: PooledConnection | None) -> None:
        """Judge a request whose try has ended, on a connection or in the line."""

    def refill(self) -> None:
        """Put those of a batch that are tried again at once at the head of the line."""

    def settled(self) -> None:
        """Tell those who wait that a batch was judged."""

    def turn_away(self, relay: RelayState, error: BaseException, until: float, begun: float) -> None:
        """End the requests that have waited since `until` or longer, as the relay cannot be reached."""

    def close(self) -> None:
        """End all that wait: nothing is sent any more."""


class Pool:
    """Connections to one relay, or to several of which the first that can be reached is used.

    Args:
        relays: in the order of preference.
        most: how many connections may be open.
        connect: makes a connection, which is not open yet; it takes the arguments of
            :class:`~asmtp.mailer.connection.PooledConnection`.
        idle: seconds after which an unused connection is closed, or None.
        max_messages, max_age: about how many messages, and seconds, after which a connection is replaced, or None.
        limiter: how fast messages may go, or None.

    Attributes:
        queue: the messages to be sent.  The queue sets it, once.
        connections: those that are open.
    """

    queue: Queue

    def __init__(
        self,
        relays: Sequence[RelayState],
        most: int,
        connect: Callable[..., PooledConnection],
        *,
        idle: float | None = None,
        max_messages: int | None = None,
        max_age: float | None = None,
        limiter: RateLimiter | None = None,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.relays = relays
        self.connections: list[PooledConnection] = []
        self._most = most
        self._connect = connect
        self._idle = idle
        self._max_messages = max_messages
        self._max_age = max_age
        self._limiter: RateLimiter | AdaptiveRateLimiter | None = limiter
        self._meter = RateMeter()
        self._opening: dict[asyncio.Task[None], Opening] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        self._ended: list[tuple[DeliveryRequest, PooledConnection | None]] = []
        self._lost: list[PooledConnection] = []
        self._sweeping: asyncio.TimerHandle | None = None
        self._sweeping_soon = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        self._short_since = math.inf
        self._closed = False

    @property
    def opening(self) -> int:
        """Return how many connections are being opened."""
        return len(self._opening)

    @property
    def last_taken(self) -> float:
        """Return the loop's time at which the last message was taken."""
        return self._meter.last

    # ---- what to do next --------------------------------------------------------------------

    def dispatch(self) -> None:
        """Give the messages that wait to connections, and open or close some if need be."""
        queue = self.queue
        if self._closed:
            queue.close()
        waiting = queue.ready
        if not waiting:
            self._short_since = math.inf
            return
        now = self.loop.time()
        if isinstance(self._limiter, AdaptiveRateLimiter) and self._limiter.expired(now):
            self._limiter = None
        opening = list(self._opening.values())
        view = View(
            self.relays, self.connections, opening, self._most, waiting, queue.recipients(), self._limiter,
            self._short_since,
        )  # fmt: skip
        self._carry_out(decide(view, now), now)

    def _carry_out(self, decision: Decision[PooledConnection], now: float) -> None:
        queue = self.queue
        self._short_since = decision.short_since
        for hanging in decision.abandon:
            self._abandon(hanging, now)
        for connection in decision.retire:
            self._retire(connection)
        if (relay := decision.turn_away) is not None and relay.lasting is not None:
            queue.turn_away(relay, relay.lasting, now, now)
        for connection in decision.assign:
            request = queue.next(connection.most_recipients(now))
            if self._limiter is not None:
                self._limiter = self._limiter.sent(now, len(request.envelope.recipients))
            connection.begin(request, now)
        for relay in decision.open:
            self._open(relay, now)
        if queue.ready:
            if decision.paced and self._limiter is not None:
                self._wake(now + self._limiter.wait(now))
            self._wake(decision.wake_at)

    def _wake(self, when: float) -> None:
        """Look again at `when`."""
        if self._closed or self._timer_at <= when:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = when
        self._timer = self.loop.call_at(when, self._look)

    def _look(self) -> None:
        """Retire the connections whose time has come, and see what to do next."""
        self._timer = None
        self._timer_at = math.inf
        now = self.loop.time()
        for connection in list(self.connections):
            if connection.retiring:
                continue
            due = self._due(connection)
            if now >= due:
                self._retire(connection)
            else:
                self._wake(due)
        self.dispatch()

    def _due(self, connection: PooledConnection) -> float:
        """Return the loop's time at which a connection is closed, as it is idle or old."""
        due = math.inf if connection.until is None else connection.until
        return due if self._idle is None or connection.load else min(due, connection.idle_since + self._idle)

    # ---- connections ------------------------------------------------------------------------

    def _open(self, relay: RelayState, now: float) -> None:
        connection = self._connect(relay, self.finish, self._on_lost, self._care)
        if self._max_messages is not None:
            connection.limit = max(1, round(self._max_messages * random.uniform(0.9, 1)))
        task = self.loop.create_task(self._bring_up(connection))
        self._opening[task] = Opening(relay, now)
        task.add_done_callback(self._opened)
        self._wake(now + LATE * relay.patience)

    async def _bring_up(self, connection: PooledConnection) -> None:
        await asyncio.sleep(0)  # an eager task begins here: it could be over before the pool knows of it
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
        if self._max_age is not None:
            connection.until = now + self._max_age * random.uniform(0.9, 1)
            self._wake(connection.until)
        self._forget_opening()
        self.connections.append(connection)
        serving = serving_relay(self.relays, self.connections, self._opening.values(), now)
        for other in self.connections:  # those to a relay that helped out, or was to
            if other.relay is not serving and not other.retiring:
                self._retire(other)
        self.dispatch()
        self._care(connection)

    def _forget_opening(self) -> Opening:
        task = asyncio.current_task()
        assert task is not None
        return self._opening.pop(task)

    def _opened(self, task: asyncio.Task[None]) -> None:
        self._opening.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            raise error  # a mistake of ours: for the loop's exception handler

    def _abandon(self, hanging: Opening, now: float) -> None:
        """Do not wait for a connection any more: its relay counts as failed."""
        hanging.relay.failed(now, SMTPTimeoutError("timed out: not connected"), random.random())
        for task, opening in self._opening.items():
            if opening is hanging:
                task.cancel()

    def _not_opened(self, opening: Opening, error: BaseException) -> None:
        """Note that a connection could not be opened, and turn away the messages that will get no other."""
        now = self.loop.time()
        relay = opening.relay
        here = sum(each.relay is relay and not each.retiring for each in self.connections)
        if here:
            # The relay takes as many as there are.
            relay.shrink(here, now)
        else:
            relay.failed(now, error, random.random())
        if not (here or any(each.usable for each in self.connections)):
            # Each relay is tried for each message, unless it is known that it is of no use.
            tried = [each.failed_at for each in self.relays if each.lasting is None or each.backoff.expired(now)]
            until = min([*tried, self._waited_for(opening, now)])
            self.queue.turn_away(relay, error, until, opening.begun)
        self.dispatch()

    def _waited_for(self, failed: Opening, now: float) -> float:
        """Return the loop's time: messages put in line up to then are turned away, as a connection was not opened.

        Another connection may be open in time.  But if this one has hung, the messages that have waited for it from its
        beginning have had the time that there is for each phase.  (There is always another: one is begun if one hangs.)
        """
        if not self._opening:
            return now
        if not failed.hangs(now):
            return -math.inf
        return now if all(other.hangs(now) for other in self._opening.values()) else failed.begun

    def _on_lost(self, connection: PooledConnection) -> None:
        """Keep a lost connection until its last messages are judged: see `_bury`."""
        if connection in self.connections:
            self.connections.remove(connection)
            self._lost.append(connection)
        if not self._closed:
            self._sweep_soon()

    def _bury(self, connection: PooledConnection, now: float) -> None:
        """Learn from the end of a connection."""
        relay, why = connection.relay, connection.session.error
        if why is None or connection.retiring:
            return
        if is_crowded(str(why)):
            self.crowded(connection, why)
            return
        others = [other for other in self.connections if other.relay is relay]
        served = connection.answered or any(other.answered for other in others)
        if connection.begun and not (served or connection.withdrew or connection.at_probe):
            relay.failed(now, why, random.random())  # to greet is not enough

    def _retire(self, connection: PooledConnection) -> None:
        """Give it no more messages, and close it when it has none left."""
        connection.retire()
        if not connection.load and not self._closed:
            task = self.loop.create_task(connection.leave())
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)

    def _care(self, connection: PooledConnection) -> None:
        """Tidy, retire or time a connection that has nothing to do (except a RSET of our own)."""
        if connection.load or connection not in self.connections:
            return
        connection.idle_since = self.loop.time()
        if connection.retiring or connection.spent:
            self._retire(connection)
            return
        connection.tidy()
        due = self._due(connection)
        if due < math.inf:
            self._wake(due)

    # ---- what servers say of themselves -----------------------------------------------------

    def slow_down(self, relay: RelayState, error: Exception, *, find: bool) -> None:
        """Send less: a relay says that it is sent too much.

        Args:
            find: find out how much it takes, if no rate was given.
        """
        now = self.loop.time()
        limiter = self._limiter
        if isinstance(limiter, RateLimiter):
            self._limiter = limiter.throttled(now)
        elif limiter is None:
            self._limiter = AdaptiveRateLimiter.of(self._meter.rate(now), now) if find else None
        elif len(self.relays) > 1 and limiter.blocked(self._meter.last):
            self._limiter = None  # another one may take what this one does not
            self.distrust(relay, error)
        else:
            self._limiter = limiter.throttled(now, self._meter.rate(now))

    def distrust(self, relay: RelayState, error: Exception) -> None:
        """Have another relay serve for a while, if there is one, as this one takes connections, but no messages."""
        if len(self.relays) > 1:
            relay.failed(self.loop.time(), error, random.random())
            for connection in self.connections:
                if connection.relay is relay and not connection.retiring:
                    self._retire(connection)

    def crowded(self, connection: PooledConnection, why: Exception) -> None:
        """Use a connection no more, as its relay has too many, and open no more than are left."""
        connection.retire()  # and `_care` closes it
        now, relay = self.loop.time(), connection.relay
        left = sum(other.relay is relay and not other.retiring for other in self.connections)
        if left:
            relay.shrink(left, now)
        else:
            relay.failed(now, why, random.random())

    def heed_end(self, connection: PooledConnection, messages: int, *, certain: bool = False) -> None:
        """Note that a relay has ended a connection after so many messages, or says that it takes no more."""
        relay, now = connection.relay, self.loop.time()
        relay.ended(messages, now, certain=certain)
        for other in self.connections:
            if other.relay is relay:
                other.at_most(relay.most_messages(now))

    def alone(self, connection: PooledConnection) -> None:
        """Send a relay one message at a time: it refuses a RSET behind an unanswered one, or loses it (Courier)."""
        for other in {connection, *self.connections}:
            if other.relay is connection.relay:
                other.alone()

    # ---- tries that have ended --------------------------------------------------------------

    def finish(self, request: DeliveryRequest, connection: PooledConnection | None = None) -> None:
        """Have a try judged that has ended, together with others, behind what is being read."""
        if request.state is not DONE:
            request.state = ENDED
        self._ended.append((request, connection))
        if connection is None or not connection.busy:
            self._sweep_soon()
        elif self._sweeping is None:
            self._sweeping = self.loop.call_later(BATCH, self._sweep)

    def _sweep_soon(self) -> None:
        if not self._sweeping_soon:
            self._sweeping_soon = True
            self.loop.call_soon(self._sweep)

    def _sweep(self) -> None:
        """Have the tries judged that have ended, and let others go."""
        if self._sweeping is not None:
            self._sweeping.cancel()
            self._sweeping = None
        self._sweeping_soon = False
        batch, self._ended = self._ended, []
        now = self.loop.time()
        served = self._measure(batch, now)
        lost, self._lost = self._lost, []
        for gone in lost:
            self._bury(gone, now)
        ended = self.queue.ended
        for request, connection in batch:
            if connection is not None and request.error is None:
                connection.taken += 1
                if request.spent or connection.relay.backoff.failures:
                    self._heed_taken(request, connection.relay, now)
            ended(request, connection)
        self.queue.refill()
        self.dispatch()
        for other in served:
            self._care(other)
        self.queue.settled()

    def _measure(
        self, batch: Sequence[tuple[DeliveryRequest, PooledConnection | None]], now: float
    ) -> Sequence[PooledConnection]:
        """Measure how fast messages are answered, and return the connections that they were on."""
        answered: dict[PooledConnection, int] = {}
        taken = 0
        for request, connection in batch:
            if connection is not None:
                error = request.error
                answered[connection] = answered.get(connection, 0) + (error is None or is_answered(error))
                taken += error is None
        if taken:
            self._meter.took(now, taken)
            if isinstance(self._limiter, AdaptiveRateLimiter):
                self._limiter = self._limiter.took(now)
        for served, count in answered.items():
            if count:
                served.measure(now, count)
        return list(answered)

    def _heed_taken(self, request: DeliveryRequest, relay: RelayState, now: float) -> None:
        """Note that a relay takes messages, as it took one that it had refused, or that came after failures."""
        relay.backoff = Backoff()
        if request.spent and len(self.relays) == 1:  # it was the connection, not the sender
            relay.ended(request.spent, now)
            request.spent = 0

    # ---- the end ----------------------------------------------------------------------------

    async def aclose(self) -> None:
        """Send QUIT on every connection, and close it.  Nothing should be under way any more."""
        for connection in self.connections:
            if not connection.retiring:
                self._retire(connection)
        try:
            for task in [*self._leaving, *self._opening]:
                if task in self._opening:
                    task.cancel()
                await asyncio.wait([task])
        finally:
            self.abort()

    async def wait_closed(self) -> None:
        """Wait until no task of the pool is left."""
        tasks = {*self._opening, *self._leaving}
        if tasks:
            await asyncio.wait(tasks)

    def abort(self) -> None:
        """Close everything at once; what is under way is handed back with what is known of it."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for task in [*self._opening, *self._leaving]:
            task.cancel()
        for connection in list(self.connections):
            connection.close()
        self.queue.close()

    def orphaned(self) -> None:
        """End what is under way at once: the event loop was closed, and the connections with it."""
        self._closed = self._sweeping_soon = True  # nothing can be put off any more
        for connection in self.connections:
            connection.orphaned()
        self.queue.close()
        self._sweep()


def _ends_tasks(error: BaseException) -> bool:
    """Tell whether an error ends the task, not the messages that wait: the program ends, or the pool has cancelled it.

    A CancelledError out of a function of the caller's (a token's refresh that was shared, and cancelled) does not.
    """
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        return task is None or task.cancelling() > 0
    return isinstance(error, KeyboardInterrupt | SystemExit | GeneratorExit)
