"""The async clients as the blocking facade drives them."""

from __future__ import annotations

import asyncio
import functools
import os
import socket
import sys
import types
from collections import deque
from collections.abc import Callable, Generator
from typing import Any, TypeVar, cast

from asmtp.auth.selection import Candidate, Mechanisms
from asmtp.client.environment import Environment
from asmtp.client.smtp import AsyncLMTP, AsyncSMTP, AsyncSMTP_SSL
from asmtp.protocol import dialogue
from asmtp.protocol.exchange import Dialogue, Exchange, ExchangeState, Group
from asmtp.protocol.hidden import hidden
from asmtp.protocol.reply import Reply
from asmtp.protocol.sasl import SASLExchange
from asmtp.protocol.session import Session
from asmtp.protocol.state import HELD
from asmtp.sync.driver import DrivenConnection, without_loop
from asmtp.transport.connection import Connection
from asmtp.transport.socketview import SocketView

__all__ = ["BlockingClient", "BlockingSSLClient", "BlockingLMTPClient"]

T = TypeVar("T")


@types.coroutine
def _handed_out(what: Dialogue[T]) -> Generator[Dialogue[T], Any, T]:
    result: T = yield what
    return result


class _AuditedSession(Session):
    """Call audit hooks with what is written, as smtplib does; if a hook raises, it is not written."""

    declares_line_end = False  # as smtplib has it, and CPython's tests want it
    audit: Callable[[str, bytes], None]

    def _write(self, exchange: Exchange[Any], group: Group) -> None:
        if group.data and self.error is None:
            self.audit("smtplib.send", b"(not shown)" if group.secret else group.data)
        super()._write(exchange, group)


_WORDS = ("Connect call failed", "Multiple exceptions", "error while attempting to bind")
"""Beginnings of the texts that asyncio and aiohappyeyeballs put in place of the system's, which smtplib raises."""


class _CallingThread(Environment):
    """The thread that calls the facade: a function that blocks may be called in it, as no other task is on its loop."""

    async def offload(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function."""
        return without_loop(function, *args)

    async def call_out(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function.  Blocking code expects no loop, and may call `asyncio.run`."""
        return without_loop(function, *args)

    async def resolve(self, host: str, port: int) -> list[tuple[Any, ...]]:
        """Look up the addresses of a host, as smtplib does."""
        return list(without_loop(functools.partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)))


