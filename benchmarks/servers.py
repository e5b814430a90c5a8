"""The processes under the benchmarks: the sink, the delay proxy before it, and the sink's own capacity."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from . import sink

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent


class Counts(NamedTuple):
    """What the sink has taken since it was started."""

    messages: int
    recipients: int
    octets: int

    def since(self, before: Counts) -> Counts:
        return Counts(*(now - then for now, then in zip(self, before, strict=True)))


@dataclass
class Servers:
    """The ports by what EHLO offers and by round-trip time in ms, and a connection to ask for the counts."""

    ports: dict[tuple[str, float], int]
    _control: socket.socket

    def counts(self) -> Counts:
        self._control.sendall(b"STAT\r\n")
        return Counts(*map(int, self._control.recv(200).split()[1:]))


@contextlib.contextmanager
def apart() -> Iterator[set[int]]:
    """Keep the last core for the servers, and this process on the others.

    Left alone, the scheduler puts the two ends of a conversation on one core or on two as it pleases, and
    a message at a time is half as fast again on one: the samples would fall into two heaps.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if len(cores) < 2:
        yield set(cores)
        return
    os.sched_setaffinity(0, cores[:-1])
    try:
        yield {cores[-1]}
    finally:
        os.sched_setaffinity(0, cores)


@contextlib.contextmanager
def process(cores: set[int], module: str, *arguments: str) -> Iterator[list[int]]:
    """Run a module of this package on these cores, and yield the ports it prints."""
    command = [sys.executable, "-m", f"benchmarks.{module}", *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        if cores:
            os.sched_setaffinity(child.pid, cores)
        try:
            yield [int(port) for port in child.stdout.readline().split()]
        finally:
            child.stdin.close()  # which is the sign to stop


@contextlib.contextmanager
def running(rtt: float) -> Iterator[Servers]:
    """A sink with a port a mode, and the same ports again behind a proxy that adds `rtt` ms."""
    with (
        apart() as cores,
        process(cores, "sink") as near,
        process(cores, "delayproxy", "--rtt", str(rtt), *map(str, near)) as far,
    ):
        ports = {(mode, 0.0): port for mode, port in zip(sink.OFFERS, near, strict=True)}
        ports |= {(mode, rtt): port for mode, port in zip(sink.OFFERS, far, strict=True)}
        with socket.create_connection(("127.0.0.1", near[0])) as control:
            control.recv(200)
            yield Servers(ports, control)


def capacity(port: int, content: bytes, count: int) -> float:
    """Messages/s that the sink takes of ready-made pipelined groups, written as fast as it reads."""
    group = b"RSET\r\nMAIL FROM:<sender@example.com>\r\nRCPT TO:<recipient@example.net>\r\n"
    message = group + b"BDAT %d LAST\r\n" % len(content) + content
    block, blocks = message * 100, count // 100
    answers = 100 * sum(map(len, (sink.RSET_OK, sink.MAIL_OK, sink.RCPT_OK, sink.QUEUED))) * blocks
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.recv(200)
        connection.sendall(b"EHLO localhost\r\n")
        connection.recv(200)

        def write() -> None:
            for _ in range(blocks):
                connection.sendall(block)

        writer = threading.Thread(target=write)
        begin = time.perf_counter()
        writer.start()
        while answers > 0:
            answers -= len(connection.recv(1 << 18))
        seconds = time.perf_counter() - begin
        writer.join()
    return blocks * 100 / seconds
