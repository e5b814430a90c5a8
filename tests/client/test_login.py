"""Logging in: which mechanism, how often, and what is never shown."""

from __future__ import annotations

import asyncio
import base64
import copy
import logging
import pickle
import re
import ssl
import threading
from collections.abc import Callable
from typing import Any

import pytest
from aiosmtpd.smtp import AuthResult

import asmtp
from asmtp import AsyncSMTP
from asmtp.transport.connection import Connection
from asmtp.transport.tls import unverified_context
from tests.conftest import Certificates
from tests.fakes.background import in_background
from tests.fakes.embedded import PASSWORD, USER, Embedded, embedded
from tests.fakes.script import Peer, Step, expect, fin, nothing_more, scripted, send

SECRET = base64.b64encode(f"\0{USER}\0{PASSWORD}".encode()).decode()


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def client(server: Any, **options: Any) -> AsyncSMTP:
    return AsyncSMTP(server.host, server.port, "me.example", **options)


def offering(mechanisms: str, *steps: Step) -> list[Step]:
    hello = [send("220 hi"), expect("ehlo me.example"), send("250-hi", f"250 AUTH {mechanisms}")]
    return [*hello, *steps, nothing_more]


@pytest.mark.parametrize("initial_response_ok", [True, False])
@pytest.mark.parametrize("mechanism", ["CRAM-MD5", "PLAIN", "LOGIN"])
async def test_each_mechanism(mechanism: str, initial_response_ok: bool) -> None:
    async with embedded(Embedded(mechanisms=(mechanism,))) as server, client(server) as smtp:
        reply = await smtp.login(USER, PASSWORD, initial_response_ok=initial_response_ok)
        assert reply.code == 235
        assert server.logins == [(mechanism, True)]
        # And again: 503, already authenticated, is as good.
        assert (await smtp.login(USER, PASSWORD)).code == 503


@pytest.mark.parametrize("mechanism", ["CRAM-MD5", "PLAIN", "LOGIN"])
async def test_a_wrong_password(mechanism: str) -> None:
    async with embedded(Embedded(mechanisms=(mechanism,))) as server, client(server) as smtp:
        with pytest.raises(asmtp.SMTPAuthenticationError) as caught:
            await smtp.login(USER, "wrong")
        assert caught.value.smtp_code == 535
        assert not caught.value.transient
        assert "wrong" not in str(caught.value)
        assert (await smtp.login(USER, PASSWORD)).code == 235


async def test_a_wrong_password_is_tried_once() -> None:
    """RFC 4954 §6: 535 is about the credentials; accounts are locked over less."""
    async with embedded(Embedded()) as server, client(server) as smtp:
        with pytest.raises(asmtp.SMTPAuthenticationError):
            await smtp.login(USER, "wrong")
        assert server.logins == [("CRAM-MD5", False)]


class Hashing(Embedded):
    """It keeps passwords hashed, and offers CRAM-MD5 all the same."""

    async def auth_CRAM__MD5(self, server: Any, args: list[str]) -> AuthResult:
        await super().auth_CRAM__MD5(server, args)
        self.logins.pop()
        return self.judge("CRAM-MD5", False)


async def test_a_server_that_keeps_no_secret_for_cram_md5(certificates: Certificates) -> None:
    async with (
        embedded(Hashing(), tls=certificates.server) as server,
        client(server, ssl_context=certificates.trusting) as smtp,
    ):
        await smtp.starttls()
        assert (await smtp.login(USER, PASSWORD)).code == 235
        assert server.logins == [("CRAM-MD5", False), ("PLAIN", True)]


@pytest.mark.parametrize("tls", [False, True])
async def test_the_error_names_the_mechanism_where_nothing_else_is_tried(tls: bool, certificates: Certificates) -> None:
    async with embedded(Hashing(), tls=certificates.server) as server, client(server) as smtp:
        if tls:
            await smtp.starttls(context=unverified_context())
        with pytest.raises(asmtp.SMTPAuthenticationError) as caught:
            await smtp.login(USER, PASSWORD)
        assert server.logins == [("CRAM-MD5", False)]
        assert str(caught.value).endswith(
            "; CRAM-MD5 was used; if the password is right, name another mechanism with mechanisms="
        )
        assert caught.value.args == (535, b"5.7.8 Authentication credentials invalid")
        for again in (copy.copy(caught.value), pickle.loads(pickle.dumps(caught.value))):
            assert str(again) == str(caught.value)
        assert (await smtp.login(USER, PASSWORD, mechanisms=["PLAIN"])).code == 235


