"""AsyncMailer: one object that sends a million messages, and knows what became of each."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import time
import warnings
from collections import deque
from collections.abc import AsyncIterable, Callable, Iterable, Sequence
from email.message import Message
from types import EllipsisType, TracebackType
from typing import Any, NamedTuple, Self, Unpack

from asmtp.client.content import Content
from asmtp.client.relay import Relay
from asmtp.client.settings import ConnectionSettings, SharedOptions, with_options
from asmtp.errors import SMTPRecipientsRefused, SMTPStateError
from asmtp.mailer.bulk import BulkSend, Deliveries, resolve
from asmtp.mailer.connection import make_connection
from asmtp.mailer.delivery import Delivery, Receipt, state_of
from asmtp.mailer.message import QueuedMessage, is_heavy
from asmtp.mailer.policy import Retry
from asmtp.mailer.pool import Pool
from asmtp.mailer.queue import DeliveryQueue
from asmtp.mailer.rate import Rate, RateLimiter
from asmtp.mailer.relay_state import Kept, RelayState
from asmtp.protocol.envelope import Envelope
from asmtp.protocol.hidden import hidden, hide
from asmtp.protocol.parameters import Requests
from asmtp.transport.offload import call_in_thread
from asmtp.transport.timeouts import Timeouts

__all__ = ["AsyncMailer", "MailerOptions", "RelayOptions", "Statistics", "check_limit"]


logger = logging.getLogger("asmtp")

OCTETS = 1 << 20
"""Octets of content that `send_all` takes ahead for each connection."""

UNCLAIMED = 10_000
"""Deliveries that are kept for `drain`."""


class RelayOptions(SharedOptions, total=False):
    """What may be said of all relays at once, over what their URLs say: see :class:`~asmtp.Relay`."""

    local_hostname: str | None
    source_address: tuple[str, int] | None
    window_octets: int | None


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
    close_timeout: float | None


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


@with_options(RelayOptions.__annotations__, ConnectionSettings)
class AsyncMailer:
    """Sends messages over a pool of connections; safe to share by any number of tasks of one event loop.

    As an async context manager it waits for what is in flight on leaving, and closes its connections.

    Args:
        relay: a URL, such as ``"smtps://user:secret@smtp.example.com"``, a :class:`~asmtp.Relay`, or several of them:
            the first that can be reached is used.  By default what the environment has in ASMTP_URL.
        connections: how many connections may be open.  They are opened as the load asks.
        window: how many messages may be unanswered on one of them, where the server allows that; by default what the
            URL says, or else 100.
        rate: the most that may be sent, such as ``"100/s"``, or a :class:`~asmtp.Rate`.  It is lowered for a while
            where the server says that it is sent too much.
        retry: what is tried again, and when; None: nothing is.
        timeouts: seconds for every phase, None for no limits, or :class:`~asmtp.Timeouts`; by default what the URL
            says, or else ``Timeouts()``.
        idle: seconds after which an unused connection is closed; None: never.
        max_messages, max_age: messages, and seconds, after which a connection is replaced (about so many, so that
            they are not all replaced at once); None: without limit.
        close_timeout: seconds after which leaving, and `aclose`, do not wait any more for what is in flight; None:
            without limit.
        options: what is to hold for all relays, over what their URLs say; None says nothing.  They are:
        {options}

    Raises:
        ValueError, TypeError: an argument is wrong.
    """

    def __init__(
        self,
        relay: str | Relay | Sequence[str | Relay] | None = None,
        *,
        connections: int = 4,
        window: int | None = None,
        rate: str | Rate | None = None,
        retry: Retry | None = Retry(),  # noqa: B008  # immutable
        timeouts: float | Timeouts | EllipsisType | None = ...,
        idle: float | None = 60,
        max_messages: int | None = None,
        max_age: float | None = 3600,
        close_timeout: float | None = 20,
        **options: Unpack[RelayOptions],
    ) -> None:
        if isinstance(relay, str | list | tuple):
            relay = hidden(relay)
        hide(options)
        for name, number in (("connections", connections), ("window", window), ("max_messages", max_messages)):
            if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < 1):
                raise ValueError(f"{name} must be a whole number, at least 1, not {number!r}")
        for name, seconds in (("idle", idle), ("max_age", max_age), ("close_timeout", close_timeout)):
            check_limit(name, seconds)
        if not isinstance(retry, Retry | None):
            raise TypeError(f"retry must be a Retry or None, not {type(retry).__name__}")
        if not isinstance(rate, str | Rate | None):
            raise TypeError(f"rate must be a str, a Rate or None, not {type(rate).__name__}")
        self._relays = _relays(relay, window, timeouts, options)
        self._connections = connections
        self._window = max(relay.windows[0] for relay in self._relays)
        self._rate = None if rate is None else Rate.of(rate)
        self._retry = retry
        self._idle = idle
        self._max_messages = max_messages
        self._max_age = max_age
        self._close_timeout = close_timeout
        self._kept = [Kept() for _ in self._relays]
        self._queue: DeliveryQueue | None = None  # once it is used
        self._closing = False
        self._bulks: set[BulkSend] = set()
        self._unclaimed: deque[Delivery] = deque(maxlen=UNCLAIMED)
        self._counts = dict.fromkeys(("sent", "refused", "not_sent", "in_doubt"), 0)
        self._retried = 0  # in event loops that are no more

    def __repr__(self) -> str:
        relays = getattr(self, "_relays", ())  # the constructor may have raised
        return f"<{type(self).__module__}.{type(self).__name__} {', '.join(relay.name for relay in relays)}>"

    def __del__(self, warn: Callable[..., None] = warnings.warn) -> None:
        if not vars(self).get("_closing", True) and self._queue is not None and self._queue.connections:
            warn(f"{self!r} was never closed: use it with async with, or await aclose()", ResourceWarning, 2, self)

    def __getstate__(self) -> dict[str, Any]:
        """Have its settings pickled and copied, not what it is doing: it comes out as one that was not used."""
        return vars(self) | {
            "_kept": [Kept() for _ in self._kept],
            "_queue": None,
            "_closing": False,
            "_bulks": set(),
            "_unclaimed": deque(maxlen=UNCLAIMED),
            "_counts": dict.fromkeys(self._counts, 0),
            "_retried": 0,
        }

    @property
    def stats(self) -> Statistics:
        """What it is doing, and has done."""
        queue = self._queue
        now = (0, 0, 0, 0) if queue is None else (queue.connections, queue.opening, queue.waiting, queue.in_flight)
        retried = self._retried + (0 if queue is None else queue.retried)
        return Statistics(*now, **self._counts, retried=retried)

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
        timeout: float | None = None,
        **requests: Unpack[Requests],
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
            timeout: seconds for the whole, waiting in line and all tries included; None: without limit.
            requests: what else is asked for: see :class:`~asmtp.protocol.parameters.Requests`.

        Returns:
            Who has it and who has not, and what the server said.

        Raises:
            SMTPRecipientsRefused, SMTPSenderRefused, SMTPDataError: the server said no, in the end.
            SMTPServerDisconnected: the connection was lost, or there was none; `state` tells what is known of the
                message.
            SMTPTimeoutError: the seconds of `timeout`, or of a phase, were over; `state` tells as well.
            SMTPException: as :class:`~asmtp.AsyncSMTP` raises them.
            SMTPStateError: the mailer was closed.
            asyncio.CancelledError: the caller was cancelled; it has a `state`, too, and a `receipt` where some of the
                recipients have it by then.
            ValueError, TypeError: an argument is wrong; nothing was written.
        """
        check_limit("timeout", timeout)
        if isinstance(message, Envelope):
            if sender is not None or recipients is not None or mail_options or rcpt_options or requests:
                raise TypeError("an Envelope has its own sender, recipients and options")
            envelope = message
        else:
            envelope = _enveloped(message, sender, recipients, mail_options, rcpt_options, requests)
        receipt, error = await self._outcome(message, envelope, timeout)
        if error is not None:
            raise error
        assert receipt is not None
        if require_all and not receipt.complete:
            partly = SMTPRecipientsRefused(receipt.refused)
            partly.state = "sent"
            partly.receipt = receipt
            raise partly
        return receipt

    async def _outcome(
        self, message: Any, envelope: Envelope, timeout: float | None
    ) -> tuple[Receipt | None, Exception | None]:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        future: asyncio.Future[tuple[Receipt | None, Exception | None]] = loop.create_future()

        def arrived(queued: QueuedMessage) -> None:
            verdict = queued.verdict(time.time())
            self.count(state_of(verdict[1]))
            resolve(future, verdict)

        given = message, envelope, arrived, time.time()
        if is_heavy(envelope):
            queued = await call_in_thread(QueuedMessage, *given, abandon=True)
        else:
            queued = QueuedMessage(*given)
        queue = self._begun()
        queue.submit(queued)
        queue.dispatch()
        timer = None if timeout is None else loop.call_at(begun + timeout, queue.expire, queued, timeout)
        try:
            return await future
        except asyncio.CancelledError as cancelled:
            cancelled.state = queue.withdraw(queued)  # type: ignore[attr-defined]  # as AsyncSMTP has it
            cancelled.receipt = queued.so_far(time.time())  # type: ignore[attr-defined]
            raise
        finally:
            if timer is not None:
                timer.cancel()

    def send_all(
        self, messages: Iterable[Any] | AsyncIterable[Any], *, in_order: bool = False, timeout: float | None = None
    ) -> Deliveries:
        """Send many messages, and tell of each what became of it.

        It pulls messages as they can be sent, and never holds more than a bounded number.  Nothing that goes wrong with
        one of them stops the others.  What the iterable itself raises is raised when the rest is told.

        Args:
            messages: an iterable or async iterable of EmailMessage, :class:`~asmtp.Envelope` with content, or
                (sender, recipients, content).  An iterable is asked in the event loop, so it should not block.
            in_order: tell of them in their order, not as they are done.
            timeout: seconds for the whole of each message, from when it is taken, all tries included; None: without
                limit.

        Returns:
            An async iterator of :class:`~asmtp.Delivery`.  Where the mailer is closed meanwhile, it tells what is known
            and raises SMTPStateError.  Leaving the loop ends it: no more is pulled, what is in
            flight is finished, and :meth:`drain` (or the iterator's own `aclose`) returns what is known of it.
        """
        if not hasattr(messages, "__aiter__") and not hasattr(messages, "__iter__"):
            raise TypeError(f"messages must be an iterable or async iterable, not {type(messages).__name__}")
        check_limit("timeout", timeout)
        if self._closing:
            raise SMTPStateError("the mailer was closed")
        return Deliveries(self.bulk(in_order=in_order, timeout=timeout), messages)

    async def verify(self) -> None:
        """Connect to each relay, log in, and close: for the start of a program, to find a wrong setting early.

        Raises:
            SMTPException: what a message would meet, with the OSError or SSLError as its `__cause__`; with several
                relays the first that failed, when all were tried.
        """
        failed: list[Exception] = []
        for relay, kept in zip(self._relays, self._kept, strict=True):
            state = RelayState(relay, kept)
            connection = make_connection(state)
            try:
                await connection.open()
                await connection.leave()
            except Exception as error:
                told = state.no_connection(error)
                told.add_note(f"relay: {relay.name}")
                failed.append(told)
            finally:
                connection.close()
        if failed:
            raise failed[0]

    async def drain(self) -> list[Delivery]:
        """Wait until nothing is in flight.

        Returns:
            What became of the messages of loops over `send_all` that were left; of the last 10,000, if they are more.
            A loop is left when nothing refers to its iterator any more; who keeps it asks its `aclose`.
        """
        await self._silence()
        return self.claimed()

    def claimed(self) -> list[Delivery]:
        """The same without waiting: what is known, and nobody has taken."""
        unclaimed = list(self._unclaimed)
        self._unclaimed.clear()
        return unclaimed

    async def aclose(self, timeout: float | EllipsisType | None = ...) -> None:
        """Wait until nothing is in flight, and close all connections.  Nothing more is taken.

        Args:
            timeout: seconds after which it does not wait any more (see :meth:`abort`), and logs how many messages it
                has given up; None: without limit; by default the mailer's `close_timeout`.
        """
        if isinstance(timeout, EllipsisType):
            timeout = self._close_timeout
        self._at_home()
        self._closing = True
        for bulk in list(self._bulks):
            bulk.stop()
        try:
            async with asyncio.timeout(timeout):
                await self._silence()
                if self._queue is not None:
                    await self._queue.aclose()
        except TimeoutError:
            self.cut()
            await self._silence()

    def cut(self) -> None:
        """The time to close is over: the same as `abort`, and the log is told how many messages that gives up."""
        given_up = self.stats.in_flight
        if given_up:
            logger.warning("closed before all was sent: gave up %d messages", given_up)
        self.abort()
        for bulk in list(self._bulks):
            bulk.forsake()

    def abort(self) -> None:
        """Close all connections at once; what is in flight is ended with what is known of it."""
        self._closing = True
        for bulk in list(self._bulks):
            bulk.stop()
        queue = self._queue
        if queue is not None and queue.loop.is_closed():
            self._bereaved(queue)
        elif queue is not None:
            queue.abort()
        self._settled()

    async def __aenter__(self) -> Self:
        self._begun()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None or issubclass(kind, Exception):
                await self.aclose()
        finally:
            self.abort()
            try:
                async with asyncio.timeout(self._close_timeout):
                    await self._silence()
            except TimeoutError:
                self.cut()
            if self._queue is not None:
                await self._queue.wait_closed()

    # ---- for BulkSend and for Mailer -------------------------------------------------------------

    def bulk(self, *, in_order: bool, timeout: float | None) -> BulkSend:
        """The account of a `send_all`."""
        connections = self._connections
        bulk = BulkSend(
            self,
            connections * self._window,
            connections * OCTETS,
            2 * connections,
            in_order=in_order,
            timeout=timeout,
            patience=self._close_timeout,
        )
        self._bulks.add(bulk)
        return bulk

    def left(self, bulk: BulkSend, deliveries: Iterable[Delivery]) -> None:
        """A bulk send has ended; nobody has taken these."""
        self._bulks.discard(bulk)
        self._unclaimed += deliveries

    def take(self, queued: QueuedMessage) -> None:
        """Put a message in line; `dispatch` is to be called then."""
        self._begun().submit(queued)

    def expire(self, queued: QueuedMessage, seconds: float) -> None:
        """Its time, so many seconds, is up."""
        if self._queue is not None:
            self._queue.expire(queued, seconds)

    def dispatch(self) -> None:
        """Send what is in line."""
        if self._queue is not None:
            self._queue.dispatch()

    def give_up(self, bulk: BulkSend) -> None:
        """End what is in line and on no connection; everything, where the loop that it went by is closed."""
        queue = self._queue
        if queue is not None and queue.loop.is_closed():
            self._bereaved(queue)
        elif queue is not None:
            queue.give_up(lambda request: request.message.arrived is bulk.arrived)

    def count(self, state: str) -> None:
        """A message has this state in the end."""
        self._counts[state] += 1

    # ---- inside -----------------------------------------------------------------------------

    def _begun(self) -> DeliveryQueue:
        """What belongs to the loop that the mailer is used in."""
        if self._closing:
            raise SMTPStateError("the mailer was closed")
        queue = self._at_home()
        if queue is None:
            self._queue = queue = DeliveryQueue(self._open_pool(), self._retry, self._settled)
        return queue

    def _open_pool(self) -> Pool:
        return Pool(
            [RelayState(relay, kept) for relay, kept in zip(self._relays, self._kept, strict=True)],
            self._connections,
            make_connection,
            idle=self._idle,
            max_messages=self._max_messages,
            max_age=self._max_age,
            limiter=None if self._rate is None else RateLimiter(self._rate),
        )

    def _at_home(self) -> DeliveryQueue | None:
        queue = self._queue
        if queue is None or queue.loop is asyncio.get_running_loop():
            return queue
        if not queue.loop.is_closed():
            raise SMTPStateError(
                "a mailer belongs to the event loop that it was first used in; for threads there is asmtp.Mailer"
            )
        self._bereaved(queue)
        return None

    def _bereaved(self, queue: DeliveryQueue) -> None:
        """Its loop was closed, as between one asyncio.run() and the next, and the connections went with it."""
        self._queue = None
        queue.orphaned()
        self._retried += queue.retried
        for bulk in list(self._bulks):
            bulk.bereaved()

    def _settled(self) -> None:
        """A batch of messages has been seen to."""
        for bulk in list(self._bulks):
            bulk.settled()

    async def _silence(self) -> None:
        """Until nothing is in flight, and no iterable is asked that was left."""
        here = asyncio.current_task()
        queue = self._at_home()
        while True:
            left = [bulk for bulk in self._bulks if bulk.stopped and bulk.pulling not in (None, here)]
            if queue is not None and queue.in_flight:
                await queue.quiet()
            elif left:
                await left[0].change()
            else:
                break


