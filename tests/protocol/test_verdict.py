"""The verdict on the replies to a transaction, as a table; and by its parts."""

from __future__ import annotations

from typing import Any

import pytest

from asmtp.errors import SMTPException, SMTPProtocolError, SMTPSenderRefused, known
from asmtp.protocol.envelope import Envelope
from asmtp.protocol.reply import Reply
from asmtp.protocol.verdict import (
    Finals,
    NotBegun,
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
from tests.protocol.transcript import describe_error, describe_outcome

TWO = Envelope("a@x", ["b@x", "c@x"])
ONE = Envelope("a@x", ["b@x"])
SMTP, LMTP, PRDR = Finals.ONE, Finals.EACH, Finals.EACH_AND_ONE


def said(text: str) -> list[Reply]:
    """Return the replies in one line: "250 a, 550 no"."""
    return [Reply(int(word[:3]), word[4:].encode()) for word in text.split(", ") if word]


def by_role(text: str, *, recipients: int = 2, reset: bool = False, chunks: int = 0) -> Replies:
    return Replies(said(text), reset=reset, recipients=recipients, chunks=chunks)


def described(verdict: Any) -> str:
    if isinstance(verdict, Outcome):
        return describe_outcome(verdict)
    return describe_error(verdict) if isinstance(verdict, SMTPException) else str(verdict)


# ---- all replies are in -------------------------------------------------------------------------

OUT_OF_STEP = "SMTPProtocolError 354 out of step: asks for more where there is none: go"
UNKNOWN_BDAT = "SMTPProtocolError 502 BDAT was offered, and not understood: what [not_sent]"
CHUNK_REFUSED = "SMTPProtocolError 250 content accepted though a chunk of it was refused [in_doubt]"
CONTRADICTION = "SMTPProtocolError 250 content accepted though its envelope was refused [in_doubt]"

# Each row: the final replies owed; RSET went in front; the content went by BDAT; the replies to (RSET,) MAIL, two RCPT
# and the content; the verdict.
VERDICTS: list[tuple[Finals, bool, bool, str, str]] = [
    (SMTP, False, False, "250 a, 250 b, 250 c, 250 taken", "sent {b@x: 250 b, c@x: 250 c} by 250 taken"),
    (SMTP, True, False, "250 r, 250 a, 250 b, 250 c, 250 taken", "sent {b@x: 250 b, c@x: 250 c} by 250 taken"),
    (SMTP, False, True, "250 a, 250 b, 550 c, 250 taken", "sent {b@x: 250 b} but not {c@x: 550 c} by 250 taken"),
    (SMTP, False, False, "250 a, 550 b, 251 c, 250 taken", "sent {c@x: 251 c} but not {b@x: 550 b} by 250 taken"),
    (SMTP, False, False, "550 a, 503 b, 503 c, 503 no", "SMTPSenderRefused 550 a [refused]"),
    (SMTP, False, False, "250 a, 550 b, 450 c, 503 no", "SMTPRecipientsRefused {b@x: 550 b, c@x: 450 c} [refused]"),
    (SMTP, False, False, "250 a, 250 b, 550 c, 452 full", "SMTPDataError 452 full [refused]"),
    (SMTP, True, False, "503 r, 503 a, 503 b, 503 c, 503 no", "NotBegun RSET was answered 503 r"),
    # Never a success: the content was taken, but not behind this envelope.
    (SMTP, True, False, "503 r, 250 a, 250 b, 250 c, 250 taken", CONTRADICTION),
    (SMTP, False, False, "503 a, 250 b, 250 c, 250 taken", CONTRADICTION),
    (SMTP, False, False, "250 a, 550 b, 550 c, 250 taken", CONTRADICTION),
    # 3yz to a command that asks for nothing: the server is at another one.
    (SMTP, False, False, "354 go, 250 b, 250 c, 250 taken", OUT_OF_STEP + " [in_doubt]"),
    (SMTP, False, False, "250 a, 250 b, 354 go, 250 taken", OUT_OF_STEP + " [in_doubt]"),
    (SMTP, False, False, "250 a, 250 b, 250 c, 354 go", OUT_OF_STEP + " [in_doubt]"),
    # 500 to 504 are about the command, which only BDAT makes a matter of the content's octets.
    (SMTP, False, False, "250 a, 250 b, 250 c, 500 what", "SMTPDataError 500 what [refused]"),
    (
        SMTP,
        False,
        True,
        "250 a, 250 b, 250 c, 500 what",
        "SMTPProtocolError 500 BDAT was offered, and not understood: what [not_sent]",
    ),
    (SMTP, False, True, "250 a, 250 b, 250 c, 504 what", UNKNOWN_BDAT.replace("502", "504")),
    (SMTP, False, True, "250 a, 250 b, 250 c, 505 what", "SMTPDataError 505 what [refused]"),
    (SMTP, False, True, "250 a, 550 b, 550 c, 503 no", "SMTPRecipientsRefused {b@x: 550 b, c@x: 550 c} [refused]"),
    # LMTP: a reply for each recipient that was accepted.
    (
        LMTP,
        False,
        True,
        "250 a, 250 b, 250 c, 250 b has it, 250 c has it",
        "sent {b@x: 250 b has it, c@x: 250 c has it} by 250 c has it",
    ),
    (
        LMTP,
        False,
        True,
        "250 a, 250 b, 250 c, 250 b has it, 452 full",
        "sent {b@x: 250 b has it} but not {c@x: 452 full} by 452 full",
    ),
    (
        LMTP,
        False,
        True,
        "250 a, 250 b, 250 c, 503 b not, 250 c has it",
        "sent {c@x: 250 c has it} but not {b@x: 503 b not} by 250 c has it",
    ),
    (
        LMTP,
        False,
        False,
        "250 a, 550 b, 250 c, 250 c has it",
        "sent {c@x: 250 c has it} but not {b@x: 550 b} by 250 c has it",
    ),
    (
        LMTP,
        False,
        False,
        "250 a, 250 b, 550 c, 452 full",
        "SMTPRecipientsRefused {c@x: 550 c, b@x: 452 full} [refused]",
    ),
    (LMTP, False, True, "250 a, 250 b, 250 c, 502 what, 502 what", UNKNOWN_BDAT),
    (LMTP, False, False, "550 a, 250 b, 250 c, 250 taken, 503 no", CONTRADICTION.replace("250", "503")),
    # PRDR: the last reply says whether the message was taken, those before it for whom.
    (
        PRDR,
        False,
        True,
        "250 a, 250 b, 250 c, 250 b has it, 550 c no, 250 taken",
        "sent {b@x: 250 b has it} but not {c@x: 550 c no} by 250 taken",
    ),
    (
        PRDR,
        False,
        True,
        "250 a, 250 b, 250 c, 250 b has it, 550 c no, 550 all no",
        "SMTPDataError 550 all no [refused]",
    ),
    (
        PRDR,
        False,
        True,
        "250 a, 250 b, 250 c, 550 b no, 550 c no, 550 all no",
        "SMTPRecipientsRefused {b@x: 550 b no, c@x: 550 c no} [refused]",
    ),
    (
        PRDR,
        False,
        False,
        "250 a, 250 b, 550 c, 250 b has it, 250 taken",
        "sent {b@x: 250 b has it} but not {c@x: 550 c} by 250 taken",
    ),
    (PRDR, False, False, "550 a, 250 b, 550 c, 550 no, 550 no", CONTRADICTION.replace("250", "550")),
    (PRDR, False, False, "250 a, 250 b, 250 c, 250 d, 250 e, 354 go", OUT_OF_STEP + " [in_doubt]"),
]


@pytest.mark.parametrize(("finals", "reset", "bdat", "replies", "verdict"), VERDICTS)
def test_judge(finals: Finals, reset: bool, bdat: bool, replies: str, verdict: str) -> None:
    found = judge(by_role(replies, reset=reset), TWO, finals, bdat=bdat)
    shown = described(found)
    assert (f"{shown} by {found.reply}" if isinstance(found, Outcome) else shown) == verdict


# ---- the envelope, before content ---------------------------------------------------------------

ENVELOPES: list[tuple[bool, str, str]] = [
    (False, "", "None"),
    (False, "250 a", "None"),
    (False, "250 a, 550 b", "None"),
    (False, "250 a, 550 b, 250 c", "None"),
    (False, "250 a, 550 b, 550 c", "SMTPRecipientsRefused {b@x: 550 b, c@x: 550 c} [refused]"),
    (False, "250 a, 421 bye", "SMTPRecipientsRefused {b@x: 421 bye} [refused]"),
    (False, "250 a, 250 b, 554 Too many errors", "SMTPRecipientsRefused {c@x: 554 Too many errors} [refused]"),
    (False, "421 bye", "SMTPSenderRefused 421 bye [refused]"),
    (False, "354 go", OUT_OF_STEP + " [not_sent]"),
    (False, "250 a, 354 go", OUT_OF_STEP + " [not_sent]"),
    (True, "250 r", "None"),
    (True, "503 r", "NotBegun RSET was answered 503 r"),
    (True, "503 r, 550 a", "NotBegun RSET was answered 503 r"),
    (True, "250 r, 550 a", "SMTPSenderRefused 550 a [refused]"),
]


@pytest.mark.parametrize(("reset", "replies", "verdict"), ENVELOPES)
def test_judge_envelope(reset: bool, replies: str, verdict: str) -> None:
    assert described(judge_envelope(by_role(replies, reset=reset), TWO, "not_sent")) == verdict


def test_a_refused_sender_is_named() -> None:
    error = judge_envelope(by_role("550 a"), TWO, "not_sent")
    assert isinstance(error, SMTPSenderRefused)
    assert error.sender == "a@x"


def test_a_transaction_that_was_not_begun_has_the_reply() -> None:
    error = judge_envelope(by_role("503 r", reset=True), TWO, "not_sent")
    assert isinstance(error, NotBegun)
    assert error.reply == (503, b"r")
    assert error.state is None


# ---- while content is written -------------------------------------------------------------------

CHUNKS: list[tuple[str, str, str]] = [
    ("", "", "None"),
    ("250 1, 250 2", "", "None"),
    ("250 1, 250 2", "552 no", "None"),
    ("250 1, 552 no", "", "SMTPDataError 552 no [refused]"),
    ("552 no, 503 what", "503 what", "SMTPDataError 552 no [refused]"),
    ("503 what", "", "SMTPProtocolError 503 BDAT was offered, and not understood: what [not_sent]"),
    ("552 no", "250 taken", CHUNK_REFUSED),
    ("503 no", "452 no, 250 taken", CHUNK_REFUSED),
]


@pytest.mark.parametrize(("chunks", "finals", "verdict"), CHUNKS)
def test_judge_chunks(chunks: str, finals: str, verdict: str) -> None:
    assert described(judge_chunks(said(chunks), said(finals))) == verdict


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("552 too much", "SMTPDataError 552 too much [refused]"),
        ("250 taken", "SMTPProtocolError 250 content accepted before its end was written [in_doubt]"),
    ],
)
def test_judge_early(reply: str, verdict: str) -> None:
    assert described(judge_early(*said(reply))) == verdict


