"""TLS in its four modes, and what happens to the password in each."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import asmtp
from asmtp import AsyncSMTP, AsyncSMTP_SSL
from tests.conftest import Certificates
from tests.fakes.embedded import PASSWORD, USER, Embedded, embedded
from tests.fakes.people import SENDER, WHO
from tests.fakes.relay import SHAPES, Relay, relaying
from tests.fakes.script import expect, fin, nothing_more, read_all, rst, scripted, send, start_tls, until

OFFER = [send("220 hi"), expect("ehlo me.example"), send("250-hi", "250-AUTH PLAIN", "250 STARTTLS")]
CREDENTIALS = {"username": USER, "password": PASSWORD}


def client(server: Any, **options: Any) -> AsyncSMTP:
    return AsyncSMTP(server.host, server.port, "me.example", **options)


@pytest.fixture
async def starttls(certificates: Certificates) -> AsyncIterator[Embedded]:
    async with embedded(Embedded(), tls=certificates.server) as server:
        yield server


@pytest.fixture
async def implicit(certificates: Certificates) -> AsyncIterator[Embedded]:
    async with embedded(Embedded(), tls=certificates.server, implicit=True) as server:
        yield server


@pytest.fixture
async def plain() -> AsyncIterator[Embedded]:
    """STARTTLS is not offered, or was taken out on the way."""
    async with embedded(Embedded()) as server:
        yield server


@pytest.fixture
def distrust(certificates: Certificates, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the server's certificate one of an unknown CA to a client without a context of its own."""
    monkeypatch.setattr("asmtp.client.link.default_context", lambda: certificates.wary)


# ---- it works ---------------------------------------------------------------------------------


@pytest.mark.parametrize("tls", [None, "required", "opportunistic"])
async def test_starttls_and_login(tls: Any, starttls: Embedded, certificates: Certificates) -> None:
    async with client(starttls, tls=tls, ssl_context=certificates.trusting, **CREDENTIALS) as smtp:
        assert await smtp.sendmail(SENDER, WHO, b"hi") == {}
    assert starttls.encrypted == [True]
    assert starttls.logins == [("CRAM-MD5", True)]
    # What was offered in plaintext is forgotten.
    assert starttls.hellos == 2


async def test_implicit_tls_and_login(implicit: Embedded, certificates: Certificates) -> None:
    async with client(implicit, tls="implicit", ssl_context=certificates.trusting, **CREDENTIALS) as smtp:
        assert await smtp.sendmail(SENDER, WHO, b"hi") == {}
    async with AsyncSMTP_SSL(implicit.host, implicit.port, "me.example", ssl_context=certificates.trusting) as smtp:
        assert await smtp.sendmail(SENDER, WHO, (b"x" * 70 + b"\r\n") * 14_000) == {}
    assert implicit.encrypted == [True, True]
    assert implicit.logins == [("CRAM-MD5", True)]
    assert implicit.letters[1].content == (b"x" * 70 + b"\r\n") * 14_000


async def test_what_there_is_to_see_of_tls(starttls: Embedded, certificates: Certificates) -> None:
    async with client(starttls) as smtp:
        sock = smtp.sock
        assert sock is not None
        assert (sock.getpeercert(), sock.cipher(), sock.version()) == (None, None, None)
        await smtp.starttls(context=certificates.trusting)
        sock = smtp.sock
        assert sock is not None
        assert ("IP Address", "127.0.0.1") in sock.getpeercert()["subjectAltName"]
        assert sock.getpeercert(True)[:1] == b"\x30"
        assert str(sock.version()).startswith("TLSv1")
        assert len(sock.cipher() or ()) == 3


async def test_no_tls_unless_asked_for(starttls: Embedded) -> None:
    async with client(starttls) as smtp:
        await smtp.sendmail(SENDER, WHO, b"hi")
    async with client(starttls, tls="none", **CREDENTIALS) as smtp:
        await smtp.sendmail(SENDER, WHO, b"hi")
    assert starttls.encrypted == [False, False]
    assert starttls.logins == [("CRAM-MD5", True)]


async def test_starttls_by_hand(starttls: Embedded, certificates: Certificates) -> None:
    async with client(starttls) as smtp:
        reply = await smtp.starttls(context=certificates.trusting)
        assert reply.code == 220
        assert (smtp.ehlo_resp, smtp.esmtp_features, smtp.does_esmtp) == (None, {}, False)
        await smtp.sendmail(SENDER, WHO, b"hi")
        assert not smtp.has_extn("starttls")
        with pytest.raises(asmtp.SMTPNotSupportedError):
            await smtp.starttls(context=certificates.trusting)
    assert starttls.encrypted == [True]


