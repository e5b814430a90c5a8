"""The pool opens connections, uses them and gives them up as it should: as a server sees it."""

from __future__ import annotations

import asyncio
import io
import itertools
import random
import ssl
from collections import Counter
from typing import Any, cast

import pytest

import asmtp
from asmtp import AsyncMailer, Receipt
from asmtp.mailer.connection import make_connection
from asmtp.mailer.message import QueuedMessage, RequestState, envelope_of
from asmtp.mailer.pool import Pool
from asmtp.mailer.queue import DeliveryQueue
from asmtp.mailer.relay_state import RelayState
from tests.conftest import Certificates
from tests.fakes.clock import now
from tests.fakes.relay import SHAPES, Conversation, Relay, relaying
from tests.fakes.script import listening, scripted, silence, until
from tests.mailer.mailing import agree, answering, comings_and_goings, email, item, items, mailer

pytestmark = pytest.mark.usefixtures("bdat_at_once")


# ---- connections, as a server sees them --------------------------------------------------------


class Guest(Conversation):
    relay: Door

    def __init__(self, relay: Door) -> None:
        super().__init__(relay)
        self.instead = ""  # of the usual reply
        self.taken = 0
        self.mails = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        relay = self.relay
        relay.present += 1
        relay.house[0] += 1
        relay.house[1] = max(relay.house)
        if relay.present > relay.room:
            relay.turned_away += 1
            self.instead = relay.full
        else:
            relay.most = max(relay.most, relay.present)
        if relay.silent:
            relay.silent -= 1
            self.transport = cast("asyncio.Transport", transport)
        else:
            super().connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.relay.present -= 1
        self.relay.house[0] -= 1
        super().connection_lost(exc)

    def say(self, reply: str) -> None:
        instead, self.instead = self.instead, ""
        super().say(instead or reply)

    def flush(self) -> None:
        full = self.replies == [self.relay.full]
        super().flush()
        if full:
            self.transport.close()

    def command(self, line: str) -> None:
        relay = self.relay
        verb = line.split(" ")[0].upper()
        self.mails += verb == "MAIL"
        if (verb == "MAIL" and self.taken >= relay.tired) or (
            verb == "RCPT" and len(self.recipients) >= relay.most_recipients
        ):
            relay.commands.append(line)
            super().say(relay.bye if verb == "MAIL" else relay.crowded)
        else:
            super().command(line)

    def end(self, content: bytes) -> None:
        before = len(self.relay.letters)
        super().end(content)
        taken = len(self.relay.letters) - before
        self.taken += taken
        self.relay.times += [now()] * taken


class Door(Relay):
    """A relay that counts the connections that are open at once, and can have enough of them.

    Attributes:
        room: more than so many at once get the greeting `full`.
        tired: a connection that has taken so many messages gets `bye` for the next MAIL.
        most_recipients: a transaction that has so many gets `crowded` for the next RCPT.
        silent: so many more connections are not greeted.
        present, most: how many are there, and were.
        house: the same of several doors together.
        turned_away: how many got `full`.
        times: when each letter was taken.
    """

    conversation = Guest
    room = 1000
    full = "421 4.7.0 relay.example Error: too many connections from 127.0.0.1"
    tired = 1_000_000
    bye = "421 relay.example too many messages in this connection"
    most_recipients = 1_000_000
    crowded = "452 4.5.3 Error: too many recipients"
    silent = 0
    present = 0
    most = 0
    turned_away = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.times: list[float] = []
        self.house = [0, 0]

    @property
    def guests(self) -> list[Guest]:
        return cast("list[Guest]", self.connections)

    @property
    def numbers(self) -> list[int]:
        """Return which of `items` the relay has taken."""
        return [int(letter.sender[1:].partition("@")[0]) for letter in self.letters]


async def send(posting: AsyncMailer, count: int) -> None:
    """Send so many in one go: each must be sent."""
    deliveries = [delivery async for delivery in posting.send_all(items(count))]
    assert [delivery.error for delivery in deliveries if not delivery.ok] == []
    assert len(deliveries) == count


async def one(posting: AsyncMailer, number: int = 0) -> Receipt:
    sender, recipient, content = item(number)
    return await posting.send(content, sender, recipient)


# So many that take some time, and not many passes of the loop.
SOME = {SHAPES["none"]: 40, SHAPES["chunking"]: 40, SHAPES["pipelining"]: 60, SHAPES["both"]: 1500}


@pytest.mark.virtual_clock
async def test_one_after_another_they_share_a_connection() -> None:
    async with relaying(Door(SHAPES["both"], latency=0.1)) as relay, mailer(relay) as posting:
        for number in range(20):
            await one(posting, number)
            await asyncio.sleep(number / 10)
        assert relay.numbers == list(range(20))
        assert len(relay.guests) == 1
        assert posting.stats.open == 1
    assert relay.verbs[-1] == "QUIT"


@pytest.mark.virtual_clock
@pytest.mark.parametrize("connections", [2, 5])
async def test_connections_are_opened_as_the_load_asks(connections: int, shape: tuple[str, ...]) -> None:
    relay = Door(shape, latency=0.1)
    async with relaying(relay), mailer(relay, connections=connections, window=10) as posting:
        await send(posting, SOME[shape])
        # Four have room for all that is taken ahead for five, but for a moment.
        assert min(4, connections) <= relay.most == len(relay.guests) <= connections
        assert sorted(relay.numbers) == list(range(SOME[shape]))
    assert relay.present == 0


@pytest.mark.virtual_clock
async def test_tasks_of_their_own() -> None:
    relay = Door(latency=0.1)
    async with relaying(relay), mailer(relay, connections=3) as posting:
        await asyncio.gather(*(one(posting, number) for number in range(20)))
        assert relay.most == 3
        assert sorted(relay.numbers) == list(range(20))


# ---- connections that are not used, or used enough ---------------------------------------------


@pytest.mark.virtual_clock
@pytest.mark.parametrize("idle", [5, 60])
async def test_an_unused_connection_is_closed(idle: float) -> None:
    async with relaying(Door()) as relay, mailer(relay, idle=idle) as posting:
        for _ in range(3):
            await one(posting)
            await asyncio.sleep(idle - 0.5)
            assert relay.present == 1
        await asyncio.sleep(1)
        assert relay.present == 0
        assert relay.verbs[-1] == "QUIT"
        assert posting.stats.open == 0
        await one(posting)
        assert len(relay.guests) == 2


