"""The probe of BDAT, for a client, the facade and a mailer: see tests/protocol/test_chunking.py."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import asmtp
from asmtp import AsyncSMTP
from tests.fakes.people import SENDER, WHO
from tests.fakes.relay import SHAPES, Relay, relaying
from tests.mailer.mailing import answering, items, mailer
from tests.sync.facade import relay_at

LETTER = b"Subject: hi\r\n\r\nhello\r\n"

CLOSES = {"421": answering(BDAT="421 4.3.0 no"), "it is taken": answering(BDAT="354 go")}
"""What ends a connection at the probe."""


def client(relay: Relay, **options: Any) -> AsyncSMTP:
    return AsyncSMTP(relay.host, relay.port, "me.example", timeout=5, **options)


async def test_two_messages_and_then_by_bdat() -> None:
    relay = Relay(SHAPES["both"])
    async with relaying(relay), client(relay) as smtp:
        for _ in range(3):
            assert await smtp.sendmail(SENDER, WHO, LETTER) == {}
        first = ["EHLO", "MAIL", "RCPT", "DATA"]
        probe = ["BDAT", "RSET", "MAIL", "BDAT", "RSET"]
        assert relay.verbs == [*first, *probe, "RSET", *["MAIL", "RCPT", "BDAT"] * 2]
        assert [letter.content for letter in relay.letters] == [LETTER] * 3


async def test_a_session_of_one_message_leaves_nothing_in_a_log() -> None:
    relay = Relay(SHAPES["both"])
    async with relaying(relay), client(relay) as smtp:
        await smtp.sendmail(SENDER, WHO, LETTER)
    assert relay.verbs == ["EHLO", "MAIL", "RCPT", "DATA", "QUIT"]


async def test_no_probe_where_bdat_is_not_to_be_used() -> None:
    relay = Relay(SHAPES["both"])
    async with relaying(relay), client(relay, chunking=False) as smtp:
        for _ in range(3):
            await smtp.sendmail(SENDER, WHO, LETTER)
    assert "BDAT" not in relay.verbs


@pytest.mark.parametrize("answer", CLOSES.values(), ids=CLOSES)
async def test_a_relay_that_closes_is_not_probed_again(answer: Any) -> None:
    relay = Relay(SHAPES["both"], answer=answer)
    async with relaying(relay):
        smtp = client(relay)
        async with smtp:
            await smtp.sendmail(SENDER, WHO, LETTER)
            with pytest.raises(asmtp.SMTPServerDisconnected) as caught:
                await smtp.sendmail(SENDER, WHO, LETTER)
            assert caught.value.state == "not_sent"
        for _ in range(2):
            relay.commands.clear()
            async with smtp:
                for _ in range(3):
                    await smtp.sendmail(SENDER, WHO, LETTER)
            assert "BDAT" not in relay.verbs
        other = Relay(SHAPES["both"])
        async with relaying(other):
            await smtp.connect(other.host, other.port)
            for _ in range(2):
                await smtp.sendmail(SENDER, WHO, LETTER)
            assert "BDAT" in other.verbs
            await smtp.quit()


@pytest.mark.parametrize("retry", [asmtp.Retry(), None], ids=["retry", "no retry"])
@pytest.mark.parametrize("connections", [1, 4])
@pytest.mark.parametrize("answer", CLOSES.values(), ids=CLOSES)
async def test_a_mailer_whose_relay_closes_at_the_probe(answer: Any, connections: int, retry: Any) -> None:
    """No message notices, and no try is counted; the relay is not probed again."""
    relay = Relay(SHAPES["both"], answer=answer)
    async with relaying(relay), mailer(relay, connections=connections, retry=retry) as posting:
        deliveries = [delivery async for delivery in posting.send_all(items(100))]
        assert [delivery.state for delivery in deliveries] == ["sent"] * 100
        assert {delivery.receipt.attempts for delivery in deliveries if delivery.receipt} == {1}
        assert len(relay.letters) == 100
        assert relay.verbs.count("BDAT") <= 2 * connections
        relay.commands.clear()
        receipt = await posting.send(LETTER, SENDER, WHO)
        assert receipt.attempts == 1
        assert "BDAT" not in relay.verbs


@pytest.mark.parametrize("lmtp", [False, True])
async def test_a_mailer_probes_each_connection_once(lmtp: bool) -> None:
    relay = Relay(SHAPES["both"], lmtp=lmtp)
    async with relaying(relay), mailer(relay, connections=2) as posting:
        deliveries = [delivery async for delivery in posting.send_all(items(200))]
        assert {delivery.state for delivery in deliveries} == {"sent"}
        refused = relay.commands.count("BDAT 8 LAST")
        assert 0 < refused <= 2 * len(relay.connections)


@pytest.mark.virtual_clock
@pytest.mark.parametrize("options", [{"max_messages": 2, "idle": None}, {"idle": 0.06}], ids=["enough", "idle"])
async def test_withdrawn_while_the_probe_is_under_way(options: dict[str, Any]) -> None:
    """Nobody is told of a message's end when the probe is over, and the connection is seen to all the same."""
    relay = Relay(SHAPES["both"], latency=0.1)
    async with relaying(relay), mailer(relay, connections=1, max_age=None, **options) as posting:
        await posting.send(LETTER, SENDER, WHO)
        task = asyncio.create_task(posting.send(LETTER, SENDER, "gone@y.example"))
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.wait([task])
        assert posting.stats.open == 1
        await asyncio.sleep(5)
        assert posting.stats.open == 0
        tidied = ["RSET"] if "idle" in options and options["idle"] else []
        assert relay.verbs[4:] == ["BDAT", "RSET", "MAIL", "BDAT", "RSET", *tidied, "QUIT"]


