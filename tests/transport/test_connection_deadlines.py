"""Every limit of `Timeouts`, on a clock that jumps.

Where the flow of octets matters, over a Unix socket: TCP has timers of its own, which do not jump.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import asmtp
from asmtp import AsyncSMTP, SMTPServerDisconnected, SMTPTimeoutError, Timeouts
from asmtp.transport import connection as transport_module
from tests.fakes.clock import now
from tests.fakes.relay import SHAPES, Relay, relaying
from tests.fakes.script import Step, deaf, drip, expect, nothing_more, scripted, send, silence

pytestmark = [pytest.mark.virtual_clock, pytest.mark.usefixtures("bdat_at_once")]

FOREVER = 10_000_000.0
LIMITS = Timeouts(connect=1, tls=2, greeting=3, command=4, data=5, content=6, final=7, quit=8)
HELLO = [send("220 hi"), expect("ehlo me.example"), send("250-hi", "250-PIPELINING", "250 STARTTLS")]
ENVELOPE = [expect("mail from:<a@x.example>", "rcpt to:<b@y.example>", "data"), send("250 ok", "250 ok", "354 go")]
CONTENT = [expect("hello", ".")]

Call = Callable[[AsyncSMTP], Awaitable[Any]]


async def endless(*first: bytes) -> AsyncIterator[bytes]:
    for piece in first:
        yield piece
    while True:
        yield b"x" * 100_000


def connect(smtp: AsyncSMTP) -> Awaitable[Any]:
    return smtp.connect()


async def connected(smtp: AsyncSMTP, call: Callable[[], Awaitable[Any]]) -> Any:
    await smtp.connect()
    return await call()


def then(name: str, *args: Any) -> Call:
    """Connect, then call a method."""
    return lambda smtp: connected(smtp, lambda: getattr(smtp, name)(*args))


def mail(content: Any = b"hello\r\n") -> Call:
    def call(smtp: AsyncSMTP) -> Awaitable[Any]:
        return then("sendmail", "a@x.example", "b@y.example", content() if callable(content) else content)(smtp)

    return call


PHASES: dict[str, tuple[str, str, list[Step], Call]] = {
    "greeting": ("greeting", "the greeting", [], connect),
    "ehlo": ("command", "a command", [send("220 hi"), expect("ehlo me.example")], then("ehlo")),
    "starttls": ("command", "a command", [*HELLO, expect("STARTTLS")], then("starttls")),
    "envelope": (
        "command", "a command",
        [*HELLO, expect("mail from:<a@x.example>", "rcpt to:<b@y.example>", "data")],
        mail(),
    ),
    "data": (
        "data", "DATA",
        [*HELLO, expect("mail from:<a@x.example>", "rcpt to:<b@y.example>", "data"), send("250 ok", "250 ok")],
        mail(),
    ),
    "final": ("final", "the end of the content", [*HELLO, *ENVELOPE, *CONTENT], mail()),
    "content": ("content", "content being sent", [*HELLO, *ENVELOPE, deaf], mail(endless)),
    "quit": ("quit", "QUIT", [send("220 hi"), expect("quit")], then("quit")),
}  # fmt: skip


@pytest.mark.parametrize("phase", PHASES)
async def test_a_phase_without_an_answer(phase: str, tmp_path: Path) -> None:
    limit, words, steps, call = PHASES[phase]
    async with scripted([*steps, silence], path=str(tmp_path / "s")) as server:
        smtp = AsyncSMTP(server.host, 0, "me.example", LIMITS)
        if phase == "quit":
            # What was sent before is sent: a silence here is no error.
            code, why = await call(smtp)
            assert code == -1
            message = why.decode()
        else:
            with pytest.raises(SMTPTimeoutError) as caught:
                await call(smtp)
            assert isinstance(caught.value, TimeoutError)
            assert isinstance(caught.value, SMTPServerDisconnected)
            message = str(caught.value)
        seconds = getattr(LIMITS, limit)
        assert message == f"timed out: no answer to {words} within {seconds} seconds"
        assert seconds <= now() <= seconds * 1.5
        assert not smtp.is_connected
        assert smtp.sock is None
        if phase != "content":
            await asyncio.wait_for(server.peer.closed.wait(), 1)
        await smtp.close()


async def test_421_and_no_end(tmp_path: Path) -> None:
    """A server that says it closes, and does not, is not waited for as long as one that is to answer."""
    both = ["mail from:<a@x.example>", "rcpt to:<b@y.example>", "BDAT 4 LAST", "hi"]
    steps = [
        send("220 hi"), expect("ehlo me.example"), send("250-hi", "250-PIPELINING", "250 CHUNKING"),
        expect(*both, "rset", *both), send("250 a", "250 b", "421 bye"), silence,
    ]  # fmt: skip
    async with scripted(steps, path=str(tmp_path / "s")) as server:
        smtp = AsyncSMTP(server.host, 0, "me.example")
        await smtp.connect()
        await smtp.ehlo()
        sending = [asyncio.ensure_future(smtp.sendmail("a@x.example", "b@y.example", b"hi")) for _ in range(2)]
        first, second = await asyncio.gather(*sending, return_exceptions=True)
        assert isinstance(first, asmtp.SMTPDataError)
        assert isinstance(second, SMTPTimeoutError)
        assert second.state == "in_doubt"
        assert transport_module.CLOSING <= now() <= transport_module.CLOSING + 2
        assert not smtp.is_connected
        await smtp.close()


@pytest.mark.parametrize("phase", sorted(PHASES))
async def test_no_limit_is_no_limit(phase: str, tmp_path: Path) -> None:
    _, _, steps, call = PHASES[phase]
    async with scripted([*steps, silence], path=str(tmp_path / "s")) as server:
        smtp = AsyncSMTP(server.host, 0, "me.example", None)
        task = asyncio.ensure_future(call(smtp))
        await asyncio.sleep(FOREVER)
        assert not task.done()
        await smtp.close()
        with contextlib.suppress(SMTPServerDisconnected):  # quit() returns why
            await task


@pytest.mark.parametrize("phase", sorted(PHASES))
async def test_one_number_is_the_limit_of_all(phase: str, tmp_path: Path) -> None:
    _, _, steps, call = PHASES[phase]
    async with scripted([*steps, silence], path=str(tmp_path / "s")) as server:
        smtp = AsyncSMTP(server.host, 0, "me.example", 30)
        raises = pytest.raises(SMTPTimeoutError, match="within 30 seconds")
        with contextlib.nullcontext() if phase == "quit" else raises:
            await call(smtp)
        assert 30 <= now() <= 33
        await smtp.close()


# ---- before there is a connection -------------------------------------------------------------


@pytest.fixture
def busy() -> Iterator[tuple[str, int]]:
    """The address of a server whose line of waiting connections is full: it does not even answer."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(socket.socket())
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for _ in range(4):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(server.getsockname())
        yield server.getsockname()


