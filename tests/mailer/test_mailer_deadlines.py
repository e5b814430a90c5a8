"""Every call of a mailer ends by its deadline, whatever the server, the caller and the caller's functions do."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import threading
import time
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import asynccontextmanager
from typing import Any, cast

import anyio
import pytest

import asmtp
from asmtp import AsyncMailer, Mailer, Timeouts
from asmtp.client.events import EventLog
from asmtp.mailer.bulk import BulkSend
from asmtp.mailer.message import QueuedMessage
from tests.fakes.background import in_background
from tests.fakes.clock import now
from tests.fakes.relay import SHAPES, Relay, relaying
from tests.fakes.script import listening
from tests.mailer.mailing import agree, item, items, mailer

LETTER = (b"hello", "a@x.example", "b@y.example")


class Mute(asyncio.Protocol):
    """A relay that answers everything up to a command, and nothing from there on; "" is the greeting."""

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
    """Run with a mailer for a server that is silent from a command on."""
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
    """A message is tried again only if less than `Retry.within` has gone by since its own first try."""
    log: list[float] = []
    async with mute("", log, timeouts=timeouts) as posting:
        with pytest.raises(asmtp.SMTPTimeoutError) as caught:
            await posting.send(*LETTER)
        assert caught.value.state == "not_sent"
        assert now() < most


@pytest.mark.virtual_clock
@pytest.mark.parametrize("at", PHASES)
async def test_silence_to_many(at: str) -> None:
    """Messages that come while others wait for a connection fail about when they would alone."""
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
    """Each relay is tried for each message."""
    log: list[float] = []
    async with listening(lambda: Mute("", log)) as first, listening(lambda: Mute("EHLO", log)) as second:
        relays = [asmtp.Relay(*first), asmtp.Relay(*second)]
        async with AsyncMailer(relays, local_hostname="me", timeouts=30, retry=None) as posting:
            with pytest.raises(asmtp.SMTPTimeoutError):
                await posting.send(*LETTER)
            assert now() < 30 + 12


@pytest.mark.virtual_clock
async def test_who_is_kept_waiting_is_not_told_no_because_another_was() -> None:
    """Messages that wait for a late greeting do not fail as a second connection is refused at once."""

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
    monkeypatch.setattr("asmtp.mailer.relay_state.HANGING", 0.02)
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
    """An error of a token that cannot be copied."""

    def __init__(self, code: int, detail: str) -> None:
        super().__init__(f"{code}: {detail}")


class Odd(BaseException):
    """An error that the mailer does not expect."""


class Wordless(asmtp.SMTPException):
    """An error that cannot be copied, and has no words."""

    def __init__(self, status: int) -> None:
        self.status = status

    def __str__(self) -> str:
        raise LookupError("no words")


class WordlessBase(BaseException):
    def __str__(self) -> str:
        raise LookupError("no words")


RAISED: dict[str, Callable[[], BaseException]] = {
    "CancelledError": asyncio.CancelledError,
    "not to be copied": lambda: TokenError(400, "invalid_grant"),
    "KeyError": lambda: KeyError("access_token"),
    "OSError": lambda: OSError("net down"),
    "BaseException": Odd,
    "no words": lambda: Wordless(400),
    "no words, BaseException": WordlessBase,
}


@pytest.mark.virtual_clock
@pytest.mark.parametrize("what", RAISED)
@pytest.mark.parametrize("where", ["token", "mechanism"])
@pytest.mark.parametrize("retry", [None, asmtp.Retry()])
async def test_what_a_login_raises_ends_the_message(what: str, where: str, retry: asmtp.Retry | None) -> None:
    """The message fails with that exception as the cause, in bounded time; the login is not repeated for ever."""
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


@pytest.mark.sampled
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


@pytest.mark.virtual_clock
@pytest.mark.parametrize("how", ["left", "an exception", "aclose meanwhile", "drain", "aclose of the loop"])
@pytest.mark.parametrize("kind", ["deaf", "slow to end"])
async def test_an_iterable_that_goes_on_is_not_waited_for(
    how: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Leaving takes `close_timeout`, and the loop over `send_all` ends, too."""
    release = asyncio.Event()

    async def letters() -> AsyncIterator[Any]:
        yield item(0)
        try:
            await release.wait()
        finally:
            while kind == "deaf" and not release.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await release.wait()
            await release.wait()

    async def leave(posting: asmtp.AsyncMailer) -> None:
        async with posting:
            deliveries = posting.send_all(letters())
            await anext(deliveries)
            if how == "an exception":
                raise KeyboardInterrupt
            if how == "aclose meanwhile":
                rest = asyncio.create_task(anext(deliveries))
                await asyncio.sleep(0)
                await posting.aclose()
                with pytest.raises(asmtp.SMTPStateError, match="not all was taken"):
                    await rest
            if how == "aclose of the loop":
                assert await deliveries.aclose() == []
            if how == "drain":
                del deliveries
                assert await posting.drain() == []

    async with relaying(Relay()) as relay:
        begun = now()
        try:
            await leave(mailer(relay, close_timeout=3))
        except KeyboardInterrupt:
            assert how == "an exception"
        assert 2.9 < now() - begun < 3.5
        assert caplog.text.count("an iterable given to send_all goes on") == 1
        assert len(relay.letters) == 1
        release.set()
        await asyncio.sleep(1)


