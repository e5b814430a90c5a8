"""A mail transaction: MAIL, RCPT and content as groups of commands.  Their replies are judged in verdict.py.

It takes the best shape that the server's extensions allow:

=======================  =====================================================  ===================
the server offers        one message with n recipients is                       round trips
=======================  =====================================================  ===================
nothing                  MAIL, RCPT, ..., DATA, content, each awaited           n + 3
PIPELINING               ``MAIL RCPT... DATA`` in one write, content in one     2; 1 behind another
PIPELINING + CHUNKING    ``MAIL RCPT... BDAT n LAST content`` in one write      1; several in flight
=======================  =====================================================  ===================

BDAT is used once the connection has shown that it reads and drops a refused chunk: see :mod:`asmtp.protocol.chunking`.
Until then, and without PIPELINING, content goes by DATA.

Some content is not sent before its envelope is accepted:

* content that is streamed: it is large, or not yet there;
* content by BDAT whose first line is no header field.  If the server took the chunk for commands, a header field would
  be answered by 5yz, but another line may be a command.

LMTP (RFC 2033) is the same, with one reply after the content for each recipient accepted.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from typing import Any, NoReturn, TypeAlias

from asmtp.errors import (
    DeliveryState,
    SMTPDataError,
    SMTPException,
    SMTPNotSupportedError,
    SMTPProtocolError,
    SMTPSenderRefused,
    SMTPServerDisconnected,
    known,
)
from asmtp.protocol.chunking import probe
from asmtp.protocol.content import AsItIs, ContentEncoder, encode_content, line_end
from asmtp.protocol.envelope import Envelope
from asmtp.protocol.exchange import PULL, Dialogue, Group, Phase, Pull, StepBehind, Turn
from asmtp.protocol.extensions import Extensions
from asmtp.protocol.reply import Reply
from asmtp.protocol.session import Session
from asmtp.protocol.state import Chunking, LastChunk, Trigger
from asmtp.protocol.verdict import (
    Finals,
    Outcome,
    Replies,
    all_ok,
    blames_bdat,
    judge,
    judge_chunks,
    judge_early,
    judge_ended,
    judge_envelope,
    out_of_step,
)

__all__ = ["Body", "Transaction", "manual_content"]

Steps: TypeAlias = Generator[Group | Pull, Any, None]
"""A part of a dialogue."""

_RSET = b"rset\r\n"
_DATA = b"data\r\n"
_DOT = b".\r\n"

# Looked up once: a member of an enum takes CPython 3.11 70 ns.
_SHOWN = Chunking.SHOWN
_COMMAND = Phase.COMMAND
_FINAL = Phase.FINAL
_ONE = Finals.ONE
_EACH = Finals.EACH
_KEEP = Turn.KEEP
_RELEASE = Turn.RELEASE
_UNTIL_COUNTED = Turn.UNTIL_COUNTED
_BDAT_LAST = Trigger.bdat_last
_ENVELOPE = (Trigger.mail, Trigger.rcpt)
_RSET_AND_ENVELOPE = (Trigger.rset, *_ENVELOPE)

# A header field (RFC 5322 §2.2) that no server takes for a command.
_FIELD = re.compile(
    rb"(?!(?:EHLO|HELO|LHLO|MAIL|RCPT|DATA|BDAT|RSET|NOOP|QUIT|HELP|VRFY|EXPN|AUTH|STARTTLS|XCLIENT|ETRN|TURN):)[!-9;-~]+:",
    re.IGNORECASE,
)


class Body:
    """The content of a message, as a transaction needs to know it.

    Args:
        data: all of it; None: it is streamed, and pulled in pieces.
        size: its octets with CRLF line ends (of a file: at least so many); None: not known.
        eight_bit: whether it has octets over 127.
        head: its first octets, if they are at hand: events tell its Message-ID.
    """

    __slots__ = ("data", "eight_bit", "head", "size")

    def __init__(self, data: bytes | None, size: int | None, *, eight_bit: bool, head: bytes = b"") -> None:
        self.data = data
        self.size = size
        self.eight_bit = eight_bit
        self.head = head if data is None else data


class Transaction:
    """One envelope and its content on one session.

    :meth:`run` is the dialogue.  It returns an :class:`~asmtp.protocol.verdict.Outcome`, or raises: SMTPSenderRefused,
    SMTPRecipientsRefused, SMTPDataError (the server said no), SMTPNotSupportedError, ValueError (nothing
    was written), SMTPServerDisconnected (its `state` is that of the message), NotBegun.

    Args:
        chunking: use BDAT if the server offers it.
        apart: do not write the content before the envelope is accepted, though it could go with it.  If the connection
            turns out to be dead, it is known then that the server does not have the message.

    Attributes:
        replies: those that have come, in order, without the one to DATA.
    """

    __slots__ = (
        "_apart", "_asked_apart", "_bdat", "_binary", "_chunking", "_chunks", "_commands", "_content", "_ended",
        "_extensions", "_finals", "_group", "_offered", "_prdr", "_reset", "_turn", "body", "envelope", "replies",
        "session",
    )  # fmt: skip

    def __init__(
        self, session: Session, envelope: Envelope, body: Body, *, chunking: bool = True, apart: bool = False
    ) -> None:
        self.session = session
        self.envelope = envelope
        self.body = body
        self.replies: list[Reply] = []
        self._binary = envelope.binary
        self._chunking = chunking
        self._asked_apart = apart or body.data is None
        self._reset = False  # RSET was written in front
        self._chunks = 0  # how many BDAT without LAST were written
        self._ended = False  # the end of the content was written
        self._finals = _EACH if session.lmtp else _ONE
        self._group: Group | None = None
        self._prepare()

    @property
    def state(self) -> DeliveryState:
        """Return the state of the message if the rest is not waited for."""
        return "in_doubt" if self._ended else "not_sent"

    def answers(self) -> dict[str, Reply]:
        """Return the server's replies to recipients that have come by now, beginning with the first."""
        return dict(zip(self.envelope.recipients, self._by_role().rcpts, strict=False))

    # ---- writing ----------------------------------------------------------------------------

    def _prepare(self) -> None:
        """Make what will be written, while others have the turn: when it comes, the server is waiting."""
        session = self.session
        self._extensions = extensions = session.extensions
        self._offered = self._chunking and "chunking" in extensions
        self._bdat = self._offered and session.chunking is _SHOWN
        self._prdr = self.envelope.prdr and "prdr" in extensions and not session.lmtp
        # LMTP servers that have one reply for all recipients exist.  While nothing is written behind the content, the
        # reply to another command is not taken for a recipient's.
        counted = self._prdr or (session.lmtp and len(self.envelope.recipients) > 1)
        self._turn = _UNTIL_COUNTED if counted else _RELEASE
        self._commands = self.envelope.commands(
            extensions, self._parameters(extensions), esmtp=session.esmtp, secure=session.secure
        )
        self._content = self._encoded()
        self._apart = self._asked_apart or (self._bdat and _FIELD.match(self._content) is None)

    def _encoded(self) -> bytes:
        """Return the content as it is written; empty: it is streamed.

        Raises:
            SMTPNotSupportedError: it is to go as it is, which needs BDAT.
        """
        body = self.body
        if self._binary:
            if not self._chunking:
                raise SMTPNotSupportedError("BINARYMIME needs CHUNKING, which was turned off")
            if self.session.chunking is Chunking.NOT_SHOWN:
                raise SMTPNotSupportedError(
                    "BINARYMIME needs CHUNKING, and the server did not show that it reads a chunk that it refuses"
                )
            return body.data or b""
        return b"" if body.data is None else encode_content(body.data, stuff=not self._bdat, size=body.size)

    def _parameters(self, extensions: Extensions) -> str:
        """Return SIZE, BODY and PRDR for MAIL, by what the server offers and the content needs.

        Raises:
            SMTPSenderRefused: the message is over the server's limit.
        """
        body = self.body
        text = ""
        size = body.size
        if size is not None and "size" in extensions:
            added = 0
            if body.data is not None:
                size = len(body.data) if self._binary else size
                added = 0 if self._binary else line_end(body.data)
            limit = extensions.size
            if limit is not None and size + added > limit:
                # RFC 1870 §6.1: the server would say the same.
                why = f"5.3.4 message of {size + added} octets is over the server's limit of {limit}"
                raise known(SMTPSenderRefused(552, why.encode(), self.envelope.sender), "refused")
            text = f" size={size + added if self.session.declares_line_end else size}"
        if body.eight_bit and "8bitmime" in extensions and not self._binary:
            text += " BODY=8BITMIME"
        if self._prdr:
            text += " PRDR"
        given = self.envelope.mail_options
        if given and text:
            names = {option.partition("=")[0].upper() for option in given}
            text = "".join([f" {word}" for word in text.split() if word.partition("=")[0].upper() not in names])
        return text

    def run(self) -> Dialogue[Outcome]:
        """Send the message: this is the dialogue, which begins when it gets the turn to write."""
        session = self.session
        if session.extensions is not self._extensions:
            self._prepare()
        if session.chunking is not _SHOWN and self._needs_probe():
            yield StepBehind(probe(session, self._commands[0]))
        session.messages += 1
        if self._bdat is not (self._offered and session.chunking is _SHOWN) or self._binary:
            self._prepare()
            if self._binary and not self._bdat:
                raise SMTPNotSupportedError("BINARYMIME: whether the server reads a chunk that it refuses is not known")
        commands = self._commands
        triggers: tuple[Trigger, ...] = _ENVELOPE
        if not session.clean:
            commands = [_RSET, *commands]
            triggers = _RSET_AND_ENVELOPE
            self._reset = True
        pipelining = session.pipelining
        at_once = pipelining and self._bdat and not self._apart
        try:
            if at_once:
                yield self._last_chunk(self._content, commands, triggers)
            elif pipelining:
                yield self._envelope_group(commands, triggers)
            else:
                yield from self._lockstep(commands)
            if not self._bdat:
                yield from self._by_data()
            elif not at_once:
                yield from self._by_bdat()
            if self._prdr and self.replies[-1].code == 353:
                yield self._each_recipient()
            return self._judged()
        except SMTPServerDisconnected as error:
            self._interrupted(error)

    def _needs_probe(self) -> bool:
        """Tell whether the probe of BDAT goes in front: of a connection's second message, or of one in BINARYMIME."""
        session = self.session
        if session.chunking not in (Chunking.UNKNOWN, Chunking.INCONCLUSIVE) or not self._offered:
            return False
        return self._binary or (session.messages > 0 and session.pipelining)

    def _envelope_group(self, commands: list[bytes], triggers: tuple[Trigger, ...]) -> Group:
        """Return the envelope in one group, with DATA behind it if the content goes so."""
        if self._bdat:
            return self._wrote(Group(b"".join(commands), triggers, len(commands), replies=self.replies))
        data = b"".join([*commands, _DATA])
        triggers = (*triggers, Trigger.data)
        return self._wrote(Group(data, triggers, len(commands) + 1, final=Phase.DATA, replies=self.replies))

    def _lockstep(self, commands: list[bytes]) -> Steps:
        """Write one command at a time, and stop if the next one would make no sense."""
        triggers = [Trigger.mail, *[Trigger.rcpt] * len(self.envelope.recipients)]
        if self._reset:
            triggers.insert(0, Trigger.rset)
        for line, trigger in zip(commands, triggers, strict=True):
            yield self._wrote(Group(line, (trigger,), replies=self.replies))
            if not self.replies[-1].ok:
                self._check(judge_envelope(self._by_role(), self.envelope, "not_sent"))
        if not self._bdat:
            yield self._wrote(Group(_DATA, (Trigger.data,), phase=Phase.DATA, replies=self.replies))

    def _by_data(self) -> Steps:
        """Write the content behind the reply to DATA."""
        go = self.replies.pop()
        if go.code != 354:
            self._check(judge_envelope(self._by_role(), self.envelope, "not_sent"))
            raise known(SMTPDataError(*go), "refused")
        if not all_ok(self.replies):
            self._check(out_of_step(self.replies, "not_sent"))
            replies = self._by_role()
            if not replies.accepted:
                yield from self._lone_dot(replies)
        if self.body.data is None:
            yield from self._streamed_by_data()
        else:
            yield self._final_group(self._content + _DOT, (Trigger.dot,), self._finals_owed(), _FINAL)

    def _lone_dot(self, replies: Replies) -> Steps:
        """End the content before it has begun: DATA was accepted, and the envelope was not."""
        if any(reply.ok for reply in replies.rcpts):
            # The recipients stand in a transaction that is not this one: nothing may go into it.
            raise SMTPProtocolError(354, b"DATA accepted for recipients whose MAIL or RSET was refused")
        # RFC 2920 §3.1: "if the DATA command was accepted the client SMTP should send a single dot."
        yield self._wrote(Group(_DOT, (Trigger.dot,), turn=_RELEASE, phase=_FINAL))
        self._check(judge_envelope(replies, self.envelope, "not_sent"))

    def _streamed_by_data(self) -> Steps:
        encoder = ContentEncoder(stuff=True)
        answered = len(self.replies)
        # One reply is owed from here on: a server may refuse content before it has all of it.
        yield self._wrote(Group(b"", (), turn=_KEEP, phase=Phase.CONTENT, replies=self.replies))
        while (piece := (yield PULL)) is not None:
            self._check_early(answered)
            data = encoder.encode(piece)
            if data:
                yield self._wrote(
                    Group(data, (Trigger.content,), 0, turn=_KEEP, phase=Phase.CONTENT, replies=self.replies)
                )
        self._check_early(answered)
        yield self._final_group(encoder.finish() + _DOT, (Trigger.dot,), self._finals_owed() - 1, _FINAL)

    def _check_early(self, answered: int) -> None:
        if len(self.replies) > answered:
            raise judge_early(self.replies[answered])

    def _by_bdat(self) -> Steps:
        """Write the content in chunks, behind an envelope that was accepted."""
        self._check(judge_envelope(self._by_role(), self.envelope, "not_sent"))
        if self.body.data is not None:
            yield self._last_chunk(self._content)
            return
        encoder = AsItIs() if self._binary else ContentEncoder(stuff=False)
        turn = _KEEP if self.session.pipelining else Turn.UNTIL_REPLY
        while (piece := (yield PULL)) is not None:
            self._check(judge_chunks(self._by_role().chunks))
            data = encoder.encode(piece)
            if data:
                self._chunks += 1
                line = b"BDAT %d\r\n" % len(data)
                yield self._wrote(
                    Group(line + data, (Trigger.bdat,), turn=turn, phase=Phase.CONTENT, replies=self.replies)
                )
        self._check(judge_chunks(self._by_role().chunks))
        yield self._last_chunk(encoder.finish())
        replies = self._by_role()
        self._check(judge_chunks(replies.chunks, replies.finals))

    def _last_chunk(
        self, data: bytes, commands: list[bytes] | None = None, triggers: tuple[Trigger, ...] = ()
    ) -> Group:
        """Return BDAT LAST, with the envelope in front if it goes in one write (RFC 3030 §2)."""
        line = b"BDAT %d LAST\r\n" % len(data)
        if commands is None:
            return self._final_group(line + data, (_BDAT_LAST,), self._finals_owed())
        places = None
        if self.session.lmtp:
            places = range(len(commands) - len(self.envelope.recipients), len(commands))
        return self._final_group(
            b"".join([*commands, line, data]), (*triggers, _BDAT_LAST), len(commands) + 1, per_recipient=places
        )

    def _each_recipient(self) -> Group:
        """Return the wait for what comes behind 353: a reply for each recipient that was accepted, and a last one."""
        self.replies.pop()
        replies = self._by_role()
        if any(reply.ok for reply in replies.rcpts):
            self._finals = Finals.EACH_AND_ONE
        return self._final_group(b"", (), self._finals.owed(replies), _FINAL)

    def _finals_owed(self) -> int:
        """Return how many replies the content is owed."""
        return 1 if self._finals is _ONE else self._finals.owed(self._by_role())

    def _final_group(
        self,
        data: bytes,
        triggers: tuple[Trigger, ...],
        owed: int,
        phase: Phase = _COMMAND,
        per_recipient: range | None = None,
    ) -> Group:
        """Return the group that ends the content: nothing is written behind it."""
        self._ended = True
        self._group = group = Group(
            data, triggers, owed, turn=self._turn, phase=phase, final=_FINAL, replies=self.replies,
            per_recipient=per_recipient,
        )  # fmt: skip
        return group

    def _wrote(self, group: Group) -> Group:
        self._group = group
        return group

    # ---- asking for the verdict -------------------------------------------------------------

    def _by_role(self) -> Replies:
        return Replies(self.replies, reset=self._reset, recipients=len(self.envelope.recipients), chunks=self._chunks)

    def _judged(self) -> Outcome:
        """Return the outcome, or raise the error, of a transaction whose replies are all in."""
        replies = Replies(
            self.replies, reset=self._reset, recipients=len(self.envelope.recipients), chunks=self._chunks
        )
        outcome = judge(replies, self.envelope, self._finals, bdat=self._bdat)
        if isinstance(outcome, Outcome):
            assert self._group is not None
            self.session.mark_clean(self._group)
            return outcome
        if self._bdat and not self._apart and self._finals is not Finals.EACH_AND_ONE and replies.chunk_refused:
            self.session.last_chunk = LastChunk.DOUBTED  # the next reply will tell whether it was read
        raise self._told(outcome)

    def _check(self, error: SMTPException | None) -> None:
        """Raise an error, if there is one."""
        if error is not None:
            raise self._told(error)

    def _told(self, error: SMTPException) -> SMTPException:
        """Return an error; if it says that the server is out of step, the session fails first."""
        if isinstance(error, SMTPProtocolError):
            if self._bdat and blames_bdat(error):
                self.session.distrust_chunking()
            self.session.fail(SMTPProtocolError(error.smtp_code, error.smtp_error))
        return error

    def _interrupted(self, error: SMTPServerDisconnected) -> NoReturn:
        """Raise `error`, by which the connection ended, with the state of the message; or the server's refusal."""
        if self._group is not None and self._group.dropped:
            self._ended = False  # the last of it never left
        if self.session.last_chunk is LastChunk.MISREAD:
            raise known(error, self.state)  # the replies were not to its commands
        if error.state is None:
            verdict = judge_ended(self._by_role(), self.envelope, self._finals, ended=self._ended)
            if isinstance(verdict, SMTPDataError):
                raise verdict from error
            if isinstance(verdict, SMTPException):
                raise verdict
            error.state = verdict
        raise error


def manual_content(session: Session, content: bytes, owed: int = 1) -> Dialogue[Reply]:
    """Write DATA and content for a transaction that a caller has opened by hand.

    Args:
        owed: how many replies there will be after the content.

    Returns:
        The first final reply that is a refusal, else the last.

    Raises:
        SMTPDataError: DATA was not answered 354.
    """
    replies: list[Reply] = yield Group(b"data\r\n", (Trigger.data,), phase=Phase.DATA)
    if replies[0].code != 354:
        raise SMTPDataError(*replies[0])
    group = Group(encode_content(content, stuff=True) + b".\r\n", (Trigger.dot,), owed, phase=_FINAL)
    replies = yield group
    if all(reply.ok for reply in replies):
        session.mark_clean(group)
    return next((reply for reply in replies if not reply.ok), replies[-1])
