"""Requests on the wire, as the async class, the facade and the mailer make them; XCLIENT."""

from __future__ import annotations

import asyncio
import datetime
from email.message import EmailMessage
from typing import Any

import pytest

import asmtp
from asmtp import DeliverBy, Recipient
from asmtp.transport.tls import unverified_context
from tests.conftest import Certificates
from tests.fakes.background import in_background
from tests.fakes.embedded import Embedded, embedded
from tests.fakes.people import SENDER, WHO
from tests.fakes.script import Step, expect, nothing_more, scripted, send, start_tls
from tests.sync.facade import nothing_left

pytestmark = pytest.mark.usefixtures("bdat_at_once")

OFFERS = ("DSN", "DELIVERBY", "FUTURERELEASE", "MT-PRIORITY", "SMTPUTF8", "CHUNKING", "BINARYMIME", "PIPELINING")
NEW_YEAR = datetime.datetime(2027, 1, 1, tzinfo=datetime.UTC)

REQUESTS: dict[str, tuple[dict[str, Any], str, str]] = {
    "DSN": (
        {"ret": "hdrs", "envid": "x=1", "notify": ["success", "delay"]},
        " RET=HDRS ENVID=x+3D1", " NOTIFY=SUCCESS,DELAY",
    ),
    "DELIVERBY": ({"deliver_by": DeliverBy(3600, "notify")}, " BY=3600;N", ""),
    "FUTURERELEASE, for": ({"hold_for": 60}, " HOLDFOR=60", ""),
    "FUTURERELEASE, until": ({"hold_until": NEW_YEAR}, " HOLDUNTIL=2027-01-01T00:00:00Z", ""),
    "MT-PRIORITY": ({"priority": -4}, " MT-PRIORITY=-4", ""),
    "SMTPUTF8": ({"smtputf8": True}, " SMTPUTF8", ""),
    "BINARYMIME": ({"binary": True}, " BODY=BINARYMIME", ""),
}  # fmt: skip
requests = pytest.mark.parametrize("name", REQUESTS)


def hello(*offers: str) -> list[Step]:
    lines = [f"250-{offer}" for offer in ("hi", *offers[:-1])]
    return [send("220 hi"), expect("ehlo me.example"), send(*lines, f"250 {offers[-1]}")]


def script(name: str) -> list[Step]:
    _, mail, rcpt = REQUESTS[name]
    message = expect(f"mail from:<{SENDER}>{mail}", f"rcpt to:<{WHO}>{rcpt}", "BDAT 4 LAST", "hi")
    return [*hello(*OFFERS), message, send("250 ok", "250 ok", "250 taken"), expect("quit"), send("221 bye")]


@requests
async def test_the_async_class(name: str) -> None:
    async with scripted(script(name)) as server, asmtp.AsyncSMTP(server.host, server.port, "me.example") as smtp:
        assert await smtp.sendmail(SENDER, [WHO], b"hi\r\n", **REQUESTS[name][0]) == {}


