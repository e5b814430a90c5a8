"""Limits of time: their defaults, one number for all of them, and numbers that are none."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import pytest

from asmtp import Timeouts

NAMES = [field.name for field in fields(Timeouts)]


def test_the_defaults_are_those_of_the_rfc() -> None:
    """RFC 5321 section 4.5.3.2."""
    limits = Timeouts()
    assert (limits.greeting, limits.command, limits.data, limits.content, limits.final) == (300, 300, 120, 180, 600)


@pytest.mark.parametrize("value", [5, 0.5, None])
def test_one_for_all(value: float | None) -> None:
    limits = Timeouts.of(value)
    assert {getattr(limits, name) for name in NAMES} == {value}


def test_limits_that_are_given_are_taken() -> None:
    limits = Timeouts(command=5)
    assert Timeouts.of(limits) is limits


@pytest.mark.parametrize("value", [-1, math.inf, math.nan])
def test_a_number_that_is_no_limit(value: float) -> None:
    with pytest.raises(ValueError, match=r"^limit must be a number of seconds above 0 or None, not "):
        Timeouts.of(value, "limit")
    for name in NAMES:
        with pytest.raises(ValueError, match=rf"^timeout\.{name} must be"):
            Timeouts(**{name: value})


def test_zero_is_told_in_the_words_of_smtplib() -> None:
    with pytest.raises(ValueError, match=r"^timeout: Non-blocking socket \(timeout=0\) is not supported$"):
        Timeouts.of(0)


@pytest.mark.parametrize("value", ["5", True, [5]])
def test_what_is_no_number(value: Any) -> None:
    with pytest.raises(TypeError, match=rf"^timeout must be a number of seconds or None, not {type(value).__name__}$"):
        Timeouts.of(value)
