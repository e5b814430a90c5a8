"""Name look-up that does not block the loop."""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import Any

import pytest

from asmtp.transport.resolve import resolve
from tests.transport.test_offload import Ended


@pytest.mark.parametrize(
    ("host", "family", "address"),
    [
        ("127.0.0.1", socket.AF_INET, ("127.0.0.1", 25)),
        ("::1", socket.AF_INET6, ("::1", 25, 0, 0)),
        ("2001:DB8:0::5", socket.AF_INET6, ("2001:db8::5", 25, 0, 0)),
    ],
)
def test_an_address_needs_no_resolver(host: str, family: int, address: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    said = socket.getaddrinfo(host, 25, type=socket.SOCK_STREAM)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **options: pytest.fail("asked"))
    assert asyncio.run(resolve(host, 25)) == said == [(family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", address)]


async def unscheduled(*args: Any, **options: Any) -> None:
    raise RuntimeError("cannot schedule new futures after shutdown")


@pytest.mark.parametrize("how", ["before", "at the end", "just now"])
@pytest.mark.parametrize("host", ["localhost", "fe80::1%lo"])
def test_a_name(host: str, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if how == "at the end":
        monkeypatch.setattr(threading, "main_thread", Ended)
    asked: list[Any] = []

    def getaddrinfo(*args: Any, **options: Any) -> list[Any]:
        asked.append((threading.current_thread() is here, args[:2], options.get("type", args[-1])))
        return ["address"]

    async def look_up() -> Any:
        if how == "just now":
            monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", unscheduled)
        return await resolve(host, 25)

    here = threading.current_thread()
    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    assert asyncio.run(look_up()) == ["address"]
    ((in_its_place, where, _),) = asked
    assert (in_its_place, where) == (how != "before", (host, 25))


async def test_resolve_gives_stream_addresses_alone() -> None:
    infos = await resolve("127.0.0.1", 25)
    assert {info[1] for info in infos} == {socket.SOCK_STREAM}
    assert infos[0][4] == ("127.0.0.1", 25)
