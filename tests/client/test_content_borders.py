"""Content that looks like its own end: nothing in it ends it, and nothing in it becomes a command.

To a server that takes CRLF only for a line end, and to one that takes LF and CR for it too; by DATA and by BDAT; and
wherever the content is cut when it is streamed.  What the encoder makes of it is tests/protocol/test_content.py's.
"""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import AsyncIterator, Iterable

import pytest

from asmtp import AsyncSMTP
from asmtp.client.content import PIECE
from tests.fakes.relay import Conversation, Relay, relaying

pytestmark = pytest.mark.usefixtures("bdat_at_once")

SMUGGLED = b"MAIL FROM:<smuggler@x.example>%bRCPT TO:<bob@y.example>%bDATA%b"
LINE_ENDS = (b"\r\n", b"\n", b"\r", b"\r\r\n", b"\n\r", b"\r\n\r\n", b"\0\r\n", b"")

NASTY = [
    b"a%b.%b%b" % (before, after, SMUGGLED % (after, after, after))
    for before, after in itertools.product(LINE_ENDS, LINE_ENDS)
]
NASTY += [b"", b".", b"..", b".\r", b".\n", b".\r\n", b"\r", b"\n", b"\0", b"\xff\r.\n\xfe", b"BDAT 0 LAST\r\nQUIT\r\n"]

CORE = 9
"""Octets at the beginning of each: what is nasty about it ends here, and so many places are enough to cut it at."""


class Sink(Relay):
    """Takes CRLF only for a line end."""

    smtp: AsyncSMTP  # sends to it


class _LenientConversation(Conversation):
    line_end = re.compile(rb"\r\n|\n|\r")
    content_end = re.compile(rb"(?:\r\n|\n|\r)\.(?:\r\n|\n|\r)")

    def _read_content(self) -> bool:
        # A LF may follow.
        return not self._in.endswith(b"\r") and super()._read_content()


class Lenient(Sink):
    """Takes LF and CR for line ends, too."""

    conversation = _LenientConversation


@contextlib.asynccontextmanager
async def sinking(offers: str, kind: type[Sink] = Sink) -> AsyncIterator[Sink]:
    """Run a sink and a client of it."""
    async with relaying(kind((offers,))) as sink, AsyncSMTP(sink.host, sink.port, "me.example", timeout=20) as smtp:
        sink.smtp = smtp
        yield sink


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
        sink.letters.clear()
        assert await sink.smtp.sendmail("a@x.example", "b@y.example", given) == {}
        assert [each for each in sink.verbs if each not in ("EHLO", "RSET", "BDAT")] == (
            ["MAIL", "RCPT", "DATA"] if "CHUNKING" not in sink.offers else ["MAIL", "RCPT"]
        )
        assert [letter.content for letter in sink.letters] == [on_the_wire(content)]


KINDS = pytest.mark.parametrize("kind", [Sink, Lenient], ids=["strict", "lenient"])
OFFERS = pytest.mark.parametrize("offers", ["X-NOTHING", "PIPELINING", "CHUNKING"], ids=["data", "batch", "bdat"])


@KINDS
@OFFERS
async def test_whole(offers: str, kind: type[Sink]) -> None:
    async with sinking(offers, kind) as sink:
        await send(sink, *((content, content) for content in NASTY))


@KINDS
@OFFERS
async def test_cut_in_two(offers: str, kind: type[Sink]) -> None:
    async with sinking(offers, kind) as sink:
        for content in NASTY:
            for at in range(min(len(content), CORE) + 1):
                await send(sink, (content, streamed([content[:at], content[at:]])))


@KINDS
@OFFERS
async def test_octet_by_octet(offers: str, kind: type[Sink]) -> None:
    async with sinking(offers, kind) as sink:
        for content in NASTY:
            pieces = [content[at : at + 1] for at in range(min(len(content), CORE))] + [content[CORE:]]
            await send(sink, (content, streamed(pieces)))


@KINDS
@pytest.mark.parametrize("offers", ["PIPELINING", "CHUNKING"], ids=["data", "bdat"])
@pytest.mark.parametrize("before", [b"\r\n", b"\n", b"\r"], ids=repr)
async def test_bytes_that_are_cut_by_us(before: bytes, offers: str, kind: type[Sink]) -> None:
    """They are many, and are written in pieces: each place of what is nasty falls on a border once."""
    nasty = b"%b.%b%b" % (before, before, SMUGGLED % (before, before, before))
    async with sinking(offers, kind) as sink:
        for at in range(len(before) * 2 + 2):
            content = b"x" * (PIECE - at) + nasty
            await send(sink, (content, content), (content, streamed([content])))


@pytest.mark.sampled
@OFFERS
@pytest.mark.parametrize("end", [b"", b"\r", b"\n.\n", b"\r\n.\r\n"], ids=repr)
async def test_a_line_of_ten_megabytes(offers: str, end: bytes) -> None:
    """RFC 5321 §4.5.3.1.6 allows 1,000 octets; whether to take more is the server's to say."""
    content = b"." + b"x" * 10_000_000 + end
    async with sinking(offers) as sink:
        await send(sink, (content, content))
