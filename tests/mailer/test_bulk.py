"""AsyncMailer.send_all: messages in, one Delivery[Any] for each out, and never more than a bounded number under way."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

import asmtp
from asmtp import Delivery, Envelope, Retry
from tests.fakes.clock import now
from tests.fakes.people import SENDER, WHO
from tests.fakes.relay import SHAPES, Relay, relaying
from tests.fakes.script import until
from tests.mailer.mailing import Gate, agree, answering, email, item, items, mailer, name, till


async def asynchronous(messages: Any, pause: float | None = 0) -> AsyncIterator[Any]:
    for message in messages:
        if pause is not None:
            await asyncio.sleep(pause)
        yield message


class Iterable:
    """Neither an iterator nor a generator."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Iterator[Any]:
        return items(self.count)


class Counted:
    """Messages without an end; counts how many the mailer has pulled."""

    def __init__(self, content: bytes | None = None) -> None:
        self.pulled = 0
        self.content = content

    def __iter__(self) -> Iterator[Any]:
        while True:
            self.pulled += 1
            yield item(self.pulled - 1, self.content)


# ---- what it takes ----------------------------------------------------------------------------

SOURCES: dict[str, Any] = {
    "list": lambda: list(items(30)),
    "iterator": lambda: items(30),
    "iterable": lambda: Iterable(30),
    "generator": lambda: (item(number) for number in range(30)),
    "async generator": lambda: asynchronous(items(30)),
    "async generator that never waits": lambda: asynchronous(items(30), None),
}


@pytest.mark.parametrize("in_order", [False, True])
@pytest.mark.parametrize("source", SOURCES)
async def test_iterables(source: str, in_order: bool, shape: tuple[str, ...]) -> None:
    async with relaying(Relay(shape)) as relay, mailer(relay) as posting:
        deliveries = [delivery async for delivery in posting.send_all(SOURCES[source](), in_order=in_order)]
        assert agree(relay, deliveries, 30) == {"sent": 30}
        if in_order:
            assert list(map(name, deliveries)) == list(range(30))


async def test_messages_of_every_kind() -> None:
    made = email()
    given: list[Any] = [
        made,
        Envelope(SENDER, [WHO, "c@y.example"], ["RET=HDRS"], content=b"enveloped"),
        (SENDER, WHO, "a str"),
        (SENDER, [WHO], bytearray(b"a bytearray")),
        (SENDER, [WHO], io.BytesIO(b"a file")),
        (SENDER, (who for who in [WHO]), asynchronous([b"in ", b"pieces"])),
        (SENDER, WHO, email(Subject="in a tuple")),
        (SENDER, WHO, b"large " * 50_000),
    ]
    async with relaying(Relay(SHAPES["both"])) as relay, mailer(relay) as posting:
        deliveries = [delivery async for delivery in posting.send_all(given, in_order=True)]
        assert [delivery.state for delivery in deliveries] == ["sent"] * len(given), deliveries
        contents = {letter.content for letter in relay.letters}
        assert {b"enveloped\r\n", b"a str\r\n", b"a bytearray\r\n", b"a file\r\n", b"in pieces\r\n"} <= contents
        assert len(contents) == len(given)
        assert max(map(len, contents)) == 300_002
    for delivery, what in zip(deliveries, given, strict=True):
        assert delivery.item is what
        assert delivery.envelope is not None
        assert list(delivery.envelope.recipients)[0] == WHO
    assert deliveries[1].envelope is given[1]


async def test_ok_says_to_a_type_checker_that_there_is_a_receipt() -> None:
    async with relaying(Relay()) as relay, mailer(relay) as posting:
        async for delivery in posting.send_all([("a@x.example", "b@y.example", b"hi"), ("a@x.example", "b\n", b"hi")]):
            if delivery.ok:
                assert delivery.receipt.complete
                assert delivery.item[1] == "b@y.example"
            else:
                assert delivery.error.args


