"""The async clients as the blocking facade drives them, and how: without a task, in the calling thread."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, cast

from asmtp.client import AsyncLMTP, AsyncSMTP, AsyncSMTP_SSL
from asmtp.login import Choice, Mechanisms
from asmtp.protocol import dialogue
from asmtp.protocol.exchange import Exchange, Group
from asmtp.protocol.reply import Reply
from asmtp.protocol.session import Session
from asmtp.protocol.state import HELD
from asmtp.transport import Connection

__all__ = ["DrivenLMTP", "DrivenSMTP", "DrivenSMTP_SSL", "drive"]

T = TypeVar("T")


def drive(loop: asyncio.AbstractEventLoop, client: DrivenSMTP, coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that awaits nothing but `client` to its end.

    It does what `run_until_complete` does, without a task and without the passes of the loop that starting,
    waking and ending one take: a third of the time of a short command.  What needs a task (a time-out, a
    cancel scope) cannot be driven so.
    """
    try:
        while True:
            asyncio._set_running_loop(loop)
            try:
                future = coroutine.send(None)
            except StopIteration as stop:
                return stop.value  # type: ignore[no-any-return]
            finally:
                asyncio._set_running_loop(None)
            if future is None:  # asyncio.sleep(0): one pass
                loop.call_soon(loop.stop)
                loop.run_forever()
                continue
            future._asyncio_future_blocking = False
            connection = client.connection_of(future)
            if connection is None:
                future.add_done_callback(lambda _: loop.stop())
            while not future.done():
                if connection is not None and connection.read():
                    continue
                if connection is not None:
                    connection.on_finished = loop.stop
                loop.run_forever()
    finally:
        coroutine.close()


class _AuditedSession(Session):
    """Tells audit hooks what is written, as smtplib does; a hook that raises keeps it from being written."""

    audit: Callable[[str, bytes], None]

    def _write(self, exchange: Exchange, group: Group) -> None:
        if group.data and self.error is None:
            self.audit("smtplib.send", b"(not shown)" if group.secret else group.data)
        super()._write(exchange, group)


class DrivenSMTP(AsyncSMTP):
    """An async client that a facade drives.

    It does in the calling thread what would block a loop: nobody else is on this one.  And it has what
    only blocking code can use: octets written by hand, whose replies are fetched later.
    """

    _session_class = _AuditedSession
    facade: Callable[[], Any]  # a weak reference, so that a facade that is dropped ends at once

    def connection_of(self, future: asyncio.Future[Any]) -> Connection | None:
        """The connection, if what it owes is all that is awaited."""
        connection = self._connection
        return connection if connection is not None and connection.awaited is future else None

    def cut(self) -> None:
        """End the connection, from another thread than the one that drives."""
        connection = self._connection
        if connection is not None:
            connection.cut()

    def readable(self) -> bool:
        """Whether something has come since the loop last ran."""
        connection = self._connection
        return connection is not None and connection.readable()

    async def _offload(self, function: Callable[..., T], *args: Any) -> T:
        return function(*args)

    async def _call_out(self, function: Callable[..., T], *args: Any) -> T:
        # As if no loop ran here: nobody who wrote blocking code expects one, and it may be asyncio.run that he calls.
        loop = asyncio._get_running_loop()
        asyncio._set_running_loop(None)
        try:
            return function(*args)
        finally:
            asyncio._set_running_loop(loop)

    async def _name_under_tls(self) -> None:
        return None  # as in smtplib: a facade's `ehlo`, which may be a subclass's, says it when it is needed

    async def _resolve(self, host: str, port: int) -> list[tuple[Any, ...]]:
        return list(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))

    def _welcome(self, greeting: Reply) -> bool:
        return greeting.code == 220

    def _new_session(self) -> Session:
        self._by_hand: deque[Exchange] = deque()
        session = super()._new_session()
        cast("_AuditedSession", session).audit = self._audit
        return session

    def _audit(self, event: str, *args: Any) -> None:
        sys.audit(event, self.facade(), *args)

    @property
    def authenticated(self) -> bool:
        """Whether there was a login on this connection."""
        return self._session.authenticated

    @authenticated.setter
    def authenticated(self, value: bool) -> None:
        self._session.authenticated = value

    @property
    def verified(self) -> bool:
        """Whether there is TLS, and the certificate was verified."""
        return self._session.secure

    @property
    def in_exchange(self) -> bool:
        """Whether a command was begun that only its own end leads out of."""
        return self._session.state in HELD

    def redact(self, text: bytes) -> bytes:
        """The same without the secrets that were written."""
        return self._session.redact(text)

    def choices(self, user: str, password: str, wanted: Mechanisms | None) -> list[Choice]:
        """The mechanisms to try with a password."""
        return self._choices(self._credentials(user, password), wanted)

    async def send(self, data: bytes) -> None:
        """Write octets; whatever they are owed is kept for `getreply`."""
        connection = self._live()
        if not data:
            return
        exchange = connection.session.start(dialogue.raw_write(connection.session, data), raw=True)
        if exchange.error is not None:
            raise exchange.error
        self._by_hand.append(exchange)
        await connection.drained()

    async def getreply(self) -> Reply:
        """The oldest reply not fetched yet, awaited if need be."""
        while self._by_hand:
            exchange = self._by_hand[0]
            if not exchange.done:
                await self._live().finished(exchange)
            # What has come is there to be fetched, though the connection may have ended since.
            if exchange.error is None and exchange.result:
                reply: Reply = exchange.result.pop(0)
                return reply
            self._by_hand.popleft()
            if exchange.error is not None:
                raise exchange.error
        return await self._run(dialogue.raw_reply())  # type: ignore[no-any-return]

    async def respond(self, line: bytes) -> Reply:
        """One line of a SASL exchange, and its reply; not shown in traces."""
        what = dialogue.raw_write(self._session, line + b"\r\n", secret=True)
        replies: list[Reply] = await self._run(what, raw=True)
        return replies[0]


class DrivenSMTP_SSL(DrivenSMTP, AsyncSMTP_SSL):
    pass


class DrivenLMTP(DrivenSMTP, AsyncLMTP):
    pass
