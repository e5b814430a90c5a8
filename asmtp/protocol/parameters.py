"""ESMTP parameters (RFC 5321 §4.1.2) with types: a caller's requests beyond sender and recipients."""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self, TypeAlias, TypedDict

from asmtp.errors import SMTPNotSupportedError
from asmtp.protocol.command import gate, spelt_out
from asmtp.protocol.extensions import Extensions

__all__ = ["DeliverBy", "Notify", "Parameters", "Recipient", "Requests", "xclient", "xtext"]

Notify: TypeAlias = "str | Iterable[str]"
"""The cases in which the sender is told: "never", or any of "success", "failure" and "delay" (RFC 3461 §4.1)."""

MAX_ENVID, MAX_ORCPT = 100, 500
"""Characters of ENVID and ORCPT, before they are encoded (RFC 3461 §4.2, §4.4)."""

MAX_SECONDS = 999_999_999  # nine digits: RFC 2852 §4, RFC 4865 §4


@dataclass(frozen=True, slots=True)
class DeliverBy:
    """By when a message is to be delivered (DELIVERBY, RFC 2852 §4).

    Attributes:
        seconds: from now; below 1 only with mode "notify".
        mode: if it was not delivered by then, "return" it, or "notify" the sender and go on.
        trace: have each relay that passes it on tell the sender.

    Raises:
        ValueError, TypeError: an attribute is wrong.
    """

    seconds: int
    mode: Literal["return", "notify"] = "return"
    trace: bool = False

    def __post_init__(self) -> None:
        _whole_number(self.seconds, "deliver_by.seconds", -MAX_SECONDS, MAX_SECONDS)
        if self.mode not in ("return", "notify"):
            raise ValueError(f"deliver_by.mode must be 'return' or 'notify', not {self.mode!r}")
        if self.mode == "return" and self.seconds < 1:
            raise ValueError("deliver_by.seconds must be above 0 where the mode is 'return'")

    def __str__(self) -> str:
        return f"{self.seconds};{self.mode[0].upper()}{'T' if self.trace else ''}"


class Requests(TypedDict, total=False):
    """The requests that can be made: keyword arguments of `sendmail`, `send_message`, `send` and `Envelope`.

    If the server does not offer what is asked for, SMTPNotSupportedError is raised, and nothing of the message is
    written, unless something else is said here.

    notify: when the sender is told of each recipient (DSN, RFC 3461 §4.1): ``"never"``, or one or several of
        ``"success"``, ``"failure"``, ``"delay"``.  For some recipients only: see :class:`asmtp.Recipient`.
    ret: how much of the message comes back with it: ``"full"`` or ``"hdrs"`` (§4.3).
    envid: an identifier that comes back with it (§4.4).
    deliver_by: see :class:`asmtp.DeliverBy`.
    hold_for, hold_until: how many seconds the server keeps it back, or until when, as an aware datetime
        (FUTURERELEASE, RFC 4865).
    priority: from -9 to 9, 0 being the normal one (MT-PRIORITY, RFC 6710).
    require_tls: have it passed on over verified TLS only (REQUIRETLS, RFC 8689); this connection has to have that, too.
    smtputf8: declare that it needs internationalized email (RFC 6531); if an address does, that is done anyhow.
    binary: send it as it is, not as lines of text (BINARYMIME and CHUNKING, RFC 3030).
    prdr: have a reply for each recipient after the content (PRDR); if that is not offered, go on without.
    """

    notify: Notify
    ret: Literal["full", "hdrs"]
    envid: str
    deliver_by: DeliverBy
    hold_for: int
    hold_until: datetime.datetime
    priority: int
    require_tls: bool
    smtputf8: bool
    binary: bool
    prdr: bool


class Recipient(str):
    """An address with requests of its own (DSN, RFC 3461); it can be given wherever a recipient can.

    Args:
        address: as any recipient is written.
        notify: when the sender is told of this one; see :class:`~asmtp.Requests`.
        orcpt: the address that it was before it was changed: ``"rfc822;someone@example.com"``, or without a type.

    Raises:
        ValueError, TypeError: an argument is wrong.
    """

    __slots__ = ("notify", "orcpt")
    notify: str
    orcpt: str

    def __new__(cls, address: str, *, notify: Notify = "", orcpt: str = "") -> Self:
        """Check the arguments."""
        address = spelt_out(address)
        if not isinstance(address, str):
            raise TypeError(f"address must be str, not {type(address).__name__}")
        self = super().__new__(cls, address)
        self.notify = _notify(notify) if notify else ""
        self.orcpt = _orcpt(orcpt) if orcpt else ""
        return self

    def __reduce__(self) -> Any:
        return _recipient, (str(self), self.notify, self.orcpt)

    @property
    def parameters(self) -> str:
        """Return the requests as they stand in RCPT, each with a space before it."""
        return (f" NOTIFY={self.notify}" if self.notify else "") + (f" ORCPT={self.orcpt}" if self.orcpt else "")


def _recipient(address: str, notify: str, orcpt: str) -> Recipient:
    made = Recipient(address)
    made.notify, made.orcpt = notify, orcpt
    return made


