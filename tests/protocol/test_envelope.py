"""Addresses and their command lines: what is sent is what was meant, or nothing is."""

from __future__ import annotations

import copy
import email
import email.policy
from collections.abc import Callable, Iterable, Sequence
from email.message import EmailMessage
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from asmtp.errors import SMTPNotSupportedError
from asmtp.protocol.envelope import Envelope, SendmailEnvelope, ascii_domain, path
from asmtp.protocol.extensions import Extensions
from asmtp.protocol.parameters import Recipient

NOTHING = Extensions()
UTF8 = Extensions({"smtputf8": "", "8bitmime": ""})


@pytest.mark.parametrize(
    ("address", "quoted"),
    [
        ("a@x", "<a@x>"),
        ("<a@x>", "<a@x>"),
        ("Me <a@x>", "<a@x>"),
        ('"Me, myself" <a@x>', "<a@x>"),
        ("a@x (me)", "<a@x>"),
        ("", "<>"),
        ("<>", "<>"),
        ("postmaster", "<postmaster>"),
        ("o'neil+tag=1!#$%&*/?^_`{|}~-@x-y.example", "<o'neil+tag=1!#$%&*/?^_`{|}~-@x-y.example>"),
        ('"two words"@x', '<"two words"@x>'),
        (r'"a\"b"@x', r'<"a\"b"@x>'),
        ('"a> SIZE=1 "@x', '<"a> SIZE=1 "@x>'),
        ("a@[127.0.0.1]", "<a@[127.0.0.1]>"),
        ("björn@x", "<björn@x>"),
        ("a@müller.example", "<a@müller.example>"),
    ],
)
def test_path(address: str, quoted: str) -> None:
    assert path(address, "to_addrs") == quoted


@pytest.mark.parametrize(
    "address",
    [
        "<a@x> SIZE=1",
        "a@x> SIZE=1 <b@x",
        "a@x, b@x",
        "Me <a@x>, You <b@x>",
        r'<a\"> SIZE="1@x>',
        r"a\b@x",
        "a@x>",
        '"a> SIZE=1@x',
        "<, (a@x",
    ],
)
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(ValueError, match="^to_addrs: "):
        path(address, "to_addrs")


@pytest.mark.parametrize("control", [chr(code) for code in [*range(0x20), *range(0x7F, 0xA0)]])
def test_no_control_passes(control: str) -> None:
    for address in (f"a{control}@x", f'"a{control}"@x', f"Me{control} <a@x>", f"a@x{control}", f"{control}a@x"):
        with pytest.raises(ValueError, match="^from_addr: .*prohibited"):
            path(address, "from_addr")
        with pytest.raises(ValueError, match="^recipients: .*prohibited"):
            Envelope("a@x", ["b@x", address])
    for option in (f"RET=HDRS{control}", f"{control}"):
        with pytest.raises(ValueError, match="^mail_options: .*prohibited"):
            Envelope("a@x", "b@x", [option]).commands(NOTHING, "", esmtp=True)
        with pytest.raises(ValueError, match="^rcpt_options: .*prohibited"):
            Envelope("a@x", "b@x", (), [option]).commands(NOTHING, "", esmtp=True)


def test_an_address_that_could_not_be_decoded() -> None:
    """The message would go to somebody else, or to nobody."""
    raw = b"From: a@x\r\nTo: J\xfcrg <j\xfcrg@x>\r\n\r\nhi"
    with pytest.raises(ValueError, match=r"^recipients: an address that could not be decoded: 'j\\ufffdrg@x'"):
        Envelope.from_message(email.message_from_bytes(raw, policy=email.policy.default))


@pytest.mark.parametrize("thing", [None, b"a@x", 1, ["a@x"]])
def test_only_str_is_an_address(thing: object) -> None:
    with pytest.raises(TypeError, match="^from_addr must be str, not "):
        path(thing, "from_addr")  # type: ignore[arg-type]


def test_envelope() -> None:
    envelope = Envelope("a@x", "b@x")
    assert envelope.sender == "a@x"
    assert envelope.recipients == ("b@x",)
    assert repr(envelope) == "Envelope('a@x', ['b@x'])"
    assert Envelope("", iter(["b@x", "c@x"])).recipients == ("b@x", "c@x")


def test_repr_has_all_but_the_content() -> None:
    recipients = ["b@x", Recipient("c@x", notify="never", orcpt="d@x")]
    envelope = Envelope("a@x", recipients, ["SIZE=1"], ("X=2",), content=b"secret", envid="7", priority=3)
    assert repr(envelope) == (
        "Envelope('a@x', ['b@x', 'c@x' (NOTIFY=NEVER ORCPT=rfc822;d@x)], mail_options=['SIZE=1'], rcpt_options=['X=2'],"
        " envid='7', priority=3, content=<bytes>)"
    )


