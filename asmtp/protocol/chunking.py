"""The probe of BDAT: it finds out whether a server reads a chunk that it refuses, and drops it.

A server that refuses a BDAT has to read the chunk all the same, and to drop it (RFC 3030 §2).  Some servers do not:
they answer 502, 503 or 530, and take the octets of the content for commands.  A message whose recipients were refused
would then be carried out.  So content is written by DATA, behind its 354, until the connection has shown that it reads
and drops a refused chunk.

The probe tries both states that a refusal leaves, without a recipient, so that nothing can be delivered::

    BDAT 8 LAST         refused: there is no transaction
    XASMTP              8 octets with their CRLF, and no command of any server
    RSET                250
    MAIL FROM:<...>     250
    BDAT 8 LAST         refused: there is no recipient
    XASMTP
    RSET                250

If a transaction may be open, as behind a refused DATA, RSET goes in front, and its reply is awaited: the recipients of
that transaction must not get the chunk.

A server that reads the chunk gives one reply to each command.  A server that does not read it gives one more, to
XASMTP, in the place of RSET's.  Whatever comes, the first 2yz behind BDAT's own reply is RSET's: the session stays in
step.

But if RSET itself is refused, its 2yz never comes.  Two questions tell such a server from one that does not read, and
no reply is waited for that is not owed.

If a server refuses every RSET, MAIL's 250 is taken for RSET's, so that MAIL seems to be refused.  Then NOOP is written,
and the next reply tells::

    refuses RSET      BDAT 503, RSET 502, MAIL 250, BDAT 503, RSET 502                  NOOP 250
    does not read     BDAT 503, XASMTP 502, RSET 250, MAIL 550, BDAT 503, and on its way: XASMTP 502, RSET 250

If the last RSET's reply is a refusal, HELP is written: its reply is never 250, and RSET's is.

Behind a probe that was passed, the next transaction begins with one more RSET, for Dovecot's submission service (2.3
and 2.4).  That does not pass on a RSET that came in one piece with its MAIL, and refuses the next MAIL ("nested MAIL
command") or ends on an assertion.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from typing import TYPE_CHECKING, Any, Final

from asmtp.errors import SMTPProtocolError, SMTPServerDisconnected
from asmtp.protocol.exchange import Dialogue, Group
from asmtp.protocol.reply import Reply, asks_for_more
from asmtp.protocol.state import Chunking, Trigger

if TYPE_CHECKING:
    from asmtp.protocol.session import Session

__all__ = ["RelayChunking", "probe"]

REFUSED: Final = b"BDAT 8 LAST\r\nXASMTP\r\n"
"""A chunk that has to be refused, as there is no recipient."""

HELP = (211, 214)
"""Replies of a server that has HELP (RFC 5321 §4.2.3)."""

ANSWERS = 6
"""Replies of 250 that the probe and HELP may be given.  With more of them the server is out of step."""


DOUBT_LASTS = 3600.0
"""Seconds in which a relay that did not pass a probe is not probed again, and is sent everything by DATA."""


class RelayChunking:
    """The findings of all connections to a relay.

    Attributes:
        doubted_until: the loop's time, in seconds, up to which content has to go by DATA.
    """

    def __init__(self) -> None:
        self.doubted_until = -math.inf

    def heed(self, chunking: Chunking, now: float) -> None:
        """Take note of what one of its connections has shown.

        Args:
            now: the loop's time, in seconds.
        """
        if chunking in (Chunking.PROBING, Chunking.NOT_SHOWN):
            self.doubted_until = now + DOUBT_LASTS


def probe(session: Session, mail: bytes) -> Dialogue[None]:
    """Find out whether the server reads and drops a refused chunk, and set `session.chunking`.

    Args:
        mail: the MAIL line of the message that the probe is written for.
    """
    before = session.chunking
    session.chunking = Chunking.PROBING
    commands = [(REFUSED, Trigger.bdat_last), (b"rset\r\n", Trigger.rset)]
    stages = [commands, [(mail, Trigger.mail), *commands]]
    if before is Chunking.INCONCLUSIVE:
        del stages[0]  # it was passed, and some servers count their refusals
    try:
        if not (session.clean or (yield from session.reset()).ok):
            verdict = Chunking.NOT_SHOWN  # a transaction may be open, with recipients who would get the chunk
        elif session.pipelining:
            verdict = yield from _in_one_piece(session, stages)
        else:
            verdict = yield from _one_by_one(session, stages)
    except SMTPServerDisconnected:  # a 421, a close or a time-out is an answer, too
        session.on_chunking()
        raise
    if verdict is Chunking.INCONCLUSIVE and before is Chunking.INCONCLUSIVE:
        verdict = Chunking.NOT_SHOWN
    session.chunking = verdict
    session.slow_start()
    session.on_chunking()


Stages = list[list[tuple[bytes, Trigger]]]


def _in_one_piece(session: Session, stages: Stages) -> Generator[Group, Any, Chunking]:
    """Write the whole probe at once (RFC 2920), and read its replies one by one."""
    lines = [command for stage in stages for command in stage]
    group = Group(b"".join([line for line, _ in lines]), tuple([trigger for _, trigger in lines]))
    verdict = Chunking.SHOWN
    replies: list[Reply] = yield group
    reply = replies[-1]
    for number, stage in enumerate(stages):
        if number:
            reply = yield from _next(session)
        doubtful = False
        if len(stage) == 3:
            doubtful = not reply.ok and verdict is Chunking.NOT_SHOWN
            if not reply.ok:
                verdict = _worse(verdict, Chunking.INCONCLUSIVE)
            reply = yield from _next(session)
        if reply.ok:
            yield from _until_help(session)
            return Chunking.NOT_SHOWN
        _check_in_step(session, reply)
        if (yield from _is_misread(session, doubtful=doubtful, last=stage is stages[-1])):
            verdict = Chunking.NOT_SHOWN
    if verdict is not Chunking.SHOWN:
        session.mark_clean(group)  # else the next transaction begins with RSET: see above
    return verdict


def _one_by_one(session: Session, stages: Stages) -> Generator[Group, Any, Chunking]:
    """Write one command at a time.  A reply to the chunk itself breaks the connection, as any reply too much does."""
    verdict = Chunking.SHOWN
    for stage in stages:
        for line, trigger in stage:
            group = Group(line, (trigger,))
            replies: list[Reply] = yield group
            reply = replies[0]
            _check_in_step(session, reply)
            if trigger is Trigger.mail and not reply.ok:
                verdict = _worse(verdict, Chunking.INCONCLUSIVE)
            elif trigger is not Trigger.mail and reply.ok is (trigger is Trigger.bdat_last):
                verdict = Chunking.NOT_SHOWN
        if reply.ok:
            session.mark_clean(group)
    return verdict


def _is_misread(session: Session, *, doubtful: bool, last: bool) -> Generator[Group, Any, bool]:
    """Read the replies behind BDAT's up to RSET's, and return whether there is one to the chunk itself.

    Args:
        doubtful: all replies may be in, as RSET may have been refused.
        last: no other command was written behind.
    """
    reply = yield from _next(session, b"noop\r\n" if doubtful else b"")
    if reply.ok:
        if doubtful:
            raise _out_of_step(session, reply, b"RSET was refused")
        return False
    asks = last and not doubtful
    reply = yield from _next(session, b"help\r\n" if asks else b"")
    if not reply.ok or (asks and reply.code in HELP):
        raise _out_of_step(session, reply, b"RSET was refused, or more replies than commands")
    if last:
        yield from _next(session)  # to what was asked
    return True


def _next(session: Session, line: bytes = b"") -> Generator[Group, Any, Reply]:
    """Wait for one more reply.

    Args:
        line: a command to write before.  The next reply may still be to what was written in front of it.
    """
    replies: list[Reply] = yield Group(line, (Trigger.other,) if line else (), more=True)
    reply = replies[0]
    _check_in_step(session, reply)
    return reply


def _check_in_step(session: Session, reply: Reply) -> None:
    """Fail the session if the server asks for content, as none comes next."""
    if 300 <= reply.code <= 399:
        raise _out_of_step(session, reply, asks_for_more(reply))


def _worse(verdict: Chunking, other: Chunking) -> Chunking:
    return verdict if verdict is Chunking.NOT_SHOWN else other


def _until_help(session: Session) -> Generator[Group, Any, None]:
    """Get back in step with a server that said 2yz in the place of BDAT's reply.

    That reply was BDAT's own, or RSET's: an LMTP server owes BDAT none if there is no recipient.  So it is not known
    how many more replies there will be.  HELP is answered by 211, 214 or 5yz, never by 250, so that its reply is known.
    """
    group = Group(b"help\r\n", (Trigger.other,), more=True)
    replies: list[Reply] = yield group
    reply = replies[0]
    answers = 0
    while reply.code == 250:
        answers += 1
        if answers > ANSWERS:
            raise _out_of_step(session, reply, b"more replies than commands")
        reply = yield from _next(session)


def _out_of_step(session: Session, reply: Reply, what: bytes) -> SMTPServerDisconnected:
    session.fail(SMTPProtocolError(reply.code, what))
    return session.disconnected()
