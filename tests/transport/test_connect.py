"""Making connections: addresses, sockets, source addresses, and the name of this machine."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import asmtp
from asmtp import AsyncSMTP
from asmtp.errors import SMTPServerDisconnected, SMTPStateError, SMTPTimeoutError
from asmtp.transport import connect
from asmtp.transport.connect import local_hostname
from tests.conftest import Certificates
from tests.fakes.background import in_background
from tests.fakes.embedded import Embedded, embedded
from tests.fakes.relay import Relay, relaying
from tests.fakes.script import expect, nothing_more, rst, scripted, send

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
    """Return arguments with which a socket would connect to itself."""
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
        monkeypatch.setattr("asmtp.transport.resolve.resolve", addresses((host, dead_port), server.address))
        smtp = await noop_at("mx.example", 25)
        assert smtp.sock is not None
        assert smtp.sock.getpeername() == server.address
        await smtp.close()


async def test_all_addresses_are_dead(dead_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asmtp.transport.resolve.resolve", addresses(("127.0.0.2", dead_port), ("::1", dead_port)))
    with pytest.raises(OSError, match="Multiple exceptions|Connect call failed|refused"):
        await AsyncSMTP("mx.example").connect()


NO_WAY = ("fe80::1", 25)  # without a zone, the system knows no way


@pytest.mark.parametrize("first", ["refused", "no way"])
async def test_a_refusal_says_more_than_a_family_without_a_way(
    first: str, dead_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = [("127.0.0.2", dead_port), NO_WAY]
    monkeypatch.setattr("asmtp.transport.resolve.resolve", addresses(*(pairs if first == "refused" else pairs[::-1])))
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
    attempts = connect._Attempts(None)  # type: ignore[arg-type]
    attempts.failures += met
    assert attempts.telling == telling


async def test_an_unknown_name() -> None:
    with pytest.raises(socket.gaierror):
        await AsyncSMTP("nowhere.invalid").connect()


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


# ---- a connection that is given up half-made ------------------------------------------------------


@pytest.mark.parametrize("tls", ["none", "implicit", "required"])
async def test_cancelled_at_each_pass_of_a_connect(tls: Any, certificates: Certificates) -> None:
    """Whatever connect() was doing, the owner of a descriptor closes it: the next owner must not be hurt."""
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
