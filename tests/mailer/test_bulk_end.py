"""AsyncMailer.send_all left early: a break, a cancellation, a mailer that is closed.  Nothing is unaccounted for."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

import asmtp
from asmtp import AsyncMailer, Delivery, Retry, SMTPStateError
from tests.conftest import LOOPS
from tests.fakes.clock import now
from tests.fakes.people import SENDER, WHO
from tests.fakes.relay import SHAPES, Relay, relaying
from tests.mailer.mailing import agree, answering, item, items, mailer, name, till


class Endless:
    """Messages without an end, synchronous or not; knows which it gave, and when the mailer left it.

    Args:
        most: after so many it waits for ever, which `waits` tells of.
    """

    def __init__(self, *, synchronous: bool = True, most: int | None = None) -> None:
        self.given = 0
        self.closed = False
        self.waits = asyncio.Event()
        self.messages: Any = self._messages() if synchronous else self._asynchronous(most)

    def _messages(self) -> Iterator[Any]:
        while True:
            self.given += 1
            yield item(self.given - 1)

    async def _asynchronous(self, most: int | None) -> AsyncIterator[Any]:
        try:
            while True:
                if self.given == most:
                    self.waits.set()
                    await asyncio.Event().wait()
                self.given += 1
                yield item(self.given - 1)
        except asyncio.CancelledError:
            await asyncio.sleep(0.02)  # what it has to tidy up takes a while
            self.closed = True
            raise


async def some(deliveries: Any, count: int) -> list[Delivery[Any]]:
    """Return some deliveries of a loop, and leave it."""
    told: list[Delivery[Any]] = []
    async for delivery in deliveries:
        told.append(delivery)
        if len(told) == count:
            break
    return told


async def finished(posting: AsyncMailer) -> None:
    """Check that nothing is under way, and that `drain` has nothing more to tell."""
    assert posting.stats.in_flight == posting.stats.waiting == 0
    assert await posting.drain() == []


# ---- break ------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_order", [False, True])
@pytest.mark.parametrize("synchronous", [False, True])
async def test_break_and_drain(synchronous: bool, in_order: bool, shape: tuple[str, ...]) -> None:
    """The loop and `drain` together tell of every message that was pulled."""
    endless = Endless(synchronous=synchronous)
    async with relaying(Relay(shape)) as relay, mailer(relay, connections=2, window=20) as posting:
        told = await some(posting.send_all(endless.messages, in_order=in_order), 30)
        given = endless.given
        rest = await posting.drain()
        assert endless.given == given  # no more are asked for
        states = agree(relay, told + rest, given)
        assert set(states) <= {"sent", "not_sent"}
        assert states["sent"] >= 30
        assert len(rest) <= 40
        await finished(posting)
        await posting.send(b"hi", SENDER, WHO)  # it goes on


async def test_left_with_messages_in_flight() -> None:
    """`drain` waits until the messages in flight are done."""
    endless = Endless()
    told: list[Delivery[Any]] = []

    def answer(verb: str, line: str) -> None:
        if verb == "." and len(relay.letters) > 15:
            relay.hold = 0

    async def consume() -> None:
        async for delivery in posting.send_all(endless.messages):
            told.append(delivery)

    async with relaying(Relay(SHAPES["both"], answer=answer)) as relay:  # noqa: SIM117
        async with mailer(relay, connections=1, window=10) as posting:
            consuming = asyncio.create_task(consume())
            await relay.held.wait()
            assert posting.stats.in_flight
            consuming.cancel()
            await asyncio.wait([consuming])
            del consuming
            draining = asyncio.create_task(posting.drain())
            await asyncio.sleep(0.01)
            assert not draining.done()
            relay.release()
            rest = await draining
            states = agree(relay, told + rest, endless.given)
            assert states["sent"] > 15


async def test_what_was_not_begun_says_so() -> None:
    async with relaying(Relay(hold=0)) as relay:
        posting = mailer(relay)
        deliveries = posting.send_all(items(10))
        asking = asyncio.create_task(some(deliveries, 1))
        await relay.held.wait()
        told = [*await deliveries.aclose(), *await asking]
        assert agree(relay, told, 10) == {"not_sent": 10}
        for delivery in told:
            assert isinstance(delivery.error, asmtp.SMTPStateError)
            assert delivery.error.state == "not_sent"
            assert "not begun" in str(delivery.error)
        posting.abort()


async def test_an_exception_in_the_loop() -> None:
    endless = Endless()
    told: list[Delivery[Any]] = []
    async with relaying(Relay(SHAPES["both"])) as relay, mailer(relay) as posting:
        with pytest.raises(ZeroDivisionError):
            async for delivery in posting.send_all(endless.messages):
                told.append(delivery)
                if len(told) == 10:
                    raise ZeroDivisionError
        rest = await posting.drain()
        agree(relay, told + rest, endless.given)
        await finished(posting)


async def test_break_and_leave_the_mailer() -> None:
    """The context manager waits; afterwards `drain` still has the deliveries that the loop did not get."""
    endless = Endless()
    async with relaying(Relay(SHAPES["both"])) as relay:
        async with mailer(relay) as posting:
            told = await some(posting.send_all(endless.messages), 10)
        rest = await posting.drain()
        agree(relay, told + rest, endless.given)
        assert "QUIT" in relay.verbs


async def test_several_that_were_left() -> None:
    async with relaying(Relay(SHAPES["both"])) as relay, mailer(relay, window=10) as posting:
        told: list[Delivery[Any]] = []
        for first in (0, 1000, 2000):
            told += await some(posting.send_all(map(item, range(first, first + 1000))), 7)
        told += await posting.drain()
        counted = Counter(map(name, told))
        assert set(counted.values()) == {1}
        taken = {letter.sender for letter in relay.letters}
        assert taken == {delivery.item[0] for delivery in told if delivery.ok}
        assert all(sorted(n for n in counted if n // 1000 == k)[0] == 1000 * k for k in range(3))
        await finished(posting)


async def test_a_loop_that_is_only_interrupted() -> None:
    """A caller who keeps the iterator can go on with it."""
    async with relaying(Relay(SHAPES["both"])) as relay, mailer(relay, window=10) as posting:
        deliveries = posting.send_all(items(200))
        told = await some(deliveries, 10)
        assert await posting.drain() == []
        told += await some(deliveries, 20)
        told += [delivery async for delivery in deliveries]
        assert agree(relay, told, 200) == {"sent": 200}


async def test_an_asynchronous_iterable_is_left_tidily() -> None:
    """If the iterable waits as the loop is left, it is cancelled; `drain` waits until it has cleaned up."""
    for leave in ("drain", "aclose", "iterator"):
        endless = Endless(synchronous=False, most=5)
        async with relaying(Relay(SHAPES["both"])) as relay, mailer(relay) as posting:
            deliveries = posting.send_all(endless.messages)
            told = await some(deliveries, 3)
            await endless.waits.wait()
            assert not endless.closed
            if leave == "iterator":
                await deliveries.aclose()
            elif leave == "aclose":
                await posting.aclose()
            else:
                del deliveries
                told += await posting.drain()
                agree(relay, told, endless.given)
            assert endless.closed


async def test_an_asynchronous_iterable_that_does_not_wait_is_the_callers() -> None:
    """If the iterable is not asked at the moment, it is not cancelled: its owner can go on with it."""
    endless = Endless(synchronous=False)
    async with relaying(Relay(SHAPES["both"])) as relay, mailer(relay, window=10) as posting:
        told = await some(posting.send_all(endless.messages), 3)
        told += await posting.drain()
        given = endless.given
        agree(relay, told, given)
        assert not endless.closed
        assert await anext(endless.messages) == item(given)
        await endless.messages.aclose()


async def test_an_iterable_that_does_not_care_that_it_is_cancelled() -> None:
    """A message that the iterable gives then is told of as well, and not sent."""
    given = 0
    waits = asyncio.Event()

    async def stubborn() -> AsyncIterator[Any]:
        nonlocal given
        while True:
            if given == 5:
                waits.set()
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.Event().wait()
            given += 1
            yield item(given - 1)

    async with relaying(Relay(SHAPES["both"])) as relay, mailer(relay) as posting:
        deliveries = posting.send_all(messages := stubborn())
        told = await some(deliveries, 5)
        await waits.wait()
        told += await deliveries.aclose()
        assert agree(relay, told, given) == {"sent": 5, "not_sent": 1}
        await messages.aclose()  # type: ignore[attr-defined]


async def test_an_iterable_that_fails_when_it_is_cancelled() -> None:
    waits = asyncio.Event()

    async def failing() -> AsyncIterator[Any]:
        yield item(0)
        try:
            waits.set()
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise ZeroDivisionError from None

    async with relaying(Relay()) as relay, mailer(relay) as posting:
        deliveries = posting.send_all(failing())
        assert (await anext(deliveries)).ok
        await waits.wait()
        with pytest.raises(ZeroDivisionError):
            await deliveries.aclose()
        await finished(posting)
        waits.clear()
        deliveries = posting.send_all(failing())
        assert len(await some(deliveries, 1)) == 1
        await waits.wait()
        del deliveries
        await finished(posting)  # it is not told, as the loop was left


# ---- aclose -----------------------------------------------------------------------------------


@pytest.mark.parametrize("in_order", [False, True])
async def test_aclose_returns_the_rest(in_order: bool, shape: tuple[str, ...]) -> None:
    endless = Endless()
    async with relaying(Relay(shape)) as relay, mailer(relay, connections=1, window=30) as posting:
        deliveries = posting.send_all(endless.messages, in_order=in_order)
        told = await some(deliveries, 10)
        rest = await deliveries.aclose()
        agree(relay, told + rest, endless.given)
        if in_order:
            assert list(map(name, told + rest)) == list(range(endless.given))
        assert await deliveries.aclose() == []
        assert await some(deliveries, 1) == []
        await finished(posting)


async def test_aclose_with_contextlib() -> None:
    endless = Endless()
    async with relaying(Relay(SHAPES["both"])) as relay, mailer(relay) as posting:
        async with contextlib.aclosing(posting.send_all(endless.messages)) as deliveries:
            assert len(await some(deliveries, 10)) == 10
        await finished(posting)
        assert posting.stats.sent + posting.stats.not_sent == endless.given


async def test_aclose_while_another_task_asks() -> None:
    """Each delivery is told to one of the two tasks; neither waits for ever."""
    async with relaying(Relay(SHAPES["both"], hold=2)) as relay, mailer(relay, connections=1, window=10) as posting:
        deliveries = posting.send_all(endless := Endless().messages)
        asking = [asyncio.create_task(some(deliveries, 1)) for _ in range(3)]
        await relay.held.wait()
        closing = asyncio.create_task(deliveries.aclose())
        await asyncio.sleep(0.01)
        relay.release()
        told = sum(await asyncio.wait_for(asyncio.gather(*asking), 5), [])
        rest = await asyncio.wait_for(closing, 5)
        agree(relay, told + rest, 10)
        del endless


@pytest.mark.parametrize("in_order", [False, True])
async def test_aclose_when_the_iterable_has_failed(in_order: bool) -> None:
    """aclose() raises the iterable's exception; the deliveries that it would have returned are not lost."""

    def breaking() -> Iterator[Any]:
        yield from items(10)
        raise ZeroDivisionError

    async with relaying(Relay(SHAPES["both"])) as relay, mailer(relay) as posting:
        deliveries = posting.send_all(breaking(), in_order=in_order)
        told = await some(deliveries, 4)
        await till(lambda: not posting.stats.waiting, 0)  # what was not begun would be given up
        with pytest.raises(ZeroDivisionError):
            await deliveries.aclose()
        assert agree(relay, told + await posting.drain(), 10) == {"sent": 10}


