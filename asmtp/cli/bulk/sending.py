"""Messages from the sources through a mailer, with a journal that is never behind what a server may have."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any, TypeVar

import anyio.to_thread

from asmtp.cli.bulk.account import Outcome, outcomes_of
from asmtp.cli.bulk.journal import Journal, JournalError
from asmtp.cli.bulk.sources import Item, Sources
from asmtp.cli.bulk.tally import Tally
from asmtp.cli.bulk.watching import Watching
from asmtp.errors import SMTPException, SMTPNotSupportedError, SMTPStateError
from asmtp.mailer.delivery import Delivery
from asmtp.mailer.mailer import AsyncMailer, manager_of
from asmtp.protocol.envelope import Envelope

__all__ = ["AHEAD", "Sending", "left"]

BATCH = 64
"""Messages that are read at a time, at most."""

BATCH_OCTETS = 1 << 22
"""Octets of content in a batch, about."""

AHEAD = 32
"""Messages that may wait for their turn, so that no connection is short of them, unless there is a rate."""

SOON = 0.1
"""Seconds after which it looks again whether more may be begun."""

HOPELESS = 100
"""Messages that come to nothing, one after the other, before all is given up."""

T = TypeVar("T")


class Sending:
    """Sends the messages of the sources, and keeps account of them.

    Args:
        mailer: sends them; it is closed at the end.
        again: send messages that are in doubt, too.
        ahead: messages that may wait inside of the mailer.
        watching: is told of the mailer's events.

    Attributes:
        say: is told of each recipient that is refused.
        interrupted: whether a signal came.
    """

    def __init__(
        self,
        mailer: AsyncMailer,
        sources: Sources,
        journal: Journal,
        tally: Tally,
        *,
        again: bool = False,
        ahead: int = AHEAD,
        watching: Watching | None = None,
    ) -> None:
        self.say: Callable[[str], None] = lambda line: None
        self.interrupted = False
        self._mailer = mailer
        self._items = iter(sources)
        self._journal = journal
        self._tally = tally
        self._again = again
        self._ahead = ahead
        self._watching = watching or Watching()
        self._begun: dict[int, tuple[Item, Envelope]] = {}  # not handed to the mailer yet; by id of the envelope
        self._handed: dict[int, tuple[Item, Envelope]] = {}
        self._hopeless = 0
        self._closing: asyncio.Task[None] | None = None
        self._room: asyncio.Future[None] | None = None
        self._noted = asyncio.Event()  # something is to be written to the journal
        self._waiting: list[asyncio.Future[None]] = []  # of tasks that wait until it is on the disk
        self._over = False

    # ---- the whole --------------------------------------------------------------------------

    async def run(self) -> None:
        """Send everything, or until it is interrupted."""
        keeper = asyncio.get_running_loop().create_task(self._keep())
        outgoing = self._outgoing()
        with self._signals():
            try:
                async with self._mailer:
                    with contextlib.suppress(SMTPStateError):  # `stop` has closed the mailer
                        async for delivery in self._mailer.send_all(outgoing):
                            self._arrived(delivery)
                if self._closing is not None:
                    await self._closing
            finally:
                with contextlib.suppress(RuntimeError):  # it waits for a thread, and is not waited for any more
                    await outgoing.aclose()
                self._withdraw()
                self._over = True
                self._noted.set()
                await keeper
                with contextlib.suppress(ValueError):  # a thread still reads, and is not waited for any more
                    self._items.close()
                self._tally.ended = self._tally.clock()

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        signals = [signal.SIGINT, signal.SIGTERM]
        hangup = getattr(signal, "SIGHUP", None)  # Windows has none
        if hangup is not None and signal.getsignal(hangup) is not signal.SIG_IGN:  # as nohup has it
            signals.append(hangup)
        with contextlib.suppress(NotImplementedError, ValueError, RuntimeError):  # Windows; not the main thread
            for number in signals:
                loop.add_signal_handler(number, self.interrupt, f"interrupted by {number.name}")
        try:
            yield
        finally:
            for number in signals:
                with contextlib.suppress(NotImplementedError, ValueError, RuntimeError):
                    loop.remove_signal_handler(number)

    def interrupt(self, why: str) -> None:
        """Begin nothing more, and wait for the messages in flight; the second time, do not wait."""
        if self.interrupted:
            manager_of(self._mailer).cut()
        self.interrupted = True
        self.stop(why)

    def stop(self, why: str) -> None:
        """Begin nothing more, and wait for the messages in flight."""
        self._tally.stopped = self._tally.stopped or why
        if self._closing is None and not self._over:
            self._closing = asyncio.get_running_loop().create_task(self._mailer.aclose())

    # ---- what goes out ----------------------------------------------------------------------

    async def _outgoing(self) -> AsyncGenerator[Envelope, None]:
        """Yield the envelopes to send.  Before the mailer gets one, the journal on the disk says that it is begun."""
        read: deque[Item] = deque()
        while True:
            if not read:
                read.extend(await _in_thread(_batch, self._items, BATCH))
                if not read:
                    return
            free = await self._turn()
            ready: list[Envelope] = []
            while read and len(ready) < free:
                envelope = self._prepared(read.popleft())
                if envelope is not None:
                    ready.append(envelope)
            if ready and not await self._durable():
                return
            for envelope in ready:
                self._handed[id(envelope)] = self._begun.pop(id(envelope))
                yield envelope

    def _prepared(self, item: Item) -> Envelope | None:
        """Return the envelope for the recipients that are left, noted as begun; None if nobody is left."""
        self._tally.octets += item.octets
        if item.envelope is None:
            self._tally.broken(item.name, item.error)
            return None
        envelope = left(self._journal, item, item.envelope, self._tally, again=self._again)
        if envelope is not None:
            self._begun[id(envelope)] = item, envelope
        return envelope

    @property
    def _few(self) -> bool:
        """Tell whether only as much is begun as the connections have under way: content goes by DATA, one by one."""
        return self._journal.is_open and not self._watching.chunking

    def _free(self) -> int:
        """Return how many messages may be begun now: those without an outcome are in doubt after a crash."""
        stats = self._mailer.stats
        free = self._ahead - stats.waiting
        # One for each connection, and one whose envelope goes with the content before it.
        return min(free, max(2, stats.open + 1) - len(self._handed)) if self._few else free

    async def _turn(self) -> int:
        """Wait until a message may be begun; return how many may."""
        free = self._free()
        while free < 1 or (self._room is not None and not self._enough(free)):
            self._room = asyncio.get_running_loop().create_future()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(SOON):  # a message that waits for the rate goes untold
                    await self._room
            free = self._free()
        self._room = None
        return free

    def _enough(self, free: int) -> bool:
        """Tell whether enough may be begun to go on: not for one message, if many may be under way."""
        return free >= (1 if self._few else self._ahead // 2)

    # ---- what comes back --------------------------------------------------------------------

    def _arrived(self, delivery: Delivery[Any]) -> None:
        item, envelope = self._handed.pop(id(delivery.item))
        outcomes = outcomes_of(delivery, envelope.recipients)
        self._ended(item, outcomes)
        self._tally.arrived(item.name, delivery.state, outcomes)
        for recipient, outcome in outcomes.items():
            if outcome.state == "refused":
                self.say(f"refused: {item.name}: {recipient}: {outcome}")
        if self._room is not None and not self._room.done() and self._enough(self._free()):
            self._room.set_result(None)
        # If the message itself is to blame, or its file, that is no sign of a server that cannot be used.
        of_server = isinstance(delivery.error, SMTPException) and not isinstance(delivery.error, SMTPNotSupportedError)
        self._hopeless = self._hopeless + 1 if delivery.state == "not_sent" and of_server else 0
        if self._hopeless >= HOPELESS:
            self.stop(f"{HOPELESS} messages one after the other came to nothing")

    def _withdraw(self) -> None:
        """Note that the messages that were begun and not handed over were not sent."""
        for item, envelope in self._begun.values():
            self._ended(item, dict.fromkeys(envelope.recipients, Outcome("not_sent", None, "stopped before")))
        self._begun.clear()

    def _ended(self, item: Item, outcomes: dict[str, Outcome]) -> None:
        self._journal.ended(item.key, outcomes)
        self._noted.set()

    # ---- the journal's file -----------------------------------------------------------------

    async def _durable(self) -> bool:
        """Wait until the journal's notes are on the disk; return whether they are."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        self._noted.set()
        try:
            await future
        except JournalError:
            return False
        return True

    async def _keep(self) -> None:
        """Write to the journal, each time all that was noted meanwhile."""
        while not self._over or self._noted.is_set():
            await self._noted.wait()
            self._noted.clear()
            waiting, self._waiting = self._waiting, []
            error: JournalError | None = None
            try:
                if self._journal.is_open:
                    await anyio.to_thread.run_sync(self._journal.write, self._journal.take())
            except JournalError as caught:
                error = caught
                self.stop(str(error))
            for future in waiting:
                if future.done():
                    continue
                if error is None:
                    future.set_result(None)
                else:
                    future.set_exception(error)


