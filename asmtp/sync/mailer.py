"""Mailer: AsyncMailer for code that blocks, and for any number of threads.

Its connections need a loop that keeps running, so it has one on a background thread: see :mod:`.loop_thread`.
"""

from __future__ import annotations

import asyncio
import copy
import functools
import time
import weakref
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Iterable, Sequence
from concurrent.futures import Future
from types import EllipsisType, TracebackType
from typing import Any, Self, TypeVar, Unpack

from asmtp.client.content import Content
from asmtp.client.relay import Relay
from asmtp.client.settings import with_options
from asmtp.errors import SMTPStateError
from asmtp.mailer.bulk import BulkSend
from asmtp.mailer.delivery import Delivery, Receipt
from asmtp.mailer.mailer import AsyncMailer, MailerOptions, Statistics, check_limit, manager_of
from asmtp.mailer.message import QueuedMessage
from asmtp.protocol.envelope import Envelope
from asmtp.protocol.hidden import hidden, hide
from asmtp.protocol.parameters import Requests
from asmtp.sync.loop_thread import LoopThread, start, starting, thread_ended

__all__ = ["Mailer"]

T = TypeVar("T")

BATCH = 64
"""Messages handed to the loop's thread at a time: to hand one over costs more than to send it."""

PATIENCE = 0.005
"""Seconds after which a batch is handed over, however small it is."""


@with_options(MailerOptions.__annotations__, AsyncMailer)
class Mailer:
    """Sends messages over a pool of connections, blocking; safe to share by any number of threads.

    The thread is started by the first call, so an object made before a fork works in the children.  As a context
    manager it waits for what is in flight on leaving, and closes its connections; at the end of the program it does
    so by itself.  Either takes `close_timeout` at most.

    Args:
        relay: as for :class:`~asmtp.AsyncMailer`.
        {options}

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
        self._thread: LoopThread | None = None
        self._closed = False

    def __repr__(self) -> str:
        shown = repr(getattr(self, "_mailer", None))  # the constructor may have raised
        return f"<{type(self).__module__}.{type(self).__name__} {shown.partition(' ')[2] or '>'}"

    def __getstate__(self) -> dict[str, Any]:
        """Have its settings pickled and copied; a copy has a thread, and connections, of its own."""
        return {**vars(self), "_mailer": copy.copy(self._mailer), "_thread": None, "_closed": False}

    @property
    def stats(self) -> Statistics:
        """Return counts of what the mailer is doing, and has done."""
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
        self, messages: Iterable[T], *, in_order: bool = False, timeout: float | None = None
    ) -> Generator[Delivery[T], None, None]:
        """Send many messages, and yield a Delivery for each: see :meth:`asmtp.AsyncMailer.send_all`.

        The iterable is asked in the calling thread, and may block.  If the caller leaves the loop, what is in flight is
        finished, and :meth:`drain` returns the deliveries.  If the mailer is closed meanwhile, the loop gets the
        deliveries that there are, and then SMTPStateError.
        """
        if not hasattr(messages, "__iter__"):
            raise TypeError(f"messages must be an iterable, not {type(messages).__name__}")
        check_limit("timeout", timeout)
        self._check()
        return self._send_all(messages, in_order, timeout)

    def _send_all(
        self, messages: Iterable[T], in_order: bool, timeout: float | None
    ) -> Generator[Delivery[T], None, None]:
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
        if error is None and not feed.bulk.done:
            error = thread_ended()
        try:
            if error is not None:
                raise error
        finally:
            del error  # the error holds this frame

    def drain(self) -> list[Delivery[Any]]:
        """Wait until nothing is in flight: see :meth:`asmtp.AsyncMailer.drain`.

        After the mailer was closed, it returns the deliveries of the messages that were given up then.
        """
        thread = self._thread
        if self._closed and thread is not None and thread.mine:
            thread.check()
            thread.join()
            return manager_of(thread.mailer).claimed()
        thread = self._started()
        return thread.call(thread.mailer.drain)

    def verify(self) -> None:
        """Connect to each relay, log in, and close: see :meth:`asmtp.AsyncMailer.verify`."""
        thread = self._started()
        thread.call(thread.mailer.verify)

    def close(self, timeout: float | EllipsisType | None = ...) -> None:
        """Wait until nothing is in flight, and close all connections.  Nothing more is taken.

        A caller that is interrupted meanwhile closes them at once.

        Args:
            timeout: seconds after which it does not wait any more: each message in flight ends with the state that is
                known of it, and the log says how many there were; None: without limit; by default the mailer's
                `close_timeout`.
        """
        thread = self._thread
        if thread is not None:
            thread.check()
        with starting():
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

    def _started(self) -> LoopThread:
        """Return the loop's thread, started if need be."""
        with starting():
            self._check()
            thread = self._thread
            if thread is not None and thread.mine:
                return thread
            if thread is not None:
                # A fork: the thread and the connections are the parent's.
                self._mailer = AsyncMailer(self._relay, **self._options)
            try:
                self._thread = thread = start(self._mailer)
            except BaseException:
                # The thread may have begun all the same, and closes the mailer that it was given.
                self._mailer = AsyncMailer(self._relay, **self._options)
                raise
            weakref.finalize(self, thread.forsake).atexit = False
            return thread


class _Feed:
    """The items and deliveries between a thread that loops over `send_all`, and the loop's thread.

    Attributes:
        bulk: the bulk send, which belongs to the loop's thread.
        told: deliveries: the loop's thread puts them in, the other one takes them out.
        met: when the two threads have met last, as `time.monotonic()`.
    """

    def __init__(self, thread: LoopThread, in_order: bool, timeout: float | None) -> None:
        self._thread = thread
        self._batch: deque[QueuedMessage | Delivery[Any]] = (
            deque()
        )  # what the iterable gave: the loop's thread takes it out
        self.told: deque[Delivery[Any]] = deque()
        self.bulk = thread.call(self._begin, in_order, timeout)
        self.met = time.monotonic()
        self._meetings = 0

    async def _begin(self, in_order: bool, timeout: float | None) -> BulkSend:
        return manager_of(self._thread.mailer).bulk_send(in_order=in_order, timeout=timeout)

    def put(self, item: Any) -> None:
        """Hand over an item, now or in a moment."""
        self._batch.append(self.bulk.prepared(item))
        if len(self._batch) >= BATCH or time.monotonic() - self.met > PATIENCE:
            self.meet(self.bulk.hand_over)
        elif len(self._batch) == 1:
            # The next one may be long in coming.
            self._thread.soon(self._wait, self._meetings)

    def meet(
        self,
        function: Callable[[deque[QueuedMessage | Delivery[Any]], deque[Delivery[Any]]], Coroutine[Any, Any, None]],
    ) -> None:
        """Have the loop's thread take the items of the batch, and put in the deliveries that are known."""
        self._meetings += 1
        try:
            self._thread.call(function, self._batch, self.told)
        except SMTPStateError:
            if not self._thread.ended:
                raise
            self._thread.join()  # nothing changes any more then
            self.bulk.finish(self._batch, self.told)
        self.met = time.monotonic()

    def leave(self) -> None:
        """Say that the caller left its loop.  This may be called in any thread, and must not wait."""
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
