"""The gate: nothing that a caller gives begins a new command."""

from __future__ import annotations

import enum
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from asmtp.protocol.command import command, gate, options_text, spelt_out
from asmtp.protocol.envelope import Envelope
from asmtp.protocol.parameters import Recipient

CONTROLS = [chr(code) for code in [*range(0x20), *range(0x7F, 0xA0)]]


@pytest.mark.parametrize("control", CONTROLS)
def test_no_control_passes(control: str) -> None:
    text = f"a{control}b"
    for call in (
        lambda: gate(text, "thing"),
        lambda: command("vrfy", text, argument="thing"),
        lambda: command(f"vrfy {text}", argument="thing", encoding="utf-8"),
        lambda: options_text(["SIZE=1", text], "thing"),
    ):
        with pytest.raises(ValueError, match=r"^thing: command and arguments contain prohibited (newline|control) "):
            call()


def test_the_error_shows_what_it_was() -> None:
    with pytest.raises(ValueError, match="prohibited newline characters: a") as caught:
        gate("a\r\nquit\xe9", "thing")
    assert str(caught.value).endswith("a\\r\\nquit\\xe9")
    with pytest.raises(ValueError, match="prohibited control characters"):
        gate("a\x00", "thing")


@pytest.mark.parametrize("verb", ["AUTH PLAIN c2VjcmV0", "auth"])
def test_a_secret_is_not_shown(verb: str) -> None:
    with pytest.raises(ValueError, match=r": \(not shown\)$"):
        command(verb, "c2VjcmV0\n")
    with pytest.raises(ValueError, match=r": \(not shown\)$"):
        command("c2VjcmV0\n", secret=True)


@pytest.mark.parametrize("thing", [b"bytes", None, 1])
def test_only_str_passes(thing: object) -> None:
    with pytest.raises(TypeError, match="^thing must be str, not "):
        gate(thing, "thing")  # type: ignore[arg-type]


def test_command() -> None:
    assert command("NOOP") == b"NOOP\r\n"
    assert command("NOOP", "") == b"NOOP\r\n"
    assert command("vrfy", "me and you") == b"vrfy me and you\r\n"
    assert command("vrfy", "bj\xf6rn", encoding="utf-8") == b"vrfy bj\xc3\xb6rn\r\n"


@pytest.mark.parametrize(("text", "encoding"), [("bj\xf6rn", "ascii"), ("\ud800", "utf-8")])
def test_what_cannot_be_encoded(text: str, encoding: str) -> None:
    with pytest.raises(UnicodeEncodeError):
        command("vrfy", text, encoding=encoding)


def test_options() -> None:
    assert options_text([], "options") == ""
    assert options_text(["BODY=8BITMIME", "SIZE=1"], "options") == " BODY=8BITMIME SIZE=1"
    assert options_text(("RET=HDRS",), "options") == " RET=HDRS"


def test_options_are_not_one_str() -> None:
    with pytest.raises(TypeError, match="^options must be a sequence of str, not one str"):
        options_text("SIZE=1", "options")
    with pytest.raises(TypeError):
        options_text([b"SIZE=1"], "options")  # type: ignore[list-item]


@given(st.text(), st.text(), st.sampled_from(["ascii", "utf-8"]))
@settings(max_examples=200)
def test_one_line_or_an_error(verb: str, args: str, encoding: str) -> None:
    try:
        line = command(verb, args, encoding=encoding)
    except ValueError:
        return
    assert line.endswith(b"\r\n")
    body = line[:-2]
    assert not [octet for octet in body if octet < 0x20 or octet == 0x7F]
    assert body.decode(encoding) == (f"{verb} {args}" if args else verb)


class Proxy:
    """Stands for an object as werkzeug's LocalProxy does: says that it is of its class, and passes everything on."""

    def __init__(self, thing: Any) -> None:
        object.__setattr__(self, "_thing", thing)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return type(object.__getattribute__(self, "_thing"))

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "_thing"), name)

    def __str__(self) -> str:
        return str(object.__getattribute__(self, "_thing"))


class Lazy:
    """Stands for a text as Django's lazy strings do: it is no str, but has all of its methods."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __getattr__(self, name: str) -> Any:
        return getattr(self._text, name)

    def __str__(self) -> str:
        return self._text


class Named(str, enum.Enum):  # noqa: UP042  # its str() is not its text
    one = "a@x.example"


@pytest.mark.parametrize("made", [Proxy, Lazy])
def test_what_stands_for_a_str_is_one(made: Any) -> None:
    assert type(spelt_out(made("a@x.example"))) is str
    envelope = Envelope(made("a@x.example"), [made("b@x.example"), "c@x.example"])
    assert [envelope.sender, *envelope.recipients] == ["a@x.example", "b@x.example", "c@x.example"]
    assert all(type(who) is str for who in envelope.recipients)
    assert list(Envelope("", made("b@x.example")).recipients) == ["b@x.example"]
    with pytest.raises(ValueError, match="^recipients: "):
        Envelope("", [made("b@x.example\r\nDATA")])


@pytest.mark.parametrize("value", ["a", Named.one, Recipient("b@x.example", notify="never"), b"a", None, 1, ["a"]])
def test_what_is_none_stays_as_it_is(value: Any) -> None:
    assert spelt_out(value) is value
