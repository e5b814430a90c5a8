"""The turn to write, the queue of owed replies, the window, the end."""

from __future__ import annotations

from typing import Any

import pytest

from asmtp.errors import SMTPProtocolError, SMTPServerDisconnected, SMTPTimeoutError
from asmtp.protocol.dialogue import greeting, quit_, raw_write
from asmtp.protocol.exchange import Dialogue, Group, Phase, Turn
from asmtp.protocol.session import Session
from asmtp.protocol.state import State, Trigger
from tests.protocol.letters import LOGIN, NOOP, SHAPES, STARTS, TWO_BY_BDAT, opened, replies, unclean
from tests.protocol.transcript import Start, play

pytestmark = pytest.mark.usefixtures("bdat_at_once")

shapes = pytest.mark.parametrize("shape", SHAPES)


# ---- the turn and the window -----------------------------------------------------------------


def test_lock_step_servers_get_one_at_a_time() -> None:
    text = """
        start noop
        C: noop
        start one
        start rset
        S: 250 noop
        C: mail from:<a@x>
        S: 550 no
        C: rset
        S: 250 flushed
        """
    result = play(text, STARTS, opened("lock-step"))
    assert result.outcomes == {
        "noop": "250 noop",
        "one": "SMTPSenderRefused 550 no [refused]",
        "rset": "250 flushed",
    }
    assert result.clean


@pytest.mark.parametrize("octets", [b"\x15\x03\x03\x00\x02\x02\x46", b"\x15\x03\x01\x00\x02\x02\x0a"])
def test_an_alert_of_tls_in_the_place_of_the_greeting(octets: bytes) -> None:
    session = Session()
    exchange = session.start(greeting())
    session.receive_data(octets)
    assert isinstance(exchange.error, SMTPProtocolError)
    assert exchange.error.lasting
    assert str(exchange.error) == "an alert of TLS in the place of the greeting"


@shapes
def test_replies_are_bounded_for_each_message(shape: str) -> None:
    """The replies to a thousand recipients are cut short, and do not use up the next message's share."""
    session = opened(shape)()
    line = "x" * 6000
    for _ in range(2):
        exchange = session.start(_many(session, 400))
        said = "\r\n".join([f"250-{line}"] * 9 + [f"250 {line}\r\n"]).encode()
        while not exchange.done:
            session.output()
            session.receive_data(said)
        taken = exchange.result
        assert len(taken) == 400
        assert len(taken[0].message) == 60_009
        assert len(taken[-1].message) == 512
        assert sum(len(reply.message) for reply in taken) < 1_300_000


def _many(session: Session, count: int) -> Dialogue[Any]:
    """Write that many commands, one after the other."""
    taken = []
    for number in range(count):
        taken += yield Group(
            b"noop\r\n", (Trigger.other,), turn=Turn.RELEASE if number == count - 1 else Turn.UNTIL_REPLY
        )
    return taken


def test_a_command_rides_behind_a_message() -> None:
    text = """
        start one
        C: mail from:<a@x>
        C: rcpt to:<b@x>
        C: BDAT 5 LAST
        C: Hi.
        start noop
        C: noop
        S: 250 a
        S: 250 b
        S: 250 one
        S: 250 noop
        """
    result = play(text, STARTS, opened("both"))
    assert result.outcomes == {"one": "sent {b@x: 250 b}", "noop": "250 noop"}


@pytest.mark.parametrize("which", ["quit", "login"])
def test_some_things_are_done_alone(which: str) -> None:
    command, reply = ("quit", "221 bye") if which == "quit" else ("AUTH PLAIN AG1lAHNlY3JldA==", "235 welcome")
    text = f"""
        start one
        C: mail from:<a@x>
        C: rcpt to:<b@x>
        C: BDAT 5 LAST
        C: Hi.
        start {which}
        S: 250 a
        S: 250 b
        S: 250 one
        C: {command}
        start noop
        S: {reply}
        """
    result = play(text + ("C: noop\nS: 250 noop" if which == "login" else ""), STARTS, opened("both"))
    assert result["one"] == "sent {b@x: 250 b}"
    assert result[which] == reply
    gone = "SMTPServerDisconnected connection closed on our side [not_sent]"
    assert result["noop"] == (gone if which == "quit" else "250 noop")


