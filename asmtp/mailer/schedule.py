"""The decisions of the pool, without I/O: which connection is given each message, and which are opened, and closed.

:func:`decide` is a function of a :class:`View` of the pool at one moment; the pool carries out its :class:`Decision`.

Messages wait in one line.  Of several relays one serves: the first that has a connection.  One that is preferred to it,
and had failed, is tried by a single connection when its back-off has expired, while the other serves.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar, cast

if TYPE_CHECKING:
    from asmtp.mailer.rate import AdaptiveRateLimiter, RateLimiter
    from asmtp.mailer.relay_state import RelayState

__all__ = [
    "Candidate",
    "Connection",
    "Decision",
    "Opening",
    "View",
    "assign",
    "choose_relay",
    "decide",
    "serving_relay",
]

LATE = 1.01
"""A timer may be a little early: it is set for so many times as long."""


class Candidate(Protocol):
    """A connection as `assign` sees it, open or being opened."""

    @property
    def load(self) -> int:
        """Return how many messages are under way."""

    @property
    def room(self) -> int:
        """Return how many more it takes now; 0 while it is being opened."""

    @property
    def left(self) -> float:
        """Return the seconds until it is open, as far as can be told."""

    @property
    def service(self) -> float:
        """Return the seconds from one answer to the next while it is busy."""


class Connection(Candidate, Protocol):
    """An open connection as `decide` sees it."""

    @property
    def relay(self) -> RelayState:
        """Return where it leads."""

    @property
    def retiring(self) -> bool:
        """Tell whether it is given no more messages, and closed when the last one is answered."""

    def serves(self, now: float) -> bool:
        """Tell whether it can be given a message, and answers."""

    def silent_at(self, now: float) -> float:
        """Return the time at which it is given nothing more unless it answers before."""


@dataclass(frozen=True, slots=True)
class Opening:
    """A connection that is being opened.

    Attributes:
        begun: since when.
    """

    relay: RelayState
    begun: float

    def left(self, now: float) -> float:
        """Return the seconds until it is open, as far as can be told; if it is overdue, it may take as long again."""
        elapsed = now - self.begun
        return self.relay.connect - elapsed if elapsed < self.relay.connect else elapsed

    def hangs(self, now: float) -> bool:
        """Tell whether it has taken so long that something else should be tried."""
        return now >= self.begun + self.relay.patience


@dataclass(frozen=True, slots=True)
class _Awaited:
    """A connection that is being opened, as `assign` sees it."""

    left: float
    service: float
    load: int = 0
    room: int = 0


C = TypeVar("C", bound=Candidate)
K = TypeVar("K", bound=Connection)


@dataclass(frozen=True, slots=True)
class View(Generic[K]):
    """The pool and its queue at one moment.

    Attributes:
        relays: in the order of preference.
        connections: those that are open, retiring ones included.
        opening: those that are being opened.
        most: how many connections there may be.
        waiting: how many messages wait in line, at least 1.
        recipients: how many recipients each of them has.
        limiter: how fast messages may go, or None.
        short_since: since when there has been no room for more: see `Decision`.
    """

    relays: Sequence[RelayState]
    connections: Sequence[K]
    opening: Sequence[Opening]
    most: int
    waiting: int
    recipients: Iterable[int]
    limiter: RateLimiter | AdaptiveRateLimiter | None
    short_since: float

    @property
    def total(self) -> int:
        """Return how many connections there are, open or being opened."""
        return len(self.connections) + len(self.opening)


@dataclass(slots=True)
class Decision(Generic[K]):
    """The things that the pool is to do.

    Attributes:
        assign: the connections to be given the first messages of the line, in order.
        open: to which relays a connection is opened.
        abandon: what is not opened after all, as it hangs, and another relay serves.
        retire: connections that are given no more messages, and closed.
        turn_away: no connection can be had to this relay: the messages that wait are told why.
        wake_at: when to decide again if messages wait then, though nothing happens before.
        paced: decide again when the limiter lets the next message go.
        short_since: since when there has been no room for more messages.  The load that can be seen is what is in
            flight: if there is no room for long, there is more, and another connection is opened.
    """

    assign: list[K] = field(default_factory=list)
    open: list[RelayState] = field(default_factory=list)
    abandon: list[Opening] = field(default_factory=list)
    retire: list[K] = field(default_factory=list)
    turn_away: RelayState | None = None
    wake_at: float = math.inf
    paced: bool = False
    short_since: float = math.inf


def decide(view: View[K], now: float) -> Decision[K]:
    """Decide which connections are given a message, and which are opened and closed."""
    decision: Decision[K] = Decision(short_since=view.short_since)
    allowed = view.waiting if view.limiter is None else _allowed(view.limiter, view.recipients, now)
    if not allowed:
        decision.paced = True
        return decision
    relay = serving_relay(view.relays, view.connections, view.opening, now)
    serving = [each for each in view.connections if each.relay is relay and each.serves(now)]
    if len(view.relays) > 1:
        _try_preferred(view, decision, relay, now, served=bool(serving))
        serving = [each for each in serving if each not in decision.retire]
    opening = [*view.opening, *(Opening(other, now) for other in decision.open)]
    if relay.lasting is not None and not (serving or opening or relay.backoff.expired(now)):
        decision.turn_away = relay
        return decision
    trying = [each for each in opening if each.relay is relay]
    spare = _spare(view, decision, relay, trying, now, served=bool(serving))
    # A connection that is being opened has no room, and is not chosen.
    candidates: list[K | _Awaited] = [*serving, *(_Awaited(each.left(now), relay.service) for each in trying)]
    chosen, opened = assign(candidates, allowed, spare, relay.connect, relay.service)
    decision.assign = cast("list[K]", chosen)
    if len(chosen) == allowed and sum(each.room for each in serving) > allowed:
        decision.short_since = math.inf
    elif opened or opening or view.short_since == math.inf:
        decision.short_since = now
    elif spare and now - view.short_since > 2 * relay.connect:
        opened = max(opened, 1)
    decision.open += [relay] * opened
    decision.paced = len(chosen) == allowed and view.limiter is not None
    if serving and not decision.paced:
        silent_at = min(each.silent_at(now) for each in serving)
        decision.wake_at = min(decision.wake_at, now + LATE * max(0.0, silent_at - now))
    return decision


def _allowed(limiter: RateLimiter | AdaptiveRateLimiter, recipients: Iterable[int], now: float) -> int:
    """Return how many messages may go by the rate."""
    count = 0
    for each in recipients:
        if limiter.wait(now) > 0:
            break
        limiter = limiter.sent(now, each)
        count += 1
    return count


# ---- which relay -------------------------------------------------------------------------------


def choose_relay(
    relays: Sequence[RelayState], serving: Collection[RelayState], hanging: Collection[RelayState], now: float
) -> RelayState:
    """Return the relay that serves: the first that has a connection, or else the one to be tried.

    That is the first that never failed, or else the first whose back-off has expired, or else the one that was tried
    longest ago.  One that can be tried is preferred to one that does not answer, and that to one with a wrong password.

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


