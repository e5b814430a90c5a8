"""A connection cut at every point of the dialogue: what `state` says of a message is so."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable

import pytest

import asmtp
from asmtp import AsyncLMTP, AsyncSMTP
from tests.fakes import clock
from tests.fakes.faults import (
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
)  # fmt: skip
from tests.fakes.ledger import Message, Said, complaints, picky
from tests.fakes.relay import SHAPES, Relay

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("bdat_at_once")]

Pairs = list[tuple[Message, Said]]


@pytest.fixture(autouse=True)
def recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    record_writes(monkeypatch)
    monkeypatch.setattr(clock, "PATIENCE", 0.001)  # the clock jumps thousands of times


# ---- the work ---------------------------------------------------------------------------------


async def say(smtp: AsyncSMTP, message: Message) -> tuple[Message, Said]:
    try:
        refused = await smtp.sendmail(message.sender, message.recipients, message.content)
    except asmtp.SMTPException as error:
        return message, Said(error.state, error=error)
    accepted = [who for who in message.recipients if who not in refused]
    return message, Said("sent", accepted, refused)


async def one_by_one(smtp: AsyncSMTP, messages: Iterable[Message]) -> Pairs:
    return [await say(smtp, message) for message in messages]


async def together(smtp: AsyncSMTP, messages: Iterable[Message]) -> Pairs:
    return await asyncio.gather(*(say(smtp, message) for message in messages))


THREE = ("bob", "no-one", "carol")
LARGE = 1000

WORK: dict[str, Callable[[AsyncSMTP], Awaitable[Pairs]]] = {
    "one after another": lambda smtp: one_by_one(smtp, [Message("a"), Message("b", THREE)]),
    "five together": lambda smtp: together(smtp, [Message(f"m{n}", THREE if n == 2 else ("bob",)) for n in range(5)]),
    "all refused between others": lambda smtp: together(
        smtp, [Message("a"), Message("b", ("no-one", "no-body")), Message("c")]
    ),
    "large": lambda smtp: one_by_one(smtp, [Message("a", THREE, LARGE)]),
    "large together": lambda smtp: together(smtp, [Message("a"), Message("b", THREE, LARGE), Message("c")]),
}
"""What is sent over one connection."""


async def work(name: str, smtp: AsyncSMTP) -> Pairs:
    try:
        async with smtp:
            return await WORK[name](smtp)
    except (asmtp.SMTPException, OSError):
        return []  # there was no connection: nothing was sent


async def run(
    opened: Door, client: type[AsyncSMTP], shape: str, name: str, plan: Plan | None
) -> tuple[Proxy, list[str]]:
    """Do the work with a fault; what was wrong."""
    relay = Relay(SHAPES[shape], answer=picky, lmtp=client.lmtp)
    async with proxying(opened, relay, plan) as proxy:
        smtp = client(proxy.host, proxy.port, "me.example", timeout=patience())
        async with asyncio.timeout(60_000):
            pairs = await work(name, smtp)
            # The same object, connected again.
            async with smtp:
                pairs.append(await say(smtp, Message("last")))
            await proxy.settled()
        wrong = complaints(pairs, proxy)
        if pairs[-1][1].state != "sent":
            wrong.append(f"the message on the next connection is {pairs[-1][1]}")
        if plan is None or plan.fault is Fault.SLOW:
            wrong += [f"{message.name} is {said}" for message, said in pairs if said.state != "sent" and message.good]
        return proxy, wrong


CASES = [
    pytest.param(client, shape, name, id=f"{client.__name__}-{shape}-{name}")
    for client, shapes in ((AsyncSMTP, list(SHAPES)), (AsyncLMTP, ["none", "both"]))
    for shape in shapes
    for name in WORK
    if client is AsyncSMTP or "large" not in name
]


async def every_point(
    client: type[AsyncSMTP], shape: str, name: str, faults: Callable[[Fault], bool], half: int
) -> None:
    async with door() as opened:
        dry, wrong = await run(opened, client, shape, name, None)
    assert wrong == []
    todo = plans(dry.links[0], faults, fine="together" not in name, half=half)
    if client.lmtp:  # one reply or several to a chunk that is refused: no RFC says
        todo = [plan for plan in todo if plan.point.context != "BDAT"]
    outcome = await everywhere(todo, lambda opened, plan: run(opened, client, shape, name, plan))
    outcome.check()
    assert outcome.count > 100


@pytest.mark.parametrize(("client", "shape", "name"), CASES)
async def test_cut(client: type[AsyncSMTP], shape: str, name: str) -> None:
    half = isinstance(asyncio.get_running_loop(), asyncio.SelectorEventLoop)
    await every_point(client, shape, name, TIMELESS.__contains__, half)


@pytest.mark.virtual_clock
@pytest.mark.parametrize(("client", "shape", "name"), CASES)
async def test_silence(client: type[AsyncSMTP], shape: str, name: str) -> None:
    await every_point(client, shape, name, lambda fault: fault not in TIMELESS, 0)
