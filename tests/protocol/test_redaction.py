"""Secrets that a server gives back, and that must not be shown."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from asmtp.protocol.dialogue import hello
from asmtp.protocol.exchange import Group
from asmtp.protocol.redaction import Display, Redaction
from asmtp.protocol.reply import Reply
from asmtp.protocol.session import Session
from asmtp.protocol.state import Trigger
from tests.protocol.letters import LOGIN, opened
from tests.protocol.transcript import play


def b64(data: bytes) -> bytes:
    return base64.b64encode(data)


def learnt(*lines: bytes) -> Redaction:
    redaction = Redaction()
    for line in lines:
        redaction.learn(line + b"\r\n")
    return redaction


PLAIN = b64(b"\0me\0secret")
LOGINS: dict[str, tuple[list[bytes], list[bytes]]] = {
    "PLAIN": ([b"AUTH PLAIN " + PLAIN], [PLAIN, b"secret"]),
    "PLAIN, asked for": ([b"AUTH PLAIN", PLAIN], [PLAIN, b"secret"]),
    "LOGIN": ([b"AUTH LOGIN", b64(b"name"), b64(b"secret")], [b64(b"secret"), b64(b"name").rstrip(b"="), b"secret"]),
    "LOGIN, with a name": ([b"AUTH LOGIN " + b64(b"name"), b64(b"secret")], [b64(b"secret"), b"secret"]),
    "OAUTHBEARER": (
        [b"AUTH OAUTHBEARER " + b64(b"n,a=me,\1host=x\1auth=Bearer t0ken==\1\1")],
        [b"t0ken==", b64(b"n,a=me,\1host=x\1auth=Bearer t0ken==\1\1").rstrip(b"=")],
    ),
    "XOAUTH2": ([b"auth xoauth2 " + b64(b"user=me\1auth=Bearer t0ken==\1\1")], [b"t0ken=="]),
    "not base64": ([b"AUTH LOGIN", b"n\xc3\xa4me"], [b"n\xc3\xa4me"]),
}


@pytest.mark.parametrize("login", LOGINS)
def test_what_is_not_shown(login: str) -> None:
    lines, secrets = LOGINS[login]
    redaction = learnt(*lines)
    for secret in secrets:
        assert redaction.text(b"no: %b, %b!" % (secret, secret)) == b"no: (not shown), (not shown)!"
        assert redaction.reply(Reply(535, b"no: " + secret)) == (535, b"no: (not shown)")


@pytest.mark.parametrize("login", LOGINS)
def test_what_is_shown(login: str) -> None:
    """Names of users and mechanisms are shown, as many texts have them, and challenges, as the mechanism reads them."""
    redaction = learnt(*LOGINS[login][0])
    text = b"535 5.7.8 AUTH PLAIN LOGIN for name, me: no, = nor * "
    assert redaction.text(text) == text
    challenge = Reply(334, LOGINS[login][1][0])
    assert redaction.reply(challenge) is challenge


@pytest.mark.parametrize("line", [b"", b"AUTH", b"AUTH LOGIN", b"*", b"=", b"AUTH EXTERNAL ="])
def test_nothing_to_hide(line: bytes) -> None:
    assert learnt(line).secrets == []


def test_a_short_password() -> None:
    """Any text may hold a short password as it is, but not its encoded form."""
    redaction = learnt(b"AUTH PLAIN " + b64(b"\0me\0abc"))
    assert redaction.text(b"abc " + b64(b"\0me\0abc")) == b"abc (not shown)"


def test_one_secret_within_another() -> None:
    redaction = learnt(b"AUTH PLAIN " + b64(b"\0me\0secret"), b"AUTH PLAIN " + b64(b"\0me\0secretly"))
    assert redaction.text(b"secretly secret") == b"(not shown) (not shown)"


@pytest.mark.parametrize("count", [8, 12, 30])
@pytest.mark.parametrize("behind", [b"", b"...", b" (too long)", b"/"])
def test_a_line_that_is_given_back_cut_off(count: int, behind: bytes) -> None:
    line = b64(b"\0someone\0a long password")
    text = b"line too long: " + line[:count] + behind
    assert learnt(b"AUTH PLAIN " + line).text(text + b", " + line[:count]) == (
        b"line too long: (not shown)" + behind + b", (not shown)"
    )


def test_a_token_that_is_given_back_cut_off() -> None:
    redaction = learnt(b"AUTH XOAUTH2 " + b64(b"user=me\1auth=Bearer (not shown)eyJhbGciOi\1\1"))
    assert redaction.text(b"bad token (not shown)eyJhb") == b"bad token (not shown)"


# ---- in a session -------------------------------------------------------------------------------

ECHO = b64(b"\0me\0secret").decode()
START = f"start login\nC: AUTH PLAIN {ECHO}\n"


@pytest.mark.parametrize("reply", [f"535 what is {ECHO}", "535-no\nS: 535 secret", f"501-AUTH PLAIN {ECHO}\nS: 501 ?"])
def test_a_refusal_that_echoes(reply: str) -> None:
    told = play(f"{START}S: {reply}", {"login": LOGIN}, opened())["login"]
    assert ECHO not in told
    assert "secret" not in told
    assert "(not shown)" in told


@pytest.mark.parametrize("line", [f"AUTH PLAIN {ECHO}", f"5355 {ECHO}", "535-no\nS: 250 secret", f"535-{ECHO}\neof"])
def test_a_breach_that_echoes(line: str) -> None:
    told = play(f"{START}S: {line}", {"login": LOGIN}, opened())["login"]
    assert told.startswith("SMTPProtocolError")
    assert ECHO not in told
    assert "secret" not in told


def test_the_trace() -> None:
    seen: list[Any] = []
    session = opened()()
    session.display.trace = lambda direction, data: seen.append((direction, data))
    session.start(LOGIN.make(session), alone=True)
    session.output()
    session.receive_data(f"535 what is {ECHO}, secret?\r\n".encode())
    assert seen == [(">", b"(not shown)"), ("<", b"535 what is (not shown), (not shown)?")]


class Looking:
    """An observer that keeps what it is told of."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.read: list[Reply] = []

    def wrote(self, group: Group) -> None:
        self.written.append(group.data)

    def replied(self, replies: list[Reply]) -> None:
        self.read += replies