ENVELOPES: list[Callable[[], Envelope]] = [
    lambda: Envelope("a@x", "b@x"),
    lambda: Envelope("c@x", "b@x"),
    lambda: Envelope("a@x", ["b@x", "c@x"]),
    lambda: Envelope("a@x", ["c@x", "b@x"]),
    lambda: Envelope("a@x", Recipient("b@x", notify="never")),
    lambda: Envelope("a@x", "b@x", ["SIZE=1"]),
    lambda: Envelope("a@x", "b@x", (), ["SIZE=1"]),
    lambda: Envelope("a@x", "b@x", content=b"hi"),
    lambda: Envelope("a@x", "b@x", content="hi"),
    lambda: Envelope("a@x", "b@x", envid="1"),
    lambda: Envelope("a@x", "b@x", envid="2"),
]


def test_equal_is_what_says_the_same() -> None:
    for place, make in enumerate(ENVELOPES):
        envelope = make()
        assert envelope == make()
        assert hash(envelope) == hash(make())
        assert [envelope == other() for other in ENVELOPES].index(True) == place
        assert sum(envelope == other() for other in ENVELOPES) == 1
    assert Envelope("a@x", "b@x", ["SIZE=1"]) == Envelope("a@x", ["b@x"], ("SIZE=1",))
    assert Envelope("a@x", "b@x") != "a@x"


def test_no_recipients() -> None:
    nothing: list[Iterable[str]] = [[], (), iter(())]
    for nobody in nothing:
        with pytest.raises(ValueError, match="^recipients: no recipients$"):
            Envelope("a@x", nobody)


@pytest.mark.parametrize("thing", [None, 1, b"b@x"])
def test_recipients_are_str(thing: object) -> None:
    with pytest.raises(TypeError, match="^recipients must be str or an iterable of str, not "):
        Envelope("a@x", thing)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "sender", "recipients"), [(Envelope, "sender", "recipients"), (SendmailEnvelope, "from_addr", "to_addrs")]
)
def test_an_error_names_the_argument_that_the_caller_typed(kind: type[Envelope], sender: str, recipients: str) -> None:
    wrong: list[tuple[Any, Any, str]] = [
        (5, "b@x", f"{sender} must be str, "),
        ("a\r\n@x", "b@x", f"{sender}: "),
        ("a@x", 5, f"{recipients} must be str or an iterable of str, "),
        ("a@x", [5], f"{recipients} must be str, "),
        ("a@x", [], f"{recipients}: no recipients"),
        ("a@x", "b@x, c@x", f"{recipients}: more than one address"),
    ]
    for one, others, words in wrong:
        with pytest.raises((TypeError, ValueError), match=f"^{words}"):
            kind(one, others)
    for one, others, name in (("a@-ü.example", "b@x", sender), ("a@x", ["b@x", "c@-ü.example"], recipients)):
        envelope = kind(one, others)
        for alike in (envelope, copy.copy(envelope), envelope.only(range(len(envelope.recipients)))):
            with pytest.raises(ValueError, match=f"^{name}: "):
                alike.commands(UTF8, "", esmtp=True)


def test_an_envelope_is_the_same_by_either_name() -> None:
    assert SendmailEnvelope("a@x", "b@x") == Envelope("a@x", "b@x")
    assert repr(SendmailEnvelope("a@x", "b@x")) == repr(Envelope("a@x", "b@x"))
    with pytest.raises(ValueError, match="^sender: not given, "):
        Envelope.from_message(EmailMessage())
    with pytest.raises(ValueError, match="^recipients: no recipients$"):
        Envelope.from_message(EmailMessage(), "a@x")


def test_commands() -> None:
    envelope = Envelope("a@x", ["b@x", "Me <c@x>"], ["RET=HDRS", "ENVID=1"], ["NOTIFY=NEVER"])
    assert envelope.commands(NOTHING, " size=5", esmtp=True) == [
        b"mail from:<a@x> size=5 RET=HDRS ENVID=1\r\n",
        b"rcpt to:<b@x> NOTIFY=NEVER\r\n",
        b"rcpt to:<c@x> NOTIFY=NEVER\r\n",
    ]


