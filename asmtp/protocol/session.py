"""One connection's protocol state, without I/O: the turn to write, and the dialogues that wait for it.

Begin with :mod:`asmtp.protocol.state`, which explains how it works.  The half of a session that reads is
:mod:`asmtp.protocol.inbound`.
"""

from __future__ import annotations

import copy
import inspect
from collections import deque
from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

from asmtp.errors import SMTPAuthenticationError, SMTPServerDisconnected, SMTPStateError
from asmtp.protocol.exchange import Dialogue, Exchange, ExchangeState, Group, Pull, StepBehind, Turn
from asmtp.protocol.extensions import Extensions
from asmtp.protocol.inbound import Inbound
from asmtp.protocol.redaction import Display
from asmtp.protocol.reply import Reply
from asmtp.protocol.sasl import UNPROVEN
from asmtp.protocol.state import HELD, OPENING, TRANSITIONS, UNPROVING, Chunking, LastChunk, State, Trigger

__all__ = ["DEFAULT_WINDOW", "DEFAULT_WINDOW_OCTETS", "Session"]

T = TypeVar("T")

DEFAULT_WINDOW = 100
"""Dialogues that may be unanswered on a connection."""

DEFAULT_WINDOW_OCTETS = 1 << 20
"""Octets that may be unanswered on a connection."""

# Looked up once: a member of an enum takes CPython 3.11 70 ns.
_ACTIVE = ExchangeState.ACTIVE
_DONE = ExchangeState.DONE
_CHUNKS = State.CHUNKS
_DISCARD = State.DISCARD
_KEEP = Turn.KEEP
_RELEASE = Turn.RELEASE
_NOT_SHOWN = Chunking.NOT_SHOWN
_DOUBTED = LastChunk.DOUBTED


