"""A server to send through: its address, and the settings of connections to it."""

from __future__ import annotations

import os
from dataclasses import KW_ONLY, dataclass, fields
from typing import ClassVar

from asmtp.client import url as urls
from asmtp.client.address import LMTP_PORT, SMTP_PORT, SMTP_SSL_PORT, check_port
from asmtp.client.settings import ConnectionSettings, check_flag, with_options
from asmtp.protocol.hidden import hidden

__all__ = ["Relay"]

ENVIRONMENT = "ASMTP_URL"


@with_options([each.name for each in fields(ConnectionSettings)], ConnectionSettings)
@dataclass(frozen=True, slots=True, repr=False)
class Relay(ConnectionSettings):
    """One server to send through, and the settings of connections to it.

    repr and str do not show the password, nor the token function; pickles and copies hold them.  The mailer checks
    whether user name, password and token go together, as its own options may have what is missing here.

    Attributes:
        host: name or IP address, or the absolute path of a Unix socket.  A name is kept as A-labels (RFC 5891).
        port: 0 for the protocol's own: 25, 465 with implicit TLS, 2003 for LMTP.
        lmtp: the server speaks LMTP (RFC 2033).
        {options}

    Raises:
        ValueError, TypeError: an argument is wrong.  The error does not quote host, user name or password.
    """

    host: str
    port: int = 0
    _: KW_ONLY
    lmtp: bool = False

    # A character of a password that is not encoded makes pieces of it a host, or an option, of a URL.
    _secret_values: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "host", urls.host_name(self.host, "host", path=True))
        check_port(self.port, "port")
        check_flag("lmtp", self.lmtp)
        ConnectionSettings.__post_init__(self)  # super() does not work in a dataclass with slots
        if self.server_hostname is not None:
            object.__setattr__(self, "server_hostname", urls.host_name(self.server_hostname, "server_hostname"))
        if self.local_hostname is not None:
            urls.check_ehlo_name(self.local_hostname)

    @classmethod
    def from_url(cls, url: str) -> Relay:
        """Read ``smtp://``, ``smtp+starttls://``, ``smtps://``, ``lmtp://`` (host) or ``lmtp+unix://`` (path).

        Options follow behind "?": ``timeout`` (seconds or "none", for all phases) and ``timeout.connect`` etc. (see
        :class:`~asmtp.Timeouts`); ``tls`` (none, opportunistic, required; with ``smtp://`` only); ``server_hostname``;
        ``local_hostname``; ``source_address`` (address, or address:port); ``pipelining``, ``chunking`` (yes or no);
        ``window``, ``window_octets``; ``mechanisms`` (names, with commas between); ``cafile`` (trusted instead of the
        system's certificates), ``certfile`` and ``keyfile`` (our own);
        ``proxy`` (its URL), ``proxy_protocol`` (1 or 2).  "+" is a plus sign everywhere.  If the URL says nothing of
        TLS, `tls` stays None; with ``lmtp+unix://`` it is "none".

        Certificate files are read here, which blocks; without them nothing does.

        Args:
            url: user name, password and every value percent-encoded.  A user name without a password is for a token
                that is given elsewhere.

        Raises:
            ValueError: it is no such URL, or a certificate file cannot be used.  Nothing of the URL is quoted.
            TypeError: it is not a str.
        """
        if isinstance(url, str):
            url = hidden(url.strip())  # out of a file, or of an environment variable
        wrong: Exception
        try:
            return cls(**urls.read(url))
        except (ValueError, TypeError, ImportError) as error:
            wrong = error
        # Without the frames that hold pieces of it: error reporters show what is in them.
        wrong.__context__ = None
        raise wrong.with_traceback(None)

    @classmethod
    def from_environment(cls) -> list[Relay]:
        """Return the relays of the environment variable ASMTP_URL: URLs, with whitespace between them.

        Raises:
            ValueError: it is not set, or one is wrong.
        """
        text = hidden(os.environ.get(ENVIRONMENT, ""))
        if not text.strip():
            raise ValueError(f"{ENVIRONMENT} is not set: no relay to send through")
        return cls.several(text, ENVIRONMENT)

    @classmethod
    def several(cls, text: str, where: str) -> list[Relay]:
        """Return the relays of URLs with whitespace between them.

        Args:
            where: what the URLs come from, for the error.

        Raises:
            ValueError: there is none, or one is wrong.
        """
        text = hidden(text)
        found = hidden(text.split())
        if not found:
            raise ValueError(f"{where}: no URL is in it")
        relays = []
        for number, url in enumerate(found, 1):
            try:
                relays.append(cls.from_url(url))
            except ValueError as error:
                raise ValueError(f"{where}, number {number} of {len(found)}: {error}") from None
        return relays

    @property
    def name(self) -> str:
        """Return ``"host:port"``, or the path of a Unix socket: for logs and receipts."""
        if self.host.startswith("/"):
            return self.host
        smtp_port = SMTP_SSL_PORT if self.tls == "implicit" else SMTP_PORT
        port = self.port or (LMTP_PORT if self.lmtp else smtp_port)
        return f"{urls.bracketed(self.host)}:{port}"

    @property
    def url(self) -> str:
        """Return the settings that are not the defaults, as a URL for people to read.  ``***`` stands for the password.

        It lacks the settings that no URL has, as the TLS context and the token.  It shows TLS with LMTP, and SMTP over
        a Unix socket, as if a URL could ask for them.
        """
        return urls.written(self.host, self.port, self, lmtp=self.lmtp)

    def __repr__(self) -> str:
        shown = ("host", "port", "lmtp", *(each.name for each in fields(ConnectionSettings) if each.repr))
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in shown)})"

    def __str__(self) -> str:
        return self.url
