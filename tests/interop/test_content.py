"""Content arrives byte for byte: in every shape, at every server, whatever it holds and however it is given."""

from __future__ import annotations

import io
import uuid
from typing import TYPE_CHECKING, Any

import pytest

from tests.interop.mail import ALICE, BOB, FIELD, Letter, as_stored, connected
from tests.interop.servers import DOMAIN

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.interop.servers import MailServer

SMUGGLED = b"MAIL FROM:<smuggler@example.org>\r\nRCPT TO:<bob@lab.test>\r\nDATA\r\n"

BODIES = {
    "header only": b"",
    "empty body": b"\r\n",
    "no final newline": b"\r\nabc",
    "ends with CR": b"\r\nabc\r",
    "ends with a dot": b"\r\nabc\r\n.",
    "dots": b"\r\n.\r\n..\r\n.x\r\n...\r\n",
    "empty lines": b"\r\n\r\n\r\n\r\n",
    "blanks": b"\r\na \t \r\n \r\n\t\r\n",
    "lone CR": b"\r\na\rb\rc\r\n",
    "lone LF": b"\na\nb\n",
    "LF dot LF": b"\r\na\n.\n" + SMUGGLED,
    "LF dot CRLF": b"\r\na\n.\r\n" + SMUGGLED,
    "CR dot CRLF": b"\r\na\r.\r\n" + SMUGGLED,
    "CR dot CR": b"\r\na\r.\r" + SMUGGLED,
    "CRLF dot LF": b"\r\na\r\n.\n" + SMUGGLED,
    "CRLF dot CR": b"\r\na\r\n.\r" + SMUGGLED,
    "CRLF dot CRLF": b"\r\na\r\n.\r\n" + SMUGGLED,
    "CR CRLF": b"\r\na\r\r\n.\r\r\n\n\r\n" + SMUGGLED,
    "like BDAT": b"\r\nBDAT 5 LAST\r\nRSET\r\nQUIT\r\n",
    "From": b"\r\nFrom me\r\n>From you\r\n",
    "every octet": b"\r\n" + bytes(range(256)) + b"\r\n",
    "long lines": b"\r\n" + b"x" * 998 + b"\r\n" + b"y" * 5_000 + b"\r\n." + b"z" * 70_000 + b"\r\n",
    "larger than one write": b"\r\n" + b".0123456789abcdef\r\n" * 20_000,
}
AWKWARD = b"".join(BODIES.values()) + b"\r"


async def test_bodies(mail_server: MailServer, shape: str) -> None:
    letters = {name: Letter(body) for name, body in BODIES.items()}
    written: list[bytes] = []
    async with connected(mail_server, shape) as client:
        await client.ehlo_or_helo_if_needed()
        client.trace = lambda direction, data: written.append(data.partition(b"From:")[0]) if direction == ">" else None
        for letter in letters.values():
            assert await client.sendmail(letter.sender, [ALICE], letter.content) == {}
    assert any(b"BDAT " in each[-20:] for each in written) == shape.startswith("bdat")
    assert any(each.endswith(b"data\r\n") for each in written) == shape.startswith("data")
    assert any(b"\r\nrcpt to:" in each for each in written) == shape.endswith("pipelined")
    for name, letter in letters.items():
        if mail_server.name == "exim" and name == "header only":
            letter.body = b"\r\n"
        await letter.found(mail_server)


HEADERLESS = [b"", b".", b"\r\n", b"\n", b".\r\n.\r\n", b"no header\r\n", b"\xff\r"]


async def test_no_header(mail_server: MailServer, shape: str) -> None:
    # All there is to find them by.
    senders = {f"{uuid.uuid4().hex}@{DOMAIN}": content for content in HEADERLESS}
    async with connected(mail_server, shape) as client:
        for sender, content in senders.items():
            assert await client.sendmail(sender, [BOB], content) == {}
    for sender, content in senders.items():
        (stored,) = await mail_server.arrived("bob", containing=sender.encode())
        header = b"".join(match[0] for match in FIELD.finditer(stored))
        assert stored.startswith(header)
        assert stored.removeprefix(header).lstrip(b"\n") == as_stored(content).lstrip(b"\n")


async def in_pieces(content: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(content), size):
        yield content[start : start + size]


@pytest.mark.parametrize("size", [1, 7, 1000])
async def test_streamed(mail_server: MailServer, shape: str, size: int) -> None:
    """Borders between pieces fall within every line end and before every dot."""
    end = len(AWKWARD) if size == 1000 else 3000
    letter = Letter(AWKWARD[:end])
    async with connected(mail_server, shape) as client:
        assert await client.sendmail(letter.sender, [ALICE], in_pieces(letter.content, size)) == {}
        after = Letter()
        assert await client.sendmail(after.sender, [BOB], after.content) == {}
    await letter.found(mail_server)
    await after.found(mail_server, "bob")


@pytest.mark.parametrize("kind", ["str", "bytearray", "memoryview", "file", "path"])
async def test_kinds(mail_server: MailServer, kind: str, tmp_path: Path) -> None:
    letter = Letter(b"\r\nas a\r\n.\r\n" + kind.encode())
    path = tmp_path / "letter.eml"
    path.write_bytes(letter.content)
    kinds: dict[str, Any] = {
        "str": letter.content.decode("ascii"),
        "bytearray": bytearray(letter.content),
        "memoryview": memoryview(letter.content),
        "file": io.BytesIO(letter.content),
        "path": path,
    }
    async with connected(mail_server) as client:
        assert await client.sendmail(letter.sender, [ALICE], kinds[kind]) == {}
    await letter.found(mail_server)


@pytest.mark.parametrize("chunking", [True, False])
async def test_large_file(mail_server: MailServer, chunking: bool, tmp_path: Path) -> None:
    """30 MB, with line ends that change in length on their way."""
    line = bytes(range(32, 127)) + b"\n.\r" + bytes(range(128, 256)) + b"\r\n"
    letter = Letter(b"\n" + line * (30_000_000 // len(line)))
    path = tmp_path / "letter.eml"
    path.write_bytes(letter.content)
    async with connected(mail_server, chunking=chunking) as client:
        assert await client.sendmail(letter.sender, [ALICE], path) == {}
        assert (await client.noop()).code == 250
    await letter.found(mail_server, timeout=30)
