"""The verdict on the replies to one transaction: an outcome, an error, or the state of a message if no more come.

Everything here is a pure function of replies.  A transaction (:mod:`asmtp.protocol.transaction`) writes, and asks:

* :func:`judge_envelope` before it writes content, if the replies to the envelope are in by then;
* :func:`judge_chunks` and :func:`judge_early` while it writes content;
* :func:`judge` when all replies are in;
* :func:`judge_ended` if the connection ends before.

RFC 5321 §4.2.1 gives the meaning of 2yz, 4yz and 5yz.  A 3yz that no command of ours asks for is never a refusal: the
server is answering another command.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from asmtp.errors import (
    DeliveryState,
    SMTPDataError,
    SMTPException,
    SMTPProtocolError,
    SMTPRecipientsRefused,
    SMTPSenderRefused,
    known,
    said,
)
from asmtp.protocol.reply import Reply, asks_for_more, is_leaving

if TYPE_CHECKING:
    from asmtp.protocol.envelope import Envelope

__all__ = [
    "Finals", "NotBegun", "Outcome", "Replies", "all_ok", "blames_bdat", "judge", "judge_chunks", "judge_early",
    "judge_ended", "judge_envelope", "out_of_step",
]  # fmt: skip

_NOT_UNDERSTOOD = range(500, 505)
"""Replies to BDAT that are about the command, and not about the message (RFC 5321 §4.2.2)."""


class Finals(enum.Enum):
    """The ways in which content is answered."""

    ONE = "by one reply"
    EACH = "by one reply for each recipient that was accepted (LMTP, RFC 2033 §4.2)"
    EACH_AND_ONE = "by one reply for each recipient that was accepted, and a last one (PRDR, draft-hall-prdr)"

    def owed(self, replies: Replies) -> int:
        """Return how many replies the content is owed, behind an envelope that was answered."""
        if self is Finals.ONE:
            return 1
        return sum(reply.ok for reply in replies.rcpts) + (self is Finals.EACH_AND_ONE)


_ONE = Finals.ONE
_EACH_AND_ONE = Finals.EACH_AND_ONE


class Replies:
    """The replies to one transaction, by the command that they answer.

    Args:
        order: those that have come, in the order of the commands; not that to DATA, which is judged at once.
        reset: RSET was written in front.
        recipients: the number of RCPT commands.
        chunks: the number of BDAT commands without LAST.

    Attributes:
        rset, mail: None: it was not written, or is not answered.
        rcpts, chunks: may be fewer than were written.
        finals: those to the content, or its last chunk.
    """

    __slots__ = ("chunks", "finals", "mail", "order", "rcpts", "rset")

    def __init__(self, order: list[Reply], *, reset: bool, recipients: int, chunks: int = 0) -> None:
        self.order = order
        place = 1 if reset else 0
        self.rset = order[0] if reset and order else None
        self.mail = order[place] if len(order) > place else None
        place += 1
        self.rcpts = order[place : place + recipients]
        place += recipients
        self.chunks = order[place : place + chunks] if chunks else []
        self.finals = order[place + chunks :]

    @property
    def envelope(self) -> list[Reply]:
        """Return those to RSET, MAIL and RCPT."""
        return [*filter(None, (self.rset, self.mail)), *self.rcpts]

    @property
    def accepted(self) -> bool:
        """Tell whether RSET, MAIL and at least one RCPT were accepted."""
        reset = self.rset is None or self.rset.ok
        return reset and self.mail is not None and self.mail.ok and _any_ok(self.rcpts)

    @property
    def chunk_refused(self) -> bool:
        """Tell whether content behind a RSET that was taken was refused: by BDAT, it may be that it was not read."""
        return (self.rset is None or self.rset.ok) and not _any_ok(self.finals)


class NotBegun(SMTPException):
    """The server did not take the RSET in front of the transaction, which is to be sent again on its own."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(f"RSET was answered {said(*reply)}")
        self.reply = reply


