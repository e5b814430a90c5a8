"""The probe of BDAT, and what its replies show."""

from __future__ import annotations

import re
from typing import Any

import pytest

import asmtp
import asmtp.protocol.dialogue
from asmtp.protocol import chunking
from asmtp.protocol.chunking import RelayChunking
from asmtp.protocol.envelope import Envelope
from asmtp.protocol.exchange import Exchange
from asmtp.protocol.extensions import Extensions
from asmtp.protocol.session import Session
from asmtp.protocol.state import Chunking, LastChunk
from asmtp.protocol.transaction import Body, Transaction
from tests.protocol.transcript import state_of

LETTER = b"Subject: hi\r\n\r\nhello\r\n"
BY_DATA = b"data\r\n"
PROBE = b"BDAT 8 LAST\r\nXASMTP\r\nrset\r\nmail from:<a@x> size=22\r\nBDAT 8 LAST\r\nXASMTP\r\nrset\r\n"
GOOD = ["503 no", "250 reset", "250 mail", "554 no", "250 reset"]


def opened(offers: str = "PIPELINING\nCHUNKING\nSIZE\nBINARYMIME") -> Session:
    session = Session()
    session.start(asmtp.protocol.dialogue.greeting())
    session.receive_data(b"220 hi\r\n")
    session.extensions = Extensions.parse(f"me\n{offers}".encode())
    session.esmtp = True
    return session


def begin(
    session: Session, sender: str = "a@x", content: bytes = LETTER, who: str = "b@x", **asked: Any
) -> Exchange[Any]:
    body = Body(content, len(content), eight_bit=False)
    return session.start(Transaction(session, Envelope(sender, [who], **asked), body).run())


def say(session: Session, *replies: str) -> None:
    for reply in replies:
        session.receive_data(f"{reply}\r\n".encode())


def send_by_data(session: Session, **given: Any) -> Exchange[Any]:
    """Send one message by DATA, which the server takes."""
    exchange = begin(session, **given)
    assert session.output().endswith(BY_DATA)
    say(session, "250 mail", "250 rcpt", "354 go")
    assert session.output().endswith(b"\r\n.\r\n")
    say(session, "250 taken")
    assert exchange.done
    assert exchange.error is None
    return exchange


def second(session: Session) -> Exchange[Any]:
    """Start the second message, and return it; the probe is written in front of it."""
    send_by_data(session)
    exchange = begin(session)
    assert session.output() == PROBE
    assert session.chunking is Chunking.PROBING
    return exchange


def test_a_server_that_reads_what_it_refuses() -> None:
    session = opened()
    exchange = second(session)
    say(session, *GOOD)
    assert session.chunking is Chunking.SHOWN
    behind = session.output()
    assert behind.startswith(b"rset\r\nmail from:")  # Dovecot does not pass on a RSET that comes with its MAIL
    assert behind.endswith(b"BDAT 22 LAST\r\n" + LETTER)
    say(session, "250 reset", "250 mail", "250 rcpt", "250 taken")
    assert exchange.error is None
    assert exchange.result.reply.message == b"taken"


NOT_SHOWN = {
    "it is read as a command, without a transaction": [
        "502 no",
        "500 what",
        "250 reset",
        "250 mail",
        "554 no",
        "250 reset",
    ],
    "it is read as a command, without a recipient": [
        "503 no",
        "250 reset",
        "250 mail",
        "502 no",
        "500 what",
        "250 reset",
        "214 help",
    ],
    "it is read as a command, both times": [
        "502 no",
        "500 what",
        "250 reset",
        "250 mail",
        "502 no",
        "500 what",
        "250 reset",
        "214 help",
    ],
    "it asks to log in": [
        "530 log in",
        "530 log in",
        "250 reset",
        "530 log in",
        "530 log in",
        "530 log in",
        "250 reset",
        "250 noop",
    ],
    "BDAT is taken": ["250 took", "250 reset", "250 mail", "250 took", "250 reset", "214 help"],
    "BDAT is owed no reply": ["250 reset", "250 mail", "250 reset", "502 no help"],
    "BDAT is taken behind MAIL": ["503 no", "250 reset", "250 mail", "250 took", "250 reset", "502 no help"],
}


