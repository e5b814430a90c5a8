"""When to try again, how fast to send, whom to leave alone: tables, on a clock that is a number."""

from __future__ import annotations

import math
import smtplib
from typing import Any

import pytest
from hypothesis import given, strategies as st

from asmtp import Reply, Retry, errors
from asmtp.mailer.policy import Backoff, is_transient
from asmtp.protocol.verdict import NotBegun

# ---- Retry: how long to wait -------------------------------------------------------------------


def waits(retry: Retry, chance: float = 0, elapsed: float = 0) -> list[float | None]:
    """What it says after the first try, the second, and so on, until it is over."""
    said = []
    for attempts in range(1, 100):
        said.append(retry.wait(attempts, elapsed, chance))
        if said[-1] is None:
            break
    return said


@pytest.mark.parametrize(
    ("retry", "chance", "expected"),
    [
        (Retry(), 0, [0.5, 1, None]),
        (Retry(), 1, [0.25, 0.5, None]),
        (Retry(), 0.5, [0.375, 0.75, None]),
        (Retry(attempts=1), 0, [None]),
        (Retry(attempts=2), 0, [0.5, None]),
        (Retry(attempts=9), 0, [0.5, 1, 2, 4, 8, 16, 30, 30, None]),
        (Retry(attempts=9), 1, [0.25, 0.5, 1, 2, 4, 8, 15, 15, None]),
        (Retry(attempts=4, initial=1, factor=3, maximum=5, jitter=0), 1, [1, 3, 5, None]),
        (Retry(attempts=4, factor=1), 0, [0.5, 0.5, 0.5, None]),
        (Retry(attempts=4, initial=8, factor=0.5), 0, [8, 4, 2, None]),
        (Retry(attempts=3, initial=50), 0, [30, 30, None]),
        (Retry(jitter=1), 1, [0, 0, None]),
        (Retry(jitter=1), 0, [0.5, 1, None]),
        (Retry(jitter=0), 0, [0.5, 1, None]),
        (Retry(jitter=0), 1, [0.5, 1, None]),
    ],
)
def test_waits(retry: Retry, chance: float, expected: list[float | None]) -> None:
    assert waits(retry, chance) == expected


@pytest.mark.parametrize("initial", [1, 0.5])
@pytest.mark.parametrize("factor", [2, 2.0, 1e308])
@pytest.mark.parametrize("attempts", [1023, 1024, 1025, 5000])
def test_however_often_it_was_tried(initial: float, factor: float, attempts: int) -> None:
    """2.0 ** 1024 is more than a float holds."""
    retry = Retry(attempts=10**6, initial=initial, factor=factor, within=None)
    assert retry.wait(attempts, 0, 0) == 30


def test_a_factor_that_shrinks_to_nothing() -> None:
    assert Retry(attempts=10**6, factor=0.5).wait(5000, 0, 0) == 0


@pytest.mark.parametrize(
    ("within", "elapsed", "chance", "expected"),
    [
        (60, 59.4, 0, 0.5),
        (60, 59.5, 0, 0.5),
        (60, 59.6, 0, None),
        (60, 59.6, 1, 0.25),  # the wait counts, as it is
        (60, 60, 0, None),
        (60, 1e9, 0, None),
        (0.5, 0, 0, 0.5),
        (0.49, 0, 0, None),
        (None, 1e9, 0, 0.5),
    ],
)
def test_within(within: float | None, elapsed: float, chance: float, expected: float | None) -> None:
    assert Retry(within=within).wait(1, elapsed, chance) == expected


numbers = st.floats(1e-6, 1e6)


@given(
    st.builds(Retry, attempts=st.integers(1, 20), within=st.none() | numbers, initial=numbers, factor=numbers,
              maximum=numbers, jitter=st.floats(0, 1)),
    st.integers(1, 25), st.floats(0, 1e6), st.floats(0, 1),
)  # fmt: skip
def test_a_wait_keeps_to_its_bounds(retry: Retry, attempts: int, elapsed: float, chance: float) -> None:
    wait = retry.wait(attempts, elapsed, chance)
    longest = retry.wait(attempts, 0, 0) if retry.within is None else None
    if wait is None:
        assert attempts >= retry.attempts or retry.within is not None
        return
    assert attempts < retry.attempts
    assert 0 <= wait <= retry.maximum
    assert retry.within is None or elapsed + wait <= retry.within
    if longest is not None:
        assert longest * (1 - retry.jitter) * (1 - 1e-9) <= wait <= longest


