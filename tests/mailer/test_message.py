"""The account of a message: the outcome of each recipient, and the receipt or error in the end."""

from __future__ import annotations

import asyncio
import copy
import io
from collections.abc import AsyncIterator
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

import asmtp
from asmtp import Envelope, Reply
from asmtp.client.content import WHOLE
from asmtp.mailer.delivery import state_of
from asmtp.mailer.message import DeliveryRequest, QueuedMessage, RequestState, envelope_of, is_heavy
from asmtp.protocol.message import flatten
from asmtp.protocol.verdict import Outcome

A, B, C, D = (f"{who}@y.example" for who in "abcd")
OK = Reply(250, b"2.1.5 ok")
TAKEN = Reply(250, b"2.0.0 taken")
NO = Reply(550, b"5.1.1 no such user")
LATER = Reply(450, b"4.2.0 greylisted")


def queued(*recipients: str, content: Any = b"hello\r\n", item: Any = "the item") -> QueuedMessage:
    envelope = Envelope("me@x.example", recipients or [A], content=content)
    return QueuedMessage(item, envelope, lambda queued: None, 1000.0)


def outcome(*accepted: str, reply: Reply = TAKEN, **refused: Reply) -> Outcome:
    no = {f"{who}@y.example": why for who, why in refused.items()}
    return Outcome(dict.fromkeys(accepted, OK), no, reply)


def error(
    state: asmtp.errors.DeliveryState | None, kind: type[asmtp.SMTPException] = asmtp.SMTPServerDisconnected
) -> Any:
    made = kind("gone")
    made.state = state
    return made


def all_refused(**replies: Reply) -> asmtp.SMTPRecipientsRefused:
    made = asmtp.SMTPRecipientsRefused({f"{who}@y.example": why for who, why in replies.items()})
    made.state = "refused"
    return made


# ---- what is told in the end -------------------------------------------------------------------

NOT_SENT, IN_DOUBT, UNKNOWN = error("not_sent"), error("in_doubt"), error(None)
LATE = error("not_sent", asmtp.SMTPTimeoutError)
SPAM = asmtp.SMTPDataError(554, b"5.7.1 spam")
SPAM.state = "refused"
WRONG = ValueError("a wrong address")
FULL = asmtp.SMTPSenderRefused(452, b"4.3.1 full", "me@x.example")
FULL.state = "refused"

REFUSED = asmtp.SMTPRecipientsRefused

