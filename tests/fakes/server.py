"""An SMTP and LMTP server without a socket: octets in, reply lines out.

It is honest, and takes every message.  Subclasses override what they do otherwise:

* `answer`: which commands and contents are refused, or answered with another reply;
* `usual`: the words of all other replies;
* `keywords`: what EHLO offers;
* `end`, `end_of_chunk`, and ``do_mail`` and its like: what a content, a chunk or a command does.

:class:`tests.fakes.relay.Relay` puts it behind a socket.  The tests of the protocol and the fuzzer feed it directly.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["PATH", "Letter", "Server"]

PATH = re.compile(r"(?:from|to):<([^>]*)>(.*)", re.IGNORECASE)


@dataclass
class Letter:
    """A message that a server took."""

    sender: str
    recipients: list[str]
    content: bytes
    parameters: str = ""


class Server:
    """The server's side of one session.

    It behaves like the worst of the real ones: a MAIL in an open transaction is answered 503, but a RCPT behind that
    MAIL goes into the open transaction, as with Exim, Dovecot and sendmail.

    Args:
        impatient: answer 503 to what comes in the same octets behind the end of a content, as Haraka does.
        goes_on: stay open after a 421.

    Attributes:
        replies: the reply lines that are due, without line ends.
        done: it has said 221, or 421, and says no more.
        letters: what it took.
        sender, parameters, recipients: of the open transaction; `sender` is None if there is none.
        goes_ahead: answer 354 to DATA though there are no recipients (RFC 2920 section 3.1 allows it).
    """

    line_end: re.Pattern[bytes] = re.compile(rb"\r\n")
    content_end: re.Pattern[bytes] = re.compile(rb"\r\n\.\r\n")
    goes_ahead = False

    def __init__(self, *, lmtp: bool = False, impatient: bool = False, goes_on: bool = False) -> None:
        self.lmtp = lmtp
        self.impatient = impatient
        self.goes_on = goes_on
        self.replies: list[str] = []
        self.done = False
        self.letters: list[Letter] = []
        self._in = bytearray()  # what came and was not read yet
        self._read = self._read_line
        self._seen = 0  # octets of `_in` without an end of content
        self._count = 0  # octets of the chunk that is to come
        self._last = False
        self._chunk_reply: str | None = None
        self._behind = False  # what is read came in the same octets as an end of content, and behind it
        self._forget()

    def _forget(self) -> None:
        """Forget the transaction."""
        self.sender: str | None = None
        self.parameters = ""
        self.recipients: list[str] = []
        self.body = b""
        self.failed = False  # a chunk was refused

    # ---- what subclasses change ---------------------------------------------------------------

    def answer(self, verb: str, line: str) -> str | None:
        """Return a reply to give instead of the usual one, or None.

        Args:
            verb: of the command, in upper case.  At the end of a content ".", or for LMTP "." and the recipient.
            line: the command; or the content.
        """
        return None

    def usual(self, reply: str, line: str) -> str:
        """Return the usual reply, as it is worded, to a command, a content or a chunk."""
        return reply

    def keywords(self) -> list[str]:
        """Return the lines of the reply to EHLO."""
        return ["server.example"]

    # ---- octets -------------------------------------------------------------------------------

    def feed(self, octets: bytes) -> list[str]:
        """Take what the client has written, and return the replies."""
        self.receive(octets)
        said, self.replies = self.replies, []
        return said

    def receive(self, octets: bytes) -> None:
        """Take what the client has written; the replies go to `replies`."""
        self._in += octets
        self._behind = False
        while self.hears and self._read():
            pass

    @property
    def hears(self) -> bool:
        """Return whether it goes on with what came."""
        return bool(self._in) and not self.done

    def say(self, reply: str) -> None:
        """Reply."""
        if not self.done:
            self.replies.append(reply)
            self.done = reply.startswith("221 ") or (reply.startswith("421 ") and not self.goes_on)

    def _read_line(self) -> bool:
        end = self.line_end.search(self._in)
        if end is None:
            assert b"\n" not in self._in, f"a bare LF: {bytes(self._in)!r}"
            return False
        line = bytes(self._in[: end.start()])
        del self._in[: end.end()]
        self.line(line)
        return True

    def _read_content(self) -> bool:
        end = self.content_end.search(self._in, max(0, self._seen - 4))
        if end is None:
            self._seen = len(self._in)
            return False
        stuffed = bytes(self._in[2 : end.start()]) + b"\r\n" if end.start() else b""
        del self._in[: end.end()]
        self._read = self._read_line
        self.end_of_data(stuffed)
        return True

    def _read_chunk(self) -> bool:
        if len(self._in) < self._count:
            return False
        self.body += self._in[: self._count]
        del self._in[: self._count]
        self._read = self._read_line
        if self.failed or not self.recipients:
            self.failed = True  # RFC 3030 section 3: until RSET, whatever comes
            self.refuse_chunk()
        elif self._last:
            self.end(self.body)
        else:
            self.end_of_chunk()
        return True

    # ---- contents -----------------------------------------------------------------------------

    def end_of_data(self, stuffed: bytes) -> None:
        """Take the content of a DATA, the dots in front of its lines doubled."""
        self.end(re.sub(rb"(?:(?<=\r\n)|\A)\.", b"", stuffed))

    def end_of_chunk(self) -> None:
        """Answer a chunk that is not the last one."""
        self.say(self._chunk_reply or self.usual("250 2.0.0 chunk taken", "chunk"))

    def refuse_chunk(self) -> None:
        """Answer a chunk that has no recipients, or that was refused."""
        self.say(self._chunk_reply or "503 5.5.1 no valid recipients")

    def end(self, content: bytes) -> None:
        """Answer the end of a content: once, or by LMTP for each recipient."""
        assert self.sender is not None
        text = content.decode("latin-1")
        taken: list[str] = []
        for place in self.recipients if self.lmtp else [""]:
            reply = self.answer("." + place, text) or self.usual("250 2.0.0 taken", text)
            self.say(reply)
            if reply.startswith("2"):
                taken += [place] if place else self.recipients
            if self.done:
                break
        if taken:
            self.letters.append(Letter(self.sender, taken, content, self.parameters))
        self._forget()
        self._behind = self.impatient

    # ---- commands -----------------------------------------------------------------------------

    def line(self, octets: bytes) -> None:
        """Take a line without its end."""
        assert b"\n" not in octets, f"a bare LF: {octets!r}"
        self.command(octets.decode())

    def command(self, line: str) -> None:
        """Answer a command."""
        verb = line.split(" ")[0].upper()
        special = self.usual("503 5.5.1 not now", line) if self._behind else self.answer(verb, line)
        refused = special is not None and special[0] in "45"
        if verb == "BDAT":  # its octets come, whatever the answer
            self.failed = self.failed or refused
            self._chunk_reply = special
            self.do_bdat(line)
        elif special is None or not refused:
            before = len(self.replies)
            getattr(self, f"do_{verb.lower()}", self.do_other)(line)
            if special is not None and len(self.replies) > before:
                self.replies[-1] = special
        else:
            self.say(special)

    def do_other(self, line: str) -> None:
        self.say("500 5.5.2 what?")

    def do_ehlo(self, line: str) -> None:
        self._forget()
        *most, last = self.keywords()
        for text in most:
            self.say("250-" + text)
        self.say("250 " + last)

    do_lhlo = do_ehlo

    def do_helo(self, line: str) -> None:
        self._forget()
        self.say(self.usual("250 " + self.keywords()[0], line))

    def do_noop(self, line: str) -> None:
        self.say(self.usual("250 2.0.0 ok " + line[5:], line))

    def do_rset(self, line: str) -> None:
        self._forget()
        self.say(self.usual("250 2.0.0 reset", line))

    def do_quit(self, line: str) -> None:
        self.say(self.usual("221 2.0.0 bye", line))

    def do_mail(self, line: str) -> None:
        found = PATH.search(line)
        if self.sender is not None or found is None:
            self.say(self.usual("503 5.5.1 sender already given", line))
            return
        self.sender, self.parameters = found[1], found[2].strip()
        self.say(self.usual("250 2.1.0 sender ok", line))

    def do_rcpt(self, line: str) -> None:
        found = PATH.search(line)
        if self.sender is None or found is None:
            self.say(self.usual("503 5.5.1 need MAIL first", line))
            return
        self.recipients.append(found[1])
        self.say(self.usual("250 2.1.5 recipient ok", line))

    def do_data(self, line: str) -> None:
        if not self.recipients and not self.goes_ahead:
            self.say(self.usual("503 5.5.1 no valid recipients", line))
            return
        # The end of the command's line counts as the beginning of the dot's (RFC 5321 section 4.1.1.4).
        self._in[:0] = b"\r\n"
        self._seen = 0
        self._read = self._read_content
        self.say(self.usual("354 go ahead", line))

    def do_bdat(self, line: str) -> None:
        words = line.upper().split()
        self._count = int(words[1])
        self._last = words[-1] == "LAST"
        self._read = self._read_chunk
        if not self._count:  # there may be nothing more to read
            self._read_chunk()
