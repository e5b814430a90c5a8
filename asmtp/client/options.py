"""What people set once for a connection: the options of every client class, and what they mean."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable
from typing import Any, Literal, TypeAlias, TypedDict, cast

from asmtp.auth.selection import Mechanisms, check_mechanisms, needs
from asmtp.client.events import Hook
from asmtp.protocol.command import gate, spelt_out
from asmtp.protocol.proxy import ProxyHeader
from asmtp.transport.proxy import check_proxy
from asmtp.transport.tls import check_context

__all__ = [
    "LMTP_PORT",
    "SMTP_PORT",
    "SMTP_SSL_PORT",
    "Options",
    "TLSMode",
    "Token",
    "check",
    "check_address",
    "check_flag",
    "check_source",
    "host_and_port",
]

SMTP_PORT = 25
SMTP_SSL_PORT = 465
LMTP_PORT = 2003

TLSMode = Literal["none", "opportunistic", "required", "implicit"]

Token: TypeAlias = Callable[[bool], str | Awaitable[str]]
"""What gives OAuth 2.0 access tokens; see `Options`."""


class Options(TypedDict, total=False):
    """What people set once, for a connection; keyword arguments of every client class.

    tls: ``"implicit"``: TLS from the first octet.  ``"required"``: STARTTLS or an error.
        ``"opportunistic"``: STARTTLS if it is offered (RFC 7435); a certificate that cannot be verified does not
        stop the mail, but then no password and no token is sent.  ``"none"``: no TLS unless `starttls` is called.
        The default is "required" where a user name or `mechanisms` are given, else "none".
    ssl_context: for TLS; by default certificates and host names are verified, TLS 1.2 at least.
    server_hostname: the name the certificate has to be for, if it is not `host`.
    username, password: log in on connecting.
    token: instead of a password, a function that gives OAuth 2.0 access tokens (OAUTHBEARER, RFC 7628; XOAUTH2).
        Called with False for a token on connecting, and once more with True (a fresh one, whatever is cached) if
        the server rejects that.  It may be async; one that is not is called in a thread, as it may block.
        SMTP, SMTP_SSL and LMTP call it in the calling thread, and run an async one on a loop of their own.
        It is waited for as long as the reply to a command is; but SMTP, SMTP_SSL and LMTP cannot interrupt one that
        blocks, so that it needs a time-out of its own there.
    mechanisms: the SASL mechanisms to log in with, in this order: names, and for one that asmtp does not have (name,
        function), the function taking :class:`asmtp.Credentials` and returning a generator from challenge to
        response: see :meth:`asmtp.AsyncSMTP.auth`.  By default all that fit a password, or a token, the ones that
        protect it best first.  EXTERNAL (the client certificate of `ssl_context`), GSSAPI (extra "kerberos") and NTLM
        (extra "ntlm") are used only where they are named here; the first two need no password, nor a user name.
    window: how many messages and commands may be unanswered on the connection.
    window_octets: how many octets may be.
    pipelining, chunking: False where a server offers PIPELINING or CHUNKING and gets it wrong.
    on_event: a function that is called with each :class:`asmtp.Event`: connect, TLS, login, write, replies, delivery,
        close.  In the event loop: it must not block.
    sock: a connected socket to use instead of connecting.
    proxy: the URL of a proxy to connect through: socks5://, socks4:// or http:// (CONNECT) with host and port, user
        name and password percent-encoded.  It looks the host's name up.  Extra "proxy".
    proxy_protocol: 1 or 2: tell the server first, by that version of the PROXY protocol, who connects, which is this
        machine, or who is in an :class:`asmtp.ProxyHeader`.
    """

    tls: TLSMode | None
    ssl_context: ssl.SSLContext | None
    server_hostname: str | None
    username: str | None
    password: str | None
    token: Token | None
    mechanisms: Mechanisms | None
    window: int
    window_octets: int
    pipelining: bool
    chunking: bool
    sock: Any
    on_event: Hook | None
    proxy: str | None
    proxy_protocol: int | ProxyHeader | None


def check(options: Options, owner: str) -> None:
    """Raise what is wrong with options, before anything is done with them.

    Raises:
        TypeError: there is no such option.
        ValueError: a value is wrong.
    """
    unknown = set(options) - set(Options.__annotations__)
    if unknown:
        raise TypeError(f"{owner}() got an unexpected keyword argument {min(unknown)!r}")
    _check_credentials(options)
    tls = options.get("tls")
    if tls not in (None, "none", "opportunistic", "required", "implicit"):
        raise ValueError(f"tls must be 'none', 'opportunistic', 'required' or 'implicit', not {tls!r}")
    check_context(options.get("ssl_context"), "ssl_context")
    proxy = options.get("proxy")
    if proxy is not None:
        check_proxy(proxy)
        if options.get("sock") is not None:
            raise ValueError("proxy and sock: only one of them can be given")
    server_hostname = options.get("server_hostname")
    if server_hostname is not None:
        gate(server_hostname, "server_hostname")
    sock = options.get("sock")
    if sock is not None and not hasattr(sock, "fileno"):
        raise TypeError(f"sock must be a connected socket, not {type(sock).__name__}")
    for name in ("pipelining", "chunking"):
        check_flag(name, options.get(name, True))
    hook = options.get("on_event")
    if hook is not None and not callable(hook):
        raise TypeError(f"on_event must be a function, not {type(hook).__name__}")
    if options.get("proxy_protocol") is not None:
        ProxyHeader.of(options["proxy_protocol"])
    for name in ("window", "window_octets"):
        value = options.get(name, 1)
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a whole number, at least 1, not {value!r}")


def _check_credentials(options: Options) -> None:
    username, password, token = options.get("username"), options.get("password"), options.get("token")
    mechanisms = options.get("mechanisms")
    wanted = {"token" if token is not None else "password"}
    if mechanisms is not None:
        check_mechanisms(mechanisms)
        wanted = needs(mechanisms)
    if token is not None:
        if not callable(token):
            raise TypeError(f"token must be a function that returns a token, not {type(token).__name__}")
        if password is not None:
            raise ValueError("password and token: only one of them can be given")
        if username is None:
            raise ValueError("username is needed with token")
    elif (username is None) != (password is None) and (username is None or mechanisms is None):
        raise ValueError("username and password go together")
    if mechanisms is not None and "" not in wanted:  # else one of them does without
        for need, given in (("password", password), ("token", token)):
            if wanted == {need} and given is None:
                raise ValueError(f"mechanisms: a {need} is needed for them")
    if username is not None:
        gate(username, "username")


def check_flag(name: str, value: object) -> None:
    """Raise TypeError where it is neither True nor False: "no" would be taken for True."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, not {type(value).__name__}")


