"""A message object: its envelope, and its octets."""

from __future__ import annotations

import email
import email.generator
import email.policy
import io
from email.message import EmailMessage, Message
from email.mime.text import MIMEText
from typing import Any

import pytest
from hypothesis import given, strategies as st

from asmtp.errors import SMTPNotSupportedError
from asmtp.protocol import message as message_module
from asmtp.protocol.content import encode_content
from asmtp.protocol.envelope import addresses_from_headers
from asmtp.protocol.message import compose, flatten, weight


def simple(**fields: str) -> EmailMessage:
    message = EmailMessage()
    message["From"] = "a@x"
    message["To"] = "b@x"
    for name, value in fields.items():
        message[name.replace("_", "-")] = value
    message.set_content("Hi.\n")
    return message


def composed(message: Message[Any, Any], offers: str = "", **given: Any) -> tuple[str, list[str], bytes, Any]:
    options = {"from_addr": None, "to_addrs": None, "mail_options": (), "requests": {}, "downgrade": True} | given
    return compose(message, has_extn=lambda name: name in offers.split(), **options)


# ---- the envelope ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "sender", "recipients"),
    [
        ("From: a@x\nTo: b@x", "a@x", ["b@x"]),
        ("From: Me <a@x>\nTo: You <b@x>, c@x\nCc: d@x\nBcc: e@x", "a@x", ["b@x", "c@x", "e@x", "d@x"]),
        ("From: a@x, b@x\nSender: c@x\nTo: d@x", "c@x", ["d@x"]),
        ("From: a@x\nTo: b@x\nTo: c@x", "a@x", ["b@x", "c@x"]),
        ("From: a@x", "a@x", []),
        ("From: a@x\nTo: undisclosed:;", "a@x", []),
        ("From: a@x\nTo: us: b@x, c@x;", "a@x", ["b@x", "c@x"]),
        (
            "From: a@x\nTo: b@x\nResent-Date: today\nResent-From: c@x\nResent-To: d@x\nResent-Cc: e@x\nResent-Bcc: f@x",
            "c@x",
            ["d@x", "f@x", "e@x"],
        ),
        ("From: a@x\nTo: b@x\nResent-From: c@x\nResent-To: d@x", "a@x", ["b@x"]),
        (
            "From: a@x\nResent-Date: today\nResent-From: c@x\nResent-Sender: d@x\nResent-To: e@x",
            "d@x",
            ["e@x"],
        ),
    ],
)
@pytest.mark.parametrize("policy", [email.policy.compat32, email.policy.default], ids=["compat32", "default"])
def test_addresses(fields: str, sender: str, recipients: list[str], policy: Any) -> None:
    message = email.message_from_string(fields + "\n\nHi.\n", policy=policy)
    assert addresses_from_headers(message) == (sender, recipients)


def test_addresses_that_are_given() -> None:
    message = simple(Cc="c@x")
    assert addresses_from_headers(message, "d@x", ["e@x"]) == ("d@x", ["e@x"])
    assert addresses_from_headers(message, "d@x", "e@x") == ("d@x", ["e@x"])
    assert addresses_from_headers(message, "d@x") == ("d@x", ["b@x", "c@x"])
    assert addresses_from_headers(message, None, ("e@x",)) == ("a@x", ["e@x"])
    assert addresses_from_headers(message, "", []) == ("", [])


@pytest.mark.parametrize("fields", ["To: b@x", "From:\nTo: b@x", "From: nobody:;\nTo: b@x", "From: <>\nTo: b@x"])
def test_no_sender(fields: str) -> None:
    message = email.message_from_string(fields + "\n\nHi.\n")
    with pytest.raises(ValueError, match="^sender: not given, and "):
        addresses_from_headers(message)
    with pytest.raises(ValueError, match="^from_addr: not given, and "):
        composed(message)


def test_no_resent_sender() -> None:
    message = email.message_from_string("From: a@x\nResent-Date: today\nResent-To: b@x\n\nHi.\n")
    with pytest.raises(ValueError, match="no Resent-From or Resent-Sender"):
        addresses_from_headers(message)


def test_two_resent_blocks() -> None:
    message = email.message_from_string("From: a@x\nTo: b@x\nResent-Date: one\nResent-Date: two\n\nHi.\n")
    with pytest.raises(ValueError, match="^message has more than one 'Resent-' header block$"):
        addresses_from_headers(message)


