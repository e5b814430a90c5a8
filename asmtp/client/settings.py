"""The settings of a connection: defaults, checks and documentation of each, in one place.

To add a setting: a field of `ConnectionSettings`, its lines in the documentation there, and the same name and type in
`SharedOptions`, for type checkers; and a line in `url.OPTIONS`, if URLs have it.
"""

from __future__ import annotations

import inspect
import re
import ssl
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeAlias, TypedDict, TypeVar

from asmtp.auth.selection import Mechanisms, check_mechanisms, needs
from asmtp.client.address import check_source
from asmtp.client.events import Hook
from asmtp.protocol.command import gate
from asmtp.protocol.hidden import hidden
from asmtp.protocol.proxy import ProxyHeader
from asmtp.transport.proxy import check_proxy
from asmtp.transport.timeouts import Timeouts
from asmtp.transport.tls import check_context

__all__ = [
    "ConnectionSettings", "Options", "SharedOptions", "TLSMode", "Token", "check_credentials", "check_flag",
    "settings_of", "with_options",
]  # fmt: skip

C = TypeVar("C", bound=type)

TLSMode = Literal["none", "opportunistic", "required", "implicit"]

Token: TypeAlias = Callable[[bool], str | Awaitable[str]]
"""A function that returns OAuth 2.0 access tokens; see `ConnectionSettings`."""

_WHOLE = ("window", "window_octets")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionSettings:
    """All that can be set of a connection, but for host and port.

    Attributes:
        tls: ``"implicit"``: TLS from the first octet.  ``"required"``: STARTTLS or an error.  ``"opportunistic"``:
            STARTTLS if the server offers it (RFC 7435); a certificate that cannot be verified does not stop the mail,
            but then no password and no token is sent.  ``"none"``: no TLS unless `starttls` is called.
            The default is "required" if there is a user name or `mechanisms`, else "none".
        ssl_context: for TLS; by default certificates and host names are verified, TLS 1.2 at least.
        server_hostname: the name that the certificate has to be for, if it is not the host.
        local_hostname: the name for EHLO; by default this machine's fully qualified name.
        username, password: log in on connecting.
        token: instead of a password, a function that returns OAuth 2.0 access tokens (OAUTHBEARER, RFC 7628; XOAUTH2).
            It is called with False on connecting, and once more with True (a fresh token, whatever is cached) if the
            server rejects the first.  It may be async; one that is not is called in a thread, as it may block.
            SMTP, SMTP_SSL and LMTP call it in the calling thread, and run an async one on a loop of their own.
            The limit for a reply to a command applies to it; but SMTP, SMTP_SSL and LMTP cannot interrupt a function
            that blocks, so that it needs a time-out of its own there.
        mechanisms: the SASL mechanisms to log in with, in this order: names, and for one that asmtp does not have
            (name, function), the function taking :class:`asmtp.Credentials` and returning a generator from challenge
            to response: see :meth:`asmtp.AsyncSMTP.auth`.  By default all that fit a password, or a token, the ones
            that protect it best first.  EXTERNAL (the client certificate of `ssl_context`), GSSAPI (extra "kerberos")
            and NTLM (extra "ntlm") are used only if they are named here; the first two need no password, nor a user
            name.  Kept as a tuple.
        source_address: (host, port) to bind to before connecting.
        timeouts: limits in seconds, for each phase; by default those of :class:`~asmtp.Timeouts`.
        window: how many messages and commands may be unanswered on the connection; by default 100.
        window_octets: how many octets may be unanswered; by default 1 MiB.
        pipelining, chunking: False if a server offers PIPELINING or CHUNKING and gets it wrong.
        proxy: the URL of a proxy to connect through: socks5://, socks4:// or http:// (CONNECT) with host and port, user
            name and password percent-encoded.  The proxy looks the host's name up.  Extra "proxy".
        proxy_protocol: 1 or 2: send a header of this version of the PROXY protocol first, with the two addresses of
            the connection; or the addresses of the given :class:`asmtp.ProxyHeader`.
        on_event: a function that is called with each :class:`asmtp.Event`: connect, TLS, login, write, replies,
            delivery, close.  It is called in the event loop, and must not block.

    Raises:
        ValueError, TypeError: a value is wrong.
        ImportError: a package that a value needs is not installed.
    """

    tls: TLSMode | None = None
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    token: Token | None = field(default=None, repr=False)
    mechanisms: Mechanisms | None = None
    ssl_context: ssl.SSLContext | None = None
    server_hostname: str | None = None
    local_hostname: str | None = None
    source_address: tuple[str, int] | None = None
    timeouts: Timeouts | None = None
    pipelining: bool = True
    chunking: bool = True
    window: int | None = None
    window_octets: int | None = None
    proxy: str | None = field(default=None, repr=False)
    proxy_protocol: int | ProxyHeader | None = None
    on_event: Hook | None = field(default=None, repr=False)

    _secret_values: ClassVar[bool] = False
    """True if errors may not quote values: see `Relay`."""

    def __post_init__(self) -> None:
        secret = self._secret_values
        for name in ("password", "proxy"):
            object.__setattr__(self, name, hidden(getattr(self, name)))
        self._check_login(secret)
        if self.tls not in (None, "none", "opportunistic", "required", "implicit"):
            raise ValueError(f"tls must be 'none', 'opportunistic', 'required' or 'implicit', not {self.tls!r}")
        check_context(self.ssl_context, "ssl_context")
        for name in ("server_hostname", "local_hostname"):
            if getattr(self, name) is not None:
                gate(getattr(self, name), name, secret=secret)
        check_source(self.source_address)
        if self.timeouts is not None:
            object.__setattr__(self, "timeouts", Timeouts.of(self.timeouts, "timeouts"))
        for name in ("pipelining", "chunking"):
            check_flag(name, getattr(self, name))
        for name in _WHOLE:
            if getattr(self, name) is not None:
                _check_whole(name, getattr(self, name))
        if self.proxy is not None:
            check_proxy(self.proxy)
        if self.proxy_protocol is not None:
            ProxyHeader.of(self.proxy_protocol)
        if self.on_event is not None and not callable(self.on_event):
            raise TypeError(f"on_event must be a function, not {type(self.on_event).__name__}")

    def _check_login(self, secret: bool) -> None:
        if self.username is not None:
            gate(self.username, "username", secret=secret)
        password: object = self.password
        if not isinstance(password, str | None):
            kind = bytes if isinstance(password, bytes) else type(password)  # there is a hidden kind of bytes
            raise TypeError(f"password must be str, not {kind.__name__}")
        if self.token is not None and not callable(self.token):
            raise TypeError(f"token must be a function that returns a token, not {type(self.token).__name__}")
        if self.mechanisms is not None:
            check_mechanisms(self.mechanisms)
            object.__setattr__(self, "mechanisms", tuple(self.mechanisms))


