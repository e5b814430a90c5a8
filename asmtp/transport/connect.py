"""Connecting: over TCP, a Unix socket, a proxy, or by a socket that is connected already."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import socket
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, cast

import aiohappyeyeballs
import anyio

from asmtp.errors import SMTPTimeoutError
from asmtp.protocol.envelope import ascii_domain
from asmtp.protocol.proxy import ProxyHeader
from asmtp.transport.proxy import through
from asmtp.transport.resolve import resolve
from asmtp.transport.tls import ResumingContext, raise_tls_error

if TYPE_CHECKING:
    from asmtp.transport.connection import Connection

__all__ = ["THIS_MACHINE", "Address", "Resolver", "local_hostname", "open_connection"]

Address = tuple[str, int] | str
"""(host, port), or the path of a Unix socket."""

Resolver = Callable[[str, int], Awaitable[list[tuple[Any, ...]]]]

HAPPY_EYEBALLS_DELAY = 0.25
"""Seconds before the next address is tried as well (RFC 8305 §8)."""

THIS_MACHINE = "[127.0.0.1]"
"""The name for EHLO if no better one is known."""

_DOMAIN = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?(?:\.|\Z))+")  # RFC 5321 §4.1.2


class _BeforeTLS(asyncio.Protocol):
    """The protocol of a transport until there is TLS on it: it keeps what comes early, for the handshake."""

    def __init__(self) -> None:
        self.said = b""

    def data_received(self, data: bytes) -> None:
        self.said += data


def local_hostname() -> str:
    """Return the name of this machine for EHLO: its full name, else an address literal (RFC 5321 §4.1.4).  Blocks.

    A machine may have a name that is no domain (`my_host.lan`), or that cannot even be looked up.
    """
    try:
        name = ascii_domain(socket.getfqdn().removesuffix("."), "local_hostname")
    except ValueError:  # a UnicodeError too
        name = ""
    if "." in name and _DOMAIN.fullmatch(name):
        return name
    try:
        address = socket.gethostbyname(socket.gethostname())
    except (OSError, UnicodeError):
        return THIS_MACHINE
    return f"[{address}]"


async def open_connection(
    connection: Connection,
    address: Address,
    *,
    source_address: tuple[str, int] | None = None,
    ssl_context: ResumingContext | None = None,
    server_hostname: str | None = None,
    sock: socket.socket | None = None,
    proxy: str | None = None,
    proxy_header: ProxyHeader | None = None,
    resolver: Resolver = resolve,
) -> None:
    """Connect, over TCP (happy eyeballs, RFC 8305), a Unix socket, or a socket that is connected already.

    Args:
        connection: gets the transport.  It can be closed at any moment meanwhile.
        ssl_context: TLS from the first octet.
        server_hostname: the name that the certificate has to be for.
        proxy: the URL of a proxy to go through.
        proxy_header: the header of the PROXY protocol to send first.

    Raises:
        OSError: no connection; as the system says it.
        SMTPTimeoutError: no connection within `timeouts.connect` seconds.
        ssl.SSLError: the TLS handshake failed.
    """
    limit = connection.timeouts.connect
    try:
        if sock is None:
            with anyio.fail_after(limit):
                if proxy is None:
                    sock = await _connect(address, source_address, resolver)
                else:
                    sock = await _through_proxy(proxy, address, source_address)
                    connection.proxied = True
        await _prepare(sock, proxy_header)
        begin = (lambda: connection) if ssl_context is None else _BeforeTLS
        transport, first = await asyncio.get_running_loop().create_connection(begin, sock=sock)
    except BaseException as error:
        connection.connection_lost(None)
        if connection.begun:  # the socket is the transport's
            connection.transport.abort()
            raise
        if sock is not None:
            sock.close()
            raise_tls_error(error, connection.timeouts.tls, ssl_context)
        _raise_timeout(error, address, limit)
        raise
    if ssl_context is not None:
        connection.connection_made(transport)
        await connection.wrap(ssl_context, server_hostname, cast("_BeforeTLS", first).said)
        connection.session.secure = ssl_context.verifies


def _raise_timeout(error: BaseException, address: Address, limit: float | None) -> None:
    """Raise SMTPTimeoutError if `error` is that of our own limit, and not the system's."""
    if type(error) is TimeoutError and error.errno is None and limit is not None:
        where = address if isinstance(address, str) else f"{address[0]}:{address[1]}"
        raise SMTPTimeoutError(f"timed out: no connection to {where} within {limit:g} seconds") from None


