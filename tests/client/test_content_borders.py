"""Content that looks like its own end: nothing in it ends it, and nothing in it becomes a command.

To a server that takes CRLF only for a line end, and to one that takes LF and CR for it too; by DATA and by BDAT; and
wherever the content is cut when it is streamed.  What the encoder makes of it is tests/protocol/test_content.py's.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import re
from collections.abc import AsyncIterator, Iterable
from typing import cast

import pytest

from asmtp import AsyncSMTP
from asmtp.client.content import PIECE
from tests.fakes.script import listening

pytestmark = pytest.mark.usefixtures("bdat_at_once")

STRICT = re.compile(rb"\r\n"), re.compile(rb"\r\n\.\r\n")
LENIENT = re.compile(rb"\r\n|\n|\r"), re.compile(rb"(?:\r\n|\n|\r)\.(?:\r\n|\n|\r)")

SMUGGLED = b"MAIL FROM:<smuggler@x.example>%bRCPT TO:<bob@y.example>%bDATA%b"
LINE_ENDS = (b"\r\n", b"\n", b"\r", b"\r\r\n", b"\n\r", b"\r\n\r\n", b"\0\r\n", b"")

NASTY = [
    b"a%b.%b%b" % (before, after, SMUGGLED % (after, after, after))
    for before, after in itertools.product(LINE_ENDS, LINE_ENDS)
]
NASTY += [b"", b".", b"..", b".\r", b".\n", b".\r\n", b"\r", b"\n", b"\0", b"\xff\r.\n\xfe", b"BDAT 0 LAST\r\nQUIT\r\n"]

CORE = 9
"""Octets at the beginning of each: what is nasty about it ends here, and so many places are enough to cut it at."""


class Sink(asyncio.Protocol):
    """Takes every message, and notes what it took for a command and what for content."""

    def __init__(self, offers: str, line_end: re.Pattern[bytes], content_end: re.Pattern[bytes]) -> None:
        self.offers = offers
        self.line_end = line_end
        self.content_end = content_end
        self.commands: list[bytes] = []
        self.contents: list[bytes] = []
        self.transport: asyncio.Transport
        self.smtp: AsyncSMTP  # who sends to it
        self._buffer = bytearray()
        self._seen = 0
        self._in_data = False
        self._chunks = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self._reply("220 sink")

    def _reply(self, *lines: str) -> None:
        self.transport.write("".join(f"{line}\r\n" for line in lines).encode())

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while self._content() if self._in_data else self._command():
            pass

    def _content(self) -> bool:
        end = self.content_end.search(self._buffer, max(0, self._seen - 5))
        if end is None or (end.end() == len(self._buffer) and self._buffer.endswith(b"\r")):
            self._seen = len(self._buffer)  # a LF may follow
            return False
        wire = bytes(self._buffer[2 : end.start()]) + b"\r\n" if end.start() else b""
        del self._buffer[: end.end()]
        self._in_data = False
        self.contents.append(re.sub(rb"(?m)(?:(?<=\r\n)|\A)\.", b"", wire))
        self._reply("250 taken")
        return True

    def _command(self) -> bool:
        end = self.line_end.search(self._buffer)
        if end is None:
            return False
        line = bytes(self._buffer[: end.start()])
        verb = line.split(b" ")[0].split(b":")[0].upper()
        if verb == b"BDAT":
            size = int(line.split()[1])
            if len(self._buffer) < end.end() + size:
                return False
            self._chunks += self._buffer[end.end() : end.end() + size]
            del self._buffer[: end.end() + size]
            if line.endswith(b"LAST"):
                self.contents.append(self._chunks)
                self._chunks = b""
            self._reply("250 taken")
            return True
        del self._buffer[: end.end()]
        self.commands.append(verb)
        if verb == b"EHLO":
            self._reply("250-sink", f"250 {self.offers}")
        elif verb == b"DATA":
            # The end of the command's line counts as the beginning of the dot's (RFC 5321 §4.1.1.4).
            self._in_data, self._seen = True, 0
            self._buffer[:0] = b"\r\n"
            self._reply("354 go")
        else:
            self._reply("250 ok")
        return True


@contextlib.asynccontextmanager
async def sinking(offers: str, ends: tuple[re.Pattern[bytes], re.Pattern[bytes]]) -> AsyncIterator[Sink]:
    """A sink and a client of it."""
    sink = Sink(offers, *ends)
    async with listening(lambda: sink) as (host, port):
        async with AsyncSMTP(host, port, "me.example", timeout=20) as smtp:
            sink.smtp = smtp
            yield sink
        sink.transport.close()


async def streamed(pieces: Iterable[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


def on_the_wire(content: bytes) -> bytes:
    """With CRLF for every line end, and one in the end."""
    text = re.sub(rb"\r\n|\r|\n", b"\r\n", content)
    return text if text.endswith(b"\r\n") or not text else text + b"\r\n"


async def send(sink: Sink, *messages: tuple[bytes, bytes | AsyncIterator[bytes]]) -> None:
    """Each arrives as it is, and is all that arrives.

    Args:
        messages: what shall be in it, and how it is given.
    """
    for content, given in messages:
        sink.commands.clear()
        sink.contents.clear()
        assert await sink.smtp.sendmail("a@x.example", "b@y.example", given) == {}
        assert [each for each in sink.commands if each not in (b"EHLO", b"RSET")] == (
            [b"MAIL", b"RCPT", b"DATA"] if "CHUNKING" not in sink.offers else [b"MAIL", b"RCPT"]
        )
        assert sink.contents == [on_the_wire(content)]


ENDS = pytest.mark.parametrize("ends", [STRICT, LENIENT], ids=["strict", "lenient"])
OFFERS = pytest.mark.parametrize("offers", ["X-NOTHING", "PIPELINING", "CHUNKING"], ids=["data", "batch", "bdat"])


@ENDS
@OFFERS
async def test_whole(offers: str, ends: tuple[re.Pattern[bytes], re.Pattern[bytes]]) -> None:
    async with sinking(offers, ends) as sink:
        await send(sink, *((content, content) for content in NASTY))


@ENDS
@OFFERS
async def test_cut_in_two(offers: str, ends: tuple[re.Pattern[bytes], re.Pattern[bytes]]) -> None:
    async with sinking(offers, ends) as sink:
        for content in NASTY:
            for at in range(min(len(content), CORE) + 1):
                await send(sink, (content, streamed([content[:at], content[at:]])))


@ENDS
@OFFERS
async def test_octet_by_octet(offers: str, ends: tuple[re.Pattern[bytes], re.Pattern[bytes]]) -> None:
    async with sinking(offers, ends) as sink:
        for content in NASTY:
            pieces = [content[at : at + 1] for at in range(min(len(content), CORE))] + [content[CORE:]]
            await send(sink, (content, streamed(pieces)))


@ENDS
@pytest.mark.parametrize("offers", ["PIPELINING", "CHUNKING"], ids=["data", "bdat"])
@pytest.mark.parametrize("before", [b"\r\n", b"\n", b"\r"], ids=repr)
async def test_bytes_that_are_cut_by_us(
    before: bytes, offers: str, ends: tuple[re.Pattern[bytes], re.Pattern[bytes]]
) -> None:
    """They are many, and are written in pieces: each place of what is nasty falls on a border once."""
    nasty = b"%b.%b%b" % (before, before, SMUGGLED % (before, before, before))
    async with sinking(offers, ends) as sink:
        for at in range(len(before) * 2 + 2):
            content = b"x" * (PIECE - at) + nasty
            await send(sink, (content, content), (content, streamed([content])))


@pytest.mark.sampled
@OFFERS
@pytest.mark.parametrize("end", [b"", b"\r", b"\n.\n", b"\r\n.\r\n"], ids=repr)
async def test_a_line_of_ten_megabytes(offers: str, end: bytes) -> None:
    """RFC 5321 §4.5.3.1.6 allows 1,000 octets; whether to take more is the server's to say."""
    content = b"." + b"x" * 10_000_000 + end
    async with sinking(offers, STRICT) as sink:
        await send(sink, (content, content))
