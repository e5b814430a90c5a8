"""A proxy in the test's own loop that spoils connections at an exactly chosen point of the dialogue.

The client's end of it is a socket, so that FIN and RST are real ones.  The relay's end is a call, so that what the
relay has seen is known to the octet at any moment: what was forwarded, and not what some buffer still holds.

First comes a run without a fault, from whose record :func:`points` makes every point there is; then a run for each
point and fault::

    async def run(opened: Door, plan: Plan | None) -> tuple[Proxy, list[str]]:
        async with proxying(opened, Relay(), plan) as proxy: ...
        return proxy, wrong

    async with door() as opened:
        proxy, wrong = await run(opened, None)
    outcome = await everywhere(plans(proxy.links[0]), run)
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import itertools
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import pytest

from asmtp.transport.connection import Connection
from tests.fakes.clock import VirtualClockLoop
from tests.fakes.relay import Conversation, Relay
from tests.fakes.script import RST, listening

__all__ = [
    "FAULTS", "FIRST", "PATIENCE", "TIMELESS", "Door", "Fault", "Link", "Outcome", "Plan", "Point", "Proxy", "door",
    "everywhere", "patience", "plans", "points", "proxying", "record_writes", "virtual",
]  # fmt: skip

AWHILE = 10_000.0
"""Seconds for which LATE holds back: longer than any client waits."""

MOMENT = 1.0
"""Seconds for which SLOW does: no reason to give up."""

PATIENCE = 4
"""Seconds that the client waits for anything, where the clock jumps."""


def virtual() -> bool:
    """Return whether the clock jumps."""
    return isinstance(asyncio.get_running_loop(), VirtualClockLoop)


def patience() -> int:
    """Return the seconds that the client waits for anything; if they are real ones, no deadline is to be met."""
    return PATIENCE if virtual() else 20


ALL = bool(os.environ.get("ASMTP_ALL_FAULTS"))
"""True if a test does everything in every way, and not only in one."""


class Fault(enum.Enum):
    """A fault, which happens at the point."""

    FIN = "both sides see FIN"
    RST = "both sides see RST"
    HALF = "the client sees FIN, and what it writes is swallowed"
    DEAF = "the client sees FIN, and what it writes still goes to the server"
    SERVER = "the server sees the end, the client sees nothing any more"
    HOLE = "nothing goes either way any more, and nothing is read"
    LATE = "what comes next is held back until nobody waits for it"
    SLOW = "what comes next is held back for a moment, which is no fault"
    BYE = "the server says 421 and closes"
    BUSY = "the server says 451, and goes on"


TIMELESS = frozenset({Fault.FIN, Fault.RST, Fault.HALF, Fault.DEAF, Fault.BYE, Fault.BUSY})
"""The faults that the client notices without a deadline."""

SUDDEN = (Fault.FIN, Fault.RST, Fault.HALF, Fault.DEAF, Fault.SERVER, Fault.HOLE, Fault.LATE)

Kind = Literal["octets", "before", "within", "after", "answer"]

FAULTS: dict[Kind, tuple[Fault, ...]] = {
    "octets": tuple(fault for fault in Fault if fault is not Fault.BUSY),
    "before": (*SUDDEN, Fault.SLOW),
    "within": SUDDEN,
    "after": SUDDEN,
    # An honest server does not take a message and then say 421: these are said instead of taking it.
    "answer": (Fault.BYE, Fault.BUSY),
}
"""The faults that make sense at each kind of point."""


@dataclass(frozen=True)
class Point:
    """A place in the dialogue of one connection.

    Attributes:
        kind: "octets": when so many octets of the client's were forwarded, and the answers to them.  "before",
            "within", "after": at a line of the server's.  "answer": where the server decides on a command, or on
            content, so many decisions on.
        place: how many.
        context: what is there, for people.
    """

    kind: Kind
    place: int
    context: str = field(default="", compare=False)

    def __str__(self) -> str:
        return f"{self.kind} {self.place} [{self.context}]"


@dataclass(frozen=True)
class Plan:
    """A fault, its point, and the connections that it is for: they are counted from 0."""

    point: Point
    fault: Fault
    spoiled: Callable[[int], bool] = lambda number: number == 0
    name: str = "the first"

    def __str__(self) -> str:
        return f"{self.fault.name} {self.point} on {self.name}"


class Flow(enum.Enum):
    OPEN = enum.auto()
    HELD = enum.auto()
    DROPPED = enum.auto()


class Wire(asyncio.Transport):
    """The relay's transport."""

    def __init__(self, link: Link) -> None:
        super().__init__()
        self._link = link
        self._closing = False

    def write(self, data: Any) -> None:
        if not self._closing:
            self._link.replied(bytes(data))

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        if not self._closing:
            self.lost()
            self._link.server_closed()

    abort = close

    def lost(self) -> None:
        """Tell the relay, as every transport does, in the next pass of the loop."""
        if not self._closing:
            self._closing = True
            asyncio.get_running_loop().call_soon(self._link.conversation.connection_lost, None)


