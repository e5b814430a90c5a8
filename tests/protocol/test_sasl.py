"""SASL: the RFCs' own examples, and servers that do not keep to them."""

from __future__ import annotations

import base64
import hmac
from typing import Any

import pytest

from asmtp.auth.authobjects import AuthObjects
from asmtp.auth.mechanisms import cram_md5, external, login, oauthbearer, plain, xoauth2
from asmtp.errors import SMTPAuthenticationError
from asmtp.protocol.dialogue import authentication
from asmtp.protocol.reply import Reply
from asmtp.protocol.sasl import Credentials, Mechanism, SASLExchange, from_authobject, unproven
from tests.protocol.letters import NOOP, STARTS, opened
from tests.protocol.transcript import Start, play


def b64(text: str | bytes) -> str:
    return base64.b64encode(text.encode() if isinstance(text, str) else text).decode()


def attempt(name: str, mechanism: Any, **options: Any) -> dict[str, Start]:
    """Return the start of a login whose mechanism is made anew each time that the login is played."""
    make = lambda session: authentication(session, SASLExchange(name, mechanism(), **options))  # noqa: E731
    return {"login": Start(make, alone=True), "noop": NOOP}


def bearing(username: str, token: str, host: str = "", port: int = 0) -> Credentials:
    return Credentials(username, token=token, host=host, port=port)


TIM = Credentials("tim", "tanstaaftanstaaf")
PLAIN = attempt("PLAIN", lambda: plain(TIM))
LOGIN = attempt("LOGIN", lambda: login(TIM))
CRAM = attempt("CRAM-MD5", lambda: cram_md5(TIM))

START_LOGIN = """
    start login
    C: AUTH LOGIN
    S: 334 VXNlcm5hbWU6
    C: dGlt
    S: 334 UGFzc3dvcmQ6
    C: dGFuc3RhYWZ0YW5zdGFhZg==
    """


def said(text: str, starts: dict[str, Start]) -> str:
    result = play(text, starts, opened("PIPELINING"))
    assert result.state == "READY"
    return result["login"]


# ---- mechanisms ------------------------------------------------------------------------------


def test_plain() -> None:
    """RFC 4954 §4.1."""
    assert b64("\0tim\0tanstaaftanstaaf") == "AHRpbQB0YW5zdGFhZnRhbnN0YWFm"
    text = "start login\nC: AUTH PLAIN AHRpbQB0YW5zdGFhZnRhbnN0YWFm\nS: 235 2.7.0 Authentication successful"
    assert said(text, PLAIN) == "235 2.7.0 Authentication successful"


def test_plain_is_utf8() -> None:
    assert next(plain(Credentials("jörg", "pässword"))) == "\0jörg\0pässword".encode()


def test_login() -> None:
    assert said(START_LOGIN + "S: 235 ok", LOGIN) == "235 ok"


def test_cram_md5() -> None:
    """RFC 2195 §2."""
    text = """
        start login
        C: AUTH CRAM-MD5
        S: 334 PDE4OTYuNjk3MTcwOTUyQHBvc3RvZmZpY2UucmVzdG9uLm1jaS5uZXQ+
        C: dGltIGI5MTNhNjAyYzdlZGE3YTQ5NWI0ZTZlNzMzNGQzODkw
        S: 235 CRAM authentication successful
        """
    assert said(text, CRAM) == "235 CRAM authentication successful"


