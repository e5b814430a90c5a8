"""The short dialogues: a greeting, one command, a login.  Transactions have a module of their own."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING

from asmtp.errors import SMTPHeloError, SMTPProtocolError, SMTPServerDisconnected, SMTPStateError, SMTPTimeoutError
from asmtp.protocol.command import command, gate
from asmtp.protocol.envelope import ascii_domain
from asmtp.protocol.exchange import PULL, Dialogue, Group, Phase
from asmtp.protocol.extensions import Extensions
from asmtp.protocol.hidden import hidden
from asmtp.protocol.reply import Reply, printable
from asmtp.protocol.sasl import SASLExchange
from asmtp.protocol.state import State, Trigger

if TYPE_CHECKING:
    from asmtp.protocol.session import Session

__all__ = [
    "LEAVING", "authentication", "because_of", "greeting", "hello", "introduction", "quit_", "raw_reply", "raw_write",
    "single", "starttls", "verb_trigger", "xclient",
]  # fmt: skip

_VERBS = {
    "EHLO": Trigger.hello, "HELO": Trigger.hello, "LHLO": Trigger.hello, "STARTTLS": Trigger.starttls,
    "AUTH": Trigger.auth, "MAIL": Trigger.mail, "RCPT": Trigger.rcpt, "DATA": Trigger.data,
    "RSET": Trigger.rset, "QUIT": Trigger.quit,
}  # fmt: skip


def verb_trigger(line: bytes, state: State) -> Trigger:
    """Return the trigger of a command line that a caller wrote by hand."""
    if state is State.CHALLENGE:
        return Trigger.response
    words = line.upper().split()
    verb = words[0].decode("ascii", "replace") if words else ""
    if verb == "BDAT":
        return Trigger.bdat_last if words[-1] == b"LAST" else Trigger.bdat
    return _VERBS.get(verb, Trigger.other)


def greeting() -> Dialogue[Reply]:
    """Wait for the greeting, and return it."""
    replies: list[Reply] = yield Group(b"", (), phase=Phase.GREETING)
    return replies[0]


def single(line: bytes, trigger: Trigger = Trigger.other, phase: Phase = Phase.COMMAND) -> Dialogue[Reply]:
    """Write one command, and return its reply."""
    replies: list[Reply] = yield Group(line, (trigger,), phase=phase)
    return replies[0]


_NOT_IN_NAMES = frozenset('<>"\\\ufffd')


def hello(session: Session, verb: str, name: str) -> Dialogue[Reply]:
    """Say EHLO, HELO or LHLO, and keep in the session what the server offers.

    Raises:
        TypeError, ValueError: `name` cannot be a host's name.
    """
    if not isinstance(name, str):
        raise TypeError(f"local_hostname must be str, not {type(name).__name__}")
    gate(f"{verb} {name}", "local_hostname")
    if not _NOT_IN_NAMES.isdisjoint(name):
        raise ValueError(f"local_hostname: not a host's name: {name!a}")
    line = command(verb, ascii_domain(name, "local_hostname"))
    group = Group(line, (Trigger.hello,))
    if verb.lower() != "helo":
        session.extensions = Extensions()
    replies: list[Reply] = yield group
    reply = replies[0]
    if reply.ok:
        # RFC 5321 §4.1.4: a server clears its buffers at EHLO "exactly as if a RSET command had been issued".
        session.mark_clean(group)
        if verb.lower() != "helo":
            session.extensions = Extensions.parse(reply.message)
            session.esmtp = True
    return reply


LEAVING = frozenset({421, 521})
"""Replies of a server that does not stay for HELO (RFC 5321 §3.8, RFC 7504)."""


@contextlib.contextmanager
def because_of(refusal: Reply) -> Iterator[None]:
    """Add the refusal of EHLO to the error, if the server closes instead of answering the HELO behind it."""
    try:
        yield
    except SMTPServerDisconnected as error:
        if isinstance(error, SMTPTimeoutError | SMTPProtocolError):
            raise
        why = f"{error}; to EHLO it had said {refusal.code} {printable(refusal.message)}"
        raise SMTPServerDisconnected(why) from error


def introduction(lmtp: bool) -> Generator[str, Reply, None]:
    """Say EHLO, or HELO if that is refused: yield "ehlo" or "helo", and take the reply.

    Raises:
        SMTPHeloError: both were refused; or EHLO was, with 421 or 521, or LHLO.
    """
    reply = yield "ehlo"
    if not (reply.ok or lmtp or reply.code in LEAVING):  # RFC 2033 §4.1: LMTP has no HELO
        with because_of(reply):
            reply = yield "helo"
    if not reply.ok:
        raise SMTPHeloError(*reply)


def xclient(session: Session, line: bytes) -> Dialogue[Reply]:
    """Write XCLIENT, and return its reply.

    Behind a 220 everything begins anew: what the server offered is forgotten.
    """
    group = Group(line, (Trigger.hello,))
    replies: list[Reply] = yield group
    if replies[0].ok:
        session.mark_clean(group)
        session.extensions = Extensions()
        session.esmtp = session.authenticated = False
    return replies[0]


def starttls(session: Session, verb: str, name: str | None) -> Dialogue[tuple[Reply, Reply | None]]:
    """Say STARTTLS, yield PULL for the handshake, and keep the turn meanwhile.

    If other dialogues await the turn by then, EHLO is said before them, in the same turn.

    Args:
        verb, name: for EHLO; None: do not say it.

    Returns:
        The reply to STARTTLS, and the reply to EHLO or None.
    """
    replies = [Reply(220, b"")]
    if session.state is not State.HANDSHAKE:  # STARTTLS was said by hand
        replies = yield Group(b"STARTTLS\r\n", (Trigger.starttls,))
    if replies[0].code != 220:
        return replies[0], None
    yield PULL
    if name is None or not session.queued:
        return replies[0], None
    return replies[0], (yield from hello(session, verb, name))


def quit_() -> Dialogue[Reply]:
    """Say QUIT, and return its reply.

    If the connection is closed instead, the reply is (-1, why).  No error is raised: the caller might send again what
    was sent before.
    """
    try:
        replies: list[Reply] = yield Group(b"quit\r\n", (Trigger.quit,), phase=Phase.QUIT)
    except SMTPServerDisconnected as error:
        return Reply(-1, str(error).encode())
    return replies[0]


def authentication(session: Session, sasl: SASLExchange) -> Dialogue[Reply]:
    """Log in by a SASL exchange (RFC 4954 §4), of which a trace shows nothing.

    If the exchange is slow, the dialogue yields PULL when a challenge is in; its caller calls `go_on`, then pushes.
    """
    trigger = Trigger.auth
    sasl.redact = session.redact
    while (line := sasl.line) is not None:
        replies: list[Reply] = yield Group(hidden(line + b"\r\n"), (trigger,), secret=True)
        trigger = Trigger.response
        sasl.reply = replies[0]
        if sasl.slow and replies[0].code == 334:
            yield PULL
        else:
            sasl.go_on()
    session.authenticated = True
    return sasl.reply


def raw_write(session: Session, data: bytes, *, secret: bool = False, command: bool = False) -> Dialogue[list[Reply]]:
    """Write octets of a caller's own (smtplib's `send` and `putcmd`): any number of lines, or content.

    Args:
        secret: do not show them in a trace.
        command: they have to be a command.

    Returns:
        The replies; none, if they are content that has not ended.

    Raises:
        ValueError: a command line has no end.
        SMTPStateError: they have to be a command, and content comes next.
    """
    if session.state is State.CONTENT:
        ended = data.endswith(b"\r\n.\r\n") or data == b".\r\n"
        if command and not ended:
            raise SMTPStateError(f"no command is possible now: {session.state.value}")
        group = Group(data, (Trigger.dot if ended else Trigger.content,), int(ended), phase=Phase.FINAL)
    else:
        if not data.endswith(b"\n"):
            raise ValueError("s: a command line without its end: it would have no reply")
        lines = [hidden(line) for line in data.split(b"\n")[:-1]]
        triggers = tuple(verb_trigger(line, session.state) for line in lines)
        secret = secret or session.state is State.CHALLENGE or Trigger.auth in triggers
        group = Group(data, triggers, len(lines), secret=secret)
    replies: list[Reply] = yield group
    return replies


def raw_reply() -> Dialogue[Reply]:
    """Wait for a reply to no command of ours, and return it (smtplib's `getreply`, called on its own)."""
    replies: list[Reply] = yield Group(b"", ())
    return replies[0]
