"""The states of an exchange: each row of the table in `ExchangeState` is walked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from asmtp.errors import SMTPServerDisconnected
from asmtp.protocol.exchange import Exchange, ExchangeState
from asmtp.protocol.session import Session
from asmtp.protocol.state import Chunking
from tests.protocol.letters import NOOP, letter, opened, streamed

pytestmark = pytest.mark.usefixtures("bdat_at_once")

QUEUED = ExchangeState.QUEUED
ACTIVE = ExchangeState.ACTIVE
PULLING = ExchangeState.PULLING
CANCELLED = ExchangeState.CANCELLED
DONE = ExchangeState.DONE

Event = Callable[[Session, Exchange[Any]], object]


def replies(*lines: bytes) -> Event:
    return lambda session, exchange: session.receive_data(b"".join(line + b"\r\n" for line in lines))


def push(content: bytes | None) -> Event:
    return lambda session, exchange: session.push(exchange, content)


def abort(session: Session, exchange: Exchange[Any]) -> None:
    session.abort(exchange, OSError("the file is gone"))


def cancel(session: Session, exchange: Exchange[Any]) -> None:
    session.cancel(exchange)


def fail(session: Session, exchange: Exchange[Any]) -> None:
    session.fail(SMTPServerDisconnected("failed"))


def behind_noop() -> tuple[Session, Exchange[Any]]:
    """Return a message that awaits the turn."""
    session = opened("both")()
    session.start(NOOP.make(session))
    return session, session.start(streamed().make(session))


def alone() -> tuple[Session, Exchange[Any]]:
    """Return a message that has written its envelope."""
    session = opened("both")()
    return session, session.start(streamed().make(session))


def unproven() -> tuple[Session, Exchange[Any]]:
    """Return a message that waits for another's reply, and in front of which the probe of BDAT will be written."""
    session = opened("both")()
    session.chunking = Chunking.UNKNOWN
    session.messages = 1
    session.start(NOOP.make(session))
    return session, session.start(streamed().make(session))


ENVELOPE = replies(b"250 a", b"250 b")

# By what happens, in order: the session and the message to begin with, and each event with the state that it leads to.
WALKS: dict[str, tuple[Callable[[], tuple[Session, Exchange[Any]]], list[tuple[Event, ExchangeState]]]] = {
    "it gets the turn": (behind_noop, [(replies(b"250 ok"), ACTIVE)]),
    "it is cancelled in the line": (behind_noop, [(cancel, DONE)]),
    "the session ends before its turn": (behind_noop, [(fail, DONE)]),
    "the probe goes first": (unproven, [(replies(b"250 ok"), QUEUED)]),
    "it pulls, and is written whole": (
        alone,
        [(ENVELOPE, PULLING), (push(b"Hi."), PULLING), (push(None), ACTIVE), (replies(b"250 a", b"250 b"), DONE)],
    ),
    "its envelope is refused": (alone, [(replies(b"250 a", b"550 b"), DONE)]),
    "the session ends while it is owed replies": (alone, [(fail, DONE)]),
    "it is cancelled, and then answered": (alone, [(cancel, CANCELLED), (ENVELOPE, DONE)]),
    "it is cancelled, and the session ends": (alone, [(cancel, CANCELLED), (fail, DONE)]),
    "a chunk is refused": (alone, [(ENVELOPE, PULLING), (push(b"Hi."), PULLING), (replies(b"552 much"), DONE)]),
    "its content cannot be had": (alone, [(ENVELOPE, PULLING), (abort, DONE)]),
    "the session ends while it pulls": (alone, [(ENVELOPE, PULLING), (fail, DONE)]),
    "it is cancelled while it pulls": (alone, [(ENVELOPE, PULLING), (cancel, DONE)]),
    "it is cancelled behind a chunk": (
        alone,
        [(ENVELOPE, PULLING), (push(b"Hi."), PULLING), (cancel, CANCELLED), (replies(b"250 chunk"), DONE)],
    ),
    "it is cancelled when it is whole": (
        alone,
        [(ENVELOPE, PULLING), (push(None), ACTIVE), (cancel, ACTIVE), (replies(b"250 taken"), DONE)],
    ),
    "its last replies are dropped": (
        alone,
        [(ENVELOPE, PULLING), (push(b"Hi."), PULLING), (abort, DONE), (replies(b"250 a chunk"), DONE)],
    ),
}


@pytest.mark.parametrize("what", WALKS)
def test_the_states_follow_one_another_as_the_table_says(what: str) -> None:
    begin, steps = WALKS[what]
    session, exchange = begin()
    assert exchange.state is (QUEUED if begin is not alone else ACTIVE)
    for number, (event, after) in enumerate(steps):
        event(session, exchange)
        assert exchange.state is after, f"step {number}"
        assert exchange.done is (after is DONE)
        assert exchange.pulling is (after is PULLING)


def test_the_replies_of_an_exchange_that_is_done_are_still_owed() -> None:
    session, exchange = alone()
    ENVELOPE(session, exchange)
    session.push(exchange, b"Hi.")
    abort(session, exchange)
    assert exchange.done
    assert (session.load, session.unfinished) == (1, 0)
    session.receive_data(b"250 a chunk\r\n")
    assert session.idle


def test_an_exchange_is_done_where_it_is_started_on_a_session_that_has_ended() -> None:
    session = opened("both")()
    session.close()
    exchange = session.start(letter().make(session))
    assert exchange.state is DONE
    assert isinstance(exchange.error, SMTPServerDisconnected)
