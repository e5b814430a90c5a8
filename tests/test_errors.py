"""The exceptions: each is caught by the `except` clause of smtplib that its users have written."""

from __future__ import annotations

import copy
import pickle
import smtplib
from typing import Any

import pytest

import asmtp
from asmtp import errors
from asmtp.errors import (
    SMTPAuthenticationError,
    SMTPConnectError,
    SMTPDataError,
    SMTPException,
    SMTPHeloError,
    SMTPNotSupportedError,
    SMTPProtocolError,
    SMTPRecipientsRefused,
    SMTPResponseException,
    SMTPSenderRefused,
    SMTPServerDisconnected,
    SMTPStateError,
    SMTPTimeoutError,
    one_line,
)
from asmtp.mailer.delivery import refusals, replies_of
from asmtp.mailer.policy import is_transient

EXAMPLES: list[SMTPException] = [
    SMTPException("something"),
    SMTPStateError("not now"),
    SMTPNotSupportedError("not offered"),
    SMTPServerDisconnected("gone"),
    SMTPTimeoutError("timed out"),
    SMTPResponseException(550, b"no"),
    SMTPProtocolError(-1, b"nonsense"),
    SMTPSenderRefused(550, b"no", "a@x"),
    SMTPRecipientsRefused({"b@x": (550, b"no")}),
    SMTPDataError(554, b"spam"),
    SMTPConnectError(554, b"no service"),
    SMTPHeloError(501, b"what"),
    SMTPAuthenticationError(535, b"no"),
]

examples = pytest.mark.parametrize("error", EXAMPLES, ids=lambda error: type(error).__name__)


@examples
def test_smtplibs_except_clause_catches_it(error: SMTPException) -> None:
    assert isinstance(error, smtplib.SMTPException)
    assert isinstance(error, OSError)
    assert isinstance(error, asmtp.SMTPException)
    same = getattr(smtplib, type(error).__name__, None)
    assert same is None or isinstance(error, same)


def test_every_exception_of_smtplib_has_its_counterpart() -> None:
    names = {name for name, thing in vars(smtplib).items() if isinstance(thing, type) and issubclass(thing, Exception)}
    assert {name for name in names if name.startswith("SMTP")} <= set(errors.__all__)
    assert {type(error).__name__ for error in EXAMPLES} == set(errors.__all__) - {"DeliveryState"}


@pytest.mark.parametrize(
    ("error", "kinds"),
    [
        (SMTPTimeoutError("x"), (smtplib.SMTPServerDisconnected, TimeoutError)),
        (SMTPProtocolError(-1, b"x"), (smtplib.SMTPServerDisconnected, smtplib.SMTPResponseException)),
    ],
)
def test_what_the_new_ones_are(error: Exception, kinds: tuple[type[Exception], ...]) -> None:
    for kind in kinds:
        assert isinstance(error, kind)


@examples
def test_copied_and_pickled(error: SMTPException) -> None:
    for made in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert type(made) is type(error)
        assert made.args == error.args
        assert str(made) == str(error)
        assert vars(made) == vars(error)


@examples
def test_the_state_is_unknown_until_it_is_said(error: SMTPException) -> None:
    nothing = "not_sent" if isinstance(error, SMTPStateError) else None  # it says that nothing was written
    assert error.state == nothing
    told = copy.copy(error)
    told.state = "in_doubt"
    assert copy.copy(told).state == "in_doubt"
    assert pickle.loads(pickle.dumps(told)).state == "in_doubt"
    assert error.state == nothing


def test_attributes() -> None:
    error = SMTPSenderRefused(550, b"no", "a@x")
    assert (error.smtp_code, error.smtp_error, error.sender) == (550, b"no", "a@x")
    assert error.args == (550, b"no", "a@x")
    refused = SMTPRecipientsRefused({"b@x": (550, b"no")})
    assert refused.recipients == {"b@x": (550, b"no")}
    assert refused.args == ({"b@x": (550, b"no")},)
    assert (SMTPProtocolError(500, b"long").smtp_code, SMTPProtocolError(500, b"long").smtp_error) == (500, b"long")


@pytest.mark.parametrize(("code", "transient"), [(399, False), (400, True), (499, True), (500, False), (-1, False)])
def test_transient(code: int, transient: bool) -> None:
    assert SMTPDataError(code, b"").transient is transient


@pytest.mark.parametrize(
    ("codes", "transient"), [((550,), False), ((450,), True), ((550, 451), True), ((550, 354), False), ((), False)]
)
def test_recipients_transient(codes: tuple[int, ...], transient: bool) -> None:
    refused = {f"{place}@x": (code, b"") for place, code in enumerate(codes)}
    assert SMTPRecipientsRefused(refused).transient is transient


@pytest.mark.parametrize("recipients", [["b@x"], "b@x", None, {"b@x": "no"}, []], ids=repr)
def test_made_by_hand_as_mocks_do(recipients: object) -> None:
    error = SMTPRecipientsRefused(recipients)
    same = smtplib.SMTPRecipientsRefused(recipients)  # type: ignore[arg-type]
    assert (error.recipients, error.args) == (same.recipients, same.args)
    assert not error.transient
    again = pickle.loads(pickle.dumps(error))
    assert (again.recipients, again.args) == (same.recipients, same.args)
    assert refusals(error) == {}
    assert replies_of(error) == []
    assert not is_transient(error)