def test_cram_md5_where_md5_is_forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mechanism raises before anything is written."""

    def forbidden(*args: object) -> None:
        raise ValueError("unsupported hash type md5")

    monkeypatch.setattr(hmac, "new", forbidden)
    with pytest.raises(ValueError, match="^unsupported hash type md5$"):
        cram_md5(TIM)


# ---- mechanisms with a token -----------------------------------------------------------------

TOKEN = "vF9dft4qmTc2Nvb3RlckBhbHRhdmlzdGEuY29tCg=="
BEARER = attempt("OAUTHBEARER", lambda: oauthbearer(bearing("user@example.com", TOKEN, "server.example.com", 143)))
BEARER_LINE = (
    "bixhPXVzZXJAZXhhbXBsZS5jb20sAWhvc3Q9c2VydmVyLmV4YW1wbGUuY29tAXBvcnQ9MTQzAWF1dGg9QmVhcmVyI"
    "HZGOWRmdDRxbVRjMk52YjNSbGNrQmhiSFJoZG1semRHRXVZMjl0Q2c9PQEB"
)
GOOGLE_TOKEN = "ya29.vF9dft4qmTc2Nvb3RlckBhdHRhdmlzdGEuY29tCg"
XOAUTH2 = attempt("XOAUTH2", lambda: xoauth2(bearing("someuser@example.com", GOOGLE_TOKEN)))
XOAUTH2_LINE = (
    "dXNlcj1zb21ldXNlckBleGFtcGxlLmNvbQFhdXRoPUJlYXJlciB5YTI5LnZGOWRmdDRxbVRjMk52YjNSbGNrQmhkSFJo"
    "ZG1semRHRXVZMjl0Q2cBAQ=="
)


def test_oauthbearer() -> None:
    """RFC 7628 §4.1."""
    assert said(f"start login\nC: AUTH OAUTHBEARER {BEARER_LINE}\nS: 235 2.7.0 ok", BEARER) == "235 2.7.0 ok"


def test_oauthbearer_refused() -> None:
    """RFC 7628 §4.4."""
    error = (
        "eyJzdGF0dXMiOiJpbnZhbGlkX3Rva2VuIiwic2NoZW1lcyI6ImJlYXJlciBtYWMi"
        "LCJzY29wZSI6Imh0dHBzOi8vbWFpbC5leGFtcGxlLmNvbS8ifQ=="
    )
    text = f"""
        start login
        C: AUTH OAUTHBEARER {BEARER_LINE}
        S: 334 {error}
        C: AQ==
        S: 535-5.7.1 Username and Password not accepted. Learn more at
        S: 535 5.7.1 support.example.com/support.
        """
    told = said(text, BEARER)
    assert told.startswith("SMTPAuthenticationError 535 5.7.1 Username and Password not accepted. ")
    assert told.endswith("support. (status: invalid_token, scope: https://mail.example.com/)")


def test_xoauth2() -> None:
    """This is Google's example."""
    assert said(f"start login\nC: AUTH XOAUTH2 {XOAUTH2_LINE}\nS: 235 2.7.0 Accepted", XOAUTH2) == "235 2.7.0 Accepted"


def test_xoauth2_refused() -> None:
    """In Google's example, the client answers the error with an empty line."""
    text = f"""
        start login
        C: AUTH XOAUTH2 {XOAUTH2_LINE}
        S: 334 eyJzdGF0dXMiOiI0MDEiLCJzY2hlbWVzIjoiYmVhcmVyIG1hYyIsInNjb3BlIjoiaHR0cHM6Ly9tYWlsLmdvb2dsZS5jb20vIn0K
        C:\x20
        S: 535 5.7.1 Username and Password not accepted.
        start noop
        C: noop
        S: 250 ok
        """
    result = play(text, XOAUTH2, opened())
    refused = "SMTPAuthenticationError 535 5.7.1 Username and Password not accepted."
    assert result["login"] == f"{refused} (status: 401, scope: https://mail.google.com/)"
    assert result["noop"] == "250 ok"


@pytest.mark.parametrize("starts", [BEARER, XOAUTH2])
def test_a_token_refused_at_once(starts: Any) -> None:
    """Microsoft's servers refuse a token without a challenge."""
    name, line = ("OAUTHBEARER", BEARER_LINE) if starts is BEARER else ("XOAUTH2", XOAUTH2_LINE)
    text = f"start login\nC: AUTH {name} {line}\nS: 535 5.7.3 Authentication unsuccessful"
    assert said(text, starts) == "SMTPAuthenticationError 535 5.7.3 Authentication unsuccessful"


@pytest.mark.parametrize(
    ("username", "field"),
    [
        ("user@example.com", b"user@example.com"),
        ("a=b,c", b"a=3Db=2Cc"),
        ("=2C", b"=3D2C"),
        ("j\u00f6rg", b"j\xc3\xb6rg"),
    ],
)
def test_the_user_name_of_oauthbearer(username: str, field: bytes) -> None:
    """RFC 5801 §4."""
    assert next(oauthbearer(bearing(username, "t0k"))) == b"n,a=%b,\1auth=Bearer t0k\1\1" % field


