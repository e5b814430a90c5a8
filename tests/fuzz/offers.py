"""The EHLO reply's parser."""

from __future__ import annotations

from asmtp.protocol.extensions import Extensions
from tests.fuzz.data import FuzzedData

__all__ = ["ehlo"]

LINES = [
    b"SIZE", b"size ", b"SIZE=", b"10", b"0", b"99999999999999999999999", b"\xb2", b"AUTH", b"AUTH=", b"auth ",
    b"PLAIN", b"LOGIN plain", b"LIMITS ", b"RCPTMAX=", b"MAILMAX=100 ", b"=", b"-", b"8BITMIME", b"PIPELINING",
    b"CHUNKING", b"\n", b"\n", b"\n", b" ", b"\t", b"\xa0", b"",
]  # fmt: skip
DIGITS = "0123456789"
LETTERS = "abcdefghijklmnopqrstuvwxyz" + "abcdefghijklmnopqrstuvwxyz".upper()


def ehlo(data: FuzzedData) -> None:
    """The EHLO reply's parser, and what it tells of SIZE, LIMITS and AUTH."""
    message = data.blob(LINES, 40)
    found = Extensions.parse(message)
    expected = _parsed(message)
    assert dict(found) == expected, f"{found}, not {expected}"
    for name in found:
        assert name == name.lower()
        assert name.isascii()
    _check_properties(found)
    # Callers may change it.
    found[data.pick(["size", "limits", "auth"])] = data.text(["", "1", "0", "A=1", " ", "\u0661", "\u00b9", "ß"], 8)
    _check_properties(found)


def _parsed(message: bytes) -> dict[str, str]:
    """RFC 5321 §4.1.1.1: ehlo-keyword = (ALPHA / DIGIT) *(ALPHA / DIGIT / "-"), and what follows it."""
    found: dict[str, str] = {}
    for line in message.decode("latin-1").split("\n")[1:]:
        length = 0
        while length < len(line) and line[length] in LETTERS + DIGITS + "-" * bool(length):
            length += 1
        name, rest = line[:length].lower(), line[length:]
        if name == "auth":
            # Before RFC 4954, some servers wrote "AUTH=LOGIN PLAIN".
            rest = rest[1:] if rest.startswith("=") else rest.strip()
            found["auth"] = found.get("auth", "") + " " + rest
        elif name:
            found[name] = rest.strip()
    return found


def _check_properties(offers: Extensions) -> None:
    size = offers.size
    assert size is None or 0 < size < 10**20
    if size is not None:
        assert int(offers["size"]) == size
    for name, limit in offers.limits.items():
        assert 0 < limit < 10**6
        assert f"{name}={limit}" in offers["limits"].upper().split()
    names = offers.auth
    assert len(names) == len(set(names))
    assert all(name and name == name.upper() and not any(map(str.isspace, name)) for name in names)
