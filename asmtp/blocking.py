"""Mailer: AsyncMailer for code that blocks, and for any number of threads.

Its connections need a loop that keeps running, so it has one on a background thread, through anyio's blocking portal.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import threading
import time
import weakref
from collections.abc import Awaitable, Callable, Generator, Iterable, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

import anyio
from anyio.from_thread import BlockingPortal

from asmtp.body import Content
from asmtp.delivery import Delivery, Receipt
from asmtp.errors import SMTPStateError
from asmtp.mailer import AsyncMailer, MailerOptions, Statistics
from asmtp.protocol.envelope import Envelope
from asmtp.run import Run
from asmtp.url import Relay

__all__ = ["Mailer"]

T = TypeVar("T")

BATCH = 64
"""Messages handed to the loop's thread at a time: to hand over one costs more than to send it."""

PATIENCE = 0.005
"""Seconds after which a batch is handed over, however small it is."""


class Mailer:
    """Sends messages over a pool of connections, blocking; safe to share by any number of threads.

    The thread is started by the first call, so an object made before a fork works in the children.  As a context
    manager it waits for what is in flight on leaving, and closes its connections; at the end of the program it does
    so by itself.

    Args:
        relay, options: as for :class:`~asmtp.AsyncMailer`.

    Raises:
        ValueError, TypeError: an argument is wrong.
    """

    def __init__(
        self, relay: str | Relay | Sequence[str | Relay] | None = None, **options: Unpack[MailerOptions]
    ) -> None:
        self._relay = relay
        self._options = options
        self._mailer = AsyncMailer(relay, **options)
        self._lock = threading.Lock()
        self._portal: BlockingPortal | None = None
        self._thread: threading.Thread | None = None
        self._process = 0
        self._closed = False

    def __repr__(self) -> str:
        return repr(self._mailer).replace(type(self._mailer).__name__, type(self).__name__, 1)

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
    ) -> Receipt:
        """Send one message, and wait until a server has taken it: see :meth:`asmtp.AsyncMailer.send`."""
        return self._call(
            lambda: self._mailer.send(
                message,
                sender,
                recipients,
                mail_options=mail_options,
                rcpt_options=rcpt_options,
                require_all=require_all,
            )
        )

    def send_all(self, messages: Iterable[Any], *, in_order: bool = False) -> Generator[Delivery, None, None]:
        """Send many messages, and tell of each what became of it: see :meth:`asmtp.AsyncMailer.send_all`.

        The iterable is asked in the calling thread, and may block.  Leaving the loop ends the run: what is in flight is
        finished, and :meth:`drain` returns what is known of it.
        """
        if not hasattr(messages, "__iter__"):
            raise TypeError(f"messages must be an iterable, not {type(messages).__name__}")
        return self._send_all(messages, in_order)

    def _send_all(self, messages: Iterable[Any], in_order: bool) -> Generator[Delivery, None, None]:
        run = self._call(self._begin, in_order)
        try:
            batch: list[Any] = []
            handed = time.monotonic()
            for item in messages:
                batch.append(item)
                if len(batch) == BATCH or time.monotonic() - handed > PATIENCE:
                    yield from self._call(run.exchange, batch)
                    batch = []
                    handed = time.monotonic()
            yield from self._call(run.exchange, batch)
            while told := self._call(run.remaining):
                yield from told
        finally:
            self._call(self._end, run)

    async def _begin(self, in_order: bool) -> Run:
        return self._mailer.run(in_order=in_order)

    async def _end(self, run: Run) -> None:
        run.abandon()

    def drain(self) -> list[Delivery]:
        """Wait until nothing is in flight: see :meth:`asmtp.AsyncMailer.drain`."""
        return self._call(self._mailer.drain)

    def close(self) -> None:
        """Wait until nothing is in flight, and close all connections.  Nothing more is taken."""
        with self._lock:
            self._closed = True
            portal, self._portal = self._portal, None
            mine = self._process == os.getpid()
        if portal is not None and mine:
            assert self._thread is not None
            try:
                portal.call(self._mailer.aclose)
            finally:
                portal.call(portal.stop)
                self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None and not issubclass(kind, Exception) and self._portal is not None:
            self._portal.call(self._mailer.abort)
        self.close()

    # ---- the thread -------------------------------------------------------------------------

    def _call(self, function: Callable[..., Awaitable[T]], *args: Any) -> T:
        """Call in the loop's thread; who is interrupted takes the call back."""
        future: Future[T] = self._started().start_task_soon(function, *args)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def _started(self) -> BlockingPortal:
        """The way into the loop's thread."""
        with self._lock:
            if self._closed:
                raise SMTPStateError("the mailer was closed")
            if self._portal is not None and self._process == os.getpid():
                return self._portal
            if self._portal is not None:
                # A fork: the thread and the connections are the parent's.
                self._mailer = AsyncMailer(self._relay, **self._options)
            self._process = os.getpid()
            ready: Future[BlockingPortal] = Future()
            # A daemon, so that a program that forgets to close it ends; what is to be said at the end, `_at_exit` says.
            self._thread = threading.Thread(target=_live, args=(ready,), name="asmtp mailer", daemon=True)
            self._thread.start()
            self._portal = ready.result()
            weakref.finalize(self, _left, self._portal, self._mailer, self._process).atexit = False
            _alive.add(self)
            return self._portal


def _live(ready: Future[BlockingPortal]) -> None:
    """What the background thread does."""

    async def serve() -> None:
        async with BlockingPortal() as portal:
            ready.set_result(portal)
            await portal.sleep_until_stopped()

    anyio.run(serve)


_alive: weakref.WeakSet[Mailer] = weakref.WeakSet()


@atexit.register
def _at_exit() -> None:
    """The program ends.  The threads are daemons, and go on until after this."""
    for mailer in list(_alive):
        mailer.close()


def _left(portal: BlockingPortal, mailer: AsyncMailer, process: int) -> None:
    """Nobody has the Mailer any more.  This may be called in any thread, and must not wait."""
    if process == os.getpid():
        with contextlib.suppress(RuntimeError):  # it was closed
            portal.start_task_soon(_leave, portal, mailer)


async def _leave(portal: BlockingPortal, mailer: AsyncMailer) -> None:
    try:
        await mailer.aclose()
    finally:
        await portal.stop()
