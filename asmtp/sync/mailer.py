"""Mailer: AsyncMailer for code that blocks, and for any number of threads.

Its connections need a loop that keeps running, so it has one on a background thread.  anyio's blocking portal is not
used: it waits for the loop before it waits for the call, cannot take the call back meanwhile, and waits for ever where
the loop ends at that moment.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import contextvars
import copy
import functools
import logging
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from types import EllipsisType, TracebackType
from typing import Any, Self, TypeVar, Unpack

import anyio

from asmtp.client.content import Content
from asmtp.client.events import handle_all, is_handling, kept_for
from asmtp.client.relay import Relay
from asmtp.errors import SMTPStateError
from asmtp.mailer.bulk import BulkSend
from asmtp.mailer.delivery import Delivery, Receipt
from asmtp.mailer.mailer import AsyncMailer, MailerOptions, Statistics, check_limit
from asmtp.mailer.message import QueuedMessage
from asmtp.protocol.envelope import Envelope
from asmtp.protocol.hidden import hidden, hide
from asmtp.protocol.parameters import Requests
from asmtp.transport.offload import ending

__all__ = ["Mailer"]

T = TypeVar("T")

BATCH = 64
"""Messages handed to the loop's thread at a time: to hand over one costs more than to send it."""

KEPT = 10_000
"""Log records that are kept for who calls next."""

PATIENCE = 0.005
"""Seconds after which a batch is handed over, however small it is."""


class Mailer:
    """Sends messages over a pool of connections, blocking; safe to share by any number of threads.

    The thread is started by the first call, so an object made before a fork works in the children.  As a context
    manager it waits for what is in flight on leaving, and closes its connections; at the end of the program it does
    so by itself.  Either takes `close_timeout` at most.

    Args:
        relay, options: as for :class:`~asmtp.AsyncMailer`.

    Raises:
        ValueError, TypeError: an argument is wrong.
    """

    def __init__(
        self, relay: str | Relay | Sequence[str | Relay] | None = None, **options: Unpack[MailerOptions]
    ) -> None:
        if isinstance(relay, str | list | tuple):
            relay = hidden(relay)
        hide(options)
        self._relay = relay
        self._options = options
        self._mailer = AsyncMailer(relay, **options)
        self._thread: _Thread | None = None
        self._closed = False

    def __repr__(self) -> str:
        shown = repr(getattr(self, "_mailer", None))  # the constructor may have raised
        return f"<{type(self).__module__}.{type(self).__name__} {shown.partition(' ')[2] or '>'}"

    def __getstate__(self) -> dict[str, Any]:
        """Have its settings pickled and copied; a copy has a thread, and connections, of its own."""
        return {**vars(self), "_mailer": copy.copy(self._mailer), "_thread": None, "_closed": False}

    @property
    def stats(self) -> Statistics:
        """What it is doing, and has done."""
        return self._mailer.stats

    def send(
        self,
        message: Content | Envelope,
        sender: str | None = None,
        recipients: str | Iterable[str] | None = None,
        *,
        mail_options: Sequence[str] = (),
        rcpt_options: Sequence[str] = (),
        require_all: bool = False,
        timeout: float | None = None,
        **requests: Unpack[Requests],
    ) -> Receipt:
        """Send one message, and wait until a server has taken it: see :meth:`asmtp.AsyncMailer.send`."""
        thread = self._started()
        return thread.call(
            thread.mailer.send,
            message,
            sender,
            recipients,
            mail_options=mail_options,
            rcpt_options=rcpt_options,
            require_all=require_all,
            timeout=timeout,
            **requests,
        )

    def send_all(
        self, messages: Iterable[Any], *, in_order: bool = False, timeout: float | None = None
    ) -> Generator[Delivery, None, None]:
        """Send many messages, and tell of each what became of it: see :meth:`asmtp.AsyncMailer.send_all`.

        The iterable is asked in the calling thread, and may block.  Leaving the loop ends it: what is in flight is
        finished, and :meth:`drain` returns what is known of it.  Where the mailer is closed meanwhile, the loop is told
        what is known, and SMTPStateError is raised.
        """
        if not hasattr(messages, "__iter__"):
            raise TypeError(f"messages must be an iterable, not {type(messages).__name__}")
        check_limit("timeout", timeout)
        self._check()
        return self._send_all(messages, in_order, timeout)

    def _send_all(
        self, messages: Iterable[Any], in_order: bool, timeout: float | None
    ) -> Generator[Delivery, None, None]:
        iterator = iter(messages)
        feed = _Feed(self._started(), in_order, timeout)
        told = feed.told
        error: Exception | None = SMTPStateError("the mailer was closed")
        try:
            while not feed.bulk.stopped:
                try:
                    item = next(iterator)
                except StopIteration:
                    error = None
                    break
                except Exception as raised:
                    error = raised
                    break
                feed.put(item)
                if told:
                    while told:
                        yield told.popleft()
                    feed.met = time.monotonic()
            feed.meet(feed.bulk.hand_over)
            while True:
                while told:
                    yield told.popleft()
                feed.meet(feed.bulk.remaining)
                if not told:
                    break
        finally:
            feed.leave()
        if error is None and not feed.bulk.over:
            error = _ended()
        try:
            if error is not None:
                raise error
        finally:
            del error  # it holds this frame

    def drain(self) -> list[Delivery]:
        """Wait until nothing is in flight: see :meth:`asmtp.AsyncMailer.drain`.

        When the mailer was closed, it tells what became of those that were given up then.
        """
        thread = self._thread
        if self._closed and thread is not None and thread.mine:
            thread.check()
            thread.join()
            return thread.mailer.claimed()
        thread = self._started()
        return thread.call(thread.mailer.drain)

    def verify(self) -> None:
        """Connect to each relay, log in, and close: see :meth:`asmtp.AsyncMailer.verify`."""
        thread = self._started()
        thread.call(thread.mailer.verify)

    def close(self, timeout: float | EllipsisType | None = ...) -> None:
        """Wait until nothing is in flight, and close all connections.  Nothing more is taken.

        Who is interrupted meanwhile closes them at once.

        Args:
            timeout: seconds after which it does not wait any more: what is in flight is ended with what is known of it,
                and the log says how much that was; None: without limit; by default the mailer's `close_timeout`.
        """
        thread = self._thread
        if thread is not None:
            thread.check()
        with _starting:
            self._closed = True
            thread = self._thread
        if thread is not None and thread.mine:
            thread.end(timeout)

    def __enter__(self) -> Self:
        self._check()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        thread = self._thread
        if thread is not None and kind is not None and not issubclass(kind, Exception):
            thread.soon(thread.mailer.abort)
        self.close()

    def _check(self) -> None:
        if self._closed:
            raise SMTPStateError("the mailer was closed")

    def _started(self) -> _Thread:
        """The loop's thread."""
        with _starting:
            self._check()
            thread = self._thread
            if thread is not None and thread.mine:
                return thread
            if thread is not None:
                # A fork: the thread and the connections are the parent's.
                self._mailer = AsyncMailer(self._relay, **self._options)
            try:
                self._thread = thread = (_Here if ending() else _Thread)(self._mailer)
            except BaseException:
                # It may have begun all the same, and closes what it was given.
                self._mailer = AsyncMailer(self._relay, **self._options)
                raise
            weakref.finalize(self, thread.forsake).atexit = False
            return thread


