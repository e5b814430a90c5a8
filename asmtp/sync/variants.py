"""SMTP_SSL and LMTP: the blocking facade with TLS from the first octet, and for another protocol."""

from __future__ import annotations

import ssl
from typing import Any, Unpack

from asmtp.client.address import LMTP_PORT, SMTP_SSL_PORT
from asmtp.client.settings import ConnectionSettings, Options, with_options
from asmtp.protocol.hidden import hide
from asmtp.sync.calls import DEFAULT_TIMEOUT
from asmtp.sync.client import BlockingLMTPClient, BlockingSSLClient
from asmtp.sync.smtp import SMTP
from asmtp.transport.tls import check_context, context_from_files, verifying_context

__all__ = ["LMTP", "SMTP_SSL"]


@with_options(Options.__annotations__, ConnectionSettings, Options)
class SMTP_SSL(SMTP):
    """SMTP with TLS from the first octet, on port 465 by default; certificate and host name are verified.

    Args:
        host, port, local_hostname, timeout, source_address: as for :class:`SMTP`.
        keyfile, certfile: deprecated: use a context.
        context: for TLS; pass your own to verify less, or to show a certificate.
        {options}

    Raises:
        SMTPConnectError, OSError, ValueError, TypeError: as for :class:`SMTP`.
    """

    default_port = SMTP_SSL_PORT
    _client_class = BlockingSSLClient

    def __init__(
        self,
        host: str = "",
        port: int = 0,
        local_hostname: str | None = None,
        keyfile: str | None = None,
        certfile: str | None = None,
        timeout: Any = DEFAULT_TIMEOUT,
        source_address: tuple[str, int] | None = None,
        context: ssl.SSLContext | None = None,
        **options: Unpack[Options],
    ) -> None:
        self.keyfile = keyfile
        self.certfile = certfile
        context = context_from_files(keyfile, certfile, context)
        hide(options)
        if context is not None:
            options["ssl_context"] = context
        # By its name, as in smtplib: mix-ins between the two classes have other arguments.
        SMTP.__init__(self, host, port, local_hostname, timeout, source_address, **options)

    @property
    def context(self) -> ssl.SSLContext:
        """Return the context for TLS, of this object alone: to change it changes no other connection."""
        if self._client.ssl_context is None:
            self._client.ssl_context = verifying_context()
        return self._client.ssl_context

    @context.setter
    def context(self, context: ssl.SSLContext) -> None:
        check_context(context, "context")
        self._client.ssl_context = context


@with_options(Options.__annotations__, ConnectionSettings, Options)
class LMTP(SMTP):
    """LMTP over TCP (port 2003 by default) or a Unix socket (an absolute path as `host`).

    Unlike smtplib's, `sendmail` reads the reply for each recipient, and returns each that was refused.

    Args:
        host, port, local_hostname, timeout, source_address: as for :class:`SMTP`.
        {options}

    Raises:
        SMTPConnectError, OSError, ValueError, TypeError: as for :class:`SMTP`.
    """

    ehlo_msg = "lhlo"
    default_port = LMTP_PORT
    _client_class = BlockingLMTPClient

    def __init__(
        self,
        host: str = "",
        port: int = LMTP_PORT,
        local_hostname: str | None = None,
        source_address: tuple[str, int] | None = None,
        timeout: Any = DEFAULT_TIMEOUT,
        **options: Unpack[Options],
    ) -> None:
        hide(options)
        # With smtplib's default, "host:port" is not understood; here it is.
        port = 0 if port == LMTP_PORT else port
        super().__init__(
            host, port, local_hostname=local_hostname, source_address=source_address, timeout=timeout, **options
        )
