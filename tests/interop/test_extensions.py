"""Every request with a type, at a server that offers what it needs."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import pytest

import asmtp
from asmtp import DeliverBy, Recipient
from tests.interop.servers import DOMAIN

if TYPE_CHECKING:
    from tests.interop.servers import MailServer

ALICE, BOB, CAROL, DAVE, NOBODY = (f"{name}@{DOMAIN}" for name in ("alice", "bob", "carol", "dave", "nobody"))


@pytest.fixture
def mark() -> str:
    return uuid.uuid4().hex


def client(server: MailServer, role: str = "plain", **options: Any) -> asmtp.AsyncSMTP:
    return asmtp.AsyncSMTP("127.0.0.1", server.ports[role], "client.lab.test", 20, **options)


def letter(mark: str, field: str = "") -> bytes:
    return f"Subject: {mark}\r\n{field}\r\nhi\r\n".encode()


# ---- DSN ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["postfix", "exim", "sendmail", "exim498"])
@pytest.mark.parametrize("chunking", [True, False])
async def test_a_report_for_one_of_the_recipients(
    name: str, chunking: bool, mark: str, request: pytest.FixtureRequest
) -> None:
    """NOTIFY and ORCPT for each recipient, RET and ENVID for all: the sender is told of the one who asked for it."""
    server: MailServer = request.getfixturevalue(name)
    recipients = [
        Recipient(BOB, notify="never"),
        Recipient(CAROL, notify=["success", "failure"], orcpt=f"rfc822;first+{mark}@{DOMAIN}"),
    ]
    async with client(server, chunking=chunking) as smtp:
        sent = await smtp.sendmail(ALICE, recipients, letter(mark), ret="hdrs", envid=f"envid+{mark}")
        assert sent == {}
    [report] = await server.arrived("alice", containing=mark.encode())
    report = report.lower()
    assert b"multipart/report" in report
    assert b"carol@" in report
    assert b"bob@" not in report.partition(b"message/rfc822")[0].partition(b"text/rfc822-headers")[0]
    assert f"first+{mark}".encode() in report or f"first+2b{mark}".encode() in report


# ---- PRDR ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("pipelining", [True, False])
@pytest.mark.parametrize("chunking", [True, False])
async def test_a_reply_for_each_recipient(exim: MailServer, mark: str, chunking: bool, pipelining: bool) -> None:
    refusing = letter(mark, f"X-Refuse: {CAROL}\r\n")
    async with client(exim, chunking=chunking, pipelining=pipelining) as smtp:
        refused = await smtp.sendmail(ALICE, [BOB, CAROL, DAVE], refusing, prdr=True)
        assert list(refused) == [CAROL]
        assert 500 <= refused[CAROL].code <= 599
        refused = await smtp.sendmail(ALICE, [BOB, NOBODY, DAVE], letter(mark), prdr=True)
        assert list(refused) == [NOBODY]
        with pytest.raises(asmtp.SMTPRecipientsRefused) as caught:
            await smtp.sendmail(ALICE, [BOB, CAROL], letter(mark, f"X-Refuse: {BOB} : {CAROL}\r\n"), prdr=True)
        assert list(caught.value.recipients) == [BOB, CAROL]
        assert await smtp.sendmail(ALICE, [BOB], letter(mark), prdr=True) == {}
    await exim.arrived("bob", 3, containing=mark.encode())
    assert await exim.arrived("dave", 2, containing=mark.encode())
    assert exim.messages("carol", containing=mark.encode()) == []


async def test_it_in_a_mailer(exim: MailServer, mark: str) -> None:
    async with asmtp.AsyncMailer(f"smtp://127.0.0.1:{exim.ports['plain']}") as mailer:
        receipt = await mailer.send(letter(mark, f"X-Refuse: {CAROL}\r\n"), ALICE, [BOB, CAROL, DAVE], prdr=True)
        assert list(receipt.accepted) == [BOB, DAVE]
        assert list(receipt.refused) == [CAROL]
        assert b"accepted for some recipients" in receipt.reply.message


# ---- REQUIRETLS ---------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["plain", "tls"])
async def test_require_tls(nodemailer: MailServer, role: str, mark: str) -> None:
    context = nodemailer.ssl_context()
    async with client(nodemailer, role, tls="implicit" if role == "tls" else "required", ssl_context=context) as smtp:
        assert await smtp.sendmail(ALICE, [BOB], letter(mark), require_tls=True) == {}
    [found] = await nodemailer.arrived("bob", containing=mark.encode())
    assert b'"requireTLS":true' in found


async def test_require_tls_in_a_mailer(nodemailer: MailServer, mark: str) -> None:
    url = f"smtps://127.0.0.1:{nodemailer.ports['tls']}"
    async with asmtp.AsyncMailer(url, ssl_context=nodemailer.ssl_context()) as mailer:
        receipt = await mailer.send(letter(mark), ALICE, [BOB, NOBODY], require_tls=True)
        assert (list(receipt.accepted), list(receipt.refused)) == ([BOB], [NOBODY])
    [found] = await nodemailer.arrived("bob", containing=mark.encode())
    assert b'"requireTLS":true' in found


def test_require_tls_of_the_facade(nodemailer: MailServer, mark: str) -> None:
    with asmtp.SMTP("127.0.0.1", nodemailer.ports["plain"], "client.lab.test", 20) as smtp:
        with pytest.raises(asmtp.SMTPNotSupportedError, match="^REQUIRETLS not supported by server"):
            smtp.sendmail(ALICE, [BOB], letter(mark), require_tls=True)
        smtp.starttls(context=nodemailer.ssl_context())
        assert smtp.sendmail(ALICE, [BOB], letter(mark), require_tls=True) == {}
    assert b'"requireTLS":true' in nodemailer.wait_for("bob", containing=mark.encode())[0]


async def test_it_is_not_asked_of_a_connection_that_was_not_verified(nodemailer: MailServer, mark: str) -> None:
    async with client(nodemailer, tls="opportunistic") as smtp:
        with pytest.raises(asmtp.SMTPNotSupportedError, match="REQUIRETLS needs .* a certificate that was verified"):
            await smtp.sendmail(ALICE, [BOB], letter(mark), require_tls=True)
        assert await smtp.sendmail(ALICE, [BOB], letter(mark)) == {}


# ---- DELIVERBY, LIMITS, SIZE --------------------------------------------------------------------


async def test_deliver_by(sendmail: MailServer, mark: str) -> None:
    async with client(sendmail) as smtp:
        by = DeliverBy(120, "return", trace=True)
        assert await smtp.sendmail(ALICE, [BOB], letter(mark), deliver_by=by) == {}
        with pytest.raises(asmtp.SMTPNotSupportedError, match="DELIVERBY: the server takes 60 seconds at least, not 5"):
            await smtp.sendmail(ALICE, [BOB], letter(mark), deliver_by=DeliverBy(5))
        assert await smtp.sendmail(ALICE, [BOB], letter(mark), deliver_by=DeliverBy(-10, "notify")) == {}
    await sendmail.arrived("bob", 2, containing=mark.encode())


async def test_limits(exim498: MailServer, mark: str) -> None:
    """RFC 9422: a message with more recipients than the server takes goes in several transactions."""
    async with client(exim498) as smtp:
        await smtp.ehlo()
        assert smtp.esmtp_features.limits == {"MAILMAX": 5, "RCPTMAX": 10}
    recipients = [*(f"unknown{n}@{DOMAIN}" for n in range(21)), ALICE, BOB, CAROL, DAVE]
    async with asmtp.AsyncMailer(f"smtp://127.0.0.1:{exim498.ports['plain']}") as mailer:
        for _ in range(7):  # more than it takes on one connection
            receipt = await mailer.send(letter(mark), BOB, [ALICE, CAROL])
            assert receipt.complete
            assert receipt.attempts == 1
        receipt = await mailer.send(letter(mark), BOB, recipients)
        assert set(receipt.accepted) == {ALICE, BOB, CAROL, DAVE}
        assert len(receipt.refused) == 21


# ---- SMTPUTF8, CHUNKING, what is not offered ----------------------------------------------------


@pytest.mark.parametrize("name", ["postfix", "exim"])
async def test_smtputf8_that_no_address_needs(name: str, mark: str, request: pytest.FixtureRequest) -> None:
    server: MailServer = request.getfixturevalue(name)
    async with client(server) as smtp:
        content = f"Subject: \u03b3\u03b5\u03b9\u03b1 {mark}\r\n\r\nhi\r\n".encode()
        assert await smtp.sendmail(ALICE, [BOB], content, smtputf8=True) == {}
    [found] = await server.arrived("bob", containing=mark.encode())
    assert f"Subject: \u03b3\u03b5\u03b9\u03b1 {mark}".encode() in found


@pytest.mark.parametrize(
    ("extension", "requests"),
    [
        ("FUTURERELEASE", {"hold_for": 60}),
        ("MT-PRIORITY", {"priority": 3}),
        ("REQUIRETLS", {"require_tls": True}),
        ("BINARYMIME", {"binary": True}),
        ("DELIVERBY", {"deliver_by": DeliverBy(60)}),
    ],
)
@pytest.mark.parametrize("name", ["postfix", "exim"])
async def test_what_is_not_offered(
    name: str, extension: str, requests: Any, mark: str, request: pytest.FixtureRequest
) -> None:
    """Nothing of the message is written, and the connection is in step."""
    server: MailServer = request.getfixturevalue(name)
    async with client(server) as smtp:
        with pytest.raises(asmtp.SMTPNotSupportedError, match=f"^{extension} not supported by server") as caught:
            await smtp.sendmail(ALICE, [BOB], letter(mark), **requests)
        assert caught.value.state == "not_sent"
        assert await smtp.sendmail(ALICE, [BOB], letter(mark)) == {}


# ---- XCLIENT ------------------------------------------------------------------------------------


async def test_xclient(postfix: MailServer, mark: str) -> None:
    async with client(postfix, "xclient") as smtp:
        reply = await smtp.xclient(addr="192.0.2.99", name="far.example", helo="far.example", login=None)
        assert reply.code == 220
        assert not smtp.esmtp_features
        assert await smtp.sendmail(ALICE, [BOB], letter(mark)) == {}
    [found] = await postfix.arrived("bob", containing=mark.encode())
    assert b"far.example [192.0.2.99]" in found


def test_xclient_of_the_facade(postfix: MailServer, mark: str) -> None:
    with asmtp.SMTP("127.0.0.1", postfix.ports["xclient"], "client.lab.test", 20) as smtp:
        assert smtp.xclient(addr="192.0.2.98", name=None)[0] == 220
        assert smtp.sendmail(ALICE, [BOB], letter(mark)) == {}
    assert b"192.0.2.98" in postfix.wait_for("bob", containing=mark.encode())[0]