class _Feed:
    """What is between the thread that loops over a `send_all`, and the loop's thread.

    Attributes:
        bulk: the account, which is the loop's.
        told: what can be told: the loop's thread puts it in, the other one takes it out.
        met: when the two have met last, as `time.monotonic()`.
    """

    def __init__(self, thread: _Thread, in_order: bool, timeout: float | None) -> None:
        self._thread = thread
        self._batch: deque[QueuedMessage | Delivery] = deque()  # what the iterable gave: the loop's thread takes it out
        self.told: deque[Delivery] = deque()
        self.bulk = thread.call(self._begin, in_order, timeout)
        self.met = time.monotonic()
        self._meetings = 0

    async def _begin(self, in_order: bool, timeout: float | None) -> BulkSend:
        return self._thread.mailer.bulk(in_order=in_order, timeout=timeout)

    def put(self, item: Any) -> None:
        """Hand over an item, now or in a moment."""
        self._batch.append(self.bulk.prepared(item))
        if len(self._batch) >= BATCH or time.monotonic() - self.met > PATIENCE:
            self.meet(self.bulk.hand_over)
        elif len(self._batch) == 1:
            # The next one may be long in coming.
            self._thread.soon(self._wait, self._meetings)

    def meet(
        self, function: Callable[[deque[QueuedMessage | Delivery], deque[Delivery]], Coroutine[Any, Any, None]]
    ) -> None:
        """Let the loop's thread take what there is to take, and tell what there is to tell."""
        self._meetings += 1
        try:
            self._thread.call(function, self._batch, self.told)
        except SMTPStateError:
            if not self._thread.over:
                raise
            self._thread.join()  # nothing changes any more then
            self.bulk.finish(self._batch, self.told)
        self.met = time.monotonic()

    def leave(self) -> None:
        """The loop was left.  This may be called in any thread, and must not wait."""
        self._thread.soon(self._left)

    # In the loop's thread.

    def _left(self) -> None:
        batch = list(self._batch)
        self._batch.clear()
        self.bulk.abandon(batch, self.told)

    def _wait(self, meetings: int) -> None:
        asyncio.get_running_loop().call_later(PATIENCE, self._fetch, meetings)

    def _fetch(self, meetings: int) -> None:
        if meetings == self._meetings:
            self._thread.begin(Future(), functools.partial(self.bulk.hand_over, self._batch, self.told))


