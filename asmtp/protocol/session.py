"""The protocol state machine of one connection, without I/O.

Theory of operation
===================

SMTP is a strict queue: replies come in the order of the commands.  A :class:`Session` is that queue, a
state, and a line of dialogues that wait for their turn to write.

A **dialogue** is one thing that a caller wants: a NOOP, a login, a whole mail transaction.  It is a
generator: it yields :class:`Group` s of commands to be written in one go, is sent the list of their
replies, and returns its result.  It may yield :data:`PULL` to be sent the next octets of streamed content
(None at their end).  It never blocks and knows no I/O, so every dialogue can be played as a transcript.

**The write turn.**  One dialogue at a time may write.  It gives the turn up with the group that it marks
as its `last`, *not* when the replies are in: the next dialogue's commands follow at once, often in the same
packet.  A message sent with BDAT needs the turn for one group only; one sent with DATA keeps it from MAIL
until its content is written, and the next one's MAIL rides behind its final dot (RFC 2920 §3.1).

**Owed replies** are a FIFO of :class:`Exchange` s, one for each dialogue that has written.  An exchange
collects the replies it is owed and then resumes its dialogue; its owner is told once, when there is a result.

**The state** says what may be *written*.  It moves when commands are written, and when a reply comes that
the next command depends on (the answer to EHLO, DATA, AUTH, STARTTLS, the greeting): in those states nothing
may be written until it has come, so the reply that moves the state is always the last one owed.  The
whole of it is :data:`TRANSITIONS`; whoever adds a command adds its rows there, and nowhere else.

**Broken is sticky.**  After a time-out, a protocol error, an EOF or a cancellation in the wrong place the
session is CLOSED or BROKEN for good: everyone who waits is told, and nothing is ever written again.
"""

from __future__ import annotations

import copy
import enum
from collections import deque
from collections.abc import Callable, Generator
from typing import Any, Final, TypeAlias

from asmtp.errors import SMTPProtocolError, SMTPServerDisconnected, SMTPStateError
from asmtp.protocol.extensions import Extensions
from asmtp.protocol.reply import Reply, ReplyReader, printable

__all__ = ["PULL", "TRANSITIONS", "Dialogue", "Event", "Exchange", "Group", "Phase", "Session", "State"]


class State(enum.Enum):
    """What may be written."""

    GREETING = "the server's greeting is owed"
    READY = "between transactions"
    HELLO = "the reply to EHLO, HELO or LHLO is owed"
    STARTTLS = "the reply to STARTTLS is owed"
    HANDSHAKE = "220 to STARTTLS: the TLS handshake comes next"
    AUTH = "the reply to AUTH or to a response is owed"
    CHALLENGE = "334: a response to the challenge comes next"
    TRANSACTION = "a transaction is open"
    DATA = "the reply to DATA is owed"
    CONTENT = "354: content comes next, until the dot"
    CHUNKS = "BDAT without LAST was written"
    QUIT = "the reply to QUIT is owed"
    CLOSED = "closed by either side, in step"
    BROKEN = "out of step, or cut off: nothing is ever written again"


class Event(enum.Enum):
    """What is written (lower case), and what moves the state besides."""

    hello = "EHLO, HELO, LHLO"
    starttls = "STARTTLS"
    auth = "AUTH"
    response = "a SASL response"
    mail = "MAIL"
    rcpt = "RCPT"
    data = "DATA"
    content = "content"
    dot = "the end of the content"
    bdat = "BDAT"
    bdat_last = "BDAT LAST"
    rset = "RSET"
    quit = "QUIT"
    other = "NOOP, VRFY, EXPN, HELP, ..."
    GO = "the reply that lets it go on: 220, 250 to a hello, 334, 354"
    NO = "any other reply"
    SECURED = "TLS is up"
    END = "either side closed"
    FAIL = "out of step, timed out, cut off"


