"""A server that plays a script, octet for octet, and records what it received.

A script is a list of steps, one script a connection::

    async with scripted([
        send("220 ready"),
        expect("noop"), send("250 ok"),
        expect("quit"), drip("221 bye"), fin,
    ]) as server:
        ...

A str is one line, and gets its CRLF; bytes are sent or expected as they are.  A script that ran into something
it did not expect, or that did not run to its end, fails the test when the `async with` block ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, TypeVar, cast

__all__ = [
    "Peer", "Scripted", "Step", "deaf", "drip", "expect", "fin", "flood", "hang_up", "listening", "nothing_more",
    "octets", "read_all", "rst", "running", "scripted", "send", "silence", "start_tls", "until",
]  # fmt: skip

RST = struct.pack("ii", 1, 0)
"""SO_LINGER on, for 0 seconds: closing sends RST."""


def octets(what: str | bytes) -> bytes:
    return what if isinstance(what, bytes) else what.encode() + b"\r\n"


async def until(condition: Callable[[], Any]) -> None:
    """Let the loop go on until the condition holds."""
    while not condition():  # noqa: ASYNC110  # there is no event for it
        await asyncio.sleep(0)


class Peer(asyncio.Protocol):
    """The server's end of one connection."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self.steps = steps
        self.transport: asyncio.Transport
        self.received = bytearray()
        self.reads: list[bytes] = []
        self.closed = asyncio.Event()
        self.eof = False
        self.task: asyncio.Task[None] | None = None
        self.over = asyncio.Event()  # the test has done its part
        self.consumed = 0
        self._news = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.task = asyncio.get_running_loop().create_task(self._play())

    def data_received(self, data: bytes) -> None:
        self.received += data
        self.reads.append(data)
        self._news.set()

    def eof_received(self) -> bool:
        self.eof = True
        self._news.set()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.eof = True
        self._news.set()
        self.closed.set()

    async def _play(self) -> None:
        try:
            for step in self.steps:
                await step(self)
        except AssertionError:
            self.kill()  # so that the client does not wait for what will not come
            raise

    async def more(self) -> None:
        """Wait until something new has come."""
        self._news.clear()
        await self._news.wait()

    async def take(self, count: int) -> bytes:
        """Return the next octets; fewer if the client has closed."""
        while len(self.received) < self.consumed + count and not self.eof:
            await self.more()
        taken = bytes(self.received[self.consumed : self.consumed + count])
        self.consumed += len(taken)
        return taken

    @property
    def coming(self) -> int:
        """Return how many octets no step has asked for."""
        return len(self.received) - self.consumed

    @property
    def surplus(self) -> bytes:
        """Return the octets that no step has asked for."""
        return bytes(self.received[self.consumed :])

    def kill(self) -> None:
        """Close with RST."""
        if self.closed.is_set():
            return
        sock = self.transport.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST)
        self.transport.abort()


Step = Callable[[Peer], Awaitable[None]]


async def hang_up(peers: Sequence[Peer]) -> None:
    """Close all connections with RST, and wait until they are closed."""
    await asyncio.sleep(0)  # one that was accepted just now has no transport yet
    for peer in peers:
        peer.kill()
    for peer in peers:
        await peer.closed.wait()


def send(*lines: str | bytes) -> Step:
    """Send in one write."""

    async def step(peer: Peer) -> None:
        peer.transport.write(b"".join(map(octets, lines)))

    return step


def drip(*lines: str | bytes, every: float = 0) -> Step:
    """Send octet by octet, each in a segment of its own, `every` so many seconds."""

    async def step(peer: Peer) -> None:
        for octet in b"".join(map(octets, lines)):
            if peer.eof:
                break
            peer.transport.write(bytes([octet]))
            await asyncio.sleep(every)
            await asyncio.sleep(0)

    return step


def expect(*lines: str | bytes, reads: int | None = None) -> Step:
    """Receive exactly this; `reads`: in so many pieces."""
    wanted = b"".join(map(octets, lines))

    async def step(peer: Peer) -> None:
        before = peer.consumed
        # As soon as it is something else, there is nothing to wait for.
        while peer.coming < len(wanted) and not peer.eof and (peer.coming > 1000 or wanted.startswith(peer.surplus)):
            await peer.more()
        got = await peer.take(min(len(wanted), peer.coming))
        assert got == wanted, f"expected {wanted!r}, received {got!r} and then {peer.surplus!r}"
        if reads is not None:
            ends = list(itertools.accumulate(map(len, peer.reads)))
            pieces = sum(before < end for end in ends) - sum(peer.consumed <= end for end in ends[:-1])
            assert pieces == reads, peer.reads

    return step


