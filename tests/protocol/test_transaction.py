"""One message: every shape of the table, both protocols, every way in which it can end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from asmtp.errors import SMTPProtocolError, SMTPSenderRefused
from asmtp.protocol.dialogue import hello
from asmtp.protocol.envelope import Envelope
from asmtp.protocol.extensions import Extensions
from asmtp.protocol.state import State
from asmtp.protocol.transaction import Body, Transaction
from tests.protocol.letters import SHAPES, STARTS, conversation, cut, letter, opened, unclean
from tests.protocol.transcript import Start, play

pytestmark = pytest.mark.usefixtures("bdat_at_once")

ONE_TO_TWO = {"one": letter(recipients=["b@x", "c@x"])}
ONE_TO_THREE = {"one": letter(recipients=["b@x", "c@x", "d@x"])}

shapes = pytest.mark.parametrize("shape", SHAPES)
protocols = pytest.mark.parametrize("lmtp", [False, True], ids=["SMTP", "LMTP"])

ACCEPTED = {
    "lock-step": r"""
        start one
        C: mail from:<a@x>
        S: 250 ok
        C: rcpt to:<b@x>
        S: 250 ok
        C: rcpt to:<c@x>
        S: 250 ok
        C: data
        S: 354 go
        C: Hi.
        C: .
        S: 250 taken""",
    "CHUNKING": r"""
        start one
        C: mail from:<a@x>
        S: 250 ok
        C: rcpt to:<b@x>
        S: 250 ok
        C: rcpt to:<c@x>
        S: 250 ok
        C: BDAT 5 LAST
        C: Hi.
        S: 250 taken""",
    "PIPELINING": r"""
        start one
        C: mail from:<a@x>
        C: rcpt to:<b@x>
        C: rcpt to:<c@x>
        C: data
        S: 250 ok
        S: 250 ok
        S: 250 ok
        S: 354 go
        C: Hi.
        C: .
        S: 250 taken""",
    "both": r"""
        start one
        C: mail from:<a@x>
        C: rcpt to:<b@x>
        C: rcpt to:<c@x>
        C: BDAT 5 LAST
        C: Hi.
        S: 250 ok
        S: 250 ok
        S: 250 ok
        S: 250 taken""",
}


def squeezed(text: str) -> list[str]:
    return [line.strip() for line in text.strip().splitlines()]


@shapes
def test_conversation_of_the_shape(shape: str) -> None:
    """The conversations that the other tests put together are written out here."""
    assert squeezed(conversation(shape)) == squeezed(ACCEPTED[shape])


@shapes
def test_accepted(shape: str) -> None:
    result = play(ACCEPTED[shape], ONE_TO_TWO, opened(shape))
    assert result["one"] == "sent {b@x: 250 ok, c@x: 250 ok}"
    assert result.state == "READY"
    assert result.clean


@shapes
def test_accepted_by_lmtp(shape: str) -> None:
    result = play(ACCEPTED[shape] + "\nS: 250 taken too", ONE_TO_TWO, opened(shape, lmtp=True))
    assert result["one"] == "sent {b@x: 250 taken, c@x: 250 taken too}"
    assert result.clean


@protocols
def test_without_chunking_where_the_caller_wants_it_so(lmtp: bool) -> None:
    starts = {"one": letter(recipients=["b@x", "c@x"], chunking=False)}
    for shape, like in (("both", "PIPELINING"), ("CHUNKING", "lock-step")):
        text = ACCEPTED[like] + ("\nS: 250 taken" if lmtp else "")
        assert play(text, starts, opened(shape, lmtp=lmtp))["one"].startswith("sent {b@x: ")


@protocols
def test_without_pipelining_where_the_caller_wants_it_so(lmtp: bool) -> None:
    text = ACCEPTED["CHUNKING"] + ("\nS: 250 taken" if lmtp else "")
    assert play(text, ONE_TO_TWO, opened("both", lmtp=lmtp, pipelining=False))["one"].startswith("sent {b@x: ")


FOREIGN = "DATA accepted for recipients whose MAIL or RSET was refused"

# Replies to the commands of a message to three, what becomes of it by SMTP and by LMTP, and whether a
# transaction may be open then.
REFUSALS: list[tuple[str, dict[str, Any], str, str, bool]] = [
    (
        "one of three recipients",
        {"rcpts": ["250 ok", "550 no", "251 ok"], "finals": ["250 taken"]},
        "sent {b@x: 250 ok, d@x: 251 ok} but not {c@x: 550 no}",
        "sent {b@x: 250 taken, d@x: 250 taken} but not {c@x: 550 no}",
        True,
    ),
    (
        "two of three recipients",
        {"rcpts": ["550 no", "450 later", "250 ok"], "finals": ["250 taken"]},
        "sent {d@x: 250 ok} but not {b@x: 550 no, c@x: 450 later}",
        "sent {d@x: 250 taken} but not {b@x: 550 no, c@x: 450 later}",
        True,
    ),
    (
        "all recipients",
        {"rcpts": ["550 no", "450 later", "553 never"], "data": "503 no rcpt", "finals": ["503 no rcpt"]},
        "SMTPRecipientsRefused {b@x: 550 no, c@x: 450 later, d@x: 553 never} [refused]",
        "SMTPRecipientsRefused {b@x: 550 no, c@x: 450 later, d@x: 553 never} [refused]",
        False,
    ),
    (
        "the sender",
        {
            "mail": "553 who",
            "rcpts": ["503 mail", "503 mail", "503 mail"],
            "data": "503 mail",
            "finals": ["503 mail"],
        },
        "SMTPSenderRefused 553 who [refused]",
        "SMTPSenderRefused 553 who [refused]",
        False,
    ),
    (
        "the content",
        {"rcpts": ["250 ok", "250 ok", "250 ok"], "finals": ["554 spam"]},
        "SMTPDataError 554 spam [refused]",
        "SMTPRecipientsRefused {b@x: 554 spam, c@x: 554 spam, d@x: 554 spam} [refused]",
        False,
    ),
]


@shapes
@protocols
@pytest.mark.parametrize("replies", [{"finals": ["354 go on"]}, {"mail": "354 go on"}, {"rcpts": ["354 go on"]}])
def test_asked_for_more(shape: str, lmtp: bool, replies: dict[str, Any]) -> None:
    """The server is answering another command than it seems: nothing more is written, and this is no refusal."""
    session = opened(shape, lmtp=lmtp)()
    one = session.start(STARTS["one"].make(session))
    before = b""
    for line in conversation(shape, **{"rcpts": ["250 ok"], **replies}).splitlines():
        if line.startswith("S: ") and not session.closed:
            before = session.output()
            session.receive_data(line.removeprefix("S: ").encode() + b"\r\n")
    assert type(one.error) is SMTPProtocolError
    assert one.error.smtp_error == b"out of step: asks for more where there is none: go on"
    assert one.error.state == ("in_doubt" if shape == "both" or b"Hi." in before else "not_sent")
    assert session.state is State.BROKEN
    assert session.output() == b""


@shapes
@protocols
@pytest.mark.parametrize(
    ("replies", "by_smtp", "by_lmtp", "clean"), [row[1:] for row in REFUSALS], ids=[row[0] for row in REFUSALS]
)
def test_refused(shape: str, lmtp: bool, replies: dict[str, Any], by_smtp: str, by_lmtp: str, clean: bool) -> None:
    replies = dict(replies)
    accepted = sum(reply[0] == "2" for reply in replies["rcpts"])
    if lmtp and accepted:
        replies["finals"] = replies["finals"] * accepted
    result = play(conversation(shape, **replies), ONE_TO_THREE, opened(shape, lmtp=lmtp))
    assert result["one"] == (by_lmtp if lmtp else by_smtp)
    assert result.clean is clean


@pytest.mark.parametrize("shape", ["lock-step", "PIPELINING"])
@protocols
def test_data_refused(shape: str, lmtp: bool) -> None:
    result = play(conversation(shape, data="451 later", finals=[]), ONE_TO_TWO, opened(shape, lmtp=lmtp))
    assert result["one"] == "SMTPDataError 451 later [refused]"
    assert result.state == "TRANSACTION"
    assert not result.clean


@pytest.mark.parametrize("shape", ["lock-step", "PIPELINING"])
def test_data_answered_250(shape: str) -> None:
    """A 250 is not a 354, so no content may be written."""
    result = play(conversation(shape, data="250 what", finals=[]), ONE_TO_TWO, opened(shape))
    assert result["one"] == "SMTPDataError 250 what [refused]"


@shapes
def test_lmtp_tells_of_each_recipient(shape: str) -> None:
    """RFC 2033 §4.2: the server gives a reply for each recipient accepted, in the order of the RCPTs."""
    text = conversation(shape, rcpts=["250 ok", "550 no", "250 ok"], finals=["452 full", "250 taken"])
    result = play(text, ONE_TO_THREE, opened(shape, lmtp=True))
    assert result["one"] == "sent {d@x: 250 taken} but not {c@x: 550 no, b@x: 452 full}"
    assert result.clean


@protocols
@pytest.mark.parametrize("final", ["554 no valid recipients", "250 nothing taken"])
def test_354_without_a_recipient_is_answered_with_a_lone_dot(lmtp: bool, final: str) -> None:
    """RFC 2920 §3.1: whatever the server answers, no recipient has the message."""
    text = conversation("PIPELINING", rcpts=["550 no", "550 no"], finals=[final])
    assert text.endswith(f"S: 354 go\nC: .\nS: {final}")
    result = play(text, ONE_TO_TWO, opened("PIPELINING", lmtp=lmtp))
    assert result["one"] == "SMTPRecipientsRefused {b@x: 550 no, c@x: 550 no} [refused]"
    assert result.state == "READY"
    assert not result.clean


@pytest.mark.parametrize(
    ("mail", "rset", "told"),
    [
        ("503 nested MAIL", "", "SMTPSenderRefused 503 nested MAIL [refused]"),
        ("250 ok", "500 what", f"SMTPProtocolError 354 {FOREIGN} [not_sent]"),
    ],
)
def test_354_for_recipients_of_another_transaction_breaks(mail: str, rset: str, told: str) -> None:
    """A lone dot would send an empty message, and the content would go out under somebody else's name."""
    text = conversation("PIPELINING", rset=rset, mail=mail)
    text = text[: text.index("C: .")]
    result = play(text, ONE_TO_TWO, (unclean if rset else opened)("PIPELINING"))
    assert result["one"] == told
    assert result.state == "BROKEN"


