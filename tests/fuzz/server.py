"""An honest server: it reads what was written, answers for itself, refuses what it likes, and keeps an account."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass

from tests.fuzz.data import FuzzedData

__all__ = ["EXTENSIONS", "Server", "Taken"]

EXTENSIONS = ["PIPELINING", "CHUNKING", "8BITMIME", "SIZE 60", "STARTTLS", "AUTH PLAIN LOGIN CRAM-MD5", "PRDR"]
CODES = ["", "", "", "", "", "", "", "550", "450", "421"]
_MAIL = re.compile(r"mail from:<([^<> ]*)>((?: [^ ]+)*)", re.IGNORECASE)
_RCPT = re.compile(r"rcpt to:<([^<> ]+)>")
_BDAT = re.compile(r"BDAT ([0-9]+)( LAST)?")


@dataclass(frozen=True)
class Taken:
    """A message that the server has accepted."""

    sender: str
    recipients: tuple[str, ...]
    content: bytes


class Server:
    """The server's side of a session.

    Attributes:
        said: octets of replies that are not delivered yet.
        closed: it has closed, and reads no more; what it is fed then is only looked at for the ends of contents.
        impatient: 503 to what comes in the same octets behind an end of content, as Haraka does.  Where a RSET
            comes so and the rest does not, there is a message that was accepted and must not count as sent.
        securing: it has said 220 to STARTTLS.
        taken: what it has accepted.
        ended: the senders whose content was written to its end.
    """

    def __init__(self, data: FuzzedData, *, lmtp: bool) -> None:
        self.lmtp = lmtp
        self.said = b""
        self.closed = False
        self.securing = False
        self.taken: list[Taken] = []
        self.ended: set[str] = set()
        self._data = data
        self._offers = data.some(EXTENSIONS) if data.chance(3) else [*EXTENSIONS[: data.below(3)], *EXTENSIONS[2:]]
        self._obstinate = data.chance(4)  # refuses nothing
        self.impatient = data.chance(4)
        self._goes_on = data.chance(4)  # behind a 421 of its own
        self._goes_ahead = data.chance(4) and not lmtp  # 354 without recipients: RFC 2920 §3.1
        self._offering: list[str] = []  # what it has told last
        self._line_end = b"\n" if data.chance(6) else b"\r\n"
        self._in = b""
        self._reading = "command"
        self._behind = False
        self._secured = False
        self._named = ""  # by the last MAIL, whatever the answer was
        self._login: list[bytes] | None = None
        self._parameters = ""
        self._count = 0
        self._last = False
        self._forget()
        self._say("220", "there")

    def secured(self) -> None:
        """TLS is up."""
        assert not self._in, f"plaintext behind STARTTLS: {self._in!r}"
        self.securing = False
        self._secured = True
        self._offering = []
        self._forget()

    def feed(self, octets: bytes) -> None:
        """Read what was written."""
        assert not (octets and self.securing and not self.closed), f"plaintext behind STARTTLS: {octets!r}"
        self._in += octets
        self._behind = False
        while not self.securing and self._step():
            pass

    def hang_up(self, text: str = "") -> None:
        """Close, maybe with a last word."""
        if text and not self.closed and not self.securing:
            self._say(text[:3], text[4:])
        self.closed = True

    # ---- reading ----------------------------------------------------------------------------

    def _step(self) -> bool:
        if self._reading == "data":
            return self._read_data()
        if self._reading == "bdat":
            return self._read_chunk()
        octets, end, rest = self._in.partition(b"\r\n")
        if not end:
            assert len(octets) < 1000, f"a line of {len(octets)} octets"
            return False
        self._in = rest
        line = octets.decode("ascii")
        if self._login is not None:
            self._response(octets)
            return True
        verb = line.partition(" ")[0].lower()
        command = getattr(self, f"_{verb}_command", None)
        assert command is not None, f"not a command: {line!r}"
        code = "503" if self._behind else self._refusal(verb)
        command(line, code)
        return True

    def _refusal(self, verb: str) -> str:
        """The code to refuse a command with, or nothing."""
        if self.closed or self._obstinate or verb in ("rset", "quit", "noop", "bdat"):
            return ""
        code = self._data.pick(CODES)
        return "" if verb == "ehlo" and code and self._data.flag() else code

    def _say(self, code: str, *lines: str) -> None:
        if self.closed:
            return
        for place, line in enumerate(lines):
            mark = " " if place == len(lines) - 1 else "-"
            self.said += f"{code}{mark}{line}".encode() + self._line_end
        if code == "221" or (code == "421" and not self._goes_on):
            self.closed = True

    def _answer(self, line: str, code: str, otherwise: str = "250") -> bool:
        """Reply, with the command that it is a reply to; whether it is a positive one."""
        lines = (line, "in two lines") if self._data.chance(8) else (line,)
        self._say(code or otherwise, *lines)
        return not code and not self.closed

    def _forget(self) -> None:
        self._sender: str | None = None
        self._recipients: list[str] = []
        self._content = b""
        self._failed = False

    # ---- commands ---------------------------------------------------------------------------

    def _ehlo_command(self, line: str, code: str) -> None:
        self._offering = []
        if code:
            self._answer(line, code)
            return
        self._forget()
        self._offering = [offer for offer in self._offers if not (self._secured and offer == "STARTTLS")]
        self._say("250", line, *self._offering)

    _lhlo_command = _ehlo_command

    def _noop_command(self, line: str, code: str) -> None:
        self._answer(line, code)

    def _rset_command(self, line: str, code: str) -> None:
        if self._answer(line, code):
            self._forget()

    def _quit_command(self, line: str, code: str) -> None:
        self._answer(line, "221")

    def _starttls_command(self, line: str, code: str) -> None:
        self.securing = self._answer(line, code, "220")

    def _auth_command(self, line: str, code: str) -> None:
        mechanism, _, initial = line.removeprefix("AUTH ").partition(" ")
        if code:
            self._answer("AUTH", code)
            return
        self._login = []
        if initial:
            self._response(b"" if initial == "=" else initial.encode())
        else:
            self._say("334", base64.b64encode(b"<1.2@x>" if mechanism == "CRAM-MD5" else b"User").decode())

    def _response(self, line: bytes) -> None:
        assert self._login is not None
        said = base64.b64decode(line, validate=True)
        self._login.append(said)
        if said == b"me" and len(self._login) == 1:
            self._say("334", base64.b64encode(b"Password").decode())
            return
        right = said == b"\0me\0secret" or said.startswith(b"me ") or self._login == [b"me", b"secret"]
        assert right, f"not a login: {self._login!r}"
        self._login = None
        code = self._refusal("auth")
        self._say(code or "235", "AUTH")

    def _mail_command(self, line: str, code: str) -> None:
        found = _MAIL.fullmatch(line)
        assert found is not None, line
        self._named = found[1]
        for parameter in found[2].split():
            name = parameter.partition("=")[0].upper()
            offer = {"SIZE": "SIZE 60", "BODY": "8BITMIME", "PRDR": "PRDR"}[name]
            assert offer in self._offering, f"{parameter} is not offered"
        if not code and self._sender is not None and not self.closed:
            # Only what was written by hand may have left it open.
            assert "hand@x" in (self._sender, self._named), f"{line} within the transaction of {self._sender}"
            code = "503"
        if self._answer(line, code):
            self._sender = found[1]
            self._parameters = found[2]

    def _rcpt_command(self, line: str, code: str) -> None:
        found = _RCPT.fullmatch(line)
        assert found is not None, line
        if self._answer(line, code or ("503" if self._sender is None else "")):
            self._recipients.append(found[1])

    def _data_command(self, line: str, code: str) -> None:
        if not code and not self._recipients and not self._goes_ahead:
            code = "503"
        # One that has closed with the reply on its way was asked, and goes on in the account that it keeps.
        if self._answer(line, code, "354"):
            self._reading = "data"

    def _bdat_command(self, line: str, code: str) -> None:
        found = _BDAT.fullmatch(line)
        assert found is not None, line
        self._reading = "bdat"
        self._count = int(found[1])
        self._last = bool(found[2])
        self._failed = self._failed or bool(code)

    # ---- content ----------------------------------------------------------------------------

    def _read_data(self) -> bool:
        if self._in.startswith(b".\r\n"):
            content, self._in = b"", self._in[3:]
        else:
            content, end, rest = self._in.partition(b"\r\n.\r\n")
            if not end:
                if self._in and not self._obstinate and not self.closed and self._data.chance(4):
                    self._say(self._data.pick(["552", "421"]), "enough of it")
                    self.closed = True
                return False
            content, self._in = content + b"\r\n", rest
        self._reading = "command"
        if not self._recipients:
            assert not content, f"content without a recipient: {content!r}"
            self._say("554", "no recipients")
            self._forget()
            return True
        self._end((b"\r\n" + content).replace(b"\r\n.", b"\r\n")[2:])
        return True

    def _read_chunk(self) -> bool:
        if len(self._in) < self._count:
            return False
        self._content += self._in[: self._count]
        self._in = self._in[self._count :]
        self._reading = "command"
        if self._last:
            self.ended.add(self._named)
        if self._failed or not self._recipients:
            # RFC 3030 §3: until RSET, whatever comes.
            self._failed = True
            for _ in range(max(len(self._recipients) if self.lmtp and self._last else 1, 1)):
                self._say("503", "chunk")
        elif self._last:
            self._end(self._content)
        else:
            self._failed = not self._answer("chunk", self._refusal("chunk"))
        return True

    def _end(self, content: bytes) -> None:
        """The content is there: who gets it?"""
        self.ended.add(self._named)
        if self.closed:
            return
        size = re.search(r"size=(\d+)", self._parameters)
        assert size is None or 0 <= len(content) - int(size[1]) <= 2, f"{size} for {len(content)} octets"
        declared = "BODY=8BITMIME" in self._parameters or "8BITMIME" not in self._offering
        assert content.isascii() or declared, "8-bit content that was not declared"
        prdr = "PRDR" in self._parameters and len(self._recipients) > 1 and not self._data.chance(4)
        codes = [self._refusal("content") or "250" for _ in self._recipients[: None if self.lmtp or prdr else 1]]
        each = codes if self.lmtp or prdr else codes * len(self._recipients)
        if prdr:
            codes = ["353", *codes, "250" if "250" in codes else "550"]
        if "421" in codes and not self._goes_on:
            del codes[codes.index("421") + 1 :]
            del each[len(codes) - prdr :]
        taken = tuple(who for who, code in zip(self._recipients, each, strict=False) if code == "250")
        if taken:
            self.taken.append(Taken(self._sender or "", taken, content))
        self._forget()
        self._behind = self.impatient
        for code in codes:
            self._say(code, "content")
