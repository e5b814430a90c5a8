"""Smtplib beside asmtp, and a check that nothing is left behind, for all tests of the blocking facade."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import smtplib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import asmtp
from asmtp.sync.smtp import SMTP
from tests.fakes.background import in_background
from tests.fakes.relay import Relay, relaying
from tests.fakes.script import Scripted, Step, scripted

__all__ = [
    "BOTH", "SMTPLIB_CLASSES", "A", "B", "C", "D", "connected", "nothing_left", "relay_at", "script_at", "seen", "told",
]  # fmt: skip

A, B, C, D = (f"{name}@b.example" for name in "abcd")

BOTH = pytest.mark.parametrize("module", [smtplib, asmtp], ids=["smtplib", "asmtp"])
"""The test has a parameter `module`, and what it says holds for both."""

SMTPLIB_CLASSES = {value for value in vars(smtplib).values() if isinstance(value, type)}


def told(error: BaseException) -> tuple[Any, ...]:
    """Return what code written for smtplib sees of an exception: the class that it knows, and the attributes."""
    kind = next(
        each for each in type(error).__mro__ if each in SMTPLIB_CLASSES or not each.__module__.startswith("asmtp")
    )
    names = ("smtp_code", "smtp_error", "sender", "recipients")
    return (kind, {name: getattr(error, name) for name in names if hasattr(error, name)})


def seen(call: Callable[[], Any]) -> Any:
    """Return the value of a call, or what is `told` of its exception."""
    try:
        return call()
    except Exception as error:
        return told(error)


@contextlib.contextmanager
def relay_at(relay: Relay | None = None, **where: Any) -> Iterator[Relay]:
    """Run a relay on a thread of its own."""
    with in_background(relaying(relay or Relay(), **where)) as running:
        yield running


@contextlib.contextmanager
def script_at(*scripts: list[Step], **where: Any) -> Iterator[Scripted]:
    """Run a server on a thread of its own that plays scripts."""
    with in_background(scripted(*scripts, **where)) as running:
        yield running


@contextlib.contextmanager
def connected(module: Any, relay: Any, **arguments: Any) -> Iterator[Any]:
    """Connect a client to the server; it is closed without QUIT."""
    smtp = module.SMTP("127.0.0.1", relay.port, **{"local_hostname": "client.example", **arguments})
    try:
        yield smtp
    finally:
        smtp.close()


@contextlib.contextmanager
def nothing_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[asyncio.AbstractEventLoop]]:
    """Check that every private loop is closed without a task, no thread goes on, and nothing is dropped open."""
    loops: list[asyncio.AbstractEventLoop] = []
    complaints: list[dict[str, Any]] = []
    original = SMTP._new_loop

    def new_loop() -> asyncio.AbstractEventLoop:
        loop = original()
        loop.set_exception_handler(lambda loop, context: complaints.append(context))
        loops.append(loop)
        return loop

    monkeypatch.setattr(SMTP, "_new_loop", staticmethod(new_loop))
    threads = set(threading.enumerate())
    yield loops
    gc.collect(1)  # what was dropped open says so now, and fails the test: warnings are errors
    assert all(loop.is_closed() for loop in loops)
    assert not [task for loop in loops for task in asyncio.all_tasks(loop)]
    assert not complaints
    left = set(threading.enumerate()) - threads
    for thread in left:
        thread.join(5)  # a worker of anyio's ends a moment after the loop that it worked for
    assert not any(thread.is_alive() for thread in left)
