"""Hosts and ports, as callers write them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import asmtp
from asmtp import AsyncSMTP
from asmtp.client.address import check_address, host_and_port


class Lazy:
    """As Django's lazy strings: no str, but with its methods."""

    def __str__(self) -> str:
        return "127.0.0.1"

    encode = partition = None


@pytest.mark.parametrize(
    ("host", "port", "result"),
    [
        ("mx.example", 0, ("mx.example", 25)),
        ("mx.example", 587, ("mx.example", 587)),
        ("mx.example:587", 0, ("mx.example", 587)),
        ("::1", 0, ("::1", 25)),
        ("fe80::1", 587, ("fe80::1", 587)),
    ],
)
def test_host_and_port(host: str, port: int, result: tuple[str, int]) -> None:
    assert host_and_port(host, port, 25) == result


@pytest.mark.parametrize("host", ["mx.example:", "mx.example:smtp"])
def test_a_port_that_is_no_number(host: str) -> None:
    with pytest.raises(OSError, match="nonnumeric port"):
        host_and_port(host, 0, 25)


@pytest.mark.parametrize("port", ["2525", 2525])
@pytest.mark.parametrize("host", ["127.0.0.1", Lazy()])
def test_a_port_out_of_the_environment(host: Any, port: Any) -> None:
    assert check_address(host, port) == ("127.0.0.1", 2525)


def test_what_is_not_given_and_what_a_resolver_knows() -> None:
    cases: list[Any] = [(None, None), ("", 0), ("mx.example", "smtp")]
    assert [check_address(*case) for case in cases] == [("", 0), ("", 0), ("mx.example", "smtp")]


@pytest.mark.parametrize("name", ["x..example", f"{'x' * 64}.example"])
def test_a_name_that_no_resolver_takes(name: str) -> None:
    for given in ({"host": name}, {"source_address": (name, 0)}):
        arguments: Any = {"host": "127.0.0.1", "port": 1, **given}
        argument = next(iter(given))
        with pytest.raises(UnicodeError, match=f"^{argument}: no host name: '{name}'"):
            asyncio.run(AsyncSMTP(**arguments).connect())
        with pytest.raises(UnicodeError, match=f"^{argument}: no host name: '{name}'"):
            asmtp.SMTP(**arguments)