@pytest.mark.parametrize("at_once", [False, True], ids=["line by line", "at once"])
@pytest.mark.parametrize("replies", NOT_SHOWN.values(), ids=NOT_SHOWN)
def test_a_server_that_does_not(replies: list[str], at_once: bool) -> None:
    """If the server reads the chunk as a command, the session stays in step, and the message goes by DATA."""
    session = opened()
    exchange = second(session)
    told = []
    session.on_chunking = lambda: told.append(session.chunking)
    asked = next((verb for verb in ("help", "noop") if verb in replies[-1]), None)
    if at_once and asked is None:
        session.receive_data("".join(f"{reply}\r\n" for reply in replies).encode())
    elif at_once:
        session.receive_data("".join(f"{reply}\r\n" for reply in replies[:-1]).encode())
        assert session.output() == f"{asked}\r\n".encode()
        say(session, replies[-1])
    else:
        say(session, *replies)
    assert told == [Chunking.NOT_SHOWN]
    envelope = session.output().removeprefix(b"help\r\n").removeprefix(b"noop\r\n")
    assert envelope.endswith(BY_DATA)
    say(session, *["250 reset"] * envelope.count(b"rset"), "250 mail", "250 rcpt", "354 go", "250 taken")
    assert exchange.error is None
    assert exchange.result.reply.message == b"taken"
    send_by_data(session)


ENDS: dict[str, list[str]] = {
    "421 to BDAT": ["421 bye"],
    "421 to RSET": ["503 no", "421 bye"],
    "354 to BDAT": ["354 go"],
    "354 to MAIL": ["503 no", "250 reset", "354 go"],
    "refusals without end": ["503 no"] * 3,
    "RSET is refused": ["503 no", "502 rset", "250 mail", "503 no", "502 rset", "250 noop"],
    "RSET and NOOP are refused": ["503 no", "502 rset", "250 mail", "503 no", "502 rset", "502 noop", "502 what"],
    "RSET and MAIL are refused": ["503 no", "502 rset", "550 mail"],
    "RSET is refused behind MAIL": [*GOOD[:-1], "502 rset", "214 help"],
    "RSET is refused behind MAIL, and HELP": [*GOOD[:-1], "502 rset", "502 help"],
    "RSET is refused, and what is read as a command": ["503 no", "502 what", "502 rset"],
    "250 without end": ["250 yes"] * (chunking.ANSWERS + 2),
}


@pytest.mark.parametrize("replies", ENDS.values(), ids=ENDS)
def test_a_session_that_ends_at_the_probe(replies: list[str]) -> None:
    session = opened()
    exchange = second(session)
    told = []
    session.on_chunking = lambda: told.append(session.chunking)
    say(session, *replies)
    assert session.closed
    assert told == [Chunking.PROBING]
    assert isinstance(exchange.error, asmtp.SMTPServerDisconnected)
    assert state_of(exchange) == "not_sent"


def test_it_is_closed_at_the_probe() -> None:
    session = opened()
    exchange = second(session)
    session.receive_eof()
    assert isinstance(exchange.error, asmtp.SMTPServerDisconnected)
    assert state_of(exchange) == "not_sent"
    assert session.chunking is Chunking.PROBING


@pytest.mark.parametrize("again", [True, False], ids=["then good", "and again"])
def test_mail_that_is_refused(again: bool) -> None:
    """A probe whose MAIL was refused shows nothing: the next message tries again the half that was not shown."""
    session = opened()
    exchange = second(session)
    refused = ["503 no", "250 reset", "550 not you", "503 no", "250 reset"]
    say(session, *refused)
    assert session.chunking is Chunking.INCONCLUSIVE
    assert session.output().endswith(BY_DATA)
    say(session, "550 not you", "503 no", "503 no")
    assert isinstance(exchange.error, asmtp.SMTPSenderRefused)
    begin(session, "c@x")
    assert session.output() == b"rset\r\n"
    say(session, "250 reset")
    assert session.output() == b"mail from:<c@x> size=22\r\nBDAT 8 LAST\r\nXASMTP\r\nrset\r\n"
    say(session, *(GOOD[2:] if again else refused[2:]))
    assert session.chunking is (Chunking.SHOWN if again else Chunking.NOT_SHOWN)


def test_mail_that_is_refused_and_a_chunk_that_is_read() -> None:
    session = opened()
    second(session)
    say(session, "502 no", "500 what", "250 reset", "550 not you", "502 no")
    assert session.output() == b"noop\r\n"
    say(session, "500 what", "250 reset", "250 noop")
    assert session.chunking is Chunking.NOT_SHOWN
    assert not session.closed


