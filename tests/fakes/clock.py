"""An event loop whose clock jumps to the next timer if nothing else is left to do.

So a test of a ten-minute deadline takes milliseconds, and what it measures with ``loop.time()`` is exact.
"""

from __future__ import annotations

import asyncio
import selectors
import socket
from collections.abc import Callable
from typing import Any

__all__ = ["VirtualClockLoop", "now"]

PATIENCE = 0.001
"""Real seconds in which the kernel may still deliver something before the clock jumps."""

PATIENCE_TO_CONNECT = 0.5
"""The same while a socket is being connected: a busy kernel leaves the handshake of TCP to a thread of its own."""


class _Selector(selectors.DefaultSelector):  # the best there is on this system
    """Tells its loop to jump where it would have slept."""

    loop: VirtualClockLoop

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None or timeout <= 0:
            return super().select(timeout)
        if self.loop.working:
            return super().select(None)  # a thread is at work, and wakes the loop when it is done
        patience = PATIENCE_TO_CONNECT if self.loop.connecting else PATIENCE
        events: list[tuple[selectors.SelectorKey, int]] = super().select(patience)
        if not events:
            self.loop.jump(timeout)
        return events


class VirtualClockLoop(asyncio.SelectorEventLoop):
    """A loop with a clock of its own, which stands still while there is anything to do."""

    def __init__(self) -> None:
        self._now = 0.0
        self.working = 0  # calls under way in the executor
        self.connecting = 0  # sockets
        selector = _Selector()
        selector.loop = self
        super().__init__(selector)

    def time(self) -> float:
        return self._now

    def jump(self, seconds: float) -> None:
        """Let time pass."""
        now = self._now + seconds
        # Not a rounding error short of the next timer: who looks at the clock then would wait for it for ever.
        timers: list[asyncio.TimerHandle] = self._scheduled  # type: ignore[attr-defined]
        self._now = max(now, timers[0].when()) if timers and abs(timers[0].when() - now) < 1e-6 else now

    async def sock_connect(self, sock: socket.socket, address: Any) -> None:
        self.connecting += 1
        try:
            await super().sock_connect(sock, address)
        finally:
            self.connecting -= 1

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        future = super().run_in_executor(executor, func, *args)
        self.working += 1
        future.add_done_callback(self._worked)
        return future

    async def shutdown_default_executor(self, *args: Any) -> None:
        self.working += 1
        try:
            await super().shutdown_default_executor(*args)
        finally:
            self.working -= 1

    def _worked(self, _future: asyncio.Future[Any]) -> None:
        self.working -= 1


def now() -> float:
    """Return the seconds on the clock of the running loop."""
    return asyncio.get_running_loop().time()
