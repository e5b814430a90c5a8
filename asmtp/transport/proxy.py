"""Connections through a SOCKS or HTTP proxy, by python-socks."""

from __future__ import annotations

import asyncio
import re
import socket
from typing import Any

from asmtp.errors import one_line
from asmtp.protocol.envelope import ascii_domain
from asmtp.protocol.hidden import hidden

__all__ = ["check_proxy", "proxy_name", "through"]

_HOST = re.compile(r"[A-Za-z0-9._-]+|[0-9A-Fa-f:.]+(?:%[A-Za-z0-9._~-]+)?")

FOREVER = 1e9
"""Seconds: no limit of python-socks' own, as the caller has a deadline."""


def check_proxy(url: str) -> None:
    """Raise if the URL of a proxy is wrong; the error does not show it, as there may be a password in it.

    Raises:
        TypeError, ValueError: it is no such URL.
        ImportError: the extra "proxy" is not installed.
    """
    wrong: Exception
    try:
        _parsed(url)
        return
    except (TypeError, ValueError, ImportError) as error:
        wrong = error
    wrong.__context__ = None
    raise wrong.with_traceback(None)  # without the frames that hold the URL


def proxy_name(url: str) -> str:
    """Return the URL of a proxy without user name and password."""
    kind, host, port, _, _ = _parsed(url)
    return f"{kind.name.lower()}://{f'[{host}]' if ':' in host else host}:{port}"


async def through(url: str, host: str, port: int, source_address: tuple[str, int] | None = None) -> socket.socket:
    """Connect to a host through a proxy, which looks the name of the host up.

    Args:
        source_address: our address for the connection to the proxy.

    Raises:
        OSError: the proxy cannot be reached, or says no.
        ValueError: `host` is neither a name nor an IP address.
    """
    name = ascii_domain(host, "host")
    if not _HOST.fullmatch(name):  # python-socks writes it into the request as it is
        raise ValueError(f"host must be a host name or an IP address, not {host!a}")
    from python_socks import ProxyError
    from python_socks.async_.asyncio import Proxy

    url = hidden(url)
    kind, proxy_host, proxy_port, username, password = _parsed(url)
    careful: Any = _Careful(asyncio.get_running_loop())
    proxy = Proxy(kind, proxy_host, proxy_port, username, password, rdns=True, loop=careful)
    try:
        return await proxy.connect(name, port, timeout=FOREVER, local_addr=source_address)
    except ProxyError as error:
        raise ConnectionError(f"proxy {proxy_name(url)}: {one_line(error)}") from None


def _parsed(url: str) -> tuple[Any, str, int, str | None, str | None]:
    if not isinstance(url, str):
        raise TypeError(f"proxy must be a URL, not {type(url).__name__}")
    try:
        from python_socks import ProxyType, parse_proxy_url
    except ImportError as error:
        raise ImportError("proxy= needs python-socks: pip install 'asmtp[proxy]'") from error
    try:
        kind, host, port, username, password = parse_proxy_url(url)
    except ValueError:
        host = ""
    if not host:
        raise ValueError(
            "proxy must be a URL, socks5://, socks4:// or http:// with host and port, user name and password "
            "percent-encoded"
        )
    if username and kind is ProxyType.HTTP and ":" in username:  # RFC 7617 §2
        raise ValueError("proxy: an HTTP proxy's user name cannot have a colon")
    encoding = "latin-1" if kind is ProxyType.HTTP else "ascii"
    if not all(_fits(text, encoding) for text in (username, password) if text):
        raise ValueError(f"proxy: user name or password has characters that are not {encoding}")
    return kind, host, port, username or None, hidden(password or None)


def _fits(text: str, encoding: str) -> bool:
    try:
        text.encode(encoding)
    except UnicodeEncodeError:  # the error holds all of the text
        return False
    return True


class _Careful:
    """The event loop for python-socks, with a `sock_recv` that does not read too much.

    python-socks reads the answer of an HTTP proxy with one large read, which may take the server's greeting with it.
    Here such a read ends with the empty line at the end of the answer.
    """

    LARGE = 1024

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    async def sock_recv(self, sock: socket.socket, size: int) -> bytes:
        if size < self.LARGE:
            return await self._loop.sock_recv(sock, size)
        answer = b""
        while not answer.endswith(b"\r\n\r\n") and len(answer) < size:
            octet = await self._loop.sock_recv(sock, 1)
            if not octet:
                break
            answer += octet
        return answer
