"""The async clients as the blocking facade drives them, and how: without a task, in the calling thread."""

from __future__ import annotations

import asyncio
import functools
import inspect
import os
import select
import selectors
import socket
import sys
import types
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from types import BuiltinFunctionType
from typing import Any, TypeVar, cast

from asmtp.client import AsyncLMTP, AsyncSMTP, AsyncSMTP_SSL
from asmtp.login import Choice, Mechanisms
from asmtp.protocol import dialogue
from asmtp.protocol.exchange import Dialogue, Exchange, Group
from asmtp.protocol.hidden import hidden
from asmtp.protocol.reply import Reply
from asmtp.protocol.session import Session
from asmtp.protocol.state import HELD
from asmtp.transport import Connection, SocketView

__all__ = ["DrivenLMTP", "DrivenSMTP", "DrivenSMTP_SSL", "drive", "in_task", "new_selector"]

T = TypeVar("T")


def drive(loop: asyncio.AbstractEventLoop, client: DrivenSMTP, coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that awaits nothing but `client` to its end.

    It does what `run_until_complete` does, without a task and without the passes of the loop that starting,
    waking and ending one take: a third of the time of a short command.  What needs a task (a time-out, a
    cancel scope) cannot be driven so: see :func:`in_task`.

    Whatever ends it from outside, as an exception out of a signal handler does, ends the connection: nobody drives
    what was left in the middle any more.
    """
    try:
        while True:
            try:
                asyncio._set_running_loop(loop)
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
                if client.struck is not None:
                    raise client.struck
    except BaseException:
        if inspect.getcoroutinestate(coroutine) != inspect.CORO_CLOSED:  # it is not what raised that
            client.abort()
        raise
    finally:
        asyncio._set_running_loop(None)  # once more: a signal can have struck in front of the other one
        coroutine.close()


async def in_task(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that needs a task, in what is driven."""
    return await asyncio.get_running_loop().create_task(coroutine)


def new_selector() -> selectors.BaseSelector:
    """Return what a private loop waits with: poll, not epoll, which a child process would share."""
    if isinstance(getattr(select, "poll", None), BuiltinFunctionType):
        return selectors.PollSelector()
    return _yielding(selectors.DefaultSelector)()  # Windows; or gevent or eventlet have put their own in its place


@functools.cache
def _yielding(kind: type[selectors.BaseSelector]) -> type[selectors.BaseSelector]:
    class Yielding(kind):  # type: ignore[valid-type, misc]  # it is known at run time
        """Runs no loop while it waits: another greenlet goes on in this thread meanwhile, and may run its own."""

        def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
            return without_loop(super().select, timeout)

    return Yielding


def without_loop(function: Callable[..., T], *args: Any) -> T:
    """Call a function as if no loop ran in this thread."""
    loop = asyncio._get_running_loop()
    asyncio._set_running_loop(None)
    try:
        return function(*args)
    finally:
        asyncio._set_running_loop(loop)


@types.coroutine
def _handed_out(what: Dialogue) -> Generator[Dialogue, Any, Any]:
    return (yield what)


class _AuditedSession(Session):
    """Tells audit hooks what is written, as smtplib does; a hook that raises keeps it from being written."""

    declares_line_end = False  # as smtplib has it, and CPython's tests want it
    audit: Callable[[str, bytes], None]

    def _write(self, exchange: Exchange, group: Group) -> None:
        if group.data and self.error is None:
            self.audit("smtplib.send", b"(not shown)" if group.secret else group.data)
        super()._write(exchange, group)


_WORDS = ("Connect call failed", "Multiple exceptions", "error while attempting to bind")
"""How asyncio and aiohappyeyeballs begin what they say in place of the system's words, which smtplib's callers know."""


class DrivenSMTP(AsyncSMTP):
    """An async client that a facade drives.

    It does in the calling thread what would block a loop: nobody else is on this one.  And it has what
    only blocking code can use: octets written by hand, whose replies are fetched later.
    """

    _session_class = _AuditedSession
    _from_afar = False
    _spoken = False
    facade: Callable[[], Any]  # a weak reference, so that a facade that is dropped ends at once
    struck: BaseException | None = None  # what was raised in a callback of the loop's, as by a signal handler
    _hands_out = False

    def hand_out(self, wanted: bool) -> None:
        """Have commands give their dialogues to who runs their coroutine, and wait for the results; or no more."""
        self._hands_out = wanted

    async def _run(self, what: Any, *, alone: bool = False, raw: bool = False) -> Any:
        if self._hands_out:
            return await _handed_out(what)
        return await super()._run(what, alone=alone, raw=raw)

    def strike(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """Keep what was raised in a callback or a transport of the loop's, which tells its exception handler."""
        error = context.get("exception")
        if error is None or "future" in context:
            loop.default_exception_handler(context)
        else:
            self.struck = error
            loop.stop()

    @property
    def unfinished(self) -> bool:
        """Whether a dialogue is in the middle that nobody will fetch by hand.

        One that ended early, as its content was refused while it was written, is not: its replies are read and dropped.
        """
        return self._session.unfinished > sum(not exchange.done for exchange in self._by_hand)

    def abort(self) -> None:
        """End the connection at once: nothing that has not left leaves any more, and no goodbye is said."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.abort()

    def given(self, sock: socket.socket, *, local: bool, spoken: bool = False) -> None:
        """Have the next connection made of a socket.

        Args:
            local: it is to this machine; else it is not, whatever the socket's own other end is.
            spoken: its greeting was read already.
        """
        self._sock = sock
        self._from_afar = not local
        self._spoken = spoken

    def _greet(self) -> Exchange:
        exchange = super()._greet()
        if self._spoken:
            self._spoken, session = False, self._session
            trace, session.trace = session.trace, None
            session.receive_data(b"220 \r\n")  # which is not shown again
            session.trace = trace
        return exchange

    def _made(self, connection: Connection) -> None:
        super()._made(connection)
        connection.proxied, self._from_afar = self._from_afar, False

    def view(self, timeout: float | None, close: Callable[[], object]) -> SocketView:
        """What there is to see of the socket of the connection that there is.

        Args:
            timeout: the facade's, in seconds.
            close: the facade's.
        """
        return SocketView(self._live(), timeout, close)

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
        return without_loop(function, *args)

    async def _call_out(self, function: Callable[..., T], *args: Any) -> T:
        # Nobody who wrote blocking code expects a loop, and it may be asyncio.run that he calls.
        return without_loop(function, *args)

    async def _name_under_tls(self) -> None:
        return None  # as in smtplib: a facade's `ehlo`, which may be a subclass's, says it when it is needed

    async def _resolve(self, host: str, port: int) -> list[tuple[Any, ...]]:
        look_up = functools.partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        return list(without_loop(look_up))

    def _shown(self, trace: Callable[[str, bytes], None] | None) -> Callable[[str, bytes], None] | None:
        if trace is None:
            return None

        def shown(direction: str, data: bytes) -> None:
            try:
                trace(direction, data)
            except BaseException as error:  # the caller's, as in smtplib; asyncio takes an OSError for the socket's
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

    def keep(self, reply: Reply) -> None:
        """Have `getreply` return a reply that has come already."""
        exchange = Exchange(dialogue.raw_reply(), None, alone=False, raw=True)
        exchange.done, exchange.result = True, [reply]
        self._by_hand.append(exchange)

    def leave(self) -> None:
        """Forget what is known of a connection that was quit by hand."""
        self._forget()

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
        what = dialogue.raw_write(self._session, hidden(line + b"\r\n"), secret=True)
        replies: list[Reply] = await self._run(what, raw=True)
        return replies[0]


class DrivenSMTP_SSL(DrivenSMTP, AsyncSMTP_SSL):
    pass


class DrivenLMTP(DrivenSMTP, AsyncLMTP):
    pass
