"""SCRAM, over connections: with and without channel binding, refused, and lied to; awaited, blocking, in a mailer."""

from __future__ import annotations

import hashlib
import itertools
import ssl
import threading
from types import SimpleNamespace
from typing import Any

import pytest

import asmtp
from asmtp.auth import selection as login
from asmtp.protocol.sasl import UNPROVEN
from tests.conftest import Certificates
from tests.fakes.background import in_background
from tests.fakes.embedded import PASSWORD, USER, embedded
from tests.fakes.scram import LIES, SCRAM, Scram
from tests.sync.facade import connected

PLUS = tuple(name for name in SCRAM if name.endswith("-PLUS"))
BARE = tuple(name for name in SCRAM if not name.endswith("-PLUS"))
V1_2, V1_3 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3


def client(server: Scram, **options: Any) -> asmtp.AsyncSMTP:
    return asmtp.AsyncSMTP("127.0.0.1", server.port, "me.example", username=USER, password=PASSWORD, **options)


def bound(certificates: Certificates, *mechanisms: str, **options: Any) -> Scram:
    server = Scram(*mechanisms, **options)
    server.certificate = certificates.issued.cert_chain_pems[0].bytes().decode()
    return server


# ---- it works -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BARE)
async def test_each_hash(name: str) -> None:
    async with embedded(Scram(name, "PLAIN")) as server, client(server, tls="none") as smtp:
        assert server.logins == [(name, True)]
        assert server.bound == ["n"]
        assert await smtp.sendmail("a@b.example", "c@d.example", "hi") == {}
        # Once more: 503 is as good, as there was a proof before.
        assert (await smtp.login(USER, PASSWORD)).code == 503


@pytest.mark.parametrize("initial", [True, False])
@pytest.mark.parametrize("name", SCRAM)
async def test_with_tls(name: str, initial: bool, certificates: Certificates) -> None:
    """If no -PLUS is offered, "y" tells a server that did offer it that somebody took it out (RFC 5802 §6)."""
    server = bound(certificates, name)
    async with embedded(server, tls=certificates.server):
        smtp = asmtp.AsyncSMTP("127.0.0.1", server.port, "me.example", ssl_context=certificates.trusting)
        await smtp.connect()
        await smtp.starttls()
        await smtp.login(USER, PASSWORD, initial_response_ok=initial)
        assert server.logins == [(name, True)]
        assert server.bound == ["p=tls-server-end-point" if name in PLUS else "y"]
        await smtp.quit()


@pytest.mark.parametrize("binding", ["tls-unique", "tls-server-end-point"])
@pytest.mark.parametrize("version", [V1_2, V1_3])
async def test_the_binding_that_the_server_knows_is_found(
    version: ssl.TLSVersion, binding: str, certificates: Certificates
) -> None:
    """A type that it does not know it refuses with 535 too, but before the password comes into it."""
    server = bound(certificates, "SCRAM-SHA-256", "SCRAM-SHA-256-PLUS", binding=binding)
    context = certificates.client(maximum_version=version)
    asked = ["SCRAM-SHA-256-PLUS", "SCRAM-SHA-256"]
    async with embedded(server, tls=certificates.server), client(server, ssl_context=context, mechanisms=asked):
        pass
    if version is V1_3 and binding == "tls-unique":  # no such thing there
        assert server.bound == ["p=tls-server-end-point", "n"]
        assert server.logins == [("SCRAM-SHA-256-PLUS", False), ("SCRAM-SHA-256", True)]
        return
    first = ["p=tls-unique"] if version is V1_2 else []
    assert server.bound == [*first, "p=tls-server-end-point"] if binding != "tls-unique" else first
    assert server.logins[-1] == ("SCRAM-SHA-256-PLUS", True)


@pytest.mark.parametrize("version", [V1_2, V1_3])
async def test_what_is_used_by_default(version: ssl.TLSVersion, certificates: Certificates) -> None:
    """Only the type that each server has to know (RFC 5802 §6.1): for TLS 1.3, Python has none of that kind."""
    server = bound(certificates, "SCRAM-SHA-256", "SCRAM-SHA-256-PLUS", binding="tls-unique")
    context = certificates.client(maximum_version=version)
    async with embedded(server, tls=certificates.server), client(server, ssl_context=context):
        pass
    assert server.bound == (["p=tls-unique"] if version is V1_2 else ["n"])


def test_the_facade(certificates: Certificates) -> None:
    server = bound(certificates, *SCRAM, "PLAIN")
    with in_background(embedded(server, tls=certificates.server)), connected(asmtp, server) as smtp:
        smtp.starttls(context=certificates.trusting)
        assert smtp.login(USER, PASSWORD, mechanisms=[SCRAM[-1]])[0] == 235
        assert smtp.login(USER, PASSWORD)[0] == 503
    assert server.logins == [("SCRAM-SHA-512-PLUS", True)]


async def test_a_mailer(certificates: Certificates) -> None:
    server = bound(certificates, *SCRAM)
    async with embedded(server, tls=certificates.server):
        url = f"smtp://{USER}:{PASSWORD}@127.0.0.1:{server.port}?mechanisms=SCRAM-SHA-1,SCRAM-SHA-256"
        async with asmtp.AsyncMailer(url, ssl_context=certificates.trusting) as mailer:
            assert (await mailer.send(b"hi", "a@b.example", "c@d.example")).complete
    assert server.logins == [("SCRAM-SHA-1", True)]


