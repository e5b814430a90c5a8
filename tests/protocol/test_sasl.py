"""SASL: the RFCs' own examples, and servers that do not keep to them."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from asmtp.errors import SMTPException
from asmtp.protocol import sasl
from asmtp.protocol.dialogue import authentication
from asmtp.protocol.sasl import authenticate, choose, cram_md5, from_authobject, login, plain

from .letters import NOOP, opened
from .transcript import Start, play


def b64(text: str | bytes) -> str:
    return base64.b64encode(text.encode() if isinstance(text, str) else text).decode()


def attempt(name: str, mechanism: Any, **options: Any) -> dict[str, Start]:
    """A login whose mechanism is made anew for each time it is played."""
    make = lambda session: authentication(authenticate(name, mechanism(), **options))  # noqa: E731
    return {"login": Start(make, alone=True), "noop": NOOP}


PLAIN = attempt("PLAIN", lambda: plain("tim", "tanstaaftanstaaf"))
LOGIN = attempt("LOGIN", lambda: login("tim", "tanstaaftanstaaf"))
CRAM = attempt("CRAM-MD5", lambda: cram_md5("tim", "tanstaaftanstaaf"))

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
    assert next(plain("jörg", "pässword")) == "\0jörg\0pässword".encode()


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
    """The mechanism says so before anything is written."""

    def forbidden(*args: object) -> None:
        raise ValueError("unsupported hash type md5")

    monkeypatch.setattr(sasl.hmac, "new", forbidden)
    result = play("start login", CRAM, opened())
    assert result["login"] == "ValueError unsupported hash type md5"
    assert result.state == "READY"


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
    """As smtplib takes it."""
    assert said("start login\nC: AUTH LOGIN\nS: 503 already", LOGIN) == "503 already"


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
    """It goes on in the middle of a login: nothing else can be said to it."""
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
    """At m-1, m and m+1; the mechanism's name makes up for the steps of base64."""
    name = "X" * ((length - 2 - len("AUTH  ")) % 4 + 4)
    response = b"x" * ((length - 2 - len("AUTH  ") - len(name)) // 4 * 3)
    lines = authenticate(name, from_authobject(lambda: response))
    line = next(lines) + b"\r\n"
    assert len(line) == (length if fits else len(f"AUTH {name}\r\n"))


def test_no_initial_response_wanted() -> None:
    starts = attempt("PLAIN", lambda: plain("tim", "tanstaaftanstaaf"), initial_response_ok=False)
    text = "start login\nC: AUTH PLAIN\nS: 334\nC: AHRpbQB0YW5zdGFhZnRhbnN0YWFm\nS: 235 ok"
    assert said(text, starts) == "235 ok"


def test_a_response_that_was_held_back_is_sent_once() -> None:
    starts = attempt("PLAIN", lambda: plain("tim", "tanstaaftanstaaf"), initial_response_ok=False)
    text = "start login\nC: AUTH PLAIN\nS: 334\nC: AHRpbQB0YW5zdGFhZnRhbnN0YWFm\nS: 334\nC: *\nS: 501 what"
    assert said(text, starts) == "SMTPAuthenticationError 501 challenge not understood; cancelled: what"


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


def test_authobject_that_has_nothing_to_say() -> None:
    starts = attempt("X", lambda: from_authobject(lambda challenge=None: None))
    assert said("start login\nC: AUTH X\nS: 334\nC: \nS: 235 ok", starts) == "235 ok"


def test_authobject_that_raises() -> None:
    """Nothing was written yet: the connection stays good.  In the middle it cannot."""

    def at_once() -> bytes:
        raise LookupError("no password")

    def later(challenge: bytes | None = None) -> None:
        if challenge is not None:
            raise LookupError("no password")

    result = play("start login", attempt("X", lambda: from_authobject(at_once)), opened())
    assert (result["login"], result.state) == ("LookupError no password", "READY")
    result = play("start login\nC: AUTH X\nS: 334", attempt("X", lambda: from_authobject(later)), opened())
    assert (result["login"], result.state) == ("LookupError no password", "BROKEN")


@pytest.mark.parametrize("name", ["", "PLAIN\r\nQUIT", "PLAIN x", "PLÄIN", "A=B"])
def test_the_name_is_one_word(name: str) -> None:
    with pytest.raises(ValueError, match="^mechanism: not a SASL mechanism's name"):
        next(authenticate(name, plain("a", "b")))


# ---- which one -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offered", "names"),
    [
        (["LOGIN", "PLAIN", "CRAM-MD5"], ["CRAM-MD5", "PLAIN", "LOGIN"]),
        (["LOGIN", "PLAIN"], ["PLAIN", "LOGIN"]),
        (["GSSAPI", "LOGIN"], ["LOGIN"]),
    ],
)
def test_choose(offered: list[str], names: list[str]) -> None:
    assert choose(offered, "me", "secret") == names


@pytest.mark.parametrize("offered", [[], ["GSSAPI", "XOAUTH2"]])
def test_nothing_to_choose(offered: list[str]) -> None:
    with pytest.raises(SMTPException, match=r"^No suitable authentication method found\.$"):
        choose(offered, "me", "secret")


@pytest.mark.parametrize("control", ["\r", "\n", "\0", "\x1b", "\x7f", "\x85"])
def test_no_control_in_a_user_name(control: str) -> None:
    with pytest.raises(ValueError, match="^user: "):
        choose(["PLAIN"], f"me{control}", "secret")


def test_a_wrong_password_is_not_shown() -> None:
    with pytest.raises(ValueError, match="^password: ") as caught:
        choose(["PLAIN"], "me", "secret\0")
    assert "secret" not in str(caught.value)
    with pytest.raises(TypeError, match="^password must be str, not bytes$"):
        choose(["PLAIN"], "me", b"secret")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="^user must be str, not NoneType$"):
        choose(["PLAIN"], None, "secret")  # type: ignore[arg-type]


def test_where_md5_is_forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*args: object) -> None:
        raise ValueError("[digital envelope routines] unsupported")

    monkeypatch.setattr(sasl.hmac, "new", forbidden)
    assert sasl.choose(["CRAM-MD5", "PLAIN"], "me", "secret") == ["PLAIN"]
