"""Limits of time for each phase (RFC 5321 §4.5.3.2)."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

__all__ = ["Timeouts"]


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Limits of time for each phase, in seconds; None: no limit.

    The defaults from `greeting` to `final` are those of RFC 5321 §4.5.3.2.

    Attributes:
        connect: name look-up and TCP connection, for all addresses; and the look-up of this machine's own name.
        tls: the TLS handshake.
        greeting: the server's 220.
        command: the reply to EHLO, MAIL, RCPT and any other command without a limit of its own.
        data: the reply to DATA.
        content: the next progress while content is written: the server takes 1024 octets, or the rest.
        final: the reply to the end of the content.
        quit: the reply to QUIT.
    """

    connect: float | None = 60
    tls: float | None = 60
    greeting: float | None = 300
    command: float | None = 300
    data: float | None = 120
    content: float | None = 180
    final: float | None = 600
    quit: float | None = 10

    def __post_init__(self) -> None:
        for field in fields(self):
            _check_seconds(getattr(self, field.name), f"timeout.{field.name}")

    @classmethod
    def of(cls, value: float | Timeouts | None, name: str = "timeout") -> Timeouts:
        """Return limits: of one number for all phases, of None for no limits, or the Timeouts that were given.

        Args:
            name: the argument that it was given as, for the error.

        Raises:
            ValueError: a number that is not above 0.
            TypeError: not a number.
        """
        if isinstance(value, Timeouts):
            return value
        _check_seconds(value, name)
        return cls(*[value] * len(fields(cls)))


def _check_seconds(value: float | None, name: str) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number of seconds or None, not {type(value).__name__}")
    if value == 0:
        # smtplib's words.
        raise ValueError(f"{name}: Non-blocking socket (timeout=0) is not supported")
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be a number of seconds above 0 or None, not {value!r}")