@pytest.mark.virtual_clock
async def test_aclose_that_is_cancelled() -> None:
    """aclose() can be called again."""
    async with relaying(Relay(SHAPES["both"], latency=10)) as relay, mailer(relay) as posting:
        deliveries = posting.send_all(items(100))
        asking = asyncio.create_task(anext(deliveries))
        await till(lambda: len(relay.reads) > 1, 1)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(deliveries.aclose(), 1)
        rest = await deliveries.aclose()
        agree(relay, [await asking, *rest], 100)


@pytest.mark.virtual_clock
async def test_those_that_wait_for_another_try_are_not_waited_for() -> None:
    """Their deliveries tell that the server refused them for now."""
    relay = Relay(SHAPES["both"], answer=answering(RCPT_b1="451 4.2.0 later", MAIL="", RCPT_c="451 4.2.0 later"))
    relay.answer = lambda verb, line: "451 4.2.0 later" if verb == "RCPT" and ("<b1" in line or "<c" in line) else None
    given = [item(0), item(1), (SENDER, [WHO, "c@y.example"], b"hi")]
    async with relaying(relay), mailer(relay, retry=Retry(initial=30, jitter=0)) as posting:
        deliveries = posting.send_all(given)
        assert (await anext(deliveries)).ok
        await till(lambda: posting.stats.waiting == 2)
        draining = asyncio.create_task(posting.drain())
        await asyncio.sleep(0.1)
        refused, partly = sorted(await deliveries.aclose(), key=lambda delivery: delivery.state)
        await draining  # in which others may wait
        assert now() < 5
        assert refused.state == "refused"
        assert isinstance(refused.error, asmtp.SMTPRecipientsRefused)
        assert refused.error.transient
        assert partly.state == "sent"
        assert partly.receipt is not None
        assert partly.receipt.refused == {"c@y.example": (451, b"4.2.0 later")}
        assert partly.receipt.failed == {}