def test_window_of_two() -> None:
    text = f"""{TWO_BY_BDAT}
        start three
        S: 250 a
        S: 250 b
        S: 250 one
        C: rset
        C: mail from:<e@x>
        C: rcpt to:<f@x>
        C: BDAT 7 LAST
        C: Three
        """
    text += replies("250 flushed", "250 c", "250 d", "250 two", "250 flushed", "250 e", "250 f", "250 three")
    result = play(text, STARTS, opened("both", window=2))
    assert result["three"] == "sent {f@x: 250 f}"


def test_window_of_octets() -> None:
    """The first message takes 52 octets; the next goes out while fewer octets than the window are unanswered."""
    size = len(b"mail from:<a@x>\r\nrcpt to:<b@x>\r\nBDAT 5 LAST\r\nHi.\r\n")
    for window in (size, size + 1):
        session = opened("both", window_octets=window)()
        session.start(STARTS["one"].make(session))
        assert len(session.output()) == size
        two = session.start(STARTS["two"].make(session))
        assert bool(session.output()) == (window > size)
        session.receive_data(b"250 a\r\n250 b\r\n250 one\r\n")
        assert bool(session.output()) == (window == size)
        assert not two.done


def test_window_is_given_back_by_what_failed_or_was_cancelled() -> None:
    session = opened("both", window_octets=1)()
    for reply in (b"250 a\r\n250 b\r\n554 no\r\n", b"250 flushed\r\n550 a\r\n503 b\r\n503 c\r\n"):
        session.cancel(session.start(STARTS["one"].make(session)))
        waiting = session.start(NOOP.make(session))
        assert b"noop" not in session.output()
        session.receive_data(reply)
        assert session.output() == b"noop\r\n"
        session.receive_data(b"250 noop\r\n")
        assert waiting.result == (250, b"noop")


def test_paused() -> None:
    text = """
        pause
        start noop
        resume
        C: noop
        S: 250 noop
        """
    assert play(text, STARTS, opened())["noop"] == "250 noop"


def test_a_dialogue_that_fails_before_it_writes_lets_the_next_one_write() -> None:
    def failing() -> Dialogue[Any]:
        raise LookupError("no such thing")
        yield

    text = """
        start noop
        C: noop
        start failing
        start two
        S: 250 noop
        C: mail from:<c@x>
        S: 550 no
        """
    result = play(text, STARTS | {"failing": Start(lambda session: failing())}, opened())
    assert result["failing"] == "LookupError no such thing"
    assert result["two"] == "SMTPSenderRefused 550 no [refused]"


# ---- when a transaction may be open ----------------------------------------------------------


@shapes
@pytest.mark.parametrize(("reply", "clean"), [("250 ok", True), ("500 what", False)])
def test_only_a_rset_that_was_accepted_counts(shape: str, reply: str, clean: bool) -> None:
    result = play(f"start rset\nC: rset\nS: {reply}", STARTS, unclean(shape))
    assert result["rset"] == reply
    assert result.clean is clean


def test_a_rset_speaks_for_what_was_written_before_it_only() -> None:
    def reset(session: Session) -> Dialogue[Any]:
        group = Group(b"rset\r\n", (Trigger.rset,), turn=Turn.RELEASE)
        yield group
        session.mark_clean(group)

    text = """
        start one
        C: mail from:<a@x>
        C: rcpt to:<b@x>
        C: BDAT 5 LAST
        C: Hi.
        start reset
        C: rset
        start two
        C: rset
        C: mail from:<c@x>
        C: rcpt to:<d@x>
        C: BDAT 5 LAST
        C: Two
        """
    text += replies("250 a", "550 b", "503 one", "250 flushed", "250 flushed", "250 c")
    starts = STARTS | {"reset": Start(reset)}
    assert not play(text, starts, opened("both")).clean
    assert play(text + replies("250 d", "250 two"), starts, opened("both")).clean
    assert not play(text + replies("550 d", "503 two"), starts, opened("both")).clean


# ---- replies nobody is owed ------------------------------------------------------------------