def test_no_parameters_without_esmtp() -> None:
    envelope = Envelope("", ["b@x"], ["RET=HDRS"], ["NOTIFY=NEVER"])
    assert envelope.commands(NOTHING, " size=5", esmtp=False) == [b"mail from:<>\r\n", b"rcpt to:<b@x>\r\n"]


def test_options_are_not_one_str() -> None:
    for mail_options, rcpt_options in (("RET=HDRS", ()), ((), "NOTIFY=NEVER")):
        with pytest.raises(TypeError, match="must be a sequence of str, not one str"):
            Envelope("a@x", "b@x", mail_options, rcpt_options).commands(NOTHING, "", esmtp=True)


# ---- beyond ASCII ----------------------------------------------------------------------------


def test_a_domain_has_a_form_that_every_server_takes() -> None:
    envelope = Envelope("a@Müller.example", ["b@straße.example", "c@x", "d@例え.テスト"])
    for extensions in (NOTHING, UTF8):
        assert envelope.commands(extensions, "", esmtp=True) == [
            b"mail from:<a@xn--mller-kva.example>\r\n",
            b"rcpt to:<b@xn--strae-oqa.example>\r\n",
            b"rcpt to:<c@x>\r\n",
            b"rcpt to:<d@xn--r8jz45g.xn--zckzah>\r\n",
        ]


@pytest.mark.parametrize(
    "domain", ["a..ü", "ü" * 64 + ".example", "ü>.example", "ü＞.example", "ü \u3000.x", "-ü.example"]
)
def test_what_cannot_be_a_domain(domain: str) -> None:
    with pytest.raises(ValueError, match="^to_addrs: "):
        ascii_domain(domain, "to_addrs")


def test_an_ascii_domain_is_left_alone() -> None:
    for domain in ("x", "X.Example", "[127.0.0.1]", "under_score", ""):
        assert ascii_domain(domain, "to_addrs") == domain


@pytest.mark.parametrize(
    ("sender", "recipient", "who"), [("björn@x", "b@x", "bj\\xf6rn@x"), ("a@x", "björn@y", "bj\\xf6rn@y")]
)
def test_a_local_part_needs_smtputf8(sender: str, recipient: str, who: str) -> None:
    with pytest.raises(SMTPNotSupportedError) as caught:
        Envelope(sender, recipient).commands(NOTHING, "", esmtp=True)
    assert str(caught.value) == f"SMTPUTF8 not supported by server: the address '{who}' needs it"
    assert isinstance(caught.value.__cause__, UnicodeEncodeError)
    mail, rcpt = Envelope(sender, recipient).commands(UTF8, "", esmtp=True)
    assert mail == f"mail from:<{sender}> SMTPUTF8 BODY=8BITMIME\r\n".encode()
    assert rcpt == f"rcpt to:<{recipient}>\r\n".encode()


def test_only_the_domains_of_ascii_local_parts_are_changed() -> None:
    mail, first, second = Envelope("a@müller.example", ["björn@müller.example", "c@x"]).commands(UTF8, "", esmtp=True)
    assert mail == b"mail from:<a@xn--mller-kva.example> SMTPUTF8 BODY=8BITMIME\r\n"
    assert first == "rcpt to:<björn@müller.example>\r\n".encode()
    assert second == b"rcpt to:<c@x>\r\n"


def test_a_name_without_domain_needs_smtputf8() -> None:
    assert Envelope("björn", "b@x").commands(UTF8, "", esmtp=True)[0].startswith("mail from:<björn> SMTPUTF8".encode())


@pytest.mark.parametrize(
    ("extensions", "parameters", "mail"),
    [
        (UTF8, " BODY=8BITMIME", "mail from:<björn@x> BODY=8BITMIME SMTPUTF8\r\n"),
        (Extensions({"smtputf8": ""}), "", "mail from:<björn@x> SMTPUTF8\r\n"),
    ],
)
def test_body_is_said_once_and_where_it_is_offered(extensions: Extensions, parameters: str, mail: str) -> None:
    assert Envelope("björn@x", "b@x").commands(extensions, parameters, esmtp=True)[0] == mail.encode()


def test_smtputf8_asked_for() -> None:
    envelope = Envelope("a@müller.example", "b@x", ["smtputf8"])
    assert envelope.commands(UTF8, "", esmtp=True)[0] == "mail from:<a@müller.example> smtputf8\r\n".encode()
    with pytest.raises(SMTPNotSupportedError, match="^SMTPUTF8 not supported by server$"):
        envelope.commands(NOTHING, "", esmtp=True)


