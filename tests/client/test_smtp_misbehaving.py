"""Servers that break the protocol: one error that says so, a closed connection, and no memory lost to it.

What can be told in a word, to every client, is among the lies of test_smtp_lies.py.
"""

from __future__ import annotations

import asyncio
import gc
import tracemalloc
from typing import Any

import pytest

import asmtp
from asmtp import AsyncSMTP
from asmtp.protocol.reply import MAX_LINE, MAX_REPLY
from tests.fakes.people import SENDER, WHO
from tests.fakes.relay import SHAPES, Relay, relaying
from tests.fakes.script import Step, drip, expect, fin, flood, nothing_more, read_all, rst, scripted, send

pytestmark = pytest.mark.usefixtures("bdat_at_once")

HELLO = [send("220 hi"), expect("ehlo me.example")]
PIPELINING = [*HELLO, send("250-hi", "250 PIPELINING")]
ENVELOPE = expect("mail from:<a@x.example>", "rcpt to:<b@y.example>", "data")


def client(server: Any, **options: Any) -> AsyncSMTP:
    return AsyncSMTP(server.host, server.port, "me.example", **options)


async def broken(smtp: AsyncSMTP) -> None:
    """It is for good."""
    assert not smtp.is_connected
    for call in (smtp.noop(), smtp.sendmail(SENDER, WHO, b"hi"), smtp.quit()):
        with pytest.raises(asmtp.SMTPServerDisconnected):
            await call
    await smtp.close()


# ---- replies that are none --------------------------------------------------------------------

NONSENSE: dict[str, tuple[bytes, int]] = {
    "no code": (b"hello\r\n", -1),
    "two digits": (b"25 ok\r\n", -1),
    "four digits": (b"2500 ok\r\n", -1),
    "no class": (b"650 ok\r\n", -1),
    "empty": (b"\r\n", -1),
    "binary": (b"\x00\xff\xfe\r\n", -1),
    "another code": (b"250-ok\r\n550 no\r\n", -1),
    "a line too long": (b"250 " + b"x" * MAX_LINE + b"\r\n", 500),
    "a reply too long": (b"250-" + b"x" * 996 + b"\r\n", 500),
}


@pytest.mark.parametrize("nonsense", sorted(NONSENSE.keys() - {"a reply too long"}))
@pytest.mark.parametrize("way", [send, drip])
async def test_a_reply_that_is_none(nonsense: str, way: Any) -> None:
    octets, code = NONSENSE[nonsense]
    async with scripted([send("220 hi"), expect("noop"), way(octets), nothing_more]) as server:
        smtp = client(server)
        await smtp.connect()
        with pytest.raises(asmtp.SMTPProtocolError) as caught:
            await smtp.noop()
        assert caught.value.smtp_code == code
        assert isinstance(caught.value, asmtp.SMTPServerDisconnected)
        assert len(str(caught.value)) < 1000
        await broken(smtp)


@pytest.mark.parametrize("blocks", ["one line", "many lines"])
async def test_a_reply_without_end_takes_no_memory(blocks: str) -> None:
    block = (b"x" * 65536) if blocks == "one line" else (b"250-" + b"x" * 60 + b"\r\n") * 1000
    gc.collect()
    async with scripted([send("220 hi"), expect("noop"), flood(block, 2000), read_all]) as server:
        smtp = client(server)
        await smtp.connect()
        tracemalloc.start()
        try:
            with pytest.raises(asmtp.SMTPProtocolError) as caught:
                await smtp.noop()
            assert caught.value.smtp_code == 500
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        # The server's own buffer is in it; a hundred megabytes are not.
        assert peak < 8 * MAX_REPLY + 4_000_000
        await broken(smtp)


async def test_a_long_reply_within_the_limits() -> None:
    text = b"x" * (MAX_LINE - 10)
    script = [send("220 hi"), expect("help"), send(*[b"214-" + text + b"\r\n"] * 7, "214 end"), nothing_more]
    async with scripted(script) as server:
        smtp = client(server)
        await smtp.connect()
        assert await smtp.help() == b"\n".join([text] * 7 + [b"end"])
        await smtp.close()


# ---- replies too many, or too early -----------------------------------------------------------


