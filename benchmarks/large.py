"""One 25 MiB message: throughput, the memory it adds, and how long it holds up the event loop.

Every figure comes from a fresh interpreter, which opens a connection, sends a small message of the same kind
(so that nobody's lazy imports are measured), and then the big one. A peer that takes no path reads the file.

Added memory is the peak resident set during the send over that right before it, with the caller's content
already held: /proc's VmHWM, put back before the send, and not ru_maxrss, which on Linux survives exec and so
starts with whatever the parent had; where there is no /proc it is ru_maxrss all the same. tracemalloc, in
another interpreter, gives a second view that no allocator blurs. A stall is the longest gap between two beats
of a task that sleeps a millisecond at a time.
"""

from __future__ import annotations

import asyncio
import gc
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from . import clients, scenarios
from .rates import Lost
from .servers import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable

    from .servers import Servers

MiB = 1 << 20
SMALL = 4096
# Sends in one interpreter; the first of them warms up.
SENDS = {"rate": 4, "rss": 1, "traced": 1, "stall": 1}


@dataclass(frozen=True)
class Large:
    """One client with one kind of source against one kind of server."""

    client: str
    source: str  # "bytes" or "file"
    offers: str
    added: float | None = None  # the target, MiB


ROWS = [
    Large("asmtp", "bytes", "chunking", 8),
    Large("asmtp", "bytes", "pipelining", 8),
    Large("asmtp", "file", "chunking", 4),
    Large("asmtp", "file", "pipelining", 4),
    Large("aiosmtplib", "bytes", "pipelining"),
    Large("aiosmtplib", "file", "pipelining"),
    Large("smtplib", "bytes", "pipelining"),
    Large("smtplib", "file", "pipelining"),
]
STALL_TARGET = 20.0  # ms


@dataclass
class Figures:
    """The medians of a row: MB/s, MiB resident, MiB traced, ms; None where there is no such figure."""

    row: Large
    rate: float | None = None
    rss: float | None = None
    traced: float | None = None
    stall: float | None = None


def resident(key: str) -> float:
    """VmRSS or VmHWM of this process in MiB."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / (MiB if sys.platform == "darwin" else 1024)
    return int(status.split(key + ":")[1].split()[0]) / 1024


def memory_before() -> float:
    gc.collect()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again
    except OSError:
        return resident("VmHWM")
    return resident("VmRSS")


class Meter:
    """What is measured around the send of the big message."""

    def __init__(self, what: str, size: int) -> None:
        self.what, self.size, self.figures = what, size, [0.0][:0]

    def start(self) -> None:
        if self.what == "rss":
            self._before = memory_before()
        elif self.what == "traced":
            tracemalloc.start()
        self._begin = time.perf_counter()

    def stop(self) -> None:
        if self.what == "rate":
            self.figures.append(self.size / (time.perf_counter() - self._begin) / 1e6)
        elif self.what == "rss":
            self.figures.append(resident("VmHWM") - self._before)
        elif self.what == "traced":
            self.figures.append(tracemalloc.get_traced_memory()[1] / MiB)
            tracemalloc.stop()


async def beat(gaps: list[float]) -> None:
    last = time.perf_counter()
    while True:
        await asyncio.sleep(0.001)
        now = time.perf_counter()
        gaps.append((now - last) * 1000 - 1)
        last = now


async def send_async(client: str, port: int, contents: list[Callable[[], object]], meter: Meter) -> None:
    to = scenarios.recipients(1)
    async with clients.ASYNC[client][1](port) as send:
        await send(clients.SENDER, to, contents[0]())
        for content in contents[1:]:
            gaps: list[float] = []
            heart = asyncio.create_task(beat(gaps)) if meter.what == "stall" else None
            await asyncio.sleep(0.01)
            meter.start()
            await send(clients.SENDER, to, content())
            meter.stop()
            if heart:
                await asyncio.sleep(0.01)  # the beat that was due during a stall
                heart.cancel()
                meter.figures.append(max(gaps))


def send_blocking(client: str, port: int, contents: list[Callable[[], object]], meter: Meter) -> None:
    to = scenarios.recipients(1)
    with clients.BLOCKING[client][1](port) as send:
        send(clients.SENDER, to, contents[0]())
        for content in contents[1:]:
            meter.start()
            send(clients.SENDER, to, content())
            meter.stop()


def source(client: str, kind: str, path: Path) -> Callable[[], object]:
    """What gives the thing to send: the bytes the caller holds, or the path, or what a peer reads from it."""
    if kind == "file":
        return (lambda: path) if client.startswith("asmtp") else path.read_bytes
    content = path.read_bytes()
    return lambda: content


def child(client: str, kind: str, what: str, port: int, small: Path, big: Path) -> None:
    """The measurement itself, in an interpreter of its own; the figures go to standard output as JSON."""
    contents = [source(client, kind, small), *[source(client, kind, big)] * SENDS[what]]
    meter = Meter(what, big.stat().st_size)
    if client in clients.BLOCKING:
        send_blocking(client, port, contents, meter)
    else:
        asyncio.run(send_async(client, port, contents, meter))
    json.dump(meter.figures, sys.stdout)


def measure(servers: Servers, row: Large, what: str, files: list[Path]) -> list[float]:
    command = [sys.executable, "-m", "benchmarks.large", row.client, row.source, what]
    command += [str(servers.ports[row.offers, 0.0]), *map(str, files)]
    before = servers.counts()
    done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE)
    got, small, big = servers.counts().since(before), *(path.stat().st_size for path in files)
    if tuple(got) != (1 + SENDS[what], 1 + SENDS[what], small + SENDS[what] * big):
        raise Lost(f"{row}: the sink got {got}")
    figures: list[float] = json.loads(done.stdout)
    return figures[1:] or figures


def run(servers: Servers, size: int, rounds: int) -> list[Figures]:
    """Every row, every round, in turn; the stall only where there is a loop to stall."""
    taken: dict[tuple[Large, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, "small.eml"), Path(folder, "big.eml")]
        for path, length in zip(files, (SMALL, size), strict=True):
            path.write_bytes(scenarios.content(length))
        for _ in range(rounds):
            for row in ROWS:
                if clients.available(row.client):
                    for what in SENDS:
                        if what != "stall" or row.client in clients.ASYNC:
                            taken.setdefault((row, what), []).extend(measure(servers, row, what, files))
    medians = {key: statistics.median(values) for key, values in taken.items()}
    return [Figures(row, *(medians.get((row, what)) for what in SENDS)) for row in ROWS]


def main() -> None:
    client, kind, what, port, small, big = sys.argv[1:]
    child(client, kind, what, int(port), Path(small), Path(big))


if __name__ == "__main__":
    main()
