"""The reply reader, against a slow and obvious one written from RFC 5321 §4.2."""

from __future__ import annotations

from asmtp.errors import said
from asmtp.protocol.reply import MAX_LINE, MAX_REPLY, Reply, ReplyReader
from tests.fuzz.data import FuzzedData

__all__ = ["Reading", "read", "reply", "status"]

# An empty one stands for any octets.
TOKENS = [
    b"250", b"250", b"250 ", b"250-", b"421 ", b"354", b"220 ", b"550-", b"550 ", b"99", b"600 ", b"\r\n", b"\r\n",
    b"\n", b"\r", b" ", b"-", b"\t", b"ok", b"x" * 60, b"\0", b"\xff", b"5.1.1 ", b"",
]  # fmt: skip


class Reading:
    """The result of reading octets: the replies, what was wrong behind them, and whether a reply is unfinished."""

    def __init__(self) -> None:
        self.replies: list[tuple[int, bytes]] = []
        self.wrong = ""
        self.unfinished = False


def read(data: bytes, max_line: int = MAX_LINE, max_reply: int = MAX_REPLY) -> Reading:
    """Line by line, as RFC 5321 §4.2 has it, with the liberties that ReplyReader lists."""
    reading = Reading()
    texts: list[bytes] = []
    first = size = 0
    while data:
        line, end, data = data.partition(b"\n")
        if len(line) + 1 > max_line:
            reading.wrong = "reply line too long"
            return reading
        if not end:
            reading.unfinished = True
            return reading
        octets = len(line) + 1
        if line.endswith(b"\r"):
            line = line[:-1]
        digits, mark, text = line[:3], line[3:4], line[4:]
        if len(digits) < 3 or any(digit not in b"0123456789" for digit in digits) or mark not in (b"", b" ", b"-"):
            reading.wrong = "not a reply"
            return reading
        code = int(digits)
        if not 100 <= code <= 599:
            reading.wrong = "not a reply"
            return reading
        if texts and code // 100 != first // 100:
            reading.wrong = "reply code changed"
            return reading
        size = size + octets if texts else octets
        if size > max_reply and (texts or mark == b"-"):
            reading.wrong = "reply too long"
            return reading
        first = code
        texts.append(text.strip(b" \t\r"))
        if mark != b"-":
            reading.replies.append((code, b"\n".join(texts)))
            texts = []
    reading.unfinished = bool(texts)
    return reading


def reply(data: FuzzedData) -> None:
    """The reply reader: any octets, any splits, any limits."""
    if data.chance(4):
        max_line, max_reply = MAX_LINE, MAX_REPLY
    else:
        max_line = data.pick([20, 60, 79, 80, 81, 200])
        max_reply = max_line + data.below(400)
    stream = data.blob(TOKENS, 60)
    if data.chance(8):
        stream *= data.between(1, 40) if len(stream) * 40 < 4 * MAX_REPLY else 1
    expected = read(stream, max_line, max_reply)
    for pieces in ([stream], data.pieces(stream)):
        reader = ReplyReader(max_line, max_reply)
        found: list[Reply] = []
        for piece in pieces:
            failed = reader.error is not None
            some = reader.feed(piece)
            assert not (failed and some), "went on behind an error"
            found += some
            assert len(reader.pending) <= max_reply + max_line, f"holds {len(reader.pending)} octets"
        wrong = "" if reader.error is None else bytes(reader.error.smtp_error).decode()  # type: ignore[arg-type]
        assert [tuple(one) for one in found] == expected.replies, f"{pieces}: {found}, not {expected.replies}"
        assert wrong.startswith(expected.wrong), f"{pieces}: {wrong!r}, not {expected.wrong!r}"
        assert bool(wrong) == bool(expected.wrong), f"{pieces}: {wrong!r}, not {expected.wrong!r}"
        assert len(wrong) < 600, "an error as long as what the server sent"
        assert wrong or bool(reader.pending) == expected.unfinished, f"{pieces}: pending {reader.pending!r}"
        assert reader.closing == any(code == 421 for code, _ in expected.replies), "421"


STATUS = [b"5", b"2", b"4", b"1", b"0", b".", b".", b"5.1.1", b"2.0.0", b"1234", b" ", b"\t", b"\n", b"\r", b"x", b""]


def status(data: FuzzedData) -> None:
    """A reply's enhanced status code (RFC 3463), its text, and what class it is of."""
    code = data.pick([250, 550, 450, 354, 421, -1]) if data.flag() else data.between(100, 599)
    message = data.blob(STATUS, 12)
    one = Reply(code, message)
    expected = next(filter(None, map(_status, message.split(b"\n"))), "")
    if expected[:1] != str(code)[:1]:
        expected = ""
    assert one.enhanced == expected, f"{one.enhanced!r}, not {expected!r}: {message!r}"
    assert one.ok == (code // 100 == 2)
    one.text.encode()
    assert str(one) == said(code, message)
    assert str(one).isprintable()
    if message.isascii():
        assert one.text.encode() == message


def _status(line: bytes) -> str:
    """RFC 3463 §2: class "." subject "." detail, then a space or nothing."""
    word = line.replace(b"\t", b" ").split(b" ")[0]
    parts = word.split(b".")
    if len(parts) != 3 or parts[0] not in (b"2", b"4", b"5"):
        return ""
    if not all(1 <= len(part) <= 3 and all(octet in b"0123456789" for octet in part) for part in parts):
        return ""
    return word.decode()
