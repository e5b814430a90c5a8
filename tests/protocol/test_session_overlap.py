"""Several messages on one connection, written before the outcome of those before them is known."""

from __future__ import annotations

import pytest

from asmtp.errors import SMTPServerDisconnected
from asmtp.protocol.session import Session
from tests.protocol.letters import SHAPES, STARTS, TWO_BY_BDAT, conversation, cut, letter, opened, replies
from tests.protocol.transcript import play, state_of

pytestmark = pytest.mark.usefixtures("bdat_at_once")

shapes = pytest.mark.parametrize("shape", SHAPES)
protocols = pytest.mark.parametrize("lmtp", [False, True], ids=["SMTP", "LMTP"])

THREE_BY_BDAT = f"""{TWO_BY_BDAT}
    start three
    C: rset
    C: mail from:<e@x>
    C: rcpt to:<f@x>
    C: BDAT 7 LAST
    C: Three
    """

# The next one's envelope rides behind the dot of the one before, in one write (RFC 2920 §3.1).
THREE_BY_DATA = """
    start one
    C: mail from:<a@x>
    C: rcpt to:<b@x>
    C: data
    start two
    start three
    S: 250 a
    S: 250 b
    S: 354 go
    C: Hi.
    C: .
    C: rset
    C: mail from:<c@x>
    C: rcpt to:<d@x>
    C: data
    S: 250 one
    S: 250 flushed
    S: 250 c
    S: 250 d
    S: 354 go
    C: Two
    C: .
    C: rset
    C: mail from:<e@x>
    C: rcpt to:<f@x>
    C: data
    S: 250 two
    S: 250 flushed
    S: 250 e
    S: 250 f
    S: 354 go
    C: Three
    C: .
    S: 250 three
    """


@protocols
def test_three_in_flight_by_bdat(lmtp: bool) -> None:
    text = THREE_BY_BDAT + replies(
        "250 a", "250 b", "250 one",
        "250 flushed", "250 c", "250 d", "250 two",
        "250 flushed", "250 e", "250 f", "250 three",
    )  # fmt: skip
    result = play(text, STARTS, opened("both", lmtp=lmtp))
    final = {"one": "one", "two": "two", "three": "three"} if lmtp else {"one": "b", "two": "d", "three": "f"}
    assert result.outcomes == {
        "one": f"sent {{b@x: 250 {final['one']}}}",
        "two": f"sent {{d@x: 250 {final['two']}}}",
        "three": f"sent {{f@x: 250 {final['three']}}}",
    }
    assert result.clean


@protocols
def test_three_by_data(lmtp: bool) -> None:
    result = play(THREE_BY_DATA, STARTS, opened("PIPELINING", lmtp=lmtp))
    final = {"one": "one", "two": "two", "three": "three"} if lmtp else {"one": "b", "two": "d", "three": "f"}
    assert result.outcomes == {
        "one": f"sent {{b@x: 250 {final['one']}}}",
        "two": f"sent {{d@x: 250 {final['two']}}}",
        "three": f"sent {{f@x: 250 {final['three']}}}",
    }
    assert result.clean


def test_a_refusal_does_not_touch_the_next_one() -> None:
    text = TWO_BY_BDAT + replies("250 a", "550 b", "503 one", "250 flushed", "250 c", "250 d", "250 two")
    result = play(text, STARTS, opened("both"))
    assert result["one"] == "SMTPRecipientsRefused {b@x: 550 b} [refused]"
    assert result["two"] == "sent {d@x: 250 d}"
    assert result.clean


