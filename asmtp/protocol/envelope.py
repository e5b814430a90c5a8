"""The envelope: sender, recipients, and their command lines."""

from __future__ import annotations

import copy
import email.utils
import re
from collections.abc import Iterable, Mapping, Sequence
from email.message import Message
from smtplib import quoteaddr
from typing import TYPE_CHECKING, Any, Unpack

from asmtp.errors import SMTPNotSupportedError
from asmtp.protocol.command import gate, options_text, spelt_out
from asmtp.protocol.parameters import Parameters, Recipient, Requests

if TYPE_CHECKING:
    from asmtp.protocol.extensions import Extensions

__all__ = ["Envelope", "SendmailEnvelope", "addresses_from_headers", "ascii_domain", "path"]

# The characters of nearly every address: none of them needs quoting or parsing, or is a control.
_PLAIN = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~.@-]*")


def path(address: str, argument: str) -> str:
    """Return an address as it stands in MAIL and RCPT: ``<local@domain>``, still with its non-ASCII characters.

    Args:
        address: as smtplib's `quoteaddr` takes it: ``a@b``, ``<a@b>``, ``"Name" <a@b>``, ``<>``, ``''``.
        argument: the caller's name of it, for the error.

    Raises:
        TypeError: it is not a str.
        ValueError: it has a control character, U+FFFD, or angle brackets that would end the path early.
    """
    if not isinstance(address, str):
        raise TypeError(f"{argument} must be str, not {type(address).__name__}")
    if _PLAIN.fullmatch(address):
        return f"<{address}>"
    if "\ufffd" in address:
        # The email package puts U+FFFD for octets that it cannot decode: it would be somebody else's address.
        raise ValueError(f"{argument}: an address that could not be decoded: {address!a}")
    if len(email.utils.getaddresses([gate(address, argument)])) > 1:
        raise ValueError(f"{argument}: more than one address in one str: {address!a}")
    quoted = quoteaddr(address).strip()
    # quoteaddr passes on what it cannot parse, and "a> SIZE=1" must not become a parameter.  A backslash outside of
    # quotes is legal nowhere (RFC 5321 §4.1.2), and servers would disagree about where quotes begin.
    inner = re.sub(r'"(?:[^"\\]|\\.)*"', "", quoted[1:-1])
    if quoted[-1] != ">" or not set(inner).isdisjoint('<>"\\'):
        raise ValueError(f"{argument}: not an address: {address!a}")
    return quoted


