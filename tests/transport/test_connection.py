"""Addresses, sockets and time limits: what the transport is given, and what it makes of it."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

import asmtp
from asmtp import AsyncSMTP
from asmtp.errors import SMTPServerDisconnected, SMTPStateError, SMTPTimeoutError
from asmtp.protocol.session import Session
from asmtp.transport import connection as transport_module
from asmtp.transport.connection import Connection, local_hostname, resolve
from asmtp.transport.timeouts import Timeouts
from tests.conftest import Certificates
from tests.fakes.background import in_background
from tests.fakes.early import early
from tests.fakes.embedded import Embedded, embedded
from tests.fakes.relay import Relay, relaying
from tests.fakes.script import deaf, expect, fin, nothing_more, rst, scripted, send, silence, until

SEEN_FIRST = [send("220 hi"), expect("noop"), send("250 ok"), nothing_more]


def addresses(*pairs: tuple[str, int]) -> Any:
    """A resolver that gives these."""

    async def resolver(host: str, port: int) -> list[tuple[Any, ...]]:
        return [
            (socket.AF_INET6 if ":" in where else socket.AF_INET, socket.SOCK_STREAM, 6, "", (where, at))
            for where, at in pairs
        ]

    return resolver


@pytest.fixture
def dead_port() -> Iterator[int]:
    """A port of 127.0.0.2 at which nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.2", 0))
        yield sock.getsockname()[1]


# ---- where to connect -------------------------------------------------------------------------


async def noop_at(host: str, port: int = 0, **options: Any) -> AsyncSMTP:
    smtp = AsyncSMTP(host, port, **options)
    assert await smtp.connect() == (220, b"hi")
    assert await smtp.noop() == (250, b"ok")
    return smtp


async def test_ipv4() -> None:
    async with scripted(SEEN_FIRST) as server:
        smtp = await noop_at("127.0.0.1", server.port)
        assert smtp.sock is not None
        assert smtp.sock.getpeername() == ("127.0.0.1", server.port)
        await smtp.close()


async def test_ipv6() -> None:
    async with scripted(SEEN_FIRST, family=socket.AF_INET6) as server:
        smtp = await noop_at("::1", server.port)
        assert smtp.sock is not None
        assert smtp.sock.family == socket.AF_INET6
        await smtp.close()


async def test_host_and_port_in_one_str() -> None:
    async with scripted(SEEN_FIRST) as server:
        smtp = await noop_at(f"127.0.0.1:{server.port}")
        await smtp.close()


async def test_unix_socket(tmp_path: Path) -> None:
    async with scripted(SEEN_FIRST, path=str(tmp_path / "smtp")) as server:
        smtp = await noop_at(server.host)
        await smtp.close()


