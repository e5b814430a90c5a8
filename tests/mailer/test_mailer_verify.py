"""`verify`, `send` and `send_all` (which `asmtp bulk` is made of) tell in the same way why nothing can be sent."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import asmtp
from asmtp.cli.bulk.account import outcomes_of
from tests.conftest import Certificates
from tests.fakes.script import Step, expect, fin, listening, scripted, send, silence
from tests.mailer.mailing import item

HELLO = [expect("ehlo me.example")]
LOGIN = [send("220 hi"), *HELLO, send("250-hi", "250 AUTH PLAIN"), expect("AUTH PLAIN AGpvZQBzM2NyZXQ=")]
JOE: dict[str, Any] = {"username": "joe", "password": "s3cret", "tls": "none"}

SAID: dict[str, tuple[list[Step], dict[str, Any], type[asmtp.SMTPException], type[BaseException] | None, str]] = {
    "greeting 554": ([send("554 no service")], {}, asmtp.SMTPConnectError, None, "554 no service"),
    "greeting 421": ([send("421 busy")], {}, asmtp.SMTPConnectError, None, "421 busy"),
    "no greeting": ([fin], {}, asmtp.SMTPServerDisconnected, None, "no connection: Connection unexpectedly closed"),
    "another protocol": (
        [send("* OK IMAP4 ready")],
        {},
        asmtp.SMTPProtocolError,
        None,
        "the server broke the protocol: not a reply: '* OK IMAP4 ready\\r'",
    ),
    "EHLO and HELO refused": (
        [send("220 hi"), *HELLO, send("550 not you"), expect("helo me.example"), send("550 not you")],
        {},
        asmtp.SMTPHeloError,
        None,
        "550 not you",
    ),
    "no STARTTLS": (
        [send("220 hi"), *HELLO, send("250 hi")],
        {"tls": "required"},
        asmtp.SMTPNotSupportedError,
        None,
        "not supported by the server: STARTTLS extension not supported by server.",
    ),
    "wrong password": ([*LOGIN, send("535 5.7.8 no")], JOE, asmtp.SMTPAuthenticationError, None, "535 5.7.8 no"),
    "TLS to a port without": (
        [send("220 hi")],
        {"tls": "implicit"},
        asmtp.SMTPException,
        ssl.SSLError,
        "cannot be sent: no connection to HERE: the server does not speak TLS here",
    ),
}


async def told_by_all(relay: asmtp.Relay, **options: Any) -> list[Any]:
    """Return the error that each of them raises or tells."""
    told: list[Any] = []
    sender, recipient, content = item(1)
    for way in ("verify", "send", "send_all"):
        async with asmtp.AsyncMailer(relay, local_hostname="me.example", retry=None, **options) as mailer:
            if way == "send_all":
                told += [delivery async for delivery in mailer.send_all([item(1)])]
                continue
            try:
                await (mailer.verify() if way == "verify" else mailer.send(content, sender, recipient))
            except asmtp.SMTPException as error:
                told.append(error)
    return told


def check(
    told: list[Any], relay: asmtp.Relay, kind: type[asmtp.SMTPException], cause: type[BaseException] | None, bulk: str
) -> None:
    verified, sent, delivery = told
    for error in (verified, sent, delivery.error):
        assert type(error) is kind
        assert type(error.__cause__) is (type(None) if cause is None else cause)
        assert str(error) == str(sent)
        assert error.state == "not_sent"
    assert verified.__notes__ == [f"relay: {relay.name}"]
    (outcome,) = outcomes_of(delivery, [item(1)[1]]).values()
    assert str(outcome).startswith(bulk.replace("HERE", relay.name))


@pytest.mark.parametrize("what", SAID)
async def test_what_a_server_says(what: str, certificates: Certificates) -> None:
    script, options, kind, cause, bulk = SAID[what]
    if options.get("tls") in ("implicit", "required"):
        options = {**options, "ssl_context": certificates.trusting}
    ending = [silence] if "TLS" in what else []
    async with scripted(*[[*script, *ending]] * 3) as server:
        relay = asmtp.Relay(server.host, server.port, **options)
        check(await told_by_all(relay), relay, kind, cause, bulk)


@contextlib.asynccontextmanager
async def shut() -> AsyncIterator[tuple[str, int]]:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))  # nobody listens
        yield sock.getsockname()


async def test_nobody_listens() -> None:
    async with shut() as (host, port):
        relay = asmtp.Relay(host, port)
        bulk = "no connection: no connection to HERE: [Errno 111]"
        check(await told_by_all(relay), relay, asmtp.SMTPServerDisconnected, ConnectionRefusedError, bulk)


async def test_a_proxy_that_cannot_be_reached() -> None:
    async with shut() as (host, port):
        relay = asmtp.Relay("mx.example", 25, proxy=f"socks5://{host}:{port}")
        told = await told_by_all(relay)
        check(
            told, relay, asmtp.SMTPServerDisconnected, type(told[1].__cause__), "no connection: no connection to HERE"
        )
        assert isinstance(told[1].__cause__, OSError)


async def test_no_socket_there(tmp_path: Path) -> None:
    relay = asmtp.Relay(str(tmp_path / "none"))
    check(await told_by_all(relay), relay, asmtp.SMTPServerDisconnected, FileNotFoundError, "no connection: no conn")


async def test_no_such_name(monkeypatch: pytest.MonkeyPatch) -> None:
    async def resolve(host: str, port: int) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr("asmtp.transport.resolve.resolve", resolve)
    relay = asmtp.Relay("mx.example")
    bulk = "no connection: no connection to mx.example:25: [Errno -2] Name or service not known"
    check(await told_by_all(relay), relay, asmtp.SMTPServerDisconnected, socket.gaierror, bulk)


@pytest.mark.parametrize("tls", ["implicit", "required"])
async def test_a_certificate_that_nobody_trusts(tls: Any, certificates: Certificates) -> None:
    from tests.fakes.embedded import Embedded, embedded

    implicit = tls == "implicit"
    async with embedded(Embedded(), tls=certificates.server, implicit=implicit) as server:
        relay = asmtp.Relay(server.host, server.port, tls=tls, ssl_context=certificates.wary)
        bulk = "cannot be sent: no connection to HERE: the server's certificate was not accepted for 127.0.0.1"
        check(await told_by_all(relay), relay, asmtp.SMTPException, ssl.SSLCertVerificationError, bulk)


async def test_no_token() -> None:
    def token(refused: bool) -> str:
        raise LookupError("no token")

    scripts = [[*LOGIN[:1], *HELLO, send("250-hi", "250 AUTH XOAUTH2")]] * 3
    async with scripted(*scripts) as server:
        relay = asmtp.Relay(server.host, server.port, username="joe", token=token, tls="none")
        bulk = "cannot be sent: no connection to HERE: no token"
        check(await told_by_all(relay), relay, asmtp.SMTPException, LookupError, bulk)


class Silent(asyncio.Protocol):
    """A relay that says nothing; the mailer opens more connections beside those that hang."""


@pytest.mark.virtual_clock
async def test_silence() -> None:
    """The server says nothing, as one does that waits for TLS from the first octet."""
    async with listening(Silent) as (host, port):
        relay = asmtp.Relay(host, port)
        bulk = "no answer in time: timed out: no answer to the greeting within 300 seconds"
        check(await told_by_all(relay), relay, asmtp.SMTPTimeoutError, asmtp.SMTPTimeoutError, bulk)


def test_the_blocking_mailer() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        relay = asmtp.Relay(*sock.getsockname())
        with asmtp.Mailer(relay, retry=None) as mailer:
            sender, recipient, content = item(1)
            for call in (mailer.verify, lambda: mailer.send(content, sender, recipient)):
                with pytest.raises(asmtp.SMTPServerDisconnected) as caught:
                    call()
                assert type(caught.value.__cause__) is ConnectionRefusedError
