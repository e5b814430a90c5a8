"""Running a generator, with steps that block and with steps that are awaited."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import Any

import pytest

from asmtp.protocol.trampoline import async_trampoline, trampoline


def counting(most: int) -> Generator[int, Any, list[Any]]:
    found: list[Any] = []
    for number in range(most):
        try:
            found.append((yield number))
        except LookupError as error:
            found.append(str(error))
    return found


def carry_out(number: int) -> str:
    if number == 1:
        raise LookupError("not found")
    if number == 3:
        raise ArithmeticError("not caught")
    return f"{number}!"


async def carry_out_later(number: int) -> str:
    await asyncio.sleep(0)
    return carry_out(number)


def run(most: int, how: str) -> list[Any]:
    if how == "blocking":
        return trampoline(counting(most), carry_out)
    return asyncio.run(async_trampoline(counting(most), carry_out_later))


@pytest.mark.parametrize("how", ["blocking", "awaited"])
def test_results_and_exceptions_go_back_into_the_generator(how: str) -> None:
    assert run(0, how) == []
    assert run(3, how) == ["0!", "not found", "2!"]
    with pytest.raises(ArithmeticError, match="not caught"):
        run(4, how)
