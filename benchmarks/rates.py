"""Messages/s and CPU time a message: samples of every client, interleaved, a few rounds of them."""

from __future__ import annotations

import asyncio
import gc
import importlib
import statistics
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from . import clients, scenarios

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .scenarios import Scenario
    from .servers import Servers


class Sample(NamedTuple):
    rate: float  # messages/s
    cpu: float  # microseconds of the client's process a message
    memory: float | None = None  # MiB that the client's process grew by, where that was measured


@dataclass
class Row:
    """What a scenario came to: a list of samples a client; empty where the client is not installed."""

    scenario: Scenario
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    memory: dict[str, float] = field(default_factory=dict)  # MiB, where that is measured

    def rate(self, client: str) -> float:
        return statistics.median(sample.rate for sample in self.samples[client])

    def cpu(self, client: str) -> float:
        return statistics.median(sample.cpu for sample in self.samples[client])

    def spread(self, client: str) -> float:
        """Half the distance of the slowest from the fastest sample, as a part of the median."""
        rates = [sample.rate for sample in self.samples[client]]
        return (max(rates) - min(rates)) / 2 / self.rate(client)

    def ratio(self, peer: str) -> float | None:
        """The subject's median rate over a peer's, or None where either is not there."""
        subject = self.scenario.clients[0]
        if not self.samples.get(subject) or not self.samples.get(peer):
            return None
        return self.rate(subject) / self.rate(peer)


class Lost(Exception):
    """The sink did not get what a client said it had sent."""


@dataclass(frozen=True)
class Effort:
    """How long to measure: rounds, and seconds a sample, on loopback and over the delay proxy."""

    rounds: int
    near: float
    far: float


def loop_factory(scenario: Scenario) -> Callable[[], asyncio.AbstractEventLoop] | None:
    if scenario.loop == "asyncio":
        return asyncio.new_event_loop
    if not clients.installed("uvloop"):
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = importlib.import_module("uvloop").new_event_loop
    return factory


async def volley(send: clients.AsyncSend, to: list[str], content: bytes, count: int, tasks: int) -> None:
    """Send `count` messages, from one task or from many that share the work."""
    left = iter(range(count))

    async def work() -> None:
        for _ in left:
            await send(clients.SENDER, to, content)

    if tasks == 1:
        await work()
    else:
        await asyncio.gather(*(work() for _ in range(min(tasks, count))))


class Clock:
    """Wall-clock and CPU time between start and stop, without the garbage of what came before."""

    def start(self) -> None:
        gc.collect()
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def stop(self, count: int) -> Sample:
        wall, cpu = time.perf_counter() - self._wall, time.process_time() - self._cpu
        return Sample(count / wall, cpu / count * 1e6)


class OneConnection:
    """How the clients of a scenario are measured: here, a message at a time or from many tasks."""

    def measurable(self, scenario: Scenario, client: str) -> bool:
        return clients.available(client) and (client in clients.BLOCKING or loop_factory(scenario) is not None)

    def octets(self, scenario: Scenario, client: str) -> int:
        """How long the message is that the sink ought to get."""
        return len(scenarios.content())

    def fewest(self, scenario: Scenario) -> int:
        """How many messages a sample has at least."""
        return 1 if scenario.rtt else max(8, scenario.tasks)

    def warm_up(self, scenario: Scenario, client: str, count: int) -> int:
        """How many messages to send ahead of `count` that are timed."""
        return min(count - 1, 1 if scenario.rtt else 50)

    def sample(self, scenario: Scenario, client: str, port: int, count: int, warm_up: int) -> Sample:
        """One connection: greet, send `warm_up` messages, then time `count` of them."""
        to, content = scenarios.recipients(scenario.recipients), scenarios.content()
        clock = Clock()
        if client in clients.BLOCKING:
            with clients.BLOCKING[client][1](port) as send:
                for _ in range(warm_up):
                    send(clients.SENDER, to, content)
                clock.start()
                for _ in range(count):
                    send(clients.SENDER, to, content)
                return clock.stop(count)

        async def drive() -> Sample:
            async with clients.ASYNC[client][1](port) as send:
                await volley(send, to, content, warm_up, scenario.tasks)
                clock.start()
                await volley(send, to, content, count, scenario.tasks)
                return clock.stop(count)

        with asyncio.Runner(loop_factory=loop_factory(scenario)) as runner:
            return runner.run(drive())


def checked_sample(
    servers: Servers, method: OneConnection, scenario: Scenario, client: str, count: int, warm_up: int
) -> Sample:
    """A sample that counts only if the sink has every message, recipient and octet of it."""
    before = servers.counts()
    taken = method.sample(scenario, client, servers.ports[scenario.offers, scenario.rtt], count, warm_up)
    sent = count + warm_up
    expected = (sent, sent * scenario.recipients, sent * method.octets(scenario, client))
    got = servers.counts().since(before)
    if tuple(got) != expected:
        raise Lost(f"{scenario.name}, {client}: the sink got {got}, not {expected}")
    return taken


def calibrate(servers: Servers, method: OneConnection, scenario: Scenario, client: str, seconds: float) -> int:
    """How many messages make a sample of about `seconds`."""
    fewest = count = method.fewest(scenario)
    rate = checked_sample(servers, method, scenario, client, count, 0).rate
    # One message, or a few, say nothing about how many fly at once; a connection begins with one and doubles.
    while count < rate * seconds / 2:
        count = int(rate * seconds)
        rate = checked_sample(servers, method, scenario, client, count, 0).rate
    return max(fewest, round(rate * seconds))


def settle_allocator() -> None:
    """Put malloc where it is in a process that has run for a while.

    asyncio reads into a new block of 256 KiB each time. glibc maps and unmaps such a block for every reply, which
    costs 12 µs, until any larger one has been freed; samples would depend on what ran before them.
    """
    block = bytes(16 << 20)
    del block


def run(servers: Servers, wanted: Sequence[Scenario], effort: Effort, method: OneConnection | None = None) -> list[Row]:
    """All scenarios, a few rounds each: in a round every client has its turn, in changing order."""
    method = method or OneConnection()
    settle_allocator()
    rows = []
    for scenario in wanted:
        row = Row(scenario, {client: [] for client in scenario.clients})
        rows.append(row)
        present = [client for client in scenario.clients if method.measurable(scenario, client)]
        seconds = effort.far if scenario.rtt else effort.near
        counts = {client: calibrate(servers, method, scenario, client, seconds) for client in present}
        for turn in range(effort.rounds):
            for client in present if turn % 2 == 0 else reversed(present):
                count = counts[client]
                warm_up = method.warm_up(scenario, client, count)
                row.samples[client].append(checked_sample(servers, method, scenario, client, count, warm_up))
        print(f"{scenario.name}: done", file=sys.stderr)
    return rows
