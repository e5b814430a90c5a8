"""A TCP proxy that adds latency: ``python -m benchmarks.delayproxy --rtt MS PORT...``

For every port given it listens on a free port of 127.0.0.1 and passes everything on; the free ports are
printed on one line. Each direction holds what it reads for half the round trip. Pieces are not serialised
behind one another: any number is in flight at once, and bandwidth is not limited, so that what is measured is
round trips. Runs until its standard input is closed.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import functools
import os
import selectors
import sys
import threading
from typing import cast


class Direction:
    """What arrives at t leaves at t + delay, in order; one timer, for the piece that is due next."""

    def __init__(self, delay: float, target: asyncio.Transport) -> None:
        self._delay, self._target = delay, target
        self._loop = asyncio.get_running_loop()
        self._held: collections.deque[tuple[float, bytes]] = collections.deque()

    def take(self, data: bytes) -> None:
        due = self._loop.time() + self._delay
        if not self._held:
            self._loop.call_at(due, self._release)
        self._held.append((due, data))

    def _release(self) -> None:
        pieces, now = [], self._loop.time()
        while self._held and self._held[0][0] <= now + 0.00005:
            pieces.append(self._held.popleft()[1])
        if not self._target.is_closing():
            self._target.writelines(pieces)
            if pieces and not pieces[-1]:  # the empty piece is the end of the stream
                self._target.close()
        if self._held:
            self._loop.call_at(self._held[0][0], self._release)


class Side(asyncio.Protocol):
    """One of the two connections; it reads nothing until its peer is there to be written to."""

    direction: Direction
    transport: asyncio.Transport

    def __init__(self, port: int | None = None, delay: float = 0) -> None:
        self._port, self._delay = port, delay

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        if self._port is not None:
            self.transport.pause_reading()
            self._connecting = asyncio.get_running_loop().create_task(self._connect(self._port))

    async def _connect(self, port: int) -> None:
        _, up = await asyncio.get_running_loop().create_connection(Side, "127.0.0.1", port)
        self.direction = Direction(self._delay, up.transport)
        up.direction = Direction(self._delay, self.transport)
        self.transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        self.direction.take(data)

    def eof_received(self) -> None:
        self.direction.take(b"")


async def run(ports: list[int], rtt: float) -> None:
    loop = asyncio.get_running_loop()
    sides = [functools.partial(Side, port, rtt / 2000) for port in ports]
    servers = [await loop.create_server(side, "127.0.0.1", 0) for side in sides]
    print(*(server.sockets[0].getsockname()[1] for server in servers), flush=True)
    await asyncio.Event().wait()


def precise_loop() -> asyncio.AbstractEventLoop:
    """select() waits with microseconds, where epoll_wait and poll() round up to whole milliseconds."""
    return asyncio.SelectorEventLoop(selectors.SelectSelector())


def main() -> None:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("--rtt", type=float, default=20, metavar="MS")
    parser.add_argument("ports", type=int, nargs="+", metavar="PORT")
    arguments = parser.parse_args()
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    with asyncio.Runner(loop_factory=precise_loop) as runner:
        runner.run(run(arguments.ports, arguments.rtt))


if __name__ == "__main__":
    main()
