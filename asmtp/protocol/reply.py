"""Replies, and the reader that finds them in a stream of bytes (RFC 5321 §4.2)."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from asmtp.errors import SMTPProtocolError, said

__all__ = ["MAX_LINE", "MAX_REPLY", "Reply", "ReplyReader", "asks_for_more", "is_leaving", "printable"]

MAX_LINE = 8192
"""Octets of one reply line with its line end.  RFC 5321 §4.5.3.1.5 asks for 512; servers send more."""

MAX_REPLY = 65536
"""Octets of one reply with all its lines."""

MAX_KEPT = 1 << 20
"""Octets that all replies of one transaction may have, not counting short lines: see `ReplyReader.kept`."""

SHORT = 512
"""Octets that are kept of each reply beyond that: as many as RFC 5321 §4.5.3.1.5 allows a line."""

# RFC 5321 §4.2: a reply is "a three digit number".  The dialogue that awaits it judges its class.
_CODES = {b"%d" % code: code for code in range(100, 600)}

# RFC 3463 §2.  If a reply has several lines, some servers put the enhanced code on the last one only.
_ENHANCED = re.compile(rb"^([245]\.[0-9]{1,3}\.[0-9]{1,3})(?![^ \t\n])", re.MULTILINE)

# Texts of a server that closes as behind a 421.  Exim: "554 Too many nonmail commands" (our RSETs behind refused
# messages are counted), and "503-... / 503 Too many syntax or protocol errors"; go-smtp: "500 5.5.1 Too many errors.
# Quiting now"; aiosmtpd: "502 5.5.1 Too many unrecognized commands, goodbye.".
# Not: "554 too many MIME errors", which is about a message.
_ENOUGH = re.compile(
    rb"too many (?:(?:bad|invalid|junk|non-?mail|or|protocol|smtp|syntax|unknown|unrecognized) )*(?:commands|errors)",
    re.IGNORECASE,
)

_SEEN: dict[bytes, Reply] = {}  # lines that are a whole reply; `_line` keeps it small


class Reply(NamedTuple):
    """A server's reply; equal to smtplib's ``(code, message)``."""

    code: int
    message: bytes
    """The text, lines joined by ``\\n``, without codes and line ends."""

    @property
    def ok(self) -> bool:
        """Tell whether the reply is positive (2yz)."""
        return 200 <= self.code <= 299

    @property
    def enhanced(self) -> str:
        """Return the enhanced status code (RFC 3463), such as ``"5.1.1"``; empty if there is none that fits."""
        found = _ENHANCED.search(self.message)
        code = found[1].decode() if found else ""
        return code if code[:1] == str(self.code)[:1] else ""

    @property
    def text(self) -> str:
        r"""Return the message for people: as UTF-8 (RFC 6531 §3.7.4.2), other octets as ``\xNN``."""
        return self.message.decode("utf-8", "backslashreplace")

    def __str__(self) -> str:
        """Return the reply as one printable line of limited length."""
        return said(*self)


def printable(data: bytes, limit: int = 120) -> str:
    """Return octets of a server's as they may stand in an error: ASCII, escaped, cut after `limit` octets."""
    cut = data[:limit]
    return ascii(bytes(cut))[1:] + (f"... ({len(data)} octets)" if len(data) > limit else "")


def asks_for_more(reply: Reply) -> bytes:
    """Return the words of the error for a 3yz to a command that has nothing more to say.

    RFC 5321 §4.2.1: a 3yz means that the server waits for more.  It would take what is written next for that, so each
    reply behind it may be to another command than it seems.
    """
    return b"out of step: asks for more where there is none: " + reply.message


def is_leaving(reply: Reply) -> bool:
    """Return whether the server says that it closes: by 421 (RFC 5321 §3.8), or by too many commands or errors.

    Such a reply is about the connection, whatever command it answers.
    """
    return reply.code == 421 or (reply.code >= 500 and _ENOUGH.search(reply.message) is not None)