def test_the_observer() -> None:
    """The observer is given groups as they are written, and replies without secrets."""
    session = opened()()
    session.display.observer = looking = Looking()
    session.start(LOGIN.make(session), alone=True)
    session.receive_data(f"535 what is {ECHO}, secret?\r\n".encode())
    assert looking.written == [b"AUTH PLAIN " + ECHO.encode() + b"\r\n"]
    assert looking.read == [(535, b"what is (not shown), (not shown)?")]


def test_a_display_that_nobody_looks_at() -> None:
    display = Display()
    display.wrote(Group(b"AUTH PLAIN " + ECHO.encode() + b"\r\n", (Trigger.auth,), secret=True))
    reply = Reply(250, b"secret")
    assert display.replied([reply], parsed=False) == [(250, b"(not shown)")]
    assert display.replied([reply], parsed=True) == [reply]


def test_ehlo_is_read_as_it_is() -> None:
    """The text that is parsed is not changed, whatever the password."""
    session: Session = opened()()
    session.start(LOGIN.make(session), alone=True)
    session.receive_data(b"235 ok\r\n")
    session.start(hello(session, "ehlo", "me.example"))
    session.receive_data(b"250-hi\r\n250-X-secret\r\n250 SIZE\r\n")
    assert "x-secret" in session.extensions


@pytest.mark.parametrize("line_end", [b"\n", b"\r\n\t", b" \n "])
def test_an_echo_that_breaks_over_lines(line_end: bytes) -> None:
    redaction = Redaction()
    encoded = base64.b64encode(b"\0somebody@example.com\0a password of some length")
    redaction.learn(b"AUTH PLAIN " + encoded + b"\r\n")
    for width in (9, 20, 40):
        echo = line_end.join(encoded[at : at + width] for at in range(0, len(encoded), width))
        assert redaction.text(b"no: " + echo + line_end + b"5.7.8 go") == b"no: (not shown)" + line_end + b"5.7.8 go"
