"""TLS: contexts, sessions that are resumed, and what is said of a certificate that was not accepted."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import datetime
import pickle
import ssl
from pathlib import Path
from typing import Any

import pytest

import asmtp
from asmtp.transport.tls import (
    WITHOUT_TLS,
    ResumingContext,
    SessionCache,
    context_from_files,
    default_context,
    explain,
    tls_is_meant,
    unverified_context,
    verifying_context,
)
from tests.conftest import Certificates
from tests.fakes.choosy import choosy
from tests.fakes.embedded import PASSWORD, USER, Embedded, embedded
from tests.fakes.script import fin, read_all, scripted, send

V1_2, V1_3 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3

# ---- contexts -----------------------------------------------------------------------------------


def test_the_default_context_verifies() -> None:
    context = default_context()
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.check_hostname
    assert context.minimum_version >= ssl.TLSVersion.TLSv1_2
    assert default_context() is context


def test_the_unverified_context_does_not() -> None:
    context = unverified_context.__wrapped__()
    assert context.verify_mode == ssl.CERT_NONE
    assert not context.check_hostname
    assert context is not default_context()


def test_context_from_files(certificates: Certificates, tmp_path: Path) -> None:
    given = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    assert context_from_files(None, None, None) is None
    assert context_from_files(None, None, given) is given
    issued = certificates.ca.issue_cert("client.example")
    key, chain = tmp_path / "key.pem", tmp_path / "chain.pem"
    issued.private_key_pem.write_to_path(key)
    for blob in issued.cert_chain_pems:
        blob.write_to_path(chain, append=True)
    with pytest.warns(DeprecationWarning, match="custom context"):
        made = context_from_files(str(key), str(chain), None)
    assert made is not None
    assert made.verify_mode == ssl.CERT_REQUIRED
    assert made.check_hostname


@pytest.mark.parametrize(("files", "named"), [(("key", None), "keyfile"), ((None, "cert"), "certfile")])
def test_files_and_a_context(files: tuple[str | None, str | None], named: str) -> None:
    with pytest.raises(ValueError, match=f"context and {named} arguments are mutually exclusive"):
        context_from_files(*files, ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))


@pytest.mark.parametrize("context", [default_context, unverified_context, verifying_context])
def test_tls_1_2_at_least(context: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """RFC 8996, also where the system's configuration allows less."""
    real = ssl.create_default_context

    def lax(*args: Any, **options: Any) -> ssl.SSLContext:
        made = real(*args, **options)
        made.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        return made

    monkeypatch.setattr(ssl, "create_default_context", lax)
    assert getattr(context, "__wrapped__", context)().minimum_version == V1_2


# ---- sessions -----------------------------------------------------------------------------------


def resumed(smtp: asmtp.AsyncSMTP) -> bool:
    assert smtp._connection is not None
    assert smtp._connection.tls is not None
    return bool(smtp._connection.tls.session_reused)


@pytest.mark.parametrize("implicit", [False, True])
@pytest.mark.parametrize("version", [V1_2, V1_3])
async def test_the_next_connection_resumes_the_session(
    version: ssl.TLSVersion, implicit: bool, certificates: Certificates
) -> None:
    context = certificates.client(maximum_version=version)
    async with embedded(Embedded(), tls=certificates.server, implicit=implicit) as server:
        tls: Any = "implicit" if implicit else "required"
        smtp = asmtp.AsyncSMTP("127.0.0.1", server.port, "me.example", tls=tls, ssl_context=context)
        seen = []
        for _ in range(4):
            await smtp.connect()
            await smtp.ehlo()
            seen.append(resumed(smtp))
            assert smtp.sock is not None
            assert smtp.sock.version() == version.name.replace("_", ".").replace("TLSv1.", "TLSv1.")
            assert smtp.sock.getpeercert()["subjectAltName"]
            if len(seen) == 2:
                await smtp.close()  # without a goodbye
            else:
                await smtp.quit()
        assert seen == [False, True, True, True]


