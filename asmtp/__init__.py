r"""asmtp: an asyncio-native SMTP client, with smtplib's API on top.

    import asyncio, asmtp

    async def main():
        async with asmtp.AsyncSMTP("localhost", 25) as smtp:
            refused = await smtp.sendmail("a@example.com", ["b@example.com"], "Subject: hi\r\n\r\nhello")

    asyncio.run(main())

Legacy code changes its import line: ``import asmtp as smtplib``.
"""

from __future__ import annotations

import smtplib as _smtplib
from smtplib import CRLF, LMTP_PORT, OLDSTYLE_AUTH, SMTP_PORT, SMTP_SSL_PORT, bCRLF, quoteaddr, quotedata
from typing import TYPE_CHECKING, Any

from asmtp.errors import (
    DeliveryState,
    SMTPAuthenticationError,
    SMTPConnectError,
    SMTPDataError,
    SMTPException,
    SMTPHeloError,
    SMTPNotSupportedError,
    SMTPProtocolError,
    SMTPRecipientsRefused,
    SMTPResponseException,
    SMTPSenderRefused,
    SMTPServerDisconnected,
    SMTPStateError,
    SMTPTimeoutError,
)

if TYPE_CHECKING:  # what type checkers see; `_LAZY` is what runs
    from asmtp.auth.selection import Mechanisms as Mechanisms
    from asmtp.client.content import Content as Content
    from asmtp.client.events import Event as Event, Hook as Hook
    from asmtp.client.relay import Relay as Relay
    from asmtp.client.settings import Options as Options, TLSMode as TLSMode, Token as Token
    from asmtp.client.smtp import AsyncLMTP as AsyncLMTP, AsyncSMTP as AsyncSMTP, AsyncSMTP_SSL as AsyncSMTP_SSL
    from asmtp.mailer.delivery import (
        Delivery as Delivery,
        FailedDelivery as FailedDelivery,
        Receipt as Receipt,
        SentDelivery as SentDelivery,
    )
    from asmtp.mailer.mailer import (
        AsyncMailer as AsyncMailer,
        Deliveries as Deliveries,
        MailerOptions as MailerOptions,
        Statistics as Statistics,
    )
    from asmtp.mailer.policy import Retry as Retry
    from asmtp.mailer.rate import Rate as Rate
    from asmtp.protocol.envelope import Envelope as Envelope
    from asmtp.protocol.extensions import Extensions as Extensions
    from asmtp.protocol.parameters import DeliverBy as DeliverBy, Recipient as Recipient, Requests as Requests
    from asmtp.protocol.proxy import ProxyHeader as ProxyHeader
    from asmtp.protocol.reply import Reply as Reply
    from asmtp.protocol.sasl import Credentials as Credentials, Mechanism as Mechanism
    from asmtp.sync.mailer import Mailer as Mailer
    from asmtp.sync.smtp import SMTP as SMTP
    from asmtp.sync.variants import LMTP as LMTP, SMTP_SSL as SMTP_SSL
    from asmtp.transport.timeouts import Timeouts as Timeouts

__version__ = "0.1.0"

# asyncio takes longer to import than smtplib, so what needs it is imported when it is first used.
_LAZY = {
    "asmtp.auth.selection": ("Mechanisms",),
    "asmtp.client.content": ("Content",),
    "asmtp.client.events": ("Event", "Hook"),
    "asmtp.client.settings": ("Options", "TLSMode", "Token"),
    "asmtp.client.relay": ("Relay",),
    "asmtp.client.smtp": ("AsyncLMTP", "AsyncSMTP", "AsyncSMTP_SSL"),
    "asmtp.mailer.delivery": ("Delivery", "FailedDelivery", "Receipt", "SentDelivery"),
    "asmtp.mailer.mailer": ("AsyncMailer", "Deliveries", "MailerOptions", "Statistics"),
    "asmtp.mailer.policy": ("Retry",),
    "asmtp.mailer.rate": ("Rate",),
    "asmtp.protocol.envelope": ("Envelope",),
    "asmtp.protocol.extensions": ("Extensions",),
    "asmtp.protocol.parameters": ("DeliverBy", "Recipient", "Requests"),
    "asmtp.protocol.proxy": ("ProxyHeader",),
    "asmtp.protocol.reply": ("Reply",),
    "asmtp.protocol.sasl": ("Credentials", "Mechanism"),
    "asmtp.sync.mailer": ("Mailer",),
    "asmtp.sync.smtp": ("SMTP",),
    "asmtp.sync.variants": ("LMTP", "SMTP_SSL"),
    "asmtp.transport.timeouts": ("Timeouts",),
}
_HOMES = {name: module for module, names in _LAZY.items() for name in names}

__all__ = [
    "CRLF",
    "DeliveryState",
    "LMTP_PORT",
    "OLDSTYLE_AUTH",
    "SMTPAuthenticationError",
    "SMTPConnectError",
    "SMTPDataError",
    "SMTPException",
    "SMTPHeloError",
    "SMTPNotSupportedError",
    "SMTPProtocolError",
    "SMTPRecipientsRefused",
    "SMTPResponseException",
    "SMTPSenderRefused",
    "SMTPServerDisconnected",
    "SMTPStateError",
    "SMTPTimeoutError",
    "SMTP_PORT",
    "SMTP_SSL_PORT",
    "bCRLF",
    "quoteaddr",
    "quotedata",
]
__all__ += list(_HOMES)

# What old code reaches through the module, as in `except smtplib.socket.gaierror`.
_REACHED = frozenset({
    "_MAXCHALLENGE", "_MAXLINE", "_addr_only", "_fix_eols", "_have_ssl", "_quote_periods", "base64", "copy", "datetime",
    "email", "encode_base64", "hmac", "io", "re", "socket", "ssl", "sys",
})  # fmt: skip


if not TYPE_CHECKING:  # a type checker shall find a name that is misspelt

    def __getattr__(name: str) -> Any:
        if name in _REACHED:
            return getattr(_smtplib, name)
        module = _HOMES.get(name)
        if module is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        import importlib

        value = globals()[name] = getattr(importlib.import_module(module), name)
        return value


def __dir__() -> list[str]:
    return sorted(__all__)
