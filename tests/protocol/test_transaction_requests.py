"""Transactions in which something is asked for that changes their shape: PRDR and BINARYMIME."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from asmtp.errors import SMTPNotSupportedError, SMTPSenderRefused
from asmtp.protocol.envelope import Envelope
from asmtp.protocol.extensions import Extensions
from asmtp.protocol.session import Session
from asmtp.protocol.transaction import Body, Transaction
from tests.protocol.letters import CONTENT, NOOP, SHAPES, conversation, opened
from tests.protocol.transcript import Start, play

pytestmark = pytest.mark.usefixtures("bdat_at_once")

shapes = pytest.mark.parametrize("shape", SHAPES)


def also(shape: str, *keywords: str, **options: Any) -> Callable[[], Session]:
    """Return a function that makes a session whose server offers more."""

    def make() -> Session:
        session = opened(shape, **options)()
        session.extensions.update(dict.fromkeys(keywords, ""))
        return session

    return make


def asking(recipients: tuple[str, ...] = ("b@x", "c@x"), content: bytes = CONTENT, **requests: Any) -> dict[str, Start]:
    def make(session: Session) -> Any:
        envelope = Envelope("a@x", recipients, **requests)
        return Transaction(session, envelope, Body(content, len(content), eight_bit=False)).run()

    def pulled(session: Session) -> Any:
        envelope = Envelope("a@x", recipients, **requests)
        return Transaction(session, envelope, Body(None, None, eight_bit=False)).run()

    return {"one": Start(make), "streamed": Start(pulled), "noop": NOOP}


def told(shape: str, finals: list[str], rcpts: tuple[str, ...] = ("250 ok", "250 ok")) -> str:
    text = conversation(shape, finals=finals, rcpts=rcpts).replace("mail from:<a@x>", "mail from:<a@x> PRDR")
    recipients = ("b@x", "c@x", "d@x")[: len(rcpts)]
    text += "\nstart noop\nC: noop\nS: 250 still here"
    result = play(text, asking(recipients, prdr=True), also(shape, "prdr"))
    assert result["noop"] == "250 still here"
    outcome: str = result["one"]
    return outcome


# ---- PRDR ---------------------------------------------------------------------------------------

BEGUN = "353 content analysis"


@shapes
def test_a_reply_for_each_recipient(shape: str) -> None:
    outcome = told(shape, [BEGUN, "250 b has it", "550 c does not want it", "250 taken for some"])
    assert outcome == "sent {b@x: 250 b has it} but not {c@x: 550 c does not want it}"


@shapes
def test_all_of_them_take_it(shape: str) -> None:
    outcome = told(shape, [BEGUN, "250 b", "250 c", "250 taken for all"])
    assert outcome.startswith("sent {b@x: 250 b, c@x: 250 c}")


@shapes
def test_none_of_them_does(shape: str) -> None:
    outcome = told(shape, [BEGUN, "550 b", "450 c", "550 for none"])
    assert outcome == "SMTPRecipientsRefused {b@x: 550 b, c@x: 450 c} [refused]"


@shapes
def test_the_last_reply_decides(shape: str) -> None:
    assert told(shape, [BEGUN, "250 b", "550 c", "451 disk full"]) == "SMTPDataError 451 disk full [refused]"


@shapes
def test_recipients_that_were_refused_before(shape: str) -> None:
    outcome = told(shape, [BEGUN, "250 b", "550 d", "250 some"], ("250 ok", "550 no c", "250 ok"))
    assert outcome.startswith("sent {b@x: 250 b}")
    assert "c@x: 550 no c" in outcome
    assert "d@x: 550 d" in outcome


@shapes
@pytest.mark.parametrize("final", ["250 taken", "550 no"])
def test_one_reply_for_all(shape: str, final: str) -> None:
    """Exim does so if one recipient is left, or if the content is refused as a whole."""
    outcome = told(shape, [final], ("250 ok", "550 no c"))
    assert outcome.startswith("sent {b@x: 250 ok}" if final[0] == "2" else "SMTPDataError 550 no")


@shapes
@pytest.mark.parametrize("recipients", [("b@x",), ("b@x", "c@x")])
def test_it_is_left_out_where_it_does_nothing(shape: str, recipients: tuple[str, ...]) -> None:
    """PRDR changes nothing for one recipient, or if the server does not offer it."""
    rcpts = ["250 ok"] * len(recipients)
    session = also(shape, "prdr") if len(recipients) == 1 else opened(shape)
    assert play(conversation(shape, rcpts=rcpts), asking(recipients, prdr=True), session)["one"].startswith("sent {b@x")


@pytest.mark.parametrize(
    ("seen", "state"),
    [([], "in_doubt"), (["250 b"], "in_doubt"), (["550 b"], "in_doubt"), (["550 b", "550 c"], "in_doubt")],
)
def test_the_connection_ends_meanwhile(seen: list[str], state: str) -> None:
    finals = "\n".join(f"S: {reply}" for reply in [BEGUN, *seen])
    text = conversation("both", finals=[BEGUN]).replace("mail from:<a@x>", "mail from:<a@x> PRDR")
    text = text.replace(f"S: {BEGUN}", finals) + "\neof"
    result = play(text, asking(prdr=True), also("both", "prdr"))
    assert result["one"] == f"SMTPServerDisconnected Connection unexpectedly closed [{state}]"


@shapes
@pytest.mark.parametrize("heard", range(5))
def test_cancelled_while_it_is_answered(shape: str, heard: int) -> None:
    """Before the 353 nobody knows how many replies there will be: none of them is the next command's."""
    finals = [f"S: {reply}" for reply in [BEGUN, "250 b", "550 c", "250 done"]]
    finals[heard:heard] = ["cancel one", "start noop"]
    text = conversation(shape, finals=[BEGUN]).replace("mail from:<a@x>", "mail from:<a@x> PRDR")
    text = text.replace(f"S: {BEGUN}", "\n".join(finals)) + "\nC: noop\nS: 250 still here"
    assert play(text, asking(prdr=True), also(shape, "prdr"))["noop"] == "250 still here"


