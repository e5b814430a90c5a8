"""One connection of a pool, which keeps many messages under way without a task for each."""

from __future__ import annotations

import asyncio
import contextlib
import enum
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from asmtp.client.content import WHOLE, Content, whole
from asmtp.client.events import EventLog, clock
from asmtp.client.smtp import AsyncLMTP, AsyncSMTP, Progress
from asmtp.errors import SMTPException, SMTPServerDisconnected, known
from asmtp.mailer.message import DeliveryRequest, RequestState
from asmtp.protocol.envelope import Envelope
from asmtp.protocol.exchange import Exchange, ExchangeState
from asmtp.protocol.session import Session
from asmtp.protocol.state import Chunking
from asmtp.protocol.transaction import Transaction
from asmtp.protocol.verdict import Outcome
from asmtp.transport.connection import Connection

if TYPE_CHECKING:
    from asmtp.mailer.relay_state import RelayState

__all__ = ["ConnectionState", "PooledConnection", "make_connection"]

STALE = 1.0
"""Seconds without traffic after which a connection may be dead without our knowing.

The next message's content waits for the reply to its envelope then, which costs a round trip.  If the envelope is never
answered, the content was not written: the message is not_sent instead of in_doubt.
"""

SILENT, SLOWER = 1.0, 10.0
"""A connection that has been silent for so many seconds, and so many times as long as a message took, may hang."""

FEW = 10
"""If a connection takes no more messages than so many, the probe of BDAT is not worth its round trip."""

AHEAD = 0.02
SHALLOW, DEEP = 4, 16
"""How many messages a connection is given if they go one by one: as many as it sends in 20 ms, from 4 to 16.

The next but one has to be there when the next one's content is written, or a round trip is lost.
"""


class ConnectionState(enum.Enum):
    """The states of a pool's connection.

    ======== ============================================================= ==========
    state    what happens                                                  next state
    ======== ============================================================= ==========
    OPENING  it is open, and the server has said what it offers            SERVING
    SERVING  it is idle, or old; another relay serves; or the server says  RETIRING
             that it takes no more messages on it
    RETIRING its last message is answered: QUIT, and the session closes    none
    ======== ============================================================= ==========

    Only one that is SERVING is given messages.  It may be lost in any state: the session knows whether it is open, and
    in step.

    Two attributes do not follow from the state: `withdrew` and `suspect`.  They are evidence of why the session ended,
    which the pool and the queue look at afterwards, whatever the state was.
    """

    OPENING = "opening"
    SERVING = "serving"
    RETIRING = "retiring"


SERVING = ConnectionState.SERVING
RETIRING = ConnectionState.RETIRING
SENDING = RequestState.SENDING
EXCHANGE_DONE = ExchangeState.DONE


class _RelayClient(AsyncSMTP):
    """The client of a pooled connection, with a relay's settings, and the state that connections to it share.

    Args:
        on_made: is called when there is a connection, which is not connected yet.
    """

    def __init__(self, relay: RelayState, on_made: Callable[[Connection], None]) -> None:
        if relay.config.lmtp:
            self.lmtp, self.ehlo_msg, self.default_port = True, AsyncLMTP.ehlo_msg, AsyncLMTP.default_port
        self._set_up(relay.config.host, relay.config.port, relay.config)
        self._sessions = relay.sessions
        self._logins = relay.logins
        self._relay_chunking = relay.chunking
        self._on_made = on_made

    @property
    def session(self) -> Session:
        """Return the state of the protocol, for one connection."""
        return self._session

    @property
    def event_log(self) -> EventLog | None:
        """Return the log for the events of one connection; None if nobody listens."""
        return self._event_log

    async def send(self, envelope: Envelope, content: Content, progress: Progress) -> Outcome:
        """Send a message, by a task of its own."""
        return await self._send(envelope, content, progress)

    def _made(self, connection: Connection) -> None:
        super()._made(connection)
        self._on_made(connection)


class _Carried:
    """The progress of a message that a task sends: from its transaction on, the session counts the message.

    Args:
        connection: the connection that counts it before and after.
    """

    __slots__ = ("_begun", "_connection", "_request")

    def __init__(self, connection: PooledConnection, request: DeliveryRequest) -> None:
        self._connection = connection
        self._request = request
        self._begun = False

    @property
    def transaction(self) -> Transaction | None:
        """Return the transaction that was begun last."""
        return self._request.transaction

    @transaction.setter
    def transaction(self, transaction: Transaction | None) -> None:
        self._request.transaction = transaction
        if not self._begun:
            self._begun = True
            self._connection.carried -= 1

    def ended(self) -> None:
        """Have the connection count the message again, until its task has ended."""
        if self._begun:
            self._connection.carried += 1