_NOT_XTEXT = re.compile(r"[^!-*,-<>-~]")  # RFC 3461 §4: neither "+" nor "="
_NOT_UTF8_XTEXT = re.compile(r"[^!-*,-<>-\[\]-~]")  # RFC 6533 §3: nor "\"; other characters than ASCII by their number


def xtext(text: str) -> str:
    """Return ASCII text as it may stand in a parameter (RFC 3461 §4)."""
    return _NOT_XTEXT.sub(lambda found: f"+{ord(found[0]):02X}", text)


class Parameters:
    """The ESMTP parameters that a caller's requests lead to, checked.

    Raises:
        TypeError: there is no such request, or its value is of another type.
        ValueError: a value is out of its range.
    """

    __slots__ = ("_asked", "_notify", "_requests")

    def __init__(self, requests: Requests) -> None:
        unknown = set(requests) - set(Requests.__annotations__)
        if unknown:
            raise TypeError(f"got an unexpected keyword argument {min(unknown)!r}")
        self._requests: dict[str, Any] = {name: value for name, value in requests.items() if value is not None}
        get = self._requests.get
        for name in ("require_tls", "smtputf8", "binary", "prdr"):
            if not isinstance(get(name, False), bool):
                raise TypeError(f"{name} must be True or False, not {type(get(name)).__name__}")
        if get("ret", "full") not in ("full", "hdrs"):
            raise ValueError(f"ret must be 'full' or 'hdrs', not {get('ret')!a}")
        if "hold_for" in self._requests and "hold_until" in self._requests:
            raise ValueError("hold_for and hold_until: only one of them can be given")
        self._notify = f" NOTIFY={_notify(get('notify'))}" if "notify" in self._requests else ""
        self._asked = self._written()

    @property
    def requests(self) -> Mapping[str, Any]:
        """Return the caller's requests, by the names of :class:`Requests`."""
        return self._requests

    @property
    def envid(self) -> str | None:
        """Return the identifier that is asked to come back, as it was given."""
        return self._requests.get("envid")

    def _written(self) -> dict[str, list[str]]:
        """Return the parameters of MAIL, by the extension that defines them."""
        get = self._requests.get
        asked: dict[str, list[str]] = {}
        if "ret" in self._requests:
            asked["DSN"] = [f"RET={get('ret', '').upper()}"]
        if "envid" in self._requests:
            asked.setdefault("DSN", []).append(f"ENVID={_envid(get('envid'))}")
        if "deliver_by" in self._requests:
            if not isinstance(get("deliver_by"), DeliverBy):
                raise TypeError(f"deliver_by must be a DeliverBy, not {type(get('deliver_by')).__name__}")
            asked["DELIVERBY"] = [f"BY={get('deliver_by')}"]
        if "hold_for" in self._requests:
            asked["FUTURERELEASE"] = [f"HOLDFOR={_whole_number(get('hold_for'), 'hold_for', 1, MAX_SECONDS)}"]
        if "hold_until" in self._requests:
            asked["FUTURERELEASE"] = [f"HOLDUNTIL={_utc(get('hold_until'))}"]
        if "priority" in self._requests:
            asked["MT-PRIORITY"] = [f"MT-PRIORITY={_whole_number(get('priority'), 'priority', -9, 9)}"]
        if get("require_tls"):
            asked["REQUIRETLS"] = ["REQUIRETLS"]
        if get("smtputf8"):
            asked["SMTPUTF8"] = ["SMTPUTF8"]
        if get("binary"):
            asked["BINARYMIME"] = ["BODY=BINARYMIME"]
        return asked

    @property
    def binary(self) -> bool:
        """Tell whether the content is to be sent as it is."""
        return bool(self._requests.get("binary"))

    @property
    def prdr(self) -> bool:
        """Tell whether a reply for each recipient is wanted."""
        return bool(self._requests.get("prdr"))

    @property
    def names(self) -> set[str]:
        """Return the names of the parameters of MAIL among the requests."""
        return {text.partition("=")[0] for texts in self._asked.values() for text in texts}

    def mail(self, extensions: Extensions, *, secure: bool) -> str:
        """Return the parameters for MAIL, each with a space before it.

        Args:
            extensions: what the server offers.
            secure: the connection has TLS, and the certificate was verified.

        Raises:
            SMTPNotSupportedError: the server does not offer one of them, or not to that extent.
        """
        for extension, texts in self._asked.items():
            _offered(extensions, extension, texts[0])
        if self.binary:
            _offered(extensions, "CHUNKING", "BODY=BINARYMIME")
        if "REQUIRETLS" in self._asked and not secure:
            raise SMTPNotSupportedError("REQUIRETLS needs a connection with TLS, and a certificate that was verified")
        self._check_limits(extensions)
        return "".join(f" {text}" for texts in self._asked.values() for text in texts)

    def _check_limits(self, extensions: Extensions) -> None:
        by = self._requests.get("deliver_by")
        least = extensions.deliver_by
        if by is not None and by.mode == "return" and least is not None and by.seconds < least:
            raise SMTPNotSupportedError(f"DELIVERBY: the server takes {least} seconds at least, not {by.seconds}")
        longest, latest = extensions.future_release
        seconds, until = self._requests.get("hold_for"), self._requests.get("hold_until")
        if seconds is not None and longest is not None and seconds > longest:
            raise SMTPNotSupportedError(f"FUTURERELEASE: the server keeps it {longest} seconds at most, not {seconds}")
        if until is not None and latest is not None and until > latest:
            raise SMTPNotSupportedError(f"FUTURERELEASE: the server keeps it until {latest} at most, not until {until}")

    def rcpt(self, recipient: str, extensions: Extensions) -> str:
        """Return the parameters for RCPT, each with a space before it.

        Raises:
            SMTPNotSupportedError: the server does not offer DSN.
        """
        text = self.own(recipient)
        if text:
            _offered(extensions, "DSN", text.split()[0])
        return text

    def own(self, recipient: str) -> str:
        """Return the parameters that a recipient has, each with a space before it."""
        own = recipient.parameters if isinstance(recipient, Recipient) else ""
        return own if own.startswith(" NOTIFY=") else self._notify + own


