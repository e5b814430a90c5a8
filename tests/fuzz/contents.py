"""The content encoder, against receivers that read as RFC 5321 says, and as some servers do."""

from __future__ import annotations

from asmtp.protocol.content import ContentEncoder, encode_content, wire_size
from tests.fuzz.data import FuzzedData

__all__ = ["TOKENS", "canonical", "content", "received"]

TOKENS = [b".", b"\r", b"\n", b"\r\n", b"\r\n.\r\n", b"\n.\n", b"\r.\r", b"..", b"a", b"QUIT\r\n", b"x" * 20, b""]


def canonical(data: bytes) -> bytes:
    """Return what the receiver shall have: each CRLF, CR and LF is a line end, and the last line has one."""
    out = bytearray()
    place = 0
    while place < len(data):
        octet = data[place]
        if octet in b"\r\n":
            place += data[place : place + 2] == b"\r\n"
            out += b"\r\n"
        else:
            out.append(octet)
        place += 1
    if out and not out.endswith(b"\n"):
        out += b"\r\n"
    return bytes(out)


def received(stream: bytes, ends: tuple[bytes, ...]) -> tuple[bytes, bytes]:
    """Return what a server makes of DATA's octets, and what it takes for the next command.

    Args:
        ends: what it takes for a line end; RFC 5321 §2.3.8 has CRLF and nothing else.
    """
    out = bytearray()
    place = 0
    while True:
        found = [(at, -len(end), end) for end in ends if (at := stream.find(end, place)) >= 0]
        assert found, "the content never ends"
        at, _, end = min(found)
        line = stream[place:at]
        place = at + len(end)
        if line == b".":
            return bytes(out), stream[place:]
        out += line.removeprefix(b".") + b"\r\n"


def content(data: FuzzedData) -> None:
    """The content encoder: any octets, any chunks; strict and lenient receivers get what was meant."""
    octets = data.blob(TOKENS, 40)
    pieces = data.pieces(octets)
    expected = canonical(octets)
    for stuff in (True, False):
        encoder = ContentEncoder(stuff=stuff)
        encoded = b"".join([encoder.encode(piece) for piece in pieces]) + encoder.finish()
        assert encoder.finish() == b"", "the end comes twice"
        for size in (None, wire_size(octets)):
            assert encode_content(octets, stuff=stuff, size=size) == encoded, f"{pieces}: {encoded!r}"
        if not stuff:
            assert encoded == expected, f"{pieces}: {encoded!r}, not {expected!r}"
            assert 0 <= len(encoded) - wire_size(octets) <= 2, f"{wire_size(octets)}, not {len(encoded)}"
            continue
        for ends in ((b"\r\n",), (b"\r\n", b"\n"), (b"\r\n", b"\n", b"\r")):
            got, rest = received(encoded + b".\r\nNOOP\r\n", ends)
            assert rest == b"NOOP\r\n", f"{pieces} goes on as {rest!r}"
            assert got == expected, f"{pieces}: {got!r}, not {expected!r}"