# The outcomes of its transactions: recipients that were taken (in capitals: refused), or an error and for whom.
# Then: state, accepted, refused, failed; which error.
CASES: dict[str, tuple[list[Any], tuple[str, str, str, str], Exception | type[Exception] | None]] = {
    "all": (["abc"], ("sent", "abc", "", ""), None),
    "all but one": (["abC"], ("sent", "ab", "c", ""), None),
    "all in two parts": (["ab", "c"], ("sent", "abc", "", ""), None),
    "two parts, a refusal in each": (["aB", "cD"], ("sent", "ac", "bd", ""), None),
    "a request is refused": (["ab", (all_refused(c=NO), "c")], ("sent", "ab", "c", ""), None),
    "the first request is refused": ([(all_refused(a=NO), "a"), "bc"], ("sent", "bc", "a", ""), None),
    "a request comes to nothing": (["ab", (NOT_SENT, "c")], ("sent", "ab", "", "c"), None),
    "a request's content is refused": (["ab", (SPAM, "c")], ("sent", "ab", "", "c"), None),
    "a request cannot be sent at all": (["ab", (WRONG, "c")], ("sent", "ab", "", "c"), None),
    "a request is in doubt": (["ab", (IN_DOUBT, "c")], ("in_doubt", "ab", "", "c"), IN_DOUBT),
    "in doubt first": ([(IN_DOUBT, "ab"), "c"], ("in_doubt", "c", "", "ab"), IN_DOUBT),
    "in doubt, refused, sent": (
        [(IN_DOUBT, "a"), (all_refused(b=NO), "b"), "c"], ("in_doubt", "c", "b", "a"), IN_DOUBT,
    ),
    "in doubt and not sent, one sent": ([(NOT_SENT, "a"), (IN_DOUBT, "b"), "c"], ("in_doubt", "c", "", "ab"), IN_DOUBT),
    "nothing but a loss": ([(NOT_SENT, "abc")], ("not_sent", "", "", "abc"), NOT_SENT),
    "nothing but doubt": ([(IN_DOUBT, "abc")], ("in_doubt", "", "", "abc"), IN_DOUBT),
    "doubt is told rather than a loss": ([(NOT_SENT, "a"), (IN_DOUBT, "bc")], ("in_doubt", "", "", "abc"), IN_DOUBT),
    "or than a refusal": ([(IN_DOUBT, "a"), (SPAM, "bc")], ("in_doubt", "", "", "abc"), IN_DOUBT),
    "the first of two losses": ([(NOT_SENT, "a"), (LATE, "bc")], ("not_sent", "", "", "abc"), NOT_SENT),
    "all refused": ([(all_refused(a=NO, b=LATER, c=NO), "abc")], ("refused", "", "abc", ""), REFUSED),
    "all refused, in two parts": (
        [(all_refused(a=NO), "a"), (all_refused(b=LATER), "b")], ("refused", "", "ab", ""), REFUSED,
    ),
    "the content refused": ([(SPAM, "abc")], ("refused", "", "", "abc"), SPAM),
    "the sender refused": ([(FULL, "abc")], ("refused", "", "", "abc"), FULL),
    "one refused, one not sent": ([(all_refused(a=NO), "a"), (NOT_SENT, "b")], ("not_sent", "", "a", "b"), NOT_SENT),
    "one refused, one in doubt": ([(all_refused(a=NO), "a"), (IN_DOUBT, "b")], ("in_doubt", "", "a", "b"), IN_DOUBT),
    "an error that does not say": ([(UNKNOWN, "abc")], ("not_sent", "", "", "abc"), UNKNOWN),
    "a mistake of the caller's": ([(WRONG, "abc")], ("not_sent", "", "", "abc"), WRONG),
    "421 among the replies": ([(all_refused(b=NO, c=LATER), "abc")], ("refused", "", "bc", "a"), REFUSED),
}  # fmt: skip


def addresses(letters: str) -> list[str]:
    return [f"{letter}@y.example" for letter in letters]


def arrived(steps: list[Any]) -> QueuedMessage:
    made = queued(A, B, C, D)
    for number, step in enumerate(steps):
        if isinstance(step, str):
            taken = [letter for letter in step if letter.islower()]
            no = {letter.lower(): NO for letter in step if letter.isupper()}
            made.took(outcome(*addresses("".join(taken)), **no, reply=Reply(250, b"%d" % number)), f"relay{number}:25")
            made.refused.update({f"{who}@y.example": why for who, why in no.items()})  # as the mailer does
        else:
            made.failed_for(addresses(step[1]), copy.copy(step[0]))
    return made


@pytest.mark.parametrize("case", CASES)
def test_what_is_told(case: str) -> None:
    steps, (state, accepted, refused, failed), expected = CASES[case]
    made = arrived(steps)
    made.attempts = 3
    delivery = made.delivery(2000.0)
    assert delivery.item == "the item"
    assert delivery.envelope is made.envelope
    assert delivery.state == state
    assert delivery.ok is (state == "sent")
    receipt, told = delivery.receipt, delivery.error
    if expected is None:
        assert told is None
    elif isinstance(expected, type):
        assert type(told) is expected
    else:
        assert (type(told), str(told), state_of(told)) == (type(expected), str(expected), state_of(expected))
    if accepted:
        assert receipt is not None
        assert dict.fromkeys(addresses(accepted), OK) == receipt.accepted
        assert dict.fromkeys(addresses(refused), NO) == receipt.refused
        assert list(receipt.failed) == addresses(failed)
        assert receipt.complete is (refused + failed == "")
        last = max(number for number, step in enumerate(steps) if isinstance(step, str))
        assert (receipt.reply, receipt.relay) == (Reply(250, b"%d" % last), f"relay{last}:25")
        assert (receipt.attempts, receipt.started, receipt.finished) == (3, 1000.0, 2000.0)
    else:
        assert receipt is None
    if isinstance(told, asmtp.SMTPException):
        assert told.receipt is receipt
        assert told.state == state
    if isinstance(told, asmtp.SMTPRecipientsRefused):
        assert set(told.recipients) == set(addresses(refused))
        assert told.state == "refused"


