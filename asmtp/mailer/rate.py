"""Limit how fast to send: a rate, the limiter that keeps to it, and the one that finds out what a server takes.

Values, as in :mod:`asmtp.mailer.policy`: `now` goes in and a decision comes out.
"""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass

__all__ = ["AdaptiveRateLimiter", "Rate", "RateLimiter", "RateMeter", "check_above_zero"]


def check_above_zero(value: float | None, name: str, *, optional: bool = False) -> None:
    """Raise TypeError or ValueError if `value` is no finite number above 0; None is one if it is `optional`."""
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, not {type(value).__name__}")
    if not 0 < value < float("inf"):
        raise ValueError(f"{name} must be above 0, not {value!r}")


_RATE = re.compile(r"([0-9]*\.?[0-9]+) ?(messages|recipients)? ?/ ?(?:([0-9]*\.?[0-9]+) ?)?(s|sec|min|m|h|hour|d|day)")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True, slots=True)
class Rate:
    """The most that may be sent in a time.

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
            check_above_zero(getattr(self, name), f"rate.{name}", optional=name != "per")
        if self.messages is None and self.recipients is None:
            raise ValueError("rate: neither messages nor recipients are given")

    @classmethod
    def of(cls, value: str | Rate) -> Rate:
        """Read a rate: ``"100/s"``, ``"6000/min"``, ``"9/10min"``, ``"100 messages/s, 500 recipients/s"``, or a Rate.

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
            check_above_zero(float(times or 1), "rate")
            found[what] = float(count) / (float(times or 1) * _SECONDS[unit[0]])
        return cls(**found)


@dataclass(frozen=True, slots=True)
class RateLimiter:
    """Keeps to a rate: says when the next message may go.  Each change is a new value.

    A server that says it is sent too much halves the rate, which recovers over a minute.

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
        """Return the share of the rate that is in use, 0 to 1."""
        return min(1.0, self.share + (now - self.changed) / self.RECOVERY)

    def wait(self, now: float) -> float:
        """Return the seconds until the next message may go; 0: now."""
        seconds = max(self.messages_at, self.recipients_at) - self.TOLERANCE - now
        return seconds if seconds > 1e-6 else 0.0  # less than a clock can tell is nothing

    def sent(self, now: float, recipients: int) -> RateLimiter:
        """Return the limiter after a message to so many recipients went at `now`."""
        per = self.rate.per / self.factor(now)
        messages_at, recipients_at = self.messages_at, self.recipients_at
        if self.rate.messages is not None:
            messages_at = max(messages_at, now) + per / self.rate.messages
        if self.rate.recipients is not None:
            recipients_at = max(recipients_at, now) + recipients * per / self.rate.recipients
        return dataclasses.replace(self, messages_at=messages_at, recipients_at=recipients_at)

    def throttled(self, now: float) -> RateLimiter:
        """Return the limiter after the server said that it is sent too much.  Replies within a second count once."""
        if now - self.changed < 1.0 and self.share < 1.0:
            return self
        return dataclasses.replace(self, share=max(self.LEAST, self.factor(now) / 2), changed=now)


@dataclass(frozen=True, slots=True)
class AdaptiveRateLimiter:
    """Finds a rate if the caller gave none: the rate that a server took before it said that it is sent too much.

    Nothing goes for a moment; then one message finds out whether more is taken, and the others follow at about what
    was taken in a second.  The rate grows again, in case it was not the limit.  Each change is a new value.

    Attributes:
        rate: messages a second, at `since`.
        since: when the server said it last.
        at: when the next message may go.
        trying: the server has taken no message since.
    """

    rate: float
    since: float
    at: float
    trying: bool = True

    MOMENT = 1.0
    """Seconds in which nothing goes, and between two messages that find out."""
    SHARE = 0.9
    """The share of what was taken that is tried at first."""
    DOUBLING = 30.0
    """Seconds in which the rate doubles."""
    OVER = 600.0
    """Seconds after which the limiter is dropped."""

    @classmethod
    def of(cls, taken: float, now: float) -> AdaptiveRateLimiter:
        """Return the limiter after the server said that it is sent too much: it took `taken` messages in a second.

        If it had taken none, nothing is known of what it takes.
        """
        return cls(max(1.0, cls.SHARE * taken) if taken else math.inf, now, now + cls.MOMENT)

    def wait(self, now: float) -> float:
        """Return the seconds until the next message may go; 0: now."""
        seconds = self.at - now
        return seconds if seconds > 1e-6 else 0.0

    def sent(self, now: float, recipients: int) -> AdaptiveRateLimiter:
        """Return the limiter after a message went at `now`.

        The number of its recipients does not matter, as it is not known what the server counts.
        """
        if self.trying:
            return dataclasses.replace(self, at=now + self.MOMENT)
        rate = self.rate * 2 ** min((now - self.since) / self.DOUBLING, 20)
        return dataclasses.replace(self, at=max(self.at, now - 0.1) + 1 / rate)

    def took(self, now: float) -> AdaptiveRateLimiter:
        """Return the limiter after a message was taken: the others may follow."""
        return dataclasses.replace(self, trying=False, at=min(self.at, now)) if self.trying else self

    def throttled(self, now: float, taken: float) -> AdaptiveRateLimiter:
        """Return the limiter after the server said it again; replies to messages that went together count once."""
        if self.trying and now < self.at:
            return self
        if taken:
            return AdaptiveRateLimiter.of(taken, now)
        return dataclasses.replace(self, since=now, at=now + self.MOMENT, trying=True)

    def blocked(self, taken: float) -> bool:
        """Tell whether the server takes nothing at all: it refused the message that was to find out, too.

        Args:
            taken: when a message was taken last.
        """
        return self.trying and self.at > self.since + self.MOMENT and taken < self.since

    def expired(self, now: float) -> bool:
        """Tell whether the limiter can be dropped."""
        return now >= self.since + self.OVER


class RateMeter:
    """Measures how many messages a server takes a second.

    Attributes:
        last: when a message was taken last.
    """

    __slots__ = ("_before", "_count", "_since", "last")

    def __init__(self) -> None:
        self.last = self._since = float("-inf")
        self._count = self._before = 0

    def took(self, now: float, count: int) -> None:
        """Count messages that were taken."""
        if now - self._since >= 1:
            self._before = self._count if now - self._since < 2 else 0
            self._since, self._count = now, 0
        self._count += count
        self.last = now

    def rate(self, now: float) -> int:
        """Return the messages that were taken in about the last second."""
        if now - self._since >= 2:
            return 0
        return self._count if now - self._since >= 1 else max(self._count, self._before)