class PooledConnection:
    """An open connection, what it has done, and how much more it can be given.

    Args:
        relay: where it leads.
        on_ended: is called with each request whose try has ended here, and the connection.
        on_lost: is called when the connection is gone.
        on_probed: is called when the probe of BDAT is over: the message behind it may have been withdrawn meanwhile.

    Attributes:
        state: see :class:`ConnectionState`.
        begun, answered, taken: how many messages it was given, and how many of them the server has answered, and taken.
        limit: how many it may take, or None.
        until: the loop's time at which it is replaced, or None.
        busy_since: the loop's time at which the last replies came, or it became busy.
        idle_since: the loop's time at which it became idle, or the last replies came.
        carried: messages that have a task and are not the session's yet, or not any more.
        withdrew: whether a message was withdrawn while it was under way, which may have ended the connection.
        suspect: the message at which the server ended the connection: the first that had no answer then.
        service: seconds between the replies to two messages while it is busy, on average.
    """

    left = 0.0
    """Seconds until it is open: see :func:`asmtp.mailer.schedule.assign`."""

    def __init__(
        self,
        relay: RelayState,
        on_ended: Callable[[DeliveryRequest, PooledConnection], None],
        on_lost: Callable[[PooledConnection], None],
        on_probed: Callable[[PooledConnection], None] = lambda connection: None,
    ) -> None:
        self._client = _RelayClient(relay, self._made)
        self.session = self._client.session
        self._event_log: EventLog | None = None
        self._chunking = relay.config.chunking
        self.relay = relay
        self._on_ended = on_ended
        self._on_lost = on_lost
        self._on_probed = on_probed
        self.state = ConnectionState.OPENING
        self.begun = 0
        self.answered = 0
        self.taken = 0
        self.limit: int | None = None
        self.until: float | None = None
        self.busy_since = 0.0
        self.idle_since = 0.0
        self.service = relay.service
        self.withdrew = False
        self.suspect: DeliveryRequest | None = None
        self._depth = 1  # how many messages it is given at a time
        self._recipients: int | None = None
        self.carried = 0
        self._tidying = False  # our own RSET is in flight

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._client!r} {self.state.value}>"

    def _made(self, connection: Connection) -> None:
        """Have `on_lost` and `on_probed` called, from now on."""
        connection.on_lost = lambda: self._on_lost(self)
        self._event_log = self._client.event_log
        self.session = session = connection.session
        loop = asyncio.get_running_loop()
        heed = session.on_chunking

        def probed() -> None:
            heed()
            loop.call_soon(self._on_probed, self)

        session.on_chunking = probed

    async def open(self) -> None:
        """Connect, greet, and see what the server offers.  Raises what `connect` does."""
        await self._client.connect()
        await self._client.ehlo_or_helo_if_needed()
        session = self.session
        session.overlap = self.relay.overlap
        self._depth = session.window if self._flows else SHALLOW
        limits = session.extensions.limits
        self._recipients = limits.get("RCPTMAX")
        self._heed_most_messages(limits.get("MAILMAX"))
        self.at_most(self.relay.most_messages(asyncio.get_running_loop().time()))
        if self._client.is_connected:  # it may have been closed in the same breath
            self.state = SERVING

    def _heed_most_messages(self, announced: int | None) -> None:
        """Heed MAILMAX (RFC 9422 §3): the probe of BDAT has a MAIL, too, and is not made if there are only a few."""
        if announced is None:
            return
        session = self.session
        probes = session.chunking is Chunking.UNKNOWN and "chunking" in session.extensions and self._chunking
        if probes and announced <= FEW:
            session.chunking = Chunking.NOT_SHOWN
            probes = False
        self.at_most(announced - probes)

    def at_most(self, messages: int | None) -> None:
        """Limit the messages that it is given; None: no limit is known."""
        if messages is not None:
            self.limit = messages if self.limit is None else min(messages, self.limit)

    def close(self) -> Awaitable[None]:
        """Close at once: see :meth:`asmtp.AsyncSMTP.close`."""
        return self._client.close()

    # ---- what a pool wants to know ----------------------------------------------------------

    @property
    def is_connected(self) -> bool:
        """Tell whether commands can be sent."""
        return self._client.is_connected

    @property
    def load(self) -> int:
        """Return how many messages are under way on it; our own RSET does not count."""
        return self.session.load + self.carried - self._tidying

    @property
    def busy(self) -> bool:
        """Tell whether it has enough to do for a while."""
        return 2 * self.load > self._depth

    @property
    def usable(self) -> bool:
        """Tell whether it can be given a message."""
        able = self.state is SERVING and not self.session.doomed and self._client.is_connected
        return able and (self.limit is None or self.begun < self.limit)

    @property
    def room(self) -> int:
        """Return how many more messages it can be given now."""
        if not self.usable:
            return 0
        room = max(0, self._depth - self.load)  # it may have been deeper when it was given what it has
        return room if self.limit is None else max(0, min(room, self.limit - self.begun))

    @property
    def _flows(self) -> bool:
        """Tell whether a message does not wait for the one before it: by BDAT, behind one another."""
        session = self.session
        flowing = session.chunking is Chunking.SHOWN and session.pipelining and session.overlap
        return flowing and self._chunking and "chunking" in session.extensions

    @property
    def at_probe(self) -> bool:
        """Tell whether the probe of BDAT is under way, or the connection has ended within it."""
        return self.session.chunking is Chunking.PROBING

    @property
    def stale(self) -> bool:
        """Tell whether it has answered nothing since it was idle for so long that it may have been dead."""
        return self.busy_since - self.idle_since > STALE

    @property
    def retiring(self) -> bool:
        """Tell whether it is given no more messages, as the pool does not need it, or the server takes no more."""
        return self.state is RETIRING

    @property
    def spent(self) -> bool:
        """Tell whether it has been given as many messages as it may take."""
        return self.limit is not None and self.begun >= self.limit

    def silent_at(self, now: float) -> float:
        """Return the loop's time at which it is given nothing more, as it takes far longer to answer than it did."""
        return (self.busy_since if self.load else now) + max(SILENT, SLOWER * self.service)

    def serves(self, now: float) -> bool:
        """Tell whether it can be given a message, and is not silent."""
        return self.usable and now < self.silent_at(now)

    def most_recipients(self, now: float) -> int | None:
        """Return how many recipients a transaction may have, or None (RFC 9422 §3, RFC 5321 §4.5.3.1.10)."""
        known, learnt = self._recipients, self.relay.most_recipients(now)
        return min(known, learnt) if known and learnt else known or learnt

    # ---- messages ---------------------------------------------------------------------------

    def begin(self, request: DeliveryRequest, now: float) -> None:
        """Start a message; `on_ended` is called when its try has ended, which may be before this returns."""
        apart = False
        if not self.load:
            self.busy_since = now
            apart = self.stale
            if apart:
                self.session.slow_start()
        if now < self.relay.chunking.doubted_until and not self.at_probe:
            self.session.chunking = Chunking.NOT_SHOWN
        request.state = SENDING
        request.connection = self
        request.outcome = request.error = request.transaction = None
        if self._event_log is not None:
            request.begun = clock()
        self.begun += 1
        try:
            message = request.message
            if message.began is None:
                message.began = now
            octets = message.content
            if message.eight_bit and "8bitmime" not in self.session.extensions:
                octets = message.seven_bit()
            if type(octets) is not bytes or len(octets) > WHOLE:
                self.carried += 1
                request.task = task = asyncio.get_running_loop().create_task(self._carry(request, octets))
                task.add_done_callback(lambda task: self._carried_off(request, task))
                return
            transaction = Transaction(
                self.session, request.envelope, whole(octets), chunking=self._chunking, apart=apart
            )
        except Exception as error:  # this message is to blame, and no other
            request.error = error
            if self._event_log is not None:
                self._event_log.delivered(request.envelope, octets, None, error, 0.0)
            self._on_ended(request, self)
            return
        request.transaction = transaction
        request.exchange = exchange = self.session.start(transaction.run())
        exchange.owner = request
        if exchange.state is EXCHANGE_DONE:
            self._done(exchange)
        else:
            exchange.on_done = self._done

    def withdraw(self, request: DeliveryRequest) -> None:
        """Stop a message if it can be stopped; `on_ended` is called in any case."""
        self.withdrew = True
        if request.task is not None:
            request.task.cancel()
            return
        exchange = request.exchange
        assert exchange is not None
        self.session.cancel(exchange)
        exchange.owner = request  # the request is told of the end all the same
        if exchange.done:
            self._done(exchange)

    def _done(self, exchange: Exchange[Any]) -> None:
        """Note how the exchange of a request ended."""
        request: DeliveryRequest = exchange.owner
        request.outcome, request.error = exchange.result, exchange.error
        if self._event_log is not None:
            content, seconds = request.message.content, clock() - request.begun
            self._event_log.delivered(request.envelope, content, request.outcome, request.error, seconds)
        self._on_ended(request, self)

    async def _carry(self, request: DeliveryRequest, content: Any) -> None:
        """Send a message that is large, or has to be read first."""
        progress = _Carried(self, request)
        try:
            request.outcome = await self._client.send(request.envelope, content, progress)
        except SMTPException as error:
            request.error = known(error, error.state or "not_sent")
        except Exception as error:
            request.error = error
        except BaseException as error:  # a function of the caller's may raise anything
            request.error = error
            if isinstance(error, asyncio.CancelledError | KeyboardInterrupt | SystemExit):
                raise
        finally:
            progress.ended()

    def _carried_off(self, request: DeliveryRequest, task: asyncio.Task[None]) -> None:
        """Note that the task of a request has ended: a task that was cancelled before it began could not."""
        if task.cancelled() and request.error is None:
            request.error = asyncio.CancelledError()
        if not self.session.overlap:  # the session has learnt that the server takes none
            self.alone()
        request.task = None
        self.carried -= 1
        self._on_ended(request, self)

    # ---- between messages -------------------------------------------------------------------

    def alone(self) -> None:
        """Send messages one by one from now on: the relay takes no transaction behind an unanswered message."""
        self.session.overlap = self.relay.overlap = False
        self._depth = min(self._depth, SHALLOW)

    def measure(self, now: float, answered: int) -> None:
        """Measure its speed by the messages that were answered since the last time, or since it became busy."""
        self.answered += answered
        each = (now - self.busy_since) / answered
        self.busy_since = self.idle_since = now
        weight = min(1.0, 0.1 * answered)
        self.service += weight * (each - self.service)
        self.relay.service = self.service
        if self._flows:
            self._depth = self.session.window
        else:
            self._depth = max(SHALLOW, min(DEEP, round(AHEAD / max(self.service, 1e-6))))

    def tidy(self) -> None:
        """Send RSET on an idle connection, if a refused message may have left a transaction open.

        A server that refuses RSET is out of step (Exim takes the rest of a chunk that was too large for commands).
        """
        session = self.session
        if session.idle and not session.clean and not session.closed:
            self._tidying = True
            exchange = session.start(session.reset())
            exchange.owner = self
            if exchange.done:
                self._tidied(exchange)
            else:
                exchange.on_done = self._tidied

    def _tidied(self, exchange: Exchange[Any]) -> None:
        """Look at the reply to our own RSET, which no task awaits."""
        self._tidying = False
        reply = exchange.result
        if reply is not None and not reply.ok and self.session.idle:
            self.close()

    def orphaned(self) -> None:
        """End what is under way, as the event loop was closed; the transport is left alone: it can do nothing."""
        session = self.session
        session.on_output = session.on_chunking = lambda: None
        session.notify = _tell
        session.fail(SMTPServerDisconnected("the event loop was closed"))

    def retire(self) -> None:
        """Give it no more messages; the pool closes it when the last one is answered."""
        self.state = RETIRING

    async def leave(self) -> None:
        """Send QUIT, and close.  Does not raise."""
        try:
            if self.is_connected:
                with contextlib.suppress(SMTPException):
                    await self._client.quit()
        finally:
            await self.close()


def make_connection(
    relay: RelayState,
    on_ended: Callable[[DeliveryRequest, PooledConnection], None] = lambda request, connection: None,
    on_lost: Callable[[PooledConnection], None] = lambda connection: None,
    on_probed: Callable[[PooledConnection], None] = lambda connection: None,
) -> PooledConnection:
    """Return a connection to a relay; it is not open yet."""
    return PooledConnection(relay, on_ended, on_lost, on_probed)


def _tell(exchange: Exchange[Any]) -> None:
    """Call an exchange's `on_done`, as a session's `notify` does, but resolve no future: its event loop is closed."""
    if exchange.on_done is not None:
        exchange.on_done(exchange)
