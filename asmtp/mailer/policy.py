"""Decide when to try a message again, how long to leave a relay alone, and what a 4yz says of the server itself.

Values and functions, with `now` in and a decision out: nothing here has a clock, a timer or a random number of its own,
so each rule can be read and tested as a table.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable
from dataclasses import dataclass

from asmtp.errors import SMTPException, SMTPSenderRefused, SMTPServerDisconnected
from asmtp.mailer.delivery import replies_of
from asmtp.mailer.rate import check_above_zero
from asmtp.protocol.reply import Reply

__all__ = [
    "Backoff", "Limit", "Retry", "any_throttling", "is_answered", "is_closing", "is_crowded", "is_throttling",
    "is_transient", "limit_of", "says_too_many_recipients", "too_many_recipients",
]  # fmt: skip


def is_transient(error: Exception) -> bool:
    """Tell whether a message that met `error` may be sent again and may fare better.

    It may if the server cannot have it and the connection was to blame, or the server said 4yz (RFC 5321 §4.2.1).
    """
    return isinstance(error, SMTPException) and error.transient


@dataclass(frozen=True, slots=True)
class Retry:
    """Says how often and when a message is tried again: exponential back-off with jitter.

    A message is tried again in three cases; :attr:`~asmtp.Statistics.retried` counts all of them.

    * The server cannot have it (`not_sent`), or refused it for now (4yz): after a wait, which counts as one of the
      `attempts`.  If some of its recipients were refused for now, it is tried again for those.  A message that is
      `in_doubt` may be delivered twice by another try, so there is none unless you ask for it.
    * The server has reached a limit that says nothing of the message, of connections, of messages on a connection, or
      of its rate: as soon as the limit allows it, for `within` seconds.  No attempt is counted.
    * The server closed a connection before it saw the message, or was out of step there: at once, also with
      ``retry=None``.  No attempt is counted.  A message is tried again so at most 3 times if the connection, which had
      served others, ended at this message; once if the server did not let it begin; and each time if it stood behind
      the message at which the connection ended, or behind the probe of BDAT.

    Content that can be read only once, a file or an iterator, is not sent again.

    Attributes:
        attempts: how many times it is tried in all, at least 1.
        within: seconds from the first try in which another may begin; None: without limit.  With None, the server's
            limits count as refusals, as there would be no end.
        initial: seconds before the second try.
        factor: each further wait is so many times as long.
        maximum: seconds that no wait exceeds.
        jitter: the share of a wait that is left to chance, from 0 to 1; it makes waits shorter.
        in_doubt: try again what the server may have.

    Raises:
        ValueError, TypeError: a value is out of its range.
    """

    attempts: int = 3
    within: float | None = 60.0
    initial: float = 0.5
    factor: float = 2.0
    maximum: float = 30.0
    jitter: float = 0.5
    in_doubt: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.attempts, bool) or not isinstance(self.attempts, int) or self.attempts < 1:
            raise ValueError(f"retry.attempts must be a whole number, at least 1, not {self.attempts!r}")
        for name in ("within", "initial", "factor", "maximum"):
            check_above_zero(getattr(self, name), f"retry.{name}", optional=name == "within")
        if isinstance(self.jitter, bool) or not isinstance(self.jitter, int | float):
            raise TypeError(f"retry.jitter must be a number, not {type(self.jitter).__name__}")
        if not isinstance(self.in_doubt, bool):
            raise TypeError(f"retry.in_doubt must be True or False, not {type(self.in_doubt).__name__}")
        if not 0 <= self.jitter <= 1:
            raise ValueError(f"retry.jitter must be from 0 to 1, not {self.jitter!r}")

    def delay(self, attempts: int, elapsed: float, error: Exception, chance: float) -> float | None:
        """Return the seconds to wait before the next try, or None if there is none.

        Args:
            attempts: how many times it was tried.
            elapsed: seconds since the first try began.
            error: how the last try ended.
            chance: a random number from 0 to 1.
        """
        doubtful = getattr(error, "state", None) == "in_doubt"
        if not (self.in_doubt if doubtful else is_transient(error)):
            return None
        return self.wait(attempts, elapsed, chance)

    def wait(self, attempts: int, elapsed: float, chance: float) -> float | None:
        """Return the same, after an error of which it is known that another try makes sense."""
        if attempts >= self.attempts:
            return None
        try:
            seconds = min(self.maximum, self.initial * self.factor ** (attempts - 1))
        except OverflowError:
            seconds = self.maximum
        seconds *= 1 - self.jitter * chance
        if self.within is not None and elapsed + seconds > self.within:
            return None
        return seconds


@dataclass(frozen=True, slots=True)
class Backoff:
    """Says how long a relay is left alone that cannot be reached, or takes nothing: longer each time.

    Attributes:
        failures: how many times in a row it failed.
        until: when it may be tried again; seconds, by the clock of `now`.
    """

    failures: int = 0
    until: float = 0.0

    INITIAL = 1.0
    MAXIMUM = 60.0

    def failed(self, now: float, chance: float) -> Backoff:
        """Return the back-off after another failure.

        Args:
            chance: a random number from 0 to 1.
        """
        seconds = min(self.MAXIMUM, self.INITIAL * 2.0 ** min(self.failures, 20))
        return Backoff(self.failures + 1, now + seconds * (1 - chance / 2))

    def expired(self, now: float) -> bool:
        """Tell whether the relay may be tried."""
        return now >= self.until


# ---- what a reply says of the server -------------------------------------------------------------

# Words of servers that are sent too much: there is no code for it, and 4.7.x says "policy" of greylisting too.
# Too many recipients may be those of one message (but Postfix's "from" is a rate); too many messages "in this
# connection" (Exim, Amazon), and too many errors, ask for another connection.
_TOO_MUCH = re.compile(
    rb"too (?:many(?! recipients(?! from| received)| messages in| errors(?! from))|much|fast|frequent|quick)"
    rb"|throttl|slow down|\brate\b(?!@)|unexpected volume"
    rb"|(?:connection|messag(?:e|ing)|relay|send(?:ing)?|hourly|daily)s? (?:limit|quota)",
    re.IGNORECASE,
)


def is_throttling(reply: Reply) -> bool:
    """Tell whether the server says that it is sent too much: 4yz, with words for that."""
    return 400 <= reply.code <= 499 and _TOO_MUCH.search(reply.message) is not None


_CROWDED = re.compile(r"too many .*(?:connections|sessions)|connections? limit|concurren", re.IGNORECASE)


def is_crowded(text: str) -> bool:
    """Tell whether a server says that it has too many connections."""
    return _CROWDED.search(text) is not None


def any_throttling(replies: Iterable[Reply]) -> bool:
    """Tell whether one of them says that the server is sent too much."""
    return any(map(is_throttling, replies))


class Limit(enum.Enum):
    """A limit that a server has reached."""

    CONNECTIONS = "connections"
    """There are too many connections: this one is of no use."""
    MESSAGES = "messages"
    """This connection has taken as many messages as it takes, and the server says so."""
    SENDER = "sender"
    """It may be that limit, or the server may refuse this sender."""
    RATE = "rate"
    """The server is sent too much at a time."""


_ENOUGH = re.compile(
    rb"too many (?:messages|mails|e-?mails|transactions)"
    rb"|messages? (?:limit )?(?:per|in this|for this|on this) (?:connection|session)",
    re.IGNORECASE,
)


def _kind(reply: Reply) -> Limit | None:
    """Return the limit that one reply tells of by its words, its code, and its enhanced code."""
    if not 400 <= reply.code <= 499:
        return None
    # Office 365: "432 4.3.2 STOREDRV.ClientSubmit; sender thread limit exceeded".
    if is_crowded(reply.message.decode("latin-1")) or (reply.code == 432 and reply.enhanced == "4.3.2"):
        return Limit.CONNECTIONS
    # 454 has no other meaning for a message (but 4.7.1, "relay access denied" for now).
    if is_throttling(reply) or (reply.code == 454 and reply.enhanced in ("", "4.7.0")):
        return Limit.RATE
    return None


def limit_of(error: BaseException, taken: int) -> Limit | None:
    """Return the limit of the server's that a message met, if it did.

    Args:
        error: how its try ended.
        taken: how many messages the connection took before.
    """
    if isinstance(error, SMTPServerDisconnected):  # it was written behind another message, which got the reply
        crowded = not taken and error.state == "not_sent" and is_crowded(str(error))
        return Limit.CONNECTIONS if crowded else None
    replies = replies_of(error)
    kinds = {_kind(reply) for reply in replies}
    if Limit.CONNECTIONS in kinds:
        return Limit.CONNECTIONS
    # A connection that took messages and says no to a sender: OpenSMTPD from the 101st on, "452 4.5.3 Too many
    # messages sent".  421 ends the connection anyway.
    if isinstance(error, SMTPSenderRefused) and taken and 400 <= replies[0].code <= 499 and replies[0].code != 421:
        if replies[0].enhanced.endswith(".5.3") or _ENOUGH.search(replies[0].message):
            return Limit.MESSAGES
        return Limit.RATE if Limit.RATE in kinds else Limit.SENDER
    return Limit.RATE if Limit.RATE in kinds else None


def is_answered(error: BaseException) -> bool:
    """Tell whether the server has given its answer to a message that met `error`; 421 is the end of the connection."""
    return getattr(error, "state", None) == "refused" and not is_closing(error)


def is_closing(error: BaseException) -> bool:
    """Tell whether the server said 421 as it closes (RFC 5321 §3.8), and not because it is sent too much."""
    replies = replies_of(error)
    return any(reply.code == 421 for reply in replies) and not any_throttling(replies)


def too_many_recipients(reply: Reply) -> bool:
    """Tell whether a reply to RCPT may mean that a transaction has too many: 452, or 552 (RFC 5321 §4.5.3.1.10)."""
    certain = says_too_many_recipients(reply)
    return reply.code in (452, 552) and (certain or (reply.code == 452 and not reply.enhanced))


def says_too_many_recipients(reply: Reply) -> bool:
    """Tell whether a reply says so in words, or by its enhanced code."""
    text = reply.message.lower()  # not: a mailbox with too many messages
    return reply.enhanced.endswith(".5.3") or (b"too many" in text and (b"recipient" in text or b"rcpt" in text))