# ---- the octets ------------------------------------------------------------------------------


def test_flatten() -> None:
    octets = flatten(simple(Subject="hi"))
    assert octets.startswith(b"From: a@x\r\nTo: b@x\r\nSubject: hi\r\n")
    assert octets.endswith(b"\r\n\r\nHi.\r\n")


def test_blind_copies_stay_blind_and_the_message_is_left_alone() -> None:
    message = simple(Bcc="secret@x", Resent_Bcc="hidden@x")
    before = message.as_bytes()
    octets = flatten(message)
    assert b"secret" not in octets
    assert b"hidden" not in octets
    assert message.as_bytes() == before
    assert message["Bcc"] == "secret@x"


def test_from_at_the_start_of_a_line_is_left_alone() -> None:
    message = email.message_from_bytes(b"From: a@x\n\nFrom here\n")
    assert flatten(message) == b"From: a@x\r\n\r\nFrom here\r\n"


def test_international_domains_in_header_fields() -> None:
    message = EmailMessage()
    message["From"] = "Jörg <a@müller.example>"
    message["To"] = "us: b@müller.example, c@x;, d@x"
    message["Subject"] = "müller.example"
    message.set_content("Hi.\n")
    octets = flatten(message)
    assert octets.isascii()
    assert b"<a@xn--mller-kva.example>" in octets
    assert b"us: b@xn--mller-kva.example, c@x;, d@x" in octets
    assert message["From"].addresses[0].domain == "müller.example"
    assert "From: Jörg <a@müller.example>\r\n".encode() in flatten(message, utf8=True)


def test_a_legacy_message_to_an_international_address() -> None:
    message = MIMEText("Hi.\n")
    message["Subject"] = "Grüße"
    octets = flatten(message, utf8=True)
    assert b"Subject: =?utf-8?" in octets
    assert octets.isascii()


def test_a_local_part_that_is_not_ascii_keeps_its_domain() -> None:
    message = EmailMessage()
    message["From"] = "jörg@müller.example"
    message.set_content("Hi.\n")
    assert "From: jörg@müller.example\r\n".encode() in flatten(message, utf8=True)
    assert b"xn--" not in flatten(message)


def test_header_fields_of_the_old_kind() -> None:
    message = email.message_from_string("From: a@x\nTo: b@m\u00fcller.example\n\nHi.\n")
    assert isinstance(flatten(message), bytes)


def test_seven_bit() -> None:
    message = EmailMessage()
    message["From"] = "a@x"
    message.set_content("Grüß Gott.\n", cte="8bit")
    before = message.as_bytes()
    assert "Grüß".encode() in flatten(message)
    assert flatten(message, seven_bit=True).isascii()
    again = email.message_from_bytes(flatten(message, seven_bit=True), policy=email.policy.default)
    assert again.get_content() == "Grüß Gott.\n"
    assert message.as_bytes() == before


RAW = b"\x00a\nb\rc\xff\r\nA\n.\n"


@pytest.mark.parametrize("policy", [email.policy.default, email.policy.compat32], ids=["default", "compat32"])
def test_a_binary_part_is_left_as_it_is(policy: Any) -> None:
    """RFC 2045 §2.9; text has CRLF all the same (RFC 3030 §3)."""
    message = email.message_from_string("From: a@x\nTo: b@x\nMIME-Version: 1.0\n", policy=policy)
    message["Content-Type"] = 'multipart/mixed; boundary="="'
    text, raw = email.message_from_string("", policy=policy), email.message_from_string("", policy=policy)
    text["Content-Type"], raw["Content-Type"] = "text/plain", "application/octet-stream"
    text["Content-Transfer-Encoding"] = raw["content-transfer-encoding"] = "Binary"
    text.set_payload("one\ntwo\n")
    raw.set_payload(RAW.decode("ascii", "surrogateescape"))
    message.set_payload([text, raw])
    octets = flatten(message)
    assert b"\r\n\r\none\r\ntwo\r\n\r\n--=" in octets
    assert b"\r\n\r\n" + RAW + b"\r\n--=--" in octets


def test_a_binary_part_of_the_new_kind() -> None:
    message = simple()
    message.add_attachment(RAW, "application", "octet-stream", cte="binary")
    assert b"\r\n\r\n" + RAW + b"\r\n--" in flatten(message)
    message = simple()
    message.set_content(RAW, "application", "octet-stream", cte="binary")
    assert flatten(message).endswith(b"\r\n\r\n" + RAW)


