"""Tables of the pool's decisions: which connection a message goes to, how many are opened, which relay serves."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, strategies as st

from asmtp import Rate, Relay, SMTPConnectError
from asmtp.mailer.rate import RateLimiter
from asmtp.mailer.relay_state import RelayState
from asmtp.mailer.schedule import Opening, View, assign, choose_relay, decide


@dataclass(eq=False)
class Seen:
    """A connection as `assign` sees it."""

    load: int = 0
    room: int = 10
    left: float = 0.0
    service: float = 1.0


def idle(room: int = 10, service: float = 1.0) -> Seen:
    return Seen(0, room, 0.0, service)


def busy(load: int, room: int = 10, service: float = 1.0) -> Seen:
    return Seen(load, room, 0.0, service)


def opening(left: float, service: float = 1.0) -> Seen:
    return Seen(0, 0, left, service)


CONNECT, SERVICE = 10.0, 1.0  # so a new connection has to be worth 21

# The connections, how many messages wait, how many connections may be opened; the places of those that are given the
# messages, and how many are opened.
SITUATIONS: dict[str, tuple[list[Seen], int, int, list[int], int]] = {
    "nothing waits": ([idle()], 0, 4, [], 0),
    "nothing at all": ([], 0, 0, [], 0),
    "the first message": ([], 1, 4, [], 1),
    "the first two": ([], 2, 4, [], 1),
    "not so many that a second pays": ([], 11, 4, [], 1),
    "so many that a second pays": ([], 12, 4, [], 2),
    "a thousand": ([], 1000, 4, [], 4),
    "none may be opened": ([], 10, 0, [], 0),
    "one is idle": ([idle()], 1, 4, [0], 0),
    "one is idle, and takes several": ([idle()], 3, 4, [0, 0, 0], 0),
    "one is idle, and takes one": ([idle(1)], 3, 4, [0], 0),
    "two are idle": ([idle(), idle()], 1, 0, [0], 0),
    "two are idle, two messages": ([idle(), idle()], 2, 0, [0, 1], 0),
    "two are idle, four messages": ([idle(), idle()], 4, 0, [0, 1, 0, 1], 0),
    "of two that are idle the first": ([idle(service=2), idle()], 1, 0, [0], 0),
    "one is idle, one busy": ([busy(1), idle()], 1, 0, [1], 0),
    "one is idle, and one busy but faster": ([busy(1, service=0.1), idle()], 3, 0, [1, 0, 0], 0),
    "the one with less to do": ([busy(5), busy(2)], 1, 0, [1], 0),
    "the one that is done sooner": ([busy(5, service=0.1), busy(2)], 1, 0, [0], 0),
    "one is busy, and a new one not worth it": ([busy(9)], 1, 4, [0], 0),
    "one is full, and a new one not worth it": ([busy(9, 0)], 1, 4, [], 0),
    "one is as busy as a new one would take": ([busy(20)], 1, 4, [0], 0),
    "one is so busy that a new one pays": ([busy(21)], 1, 4, [], 1),
    "one is full, and a new one pays": ([busy(21, 0)], 1, 4, [], 1),
    "so many that a new one pays": ([idle(100)], 30, 4, [0] * 21, 1),
    "one is on its way": ([opening(5)], 3, 4, [], 0),
    "one is on its way, and one idle": ([opening(5), idle()], 1, 4, [1], 0),
    "one is all but there, and one idle": ([opening(0.01), idle(service=50)], 1, 4, [1], 0),
    "one is on its way, and some wait for it": ([opening(2.5), idle(100)], 6, 4, [1, 1, 1, 1], 0),
    "one hangs, and one is idle": ([opening(5000), idle()], 12, 0, [1] * 10, 0),
    "one hangs, and one is busy": ([opening(5000), busy(9)], 3, 0, [1] * 3, 0),
    "one hangs, and no other": ([opening(5000)], 1, 4, [], 1),
    "one hangs, and no other may be opened": ([opening(5000)], 1, 0, [], 0),
    "an idle one that was slow": ([idle(service=500)], 1, 4, [0], 0),
    "an idle one that was slow, for the first": ([idle(service=500)], 2, 4, [0], 1),
    "nothing has room": ([busy(3, 0), busy(5, 0)], 10, 0, [], 0),
    "one has room": ([busy(3, 0), busy(5, 2)], 100, 0, [1, 1], 0),
}


@pytest.mark.parametrize("situation", SITUATIONS)
def test_assign(situation: str) -> None:
    seen, waiting, spare, chosen, opened = SITUATIONS[situation]
    found, to_open = assign(seen, waiting, spare, CONNECT, SERVICE)
    assert [seen.index(each) for each in found] == chosen
    assert to_open == opened


seconds = st.floats(1e-5, 100)
open_ones = st.builds(Seen, load=st.integers(0, 30), room=st.integers(0, 8), left=st.just(0.0), service=seconds)
openings = st.builds(opening, left=seconds, service=seconds)
connections = st.lists(open_ones | openings, max_size=6)
counts = st.integers(0, 40)


@given(connections, counts, st.integers(0, 5), seconds, seconds)
def test_never_too_many(seen: list[Seen], waiting: int, spare: int, connect: float, service: float) -> None:
    chosen, opened = assign(seen, waiting, spare, connect, service)
    assert 0 <= opened <= spare
    assert len(chosen) + opened <= waiting
    for each in seen:
        assert chosen.count(each) <= each.room


@given(connections, st.integers(0, 5), seconds, seconds)
def test_nothing_to_do(seen: list[Seen], spare: int, connect: float, service: float) -> None:
    assert assign(seen, 0, spare, connect, service) == ([], 0)


@given(open_ones, counts, seconds, seconds)
def test_one_connection_is_filled(seen: Seen, waiting: int, connect: float, service: float) -> None:
    chosen, opened = assign([seen], waiting, 0, connect, service)
    assert chosen == [seen] * min(waiting, seen.room)
    assert opened == 0


steady = st.builds(Seen, load=st.integers(0, 30), room=st.integers(0, 8), service=st.floats(0.01, 1))


@given(st.lists(steady, max_size=6), seconds, seconds)
def test_where_there_is_no_end_of_messages_all_room_is_used(seen: list[Seen], connect: float, service: float) -> None:
    chosen, _ = assign(seen, 40_000, 0, connect, service)
    assert len(chosen) == sum(each.room for each in seen)


@given(connections, st.integers(1, 40), st.integers(0, 5), seconds, seconds)
def test_what_is_idle_comes_first(seen: list[Seen], waiting: int, spare: int, connect: float, service: float) -> None:
    """Idle connections come before those that are busy or being opened (they may hang), and before a new one."""
    chosen, opened = assign(seen, waiting, spare, connect, service)
    unused = [each for each in seen if not each.load and each.room]
    first = chosen[: len(unused)]
    assert len(first) == min(waiting, len(unused))
    assert all(each in unused for each in first)
    assert len(set(map(id, first))) == len(first)
    if opened:
        assert all(each in chosen for each in unused)


@given(connections, counts, st.integers(0, 5), seconds, seconds)
def test_in_line(seen: list[Seen], waiting: int, spare: int, connect: float, service: float) -> None:
    """The decision on a message does not depend on the messages behind it."""
    fewer, opened_for_fewer = assign(seen, waiting, spare, connect, service)
    more, opened_for_more = assign(seen, waiting + 1, spare, connect, service)
    assert more[: len(fewer)] == fewer
    assert opened_for_fewer <= opened_for_more
    assert len(more) + opened_for_more <= len(fewer) + opened_for_fewer + 1


@given(connections, st.integers(1, 3), counts, st.integers(0, 5), seconds, seconds)
def test_what_hangs_is_not_waited_for(
    seen: list[Seen], hanging: int, waiting: int, spare: int, connect: float, service: float
) -> None:
    far = [opening(1e9) for _ in range(hanging)]
    assert assign([*far, *seen], waiting, spare, connect, service) == assign(seen, waiting, spare, connect, service)


# ---- which relay serves ------------------------------------------------------------------------

NOW = 1000.0


def relay(state: str) -> RelayState:
    """A relay: "new"; "failed", and may be tried; "rests", "longer", or "just" failed; with a "wrong" password."""
    made = RelayState(Relay("mail.example"))
    if state == "failed":
        made.failed(NOW - 100, OSError("refused"), 0)
    if state in ("just", "rests", "longer", "wrong"):
        error = SMTPConnectError(554 if state == "wrong" else 421, b"no")
        for _ in range(6):
            made.backoff = made.backoff.failed(NOW, 0)
        made.failed(NOW - {"just": 0.1, "longer": 9}.get(state, 5), error, 0)
    return made


# The relays in the order of preference; the one that serves.
CHOICES: list[tuple[str, int]] = [
    ("new", 0),
    ("new new", 0),
    ("up new", 0),
    ("new up", 1),  # until there is a connection to the first
    ("up up", 0),
    ("rests up up", 1),
    ("failed new", 1),  # it is tried beside
    ("failed failed", 0),
    ("rests new", 1),
    ("rests failed", 1),
    ("rests failed new", 2),
    ("hangs new", 1),
    ("hangs failed", 1),
    ("hangs hangs", 0),
    ("hangs rests", 1),
    ("rests longer", 1),
    ("longer rests", 0),
    ("wrong rests", 1),
    ("rests wrong", 0),
    ("wrong wrong", 0),
    ("wrong up", 1),
]


@pytest.mark.parametrize(("states", "chosen"), CHOICES, ids=[states for states, _ in CHOICES])
def test_choose(states: str, chosen: int) -> None:
    relays = [relay(state) for state in states.split()]
    serving = {each for each, state in zip(relays, states.split(), strict=True) if state == "up"}
    hanging = {each for each, state in zip(relays, states.split(), strict=True) if state == "hangs"}
    assert choose_relay(relays, serving, hanging, NOW) is relays[chosen]


# ---- all of it ---------------------------------------------------------------------------------

INF = math.inf


@dataclass(eq=False)
class Line(Seen):
    """An open connection as `decide` sees it."""

    to: int = 0
    silent: bool = False
    retiring: bool = False
    relay: Any = None

    def serves(self, now: float) -> bool:
        return not (self.silent or self.retiring)

    def silent_at(self, now: float) -> float:
        return now + 2


@dataclass
class Situation:
    """A view of the pool, and the decision on it; relays and connections are given by their places.

    Attributes:
        relays: their states: see `relay`.
        open: connections.
        opening: the relays to which connections are being opened, and for how many seconds.
        waiting: how many recipients each message in line has.
        rate: messages a second, or None.
        short: seconds for which there has been no room, or None.
        wake: in how many seconds it is looked again, if nothing happens before.
        still_short: there is no room for more, after what is assigned.
    """

    relays: str = "new"
    open: list[Line] = field(default_factory=list)
    opening: list[tuple[int, float]] = field(default_factory=list)
    most: int = 4
    waiting: list[int] = field(default_factory=lambda: [1])
    rate: float | None = None
    short: float | None = None
    assign: list[int] = field(default_factory=list)
    opens: list[int] = field(default_factory=list)
    abandons: list[int] = field(default_factory=list)
    retires: list[int] = field(default_factory=list)
    turns_away: int | None = None
    wake: float = INF
    paced: bool = False
    still_short: bool = True


DECISIONS: dict[str, Situation] = {
    "the first message": Situation(opens=[0]),
    "one is idle": Situation(open=[Line()], assign=[0], still_short=False, wake=2),
    "one is idle, and leads elsewhere": Situation(
        "new new", [Line(to=1)], assign=[0], opens=[0], still_short=False, wake=2
    ),
    "one is full": Situation(open=[Line(5, 0)], wake=2),
    "one is full, and a new one pays": Situation(open=[Line(500, 0)], opens=[0], wake=2),
    "all that may be are full": Situation(open=[Line(500, 0)], most=1, wake=2),
    "one is full for long": Situation(open=[Line(5, 0)], short=50, opens=[0], wake=2),
    "one is full, and there may be no other": Situation(open=[Line(5, 0)], most=1, short=50, wake=2),
    "one is silent": Situation(open=[Line(5, silent=True)], opens=[0]),
    "one is silent, and there may be no other": Situation(open=[Line(5, silent=True)], most=1),
    "one retires": Situation(open=[Line(5, retiring=True)], opens=[0]),
    "one is on its way": Situation(opening=[(0, 5)]),
    "one is on its way, for a thousand": Situation(opening=[(0, 5)], waiting=[1] * 1000),
    "one hangs": Situation(opening=[(0, 500)], opens=[0]),
    "two hang": Situation(opening=[(0, 500), (0, 400)], opens=[0]),
    "all that may be hang": Situation(opening=[(0, 500)], most=1),
    # One finds out whether the relay can be had, however many wait.
    "the first thousand": Situation(waiting=[1] * 1000, opens=[0]),
    "more, once it is known": Situation(
        open=[Line()], waiting=[1] * 1000, assign=[0] * 10, opens=[0, 0, 0], wake=2
    ),
    # A relay that cannot be had.
    "it failed just now": Situation("just", wake=0.4),
    "it failed, and half a second has passed": Situation("rests", opens=[0]),
    "it failed long ago": Situation("failed", opens=[0]),
    "its password is wrong": Situation("wrong", turns_away=0),
    "its password is wrong, and one is open": Situation("wrong", [Line()], assign=[0], still_short=False, wake=2),
    "its password is wrong, and one is on its way": Situation("wrong", opening=[(0, 1)]),
    # A rate.
    "no more than the rate allows": Situation(
        open=[Line()], waiting=[1] * 5, rate=20, assign=[0, 0, 0], paced=True, still_short=False
    ),
    "nothing may go now": Situation(open=[Line()], rate=-1, paced=True),
    # Several relays.
    "the first has never been tried": Situation("new new", opens=[0]),
    "the first rests": Situation("rests new", opens=[1]),
    "all rest": Situation("rests longer", opens=[1]),
    "the first is back, perhaps": Situation(
        "failed new", [Line(to=1)], assign=[0], opens=[0], still_short=False, wake=2
    ),
    "the first is tried already": Situation(
        "failed new", [Line(to=1)], opening=[(0, 5)], assign=[0], still_short=False, wake=2),
    "the first hangs, and another serves": Situation(
        "failed new", [Line(to=1)], opening=[(0, 500)], assign=[0], abandons=[0], still_short=False, wake=2),
    "the first hangs, and no other serves": Situation("new new", opening=[(0, 500)], opens=[1]),
    "one more than allowed, to try the first": Situation(
        "failed new", [Line(to=1)], most=1, assign=[0], opens=[0], still_short=False, wake=2),
    "room is made for the first": Situation(
        "failed new", [Line(3, to=1), Line(1, to=1)], most=2, assign=[0], retires=[1], still_short=False, wake=2),
    "room is being made for the first": Situation(
        "failed new", [Line(3, to=1), Line(1, to=1, retiring=True)], most=2, assign=[0], still_short=False, wake=2),
    "the preferred one serves": Situation(
        "new new", [Line(to=1), Line(to=0)], assign=[1], still_short=False, wake=2),
    "the first has a wrong password": Situation("wrong new", opens=[1]),
    "both have a wrong password": Situation("wrong wrong", turns_away=0),
}  # fmt: skip


@pytest.mark.parametrize("name", DECISIONS)
def test_decide(name: str) -> None:
    given = DECISIONS[name]
    relays = [relay(state) for state in given.relays.split()]
    for each in relays:
        each.connect, each.service = CONNECT, SERVICE
    lines = [replace(line, relay=relays[line.to]) for line in given.open]
    opening = [Opening(relays[place], NOW - since) for place, since in given.opening]
    limiter = None
    if given.rate is not None:
        limiter = RateLimiter(Rate(abs(given.rate)), messages_at=NOW + (5 if given.rate < 0 else 0))
    short_since = INF if given.short is None else NOW - given.short
    view = View(relays, lines, opening, given.most, len(given.waiting), given.waiting, limiter, short_since)
    decision = decide(view, NOW)
    assert [lines.index(each) for each in decision.assign] == given.assign
    assert [relays.index(each) for each in decision.open] == given.opens
    assert [opening.index(each) for each in decision.abandon] == given.abandons
    assert [lines.index(each) for each in decision.retire] == given.retires
    turned_away = None if decision.turn_away is None else relays.index(decision.turn_away)
    assert turned_away == given.turns_away
    assert decision.wake_at - NOW == pytest.approx(given.wake, rel=0.02)
    assert decision.paced is given.paced
    if given.assign:
        assert (decision.short_since < INF) is given.still_short
