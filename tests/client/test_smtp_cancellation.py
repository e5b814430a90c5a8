"""Cancelled at any point, a call ends at once; the connection is in step behind it, or closed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

import asmtp
from asmtp import AsyncLMTP, AsyncSMTP
from tests.conftest import Certificates
from tests.fakes.embedded import PASSWORD, USER, Embedded, embedded
from tests.fakes.relay import SHAPES, Relay, relaying
from tests.fakes.script import expect, read_all, scripted, send, silence, until

pytestmark = pytest.mark.usefixtures("bdat_at_once")

FIRST, NEXT = "first@x.example", "next@x.example"
WHO = ["b@y.example", "c@y.example"]
TURNS = 8

Send = Callable[[AsyncSMTP], Awaitable[Any]]


async def pieces(count: int = 5) -> AsyncIterator[bytes]:
    for _ in range(count):
        yield b"x" * 70 + b"\r\n"
        await asyncio.sleep(0)


CONTENTS: dict[str, Callable[[], Any]] = {
    "whole": lambda: b"hi",
    "large": lambda: b"x" * 1_000_000,
    "streamed": pieces,
}


@pytest.fixture(params=sorted(CONTENTS))
def content(request: pytest.FixtureRequest) -> Any:
    return CONTENTS[request.param]()


def opened_files() -> set[str]:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # closed since
            found.add(os.readlink(f"/proc/self/fd/{name}"))
    return found


def client(relay: Any, **options: Any) -> AsyncSMTP:
    return AsyncSMTP(relay.host, relay.port, "me.example", **options)


async def cancelled(task: asyncio.Task[Any]) -> bool:
    """Cancel a task; whether that came in time.  It takes a pass of the loop or two, never a reply."""
    task.cancel()
    for _ in range(5):
        if task.done():
            break
        await asyncio.sleep(0)
    assert task.done(), "a cancelled call goes on"
    if not task.cancelled():
        assert task.exception() is None
    return task.cancelled()


async def held_or_done(relay: Relay, *tasks: asyncio.Task[Any]) -> None:
    """Until the relay holds an answer back, or there are none left to hold."""
    await until(lambda: relay.held.is_set() or all(task.done() for task in tasks))


async def in_step_or_closed(smtp: AsyncSMTP, relay: Relay, *, sent: bool) -> None:
    """The next message gets its own replies, or the connection is closed; the first came at most once."""
    if smtp.is_connected:
        assert await smtp.sendmail(NEXT, "d@y.example", b"next") == {}
        assert await smtp.docmd("noop", "in step") == (250, b"2.0.0 ok in step")
    else:
        with pytest.raises(asmtp.SMTPServerDisconnected):
            await smtp.sendmail(NEXT, "d@y.example", b"next")
    letters = [(letter.sender, letter.recipients) for letter in relay.letters]
    expected = [(NEXT, ["d@y.example"])] if smtp.is_connected else []
    assert letters in ([(FIRST, WHO), *expected], *([] if sent else [expected]))
    await smtp.close()


# ---- while the server is silent ---------------------------------------------------------------


@pytest.mark.parametrize("turns", range(TURNS))
async def test_after_so_many_answers(turns: int, shape: tuple[str, ...], content: Any) -> None:
    async with relaying(Relay(shape)) as relay:
        smtp = client(relay)
        await smtp.connect()
        await smtp.ehlo()
        relay.hold = 2 + turns  # the greeting and EHLO were answered
        sending = asyncio.create_task(smtp.sendmail(FIRST, WHO, content))
        await held_or_done(relay, sending)
        was_cancelled = await cancelled(sending)
        relay.release()
        await in_step_or_closed(smtp, relay, sent=not was_cancelled)


@pytest.mark.parametrize("passes", range(12))
async def test_after_so_many_passes_of_the_loop(passes: int, shape: tuple[str, ...], content: Any) -> None:
    async with relaying(Relay(shape)) as relay:
        smtp = client(relay)
        await smtp.connect()
        sending = asyncio.create_task(smtp.sendmail(FIRST, WHO, content))
        for _ in range(passes):
            await asyncio.sleep(0)
        was_cancelled = await cancelled(sending)
        if not smtp.is_connected:
            await relay.quiet()
        await in_step_or_closed(smtp, relay, sent=not was_cancelled)


@pytest.mark.parametrize("turns", range(1, 9))
async def test_between_others(turns: int, shape: tuple[str, ...]) -> None:
    """Those before and behind it get their own results, or are told that the connection is gone."""
    async with relaying(Relay(shape)) as relay:
        smtp = client(relay)
        await smtp.connect()
        await smtp.ehlo()
        relay.hold = 2 + turns
        tasks = [asyncio.create_task(smtp.sendmail(f"s{n}@x.example", f"r{n}@y.example", b"hi")) for n in range(3)]
        await held_or_done(relay, *tasks)
        was_cancelled = await cancelled(tasks[1])
        relay.release()
        first, last = await asyncio.gather(tasks[0], tasks[2], return_exceptions=True)
        letters = [letter.sender for letter in relay.letters]
        for result, sender in ((first, "s0@x.example"), (last, "s2@x.example")):
            if result == {}:
                assert letters.count(sender) == 1
            else:
                assert isinstance(result, asmtp.SMTPServerDisconnected)
                assert result.state == "not_sent" or letters.count(sender) <= 1
                assert not smtp.is_connected
        assert letters.count("s1@x.example") <= 1
        assert was_cancelled or letters.count("s1@x.example") == 1
        assert all(
            letter.recipients == [letter.sender.replace("s", "r", 1).replace("x.", "y.")] for letter in relay.letters
        )
        await smtp.close()


async def test_everyone_at_once(shape: tuple[str, ...]) -> None:
    async with relaying(Relay(shape)) as relay:
        smtp = client(relay)
        await smtp.connect()
        await smtp.ehlo()
        relay.hold = 2
        tasks = [asyncio.create_task(smtp.sendmail(f"s{n}@x.example", WHO, b"hi")) for n in range(10)]
        await relay.held.wait()
        for task in tasks:
            task.cancel()
        assert all(
            isinstance(result, asyncio.CancelledError)
            for result in await asyncio.gather(*tasks, return_exceptions=True)
        )
        relay.release()
        if smtp.is_connected:
            assert await smtp.sendmail(NEXT, WHO, b"next") == {}
            assert relay.letters[-1].sender == NEXT
        await smtp.close()


async def test_before_the_first_octet_nothing_is_written(shape: tuple[str, ...]) -> None:
    async with relaying(Relay(shape)) as relay, client(relay) as smtp:
        await smtp.ehlo()
        relay.hold = 2
        first = asyncio.create_task(smtp.sendmail(FIRST, WHO, b"hi"))
        await relay.held.wait()
        if "PIPELINING" in shape and "CHUNKING" in shape:
            first.cancel()
            relay.release()
            with contextlib.suppress(asyncio.CancelledError):
                await first
            return
        second = asyncio.create_task(smtp.sendmail("second@x.example", WHO, b"hi"))
        await asyncio.sleep(0)
        assert await cancelled(second)
        assert smtp.is_connected
        relay.release()
        assert await first == {}
        assert [letter.sender for letter in relay.letters] == [FIRST]
        assert sum("second@" in command for command in relay.commands) == 0


async def test_a_group_written_whole_is_delivered_all_the_same() -> None:
    """There is no way to take it back: but what comes next is in step."""
    async with relaying(Relay(SHAPES["both"])) as relay, client(relay) as smtp:
        await smtp.ehlo()
        relay.hold = 2
        sending = asyncio.create_task(smtp.sendmail(FIRST, WHO, b"hi"))
        await relay.held.wait()
        assert await cancelled(sending)
        assert smtp.is_connected
        relay.release()
        assert await smtp.sendmail(NEXT, WHO, b"next") == {}
        assert [letter.sender for letter in relay.letters] == [FIRST, NEXT]


@pytest.mark.parametrize("turns", range(4))
async def test_lmtp(turns: int, shape: tuple[str, ...]) -> None:
    async with relaying(Relay(shape, lmtp=True)) as relay:
        lmtp = AsyncLMTP(relay.host, relay.port, "me.example")
        await lmtp.connect()
        await lmtp.ehlo()
        relay.hold = 2 + turns
        sending = asyncio.create_task(lmtp.sendmail(FIRST, WHO, b"hi"))
        await held_or_done(relay, sending)
        was_cancelled = await cancelled(sending)
        relay.release()
        await in_step_or_closed(lmtp, relay, sent=not was_cancelled)


# ---- streamed content -------------------------------------------------------------------------


@pytest.fixture
def big(tmp_path: Path) -> Path:
    path = tmp_path / "message"
    path.write_bytes(b"x" * 20_000_000)
    return path


async def endless(closed: asyncio.Event) -> AsyncIterator[bytes]:
    try:
        while True:
            yield b"x" * 100_000
            await asyncio.sleep(0)
    finally:
        closed.set()


async def test_in_the_middle_of_a_generator(shape: tuple[str, ...]) -> None:
    closed = asyncio.Event()
    await in_the_middle(shape, lambda: endless(closed))
    assert closed.is_set()


async def test_in_the_middle_of_a_path(shape: tuple[str, ...], big: Path) -> None:
    await in_the_middle(shape, lambda: big)
    assert str(big) not in opened_files()


async def test_in_the_middle_of_a_file(shape: tuple[str, ...], big: Path) -> None:
    with big.open("rb") as file:
        await in_the_middle(shape, lambda: file)
        assert not file.closed


async def in_the_middle(shape: tuple[str, ...], make: Callable[[], Any]) -> None:
    async with relaying(Relay(shape)) as relay:
        smtp = client(relay)
        await smtp.connect()
        await smtp.ehlo()
        sending = asyncio.create_task(smtp.sendmail(FIRST, WHO, make()))
        await until(lambda: sum(map(len, relay.reads)) > 1_000_000)
        assert await cancelled(sending)
        assert smtp.is_connected == ("CHUNKING" in shape)
        await in_step_or_closed(smtp, relay, sent=False)
        assert FIRST not in [letter.sender for letter in relay.letters]


async def test_while_a_file_is_opened(big: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that opens it cannot be stopped; the file is closed all the same."""
    begun, go_on, opened = threading.Event(), threading.Event(), threading.Event()

    def slowly(path: Path, mode: str) -> Any:
        begun.set()
        go_on.wait()
        file = path.open(mode)
        opened.set()
        return file

    monkeypatch.setattr("asmtp.client.content.open", slowly, raising=False)
    async with relaying(Relay()) as relay, client(relay) as smtp:
        await smtp.ehlo()
        sending = asyncio.create_task(smtp.sendmail(FIRST, WHO, big))
        await until(begun.is_set)
        assert await cancelled(sending)
        go_on.set()
        await until(lambda: opened.is_set() and str(big) not in opened_files())
        assert relay.verbs == ["EHLO"]
        assert (await smtp.noop()).ok


