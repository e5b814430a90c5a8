"""When to try a message again, and how long to leave a relay alone: values, with `now` in and a decision out.

Nothing here has a clock, a timer or a random number of its own, so each rule can be read and tested as a table.
"""

from __future__ import annotations

from dataclasses import dataclass

from asmtp.errors import SMTPException
from asmtp.mailer.rate import check_above_zero

__all__ = ["Backoff", "Retry", "is_transient"]


def is_transient(error: Exception) -> bool:
    """Whether a message that met `error` may be sent again and may fare better.

    That is where the server cannot have it and the connection was to blame, or the server said 4yz (RFC 5321 §4.2.1).
    """
    return isinstance(error, SMTPException) and error.transient


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
            check_above_zero(getattr(self, name), f"retry.{name}", optional=name == "within")
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