@pytest.mark.virtual_clock
async def test_each_has_its_own_time() -> None:
    """Connections that were opened for a burst are closed when the burst is over; one that is used stays."""
    async with relaying(Door(latency=0.1)) as relay, mailer(relay, connections=3, idle=10) as posting:
        await send(posting, 20)
        assert relay.present == 3
        for _ in range(5):
            await asyncio.sleep(4)
            await one(posting)
        assert relay.present == 1


@pytest.mark.virtual_clock
async def test_a_connection_may_be_idle_for_ever() -> None:
    async with relaying(Door()) as relay, mailer(relay, idle=None, max_age=None) as posting:
        await one(posting)
        await asyncio.sleep(1_000_000)
        await one(posting)
        assert len(relay.guests) == 1


@pytest.mark.virtual_clock
async def test_a_busy_connection_is_not_idle() -> None:
    async with relaying(Door(latency=4)) as relay, mailer(relay, idle=3) as posting:
        await one(posting)
        assert len(relay.guests) == 1
        await asyncio.sleep(8)
        assert relay.present == 0


@pytest.mark.parametrize("end", ["421", "FIN", "RST"])
async def test_a_connection_that_has_ended_is_not_used(end: str, shape: tuple[str, ...]) -> None:
    async with relaying(Door(shape)) as relay, mailer(relay, retry=None) as posting:
        for number in range(3):
            await one(posting, number)
            guest = relay.guests[-1]
            before = len(relay.reads)
            if end == "421":
                guest.transport.write(b"421 4.4.2 idle for too long\r\n")
            elif end == "FIN":
                guest.transport.close()
            else:
                guest.kill()
            await until(lambda: not posting.stats.open)
            assert len(relay.reads) == before
        assert relay.numbers == [0, 1, 2]
        assert len(relay.guests) == 3


@pytest.mark.virtual_clock
@pytest.mark.parametrize("end", ["FIN", "RST"])
async def test_a_connection_that_ends_as_it_is_used(end: str, shape: tuple[str, ...]) -> None:
    """The message is sent again, once, and the caller is not told."""
    async with relaying(Door(shape)) as relay, mailer(relay, retry=None) as posting:
        for number in range(3):
            receipt = await one(posting, number)
            assert receipt.attempts == 1
            await asyncio.sleep(2)
            assert posting.stats.open == 1
            if end == "FIN":  # the client does not know it yet when it writes
                relay.guests[-1].transport.close()
            else:
                relay.guests[-1].kill()
        await one(posting, 3)
        assert relay.numbers == [0, 1, 2, 3]
        assert len(relay.guests) == 4


async def test_what_is_tried_again_silently_is_counted(shape: tuple[str, ...]) -> None:
    """The server closes a connection that has served, before it sees the message: that counts also with retry=None."""
    relay = Door(shape)
    relay.tired = 2
    async with relaying(relay), mailer(relay, connections=1, retry=None) as posting:
        for number in range(3):
            assert (await one(posting, number)).attempts == 1
        assert posting.stats.retried == 1
        assert relay.numbers == [0, 1, 2]


@pytest.mark.virtual_clock
async def test_all_of_them_end_as_they_are_used() -> None:
    async with relaying(Door(latency=0.1)) as relay, mailer(relay, connections=3, retry=None) as posting:
        await send(posting, 20)
        await asyncio.sleep(2)
        for guest in relay.guests:
            guest.kill()
        await send(posting, 20)
        assert sorted(relay.numbers) == sorted([*range(20), *range(20)])