async def test_two_replies_for_one_command() -> None:
    async with scripted([send("220 hi"), expect("noop"), send("250 ok", "250 ok"), nothing_more]) as server:
        smtp = client(server)
        await smtp.connect()
        assert (await smtp.noop()).ok
        with pytest.raises(asmtp.SMTPProtocolError, match="no command is owed"):
            await smtp.noop()
        await broken(smtp)


@pytest.mark.parametrize("end", [fin, rst])
async def test_the_end_within_a_reply(end: Any) -> None:
    async with scripted([send("220 hi"), expect("noop"), send(b"250-half"), end]) as server:
        smtp = client(server)
        await smtp.connect()
        with pytest.raises(asmtp.SMTPServerDisconnected):
            await smtp.noop()
        await broken(smtp)


# ---- answers that make no sense ---------------------------------------------------------------


async def test_content_refused_before_its_end() -> None:
    """The server says no while the content is still written, and stays: nothing more of it is."""
    given = 0

    async def body() -> Any:
        nonlocal given
        for _ in range(1000):
            given += 1
            yield b"x" * 70 + b"\r\n"
            await asyncio.sleep(0)

    async def refuse(peer: Any) -> None:
        while len(peer.received) < 1000:
            await peer.more()
        peer.transport.write(b"552 5.3.4 too much\r\n")

    script = [*PIPELINING, ENVELOPE, send("250 ok", "250 ok", "354 go"), refuse, read_all]
    async with scripted(script) as server:
        smtp = client(server)
        await smtp.connect()
        with pytest.raises(asmtp.SMTPDataError) as caught:
            await smtp.sendmail(SENDER, WHO, body())
        assert (caught.value.smtp_code, caught.value.state) == (552, "refused")
        assert given < 1000
        # In the middle of content there is no way back.
        await broken(smtp)


@pytest.mark.parametrize("end", [fin, rst, send("421 closing")])
async def test_the_connection_ends_while_the_caller_s_content_is_awaited(end: Step) -> None:
    """The caller is told at once, and not when there is more to send; the generator is closed."""
    closed = asyncio.Event()

    async def body() -> Any:
        try:
            yield b"begun\r\n"
            await asyncio.Event().wait()
        finally:
            closed.set()

    script = [*PIPELINING, ENVELOPE, send("250 ok", "250 ok", "354 go"), expect("begun"), end, read_all]
    async with scripted(script) as server:
        smtp = client(server)
        await smtp.connect()
        with pytest.raises(asmtp.SMTPException) as caught:
            await smtp.sendmail(SENDER, WHO, body())
        assert caught.value.state in ("not_sent", "refused")
        assert closed.is_set()
        task = asyncio.current_task()
        assert task is not None
        assert not task.cancelling()
        await broken(smtp)


@pytest.mark.parametrize("shape", SHAPES)
async def test_a_server_that_offers_what_it_cannot_do(shape: str) -> None:
    """`pipelining=False, chunking=False` make it usable."""
    async with relaying(Relay(SHAPES[shape])) as relay:
        async with client(relay, pipelining=False, chunking=False) as smtp:
            await asyncio.gather(*(smtp.sendmail(SENDER, WHO, b"hi") for _ in range(3)))
        lines = [line for read in relay.reads for line in read.split(b"\r\n")[:1]]
        assert len(relay.letters) == 3
        assert "BDAT" not in relay.verbs
        assert all(read.count(b"\r\n") == 1 or read.startswith(b"hi") for read in relay.reads), lines


async def test_an_ehlo_reply_that_is_a_mess() -> None:
    offers = [
        "250-hi", "250-", "250-SIZE  ", "250-AUTH=LOGIN", "250-AUTH PLAIN LOGIN", "250-8BITMIME=yes",
        "250-" + "X" * 500, "250-\u00fcmlaut", "250 ",
    ]  # fmt: skip
    async with scripted([*HELLO, send(*offers), expect("noop"), send("250 ok"), nothing_more]) as server:
        smtp = client(server)
        await smtp.connect()
        assert (await smtp.ehlo()).ok
        assert smtp.esmtp_features.auth == ["LOGIN", "PLAIN"]
        assert smtp.esmtp_features.size is None
        assert smtp.has_extn("8bitmime")
        assert (await smtp.noop()).ok
        await smtp.close()
