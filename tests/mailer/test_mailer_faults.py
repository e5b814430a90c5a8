"""Cut a mailer's connections at every point of the dialogue: nothing is lost, nothing is sent twice.

Every message has its name in its sender, its recipients and its content, so that what the relay took can be held
against what was said of it: see :mod:`tests.fakes.ledger`.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import dataclasses
import functools
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

import asmtp
from asmtp import AsyncMailer, Delivery, Receipt, Retry
from asmtp.mailer import relay_state
from tests.fakes import clock
from tests.fakes.faults import (
    FIRST,
    PATIENCE,
    TIMELESS,
    Door,
    Fault,
    Plan,
    Proxy,
    door,
    everywhere,
    patience,
    plans,
    proxying,
    record_writes,
    virtual,
)  # fmt: skip
from tests.fakes.ledger import Message, Said, complaints, picky
from tests.fakes.relay import SHAPES, Relay

pytestmark = pytest.mark.long

Pairs = list[tuple[Message, Said]]

RETRY = Retry(attempts=5, initial=1 / 64, jitter=0, within=None)

SPOILED = [FIRST, ("the first three", lambda number: number < 3), ("every second", lambda number: number % 2 == 0)]


@pytest.fixture(autouse=True)
def recorded(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    record_writes(monkeypatch)
    monkeypatch.setattr(clock, "PATIENCE", 0.001)  # the clock jumps thousands of times
    if request.node.get_closest_marker("virtual_clock") is None:
        monkeypatch.setattr(relay_state, "ALONE", RETRY.initial)  # real seconds, thousands of times


# ---- what was said ----------------------------------------------------------------------------


def said_by(receipt: Receipt | None, error: BaseException | None, state: str | None) -> Said:
    if receipt is None:
        return Said(state, error=error)
    failed = {who: getattr(why, "state", None) or "not_sent" for who, why in receipt.failed.items()}
    replies = [receipt.reply, *receipt.accepted.values()]
    finals = [reply.text for reply in replies if "taken" in reply.text]  # LMTP has one for each recipient
    return Said(state, receipt.accepted, receipt.refused, failed, finals or [receipt.reply.text], error)


async def send(mailer: AsyncMailer, message: Message) -> tuple[Message, Said]:
    try:
        receipt = await mailer.send(message.content, message.sender, message.recipients)
    except asmtp.SMTPException as error:
        return message, said_by(error.receipt, error, error.state)
    return message, said_by(receipt, None, "sent")


def told(delivery: Delivery[Any]) -> tuple[Message, Said]:
    assert delivery.ok == (delivery.state == "sent") == (delivery.error is None)
    assert delivery.envelope is delivery.item
    assert isinstance(delivery.item, Item)
    return delivery.item.message, said_by(delivery.receipt, delivery.error, delivery.state)


class Item(asmtp.Envelope):
    """An item for `send_all`."""

    def __init__(self, message: Message) -> None:
        super().__init__(message.sender, message.recipients, content=message.content)
        self.message = message


async def send_all(mailer: AsyncMailer, messages: Iterable[Message], **options: Any) -> Pairs:
    return [told(delivery) async for delivery in mailer.send_all(map(Item, messages), **options)]


# ---- what is sent ---------------------------------------------------------------------------------

THREE = ("bob", "no-one", "carol")
LARGE = 1000  # lines


def several(count: int, letter: str = "m") -> list[Message]:
    return [Message(f"{letter}{n}", THREE if n == 1 else ("bob",)) for n in range(count)]


async def one(mailer: AsyncMailer) -> Pairs:
    return [await send(mailer, Message("a", THREE))]


async def batch(mailer: AsyncMailer) -> Pairs:
    return await send_all(mailer, several(5), in_order=True)


async def tasks(mailer: AsyncMailer) -> Pairs:
    return await asyncio.gather(*(send(mailer, message) for message in several(4)))


async def reused(mailer: AsyncMailer) -> Pairs:
    first = await send_all(mailer, several(2, "first"))
    if virtual():
        await asyncio.sleep(2)  # the connection may be stale
    return first + await send_all(mailer, several(2, "second"))


async def large(mailer: AsyncMailer) -> Pairs:
    return await send_all(mailer, [Message("a"), Message("b", THREE, LARGE), Message("c")])


async def left(mailer: AsyncMailer) -> Pairs:
    """Leave a loop; the messages that were pulled are told of, too."""
    taken: list[Message] = []

    def items() -> Iterator[Item]:
        for message in several(3):
            taken.append(message)
            yield Item(message)

    deliveries = mailer.send_all(items())
    pairs = [told(await anext(deliveries))]
    pairs += map(told, await deliveries.aclose())
    assert sorted(message.name for message, _ in pairs) == sorted(message.name for message in taken)
    return pairs


@dataclass(frozen=True)
class Work:
    """The messages to send, and the number of connections."""

    send: Callable[[AsyncMailer], Awaitable[Pairs]]
    connections: int = 1
    all_sent: bool = True


WORK = {
    "one": Work(one),
    "batch": Work(batch),
    "tasks on two": Work(tasks, 2),
    "reused": Work(reused),
    "large": Work(large),
    "left": Work(left, all_sent=False),
}

RUN: contextvars.ContextVar[weakref.WeakSet[asyncio.Task[Any]]] = contextvars.ContextVar("RUN")


def counted(loop: asyncio.AbstractEventLoop, coro: Any, **options: Any) -> asyncio.Task[Any]:
    """Make a task, and enter it among those of its run: a task factory."""
    task = asyncio.Task(coro, loop=loop, **options)
    if (mine := RUN.get(None)) is not None:
        mine.add(task)
    return task


@contextlib.asynccontextmanager
async def mailing(proxy: Proxy, wrong: list[str], **options: Any) -> AsyncIterator[AsyncMailer]:
    """Run with a mailer, and check that it leaves no task, and has counted well."""
    mine: weakref.WeakSet[asyncio.Task[Any]] = weakref.WeakSet()
    token = RUN.set(mine)
    relay = asmtp.Relay(proxy.host, proxy.port, lmtp=proxy.relay.lmtp)
    mailer = AsyncMailer(relay, timeouts=patience(), local_hostname="me.example", **options)
    async with asyncio.timeout(60_000 if virtual() else 100):
        async with mailer:
            yield mailer
            stats = mailer.stats
            wrong += [f"{stats} in the end"] if stats.in_flight or stats.waiting else []
        going_on = [task for task in mine if not task.done()]
        wrong += [f"{len(going_on)} tasks go on: {going_on}"] if going_on else []
        await proxy.settled()
    RUN.reset(token)


def relay(shape: str) -> Relay:
    return Relay(SHAPES["both" if shape == "lmtp" else shape], answer=picky, lmtp=shape == "lmtp")


async def run(opened: Door, shape: str, work: Work, retry: Retry | None, plan: Plan | None) -> tuple[Proxy, list[str]]:
    """Do the work with a fault; return what was wrong."""
    wrong: list[str] = []
    async with proxying(opened, relay(shape), plan) as proxy:
        async with mailing(proxy, wrong, connections=work.connections, retry=retry) as mailer:
            pairs = await work.send(mailer)
            # The client may find a FIN only when it has written to a connection that is dead.
            await asyncio.sleep(2 * PATIENCE if virtual() else 0.01)
            struck = proxy.struck
            last = await send(mailer, Message("last"))
            stats = mailer.stats
        everything = [*pairs, last]
        wrong += complaints(everything, proxy)
        for state in ("sent", "refused", "not_sent", "in_doubt"):
            count = [said.state for _, said in everything].count(state)
            if getattr(stats, state) != count:
                wrong.append(f"{count} are {state}, but {stats}")
        if last[1].state != "sent" and proxy.struck == struck:
            wrong.append(f"the message behind it is {last[1]}")
        if plan is None or plan.fault is Fault.SLOW:
            wrong += not_as_hoped(everything if work.all_sent else [last], {"sent"})
        elif retry is not None:
            wrong += not_as_hoped(everything if work.all_sent else [last], {"sent", "in_doubt"})
        return proxy, wrong


def not_as_hoped(pairs: Pairs, hopeful: set[str]) -> list[str]:
    found = [f"{message.name} is {said}" for message, said in pairs if said.state not in hopeful]
    for message, said in pairs:
        if said.state == "sent" and sorted(said.accepted) != sorted(message.good):
            found.append(f"{message.name} is only accepted for {list(said.accepted)}")
    return found


CASES = [
    pytest.param(shape, name, retry, id=f"{shape}-{name}-{'once' if retry is None else 'retry'}")
    for shape in (*SHAPES, "lmtp")
    for name in WORK
    for retry in (None, RETRY)
    # Enough: the others have no other code to go through.
    if name in (("batch", "reused") if retry is None else ("batch", "large") if shape in ("chunking", "lmtp") else WORK)
]


async def every_point(shape: str, name: str, retry: Retry | None, faults: Callable[[Fault], bool], half: int) -> None:
    asyncio.get_running_loop().set_task_factory(counted)
    work = WORK[name]
    if retry is not None and virtual():
        retry = dataclasses.replace(retry, initial=0.5)  # so that many runs wait for the same moment
    async with door() as opened:
        dry, wrong = await run(opened, shape, work, retry, None)
    assert wrong == []
    assert len(dry.links) <= work.connections
    spoiled = SPOILED if retry is not None else [FIRST]  # without another try, the next one has to be good
    todo = plans(dry.links[0], faults, fine=name == "one", spoiled=spoiled, half=half)
    if shape == "lmtp":  # one reply or several to a chunk that is refused: no RFC says
        todo = [plan for plan in todo if plan.point.context != "BDAT"]
    outcome = await everywhere(todo, lambda opened, plan: run(opened, shape, work, retry, plan))
    # It is not fixed which of two connections has which message.
    outcome.check(all_reached=work.connections == 1)
    assert outcome.count > 50


# ---- faults -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "name", "retry"), CASES)
async def test_cut(shape: str, name: str, retry: Retry | None) -> None:
    half = isinstance(asyncio.get_running_loop(), asyncio.SelectorEventLoop)
    await every_point(shape, name, retry, TIMELESS.__contains__, half)


@pytest.mark.virtual_clock
@pytest.mark.parametrize(("shape", "name", "retry"), CASES)
async def test_silence(shape: str, name: str, retry: Retry | None) -> None:
    await every_point(shape, name, retry, lambda fault: fault not in TIMELESS, 0)


@pytest.mark.parametrize("shape", SHAPES)
async def test_in_doubt_is_sent_again_where_it_is_asked_for(shape: str) -> None:
    """With Retry(in_doubt=True) all messages are sent, and some of them twice."""
    twice = 0

    async def run(opened: Door, plan: Plan | None) -> tuple[Proxy, list[str]]:
        nonlocal twice
        wrong: list[str] = []
        async with proxying(opened, relay(shape), plan) as proxy:
            async with mailing(proxy, wrong, connections=1, retry=dataclasses.replace(RETRY, in_doubt=True)) as mailer:
                pairs = await batch(mailer)
            wrong += not_as_hoped(pairs, {"sent"})
            for message, _ in pairs:
                copies = [letter for letter in proxy.relay.letters if letter.sender == message.sender]
                twice += len(copies) > 1
                wrong += [f"lost: {message.name}"] if not copies else []
                wrong += [f"mixed up: {copy}" for copy in copies if copy.content != message.content]
        return proxy, wrong

    async with door() as opened:
        dry, wrong = await run(opened, None)
    assert wrong == []
    assert not twice
    outcome = await everywhere(plans(dry.links[0], lambda fault: fault in (Fault.FIN, Fault.RST)), run)
    outcome.check()
    assert twice


# ---- cancellation -----------------------------------------------------------------------------


async def pieces(message: Message) -> AsyncIterator[bytes]:
    content = message.content
    for start in range(0, len(content), 30_000):
        yield content[start : start + 30_000]
        await asyncio.sleep(0)


CONTENTS: dict[str, tuple[int, Callable[[Message], Any]]] = {
    "small": (0, lambda message: message.content),
    "large": (LARGE, lambda message: message.content),
    "streamed": (LARGE, pieces),
}


async def cancelled(mailer: AsyncMailer, message: Message, content: Any, passes: int) -> tuple[Message, Said]:
    """Send a message, and cancel that after so many passes of the loop."""
    sending = asyncio.create_task(mailer.send(content, message.sender, message.recipients))
    for _ in range(passes):
        await asyncio.sleep(0)
    if sending.done():
        return message, said_by(sending.result(), None, "sent")
    sending.cancel()
    for _ in range(3):  # a pass of the loop or two, never a reply
        await asyncio.sleep(0)
    assert sending.done(), "a cancelled call goes on"
    assert sending.cancelled(), f"a cancelled call has ended with {sending}"
    return message, Said("unasked")


@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("shape", SHAPES)
async def test_cancelled_after_so_many_passes(shape: str, content: str, warm: bool) -> None:
    """A message is cancelled at every point: those before and behind it are sent, and so is the next one."""
    asyncio.get_running_loop().set_task_factory(counted)
    lines, make = CONTENTS[content]
    passes = ended = 0
    async with door() as opened:
        while ended < 3:
            wrong: list[str] = []
            async with proxying(opened, relay(shape)) as proxy:
                async with mailing(proxy, wrong, connections=1, retry=RETRY) as mailer:
                    pairs = [await send(mailer, Message("warm"))] if warm else []
                    first = asyncio.create_task(send(mailer, Message("first")))
                    await asyncio.sleep(0)
                    message = Message("middle", THREE, lines)
                    middle = asyncio.create_task(cancelled(mailer, message, make(message), passes))
                    await asyncio.sleep(0)
                    third = asyncio.create_task(send(mailer, Message("third")))
                    pairs += [await first, await middle, await third, await send(mailer, Message("next"))]
                wrong += complaints(pairs, proxy)
                wrong += [f"{m.name} is {said}" for m, said in pairs if said.state != "sent" and m is not message]
                ended += "unasked" not in [said.state for _, said in pairs]
            assert not wrong, f"after {passes} passes: {wrong}"
            # While a thread looks up a name, passes are quick and many.
            passes += 1 + (0 if warm else passes // 10)
    assert passes > 4


@pytest.mark.virtual_clock
@pytest.mark.parametrize("fault", [Fault.FIN, Fault.HOLE, Fault.LATE], ids=lambda fault: fault.name)
@pytest.mark.parametrize("shape", SHAPES)
async def test_given_up_while_it_is_tried_again(shape: str, fault: Fault) -> None:
    """A message that `asyncio.timeout` ends in the midst of deadlines and back-off leaves nothing behind."""
    asyncio.get_running_loop().set_task_factory(counted)

    async def run(opened: Door, plan: Plan | None, seconds: float = 1000.0) -> tuple[Proxy, list[str]]:
        wrong: list[str] = []
        async with proxying(opened, relay(shape), plan) as proxy:
            retry = dataclasses.replace(RETRY, initial=2.0)
            async with mailing(proxy, wrong, connections=1, retry=retry) as mailer:
                pairs = []
                try:
                    async with asyncio.timeout(seconds):
                        pairs += [await send(mailer, Message("a", THREE))]
                except TimeoutError:
                    pairs += [(Message("a", THREE), Said("unasked"))]
                taken = len(proxy.relay.letters)
                await asyncio.sleep(100)
                if len(proxy.relay.letters) > taken and fault is not Fault.LATE:
                    wrong.append("it was sent when nobody asked for it any more")
                struck = proxy.struck
                pairs += [await send(mailer, Message("next"))]
                wrong += not_as_hoped(pairs[1:], {"sent"} if proxy.struck == struck else {"sent", "in_doubt"})
            wrong += complaints(pairs, proxy)
        return proxy, wrong

    async with door() as opened:
        dry, wrong = await run(opened, None)
    assert wrong == []
    spoiled = [("the first two", lambda number: number < 2)]
    todo = plans(dry.links[0], lambda one: one is fault, spoiled=spoiled, half=0)
    todo = [plan for plan in todo if plan.point.kind != "octets" or plan.point.place < len(dry.links[0].received) // 2]
    for seconds in (0.5, 1.0, 3.0, 5.0, 7.0, 9.0, 11.0):
        outcome = await everywhere(todo, functools.partial(run, seconds=seconds))
        outcome.check(all_reached=False)


@pytest.mark.parametrize("shape", SHAPES)
async def test_a_loop_that_is_cancelled(shape: str) -> None:
    """The loop or `drain` tells of each message that was pulled, once."""
    asyncio.get_running_loop().set_task_factory(counted)
    passes = 0
    in_time = True
    async with door() as opened:
        while in_time:
            wrong: list[str] = []
            async with proxying(opened, relay(shape)) as proxy:
                async with mailing(proxy, wrong, connections=1, retry=RETRY) as mailer:
                    taken: list[Message] = []
                    deliveries: list[Delivery[Any]] = []

                    async def loop(mailer: AsyncMailer, taken: list[Message], deliveries: list[Delivery[Any]]) -> None:
                        def items() -> Iterator[Item]:
                            for message in several(5):
                                taken.append(message)
                                yield Item(message)

                        async for delivery in mailer.send_all(items()):
                            deliveries.append(delivery)  # what came before it was cancelled

                    looping = asyncio.create_task(loop(mailer, taken, deliveries))
                    for _ in range(passes):
                        await asyncio.sleep(0)
                    in_time = looping.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await looping
                    deliveries += await mailer.drain()
                    pairs = [*map(told, deliveries), await send(mailer, Message("next"))]
                wrong += complaints(pairs, proxy)
                wrong += not_as_hoped(pairs[-1:], {"sent"})
                if sorted(m.name for m, _ in pairs[:-1]) != sorted(m.name for m in taken):
                    wrong.append(f"taken {taken}, told of {pairs}")
            assert not wrong, f"after {passes} passes: {wrong}"
            passes += 1 + passes // 10
    assert passes > 4
