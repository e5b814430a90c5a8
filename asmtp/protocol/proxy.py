"""The PROXY protocol (HAProxy's proxy-protocol.txt, versions 1 and 2): the client's address, in front of all else."""

from __future__ import annotations

import ipaddress
import struct
from dataclasses import dataclass
from typing import Any

__all__ = ["ProxyHeader"]

_SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"  # of version 2
_VERSION_2, _LOCAL, _PROXY, _STREAM_4, _STREAM_6 = 0x20, 0x00, 0x01, 0x11, 0x21


@dataclass(frozen=True, slots=True)
class ProxyHeader:
    """The header by which a proxy tells the server behind it who the client is.

    Attributes:
        version: 1 (a line of text) or 2 (binary).
        source, destination: (IP address, port) of the client and of the server, both of one family; None: the
            addresses of the connection itself.

    Raises:
        ValueError, TypeError: an attribute is wrong.
    """

    version: int = 2
    source: tuple[str, int] | None = None
    destination: tuple[str, int] | None = None

    def __post_init__(self) -> None:
        if self.version not in (1, 2):
            raise ValueError(f"proxy_protocol: the version must be 1 or 2, not {self.version!r}")
        for name in ("source", "destination"):
            value = getattr(self, name)
            if value is not None:
                _checked(value, name)
        if self.source and self.destination and (":" in self.source[0]) != (":" in self.destination[0]):
            raise ValueError("proxy_protocol: source and destination must be of one family, IPv4 or IPv6")

    @classmethod
    def of(cls, value: Any) -> ProxyHeader:
        """Make a header of a version; a header stays as it is.

        Raises:
            ValueError, TypeError: `value` is neither.
        """
        if isinstance(value, cls):
            return value
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"proxy_protocol must be 1, 2 or a ProxyHeader, not {type(value).__name__}")
        return cls(value)

    def encode(self, source: Any, destination: Any) -> bytes:
        """Return the header's octets.

        Args:
            source, destination: the connection's own addresses, as sockets have them.  Those of a Unix socket cannot be
                told: the header says so.
        """
        source, destination = self.source or source, self.destination or destination
        addresses = [address for address in (source, destination) if isinstance(address, tuple)]
        families = {":" in address[0] for address in addresses}
        if len(addresses) < 2 or len(families) > 1:
            return b"PROXY UNKNOWN\r\n" if self.version == 1 else _SIGNATURE + bytes([_VERSION_2 | _LOCAL, 0, 0, 0])
        six = families.pop()
        (client, client_port), (server, server_port) = ((a[0].partition("%")[0], a[1]) for a in addresses)
        if self.version == 1:
            family = "TCP6" if six else "TCP4"
            return f"PROXY {family} {client} {server} {client_port} {server_port}\r\n".encode("ascii")
        body = ipaddress.ip_address(client).packed + ipaddress.ip_address(server).packed
        body += struct.pack("!HH", client_port, server_port)
        family_and_kind = _STREAM_6 if six else _STREAM_4
        return _SIGNATURE + struct.pack("!BBH", _VERSION_2 | _PROXY, family_and_kind, len(body)) + body


def _checked(value: Any, name: str) -> None:
    if not isinstance(value, tuple) or len(value) != 2 or not isinstance(value[0], str):
        raise TypeError(f"proxy_protocol: {name} must be (IP address, port)")
    try:
        ipaddress.ip_address(value[0])
    except ValueError:
        raise ValueError(f"proxy_protocol: {name} must be an IP address and a port, not {value[0]!a}") from None
    if isinstance(value[1], bool) or not isinstance(value[1], int) or not 0 <= value[1] <= 65535:
        raise ValueError(f"proxy_protocol: the port of {name} must be a number from 0 to 65535, not {value[1]!r}")
