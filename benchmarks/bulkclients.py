"""The clients of the bulk rows: open N connections, hand out what sends any number of messages through them.

Each does bulk as its users do. asmtp is given an iterable. aiosmtplib has a connection a task, smtplib one a
thread, and all of them take the next message from one iterator. A message is ``(sender, recipients, octets)``
or an EmailMessage, which every client flattens at every send, and from whose header fields it takes the
addresses. What is not delivered raises.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.message
import email.policy
import functools
import itertools
import smtplib
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from . import scenarios
from .clients import HOST, NAME, SENDER

T = TypeVar("T")
Message = tuple[str, list[str], bytes] | email.message.EmailMessage
AsyncSendAll = Callable[[Iterable[Message]], Awaitable[None]]
SendAll = Callable[[Iterable[Message]], None]

SIZE = len(scenarios.content())
READY = 64  # so many EmailMessages are made ahead, and sent over and over


class NotDelivered(Exception):
    """A client says that it did not deliver a message."""


# The messages


def build(number: int, text: str | None = None) -> email.message.EmailMessage:
    """An EmailMessage of `SIZE` octets, made as an application makes one."""
    message = email.message.EmailMessage()
    message["From"] = SENDER
    message["To"] = scenarios.recipients(1)[0]
    message["Subject"] = "benchmark"
    message["Date"] = "Mon, 02 Nov 2026 10:00:00 +0000"
    message["Message-ID"] = f"<{number:010}@example.com>"
    message.set_content(body() if text is None else text)
    return message


@functools.cache
def body() -> str:
    head = len(build(0, "\n").as_bytes(policy=email.policy.SMTP)) - 2
    return scenarios.text(SIZE - head).decode().replace("\r\n", "\n")


@functools.cache
def ready() -> list[email.message.EmailMessage]:
    return [build(number) for number in range(READY)]


def messages(kind: str, count: int) -> Iterator[Message]:
    """What is sent, from a generator that holds none of it."""
    if kind == "bytes":
        to, content = scenarios.recipients(1), scenarios.content()
        yield from ((SENDER, to, content) for _ in range(count))
    elif kind == "EmailMessage":
        yield from itertools.islice(itertools.cycle(ready()), count)
    else:
        yield from map(build, range(count))


class Shared(Iterator[T]):
    """An iterator for many threads."""

    def __init__(self, items: Iterable[T]) -> None:
        self._items, self._lock = iter(items), threading.Lock()

    def __next__(self) -> T:
        with self._lock:
            return next(self._items)


# The clients


def settle(delivery: Any) -> None:
    if not delivery.ok:
        raise NotDelivered(delivery.state) from delivery.error


@contextlib.asynccontextmanager
async def open_asmtp(port: int, connections: int) -> AsyncIterator[AsyncSendAll]:
    import asmtp

    async with asmtp.AsyncMailer(f"smtp://{HOST}:{port}", connections=connections, local_hostname=NAME) as mailer:

        async def send_all(batch: Iterable[Message]) -> None:
            async for delivery in mailer.send_all(batch):
                settle(delivery)

        yield send_all


@contextlib.asynccontextmanager
async def open_aiosmtplib(port: int, connections: int) -> AsyncIterator[AsyncSendAll]:
    import aiosmtplib

    async with contextlib.AsyncExitStack() as stack:

        async def connect() -> Any:
            # Without time-outs, as in benchmarks.clients.
            smtp = aiosmtplib.SMTP(hostname=HOST, port=port, start_tls=False, local_hostname=NAME, timeout=None)
            await smtp.connect()
            stack.push_async_exit(smtp)
            await smtp.ehlo()
            return smtp

        pool = await asyncio.gather(*(connect() for _ in range(connections)))

        async def work(smtp: Any, left: Iterator[Message]) -> None:
            for message in left:
                if isinstance(message, tuple):
                    await smtp.sendmail(*message)
                else:
                    await smtp.send_message(message)

        async def send_all(batch: Iterable[Message]) -> None:
            left = iter(batch)
            async with asyncio.TaskGroup() as group:
                for smtp in pool:
                    group.create_task(work(smtp, left))

        yield send_all


@contextlib.contextmanager
def open_mailer(port: int, connections: int) -> Iterator[SendAll]:
    import asmtp

    with asmtp.Mailer(f"smtp://{HOST}:{port}", connections=connections, local_hostname=NAME) as mailer:

        def send_all(batch: Iterable[Message]) -> None:
            for delivery in mailer.send_all(batch):
                settle(delivery)

        yield send_all


@contextlib.contextmanager
def open_smtplib(port: int, connections: int) -> Iterator[SendAll]:
    with contextlib.ExitStack() as stack:
        threads = stack.enter_context(ThreadPoolExecutor(connections))

        def connect(_: int) -> smtplib.SMTP:
            smtp = stack.enter_context(smtplib.SMTP(HOST, port, local_hostname=NAME))
            smtp.ehlo()
            return smtp

        pool = list(threads.map(connect, range(connections)))

        def work(smtp: smtplib.SMTP, left: Iterator[Message]) -> None:
            for message in left:
                if isinstance(message, tuple):
                    smtp.sendmail(*message)
                else:
                    smtp.send_message(message)

        def send_all(batch: Iterable[Message]) -> None:
            left = Shared(batch)
            for done in [threads.submit(work, smtp, left) for smtp in pool]:
                done.result()

        yield send_all


# The module and the name in it without which a client is "not installed", and how it is opened.
ASYNC: dict[str, tuple[str, str, Callable[[int, int], contextlib.AbstractAsyncContextManager[AsyncSendAll]]]] = {
    "asmtp": ("asmtp", "AsyncMailer", open_asmtp),
    "aiosmtplib": ("aiosmtplib", "SMTP", open_aiosmtplib),
}
BLOCKING: dict[str, tuple[str, str, Callable[[int, int], contextlib.AbstractContextManager[SendAll]]]] = {
    "asmtp.Mailer": ("asmtp", "Mailer", open_mailer),
    "smtplib": ("smtplib", "SMTP", open_smtplib),
}
