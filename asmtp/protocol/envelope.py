"""Who sends to whom: the envelope and its command lines."""

from __future__ import annotations

import email.utils
import re
from collections.abc import Iterable, Sequence
from smtplib import quoteaddr
from typing import TYPE_CHECKING

from asmtp.errors import SMTPNotSupportedError
from asmtp.protocol.command import gate, options_text

if TYPE_CHECKING:
    from asmtp.protocol.extensions import Extensions

__all__ = ["Envelope", "ascii_domain", "path"]

# What nearly every address is made of: nothing here needs quoting, parsing or a look at controls.
_PLAIN = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~.@-]*")


def path(address: str, argument: str) -> str:
    """An address as it stands in MAIL and RCPT: ``<local@domain>``, still with its non-ASCII characters.

    Takes what smtplib's `quoteaddr` takes: ``a@b``, ``<a@b>``, ``"Name" <a@b>``, ``<>``, ``''``.

    Raises:
        TypeError: not a str.
        ValueError: a control character, or angle brackets that would end the path early.
    """
    if not isinstance(address, str):
        raise TypeError(f"{argument} must be str, not {type(address).__name__}")
    if _PLAIN.fullmatch(address):
        return f"<{address}>"
    if len(email.utils.getaddresses([gate(address, argument)])) > 1:
        raise ValueError(f"{argument}: more than one address in one str: {address!a}")
    quoted = quoteaddr(address).strip()
    # quoteaddr passes on what it cannot parse; "a> SIZE=1" must not become a parameter.  A backslash outside of
    # quotes is legal nowhere, and would have servers disagree where quotes begin.
    inner = re.sub(r'"(?:[^"\\]|\\.)*"', "", quoted[1:-1])
    if quoted[-1] != ">" or not set(inner).isdisjoint('<>"\\'):
        raise ValueError(f"{argument}: not an address: {address!a}")
    return quoted


def ascii_domain(domain: str, argument: str) -> str:
    """A domain as A-labels (RFC 5891).

    Raises:
        ValueError: it cannot be a domain.
    """
    if domain.isascii():
        return domain
    import idna  # few addresses need it

    try:
        return idna.encode(domain, uts46=True).decode("ascii")
    except idna.IDNAError as error:
        raise ValueError(f"{argument}: {error}") from error


def _ascii_path(quoted: str, argument: str) -> str:
    """The path with its domain as A-labels, where the local part is ASCII."""
    local, at, domain = quoted[1:-1].rpartition("@")
    if not at or not local.isascii():
        return quoted
    return f"<{local}@{ascii_domain(domain, argument)}>"


class Envelope:
    """A sender, its recipients, and their ESMTP parameters.

    Args:
        sender: the address for MAIL FROM; ``""`` or ``"<>"`` is the null sender.
        recipients: one address, or several.
        mail_options: ESMTP parameters for MAIL, such as ``"BODY=8BITMIME"``.
        rcpt_options: ESMTP parameters for every RCPT, such as ``"NOTIFY=NEVER"``.

    Raises:
        TypeError: an address or option is not a str.
        ValueError: no recipients; or a control character, or an address that is none, in an argument
            that the error names.
    """

    __slots__ = ("_mail_text", "_paths", "_rcpt_text", "mail_options", "rcpt_options", "recipients", "sender")

    def __init__(
        self,
        sender: str,
        recipients: str | Iterable[str],
        mail_options: Sequence[str] = (),
        rcpt_options: Sequence[str] = (),
    ) -> None:
        self.sender = sender
        if isinstance(recipients, bytes) or not hasattr(recipients, "__iter__"):  # type: ignore[unreachable]
            raise TypeError(f"to_addrs must be str or an iterable of str, not {type(recipients).__name__}")
        self.recipients: Sequence[str] = (recipients,) if isinstance(recipients, str) else tuple(recipients)
        if not self.recipients:
            raise ValueError("to_addrs: no recipients")
        self.mail_options = mail_options
        self.rcpt_options = rcpt_options
        self._mail_text = options_text(mail_options, "mail_options") if mail_options else ""
        self._rcpt_text = options_text(rcpt_options, "rcpt_options") if rcpt_options else ""
        self._paths = [path(sender, "from_addr")]
        self._paths += [path(recipient, "to_addrs") for recipient in self.recipients]

    def __repr__(self) -> str:
        return f"Envelope({self.sender!r}, {list(self.recipients)!r})"

    def commands(self, extensions: Extensions, parameters: str, *, esmtp: bool) -> list[bytes]:
        """MAIL and every RCPT as command lines.

        Args:
            extensions: what the server offers.
            parameters: ESMTP parameters that the message itself asks for, each with a space before it.
            esmtp: whether the server took EHLO; without it no parameter is sent.

        Raises:
            SMTPNotSupportedError: SMTPUTF8 is asked for, or an address needs it, and is not offered.
        """
        mail_options = rcpt_options = ""
        if esmtp:
            mail_options = parameters + self._mail_text
            rcpt_options = self._rcpt_text
        paths = self._paths
        text = "".join(paths) + mail_options + rcpt_options
        if text.isascii() and "smtputf8" not in mail_options.lower():
            return _lines(paths, mail_options, rcpt_options)
        return self._international(paths, mail_options, rcpt_options, extensions)

    def _international(
        self, paths: list[str], mail_options: str, rcpt_options: str, extensions: Extensions
    ) -> list[bytes]:
        """RFC 6531: SMTPUTF8 only where a local part needs it or the caller asks for it."""
        asked = "smtputf8" in mail_options.lower().split()
        if not asked:
            paths = [
                quoted if quoted.isascii() else _ascii_path(quoted, "to_addrs" if place else "from_addr")
                for place, quoted in enumerate(paths)
            ]
        needed = not ("".join(paths) + mail_options + rcpt_options).isascii()
        if not asked and not needed:
            return _lines(paths, mail_options, rcpt_options)
        if "smtputf8" not in extensions:
            what = "SMTPUTF8 not supported by server"
            if asked:
                raise SMTPNotSupportedError(what)
            try:
                ("".join(paths) + mail_options + rcpt_options).encode("ascii")
            except UnicodeEncodeError as error:
                raise SMTPNotSupportedError(f"{what}: {self._first_needing(paths)} needs it") from error
        if not asked:
            mail_options += " SMTPUTF8"
            if "body=" not in mail_options.lower() and "8bitmime" in extensions:
                mail_options += " BODY=8BITMIME"
        return _lines(paths, mail_options, rcpt_options)

    def _first_needing(self, paths: list[str]) -> str:
        everyone = [self.sender, *self.recipients]
        needing = [who for who, quoted in zip(everyone, paths, strict=True) if not quoted.isascii()]
        return f"the address {needing[0]!a}" if needing else "an ESMTP parameter"


def _lines(paths: list[str], mail_options: str, rcpt_options: str) -> list[bytes]:
    # Lower case, as smtplib has it since 3.13: RFC 5321 §2.4 makes both the same, some servers do not.
    lines = [f"mail from:{paths[0]}{mail_options}\r\n".encode()]
    lines += [f"rcpt to:{quoted}{rcpt_options}\r\n".encode() for quoted in paths[1:]]
    return lines
