"""One `send_all`: the messages that it has in flight, and the deliveries that were not told yet."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import itertools
import logging
import time
from collections import deque
from collections.abc import AsyncIterable, Iterable
from typing import Any, Protocol, TypeVar

from asmtp.errors import DeliveryState, SMTPStateError
from asmtp.mailer.delivery import Delivery, FailedDelivery, state_of
from asmtp.mailer.message import QueuedMessage, envelope_of, is_heavy
from asmtp.transport.offload import call_in_thread

__all__ = ["BulkSend", "BulkState", "resolve"]

T = TypeVar("T")

logger = logging.getLogger("asmtp")

SLICE = 0.001
"""Seconds after which an iterable that is asked in the event loop lets other tasks have their turn."""


def resolve(future: asyncio.Future[T], result: T) -> None:
    """Set the result of a future, unless it is done, or its loop is closed."""
    if not future.done() and not future.get_loop().is_closed():
        future.set_result(result)


class Manager(Protocol):
    """The part of the mailer's :class:`~asmtp.mailer.manager.QueueManager` that a bulk send uses."""

    def submit(self, message: QueuedMessage) -> None:
        """Put a message in line; `dispatch` is to be called then."""

    def dispatch(self) -> None:
        """Send the messages that are in line."""

    def expire(self, message: QueuedMessage, seconds: float) -> None:
        """Stop a message that was not sent within so many seconds, which it had."""

    def count(self, state: DeliveryState) -> None:
        """Count a message of which all is known."""

    def give_up(self, bulk: BulkSend) -> None:
        """End the messages of a bulk send that are on no connection."""

    def left(self, bulk: BulkSend, deliveries: Iterable[Delivery[Any]]) -> None:
        """Forget a bulk send that is done, and keep the deliveries that no caller has taken."""


class BulkState(enum.Enum):
    """The states of a bulk send.

    ======== =================================================================== ================
    state    what happens                                                        next state
    ======== =================================================================== ================
    NEW      it is asked for a delivery, and begins to ask the iterable          PULLING
             another thread says that there are no more messages                 STOPPED
             the mailer is closed, or the caller leaves the loop                 CUT
    PULLING  the iterable has come to an end                                     STOPPED
             the mailer is closed, or the caller leaves the loop: the task that  STOPPING
             asks the iterable is cancelled, and may have to clean up
             the same, and its event loop is closed                              CUT
    STOPPING that task has ended by the cancellation, or takes too long          CUT
             the iterable has come to an end all the same                        STOPPED
    CUT      the caller is told that not all was taken, or has asked for that    STOPPED
    STOPPED  no more messages are taken; all is known when none is in flight     none
    ======== =================================================================== ================

    For a blocking caller it stays NEW while messages are handed over.

    The state does not say who gets the deliveries: a loop may be abandoned in any of these states, and they go to
    `drain` from then on.
    """

    NEW = "new"
    PULLING = "pulling"
    STOPPING = "stopping"
    CUT = "cut"
    STOPPED = "stopped"


NEW = BulkState.NEW
PULLING = BulkState.PULLING
STOPPING = BulkState.STOPPING
CUT = BulkState.CUT
STOPPED = BulkState.STOPPED
ENDED = (CUT, STOPPED)
ENDING = (STOPPING, CUT, STOPPED)