async def test_a_mistaken_iterable_does_not_look_like_an_end() -> None:
    class Mistaken:
        def __iter__(self) -> Any:
            return self

        def __next__(self) -> Any:
            raise StopAsyncIteration

    async with relaying(Relay()) as relay, mailer(relay) as posting:
        with pytest.raises(RuntimeError, match="the iterable raised StopAsyncIteration"):
            [delivery async for delivery in posting.send_all(Mistaken())]


@pytest.mark.virtual_clock
async def test_a_token_that_does_not_come() -> None:
    """The caller's function for a token has the time of a command, like the login."""

    async def wait(fresh: bool) -> str:
        await asyncio.Event().wait()
        return ""

    relay = Relay(("PIPELINING", "AUTH XOAUTH2"))
    login: Any = {"username": "kim", "tls": "none", "token": wait}
    async with relaying(relay), mailer(relay, timeouts=30, retry=None, **login) as posting:
        begun = now()
        with pytest.raises(asmtp.SMTPTimeoutError, match="no token within 30 seconds") as caught:
            await posting.send(*LETTER)
        assert caught.value.state == "not_sent"
        assert now() - begun < 65
        begun = now()
        smtp = asmtp.AsyncSMTP(relay.host, relay.port, timeout=7, **login)
        with pytest.raises(asmtp.SMTPTimeoutError, match="no token within 7 seconds"):
            await smtp.connect()
        assert now() - begun < 8


async def test_a_token_that_blocks_is_not_waited_for() -> None:
    gate = threading.Event()

    def token(fresh: bool) -> str:
        gate.wait(30)
        return "late"

    async with relaying(Relay(("AUTH XOAUTH2",))) as relay:
        limits = Timeouts(command=0.05)
        smtp = asmtp.AsyncSMTP(relay.host, relay.port, timeout=limits, username="kim", tls="none", token=token)
        try:
            with pytest.raises(asmtp.SMTPTimeoutError, match="no token within 0.05 seconds"):
                await smtp.connect()
        finally:
            gate.set()


async def test_a_time_out_of_the_token_s_own_is_its_own() -> None:
    async def token(fresh: bool) -> str:
        raise TimeoutError("the issuer")

    async with relaying(Relay(("AUTH XOAUTH2",))) as relay:
        smtp = asmtp.AsyncSMTP(relay.host, relay.port, username="kim", tls="none", token=token)
        with pytest.raises(TimeoutError, match="the issuer") as caught:
            await smtp.connect()
        assert not isinstance(caught.value, asmtp.SMTPException)


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

    watching = EventLog("relay", watch)
    with pytest.raises(SystemExit):
        watching.closed("so")