class Link(asyncio.Protocol):
    """One connection: the client's socket on this side, the relay on the other.

    Attributes:
        struck: the point was reached.
        received: what the client wrote.
        forwarded: how many octets of it the relay was given.
        shown: what the client was given.
        record: ``(">", octets)`` and ``("<", line)`` as they came.
        answers: how many decisions the relay has made.
    """

    def __init__(self, proxy: Proxy, number: int) -> None:
        self.number = number
        self.struck = False
        self.received = bytearray()
        self.forwarded = 0
        self.shown = bytearray()
        self.record: list[tuple[str, bytes]] = []
        self.answers: list[str] = []
        self.transport: asyncio.Transport
        self.conversation: Conversation
        self.over = asyncio.Event()
        self._proxy = proxy
        plan = proxy.plan
        self._plan = plan if plan is not None and plan.spoiled(number) else None
        self._up = self._down = Flow.OPEN
        self._held_up = bytearray()
        self._held_down = bytearray()
        self._ended_up = self._ended_down = False  # behind what is held
        self._lines = 0
        self._wire = Wire(self)

    def _at(self, kind: Kind, place: int) -> bool:
        plan = self._plan
        return plan is not None and not self.struck and plan.point.kind == kind and plan.point.place == place

    # ---- asyncio.Protocol -------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.conversation = self._proxy.relay.accept()
        self.conversation.connection_made(self._wire)

    def data_received(self, data: bytes) -> None:
        self.received += data
        self.record.append((">", data))
        plan = self._plan
        if plan is not None and not self.struck and plan.point.kind == "octets":
            room = plan.point.place - self.forwarded
            if room <= len(data):
                self._forward(data[:room])
                self._strike(upwards=True)
                data = data[room:]
        self._forward(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.over.set()
        if self._up is Flow.HELD:
            self._ended_up = True
        else:
            self._wire.lost()

    # ---- both ways --------------------------------------------------------------------------

    def _forward(self, data: bytes) -> None:
        if self._up is Flow.HELD:
            self._held_up += data
        elif self._up is Flow.OPEN and data and not self._wire.is_closing():
            self.forwarded += len(data)
            self._proxy.active = self
            self.conversation.data_received(data)
            self._proxy.active = None

    def replied(self, data: bytes) -> None:
        """Pass on whole lines that the relay has written."""
        out = bytearray()
        for line in data.splitlines(keepends=True):
            self.record.append(("<", line))
            number = self._lines
            self._lines += 1
            first = 0 if self._at("before", number) else len(line) // 2 if self._at("within", number) else len(line)
            self._show(out, line[:first])
            if first < len(line) or self._at("after", number):
                self._send(out)
                self._strike(upwards=False)
                self._show(out, line[first:])
        self._send(out)

    def _show(self, out: bytearray, data: bytes) -> None:
        if self._down is Flow.OPEN:
            out += data
        elif self._down is Flow.HELD:
            self._held_down += data

    def _send(self, out: bytearray) -> None:
        if out and not self.transport.is_closing():
            self.shown += out
            self.transport.write(bytes(out))
        out.clear()

    def server_closed(self) -> None:
        """Close, as the relay has, after 221 or 421."""
        if self._down is Flow.OPEN:
            self._up = Flow.DROPPED
            self.transport.close()
        elif self._down is Flow.HELD:
            self._ended_down = True

    # ---- the fault --------------------------------------------------------------------------

    def _strike(self, *, upwards: bool) -> None:
        assert self._plan is not None
        self.struck = True
        fault = self._plan.fault
        if fault in (Fault.LATE, Fault.SLOW):
            if upwards:
                self._up = Flow.HELD
            else:
                self._down = Flow.HELD
            self._proxy.hold(self, AWHILE if fault is Fault.LATE else MOMENT)
            return
        if fault is Fault.BYE:
            self._send(bytearray(b"421 4.3.2 closing\r\n"))
        self._down = Flow.DROPPED
        if fault is not Fault.DEAF:
            self._up = Flow.DROPPED
        if fault in (Fault.HALF, Fault.DEAF):
            if not self.transport.is_closing():
                self.transport.write_eof()
        elif fault in (Fault.FIN, Fault.BYE):
            self.transport.close()
        elif fault is Fault.RST:
            self.kill()
        elif fault is Fault.HOLE and not self.transport.is_closing():
            self.transport.pause_reading()
        if fault not in (Fault.DEAF, Fault.HOLE):
            self._wire.lost()

    def release(self) -> None:
        """Pass on what was held back."""
        if self._up is Flow.HELD:
            self._up = Flow.OPEN
            self._forward(bytes(self._held_up))
            if self._ended_up:
                self._wire.lost()
        if self._down is Flow.HELD:
            self._down = Flow.OPEN
            self._send(self._held_down)
            if self._ended_down:
                self.server_closed()

    def kill(self) -> None:
        """Close with RST."""
        if not self.over.is_set():
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST)
            self.transport.abort()