def test_421_on_an_idle_connection_retires_it() -> None:
    result = play("S: 421 timeout", STARTS, opened())
    assert result.state == "CLOSED"
    result = play("S: 421 timeout\nstart one", STARTS, opened())
    assert result["one"] == "SMTPServerDisconnected server closed the connection: 421 timeout [not_sent]"


def test_another_reply_on_an_idle_connection_breaks_it() -> None:
    assert play("S: 250 what", STARTS, opened()).state == "BROKEN"
    session = opened()()
    session.receive_data(b"250 what\r\n")
    one = session.start(STARTS["one"].make(session))
    assert str(one.error) == "a reply that no command is owed: '250 what'"
    assert isinstance(one.error, SMTPServerDisconnected)
    assert one.error.state == "not_sent"


@pytest.mark.parametrize("begun", [b"2", b"250-a", b"250-a\r\n", b"5", b"422", b"\r", b"42 "])
def test_half_a_reply_on_an_idle_connection(begun: bytes) -> None:
    """If the half were joined to the next reply, each reply would be taken for the next command's."""
    session = opened()()
    session.receive_data(begun)
    one = session.start(STARTS["one"].make(session))
    assert session.output() == b""
    assert isinstance(one.error, SMTPProtocolError)
    assert b"a reply that no command is owed: '" in one.error.smtp_error
    assert one.error.state == "not_sent"
    assert session.closed


def test_half_a_reply_behind_one_that_lets_the_next_command_be_written() -> None:
    session = opened("both")()
    one = session.start(NOOP.make(session))
    two = session.start(NOOP.make(session), alone=True)
    session.output()
    session.receive_data(b"250 ok\r\n250-a")
    assert one.result == (250, b"ok")
    assert isinstance(two.error, SMTPProtocolError)


def test_a_421_that_comes_in_pieces() -> None:
    """If no reply is owed, the session waits for the rest, unless something is to be written meanwhile."""
    session = opened()()
    for octet in b"421 bye":
        session.receive_data(bytes([octet]))
        assert not session.closed
    session.receive_data(b"\r\n")
    assert session.state is State.CLOSED


@pytest.mark.parametrize("begun", [b"4", b"42", b"421", b"421-x\r\n421"])
def test_half_a_421_when_something_is_to_be_written(begun: bytes) -> None:
    """The server may close at any time, so the error does not say that it broke the protocol."""
    session = opened()()
    session.receive_data(begun)
    assert not session.closed
    one = session.start(STARTS["one"].make(session))
    assert session.output() == b""
    assert type(one.error) is SMTPServerDisconnected
    assert str(one.error).startswith("server is closing the connection: '4")
    assert one.error.state == "not_sent"
    assert session.closed


def test_what_begins_as_a_421_and_is_another_reply() -> None:
    session = opened("both")()
    one = session.start(NOOP.make(session))
    two = session.start(NOOP.make(session), alone=True)
    session.output()
    session.receive_data(b"250 ok\r\n4")
    assert (one.done, two.done) == (True, False)
    session.receive_data(b"50 this is not yours\r\n")
    assert isinstance(two.error, SMTPProtocolError)
    assert b"no command is owed: '450 this" in two.error.smtp_error


@pytest.mark.parametrize("asked", [False, True])
def test_421_is_told_as_one_printable_line(asked: bool) -> None:
    """The reply ends in exceptions and logs: it must not write lines there, or move a terminal's cursor."""
    session = opened()()
    if asked:
        session.start(STARTS["one"].make(session))
    session.receive_data(b"421-bye\x1b[2J\r\n421-CRITICAL root owned\r\n421 " + b"." * 900 + b"\r\n")
    told = str(session.error)
    assert told.startswith("server closed the connection: 421 bye\\x1b[2J CRITICAL root owned ...")
    assert told.isprintable()
    assert len(told) < 600


def test_421_with_the_reply_that_lets_the_next_command_be_written() -> None:
    """The server sent the 421 before it had the command, so the 421 is no answer to it."""
    session = opened()()
    one = session.start(STARTS["one"].make(session))
    session.output()
    session.receive_data(b"250 a\r\n421 bye\r\n")
    assert isinstance(one.error, SMTPServerDisconnected)
    assert str(one.error) == "server closed the connection: 421 bye"
    assert one.error.state == "not_sent"
    assert session.state is State.CLOSED
    assert session.output() == b""