async def test_a_pool_s_connections_resume_one_session(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    handshakes: list[ResumingContext] = []
    real = ResumingContext.succeeded

    def succeeded(self: ResumingContext) -> None:
        handshakes.append(self)
        real(self)

    monkeypatch.setattr(ResumingContext, "succeeded", succeeded)
    async with embedded(Embedded(), tls=certificates.server) as server:
        url = f"smtp://{USER}:{PASSWORD}@127.0.0.1:{server.port}"
        async with asmtp.AsyncMailer(url, ssl_context=certificates.trusting, max_messages=1) as mailer:
            for _ in range(3):
                await mailer.send(b"hi", "a@b.example", "c@d.example")
    reused = [handshake.object.session_reused for handshake in handshakes if handshake.object is not None]
    assert len(reused) >= 3
    assert not reused[0]
    assert all(reused[1:])


@pytest.mark.parametrize("tls", ["implicit", "required"])
@pytest.mark.parametrize("version", [V1_2, V1_3])
async def test_a_session_that_is_refused_is_forgotten(
    version: ssl.TLSVersion, tls: Any, certificates: Certificates
) -> None:
    """An offer (RFC 8446 §2.2): the handshake is tried in full at once, and after two refusals none is made."""
    context = certificates.client(maximum_version=version)
    async with (
        embedded(Embedded(), tls=certificates.server, implicit=tls == "implicit") as server,
        choosy(server.port) as (port, seen),
    ):
        smtp = asmtp.AsyncSMTP("127.0.0.1", port, "me.example", tls=tls, ssl_context=context)
        for _ in range(5):
            async with smtp:
                assert (await smtp.noop()).ok
    assert seen == ["full", "resuming", "full", "resuming", "full", "full", "full"]


@pytest.mark.parametrize("scheme", ["smtps", "smtp+starttls"])
async def test_a_mailer_does_not_notice(scheme: str, certificates: Certificates) -> None:
    async with (
        embedded(Embedded(), tls=certificates.server, implicit=scheme == "smtps") as server,
        choosy(server.port) as (port, seen),
        asmtp.AsyncMailer(
            f"{scheme}://127.0.0.1:{port}", ssl_context=certificates.trusting, max_messages=1, retry=None
        ) as mailer,
    ):
        for _ in range(3):
            assert (await mailer.send(b"hi", "a@b.example", "c@d.example")).attempts == 1
        assert len(server.letters) == 3
    assert "resuming" in seen


async def test_no_session_is_offered_by_hand(certificates: Certificates) -> None:
    """There, what was said on the connection before would be lost with it."""
    async with embedded(Embedded(), tls=certificates.server) as server, choosy(server.port) as (port, seen):
        smtp = asmtp.AsyncSMTP("127.0.0.1", port, "me.example", ssl_context=certificates.trusting)
        for _ in range(2):
            async with smtp:
                await smtp.starttls()
    assert seen == ["full", "full"]


def test_the_facade_resumes_no_session_that_is_refused(certificates: Certificates) -> None:
    def blocking(port: int) -> None:
        smtp = asmtp.SMTP(timeout=5, tls="required", ssl_context=certificates.trusting)
        for _ in range(2):
            smtp.connect("127.0.0.1", port)
            assert smtp.noop()[0] == 250
            smtp.quit()

    async def main() -> list[str]:
        async with embedded(Embedded(), tls=certificates.server) as server, choosy(server.port) as (port, seen):
            await asyncio.to_thread(blocking, port)
            return seen

    assert asyncio.run(main()) == ["full", "resuming", "full"]


def test_a_certificate_that_is_not_accepted_says_nothing_of_the_session(certificates: Certificates) -> None:
    sessions = SessionCache()
    first = ResumingContext(certificates.trusting, sessions)
    shaken(first, certificates.server, "localhost")
    first.succeeded()
    second = ResumingContext(certificates.trusting, sessions)
    second.wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname="localhost")
    second.failed(ssl.SSLCertVerificationError("expired"))
    assert not second.refused
    second.failed(TimeoutError("no answer"))
    assert not second.refused  # there is no time left to try it again
    assert sessions.of(certificates.trusting, "localhost") is None


# ---- the wrong port -------------------------------------------------------------------------------


async def test_tls_to_a_server_without(certificates: Certificates) -> None:
    """One attempt, and words that say what to use; in the mailer, too."""
    async with embedded(Embedded()) as server:
        smtp = asmtp.AsyncSMTP(
            "127.0.0.1", server.port, "me.example", tls="implicit", ssl_context=certificates.trusting
        )
        with pytest.raises(ssl.SSLError, match=r"does not speak TLS here.*smtp\+starttls://"):
            await smtp.connect()
        async with asmtp.AsyncMailer(f"smtps://127.0.0.1:{server.port}", ssl_context=certificates.trusting) as mailer:
            with pytest.raises(asmtp.SMTPException, match=r"does not speak TLS here.*smtp\+starttls://") as caught:
                await mailer.send(b"hi", "a@b.example", "c@d.example")
    assert isinstance(caught.value.__cause__, ssl.SSLError)
    assert caught.value.state == "not_sent"
    assert len(server.servers) == 2


