"""Calls of blocking functions in a thread.  When the program ends no thread can be started: the call blocks then."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

import anyio.to_thread

__all__ = ["call_in_thread", "ending"]

T = TypeVar("T")


def ending() -> bool:
    """Return whether the main thread has ended: Python starts no threads any more (3.12), and no executors."""
    return not threading.main_thread().is_alive()


async def call_in_thread(function: Callable[..., T], *args: Any, abandon: bool = False) -> T:
    """Call a function in a thread.

    Args:
        abandon: a caller that is cancelled does not wait for the function to end.
    """
    begun = False

    def call() -> T:
        nonlocal begun
        begun = True
        return function(*args)

    if not ending():
        try:
            return await anyio.to_thread.run_sync(call, abandon_on_cancel=abandon)
        except RuntimeError:
            if begun:
                raise
            # The program is just ending: no thread could be started.
    return function(*args)