def test_eof_on_an_idle_connection() -> None:
    result = play("eof", STARTS, opened())
    assert result.state == "CLOSED"


def test_nonsense() -> None:
    result = play("start one\nC: mail from:<a@x>\nS: HTTP/1.1 400 Bad Request", STARTS, opened())
    assert result["one"] == "SMTPProtocolError -1 not a reply: 'HTTP/1.1 400 Bad Request\\r' [not_sent]"
    assert result.state == "BROKEN"


def test_replies_before_the_nonsense_count() -> None:
    text = TWO_BY_BDAT + replies("250 a", "250 b", "250 one", "999 what")
    result = play(text, STARTS, opened("both"))
    assert result["one"] == "sent {b@x: 250 b}"
    assert result["two"] == "SMTPProtocolError -1 not a reply: '999 what\\r' [in_doubt]"


def test_errors_keep_their_class_and_cause() -> None:
    session = opened("both")()
    both = [session.start(STARTS[name].make(session)) for name in ("one", "two")]
    error = SMTPTimeoutError("timed out: no answer")
    error.__cause__ = OSError("underneath")
    session.fail(error)
    for exchange in both:
        assert type(exchange.error) is SMTPTimeoutError
        assert str(exchange.error.__cause__) == "underneath"
        assert exchange.error is not error
    assert both[0].error is not both[1].error


# ---- what the transport looks at -------------------------------------------------------------


def test_phases() -> None:
    """Each reason to await the next reply has a limit of its own."""
    session = Session()
    seen = []

    def feed(data: bytes) -> None:
        head = session.head
        assert head is not None
        seen.append(head.phase)
        session.receive_data(data)

    session.start(greeting())
    feed(b"220 hi\r\n")
    session.extensions["pipelining"] = ""
    session.start(STARTS["one"].make(session))
    for line in (b"250 a\r\n", b"250 b\r\n", b"354 go\r\n", b"250 one\r\n"):
        feed(line)
    session.extensions["chunking"] = ""
    session.start(STARTS["one"].make(session))
    for line in (b"250 a\r\n", b"250 b\r\n", b"250 one\r\n"):
        feed(line)
    session.start(quit_())
    feed(b"221 bye\r\n")
    assert seen == [
        Phase.GREETING,
        *[Phase.COMMAND, Phase.COMMAND, Phase.DATA, Phase.FINAL],
        *[Phase.COMMAND, Phase.COMMAND, Phase.FINAL],
        Phase.QUIT,
    ]


def test_trace_and_progress() -> None:
    session = opened()()
    seen: list[tuple[str, bytes]] = []
    session.display.trace = lambda way, data: seen.append((way, data))
    before = session.progress
    session.start(LOGIN.make(session))
    session.receive_data(b"235-Welcome\r\n235 back\r\n")
    session.start(NOOP.make(session))
    session.receive_data(b"250 ok\r\n")
    assert seen == [(">", b"(not shown)"), ("<", b"235 Welcome\nback"), (">", b"noop\r\n"), ("<", b"250 ok")]
    assert session.progress == before + 2


def test_idle_and_closed() -> None:
    session = opened()()
    assert session.idle
    noop = session.start(NOOP.make(session))
    assert not session.idle
    assert session.head is noop
    session.receive_data(b"250 ok\r\n")
    assert session.idle
    assert session.head is None
    assert not session.closed
    session.close()
    assert session.closed
    assert session.output() == b""


def test_nothing_is_written_before_the_greeting() -> None:
    session = Session()
    greeted = session.start(greeting())
    noop = session.start(NOOP.make(session))
    assert session.output() == b""
    session.receive_data(b"220 hi\r\n")
    assert greeted.result == (220, b"hi")
    assert session.output() == b"noop\r\n"
    session.receive_data(b"250 ok\r\n")
    assert noop.result == (250, b"ok")


def test_a_dialogue_left_in_the_middle_breaks() -> None:
    def half() -> Dialogue[Any]:
        yield Group(b"data\r\n", (Trigger.data,))

    result = play("start half\nC: data\nS: 354 go", {"half": Start(lambda session: half())}, opened())
    assert result.state == "BROKEN"


