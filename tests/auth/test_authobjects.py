"""Logging in with smtplib's calls: login, auth and its authobjects, AUTH by hand; beside smtplib's."""

from __future__ import annotations

import base64
import hmac
import smtplib
from collections.abc import Iterator
from typing import Any

import pytest

import asmtp
from tests.fakes.background import in_background
from tests.fakes.embedded import PASSWORD, USER, Embedded, embedded
from tests.fakes.relay import Relay
from tests.fakes.script import expect, nothing_more, scripted, send
from tests.sync.facade import BOTH, connected, nothing_left, relay_at, script_at, told

WELCOME = b"2.7.0 Authentication successful"


@pytest.fixture(autouse=True)
def loops(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    if "nothing_is_left" in request.fixturenames:  # an async test, which has a check of its own
        yield
    else:
        with nothing_left(monkeypatch):
            yield


def b64(text: str | bytes) -> str:
    return base64.b64encode(text.encode() if isinstance(text, str) else text).decode()


# ---- login --------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("initial", [True, False], ids=["initial response", "none"])
@pytest.mark.parametrize("mechanism", ["CRAM-MD5", "PLAIN", "LOGIN"])
def test_login(module: Any, mechanism: str, initial: bool) -> None:
    handler = Embedded(mechanisms=(mechanism,))
    with in_background(embedded(handler)), connected(module, handler) as smtp:
        reply = smtp.login(USER, PASSWORD, initial_response_ok=initial)
        assert reply == (235, WELCOME)
        assert (smtp.user, smtp.password) == (USER, PASSWORD)
        assert smtp.sendmail("a@b.example", "c@d.example", "hi") == {}
        # Once more: 503 is as good.
        assert smtp.login(USER, PASSWORD)[0] == 503
    assert handler.logins == [(mechanism, True)]


@BOTH
@pytest.mark.parametrize("mechanism", ["CRAM-MD5", "PLAIN", "LOGIN"])
def test_wrong_password(module: Any, mechanism: str) -> None:
    handler = Embedded(mechanisms=(mechanism,))
    with in_background(embedded(handler)), connected(module, handler) as smtp:
        with pytest.raises(module.SMTPAuthenticationError) as caught:
            smtp.login(USER, "wrong")
        expected = {"smtp_code": 535, "smtp_error": b"5.7.8 Authentication credentials invalid"}
        assert told(caught.value) == (smtplib.SMTPAuthenticationError, expected)
        assert "wrong" not in str(caught.value)
        assert b64("wrong") not in str(caught.value)
        assert smtp.noop()[0] == 250
        assert smtp.login(USER, PASSWORD) == (235, WELCOME)
    assert handler.logins == [(mechanism, False), (mechanism, True)]


def test_a_wrong_password_is_not_tried_with_weaker_mechanisms() -> None:
    handler = Embedded()
    refused = pytest.raises(asmtp.SMTPAuthenticationError)
    with in_background(embedded(handler)), connected(asmtp, handler) as smtp, refused:
        smtp.login(USER, "wrong")
    assert handler.logins == [("CRAM-MD5", False)]


@BOTH
def test_a_mechanism_that_the_server_offers_in_vain(module: Any) -> None:
    relay = Relay(("AUTH CRAM-MD5 LOGIN PLAIN",), answer=lambda verb, line: "235 ok" if "PLAIN" in line else "504 no")
    with relay_at(relay):
        relay.answer, answer = (lambda verb, line: None), relay.answer
        with connected(module, relay) as smtp:
            smtp.ehlo()
            relay.answer = answer
            assert smtp.login("user", "pass") == (235, b"ok")
            relay.answer = lambda verb, line: "504 no to " + line.split()[1]
            with pytest.raises(module.SMTPAuthenticationError) as caught:
                smtp.login("user", "pass")
            assert told(caught.value)[1] == {"smtp_code": 504, "smtp_error": b"no to LOGIN"}
    assert relay.commands[1:3] == ["AUTH CRAM-MD5", "AUTH PLAIN " + b64("\0user\0pass")]
    assert [line.split()[1] for line in relay.commands[3:]] == ["CRAM-MD5", "PLAIN", "LOGIN"]


@BOTH
def test_no_way_to_log_in(module: Any) -> None:
    with relay_at(Relay(("AUTH GSSAPI NTLM",))) as relay, connected(module, relay) as smtp:
        with pytest.raises(module.SMTPException, match=r"^No suitable authentication method found\."):
            smtp.login("user", "pass")
        smtp.esmtp_features.pop("auth")
        with pytest.raises(module.SMTPNotSupportedError, match=r"^SMTP AUTH extension not supported by server\.$"):
            smtp.login("user", "pass")
    assert relay.commands == ["ehlo client.example"]


def test_what_cannot_be_a_login() -> None:
    with relay_at(Relay(("AUTH PLAIN",))) as relay, connected(asmtp, relay) as smtp:
        for user, password, kind in (("u\r\n", "p", ValueError), ("u", "p\0", ValueError), ("u", b"p", TypeError)):
            with pytest.raises(kind):
                smtp.login(user, password)
        assert smtp.sock is not None
    assert relay.commands == ["ehlo client.example"]


# ---- auth ---------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("mechanism", ["CRAM-MD5", "PLAIN", "LOGIN"])
@pytest.mark.parametrize("initial", [True, False], ids=["initial response", "none"])
def test_auth_with_the_authobjects_that_are_there(module: Any, mechanism: str, initial: bool) -> None:
    handler = Embedded()
    with in_background(embedded(handler)), connected(module, handler) as smtp:
        smtp.ehlo()
        smtp.user, smtp.password = USER, PASSWORD
        authobject = getattr(smtp, "auth_" + mechanism.lower().replace("-", "_"))
        assert smtp.auth(mechanism.lower(), authobject, initial_response_ok=initial) == (235, WELCOME)
    assert handler.logins == [(mechanism, True)]


@BOTH
def test_authobjects_are_functions_of_the_challenge(module: Any) -> None:
    smtp = module.SMTP(local_hostname="client.example")
    smtp.user, smtp.password = "user", "pass"
    assert smtp.auth_plain() == smtp.auth_plain(b"") == "\0user\0pass"
    assert smtp.auth_cram_md5() is None
    assert smtp.auth_cram_md5(b"<1@x>") == "user " + hmac.new(b"pass", b"<1@x>", "md5").hexdigest()
    assert smtp.auth_login() == smtp.auth_login(b"Username:") == "user"


@BOTH
def test_a_mechanism_of_ones_own(module: Any) -> None:
    """It looks at the connection meanwhile."""
    seen: list[Any] = []

    def authobject(challenge: bytes | None = None) -> str | None:
        seen.append((challenge, smtp.has_extn("auth"), smtp.sock is not None, smtp.ehlo_resp))
        return None if challenge is None else f"to {challenge.decode()}"

    hello = [expect("ehlo client.example"), send("250-hi", "250 AUTH X-OWN")]
    rounds = [expect("AUTH X-OWN"), send(f"334 {b64('one')}"), expect(b64("to one")), send(f"334 {b64('two')}")]
    script = [send("220 hi"), *hello, *rounds, expect(b64("to two")), send("235 welcome"), nothing_more]
    with script_at(script) as server, connected(module, server) as smtp:
        smtp.ehlo()
        assert smtp.auth("x-own", authobject) == (235, b"welcome")
    facts = (True, True, b"hi\nAUTH X-OWN")
    assert seen == [(None, *facts), (b"one", *facts), (b"two", *facts)]


@BOTH
def test_an_authobject_that_calls_back(module: Any) -> None:
    """It answers the first challenge itself, and goes on from the reply to that."""

    def authobject(challenge: bytes | None = None) -> str | None:
        if challenge is None:
            return None
        code, text = smtp.docmd(b64("first"))
        assert code == 334
        return base64.b64decode(text).decode()

    rounds = [expect("AUTH X-OWN"), send("334 "), expect(b64("first")), send(f"334 {b64('again')}")]
    script = [send("220 hi"), *rounds, expect(b64("again")), send("235 welcome"), nothing_more]
    with script_at(script) as server, connected(module, server) as smtp:
        assert smtp.auth("X-OWN", authobject) == (235, b"welcome")


@BOTH
@pytest.mark.parametrize("reply", ["535 wrong", "454 later", "501 what?"])
def test_auth_refused(module: Any, reply: str) -> None:
    with relay_at(Relay(answer=lambda verb, line: reply)) as relay, connected(module, relay) as smtp:
        with pytest.raises(module.SMTPAuthenticationError) as caught:
            smtp.auth("PLAIN", lambda challenge=None: "\0a\0b")
        expected = {"smtp_code": int(reply[:3]), "smtp_error": reply[4:].encode()}
        assert told(caught.value) == (smtplib.SMTPAuthenticationError, expected)
        assert smtp.sock is not None


@BOTH
def test_a_server_that_asks_and_asks(module: Any) -> None:
    forever = pytest.raises(module.SMTPException, match="mechanism infinite loop")
    with relay_at(Relay(answer=lambda verb, line: "334 ")) as relay, connected(module, relay) as smtp, forever:
        smtp.auth("X-OWN", lambda challenge=None: "again")


def test_a_challenge_that_is_not_base64() -> None:
    rounds = [expect("AUTH X-OWN"), send("334 ???"), expect("*"), send("501 cancelled")]
    script = [send("220 hi"), *rounds, expect("noop"), send("250 ok"), nothing_more]
    with script_at(script) as server, connected(asmtp, server) as smtp:
        with pytest.raises(asmtp.SMTPAuthenticationError, match="challenge not understood; cancelled: cancelled"):
            smtp.auth("X-OWN", lambda challenge=None: None)
        assert smtp.noop() == (250, b"ok")


def test_an_authobject_that_fails() -> None:
    """In the middle of an exchange it is cancelled (RFC 4954 §4); before it, nothing has happened."""

    def authobject(challenge: bytes | None = None) -> None:
        if challenge is not None:
            raise LookupError("no such key")

    rounds = [expect("AUTH X-OWN"), send("334 "), expect("*"), send("501 cancelled")]
    script = [send("220 hi"), *rounds, expect("noop"), send("250 ok"), nothing_more]
    with script_at(script) as server, connected(asmtp, server) as smtp:
        with pytest.raises(AttributeError, match="user"):
            smtp.auth("PLAIN", smtp.auth_plain)
        with pytest.raises(ValueError, match="mechanism: not a SASL mechanism's name: 'A B'"):
            smtp.auth("A B", lambda challenge=None: None)
        with pytest.raises(LookupError, match="no such key"):
            smtp.auth("X-OWN", authobject)
        assert smtp.noop() == (250, b"ok")


def test_an_interrupt_in_the_middle() -> None:
    """No command is possible there, so the connection ends."""

    def authobject(challenge: bytes | None = None) -> None:
        if challenge is not None:
            raise KeyboardInterrupt

    script = [send("220 hi"), expect("AUTH X-OWN"), send("334 "), nothing_more]
    with script_at(script) as server, connected(asmtp, server) as smtp:
        with pytest.raises(KeyboardInterrupt):
            smtp.auth("X-OWN", authobject)
        assert smtp.sock is None


@BOTH
def test_auth_by_hand(module: Any) -> None:
    handler = Embedded()
    with in_background(embedded(handler)), connected(module, handler) as smtp:
        smtp.ehlo()
        assert smtp.docmd("AUTH", "LOGIN")[0] == 334
        assert smtp.docmd(b64(USER))[0] == 334
        assert smtp.docmd(b64("wrong"))[0] == 535
        smtp.putcmd("AUTH", f"LOGIN {b64(USER)}")
        assert smtp.getreply()[0] == 334
        smtp.putcmd(b64(PASSWORD))
        assert smtp.getreply() == (235, WELCOME)
        assert smtp.sendmail("a@b.example", "c@d.example", "hi") == {}
    assert handler.logins == [("LOGIN", False), ("LOGIN", True)]


# ---- steps that a subclass has ------------------------------------------------------------------


@BOTH
def test_a_subclass_with_a_mechanism_of_its_own(module: Any) -> None:
    class Own(module.SMTP):  # type: ignore[misc]
        def auth_plain(self, challenge: bytes | None = None) -> str:
            return f"authorized\0{self.user}\0{self.password}"

        def auth(self, mechanism: str, authobject: Any, **options: Any) -> Any:
            mechanisms.append((mechanism, options))
            return super().auth(mechanism, authobject, **options)

    mechanisms: list[Any] = []
    relay = Relay(("AUTH PLAIN",), answer=lambda verb, line: "235 ok" if verb == "AUTH" else None)
    with relay_at(relay):
        smtp = Own("127.0.0.1", relay.port, "client.example")
        assert smtp.login("user", "pass") == (235, b"ok")
        smtp.quit()
    assert relay.commands[1] == "AUTH PLAIN " + b64("authorized\0user\0pass")
    assert mechanisms == [("PLAIN", {"initial_response_ok": True})]


# ---- and awaited --------------------------------------------------------------------------------


@pytest.mark.parametrize("mechanism", ["CRAM-MD5", "PLAIN", "LOGIN"])
@pytest.mark.parametrize("initial", [True, False], ids=["initial response", "none"])
async def test_the_async_client_has_the_same_authobjects(mechanism: str, initial: bool) -> None:
    handler = Embedded()
    async with embedded(handler), asmtp.AsyncSMTP("127.0.0.1", handler.port, "client.example") as smtp:
        await smtp.ehlo()
        smtp.user, smtp.password = USER, PASSWORD
        authobject = getattr(smtp, "auth_" + mechanism.lower().replace("-", "_"))
        assert await smtp.auth(mechanism, authobject, initial_response_ok=initial) == (235, WELCOME)
    assert handler.logins == [(mechanism, True)]


async def test_an_authobject_of_the_async_client_that_fails_at_once() -> None:
    script = [send("220 hi"), expect("quit"), send("221 bye")]
    async with scripted(script) as server, asmtp.AsyncSMTP("127.0.0.1", server.port) as smtp:
        with pytest.raises(AttributeError, match="user"):
            await smtp.auth("PLAIN", smtp.auth_plain)
