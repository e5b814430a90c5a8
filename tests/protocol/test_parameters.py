"""Requests to a server: how they are written, and which cannot be made."""

from __future__ import annotations

import copy
import datetime
import pickle
from typing import Any

import pytest

from asmtp.errors import SMTPNotSupportedError
from asmtp.protocol.envelope import Envelope
from asmtp.protocol.extensions import Extensions
from asmtp.protocol.parameters import DeliverBy, Parameters, Recipient, xclient, xtext

UTC = datetime.UTC
SUMMER = datetime.timezone(datetime.timedelta(hours=2))
WEST = datetime.timezone(datetime.timedelta(hours=-5))
EVERYTHING = [
    "DSN",
    "DELIVERBY",
    "FUTURERELEASE",
    "MT-PRIORITY",
    "REQUIRETLS",
    "SMTPUTF8",
    "CHUNKING",
    "BINARYMIME",
    "8BITMIME",
    "PRDR",
]


def offering(*lines: str) -> Extensions:
    return Extensions.parse("\n".join(["hi", *lines]).encode())


def written(
    *recipients: str, offers: tuple[str, ...] = tuple(EVERYTHING), secure: bool = True, **requests: Any
) -> list[str]:
    envelope = Envelope("a@x.example", recipients or ["b@y.example"], **requests)
    lines = envelope.commands(offering(*offers), "", esmtp=True, secure=secure)
    return [line.decode().removesuffix("\r\n") for line in lines]


# ---- MAIL ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("requests", "text"),
    [
        ({"ret": "hdrs"}, " RET=HDRS"),
        ({"ret": "full", "envid": "QQ314159"}, " RET=FULL ENVID=QQ314159"),
        ({"envid": "a+b=c d"}, " ENVID=a+2Bb+3Dc+20d"),
        ({"deliver_by": DeliverBy(120)}, " BY=120;R"),
        ({"deliver_by": DeliverBy(-5, "notify", trace=True)}, " BY=-5;NT"),
        ({"hold_for": 86400}, " HOLDFOR=86400"),
        ({"hold_until": datetime.datetime(2027, 1, 2, 3, 4, 5, tzinfo=SUMMER)}, " HOLDUNTIL=2027-01-02T01:04:05Z"),
        ({"priority": -9}, " MT-PRIORITY=-9"),
        ({"priority": 0}, " MT-PRIORITY=0"),
        ({"require_tls": True}, " REQUIRETLS"),
        ({"smtputf8": True}, " SMTPUTF8"),
        ({"binary": True}, " BODY=BINARYMIME"),
        ({"prdr": True, "require_tls": False, "binary": False}, ""),
        ({"priority": 3, "ret": "hdrs"}, " RET=HDRS MT-PRIORITY=3"),
    ],
)
def test_mail(requests: Any, text: str) -> None:
    assert written(**requests)[0] == f"mail from:<a@x.example>{text}"


NEEDED: dict[str, list[dict[str, Any]]] = {
    "DSN": [{"ret": "hdrs"}, {"envid": "x"}, {"notify": "never"}],
    "DELIVERBY": [{"deliver_by": DeliverBy(5)}],
    "FUTURERELEASE": [{"hold_for": 5}, {"hold_until": datetime.datetime(2027, 1, 1, tzinfo=UTC)}],
    "MT-PRIORITY": [{"priority": 1}],
    "REQUIRETLS": [{"require_tls": True}],
    "SMTPUTF8": [{"smtputf8": True}],
    "BINARYMIME": [{"binary": True}],
    "CHUNKING": [{"binary": True}],
}


@pytest.mark.parametrize(("extension", "requests"), [(name, asked) for name in NEEDED for asked in NEEDED[name]])
def test_what_the_server_does_not_offer(extension: str, requests: Any) -> None:
    others = tuple(name for name in EVERYTHING if name != extension)
    with pytest.raises(SMTPNotSupportedError, match=f"^{extension} not supported by server: .* needs it$"):
        written(offers=others, **requests)
    envelope = Envelope("a@x.example", "b@y.example", **requests)
    with pytest.raises(SMTPNotSupportedError):
        envelope.commands(Extensions(), "", esmtp=False)  # it took only HELO


