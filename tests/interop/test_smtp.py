"""AsyncSMTP at Postfix and Exim: recipients, TLS, logging in, limits, message objects, beginning again."""

from __future__ import annotations

import asyncio
import email
import email.policy
import ssl
from email.message import EmailMessage
from typing import TYPE_CHECKING, Any

import pytest

import asmtp
from tests.interop.mail import ALICE, BOB, CAROL, NOBODY, SENDER, TEMPFAIL, Letter, connect, connected, settled
from tests.interop.servers import DOMAIN, MAX_SIZE, UTF8_LOCAL

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.interop.servers import MailServer

CREDENTIALS = {"username": "tester", "password": "s3cret-Pa55"}


def submission(server: MailServer, **options: Any) -> asmtp.AsyncSMTP:
    """A client of the port where one logs in, behind STARTTLS."""
    context = server.ssl_context()
    return asmtp.AsyncSMTP(
        server.host, server.ports["submission"], "client.example", 30, ssl_context=context, **options
    )


# ---- recipients -----------------------------------------------------------------------------


async def test_some_recipients_are_refused(smtp_server: MailServer, shape: str) -> None:
    letter = Letter()
    async with connected(smtp_server, shape) as client:
        to = [NOBODY, ALICE, TEMPFAIL, BOB]
        refused = await client.sendmail(letter.sender, to, letter.content)
        assert {who: reply.code for who, reply in refused.items()} == {NOBODY: 550, TEMPFAIL: 450}
        assert b"5.1.1" in refused[NOBODY].message
        assert b"4.2.1" in refused[TEMPFAIL].message
        await settled(smtp_server, client)
    await letter.found(smtp_server, "alice")
    await letter.found(smtp_server, "bob")
    assert not smtp_server.messages("nobody")


async def test_all_recipients_are_refused(smtp_server: MailServer, shape: str) -> None:
    letter, after = Letter(), Letter()
    async with connected(smtp_server, shape) as client:
        with pytest.raises(asmtp.SMTPRecipientsRefused) as caught:
            await client.sendmail(letter.sender, [NOBODY, TEMPFAIL], letter.content)
        assert {who: code for who, (code, _) in caught.value.recipients.items()} == {NOBODY: 550, TEMPFAIL: 450}
        assert caught.value.state == "refused"
        assert caught.value.transient
        # Everything is in its place afterwards.
        assert (await client.mail(SENDER)).code == 250
        assert (await client.rcpt(ALICE)).code == 250
        assert (await client.rset()).code == 250
        assert await client.sendmail(after.sender, [BOB], after.content) == {}
        await settled(smtp_server, client)
    await after.found(smtp_server, "bob")
    assert letter.nowhere(smtp_server)


async def test_null_sender(smtp_server: MailServer) -> None:
    letter = Letter(sender="")
    async with connected(smtp_server) as client:
        assert await client.sendmail("<>", [ALICE], letter.content) == {}
    await letter.found(smtp_server)


async def test_by_hand(smtp_server: MailServer) -> None:
    letter, after = Letter(b"\r\na\n.\r\nb"), Letter()
    async with connected(smtp_server) as client:
        assert (await client.ehlo()).code == 250
        assert (await client.mail(SENDER, ["BODY=8BITMIME"])).code == 250
        assert (await client.rcpt(NOBODY)).code == 550
        assert (await client.rcpt(ALICE)).code == 250
        assert (await client.data(letter.content)).code == 250
        assert (await client.verify(ALICE)).code in (252, 250)
        assert (await client.docmd("XYZZY")).code in (500, 502)
        assert await client.sendmail(after.sender, [BOB], after.content) == {}
    await letter.found(smtp_server)
    await after.found(smtp_server, "bob")


async def test_delivery_status_options(smtp_server: MailServer) -> None:
    letter = Letter()
    options = ["RET=HDRS", "ENVID=envelope-1"], ["NOTIFY=NEVER", f"ORCPT=rfc822;{ALICE}"]
    async with connected(smtp_server) as client:
        assert await client.sendmail(letter.sender, [ALICE], letter.content, *options) == {}
    await letter.found(smtp_server)


# ---- SMTPUTF8 -------------------------------------------------------------------------------


