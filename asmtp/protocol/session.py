"""One connection's protocol state, without I/O: the turn to write, and the queue of replies owed.

Begin with :mod:`asmtp.protocol.state`, which explains how it works.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable
from typing import Any, ClassVar

from asmtp.errors import SMTPAuthenticationError, SMTPProtocolError, SMTPServerDisconnected, SMTPStateError, said
from asmtp.protocol.chunking import Chunking, probe
from asmtp.protocol.exchange import Dialogue, Exchange, Group, Phase, ProbeFirst, Pull, Watcher
from asmtp.protocol.extensions import Extensions
from asmtp.protocol.redaction import Redaction
from asmtp.protocol.reply import Reply, ReplyReader, asks_for_more, is_leaving, printable
from asmtp.protocol.sasl import UNPROVEN
from asmtp.protocol.state import GO_CODES, HELD, OPENING, TRANSITIONS, UNPROVING, Event, State

__all__ = ["Session"]

_ALERT = b"\x15\x03"
"""What a server says that waits for TLS, and is tired of it (RFC 8446 §5.1)."""


class Session:
    """One connection's protocol state.  The transport feeds it; dialogues are started on it.

    Args:
        lmtp: speak LMTP (RFC 2033).
        pipelining: use PIPELINING where the server offers it.
        window: how many dialogues may be unanswered before the next one is written.
        window_octets: how many octets may be.

    Attributes:
        chunking: what is known of BDAT on this connection.
        messages: how many transactions were begun.
        opened: how many dialogues may be unanswered now, where content goes by BDAT: see `slow_start`.
        chunk_refused: the last chunk was refused, and no reply has shown yet that it was read all the same.
        misread: it was not: the server took it for commands.
    """

    untried: ClassVar = Chunking.UNKNOWN
    """What is known of BDAT on a connection on which it was not tried."""

    declares_line_end: ClassVar = True
    """SIZE counts the line end that is added to content which has none at its end (RFC 1870 §5)."""

    def __init__(
        self, *, lmtp: bool = False, pipelining: bool = True, window: int = 100, window_octets: int = 1 << 20
    ) -> None:
        self.lmtp = lmtp
        self.state = State.GREETING
        self.extensions = Extensions()
        self.esmtp = False
        self.use_pipelining = pipelining
        self.overlap = True  # cleared for good where the server does not take a transaction behind another
        self.window = window
        self.window_octets = window_octets
        self.chunking = self.untried
        self.messages = 0
        self.opened = window
        self.chunk_refused = False
        self.misread = False
        self.paused = False  # the transport cannot take more for now
        self.error: SMTPServerDisconnected | None = None
        self.closing: SMTPServerDisconnected | None = None  # the server says that it closes, and may go on
        self.progress = 0  # replies read so far
        # What the I/O layer hooks in: there is output, or the session has ended; an exchange is done or pulling.
        self.on_output: Callable[[], None] = lambda: None
        self.notify: Callable[[Exchange], None] = lambda exchange: None
        self.on_chunking: Callable[[], None] = lambda: None  # a probe has ended, or BDAT is not trusted any more
        self.trace: Callable[[str, bytes], None] | None = None
        self.watch: Watcher | None = None
        self.authenticated = False
        self.secure = False  # there is TLS, and the certificate was verified; for the transport to say
        self._redaction = Redaction()
        self._reader = ReplyReader(redact=self.redact)
        self._owed: deque[Exchange] = deque()
        self._queue: deque[Exchange] = deque()
        self._turn: Exchange | None = None
        self._output: list[bytes] = []
        self._leaving: list[Group] = []  # those whose octets are in it
        self._unanswered = 0  # octets
        self._serial = 0  # counts the commands that may leave a transaction open
        self._settled = 0  # the last of them that is known to have left none
        self._chunks_left = False  # a dialogue ended between BDAT and BDAT LAST
        self._intruding = False  # a reply that nobody is owed has begun; it may be a 421
        self._delivery = 0
        self._receiving = 0
        self._last_answered: Exchange | None = None  # the one that met the 421; None when the server went on

    # ---- what it is doing -------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """Whether nothing can be written any more."""
        return self.error is not None

    @property
    def head(self) -> Exchange | None:
        """The exchange that is owed the next reply."""
        return self._owed[0] if self._owed else None

    @property
    def lone(self) -> bool:
        """Whether what there is to write is all that is under way."""
        return len(self._owed) <= 1 and len(self._output) == 1

    @property
    def queued(self) -> bool:
        """Whether somebody awaits the turn."""
        return bool(self._queue)

    @property
    def load(self) -> int:
        """How many dialogues are under way, or await the turn."""
        waiting = self._turn is not None and not self._turn.owed
        return len(self._owed) + len(self._queue) + waiting

    @property
    def unfinished(self) -> int:
        """How many dialogues have not come to their end; `load` has those too that ended before their last reply."""
        return self.load - sum(exchange.done for exchange in self._owed)

    @property
    def idle(self) -> bool:
        """Whether nobody is owed a reply, and nobody holds or awaits the turn."""
        return not self._owed and self._turn is None and not self._queue

    @property
    def pipelining(self) -> bool:
        """Whether commands may be written before the replies to earlier ones are in (RFC 2920)."""
        return self.use_pipelining and "pipelining" in self.extensions

    @property
    def doomed(self) -> bool:
        """Whether it ends when the replies that others are owed are in: a 354 behind them cannot be answered."""
        return self._turn is not None and self._turn.abandoned and self.state is State.DATA

    @property
    def settled(self) -> bool:
        """Whether the outcome of everything written is known, and no transaction can be open.

        Where it is not, a transaction has to begin with RSET: servers differ in what they do with one
        that failed, and some take the next message *under the sender of the one before*.
        """
        return self._settled == self._serial

    def settle(self, group: Group) -> None:
        """The replies to `group` say that nothing was left open by it or by what was written before it."""
        self._settled = max(self._settled, group.serial)

    # ---- what callers do --------------------------------------------------------------------

    def start(self, dialogue: Dialogue, owner: Any = None, *, alone: bool = False, raw: bool = False) -> Exchange:
        """Put a dialogue in line for the write turn; it is written at once if nothing is in the way.

        Args:
            alone: write it only when no reply is owed.
            raw: it may end in the middle of AUTH, DATA or STARTTLS; its caller takes care of the rest.
        """
        if self._intruding and not self._owed:
            self.fail(SMTPServerDisconnected(f"server is closing the connection: {self._begun()}"))
        exchange = Exchange(dialogue, owner, alone, raw)
        self._queue.append(exchange)
        if self.error is not None or self.doomed:
            self._queue.clear()
            self._throw(exchange, self._doom() if self.error is None else self.disconnected())
        else:
            self.pump()
        return exchange

    def push(self, exchange: Exchange, content: bytes | None) -> None:
        """Give a dialogue that is `pulling` its next octets, or None at the end of the content."""
        exchange.pulling = False
        self._resume(exchange, content)
        self.pump()

    def abort(self, exchange: Exchange, error: BaseException) -> None:
        """The content cannot be had: throw `error` into the dialogue, which is `pulling`."""
        exchange.pulling = False
        self._throw(exchange, error)
        self.pump()

    def cancel(self, exchange: Exchange) -> None:
        """The owner has gone.  The connection stays in step, or is broken."""
        exchange.owner = None
        if exchange.done:
            return
        if exchange in self._queue:
            self._queue.remove(exchange)
            exchange.dialogue.close()
            exchange.done = True
            return
        if self._is_whole(exchange):
            return  # its replies are read, and nobody is told
        others_first = self.state is State.DATA and self.head is not exchange
        if (self.state in HELD or self.state is State.GREETING) and not others_first:
            self.fail(self._doom())
            return
        # A 354 that cannot be answered ends the connection, but not before others have the replies ahead of it.
        # Between commands: what is owed is read and dropped, and nothing more is written.
        exchange.abandoned = True
        exchange.pulling = False
        exchange.dialogue.close()
        if not exchange.owed:
            self._finish(exchange)
            self.pump()
        if self.doomed:  # what awaits the turn is told at once: it would be in the end
            waiting = list(self._queue)
            self._queue.clear()
            for other in waiting:
                self._throw(other, self._doom())

    def distrust_chunking(self) -> None:
        """Use BDAT no more: the server has not read a chunk that it refused."""
        self.chunking = Chunking.NOT_SHOWN
        self.on_chunking()

    def slow_start(self) -> None:
        """Let one message be unanswered until the server answers, then one more with each answer, up to the window.

        Each message that was written whole is in doubt if the server falls silent, so what may be unanswered has to be
        earned: at first, and again after a stall.
        """
        if self.chunking is Chunking.SHOWN:
            self.opened = 1

    def redact(self, text: bytes) -> bytes:
        """The same without the secrets that were written."""
        return self._redaction.text(text)

    def secured(self) -> None:
        """TLS is up: everything learnt before it is forgotten (RFC 3207 §4.2)."""
        self._apply(Event.SECURED)
        self._reader = ReplyReader(redact=self.redact)
        self.extensions = Extensions()
        self.esmtp = False
        self.authenticated = False

    # ---- what the transport does ------------------------------------------------------------

    def receive_data(self, data: bytes) -> None:
        """Octets from the server."""
        if self.closed:
            return
        if self._plaintext_over():
            self._injected(data)
            return
        if self.state is State.GREETING and data.startswith(_ALERT):
            alert = SMTPProtocolError(-1, b"an alert of TLS in the place of the greeting")
            alert.lasting = True
            self.fail(alert)
            return
        replies = self._reader.feed(data)
        self._delivery += 1
        self._receiving = self._delivery
        self.progress += len(replies)
        if self.trace is not None:
            for reply in replies:
                self.trace("<", self._redaction.text(b"%d %s" % reply))
        if self._redaction.secrets and self.state is not State.HELLO:
            replies = [self._redaction.reply(reply) for reply in replies]
        if self.watch is not None and replies:
            self.watch.replied(replies)
        if self._intruding and replies:
            self._unasked(replies[0])
            return
        start = 0
        while start < len(replies) and self.error is None:
            start = self._receive(replies, start)
        if self._reader.begun and self.error is None and self.closing is None and not self._awaits_reply():
            self._intruding = True
            if b"421"[: len(self._reader.pending)] != self._reader.pending[:3]:
                self._intruded(self._begun())
        self._receiving = 0
        if self._reader.error is not None:
            self.fail(self._reader.error)
        self.pump()

    def receive_eof(self) -> None:
        """The server closed."""
        if self.closed:
            return
        if self._reader.pending:
            why = f"Connection unexpectedly closed within a reply: {self._begun()}"
            self.fail(SMTPProtocolError(-1, why.encode()))
        elif self.closing is not None:
            self._end(Event.END, self.closing)
        elif self.idle:
            self._end(Event.END, SMTPServerDisconnected("Connection unexpectedly closed"))
        else:
            self.fail(SMTPServerDisconnected("Connection unexpectedly closed"))

    def fail(self, error: SMTPServerDisconnected) -> None:
        """Break for good: everyone who waits gets `error` (a copy each)."""
        self._end(Event.FAIL, error)

    def close(self) -> None:
        """Our side closed."""
        self._end(Event.END, SMTPServerDisconnected("connection closed on our side"))

    def output(self) -> bytes:
        """Take what is to be written."""
        output = self._output
        data = output[0] if len(output) == 1 else b"".join(output)
        output.clear()
        self._leaving.clear()
        return data

    def pump(self) -> None:
        """Let dialogues write, as long as the turn is free and the window open."""
        while self._queue and self._turn is None and self._may_start(self._queue[0]):
            if self._chunks_left and self.state is State.CHUNKS:
                # RFC 3030 §3: nothing else is possible before it.
                self._queue.appendleft(Exchange(self.reset(), None, alone=False, raw=False))
            self._resume(self._queue.popleft(), None)

    def reset(self) -> Dialogue:
        """RSET, and its reply."""
        group = Group(b"rset\r\n", (Event.rset,))
        replies = yield group
        if replies[0].ok:
            self.settle(group)
        return replies[0]

    # ---- inside -----------------------------------------------------------------------------

    def _may_start(self, exchange: Exchange) -> bool:
        if self.paused or self.closing is not None:
            return False
        if not self._owed:
            return True
        return (
            not exchange.alone
            and not self.chunk_refused  # the next reply tells whether it was read: until then nothing more is risked
            and self.overlap
            and self.pipelining
            and len(self._owed) < self.opened
            and self._unanswered < self.window_octets
        )

    def _resume(self, exchange: Exchange, value: Any) -> None:
        """Run the dialogue until it has to wait, or ends."""
        while True:
            if self._turn is None and exchange.group is None:
                self._turn = exchange
            try:
                step = exchange.dialogue.send(value)
            except StopIteration as stop:
                exchange.result = stop.value
                self._finish(exchange)
                return
            except BaseException as error:  # handed to the owner, as is
                exchange.error = error
                self._finish(exchange)
                return
            if isinstance(step, Pull):
                exchange.pulling = True
                self.notify(exchange)
                return
            if isinstance(step, ProbeFirst):
                # It steps back into the line, and the probe goes in front of it: an exchange of its own, which goes on
                # if the message is cancelled, and begins when nothing is owed, as some servers lose what stands behind
                # content that they have not answered.
                self._turn = None
                self._queue.appendleft(exchange)
                self._queue.appendleft(Exchange(probe(self, step.mail), None, alone=True, raw=False))
                return
            try:
                self._write(exchange, step)
            except Exception as error:  # not possible now; or an audit hook forbids it
                self._throw(exchange, error)
                return
            if step.wait and exchange.owed:
                return
            value = step.replies

    def _write(self, exchange: Exchange, group: Group) -> None:
        data = group.data
        if self.error is not None or (self.closing is not None and data):
            raise self.disconnected()
        if group.secret:
            self._redaction.learn(data)
        state = self.state
        for event in group.events:
            after = TRANSITIONS.get((state, event))
            if after is None:
                raise SMTPStateError(f"{event.value} is not possible now: {state.value}")
            state = after
            if event in OPENING:
                self._serial += 1
            elif event in UNPROVING and self.chunking is not Chunking.NOT_SHOWN:
                self.chunking = self.untried
        if data and self.watch is not None:
            self.watch.wrote(group)
        if data and self.trace is not None:
            self.trace(">", b"(not shown)" if group.secret else data)
        self.state = state  # now: whoever watches may have raised, and then nothing is written
        exchange.group = group
        exchange.waiting = group.wait
        if data and not group.more:
            exchange.written = self._receiving
        group.serial = self._serial
        if group.owed:
            if not exchange.owed:
                group.behind = bool(self._owed)
                self._owed.append(exchange)
            exchange.owed += group.owed
        if group.last:
            self._turn = None
        if data:
            exchange.size += len(data)
            self._unanswered += len(data)
            self._output.append(data)
            self._leaving.append(group)
            self.on_output()

    def _plaintext_over(self) -> bool:
        return self.state is State.HANDSHAKE

    def _awaits_reply(self) -> bool:
        """Whether the octets that have come just now can be of a reply that is owed.

        What comes in the same octets as the reply that let a command be written, was sent before that command.
        """
        return bool(self._owed) and self._owed[0].written != self._receiving

    def _receive(self, replies: list[Reply], start: int) -> int:
        """Hand replies to the exchange that is owed the next ones; the place of the first not taken."""
        if not self._awaits_reply():
            self._unasked(replies[start])
            return len(replies)
        exchange = self._owed[0]
        group = exchange.group
        assert group is not None
        self._last_answered = None
        if group.per_recipient is not None or self._reader.closing:
            end = start + 1
            self._count_recipient(exchange, group, replies[start])
        else:
            end = min(start + exchange.owed, len(replies))
        group.replies += replies[start:end]
        exchange.owed -= end - start
        if self.chunk_refused and self._has_misread(group):
            return end
        reply = replies[end - 1]
        if exchange.owed and 300 <= reply.code <= 399 and not exchange.raw:
            self.fail(SMTPProtocolError(reply.code, asks_for_more(reply)))
            return end
        if not exchange.owed:
            self._owed.popleft()
            if self.opened < self.window and group.final is Phase.FINAL:
                self.opened += 1
            if not self._owed and self.state in GO_CODES:
                go = reply.code in GO_CODES[self.state]
                self._apply(Event.GO if go else Event.NO)
            if self._plaintext_over() and (end < len(replies) or self._reader.pending or self._reader.error):
                self._injected(b"\n".join([b"%d %s" % later for later in replies[end:]] + [self._reader.pending]))
                return len(replies)
            if exchange.abandoned:
                if group.events[-1:] == (Event.bdat_last,) and not reply.ok:
                    self.chunk_refused = True  # as its dialogue would have found
                self._finish(exchange)
            elif exchange.waiting:
                self._resume(exchange, group.replies)
        if exchange.pulling and self._to_be_judged(replies[start:end]):
            # An answer to content that is not complete: the dialogue shall judge it now, not with the next octets.
            exchange.pulling = False
            self._resume(exchange, b"")
        if reply.code > 420 and is_leaving(reply):
            self._last_answered = exchange
            self.closing = SMTPServerDisconnected(f"server closed the connection: {said(*reply)}")
            self._drop_output()
        if self.closing is not None and not self._may_be_answered():
            self._end(Event.END, self.closing)
        elif self.state is State.CLOSED:
            self.close()
        return end

    def _has_misread(self, group: Group) -> bool:
        """Whether the reply to RSET behind a refused chunk shows that the server took the chunk for commands.

        C: BDAT 80 LAST, and 80 octets that begin with a header field
        S: 552 too much, or the refusal of a BDAT without recipients; the chunk is not read
        C: RSET
        S: 500 what is "Subject:"?

        What it says from then on is no answer to what was written.
        """
        if group.events[:1] != (Event.rset,):
            return False
        self.chunk_refused = False
        if group.replies[0].ok or is_leaving(group.replies[0]):  # it is closing, whatever it took
            return False
        self._note_misread()
        self.fail(SMTPProtocolError(group.replies[0].code, b"the server took a chunk that it refused for commands"))
        return True

    def _note_misread(self) -> None:
        self.misread = True
        self.distrust_chunking()

    def _to_be_judged(self, replies: list[Reply]) -> bool:
        """Whether a dialogue that pulls content has a reply that it should look at now."""
        if self.state is State.CHALLENGE:  # what it pulls is the response to it
            return False
        return self.state is State.CONTENT or not all(reply.ok for reply in replies)

    def _is_whole(self, exchange: Exchange) -> bool:
        """Whether all that it has to write was written."""
        return exchange is not self._turn or (exchange.group is not None and exchange.group.open_end)

    def _may_be_answered(self) -> bool:
        """Whether something was written whole that a server which goes on behind a 421 may answer.

        RFC 5321 §3.8: it is closing, and as it answers in order, what stands behind was not looked at.  But some say
        421 to a recipient, and go on: then what they take must not be sent again.
        """
        head = self.head
        return head is not None and self._is_whole(head) and head.group is not None and not head.group.dropped

    @staticmethod
    def _count_recipient(exchange: Exchange, group: Group, reply: Reply) -> None:
        """RFC 2033 §4.2: one reply after the content for each recipient accepted; one is owed anyhow."""
        places = group.per_recipient
        place = len(group.replies)
        if places is not None and place in places and reply.ok:
            exchange.owed += any(earlier.ok for earlier in group.replies[places.start : place])

    def _unasked(self, reply: Reply) -> None:
        if reply.code == 421:
            self._end(Event.END, SMTPServerDisconnected(f"server closed the connection: {said(*reply)}"))
        else:
            self._intruded(printable(self.redact(b"%d %s" % reply)))

    def _intruded(self, shown: str) -> None:
        """Break at a reply that nobody is owed: if it has only begun, the next command's would be taken for its rest.

        Behind a refused chunk it shows as much as one in the place of RSET's.
        """
        if self.chunk_refused:
            self._note_misread()
        self.fail(SMTPProtocolError(-1, f"a reply that no command is owed: {shown}".encode()))

    def _begun(self) -> str:
        """What has come of a reply that is not complete, fit to stand in an error."""
        return printable(self.redact(self._reader.pending))

    def _injected(self, data: bytes) -> None:
        # RFC 3207 §6 and CVE-2011-0411: what came in plaintext must not be taken for an answer under TLS.
        shown = printable(self.redact(data))
        self.fail(SMTPProtocolError(-1, f"plaintext behind the reply to STARTTLS: {shown}".encode()))

    def _apply(self, event: Event) -> None:
        self.state = TRANSITIONS[self.state, event]

    def _finish(self, exchange: Exchange) -> None:
        """The dialogue is over."""
        self._unanswered -= exchange.size
        exchange.size = 0
        self._reader.kept = 0
        if exchange.done:
            return
        exchange.done = True
        exchange.pulling = False
        if self._turn is exchange:
            self._turn = None
            self._chunks_left = not exchange.raw
            if self.state in HELD and not exchange.raw and exchange.group is not None:
                self.fail(SMTPServerDisconnected("a command was left in the middle"))
            elif isinstance(exchange.error, SMTPAuthenticationError) and exchange.error.smtp_code == UNPROVEN:
                # Nothing of what others have queued behind the login is for this server.
                self.fail(SMTPServerDisconnected("the server has not proved that it knows the password"))
        if exchange.owed and exchange in self._owed:
            # It ended early (its content failed, say): its replies are read and dropped.
            exchange.abandoned = True
        if exchange.owner is not None:
            self.notify(exchange)

    def _throw(self, exchange: Exchange, error: BaseException) -> None:
        if exchange.group is None and isinstance(error, SMTPServerDisconnected):
            error.state = "not_sent"  # nothing of it was written, and it cannot say so itself
        try:
            exchange.dialogue.throw(error)
        except StopIteration as stop:
            exchange.result = stop.value
        except BaseException as raised:  # handed to the owner, as is
            exchange.error = raised
        else:
            # It wants to write more, to a session that cannot.
            exchange.dialogue.close()
            exchange.error = error
        self._finish(exchange)

    @staticmethod
    def _doom() -> SMTPServerDisconnected:
        return SMTPServerDisconnected("closed, as another call was cancelled in the middle of a command")

    def disconnected(self) -> SMTPServerDisconnected:
        """Why nothing can be written any more: an exception of the caller's own."""
        why = self.error or self.closing
        assert why is not None
        error = copy.copy(why)
        error.__traceback__ = None
        error.__cause__ = why.__cause__  # which a copy does not have
        return error

    def _end(self, event: Event, error: SMTPServerDisconnected) -> None:
        if self.error is not None:
            return
        self.error = error
        if self.state is not State.CLOSED:
            self._apply(event)
        waiting = list(self._owed)
        if self._turn is not None and self._turn not in waiting:
            waiting.append(self._turn)
        waiting += self._queue
        self._turn = None
        self._owed.clear()
        self._queue.clear()
        self._drop_output()
        self.on_output()
        for exchange in waiting:
            if exchange.done or exchange.dialogue.gi_running:  # type: ignore[attr-defined]
                continue  # a dialogue that runs has found the error, and raises what it has to
            if exchange.abandoned:
                exchange.done = True
                if exchange.owner is not None:  # who has come back to see its end
                    self.notify(exchange)
                continue
            told = self.disconnected()
            if error is self.closing and self._last_answered not in (None, exchange):
                told.state = "not_sent"  # else what became of it, its own replies say
            self._throw(exchange, told)

    def _drop_output(self) -> None:
        """What has not left is not written any more."""
        self._output.clear()
        for group in self._leaving:
            group.dropped = True
        self._leaving.clear()
