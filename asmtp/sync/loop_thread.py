"""A loop on a thread of its own, with a mailer in it, for code that blocks.

anyio's blocking portal is not used: `BlockingPortal.call` waits for the loop before it waits for the call, cannot take
the call back if the caller is interrupted meanwhile, and waits for ever if the loop ends at that moment.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import contextvars
import functools
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from types import EllipsisType
from typing import Any, TypeVar

import anyio

from asmtp.client.events import handle_all, is_handling, kept_for
from asmtp.errors import SMTPStateError
from asmtp.mailer.mailer import AsyncMailer, manager_of
from asmtp.transport.offload import ending

__all__ = ["LoopThread", "start", "starting", "thread_ended"]

T = TypeVar("T")

KEPT = 10_000
"""Log records that are kept for the next caller."""


class LoopThread:
    """A loop on a thread of its own, with a mailer in it.

    Attributes:
        mailer: the mailer.
        ended: whether nothing can be called any more.
    """

    def __init__(self, mailer: AsyncMailer) -> None:
        self.mailer = mailer
        self.ended = False
        self._process = os.getpid()
        self._lock = threading.RLock()  # for `ended`
        self._loop: asyncio.AbstractEventLoop | None = None
        self._context = contextvars.Context()
        self._leaving = asyncio.Event()
        self._patience: float | EllipsisType | None = ...  # seconds for what is in flight then
        self._calls: dict[Future[Any], asyncio.Task[Any] | None] = {}
        self._records = KeptRecords()
        self._forsaken = False
        self._ready: Future[None] = Future()
        self._gone = threading.Event()
        # A daemon, so that a program ends though it forgot to close the mailer; `_at_exit` closes it then.
        self._thread = threading.Thread(target=self._live, name="asmtp mailer", daemon=True)
        try:
            self._thread.start()
            self._ready.result()
        except BaseException as error:
            if isinstance(error, RuntimeError) and "daemon" in str(error):  # an isolated subinterpreter
                raise SMTPStateError(f"Mailer needs a thread: {error}; SMTP and AsyncMailer do without") from error
            self._ready.add_done_callback(lambda ready: self.leave())
            raise

    @property
    def mine(self) -> bool:
        """Tell whether the thread is one of this process: a fork does not take threads along."""
        return self._process == os.getpid()

    def check(self) -> None:
        """Raise SMTPStateError if the caller is in the thread itself, and would wait for itself."""
        if threading.current_thread() is self._thread:
            raise SMTPStateError("a call in the mailer's own thread would wait for itself")

    def call(self, function: Callable[..., Coroutine[Any, Any, T]], *args: Any, **kwargs: Any) -> T:
        """Call in the loop's thread, and wait; a caller that is interrupted takes the call back."""
        if not self.mine:
            raise SMTPStateError("a loop over send_all does not go on in another process")
        self.check()
        call: Future[T] = Future()
        try:
            with self._records.heard_until(call) as wait:
                with self._lock:
                    if self.ended:
                        raise SMTPStateError("the mailer was closed")
                    self._calls[call] = None
                    self.soon(self.begin, call, functools.partial(function, *args, **kwargs))
                wait()
            return call.result()
        except BaseException:
            if not call.done():
                self.soon(self._take_back, call)
            raise
        finally:
            del call  # it holds the exception, and that this frame

    def soon(self, function: Callable[..., object], *args: Any) -> None:
        """Call in the loop's thread, without waiting.  This may be called in any thread, and at any moment."""
        if self._loop is not None and self.mine:
            with contextlib.suppress(RuntimeError):  # it is closed
                # Not in the caller's context, which connections would keep.
                self._loop.call_soon_threadsafe(functools.partial(function, *args), context=self._context)

    def leave(self, timeout: float | EllipsisType | None = ...) -> None:
        """Have the loop end when nothing is in flight any more, or after `timeout` seconds.

        Args:
            timeout: by default the mailer's `close_timeout`.
        """
        self.soon(self._leave, timeout)

    def forsake(self) -> None:
        """Have the loop end, though no caller will wait for it."""
        self._forsaken = True
        self.leave()

    def end(self, timeout: float | EllipsisType | None = ...) -> None:
        """Have the loop end, and wait for it; a caller that is interrupted does not wait for what is in flight."""
        self.leave(timeout)
        try:
            self.join()
        except BaseException:
            self.soon(self.mailer.abort)
            self.join()
            raise

    def join(self) -> None:
        """Wait until the thread has ended."""
        self._gone.wait()  # a join that is interrupted takes the thread for one that has ended (Python 3.11)
        self._thread.join()
        self._records.hear()

    # ---- in the thread ----------------------------------------------------------------------

    def begin(self, call: Future[T], function: Callable[[], Coroutine[Any, Any, T]]) -> None:
        """Start a call, in the loop."""
        task = asyncio.get_running_loop().create_task(function())
        self._calls[call] = task
        task.add_done_callback(functools.partial(self._done, call))

    def _leave(self, timeout: float | EllipsisType | None) -> None:
        if not self._leaving.is_set():
            self._patience = timeout
            self._leaving.set()
        elif isinstance(timeout, int | float):  # an earlier caller allowed more
            asyncio.get_running_loop().call_later(timeout, manager_of(self.mailer).cut)

    def _done(self, call: Future[T], task: asyncio.Task[T]) -> None:
        del self._calls[call]
        self._records.done(call)
        if task.cancelled():  # the caller does not wait for it any more, or the loop ends
            call.set_exception(thread_ended())
        elif (error := task.exception()) is not None:
            call.set_exception(error)
        else:
            call.set_result(task.result())

    def _take_back(self, call: Future[Any]) -> None:
        task = self._calls.get(call)
        if task is not None:
            task.cancel()

    def _live(self) -> None:
        try:
            with kept_for(self._records.keep):
                anyio.run(self._serve)
        except BaseException as error:
            if not self._ready.done():
                self._ready.set_exception(error)
            elif not (self.ended and isinstance(error, RuntimeError)):
                raise
            # else: at the end of the program Python 3.12 cannot start the thread that would end the resolver's
        finally:
            with self._lock:
                self.ended = True
            for call in list(self._calls):  # something was raised that ends loops
                self._records.done(call)
                call.set_exception(thread_ended())
            _threads.discard(self)
            self._gone.set()
            if self._forsaken:
                self._records.hear()

    async def _serve(self) -> None:
        _threads.add(self)
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()
        self._ready.set_result(None)
        await self._leaving.wait()
        await self.mailer.aclose(self._patience)
        with self._lock:
            self.ended = True
        await asyncio.sleep(0)  # the calls that came before that are begun now
        while tasks := [task for task in self._calls.values() if task is not None]:
            await asyncio.wait(tasks)


