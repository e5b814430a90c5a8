"""Octets between a transport and a session: reading, writing, deadlines, dialogues, TLS.

:class:`Connection` is an asyncio protocol that binds octets to a :class:`~asmtp.protocol.session.Session`:
what comes in is fed to it, what it has to write is corked until the end of the loop's pass and leaves in one
`send`, and one watchdog watches over the deadlines of all that is awaited.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import math
import os
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar, cast

from asmtp.errors import SMTPServerDisconnected, SMTPTimeoutError, one_line
from asmtp.protocol.exchange import Dialogue, Exchange, ExchangeState, Group, Phase
from asmtp.protocol.state import State
from asmtp.transport.timeouts import Timeouts
from asmtp.transport.tls import ResumingContext, raise_tls_error

if TYPE_CHECKING:
    from asmtp.protocol.session import Session

__all__ = ["Connection"]

T = TypeVar("T")

INCOMING = 1 << 14
"""Octets read at a time: some hundred replies."""

UNREAD = 1 << 17
"""Octets that are read at most, when a write has failed."""

CLOSING = 10.0
"""Seconds until a server that has said 421 has to close, if commands were written behind the one it answered."""

BEHIND = 10.0
"""Seconds for the reply to a RSET behind the content of another message, from the reply to that: see `_may_be_lost`."""

LEAST = 1024
"""Octets that the server has to take within the limit of a phase; else one octet now and then would be enough."""

STALLED = 1.0
"""Seconds without an answer after which messages go one by one until there is one."""

_DONE = ExchangeState.DONE
_QUICKACK: int | None = getattr(socket, "TCP_QUICKACK", None)  # Linux has it


class Connection(asyncio.BufferedProtocol):
    """A transport, and the session that speaks over it.

    Args:
        session: the protocol state.
        timeouts: the deadlines.
    """

    def __init__(self, session: Session, timeouts: Timeouts) -> None:
        self.session = session
        self.limited = False  # True once `limit` was called
        self.transport: asyncio.Transport = None  # type: ignore[assignment]  # until it has begun
        self.begun = False
        self._loop = asyncio.get_running_loop()
        # For asyncio.Protocol the transport would make a buffer of 256 KiB for each reply.
        self._incoming = memoryview(bytearray(INCOMING))
        self._corked = False
        self._writable = asyncio.Event()
        self._writable.set()
        self._lost = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._set_limits(timeouts)
        self._since = 0.0  # when the last progress was seen
        self._seen = (0, 0)  # at that time: replies read, octets taken by the kernel
        self._written = 0
        self._quickack = False
        self._says_goodbye = True
        self._process = os.getpid()  # a fork has the same socket
        self.proxied = False
        self.on_lost: Callable[[], None] | None = None  # called once, when there is no connection any more
        self.on_closed: Callable[[str], None] | None = None  # the same, with the reason
        self._feeder: tuple[Exchange[Any], asyncio.Task[Any]] | None = None  # the task that waits for content
        session.on_output = self._on_output
        session.notify = self._on_notify

    # ---- asyncio.BufferedProtocol -------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport, now that there is one."""
        self.transport = cast("asyncio.Transport", transport)
        self.begun = True
        if self.session.closed:  # by close(), while it was being connected
            self.transport.abort()
        sock = transport.get_extra_info("socket")
        self._quickack = _QUICKACK is not None and sock.family in (socket.AF_INET, socket.AF_INET6)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where the transport shall put what it reads."""
        return self._incoming

    def buffer_updated(self, nbytes: int) -> None:
        """Give the session what was read, and write what it answers."""
        written = self._written
        self._corked = True
        self.session.receive_data(bytes(self._incoming[:nbytes]))
        self._flush()
        if self._written == written and self._quickack and self.session.head is not None:
            self._acknowledge()

    def _acknowledge(self) -> None:
        """Acknowledge replies at once, if more are owed and nothing is written that would carry the acknowledgement.

        The kernel would delay it (RFC 1122 §4.2.3.2), and a server that leaves Nagle's algorithm on, as Postfix does,
        keeps its next reply until the acknowledgement comes: 40 ms for each message larger than its buffer.
        """
        with contextlib.suppress(OSError):  # the socket was closed meanwhile
            self.transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)

    def eof_received(self) -> None:
        """Tell the session that the server closed."""
        self.session.receive_eof()

    def connection_lost(self, exc: Exception | None) -> None:
        """End the session, after what may have come before."""
        if exc is not None and not self.session.closed:
            # A write has failed; but the server may have sent a refusal before, which was not read yet.
            for octets in _unread(self.transport):
                self.session.receive_data(octets)
        if exc is not None and self.session.writable:
            error = SMTPServerDisconnected(f"Connection unexpectedly closed: {one_line(exc)}")
            error.__cause__ = exc
            self.session.fail(error)
        self.session.receive_eof()
        self._lost.set()
        self._writable.set()
        self._stop_timer()
        closed, self.on_closed = self.on_closed, None
        if closed is not None:
            closed(str(self.session.error))
        told, self.on_lost = self.on_lost, None
        if told is not None:
            told()

    def pause_writing(self) -> None:
        """Write no more for now: the transport's buffer is full."""
        self.session.paused = True
        self._writable.clear()
        if self._timer is None:
            self._start_timer()

    def resume_writing(self) -> None:
        """Go on: the transport's buffer has room."""
        self.session.paused = False
        self._writable.set()
        self.session.pump()

    # ---- writing ----------------------------------------------------------------------------

    def _on_output(self) -> None:
        """Write what the session has to write, or end with the session.

        All that is written in one pass of the loop leaves in one `send`.  But if nothing else is under way, it leaves
        at once: no other task will write in this pass.
        """
        if self._corked:
            return
        if self.session.lone:
            self._flush()
            return
        self._corked = True
        self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._corked = False
        session = self.session
        data = session.output()
        if data and not self._lost.is_set():
            self._written += len(data)
            self.transport.write(data)
        if not self.begun:
            return
        if session.closed:
            self._stop_timer()
            # close() says goodbye under TLS; abort() does not wait for an answer, nor for a server that does not read.
            # close() writes again what TLS does not know to have left: never in the middle of anything.
            whole = self._says_goodbye and session.state is State.CLOSED
            if whole and self._process == os.getpid():
                self.transport.close()
            self.transport.abort()
        elif self._timer is None:
            self._start_timer()

    # ---- deadlines --------------------------------------------------------------------------

    def _set_limits(self, timeouts: Timeouts) -> None:
        self.timeouts = timeouts
        self._limits = {phase: limit for phase in Phase if (limit := getattr(timeouts, phase.name.lower())) is not None}
        # Progress is noticed at a tick, and the limit counts from the tick: ticks must be close to each other.
        self._tick = min(1.0, min(self._limits.values(), default=0.0) / 8)

    def limit(self, timeouts: Timeouts) -> None:
        """Set other deadlines, also for replies that are awaited already."""
        self.limited = True
        self._set_limits(timeouts)
        self._stop_timer()
        self._start_timer()

    def _start_timer(self) -> None:
        if self._limits and (self.session.head is not None or self.session.paused):
            self._since = self._loop.time()
            self._seen = self._progress()
            self._timer = self._loop.call_later(self._tick, self._watch)

    def _progress(self) -> tuple[int, int]:
        return self.session.progress, self._written - self.transport.get_write_buffer_size()

    def _moved(self, progress: tuple[int, int]) -> bool:
        """Return whether there was progress: a reply, or the kernel took `LEAST` octets, or all that there were."""
        (replies, taken), (replies_seen, taken_seen) = progress, self._seen
        if replies != replies_seen or taken - taken_seen >= LEAST:
            return True
        return taken != taken_seen and not self.transport.get_write_buffer_size()

    def _watch(self) -> None:
        """Look for progress, by one timer a connection; without any until the deadline, the session fails."""
        self._timer = None
        session = self.session
        head = session.head
        if session.closed or (head is None and not session.paused):
            return  # the timer is set again when something is written
        phase = Phase.CONTENT if head is None else head.phase
        now = self._loop.time()
        progress = self._progress()
        # While the caller's content is awaited, the server is not to blame.
        ours = head is not None and head.pulling and not self.transport.get_write_buffer_size()
        if ours or self._moved(progress):
            self._seen = progress
            self._since = now
        elif now - self._since >= STALLED:
            session.slow_start()
        limit = self._limits.get(phase, math.inf)
        what, lost = phase.value, False
        if head is not None and head.group is not None and _may_be_lost(head.group) and limit > BEHIND:
            limit = BEHIND
            what = "commands behind another message's content, which some servers lose; with window=1 there are none"
            lost = True
        if not session.writable:
            limit = min(limit, CLOSING)
        deadline = self._since + limit
        if now >= deadline:
            session.overlap = session.overlap and not lost
            session.fail(SMTPTimeoutError(f"timed out: no answer to {what} within {limit:g} seconds"))
            return
        self._timer = self._loop.call_at(min(deadline, now + self._tick), self._watch)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # ---- dialogues --------------------------------------------------------------------------

    def _on_notify(self, exchange: Exchange[Any]) -> None:
        if exchange.on_done is not None:
            exchange.on_done(exchange)
            return
        owner: asyncio.Future[None] | None = exchange.owner
        if owner is not None and not owner.done():
            owner.set_result(None)
            if self._feeder is not None and self._feeder[0] is exchange and exchange.done:
                self._feeder[1].cancel()

    async def run(self, dialogue: Dialogue[T], *, alone: bool = False, raw: bool = False) -> T:
        """Take a dialogue through the session, and return its result, or raise its exception.

        Cancellation leaves the connection in step, or closes it; it always propagates.
        """
        return await self.finished(self.session.start(dialogue, alone=alone, raw=raw))

    async def run_streamed(self, dialogue: Dialogue[T], pieces: AsyncIterator[bytes], *, alone: bool = False) -> T:
        """Take a dialogue that pulls its content through the session.

        Args:
            pieces: an async iterator of bytes.  It is asked for a piece when the transport can take one.
        """
        future = self._loop.create_future()
        exchange = self.session.start(dialogue, future, alone=alone)
        try:
            while not exchange.done:
                await future
                exchange.owner = future = self._loop.create_future()
                if exchange.pulling:
                    await self._feed(exchange, pieces)
                    await asyncio.sleep(0)  # if the kernel takes all at once, other tasks have their turn here
        except asyncio.CancelledError:
            self.session.cancel(exchange)
            raise
        if exchange.error is not None:
            raise exchange.error
        result: T = exchange.result
        return result

    async def finished(self, exchange: Exchange[T]) -> T:
        """Wait for an exchange that was started, and return its result, or raise its exception."""
        if exchange.state is not _DONE:
            exchange.owner = future = self._loop.create_future()
            if self._timer is None:  # a reply can be owed though nothing was written: the greeting
                self._start_timer()
            try:
                await future
            except asyncio.CancelledError:
                self.session.cancel(exchange)
                raise
        if exchange.error is not None:
            raise exchange.error
        result: T = exchange.result
        return result

    async def drained(self) -> None:
        """Wait until what was written has left, or the transport can take more."""
        await asyncio.sleep(0)
        await self._writable.wait()

    @staticmethod
    def _ended(exchange: Exchange[Any]) -> bool:
        return exchange.done

    async def _feed(self, exchange: Exchange[Any], pieces: AsyncIterator[bytes]) -> None:
        await self._writable.wait()
        task = asyncio.current_task()
        self._feeder = None if task is None else (exchange, task)
        before = (
            0 if task is None else task.cancelling()
        )  # a caller that has caught a cancellation may send all the same
        try:
            piece = await anext(pieces, None)
        except asyncio.CancelledError:
            # `_on_notify` has cancelled it, as the exchange ended meanwhile; unless others cancel, too.
            if not self._ended(exchange) or task is None or task.uncancel() > before:
                raise
            return
        except BaseException as error:  # the caller's iterator may raise anything
            self._feeder = None  # the iterator is not awaited any more
            self.session.abort(exchange, error)
            return
        finally:
            self._feeder = None
        if exchange.pulling:  # the session may have ended meanwhile
            self.session.push(exchange, piece)

    # ---- TLS, the end -----------------------------------------------------------------------

    @property
    def tls(self) -> ssl.SSLObject | None:
        """Return the TLS object of the transport; None without TLS."""
        return cast("ssl.SSLObject | None", self.transport.get_extra_info("ssl_object"))

    @property
    def local(self) -> bool:
        """True if the connection does not leave this machine."""
        if self.proxied:
            return False
        sock = self.transport.get_extra_info("socket")
        if sock.family not in (socket.AF_INET, socket.AF_INET6):
            return True
        with contextlib.suppress(OSError, ValueError):  # it has been closed
            return ipaddress.ip_address(sock.getpeername()[0].partition("%")[0]).is_loopback
        return False

    async def start_tls(self, dialogue: Dialogue[T], context: ResumingContext, server_hostname: str | None) -> T:
        """Take a dialogue that asks for TLS through the session; when it pulls, shake hands.

        Raises:
            ssl.SSLError: the handshake failed; the connection is closed.
        """
        future = self._loop.create_future()
        exchange = self.session.start(dialogue, future, alone=True)
        try:
            if not exchange.done and not exchange.pulling:
                await future
            if exchange.pulling:
                await self._handshake(context, server_hostname)
                self.session.push(exchange, None)
        except asyncio.CancelledError:
            self.session.cancel(exchange)
            raise
        return await self.finished(exchange)

    async def _handshake(self, context: ResumingContext, server_hostname: str | None) -> None:
        await self.wrap(context, server_hostname)
        self._written = 0
        self.session.secured()
        self.session.secure = context.verifies

    async def wrap(self, context: ResumingContext, server_hostname: str | None, said: bytes = b"") -> None:
        """Put TLS on the transport, by a handshake.

        Args:
            said: octets that the server has sent before.

        Raises:
            ssl.SSLError, SMTPServerDisconnected: it failed; the connection is closed.
        """
        plain = self.transport
        if said:  # TLS takes them once it has begun, which it does in the next pass
            self._loop.call_soon(self._loop.call_soon, lambda: _feed(cast("Any", plain.get_protocol()), said))
        try:
            transport = await self._loop.start_tls(
                plain,
                self,
                context,
                server_hostname=server_hostname or "",
                ssl_handshake_timeout=_handshake_limit(self.timeouts),
            )
            if transport is None or self.session.closed:
                raise ConnectionError("closed")
        except BaseException as error:
            self.session.fail(SMTPServerDisconnected(f"TLS handshake failed: {one_line(error)}"))
            plain.abort()
            self.connection_lost(None)  # asyncio does not say so to the protocol before the handshake is done
            raise_tls_error(error, self.timeouts.tls, context)
        context.succeeded()
        plain.set_protocol(_BelowTLS(plain))
        self.transport = transport

    def close(self) -> None:
        """Close at once; exchanges that are not done fail."""
        if not self.session.idle:
            self._says_goodbye = False
        self.session.close()
        self._flush()
        if not self.begun:
            self._lost.set()

    def abort(self) -> None:
        """Close at once, without a goodbye: after an interruption, asyncio's transport might write something twice."""
        self._says_goodbye = False
        self.close()

    async def wait_closed(self) -> None:
        """Wait until the transport has let go of the socket."""
        await self._lost.wait()