@pytest.mark.parametrize("taken", [True, False])
def test_a_transaction_that_may_be_open_is_reset_before(taken: bool) -> None:
    """Without RSET, the recipients of that transaction would get the chunk."""
    session = opened()
    begin(session)
    say(session, "250 mail", "250 rcpt", "450 no content now")
    session.output()
    begin(session)
    assert session.output() == b"rset\r\n"
    say(session, "250 reset" if taken else "502 no")
    if taken:
        assert session.output() == PROBE
        say(session, *GOOD)
        assert session.chunking is Chunking.SHOWN
    else:
        assert session.chunking is Chunking.NOT_SHOWN
        assert session.output().startswith(b"rset\r\nmail")


@pytest.mark.parametrize("offers", ["PIPELINING", "CHUNKING", ""])
def test_no_probe(offers: str) -> None:
    """A session without BDAT is not probed, nor one without PIPELINING, as BDAT would save nothing there."""
    session = opened(offers)
    for _ in range(3):
        begin(session)
        said = b""
        for reply in ("250 mail", "250 rcpt", "354 go", "250 taken"):
            said += session.output()
            say(session, reply)
            if session.clean and session.idle:
                break
        assert b"BDAT" not in said
        assert b"data\r\n" in said


def test_the_probe_waits_until_everything_is_answered() -> None:
    """Some servers lose what stands behind content that they have not answered yet."""
    session = opened()
    first = begin(session)
    session.output()
    say(session, "250 mail", "250 rcpt", "354 go")
    session.output()
    begin(session)
    assert session.output() == b""
    assert not first.done
    say(session, "250 taken")
    assert session.output() == PROBE


def test_a_message_that_is_cancelled_at_the_probe() -> None:
    """If the message is cancelled, the probe goes on, so that the connection stays in step."""
    session = opened()
    exchange = second(session)
    session.cancel(exchange)
    say(session, *GOOD)
    assert session.chunking is Chunking.SHOWN
    assert session.idle
    begin(session)
    assert session.output().startswith(b"rset\r\nmail from:")  # as the message would have begun


@pytest.mark.parametrize("line", [b"ehlo me\r\n", b"STARTTLS\r\n", b"AUTH X\r\n"])
@pytest.mark.parametrize("before", [Chunking.SHOWN, Chunking.NOT_SHOWN])
def test_what_makes_it_unknown_again(line: bytes, before: Chunking) -> None:
    session = opened()
    session.chunking = before
    trigger = asmtp.protocol.dialogue.verb_trigger(line, session.state)
    session.start(asmtp.protocol.dialogue.single(line, trigger))
    assert session.chunking is (Chunking.UNKNOWN if before is Chunking.SHOWN else Chunking.NOT_SHOWN)


# ---- BINARYMIME ---------------------------------------------------------------------------------


def test_binarymime_waits_for_the_probe() -> None:
    session = opened("PIPELINING\nCHUNKING\nBINARYMIME")
    exchange = begin(session, content=b"Subject: hi\r\n\r\n\0\n", binary=True)
    assert b"BDAT 8 LAST\r\nXASMTP\r\nrset\r\n" in session.output()
    say(session, *GOOD)
    assert session.output().endswith(b"BDAT 17 LAST\r\nSubject: hi\r\n\r\n\0\n")
    say(session, "250 mail", "250 rcpt", "250 taken")
    assert exchange.error is None


@pytest.mark.parametrize("replies", [["502 no", "500 what", "250 reset"], ["503 no", "250 reset"]], ids=["bad", "half"])
def test_binarymime_is_not_sent_to_a_server_that_does_not_read(replies: list[str]) -> None:
    session = opened("PIPELINING\nCHUNKING\nBINARYMIME")
    exchange = begin(session, content=b"Subject: hi\r\n\r\n\0\n", binary=True)
    say(session, *replies, "550 not you", *replies)
    if "500 what" in replies:
        say(session, "250 noop")
    assert isinstance(exchange.error, asmtp.SMTPNotSupportedError)
    if "500 what" in replies:
        again = Transaction  # a later one does not even begin
        with pytest.raises(asmtp.SMTPNotSupportedError):
            again(session, Envelope("a@x", ["b@x"], binary=True), Body(b"\0", 1, eight_bit=False))