@pytest.mark.virtual_clock
async def test_a_connection_serves_when_a_message_was_withdrawn_behind_its_probe() -> None:
    """The next message begins with RSET, as the withdrawn one would have: else Dovecot's submission service ends."""
    relay = Relay(SHAPES["both"], latency=0.1)
    async with relaying(relay), mailer(relay, connections=1) as posting:
        await posting.send(LETTER, SENDER, WHO)
        task = asyncio.create_task(posting.send(LETTER, SENDER, "gone@y.example"))
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.wait([task])
        await posting.send(LETTER, SENDER, WHO)
        assert relay.verbs[4:] == ["BDAT", "RSET", "MAIL", "BDAT", "RSET", "RSET", "MAIL", "RCPT", "BDAT"]
        assert len(relay.letters) == 2


@pytest.mark.parametrize("most", [1, 2, 10, 11, 20])
async def test_the_probe_counts_where_the_server_tells_how_many_it_takes(most: int) -> None:
    """MAILMAX (RFC 9422 §3) is about transactions, and the probe begins one."""
    begun = 0

    def answer(verb: str, line: str) -> str | None:
        nonlocal begun
        begun = 0 if verb == "EHLO" else begun + (verb == "MAIL")
        return "421 4.7.0 too many" if verb == "MAIL" and begun > most else None

    relay = Relay((*SHAPES["both"], f"LIMITS MAILMAX={most}"), answer=answer)
    async with relaying(relay), mailer(relay, connections=1, retry=None) as posting:
        deliveries = [delivery async for delivery in posting.send_all(items(3 * most))]
        assert {delivery.state for delivery in deliveries} == {"sent"}
        assert {delivery.receipt.attempts for delivery in deliveries if delivery.receipt} == {1}
        assert ("BDAT" in relay.verbs) is (most > 10)
        assert begun <= most


def test_the_facade() -> None:
    with relay_at(Relay(SHAPES["both"])) as relay, asmtp.SMTP(relay.host, relay.port, "me.example") as smtp:
        for _ in range(3):
            assert smtp.sendmail(SENDER, WHO, LETTER) == {}
        assert relay.verbs[4:9] == ["BDAT", "RSET", "MAIL", "BDAT", "RSET"]
        assert relay.verbs[-1] == "BDAT"
        assert len(relay.letters) == 3


@pytest.mark.virtual_clock
async def test_a_relay_that_falls_silent_has_little_in_doubt() -> None:
    """Only what it has shown to take is written without an answer: one message, and one more with each answer."""
    relay = Relay(SHAPES["both"], hold=8)
    async with relaying(relay), mailer(relay, connections=1, retry=None, timeouts=30) as posting:
        deliveries = [delivery async for delivery in posting.send_all(items(300))]
        states = [delivery.state for delivery in deliveries]
        assert 0 < states.count("in_doubt") <= states.count("sent")
        assert set(states) <= {"sent", "in_doubt", "not_sent"}