@requests
def test_the_facade(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with nothing_left(monkeypatch), in_background(scripted(script(name))) as server:
        smtp = asmtp.SMTP(server.host, server.port, "me.example")
        assert smtp.sendmail(SENDER, [WHO], "hi\r\n", **REQUESTS[name][0]) == {}
        smtp.quit()


@requests
@pytest.mark.parametrize("enveloped", [True, False])
async def test_the_mailer(name: str, enveloped: bool) -> None:
    asked = REQUESTS[name][0]
    async with scripted(script(name)) as server:
        async with asmtp.AsyncMailer(f"smtp://{server.host}:{server.port}?local_hostname=me.example") as mailer:
            if enveloped:
                receipt = await mailer.send(asmtp.Envelope(SENDER, [WHO], content=b"hi\r\n", **asked))
                with pytest.raises(TypeError, match="an Envelope has its own"):
                    await mailer.send(asmtp.Envelope(SENDER, [WHO], content=b"hi\r\n"), **asked)
            else:
                receipt = await mailer.send(b"hi\r\n", SENDER, [WHO], **asked)
        assert receipt.complete


async def test_a_message_with_recipients_of_its_own() -> None:
    message = EmailMessage()
    message["From"], message["To"] = SENDER, WHO
    lines = [f"mail from:<{SENDER}> RET=FULL", f"rcpt to:<{WHO}> NOTIFY=NEVER ORCPT=rfc822;old@d.example"]
    body = f"From: {SENDER}\r\nTo: {WHO}\r\n\r\n".encode()
    steps = [expect(*lines, f"BDAT {len(body)} LAST", body), send("250 ok", "250 ok", "250 taken")]
    async with scripted([*hello("DSN", "PIPELINING", "CHUNKING"), *steps, nothing_more]) as server:
        smtp = asmtp.AsyncSMTP(server.host, server.port, "me.example")
        await smtp.connect()
        recipient = Recipient(WHO, notify="never", orcpt="old@d.example")
        assert await smtp.send_message(message, to_addrs=[recipient], ret="full") == {}
        await smtp.close()


@pytest.mark.parametrize("way", ["async", "facade"])
@pytest.mark.parametrize("name", ["SMTPUTF8", "BINARYMIME"])
def test_a_message_to_an_address_that_needs_smtputf8(name: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller may ask for SMTPUTF8, too, though the message needs it anyhow."""
    message = EmailMessage()
    message["From"], message["To"] = SENDER, "j\u00f6rg@d.example"
    parameters = {"SMTPUTF8": " SMTPUTF8 BODY=8BITMIME", "BINARYMIME": " BODY=BINARYMIME SMTPUTF8"}[name]
    body = f"From: {SENDER}\r\nTo: j\u00f6rg@d.example\r\n\r\n".encode()
    mail, rcpt = f"mail from:<{SENDER}>{parameters}\r\n", "rcpt to:<j\u00f6rg@d.example>\r\n"
    offers = hello("8BITMIME", "SMTPUTF8", "BINARYMIME", "CHUNKING", "PIPELINING")
    written = (mail + rcpt).encode() + b"BDAT %d LAST\r\n" % len(body) + body
    steps = [expect(written), send("250 ok", "250 ok", "250 taken")]
    with nothing_left(monkeypatch), in_background(scripted([*offers, *steps, nothing_more])) as server:
        if way == "facade":
            smtp = asmtp.SMTP(server.host, server.port, "me.example")
            assert smtp.send_message(message, **REQUESTS[name][0]) == {}
            smtp.close()
        else:

            async def run() -> None:
                client = asmtp.AsyncSMTP(server.host, server.port, "me.example")
                await client.connect()
                assert await client.send_message(message, **REQUESTS[name][0]) == {}
                await client.close()

            asyncio.run(run())


@pytest.mark.parametrize("way", ["async", "facade", "mailer"])
def test_what_is_not_offered(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written, and the next message is sent."""
    handler = Embedded()
    with nothing_left(monkeypatch), in_background(embedded(handler)):
        refused = pytest.raises(asmtp.SMTPNotSupportedError, match="^MT-PRIORITY not supported by server")
        if way == "facade":
            with asmtp.SMTP("127.0.0.1", handler.port) as smtp:
                with refused as caught:
                    smtp.sendmail(SENDER, [WHO], "hi", priority=1)
                assert smtp.sendmail(SENDER, [WHO], "hi") == {}
        elif way == "mailer":
            with asmtp.Mailer(f"smtp://127.0.0.1:{handler.port}") as mailer:
                with refused as caught:
                    mailer.send(b"hi", SENDER, [WHO], priority=1)
                assert mailer.send(b"hi", SENDER, [WHO]).complete
        else:

            async def both() -> Any:
                async with asmtp.AsyncSMTP("127.0.0.1", handler.port) as smtp:
                    with refused as caught:
                        await smtp.sendmail(SENDER, [WHO], b"hi", priority=1)
                    assert await smtp.sendmail(SENDER, [WHO], b"hi") == {}
                return caught

            caught = asyncio.run(both())
        assert caught.value.state == "not_sent"
    assert len(handler.letters) == 1


# ---- REQUIRETLS ---------------------------------------------------------------------------------


@pytest.mark.parametrize("trusted", [True, False])
async def test_requiretls(trusted: bool, certificates: Certificates) -> None:
    """RFC 8689 §4.2.1: offered under TLS, and used where the certificate was verified."""
    steps = [expect(f"mail from:<{SENDER}> REQUIRETLS", f"rcpt to:<{WHO}>", "BDAT 4 LAST", "hi")]
    answered = [*steps, send("250 ok", "250 ok", "250 taken")] if trusted else []
    under_tls = [expect("ehlo me.example"), send("250-hi", "250-REQUIRETLS", "250-PIPELINING", "250 CHUNKING")]
    upgrade = [*hello("STARTTLS"), expect("STARTTLS"), send("220 go"), start_tls(certificates.server)]
    async with scripted([*upgrade, *under_tls, *answered, nothing_more]) as server:
        context = certificates.trusting if trusted else unverified_context()
        smtp = asmtp.AsyncSMTP(server.host, server.port, "me.example", tls="required", ssl_context=context)
        await smtp.connect()
        if trusted:
            assert await smtp.sendmail(SENDER, [WHO], b"hi\r\n", require_tls=True) == {}
        else:
            with pytest.raises(
                asmtp.SMTPNotSupportedError, match="^REQUIRETLS needs a connection with TLS, and a cert"
            ):
                await smtp.sendmail(SENDER, [WHO], b"hi\r\n", require_tls=True)
        await smtp.close()


# ---- XCLIENT ------------------------------------------------------------------------------------

XCLIENT = [
    *hello("XCLIENT NAME ADDR", "PIPELINING"), expect("XCLIENT NAME=mx.example ADDR=192.0.2.1"),
    send("220 hello again"), expect("ehlo me.example"), send("250-hi", "250 SIZE"),
    expect("noop"), send("250 ok"), nothing_more,
]  # fmt: skip


async def test_xclient() -> None:
    """Everything begins anew: what was offered before is forgotten."""
    async with scripted(XCLIENT) as server:
        smtp = asmtp.AsyncSMTP(server.host, server.port, "me.example")
        await smtp.connect()
        assert await smtp.xclient(name="mx.example", addr="192.0.2.1") == (220, b"hello again")
        assert not smtp.does_esmtp
        await smtp.ehlo_or_helo_if_needed()
        assert dict(smtp.esmtp_features) == {"size": ""}
        await smtp.noop()
        await smtp.close()


def test_xclient_of_the_facade(monkeypatch: pytest.MonkeyPatch) -> None:
    with nothing_left(monkeypatch), in_background(scripted(XCLIENT)) as server:
        smtp = asmtp.SMTP(server.host, server.port, "me.example")
        assert smtp.xclient(name="mx.example", addr="192.0.2.1") == (220, b"hello again")
        smtp.ehlo_or_helo_if_needed()
        smtp.noop()
        smtp.close()


async def test_xclient_that_is_refused() -> None:
    steps = [expect("XCLIENT NAME=mx.example"), send("550 5.7.0 no"), expect("noop"), send("250 ok"), nothing_more]
    async with scripted([*hello("XCLIENT NAME", "SIZE"), *steps]) as server:
        smtp = asmtp.AsyncSMTP(server.host, server.port, "me.example")
        await smtp.connect()
        assert (await smtp.xclient(name="mx.example")).code == 550
        assert smtp.has_extn("size")
        assert (await smtp.noop()).ok
        await smtp.close()