@pytest.mark.parametrize("case", CASES)
def test_everyone_is_accounted_for_once(case: str) -> None:
    steps, (_, accepted, refused, failed), _ = CASES[case]
    made = arrived(steps)
    account = [*made.accepted, *made.refused, *made.failed]
    assert sorted(account) == sorted(addresses(accepted + refused + failed))


@pytest.mark.parametrize("case", CASES)
def test_asked_twice_it_says_the_same(case: str) -> None:
    made = arrived(CASES[case][0])
    (first, why), (second, why_again) = made.verdict(2000.0), made.verdict(2000.0)
    assert first == second
    assert (type(why), str(why), state_of(why)) == (type(why_again), str(why_again), state_of(why_again))


def test_each_message_has_an_error_of_its_own() -> None:
    """Two messages that met the same exception have a copy each: neither has the other's receipt."""
    same = error("in_doubt")
    first, second = queued(A, B), queued(A, B)
    first.took(outcome(A), "r:25")
    first.failed_for([B], same)
    second.failed_for([A, B], same)
    receipt, told = first.verdict(0)
    assert told is not None
    assert told is not same
    assert told.receipt is receipt is not None  # type: ignore[attr-defined]
    _, other = second.verdict(0)
    assert other is not None
    assert other.receipt is None  # type: ignore[attr-defined]
    assert same.receipt is None


@pytest.mark.parametrize(
    "error",
    [
        asmtp.SMTPException("no"),
        asmtp.SMTPServerDisconnected("gone"),
        asmtp.SMTPTimeoutError("late"),
        asmtp.SMTPProtocolError(-1, b"what"),
        asmtp.SMTPDataError(554, b"spam"),
        asmtp.SMTPSenderRefused(550, b"no", "me@x.example"),
    ],
    ids=repr,
)
def test_an_error_told_beside_refusals_is_as_it_was(error: Any) -> None:
    error.state = "in_doubt"
    error.__cause__ = OSError("why")
    made = queued(A, B)
    made.failed_for([A], all_refused(a=NO))
    made.failed_for([B], error)
    _, told = made.verdict(0)
    assert told is not None
    assert type(told) is type(error)
    assert told.args == error.args
    assert vars(told) == vars(error) | {"receipt": None}
    assert getattr(told, "smtp_code", None) == getattr(error, "smtp_code", None)


# The outcome of a second try, by recipient, and the state of each by both tries.  The first is in doubt: a and b were
# accepted in it, c and d had no answer.
SECOND = {
    "taken": ({A: TAKEN, C: TAKEN}, {}, {B: "not_sent", D: "not_sent"}, {B: "in_doubt", D: "in_doubt"}),
    "refused for good": ({}, {A: NO, C: NO}, {B: "refused", D: "refused"}, dict.fromkeys([A, B, D], "in_doubt")),
    "refused for now": (
        {},
        {A: LATER, C: LATER},
        {B: "in_doubt", D: "in_doubt"},
        dict.fromkeys([A, B, C, D], "in_doubt"),
    ),
}


@pytest.mark.parametrize("second", list(SECOND))
def test_a_doubt_stays(second: str) -> None:
    """A recipient stays in doubt whatever a later try comes to, unless the server refuses one it had not accepted."""
    accepted, refused, failed, doubted = SECOND[second]
    made = queued(A, B, C, D)
    for who in (A, B, C, D):
        made.doubt(who, IN_DOUBT, accepted=False)
        made.doubt(who, IN_DOUBT, accepted=who in (A, B))
        made.doubt(who, IN_DOUBT, accepted=False)
    made.accepted, made.refused, made.reply = dict(accepted), dict(refused), TAKEN
    made.failed = {who: error(cast("Any", state)) for who, state in failed.items()}
    assert made.delivery_state(()) == "in_doubt"
    receipt = made.so_far(0.0)
    assert receipt is not None
    told, why = made.verdict(0.0)
    assert state_of(why) == "in_doubt"
    assert (told is None) is (not accepted)
    for failures, no in ((receipt.failed, receipt.refused), (made.failed, made.refused)):
        assert {who: state_of(failures[who]) for who in failures} == doubted
        assert no == {who: reply for who, reply in refused.items() if who not in doubted}