def xclient(extensions: Extensions, attributes: Mapping[str, str | None]) -> bytes:
    """Return Postfix's XCLIENT as a command line.

    Args:
        attributes: their values by name; None: not known.

    Raises:
        SMTPNotSupportedError: the server does not offer XCLIENT, or one of the attributes.
        ValueError, TypeError: there is no attribute, or one is no ASCII text.
    """
    _offered(extensions, "XCLIENT", "xclient()")
    known = extensions["xclient"].upper().split()
    if not attributes:
        raise ValueError("xclient: no attribute is given")
    words = ["XCLIENT"]
    for name, value in attributes.items():
        if name.upper() not in known:
            raise SMTPNotSupportedError(f"XCLIENT: {name} not supported by server, which has {' '.join(known)}")
        if value is not None:
            gate(value, name)
            if not value.isascii() or not value:
                raise ValueError(f"{name} must be ASCII, and not empty")
            if name.lower() in ("addr", "destaddr") and ":" in value and not value.upper().startswith("IPV6:"):
                value = f"IPV6:{value}"
        words.append(f"{name.upper()}={'[UNAVAILABLE]' if value is None else xtext(value)}")
    return " ".join(words).encode() + b"\r\n"


def _offered(extensions: Extensions, extension: str, what: str) -> None:
    if extension.lower() not in extensions:
        raise SMTPNotSupportedError(f"{extension} not supported by server: {what.partition('=')[0]} needs it")


def _notify(value: Any) -> str:
    words = [value] if isinstance(value, str) else value
    if isinstance(words, bytes) or not isinstance(words, Iterable):
        raise TypeError(f"notify must be a str or an iterable of str, not {type(value).__name__}")
    found = [word.upper() if isinstance(word, str) else word for word in words]
    if not found or not set(found) <= {"SUCCESS", "FAILURE", "DELAY"}:
        if found == ["NEVER"]:
            return "NEVER"
        raise ValueError("notify must be 'never', or of 'success', 'failure' and 'delay'")
    return ",".join(dict.fromkeys(found))


def _orcpt(text: str) -> str:
    kind, semicolon, address = gate(text, "orcpt").partition(";")
    if not semicolon:
        kind, address = "rfc822" if text.isascii() else "utf-8", text
    if not re.fullmatch("[A-Za-z0-9-]+", kind):
        raise ValueError(f"orcpt: not a type of address: {kind!a}")
    if len(text) > MAX_ORCPT:
        raise ValueError(f"orcpt: {len(text)} characters; {MAX_ORCPT} are possible")
    if address.isascii():
        return f"{kind};{xtext(address)}"
    if kind.lower() != "utf-8":
        raise ValueError(f"orcpt: an address that is not ASCII is of type utf-8, not {kind}")
    # RFC 6533 §3
    return "utf-8;" + _NOT_UTF8_XTEXT.sub(lambda found: rf"\x{{{ord(found[0]):X}}}", address)


def _envid(text: Any) -> str:
    gate(text, "envid")
    if not text.isascii() or not text:
        raise ValueError("envid must be ASCII, and not empty")
    if len(text) > MAX_ENVID:
        raise ValueError(f"envid: {len(text)} characters; {MAX_ENVID} are possible")
    return xtext(text)


def _whole_number(value: Any, name: str, least: int, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, not {type(value).__name__}")
    if not least <= value <= most:
        raise ValueError(f"{name} must be from {least} to {most}, not {value}")
    return value


def _utc(moment: Any) -> str:
    if not isinstance(moment, datetime.datetime):
        raise TypeError(f"hold_until must be a datetime, not {type(moment).__name__}")
    if moment.utcoffset() is None:
        raise ValueError("hold_until must have a time zone")
    # RFC 4865 §4: Internet style date-time (RFC 3339)
    try:
        return moment.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except OverflowError:
        raise ValueError(f"hold_until: {moment} is in no year of UTC") from None
