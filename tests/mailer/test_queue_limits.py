"""Limits that a server tells by 4yz: how the mailer reads them, and what becomes of the messages."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

import asmtp
from asmtp import Delivery, Retry, errors
from tests.fakes.clock import now
from tests.fakes.relay import SHAPES, Conversation, Relay, relaying
from tests.mailer.mailing import agree, item, items, mailer, till

CROWDED = "4.3.2 Concurrent connections limit exceeded. Visit https://aka.ms/concurrent_sending for more information."
THROTTLED = "454 Throttling failure: Maximum sending rate exceeded."
ENOUGH = "452 4.5.3 Session: Too many messages sent"

# ---- servers -----------------------------------------------------------------------------------

pytestmark = pytest.mark.virtual_clock


class _Guest(Conversation):
    relay: Crowded

    def __init__(self, relay: Crowded) -> None:
        super().__init__(relay)
        welcome = [each for each in relay.connections if not each.closed.is_set() and not getattr(each, "bad", False)]
        self.bad = len(welcome) >= relay.most

    def answer(self, verb: str, line: str) -> str | None:
        return f"{self.relay.code} {CROWDED}" if self.bad and verb == self.relay.where else None


class Crowded(Relay):
    """A relay that takes some connections, and says at `where` to the others that they are too many."""

    conversation = _Guest
    most = 3
    where = "MAIL"
    code = 450


async def all_of(posting: asmtp.AsyncMailer, count: int) -> list[Delivery[Any]]:
    return [delivery async for delivery in posting.send_all(items(count))]


@pytest.mark.sampled
@pytest.mark.parametrize("code", [421, 432, 451])
@pytest.mark.parametrize("where", ["MAIL", "RCPT", "DATA", "."])
@pytest.mark.parametrize(("connections", "most"), [(4, 3), (6, 1)])
async def test_too_many_connections(where: str, code: int, connections: int, most: int) -> None:
    """Wherever the server says it, nothing is lost, no try is counted, and there is no storm of connects."""
    relay = Crowded(SHAPES["pipelining"], latency=0.02)
    relay.where, relay.code, relay.most = where, code, most
    async with relaying(relay), mailer(relay, connections=connections) as posting:
        told = await all_of(posting, 120)
        assert agree(relay, told, 120) == {"sent": 120}
        assert {delivery.receipt.attempts for delivery in told if delivery.receipt} == {1}
        assert len(relay.connections) <= connections
        assert posting.stats.open <= most


async def test_two_relays_of_which_the_first_has_too_many_connections() -> None:
    """If no connection to the first relay serves, the second relay is tried; if some do, they do the work."""
    full, free = Crowded(), Relay()
    full.most = 0
    async with relaying(full), relaying(free), mailer(full, free) as posting:
        assert agree([full, free], await all_of(posting, 50), 50) == {"sent": 50}
        assert len(full.connections) <= 2
        assert len(free.letters) == 50


async def test_one_message_to_a_relay_that_has_room_later() -> None:
    """One message of a web app costs no more than two connections a second, and is taken as soon as it can be."""
    relay = Crowded()
    relay.most = 0
    async with relaying(relay), mailer(relay) as posting:
        asyncio.get_running_loop().call_later(20, setattr, relay, "most", 1)
        receipt = await posting.send(b"hi", "a@x.example", "b@y.example")
        assert receipt.attempts == 1
        assert 20 <= now() < 22
        assert len(relay.connections) <= 42


@pytest.mark.parametrize("reply", [f"421 {CROWDED}", f"432 {CROWDED}", THROTTLED, "421 4.7.0 slow down"])
@pytest.mark.parametrize("where", ["MAIL", "RCPT", "DATA", "."])
async def test_what_is_put_back_ends_in_its_time(where: str, reply: str) -> None:
    """It ends `Retry.within` after its first try, with the last reply as its error, and those behind it end with it."""
    relay = Relay(SHAPES["pipelining"], answer=lambda verb, line: reply if verb == where else None)
    async with relaying(relay), mailer(relay, retry=Retry(within=30)) as posting:
        told = await all_of(posting, 300)
        assert agree(relay, told, 300)["sent"] == 0
        assert 30 <= now() < 35
        for delivery in told:
            assert isinstance(delivery.error, asmtp.SMTPException)
            assert reply[4:10] in str(delivery.error)
            assert delivery.state == "refused" or delivery.state == "not_sent"
        assert sum(delivery.state == "refused" for delivery in told)
        assert len(relay.connections) <= 70
        assert relay.verbs.count("MAIL") <= 70 * 16


@pytest.mark.sampled
@pytest.mark.parametrize("where", ["MAIL", "RCPT", "DATA", "."])
@pytest.mark.parametrize("reply", [f"421 {CROWDED}", f"432 {CROWDED}", THROTTLED])
async def test_a_limit_that_lifts_within_the_minute(where: str, reply: str) -> None:
    """With the default settings nothing is lost."""
    relay = Relay(SHAPES["pipelining"], answer=lambda verb, line: reply if verb == where and now() < 55 else None)
    async with relaying(relay), mailer(relay) as posting:
        assert agree(relay, await all_of(posting, 1000), 1000) == {"sent": 1000}
        assert now() < 60


@pytest.mark.parametrize("where", ["MAIL", "RCPT", "DATA", "."])
@pytest.mark.parametrize("reply", [f"421 {CROWDED}", f"432 {CROWDED}", THROTTLED])
async def test_without_a_retry_nothing_is_put_back(where: str, reply: str) -> None:
    relay = Relay(SHAPES["pipelining"], answer=lambda verb, line: reply if verb == where else None)
    async with relaying(relay), mailer(relay, retry=None) as posting:
        with pytest.raises((errors.SMTPResponseException, errors.SMTPRecipientsRefused)) as caught:
            await posting.send(b"hi", "a@x.example", "b@y.example")
        assert caught.value.state == "refused"
        assert caught.value.transient
        assert now() < 1
        assert relay.verbs.count("MAIL") == 1


async def test_without_an_end_tries_are_counted() -> None:
    """With `within=None` tries after a limit are counted, as they would go on for ever."""
    relay = Relay(answer=lambda verb, line: THROTTLED if verb == "." else None)
    async with relaying(relay), mailer(relay, retry=Retry(within=None)) as posting:
        with pytest.raises(asmtp.SMTPDataError):
            await posting.send(b"hi", "a@x.example", "b@y.example")
        assert relay.verbs.count("MAIL") == 3


# ---- so many messages on a connection ------------------------------------------------------------


class _Spent(Conversation):
    relay: Spent
    taken = 0

    def command(self, line: str) -> None:
        if self.taken >= self.relay.most and line.upper().startswith("MAIL"):
            self.relay.commands.append(line)
            self.say(self.relay.enough)
        else:
            super().command(line)

    def end(self, content: bytes) -> None:
        super().end(content)
        self.taken += 1


class Spent(Relay):
    """A relay that says to MAIL that a connection has taken enough, and leaves it open (OpenSMTPD: max-mails)."""

    conversation = _Spent
    most = 100
    enough = ENOUGH


@pytest.mark.sampled
@pytest.mark.parametrize("enough", [ENOUGH, "452 try again later", "451 4.3.0 not now"])
@pytest.mark.parametrize("offers", ["none", "pipelining", "both"])
@pytest.mark.parametrize("connections", [1, 4])
async def test_a_connection_that_is_spent_is_replaced(enough: str, offers: str, connections: int) -> None:
    """Nothing is refused, each connection is left by QUIT, and the limit is learnt."""
    relay = Spent(SHAPES[offers], latency=0.001)
    relay.enough = enough
    async with relaying(relay), mailer(relay, connections=connections) as posting:
        told = await all_of(posting, 1000)
        assert agree(relay, told, 1000) == {"sent": 1000}
        assert len(relay.connections) <= 10 + 2 * connections
        if enough == ENOUGH:
            assert {delivery.receipt.attempts for delivery in told if delivery.receipt} == {1}
            assert relay.verbs.count("MAIL") <= 1000 + connections * 100
    assert relay.verbs.count("QUIT") == len(relay.connections)


async def test_one_after_the_other_over_a_connection_that_is_spent() -> None:
    relay = Spent()
    relay.most = 3
    async with relaying(relay), mailer(relay) as posting:
        for number in range(20):
            receipt = await posting.send(*reversed_item(number))
            assert receipt.attempts == 1
        assert now() < 1
        assert relay.verbs.count("MAIL") == 21  # it was learnt the first time


@pytest.mark.parametrize("offers", ["none", "pipelining", "both"])
async def test_a_connection_is_spent_by_a_large_message(offers: str) -> None:
    """The connection is left also if a RSET is under way when the limit is known."""
    relay = Spent(SHAPES[offers])
    relay.most, relay.enough = 2, "451 4.3.0 not now"
    content = b"Subject: large\r\n\r\n" + b"x" * 70 + b"\r\n" * 40_000
    async with relaying(relay), mailer(relay, connections=1) as posting:
        several = [item(number, content if number == 1 else None) for number in range(3)]
        told = [delivery async for delivery in posting.send_all(several)]
        assert [delivery.state for delivery in told] == ["sent"] * 3
        assert sorted(letter.sender for letter in relay.letters) == [f"a{number}@x.example" for number in range(3)]
        assert now() < 10
    assert relay.verbs.count("QUIT") == len(relay.connections)


def reversed_item(number: int) -> tuple[bytes, str, str]:
    sender, recipient, content = item(number)
    return content, sender, recipient


async def test_a_sender_that_is_refused_for_now() -> None:
    """The message is tried once more, uncounted, elsewhere, and then as Retry says; the others do not suffer."""
    relay = Relay(answer=lambda verb, line: "450 4.1.8 who?" if verb == "MAIL" and "<bad@" in line else None)
    async with relaying(relay), mailer(relay, retry=Retry(jitter=0)) as posting:
        await posting.send(b"hi", "a@x.example", "b@y.example")
        with pytest.raises(asmtp.SMTPSenderRefused):
            await posting.send(b"hi", "bad@x.example", "b@y.example")
        assert relay.verbs.count("MAIL") == 1 + 4
        for _ in range(20):
            await posting.send(b"hi", "a@x.example", "b@y.example")
        assert len(relay.connections) <= 4


# ---- throttled ---------------------------------------------------------------------------------


def bucket(rate: float, burst: float, where: str, reply: str = THROTTLED) -> Callable[[str, str], str | None]:
    """Return an `answer` of a server that takes so many messages a second, and so many at once."""
    at = -1e9

    def answer(verb: str, line: str) -> str | None:
        nonlocal at
        if verb != where:
            return None
        if (due := max(at, now() - burst / rate) + 1 / rate) > now() + 1e-9:
            return reply
        at = due
        return None

    return answer


@pytest.mark.sampled
@pytest.mark.parametrize("reply", [THROTTLED, "421 4.4.2 Message submission rate exceeded", "450 4.7.0 slow down"])
@pytest.mark.parametrize("where", ["MAIL", "RCPT", "DATA", "."])
@pytest.mark.parametrize("rate", [3, 14])
async def test_throttled_without_a_rate(where: str, reply: str, rate: int) -> None:
    """Nothing is lost, and the mailer sends at about the server's rate, and tries not much more often."""
    relay = Relay(SHAPES["pipelining"], answer=bucket(rate, rate, where, reply), latency=0.005)
    async with relaying(relay), mailer(relay) as posting:
        count = rate * 20
        assert agree(relay, await all_of(posting, count), count) == {"sent": count}
        assert now() < 40
        assert relay.verbs.count("MAIL") < 2 * count + 400