class EndingLoop(LoopThread):
    """A loop without a thread of its own, for the end of the program, when Python starts none: callers run it."""

    def __init__(self, mailer: AsyncMailer) -> None:
        self.mailer = mailer
        self.ended = False
        self._process = os.getpid()
        self._lock = threading.RLock()
        self._calls = {}
        self._runner = asyncio.Runner()
        _threads.add(self)

    def check(self) -> None:
        """Do nothing: there is no thread of its own that could wait for itself."""

    def call(self, function: Callable[..., Coroutine[Any, Any, T]], *args: Any, **kwargs: Any) -> T:
        """Call in the loop, once no other thread does."""
        with self._lock:
            if self.ended:
                raise SMTPStateError("the mailer was closed")
            return self._run(function(*args, **kwargs))

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        records: list[logging.LogRecord] = []
        try:
            with kept_for(records.append):  # a handler that mails would run the loop within itself
                return self._runner.run(coroutine)
        finally:
            handle_all(records)

    def soon(self, function: Callable[..., object], *args: Any) -> None:
        """Call in the loop, when it runs next."""
        with self._lock:
            if not self.ended:
                self._runner.get_loop().call_soon(functools.partial(function, *args))

    def leave(self, timeout: float | EllipsisType | None = ...) -> None:
        """Do nothing: nothing is in flight between calls, and the program ends."""

    def end(self, timeout: float | EllipsisType | None = ...) -> None:
        """Have the loop end."""
        with self._lock:
            if not self.ended:
                self._run(self.mailer.aclose(timeout))
                self.ended = True
                self._runner.close()
                _threads.discard(self)

    def forsake(self) -> None:
        """Do nothing: see `leave`."""

    def join(self) -> None:
        """Do nothing: there is no thread to wait for."""


