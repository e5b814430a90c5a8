"""Tables of when to try again, and what a reply says of the server, on a clock that is a number."""

from __future__ import annotations

import asyncio
import math
import smtplib
from typing import Any

import pytest
from hypothesis import given, strategies as st

from asmtp import Reply, Retry, errors
from asmtp.mailer.policy import (
    Backoff,
    Limit,
    any_throttling,
    is_answered,
    is_closing,
    is_crowded,
    is_throttling,
    is_transient,
    limit_of,
    says_too_many_recipients,
    too_many_recipients,
)
from asmtp.protocol.verdict import NotBegun

C, M, S, P = Limit.CONNECTIONS, Limit.MESSAGES, Limit.SENDER, Limit.RATE

CROWDED = "4.3.2 Concurrent connections limit exceeded. Visit https://aka.ms/concurrent_sending for more information."
THROTTLED = "454 Throttling failure: Maximum sending rate exceeded."
ENOUGH = "452 4.5.3 Session: Too many messages sent"

# ---- Retry: how long to wait -------------------------------------------------------------------


def waits(retry: Retry, chance: float = 0, elapsed: float = 0) -> list[float | None]:
    """Return the waits after the first try, the second, and so on, until there is no other."""
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
    """The wait is the longest if factor ** attempts is more than a float holds."""
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

# Errors of each class, and whether a message that met one may fare better at another try.
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
def test_what_says_too_many_connections(text: str, crowded: bool) -> None:
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


# ---- what a reply says: at MAIL of a new connection, of one that took messages, and anywhere else ------------

SAID = [
    (f"432 {CROWDED}", C, C, C),
    ("432 4.3.2 STOREDRV.ClientSubmit; sender thread limit exceeded", C, C, C),
    ("421 4.7.0 mx.example Error: too many connections from 192.0.2.1", C, C, C),
    ("451 too many sessions", C, C, C),
    ("550 5.7.1 too many connections", None, None, None),
    (THROTTLED, P, P, P),
    ("454 try again", P, P, P),
    ("454 4.7.0 Temporary failure", P, P, P),
    ("454 4.7.1 Relay access denied", None, S, None),
    ("421 4.4.2 Message submission rate for this client has exceeded the configured limit", P, P, P),
    ("421 4.7.0 [TSS04] Messages from 192.0.2.1 temporarily deferred due to unexpected volume", P, P, P),
    ("421 4.4.2 mx.example Error: timeout exceeded", None, None, None),
    (ENOUGH, None, M, None),
    ("451 too many messages in this session", None, M, None),
    ("450 Max 100 messages per connection", None, M, None),
    ("421 too many messages in this connection", None, None, None),
    ("452 4.5.3 Error: too many recipients", None, M, None),
    ("451 4.3.0 later", None, S, None),
    ("450 4.7.1 Greylisted", None, S, None),
    ("550 5.1.0 no", None, None, None),
]


@pytest.mark.parametrize(("line", "new", "used", "elsewhere"), SAID)
def test_what_a_reply_says(line: str, new: Limit | None, used: Limit | None, elsewhere: Limit | None) -> None:
    code, text = int(line[:3]), line[4:].encode()
    sender = errors.SMTPSenderRefused(code, text, "a@x.example")
    if line == ENOUGH:
        new = P  # "too many messages" is a rate, too, if none was taken
        elsewhere = P
    assert limit_of(sender, 0) is new
    assert limit_of(sender, 100) is used
    for taken in (0, 100):
        assert limit_of(errors.SMTPDataError(code, text), taken) is elsewhere
        recipients = {"b@y.example": Reply(250, b"ok"), "c@y.example": Reply(code, text)}
        assert limit_of(errors.SMTPRecipientsRefused(recipients), taken) is elsewhere


def test_what_one_of_several_says() -> None:
    replies = {"b@y.example": Reply(454, b"4.7.0 slow down"), "c@y.example": Reply(432, CROWDED.encode())}
    assert limit_of(errors.SMTPRecipientsRefused(replies), 0) is C


@pytest.mark.parametrize(
    ("text", "state", "taken", "expected"),
    [
        ("server closed the connection: 421 too many connections", "not_sent", 0, C),
        ("server closed the connection: 421 too many connections", "not_sent", 1, None),
        ("server closed the connection: 421 too many connections", "in_doubt", 0, None),
        ("Connection unexpectedly closed", "not_sent", 0, None),
    ],
)
def test_what_stood_behind_another(text: str, state: Any, taken: int, expected: Limit | None) -> None:
    error = errors.SMTPServerDisconnected(text)
    error.state = state
    assert limit_of(error, taken) is expected


def test_what_is_no_reply() -> None:
    assert limit_of(ValueError("too many connections"), 0) is None
    assert limit_of(asyncio.CancelledError(), 1) is None


REFUSED = with_state(errors.SMTPDataError(554, b"5.7.1 spam"), "refused")
GOING = with_state(errors.SMTPDataError(421, b"4.3.2 going down"), "refused")
TOO_FAST = with_state(errors.SMTPDataError(421, b"4.7.0 slow down"), "refused")
GONE = with_state(errors.SMTPServerDisconnected("gone"), "in_doubt")


@pytest.mark.parametrize(
    ("error", "answered", "closing"),
    [(REFUSED, True, False), (GOING, False, True), (TOO_FAST, True, False), (GONE, False, False)],
)
def test_what_ends_the_connection_is_no_answer(error: Exception, answered: bool, closing: bool) -> None:
    assert is_answered(error) is answered
    assert is_closing(error) is closing


# A reply to RCPT; whether it may mean that the transaction has too many recipients, and whether it says so.
TOO_MANY = """
452 4.5.3 anything | may, says
452 too many recipients | may, says
452 Too many RCPT | may, says
552 5.5.3 no more | may, says
552 too many recipients | may, says
452 try later | may
452 4.2.2 mailbox full: too many messages |
452 4.3.1 disk full |
552 mailbox full |
451 4.5.3 too many recipients | says
""".strip().splitlines()


@pytest.mark.parametrize("row", TOO_MANY)
def test_too_many_recipients(row: str) -> None:
    line, _, means = row.partition(" |")
    assert too_many_recipients(reply(line)) is ("may" in means)
    assert says_too_many_recipients(reply(line)) is ("says" in means)


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