# ---- a limit for the whole of a message ----------------------------------------------------------

LARGE = b"x" * 300_000


def slow(at: str, shape: str = "pipelining") -> Relay:
    """A server that answers nothing from this command on, until it is released; "." is the end of the content."""
    relay = Relay(SHAPES[shape])

    def answer(verb: str, line: str) -> str | None:
        if verb == at:
            relay.hold = 0
        return None

    relay.answer = answer
    return relay


@pytest.mark.virtual_clock
@pytest.mark.parametrize(("at", "state"), [("MAIL", "not_sent"), ("DATA", "not_sent"), (".", "in_doubt")])
@pytest.mark.parametrize("content", [b"hello", LARGE])
@pytest.mark.parametrize("how", ["send", "send_all", "in order", "cancelled", "cancelled by hand"])
async def test_the_whole_of_a_message(at: str, state: str, content: bytes, how: str) -> None:
    """The caller is told at once when the time is up, with the state that is known, though the server says nothing."""
    async with relaying(slow(at)) as relay, mailer(relay, close_timeout=1) as posting:
        message = (content, "a@x.example", "b@y.example")
        begun = now()
        if how == "send":
            with pytest.raises(asmtp.SMTPTimeoutError, match="not sent within 5 seconds") as caught:
                await posting.send(*message, timeout=5)
            assert caught.value.state == state
        elif how == "cancelled":
            with pytest.raises(TimeoutError) as late:
                async with asyncio.timeout(5):
                    await posting.send(*message)
            assert late.value.__cause__.state == state  # type: ignore[union-attr]
        elif how == "cancelled by hand":
            sending = asyncio.create_task(posting.send(*message))
            await asyncio.sleep(5)
            sending.cancel()
            with pytest.raises(asyncio.CancelledError) as cancelled:
                await sending
            assert cancelled.value.state == state  # type: ignore[attr-defined]
        else:
            several = [(message[1], message[2], content)] * 3
            told = [each async for each in posting.send_all(several, in_order=how == "in order", timeout=5)]
            assert {type(each.error) for each in told} == {asmtp.SMTPTimeoutError}
            assert len(told) == 3
            assert state in {each.state for each in told} <= {state, "not_sent"}
        assert now() - begun == pytest.approx(5, abs=0.01)
        if not how.startswith("cancelled"):
            assert posting.stats.in_flight == 0
            await posting.drain()
            assert now() - begun == pytest.approx(5, abs=0.01)
            assert sum(posting.stats[4:8]) == (1 if how == "send" else 3)
        relay.answer = lambda verb, line: None
        relay.release()
        await asyncio.sleep(10)  # what comes of it in the end is not told again
        assert posting.stats.in_flight == 0
        assert sum(posting.stats[4:8]) == (3 if how in ("send_all", "in order") else 1)


@pytest.mark.virtual_clock
@pytest.mark.parametrize(("at", "state"), [("MAIL", "not_sent"), (".", "in_doubt")])
async def test_a_limit_of_the_caller_s_own(at: str, state: str) -> None:
    """The exceptions of anyio and `wait_for` lead to the state that is known, too."""
    async with relaying(slow(at)) as relay, mailer(relay, close_timeout=1) as posting:
        with pytest.raises(TimeoutError) as cut:
            with anyio.fail_after(5):
                await posting.send(*LETTER)
        assert cut.value.__context__.state == state  # type: ignore[union-attr]
    async with relaying(slow(at)) as relay, mailer(relay, close_timeout=1) as posting:
        with pytest.raises(TimeoutError) as late:
            await asyncio.wait_for(posting.send(*LETTER), 5)
        assert late.value.__cause__.state == state  # type: ignore[union-attr]


