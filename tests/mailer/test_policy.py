"""When to try again, how fast to send, whom to leave alone: tables, on a clock that is a number."""

from __future__ import annotations

import math
import random
import smtplib
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, strategies as st

from asmtp import Rate, Reply, Retry, errors
from asmtp.mailer.policy import Backoff, Pace, any_throttling, is_crowded, is_throttling, is_transient
from asmtp.protocol.transaction import NotBegun

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


# ---- what a server says when it is sent too much -----------------------------------------------

TOO_MUCH = """
421-4.7.0 Our system has detected an unusual rate of unsolicited mail originating from your IP address
421-4.7.28 Gmail has detected an unusual rate of unsolicited mail containing one of your URL domains
421-4.7.26 This email has been rate limited because it is unauthenticated
450-4.2.1 The user you are trying to contact is receiving mail at a rate that prevents additional messages
450 4.2.1 The user you are trying to contact is receiving mail too quickly. Please resend your message at a later time.
450 4.2.1 Peak SMTP relay limit exceeded for customer. This is a temporary error.
454 4.7.0 Too many login attempts, please try again later
451 4.7.650 The mail server [192.0.2.1] has been temporarily rate limited due to IP reputation
421 RP-001 The mail server IP connecting to Outlook.com server has exceeded the rate limit allowed
421 RP-003 The mail server IP connecting to Outlook.com server has exceeded the connection limit allowed
421 4.4.2 Message submission rate for this client has exceeded the configured limit
432 4.3.2 Concurrent connections limit exceeded. Visit https://aka.ms/concurrent_sending for more information
450 4.7.1 Error: too much mail from 192.0.2.1
450 4.7.1 Error: too many recipients from 192.0.2.1
421 4.7.0 mx.example Error: too many connections from 192.0.2.1
421 mx.example: Too many concurrent SMTP connections; please try again later.
450 4.7.1 Sender rate 120.0 / 1h exceeds the limit
421 4.7.0 [TSS04] Messages from 192.0.2.1 temporarily deferred due to unexpected volume or user complaints
450 User is receiving mail too quickly
454 Throttling failure: Maximum sending rate exceeded.
454 Throttling failure: Daily message quota exceeded.
452 Too many recipients received this hour
450 too frequent connects from 192.0.2.1, please try again later. (throttled)
452 4.3.2 Connection rate limit exceeded.
421 4.1.0 192.0.2.1 Throttled - try again later
421 Too many connections, slow down. OFR004_104
421 Too many errors from your ip (192.0.2.1)
450 Requested mail action not taken: mailbox unavailable. Mail send limit exceeded.
451 You've exceeded your messaging limits
""".strip().splitlines()

NOT_TOO_MUCH = """
450 4.2.0 <b@y.example>: Recipient address rejected: Greylisted, see http://postgrey.schweikert.ch/help/y.example.html
451 4.7.1 Greylisting in action, please come back later
450 4.7.1 <b@y.example>: Recipient address rejected: Greylisted for 5 minutes
451 Temporary local problem - please try later
421 4.7.1 [GL01] Message from (192.0.2.1) temporarily deferred
421 4.7.0 [TS01] Messages from 192.0.2.1 temporarily deferred due to user complaints
452 4.2.2 <b@y.example> Quota exceeded (mailbox for user is full)
452 4.2.2 The email account that you tried to reach is over quota
452 4.2.2 Mailbox full
450 4.2.2 mailbox over quota
452 4.5.3 Error: too many recipients
452 too many recipients
452 4.5.3 Your message has too many recipients.
452 4.5.3 Domain policy size per transaction exceeded, please try this recipient in a separate transaction
452 4.3.1 Insufficient system storage
452 4.3.4 Message size exceeds fixed limit
421 too many messages in this connection
421 4.7.0 mx.example Error: too many errors
421 4.3.0 Temporary System Problem. Try again later
451 4.3.0 Mail server temporarily rejected message
451 4.3.5 Server configuration error
450 4.1.8 <a@x.example>: Sender address rejected: Domain not found
450 4.7.1 Client host rejected: cannot find your reverse hostname
421 4.4.2 mx.example Error: timeout exceeded
450 4.1.1 <rate@y.example>: Recipient address rejected: unverified address
450 4.4.1 separate the accurate from the corporate
550 5.4.5 Daily user sending limit exceeded
550 5.7.1 rate limited
250 2.0.0 Ok: you are not sent too much, at this rate
""".strip().splitlines()


def reply(line: str) -> Reply:
    return Reply(int(line[:3]), line[4:].encode())