@pytest.mark.parametrize(("jitter", "most"), [(0.9, 9), (1.0, 10), (0.951, 10)])
async def test_a_connection_is_replaced_after_so_many_messages(
    jitter: float, most: int, shape: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(random, "uniform", lambda low, high: jitter)
    async with relaying(Door(shape)) as relay, mailer(relay, connections=1, max_messages=10) as posting:
        await send(posting, 3 * most + 1)
        assert [guest.taken for guest in relay.guests] == [most, most, most, 1]
        assert relay.most == 1
        assert relay.verbs.count("QUIT") == 3


async def test_not_all_of_them_at_the_same_time() -> None:
    async with relaying(Door(SHAPES["both"])) as relay, mailer(relay, connections=1, max_messages=100) as posting:
        await send(posting, 2000)
        taken = [guest.taken for guest in relay.guests[:-1]]
        assert len(taken) >= 19
        assert 90 <= min(taken) < max(taken) <= 100


async def test_one_message_a_connection(shape: tuple[str, ...]) -> None:
    async with relaying(Door(shape)) as relay, mailer(relay, connections=2, max_messages=1) as posting:
        await send(posting, 5)
        await one(posting)
        assert [guest.taken for guest in relay.guests] == [1] * 6
        assert relay.most <= 2


async def test_the_server_says_how_many_messages_a_connection_takes(shape: tuple[str, ...]) -> None:
    """A connection is given no more messages than MAILMAX says (RFC 9422)."""
    async with relaying(Door((*shape, "LIMITS MAILMAX=7"))) as relay, mailer(relay, connections=2) as posting:
        await send(posting, 40)
        await asyncio.gather(*(one(posting, number) for number in range(10)))
        assert [guest.mails <= 7 for guest in relay.guests] == [True] * len(relay.guests)
        assert sum(guest.taken for guest in relay.guests) == 50
        assert len(relay.guests) <= 50 / 7 + 2


@pytest.mark.virtual_clock
@pytest.mark.parametrize(("jitter", "age"), [(0.9, 90), (1.0, 100)])
async def test_a_connection_is_replaced_when_it_is_old(
    jitter: float, age: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(random, "uniform", lambda low, high: low + (high - low) * (jitter - 0.9) * 10)
    async with relaying(Door()) as relay, mailer(relay, idle=None, max_age=100) as posting:
        for number in range(9):
            await one(posting, number)
            await asyncio.sleep(age / 9 - 0.01)
        assert len(relay.guests) == relay.present == 1
        await asyncio.sleep(0.2)
        assert relay.present == 0
        assert relay.verbs[-1] == "QUIT"
        await one(posting)
        assert len(relay.guests) == 2


@pytest.mark.virtual_clock
async def test_an_old_connection_finishes_what_it_has() -> None:
    async with relaying(Door(latency=2)) as relay, mailer(relay, connections=1, max_age=5) as posting:
        await send(posting, 6)  # four at a time
        assert sorted(relay.numbers) == list(range(6))
        assert [guest.taken for guest in relay.guests] == [4, 2]
        assert relay.verbs.count("QUIT") == 1
        assert relay.most == 1


# ---- a server that does not take so many -------------------------------------------------------


@pytest.mark.virtual_clock
@pytest.mark.parametrize("full", [Door.full, "450 4.3.2 busy", "554 5.3.2 no more"])
async def test_a_server_that_takes_no_more_connections(full: str) -> None:
    relay = Door(latency=0.1)
    relay.full = full
    relay.room = 2
    async with relaying(relay), mailer(relay, connections=5, idle=1000, retry=None) as posting:
        await send(posting, 20)
        assert relay.most == 2
        assert 1 <= relay.turned_away <= 3
        before = relay.turned_away
        await send(posting, 20)
        assert now() < 55
        assert relay.turned_away == before  # it is not asked for a while
        relay.room = 1000
        await asyncio.sleep(61)
        await send(posting, 30)
        assert relay.most == 5
        assert sorted(relay.numbers) == sorted([*range(20), *range(20), *range(30)])


@pytest.mark.virtual_clock
async def test_a_server_that_takes_nobody() -> None:
    relay = Door()
    relay.room = 0
    async with relaying(relay), mailer(relay) as posting:
        begun = now()
        with pytest.raises(asmtp.SMTPConnectError) as caught:
            await one(posting)
        assert caught.value.state == "not_sent"
        assert caught.value.smtp_code == 421
        assert relay.turned_away == 3  # Retry()
        assert now() - begun <= 0.5 + 1 + 0.1
        task = asyncio.create_task(one(posting))
        await asyncio.sleep(0.1)
        relay.room = 1
        assert (await task).attempts == 1  # it is not asked more than twice a second


@pytest.mark.virtual_clock
async def test_told_so_when_it_is_open_already() -> None:
    async with relaying(Door(latency=0.1)) as relay, mailer(relay, connections=3) as posting:
        await send(posting, 20)
        assert relay.present == 3
        for guest in relay.guests[:2]:
            guest.transport.write(b"421 4.7.0 too many connections\r\n")
            guest.transport.close()
        await asyncio.sleep(1)
        assert relay.present == 1
        relay.most = 0
        await send(posting, 20)
        assert relay.present == 1
        await asyncio.sleep(61)
        await send(posting, 20)
        assert relay.most == 3


@pytest.mark.virtual_clock
@pytest.mark.parametrize(
    ("bye", "offers"),
    [
        *(("421 too many messages in this connection", offers) for offers in SHAPES),
        ("421 4.7.0 Error: too many errors", "pipelining"),
        ("421 Max message per connection", "pipelining"),
    ],
)
async def test_a_connection_that_has_taken_enough(bye: str, offers: str) -> None:
    """Exim and Amazon say so if they want another connection, not fewer messages."""
    shape = SHAPES[offers]
    relay = Door(shape, latency=0.1)
    relay.tired = 4
    relay.bye = bye
    async with relaying(relay), mailer(relay, connections=3, window=10, retry=None, rate="1000000/s") as posting:
        await send(posting, 36)
        assert sorted(relay.numbers) == list(range(36))
        assert len(relay.guests) <= 36 / 4 + 2
        before = relay.verbs.count("MAIL")
        await send(posting, 36)
        assert relay.verbs.count("MAIL") == before + 36  # it is known now, and nothing is begun in vain
        assert now() < 55
        relay.tired = 1000
        await asyncio.sleep(600)
        await send(posting, SOME[shape])
        assert relay.present == 3


# ---- several relays ----------------------------------------------------------------------------


@pytest.mark.virtual_clock
async def test_the_first_is_used() -> None:
    async with (
        relaying(Door(latency=0.1)) as first,
        relaying(Door(latency=0.1)) as second,
        mailer(first, second, connections=3) as posting,
    ):
        await send(posting, 20)
        receipt = await one(posting)
        assert receipt.relay == f"127.0.0.1:{first.port}"
        assert len(second.guests) == 0


@pytest.mark.virtual_clock
async def test_the_next_one_in_order_is_used() -> None:
    down, up, spare = Door(), Door(), Door()
    down.room, down.full = 0, "554 5.3.2 closed"
    async with relaying(down), relaying(up), relaying(spare), mailer(down, down, up, spare, retry=None) as posting:
        receipt = await one(posting)
        assert receipt.relay == f"127.0.0.1:{up.port}"
        assert receipt.attempts == 1
        assert len(spare.guests) == 0


@pytest.mark.virtual_clock
async def test_a_relay_that_is_down_is_left_alone_longer_and_longer() -> None:
    first, second = Door(), Door()
    first.room, first.full = 0, "421 4.3.2 down"
    async with relaying(first), relaying(second), mailer(first, second, retry=None, max_age=None) as posting:
        tries = []
        for number in range(200):
            await one(posting, number)
            tries.append(first.turned_away)
            await asyncio.sleep(1)
        assert tries[0] == 1
        assert 5 <= tries[-1] <= 14  # 1, 2, 4, 8, 16, 32, 60, 60... seconds, less what is left to chance
        assert tries[-1] - tries[100] <= 4
        assert second.numbers == list(range(200))


@pytest.mark.virtual_clock
@pytest.mark.parametrize("connections", [1, 3])
async def test_the_first_is_used_again_when_it_is_back(connections: int) -> None:
    """The first relay is used again, though there is a connection to the other, and little to send."""
    first, second = Door(), Door()
    first.room, first.full = 0, "421 4.3.2 down"
    async with relaying(first), relaying(second), mailer(first, second, connections=connections) as posting:
        await one(posting)
        assert second.present == 1
        first.room = 1000
        for number in range(5):
            await one(posting, number)
            await asyncio.sleep(1)
        receipt = await one(posting)
        assert receipt.relay == f"127.0.0.1:{first.port}"
        await asyncio.sleep(1)
        assert second.present == 0
        assert second.verbs[-1] == "QUIT"


@pytest.mark.virtual_clock
async def test_the_first_comes_back_while_much_is_sent() -> None:
    """Connections to the other finish their messages; there are never more connections than allowed in all."""
    first, second = Door(latency=0.1), Door(latency=0.1)
    first.house = second.house
    first.room, first.full = 0, "421 4.3.2 down"
    async with relaying(first), relaying(second), mailer(first, second, connections=2) as posting:
        asyncio.get_running_loop().call_later(3, setattr, first, "room", 1000)
        await send(posting, 60)
        assert second.numbers
        assert first.numbers
        assert sorted(first.numbers + second.numbers) == list(range(60))
        assert second.house[1] == 2


@pytest.mark.virtual_clock
async def test_a_relay_that_dies_while_it_is_used() -> None:
    first, second = Relay(latency=0.1), Door(latency=0.1)
    async with comings_and_goings(first) as comings, relaying(second), mailer(first, second, connections=2) as posting:
        task = asyncio.create_task(send(posting, 20))
        await asyncio.sleep(1.25)
        await comings.shut()
        await task
        numbers = sorted(second.numbers + [int(letter.sender[1:-10]) for letter in first.letters])
        assert numbers == list(range(20))
        assert first.letters
        assert second.letters


@pytest.mark.virtual_clock
async def test_all_of_them_are_down_and_come_back() -> None:
    first, second = Relay(), Relay()
    async with comings_and_goings(first) as one_door, comings_and_goings(second) as other_door:
        await one_door.shut()
        await other_door.shut()
        async with mailer(first, second, retry=None) as posting:
            with pytest.raises(asmtp.SMTPServerDisconnected, match="no connection to 127") as caught:
                await one(posting)
            assert caught.value.state == "not_sent"
            assert isinstance(caught.value.__cause__, OSError)
        async with mailer(first, second) as posting:
            tasks = [asyncio.create_task(one(posting, number)) for number in range(5)]
            await asyncio.sleep(0.1)
            await other_door.open()
            receipts = await asyncio.gather(*tasks)
            assert {receipt.relay for receipt in receipts} == {f"127.0.0.1:{second.port}"}
            assert {receipt.attempts for receipt in receipts} == {2}


@pytest.mark.virtual_clock
async def test_those_behind_a_limit_of_recipients_wait_for_each_relay() -> None:
    """Those recipients wait as a message does that is put in line at that moment: a relay that failed may be back."""

    def answer(verb: str, line: str) -> str | None:
        if verb == ".":
            first.room, second.room = 1000, 0
        return None

    first, second = Door(), Door(latency=0.1, answer=answer)
    first.room, first.full, second.full = 0, "421 4.3.2 down", "421 4.3.2 down"
    second.most_recipients = 1
    async with relaying(first), relaying(second), mailer(first, second, retry=None, max_messages=1) as posting:
        receipt = await posting.send(b"hi", "a@x.example", ["b@y.example", "c@y.example"])
        assert receipt.complete
        assert [letter.recipients for letter in second.letters + first.letters] == [["b@y.example"], ["c@y.example"]]


@pytest.mark.virtual_clock
async def test_many_that_fail_together_have_failed_once() -> None:
    """Several failures at once count as one: else a moment's refusal would keep the relay out of use for minutes."""
    first, second = Door(latency=0.1), Door()
    first.room, first.full = 0, "421 4.3.2 one moment"
    async with relaying(first), relaying(second), mailer(first, second, connections=20) as posting:
        await send(posting, 400)
        assert first.turned_away >= 1
        first.room = 1000
        for _ in range(3):
            await asyncio.sleep(1)
            receipt = await one(posting)
        assert receipt.relay == f"127.0.0.1:{first.port}"


@pytest.mark.virtual_clock
async def test_each_relay_is_tried_for_each_message() -> None:
    """If all relays rest, each is tried all the same: one that is left alone for minutes may be back."""
    doors = [Door() for _ in range(3)]
    for door in doors:
        door.room = 0
    async with relaying(doors[0]), relaying(doors[1]), relaying(doors[2]), mailer(*doors, retry=None) as posting:
        for number in range(1, 50):
            with pytest.raises(asmtp.SMTPConnectError):
                await one(posting)
            # One whose rest is over may have a second try, before it is the others' turn.
            assert number <= min(door.turned_away for door in doors)
            assert max(door.turned_away for door in doors) < number + 10
            await asyncio.sleep(0.001)
        doors[1].room = 1
        assert (await one(posting)).relay == f"127.0.0.1:{doors[1].port}"


@pytest.mark.virtual_clock
async def test_a_connection_that_hangs_is_not_waited_for_alone() -> None:
    relay = Door()
    relay.silent = 2
    async with relaying(relay), mailer(relay) as posting:
        await asyncio.gather(*(one(posting, number) for number in range(10)))
        assert 20 <= now() <= 22
        assert sorted(relay.numbers) == list(range(10))
        assert len(relay.guests) == 3
        await one(posting)
        assert len(relay.guests) == 3


@pytest.mark.virtual_clock
async def test_a_server_that_lets_people_wait() -> None:
    """The server greets late, as sendmail and Postfix do to find clients that cannot wait."""
    async with relaying(Door(latency=4)) as relay, mailer(relay, connections=10) as posting:
        await asyncio.gather(*(one(posting, number) for number in range(3)))
        assert len(relay.guests) == 1


@pytest.mark.virtual_clock
async def test_a_relay_that_hangs_altogether() -> None:
    """The other relay serves then."""
    first, second = Door(), Door()
    first.silent = 1000
    async with relaying(first), relaying(second), mailer(first, second, connections=2, timeouts=30) as posting:
        await one(posting)
        assert now() == pytest.approx(10, abs=1)
        assert len(first.guests) == 1
        assert second.numbers == [0]
        for number in range(100):  # and it is not waited for again, though one looks whether it is back
            await one(posting, number)
            await asyncio.sleep(1)
        assert now() < 112
        assert 3 <= len(first.guests) < 9


# ---- messages for many -------------------------------------------------------------------------

CROWD = [f"r{number}@y.example" for number in range(10)]


async def test_the_server_says_how_many_recipients_it_takes(shape: tuple[str, ...]) -> None:
    """Each recipient has the message once, in transactions of at most RCPTMAX recipients (RFC 9422)."""
    async with relaying(Door((*shape, "LIMITS RCPTMAX=4"))) as relay, mailer(relay, connections=1) as posting:
        receipt = await posting.send(b"hello", "a@x.example", CROWD + CROWD[:3])
        assert [letter.recipients for letter in relay.letters] == [CROWD[3:7], CROWD[7:] + CROWD[:1], CROWD[1:3]] or (
            sorted(sum((letter.recipients for letter in relay.letters), [])) == sorted(CROWD)
        )
        assert max(len(letter.recipients) for letter in relay.letters) == 4
        assert len(relay.letters) == 3
        assert set(receipt.accepted) == set(CROWD)
        assert receipt.attempts == 1


async def test_content_that_can_be_read_once_is_not_parted() -> None:
    relay = Door(("LIMITS RCPTMAX=4",))
    relay.most_recipients = 4
    async with relaying(relay), mailer(relay) as posting:
        receipt = await posting.send(io.BytesIO(b"hello"), "a@x.example", CROWD)
        assert list(receipt.accepted) == CROWD[:4]
        assert list(receipt.refused) == CROWD[4:]
        assert len(relay.letters) == 1


@pytest.mark.parametrize(
    "crowded",
    [
        "452 4.5.3 Error: too many recipients",
        "452 too many recipients",
        "452 insufficient system storage",
        "552 too many recipients",
        "552 5.5.3 Too many recipients",
    ],
    ids=["Postfix", "Exim", "bare", "RFC 821", "Sendmail"],
)
async def test_the_limit_is_found_out(crowded: str, shape: tuple[str, ...]) -> None:
    """The server says 452, or 552 if it is old (RFC 5321 §4.5.3.1.10); the limit is known from then on."""
    relay = Door(shape)
    relay.most_recipients = 4
    relay.crowded = crowded
    async with relaying(relay), mailer(relay, retry=None) as posting:
        for _ in range(2):
            receipt = await posting.send(b"hello", "a@x.example", CROWD)
            assert set(receipt.accepted) == set(CROWD)
            assert receipt.complete
            assert receipt.attempts == 1
        taken = [letter.recipients for letter in relay.letters]
        assert [len(each) for each in taken] == [4, 4, 2] * 2
        assert sorted(sum(taken, [])) == sorted(CROWD + CROWD)
        rcpts = relay.verbs.count("RCPT")
        if crowded == "452 insufficient system storage":  # that may be said of anything
            assert rcpts == 2 * (10 + 6 + 2)
        else:
            assert rcpts == 10 + 6 + 10  # each once; those over the limit again, four at a time then; each once


@pytest.mark.virtual_clock
@pytest.mark.parametrize("no", ["452 4.2.2 mailbox full", "450 4.2.1 mailbox busy", "552 5.2.2 mailbox full"])
async def test_not_every_refusal_is_a_limit(no: str, shape: tuple[str, ...]) -> None:
    relay = Door(shape, answer=answering(RCPT_r9=no))
    async with relaying(relay), mailer(relay) as posting:
        receipt = await posting.send(b"hello", "a@x.example", CROWD)
        assert list(receipt.refused) == ["r9@y.example"]
        assert receipt.attempts == (3 if no.startswith("4") else 1)
        await posting.send(b"hello", "a@x.example", CROWD[:9])
        assert [len(letter.recipients) for letter in relay.letters] == [9, 9]


# ---- a server that takes nothing behind an unanswered message ----------------------------------


@pytest.mark.parametrize("connections", [1, 2, 4])
async def test_a_server_that_wants_one_at_a_time(connections: int) -> None:
    relay = Door(SHAPES["both"], quick_tempered=True)
    async with relaying(relay), mailer(relay, connections=connections, retry=None) as posting:
        await send(posting, 400)
        assert sorted(relay.numbers) == list(range(400))
        refused = relay.verbs.count("RSET")
        relay.commands.clear()
        await send(posting, 400)
        assert "RSET" not in relay.verbs
        assert refused > 0
        # So it is on a new connection.
        relay.drop()
        await until(lambda: not posting.stats.open)
        await send(posting, 400)
        assert "RSET" not in relay.verbs


async def test_a_server_that_never_takes_a_reset() -> None:
    """The mailer does not try such a server for ever."""
    relay = Door(SHAPES["pipelining"], answer=answering(RSET="502 5.5.1 no such thing", RCPT_no="550 5.1.1 no"))
    async with relaying(relay), mailer(relay, connections=1, retry=None) as posting:
        deliveries = [
            delivery
            async for delivery in posting.send_all(
                [("a@x.example", who, b"hello") for who in ("no@y", "b@y", "no@y", "c@y")]
            )
        ]
        assert {delivery.state for delivery in deliveries} <= {"sent", "refused", "not_sent"}
        assert [delivery.state for delivery in deliveries].count("sent") == len(relay.letters)
        assert relay.verbs.count("RSET") < 20


async def test_a_message_behind_a_reset_that_is_refused_was_not_sent() -> None:
    """In lock-step, the reply to RSET is in before anything of the message is written."""
    relay = Door(SHAPES["none"], answer=answering(RSET="502 5.5.1 no such thing", RCPT_no="550 5.1.1 no"))
    async with relaying(relay), mailer(relay, connections=1, retry=None) as posting:
        with pytest.raises(asmtp.SMTPRecipientsRefused):
            await posting.send(b"hello", "a@x", "no@y")
        with pytest.raises(asmtp.SMTPResponseException, match="no such thing") as caught:
            await posting.send(b"hello", "a@x", "b@y")
        assert caught.value.state == "not_sent"
        assert relay.letters == []
        assert relay.verbs.count("MAIL") == 1


# ---- getting in --------------------------------------------------------------------------------


@pytest.mark.virtual_clock
async def test_every_connection_asks_for_a_token() -> None:
    calls: list[bool] = []

    async def token(force: bool) -> str:
        calls.append(force)
        return f"t{len(calls)}"

    relay = Door(("AUTH XOAUTH2",), latency=0.1, answer=answering(AUTH="235 2.7.0 welcome"))
    async with relaying(relay), mailer(relay, connections=3, username="me", token=token, tls="none") as posting:
        await send(posting, 20)
        assert calls == [False] * 3
        presented = [command for command in relay.commands if command.startswith("AUTH")]
        assert len(presented) == len(set(presented)) == 3
        await asyncio.sleep(100)  # idle
        await one(posting)
        assert calls == [False] * 4


@pytest.mark.virtual_clock
async def test_no_token_can_be_had() -> None:
    calls = 0

    async def token(force: bool) -> str:
        nonlocal calls
        calls += 1
        raise LookupError("no refresh token")

    relay = Door(("AUTH XOAUTH2",))
    async with relaying(relay), mailer(relay, username="me", token=token, tls="none") as posting:
        with pytest.raises(asmtp.SMTPException, match="no refresh token") as caught:
            await one(posting)
        assert isinstance(caught.value.__cause__, LookupError)
        assert caught.value.state == "not_sent"
        assert calls == 1
        assert now() == 0


@pytest.mark.virtual_clock
async def test_a_wrong_password() -> None:
    """Every message that waits fails at once; the password is not tried for each: accounts are locked over less."""
    relay = Door(("AUTH PLAIN",), latency=0.1, answer=answering(AUTH="535 5.7.8 wrong"))
    async with relaying(relay), mailer(relay, username="me", password="wrong", tls="none") as posting:
        results = await asyncio.gather(*(one(posting, number) for number in range(50)), return_exceptions=True)
        for error in results:
            assert isinstance(error, asmtp.SMTPAuthenticationError)
            assert (error.smtp_code, error.state) == (535, "not_sent")
        assert len(set(map(id, results))) == 50
        assert now() <= 0.5
        assert relay.verbs.count("AUTH") == 1


@pytest.mark.virtual_clock
async def test_a_password_that_becomes_right() -> None:
    """While the relay rests no connection logs in, and each message fails with the reason; then one logs in."""
    replies = answering(AUTH="535 5.7.8 wrong")
    relay = Door(("AUTH PLAIN",), answer=lambda verb, line: replies(verb, line))
    async with relaying(relay), mailer(relay, username="me", password="wrong", tls="none") as posting:
        tries = []
        for _ in range(100):
            with pytest.raises(asmtp.SMTPAuthenticationError):
                await one(posting)
            tries.append(relay.verbs.count("AUTH"))
            await asyncio.sleep(1)
        assert tries[0] == 1
        assert tries[-1] == 2  # accounts are locked over more
        replies = answering(AUTH="235 2.7.0 welcome")
        await asyncio.sleep(3600)
        await one(posting)


@pytest.mark.virtual_clock
async def test_a_wrong_password_for_one_of_two() -> None:
    first, second = Door(("AUTH PLAIN",), answer=answering(AUTH="535 5.7.8 wrong")), Door()
    async with relaying(first), relaying(second):
        relays = [
            asmtp.Relay(first.host, first.port, username="me", password="wrong", tls="none"),
            asmtp.Relay(second.host, second.port),
        ]
        async with AsyncMailer(relays, retry=None) as posting:
            await asyncio.gather(*(one(posting, number) for number in range(50)))
            assert first.verbs.count("AUTH") == 1
            second.room = 0
            second.guests[0].kill()
            await until(lambda: not posting.stats.open)
            with pytest.raises(asmtp.SMTPConnectError):
                await one(posting)
            assert first.verbs.count("AUTH") == 1
            second.room = 1
            await one(posting)


@pytest.mark.virtual_clock
async def test_a_wrong_password_for_very_many() -> None:
    relay = Door(("AUTH PLAIN",), latency=0.1, answer=answering(AUTH="535 5.7.8 wrong"))
    async with relaying(relay), mailer(relay, username="me", password="wrong", tls="none") as posting:
        deliveries = [delivery async for delivery in posting.send_all(items(5000))]
        assert len(deliveries) == 5000
        assert {type(delivery.error) for delivery in deliveries} == {asmtp.SMTPAuthenticationError}
        assert relay.verbs.count("AUTH") <= 10


@pytest.mark.virtual_clock
async def test_a_certificate_that_does_not_fit(certificates: Certificates) -> None:
    accepted = 0

    def accept() -> asyncio.Protocol:
        nonlocal accepted
        accepted += 1
        return asyncio.Protocol()

    async with listening(accept, tls=certificates.server_for("other.example")) as (host, port):
        relay = asmtp.Relay(host, port, tls="implicit", ssl_context=certificates.trusting)
        async with AsyncMailer(relay) as posting:
            results = await asyncio.gather(*(one(posting, number) for number in range(50)), return_exceptions=True)
            for error in results:
                assert isinstance(error, asmtp.SMTPException)
                assert "certificate was not accepted for 127.0.0.1" in str(error)
                assert isinstance(error.__cause__, ssl.SSLCertVerificationError)
                assert error.state == "not_sent"
            assert accepted == 1
            assert now() == 0  # it is not tried again


@pytest.mark.parametrize("last", ["250 relay.example\r\n421 4.3.2 and bye", "250 relay.example\r\n250 2.0.0 what?"])
async def test_a_server_that_is_gone_as_soon_as_it_is_there(last: str) -> None:
    """Such a server counts as one that cannot be reached: it is neither tried without end nor waited for."""
    relay = Door(answer=answering(EHLO=last))
    async with relaying(relay), mailer(relay, retry=None, connections=2) as posting:
        async with asyncio.timeout(5):
            with pytest.raises(asmtp.SMTPServerDisconnected) as caught:
                await one(posting)
        assert caught.value.state == "not_sent"
        assert len(relay.guests) <= 2


# ---- how fast ----------------------------------------------------------------------------------


@pytest.mark.virtual_clock
@pytest.mark.parametrize(("rate", "seconds"), [("10/s", 2.9), ("60/min", 29.9), ("20 recipients/s", 2.9)])
async def test_rate(rate: str, seconds: float) -> None:
    relay = Door(SHAPES["both"])
    async with relaying(relay), mailer(relay, rate=rate) as posting:
        messages = [("a@x.example", ["b@y.example", "c@y.example"], b"hello")] * 31
        async for delivery in posting.send_all(messages):
            assert delivery.ok
        assert now() == pytest.approx(seconds, abs=0.05)
        each = (seconds + 0.1) / 30
        for number, time in enumerate(relay.times):
            assert time >= each * number - 0.1 - 1e-6
        assert len(relay.guests) == 1


@pytest.mark.virtual_clock
async def test_the_rate_holds_for_all_connections_and_all_callers() -> None:
    relay = Door(latency=0.5)
    async with relaying(relay), mailer(relay, rate="10/s", connections=10) as posting:
        await asyncio.gather(send(posting, 10), *(one(posting, number) for number in range(10)))
        assert relay.most > 2
        begun = sorted(relay.times)
        assert begun[-1] - begun[0] >= 1.8 - 0.1


@pytest.mark.virtual_clock
@pytest.mark.parametrize("rate", ["10/s", "20/s", "100/s"])
async def test_the_rate_is_not_looked_at_while_there_is_no_room(rate: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pool waits for a slow server, not for the next moment at which the rate would allow a message."""
    looks = 0

    def dispatch(self: Pool) -> None:
        nonlocal looks
        looks += 1
        original(self)

    original = Pool.dispatch
    monkeypatch.setattr(Pool, "dispatch", dispatch)
    relay = Door(latency=5)
    async with relaying(relay), mailer(relay, connections=1, rate=rate) as posting:
        await asyncio.gather(*(one(posting, number) for number in range(6)))
        assert looks < 100


@pytest.mark.virtual_clock
async def test_a_server_that_is_sent_too_much_is_sent_less() -> None:
    def answer(verb: str, line: str) -> str | None:
        if verb == "MAIL" and relay.verbs.count("MAIL") in (5, 6):
            return "450 4.7.1 Error: too much mail from 127.0.0.1"
        return None

    relay = Door(answer=answer)
    async with relaying(relay), mailer(relay, rate="2/s") as posting:
        await send(posting, 20)
        gaps = [later - earlier for earlier, later in itertools.pairwise(sorted(relay.times))]
        assert max(gaps) > 0.9  # half as fast
        assert posting.stats.retried == 2


# ---- the end -----------------------------------------------------------------------------------


@pytest.mark.virtual_clock
@pytest.mark.parametrize("how", ["aclose", "leave", "raise", "cancel"])
async def test_closing_while_it_is_opening(how: str) -> None:
    """Closing does not wait for a server that does not greet."""
    async with scripted([silence]) as server:
        posting = AsyncMailer(asmtp.Relay(server.host, server.port))

        async def use() -> None:
            async with posting:
                task = asyncio.create_task(one(posting))
                await until(lambda: server.peers)
                assert posting.stats.opening == 1
                task.cancel()
                await asyncio.wait([task])
                if how == "raise":
                    raise LookupError
                if how == "cancel":
                    await asyncio.sleep(1000)
                if how == "aclose":
                    await posting.aclose()

        using = asyncio.create_task(use())
        if how == "cancel":
            await until(lambda: server.peers)
            await asyncio.sleep(1)
            using.cancel()
        await asyncio.wait([using])
        assert using.cancelled() or isinstance(using.exception(), LookupError | None)
        await server.peer.closed.wait()
        assert now() <= 1
        assert posting.stats.opening == 0


@pytest.mark.virtual_clock
async def test_what_waits_for_a_connection_can_be_withdrawn() -> None:
    relay = Door(latency=1)
    async with relaying(relay), mailer(relay, connections=1) as posting:
        tasks = [asyncio.create_task(one(posting, number)) for number in range(4)]
        await asyncio.sleep(0.5)
        tasks[0].cancel()
        tasks[2].cancel()
        await asyncio.wait(tasks)
        assert [task.cancelled() for task in tasks] == [True, False, True, False]
        assert relay.numbers == [1, 3]
        assert posting.stats.in_flight == 0


@pytest.mark.virtual_clock
@pytest.mark.parametrize("content", [b"hello", b"x" * 100_000])
async def test_what_is_under_way_can_be_withdrawn(content: bytes, shape: tuple[str, ...]) -> None:
    """A message can be withdrawn at any moment: the connection is in step."""
    relay = Door(shape, latency=0.1)
    async with relaying(relay), mailer(relay, connections=1) as posting:
        for tenth in range(9):
            task = asyncio.create_task(posting.send(content, "gone@x.example", "b@y.example"))
            other = asyncio.create_task(one(posting, tenth))
            await asyncio.sleep(tenth / 10 + 0.05)
            task.cancel()
            await asyncio.wait([task])
            await other
        await posting.drain()
        numbers = [letter.sender for letter in relay.letters if letter.sender != "gone@x.example"]
        assert numbers == [f"a{tenth}@x.example" for tenth in range(9)]
        assert posting.stats.in_flight == 0


class Told:
    """A queue over a pool, and the messages that are done."""

    def __init__(self, relay: Relay) -> None:
        self.messages: list[QueuedMessage] = []
        where = asmtp.Relay(relay.host, relay.port, local_hostname="me.example")
        self.queue = DeliveryQueue(Pool([RelayState(where)], 1, make_connection), None, lambda: None)

    def submit(self, number: int = 0) -> QueuedMessage:
        message = QueuedMessage(None, envelope_of(item(number)), self.messages.append, 0)
        self.queue.submit(message)
        self.queue.dispatch()
        return message


async def test_withdrawn_when_its_try_has_ended() -> None:
    """The message is withdrawn when its try has ended, and before the queue has judged it."""
    async with relaying(Door()) as relay:
        told = Told(relay)
        message = told.submit()
        [request] = message.pending
        await until(lambda: request.state is RequestState.ENDED)
        assert told.queue.withdraw(message) == "sent"
        await until(lambda: told.messages)
        assert message.verdict(0)[0] is not None
        assert request.state is RequestState.DONE
        told.queue.withdraw(message)  # it is too late for that
        await asyncio.sleep(0)
        assert told.messages == [message]
        await told.queue.pool.aclose()


async def test_what_comes_when_it_is_closed_is_handed_back() -> None:
    async with relaying(Door()) as relay:
        told = Told(relay)
        message = told.submit()
        told.queue.abort()
        later = told.submit()
        await until(lambda: len(told.messages) == 2)
        for each in (message, later):
            _, error = each.verdict(0)
            assert isinstance(error, asmtp.SMTPStateError)
            assert error.state == "not_sent"
        await told.queue.pool.wait_closed()


@pytest.mark.virtual_clock
async def test_lmtp() -> None:
    relay = Door(SHAPES["pipelining"], latency=0.1, lmtp=True)
    async with relaying(relay), mailer(relay, connections=2) as posting:
        await send(posting, 30)
        receipt = await posting.send(b"hello", "a@x.example", CROWD)
        assert list(receipt.accepted) == CROWD
        assert relay.verbs[0] == "LHLO"


async def trouble(relay: Door, chance: random.Random) -> None:
    """End connections, and turn others away, at random and without an end."""
    while True:
        await asyncio.sleep(chance.uniform(0.1, 1))
        relay.room = chance.choice([0, 1, 1000, 1000])
        relay.silent = chance.choice([0, 0, 0, 1])
        present = [guest for guest in relay.guests if not guest.closed.is_set()]
        if present:
            guest = chance.choice(present)
            event = chance.choice(["421", "FIN", "RST", ""])
            if event == "RST":
                guest.kill()
            elif event == "421":
                guest.transport.write(b"421 4.3.2 going down\r\n")
            if event:
                guest.transport.close()


@pytest.mark.virtual_clock
@pytest.mark.parametrize("seed", range(3))
async def test_whatever_happens(seed: int) -> None:
    """Connections end, are turned away and replaced at all moments: no message is lost, or sent twice, or never told
    of; and never are there more connections than allowed."""
    chance = random.Random(seed)
    relay = Door(SHAPES[sorted(SHAPES)[seed % 4]], latency=0.05)
    count = 100 if "PIPELINING" in relay.offers else 25
    connections = chance.choice([1, 2, 4])
    options = {"max_messages": 7, "idle": 0.5, "max_age": 4, "retry": asmtp.Retry(attempts=50, within=None, maximum=1)}

    async with relaying(relay), mailer(relay, connections=connections, window=10, **options) as posting:
        troubling = asyncio.create_task(trouble(relay, chance))
        deliveries = [delivery async for delivery in posting.send_all(items(count))]
        troubling.cancel()
        states = agree(relay, deliveries, count)
        assert set(states) <= {"sent", "in_doubt"}
        assert states["sent"] > count / 2
        assert relay.most <= connections
        assert posting.stats.in_flight == 0


@pytest.mark.virtual_clock
@pytest.mark.parametrize("seed", range(4))
async def test_whatever_happens_to_tasks(seed: int) -> None:
    """Two relays in trouble, that refuse and close besides; tasks are cancelled, and all is aborted in the end."""
    chance = random.Random(seed)

    def answer(verb: str, line: str) -> str | None:
        if verb in ("RCPT", "MAIL", "DATA", ".") and chance.random() < 0.05:
            return chance.choice(["450 4.2.0 later", "550 5.1.1 no", "452 4.5.3 too many recipients", "421 4.3.2 bye"])
        return None

    doors = [
        Door(SHAPES[sorted(SHAPES)[(seed + n) % 4]], latency=0.05, answer=answer, quick_tempered=seed % 2 > 0)
        for n in range(2)
    ]
    contents: list[Any] = [
        b"hello",
        b"x" * 100_000,
        email("hello\n"),
        email("hello\n" * 20_000),
        email("hello\n" * 60_000),
    ]
    told: dict[str, Receipt | BaseException] = {}

    async def use(number: int) -> None:
        sender = f"a{number}@x.example"
        people = [f"r{n}@y.example" for n in range(chance.choice([1, 1, 5]))]
        await asyncio.sleep(chance.uniform(0, 3))
        task = asyncio.create_task(posting.send(chance.choice(contents), sender, people))
        if chance.random() < 0.3:
            asyncio.get_running_loop().call_later(chance.choice([0, 0.05, 0.1, 0.3, 1]), task.cancel)
        await asyncio.wait([task])
        told[sender] = asyncio.CancelledError() if task.cancelled() else task.exception() or task.result()

    options = {"max_messages": 7, "idle": 0.5, "max_age": 4, "timeouts": 30, "rate": chance.choice([None, "20/s"])}
    async with relaying(doors[0]), relaying(doors[1]):
        async with mailer(*doors, connections=2, window=10, **options) as posting:
            troubling = [asyncio.create_task(trouble(door, chance)) for door in doors]
            await asyncio.gather(*(use(number) for number in range(20)))
            using = asyncio.gather(*(use(number) for number in range(20, 40)))
            await asyncio.sleep(2)
            posting.abort()
            await using
            for task in troubling:
                task.cancel()
            assert posting.stats.in_flight == posting.stats.waiting == 0
        assert doors[0].present == doors[1].present == 0
    assert len(told) == 40
    taken = Counter((letter.sender, who) for door in doors for letter in door.letters for who in letter.recipients)
    assert set(taken.values()) == {1}
    for sender, outcome in told.items():
        theirs = {who for by, who in taken if by == sender}
        if isinstance(outcome, Receipt):
            assert theirs == set(outcome.accepted)
        elif isinstance(outcome, asmtp.SMTPException) and outcome.state in ("refused", "not_sent"):
            assert not theirs


@pytest.mark.virtual_clock
async def test_everything_is_closed_with_quit(shape: tuple[str, ...]) -> None:
    relay = Door(shape, latency=0.1, answer=answering(RCPT_no="550 5.1.1 no"))
    async with relaying(relay), mailer(relay, connections=3, window=10) as posting:
        await send(posting, SOME[shape])
        with pytest.raises(asmtp.SMTPRecipientsRefused):
            await posting.send(b"hello", "a@x.example", "no@y.example")
        present = relay.present
        assert present > 1
    assert relay.present == 0
    assert relay.verbs.count("QUIT") == present


@pytest.mark.virtual_clock
@pytest.mark.parametrize("content", [b"hello", b"x" * 100_000])
async def test_abort_hands_everything_back(content: bytes, shape: tuple[str, ...]) -> None:
    """abort() ends messages that are written, that are on a connection, and that wait for one."""
    relay = Door(shape, latency=0.1)
    async with relaying(relay), mailer(relay, connections=2) as posting:
        await send(posting, 10)
        before = len(relay.letters)
        tasks = [asyncio.create_task(posting.send(content, "a@x.example", "b@y.example")) for _ in range(200)]
        await asyncio.sleep(0.15)
        posting.abort()
        async with asyncio.timeout(1):
            await asyncio.wait(tasks)
        states = [getattr(task.exception(), "state", "sent") for task in tasks]
        assert set(states) <= {"sent", "not_sent", "in_doubt"}
        assert states.count("sent") <= len(relay.letters) - before <= 200 - states.count("not_sent")
        assert posting.stats.in_flight == 0
    assert relay.present == 0