def left(journal: Journal, item: Item, envelope: Envelope, tally: Tally, *, again: bool) -> Envelope | None:
    """Return the envelope for the recipients that are left, noted as begun; None if nobody is left.

    Args:
        again: those in doubt are left, too.
    """
    standing = journal.standing(item.key, envelope.recipients)
    if again:
        standing = standing._replace(left=standing.left + standing.in_doubt, in_doubt=())
    if not standing.left:
        tally.skipped(standing)
        return None
    tally.standing(standing)
    if len(standing.left) < len(envelope.recipients):
        envelope = envelope.only([place for place, who in enumerate(envelope.recipients) if who in standing.left])
    journal.begun(item.key, envelope.recipients)
    return envelope


def _batch(items: Iterator[Item], count: int) -> list[Item]:
    """Read so many messages, or fewer if they are large."""
    batch: list[Item] = []
    octets = 0
    for item in items:
        batch.append(item)
        octets += item.octets
        if len(batch) >= count or octets >= BATCH_OCTETS:
            break
    return batch


async def _in_thread(work: Callable[..., T], *arguments: Any) -> T:
    """Call a function in a thread; if the caller is cancelled, wait for the end: it must not run twice at a time."""
    task = asyncio.ensure_future(anyio.to_thread.run_sync(work, *arguments))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise
