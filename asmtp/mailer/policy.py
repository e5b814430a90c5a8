"""When to try again, how fast to send, whom to leave alone for a while: values, with `now` in and a decision out.

Nothing here has a clock, a timer or a random number of its own, so each rule can be read and tested as a table.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable
from dataclasses import dataclass

from asmtp.errors import SMTPException
from asmtp.protocol.reply import Reply

__all__ = ["Pace", "Rate", "Backoff", "Retry", "any_throttling", "is_crowded", "is_throttling", "is_transient"]


def is_transient(error: Exception) -> bool:
    """Whether a message that met `error` may be sent again and may fare better.

    That is where the server cannot have it and the connection was to blame, or the server said 4yz (RFC 5321 §4.2.1).
    """
    return isinstance(error, SMTPException) and error.transient


# What servers say when they are sent too much: there is no code for it, and 4.7.x says "policy" of greylisting too.
# Too many recipients may be those of one message (but Postfix's "from" is a rate); too many messages "in this
# connection" (Exim, Amazon), and too many errors, ask for another connection.
_TOO_MUCH = re.compile(
    rb"too (?:many(?! recipients(?! from| received)| messages in| errors(?! from))|much|fast|frequent|quick)"
    rb"|throttl|slow down|\brate\b(?!@)|unexpected volume"
    rb"|(?:connection|messag(?:e|ing)|relay|send(?:ing)?|hourly|daily)s? (?:limit|quota)",
    re.IGNORECASE,
)


def is_throttling(reply: Reply) -> bool:
    """Whether the server says that it is sent too much: 4yz, with words for that."""
    return 400 <= reply.code <= 499 and _TOO_MUCH.search(reply.message) is not None


_CROWDED = re.compile(r"too many .*(?:connections|sessions)|connections? limit|concurren", re.IGNORECASE)


def is_crowded(text: str) -> bool:
    """Whether a server says that it has too many connections."""
    return _CROWDED.search(text) is not None


def _above_zero(value: float | None, name: str, *, optional: bool = False) -> None:
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, not {type(value).__name__}")
    if not 0 < value < float("inf"):
        raise ValueError(f"{name} must be above 0, not {value!r}")


@dataclass(frozen=True, slots=True)
class Retry:
    """How often and when a message is tried again: exponential back-off with jitter.

    What is tried again is what the server cannot have (`not_sent`), or refused for now (4yz).  A message that is
    `in_doubt` is not, as it may be delivered twice then, unless you ask for it.

    Attributes:
        attempts: how often it is tried in all, at least 1.
        within: seconds from the first try in which another may begin; None: without limit.
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
            _above_zero(getattr(self, name), f"retry.{name}", optional=name == "within")
        if isinstance(self.jitter, bool) or not isinstance(self.jitter, int | float):
            raise TypeError(f"retry.jitter must be a number, not {type(self.jitter).__name__}")
        if not isinstance(self.in_doubt, bool):
            raise TypeError(f"retry.in_doubt must be True or False, not {type(self.in_doubt).__name__}")
        if not 0 <= self.jitter <= 1:
            raise ValueError(f"retry.jitter must be from 0 to 1, not {self.jitter!r}")

    def delay(self, attempts: int, elapsed: float, error: Exception, chance: float) -> float | None:
        """Seconds to wait before the next try, or None: it is over.

        Args:
            attempts: how often it was tried.
            elapsed: seconds since the first try began.
            error: what it met.
            chance: a random number from 0 to 1.
        """
        doubtful = getattr(error, "state", None) == "in_doubt"
        if not (self.in_doubt if doubtful else is_transient(error)):
            return None
        return self.wait(attempts, elapsed, chance)

    def wait(self, attempts: int, elapsed: float, chance: float) -> float | None:
        """The same, where it is known that another try makes sense."""
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


_RATE = re.compile(r"([0-9]*\.?[0-9]+) ?(messages|recipients)? ?/ ?(?:([0-9]*\.?[0-9]+) ?)?(s|sec|min|m|h|hour|d|day)")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True, slots=True)
class Rate:
    """How much may be sent in a time.

    Attributes:
        messages: so many each `per` seconds, or None: no limit.
        recipients: so many each `per` seconds, or None: no limit.
        per: seconds.

    Raises:
        ValueError, TypeError: a value is not above 0, or there is no limit in it.
    """

    messages: float | None = None
    recipients: float | None = None
    per: float = 1.0

    def __post_init__(self) -> None:
        for name in ("messages", "recipients", "per"):
            _above_zero(getattr(self, name), f"rate.{name}", optional=name != "per")
        if self.messages is None and self.recipients is None:
            raise ValueError("rate: neither messages nor recipients are given")

    @classmethod
    def of(cls, value: str | Rate) -> Rate:
        """From ``"100/s"``, ``"6000/min"``, ``"100 messages/s, 500 recipients/s"``, ``"1000/10min"``, or what is one.

        Raises:
            ValueError, TypeError: it is none of these.
        """
        if isinstance(value, Rate):
            return value
        if not isinstance(value, str):
            raise TypeError(f"rate must be a str or a Rate, not {type(value).__name__}")
        found: dict[str, float] = {}
        for part in value.split(","):
            match = _RATE.fullmatch(part.strip().lower())
            if match is None:
                raise ValueError(f'rate: not a rate such as "100/s" or "5000 recipients/h": {value!a}')
            count, what, times, unit = match.groups()
            what = what or "messages"
            if what in found:
                raise ValueError(f"rate: two limits for {what}: {value!a}")
            _above_zero(float(times or 1), "rate")
            found[what] = float(count) / (float(times or 1) * _SECONDS[unit[0]])
        return cls(**found)


@dataclass(frozen=True, slots=True)
class Pace:
    """A rate being kept: what may go now.  Each change is a new value.

    It adapts: a server that says it is sent too much halves the rate, which recovers over a minute.

    Attributes:
        rate: the limit.
        messages_at, recipients_at: the time at which the limits would have been reached exactly (GCRA's
            "theoretical arrival time"); a tenth of a second ahead of it may go at once.
        share: the share of the rate that was in use at `changed`.
    """

    rate: Rate
    messages_at: float = 0.0
    recipients_at: float = 0.0
    share: float = 1.0
    changed: float = 0.0

    RECOVERY = 60.0
    """Seconds from nothing to the whole rate."""
    TOLERANCE = 0.1
    """Seconds' worth that may go at once: a timer is not exact, and a packet takes several messages."""
    LEAST = 1 / 64
    """The share that is left in any case."""

    def factor(self, now: float) -> float:
        """The share of the rate that is in use, 0 to 1."""
        return min(1.0, self.share + (now - self.changed) / self.RECOVERY)

    def wait(self, now: float) -> float:
        """Seconds until the next message may go; 0: now."""
        seconds = max(self.messages_at, self.recipients_at) - self.TOLERANCE - now
        return seconds if seconds > 1e-6 else 0.0  # less than a clock can tell is nothing

    def sent(self, now: float, recipients: int) -> Pace:
        """A message to so many recipients goes now."""
        per = self.rate.per / self.factor(now)
        messages_at, recipients_at = self.messages_at, self.recipients_at
        if self.rate.messages is not None:
            messages_at = max(messages_at, now) + per / self.rate.messages
        if self.rate.recipients is not None:
            recipients_at = max(recipients_at, now) + recipients * per / self.rate.recipients
        return dataclasses.replace(self, messages_at=messages_at, recipients_at=recipients_at)

    def throttled(self, now: float) -> Pace:
        """The server said that it is sent too much.  Several replies within a second count once."""
        if now - self.changed < 1.0 and self.share < 1.0:
            return self
        return dataclasses.replace(self, share=max(self.LEAST, self.factor(now) / 2), changed=now)


@dataclass(frozen=True, slots=True)
class Backoff:
    """A relay that cannot be reached, or takes nothing, is left alone for a while, longer each time.

    Attributes:
        failures: how often in a row it could not be reached.
        until: when it may be tried again.
    """

    failures: int = 0
    until: float = 0.0

    INITIAL = 1.0
    MAXIMUM = 60.0

    def failed(self, now: float, chance: float) -> Backoff:
        """It could not be reached.

        Args:
            chance: a random number from 0 to 1.
        """
        seconds = min(self.MAXIMUM, self.INITIAL * 2.0 ** min(self.failures, 20))
        return Backoff(self.failures + 1, now + seconds * (1 - chance / 2))

    def expired(self, now: float) -> bool:
        """Whether it may be tried."""
        return now >= self.until


def any_throttling(replies: Iterable[Reply]) -> bool:
    """Whether one of them says that the server is sent too much."""
    return any(map(is_throttling, replies))
