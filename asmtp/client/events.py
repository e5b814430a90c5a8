"""Events of a connection, for a function of the caller's and for the log, as they happen and without secrets."""

from __future__ import annotations

import contextlib
import itertools
import logging
import re
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from asmtp.errors import SMTPRecipientsRefused, one_line
from asmtp.protocol.envelope import Envelope
from asmtp.protocol.exchange import Group
from asmtp.protocol.reply import Reply
from asmtp.protocol.state import Trigger

if TYPE_CHECKING:
    from asmtp.protocol.verdict import Outcome

__all__ = ["Event", "Hook", "EventLog", "clock", "handle_all", "is_handling", "kept_for", "show", "unheard"]

clock = time.perf_counter
"""Return seconds, to measure how long something took: uvloop's own time has whole milliseconds."""

logger = logging.getLogger("asmtp")


class _Logging(threading.local):
    """The state of this thread's logging."""

    busy: object = None  # the record that is being handled; or True within `unheard`
    keep: Callable[[logging.LogRecord], object] | None = None


_logging = _Logging()


def _handle(record: logging.LogRecord) -> None:
    """Handle a record, unless this thread is handling one: a handler that mails would call itself."""
    if _logging.keep is not None:
        _logging.keep(record)
    elif not _logging.busy:
        _logging.busy = record
        try:
            type(logger).handle(logging.getLogger(record.name), record)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # raised by a handler, perhaps in the middle of what came from a server
            logging.Handler().handleError(record)
        finally:
            _logging.busy = None


def _is_heard(record: logging.LogRecord) -> bool:
    """Return whether a record of asyncio's is to be handled now; this is a filter."""
    if _logging.keep is not None:
        _logging.keep(record)
        return False
    return not _logging.busy or _logging.busy is record


logger.handle = _handle  # type: ignore[method-assign]
logging.getLogger("asyncio").addFilter(_is_heard)


@contextlib.contextmanager
def kept_for(keep: Callable[[logging.LogRecord], object]) -> Iterator[None]:
    """Give this thread's records to `keep`, not to handlers: a thread that waits for this one may hold their locks."""
    before, _logging.keep = _logging.keep, keep
    try:
        yield
    finally:
        _logging.keep = before


def is_handling() -> bool:
    """Return whether this thread is within a log handler that handles a record of asmtp's."""
    return bool(_logging.busy)


def handle_all(records: Iterable[logging.LogRecord]) -> None:
    """Handle records that were kept."""
    for record in records:
        _handle(record)


def show(name: str, function: Callable[..., object], *args: Any) -> None:
    """Call a function of the caller's that only watches; an exception is logged, and does not stop the mail."""
    try:
        function(*args)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:  # a CancelledError, say
        logger.exception("%s raised", name)


@contextlib.contextmanager
def unheard() -> Iterator[None]:
    """Have neither asmtp nor asyncio log anything in this thread."""
    before, _logging.busy = _logging.busy, True
    try:
        yield
    finally:
        _logging.busy = before