class _Thread:
    """A loop on a thread of its own, with a mailer in it.

    Attributes:
        mailer: it.
        over: nothing can be called any more.
    """

    def __init__(self, mailer: AsyncMailer) -> None:
        self.mailer = mailer
        self.over = False
        self._process = os.getpid()
        self._lock = threading.RLock()  # for `over`
        self._loop: asyncio.AbstractEventLoop | None = None
        self._context = contextvars.Context()
        self._leaving = asyncio.Event()
        self._patience: float | EllipsisType | None = ...  # seconds for what is in flight then
        self._calls: dict[Future[Any], asyncio.Task[Any] | None] = {}
        self._log = _Log()
        self._forsaken = False
        self._ready: Future[None] = Future()
        self._gone = threading.Event()
        # A daemon, so that a program that forgets to close it ends; what is to be said at the end, `_at_exit` says.
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
        """Whether it is of this process: a fork does not take threads along."""
        return self._process == os.getpid()

    def check(self) -> None:
        """Raise SMTPStateError where this is called in the thread."""
        if threading.current_thread() is self._thread:
            raise SMTPStateError("a call in the mailer's own thread would wait for itself")

    def call(self, function: Callable[..., Coroutine[Any, Any, T]], *args: Any, **kwargs: Any) -> T:
        """Call in the loop's thread, and wait; who is interrupted takes the call back."""
        if not self.mine:
            raise SMTPStateError("a loop over send_all does not go on in another process")
        self.check()
        call: Future[T] = Future()
        try:
            with self._log.heard_until(call) as wait:
                with self._lock:
                    if self.over:
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
        """Call in the loop's thread, without waiting: in any thread, the loop's own included, and at any moment."""
        if self._loop is not None and self.mine:
            with contextlib.suppress(RuntimeError):  # it is closed
                # Not in the caller's context, which connections would keep.
                self._loop.call_soon_threadsafe(functools.partial(function, *args), context=self._context)

    def leave(self, timeout: float | EllipsisType | None = ...) -> None:
        """Let it end when nothing is in flight any more, or in so many seconds; by default the mailer's own."""
        self.soon(self._leave, timeout)

    def forsake(self) -> None:
        """The same, where nobody will wait for it."""
        self._forsaken = True
        self.leave()

    def end(self, timeout: float | EllipsisType | None = ...) -> None:
        """Let it end, and wait for it; who is interrupted does not wait for what is in flight."""
        self.leave(timeout)
        try:
            self.join()
        except BaseException:
            self.soon(self.mailer.abort)
            self.join()
            raise

    def join(self) -> None:
        """Wait for its end."""
        self._gone.wait()  # a join that is interrupted takes the thread for one that has ended (Python 3.11)
        self._thread.join()
        self._log.hear()

    # ---- in the thread ----------------------------------------------------------------------

    def begin(self, call: Future[T], function: Callable[[], Coroutine[Any, Any, T]]) -> None:
        """Start a call."""
        task = asyncio.get_running_loop().create_task(function())
        self._calls[call] = task
        task.add_done_callback(functools.partial(self._done, call))

    def _leave(self, timeout: float | EllipsisType | None) -> None:
        if not self._leaving.is_set():
            self._patience = timeout
            self._leaving.set()
        elif isinstance(timeout, int | float):  # whoever has said before that there is more
            asyncio.get_running_loop().call_later(timeout, self.mailer.cut)

    def _done(self, call: Future[T], task: asyncio.Task[T]) -> None:
        del self._calls[call]
        self._log.done(call)
        if task.cancelled():  # nobody waits for it any more, or nothing goes on here
            call.set_exception(_ended())
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
            with kept_for(self._log.keep):
                anyio.run(self._serve)
        except BaseException as error:
            if not self._ready.done():
                self._ready.set_exception(error)
            elif not (self.over and isinstance(error, RuntimeError)):
                raise
            # else: at the end of the program Python 3.12 cannot start the thread that would end the resolver's
        finally:
            with self._lock:
                self.over = True
            for call in list(self._calls):  # something was raised that ends loops
                self._log.done(call)
                call.set_exception(_ended())
            _threads.discard(self)
            self._gone.set()
            if self._forsaken:
                self._log.hear()

    async def _serve(self) -> None:
        _threads.add(self)
        self._loop = asyncio.get_running_loop()
        self._context = contextvars.copy_context()
        self._ready.set_result(None)
        await self._leaving.wait()
        await self.mailer.aclose(self._patience)
        with self._lock:
            self.over = True
        await asyncio.sleep(0)  # the calls that came before that are begun now
        while tasks := [task for task in self._calls.values() if task is not None]:
            await asyncio.wait(tasks)