@pytest.mark.parametrize("verified", [False, True])
def test_the_facade_does_the_same(verified: bool, certificates: Certificates) -> None:
    with (
        in_background(embedded(Hashing(), tls=certificates.server)) as server,
        asmtp.SMTP("localhost", server.port, "me.example") as smtp,
    ):
        smtp.starttls(context=certificates.trusting if verified else unverified_context())
        if verified:
            assert smtp.login(USER, PASSWORD)[0] == 235
        else:
            with pytest.raises(asmtp.SMTPAuthenticationError, match="; CRAM-MD5 was used; if .* with mechanisms=$"):
                smtp.login(USER, PASSWORD)
    assert server.logins == [("CRAM-MD5", False), ("PLAIN", True)][: 1 + verified]


async def test_a_mailer_keeps_the_mechanism_that_worked(certificates: Certificates) -> None:
    async with embedded(Hashing(), tls=certificates.server) as server:
        relay = asmtp.Relay(
            server.host,
            server.port,
            username=USER,
            password=PASSWORD,
            ssl_context=certificates.trusting,
            tls="required",
        )
        async with asmtp.AsyncMailer(relay, max_messages=1, connections=1, local_hostname="me.example") as mailer:
            for _ in range(4):
                await mailer.send(b"Subject: hi\r\n\r\n", "a@x.example", "b@y.example")
        assert server.logins == [("CRAM-MD5", False), *[("PLAIN", True)] * 4]


@pytest.mark.parametrize("mechanisms", [("PLAIN",), ("CRAM-MD5", "PLAIN", "LOGIN")])
async def test_a_mailer_says_a_wrong_password_twice_at_most(
    mechanisms: tuple[str, ...], certificates: Certificates
) -> None:
    async with embedded(Embedded(mechanisms=mechanisms), tls=certificates.server) as server:
        relay = asmtp.Relay(
            server.host, server.port, username=USER, password="wrong", ssl_context=certificates.trusting, tls="required"
        )
        retry = asmtp.Retry(attempts=5, initial=0.01)
        async with asmtp.AsyncMailer(relay, connections=8, retry=retry, local_hostname="me.example") as mailer:
            mails = [mailer.send(b"hi", "a@x.example", "b@y.example") for _ in range(50)]
            errors = await asyncio.gather(*mails, return_exceptions=True)
            assert {type(error) for error in errors} == {asmtp.SMTPAuthenticationError}
            assert {error.state for error in errors} == {"not_sent"}  # type: ignore[union-attr]
        assert 1 <= len(server.logins) <= 2


@pytest.mark.parametrize("call", ["send", "send_all", "verify"])
def test_a_mailer_says_a_wrong_password_twice_at_most_in_all_its_loops(call: str) -> None:
    """One asyncio.run() after the other, and a check that asks every minute."""
    with in_background(embedded(Embedded(mechanisms=("PLAIN",)))) as server:
        relay = asmtp.Relay(server.host, server.port, username=USER, password="wrong", tls="none")
        mailer = asmtp.AsyncMailer(relay, retry=None, local_hostname="me.example")

        async def use() -> None:
            if call == "send_all":
                told = [each async for each in mailer.send_all([("a@x.example", "b@y.example", b"hi")])]
                assert [each.state for each in told] == ["not_sent"]
                assert told[0].error is not None
                raise told[0].error
            await (mailer.verify() if call == "verify" else mailer.send(b"hi", "a@x.example", "b@y.example"))

        for _ in range(5):
            with pytest.raises(asmtp.SMTPAuthenticationError):
                asyncio.run(use())
        assert len(server.logins) == 2
        blocking = asmtp.Mailer(relay, retry=None, local_hostname="me.example")
        for _ in range(5):
            with pytest.raises(asmtp.SMTPAuthenticationError):
                blocking.verify()
        blocking.close()
        assert len(server.logins) == 4
        again = copy.copy(mailer)  # which was not used, and may be for a password that was set right meanwhile
        with pytest.raises(asmtp.SMTPAuthenticationError):
            asyncio.run(again.verify())
        assert len(server.logins) == 5


