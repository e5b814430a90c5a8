"""Each branch that matches replies to exchanges: the transcripts that stand beside them in the module."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from asmtp.protocol import inbound
from asmtp.protocol.dialogue import raw_write, single, starttls
from asmtp.protocol.session import Session
from asmtp.protocol.state import LastChunk, Trigger
from tests.protocol.letters import STARTS, TWO_BY_BDAT, letter, opened
from tests.protocol.transcript import Start, describe, parse, play, played_until

pytestmark = pytest.mark.usefixtures("bdat_at_once")

BY_BDAT = """
    start one
    C: mail from:<a@x>
    C: rcpt to:<b@x>
    C: BDAT 5 LAST
    C: Hi.
    """
BY_DATA = """
    start one
    C: mail from:<a@x>
    C: rcpt to:<b@x>
    C: data
    """
TO_TWO = """
    start two
    C: mail from:<a@x>
    C: rcpt to:<b@x>
    C: rcpt to:<c@x>
    C: BDAT 5 LAST
    C: Hi.
    """
DIALOGUES = {
    **STARTS,
    "two": letter("a@x", ["b@x", "c@x"]),
    "tls": Start(lambda session: starttls(session, "ehlo", None), alone=True),
}
BY_421 = "SMTPServerDisconnected server closed the connection: 421 "
MISREAD = "SMTPProtocolError -1 "

both = opened("both")
pipelining = opened("PIPELINING")
lmtp = opened("both", lmtp=True)

# By the name of a branch: the transcript that leads there, the session, the end of each dialogue, the state.
BRANCHES: dict[str, tuple[str, Callable[[], Session], dict[str, str], str]] = {
    "plaintext_in_front_of_the_handshake": (
        "start tls\nC: STARTTLS\nS: 220 go\npause\nS: 250 and more",
        both,
        {"tls": MISREAD + "plaintext behind the reply to STARTTLS: '250 and more\\r\\n'"},
        "BROKEN",
    ),
    "421_in_pieces": ("S: 4\\\nS: 21 idle for too long", both, {}, "CLOSED"),
    "unasked_in_pieces": ("S: 25\\", both, {}, "BROKEN"),
    "closed_within_a_reply": (
        "start noop\nC: noop\nS: 250-ok\\\neof",
        both,
        {"noop": MISREAD + "Connection unexpectedly closed within a reply: '250-ok'"},
        "BROKEN",
    ),
    "closed_behind_421": (
        f"{BY_BDAT}S: 250 a\nS: 421 bye\neof",
        both,
        {"one": "SMTPRecipientsRefused {b@x: 421 bye} [refused]"},
        "CLOSED",
    ),
    "closed_without_a_reply": (
        "start noop\nC: noop\neof",
        both,
        {"noop": "SMTPServerDisconnected Connection unexpectedly closed"},
        "BROKEN",
    ),
    "surplus": ("start noop\nC: noop\nS: 250 ok\nS: 250 again", both, {"noop": "250 ok"}, "BROKEN"),
    "final_replies_of_lmtp": (
        f"{TO_TWO}S: 250 a\nS: 250 b\nS: 250 c\nS: 250 b has it\nS: 250 c has it",
        lmtp,
        {"two": "sent {b@x: 250 b has it, c@x: 250 c has it}"},
        "READY",
    ),
    "a_group_at_once": (f"{BY_BDAT}S: 250 a\nS: 250 b\nS: 250 taken", both, {"one": "sent {b@x: 250 b}"}, "READY"),
    "3yz_to_a_command": (
        f"{BY_DATA}S: 354 go",
        pipelining,
        {"one": "SMTPProtocolError 354 out of step: asks for more where there is none: go [not_sent]"},
        "BROKEN",
    ),
    "early_refusal": (
        """
        start streamed
        C: mail from:<a@x>
        C: rcpt to:<b@x>
        S: 250 a
        S: 250 b
        push streamed Hi
        C: BDAT 2
        C: Hi\\
        S: 552 too much
        """,
        both,
        {"streamed": "SMTPDataError 552 too much [refused]"},
        "DISCARD",
    ),
    "421_to_the_last": ("start noop\nC: noop\nS: 421 bye", both, {"noop": "421 bye"}, "CLOSED"),
    "goodbye": ("start quit\nC: quit\nS: 221 bye", both, {"quit": "221 bye"}, "CLOSED"),
    "go": (
        f"{BY_DATA}S: 250 a\nS: 250 b\nS: 354 go\nC: Hi.\nC: .\nS: 250 taken",
        pipelining,
        {"one": "sent {b@x: 250 b}"},
        "READY",
    ),
    "plaintext_behind_starttls": (
        "start tls\nC: STARTTLS\nS: 220 go\nS: 250 injected",
        both,
        {"tls": MISREAD + "plaintext behind the reply to STARTTLS: '250 injected\\n'"},
        "BROKEN",
    ),
    "cancelled": (
        """
        start streamed
        C: mail from:<a@x>
        C: rcpt to:<b@x>
        S: 250 a
        S: 250 b
        push streamed Hi
        C: BDAT 2
        C: Hi\\
        start noop
        cancel streamed
        S: 250 a chunk
        C: rset
        S: 250 flushed
        C: noop
        S: 250 noop
        """,
        both,
        {"streamed": "None", "noop": "250 noop"},
        "READY",
    ),
    "421_to_quit": ("start quit\nC: quit\nS: 421 bye", both, {"quit": "421 bye"}, "CLOSED"),
    "421_and_goes_on": (
        f"{TO_TWO}S: 250 a\nS: 421 not now\nS: 250 c\nS: 250 taken",
        both,
        {"two": "sent {c@x: 250 c} but not {b@x: 421 not now}"},
        "CLOSED",
    ),
    "421_unasked": ("S: 421 idle for too long", both, {}, "CLOSED"),
    "unasked": ("S: 250 hello?", both, {}, "BROKEN"),
    "misread": (
        f"{BY_BDAT}S: 250 a\nS: 250 b\nS: 552 too much\nstart rset\nC: rset\nS: 500 what is Hi.?",
        both,
        {
            "one": "SMTPDataError 552 too much [refused]",
            "rset": "SMTPProtocolError 500 the server took a chunk that it refused for commands",
        },
        "BROKEN",
    ),
}


@pytest.mark.parametrize("name", BRANCHES)
def test_branch(name: str) -> None:
    text, session, outcomes, state = BRANCHES[name]
    if name.startswith("plaintext"):  # how much of it is shown depends on how it comes
        result = played_until(parse(text), DIALOGUES, session()).result()
    else:
        result = play(text, DIALOGUES, session)
    assert result.outcomes == outcomes
    assert result.state == state


def test_the_module_shows_these_transcripts() -> None:
    source = Path(inbound.__file__).read_text()
    shown = {
        name: re.findall(r"#   ([CS]: .*)", lines)
        for name, lines in re.findall(r"# (\w+):\n((?: +#   [CS]: .*\n)+)", source)
    }
    lines = {
        name: [line.strip() for line in text.splitlines() if line.strip()[:2] in ("C:", "S:")]
        for name, (text, *_) in BRANCHES.items()
    }
    assert shown == lines


def test_progress_counts_replies() -> None:
    session = both()
    before = session.progress
    session.start(STARTS["noop"].make(session))
    session.receive_data(b"250-o\r\n")
    assert session.progress == before
    session.receive_data(b"250 k\r\n")
    assert session.progress == before + 1


@pytest.mark.parametrize(
    ("said", "one", "two"),
    [
        ("S: 421 bye", "SMTPSenderRefused 421 bye [refused]", f"{BY_421}bye [not_sent]"),
        ("S: 250 a\nS: 421 bye", "SMTPRecipientsRefused {b@x: 421 bye} [refused]", f"{BY_421}bye [not_sent]"),
        ("S: 250 a\nS: 250 b\nS: 421 bye", "SMTPDataError 421 bye [refused]", f"{BY_421}bye [not_sent]"),
        ("S: 421 bye\nS: 503 b", "SMTPSenderRefused 421 bye [refused]", f"{BY_421}bye [in_doubt]"),
    ],
)
def test_the_message_behind_421(said: str, one: str, two: str) -> None:
    """The server did not look at the message behind its 421, unless it has gone on."""
    result = play(f"{TWO_BY_BDAT}\n{said}\neof", {**STARTS}, both)
    assert result.outcomes == {"one": one, "two": two}
    assert result.state == "CLOSED"


def test_behind_421_nothing_leaves_that_has_not_left() -> None:
    """The server cannot have the message that waited in the output when its 421 came."""
    session = both()
    one = session.start(STARTS["one"].make(session))
    session.output()
    two = session.start(STARTS["two"].make(session))
    session.receive_data(b"250 a\r\n421 bye\r\n")
    assert session.output() == b""
    session.receive_data(b"250 taken\r\n")
    session.receive_eof()
    why = "SMTPProtocolError 250 content accepted though its envelope was refused"
    assert (describe(one), describe(two)) == (f"{why} [in_doubt]", f"{why} [not_sent]")


def test_a_chunk_written_by_hand_that_is_refused_when_nobody_waits() -> None:
    session = both()
    chunk = session.start(single(b"BDAT 5 LAST\r\nHi.\r\n", Trigger.bdat_last))
    session.cancel(chunk)
    session.receive_data(b"503 no transaction\r\n")
    assert chunk.done
    assert session.last_chunk is LastChunk.DOUBTED


def test_3yz_to_lines_written_by_hand_is_their_writers() -> None:
    session = both()
    lines = session.start(raw_write(session, b"noop\r\nnoop\r\n"), raw=True)
    session.receive_data(b"354 go\r\n")
    assert not session.closed
    session.receive_data(b"250 ok\r\n")
    assert lines.result == [(354, b"go"), (250, b"ok")]