class _Here(_Thread):
    """The same at the end of the program, where no thread is started any more: the loop runs in who calls."""

    def __init__(self, mailer: AsyncMailer) -> None:
        self.mailer = mailer
        self.over = False
        self._process = os.getpid()
        self._lock = threading.RLock()
        self._calls = {}
        self._runner = asyncio.Runner()
        _threads.add(self)

    def check(self) -> None:
        """No thread of its own waits."""

    def call(self, function: Callable[..., Coroutine[Any, Any, T]], *args: Any, **kwargs: Any) -> T:
        """Call in the loop, once nobody else does."""
        with self._lock:
            if self.over:
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
            if not self.over:
                self._runner.get_loop().call_soon(functools.partial(function, *args))

    def leave(self, timeout: float | EllipsisType | None = ...) -> None:
        """Nothing is in flight between calls, and the program ends."""

    def end(self, timeout: float | EllipsisType | None = ...) -> None:
        """Let it end."""
        with self._lock:
            if not self.over:
                self._run(self.mailer.aclose(timeout))
                self.over = True
                self._runner.close()
                _threads.discard(self)

    def forsake(self) -> None:
        """The same."""

    def join(self) -> None:
        """There is nothing to wait for."""


class _Log:
    """What the loop's thread logs, which those handle who wait for it: they may hold the lock of a handler.

    What a handler mails through the same mailer is not logged, nor what comes of it, until somebody else calls.
    """

    def __init__(self) -> None:
        self._kept: deque[logging.LogRecord] = deque(maxlen=KEPT)  # where nobody waits
        self._waiting: dict[Future[Any], SimpleQueue[logging.LogRecord | None]] = {}
        self._lock = threading.RLock()  # for the others; a signal handler may call again
        self._mailing = 0  # calls of handlers
        self._muted = False

    @contextlib.contextmanager
    def heard_until(self, call: Future[Any]) -> Iterator[Callable[[], None]]:
        """Have a function that returns when the call is done, and handles meanwhile what is logged."""
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
            with contextlib.suppress(Empty):  # of who was interrupted
                while True:
                    if (record := queue.get_nowait()) is not None:
                        self._kept.append(record)

    def hear(self) -> None:
        """Handle what was logged when nobody waited."""
        with contextlib.suppress(IndexError):  # others do the same
            while not is_handling():
                handle_all([self._kept.popleft()])

    def keep(self, record: logging.LogRecord) -> None:
        """Give a record to one of those who wait.  In the loop's thread, as `done`."""
        if self._muted or self._mailing:
            return
        with self._lock:
            queue = next(iter(self._waiting.values()), None)
            if queue is not None:
                queue.put(record)
            else:
                self._kept.append(record)

    def done(self, call: Future[Any]) -> None:
        """A call is done, or nobody waits for it any more: it is given nothing more."""
        with self._lock:
            self._waiting.pop(call, None)


def _ended() -> SMTPStateError:
    return SMTPStateError("the mailer's thread has ended")


_starting = threading.RLock()
"""Held by who starts a thread."""

_threads: set[_Thread] = set()
"""Those that live."""


def _forked() -> None:
    """This is a child: who held the lock is not here."""
    global _starting
    _starting = threading.RLock()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_forked)


@atexit.register
def _at_exit() -> None:
    """The program ends.  The threads are daemons, and go on until after this."""
    threads = [thread for thread in list(_threads) if thread.mine]
    for thread in threads:
        thread.leave()
    for thread in threads:
        thread.end()
