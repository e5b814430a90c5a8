"""Servers that do not read the chunk of a BDAT that they refuse, and a proxy that hides them.

go-smtp, and what is built on it, answers 502 to a BDAT without recipients and goes on with the next line, which is the
content's.  RFC 3030 §2 puts it in the wrong, but what the content says is carried out all the same.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from tests.fakes.relay import Conversation, Relay, relaying
from tests.fakes.script import Peer, hang_up, listening
from tests.fakes.server import Server

__all__ = ["Careless", "Front", "fronted"]

OFFERS = ("PIPELINING", "8BITMIME", "ENHANCEDSTATUSCODES", "CHUNKING", "SIZE 1048576")

ERRORS = 3
"""Commands that it does not know, before it has enough."""


class _Careless(Conversation):
    relay: Careless

    def __init__(self, relay: Careless) -> None:
        super().__init__(relay)
        self._reads = relay.chunks
        self._errors = 0

    def answer(self, verb: str, line: str) -> str | None:
        if verb == "MAIL":
            self._forget()
        elif verb == "RCPT" and "<nobody" in line:
            return "550 5.1.1 no such user"
        elif verb == "RCPT" and self.sender is None:
            return "502 5.5.1 MAIL first"
        elif verb == "DATA" and not self.recipients:
            return "502 5.5.1 RCPT first"
        return None

    def do_other(self, line: str) -> None:
        self._errors += 1
        self.say("500 5.5.2 what?" if self._errors <= ERRORS else "500 5.5.1 too many errors")
        self.done = self._errors > ERRORS

    def do_data(self, line: str) -> None:
        Server.do_data(self, line)  # what is behind it is no violation of the client's: it is what a chunk says

    def do_bdat(self, line: str) -> None:
        if self.recipients and self.sender == self.relay.unwanted:
            self.say("552 5.3.4 too much")
        elif self.recipients or self._reads:
            self._reads -= not self.recipients
            super().do_bdat(line)
        else:
            self.refuse_chunk()

    def refuse_chunk(self) -> None:
        self.say("502 5.5.1 RCPT first")


class Careless(Relay):
    """The server.

    Args:
        chunks: how many chunks without recipients it reads on each connection, as it should, before it does no more.
        unwanted: it refuses this sender's content by 552, and does not read it either.
    """

    conversation = _Careless

    def __init__(self, chunks: int = 0, *, unwanted: str = "", lmtp: bool = False) -> None:
        super().__init__(OFFERS, (), lmtp=lmtp)
        self.chunks = chunks
        self.unwanted = unwanted

    def carried_out(self, content: bytes) -> list[str]:
        """Return the commands that are lines of a content."""
        return [command for command in self.commands if command and command in content.decode().split("\r\n")]


BLOCKED = "blocked@x.example"
"""The sender whom a proxy refuses, without its backend."""


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
    """Return the next line without its end; None: the client has closed."""
    while (end := peer.received.find(b"\n", peer.consumed)) < 0:
        if peer.eof:
            return None
        await peer.more()
    return (await peer.take(end + 1 - peer.consumed))[:-2].decode()


@contextlib.asynccontextmanager
async def fronted(backend: Careless, *, reads: bool) -> AsyncIterator[Front]:
    """Run a server, and a proxy in front of it."""
    front = Front(backend, reads=reads)
    async with relaying(backend), listening(front.accept) as (front.host, front.port):
        try:
            yield front
        finally:
            await hang_up(front.peers)
            for peer in front.peers:
                assert peer.task is not None
                await peer.task
