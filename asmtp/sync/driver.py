"""Driving a coroutine without a task, in the calling thread, and reading its connection without a pass of the loop.

All that asmtp uses of asyncio's private names is in this module, and each has a test in tests/sync/test_asyncio.py:
`_set_running_loop` and `_get_running_loop`, the protocol of `_asyncio_future_blocking`, and a loop's `_thread_id`.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import os
import select
import selectors
import socket
from collections.abc import Awaitable, Callable, Coroutine
from types import BuiltinFunctionType
from typing import Any, Protocol, TypeVar

from asmtp.client.events import unheard
from asmtp.protocol.exchange import Exchange
from asmtp.protocol.session import Session
from asmtp.transport.connection import Connection
from asmtp.transport.timeouts import Timeouts

__all__ = ["Driven", "DrivenConnection", "drive", "end", "in_task", "new_selector", "running_loop", "without_loop"]

T = TypeVar("T")

running_loop = asyncio._get_running_loop
"""Return the loop that runs in this thread, or None."""

_READV = hasattr(os, "readv")  # not on Windows


class DrivenConnection(Connection):
    """A connection whose loop runs only while a call waits for a reply.

    Attributes:
        awaited: the exchange that the call waits for.
        on_finished: a function that is called once, when a future that waits for an exchange is done.
    """

    def __init__(self, session: Session, timeouts: Timeouts) -> None:
        super().__init__(session, timeouts)
        self.awaited: Exchange[Any] | None = None
        self.on_finished: Callable[[], None] | None = None
        self._poll: Callable[[float], Any] | None = None

    async def finished(self, exchange: Exchange[T]) -> T:
        """Wait for an exchange, and return its result; `drive` may read the socket meanwhile."""
        self.awaited = exchange
        return await super().finished(exchange)

    def _on_notify(self, exchange: Exchange[Any]) -> None:
        super()._on_notify(exchange)
        stop, self.on_finished = self.on_finished, None
        if stop is not None:
            stop()

    def readable(self, seconds: float = 0) -> bool:
        """Return whether octets (or the end) have come that the loop has not seen yet, or come within `seconds`."""
        if self._poll is None:
            self._poll = _poll(self.transport.get_extra_info("socket").fileno())
        return bool(self._poll(seconds * 1000))

    def read(self) -> bool:
        """Take a reply without a pass of the loop; return False if none has come, or if the loop has to run.

        The loop has to run for TLS, for octets that the kernel could not take yet, and for a deadline that is near.
        """
        transport = self.transport
        if not _READV or transport.get_extra_info("sslcontext") is not None or transport.get_write_buffer_size():
            return False
        timer = self._timer
        if (timer is not None and timer.when() <= self._loop.time()) or not self.readable(self._tick):
            return False
        try:
            octets = os.readv(transport.get_extra_info("socket").fileno(), [self._incoming])
        except OSError:
            return False  # the loop will meet the same error
        if octets:
            self.buffer_updated(octets)
        return octets > 0

    def cut(self) -> None:
        """End the connection from another thread than the one that runs the loop, or waits in :meth:`read`."""
        if not self.begun:
            return
        with contextlib.suppress(OSError):  # the connection has ended
            self.transport.get_extra_info("socket").shutdown(socket.SHUT_RDWR)


def _poll(descriptor: int) -> Callable[[float], Any]:
    """Return a function that waits milliseconds for a descriptor to be readable, and says whether it is."""
    if hasattr(select, "poll"):  # not on Windows
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return poll.poll
    return lambda milliseconds: select.select([descriptor], [], [], milliseconds / 1000)[0]


class Driven(Protocol):
    """A client whose coroutines are driven."""

    struck: BaseException | None
    """The exception that was raised in a callback of the loop's, as by a signal handler."""

    def connection_of(self, future: asyncio.Future[Any]) -> DrivenConnection | None:
        """Return the connection, if a future waits for an exchange on it, and for nothing else."""

    def abort(self) -> None:
        """End the connection at once."""


def drive(loop: asyncio.AbstractEventLoop, client: Driven, coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that awaits nothing but `client` to its end.

    It does what `run_until_complete` does, but without a task, and without the passes of the loop that it takes to
    start, wake and end one: a third of the time of a short command.  A coroutine that needs a task (for a time-out, a
    cancel scope) cannot be driven so: see :func:`in_task`.

    An exception from outside, as out of a signal handler, ends the connection: its coroutine does not go on.
    """
    try:
        while True:
            try:
                asyncio._set_running_loop(loop)
                future = coroutine.send(None)
            except StopIteration as stop:
                return stop.value  # type: ignore[no-any-return]
            finally:
                asyncio._set_running_loop(None)
            if future is None:  # asyncio.sleep(0): one pass
                loop.call_soon(loop.stop)
                loop.run_forever()
                continue
            future._asyncio_future_blocking = False
            connection = client.connection_of(future)
            if connection is None:
                future.add_done_callback(lambda _: loop.stop())
            while not future.done():
                if connection is not None and connection.read():
                    continue
                if connection is not None:
                    connection.on_finished = loop.stop
                loop.run_forever()
                if client.struck is not None:
                    raise client.struck
    except BaseException:
        if inspect.getcoroutinestate(coroutine) != inspect.CORO_CLOSED:  # the exception is not the coroutine's own
            client.abort()
        raise
    finally:
        # Once more: an exception of a signal handler may have come before the other one.
        asyncio._set_running_loop(None)
        coroutine.close()


async def in_task(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in a task, for `drive`."""
    return await asyncio.get_running_loop().create_task(coroutine)


def end(loop: asyncio.AbstractEventLoop, client: Driven, released: Awaitable[None]) -> None:
    """Close a private loop, once `released` is done and the callbacks of transports have run."""
    loop._thread_id = None  # type: ignore[attr-defined]  # it may have been interrupted as it ended a run
    try:
        drive(loop, client, _last_passes(released))
    finally:
        with unheard():  # in debug mode asyncio logs that, perhaps into a handler that mails
            loop.close()


async def _last_passes(released: Awaitable[None]) -> None:
    await released
    for _ in range(2):  # for the callbacks of transports, also of one that was not quite made
        await asyncio.sleep(0)


def new_selector() -> selectors.BaseSelector:
    """Return the selector of a private loop: poll, not epoll, which a child process would share."""
    if isinstance(getattr(select, "poll", None), BuiltinFunctionType):
        return selectors.PollSelector()
    return _yielding(selectors.DefaultSelector)()  # Windows has none; gevent and eventlet put their own in its place


@functools.cache
def _yielding(kind: type[selectors.BaseSelector]) -> type[selectors.BaseSelector]:
    class Yielding(kind):  # type: ignore[valid-type, misc]  # it is known at run time
        """A selector without a running loop while it waits: another greenlet of this thread may run its own."""

        def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
            return without_loop(super().select, timeout)

    return Yielding


def without_loop(function: Callable[..., T], *args: Any) -> T:
    """Call a function as if no loop ran in this thread."""
    loop = running_loop()
    asyncio._set_running_loop(None)
    try:
        return function(*args)
    finally:
        asyncio._set_running_loop(loop)