def test_lmtp_counts_only_its_own_recipients() -> None:
    """The content is owed one reply if no recipient or one is accepted, and two if two are."""
    starts = {"one": letter("a@x", ["b@x", "c@x", "d@x"]), "two": letter("e@x", ["f@x"], b"Two\r\n")}
    text = """
        start one
        C: mail from:<a@x>
        C: rcpt to:<b@x>
        C: rcpt to:<c@x>
        C: rcpt to:<d@x>
        C: BDAT 5 LAST
        C: Hi.
        start two
        """
    behind = """
        C: mail from:<e@x>
        C: rcpt to:<f@x>
        C: BDAT 5 LAST
        C: Two
        """
    for firsts, told in [
        (("250 a", "550 b", "550 c", "550 d", "503 none"),
         "SMTPRecipientsRefused {b@x: 550 b, c@x: 550 c, d@x: 550 d} [refused]"),
        (("250 a", "550 b", "250 c", "550 d", "250 one"), "sent {c@x: 250 one} but not {b@x: 550 b, d@x: 550 d}"),
        (("250 a", "250 b", "550 c", "250 d", "250 one", "250 uno"),
         "sent {b@x: 250 one, d@x: 250 uno} but not {c@x: 550 c}"),
        (("250 a", "250 b", "250 c", "250 d", "250 one", "450 ein", "250 uno"),
         "sent {b@x: 250 one, d@x: 250 uno} but not {c@x: 450 ein}"),
    ]:  # fmt: skip
        flushed = "refused" in told
        second = ("250 flushed",) * flushed + ("250 e", "250 f", "250 two")
        rest = replies(*firsts) + "\n        C: rset" * flushed + behind + replies(*second)
        result = play(text + rest, starts, opened("both", lmtp=True))
        assert result["one"] == told
        assert result["two"] == "sent {f@x: 250 two}"


@pytest.mark.parametrize("shape", ["PIPELINING", "both"])
def test_lmtp_with_fewer_replies_than_recipients(shape: str) -> None:
    """No reply to the next commands is taken for a recipient's."""
    session = opened(shape, lmtp=True)()
    first = session.start(letter("a@x", ["b@x", "c@x"]).make(session))
    second = session.start(letter("e@x", ["f@x"]).make(session))
    session.output()
    for line in ("250 a", "250 b", "250 c", *(["354 go"] if shape == "PIPELINING" else [])):
        session.receive_data(line.encode() + b"\r\n")
    session.output()
    session.receive_data(b"451 no\r\n")
    assert session.output() == b""
    assert not first.done
    session.fail(SMTPServerDisconnected("it is silent"))
    assert isinstance(first.error, SMTPServerDisconnected)
    assert isinstance(second.error, SMTPServerDisconnected)
    assert (first.error.state, second.error.state) == ("in_doubt", "not_sent")


def test_what_comes_behind_an_unanswered_message_refused() -> None:
    """Haraka answers 503 to everything behind the end of the content, so the next message was not begun."""
    text = TWO_BY_BDAT + replies("250 a", "250 b", "250 one", "503 wait", "503 wait", "503 wait", "503 wait")
    result = play(text, STARTS, opened("both"))
    assert result["one"] == "sent {b@x: 250 b}"
    assert result["two"] == "NotBegun RSET was answered 503 wait"
    assert not result.clean


@shapes
def test_no_overlap_where_the_server_does_not_take_it(shape: str) -> None:
    def alone() -> Session:
        session = opened(shape)()
        session.overlap = False
        return session

    text = conversation(shape, rcpts=["250 b"]).replace("S: ", "start noop\nS: ", 1) + "\nC: noop\nS: 250 noop"
    result = play(text, STARTS, alone)
    assert result.outcomes == {"one": "sent {b@x: 250 b}", "noop": "250 noop"}


ENOUGH = "554 Too many nonmail commands"  # as Exim says to the eleventh RSET behind refused messages


@pytest.mark.parametrize("bye", ["421 bye", ENOUGH])
def test_421_ends_all_that_is_behind_it(bye: str) -> None:
    """The server answers in order, so it did not look at what stands behind its 421."""
    every = ["250 a", "250 b", "250 one", "250 flushed", "250 c", "250 d", "250 two"]
    gone = f"SMTPServerDisconnected server closed the connection: {bye} [not_sent]"
    told = [
        (f"SMTPSenderRefused {bye} [refused]", gone),
        (f"SMTPRecipientsRefused {{b@x: {bye}}} [refused]", gone),
        (f"SMTPDataError {bye} [refused]", gone),
        ("sent {b@x: 250 b}", gone),  # to RSET
        ("sent {b@x: 250 b}", f"SMTPSenderRefused {bye} [refused]"),
        ("sent {b@x: 250 b}", f"SMTPRecipientsRefused {{d@x: {bye}}} [refused]"),
        ("sent {b@x: 250 b}", f"SMTPDataError {bye} [refused]"),
    ]
    for place, (one, two) in enumerate(told):
        result = play(TWO_BY_BDAT + replies(*every[:place], bye) + "eof", STARTS, opened("both"))
        assert (result["one"], result["two"]) == (one, two), place
        assert result.state == "CLOSED"


