"""Play a transcript against a Session, in every way in which the server's octets may arrive.

A transcript is read line by line::

    start one                  start the dialogue of that name
    C: mail from:<a@x>         the client must have written this by now: all of it, and nothing else
    C: rcpt to:<b@x>
    S: 250 ok                  the server sends this then; consecutive lines are one turn
    S: 550 no
    push one Hi.\r\n           content for a dialogue that pulls it (with Python's escapes); `end one`: no more of it
    cancel one                 the owner of the dialogue cancels it; `abort one`: its content cannot be had
    eof                        the server closes; also `close`, `fail`, `secured`, `pause`, `resume`

A `C:` line stands for the line with its CRLF; one that ends in a backslash has none.

Each transcript is played with the server's turns whole, byte by byte, and split in two at every position; the
results must be the same.  Then once more for each turn, with a reply too much in the same octets: that has
to break the session.  In the end the session must be in step, or closed for good.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from asmtp.errors import (
    SMTPException,
    SMTPProtocolError,
    SMTPRecipientsRefused,
    SMTPResponseException,
    SMTPServerDisconnected as Disconnected,
)
from asmtp.protocol.dialogue import single
from asmtp.protocol.exchange import Dialogue, Exchange
from asmtp.protocol.reply import Reply
from asmtp.protocol.session import Session
from asmtp.protocol.state import State
from asmtp.protocol.verdict import Outcome

SURPLUS = b"250 surplus\r\n"


@dataclass(frozen=True)
class Start:
    """How a dialogue is made and started."""

    make: Callable[[Session], Dialogue[Any]]
    alone: bool = False
    raw: bool = False


@dataclass
class Result:
    """The result of a transcript."""

    outcomes: dict[str, str] = field(default_factory=dict)
    state: str = ""
    clean: bool = False

    def __getitem__(self, name: str) -> str:
        return self.outcomes[name]


Step = tuple[str, str, bytes]
Starts = dict[str, Start]


class _Split:
    """A function that cuts the server's turns: it takes a turn's number and octets, and returns what is fed."""

    def __init__(self, turn: int = -1, at: int = 0, *, bytewise: bool = False) -> None:
        self.turn = turn
        self.at = at
        self.bytewise = bytewise

    def __call__(self, turn: int, data: bytes) -> list[bytes]:
        if self.bytewise:
            return [data[place : place + 1] for place in range(len(data))]
        return [data[: self.at], data[self.at :]] if turn == self.turn else [data]

    def __repr__(self) -> str:
        return "byte by byte" if self.bytewise else f"turn {self.turn} split at {self.at}"


class Player:
    """One session under a transcript."""

    def __init__(self, session: Session, starts: Starts) -> None:
        self.session = session
        self.starts = starts
        self.exchanges: dict[str, Exchange[Any]] = {}
        self.told: Counter[str] = Counter()
        self.cancelled: set[str] = set()
        self.written = False
        session.notify = self._notify
        session.on_output = self._on_output

    def _notify(self, exchange: Exchange[Any]) -> None:
        if exchange.done:
            self.told[exchange.owner] += 1

    def _on_output(self) -> None:
        self.written = True

    def output(self) -> bytes:
        data = self.session.output()
        assert self.written or not data, "output without on_output"
        self.written = False
        return data

    def act(self, what: str, name: str, data: bytes) -> None:
        session = self.session
        if what == "start":
            how = self.starts[name]
            self.exchanges[name] = session.start(how.make(session), name, alone=how.alone, raw=how.raw)
            return
        if what == "pause":
            session.paused = True
        elif what == "resume":
            session.paused = False
            session.pump()
        elif what == "eof":
            session.receive_eof()
        elif what == "fail":
            session.fail(Disconnected("the test's own failure"))
        elif what in ("close", "secured"):
            getattr(session, what)()
        else:
            self._act_on(what, name, data)

    def _act_on(self, what: str, name: str, data: bytes) -> None:
        exchange = self.exchanges[name]
        if what in ("push", "end"):
            assert exchange.pulling, f"{name} pulls no content now"
            self.session.push(exchange, data if what == "push" else None)
        elif what == "abort":
            assert exchange.pulling
            self.session.abort(exchange, OSError("the file is gone"))
        else:
            assert what == "cancel", what
            if not exchange.done:
                self.cancelled.add(name)
            self.session.cancel(exchange)

    def result(self) -> Result:
        outcomes = {name: describe(exchange) for name, exchange in self.exchanges.items()}
        return Result(outcomes, self.session.state.name, self.session.clean)

    def check_told(self) -> None:
        """Check that each owner is told once if its dialogue is done, and not at all if it has cancelled."""
        for name, exchange in self.exchanges.items():
            if exchange.done:
                assert self.told[name] == (0 if name in self.cancelled else 1), f"{name} told {self.told[name]} times"
            else:
                assert not self.told[name]


def describe(exchange: Exchange[Any]) -> str:
    """Describe what became of a dialogue, in one line."""
    if not exchange.done:
        return "under way"
    if exchange.error is not None:
        return describe_error(exchange.error)
    if isinstance(exchange.result, Outcome):
        return describe_outcome(exchange.result)
    return _whole(exchange.result) if isinstance(exchange.result, Reply) else str(exchange.result)


def state_of(exchange: Exchange[Any]) -> str | None:
    """Return the state of the message that an exchange's error names."""
    assert isinstance(exchange.error, SMTPException)
    return exchange.error.state


