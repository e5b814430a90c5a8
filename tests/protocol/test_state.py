"""The transition table: every row is walked, everything that is not in it is refused, and nothing is a trap."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from asmtp.errors import SMTPServerDisconnected, SMTPStateError
from asmtp.protocol import session as session_module, state as state_module
from asmtp.protocol.exchange import Dialogue, Group, Phase, Turn
from asmtp.protocol.extensions import Extensions
from asmtp.protocol.session import Session
from asmtp.protocol.state import GO_CODES, HELD, OPENING, TRANSITIONS, State, Trigger, diagram

ENDS = {State.CLOSED, State.BROKEN}

# The way to each state: triggers that are written, replies of the server; None: something written whole is not
# answered.
PATHS: dict[State, list[Trigger | bytes | None]] = {
    State.GREETING: [],
    State.READY: [b"220 hi\r\n"],
    State.HELLO: [b"220 hi\r\n", Trigger.hello],
    State.STARTTLS: [b"220 hi\r\n", Trigger.starttls],
    State.HANDSHAKE: [b"220 hi\r\n", Trigger.starttls, b"220 go\r\n"],
    State.AUTH: [b"220 hi\r\n", Trigger.auth],
    State.CHALLENGE: [b"220 hi\r\n", Trigger.auth, b"334 \r\n"],
    State.TRANSACTION: [b"220 hi\r\n", Trigger.mail, b"250 ok\r\n"],
    State.DATA: [b"220 hi\r\n", Trigger.mail, b"250 ok\r\n", Trigger.data],
    State.CONTENT: [b"220 hi\r\n", Trigger.mail, b"250 ok\r\n", Trigger.data, b"354 go\r\n"],
    State.CHUNKS: [b"220 hi\r\n", Trigger.mail, b"250 ok\r\n", Trigger.bdat, b"250 ok\r\n"],
    State.DISCARD: [b"220 hi\r\n", Trigger.mail, b"250 ok\r\n", Trigger.bdat, b"250 ok\r\n", None, Trigger.ABORT],
    State.QUIT: [b"220 hi\r\n", Trigger.quit],
    State.CLOSING: [b"220 hi\r\n", None, b"421 bye\r\n"],
    State.CLOSED: [b"220 hi\r\n", Trigger.quit, b"221 bye\r\n"],
    State.BROKEN: [b"220 hi\r\n", b"250 what\r\n"],
}

WRITTEN = [trigger for trigger in Trigger if trigger.name.islower()]

# The reply that lets the session go on, for each state that waits for one.
GO = {
    State.GREETING: b"220 hi\r\n",
    State.HELLO: b"250 hi\r\n",
    State.STARTTLS: b"220 go\r\n",
    State.AUTH: b"334 \r\n",
    State.DATA: b"354 go\r\n",
    State.QUIT: b"221 bye\r\n",
}


class Recording(dict[tuple[State, Trigger], State]):
    """The table, and those of its rows that were looked up and found."""

    def __init__(self) -> None:
        super().__init__(TRANSITIONS)
        self.seen: set[tuple[State, Trigger]] = set()

    def get(self, key: Any, default: Any = None) -> Any:
        if key in self:
            self.seen.add(key)
        return super().get(key, default)

    def __getitem__(self, key: tuple[State, Trigger]) -> State:
        self.seen.add(key)
        return super().__getitem__(key)


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Recording:
    recording = Recording()
    monkeypatch.setattr(session_module, "TRANSITIONS", recording)
    return recording


def one(trigger: Trigger) -> Dialogue[Any]:
    owed = 0 if trigger is Trigger.content else 1
    yield Group(b"x\r\n", (trigger,), owed, turn=Turn.RELEASE)


def waiting(owed: int, phase: Phase = Phase.COMMAND) -> Dialogue[Any]:
    """Write nothing, and wait for replies, as a dialogue does when it has written everything."""
    yield Group(b"", (), owed, turn=Turn.RELEASE, phase=phase)


def nothing() -> Dialogue[Any]:
    """End at once."""
    return
    yield


def in_state(state: State) -> Session:
    session = Session()
    session.start(waiting(1, Phase.GREETING))
    for step in PATHS[state]:
        do(session, step)
    assert session.state is state
    session.output()
    return session


def do(session: Session, step: Trigger | bytes | None) -> None:
    if isinstance(step, bytes):
        session.receive_data(step)
    elif step is None:
        session.start(waiting(3))
    elif step is Trigger.ABORT:
        happen(session, step)
    else:
        session.start(one(step), raw=True)


def happen(session: Session, trigger: Trigger) -> None:
    """Make a trigger happen that is not written."""
    if trigger is Trigger.GO:
        session.receive_data(GO[session.state])
    elif trigger is Trigger.NO:
        session.receive_data(b"500 no\r\n")
    elif trigger is Trigger.SECURED:
        session.secured()
    elif trigger is Trigger.BYE:
        if session.state is not State.DISCARD:  # else replies are owed already, and the session would write RSET
            session.extensions = Extensions.parse(b"hi\nPIPELINING")
            session.start(waiting(3))
        session.receive_data(b"421 bye\r\n")
    elif trigger is Trigger.ABORT:
        session.extensions = Extensions.parse(b"hi\nPIPELINING")
        session.start(nothing())
    elif trigger is Trigger.END:
        session.close()
    else:
        session.fail(SMTPServerDisconnected("gone"))


def walk(state: State, trigger: Trigger) -> Session:
    session = in_state(state)
    if state is State.DISCARD and trigger is Trigger.rset:
        session.start(one(Trigger.mail))
        assert session.output() == b"rset\r\n"
    elif trigger in WRITTEN:
        exchange = session.start(one(trigger), raw=True)
        assert exchange.error is None
        assert session.output() == b"x\r\n"
    else:
        happen(session, trigger)
    return session


@pytest.mark.parametrize(("state", "trigger"), list(TRANSITIONS))
def test_row(state: State, trigger: Trigger) -> None:
    assert walk(state, trigger).state is TRANSITIONS[state, trigger]


def test_every_row_is_walked(table: Recording) -> None:
    for state, trigger in TRANSITIONS:
        walk(state, trigger)
    assert table.seen == set(TRANSITIONS)


@pytest.mark.parametrize("state", [state for state in State if state is not State.DISCARD])
def test_what_is_not_in_the_table_is_not_written(state: State) -> None:
    allowed = {trigger for before, trigger in TRANSITIONS if before is state}
    for trigger in set(WRITTEN) - allowed:
        session = in_state(state)
        before = session.idle
        exchange = session.start(one(trigger), raw=True)
        assert session.output() == b""
        if state in ENDS:
            assert isinstance(exchange.error, SMTPServerDisconnected)
        elif before:
            assert isinstance(exchange.error, SMTPStateError)
            assert state.value in str(exchange.error)
        else:
            assert not exchange.done  # it waits for the reply that is owed
        assert session.state is state


def test_rset_goes_in_front_of_whatever_comes_next_where_chunks_are_to_be_discarded() -> None:
    assert {trigger for before, trigger in TRANSITIONS if before is State.DISCARD} & set(WRITTEN) == {Trigger.rset}
    for trigger in WRITTEN:
        session = in_state(State.DISCARD)
        session.start(one(trigger), raw=True)
        assert session.output() == b"rset\r\n"
        assert session.state is State.READY


def test_chunks_that_a_caller_has_written_by_hand_are_not_discarded() -> None:
    session = in_state(State.CHUNKS)
    session.start(nothing(), raw=True)
    assert session.state is State.CHUNKS


def test_no_state_is_unreachable() -> None:
    reached = {State.GREETING}
    while more := {after for (before, _), after in TRANSITIONS.items() if before in reached} - reached:
        reached |= more
    assert reached == set(State)
    assert set(PATHS) == set(State)


def test_the_end_is_the_end() -> None:
    for (before, trigger), after in TRANSITIONS.items():
        assert before not in ENDS
        assert trigger is not Trigger.BYE or after is State.CLOSING
        assert trigger is not Trigger.END or after is State.CLOSED
        assert trigger is not Trigger.FAIL or after is State.BROKEN
    for state in set(State) - ENDS:
        assert (state, Trigger.END) in TRANSITIONS
        # Plain text in front of the TLS handshake is not read as a reply.
        assert ((state, Trigger.BYE) in TRANSITIONS) is (state is not State.HANDSHAKE)
        assert (state, Trigger.FAIL) in TRANSITIONS


def test_where_a_reply_is_awaited_nothing_may_be_written() -> None:
    """Therefore the reply that moves the state is the last one owed."""
    for state in GO_CODES:
        ways = {trigger for before, trigger in TRANSITIONS if before is state}
        assert ways == {Trigger.GO, Trigger.NO, Trigger.BYE, Trigger.END, Trigger.FAIL}


def test_nothing_is_written_behind_421() -> None:
    ways = {trigger for before, trigger in TRANSITIONS if before is State.CLOSING}
    assert ways == {Trigger.BYE, Trigger.END, Trigger.FAIL}


def test_content_is_written_behind_354_only() -> None:
    for trigger in (Trigger.content, Trigger.dot):
        assert {before for before, what in TRANSITIONS if what is trigger} == {State.CONTENT}
    assert {before for before, what in TRANSITIONS if what is Trigger.response} == {State.CHALLENGE}
    ways = {trigger for before, trigger in TRANSITIONS if before is State.CONTENT}
    assert ways == {Trigger.content, Trigger.dot, Trigger.BYE, Trigger.END, Trigger.FAIL}


def test_what_is_held_and_what_opens() -> None:
    leads: Callable[[State], set[Trigger]] = lambda state: {  # noqa: E731
        trigger for before, trigger in TRANSITIONS if before is state
    }
    for state in HELD:
        assert not leads(state) & {Trigger.mail, Trigger.other, Trigger.rset, Trigger.quit}
    assert {Trigger.mail, Trigger.rcpt, Trigger.data, Trigger.bdat, Trigger.bdat_last} == OPENING


def test_diagram() -> None:
    lines = [line.strip() for line in diagram().splitlines()]
    assert lines[:2] == ["stateDiagram-v2", "[*] --> GREETING"]
    assert "DATA --> CONTENT: GO" in lines
    assert "GREETING --> READY: GO, NO" in lines
    assert "CONTENT --> READY: dot" in lines
    drawn = {
        (before, trigger, after)
        for line in lines[2:]
        for before, after, triggers in [line.replace(" --> ", ": ").split(": ")]
        for trigger in triggers.split(", ")
    }
    assert drawn == {
        (before.name, trigger.name, after.name)
        for (before, trigger), after in TRANSITIONS.items()
        if trigger not in (Trigger.BYE, Trigger.END, Trigger.FAIL)
    }


def test_the_theory_names_what_there_is() -> None:
    session = Session()
    owners = {
        "Session": session,
        "Inbound": session._inbound,
        "Turn": Turn,
        "State": State,
    }
    named = re.findall(r"`(Session|Inbound|Turn|State)\.(\w+)`", state_module.__doc__ or "")
    assert len(set(named)) > 12
    for owner, name in named:
        assert hasattr(owners[owner], name), f"{owner}.{name}"
