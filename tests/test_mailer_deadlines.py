"""Every call of a mailer ends by its deadline, whatever the server, the caller and the caller's functions do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

import asmtp
from asmtp import AsyncMailer, Mailer, Timeouts

from .mailing import items
from .servers.background import in_background
from .servers.script import listening

LETTER = (b"hello", "a@x.example", "b@y.example")


def now() -> float:
    return asyncio.get_running_loop().time()


class Mute(asyncio.Protocol):
    """Answers everything up to a command, and nothing from there on; "" is the greeting."""

    REPLIES = {"": "220 me", "EHLO": "250-me\r\n250-STARTTLS\r\n250 AUTH PLAIN", "STARTTLS": "220 go"}

    def __init__(self, at: str, log: list[float]) -> None:
        self._at = at
        self._log = log

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._log.append(now())
        self._answer("")

    def data_received(self, data: bytes) -> None:
        for line in data.split(b"\r\n")[:-1]:
            self._answer(line.split(b" ")[0].decode("latin-1").upper())

    def _answer(self, verb: str) -> None:
        if verb != self._at:
            self._transport.write(self.REPLIES.get(verb, "250 ok").encode() + b"\r\n")


PHASES = {  # where the server is silent: the relay's options, and what the error says
    "": ({}, "the greeting"),
    "EHLO": ({}, "a command"),
    "STARTTLS": ({"tls": "required"}, "a command"),
    "handshake": ({"tls": "required"}, "TLS handshake"),
    "AUTH": ({"tls": "none", "username": "kim", "password": "secret"}, "a command"),
}


@asynccontextmanager
async def mute(at: str, log: list[float], **options: Any) -> AsyncIterator[AsyncMailer]:
    """A mailer for a server that is silent from there on."""
    said: Any = PHASES[at][0]
    async with (
        listening(lambda: Mute(at, log)) as (host, port),
        AsyncMailer(asmtp.Relay(host, port), **{"local_hostname": "me", **said, **options}) as posting,
    ):
        yield posting


# ---- a server that is silent before it takes a message -------------------------------------------


@pytest.mark.virtual_clock
@pytest.mark.parametrize("at", PHASES)
@pytest.mark.parametrize("connections", [1, 4])
@pytest.mark.parametrize("seconds", [5, 11, 20])
async def test_silence_ends_in_the_time_of_its_phase(at: str, connections: int, seconds: float) -> None:
    log: list[float] = []
    async with mute(at, log, timeouts=seconds, retry=None, connections=connections) as posting:
        with pytest.raises(asmtp.SMTPTimeoutError, match=PHASES[at][1]) as caught:
            await posting.send(*LETTER)
        assert caught.value.state == "not_sent"
        assert now() == pytest.approx(seconds, abs=1.1)  # the watchdog looks once a second
        assert len(log) <= max(2, connections)
        begun = now()
        for number in range(3):  # and so it goes on: nobody waits longer than that
            with pytest.raises(asmtp.SMTPTimeoutError):
                await posting.send(*LETTER)
            assert now() - begun <= (number + 1) * (seconds + 12)


@pytest.mark.virtual_clock
@pytest.mark.parametrize(("timeouts", "most"), [(Timeouts(), 301), (20, 65), (5, 20)])
async def test_silence_with_what_is_the_default(timeouts: Any, most: float) -> None:
    """It is tried again only where less than `Retry.within` has gone by since its own first try."""
    log: list[float] = []
    async with mute("", log, timeouts=timeouts) as posting:
        with pytest.raises(asmtp.SMTPTimeoutError) as caught:
            await posting.send(*LETTER)
        assert caught.value.state == "not_sent"
        assert now() < most


@pytest.mark.virtual_clock
@pytest.mark.parametrize("at", PHASES)
async def test_silence_to_many(at: str) -> None:
    """Those that come while it is waited are told no later than they would be alone."""
    log: list[float] = []
    took: list[float] = []

    async def one(number: int) -> None:
        await asyncio.sleep(number)
        begun = now()
        with pytest.raises(asmtp.SMTPTimeoutError):
            await posting.send(*LETTER)
        took.append(now() - begun)

    async with mute(at, log, timeouts=20, retry=None) as posting:
        deliveries = [delivery async for delivery in posting.send_all(items(100))]
        assert {delivery.state for delivery in deliveries} == {"not_sent"}
        assert {type(delivery.error) for delivery in deliveries} == {asmtp.SMTPTimeoutError}
        assert now() == pytest.approx(20, abs=1.1)
        await asyncio.gather(*map(one, range(100)))
    assert max(took) < 20 + 12


@pytest.mark.virtual_clock
async def test_silence_of_all_relays() -> None:
    """Each is tried for each message."""
    log: list[float] = []
    async with listening(lambda: Mute("", log)) as first, listening(lambda: Mute("EHLO", log)) as second:
        relays = [asmtp.Relay(*first), asmtp.Relay(*second)]
        async with AsyncMailer(relays, local_hostname="me", timeouts=30, retry=None) as posting:
            with pytest.raises(asmtp.SMTPTimeoutError):
                await posting.send(*LETTER)
            assert now() < 30 + 12


@pytest.mark.virtual_clock
async def test_who_is_kept_waiting_is_not_told_no_because_another_was() -> None:
    """A server that greets late has one connection only, and says so to the second at once."""

    class Late(Mute):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            log.append(now())
            self._transport = cast("asyncio.Transport", transport)
            if len(log) == 1:
                asyncio.get_running_loop().call_later(15, self._answer, "")
            else:
                self._transport.write(b"421 too many connections\r\n")
                self._transport.close()

        REPLIES = {**Mute.REPLIES, "DATA": "354 go", "HELLO": ""}  # its only line

        def _answer(self, verb: str) -> None:
            if verb != "HELLO":
                super()._answer(verb)

    log: list[float] = []
    async with (
        listening(lambda: Late("never", log)) as (host, port),
        AsyncMailer(asmtp.Relay(host, port), local_hostname="me", retry=None) as posting,
    ):
        await posting.send(*LETTER)
        assert now() == pytest.approx(15)


def test_silence_in_a_program_that_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asmtp.source.HANGING", 0.02)
    with (
        in_background(listening(lambda: Mute("", []))) as (host, port),
        Mailer(asmtp.Relay(host, port), timeouts=0.1, retry=None, local_hostname="me") as posting,
    ):
        with pytest.raises(asmtp.SMTPTimeoutError, match="the greeting") as caught:
            posting.send(*LETTER)
        assert caught.value.state == "not_sent"
        assert [delivery.state for delivery in posting.send_all(items(3))] == ["not_sent"] * 3
