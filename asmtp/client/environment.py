"""The program around a client: threads for functions that block, and a resolver."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from asmtp.transport import resolve
from asmtp.transport.offload import call_in_thread

__all__ = ["Environment"]

T = TypeVar("T")


class Environment:
    """An event loop with other tasks in it, which must not be blocked."""

    async def offload(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function that would block the loop, in a thread; a caller that is cancelled waits for its end."""
        return await call_in_thread(function, *args)

    async def call_out(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function that may block for long, in a thread; a caller that is cancelled does not wait for its end.

        It is a function of the caller's, or one that asks others.
        """
        return await call_in_thread(function, *args, abandon=True)

    async def resolve(self, host: str, port: int) -> list[tuple[Any, ...]]:
        """Look up the addresses of a host."""
        return await resolve.resolve(host, port)