async def test_international_recipient(smtp_server: MailServer, shape: str) -> None:
    letter = Letter("\r\nΓειά σου\r\n".encode())
    async with connected(smtp_server, shape) as client:
        assert await client.sendmail(letter.sender, [f"{UTF8_LOCAL}@{DOMAIN}"], letter.content) == {}
    await letter.found(smtp_server, "utf8")


async def test_international_headers(smtp_server: MailServer) -> None:
    message = EmailMessage()
    message["From"] = f"{UTF8_LOCAL} <{UTF8_LOCAL}@{DOMAIN}>"
    message["To"] = f"{UTF8_LOCAL}@{DOMAIN}"
    message["Subject"] = "Θέμα"
    message.set_content("Γειά σου\n")
    async with connected(smtp_server) as client:
        assert await client.send_message(message) == {}
    (stored,) = await smtp_server.arrived("utf8", containing="Subject: Θέμα\n".encode())
    assert stored.lower().startswith(f"return-path: <{UTF8_LOCAL}@{DOMAIN}>\n".encode())


# ---- TLS, logging in ------------------------------------------------------------------------


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN", "CRAM-MD5"])
async def test_login(smtp_server: MailServer, mechanism: str) -> None:
    letter = Letter()
    async with submission(smtp_server, tls="required") as client:
        await client.ehlo()
        assert set(client.esmtp_features["auth"].split()) == {"PLAIN", "LOGIN", "CRAM-MD5"}
        client.esmtp_features["auth"] = mechanism
        written: list[bytes] = []
        client.trace = lambda direction, data: written.append(data)
        reply = await client.login(smtp_server.username, smtp_server.password)
        client.trace = None
        assert reply.code == 235
        assert not any(smtp_server.password.encode() in each for each in written)
        assert await client.sendmail(letter.sender, [ALICE], letter.content) == {}
    await letter.found(smtp_server)


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN", "CRAM-MD5"])
async def test_wrong_password(smtp_server: MailServer, mechanism: str) -> None:
    async with submission(smtp_server, tls="required") as client:
        await client.ehlo()
        client.esmtp_features["auth"] = mechanism
        with pytest.raises(asmtp.SMTPAuthenticationError) as caught:
            await client.login(smtp_server.username, "wr0ng-secret")
        assert caught.value.smtp_code == 535
        assert "wr0ng-secret" not in f"{caught.value!r}"
        # The connection is in step, and another try is possible.
        assert (await client.noop()).code == 250
        assert (await client.login(smtp_server.username, smtp_server.password)).code == 235


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN", "CRAM-MD5"])
async def test_authobject(smtp_server: MailServer, mechanism: str) -> None:
    async with submission(smtp_server) as client:
        assert (await client.starttls()).code == 220
        await client.ehlo()
        client.user, client.password = smtp_server.username, smtp_server.password
        authobject = getattr(client, "auth_" + mechanism.lower().replace("-", "_"))
        assert (await client.auth(mechanism, authobject)).code == 235


async def test_credentials_in_the_constructor(smtp_server: MailServer) -> None:
    letter = Letter()
    async with submission(smtp_server, **CREDENTIALS) as client:
        assert await client.sendmail(letter.sender, [ALICE], letter.content) == {}
        features = client.esmtp_features
        assert "starttls" not in features  # what was said before TLS is forgotten
    await letter.found(smtp_server)
    with pytest.raises(asmtp.SMTPAuthenticationError):
        await submission(smtp_server, **CREDENTIALS | {"password": "wrong"}).connect()


async def test_no_password_without_tls(smtp_server: MailServer) -> None:
    """Neither server offers AUTH on an unprotected connection."""
    with pytest.raises(asmtp.SMTPNotSupportedError):
        await submission(smtp_server, tls="none", **CREDENTIALS).connect()


@pytest.mark.parametrize("wrong", ["authority", "name"])
@pytest.mark.parametrize("role", ["submission", "tls"])
async def test_certificate_is_verified(smtp_server: MailServer, role: str, wrong: str) -> None:
    options: dict[str, Any] = {"tls": "implicit" if role == "tls" else "required"}
    if wrong == "name":
        options |= {"ssl_context": smtp_server.ssl_context(), "server_hostname": "mail.example"}
    client = asmtp.AsyncSMTP(smtp_server.host, smtp_server.ports[role], "client.example", 30, **options)
    try:
        with pytest.raises(ssl.SSLCertVerificationError):
            await client.connect()
        assert not client.is_connected
    finally:
        await client.close()