async def test_no_connection(busy: tuple[str, int]) -> None:
    smtp = AsyncSMTP(*busy, timeout=LIMITS)
    with pytest.raises(SMTPTimeoutError, match=re.escape(f"no connection to 127.0.0.1:{busy[1]} within 1 seconds")):
        await smtp.connect()
    assert now() == 1
    assert not smtp.is_connected


async def test_no_connection_and_no_limit(busy: tuple[str, int]) -> None:
    task = asyncio.ensure_future(AsyncSMTP(*busy, timeout=None).connect())
    await asyncio.sleep(100)
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_name_that_is_not_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async def resolver(host: str, port: int) -> Any:
        await asyncio.sleep(FOREVER)

    monkeypatch.setattr("asmtp.transport.resolve.resolve", resolver)
    with pytest.raises(SMTPTimeoutError, match=r"no connection to mx\.example:25 within 1 seconds"):
        await AsyncSMTP("mx.example", timeout=LIMITS).connect()
    assert now() == 1


async def test_an_address_that_does_not_answer_is_passed_over(
    busy: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scripted([send("220 hi"), nothing_more]) as server:

        async def resolver(host: str, port: int) -> list[tuple[Any, ...]]:
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in (busy, server.address)]

        monkeypatch.setattr("asmtp.transport.resolve.resolve", resolver)
        smtp = AsyncSMTP("mx.example")
        await smtp.connect()
        assert now() == 0.25  # RFC 8305 §8
        await smtp.close()


async def test_time_outs_of_the_system_stay_the_system_s(monkeypatch: pytest.MonkeyPatch) -> None:
    async def resolver(host: str, port: int) -> Any:
        raise TimeoutError(110, "Connection timed out")

    monkeypatch.setattr("asmtp.transport.resolve.resolve", resolver)
    with pytest.raises(TimeoutError, match="Connection timed out") as caught:
        await AsyncSMTP("mx.example", timeout=LIMITS).connect()
    assert not isinstance(caught.value, SMTPTimeoutError)


# ---- TLS --------------------------------------------------------------------------------------