class ReplyReader:
    """Finds replies in octets that come split anywhere.

    Legal, because servers do it:

    * a lone LF as a line end, a bare ``250``, ``250 `` without text, any 8-bit text;
    * a code that changes within its class: that of the last line counts.

    Not legal:

    * a code of another class within a reply;
    * behind the code, anything but a space, a hyphen or the line end;
    * a line or a reply over its limit.

    After the first error nothing more is read.

    Args:
        max_line: octets that a line may have, its line end included.
        max_reply: octets that a reply may have, all its lines and their ends included.
        redact: takes the secrets out of what an error shows of a line.

    Attributes:
        error: why nothing more is read.
        closing: a 421 has come, or a reply that says the same.
        kept: octets of the replies to what is under way; the owner of the reader sets it to 0 at the end of that.
    """

    __slots__ = (
        "_code", "_lines", "_partial", "_redact", "_seen", "_size", "closing", "error", "kept", "max_line", "max_reply",
    )  # fmt: skip

    def __init__(
        self,
        max_line: int = MAX_LINE,
        max_reply: int = MAX_REPLY,
        *,
        redact: Callable[[bytes], bytes] = lambda text: text,
    ) -> None:
        self._redact = redact
        self.max_line = max_line
        self.max_reply = max_reply
        self.error: SMTPProtocolError | None = None
        self.closing = False
        self.kept = 0
        self._seen = _SEEN if max_line >= 80 else {}  # no line in it is over the limit
        self._partial = bytearray()  # the line whose end has not come yet
        self._lines: list[bytes] = []  # the texts of the reply whose last line has not come yet
        self._code = 0
        self._size = 0

    @property
    def begun(self) -> bool:
        """Tell whether something has come of a reply that is not complete."""
        return bool(self._partial or self._lines)

    @property
    def pending(self) -> bytes:
        """Return the octets of a reply that is not complete; empty between replies."""
        begun = b"".join(b"%d-%s\n" % (self._code, line) for line in self._lines)
        return begun + bytes(self._partial)

    def feed(self, data: bytes) -> list[Reply]:
        """Take octets and return the replies that they complete.

        An error is kept in `error` rather than raised, so that the replies before it are not lost.
        """
        replies: list[Reply] = []
        if self.error is not None:
            return replies
        lines = data.split(b"\n")
        rest = lines.pop()
        if lines and self._partial:
            # Only the new octets are searched for a line end: a line that drips in is not quadratic.
            lines[0] = bytes(self._partial) + lines[0]
            self._partial.clear()
        try:
            for line in lines:
                # Most lines of a connection are the same few, and need not be looked at twice.
                reply = self._seen.get(line) if not self._lines else None
                if reply is None:
                    reply = self._line(line)
                    if reply is None:
                        continue
                if reply.code > 420 and is_leaving(reply):  # most are below, and need no call
                    self.closing = True
                replies.append(reply)
            if rest:
                self._partial += rest
                if len(self._partial) >= self.max_line:
                    raise self._error(500, "reply line too long", self._partial[: self.max_line])
        except SMTPProtocolError as error:
            self.error = error
            self._partial.clear()
            self._lines.clear()
        return replies

    def _line(self, line: bytes) -> Reply | None:
        """Take one line without its LF, and return the reply that it ends; None: more lines follow."""
        if len(line) >= self.max_line:
            raise self._error(500, "reply line too long", line[: self.max_line])
        code = _CODES.get(line[:3])
        mark = line[3:4]
        if code is None or (mark not in (b" ", b"-", b"") and line[3:] != b"\r"):
            raise self._error(-1, "not a reply", line)
        text = line[4:].strip(b" \t\r")
        if not self._lines:
            if mark != b"-":
                if len(line) >= 80:
                    return self._reply(code, text)
                reply = Reply(code, text)
                if len(self._seen) >= 1000:
                    self._seen.clear()
                self._seen[line] = reply
                return reply
            self._code = code
            self._size = 0
        elif code // 100 != self._code // 100:
            # RFC 5321 §4.2.1: in a reply of several lines, "the reply code on each of the lines MUST be the same".
            raise self._error(-1, f"reply code changed from {self._code} within a reply", line)
        self._size += len(line) + 1
        if self._size > self.max_reply:
            raise self._error(500, "reply too long", line)
        self._lines.append(text)
        self._code = code
        if mark == b"-":
            return None
        reply = self._reply(code, b"\n".join(self._lines))
        self._lines.clear()
        return reply

    def _reply(self, code: int, text: bytes) -> Reply:
        """Return a reply, cut short if those before it have taken all the room there is."""
        self.kept += len(text)
        return Reply(code, text if self.kept <= MAX_KEPT else text[:SHORT])

    def _error(self, code: int, what: str, line: bytes | bytearray) -> SMTPProtocolError:
        return SMTPProtocolError(code, f"{what}: {printable(self._redact(bytes(line)))}".encode())