async def test_throttled_for_one_of_two_recipients() -> None:
    times = 3

    def answer(verb: str, line: str) -> str | None:
        nonlocal times
        if verb != "RCPT" or "<c@" not in line or not times:
            return None
        times -= 1
        return THROTTLED

    async with relaying(Relay(answer=answer)) as relay, mailer(relay) as posting:
        receipt = await posting.send(b"hi", "a@x.example", ["b@y.example", "c@y.example"])
        assert receipt.complete
        assert [letter.recipients for letter in relay.letters] == [["b@y.example"], ["c@y.example"]]


async def test_throttled_by_the_first_of_two_relays() -> None:
    """A relay that takes nothing any more is left for the other."""
    first = Relay(answer=lambda verb, line: THROTTLED if verb == "." else None)
    async with relaying(first), relaying(Relay()) as second, mailer(first, second) as posting:
        receipt = await posting.send(b"hi", "a@x.example", "b@y.example")
        assert receipt.relay.endswith(str(second.port))
        assert now() < 3


async def test_lmtp_that_is_sent_too_much() -> None:
    relay = Relay(answer=bucket(10, 10, "."), lmtp=True)
    async with relaying(relay), mailer(relay) as posting:
        assert agree(relay, await all_of(posting, 100), 100) == {"sent": 100}