def test_requiretls_without_tls() -> None:
    """RFC 8689 §4.2.1: only over TLS, and to a server that was verified."""
    with pytest.raises(SMTPNotSupportedError, match="^REQUIRETLS needs a connection with TLS"):
        written(require_tls=True, secure=False)


@pytest.mark.parametrize(
    ("offer", "requests", "why"),
    [
        ("DELIVERBY 60", {"deliver_by": DeliverBy(59)}, "DELIVERBY: the server takes 60 seconds at least, not 59"),
        ("FUTURERELEASE 100", {"hold_for": 101}, "FUTURERELEASE: the server keeps it 100 seconds at most, not 101"),
        (
            "FUTURERELEASE 100 2027-01-01T00:00:00Z",
            {"hold_until": datetime.datetime(2027, 1, 1, 0, 0, 1, tzinfo=UTC)},
            "FUTURERELEASE: the server keeps it until 2027-01-01 00:00:00[+]00:00 at most, not until 2027",
        ),
    ],
)
def test_more_than_the_server_offers(offer: str, requests: Any, why: str) -> None:
    with pytest.raises(SMTPNotSupportedError, match=f"^{why}"):
        written(offers=(offer,), **requests)


@pytest.mark.parametrize(
    ("offer", "requests"),
    [
        ("DELIVERBY 60", {"deliver_by": DeliverBy(60)}),
        ("DELIVERBY 60", {"deliver_by": DeliverBy(5, "notify")}),
        ("DELIVERBY rubbish", {"deliver_by": DeliverBy(5)}),
        ("FUTURERELEASE 100", {"hold_for": 100}),
        ("FUTURERELEASE rubbish more", {"hold_for": 100}),
        ("FUTURERELEASE 100 2027-01-01", {"hold_until": datetime.datetime(2028, 1, 1, tzinfo=UTC)}),
    ],
)
def test_as_much_as_the_server_offers(offer: str, requests: Any) -> None:
    assert len(written(offers=(offer,), **requests)) == 2


@pytest.mark.parametrize(
    ("requests", "kind", "why"),
    [
        ({"ret": "all"}, ValueError, "ret must be 'full' or 'hdrs', not 'all'"),
        ({"envid": ""}, ValueError, "envid must be ASCII, and not empty"),
        ({"envid": "\u00fc"}, ValueError, "envid must be ASCII, and not empty"),
        ({"envid": "x\r\n"}, ValueError, "envid: command and arguments contain prohibited newline"),
        ({"envid": "x" * 101}, ValueError, "envid: 101 characters; 100 are possible"),
        ({"envid": 5}, TypeError, "envid must be str, not int"),
        ({"deliver_by": 5}, TypeError, "deliver_by must be a DeliverBy, not int"),
        ({"hold_for": 0}, ValueError, "hold_for must be from 1 to 999999999, not 0"),
        ({"hold_for": 1.5}, TypeError, "hold_for must be a whole number, not float"),
        ({"hold_for": True}, TypeError, "hold_for must be a whole number, not bool"),
        ({"hold_until": "tomorrow"}, TypeError, "hold_until must be a datetime, not str"),
        ({"hold_until": datetime.datetime(2027, 1, 1)}, ValueError, "hold_until must have a time zone"),
        ({"hold_until": datetime.datetime.max.replace(tzinfo=WEST)}, ValueError, "hold_until: .* is in no year of UTC"),
        (
            {"hold_until": datetime.datetime(2027, 1, 1, tzinfo=UTC), "hold_for": 5},
            ValueError,
            "hold_for and hold_until: only one",
        ),
        ({"priority": 10}, ValueError, "priority must be from -9 to 9, not 10"),
        ({"require_tls": 1}, TypeError, "require_tls must be True or False, not int"),
        ({"notify": "sometimes"}, ValueError, "notify must be 'never', or of"),
        ({"notify": ["never", "delay"]}, ValueError, "notify must be 'never', or of"),
        ({"notify": []}, ValueError, "notify must be 'never', or of"),
        ({"notify": [5]}, ValueError, "notify must be 'never', or of"),
        ({"notify": 5}, TypeError, "notify must be a str or an iterable of str, not int"),
        ({"notify": b"never"}, TypeError, "notify must be a str or an iterable of str, not bytes"),
        ({"nofity": "never"}, TypeError, "got an unexpected keyword argument 'nofity'"),
        ({"ret": "hdrs", "mail_options": ["ret=FULL"]}, ValueError, "mail_options: RET is asked for by a keyword"),
        ({"notify": "delay", "rcpt_options": ["notify=never"]}, ValueError, "rcpt_options: NOTIFY is asked for by an"),
    ],
)
def test_what_cannot_be_asked(requests: Any, kind: type[Exception], why: str) -> None:
    with pytest.raises(kind, match=f"^{why}"):
        written(**requests)


