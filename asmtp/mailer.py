"""AsyncMailer: one object that sends a million messages, and knows what became of each."""

from __future__ import annotations

import asyncio
import dataclasses
import heapq
import itertools
import random
import ssl
import time
from collections.abc import AsyncIterable, Callable, Iterable, Sequence
from email.message import Message
from types import TracebackType
from typing import Any, NamedTuple, Self, TypedDict, Unpack

from asmtp.body import Content
from asmtp.delivery import Delivery, Receipt, Shipment, refusals, state_of
from asmtp.errors import SMTPException, SMTPRecipientsRefused, SMTPStateError
from asmtp.lane import Part, Source
from asmtp.options import Timeouts, TLSMode, Token, check
from asmtp.policy import Pace, Rate, Retry, any_throttling, is_throttling
from asmtp.pool import Pool
from asmtp.protocol.envelope import Envelope
from asmtp.protocol.reply import Reply
from asmtp.protocol.transaction import Outcome
from asmtp.run import Deliveries, Run
from asmtp.url import Relay

__all__ = ["AsyncMailer", "MailerOptions", "RelayOptions", "Statistics"]


OCTETS = 1 << 20
"""Octets of content that `send_all` takes ahead for each connection."""


class RelayOptions(TypedDict, total=False):
    """What may be said of all relays at once, over what their URLs say: see :class:`~asmtp.Relay`."""

    tls: TLSMode | None
    ssl_context: ssl.SSLContext | None
    server_hostname: str | None
    local_hostname: str | None
    username: str | None
    password: str | None
    token: Token | None
    pipelining: bool
    chunking: bool
    window_octets: int | None
    source_address: tuple[str, int] | None


class MailerOptions(RelayOptions, total=False):
    """The keyword arguments of :class:`AsyncMailer`."""

    connections: int
    window: int
    rate: str | Rate | None
    retry: Retry | None
    timeouts: float | Timeouts | None
    idle: float | None
    max_messages: int | None
    max_age: float | None


class Statistics(NamedTuple):
    """What a mailer is doing, and has done.

    Attributes:
        open, opening: connections.
        waiting: messages that are on no connection now.
        in_flight: messages of which the outcome is not known, the waiting ones included.
        sent, refused, not_sent, in_doubt: messages so far.
        retried: how often one was sent again.
    """

    open: int
    opening: int
    waiting: int
    in_flight: int
    sent: int
    refused: int
    not_sent: int
    in_doubt: int
    retried: int


