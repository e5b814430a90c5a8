"""The short dialogues, as transcripts: greeting, hello, single commands, QUIT, login, STARTTLS, by hand."""

from __future__ import annotations

from typing import Any

import pytest

from asmtp.errors import SMTPProtocolError, SMTPServerDisconnected, SMTPTimeoutError
from asmtp.protocol.dialogue import because_of, greeting, hello, raw_reply, raw_write, single, verb_trigger
from asmtp.protocol.reply import Reply
from asmtp.protocol.session import Session
from asmtp.protocol.state import State, Trigger
from asmtp.protocol.transaction import manual_content
from tests.protocol.letters import STARTS, opened, unclean
from tests.protocol.transcript import Start, play


def say(verb: str, name: str = "me.example") -> Start:
    return Start(lambda session: hello(session, verb, name), alone=True)


def by_hand(data: bytes, **options: Any) -> Start:
    return Start(lambda session: raw_write(session, data, **options), raw=True)


OPENING = {
    "greeting": Start(lambda session: greeting()),
    "ehlo": say("ehlo"),
    "helo": say("helo"),
    "lhlo": say("lhlo"),
    "starttls": Start(lambda session: single(b"STARTTLS\r\n", Trigger.starttls), alone=True, raw=True),
    **STARTS,
}

EHLO = """
    start ehlo
    C: ehlo me.example
    S: 250-there
    S: 250-PIPELINING
    S: 250 SIZE 1000
    """


@pytest.mark.parametrize("reply", ["220 hi", "554 no service"])
def test_greeting(reply: str) -> None:
    result = play(f"start greeting\nS: {reply}", OPENING, Session)
    assert result["greeting"] == reply
    assert result.state == "READY"


def test_greeting_of_several_lines() -> None:
    assert play("start greeting\nS: 220-hi\nS: 220-\nS: 220 there", OPENING, Session)["greeting"] == "220 hi\n\nthere"


def test_greeting_421() -> None:
    result = play("start greeting\nS: 421 busy", OPENING, Session)
    assert result["greeting"] == "421 busy"
    assert result.state == "CLOSED"


def test_a_greeting_that_never_comes() -> None:
    result = play("start greeting\neof", OPENING, Session)
    assert result["greeting"].startswith("SMTPServerDisconnected Connection unexpectedly closed")


def test_a_server_that_speaks_too_soon() -> None:
    session = Session()
    greeted = session.start(greeting())
    session.receive_data(b"220 hi\r\n250 and\r\n")
    assert greeted.result == (220, b"hi")
    assert session.state is State.BROKEN
    assert isinstance(session.error, SMTPProtocolError)


def test_ehlo_tells_what_is_offered() -> None:
    session = Session()
    result = play(f"start greeting\nS: 220 hi\n{EHLO}", OPENING, lambda: Session())
    assert result["ehlo"] == "250 there\nPIPELINING\nSIZE 1000"
    session.start(greeting())
    session.receive_data(b"220 hi\r\n")
    session.start(hello(session, "ehlo", "me.example"))
    assert session.output() == b"ehlo me.example\r\n"
    session.receive_data(b"250-there\r\n250-PIPELINING\r\n250 SIZE 1000\r\n")
    assert session.extensions == {"pipelining": "", "size": "1000"}
    assert session.esmtp
    assert session.pipelining


def test_helo_tells_nothing() -> None:
    text = "start helo\nC: helo me.example\nS: 250 there"
    assert play(text, OPENING, opened())["helo"] == "250 there"
    session = opened("PIPELINING")()
    session.extensions.clear()
    session.esmtp = False
    session.start(hello(session, "helo", "me.example"))
    session.receive_data(b"250-there\r\n250 PIPELINING\r\n")
    assert session.extensions == {}
    assert not session.esmtp


@pytest.mark.parametrize(("verb", "reply", "clean"), [
    ("ehlo", "250 there", True), ("lhlo", "250 there", True), ("helo", "250 there", True), ("ehlo", "502 no", False),
])  # fmt: skip
def test_hello_also_resets(verb: str, reply: str, clean: bool) -> None:
    """RFC 5321 §4.1.4."""
    result = play(f"start {verb}\nC: {verb} me.example\nS: {reply}", OPENING, unclean())
    assert result[verb] == reply
    assert result.clean is clean


def test_hello_refused_forgets_what_was_known() -> None:
    session = opened("both")()
    session.start(hello(session, "ehlo", "me.example"))
    session.receive_data(b"502 no\r\n")
    assert session.extensions == {}  # as smtplib does


def test_hello_with_an_international_name() -> None:
    result = play(
        "start ehlo\nC: ehlo xn--mller-kva.example\nS: 250 hi", {"ehlo": say("ehlo", "müller.example")}, opened()
    )
    assert result["ehlo"] == "250 hi"


@pytest.mark.parametrize("name", ["me\r\nMAIL FROM:<x>", "me\n", "\x00", "m\x1be", "m\x7f", "m\x85"])
def test_hello_with_controls(name: str) -> None:
    session = opened()()
    exchange = session.start(hello(session, "ehlo", name))
    assert isinstance(exchange.error, ValueError)
    assert str(exchange.error).startswith("local_hostname: ")
    assert session.output() == b""
    assert not session.closed


