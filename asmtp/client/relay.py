"""A server to send through, written as one URL: its settings, and their URL without the password.

No error here quotes any of the URL, and none has another one as its cause or context that would: where a character
of the password is not encoded, what looks like a host, port, path or option is a piece of the password.
"""

from __future__ import annotations

import contextlib
import difflib
import ipaddress
import math
import os
import re
import ssl
from dataclasses import KW_ONLY, dataclass, field, fields, replace
from typing import Any, cast
from urllib.parse import SplitResult, quote, unquote, urlsplit

from asmtp.auth.selection import Mechanisms, check_mechanisms
from asmtp.client.events import Hook
from asmtp.client.options import (
    LMTP_PORT,
    SMTP_PORT,
    SMTP_SSL_PORT,
    Options,
    TLSMode,
    Token,
    check,
    check_flag,
    check_source,
)
from asmtp.protocol.command import gate
from asmtp.protocol.envelope import ascii_domain
from asmtp.protocol.hidden import hidden
from asmtp.protocol.proxy import ProxyHeader
from asmtp.transport.proxy import check_proxy, proxy_name
from asmtp.transport.timeouts import Timeouts
from asmtp.transport.tls import verifying_context

__all__ = ["Relay"]

ENVIRONMENT = "ASMTP_URL"

# scheme: (LMTP, what it says of TLS).  A Unix socket has none: it does not leave the machine.
_SCHEMES: dict[str, tuple[bool, TLSMode | None]] = {
    "smtp": (False, None),
    "smtp+starttls": (False, "required"),
    "smtps": (False, "implicit"),
    "lmtp": (True, None),
    "lmtp+unix": (True, "none"),
}
_KNOWN = ", ".join(f"{scheme}://" for scheme in _SCHEMES)
_MEANT = {"smtp+ssl": "smtps://", "smtp+tls": "smtp+starttls:// (STARTTLS), or smtps:// (TLS from the first octet)"}

_PHASES = {f"timeout.{phase.name}": phase.name for phase in fields(Timeouts)}
_OPTIONS = (
    "timeout", *_PHASES, "tls", "server_hostname", "local_hostname", "source_address", "pipelining", "chunking",
    "window", "window_octets", "cafile", "certfile", "keyfile", "mechanisms", "proxy",
    "proxy_protocol",
)  # fmt: skip
_FLAGS = {"yes": True, "true": True, "1": True, "on": True, "no": False, "false": False, "0": False, "off": False}

# What gate() lets through and no URL has.  Surrogates are what os.environ makes of octets that are not UTF-8.
_NO_URL = re.compile("[\\s\ud800-\udfff]")
_LONE_PERCENT = re.compile("%(?![0-9A-Fa-f]{2})")
# SplitResult.hostname and .port let pass more, and differently from one Python to the next.
_HOST_AND_PORT = re.compile(r"(?:\[(?P<literal>[^\[\]]+)\]|(?P<name>[^\[\]:]+))(?::(?P<port>[0-9]{1,5}))?")
_ZONE = re.compile("[A-Za-z0-9._~-]*")  # RFC 6874 §2
_HOST_NAME = re.compile(r"(?:[A-Za-z0-9_-]{1,63}\.)*[A-Za-z0-9_-]{1,63}\.?")  # with "_": Docker's names have it
_EHLO_NAME = re.compile("[!-~]+")  # a domain or an address literal (RFC 5321 §4.1.3)
_SECONDS = re.compile(r"[0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?")  # float() takes more
_COUNT = re.compile("[1-9][0-9]{0,17}")


