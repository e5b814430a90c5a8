"""What callers are told of a message, and what an exception tells of it."""

from __future__ import annotations

from typing import Any

import pytest

import asmtp
from asmtp import Delivery, Receipt, Reply
from asmtp.mailer.delivery import refusals, state_of

A, B, C = (f"{who}@y.example" for who in "abc")
OK = Reply(250, b"2.1.5 ok")
TAKEN = Reply(250, b"2.0.0 taken")
NO = Reply(550, b"5.1.1 no such user")
LATER = Reply(450, b"4.2.0 greylisted")
GONE = asmtp.SMTPServerDisconnected("gone")


def error(state: asmtp.errors.DeliveryState | None) -> asmtp.SMTPException:
    made = asmtp.SMTPServerDisconnected("gone")
    made.state = state
    return made


@pytest.mark.parametrize(
    ("refused", "failed", "complete"),
    [({}, {}, True), ({A: NO}, {}, False), ({}, {A: GONE}, False), ({A: NO}, {B: GONE}, False)],
)
def test_complete(refused: dict[str, Reply], failed: dict[str, Exception], complete: bool) -> None:
    assert Receipt({C: OK}, refused, failed, TAKEN, "r:25", 1, 0, 1).complete is complete


@pytest.mark.parametrize(
    ("met", "state"),
    [
        (None, "sent"),
        (error("not_sent"), "not_sent"),
        (error("in_doubt"), "in_doubt"),
        (error("refused"), "refused"),
        (error(None), "not_sent"),
        (ValueError("no"), "not_sent"),
        (KeyboardInterrupt(), "not_sent"),
    ],
    ids=repr,
)
def test_states(met: BaseException | None, state: str) -> None:
    assert state_of(met) == state


@pytest.mark.parametrize(
    ("state", "ok"), [("sent", True), ("refused", False), ("not_sent", False), ("in_doubt", False)]
)
def test_ok(state: Any, ok: bool) -> None:
    delivery = Delivery("item", None, state)
    assert delivery.ok is ok
    assert delivery.receipt is None
    assert delivery.error is None


def test_refusals_are_replies() -> None:
    """Whatever made the exception: smtplib's users know tuples."""
    found = refusals(asmtp.SMTPRecipientsRefused({A: (550, b"5.1.1 no"), B: LATER}))
    assert found == {A: (550, b"5.1.1 no"), B: LATER}
    assert [reply.enhanced for reply in found.values()] == ["5.1.1", "4.2.0"]
