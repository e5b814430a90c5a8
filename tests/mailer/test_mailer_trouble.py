"""Servers that are down, hang, or do not survive a message: the other messages do not suffer."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import asmtp
from asmtp import AsyncMailer
from asmtp.mailer.delivery import FailedDelivery
from asmtp.mailer.mailer import manager_of
from tests.fakes.clock import now
from tests.fakes.relay import SHAPES, Conversation, Relay, relaying
from tests.fakes.script import listening
from tests.mailer.mailing import agree, answering, email, item, items, mailer


async def send_every(posting: AsyncMailer, seconds: float, count: int) -> list[tuple[float, str]]:
    """Send messages at an interval, without waiting for each; return how long each took, and its outcome."""
    told: list[tuple[float, str]] = []

    async def send(number: int) -> None:
        begun = now()
        sender, recipient, content = item(number)
        try:
            await posting.send(content, sender, recipient)
            state = "sent"
        except asmtp.SMTPException as error:
            state = str(error.state)
        told.append((now() - begun, state))

    async with asyncio.TaskGroup() as group:
        for number in range(count):
            group.create_task(send(number))
            await asyncio.sleep(seconds)
    return told


# ---- a relay that cannot be had ----------------------------------------------------------------


class Shut(asyncio.Protocol):
    """A relay that says 421 to every client."""

    def __init__(self, log: list[float]) -> None:
        self._log = log

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._log.append(now())
        transport.write(b"421 4.3.2 down\r\n")
        transport.close()


@pytest.mark.virtual_clock
@pytest.mark.parametrize("how", ["send", "send_all"])
async def test_it_is_not_hammered(how: str) -> None:
    """The mailer connects at most twice a second, however much there is to send; no message waits for minutes."""
    log: list[float] = []
    async with (
        listening(lambda: Shut(log)) as (host, port),
        AsyncMailer(asmtp.Relay(host, port), local_hostname="me") as posting,
    ):
        if how == "send":
            told = await send_every(posting, 0.05, 100)
            assert {state for _, state in told} == {"not_sent"}
            assert max(seconds for seconds, _ in told) < 3.5
        else:
            states = Counter([delivery.state async for delivery in posting.send_all(items(300))])
            assert states == {"not_sent": 300}
        assert 3 < len(log) <= 2 * now() + 1


@pytest.mark.virtual_clock
@pytest.mark.parametrize("connections", [1, 4])
@pytest.mark.parametrize("seconds", [1, 100])
async def test_the_first_relay_is_silent(connections: int, seconds: float) -> None:
    """The mailer waits for it once; while the other serves, one connection finds out whether the first is back."""
    there = 0

    class Silent(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            nonlocal there
            there += 1
            assert there <= 1

        def connection_lost(self, exc: Exception | None) -> None:
            nonlocal there
            there -= 1

    second = Relay(SHAPES["pipelining"])
    async with listening(Silent) as (host, port), relaying(second):
        relays = [asmtp.Relay(host, port), asmtp.Relay(second.host, second.port)]
        async with AsyncMailer(relays, local_hostname="me", connections=connections) as posting:
            told = await send_every(posting, seconds, 50 if seconds == 1 else 10)
    assert {state for _, state in told} == {"sent"}
    slow = [took for took, _ in told if took > 1]
    assert len(slow) <= 10 / seconds + 1
    assert max(slow) < 11


@pytest.mark.virtual_clock
@pytest.mark.parametrize("reply", ["421 4.3.2 shutting down", "451 4.3.0 queue file write error", "452 4.3.1 full"])
async def test_the_first_relay_takes_connections_only(reply: str, shape: tuple[str, ...]) -> None:
    """A relay that greets, and takes no message, is not used: the next one is."""
    first, second = Relay(shape, answer=answering(MAIL=reply)), Relay(shape)
    async with relaying(first), relaying(second), mailer(first, second) as posting:
        told = await send_every(posting, 0.5, 60)
        assert {state for _, state in told} == {"sent"}
        assert len(second.letters) == 60
        assert len([took for took, _ in told if took > 0.1]) < 12
        first.answer = lambda verb, line: None
        await asyncio.sleep(60)
        await send_every(posting, 1, 3)
        assert first.letters
        assert len(second.letters) <= 61


@pytest.mark.virtual_clock
async def test_a_refusal_of_the_message_is_not_one_of_the_relay() -> None:
    first, second = Relay(answer=answering(MAIL="451 4.7.1 greylisted")), Relay()
    async with relaying(first), relaying(second), mailer(first, second, retry=None) as posting:
        for number in range(3):
            with pytest.raises(asmtp.SMTPSenderRefused):
                await posting.send(item(number)[2], "a@x.example", "b@y.example")
        assert not second.connections


# ---- a connection that hangs -------------------------------------------------------------------


@pytest.mark.virtual_clock
async def test_a_hung_connection_gets_no_more_messages(shape: tuple[str, ...]) -> None:
    relay = Relay(shape, latency=0.02)
    async with relaying(relay), mailer(relay) as posting:
        await send_every(posting, 0.5, 5)
        assert posting.stats.open == 1
        relay.connections[0].data_received = lambda data: None  # type: ignore[method-assign]
        told = await send_every(posting, 0.5, 60)
    assert len([took for took, _ in told if took > 2]) <= 2
    assert {state for took, state in told if took < 2} == {"sent"}


@pytest.mark.virtual_clock
async def test_a_slow_server_is_not_a_hung_one() -> None:
    """If no more connections may be opened, the slow server gets the messages when it answers."""
    relay = Relay(latency=3)
    async with relaying(relay), mailer(relay, connections=1) as posting:
        deliveries = [delivery async for delivery in posting.send_all(items(20))]
        assert agree(relay, deliveries, 20) == {"sent": 20}
        assert len(relay.connections) == 1


# ---- a message that servers do not survive -----------------------------------------------------


class _Mortal(Conversation):
    relay: Mortal

    def command(self, line: str) -> None:
        if "poison" in line:
            self.relay.deaths += 1
            self.kill()
        else:
            super().command(line)


class Mortal(Relay):
    """A relay that cuts the connection at a recipient called poison."""

    conversation = _Mortal
    deaths = 0


@pytest.mark.virtual_clock
async def test_poison(shape: tuple[str, ...]) -> None:
    """The message is not sent again and again, though no server has refused it; the others are sent."""
    relay = Mortal(shape, latency=0.02)

    async def others() -> list[tuple[float, str]]:
        return await send_every(posting, 0.05, 100)

    async with relaying(relay), mailer(relay) as posting:
        traffic = asyncio.create_task(others())
        await asyncio.sleep(1)
        with pytest.raises(asmtp.SMTPServerDisconnected):
            await posting.send(b"hi", "a@x.example", "poison@y.example")
        assert now() < 5
        assert relay.deaths <= 6
        states = Counter(state for _, state in await traffic)
        assert states["sent"] >= 90
        assert set(states) <= {"sent", "in_doubt"}


# ---- what a caller may do with a message -------------------------------------------------------


def one_for_all(text: str, count: int) -> Iterator[Any]:
    made = email()
    for number in range(count):
        del made["To"]
        made["To"] = f"b{number}@y.example"
        made.set_content(text + f"for b{number}\n")
        yield made


@pytest.mark.sampled
@pytest.mark.parametrize("lines", [1, 30_000])
async def test_one_message_object_for_all(lines: int, shape: tuple[str, ...]) -> None:
    relay = Relay(shape, latency=0.01)
    async with relaying(relay), mailer(relay) as posting:
        deliveries = [delivery async for delivery in posting.send_all(one_for_all("hello, hello\n" * lines, 8))]
    assert all(delivery.ok for delivery in deliveries)
    assert len(relay.letters) == 8
    for letter in relay.letters:
        (recipient,) = letter.recipients
        assert f"for {recipient.partition('@')[0]}\r\n".encode() in letter.content


async def test_who_is_listed_twice_has_it_once() -> None:
    relay = Relay(SHAPES["pipelining"], answer=answering(RCPT_c="450 4.2.0 later"))
    async with relaying(relay), mailer(relay, retry=asmtp.Retry(initial=0.01)) as posting:
        crowd = [f"{who}@y.example" for who in "abbcab"]
        receipt = await posting.send(b"hi", "a@x.example", crowd)
        assert list(receipt.accepted) == ["a@y.example", "b@y.example"]
        assert list(receipt.refused) == ["c@y.example"]
        assert [letter.recipients for letter in relay.letters] == [["a@y.example", "b@y.example"]]


@pytest.mark.virtual_clock
async def test_the_time_for_retries_begins_with_the_first_try() -> None:
    """The time does not begin while the message waits for its turn."""
    seen: set[str] = set()

    def answer(verb: str, line: str) -> str | None:
        if verb == "RCPT" and line not in seen:
            seen.add(line)
            return "451 4.7.1 greylisted"
        return None

    relay = Relay(SHAPES["pipelining"], answer=answer)
    async with relaying(relay), mailer(relay, rate="2/s", connections=1, retry=asmtp.Retry(within=30)) as posting:
        told = await send_every(posting, 0, 100)
        assert {state for _, state in told} == {"sent"}
        assert now() > 60


def test_what_is_in_a_message_is_not_in_its_delivery_s_repr() -> None:
    item = ("a@x.example", "b@y.example", b"secret")
    assert "secret" not in repr(FailedDelivery(item, None, "not_sent", None, ValueError()))


# ---- the end -----------------------------------------------------------------------------------


@pytest.mark.virtual_clock
async def test_closing_may_have_a_limit(shape: tuple[str, ...]) -> None:
    relay = Relay(shape, hold=0)
    async with relaying(relay), mailer(relay) as posting:
        sending = asyncio.create_task(send_every(posting, 0, 3))
        await relay.held.wait()
        await posting.aclose(timeout=5)
        assert now() == pytest.approx(5, abs=0.1)
        assert {state for _, state in await sending} <= {"not_sent", "in_doubt"}
        assert posting.stats.in_flight == posting.stats.open == 0
        with pytest.raises(asmtp.SMTPStateError):
            await posting.send(b"hi", "a@x.example", "b@y.example")


async def test_verify() -> None:
    async with relaying(Relay()) as first, relaying(Relay()) as second, mailer(first, second) as posting:
        await posting.verify()
        assert first.verbs == second.verbs == ["EHLO", "QUIT"]
        assert posting.stats.open == 0


async def test_verify_tells_what_is_wrong_and_with_whom() -> None:
    relay = Relay(answer=answering(EHLO="550 5.7.1 not you", HELO="550 5.7.1 not you"))
    async with relaying(relay), relaying(Relay()) as other, mailer(relay, other) as posting:
        with pytest.raises(asmtp.SMTPHeloError) as caught:
            await posting.verify()
        assert caught.value.__notes__ == [f"relay: 127.0.0.1:{relay.port}"]
        assert other.verbs == ["EHLO", "QUIT"]
        await posting.send(b"hi", "a@x.example", "b@y.example")


# ---- what is said twice ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "options", "window", "timeout"),
    [
        ("smtp://mail.example", {}, 100, asmtp.Timeouts()),
        ("smtp://mail.example?window=7&timeout=9", {}, 7, asmtp.Timeouts.of(9)),
        ("smtp://mail.example?window=7&timeout=9", {"window": 5, "timeouts": 3}, 5, asmtp.Timeouts.of(3)),
        ("smtp://mail.example?timeout=9", {"timeouts": None}, 100, asmtp.Timeouts.of(None)),
    ],
)
def test_arguments_are_over_what_the_url_says(url: str, options: Any, window: int, timeout: asmtp.Timeouts) -> None:
    (relay,) = manager_of(AsyncMailer(url, **options)).settings.relays
    smtp = asmtp.AsyncSMTP()
    smtp._set_up(relay.host, relay.port, relay)  # as a connection of the pool
    assert (smtp._session.window, smtp.timeouts) == (window, timeout)


@pytest.mark.parametrize("verb", ["MAIL", "RCPT", "."])
@pytest.mark.parametrize("retry", [None, asmtp.Retry(initial=0.01)], ids=["once", "retry"])
async def test_a_server_that_says_421_and_goes_on(shape: tuple[str, ...], verb: str, retry: Any) -> None:
    """A server says it to one message of many, as some do to greylist: nothing is sent twice."""
    left = ["421 4.7.0 later"]

    def answer(of: str, line: str) -> str | None:
        return left.pop() if left and of == verb and ("<b3@" in line or "<a3@" in line or ": 3" in line) else None

    relay = Relay(shape, answer=answer, goes_on=True)
    async with relaying(relay), mailer(relay, connections=1, retry=retry) as posting:
        deliveries = [delivery async for delivery in posting.send_all(items(20))]
        assert not left
        states = agree(relay, deliveries, 20)
        assert states["sent"] == 20 or (retry is None and states == {"sent": 19, "refused": 1})


@pytest.mark.asyncio(loop_factories=["asyncio"])  # uvloop has arguments for a factory that asyncio's does not know
@pytest.mark.skipif(not hasattr(asyncio, "eager_task_factory"), reason="Python 3.12")
async def test_a_relay_that_fails_at_once_where_tasks_are_eager(tmp_path: Path) -> None:
    """To connect to a Unix socket that is not there fails without a pass of the loop."""
    asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined,unused-ignore]
    url = f"lmtp+unix://{tmp_path}/nothing.sock?local_hostname=me"
    async with asmtp.AsyncMailer(url, retry=None) as mailer, asyncio.timeout(20):
        with pytest.raises(asmtp.SMTPServerDisconnected) as caught:
            await mailer.send(b"Subject: x\r\n\r\nx", "a@example.com", "b@example.com")
    assert caught.value.state == "not_sent"