@pytest.mark.parametrize("line", TOO_MUCH)
def test_too_much(line: str) -> None:
    assert is_throttling(reply(line))
    assert is_throttling(reply(line[:4] + line[4:].upper()))
    assert not is_throttling(reply("5" + line[1:]))
    assert not is_throttling(reply("2" + line[1:]))


@pytest.mark.parametrize("line", NOT_TOO_MUCH)
def test_not_too_much(line: str) -> None:
    assert not is_throttling(reply(line))


@pytest.mark.parametrize(
    ("text", "crowded"),
    [
        ("server closed the connection: 421 4.7.0 mx.example Error: too many connections from 192.0.2.1", True),
        ("421 mx.example: Too many concurrent SMTP connections; please try again later.", True),
        ("421 mx.example Too many SMTP sessions for this host", True),
        ("421-RL000001 too many sessions open", True),
        ("432 4.3.2 Concurrent connections limit exceeded", True),
        ("421 4.3.2 The maximum number of concurrent server connections has exceeded a limit", True),
        ("421 RP-003 The mail server IP has exceeded the connection limit allowed", True),
        ("421 too many messages in this connection", False),
        ("421 Max message per connection reached, please establish new connection", False),
        ("421 4.7.0 mx.example Error: too many errors", False),
        ("421 4.4.2 mx.example Error: timeout exceeded", False),
        ("452 4.5.3 Error: too many recipients", False),
        ("Connection unexpectedly closed", False),
    ],
)
def test_too_many_connections(text: str, crowded: bool) -> None:
    assert is_crowded(text) is crowded
    assert is_crowded(text.upper()) is crowded


def test_text_over_several_lines() -> None:
    assert is_throttling(Reply(421, b"4.7.0 Try again later.\n4.7.0 You have sent\n4.7.0 too much"))
    assert not is_throttling(Reply(450, b"\xff\xfe \xe9"))


def test_one_of_several() -> None:
    fine, throttling = reply("450 4.2.0 Greylisted"), reply("450 4.7.1 Error: too much mail from 192.0.2.1")
    assert any_throttling([fine, throttling])
    assert not any_throttling([fine, fine])
    assert not any_throttling([])


# ---- Rate --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "messages", "recipients"),
    [
        ("100/s", 100, None),
        ("100 /s", 100, None),
        ("100 / s", 100, None),
        ("  100/s ", 100, None),
        ("100/sec", 100, None),
        ("100/S", 100, None),
        ("100 messages/s", 100, None),
        ("100 Messages / Sec", 100, None),
        ("0.5/s", 0.5, None),
        (".5/s", 0.5, None),
        ("6000/min", 100, None),
        ("6000/m", 100, None),
        ("3600/h", 1, None),
        ("3600/hour", 1, None),
        ("86400/d", 1, None),
        ("86400/day", 1, None),
        ("600/10min", 1, None),
        ("600/10 min", 1, None),
        ("30 / 0.5 min", 1, None),
        ("5/2s", 2.5, None),
        ("500 recipients/s", None, 500),
        ("36000 recipients/h", None, 10),
        ("100/s, 500 recipients/s", 100, 500),
        ("100/s,500 recipients/s", 100, 500),
        ("60 recipients/min, 1 messages/s", 1, 1),
    ],
)
def test_rates(text: str, messages: float | None, recipients: float | None) -> None:
    rate = Rate.of(text)
    assert rate == Rate(messages, recipients)
    assert rate.per == 1


def test_what_is_a_rate() -> None:
    rate = Rate(5, per=60)
    assert Rate.of(rate) is rate


@pytest.mark.parametrize(
    "text",
    [
        "", " ", ",", "100", "/s", "100/", "100/s,", ",100/s", "100/s 200/s", "100/s;200/s", "-1/s", "+1/s", "1e3/s",
        "inf/s", "nan/s", "1,000/s", "5./s", "100/week", "100/ms", "100/seconds", "100 letters/s", "100 message/s",
        "100//s", "100/s/s", "100 per second", "0/s", "0.0/s", "100/0s", "100/0.0min", "100/-1s", "٣/s", "100/s\n5/s",
        "100/s, 200/s", "100/s, 200 messages/s", "5 recipients/s, 6 recipients/s", "9" * 400 + "/s",
        "1/" + "9" * 400 + "d", "0." + "0" * 400 + "1/s",
    ],
)  # fmt: skip
def test_what_is_no_rate(text: str) -> None:
    with pytest.raises(ValueError, match="rate"):
        Rate.of(text)


