"""A relay as the pool knows it: whether it is left alone, and how much it takes."""

from __future__ import annotations

import math
import ssl
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from asmtp.auth.selection import Logins
from asmtp.errors import SMTPException, SMTPServerDisconnected, known, reason
from asmtp.mailer.delivery import own_copy
from asmtp.mailer.policy import Backoff, is_transient
from asmtp.protocol.chunking import RelayChunking
from asmtp.transport.tls import SessionCache, is_no_tls

if TYPE_CHECKING:
    from asmtp.client.relay import Relay

__all__ = ["Kept", "RelayState"]

ALONE = 0.5
"""Seconds between two tries of a relay that cannot be reached, if there is no other."""

HANGING = 10.0
"""Seconds, at least, after which a connection that is being opened is not waited for alone; some greet after 5 s."""

SHRUNK = 60.0
"""Seconds in which no more connections are opened than a server said it takes."""

LEARNT = 600.0
"""Seconds in which no more recipients are given to a transaction, and messages to a connection, than a server took."""

_WHY = 4000  # characters of an error of a connection: a certificate may have many names

CERTAIN = 10
"""A bare 452 (no enhanced code) counts as a limit of recipients only if at least so many were accepted before."""


@dataclass(frozen=True, slots=True)
class Kept:
    """The part of a relay's state that a mailer keeps from one event loop to the next.

    Attributes:
        logins: the servers' answers to logins.
        chunking: the experience of its connections with BDAT.
    """

    logins: Logins = field(default_factory=Logins)
    chunking: RelayChunking = field(default_factory=RelayChunking)


class RelayState:
    """A relay, and what the pool has learnt of it.

    Args:
        kept: the part that is kept from an event loop before.

    Attributes:
        backoff: until when it is left alone.
        failed_at: the loop's time at which it last could not be reached, or was of no use.
        lasting: why, if that does not pass by itself: a wrong password, say.
        connect, service: seconds it takes to connect, and for a message, as last seen.
        sessions: its TLS sessions, which connections resume.
        logins, chunking: see :class:`Kept`.
        overlap: it takes a transaction behind an unanswered message.
    """

    def __init__(self, relay: Relay, kept: Kept | None = None) -> None:
        kept = kept or Kept()
        self.config = relay
        self.name = relay.name
        self.backoff = Backoff()
        self.failed_at = -math.inf
        self.lasting: BaseException | None = None
        self.connect = 0.05
        self.service = 0.001
        self.sessions = SessionCache()
        self.logins = kept.logins
        self.chunking = kept.chunking
        self.overlap = True
        self._most_recipients: int | None = None
        self._recipients_until = 0.0
        self._most_messages: int | None = None
        self._messages_until = 0.0
        self._ended_after = 0
        self._cap = 0
        self._cap_until = 0.0

    # ---- whether it can be had --------------------------------------------------------------

    @property
    def patience(self) -> float:
        """Return the seconds after which a connection that is being opened counts as hanging."""
        return max(HANGING, 3 * self.connect)

    def failed(self, now: float, error: BaseException, chance: float) -> None:
        """Note that it could not be reached, or is of no use.

        Args:
            chance: a random number from 0 to 1.
        """
        self.failed_at = now
        if self.backoff.expired(now):  # several connections that fail together have failed once
            self.backoff = self.backoff.failed(now, chance)
        self.lasting = None if is_transient(self.no_connection(error)) else error

    def next_try(self, *, alone: bool) -> float:
        """Return the loop's time at which it may be tried.

        Args:
            alone: there is no other relay, so that all messages wait for it.
        """
        soon = self.failed_at + ALONE
        return soon if alone and self.lasting is None else max(soon, self.backoff.until)

    def no_connection(self, error: BaseException) -> SMTPException:
        """Return the exception for a message that got no connection, for the reason `error`."""
        if isinstance(error, SMTPException):
            return known(own_copy(error), error.state or "not_sent")
        # A certificate that does not fit, a port without TLS, no token to be had: it will not be better in a second.
        wrong_port = self.config.tls == "implicit" and is_no_tls(error)
        lasting = not isinstance(error, OSError) or isinstance(error, ssl.SSLCertVerificationError) or wrong_port
        why = reason(error, _WHY)
        told = (SMTPException if lasting else SMTPServerDisconnected)(f"no connection to {self.name}: {why}")
        told.__cause__ = error
        return known(told, "not_sent")

    # ---- what it takes ----------------------------------------------------------------------

    def most_connections(self, limit: int, now: float) -> int:
        """Return how many connections it may have."""
        return min(limit, self._cap) if now < self._cap_until else limit

    def shrink(self, connections: int, now: float) -> None:
        """Note that it takes no more connections than so many."""
        self._cap = max(1, connections)
        self._cap_until = now + SHRUNK

    def most_recipients(self, now: float) -> int | None:
        """Return how many recipients it takes in a transaction, or None if that is not known."""
        return self._most_recipients if now < self._recipients_until else None

    def crowded(self, taken: int, now: float, *, certain: bool) -> None:
        """Note that it took so many recipients in a transaction, and no more (RFC 5321 §4.5.3.1.10).

        Args:
            certain: the server said that they are too many.
        """
        if certain or taken >= CERTAIN:
            self._most_recipients = max(1, taken)
            self._recipients_until = now + LEARNT

    def most_messages(self, now: float) -> int | None:
        """Return how many messages it takes on a connection, or None if that is not known."""
        return self._most_messages if now < self._messages_until else None

    def ended(self, answered: int, now: float, *, certain: bool = False) -> None:
        """Note that it ended a busy connection after so many messages: after as many twice, that is its limit.

        Args:
            certain: the server said that they are enough.
        """
        if certain or answered == self._ended_after:
            self._most_messages = answered
            self._messages_until = now + LEARNT
        self._ended_after = answered