# ---- the connection ended -----------------------------------------------------------------------

# Each row: the final replies owed; RSET went in front; the end of the content was written; the replies that have come;
# the state of the message, or the error.
ENDED: list[tuple[Finals, bool, bool, str, str]] = [
    (SMTP, False, False, "", "not_sent"),
    (SMTP, False, False, "250 a, 250 b, 250 c", "not_sent"),
    (SMTP, False, True, "", "in_doubt"),
    (SMTP, False, True, "250 a, 250 b, 250 c", "in_doubt"),
    (SMTP, False, True, "550 a", "SMTPSenderRefused 550 a [refused]"),
    (SMTP, False, True, "250 a, 550 b", "in_doubt"),
    (SMTP, False, True, "250 a, 550 b, 550 c", "SMTPRecipientsRefused {b@x: 550 b, c@x: 550 c} [refused]"),
    # A server that goes on behind a refusal and takes recipients may have taken the content, too.
    (SMTP, False, True, "550 a, 250 b", "in_doubt"),
    (SMTP, False, True, "250 a, 421 b, 250 c", "in_doubt"),
    # Behind its 421 a server closes: what stands behind was not looked at.
    (SMTP, False, True, "250 a, 421 b", "SMTPRecipientsRefused {b@x: 421 b} [refused]"),
    (SMTP, False, True, "250 a, 250 b, 421 c", "SMTPRecipientsRefused {c@x: 421 c} [refused]"),
    (SMTP, False, True, "421 a", "SMTPSenderRefused 421 a [refused]"),
    (SMTP, True, True, "421 r", "not_sent"),
    (SMTP, True, True, "503 r", "in_doubt"),
    (SMTP, True, False, "503 r", "not_sent"),
    (SMTP, True, True, "503 r, 550 a", "not_sent"),
    (SMTP, True, True, "503 r, 250 a", "in_doubt"),
    (SMTP, False, True, "354 go", OUT_OF_STEP + " [in_doubt]"),
    # Chunks, and some recipients' replies.
    (SMTP, False, False, "250 a, 250 b, 250 c, 250 1", "not_sent"),
    (SMTP, False, False, "250 a, 250 b, 250 c, 552 1", "SMTPDataError 552 1 [refused]"),
    (SMTP, False, True, "250 a, 250 b, 250 c, 250 1, 552 2", "SMTPDataError 552 2 [refused]"),
    (LMTP, False, True, "250 a, 250 b, 250 c, 250 b has it", "in_doubt"),
    (LMTP, False, True, "250 a, 250 b, 250 c, 452 full", "in_doubt"),
    (LMTP, False, True, "250 a, 250 b, 250 c, 421 bye", "SMTPDataError 421 bye [refused]"),
    (LMTP, False, True, "250 a, 250 b, 250 c, 250 b has it, 421 bye", "in_doubt"),
    (LMTP, False, False, "250 a, 250 b, 250 c, 552 1", "SMTPDataError 552 1 [refused]"),
    (PRDR, False, True, "250 a, 250 b, 250 c, 550 b no", "in_doubt"),
]


