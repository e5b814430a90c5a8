"""The half of a session that reads: octets become replies, and each reply goes to the exchange that is owed it.

RFC 5321 §4.2: "Every command MUST generate exactly one reply", and the replies come in the order of the commands.  So
the first exchange in line gets the next reply, and a reply that comes when none is in line is out of step.

Each branch has the lines beside it that lead there, from behind the greeting and EHLO on.  They are the transcript of
that name in tests/protocol/test_inbound.py.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

from asmtp.errors import SMTPProtocolError, SMTPServerDisconnected, said
from asmtp.protocol.exchange import Exchange, ExchangeState, Group, Phase, Turn
from asmtp.protocol.reply import Reply, ReplyReader, asks_for_more, is_leaving, printable
from asmtp.protocol.state import GO_CODES, LastChunk, State, Trigger

if TYPE_CHECKING:
    from asmtp.protocol.redaction import Display

__all__ = ["Inbound"]

_ALERT = b"\x15\x03"
"""The beginning of a TLS alert (RFC 8446 §5.1): a server sends one if it has waited for TLS too long."""

# Looked up once: a member of an enum takes CPython 3.11 70 ns.
_CLOSING = State.CLOSING
_CLOSED = State.CLOSED
_HANDSHAKE = State.HANDSHAKE
_ACTIVE = ExchangeState.ACTIVE
_PULLING = ExchangeState.PULLING
_CANCELLED = ExchangeState.CANCELLED
_DONE = ExchangeState.DONE
_FINAL = Phase.FINAL
_KEEP = Turn.KEEP
_READ = LastChunk.READ


class Outbound(Protocol):
    """The half of a session that writes, as the other half knows it: see :class:`~asmtp.protocol.session.Session`."""

    state: State
    error: SMTPServerDisconnected | None
    last_chunk: LastChunk
    window: int
    opened: int
    display: Display

    @property
    def closed(self) -> bool: ...
    @property
    def idle(self) -> bool: ...
    def redact(self, text: bytes) -> bytes: ...
    def move(self, trigger: Trigger) -> None: ...
    def pump(self) -> None: ...
    def resume(self, exchange: Exchange[Any], value: Any) -> None: ...
    def finish(self, exchange: Exchange[Any]) -> None: ...
    def is_whole(self, exchange: Exchange[Any]) -> bool: ...
    def distrust_chunking(self) -> None: ...
    def drop_output(self) -> None: ...
    def fail(self, error: SMTPServerDisconnected) -> None: ...
    def close(self) -> None: ...
    def end(self, trigger: Trigger, error: SMTPServerDisconnected) -> None: ...


class Inbound:
    """The half of a session that reads.

    Attributes:
        session: the other half.
        owed: the exchanges that are owed replies, in the order in which these will come.
        reader: finds replies in octets.
        progress: how many replies were read so far.
        reads: how many times octets have come.
        reading: the number of the read that is being looked at; 0: none is.
        intruding: a reply that nobody is owed has begun, and may yet be a 421.
        left_at: the exchange that was answered 421, as long as no reply has come behind that.
    """

    __slots__ = ("intruding", "left_at", "owed", "progress", "reader", "reading", "reads", "session")

    def __init__(self, session: Outbound) -> None:
        self.session = session
        self.owed: deque[Exchange[Any]] = deque()
        self.progress = 0
        self.reads = 0
        self.reading = 0
        self.intruding = False
        self.left_at: Exchange[Any] | None = None
        self.restart()

    def restart(self) -> None:
        """Read with a new reader: what came before counts for nothing."""
        self.reader = ReplyReader(redact=self.session.redact)

    def begun(self) -> str:
        """Return the octets of a reply that is not complete, as they may stand in an error."""
        return printable(self.session.redact(self.reader.pending))

    def receive(self, data: bytes) -> None:
        """Take octets from the server."""
        session = self.session
        if session.error is not None and session.closed:
            return
        state = session.state
        if state is _HANDSHAKE:
            # plaintext_in_front_of_the_handshake:
            #   C: STARTTLS
            #   S: 220 go
            #   S: 250 and more
            self._injected(data)
            return
        if state is State.GREETING and data.startswith(_ALERT):
            alert = SMTPProtocolError(-1, b"an alert of TLS in the place of the greeting")
            alert.lasting = True
            session.fail(alert)
            return
        replies = self.reader.feed(data)
        self.reads += 1
        self.reading = self.reads
        self.progress += len(replies)
        display = session.display
        if display.trace is not None or display.observer is not None or display.redaction.secrets:
            replies = display.replied(replies, parsed=state is State.HELLO)
        if self.intruding and replies:
            # 421_in_pieces:
            #   S: 4\
            #   S: 21 idle for too long
            self._unasked(replies[0])
            return
        taken = 0
        while taken < len(replies) and (session.error is None or session.state is _CLOSING):
            taken = self._match(replies, taken)
        if session.error is None and self.reader.begun and not (self.owed and self.owed[0].read != self.reading):
            # unasked_in_pieces:
            #   S: 25\
            self.intruding = True
            if b"421"[: len(self.reader.pending)] != self.reader.pending[:3]:
                self._intruded(self.begun())
        self.reading = 0
        if self.reader.error is not None:
            session.fail(self.reader.error)
        session.pump()

    def receive_eof(self) -> None:
        """Take note that the server closed."""
        session = self.session
        if session.closed:
            return
        if self.reader.pending:
            # closed_within_a_reply:
            #   C: noop
            #   S: 250-ok\
            why = f"Connection unexpectedly closed within a reply: {self.begun()}"
            session.fail(SMTPProtocolError(-1, why.encode()))
        elif session.error is not None:
            # closed_behind_421:
            #   C: mail from:<a@x>
            #   C: rcpt to:<b@x>
            #   C: BDAT 5 LAST
            #   C: Hi.
            #   S: 250 a
            #   S: 421 bye
            session.end(Trigger.END, session.error)
        elif session.idle:
            session.end(Trigger.END, SMTPServerDisconnected("Connection unexpectedly closed"))
        else:
            # closed_without_a_reply:
            #   C: noop
            session.fail(SMTPServerDisconnected("Connection unexpectedly closed"))

    # ---- matching ---------------------------------------------------------------------------

    def _match(self, replies: list[Reply], start: int) -> int:
        """Hand replies to the exchange that is owed the next ones, and return the place of the first not taken."""
        if not self.owed or self.owed[0].read == self.reading:
            # A reply cannot be to a command that was written during the same read: it was sent before that.
            # surplus:
            #   C: noop
            #   S: 250 ok
            #   S: 250 again
            self._unasked(replies[start])
            return len(replies)
        session = self.session
        exchange = self.owed[0]
        group = exchange.group
        assert group is not None
        self.left_at = None
        if group.per_recipient is not None or self.reader.closing:
            # One by one, as each may change how many are owed; so may a 421, behind which nothing may come.
            # final_replies_of_lmtp:
            #   C: mail from:<a@x>
            #   C: rcpt to:<b@x>
            #   C: rcpt to:<c@x>
            #   C: BDAT 5 LAST
            #   C: Hi.
            #   S: 250 a
            #   S: 250 b
            #   S: 250 c
            #   S: 250 b has it
            #   S: 250 c has it
            end = start + 1
            self._count_recipient(exchange, group, replies[start])
        else:
            # a_group_at_once:
            #   C: mail from:<a@x>
            #   C: rcpt to:<b@x>
            #   C: BDAT 5 LAST
            #   C: Hi.
            #   S: 250 a
            #   S: 250 b
            #   S: 250 taken
            end = min(start + exchange.owed, len(replies))
        group.replies += replies[start:end]
        exchange.owed -= end - start
        if session.last_chunk is not _READ and self._is_misread(group):
            return end
        reply = replies[end - 1]
        if not exchange.owed:
            if not self._all_in(exchange, group, replies, end):
                return len(replies)
        elif 300 <= reply.code <= 399 and not exchange.raw:
            # Only the last command of a group may be answered by 3yz (RFC 5321 §4.2.1: "intermediate").
            # 3yz_to_a_command:
            #   C: mail from:<a@x>
            #   C: rcpt to:<b@x>
            #   C: data
            #   S: 354 go
            session.fail(SMTPProtocolError(reply.code, asks_for_more(reply)))
            return end
        if exchange.state is _PULLING and self._is_early(replies[start:end]):
            # The dialogue judges an answer to content that is not complete now, not with the next octets.
            # early_refusal:
            #   C: mail from:<a@x>
            #   C: rcpt to:<b@x>
            #   S: 250 a
            #   S: 250 b
            #   C: BDAT 2
            #   C: Hi\
            #   S: 552 too much
            exchange.state = _ACTIVE
            session.resume(exchange, b"")
        if reply.code > 420 and is_leaving(reply):
            self._leave(exchange, reply)
        if session.state is _CLOSING:
            if not self._may_be_answered():
                # 421_to_the_last:
                #   C: noop
                #   S: 421 bye
                assert session.error is not None
                session.end(Trigger.END, session.error)
        elif session.state is _CLOSED:
            # goodbye:
            #   C: quit
            #   S: 221 bye
            session.close()
        return end

    def _all_in(self, exchange: Exchange[Any], group: Group, replies: list[Reply], end: int) -> bool:
        """Resume an exchange whose replies are all in, and return whether the session goes on, too.

        Args:
            end: the place in `replies` behind its last.
        """
        session = self.session
        self.owed.popleft()
        reply = replies[end - 1]
        if session.opened < session.window and group.final is _FINAL:
            session.opened += 1
        if not self.owed and session.state in GO_CODES:
            # The reply that the state waits for is always the last one owed.
            # go:
            #   C: mail from:<a@x>
            #   C: rcpt to:<b@x>
            #   C: data
            #   S: 250 a
            #   S: 250 b
            #   S: 354 go
            #   C: Hi.
            #   C: .
            #   S: 250 taken
            session.move(Trigger.GO if reply.code in GO_CODES[session.state] else Trigger.NO)
        if session.state is _HANDSHAKE and (end < len(replies) or self.reader.pending or self.reader.error):
            # plaintext_behind_starttls:
            #   C: STARTTLS
            #   S: 220 go
            #   S: 250 injected
            self._injected(b"\n".join([b"%d %s" % later for later in replies[end:]] + [self.reader.pending]))
            return False
        if exchange.state is _CANCELLED or exchange.state is _DONE:
            # The dialogue has ended early: the session learns in its place what its replies show of the last chunk.
            # cancelled:
            #   C: mail from:<a@x>
            #   C: rcpt to:<b@x>
            #   S: 250 a
            #   S: 250 b
            #   C: BDAT 2
            #   C: Hi\
            #   S: 250 a chunk
            #   C: rset
            #   S: 250 flushed
            #   C: noop
            #   S: 250 noop
            if group.triggers[-1:] == (Trigger.bdat_last,) and not reply.ok:
                session.last_chunk = LastChunk.DOUBTED
            session.finish(exchange)
        elif group.turn is not _KEEP:
            session.resume(exchange, group.replies)
        return True

    @staticmethod
    def _count_recipient(exchange: Exchange[Any], group: Group, reply: Reply) -> None:
        """Add the reply that LMTP owes a recipient after the content (RFC 2033 §4.2); one is owed anyhow."""
        places = group.per_recipient
        place = len(group.replies)
        if places is not None and place in places and reply.ok:
            exchange.owed += any(earlier.ok for earlier in group.replies[places.start : place])

    def _is_early(self, replies: list[Reply]) -> bool:
        """Return whether a dialogue that pulls content has been sent a reply that it should look at now."""
        state = self.session.state
        if state is State.CHALLENGE:  # it does not pull content, but the response to the challenge
            return False
        return state is State.CONTENT or not all(reply.ok for reply in replies)

    # ---- 421 --------------------------------------------------------------------------------

    def _leave(self, exchange: Exchange[Any], reply: Reply) -> None:
        """Have nothing more written: the server has said to `exchange` that it closes (RFC 5321 §3.8)."""
        session = self.session
        why = SMTPServerDisconnected(f"server closed the connection: {said(*reply)}")
        if session.state is _CLOSED:
            # 421_to_quit:
            #   C: quit
            #   S: 421 bye
            session.end(Trigger.END, why)
        elif not session.closed:
            # 421_and_goes_on:
            #   C: mail from:<a@x>
            #   C: rcpt to:<b@x>
            #   C: rcpt to:<c@x>
            #   C: BDAT 5 LAST
            #   C: Hi.
            #   S: 250 a
            #   S: 421 not now
            #   S: 250 c
            #   S: 250 taken
            self.left_at = exchange
            session.error = why
            session.move(Trigger.BYE)
            session.drop_output()

    def _may_be_answered(self) -> bool:
        """Return whether something was written whole that a server which goes on behind a 421 may answer.

        It is closing (RFC 5321 §3.8), and as it answers in order, it did not look at what stands behind.  But some
        servers say 421 to a recipient, and go on: then what they take must not be sent again.
        """
        if not self.owed:
            return False
        head = self.owed[0]
        return self.session.is_whole(head) and head.group is not None and not head.group.dropped

    # ---- out of step ------------------------------------------------------------------------

    def _unasked(self, reply: Reply) -> None:
        """End at a reply that nobody is owed."""
        if reply.code == 421:
            # 421_unasked:
            #   S: 421 idle for too long
            self.session.end(Trigger.END, SMTPServerDisconnected(f"server closed the connection: {said(*reply)}"))
        else:
            # unasked:
            #   S: 250 hello?
            self._intruded(printable(self.session.redact(b"%d %s" % reply)))

    def _intruded(self, shown: str) -> None:
        """Break at a reply that nobody is owed: if it has only begun, the next command's would be taken for its rest.

        Behind a refused chunk, such a reply shows that the server has misread the chunk.
        """
        if self.session.last_chunk is LastChunk.DOUBTED:
            self._note_misread()
        self.session.fail(SMTPProtocolError(-1, f"a reply that no command is owed: {shown}".encode()))

    def _injected(self, data: bytes) -> None:
        """Break at plain text that came in the place of the TLS handshake.

        It must not be taken for an answer under TLS (RFC 3207 §6, CVE-2011-0411).
        """
        shown = printable(self.session.redact(data))
        self.session.fail(SMTPProtocolError(-1, f"plaintext behind the reply to STARTTLS: {shown}".encode()))

    def _is_misread(self, group: Group) -> bool:
        """Return whether the reply to RSET behind a refused chunk shows that the server took the chunk for commands.

        What it says from then on is no answer to what was written.
        """
        if group.triggers[:1] != (Trigger.rset,):
            return False
        session = self.session
        session.last_chunk = _READ
        reply = group.replies[0]
        if reply.ok or is_leaving(reply):  # if it is closing, that says nothing of the chunk
            return False
        # misread:
        #   C: mail from:<a@x>
        #   C: rcpt to:<b@x>
        #   C: BDAT 5 LAST
        #   C: Hi.
        #   S: 250 a
        #   S: 250 b
        #   S: 552 too much
        #   C: rset
        #   S: 500 what is Hi.?
        self._note_misread()
        session.fail(SMTPProtocolError(reply.code, b"the server took a chunk that it refused for commands"))
        return True

    def _note_misread(self) -> None:
        self.session.last_chunk = LastChunk.MISREAD
        self.session.distrust_chunking()