async def test_a_client_certificate_from_files(
    starttls: Embedded, certificates: Certificates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "client.pem"
    certificates.ca.issue_cert("client.example").private_key_and_cert_chain_pem.write_to_path(bundle)
    certificates.ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    async with client(starttls) as smtp:
        with pytest.warns(DeprecationWarning, match="keyfile and certfile are deprecated"):
            await smtp.starttls(None, str(bundle))
        assert (await smtp.noop()).ok


async def test_the_name_to_verify_can_be_another(certificates: Certificates) -> None:
    context = certificates.server_for("mx.example")
    async with embedded(Embedded(), tls=context) as server:
        with pytest.raises(ssl.SSLCertVerificationError, match="IP address mismatch"):
            await client(server, tls="required", ssl_context=certificates.trusting).connect()
        named = {"ssl_context": certificates.trusting, "server_hostname": "mx.example"}
        async with client(server, tls="required", **named) as smtp:
            await smtp.sendmail(SENDER, WHO, b"hi")
        async with client(server) as smtp:
            await smtp.starttls(context=certificates.trusting, server_hostname="mx.example")
    async with (
        embedded(Embedded(), tls=context, implicit=True) as server,
        client(server, tls="implicit", **named) as smtp,
    ):
        await smtp.sendmail(SENDER, WHO, b"hi")


# ---- certificates that cannot be verified -----------------------------------------------------


@pytest.mark.usefixtures("distrust")
async def test_required_and_an_unknown_ca(starttls: Embedded) -> None:
    smtp = client(starttls, **CREDENTIALS)
    with pytest.raises(ssl.SSLCertVerificationError):
        await smtp.connect()
    assert not smtp.is_connected
    assert starttls.logins == []


@pytest.mark.usefixtures("distrust")
async def test_implicit_and_an_unknown_ca(implicit: Embedded) -> None:
    smtp = client(implicit, tls="implicit", **CREDENTIALS)
    with pytest.raises(ssl.SSLCertVerificationError):
        await smtp.connect()
    assert not smtp.is_connected
    assert implicit.logins == []


@pytest.mark.usefixtures("distrust")
async def test_starttls_by_hand_and_an_unknown_ca(starttls: Embedded) -> None:
    smtp = client(starttls)
    await smtp.connect()
    with pytest.raises(ssl.SSLCertVerificationError):
        await smtp.starttls()
    assert not smtp.is_connected
    with pytest.raises(asmtp.SMTPServerDisconnected):
        await smtp.login(USER, PASSWORD)
    await smtp.close()


@pytest.mark.usefixtures("distrust")
async def test_opportunistic_and_an_unknown_ca(starttls: Embedded, caplog: pytest.LogCaptureFixture) -> None:
    """RFC 7435: encrypted mail to whoever it is; but no password."""
    with caplog.at_level(logging.WARNING, "asmtp"):
        async with client(starttls, tls="opportunistic", **CREDENTIALS) as smtp:
            assert await smtp.sendmail(SENDER, WHO, b"hi") == {}
    assert starttls.encrypted == [True]
    assert starttls.logins == []
    assert "certificate not verified" in caplog.text
    assert "not logging in" in caplog.text
    assert PASSWORD not in caplog.text


# ---- STARTTLS is not offered ------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"tls": "required"}, CREDENTIALS, {"tls": "required", **CREDENTIALS}])
async def test_starttls_stripped(options: Any, plain: Embedded) -> None:
    smtp = client(plain, **options)
    with pytest.raises(asmtp.SMTPNotSupportedError, match="STARTTLS"):
        await smtp.connect()
    assert not smtp.is_connected
    assert plain.logins == []


async def test_starttls_stripped_under_opportunistic(plain: Embedded, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "asmtp"):
        async with client(plain, tls="opportunistic", **CREDENTIALS) as smtp:
            assert await smtp.sendmail(SENDER, WHO, b"hi") == {}
    assert plain.encrypted == [False]
    assert plain.logins == []
    assert "not logging in" in caplog.text


async def test_starttls_refused() -> None:
    async with scripted([*OFFER, expect("STARTTLS"), send("454 not now"), nothing_more]) as server:
        with pytest.raises(asmtp.SMTPResponseException) as caught:
            await client(server, tls="required", **CREDENTIALS).connect()
        assert (caught.value.smtp_code, caught.value.smtp_error) == (454, b"not now")


@pytest.mark.parametrize("credentials", [{}, CREDENTIALS])
async def test_opportunistic_starttls_refused(credentials: Any, caplog: pytest.LogCaptureFixture) -> None:
    """RFC 7435: the mail goes on in the clear, the password does not."""
    script = [*OFFER, expect("STARTTLS"), send("454 not now"), expect("noop"), send("250 ok"), nothing_more]
    async with scripted(script) as server:
        smtp = client(server, tls="opportunistic", **credentials)
        await smtp.connect()
        assert (await smtp.noop()).ok
        await smtp.close()
    assert "refused with 454; going on without" in caplog.text


async def test_after_a_refused_starttls_by_hand_the_connection_is_good() -> None:
    script = [*OFFER, expect("STARTTLS"), send("454 not now"), expect("noop"), send("250 ok"), nothing_more]
    async with scripted(script) as server:
        smtp = client(server)
        await smtp.connect()
        with pytest.raises(asmtp.SMTPResponseException):
            await smtp.starttls()
        assert (await smtp.noop()).ok
        await smtp.close()


# ---- what goes wrong in between ---------------------------------------------------------------


@pytest.mark.parametrize("behind", ["250 OK", "250-smtp\r\n250 AUTH PLAIN", b"2", b"\x16\x03\x01"])
async def test_plaintext_behind_the_220(behind: Any, certificates: Certificates) -> None:
    """RFC 3207 §6, CVE-2011-0411: nothing that came in plaintext counts under TLS."""
    script = [*OFFER, expect("STARTTLS"), send("220 go", behind), read_all]
    async with scripted(script) as server:
        smtp = client(server, ssl_context=certificates.trusting, **CREDENTIALS)
        with pytest.raises(asmtp.SMTPProtocolError, match="plaintext"):
            await smtp.connect()
        assert not smtp.is_connected
    assert PASSWORD.encode() not in server.received


@pytest.mark.parametrize("end", [fin, rst])
async def test_the_server_goes_instead_of_a_handshake(end: Any, certificates: Certificates) -> None:
    async with scripted([*OFFER, expect("STARTTLS"), send("220 go"), end]) as server:
        smtp = client(server, tls="required", ssl_context=certificates.trusting)
        with pytest.raises((asmtp.SMTPServerDisconnected, ssl.SSLError)):
            await smtp.connect()
        assert not smtp.is_connected
    async with scripted([end]) as server:
        with pytest.raises((asmtp.SMTPServerDisconnected, ssl.SSLError)):
            await client(server, tls="implicit", ssl_context=certificates.trusting).connect()


async def test_closed_by_another_task_in_the_handshake(certificates: Certificates) -> None:
    async with scripted([*OFFER, expect("STARTTLS"), send("220 go"), read_all]) as server:
        smtp = client(server, tls="required", ssl_context=certificates.trusting)
        connecting = asyncio.create_task(smtp.connect())
        await until(lambda: server.peers and b"\x16\x03" in server.peer.received)
        smtp.close()
        with pytest.raises(asmtp.SMTPServerDisconnected):
            await connecting
        assert not smtp.is_connected


async def test_a_server_that_does_not_speak_tls(certificates: Certificates) -> None:
    async with scripted([send("220 hi"), read_all]) as server:
        with pytest.raises(ssl.SSLError):
            await client(server, tls="implicit", ssl_context=certificates.trusting).connect()


async def test_ehlo_is_said_again_and_is_believed(certificates: Certificates) -> None:
    """AUTH was only offered in plaintext: so there is none."""
    script = [
        *OFFER, expect("STARTTLS"), send("220 go"), start_tls(certificates.server),
        expect("ehlo me.example"), send("250 hi"), nothing_more,
    ]  # fmt: skip
    async with scripted(script) as server:
        smtp = client(server, ssl_context=certificates.trusting, **CREDENTIALS)
        with pytest.raises(asmtp.SMTPNotSupportedError, match="AUTH"):
            await smtp.connect()


async def test_the_server_cuts_the_connection_under_tls(certificates: Certificates) -> None:
    script = [
        *OFFER, expect("STARTTLS"), send("220 go"), start_tls(certificates.server),
        expect("noop"), rst,
    ]  # fmt: skip
    async with scripted(script) as server:
        smtp = client(server, ssl_context=certificates.trusting, tls="required")
        await smtp.connect()
        with pytest.raises(asmtp.SMTPServerDisconnected):
            await smtp.noop()
        await smtp.close()


# ---- an end in the middle ---------------------------------------------------------------------


class Struck(BaseException):
    """The exception that a signal handler raises."""


@pytest.mark.usefixtures("bdat_at_once")
async def test_what_was_struck_as_tls_wrote_it_is_not_written_again(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transport of asyncio's that is closed writes once more what it has not seen leave."""
    armed: list[bytes] = []
    write = ssl.SSLObject.write

    def struck(self: ssl.SSLObject, data: Any) -> int:
        written = write(self, data)
        if armed and armed[0] in bytes(data):
            armed.clear()
            raise Struck
        return written

    monkeypatch.setattr(ssl.SSLObject, "write", struck)
    async with relaying(Relay(SHAPES["both"]), tls=certificates.server) as relay:
        with pytest.raises(Struck):
            async with AsyncSMTP_SSL(relay.host, relay.port, "me", ssl_context=certificates.trusting) as smtp:
                await smtp.ehlo()
                armed.append(b"X-Id")
                await smtp.sendmail(SENDER, WHO, b"X-Id: 1\r\n\r\nx")
        await relay.quiet()
    assert len(relay.letters) <= 1
