"""Anything in any order against a server that answers for itself: what is said about a message has to be true."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from asmtp.errors import SMTPException, SMTPSenderRefused, SMTPServerDisconnected
from asmtp.protocol.dialogue import quit_, single
from asmtp.protocol.exchange import Exchange
from asmtp.protocol.state import State
from asmtp.protocol.verdict import NotBegun, Outcome
from tests.fakes.server import Letter
from tests.protocol.echo import Echo
from tests.protocol.letters import SHAPES, letter, opened, streamed

pytestmark = pytest.mark.usefixtures("bdat_at_once")

CODES = st.lists(st.sampled_from(["", "", "", "", "", "550", "550", "421"]), min_size=2, max_size=12)

LETTERS = st.tuples(st.just("letter"), st.integers(1, 3))
ACTIONS = st.one_of(
    LETTERS,
    LETTERS,
    st.tuples(st.just("stream"), st.integers(1, 2)),
    st.tuples(st.sampled_from(["noop", "reset", "pause", "resume"]), st.just(0)),
    st.tuples(st.sampled_from(["flush", "drain"]), st.just(0)),
    st.tuples(st.just("deliver"), st.integers(1, 200)),
    st.tuples(st.sampled_from(["push", "push", "end", "abort", "cancel", "cancel"]), st.integers(0, 5)),
)

ENDINGS = st.sampled_from(["drain", "drain", "quit", "eof", "fail", "close", "421", "nonsense"])


@dataclass
class Sent:
    """A message under way."""

    number: int
    exchange: Exchange[Any]
    recipients: tuple[str, ...]
    pushed: bytes = b""
    cancelled: bool = False

    @property
    def content(self) -> bytes:
        return self.pushed if self.pushed.endswith(b"\r\n") or not self.pushed else self.pushed + b"\r\n"


class World:
    """A session, the server, and the octets on their way between them."""

    def __init__(self, shape: str, codes: list[str], *, window: int, lmtp: bool, **server: bool) -> None:
        self.codes = iter(codes)
        self.session = opened(shape, lmtp=lmtp, window=window)()
        self.server = Echo(lmtp=lmtp, refuse=self.refuse, **server)
        self.coming = b""
        self.sent: list[Sent] = []
        self.noops: dict[int, Exchange[Any]] = {}
        self.told: list[Exchange[Any]] = []
        self.session.notify = self.notify

    def refuse(self, line: str) -> str:
        return "" if line.startswith(("rset", "noop", "quit")) else next(self.codes, "")

    def notify(self, exchange: Exchange[Any]) -> None:
        if exchange.done:
            assert exchange not in self.told, "told twice"
            self.told.append(exchange)

    def act(self, what: str, number: int) -> None:
        session = self.session
        if what in ("letter", "stream"):
            self.start_letter(what, number)
        elif what == "noop":
            place = len(self.noops)
            self.noops[place] = session.start(single(b"noop %d\r\n" % place), "noop")
        elif what == "reset":
            session.start(session.reset(), "rset")
        elif what == "flush":
            self.flush()
        elif what == "drain":
            self.drain()
        elif what == "deliver":
            self.flush()
            data, self.coming = self.coming[:number], self.coming[number:]
            if data:
                session.receive_data(data)
        elif what == "pause":
            session.paused = True
        elif what == "resume":
            session.paused = False
            session.pump()
        elif self.sent:
            self.act_on(what, self.sent[number % len(self.sent)])

    def start_letter(self, what: str, count: int) -> None:
        number = len(self.sent)
        recipients = tuple(f"r{number}-{place}@x" for place in range(count))
        content = b"%d.\r\n" % number
        sender = f"s{number}@x"
        make = (letter(sender, recipients, content) if what == "letter" else streamed(sender, recipients)).make
        exchange = self.session.start(make(self.session), number)
        self.sent.append(Sent(number, exchange, recipients, content if what == "letter" else b""))

    def act_on(self, what: str, sent: Sent) -> None:
        exchange = sent.exchange
        if what == "cancel":
            sent.cancelled = True
            self.session.cancel(exchange)
        elif exchange.pulling and what == "push":
            piece = b"%d." % sent.number
            sent.pushed += piece
            self.session.push(exchange, piece)
        elif exchange.pulling and what == "end":
            self.session.push(exchange, None)
        elif exchange.pulling:
            self.session.abort(exchange, OSError("no more"))

    def flush(self) -> None:
        """Let all that was written reach the server."""
        for reply in self.server.feed(self.session.output()):
            self.coming += reply.encode() + b"\r\n"

    def drain(self) -> None:
        """Go on until nothing moves any more."""
        self.act("resume", 0)
        for _ in range(1000):
            self.flush()
            if self.coming:
                self.act("deliver", 1 << 20)
            elif self.server.done and not self.session.closed:
                self.session.receive_eof()
            elif not any(self._finish_streams()):
                return
        raise AssertionError("it never comes to an end")

    def _finish_streams(self) -> Iterator[bool]:
        for sent in self.sent:
            if sent.exchange.pulling:
                self.act_on("end", sent)
                yield True

    def end(self, how: str) -> None:
        session = self.session
        if how in ("drain", "quit"):
            self.drain()
        if how == "quit":
            session.start(quit_(), alone=True)
            self.drain()
        elif how == "421":
            self.server.done = True
            session.receive_data(self.coming + b"421 bye\r\n")
            session.receive_eof()
        elif how == "nonsense":
            session.receive_data(self.coming + b"what\r\n")
        elif how == "fail":
            session.fail(SMTPServerDisconnected("failed"))
        elif how == "eof":
            session.receive_eof()
        elif how == "close":
            session.close()

    def check(self) -> None:
        for delivered in self.server.letters:
            self.check_delivered(delivered)
        for sent in self.sent:
            self.check_said(sent)
        for number, exchange in self.noops.items():
            if exchange.error is None:
                assert exchange.result.message == (b"bye" if exchange.result.code == 421 else b"noop %d" % number)
            else:
                assert isinstance(exchange.error, SMTPException)

    def check_delivered(self, delivered: Letter) -> None:
        """Check that a message that was delivered is whole, and went to its own recipients under its own sender."""
        number = int(delivered.sender[1:-2])
        assert delivered.content == self.sent[number].content
        assert set(delivered.recipients) <= set(self.sent[number].recipients)

    def check_said(self, sent: Sent) -> None:
        delivered = [letter for letter in self.server.letters if letter.sender == f"s{sent.number}@x"]
        assert len(delivered) <= 1
        error = sent.exchange.error
        assert not isinstance(error, SMTPSenderRefused) or error.smtp_code != 503, "a transaction was left open"
        if isinstance(sent.exchange.result, Outcome):
            assert delivered
            assert list(sent.exchange.result.accepted) == delivered[0].recipients
            refused = set(sent.recipients) - set(delivered[0].recipients)
            assert set(sent.exchange.result.refused) == refused
        elif isinstance(error, NotBegun | OSError) and not isinstance(error, SMTPException):
            assert not delivered
        elif isinstance(error, SMTPException) and error.state != "in_doubt":
            if delivered and self.server.goes_on and self.coming:
                # A 421 is the end.  Only its replies can tell that the server goes on all the same, and these are lost.
                said = getattr(error, "recipients", None) or {"": (getattr(error, "smtp_code", None), b"")}
                assert [code for code, _ in said.values()][-1] == 421, error
            else:
                assert not delivered, error
        elif error is None:
            assert sent.cancelled


@given(
    shape=st.sampled_from(list(SHAPES)),
    lmtp=st.booleans(),
    impatient=st.booleans(),
    goes_on=st.booleans(),
    window=st.integers(1, 4),
    codes=CODES,
    actions=st.lists(ACTIONS, min_size=2, max_size=25),
    arrived=st.booleans(),
    ending=ENDINGS,
)
@settings(max_examples=1000)
def test_what_is_said_of_a_message_is_true(
    shape: str,
    lmtp: bool,
    impatient: bool,
    goes_on: bool,
    window: int,
    codes: list[str],
    actions: list[tuple[str, int]],
    arrived: bool,
    ending: str,
) -> None:
    world = World(shape, codes, window=window, lmtp=lmtp, impatient=impatient, goes_on=goes_on)
    session = world.session

    def everyone() -> list[Exchange[Any]]:
        return [sent.exchange for sent in world.sent] + list(world.noops.values())

    for what, number in actions:
        world.act(what, number)
        if session.closed:
            assert session.output() == b""
            assert all(exchange.done for exchange in everyone())
    if arrived:  # and maybe was answered, but the answer does not come
        world.flush()
    world.end(ending)
    if ending == "drain" and not session.closed:
        assert all(exchange.done for exchange in everyone())
        assert session.idle
    world.check()
    session.close()
    assert session.state in (State.CLOSED, State.BROKEN)
    assert session.output() == b""
    for exchange in everyone():
        assert exchange.done
        if exchange.owner is not None:
            assert world.told.count(exchange) == 1
    world.check()
