"""Check that what callers say goes into one command line, as what it was meant to be."""

from __future__ import annotations

import re

from asmtp.errors import SMTPNotSupportedError
from asmtp.protocol.command import command
from asmtp.protocol.envelope import Envelope
from asmtp.protocol.extensions import Extensions
from tests.fuzz.data import FuzzedData

__all__ = ["commands", "envelope"]

ADDRESSES = [
    "a@x.example", "a", "@", "x.example", "<", ">", '"', '"', "\\", " ", ",", ";", ":", "(", ")", "SIZE=1", "> SIZE=1",
    "b\u00fccher", "\u00fc", "\ufffd", "\r\n", "\0", "\x7f", "\x85", "\u2028", "\ud800", ".", "Name <a@x.example>", "",
]  # fmt: skip
OPTIONS = [
    "SIZE=1",
    "BODY=8BITMIME",
    "SMTPUTF8",
    "NOTIFY=NEVER",
    "ORCPT=rfc822;a+40b",
    "x\u00fc",
    " ",
    "\n",
    "\x01",
    "",
]
_CONTROL = re.compile("[\0-\x1f\x7f-\x9f]")
_ATOM = re.compile(r"[A-Za-z0-9.+-]+@[A-Za-z0-9.-]+")


def envelope(data: FuzzedData) -> None:
    """MAIL and RCPT from any addresses and options: one line each, the path a path, no parameter smuggled in."""
    addresses = [data.text(ADDRESSES, 5) for _ in range(data.between(1, 3))]
    mail_options = [data.text(OPTIONS, 2) for _ in range(data.below(3))]
    rcpt_options = [data.text(OPTIONS, 2) for _ in range(data.below(3))]
    offers = Extensions(dict.fromkeys(data.some(["smtputf8", "8bitmime"]), ""))
    esmtp = not data.chance(4)
    parameters = data.pick(["", " size=5", " size=5 BODY=8BITMIME"])
    try:
        one = Envelope(addresses[0], addresses[1:] or addresses[0], mail_options, rcpt_options)
        lines = one.commands(offers, parameters, esmtp=esmtp)
    except (ValueError, SMTPNotSupportedError):
        return
    assert len(lines) == 1 + len(one.recipients)
    for place, line in enumerate(lines):
        address = addresses[place] if place < len(addresses) else addresses[0]
        options = (rcpt_options if place else mail_options) if esmtp else []
        expected = "".join(f" {option}" for option in options)
        _check_line(line, b"rcpt to:" if place else b"mail from:", address, expected, "" if place else parameters)


def _check_line(line: bytes, verb: bytes, address: str, options: str, parameters: str) -> None:
    text = line.decode()
    assert text.endswith("\r\n"), line
    assert _CONTROL.search(text[:-2]) is None, f"a control character: {line!r}"
    assert line.startswith(verb), line
    path, rest = _parsed(text[len(verb) : -2])
    added = rest.removeprefix(parameters).removeprefix(options)
    assert added in ("", " SMTPUTF8", " SMTPUTF8 BODY=8BITMIME"), f"{address!a} adds {added!a}: {line!r}"
    if not rest.isascii() or not path.isascii():
        assert verb == b"rcpt to:" or "SMTPUTF8" in rest.upper().split(), f"not announced: {line!r}"
    if _ATOM.fullmatch(address):
        assert path == address
    elif not path.isascii():
        assert set(path) <= set(address), f"characters that nobody wrote: {line!r}"


def _parsed(text: str) -> tuple[str, str]:
    """RFC 5321 §4.1.2: a path, in which a quoted string may hold anything, and what stands behind it."""
    assert text.startswith("<"), text
    place = 1
    quoted = False
    while text[place] != ">" or quoted:
        character = text[place]
        if character == '"':
            quoted = not quoted
        elif character == "\\":
            assert quoted, f"a backslash outside of quotes: {text!a}"
            place += 1
        elif not quoted:
            assert character != "<", f"a path within a path: {text!a}"
        place += 1
        assert place < len(text), f"a path that does not end: {text!a}"
    return text[1:place], text[place + 1 :]


def commands(data: FuzzedData) -> None:
    """The gate: one command line that holds what was given, or ValueError; a secret in no error."""
    tokens = ["NOOP", "AUTH", "VRFY", "a", " ", "\r", "\n", "\r\nQUIT", "\0", "\x1b", "\x9b", "\u00fc", "\ud800", ""]
    verb = data.text(tokens, 3)
    args = data.text(tokens, 6)
    secret = data.flag()
    try:
        line = command(verb, args, secret=secret, encoding=data.pick(["ascii", "utf-8"]))
    except ValueError as error:
        if (secret or verb[:4].upper() == "AUTH") and len(args) >= 8:
            assert args not in repr(error), error
            assert args not in repr(error.__context__) or error.__suppress_context__, error.__context__
        return
    text = line.decode()
    assert text == (f"{verb} {args}" if args else verb) + "\r\n"
    assert _CONTROL.search(text[:-2]) is None, f"a control character: {line!r}"
    assert text.count("\r\n") == 1