def _table() -> dict[tuple[State, Event], State]:
    table = {
        (State.GREETING, Event.GO): State.READY,
        (State.GREETING, Event.NO): State.READY,
        (State.HELLO, Event.GO): State.READY,
        (State.HELLO, Event.NO): State.READY,
        (State.STARTTLS, Event.GO): State.HANDSHAKE,
        (State.STARTTLS, Event.NO): State.READY,
        (State.HANDSHAKE, Event.SECURED): State.READY,
        (State.AUTH, Event.GO): State.CHALLENGE,
        (State.AUTH, Event.NO): State.READY,
        (State.CHALLENGE, Event.response): State.AUTH,
        (State.DATA, Event.GO): State.CONTENT,
        # Whether a transaction is still open after DATA was refused, servers disagree.
        (State.DATA, Event.NO): State.TRANSACTION,
        (State.CONTENT, Event.content): State.CONTENT,
        (State.CONTENT, Event.dot): State.READY,
        (State.CHUNKS, Event.bdat): State.CHUNKS,
        (State.CHUNKS, Event.bdat_last): State.READY,
        # RFC 3030 §3: after a failed BDAT the state is indeterminate until RSET.
        (State.CHUNKS, Event.rset): State.READY,
        (State.CHUNKS, Event.quit): State.QUIT,
        (State.QUIT, Event.GO): State.CLOSED,
        (State.QUIT, Event.NO): State.CLOSED,
    }
    for open_state in (State.READY, State.TRANSACTION):
        # Whether a command fits into the transaction is for the server to say (503), not for us.
        table |= {
            (open_state, Event.hello): State.HELLO,
            (open_state, Event.starttls): State.STARTTLS,
            (open_state, Event.auth): State.AUTH,
            (open_state, Event.mail): State.TRANSACTION,
            (open_state, Event.rcpt): State.TRANSACTION,
            (open_state, Event.data): State.DATA,
            (open_state, Event.bdat): State.CHUNKS,
            (open_state, Event.bdat_last): State.READY,
            (open_state, Event.rset): State.READY,
            (open_state, Event.other): open_state,
            (open_state, Event.quit): State.QUIT,
        }
    for state in State:
        if state is not State.CLOSED and state is not State.BROKEN:
            table[state, Event.END] = State.CLOSED
            table[state, Event.FAIL] = State.BROKEN
    return table


TRANSITIONS: Final = _table()
"""(state, event) to state.  What is not in it is not possible."""

# Nothing may be written until the reply has come, and these codes are the ones that let it go on.
_GO_CODES: Final = {
    State.GREETING: range(220, 221),
    State.HELLO: range(200, 300),
    State.STARTTLS: range(220, 221),
    State.AUTH: range(334, 335),
    State.DATA: range(354, 355),
    State.QUIT: range(200, 300),
}

# States that only the dialogue which made them can leave: if it ends there, the session is out of step.
_HELD: Final = frozenset({State.DATA, State.CONTENT, State.AUTH, State.CHALLENGE, State.STARTTLS, State.HANDSHAKE})

# Events that leave or may leave a transaction behind which the next one has to reset.
_OPENING: Final = frozenset({Event.mail, Event.rcpt, Event.data, Event.bdat, Event.bdat_last})


class Phase(enum.Enum):
    """What a reply is awaited for: each has a time limit of its own (RFC 5321 §4.5.3.2)."""

    GREETING = "the greeting"
    COMMAND = "a command"
    DATA = "DATA"
    CONTENT = "content being sent"
    FINAL = "the end of the content"
    QUIT = "QUIT"