@pytest.mark.parametrize("tls", ["implicit", "required"])
async def test_no_handshake(tls: Any) -> None:
    steps = [] if tls == "implicit" else [*HELLO, expect("STARTTLS"), send("220 go")]
    async with scripted([*steps, silence]) as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        smtp = AsyncSMTP("127.0.0.1", server.port, "me.example", LIMITS, tls=tls, ssl_context=context)
        with pytest.raises(SMTPTimeoutError, match="no TLS handshake within 2 seconds"):
            await smtp.connect()
        assert now() == 2
        assert not smtp.is_connected


@pytest.mark.parametrize("tls", ["implicit", "required"])
async def test_no_handshake_and_no_limit(tls: Any) -> None:
    steps = [] if tls == "implicit" else [*HELLO, expect("STARTTLS"), send("220 go")]
    async with scripted([*steps, silence]) as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        smtp = AsyncSMTP("127.0.0.1", server.port, "me.example", None, tls=tls, ssl_context=context)
        task = asyncio.ensure_future(smtp.connect())
        await asyncio.sleep(FOREVER)
        assert not task.done()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


# ---- what counts as progress ------------------------------------------------------------------


async def test_a_reply_that_drips_in_is_no_progress() -> None:
    async with scripted([send("220 hi"), expect("noop"), drip(b"250-" + b"x" * 1000, every=1)]) as server:
        smtp = AsyncSMTP("127.0.0.1", server.port, timeout=20)
        await smtp.connect()
        with pytest.raises(SMTPTimeoutError):
            await smtp.noop()
        assert 20 <= now() <= 21
        await smtp.close()


async def test_each_reply_of_a_group_is_progress() -> None:
    people = [f"r{number}@y.example" for number in range(5)]
    script = [
        *HELLO, expect("mail from:<a@x.example>", *(f"rcpt to:<{who}>" for who in people), "data"),
        drip_lines("250 ok", "250 ok", "250 ok", "250 ok", "250 ok", "250 ok", "354 go", every=9),
        *CONTENT, send("250 taken"), nothing_more,
    ]  # fmt: skip
    async with scripted(script) as server:
        smtp = AsyncSMTP("127.0.0.1", server.port, "me.example", 10)
        await smtp.connect()
        assert await smtp.sendmail("a@x.example", people, b"hello\r\n") == {}
        assert now() == 63
        await smtp.close()


def drip_lines(*lines: str, every: float) -> Step:
    async def step(peer: Any) -> None:
        for line in lines:
            await asyncio.sleep(every)
            peer.transport.write(line.encode() + b"\r\n")

    return step


async def test_a_slow_upload_that_goes_on_is_no_time_out(tmp_path: Path) -> None:
    total = 20 * 1_000_000

    async def body() -> AsyncIterator[bytes]:
        for _ in range(200):
            yield b"x" * 100_000

    async def sip(peer: Any) -> None:
        """Take a little every five seconds."""
        while len(peer.received) < total:
            before = len(peer.received)
            peer.transport.resume_reading()
            while len(peer.received) < before + 1_000_000 and not peer.received.endswith(b".\r\n"):
                await peer.more()
            peer.transport.pause_reading()
            await asyncio.sleep(5)
        peer.transport.resume_reading()

    script = [*HELLO, *ENVELOPE, sip, expect(b"x" * total + b"\r\n.\r\n"), send("250 taken"), nothing_more]
    async with scripted(script, path=str(tmp_path / "s")) as server:
        smtp = AsyncSMTP(server.host, 0, "me.example", Timeouts(content=6))
        await smtp.connect()
        assert await smtp.sendmail("a@x.example", "b@y.example", body()) == {}
        assert now() > 60
        await smtp.close()


async def test_content_that_the_caller_is_slow_to_give_is_no_time_out_of_the_server_s() -> None:
    async def body() -> AsyncIterator[bytes]:
        for _ in range(3):
            await asyncio.sleep(30)
            yield b"late\r\n"

    async with (
        relaying(Relay(("PIPELINING",))) as relay,
        AsyncSMTP(relay.host, relay.port, "me.example", LIMITS) as smtp,
    ):
        assert await smtp.sendmail("a@x.example", "b@y.example", body()) == {}
        assert relay.letters[0].content == b"late\r\n" * 3


