"""A proxy that ends each TLS handshake that would resume a session with an alert, as Haraka does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from tests.fakes.script import listening

__all__ = ["Choosy", "choosy"]

ALERT = b"\x15\x03\x03\x00\x02\x02\x50"
"""Fatal: internal_error."""

TICKET, PRE_SHARED_KEY = 35, 41


class Choosy(asyncio.Protocol):
    """One connection, passed on."""

    def __init__(self, port: int, ends: list[str]) -> None:
        self._port = port
        self._ends = ends
        self._ahead: asyncio.StreamWriter | None = None
        self._waiting = b""
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self._task = asyncio.get_running_loop().create_task(self._back())

    def data_received(self, data: bytes) -> None:
        if data.startswith(b"\x16\x03\x01"):  # a ClientHello
            how = "resuming" if _resumes(data) else "full"
            self._ends.append(how)
            if how == "resuming":
                self.transport.write(ALERT)  # type: ignore[attr-defined]
                self.transport.close()
                return
        if self._ahead is None:
            self._waiting += data
        else:
            self._ahead.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._ahead is not None:
            self._ahead.transport.abort()
        elif self._task is not None:
            self._task.cancel()

    async def _back(self) -> None:
        reader, self._ahead = await asyncio.open_connection("127.0.0.1", self._port)
        self._ahead.write(self._waiting)
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                self.transport.write(data)  # type: ignore[attr-defined]
        self.transport.close()


@contextlib.asynccontextmanager
async def choosy(port: int) -> AsyncIterator[tuple[int, list[str]]]:
    """Run it in front of a port of this machine; give its own port, and the handshakes that it has seen."""
    seen: list[str] = []
    async with listening(lambda: Choosy(port, seen)) as address:
        yield address[1], seen


def _resumes(hello: bytes) -> bool:
    at = 5 + 4 + 2 + 32
    at += 1 + hello[at]  # session id
    at += 2 + int.from_bytes(hello[at : at + 2], "big")  # cipher suites
    at += 1 + hello[at]  # compression
    at += 2
    while at + 4 <= len(hello):
        kind, length = int.from_bytes(hello[at : at + 2], "big"), int.from_bytes(hello[at + 2 : at + 4], "big")
        if kind == PRE_SHARED_KEY or (kind == TICKET and length):
            return True
        at += 4 + length
    return False