@pytest.mark.parametrize(
    ("host", "port", "fields"),
    [
        ("mx.example", 0, b"\1host=mx.example"),
        ("", 587, b"\1port=587"),
        ("::1", 25, b"\1host=::1\1port=25"),
        ("b\u00fccher.example", 587, b"\1host=xn--bcher-kva.example\1port=587"),
    ],
)
def test_the_host_of_oauthbearer(host: str, port: int, fields: bytes) -> None:
    assert next(oauthbearer(bearing("me", "t0k", host, port))) == b"n,a=me,%b\1auth=Bearer t0k\1\1" % fields


def test_xoauth2_takes_names_as_they_are() -> None:
    assert next(xoauth2(bearing("a=b,c\u00f6", "t0k", "mx.example", 25))) == b"user=a=b,c\xc3\xb6\1auth=Bearer t0k\1\1"


@pytest.mark.parametrize("name", ["OAUTHBEARER", "XOAUTH2"])
@pytest.mark.parametrize("empty", ["334", "334 "])
def test_a_long_token(name: str, empty: str) -> None:
    """A long token waits to be asked for, and the challenge that asks for it is not taken for an error."""
    long = TOKEN * 50
    mechanism = {"OAUTHBEARER": oauthbearer, "XOAUTH2": xoauth2}[name]
    starts = attempt(name, lambda: mechanism(bearing("me", long, "mx.example", 587)))
    response = next(mechanism(bearing("me", long, "mx.example", 587)))
    assert response is not None
    begun = f"start login\nC: AUTH {name}\nS: {empty}\nC: {b64(response)}\n"
    assert said(begun + "S: 235 ok", starts) == "235 ok"
    assert said(begun + "S: 535 no", starts) == "SMTPAuthenticationError 535 no"
    last = "AQ==" if name == "OAUTHBEARER" else ""
    error = b64('{"status":"400"}')
    text = f"{begun}S: 334 {error}\nC: {last}\nS: 535 no"
    assert said(text, starts) == "SMTPAuthenticationError 535 no (status: 400)"


def test_an_error_and_then_another() -> None:
    text = f"start login\nC: AUTH OAUTHBEARER {BEARER_LINE}\nS: 334 e30=\nC: AQ==\nS: 334 e30=\nC: *\nS: 501 what"
    assert said(text, BEARER) == "SMTPAuthenticationError 501 challenge not understood; cancelled: what"


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        ('{"status":"invalid_token"}', " (status: invalid_token)"),
        ('{"status":401,"scope":null}', " (status: 401)"),
        ('{"scope":"a b","openid-configuration":"https://x/","more":[]}', " (scope: a b)"),
        ('{"status":"a\\r\\nb\\u00e9\\ud800"}', r" (status: a\r\nb\xe9\ud800)"),
        ('{"schemes":"bearer"}', ""),
        ('["status"]', ""),
        ('"status"', ""),
        ("status", ""),
        ("", ""),
        (b"\xff\xfe\xfd", ""),
        ("[" * 100_000, ""),
        ("1" * 5000, ""),
    ],
)
def test_what_is_told_of_an_error(error: str | bytes, shown: str) -> None:
    assert (
        told_behind("xoauth2", xoauth2(bearing("me", "t0k")), b64(error), b"5.7.8 no") == b"5.7.8 no" + shown.encode()
    )


def told_behind(name: str, mechanism: Mechanism, challenge: str, refusal: bytes) -> bytes | str:
    """Return the text of the error after a challenge and a refusal."""
    sasl = SASLExchange(name, mechanism)
    sasl.reply = Reply(334, challenge.encode())
    sasl.go_on()
    sasl.reply = Reply(535, refusal)
    with pytest.raises(SMTPAuthenticationError) as caught:
        sasl.go_on()
    assert caught.value.smtp_code == 535
    return caught.value.smtp_error


def test_nothing_is_told_of_other_challenges() -> None:
    assert told_behind("CRAM-MD5", cram_md5(TIM), b64('{"status":"400"}'), b"no") == b"no"


# ---- what servers say ------------------------------------------------------------------------


@pytest.mark.parametrize("reply", ["535 5.7.8 no", "454 later", "250 what", "504 unknown"])
def test_refused(reply: str) -> None:
    text = f"start login\nC: AUTH PLAIN AHRpbQB0YW5zdGFhZnRhbnN0YWFm\nS: {reply}"
    assert said(text, PLAIN) == f"SMTPAuthenticationError {reply}"
    assert said(START_LOGIN + f"S: {reply}", LOGIN) == f"SMTPAuthenticationError {reply}"