class Outcome:
    """The fate of a message that the server took.

    Attributes:
        accepted: the recipients it was taken for, and the replies that said so.
        refused: the recipients it was not taken for, and the replies that said so.
        reply: the last reply to the content.
    """

    __slots__ = ("accepted", "refused", "reply")

    def __init__(self, accepted: dict[str, Reply], refused: dict[str, Reply], reply: Reply) -> None:
        self.accepted = accepted
        self.refused = refused
        self.reply = reply


def judge(
    replies: Replies, envelope: Envelope, finals: Finals = _ONE, *, bdat: bool = False
) -> Outcome | SMTPException:
    """Return the outcome or the error that all replies to a transaction amount to.

    Args:
        bdat: the content went by BDAT.
    """
    if finals is not _EACH_AND_ONE and all_ok(replies.order):
        answers = replies.rcpts if finals is _ONE else replies.finals
        return Outcome(dict(zip(envelope.recipients, answers, strict=True)), {}, replies.finals[-1])
    wrong = out_of_step(replies.order, "in_doubt")
    if wrong is not None:
        return wrong
    last = replies.finals[-1]
    taken = _any_ok(replies.finals)
    if not replies.accepted:
        if taken or finals is _EACH_AND_ONE:
            return _contradiction(last, b"content accepted though its envelope was refused")
        refused = judge_envelope(replies, envelope, "in_doubt")
        assert refused is not None
        return refused
    if bdat and not taken and finals is not _EACH_AND_ONE:
        misunderstood = _misunderstood(replies.finals[0])
        if misunderstood is not None:
            return misunderstood
    if finals is not _ONE:
        return _judge_each(replies, envelope, finals)
    if not last.ok:
        return known(SMTPDataError(*last), "refused")
    accepted = {who: reply for who, reply in zip(envelope.recipients, replies.rcpts, strict=True) if reply.ok}
    return Outcome(accepted, _refused(replies, envelope), last)


def _judge_each(replies: Replies, envelope: Envelope, finals: Finals) -> Outcome | SMTPException:
    """Return the outcome or the error if recipients have final replies of their own (RFC 2033 §4.2, PRDR)."""
    last, answers = replies.finals[-1], iter(replies.finals)
    refused = _refused(replies, envelope)
    accepted: dict[str, Reply] = {}
    for who, reply in zip(envelope.recipients, replies.rcpts, strict=True):
        if reply.ok:
            answer = next(answers)
            (accepted if answer.ok else refused)[who] = answer
    if finals is _EACH_AND_ONE and accepted and not last.ok:
        # draft-hall-prdr: the last reply says whether the message was taken, those before it for whom.
        return known(SMTPDataError(*last), "refused")
    if not accepted:
        return known(SMTPRecipientsRefused(refused), "refused")
    return Outcome(accepted, refused, last)


def judge_envelope(replies: Replies, envelope: Envelope, state: DeliveryState) -> SMTPException | None:
    """Return the error that the replies to RSET, MAIL and RCPT amount to, as far as they have come; None: go on.

    Args:
        state: the state of the message if the server is out of step.
    """
    wrong = out_of_step(replies.envelope, state)
    if wrong is not None:
        return wrong
    if replies.rset is not None and not replies.rset.ok:
        return NotBegun(replies.rset)
    if replies.mail is not None and not replies.mail.ok:
        return known(SMTPSenderRefused(*replies.mail, envelope.sender), "refused")
    leaving = any(is_leaving(reply) for reply in replies.rcpts)
    complete = len(replies.rcpts) == len(envelope.recipients)
    if leaving or (complete and not _any_ok(replies.rcpts)):
        return known(SMTPRecipientsRefused(_refused(replies, envelope)), "refused")
    return None


