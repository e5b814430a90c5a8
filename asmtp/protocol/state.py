"""The states of a connection, and the one table that says how they follow one another.

Theory of operation
===================

SMTP is a strict queue: replies come in the order of the commands.  A session
(:class:`~asmtp.protocol.session.Session`) is that queue, a state, and a line of dialogues that wait for their turn to
write.

A **dialogue** is one thing that a caller wants: a NOOP, a login, a whole mail transaction.  It is a generator: it
yields each :class:`~asmtp.protocol.exchange.Group` of commands that is written in one go, is sent the list of their
replies, and returns its result.  It may yield PULL to be sent the next octets of streamed content (None at their end).
It never blocks and knows no I/O, so every dialogue can be played as a transcript.

**The write turn.**  One dialogue at a time may write.  It gives the turn up with the group behind which it writes
nothing more (`Turn.RELEASE`), *not* when the replies are in: the next dialogue's commands follow at once, often in the
same packet.  A message sent with BDAT needs the turn for one group only.  One sent with DATA keeps it from MAIL until
its content is written, and the next one's MAIL rides behind its final dot (RFC 2920 §3.1).

**Owed replies** are a FIFO of :class:`~asmtp.protocol.exchange.Exchange` s, one for each dialogue that has written.  An
exchange collects the replies that it is owed and then resumes its dialogue; its owner is told once, when there is a
result.  :mod:`asmtp.protocol.inbound` finds the exchange of each reply.

**The state** (`Session.state`) says what may be *written*: what has no row in :data:`TRANSITIONS` is not written.  It
moves when commands are written, and when a reply comes that the next command depends on (the answer to EHLO, DATA,
AUTH, STARTTLS, the greeting).  In those states nothing may be written until the reply has come, so it is always the
last one owed.

Whoever adds a command adds its rows to the table, looks whether it belongs into one of the sets below it, and names its
verb in :mod:`asmtp.protocol.dialogue`.

**Broken is sticky.**  After a time-out, a protocol error, an EOF or a cancellation in the wrong place the session is
CLOSED or BROKEN for good: every owner that waits is told, and nothing is ever written again.

**421** means that the server closes (RFC 5321 §3.8).  Nothing more is written: the state is CLOSING.  Then there are
two cases:

* Nothing that was written whole is unanswered.  The session ends at once, with the 421.
* Something is.  A server that goes on all the same would answer it, so replies are read until the server closes.  If it
  closes without another word, it did not look at what stands behind its 421: that was not sent.

Some servers say with another reply that they have had enough of a connection (Exim: "554 Too many nonmail commands").
That is the same: see :func:`asmtp.protocol.reply.is_leaving`.

The machines beside it
======================

The table says which commands may be written, but not when, and not how replies are judged.  Seven small machines run
beside it:

* The turn: free, or held by one exchange (`Session._turn`), for which others wait in line (`Session._queue`).
  :class:`~asmtp.protocol.exchange.Turn` says what a group does to it.
* Each exchange: it waits in line, writes, pulls content, is done, or was cancelled, and only its replies are still to
  come: see :class:`~asmtp.protocol.exchange.ExchangeState`.  Those that are owed replies are in `Inbound.owed`.
* The window: how many dialogues may be unanswered (`Session.opened`, which grows with each answer up to `window`), and
  how many octets (`Session._unanswered`).  Without `Session.overlap` or PIPELINING, and while `Session.paused`, it is
  shut.
* What may have been left open: the commands that may have opened a transaction are counted (`Session._serial`), and so
  are those that are known to have left none (`Session._clean_up_to`).  If the two differ, RSET goes first.
* BDAT on this connection (`Session.chunking`): see :class:`Chunking`.
* The last chunk, if it was refused: whether the server has read it as content (`Session.last_chunk`).
* Reading: between replies, within one (`Inbound.reader`), or within one that nobody is owed (`Inbound.intruding`);
  behind a 421, the exchange that was answered so (`Inbound.left_at`).

The rest are facts that were learnt of the server, not states: `Session.extensions`, `Session.esmtp`,
`Session.authenticated`, `Session.secure`.  When TLS is up, all but the last are forgotten (RFC 3207 §4.2).
"""

from __future__ import annotations

import enum
from typing import Final

__all__ = [
    "ENDED", "GO_CODES", "HELD", "OPENING", "TRANSITIONS", "UNPROVING", "Chunking", "LastChunk", "State", "Trigger",
    "diagram",
]  # fmt: skip


class State(enum.Enum):
    """The stages of a connection: each allows other things to be written."""

    __hash__ = object.__hash__  # Enum's own is Python code, and the table is looked up for every command

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
    DISCARD = "the message was left before BDAT LAST: RSET comes next"
    QUIT = "the reply to QUIT is owed"
    CLOSING = "421 was read: nothing more is written; what was written whole before may still be answered"
    CLOSED = "closed by either side, in step"
    BROKEN = "out of step, or cut off: nothing is ever written again"


class Trigger(enum.Enum):
    """The inputs of the table: commands and content that are written (in lower case), and other incidents."""

    __hash__ = object.__hash__

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
    ABORT = "a message was left before BDAT LAST"
    BYE = "421, or another reply that says that the server closes"
    END = "either side closed"
    FAIL = "out of step, timed out, cut off"


ENDED: Final = frozenset({State.CLOSED, State.BROKEN})
"""States that nothing leads out of."""