# ---- contexts of other makes ----------------------------------------------------------------------


class Foreign:
    """As pyOpenSSL's, through urllib3: it wraps sockets, and nothing else."""

    verify_mode, check_hostname, verify_flags = ssl.CERT_REQUIRED, False, 0

    def wrap_socket(self) -> None:
        """Never called."""


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: asmtp.AsyncSMTP(ssl_context=FOREIGN), "ssl_context"),
        (lambda: asmtp.AsyncMailer("smtps://host", ssl_context=FOREIGN), "ssl_context"),
        (lambda: asmtp.Mailer("smtps://host", ssl_context=FOREIGN), "ssl_context"),
        (lambda: asmtp.SMTP(ssl_context=FOREIGN), "ssl_context"),
        (lambda: asmtp.SMTP_SSL(context=FOREIGN), "context"),
        (lambda: setattr(asmtp.SMTP_SSL(), "context", FOREIGN), "context"),
        (lambda: asmtp.SMTP().starttls(context=FOREIGN), "context"),
        (lambda: asyncio.run(asmtp.AsyncSMTP().starttls(context=FOREIGN)), "context"),
        (lambda: ResumingContext(FOREIGN), "ssl_context"),
    ],
)
def test_a_context_that_event_loops_cannot_use(call: Any, name: str) -> None:
    with pytest.raises(TypeError, match=f"^{name} must be an ssl.SSLContext, not tests.transport.test_tls.Foreign"):
        call()


FOREIGN: Any = Foreign()