class AsyncMailer:
    """Sends messages over a pool of connections; safe to share by any number of tasks of one event loop.

    As an async context manager it waits for what is in flight on leaving, and closes its connections.

    Args:
        relay: a URL, such as ``"smtps://user:secret@smtp.example.com"``, a :class:`~asmtp.Relay`, or several of them:
            the first that can be reached is used.  By default what the environment has in ASMTP_URL.
        connections: how many connections may be open.  They are opened as the load asks.
        window: how many messages may be unanswered on one of them, where the server allows that.
        rate: the most that may be sent, such as ``"100/s"``, or a :class:`~asmtp.Rate`.  It is lowered for a while
            where the server says that it is sent too much.
        retry: what is tried again, and when; None: nothing is.
        timeouts: seconds for every phase, None for no limits, or :class:`~asmtp.Timeouts`, the default.
        idle: seconds after which an unused connection is closed; None: never.
        max_messages, max_age: messages, and seconds, after which a connection is replaced (about so many, so that
            they are not all replaced at once); None: without limit.
        options: what is to hold for all relays, over what their URLs say: see :class:`~asmtp.Relay`.  None says
            nothing.

    Raises:
        ValueError, TypeError: an argument is wrong.
    """

    def __init__(
        self,
        relay: str | Relay | Sequence[str | Relay] | None = None,
        *,
        connections: int = 4,
        window: int = 100,
        rate: str | Rate | None = None,
        retry: Retry | None = Retry(),  # noqa: B008  # immutable
        timeouts: float | Timeouts | None = Timeouts(),  # noqa: B008  # immutable
        idle: float | None = 60,
        max_messages: int | None = None,
        max_age: float | None = 3600,
        **options: Unpack[RelayOptions],
    ) -> None:
        for name, number in (("connections", connections), ("window", window), ("max_messages", max_messages)):
            if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < 1):
                raise ValueError(f"{name} must be a whole number, at least 1, not {number!r}")
        for name, seconds in (("idle", idle), ("max_age", max_age)):
            if seconds is not None and (isinstance(seconds, bool) or not isinstance(seconds, int | float)):
                raise TypeError(f"{name} must be a number of seconds or None, not {type(seconds).__name__}")
            if seconds is not None and not seconds > 0:
                raise ValueError(f"{name} must be a number of seconds above 0 or None, not {seconds!r}")
        if not isinstance(retry, Retry | None):
            raise TypeError(f"retry must be a Retry or None, not {type(retry).__name__}")
        if not isinstance(rate, str | Rate | None):
            raise TypeError(f"rate must be a str, a Rate or None, not {type(rate).__name__}")
        self._relays = _relays(relay, window, options)
        self._connections = connections
        self._window = window
        self._rate = None if rate is None else Rate.of(rate)
        self._retry = retry
        self._timeouts = Timeouts.of(timeouts)
        self._idle = idle
        self._max_messages = max_messages
        self._max_age = max_age
        self._pool: Pool | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closing = False
        self._aborted = False
        self._flying = 0
        self._runs: set[Run] = set()
        self._unclaimed: list[Delivery] = []
        self._quiet: asyncio.Future[None] | None = None
        self._later: list[tuple[float, int, Part]] = []  # a heap: parts that are tried again at a time
        self._counter = itertools.count()
        self._timer: asyncio.TimerHandle | None = None
        self._counts = dict.fromkeys(("sent", "refused", "not_sent", "in_doubt"), 0)
        self._retried = 0

    def __repr__(self) -> str:
        return f"<{type(self).__module__}.{type(self).__name__} {', '.join(relay.name for relay in self._relays)}>"

    @property
    def stats(self) -> Statistics:
        """What it is doing, and has done."""
        pool = self._pool
        lanes, opening = (0, 0) if pool is None else (len(pool.lanes), pool.opening)
        waiting = len(self._later) + (0 if pool is None else len(pool.waiting))
        return Statistics(lanes, opening, waiting, self._flying, **self._counts, retried=self._retried)

    # ---- what people call -------------------------------------------------------------------

    async def send(
        self,
        message: Content | Envelope,
        sender: str | None = None,
        recipients: str | Iterable[str] | None = None,
        *,
        mail_options: Sequence[str] = (),
        rcpt_options: Sequence[str] = (),
        require_all: bool = False,
    ) -> Receipt:
        """Send one message, and wait until a server has taken it.

        Args:
            message: an EmailMessage; or anything that :meth:`asmtp.AsyncSMTP.sendmail` takes, with sender and
                recipients; or an :class:`~asmtp.Envelope` with its content.
            sender, recipients: by default those of the message's headers.
            mail_options: ESMTP parameters for MAIL.
            rcpt_options: ESMTP parameters for every RCPT.
            require_all: raise SMTPRecipientsRefused where a recipient is refused, though others have the message;
                its `state` is "sent" then, and its `receipt` tells for whom.

        Returns:
            Who has it and who has not, and what the server said.

        Raises:
            SMTPRecipientsRefused, SMTPSenderRefused, SMTPDataError: the server said no, in the end.
            SMTPServerDisconnected: the connection was lost, or there was none; `state` tells what is known of the
                message.
            SMTPException: as :class:`~asmtp.AsyncSMTP` raises them.
            SMTPStateError: the mailer was closed.
            ValueError, TypeError: an argument is wrong; nothing was written.
        """
        if isinstance(message, Envelope):
            if sender is not None or recipients is not None or mail_options or rcpt_options:
                raise TypeError("an Envelope has its own sender, recipients and options")
            envelope = message
        else:
            envelope = _enveloped(message, sender, recipients, mail_options, rcpt_options)
        pool = self._opened()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[tuple[Receipt | None, Exception | None]] = loop.create_future()

        def arrived(shipment: Shipment) -> None:
            verdict = shipment.verdict(time.time())
            self.count(state_of(verdict[1]))
            if not future.done():
                future.set_result(verdict)

        shipment = Shipment(message, envelope, arrived, loop.time(), time.time())
        self._submit(shipment)
        pool.dispatch()
        try:
            receipt, error = await future
        except asyncio.CancelledError:
            self._withdraw(shipment)
            raise
        if error is not None:
            raise error
        assert receipt is not None
        if require_all and not receipt.complete:
            partly = SMTPRecipientsRefused(receipt.refused)
            partly.state = "sent"
            partly.receipt = receipt
            raise partly
        return receipt

    def send_all(self, messages: Iterable[Any] | AsyncIterable[Any], *, in_order: bool = False) -> Deliveries:
        """Send many messages, and tell of each what became of it.

        It pulls messages as they can be sent, and never holds more than a bounded number.  Nothing that goes wrong with
        one of them stops the others.  What the iterable itself raises is raised when the rest is told.

        Args:
            messages: an iterable or async iterable of EmailMessage, :class:`~asmtp.Envelope` with content, or
                (sender, recipients, content).  An iterable is asked in the event loop, so it should not block.
            in_order: tell of them in their order, not as they are done.

        Returns:
            An async iterator of :class:`~asmtp.Delivery`.  Leaving the loop ends the run: no more is pulled, what is in
            flight is finished, and :meth:`drain` (or the iterator's own `aclose`) returns what is known of it.
        """
        if not hasattr(messages, "__aiter__") and not hasattr(messages, "__iter__"):
            raise TypeError(f"messages must be an iterable or async iterable, not {type(messages).__name__}")
        if self._closing:
            raise SMTPStateError("the mailer was closed")
        return Deliveries(self.run(in_order=in_order), messages)

    async def drain(self) -> list[Delivery]:
        """Wait until nothing is in flight.

        Returns:
            What became of the messages of loops over `send_all` that were left.
        """
        self._at_home()
        await self._silence()
        unclaimed, self._unclaimed = self._unclaimed, []
        return unclaimed

    async def aclose(self) -> None:
        """Wait until nothing is in flight, and close all connections.  Nothing more is taken."""
        self._at_home()
        self._closing = True
        for run in list(self._runs):
            run.stop()
        await self._silence()
        if self._pool is not None:
            await self._pool.aclose()

    def abort(self) -> None:
        """Close all connections at once; what is in flight is ended with what is known of it."""
        self._closing = self._aborted = True
        for run in list(self._runs):
            run.stop()
        if self._timer is not None:
            self._timer.cancel()
        if self._pool is not None:
            self._pool.abort()
        later, self._later = self._later, []
        for _, _, part in later:
            self._give_up(part)
        self._settled()

    async def __aenter__(self) -> Self:
        self._opened()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None or issubclass(kind, Exception):
                await self.aclose()
        finally:
            self.abort()
            await self._silence()
            if self._pool is not None:
                await self._pool.wait_closed()

    # ---- for Run and for Mailer -------------------------------------------------------------

    def run(self, *, in_order: bool) -> Run:
        """The account of a `send_all`."""
        connections = self._connections
        run = Run(self, connections * self._window, connections * OCTETS, 2 * connections, in_order=in_order)
        self._runs.add(run)
        return run

    def left(self, run: Run, deliveries: Iterable[Delivery]) -> None:
        """A run has ended; nobody has taken these."""
        self._runs.discard(run)
        self._unclaimed += deliveries

    def take(self, shipment: Shipment) -> None:
        """Put a message in line; `dispatch` is to be called then."""
        if self._closing:
            raise SMTPStateError("the mailer was closed")
        self._opened()
        self._submit(shipment)

    def dispatch(self) -> None:
        """Send what is in line."""
        if self._pool is not None:
            self._pool.dispatch()

    def give_up(self, run: Run) -> None:
        """End what is in line and on no connection."""
        pool = self._pool
        if pool is None:
            return
        for part in [part for part in pool.waiting if part.shipment.arrived is run.arrived]:
            pool.waiting.remove(part)
            self._give_up(part)
        for part in self._wakened(lambda part: part.shipment.arrived is run.arrived):
            self._give_up(part)
        self._settled()

    # ---- inside -----------------------------------------------------------------------------

    def _opened(self) -> Pool:
        """The pool, which belongs to the loop that it is used in."""
        if self._closing:
            raise SMTPStateError("the mailer was closed")
        self._at_home()
        if self._pool is None:
            self._loop = asyncio.get_running_loop()
            self._pool = Pool(
                self._relays,
                self._connections,
                self._timeouts,
                idle=self._idle,
                max_messages=self._max_messages,
                max_age=self._max_age,
                pace=None if self._rate is None else Pace(self._rate),
                ended=self._ended,
                settled=self._settled,
            )
        return self._pool

    def _at_home(self) -> None:
        if self._loop is not None and self._loop is not asyncio.get_running_loop():
            raise SMTPStateError("a mailer belongs to the event loop that it was first used in")

    def _submit(self, shipment: Shipment) -> None:
        assert self._pool is not None
        self._flying += 1
        self._pool.submit(Part(shipment, shipment.envelope))

    def _withdraw(self, shipment: Shipment) -> None:
        assert self._pool is not None
        for part in self._wakened(lambda part: part.shipment is shipment):
            self._give_up(part)
        for part in shipment.parts:
            self._pool.withdraw(part)
        self._pool.dispatch()
        self._settled()

    def _wakened(self, chosen: Callable[[Part], bool]) -> list[Part]:
        """Those parts among the ones that are to be tried again, which are not any more."""
        found = [entry[2] for entry in self._later if chosen(entry[2])]
        if found:
            self._later = [entry for entry in self._later if not chosen(entry[2])]
            heapq.heapify(self._later)
            self._set_timer()
        return found

    def _ended(self, part: Part, source: Source) -> None:
        """A part has come to an end: to tell, or to try again."""
        shipment = part.shipment
        shipment.attempts = max(shipment.attempts, part.attempts)
        outcome, error = part.outcome, part.error
        if error is None and outcome is not None:
            shipment.took(outcome, source.name)
            if outcome.refused:
                self._refused(part, outcome, source)
        elif part.withdrawn or not isinstance(error, Exception):
            self._told(part, error)
        else:
            self._failed(part, error)
            return
        self._close_part(shipment)

    def _close_part(self, shipment: Shipment) -> None:
        shipment.open -= 1
        if not shipment.open:
            self._flying -= 1
            shipment.arrived(shipment)

    def _told(self, part: Part, error: BaseException | None) -> None:
        """It was withdrawn: nobody will ask, but the account has to be closed."""
        told = error if isinstance(error, Exception) else SMTPException("given up")
        part.shipment.failed_for(part.envelope.recipients, told)

    def _failed(self, part: Part, error: Exception) -> None:
        """It came to nothing: try again, or leave it at that."""
        assert self._pool is not None
        shipment = part.shipment
        now = self._pool.loop.time()
        self._notice(error)
        delay = None
        if self._retry is not None and not shipment.once and not self._aborted:
            delay = self._retry.delay(part.attempts, now - shipment.began, error, random.random())
        if delay is not None:
            self._drop_refused(part, error)
            self._again(part, now + delay)
            return
        shipment.failed_for(part.envelope.recipients, error)
        self._close_part(shipment)

    def _drop_refused(self, part: Part, error: Exception) -> None:
        """What is tried again is tried for those only whom the server may take later."""
        if isinstance(error, SMTPRecipientsRefused):
            final = {who: reply for who, reply in refusals(error).items() if not 400 <= reply.code <= 499}
            if final:
                part.shipment.refused.update(final)
                places = [n for n, who in enumerate(part.envelope.recipients) if who not in final]
                part.envelope = part.envelope.only(places)

    def _refused(self, part: Part, outcome: Outcome, source: Source) -> None:
        """It was taken, but not for everyone: some may get a transaction of their own."""
        assert self._pool is not None
        shipment, refused = part.shipment, outcome.refused
        recipients = part.envelope.recipients
        if any_throttling(refused.values()):
            self._throttled()
        if shipment.once or part.withdrawn or self._aborted:
            shipment.refused.update(refused)
            return
        crowded = {who for who, reply in refused.items() if _too_many(reply)}
        if crowded:
            # RFC 5321 §4.5.3.1.10: those behind the limit are to be sent to in transactions of their own.
            source.most_recipients = max(1, len(recipients) - len(crowded))
            rest = part.envelope.only([n for n, who in enumerate(recipients) if who in crowded])
            self._pool.waiting.append(Part(shipment, rest, part.attempts))
        later = {who for who, reply in refused.items() if 400 <= reply.code <= 499} - crowded
        now = self._pool.loop.time()
        delay = None
        if later and self._retry is not None:
            delay = self._retry.wait(part.attempts, now - shipment.began, random.random())
        if delay is not None:
            rest = part.envelope.only([n for n, who in enumerate(recipients) if who in later])
            again = Part(shipment, rest, part.attempts)
            again.error = SMTPRecipientsRefused({who: refused[who] for who in later})  # if that is the end of it
            again.error.state = "refused"
            self._again(again, now + delay)
        else:
            later = set()
        shipment.refused.update({who: reply for who, reply in refused.items() if who not in crowded | later})

    def _again(self, part: Part, when: float) -> None:
        """Try a part again, at `when`."""
        self._retried += 1
        heapq.heappush(self._later, (when, next(self._counter), part))
        if self._later[0][2] is part:
            self._set_timer()

    def _set_timer(self) -> None:
        assert self._pool is not None
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._pool.loop.call_at(self._later[0][0], self._due) if self._later else None

    def _due(self) -> None:
        """It is time for some parts."""
        pool = self._pool
        assert pool is not None
        now = pool.loop.time()
        while self._later and self._later[0][0] <= now:
            pool.submit(heapq.heappop(self._later)[2])
        self._set_timer()
        pool.dispatch()

    def _give_up(self, part: Part) -> None:
        """A part that is on no connection is not tried any more."""
        error = part.error
        if not isinstance(error, Exception):
            error = SMTPStateError("not begun: the mailer was closed, or the loop over send_all left")
            error.state = "not_sent"
        part.shipment.failed_for(part.envelope.recipients, error)
        self._close_part(part.shipment)

    def _notice(self, error: Exception) -> None:
        """A server that says it is sent too much is sent less."""
        if isinstance(error, SMTPRecipientsRefused) and any_throttling(refusals(error).values()):
            self._throttled()
        code, text = getattr(error, "smtp_code", 0), getattr(error, "smtp_error", b"")
        if isinstance(text, bytes) and isinstance(code, int) and is_throttling(Reply(code, text)):
            self._throttled()

    def _throttled(self) -> None:
        pool = self._pool
        if pool is not None and pool.pace is not None:
            pool.pace = pool.pace.throttled(pool.loop.time())

    def _settled(self) -> None:
        """A batch of parts has been seen to."""
        for run in list(self._runs):
            run.settled()
        if self._quiet is not None and not self._flying and not self._quiet.done():
            self._quiet.set_result(None)

    async def _silence(self) -> None:
        """Until nothing is in flight, and no iterable is asked that was left."""
        here = asyncio.current_task()
        while True:
            left = [run.pulling for run in self._runs if run.stopped and run.pulling not in (None, here)]
            if self._flying:
                if self._quiet is None or self._quiet.done():
                    self._quiet = asyncio.get_running_loop().create_future()
                await asyncio.shield(self._quiet)
            elif left:
                await asyncio.wait([task for task in left if task is not None])
                await asyncio.sleep(0)  # for who sees to their end
            else:
                break

    def count(self, state: str) -> None:
        """A message has this state in the end."""
        self._counts[state] += 1