# ---- cancelled --------------------------------------------------------------------------------


@pytest.mark.parametrize("in_order", [False, True])
@pytest.mark.parametrize("synchronous", [False, True])
@pytest.mark.parametrize("after", [0, 1, 50])
async def test_the_consumer_is_cancelled(after: int, synchronous: bool, in_order: bool, shape: tuple[str, ...]) -> None:
    """Wherever the consumer is cancelled, `drain` accounts for every message that was pulled."""
    endless = Endless(synchronous=synchronous)
    told: list[Delivery[Any]] = []
    enough = asyncio.Event()

    async def consume() -> None:
        async for delivery in posting.send_all(endless.messages, in_order=in_order):
            told.append(delivery)
            if len(told) >= after:
                enough.set()

    async with relaying(Relay(shape)) as relay, mailer(relay, connections=2, window=20) as posting:
        consuming = asyncio.create_task(consume())
        if after:
            await enough.wait()
        else:
            await asyncio.sleep(0)
        consuming.cancel()
        with pytest.raises(asyncio.CancelledError):
            await consuming
        del consuming
        rest = await posting.drain()
        states = agree(relay, told + rest, endless.given)
        assert set(states) <= {"sent", "not_sent"}
        await finished(posting)


@pytest.mark.parametrize("shape", ["none", "both"])
async def test_the_consumer_is_cancelled_inside_the_context_manager(shape: str) -> None:
    """The mailer is closed at once, and every message is told of with the state that is known of it."""
    endless = Endless()
    told: list[Delivery[Any]] = []
    mailers: list[AsyncMailer] = []

    async def consume() -> None:
        async with mailer(relay, connections=2) as posting:
            mailers.append(posting)
            async for delivery in posting.send_all(endless.messages):
                told.append(delivery)

    async with relaying(Relay(SHAPES[shape])) as relay:
        consuming = asyncio.create_task(consume())
        await till(lambda: len(told) > 20, 0.001)
        relay.hold = 0
        await asyncio.sleep(0.01)
        consuming.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(consuming, 5)
        del consuming
        rest = await mailers[0].drain()
        states = agree(relay, told + rest, endless.given)
        assert set(states) <= {"sent", "not_sent", "in_doubt"}
        assert states["in_doubt"] or shape == "none"


