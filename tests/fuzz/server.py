"""An honest server: it reads what was written, answers for itself, refuses what it likes, and keeps an account."""

from __future__ import annotations

import base64
import re

from tests.fakes import server
from tests.fakes.server import Letter
from tests.fuzz.data import FuzzedData

__all__ = ["EXTENSIONS", "Server"]

EXTENSIONS = ["PIPELINING", "CHUNKING", "8BITMIME", "SIZE 60", "STARTTLS", "AUTH PLAIN LOGIN CRAM-MD5", "PRDR"]
CODES = ["", "", "", "", "", "", "", "550", "450", "421"]
SYNTAX = {
    "mail": re.compile(r"mail from:<([^<> ]*)>((?: [^ ]+)*)", re.IGNORECASE),
    "rcpt": re.compile(r"rcpt to:<([^<> ]+)>"),
    "bdat": re.compile(r"BDAT ([0-9]+)( LAST)?"),
}


class Server(server.Server):
    """The server's side of a session.

    When it has closed, it says no more, and goes on reading only to see which contents were written to their ends.
    If it is impatient, and a RSET comes in the same octets behind an end of content and the rest does not, there is a
    message that was accepted and must not count as sent.

    Attributes:
        securing: it has said 220 to STARTTLS.
        ended: the senders whose content was written to its end.
    """

    def __init__(self, data: FuzzedData, *, lmtp: bool) -> None:
        self._data = data
        self._offers = data.some(EXTENSIONS) if data.chance(3) else [*EXTENSIONS[: data.below(3)], *EXTENSIONS[2:]]
        self._obstinate = data.chance(4)  # refuses nothing
        impatient, goes_on = data.chance(4), data.chance(4)
        super().__init__(lmtp=lmtp, impatient=impatient, goes_on=goes_on)
        self.goes_ahead = data.chance(4) and not lmtp
        self.securing = False
        self.ended: set[str] = set()
        self._offering: list[str] = []  # what it has told last
        self._line_end = b"\n" if data.chance(6) else b"\r\n"
        self._secured = False
        self._named = ""  # by the last MAIL, whatever the answer was
        self._login: list[bytes] | None = None
        self.say("220 there")

    @property
    def idle(self) -> bool:
        """Return whether it waits for a command, and nothing else has come."""
        return self._read == self._read_line and not self._in

    def said(self) -> bytes:
        """Return the octets of the replies that are due."""
        replies, self.replies = self.replies, []
        return b"".join(reply.encode() + self._line_end for reply in replies)

    def secured(self) -> None:
        """Go on: TLS is up."""
        assert not self._in, f"plaintext behind STARTTLS: {self._in!r}"
        self.securing = False
        self._secured = True
        self._offering = []
        self._forget()

    def receive(self, octets: bytes) -> None:
        assert not (octets and self.securing and not self.done), f"plaintext behind STARTTLS: {octets!r}"
        super().receive(octets)

    @property
    def hears(self) -> bool:
        return bool(self._in) and not self.securing

    def hang_up(self, text: str = "") -> None:
        """Close, maybe with a last word."""
        if text and not self.securing:
            self.say(text)
        self.done = True

    # ---- what it says -------------------------------------------------------------------------

    def answer(self, verb: str, line: str) -> str | None:
        code = self._refusal(verb)
        return self.usual(code, line) if code else None

    def _refusal(self, verb: str) -> str:
        """Return the code to refuse a command with, or nothing."""
        if self.done or self._obstinate or verb in ("RSET", "QUIT", "NOOP", "BDAT"):
            return ""
        code = self._data.pick(CODES)
        return "" if verb == "EHLO" and code and self._data.flag() else code

    def usual(self, reply: str, line: str) -> str:
        """Return the code and the command that it answers, now and then in two lines."""
        code = reply[:3]
        return f"{code}-{line}\n{code} in two lines" if self._data.chance(8) else f"{code} {line}"

    def say(self, reply: str) -> None:
        for line in reply.split("\n"):
            super().say(line)

    # ---- commands -----------------------------------------------------------------------------

    def _read_line(self) -> bool:
        read = super()._read_line()
        assert read or len(self._in) < 1000, f"a line of {len(self._in)} octets"
        return read

    def line(self, octets: bytes) -> None:
        if self._login is not None:
            self._response(octets)
        else:
            super().line(octets)

    def command(self, line: str) -> None:
        verb = line.partition(" ")[0].lower()
        if verb in SYNTAX:
            found = SYNTAX[verb].fullmatch(line)
            assert found is not None, line
            if verb == "mail":
                self._check_mail(found)
        elif verb in ("ehlo", "lhlo"):
            self._offering = []
        if not self.done or verb == "bdat":
            super().command(line)

    def do_other(self, line: str) -> None:
        raise AssertionError(f"not a command: {line!r}")

    def keywords(self) -> list[str]:
        self._offering = [offer for offer in self._offers if not (self._secured and offer == "STARTTLS")]
        return ["there", *self._offering]

    def _check_mail(self, found: re.Match[str]) -> None:
        self._named = found[1]
        for parameter in found[2].split():
            name = parameter.partition("=")[0].upper()
            offer = {"SIZE": "SIZE 60", "BODY": "8BITMIME", "PRDR": "PRDR"}[name]
            assert offer in self._offering, f"{parameter} is not offered"

    def do_mail(self, line: str) -> None:
        # Only what was written by hand may have left it open.
        assert self.sender is None or "hand@x" in (self.sender, self._named), f"{line} within {self.sender}'s"
        super().do_mail(line)

    def do_starttls(self, line: str) -> None:
        self.say(self.usual("220", line))
        self.securing = True

    def do_auth(self, line: str) -> None:
        mechanism, _, initial = line.removeprefix("AUTH ").partition(" ")
        self._login = []
        if initial:
            self._response(b"" if initial == "=" else initial.encode())
        else:
            self.say(f"334 {base64.b64encode(b'<1.2@x>' if mechanism == 'CRAM-MD5' else b'User').decode()}")

    def _response(self, line: bytes) -> None:
        assert self._login is not None
        said = base64.b64decode(line, validate=True)
        self._login.append(said)
        if said == b"me" and len(self._login) == 1:
            self.say(f"334 {base64.b64encode(b'Password').decode()}")
            return
        right = said == b"\0me\0secret" or said.startswith(b"me ") or self._login == [b"me", b"secret"]
        assert right, f"not a login: {self._login!r}"
        self._login = None
        self.say(self.answer("AUTH", "AUTH") or "235 AUTH")

    # ---- contents -----------------------------------------------------------------------------

    def _read_content(self) -> bool:
        read = super()._read_content()
        if not read and len(self._in) > 2 and not self._obstinate and not self.done and self._data.chance(4):
            self.say(f"{self._data.pick(['552', '421'])} enough of it")
            self.done = True
        return read

    def refuse_chunk(self) -> None:
        if self._last:
            self.ended.add(self._named)
        for _ in range(max(len(self.recipients) if self.lmtp and self._last else 1, 1)):
            self.say("503 chunk")

    def end_of_chunk(self) -> None:
        refusal = self.answer("CHUNK", "chunk")
        self.failed = refusal is not None
        self.say(refusal or "250 chunk")

    def end(self, content: bytes) -> None:
        """Say who gets it."""
        if not self.recipients:  # it went ahead
            assert not content, f"content without a recipient: {content!r}"
            self.say("554 no recipients")
            self._forget()
            return
        self.ended.add(self._named)
        if self.done:
            return
        assert self.sender is not None
        size = re.search(r"size=(\d+)", self.parameters)
        assert size is None or 0 <= len(content) - int(size[1]) <= 2, f"{size} for {len(content)} octets"
        declared = "BODY=8BITMIME" in self.parameters or "8BITMIME" not in self._offering
        assert content.isascii() or declared, "8-bit content that was not declared"
        prdr = "PRDR" in self.parameters and len(self.recipients) > 1 and not self._data.chance(4)
        codes = [self._refusal("CONTENT") or "250" for _ in self.recipients[: None if self.lmtp or prdr else 1]]
        each = codes if self.lmtp or prdr else codes * len(self.recipients)
        if prdr:
            codes = ["353", *codes, "250" if "250" in codes else "550"]
        if "421" in codes and not self.goes_on:
            del codes[codes.index("421") + 1 :]
            del each[len(codes) - prdr :]
        taken = [who for who, code in zip(self.recipients, each, strict=False) if code == "250"]
        if taken:
            self.letters.append(Letter(self.sender, taken, content))
        self._forget()
        self._behind = self.impatient
        for code in codes:
            self.say(f"{code} content")