@pytest.mark.parametrize("shape", ["CHUNKING", "both"])
@pytest.mark.parametrize("rcpts", [["550 no", "550 no"], ["250 ok", "550 no"]])
@protocols
def test_content_accepted_though_the_envelope_was_not(shape: str, rcpts: Sequence[str], lmtp: bool) -> None:
    """The message is never told as sent: the server may have delivered it, but not as its envelope says."""
    mail = "250 ok" if rcpts == ["550 no", "550 no"] else "503 nested MAIL"
    text = conversation(shape, mail=mail, rcpts=rcpts)
    result = play(text, ONE_TO_TWO, opened(shape, lmtp=lmtp))
    if shape == "CHUNKING":  # BDAT is not written if each command is awaited
        told = "{b@x: 550 no, c@x: 550 no} [refused]" if mail == "250 ok" else "503 nested MAIL [refused]"
        assert result["one"].endswith(told)
        assert result.state != "BROKEN"
        return
    assert result["one"] == "SMTPProtocolError 250 content accepted though its envelope was refused [in_doubt]"
    assert result.state == "BROKEN"


# The state of the message if the connection ends after 0, 1, 2, ... of the five (four) replies.
NOT, DOUBT = "[not_sent]", "[in_doubt]"
KNOWN = {
    "lock-step": [NOT, NOT, NOT, NOT, DOUBT],
    "CHUNKING": [NOT, NOT, NOT, DOUBT],
    "PIPELINING": [NOT, NOT, NOT, NOT, DOUBT],
    "both": [DOUBT, DOUBT, DOUBT, DOUBT],
}