async def test_a_generator_is_closed_by_whoever_was_reading_it() -> None:
    closed = asyncio.Event()
    generator = endless(closed)
    answer = {"DATA": "451 no"}.get
    async with relaying(Relay(answer=lambda verb, line: answer(verb))) as relay, client(relay) as smtp:
        with pytest.raises(asmtp.SMTPDataError):
            await smtp.sendmail(FIRST, WHO, generator)
        assert not closed.is_set()  # it was not begun
        relay.answer = lambda verb, line: None
        sending = asyncio.create_task(smtp.sendmail(FIRST, WHO, generator))
        await until(lambda: len(relay.reads) > 10)
        assert await cancelled(sending)
        assert closed.is_set()


# ---- other calls ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["noop", "rset", "ehlo", "helo", "help", "quit"])
async def test_single_commands(name: str) -> None:
    async with relaying(Relay()) as relay:
        smtp = client(relay)
        await smtp.connect()
        relay.hold = 1
        calling = asyncio.create_task(getattr(smtp, name)())
        await relay.held.wait()
        assert await cancelled(calling)
        relay.release()
        if smtp.is_connected and name != "quit":
            assert await smtp.docmd("noop", "in step") == (250, b"2.0.0 ok in step")
        else:
            with pytest.raises(asmtp.SMTPServerDisconnected):
                await smtp.noop()
        await smtp.close()