# ---- Retry: what is worth another try ----------------------------------------------------------


def with_state(error: errors.SMTPException, state: errors.DeliveryState) -> errors.SMTPException:
    error.state = state
    return error


def refused(**codes: int) -> errors.SMTPRecipientsRefused:
    return errors.SMTPRecipientsRefused({who: (code, b"no") for who, code in codes.items()})


OTHER = "what is not of ours"

# Of each class: what it may be, and whether a message that met it may fare better.
ERRORS: dict[str, list[tuple[Exception, bool]]] = {
    "SMTPException": [
        (errors.SMTPException("what"), False),
        (with_state(errors.SMTPException("no certificate"), "not_sent"), False),
    ],
    "SMTPStateError": [(with_state(errors.SMTPStateError("closed"), "not_sent"), False)],
    "SMTPNotSupportedError": [(with_state(errors.SMTPNotSupportedError("SMTPUTF8"), "not_sent"), False)],
    "SMTPServerDisconnected": [
        (with_state(errors.SMTPServerDisconnected("gone"), "not_sent"), True),
        (with_state(errors.SMTPServerDisconnected("gone"), "in_doubt"), False),
        (with_state(errors.SMTPServerDisconnected("gone"), "refused"), False),
        (errors.SMTPServerDisconnected("gone"), False),
    ],
    "SMTPTimeoutError": [
        (with_state(errors.SMTPTimeoutError("late"), "not_sent"), True),
        (with_state(errors.SMTPTimeoutError("late"), "in_doubt"), False),
    ],
    "SMTPProtocolError": [
        (with_state(errors.SMTPProtocolError(-1, b"what"), "not_sent"), True),
        (with_state(errors.SMTPProtocolError(-1, b"what"), "in_doubt"), False),
        (with_state(errors.SMTPProtocolError(450, b"twice"), "in_doubt"), False),
    ],
    "SMTPResponseException": [
        (errors.SMTPResponseException(399, b"what"), False),
        (errors.SMTPResponseException(400, b"later"), True),
        (errors.SMTPResponseException(421, b"bye"), True),
        (errors.SMTPResponseException(499, b"later"), True),
        (errors.SMTPResponseException(500, b"no"), False),
        (errors.SMTPResponseException(250, b"ok"), False),
        (errors.SMTPResponseException(-1, b""), False),
    ],
    "SMTPSenderRefused": [
        (errors.SMTPSenderRefused(451, b"later", "a@x.example"), True),
        (errors.SMTPSenderRefused(552, b"too large", "a@x.example"), False),
    ],
    "SMTPRecipientsRefused": [
        (refused(a=450), True),
        (refused(a=550), False),
        (refused(a=550, b=451), True),
        (refused(a=550, b=551), False),
        (refused(), False),
    ],
    "SMTPDataError": [
        (errors.SMTPDataError(451, b"later"), True),
        (errors.SMTPDataError(554, b"spam"), False),
    ],
    "SMTPConnectError": [
        (errors.SMTPConnectError(421, b"too many"), True),
        (errors.SMTPConnectError(554, b"not you"), False),
    ],
    "SMTPHeloError": [(errors.SMTPHeloError(421, b"busy"), True), (errors.SMTPHeloError(501, b"what"), False)],
    "SMTPAuthenticationError": [
        (errors.SMTPAuthenticationError(454, b"database"), True),
        (errors.SMTPAuthenticationError(535, b"wrong"), False),
    ],
    "NotBegun": [(NotBegun(Reply(503, b"not now")), False), (NotBegun(Reply(450, b"not now")), False)],
    OTHER: [
        (ValueError("address"), False),
        (UnicodeEncodeError("ascii", "é", 0, 1, "no"), False),
        (FileNotFoundError(2, "no file"), False),
        (ConnectionRefusedError(111, "no"), False),
        (smtplib.SMTPServerDisconnected("another library's"), False),
        (smtplib.SMTPResponseException(450, b"another library's"), False),
    ],
}