@shapes
@protocols
@pytest.mark.parametrize("end", ["eof", "fail", "close"])
def test_cut_off_after_each_reply(shape: str, lmtp: bool, end: str) -> None:
    said = {
        "eof": "Connection unexpectedly closed",
        "fail": "the test's own failure",
        "close": "connection closed on our side",
    }
    finals = ["250 taken"] * (1 + lmtp)
    text = conversation(shape, finals=finals)
    known = KNOWN[shape] + [DOUBT] * lmtp
    for replies, state in enumerate(known):
        result = play(cut(text, replies, end), ONE_TO_TWO, opened(shape, lmtp=lmtp))
        assert result["one"] == f"SMTPServerDisconnected {said[end]} {state}", f"after {replies} replies"
        assert result.state == ("CLOSED" if end == "close" else "BROKEN")


@shapes
def test_cut_off_within_a_reply(shape: str) -> None:
    text = conversation(shape)
    for replies, state in enumerate(KNOWN[shape]):
        result = play(cut(text, replies, "S: 250-well\\", "eof").replace("\\", ""), ONE_TO_TWO, opened(shape))
        assert result["one"].startswith("SMTPProtocolError -1 Connection unexpectedly closed within a reply: '250-well")
        assert result["one"].endswith(state)


@shapes
@protocols
def test_421_instead_of_each_reply(shape: str, lmtp: bool) -> None:
    finals = ["250 taken"] * (1 + lmtp)
    told = [
        "SMTPSenderRefused 421 bye [refused]",
        "SMTPRecipientsRefused {b@x: 421 bye} [refused]",
        "SMTPRecipientsRefused {c@x: 421 bye} [refused]",
        "SMTPDataError 421 bye [refused]",
        "SMTPDataError 421 bye [refused]",
    ]
    if "CHUNKING" in SHAPES[shape]:
        del told[3]
    for replies, expected in enumerate(told):
        text = cut(conversation(shape, finals=finals), replies, "S: 421 bye", "eof")
        result = play(text, ONE_TO_TWO, opened(shape, lmtp=lmtp))
        assert result["one"] == expected, f"after {replies} replies"
        assert result.state == "CLOSED"


