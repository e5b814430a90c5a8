"""Name look-up that does not block the loop."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from typing import Any

from asmtp.transport.offload import ending

__all__ = ["resolve"]


async def resolve(host: str, port: int) -> list[tuple[Any, ...]]:
    """Return the addresses of a host, as `socket.getaddrinfo` does, without blocking the loop."""
    literal = _literal(host, port)
    if literal is not None:
        return [literal]
    if not ending():
        try:
            return await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except RuntimeError:  # the program is just ending: no thread could be started; a resolver raises none
            pass
    return list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))


def _literal(host: str, port: int) -> tuple[Any, ...] | None:
    """Return the answer of a resolver for an IP address; None if the resolver has to be asked."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv4Address):
        return socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (str(address), port)
    if address.scope_id is not None:  # it names an interface
        return None
    return socket.AF_INET6, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (str(address), port, 0, 0)