def _table() -> dict[tuple[State, Trigger], State]:
    table = {
        (State.GREETING, Trigger.GO): State.READY,
        (State.GREETING, Trigger.NO): State.READY,
        (State.HELLO, Trigger.GO): State.READY,
        (State.HELLO, Trigger.NO): State.READY,
        (State.STARTTLS, Trigger.GO): State.HANDSHAKE,
        (State.STARTTLS, Trigger.NO): State.READY,
        (State.HANDSHAKE, Trigger.SECURED): State.READY,
        (State.AUTH, Trigger.GO): State.CHALLENGE,
        (State.AUTH, Trigger.NO): State.READY,
        (State.CHALLENGE, Trigger.response): State.AUTH,
        (State.DATA, Trigger.GO): State.CONTENT,
        # Servers disagree about whether the transaction is still open.
        (State.DATA, Trigger.NO): State.TRANSACTION,
        (State.CONTENT, Trigger.content): State.CONTENT,
        (State.CONTENT, Trigger.dot): State.READY,
        (State.CHUNKS, Trigger.bdat): State.CHUNKS,
        (State.CHUNKS, Trigger.bdat_last): State.READY,
        (State.CHUNKS, Trigger.rset): State.READY,
        (State.CHUNKS, Trigger.quit): State.QUIT,
        (State.CHUNKS, Trigger.ABORT): State.DISCARD,
        # RFC 3030 §2: RSET in front of BDAT LAST discards the chunks that were sent.  Without it the next message would
        # be taken for the rest of this one.
        (State.DISCARD, Trigger.rset): State.READY,
        (State.QUIT, Trigger.GO): State.CLOSED,
        (State.QUIT, Trigger.NO): State.CLOSED,
    }
    for open_state in (State.READY, State.TRANSACTION):
        # RFC 5321 §4.1.4: the server answers 503 to a command out of order, so that is not for us to say.
        table |= {
            (open_state, Trigger.hello): State.HELLO,
            (open_state, Trigger.starttls): State.STARTTLS,
            (open_state, Trigger.auth): State.AUTH,
            (open_state, Trigger.mail): State.TRANSACTION,
            (open_state, Trigger.rcpt): State.TRANSACTION,
            (open_state, Trigger.data): State.DATA,
            (open_state, Trigger.bdat): State.CHUNKS,
            (open_state, Trigger.bdat_last): State.READY,
            (open_state, Trigger.rset): State.READY,
            (open_state, Trigger.other): open_state,
            (open_state, Trigger.quit): State.QUIT,
        }
    for state in State:
        if state not in ENDED:
            if state is not State.HANDSHAKE:  # then nothing that comes is a reply
                table[state, Trigger.BYE] = State.CLOSING
            table[state, Trigger.END] = State.CLOSED
            table[state, Trigger.FAIL] = State.BROKEN
    return table


TRANSITIONS: Final = _table()
"""(state, trigger) to state.  A pair that is not in it is not possible."""

# The states in which nothing may be written until the reply has come, and the codes that let it go on.
GO_CODES: Final = {
    State.GREETING: range(220, 221),
    State.HELLO: range(200, 300),
    State.STARTTLS: range(220, 221),
    State.AUTH: range(334, 335),
    State.DATA: range(354, 355),
    State.QUIT: range(200, 300),
}

# The states that only the dialogue which made them can leave: if it ends there, the session is out of step.
HELD: Final = frozenset({State.DATA, State.CONTENT, State.AUTH, State.CHALLENGE, State.STARTTLS, State.HANDSHAKE})

# The triggers that may leave a transaction open: the next one has to begin with RSET.
OPENING: Final = frozenset({Trigger.mail, Trigger.rcpt, Trigger.data, Trigger.bdat, Trigger.bdat_last})

# The triggers behind which the server may be another one: it has to show again what it does with a refused chunk.
UNPROVING: Final = frozenset({Trigger.hello, Trigger.starttls, Trigger.auth})


class Chunking(enum.Enum):
    """The stages of the question whether a connection reads and drops a refused chunk.

    * A probe leads from UNKNOWN to PROBING, and from there to INCONCLUSIVE, SHOWN or NOT_SHOWN.
    * From INCONCLUSIVE a second probe leads to SHOWN or NOT_SHOWN.
    * STARTTLS, AUTH, XCLIENT and EHLO lead back to UNKNOWN; but not from NOT_SHOWN, which is known of the relay.
    """

    UNKNOWN = "not probed yet"
    PROBING = "the probe is under way, or the connection ended within it"
    INCONCLUSIVE = "probed, but MAIL was refused: once more"
    SHOWN = "it reads and drops a refused chunk"
    NOT_SHOWN = "it may read a refused chunk as commands, or has not shown that it does not"


class LastChunk(enum.Enum):
    """The fate of the last chunk, which the server may have refused."""

    READ = "it was read as content, whether it was taken or not"
    DOUBTED = "it was refused, and no reply has shown yet that it was read all the same"
    MISREAD = "the server took it for commands, and the session has ended"


def diagram() -> str:
    """Return the table as a Mermaid state diagram, without BYE, END and FAIL, which lead out of every state."""
    arrows: dict[tuple[str, str], list[str]] = {}
    for (before, trigger), after in TRANSITIONS.items():
        if trigger not in (Trigger.BYE, Trigger.END, Trigger.FAIL):
            arrows.setdefault((before.name, after.name), []).append(trigger.name)
    lines = [f"    {before} --> {after}: {', '.join(names)}" for (before, after), names in arrows.items()]
    return "\n".join(["stateDiagram-v2", f"    [*] --> {State.GREETING.name}", *lines, ""])