@pytest.mark.parametrize("later", ["421 later", "550 5.7.1 too many errors, later"])
def test_a_server_that_says_421_and_goes_on(later: str) -> None:
    """Nothing more is written, but the replies to what was written whole count: else it would be sent twice."""
    every = ["250 flushed", "250 c", "250 d", "250 two"]
    gone = f"SMTPServerDisconnected server closed the connection: {later} "
    for place in range(len(every) + 1):
        text = TWO_BY_BDAT + replies("250 a", later, "503 no", *every[:place]) + "start three\neof"
        result = play(text, STARTS, opened("both"))
        assert result["one"] == f"SMTPRecipientsRefused {{b@x: {later}}} [refused]"
        assert result["two"] == ("sent {d@x: 250 d}" if place == 4 else gone + "[in_doubt]"), place
        assert result["three"] == gone + "[not_sent]"
        assert result.state == "CLOSED"


@pytest.mark.parametrize("end", ["fail", "close"])
def test_a_server_that_says_421_and_nothing_more(end: str) -> None:
    """The server does not close either, so it may go on at any time."""
    result = play(TWO_BY_BDAT + replies("250 a", "250 b", "421 bye") + end, STARTS, opened("both"))
    assert result["one"] == "SMTPDataError 421 bye [refused]"
    assert result["two"].endswith("[in_doubt]")


def test_421_drops_what_has_not_left_yet() -> None:
    session = opened("both")()
    one = session.start(STARTS["one"].make(session))
    assert session.output().startswith(b"mail from:<a@x>")
    two = session.start(STARTS["two"].make(session))
    session.receive_data(b"421 bye\r\n")
    assert session.output() == b"", "it was said not to be sent"
    session.receive_eof()
    assert state_of(one) == "refused"
    assert state_of(two) == "not_sent"


def test_eof_among_overlapped_messages() -> None:
    every = ["250 a", "250 b", "250 one", "250 flushed", "250 c", "250 d"]
    doubt = "SMTPServerDisconnected Connection unexpectedly closed [in_doubt]"
    for place in range(len(every) + 1):
        result = play(TWO_BY_BDAT + replies(*every[:place]) + "eof", STARTS, opened("both"))
        assert result["one"] == ("sent {b@x: 250 b}" if place >= 3 else doubt)
        assert result["two"] == doubt


def test_eof_among_messages_by_data() -> None:
    """Nothing was written of the messages that await the turn."""
    gone = "SMTPServerDisconnected Connection unexpectedly closed "
    one = [gone + "[not_sent]"] * 3 + [gone + "[in_doubt]"] + ["sent {b@x: 250 b}"] * 8
    two = [gone + "[not_sent]"] * 8 + [gone + "[in_doubt]"] + ["sent {d@x: 250 d}"] * 3
    for place in range(12):
        result = play(cut(THREE_BY_DATA, place, "eof"), STARTS, opened("PIPELINING"))
        assert result["one"] == one[place], place
        assert result["two"] == two[place], place
        assert result["three"] == gone + "[not_sent]"


def test_a_message_nobody_can_account_for_does_not_speak_for_the_others() -> None:
    """A message whose content was accepted without its envelope is in doubt; the one behind it was not sent."""
    text = """
        start one
        C: mail from:<a@x>
        C: rcpt to:<b@x>
        C: BDAT 5 LAST
        C: Hi.
        pause
        start two
        S: 250 a
        S: 550 b
        S: 250 one
        """
    result = play(text, STARTS, opened("both"))
    assert result["one"] == "SMTPProtocolError 250 content accepted though its envelope was refused [in_doubt]"
    assert result["two"] == "SMTPProtocolError 250 content accepted though its envelope was refused [not_sent]"