def test_single() -> None:
    result = play("start noop\nC: noop\nS: 250-in\nS: 250 two", OPENING, opened())
    assert result["noop"] == "250 in\ntwo"


# ---- QUIT ------------------------------------------------------------------------------------


@pytest.mark.parametrize("reply", ["221 bye", "250 bye", "500 what", "421 bye"])
def test_quit(reply: str) -> None:
    result = play(f"start quit\nC: quit\nS: {reply}", OPENING, opened())
    assert result["quit"] == reply
    assert result.state == "CLOSED"


def test_quit_answered_by_closing() -> None:
    """The messages before QUIT are sent; after an error the caller might send them again."""
    result = play("start quit\nC: quit\neof", OPENING, opened())
    assert result["quit"] == "-1 Connection unexpectedly closed"


# ---- STARTTLS --------------------------------------------------------------------------------


def test_starttls() -> None:
    result = play("start starttls\nC: STARTTLS\nS: 220 go\nsecured\n" + EHLO, OPENING, opened("both"))
    assert result["starttls"] == "220 go"
    assert result.state == "READY"


def test_tls_makes_forget() -> None:
    session = opened("both")()
    session.start(single(b"STARTTLS\r\n", Trigger.starttls), raw=True)
    session.receive_data(b"220 go\r\n")
    assert session.state is State.HANDSHAKE
    assert session.esmtp
    session.secured()
    assert session.extensions == {}
    assert not session.esmtp
    assert not session.pipelining


def test_starttls_refused() -> None:
    result = play("start starttls\nC: STARTTLS\nS: 454 not now", OPENING, opened())
    assert result["starttls"] == "454 not now"
    assert result.state == "READY"


@pytest.mark.parametrize("injected", [b"250 injected\r\n", b"2", b"junk\r\n", b"\x16\x03\x01"])
@pytest.mark.parametrize("together", [True, False])
def test_plaintext_behind_starttls(injected: bytes, together: bool) -> None:
    """CVE-2011-0411: the text is not taken for an answer under TLS, and whoever asked for TLS is told."""
    session = opened()()
    exchange = session.start(single(b"STARTTLS\r\n", Trigger.starttls), raw=True)
    session.output()
    for data in [b"220 go\r\n" + injected] if together else [b"220 go\r\n", injected]:
        session.receive_data(data)
    assert session.state is State.BROKEN
    assert isinstance(session.error, SMTPProtocolError)
    assert b"plaintext behind the reply to STARTTLS" in session.error.smtp_error
    if together:
        assert isinstance(exchange.error, SMTPProtocolError)
        assert exchange.error.smtp_error == session.error.smtp_error


def test_nothing_is_written_between_starttls_and_tls() -> None:
    text = """
        start starttls
        C: STARTTLS
        start noop
        S: 220 go
        """
    result = play(text, OPENING, opened())
    assert result["noop"] == (
        f"SMTPStateError NOOP, VRFY, EXPN, HELP, ... is not possible now: {State.HANDSHAKE.value} [not_sent]"
    )


# ---- by hand ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "trigger"),
    [
        (b"EHLO x", Trigger.hello), (b"helo x", Trigger.hello), (b"Lhlo x", Trigger.hello),
        (b"starttls", Trigger.starttls), (b"auth PLAIN", Trigger.auth), (b"MAIL FROM:<>", Trigger.mail),
        (b"rcpt TO:<a>", Trigger.rcpt), (b"data", Trigger.data), (b"rset", Trigger.rset), (b"quit", Trigger.quit),
        (b"BDAT 3", Trigger.bdat), (b"bdat 0 last", Trigger.bdat_last), (b"noop", Trigger.other),
        (b"XCLIENT", Trigger.other),
        (b"", Trigger.other), (b"  mail from:<>", Trigger.mail), (b"\xff", Trigger.other),
    ],
)  # fmt: skip
def test_verb_trigger(line: bytes, trigger: Trigger) -> None:
    assert verb_trigger(line, State.READY) is trigger
    assert verb_trigger(line, State.CHALLENGE) is Trigger.response


def test_lines_by_hand() -> None:
    starts = {"two": by_hand(b"MAIL FROM:<a@x>\r\nNOOP\r\n"), "rset": Start(Session.reset)}
    text = """
        start two
        C: MAIL FROM:<a@x>
        C: NOOP
        S: 250 a
        S: 250 ok
        """
    result = play(text, starts, opened())
    assert result["two"] == str([Reply(250, b"a"), Reply(250, b"ok")])
    assert result.state == "TRANSACTION"
    assert not result.clean


