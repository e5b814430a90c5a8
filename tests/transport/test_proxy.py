"""Through proxies: SOCKS and CONNECT, spoken by a script; and the PROXY protocol on the wire."""

from __future__ import annotations

import builtins
import socket
from typing import Any

import pytest

import asmtp
from asmtp.transport.proxy import check_proxy, proxy_name
from tests.conftest import Certificates
from tests.fakes.background import in_background
from tests.fakes.embedded import PASSWORD, USER, Embedded, embedded
from tests.fakes.script import Step, drip, expect, fin, nothing_more, scripted, send, start_tls
from tests.sync.facade import nothing_left

CONNECT = b"CONNECT mx.example:2525 HTTP/1.1\r\n"


def head(end: bytes = b"\r\n\r\n") -> Step:
    """Read a request's head."""

    async def step(peer: Any) -> None:
        while end not in peer.received[peer.consumed :]:
            peer._news.clear()
            await peer._news.wait()
        peer.consumed = peer.received.index(end, peer.consumed) + len(end)

    return step


def client(url: str, **options: Any) -> asmtp.AsyncSMTP:
    return asmtp.AsyncSMTP("mx.example", 2525, "me.example", 5, proxy=url, **options)


# ---- CONNECT ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "answer",
    [
        [send(b"HTTP/1.0 200 Connection established\r\nProxy-agent: tinyproxy\r\n\r\n220 hi\r\n")],
        [send(b"HTTP/1.1 200 OK\r\n\r\n"), send("220 hi")],
        [drip(b"HTTP/1.1 200 OK\r\n\r\n220 hi\r\n")],
    ],
    ids=["with the greeting", "apart", "drop by drop"],
)
async def test_connect(answer: list[Step]) -> None:
    """The greeting may come with the proxy's answer; nothing of it is lost."""
    script = [head(), *answer, expect("noop"), send("250 ok"), nothing_more]
    async with scripted(script) as proxy:
        smtp = client(f"http://{proxy.host}:{proxy.port}")
        await smtp.connect()
        assert (await smtp.noop()).ok
        assert proxy.peers[0].received.startswith(CONNECT)
        await smtp.close()


async def test_connect_with_a_password() -> None:
    async with scripted([head(), send(b"HTTP/1.1 200 OK\r\n\r\n220 hi\r\n"), nothing_more]) as proxy:
        smtp = client(f"http://me:s3c%40ret@{proxy.host}:{proxy.port}")
        await smtp.connect()
        assert b"\r\nProxy-Authorization: Basic bWU6czNjQHJldA==\r\n" in proxy.peers[0].received
        await smtp.close()


REFUSALS = [b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n", b"HTTP/1.1 500 no\r\n\r\n", b"rubbish\r\n\r\n", b""]


@pytest.mark.parametrize("answer", REFUSALS)
async def test_a_proxy_that_says_no(answer: bytes) -> None:
    async with scripted([head(), send(answer), fin]) as proxy:
        smtp = client(f"http://me:s3cret@{proxy.host}:{proxy.port}")
        with pytest.raises(ConnectionError, match=rf"^proxy http://{proxy.host}:{proxy.port}: ") as caught:
            await smtp.connect()
        assert "s3cret" not in str(caught.value)


async def test_what_a_proxy_says_is_one_printable_line() -> None:
    answer = b"HTTP/1.1 403 \x1b[2Jno\x07" + b"!" * 900 + b"\r\n\r\n"
    async with scripted([head(), send(answer), fin]) as proxy:
        with pytest.raises(ConnectionError) as caught:
            await client(f"http://{proxy.host}:{proxy.port}").connect()
    told = str(caught.value)
    assert told.isprintable()
    assert r"\x1b[2Jno\x07!!!" in told
    assert len(told) < 600


@pytest.mark.long
async def test_an_answer_without_end() -> None:
    async with scripted([head(), send(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70000), nothing_more]) as proxy:
        with pytest.raises((ConnectionError, asmtp.SMTPException)):
            await client(f"http://{proxy.host}:{proxy.port}").connect()


async def test_a_proxy_that_cannot_be_reached() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"127.0.0.1:{port}"):
            await client(f"socks5://me:s3cret@127.0.0.1:{port}").connect()


