"""Cancellation at every step of every shape: in step, or broken; never off by one."""

from __future__ import annotations

from typing import Any

import pytest

from asmtp.protocol.dialogue import greeting
from asmtp.protocol.exchange import Exchange
from asmtp.protocol.session import Session
from tests.fakes.server import Letter
from tests.protocol.echo import Echo
from tests.protocol.letters import SHAPES, STARTS, TWO_BY_BDAT, opened, replies
from tests.protocol.transcript import Start, play, state_of

pytestmark = pytest.mark.usefixtures("bdat_at_once")

shapes = pytest.mark.parametrize("shape", SHAPES)
protocols = pytest.mark.parametrize("lmtp", [False, True], ids=["SMTP", "LMTP"])


class Run:
    """A session and the echoing server, whose replies are delivered one at a time."""

    def __init__(self, shape: str, *, lmtp: bool) -> None:
        self.session = opened(shape, lmtp=lmtp)()
        self.server = Echo(lmtp=lmtp)
        self.replies: list[str] = []

    def turn(self) -> bool:
        """Deliver one reply, and return whether there was one."""
        self.replies += self.server.feed(self.session.output())
        if not self.replies:
            return False
        self.session.receive_data(self.replies.pop(0).encode() + b"\r\n")
        return True

    def check_next(self) -> None:
        """Check that the next message gets its own replies and is delivered as it is, or that nothing is written."""
        first, second = (self.session.start(STARTS[name].make(self.session)) for name in ("two", "noop"))
        before = list(self.server.letters)
        while self.turn():
            pass
        after = self.server.letters[len(before) :]
        if self.session.closed:
            assert first.error is not None
            assert state_of(first) == "not_sent"
            assert Letter("c@x", ["d@x"], b"Two\r\n") not in after
        else:
            assert first.result.reply == (250, b"Two")
            assert second.result == (250, b"noop")
            assert after[-1] == Letter("c@x", ["d@x"], b"Two\r\n")


# By shape: the connection goes on if the sender cancels after 0, 1, 2, ... replies, or it does not.
GOES_ON = {
    "lock-step": [True, True, False, True, True],
    "CHUNKING": [True, True, True, True],
    "PIPELINING": [False, False, False, True, True],
    "both": [True, True, True, True],
}


@shapes
@protocols
def test_at_every_reply(shape: str, lmtp: bool) -> None:
    for count, goes_on in enumerate(GOES_ON[shape]):
        run = Run(shape, lmtp=lmtp)
        one = run.session.start(STARTS["one"].make(run.session))
        for _ in range(count):
            assert run.turn()
        run.session.cancel(one)
        assert run.session.closed is not goes_on, f"after {count} replies"
        run.check_next()
        if count == len(GOES_ON[shape]) - 1:
            assert one.result.reply == (250, b"Hi.")


STREAM_GOES_ON = {
    # MAIL, RCPT, DATA owed; then the content: before it, in it, behind it; done.
    "lock-step": [True, True, False, False, False, False, True, True],
    "PIPELINING": [False, False, False, False, False, False, True, True],
    # MAIL, RCPT owed; before the first chunk; with its reply owed; with it in; the same of the second; the last; done.
    "CHUNKING": [True] * 9,
    "both": [True] * 9,
}


@shapes
@protocols
def test_at_every_step_of_streamed_content(shape: str, lmtp: bool) -> None:
    steps = len(STREAM_GOES_ON[shape])
    seen = []
    for stop in range(steps):
        run = Run(shape, lmtp=lmtp)
        one = run.session.start(STARTS["streamed"].make(run.session))
        pieces: list[bytes | None] = [b"Hi", b".", None]
        for _ in range(stop):
            _advance(run, one, pieces)
        assert one.done is (stop == steps - 1), stop
        run.session.cancel(one)
        seen.append(not run.session.closed)
        run.check_next()
        assert not [letter for letter in run.server.letters if letter.content not in (b"Hi.\r\n", b"Two\r\n")]
    assert seen == STREAM_GOES_ON[shape]


def _advance(run: Run, one: Exchange[Any], pieces: list[bytes | None]) -> None:
    """Deliver one more reply, or push one more piece if no reply is to come."""
    if not run.turn():
        run.session.push(one, pieces.pop(0))


@shapes
def test_cancelled_while_it_waits(shape: str) -> None:
    text = """
        start noop
        C: noop
        start login
        start one
        cancel one
        S: 250 noop
        C: AUTH PLAIN AG1lAHNlY3JldA==
        S: 235 ok
        """
    result = play(text, STARTS, opened(shape))
    assert result["one"] == "None"
    assert result["login"] == "235 ok"


@protocols
def test_a_message_cancelled_behind_another(lmtp: bool) -> None:
    """The message is written, so it may be delivered; no owner is told, and its replies go to no other dialogue."""
    text = TWO_BY_BDAT + "cancel one\ncancel two\nstart noop\nC: noop\n"
    text += replies("250 a", "250 b", "250 one", "250 flushed", "250 c", "250 d", "250 two", "250 noop")
    result = play(text, STARTS, opened("both", lmtp=lmtp))
    assert result["noop"] == "250 noop"
    assert result.clean


def test_a_login_cancelled_breaks() -> None:
    """Whatever the server says next, neither a response nor a command could follow."""
    result = play("start login\nC: AUTH PLAIN AG1lAHNlY3JldA==\ncancel login", STARTS, opened())
    assert result.state == "BROKEN"


def test_a_greeting_cancelled_breaks() -> None:
    starts = {"greeting": Start(lambda session: greeting())}
    assert play("start greeting\ncancel greeting", starts, Session).state == "BROKEN"


@pytest.mark.parametrize(
    ("name", "line", "reply", "state"),
    [("noop", "noop", "250 ok", "READY"), ("quit", "quit", "221 bye", "CLOSED"), ("rset", "rset", "250 ok", "READY")],
)
def test_a_command_cancelled(name: str, line: str, reply: str, state: str) -> None:
    result = play(f"start {name}\nC: {line}\ncancel {name}\nS: {reply}", STARTS, opened())
    assert result.state == state
    assert result[name] == "None"


def test_a_cancelled_exchange_is_over_when_the_session_is() -> None:
    for end in ("eof", "S: 421 bye", "close"):
        result = play(f"start noop\nC: noop\ncancel noop\n{end}", STARTS, opened())
        assert result["noop"] == "None"


def test_what_waits_behind_a_go_ahead_that_cannot_be_answered() -> None:
    """DATA stands behind another message's dot (RFC 2920 §3.1), and its sender goes: nothing follows it any more."""
    run = Run("PIPELINING", lmtp=False)
    first, second, third = (run.session.start(STARTS[name].make(run.session)) for name in ("one", "two", "noop"))
    while second.group is None:
        assert run.turn()
    run.session.cancel(second)
    assert run.session.doomed
    assert third.done
    later = run.session.start(STARTS["noop"].make(run.session))
    for told in (third, later):
        assert told.error is not None
        assert state_of(told) == "not_sent"
    while run.turn():
        pass
    assert first.result.reply == (250, b"Hi.")
    assert run.session.closed