def test_content_by_hand() -> None:
    starts = {
        "data": by_hand(b"DATA\r\n"),
        "some": by_hand(b"Hi"),
        "rest": by_hand(b" you.\r\n.\r\n"),
        "dot": by_hand(b".\r\n"),
        "noop": by_hand(b"noop\r\n", command=True),
    }
    text = """
        start data
        C: DATA
        S: 354 go
        start some
        C: Hi\\
        start noop
        start rest
        C:  you.
        C: .
        S: 250 taken
        start more
        C: DATA
        S: 354 go
        start dot
        C: .
        S: 250 taken
        """
    result = play(text, starts | {"more": starts["data"]}, opened())
    assert result["data"] == result["more"] == str([Reply(354, b"go")])
    assert result["some"] == "[]"
    told = "SMTPStateError no command is possible now: 354: content comes next, until the dot [not_sent]"
    assert result["noop"] == told
    assert result["rest"] == result["dot"] == str([Reply(250, b"taken")])


def test_a_login_by_hand() -> None:
    seen: list[bytes] = []

    def traced() -> Session:
        session = opened()()
        session.display.trace = lambda way, data: seen.append(data) if way == ">" else None
        return session

    starts = {"auth": by_hand(b"AUTH LOGIN\r\n"), "user": by_hand(b"bWU=\r\n"), "secret": by_hand(b"c2VjcmV0\r\n")}
    text = """
        start auth
        C: AUTH LOGIN
        S: 334 VXNlcm5hbWU6
        start user
        C: bWU=
        S: 334 UGFzc3dvcmQ6
        start secret
        C: c2VjcmV0
        S: 235 welcome
        """
    assert play(text, starts, traced)["secret"] == str([Reply(235, b"welcome")])
    assert set(seen) == {b"(not shown)", b"noop\r\n"}


@pytest.mark.parametrize("line", [b"", b"NOOP", b"NOOP\r", b"NOOP\r\nNO"])
def test_no_whole_line_by_hand(line: bytes) -> None:
    session = opened()()
    exchange = session.start(raw_write(session, line))
    assert isinstance(exchange.error, ValueError)
    assert session.output() == b""


def test_a_lone_cr_by_hand_ends_no_line() -> None:
    session = opened()()
    exchange = session.start(raw_write(session, b"noop\rnoop\r\n"), raw=True)
    session.receive_data(b"250 ok\r\n")
    assert exchange.result == [(250, b"ok")]


@pytest.mark.parametrize("name", ["me<you", "me>", 'me"', "me\\", "me\ufffd", "me\x85", "me\n"])
def test_hello_with_what_is_no_name(name: str) -> None:
    session = opened()()
    exchange = session.start(hello(session, "ehlo", name))
    assert isinstance(exchange.error, ValueError)
    assert str(exchange.error).startswith("local_hostname: ")
    assert session.output() == b""


def test_hello_with_no_str() -> None:
    session = opened()()
    assert isinstance(session.start(hello(session, "ehlo", 5)).error, TypeError)  # type: ignore[arg-type]
    assert session.output() == b""


def test_a_reply_nobody_asked_for_can_be_awaited() -> None:
    result = play("start reply\nS: 250 late", {"reply": Start(lambda session: raw_reply())}, opened())
    assert result["reply"] == "250 late"


# ---- DATA by hand ----------------------------------------------------------------------------

CONTENT = Start(lambda session: manual_content(session, b".Hi"))
CONTENT_TO_TWO = Start(lambda session: manual_content(session, b".Hi", 2))


@pytest.mark.parametrize(("reply", "clean"), [("250 taken", True), ("554 no", False)])
def test_manual_content(reply: str, clean: bool) -> None:
    text = f"""
        start it
        C: data
        S: 354 go
        C: ..Hi
        C: .
        S: {reply}
        """
    result = play(text, {"it": CONTENT}, unclean())
    assert result["it"] == reply
    assert result.clean is clean


def test_manual_content_refused_at_once() -> None:
    result = play("start it\nC: data\nS: 503 no", {"it": CONTENT}, unclean())
    assert result["it"] == "SMTPDataError 503 no"
    assert not result.clean


@pytest.mark.parametrize(
    ("first", "second", "told", "clean"),
    [
        ("250 one", "250 two", "250 two", True),
        ("452 full", "250 two", "452 full", False),
        ("250 one", "452 full", "452 full", False),
    ],
)
def test_manual_content_to_two_by_lmtp(first: str, second: str, told: str, clean: bool) -> None:
    text = f"start it\nC: data\nS: 354 go\nC: ..Hi\nC: .\nS: {first}\nS: {second}"
    result = play(text, {"it": CONTENT_TO_TWO}, unclean(lmtp=True))
    assert result["it"] == told
    assert result.clean is clean


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (SMTPServerDisconnected("gone"), "gone; to EHLO it had said 521 .*no mail here"),
        (SMTPTimeoutError("late"), "late"),
        (SMTPProtocolError(-1, b"what"), "what"),
    ],
)
def test_a_server_that_closes_where_helo_is_said_for_ehlo(error: SMTPServerDisconnected, told: str) -> None:
    """The server has given its reason in its reply to EHLO, so the error has that."""
    with pytest.raises(type(error), match=told), because_of(Reply(521, b"no mail here")):
        raise error