class BulkSend:
    """The account of one `send_all`.

    Args:
        manager: sends the messages, and keeps the deliveries of a loop that was left.
        limit: the most messages that may be in flight, or done and not told.
        octets: about the most octets of content that they may have, if that is more than `least` messages.
        least: see `octets`.
        in_order: tell of them in their order.
        timeout: seconds for the whole of a message, or None.
        patience: seconds that an iterable has to end after it was cancelled; then it is not waited for; None: no limit.

    Attributes:
        state: see :class:`BulkState`.
        ready: deliveries that can be told.
        error: the exception that the iterable raised.
    """

    def __init__(
        self,
        manager: Manager,
        limit: int,
        octets: int,
        least: int,
        *,
        in_order: bool,
        timeout: float | None = None,
        patience: float | None = None,
    ) -> None:
        self._manager = manager
        self._limit = limit
        self._most_octets = octets
        self._least = least
        self._in_order = in_order
        self._timeout = timeout
        self._patience = patience
        self._impatience: asyncio.TimerHandle | None = None  # at the end of it
        self._due: dict[QueuedMessage, float] = {}  # their deadlines, the next one first
        self._expiry: asyncio.TimerHandle | None = None
        self.ready: deque[Delivery[Any]] = deque()
        self.state = NEW
        self.error: BaseException | None = None
        self._order: deque[QueuedMessage | Delivery[Any]] = deque()
        self._in_flight = 0
        self._octets = 0  # of those that are in flight or ready
        self._sizes: deque[int] = deque()  # the octets of each of those that are `ready`
        self._news: asyncio.Future[None] | None = None  # is done when there is something to tell
        self._room: asyncio.Future[None] | None = None  # is done when there is room for another
        self._task: asyncio.Task[None] | None = None  # which asks the iterable, while it is PULLING or STOPPING
        self._loop: asyncio.AbstractEventLoop | None = None  # since it is PULLING
        self._abandoned = False  # the loop was left: the deliveries go to the manager; see BulkState
        self.arrived = self._arrived  # one object, by which the manager knows the messages of this bulk send

    # ---- taking -----------------------------------------------------------------------------

    @property
    def full(self) -> bool:
        """Tell whether no more should be put."""
        held = (len(self._order) if self._in_order else self._in_flight) + len(self.ready)
        return held >= self._limit or (self._octets >= self._most_octets and held >= self._least)

    def prepared(self, item: Any) -> QueuedMessage | Delivery[Any]:
        """Return an item as a message to be sent, or a delivery that tells why it cannot be.

        It is called in any thread, before the iterable is asked for the next item: some callers use one EmailMessage
        for all messages, and change it afterwards, which must have no effect.
        """
        envelope = None
        try:
            envelope = envelope_of(item)
            return QueuedMessage(item, envelope, self.arrived, time.time())
        except Exception as error:
            return FailedDelivery(item, envelope, state_of(error), None, error)

    def put(self, prepared: QueuedMessage | Delivery[Any]) -> None:
        """Send a message; if it cannot be sent, tell that as the outcomes of the others are told."""
        if isinstance(prepared, Delivery):
            self._tell_of(prepared)
            return
        try:
            if self.state in ENDING:
                raise SMTPStateError("not begun: nobody asks for more")
            self._manager.submit(prepared)
        except Exception as error:
            self._tell_of(FailedDelivery(prepared.item, prepared.envelope, state_of(error), None, error))
            return
        self._in_flight += 1
        self._octets += prepared.octets
        if self._timeout is not None:
            loop = asyncio.get_running_loop()
            self._due[prepared] = loop.time() + self._timeout
            if self._expiry is None:
                self._expiry = loop.call_later(self._timeout, self._expire, self._timeout)
        if self._in_order:
            self._order.append(prepared)

    def _tell_of(self, delivery: Delivery[Any]) -> None:
        """Tell of a message that cannot be sent."""
        self._manager.count(delivery.state)
        if self._in_order:
            self._order.append(delivery)
            self._line_up()
        else:
            self._now_ready(delivery, 0)
        self.settled()

    def _expire(self, timeout: float) -> None:
        """End the messages whose time is up, and set the timer for the next one."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        for message in list(itertools.takewhile(lambda one: self._due[one] <= now, self._due)):
            self._manager.expire(message, timeout)
            self._due.pop(message, None)
        due = next(iter(self._due.values()), None)
        self._expiry = None if due is None else loop.call_at(due, self._expire, timeout)

    async def pull(self, messages: Iterable[Any] | AsyncIterable[Any]) -> None:
        """Take messages as there is room for them."""
        loop = asyncio.get_running_loop()
        begun = loop.time()
        try:
            if hasattr(messages, "__aiter__"):
                async for item in messages:
                    self.put(await self._prepared(item) if is_heavy(item) else self.prepared(item))
                    self._manager.dispatch()
                    if self.state in ENDING:  # and the iterable did not care that it was cancelled
                        break
                    if self.full or loop.time() - begun > SLICE:
                        await self.room()
                        begun = loop.time()
            else:
                for item in messages:
                    self.put(await self._prepared(item) if is_heavy(item) else self.prepared(item))
                    if self.full or loop.time() - begun > SLICE:
                        self._manager.dispatch()
                        await self.room()
                        begun = loop.time()
        finally:
            self._manager.dispatch()

    async def _prepared(self, item: Any) -> QueuedMessage | Delivery[Any]:
        """Do what `prepared` does in another thread, for an item that takes long."""
        self._manager.dispatch()
        return await call_in_thread(self.prepared, item, abandon=True)

    def _pulled(self, task: asyncio.Task[None]) -> None:
        """Take no more messages, as the task that asks the iterable has ended."""
        if not task.cancelled():
            self.error = task.exception()
            if isinstance(self.error, StopAsyncIteration):  # as a generator does: else it would be taken for the end
                error, self.error = self.error, RuntimeError("the iterable raised StopAsyncIteration")
                self.error.__cause__ = error
            self.state = STOPPED  # all was taken, or there was no more to be had
        elif self.state is PULLING:
            self.error = asyncio.CancelledError("the iterable was cancelled")
            self.state = STOPPED
        elif self.state is STOPPING:
            self.state = CUT
        if self._impatience is not None:
            self._impatience.cancel()
        self._task = None
        self.settled()

    async def room(self) -> None:
        """Wait until there is room for another message, and let other tasks have their turn."""
        if not self.full:
            await asyncio.sleep(0)
        while self.full:
            self._room = asyncio.get_running_loop().create_future()
            await self._room
        self._room = None

    # ---- telling ----------------------------------------------------------------------------

    def _arrived(self, message: QueuedMessage) -> None:
        self._in_flight -= 1
        if self._due:
            self._due.pop(message, None)
        if not self._in_order:
            self._tell(message)
        else:
            self._line_up()

    def _tell(self, message: QueuedMessage) -> None:
        delivery = message.delivery(time.time())
        self._manager.count(delivery.state)
        self._now_ready(delivery, message.octets)

    def _now_ready(self, delivery: Delivery[Any], octets: int) -> None:
        self.ready.append(delivery)
        self._sizes.append(octets)

    def _line_up(self) -> None:
        """Move what can be told now, in order, to `ready`."""
        order = self._order
        while order:
            first = order[0]
            if isinstance(first, Delivery):
                self._now_ready(first, 0)
            elif first.pending:
                break
            else:
                self._tell(first)
            order.popleft()

    def settled(self) -> None:
        """Wake the tasks that wait for a delivery, or for room, if there is one."""
        if self._expiry is not None and self.done:
            self._expiry.cancel()
            self._expiry = None
        if self._news is not None and (self.ready or self.done):
            resolve(self._news, None)
        if self._room is not None and not self.full:
            resolve(self._room, None)
        if self._abandoned and self.done:
            self._manager.left(self, self.ready)
            self.ready = deque()

    @property
    def stopped(self) -> bool:
        """Tell whether no more messages are taken."""
        return self.state in ENDING

    @property
    def stopping(self) -> asyncio.Task[None] | None:
        """Return the task that asks the iterable, if it was cancelled and has not ended."""
        return self._task if self.state is STOPPING else None

    @property
    def done(self) -> bool:
        """Tell whether all is known."""
        return self.state in ENDED and not self._in_flight

    async def hand_over(self, items: deque[QueuedMessage | Delivery[Any]], told: deque[Delivery[Any]]) -> None:
        """Submit `items` as there is room for them, and collect deliveries into `told`: for a blocking caller.

        The caller's thread may fill the one and empty the other meanwhile.
        """
        while items:
            if self.full:
                self._manager.dispatch()
                await self.news()
                self._hand_out(told)
            else:
                self.put(items.popleft())
        self._manager.dispatch()
        self._hand_out(told)

    async def remaining(self, items: deque[QueuedMessage | Delivery[Any]], told: deque[Delivery[Any]]) -> None:
        """Take no more, and collect some of the deliveries that are left into `told`; none if all were told."""
        self.state = STOPPED
        await self.news()
        self._hand_out(told)

    def finish(self, items: deque[QueuedMessage | Delivery[Any]], told: deque[Delivery[Any]]) -> None:
        """Do what `remaining` does, but wait for nothing, as the event loop has ended."""
        self.state = STOPPED
        while items:
            self.put(items.popleft())
        self._hand_out(told)

    def _hand_out(self, told: deque[Delivery[Any]]) -> None:
        if not self._abandoned:
            told.extend(self._told())

    def _told(self) -> list[Delivery[Any]]:
        told = list(self.ready)
        self.ready.clear()
        self._octets -= sum(self._sizes)
        self._sizes.clear()
        return told

    async def next(self, messages: Iterable[Any] | AsyncIterable[Any]) -> Delivery[Any]:
        """Return the next delivery.

        Raises:
            StopAsyncIteration: there is none.
            SMTPStateError: there is none, as the mailer was closed before all was taken.
        """
        if self.state is NEW:
            self.state = PULLING
            self._loop = asyncio.get_running_loop()
            self._task = self._loop.create_task(self.pull(messages))
            self._task.add_done_callback(self._pulled)
        self.bereaved()
        while not self.ready:
            if self.done:
                cut = self.state is CUT
                self.state = STOPPED
                self._end()
                raise SMTPStateError("not all was taken: the mailer was closed") if cut else StopAsyncIteration
            await self.news()
        return self.pop()

    def pop(self) -> Delivery[Any]:
        """Return a delivery that is ready, which makes room for another message."""
        delivery = self.ready.popleft()
        self._octets -= self._sizes.popleft()
        if self._room is not None and 2 * len(self.ready) < self._limit:
            self.settled()
        return delivery

    async def news(self) -> None:
        """Wait until there is something to tell, or all is known."""
        if not self.ready and not self.done:
            await self.change()

    async def change(self) -> None:
        """Wait until `settled` finds something new.  Several tasks may wait."""
        if self._news is None or self._news.done():
            self._news = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._news)

    def _end(self, untold: Iterable[Delivery[Any]] = ()) -> None:
        """End it, as all is known; raise what the iterable raised, and leave `untold` to `drain` then."""
        error, self.error = self.error, None
        self._manager.left(self, untold if error is not None else ())
        if error is not None:
            raise error

    # ---- the end ----------------------------------------------------------------------------

    def stop(self) -> None:
        """Take no more messages, and do not begin those that were not begun."""
        task = self._task
        if task is None or task.get_loop().is_closed():
            self._task = None
            if self.state is not STOPPED:
                self.state = CUT
        elif self.state is PULLING:  # once: it may have to clean up
            self.state = STOPPING
            task.cancel()
            if self._patience is not None:
                self._impatience = task.get_loop().call_later(self._patience, self.forsake)
        if self._in_flight:
            self._manager.give_up(self)
        self.settled()

    def forsake(self) -> None:
        """Wait no more for an iterable that goes on though it was cancelled."""
        if self._task is not None:
            self._task = None
            self.state = CUT
            logger.warning("an iterable given to send_all goes on, though it was cancelled: it is not waited for")
            self.settled()

    def bereaved(self) -> None:
        """Stop, if the event loop that it was begun in is closed: nothing goes on there."""
        if self._loop is not None and self._loop.is_closed():
            if isinstance(self.error, asyncio.CancelledError):  # as all tasks are at the end of a loop
                self.error = SMTPStateError("not all was taken: the event loop was closed")
            self.stop()

    def forget(self) -> None:
        """Do what `abandon` does, in any thread, and though the event loop may be closed."""
        here = None
        with contextlib.suppress(RuntimeError):
            here = asyncio.get_running_loop()
        if self._loop is None or self._loop is here or self._loop.is_closed():
            self.abandon()
        else:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self.abandon)

    def abandon(self, items: Iterable[QueuedMessage | Delivery[Any]] = (), told: Iterable[Delivery[Any]] = ()) -> None:
        """Stop, as the caller has left the loop, and leave all deliveries to `drain`.

        Args:
            items: items of the iterable, prepared, that were not put.
            told: deliveries that were handed out and did not reach the caller.
        """
        self.stop()
        for delivery in reversed(list(told)):
            self.ready.appendleft(delivery)
            self._sizes.appendleft(0)
        for item in items:
            self.put(item)
        self._abandoned = True
        self.settled()

    async def rest(self) -> list[Delivery[Any]]:
        """Stop, wait for what is in flight, and return the deliveries that no caller has taken."""
        self.bereaved()
        self.stop()
        while not self.done:
            await self.change()
        self.state = STOPPED
        if isinstance(self.error, SMTPStateError):
            self.error = None
        rest = self._told()
        self._end(rest)
        return rest
