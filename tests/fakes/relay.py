"""A strict SMTP and LMTP server in the test's own loop, which can be slow, picky and wrong on purpose.

It answers whatever one read brought in one write, and remembers all it saw.  What a client must not do (write
before it may, say) it notes down in `violations`, which the fixture checks when the test is over.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from tests.fakes.script import Peer, listening

__all__ = ["SHAPES", "Letter", "Relay", "relaying"]

SHAPES: dict[str, tuple[str, ...]] = {
    "none": (),
    "chunking": ("CHUNKING",),
    "pipelining": ("PIPELINING",),
    "both": ("PIPELINING", "CHUNKING"),
}
"""What decides how a message is written."""

COMMON = ("8BITMIME", "SIZE 50000000", "SMTPUTF8", "DSN")

PATH = re.compile(r"(?:from|to):<([^>]*)>(.*)", re.IGNORECASE)


@dataclass
class Letter:
    """A message that was taken."""

    sender: str
    recipients: list[str]
    content: bytes
    parameters: str = ""


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
        conversation = Conversation(self)
        self.connections.append(conversation)
        return conversation

    @property
    def verbs(self) -> list[str]:
        """The commands seen, without their arguments, in upper case."""
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
        """Until every connection is closed."""
        for conversation in self.connections:
            await conversation.closed.wait()


class Conversation(Peer):
    """One connection."""

    def __init__(self, relay: Relay) -> None:
        super().__init__(())
        self.relay = relay
        self._buffer = b""
        self._waiting: deque[Callable[[], None]] = deque()
        self._replies: list[str] = []
        self._held: list[str] = []
        self._content: bytearray | None = None  # behind a 354
        self._chunk = 0  # octets of the present chunk still to come
        self._last = False
        self._chunk_reply: str | None = None
        self._busy = False
        self._turns = 0
        self._reset()

    def _reset(self) -> None:
        self.sender: str | None = None
        self.parameters = ""
        self.recipients: list[str] = []
        self.body = bytearray()
        self.failed = False

    # ---- asyncio.Protocol -------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        if self.relay.stalling:
            self.transport.set_write_buffer_limits(0)
        self._later(lambda: self._reply(self.relay.greeting))

    def data_received(self, data: bytes) -> None:
        self.relay.reads.append(data)
        self._later(lambda: self._take(data))

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
        if self._replies and not self.transport.is_closing() and not self._busy:
            self.transport.write("".join(line + "\r\n" for line in self._replies).encode())
            if self._leaving:
                self.transport.close()
            self._replies.clear()

    @property
    def _leaving(self) -> bool:
        return bool(self._replies) and self._replies[-1].startswith("421") and not self.relay.goes_on

    def _reply(self, line: str) -> None:
        self._replies.append(line)

    # ---- what comes -------------------------------------------------------------------------

    def _take(self, data: bytes) -> None:
        self._buffer += data
        while self._buffer and not self.transport.is_closing():
            step = self._take_chunk if self._chunk else self._line if self._content is None else self._take_content
            if not step() or self._leaving:
                break

    def _line(self) -> bool:
        line, end, rest = self._buffer.partition(b"\n")
        if not end:
            return False
        self._buffer = rest
        assert line.endswith(b"\r"), f"a bare LF: {line!r}"
        self._command(line[:-1].decode())
        if rest and not self._chunk and "PIPELINING" not in self.relay.offers:
            self.relay.violations.append(f"written before the reply to {line!r}: {rest!r}")
        return True

    def _take_content(self) -> bool:
        assert self._content is not None
        self._content += self._buffer
        self._buffer = b""
        end = 0 if self._content.startswith(b".\r\n") else self._content.find(b"\r\n.\r\n")
        if end < 0:
            return False
        start = end if end == 0 else end + 2
        self._buffer = bytes(self._content[start + 3 :])
        content = bytes(self._content[:start])
        self._content = None
        if b"\n" in content.replace(b"\r\n", b"") or b"\r" in content.replace(b"\r\n", b""):
            self.relay.violations.append("bare CR or LF in content")
        content = re.sub(rb"(?m)^\.", b"", content)
        self._end(content)
        return True

    def _take_chunk(self) -> bool:
        piece = self._buffer[: self._chunk]
        self._buffer = self._buffer[len(piece) :]
        self._chunk -= len(piece)
        self.body += piece
        if not self._chunk:
            self._chunk_end()
        return True

    def _chunk_end(self) -> None:
        if self.failed:
            self._reply(self._chunk_reply or "503 5.5.1 no valid recipients")
        elif self._last:
            self._end(bytes(self.body))
        else:
            self._reply(self._chunk_reply or "250 2.0.0 chunk taken")

    def _end(self, content: bytes) -> None:
        assert self.sender is not None
        taken = []
        for place in self.recipients if self.relay.lmtp else [""]:
            line = self.relay.answer("." + place, content.decode("latin-1")) or "250 2.0.0 taken"
            self._reply(line)
            if line.startswith("2"):
                taken += [place] if place else self.recipients
        if taken:
            self.relay.letters.append(Letter(self.sender, taken, content, self.parameters))
        self._reset()
        if self.relay.forgetful:
            self._buffer = b""
        if self.relay.quick_tempered:
            self._busy = True
            asyncio.get_running_loop().call_soon(self._calm)

    def _calm(self) -> None:
        self._busy = False
        self.flush()

    # ---- commands ---------------------------------------------------------------------------

    def _command(self, line: str) -> None:
        relay = self.relay
        relay.commands.append(line)
        verb = line.split(" ")[0].upper()
        if self._busy:
            self._reply("503 5.5.1 not now")
            return
        special = relay.answer(verb, line)
        refused = special is not None and special[0] in "45"
        if verb == "BDAT":  # its octets come, whatever the answer
            self._chunk_reply = special
            self.failed = self.failed or refused or not self.recipients
        elif refused:
            self._reply(cast("str", special))
        if verb == "BDAT" or not refused:
            getattr(self, "_do_" + verb.lower(), self._do_other)(line)
            if special is not None and verb != "BDAT":
                self._replies[-1] = special

    def _do_other(self, line: str) -> None:
        self._reply("500 5.5.2 what?")

    def _hello(self, line: str) -> None:
        self._reset()
        lines = ["relay.example", *self.relay.common, *self.relay.offers]
        for text in lines[:-1]:
            self._reply("250-" + text)
        self._reply("250 " + lines[-1])

    _do_ehlo = _do_lhlo = _hello

    def _do_helo(self, line: str) -> None:
        self._reset()
        self._reply("250 relay.example")

    def _do_noop(self, line: str) -> None:
        self._reply("250 2.0.0 ok " + line[5:])

    def _do_rset(self, line: str) -> None:
        self._reset()
        self._reply("250 2.0.0 reset")

    def _do_quit(self, line: str) -> None:
        self._reply("221 2.0.0 bye")
        self.flush()
        self.transport.close()

    def _do_mail(self, line: str) -> None:
        found = PATH.search(line)
        if self.sender is not None or found is None:
            # So do most servers: and a RCPT behind it goes to the transaction that is open.
            self._reply("503 5.5.1 sender already given")
            return
        self.sender, self.parameters = found[1], found[2].strip()
        self._reply("250 2.1.0 sender ok")

    def _do_rcpt(self, line: str) -> None:
        found = PATH.search(line)
        if self.sender is None or found is None:
            self._reply("503 5.5.1 need MAIL first")
            return
        self.recipients.append(found[1])
        self._reply("250 2.1.5 recipient ok")

    def _do_data(self, line: str) -> None:
        if not self.recipients:
            self._reply("503 5.5.1 no valid recipients")
            return
        if self._buffer:
            self.relay.violations.append(f"content before the 354: {self._buffer!r}")
        self._content = bytearray()
        self._reply("354 go ahead")

    def _do_bdat(self, line: str) -> None:
        if "CHUNKING" not in self.relay.offers:
            self.relay.violations.append("BDAT without CHUNKING")
        words = line.upper().split()
        self._last = words[-1] == "LAST"
        self._chunk = int(words[1])
        if not self._chunk:
            self._chunk_end()


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
            await asyncio.sleep(0)  # one that was accepted just now has no transport yet
            for conversation in relay.connections:
                conversation.kill()
            await relay.quiet()
    assert relay.violations == []
