"""A mailer at relays that answer as they like: each message is told of once, truly, and in time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, cast

import asmtp
from asmtp import AsyncMailer, Delivery, Retry
from tests.fakes.clock import VirtualClockLoop
from tests.fakes.relay import SHAPES, Conversation, Relay, relaying
from tests.fuzz.data import FuzzedData

__all__ = ["mailing"]

logging.getLogger("asmtp").addHandler(logging.NullHandler())  # what is given up is not news here

PHASE = 20
"""Seconds for each phase."""

ENOUGH = 3600
"""Seconds after which a mailing hangs that has not ended: its phases and retries take a few minutes at most."""

REPLIES = [
    "451 4.3.0 later", "450 4.7.1 greylisted", "452 4.5.3 too many recipients", "452 4.5.3 Too many messages sent",
    "454 Throttling failure: Maximum sending rate exceeded.", "432 4.3.2 Concurrent connections limit exceeded",
    "421 4.7.0 bye", "421 too many connections", "550 5.7.1 no", "503 5.5.1 what?", "500 5.5.2 what?",
    "554 5.5.0 too many errors", "552 5.3.4 too large",
]  # fmt: skip
CLOSES, RESETS, HANGS = "FIN", "RST", "silence"
ACTIONS = [*REPLIES, *REPLIES, CLOSES, RESETS, HANGS]
VERBS = ["MAIL", "MAIL", "MAIL", "RCPT", "RCPT", "DATA", "BDAT", "RSET", ".", ".", "EHLO", "LHLO", "QUIT"]
LARGE = b"Subject: large\r\n\r\n" + b"x" * 70 + b"\r\n" * 40_000
# Without an end there is one only if nothing stands still.
RETRIES = [
    Retry(within=None, initial=0.1), Retry(within=None, attempts=6), Retry(), None, Retry(in_doubt=True, within=None),
]  # fmt: skip


class _Moody(Conversation):
    relay: Mood
    _deaf = False

    def receive(self, octets: bytes) -> None:
        if self._deaf:
            return
        try:
            super().receive(octets)
        except _Gone as gone:
            self._deaf = True
            action = gone.args[0]
            if action == CLOSES:
                self.flush()
                self.transport.close()
            elif action == RESETS:
                self.transport.abort()

    def flush(self) -> None:
        if not self._deaf or self.transport.is_closing():
            super().flush()


@dataclass
class Mood(Relay):
    """A relay with an action, from `ACTIONS`, at the nth of a verb, of all its connections together."""

    conversation = _Moody
    moods: dict[tuple[str, int], str] = field(default_factory=dict)
    seen: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.answer = self.mood

    def mood(self, verb: str, line: str) -> str | None:
        """The reply to give; at what is no reply the connection ends, or hears nothing any more."""
        verb = verb[:1] if verb.startswith(".") else verb  # LMTP: for each recipient
        number = self.seen[verb] = self.seen[verb] + 1
        action = self.moods.get((verb, number))
        if action is None or action in REPLIES:
            return action
        raise _Gone(action)


class _Gone(Exception):
    pass


def mailing(data: FuzzedData) -> None:
    """A mailer at relays that answer as they like: each message is told of once, truly, and in time."""
    problems: list[Any] = []

    async def run() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: problems.append(context))
        await _mailing(data)

    chance = random.getstate()
    random.seed(0)  # the same input is the same run
    try:
        with asyncio.Runner(loop_factory=VirtualClockLoop) as runner:
            runner.run(run())
    finally:
        random.setstate(chance)
    assert not problems, problems


async def _mailing(data: FuzzedData) -> None:
    relays = [_relay(data) for _ in range(data.between(1, 2))]
    retry = data.pick(RETRIES)
    items = [_item(data, number) for number in range(data.pick([3, 1, 4, 6, 10]))]
    async with contextlib.AsyncExitStack() as stack:
        for relay in relays:
            await stack.enter_async_context(relaying(relay))
        mailer = _mailer(data, relays, retry)
        try:
            async with asyncio.timeout(ENOUGH), mailer:
                told = await data.pick(WAYS)(data, mailer, items)
            told += await mailer.drain()
        except TimeoutError:
            raise AssertionError(f"it hangs: {mailer.stats}") from None
        await asyncio.sleep(1)  # for the relays
        going_on = asyncio.all_tasks() - {cast("Any", asyncio.current_task())}
        assert not going_on, going_on
        assert mailer.stats.in_flight == mailer.stats.waiting == 0, mailer.stats
    _check(relays, told, again=retry is not None and retry.in_doubt)


def _relay(data: FuzzedData) -> Mood:
    moods = {(data.pick(VERBS), data.between(1, 8)): data.pick(ACTIONS) for _ in range(data.between(0, 6))}
    return Mood(data.pick([*SHAPES.values()]), moods=moods, latency=data.pick([0, 0, 0.01]), lmtp=data.chance(4))


def _mailer(data: FuzzedData, relays: list[Mood], retry: Retry | None) -> AsyncMailer:
    return AsyncMailer(
        [asmtp.Relay(relay.host, relay.port, lmtp=relay.lmtp) for relay in relays],
        local_hostname="me.example",
        connections=data.pick([1, 1, 1, 2, 4]),
        window=data.pick([100, 1, 3]),
        max_messages=data.pick([None, None, 2]),
        rate=data.pick([None, None, "2/s"]),
        retry=retry,
        timeouts=asmtp.Timeouts.of(PHASE),
    )


def _item(data: FuzzedData, number: int) -> tuple[str, list[str], bytes]:
    to = [f"{name}{number}@y.example" for name in "bcd"[: data.pick([1, 1, 2, 3])]]
    return f"a{number}@x.example", to, LARGE if data.chance(3) else b"Subject: %d\r\n\r\nhello\r\n" % number


# ---- how it is used: each gives what is told, and of all that was begun `drain` tells the rest -------------------

Items = list[tuple[str, list[str], bytes]]


async def _all(data: FuzzedData, mailer: AsyncMailer, items: Items) -> list[Delivery[Any]]:
    told = [delivery async for delivery in mailer.send_all(items, in_order=data.flag())]
    assert sorted(delivery.item[0] for delivery in told) == sorted(sender for sender, _, _ in items)
    return told


async def _some(data: FuzzedData, mailer: AsyncMailer, items: Items) -> list[Delivery[Any]]:
    """Leave the loop; what was begun is told by `drain`."""
    told = []
    enough = data.between(1, len(items))
    deliveries = mailer.send_all(items, timeout=data.pick([None, 5]))
    async for delivery in deliveries:
        told.append(delivery)
        if len(told) == enough:
            break
    return told + (await deliveries.aclose() if data.flag() else [])


async def _one_by_one(data: FuzzedData, mailer: AsyncMailer, items: Items) -> list[Delivery[Any]]:
    """Send from tasks, of which some are cancelled, or have a limit."""

    async def send(item: tuple[str, list[str], bytes], timeout: float | None, after: float | None) -> Delivery[Any]:
        sender, to, content = item
        try:
            async with asyncio.timeout(after):
                receipt = await mailer.send(content, sender, to, timeout=timeout)
        except asmtp.SMTPException as error:
            assert error.state is not None, error
            return asmtp.FailedDelivery(item, None, error.state, error.receipt, error)
        except TimeoutError as error:
            cause: Any = error.__cause__
            known: Any = getattr(cause, "state", None) or "cancelled"
            return asmtp.FailedDelivery(item, None, known, getattr(cause, "receipt", None), error)
        return asmtp.SentDelivery(item, None, "sent", receipt)

    limits = [(data.pick([None, None, 5]), data.pick([None, None, 0.0, 0.001, 0.1, 5])) for _ in items]
    sending = [asyncio.create_task(send(item, *limit)) for item, limit in zip(items, limits, strict=True)]
    return list(await asyncio.gather(*sending))


WAYS = [_all, _some, _one_by_one]


# ---- what has to be so -------------------------------------------------------------------------


def _check(relays: list[Mood], told: list[Delivery[Any]], *, again: bool) -> None:
    """Compare what was told with what the relays have.

    Args:
        again: what is in doubt may have been sent again.
    """
    names = Counter(delivery.item[0] for delivery in told)
    assert not [name for name, count in names.items() if count > 1], f"told of twice: {names}"
    letters = [letter for relay in relays for letter in relay.letters]
    for letter in letters:
        assert letter.sender in names, f"nobody was told of {letter.sender}"
    for delivery in told:
        sender, to, content = delivery.item
        had = Counter(who for letter in letters if letter.sender == sender for who in letter.recipients)
        assert all(letter.content == content for letter in letters if letter.sender == sender), "other content"
        for who in to:
            known = _known(delivery, who)
            possible = {"sent": {1}, "in_doubt": {0, 1}, "cancelled": {0, 1}}.get(known, {0})
            if again and known == "refused" and not isinstance(delivery.error, asmtp.SMTPResponseException):
                possible = {0, 1}  # as a recipient, when an earlier try had not been answered
            times = min(had[who], 1) if again else had[who]
            assert times in possible, f"{sender} to {who}: {delivery}, and it has {had[who]}"


def _known(delivery: Delivery[Any], who: str) -> str:
    """Return what was told of a recipient."""
    receipt = delivery.receipt
    if receipt is None:
        return delivery.state
    if who in receipt.failed:
        return str(getattr(receipt.failed[who], "state", None))
    return "sent" if who in receipt.accepted else "refused"