def _enveloped(
    message: Any,
    sender: str | None,
    recipients: str | Iterable[str] | None,
    mail_options: Sequence[str],
    rcpt_options: Sequence[str],
    requests: Requests,
) -> Envelope:
    if isinstance(message, Message):
        return Envelope.from_message(message, sender, recipients, mail_options, rcpt_options, **requests)
    if sender is None or recipients is None:
        missing = "sender" if sender is None else "recipients"
        raise ValueError(f"{missing}: not given, and only an EmailMessage has headers to take it from")
    return Envelope(sender, recipients, mail_options, rcpt_options, content=message, **requests)


def check_limit(name: str, seconds: float | None) -> None:
    """Raise TypeError or ValueError where it is neither a number of seconds nor None."""
    if seconds is not None and (isinstance(seconds, bool) or not isinstance(seconds, int | float)):
        raise TypeError(f"{name} must be a number of seconds or None, not {type(seconds).__name__}")
    if seconds is not None and not seconds > 0:
        raise ValueError(f"{name} must be a number of seconds above 0 or None, not {seconds!r}")


def _relays(
    given: str | Relay | Sequence[str | Relay] | None,
    window: int | None,
    timeouts: float | Timeouts | EllipsisType | None,
    options: RelayOptions,
) -> list[Relay]:
    """The relays, with the options that are to hold for all.

    Raises:
        ValueError, TypeError: one is wrong.
    """
    unknown = set(options) - set(RelayOptions.__annotations__)
    if "timeout" in unknown:
        raise TypeError(
            "AsyncMailer() has no timeout=: there is timeouts= for each phase, and the timeout= of send() and "
            "send_all() for the whole of a message"
        )
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
    if window is not None:
        said["window"] = window
    if timeouts is not ...:
        said["timeouts"] = Timeouts.of(timeouts, "timeouts")
    relays = [dataclasses.replace(relay, **said) for relay in found]
    for relay in relays:
        relay.check_credentials()
    return relays
