"""Run the asyncio servers on a thread of their own, for clients that block."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from typing import TypeVar

__all__ = ["calling", "in_background", "not_of_a_server"]

T = TypeVar("T")

_THREAD = "server"

_loop: asyncio.AbstractEventLoop | None = None


@contextlib.contextmanager
def in_background(server: AbstractAsyncContextManager[T]) -> Iterator[T]:
    """Enter `server`, an async context manager, in a loop on another thread; raise here what went wrong there."""
    global _loop
    loop = asyncio.new_event_loop()
    started: concurrent.futures.Future[T] = concurrent.futures.Future()
    leave = asyncio.Event()
    failures: list[BaseException] = []

    async def serve() -> None:
        async with server as made:
            started.set_result(made)
            await leave.wait()

    def run() -> None:
        try:
            loop.run_until_complete(serve())
        except BaseException as error:  # raised on the test's thread, below
            failures.append(error)
            if not started.done():
                started.set_exception(error)
        finally:
            loop.run_until_complete(asyncio.sleep(0))
            loop.close()

    thread = threading.Thread(target=run, name=_THREAD)
    thread.start()
    outer, _loop = _loop, loop
    try:
        yield started.result()
    finally:
        _loop = outer
        loop.call_soon_threadsafe(leave.set)
        thread.join()
    if failures:
        raise failures[0]


def calling(function: Callable[[], T]) -> T:
    """Call a function in the innermost server's loop, and return what it returns."""
    assert _loop is not None
    done: concurrent.futures.Future[T] = concurrent.futures.Future()
    _loop.call_soon_threadsafe(lambda: done.set_result(function()))
    return done.result()


def not_of_a_server(record: logging.LogRecord) -> bool:
    """Filter out what the loops of these servers log.

    In asyncio's debug mode a loop logs each connection.  A handler that mails holds its lock until the server has taken
    the mail, and the server would wait for that lock.
    """
    return record.threadName != _THREAD