async def test_a_proxy_that_is_silent() -> None:
    async with scripted([head(), nothing_more]) as proxy:
        smtp = asmtp.AsyncSMTP("mx.example", 2525, timeout=0.05, proxy=f"http://{proxy.host}:{proxy.port}")
        with pytest.raises(asmtp.SMTPTimeoutError, match="no connection to mx.example:2525 within 0.05 seconds"):
            await smtp.connect()


@pytest.mark.parametrize("host", ["mx.example:25 HTTP/1.1\r\nX-Evil: 1\r\nFoo: ", "a b", "a/b", "a@b", "a\0"])
async def test_a_host_that_is_none(host: str) -> None:
    """It would go into the request as it is."""
    smtp = asmtp.AsyncSMTP("", proxy="http://127.0.0.1:1")
    with pytest.raises(ValueError, match="host"):
        await smtp.connect(host, 2525)


async def test_where_it_connects_from() -> None:
    script = [head(), send(b"HTTP/1.1 200 OK\r\n\r\n220 hi\r\n"), nothing_more]
    async with scripted(script) as proxy:
        smtp = client(f"http://{proxy.host}:{proxy.port}", source_address=("127.0.0.77", 0))
        await smtp.connect()
        assert proxy.peers[0].transport.get_extra_info("peername")[0] == "127.0.0.77"
        await smtp.close()


# ---- SOCKS --------------------------------------------------------------------------------------

SOCKS5 = [expect(b"\5\1\0"), send(b"\5\0"), expect(b"\5\1\0\3\x0amx.example\x09\xdd"), send(b"\5\0\0\1\x7f\0\0\1\0\1")]


async def test_socks5() -> None:
    """The proxy looks the name up."""
    async with scripted([*SOCKS5, send("220 hi"), expect("noop"), send("250 ok"), nothing_more]) as proxy:
        smtp = client(f"socks5://{proxy.host}:{proxy.port}")
        await smtp.connect()
        assert (await smtp.noop()).ok
        await smtp.close()


async def test_socks5_says_no() -> None:
    async with scripted([*SOCKS5[:-1], send(b"\5\4\0\1\x7f\0\0\1\0\1"), nothing_more]) as proxy:
        with pytest.raises(ConnectionError, match=r"^proxy socks5://.*: Host unreachable"):
            await client(f"socks5://{proxy.host}:{proxy.port}").connect()


async def test_tls_behind_a_proxy(certificates: Certificates) -> None:
    """The name that the certificate has to be for is that of the server, not of the proxy."""
    server = certificates.server_for("mx.example")
    script = [
        *SOCKS5, send("220 hi"), expect("ehlo me.example"), send("250-hi", "250 STARTTLS"), expect("STARTTLS"),
        send("220 go"), start_tls(server), nothing_more,
    ]  # fmt: skip
    async with scripted(script) as proxy:
        smtp = client(f"socks5://{proxy.host}:{proxy.port}", tls="required", ssl_context=certificates.trusting)
        await smtp.connect()
        assert smtp.sock is not None
        assert smtp.sock.version()
        await smtp.close()


async def test_a_proxy_on_this_machine_makes_nothing_private() -> None:
    script = [*SOCKS5, send("220 hi"), expect("ehlo me.example"), send("250-hi", "250 AUTH PLAIN"), nothing_more]
    async with scripted(script) as proxy:
        smtp = client(f"socks5://{proxy.host}:{proxy.port}")
        await smtp.connect()
        with pytest.raises(asmtp.SMTPNotSupportedError, match="PLAIN would send the password"):
            await smtp.login(USER, PASSWORD)
        await smtp.close()


def test_the_facade(monkeypatch: pytest.MonkeyPatch) -> None:
    script = [*SOCKS5, send("220 hi"), expect("noop"), send("250 ok"), nothing_more]
    with nothing_left(monkeypatch), in_background(scripted(script)) as proxy:
        smtp = asmtp.SMTP("mx.example", 2525, proxy=f"socks5://{proxy.host}:{proxy.port}")
        assert smtp.noop() == (250, b"ok")
        smtp.close()


async def test_a_mailer() -> None:
    hello = [send("220 hi"), expect("ehlo me.example"), send("250 hi")]
    async with scripted([*SOCKS5, *hello, expect("quit"), send("221 bye"), fin]) as proxy:
        url = f"smtp://mx.example:2525?local_hostname=me.example&proxy=socks5://{proxy.host}:{proxy.port}"
        relay = asmtp.Relay.from_url(url)
        assert f"proxy=socks5%3A//{proxy.host}%3A{proxy.port}" in relay.url
        async with asmtp.AsyncMailer(relay) as mailer:
            await mailer.verify()


