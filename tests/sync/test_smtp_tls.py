"""The blocking facade: TLS beside smtplib's, and the constructor's options."""

from __future__ import annotations

import asyncio
import pathlib
import re
import smtplib
import socket
import ssl
import sys
from collections.abc import Iterator
from typing import Any

import pytest

import asmtp
from asmtp.transport.tls import default_context
from tests.conftest import Certificates
from tests.fakes.background import in_background
from tests.fakes.embedded import PASSWORD, USER, Embedded, embedded
from tests.fakes.relay import Relay
from tests.fakes.script import expect, fin, nothing_more, send, silence
from tests.sync.facade import BOTH, A, B, connected, nothing_left, relay_at, script_at, told


@pytest.fixture(autouse=True)
def loops(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[asyncio.AbstractEventLoop]]:
    with nothing_left(monkeypatch) as made:
        yield made


@pytest.fixture
def trusted_by_default(
    certificates: Certificates, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """The CA is one of the system's."""
    certificates.ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    default_context.cache_clear()
    yield
    default_context.cache_clear()


def unverified() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


@BOTH
def test_a_server_that_closes_in_the_handshake(module: Any) -> None:
    script = [
        send("220 hi"),
        expect("ehlo client.example"),
        send("250-hi\r\n250 STARTTLS"),
        expect("STARTTLS"),
        send("220 go"),
        fin,
    ]
    with script_at(script) as server, module.SMTP("127.0.0.1", server.port, "client.example") as smtp:
        with pytest.raises(OSError) as caught:  # noqa: PT011
            smtp.starttls()
        if module is asmtp:
            assert isinstance(caught.value, asmtp.SMTPServerDisconnected)
            assert re.search("closed in the TLS handshake: .|closed$", str(caught.value))
        smtp.close()


# ---- SMTP_SSL -----------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("verified", [True, False], ids=["trusting", "unverified"])
def test_smtp_ssl(module: Any, verified: bool, certificates: Certificates) -> None:
    context = certificates.trusting if verified else unverified()
    with relay_at(tls=certificates.server) as relay:
        with module.SMTP_SSL("127.0.0.1", relay.port, "client.example", context=context) as smtp:
            assert smtp.sendmail(A, B, "hi") == {}
            assert smtp.sock.getpeername() == ("127.0.0.1", relay.port)
            assert smtp.context is context
            assert smtp.default_port == 465
        assert smtp.sock is None
        smtp.connect("127.0.0.1", relay.port)
        assert smtp.sendmail(A, B, "again") == {}
        assert smtp.quit() == (221, b"2.0.0 bye")
        positional = module.SMTP_SSL(f"127.0.0.1:{relay.port}", context=unverified(), timeout=30, local_hostname="me")
        assert positional.noop() == (250, b"2.0.0 ok")
        positional.close()
    assert len(relay.letters) == 2


@BOTH
def test_a_certificate_that_cannot_be_verified(module: Any, certificates: Certificates) -> None:
    handler = Embedded()
    with in_background(embedded(handler, tls=certificates.server, implicit=True)):
        with pytest.raises(ssl.SSLCertVerificationError) as caught:
            module.SMTP_SSL("127.0.0.1", handler.port, "client.example", context=certificates.wary)
        assert caught.value.verify_code in (19, 20, 21)
        assert caught.value.reason == "CERTIFICATE_VERIFY_FAILED"
        assert isinstance(caught.value, OSError)


def test_certificates_are_verified_unless_a_context_says_otherwise(certificates: Certificates) -> None:
    handler = Embedded()
    with in_background(embedded(handler, tls=certificates.server, implicit=True)):
        with pytest.raises(ssl.SSLCertVerificationError):
            asmtp.SMTP_SSL("127.0.0.1", handler.port, "client.example")
        with smtplib.SMTP_SSL("127.0.0.1", handler.port, "client.example") as smtp:
            assert smtp.noop()[0] == 250


@BOTH
def test_a_certificate_for_another_host(module: Any, certificates: Certificates) -> None:
    handler = Embedded()
    mismatch = pytest.raises(ssl.SSLCertVerificationError, match="IP address mismatch")
    with in_background(embedded(handler, tls=certificates.server_for("other.example"), implicit=True)):
        with mismatch:
            module.SMTP_SSL("127.0.0.1", handler.port, context=certificates.trusting, local_hostname="me")
        options: Any = {"server_hostname": "other.example", "context": certificates.trusting}
        if module is asmtp:
            asmtp.SMTP_SSL("127.0.0.1", handler.port, **options).quit()


@BOTH
def test_a_context_set_later(module: Any, certificates: Certificates) -> None:
    with relay_at(tls=certificates.server) as relay:
        smtp = module.SMTP_SSL(local_hostname="client.example")
        smtp._host = "127.0.0.1"  # which smtplib takes from the constructor only
        smtp.context = certificates.trusting
        assert smtp.context is certificates.trusting
        assert smtp.connect("127.0.0.1", relay.port)[0] == 220
        assert smtp.quit() == (221, b"2.0.0 bye")


@pytest.mark.usefixtures("trusted_by_default")
def test_the_systems_certificates(certificates: Certificates) -> None:
    with relay_at(tls=certificates.server) as relay, asmtp.SMTP_SSL("127.0.0.1", relay.port, "me.example") as smtp:
        smtp.noop()
        assert smtp.context.verify_mode == ssl.CERT_REQUIRED
        assert smtp.context.check_hostname
        assert smtp.context.minimum_version >= ssl.TLSVersion.TLSv1_2


@BOTH
def test_no_tls_at_the_other_end(module: Any, certificates: Certificates) -> None:
    with relay_at() as relay, pytest.raises(ssl.SSLError):
        module.SMTP_SSL("127.0.0.1", relay.port, context=certificates.trusting, local_hostname="me")
    assert relay.commands == []


def test_tls_at_the_other_end(monkeypatch: pytest.MonkeyPatch) -> None:
    with script_at([silence]) as server:
        monkeypatch.setattr(asmtp.transport.tls, "WITH_TLS", {server.port})
        with pytest.raises(
            asmtp.SMTPTimeoutError, match=r"the greeting .*; port \d+ begins with TLS: smtps://, SMTP_SSL"
        ):
            asmtp.SMTP(server.host, server.port, "me.example", timeout=0.05)


old_arguments = pytest.mark.parametrize(
    "module", [pytest.param(smtplib, marks=pytest.mark.skipif(sys.version_info >= (3, 12), reason="removed")), asmtp]
)


@pytest.fixture
def files(certificates: Certificates, tmp_path: pathlib.Path) -> tuple[str, str]:
    """A client's key and certificate."""
    issued = certificates.ca.issue_cert("client.example")
    issued.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    for blob in issued.cert_chain_pems:
        blob.write_to_path(str(tmp_path / "cert.pem"), append=True)
    return str(tmp_path / "key.pem"), str(tmp_path / "cert.pem")


@old_arguments
@pytest.mark.usefixtures("trusted_by_default")
@pytest.mark.parametrize("starttls", [False, True], ids=["SMTP_SSL", "starttls"])
def test_keyfile_and_certfile(module: Any, starttls: bool, files: tuple[str, str], certificates: Certificates) -> None:
    keyfile, certfile = files
    server = certificates.server_for("127.0.0.1")
    server.verify_mode = ssl.CERT_REQUIRED
    certificates.ca.configure_trust(server)
    handler = Embedded()
    with in_background(embedded(handler, tls=server, implicit=not starttls)):
        if starttls:
            smtp = module.SMTP("127.0.0.1", handler.port, "client.example")
            with pytest.warns(DeprecationWarning, match="keyfile and certfile are deprecated") as caught:
                assert smtp.starttls(keyfile, certfile)[0] == 220
        else:
            with pytest.warns(DeprecationWarning, match="keyfile and certfile are deprecated") as caught:
                smtp = module.SMTP_SSL("127.0.0.1", handler.port, "client.example", keyfile, certfile)
            assert (smtp.keyfile, smtp.certfile) == files
        assert [warning.filename for warning in caught] == [__file__]
        assert smtp.sendmail(A, B, "hi") == {}
        smtp.quit()
    assert handler.encrypted == [True]


@old_arguments
@pytest.mark.parametrize("name", ["keyfile", "certfile"])
def test_files_and_a_context(module: Any, name: str, certificates: Certificates) -> None:
    words = f"^context and {name} arguments are mutually exclusive$"
    with pytest.raises(ValueError, match=words):
        module.SMTP_SSL("127.0.0.1", 9, context=certificates.trusting, **{name: "file"})
    relay = Relay(("STARTTLS",), answer=lambda verb, line: "220 go" if verb == "STARTTLS" else None)
    with relay_at(relay), connected(module, relay) as smtp, pytest.raises(ValueError, match=words):
        smtp.starttls(context=certificates.trusting, **{name: "file"})


# ---- STARTTLS -----------------------------------------------------------------------------------


@BOTH
def test_starttls(module: Any, certificates: Certificates) -> None:
    handler = Embedded()
    with in_background(embedded(handler, tls=certificates.server)), connected(module, handler) as smtp:
        smtp.ehlo()
        smtp.helo()
        assert smtp.starttls(context=certificates.trusting) == (220, b"Ready to start TLS")
        known = [smtp.helo_resp, smtp.ehlo_resp, smtp.esmtp_features, smtp.does_esmtp]
        assert known == [None, None, {}, False]
        assert smtp.sendmail(A, B, "hi") == {}
        assert not smtp.has_extn("starttls")
        with pytest.raises(module.SMTPNotSupportedError, match=r"^STARTTLS extension not supported by server\.$"):
            smtp.starttls()
        assert smtp.quit()[0] == 221
    assert (handler.hellos, handler.encrypted) == (2, [True])


def test_starttls_verifies(certificates: Certificates) -> None:
    handler = Embedded()
    with in_background(embedded(handler, tls=certificates.server)), connected(asmtp, handler) as smtp:
        with pytest.raises(ssl.SSLCertVerificationError):
            smtp.starttls()
        assert smtp.sock is None
        smtp.connect("127.0.0.1", handler.port)
        assert smtp.starttls(context=unverified())[0] == 220
        assert smtp.sendmail(A, B, "hi") == {}
    assert handler.encrypted == [True]


@BOTH
def test_starttls_refused(module: Any, certificates: Certificates) -> None:
    relay = Relay(("STARTTLS",), answer=lambda verb, line: "454 not now" if verb == "STARTTLS" else None)
    with relay_at(relay), connected(module, relay) as smtp:
        with pytest.raises(module.SMTPResponseException) as caught:
            smtp.starttls(context=certificates.trusting)
        expected = {"smtp_code": 454, "smtp_error": b"not now"}
        assert told(caught.value) == (smtplib.SMTPResponseException, expected)
        assert smtp.has_extn("starttls")
        assert smtp.noop() == (250, b"2.0.0 ok")
    assert [line.lower() for line in relay.commands] == ["ehlo client.example", "starttls", "noop"]


def test_starttls_and_a_server_that_leaves(certificates: Certificates) -> None:
    script = [send("220 hi"), expect("ehlo client.example"), send("250-hi", "250 STARTTLS"), expect("STARTTLS")]
    with script_at([*script, send("220 go"), fin]) as server, connected(asmtp, server) as smtp:
        with pytest.raises(asmtp.SMTPServerDisconnected, match="in the TLS handshake"):
            smtp.starttls(context=certificates.trusting)
        assert smtp.sock is None


# ---- the constructor's options --------------------------------------------------------------------


def logged_in(smtp: Any, handler: Embedded) -> None:
    assert smtp.sendmail(A, B, "hi") == {}
    smtp.quit()
    assert handler.logins[-1][1] is True
    assert handler.encrypted[-1] is True


def test_credentials_require_tls(certificates: Certificates) -> None:
    handler = Embedded()
    options: Any = {"username": USER, "password": PASSWORD, "ssl_context": certificates.trusting}
    with in_background(embedded(handler, tls=certificates.server)):
        smtp = asmtp.SMTP("127.0.0.1", handler.port, "client.example", **options)
        logged_in(smtp, handler)
        smtp.connect("127.0.0.1", handler.port)
        logged_in(smtp, handler)
        with pytest.raises(asmtp.SMTPAuthenticationError) as caught:
            asmtp.SMTP("127.0.0.1", handler.port, "client.example", **{**options, "password": "wrong"})
        assert caught.value.smtp_code == 535
    with in_background(embedded(handler)):
        with pytest.raises(asmtp.SMTPNotSupportedError, match="STARTTLS extension not supported"):
            asmtp.SMTP("127.0.0.1", handler.port, "client.example", **options)
        smtp = asmtp.SMTP("127.0.0.1", handler.port, "client.example", **options, tls="none")
        smtp.noop()
        smtp.quit()
    assert [right for _, right in handler.logins] == [True, True, False, False, True]  # CRAM-MD5, and PLAIN


def test_credentials_under_implicit_tls(certificates: Certificates) -> None:
    handler = Embedded()
    options: Any = {"username": USER, "password": PASSWORD}
    with in_background(embedded(handler, tls=certificates.server, implicit=True)):
        where = ("127.0.0.1", handler.port, "client.example")
        logged_in(asmtp.SMTP_SSL(*where, context=certificates.trusting, **options), handler)
        logged_in(asmtp.SMTP(*where, tls="implicit", ssl_context=certificates.trusting, **options), handler)


@pytest.mark.parametrize("offered", [True, False], ids=["offered", "not offered"])
def test_opportunistic_tls(offered: bool, certificates: Certificates) -> None:
    handler = Embedded()
    server = embedded(handler, tls=certificates.server if offered else None)
    with in_background(server), connected(asmtp, handler, tls="opportunistic") as smtp:
        assert smtp.sendmail(A, B, "hi") == {}
    assert handler.encrypted == [offered]


def test_options_of_the_protocol() -> None:
    with relay_at(Relay(("PIPELINING", "CHUNKING"))) as relay:
        with connected(asmtp, relay, pipelining=False, chunking=False, window=1, window_octets=1) as smtp:
            smtp.sendmail(A, B, "hi")
        assert [read[:4].upper() for read in relay.reads] == [b"EHLO", b"MAIL", b"RCPT", b"DATA", b"HI\r\n"]
        sock = socket.create_connection(("127.0.0.1", relay.port))
        with asmtp.SMTP("nowhere.example", sock=sock) as smtp:
            assert smtp.noop() == (250, b"2.0.0 ok")
            assert smtp.sock is not None
            assert smtp.sock.fileno() == sock.fileno()


WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"tls": "yes"}, ValueError, "tls must be 'none', 'opportunistic', 'required' or 'implicit', not 'yes'"),
    ({"username": "u"}, ValueError, "username and password go together"),
    ({"username": "u\n", "password": "p"}, ValueError, "username: "),
    ({"window": 0}, ValueError, "window must be a whole number, at least 1, not 0"),
    ({"timeout": "5"}, TypeError, "timeout must be a number of seconds or None, not str"),
    ({"timeout": -1}, ValueError, "timeout must be a number of seconds above 0 or None, not -1"),
    ({"colour": "red"}, TypeError, r"^SMTP\(\) got an unexpected keyword argument 'colour'"),
]


@pytest.mark.parametrize(("options", "kind", "words"), WRONG, ids=lambda value: str(value)[:20])
def test_wrong_options(options: dict[str, Any], kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        asmtp.SMTP(**options)


def test_a_server_that_asks_for_more(certificates: Certificates) -> None:
    """Plaintext behind the 220 to STARTTLS is not taken for an answer under TLS."""
    injected = [expect("STARTTLS"), send("220 go", "250 injected"), nothing_more]
    script = [send("220 hi"), expect("ehlo client.example"), send("250-hi", "250 STARTTLS"), *injected]
    with script_at(script) as server, connected(asmtp, server) as smtp:
        with pytest.raises(asmtp.SMTPProtocolError, match=re.escape("plaintext behind the reply to STARTTLS")):
            smtp.starttls(context=certificates.trusting)
        assert smtp.sock is None
