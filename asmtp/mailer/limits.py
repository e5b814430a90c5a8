"""What a server's 4yz says of the server, not of the message: too many connections, enough of this one, or too fast.

Values, as in `policy`: `now` goes in and a decision comes out.
"""

from __future__ import annotations

import dataclasses
import enum
import math
import re
from dataclasses import dataclass

from asmtp.errors import SMTPSenderRefused, SMTPServerDisconnected
from asmtp.mailer.delivery import replies_of
from asmtp.mailer.policy import is_crowded, is_throttling
from asmtp.protocol.reply import Reply

__all__ = ["Found", "Limit", "Meter", "limit_of"]


class Limit(enum.Enum):
    """What a server has enough of."""

    CONNECTIONS = "connections"
    """There are too many: this one is of no use."""
    MESSAGES = "messages"
    """This connection has taken as many as it takes, and the server says so."""
    SENDER = "sender"
    """It may be that, and it may be about this sender."""
    PACE = "pace"
    """It is sent too much at a time."""


_ENOUGH = re.compile(
    rb"too many (?:messages|mails|e-?mails|transactions)"
    rb"|messages? (?:limit )?(?:per|in this|for this|on this) (?:connection|session)",
    re.IGNORECASE,
)


def _kind(reply: Reply) -> Limit | None:
    """What one reply says by its words, its code, and its enhanced code."""
    if not 400 <= reply.code <= 499:
        return None
    # Office 365: "432 4.3.2 STOREDRV.ClientSubmit; sender thread limit exceeded".
    if is_crowded(reply.message.decode("latin-1")) or (reply.code == 432 and reply.enhanced == "4.3.2"):
        return Limit.CONNECTIONS
    # 454 has no other meaning for a message (but 4.7.1, "relay access denied" for now).
    if is_throttling(reply) or (reply.code == 454 and reply.enhanced in ("", "4.7.0")):
        return Limit.PACE
    return None


def limit_of(error: BaseException, taken: int) -> Limit | None:
    """Which limit of the server a message met, if it did.

    Args:
        error: what it met.
        taken: how many messages the connection took before.
    """
    if isinstance(error, SMTPServerDisconnected):  # it was written behind another that was told
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
        return Limit.PACE if Limit.PACE in kinds else Limit.SENDER
    return Limit.PACE if Limit.PACE in kinds else None


class Meter:
    """How many messages were taken in about the last second.

    Attributes:
        last: when one was taken last.
    """

    __slots__ = ("_before", "_count", "_since", "last")

    def __init__(self) -> None:
        self.last = self._since = float("-inf")
        self._count = self._before = 0

    def took(self, now: float, count: int) -> None:
        """So many were taken."""
        if now - self._since >= 1:
            self._before = self._count if now - self._since < 2 else 0
            self._since, self._count = now, 0
        self._count += count
        self.last = now

    def rate(self, now: float) -> int:
        """Messages a second."""
        if now - self._since >= 2:
            return 0
        return self._count if now - self._since >= 1 else max(self._count, self._before)


@dataclass(frozen=True, slots=True)
class Found:
    """A rate that nobody gave: what a server took before it said that it is sent too much.

    Nothing goes for a moment; then one message finds out whether more is taken, and the others follow at about what
    was taken in a second.  The rate grows again, in case that it was not the limit.  Each change is a new value.

    Attributes:
        rate: messages a second, at `since`.
        since: when the server said it last.
        at: when the next message may go.
        trying: none was taken since.
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
    """Seconds after which nothing is left of it."""

    @classmethod
    def of(cls, taken: float, now: float) -> Found:
        """The server said that it is sent too much, and had taken so many messages in the last second.

        Where it had taken none, nothing is known of what it takes.
        """
        return cls(max(1.0, cls.SHARE * taken) if taken else math.inf, now, now + cls.MOMENT)

    def wait(self, now: float) -> float:
        """Seconds until the next message may go; 0: now."""
        seconds = self.at - now
        return seconds if seconds > 1e-6 else 0.0

    def sent(self, now: float, recipients: int) -> Found:
        """A message goes now; how many recipients it has does not matter, as nobody knows what counts."""
        if self.trying:
            return dataclasses.replace(self, at=now + self.MOMENT)
        rate = self.rate * 2 ** min((now - self.since) / self.DOUBLING, 20)
        return dataclasses.replace(self, at=max(self.at, now - 0.1) + 1 / rate)

    def took(self, now: float) -> Found:
        """One was taken: the others may follow."""
        return dataclasses.replace(self, trying=False, at=min(self.at, now)) if self.trying else self

    def throttled(self, now: float, taken: float) -> Found:
        """The server said it again; what it said to the messages that went together counts once."""
        if self.trying and now < self.at:
            return self
        return (
            Found.of(taken, now) if taken else dataclasses.replace(self, since=now, at=now + self.MOMENT, trying=True)
        )

    def blocked(self, taken: float) -> bool:
        """Whether nothing is taken at all: the message that was to find out was refused, too.

        Args:
            taken: when one was taken last.
        """
        return self.trying and self.at > self.since + self.MOMENT and taken < self.since

    def over(self, now: float) -> bool:
        """Whether there is nothing to be kept any more."""
        return now >= self.since + self.OVER
