"""A strict SMTP and LMTP server in the test's own loop, which can be slow, picky and wrong on purpose.

It is :class:`tests.fakes.server.Server` behind a socket: it answers in one write whatever one read brought, and
remembers all that it saw.  What a client must not do (write before it may, say) it notes down in `violations`, which
are checked when the test is over.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar, cast

from tests.fakes.script import Peer, hang_up, listening
from tests.fakes.server import Letter, Server

__all__ = ["SHAPES", "Conversation", "Letter", "Relay", "relaying"]

SHAPES: dict[str, tuple[str, ...]] = {
    "none": (),
    "chunking": ("CHUNKING",),
    "pipelining": ("PIPELINING",),
    "both": ("PIPELINING", "CHUNKING"),
}
"""The offers that decide how a message is written."""

COMMON = ("8BITMIME", "SIZE 50000000", "SMTPUTF8", "DSN")


@dataclass
class Relay:
    """A server; the options may be changed while it runs.

    Args:
        offers: EHLO keywords besides the common ones.
        common: these.
        answer: called with verb and line of each command, and with "." and the content at its end; a reply to
            give instead of the usual one, or None.
        latency: seconds between what is received and its answer.
        hold: answer so many reads and then no more, until `release`.
        quick_tempered: like Haraka, answer 503 to what comes behind a final dot before its reply is out.
        forgetful: like Courier, drop what comes behind a final dot before its reply is out.
        stalling: read nothing while replies are not taken.
        goes_on: do not close behind a 421.
    """

    conversation: ClassVar[type[Conversation]]
    """The class of its connections, for servers that do something else."""

    offers: tuple[str, ...] = ()
    common: tuple[str, ...] = COMMON
    answer: Callable[[str, str], str | None] = lambda verb, line: None
    latency: float = 0
    hold: int | None = None
    lmtp: bool = False
    quick_tempered: bool = False
    forgetful: bool = False
    stalling: bool = False
    goes_on: bool = False
    greeting: str = "220 relay.example ESMTP"
    host: str = ""
    port: int = 0
    letters: list[Letter] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    reads: list[bytes] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    connections: list[Conversation] = field(default_factory=list)
    stalls: int = 0

    def __post_init__(self) -> None:
        self.held = asyncio.Event()

    def accept(self) -> Conversation:
        """Return the protocol of a new connection."""
        conversation = self.conversation(self)
        self.connections.append(conversation)
        return conversation

    @property
    def verbs(self) -> list[str]:
        """Return the commands seen, without their arguments, in upper case."""
        return [command.split(" ")[0].split(":")[0].upper() for command in self.commands]

    def release(self) -> None:
        """Send what was held back, and hold no more."""
        self.hold = None
        for conversation in self.connections:
            conversation.flush()

    def drop(self) -> None:
        """Close all connections with FIN."""
        for conversation in self.connections:
            conversation.transport.close()

    def say(self, line: str) -> None:
        """Say something unasked on every connection."""
        for conversation in self.connections:
            conversation.transport.write(line.encode() + b"\r\n")

    async def quiet(self) -> None:
        """Wait until every connection is closed."""
        for conversation in self.connections:
            await conversation.closed.wait()


class Conversation(Server, Peer):
    """One connection."""

    relay: Any  # a Relay; of the subclass's own class

    def __init__(self, relay: Relay) -> None:
        Peer.__init__(self, ())
        Server.__init__(self, lmtp=relay.lmtp, impatient=relay.quick_tempered, goes_on=relay.goes_on)
        self.relay = relay
        self.letters = relay.letters
        self._waiting: deque[Callable[[], None]] = deque()
        self._turns = 0

    # ---- asyncio.Protocol -------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        if self.relay.stalling:
            self.transport.set_write_buffer_limits(0)
        self._later(lambda: self.say(self.relay.greeting))

    def data_received(self, data: bytes) -> None:
        self.relay.reads.append(data)
        self._later(lambda: self.receive(data))

    def pause_writing(self) -> None:
        self.relay.stalls += 1
        if self.relay.stalling:
            self.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.relay.stalling:
            self.transport.resume_reading()

    def _later(self, work: Callable[[], None]) -> None:
        self._waiting.append(work)
        if self.relay.latency:
            asyncio.get_running_loop().call_later(self.relay.latency, self._turn)
        else:
            self._turn()

    def _turn(self) -> None:
        self._waiting.popleft()()  # in order, however timers are
        self._turns += 1
        if self.relay.hold is not None and self._turns > self.relay.hold:
            self.relay.held.set()
        else:
            self.flush()

    def flush(self) -> None:
        """Send the replies that are due."""
        if self.replies and not self.transport.is_closing():
            self.transport.write("".join(line + "\r\n" for line in self.replies).encode())
            if self.done:
                self.transport.close()
            self.replies.clear()

    # ---- the server -------------------------------------------------------------------------

    @property
    def hears(self) -> bool:
        return super().hears and not self.transport.is_closing()

    def answer(self, verb: str, line: str) -> str | None:
        return cast("str | None", self.relay.answer(verb, line))

    def keywords(self) -> list[str]:
        return ["relay.example", *self.relay.common, *self.relay.offers]

    def line(self, octets: bytes) -> None:
        super().line(octets)
        early = bytes(self._in[2:] if self._read == self._read_content else self._in)
        if early and self._read != self._read_chunk and "PIPELINING" not in self.relay.offers:
            self.relay.violations.append(f"written before the reply to {octets!r}: {early!r}")

    def command(self, line: str) -> None:
        self.relay.commands.append(line)
        if self._behind:
            self.say("503 5.5.1 not now")  # and what follows a BDAT is taken for commands
        else:
            super().command(line)

    def do_quit(self, line: str) -> None:
        super().do_quit(line)
        self.flush()

    def do_data(self, line: str) -> None:
        if self.recipients and self._in:
            self.relay.violations.append(f"content before the 354: {bytes(self._in)!r}")
        super().do_data(line)

    def do_bdat(self, line: str) -> None:
        if "CHUNKING" not in self.relay.offers:
            self.relay.violations.append("BDAT without CHUNKING")
        super().do_bdat(line)

    def end_of_data(self, stuffed: bytes) -> None:
        lines = stuffed.replace(b"\r\n", b"")
        if b"\n" in lines or b"\r" in lines:
            self.relay.violations.append("bare CR or LF in content")
        super().end_of_data(stuffed)

    def end(self, content: bytes) -> None:
        super().end(content)
        if self.relay.forgetful:
            self._in.clear()


Relay.conversation = Conversation


R = TypeVar("R", bound=Relay)


@contextlib.asynccontextmanager
async def relaying(relay: R, **where: Any) -> AsyncIterator[R]:
    """Run a relay, on a free port of 127.0.0.1 unless told where."""
    async with listening(relay.accept, **where) as address:
        if isinstance(address, str):
            relay.host = address
        else:
            relay.host, relay.port = address[0], address[1]
        try:
            yield relay
        finally:
            await hang_up(relay.connections)
    assert relay.violations == []
