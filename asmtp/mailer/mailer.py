"""AsyncMailer: one object that sends a million messages, and knows what became of each."""

from __future__ import annotations

import asyncio
import dataclasses
import time
import warnings
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Sequence
from email.message import Message
from types import EllipsisType, TracebackType
from typing import Any, Self, TypeVar, Unpack

from asmtp.client.content import Content
from asmtp.client.relay import Relay
from asmtp.client.settings import ConnectionSettings, SharedOptions, check_credentials, with_options
from asmtp.errors import SMTPRecipientsRefused, SMTPStateError, known
from asmtp.mailer.bulk import BulkSend, resolve
from asmtp.mailer.connection import make_connection
from asmtp.mailer.delivery import Delivery, Receipt, state_of
from asmtp.mailer.manager import QueueManager, Settings, Statistics
from asmtp.mailer.message import QueuedMessage, is_heavy
from asmtp.mailer.policy import Retry
from asmtp.mailer.rate import Rate
from asmtp.protocol.envelope import Envelope
from asmtp.protocol.hidden import hidden, hide
from asmtp.protocol.parameters import Requests
from asmtp.protocol.session import DEFAULT_WINDOW
from asmtp.transport.offload import call_in_thread
from asmtp.transport.timeouts import Timeouts

T = TypeVar("T")

__all__ = ["AsyncMailer", "Deliveries", "MailerOptions", "RelayOptions", "Statistics", "check_limit", "manager_of"]

_BY_DEFAULT = Timeouts()
"""The time-outs if neither the caller nor the URL says any; this object says that the caller did not."""


class RelayOptions(SharedOptions, total=False):
    """Options that may be given for all relays at once, and override those of their URLs: see :class:`~asmtp.Relay`."""

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


