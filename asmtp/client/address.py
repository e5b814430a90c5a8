"""Hosts and ports, as callers write them: checked before anything is done with them."""

from __future__ import annotations

from smtplib import LMTP_PORT, SMTP_PORT, SMTP_SSL_PORT
from typing import Any, cast

from asmtp.protocol.command import gate, spelt_out

__all__ = ["LMTP_PORT", "SMTP_PORT", "SMTP_SSL_PORT", "check_address", "check_port", "check_source", "host_and_port"]


def check_address(host: Any, port: Any) -> tuple[str, int]:
    """Return host and port; take a port in a str, and None for a value that is not given, as smtplib does.

    Raises:
        ValueError, TypeError: one of them is wrong.
    """
    host = gate(spelt_out(host or ""), "host")
    if port is None:
        port = 0
    if isinstance(port, str):
        port = gate(port, "port")
        if not (port.isascii() and port.isdecimal()):
            return host, cast("int", port)  # the name of a service, which the resolver knows
        return host, int(port)
    check_port(port, "port")
    return host, port


def check_port(port: Any, argument: str) -> None:
    """Raise if `port` is no number of a port, or 0 for the default.

    Raises:
        ValueError, TypeError: it is none; the error names `argument`.
    """
    if isinstance(port, bool) or not isinstance(port, int):
        raise TypeError(f"{argument} must be int, not {type(port).__name__}")
    if not 0 <= port <= 65535:
        raise ValueError(f"{argument} must be a number from 0 to 65535, not {port}")


def check_source(address: Any) -> None:
    """Raise if `address` is neither None nor (host, port), as `source_address` has to be.

    Raises:
        ValueError, TypeError: it is neither.
    """
    if not address and not isinstance(address, int):
        return
    if not isinstance(address, tuple | list) or len(address) != 2:
        raise TypeError("source_address must be (host, port)")
    host, port = address
    gate(host, "source_address: host")
    check_port(port, "source_address: port")


def host_and_port(host: str, port: int, default: int) -> tuple[str, int]:
    """Read "host:port" as smtplib does.

    Raises:
        OSError: the port is not a number.
    """
    if not port and host.count(":") == 1:
        host, _, text = host.partition(":")
        try:
            port = int(text)
        except ValueError:
            raise OSError("nonnumeric port") from None
    return host, port or default