@pytest.mark.parametrize(
    ("arguments", "kind", "why"),
    [
        ((0,), ValueError, "deliver_by.seconds must be above 0 where the mode is 'return'"),
        ((5, "r"), ValueError, "deliver_by.mode must be 'return' or 'notify', not 'r'"),
        ((10**9,), ValueError, "deliver_by.seconds must be from -999999999 to 999999999"),
        (("5",), TypeError, "deliver_by.seconds must be a whole number, not str"),
    ],
)
def test_what_cannot_be_a_time_of_delivery(arguments: Any, kind: type[Exception], why: str) -> None:
    with pytest.raises(kind, match=f"^{why}"):
        DeliverBy(*arguments)


def test_none_is_not_asked_for() -> None:
    assert Parameters({"ret": None, "priority": None}).names == set()  # type: ignore[typeddict-item]


# ---- RCPT ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("notify", "text"),
    [
        ("never", "NEVER"),
        ("Success", "SUCCESS"),
        (["failure", "delay"], "FAILURE,DELAY"),
        (("success", "success", "delay"), "SUCCESS,DELAY"),
        (["never"], "NEVER"),
    ],
)
def test_notify(notify: Any, text: str) -> None:
    assert written("b@y.example", "c@y.example", notify=notify)[1:] == [
        f"rcpt to:<b@y.example> NOTIFY={text}", f"rcpt to:<c@y.example> NOTIFY={text}",
    ]  # fmt: skip


def test_each_recipient_has_its_own() -> None:
    lines = written(
        "b@y.example",
        Recipient("c@y.example", notify="never"),
        Recipient("d@y.example", orcpt="rfc822;old+d@y.example"),
        Recipient("e@b\u00fccher.example", notify=["delay"], orcpt="e=f@y.example"),
        notify="failure",
    )
    assert lines[1:] == [
        "rcpt to:<b@y.example> NOTIFY=FAILURE",
        "rcpt to:<c@y.example> NOTIFY=NEVER",
        "rcpt to:<d@y.example> NOTIFY=FAILURE ORCPT=rfc822;old+2Bd@y.example",
        "rcpt to:<e@xn--bcher-kva.example> NOTIFY=DELAY ORCPT=rfc822;e+3Df@y.example",
    ]


def test_some_of_the_recipients() -> None:
    envelope = Envelope("a@x", ["b@y", Recipient("c@y", notify="never")])
    assert envelope.only([1]).commands(offering("DSN"), "", esmtp=True)[1] == b"rcpt to:<c@y> NOTIFY=NEVER\r\n"


@pytest.mark.parametrize(
    ("orcpt", "text"),
    [
        ("j\u00f6rg@y.example", r"utf-8;j\x{F6}rg@y.example"),
        ("utf-8;a\\b+\U0001f4a9@y", r"utf-8;a\x{5C}b\x{2B}\x{1F4A9}@y"),
        ("X400;/C=US/", "X400;/C+3DUS/"),
    ],
)
def test_the_original_recipient(orcpt: str, text: str) -> None:
    """RFC 3461 §4.2, RFC 6533 §3."""
    assert Recipient("b@y", orcpt=orcpt).parameters == f" ORCPT={text}"


