"""Octets between a socket and a session: flow control, what is local, and the end."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

import asmtp
from asmtp import AsyncSMTP
from asmtp.errors import SMTPServerDisconnected, SMTPTimeoutError
from asmtp.protocol.session import Session
from asmtp.transport import connection as transport_module
from asmtp.transport.connection import Connection
from asmtp.transport.timeouts import Timeouts
from tests.conftest import Certificates
from tests.fakes.early import early
from tests.fakes.relay import Relay, relaying
from tests.fakes.script import deaf, expect, fin, nothing_more, rst, scripted, send, until

# ---- the connection's end ---------------------------------------------------------------------


@pytest.mark.parametrize("end", [fin, rst])
async def test_the_server_goes_while_a_reply_is_owed(end: Any) -> None:
    async with scripted([send("220 hi"), expect("noop"), end]) as server:
        smtp = AsyncSMTP("127.0.0.1", server.port)
        await smtp.connect()
        with pytest.raises(SMTPServerDisconnected, match="Connection unexpectedly closed") as caught:
            await smtp.noop()
        assert (caught.value.__cause__ is not None) == (end is rst)
        assert not smtp.is_connected
        await smtp.close()


# ---- flow control -----------------------------------------------------------------------------


async def test_a_body_streams_no_faster_than_the_server_reads(transports: list[asyncio.Transport]) -> None:
    opened = asyncio.Event()
    given = 0
    block = (b"x" * 70 + b"\r\n") * 1000

    async def body() -> AsyncIterator[bytes]:
        nonlocal given
        for _ in range(400):
            given += len(block)
            yield block

    async def deaf_until_opened(peer: Any) -> None:
        peer.transport.pause_reading()
        peer.transport.write(b"354 go\r\n")
        await opened.wait()
        peer.transport.resume_reading()

    script = [
        send("220 hi"), expect("ehlo me.example"), send("250-hi", "250 PIPELINING"),
        expect("mail from:<a@x.example>", "rcpt to:<b@y.example>", "data"), send("250 ok", "250 ok"),
        deaf_until_opened, expect(block * 400 + b".\r\n"), send("250 taken"), nothing_more,
    ]  # fmt: skip
    async with scripted(script, receive_buffer=1 << 17) as server:
        smtp = AsyncSMTP("127.0.0.1", server.port, "me.example")
        await smtp.connect()
        sending = asyncio.create_task(smtp.sendmail("a@x.example", "b@y.example", body()))
        before = -1
        while given != before or not given:
            before = given
            for _ in range(200):
                await asyncio.sleep(0)
        waiting = transports[-1].get_write_buffer_size()
        # What the kernel holds is not ours: some megabytes.  What we hold is bounded.
        assert waiting < 1 << 19
        assert given < 12_000_000
        opened.set()
        assert await sending == {}
        await smtp.close()


async def test_close_does_not_wait_for_a_server_that_reads_nothing(transports: list[asyncio.Transport]) -> None:

    async def body() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 100_000

    script = [
        send("220 hi"), expect("ehlo me.example"), send("250-hi", "250 PIPELINING"),
        expect("mail from:<a@x.example>", "rcpt to:<b@y.example>", "data"), send("250 ok", "250 ok", "354 go"), deaf,
    ]  # fmt: skip
    async with scripted(script, receive_buffer=1 << 17) as server:
        smtp = AsyncSMTP("127.0.0.1", server.port, "me.example")
        await smtp.connect()
        sending = asyncio.create_task(smtp.sendmail("a@x.example", "b@y.example", body()))
        await until(lambda: transports and transports[-1].get_write_buffer_size())
        await asyncio.wait_for(smtp.close(), 5)
        with pytest.raises(SMTPServerDisconnected) as caught:
            await sending
        assert caught.value.state == "not_sent"


@pytest.mark.parametrize(
    ("family", "peer", "local"),
    [
        (socket.AF_INET, ("127.0.0.1", 25), True),
        (socket.AF_INET6, ("::1", 25, 0, 0), True),
        (socket.AF_INET, ("192.0.2.1", 25), False),
        (socket.AF_INET6, ("fe80::1%eth0", 25, 0, 2), False),
        (socket.AF_UNIX, "", True),
        (socket.AF_INET, OSError("closed"), False),
    ],
)
async def test_what_does_not_leave_this_machine(family: int, peer: Any, local: bool) -> None:
    class Transport:
        def get_extra_info(self, name: str) -> Any:
            return {"socket": self}[name]

        def getpeername(self) -> Any:
            if isinstance(peer, OSError):
                raise peer
            return peer

    Transport.family = family  # type: ignore[attr-defined]
    connection = Connection(Session(), Timeouts())
    connection.transport = Transport()  # type: ignore[assignment]
    assert connection.local is local


@pytest.mark.virtual_clock
@pytest.mark.parametrize(("command", "limit", "what"), [(300, 10, "another message's content"), (5, 5, "a command")])
async def test_commands_that_are_lost_behind_content(command: float, limit: float, what: str) -> None:
    """Once that is answered, RSET takes no time: nobody waits for it as long as for other commands."""
    async with relaying(Relay(("PIPELINING",), forgetful=True)) as relay:
        smtp = AsyncSMTP("127.0.0.1", relay.port, timeout=Timeouts(command=command))
        await smtp.connect()
        await smtp.ehlo()
        first, second = await asyncio.gather(
            *(smtp.sendmail("a@x.example", "b@y.example", b"hi") for _ in range(2)), return_exceptions=True
        )
        assert first == {}
        assert isinstance(second, SMTPTimeoutError)
        assert second.state == "not_sent"
        assert what in str(second)
        assert f"within {limit} seconds" in str(second)


# ---- what is left to read when a write has failed -------------------------------------------------


BIG = b"Subject: x\r\n\r\n" + (b"y" * 70 + b"\r\n") * 100_000
SHAPES = [(), ("PIPELINING",), ("PIPELINING", "CHUNKING")]


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("offers", SHAPES)
async def test_a_refusal_in_mid_content_is_read(offers: tuple[str, ...], tls: bool, certificates: Certificates) -> None:
    options: Any = {"tls": "implicit", "ssl_context": certificates.trusting} if tls else {}
    with early(*offers, tls=certificates.server if tls else None) as port:
        async with AsyncSMTP("127.0.0.1", port, "me.example", timeout=20, **options) as smtp:
            with pytest.raises(asmtp.SMTPDataError) as caught:
                await smtp.sendmail("a@x.example", ["b@y.example"], BIG)
    assert (caught.value.smtp_code, caught.value.state) == (552, "refused")


@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize("kind", ["facade", "mailer"])
def test_a_refusal_in_mid_content_is_read_by_others(kind: str, tls: bool, certificates: Certificates) -> None:
    with (
        early("PIPELINING", tls=certificates.server if tls else None) as port,
        pytest.raises(asmtp.SMTPDataError) as caught,
    ):
        if kind == "mailer":
            url = f"smtps://127.0.0.1:{port}" if tls else f"smtp://127.0.0.1:{port}"
            with asmtp.Mailer(
                url, ssl_context=certificates.trusting, local_hostname="me.example", retry=None
            ) as mailer:
                mailer.send(BIG, "a@x.example", ["b@y.example"])
        else:
            options: Any = {"tls": "implicit", "ssl_context": certificates.trusting} if tls else {}
            with asmtp.SMTP("127.0.0.1", port, "me.example", timeout=20, **options) as smtp:
                smtp.sendmail("a@x.example", ["b@y.example"], BIG)
    assert (caught.value.smtp_code, caught.value.state) == (552, "refused")


def test_no_more_is_read_than_there_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    class Transport:
        def get_extra_info(self, name: str) -> socket.socket:
            return ours

    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"552 no\r\n")
        theirs.close()
        transport: Any = Transport()
        monkeypatch.setattr(transport_module, "UNREAD", 4)
        monkeypatch.setattr(transport_module, "INCOMING", 3)
        assert list(transport_module._unread(transport)) == [b"552", b" no"]
        assert list(transport_module._unread(transport)) == [b"\r\n"]  # and then the end
        monkeypatch.setattr(transport_module, "_READV", False)
        assert list(transport_module._unread(transport)) == []