class Proxy:
    """A listening proxy, and the connections it has had.

    Attributes:
        written: what the client wrote to each connection, if :func:`record_writes` was called.
    """

    def __init__(self, relay: Relay, plan: Plan | None) -> None:
        self.relay = relay
        self.plan = plan
        self.links: list[Link] = []
        self.active: Link | None = None  # whose command the relay is answering
        self.host = ""
        self.port = 0
        self.written: list[bytearray] = []
        self._holding = 0
        self._released = asyncio.Event()
        self._answer = relay.answer
        relay.answer = self._answered

    @property
    def struck(self) -> int:
        """Return how many connections were spoiled."""
        return sum(link.struck for link in self.links)

    def accept(self) -> Link:
        link = Link(self, len(self.links))
        self.links.append(link)
        return link

    def _answered(self, verb: str, line: str) -> str | None:
        link = self.active
        assert link is not None
        special = self._answer(verb, line)
        place = len(link.answers)
        link.answers.append(verb)
        leaving = link.struck and self.plan is not None and self.plan.fault is Fault.BYE
        if leaving or link._at("answer", place):
            assert self.plan is not None
            link.struck = True
            return f"{'421' if self.plan.fault is Fault.BYE else '451'} 4.3.0 not now {_concerned(link, verb, line)}"
        return special

    def hold(self, link: Link, seconds: float) -> None:
        """Release what a link holds back after so many seconds."""
        self._holding += 1
        self._released.clear()

        def release() -> None:
            link.release()
            self._holding -= 1
            if not self._holding:
                self._released.set()

        asyncio.get_running_loop().call_later(seconds, release)

    async def settled(self) -> None:
        """Wait until nothing is held back any more: then the relay has all that it will ever have."""
        if self._holding:
            await self._released.wait()


def _concerned(link: Link, verb: str, line: str) -> str:
    """Return whom a reply is about: a recipient, or the message (in brackets) if it answers its content."""
    if verb == "RCPT":
        return line.partition("<")[2].partition(">")[0]
    if verb[0] == "." and len(verb) > 1:
        return verb[1:]  # LMTP
    if verb == "." or line.endswith(" LAST"):
        return f"<{(link.conversation.sender or '').removeprefix('from-').partition('@')[0]}>"
    return ""


_PROXIES: dict[int, Proxy] = {}
"""The proxies that are running, by their ports."""


class Door:
    """A listening socket, for one proxy after another: with a port for each run, there would soon be none left."""

    def __init__(self) -> None:
        self.host = ""
        self.port = 0
        self.proxy: Proxy | None = None

    def accept(self) -> Link:
        assert self.proxy is not None
        return self.proxy.accept()


@contextlib.asynccontextmanager
async def door() -> AsyncIterator[Door]:
    """Listen on a free port of 127.0.0.1."""
    opened = Door()
    async with listening(opened.accept) as address:
        opened.host, opened.port = address[0], address[1]
        yield opened


@contextlib.asynccontextmanager
async def proxying(door: Door, relay: Relay, plan: Plan | None = None) -> AsyncIterator[Proxy]:
    """Run a proxy with a relay behind it."""
    proxy = Proxy(relay, plan)
    proxy.host, proxy.port = door.host, door.port
    door.proxy = _PROXIES[door.port] = proxy
    try:
        yield proxy
    finally:
        await proxy.settled()
        await asyncio.sleep(0)  # one that was accepted just now has no transport yet
        for link in proxy.links:
            link.kill()
        for link in proxy.links:
            await link.over.wait()
        await relay.quiet()
        del _PROXIES[door.port]
        door.proxy = None
    assert relay.violations == []


FIRST = ("the first", lambda number: number == 0)


