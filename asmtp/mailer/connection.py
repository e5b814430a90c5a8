"""One connection of a pool: an AsyncSMTP that keeps many messages under way, without a task for each."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import math
from collections.abc import Callable
from typing import Any

from asmtp.client.content import WHOLE, Pieces, whole
from asmtp.client.events import clock
from asmtp.client.smtp import AsyncLMTP, AsyncSMTP
from asmtp.errors import DeliveryState, SMTPException, SMTPServerDisconnected
from asmtp.mailer.delivery import state_of
from asmtp.mailer.limits import Limit
from asmtp.mailer.message import QueuedMessage
from asmtp.mailer.relay_state import RelayState
from asmtp.protocol.chunking import Chunking
from asmtp.protocol.envelope import Envelope
from asmtp.protocol.exchange import Exchange
from asmtp.protocol.session import Session
from asmtp.protocol.transaction import Body, Transaction
from asmtp.protocol.verdict import Outcome
from asmtp.transport.connection import Connection

__all__ = ["PooledLMTPConnection", "PooledConnection", "DeliveryRequest"]

STALE = 1.0
"""Seconds without traffic after which a connection may be dead without our knowing.

The next message's content waits for the reply to its envelope then: one round trip more, but if there is none, it is
known that the server does not have the message.
"""

SILENT, SLOWER = 1.0, 10.0
"""A connection that has been silent for so many seconds, and so many times as long as a message took, may hang."""

FEW = 10
"""Messages on a connection for which the probe of BDAT is not worth its round trip."""

AHEAD = 0.02
SHALLOW, DEEP = 4, 16
"""Messages given to a connection where they go one by one: what it does in 20 ms, and so many at least and at most.