@pytest.mark.parametrize("turns", range(6))
async def test_login_in_the_middle_closes(turns: int) -> None:
    """Half a SASL exchange has no way back: what came next would be taken for a response."""
    steps = [
        [send("220 hi")], [expect("ehlo me.example"), send("250-hi", "250 AUTH LOGIN")],
        [expect("AUTH LOGIN"), send("334 VXNlcg==")], [expect("dGVzdGVy"), send("334 UGFzcw==")],
        [expect("czNjcmV0LVBhNTU="), send("235 welcome")],
    ]  # fmt: skip
    reached = asyncio.Event()

    async def here(peer: Any) -> None:
        reached.set()

    async with scripted([*(step for group in steps[:turns] for step in group), here, silence]) as server:
        smtp = client(server, username=USER, password=PASSWORD, tls="none")
        connecting = asyncio.create_task(smtp.connect())
        await reached.wait()
        for _ in range(10):
            await asyncio.sleep(0)
        if turns < 5:
            assert await cancelled(connecting)
            assert not smtp.is_connected
        else:
            assert (await connecting).code == 220
        await smtp.close()


async def test_connect_is_closed_wherever_it_is_cancelled(certificates: Certificates) -> None:
    """Name look-up, connection, greeting, EHLO, STARTTLS, the handshake, AUTH: in each pass of the loop."""
    passes = 0
    async with embedded(Embedded(mechanisms=("LOGIN",)), tls=certificates.server) as server:
        while True:
            smtp = client(server, username=USER, password=PASSWORD, ssl_context=certificates.trusting)
            connecting = asyncio.create_task(smtp.connect())
            for _ in range(passes):
                await asyncio.sleep(0)
            if connecting.done():
                break
            assert await cancelled(connecting)
            assert not smtp.is_connected
            assert smtp.sock is None
            await smtp.close()
            passes += 1 + passes // 10
        await smtp.quit()
    assert passes > 5