def test_a_word_that_only_looks_like_it() -> None:
    envelope = Envelope("a@x", "b@x", ["X-SMTPUTF8=1"])
    assert envelope.commands(NOTHING, "", esmtp=True)[0] == b"mail from:<a@x> X-SMTPUTF8=1\r\n"


@pytest.mark.parametrize("argument", ["mail_options", "rcpt_options"])
@pytest.mark.parametrize("options", [5, True, len])
def test_options_that_are_no_sequence(argument: str, options: Any) -> None:
    with pytest.raises(TypeError, match=f"^{argument} must be a sequence of str"):
        Envelope("a@x", "b@x", **{argument: options})


@pytest.mark.parametrize(("mail_options", "rcpt_options"), [(["ENVID=ü"], []), ([], ["ORCPT=ü"])])
def test_a_parameter_that_needs_smtputf8(mail_options: Sequence[str], rcpt_options: Sequence[str]) -> None:
    envelope = Envelope("a@x", "b@x", mail_options, rcpt_options)
    with pytest.raises(SMTPNotSupportedError, match="an ESMTP parameter needs it"):
        envelope.commands(NOTHING, "", esmtp=True)
    assert b" SMTPUTF8" in envelope.commands(UTF8, "", esmtp=True)[0]


def test_what_is_no_text() -> None:
    with pytest.raises(UnicodeEncodeError):
        Envelope("a\ud800@x", "b@x").commands(UTF8, "", esmtp=True)


# ---- anything --------------------------------------------------------------------------------

TEXT = st.one_of(
    st.text(max_size=20),
    st.text(alphabet='ab@x.<>"\\ ,;:()[]\r\n\x00ü＞=', max_size=20),
)


@given(TEXT, st.lists(TEXT, min_size=1, max_size=3), st.lists(TEXT, max_size=2), st.booleans(), st.booleans())
@settings(max_examples=500)
def test_one_line_each_or_an_error(
    sender: str, recipients: list[str], options: list[str], esmtp: bool, utf8: bool
) -> None:
    try:
        lines = Envelope(sender, recipients, options, options).commands(UTF8 if utf8 else NOTHING, "", esmtp=esmtp)
    except (ValueError, SMTPNotSupportedError):
        return
    assert len(lines) == 1 + len(recipients)
    for place, line in enumerate(lines):
        assert line.startswith(b"rcpt to:<" if place else b"mail from:<")
        assert line.endswith(b"\r\n")
        assert not [octet for octet in line[:-2] if octet < 0x20 or octet == 0x7F]
        if not options:
            assert _unquoted(line.decode()[:-2]).count(">") == 1
        assert utf8 or line.isascii()


def _unquoted(line: str) -> str:
    """Return the line without its quoted strings, as a server takes it apart."""
    outside, quoted, escaped = "", False, False
    for character in line:
        if escaped:
            escaped = False
        elif character == "\\":
            escaped = True
        elif character == '"':
            quoted = not quoted
        elif not quoted:
            outside += character
    return outside


def test_a_message_s_envelope() -> None:
    message = EmailMessage()
    message["From"], message["To"], message["Cc"] = "Ann <a@x.example>", "b@y.example, c@y.example", "d@y.example"
    envelope = Envelope.from_message(message)
    assert (envelope.sender, list(envelope.recipients)) == (
        "a@x.example",
        ["b@y.example", "c@y.example", "d@y.example"],
    )
    assert envelope.content is message
    given = Envelope.from_message(message, "e@x.example", "f@y.example", ["BODY=8BITMIME"], ["NOTIFY=NEVER"])
    assert (given.sender, list(given.recipients)) == ("e@x.example", ["f@y.example"])
    assert (given.mail_options, given.rcpt_options) == (["BODY=8BITMIME"], ["NOTIFY=NEVER"])


def test_some_of_the_recipients() -> None:
    envelope = Envelope("a@x.example", ["b@y.example", "c@y.example", "d@y.example"], content=b"hi")
    some = envelope.only([0, 2])
    assert list(some.recipients) == ["b@y.example", "d@y.example"]
    assert (some.sender, some.content) == ("a@x.example", b"hi")
    assert len(envelope.recipients) == 3
    assert some.commands(Extensions(), "", esmtp=True)[1:] == [
        b"rcpt to:<b@y.example>\r\n",
        b"rcpt to:<d@y.example>\r\n",
    ]


@pytest.mark.parametrize(
    ("address", "international"),
    [("b@y.example", False), ("b@y\u00e9.example", False), ("\u00e9@y.example", True), ("\u00e9", True)],
)
def test_international(address: str, international: bool) -> None:
    assert Envelope("a@x.example", ["b@y.example", address]).international is international