async def test_another_refusal_is_about_the_mechanism() -> None:
    script = offering(
        "CRAM-MD5 PLAIN LOGIN",
        expect("AUTH CRAM-MD5"), send("504 5.5.4 not that one"),
        expect(f"AUTH PLAIN {SECRET}"), send("235 welcome"),
    )  # fmt: skip
    async with scripted(script) as server:
        smtp = client(server)
        await smtp.connect()
        assert await smtp.login(USER, PASSWORD) == (235, b"welcome")
        await smtp.close()


async def test_every_mechanism_refused() -> None:
    script = offering(
        "PLAIN LOGIN",
        expect(f"AUTH PLAIN {SECRET}"), send("504 no"), expect("AUTH LOGIN"), send("454 nor that"),
    )  # fmt: skip
    async with scripted(script) as server:
        smtp = client(server)
        await smtp.connect()
        with pytest.raises(asmtp.SMTPAuthenticationError) as caught:
            await smtp.login(USER, PASSWORD)
        assert (caught.value.smtp_code, caught.value.transient) == (454, True)
        await smtp.close()


@pytest.mark.parametrize("offer", ["250 hi", "250-hi\r\n250 PIPELINING"])
async def test_no_auth(offer: str) -> None:
    async with scripted([send("220 hi"), expect("ehlo me.example"), send(offer), nothing_more]) as server:
        smtp = client(server)
        await smtp.connect()
        with pytest.raises(asmtp.SMTPNotSupportedError, match="AUTH"):
            await smtp.login(USER, PASSWORD)
        await smtp.close()


async def test_no_common_mechanism() -> None:
    async with scripted(offering("GSSAPI NTLM")) as server:
        smtp = client(server)
        await smtp.connect()
        with pytest.raises(asmtp.SMTPException, match="No suitable authentication method"):
            await smtp.login(USER, PASSWORD)
        await smtp.close()


async def test_a_challenge_too_many() -> None:
    script = offering("PLAIN", expect("AUTH PLAIN"), send("334 "), expect(b64(f"\0{USER}\0{PASSWORD}")), send("334 "))
    del script[-1]
    script += [expect("*"), send("501 cancelled"), expect("noop"), send("250 ok"), nothing_more]
    async with scripted(script) as server:
        smtp = client(server)
        await smtp.connect()
        with pytest.raises(asmtp.SMTPAuthenticationError):
            await smtp.login(USER, PASSWORD, initial_response_ok=False)
        assert (await smtp.noop()).ok
        await smtp.close()


async def test_an_authobject_of_the_caller_s() -> None:
    asked: list[bytes | None] = []

    def answer(challenge: bytes | None = None) -> str | None:
        asked.append(challenge)
        return None if challenge is None else f"re: {challenge.decode()}"

    script = offering(
        "X-ASK",
        expect("AUTH X-ASK"), send("334 " + b64("one")), expect(b64("re: one")), send("334 " + b64("two")),
        expect(b64("re: two")), send("235 yes"),
    )  # fmt: skip
    async with scripted(script) as server:
        smtp = client(server)
        await smtp.connect()
        await smtp.ehlo()
        assert await smtp.auth("x-ask", answer) == (235, b"yes")
        assert asked == [None, b"one", b"two"]
        await smtp.close()


async def test_an_authobject_that_asks_and_asks() -> None:
    steps = [expect("AUTH X-ASK"), send("334 ")]
    for _ in range(5):
        steps += [expect(b64("no")), send("334 ")]
    async with scripted(
        offering("X-ASK", *steps, expect("*"), send("501 ok"), expect("noop"), send("250 ok"))
    ) as server:
        smtp = client(server)
        await smtp.connect()
        await smtp.ehlo()
        with pytest.raises(asmtp.SMTPException, match="infinite loop"):
            await smtp.auth("X-ASK", lambda challenge=None: None if challenge is None else "no")
        assert (await smtp.noop()).ok
        await smtp.close()


