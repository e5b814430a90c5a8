"""Messages to octets, against what the standard library makes of them."""

from __future__ import annotations

import copy
import io
from email import message_from_bytes, policy
from email.generator import BytesGenerator
from email.headerregistry import Address
from email.message import EmailMessage

from asmtp.protocol.message import flatten
from tests.fuzz.data import FuzzedData

__all__ = ["message"]

WORDS = [
    "Hello",
    " ",
    "  ",
    "world",
    "\u00fc",
    "\u20ac",
    "=?utf-8?q?x?=",
    "\t",
    "a" * 70,
    ":",
    ",",
    "\U0001f600",
    "%",
    "",
]
BODY = ["Hi", "\n", "\n.\n", "From x\n", "\u00fc", " ", "x" * 80, "\u20ac", ".", "--", "\t"]
FIELDS = ["Subject", "X-One", "Comments", "Message-ID", "List-Unsubscribe", "Date", "MIME-Version"]


def message(data: FuzzedData) -> None:
    """An EmailMessage: the octets are those of the email package, without Bcc; 7-bit where that is asked for."""
    one = EmailMessage()
    for name in dict.fromkeys(data.many(FIELDS[:-1], 4)):
        try:
            one[name] = data.text(WORDS, 6)
        except (ValueError, IndexError, AttributeError):  # of the email package's own, and no business of ours
            return
    one["To"] = [
        Address(data.text(["A", "\u00fc", " ", "B, C", '"'], 3), "a", "x.example") for _ in range(data.below(3))
    ]
    one["Bcc"] = "secret@hidden.example"
    one.set_content(data.text(BODY, 12), cte=data.pick([None, "8bit", "quoted-printable", "base64"]))
    if data.chance(3):
        one.add_attachment(data.octets(data.below(40)), maintype="application", subtype="octet-stream", filename="f")
        one.set_boundary("==boundary==")
    utf8 = data.flag()
    seven_bit = data.flag()
    expected = _expected(one, utf8, seven_bit)
    before = one.items()
    try:
        octets = flatten(one, utf8=utf8, seven_bit=seven_bit)
    except Exception as error:
        assert isinstance(error, type(expected)), f"{error!r}, not {expected!r}"
        return
    assert one.items() == before, "the caller's message was changed"
    if hasattr(policy.default, "verify_generated_headers") or not _line_end_at_end(one):
        assert octets == expected, f"{octets!r}, not {expected!r}"
    assert b"hidden.example" not in octets
    assert utf8 or not seven_bit or octets.isascii()
    head = octets.partition(b"\r\n\r\n")[0].replace(b"\r\n", b"")
    assert b"\r" not in head, head
    assert b"\n" not in head, head
    assert message_from_bytes(octets, policy=policy.default)["Bcc"] is None


def _expected(one: EmailMessage, utf8: bool, seven_bit: bool) -> bytes | Exception:
    plain = copy.deepcopy(one)
    del plain["Bcc"]
    chosen = policy.default.clone(utf8=utf8, cte_type="7bit" if seven_bit else "8bit")
    out = io.BytesIO()
    try:
        BytesGenerator(out, mangle_from_=False, policy=chosen).flatten(plain, linesep="\r\n")
    except Exception as error:
        return error
    return out.getvalue()


def _line_end_at_end(message: EmailMessage) -> bool:
    """Return whether a value ends with a line end: Python wrote it so before CVE-2024-6923; asmtp does not."""
    return any(str(value)[-1:] in ("\r", "\n") for value in message.values() if str(value))
