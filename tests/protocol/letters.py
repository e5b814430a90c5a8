"""Sessions of each shape, messages, and whole conversations made of their replies, for transcripts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from asmtp.auth.mechanisms import plain
from asmtp.protocol.dialogue import authentication, greeting, hello, quit_, single
from asmtp.protocol.envelope import Envelope
from asmtp.protocol.exchange import Dialogue
from asmtp.protocol.sasl import Credentials, SASLExchange
from asmtp.protocol.session import Session
from asmtp.protocol.state import State, Trigger
from asmtp.protocol.transaction import Body, Transaction
from tests.protocol.transcript import Start

SHAPES: dict[str, tuple[str, ...]] = {
    "lock-step": (),
    "CHUNKING": ("CHUNKING",),
    "PIPELINING": ("PIPELINING",),
    "both": ("PIPELINING", "CHUNKING"),
}

CONTENT = b"Hi.\r\n"

NOOP = Start(lambda session: single(b"noop\r\n"))
QUIT = Start(lambda session: quit_(), alone=True)
RSET = Start(Session.reset)
LOGIN = Start(
    lambda session: authentication(session, SASLExchange("PLAIN", plain(Credentials("me", "secret")))), alone=True
)


def opened(shape: str = "lock-step", *, lmtp: bool = False, **options: Any) -> Callable[[], Session]:
    """Return a function that makes a session that a server of that shape has greeted."""

    def make() -> Session:
        session = Session(lmtp=lmtp, **options)
        session.start(greeting())
        session.receive_data(b"220 there\r\n")
        session.start(hello(session, "lhlo" if lmtp else "ehlo", "me.example"))
        lines = ["there", *SHAPES[shape]]
        last = len(lines) - 1
        text = "".join(f"250{' ' if place == last else '-'}{line}\r\n" for place, line in enumerate(lines))
        session.receive_data(text.encode())
        session.output()
        assert session.state is State.READY
        return session

    return make


def unclean(shape: str = "lock-step", **options: Any) -> Callable[[], Session]:
    """Return a session on which a transaction may be open: MAIL was written by hand."""

    def make() -> Session:
        session = opened(shape, **options)()
        by_hand = single(b"mail from:<old@x>\r\n", Trigger.mail)
        session.start(by_hand)
        session.output()
        session.receive_data(b"250 old\r\n")
        assert not session.clean
        return session

    return make


def letter(
    sender: str = "a@x", recipients: Sequence[str] = ("b@x",), content: bytes = CONTENT, *, chunking: bool = True
) -> Start:
    """Return the start of a message whose content is at hand."""

    def make(session: Session) -> Dialogue[Any]:
        body = Body(content, len(content), eight_bit=False)
        return Transaction(session, Envelope(sender, recipients), body, chunking=chunking).run()

    return Start(make)


def streamed(sender: str = "a@x", recipients: Sequence[str] = ("b@x",), *, chunking: bool = True) -> Start:
    """Return the start of a message whose content is pulled."""

    def make(session: Session) -> Dialogue[Any]:
        body = Body(None, None, eight_bit=False)
        return Transaction(session, Envelope(sender, recipients), body, chunking=chunking).run()

    return Start(make)


def conversation(
    shape: str,
    *,
    rset: str = "",
    mail: str = "250 ok",
    rcpts: Sequence[str] = ("250 ok", "250 ok"),
    data: str = "354 go",
    finals: Sequence[str] = ("250 taken",),
) -> str:
    """Return the transcript of one message called `one`, from the replies to its commands.

    Args:
        rset: the reply to the RSET in front; "" for none.
        finals: the replies to the content.
    """
    commands = [("mail from:<a@x>", mail)]
    commands += [(f"rcpt to:<{who}@x>", reply) for who, reply in zip("bcdefg", rcpts, strict=False)]
    if rset:
        commands.insert(0, ("rset", rset))
    if "CHUNKING" not in SHAPES[shape]:
        commands.append(("data", data))
    content = ["C: BDAT 5 LAST", "C: Hi."] if "CHUNKING" in SHAPES[shape] else ["C: Hi.", "C: ."]
    if "PIPELINING" in SHAPES[shape]:
        return _pipelined(commands, content, shape, rcpts, data, finals)
    return _lockstep(commands, content, rcpts, data, finals)


def _lockstep(
    commands: list[tuple[str, str]], content: list[str], rcpts: Sequence[str], data: str, finals: Sequence[str]
) -> str:
    lines = ["start one"]
    for command, reply in commands:
        if command == "data" and not _any_ok(rcpts):
            return "\n".join(lines)
        lines += [f"C: {command}", f"S: {reply}"]
        refused = not reply.startswith("354") if command == "data" else reply[0] != "2"
        if refused and not command.startswith("rcpt"):
            return "\n".join(lines)
    if _any_ok(rcpts):
        lines += content + [f"S: {reply}" for reply in finals]
    return "\n".join(lines)


def _pipelined(
    commands: list[tuple[str, str]],
    content: list[str],
    shape: str,
    rcpts: Sequence[str],
    data: str,
    finals: Sequence[str],
) -> str:
    lines = ["start one", *(f"C: {command}" for command, _ in commands)]
    replies = [f"S: {reply}" for _, reply in commands]
    if shape == "both":
        return "\n".join([*lines, *content, *replies, *(f"S: {reply}" for reply in finals)])
    lines += replies
    if data.startswith("354"):
        accepted = _any_ok(rcpts) and all(reply[0] == "2" for command, reply in commands if command in _BEFORE)
        lines += content if accepted else ["C: ."]
        lines += [f"S: {reply}" for reply in finals]
    return "\n".join(lines)


_BEFORE = ("rset", "mail from:<a@x>")


def _any_ok(replies: Sequence[str]) -> bool:
    return any(reply[0] == "2" for reply in replies)


def cut(text: str, replies: int, *instead: str) -> str:
    """Return the beginning of a transcript, up to a number of reply lines, with other lines behind it."""
    lines: list[str] = []
    for line in text.splitlines():
        if line.strip().startswith("S:"):
            if not replies:
                break
            replies -= 1
        lines.append(line)
    return "\n".join([*lines, *instead])


STARTS = {
    "one": letter("a@x", ["b@x"]),
    "two": letter("c@x", ["d@x"], b"Two\r\n"),
    "three": letter("e@x", ["f@x"], b"Three\r\n"),
    "streamed": streamed("a@x", ["b@x"]),
    "noop": NOOP,
    "quit": QUIT,
    "rset": RSET,
    "login": LOGIN,
}

TWO_BY_BDAT = """
    start one
    C: mail from:<a@x>
    C: rcpt to:<b@x>
    C: BDAT 5 LAST
    C: Hi.
    start two
    C: rset
    C: mail from:<c@x>
    C: rcpt to:<d@x>
    C: BDAT 5 LAST
    C: Two
    """


def replies(*texts: str) -> str:
    return "".join(f"S: {text}\n" for text in texts)