async def test_opportunistic_tls(smtp_server: MailServer) -> None:
    """A certificate that cannot be verified does not stop the mail."""
    letter = Letter()
    async with connected(smtp_server, tls="opportunistic") as client:
        assert await client.sendmail(letter.sender, [ALICE], letter.content) == {}
    (stored,) = await smtp_server.arrived("alice", containing=letter.marker)
    assert b"with esmtps" in stored.lower()
    letter.check(smtp_server, stored)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
async def test_implicit_tls(smtp_server: MailServer, host: str) -> None:
    letter = Letter()
    options: dict[str, Any] = {"ssl_context": smtp_server.ssl_context(), "local_hostname": "client.example"}
    async with asmtp.AsyncSMTP_SSL(host, smtp_server.ports["tls"], **options) as client:
        await client.login(smtp_server.username, smtp_server.password)
        assert await client.sendmail(letter.sender, [ALICE], letter.content) == {}
    await letter.found(smtp_server)


@pytest.mark.parametrize("role", ["submission", "tls"])
@pytest.mark.parametrize("chunking", [True, False])
async def test_many_over_tls(smtp_server: MailServer, role: str, chunking: bool) -> None:
    letters = [Letter(b"\r\n.\r\n" + b".%d\r\n" % number * 4000) for number in range(10)]  # some are streamed
    tls = "implicit" if role == "tls" else "required"
    options: dict[str, Any] = {"tls": tls, "ssl_context": smtp_server.ssl_context(), "chunking": chunking}
    async with asmtp.AsyncSMTP(smtp_server.host, smtp_server.ports[role], "client.example", 30, **options) as client:
        await asyncio.gather(*(client.sendmail(letter.sender, [ALICE], letter.content) for letter in letters))
    for letter in letters:
        await letter.found(smtp_server)


# ---- SIZE -----------------------------------------------------------------------------------


async def test_size_is_known_to_be_too_large(smtp_server: MailServer, tmp_path: Path) -> None:
    """Nothing is written then, but the next message is."""
    letter = Letter()
    with (tmp_path / "huge.eml").open("wb") as file:
        file.truncate(MAX_SIZE + 1)
    async with connected(smtp_server) as client:
        await client.ehlo()
        written: list[bytes] = []
        client.trace = lambda direction, data: written.append(data)
        with pytest.raises(asmtp.SMTPSenderRefused) as caught:
            await client.sendmail(SENDER, [ALICE], tmp_path / "huge.eml")
        assert (caught.value.smtp_code, caught.value.state) == (552, "refused")
        assert not written
        assert await client.sendmail(letter.sender, [ALICE], letter.content) == {}
    await letter.found(smtp_server)


async def test_server_refuses_the_size(smtp_server: MailServer, shape: str) -> None:
    """MAIL is answered 552; the message that is right behind is not affected."""
    letter, after = Letter(), Letter()
    async with connected(smtp_server, shape) as client:
        first = client.sendmail(letter.sender, [ALICE], letter.content, [f"SIZE={MAX_SIZE + 1}"])
        second = client.sendmail(after.sender, [BOB], after.content)
        refusal, result = await asyncio.gather(first, second, return_exceptions=True)
        assert isinstance(refusal, asmtp.SMTPSenderRefused)
        assert refusal.smtp_code == 552
        assert result == {}
        await settled(smtp_server, client)
    await after.found(smtp_server, "bob")
    assert letter.nowhere(smtp_server)