class Group:
    """Commands (or content) written in one go, and the replies they are owed.

    Args:
        data: the octets to write.
        events: what they mean to the state, in order.
        owed: how many replies they add to what the dialogue is owed.
        last: the dialogue writes nothing more and gives up the turn.
        wait: resume the dialogue when all it is owed has come; False: at once.
        phase: what the replies are awaited for; a group's last reply may have a phase of its own, `final`.
        secret: never shown in a trace.
        replies: where replies are collected; a dialogue that writes several groups may share one list.
        per_recipient: (LMTP) the places of the RCPT replies: each 2yz among them but the first adds
            one to the replies owed after the content (RFC 2033 §4.2).
    """

    __slots__ = (
        "data", "events", "final", "last", "owed", "per_recipient", "phase", "replies", "secret", "serial", "wait",
    )  # fmt: skip

    def __init__(
        self,
        data: bytes,
        events: tuple[Event, ...],
        owed: int = 1,
        *,
        last: bool = False,
        wait: bool = True,
        phase: Phase = Phase.COMMAND,
        final: Phase | None = None,
        secret: bool = False,
        replies: list[Reply] | None = None,
        per_recipient: range | None = None,
    ) -> None:
        self.data = data
        self.events = events
        self.owed = owed
        self.last = last
        self.wait = wait
        self.phase = phase
        self.final = final or phase
        self.secret = secret
        self.replies: list[Reply] = [] if replies is None else replies
        self.per_recipient = per_recipient
        self.serial = 0  # see Session.settle()


class _Pull:
    """The type of PULL."""


PULL: Final = _Pull()
"""What a dialogue yields to be sent the next octets of its content: bytes, or None at the end."""

Dialogue: TypeAlias = Generator[Group | _Pull, Any, Any]


class Exchange:
    """A dialogue under way: the replies it is owed, and in the end its result or its error.

    Attributes:
        owner: anything; for whoever started it.
        pulling: the dialogue waits for content: see :meth:`Session.push`.
        done, result, error: how it ended.
    """

    __slots__ = (
        "abandoned", "alone", "dialogue", "done", "error", "group", "owed", "owner", "pulling", "raw",
        "result", "size", "waiting", "written",
    )  # fmt: skip

    def __init__(self, dialogue: Dialogue, owner: Any, alone: bool, raw: bool) -> None:
        self.dialogue = dialogue
        self.owner = owner
        self.alone = alone
        self.raw = raw
        self.group: Group | None = None
        self.owed = 0
        self.size = 0
        self.waiting = False
        self.written = 0  # the number of the delivery of octets in whose course it was written; 0 for none
        self.pulling = False
        self.abandoned = False
        self.done = False
        self.result: Any = None
        self.error: BaseException | None = None

    @property
    def phase(self) -> Phase:
        """What the next reply is awaited for."""
        group = self.group
        assert group is not None
        return group.phase if self.owed > 1 and not group.per_recipient else group.final