async def test_nothing_to_send() -> None:
    async with relaying(Relay()) as relay, mailer(relay) as posting:
        assert [delivery async for delivery in posting.send_all(list[bytes]())] == []
        assert [delivery async for delivery in posting.send_all(asynchronous(list[bytes]()))] == []
        assert relay.connections == []


@pytest.mark.parametrize("messages", [None, 5, email])
async def test_what_is_no_iterable(messages: Any) -> None:
    async with relaying(Relay()) as relay, mailer(relay) as posting:
        with pytest.raises(TypeError, match="^messages must be an iterable or async iterable, not"):
            posting.send_all(messages)


async def test_an_iterator_that_has_ended_stays_so() -> None:
    async with relaying(Relay()) as relay, mailer(relay) as posting:
        deliveries = posting.send_all(items(3))
        assert len([delivery async for delivery in deliveries]) == 3
        assert [delivery async for delivery in deliveries] == []
        assert await deliveries.aclose() == []
        assert [delivery async for delivery in deliveries] == []


async def test_nothing_is_done_before_it_is_asked_for() -> None:
    counted = Counted()
    async with relaying(Relay()) as relay, mailer(relay) as posting:
        deliveries = posting.send_all(counted)
        await asyncio.sleep(0.01)
        assert counted.pulled == 0
        assert relay.connections == []
        assert await deliveries.aclose() == []
        assert counted.pulled == 0


# ---- what it tells ----------------------------------------------------------------------------


async def test_what_a_delivery_says(shape: tuple[str, ...]) -> None:
    """A delivery has one of four states, and the error says more."""
    answer = answering(RCPT_b1="550 5.1.1 no", RCPT_b2="451 4.2.0 later", RCPT_c="550 5.1.1 no")
    given: list[Any] = [item(0), item(1), item(2), (SENDER, [WHO, "c@y.example"], b"hi"), (SENDER, "b\n@y", b"hi")]
    async with relaying(Relay(shape, answer=answer)) as relay, mailer(relay, retry=None) as posting:
        sent, refused, transient, partly, wrong = [d async for d in posting.send_all(given, in_order=True)]
    assert [d.state for d in (sent, refused, transient, partly, wrong)] == [
        "sent", "refused", "refused", "sent", "not_sent",
    ]  # fmt: skip
    assert sent.ok
    assert sent.error is None
    assert sent.receipt is not None
    assert sent.receipt.complete
    assert sent.receipt.accepted["b0@y.example"].enhanced == "2.1.5"
    assert not refused.ok
    assert refused.receipt is None
    assert isinstance(refused.error, asmtp.SMTPRecipientsRefused)
    assert not refused.error.transient
    assert isinstance(transient.error, asmtp.SMTPRecipientsRefused)
    assert transient.error.transient
    assert partly.ok
    assert partly.receipt is not None
    assert partly.receipt.refused == {"c@y.example": (550, b"5.1.1 no")}
    assert isinstance(wrong.error, ValueError)
    assert str(wrong.error).startswith("recipients: ")
    assert wrong.envelope is None


@pytest.mark.parametrize("in_order", [False, True])
async def test_bad_items_between_good_ones(in_order: bool) -> None:
    """A bad item has an error of its own, and the other messages are sent."""
    bad: list[Any] = [
        None, 5, "a str", b"bytes", (), (SENDER, WHO), [SENDER, WHO, b"a list"], (SENDER, [], b"hi"),
        (SENDER, WHO, None),
        (SENDER, "b\r\n@y.example", b"hi"), (SENDER, WHO, "Grüße"), email(To=""), email(From=""), Envelope(SENDER, WHO),
        (SENDER, WHO, b"hi", ()), object(),
    ]  # fmt: skip
    mixed = [each for number, wrong in enumerate(bad) for each in (item(number), wrong)]
    async with relaying(Relay(SHAPES["both"])) as relay, mailer(relay) as posting:
        deliveries = [delivery async for delivery in posting.send_all(mixed, in_order=in_order)]
        good = [delivery for delivery in deliveries if delivery.ok]
        assert agree(relay, good, len(bad)) == {"sent": len(bad)}
        wrong = [delivery for delivery in deliveries if not delivery.ok]
        assert {delivery.state for delivery in wrong} == {"not_sent"}
        assert {type(delivery.error) for delivery in wrong} == {TypeError, ValueError, UnicodeEncodeError}
        assert sorted(id(delivery.item) for delivery in wrong) == sorted(map(id, bad))
        if in_order:
            assert [delivery.item for delivery in deliveries] == mixed
        assert posting.stats.not_sent == len(bad)


