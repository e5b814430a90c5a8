"""The transition table: every row is walked, everything that is not in it is refused, and nothing is a trap."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from asmtp.errors import SMTPServerDisconnected, SMTPStateError
from asmtp.protocol import session as session_module
from asmtp.protocol.dialogue import greeting
from asmtp.protocol.exchange import Dialogue, Group
from asmtp.protocol.session import Session
from asmtp.protocol.state import GO_CODES, HELD, OPENING, TRANSITIONS, Event, State, diagram

ENDS = {State.CLOSED, State.BROKEN}

# What leads to each state: what is written, or what the server sends.
PATHS: dict[State, list[Event | bytes]] = {
    State.GREETING: [],
    State.READY: [b"220 hi\r\n"],
    State.HELLO: [b"220 hi\r\n", Event.hello],
    State.STARTTLS: [b"220 hi\r\n", Event.starttls],
    State.HANDSHAKE: [b"220 hi\r\n", Event.starttls, b"220 go\r\n"],
    State.AUTH: [b"220 hi\r\n", Event.auth],
    State.CHALLENGE: [b"220 hi\r\n", Event.auth, b"334 \r\n"],
    State.TRANSACTION: [b"220 hi\r\n", Event.mail, b"250 ok\r\n"],
    State.DATA: [b"220 hi\r\n", Event.mail, b"250 ok\r\n", Event.data],
    State.CONTENT: [b"220 hi\r\n", Event.mail, b"250 ok\r\n", Event.data, b"354 go\r\n"],
    State.CHUNKS: [b"220 hi\r\n", Event.mail, b"250 ok\r\n", Event.bdat, b"250 ok\r\n"],
    State.QUIT: [b"220 hi\r\n", Event.quit],
    State.CLOSED: [b"220 hi\r\n", Event.quit, b"221 bye\r\n"],
    State.BROKEN: [b"220 hi\r\n", b"250 what\r\n"],
}

WRITTEN = [event for event in Event if event.name.islower()]

# The replies that let it go on, and one that does not, where a state waits for a reply.
GO = {
    State.GREETING: b"220 hi\r\n",
    State.HELLO: b"250 hi\r\n",
    State.STARTTLS: b"220 go\r\n",
    State.AUTH: b"334 \r\n",
    State.DATA: b"354 go\r\n",
    State.QUIT: b"221 bye\r\n",
}


class Recording(dict[tuple[State, Event], State]):
    """The table, and which of its rows were looked up and found."""

    def __init__(self) -> None:
        super().__init__(TRANSITIONS)
        self.seen: set[tuple[State, Event]] = set()

    def get(self, key: Any, default: Any = None) -> Any:
        if key in self:
            self.seen.add(key)
        return super().get(key, default)

    def __getitem__(self, key: tuple[State, Event]) -> State:
        self.seen.add(key)
        return super().__getitem__(key)


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Recording:
    recording = Recording()
    monkeypatch.setattr(session_module, "TRANSITIONS", recording)
    return recording


def one(event: Event) -> Dialogue:
    owed = 0 if event is Event.content else 1
    yield Group(b"x\r\n", (event,), owed)


def in_state(state: State) -> Session:
    session = Session()
    session.start(greeting())
    for step in PATHS[state]:
        do(session, step)
    assert session.state is state
    session.output()
    return session


def do(session: Session, step: Event | bytes) -> None:
    if isinstance(step, bytes):
        session.receive_data(step)
    else:
        session.start(one(step), raw=True)


def happen(session: Session, event: Event) -> None:
    """Make an event that is not written happen."""
    if event is Event.GO:
        session.receive_data(GO[session.state])
    elif event is Event.NO:
        session.receive_data(b"500 no\r\n")
    elif event is Event.SECURED:
        session.secured()
    elif event is Event.END:
        session.close()
    else:
        session.fail(SMTPServerDisconnected("gone"))


def walk(state: State, event: Event) -> Session:
    session = in_state(state)
    if event in WRITTEN:
        exchange = session.start(one(event), raw=True)
        assert exchange.error is None
        assert session.output() == b"x\r\n"
    else:
        happen(session, event)
    return session


@pytest.mark.parametrize(("state", "event"), list(TRANSITIONS))
def test_row(state: State, event: Event) -> None:
    assert walk(state, event).state is TRANSITIONS[state, event]


def test_every_row_is_walked(table: Recording) -> None:
    for state, event in TRANSITIONS:
        walk(state, event)
    assert table.seen == set(TRANSITIONS)


@pytest.mark.parametrize("state", State)
def test_what_is_not_in_the_table_is_not_written(state: State) -> None:
    allowed = {event for before, event in TRANSITIONS if before is state}
    for event in set(WRITTEN) - allowed:
        session = in_state(state)
        before = session.idle
        exchange = session.start(one(event), raw=True)
        assert session.output() == b""
        if state in ENDS:
            assert isinstance(exchange.error, SMTPServerDisconnected)
        elif before:
            assert isinstance(exchange.error, SMTPStateError)
            assert state.value in str(exchange.error)
        else:
            assert not exchange.done  # it waits for the reply that is owed
        assert session.state is state


def test_no_state_is_unreachable() -> None:
    reached = {State.GREETING}
    while more := {after for (before, _), after in TRANSITIONS.items() if before in reached} - reached:
        reached |= more
    assert reached == set(State)
    assert set(PATHS) == set(State)


def test_the_end_is_the_end() -> None:
    for (before, event), after in TRANSITIONS.items():
        assert before not in ENDS
        assert event is not Event.END or after is State.CLOSED
        assert event is not Event.FAIL or after is State.BROKEN
    for state in set(State) - ENDS:
        assert (state, Event.END) in TRANSITIONS
        assert (state, Event.FAIL) in TRANSITIONS


def test_where_a_reply_is_awaited_nothing_may_be_written() -> None:
    """So the reply that moves the state is the last one owed."""
    for state in GO_CODES:
        ways = {event for before, event in TRANSITIONS if before is state}
        assert ways == {Event.GO, Event.NO, Event.END, Event.FAIL}


def test_content_is_written_behind_354_only() -> None:
    for event in (Event.content, Event.dot):
        assert {before for before, what in TRANSITIONS if what is event} == {State.CONTENT}
    assert {before for before, what in TRANSITIONS if what is Event.response} == {State.CHALLENGE}
    ways = {event for before, event in TRANSITIONS if before is State.CONTENT}
    assert ways == {Event.content, Event.dot, Event.END, Event.FAIL}


def test_what_is_held_and_what_opens() -> None:
    leads: Callable[[State], set[Event]] = lambda state: {  # noqa: E731
        event for before, event in TRANSITIONS if before is state
    }
    for state in HELD:
        assert not leads(state) & {Event.mail, Event.other, Event.rset, Event.quit}
    assert {Event.mail, Event.rcpt, Event.data, Event.bdat, Event.bdat_last} == OPENING


def test_diagram() -> None:
    lines = [line.strip() for line in diagram().splitlines()]
    assert lines[:2] == ["stateDiagram-v2", "[*] --> GREETING"]
    assert "DATA --> CONTENT: GO" in lines
    assert "GREETING --> READY: GO, NO" in lines
    assert "CONTENT --> READY: dot" in lines
    drawn = {
        (before, event, after)
        for line in lines[2:]
        for before, after, events in [line.replace(" --> ", ": ").split(": ")]
        for event in events.split(", ")
    }
    assert drawn == {
        (before.name, event.name, after.name)
        for (before, event), after in TRANSITIONS.items()
        if event not in (Event.END, Event.FAIL)
    }
