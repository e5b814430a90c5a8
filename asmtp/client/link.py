"""One connection of a client: its settings and its session, how it is made, and how it is closed."""

from __future__ import annotations

import asyncio
import functools
import ssl
import sys
from collections.abc import Awaitable, Callable, Generator
from typing import TYPE_CHECKING, Any, TypeVar

from asmtp.client.address import SMTP_PORT, SMTP_SSL_PORT, check_address, check_source, host_and_port
from asmtp.client.environment import Environment
from asmtp.client.events import EventLog, clock, show
from asmtp.errors import SMTPProtocolError, SMTPServerDisconnected, SMTPStateError
from asmtp.protocol import dialogue
from asmtp.protocol.chunking import RelayChunking
from asmtp.protocol.exchange import Dialogue, Exchange
from asmtp.protocol.proxy import ProxyHeader
from asmtp.protocol.reply import Reply
from asmtp.protocol.session import DEFAULT_WINDOW, DEFAULT_WINDOW_OCTETS, Session
from asmtp.protocol.state import Chunking
from asmtp.transport.connect import Address, open_connection
from asmtp.transport.connection import Connection
from asmtp.transport.socketview import SocketView
from asmtp.transport.timeouts import Timeouts
from asmtp.transport.tls import ResumingContext, SessionCache, default_context, tls_is_meant

if TYPE_CHECKING:
    from asmtp.auth.selection import Logins
    from asmtp.client.settings import ConnectionSettings, TLSMode

__all__ = ["Link"]

T = TypeVar("T")


