"""From content to octets on the wire: line ends and dot-stuffing."""

from __future__ import annotations

__all__ = ["AsItIs", "ContentEncoder", "encode_content", "line_end", "to_octets", "wire_size"]


class ContentEncoder:
    """Encodes content for the wire, chunk by chunk, wherever the borders of the chunks fall.

    Every line end becomes CRLF, and the content ends with one.  RFC 5321 §2.3.8: clients "MUST NOT" send a CR or LF on
    its own.  So a server that takes a lone LF for a line end cannot find the end of the content in the middle of it.

    Args:
        stuff: double every leading dot (RFC 5321 §4.5.2), as DATA needs it, and BDAT must not have it.
    """

    __slots__ = ("_line_start", "_pending_cr", "stuff")

    def __init__(self, *, stuff: bool) -> None:
        self.stuff = stuff
        self._pending_cr = False  # the last octet was a CR, whose LF may come with the next chunk
        self._line_start = True

    def encode(self, chunk: bytes) -> bytes:
        """Return the next octets of the content as they are written."""
        if self._pending_cr:
            chunk = b"\r" + chunk
        self._pending_cr = chunk.endswith(b"\r")
        if self._pending_cr:
            chunk = chunk[:-1]
        if not chunk:
            return b""
        pairs = chunk.count(b"\r\n")
        if chunk.count(b"\n") != pairs or chunk.count(b"\r") != pairs:
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n", b"\r\n")
        if self.stuff:
            if b"\n." in chunk:
                chunk = chunk.replace(b"\n.", b"\n..")
            if self._line_start and chunk[0] == 0x2E:
                chunk = b"." + chunk
        self._line_start = chunk.endswith(b"\n")
        return chunk

    def finish(self) -> bytes:
        """Return the octets that are missing at the end of the content: none, or a CRLF."""
        if self._pending_cr or not self._line_start:
            self._pending_cr = False
            self._line_start = True
            return b"\r\n"
        return b""


class AsItIs:
    """Stands in for a ContentEncoder if the content is not text, and goes as it is (BINARYMIME, RFC 3030 §3)."""

    def encode(self, chunk: bytes) -> bytes:
        """Return the chunk as it is."""
        return chunk

    def finish(self) -> bytes:
        """Return nothing, as nothing is missing at the end."""
        return b""


def encode_content(content: bytes, *, stuff: bool, size: int | None = None) -> bytes:
    """Return a whole content as it is written.

    Args:
        stuff: double every leading dot.
        size: the :func:`wire_size` of the content, if that is known.
    """
    if size == len(content) and not (stuff and (content.startswith(b".") or b"\n." in content)):
        return content if content.endswith(b"\n") or not content else content + b"\r\n"
    encoder = ContentEncoder(stuff=stuff)
    encoded = encoder.encode(content)
    end = encoder.finish()
    return encoded + end if end else encoded


def wire_size(chunk: bytes) -> int:
    """Return the octets that a chunk has with CRLF line ends, for SIZE (RFC 1870 §5: without stuffed dots)."""
    pairs = chunk.count(b"\r\n")
    return len(chunk) + chunk.count(b"\n") + chunk.count(b"\r") - 2 * pairs


def line_end(content: bytes | bytearray | memoryview) -> int:
    """Return how many octets content gets at its end, if it does not end with a line end."""
    return 0 if content[-1:] in (b"", b"\r", b"\n") else 2


def to_octets(content: str | bytes | bytearray | memoryview) -> bytes:
    """Return a str or a buffer as bytes.

    Raises:
        UnicodeEncodeError: a str has characters outside ASCII.  Only its author knows the charset that its header
            fields declare.
    """
    if isinstance(content, str):
        return content.encode("ascii")
    return content if type(content) is bytes else bytes(content)
