"""Replies out of bytes that come split anywhere; limits at m-1, m and m+1."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given, settings, strategies as st

from asmtp.errors import SMTPProtocolError
from asmtp.protocol.reply import _SEEN, MAX_KEPT, MAX_LINE, MAX_REPLY, SHORT, Reply, ReplyReader, is_leaving, printable


def read(data: bytes, **limits: Any) -> tuple[list[Reply], SMTPProtocolError | None]:
    """Return the replies in bytes that are fed whole, and check that the same come however the bytes are split."""
    reader = ReplyReader(**limits)
    result = reader.feed(data), reader.error
    for at in range(1, min(len(data), 300)):
        assert described(*read_pieces([data[:at], data[at:]], **limits)) == described(*result), at
    assert described(*read_pieces([data[at : at + 1] for at in range(len(data))], **limits)) == described(*result)
    return result


def read_pieces(pieces: list[bytes], **limits: Any) -> tuple[list[Reply], SMTPProtocolError | None]:
    reader = ReplyReader(**limits)
    replies = [reply for piece in pieces for reply in reader.feed(piece)]
    return replies, reader.error


def described(replies: list[Reply], error: SMTPProtocolError | None) -> tuple[list[Reply], tuple[object, ...] | None]:
    return replies, None if error is None else error.args


@pytest.mark.parametrize(
    ("data", "replies"),
    [
        (b"250 ok\r\n", [(250, b"ok")]),
        (b"250 ok\n", [(250, b"ok")]),
        (b"250\r\n", [(250, b"")]),
        (b"250\n", [(250, b"")]),
        (b"250 \r\n", [(250, b"")]),
        (b"250 \t ok \t\r\n", [(250, b"ok")]),
        (b"250 \xff\xfe\x00\r\n", [(250, b"\xff\xfe\x00")]),
        (b"250 one\rtwo\r\n", [(250, b"one\rtwo")]),
        (b"250-one\r\n250 two\r\n", [(250, b"one\ntwo")]),
        (b"250-one\n250-\n250\n", [(250, b"one\n\n")]),
        (b"250--\r\n250 -\r\n", [(250, b"-\n-")]),
        (b"250 a\r\n550 b\r\n354\r\n", [(250, b"a"), (550, b"b"), (354, b"")]),
        (b"250-a\r\n252-b\r\n251 c\r\n250 d\r\n", [(251, b"a\nb\nc"), (250, b"d")]),
        (b"550-a\r\n554 b\r\n", [(554, b"a\nb")]),
        (b"250-a\r\n250 b\r\n250 a\r\n", [(250, b"a\nb"), (250, b"a")]),
        (b"250 a\r\n250-a\r\n250 a\r\n", [(250, b"a"), (250, b"a\na")]),
        (b"100 low\r\n599 high\r\n", [(100, b"low"), (599, b"high")]),
        (b"", []),
        (b"250 unfinished", []),
        (b"250-unfinished\r\n", []),
    ],
)
def test_legal(data: bytes, replies: list[Reply]) -> None:
    assert read(data) == (replies, None)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"hello\r\n", b"not a reply: 'hello\\r'"),
        (b"\r\n", b"not a reply: '\\r'"),
        (b"\n", b"not a reply: ''"),
        (b"25 ok\r\n", b"not a reply: '25 ok\\r'"),
        (b"2500 ok\r\n", b"not a reply: '2500 ok\\r'"),
        (b"250ok\r\n", b"not a reply: '250ok\\r'"),
        (b"250\tok\r\n", b"not a reply: '250\\tok\\r'"),
        (b"250\rok\r\n", b"not a reply: '250\\rok\\r'"),
        (b"099 ok\r\n", b"not a reply: '099 ok\\r'"),
        (b"600 ok\r\n", b"not a reply: '600 ok\\r'"),
        (b" 250 ok\r\n", b"not a reply: ' 250 ok\\r'"),
        (b"+50 ok\r\n", b"not a reply: '+50 ok\\r'"),
        ("２５０ ok\r\n".encode(), b"not a reply: '\\xef\\xbc\\x92\\xef\\xbc\\x95\\xef\\xbc\\x90 ok\\r'"),
        (b"250-a\r\n251-b\r\n450 c\r\n", b"reply code changed from 251 within a reply: '450 c\\r'"),
        (b"250-a\r\n550 b\r\n", b"reply code changed from 250 within a reply: '550 b\\r'"),
        (b"250-a\r\nhello\r\n", b"not a reply: 'hello\\r'"),
    ],
)
def test_illegal(data: bytes, why: bytes) -> None:
    replies, error = read(b"220 before\r\n" + data + b"250 behind\r\n")
    assert replies == [(220, b"before")]
    assert error is not None
    assert error.smtp_code == -1
    assert error.smtp_error == why


def test_an_error_is_for_good() -> None:
    reader = ReplyReader()
    assert reader.feed(b"250-a\r\nwhat\r\n") == []
    error = reader.error
    assert reader.feed(b"250 b\r\n") == []
    assert reader.error is error
    assert reader.pending == b""


@pytest.mark.parametrize(
    ("reply", "leaving"),
    [
        (Reply(421, b"4.3.2 bye"), True),
        (Reply(554, b"Too many nonmail commands"), True),
        (Reply(503, b"valid RCPT command must precede BDAT\nToo many syntax or protocol errors"), True),
        (Reply(500, b"5.5.1 Too many errors. Quiting now"), True),
        (Reply(502, b"5.5.1 Too many unrecognized commands, goodbye."), True),
        (Reply(450, b"4.7.1 too many errors"), False),
        (Reply(250, b"too many errors"), False),
        (Reply(552, b"5.5.3 too many recipients"), False),
        (Reply(550, b"5.7.1 Too many connections"), False),
        (Reply(554, b"5.6.0 Too many MIME errors"), False),
        (Reply(503, b"5.5.1 nested MAIL command"), False),
    ],
)
def test_a_server_that_says_that_it_closes(reply: Reply, leaving: bool) -> None:
    assert is_leaving(reply) is leaving
    reader = ReplyReader()
    assert reader.feed(b"".join(b"%d-%s\r\n" % (reply.code, line) for line in reply.message.split(b"\n"))) == []
    reader.feed(b"%d %s\r\n" % (reply.code, reply.message.split(b"\n")[-1]))
    assert reader.closing is leaving


def test_421_is_marked() -> None:
    reader = ReplyReader()
    reader.feed(b"250 421\r\n")
    assert not reader.closing
    reader.feed(b"421-by\r\n451 but not yet\r\n")
    assert not reader.closing
    reader.feed(b"421-by\r\n421 e\r\n")
    assert reader.closing


def test_pending() -> None:
    reader = ReplyReader()
    assert reader.pending == b""
    reader.feed(b"25")
    assert reader.pending == b"25"
    reader.feed(b"0-a\r\n250-b\r\n250")
    assert reader.pending == b"250-a\n250-b\n250"
    assert reader.feed(b" c\r\n") == [(250, b"a\nb\nc")]
    assert reader.pending == b""


# ---- limits ----------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [MAX_LINE, 100, 20])
@pytest.mark.parametrize("end", [b"\r\n", b"\n"])
@pytest.mark.parametrize("mark", [b" ", b"-"])
def test_line_limit(limit: int, end: bytes, mark: bytes) -> None:
    """The limit includes the line end: m-1 and m octets pass, m+1 do not."""
    for length, legal in ((limit - 1, True), (limit, True), (limit + 1, False)):
        line = (b"250" + mark).ljust(length - len(end), b"x") + end
        assert len(line) == length
        data = line if mark == b" " else line + b"250 end\r\n"
        for pieces in ([data], [data[:5], data[5:]], [data[at : at + 1] for at in range(len(data))]):
            replies, error = read_pieces(pieces, max_line=limit)
            assert len(replies) == legal, length
            if not legal:
                assert error is not None
                assert error.smtp_code == 500
                assert isinstance(error.smtp_error, bytes)
                assert error.smtp_error.startswith(b"reply line too long: '250")
                assert len(error.smtp_error) < 300


def test_the_default_limits() -> None:
    assert (MAX_LINE, MAX_REPLY) == (8192, 65536)


def test_a_line_without_an_end_is_stopped_at_the_limit() -> None:
    for length, legal in ((MAX_LINE - 1, True), (MAX_LINE, False), (10 * MAX_LINE, False)):
        for data in (b"250 ".ljust(length, b"x"), b"nonsense".ljust(length, b"x")):
            replies, error = read_pieces([data])
            assert replies == []
            assert (error is None) is legal
            assert error is None or error.smtp_code == 500


def test_a_line_seen_before_is_under_the_limit_of_this_reader() -> None:
    line = b"250 a line that is seen by one reader first\r\n"
    assert ReplyReader().feed(line)
    replies, error = read_pieces([line], max_line=20)
    assert replies == []
    assert error is not None


@pytest.mark.parametrize("limit", [MAX_REPLY, 500])
def test_reply_limit(limit: int) -> None:
    """The limit includes all lines with their ends: m-1 and m octets pass, m+1 do not."""
    for length, legal in ((limit - 1, True), (limit, True), (limit + 1, False)):
        lines = [b"250-".ljust(98, b"x") + b"\r\n"] * (length // 100 - 1)
        last = length - 100 * len(lines)
        data = b"".join(lines) + b"250 ".ljust(last - 2, b"y") + b"\r\n"
        assert len(data) == length
        for pieces in ([data], [data[at : at + 7] for at in range(0, len(data), 7)]):
            replies, error = read_pieces(pieces, max_reply=limit)
            assert len(replies) == legal
            if not legal:
                assert error is not None
                assert error.smtp_code == 500
                assert isinstance(error.smtp_error, bytes)
                assert error.smtp_error.startswith(b"reply too long: '250 yy")


def test_reply_limit_is_for_each_reply() -> None:
    data = (b"250-" + b"x" * 94 + b"\r\n") * 4 + b"250 y\r\n"
    replies, error = read_pieces([data * 3], max_reply=500)
    assert len(replies) == 3
    assert error is None


@pytest.mark.parametrize("lines", [1, 10], ids=["one line", "ten lines"])
def test_replies_of_one_transaction_are_bounded_together(lines: int) -> None:
    reader = ReplyReader()
    line = b"x" * 6000
    data = (b"250-" + line + b"\r\n") * (lines - 1) + b"250 " + line + b"\r\n"
    fit = MAX_KEPT // len(b"\n".join([line] * lines))
    replies = [reply for _ in range(fit + 3) for reply in reader.feed(data)]
    whole = b"\n".join([line] * lines)
    assert [reply.message for reply in replies] == [whole] * fit + [whole[:SHORT]] * 3
    reader.kept = 0
    assert reader.feed(data) == [(250, whole)]
    assert reader.error is None


def test_a_reply_without_end_is_stopped_at_the_limit() -> None:
    replies, error = read_pieces([b"250-x\r\n"] * 20000)
    assert replies == []
    assert error is not None
    assert error.smtp_code == 500


class Scanned(bytes):
    """Counts the octets that are searched for line ends."""

    scanned = 0

    def split(self, *args: object) -> list[bytes]:
        Scanned.scanned += len(self)
        return super().split(*args)  # type: ignore[arg-type]


def test_a_line_that_drips_in_is_not_quadratic() -> None:
    """Each octet is searched for a line end once, and once more when the line is taken apart."""
    line = b"250 " + b"x" * 8000 + b"\r\n"
    Scanned.scanned = 0
    reader = ReplyReader()
    replies = [reply for at in range(len(line)) for reply in reader.feed(Scanned(line[at : at + 1]))]
    assert len(replies) == 1
    assert Scanned.scanned == len(line)


# ---- any bytes -------------------------------------------------------------------------------

LINES = st.one_of(
    st.binary(max_size=30),
    st.builds(
        lambda code, mark, text, end: code + mark + text + end,
        st.sampled_from([b"250", b"550", b"421", b"25", b"999"]),
        st.sampled_from([b" ", b"-", b"", b"\r", b"\t"]),
        st.binary(max_size=12),
        st.sampled_from([b"\r\n", b"\n", b"\r", b""]),
    ),
)


@given(st.lists(LINES, max_size=12).map(b"".join), st.lists(st.integers(1, 20), max_size=20), st.integers(8, 60))
@example(b"250 ok\r\n", [1], 8)
@settings(max_examples=300)
def test_any_bytes_in_any_pieces(data: bytes, sizes: list[int], limit: int) -> None:
    """The reader returns replies, or has one error that stays; it does not matter where the pieces end."""
    pieces, rest = [], data
    for size in sizes:
        pieces.append(rest[:size])
        rest = rest[size:]
    whole = read_pieces([data], max_line=limit, max_reply=3 * limit)
    assert described(*read_pieces([*pieces, rest], max_line=limit, max_reply=3 * limit)) == described(*whole)
    replies, error = whole
    for reply in replies:
        assert type(reply) is Reply
        assert 100 <= reply.code <= 599
    assert error is None or (type(error) is SMTPProtocolError and error.smtp_code in (-1, 500))


# ---- a reply ---------------------------------------------------------------------------------


def test_reply_is_smtplibs_tuple() -> None:
    code, message = Reply(250, b"ok")
    assert (code, message) == (250, b"ok")
    assert Reply(250, b"ok") == (250, b"ok")


@pytest.mark.parametrize(("code", "ok"), [(199, False), (200, True), (299, True), (300, False), (354, False)])
def test_ok(code: int, ok: bool) -> None:
    assert Reply(code, b"").ok is ok


def test_text_for_people() -> None:
    assert Reply(250, "grüß Gott".encode()).text == "grüß Gott"
    assert Reply(250, b"gr\xfc\xdf").text == "gr\\xfc\\xdf"
    assert Reply(550, b"no\nnever").text == "no\nnever"
    assert str(Reply(550, b"no\nnever")) == "550 no never"


def test_printable() -> None:
    assert printable(b"a\r\n\xff\x1b") == "'a\\r\\n\\xff\\x1b'"
    assert printable(b"x" * 120) == "'" + "x" * 120 + "'"
    assert printable(b"x" * 121) == "'" + "x" * 120 + "'... (121 octets)"
    assert printable(b"abcdef", 3) == "'abc'... (6 octets)"


def test_lines_that_never_come_again_are_not_kept_for_ever() -> None:
    reader = ReplyReader()
    for number in range(3000):
        assert reader.feed(b"250 queued as %d\r\n" % number) == [Reply(250, b"queued as %d" % number)]
    assert len(_SEEN) <= 1000
    assert reader.feed(b"250 ok\r\n250 ok\r\n") == [Reply(250, b"ok")] * 2


def test_an_enhanced_status_code_alone_on_its_line() -> None:
    [reply], _ = read(b"550-5.1.1\r\n550 no such user\r\n")
    assert reply.enhanced == "5.1.1"
