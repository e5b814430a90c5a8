"""The PROXY protocol's header, as its document has it."""

from __future__ import annotations

from typing import Any

import pytest

from asmtp.protocol.proxy import ProxyHeader

SIGNATURE = b"\x0d\x0a\x0d\x0a\x00\x0d\x0a\x51\x55\x49\x54\x0a"
FOUR = (("192.0.2.1", 56324), ("198.51.100.7", 25))
SIX = (("2001:db8::1", 56324, 0, 0), ("2001:db8::2", 25, 0, 0))


def test_version_1() -> None:
    assert ProxyHeader(1).encode(*FOUR) == b"PROXY TCP4 192.0.2.1 198.51.100.7 56324 25\r\n"
    assert ProxyHeader(1).encode(*SIX) == b"PROXY TCP6 2001:db8::1 2001:db8::2 56324 25\r\n"


def test_version_2() -> None:
    four = b"\x21\x11\x00\x0c" + b"\xc0\x00\x02\x01\xc6\x33\x64\x07" + b"\xdc\x04\x00\x19"
    assert ProxyHeader().encode(*FOUR) == SIGNATURE + four
    address = b"\x20\x01\x0d\xb8" + bytes(11)
    six = b"\x21\x21\x00\x24" + address + b"\x01" + address + b"\x02" + b"\xdc\x04\x00\x19"
    assert ProxyHeader(2).encode(*SIX) == SIGNATURE + six


@pytest.mark.parametrize("addresses", [("", "/run/lmtp"), ("", b"\0abstract"), (FOUR[0], SIX[1])])
def test_addresses_that_cannot_be_told(addresses: Any) -> None:
    """The addresses of a Unix socket cannot be told, nor two of different families."""
    assert ProxyHeader(1).encode(*addresses) == b"PROXY UNKNOWN\r\n"
    assert ProxyHeader(2).encode(*addresses) == SIGNATURE + b"\x20\x00\x00\x00"


def test_other_addresses() -> None:
    header = ProxyHeader(1, source=("203.0.113.5", 1000))
    assert header.encode(*FOUR) == b"PROXY TCP4 203.0.113.5 198.51.100.7 1000 25\r\n"
    header = ProxyHeader(1, source=("203.0.113.5", 1000), destination=("203.0.113.6", 587))
    assert header.encode("", "/run/lmtp") == b"PROXY TCP4 203.0.113.5 203.0.113.6 1000 587\r\n"


def test_an_address_with_a_zone() -> None:
    zone = ("fe80::1%eth0", 1, 0, 2)
    assert ProxyHeader(1).encode(zone, zone) == b"PROXY TCP6 fe80::1 fe80::1 1 1\r\n"


def test_what_it_is_made_of() -> None:
    assert ProxyHeader.of(1) == ProxyHeader(1)
    header = ProxyHeader(2, source=("192.0.2.1", 1))
    assert ProxyHeader.of(header) is header


@pytest.mark.parametrize(
    ("arguments", "kind", "why"),
    [
        ((3,), ValueError, "proxy_protocol: the version must be 1 or 2, not 3"),
        ((1, "192.0.2.1"), TypeError, r"proxy_protocol: source must be \(IP address, port\)"),
        (
            (1, ("mx.example", 25)),
            ValueError,
            "proxy_protocol: source must be an IP address and a port, not 'mx.example'",
        ),
        ((1, ("192.0.2.1\r\n", 25)), ValueError, "proxy_protocol: source must be an IP address"),
        ((1, None, ("192.0.2.1", 65536)), ValueError, "proxy_protocol: the port of destination must be a number"),
        ((1, None, ("192.0.2.1", "25")), ValueError, "proxy_protocol: the port of destination must be a number"),
        ((2, ("192.0.2.1", 1), ("::1", 1)), ValueError, "proxy_protocol: source and destination must be of one family"),
    ],
)
def test_what_cannot_be_a_header(arguments: Any, kind: type[Exception], why: str) -> None:
    with pytest.raises(kind, match=f"^{why}"):
        ProxyHeader(*arguments)


@pytest.mark.parametrize("value", ["2", True, 2.0])
def test_what_cannot_be_an_option(value: Any) -> None:
    with pytest.raises(TypeError, match="^proxy_protocol must be 1, 2 or a ProxyHeader, not "):
        ProxyHeader.of(value)
