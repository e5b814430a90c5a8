"""What the pool decides, without I/O: which connection each message goes to, how many are opened, and to whom."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Sequence
from typing import Protocol, TypeVar

from asmtp.mailer.relay_state import RelayState

__all__ = ["Candidate", "assign", "choose_relay"]


def choose_relay(
    relays: Sequence[RelayState], serving: Collection[RelayState], hanging: Collection[RelayState], now: float
) -> RelayState:
    """Which relay serves: the first that has a connection, or else the one to be tried.

    That is the first that never failed, or else the first that has rested, or else the one that was tried longest ago.
    One that can be tried is preferred to one that does not answer, and that to one with a wrong password.

    Args:
        relays: in the order of preference.
        serving: those that have a connection which can be used.
        hanging: those to which a connection has been opened for too long.
    """

    def order(relay: RelayState) -> tuple[bool | float, ...]:
        if relay in serving:
            return (0,)
        if relay.backoff.expired(now):
            return 1, relay in hanging, False, relay.backoff.failures > 0
        return 1, relay in hanging, True, relay.lasting is not None, relay.failed_at

    return min(relays, key=order)


class Candidate(Protocol):
    """A connection as `assign` sees it, open or being opened."""

    @property
    def load(self) -> int:
        """How many messages are under way."""

    @property
    def room(self) -> int:
        """How many more it takes now; 0 while it is being opened."""

    @property
    def left(self) -> float:
        """Seconds until it is open, as far as can be told."""

    @property
    def service(self) -> float:
        """Seconds from one answer to the next while it is busy."""


C = TypeVar("C", bound=Candidate)


def assign(candidates: Sequence[C], waiting: int, spare: int, connect: float, service: float) -> tuple[list[C], int]:
    """Which connection each message that waits is given to, and how many to open.

    Connections that have nothing to do get one first, however slow they seem: what else there is may hang.  They get it
    in their order, so that the last of them come to be closed where they are not needed any more.  Then a message goes
    where it will be answered first.  That may be a connection that has no room for it now, or is not open yet: then it
    waits.  A new connection costs both sides something: it has to be worth twice the time it takes.

    Args:
        candidates: the connections, open or being opened.
        waiting: how many messages wait.
        spare: how many more connections may be opened.
        connect: seconds that it takes to open one.
        service: seconds a message takes on a new one.

    Returns:
        The connections to be given the first messages of the line, in order; how many to open.
    """
    opened = 0
    rooms = [candidate.room for candidate in candidates]
    line = [(c.left + (c.load + 1) * c.service, place, c.service) for place, c in enumerate(candidates)]
    unused = [place for place, c in enumerate(candidates) if rooms[place] and not c.load][:waiting]
    chosen = [candidates[place] for place in unused]
    for place in unused:
        rooms[place] -= 1
        eta, _, each = line[place]
        line[place] = (eta + each, place, each)
    waiting -= len(chosen)
    free = sum(rooms)
    heapq.heapify(line)
    new = 2 * connect + service
    while waiting and (free or spare):
        waiting -= 1
        if spare and (not line or line[0][0] > new):
            heapq.heappush(line, (connect + 2 * service, len(rooms), service))
            rooms.append(0)
            spare -= 1
            opened += 1
            continue
        eta, place, each = line[0]
        heapq.heapreplace(line, (eta + each, place, each))
        if rooms[place]:
            rooms[place] -= 1
            free -= 1
            chosen.append(candidates[place])
    return chosen, opened