def test_a_dialogue_that_goes_on_behind_its_end_is_stopped() -> None:
    def stubborn() -> Dialogue[Any]:
        while True:
            try:
                yield Group(b"noop\r\n", (Trigger.other,))
            except SMTPServerDisconnected:
                continue

    text = "start it\nC: noop\nS: 250 ok\nC: noop\neof"
    result = play(text, {"it": Start(lambda session: stubborn())}, opened())
    assert result["it"] == "SMTPServerDisconnected Connection unexpectedly closed"


def test_protocol_error_is_a_disconnection_and_a_response() -> None:
    session = opened()()
    session.receive_data(b"hello\r\n")
    assert isinstance(session.error, SMTPProtocolError)
    assert session.state is State.BROKEN
    written = session.start(raw_write(session, b"noop\r\n"))
    assert isinstance(written.error, SMTPServerDisconnected)


def test_nothing_is_written_by_a_dialogue_that_broke_the_session() -> None:
    def breaking(session: Session) -> Dialogue[Any]:
        yield Group(b"noop\r\n", (Trigger.other,), turn=Turn.RELEASE)
        session.fail(SMTPServerDisconnected("I saw something"))
        yield Group(b"noop\r\n", (Trigger.other,))

    result = play("start it\nC: noop\nS: 250 ok", {"it": Start(breaking)}, opened())
    assert result["it"] == "SMTPServerDisconnected I saw something"
    assert result.state == "BROKEN"


def test_eof_within_a_reply() -> None:
    """A reply that is cut off counts for nothing, whatever its code would have been."""
    for begun in ("25", "250 ok", "250-first\r\n250-", "250-first\r\n"):
        session = opened()()
        noop = session.start(NOOP.make(session))
        session.receive_data(begun.encode())
        session.receive_eof()
        assert session.state is State.BROKEN
        assert isinstance(noop.error, SMTPProtocolError)
        assert b"closed within a reply" in noop.error.smtp_error


def test_quit_answered_by_the_end() -> None:
    result = play("start quit\nC: quit\neof", STARTS, opened())
    assert result["quit"] == "-1 Connection unexpectedly closed"


@pytest.mark.parametrize("end", ["close", "eof", "S: 421 bye"])
def test_the_end_while_content_is_pulled(end: str) -> None:
    """The dialogue that has the turn is owed no reply then, and is told all the same."""
    text = """
        start streamed
        C: mail from:<a@x>
        C: rcpt to:<b@x>
        S: 250 a
        S: 250 b
        """
    result = play(text + end, STARTS, opened("both"))
    assert result["streamed"].startswith("SMTPServerDisconnected ")
    assert result["streamed"].endswith("[not_sent]")


def test_content_that_cannot_be_had() -> None:
    text = """
        start streamed
        C: mail from:<a@x>
        C: rcpt to:<b@x>
        S: 250 a
        S: 250 b
        push streamed Hi
        C: BDAT 2
        C: Hi\\
        abort streamed
        start noop
        C: rset
        S: 250 chunk
        S: 250 flushed
        C: noop
        S: 250 noop
        """
    result = play(text, STARTS, opened("both"))
    assert result["streamed"] == "OSError the file is gone"
    assert result["noop"] == "250 noop"


def test_load() -> None:
    """The load counts the dialogues that are under way, and those that await the turn."""
    session = opened()()
    assert (session.load, session.queued) == (0, False)
    session.start(STARTS["streamed"].make(session))
    assert (session.load, session.queued) == (1, False)
    session.start(NOOP.make(session))
    assert (session.load, session.queued) == (2, True)
    session.receive_data(b"250 a\r\n")
    session.receive_data(b"250 b\r\n")
    session.receive_data(b"354 go\r\n")
    assert session.state is State.CONTENT
    assert (session.load, session.queued) == (2, True)
    session.close()
    assert (session.load, session.queued) == (0, False)


def test_lone() -> None:
    """Output need not wait for more to go with it while nothing else is under way."""
    session = opened("both")()
    assert not session.lone
    session.start(NOOP.make(session))
    assert session.lone
    session.output()
    session.start(STARTS["one"].make(session))
    assert not session.lone