@with_options(RelayOptions.__annotations__, ConnectionSettings)
class AsyncMailer:
    """Sends messages over a pool of connections; safe to share by any number of tasks of one event loop.

    As an async context manager it waits for what is in flight on leaving, and closes its connections.

    Args:
        relay: a URL, such as ``"smtps://user:secret@smtp.example.com"``, a :class:`~asmtp.Relay`, or several of them:
            the first that can be reached is used.  By default what the environment has in ASMTP_URL.
        connections: how many connections may be open.  They are opened as the load asks.
        window: how many messages may be unanswered on one of them, if the server allows that; by default what the
            URL says, or else 100.
        rate: the most that may be sent, such as ``"100/s"``, or a :class:`~asmtp.Rate`.  It is lowered for a while
            if the server says that it is sent too much.
        retry: what is tried again, and when; None: nothing is.
        timeouts: seconds for every phase, None for no limits, or :class:`~asmtp.Timeouts`; by default what the URL
            says, or else ``Timeouts()``.
        idle: seconds after which an unused connection is closed; None: never.
        max_messages, max_age: messages, and seconds, after which a connection is replaced (about so many, so that
            they are not all replaced at once); None: without limit.
        close_timeout: seconds after which leaving, and `aclose`, do not wait any more for what is in flight; None:
            without limit.
        options: settings for all relays, which override those of their URLs; None overrides nothing.  They are:
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
        timeouts: float | Timeouts | None = _BY_DEFAULT,
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
        relays = _relays(relay, window, timeouts, options)
        settings = Settings(
            relays,
            connections,
            max(relay.window or DEFAULT_WINDOW for relay in relays),
            None if rate is None else Rate.of(rate),
            retry,
            idle,
            max_messages,
            max_age,
            close_timeout,
        )
        self._manager = QueueManager(settings)

    def __repr__(self) -> str:
        manager: QueueManager | None = getattr(self, "_manager", None)  # the constructor may have raised
        relays = () if manager is None else manager.settings.relays
        return f"<{type(self).__module__}.{type(self).__name__} {', '.join(relay.name for relay in relays)}>"

    def __del__(self, warn: Callable[..., None] = warnings.warn) -> None:
        manager: QueueManager | None = vars(self).get("_manager")
        if manager is not None and not manager.closing and manager.connected:
            warn(f"{self!r} was never closed: use it with async with, or await aclose()", ResourceWarning, 2, self)

    def __getstate__(self) -> dict[str, Any]:
        """Have its settings pickled and copied, not what it is doing: it comes out as one that was not used."""
        return vars(self) | {"_manager": QueueManager(self._manager.settings)}

    @property
    def stats(self) -> Statistics:
        """Return counts of what the mailer is doing, and has done."""
        return self._manager.stats

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
            require_all: raise SMTPRecipientsRefused if a recipient is refused, though others have the message;
                its `state` is "sent" then, and its `receipt` says for whom.
            timeout: seconds for the whole, waiting in line and all tries included; None: without limit.
            requests: what else is asked for: see :class:`~asmtp.Requests`.

        Returns:
            The recipients that the message was taken for, those it was not taken for, and the server's replies.

        Raises:
            SMTPRecipientsRefused, SMTPSenderRefused, SMTPDataError: the server said no, in the end.
            SMTPServerDisconnected: the connection was lost, or there was none; `state` tells what is known of the
                message.
            SMTPTimeoutError: the seconds of `timeout`, or of a phase, were over; `state` tells as well.
            SMTPException: as :class:`~asmtp.AsyncSMTP` raises them.
            SMTPStateError: the mailer was closed.
            asyncio.CancelledError: the caller was cancelled; it has a `state`, too, and a `receipt` if some of the
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
            partly = known(SMTPRecipientsRefused(receipt.refused), "sent")
            partly.receipt = receipt
            raise partly
        return receipt

    async def _outcome(
        self, message: Any, envelope: Envelope, timeout: float | None
    ) -> tuple[Receipt | None, Exception | None]:
        manager = self._manager
        loop = asyncio.get_running_loop()
        begun = loop.time()
        future: asyncio.Future[tuple[Receipt | None, Exception | None]] = loop.create_future()

        def arrived(queued: QueuedMessage) -> None:
            verdict = queued.verdict(time.time())
            manager.count(state_of(verdict[1]))
            resolve(future, verdict)

        given = message, envelope, arrived, time.time()
        if is_heavy(envelope):
            queued = await call_in_thread(QueuedMessage, *given, abandon=True)
        else:
            queued = QueuedMessage(*given)
        queue = manager.queue()
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
        self, messages: Iterable[T] | AsyncIterable[T], *, in_order: bool = False, timeout: float | None = None
    ) -> Deliveries[T]:
        """Send many messages, and tell of each what became of it.

        It pulls messages as they can be sent, and never holds more than a bounded number.  Nothing that goes wrong with
        one of them stops the others.  An exception of the iterable itself is raised when the rest is told.

        Args:
            messages: an iterable or async iterable of EmailMessage, :class:`~asmtp.Envelope` with content, or
                (sender, recipients, content).  An iterable is asked in the event loop, so it should not block.
            in_order: tell of them in their order, not as they are done.
            timeout: seconds for the whole of each message, from when it is taken, all tries included; None: without
                limit.

        Returns:
            An async iterator of :class:`~asmtp.Delivery`.  If the mailer is closed meanwhile, it tells what is known
            and raises SMTPStateError.  Leaving the loop ends it: no more is pulled, what is in
            flight is finished, and :meth:`drain` (or the iterator's own `aclose`) returns what is known of it.
        """
        if not hasattr(messages, "__aiter__") and not hasattr(messages, "__iter__"):
            raise TypeError(f"messages must be an iterable or async iterable, not {type(messages).__name__}")
        check_limit("timeout", timeout)
        if self._manager.closing:
            raise SMTPStateError("the mailer was closed")
        return Deliveries(self._manager.bulk_send(in_order=in_order, timeout=timeout), messages)

    async def verify(self) -> None:
        """Connect to each relay, log in, and close: for the start of a program, to find a wrong setting early.

        Raises:
            SMTPException: what a message would meet, with the OSError or SSLError as its `__cause__`; with several
                relays the first that failed, when all were tried.
        """
        failed: list[Exception] = []
        for relay in self._manager.relays():
            connection = make_connection(relay)
            try:
                await connection.open()
                await connection.leave()
            except Exception as error:
                told = relay.no_connection(error)
                told.add_note(f"relay: {relay.name}")
                failed.append(told)
            finally:
                connection.close()
        if failed:
            raise failed[0]

    async def drain(self) -> list[Delivery[Any]]:
        """Wait until nothing is in flight.

        Returns:
            Deliveries of abandoned `send_all` loops (at most the last 10,000).  A loop is abandoned when nothing refers
            to its iterator any more; a caller who keeps the iterator gets them from its `aclose`.
        """
        await self._manager.quiet()
        return self._manager.claimed()

    async def aclose(self, timeout: float | EllipsisType | None = ...) -> None:
        """Wait until nothing is in flight, and close all connections.  Nothing more is taken.

        Args:
            timeout: seconds after which it does not wait any more (see :meth:`abort`), and logs how many messages it
                has given up; None: without limit; by default the mailer's `close_timeout`.
        """
        if isinstance(timeout, EllipsisType):
            timeout = self._manager.settings.close_timeout
        await self._manager.aclose(timeout)

    def abort(self) -> None:
        """Close all connections at once; what is in flight is ended with what is known of it."""
        self._manager.abort()

    async def __aenter__(self) -> Self:
        self._manager.queue()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if kind is None or issubclass(kind, Exception):
                await self.aclose()
        finally:
            self.abort()
            await self._manager.wait_closed()


class Deliveries(AsyncIterator[Delivery[T]]):
    """The result of `send_all`: an async iterator of :class:`~asmtp.Delivery`."""

    def __init__(self, bulk: BulkSend, messages: Iterable[T] | AsyncIterable[T]) -> None:
        self._bulk = bulk
        self._messages = messages

    def __aiter__(self) -> Deliveries[T]:
        return self

    async def __anext__(self) -> Delivery[T]:
        """Return the next delivery."""
        bulk = self._bulk
        if bulk.ready:
            return bulk.pop()
        messages = self._messages
        del self  # else the traceback of a cancelled loop refers to it, and nobody would know that the loop was left
        return await bulk.next(messages)

    async def aclose(self) -> list[Delivery[T]]:
        """Take no more messages, and wait for those in flight.

        Returns:
            The deliveries that the loop was not told.  Messages that were not begun are `not_sent`.
        """
        return await self._bulk.rest()

    def __del__(self) -> None:
        self._bulk.forget()


def manager_of(mailer: AsyncMailer) -> QueueManager:
    """Return the machinery of a mailer, for the blocking mailer and the command line: it is not public."""
    return mailer._manager


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
    """Raise TypeError or ValueError if `seconds` is neither a number above 0 nor None."""
    if seconds is not None and (isinstance(seconds, bool) or not isinstance(seconds, int | float)):
        raise TypeError(f"{name} must be a number of seconds or None, not {type(seconds).__name__}")
    if seconds is not None and not seconds > 0:
        raise ValueError(f"{name} must be a number of seconds above 0 or None, not {seconds!r}")


def _relays(
    given: str | Relay | Sequence[str | Relay] | None,
    window: int | None,
    timeouts: float | Timeouts | None,
    options: RelayOptions,
) -> list[Relay]:
    """Return the relays, with the options that are to hold for all.

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
    if timeouts is not _BY_DEFAULT:
        said["timeouts"] = Timeouts.of(timeouts, "timeouts")
    relays = [dataclasses.replace(relay, **said) for relay in found]
    for relay in relays:
        check_credentials(relay)
    return relays
