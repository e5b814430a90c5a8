"""Tables of rates: when each message goes, and what a server changes that is sent too much."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from typing import Any

import pytest

from asmtp import Rate
from asmtp.mailer.rate import AdaptiveRateLimiter, RateLimiter, RateMeter

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


# ---- RateLimiter: what goes when ----------------------------------------------------------------------

TOLERANCE = 0.1  # seconds' worth that may go at once
NO_MORE = 1e-9  # of a second: floats


def sending(limiter: RateLimiter, until: float, recipients: int = 1) -> Iterator[float]:
    """Return the times at which messages go, if there are always some that wait."""
    now = 0.0
    while True:
        now += limiter.wait(now)
        if now > until:
            break
        assert limiter.wait(now) <= NO_MORE
        yield now
        limiter = limiter.sent(now, recipients)


def times(rate: Rate, until: float, recipients: int = 1) -> list[float]:
    return list(sending(RateLimiter(rate), until, recipients))


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
    """The n-th message goes n times `each` behind the first, less the tolerance."""
    sent = times(rate, 50 * each, recipients)
    assert sent == pytest.approx([max(0, n * each - TOLERANCE) for n in range(len(sent))])
    assert len(sent) >= 51


@pytest.mark.parametrize("count", [1, 2, 10, 100, 1000])
def test_exactly_so_many(count: int) -> None:
    """In the time of m messages, m go behind the first: the m-th at its end, and not a moment earlier."""
    limiter = RateLimiter(Rate(count, per=100))
    for _ in range(count):
        now = max(0.0, limiter.messages_at - TOLERANCE)
        limiter = limiter.sent(now, 1)
    # So many have gone in 100 seconds (and the first at 0).
    due = 100 - TOLERANCE
    assert limiter.wait(due - 0.01) == pytest.approx(0.01)  # m - 1 more would be one too many
    assert limiter.wait(due) == pytest.approx(0)
    assert limiter.wait(due + 0.01) == 0
    after = limiter.sent(due, 1)
    assert after.wait(due) == pytest.approx(100 / count)


@pytest.mark.parametrize(("per_second", "burst"), [(1, 1), (8, 1), (16, 2), (32, 4), (1024, 103)])
def test_what_goes_at_once(per_second: int, burst: int) -> None:
    assert times(Rate(per_second), 0) == [0] * burst


def test_time_that_was_not_used_is_lost() -> None:
    """A pause is not made up for: as many messages go behind it as at the beginning."""
    limiter = RateLimiter(Rate(100))
    for now in (0.0, 1000.0, 5000.0):
        burst = 0
        while not limiter.wait(now):
            limiter = limiter.sent(now, 1)
            burst += 1
        assert burst == pytest.approx(11, abs=1)
        assert limiter.wait(now + 0.2) == 0


def test_more_recipients_than_the_rate() -> None:
    """The message goes, and the next waits so much the longer."""
    limiter = RateLimiter(Rate(recipients=10))
    assert limiter.wait(0) == 0
    limiter = limiter.sent(0, 1000)
    assert limiter.wait(0) == pytest.approx(100 - TOLERANCE)


def test_a_limiter_is_a_value() -> None:
    limiter = RateLimiter(Rate(1))
    assert limiter.sent(0, 1).wait(0) > 0
    assert limiter.wait(0) == 0
    assert limiter.throttled(0).factor(0) == 0.5
    assert limiter.factor(0) == 1


# ---- RateLimiter: a server that is sent too much ------------------------------------------------------


def test_throttled_it_is_half_as_fast() -> None:
    limiter = RateLimiter(Rate(10)).throttled(100)
    assert limiter.factor(100) == 0.5
    assert limiter.sent(100, 1).wait(100) == pytest.approx(0.2 - TOLERANCE)
    assert RateLimiter(Rate(10)).sent(100, 1).wait(100) == pytest.approx(0.1 - TOLERANCE)
    both = RateLimiter(Rate(10, 10)).throttled(100)
    assert both.sent(100, 5).wait(100) == pytest.approx(1 - TOLERANCE)


@pytest.mark.parametrize("begin", [0.0, 0.5, 1000.0])
def test_replies_that_say_the_same_count_once(begin: float) -> None:
    limiter = RateLimiter(Rate(10)).throttled(begin)
    for later in (0, 0.1, 0.99):
        assert limiter.throttled(begin + later) == limiter
    again = limiter.throttled(begin + 1)
    assert again.factor(begin + 1) == pytest.approx((0.5 + 1 / 60) / 2)


def test_it_is_never_stopped() -> None:
    limiter = RateLimiter(Rate(64))
    factors = []
    for second in range(100):
        limiter = limiter.throttled(second)
        factors.append(limiter.factor(second))
        assert limiter.factor(second) >= 1 / 64
        assert limiter.sent(second, 1).wait(second) <= 1
    assert factors[:2] == [0.5, pytest.approx((0.5 + 1 / 60) / 2)]
    assert min(factors) < 0.03


@pytest.mark.parametrize(
    ("later", "factor"), [(0, 0.5), (1, 0.5 + 1 / 60), (15, 0.75), (29, 0.5 + 29 / 60), (30, 1), (31, 1), (1e9, 1)]
)
def test_it_recovers(later: float, factor: float) -> None:
    limiter = RateLimiter(Rate(10)).throttled(1000)
    assert limiter.factor(1000 + later) == pytest.approx(factor)
    assert limiter.factor(1000 + later) <= 1


def test_from_nothing_to_everything_in_a_minute() -> None:
    limiter = RateLimiter(Rate(10))
    for tenth in range(200):
        limiter = limiter.throttled(tenth / 10 + tenth)
    now = limiter.changed
    assert limiter.factor(now) < 0.05
    assert limiter.factor(now + 57) < 1
    assert limiter.factor(now + 60) == 1


# ---- RateLimiter: the sum -----------------------------------------------------------------------------


def most_in_any_window(sent: list[tuple[float, int]], rate: float, tolerance: float) -> float:
    """Return the most by which any stretch from one message to another is over `rate` times its length."""
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
    """Whichever messages come, no stretch of time has more than its rate, the tolerance, and one message."""
    chance = random.Random(seed)
    rate = Rate(chance.choice([0.7, 3, 20]), chance.choice([None, 5, 50]))
    limiter = RateLimiter(rate)
    now = 0.0
    sent: list[tuple[float, int]] = []
    while now < 600:
        if chance.random() < 0.02:
            now += chance.expovariate(0.1)  # nothing to do
        if chance.random() < 0.005:
            limiter = limiter.throttled(now)
        now += limiter.wait(now)
        recipients = chance.choice([1, 1, 1, 2, 30])
        limiter = limiter.sent(now, recipients)
        sent.append((now, recipients))
    assert rate.messages is not None
    assert most_in_any_window([(now, 1) for now, _ in sent], rate.messages, TOLERANCE) <= 1 + 1e-6
    if rate.recipients is not None:
        # The last one of a stretch goes when the time has come for its first recipient.
        assert most_in_any_window(sent, rate.recipients, TOLERANCE) <= 30 + 1e-6


@pytest.mark.parametrize("rate", [Rate(3), Rate(20), Rate(recipients=6), Rate(4, 100), Rate(100, per=60)])
def test_ten_minutes_are_used(rate: Rate) -> None:
    """If there is always something to send, the rate is reached."""
    recipients = 2
    sent = times(rate, 600, recipients)
    fastest = min((rate.messages or math.inf), (rate.recipients or math.inf) / recipients) / rate.per
    assert len(sent) == pytest.approx(600 * fastest, abs=fastest * TOLERANCE + 2)


def test_ten_minutes_throttled_all_the_time() -> None:
    """The mailer slows down, and never stops."""
    limiter = RateLimiter(Rate(10))
    now = 0.0
    count = 0
    while now < 600:
        now += limiter.wait(now)
        limiter = limiter.sent(now, 1).throttled(now)
        count += 1
    assert 100 < count < 600


# ---- how much was taken ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("taken", "now", "rate"),
    [
        ([], 10, 0),
        ([(10, 14)], 10, 14),
        ([(10, 7), (10.5, 7)], 10.9, 14),
        ([(10, 14)], 11.5, 14),
        ([(10, 14)], 12, 0),
        ([(10, 14), (11, 3)], 11, 14),
        ([(10, 3), (11, 14)], 11.5, 14),
        ([(10, 14), (11, 3)], 12.5, 3),
        ([(10, 14), (13, 3)], 13, 3),
    ],
)
def test_the_meter(taken: list[tuple[float, int]], now: float, rate: int) -> None:
    meter = RateMeter()
    for when, count in taken:
        meter.took(when, count)
        assert meter.last == when
    assert meter.rate(now) == rate


# ---- a rate that nobody gave -------------------------------------------------------------------


def test_first_nothing_then_one_then_the_others() -> None:
    limiter = AdaptiveRateLimiter.of(20, 100)
    assert limiter.rate == 18
    assert limiter.wait(100) == 1
    assert limiter.wait(101) == 0
    tried = limiter.sent(101, 5)
    assert tried.wait(101) == 1
    assert tried.throttled(101.1, 0) == tried  # it is known
    going = tried.took(101.5)
    assert going.wait(101.5) == 0
    assert going.took(101.5) == going
    count = 0
    while not going.wait(102.5):
        going = going.sent(102.5, 1)
        count += 1
    assert count == pytest.approx(0.1 * 18, abs=1)  # what was not used is no credit


def test_what_is_found_is_at_least_one_a_second() -> None:
    assert AdaptiveRateLimiter.of(1, 100).rate == 1


def test_where_nothing_was_taken_nothing_is_known() -> None:
    limiter = AdaptiveRateLimiter.of(0, 100).sent(101, 1).took(101.5)
    for _ in range(1000):
        limiter = limiter.sent(101.5, 1)
    assert limiter.wait(101.5) == 0


def test_it_doubles_and_ends() -> None:
    limiter = AdaptiveRateLimiter.of(20, 100).took(101)
    for later, factor in ((0, 1), (30, 2), (60, 4), (6000, 2**20)):
        now = 100 + later
        assert limiter.sent(now, 1).at == pytest.approx(max(limiter.at, now - 0.1) + 1 / (18 * factor))
    assert not limiter.expired(699)
    assert limiter.expired(700)


def test_told_again() -> None:
    """The rate is that of the messages taken meanwhile or, if none was, that from before."""
    limiter = AdaptiveRateLimiter.of(20, 100).sent(101, 1).took(101)
    assert limiter.throttled(105, 10) == AdaptiveRateLimiter.of(10, 105)
    assert limiter.throttled(105, 0) == AdaptiveRateLimiter(18, 105, 106)


def test_blocked() -> None:
    limiter = AdaptiveRateLimiter.of(20, 100)
    assert not limiter.blocked(99)  # no message has gone since
    assert limiter.sent(101, 1).blocked(99)
    assert not limiter.sent(101, 1).blocked(100.5)
    assert not limiter.sent(101, 1).took(101).blocked(99)