@pytest.mark.parametrize("tls", ["implicit", "required"])
@pytest.mark.parametrize("before", [False, True])
async def test_another_class_in_the_place_of_sslcontext(
    tls: Any, before: bool, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As truststore and gevent put it there, whenever they do."""
    context = certificates.client()

    class Replaced(ssl.SSLContext):
        pass

    async with embedded(Embedded(), tls=certificates.server, implicit=tls == "implicit") as server:
        monkeypatch.setattr(ssl, "SSLContext", Replaced)
        if not before:
            context = Replaced(ssl.PROTOCOL_TLS_CLIENT)
            certificates.ca.configure_trust(context)
        async with asmtp.AsyncSMTP("127.0.0.1", server.port, "me.example", tls=tls, ssl_context=context) as smtp:
            assert (await smtp.noop()).ok
            assert smtp.sock is not None
            assert smtp.sock.version() == "TLSv1.3"


def test_a_session_is_for_one_name_and_one_context(certificates: Certificates) -> None:
    """Resumed under another name, the certificate would not be looked at."""
    sessions = SessionCache()
    first = ResumingContext(certificates.trusting, sessions)
    assert sessions.of(certificates.trusting, "mx.example") is None
    shaken(first, certificates.server, "localhost")
    first.succeeded()
    assert sessions.of(certificates.trusting, "localhost") is not None
    assert sessions.of(certificates.trusting, "127.0.0.1") is None
    assert sessions.of(certificates.wary, "localhost") is None


@pytest.mark.parametrize("name", ["verify_mode", "check_hostname"])
def test_a_session_that_was_not_verified_is_not_resumed_by_who_verifies(name: str, certificates: Certificates) -> None:
    """OpenSSL does not look at the certificate again."""
    context = certificates.client(check_hostname=False)
    if name == "verify_mode":
        context.verify_mode = ssl.CERT_NONE
    sessions = SessionCache()
    first = ResumingContext(context, sessions)
    shaken(first, certificates.server, "localhost")
    first.succeeded()
    assert not first.verifies
    assert sessions.of(context, "localhost") is not None
    context.verify_mode = ssl.CERT_REQUIRED
    context.check_hostname = True
    assert sessions.of(context, "localhost") is None
    assert not first.verifies
    second = ResumingContext(context, sessions)
    shaken(second, certificates.server, "localhost")
    assert second.verifies
    assert second.object is not None
    assert not second.object.session_reused


def shaken(handshake: ResumingContext, server: ssl.SSLContext, name: str) -> None:
    """A handshake without a network."""
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = handshake.wrap_bio(to_client, to_server, server_hostname=name)
    theirs = server.wrap_bio(to_server, to_client, server_side=True)
    for end in (ours, theirs) * 3:
        with contextlib.suppress(ssl.SSLWantReadError):
            end.do_handshake()


# ---- a certificate that was not accepted --------------------------------------------------------


def refused(context: ssl.SSLContext, server: ssl.SSLContext, name: str) -> str:
    handshake = ResumingContext(context)
    with pytest.raises(ssl.SSLCertVerificationError) as caught:
        shaken(handshake, server, name)
    explain(caught.value, handshake)
    return str(caught.value)


@pytest.mark.parametrize("version", [V1_2, V1_3])
def test_another_name(version: ssl.TLSVersion, certificates: Certificates) -> None:
    server = certificates.server_for("mail.example.com", "*.example.org", "192.0.2.7")
    context = certificates.client(maximum_version=version)
    offered = (
        "it is for mail.example.com, *.example.org, 192.0.2.7; if that is the right server, connect to it by such a"
    )
    for name in ("mx.example.net", "192.0.2.8"):
        told = refused(context, server, name)
        assert told.startswith(f"the server's certificate was not accepted for {name}: ")
        assert f" mismatch, certificate is not valid for '{name}'; {offered} name, or pass it as" in told


def test_many_names(certificates: Certificates) -> None:
    server = certificates.server_for(*(f"mx{n}.example.com" for n in range(50)))
    assert "mx9.example.com, ...; if" in refused(certificates.trusting, server, "mx.example.net")


def test_names_that_are_not_printable() -> None:
    class Chain:
        def get_info(self) -> dict[str, Any]:
            names = (("DNS", "mx\x1b[2J\nCRITICAL owned"), ("DNS", "x" * 900))
            return {"subjectAltName": names, "issuer": ((("commonName", "ca\x07" + "y" * 900),),)}

    class Object:
        class _sslobj:
            @staticmethod
            def get_unverified_chain() -> list[Chain]:
                return [Chain()]

    error = ssl.SSLCertVerificationError()
    error.verify_code, error.verify_message = 20, "unable to get local issuer certificate"
    handshake = ResumingContext(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    handshake.object = Object  # type: ignore[assignment]
    explain(error, handshake)
    assert str(error.strerror).isprintable()
    assert r"mx\x1b[2J CRITICAL owned" in str(error.strerror)
    assert len(str(error.strerror)) < 1600


@pytest.mark.parametrize("version", [V1_2, V1_3])
def test_an_unknown_issuer(version: ssl.TLSVersion, certificates: Certificates) -> None:
    context = ssl.create_default_context()
    context.maximum_version = version
    told = refused(context, certificates.server, "localhost")
    assert "not accepted for localhost: " in told
    assert "; it is for 127.0.0.1, localhost, issued by 'Testing CA #" in told
    assert "'; if that is the right server, trust the issuer with ssl_context=" in told


def test_a_certificate_of_yesterday(certificates: Certificates) -> None:
    yesterday = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    server = certificates.showing(certificates.ca.issue_cert("localhost", not_after=yesterday))
    told = refused(certificates.trusting, server, "localhost")
    assert "certificate has expired; it is for localhost, valid from " in told
    assert told.endswith("; the server needs another, or our clock is wrong")


def test_a_certificate_that_cannot_be_had(certificates: Certificates) -> None:
    handshake = ResumingContext(certificates.wary)
    error = ssl.SSLCertVerificationError(1, "no")
    error.verify_code, error.verify_message = 1, "unspecified"
    explain(error, handshake)
    told = "the server's certificate was not accepted for no name: unspecified; it is not known what it is for"
    assert str(error) == told
    assert told in repr(error)
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert (str(again), again.args, again.verify_code) == (told, (1, told), 1)


@pytest.mark.parametrize("implicit", [False, True])
async def test_what_a_caller_gets(implicit: bool, certificates: Certificates) -> None:
    """Still the exception that ssl raises, with its attributes."""
    async with embedded(Embedded(), tls=certificates.server, implicit=implicit) as server:
        smtp = asmtp.AsyncSMTP(
            "127.0.0.1", server.port, "me.example", tls="implicit" if implicit else "required",
            ssl_context=certificates.trusting, server_hostname="mx.example.net",
        )  # fmt: skip
        with pytest.raises(
            ssl.SSLCertVerificationError, match="mx.example.net: .*it is for 127.0.0.1, localhost"
        ) as caught:
            await smtp.connect()
        assert caught.value.verify_code == 62
        assert caught.value.__cause__ is not caught.value


async def test_and_a_mailer(certificates: Certificates) -> None:
    async with embedded(Embedded(), tls=certificates.server) as server:
        url = f"smtp+starttls://127.0.0.1:{server.port}?server_hostname=mx.example.net"
        async with asmtp.AsyncMailer(url, ssl_context=certificates.trusting) as mailer:
            with pytest.raises(asmtp.SMTPException, match="mx.example.net: Host.*; it is for 127.0.0.1, localhost;"):
                await mailer.send(b"hi", "a@b.example", "c@d.example")


def test_no_subject_alternative_name() -> None:
    """As in old certificates."""

    class Chain:
        def get_info(self) -> dict[str, Any]:
            return {"issuer": ()}

    class Object:
        class _sslobj:
            @staticmethod
            def get_unverified_chain() -> list[Chain]:
                return [Chain()]

    handshake = ResumingContext(default_context())
    handshake.object = Object()  # type: ignore[assignment]
    error = ssl.SSLCertVerificationError(1, "no")
    error.verify_code, error.verify_message = 20, "no issuer"
    explain(error, handshake)
    assert "no issuer; it names no host, issued by someone; if" in str(error)


# ---- no TLS, where the server waits for it ------------------------------------------------------

ALERTS = {
    "at once": [send(b"\x15\x03\x01\x00\x02\x02\x46"), read_all],
    "with a line end in it": [send(b"\x15\x03\x01\x00\x02\x02\x0a"), fin],
}
LETTER = (b"hi", "a@x.example", ["b@y.example"])


@pytest.mark.parametrize("script", ALERTS.values(), ids=ALERTS)
async def test_an_alert_in_the_place_of_the_greeting(script: Any) -> None:
    async with scripted(script, script) as server:
        with pytest.raises(asmtp.SMTPProtocolError, match=r"an alert of TLS .*begins with TLS: smtps://"):
            await asmtp.AsyncSMTP(server.host, server.port).connect()
        async with asmtp.AsyncMailer(f"smtp://{server.host}:{server.port}") as posting:
            with pytest.raises(asmtp.SMTPServerDisconnected, match="begins with TLS: smtps://") as caught:
                await posting.send(*LETTER)
        assert caught.value.state == "not_sent"
        assert not caught.value.transient
    assert len(server.peers) == 2


@pytest.mark.virtual_clock
@pytest.mark.parametrize("certain", [True, False], ids=["465", "another"])
async def test_silence_in_the_place_of_the_greeting(certain: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    async with scripted(*[[read_all]] * (1 if certain else 3)) as server:
        monkeypatch.setattr(asmtp.transport.tls, "WITH_TLS", {server.port if certain else 465})
        words = r"the greeting within 5 seconds; " + (r"port \d+ begins" if certain else r"if port \d+ begins")
        url = f"smtp://{server.host}:{server.port}?timeout=5"
        async with asmtp.AsyncMailer(url, connections=1) as posting:
            with pytest.raises(asmtp.SMTPTimeoutError, match=words) as caught:
                await posting.send(*LETTER)
        assert caught.value.state == "not_sent"
        assert caught.value.transient is not certain
    assert len(server.peers) == (1 if certain else 3)


@pytest.mark.parametrize("script", [[fin], [send("what"), read_all]], ids=["closed", "no reply"])
async def test_what_is_no_sign_of_tls(script: Any) -> None:
    async with scripted(script) as server:
        with pytest.raises(asmtp.SMTPServerDisconnected) as caught:
            await asmtp.AsyncSMTP(server.host, server.port).connect()
    assert "smtps" not in str(caught.value)


async def test_a_port_of_tls_that_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    async with scripted([fin]) as server:
        monkeypatch.setattr(asmtp.transport.tls, "WITH_TLS", {server.port})
        with pytest.raises(asmtp.SMTPServerDisconnected, match=r"closed; port \d+ begins with TLS: smtps://"):
            await asmtp.AsyncSMTP(server.host, server.port).connect()


@pytest.mark.parametrize("port", sorted(WITHOUT_TLS))
def test_ports_without_tls(port: int) -> None:
    error = asmtp.SMTPTimeoutError("silent")
    assert tls_is_meant(error, port) is error