def settings_of(options: Mapping[str, Any], owner: str, **settings: Any) -> ConnectionSettings:
    """Return the settings that keyword arguments of a client class ask for; checked, also as a whole.

    Args:
        options: those of `Options`, but for `sock`.
        owner: the name of the class, for the error.
        settings: those that the client class has arguments of its own for.

    Raises:
        TypeError: there is no such option, or a value is of a wrong type.
        ValueError: a value is wrong, or one is missing.
    """
    unknown = set(options) - set(Options.__annotations__)
    if unknown:
        raise TypeError(f"{owner}() got an unexpected keyword argument {min(unknown)!r}")
    for name in _WHOLE:
        if name in options:  # None, which says nothing in a Relay, is no number here
            _check_whole(name, options[name])
    made = ConnectionSettings(**options, **settings)
    check_credentials(made)
    return made


def check_credentials(settings: ConnectionSettings) -> None:
    """Raise if user name, password, token and mechanisms do not go together.

    Raises:
        ValueError: the error names what is missing, or too much.
    """
    username, password, token, mechanisms = settings.username, settings.password, settings.token, settings.mechanisms
    if token is not None:
        if password is not None:
            raise ValueError("password and token: only one of them can be given")
        if username is None:
            raise ValueError("username is needed with token")
    elif (username is None) != (password is None) and (username is None or mechanisms is None):
        raise ValueError("username and password go together")
    wanted = set() if mechanisms is None else needs(mechanisms)
    for need, given in (("password", password), ("token", token)):
        if wanted == {need} and given is None:
            raise ValueError(f"mechanisms: a {need} is needed for them")


class SharedOptions(TypedDict, total=False):
    """The settings that are keyword arguments of every client class, and of a mailer: see `ConnectionSettings`."""

    tls: TLSMode | None
    ssl_context: ssl.SSLContext | None
    server_hostname: str | None
    username: str | None
    password: str | None
    token: Token | None
    mechanisms: Mechanisms | None
    pipelining: bool
    chunking: bool
    proxy: str | None
    proxy_protocol: int | ProxyHeader | None
    on_event: Hook | None


class Options(SharedOptions, total=False):
    """The keyword arguments of every client class: see :class:`~asmtp.Relay`.

    Attributes:
        sock: a connected socket to use instead of connecting.
    """

    window: int
    window_octets: int
    sock: Any


def with_options(names: Collection[str], *sources: type) -> Callable[[C], C]:
    """Return a class decorator that puts the documentation of options where a docstring says ``{options}``.

    Args:
        names: the options.
        sources: the classes whose docstrings document them.
    """
    text = "".join([_documentation(inspect.getdoc(source) or "", names) for source in sources])

    def put(kind: C) -> C:
        kind.__doc__ = (inspect.getdoc(kind) or "").replace("    {options}\n", text)  # with -OO there is none
        return kind

    return put


def _documentation(docstring: str, names: Collection[str]) -> str:
    """Return the paragraphs of a docstring's list of arguments that are about these names."""
    paragraphs = re.findall(r"^ {4}(\w+(?:, \w+)*): (.*\n?(?: {8}.*\n?)*)", docstring, re.MULTILINE)
    found = [f"    {about}: {text}" for about, text in paragraphs if set(about.split(", ")) <= set(names)]
    return "".join([paragraph.rstrip("\n") + "\n" for paragraph in found])


def check_flag(name: str, value: object) -> None:
    """Raise TypeError if a value is neither True nor False: "no" would be taken for True."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, not {type(value).__name__}")


def _check_whole(name: str, value: object) -> None:
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number, at least 1, not {value!r}")