def ascii_domain(domain: str, argument: str) -> str:
    """Return a domain as A-labels (RFC 5891).

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
    """Return a path with its domain as A-labels, if the local part is ASCII; parameters behind it stay."""
    address, end, parameters = quoted[1:].rpartition(">")
    local, at, domain = address.rpartition("@")
    if not at or not local.isascii():
        return quoted
    return f"<{local}@{ascii_domain(domain, argument)}{end}{parameters}"


def addresses_from_headers(
    message: Message[Any, Any],
    sender: str | None = None,
    recipients: str | Iterable[str] | None = None,
    argument: str = "sender",
) -> tuple[str, list[str]]:
    """Return the sender and the recipients that smtplib's `send_message` finds (RFC 5322 §3.6).

    The sender is the one of Sender, else of From; the recipients are those of To, Bcc and Cc.  If the message has one
    Resent-Date, the Resent- fields count instead.

    Args:
        sender, recipients: those that the caller gives; they are not looked for.
        argument: the caller's name of `sender`, for the error.

    Raises:
        ValueError: there is more than one block of Resent- fields, or no sender.
    """
    resent = message.get_all("Resent-Date")
    if resent is not None and len(resent) > 1:
        raise ValueError("message has more than one 'Resent-' header block")
    prefix = "Resent-" if resent else ""
    if sender is None:
        field = message[prefix + "Sender"]
        if field is None:
            field = message[prefix + "From"]
        if field is None:
            raise ValueError(f"{argument}: not given, and the message has no {prefix}From or {prefix}Sender")
        found = [address for _, address in email.utils.getaddresses([str(field)]) if address]
        if not found:
            raise ValueError(f"{argument}: not given, and there is no address in {prefix}From or {prefix}Sender")
        sender = found[0]
    if recipients is None:
        # Repeated fields are not legal (RFC 5322 §3.6), but the author wants the recipients of a second To, too.
        fields = [str(f) for name in ("To", "Bcc", "Cc") for f in message.get_all(prefix + name, [])]
        recipients = [address for _, address in email.utils.getaddresses(fields) if address]
    return sender, [recipients] if isinstance(recipients, str) else list(recipients)


def _shown(recipient: str) -> str:
    """Return a recipient for `repr`, with what is asked for with it alone."""
    own = f" ({recipient.parameters.strip()})" if isinstance(recipient, Recipient) else ""
    return repr(str(recipient)) + own


class Envelope:
    """A sender, its recipients, and their ESMTP parameters.

    Args:
        sender: the address for MAIL FROM; ``""`` or ``"<>"`` is the null sender.
        recipients: one address, or several.
        mail_options: ESMTP parameters for MAIL, such as ``"BODY=8BITMIME"``.
        rcpt_options: ESMTP parameters for every RCPT, such as ``"NOTIFY=NEVER"``.
        content: the message itself, for a mailer that is given both in one.
        requests: what else is asked for: see :class:`~asmtp.Requests`.

    Raises:
        TypeError: an address or option is not a str, or a request is of another type.
        ValueError: there are no recipients; a request is out of its range; or the argument that the error names has a
            control character, or is no address.
    """

    __slots__ = (
        "__weakref__", "_mail_text", "_parameters", "_paths", "_rcpt_text", "content", "mail_options", "rcpt_options",
        "recipients", "sender",
    )  # fmt: skip

    _names = "sender", "recipients"  # the caller's names of the addresses, for errors

    def __init__(
        self,
        sender: str,
        recipients: str | Iterable[str],
        mail_options: Sequence[str] = (),
        rcpt_options: Sequence[str] = (),
        *,
        content: Any = None,
        **requests: Unpack[Requests],
    ) -> None:
        sender_name, recipients_name = self._names
        self.sender = spelt_out(sender)
        self.content = content
        recipients = spelt_out(recipients)
        if isinstance(recipients, bytes) or not hasattr(recipients, "__iter__"):  # type: ignore[unreachable]
            raise TypeError(f"{recipients_name} must be str or an iterable of str, not {type(recipients).__name__}")
        several = (recipients,) if isinstance(recipients, str) else tuple(map(spelt_out, recipients))
        self.recipients: Sequence[str] = several
        if not self.recipients:
            raise ValueError(f"{recipients_name}: no recipients")
        self.mail_options = mail_options
        self.rcpt_options = rcpt_options
        self._mail_text = options_text(mail_options, "mail_options") if mail_options else ""
        self._rcpt_text = options_text(rcpt_options, "rcpt_options") if rcpt_options else ""
        self._parameters: Parameters | None = None
        if requests or Recipient in map(type, self.recipients):
            self._parameters = Parameters(requests)
            twice = self._parameters.names & {option.partition("=")[0].upper() for option in mail_options}
            if twice:
                raise ValueError(f"mail_options: {min(twice)} is asked for by a keyword argument too")
            for name in {option.partition("=")[0].upper() for option in rcpt_options}:
                if any(f" {name}=" in self._parameters.own(recipient) for recipient in self.recipients):
                    raise ValueError(f"rcpt_options: {name} is asked for by another argument too")
        self._paths = [path(self.sender, sender_name)]
        self._paths += [path(recipient, recipients_name) for recipient in self.recipients]

    @classmethod
    def from_message(
        cls,
        message: Message[Any, Any],
        sender: str | None = None,
        recipients: str | Iterable[str] | None = None,
        mail_options: Sequence[str] = (),
        rcpt_options: Sequence[str] = (),
        **requests: Unpack[Requests],
    ) -> Envelope:
        """Put a message into an envelope; what is not given is taken from its header fields (RFC 5322 §3.6).

        Raises:
            ValueError: there is no sender, no recipient, or more than one block of Resent- fields.
        """
        sender, recipients = addresses_from_headers(message, sender, recipients)
        return cls(sender, recipients, mail_options, rcpt_options, content=message, **requests)

    def __repr__(self) -> str:
        """Show all but the content, which does not belong into logs: only its type."""
        if not hasattr(self, "_paths"):  # the constructor has raised
            return f"Envelope({getattr(self, 'sender', None)!r}, {list(getattr(self, 'recipients', ()))!r})"
        shown = {name: list(given) for name in ("mail_options", "rcpt_options") if (given := getattr(self, name))}
        text = "".join([f", {name}={value!r}" for name, value in {**shown, **self._requests()}.items()])
        if self.content is not None:
            text += f", content=<{type(self.content).__name__}>"
        recipients = ", ".join([_shown(recipient) for recipient in self.recipients])
        return f"Envelope({self.sender!r}, [{recipients}]{text})"

    def __eq__(self, other: object) -> bool:
        """Return whether the other one has the same sender, recipients and parameters, and equal content."""
        return isinstance(other, Envelope) and self._key() == other._key() and bool(self.content == other.content)

    def __hash__(self) -> int:
        return hash((self.sender, self.recipients))

    def _key(self) -> tuple[Any, ...]:
        own = [recipient.parameters if isinstance(recipient, Recipient) else "" for recipient in self.recipients]
        options = tuple(self.mail_options), tuple(self.rcpt_options)
        return self.sender, tuple(self.recipients), own, options, self._requests()

    def _requests(self) -> Mapping[str, Any]:
        return {} if self._parameters is None else self._parameters.requests

    def only(self, places: Iterable[int]) -> Envelope:
        """Return the same envelope for some of its recipients: those at `places`."""
        chosen = tuple(places)
        part = copy.copy(self)
        part.recipients = tuple(self.recipients[place] for place in chosen)
        part._paths = [self._paths[0], *(self._paths[place + 1] for place in chosen)]
        return part

    @property
    def envid(self) -> str | None:
        """Return the identifier that was given for the server to return (RFC 3461 §4.4)."""
        return None if self._parameters is None else self._parameters.envid

    @property
    def international(self) -> bool:
        """Tell whether an address has a local part that is not ASCII, and so needs SMTPUTF8 (RFC 6531 §3.2)."""
        unusual = [quoted[1:-1] for quoted in self._paths if not quoted.isascii()]
        local_parts = [address.rpartition("@")[0] or address for address in unusual]
        return not "".join(local_parts).isascii()

    @property
    def binary(self) -> bool:
        """Tell whether the content is to be sent as it is (BINARYMIME)."""
        return self._parameters is not None and self._parameters.binary

    @property
    def prdr(self) -> bool:
        """Tell whether a reply for each recipient is wanted after the content."""
        return self._parameters is not None and self._parameters.prdr and len(self.recipients) > 1

    def commands(self, extensions: Extensions, parameters: str, *, esmtp: bool, secure: bool = False) -> list[bytes]:
        """Return MAIL and every RCPT as command lines.

        Args:
            extensions: what the server offers.
            parameters: ESMTP parameters that the content needs, each with a space before it.
            esmtp: the server took EHLO; without it no parameter is sent.
            secure: the connection has TLS, and the certificate was verified.

        Raises:
            SMTPNotSupportedError: the server does not offer what is asked for, or SMTPUTF8, which an address needs.
        """
        mail_options = rcpt_options = ""
        if esmtp:
            mail_options = parameters + self._mail_text
            rcpt_options = self._rcpt_text
        paths = self._paths
        if self._parameters is not None:
            mail_options = self._parameters.mail(extensions, secure=secure) + mail_options
            paths = self._with_parameters(self._parameters, extensions)
        text = "".join(paths) + mail_options + rcpt_options
        if text.isascii() and "smtputf8" not in mail_options.lower():
            return _lines(paths, mail_options, rcpt_options)
        return self._international(paths, mail_options, rcpt_options, extensions)

    def _with_parameters(self, parameters: Parameters, extensions: Extensions) -> list[str]:
        """Return the paths, those of the recipients with their own parameters behind them."""
        own = [parameters.rcpt(recipient, extensions) for recipient in self.recipients]
        return [self._paths[0], *map("".join, zip(self._paths[1:], own, strict=True))]

    def _international(
        self, paths: list[str], mail_options: str, rcpt_options: str, extensions: Extensions
    ) -> list[bytes]:
        """Return the command lines, with SMTPUTF8 if a local part needs it or the caller asks for it (RFC 6531)."""
        asked = "smtputf8" in mail_options.lower().split()
        if not asked:
            paths = [
                quoted if quoted.isascii() else _ascii_path(quoted, self._names[place > 0])
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


class SendmailEnvelope(Envelope):
    """The envelope of a `sendmail`, whose arguments have smtplib's names: an error says `from_addr` and `to_addrs`."""

    __slots__ = ()

    _names = "from_addr", "to_addrs"


def _lines(paths: list[str], mail_options: str, rcpt_options: str) -> list[bytes]:
    # In lower case, as smtplib has it since 3.13.  To RFC 5321 §2.4 both are the same, to some servers they are not.
    lines = [f"mail from:{paths[0]}{mail_options}\r\n".encode()]
    lines += [f"rcpt to:{quoted}{rcpt_options}\r\n".encode() for quoted in paths[1:]]
    return lines
