"""A mail transaction: MAIL, RCPT and content as groups of commands, and the verdict on their replies.

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

Content that is streamed (large, or not yet there) is not sent before its envelope is accepted.  Neither is content by
BDAT whose first line is no header field: only such a line is answered by 5yz if the server takes a chunk for commands.

LMTP (RFC 2033) is the same, with one reply after the content for each recipient accepted.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from typing import Any, NoReturn

from asmtp.errors import (
    DeliveryState,
    SMTPDataError,
    SMTPException,
    SMTPNotSupportedError,
    SMTPProtocolError,
    SMTPRecipientsRefused,
    SMTPSenderRefused,
    SMTPServerDisconnected,
    said,
)
from asmtp.protocol.chunking import Chunking, LastChunk
from asmtp.protocol.content import AsItIs, ContentEncoder, encode_content, line_end
from asmtp.protocol.envelope import Envelope
from asmtp.protocol.exchange import PULL, Dialogue, Group, Phase, ProbeFirst, Turn
from asmtp.protocol.extensions import Extensions
from asmtp.protocol.reply import Reply, asks_for_more, is_leaving
from asmtp.protocol.session import Session
from asmtp.protocol.state import Trigger

__all__ = ["Body", "NotBegun", "Outcome", "Transaction", "manual_content"]

_RSET = b"rset\r\n"

# What every message needs, looked up once: a member of an enum takes CPython 3.11 70 ns.
_SHOWN = Chunking.SHOWN
_FINAL = Phase.FINAL
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

_NOT_UNDERSTOOD = range(500, 505)
"""Replies to BDAT that say of the command, not of the message, that it is not taken (RFC 5321 §4.2.2)."""


class Body:
    """The content of a message, as a transaction needs to know it.

    Args:
        data: all of it, or None: it is streamed, and pulled in pieces.
        size: its octets with CRLF line ends (at least; a file's are not counted), or None if that is not known.
        eight_bit: whether it has octets over 127.
        head: its first octets, where they are at hand: for who tells of it.
    """

    __slots__ = ("data", "eight_bit", "head", "size")

    def __init__(self, data: bytes | None, size: int | None, *, eight_bit: bool, head: bytes = b"") -> None:
        self.data = data
        self.size = size
        self.eight_bit = eight_bit
        self.head = head if data is None else data


class NotBegun(SMTPException):
    """The server did not take the RSET in front of the transaction, which is to be sent again on its own."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(f"RSET was answered {said(*reply)}")
        self.reply = reply


class Outcome:
    """What became of a message that the server took.

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


class Transaction:
    """One envelope and its content on one session.

    :meth:`run` is the dialogue.  It returns an :class:`Outcome`, or raises: SMTPSenderRefused,
    SMTPRecipientsRefused, SMTPDataError (the server said no), SMTPNotSupportedError, ValueError (nothing
    was written), SMTPServerDisconnected (whose `state` tells what is known of the message), NotBegun.

    Args:
        chunking: use BDAT where the server offers it.
        apart: do not write the content before the envelope is accepted, though it could go with it.  Where the
            connection turns out to be dead, it is known then that the server does not have the message.
    """

    __slots__ = (
        "_apart", "_asked_apart", "_base", "_bdat", "_binary", "_chunking", "_commands", "_content", "_each", "_ended",
        "_extensions", "_group", "_offered", "_prdr", "_several", "body", "envelope", "replies", "session",
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
        self._base = 0  # the place of MAIL's reply
        self._ended = False  # the end of the content was written
        self._each = 0  # how many recipients have replies of their own
        self._group: Group | None = None
        self._prepare()

    @property
    def state(self) -> DeliveryState:
        """What is known of the message, where the rest was not waited for."""
        return "in_doubt" if self._ended else "not_sent"

    # ---- writing ----------------------------------------------------------------------------

    def _prepare(self) -> None:
        """Make what will be written.  While others have the turn there is time for it; when it comes there is none."""
        session = self.session
        self._extensions = extensions = session.extensions
        self._offered = self._chunking and "chunking" in extensions
        self._bdat = self._offered and session.chunking is _SHOWN
        self._prdr = self.envelope.prdr and "prdr" in extensions and not session.lmtp
        # LMTP: not every server has a reply for each recipient; where nothing is behind, none is taken for one of them.
        self._several = self._prdr or (session.lmtp and len(self.envelope.recipients) > 1)
        self._commands = self.envelope.commands(
            extensions, self._parameters(extensions), esmtp=session.esmtp, secure=session.secure
        )
        self._content = self._encoded()
        self._apart = self._asked_apart or (self._bdat and _FIELD.match(self._content) is None)

    def _encoded(self) -> bytes:
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

    def run(self) -> Dialogue[Outcome]:
        """The dialogue; it begins when the turn to write has come."""
        session = self.session
        if session.extensions is not self._extensions:
            self._prepare()
        if session.chunking is not _SHOWN and self._needs_probe():
            yield ProbeFirst(self._commands[0])
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
            self._base = 1
        bdat = self._bdat
        try:
            if not session.pipelining:
                yield from self._lockstep(commands)
            elif bdat and not self._apart:
                yield self._last_chunk(self._content, commands, triggers)
                yield from self._each_recipient()
                return self._verdict()
            else:
                if not bdat:
                    commands = [*commands, b"data\r\n"]
                    triggers += (Trigger.data,)
                final = Phase.COMMAND if bdat else Phase.DATA
                yield self._wrote(Group(b"".join(commands), triggers, len(commands), final=final, replies=self.replies))
            if bdat:
                self._check_envelope()
                yield from self._chunks()
            else:
                yield from self._data()
            yield from self._each_recipient()
            return self._verdict()
        except SMTPServerDisconnected as error:
            self._interrupted(error)

    def _needs_probe(self) -> bool:
        """Whether the probe of BDAT has to go in front: of a connection's second message, or of one in BINARYMIME."""
        session = self.session
        if session.chunking not in (Chunking.UNKNOWN, Chunking.INCONCLUSIVE) or not self._offered:
            return False
        return self._binary or (session.messages > 0 and session.pipelining)

    def _each_recipient(self) -> Generator[Group, Any, None]:
        """PRDR (draft-hall-prdr): behind 353 there is a reply for each recipient that was accepted, and a last one."""
        if self._prdr and self.replies[-1].code == 353:
            self.replies.pop()
            self._each = self._final_replies(each=True)
            group = Group(b"", (), self._each + 1, turn=_UNTIL_COUNTED, phase=_FINAL, replies=self.replies)
            yield self._wrote(group)

    def _parameters(self, extensions: Extensions) -> str:
        """SIZE and BODY for MAIL, from what the server offers and the content needs."""
        body = self.body
        text = ""
        size = body.size
        added = 0
        if body.data is not None and size is not None:
            size = len(body.data) if self._binary else size
            added = 0 if self._binary else line_end(body.data)
        if size is not None and "size" in extensions:
            declared = size + added if self.session.declares_line_end else size
            size += added
            limit = extensions.size
            if limit is not None and size > limit:
                # RFC 1870 §6.1: what the server would say to it.
                why = f"5.3.4 message of {size} octets is over the server's limit of {limit}"
                raise self._refusal(SMTPSenderRefused(552, why.encode(), self.envelope.sender))
            text = f" size={declared}"
        if body.eight_bit and "8bitmime" in extensions and not self._binary:
            text += " BODY=8BITMIME"
        if self._prdr:
            text += " PRDR"
        given = self.envelope.mail_options
        if given and text:
            names = {option.partition("=")[0].upper() for option in given}
            text = "".join([f" {word}" for word in text.split() if word.partition("=")[0].upper() not in names])
        return text

    def _wrote(self, group: Group) -> Group:
        self._group = group
        return group

    def _lockstep(self, commands: list[bytes]) -> Generator[Group, Any, None]:
        """One command at a time; stops where the next one would make no sense."""
        for place, line in enumerate(commands):
            trigger = Trigger.rset if place < self._base else Trigger.mail if place == self._base else Trigger.rcpt
            yield self._wrote(Group(line, (trigger,), replies=self.replies))
            reply = self.replies[-1]
            if is_leaving(reply) or reply.code // 100 == 3 or (place <= self._base and not reply.ok):
                self._check_envelope()
        self._check_envelope()
        if not self._bdat:
            yield self._wrote(Group(b"data\r\n", (Trigger.data,), phase=Phase.DATA, replies=self.replies))

    def _last_chunk(
        self, data: bytes, commands: list[bytes] | None = None, triggers: tuple[Trigger, ...] = ()
    ) -> Group:
        """BDAT LAST, with the envelope in front where it goes in one write (RFC 3030 §2)."""
        before = commands or []
        places = range(self._base + 1, len(before)) if self.session.lmtp and before else None
        owed = len(before) + (1 if before else self._final_replies())
        self._ended = True
        return self._wrote(
            Group(
                b"".join([*before, b"BDAT %d LAST\r\n" % len(data), data]),
                (*triggers, _BDAT_LAST),
                owed,
                turn=_UNTIL_COUNTED if self._several else _RELEASE,
                final=_FINAL,
                replies=self.replies,
                per_recipient=places,
            )
        )

    def _chunks(self) -> Generator[Any, Any, None]:
        """Content by BDAT, behind an envelope that was accepted."""
        if self.body.data is not None:
            yield self._last_chunk(self._content)
            return
        encoder = AsItIs() if self._binary else ContentEncoder(stuff=False)
        answered = len(self.replies)
        turn = _KEEP if self.session.pipelining else Turn.UNTIL_REPLY
        while (piece := (yield PULL)) is not None:
            self._check_chunks(answered)
            data = encoder.encode(piece)
            if data:
                line = b"BDAT %d\r\n" % len(data)
                yield self._wrote(
                    Group(line + data, (Trigger.bdat,), turn=turn, phase=Phase.CONTENT, replies=self.replies)
                )
        self._check_chunks(answered)
        yield self._last_chunk(encoder.finish())
        finals = len(self.replies) - self._final_replies()
        if any(reply.ok for reply in self.replies[finals:]) and not all(r.ok for r in self.replies[answered:finals]):
            raise self._contradiction(self.replies[finals:], b"content accepted though a chunk of it was refused")
        self._check_chunks(answered, finals)
        del self.replies[answered:finals]

    def _check_chunks(self, first: int, end: int | None = None) -> None:
        """RFC 3030 §2: a chunk that was refused ends the transaction."""
        for reply in self.replies[first:end]:
            if not reply.ok:
                self._check_understood(reply)
                raise self._refusal(SMTPDataError(*reply))

    def _check_understood(self, reply: Reply) -> None:
        """Never a refusal: a server that does not take BDAT for a command takes the chunk for commands."""
        if self._bdat and reply.code in _NOT_UNDERSTOOD:
            self.session.distrust_chunking()
            what = b"BDAT was offered, and not understood: " + reply.message
            raise self._contradiction([reply], what, "not_sent")

    def _data(self) -> Generator[Any, Any, None]:
        """Content behind the reply to DATA."""
        go = self.replies.pop()
        if go.code != 354:
            self._check_envelope()
            raise self._refusal(SMTPDataError(*go))
        if not _all_ok(self.replies):
            self._check_in_step(self.replies)
        if not _all_ok(self.replies) and not self._accepted():
            if any(reply.ok for reply in self._rcpt_replies()):
                # The recipients stand in a transaction that is not this one: nothing may go into it.
                raise SMTPProtocolError(354, b"DATA accepted for recipients whose MAIL or RSET was refused")
            # RFC 2920 §3.1: 354 without a valid recipient: "the client MUST send a single dot".
            yield self._wrote(Group(b".\r\n", (Trigger.dot,), turn=_RELEASE, phase=_FINAL))
            self._check_envelope()
        if self.body.data is not None:
            content = self._content + b".\r\n"
            self._ended = True
            yield self._wrote(
                Group(
                    content,
                    (Trigger.dot,),
                    self._final_replies(),
                    turn=_UNTIL_COUNTED if self._several else _RELEASE,
                    phase=_FINAL,
                    replies=self.replies,
                )
            )
        else:
            yield from self._streamed_data()

    def _streamed_data(self) -> Generator[Any, Any, None]:
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
        self._ended = True
        yield self._wrote(
            Group(
                encoder.finish() + b".\r\n",
                (Trigger.dot,),
                self._final_replies() - 1,
                turn=_UNTIL_COUNTED if self._several else _RELEASE,
                phase=_FINAL,
                replies=self.replies,
            )
        )

    def _check_early(self, answered: int) -> None:
        if len(self.replies) > answered:
            early = self.replies[answered]
            if not early.ok:
                raise self._refusal(SMTPDataError(*early))
            error = SMTPProtocolError(early.code, b"content accepted before its end was written")
            error.state = "in_doubt"
            raise error

    # ---- judging ----------------------------------------------------------------------------

    def _rcpt_replies(self) -> list[Reply]:
        first = self._base + 1
        return self.replies[first : first + len(self.envelope.recipients)]

    def _accepted(self) -> bool:
        """Whether RSET, MAIL and at least one RCPT were accepted."""
        before = self.replies[: self._base + 1]
        return all(reply.ok for reply in before) and any(reply.ok for reply in self._rcpt_replies())

    def _final_replies(self, *, each: bool = False) -> int:
        """How many replies the content is owed; `each`: one for each recipient."""
        return sum(reply.ok for reply in self._rcpt_replies()) if self.session.lmtp or each else 1

    def answers(self) -> dict[str, Reply]:
        """Return what the server has said to recipients by now, beginning with the first."""
        return dict(zip(self.envelope.recipients, self._rcpt_replies(), strict=False))

    def _refused(self) -> dict[str, Reply]:
        return {who: reply for who, reply in self.answers().items() if not reply.ok}

    def _contradiction(self, finals: list[Reply], what: bytes, state: DeliveryState = "in_doubt") -> SMTPProtocolError:
        """Never a success: it may have been delivered, but not as it was meant."""
        self.session.fail(SMTPProtocolError(finals[-1].code, what))
        error = SMTPProtocolError(finals[-1].code, what)
        error.state = state
        return error

    def _check_in_step(self, replies: list[Reply]) -> None:
        """Never a refusal either: who says 3yz to a command, or to the end of the content, is at another one."""
        for reply in replies:
            if 300 <= reply.code <= 399:
                raise self._contradiction([reply], asks_for_more(reply), self.state)

    @staticmethod
    def _refusal(error: SMTPException) -> SMTPException:
        error.state = "refused"
        return error

    def _check_envelope(self) -> None:
        """Raise what the replies to RSET, MAIL and RCPT amount to, unless a recipient was accepted."""
        replies = self.replies
        self._check_in_step(replies[: self._base + 1 + len(self.envelope.recipients)])
        if self._base and replies and not replies[0].ok:
            raise NotBegun(replies[0])
        if len(replies) > self._base and not replies[self._base].ok:
            raise self._refusal(SMTPSenderRefused(*replies[self._base], self.envelope.sender))
        answers = self._rcpt_replies()
        closing = any(is_leaving(reply) for reply in answers)
        complete = len(answers) == len(self.envelope.recipients)
        if closing or (complete and not any(reply.ok for reply in answers)):
            raise self._refusal(SMTPRecipientsRefused(self._refused()))

    def _verdict(self) -> Outcome:
        """All replies are in."""
        recipients = self.envelope.recipients
        finals = self.replies[self._base + 1 + len(recipients) :]
        if self._each:
            return self._prdr_verdict(finals)
        if _all_ok(self.replies):
            self._mark_clean()
            answers = finals if self.session.lmtp else self._rcpt_replies()
            return Outcome(dict(zip(recipients, answers, strict=True)), {}, finals[-1])
        self._check_in_step(self.replies)
        if not self._accepted():
            if any(reply.ok for reply in finals):
                raise self._contradiction(finals, b"content accepted though its envelope was refused")
            if self._bdat and _all_ok(self.replies[: self._base]):
                self.session.last_chunk = LastChunk.DOUBTED
            self._check_envelope()
        if not any(reply.ok for reply in finals):
            self._check_understood(finals[0])
            if self._bdat and not self._apart:
                self.session.last_chunk = LastChunk.DOUBTED  # the next reply will tell whether it was read
        if self.session.lmtp:
            return self._lmtp_verdict(finals)
        if not finals[-1].ok:
            raise self._refusal(SMTPDataError(*finals[-1]))
        self._mark_clean()
        accepted = {who: reply for who, reply in zip(recipients, self._rcpt_replies(), strict=True) if reply.ok}
        return Outcome(accepted, self._refused(), finals[-1])

    def _prdr_verdict(self, finals: list[Reply]) -> Outcome:
        """The last reply says whether the message was taken, those before it for whom."""
        self._check_in_step(self.replies)
        last = finals.pop()
        if not self._accepted():
            raise self._contradiction([last], b"content accepted though its envelope was refused")
        if not last.ok and any(reply.ok for reply in finals):
            raise self._refusal(SMTPDataError(*last))
        outcome = self._lmtp_verdict(finals)
        outcome.reply = last
        return outcome

    def _lmtp_verdict(self, finals: list[Reply]) -> Outcome:
        """RFC 2033 §4.2: each recipient has a final reply of its own."""
        refused = self._refused()
        taken = [who for who, reply in zip(self.envelope.recipients, self._rcpt_replies(), strict=True) if reply.ok]
        accepted: dict[str, Reply] = {}
        for who, reply in zip(taken, finals, strict=True):
            (accepted if reply.ok else refused)[who] = reply
        if not accepted:
            raise self._refusal(SMTPRecipientsRefused(refused))
        self._mark_clean()
        return Outcome(accepted, refused, finals[-1])

    def _mark_clean(self) -> None:
        assert self._group is not None
        self.session.mark_clean(self._group)

    def _interrupted(self, error: SMTPServerDisconnected) -> NoReturn:
        """The connection ended.  What is known of the message?"""
        if self._group is not None and self._group.dropped:
            self._ended = False  # the last of it never left
        if self.session.last_chunk is LastChunk.MISREAD:
            error.state = self.state  # its replies were not to its commands
        if error.state is None:
            end = self._base + 1 + len(self.envelope.recipients)
            envelope, content = self.replies[:end], self.replies[end:]
            closing = bool(envelope) and is_leaving(envelope[-1]) and not content  # and it did not go on
            # A server that goes on after a refusal and takes recipients may have taken the content too.
            if closing or not self._ended or not any(reply.ok for reply in self._rcpt_replies()):
                try:
                    self._check_envelope()
                except NotBegun:
                    if closing or not self._ended or (len(envelope) > 1 and not envelope[1].ok):
                        error.state = "not_sent"
            self._check_partial(content, error)
            error.state = error.state or self.state
        raise error

    def _check_partial(self, content: list[Reply], error: SMTPServerDisconnected) -> None:
        """Some of the replies to the content have come, not all: chunks', or recipients' (LMTP)."""
        refusals = [reply for reply in content if not reply.ok]
        if not refusals:
            return
        if (
            (self.session.lmtp or self._each)
            and self._ended
            and (not is_leaving(refusals[-1]) or len(refusals) < len(content))
        ):
            return  # some have it, or may have
        raise self._refusal(SMTPDataError(*refusals[0])) from error


def _all_ok(replies: list[Reply]) -> bool:
    # A loop, not a generator: this is between the server's reply and the next octet to it.
    for code, _ in replies:  # noqa: SIM110
        if not 200 <= code <= 299:
            return False
    return True


def manual_content(session: Session, content: bytes, owed: int = 1) -> Dialogue[Reply]:
    """DATA and content for a transaction that a caller opened by hand.

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