async def test_an_authobject_that_fails_cancels_the_exchange() -> None:
    def answer(challenge: bytes | None = None) -> str | None:
        if challenge is not None:
            raise KeyError("no key")
        return None

    rounds = [expect("AUTH X-ASK"), send("334 "), expect("*"), send("501 cancelled"), expect("noop"), send("250 ok")]
    async with scripted(offering("X-ASK", *rounds)) as server:
        smtp = client(server)
        await smtp.connect()
        await smtp.ehlo()
        with pytest.raises(KeyError):
            await smtp.auth("X-ASK", answer)
        assert (await smtp.noop()).ok
        await smtp.close()


async def test_a_response_that_is_too_late_ends_the_connection() -> None:
    def answer(challenge: bytes | None = None) -> str | None:
        if challenge is not None:
            raise asmtp.SMTPTimeoutError("too late")
        return None

    async with scripted(offering("X-ASK", expect("AUTH X-ASK"), send("334 "), expect("*"), send("501 ok"))) as server:
        smtp = client(server)
        await smtp.connect()
        await smtp.ehlo()
        with pytest.raises(asmtp.SMTPTimeoutError, match="too late"):
            await smtp.auth("X-ASK", answer)
        assert not smtp.is_connected
        await smtp.close()


@pytest.mark.parametrize(
    ("user", "password", "kind"),
    [(5, "x", TypeError), ("x", None, TypeError), ("x", "nul\0", ValueError), ("x\r\n", "y", ValueError)],
)
async def test_credentials_that_are_none(user: Any, password: Any, kind: type[Exception]) -> None:
    async with scripted(offering("PLAIN")) as server:
        smtp = client(server)
        await smtp.connect()
        await smtp.ehlo()
        with pytest.raises(kind) as caught:
            await smtp.login(user, password)
        assert "nul" not in str(caught.value)
        await smtp.close()


@pytest.mark.parametrize("mechanism", ["CRAM-MD5", "PLAIN", "LOGIN"])
@pytest.mark.parametrize("password", [PASSWORD, "wr0ng-Pa55"])
async def test_nothing_shows_the_credentials(mechanism: str, password: str, caplog: pytest.LogCaptureFixture) -> None:
    written: list[bytes] = []

    def trace(direction: str, octets: bytes) -> None:
        if direction == ">":
            written.append(octets)

    async with embedded(Embedded(mechanisms=(mechanism,))) as server:
        smtp = client(server, tls="none", username=USER, password=password)
        smtp.trace = trace
        with caplog.at_level(logging.DEBUG, "asmtp"):
            try:
                await smtp.connect()
            except asmtp.SMTPAuthenticationError as error:
                shown = repr(error) + str(error.args)
            else:
                shown = ""
            shown += repr(smtp) + repr(smtp._session) + "".join(record.getMessage() for record in caplog.records)
            await smtp.close()
        shown += b"\n".join(written).decode("latin-1")
        forms: list[Callable[[str], str]] = [str, b64, lambda text: b64(f"\0{USER}\0{text}")]
        for form in forms:
            assert form(password) not in shown
        assert b64(USER) not in shown
        # Not even a digest of it.
        assert not re.search(r"[A-Za-z0-9+/]{40,}", shown)
        assert b"(not shown)" in written


# ---- in the clear -----------------------------------------------------------------------------