@shapes
@protocols
def test_nothing_behind_421_counts(shape: str, lmtp: bool) -> None:
    """The server has said that it closes.  But if it has all of the message, it may have taken it."""
    finals = ["S: 250 taken"] * (1 + lmtp)
    content = [] if shape == "both" else ["S: 354 go"]
    text = cut(conversation(shape), 0, "S: 421 bye", "S: 250 ok", "S: 250 ok", *content, *finals)
    result = play(text, ONE_TO_TWO, opened(shape, lmtp=lmtp))
    if shape == "both":
        assert result["one"] == "SMTPProtocolError 250 content accepted though its envelope was refused [in_doubt]"
        assert result.state == "BROKEN"
    else:
        assert result["one"] == "SMTPSenderRefused 421 bye [refused]"
        assert result.state == "CLOSED"


@protocols
def test_a_server_that_says_421_to_a_recipient_and_goes_on(lmtp: bool) -> None:
    """Some servers greylist so: their replies to the other recipients and to the content count."""
    text = conversation("both", rcpts=["421 later", "250 ok"])
    result = play(text, ONE_TO_TWO, opened("both", lmtp=lmtp))
    assert result["one"].startswith("sent {c@x: 250 ")
    assert result["one"].endswith("but not {b@x: 421 later}")
    assert result.state == "CLOSED"
    # If the server goes on, and does not say whether it has taken the content, that is not known.
    for replies in (2, 3):
        told = play(cut(text, replies, "eof"), ONE_TO_TWO, opened("both", lmtp=lmtp))["one"]
        sure = "SMTPRecipientsRefused {b@x: 421 later} [refused]"
        assert told == (
            sure if replies == 2 else "SMTPServerDisconnected server closed the connection: 421 later [in_doubt]"
        )