@pytest.mark.parametrize("in_order", [False, True])
async def test_nothing_but_bad_items(in_order: bool) -> None:
    async with relaying(Relay()) as relay, mailer(relay) as posting:
        deliveries = [delivery async for delivery in posting.send_all([None] * 1000, in_order=in_order)]
        assert len(deliveries) == 1000
        assert relay.connections == []


@pytest.mark.virtual_clock
async def test_in_order_and_as_they_are_done() -> None:
    """The server takes the first with the third try only; those behind it wait for it if they are told in order."""
    for in_order in (True, False):
        left = ["451 later", "451 later"]
        relay = Relay(answer=lambda verb, line: left.pop() if left and line.startswith("rcpt to:<b0@") else None)  # noqa: B023
        async with relaying(relay), mailer(relay, retry=Retry(jitter=0)) as posting:
            deliveries = [delivery async for delivery in posting.send_all(items(20), in_order=in_order)]
            assert agree(relay, deliveries, 20) == {"sent": 20}
            names = list(map(name, deliveries))
            assert names.index(0) == (0 if in_order else 19)
            assert (names == list(range(20))) == in_order


# ---- what the iterable raises -----------------------------------------------------------------


class Broken(Exception):
    pass


@pytest.mark.parametrize("kind", [Broken, asyncio.CancelledError])
@pytest.mark.parametrize("in_order", [False, True])
@pytest.mark.parametrize("synchronous", [False, True])
async def test_an_iterable_that_raises(synchronous: bool, in_order: bool, kind: type[BaseException]) -> None:
    """The messages before are sent and told of; then the loop raises the iterable's exception: it does not just end."""

    def breaking() -> Iterator[Any]:
        yield from items(10)
        raise kind("half-way")

    told = []
    async with relaying(Relay(SHAPES["both"])) as relay, mailer(relay) as posting:
        deliveries = posting.send_all(breaking() if synchronous else asynchronous(breaking()), in_order=in_order)
        with pytest.raises(kind):
            async for delivery in deliveries:
                told.append(delivery)
        assert agree(relay, told, 10) == {"sent": 10}
        assert [delivery async for delivery in deliveries] == []  # it is raised once
        await posting.send(b"hi", SENDER, WHO)  # and the mailer is as good as before


async def test_an_iterable_that_raises_at_once() -> None:
    def breaking() -> Iterator[Any]:
        raise Broken
        yield

    async with relaying(Relay()) as relay, mailer(relay) as posting:
        with pytest.raises(Broken):
            async for _ in posting.send_all(breaking()):
                pass
        with pytest.raises(Broken):
            async for _ in posting.send_all(asynchronous(breaking())):
                pass


# ---- how far ahead it pulls -------------------------------------------------------------------


@pytest.mark.sampled
@pytest.mark.parametrize("in_order", [False, True])
@pytest.mark.parametrize("synchronous", [False, True])
@pytest.mark.parametrize(("connections", "window"), [(1, 1), (1, 10), (4, 100), (2, 50)])
async def test_it_pulls_so_many_messages_ahead(
    connections: int, window: int, synchronous: bool, in_order: bool
) -> None:
    """The mailer pulls connections * window messages if the server says nothing, or the caller does not ask."""
    counted = Counted()
    most = connections * window
    relay = Relay(SHAPES["both"], hold=2)
    async with relaying(relay), mailer(relay, connections=connections, window=window) as posting:
        deliveries = posting.send_all(counted if synchronous else asynchronous(counted, None), in_order=in_order)
        asking = asyncio.create_task(anext(deliveries))
        await relay.held.wait()
        await till(lambda: counted.pulled >= most)
        await asyncio.sleep(0.01)
        assert counted.pulled == most
        assert posting.stats.in_flight == most
        relay.release()
        assert (await asking).ok
        await till(lambda: posting.stats.in_flight == 0)
        await asyncio.sleep(0.01)
        assert counted.pulled <= most + 1  # the caller asks for no more
        for _ in range(3 * most):
            assert (await anext(deliveries)).ok
        assert 3 * most < counted.pulled <= 4 * most + 1
        rest = await deliveries.aclose()
        assert len(rest) + 3 * most + 1 == counted.pulled