class Session:
    """One connection's protocol state.  The transport feeds it; dialogues are started on it.

    Args:
        lmtp: speak LMTP (RFC 2033).
        pipelining: use PIPELINING where the server offers it.
        window: how many dialogues may be unanswered before the next one is written.
        window_octets: how many octets may be.
    """

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
        self.paused = False  # the transport cannot take more for now
        self.error: SMTPServerDisconnected | None = None
        self.progress = 0  # replies read so far
        # What the I/O layer hooks in: there is output, or the session has ended; an exchange is done or pulling.
        self.on_output: Callable[[], None] = lambda: None
        self.notify: Callable[[Exchange], None] = lambda exchange: None
        self.trace: Callable[[str, bytes], None] | None = None
        self._reader = ReplyReader()
        self._owed: deque[Exchange] = deque()
        self._queue: deque[Exchange] = deque()
        self._turn: Exchange | None = None
        self._output: list[bytes] = []
        self._unanswered = 0  # octets
        self._serial = 0  # counts the commands that may leave a transaction open
        self._settled = 0  # the last of them that is known to have left none
        self._delivery = 0
        self._receiving = 0

    # ---- what it is doing -------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """Whether nothing can be written any more."""
        return self.error is not None or self.state is State.CLOSED

    @property
    def head(self) -> Exchange | None:
        """The exchange that is owed the next reply."""
        return self._owed[0] if self._owed else None

    @property
    def idle(self) -> bool:
        """Whether nobody is owed a reply, and nobody holds or awaits the turn."""
        return not self._owed and self._turn is None and not self._queue

    @property
    def pipelining(self) -> bool:
        """Whether commands may be written before the replies to earlier ones are in (RFC 2920)."""
        return self.use_pipelining and "pipelining" in self.extensions

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
        exchange = Exchange(dialogue, owner, alone, raw)
        self._queue.append(exchange)
        if self.error is not None or self.state is State.CLOSED:
            self._queue.clear()
            self._throw(exchange, self._disconnected())
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
        if exchange is not self._turn:
            return  # written as a whole: its replies are read, and nobody is told
        if self.state in _HELD or self.state is State.GREETING:
            self.fail(SMTPServerDisconnected("cancelled in the middle of a command"))
            return
        # Between commands: what is owed is read and dropped, and nothing more is written.
        exchange.abandoned = True
        exchange.dialogue.close()
        if not exchange.owed:
            self._finish(exchange)
            self.pump()

    def secured(self) -> None:
        """TLS is up: everything learnt before it is forgotten (RFC 3207 §4.2)."""
        self._apply(Event.SECURED)
        self.extensions = Extensions()
        self.esmtp = False

    # ---- what the transport does ------------------------------------------------------------

    def receive_data(self, data: bytes) -> None:
        """Octets from the server."""
        if self.closed:
            return
        if self.state is State.HANDSHAKE:
            self._injected(data)
            return
        replies = self._reader.feed(data)
        self._delivery += 1
        self._receiving = self._delivery
        for place, reply in enumerate(replies, 1):
            self._receive(reply)
            if self.closed:
                break
            if self.state is State.HANDSHAKE and (place < len(replies) or self._reader.pending):
                self._injected(data)
                break
        self._receiving = 0
        if self._reader.error is not None:
            self.fail(self._reader.error)
        self.pump()

    def receive_eof(self) -> None:
        """The server closed."""
        if self.closed:
            return
        if self._reader.pending:
            begun = printable(self._reader.pending)
            self.fail(SMTPProtocolError(-1, f"Connection unexpectedly closed within a reply: {begun}".encode()))
        elif self.idle:
            self._end(Event.END, SMTPServerDisconnected("Connection unexpectedly closed"))
        else:
            self.fail(SMTPServerDisconnected("Connection unexpectedly closed"))

    def fail(self, error: SMTPServerDisconnected) -> None:
        """Break for good: everyone who waits gets `error` (a copy each)."""
        self._end(Event.FAIL, error)

    def close(self) -> None:
        """Our side closed."""
        self._end(Event.END, SMTPServerDisconnected("please run connect() first"))

    def output(self) -> bytes:
        """Take what is to be written."""
        output = self._output
        data = output[0] if len(output) == 1 else b"".join(output)
        output.clear()
        return data

    def pump(self) -> None:
        """Let dialogues write, as long as the turn is free and the window open."""
        while self._queue and self._turn is None and self._may_start(self._queue[0]):
            self._resume(self._queue.popleft(), None)

    # ---- inside -----------------------------------------------------------------------------

    def _may_start(self, exchange: Exchange) -> bool:
        if self.paused:
            return False
        if not self._owed:
            return True
        return (
            not exchange.alone
            and self.overlap
            and self.pipelining
            and len(self._owed) < self.window
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
            if isinstance(step, _Pull):
                exchange.pulling = True
                self.notify(exchange)
                return
            try:
                self._write(exchange, step)
            except (SMTPStateError, SMTPServerDisconnected) as error:
                self._throw(exchange, error)
                return
            if step.wait and exchange.owed:
                return
            value = step.replies

    def _write(self, exchange: Exchange, group: Group) -> None:
        if self.closed:
            raise self._disconnected()
        state = self.state
        for event in group.events:
            after = TRANSITIONS.get((state, event))
            if after is None:
                raise SMTPStateError(f"{event.value} is not possible now: {state.value}")
            state = after
            if event in _OPENING:
                self._serial += 1
        self.state = state
        exchange.group = group
        exchange.waiting = group.wait
        exchange.written = self._receiving
        group.serial = self._serial
        if group.owed:
            if not exchange.owed:
                self._owed.append(exchange)
            exchange.owed += group.owed
        if group.last:
            self._turn = None
        data = group.data
        if data:
            exchange.size += len(data)
            self._unanswered += len(data)
            self._output.append(data)
            if self.trace is not None:
                self.trace(">", b"(not shown)" if group.secret else data)
            self.on_output()

    def _receive(self, reply: Reply) -> None:
        self.progress += 1
        if self.trace is not None:
            self.trace("<", b"%d %s" % reply)
        if not self._owed:
            self._unasked(reply)
            return
        exchange = self._owed[0]
        group = exchange.group
        assert group is not None
        if exchange.written == self._receiving:
            # It came in the same octets as the reply that let this command be written: before the command.
            self._unasked(reply)
            return
        group.replies.append(reply)
        exchange.owed -= 1
        places = group.per_recipient
        if places is not None and reply.code < 300 and len(group.replies) - 1 in places:
            # RFC 2033 §4.2: one reply after the content for each recipient accepted, and one is owed anyhow.
            if any(earlier.ok for earlier in group.replies[places.start : len(group.replies) - 1]):
                exchange.owed += 1
        if not exchange.owed:
            self._owed.popleft()
            if not self._owed and self.state in _GO_CODES:
                go = reply.code in _GO_CODES[self.state]
                self._apply(Event.GO if go else Event.NO)
            if exchange.abandoned:
                self._finish(exchange)
            elif exchange.waiting:
                self._resume(exchange, group.replies)
        if reply.code == 421:
            # RFC 5321 §3.8: the server is closing.  It answers in order, so what stands behind was not looked at.
            error = SMTPServerDisconnected(f"server closed the connection: {reply}")
            error.state = "not_sent"
            self._end(Event.END, error, answered=exchange)
        elif self.state is State.CLOSED:
            self.close()

    def _unasked(self, reply: Reply) -> None:
        if reply.code == 421:
            self._end(Event.END, SMTPServerDisconnected(f"server closed the connection: {reply}"))
        else:
            shown = printable(b"%d %s" % reply)
            self.fail(SMTPProtocolError(-1, f"a reply that no command is owed: {shown}".encode()))

    def _injected(self, data: bytes) -> None:
        # RFC 3207 §6 and CVE-2011-0411: what came in plaintext must not be taken for an answer under TLS.
        self.fail(SMTPProtocolError(-1, f"plaintext behind the reply to STARTTLS: {printable(data)}".encode()))

    def _apply(self, event: Event) -> None:
        self.state = TRANSITIONS[self.state, event]

    def _finish(self, exchange: Exchange) -> None:
        """The dialogue is over."""
        self._unanswered -= exchange.size
        exchange.size = 0
        if exchange.done:
            return
        exchange.done = True
        if self._turn is exchange:
            self._turn = None
            if self.state in _HELD and not exchange.raw:
                self.fail(SMTPServerDisconnected("a command was left in the middle"))
        if exchange.owed and exchange in self._owed:
            # It ended early (its content failed, say): its replies are read and dropped.
            exchange.abandoned = True
        if exchange.owner is not None:
            self.notify(exchange)

    def _throw(self, exchange: Exchange, error: BaseException) -> None:
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

    def _disconnected(self) -> SMTPServerDisconnected:
        if self.error is None:
            return SMTPServerDisconnected("please run connect() first")
        error = copy.copy(self.error)
        error.__traceback__ = None
        return error

    def _end(self, event: Event, error: SMTPServerDisconnected, answered: Exchange | None = None) -> None:
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
        if event is Event.FAIL:
            self._output.clear()
        self.on_output()
        for exchange in waiting:
            if exchange.abandoned or exchange.done:
                exchange.done = True
                continue
            told = self._disconnected()
            if exchange is answered:
                told.state = None  # what became of it, its own replies say
            self._throw(exchange, told)
