"""Tasks that share a client do not get into each other's way: connecting, TLS, cancelling, streaming."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

import asmtp
from asmtp import AsyncSMTP, SMTPServerDisconnected
from tests.conftest import Certificates
from tests.fakes.embedded import Embedded, embedded
from tests.fakes.people import SENDER, WHO
from tests.fakes.relay import SHAPES, Relay, relaying
from tests.fakes.script import expect, fin, scripted, send, silence, until

pytestmark = pytest.mark.usefixtures("bdat_at_once")

MAIL = ["mail from:<a@x.example>", "rcpt to:<b@y.example>"]


def client(server: Any, **options: Any) -> AsyncSMTP:
    return AsyncSMTP(server.host, server.port, "me.example", **options)


async def ready(smtp: AsyncSMTP) -> AsyncSMTP:
    await smtp.connect()
    await smtp.ehlo()
    return smtp


# ---- connecting -------------------------------------------------------------------------------


async def test_nothing_is_sent_before_the_tls_that_was_asked_for(certificates: Certificates) -> None:
    async with embedded(Embedded(), tls=certificates.server) as server:
        smtp = client(server, tls="required", ssl_context=certificates.trusting)
        connecting = asyncio.create_task(smtp.connect())
        while not connecting.done():
            assert not smtp.is_connected
            with pytest.raises(asmtp.SMTPServerDisconnected, match="connect") as caught:
                await smtp.sendmail(SENDER, WHO, b"secret")
            assert caught.value.state == "not_sent"
            await asyncio.sleep(0)
        assert smtp.is_connected
        assert await smtp.sendmail(SENDER, WHO, b"secret") == {}
        await smtp.quit()
    assert server.encrypted == [True]


async def test_connecting_twice_at_once() -> None:
    async with relaying(Relay()) as relay:
        smtp = client(relay)
        results = await asyncio.gather(smtp.connect(), smtp.connect(), smtp.connect(), return_exceptions=True)
        assert [type(result).__name__ for result in results] == ["Reply", "SMTPStateError", "SMTPStateError"]
        assert (await smtp.noop()).ok
        await smtp.quit()
        assert (await smtp.connect()).code == 220
        await smtp.close()


def test_a_client_outlives_its_loop() -> None:
    smtp: list[AsyncSMTP] = []

    async def run() -> None:
        async with relaying(Relay()) as relay:
            if not smtp:
                smtp.append(AsyncSMTP("", 0, "me.example"))
            await smtp[0].connect(relay.host, relay.port)
            sent = await asyncio.gather(*[smtp[0].sendmail(SENDER, WHO, b"hi") for _ in range(5)])
            assert sent == [{}] * 5
            await smtp[0].quit()

    for _ in range(2):
        asyncio.run(run())


# ---- TLS under way ----------------------------------------------------------------------------


async def test_what_is_queued_behind_starttls_goes_under_tls(certificates: Certificates) -> None:
    async with embedded(Embedded(), tls=certificates.server) as server, client(server) as smtp:
        await smtp.ehlo()
        results = await asyncio.gather(
            smtp.sendmail(SENDER, WHO, b"before"),
            smtp.starttls(context=certificates.trusting),
            smtp.sendmail(SENDER, WHO, b"behind"),
            smtp.noop(),
        )
        assert results[0] == results[2] == {}
        assert (results[1].code, results[3].code) == (220, 250)
        assert smtp.does_esmtp
    assert server.encrypted == [False, True]
    assert server.hellos == 2


# ---- cancelled neighbours ---------------------------------------------------------------------


async def test_a_cancelled_task_costs_its_neighbour_nothing() -> None:
    """The second one's DATA rides behind the first one's dot; the second is cancelled."""
    script = [
        send("220 hi"), expect("ehlo me.example"), send("250-hi", "250 PIPELINING"),
        expect(*MAIL, "data"), send("250 ok", "250 ok", "354 go"),
        expect("first", ".", "rset", *MAIL, "data"),
    ]  # fmt: skip
    async with scripted(script) as server:
        smtp = await ready(client(server))
        first = asyncio.create_task(smtp.sendmail(SENDER, WHO, b"first"))
        second = asyncio.create_task(smtp.sendmail(SENDER, WHO, b"second"))
        await until(lambda: b"first\r\n.\r\nrset" in server.received)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        assert smtp.is_connected
        server.peer.transport.write(b"250 taken\r\n")
        assert await first == {}
        # A 354 that nobody can answer ends it.
        server.peer.transport.write(b"250 ok\r\n250 ok\r\n250 ok\r\n354 go\r\n")
        await until(lambda: not smtp.is_connected)
        await smtp.close()


# ---- streaming --------------------------------------------------------------------------------


async def test_a_stream_that_stalls_hears_of_the_end() -> None:
    script = [send("220 hi"), expect("ehlo me.example"), send("250 hi"), expect(MAIL[0]), send("250 ok"),
              expect(MAIL[1]), send("250 ok"), expect("data"), send("354 go"), expect("begun"), fin]  # fmt: skip
    closed: list[bool] = []

    async def stalling() -> AsyncIterator[bytes]:
        try:
            yield b"begun\r\n"
            await asyncio.Event().wait()
        finally:
            closed.append(True)

    async with scripted(script) as server:
        smtp = await ready(client(server))
        with pytest.raises(asmtp.SMTPServerDisconnected) as caught:
            await smtp.sendmail(SENDER, WHO, stalling())
        assert caught.value.state == "not_sent"
        assert closed == [True]
        await smtp.close()


@pytest.mark.virtual_clock
@pytest.mark.parametrize("shape", ["pipelining", "both"])
async def test_a_slow_author_is_not_the_servers_fault(shape: str, tmp_path: Any) -> None:
    async def slow() -> AsyncIterator[bytes]:
        for _ in range(3):
            await asyncio.sleep(30)
            yield b"line\r\n"

    async with relaying(Relay(SHAPES[shape]), path=str(tmp_path / "s")) as relay:
        smtp = await ready(client(relay, timeout=10))
        assert await smtp.sendmail(SENDER, WHO, slow()) == {}
        await smtp.quit()
    assert relay.letters[0].content == b"line\r\n" * 3


@pytest.mark.parametrize("what", ["noop", "ehlo", "sendmail"])
async def test_a_failed_stream_of_chunks_is_reset_before_anything_else(what: str) -> None:
    async def failing() -> AsyncIterator[bytes]:
        yield b"x" * 100
        raise RuntimeError("no more")

    async with relaying(Relay(SHAPES["both"])) as relay:
        smtp = await ready(client(relay))
        with pytest.raises(RuntimeError, match="no more"):
            await smtp.sendmail(SENDER, WHO, failing())
        again: dict[str, Callable[[], Awaitable[object]]] = {
            "noop": smtp.noop,
            "ehlo": smtp.ehlo,
            "sendmail": lambda: smtp.sendmail(SENDER, WHO, b"hi"),
        }
        await again[what]()
        assert await smtp.sendmail(SENDER, WHO, b"last") == {}
        await smtp.quit()
    assert [letter.content for letter in relay.letters][-1] == b"last\r\n"
    assert b"x" not in b"".join(letter.content for letter in relay.letters)


# ---- what is known ----------------------------------------------------------------------------


async def test_every_failure_to_send_says_what_is_known() -> None:
    with pytest.raises(asmtp.SMTPServerDisconnected) as caught:
        await AsyncSMTP().sendmail(SENDER, WHO, b"hi")
    assert caught.value.state == "not_sent"
    async with scripted([send("220 hi"), expect("ehlo me.example"), fin]) as server:
        smtp = client(server)
        await smtp.connect()
        with pytest.raises(asmtp.SMTPServerDisconnected) as caught:
            await smtp.sendmail(SENDER, WHO, b"hi")
        assert caught.value.state == "not_sent"
        await smtp.close()


async def test_secrets_are_not_in_errors_about_control_characters() -> None:
    script = [send("220 hi"), expect("AUTH LOGIN"), send("334 VXNlcm5hbWU6")]
    async with scripted(script) as server:
        smtp = client(server)
        await smtp.connect()
        with pytest.raises(ValueError, match="not shown") as caught:
            await smtp.docmd("AUTH", "PLAIN aHVudGVyMg==\n")
        assert "aHVudGVyMg" not in str(caught.value)
        with pytest.raises(ValueError, match="not ASCII") as caught:
            await smtp.docmd("AUTH", "PLAIN secr\xe9t")
        assert "secr" not in repr(caught.value)
        await smtp.docmd("AUTH", "LOGIN")
        with pytest.raises(ValueError, match="not shown") as caught:
            await smtp.docmd("aHVudGVyMg==\n")
        assert "aHVudGVyMg" not in str(caught.value)
        await smtp.close()


async def test_size_counts_the_line_ends_as_they_are_sent() -> None:
    async with relaying(Relay(("SIZE 300000", *SHAPES["both"]))) as relay:
        smtp = await ready(client(relay))
        with pytest.raises(asmtp.SMTPSenderRefused, match="300002 octets is over the server's limit of 300000"):
            await smtp.sendmail(SENDER, WHO, b"x\n" * 100_000 + b"\r\n")
        assert await smtp.sendmail(SENDER, WHO, b"x\n" * 99_000) == {}
        await smtp.quit()
    assert relay.letters[0].parameters.split()[0] == "size=297000"


async def test_a_call_behind_a_go_ahead_that_cannot_be_answered_is_told_at_once() -> None:
    """The first has all the time it needs; the second, cancelled, has asked for a 354; nothing can come behind that."""
    script = [
        send("220 hi"), expect("ehlo me.example"), send("250-hi", "250 PIPELINING"),
        expect(*MAIL, "data"), send("250 ok", "250 ok", "354 go"),
        expect("first", ".", "rset", *MAIL, "data"), silence,
    ]  # fmt: skip
    async with scripted(script) as server:
        smtp = await ready(client(server))
        first, second, third = (
            asyncio.create_task(smtp.sendmail(SENDER, WHO, content)) for content in (b"first", b"second", b"third")
        )
        await until(lambda: b"first\r\n.\r\nrset" in server.received)
        second.cancel()
        await asyncio.wait([second, third], timeout=5)
        later = asyncio.create_task(smtp.sendmail(SENDER, WHO, b"later"))
        await asyncio.wait([later], timeout=5)
        for told in (third, later):
            error = told.exception()
            assert isinstance(error, SMTPServerDisconnected)
            assert (error.state, "another call was cancelled" in str(error)) == ("not_sent", True)
        assert second.cancelled()
        assert not first.done()
        assert smtp.is_connected
        await smtp.close()
        with pytest.raises(SMTPServerDisconnected) as lost:
            await first
        assert lost.value.state == "in_doubt"