class Link:
    """The base of every client: one connection after the other, with the same settings.

    The client of a pool's connection overrides one step of it, `_made`.  The facade's client,
    :class:`~asmtp.sync.client.BlockingClient`, overrides `_made`, `_greet`, `_open`, `_run`, `_new_session`, `_shown`
    and `_audit`, and sets `_as_smtplib`, `_called`, `_environment`, `_session_class` and `_connection_class`.  Nothing
    else is meant to be overridden.
    """

    default_port = SMTP_PORT
    default_tls: TLSMode | None = None
    ehlo_msg = "ehlo"
    lmtp = False
    _called = ""  # the name of the class in errors, if it is not the class's own
    _as_smtplib = False  # the caller judges the greeting, and says EHLO after STARTTLS
    _session_class: type[Session] = Session
    _connection_class: type[Connection] = Connection
    _environment = Environment()
    # For the `repr` of an object whose constructor has raised.
    _host = ""
    _port = 0
    _connection: Connection | None = None

    def _set_up(self, host: str, port: int, settings: ConnectionSettings, sock: Any = None) -> None:
        """Take settings that were checked already."""
        self._host, self._port = host, port
        self._settings = settings
        self.local_hostname = settings.local_hostname
        self.timeouts = settings.timeouts or Timeouts()
        self.source_address = settings.source_address
        self.ssl_context = settings.ssl_context
        self.chunking = settings.chunking
        self._logs_in = settings.username is not None or settings.mechanisms is not None
        default: TLSMode = "required" if self._logs_in else "none"
        self._tls: TLSMode = settings.tls or self.default_tls or default
        header = settings.proxy_protocol
        self._proxy_header = None if header is None else ProxyHeader.of(header)
        self._sock = sock
        self._sessions = SessionCache()
        self._logins: Logins | None = None  # the connections of a pool share one
        self._tls_context: ResumingContext | None = None  # of the last handshake
        self._relay_chunking = RelayChunking()
        self.command_encoding = "ascii"
        self.helo_resp: bytes | None = None
        self.ehlo_resp: bytes | None = None
        self._trace: Callable[[str, bytes], None] | None = None
        self._event_log: EventLog | None = None
        self._session = self._new_session()
        self._connection = None
        self._preparing: asyncio.Task[Any] | None = None  # the task that is in connect()
        self._sock_taken = False
        self._greeted = asyncio.Lock()
        self._rcpts = 0

    def _new_session(self) -> Session:
        settings = self._settings
        session = self._session_class(
            lmtp=self.lmtp,
            pipelining=settings.pipelining,
            window=settings.window or DEFAULT_WINDOW,
            window_octets=settings.window_octets or DEFAULT_WINDOW_OCTETS,
        )
        session.display.trace = self._shown(self._trace)
        session.display.observer = self._event_log
        return session

    # ---- what is known ----------------------------------------------------------------------

    @property
    def is_connected(self) -> bool:
        """True if commands can be sent."""
        return self._connection is not None and self._session.writable and self._preparing is None

    @property
    def sock(self) -> SocketView | None:
        """Return a view of the socket; None without a connection."""
        if not self.is_connected or self._connection is None:
            return None
        return SocketView(self._connection, self.timeouts.command, self.close)

    @property
    def trace(self) -> Callable[[str, bytes], None] | None:
        """Return a function that is called with ``">"`` and octets that are written, and with ``"<"`` and each reply.

        Credentials are not shown.  An exception is logged.
        """
        return self._trace

    @trace.setter
    def trace(self, function: Callable[[str, bytes], None] | None) -> None:
        self._trace = function
        self._session.display.trace = self._shown(function)

    def _shown(self, trace: Callable[[str, bytes], None] | None) -> Callable[[str, bytes], None] | None:
        """Return the function for the session, which may not raise in the middle of what the server said."""
        return None if trace is None else functools.partial(show, "trace", trace)

    def __repr__(self) -> str:
        state = self._session.state.name.lower() if self._connection is not None else "not connected"
        return f"<{type(self).__module__}.{type(self).__name__} {self._host}:{self._port} {state}>"

    # ---- making it, and closing it ------------------------------------------------------------

    async def _open(self, host: str, port: int, source_address: tuple[str, int] | None) -> Reply:
        """Connect and read the greeting."""
        host, port = check_address(host, port)
        check_source(source_address)
        if source_address:
            self.source_address = source_address
        before = self._host, self._port
        self._host, self._port = self._where(host, port)
        if before[1] and before != (self._host, self._port):
            self._relay_chunking = RelayChunking()
        where = self._host if self._host.startswith("/") else f"{self._host}:{self._port}"
        self._event_log = EventLog.of(where, self._settings.on_event)
        self._forget()
        self._keep_chunking(self._session, asyncio.get_running_loop())
        self._audit("smtplib.connect", self._host, self._port)
        context = None
        if self._tls == "implicit":
            context = self._tls_context = ResumingContext(await self._context(), self._sessions)
        # Before there is a connection: the server's first octets may come with it.
        greeting = self._greet()
        begun = clock()
        connection = await self._connect(context)
        if context is not None:
            self._tell_of_tls(connection, begun)
        try:
            reply = await connection.finished(greeting)
        except SMTPServerDisconnected as error:
            told = error if context is not None else tls_is_meant(error, self._port)
            if told is error:
                raise
            raise told from error
        if self._event_log is not None:
            self._event_log.connected(reply, clock() - begun)
        return reply

    def _where(self, host: str, port: int) -> tuple[str, int]:
        """Return host and port to connect to: by default those of the constructor, or of the last call."""
        if not host:
            if self._sock_taken:
                raise SMTPStateError("the socket given to the constructor was used: a host is needed to connect again")
            host, port = self._host or "localhost", port or self._port
        if host.startswith("/"):
            return host, port
        implied = self._tls == "implicit" and self.default_port == SMTP_PORT
        return host_and_port(host, port, SMTP_SSL_PORT if implied else self.default_port)

    async def _context(self) -> ssl.SSLContext:
        """Return the context for TLS."""
        if self.ssl_context is not None:
            return self.ssl_context
        return await self._environment.offload(default_context)

    async def _connect(self, context: ResumingContext | None) -> Connection:
        address: Address = self._host if self._host.startswith("/") else (self._host, self._port)
        connection = self._connection = self._connection_class(self._session, self.timeouts)
        self._made(connection)
        await open_connection(
            connection,
            address,
            source_address=self.source_address,
            ssl_context=context,
            server_hostname=self._settings.server_hostname or self._host,
            sock=self._sock,
            proxy=self._settings.proxy,
            proxy_header=self._proxy_header,
            resolver=self._environment.resolve,
        )
        self._sock_taken = self._sock is not None
        self._sock = None
        return connection

    def _greet(self) -> Exchange[Reply]:
        """Start the exchange that awaits the greeting of the server."""
        return self._session.start(dialogue.greeting())

    def _keep_chunking(self, session: Session, loop: asyncio.AbstractEventLoop) -> None:
        """Tell a new session what the relay has shown of BDAT, and remember what this connection shows."""
        relay = self._relay_chunking
        if loop.time() < relay.doubted_until:
            session.chunking = Chunking.NOT_SHOWN
        session.on_chunking = lambda: relay.heed(session.chunking, loop.time())

    def _made(self, connection: Connection) -> None:
        """Prepare a connection that was made just now, and is not connected yet."""
        if self._event_log is not None:
            connection.on_closed = self._event_log.closed

    def _tell_of_tls(self, connection: Connection, begun: float) -> None:
        if self._event_log is not None:
            self._event_log.secured(connection.tls, clock() - begun)

    def _audit(self, event: str, *args: Any) -> None:
        """Call the audit hooks of Python, as smtplib does."""
        sys.audit(event, self, *args)

    def _forget(self) -> None:
        self._session = self._new_session()
        self._tls_context = None
        self._greeted = asyncio.Lock()  # a lock belongs to one loop, and the next connection may be on another
        self.helo_resp = self.ehlo_resp = None
        self.command_encoding = "ascii"

    def close(self) -> Awaitable[None]:
        """Close at once, without QUIT.

        The connection is closed when the call returns.  Await the result to wait until the socket is released, too.
        """
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
        return _Released(connection)

    def _live(self) -> Connection:
        connection = self._connection
        if connection is None and isinstance(self._session.error, SMTPProtocolError):
            raise self._session.disconnected()  # it broke between two calls, and no call has raised that
        if connection is None or (self._preparing is not None and self._preparing is not asyncio.current_task()):
            raise SMTPServerDisconnected("please run connect() first")
        return connection

    async def _run(self, what: Dialogue[T], *, alone: bool = False, raw: bool = False) -> T:
        return await self._live().run(what, alone=alone, raw=raw)


class _Released:
    """The result of `close`, which callers may await, but need not."""

    def __init__(self, connection: Connection | None) -> None:
        self._connection = connection

    def __await__(self) -> Generator[Any, None, None]:
        if self._connection is not None:
            yield from self._connection.wait_closed().__await__()