_numbers = itertools.count(1)
_BDAT = re.compile(rb"(?:\A|(?<=\r\n))BDAT [0-9]+(?: LAST)?\r\n")
_LOGGED = 4096  # octets of a reply that are logged
_HEADER = 1 << 16  # octets in which a Message-ID is searched for
_MESSAGE_ID = re.compile(
    rb"(?:\A|(?<=[\r\n]))message-id[ \t]*:(?:[ \t]|\r\n[ \t]|\n[ \t])*([^\s\0-\x1f\x7f]+)", re.IGNORECASE
)
_EMPTY_LINE = re.compile(rb"\A[\r\n]|\r\n\r\n|\n\r?\n|\r\r")
_CONTENT = frozenset({Trigger.content, Trigger.dot})


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened on a connection.

    Attributes:
        kind: what has happened; `fields` has then:

            * ``"connect"``: the greeting is in, after `seconds` (`code`).
            * ``"tls"``: TLS is up, after `seconds` (`version`, `cipher`, `resumed`).
            * ``"login"``: a mechanism was tried, for `seconds` (`mechanism`, `code`: the reply's, or -1).
            * ``"write"``: commands or content left in one write (`commands`: their names, `octets`).
            * ``"replies"``: came in one read (`codes`).
            * ``"delivery"``: a transaction has ended, after `seconds` (`state`; `accepted`, `refused`: how many
              recipients, all of them if the whole message was refused; `error`: the exception, or None;
              `message_id`: of its header, None if it has none, or is read from a file or an iterator; `envid`: as
              the caller gave it, or None).
            * ``"close"``: the connection is gone (`reason`).
        connection: its number, counted in this process.
        server: "host:port", or the path of a Unix socket.
        seconds: how long it took; 0.0 if nothing was waited for.
    """

    kind: Literal["connect", "tls", "login", "write", "replies", "delivery", "close"]
    connection: int
    server: str
    seconds: float = 0.0
    fields: dict[str, Any] = field(default_factory=dict)


Hook: TypeAlias = Callable[[Event], None]
"""A function that is called with each event, in the event loop: it must not block.  An exception is logged."""


class _Log(logging.LoggerAdapter[logging.Logger]):
    """The log of one connection: each line begins with its number and its server."""

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        assert self.extra is not None
        kwargs["extra"] = {**self.extra, **kwargs.get("extra", {})}
        return f"[{self.extra['connection']} {self.extra['server']}] {msg}", kwargs


class EventLog:
    """The events of one connection, for a function of the caller and for the log."""

    def __init__(self, server: str, hook: Hook | None) -> None:
        self.number = next(_numbers)
        self.server = server
        self._hook = hook
        self._log = _Log(logger, {"connection": self.number, "server": server})

    @classmethod
    def of(cls, server: str, hook: Hook | None) -> EventLog | None:
        """Return an event log, if there is a hook, or the level of the log is DEBUG; or else None."""
        return cls(server, hook) if hook is not None or logger.isEnabledFor(logging.DEBUG) else None

    def tell(self, kind: Any, seconds: float = 0.0, **fields: Any) -> None:
        """Call the hook with an event."""
        if self._hook is None:
            return
        show("on_event", self._hook, Event(kind, self.number, self.server, seconds, fields))

    # ---- for a session ----------------------------------------------------------------------

    def wrote(self, group: Group) -> None:
        """Log that commands or content are written."""
        self.tell("write", commands=_names(group), octets=len(group.data))
        if self._log.isEnabledFor(logging.DEBUG):
            for line in _lines(group):
                self._log.debug("> %s", line)

    def replied(self, replies: Sequence[Reply]) -> None:
        """Log replies; text that repeats a secret was taken out of them."""
        self.tell("replies", codes=tuple(reply.code for reply in replies))
        if self._log.isEnabledFor(logging.DEBUG):
            for code, text in replies:
                self._log.debug("< %d %s", code, "(not shown)" if code == 334 else _shown(text))

    # ---- for a client -----------------------------------------------------------------------

    def connected(self, greeting: Reply, seconds: float) -> None:
        """Log that the greeting is in."""
        self.tell("connect", seconds, code=greeting.code)
        self._log.debug("connected in %.3f s", seconds)

    def secured(self, tls: ssl.SSLObject | None, seconds: float) -> None:
        """Log that TLS is up."""
        if tls is None:
            return
        cipher = tls.cipher()
        name = cipher[0] if cipher else ""
        self.tell("tls", seconds, version=tls.version(), cipher=name, resumed=tls.session_reused)
        resumed = ", resumed" if tls.session_reused else ""
        self._log.debug("%s, %s%s, in %.3f s", tls.version(), name, resumed, seconds)

    def logged_in(self, mechanism: str, code: int, seconds: float) -> None:
        """Log that a mechanism was tried."""
        self.tell("login", seconds, mechanism=mechanism, code=code)
        self._log.debug("login with %s: %d, in %.3f s", mechanism, code, seconds)

    def delivered(
        self,
        envelope: Envelope,
        content: object,
        outcome: Outcome | None,
        error: BaseException | None,
        seconds: float,
    ) -> None:
        """Log that a transaction has ended; with neither outcome nor error, it was withdrawn before it was written.

        Args:
            content: the message, or its beginning; anything but bytes is not looked into.
        """
        state = "sent" if outcome is not None else getattr(error, "state", None) or "not_sent"
        accepted = refused = 0
        if outcome is not None:
            accepted, refused = len(outcome.accepted), len(outcome.refused)
        elif isinstance(error, SMTPRecipientsRefused):
            refused = len(error.recipients)
        elif state == "refused":
            refused = len(envelope.recipients)
        if self._hook is not None:
            message_id = _message_id(content) if isinstance(content, bytes) else None
            told = {"state": state, "accepted": accepted, "refused": refused, "error": error}
            self.tell("delivery", seconds, **told, message_id=message_id, envid=envelope.envid)
        if outcome is not None:
            self._log.debug("sent to %d recipients (%d refused), in %.3f s", accepted, refused, seconds)
        else:
            self._log.debug("%s, in %.3f s: %s", state, seconds, "withdrawn" if error is None else one_line(error))

    def closed(self, reason: str) -> None:
        """Log that the connection is gone."""
        self.tell("close", reason=reason)
        self._log.debug("closed: %s", one_line(reason))


def _shown(reply: bytes) -> str:
    """Return the text of a reply as ASCII, its lines' ends escaped, too: EHLO's has many."""
    return ascii(reply[:_LOGGED])[2:-1] + ("..." if reply[_LOGGED:] else "")


def _message_id(content: bytes) -> str | None:
    """Return the Message-ID of a message's header; it ends at the first empty line."""
    found = _MESSAGE_ID.search(content, 0, _HEADER)
    if found is None or _EMPTY_LINE.search(content, 0, found.start()):
        return None
    return found[1].decode("ascii", "backslashreplace")


def _names(group: Group) -> tuple[str, ...]:
    if group.secret:
        return ("AUTH",) if Trigger.auth in group.triggers else ("response",)
    if not _CONTENT.isdisjoint(group.triggers):
        return ("content",)
    return tuple(line.split(b" ", 1)[0].upper().decode("ascii", "replace") for line in _commands(group.data)[0])


def _lines(group: Group) -> list[str]:
    if group.secret:
        return ["AUTH (not shown)" if Trigger.auth in group.triggers else "(not shown)"]
    if not _CONTENT.isdisjoint(group.triggers):
        return [f"({len(group.data)} octets of content)"]
    commands, rest = _commands(group.data)
    lines = [ascii(line)[2:-1] for line in commands]
    return [*lines, f"({rest} octets of content)"] if rest else lines


def _commands(data: bytes) -> tuple[list[bytes], int]:
    """Return command lines without their ends, and how many octets of content stand behind BDAT."""
    found = _BDAT.search(data)
    end = len(data) if found is None else found.end()
    return data[:end].removesuffix(b"\r\n").split(b"\r\n") if end else [], len(data) - end