class Session:
    """One connection's protocol state.  The transport feeds it; dialogues are started on it.

    Args:
        lmtp: speak LMTP (RFC 2033).
        pipelining: use PIPELINING if the server offers it.
        window: how many dialogues may be unanswered before the next one is written.
        window_octets: how many octets may be unanswered before the next dialogue is written.

    Attributes:
        state: what may be written.
        error: why nothing is written any more; None: the session is `writable`.
        extensions: what the server offers; `esmtp`: it has answered EHLO.
        overlap: whether a transaction may be written behind another's content; cleared for good if the server does not
            take that.
        chunking: whether content may be written by BDAT on this connection.
        last_chunk: whether the server has read the last chunk as content.
        opened: how many dialogues may be unanswered now, if content goes by BDAT: see `slow_start`.
        messages: how many transactions were begun.
        authenticated: there was a login.
        secure: there is TLS, and the certificate was verified; set by the transport.
        paused: the transport cannot take more for now; set by the transport.
        on_output: called when there is output, or the session has ended.
        notify: called when an exchange is done or pulls content.
        on_chunking: called when a probe has ended, or BDAT is not trusted any more.
        display: shows what is written and read.
    """

    untried: ClassVar = Chunking.UNKNOWN
    """The value of `chunking` on a connection on which BDAT was not tried."""

    declares_line_end: ClassVar = True
    """SIZE counts the line end that is added to content which has none at its end (RFC 1870 §5)."""

    def __init__(
        self,
        *,
        lmtp: bool = False,
        pipelining: bool = True,
        window: int = DEFAULT_WINDOW,
        window_octets: int = DEFAULT_WINDOW_OCTETS,
    ) -> None:
        self.lmtp = lmtp
        self.use_pipelining = pipelining
        self.window = window
        self.window_octets = window_octets
        self.state = State.GREETING
        self.error: SMTPServerDisconnected | None = None
        self.extensions = Extensions()
        self.esmtp = False
        self.overlap = True
        self.chunking = self.untried
        self.last_chunk = LastChunk.READ
        self.opened = window
        self.messages = 0
        self.authenticated = False
        self.secure = False
        self.paused = False
        self.on_output: Callable[[], None] = lambda: None
        self.notify: Callable[[Exchange[Any]], None] = lambda exchange: None
        self.on_chunking: Callable[[], None] = lambda: None
        self.display = Display()
        self._inbound = Inbound(self)
        self._owed = self._inbound.owed
        self._turn: Exchange[Any] | None = None
        self._queue: deque[Exchange[Any]] = deque()  # those that await the turn
        self._output: list[bytes] = []
        self._leaving: list[Group] = []  # the groups whose octets are in it
        self._unanswered = 0  # octets
        self._serial = 0  # counts the commands that may leave a transaction open
        self._clean_up_to = 0  # the last of them that is known to have left none

    # ---- what it is doing -------------------------------------------------------------------

    @property
    def writable(self) -> bool:
        """Tell whether commands can be written: now, or when the replies that they have to wait for are in."""
        return self.error is None

    @property
    def closed(self) -> bool:
        """Tell whether the session has ended: nothing is written and nothing is read any more."""
        return self.error is not None and self.state is not State.CLOSING

    @property
    def progress(self) -> int:
        """Return how many replies were read so far."""
        return self._inbound.progress

    @property
    def head(self) -> Exchange[Any] | None:
        """Return the exchange that is owed the next reply."""
        return self._owed[0] if self._owed else None

    @property
    def lone(self) -> bool:
        """Tell whether what there is to write is all that is under way."""
        return len(self._owed) <= 1 and len(self._output) == 1

    @property
    def queued(self) -> bool:
        """Tell whether a dialogue awaits the turn."""
        return bool(self._queue)

    @property
    def load(self) -> int:
        """Return how many dialogues are under way or await the turn."""
        waiting = self._turn is not None and not self._turn.owed
        return len(self._owed) + len(self._queue) + waiting

    @property
    def unfinished(self) -> int:
        """Return how many dialogues have not ended; `load` counts those too that ended before their last reply."""
        return self.load - sum(exchange.state is _DONE for exchange in self._owed)

    @property
    def idle(self) -> bool:
        """Tell whether no reply is owed, and no dialogue has or awaits the turn."""
        return not self._owed and self._turn is None and not self._queue

    @property
    def pipelining(self) -> bool:
        """Tell whether commands may be written before the replies to earlier ones are in (RFC 2920)."""
        return self.use_pipelining and "pipelining" in self.extensions

    @property
    def doomed(self) -> bool:
        """Tell whether the session will end at a 354 that is on its way: nobody is left to write content behind it."""
        turn = self._turn
        return turn is not None and turn.state is ExchangeState.CANCELLED and self.state is State.DATA

    @property
    def clean(self) -> bool:
        """Tell whether the outcome of everything written is known, and no transaction can be open.

        If not, a transaction has to begin with RSET: servers differ in what they do with one that failed, and some take
        the next message *under the sender of the one before*.
        """
        return self._clean_up_to == self._serial

    def mark_clean(self, group: Group) -> None:
        """Take note that neither `group` nor anything before it has left a transaction open: its replies say so."""
        self._clean_up_to = max(self._clean_up_to, group.serial)

    # ---- what callers do --------------------------------------------------------------------

    def start(self, dialogue: Dialogue[T], owner: Any = None, *, alone: bool = False, raw: bool = False) -> Exchange[T]:
        """Put a dialogue in line for the write turn; it is written at once if nothing is in the way.

        Args:
            owner, alone, raw: see :class:`~asmtp.protocol.exchange.Exchange`.
        """
        if self._inbound.intruding and not self._owed:
            self.fail(SMTPServerDisconnected(f"server is closing the connection: {self._inbound.begun()}"))
        exchange = Exchange(dialogue, owner, alone, raw)
        if self.error is not None and self.closed:
            self._throw(exchange, self.disconnected())
        elif self.doomed:
            self._throw(exchange, self._doom())
        else:
            self._queue.append(exchange)
            self.pump()
        return exchange

    def push(self, exchange: Exchange[Any], content: bytes | None) -> None:
        """Give a dialogue that is PULLING its next octets, or None at the end of the content."""
        exchange.state = _ACTIVE
        self.resume(exchange, content)
        self.pump()

    def abort(self, exchange: Exchange[Any], error: BaseException) -> None:
        """Throw `error` into a dialogue that is PULLING, as its content cannot be had."""
        exchange.state = _ACTIVE
        self._throw(exchange, error)
        self.pump()

    def cancel(self, exchange: Exchange[Any]) -> None:
        """Forget the owner of an exchange, as it waits no more.  The connection stays in step, or is broken."""
        exchange.owner = None
        if exchange.state is _DONE:
            return
        if exchange in self._queue:
            self._queue.remove(exchange)
            exchange.dialogue.close()
            exchange.state = _DONE
            return
        if self.is_whole(exchange):
            return  # its replies are judged, and no owner is told
        others_first = self.state is State.DATA and self.head is not exchange
        if (self.state in HELD or self.state is State.GREETING) and not others_first:
            self.fail(self._doom())
            return
        # It writes nothing more, and the replies that it is owed are dropped.  If a 354 to it is on its way, that will
        # end the connection, but others have the replies ahead of it first.
        exchange.state = ExchangeState.CANCELLED
        exchange.dialogue.close()
        if not exchange.owed:
            self.finish(exchange)
            self.pump()
        if self.doomed:  # those that await the turn are told now, not when the session ends
            while self._queue:
                self._throw(self._queue.popleft(), self._doom())

    def distrust_chunking(self) -> None:
        """Use BDAT no more, as the server has not read a chunk that it refused."""
        self.chunking = Chunking.NOT_SHOWN
        self.on_chunking()

    def slow_start(self) -> None:
        """Let one message be unanswered until the server answers, then one more with each answer, up to the window.

        A message that was written whole is in doubt if the server falls silent.  So the server has to earn the window:
        at first, and again after a stall.
        """
        if self.chunking is Chunking.SHOWN:
            self.opened = 1

    def redact(self, text: bytes) -> bytes:
        """Return the same text without the secrets that were written."""
        return self.display.redaction.text(text)

    def secured(self) -> None:
        """Forget everything that was learnt in plain text, as TLS is up (RFC 3207 §4.2)."""
        self.move(Trigger.SECURED)
        self._inbound.restart()
        self.extensions = Extensions()
        self.esmtp = False
        self.authenticated = False

    # ---- what the transport does ------------------------------------------------------------

    def receive_data(self, data: bytes) -> None:
        """Take octets from the server."""
        self._inbound.receive(data)

    def receive_eof(self) -> None:
        """Take note that the server closed."""
        self._inbound.receive_eof()

    def fail(self, error: SMTPServerDisconnected) -> None:
        """Break for good, and give a copy of `error` to each owner that waits."""
        self.end(Trigger.FAIL, error)

    def close(self) -> None:
        """End, as our side closes."""
        self.end(Trigger.END, SMTPServerDisconnected("connection closed on our side"))

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
            if self.state is _DISCARD:
                self._queue.appendleft(Exchange(self.reset(), None, alone=False, raw=False))
            self._turn = exchange = self._queue.popleft()
            exchange.state = _ACTIVE
            self.resume(exchange, None)

    def reset(self) -> Dialogue[Reply]:
        """Write RSET, and return its reply."""
        group = Group(b"rset\r\n", (Trigger.rset,))
        replies: list[Reply] = yield group
        if replies[0].ok:
            self.mark_clean(group)
        return replies[0]

    # ---- dialogues --------------------------------------------------------------------------

    def _may_start(self, exchange: Exchange[Any]) -> bool:
        if self.paused or not self.writable:
            return False
        if not self._owed:
            return True
        return (
            not exchange.alone
            and self.last_chunk is not _DOUBTED  # the next reply tells: until then nothing more is risked
            and self.overlap
            and self.pipelining
            and len(self._owed) < self.opened
            and self._unanswered < self.window_octets
        )

    def resume(self, exchange: Exchange[Any], value: Any) -> None:
        """Run a dialogue until it has to wait, or ends."""
        while True:
            try:
                step = exchange.dialogue.send(value)
            except StopIteration as stop:
                exchange.result = stop.value
                self.finish(exchange)
                return
            except BaseException as error:  # handed to the owner, as is
                exchange.error = error
                self.finish(exchange)
                return
            if isinstance(step, Pull):
                exchange.state = ExchangeState.PULLING
                self.notify(exchange)
                return
            if isinstance(step, StepBehind):
                # The dialogue in front has an exchange of its own, so it goes on if this one is cancelled.
                self._turn = None
                exchange.state = ExchangeState.QUEUED
                self._queue.appendleft(exchange)
                self._queue.appendleft(Exchange(step.dialogue, None, alone=True, raw=False))
                return
            try:
                self._write(exchange, step)
            except Exception as error:  # not possible now; or an audit hook forbids it
                self._throw(exchange, error)
                return
            if exchange.owed and step.turn is not _KEEP:
                return
            value = step.replies

    def _write(self, exchange: Exchange[Any], group: Group) -> None:
        if self.error is not None and self.closed:
            raise self.disconnected()
        state = self.state
        for trigger in group.triggers:
            after = TRANSITIONS.get((state, trigger))
            if after is None:
                raise self._impossible(state, trigger)
            state = after
            if trigger in OPENING:
                self._serial += 1
            elif trigger in UNPROVING and self.chunking is not _NOT_SHOWN:
                self.chunking = self.untried
        data = group.data
        display = self.display
        if group.secret or (data and (display.observer is not None or display.trace is not None)):
            display.wrote(group)
        self.state = state  # now: an observer may have raised, and then nothing is written
        exchange.group = group
        group.serial = self._serial
        if group.owed:
            if not exchange.owed:
                group.behind = bool(self._owed)
                self._owed.append(exchange)
            exchange.owed += group.owed
        if group.turn is _RELEASE:
            self._turn = None
        if data:
            if not group.more:
                exchange.read = self._inbound.reading
            exchange.size += len(data)
            self._unanswered += len(data)
            self._output.append(data)
            self._leaving.append(group)
            self.on_output()

    def _impossible(self, state: State, trigger: Trigger) -> SMTPServerDisconnected | SMTPStateError:
        """Return why something cannot be written in a state."""
        if state is State.CLOSING:
            return self.disconnected()
        return SMTPStateError(f"{trigger.value} is not possible now: {state.value}")

    def is_whole(self, exchange: Exchange[Any]) -> bool:
        """Return whether an exchange has written all that it has to write."""
        group = exchange.group
        return exchange is not self._turn or (group is not None and group.turn is Turn.UNTIL_COUNTED)

    def move(self, trigger: Trigger) -> None:
        """Change the state, by the table."""
        self.state = TRANSITIONS[self.state, trigger]

    def finish(self, exchange: Exchange[Any]) -> None:
        """Make an exchange DONE whose dialogue has ended, and tell its owner; if it is DONE, its last reply is in."""
        self._unanswered -= exchange.size
        exchange.size = 0
        self._inbound.reader.kept = 0
        if exchange.state is _DONE:
            return
        exchange.state = _DONE
        if self._turn is exchange:
            self._turn = None
            if self.state is _CHUNKS and not exchange.raw:
                self.move(Trigger.ABORT)
            elif self.state in HELD and not exchange.raw and exchange.group is not None:
                self.fail(SMTPServerDisconnected("a command was left in the middle"))
            elif isinstance(exchange.error, SMTPAuthenticationError) and exchange.error.smtp_code == UNPROVEN:
                # The dialogues behind the login are not for a server that may be another one.
                self.fail(SMTPServerDisconnected("the server has not proved that it knows the password"))
        if exchange.owner is not None:
            self.notify(exchange)

    def _throw(self, exchange: Exchange[Any], error: BaseException) -> None:
        """End a dialogue by an exception."""
        if exchange.group is None and isinstance(error, SMTPServerDisconnected):
            error.state = "not_sent"  # nothing of it was written, and it cannot say so itself
        try:
            exchange.dialogue.throw(error)
        except StopIteration as stop:
            exchange.result = stop.value
        except BaseException as raised:  # handed to the owner, as is
            exchange.error = raised
        else:
            # The dialogue wants to write more, to a session that cannot.
            exchange.dialogue.close()
            exchange.error = error
        self.finish(exchange)

    @staticmethod
    def _doom() -> SMTPServerDisconnected:
        return SMTPServerDisconnected("closed, as another call was cancelled in the middle of a command")

    def disconnected(self) -> SMTPServerDisconnected:
        """Return why nothing can be written any more, as an exception of the caller's own."""
        why = self.error
        assert why is not None
        error = copy.copy(why)
        error.__traceback__ = None
        error.__cause__ = why.__cause__  # which a copy does not have
        return error

    # ---- the end ----------------------------------------------------------------------------

    def end(self, trigger: Trigger, error: SMTPServerDisconnected) -> None:
        """Take the session to its end, and give a copy of `error` to each owner that waits."""
        if self.closed:
            return
        by_421 = error is self.error
        self.error = error
        if self.state is not State.CLOSED:
            self.move(trigger)
        waiting = list(self._owed)
        if self._turn is not None and self._turn not in waiting:
            waiting.append(self._turn)
        waiting += self._queue
        self._turn = None
        self._owed.clear()
        self._queue.clear()
        self.drop_output()
        self.on_output()
        for exchange in waiting:
            if exchange.state is _DONE or inspect.getgeneratorstate(exchange.dialogue) == inspect.GEN_RUNNING:
                continue  # a dialogue that runs now has found the error itself, and raises its own
            if exchange.state is ExchangeState.CANCELLED:
                exchange.state = _DONE
                if exchange.owner is not None:  # set again, to be told of the end
                    self.notify(exchange)
                continue
            told = self.disconnected()
            if by_421 and self._inbound.left_at not in (None, exchange):
                # RFC 5321 §3.8: the server closes behind its 421, so it has not looked at what stands behind.  If it
                # has gone on all the same (`left_at` is None), the replies of the exchange say what became of it.
                told.state = "not_sent"
            self._throw(exchange, told)

    def drop_output(self) -> None:
        """Throw away what has not left."""
        self._output.clear()
        for group in self._leaving:
            group.dropped = True
        self._leaving.clear()