def flood(block: bytes, blocks: int) -> Step:
    """Send a block over and over, as fast as the client takes it, until it closes."""

    async def step(peer: Peer) -> None:
        for _ in range(blocks):
            if peer.eof or peer.transport.is_closing():
                break
            peer.transport.write(block)
            await asyncio.sleep(0)
            while peer.transport.get_write_buffer_size() and not peer.eof:  # noqa: ASYNC110  # there is no event
                await asyncio.sleep(0)

    return step


async def fin(peer: Peer) -> None:
    """Close with FIN."""
    peer.transport.close()


async def rst(peer: Peer) -> None:
    """Close with RST."""
    peer.kill()


async def silence(peer: Peer) -> None:
    """Say nothing more, until the client has closed."""
    while not peer.eof:
        await peer.more()


async def nothing_more(peer: Peer) -> None:
    """Expect that the client has closed, and sent nothing more."""
    await silence(peer)
    assert peer.surplus == b"", peer.surplus


async def read_all(peer: Peer) -> None:
    """Take whatever comes, until the client closes."""
    await silence(peer)
    await peer.take(len(peer.surplus))


def start_tls(context: ssl.SSLContext) -> Step:
    """Do the server's side of the handshake."""

    async def step(peer: Peer) -> None:
        loop = asyncio.get_running_loop()
        upgraded = await loop.start_tls(peer.transport, peer, context, server_side=True)
        assert upgraded is not None
        peer.transport = upgraded

    return step


async def deaf(peer: Peer) -> None:
    """Read nothing more, until the test is over; the kernel's buffers fill."""
    peer.transport.pause_reading()
    await peer.over.wait()
    peer.transport.resume_reading()


class Scripted:
    """A listening server, and the connections it has had."""

    def __init__(self, scripts: Sequence[Sequence[Step]], address: Any) -> None:
        self.address = address
        self.peers: list[Peer] = []
        self._scripts = list(scripts)

    @property
    def host(self) -> str:
        return cast("str", self.address if isinstance(self.address, str) else self.address[0])

    @property
    def port(self) -> int:
        return 0 if isinstance(self.address, str) else cast("int", self.address[1])

    @property
    def received(self) -> bytes:
        """Return everything that came, on all connections."""
        return b"".join(peer.received for peer in self.peers)

    @property
    def peer(self) -> Peer:
        """Return the last connection."""
        return self.peers[-1]

    def accept(self) -> Peer:
        peer = Peer(self._scripts.pop(0) if self._scripts else [rst])
        self.peers.append(peer)
        return peer

    async def finish(self, *, check: bool) -> None:
        """Let the scripts end, and raise what went wrong with them."""
        for peer in self.peers:
            assert peer.task is not None
            peer.over.set()
            if not check:
                peer.task.cancel()
            with contextlib.suppress(*() if check else (asyncio.CancelledError,)):
                await asyncio.wait_for(peer.task, 5)
            peer.kill()
            await peer.closed.wait()
        assert not check or not self._scripts, f"{len(self._scripts)} connections were not made"


BACKLOG = 1000
"""Connections that wait to be accepted: with fewer the kernel drops them, and tries again by its own clock."""


@contextlib.asynccontextmanager
async def listening(
    factory: Callable[[], asyncio.BaseProtocol],
    *,
    family: int = socket.AF_INET,
    host: str = "",
    path: str = "",
    receive_buffer: int = 0,
    send_buffer: int = 0,
    tls: Any = None,
) -> AsyncIterator[Any]:
    """Listen on a free port (or a Unix socket), and give the address."""
    sock = socket.socket(socket.AF_UNIX if path else family, socket.SOCK_STREAM)
    if receive_buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    if send_buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
    sock.bind(path or (host or ("::1" if family == socket.AF_INET6 else "127.0.0.1"), 0))
    sock.listen(BACKLOG)
    address = sock.getsockname()
    loop = asyncio.get_running_loop()
    server = await (loop.create_unix_server if path else loop.create_server)(
        factory, sock=sock, ssl=tls, backlog=BACKLOG
    )
    try:
        yield address
    finally:
        server.close()


S = TypeVar("S", bound=Scripted)


@contextlib.asynccontextmanager
async def running(server: S, **where: Any) -> AsyncIterator[S]:
    """Run a server; raise what went wrong with its scripts."""
    async with listening(server.accept, **where) as server.address:
        try:
            yield server
        except BaseException as error:
            try:
                await server.finish(check=False)
            except AssertionError as unexpected:
                raise unexpected from error
            raise
        await server.finish(check=True)


def scripted(*scripts: Sequence[Step], **where: Any) -> contextlib.AbstractAsyncContextManager[Scripted]:
    """Run a scripted server, with a script for each connection that will be made."""
    return running(Scripted(scripts, None), **where)
