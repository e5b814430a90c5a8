"""An email.message.Message: its envelope, and its octets."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterable, Sequence
from email.generator import BytesGenerator
from email.headerregistry import Address, Group
from email.message import Message
from email.policy import EmailPolicy
from typing import Any

from asmtp.errors import SMTPNotSupportedError
from asmtp.protocol.envelope import addresses_from_headers, ascii_domain
from asmtp.protocol.parameters import Requests

__all__ = ["compose", "flatten", "weight"]

_ADDRESS_FIELDS = frozenset(
    prefix + name for prefix in ("", "resent-") for name in ("from", "sender", "reply-to", "to", "cc")
)


def compose(
    message: Message[Any, Any],
    from_addr: str | None,
    to_addrs: str | Iterable[str] | None,
    mail_options: Sequence[str],
    has_extn: Callable[[str], bool],
    requests: Requests,
    *,
    downgrade: bool,
) -> tuple[str, list[str], bytes, Sequence[str]]:
    """Return the arguments of `sendmail` for a message: sender, recipients, octets, options for MAIL.

    SMTPUTF8 is used if a local part needs it (RFC 6531), 8-bit content if the server allows it.

    Args:
        has_extn: tells whether the server offers an extension.
        requests: what the caller asks for besides `mail_options`.
        downgrade: re-encode 8-bit parts if the server lacks 8BITMIME (RFC 6152 §3).

    Raises:
        ValueError: no sender, or more than one block of Resent- fields.
        SMTPNotSupportedError: an address needs SMTPUTF8, and the server does not offer it.
    """
    sender, recipients = addresses_from_headers(message, from_addr, to_addrs, "from_addr")
    international = any(not who.rpartition("@")[0 if "@" in who else 2].isascii() for who in (sender, *recipients))
    if international and not has_extn("smtputf8"):
        raise SMTPNotSupportedError(
            "One or more source or delivery addresses require internationalized email support,"
            " but the server does not advertise the required SMTPUTF8 capability"
        )
    if international:
        needed = {"smtputf8": "SMTPUTF8", "binary": "BODY=8BITMIME"}
        mail_options = (*mail_options, *(option for name, option in needed.items() if not requests.get(name)))
    octets = flatten(message, utf8=international)
    if downgrade and not octets.isascii() and not has_extn("8bitmime"):
        octets = flatten(message, utf8=international, seven_bit=True)
    return sender, recipients, octets, mail_options


def weight(message: Message[Any, Any]) -> int:
    """Return about how many octets a message has, without flattening it."""
    total = 0
    for part in message.walk():
        payload = part.get_payload()
        if isinstance(payload, str):
            total += len(payload)
    return total


def flatten(message: Message[Any, Any], *, utf8: bool = False, seven_bit: bool = False) -> bytes:
    """Return a message as octets with CRLF line ends, without its Bcc and Resent-Bcc fields.

    Non-ASCII domains in its address fields become A-labels, unless they are written in UTF-8.

    Args:
        utf8: write UTF-8 in header fields (RFC 6532), for a message sent with SMTPUTF8.
        seven_bit: re-encode 8-bit parts as quoted-printable or base64, as a client has to if the server lacks 8BITMIME
            (RFC 6152 §3).
    """
    message = copy.copy(message)
    del message["Bcc"]
    del message["Resent-Bcc"]
    policy = message.policy
    if not utf8:
        _ascii_domains(message)
    elif isinstance(policy, EmailPolicy):  # the legacy policy has no UTF-8 in fields: they are encoded words then
        policy = policy.clone(utf8=True)
    if seven_bit:
        policy = policy.clone(cte_type="7bit")
    if type(policy) is EmailPolicy:
        policy = _quick(policy)
    with io.BytesIO() as out:
        # No ">From": that is for mbox files, and here it would change what was written (and signed).
        _Generator(out, mangle_from_=False, policy=policy).flatten(message, linesep="\r\n")
        return out.getvalue()


class _Generator(BytesGenerator):
    """A BytesGenerator that does not touch line ends in binary parts that are no text (RFC 2045 §2.9, RFC 3030)."""

    def _handle_text(self, msg: Message[Any, Any]) -> None:
        payload = msg._payload  # type: ignore[attr-defined]  # get_payload() would decode what is not ASCII
        if isinstance(payload, str) and _is_binary(msg) and self.policy.cte_type != "7bit":  # type: ignore[union-attr]
            self.write(payload)
        else:
            super()._handle_text(msg)  # type: ignore[misc]

    _writeBody = _handle_text  # what is called for other types than text


def _is_binary(part: Message[Any, Any]) -> bool:
    for name, value in part.raw_items():
        if name.lower() == "content-transfer-encoding":
            return str(value).strip().lower() == "binary" and part.get_content_maintype() != "text"
    return False


class _QuickPolicy(EmailPolicy):
    """An EmailPolicy that does not take a field apart and put it together again, if that changes nothing.

    Folding takes more than half of the time that a small message takes, and most fields are short and ASCII.
    """

    def fold_binary(self, name: str, value: str) -> bytes:
        limit = self.max_line_length
        if (
            value
            and limit
            and len(name) + len(value) + 2 <= limit
            and value.isascii()
            and value.isprintable()  # a tab is where a field may be folded
            and "=?" not in value  # as an encoded word begins
            and value == value.strip()
            # As a str, an address field has no comments, and what has defects may look different.
            and not hasattr(value, "groups")
            and not getattr(value, "defects", None)
        ):
            return f"{name}: {value}{self.linesep}".encode()
        folded = super().fold_binary(name, value)
        # If the value ends with a line end, so does the field, in Pythons that have CVE-2024-6923.
        return folded.rstrip(b"\r\n") + self.linesep.encode()


def _quick(policy: EmailPolicy[Any]) -> _QuickPolicy:
    """Return the same policy as one that is quick."""
    quick = _QuickPolicy.__new__(_QuickPolicy)
    quick.__dict__.update(policy.__dict__)
    return quick


def _ascii_domains(message: Message[Any, Any]) -> None:
    """Write non-ASCII domains in address fields as A-labels (RFC 5890 §2.3.2.1): without RFC 6532, fields are ASCII."""
    for name, value in message.items():
        if name.lower() in _ADDRESS_FIELDS and hasattr(value, "groups") and not str(value).isascii():
            groups = [
                Group(group.display_name, [_ascii_address(address, name) for address in group.addresses])
                for group in value.groups
            ]
            message.replace_header(name, groups)


def _ascii_address(address: Address, field: str) -> Address:
    if address.domain.isascii() or not address.username.isascii():
        return address
    return Address(address.display_name, address.username, ascii_domain(address.domain, field))