@pytest.mark.parametrize("value", [100, 1.5, None, b"100/s", ["100/s"], True])
def test_what_is_no_rate_and_no_text(value: Any) -> None:
    with pytest.raises(TypeError, match="rate"):
        Rate.of(value)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ({}, ValueError),
        ({"per": 5}, ValueError),
        ({"messages": 0}, ValueError),
        ({"messages": -1}, ValueError),
        ({"messages": math.inf}, ValueError),
        ({"messages": math.nan}, ValueError),
        ({"messages": "100"}, TypeError),
        ({"messages": True}, TypeError),
        ({"recipients": 0}, ValueError),
        ({"messages": 1, "recipients": 0}, ValueError),
        ({"messages": 1, "per": 0}, ValueError),
        ({"messages": 1, "per": math.inf}, ValueError),
        ({"messages": 1, "per": "s"}, TypeError),
        ({"messages": 1, "per": None}, TypeError),
    ],
    ids=str,
)
def test_values_that_rate_does_not_have(value: dict[str, Any], kind: type[Exception]) -> None:
    with pytest.raises(kind, match="rate"):
        Rate(**value)


# ---- Pace: what goes when ----------------------------------------------------------------------

TOLERANCE = 0.1  # seconds' worth that may go at once
NO_MORE = 1e-9  # of a second: floats


def sending(pace: Pace, until: float, recipients: int = 1) -> Iterator[float]:
    """The times at which messages go, if there are always some that wait."""
    now = 0.0
    while True:
        now += pace.wait(now)
        if now > until:
            break
        assert pace.wait(now) <= NO_MORE
        yield now
        pace = pace.sent(now, recipients)


def times(rate: Rate, until: float, recipients: int = 1) -> list[float]:
    return list(sending(Pace(rate), until, recipients))


@pytest.mark.parametrize(
    ("rate", "recipients", "each"),
    [
        (Rate(1), 1, 1),
        (Rate(5), 1, 0.2),
        (Rate(100), 1, 0.01),
        (Rate(100), 7, 0.01),
        (Rate(1, per=60), 1, 60),
        (Rate(6000, per=60), 1, 0.01),
        (Rate(recipients=10), 1, 0.1),
        (Rate(recipients=10), 4, 0.4),
        (Rate(10, 100), 4, 0.1),
        (Rate(10, 100), 20, 0.2),
        (Rate(0.5), 1, 2),
    ],
)
def test_each_message_has_its_time(rate: Rate, recipients: int, each: float) -> None:
    """The n-th goes n times `each` behind the first, but for the tolerance."""
    sent = times(rate, 50 * each, recipients)
    assert sent == pytest.approx([max(0, n * each - TOLERANCE) for n in range(len(sent))])
    assert len(sent) >= 51


@pytest.mark.parametrize("count", [1, 2, 10, 100, 1000])
def test_exactly_so_many(count: int) -> None:
    """In the time of m messages behind the first, m go: the one that is the m-th, and not a moment earlier."""
    pace = Pace(Rate(count, per=100))
    for _ in range(count):
        now = max(0.0, pace.messages_at - TOLERANCE)
        pace = pace.sent(now, 1)
    # So many have gone in 100 seconds (and the first at 0).
    due = 100 - TOLERANCE
    assert pace.wait(due - 0.01) == pytest.approx(0.01)  # m - 1 more would be one too many
    assert pace.wait(due) == pytest.approx(0)
    assert pace.wait(due + 0.01) == 0
    after = pace.sent(due, 1)
    assert after.wait(due) == pytest.approx(100 / count)


@pytest.mark.parametrize(("per_second", "burst"), [(1, 1), (8, 1), (16, 2), (32, 4), (1024, 103)])
def test_what_goes_at_once(per_second: int, burst: int) -> None:
    assert times(Rate(per_second), 0) == [0] * burst


def test_time_that_was_not_used_is_lost() -> None:
    """A pause is not made up for: behind it goes what goes at the beginning."""
    pace = Pace(Rate(100))
    for now in (0.0, 1000.0, 5000.0):
        burst = 0
        while not pace.wait(now):
            pace = pace.sent(now, 1)
            burst += 1
        assert burst == pytest.approx(11, abs=1)
        assert pace.wait(now + 0.2) == 0


def test_more_recipients_than_the_rate() -> None:
    """It goes, and the next waits so much the longer."""
    pace = Pace(Rate(recipients=10))
    assert pace.wait(0) == 0
    pace = pace.sent(0, 1000)
    assert pace.wait(0) == pytest.approx(100 - TOLERANCE)


def test_a_pace_is_a_value() -> None:
    pace = Pace(Rate(1))
    assert pace.sent(0, 1).wait(0) > 0
    assert pace.wait(0) == 0
    assert pace.throttled(0).factor(0) == 0.5
    assert pace.factor(0) == 1


# ---- Pace: a server that is sent too much ------------------------------------------------------