The next but one has to be there when the next one's content is written, or a round trip is lost.
"""


_carried: contextvars.ContextVar[DeliveryRequest] = contextvars.ContextVar("_carried")
"""What the current task carries."""


class DeliveryRequest:
    """One transaction of a message, to some of its recipients, or as a rule to all (Postfix has the same term).

    Attributes:
        attempts: how often it was tried, the present time included.
        since: the loop's time at which it was put in line.
        begun: when it was given to a connection, by events.clock; where that is watched.
        connection: the connection it is on.
        over: it has come to an end, and was not handed back yet.
        withdrawn: why nobody wants it any more, or None.
        transaction: what is under way, or was.
        not_begun, silently: how often it went back into the line without anyone's knowing, and why: see pool.Pool.
        limit: what the server had enough of, if that was the end of the last try.
        returned: how often it was put back for that, which counts as no try.
        until: the loop's time at which that ends.
        spent: after how many messages the connection ended that it was put back from, or 0.
        outcome, error: how the last try ended.
        said: what the server said when it was put back.
    """

    __slots__ = (
        "attempts", "begun", "envelope", "error", "exchange", "connection", "limit", "not_begun", "outcome", "over",
        "returned", "said", "message", "silently", "since", "spent", "task", "transaction", "until", "withdrawn",
    )  # fmt: skip

    def __init__(self, message: QueuedMessage, envelope: Envelope, attempts: int = 0) -> None:
        message.pending.append(self)
        self.message = message
        self.envelope = envelope
        self.attempts = attempts
        self.since = self.begun = 0.0
        self.connection: PooledConnection | None = None
        self.exchange: Exchange[Any] | None = None
        self.task: asyncio.Task[None] | None = None
        self.not_begun = 0
        self.silently = 0
        self.limit: Limit | None = None
        self.returned = 0
        self.until = math.inf
        self.spent = 0
        self.said: Exception | None = None
        self.over = False
        self.withdrawn: SMTPException | None = None
        self.transaction: Transaction | None = None
        self.outcome: Outcome | None = None
        self.error: BaseException | None = None

    @property
    def state(self) -> DeliveryState:
        """What is known of it at this moment."""
        if self.outcome is not None or self.error is not None:
            return state_of(self.error)
        return "not_sent" if self.transaction is None else self.transaction.state

    def keep_doubt(self) -> None:
        """Keep it in mind where the message may have been delivered by this try: a later one does not change that."""
        error, transaction = self.error, self.transaction
        if isinstance(error, Exception) and transaction is not None and state_of(error) == "in_doubt":
            answers = transaction.answers()
            for who in self.envelope.recipients:
                if who not in answers or answers[who].ok:
                    self.message.doubt(who, error, accepted=who in answers)


class PooledConnection(AsyncSMTP):
    """A connection and what it is good for.

    Args:
        relay: where to.
        over: is called with each request that has come to an end here.
        lost: is called when the connection is gone.
        rested: is called when the probe of BDAT is over: the message behind it may have been withdrawn meanwhile.

    Attributes:
        begun, answered, taken: how many messages.
        limit: how many it may take, or None.
        until: the loop's time at which it is replaced, or None.
        busy_since: the loop's time at which the last replies came, or it became busy.
        idle_since: the loop's time at which it became idle, or the last replies came.
        retiring: it is given no more messages.
        stale: it had been idle when it was last given something to do, and may have been dead.
        cut: a message was withdrawn, which may have ended the connection.
        suspect: the first message that had no answer when it ended.
        tidying: 1 while a RSET of `tidy` is request of its load: nobody is told of its end, so nothing may wait for it.
        service: seconds between the replies to two messages while it is busy, on average.
    """

    left = 0.0  # seconds until it is open: see schedule.assign()

    def __init__(
        self,
        relay: RelayState,
        over: Callable[[DeliveryRequest], None],
        lost: Callable[[PooledConnection], None],
        rested: Callable[[PooledConnection], None] = lambda connection: None,
    ) -> None:
        self._set_up(relay.config.host, relay.config.port, relay.config)
        self._sessions = relay.sessions
        self._logins = relay.logins
        self._relay_chunking = relay.chunking
        self.relay = relay
        self.over = over
        self._on_lost = lost
        self._on_rested = rested
        self.begun = 0
        self.answered = 0
        self.taken = 0
        self.limit: int | None = None
        self.until: float | None = None
        self.busy_since = 0.0
        self.idle_since = 0.0
        self.service = relay.service
        self.retiring = False
        self.stale = False
        self.cut = False
        self.suspect: DeliveryRequest | None = None
        self._on_done = self._done  # one object for all messages
        self._depth = 1
        self._recipients: int | None = None
        self._carried = 0
        self.tidying = 0

    def _made(self, transport: Connection) -> None:
        super()._made(transport)
        transport.on_lost = lambda: self._on_lost(self)

    def _keep_chunking(self, session: Session, loop: asyncio.AbstractEventLoop) -> None:
        super()._keep_chunking(session, loop)
        heed = session.on_chunking

        def probed() -> None:
            heed()
            loop.call_soon(self._on_rested, self)

        session.on_chunking = probed

    @property
    def session(self) -> Session:
        """The protocol state."""
        return self._session

    async def open(self) -> None:
        """Connect, greet, and see what the server offers.  Raises what `connect` does."""
        await self.connect()
        await self.ehlo_or_helo_if_needed()
        session = self._session
        session.overlap = self.relay.overlap
        self._depth = session.window if self._flows else SHALLOW
        limits = session.extensions.limits
        self._recipients = limits.get("RCPTMAX")
        self._heed_most_messages(limits.get("MAILMAX"))
        self.at_most(self.relay.most_messages(asyncio.get_running_loop().time()))

    def _heed_most_messages(self, announced: int | None) -> None:
        """Heed MAILMAX (RFC 9422 §3): the probe has a MAIL, too, and is not worth its while for a few messages."""
        if announced is None:
            return
        session = self._session
        probes = session.chunking is Chunking.UNKNOWN and "chunking" in session.extensions and self.chunking
        if probes and announced <= FEW:
            session.chunking = Chunking.NOT_SHOWN
            probes = False
        self.at_most(announced - probes)

    def at_most(self, messages: int | None) -> None:
        """It takes no more messages than so many, if that is known."""
        if messages is not None:
            self.limit = messages if self.limit is None else min(messages, self.limit)

    # ---- what a pool wants to know ----------------------------------------------------------

    @property
    def load(self) -> int:
        """How many messages are under way on it."""
        return self._session.load + self._carried

    @property
    def busy(self) -> bool:
        """Whether it has enough to do for a while."""
        return 2 * self.load > self._depth

    @property
    def usable(self) -> bool:
        """Whether it can be given a message."""
        gone = self.retiring or self._session.doomed
        return not gone and self.is_connected and (self.limit is None or self.begun < self.limit)

    @property
    def room(self) -> int:
        """How many more messages it can be given now."""
        if not self.usable:
            return 0
        room = max(0, self._depth - self.load + self.tidying)  # it may have been deeper when it was given what it has
        return room if self.limit is None else max(0, min(room, self.limit - self.begun))

    @property
    def _flows(self) -> bool:
        """Whether a message does not wait for the one before it: by BDAT, behind one another."""
        session = self._session
        flowing = session.chunking is Chunking.SHOWN and session.pipelining and session.overlap
        return flowing and self.chunking and "chunking" in session.extensions

    @property
    def at_probe(self) -> bool:
        """Whether the probe of BDAT is under way, or the connection has ended within it."""
        return self._session.chunking is Chunking.PROBING

    def silent_at(self) -> float:
        """The loop's time at which nothing more should be given to it, as it takes far longer than it did."""
        return self.busy_since + max(SILENT, SLOWER * self.service)

    def serves(self, now: float) -> bool:
        """Whether it can be given a message, and is not silent."""
        return self.usable and (self.load == self.tidying or now < self.silent_at())

    def most_recipients(self, now: float) -> int | None:
        """How many recipients a transaction may have (RFC 9422 §3, RFC 5321 §4.5.3.1.10), as far as it is known."""
        known, learnt = self._recipients, self.relay.most_recipients(now)
        return min(known, learnt) if known and learnt else known or learnt

    # ---- messages ---------------------------------------------------------------------------

    def begin(self, request: DeliveryRequest, now: float) -> None:
        """Start a message; `over` is called when it has come to an end."""
        idle = self.load == self.tidying
        apart = False
        if idle:
            self.busy_since = now
            self.stale = apart = now - self.idle_since > STALE
            if apart:
                self._session.slow_start()
        if now < self._relay_chunking.doubted_until and not self.at_probe:
            self._session.chunking = Chunking.NOT_SHOWN
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
            if message.eight_bit and not self.has_extn("8bitmime"):
                octets = message.seven_bit()
            if type(octets) is not bytes or len(octets) > WHOLE:
                self._carried += 1
                request.task = task = asyncio.get_running_loop().create_task(self._carry(request, octets))
                task.add_done_callback(lambda task: self._carried_off(request, task))
                return
            transaction = Transaction(
                self._session, request.envelope, whole(octets), chunking=self.chunking, apart=apart
            )
        except Exception as error:  # whatever it is, it is this message's
            request.error = error
            if self._event_log is not None:
                self._event_log.delivered(request.envelope, octets, None, error, 0.0)
            self.over(request)
            return
        request.transaction = transaction
        request.exchange = exchange = self._session.start(transaction.run())
        self._tell_of(exchange, request)

    def withdraw(self, request: DeliveryRequest) -> None:
        """Stop a message if it can be stopped; `over` is called in any case."""
        self.cut = True
        if request.task is not None:
            request.task.cancel()
            return
        exchange = request.exchange
        assert exchange is not None
        self._session.cancel(exchange)
        self._tell_of(exchange, request)

    def _tell_of(self, exchange: Exchange[Any], request: DeliveryRequest) -> None:
        """Have `_done` called with the exchange of a request, at once if it is done."""
        exchange.owner = request
        if exchange.done:
            self._done(exchange)
        else:
            exchange.on_done = self._on_done

    def _done(self, exchange: Exchange[Any]) -> None:
        """The exchange of a request is done."""
        request: DeliveryRequest = exchange.owner
        request.outcome, request.error = exchange.result, exchange.error
        if self._event_log is not None:
            content = request.message.content
            self._event_log.delivered(
                request.envelope, content, request.outcome, request.error, clock() - request.begun
            )
        self.over(request)

    async def _carry(self, request: DeliveryRequest, content: Any) -> None:
        """Send a message that is large, or has to be read first."""
        _carried.set(request)
        try:
            request.outcome = await self._send(request.envelope, content)
        except SMTPException as error:
            error.state = error.state or "not_sent"
            request.error = error
        except Exception as error:
            request.error = error
        except BaseException as error:  # a function of the caller's may raise anything
            request.error = error
            if isinstance(error, asyncio.CancelledError | KeyboardInterrupt | SystemExit):
                raise

    def _begin(self, envelope: Envelope, body: Body) -> Transaction:
        _carried.get().transaction = transaction = super()._begin(envelope, body)
        return transaction

    async def _transact(self, envelope: Envelope, body: Body, pieces: Pieces) -> Outcome:
        self._carried -= 1  # meanwhile the session counts it
        try:
            return await super()._transact(envelope, body, pieces)
        finally:
            self._carried += 1

    def _carried_off(self, request: DeliveryRequest, task: asyncio.Task[None]) -> None:
        """The task is over.  One that is cancelled before its first step does not come to know."""
        if task.cancelled() and request.error is None:
            request.error = asyncio.CancelledError()
        if not self._session.overlap:  # it has learnt that
            self.alone()
        request.task = None
        self._carried -= 1
        self.over(request)

    # ---- between messages -------------------------------------------------------------------

    def alone(self) -> None:
        """The relay takes no transaction behind an unanswered message: they go one by one from now on."""
        self._session.overlap = self.relay.overlap = False
        self._depth = min(self._depth, SHALLOW)

    def measure(self, now: float, answered: int) -> None:
        """So many messages were answered since it was asked last, or became busy."""
        self.answered += answered
        each = (now - self.busy_since) / answered
        self.busy_since = self.idle_since = now
        weight = min(1.0, 0.1 * answered)
        self.service += weight * (each - self.service)
        self.relay.service = self.service
        if self._flows:
            self._depth = self._session.window
        else:
            self._depth = max(SHALLOW, min(DEEP, round(AHEAD / max(self.service, 1e-6))))

    def tidy(self) -> None:
        """Where a refused message may have left a transaction open on an idle connection: RSET.

        A server that says no to it is out of step (Exim takes the rest of a chunk that was too large for commands).
        """
        session = self._session
        if session.idle and not session.clean and not session.closed:
            self.tidying = 1
            exchange = session.start(session.reset())
            exchange.owner = self
            exchange.on_done = self._tidied

    def _tidied(self, exchange: Exchange[Any]) -> None:
        """Look at the reply to a RSET that nobody awaits."""
        self.tidying = 0
        reply = exchange.result
        if reply is not None and not reply.ok and self._session.idle:
            self.close()

    def orphaned(self) -> None:
        """The event loop was closed.  What is under way is ended, without the transport, which cannot do anything."""
        session = self._session
        session.on_output = session.on_chunking = lambda: None
        session.notify = _tell
        session.fail(SMTPServerDisconnected("the event loop was closed"))

    async def retire(self) -> None:
        """QUIT, and close.  Does not raise."""
        try:
            if self.is_connected:
                with contextlib.suppress(SMTPException):
                    await self.quit()
        finally:
            await self.close()


class PooledLMTPConnection(PooledConnection, AsyncLMTP):
    """The same for LMTP."""


def _tell(exchange: Exchange[Any]) -> None:
    """As a session's `notify`: what waits for a future in a loop that is closed is not told."""
    if exchange.on_done is not None:
        exchange.on_done(exchange)
