"""What the pool decides: which connection a message goes to, how many are opened, and which relay serves; as tables."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given, strategies as st

from asmtp import Relay, SMTPConnectError
from asmtp.mailer.relay_state import RelayState
from asmtp.mailer.schedule import assign, choose_relay


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

# What there is, how many wait, how many may be opened; who is given the messages, and how many are opened.
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
    """Before those that are busy, that are being opened (they may hang), and before a new one."""
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
    """What is decided of a message does not depend on who waits behind it."""
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
    """A relay that is "new"; that "failed" and has rested; that "rests", or "longer"; with a "wrong" password."""
    made = RelayState(Relay("mail.example"))
    if state == "failed":
        made.failed(NOW - 100, OSError("refused"), 0)
    if state in ("rests", "longer", "wrong"):
        error = SMTPConnectError(554 if state == "wrong" else 421, b"no")
        for _ in range(6):
            made.backoff = made.backoff.failed(NOW, 0)
        made.failed(NOW - (9 if state == "longer" else 5), error, 0)
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