async def test_a_look_up_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async def resolver(host: str, port: int) -> Any:
        await asyncio.Event().wait()

    monkeypatch.setattr("asmtp.transport.resolve.resolve", resolver)
    connecting = asyncio.create_task(AsyncSMTP("mx.example").connect())
    await asyncio.sleep(0)
    assert await cancelled(connecting)


@pytest.mark.parametrize("implicit", [True, False])
async def test_a_handshake_is_given_up(implicit: bool, certificates: Certificates) -> None:
    hello = [
        send("220 hi"), expect("ehlo me.example"), send("250-hi", "250 STARTTLS"), expect("STARTTLS"), send("220 go"),
    ]  # fmt: skip
    async with scripted([*([] if implicit else hello), read_all]) as server:
        mode: Any = "implicit" if implicit else "required"
        smtp = client(server, tls=mode, ssl_context=certificates.trusting)
        connecting = asyncio.create_task(smtp.connect())
        await until(lambda: server.peers and b"\x16\x03" in server.peer.received)
        assert await cancelled(connecting)
        assert not smtp.is_connected


async def test_starttls_by_hand_in_the_handshake(certificates: Certificates) -> None:
    hello = [send("220 hi"), expect("ehlo me.example"), send("250-hi", "250 STARTTLS")]
    async with scripted([*hello, expect("STARTTLS"), send("220 go"), read_all]) as server:
        smtp = client(server)
        await smtp.connect()
        securing = asyncio.create_task(smtp.starttls(context=certificates.trusting))
        await until(lambda: b"\x16\x03" in server.peer.received)
        assert await cancelled(securing)
        assert not smtp.is_connected
        await asyncio.wait_for(smtp.close(), 5)


async def test_a_deadline_of_the_caller_s() -> None:
    """`asyncio.timeout` is a cancellation too."""
    async with relaying(Relay(SHAPES["both"])) as relay:
        smtp = client(relay)
        await smtp.connect()
        await smtp.ehlo()
        relay.hold = 0
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await smtp.sendmail(FIRST, WHO, b"hi")
        relay.release()
        await in_step_or_closed(smtp, relay, sent=False)


async def test_the_context_after_a_cancellation(shape: tuple[str, ...]) -> None:
    async with relaying(Relay(shape)) as relay:

        async def work() -> None:
            async with client(relay) as smtp:
                await smtp.ehlo()
                relay.hold = 0
                await smtp.sendmail(FIRST, WHO, b"hi")

        working = asyncio.create_task(work())
        await relay.held.wait()
        assert await cancelled(working)
        await relay.quiet()
        assert "QUIT" not in relay.verbs