def test_refused_and_closed() -> None:
    result = play("start login\nC: AUTH LOGIN\nS: 421 bye", LOGIN, opened())
    assert result["login"] == "SMTPAuthenticationError 421 bye"
    assert result.state == "CLOSED"


def test_already_authenticated() -> None:
    """The reply counts as success, as in smtplib."""
    assert said("start login\nC: AUTH LOGIN\nS: 503 already", LOGIN) == "503 already"


def test_nothing_is_written_for_a_server_that_has_not_proved_itself() -> None:
    """Dialogues that others have queued behind the login are not for such a server."""

    def deceived() -> Mechanism:
        yield b"hello"
        raise unproven("it is somebody else")

    starts = {**attempt("X", deceived), "one": STARTS["one"]}
    text = f"start login\nC: AUTH X {b64('hello')}\nstart one\nS: 235 welcome"
    result = play(text, starts, opened("both"))
    assert result["login"] == "SMTPAuthenticationError -1 it is somebody else"
    assert result["one"] == "SMTPServerDisconnected the server has not proved that it knows the password [not_sent]"
    assert result.state == "BROKEN"


def test_cut_off() -> None:
    result = play("start login\nC: AUTH LOGIN\nS: 334 \nC: dGlt\neof", LOGIN, opened())
    assert result["login"] == "SMTPServerDisconnected Connection unexpectedly closed"


def test_the_server_asks_and_asks() -> None:
    asking = attempt("X", lambda: from_authobject(lambda challenge=None: "again"))
    text = f"start login\nC: AUTH X {b64('again')}\n" + f"S: 334 {b64('more')}\nC: {b64('again')}\n" * 5
    text += f"S: 334 {b64('more')}\nC: *\nS: 501 cancelled"
    told = said(text, asking)
    assert told == "SMTPException Server AUTH mechanism infinite loop. Last response: (334, b'bW9yZQ==')"


def test_the_server_asks_though_it_was_cancelled() -> None:
    """The server goes on in the middle of a login, so nothing else can be said to it."""
    text = START_LOGIN + "S: 334 bW9yZQ==\nC: *\nS: 334 bW9yZQ=="
    result = play(text, LOGIN, opened())
    assert result["login"].startswith("SMTPAuthenticationError 334 challenge not understood; cancelled: ")
    assert result.state == "BROKEN"


@pytest.mark.parametrize("challenge", ["not base64!", "YQ", "Y", "YQ=", "\u00fc", "YQ==YQ=="])
def test_a_challenge_that_is_not_base64_is_cancelled(challenge: str) -> None:
    text = f"start login\nC: AUTH CRAM-MD5\nS: 334 {challenge}\nC: *\nS: 501 cancelled\nstart noop\nC: noop\nS: 250 ok"
    result = play(text, CRAM, opened())
    assert result["login"] == "SMTPAuthenticationError 501 challenge not understood; cancelled: cancelled"
    assert result["noop"] == "250 ok"


def test_a_challenge_too_many_is_cancelled() -> None:
    told = said(START_LOGIN + "S: 334 bW9yZQ==\nC: *\nS: 501 cancelled", LOGIN)
    assert told == "SMTPAuthenticationError 501 challenge not understood; cancelled: cancelled"


def test_an_empty_challenge() -> None:
    seen: list[bytes] = []

    def authobject(challenge: bytes) -> str:
        seen.append(challenge)
        return ""

    starts = attempt("X", lambda: from_authobject(authobject, initial_response_ok=False))
    assert said("start login\nC: AUTH X\nS: 334\nC: \nS: 235 ok", starts) == "235 ok"
    assert set(seen) == {b""}


# ---- the initial response --------------------------------------------------------------------


def test_an_empty_initial_response_is_written_as_an_equals_sign() -> None:
    starts = attempt("EXTERNAL", lambda: from_authobject(lambda: b""))
    assert said("start login\nC: AUTH EXTERNAL =\nS: 235 ok", starts) == "235 ok"