def plans(
    link: Link,
    faults: Callable[[Fault], bool] = lambda fault: True,
    *,
    fine: bool = False,
    spoiled: Sequence[tuple[str, Callable[[int], bool]]] = (FIRST,),
    half: int | None = None,
) -> list[Plan]:
    """Return a plan for each point and fault.

    Args:
        link: as a run without a fault has recorded it.
        faults: which.
        fine: see :func:`points`.
        spoiled: which connections, in turn.
        half: 0 or 1: only one half of them: every second fault of each point, and others of the next.
    """
    turns = itertools.cycle(spoiled)
    made = []
    for number, point in enumerate(points(link, fine=fine)):
        for place, fault in enumerate(filter(faults, FAULTS[point.kind])):
            name, which = next(turns)
            if half is None or ALL or (number + place) % 2 == half:
                made.append(Plan(point, fault, which, name))
    return made


@dataclass
class Outcome:
    """The results of many plans.

    Attributes:
        count: how many there were.
        wrong: what was.
        missed: the points that were not reached.
    """

    count: int
    wrong: list[str]
    missed: list[Plan]

    def check(self, *, all_reached: bool = True) -> None:
        shown = "\n".join([f"{len(self.wrong)} claims do not hold in {self.count} runs:", *self.wrong[:40]])
        assert not self.wrong, shown
        assert not (all_reached and self.missed), f"not reached: {', '.join(map(str, self.missed))}"


async def everywhere(
    plans: Sequence[Plan],
    run: Callable[[Door, Plan], Awaitable[tuple[Proxy, list[str]]]],
    *,
    at_once: int = 100,
) -> Outcome:
    """Run for each plan; many at once, because the clock jumps for all of them."""
    outcome = Outcome(len(plans), [], [])
    left = iter(plans)

    async def some() -> None:
        async with door() as opened:
            for plan in left:
                try:
                    proxy, complaints = await run(opened, plan)
                    if not proxy.struck:
                        outcome.missed.append(plan)
                except Exception as error:  # the others go on
                    complaints = [repr(error)]
                outcome.wrong += [f"{plan}: {complaint}" for complaint in complaints]

    await asyncio.gather(*(some() for _ in range(min(at_once, len(plans)))))
    return outcome


def points(link: Link, *, fine: bool = True) -> list[Point]:
    """Return the points of a connection's dialogue, as a run without a fault has recorded it.

    Args:
        fine: in the middle and at the end of each line that the client wrote, and between its CR and LF; else
            without the last.
    """
    stream = bytes(link.received)
    found = [Point("octets", place, _around(stream, place)) for place in _cuts(stream, fine=fine)]
    number = 0
    for place, (side, octets) in enumerate(link.record):
        if side == "<":
            context = octets.decode().strip()
            inner = octets[3:4] == b"-"  # of a reply of several lines, these are all alike
            kinds: list[Kind] = [] if inner and number > 2 else ["before", "within"]
            if place + 1 == len(link.record) or link.record[place + 1][0] == ">":  # else: "before" the next
                kinds.append("after")
            found += [Point(kind, number, context) for kind in kinds]
            number += 1
    return found + [Point("answer", place, verb) for place, verb in enumerate(link.answers)]


def _cuts(stream: bytes, *, fine: bool) -> list[int]:
    cuts = {0}
    start = 0
    lines = stream.splitlines(keepends=True)
    for number, line in enumerate(lines):
        end = start + len(line)
        # Of many lines that are the same, the first ones and the last ones will do.
        if not (1 < number < len(lines) - 2 and line == lines[number - 2] == lines[number + 2]):
            cuts |= {start + len(line) // 2, end} | ({end - 1} if fine else set())
        start = end
    return sorted(cuts)


def _around(stream: bytes, place: int) -> str:
    return f"{stream[max(0, place - 12) : place]!r}|{stream[place : place + 8]!r}"


class _Recording:
    """A transport that remembers what was written to it."""

    def __init__(self, transport: asyncio.Transport, octets: bytearray) -> None:
        self._transport = transport
        self._octets = octets

    def write(self, data: bytes) -> None:
        self._octets += data
        self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


def record_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Record what the clients of every proxy write, arrived or not, in `Proxy.written`."""
    original = Connection.connection_made

    def connection_made(self: Connection, transport: Any) -> None:
        address = transport.get_extra_info("peername")
        proxy = _PROXIES.get(address[1]) if isinstance(address, tuple) else None
        if proxy is not None:
            proxy.written.append(bytearray())
            transport = _Recording(transport, proxy.written[-1])
        original(self, transport)

    monkeypatch.setattr(Connection, "connection_made", connection_made)
