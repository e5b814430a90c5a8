"""Content that is pulled in pieces: by BDAT chunks and by DATA."""

from __future__ import annotations

import pytest

from tests.protocol.letters import SHAPES, cut, opened, streamed
from tests.protocol.transcript import parse, play, played_until

pytestmark = pytest.mark.usefixtures("bdat_at_once")

ONE = {"one": streamed(recipients=["b@x", "c@x"])}

shapes = pytest.mark.parametrize("shape", SHAPES)
chunking = pytest.mark.parametrize("shape", ["CHUNKING", "both"])
by_data = pytest.mark.parametrize("shape", ["lock-step", "PIPELINING"])

ENVELOPE = {
    "lock-step": """
        start one
        C: mail from:<a@x>
        S: 250 ok
        C: rcpt to:<b@x>
        S: 250 ok
        C: rcpt to:<c@x>
        S: 250 ok
        C: data
        S: 354 go
        """,
    "CHUNKING": """
        start one
        C: mail from:<a@x>
        S: 250 ok
        C: rcpt to:<b@x>
        S: 250 ok
        C: rcpt to:<c@x>
        S: 250 ok
        """,
    "PIPELINING": """
        start one
        C: mail from:<a@x>
        C: rcpt to:<b@x>
        C: rcpt to:<c@x>
        C: data
        S: 250 ok
        S: 250 ok
        S: 250 ok
        S: 354 go
        """,
    "both": """
        start one
        C: mail from:<a@x>
        C: rcpt to:<b@x>
        C: rcpt to:<c@x>
        S: 250 ok
        S: 250 ok
        S: 250 ok
        """,
}

# The same content each time: "One\r\n.two\rthree", in three pieces that fall badly.
PIECES = {
    "lock-step": r"""
        push one One\r
        C: One\
        push one \n.two\rth
        C: \r\n..two\r\nth\
        push one ree
        C: ree\
        end one
        C: \r\n.
        """,
    "CHUNKING": r"""
        push one One\r
        C: BDAT 3
        C: One\
        S: 250 3 octets
        push one \n.two\rth
        C: BDAT 10
        C: \r\n.two\r\nth\
        S: 250 10 octets
        push one ree
        C: BDAT 3
        C: ree\
        S: 250 3 octets
        end one
        C: BDAT 2 LAST
        C: \r\n\
        """,
    "both": r"""
        push one One\r
        C: BDAT 3
        C: One\
        push one \n.two\rth
        C: BDAT 10
        C: \r\n.two\r\nth\
        push one ree
        C: BDAT 3
        C: ree\
        end one
        C: BDAT 2 LAST
        C: \r\n\
        S: 250 3 octets
        S: 250 10 octets
        S: 250 3 octets
        """,
}
PIECES["PIPELINING"] = PIECES["lock-step"]


@shapes
def test_accepted(shape: str) -> None:
    result = play(ENVELOPE[shape] + PIECES[shape] + "S: 250 taken", ONE, opened(shape))
    assert result["one"] == "sent {b@x: 250 ok, c@x: 250 ok}"
    assert result.state == "READY"
    assert result.clean


@shapes
def test_accepted_by_lmtp(shape: str) -> None:
    text = ENVELOPE[shape] + PIECES[shape] + "S: 250 taken\nS: 552 full"
    result = play(text, ONE, opened(shape, lmtp=True))
    assert result["one"] == "sent {b@x: 250 taken} but not {c@x: 552 full}"
    assert result.clean


@shapes
def test_without_content(shape: str) -> None:
    """Pieces may be empty, and there may be no piece."""
    octets = "C: BDAT 0 LAST" if "CHUNKING" in SHAPES[shape] else "C: ."
    for pushed in ("", "push one \n"):
        text = f"{ENVELOPE[shape]}{pushed}end one\n{octets}\nS: 250 taken"
        assert play(text, ONE, opened(shape))["one"] == "sent {b@x: 250 ok, c@x: 250 ok}"


@shapes
def test_nothing_is_pulled_for_an_envelope_that_is_refused(shape: str) -> None:
    if "PIPELINING" in SHAPES[shape]:
        text = ENVELOPE[shape].replace("250 ok", "550 no", 1).replace("250 ok", "503 mail")
        text = text.replace("354 go", "503 mail")
    else:
        text = "start one\nC: mail from:<a@x>\nS: 550 no"
    result = play(text, ONE, opened(shape))
    assert result["one"] == "SMTPSenderRefused 550 no [refused]"
    assert not result.clean


@shapes
def test_refused_in_the_end(shape: str) -> None:
    result = play(ENVELOPE[shape] + PIECES[shape] + "S: 554 spam", ONE, opened(shape))
    assert result["one"] == "SMTPDataError 554 spam [refused]"
    assert result.state == "READY"
    assert not result.clean


@shapes
def test_the_content_cannot_be_had(shape: str) -> None:
    """Content that was begun by DATA cannot be taken back, so the session breaks; chunks are discarded by RSET."""
    piece = "C: BDAT 2\nC: Hi\\\nS: 250 ok" if "CHUNKING" in SHAPES[shape] else "C: Hi\\"
    result = play(ENVELOPE[shape] + f"push one Hi\n{piece}\nabort one", ONE, opened(shape))
    assert result["one"] == "OSError the file is gone"
    assert result.state == ("DISCARD" if "CHUNKING" in SHAPES[shape] else "BROKEN")
    assert not result.clean


