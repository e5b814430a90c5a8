"""Fixtures for all tests of driven clients."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from asmtp.sync.client import BlockingClient
from tests.sync.driven import Facade


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.SelectorEventLoop()
    complaints: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda loop, context: complaints.append(context))
    threads = set(threading.enumerate())
    yield loop
    assert asyncio._get_running_loop() is None
    assert not asyncio.all_tasks(loop)
    loop.close()
    gc.collect(1)
    assert not complaints
    assert set(threading.enumerate()) <= threads  # an earlier test's worker of anyio's may end meanwhile


@pytest.fixture
def facade(loop: asyncio.AbstractEventLoop) -> Iterator[Facade]:
    made = Facade(loop, BlockingClient(local_hostname="client.example"))
    yield made
    made.close()
