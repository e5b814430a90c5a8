"""Content of every kind that `sendmail` takes, as a transaction needs it."""

from __future__ import annotations

import asyncio
import gc
import gzip
import io
import mailbox
import os
import pathlib
from collections.abc import AsyncIterator, Callable
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest

from asmtp.client.content import PIECE, WHOLE, body_of, whole
from asmtp.protocol.content import encode_content
from tests.client.contents import KINDS

calls: list[str] = []


async def offload(function: Callable[..., Any], *args: Any) -> Any:
    calls.append(getattr(function, "__name__", "read"))
    return await asyncio.to_thread(function, *args)


async def collected(content: Any, *, eight_bit: bool = True) -> tuple[Any, list[bytes]]:
    """The body, and all its pieces."""
    calls.clear()
    body, pieces = await body_of(content, offload, eight_bit=eight_bit)
    if pieces is None:
        return body, []
    try:
        return body, [piece async for piece in pieces]
    finally:
        await pieces.aclose()


@pytest.mark.parametrize(
    ("octets", "size", "eight_bit"),
    [(b"", 0, False), (b"hi", 2, False), (b"a\r\nb\nc\rd", 10, False), ("ü".encode(), 2, True), (b"\0\x7f", 2, False)],
)
def test_whole(octets: bytes, size: int, eight_bit: bool) -> None:
    body = whole(octets)
    assert (body.data, body.size, body.eight_bit) == (octets, size, eight_bit)


@pytest.mark.parametrize("make", [bytes, bytearray, memoryview, lambda octets: octets.decode("ascii")])
async def test_small_content_is_whole(make: Callable[[bytes], Any]) -> None:
    body, pieces = await collected(make(b"x" * WHOLE))
    assert body.data == b"x" * WHOLE
    assert pieces == []
    assert calls == []


@pytest.mark.parametrize("make", [bytes, bytearray, memoryview, lambda octets: octets.decode("ascii")])
async def test_large_content_is_sliced(make: Callable[[bytes], Any]) -> None:
    octets = b"x" * (2 * PIECE + 1)
    body, pieces = await collected(make(octets))
    assert (body.data, body.size) == (None, len(octets) + 2)  # with the line end that it gets
    assert list(map(len, pieces)) == [PIECE, PIECE, 1]
    assert b"".join(pieces) == octets
    assert (await collected(make(octets + b"\r\n")))[0].size == len(octets) + 2


@pytest.mark.parametrize("make", [bytes, bytearray])
async def test_whether_large_content_is_8_bit(make: Callable[[bytes], Any]) -> None:
    assert not (await collected(make(b"x" * 2 * WHOLE)))[0].eight_bit
    assert (await collected(make(b"x" * 2 * WHOLE + b"\xff")))[0].eight_bit


@pytest.mark.parametrize("kind", KINDS)
async def test_every_kind_comes_out_octet_for_octet(kind: str, tmp_path: Path) -> None:
    content, arrives = KINDS[kind](tmp_path / "message")
    body, pieces = await collected(content)
    octets = b"".join(pieces) if body.data is None else body.data
    assert encode_content(octets, stuff=False) == arrives
    assert body.size is None or abs(body.size - len(arrives)) <= 2  # of a file, line ends are not counted
    assert body.eight_bit or octets.isascii()
    if kind.endswith("file"):
        assert not content.closed  # it is the caller's
        content.close()


async def test_a_view_of_wider_items_is_measured_in_octets() -> None:
    body, pieces = await collected(memoryview(bytes(WHOLE * 4)).cast("I"))
    assert body.size == WHOLE * 4 + 2  # with the line end that it gets
    assert sum(map(len, pieces)) == WHOLE * 4


@pytest.mark.parametrize("step", [2, -1])
async def test_a_view_with_gaps(step: int) -> None:
    octets = bytes(range(128)) * 2000
    for view in (memoryview(octets[:100])[::step], memoryview(octets)[::step]):
        body, pieces = await collected(view)
        assert (body.data or b"".join(pieces)) == view.tobytes()


async def test_a_path_is_opened_and_read_elsewhere_and_closed(tmp_path: Path) -> None:
    path = tmp_path / "message"
    path.write_bytes(b"x" * (PIECE + 5))
    body, pieces = await collected(path)
    assert (body.data, body.size, body.eight_bit) == (None, PIECE + 5 + 2, True)  # with a line end
    assert list(map(len, pieces)) == [PIECE, 5]
    assert len(calls) == 5  # to open and to measure it, and three reads


@pytest.mark.parametrize("calls", [1, 2], ids=["opened", "measured"])
async def test_a_file_is_closed_if_the_caller_goes_when_it_is_open(calls: int, tmp_path: Path) -> None:
    left = [None] * calls

    async def interrupted(function: Callable[..., Any], *args: Any) -> Any:
        result = await asyncio.to_thread(function, *args)
        left.pop()
        if not left:
            raise asyncio.CancelledError
        return result

    (tmp_path / "message").write_bytes(b"hi")
    with pytest.raises(asyncio.CancelledError):
        await body_of(tmp_path / "message", interrupted, eight_bit=True)
    gc.collect()  # a file left open would be a ResourceWarning