def judge_chunks(chunks: Iterable[Reply], finals: Sequence[Reply] = ()) -> SMTPException | None:
    """Return the error that the replies to chunks amount to, and to the last one, if they are in; None: go on.

    A chunk that was refused ends the transaction (RFC 3030 §2).
    """
    refused = next((reply for reply in chunks if not reply.ok), None)
    if refused is None:
        return None
    if _any_ok(finals):
        return _contradiction(finals[-1], b"content accepted though a chunk of it was refused")
    return _misunderstood(refused) or known(SMTPDataError(*refused), "refused")


def judge_early(reply: Reply) -> SMTPException:
    """Return the error for a reply to content whose end was not written."""
    if not reply.ok:
        return known(SMTPDataError(*reply), "refused")
    return _contradiction(reply, b"content accepted before its end was written")


def judge_ended(
    replies: Replies, envelope: Envelope, finals: Finals = _ONE, *, ended: bool
) -> SMTPException | DeliveryState:
    """Return the state of a message whose connection ended before all replies were in, or the server's refusal.

    Args:
        ended: the end of the content was written.

    Returns:
        The server's refusal, if it came before the end, or else the state of the message.
    """
    state: DeliveryState = "in_doubt" if ended else "not_sent"
    answered, content = replies.envelope, replies.chunks + replies.finals
    # RFC 5321 §3.8: behind its 421 the server closes, and has not looked at what stands behind.
    left = bool(answered) and not content and is_leaving(answered[-1])
    # But a server that goes on behind a refusal and takes recipients may have taken the content, too.
    if left or not ended or not _any_ok(replies.rcpts):
        refused = judge_envelope(replies, envelope, state)
        if isinstance(refused, NotBegun):
            if left or not ended or (replies.mail is not None and not replies.mail.ok):
                state = "not_sent"
        elif refused is not None:
            return refused
    refusals = [reply for reply in content if not reply.ok]
    if not refusals:
        return state
    if finals is not _ONE and ended and (not is_leaving(refusals[-1]) or len(refusals) < len(content)):
        return state  # other recipients have it, or may have it
    return known(SMTPDataError(*refusals[0]), "refused")


def out_of_step(replies: Iterable[Reply], state: DeliveryState) -> SMTPProtocolError | None:
    """Return an error if there is a 3yz: the server is answering another command than the one it seems to be."""
    for reply in replies:
        if 300 <= reply.code <= 399:
            return _contradiction(reply, asks_for_more(reply), state)
    return None


def blames_bdat(error: SMTPProtocolError) -> bool:
    """Return whether an error says that the server does not understand BDAT."""
    return error.state == "not_sent" and error.smtp_code in _NOT_UNDERSTOOD


def _misunderstood(reply: Reply) -> SMTPProtocolError | None:
    """Return an error if a chunk was refused for its command; the server will take its octets for commands.

    RFC 3030 §2 warns of that, if BDAT is sent to a server that does not offer CHUNKING.  Some offer it.
    """
    if reply.code not in _NOT_UNDERSTOOD:
        return None
    return _contradiction(reply, b"BDAT was offered, and not understood: " + reply.message, "not_sent")


def _contradiction(reply: Reply, what: bytes, state: DeliveryState = "in_doubt") -> SMTPProtocolError:
    """Return an error for replies that cannot all be true.  The message may have been delivered, but not as meant."""
    return known(SMTPProtocolError(reply.code, what), state)


def _refused(replies: Replies, envelope: Envelope) -> dict[str, Reply]:
    return {who: reply for who, reply in zip(envelope.recipients, replies.rcpts, strict=False) if not reply.ok}


def _any_ok(replies: Iterable[Reply]) -> bool:
    return any(reply.ok for reply in replies)


def all_ok(replies: Iterable[Reply]) -> bool:
    """Return whether all replies are positive."""
    # A loop, not a generator: this is between the server's reply and the next octet to it.
    for code, _ in replies:  # noqa: SIM110
        if not 200 <= code <= 299:
            return False
    return True
