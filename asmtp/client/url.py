"""A relay as one URL: reading it, and writing it without the password.

No error here quotes any of the URL, and none has another one as its cause or context that would: if a character
of the password is not encoded, a piece of the password looks like a host, port, path or option.
"""

from __future__ import annotations

import contextlib
import difflib
import ipaddress
import math
import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import SplitResult, quote, unquote, urlsplit

from asmtp.auth.selection import Mechanisms, check_mechanisms
from asmtp.client.address import SMTP_SSL_PORT
from asmtp.protocol.command import gate
from asmtp.protocol.envelope import ascii_domain
from asmtp.protocol.proxy import ProxyHeader
from asmtp.transport.proxy import check_proxy, proxy_name
from asmtp.transport.timeouts import Timeouts
from asmtp.transport.tls import verifying_context

if TYPE_CHECKING:
    from asmtp.client.settings import ConnectionSettings, TLSMode

__all__ = ["OPTIONS", "bracketed", "check_ehlo_name", "host_name", "read", "written"]

# scheme: (LMTP, what it says of TLS).  A Unix socket needs no TLS: nothing leaves the machine.
_SCHEMES: dict[str, tuple[bool, TLSMode | None]] = {
    "smtp": (False, None),
    "smtp+starttls": (False, "required"),
    "smtps": (False, "implicit"),
    "lmtp": (True, None),
    "lmtp+unix": (True, "none"),
}
_KNOWN = ", ".join(f"{scheme}://" for scheme in _SCHEMES)
_MEANT = {"smtp+ssl": "smtps://", "smtp+tls": "smtp+starttls:// (STARTTLS), or smtps:// (TLS from the first octet)"}

# Characters that gate() lets through and no URL has.  os.environ makes surrogates of octets that are not UTF-8.
_NO_URL = re.compile("[\\s\ud800-\udfff]")
_LONE_PERCENT = re.compile("%(?![0-9A-Fa-f]{2})")
# SplitResult.hostname and .port let pass more, and differently from one Python to the next.
_HOST_AND_PORT = re.compile(r"(?:\[(?P<literal>[^\[\]]+)\]|(?P<name>[^\[\]:]+))(?::(?P<port>[0-9]{1,5}))?")
_ZONE = re.compile("[A-Za-z0-9._~-]*")  # RFC 6874 §2
_HOST_NAME = re.compile(r"(?:[A-Za-z0-9_-]{1,63}\.)*[A-Za-z0-9_-]{1,63}\.?")  # with "_": Docker's names have it
_EHLO_NAME = re.compile("[!-~]+")  # a domain or an address literal (RFC 5321 §4.1.3)
_SECONDS = re.compile(r"[0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?")  # float() takes more
_COUNT = re.compile("[1-9][0-9]{0,17}")
_FLAGS = {"yes": True, "true": True, "1": True, "on": True, "no": False, "false": False, "0": False, "off": False}


def read(url: str) -> dict[str, Any]:
    """Return the arguments of a :class:`~asmtp.Relay` that a URL stands for.

    Raises:
        ValueError: it is no such URL, or a certificate file cannot be used.
        TypeError: it is not a str.
    """
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
    arguments = {"host": host, "port": port, "lmtp": lmtp, "tls": tls, "username": username, "password": password}
    for name, option in OPTIONS.items():
        if not options.keys().isdisjoint(option.names):
            arguments[name] = option.read(options)
    return arguments


def written(host: str, port: int, settings: ConnectionSettings, *, lmtp: bool) -> str:
    """Return the URL of a relay, with ``***`` in place of the password: see :attr:`asmtp.Relay.url`."""
    userinfo = ""
    if settings.username is not None or settings.password is not None:
        secret = "" if settings.password is None else ":***"
        userinfo = f"{quote(settings.username or '', safe='', errors='replace')}{secret}@"
    if host.startswith("/"):
        scheme = "lmtp+unix" if lmtp else "smtp+unix"
        server = quote(host, errors="replace")
    else:
        secured = {"required": "smtp+starttls", "implicit": "smtps"}.get(settings.tls or "none", "smtp")
        scheme = "lmtp" if lmtp else secured
        server = bracketed(quote(host, safe=":"))  # an IPv6 zone has a "%" (RFC 6874)
        if port:
            server += f":{port}"
    said = _SCHEMES.get(scheme, (False, None))[1]
    texts = {} if settings.tls in (None, said) else {"tls": str(settings.tls)}
    for name, option in OPTIONS.items():
        value = getattr(settings, name)
        if value is not None:
            texts |= option.write(value)
    query = "&".join([f"{name}={quote(text)}" for name, text in texts.items()])
    return f"{scheme}://{userinfo}{server}{'?' if query else ''}{query}"


# ---- the parts of a URL -----------------------------------------------------------------------