async def test_any_path_like_object(tmp_path: Path) -> None:
    class Where(os.PathLike[str]):
        def __fspath__(self) -> str:
            return str(tmp_path / "message")

    (tmp_path / "message").write_bytes(b"hi")
    assert (await collected(Where()))[1] == [b"hi"]
    assert (await collected(pathlib.PurePath(tmp_path / "message")))[1] == [b"hi"]


async def test_a_file_is_measured_from_where_it_stands(tmp_path: Path) -> None:
    path = tmp_path / "message"
    path.write_bytes(b"0123456789")
    with path.open("rb") as file:
        file.seek(4)
        body, pieces = await collected(file)
        assert (body.size, pieces) == (8, [b"456789"])  # with the line end that it gets
        assert not file.closed


@pytest.mark.parametrize(("content", "size"), [(b"hi\r\n", 4), (b"hi\n", 3), (b"hi", 4), (b"", None)])
async def test_the_line_end_that_a_file_gets_counts(content: bytes, size: int | None, tmp_path: Path) -> None:
    (tmp_path / "message").write_bytes(content)
    body, _ = await collected(tmp_path / "message")
    assert body.size == size


async def test_files_whose_size_is_not_known() -> None:
    class Reader:
        def __init__(self) -> None:
            self.left = [b"one", b"two"]

        def read(self, size: int) -> bytes:
            return self.left.pop(0) if self.left else b""

    for file in (io.BytesIO(b"onetwo"), Reader()):
        body, pieces = await collected(file)
        assert body.size is None
        assert b"".join(pieces) == b"onetwo"


async def test_a_pipe_has_no_size() -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as file:
        os.write(writing, b"through a pipe")
        os.close(writing)
        body, pieces = await collected(file)
    assert body.size is None
    assert b"".join(pieces) == b"through a pipe"


async def test_a_compressed_file_has_no_size(tmp_path: Path) -> None:
    """It has a descriptor, but of something else."""
    with gzip.open(tmp_path / "message.gz", "wb") as out:
        out.write(b"x" * 100_000)
    with gzip.open(tmp_path / "message.gz") as file:
        file.seek(50_000)
        body, pieces = await collected(file)
    assert body.size is None
    assert sum(map(len, pieces)) == 50_000


async def test_an_async_iterator_is_cut_into_pieces() -> None:
    async def generator() -> AsyncIterator[Any]:
        yield b"small"
        yield bytearray(PIECE + 1)
        yield memoryview(b"view")
        yield b""

    body, pieces = await collected(generator())
    assert (body.data, body.size, body.eight_bit) == (None, None, True)
    assert list(map(len, pieces)) == [5, PIECE, 1, 4]
    assert all(type(piece) is bytes for piece in pieces)


async def test_an_async_iterator_of_something_else() -> None:
    async def generator() -> AsyncIterator[Any]:
        yield "text"

    with pytest.raises(TypeError, match="must yield bytes, not str"):
        await collected(generator())


async def test_a_file_of_something_else() -> None:
    class Lines:
        def read(self, size: int) -> str:
            return "text"

    with pytest.raises(TypeError, match=r"msg: a file must be binary; its read\(\) returned str"):
        await collected(Lines())


async def test_a_message_object_is_flattened_elsewhere_if_it_is_large() -> None:
    message = EmailMessage()
    message["Subject"] = "hi"
    message.set_content("hello\n")
    body, _ = await collected(message)
    assert body.data is not None
    assert body.data.endswith(b"\r\n\r\nhello\r\n")
    assert calls == []
    message.set_content("line\n" * PIECE)
    body, pieces = await collected(message)
    assert b"".join(pieces).count(b"line\r\n") == PIECE
    assert "flatten" in calls[0]


@pytest.mark.parametrize("eight_bit", [True, False])
async def test_a_message_object_is_8_bit_only_where_it_may_be(eight_bit: bool) -> None:
    message = EmailMessage()
    message.set_content("Grüße\n", cte="8bit")
    body, _ = await collected(message, eight_bit=eight_bit)
    assert body.data is not None
    assert body.data.isascii() != eight_bit
    assert body.eight_bit == eight_bit


async def test_a_message_of_a_mailbox() -> None:
    message = mailbox.mboxMessage()
    message.set_payload("From here\n")
    body, _ = await collected(message)
    assert body.data == b"\r\nFrom here\r\n"


@pytest.mark.parametrize("content", [None, 5, [b"x"], io.StringIO("x"), iter([b"x"]), object()])
async def test_what_cannot_be_sent(content: Any) -> None:
    with pytest.raises(TypeError, match=f"not {type(content).__name__}$"):
        await collected(content)