async def test_an_upload_that_stops_half_way(tmp_path: Path) -> None:
    async def some(peer: Any) -> None:
        while len(peer.received) < 1_000_000:
            await peer.more()

    async with scripted([*HELLO, *ENVELOPE, some, deaf], path=str(tmp_path / "s")) as server:
        smtp = AsyncSMTP(server.host, 0, "me.example", LIMITS)
        await smtp.connect()
        with pytest.raises(SMTPTimeoutError, match="content being sent within 6 seconds") as caught:
            await smtp.sendmail("a@x.example", "b@y.example", endless())
        assert caught.value.state == "not_sent"
        assert 6 <= now() <= 9
        await smtp.close()


@pytest.mark.parametrize("octets", [0.2, 100, 250])
async def test_an_upload_by_drops(octets: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So many octets a second: 1 KiB has to go within the phase, or a message would never end."""
    taken = lambda self: (self.session.progress, round(octets * now()))  # noqa: E731
    monkeypatch.setattr(transport_module.Connection, "_progress", taken)
    async with scripted([*HELLO, *ENVELOPE, deaf], path=str(tmp_path / "s")) as server:
        smtp = AsyncSMTP(server.host, 0, "me.example", LIMITS)
        await smtp.connect()
        sending = asyncio.create_task(smtp.sendmail("a@x.example", "b@y.example", endless()))
        await asyncio.wait([sending], timeout=200)
        if octets < 200:
            assert now() < 9
            with pytest.raises(SMTPTimeoutError, match="content being sent within 6 seconds"):
                await sending
        else:
            assert not sending.done()
            sending.cancel()
            await asyncio.wait([sending])
        await smtp.close()


async def test_an_idle_connection_has_no_limit() -> None:
    async with relaying(Relay()) as relay, AsyncSMTP(relay.host, relay.port, "me.example", 1) as smtp:
        await smtp.noop()
        await asyncio.sleep(FOREVER)
        assert (await smtp.noop()).ok
        await asyncio.sleep(0.9)
        assert (await smtp.noop()).ok


async def test_the_limit_counts_from_the_command_not_from_the_one_before() -> None:
    async with relaying(Relay(latency=0.9)) as relay, AsyncSMTP(relay.host, relay.port, "me.example", 1) as smtp:
        for _ in range(20):
            assert (await smtp.noop()).ok


@pytest.mark.parametrize("shape", SHAPES)
async def test_everyone_on_the_connection_is_told(shape: str) -> None:
    async with relaying(Relay(SHAPES[shape])) as relay:
        smtp = AsyncSMTP(relay.host, relay.port, "me.example", 10)
        await smtp.connect()
        await smtp.ehlo()
        relay.hold = 0
        tasks = [smtp.sendmail(f"s{number}@x.example", "b@y.example", b"hello") for number in range(5)]
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(result, SMTPTimeoutError) for result in results)
        assert len({id(result) for result in results}) == 5
        assert now() <= 15
        with pytest.raises(SMTPServerDisconnected):
            await smtp.noop()
        await smtp.close()


@pytest.mark.parametrize(("shape", "state"), [("none", "not_sent"), ("pipelining", "not_sent"), ("both", "in_doubt")])
async def test_what_is_known_of_a_message_whose_envelope_got_no_answer(shape: str, state: str) -> None:
    async with relaying(Relay(SHAPES[shape])) as relay:
        smtp = AsyncSMTP(relay.host, relay.port, "me.example", 10)
        await smtp.connect()
        await smtp.ehlo()
        relay.hold = 0
        with pytest.raises(SMTPTimeoutError) as caught:
            await smtp.sendmail("a@x.example", "b@y.example", b"hello")
        assert caught.value.state == state
        await smtp.close()


async def test_a_message_whose_end_got_no_answer_is_in_doubt() -> None:
    async with scripted([*HELLO, *ENVELOPE, *CONTENT, silence]) as server:
        smtp = AsyncSMTP("127.0.0.1", server.port, "me.example", LIMITS)
        await smtp.connect()
        with pytest.raises(SMTPTimeoutError) as caught:
            await smtp.sendmail("a@x.example", "b@y.example", b"hello\r\n")
        assert caught.value.state == "in_doubt"
        await smtp.close()


async def test_the_server_s_end_of_quit_is_not_waited_for() -> None:
    async with scripted([send("220 hi"), expect("quit"), send("221 bye"), silence]) as server:
        async with AsyncSMTP("127.0.0.1", server.port, "me.example"):
            pass
        assert now() == 0
        await server.peer.closed.wait()


async def test_leaving_the_context_does_not_raise_where_quit_is_not_answered() -> None:
    async with scripted([send("220 hi"), expect("quit"), silence]) as server:
        async with AsyncSMTP("127.0.0.1", server.port, "me.example"):
            pass
        assert 10 <= now() <= 11