def test_throttled_it_is_half_as_fast() -> None:
    pace = Pace(Rate(10)).throttled(100)
    assert pace.factor(100) == 0.5
    assert pace.sent(100, 1).wait(100) == pytest.approx(0.2 - TOLERANCE)
    assert Pace(Rate(10)).sent(100, 1).wait(100) == pytest.approx(0.1 - TOLERANCE)
    both = Pace(Rate(10, 10)).throttled(100)
    assert both.sent(100, 5).wait(100) == pytest.approx(1 - TOLERANCE)


@pytest.mark.parametrize("begin", [0.0, 0.5, 1000.0])
def test_replies_that_say_the_same_count_once(begin: float) -> None:
    pace = Pace(Rate(10)).throttled(begin)
    for later in (0, 0.1, 0.99):
        assert pace.throttled(begin + later) == pace
    again = pace.throttled(begin + 1)
    assert again.factor(begin + 1) == pytest.approx((0.5 + 1 / 60) / 2)


def test_it_is_never_stopped() -> None:
    pace = Pace(Rate(64))
    factors = []
    for second in range(100):
        pace = pace.throttled(second)
        factors.append(pace.factor(second))
        assert pace.factor(second) >= 1 / 64
        assert pace.sent(second, 1).wait(second) <= 1
    assert factors[:2] == [0.5, pytest.approx((0.5 + 1 / 60) / 2)]
    assert min(factors) < 0.03


@pytest.mark.parametrize(
    ("later", "factor"), [(0, 0.5), (1, 0.5 + 1 / 60), (15, 0.75), (29, 0.5 + 29 / 60), (30, 1), (31, 1), (1e9, 1)]
)
def test_it_recovers(later: float, factor: float) -> None:
    pace = Pace(Rate(10)).throttled(1000)
    assert pace.factor(1000 + later) == pytest.approx(factor)
    assert pace.factor(1000 + later) <= 1


def test_from_nothing_to_everything_in_a_minute() -> None:
    pace = Pace(Rate(10))
    for tenth in range(200):
        pace = pace.throttled(tenth / 10 + tenth)
    now = pace.changed
    assert pace.factor(now) < 0.05
    assert pace.factor(now + 57) < 1
    assert pace.factor(now + 60) == 1


# ---- Pace: the sum -----------------------------------------------------------------------------


def most_in_any_window(sent: list[tuple[float, int]], rate: float, tolerance: float) -> float:
    """How much over `rate` times the time, at most: for each stretch from one message to another."""
    worst = 0.0
    least = math.inf  # of what was sent before a message, less what might have been: the best place to begin
    total = 0
    for now, amount in sent:
        least = min(least, total - rate * now)
        total += amount
        worst = max(worst, total - rate * now - least - rate * tolerance)
    return worst


@pytest.mark.parametrize("seed", range(8))
def test_ten_minutes(seed: int) -> None:
    """Whatever comes and whenever, no stretch of time has more than its rate, the tolerance, and one message."""
    chance = random.Random(seed)
    rate = Rate(chance.choice([0.7, 3, 20]), chance.choice([None, 5, 50]))
    pace = Pace(rate)
    now = 0.0
    sent: list[tuple[float, int]] = []
    while now < 600:
        if chance.random() < 0.02:
            now += chance.expovariate(0.1)  # nothing to do
        if chance.random() < 0.005:
            pace = pace.throttled(now)
        now += pace.wait(now)
        recipients = chance.choice([1, 1, 1, 2, 30])
        pace = pace.sent(now, recipients)
        sent.append((now, recipients))
    assert rate.messages is not None
    assert most_in_any_window([(now, 1) for now, _ in sent], rate.messages, TOLERANCE) <= 1 + 1e-6
    if rate.recipients is not None:
        # The last one of a stretch goes when the time has come for its first recipient.
        assert most_in_any_window(sent, rate.recipients, TOLERANCE) <= 30 + 1e-6


@pytest.mark.parametrize("rate", [Rate(3), Rate(20), Rate(recipients=6), Rate(4, 100), Rate(100, per=60)])
def test_ten_minutes_are_used(rate: Rate) -> None:
    """Where there is always something to send, the rate is reached."""
    recipients = 2
    sent = times(rate, 600, recipients)
    fastest = min((rate.messages or math.inf), (rate.recipients or math.inf) / recipients) / rate.per
    assert len(sent) == pytest.approx(600 * fastest, abs=fastest * TOLERANCE + 2)


def test_ten_minutes_throttled_all_the_time() -> None:
    """It is slowed down, and never stops."""
    pace = Pace(Rate(10))
    now = 0.0
    count = 0
    while now < 600:
        now += pace.wait(now)
        pace = pace.sent(now, 1).throttled(now)
        count += 1
    assert 100 < count < 600


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
