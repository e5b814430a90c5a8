"""A facade of the least: a loop, and a client that is driven on it."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from asmtp.sync.client import BlockingClient
from asmtp.sync.driver import drive


class Facade:
    """The least that there can be of one."""

    def __init__(self, loop: asyncio.AbstractEventLoop, client: BlockingClient) -> None:
        self.loop = loop
        self.client = client
        client.facade = lambda: self

    def connect(self, host: str, port: int) -> Any:
        return self.loop.run_until_complete(self.client.connect(host, port))

    def __call__(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return drive(self.loop, self.client, coroutine)

    def close(self) -> None:
        released = self.client.close()

        async def wait() -> None:
            await released

        self.loop.run_until_complete(wait())