def describe_outcome(outcome: Outcome) -> str:
    """Describe for whom a message was taken, and for whom not."""
    return f"sent {_pairs(outcome.accepted)}" + (f" but not {_pairs(outcome.refused)}" if outcome.refused else "")


def _whole(reply: Reply) -> str:
    """Return a reply with all of its lines."""
    return f"{reply.code} {reply.text}"


def describe_error(error: BaseException) -> str:
    """Describe an exception, and the state of the message that it names."""
    text = str(error)
    if isinstance(error, SMTPRecipientsRefused):
        text = _pairs(error.recipients)
    elif isinstance(error, SMTPResponseException):
        assert isinstance(error.smtp_error, bytes)
        text = _whole(Reply(error.smtp_code, error.smtp_error))
    state = f" [{error.state}]" if isinstance(error, SMTPException) and error.state else ""
    return f"{type(error).__name__} {text}{state}"


def _pairs(replies: dict[str, Any]) -> str:
    return "{" + ", ".join(f"{who}: {_whole(Reply(*reply))}" for who, reply in replies.items()) + "}"


def parse(text: str) -> list[Step]:
    """Return the steps of a transcript; lines of one side in a row are one step."""
    steps: list[Step] = []
    for line in filter(None, map(str.strip, text.splitlines())):
        side, _, rest = line.partition(" ")
        if side in ("C:", "S:"):
            octets = unescaped(rest) if side == "C:" and "\\" in rest else rest.encode()
            octets = octets[:-1] if octets.endswith(b"\\") else octets + b"\r\n"
            if steps and steps[-1][0] == side:
                octets = steps.pop()[2] + octets
            steps.append((side, "", octets))
        else:
            name, _, content = rest.partition(" ")
            steps.append((side, name, unescaped(content)))
    return steps


def unescaped(text: str) -> bytes:
    """Return octets that are written with the escapes of a bytes literal."""
    return re.sub(rb"\\(r|n|x[0-9a-f]{2})", _octet, text.encode())


def _octet(match: re.Match[bytes]) -> bytes:
    named = {b"r": b"\r", b"n": b"\n"}
    return named.get(match[1]) or bytes([int(match[1][1:], 16)])


