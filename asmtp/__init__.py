"""asmtp: an asyncio-native SMTP client, with smtplib's API on top.

    import asyncio, asmtp

    async def main():
        async with asmtp.AsyncSMTP("localhost", 25) as smtp:
            refused = await smtp.sendmail("a@example.com", ["b@example.com"], "Subject: hi\\r\\n\\r\\nhello")

    asyncio.run(main())

Legacy code changes its import line: ``import asmtp as smtplib``.
"""

from __future__ import annotations

import smtplib as _smtplib
from smtplib import CRLF, OLDSTYLE_AUTH, SMTP_PORT, SMTP_SSL_PORT, bCRLF, quoteaddr, quotedata
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

if TYPE_CHECKING:
    from asmtp.client.events import Event
    from asmtp.client.relay import Relay
    from asmtp.client.smtp import AsyncLMTP, AsyncSMTP, AsyncSMTP_SSL
    from asmtp.mailer.delivery import Delivery, Receipt
    from asmtp.mailer.mailer import AsyncMailer
    from asmtp.mailer.policy import Rate, Retry
    from asmtp.protocol.envelope import Envelope
    from asmtp.protocol.extensions import Extensions
    from asmtp.protocol.parameters import DeliverBy, Recipient, Requests
    from asmtp.protocol.proxy import ProxyHeader
    from asmtp.protocol.reply import Reply
    from asmtp.protocol.sasl import Credentials
    from asmtp.sync.mailer import Mailer
    from asmtp.sync.smtp import LMTP, SMTP, SMTP_SSL
    from asmtp.transport.timeouts import Timeouts

__version__ = "0.1.0"

LMTP_PORT = 2003

__all__ = [
    "CRLF",
    "LMTP",
    "LMTP_PORT",
    "Mailer",
    "OLDSTYLE_AUTH",
    "SMTP",
    "SMTP_PORT",
    "SMTP_SSL",
    "SMTP_SSL_PORT",
    "AsyncLMTP",
    "AsyncMailer",
    "AsyncSMTP",
    "AsyncSMTP_SSL",
    "Credentials",
    "DeliverBy",
    "Delivery",
    "DeliveryState",
    "Envelope",
    "Event",
    "Extensions",
    "ProxyHeader",
    "Rate",
    "Receipt",
    "Recipient",
    "Relay",
    "Reply",
    "Requests",
    "Retry",
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
    "Timeouts",
    "bCRLF",
    "quoteaddr",
    "quotedata",
]

# asyncio takes longer to import than smtplib, so what needs it is imported when it is first used.
_LAZY = {
    "AsyncLMTP": "asmtp.client.smtp",
    "AsyncMailer": "asmtp.mailer.mailer",
    "AsyncSMTP": "asmtp.client.smtp",
    "AsyncSMTP_SSL": "asmtp.client.smtp",
    "Credentials": "asmtp.protocol.sasl",
    "DeliverBy": "asmtp.protocol.parameters",
    "Delivery": "asmtp.mailer.delivery",
    "Envelope": "asmtp.protocol.envelope",
    "Event": "asmtp.client.events",
    "Extensions": "asmtp.protocol.extensions",
    "LMTP": "asmtp.sync.smtp",
    "Mailer": "asmtp.sync.mailer",
    "ProxyHeader": "asmtp.protocol.proxy",
    "Rate": "asmtp.mailer.policy",
    "Receipt": "asmtp.mailer.delivery",
    "Recipient": "asmtp.protocol.parameters",
    "Relay": "asmtp.client.relay",
    "Reply": "asmtp.protocol.reply",
    "Requests": "asmtp.protocol.parameters",
    "Retry": "asmtp.mailer.policy",
    "SMTP": "asmtp.sync.smtp",
    "SMTP_SSL": "asmtp.sync.smtp",
    "Timeouts": "asmtp.transport.timeouts",
}

# What old code reaches through the module, as in `except smtplib.socket.gaierror`.
_REACHED = frozenset({
    "_MAXCHALLENGE", "_MAXLINE", "_addr_only", "_fix_eols", "_have_ssl", "_quote_periods", "base64", "copy", "datetime",
    "email", "encode_base64", "hmac", "io", "re", "socket", "ssl", "sys",
})  # fmt: skip


if not TYPE_CHECKING:  # a type checker shall find a name that is misspelt

    def __getattr__(name: str) -> Any:
        if name in _REACHED:
            return getattr(_smtplib, name)
        module = _LAZY.get(name)
        if module is None:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        import importlib

        value = globals()[name] = getattr(importlib.import_module(module), name)
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