LOCKSTEP = {
    "good": (GOOD, Chunking.SHOWN),
    "BDAT taken": (["250 took", *GOOD[1:]], Chunking.NOT_SHOWN),
    "RSET refused": ([GOOD[0], "500 what", *GOOD[2:]], Chunking.NOT_SHOWN),
    "RSET refused at the end": ([*GOOD[:-1], "500 what"], Chunking.NOT_SHOWN),
    "MAIL refused": ([*GOOD[:2], "550 not you", *GOOD[3:]], Chunking.INCONCLUSIVE),
}


@pytest.mark.parametrize(("replies", "shown"), LOCKSTEP.values(), ids=LOCKSTEP)
def test_without_pipelining_the_probe_goes_command_by_command(replies: list[str], shown: Chunking) -> None:
    session = opened("CHUNKING\nBINARYMIME")
    begin(session, content=b"Subject: hi\r\n\r\n\0\n", binary=True)
    parts = re.findall(rb"BDAT 8 LAST\r\nXASMTP\r\n|[^\n]+\n", PROBE.replace(b" size=22", b" BODY=BINARYMIME"))
    for part, reply in zip(parts, replies, strict=True):
        assert session.output() == part
        say(session, reply)
    assert session.chunking is shown


# ---- behind the probe ---------------------------------------------------------------------------


def shown(window: int | None = None) -> Session:
    """Return a session that has passed the probe, and whose window is open."""
    session = opened()
    session.chunking = Chunking.SHOWN
    if window is not None:
        session.opened = window
    return session


def test_content_that_begins_with_no_header_field_waits_for_its_envelope() -> None:
    session = shown()
    for content in (b"hello\r\n", b"\r\nx", b"noop\r\n", b"MAIL FROM:<a@x>\r\n", b"Noop: x\r\n", b"From me\r\n"):
        exchange = begin(session, content=content)
        assert b"BDAT" not in session.output()
        say(session, "250 mail", "250 rcpt")
        assert session.output().startswith(b"BDAT")
        say(session, "250 taken")
        assert exchange.error is None


@pytest.mark.parametrize("code", [500, 501, 502, 503, 504])
@pytest.mark.parametrize("content", [LETTER, b"hello\r\n"], ids=["behind the envelope", "apart"])
def test_bdat_that_is_not_understood(code: int, content: bytes) -> None:
    """A server that answers so is out of step: it takes the chunk for commands."""
    session = shown()
    exchange, behind = begin(session, content=content), begin(session)
    say(session, "250 mail", "250 rcpt", f"{code} what")
    assert isinstance(exchange.error, asmtp.SMTPProtocolError)
    assert state_of(exchange) == "not_sent"
    assert session.closed
    assert session.chunking is Chunking.NOT_SHOWN
    assert isinstance(behind.error, asmtp.SMTPServerDisconnected)
    assert behind.error.state in ("not_sent", "in_doubt")


REFUSED: dict[str, list[str]] = {
    "recipient": ["250 mail", "550 nobody", "554 no recipient"],
    "content": ["250 mail", "250 rcpt", "552 too much"],
}


