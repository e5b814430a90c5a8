"""AsyncMailer.send_all at servers that refuse, close, go away and come back: one true Delivery for each message."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from typing import Any

import pytest

import asmtp
from asmtp import Delivery, Retry
from tests.fakes.clock import now
from tests.fakes.people import SENDER
from tests.fakes.relay import SHAPES, Conversation, Relay, relaying
from tests.mailer.mailing import Impatient, Tired, agree, answering, comings_and_goings, item, items, mailer, till

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("bdat_at_once")]


PATIENT = Retry(attempts=10, within=600)
REFUSED = re.compile("[147]@")


async def all_of(posting: asmtp.AsyncMailer, count: int, **options: Any) -> list[Delivery[Any]]:
    return [delivery async for delivery in posting.send_all(items(count), **options)]


async def slowly(count: int, pause: float) -> AsyncIterator[Any]:
    for number in range(count):
        await asyncio.sleep(pause)
        yield item(number)


# ---- a server that refuses --------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["MAIL", "RCPT", "end"])
async def test_everything_is_refused(verb: str, shape: tuple[str, ...]) -> None:
    async with relaying(Relay(shape, answer=answering(**{verb: "550 5.7.1 no"}))) as relay, mailer(relay) as posting:
        deliveries = await all_of(posting, 100)
        assert agree(relay, deliveries, 100) == {"refused": 100}
        assert posting.stats.retried == 0
        assert {type(delivery.error) for delivery in deliveries} == {
            {"MAIL": asmtp.SMTPSenderRefused, "RCPT": asmtp.SMTPRecipientsRefused, "end": asmtp.SMTPDataError}[verb]
        }
        relay.answer = answering()
        assert agree(relay, await all_of(posting, 10), 10) == {"sent": 10}


@pytest.mark.virtual_clock
@pytest.mark.parametrize("verb", ["MAIL", "RCPT", "end"])
async def test_everything_is_refused_for_now(verb: str) -> None:
    """Each message is tried three times, and no more."""
    relay = Relay(SHAPES["both"], answer=answering(**{verb: "451 4.7.1 later"}))
    async with relaying(relay), mailer(relay) as posting:
        deliveries = await all_of(posting, 50)
        assert agree(relay, deliveries, 50) == {"refused": 50}
        assert all(delivery.error.transient for delivery in deliveries)  # type: ignore[union-attr]
        assert relay.verbs.count("MAIL") == 150
        assert posting.stats.retried == 100


@pytest.mark.virtual_clock
async def test_greylisting() -> None:
    """The server takes each pair of sender and recipient five minutes after it saw it first."""
    seen: dict[str, float] = {}

    def answer(verb: str, line: str) -> str | None:
        early = verb == "RCPT" and now() - seen.setdefault(line, now()) < 300
        return "450 4.2.0 greylisted" if early else None

    patient = Retry(attempts=20, within=1000, maximum=60)
    async with relaying(Relay(SHAPES["both"], answer=answer)) as relay, mailer(relay, retry=patient) as posting:
        assert agree(relay, await all_of(posting, 20), 20) == {"sent": 20}
        assert 300 <= now() <= 400


async def test_every_connection_is_refused() -> None:
    async with relaying(Relay(greeting="554 5.3.2 no")) as relay, mailer(relay) as posting:
        deliveries = await all_of(posting, 1000)
        assert agree(relay, deliveries, 1000) == {"not_sent": 1000}
        assert {type(delivery.error) for delivery in deliveries} == {asmtp.SMTPConnectError}


async def test_some_of_each_kind(shape: tuple[str, ...]) -> None:
    """A message that is refused in the middle of a pipeline does not touch its neighbours."""

    def answer(verb: str, line: str) -> str | None:
        number = int("".join(filter(str.isdigit, line.partition("@")[0])) or 0) if verb in ("MAIL", "RCPT") else 0
        if verb == ".":
            number = int(line.removeprefix("Subject: ").partition("\r")[0])
        if number % 7 == {"MAIL": 1, "RCPT": 2, ".": 3}.get(verb):
            return f"550 5.0.0 {number}"
        return f"250 2.0.0 {number}" if verb in ("RCPT", ".") else None

    async with relaying(Relay(shape, answer=answer)) as relay, mailer(relay) as posting:
        deliveries = await all_of(posting, 350, in_order=True)
        assert agree(relay, deliveries, 350) == {"sent": 200, "refused": 150}
        for number, delivery in enumerate(deliveries):
            if delivery.receipt is not None:
                replies = {
                    str(delivery.receipt.reply.text),
                    str(delivery.receipt.accepted[f"b{number}@y.example"].text),
                }
                assert all(str(number) in reply.split() for reply in replies), replies
            else:
                assert str(number) in str(delivery.error)


# ---- a server that closes ---------------------------------------------------------------------


@pytest.mark.parametrize("in_order", [False, True])
@pytest.mark.parametrize("most", [1, 10])
@pytest.mark.parametrize("bye", ["421 4.7.0 enough", "421 4.4.2 too many messages in this connection"])
async def test_a_server_that_says_421_every_few_messages(
    bye: str, most: int, in_order: bool, shape: tuple[str, ...]
) -> None:
    """Nothing is lost or sent twice, and no try is counted, as no message is to blame."""
    relay = Tired(shape)
    relay.most, relay.bye = most, bye
    async with relaying(relay), mailer(relay, retry=None) as posting:
        deliveries = await all_of(posting, 200, in_order=in_order)
        assert agree(relay, deliveries, 200) == {"sent": 200}
        assert posting.stats.sent == 200


@pytest.mark.parametrize("bye", ["554 Too many nonmail commands", "503-no\r\n503 Too many syntax or protocol errors"])
async def test_a_server_that_has_enough_of_a_connection(bye: str, shape: tuple[str, ...]) -> None:
    """Exim ends the connection at the eleventh RSET behind a refused message, and does not look at those behind."""
    relay = Impatient(shape, answer=lambda verb, line: "550 no" if verb == "RCPT" and REFUSED.search(line) else None)
    relay.bye = bye
    async with relaying(relay), mailer(relay, retry=None) as posting:
        deliveries = await all_of(posting, 200)
        assert agree(relay, deliveries, 200) == {"sent": 140, "refused": 60}
        assert len(relay.connections) > 1


@pytest.mark.parametrize("most", [1, 10])
async def test_a_server_that_closes_every_few_messages(most: int, shape: tuple[str, ...]) -> None:
    """A message that was written whole, and not answered, is told as in doubt."""
    relay = Tired(shape)
    relay.most = most
    async with relaying(relay), mailer(relay) as posting:
        states = agree(relay, await all_of(posting, 200), 200)
        assert set(states) <= {"sent", "in_doubt"}
        if shape != SHAPES["both"]:  # one after the other: there is nothing to be in doubt about
            assert states == {"sent": 200}
        assert states["sent"] > 0


@pytest.mark.parametrize("most", [1, 10])
async def test_in_doubt_is_sent_again_where_that_is_asked_for(most: int) -> None:
    relay = Tired(SHAPES["both"])
    relay.most = most
    retry = Retry(attempts=1000, in_doubt=True, initial=0.001)
    async with relaying(relay), mailer(relay, retry=retry, connections=2, window=5) as posting:
        deliveries = await all_of(posting, 50)
        assert {delivery.state for delivery in deliveries} == {"sent"}
        # This one takes nothing that it does not answer, so nothing was sent twice.
        assert agree(relay, deliveries, 50) == {"sent": 50}


# ---- a server that goes away ------------------------------------------------------------------


@pytest.mark.virtual_clock
@pytest.mark.parametrize(
    ("shape", "in_order"), [("none", False), ("pipelining", True), ("both", False), ("both", True)]
)
async def test_a_server_that_goes_away_and_comes_back(shape: str, in_order: bool) -> None:
    """The server is away for 10 s, twice.  No message is lost unless it is in doubt, and none is taken twice."""
    relay = Relay(SHAPES[shape], latency=0.05)

    async def restless() -> None:
        for _ in range(2):
            await asyncio.sleep(10)
            await comings.shut()
            await asyncio.sleep(10)
            await comings.open()

    async with comings_and_goings(relay) as comings, mailer(relay, retry=PATIENT) as posting:
        coming_and_going = asyncio.create_task(restless())
        deliveries = [d async for d in posting.send_all(slowly(50, 0.8), in_order=in_order)]
        states = agree(relay, deliveries, 50)
        assert set(states) <= {"sent", "in_doubt"}
        assert states["in_doubt"] <= 8
        assert posting.stats.retried
        coming_and_going.cancel()


@pytest.mark.virtual_clock
async def test_a_server_that_is_away_at_first() -> None:
    async with comings_and_goings(relay := Relay(SHAPES["both"])) as comings, mailer(relay, retry=PATIENT) as posting:
        await comings.shut()
        asyncio.get_running_loop().call_later(20, lambda: opening.append(asyncio.ensure_future(comings.open())))
        opening: list[asyncio.Future[None]] = []
        assert agree(relay, await all_of(posting, 50), 50) == {"sent": 50}
        assert 20 < now() < 60
        assert len(relay.connections) <= 4


@pytest.mark.virtual_clock
async def test_a_server_that_stays_away() -> None:
    async with comings_and_goings(relay := Relay()) as comings, mailer(relay) as posting:
        await comings.shut()
        deliveries = await all_of(posting, 50)
        assert agree(relay, deliveries, 50) == {"not_sent": 50}
        assert {type(delivery.error) for delivery in deliveries} == {asmtp.SMTPServerDisconnected}
        assert now() < 60


@pytest.mark.virtual_clock
async def test_another_server_stands_in_and_steps_back() -> None:
    """The server that is there gets the messages, each of them once; the first one as soon as it is back."""
    first, second = Relay(SHAPES["both"], latency=0.01), Relay(SHAPES["both"], latency=0.01)
    async with comings_and_goings(first) as comings, relaying(second), mailer(first, second, retry=PATIENT) as posting:
        told: list[Delivery[Any]] = []
        async for delivery in posting.send_all(slowly(200, 0.5)):
            told.append(delivery)
            if len(told) == 50:
                await comings.shut()
                before = len(first.letters)
            elif len(told) == 100:
                assert len(second.letters) >= 45
                assert len(first.letters) - before <= 1
                await comings.open()
        states = agree([first, second], told, 200)
        assert set(states) <= {"sent", "in_doubt"}
        assert states["in_doubt"] <= 1
        assert len(first.letters) > 80  # half a minute at most after it is back
        for delivery in told:
            if delivery.receipt is not None:
                taken_by = first if delivery.receipt.relay.endswith(f":{first.port}") else second
                assert delivery.item[0] in {letter.sender for letter in taken_by.letters}


@pytest.mark.virtual_clock
async def test_a_server_that_falls_silent() -> None:
    """The connection is given up when its time is over; a message without an answer is in doubt, or sent again."""
    relay = Relay(SHAPES["both"])
    async with relaying(relay), mailer(relay, connections=1, timeouts=30, retry=PATIENT) as posting:
        told: list[Delivery[Any]] = []
        async for delivery in posting.send_all(slowly(100, 1)):
            told.append(delivery)
            if len(told) == 50:
                relay.hold = 0
                await relay.held.wait()
            elif len(told) == 51:
                relay.hold = None
        states = agree(relay, told, 100)
        assert set(states) <= {"sent", "in_doubt"}
        assert states["in_doubt"] >= 1


class _OneOfFew(Conversation):
    def __init__(self, relay: Relay) -> None:
        super().__init__(relay)
        self.crowded = sum(not each.closed.is_set() for each in relay.connections) >= 2

    def say(self, reply: str) -> None:
        super().say("421 4.7.0 too many connections" if self.crowded else reply)


class Few(Relay):
    """A relay that takes two connections at a time."""

    conversation = _OneOfFew


@pytest.mark.virtual_clock
async def test_a_server_that_takes_few_connections() -> None:
    """The connections that the server takes do the work; the mailer does not connect for each message."""
    relay = Few(SHAPES["pipelining"], latency=0.1)
    async with relaying(relay), mailer(relay, connections=8, retry=PATIENT) as posting:
        assert agree(relay, await all_of(posting, 150), 150) == {"sent": 150}
        assert len(relay.connections) < 20
        assert posting.stats.open <= 2


@pytest.mark.virtual_clock
async def test_each_of_the_recipients_is_accounted_for() -> None:
    """Recipients are taken, refused for good, or taken later, in several transactions, with 421 in between."""
    relay = Tired(SHAPES["pipelining"])
    relay.most, relay.bye = 3, "421 4.7.0 enough"
    tries: dict[str, int] = {}

    def answer(verb: str, line: str) -> str | None:
        if verb != "RCPT":
            return None
        who = line[line.index("<") + 1 : line.index("@")]
        tries[who] = tries.get(who, 0) + 1
        if who.startswith("no"):
            return "550 5.1.1 no"
        return "451 4.2.0 later" if who.startswith("later") and tries[who] < 3 else None

    relay.answer = answer
    given = [
        (SENDER, [f"{kind}{number}@y.example" for kind in ("yes", "no", "later")], b"%d" % number)
        for number in range(40)
    ]
    async with relaying(relay), mailer(relay, retry=PATIENT) as posting:
        async for delivery in posting.send_all(given):
            assert delivery.ok
            assert delivery.receipt is not None
            yes, no, later = delivery.item[1]
            assert sorted(delivery.receipt.accepted) == [later, yes]
            assert list(delivery.receipt.refused) == [no]
            assert delivery.receipt.failed == {}
        taken = [who for letter in relay.letters for who in letter.recipients]
        assert len(taken) == len(set(taken)) == 80


async def test_the_limit_that_the_server_tells(shape: tuple[str, ...]) -> None:
    """No connection is given more messages than LIMITS MAILMAX says (RFC 9422), so none is closed on a message."""
    relay = Tired((*shape, "LIMITS MAILMAX=10 RCPTMAX=100"))
    relay.bye = "421 4.7.0 I told you"
    async with relaying(relay), mailer(relay, connections=2, retry=None) as posting:
        assert agree(relay, await all_of(posting, 100), 100) == {"sent": 100}
        await till(lambda: posting.stats.open == 0 or relay.verbs.count("QUIT") >= 9, 0.01)
    assert relay.verbs.count("MAIL") == 100
