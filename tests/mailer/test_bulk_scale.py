"""AsyncMailer with very many messages, tasks and connections: nothing is lost, and memory is bounded."""

from __future__ import annotations

import asyncio
import gc
import os
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from asmtp import AsyncMailer
from tests.fakes.people import SENDER
from tests.fakes.relay import SHAPES, Relay, relaying
from tests.fakes.sink import Sink, sinking
from tests.mailer.mailing import agree, item, items, mailer, till

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("bdat_at_once")]

CONTENT = b"Subject: hello\r\n\r\n" + b"A line of text that is not too short.\r\n" * 20
MANY = 100_000


def posting_to(sink: Sink, **options: Any) -> AsyncMailer:
    return mailer(sink, **options)  # type: ignore[arg-type]  # it has a host and a port


def messages(count: int) -> Iterator[tuple[str, str, bytes]]:
    """Yield messages of which each has content of its own."""
    for number in range(count):
        yield SENDER, f"b{number}@y.example", b"X-Number: %d\r\n%b" % (number, CONTENT)


async def asynchronous(count: int) -> AsyncIterator[Any]:
    for message in messages(count):
        yield message


def resident() -> float:
    """Return how many MiB of memory this process has."""
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


async def test_a_hundred_thousand_messages() -> None:
    """Of 75 MiB, in messages of 800 octets, the process never holds 8 MiB more than when a fifth is done."""
    told = 0
    before = 0.0
    async with sinking() as sink, posting_to(sink) as posting:
        async for delivery in posting.send_all(messages(MANY)):
            assert delivery.ok
            told += 1
            if told == MANY // 5:
                before = resident()
        assert resident() - before < 8
        assert told == sink.messages == posting.stats.sent == MANY
        assert sink.octets == sum(len(content) for _, _, content in messages(MANY))
        assert sink.most <= 4
        assert posting.stats.in_flight == 0


async def test_twenty_thousand_in_order_from_an_asynchronous_iterable() -> None:
    told = 0
    async with sinking() as sink, posting_to(sink, connections=2) as posting:
        async for delivery in posting.send_all(asynchronous(20_000), in_order=True):
            assert delivery.item[1] == f"b{told}@y.example"
            assert delivery.ok
            told += 1
        assert told == sink.messages == 20_000


@pytest.mark.parametrize("shape", SHAPES)
async def test_a_thousand_tasks_await_send_at_once(shape: str) -> None:
    """Each task gets its own receipt."""

    def answer(verb: str, line: str) -> str | None:
        return f"250 2.0.0 {line.partition(chr(13))[0]}" if verb == "." else None

    async def one(number: int) -> None:
        sender, recipient, content = item(number)
        receipt = await posting.send(content, sender, recipient)
        assert list(receipt.accepted) == [recipient]
        assert receipt.reply.text.endswith(f"Subject: {number}")

    async with relaying(Relay(SHAPES[shape], answer=answer)) as relay, mailer(relay) as posting:
        async with asyncio.TaskGroup() as group:
            for number in range(1000):
                group.create_task(one(number))
        assert sorted(letter.sender for letter in relay.letters) == sorted(item(n)[0] for n in range(1000))
        assert len(relay.connections) <= 4
        assert posting.stats.sent == 1000


async def test_ten_thousand_tasks_of_which_half_are_cancelled() -> None:
    """Nothing of the cancelled ones stays behind."""
    async with sinking() as sink, posting_to(sink) as posting:
        sends = [asyncio.create_task(posting.send(CONTENT, SENDER, f"b{n}@y.example")) for n in range(10_000)]
        await till(lambda: sink.messages > 100, 0)
        for send in sends[::2]:
            send.cancel()
        results = await asyncio.gather(*sends, return_exceptions=True)
        assert all(result.complete for result in results[1::2])  # type: ignore[union-attr]
        cancelled = sum(isinstance(result, asyncio.CancelledError) for result in results)
        assert cancelled > 0
        await posting.drain()
        assert posting.stats.in_flight == posting.stats.waiting == 0
        stats = posting.stats
        assert stats.sent + stats.not_sent + stats.in_doubt == 10_000
        assert stats.sent == sink.messages


@pytest.mark.virtual_clock
async def test_two_hundred_connections() -> None:
    """All connections are opened if the load asks for them, and all of them serve."""
    relay = Relay(SHAPES["none"], latency=1)
    async with relaying(relay), mailer(relay, connections=200, window=10) as posting:
        deliveries = [delivery async for delivery in posting.send_all(items(2000))]
        assert agree(relay, deliveries, 2000) == {"sent": 2000}
        assert 150 < len(relay.connections) <= 200
        assert posting.stats.open > 150
    assert relay.verbs.count("QUIT") > 150


async def test_ten_runs_at_once() -> None:
    async def consume(run: int) -> int:
        told = 0
        async for delivery in posting.send_all(messages(1000), in_order=run % 2 == 0):
            assert delivery.ok
            told += 1
        return told

    async with sinking() as sink, posting_to(sink) as posting:
        assert await asyncio.gather(*map(consume, range(10))) == [1000] * 10
        assert sink.messages == 10_000


async def test_a_mailer_for_each_message() -> None:
    """If a mailer left something behind, it would be found here."""
    async with sinking() as sink:
        for _ in range(50):
            async with posting_to(sink) as posting:
                await posting.send(CONTENT, SENDER, "b@y.example")
        before = resident()
        for _ in range(300):
            async with posting_to(sink) as posting:
                await posting.send(CONTENT, SENDER, "b@y.example")
        assert resident() - before < 4
        assert sink.messages == sink.connections == 350