@pytest.mark.parametrize(("size", "fits"), [(370, True), (373, False)])
def test_a_long_initial_response_waits_to_be_asked_for(size: int, fits: bool) -> None:
    """RFC 4954 §4: a command line has 512 octets with its CRLF."""
    response = b"x" * size
    line = f"AUTH PLAIN {b64(response)}"
    assert (len(line) + 2 <= 512) is fits
    starts = attempt("PLAIN", lambda: from_authobject(lambda: response))
    if fits:
        assert said(f"start login\nC: {line}\nS: 235 ok", starts) == "235 ok"
    else:
        assert said(f"start login\nC: AUTH PLAIN\nS: 334\nC: {b64(response)}\nS: 235 ok", starts) == "235 ok"


@pytest.mark.parametrize(("length", "fits"), [(511, True), (512, True), (513, False)])
def test_the_limit_of_a_command_line(length: int, fits: bool) -> None:
    """Lines of m-1, m and m+1 octets are tried; the mechanism's name makes up for the steps of base64."""
    name = "X" * ((length - 2 - len("AUTH  ")) % 4 + 4)
    response = b"x" * ((length - 2 - len("AUTH  ") - len(name)) // 4 * 3)
    line = SASLExchange(name, from_authobject(lambda: response)).line
    assert line is not None
    assert len(line) + 2 == (length if fits else len(f"AUTH {name}\r\n"))


def test_no_initial_response_wanted() -> None:
    starts = attempt("PLAIN", lambda: plain(TIM), initial_response_ok=False)
    text = "start login\nC: AUTH PLAIN\nS: 334\nC: AHRpbQB0YW5zdGFhZnRhbnN0YWFm\nS: 235 ok"
    assert said(text, starts) == "235 ok"


def test_a_response_that_was_held_back_is_sent_once() -> None:
    starts = attempt("PLAIN", lambda: plain(TIM), initial_response_ok=False)
    text = "start login\nC: AUTH PLAIN\nS: 334\nC: AHRpbQB0YW5zdGFhZnRhbnN0YWFm\nS: 334\nC: *\nS: 501 what"
    assert said(text, starts) == "SMTPAuthenticationError 501 challenge not understood; cancelled: what"


@pytest.mark.parametrize("name", ["PLAIN", "EXTERNAL"])
@pytest.mark.parametrize("prompt", ["", " ", " VXNlcm5hbWU6"])
def test_a_server_that_overlooks_the_initial_response_is_told_again(name: str, prompt: str) -> None:
    starts = attempt(name, lambda: {"PLAIN": plain, "EXTERNAL": external}[name](TIM))
    response = {"PLAIN": "AHRpbQB0YW5zdGFhZnRhbnN0YWFm", "EXTERNAL": b64("tim")}[name]
    text = f"start login\nC: AUTH {name} {response}\nS: 334{prompt}\nC: {response}\n"
    assert said(text + "S: 235 ok", starts) == "235 ok"
    once_more = f"S: 334{prompt}\nC: *\nS: 501 what"
    assert said(text + once_more, starts) == "SMTPAuthenticationError 501 challenge not understood; cancelled: what"


# ---- a caller's own mechanism ----------------------------------------------------------------


def test_authobject() -> None:
    def authobject(challenge: bytes | None = None) -> str | bytes | None:
        return None if challenge is None else challenge[::-1] if challenge == b"abc" else "jörg"

    starts = attempt("x-mine", lambda: from_authobject(authobject))
    text = f"""
        start login
        C: AUTH X-MINE
        S: 334 {b64("abc")}
        C: {b64("cba")}
        S: 334 {b64("who")}
        C: {b64("jörg")}
        S: 235 ok
        """
    assert said(text, starts) == "235 ok"


class Lazy:
    """A text that is looked up when it is needed."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def encode(self, encoding: str = "utf-8") -> Any:
        return self.value.encode(encoding) if isinstance(self.value, str) else self.value


def test_authobject_that_returns_what_has_encode() -> None:
    starts = attempt("X", lambda: from_authobject(lambda challenge=None: Lazy("jörg")))
    assert said(f"start login\nC: AUTH X {b64('jörg')}\nS: 235 ok", starts) == "235 ok"


@pytest.mark.parametrize("wrong", [5, Lazy(5), object()])
def test_authobject_that_returns_what_cannot_be_written(wrong: Any) -> None:
    with pytest.raises(TypeError, match="^authobject: user, password or response must be str, not "):
        SASLExchange("X", from_authobject(lambda: wrong))


def test_authobject_that_has_nothing_to_say() -> None:
    starts = attempt("X", lambda: from_authobject(lambda challenge=None: None))
    assert said("start login\nC: AUTH X\nS: 334\nC: \nS: 235 ok", starts) == "235 ok"


def test_authobject_that_raises() -> None:
    """An error before anything is written changes nothing; one in the middle cancels the exchange (RFC 4954 §4)."""

    def at_once() -> bytes:
        raise LookupError("no password")

    def later(challenge: bytes | None = None) -> None:
        if challenge is not None:
            raise LookupError("no password")

    with pytest.raises(LookupError, match="no password"):
        SASLExchange("X", from_authobject(at_once))
    text = "start login\nC: AUTH X\nS: 334\nC: *\nS: 501 cancelled\nstart noop\nC: noop\nS: 250 ok"
    result = play(text, attempt("X", lambda: from_authobject(later)), opened())
    assert (result["login"], result["noop"], result.state) == ("LookupError no password", "250 ok", "READY")


def generator(*responses: bytes | None, after: str = "") -> Mechanism:
    """Give the responses listed, as a mechanism of a caller's, and in the end raise an error if `after` is given."""
    last: bytes | None = b""
    for response in responses:
        last = yield response
    if last is None and after:
        raise LookupError(after)


def test_a_generator() -> None:
    starts = attempt("X-OWN", lambda: generator(b"one", b"two"))
    text = f"start login\nC: AUTH X-OWN {b64('one')}\nS: 334 {b64('more')}\nC: {b64('two')}\nS: 235 ok"
    assert said(text, starts) == "235 ok"


def test_a_generator_that_is_not_content_with_success() -> None:
    starts = attempt("X-OWN", lambda: generator(b"one", after="not the server that I know"))
    text = f"start login\nC: AUTH X-OWN {b64('one')}\nS: 235 ok"
    assert said(text, starts) == "LookupError not the server that I know"


def test_a_generator_that_yields_nothing() -> None:
    with pytest.raises(ValueError, match="^mechanism: X-OWN: the generator yields nothing$"):
        SASLExchange("X-OWN", generator())


@pytest.mark.parametrize(("size", "fits"), [(9212, True), (9215, False)])
def test_a_response_has_its_limit(size: int, fits: bool) -> None:
    """RFC 4954 §4: 12288 octets are "considered to be a sufficient line length limit"."""
    starts = attempt("X-OWN", lambda: generator(None, b"x" * size))
    begun = "start login\nC: AUTH X-OWN\nS: 334\n"
    if fits:
        assert said(f"{begun}C: {b64(b'x' * size)}\nS: 235 ok", starts) == "235 ok"
    else:
        told = said(f"{begun}C: *\nS: 501 cancelled", starts)
        assert told == "ValueError X-OWN: a response of 12288 octets; 12286 are possible"


def test_external() -> None:
    """RFC 4422 appendix A.3: the response is empty, or the name to act as."""
    starts = attempt("EXTERNAL", lambda: external(Credentials()))
    assert said("start login\nC: AUTH EXTERNAL =\nS: 235 ok", starts) == "235 ok"
    starts = attempt("EXTERNAL", lambda: external(Credentials("fred@example.com")))
    assert said("start login\nC: AUTH EXTERNAL ZnJlZEBleGFtcGxlLmNvbQ==\nS: 235 ok", starts) == "235 ok"


def test_already_authenticated_is_no_success_for_who_wants_proof() -> None:
    """It is a success only if there was a login before."""
    starts = attempt("X", lambda: generator(b"one", after="no proof"))
    assert said(f"start login\nC: AUTH X {b64('one')}\nS: 503 already", starts) == "LookupError no proof"
    starts = attempt("X", lambda: generator(b"one", after="no proof"), again=True)
    assert said(f"start login\nC: AUTH X {b64('one')}\nS: 503 already", starts) == "503 already"


@pytest.mark.parametrize("name", ["", "PLAIN\r\nQUIT", "PLAIN x", "PLÄIN", "A=B"])
def test_the_name_is_one_word(name: str) -> None:
    with pytest.raises(ValueError, match="^mechanism: not a SASL mechanism's name"):
        SASLExchange(name, plain(TIM))


def test_slow_mechanisms_are_asked_by_who_pushes() -> None:
    """A challenge makes the dialogue pull; its owner computes the response, and pushes."""
    session = opened()()
    sasl = SASLExchange("CRAM-MD5", cram_md5(TIM), slow=True)
    exchange = session.start(authentication(session, sasl))
    session.output()
    session.receive_data(b"334 PDE4OTYuNjk3MTcwOTUyQHBvc3RvZmZpY2UucmVzdG9uLm1jaS5uZXQ+\r\n")
    assert exchange.pulling
    assert session.output() == b""
    sasl.go_on()
    session.push(exchange, b"")
    assert session.output() == b"dGltIGI5MTNhNjAyYzdlZGE3YTQ5NWI0ZTZlNzMzNGQzODkw\r\n"
    session.receive_data(b"235 ok\r\n")
    assert exchange.done
    assert exchange.result == (235, b"ok")
    assert session.authenticated


@pytest.mark.parametrize("mechanism", [oauthbearer, xoauth2])
def test_an_error_in_the_user_name_does_not_show_the_token(mechanism: Any) -> None:
    """A UnicodeEncodeError holds all of the text that could not be encoded."""
    with pytest.raises(UnicodeEncodeError) as caught:
        next(mechanism(bearing("me\ud800", "s3cret")))
    assert "s3cret" not in repr(caught.value)


def test_credentials_do_not_show_their_secrets() -> None:
    assert "s3cret" not in repr(Credentials("me", "s3cret", "s3cret"))


@pytest.mark.parametrize("said", ["334 " + b64("\0me\0s3cret"), "250 " + b64("\0me\0s3cret")])
def test_a_secret_that_comes_back_is_not_shown(said: str) -> None:
    """The server repeats the secret in challenges, again and again, or in a reply that no command is owed."""
    line = b64("\0me\0s3cret")
    asking = attempt("X", lambda: from_authobject(lambda challenge=None: b"\0me\0s3cret"))
    if said.startswith("334"):
        text = f"start login\nC: AUTH X {line}\n" + f"S: {said}\nC: {line}\n" * 5 + f"S: {said}\nC: *\nS: 501 no"
        told = play(text, asking, opened())["login"]
        assert told == "SMTPException Server AUTH mechanism infinite loop. Last response: (334, b'(not shown)')"
    session = opened()()
    session.start(asking["login"].make(session))
    session.receive_data(f"235 ok\r\n{said}\r\n".encode())
    assert line not in str(session.error)
    assert "(not shown)" in str(session.error)


def test_a_challenge_that_is_none_does_not_show_a_secret() -> None:
    text = f"start login\nC: AUTH X {b64('s3cret')}\nS: 334 what is {b64('s3cret')}?\nC: *\nS: 501 no"
    told = play(text, attempt("X", lambda: from_authobject(lambda challenge=None: b"s3cret")), opened())["login"]
    assert told == "SMTPAuthenticationError 501 challenge not understood; cancelled: no"


def test_a_token_in_an_error_challenge_is_not_shown() -> None:
    error = b64('{"status": "400", "scope": "token TOKENTOKEN"}')
    bearer = attempt("XOAUTH2", lambda: xoauth2(bearing("me", "TOKENTOKEN")))
    first = b64("user=me\1auth=Bearer TOKENTOKEN\1\1")
    text = f"start login\nC: AUTH XOAUTH2 {first}\nS: 334 {error}\nC: \nS: 535 no"
    told = play(text, bearer, opened())["login"]
    assert told == "SMTPAuthenticationError 535 no (status: 400, scope: token (not shown))"


def test_smtplib_s_cram_md5_does_not_show_a_password_that_cannot_be_encoded() -> None:
    login = AuthObjects()
    login.user, login.password = "me", "s3cret\udcff"
    with pytest.raises(ValueError, match="^authobject: user, password or response is not characters") as caught:
        login.auth_cram_md5(b"challenge")
    assert "s3cret" not in repr(caught.value)
    assert caught.value.__context__ is None


def test_an_authobject_whose_response_cannot_be_encoded_does_not_show_it() -> None:
    with pytest.raises(ValueError, match="^authobject: .* not characters") as caught:
        SASLExchange("PLAIN", from_authobject(lambda challenge=None: "\0me\udc80\0secret"))
    assert "secret" not in repr(caught.value) + repr(caught.value.__context__)