def serving_relay(
    relays: Sequence[RelayState], connections: Iterable[Connection], opening: Iterable[Opening], now: float
) -> RelayState:
    """Return the relay that serves."""
    if len(relays) == 1:
        return relays[0]
    serving = {each.relay for each in connections if each.serves(now)}
    hanging = {each.relay for each in opening if each.hangs(now)}
    return choose_relay(relays, serving, hanging, now)


def _try_preferred(view: View[K], decision: Decision[K], relay: RelayState, now: float, *, served: bool) -> None:
    """See whether a relay that is preferred to the one that serves is back, by one connection."""
    if served:
        decision.abandon = [each for each in view.opening if each.relay is not relay and each.hangs(now)]
    for other in view.relays[: view.relays.index(relay)]:
        if any(each.relay is other for each in view.opening) or not other.backoff.expired(now):
            continue
        if view.total + len(decision.open) < max(2, view.most):
            decision.open.append(other)
        else:
            # All connections are to other relays: one of them has to go.
            others = [each for each in view.connections if each.relay is not other]
            if others and not decision.retire and not any(each.retiring for each in others):
                decision.retire.append(min(others, key=lambda each: each.load))


def _spare(
    view: View[K], decision: Decision[K], relay: RelayState, trying: Sequence[Opening], now: float, *, served: bool
) -> int:
    """Return how many more connections to the relay that serves may be opened.

    Args:
        trying: those that are being opened to it.
    """
    here = sum(each.relay is relay for each in view.connections) + len(trying)
    # With connections=1, allow a second one while another relay is tried, so that the working connection is kept.
    most = view.most if here else max(2, view.most)
    total = view.total + len(decision.open)
    spare = max(0, min(most - total, relay.most_connections(view.most, now) - here))
    if served:
        return spare
    # One finds out whether the relay can be had (several with a wrong password, and the account is locked), and
    # another if that one hangs.
    if any(not each.hangs(now) for each in trying):
        return 0
    due = relay.next_try(alone=not any(_may_be_had(view, other, now) for other in view.relays))
    if due > now:
        decision.wake_at = due
        return 0
    return min(spare, 1)


def _may_be_had(view: View[K], relay: RelayState, now: float) -> bool:
    """Tell whether the relay need not be left alone, as far as is known."""
    return relay.backoff.expired(now) and not any(each.relay is relay and each.hangs(now) for each in view.opening)


# ---- which connection --------------------------------------------------------------------------


def assign(candidates: Sequence[C], waiting: int, spare: int, connect: float, service: float) -> tuple[list[C], int]:
    """Return the connection that each message which waits is given to, and how many to open.

    Connections that have nothing to do get one message each, however slow they seem: the others may hang.  They get it
    in their order, so that the last ones become idle, and are closed, if they are not needed any more.

    Then each message goes where it will be answered first.  That may be a connection that has no room for it now, or is
    not open yet: then it waits.  A new connection costs both sides something: it has to be worth twice the time it
    takes.

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