# ---- both ------------------------------------------------------------------------------------


def test_compose() -> None:
    sender, recipients, octets, options = composed(simple(Bcc="c@x"), mail_options=["RET=HDRS"])
    assert (sender, recipients, options) == ("a@x", ["b@x", "c@x"], ["RET=HDRS"])
    assert octets == flatten(simple())


def test_compose_downgrades_where_8bitmime_is_not_offered() -> None:
    message = simple()
    message.set_content("Grüß Gott.\n", cte="8bit")
    assert composed(message)[2].isascii()
    assert "Grüß".encode() in composed(message, "8bitmime")[2]
    assert "Grüß".encode() in composed(message, downgrade=False)[2]


@pytest.mark.parametrize(("sender", "recipient"), [("jörg@x", "b@x"), ("a@x", "jörg@x"), ("jörg", "b@x")])
def test_compose_international(sender: str, recipient: str) -> None:
    given = {"from_addr": sender, "to_addrs": [recipient]}
    with pytest.raises(SMTPNotSupportedError, match="SMTPUTF8"):
        composed(simple(), "8bitmime", **given)
    assert composed(simple(), "smtputf8 8bitmime", **given)[3] == ("SMTPUTF8", "BODY=8BITMIME")
    asked = composed(simple(), "smtputf8 8bitmime", requests={"smtputf8": True}, **given)
    assert asked[3] == ("BODY=8BITMIME",)
    asked = composed(simple(), "smtputf8 8bitmime", requests={"smtputf8": True, "binary": True}, **given)
    assert asked[3] == ()


def test_compose_with_an_international_domain_only() -> None:
    sender, recipients, octets, options = composed(simple(), from_addr="a@müller.example", to_addrs="b@x")
    assert (sender, recipients, options) == ("a@müller.example", ["b@x"], ())
    assert octets.isascii()


def test_weight() -> None:
    assert weight(simple()) == len("Hi.\n")
    message = simple()
    message.add_attachment(b"x" * 3000, maintype="application", subtype="octet-stream")
    assert 4000 < weight(message) < 4200
    empty = Message()
    assert weight(empty) == 0


# ---- short fields are not taken apart ----------------------------------------------------------

names = st.sampled_from(["Subject", "From", "To", "Date", "Message-ID", "X-Other", "MIME-Version", "Content-Type"])
values = st.text(st.sampled_from('ab =?é\t,;:<>@"()\\.-1'), max_size=100) | st.sampled_from(
    [
        "Ann <ann@x.example>, bob@y.example",
        "undisclosed-recipients:;",
        "Tue, 24 Nov 2026 10:00:00 +0000",
        "<1@x.example>",
        "=?utf-8?q?Gr=C3=BC=C3=9Fe?=",
        "a (comment) <b@y.example>",
        "text/plain; charset=utf-8",
        "1.0",
        "word " * 30,
        "x" * 70,
        "x" * 300,
    ]
)


@given(names, values, st.sampled_from([78, 60, 998, 0, None]), st.booleans())
def test_fields_are_as_the_standard_library_writes_them(name: str, value: str, length: Any, utf8: bool) -> None:
    policy = email.policy.EmailPolicy(max_line_length=length, utf8=utf8)
    message = EmailMessage(policy)
    try:
        message[name] = value
        with io.BytesIO() as out:
            email.generator.BytesGenerator(out, mangle_from_=False, policy=policy).flatten(message, linesep="\r\n")
            expected = out.getvalue()
    except Exception:  # what cannot be written
        return
    with io.BytesIO() as out:
        quick = message_module._quick(policy)
        email.generator.BytesGenerator(out, mangle_from_=False, policy=quick).flatten(message, linesep="\r\n")
        assert out.getvalue() == expected


@pytest.mark.parametrize("end", ["\r", "\n", "\r\n"])
def test_a_line_end_at_the_end_of_a_field_does_not_end_the_header(end: str) -> None:
    message = EmailMessage()
    message["Subject"] = "Hi" + end
    message["X-After"] = "still a field"
    message.set_content("text")
    head, _, _ = encode_content(flatten(message), stuff=True).partition(b"\r\n\r\n")
    assert b"\r\nX-After: still a field" in head