async def test_lmtp_that_has_too_many_connections() -> None:
    relay = Crowded(lmtp=True)
    async with relaying(relay), mailer(relay) as posting:
        assert agree(relay, await all_of(posting, 100), 100) == {"sent": 100}


async def test_closed_while_it_is_held_up() -> None:
    """Messages that wait fail at once."""
    relay = Relay(answer=lambda verb, line: THROTTLED if verb == "." else None)
    async with relaying(relay), mailer(relay) as posting:
        sending = asyncio.create_task(posting.send(b"hi", "a@x.example", "b@y.example"))
        await till(lambda: relay.verbs.count("MAIL") > 2)
        posting.abort()
        with pytest.raises(asmtp.SMTPException) as caught:
            await sending
        assert caught.value.state in ("refused", "not_sent")
        assert now() < 10


async def test_it_is_forgotten() -> None:
    relay = Relay(answer=lambda verb, line: THROTTLED if verb == "." and now() < 2 else None)
    async with relaying(relay), mailer(relay) as posting:
        await posting.send(b"hi", "a@x.example", "b@y.example")
        await asyncio.sleep(700)
        begun = now()
        await asyncio.gather(*(posting.send(b"hi", "a@x.example", "b@y.example") for _ in range(500)))
        assert now() - begun < 0.5