def test_the_content_cannot_be_had_while_a_reply_is_owed() -> None:
    text = ENVELOPE["both"] + "push one Hi\nC: BDAT 2\nC: Hi\\\nabort one\nS: 250 ok"
    result = play(text, ONE, opened("both"))
    assert result["one"] == "OSError the file is gone"
    assert result.state == "DISCARD"


# ---- refused on the way ----------------------------------------------------------------------


def test_a_chunk_refused_where_each_is_awaited() -> None:
    text = ENVELOPE["CHUNKING"] + "push one Hi\nC: BDAT 2\nC: Hi\\\nS: 552 too much"
    result = play(text, ONE, opened("CHUNKING"))
    assert result["one"] == "SMTPDataError 552 too much [refused]"
    assert result.state == "DISCARD"
    assert not result.clean


def test_a_chunk_refused_is_noticed_before_the_next_one_is_there() -> None:
    """A producer may take its time, and a server that has refused a chunk need not read the next."""
    text = ENVELOPE["both"]
    text += """
        push one Hi
        C: BDAT 2
        C: Hi\\
        push one .
        C: BDAT 1
        C: .\\
        S: 552 too much
        S: 503 what
        """
    result = play(text, ONE, opened("both"))
    assert result["one"] == "SMTPDataError 552 too much [refused]"
    assert result.state == "DISCARD"
    # Even when the replies to the chunks behind it never come.
    assert play(cut(text, 4, "eof"), ONE, opened("both"))["one"] == "SMTPDataError 552 too much [refused]"


def test_a_chunk_refused_behind_the_last() -> None:
    text = ENVELOPE["both"] + PIECES["both"].replace("S: 250 10", "S: 452 10")
    for final in ("503 what", "554 what"):
        result = play(f"{text}S: {final}", ONE, opened("both"))
        assert result["one"] == "SMTPDataError 452 10 octets [refused]"
        assert not result.clean
    assert play(cut(text, 5, "eof"), ONE, opened("both"))["one"] == "SMTPDataError 452 10 octets [refused]"


def test_accepted_though_a_chunk_of_it_was_not() -> None:
    """RFC 3030 §2 rules this out; if it happens, somebody may have got half a message."""
    text = ENVELOPE["both"] + PIECES["both"].replace("S: 250 10", "S: 452 10") + "S: 250 taken"
    result = play(text, ONE, opened("both"))
    assert result["one"] == "SMTPProtocolError 250 content accepted though a chunk of it was refused [in_doubt]"
    assert result.state == "BROKEN"


@chunking
def test_a_chunk_answered_421(shape: str) -> None:
    text = ENVELOPE[shape] + "push one Hi\nC: BDAT 2\nC: Hi\\\nS: 421 bye"
    result = play(text, ONE, opened(shape))
    assert result["one"] == "SMTPDataError 421 bye [refused]"
    assert result.state == "CLOSED"


@by_data
def test_refused_before_its_end(shape: str) -> None:
    """The server would take the rest for commands, so the connection is closed."""
    for reply in ("552 too much", "421 bye"):
        text = ENVELOPE[shape] + f"push one Hi\nC: Hi\\\nS: {reply}"
        result = play(text, ONE, opened(shape))
        assert result["one"] == f"SMTPDataError {reply} [refused]"
        assert result.state == "BROKEN"


@by_data
def test_accepted_before_its_end(shape: str) -> None:
    result = play(ENVELOPE[shape] + "push one Hi\nC: Hi\\\nS: 250 taken", ONE, opened(shape))
    assert result["one"] == "SMTPProtocolError 250 content accepted before its end was written [in_doubt]"
    assert result.state == "BROKEN"


# ---- cut off ---------------------------------------------------------------------------------


@shapes
@pytest.mark.parametrize("end", ["eof", "fail"])
def test_cut_off_between_the_pieces(shape: str, end: str) -> None:
    """The server cannot have the message before the end of the content was written."""
    steps = PIECES[shape].split("end one")[0].split("push one")[1:]
    for pushed in range(len(steps) + 1):
        pieces = "".join(f"push one{step}" for step in steps[:pushed])
        result = play(f"{ENVELOPE[shape]}{pieces}\n{end}", ONE, opened(shape))
        assert result["one"].startswith("SMTPServerDisconnected ")
        assert result["one"].endswith("[not_sent]")
        assert result.state == "BROKEN"


@shapes
def test_nothing_is_pulled_when_it_is_over(shape: str) -> None:
    """A piece may still come from the producer, but there is no dialogue to push it to."""
    for end in ("cancel one", "abort one", "eof", "S: 421 bye"):
        player = played_until(parse(ENVELOPE[shape]), ONE, opened(shape)())
        exchange = player.exchanges["one"]
        assert exchange.pulling
        for what, name, data in parse(end):
            if what == "S:":
                player.session.receive_data(data)
            else:
                player.act(what, name, data)
        assert exchange.done
        assert not exchange.pulling


@shapes
def test_cut_off_behind_the_end(shape: str) -> None:
    text = ENVELOPE[shape] + PIECES[shape]
    result = play(text + "eof", ONE, opened(shape))
    assert result["one"] == "SMTPServerDisconnected Connection unexpectedly closed [in_doubt]"
    result = play(text + "S: 550 no\neof", ONE, opened(shape, lmtp=True))
    assert result["one"] == "SMTPServerDisconnected Connection unexpectedly closed [in_doubt]"


def test_cut_off_among_the_replies_to_chunks() -> None:
    text = ENVELOPE["both"] + PIECES["both"]
    for replies in (3, 4, 5, 6):
        result = play(cut(text, replies, "eof"), ONE, opened("both"))
        assert result["one"] == "SMTPServerDisconnected Connection unexpectedly closed [in_doubt]"
