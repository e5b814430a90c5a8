"""The states of a connection, and the one table that says how they follow one another.

Theory of operation
===================

SMTP is a strict queue: replies come in the order of the commands.  A session
(:class:`~asmtp.protocol.session.Session`) is that queue, a state, and a line of dialogues that wait for their
turn to write.

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

**421** means that the server is closing (RFC 5321 §3.8): nothing more is written, and the session ends; with the
421, unless something behind it was written whole, which a server that goes on all the same would answer.  That is
read until the server closes.  Where it closes without a word, it did not look at what stands behind its 421.  Some
say otherwise that they have had enough of a connection (Exim: "554 Too many nonmail commands"), which is the same:
see :func:`asmtp.protocol.reply.is_leaving`.
"""

from __future__ import annotations

import enum
from typing import Final

__all__ = ["ENDED", "GO_CODES", "HELD", "OPENING", "TRANSITIONS", "UNPROVING", "Trigger", "State", "diagram"]


class State(enum.Enum):
    """What may be written."""

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
    QUIT = "the reply to QUIT is owed"
    CLOSING = "421 was read: nothing more is written; what was written whole before may still be answered"
    CLOSED = "closed by either side, in step"
    BROKEN = "out of step, or cut off: nothing is ever written again"


class Trigger(enum.Enum):
    """What is written (lower case), and what moves the state besides."""

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
        # Whether a transaction is still open after DATA was refused, servers disagree.
        (State.DATA, Trigger.NO): State.TRANSACTION,
        (State.CONTENT, Trigger.content): State.CONTENT,
        (State.CONTENT, Trigger.dot): State.READY,
        (State.CHUNKS, Trigger.bdat): State.CHUNKS,
        (State.CHUNKS, Trigger.bdat_last): State.READY,
        # RFC 3030 §3: after a failed BDAT the state is indeterminate until RSET.
        (State.CHUNKS, Trigger.rset): State.READY,
        (State.CHUNKS, Trigger.quit): State.QUIT,
        (State.QUIT, Trigger.GO): State.CLOSED,
        (State.QUIT, Trigger.NO): State.CLOSED,
    }
    for open_state in (State.READY, State.TRANSACTION):
        # Whether a command fits into the transaction is for the server to say (503), not for us.
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
            if state is not State.HANDSHAKE:  # where nothing that comes is a reply
                table[state, Trigger.BYE] = State.CLOSING
            table[state, Trigger.END] = State.CLOSED
            table[state, Trigger.FAIL] = State.BROKEN
    return table


TRANSITIONS: Final = _table()
"""(state, trigger) to state.  What is not in it is not possible."""

# Nothing may be written until the reply has come, and these codes are the ones that let it go on.
GO_CODES: Final = {
    State.GREETING: range(220, 221),
    State.HELLO: range(200, 300),
    State.STARTTLS: range(220, 221),
    State.AUTH: range(334, 335),
    State.DATA: range(354, 355),
    State.QUIT: range(200, 300),
}

# States that only the dialogue which made them can leave: if it ends there, the session is out of step.
HELD: Final = frozenset({State.DATA, State.CONTENT, State.AUTH, State.CHALLENGE, State.STARTTLS, State.HANDSHAKE})

# Events that leave or may leave a transaction behind which the next one has to reset.
OPENING: Final = frozenset({Trigger.mail, Trigger.rcpt, Trigger.data, Trigger.bdat, Trigger.bdat_last})

# Behind them the server may be another one: what it does with a refused chunk has to be shown again.
UNPROVING: Final = frozenset({Trigger.hello, Trigger.starttls, Trigger.auth})


def diagram() -> str:
    """Return the table as a Mermaid state diagram, without BYE, END and FAIL, which lead out of every state."""
    arrows: dict[tuple[str, str], list[str]] = {}
    for (before, trigger), after in TRANSITIONS.items():
        if trigger not in (Trigger.BYE, Trigger.END, Trigger.FAIL):
            arrows.setdefault((before.name, after.name), []).append(trigger.name)
    lines = [f"    {before} --> {after}: {', '.join(names)}" for (before, after), names in arrows.items()]
    return "\n".join(["stateDiagram-v2", f"    [*] --> {State.GREETING.name}", *lines, ""])