@shapes
def test_421_behind_the_first_of_two_recipients_of_lmtp(shape: str) -> None:
    """One recipient has the message, and might get it twice if it were sent again."""
    text = conversation(shape, rcpts=["250 ok"] * 3, finals=["250 taken", "421 bye"]) + "\neof"
    result = play(text, ONE_TO_THREE, opened(shape, lmtp=True))
    assert result["one"] == "SMTPServerDisconnected server closed the connection: 421 bye [in_doubt]"
    text = conversation(shape, rcpts=["250 ok"] * 2, finals=["250 taken", "421 bye"])
    result = play(text, ONE_TO_TWO, opened(shape, lmtp=True))
    assert result["one"] == "sent {b@x: 250 taken} but not {c@x: 421 bye}"


@shapes
def test_eof_behind_a_refusal_is_a_refusal(shape: str) -> None:
    text = conversation(shape, mail="550 no", rcpts=["503 mail"] * 2, data="503 mail", finals=["503 mail"])
    assert play(cut(text, 1, "eof"), ONE_TO_TWO, opened(shape))["one"] == "SMTPSenderRefused 550 no [refused]"
    text = conversation(shape, rcpts=["550 no"] * 2, data="503 rcpt", finals=["503 rcpt"])
    assert play(cut(text, 3, "eof"), ONE_TO_TWO, opened(shape))["one"] == (
        "SMTPRecipientsRefused {b@x: 550 no, c@x: 550 no} [refused]"
    )


# ---- RSET in front ---------------------------------------------------------------------------


@shapes
@protocols
def test_rset_in_front_where_a_transaction_may_be_open(shape: str, lmtp: bool) -> None:
    finals = ["250 taken"] * (1 + lmtp)
    text = conversation(shape, rset="250 flushed", finals=finals)
    assert squeezed(text)[1] == "C: rset"
    result = play(text, ONE_TO_TWO, unclean(shape, lmtp=lmtp))
    assert result["one"].startswith("sent {b@x: 250 ")
    assert result.clean


@shapes
def test_rset_refused(shape: str) -> None:
    text = conversation(
        shape, rset="503 wait", mail="503 wait", rcpts=["503 wait"] * 2, data="503 wait", finals=["503 wait"]
    )
    result = play(text, ONE_TO_TWO, unclean(shape))
    assert result["one"] == "NotBegun RSET was answered 503 wait"
    assert not result.clean


def test_rset_refused_and_354() -> None:
    text = conversation("PIPELINING", rset="503 wait", mail="503 wait", rcpts=["503 wait"] * 2, finals=["554 what"])
    result = play(text, ONE_TO_TWO, unclean("PIPELINING"))
    assert result["one"] == "NotBegun RSET was answered 503 wait"


@shapes
def test_421_to_rset(shape: str) -> None:
    text = cut(conversation(shape, rset="250 flushed"), 0, "S: 421 bye", "eof")
    result = play(text, ONE_TO_TWO, unclean(shape))
    assert result["one"] in (
        "NotBegun RSET was answered 421 bye",
        "SMTPServerDisconnected server closed the connection: 421 bye [not_sent]",
    )
    assert result.state == "CLOSED"


@protocols
def test_rset_refused_but_the_rest_taken(lmtp: bool) -> None:
    text = conversation("both", rset="500 what", finals=["250 taken"] * (1 + lmtp))
    result = play(text, ONE_TO_TWO, unclean("both", lmtp=lmtp))
    assert result["one"] == "SMTPProtocolError 250 content accepted though its envelope was refused [in_doubt]"
    assert result.state == "BROKEN"


