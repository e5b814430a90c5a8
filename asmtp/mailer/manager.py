"""The machinery of a mailer: the queue of the present event loop, the bulk sends, and the counts over all of them."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from asmtp.errors import SMTPStateError
from asmtp.mailer.bulk import BulkSend
from asmtp.mailer.connection import make_connection
from asmtp.mailer.pool import Pool
from asmtp.mailer.queue import DeliveryQueue
from asmtp.mailer.rate import Rate, RateLimiter
from asmtp.mailer.relay_state import Kept, RelayState

if TYPE_CHECKING:
    from asmtp.client.relay import Relay
    from asmtp.errors import DeliveryState
    from asmtp.mailer.delivery import Delivery
    from asmtp.mailer.message import QueuedMessage
    from asmtp.mailer.policy import Retry

__all__ = ["QueueManager", "Settings", "Statistics"]

logger = logging.getLogger("asmtp")

OCTETS = 1 << 20
"""Octets of content that `send_all` takes ahead for each connection."""

UNCLAIMED = 10_000
"""Deliveries that are kept for `drain`."""


class Statistics(NamedTuple):
    """Counts of what a mailer is doing, and has done.

    Attributes:
        open, opening: connections.
        waiting: messages that are on no connection now.
        in_flight: messages of which the outcome is not known, the waiting ones included.
        sent, refused, not_sent, in_doubt: messages so far.
        retried: how many times one was sent again, the silent times included: see :class:`~asmtp.Retry`.
    """

    open: int
    opening: int
    waiting: int
    in_flight: int
    sent: int
    refused: int
    not_sent: int
    in_doubt: int
    retried: int


@dataclass(frozen=True, slots=True)
class Settings:
    """The arguments of :class:`~asmtp.AsyncMailer`, checked."""

    relays: Sequence[Relay]
    connections: int
    window: int
    rate: Rate | None
    retry: Retry | None
    idle: float | None
    max_messages: int | None
    max_age: float | None
    close_timeout: float | None


class QueueManager:
    """Keeps the queue of the event loop in which a mailer is used, and what outlives it.

    Attributes:
        closing: whether the mailer takes no more messages.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.closing = False
        self._queue: DeliveryQueue | None = None  # that of the event loop in which the mailer is used; None before
        self._kept = [Kept() for _ in settings.relays]
        self._bulk_sends: set[BulkSend] = set()
        self._unclaimed: deque[Delivery[Any]] = deque(maxlen=UNCLAIMED)
        self._counts: dict[DeliveryState, int] = {"sent": 0, "refused": 0, "not_sent": 0, "in_doubt": 0}
        self._retried = 0  # in event loops that were closed

    @property
    def connected(self) -> bool:
        """Tell whether a connection is open."""
        return self._queue is not None and len(self._queue.pool.connections) > 0

    @property
    def stats(self) -> Statistics:
        """Return counts of what the mailer is doing, and has done."""
        queue = self._queue
        if queue is None:
            return Statistics(0, 0, 0, 0, **self._counts, retried=self._retried)
        pool = queue.pool
        now = len(pool.connections), pool.opening, queue.waiting, queue.in_flight
        return Statistics(*now, **self._counts, retried=self._retried + queue.retried)

    def relays(self) -> list[RelayState]:
        """Return the relays, each with the part of its state that is kept from one event loop to the next."""
        return [RelayState(relay, kept) for relay, kept in zip(self.settings.relays, self._kept, strict=True)]

    # ---- messages ---------------------------------------------------------------------------

    def queue(self) -> DeliveryQueue:
        """Return the queue of the running event loop.

        Raises:
            SMTPStateError: the mailer was closed, or belongs to another loop, which is still open.
        """
        if self.closing:
            raise SMTPStateError("the mailer was closed")
        queue = self._at_home()
        if queue is None:
            settings = self.settings
            pool = Pool(
                self.relays(),
                settings.connections,
                make_connection,
                idle=settings.idle,
                max_messages=settings.max_messages,
                max_age=settings.max_age,
                limiter=None if settings.rate is None else RateLimiter(settings.rate),
            )
            self._queue = queue = DeliveryQueue(pool, settings.retry, self._settled)
        return queue

    def submit(self, message: QueuedMessage) -> None:
        """Put a message in line; `dispatch` is to be called then."""
        queue = self._queue
        if queue is None or self.closing or queue.loop is not asyncio.get_running_loop():
            queue = self.queue()
        queue.submit(message)

    def dispatch(self) -> None:
        """Send what is in line."""
        if self._queue is not None:
            self._queue.dispatch()

    def expire(self, message: QueuedMessage, seconds: float) -> None:
        """Stop a message that was not sent within so many seconds, which it had."""
        if self._queue is not None:
            self._queue.expire(message, seconds)

    def count(self, state: DeliveryState) -> None:
        """Count a message of which all is known."""
        self._counts[state] += 1

    # ---- bulk sends -------------------------------------------------------------------------

    def bulk_send(self, *, in_order: bool, timeout: float | None) -> BulkSend:
        """Return a new account of a `send_all`."""
        connections = self.settings.connections
        bulk = BulkSend(
            self,
            connections * self.settings.window,
            connections * OCTETS,
            2 * connections,
            in_order=in_order,
            timeout=timeout,
            patience=self.settings.close_timeout,
        )
        self._bulk_sends.add(bulk)
        return bulk

    def give_up(self, bulk: BulkSend) -> None:
        """End the messages of a bulk send that are on no connection; all of them, if their event loop is closed."""
        queue = self._queue
        if queue is not None and queue.loop.is_closed():
            self._bereaved(queue)
        elif queue is not None:
            queue.give_up(lambda request: request.message.arrived is bulk.arrived)

    def left(self, bulk: BulkSend, deliveries: Iterable[Delivery[Any]]) -> None:
        """Forget a bulk send that is done, and keep the deliveries that no caller has taken."""
        self._bulk_sends.discard(bulk)
        self._unclaimed += deliveries

    def claimed(self) -> list[Delivery[Any]]:
        """Return the deliveries that no caller has taken, once."""
        unclaimed = list(self._unclaimed)
        self._unclaimed.clear()
        return unclaimed

    def _settled(self) -> None:
        """Let the bulk sends see to a batch of messages that was judged."""
        for bulk in list(self._bulk_sends):
            bulk.settled()

    # ---- event loops ------------------------------------------------------------------------

    def _at_home(self) -> DeliveryQueue | None:
        """Return the queue of the running event loop; None if there is none yet."""
        queue = self._queue
        if queue is None or queue.loop is asyncio.get_running_loop():
            return queue
        if not queue.loop.is_closed():
            raise SMTPStateError(
                "a mailer belongs to the event loop that it was first used in; for threads there is asmtp.Mailer"
            )
        self._bereaved(queue)
        return None

    def _bereaved(self, queue: DeliveryQueue) -> None:
        """End a queue whose event loop was closed, as between one asyncio.run() and the next."""
        self._queue = None
        queue.orphaned()
        self._retried += queue.retried
        for bulk in list(self._bulk_sends):
            bulk.bereaved()

    # ---- the end ----------------------------------------------------------------------------

    async def quiet(self) -> None:
        """Wait until nothing is in flight, and every iterable that was stopped has come to an end."""
        here = asyncio.current_task()
        queue = self._at_home()
        while True:
            stopping = [bulk for bulk in self._bulk_sends if bulk.stopping not in (None, here)]
            if queue is not None and queue.in_flight:
                await queue.quiet()
            elif stopping:
                await stopping[0].change()
            else:
                break

    async def aclose(self, timeout: float | None) -> None:
        """Take no more, wait until nothing is in flight, for `timeout` seconds at most, and close all connections."""
        self._at_home()
        self._stop()
        try:
            async with asyncio.timeout(timeout):
                await self.quiet()
                if self._queue is not None:
                    await self._queue.pool.aclose()
        except TimeoutError:
            self.cut()
            await self.quiet()

    def _stop(self) -> None:
        """Take no more."""
        self.closing = True
        for bulk in list(self._bulk_sends):
            bulk.stop()

    def cut(self) -> None:
        """Do what `abort` does as the time to close is over, and log how many messages that gives up."""
        given_up = self.stats.in_flight
        if given_up:
            logger.warning("closed before all was sent: gave up %d messages", given_up)
        self.abort()
        for bulk in list(self._bulk_sends):
            bulk.forsake()

    def abort(self) -> None:
        """Close all connections at once; what is in flight is ended with what is known of it."""
        self._stop()
        queue = self._queue
        if queue is not None and queue.loop.is_closed():
            self._bereaved(queue)
        elif queue is not None:
            queue.abort()
        self._settled()

    async def wait_closed(self) -> None:
        """Wait, after `abort`, until what was in flight is ended, and no task is left."""
        try:
            async with asyncio.timeout(self.settings.close_timeout):
                await self.quiet()
        except TimeoutError:
            self.cut()
        if self._queue is not None:
            await self._queue.pool.wait_closed()