@pytest.mark.parametrize(("finals", "reset", "ended", "replies", "verdict"), ENDED)
@pytest.mark.parametrize("chunks", [0, 1])
def test_judge_ended(finals: Finals, reset: bool, ended: bool, replies: str, verdict: str, chunks: int) -> None:
    """It makes no difference that a chunk is not answered."""
    found = judge_ended(by_role(replies, reset=reset, chunks=chunks), TWO, finals, ended=ended)
    assert described(found) == verdict


# ---- the parts ----------------------------------------------------------------------------------


def test_by_role() -> None:
    replies = by_role("250 r, 250 a, 250 b, 550 c, 250 1, 250 2, 250 taken", reset=True, chunks=2)
    assert replies.rset == (250, b"r")
    assert replies.mail == (250, b"a")
    assert replies.rcpts == said("250 b, 550 c")
    assert replies.chunks == said("250 1, 250 2")
    assert replies.finals == said("250 taken")
    assert replies.envelope == said("250 r, 250 a, 250 b, 550 c")
    assert replies.accepted
    few = by_role("250 a")
    assert (few.rset, few.mail, few.rcpts, few.chunks, few.finals) == (None, (250, b"a"), [], [], [])
    assert few.envelope == said("250 a")
    assert not few.accepted
    nothing = by_role("", reset=True)
    assert (nothing.rset, nothing.mail, nothing.envelope) == (None, None, [])