async def test_a_time_limit_around_the_loop() -> None:
    endless = Endless()
    told: list[Delivery[Any]] = []
    async with relaying(Relay(SHAPES["both"], hold=5)) as relay, mailer(relay, connections=1) as posting:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                async for delivery in posting.send_all(endless.messages):
                    told.append(delivery)
        relay.release()
        rest = await posting.drain()
        agree(relay, told + rest, endless.given)


# ---- the mailer is closed ---------------------------------------------------------------------


@pytest.mark.parametrize("in_order", [False, True])
async def test_the_mailer_is_closed_during_a_run(in_order: bool, shape: tuple[str, ...]) -> None:
    """The loop tells of each message that was pulled, and then raises that this was not all."""
    endless = Endless()
    told: list[Delivery[Any]] = []

    async def consume() -> None:
        with pytest.raises(SMTPStateError, match="not all was taken: the mailer was closed"):
            async for delivery in posting.send_all(endless.messages, in_order=in_order):
                told.append(delivery)

    async with relaying(Relay(shape)) as relay:
        posting = mailer(relay, connections=2, window=20)
        consuming = asyncio.create_task(consume())
        await till(lambda: len(told) > 50, 0.001)
        await posting.aclose()
        await asyncio.wait_for(consuming, 5)
        assert set(agree(relay, told, endless.given)) <= {"sent", "not_sent"}
        assert await posting.drain() == []
        await relay.quiet()


