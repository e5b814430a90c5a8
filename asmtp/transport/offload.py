"""What would block the loop is called in a thread; at the end of the program, where none can be had, in its place."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import anyio.to_thread

__all__ = ["call_in_thread", "ending", "resolve"]

T = TypeVar("T")


def ending() -> bool:
    """Whether the main thread has ended: Python starts no threads any more (3.12), and no executors."""
    return not threading.main_thread().is_alive()


async def call_in_thread(function: Callable[..., T], *args: Any, abandon: bool = False) -> T:
    """Call a function in a thread.

    Args:
        abandon: who is cancelled does not wait for it.
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
            # The program ends just now: no thread could be started.
    return function(*args)


async def resolve(host: str, port: int) -> list[tuple[Any, ...]]:
    """The addresses of a host, without blocking the loop."""
    literal = _literal(host, port)
    if literal is not None:
        return [literal]
    if not ending():
        try:
            return await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except RuntimeError:  # as above; a resolver raises none
            pass
    return list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))


def _literal(host: str, port: int) -> tuple[Any, ...] | None:
    """What a resolver says of an address; None where it has to be asked."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv4Address):
        return socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (str(address), port)
    if address.scope_id is not None:  # the name of an interface
        return None
    return socket.AF_INET6, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (str(address), port, 0, 0)
