"""The lies, by name: what a server says where, and what has to become of it.

Each is told to a client that connects, as it is set up, and sends one message; and then another one, which an honest
server takes: on the same connection, where that is in step, or else on a new one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from asmtp import (
    SMTPProtocolError,
    SMTPServerDisconnected,
    SMTPTimeoutError,
)
from asmtp.errors import DeliveryState

__all__ = ["BOB", "CAROL", "Contract", "Lie", "broken", "content_begun", "gone", "late", "refused", "sent"]

BOB, CAROL = "bob@y.example", "carol@y.example"

After = Literal["in step", "closed"]


@dataclass(frozen=True)
class Contract:
    """The fate of the message, and of the connection.

    Attributes:
        raises: an exception of exactly this class, or None.
        state: what is known of the message.
        code: the exception's `smtp_code`, or that of every recipient.
        after: "in step": the next message goes over the same connection.  "closed": it is not used any more.
        without: recipients that are refused, though the message is sent.
    """

    raises: type[Exception] | None
    state: DeliveryState
    code: int | None = None
    after: After = "closed"
    without: Mapping[str, int] = field(default_factory=dict)


def sent(after: After = "in step", without: Mapping[str, int] | None = None) -> Contract:
    return Contract(None, "sent", after=after, without=without or {})


def refused(raises: type[Exception], code: int, after: After = "in step") -> Contract:
    """Expect that the server said no to the message."""
    return Contract(raises, "refused", code, after)


def broken(state: DeliveryState, code: int = -1) -> Contract:
    """Expect that the server broke the protocol."""
    return Contract(SMTPProtocolError, state, code)


def gone(state: DeliveryState) -> Contract:
    """Expect that the connection is gone."""
    return Contract(SMTPServerDisconnected, state)


def late(state: DeliveryState) -> Contract:
    """Expect that nothing came in time."""
    return Contract(SMTPTimeoutError, state)


@dataclass(frozen=True)
class Lie:
    """Something that a server says, and to whom.

    Attributes:
        says: see liar.Liar.
        contract: what has to become of it.
        offers, under_tls: see liar.Liar.
        tls: the client is set up to use STARTTLS.
        login: and to log in.
        recipients, content: of the message; content may be a function that makes an async iterator.
        limit: the phase whose time limit is met, and the contract wants it to be.
        endless: what comes has no end, and must not be kept.
        stalling: see liar.Liar.
        deaf: the server's kernel keeps little of what nobody reads.
        lmtp: it is told to LMTP clients.
        retired: it is in step, but a mailer uses it no more.
    """

    says: Any
    contract: Contract
    offers: tuple[str, ...] = ("PIPELINING",)
    under_tls: tuple[str, ...] | None = None
    tls: bool = False
    login: bool = False
    recipients: tuple[str, ...] = (BOB,)
    content: bytes | Callable[[], AsyncIterator[bytes]] = b"first\r\n"
    limit: str = ""
    endless: bool = False
    stalling: bool = False
    deaf: bool = False
    lmtp: bool = False
    retired: bool = False


async def content_begun() -> AsyncIterator[bytes]:
    """Yield content that has no end before the connection has."""
    yield b"begun\r\n"
    await asyncio.Event().wait()
