"""A server that takes everything as fast as it can: for tests with very many messages.

It speaks PIPELINING and CHUNKING, and understands what a client writes then: groups of RSET, MAIL, RCPT and BDAT LAST;
or the envelope apart from the content.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from typing import cast

from tests.fakes.script import listening

__all__ = ["Sink", "sinking"]

GROUP = re.compile(rb"(rset\r\n)?mail from:<[^\r\n]*\r\n((?:rcpt to:<[^\r\n]*\r\n)+)BDAT (\d+) LAST\r\n")
CHUNK = re.compile(rb"BDAT (\d+) LAST\r\n")
LINE = re.compile(rb"([A-Za-z]+)[^\r\n]*\r\n")


class Sink:
    """The server, with an account of what all connections have brought.

    Attributes:
        messages, octets, connections: how many there were.
        open, most: how many connections there are now, and were at a time.
    """

    def __init__(self) -> None:
        self.host = ""
        self.port = 0
        self.messages = 0
        self.octets = 0
        self.connections = 0
        self.open = 0
        self.most = 0

    def accept(self) -> asyncio.Protocol:
        return _Connection(self)


class _Connection(asyncio.Protocol):
    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self._sink.connections += 1
        self._sink.open += 1
        self._sink.most = max(self._sink.most, self._sink.open)
        self.transport.write(b"220 sink\r\n")

    def connection_lost(self, exc: Exception | None) -> None:
        self._sink.open -= 1

    def data_received(self, data: bytes) -> None:
        data = self._rest + data
        place = 0
        replies: list[bytes] = []
        while place < len(data):
            group = GROUP.match(data, place)
            chunk = group or CHUNK.match(data, place)
            if chunk is not None:
                octets = int(chunk[chunk.lastindex or 1])
                if chunk.end() + octets > len(data):
                    break
                if group is not None:
                    recipients = group[2].count(b"\n")
                    replies.append(b"250 reset\r\n" if group[1] else b"")
                    replies.append(b"250 sender\r\n" + b"250 recipient\r\n" * recipients)
                replies.append(b"250 taken\r\n")
                self._sink.messages += 1
                self._sink.octets += octets
                place = chunk.end() + octets
            elif (line := LINE.match(data, place)) is not None:
                hello = line[1].lower() == b"ehlo"
                replies.append(b"250-sink\r\n250-PIPELINING\r\n250 CHUNKING\r\n" if hello else b"250 ok\r\n")
                place = line.end()
            else:
                break
        self._rest = data[place:]
        if replies:
            self.transport.write(b"".join(replies))


@contextlib.asynccontextmanager
async def sinking() -> AsyncIterator[Sink]:
    """Run a sink on a free port."""
    sink = Sink()
    async with listening(sink.accept) as (sink.host, sink.port):
        yield sink
        while sink.open:  # noqa: ASYNC110
            await asyncio.sleep(0)
