"""The connections of ``asmtp bulk``: by which commands content goes, and what they wait for."""

from __future__ import annotations

import time
from collections.abc import Callable

from asmtp.client.events import Event
from asmtp.mailer.mailer import Statistics

__all__ = ["Watching"]


class Watching:
    """An `on_event` that remembers what the sending and the display need to know.

    Args:
        clock: the time in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since = clock()  # when it began to wait for a connection
        self._chunking: set[str] = set()  # servers that take content by BDAT
        self._latest = ""  # the server that was given something last

    def __call__(self, event: Event) -> None:
        """Take an event."""
        if event.kind == "close":
            self._since = self._clock()
        elif event.kind == "write" and "RCPT" in event.fields["commands"]:
            self._latest = event.server
            if "BDAT" in event.fields["commands"]:
                self._chunking.add(event.server)

    @property
    def chunking(self) -> bool:
        """Tell whether content goes by BDAT, many messages at a time."""
        return self._latest in self._chunking

    def waiting(self, stats: Statistics, servers: str) -> str:
        """Return what is waited for, and for how long; empty if connections are open, or none is needed.

        Args:
            servers: what they are called.
        """
        if stats.open or not stats.opening:
            return ""
        return f"waiting for the greeting of {servers}, {self._clock() - self._since:.0f} s"
