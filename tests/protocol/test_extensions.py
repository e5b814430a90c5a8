"""What a server offers, from its reply to EHLO."""

from __future__ import annotations

import datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asmtp.protocol.extensions import Extensions


def test_parse() -> None:
    found = Extensions.parse(
        b"mail.example at your service\nPIPELINING\nSIZE 1000\n8BITMIME\nLIMITS RCPTMAX=3 MAILMAX=1"
    )
    assert found == {"pipelining": "", "size": "1000", "8bitmime": "", "limits": "RCPTMAX=3 MAILMAX=1"}


def test_the_first_line_is_a_greeting() -> None:
    assert Extensions.parse(b"CHUNKING is what we do\nDSN") == {"dsn": ""}
    assert Extensions.parse(b"CHUNKING") == {}
    assert Extensions.parse(b"") == {}


def test_keywords_in_any_case() -> None:
    assert Extensions.parse(b"hi\nPipeLining\nsmtputf8") == {"pipelining": "", "smtputf8": ""}


@pytest.mark.parametrize("line", [b"", b" SIZE 1", b"-X", b"\xff", b"="])
def test_what_is_no_keyword(line: bytes) -> None:
    assert Extensions.parse(b"hi\n" + line + b"\nDSN") == {"dsn": ""}


@pytest.mark.parametrize(
    ("lines", "names"),
    [
        (b"AUTH PLAIN LOGIN", ["PLAIN", "LOGIN"]),
        (b"auth plain login Plain", ["PLAIN", "LOGIN"]),
        (b"AUTH=PLAIN LOGIN", ["PLAIN", "LOGIN"]),
        (b"AUTH=LOGIN\nAUTH LOGIN CRAM-MD5", ["LOGIN", "CRAM-MD5"]),
        (b"AUTH LOGIN\nAUTH PLAIN", ["LOGIN", "PLAIN"]),
        (b"AUTH", []),
        (b"DSN", []),
    ],
)
def test_auth(lines: bytes, names: list[str]) -> None:
    assert Extensions.parse(b"hi\n" + lines).auth == names


@pytest.mark.parametrize(
    ("value", "size"),
    [
        (b"SIZE 35882577", 35882577), (b"SIZE", None), (b"SIZE 0", None), (b"SIZE many", None), (b"SIZE -1", None),
        (b"SIZE 10 20", None), (b"SIZE \xb2", None), (b"DSN", None),
        (b"SIZE " + b"9" * 20, 99999999999999999999), (b"SIZE " + b"9" * 21, None), (b"SIZE " + b"9" * 8000, None),
    ],
)  # fmt: skip
def test_size(value: bytes, size: int | None) -> None:
    assert Extensions.parse(b"hi\n" + value).size == size


@pytest.mark.parametrize(
    ("value", "limits"),
    [
        (b"RCPTMAX=100 MAILMAX=7", {"RCPTMAX": 100, "MAILMAX": 7}),
        (b"rcptmax=5 SURPRISE=1", {"RCPTMAX": 5, "SURPRISE": 1}),
        (b"RCPTMAX=0 MAILMAX=x MAILMAX", {}),
        (b"RCPTMAX= =4", {}),
        (b"", {}),
    ],
)
def test_limits(value: bytes, limits: dict[str, int]) -> None:
    """RFC 9422 \u00a72."""
    found = Extensions.parse(b"hi\nLIMITS " + value).limits
    assert {name: number for name, number in found.items() if name} == limits


def test_code_that_edits_the_dict_is_obeyed() -> None:
    found = Extensions.parse(b"hi\nSIZE 1000\nAUTH PLAIN")
    found["size"] = "5"
    found["auth"] = "LOGIN"
    assert found.size == 5
    assert found.auth == ["LOGIN"]
    del found["size"]
    assert found.size is None


@given(st.binary(max_size=300))
@settings(max_examples=200)
def test_any_octets(message: bytes) -> None:
    found = Extensions.parse(message)
    assert found.size is None or found.size > 0
    assert all(name == name.upper() for name in found.auth)
    assert all(name == name.lower() and name.isascii() for name in found)


@pytest.mark.parametrize(
    ("offer", "least"),
    [("DELIVERBY 60", 60), ("DELIVERBY", None), ("DELIVERBY x", None), ("DELIVERBY 9999999999", None)],
)
def test_the_least_time_for_deliverby(offer: str, least: int | None) -> None:
    """RFC 2852 §4."""
    assert Extensions.parse(f"hi\n{offer}".encode()).deliver_by == least


NEW_YEAR = datetime.datetime(2027, 1, 1, tzinfo=datetime.UTC)


@pytest.mark.parametrize(
    ("offer", "most"),
    [
        ("FUTURERELEASE 86400 2027-01-01T00:00:00Z", (86400, NEW_YEAR)),
        ("FUTURERELEASE 86400", (86400, None)),
        ("FUTURERELEASE", (None, None)),
        ("FUTURERELEASE x y", (None, None)),
        ("FUTURERELEASE 5 2027-01-01T00:00:00", (5, None)),
        ("SIZE", (None, None)),
    ],
)
def test_the_most_for_futurerelease(offer: str, most: tuple[int | None, datetime.datetime | None]) -> None:
    """RFC 4865 §4."""
    assert Extensions.parse(f"hi\n{offer}".encode()).future_release == most