def _enveloped(
    message: Any,
    sender: str | None,
    recipients: str | Iterable[str] | None,
    mail_options: Sequence[str],
    rcpt_options: Sequence[str],
) -> Envelope:
    if isinstance(message, Message):
        return Envelope.from_message(message, sender, recipients, mail_options, rcpt_options)
    if sender is None or recipients is None:
        missing = "sender" if sender is None else "recipients"
        raise ValueError(f"{missing}: not given, and only an EmailMessage has headers to take it from")
    return Envelope(sender, recipients, mail_options, rcpt_options, content=message)


def _too_many(reply: Reply) -> bool:
    """RFC 5321 §4.5.3.1.10: 452, and 552 of old servers, may mean that there are too many recipients."""
    if reply.code == 452:
        return not reply.enhanced or reply.enhanced.endswith(".5.3")
    return reply.code == 552 and (reply.enhanced.endswith(".5.3") or b"too many" in reply.message.lower())


def _relays(given: str | Relay | Sequence[str | Relay] | None, window: int, options: RelayOptions) -> list[Relay]:
    """The relays, with the options that are to hold for all.

    Raises:
        ValueError, TypeError: one is wrong.
    """
    unknown = set(options) - set(RelayOptions.__annotations__)
    if unknown:
        raise TypeError(f"AsyncMailer() got an unexpected keyword argument {min(unknown)!r}")
    if given is None:
        found = Relay.from_environment()
    else:
        several = [given] if isinstance(given, str | Relay) or not isinstance(given, Iterable) else given
        found = [Relay.from_url(one) if isinstance(one, str) else one for one in several]
    if not found:
        raise ValueError("relay: none is given")
    for relay in found:
        if not isinstance(relay, Relay):
            raise TypeError(f"relay must be a URL or a Relay, not {type(relay).__name__}")
    said: Any = {name: value for name, value in options.items() if value is not None}
    relays = [dataclasses.replace(relay, window=relay.window or window, **said) for relay in found]
    for relay in relays:
        check({"username": relay.username, "password": relay.password, "token": relay.token}, "AsyncMailer")
    return relays