@pytest.mark.parametrize("shape", ["none", "pipelining", "both"])
async def test_the_mailer_is_aborted_during_a_run(shape: str) -> None:
    endless = Endless()
    told: list[Delivery[Any]] = []

    async def consume() -> None:
        with pytest.raises(SMTPStateError, match="not all was taken: the mailer was closed"):
            async for delivery in posting.send_all(endless.messages):
                told.append(delivery)

    async with relaying(Relay(SHAPES[shape])) as relay:
        posting = mailer(relay, connections=2)
        consuming = asyncio.create_task(consume())
        await till(lambda: len(told) > 20, 0.001)
        relay.hold = 0
        await asyncio.sleep(0.01)
        posting.abort()
        await asyncio.wait_for(consuming, 5)
        states = agree(relay, told, endless.given)
        assert set(states) <= {"sent", "not_sent", "in_doubt"}
        await relay.quiet()


async def test_the_iterable_closes_the_mailer() -> None:
    def closing() -> Iterator[Any]:
        yield item(0)
        yield item(1)
        posting.abort()
        yield item(2)

    async with relaying(Relay()) as relay:
        posting = mailer(relay)
        told = []
        with pytest.raises(SMTPStateError, match="not all was taken"):
            async for delivery in posting.send_all(closing()):
                told.append(delivery)
        assert agree(relay, told, 3) == {"not_sent": 3}


async def test_one_that_was_never_begun() -> None:
    async with relaying(Relay()) as relay:
        posting = mailer(relay)
        deliveries = posting.send_all(items(3))
        await posting.aclose()
        with pytest.raises(SMTPStateError, match="not all was taken: the mailer was closed"):
            await anext(deliveries)
        with pytest.raises(StopAsyncIteration):
            await anext(deliveries)
        assert relay.connections == []


async def test_an_iterable_that_cleans_up_is_let_do_so() -> None:
    """The iterable is cancelled once, though the loop is left and the mailer is closed then."""
    log: list[str] = []

    async def source() -> AsyncIterator[Any]:
        try:
            yield item(0)
            await asyncio.sleep(60)
        finally:
            log.append("begun")
            await asyncio.sleep(0.01)
            log.append("done")

    async with relaying(Relay()) as relay:
        async with mailer(relay) as posting:
            async for _ in posting.send_all(source()):
                break
            await till(lambda: log, 0.001)
        assert log == ["begun", "done"]


# ---- nobody has it any more -------------------------------------------------------------------


async def test_it_is_collected_in_another_thread() -> None:
    """An iterator in a cycle is collected in whichever thread the collector runs."""
    endless = Endless()

    class Holder:
        pass

    async with relaying(Relay(SHAPES["both"])) as relay, mailer(relay, window=10) as posting:
        holder: Any = Holder()
        holder.itself = holder
        holder.deliveries = posting.send_all(endless.messages)
        told = await some(holder.deliveries, 5)
        gc.disable()
        try:
            del holder
            thread = threading.Thread(target=gc.collect)
            thread.start()
            await asyncio.to_thread(thread.join)
        finally:
            gc.enable()
        await till(lambda: not posting.stats.in_flight, 0.001)
        await asyncio.sleep(0.01)
        told += await posting.drain()
        agree(relay, told, endless.given)


@pytest.mark.parametrize("loop", LOOPS)
def test_it_is_collected_when_the_loop_is_closed(loop: str) -> None:
    kept: list[Any] = []

    async def main() -> None:
        async with relaying(Relay(SHAPES["both"])) as relay:
            posting = mailer(relay)
            kept.append(posting.send_all(Endless().messages))
            await some(kept[0], 5)
            posting.abort()
            await posting.drain()

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(main())
    kept.clear()
    gc.collect()


@pytest.mark.parametrize("loop", LOOPS)
def test_the_loop_ends_in_the_middle(loop: str) -> None:
    """A caller closes nothing: asyncio.run() cancels all tasks, which can be cancelled."""

    async def main() -> None:
        posting = mailer(Relay(host="127.0.0.1", port=9), retry=Retry(attempts=100, within=None))
        consuming = asyncio.create_task(some(posting.send_all(Endless().messages), 1000))
        await asyncio.sleep(0.01)
        assert not consuming.done()

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        runner.run(main())
    gc.collect()