@pytest.mark.parametrize("replies", REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("garbage", [["500 what"], ["500 what", "500 what", "500 what", "250 reset"]], ids=len)
def test_a_refused_chunk_that_is_taken_for_commands_after_all(replies: list[str], garbage: list[str]) -> None:
    """The server answers the chunk's first line in the place of RSET, so no message behind it is told as sent."""
    session = shown()
    first, *others = [begin(session) for _ in range(4)]
    assert written(session.output()) == 4
    told = []
    session.on_chunking = lambda: told.append(session.chunking)
    say(session, *replies, *garbage, "250 mail", "250 rcpt", "250 taken")
    assert first.error is not None
    assert state_of(first) == "refused"
    assert session.closed
    assert session.last_chunk is LastChunk.MISREAD
    assert told == [Chunking.NOT_SHOWN]
    assert [state_of(exchange) for exchange in others] == ["in_doubt"] * 3


@pytest.mark.parametrize("replies", REFUSED.values(), ids=REFUSED)
def test_a_refused_chunk_of_a_message_that_was_cancelled(replies: list[str]) -> None:
    """Nobody judges the replies of the cancelled message, but no message behind it is told as sent all the same."""
    session = shown()
    first, *others = [begin(session) for _ in range(3)]
    assert written(session.output()) == 3
    session.cancel(first)
    say(session, *replies, *["500 what"] * 4, *["250 ok"] * 8)
    assert session.closed
    assert session.last_chunk is LastChunk.MISREAD
    assert [state_of(exchange) for exchange in others] == ["in_doubt"] * 2


@pytest.mark.parametrize("replies", REFUSED.values(), ids=REFUSED)
def test_a_refused_chunk_that_is_read(replies: list[str]) -> None:
    session = shown()
    first, second = begin(session), begin(session)
    say(session, *replies, "250 reset", "250 mail", "250 rcpt", "250 taken")
    assert first.error is not None
    assert state_of(first) == "refused"
    assert second.error is None
    assert session.last_chunk is LastChunk.READ


@pytest.mark.parametrize("replies", REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("garbage", [b"500 what\r\n", b"500-wh", b"5"], ids=["a reply", "half of one", "an octet"])
def test_a_refused_chunk_that_is_taken_for_commands_with_nothing_behind_it(replies: list[str], garbage: bytes) -> None:
    """With one message at a time, the server answers the chunk's first line though no command is owed a reply."""
    session = shown()
    exchange = begin(session)
    told = []
    session.on_chunking = lambda: told.append(session.chunking)
    say(session, *replies)
    assert exchange.error is not None
    assert state_of(exchange) == "refused"
    session.receive_data(garbage)
    assert session.closed
    assert told == [Chunking.NOT_SHOWN]


@pytest.mark.parametrize("goodbye", [b"421 idle\r\n", b"421-id", b""], ids=["421", "half of it", "eof"])
def test_a_connection_that_ends_behind_a_refused_chunk_shows_nothing(goodbye: bytes) -> None:
    session = shown()
    begin(session)
    say(session, *REFUSED["recipient"])
    session.receive_data(goodbye)
    session.receive_eof()
    assert session.closed
    assert session.chunking is Chunking.SHOWN


def test_behind_a_refused_chunk_nothing_is_written_until_it_is_known_to_be_read() -> None:
    session = shown(2)
    for _ in range(4):
        begin(session)
    assert written(session.output()) == 2
    say(session, *REFUSED["content"])
    assert session.output() == b""
    say(session, "250 reset")
    assert written(session.output()) == 2


@pytest.mark.parametrize("bye", ["421 bye", "554 Too many nonmail commands"])
def test_421_in_the_place_of_rset(bye: str) -> None:
    """A server that says 421 closes, and has not looked at what stands behind."""
    session = shown()
    first, second = begin(session), begin(session)
    assert written(session.output()) == 2
    say(session, *REFUSED["content"], bye)
    session.receive_eof()
    assert session.last_chunk is not LastChunk.MISREAD
    assert session.chunking is Chunking.SHOWN
    assert isinstance(first.error, asmtp.SMTPDataError)
    assert isinstance(second.error, asmtp.SMTPServerDisconnected)
    assert second.error.state == "not_sent"


def test_another_command_says_nothing_of_the_chunk() -> None:
    session = shown()
    begin(session)
    session.start(asmtp.protocol.dialogue.single(b"noop\r\n"))
    say(session, *REFUSED["content"], "502 no noop")
    assert session.last_chunk is LastChunk.DOUBTED
    assert not session.closed


# ---- slow start ---------------------------------------------------------------------------------


def written(output: bytes) -> int:
    return output.count(b"BDAT")


def test_slow_start() -> None:
    """One message is written before the first answer, then one more with each answer."""
    session = opened()
    send_by_data(session)
    for _ in range(20):
        begin(session)
    assert session.output() == PROBE
    say(session, *GOOD)
    first = ["250 mail", "250 rcpt", "250 taken"]
    later = ["250 reset", *first]
    assert written(session.output()) == 1
    say(session, *later)
    assert written(session.output()) == 2
    say(session, *first, *later)
    assert written(session.output()) == 4
    session.slow_start()
    say(session, *later)
    assert session.output() == b""


def test_no_slow_start_by_data() -> None:
    session = opened("PIPELINING")
    session.slow_start()
    assert session.opened == session.window


# ---- the relay ----------------------------------------------------------------------------------


@pytest.mark.parametrize("seen", Chunking)
def test_what_is_known_of_a_relay(seen: Chunking) -> None:
    relay = RelayChunking()
    assert relay.doubted_until <= 0.0
    relay.heed(seen, 10.0)
    doubted = seen in (Chunking.PROBING, Chunking.NOT_SHOWN)
    assert (relay.doubted_until == 10.0 + chunking.DOUBT_LASTS) is doubted
    assert (relay.doubted_until <= 0.0) is not doubted
