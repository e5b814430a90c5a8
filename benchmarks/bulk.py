"""Bulk: many messages through a few connections, every client as its users do it; and the memory it takes.

Messages/s and CPU time are measured as in `benchmarks.rates`, in this process, or by the client itself where
that is another program. The memory is a sample more, with the count of the others, in a fresh interpreter:
the peak resident set while the messages are sent over that before, when each connection had sent one, as in
`benchmarks.large`.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import json
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import bulkclients, clients, external, large, rates, scenarios
from .servers import ROOT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .rates import Clock, Effort, Row, Sample
    from .scenarios import Scenario
    from .servers import Servers


@dataclass(frozen=True)
class Bulk(scenarios.Scenario):
    """A row: messages of one kind ("bytes", "EmailMessage" or "built") through a number of connections."""

    kind: str = "bytes"
    connections: int = 1
    quick: bool = False  # whether it is worth the time of a --quick run


KINDS = {"bytes": "bytes", "EmailMessage": "ready-made EmailMessages", "built": "EmailMessages built in the loop"}
PROGRAMS = tuple(external.CLIENTS)


def row(
    offers: str,
    connections: int,
    peers: Sequence[str],
    *,
    kind: str = "bytes",
    loop: str = "asyncio",
    rtt: float = 0.0,
    subject: str = "asmtp",
    aims: dict[str, float] | None = None,
    least: float | None = None,
    quick: bool = False,
) -> Bulk:
    where = loop if subject == "asmtp" else "blocking Mailer"
    parts = ["bulk", kind, where.split()[-1], offers, str(connections), *(["far"] if rtt else [])]
    plural = "" if connections == 1 else "s"
    away = f", {rtt:.0f} ms away" if rtt else ""
    return Bulk(
        name="-".join(parts).lower(),
        work=f"{KINDS[kind]}, {connections} connection{plural}{away}, {where}",
        offers=offers,
        clients=(subject, *peers),
        # Targets are for one connection; with more, and for other peers, the ratio is shown alone.
        targets=tuple((peer, (aims or {}).get(peer)) for peer in peers if peer in ("aiosmtplib", "smtplib")),
        rtt=rtt,
        loop=loop,
        kind=kind,
        connections=connections,
        least=least,
        quick=quick,
    )


PYTHONS = ("aiosmtplib", "smtplib")
CHUNKING = {"aiosmtplib": 15.0, "smtplib": 5.0}
FAR = {"chunking": 50.0, "pipelining": 4.0}


def near(connections: int) -> list[Bulk]:
    """Without latency. The peers do not use CHUNKING; nodemailer alone gains by PIPELINING."""
    one = connections == 1
    chunking, pipelining = (CHUNKING, {"aiosmtplib": 5.0}) if one else ({}, {})
    least = 50_000.0 if one else None
    return [
        row("chunking", connections, (*PYTHONS, *PROGRAMS), aims=chunking, least=least, quick=True),
        row("pipelining", connections, PYTHONS, aims=pipelining, quick=one),
        row("chunking", connections, ("smtplib",), subject="asmtp.Mailer", quick=not one),
        row("chunking", connections, ("aiosmtplib",), loop="uvloop", aims=chunking, least=least, quick=one),
        row("pipelining", connections, ("aiosmtplib",), loop="uvloop", aims=pipelining),
        row("chunking", connections, PYTHONS, kind="EmailMessage", quick=one),
        row("pipelining", connections, PYTHONS, kind="EmailMessage"),
        row("chunking", connections, ("aiosmtplib",), kind="EmailMessage", loop="uvloop"),
        row("chunking", connections, (*PYTHONS, "nodemailer"), kind="built", quick=not one),
    ]


def far(connections: int) -> list[Bulk]:
    one = connections == 1
    aims = {offers: {"aiosmtplib": ratio} if one else {} for offers, ratio in FAR.items()}
    rtt = scenarios.RTT
    return [
        row("chunking", connections, (*PYTHONS, *PROGRAMS), rtt=rtt, aims=aims["chunking"], quick=not one),
        row("pipelining", connections, ("aiosmtplib",), rtt=rtt, aims=aims["pipelining"], quick=not one),
    ]


SCENARIOS = [
    *near(1),
    *near(4),
    *(row(offers, 8, (), loop=loop) for loop in ("asyncio", "uvloop") for offers in ("chunking", "pipelining")),
    *far(1),
    *far(4),
]
# So many messages in a row that is there already, for the memory alone.
LONG, LONG_COUNT = row("chunking", 4, ()), 100_000


class PeakClock(rates.Clock):
    """It measures by how much this process grows, too."""

    def start(self) -> None:
        self._before = large.memory_before()
        super().start()

    def stop(self, count: int) -> Sample:
        return super().stop(count)._replace(memory=large.resident("VmHWM") - self._before)


class Method(rates.OneConnection):
    """A sample: open the connections, send some messages for all of them to be used, then time `count`."""

    def measurable(self, scenario: Scenario, client: str) -> bool:
        if client in external.CLIENTS:
            return external.available(client)
        module, name, _ = (bulkclients.ASYNC | bulkclients.BLOCKING)[client]
        if not has(module, name):
            return False
        return client in bulkclients.BLOCKING or rates.loop_factory(scenario) is not None

    def octets(self, scenario: Scenario, client: str) -> int:
        assert isinstance(scenario, Bulk)
        if client == "nodemailer" and scenario.kind == "built":
            return external.nodemailer_octets()
        return bulkclients.SIZE

    def fewest(self, scenario: Scenario) -> int:
        assert isinstance(scenario, Bulk)
        return scenario.connections * (2 if scenario.rtt else 8)

    def warm_up(self, scenario: Scenario, client: str, count: int) -> int:
        """A quarter more, and not more than fills the windows of all connections; node compiles for seconds."""
        assert isinstance(scenario, Bulk)
        if client == "nodemailer" and not scenario.rtt:
            return 4 * count
        return max(scenario.connections, min(count // 4, 200 * scenario.connections))

    def sample(self, scenario: Scenario, client: str, port: int, count: int, warm_up: int) -> Sample:
        assert isinstance(scenario, Bulk)
        return sample(scenario, client, port, count, warm_up, rates.Clock())


class InFreshProcess(Method):
    """The same, in an interpreter of its own, with the peak of its memory."""

    def warm_up(self, scenario: Scenario, client: str, count: int) -> int:
        """What opens the connections; filling the windows is a part of what is measured."""
        assert isinstance(scenario, Bulk)
        return scenario.connections

    def sample(self, scenario: Scenario, client: str, port: int, count: int, warm_up: int) -> Sample:
        if client in external.CLIENTS:
            return super().sample(scenario, client, port, count, warm_up)
        command = [sys.executable, "-m", "benchmarks.bulk", scenario.name, client, *map(str, (port, count, warm_up))]
        done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE)
        return rates.Sample(*json.loads(done.stdout))


@functools.cache
def has(module: str, name: str) -> bool:
    """Whether a module can be imported here and has that name; asmtp imports what it needs when it is used."""
    return clients.installed(module) and hasattr(importlib.import_module(module), name)


def sample(scenario: Bulk, client: str, port: int, count: int, warm_up: int, clock: Clock) -> Sample:
    if client in external.CLIENTS:
        job = external.Job(scenario.kind, port, scenario.connections, count, warm_up)
        return external.CLIENTS[client](job)
    bulkclients.ready()  # not within the clock
    batches = [bulkclients.messages(scenario.kind, number) for number in (warm_up, count)]
    if client in bulkclients.BLOCKING:
        with bulkclients.BLOCKING[client][2](port, scenario.connections) as send_all:
            send_all(batches[0])
            clock.start()
            send_all(batches[1])
            return clock.stop(count)

    async def drive() -> Sample:
        async with bulkclients.ASYNC[client][2](port, scenario.connections) as send_all:
            await send_all(batches[0])
            clock.start()
            await send_all(batches[1])
            return clock.stop(count)

    with asyncio.Runner(loop_factory=rates.loop_factory(scenario)) as runner:
        return runner.run(drive())


def memory(servers: Servers, scenario: Bulk, client: str, count: int) -> float | None:
    """MiB that a client adds at the peak while it sends `count` messages."""
    method = InFreshProcess()
    warm_up = method.warm_up(scenario, client, count)
    return rates.checked_sample(servers, method, scenario, client, count, warm_up).memory


def run(servers: Servers, wanted: Sequence[Bulk], effort: Effort) -> list[Row]:
    """Rates and CPU time of every row, then the memory of each of its clients."""
    rows = rates.run(servers, wanted, effort, Method())
    for scenario, measured in zip(wanted, rows, strict=True):
        seconds = effort.far if scenario.rtt else effort.near
        for client in (name for name, samples in measured.samples.items() if samples):
            count = max(scenario.connections, round(measured.rate(client) * seconds))
            peak = memory(servers, scenario, client, count)
            if peak is not None:
                measured.memory[client] = peak
    return rows


def long_memory(servers: Servers, count: int) -> float | None:
    """MiB that send_all adds at the peak over `count` messages from a generator; None without an AsyncMailer."""
    return memory(servers, LONG, "asmtp", count) if Method().measurable(LONG, "asmtp") else None


def main() -> None:
    name, client, port, count, warm_up = sys.argv[1:]
    scenario = next(one for one in SCENARIOS if one.name == name)
    rates.settle_allocator()
    json.dump(sample(scenario, client, int(port), int(count), int(warm_up), PeakClock()), sys.stdout)


if __name__ == "__main__":
    main()
