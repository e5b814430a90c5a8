"""The clients that are compared, a small adapter each: open a greeted connection, hand out its `send`.

Each is used as its documentation says, in its fastest way, with its own defaults for all else: TCP_NODELAY,
time-outs. aiosmtplib alone is asked for no time-outs, as it pays for one at every command, and is about a
fifth faster without. The name given to EHLO is set for all, so that nobody's look-up of it is measured. An
adapter adds no call of its own where the client has the signature of sendmail: `send` is its bound method.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
import smtplib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

HOST = "127.0.0.1"
NAME = "localhost"
SENDER = "sender@example.com"

# send(sender, recipients, content): to be awaited, or not for the blocking clients
AsyncSend = Callable[[str, list[str], Any], Awaitable[object]]
Send = Callable[[str, list[str], Any], object]


@contextlib.asynccontextmanager
async def open_asmtp(port: int) -> AsyncIterator[AsyncSend]:
    import asmtp

    smtp = asmtp.AsyncSMTP(HOST, port, local_hostname=NAME)
    async with smtp:
        await smtp.ehlo()
        yield smtp.sendmail


@contextlib.asynccontextmanager
async def open_aiosmtplib(port: int) -> AsyncIterator[AsyncSend]:
    import aiosmtplib

    smtp = aiosmtplib.SMTP(hostname=HOST, port=port, start_tls=False, local_hostname=NAME, timeout=None)
    async with smtp:
        await smtp.ehlo()
        yield smtp.sendmail


@contextlib.asynccontextmanager
async def open_smtpproto(port: int) -> AsyncIterator[AsyncSend]:
    """It takes EmailMessage objects only, and flattens them at every send; they are parsed ahead, here."""
    import email.message
    import email.policy

    from smtpproto.client import AsyncSMTPClient

    @functools.cache
    def parsed(content: bytes) -> email.message.EmailMessage:
        return email.message_from_bytes(content, email.message.EmailMessage, policy=email.policy.SMTP)

    async with AsyncSMTPClient(HOST, port, domain=NAME).connect() as session:

        async def send(sender: str, recipients: list[str], content: bytes) -> object:
            return await session.send_message(parsed(content), sender=sender, recipients=recipients)

        yield send


@contextlib.contextmanager
def open_smtplib(port: int) -> Iterator[Send]:
    with smtplib.SMTP(HOST, port, local_hostname=NAME) as smtp:
        smtp.ehlo()
        yield smtp.sendmail


@contextlib.contextmanager
def open_facade(port: int) -> Iterator[Send]:
    import asmtp

    with asmtp.SMTP(HOST, port, local_hostname=NAME) as smtp:
        smtp.ehlo()
        yield smtp.sendmail


# The module whose absence makes a client "not installed", and how it is opened.
ASYNC: dict[str, tuple[str, Callable[[int], contextlib.AbstractAsyncContextManager[AsyncSend]]]] = {
    "asmtp": ("asmtp", open_asmtp),
    "aiosmtplib": ("aiosmtplib", open_aiosmtplib),
    "smtpproto": ("smtpproto.client", open_smtpproto),
}
BLOCKING: dict[str, tuple[str, Callable[[int], contextlib.AbstractContextManager[Send]]]] = {
    "asmtp.SMTP": ("asmtp", open_facade),
    "smtplib": ("smtplib", open_smtplib),
}


@functools.cache
def installed(module: str) -> bool:
    """Whether a module can be imported here."""
    try:
        found = importlib.import_module(module)
        # It imports what it needs when a name is used; and an empty folder can be imported as well.
        return module != "asmtp" or hasattr(found, "AsyncSMTP")
    except ImportError:
        return False


def available(client: str) -> bool:
    """Whether a client can be measured here."""
    module = ASYNC[client][0] if client in ASYNC else BLOCKING[client][0]
    return installed(module)


def version(distribution: str) -> str:
    """The version of an installed distribution, or that it is not installed."""
    if distribution == "asmtp" and installed("asmtp"):
        return str(getattr(importlib.import_module("asmtp"), "__version__", "(no version)"))
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