def play(text: str, starts: Starts, session: Callable[[], Session]) -> Result:
    """Play a transcript in every way, see that they agree, and return what came of it.

    Args:
        starts: the dialogues by name.
        session: makes the session; called for each time that the transcript is played.
    """
    steps = parse(text)
    expected = _once(steps, starts, session(), _Split())
    for split in _splits(steps):
        result = _once(steps, starts, session(), split)
        assert result == expected, f"{split}: {result}"
    for turn in range(sum(side == "S:" for side, _, _ in steps)):
        _with_surplus(steps, starts, session, turn)
    return expected


def _splits(steps: list[Step]) -> Iterator[_Split]:
    yield _Split(bytewise=True)
    for turn, data in enumerate(data for side, _, data in steps if side == "S:"):
        for at in range(1, len(data)):
            yield _Split(turn, at)


def _once(steps: list[Step], starts: Starts, session: Session, split: _Split) -> Result:
    player = Player(session, starts)
    turn = -1
    for number, (what, name, data) in enumerate(steps):
        where = f"step {number}, {what} {name}"
        if what == "C:":
            assert player.output() == data, where
            continue
        assert player.output() == b"", f"before {where}"
        if what == "S:":
            turn += 1
            for piece in split(turn, data):
                session.receive_data(piece)
        else:
            player.act(what, name, data)
        assert not session.closed or all(exchange.done for exchange in player.exchanges.values()), where
    assert player.output() == b"", "more written than expected"
    player.check_told()
    result = player.result()
    _aftermath(player)
    return result


def _aftermath(player: Player) -> None:
    """Check that what is left is in step, or closed for good."""
    session = player.session
    if session.closed:
        _check_closed(player)
    elif session.idle and session.state in (State.READY, State.TRANSACTION):
        follower = session.start(single(b"noop\r\n"), "follower")
        assert player.output() == b"noop\r\n"
        session.receive_data(b"250 in step\r\n")
        assert follower.result == (250, b"in step")
        session.receive_data(SURPLUS)
        assert session.state is State.BROKEN
        assert isinstance(session.error, SMTPProtocolError)
        _check_closed(player)


def _check_closed(player: Player) -> None:
    session = player.session
    before = player.result()
    assert all(exchange.done for exchange in player.exchanges.values())
    late = session.start(single(b"noop\r\n"), "late")
    assert late.done
    assert isinstance(late.error, Disconnected)
    assert late.error is not session.error, "everyone gets a copy"
    session.receive_data(SURPLUS)
    session.receive_eof()
    session.fail(Disconnected("again"))
    session.close()
    session.pump()
    assert player.output() == b""
    assert player.result() == before
    player.check_told()


def _with_surplus(steps: list[Step], starts: Starts, make: Callable[[], Session], turn: int) -> None:
    """Send a reply too much, in the same octets as the last one owed, or as the one that the next command waits for."""
    place = [number for number, step in enumerate(steps) if step[0] == "S:"][turn]
    data = steps[place][2]
    plain = played_until(steps[:place], starts, make())
    plain.session.receive_data(data)
    if plain.session.closed or _still_owed(plain):
        return
    player = played_until(steps[:place], starts, make())
    session = player.session
    session.receive_data(data + SURPLUS)
    assert session.state is State.BROKEN, f"a reply too much in turn {turn} went unnoticed"
    assert isinstance(session.error, SMTPProtocolError)
    assert player.output() == b""
    player.check_told()
    _check_closed(player)


def played_until(steps: list[Step], starts: Starts, session: Session) -> Player:
    """Return a player that has played these steps; what was written has been taken away."""
    player = Player(session, starts)
    for what, name, data in steps:
        if what == "C:":
            player.output()
        elif what == "S:":
            session.receive_data(data)
        else:
            player.act(what, name, data)
    return player


def _still_owed(player: Player) -> bool:
    """Return whether commands that were written before this turn still have replies to come."""
    written = player.output()
    owed = [exchange.group for exchange in player.session._owed]
    return any(group is None or not group.data or group.data not in written for group in owed)