RELAY = SimpleNamespace(name="relay:25")


def test_no_doubt_of_who_is_refused_for_good() -> None:
    made = queued(A)
    made.doubt(A, IN_DOUBT, accepted=False)
    assert made.delivery_state(()) == "in_doubt"
    made.refused = {A: NO}
    assert made.delivery_state(()) == "refused"


def test_so_far() -> None:
    """A caller who was cancelled is told: a try that has just ended counts, and one under way is given up."""
    made = queued(A, B, C, D)
    assert made.so_far(0.0) is None
    some = [DeliveryRequest(made, made.envelope.only([place])) for place in range(4)]
    assert made.so_far(0.0) is None
    some[0].outcome, some[0].connection, some[0].attempts = outcome(A), cast("Any", SimpleNamespace(relay=RELAY)), 2
    some[1].error = SPAM
    some[2].error = asyncio.CancelledError()
    receipt = made.so_far(7.0)
    assert receipt is not None
    assert list(receipt.accepted) == [A]
    assert receipt.refused == {}
    assert {who: state_of(why) for who, why in receipt.failed.items()} == {B: "refused", C: "not_sent", D: "not_sent"}
    assert (receipt.reply, receipt.finished, receipt.complete) == (TAKEN, 7.0, False)
    assert (receipt.relay, receipt.attempts) == ("relay:25", 2)
    assert (made.accepted, made.refused, made.failed) == ({}, {}, {})


def test_the_last_to_take_it_is_told() -> None:
    made = queued(A, B)
    first = outcome(A)
    made.took(first, "one:25")
    assert made.accepted == {A: OK}
    made.took(outcome(B, reply=Reply(250, b"again")), "two:25")
    receipt, _ = made.verdict(0)
    assert receipt is not None
    assert (list(receipt.accepted), receipt.relay, receipt.reply.text) == ([A, B], "two:25", "again")


# ---- what can be sent --------------------------------------------------------------------------


def email(**fields: str) -> EmailMessage:
    made = EmailMessage()
    for name, value in fields.items():
        made[name] = value
    made.set_content("hello\n")
    return made


def test_an_envelope_is_itself() -> None:
    envelope = Envelope("me@x.example", [A], content=b"hello")
    assert envelope_of(envelope) is envelope


def test_a_message_s_envelope_is_in_its_header() -> None:
    message = email(From="me@x.example", To=f"{A}, {B}", Bcc=C)
    envelope = envelope_of(message)
    assert envelope.sender == "me@x.example"
    assert set(envelope.recipients) == {A, B, C}
    assert envelope.content is message


def test_three_things() -> None:
    envelope = envelope_of(("me@x.example", [A, B], b"hello"))
    assert (envelope.sender, envelope.recipients, envelope.content) == ("me@x.example", (A, B), b"hello")
    assert envelope_of(("", A, "hello")).recipients == (A,)


@pytest.mark.parametrize(
    "item",
    [
        None, 5, "a message", b"a message", [], {}, (), ("me@x.example", [A]), ("me@x.example", [A], b"hello", ()),
        ["me@x.example", [A], b"hello"], object(),
    ],
    ids=lambda item: type(item).__name__,
)  # fmt: skip
def test_what_is_nothing_to_send(item: Any) -> None:
    with pytest.raises(TypeError, match=f"a message must be .*, not {type(item).__name__}"):
        envelope_of(item)


@pytest.mark.parametrize(
    ("item", "kind"),
    [
        (("me@x.example", [], b""), ValueError),
        (("me@x.example", None, b""), TypeError),
        ((None, [A], b""), TypeError),
        (("me@x.example\r\n", [A], b""), ValueError),
        (("me@x.example", [f"{A}\r\nDATA"], b""), ValueError),
        (email(To=A), ValueError),
        (email(From="me@x.example"), ValueError),
    ],
)
def test_whose_addresses_are_wrong(item: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind):
        envelope_of(item)


# ---- what a queued makes of the content ------------------------------------------------------


async def pieces() -> AsyncIterator[bytes]:
    yield b"hello"


