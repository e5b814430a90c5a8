"""The view that callers have of a connection's socket."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from asmtp import AsyncSMTP
from asmtp.errors import SMTPServerDisconnected, SMTPTimeoutError
from tests.fakes.relay import Relay, relaying
from tests.fakes.script import expect, nothing_more, scripted, send, silence

SEEN_FIRST = [send("220 hi"), expect("noop"), send("250 ok"), nothing_more]


async def noop_at(host: str, port: int = 0, **options: Any) -> AsyncSMTP:
    smtp = AsyncSMTP(host, port, **options)
    assert await smtp.connect() == (220, b"hi")
    assert await smtp.noop() == (250, b"ok")
    return smtp


async def test_what_there_is_to_see_of_the_socket() -> None:
    async with relaying(Relay()) as relay:
        smtp = AsyncSMTP(relay.host, relay.port, "me.example", timeout=7)
        assert smtp.sock is None
        await smtp.connect()
        sock = smtp.sock
        assert sock is not None
        assert sock.getsockname()[0] == "127.0.0.1"
        assert sock.getpeername() == (relay.host, relay.port)
        assert sock.fileno() > 0
        assert sock.family == socket.AF_INET
        assert sock.gettimeout() == 7
        sock.settimeout(3)
        assert sock.gettimeout() == smtp.sock.gettimeout() == 3
        with pytest.raises(ValueError, match="^timeout: "):
            sock.settimeout(0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        for name in ("send", "sendall", "recv", "makefile", "detach"):
            with pytest.raises(AttributeError, match=f"^sock has no '{name}'; what is read and written is the connec"):
                getattr(sock, name)
        with pytest.raises(AttributeError, match="^sock has no 'sent'$"):
            sock.sent  # noqa: B018
        assert (sock.getpeercert(), sock.cipher(), sock.version()) == (None, None, None)  # there is no TLS
        # No Nagle: what is written leaves.
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        await smtp.quit()
        assert smtp.sock is None


@pytest.mark.parametrize("end", ["close", "shutdown"])
async def test_the_socket_is_closed_by_hand(end: str) -> None:
    async with relaying(Relay()) as relay:
        smtp = AsyncSMTP(relay.host, relay.port, "me.example")
        await smtp.connect()
        assert smtp.sock is not None
        if end == "close":
            smtp.sock.close()
            assert not smtp.is_connected
        else:
            smtp.sock.shutdown(socket.SHUT_RDWR)
            with pytest.raises(SMTPServerDisconnected):
                await smtp.noop()
        await smtp.close()


@pytest.mark.virtual_clock
async def test_a_limit_that_is_set_on_the_socket_counts() -> None:
    async with scripted([send("220 hi"), expect("noop"), silence]) as server:
        smtp = AsyncSMTP("127.0.0.1", server.port)
        await smtp.connect()
        loop = asyncio.get_running_loop()
        begun = loop.time()
        asking = asyncio.ensure_future(smtp.noop())
        await asyncio.sleep(100)
        assert smtp.sock is not None
        smtp.sock.settimeout(0.5)  # for what is awaited already, too
        with pytest.raises(SMTPTimeoutError, match=r"no answer to a command within 0\.5 seconds"):
            await asking
        assert 100.5 <= loop.time() - begun <= 100.7
        await smtp.close()