def test_recipients_are_a_copy() -> None:
    given = {"b@x": (550, b"no")}
    error = SMTPRecipientsRefused(given)
    given.clear()
    assert error.recipients == {"b@x": (550, b"no")}


REFUSED = {f"{number}@x": (550, b"5.1.1 no such user") for number in range(5)}


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (SMTPDataError(554, b"5.6.0 spam\nsee our site"), "554 5.6.0 spam see our site"),
        (SMTPResponseException(550, "a str, as mocks have it"), "550 a str, as mocks have it"),
        (SMTPAuthenticationError(535, b""), "535"),
        (SMTPSenderRefused(550, b"no", "a@x"), "sender a@x: 550 no"),
        (SMTPSenderRefused(550, b"no", ""), "sender <>: 550 no"),
        (SMTPProtocolError(-1, b"not a reply: 'x'"), "not a reply: 'x'"),
        (SMTPRecipientsRefused({"nobody@example.com": (550, b"5.1.1 no such user")}),
         "nobody@example.com: 550 5.1.1 no such user"),
        (SMTPRecipientsRefused({who: REFUSED[who] for who in ("1@x", "2@x", "3@x")}),
         "1@x: 550 5.1.1 no such user; 2@x: 550 5.1.1 no such user; 3@x: 550 5.1.1 no such user"),
        (SMTPRecipientsRefused(REFUSED),
         "0@x: 550 5.1.1 no such user; 1@x: 550 5.1.1 no such user; 2@x: 550 5.1.1 no such user; and 2 more"),
        (SMTPRecipientsRefused({}), "every recipient was refused"),
        (SMTPRecipientsRefused(["b@x"]), "['b@x']"),
        (SMTPRecipientsRefused({"b@x": "no"}), "{'b@x': 'no'}"),
    ],
    ids=repr,
)  # fmt: skip
def test_as_a_sentence(error: SMTPException, sentence: str) -> None:
    assert str(error) == sentence
    kind = getattr(smtplib, type(error).__name__, smtplib.SMTPResponseException)
    same = kind(*error.args)
    assert repr(error) == repr(same).replace(kind.__name__, type(error).__name__, 1)


@pytest.mark.parametrize("kind", [SMTPDataError, SMTPSenderRefused, SMTPRecipientsRefused, SMTPProtocolError])
def test_what_a_server_sends_is_printable_and_short_in_a_sentence(kind: type[SMTPException]) -> None:
    text = b"\x1b[2J\x07\xff\xe2\x80\xae no\r\nsent: ok \xc3\xa9" + b"x" * 5000
    arguments = {
        SMTPDataError: (550, text), SMTPSenderRefused: (550, text, "a\n@x"),
        SMTPRecipientsRefused: ({"a\n@x": (550, text)},), SMTPProtocolError: (-1, text),
    }  # fmt: skip
    told = str(kind(*arguments[kind]))
    assert told.isprintable()
    assert "\\x1b[2J\\x07" in told
    assert "\u00e9" in told
    assert told.endswith("...")
    assert len(told) < 1100


@pytest.mark.parametrize(
    ("error", "state", "transient"),
    [
        (SMTPException("x"), "not_sent", False),
        (SMTPStateError("x"), "not_sent", False),
        (SMTPNotSupportedError("x"), "not_sent", False),
        (SMTPServerDisconnected("x"), "not_sent", True),
        (SMTPServerDisconnected("x"), "in_doubt", False),
        (SMTPServerDisconnected("x"), None, False),
        (SMTPTimeoutError("x"), "not_sent", True),
        (SMTPProtocolError(-1, b"x"), "not_sent", True),
        (SMTPProtocolError(450, b"x"), "in_doubt", False),
        (SMTPSenderRefused(450, b"x", "a@x"), "refused", True),
    ],
)
def test_whether_it_may_fare_better_later(error: SMTPException, state: Any, transient: bool) -> None:
    """Every exception has the property, so that no caller needs to ask for the class first."""
    error.state = state
    assert error.transient is transient
    assert is_transient(error) is transient
    assert error.receipt is None


@pytest.mark.parametrize("char", "\r\x00\x1b\x7f\x85\x9b\u2028\u2029\u202e\u2066\ufeff\ud800\udfff\xa0\xad")
def test_what_is_not_printable_is_escaped(char: str) -> None:
    told = one_line(f"a{char}b")
    assert told == f"a{ascii(char)[1:-1]}b"
    assert told.isprintable()


def test_text_from_outside_is_short_unless_that_is_not_wanted() -> None:
    assert one_line("x" * 100_000) == "x" * 500 + "..."
    assert one_line(b"\xff" * 100_000, 10) == r"\xff\xff\x..."
    assert one_line("x" * 1000, None) == "x" * 1000
    assert one_line("x" * 500) == "x" * 500
    assert one_line("a\nb") == "a b"


def test_the_reason_of_an_exception_without_words() -> None:
    class Wordless(Exception):
        def __str__(self) -> str:
            raise LookupError

    assert errors.reason(OSError("net down")) == "net down"
    assert errors.reason(KeyError()) == "KeyError"
    assert errors.reason(Wordless()) == "Wordless"