def test_eof_behind_a_rset_that_was_refused() -> None:
    """If the server took the envelope all the same, it may have the message."""
    text = conversation("both", rset="500 what")
    for replies in (1, 2, 3, 4):
        result = play(cut(text, replies, "eof"), ONE_TO_TWO, unclean("both"))
        assert result["one"].endswith("[in_doubt]"), replies
    nothing = conversation("both", rset="503 wait", mail="503 wait", rcpts=["503 wait"] * 2, finals=["503 wait"])
    assert play(cut(nothing, 1, "eof"), ONE_TO_TWO, unclean("both"))["one"].endswith("[in_doubt]")
    for replies in (2, 3, 4):
        assert play(cut(nothing, replies, "eof"), ONE_TO_TWO, unclean("both"))["one"].endswith("[not_sent]"), replies


def test_eof_behind_recipients_taken_without_a_sender() -> None:
    """The recipients may stand in an earlier transaction, which would have the message, under its own sender."""
    text = conversation("both", mail="503 nested MAIL")
    assert play(cut(text, 1, "eof"), ONE_TO_TWO, opened("both"))["one"].endswith("[refused]")
    assert play(cut(text, 2, "eof"), ONE_TO_TWO, opened("both"))["one"].endswith("[in_doubt]")


# ---- parameters of MAIL ----------------------------------------------------------------------


def mail_line(
    offers: dict[str, str], options: Sequence[str] = (), *, size: int | None = 5, eight_bit: bool = True
) -> bytes:
    """Return the MAIL line that is written to a server which offers these extensions."""
    session = opened()()
    session.extensions = Extensions(offers)
    body = Body(b"Hi.\r\n", size, eight_bit=eight_bit)
    session.start(Transaction(session, Envelope("a@x", "b@x", options), body).run())
    return session.output()


@pytest.mark.parametrize(
    ("offers", "options", "parameters"),
    [
        ({}, [], b""),
        ({"size": ""}, [], b" size=5"),
        ({"size": "0"}, [], b" size=5"),
        ({"size": "5"}, [], b" size=5"),
        ({"8bitmime": ""}, [], b" BODY=8BITMIME"),
        ({"size": "", "8bitmime": ""}, [], b" size=5 BODY=8BITMIME"),
        ({"size": "", "8bitmime": ""}, ["SIZE=7"], b" BODY=8BITMIME SIZE=7"),
        ({"size": "", "8bitmime": ""}, ["body=7BIT", "RET=HDRS"], b" size=5 body=7BIT RET=HDRS"),
        ({"size": "", "8bitmime": ""}, ["RET=HDRS"], b" size=5 BODY=8BITMIME RET=HDRS"),
        ({}, ["RET=HDRS"], b" RET=HDRS"),
    ],
)
def test_parameters(offers: dict[str, str], options: Sequence[str], parameters: bytes) -> None:
    """Parameters that the caller gives come before those that the content needs."""
    assert mail_line(offers, options) == b"mail from:<a@x>" + parameters + b"\r\n"


def test_parameters_that_do_not_apply() -> None:
    assert mail_line({"size": "", "8bitmime": ""}, size=None, eight_bit=False) == b"mail from:<a@x>\r\n"


def test_a_message_too_large_is_not_begun() -> None:
    """RFC 1870 §6.1: the message is refused as the server would do it."""
    with pytest.raises(SMTPSenderRefused) as caught:
        mail_line({"size": "4"})
    assert caught.value.smtp_code == 552
    assert caught.value.smtp_error == b"5.3.4 message of 5 octets is over the server's limit of 4"
    assert caught.value.sender == "a@x"
    assert caught.value.state == "refused"


def test_what_the_server_offers_when_the_turn_comes_counts() -> None:
    """EHLO may be said again while a message waits."""
    text = """
        start ehlo
        C: ehlo me.example
        start one
        S: 250-there
        S: 250-PIPELINING
        S: 250 CHUNKING
        C: mail from:<a@x>
        C: rcpt to:<b@x>
        C: BDAT 5 LAST
        C: Hi.
        S: 250 a
        S: 250 b
        S: 250 taken
        """
    starts = {"one": letter(), "ehlo": Start(lambda session: hello(session, "ehlo", "me.example"), alone=True)}
    assert play(text, starts, opened())["one"] == "sent {b@x: 250 b}"