@pytest.mark.parametrize(
    ("reset", "replies", "refused"),
    [
        (False, "250 a, 250 b, 250 c, 552 no", True),
        (False, "250 a, 550 b, 550 c, 503 no", True),
        (True, "250 r, 550 a, 503 b, 503 c, 503 no", True),
        (True, "503 r, 503 a, 503 b, 503 c, 503 no", False),
        (False, "250 a, 250 b, 250 c, 552 no, 250 taken", False),
    ],
)
def test_a_refused_chunk(reset: bool, replies: str, refused: bool) -> None:
    """Behind a RSET that was refused, the server may not have taken it for a chunk."""
    assert by_role(replies, reset=reset).chunk_refused is refused


@pytest.mark.parametrize(("finals", "owed"), [(SMTP, 1), (LMTP, 2), (PRDR, 3)])
def test_how_many_replies_the_content_is_owed(finals: Finals, owed: int) -> None:
    assert finals.owed(by_role("250 a, 250 b, 250 c")) == owed
    assert finals.owed(by_role("250 a, 250 b, 550 c")) == max(1, owed - 1)


def test_one_recipient_is_enough() -> None:
    found = judge(by_role("250 a, 250 b, 250 taken", recipients=1), ONE)
    assert described(found) == "sent {b@x: 250 b}"


def test_blames_bdat() -> None:
    assert blames_bdat(known(SMTPProtocolError(502, b"what"), "not_sent"))
    assert not blames_bdat(known(SMTPProtocolError(502, b"what"), "in_doubt"))
    assert not blames_bdat(known(SMTPProtocolError(354, b"go"), "not_sent"))


def test_what_is_positive() -> None:
    assert all_ok([])
    assert all_ok(said("250 a, 200 b, 299 c"))
    assert not all_ok(said("250 a, 199 b"))
    assert not all_ok(said("250 a, 300 b"))
    assert out_of_step(said("250 a, 550 b"), "not_sent") is None
    assert out_of_step(said("250 a, 399 b"), "not_sent") is not None