class _BelowTLS(asyncio.BufferedProtocol):
    """A protocol between a transport and the TLS on it: if a write fails, it gives TLS what was not read yet."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._tls = tls = cast("asyncio.BufferedProtocol", transport.get_protocol())
        self.get_buffer = tls.get_buffer  # type: ignore[method-assign]
        self.buffer_updated = tls.buffer_updated  # type: ignore[method-assign]
        self.eof_received = tls.eof_received  # type: ignore[method-assign]
        self.pause_writing = tls.pause_writing  # type: ignore[method-assign]
        self.resume_writing = tls.resume_writing  # type: ignore[method-assign]

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None:
            for octets in _unread(self._transport):
                _feed(self._tls, octets)
        self._tls.connection_lost(exc)


def _feed(protocol: asyncio.BufferedProtocol, octets: bytes) -> None:
    """Give octets to a protocol as a transport would."""
    buffer = memoryview(protocol.get_buffer(len(octets)))
    buffer[: len(octets)] = octets
    protocol.buffer_updated(len(octets))


def _unread(transport: asyncio.Transport) -> Iterator[bytes]:
    """Yield octets that have come on the socket of a transport that has failed, and were not read."""
    sock = transport.get_extra_info("socket")
    if not _READV or sock is None:  # under TLS, there is no socket any more: see _BelowTLS
        return
    descriptor = sock.fileno()
    left = UNREAD
    with contextlib.suppress(OSError):  # nothing more
        while left > 0 and (octets := os.read(descriptor, INCOMING)):
            left -= len(octets)
            yield octets


_READV = hasattr(os, "readv")  # not on Windows


def _may_be_lost(group: Group) -> bool:
    """Return whether a group may be lost: it was written behind content that is answered by now, and has no reply.

    Courier's esmtpd drops what comes with the end of the content.

    It begins with RSET, which takes no time, and has no content, so that the message is not in doubt.
    """
    return group.behind and group.final is Phase.DATA and not group.replies


def _handshake_limit(timeouts: Timeouts) -> float:
    return math.inf if timeouts.tls is None else timeouts.tls  # None would be asyncio's own limit