class Readable:
    def read(self, size: int = -1) -> bytes:
        return b""


LARGE = WHOLE + 1

CONTENTS: dict[str, tuple[Any, bool, int, Any]] = {
    # content; whether it can be sent once only; about its octets; what it is now, None: itself
    "bytes": (b"hello", False, 5, None),
    "no bytes": (b"", False, 0, None),
    "large bytes": (b"x" * LARGE, False, LARGE, None),
    "str": ("hello\n", False, 6, b"hello\n"),
    "str with any line ends": ("a\rb\nc\r\n", False, 7, b"a\rb\nc\r\n"),
    "large str": ("x" * LARGE, False, LARGE, None),
    "bytearray": (bytearray(b"hello"), False, 5, b"hello"),
    "large bytearray": (bytearray(LARGE), False, LARGE, None),
    "memoryview": (memoryview(b"hello"), False, 5, b"hello"),
    "EmailMessage": (email(From="me@x.example"), False, 124, flatten(email(From="me@x.example"))),
    "path": (Path("/no/such/file"), False, 0, None),
    "file": (io.BytesIO(b"hello"), True, 0, None),
    "what can be read": (Readable(), True, 0, None),
    "async iterator": (pieces(), True, 0, None),
}


@pytest.mark.parametrize("kind", CONTENTS)
def test_contents(kind: str) -> None:
    content, once, octets, now = CONTENTS[kind]
    made = queued(content=content)
    assert made.once is once
    assert made.octets == octets
    if now is None:
        assert made.content is content
    else:
        assert made.content.replace(b"\r\n", b"\n") == now.replace(b"\r\n", b"\n")
        assert type(made.content) is bytes


@pytest.mark.parametrize("text", ["gr\u00fc\u00dfe\n", "gr\u00fc\u00dfe, hello\n" * 30_000])
def test_a_message_object_may_be_used_again(text: str) -> None:
    """The message is flattened when it is given, for servers with 8BITMIME and without."""
    message = email(From="me@x.example")
    message.set_content(text, cte="8bit")
    made = queued(content=message)
    message.set_content("for somebody else")
    assert text.encode() in made.content.replace(b"\r\n", b"\n")
    assert made.eight_bit
    assert made.seven_bit().isascii()
    assert made.seven_bit() is made.seven_bit()
    again = message_from_bytes(made.seven_bit(), policy=policy.default)
    assert again.get_content().replace("\r\n", "\n") == text
    assert again["From"] == "me@x.example"


def test_a_message_object_in_ascii() -> None:
    assert not queued(content=email(From="me@x.example")).eight_bit


def test_each_recipient_once() -> None:
    assert list(queued(B, A, B, B, C, A).envelope.recipients) == [B, A, C]


HEAVY = email(From="me@x.example")
HEAVY.set_content("hello, hello\n" * 30_000)


@pytest.mark.parametrize(
    ("item", "heavy"),
    [
        (HEAVY, True),
        (Envelope(A, B, content=HEAVY), True),
        ((A, B, HEAVY), True),
        (email(From="me@x.example"), False),
        ((A, B, b"x" * 1_000_000), False),
        ((), False),
        ((A, B), False),
        (None, False),
    ],
)
def test_what_is_heavy(item: Any, heavy: bool) -> None:
    assert is_heavy(item) is heavy


def test_a_small_buffer_may_be_used_again() -> None:
    buffer = bytearray(b"first")
    made = queued(content=buffer)
    buffer[:] = b"later"
    assert made.content == b"first"


@pytest.mark.parametrize("content", [None, 5, [b"hello"], {"a": 1}, io.StringIO("hello"), iter([b"hello"])], ids=type)
def test_what_is_no_content(content: Any) -> None:
    with pytest.raises(TypeError, match=f"not {type(content).__name__}"):
        queued(content=content)


def test_a_str_that_is_not_ascii() -> None:
    with pytest.raises(UnicodeEncodeError):
        queued(content="h\u00e9llo")


def test_at_the_beginning_nothing_is_known() -> None:
    made = queued(A, B)
    assert (made.began, made.started, made.attempts, made.pending) == (None, 1000.0, 0, [])
    assert (made.accepted, made.refused, made.failed, made.reply) == ({}, {}, {}, None)