@pytest.mark.virtual_clock
@pytest.mark.parametrize("connections", [1, 2])
async def test_the_whole_of_a_message_that_is_tried_again(connections: int) -> None:
    """A message that was refused ends with the last reply; one that waits for a connection with a timeout."""
    relay = Relay(answer=lambda verb, line: "451 4.7.1 later" if verb == "RCPT" else None)
    retry = asmtp.Retry(attempts=100, within=None, initial=1, jitter=0)
    async with relaying(relay), mailer(relay, retry=retry, connections=connections) as posting:
        with pytest.raises(asmtp.SMTPRecipientsRefused, match="later") as caught:
            await posting.send(*LETTER, timeout=5)
        assert (caught.value.state, now()) == ("refused", pytest.approx(5, abs=0.01))
    log: list[float] = []
    async with mute("", log, connections=connections) as waiting:
        begun = now()
        with pytest.raises(asmtp.SMTPTimeoutError, match="within 2.5 seconds") as late:
            await waiting.send(*LETTER, timeout=2.5)
        assert (late.value.state, now() - begun) == ("not_sent", pytest.approx(2.5))
        with pytest.raises(TimeoutError) as cut:
            async with asyncio.timeout(1):
                await waiting.send(*LETTER)
        assert cut.value.__cause__.state == "not_sent"  # type: ignore[union-attr]


@pytest.mark.virtual_clock
async def test_a_message_in_time() -> None:
    async with relaying(Relay(SHAPES["both"], latency=1)) as relay, mailer(relay) as posting:
        assert (await posting.send(*LETTER, timeout=30)).complete
        told = [each async for each in posting.send_all(items(50), timeout=30)]
        del relay.letters[0]
        assert agree(relay, told, 50) == {"sent": 50}
        await asyncio.sleep(100)
    assert posting.stats[4:8] == (51, 0, 0, 0)


def _alive(kind: type) -> int:
    return sum(isinstance(each, kind) for each in gc.get_objects())


async def test_what_was_told_is_not_held_until_its_time_would_be_up() -> None:
    gc.collect()
    before, bulks = _alive(QueuedMessage), _alive(BulkSend)
    async with relaying(Relay(SHAPES["both"])) as relay, mailer(relay, connections=1, window=5) as posting:
        numbers = itertools.count(1)
        alive = [
            _alive(QueuedMessage) async for _ in posting.send_all(items(300), timeout=3600) if next(numbers) == 290
        ]
        assert alive[0] - before < 50
        gc.collect()
        assert _alive(BulkSend) <= bulks


def test_what_a_blocking_mailer_told_is_not_held_either() -> None:
    before = _alive(QueuedMessage)
    with (
        in_background(relaying(Relay(SHAPES["both"]))) as relay,
        mailer_that_blocks(relay, connections=1, window=5) as posting,
    ):
        numbers = itertools.count(1)
        alive = [_alive(QueuedMessage) for _ in posting.send_all(items(600), timeout=3600) if next(numbers) == 550]
        assert alive[0] - before < 200


def mailer_that_blocks(relay: Relay, **options: Any) -> Mailer:
    return Mailer(asmtp.Relay(relay.host, relay.port), local_hostname="me", **options)


@pytest.mark.parametrize("kind", [AsyncMailer, Mailer])
async def test_a_limit_that_is_none(kind: Any) -> None:
    with pytest.raises(TypeError, match=r"timeouts=.*timeout= of send"):
        kind("smtp://localhost", timeout=5)
    for wrong, error in ((0, ValueError), (-1, ValueError), ("5", TypeError), (True, TypeError)):
        with pytest.raises(error, match="close_timeout"):
            kind("smtp://localhost", close_timeout=wrong)
        with pytest.raises(error, match="timeout"):
            kind("smtp://localhost").send_all([], timeout=wrong)
    with pytest.raises(ValueError, match="timeout"):
        await AsyncMailer("smtp://localhost").send(*LETTER, timeout=0)


# ---- the end of a mailer -------------------------------------------------------------------------


