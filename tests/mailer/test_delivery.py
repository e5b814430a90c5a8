"""Receipts and deliveries: all that callers are told of a message, and what an exception tells of it."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

import asmtp
from asmtp import Delivery, FailedDelivery, Receipt, Reply, SentDelivery
from asmtp.mailer.delivery import own_copy, refusals, replies_of, state_of

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


def test_a_delivery_that_is_ok() -> None:
    receipt = Receipt({}, {}, {}, Reply(250, b""), "h:25", 1, 0.0, 0.0)
    delivery: Delivery[str] = SentDelivery("item", None, "sent", receipt)
    assert delivery.ok
    assert delivery.receipt.complete  # to a type checker it is there
    assert delivery.error is None
    assert isinstance(delivery, Delivery)


@pytest.mark.parametrize("state", ["refused", "not_sent", "in_doubt"])
def test_a_delivery_that_is_not(state: Any) -> None:
    delivery: Delivery[str] = FailedDelivery("item", None, state, None, ValueError("why"))
    assert not delivery.ok
    assert delivery.error.args == ("why",)
    assert delivery.receipt is None
    assert isinstance(delivery, Delivery)


def test_a_delivery_is_shown_by_the_name_that_callers_know() -> None:
    kind: Any = Delivery  # a class; to a type checker a union
    delivery = kind("item", None, "not_sent")
    assert repr(delivery) == "Delivery(envelope=None, state='not_sent', receipt=None, error=None)"
    assert kind.__name__ == "Delivery"
    assert pickle.loads(pickle.dumps(delivery)) == delivery


def test_refusals_are_replies() -> None:
    """Refusals are made Reply objects, also if the exception was made with tuples, as by users of smtplib."""
    found = refusals(asmtp.SMTPRecipientsRefused({A: (550, b"5.1.1 no"), B: LATER}))
    assert found == {A: (550, b"5.1.1 no"), B: LATER}
    assert [reply.enhanced for reply in found.values()] == ["5.1.1", "4.2.0"]


@pytest.mark.parametrize(
    ("met", "replies"),
    [
        (asmtp.SMTPRecipientsRefused({A: NO, B: LATER}), [NO, LATER]),
        (asmtp.SMTPDataError(550, b"5.1.1 no such user"), [NO]),
        (asmtp.SMTPDataError(550, "5.1.1 no such user"), [NO]),
        (GONE, []),
        (ValueError("no"), []),
    ],
    ids=repr,
)
def test_the_replies_of_an_error(met: Exception, replies: list[Reply]) -> None:
    assert replies_of(met) == replies


class Odd(asmtp.SMTPException):
    """An exception of the caller's, which cannot be copied."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} {second}")


@pytest.mark.parametrize(
    ("met", "kind"), [(error("in_doubt"), asmtp.SMTPServerDisconnected), (Odd("a", "b"), asmtp.SMTPException)]
)
def test_an_error_of_one_s_own(met: asmtp.SMTPException, kind: type[asmtp.SMTPException]) -> None:
    met.state = "in_doubt"
    met.__cause__ = cause = OSError("gone")
    told = own_copy(met)
    assert told is not met
    assert type(told) is kind
    assert (str(told), told.state) == (str(met), "in_doubt")
    assert told.__cause__ is (cause if kind is not asmtp.SMTPException else met)
