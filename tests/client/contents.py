"""Every kind of content that a caller may give, and the octets that arrive."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Callable
from email.message import EmailMessage
from pathlib import Path
from typing import Any

from asmtp.client.content import PIECE, WHOLE
from asmtp.protocol.message import flatten
from tests.fakes.people import SENDER, WHO

__all__ = ["KINDS", "LARGE", "LARGE_SENT", "ROUTES", "SMALL", "SMALL_SENT", "email", "pieces"]

SMALL = b"Subject: hi\r\n\r\n.\r\n..\r\n.dot\r\nlone\nand\rends\r\n\r\n.\r\nlast"
SMALL_SENT = b"Subject: hi\r\n\r\n.\r\n..\r\n.dot\r\nlone\r\nand\r\nends\r\n\r\n.\r\nlast\r\n"
LARGE = (b"Subject: hi\r\n\r\n" + b".line\r\n" * 100_000)[:-1]
LARGE_SENT = LARGE + b"\n"

LINE = "hello, hello\n"


async def pieces(octets: bytes, size: int = 1000) -> AsyncIterator[bytes]:
    """Yield the octets, `size` at a time, and then nothing, once."""
    for start in range(0, len(octets), size):
        yield octets[start : start + size]
    yield b""


def email(text: str, **fields: str) -> EmailMessage:
    """Return a message of SENDER's to WHO."""
    made = EmailMessage()
    made["From"], made["To"] = SENDER, WHO
    for name, value in fields.items():
        made[name] = value
    made.set_content(text, cte="8bit" if not text.isascii() else None)
    return made


def _file(path: Path, octets: bytes, **options: Any) -> Any:
    path.write_bytes(octets)
    return path.open("rb", **options)


def _path(path: Path, octets: bytes) -> Path:
    path.write_bytes(octets)
    return path


_OF_OCTETS: dict[str, Callable[[Path, bytes], Any]] = {
    "str": lambda path, octets: octets.decode("ascii"),
    "bytes": lambda path, octets: octets,
    "bytearray": lambda path, octets: bytearray(octets),
    "memoryview": lambda path, octets: memoryview(octets),
    "path": _path,
    "binary file": _file,
    "unbuffered file": lambda path, octets: _file(path, octets, buffering=0),
    "BytesIO": lambda path, octets: io.BytesIO(octets),
    "async generator": lambda path, octets: pieces(octets),
    "async generator of octets": lambda path, octets: pieces(octets, 1 if len(octets) < 1000 else 100_000),
}
_MESSAGES = {
    "message": "hello\n",
    "message that grows": "\n" * (WHOLE - 10),  # light enough to be worked on at once, and too large then
    "large message": LINE * (WHOLE // len(LINE) + 1),
    "huge message": LINE * (PIECE // len(LINE) + 1),
    "message with 8 bits": "gr\u00fc\u00dfe\n",
}


def _kind(make: Callable[[Path, bytes], Any], octets: bytes, arrives: bytes) -> Callable[[Path], tuple[Any, bytes]]:
    return lambda path: (make(path, octets), arrives)


def _message(text: str) -> Callable[[Path], tuple[Any, bytes]]:
    return lambda path: (made := email(text), flatten(made))


KINDS: dict[str, Callable[[Path], tuple[Any, bytes]]] = {
    **{f"small {name}": _kind(make, SMALL, SMALL_SENT) for name, make in _OF_OCTETS.items()},
    **{f"large {name}": _kind(make, LARGE, LARGE_SENT) for name, make in _OF_OCTETS.items()},
    "just small enough bytes": lambda path: (b"x" * WHOLE, b"x" * WHOLE + b"\r\n"),
    "just too large bytes": lambda path: (b"x" * (WHOLE + 1), b"x" * (WHOLE + 1) + b"\r\n"),
    **{name: _message(text) for name, text in _MESSAGES.items()},
}
"""Functions of a path that may be written to, by kind: what is given, and the octets that arrive."""

ROUTES = ["small bytes", "large bytes", "large path", "small async generator", "huge message"]
"""Kinds that stand for the ways from content to the wire.

They are: at once, sliced, read elsewhere, of unknown size, and flattened elsewhere.  All kinds are tried in
tests/client/test_content.py; whoever sends content tries these.
"""
