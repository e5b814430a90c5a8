"""Content on the wire: what comes out at the other end is what went in, however it was cut."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given, settings, strategies as st

from asmtp.protocol.content import AsItIs, ContentEncoder, encode_content, line_end, to_octets, wire_size

CONTENT = st.one_of(
    st.binary(max_size=60),
    st.lists(st.sampled_from([b"\r", b"\n", b".", b"\r\n", b"\r\n.", b"\r\n.\r\n", b"a"]), max_size=20).map(b"".join),
)


def normalised(content: bytes) -> bytes:
    """Return the content with CRLF for every line end (CRLF, or a CR or LF on its own), and one CRLF at the end."""
    text = re.sub(rb"\r\n|\r|\n", b"\r\n", content)
    return text if text.endswith(b"\r\n") or not text else text + b"\r\n"


def unstuffed(wire: bytes) -> bytes:
    """Return the content that a server makes of the lines of DATA (RFC 5321 §4.5.2)."""
    assert wire.endswith(b"\r\n") or not wire
    lines = wire.split(b"\r\n")
    return b"\r\n".join([line[1:] if line.startswith(b".") else line for line in lines])


def encoded(pieces: list[bytes], *, stuff: bool) -> bytes:
    encoder = ContentEncoder(stuff=stuff)
    return b"".join([encoder.encode(piece) for piece in pieces]) + encoder.finish()


@pytest.mark.parametrize(
    ("content", "stuffed", "plain"),
    [
        (b"", b"", b""),
        (b"Hi", b"Hi\r\n", b"Hi\r\n"),
        (b"Hi\r\n", b"Hi\r\n", b"Hi\r\n"),
        (b"a\nb\rc\r\nd", b"a\r\nb\r\nc\r\nd\r\n", b"a\r\nb\r\nc\r\nd\r\n"),
        (b"\r", b"\r\n", b"\r\n"),
        (b"\n\r", b"\r\n\r\n", b"\r\n\r\n"),
        (b"\r\r\n", b"\r\n\r\n", b"\r\n\r\n"),
        (b".", b"..\r\n", b".\r\n"),
        (b".\r\n", b"..\r\n", b".\r\n"),
        (b"..", b"...\r\n", b"..\r\n"),
        (b"a\r\n.\r\nb", b"a\r\n..\r\nb\r\n", b"a\r\n.\r\nb\r\n"),
        (b"a\n.\nb", b"a\r\n..\r\nb\r\n", b"a\r\n.\r\nb\r\n"),
        (b"a\r.\rb", b"a\r\n..\r\nb\r\n", b"a\r\n.\r\nb\r\n"),
        (b"a\r\n.", b"a\r\n..\r\n", b"a\r\n.\r\n"),
        (b"a.\r\n", b"a.\r\n", b"a.\r\n"),
        (b"\x00\xff", b"\x00\xff\r\n", b"\x00\xff\r\n"),
    ],
)
def test_encoded(content: bytes, stuffed: bytes, plain: bytes) -> None:
    for stuff, expected in ((True, stuffed), (False, plain)):
        assert encode_content(content, stuff=stuff) == expected
        assert encode_content(content, stuff=stuff, size=wire_size(content)) == expected
        for at in range(len(content) + 1):
            assert encoded([content[:at], b"", content[at:]], stuff=stuff) == expected
        assert encoded([content[at : at + 1] for at in range(len(content))], stuff=stuff) == expected


@given(CONTENT, st.lists(st.integers(0, 60), max_size=6))
@example(b"\r\n.\r\n", [1, 2, 3, 4])
@settings(max_examples=500)
def test_what_goes_in_comes_out(content: bytes, cuts: list[int]) -> None:
    places = sorted({0, len(content), *(min(cut, len(content)) for cut in cuts)})
    pieces = [content[first:last] for first, last in zip(places, places[1:], strict=False)]
    stuffed = encoded(pieces, stuff=True)
    assert (
        stuffed == encode_content(content, stuff=True) == encode_content(content, stuff=True, size=wire_size(content))
    )
    assert unstuffed(stuffed) == normalised(content)
    # Nothing in it is taken for its end, by servers that take other line ends either.
    behind_data = b"\r\n" + stuffed + b".\r\n"
    assert behind_data.index(b"\r\n.\r\n") == len(behind_data) - 5
    assert not re.search(rb"[\r\n]\.[\r\n]", behind_data[:-4])
    assert not re.search(rb"\r(?!\n)|(?<!\r)\n", stuffed)


@given(CONTENT, st.lists(st.integers(0, 60), max_size=6))
@settings(max_examples=300)
def test_chunks_are_the_content(content: bytes, cuts: list[int]) -> None:
    places = sorted({0, len(content), *(min(cut, len(content)) for cut in cuts)})
    pieces = [content[first:last] for first, last in zip(places, places[1:], strict=False)]
    plain = encoded(pieces, stuff=False)
    assert plain == encode_content(content, stuff=False) == normalised(content)
    assert encode_content(content, stuff=False, size=wire_size(content)) == plain


@given(CONTENT)
@settings(max_examples=200)
def test_wire_size(content: bytes) -> None:
    """The size does not count the CRLF that is added at the end."""
    assert wire_size(content) == len(re.sub(rb"\r\n|\r|\n", b"\r\n", content))


@pytest.mark.parametrize(
    ("content", "size"), [(b"", 0), (b"a", 1), (b"\r\n", 2), (b"\n", 2), (b"\r", 2), (b"\r\r\n\n", 6), (b"\n\r", 4)]
)
def test_wire_size_of(content: bytes, size: int) -> None:
    assert wire_size(content) == size


def test_nothing_is_copied_that_is_right_already() -> None:
    content = b"Subject: hi\r\n\r\nhello\r\n"
    for stuff in (True, False):
        assert encode_content(content, stuff=stuff, size=wire_size(content)) is content


def test_finish_says_it_once() -> None:
    encoder = ContentEncoder(stuff=True)
    assert encoder.encode(b"a\r") == b"a"
    assert encoder.finish() == b"\r\n"
    assert encoder.finish() == b""


def test_to_octets() -> None:
    octets = b"abc"
    assert to_octets(octets) is octets
    assert to_octets("abc") == b"abc"
    assert to_octets(bytearray(b"abc")) == b"abc"
    assert to_octets(memoryview(b"abcd")[1:]) == b"bcd"
    assert type(to_octets(bytearray(b"abc"))) is bytes
    with pytest.raises(UnicodeEncodeError):
        to_octets("abcü")


@given(CONTENT)
def test_binary_content_is_not_touched(content: bytes) -> None:
    encoder = AsItIs()
    assert encoder.encode(content) + encoder.finish() == content


@given(CONTENT)
def test_the_line_end_that_is_added(content: bytes) -> None:
    wire = encode_content(content, stuff=False)
    assert len(wire) == wire_size(content) + line_end(content)
