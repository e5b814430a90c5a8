"""The state of a relay: how long it is left alone, and what it takes."""

from __future__ import annotations

import ssl

import pytest

import asmtp
from asmtp import Relay
from asmtp.mailer.relay_state import RelayState

NOW = 1000.0


def relay() -> RelayState:
    return RelayState(Relay("mail.example", 25))


# ---- whether it can be had ---------------------------------------------------------------------


def test_in_the_beginning_it_can_be_tried() -> None:
    made = relay()
    assert made.next_try(alone=False) <= 0
    assert made.backoff.expired(0)
    assert made.lasting is None


def test_it_rests_longer_each_time() -> None:
    made, now, lengths = relay(), NOW, []
    for _ in range(8):
        made.failed(now, OSError("refused"), 0)
        lengths.append(made.next_try(alone=False) - now)
        now += lengths[-1]
    assert lengths == [1, 2, 4, 8, 16, 32, 60, 60]


def test_where_there_is_no_other_it_is_tried_sooner() -> None:
    made = relay()
    for _ in range(20):
        made.backoff = made.backoff.failed(NOW - 60, 0)
    made.failed(NOW, OSError("refused"), 0)
    assert made.next_try(alone=False) == NOW + 60
    assert made.next_try(alone=True) == NOW + 0.5
    made.lasting = asmtp.SMTPAuthenticationError(535, b"no")  # with a wrong password, accounts are locked
    assert made.next_try(alone=True) == NOW + 60


def test_several_connections_that_fail_together_have_failed_once() -> None:
    made = relay()
    for _ in range(10):
        made.failed(NOW, OSError("refused"), 0)
    assert made.backoff.failures == 1
    assert made.next_try(alone=False) == NOW + 1


@pytest.mark.parametrize(
    ("error", "lasting"),
    [
        (OSError("refused"), False),
        (asmtp.SMTPConnectError(421, b"busy"), False),
        (asmtp.SMTPConnectError(554, b"no"), True),
        (asmtp.SMTPAuthenticationError(535, b"no"), True),
        (asmtp.SMTPAuthenticationError(454, b"later"), False),
        (asmtp.SMTPServerDisconnected("gone"), False),
        (ssl.SSLCertVerificationError("who is that"), True),
        (LookupError("no token"), True),
    ],
    ids=repr,
)
def test_what_will_not_pass(error: Exception, lasting: bool) -> None:
    made = relay()
    made.failed(NOW, error, 0)
    assert made.lasting is (error if lasting else None)


def test_what_is_told_is_everyone_s_own() -> None:
    made = relay()
    error = asmtp.SMTPConnectError(421, b"busy")
    first, second = made.no_connection(error), made.no_connection(error)
    assert first is not second
    assert first is not error
    assert isinstance(first, asmtp.SMTPConnectError)
    assert (first.smtp_code, first.smtp_error, first.state) == (421, b"busy", "not_sent")


def test_what_is_told_of_what_is_no_smtp() -> None:
    cause = OSError("Network is unreachable")
    told = relay().no_connection(cause)
    assert isinstance(told, asmtp.SMTPServerDisconnected)
    assert str(told) == "no connection to mail.example:25: Network is unreachable"
    assert told.__cause__ is cause
    assert told.state == "not_sent"


@pytest.mark.parametrize(("connect", "patience"), [(0.05, 10), (3, 10), (5, 15)])
def test_patience(connect: float, patience: float) -> None:
    made = relay()
    made.connect = connect
    assert made.patience == patience


# ---- what it takes -----------------------------------------------------------------------------


def test_it_takes_fewer_connections_for_a_while() -> None:
    made = relay()
    assert made.most_connections(8, NOW) == 8
    made.shrink(3, NOW)
    assert made.most_connections(8, NOW) == made.most_connections(8, NOW + 59) == 3
    assert made.most_connections(2, NOW) == 2
    assert made.most_connections(8, NOW + 60) == 8
    made.shrink(0, NOW)
    assert made.most_connections(8, NOW) == 1


@pytest.mark.parametrize(
    ("taken", "certain", "most"), [(4, True, 4), (4, False, None), (9, False, None), (10, False, 10), (0, True, 1)]
)
def test_recipients(taken: int, certain: bool, most: int | None) -> None:
    made = relay()
    assert made.most_recipients(NOW) is None
    made.crowded(taken, NOW, certain=certain)
    assert made.most_recipients(NOW) == made.most_recipients(NOW + 599) == most
    assert made.most_recipients(NOW + 600) is None


def test_messages_on_a_connection() -> None:
    """A number of messages is taken for a limit if the connection ended twice after as many."""
    made = relay()
    made.ended(100, NOW)
    assert made.most_messages(NOW) is None
    made.ended(7, NOW)
    made.ended(100, NOW)
    assert made.most_messages(NOW) is None
    made.ended(100, NOW)
    assert made.most_messages(NOW) == made.most_messages(NOW + 599) == 100
    assert made.most_messages(NOW + 600) is None