@pytest.fixture
def far_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server is not on this machine."""
    monkeypatch.setattr(Connection, "local", False)


@pytest.mark.usefixtures("far_away")
async def test_no_password_in_the_clear() -> None:
    """PLAIN and LOGIN are for TLS, unless the caller says so; what protects the password goes without."""
    async with embedded(Embedded(mechanisms=("PLAIN", "LOGIN"))) as server, client(server) as smtp:
        with pytest.raises(asmtp.SMTPNotSupportedError, match="PLAIN and LOGIN would send the password"):
            await smtp.login(USER, PASSWORD)
        assert server.logins == []
        assert (await smtp.noop()).ok
    async with embedded(Embedded(mechanisms=("PLAIN", "CRAM-MD5"))) as server, client(server) as smtp:
        await smtp.login(USER, PASSWORD)
        assert server.logins == [("CRAM-MD5", True)]


@pytest.mark.usefixtures("far_away")
async def test_a_password_in_the_clear_where_that_is_meant() -> None:
    async with embedded(Embedded(mechanisms=("PLAIN",))) as server:
        async with client(server, tls="none") as smtp:
            await smtp.login(USER, PASSWORD)
        async with client(server, tls="none", username=USER, password=PASSWORD):
            pass
        assert server.logins == [("PLAIN", True)] * 2


@pytest.mark.usefixtures("far_away")
async def test_a_password_under_tls(certificates: Certificates) -> None:
    async with (
        embedded(Embedded(mechanisms=("LOGIN",)), tls=certificates.server) as server,
        client(server, ssl_context=certificates.trusting) as smtp,
    ):
        await smtp.starttls()
        await smtp.login(USER, PASSWORD)
        assert server.logins == [("LOGIN", True)]


@pytest.mark.usefixtures("far_away")
@pytest.mark.parametrize("how", ["opportunistic", "required"])
async def test_a_password_under_tls_that_is_not_verified(how: str, certificates: Certificates) -> None:
    """With "opportunistic", the server may be somebody else's; a context that verifies nothing says that it may."""
    context = certificates.wary if how == "opportunistic" else unverified_context()
    async with (
        embedded(Embedded(mechanisms=("PLAIN",)), tls=certificates.server) as server,
        client(server, tls=how, ssl_context=context) as smtp,
    ):
        assert smtp.sock is not None
        if how == "required":
            await smtp.login(USER, PASSWORD)
        else:
            with pytest.raises(asmtp.SMTPNotSupportedError, match="a certificate that can be verified"):
                await smtp.login(USER, PASSWORD)
        assert server.logins == ([("PLAIN", True)] if how == "required" else [])


@pytest.mark.usefixtures("far_away")
async def test_a_password_under_opportunistic_tls_that_is_verified(certificates: Certificates) -> None:
    async with (
        embedded(Embedded(mechanisms=("PLAIN",)), tls=certificates.server) as server,
        client(server, tls="opportunistic", ssl_context=certificates.trusting) as smtp,
    ):
        await smtp.login(USER, PASSWORD)
        assert server.logins == [("PLAIN", True)]


# ---- mechanisms that are asked for ------------------------------------------------------------


async def test_external(certificates: Certificates) -> None:
    """The client's certificate says who it is."""
    wanted = certificates.showing(certificates.issued)
    wanted.verify_mode = ssl.CERT_REQUIRED
    certificates.ca.configure_trust(wanted)
    under_tls = [expect("ehlo me.example"), send("250-hi", "250 AUTH PLAIN EXTERNAL")]
    script = [send("220 hi"), *under_tls, expect("AUTH EXTERNAL ="), send("235 ok"), nothing_more]
    async with scripted(script, tls=wanted) as server:
        smtp = asmtp.AsyncSMTP_SSL(
            "127.0.0.1", server.port, "me.example", mechanisms=["EXTERNAL"],
            ssl_context=certificates.client(certificate=True),
        )  # fmt: skip
        await smtp.connect()
        await smtp.close()


async def test_mechanisms_alone_make_tls_required() -> None:
    async with embedded(Embedded()) as server:
        with pytest.raises(asmtp.SMTPNotSupportedError, match="STARTTLS"):
            await client(server, mechanisms=["EXTERNAL"]).connect()
        with pytest.raises(asmtp.SMTPNotSupportedError, match="No suitable authentication method"):
            await client(server, mechanisms=["EXTERNAL"], tls="none").connect()