@pytest.mark.virtual_clock
@pytest.mark.parametrize("how", ["leaving", "aclose", "aclose(3)", "close_timeout=7"])
async def test_leaving_ends_in_time(how: str, caplog: pytest.LogCaptureFixture) -> None:
    """Messages that are given up are told to their callers, to `drain`, and once to the log."""
    seconds = {"aclose(3)": 3.0, "close_timeout=7": 7.0}.get(how, 20.0)
    options: dict[str, Any] = {"close_timeout": 7} if how == "close_timeout=7" else {}
    async with relaying(slow(".")) as relay:
        posting = mailer(relay, connections=1, **options)
        begun = now()
        async with contextlib.AsyncExitStack() as stack:
            if how in ("leaving", "close_timeout=7"):
                await stack.enter_async_context(posting)
            sends = [asyncio.create_task(posting.send(*LETTER)) for _ in range(3)]
            left = posting.send_all(items(2))
            asking = asyncio.create_task(anext(left))
            await asyncio.sleep(0.01)
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            del left, asking
            if how == "aclose":
                await posting.aclose()
            elif how == "aclose(3)":
                await posting.aclose(3)
        assert now() - begun == pytest.approx(seconds, abs=0.1)
        errors = await asyncio.gather(*sends, return_exceptions=True)
        assert {getattr(error, "state", None) for error in errors} <= {"in_doubt", "not_sent"}
        assert len(await posting.drain()) == 2
        warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert len(warnings) == 1
        assert "gave up" in warnings[0]
        await relay.quiet()


def test_what_a_mailer_that_blocks_gives_up_comes_out_of_drain() -> None:
    with in_background(relaying(Relay())) as relay:
        relay.answer = lambda verb, line: hang(relay) if "<a5@" in line else None
        with mailer_that_blocks(relay, close_timeout=0.1, connections=1) as posting:
            several = posting.send_all(items(10))
            told = [next(several)]
            several.close()
        told += posting.drain()
        assert {each.state for each in told} >= {"sent", "not_sent"}
        assert len(told) == sum(posting.stats[4:8])
        assert posting.drain() == []
    with mailer_that_blocks(relay) as unused:
        unused.close()
        with pytest.raises(asmtp.SMTPStateError):
            unused.drain()


def test_leaving_a_mailer_that_blocks_ends_in_time(caplog: pytest.LogCaptureFixture) -> None:
    with in_background(relaying(Relay(hold=2))) as relay:
        with mailer_that_blocks(relay, close_timeout=0.1) as posting:
            thread = threading.Thread(target=lambda: caught.append(pytest.raises(asmtp.SMTPException, send)))
            caught: list[Any] = []

            def send() -> None:
                posting.send(*LETTER)

            thread.start()
            while not posting.stats.in_flight:
                time.sleep(0.001)
        thread.join()
        assert caught[0].value.state in ("not_sent", "in_doubt")
    assert "gave up 1 messages" in caplog.text


# ---- connections that hang -----------------------------------------------------------------------


@pytest.mark.virtual_clock
@pytest.mark.parametrize("shape", ["pipelining", "both"])
@pytest.mark.parametrize("connections", [1, 2])
async def test_hung_messages_do_not_hold_up_the_others_for_ever(shape: str, connections: int) -> None:
    """If all connections hang, messages in line wait for the seconds of the phase at most, or for their own."""
    relay = Relay(SHAPES[shape])
    async with relaying(relay), mailer(relay, connections=connections, timeouts=60) as posting:
        await posting.send(*LETTER)
        relay.answer = lambda verb, line: hang(relay) if "<hang" in line else None
        hanging = [
            asyncio.create_task(posting.send(b"x", "hang@x.example", "b@y.example")) for _ in range(2 * connections)
        ]
        await asyncio.sleep(5)
        begun = now()
        with pytest.raises(asmtp.SMTPTimeoutError, match="within 10 seconds"):
            await posting.send(*LETTER, timeout=10)
        relay.answer = lambda verb, line: None
        relay.hold = None  # new connections are served; what was held stays so
        assert (await posting.send(*LETTER)).complete
        assert now() - begun <= 61
        await asyncio.gather(*hanging, return_exceptions=True)


def hang(relay: Relay) -> None:
    relay.hold = 0