class KeptRecords:
    """The log records of the loop's thread, for its callers to handle: they may hold the lock of a handler.

    If a log handler sends through the same mailer, records of that are dropped until another caller calls.
    """

    def __init__(self) -> None:
        self._kept: deque[logging.LogRecord] = deque(maxlen=KEPT)  # of times when no caller waits
        self._waiting: dict[Future[Any], SimpleQueue[logging.LogRecord | None]] = {}
        self._lock = threading.RLock()  # for the attributes below; a signal handler may call again
        self._mailing = 0  # calls that log handlers make
        self._muted = False

    @contextlib.contextmanager
    def heard_until(self, call: Future[Any]) -> Iterator[Callable[[], None]]:
        """Return a function that waits until the call is done, and handles meanwhile what the thread logs."""
        queue: SimpleQueue[logging.LogRecord | None] = SimpleQueue()
        call.add_done_callback(lambda call: queue.put(None))
        mailing = is_handling()
        with self._lock:
            self._mailing += mailing
            self._muted = mailing
            if not mailing:
                self._waiting[call] = queue

        def wait() -> None:
            self.hear()
            while (record := queue.get()) is not None:
                handle_all([record])

        try:
            yield wait
        finally:
            self.done(call)
            with self._lock:
                self._mailing -= mailing
            with contextlib.suppress(Empty):  # of a caller that was interrupted
                while True:
                    if (record := queue.get_nowait()) is not None:
                        self._kept.append(record)

    def hear(self) -> None:
        """Handle the records of times when no caller waited."""
        with contextlib.suppress(IndexError):  # others do the same
            while not is_handling():
                handle_all([self._kept.popleft()])

    def keep(self, record: logging.LogRecord) -> None:
        """Give a record to one of the callers that wait.  Like `done`, this is called in the loop's thread."""
        if self._muted or self._mailing:
            return
        with self._lock:
            queue = next(iter(self._waiting.values()), None)
            if queue is not None:
                queue.put(record)
            else:
                self._kept.append(record)

    def done(self, call: Future[Any]) -> None:
        """Give no more records to a call: it is done, or its caller does not wait for it any more."""
        with self._lock:
            self._waiting.pop(call, None)


def thread_ended() -> SMTPStateError:
    """Return the error of a call that the end of the thread cut short."""
    return SMTPStateError("the mailer's thread has ended")


_starting = threading.RLock()
"""Held while a thread is started."""

_threads: set[LoopThread] = set()
"""The threads that have not ended."""


def starting() -> threading.RLock:
    """Return the lock to hold while a thread is started; the child of a fork has another."""
    return _starting


def start(mailer: AsyncMailer) -> LoopThread:
    """Start a loop for a mailer."""
    return (EndingLoop if ending() else LoopThread)(mailer)


def _forked() -> None:
    """Replace the lock in a child process: the thread that held it belongs to the parent."""
    global _starting
    _starting = threading.RLock()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_forked)


@atexit.register
def _at_exit() -> None:
    """Close all mailers at the end of the program.  The threads are daemons, and go on until after this."""
    threads = [thread for thread in list(_threads) if thread.mine]
    for thread in threads:
        thread.leave()
    for thread in threads:
        thread.end()
