"""The content that callers give, of any kind, as a transaction needs it: whole if small, else in pieces."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable
from email.message import Message
from typing import IO, Any, Self, TypeAlias

from asmtp.protocol.content import line_end, to_octets, wire_size
from asmtp.protocol.message import flatten, weight
from asmtp.protocol.transaction import Body

__all__ = ["PIECE", "WHOLE", "Content", "Pieces", "body_of", "check_content", "whole"]

Content: TypeAlias = (
    "str | bytes | bytearray | memoryview | Message[Any, Any] | os.PathLike[str] | IO[bytes] | AsyncIterable[bytes]"
)
"""The kinds of message that `sendmail` takes."""

Pieces: TypeAlias = "AsyncGenerator[bytes, None] | _Reading | None"

Offload: TypeAlias = Callable[..., Awaitable[Any]]
"""A function that calls another one, which may block, with arguments."""

PIECE = 1 << 18
"""Octets of content that are handled at a time: few enough not to stall a loop, enough not to waste its time."""

WHOLE = 1 << 16
"""Octets up to which content goes with its envelope in one write; more waits until the envelope is accepted."""


async def body_of(content: Content, offload: Offload, *, eight_bit: bool, utf8: bool = False) -> tuple[Body, Pieces]:
    """Return the body for a transaction, and the pieces to stream if the body does not hold the content itself.

    Args:
        eight_bit: the server takes 8-bit content; if not, a message object is re-encoded.
        utf8: write UTF-8 in the header fields of a message object, as it is sent with SMTPUTF8.

    Raises:
        TypeError: the content is of no kind that can be sent.
        UnicodeEncodeError: a str that is not ASCII.
        OSError: a file cannot be opened.
    """
    if isinstance(content, Message):
        content = await _flattened(content, offload, eight_bit=eight_bit, utf8=utf8)
    if isinstance(content, str):
        content = to_octets(content)
    if isinstance(content, memoryview):
        content = _octets(content)
    if isinstance(content, bytes | bytearray | memoryview):
        if len(content) <= WHOLE:
            return whole(to_octets(content)), None
        is_ascii = not isinstance(content, memoryview) and content.isascii()
        head = bytes(content[:WHOLE])
        size = await _wire_size(content) + line_end(content)
        return Body(None, size, eight_bit=not is_ascii, head=head), _slices(content)
    if isinstance(content, os.PathLike):
        file = await _opened(content, offload)
        try:
            size = await offload(_size, file)
        except BaseException:  # cancelled
            file.close()
            raise
        return Body(None, size, eight_bit=True), _Reading(file, offload, close=True)
    if hasattr(content, "__aiter__"):
        return Body(None, None, eight_bit=True), _checked(content)
    if hasattr(content, "read") and not hasattr(content, "encoding"):
        return Body(None, await offload(_size, content), eight_bit=True), _Reading(content, offload, close=False)
    raise _not_content(content)


def check_content(content: object) -> None:
    """Raise if content cannot be sent, as `body_of` would.

    Raises:
        TypeError: it is of no kind that can be sent.
    """
    kinds = (str, bytes, bytearray, memoryview, Message, os.PathLike)
    streamed = hasattr(content, "__aiter__") or (hasattr(content, "read") and not hasattr(content, "encoding"))
    if not streamed and not isinstance(content, kinds):
        raise _not_content(content)


def _not_content(content: object) -> TypeError:
    return TypeError(
        "msg must be str, bytes, an EmailMessage, a path, a binary file or an async iterator of bytes,"
        f" not {type(content).__name__}"
    )


async def _opened(path: os.PathLike[str], offload: Offload) -> IO[bytes]:
    files: list[IO[bytes]] = []
    given_up = False

    def work() -> None:
        files.append(open(path, "rb"))  # noqa: SIM115  # closed by _Reading
        if given_up:
            files[0].close()

    try:
        await offload(work)
    except BaseException:
        # Cancelled; the thread goes on, and opens the file all the same.
        given_up = True
        for file in files:
            file.close()
        raise
    return files[0]


def whole(octets: bytes) -> Body:
    """Return the body of a message that is small enough to be held."""
    return Body(octets, wire_size(octets), eight_bit=not octets.isascii())


async def _flattened(message: Message[Any, Any], offload: Offload, *, eight_bit: bool, utf8: bool) -> bytes:
    def flattened() -> bytes:
        return flatten(message, utf8=utf8)

    octets: bytes = await offload(flattened) if weight(message) > PIECE else flattened()
    if not eight_bit and not octets.isascii():
        octets = await offload(lambda: flatten(message, utf8=utf8, seven_bit=True))
    return octets


def _octets(view: memoryview) -> memoryview | bytes:
    """Return a view whose items are octets; if the view has gaps, a copy."""
    return view.cast("B") if view.c_contiguous else view.tobytes()


def _size(file: IO[bytes]) -> int | None:
    """Return how many octets a file has from its position on, with the line end that is added if it has none."""
    raw = getattr(file, "raw", file)
    if isinstance(raw, io.FileIO):  # a GzipFile has a descriptor too, of the compressed file
        with contextlib.suppress(OSError):  # a pipe, say
            whole = os.fstat(raw.fileno()).st_size
            left = whole - file.tell()
            if left > 0:
                last = os.pread(raw.fileno(), 1, whole - 1) if hasattr(os, "pread") else b""  # not on Windows
                return left + line_end(last)
    return None


async def _wire_size(octets: bytes | bytearray | memoryview) -> int:
    """Return how many octets there are with CRLF line ends, without blocking the loop.

    If the first piece has no other line ends, the rest is not looked at: to count takes as long as to send.
    """
    size = 0
    last = b""
    async for piece in _slices(octets):
        if not size and wire_size(piece) == len(piece):
            return len(octets)
        size += wire_size(piece) - 2 * (last == b"\r" and piece[:1] == b"\n")
        last = piece[-1:]
        await asyncio.sleep(0)
    return size


async def _slices(octets: bytes | bytearray | memoryview) -> AsyncGenerator[bytes, None]:
    view = memoryview(octets)
    for start in range(0, len(view), PIECE):
        yield bytes(view[start : start + PIECE])


async def _checked(pieces: AsyncIterable[bytes]) -> AsyncGenerator[bytes, None]:
    try:
        async for piece in pieces:
            if not isinstance(piece, bytes | bytearray | memoryview):
                raise TypeError(f"msg: an async iterator must yield bytes, not {type(piece).__name__}")
            view = _octets(memoryview(piece))
            for start in range(0, len(view), PIECE):
                yield bytes(view[start : start + PIECE])
    finally:
        if isinstance(pieces, AsyncGenerator):  # or it would hold its resources until it is collected
            await pieces.aclose()


class _Reading:
    """The pieces of a file.  A generator will not do: aclose() of one that has not begun does nothing."""

    def __init__(self, file: IO[bytes], offload: Offload, *, close: bool) -> None:
        self._file = file
        self._offload = offload
        self._close = close

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        piece = await self._offload(self._file.read, PIECE)
        if not piece:
            raise StopAsyncIteration
        if not isinstance(piece, bytes | bytearray | memoryview):
            raise TypeError(f"msg: a file must be binary; its read() returned {type(piece).__name__}")
        return bytes(piece)

    async def aclose(self) -> None:
        if self._close:
            self._file.close()