class BlockingClient(AsyncSMTP):
    """An async client that a facade drives.

    It calls functions that block in the calling thread.  And it has methods that only blocking code can use: to write
    octets by hand, whose replies are fetched later.
    """

    _called = "SMTP"
    _as_smtplib = True
    _session_class = _AuditedSession
    _connection_class = DrivenConnection
    _environment = _CallingThread()
    _connection: DrivenConnection | None
    _from_afar = False
    _spoken = False
    facade: Callable[[], Any]  # a weak reference, so that a facade is collected at once when it is dropped
    struck: BaseException | None = None  # raised in a callback of the loop's, as by a signal handler
    _hands_out = False

    def hand_out(self, wanted: bool) -> None:
        """Have commands yield their dialogues to the code that runs them, and be sent the results; or no more."""
        self._hands_out = wanted

    async def _run(self, what: Dialogue[T], *, alone: bool = False, raw: bool = False) -> T:
        if self._hands_out:
            return await _handed_out(what)
        return await super()._run(what, alone=alone, raw=raw)

    def strike(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Keep an exception of a callback or a transport; the loop calls this as its exception handler."""
        error = context.get("exception")
        if error is None or "future" in context:
            loop.default_exception_handler(context)
        else:
            self.struck = error
            loop.stop()

    @property
    def unfinished(self) -> bool:
        """True if a dialogue is in the middle that nobody will fetch by hand.

        A dialogue that ended early, as its content was refused while it was written, does not count: its replies are
        read and dropped.
        """
        return self._session.unfinished > sum(not exchange.done for exchange in self._by_hand)

    def abort(self) -> None:
        """End the connection at once, without a goodbye: nothing leaves any more."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abort()

    def given(self, sock: socket.socket, *, local: bool, spoken: bool = False) -> None:
        """Use a socket for the next connection.

        Args:
            local: the server is on this machine; if not, it is elsewhere, whatever the peer of the socket is.
            spoken: the greeting was read already.
        """
        self._sock = sock
        self._from_afar = not local
        self._spoken = spoken

    def _greet(self) -> Exchange[Reply]:
        exchange = super()._greet()
        if self._spoken:
            self._spoken, session = False, self._session
            trace, session.display.trace = session.display.trace, None
            session.receive_data(b"220 \r\n")  # not shown in the trace again
            session.display.trace = trace
        return exchange

    def _made(self, connection: Connection) -> None:
        super()._made(connection)
        connection.proxied, self._from_afar = self._from_afar, False

    def view(self, timeout: float | None, close: Callable[[], object]) -> SocketView:
        """Return a view of the socket of the connection.

        Args:
            timeout: the facade's, in seconds.
            close: the facade's.
        """
        return SocketView(self._live(), timeout, close)

    def connection_of(self, future: asyncio.Future[Any]) -> DrivenConnection | None:
        """Return the connection, if a future waits for an exchange on it, and for nothing else."""
        connection = self._connection
        if connection is None or connection.awaited is None or connection.awaited.owner is not future:
            return None
        return connection

    def cut(self) -> None:
        """End the connection, from another thread than the one that drives it."""
        connection = self._connection
        if connection is not None:
            connection.cut()

    def readable(self) -> bool:
        """Return whether octets have come since the loop last ran."""
        connection = self._connection
        return connection is not None and connection.readable()

    def _shown(self, trace: Callable[[str, bytes], None] | None) -> Callable[[str, bytes], None] | None:
        if trace is None:
            return None

        def shown(direction: str, data: bytes) -> None:
            try:
                trace(direction, data)
            except BaseException as error:
                # The caller gets it, as in smtplib; asyncio would take an OSError for one of the socket's.
                self.struck = error
                raise

        return shown

    async def _open(self, host: str, port: int, source_address: tuple[str, int] | None) -> Reply:
        try:
            return await super()._open(host, port, source_address)
        except OSError as error:
            if error.errno and str(error.strerror).startswith(_WORDS):
                raise OSError(error.errno, os.strerror(error.errno)) from error
            raise

    def _new_session(self) -> Session:
        self._by_hand: deque[Exchange[Any]] = deque()
        session = super()._new_session()
        cast("_AuditedSession", session).audit = self._audit
        return session

    def _audit(self, event: str, *args: Any) -> None:
        sys.audit(event, self.facade(), *args)

    @property
    def authenticated(self) -> bool:
        """True if there was a login on this connection."""
        return self._session.authenticated

    @property
    def verified(self) -> bool:
        """True if there is TLS, and the certificate was verified."""
        return self._session.secure

    @property
    def in_exchange(self) -> bool:
        """True if an exchange was begun that can only be finished, or ended with the connection."""
        return self._session.state in HELD

    def candidates(self, user: str, password: str, wanted: Mechanisms | None) -> list[Candidate]:
        """Return the mechanisms to try with a password."""
        return self._candidates(self._credentials(user, password), wanted)

    async def send(self, data: bytes) -> None:
        """Write octets; their replies are kept for `getreply`."""
        connection = self._live()
        if not data:
            return
        exchange = connection.session.start(dialogue.raw_write(connection.session, data), raw=True)
        if exchange.error is not None:
            raise exchange.error
        self._by_hand.append(exchange)
        await connection.drained()

    def keep(self, reply: Reply) -> None:
        """Keep a reply that has come already for `getreply`."""
        exchange = Exchange(dialogue.raw_reply(), None, alone=False, raw=True)
        exchange.state, exchange.result = ExchangeState.DONE, [reply]
        self._by_hand.append(exchange)

    def leave(self) -> None:
        """Forget the state of a connection that was quit by hand."""
        self._forget()

    async def getreply(self) -> Reply:
        """Return the oldest reply that was not fetched yet; wait for it if need be."""
        while self._by_hand:
            exchange = self._by_hand[0]
            if not exchange.done:
                await self._live().finished(exchange)
            # Replies that have come can be fetched, though the connection may have ended since.
            if exchange.error is None and exchange.result:
                reply: Reply = exchange.result.pop(0)
                return reply
            self._by_hand.popleft()
            if exchange.error is not None:
                raise exchange.error
        return await self._run(dialogue.raw_reply())

    def authentication(self, sasl: SASLExchange) -> Dialogue[Reply]:
        """Return the dialogue of an AUTH exchange, whose groups are written by `respond`."""
        return dialogue.authentication(self._session, sasl)

    async def respond(self, line: bytes) -> Reply:
        """Write one line of an AUTH exchange, and return its reply; neither is shown in traces."""
        what = dialogue.raw_write(self._session, hidden(line), secret=True)
        return (await self._run(what, raw=True))[0]


class BlockingSSLClient(BlockingClient, AsyncSMTP_SSL):
    """As :class:`~asmtp.SMTP_SSL` drives it."""

    _called = "SMTP_SSL"


class BlockingLMTPClient(BlockingClient, AsyncLMTP):
    """As :class:`~asmtp.LMTP` drives it."""

    _called = "LMTP"