async def test_server_refuses_the_content(smtp_server: MailServer, shape: str) -> None:
    """The size is known to nobody before it is exceeded."""
    letter, after = Letter(), Letter()

    async def too_much() -> AsyncIterator[bytes]:
        yield letter.content
        line = b"x" * 70 + b"\r\n"
        for _ in range(MAX_SIZE // 1_000_000 + 2):
            yield line * (1_000_000 // len(line))

    async with connected(smtp_server, shape) as client:
        with pytest.raises(asmtp.SMTPDataError) as caught:
            await client.sendmail(letter.sender, [ALICE], too_much())
        assert (caught.value.smtp_code, caught.value.state) == (552, "refused")
        if not client.is_connected:
            await client.connect()
        assert await client.sendmail(after.sender, [BOB], after.content) == {}
        await settled(smtp_server, client)
    await after.found(smtp_server, "bob")
    assert letter.nowhere(smtp_server)


# ---- message objects ------------------------------------------------------------------------


def with_attachments() -> EmailMessage:
    message = EmailMessage()
    message["From"] = f"Sénder <{SENDER}>"
    message["To"] = f"Alice <{ALICE}>, {NOBODY}"
    message["Cc"] = BOB
    message["Bcc"] = CAROL
    message["Subject"] = "Grüße, 世界"
    message.set_content("From here on\n.\n..dots and 世界\n" + "long " * 300, cte="8bit")
    message.add_alternative("<p>From</p>\n.\n", subtype="html")
    message.add_attachment(bytes(range(256)) * 400, maintype="application", subtype="octet-stream", filename="β.bin")
    message.add_attachment("a,b\r\n.\r\n1,2\r\n", subtype="csv", filename="t.csv")
    return message


def parts(message: EmailMessage) -> list[tuple[str, str | None, bytes]]:
    found = []
    for part in message.walk():
        if not part.is_multipart():
            payload = part.get_payload(decode=True)
            assert isinstance(payload, bytes)
            found.append((part.get_content_type(), part.get_filename(), payload.replace(b"\r\n", b"\n")))
    return found


async def test_send_message(smtp_server: MailServer, shape: str) -> None:
    message = with_attachments()
    message["Message-ID"] = f"<{(marker := Letter().marker).decode()}@client.example>"
    async with connected(smtp_server, shape) as client:
        refused = await client.send_message(message)
    assert {who: reply.code for who, reply in refused.items()} == {NOBODY: 550}
    for mailbox in ("alice", "bob", "carol"):
        (stored,) = await smtp_server.arrived(mailbox, containing=marker)
        assert stored.lower().startswith(f"return-path: <{SENDER}>\n".encode())
        parsed = email.message_from_bytes(stored, policy=email.policy.default)
        assert isinstance(parsed, EmailMessage)
        assert parts(parsed) == parts(message)
        assert parsed["Bcc"] is None
        for name in ("From", "To", "Cc", "Subject", "Message-ID"):
            assert parsed[name] == message[name]


# ---- beginning again ------------------------------------------------------------------------


async def test_quit_and_connect_again(smtp_server: MailServer, shape: str) -> None:
    letters = [Letter(), Letter(), Letter()]
    client = connect(smtp_server, shape)
    for letter in letters:
        async with client:
            assert await client.sendmail(letter.sender, [ALICE], letter.content) == {}
        assert not client.is_connected
    await client.connect()
    assert (await client.quit()).code == 221
    with pytest.raises(asmtp.SMTPServerDisconnected):
        await client.noop()
    for letter in letters:
        await letter.found(smtp_server)


async def test_quit_waits_for_what_is_under_way(smtp_server: MailServer) -> None:
    letters = [Letter() for _ in range(20)]
    client = connect(smtp_server)
    await client.connect()
    await client.ehlo()
    sending = [asyncio.create_task(client.sendmail(each.sender, [ALICE], each.content)) for each in letters]
    await asyncio.sleep(0)
    assert (await client.quit()).code == 221
    assert await asyncio.gather(*sending) == [{}] * len(letters)
    for letter in letters:
        await letter.found(smtp_server)


async def test_cancelled_tasks(smtp_server: MailServer, shape: str) -> None:
    """Some of those who wait are cancelled; the others are told what became of their own message."""
    letters = [Letter() for _ in range(40)]
    client = connect(smtp_server, shape)
    await client.connect()
    await client.ehlo()
    sending = [asyncio.create_task(client.sendmail(each.sender, [ALICE], each.content)) for each in letters]
    await asyncio.sleep(0.005)
    for task in sending[1::3]:
        task.cancel()
    results = await asyncio.gather(*sending, return_exceptions=True)
    await client.close()
    async with client:
        await settled(smtp_server, client)
    for letter, result in zip(letters, results, strict=True):
        stored = smtp_server.messages("alice", containing=letter.marker)
        assert len(stored) <= 1
        if result == {}:
            await letter.found(smtp_server)
        elif isinstance(result, asmtp.SMTPException):
            assert result.state in ("not_sent", "in_doubt", None)
            assert result.state == "in_doubt" or not stored
        else:
            assert isinstance(result, asyncio.CancelledError)
