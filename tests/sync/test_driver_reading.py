"""A facade's connection looks, reads and cuts without a pass of the loop."""

from __future__ import annotations

import asyncio
import select
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from asmtp import SMTPServerDisconnected, Timeouts
from asmtp.protocol import dialogue
from asmtp.protocol.exchange import Exchange
from asmtp.protocol.session import Session
from asmtp.sync import driver
from asmtp.sync.driver import DrivenConnection
from asmtp.transport.connect import open_connection
from asmtp.transport.tls import ResumingContext
from tests.conftest import Certificates
from tests.fakes.script import Peer, Step, expect, fin, nothing_more, read_all, rst, scripted, send, until

# The loop that a facade makes.
pytestmark = pytest.mark.asyncio(loop_factories=["asyncio"])


@asynccontextmanager
async def waiting_for(*steps: Step) -> AsyncIterator[tuple[DrivenConnection, Exchange[Any], Peer]]:
    """A connection that is owed the reply to NOOP, and leaves it to the test to read it."""
    async with scripted([send("220 hi"), expect("noop"), *steps]) as server:
        session = Session()
        greeting = session.start(dialogue.greeting())
        connection = DrivenConnection(session, Timeouts())
        await open_connection(connection, server.address)
        await connection.finished(greeting)
        exchange = session.start(dialogue.single(b"noop\r\n"))
        connection.transport.pause_reading()
        await until(lambda: b"noop" in server.received)
        for _ in range(20):  # so that the reply is under way
            await asyncio.sleep(0)
        yield connection, exchange, server.peer
        connection.close()
        await connection.wait_closed()


@pytest.mark.parametrize("polled", [True, False])
async def test_a_reply_is_read(polled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not polled:
        monkeypatch.delattr(select, "poll")  # Windows
    async with waiting_for(send("250 ok"), nothing_more) as (connection, exchange, _):
        assert connection.readable()
        assert connection.read()
        assert exchange.result == (250, b"ok")
        assert not connection.readable()


async def test_no_reply_is_there() -> None:
    async with waiting_for(nothing_more) as (connection, exchange, _):
        connection._tick = 0  # so as not to wait for it
        assert not connection.readable()
        assert not connection.read()
        assert not exchange.done


@pytest.mark.parametrize("end", [fin, rst])
async def test_the_end_is_left_to_the_loop(end: Step) -> None:
    async with waiting_for(end) as (connection, exchange, _):
        assert connection.readable()
        assert not connection.read()
        assert not exchange.done
        connection.transport.resume_reading()
        with pytest.raises(SMTPServerDisconnected):
            await connection.finished(exchange)


async def test_what_is_encrypted_is_left_to_the_loop(certificates: Certificates) -> None:
    async with scripted([send("220 hi"), nothing_more], tls=certificates.server) as server:
        session = Session()
        greeting = session.start(dialogue.greeting())
        connection = DrivenConnection(session, Timeouts())
        await open_connection(
            connection,
            server.address,
            ssl_context=ResumingContext(certificates.trusting),
            server_hostname="127.0.0.1",
        )
        await connection.finished(greeting)
        connection._tick = 0
        assert not connection.read()
        connection.close()
        await connection.wait_closed()


async def test_what_the_kernel_has_not_taken_is_left_to_the_loop() -> None:
    """To look for the reply meanwhile would keep it from leaving, for up to a second at a time."""
    async with waiting_for(read_all) as (connection, _, _):
        connection._tick = 60  # how long it would look
        connection.transport.pause_reading()
        connection.transport.write(b"x" * 50_000_000)
        assert connection.transport.get_write_buffer_size()
        assert not connection.read()
        connection.abort()


async def test_a_deadline_is_left_to_the_loop() -> None:
    """A reply that drips in would keep it from being seen."""
    async with waiting_for(send("250-one"), nothing_more) as (connection, exchange, _):
        assert connection._timer is not None
        connection._timer.cancel()
        connection._timer = asyncio.get_running_loop().call_later(60, connection._watch)
        assert connection.readable()
        assert connection.read()
        connection._timer.cancel()
        connection._timer = asyncio.get_running_loop().call_later(0, connection._watch)
        assert not connection.read()
        assert not exchange.done


async def test_abort() -> None:
    """Nothing leaves any more, and no goodbye is said, whatever asyncio has not seen leave."""
    async with waiting_for(nothing_more) as (connection, exchange, peer):
        connection.session.start(dialogue.single(b"quit\r\n"), alone=True)
        connection.abort()
        await peer.closed.wait()
        assert connection.transport.is_closing()
        with pytest.raises(SMTPServerDisconnected, match="closed on our side"):
            await connection.finished(exchange)


async def test_where_the_system_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "_READV", False)  # Windows
    async with waiting_for(send("250 ok"), nothing_more) as (connection, exchange, _):
        assert not connection.read()
        connection.transport.resume_reading()
        assert await connection.finished(exchange) == (250, b"ok")


async def test_whoever_waits_can_be_told_otherwise() -> None:
    told: list[None] = []
    async with waiting_for(send("250 ok"), nothing_more) as (connection, exchange, _):
        connection.on_finished = lambda: told.append(None)
        connection.transport.resume_reading()
        assert await connection.finished(exchange) == (250, b"ok")
        assert told == [None]
        assert connection.on_finished is None


async def test_cut() -> None:
    async with waiting_for(nothing_more) as (connection, exchange, peer):
        connection.cut()
        await peer.closed.wait()
        connection.transport.resume_reading()
        with pytest.raises(SMTPServerDisconnected):
            await connection.finished(exchange)
        await connection.wait_closed()
        connection.cut()  # twice is no harm
