"""The view that callers have of the socket of a connection, as smtplib's `sock`."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from typing import Any, cast

from asmtp.transport.connection import Connection
from asmtp.transport.timeouts import Timeouts

__all__ = ["SocketView"]


class SocketView:
    """A view of the socket of a connection, without reading and writing, which the connection does itself.

    Args:
        connection: the connection.
        timeout: what gettimeout() says unless settimeout() was called, in seconds.
        close: closes the connection.
    """

    __slots__ = ("_connection", "_socket", "_ssl", "_timeout", "close")

    def __init__(self, connection: Connection, timeout: float | None, close: Callable[[], object]) -> None:
        self._connection = connection
        self._socket = connection.transport.get_extra_info("socket")
        self._ssl: ssl.SSLObject | None = connection.transport.get_extra_info("ssl_object")
        self._timeout = timeout
        self.close = close

    def __getattr__(self, name: str) -> Any:
        why = ""
        if hasattr(socket.socket, name):
            why = "; what is read and written is the connection's business: there are docmd(), send() and getreply()"
        raise AttributeError(f"sock has no {name!r}{why}", name=name, obj=self)

    def settimeout(self, timeout: float | None) -> None:
        """Limit every phase on this connection from now on, in seconds; None: without limit.

        Raises:
            ValueError, TypeError: no number above 0.
        """
        self._connection.limit(Timeouts.of(timeout))

    def gettimeout(self) -> float | None:
        """Return the limit for the reply to a command, in seconds."""
        connection = self._connection
        return connection.timeouts.command if connection.limited else self._timeout

    def setsockopt(self, *args: Any) -> None:
        """Set an option of the socket."""
        self._socket.setsockopt(*args)

    def shutdown(self, how: int) -> None:
        """Shut down one half of the socket or both: the connection ends."""
        with socket.fromfd(self.fileno(), self.family, socket.SOCK_STREAM) as same:  # uvloop's view has no shutdown
            same.shutdown(how)

    def fileno(self) -> int:
        """Return the file descriptor; -1 when closed."""
        return cast("int", self._socket.fileno())

    def getpeername(self) -> Any:
        """Return the address of the server."""
        return self._socket.getpeername()

    def getsockname(self) -> Any:
        """Return our own address."""
        return self._socket.getsockname()

    def getsockopt(self, *args: int) -> int | bytes:
        """Return an option of the socket."""
        return cast("int | bytes", self._socket.getsockopt(*args))

    def getpeercert(self, binary_form: bool = False) -> Any:
        """Return the server's certificate, as ssl.SSLSocket does; None without TLS."""
        return None if self._ssl is None else self._ssl.getpeercert(binary_form)

    def cipher(self) -> tuple[str, str, int] | None:
        """Return name, protocol and secret bits of the cipher; None without TLS."""
        return None if self._ssl is None else self._ssl.cipher()

    def version(self) -> str | None:
        """Return the version of TLS; None without TLS."""
        return None if self._ssl is None else self._ssl.version()

    @property
    def family(self) -> int:
        """Return the address family."""
        return cast("int", self._socket.family)