# ---- what is no proxy ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url", ["", "socks5://", "socks5://host", "ftp://host:1", "host:1", "socks5://me:s3cret@host:x", "http://[::1:1"]
)
def test_what_is_no_url_of_a_proxy(url: str) -> None:
    with pytest.raises(ValueError, match="^proxy must be a URL") as caught:
        asmtp.AsyncSMTP(proxy=url)
    assert "s3cret" not in repr(caught.value)
    assert "s3cret" not in repr(caught.value.__context__)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://joe:s3cret%E2%82%AC@host:1", "^proxy: user name or password has characters that are not latin-1$"),
        ("socks5://joe:s3cret%C3%A9@host:1", "^proxy: user name or password has characters that are not ascii$"),
        ("http://joe%3As3cret:x@host:1", "^proxy: an HTTP proxy's user name cannot have a colon$"),
    ],
)
def test_what_cannot_be_said_to_a_proxy(url: str, why: str) -> None:
    with pytest.raises(ValueError, match=why) as caught:
        asmtp.AsyncSMTP(proxy=url)
    assert "s3cret" not in repr(caught.value)
    assert caught.value.__context__ is None


def test_a_proxy_that_is_no_str() -> None:
    with pytest.raises(TypeError, match="^proxy must be a URL, not int$"):
        check_proxy(5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="^proxy and sock: only one"):
        asmtp.AsyncSMTP(proxy="socks5://host:1", sock=object())


async def test_no_way_to_a_unix_socket() -> None:
    with pytest.raises(ValueError, match="^proxy: a Unix socket cannot be reached"):
        await asmtp.AsyncLMTP("/run/lmtp", proxy="socks5://127.0.0.1:1").connect()


def test_the_name_of_a_proxy() -> None:
    assert proxy_name("socks5://me:s3cret@proxy.example:1080") == "socks5://proxy.example:1080"
    assert proxy_name("http://[::1]:3128") == "http://[::1]:3128"


def test_a_relay_does_not_show_the_password() -> None:
    relay = asmtp.Relay("mx.example", proxy="socks5://me:s3cret@proxy.example:1080", proxy_protocol=2)
    assert "s3cret" not in repr(relay) + str(relay)
    assert asmtp.Relay.from_url(relay.url).proxy == "socks5://proxy.example:1080"
    assert asmtp.Relay.from_url(relay.url).proxy_protocol == 2
    for query in ("proxy=s3cret", "proxy_protocol=s3cret", "proxy_protocol=3"):
        with pytest.raises(ValueError, match="^URL: option proxy") as caught:
            asmtp.Relay.from_url(f"smtp://mx.example?{query}")
        assert "s3cret" not in str(caught.value)


def test_without_python_socks(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def importing(name: str, *args: Any) -> Any:
        if name.startswith("python_socks"):
            raise ModuleNotFoundError(f"No module named {name!r}")
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", importing)
    with pytest.raises(ImportError, match=r"^proxy= needs python-socks: pip install 'asmtp\[proxy\]'$"):
        asmtp.AsyncSMTP(proxy="socks5://host:1")


# ---- the PROXY protocol -------------------------------------------------------------------------


@pytest.mark.parametrize("given", [1, asmtp.ProxyHeader(1, source=("192.0.2.1", 1000))])
async def test_the_header_comes_first(given: Any) -> None:
    async with scripted([head(b"\r\n"), send("220 hi"), nothing_more]) as server:
        smtp = asmtp.AsyncSMTP(server.host, server.port, proxy_protocol=given)
        await smtp.connect()
        assert smtp.sock is not None
        ours = given.source if given != 1 else smtp.sock.getsockname()
        line = f"PROXY TCP4 {ours[0]} 127.0.0.1 {ours[1]} {server.port}\r\n"
        assert server.peers[0].received == line.encode()
        await smtp.close()


async def test_a_server_that_does_not_know_it() -> None:
    """It takes the header for commands, or for rubbish."""
    async with embedded(Embedded()) as server:
        smtp = asmtp.AsyncSMTP("127.0.0.1", server.port, "me.example", proxy_protocol=1)
        await smtp.connect()
        with pytest.raises(asmtp.SMTPServerDisconnected):
            await smtp.noop()
            await smtp.noop()
        await smtp.close()