async def _prepare(sock: socket.socket, proxy_header: ProxyHeader | None) -> None:
    """Set the options of a connected socket, and send the header of the PROXY protocol."""
    if sock.family in (socket.AF_INET, socket.AF_INET6):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setblocking(False)
    if proxy_header is not None:
        header = proxy_header.encode(sock.getsockname(), sock.getpeername())
        await asyncio.get_running_loop().sock_sendall(sock, header)


async def _through_proxy(proxy: str, address: Address, source_address: tuple[str, int] | None) -> socket.socket:
    if isinstance(address, str):
        raise ValueError("proxy: a Unix socket cannot be reached through one")
    return await through(proxy, *address, source_address)


async def _connect(address: Address, source_address: tuple[str, int] | None, resolver: Resolver) -> socket.socket:
    if isinstance(address, str):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.setblocking(False)
        try:
            await _connect_unix(sock, address)
        except BaseException:
            sock.close()
            raise
        return sock
    infos = await _look_up(resolver, *address, "host")
    local = None
    if source_address:
        # The source address decides the family: only the server's addresses of that family can be reached.
        given, port = source_address
        local = await _look_up(resolver, given, port, "source_address") if given else _any_source(infos, port)
    delay = HAPPY_EYEBALLS_DELAY if len(infos) > 1 else None
    attempts: Any = _Attempts(asyncio.get_running_loop())
    try:
        sock = await aiohappyeyeballs.start_connection(
            cast("Any", infos), local_addr_infos=cast("Any", local), happy_eyeballs_delay=delay, loop=attempts
        )
    except OSError as error:
        if error.errno is not None or not attempts.failures:
            raise
        # The constructor makes the subclass that belongs to the errno.
        raise OSError(attempts.telling, str(error)) from None
    if _is_its_own_peer(sock):
        sock.close()
        raise ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
    return sock


def _is_its_own_peer(sock: socket.socket) -> bool:
    """Return whether TCP has connected a socket to itself: it was given the port that it was to connect to."""
    try:
        return cast("bool", sock.getsockname() == sock.getpeername())
    except OSError:  # the server has ended the connection already
        return False


async def _connect_unix(sock: socket.socket, path: str) -> None:
    """Connect to a Unix socket; if too many clients wait there (Linux says EAGAIN), as soon as there is room.

    `loop.sock_connect` would take EAGAIN for a connection that is being made, and the socket for connected.
    """
    pause = 0.001
    while True:
        try:
            sock.connect(path)
        except BlockingIOError:
            await asyncio.sleep(pause)
            pause = min(2 * pause, 0.1)
        else:
            return


async def _look_up(resolver: Resolver, host: str, port: int, argument: str) -> list[tuple[Any, ...]]:
    try:
        return await resolver(host, port)
    except UnicodeError as error:  # of Python's idna codec; a ValueError
        raise UnicodeError(f"{argument}: no host name: {host!a}") from error


class _Attempts:
    """The event loop for aiohappyeyeballs, which keeps the reasons why addresses could not be reached.

    Attributes:
        failures: the errno of each address that failed.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.failures: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    async def sock_connect(self, sock: socket.socket, address: Any) -> None:
        try:
            await self._loop.sock_connect(sock, address)
        except OSError as error:
            self.failures.append(error.errno or 0)
            raise

    @property
    def telling(self) -> int:
        """Return the errno that says most: a server that refuses is there; a family without a route says nothing."""
        return max(reversed(self.failures), key=lambda number: (number == errno.ECONNREFUSED, number not in _NO_WAY))


_NO_WAY = {
    0, errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.EINVAL,
}  # fmt: skip
"""Errors of addresses to which no packet could even be sent."""


def _any_source(infos: list[tuple[Any, ...]], port: int) -> list[tuple[Any, ...]]:
    wildcard = {socket.AF_INET: "0.0.0.0", socket.AF_INET6: "::"}
    families = dict.fromkeys(info[0] for info in infos)
    return [(family, socket.SOCK_STREAM, 0, "", (wildcard[family], port)) for family in families]