def _split(url: str) -> SplitResult:
    with contextlib.suppress(ValueError):  # it quotes the part with the password
        return urlsplit(url)
    raise ValueError(
        "URL: brackets belong around an IPv6 address, and nowhere else; special characters in user name and password "
        "must be percent-encoded"
    )


def _check_for_scheme(url: str) -> None:
    """Tell a caller who writes "host:port" what to write.  That holds no password, so it is quoted.

    Raises:
        ValueError: it is just that.
    """
    found = _HOST_AND_PORT.fullmatch(url)
    if found is None or found["port"] is None:
        return
    scheme = "smtps" if int(found["port"]) == SMTP_SSL_PORT else "smtp"
    raise ValueError(f"URL: the scheme is missing: {scheme}://{url} is meant?")


def _decoded(text: str, component: str) -> str:
    """Return the text that percent-encoded text stands for: UTF-8 without control characters."""
    if _LONE_PERCENT.search(text):
        raise ValueError(f"URL: {component}: '%' must be followed by two hexadecimal digits (%25 is '%' itself)")
    with contextlib.suppress(UnicodeDecodeError):  # it holds the text
        return gate(unquote(text, errors="strict"), f"URL: {component}", secret=True)
    raise ValueError(f"URL: {component}: the percent-encoded octets are not UTF-8")


