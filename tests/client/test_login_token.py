"""Logging in with an access token: which mechanism, when a fresh one is asked for, and what is never shown."""

from __future__ import annotations

import asyncio
import base64
import functools
import logging
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import anyio
import pytest

import asmtp
from asmtp import AsyncSMTP
from tests.conftest import Certificates
from tests.fakes.embedded import Embedded, embedded
from tests.fakes.script import Peer, Step, expect, fin, nothing_more, scripted, send, silence, until

USER = "me@b.example"
ERROR = base64.b64encode(b'{"status":"401","schemes":"bearer","scope":"https://mail.b.example/"}').decode()
REFUSED = (send(f"334 {ERROR}"), expect(""), send("535 5.7.8 not accepted"))


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def google(token: str) -> str:
    return b64(f"user={USER}\1auth=Bearer {token}\1\1")


def xoauth2(token: str) -> Step:
    return expect(f"AUTH XOAUTH2 {google(token)}")


def oauthbearer(token: str, *, named: bool = True) -> Step:
    async def step(peer: Peer) -> None:
        where = ""
        if named:
            host, port = peer.transport.get_extra_info("sockname")
            where = f"\1host={host}\1port={port}"
        await expect("AUTH OAUTHBEARER " + b64(f"n,a={USER},{where}\1auth=Bearer {token}\1\1"))(peer)

    return step


def offering(mechanisms: str, *steps: Step) -> list[Step]:
    hello = [send("220 hi"), expect("ehlo me.example"), send("250-hi", f"250 AUTH {mechanisms}")]
    return [*hello, *steps, nothing_more]


class Source:
    """Gives one token after the other; an exception is raised."""

    def __init__(self, *tokens: Any) -> None:
        self.tokens = list(tokens)
        self.calls: list[bool] = []

    def __call__(self, force: bool) -> Any:
        self.calls.append(force)
        token = self.tokens.pop(0)
        if isinstance(token, Exception):
            raise token
        return token


def client(server: Any, token: Any, **options: Any) -> AsyncSMTP:
    options = {"tls": "none", "username": USER, "token": token, **options}
    return AsyncSMTP(server.host, server.port, "me.example", **options)


async def connected(server: Any, token: Any, **options: Any) -> None:
    smtp = client(server, token, **options)
    await smtp.connect()
    assert smtp.is_connected
    await smtp.close()


async def refused(server: Any, token: Any, kind: type[Exception], **options: Any) -> Any:
    """The error that connecting raises; the connection is closed."""
    smtp = client(server, token, **options)
    with pytest.raises(kind) as caught:
        await smtp.connect()
    assert not smtp.is_connected
    return caught.value


# ---- the exchange ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offer", "auth"),
    [("PLAIN XOAUTH2 OAUTHBEARER", oauthbearer), ("OAUTHBEARER", oauthbearer), ("XOAUTH2 LOGIN", xoauth2)],
)
async def test_the_mechanism(offer: str, auth: Callable[[str], Step]) -> None:
    source = Source("t0k")
    async with scripted(offering(offer, auth("t0k"), send("235 welcome"))) as server:
        await connected(server, source)
    assert source.calls == [False]


async def test_a_long_token() -> None:
    """More than fits into a command line: it is sent when the server asks for it, with its empty challenge."""
    long, fresh = "x" * 2000, "y" * 2000
    script = offering(
        "XOAUTH2",
        expect("AUTH XOAUTH2"), send("334 "), expect(google(long)), *REFUSED,
        expect("AUTH XOAUTH2"), send("334 "), expect(google(fresh)), send("235 welcome"),
    )  # fmt: skip
    source = Source(long, fresh)
    async with scripted(script) as server:
        await connected(server, source)
    assert source.calls == [False, True]


