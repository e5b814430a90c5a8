"""Run a generator: carry out each step that it yields, and send the result, or the exception, back into it.

A generator says once which steps there are, and in which order.  Its caller decides how a step is carried out: awaited,
or by calls that block.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from typing import Any, TypeVar

__all__ = ["async_trampoline", "trampoline"]

Step = TypeVar("Step")
T = TypeVar("T")


def trampoline(steps: Generator[Step, Any, T], carry_out: Callable[[Step], Any]) -> T:
    """Run a generator; return its result, or raise its exception."""
    try:
        step = next(steps)
        while True:
            try:
                result = carry_out(step)
            except Exception as error:
                step = steps.throw(error)
            else:
                step = steps.send(result)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]


async def async_trampoline(steps: Generator[Step, Any, T], carry_out: Callable[[Step], Awaitable[Any]]) -> T:
    """Run a generator whose steps are awaited; return its result, or raise its exception."""
    try:
        step = next(steps)
        while True:
            try:
                result = await carry_out(step)
            except Exception as error:
                step = steps.throw(error)
            else:
                step = steps.send(result)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