def test_duplicates_among_very_many_recipients_are_found_in_one_pass() -> None:
    """Each recipient costs one look, not a search through all the others: the test counts comparisons of addresses."""
    compared = 0

    class Counted(str):
        __slots__ = ()
        __hash__ = str.__hash__

        def __eq__(self, other: object) -> bool:
            nonlocal compared
            compared += 1
            return str.__eq__(self, other)

    everyone = [Counted(f"user{number}@x.example") for number in range(2_000)]
    twice = [*everyone, Counted("user1999@x.example"), Counted("user7@x.example")]
    made = QueuedMessage(None, Envelope("a@b.example", twice, content=b"hi"), lambda queued: None, 0.0)
    assert list(made.envelope.recipients) == everyone
    assert compared < 10_000


# ---- delivery requests -------------------------------------------------------------------------


def test_a_request_in_its_states() -> None:
    made = queued(A, B)
    request = DeliveryRequest(made, made.envelope, 1)
    assert made.pending == [request]
    assert (request.state, request.attempts, request.delivery_state) == (RequestState.ACTIVE, 1, "not_sent")
    request.transaction = cast("Any", SimpleNamespace(state="in_doubt"))
    assert request.delivery_state == "in_doubt"
    request.error = SPAM
    assert request.delivery_state == "refused"
    request.error, request.outcome = None, outcome(A, B)
    assert request.delivery_state == "sent"


@pytest.mark.parametrize(("most", "parts"), [(1, ["a", "b", "c", "d"]), (2, ["ab", "cd"]), (3, ["abc", "d"])])
def test_a_request_is_split(most: int, parts: list[str]) -> None:
    made = queued(A, B, C, D)
    request = DeliveryRequest(made, made.envelope, 2)
    request.since = 7.0
    others = request.split(most)
    assert [list(each.envelope.recipients) for each in (request, *others)] == [addresses(part) for part in parts]
    assert {(each.since, each.attempts) for each in others} == {(7.0, 2)}
    assert made.pending == [request, *others]


def test_recipients_that_are_refused_for_good_are_not_tried_again() -> None:
    made = queued(A, B, C)
    request = DeliveryRequest(made, made.envelope)
    request.drop_refused(SPAM)
    request.drop_refused(all_refused(a=LATER))
    assert request.envelope is made.envelope
    request.drop_refused(all_refused(a=LATER, b=NO))
    assert list(request.envelope.recipients) == [A, C]
    assert made.refused == {B: NO}


@pytest.mark.parametrize(
    ("said", "kind", "text"),
    [
        (FULL, asmtp.SMTPResponseException, "4.3.1 full"),
        (error("not_sent"), asmtp.SMTPException, "gone"),
    ],
)
def test_what_the_server_said_is_told_to_others(said: Any, kind: type[asmtp.SMTPException], text: str) -> None:
    made = queued(A)
    request = DeliveryRequest(made, made.envelope)
    request.said = said
    told: Any = request.said_to_others()
    assert type(told) is kind
    assert told is not said
    assert text in str(told)
    assert told.state == "not_sent"


# The reason to give it up, the end of its try; the state, and whether the error is that very one.
GIVEN_UP: list[tuple[asmtp.SMTPException | None, BaseException | None, str, bool]] = [
    (LATE, None, "not_sent", False),
    (LATE, SPAM, "refused", True),  # the server has said no, and that is told
    (LATE, IN_DOUBT, "in_doubt", False),
    (LATE, asyncio.CancelledError(), "not_sent", False),
    (None, KeyboardInterrupt(), "not_sent", False),
]


@pytest.mark.parametrize(("why", "met", "state", "itself"), GIVEN_UP)
def test_a_request_is_given_up(
    why: asmtp.SMTPException | None, met: BaseException | None, state: str, itself: bool
) -> None:
    made = queued(A)
    request = DeliveryRequest(made, made.envelope)
    request.withdrawn, request.error = why, met
    request.give_up()
    told: Any = made.failed[A]
    assert told.state == state
    assert (told is met) is itself
    assert told is not why
    if not itself:
        assert told.__cause__ is met
        assert str(told).startswith("gone" if why is not None else "given up: KeyboardInterrupt")
