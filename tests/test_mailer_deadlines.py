"""Every call of a mailer ends by its deadline, whatever the server, the caller and the caller's functions do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Generator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

import asmtp
from asmtp import AsyncMailer, Mailer, Timeouts
from asmtp.events import Watch

from .mailing import items, mailer
from .servers.background import in_background
from .servers.relay import Relay, relaying
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


# ---- what functions of the caller's raise --------------------------------------------------------


class TokenError(asmtp.SMTPException):
    """One that cannot be copied."""

    def __init__(self, code: int, detail: str) -> None:
        super().__init__(f"{code}: {detail}")


class Odd(BaseException):
    """Nobody expects it."""


RAISED = {
    "CancelledError": asyncio.CancelledError,
    "not to be copied": lambda: TokenError(400, "invalid_grant"),
    "KeyError": lambda: KeyError("access_token"),
    "OSError": lambda: OSError("net down"),
    "BaseException": Odd,
}


@pytest.mark.virtual_clock
@pytest.mark.parametrize("what", RAISED)
@pytest.mark.parametrize("where", ["token", "mechanism"])
@pytest.mark.parametrize("retry", [None, asmtp.Retry()])
async def test_what_a_login_raises_ends_the_message(what: str, where: str, retry: asmtp.Retry | None) -> None:
    """With its cause, in bounded time, and without asking again and again."""
    asked = 0

    async def token(fresh: bool) -> str:
        nonlocal asked
        asked += 1
        raise RAISED[what]()

    def mechanism(credentials: Any) -> Generator[bytes, bytes, None]:
        nonlocal asked
        asked += 1
        raise RAISED[what]()
        yield b""

    relay = Relay(("PIPELINING", "AUTH XOAUTH2 X-ODD"))
    login: dict[str, Any] = {"token": token} if where == "token" else {"mechanisms": [("X-ODD", mechanism)]}
    async with relaying(relay), mailer(relay, username="kim", tls="none", retry=retry, **login) as posting:
        with pytest.raises(asmtp.SMTPException) as caught:
            await posting.send(*LETTER)
        assert caught.value.state == "not_sent"
        assert type(caught.value.__cause__) is type(RAISED[what]())
        assert now() < 5
        assert asked <= 3
        states = {delivery.state async for delivery in posting.send_all(items(20))}
        assert states == {"not_sent"}
        assert asked <= 2 * now() + 2


@pytest.mark.parametrize("what", RAISED)
async def test_what_content_raises_ends_the_message(what: str) -> None:
    async def content() -> AsyncIterator[bytes]:
        yield b"Subject: half\r\n\r\n"
        raise RAISED[what]()

    relay = Relay(("PIPELINING",))
    async with relaying(relay), mailer(relay, connections=1) as posting:
        made = RAISED[what]()
        with pytest.raises(type(made) if isinstance(made, Exception) else asmtp.SMTPException) as caught:
            await posting.send(cast("Any", content()), "a@x.example", "b@y.example")
        assert isinstance(made, Exception) or type(caught.value.__cause__) is type(made)
        await posting.send(*LETTER)
    assert [letter.content for letter in relay.letters] == [b"hello\r\n"]


@pytest.mark.parametrize("what", RAISED)
async def test_what_watches_raises_is_logged(what: str, caplog: pytest.LogCaptureFixture) -> None:
    def watch(event: asmtp.Event) -> None:
        raise RAISED[what]()

    async with relaying(Relay()) as relay, mailer(relay, on_event=watch) as posting:
        assert (await posting.send(*LETTER)).complete
    assert "on_event raised" in caplog.text


async def test_the_program_is_ended_by_what_watches() -> None:
    def watch(event: asmtp.Event) -> None:
        raise SystemExit(3)

    watching = Watch("relay", watch)
    with pytest.raises(SystemExit):
        watching.closed("so")