@pytest.mark.parametrize(
    ("options", "kind", "why"),
    [
        ({"orcpt": "x y;b@y"}, ValueError, "orcpt: not a type of address: 'x y'"),
        ({"orcpt": "b@y\r\nDATA"}, ValueError, "orcpt: command and arguments contain prohibited newline"),
        ({"orcpt": "b" * 501}, ValueError, "orcpt: 501 characters; 500 are possible"),
        ({"orcpt": "rfc822;\u00fc@y"}, ValueError, "orcpt: an address that is not ASCII is of type utf-8, not rfc822"),
        ({"orcpt": 5}, TypeError, "orcpt must be str, not int"),
        ({"notify": "x"}, ValueError, "notify must be"),
    ],
)
def test_what_cannot_be_asked_for_a_recipient(options: Any, kind: type[Exception], why: str) -> None:
    with pytest.raises(kind, match=f"^{why}"):
        Recipient("b@y", **options)


@pytest.mark.parametrize("address", [5, None, b"b@y", ["b@y"]])
def test_a_recipient_that_is_no_str(address: Any) -> None:
    with pytest.raises(TypeError, match="^address must be str"):
        Recipient(address)


def test_a_recipient_is_its_address() -> None:
    recipient = Recipient("b@y", notify="never", orcpt="old@y")
    assert recipient == "b@y"
    as_key: dict[str, int] = {recipient: 1}
    assert as_key["b@y"] == 1
    for twin in (copy.copy(recipient), copy.deepcopy(recipient), pickle.loads(pickle.dumps(recipient))):
        assert (twin, twin.parameters) == ("b@y", " NOTIFY=NEVER ORCPT=rfc822;old@y")
    assert Recipient("b@y").parameters == ""


def test_xtext() -> None:
    """RFC 3461 §4."""
    assert xtext("".join(map(chr, range(32, 127)))).replace("+20", "").replace("+2B", "").replace("+3D", "") == "".join(
        chr(code) for code in range(33, 127) if chr(code) not in "+="
    )


# ---- XCLIENT ------------------------------------------------------------------------------------

XCLIENT = offering("XCLIENT NAME ADDR PORT HELO LOGIN")


@pytest.mark.parametrize(
    ("attributes", "line"),
    [
        ({"name": "mx.example", "addr": "192.0.2.1"}, b"XCLIENT NAME=mx.example ADDR=192.0.2.1\r\n"),
        ({"addr": "2001:db8::1", "port": "25"}, b"XCLIENT ADDR=IPV6:2001:db8::1 PORT=25\r\n"),
        ({"addr": "IPV6:2001:db8::1"}, b"XCLIENT ADDR=IPV6:2001:db8::1\r\n"),
        ({"name": None, "login": "a+b c"}, b"XCLIENT NAME=[UNAVAILABLE] LOGIN=a+2Bb+20c\r\n"),
    ],
)
def test_xclient(attributes: Any, line: bytes) -> None:
    assert xclient(XCLIENT, attributes) == line


@pytest.mark.parametrize(
    ("extensions", "attributes", "kind", "why"),
    [
        (Extensions(), {"name": "x"}, SMTPNotSupportedError, r"XCLIENT not supported by server: xclient\(\) needs it"),
        (XCLIENT, {}, ValueError, "xclient: no attribute is given"),
        (XCLIENT, {"proto": "ESMTP"}, SMTPNotSupportedError, "XCLIENT: proto not supported by server, which has NAME"),
        (XCLIENT, {"name": "x\r\n"}, ValueError, "name: command and arguments contain prohibited newline"),
        (XCLIENT, {"name": ""}, ValueError, "name must be ASCII, and not empty"),
        (XCLIENT, {"name": "\u00fc"}, ValueError, "name must be ASCII, and not empty"),
        (XCLIENT, {"port": 25}, TypeError, "port must be str, not int"),
    ],
)
def test_what_xclient_cannot_say(extensions: Any, attributes: Any, kind: type[Exception], why: str) -> None:
    with pytest.raises(kind, match=f"^{why}"):
        xclient(extensions, attributes)