async def test_no_unix_socket(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await AsyncSMTP(str(tmp_path / "none")).connect()


def to_itself() -> Any:
    """What would have a socket connect to itself."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    return {"host": "127.0.0.1", "port": port, "source_address": ("127.0.0.1", port)}


async def test_a_socket_is_not_connected_to_itself() -> None:
    """TCP's simultaneous open: where a port of this machine is dead, and chance gives it to who connects."""
    with pytest.raises(ConnectionRefusedError):
        await AsyncSMTP(**to_itself()).connect()
    async with asmtp.AsyncMailer(asmtp.Relay(**to_itself()), retry=None) as mailer:
        with pytest.raises(SMTPServerDisconnected) as caught:
            await mailer.send(b"hi", "a@x.example", "b@y.example")
        assert isinstance(caught.value.__cause__, ConnectionRefusedError)


async def test_a_server_that_ends_the_connection_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no peer any more to be asked for; what is told is the end of the connection."""

    def gone(self: socket.socket) -> None:
        raise OSError(errno.ENOTCONN, os.strerror(errno.ENOTCONN))

    async with scripted([rst]) as server:
        monkeypatch.setattr(socket.socket, "getpeername", gone, raising=False)
        with pytest.raises((SMTPServerDisconnected, ConnectionResetError)):
            await AsyncSMTP("127.0.0.1", server.port).connect()


def test_the_facade_is_not_connected_to_itself() -> None:
    with pytest.raises(ConnectionRefusedError):
        asmtp.SMTP(**to_itself())


@pytest.fixture
def crowded(tmp_path: Path) -> Iterator[str]:
    """A Unix socket at which nobody accepts, and as many wait as may."""
    path = str(tmp_path / "crowded")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as waiting:
        listener.bind(path)
        listener.listen(0)
        waiting.connect(path)
        yield path


@pytest.mark.virtual_clock
async def test_a_unix_socket_at_which_too_many_wait(crowded: str) -> None:
    with pytest.raises(SMTPTimeoutError, match=r"no connection to .*/crowded within 7 seconds"):
        await asmtp.AsyncLMTP(crowded, timeout=7).connect()
    assert asyncio.get_running_loop().time() == pytest.approx(7)
    async with asmtp.AsyncMailer(f"lmtp+unix://{crowded}", timeouts=5, retry=None) as mailer:
        with pytest.raises(SMTPTimeoutError, match="no connection to") as caught:
            await mailer.send(b"hi", "a@x.example", "b@y.example")
        assert caught.value.state == "not_sent"


@pytest.mark.virtual_clock
async def test_a_unix_socket_at_which_there_is_room_in_time(crowded: str) -> None:
    """As there is behind a blocking connect, which waits."""
    async with asmtp.AsyncMailer(f"lmtp+unix://{crowded}?local_hostname=me.example") as mailer:
        sending = asyncio.ensure_future(mailer.send(b"hi", "a@x.example", "b@y.example"))
        await asyncio.sleep(30)
        async with relaying(Relay(lmtp=True), path=f"{crowded}-too") as relay:
            os.replace(f"{crowded}-too", crowded)
            assert (await sending).attempts == 1
            assert len(relay.letters) == 1
            await mailer.aclose()


def test_the_facade_at_a_unix_socket_at_which_too_many_wait(crowded: str) -> None:
    with pytest.raises(SMTPTimeoutError, match=r"no connection to .*/crowded within 0\.05 seconds"):
        asmtp.LMTP(crowded, timeout=0.05)
    with in_background(relaying(Relay(lmtp=True), path=f"{crowded}-too")) as relay:
        threading.Timer(0.05, os.replace, (f"{crowded}-too", crowded)).start()
        with asmtp.LMTP(crowded, local_hostname="me.example") as lmtp:
            assert lmtp.sendmail("a@x.example", "b@y.example", b"hi") == {}
        assert len(relay.letters) == 1


async def test_a_socket_that_is_connected() -> None:
    async with scripted(SEEN_FIRST) as server:
        sock = socket.socket()
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, server.address)
        smtp = await noop_at("somewhere.example", sock=sock)
        await smtp.close()
        assert sock.fileno() == -1


async def test_a_socket_is_used_once() -> None:
    async with relaying(Relay()) as relay:
        sock = socket.socket()
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, (relay.host, relay.port))
        smtp = AsyncSMTP(sock=sock)
        await smtp.connect()
        await smtp.quit()
        with pytest.raises(SMTPStateError, match="the socket given to the constructor was used"):
            await smtp.connect()
        await smtp.connect(relay.host, relay.port)
        await smtp.quit()


async def test_source_address() -> None:
    async with scripted(SEEN_FIRST) as server:
        smtp = await noop_at("127.0.0.1", server.port, source_address=("127.0.0.9", 0))
        assert server.peer.transport.get_extra_info("peername")[0] == "127.0.0.9"
        await smtp.close()


@pytest.fixture
def held_port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Return a port of 127.0.0.1 that nobody else can be given, and that the client can bind all the same.

    A port that is found free and let go is handed out again before the client binds it: sometimes to the server.
    With SO_REUSEADDR on both sockets, the client may bind a port that is held here, as nobody listens at it.
    """
    original = socket.socket.bind

    def bind(self: socket.socket, address: Any) -> None:
        if address[1] == port:
            self.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        original(self, address)

    with socket.socket() as holding:
        holding.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        holding.bind(("127.0.0.1", 0))
        port: int = holding.getsockname()[1]
        monkeypatch.setattr(socket.socket, "bind", bind)
        yield port


async def test_source_port_alone(held_port: int) -> None:
    async with scripted([send("220 hi"), nothing_more]) as server:
        smtp = AsyncSMTP()
        await smtp.connect("127.0.0.1", server.port, ("", held_port))
        assert server.peer.transport.get_extra_info("peername")[1] == held_port
        assert smtp.source_address == ("", held_port)
        await smtp.close()


async def test_a_source_address_of_another_family_reaches_no_one() -> None:
    async with scripted() as server:
        with pytest.raises(OSError):  # noqa: PT011  # which one, the system decides
            await AsyncSMTP("127.0.0.1", server.port, source_address=("::1", 0)).connect()


async def test_nobody_listens(dead_port: int) -> None:
    smtp = AsyncSMTP("127.0.0.2", dead_port)
    with pytest.raises(ConnectionRefusedError) as caught:
        await smtp.connect()
    assert caught.value.errno == errno.ECONNREFUSED
    assert not smtp.is_connected
    assert smtp.sock is None


async def test_nonnumeric_port() -> None:
    with pytest.raises(OSError, match="nonnumeric port"):
        await AsyncSMTP("localhost:bogus").connect()


@pytest.mark.parametrize("host", ["127.0.0.2", "::1"])
async def test_a_dead_first_address_is_passed_over(host: str, dead_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    async with scripted(SEEN_FIRST) as server:
        monkeypatch.setattr(transport_module, "resolve", addresses((host, dead_port), server.address))
        smtp = await noop_at("mx.example", 25)
        assert smtp.sock is not None
        assert smtp.sock.getpeername() == server.address
        await smtp.close()


async def test_all_addresses_are_dead(dead_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport_module, "resolve", addresses(("127.0.0.2", dead_port), ("::1", dead_port)))
    with pytest.raises(OSError, match="Multiple exceptions|Connect call failed|refused"):
        await AsyncSMTP("mx.example").connect()


NO_WAY = ("fe80::1", 25)  # without a zone, the system knows no way


@pytest.mark.parametrize("first", ["refused", "no way"])
async def test_a_refusal_says_more_than_a_family_without_a_way(
    first: str, dead_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = [("127.0.0.2", dead_port), NO_WAY]
    monkeypatch.setattr(transport_module, "resolve", addresses(*(pairs if first == "refused" else pairs[::-1])))
    with pytest.raises(ConnectionRefusedError, match="Multiple exceptions") as caught:
        await AsyncSMTP("mx.example").connect()
    assert caught.value.errno == errno.ECONNREFUSED
    async with asmtp.AsyncMailer("smtp://mx.example", retry=None) as posting:
        with pytest.raises(SMTPServerDisconnected, match="no connection to mx.example") as told:
            await posting.send(b"hi", "a@x.example", ["b@y.example"])
    assert isinstance(told.value.__cause__, ConnectionRefusedError)
    assert told.value.state == "not_sent"


@pytest.mark.parametrize(
    ("met", "telling"),
    [
        ([errno.ENETUNREACH, errno.ETIMEDOUT, errno.EHOSTUNREACH], errno.ETIMEDOUT),
        ([errno.ETIMEDOUT, errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.EACCES], errno.ECONNREFUSED),
        ([errno.ENETUNREACH, errno.EHOSTUNREACH], errno.EHOSTUNREACH),  # the last, as in socket.create_connection
    ],
)
def test_which_of_several_errors_is_told(met: list[int], telling: int) -> None:
    attempts = transport_module._Attempts(None)  # type: ignore[arg-type]
    attempts.failures += met
    assert attempts.telling == telling


async def test_an_unknown_name() -> None:
    with pytest.raises(socket.gaierror):
        await AsyncSMTP("nowhere.invalid").connect()


async def test_resolve_gives_stream_addresses_alone() -> None:
    infos = await resolve("127.0.0.1", 25)
    assert {info[1] for info in infos} == {socket.SOCK_STREAM}
    assert infos[0][4] == ("127.0.0.1", 25)


# ---- the socket -------------------------------------------------------------------------------


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


# ---- the name of this machine -----------------------------------------------------------------


def test_local_hostname_is_the_full_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getfqdn", lambda: "host.example.com")
    assert local_hostname() == "host.example.com"


def test_local_hostname_without_a_domain_is_an_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getfqdn", lambda: "host")
    monkeypatch.setattr(socket, "gethostbyname", lambda name: "192.0.2.7")
    assert local_hostname() == "[192.0.2.7]"


def test_local_hostname_without_an_address_is_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(name: str) -> str:
        raise OSError

    monkeypatch.setattr(socket, "getfqdn", lambda: "host")
    monkeypatch.setattr(socket, "gethostbyname", unknown)
    assert local_hostname() == "[127.0.0.1]"


@pytest.mark.parametrize(
    "name", ["my_host.lan", "a b.example", "x..y", "-x.example", f"{'x' * 64}.example", "\udcff.lan", "h\r\n.x"]
)
def test_local_hostname_that_is_no_domain_is_an_address(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getfqdn", lambda: name)
    monkeypatch.setattr(socket, "gethostbyname", lambda name: "192.0.2.7")
    assert local_hostname() == "[192.0.2.7]"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("host.example.", "host.example"),
        ("büro.example", "xn--bro-hoa.example"),
        ("4-2.3com.example", "4-2.3com.example"),
    ],
)
def test_local_hostname_is_a_domain(name: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getfqdn", lambda: name)
    assert local_hostname() == said


def test_a_local_hostname_that_no_resolver_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Python's own idna codec has it: a label has 63 characters, a host name on Linux 64."""
    monkeypatch.setattr(socket, "gethostname", lambda: "x" * 64)
    assert local_hostname() == "[127.0.0.1]"


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


# ---- a connection that is given up half-made ------------------------------------------------------


@pytest.mark.parametrize("tls", ["none", "implicit", "required"])
async def test_cancelled_at_each_pass_of_a_connect(tls: Any, certificates: Certificates) -> None:
    """Whatever it was doing, the descriptor is given back by who has it: its next owner must not be hurt."""
    server_tls = None if tls == "none" else certificates.server
    loop = asyncio.get_running_loop()
    async with embedded(Embedded(), tls=server_tls, implicit=tls == "implicit") as server:
        passes = 0
        while True:
            smtp = AsyncSMTP("127.0.0.1", server.port, "me.example", tls=tls, ssl_context=certificates.trusting)
            connecting = loop.create_task(smtp.connect())
            for _ in range(passes):
                await asyncio.sleep(0)
            if connecting.done():
                break
            connecting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await connecting
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.close()
            await writer.wait_closed()
            del reader
            passes += 1 + passes // 20  # thousands, where another thread has something to do meanwhile
        await smtp.close()
    assert passes > 3
