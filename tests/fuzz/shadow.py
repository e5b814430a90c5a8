"""An observer on the wire that sets each reply against its command."""

from __future__ import annotations

from dataclasses import dataclass, field

from tests.fuzz.replies import read

__all__ = ["Entry", "Shadow", "Written"]

# RFC 2920 §3.1: "can only appear as the last command in a group", and those that change what comes next.
LAST = frozenset({"greeting", "ehlo", "lhlo", "data", "vrfy", "expn", "noop", "quit", "starttls", "auth", "response"})
VERBS = LAST | {"mail", "rcpt", "rset", "bdat", "help"}


@dataclass
class Entry:
    """Something that is owed replies, in the order of writing.

    Attributes:
        written: at what time; see :class:`Shadow`.
        body: content, or a chunk.
        count: octets of the chunk.
        complete: its end was written.
        early: a reply came before that, or began to.
        until_ok: the RSET behind the probe's chunk: refusals before its 2yz are the chunk's.
    """

    verb: str
    line: str
    written: int
    transaction: Written | None = None
    body: bytes = b""
    count: int = 0
    last: bool = False
    complete: bool = True
    early: bool = False
    until_ok: bool = False
    codes: list[int] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Return whether it was answered, with 2yz each time."""
        codes = self.codes[-1:] if self.until_ok else self.codes
        return bool(codes) and all(code // 100 == 2 for code in codes)


@dataclass
class Written:
    """A transaction as it was written."""

    sender: str
    mail: Entry
    rset: Entry | None
    rcpts: list[Entry] = field(default_factory=list)
    content: list[Entry] = field(default_factory=list)

    def accepted(self, *, lmtp: bool) -> tuple[str, ...]:
        """Return whom the server has taken it for: everything that counts was answered 2yz."""
        begun = self.mail.ok and (self.rset is None or self.rset.ok)
        if not begun or not self.content or not self.content[-1].last or not self.content[-1].complete:
            return ()
        if not all(chunk.ok for chunk in self.content[:-1]):
            return ()
        who = [entry.line.partition("<")[2].partition(">")[0] for entry in self.rcpts if entry.ok]
        final = self.content[-1]
        if self.prdr:
            each = final.codes[1:-1] if len(final.codes) == len(who) + 2 and final.codes[-1] // 100 == 2 else []
            return tuple(one for one, code in zip(who, each, strict=False) if code // 100 == 2)
        if not lmtp:
            return tuple(who) if final.ok else ()
        return tuple(one for one, code in zip(who, final.codes, strict=False) if code // 100 == 2)

    @property
    def prdr(self) -> bool:
        """Return whether there is a reply for each recipient behind 353."""
        return " PRDR" in self.mail.line and bool(self.content) and self.content[-1].codes[:1] == [353]

    @property
    def taken(self) -> bool:
        """Return whether the end of the content was answered 2yz; a lone dot for nobody is none (RFC 2920 §3.1)."""
        if not self.content:
            return False
        final = self.content[-1]
        if final.verb == "content" and not final.body and not any(rcpt.ok for rcpt in self.rcpts):
            return False
        said = any(code // 100 == 2 for code in final.codes)
        return said and final.last and final.complete and not final.early

    @property
    def lost(self) -> bool:
        """Return whether a part of the content was refused before its end was written."""
        if self.content and self.content[-1].last and self.content[-1].complete:
            return False
        return any(code // 100 != 2 and code != 353 for part in self.content for code in part.codes)


class Shadow:
    """Follows both directions, and raises AssertionError where the client writes what it may not write then.

    The time is a number that changes with each delivery of octets to the client, and again behind it: a command written
    at the time at which a reply comes was written because of it, or of one in the same octets.
    """

    def __init__(self, *, lmtp: bool, pipelining: bool) -> None:
        self.lmtp = lmtp
        self.time = 0
        self.entries = [Entry("greeting", "", -1)]
        self.transactions: list[Written] = []
        self.surplus = False  # a reply came that nothing is owed
        self.wrong = ""  # the replies are none
        self._use_pipelining = pipelining
        self._pipelining = False
        self._adrift = False
        self._up = b""
        self._down = b""
        self._seen = 0
        self._begun = 0  # at what time the reply that is not complete began to come
        self._next = 0  # the place of the first entry that is owed a reply

    def secured(self) -> None:
        """TLS is up."""
        self._pipelining = False

    def written(self, sender: str) -> list[Written]:
        """The transactions of a sender."""
        return [one for one in self.transactions if one.sender == sender]

    # ---- what the client writes -------------------------------------------------------------

    def wrote(self, data: bytes) -> None:
        """The client has written this."""
        self._up += data
        while self._up:
            entry = self.entries[-1]
            if entry.complete:
                self._command()
            elif entry.verb == "bdat":
                missing = entry.count - len(entry.body)
                entry.body += self._up[:missing]
                self._up = self._up[missing:]
                entry.complete = len(entry.body) == entry.count
            elif not self._content(entry):
                return

    def _content(self, entry: Entry) -> bool:
        entry.written = self.time
        if not self._up.startswith(b".\r\n"):
            body, end, rest = self._up.partition(b"\r\n.\r\n")
            if not end:
                return False
            entry.body, self._up = body + b"\r\n", rest
        else:
            self._up = self._up[3:]
        entry.complete = True
        return True

    def _command(self) -> None:
        before = self.entries[-1]
        octets, end, self._up = self._up.partition(b"\r\n")
        assert end, f"half a command line: {octets!r}"
        if before.verb in LAST or not self._pipelining:
            assert self._answered(before), f"{octets!r} was written before the reply to {before.verb}"
        line = octets.decode("ascii")
        verb = line.partition(" ")[0].lower()
        if before.verb in ("auth", "response") and before.codes[-1] == 334:
            verb = "response"
        assert verb in VERBS, f"not a command: {line!r}"
        entry = Entry(verb, line, self.time)
        if verb == "mail":
            sender = line.partition("<")[2].partition(">")[0]
            entry.transaction = Written(sender, entry, before if (before.line, line[:4]) == ("rset", "mail") else None)
            self.transactions.append(entry.transaction)
        elif verb == "bdat" and before.verb == "mail":
            self.transactions.pop()  # the probe's second half is no message: see asmtp.protocol.chunking
        elif verb in ("rcpt", "data") or (verb == "bdat" and before.verb in ("rcpt", "bdat")):
            entry.transaction = before.transaction
            if entry.transaction is not None and verb == "rcpt":
                entry.transaction.rcpts.append(entry)
        if verb == "bdat":
            words = line.split()
            entry.count = int(words[1])
            entry.last = words[2:] == ["LAST"]
            entry.complete = not entry.count
            if entry.transaction is not None:
                entry.transaction.content.append(entry)
        entry.until_ok = verb == "rset" and before.verb == "bdat" and before.transaction is None
        if not self._pipelining:
            self._check_sense(entry, before)
        if verb in ("ehlo", "lhlo"):
            self._pipelining = False
        self.entries.append(entry)

    @staticmethod
    def _check_sense(entry: Entry, before: Entry) -> None:
        """In lock-step, what stands before it was not refused."""
        written = entry.transaction
        if entry.verb == "mail" and written is not None and written.rset is not None:
            assert written.rset.ok, "MAIL behind a refused RSET"
        elif entry.verb == "rcpt" and written is not None:
            assert written.mail.ok, "RCPT behind a refused MAIL"
        elif entry.verb in ("data", "bdat") and written is not None:
            assert any(rcpt.ok for rcpt in written.rcpts), f"{entry.verb} without a recipient"

    @property
    def unfinished(self) -> bool:
        """Return whether a reply has begun to come."""
        return bool(self._down)

    # ---- what the server says ---------------------------------------------------------------

    def said(self, data: bytes) -> None:
        """The client is about to receive this."""
        if not self._down:
            self._begun = self.time
        self._down += data
        reading = read(self._down)
        for code, message in reading.replies[self._seen :]:
            self._reply(code, message)
            self._begun = self.time
        self._seen = len(reading.replies)
        if reading.wrong:
            self.wrong = reading.wrong
        elif not reading.unfinished:
            self._down = b""
            self._seen = 0

    def _reply(self, code: int, message: bytes) -> None:
        while self._next < len(self.entries) and self._answered(self.entries[self._next]):
            self._next += 1
        if self._next == len(self.entries):
            self.surplus = True
            return
        entry = self.entries[self._next]
        if entry.verb == "bdat" and entry.transaction is None and code // 100 == 2:
            self._adrift = True
        if self._adrift:
            self._drift(code)
            return
        entry.codes.append(code)
        entry.early = entry.early or not entry.complete or entry.written >= self._begun
        if entry.verb == "data" and code == 354:
            self.entries.append(
                content := Entry("content", "", self.time, entry.transaction, last=True, complete=False)
            )
            if entry.transaction is not None:
                entry.transaction.content.append(content)
        if entry.verb in ("ehlo", "lhlo") and code // 100 == 2:
            offers = [line.strip().upper() for line in message.split(b"\n")[1:]]
            self._pipelining = self._use_pipelining and b"PIPELINING" in offers

    def _drift(self, code: int) -> None:
        """The probe's chunk was taken, or not owed a reply: which is known from the reply to HELP only."""
        if code == 250 or self.entries[-1].verb != "help":
            return
        for entry in self.entries[self._next :]:
            entry.codes.append(250 if entry.until_ok else code)  # a RSET has had its 2yz on the way here
        self._adrift = False

    def _answered(self, entry: Entry) -> bool:
        if entry.until_ok:
            return entry.ok
        owed = 1
        if entry.last and entry.transaction is not None:
            accepted = sum(rcpt.ok for rcpt in entry.transaction.rcpts)
            if self.lmtp:
                # RFC 2033 §4.2: one for each recipient that was accepted.
                owed = max(1, accepted)
            elif entry.transaction.prdr:
                owed = 1 + accepted + 1
        return len(entry.codes) >= owed
