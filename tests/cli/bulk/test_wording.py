"""Errors that name arguments of Python name options of the command line there."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path

import pytest

from asmtp import Rate, Relay, SMTPNotSupportedError, SMTPTimeoutError, Timeouts
from asmtp.auth.selection import choose
from asmtp.cli.bulk.account import outcomes_of
from asmtp.cli.bulk.wording import WORDS, for_operators
from asmtp.mailer.delivery import FailedDelivery
from asmtp.mailer.mailer import AsyncMailer
from asmtp.protocol.envelope import Envelope
from asmtp.protocol.extensions import Extensions
from asmtp.protocol.sasl import Credentials
from asmtp.transport.tls import ResumingContext, explain, explain_no_tls, tls_is_meant

ASMTP = Path(__file__).parents[3] / "asmtp"


def offering(mechanisms: bytes) -> Extensions:
    return Extensions.parse(b"hi\nAUTH " + mechanisms)


def certificate(code: int) -> None:
    error = ssl.SSLCertVerificationError(1, "no")
    error.verify_code, error.verify_message = code, "no"
    explain(error, ResumingContext(ssl.create_default_context()))
    raise error


def no_tls() -> None:
    error = ssl.SSLError(1, "no")
    error.reason = "WRONG_VERSION_NUMBER"
    explain_no_tls(error)
    raise error


def silence() -> None:
    raise tls_is_meant(SMTPTimeoutError("timed out"), 465)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (
            lambda: choose(offering(b"PLAIN"), Credentials("me", "pw"), protected=False),
            "begin the URL with smtp+starttls:// or smtps://, or have tls=none in it if that is meant",
        ),
        (
            lambda: choose(offering(b"NTLM"), Credentials("me", "pw"), protected=True),
            "(NTLM can be asked for with mechanisms= in the URL)",
        ),
        (lambda: certificate(20), "trust the issuer with cafile= in the URL"),
        (lambda: certificate(62), "have such a name, or server_hostname=, in the URL"),
        (no_tls, "is for smtp+starttls://; smtps:// is for ports such as 465"),
        (silence, "begins with TLS: smtps:// is meant"),
        (lambda: AsyncMailer("smtp://me@h"), "the URL has one of user name and password"),
        (lambda: AsyncMailer("smtp://me:pw@h?mechanisms=XOAUTH2"), "the URL's mechanisms need a token"),
        (lambda: Timeouts.of(-1), "--timeout must be a number of seconds above 0, not -1"),
        (lambda: Timeouts.of(0), "--timeout must be above 0"),
        (lambda: Rate.of("0/s"), "--rate: messages must be above 0"),
        (lambda: Rate.of("0 recipients/s"), "--rate: recipients must be above 0"),
    ],
)
def test_options_are_those_of_the_url(call: Callable[[], object], told: str) -> None:
    with pytest.raises((ValueError, ssl.SSLError, SMTPNotSupportedError, SMTPTimeoutError)) as caught:
        call()
    before, after = str(caught.value), for_operators(str(caught.value))
    assert told in after
    assert told not in before
    for word in ("ssl_context", "tls='", 'tls="', "starttls()", "pass "):
        assert word not in after


def test_every_word_is_said() -> None:
    """Those about loss are said by the transport, after a wait."""
    texts = (ASMTP / "transport" / "connection.py").read_text(encoding="utf-8")
    assert all(said in texts for said, _ in WORDS if said.startswith("with window"))


def test_what_became_of_a_message() -> None:
    envelope = Envelope("a@x.example", ["b@y.example"])
    error = SMTPNotSupportedError(f"no; {WORDS[0][0]}")
    delivery = FailedDelivery(None, envelope, "not_sent", None, error)
    (outcome,) = outcomes_of(delivery, envelope.recipients).values()
    assert str(outcome).startswith("not supported by the server: no; begin the URL with smtp+starttls://")


def test_the_name_of_a_relay_stays() -> None:
    assert for_operators(Relay("h").name) == "h:25"