@pytest.mark.virtual_clock
async def test_in_order_it_does_not_run_ahead_of_one_that_is_late() -> None:
    """The messages behind the first are done, and kept: they count as well."""
    counted = Counted()
    relay = Relay(SHAPES["both"], answer=answering(RCPT_b0="451 later"))
    async with relaying(relay), mailer(relay, connections=2, window=20, retry=Retry(initial=20, jitter=0)) as posting:
        deliveries = posting.send_all(counted, in_order=True)
        asking = asyncio.create_task(anext(deliveries))
        await asyncio.sleep(15)
        assert len(relay.letters) == 39
        assert counted.pulled == 40
        assert (await asking).state == "refused"
        assert now() > 20
        await deliveries.aclose()


LARGE = b"x" * 60_000


@pytest.mark.sampled
@pytest.mark.parametrize("in_order", [False, True])
@pytest.mark.parametrize("kind", ["bytes", "EmailMessage"])
async def test_it_pulls_so_many_octets_ahead(kind: str, in_order: bool) -> None:
    """The mailer pulls a mebibyte for each connection: content in flight, and that of deliveries not yet told."""
    pulled = 0

    def endless() -> Iterator[Any]:
        nonlocal pulled
        while True:
            pulled += 1
            yield (SENDER, WHO, bytes(LARGE)) if kind == "bytes" else email("x" * 70 + "\n" + "line\n" * 12_000)

    most = (1 << 20) // 60_000 + 1
    async with relaying(Relay(SHAPES["both"], hold=2)) as relay, mailer(relay, connections=1) as posting:
        deliveries = posting.send_all(endless(), in_order=in_order)
        asking = asyncio.create_task(anext(deliveries))
        await relay.held.wait()
        await till(lambda: pulled > 10)
        await asyncio.sleep(0.01)
        assert 10 < pulled <= most
        relay.release()
        await asking
        await until(lambda: posting.stats.in_flight == 0)
        await asyncio.sleep(0.05)
        assert pulled <= most + 1
        for _ in range(50):
            await anext(deliveries)
        assert 50 < pulled <= 51 + most
        await deliveries.aclose()


async def test_large_messages_all_the_same_keep_every_connection_busy() -> None:
    """The mailer pulls two messages for each connection, however large they are."""
    pulled = 0

    def endless() -> Iterator[Any]:
        nonlocal pulled
        while True:
            pulled += 1
            yield SENDER, WHO, b"x" * 3_000_000

    async with relaying(Relay(hold=0)) as relay, mailer(relay, connections=3) as posting:
        deliveries = posting.send_all(endless())
        asking = asyncio.create_task(anext(deliveries))
        await relay.held.wait()
        await till(lambda: pulled >= 6)
        await asyncio.sleep(0.01)
        assert pulled == 6
        asking.cancel()
        posting.abort()
        await asyncio.wait([asking])
        assert {delivery.state for delivery in await deliveries.aclose()} == {"not_sent"}


@pytest.mark.virtual_clock
async def test_a_slow_consumer() -> None:
    """The consumer sets the pace, and nothing piles up."""
    counted = Counted()
    async with relaying(Relay(SHAPES["both"])) as relay, mailer(relay, connections=1, window=10) as posting:
        deliveries = posting.send_all(counted)
        for told in range(1, 100):
            assert (await anext(deliveries)).ok
            await asyncio.sleep(1)
            assert counted.pulled - told <= 10
        assert posting.stats.sent <= counted.pulled
        await deliveries.aclose()


