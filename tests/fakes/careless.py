"""Servers that do not read the chunk of a BDAT that they refuse, and take its octets for commands; and what hides them.

go-smtp, and what is built on it, answers 502 to a BDAT without recipients and goes on with the next line, which is the
content's.  RFC 3030 §2 puts it in the wrong, but what the content says is carried out all the same.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from tests.fakes.script import Peer, listening
from tests.fakes.server import PATH, Letter

__all__ = ["Careless", "Front", "careless", "fronted"]

OFFERS = ("PIPELINING", "8BITMIME", "ENHANCEDSTATUSCODES", "CHUNKING", "SIZE 1048576")

ERRORS = 3
"""Commands that it does not know, before it has enough."""


class Careless:
    """The server, and what it has seen on all connections.

    Args:
        reads: how many chunks without recipients it reads on each connection, as it should, before it does no more.
        unwanted: it refuses this sender's content by 552, and does not read it either.

    Attributes:
        letters: what it took.
        commands: each line that it took for a command, right or wrong.
    """

    def __init__(self, reads: int = 0, *, unwanted: str = "", lmtp: bool = False) -> None:
        self.reads = reads
        self.unwanted = unwanted
        self.lmtp = lmtp
        self.host = ""
        self.port = 0
        self.letters: list[Letter] = []
        self.commands: list[str] = []
        self.peers: list[Peer] = []

    def accept(self) -> Peer:
        peer = Peer([Conversation(self)])
        self.peers.append(peer)
        return peer

    def carried_out(self, content: bytes) -> list[str]:
        """The commands that are lines of a content."""
        return [command for command in self.commands if command and command in content.decode().split("\r\n")]


class Conversation:
    """One connection; as a step of a script it is all of it."""

    def __init__(self, server: Careless) -> None:
        self.server = server
        self.reads = server.reads
        self.errors = 0
        self.peer: Peer
        self._reset()

    def _reset(self) -> None:
        self.sender: str | None = None
        self.recipients: list[str] = []

    async def __call__(self, peer: Peer) -> None:
        self.peer = peer
        self._say("220 careless.example ESMTP")
        while self.errors <= ERRORS and (line := await read_line(peer)) is not None:
            self.server.commands.append(line)
            verb = line.split(" ")[0].split(":")[0].upper()
            if verb == "QUIT":
                self._say("221 2.0.0 bye")
                break
            await getattr(self, "_do_" + verb.lower(), self._do_other)(line)
        peer.transport.close()

    def _say(self, *lines: str) -> None:
        self.peer.transport.write("".join(f"{line}\r\n" for line in lines).encode())

    async def _do_other(self, line: str) -> None:
        self.errors += 1
        self._say("500 5.5.2 what?" if self.errors <= ERRORS else "500 5.5.1 too many errors")

    async def _do_ehlo(self, line: str) -> None:
        self._reset()
        self._say("250-careless.example", *[f"250-{keyword}" for keyword in OFFERS], "250 HELP")

    _do_lhlo = _do_ehlo

    async def _do_noop(self, line: str) -> None:
        self._say("250 2.0.0 I have done nothing")

    async def _do_rset(self, line: str) -> None:
        self._reset()
        self._say("250 2.0.0 reset")

    async def _do_mail(self, line: str) -> None:
        self._reset()
        found = PATH.search(line)
        assert found is not None
        self.sender = found[1]
        self._say("250 2.1.0 sender ok")

    async def _do_rcpt(self, line: str) -> None:
        found = PATH.search(line)
        assert found is not None
        if found[1].startswith("nobody"):
            self._say("550 5.1.1 no such user")
        elif self.sender is None:
            self._say("502 5.5.1 MAIL first")
        else:
            self.recipients.append(found[1])
            self._say("250 2.1.5 recipient ok")

    async def _do_data(self, line: str) -> None:
        if not self.recipients:
            self._say("502 5.5.1 RCPT first")
            return
        self._say("354 go ahead")
        content = b""
        while (piece := await read_line(self.peer)) not in (".", None):
            assert piece is not None
            content += piece.removeprefix(".").encode() + b"\r\n"
        self._took(content)

    async def _do_bdat(self, line: str) -> None:
        octets = int(line.split(" ")[1])
        if not self.recipients:
            if self.reads:
                self.reads -= 1
                await self.peer.take(octets)
            self._say("502 5.5.1 RCPT first")
        elif self.sender == self.server.unwanted:
            self._say("552 5.3.4 too much")
        else:
            self._took(await self.peer.take(octets))

    def _took(self, content: bytes) -> None:
        assert self.sender is not None
        self.server.letters.append(Letter(self.sender, self.recipients, content))
        self._say(*["250 2.0.0 taken"] * (len(self.recipients) if self.server.lmtp else 1))
        self._reset()


BLOCKED = "blocked@x.example"
"""Whom a proxy refuses as a sender, without its backend."""


class Front:
    """A transparent proxy: it answers until there is a recipient, then connects its backend, and is a pipe.

    So what goes before a connection's first recipient shows nothing of the backend.

    Args:
        reads: whether it knows BDAT, and reads the chunk that it refuses.
    """

    def __init__(self, backend: Careless, *, reads: bool) -> None:
        self.backend = backend
        self.reads = reads
        self.host = ""
        self.port = 0
        self.peers: list[Peer] = []

    def accept(self) -> Peer:
        peer = Peer([self._talk])
        self.peers.append(peer)
        return peer

    async def _talk(self, peer: Peer) -> None:
        said: dict[str, bytes] = {
            "RSET": b"250 2.0.0 reset\r\n",
            "MAIL": b"250 2.1.0 sender ok\r\n",
            "NOOP": b"250 2.0.0 ok\r\n",
            "EHLO": "".join(f"250-{keyword}\r\n" for keyword in ("front.example", *OFFERS)).encode() + b"250 HELP\r\n",
        }
        said["LHLO"] = said["EHLO"]
        hello = mail = ""
        peer.transport.write(b"220 front.example ESMTP\r\n")
        while (line := await read_line(peer)) is not None:
            verb = line.split(" ")[0].split(":")[0].upper()
            hello = line if verb in ("EHLO", "LHLO") else hello
            mail = line if verb == "MAIL" and BLOCKED not in line else "" if verb in ("MAIL", "RSET") else mail
            if verb == "RCPT" and mail:
                await self._pass_on(peer, [hello, mail, line])
                break
            if verb == "QUIT":
                peer.transport.write(b"221 2.0.0 bye\r\n")
                break
            if verb == "BDAT" and self.reads:
                await peer.take(int(line.split(" ")[1]))
                peer.transport.write(b"503 5.5.1 RCPT first\r\n")
            elif BLOCKED in line:
                peer.transport.write(b"550 5.7.1 not you\r\n")
            else:
                peer.transport.write(said.get(verb, b"503 5.5.1 not now\r\n"))
        peer.transport.close()

    async def _pass_on(self, peer: Peer, begun: list[str]) -> None:
        """Tell the backend what the client has said, and be a pipe from there on."""
        reader, writer = await asyncio.open_connection(self.backend.host, self.backend.port)
        await reader.readline()
        for line in begun[:-1]:
            writer.write(line.encode() + b"\r\n")
            while (await reader.readline())[3:4] == b"-":
                pass
        writer.write(begun[-1].encode() + b"\r\n")
        there = asyncio.create_task(_there(peer, writer))
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                peer.transport.write(data)
        there.cancel()
        writer.transport.abort()


async def _there(peer: Peer, writer: asyncio.StreamWriter) -> None:
    while not peer.eof:
        if peer.coming:
            writer.write(await peer.take(peer.coming))
        else:
            await peer.more()
    writer.close()


async def read_line(peer: Peer) -> str | None:
    """The next line without its end; None: the client has closed."""
    while (end := peer.received.find(b"\n", peer.consumed)) < 0:
        if peer.eof:
            return None
        await peer.more()
    return (await peer.take(end + 1 - peer.consumed))[:-2].decode()


@contextlib.asynccontextmanager
async def careless(server: Careless) -> AsyncIterator[Careless]:
    """Run a server on a free port."""
    async with listening(server.accept) as (server.host, server.port):
        try:
            yield server
        finally:
            await _end(server.peers)


@contextlib.asynccontextmanager
async def fronted(backend: Careless, *, reads: bool) -> AsyncIterator[Front]:
    """Run a server, and a proxy in front of it."""
    front = Front(backend, reads=reads)
    async with careless(backend), listening(front.accept) as (front.host, front.port):
        try:
            yield front
        finally:
            await _end(front.peers)


async def _end(peers: list[Peer]) -> None:
    await asyncio.sleep(0)  # one that was accepted just now has no transport yet
    for peer in peers:
        peer.kill()
        await peer.closed.wait()
        assert peer.task is not None
        await peer.task