@pytest.mark.parametrize(
    ("finals", "told"),
    [
        (["250 taken"], "sent {c@x: 250 ok, d@x: 250 ok}"),
        ([BEGUN, "250 c", "250 d", "250 taken"], "sent {c@x: 250 c, d@x: 250 d}"),
        ([BEGUN, "250 c", "550 d", "250 taken"], "sent {c@x: 250 c}"),
        (["550 no"], "SMTPDataError 550 no"),
    ],
)
def test_a_server_that_goes_on_behind_a_421(finals: list[str], told: str) -> None:
    """A message that the server takes then must not be sent again."""
    rcpts = ["421 too many", "250 ok", "250 ok"]
    text = conversation("both", rcpts=rcpts, finals=finals).replace("mail from:<a@x>", "mail from:<a@x> PRDR")
    result = play(text, asking(("b@x", "c@x", "d@x"), prdr=True), also("both", "prdr"))
    assert result["one"].startswith(told)
    assert result.state == "CLOSED"


@shapes
def test_cancelled_before_a_single_final_reply(shape: str) -> None:
    """A server says no 353 if it refuses the whole content, or if there is one recipient."""
    text = conversation(shape, finals=["550 no"]).replace("mail from:<a@x>", "mail from:<a@x> PRDR")
    text = text.replace("S: 550 no", "cancel one\nstart noop\nS: 550 no\nC: noop\nS: 250 still here")
    assert play(text, asking(prdr=True), also(shape, "prdr"))["noop"] == "250 still here"


# ---- BINARYMIME ---------------------------------------------------------------------------------

RAW = b"\n.\n\r\0\r\n.no line end"


@pytest.mark.parametrize("shape", ["CHUNKING", "both"])
def test_content_as_it_is(shape: str) -> None:
    session = also(shape, "binarymime", "size", "8bitmime")()
    envelope = Envelope("a@x", "b@x", binary=True)
    session.start(Transaction(session, envelope, Body(RAW, 99, eight_bit=True)).run())
    written = b""
    for _ in range(3):
        written += session.output()
        session.receive_data(b"250 ok\r\n" * (3 if shape == "both" else 1))
    mail = b"mail from:<a@x> BODY=BINARYMIME size=%d\r\n" % len(RAW)
    assert written == mail + b"rcpt to:<b@x>\r\n" + b"BDAT %d LAST\r\n" % len(RAW) + RAW


@pytest.mark.parametrize("shape", ["CHUNKING", "both"])
def test_streamed_content_as_it_is(shape: str) -> None:
    session = also(shape, "binarymime")()
    exchange = session.start(asking(("b@x",), binary=True)["streamed"].make(session))
    for _ in range(2):
        session.output()
        session.receive_data(b"250 ok\r\n" * (2 if shape == "both" else 1))
        if exchange.pulling:
            break
    written = b""
    for piece in (RAW[:3], b"", RAW[3:], None):
        session.push(exchange, piece)
        written += session.output()
        if shape == "CHUNKING" and not exchange.pulling and not exchange.done:
            session.receive_data(b"250 ok\r\n")
            written += session.output()
    assert written == b"BDAT 3\r\n" + RAW[:3] + b"BDAT %d\r\n" % len(RAW[3:]) + RAW[3:] + b"BDAT 0 LAST\r\n"


def test_no_chunking_where_the_caller_wants_it_so() -> None:
    session = also("both", "binarymime")()
    envelope = Envelope("a@x", "b@x", binary=True)
    with pytest.raises(SMTPNotSupportedError, match="^BINARYMIME needs CHUNKING, which was turned off$"):
        Transaction(session, envelope, Body(RAW, 9, eight_bit=True), chunking=False)


def test_the_size_of_binary_content() -> None:
    session = also("both", "binarymime")()
    session.extensions["size"] = "5"
    with pytest.raises(SMTPSenderRefused, match=f"message of {len(RAW)} octets"):
        Transaction(session, Envelope("a@x", "b@x", binary=True), Body(RAW, 1, eight_bit=True))


@pytest.mark.parametrize(("counted", "size"), [(True, 6), (False, 4)])
def test_whether_size_counts_the_line_end_that_is_added(counted: bool, size: int) -> None:
    """smtplib does not count it, and CPython's tests want the same of the facade."""
    session = opened("both")()
    session.declares_line_end = counted  # type: ignore[misc]
    session.extensions = Extensions.parse(b"me\nPIPELINING\nSIZE")
    body = Body(b"hell", 4, eight_bit=False)
    session.start(Transaction(session, Envelope("a@x", ["b@x"]), body).run())
    assert session.output().startswith(b"mail from:<a@x> size=%d\r\n" % size)