@pytest.mark.virtual_clock
async def test_a_slow_producer() -> None:
    """Each message is told of before the producer gives the next one: nothing waits for a batch to fill."""
    came: list[float] = []
    async with relaying(Relay(SHAPES["both"])) as relay, mailer(relay, idle=None) as posting:
        async for delivery in posting.send_all(asynchronous(items(20), pause=10)):
            assert delivery.ok
            came.append(now())
        assert [round(when / 10) for when in came] == list(range(1, 21))
        assert max(when % 10 for when in came) < 1
        assert len(relay.connections) == 1


async def test_a_producer_that_waits_for_the_consumer() -> None:
    """The producer makes the second message when it knows what became of the first."""
    gate = Gate()

    async def produce() -> AsyncIterator[Any]:
        yield item(0)
        await gate()
        yield item(1)

    async with relaying(Relay()) as relay, mailer(relay) as posting:
        told = []
        async for delivery in posting.send_all(produce()):
            told.append(delivery)
            gate.event.set()
        assert agree(relay, told, 2) == {"sent": 2}
        assert gate.waiting == 1


@pytest.mark.sampled
@pytest.mark.parametrize("synchronous", [False, True])
async def test_others_have_their_turns_while_it_pulls(synchronous: bool) -> None:
    """An iterable that never waits does not hold the event loop up, however many messages may be pulled."""
    turns = 0

    async def watch() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    async with relaying(Relay(SHAPES["both"], hold=0)) as relay:
        posting = mailer(relay, connections=100, window=500)
        watching = asyncio.create_task(watch())
        deliveries = posting.send_all(items(10_000) if synchronous else asynchronous(items(10_000), None))
        asking = asyncio.create_task(anext(deliveries))
        await till(lambda: posting.stats.in_flight == 10_000)
        watching.cancel()
        assert turns > 10
        posting.abort()
        await asking
        await deliveries.aclose()


# ---- several at once --------------------------------------------------------------------------


async def test_two_at_once_and_messages_between_them() -> None:
    """Each loop and each call gets the outcome of its own messages."""

    async def consume(first: int) -> list[Delivery[Any]]:
        return [delivery async for delivery in posting.send_all(map(item, range(first, first + 300)))]

    async with relaying(Relay(SHAPES["both"])) as relay, mailer(relay, connections=2) as posting:
        sends = [posting.send(b"hi", SENDER, WHO) for _ in range(50)]
        one, two, receipts = await asyncio.gather(consume(0), consume(300), asyncio.gather(*sends))
        assert sorted(map(name, one)) == list(range(300))
        assert sorted(map(name, two)) == list(range(300, 600))
        assert all(receipt.complete for receipt in receipts)
        relay.letters[:] = [letter for letter in relay.letters if letter.sender != SENDER]
        assert agree(relay, one + two, 600) == {"sent": 600}
        assert posting.stats.sent == 650


async def test_two_tasks_share_one() -> None:
    async def consume() -> list[Delivery[Any]]:
        return [delivery async for delivery in deliveries]

    async with relaying(Relay(SHAPES["both"])) as relay, mailer(relay, window=5) as posting:
        deliveries = posting.send_all(items(300))
        told = await asyncio.gather(consume(), consume(), consume())
        assert agree(relay, sum(told, []), 300) == {"sent": 300}


async def test_a_message_does_not_wait_behind_a_whole_run() -> None:
    """A mailer that is busy with a million messages still sends the one that a caller of send() waits for."""
    counted = Counted()
    async with relaying(Relay(SHAPES["both"], latency=0.001)) as relay, mailer(relay, connections=1) as posting:
        deliveries = posting.send_all(counted)
        await anext(deliveries)

        async def consume() -> None:
            async for _ in deliveries:
                pass

        consuming = asyncio.create_task(consume())
        before = counted.pulled
        await posting.send(b"urgent", SENDER, WHO)
        assert counted.pulled - before < 1000
        consuming.cancel()
        await asyncio.wait([consuming])
        await deliveries.aclose()