async def test_a_mechanism_of_the_caller_s_is_a_generator() -> None:
    asked: list[Any] = []

    def corp(credentials: asmtp.Credentials) -> Any:
        asked.append((credentials.username, credentials.password, credentials.host, threading.current_thread()))
        challenge = yield b"hello"
        asked.append(challenge)
        asked.append((yield challenge[::-1]))

    steps = [expect("AUTH X-CORP " + b64("hello")), send("334 " + b64("abc")), expect(b64("cba")), send("235 welcome")]
    async with scripted(offering("X-CORP PLAIN", *steps), offering("X-CORP PLAIN", *steps)) as server:
        smtp = client(server)
        await smtp.connect()
        assert await smtp.login("me", "secret", mechanisms=[("x-corp", corp), "PLAIN"]) == (235, b"welcome")
        await smtp.close()
        smtp = client(server, username="me", mechanisms=[("X-CORP", corp)], tls="none")
        await smtp.connect()
        await smtp.close()
    assert asked[0][:3] == ("me", "secret", "127.0.0.1")
    assert asked[0][3] is not threading.main_thread()  # it may block
    assert asked[1:3] == [b"abc", None]
    assert asked[3][:2] == ("me", "")


async def test_a_generator_given_to_auth() -> None:
    def corp() -> Any:
        yield None
        yield b"there"

    steps = [expect("AUTH X-CORP"), send("334 "), expect(b64("there")), send("235 welcome")]
    async with scripted(offering("X-CORP", *steps)) as server:
        smtp = client(server)
        await smtp.connect()
        await smtp.ehlo()
        assert await smtp.auth("X-CORP", corp()) == (235, b"welcome")
        await smtp.close()


async def test_a_slow_mechanism_does_not_keep_a_closed_connection_waiting() -> None:
    """The server goes while the mechanism computes."""
    go_on, begun = threading.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def slow() -> Any:
        yield None
        loop.call_soon_threadsafe(begun.set)
        go_on.wait(10)
        yield b"late"

    async def reached(peer: Peer) -> None:
        await begun.wait()

    async with scripted([send("220 hi"), expect("AUTH X-SLOW"), send("334 "), reached, fin]) as server:
        smtp = client(server)
        await smtp.connect()
        with pytest.raises(asmtp.SMTPServerDisconnected):
            await smtp.auth("X-SLOW", slow())
        go_on.set()
        await smtp.close()


async def test_a_slow_mechanism_is_cancelled() -> None:
    go_on, begun = threading.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def slow() -> Any:
        yield None
        loop.call_soon_threadsafe(begun.set)
        go_on.wait(10)
        yield b"late"

    async with scripted([send("220 hi"), expect("AUTH X-SLOW"), send("334 "), nothing_more]) as server:
        smtp = client(server)
        await smtp.connect()
        login = asyncio.create_task(smtp.auth("X-SLOW", slow()))
        await begun.wait()
        login.cancel()
        with pytest.raises(asyncio.CancelledError):
            await login
        assert not smtp.is_connected  # in the middle of an exchange
        go_on.set()
        await smtp.close()


@pytest.mark.parametrize("way", ["async", "facade"])
def test_a_password_that_comes_back_as_a_challenge_is_not_shown(way: str) -> None:
    line = base64.b64encode(b"\0joe\0Sup3rSecret").decode()
    hello = [send("220 hi"), expect("ehlo me.example"), send("250-hi", "250 AUTH PLAIN")]
    asked = [step for _ in range(5) for step in (send(f"334 {line}"), expect(line))]
    again = [expect(f"AUTH PLAIN {line}"), *asked, send(f"334 {line}"), expect("*"), send("501 cancelled")]
    with in_background(scripted([*hello, *again, nothing_more])) as server:

        def authobject(challenge: bytes | None = None) -> str:
            return "\0joe\0Sup3rSecret"

        async def run() -> None:
            smtp = AsyncSMTP(server.host, server.port, "me.example")
            await smtp.connect()
            try:
                await smtp.ehlo()
                await smtp.auth("PLAIN", authobject)
            finally:
                await smtp.close()

        with pytest.raises(asmtp.SMTPException, match="infinite loop") as caught:
            if way == "async":
                asyncio.run(run())
            else:
                smtp = asmtp.SMTP(server.host, server.port, "me.example")
                try:
                    smtp.ehlo()
                    smtp.auth("PLAIN", authobject)
                finally:
                    smtp.close()
    assert line not in str(caught.value)
    assert "(not shown)" in str(caught.value)