EACH = [(error, expected) for rows in ERRORS.values() for error, expected in rows]


def test_every_class_is_in_the_table() -> None:
    classes = {name for name in errors.__all__ if isinstance(getattr(errors, name), type)}
    assert set(ERRORS) == classes | {"NotBegun", OTHER}
    for name, rows in ERRORS.items():
        for error, _ in rows:
            assert name in (OTHER, type(error).__name__)


@pytest.mark.parametrize(("error", "expected"), EACH, ids=repr)
def test_what_is_transient(error: Exception, expected: bool) -> None:
    assert is_transient(error) is expected


@pytest.mark.parametrize(("error", "expected"), EACH, ids=repr)
def test_what_is_tried_again(error: Exception, expected: bool) -> None:
    doubtful = getattr(error, "state", None) == "in_doubt"
    assert Retry().delay(1, 0, error, 0) == (0.5 if expected else None)
    assert Retry(in_doubt=True).delay(1, 0, error, 0) == (0.5 if expected or doubtful else None)


def test_what_is_tried_again_is_not_tried_for_ever() -> None:
    error = with_state(errors.SMTPServerDisconnected("gone"), "in_doubt")
    assert Retry(in_doubt=True).delay(3, 0, error, 0) is None
    assert Retry(in_doubt=True).delay(1, 60, error, 0) is None
    assert Retry().delay(3, 0, errors.SMTPDataError(450, b"later"), 0) is None
    assert Retry().delay(2, 3, errors.SMTPDataError(450, b"later"), 1) == 0.5


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ({"attempts": 0}, ValueError),
        ({"attempts": -1}, ValueError),
        ({"attempts": 1.5}, ValueError),
        ({"attempts": True}, ValueError),
        ({"attempts": None}, ValueError),
        ({"within": 0}, ValueError),
        ({"within": -1}, ValueError),
        ({"within": math.inf}, ValueError),
        ({"within": math.nan}, ValueError),
        ({"within": "60"}, TypeError),
        ({"within": True}, TypeError),
        ({"initial": 0}, ValueError),
        ({"initial": None}, TypeError),
        ({"factor": 0}, ValueError),
        ({"factor": math.inf}, ValueError),
        ({"factor": None}, TypeError),
        ({"maximum": 0}, ValueError),
        ({"maximum": None}, TypeError),
        ({"jitter": -0.1}, ValueError),
        ({"jitter": "0.5"}, TypeError),
        ({"jitter": True}, TypeError),
        ({"in_doubt": "no"}, TypeError),
        ({"jitter": 1.1}, ValueError),
        ({"jitter": math.nan}, ValueError),
        ({"jitter": None}, TypeError),
    ],
    ids=str,
)
def test_values_that_retry_does_not_have(value: dict[str, Any], kind: type[Exception]) -> None:
    with pytest.raises(kind) as caught:
        Retry(**value)
    assert next(iter(value)) in str(caught.value)


# ---- Backoff -----------------------------------------------------------------------------------


def test_a_relay_is_left_alone_longer_each_time() -> None:
    backoff = Backoff()
    lengths = []
    for _ in range(12):
        backoff = backoff.failed(1000, 0)
        lengths.append(backoff.until - 1000)
    assert lengths == [1, 2, 4, 8, 16, 32, 60, 60, 60, 60, 60, 60]
    assert backoff.failures == 12


def test_a_backoff_is_left_to_chance() -> None:
    for failures, longest in ((0, 1), (3, 8), (50, 60), (10**6, 60)):
        assert Backoff(failures).failed(0, 0).until == longest
        assert Backoff(failures).failed(0, 0.5).until == longest * 0.75
        assert Backoff(failures).failed(0, 1).until == longest / 2


@pytest.mark.parametrize(("now", "expired"), [(0, False), (9.999, False), (10, True), (10.001, True), (1e9, True)])
def test_when_a_backoff_has_expired(now: float, expired: bool) -> None:
    assert Backoff(1, 10).expired(now) is expired


def test_a_relay_that_never_failed_is_not_left_alone() -> None:
    assert Backoff().expired(0)
    assert Backoff().failures == 0