def check_address(host: Any, port: Any) -> tuple[str, int]:
    """Return host and port; a number in a str, and None for what is not given, are taken as by smtplib.

    Raises:
        ValueError, TypeError: they are no such thing.
    """
    host = gate(spelt_out(host or ""), "host")
    if port is None:
        port = 0
    if isinstance(port, str):
        port = gate(port, "port")
        if not (port.isascii() and port.isdecimal()):
            return host, cast("int", port)  # the name of a service, which the resolver knows
        return host, int(port)
    if isinstance(port, bool) or not isinstance(port, int):
        raise TypeError(f"port must be int, not {type(port).__name__}")
    if not 0 <= port <= 65535:
        raise ValueError(f"port must be a number from 0 to 65535, not {port}")
    return host, port


def check_source(address: Any) -> None:
    """Raise where it is neither None nor (host, port), as `source_address`.

    Raises:
        ValueError, TypeError: what is wrong.
    """
    if not address and not isinstance(address, int):
        return
    if not isinstance(address, tuple | list) or len(address) != 2:
        raise TypeError("source_address must be (host, port)")
    host, port = address
    gate(host, "source_address: host")
    if isinstance(port, bool) or not isinstance(port, int):
        raise TypeError(f"source_address: port must be int, not {type(port).__name__}")
    if not 0 <= port <= 65535:
        raise ValueError(f"source_address: port must be a number from 0 to 65535, not {port}")


def host_and_port(host: str, port: int, default: int) -> tuple[str, int]:
    """smtplib's reading of "host:port".

    Raises:
        OSError: the port is not a number.
    """
    if not port and host.count(":") == 1:
        host, _, text = host.partition(":")
        try:
            port = int(text)
        except ValueError:
            raise OSError("nonnumeric port") from None
    return host, port or default