@dataclass(frozen=True, slots=True)
class Relay:
    """One server to send through, and how.

    repr and str do not show the password, nor the token function; pickles and copies hold them.  Whether user name,
    password and token go together is for the mailer to check: what is missing here may be among its own options.

    Attributes:
        host: name or IP address, or the absolute path of a Unix socket.  A name is kept as A-labels (RFC 5891).
        port: 0 for the protocol's own: 25, 465 with implicit TLS, 2003 for LMTP.
        lmtp: it speaks LMTP (RFC 2033).
        token: see :data:`~asmtp.client.options.Token`.
        mechanisms: see :class:`~asmtp.client.options.Options`; kept as a tuple.
        timeouts: in seconds; None where nothing was said.
        window, window_octets: None where nothing was said.
        others: see :class:`~asmtp.client.options.Options` and :class:`~asmtp.AsyncSMTP`.

    Raises:
        ValueError, TypeError: an argument is wrong.  The error does not quote host, user name or password.
    """

    host: str
    port: int = 0
    _: KW_ONLY
    lmtp: bool = False
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

    def __post_init__(self) -> None:
        object.__setattr__(self, "host", _host(self.host, "host", path=True))
        if isinstance(self.port, bool) or not isinstance(self.port, int):
            raise TypeError(f"port must be int, not {type(self.port).__name__}")
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port must be a number from 0 to 65535, not {self.port}")
        if self.username is not None:
            gate(self.username, "username", secret=True)
        if not isinstance(self.password, str | None):
            raise TypeError(f"password must be str, not {type(self.password).__name__}")
        for name in ("password", "proxy"):
            object.__setattr__(self, name, hidden(getattr(self, name)))
        if self.server_hostname is not None:
            object.__setattr__(self, "server_hostname", _host(self.server_hostname, "server_hostname"))
        if self.local_hostname is not None:
            gate(self.local_hostname, "local_hostname", secret=True)
            if not _EHLO_NAME.fullmatch(self.local_hostname):
                raise ValueError("local_hostname must be ASCII, without spaces")
        if self.mechanisms is not None:
            check_mechanisms(self.mechanisms)
            object.__setattr__(self, "mechanisms", tuple(self.mechanisms))
        check_source(self.source_address)
        if self.timeouts is not None:
            object.__setattr__(self, "timeouts", Timeouts.of(self.timeouts, "timeouts"))
        check_flag("lmtp", self.lmtp)
        if self.token is not None and not callable(self.token):
            raise TypeError(f"token must be a function that returns a token, not {type(self.token).__name__}")
        window = 1 if self.window is None else self.window
        octets = 1 if self.window_octets is None else self.window_octets
        names = ("ssl_context", "pipelining", "chunking", "proxy", "proxy_protocol", "on_event")
        rest: Any = {name: getattr(self, name) for name in names}
        check(cast("Options", {"tls": self.tls, "window": window, "window_octets": octets, **rest}), "Relay")

    @classmethod
    def from_url(cls, url: str) -> Relay:
        """Read ``smtp://``, ``smtp+starttls://``, ``smtps://``, ``lmtp://`` (host) or ``lmtp+unix://`` (path).

        Options follow behind "?": ``timeout`` (seconds or "none", for all phases) and ``timeout.connect`` etc. (see
        :class:`~asmtp.Timeouts`); ``tls`` (none, opportunistic, required; with ``smtp://`` only); ``server_hostname``;
        ``local_hostname``; ``source_address`` (address, or address:port); ``pipelining``, ``chunking`` (yes or no);
        ``window``, ``window_octets``; ``mechanisms`` (names, with commas between); ``cafile`` (trusted instead of the
        system's certificates), ``certfile`` and ``keyfile`` (our own);
        ``proxy`` (its URL), ``proxy_protocol`` (1 or 2).  "+" is a plus sign everywhere.  Where nothing
        is said of TLS, `tls` stays None; with ``lmtp+unix://`` it is "none".

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
            return cls._read(url)
        except (ValueError, TypeError, ImportError) as error:
            wrong = error
        # Without the frames that hold pieces of it: error reporters show what is in them.
        wrong.__context__ = None
        raise wrong.with_traceback(None)

    @classmethod
    def _read(cls, url: str) -> Relay:
        gate(url, "URL", secret=True)
        if _NO_URL.search(url):
            raise ValueError("URL: whitespace and lone surrogates must be percent-encoded")
        parts = _split(url)
        if parts.scheme not in _SCHEMES:
            _check_for_scheme(url)
            meant = f"; this one is {_MEANT[parts.scheme]}" if parts.scheme in _MEANT else ""
            raise ValueError(f"URL: the scheme must be one of {_KNOWN}{meant}")
        if not url[len(parts.scheme) :].startswith("://"):
            raise ValueError(f"URL: '//' must follow the scheme: {parts.scheme}://")
        userinfo, _, server = parts.netloc.rpartition("@")
        if "@" in parts.path + parts.query + parts.fragment or any(char in userinfo for char in "@[]"):
            raise ValueError(
                "URL: '/', '?', '#', '@', '[' and ']' must be percent-encoded in user name and password, "
                "and '@' in path and options ('@' is %40)"
            )
        if "#" in url:
            raise ValueError("URL: there must be no fragment ('#' is percent-encoded as %23)")
        unix = parts.scheme == "lmtp+unix"
        host, port = _unix_path(server, parts.path) if unix else _server(server, parts.path)
        username, password = _credentials(parts)
        options = _options(parts.query)
        lmtp, tls = _SCHEMES[parts.scheme]
        if "tls" in options:
            if parts.scheme != "smtp":
                raise ValueError(f"URL: option tls is for smtp:// only, not for {parts.scheme}://")
            tls = _tls(options["tls"])
        server_hostname = options.get("server_hostname")
        return cls(
            host,
            port,
            lmtp=lmtp,
            tls=tls,
            username=username,
            password=password,
            mechanisms=_mechanisms(options),
            proxy=_proxy(options),
            proxy_protocol=_proxy_protocol(options),
            ssl_context=_context(options),
            server_hostname=server_hostname and _host(server_hostname, "URL: option server_hostname"),
            local_hostname=options.get("local_hostname"),
            source_address=_source_address(options),
            timeouts=_timeouts(options),
            pipelining=_flag(options, "pipelining"),
            chunking=_flag(options, "chunking"),
            window=_count(options, "window"),
            window_octets=_count(options, "window_octets"),
        )

    @classmethod
    def from_environment(cls) -> list[Relay]:
        """The relays of the environment variable ASMTP_URL: URLs, with whitespace between them.

        Raises:
            ValueError: it is not set, or one is wrong.
        """
        text = hidden(os.environ.get(ENVIRONMENT, ""))
        if not text.strip():
            raise ValueError(f"{ENVIRONMENT} is not set: no relay to send through")
        return cls.several(text, ENVIRONMENT)

    @classmethod
    def several(cls, text: str, where: str) -> list[Relay]:
        """The relays of URLs with whitespace between them.

        Args:
            where: they come from, for the error.

        Raises:
            ValueError: there is none, or one is wrong.
        """
        text = hidden(text)
        urls = hidden(text.split())
        if not urls:
            raise ValueError(f"{where}: no URL is in it")
        relays = []
        for number, url in enumerate(urls, 1):
            try:
                relays.append(cls.from_url(url))
            except ValueError as error:
                raise ValueError(f"{where}, number {number} of {len(urls)}: {error}") from None
        return relays

    @property
    def name(self) -> str:
        """``"host:port"``, or the path of a Unix socket: for logs and receipts."""
        if self.host.startswith("/"):
            return self.host
        smtp_port = SMTP_SSL_PORT if self.tls == "implicit" else SMTP_PORT
        port = self.port or (LMTP_PORT if self.lmtp else smtp_port)
        return f"{_bracketed(self.host)}:{port}"

    @property
    def url(self) -> str:
        """What was not left to the defaults, as a URL for people to read.  ``***`` stands for the password.

        It lacks what no URL has, the TLS context and the token, and shows what none can ask for, TLS with LMTP and
        SMTP over a Unix socket, as if one could.
        """
        userinfo = ""
        if self.username is not None or self.password is not None:
            secret = "" if self.password is None else ":***"
            userinfo = f"{quote(self.username or '', safe='', errors='replace')}{secret}@"
        if self.host.startswith("/"):
            scheme = "lmtp+unix" if self.lmtp else "smtp+unix"
            server = quote(self.host, errors="replace")
        else:
            secured = {"required": "smtp+starttls", "implicit": "smtps"}.get(self.tls or "none", "smtp")
            scheme = "lmtp" if self.lmtp else secured
            server = _bracketed(quote(self.host, safe=":"))  # an IPv6 zone has a "%" (RFC 6874)
            if self.port:
                server += f":{self.port}"
        written: dict[str, object] = {}
        if self.tls not in (None, _SCHEMES.get(scheme, (False, None))[1]):
            written["tls"] = self.tls
        for option in ("server_hostname", "local_hostname", "window", "window_octets"):
            written[option] = getattr(self, option)
        if self.source_address is not None:
            address, port = self.source_address
            written["source_address"] = f"{_bracketed(address)}:{port}" if port else address
        if self.timeouts is not None:
            written |= _written_timeouts(self.timeouts)
        if self.mechanisms is not None:
            names = [one if isinstance(one, str) else one[0] for one in self.mechanisms]
            written["mechanisms"] = ",".join(names)
        if self.proxy is not None:
            written["proxy"] = proxy_name(self.proxy)
        if isinstance(self.proxy_protocol, int):
            written["proxy_protocol"] = self.proxy_protocol
        for option in ("pipelining", "chunking"):
            written[option] = None if getattr(self, option) else "no"
        query = "&".join([f"{option}={quote(str(value))}" for option, value in written.items() if value is not None])
        return f"{scheme}://{userinfo}{server}{'?' if query else ''}{query}"

    def __str__(self) -> str:
        return self.url


def _split(url: str) -> SplitResult:
    with contextlib.suppress(ValueError):  # it quotes the part with the password
        return urlsplit(url)
    raise ValueError(
        "URL: brackets belong around an IPv6 address, and nowhere else; special characters in user name and password "
        "must be percent-encoded"
    )


def _check_for_scheme(url: str) -> None:
    """Tell who writes "host:port" what is meant.  That holds no password, so it is quoted.

    Raises:
        ValueError: it is just that.
    """
    found = _HOST_AND_PORT.fullmatch(url)
    if found is None or found["port"] is None:
        return
    scheme = "smtps" if int(found["port"]) == SMTP_SSL_PORT else "smtp"
    raise ValueError(f"URL: the scheme is missing: {scheme}://{url} is meant?")


def _decoded(text: str, component: str) -> str:
    """What percent-encoded text stands for: UTF-8 without control characters."""
    if _LONE_PERCENT.search(text):
        raise ValueError(f"URL: {component}: '%' must be followed by two hexadecimal digits (%25 is '%' itself)")
    with contextlib.suppress(UnicodeDecodeError):  # it holds the text
        return gate(unquote(text, errors="strict"), f"URL: {component}", secret=True)
    raise ValueError(f"URL: {component}: the percent-encoded octets are not UTF-8")


def _host(text: str, argument: str, *, path: bool = False) -> str:
    """What can be resolved: a host name as A-labels, or an IP address without brackets.

    Args:
        path: an absolute path will do as well.
    """
    gate(text, argument, secret=True)
    if path and text.startswith("/"):
        return text
    with contextlib.suppress(ValueError):  # it quotes the text
        if ":" in text:
            return _address(text)
        name = ascii_domain(text, argument)
        if len(name) <= 253 and _HOST_NAME.fullmatch(name):
            return name
    also = ", or an absolute path; a URL is for Relay.from_url()" if path else ""
    raise ValueError(f"{argument} must be a host name or an IP address{also}")


def _address(text: str) -> str:
    ipaddress.ip_address(text)
    if not _ZONE.fullmatch(text.partition("%")[2]):
        raise ValueError("a zone that cannot stand in a URL")
    return text


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _server(server: str, path: str) -> tuple[str, int]:
    """Host and port; the port 0 if there is none."""
    if not server:
        raise ValueError("URL: the host is missing")
    if path not in ("", "/"):
        raise ValueError("URL: there must be no path")
    found = _HOST_AND_PORT.fullmatch(server)
    port = found and found["port"]
    if found is None or (port is not None and not 1 <= int(port) <= 65535):
        raise ValueError("URL: host and port must be host, host:port or [IPv6 address]:port, the port from 1 to 65535")
    literal = found["literal"]
    host = _decoded(literal or found["name"], "host")
    if bool(literal) != (":" in host):
        raise ValueError("URL: brackets must be around an IPv6 address, and around nothing else")
    return _host(host, "URL: host"), int(port or 0)


def _unix_path(server: str, path: str) -> tuple[str, int]:
    if server:
        raise ValueError("URL: lmtp+unix:// has no host: three slashes begin the path")
    path = _decoded(path, "path")
    if path in ("", "/"):
        raise ValueError("URL: the path of the socket is missing")
    return path, 0


def _credentials(parts: SplitResult) -> tuple[str | None, str | None]:
    """User name and password: both, the name alone, or neither."""
    username = None if parts.username is None else _decoded(parts.username, "user name")
    password = None if parts.password is None else _decoded(parts.password, "password")
    if username == "":
        raise ValueError("URL: the user name is empty")
    if password == "":
        raise ValueError("URL: the password is empty (without one, leave out the ':')")
    return username, password


def _options(query: str) -> dict[str, str]:
    """What stands behind "?".  Not parse_qsl(): to a form "+" is a space, and its errors quote."""
    options: dict[str, str] = {}
    for number, item in enumerate(query.split("&") if query else (), 1):
        option, _, value = item.partition("=")
        option = _decoded(option, f"option {number}")
        if option not in _OPTIONS:
            close = difflib.get_close_matches(option, _OPTIONS, 1)
            meant = f" (is {close[0]} meant?)" if close else ""
            raise ValueError(f"URL: option {number} is unknown{meant}; there are {', '.join(_OPTIONS)}")
        if option in options:
            raise ValueError(f"URL: option {option} is repeated")
        options[option] = _decoded(value, f"option {option}")
        if not options[option]:
            raise ValueError(f"URL: option {option} is empty")
    return options


def _tls(text: str) -> TLSMode:
    if text not in ("none", "opportunistic", "required"):
        raise ValueError("URL: option tls must be none, opportunistic or required (for implicit there is smtps://)")
    return cast("TLSMode", text)


def _flag(options: dict[str, str], option: str) -> bool:
    flag = _FLAGS.get(options.get(option, "yes").lower())
    if flag is None:
        raise ValueError(f"URL: option {option} must be yes or no")
    return flag


def _count(options: dict[str, str], option: str) -> int | None:
    text = options.get(option)
    if text is None:
        return None
    if not _COUNT.fullmatch(text):
        raise ValueError(f"URL: option {option} must be a whole number, at least 1")
    return int(text)


def _seconds(text: str, option: str) -> float | None:
    if text == "none":
        return None
    if not _SECONDS.fullmatch(text) or not 0 < float(text) < math.inf:
        raise ValueError(f"URL: option {option} must be a number of seconds above 0, or none")
    return float(text)


def _timeouts(options: dict[str, str]) -> Timeouts | None:
    phases = {_PHASES[option]: _seconds(options[option], option) for option in _PHASES if option in options}
    if "timeout" in options:
        return replace(Timeouts.of(_seconds(options["timeout"], "timeout")), **phases)
    return Timeouts(**phases) if phases else None


def _written_timeouts(timeouts: Timeouts) -> dict[str, str]:
    """The options that _timeouts() reads so."""
    limits = {option: str(getattr(timeouts, phase)).lower() for option, phase in _PHASES.items()}  # None: "none"
    return {"timeout": limits["timeout.connect"]} if len(set(limits.values())) == 1 else limits


def _source_address(options: dict[str, str]) -> tuple[str, int] | None:
    text = options.get("source_address")
    if text is None:
        return None
    with contextlib.suppress(ValueError):  # it quotes the text
        return _address(text), 0
    found = _HOST_AND_PORT.fullmatch(text)
    with contextlib.suppress(ValueError):
        if found is not None and (port := int(found["port"] or 0)) <= 65535:
            return _address(found["literal"] or found["name"]), port
    raise ValueError("URL: option source_address must be an IP address, address:port or [IPv6 address]:port")


def _mechanisms(options: dict[str, str]) -> Mechanisms | None:
    text = options.get("mechanisms")
    if text is None:
        return None
    names = text.split(",")
    with contextlib.suppress(ValueError):  # it quotes the text
        check_mechanisms(names)
        return names
    raise ValueError("URL: option mechanisms must be names of SASL mechanisms that are known here, with commas between")


def _proxy(options: dict[str, str]) -> str | None:
    text = options.get("proxy")
    if text is not None:
        try:
            check_proxy(text)
        except ValueError as error:
            raise ValueError(f"URL: option {error}") from None
    return text


def _proxy_protocol(options: dict[str, str]) -> int | None:
    text = options.get("proxy_protocol")
    if text not in (None, "1", "2"):
        raise ValueError("URL: option proxy_protocol must be 1 or 2")
    return None if text is None else int(text)


def _context(options: dict[str, str]) -> ssl.SSLContext | None:
    """A verifying context with the certificates of the files; None without files."""
    cafile, certfile, keyfile = (options.get(option) for option in ("cafile", "certfile", "keyfile"))
    if keyfile is not None and certfile is None:
        raise ValueError("URL: option keyfile needs certfile")
    if cafile is None and certfile is None:
        return None
    option = "cafile"
    try:
        context = verifying_context(cafile)
        if certfile is not None:
            option = "certfile" if keyfile is None else "certfile or keyfile"
            context.load_cert_chain(certfile, keyfile, password="")  # with None it would ask on the terminal
    except OSError as error:  # an ssl.SSLError too; it does not say which file
        raise ValueError(f"URL: option {option} cannot be used: {error.strerror or error}") from None
    return context