async def test_a_host_is_not_named_where_there_is_none(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    script = offering("OAUTHBEARER", oauthbearer("t0k", named=False), send("235 welcome"))
    async with scripted(script, path=path) as server:
        await connected(server, Source("t0k"))
    async with scripted(script) as server:
        sock = socket.create_connection(server.address)
        smtp = AsyncSMTP(local_hostname="me.example", tls="none", username=USER, token=Source("t0k"), sock=sock)
        await smtp.connect()
        await smtp.close()


async def test_another_mechanism_after_another_refusal() -> None:
    script = offering(
        "OAUTHBEARER XOAUTH2",
        oauthbearer("t0k"), send("504 5.5.4 not that one"), xoauth2("t0k"), send("235 welcome"),
    )  # fmt: skip
    source = Source("t0k")
    async with scripted(script) as server:
        await connected(server, source)
    assert source.calls == [False]


# ---- a token that is rejected ------------------------------------------------------------------


@pytest.mark.parametrize("refusal", [REFUSED, (send("535 no"),), (send("501 no"),), (send("554 no"),)])
async def test_a_fresh_token(refusal: tuple[Step, ...]) -> None:
    script = offering("XOAUTH2", xoauth2("0ld"), *refusal, xoauth2("n3w"), send("235 welcome"))
    source = Source("0ld", "n3w")
    async with scripted(script) as server:
        await connected(server, source)
    assert source.calls == [False, True]


async def test_a_fresh_token_is_rejected_too() -> None:
    script = offering("XOAUTH2", xoauth2("0ld"), send("535 expired"), xoauth2("n3w"), *REFUSED)
    source = Source("0ld", "n3w")
    async with scripted(script) as server:
        error = await refused(server, source, asmtp.SMTPAuthenticationError)
    assert error.smtp_code == 535
    assert error.smtp_error == b"5.7.8 not accepted (status: 401, scope: https://mail.b.example/)"
    assert source.calls == [False, True]


async def test_the_same_token_is_not_sent_again() -> None:
    source = Source("0ld", "0ld")
    async with scripted(offering("XOAUTH2", xoauth2("0ld"), send("535 expired"))) as server:
        error = await refused(server, source, asmtp.SMTPAuthenticationError)
    assert (error.smtp_code, error.smtp_error) == (535, b"expired")
    assert source.calls == [False, True]


@pytest.mark.parametrize("code", [454, 421])
async def test_what_is_not_about_the_token(code: int) -> None:
    source = Source("t0k")
    async with scripted(offering("XOAUTH2", xoauth2("t0k"), send(f"{code} later"))) as server:
        error = await refused(server, source, asmtp.SMTPAuthenticationError)
    assert (error.smtp_code, error.transient) == (code, True)
    assert source.calls == [False]


async def test_a_server_that_closes_after_the_refusal() -> None:
    script = [*offering("XOAUTH2", xoauth2("0ld"), send("535 expired"), fin)[:-1], silence]
    async with scripted(script) as server:
        error = await refused(server, Source("0ld", "n3w"), asmtp.SMTPServerDisconnected)
    assert isinstance(error.__context__, asmtp.SMTPAuthenticationError)


async def test_every_connection_asks() -> None:
    script = offering("XOAUTH2", xoauth2("t0k"), send("235 welcome"))
    source = Source("t0k", "t0k")
    async with scripted(script, script) as server:
        smtp = client(server, source)
        for _ in range(2):
            await smtp.connect()
            await smtp.close()
    assert source.calls == [False, False]


@pytest.mark.parametrize("offer", ["250 hi", "250-hi\r\n250 PIPELINING"])
async def test_no_auth(offer: str) -> None:
    source = Source()
    async with scripted([send("220 hi"), expect("ehlo me.example"), send(offer), nothing_more]) as server:
        error = await refused(server, source, asmtp.SMTPNotSupportedError)
    assert "AUTH" in str(error)
    assert source.calls == []


async def test_no_mechanism_for_tokens() -> None:
    source = Source("t0k")
    async with scripted(offering("PLAIN LOGIN")) as server:
        error = await refused(server, source, asmtp.SMTPException)
    assert str(error) == "No suitable authentication method found. The server offers PLAIN LOGIN"
    assert source.calls == [False]


# ---- what gives the token ----------------------------------------------------------------------


def in_thread(threads: list[threading.Thread]) -> Any:
    def token(force: bool) -> str:
        threads.append(threading.current_thread())
        return "t0k"

    return token


async def fetch(threads: list[threading.Thread], force: bool) -> str:
    await asyncio.sleep(0)
    threads.append(threading.current_thread())
    return "t0k"


class Fetching:
    def __init__(self, threads: list[threading.Thread]) -> None:
        self.threads = threads

    async def __call__(self, force: bool) -> str:
        return await fetch(self.threads, force)

    async def method(self, force: bool) -> str:
        return await fetch(self.threads, force)


@pytest.mark.parametrize(
    ("make", "here"),
    [
        pytest.param(in_thread, False, id="blocking"),
        pytest.param(lambda threads: functools.partial(fetch, threads), True, id="partial"),
        pytest.param(Fetching, True, id="object"),
        pytest.param(lambda threads: Fetching(threads).method, True, id="method"),
        pytest.param(lambda threads: lambda force: fetch(threads, force), True, id="lambda"),
        pytest.param(lambda threads: AsyncMock(side_effect=functools.partial(fetch, threads)), True, id="mock"),
    ],
)
async def test_where_it_is_called(make: Callable[[Any], Any], here: bool) -> None:
    threads: list[threading.Thread] = []
    async with scripted(offering("XOAUTH2", xoauth2("t0k"), send("235 welcome"))) as server:
        await connected(server, make(threads))
    assert [thread is threading.current_thread() for thread in threads] == [here]


async def test_a_fresh_token_from_a_coroutine() -> None:
    async def token(force: bool) -> str:
        return "n3w" if force else "0ld"

    script = offering("XOAUTH2", xoauth2("0ld"), send("535 expired"), xoauth2("n3w"), send("235 welcome"))
    async with scripted(script) as server:
        await connected(server, token)


async def test_an_async_function_that_fails() -> None:
    async def token(force: bool) -> str:
        raise LookupError("no refresh token")

    async with scripted(offering("XOAUTH2")) as server:
        await refused(server, token, LookupError)


@pytest.mark.parametrize("kind", [LookupError, StopIteration])
async def test_a_function_that_fails(kind: type[Exception]) -> None:
    """StopIteration is what an iterator that ran out of tokens raises; it cannot pass through a coroutine."""
    raised = RuntimeError if kind is StopIteration else kind
    async with scripted(offering("XOAUTH2")) as server:
        await refused(server, Source(kind("no refresh token")), raised)
    async with scripted(offering("XOAUTH2", xoauth2("0ld"), send("535 expired"))) as server:
        error = await refused(server, Source("0ld", kind("no refresh token")), raised)
    context = error.__context__
    while not isinstance(context, asmtp.SMTPAuthenticationError):
        context = context.__context__


@pytest.mark.parametrize("token", [None, b"s3cret", 5])
async def test_something_that_is_no_str(token: Any) -> None:
    words = f"token must return a str, not {type(token).__name__}"
    async with scripted(offering("XOAUTH2")) as server:
        assert str(await refused(server, Source(token), TypeError)) == words
    async with scripted(offering("XOAUTH2", xoauth2("0ld"), send("535 expired"))) as server:
        assert str(await refused(server, Source("0ld", token), TypeError)) == words


@pytest.mark.parametrize("token", ["s3cret\n", "s3\1cret", "s3cr\u00e9t", ""])
async def test_something_that_is_no_token(token: str) -> None:
    async with scripted(offering("XOAUTH2")) as server:
        error = await refused(server, Source(token), ValueError)
    assert str(error).startswith("token: ")
    assert "s3" not in repr(error)


@pytest.mark.parametrize("scoped", [True, False], ids=["by anyio", "by asyncio"])
@pytest.mark.parametrize("blocking", [True, False])
async def test_who_is_cancelled_does_not_wait(blocking: bool, scoped: bool) -> None:
    begun, leave, left = threading.Event(), threading.Event(), threading.Event()

    def wait(force: bool) -> str:
        begun.set()
        leave.wait(10)
        left.set()
        return "t0k"

    async def sleep(force: bool) -> str:
        begun.set()
        await asyncio.sleep(10)
        return "t0k"

    scope = anyio.CancelScope()

    async def connect() -> None:
        with scope:
            await smtp.connect()

    try:
        async with scripted(offering("XOAUTH2")) as server:
            smtp = client(server, wait if blocking else sleep)
            task = asyncio.create_task(connect())
            await until(begun.is_set)
            (scope if scoped else task).cancel()
            await asyncio.wait([task])
            assert task.cancelled() or scope.cancelled_caught
            assert not left.is_set()
            assert not smtp.is_connected
    finally:
        leave.set()
    if blocking:
        await until(left.is_set)


# ---- TLS ---------------------------------------------------------------------------------------


async def test_a_token_requires_tls(certificates: Certificates) -> None:
    source = Source()
    async with embedded(Embedded()) as server:
        await refused(server, source, asmtp.SMTPNotSupportedError, tls=None)
    assert source.calls == []


@pytest.mark.parametrize("trusted", [True, False])
async def test_a_token_needs_verified_tls(
    trusted: bool, certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    source = Source("t0k")
    context = certificates.trusting if trusted else certificates.wary
    handler = Embedded()
    async with embedded(handler, tls=certificates.server) as server:
        if trusted:  # aiosmtpd knows no tokens
            error = await refused(server, source, asmtp.SMTPException, tls="opportunistic", ssl_context=context)
            assert str(error).startswith("No suitable authentication method found.")
        else:
            await connected(server, source, tls="opportunistic", ssl_context=context)
    assert source.calls == ([False] if trusted else [])
    assert ("not logging in" in caplog.text) is not trusted


# ---- what is shown -----------------------------------------------------------------------------


def forms(secret: str) -> list[str]:
    """The text, and what base64 makes of it wherever it stands in what is encoded."""
    shifted = [base64.b64encode(b"x" * shift + secret.encode()).decode()[4:-8] for shift in range(3)]
    return [secret, *shifted]


@pytest.mark.parametrize("outcome", ["accepted", "refused", "cut off"])
@pytest.mark.parametrize("length", [40, 1200], ids=["short", "long"])
@pytest.mark.parametrize("mechanism", ["OAUTHBEARER", "XOAUTH2"])
async def test_nothing_shows_the_token(
    mechanism: str, length: int, outcome: str, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = (letter * 10 + "s3cret" + letter * length for letter in "AB")
    written: list[bytes] = []
    received: list[bytes] = []

    async def line(peer: Peer) -> None:
        while not peer.surplus.endswith(b"\r\n"):
            await peer.more()
        received.append(await peer.take(peer.coming))

    asking = [line, send("334 ")] if length > 500 else []
    no = [send(f"334 {ERROR}"), line, send("535 5.7.8 not accepted")]
    ends: dict[str, list[Step]] = {"accepted": [send("235 welcome")], "refused": no, "cut off": [fin]}
    script = offering(mechanism, *asking, line, *no, *asking, line, *ends[outcome])
    async with scripted(script) as server:
        smtp = client(server, Source(first, second))
        smtp.trace = lambda direction, octets: written.append(octets)
        shown = ""
        with caplog.at_level(logging.DEBUG):
            try:
                await smtp.connect()
            except asmtp.SMTPException as error:
                each: BaseException | None = error
                while each is not None:
                    shown += repr(each) + str(each) + repr(vars(each))
                    each = each.__context__
            shown += repr(smtp) + repr(smtp._session) + repr(smtp._connection) + caplog.text
            await smtp.close()
    assert (shown.count("Error") > 0) is (outcome != "accepted")
    shown += b"\n".join(written).decode("latin-1")
    for token in (first, second):
        parts = [form[:20] for form in forms(token)]
        assert any(part in b"".join(received).decode() for part in parts)
        assert not any(part in shown for part in parts)
    assert b"(not shown)" in written