def host_name(text: str, argument: str, *, path: bool = False) -> str:
    """Return what can be resolved: a host name as A-labels, or an IP address without brackets.

    Args:
        path: allow an absolute path, too.
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


def check_ehlo_name(name: str) -> None:
    """Raise ValueError if EHLO cannot say a name."""
    if not _EHLO_NAME.fullmatch(name):
        raise ValueError("local_hostname must be ASCII, without spaces")


def _address(text: str) -> str:
    ipaddress.ip_address(text)
    if not _ZONE.fullmatch(text.partition("%")[2]):
        raise ValueError("a zone that cannot stand in a URL")
    return text


def bracketed(host: str) -> str:
    """Return a host as it stands before a port."""
    return f"[{host}]" if ":" in host else host


def _server(server: str, path: str) -> tuple[str, int]:
    """Return host and port; the port 0 if the URL has none."""
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
    return host_name(host, "URL: host"), int(port or 0)


def _unix_path(server: str, path: str) -> tuple[str, int]:
    if server:
        raise ValueError("URL: lmtp+unix:// has no host: three slashes begin the path")
    path = _decoded(path, "path")
    if path in ("", "/"):
        raise ValueError("URL: the path of the socket is missing")
    return path, 0


def _credentials(parts: SplitResult) -> tuple[str | None, str | None]:
    """Return user name and password: both, the name alone, or neither."""
    username = None if parts.username is None else _decoded(parts.username, "user name")
    password = None if parts.password is None else _decoded(parts.password, "password")
    if username == "":
        raise ValueError("URL: the user name is empty")
    if password == "":
        raise ValueError("URL: the password is empty (without one, leave out the ':')")
    return username, password


# ---- options ----------------------------------------------------------------------------------


def _options(query: str) -> dict[str, str]:
    """Return the options behind "?".  parse_qsl() will not do: it takes "+" for a space, and its errors quote."""
    options: dict[str, str] = {}
    for number, item in enumerate(query.split("&") if query else (), 1):
        name, _, value = item.partition("=")
        name = _decoded(name, f"option {number}")
        if name not in _NAMES:
            close = difflib.get_close_matches(name, _NAMES, 1)
            meant = f" (is {close[0]} meant?)" if close else ""
            raise ValueError(f"URL: option {number} is unknown{meant}; there are {', '.join(_NAMES)}")
        if name in options:
            raise ValueError(f"URL: option {name} is repeated")
        options[name] = _decoded(value, f"option {name}")
        if not options[name]:
            raise ValueError(f"URL: option {name} is empty")
    return options


def _tls(text: str) -> TLSMode:
    if text not in ("none", "opportunistic", "required"):
        raise ValueError("URL: option tls must be none, opportunistic or required (for implicit there is smtps://)")
    return cast("TLSMode", text)


def _flag(text: str, name: str) -> bool:
    flag = _FLAGS.get(text.lower())
    if flag is None:
        raise ValueError(f"URL: option {name} must be yes or no")
    return flag


def _count(text: str, name: str) -> int:
    if not _COUNT.fullmatch(text):
        raise ValueError(f"URL: option {name} must be a whole number, at least 1")
    return int(text)


def _seconds(text: str, name: str) -> float | None:
    if text == "none":
        return None
    if not _SECONDS.fullmatch(text) or not 0 < float(text) < math.inf:
        raise ValueError(f"URL: option {name} must be a number of seconds above 0, or none")
    return float(text)


def _server_hostname(text: str, name: str) -> str:
    return host_name(text, f"URL: option {name}")


def _as_it_is(text: str, name: str) -> str:
    return text


def _source_address(text: str, name: str) -> tuple[str, int]:
    with contextlib.suppress(ValueError):  # it quotes the text
        return _address(text), 0
    found = _HOST_AND_PORT.fullmatch(text)
    with contextlib.suppress(ValueError):
        if found is not None and (port := int(found["port"] or 0)) <= 65535:
            return _address(found["literal"] or found["name"]), port
    raise ValueError(f"URL: option {name} must be an IP address, address:port or [IPv6 address]:port")


def _written_source(source_address: tuple[str, int]) -> str:
    address, port = source_address
    return f"{bracketed(address)}:{port}" if port else address


def _mechanisms(text: str, name: str) -> Mechanisms:
    names = text.split(",")
    with contextlib.suppress(ValueError):  # it quotes the text
        check_mechanisms(names)
        return names
    raise ValueError(f"URL: option {name} must be names of SASL mechanisms that are known here, with commas between")


def _written_mechanisms(mechanisms: Mechanisms) -> str:
    return ",".join([one if isinstance(one, str) else one[0] for one in mechanisms])


def _proxy(text: str, name: str) -> str:
    try:
        check_proxy(text)
    except ValueError as error:
        raise ValueError(f"URL: option {error}") from None
    return text


def _proxy_protocol(text: str, name: str) -> int:
    if text not in ("1", "2"):
        raise ValueError(f"URL: option {name} must be 1 or 2")
    return int(text)


def _written_version(version: int | ProxyHeader) -> str | None:
    return str(version) if isinstance(version, int) else None  # no URL has a header


def _no_if_off(flag: bool) -> str | None:
    return None if flag else "no"


_PHASES = {f"timeout.{phase.name}": phase.name for phase in fields(Timeouts)}


def _timeouts(options: dict[str, str]) -> Timeouts:
    phases = {_PHASES[name]: _seconds(options[name], name) for name in _PHASES if name in options}
    if "timeout" in options:
        return replace(Timeouts.of(_seconds(options["timeout"], "timeout")), **phases)
    return Timeouts(**phases)


def _written_timeouts(timeouts: Timeouts) -> dict[str, str]:
    """Return the options that _timeouts() reads so."""
    limits = {name: str(getattr(timeouts, phase)).lower() for name, phase in _PHASES.items()}  # None: "none"
    return {"timeout": limits["timeout.connect"]} if len(set(limits.values())) == 1 else limits


def _context(options: dict[str, str]) -> ssl.SSLContext:
    """Return a verifying context with the certificates of the files."""
    cafile, certfile, keyfile = (options.get(name) for name in _FILES)
    if keyfile is not None and certfile is None:
        raise ValueError("URL: option keyfile needs certfile")
    name = "cafile"
    try:
        context = verifying_context(cafile)
        if certfile is not None:
            name = "certfile" if keyfile is None else "certfile or keyfile"
            context.load_cert_chain(certfile, keyfile, password="")  # with None it would ask on the terminal
    except OSError as error:  # an ssl.SSLError too; it does not say which file
        raise ValueError(f"URL: option {name} cannot be used: {error.strerror or error}") from None
    return context


_FILES = ("cafile", "certfile", "keyfile")


@dataclass(frozen=True, slots=True)
class _Option:
    """The form of a setting in a URL.

    Attributes:
        names: the names of its options there.
        read: makes the setting of the options of a URL that has one of these names.
        write: makes options of the setting.
    """

    names: tuple[str, ...]
    read: Callable[[dict[str, str]], Any]
    write: Callable[[Any], dict[str, str]]


def _one(name: str, read: Callable[[str, str], Any], write: Callable[[Any], str | None] = str) -> _Option:
    """Return the form of a setting that is one option of its own name."""

    def options(setting: Any) -> dict[str, str]:
        text = write(setting)
        return {} if text is None else {name: text}

    return _Option((name,), lambda options: read(options[name], name), options)


OPTIONS = {
    "server_hostname": _one("server_hostname", _server_hostname),
    "local_hostname": _one("local_hostname", _as_it_is),
    "window": _one("window", _count),
    "window_octets": _one("window_octets", _count),
    "source_address": _one("source_address", _source_address, _written_source),
    "timeouts": _Option(("timeout", *_PHASES), _timeouts, _written_timeouts),
    "mechanisms": _one("mechanisms", _mechanisms, _written_mechanisms),
    "proxy": _one("proxy", _proxy, proxy_name),
    "proxy_protocol": _one("proxy_protocol", _proxy_protocol, _written_version),
    "pipelining": _one("pipelining", _flag, _no_if_off),
    "chunking": _one("chunking", _flag, _no_if_off),
    "ssl_context": _Option(_FILES, _context, lambda context: {}),
}
"""The settings that URLs have as options; scheme, user name and password are the rest of a URL."""

_NAMES = (
    *OPTIONS["timeouts"].names, "tls",
    *(name for setting, option in OPTIONS.items() if setting != "timeouts" for name in option.names),
)  # fmt: skip