# ---- it does not --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["SCRAM-SHA-256", "SCRAM-SHA-256-PLUS"])
async def test_a_wrong_password_is_tried_once(name: str, certificates: Certificates) -> None:
    server = bound(certificates, name, "SCRAM-SHA-1", "CRAM-MD5", "PLAIN")
    async with embedded(server, tls=certificates.server):
        smtp = asmtp.AsyncSMTP(
            "127.0.0.1", server.port, "me.example", username=USER, password="wrong", ssl_context=certificates.trusting
        )
        with pytest.raises(asmtp.SMTPAuthenticationError) as caught:
            await smtp.connect()
    assert caught.value.smtp_code == 535
    assert server.logins == [(name, False)]


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A minute goes by while the proof is computed."""
    monkeypatch.setattr(login, "time", SimpleNamespace(monotonic=itertools.count(0, 60).__next__))


LATE = "response took longer than 50 seconds to compute"


@pytest.mark.usefixtures("slow")
async def test_computing_counts_against_the_deadline() -> None:
    server = Scram("SCRAM-SHA-256", "PLAIN")
    async with embedded(server):
        smtp = client(server, tls="none", timeout=50)
        with pytest.raises(asmtp.SMTPTimeoutError, match=LATE):
            await smtp.connect()
        assert not smtp.is_connected
        options: Any = {"tls": "none", "retry": None, "timeouts": 50}
        async with asmtp.AsyncMailer(f"smtp://{USER}:{PASSWORD}@127.0.0.1:{server.port}", **options) as mailer:
            with pytest.raises(asmtp.SMTPTimeoutError, match=LATE) as caught:
                await mailer.send(b"hi", "a@b.example", "c@d.example")
        assert caught.value.state == "not_sent"
    assert server.logins == [("SCRAM-SHA-256", False)] * 2  # cancelled, without a proof


@pytest.mark.usefixtures("slow")
def test_computing_counts_against_the_facades_deadline() -> None:
    server = Scram("SCRAM-SHA-256", "PLAIN")
    with in_background(embedded(server)), connected(asmtp, server, timeout=50) as smtp:
        with pytest.raises(asmtp.SMTPTimeoutError, match=LATE):
            smtp.login(USER, PASSWORD)
        assert smtp.sock is None
    assert server.logins == [("SCRAM-SHA-256", False)]


@pytest.mark.usefixtures("slow")
async def test_computing_without_a_limit() -> None:
    server = Scram("SCRAM-SHA-256")
    async with embedded(server), client(server, tls="none", timeout=None):
        assert server.logins == [("SCRAM-SHA-256", True)]


@pytest.mark.parametrize("lie", LIES)
async def test_a_server_that_does_not_know_the_password(lie: str) -> None:
    """It is not told the password in another way either; the connection ends."""
    async with embedded(Scram("SCRAM-SHA-256", "SCRAM-SHA-1", "PLAIN", lie=lie)) as server:
        smtp = asmtp.AsyncSMTP("127.0.0.1", server.port, "me.example")
        await smtp.connect()
        with pytest.raises(asmtp.SMTPAuthenticationError) as caught:
            await smtp.login(USER, PASSWORD)
        assert caught.value.smtp_code == UNPROVEN
        assert PASSWORD not in str(caught.value)
        assert not smtp.is_connected
        await smtp.close()
        assert len(server.bound) == 1


@pytest.mark.parametrize("lie", LIES)
def test_and_the_facade(lie: str) -> None:
    server = Scram("SCRAM-SHA-256", "PLAIN", lie=lie)
    with in_background(embedded(server)), connected(asmtp, server) as smtp:
        with pytest.raises(asmtp.SMTPAuthenticationError) as caught:
            smtp.login(USER, PASSWORD)
        assert caught.value.smtp_code == UNPROVEN
        assert smtp.sock is None
    assert len(server.bound) == 1


async def test_and_a_mailer() -> None:
    server = Scram("SCRAM-SHA-256", "PLAIN", lie="signature")
    async with embedded(server):
        url = f"smtp://{USER}:{PASSWORD}@127.0.0.1:{server.port}"
        async with asmtp.AsyncMailer(url, tls="none") as mailer:
            with pytest.raises(asmtp.SMTPAuthenticationError, match="has not proved") as caught:
                await mailer.send(b"hi", "a@b.example", "c@d.example")
    assert caught.value.state == "not_sent"
    assert len(server.bound) == 1
    assert server.letters == []


async def test_a_hash_that_is_forbidden_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    real = hashlib.new

    def new(name: str, data: bytes = b"", **options: Any) -> Any:
        if name == "sha256":
            raise ValueError("unsupported hash type sha256")
        return real(name, data, **options)

    monkeypatch.setattr("asmtp.auth.mechanisms.hashlib.new", new)
    async with embedded(Scram("SCRAM-SHA-256", "SCRAM-SHA-1")) as server, client(server, tls="none"):
        assert server.logins == [("SCRAM-SHA-1", True)]
    async with embedded(Scram("SCRAM-SHA-256")) as server:
        with pytest.raises(ValueError, match="unsupported hash type sha256"):
            await client(server, tls="none").connect()


async def test_the_loop_is_not_held_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The key derivation takes long by design, so it is done in a thread."""
    where: list[threading.Thread] = []

    def derived(*args: Any, **options: Any) -> bytes:
        where.append(threading.current_thread())
        return hashlib.pbkdf2_hmac(*args, **options)

    async with embedded(Scram("SCRAM-SHA-256")) as server:
        smtp = client(server, tls="none")
        monkeypatch.setattr("scramp.core.hi", lambda hash, *args: derived(hash().name, *map(plain_int, args)))
        await smtp.connect()
        await smtp.quit()
    threads = [thread for thread in where if thread is not threading.main_thread()]
    assert len(threads) == 1  # the others are the server's, which runs in this loop


def plain_int(value: Any) -> Any:
    return value if isinstance(value, bytes) else int(value)
