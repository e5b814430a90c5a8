"""Mailer: send and send_all, from one thread and from many, and Ctrl-C."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import gc
import itertools
import pickle
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import asmtp
from asmtp import Delivery, Envelope, Mailer, Retry, SMTPStateError
from asmtp.sync import loop_thread, mailer as blocking
from tests.fakes.ledger import picky
from tests.fakes.people import SENDER, WHO
from tests.fakes.relay import Relay
from tests.mailer.mailing import agree, answering, email, item, items, name, people
from tests.sync.facade import relay_at
from tests.sync.threads import Stop, aside, at, interrupted, into, mailing, nothing_left, together, until


@pytest.fixture(autouse=True)
def nothing_is_left_behind(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with nothing_left(caplog):
        yield


# ---- send ---------------------------------------------------------------------------------------


def test_send() -> None:
    with mailing(answering(RCPT_no="550 5.1.1 nobody")) as (relay, mailer):
        receipt = mailer.send(
            b"one", SENDER, [WHO, "no@y.example"], mail_options=["RET=HDRS"], rcpt_options=["NOTIFY=NEVER"]
        )
        assert people(receipt.accepted) == {WHO: (250, "2.1.5")}
        assert people(receipt.refused) == {"no@y.example": (550, "5.1.1")}
        assert (receipt.reply, receipt.attempts) == ((250, b"2.0.0 taken"), 1)
        assert receipt.relay == f"127.0.0.1:{relay.port}"
        assert mailer.send(email("two\n")).complete
        assert mailer.send(Envelope(SENDER, [WHO], content=b"three")).complete
        with pytest.raises(asmtp.SMTPRecipientsRefused) as partly:
            mailer.send(b"four", SENDER, [WHO, "no@y.example"], require_all=True)
        assert partly.value.receipt is not None
        assert (partly.value.state, list(partly.value.receipt.accepted)) == ("sent", [WHO])
    assert [letter.content.split()[-1] for letter in relay.letters] == [b"one", b"two", b"three", b"four"]
    assert "mail from:<a@x.example> size=5 RET=HDRS" in relay.commands
    assert "rcpt to:<b@y.example> NOTIFY=NEVER" in relay.commands


def frames(error: BaseException) -> list[str]:
    return [frame.name for frame in traceback.extract_tb(error.__traceback__)]


def test_exceptions_are_those_of_the_async_mailer() -> None:
    with mailing(answering(RCPT_no="550 5.1.1 nobody", end="554 5.6.0 not this")) as (relay, mailer):
        with pytest.raises(asmtp.SMTPRecipientsRefused) as refused:
            mailer.send(b"one", SENDER, ["no@y.example"])
        assert refused.value.recipients == {"no@y.example": (550, b"5.1.1 nobody")}
        assert (refused.value.state, refused.value.receipt) == ("refused", None)
        with pytest.raises(asmtp.SMTPDataError) as data:
            mailer.send(b"two", SENDER, [WHO])
        assert (data.value.smtp_code, data.value.smtp_error) == (554, b"5.6.0 not this")
        for error in (refused.value, data.value):
            # Where it was called, and where it comes from.
            assert frames(error)[0] == "test_exceptions_are_those_of_the_async_mailer"
            assert frames(error).count("send") == 2
        with pytest.raises(ValueError, match="recipients: not given"):
            mailer.send(b"three", SENDER)
        with pytest.raises(ValueError, match="^recipients: no recipients$"):
            mailer.send(b"three", SENDER, [])
        with pytest.raises(TypeError, match="an Envelope has its own"):
            mailer.send(Envelope(SENDER, [WHO], content=b"four"), SENDER)
        with pytest.raises(TypeError):
            mailer.send(5, SENDER, WHO)  # type: ignore[arg-type]
    assert relay.letters == []


def test_no_server() -> None:
    with relay_at() as relay:
        port = relay.port
    with Mailer(f"smtp://127.0.0.1:{port}", retry=None) as mailer:
        with pytest.raises(asmtp.SMTPServerDisconnected, match="no connection to 127.0.0.1") as lost:
            mailer.send(b"one", SENDER, WHO)
        assert lost.value.state == "not_sent"
        assert isinstance(lost.value.__cause__, ConnectionRefusedError)
        (delivery,) = mailer.send_all(items(1))
        assert (delivery.state, type(delivery.error)) == ("not_sent", asmtp.SMTPServerDisconnected)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "match"),
    [
        (("smtp://h",), {"connections": 0}, ValueError, "connections must be"),
        (("smtp://h",), {"conections": 1}, TypeError, "'conections'"),
        (("smtp://h",), {"rate": "fast"}, ValueError, "fast"),
        (("http://h",), {}, ValueError, "the scheme must be"),
        ((), {}, ValueError, "ASMTP_URL"),
        (([],), {}, ValueError, "none is given"),
        ((5,), {}, TypeError, "int"),
    ],
)
def test_errors_of_the_constructor(
    arguments: Any, options: Any, error: type[Exception], match: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ASMTP_URL", raising=False)
    with pytest.raises(error, match=match):
        Mailer(*arguments, **options)


def test_stats_and_repr() -> None:
    class Special(Mailer):
        """A subclass of the caller's."""

    stop = Stop(what="2")
    with mailing(stop) as (relay, mailer):
        assert repr(mailer) == f"<asmtp.sync.mailer.Mailer 127.0.0.1:{relay.port}>"
        assert set(mailer.stats) == {0}
        mailer.send(b"1", SENDER, WHO)
        assert (mailer.stats.open, mailer.stats.sent, mailer.stats.in_flight) == (1, 1, 0)
        sending = aside(lambda: mailer.send(b"2", SENDER, WHO))
        assert stop.reached.wait(10)
        assert (mailer.stats.sent, mailer.stats.in_flight) == (1, 1)
        stop.go.set()
        assert sending.result().complete
    assert mailer.stats.open == 0
    assert repr(Special("smtp://u:secret@h")) == f"<{__name__}.Special h:25>"


# ---- many threads -------------------------------------------------------------------------------


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))])
def test_one_that_was_used_is_pickled_by_its_settings(duplicate: Callable[[Mailer], Mailer]) -> None:
    with relay_at() as relay:
        with Mailer(f"smtp://{relay.host}:{relay.port}", connections=3, retry=None) as mailer:
            mailer.send(*item(1)[2:], *item(1)[:2])
            again = duplicate(mailer)
            assert (mailer.stats.sent, again.stats.sent) == (1, 0)
        assert repr(again) == repr(mailer)
        with again:
            again.send(*item(2)[2:], *item(2)[:2])
            assert (mailer.stats.sent, again.stats.sent) == (1, 1)
        with duplicate(mailer) as after_closing:
            after_closing.send(*item(3)[2:], *item(3)[:2])
    assert [letter.sender for letter in relay.letters] == [item(number)[0] for number in (1, 2, 3)]


def test_where_there_are_no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("daemon threads are disabled in this (sub)interpreter")

    monkeypatch.setattr(threading.Thread, "start", start)
    mailer = Mailer("smtp://127.0.0.1:9")
    with pytest.raises(
        SMTPStateError, match=r"^Mailer needs a thread: daemon threads are disabled in this .* do without$"
    ):
        mailer.send(*item(1)[2:], *item(1)[:2])
    mailer.close()


def test_many_threads_on_one_pool() -> None:
    """Each thread gets the outcomes of its own messages, over no more connections than are allowed."""

    def work(number: int) -> None:
        for turn in range(6):
            who = f"{number}.{turn}"
            recipients = [f"no-{who}@y.example", f"b-{who}@y.example"]
            receipt = mailer.send(b"Subject: %b\r\n\r\nhi\r\n" % who.encode(), f"a-{who}@x.example", recipients)
            assert receipt.reply.text == f"2.0.0 taken {who}"
            assert list(receipt.accepted) == recipients[1:]
            assert receipt.refused == {recipients[0]: (550, f"5.1.1 {recipients[0]}".encode())}

    with mailing(picky, connections=3) as (relay, mailer):
        together(50, work)
        assert 1 <= len(relay.connections) <= 3
        assert mailer.stats[2:] == (0, 0, 300, 0, 0, 0, 0)
    assert len({letter.sender for letter in relay.letters}) == len(relay.letters) == 300


def test_each_thread_has_an_exception_of_its_own() -> None:
    """One lost connection ends many messages; each thread gets an exception with a traceback of its own."""

    def work(number: int) -> asmtp.SMTPException:
        with pytest.raises(asmtp.SMTPException) as lost:
            mailer.send(b"hi", SENDER, WHO)
        assert frames(lost.value).count("work") == 1
        return lost.value

    with mailing(answering(MAIL="421 4.3.0 going down"), connections=1, retry=None) as (_, mailer):
        errors = together(20, work)
    assert len({id(error) for error in errors}) == 20


def test_stats_while_others_send() -> None:
    """The counts can be read at any moment, and never become less."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with mailing(picky, connections=3, window=5) as (_, mailer):
            sending = aside(lambda: together(8, lambda number: [mailer.send(b"hi", SENDER, WHO) for _ in range(20)]))
            seen = [mailer.stats]
            while not sending.done():
                seen.append(mailer.stats)
            sending.result()
    finally:
        sys.setswitchinterval(interval)
    assert seen[-1].sent <= 160 == mailer.stats.sent
    assert all(before.sent <= after.sent for before, after in itertools.pairwise(seen))
    assert all(0 <= stats.open + stats.opening <= 3 and 0 <= stats.in_flight <= 8 for stats in seen)


def test_from_async_code() -> None:
    """A call from async code blocks the loop, and does the same as elsewhere."""
    ran: list[str] = []

    async def main(mailer: Mailer) -> None:
        asyncio.get_running_loop().call_soon(ran.append, "something else")
        assert mailer.send(b"hi", SENDER, WHO).complete
        assert all(delivery.ok for delivery in mailer.send_all(items(100)))
        with pytest.raises(asmtp.SMTPRecipientsRefused):
            mailer.send(b"hi", SENDER, ["no-1@y.example"])
        assert mailer.drain() == []
        mailer.close()
        assert ran == []

    with mailing(picky) as (relay, mailer):
        asyncio.run(main(mailer))
    assert len(relay.letters) == 101


def test_what_is_called_from_the_loops_thread() -> None:
    """A call from the loop's own thread raises: it would wait for itself."""
    errors: list[Any] = []

    async def token(rejected: bool) -> str:
        for call in (mailer.close, mailer.drain, lambda: mailer.send(b"hi", SENDER, WHO)):
            with pytest.raises(SMTPStateError, match="would wait for itself") as error:
                call()
            errors.append(error)
        raise LookupError("no token")

    with relay_at(Relay(("AUTH XOAUTH2",))) as relay, at(relay, username="u", token=token, tls="none") as mailer:
        with pytest.raises(asmtp.SMTPException, match="no token"):
            mailer.send(b"hi", SENDER, WHO)
        assert len(errors) == 3


def test_the_callers_context_is_not_kept() -> None:
    """A connection lives longer than the call for which it was opened."""

    class Request:
        """A request of a web server, say."""

    variable: contextvars.ContextVar[Any] = contextvars.ContextVar("variable")
    with mailing() as (_, mailer):

        def handle() -> weakref.ref[Request]:
            request = Request()
            variable.set(request)
            mailer.send(b"hi", SENDER, WHO)
            return weakref.ref(request)

        request = contextvars.Context().run(handle)
        gc.collect()
        assert mailer.stats.open == 1
        assert request() is None


# ---- send_all -----------------------------------------------------------------------------------

SMALL = {"connections": 1, "window": 1}
"""Room for one message, where 64 are handed over at a time."""


@pytest.mark.parametrize("in_order", [False, True])
@pytest.mark.parametrize("options", [{}, SMALL, {"connections": 2, "window": 3}], ids=["usual", "one", "few"])
def test_send_all(options: Any, in_order: bool) -> None:
    """Each message is told of once, also if a batch is larger than the room in the mailer."""
    with mailing(answering(RCPT_b7="550 5.1.1 no"), **options) as (relay, mailer):
        told = list(mailer.send_all(items(200), in_order=in_order))
        assert agree(relay, told, 200) == {"sent": 189, "refused": 11}  # b7, and b70 to b79
        if in_order:
            assert list(map(name, told)) == list(range(200))
        assert mailer.drain() == []
        assert list(mailer.send_all([])) == []


def test_a_message_behind_a_refused_one() -> None:
    """The message does not wait for the RSET between the two, whose end nothing tells of."""
    stop = Stop("RSET")
    with mailing(stop, **SMALL) as (relay, mailer):
        relay.answer = lambda verb, line: "554 5.6.0 no" if verb == "." else stop(verb, line)
        with pytest.raises(asmtp.SMTPDataError):
            mailer.send(b"one", SENDER, WHO)
        relay.answer = stop
        assert stop.reached.wait(10)
        sending = aside(lambda: mailer.send(b"two", SENDER, WHO))
        until(lambda: mailer.stats.in_flight == 1)
        stop.go.set()
        assert sending.result(10).complete


@pytest.mark.parametrize("in_order", [False, True])
def test_send_all_with_more_octets_than_there_is_room_for(in_order: bool) -> None:
    seen = []

    def look(verb: str, line: str) -> None:
        if verb == ".":
            seen.append(mailer.stats.in_flight)

    with mailing(look, connections=1, window=50) as (_, mailer):
        told = list(mailer.send_all([(SENDER, WHO, b"x" * 400_000)] * 40, in_order=in_order))
    assert len(seen) == len(told) == 40
    assert 2 <= max(seen) <= 3  # 3 are more than a MiB


def test_send_all_in_order_and_not() -> None:
    """A message that is tried again is told of last, or in order keeps its place."""

    def greylisting(verb: str, line: str) -> str | None:
        if "<b0@" in line and line not in seen:
            seen.add(line)
            return "451 4.7.1 later"
        return None

    for in_order, expected in ((False, [1, 2, 3, 0]), (True, [0, 1, 2, 3])):
        seen: set[str] = set()
        retry = Retry(initial=0.05, jitter=0)
        with mailing(greylisting, connections=1, retry=retry) as (_, mailer):
            assert [name(delivery) for delivery in mailer.send_all(items(4), in_order=in_order)] == expected


def test_send_all_tells_of_what_is_no_message() -> None:
    with mailing() as (relay, mailer):
        told = list(mailer.send_all([item(0), "nonsense", (SENDER, "bad address\n", b""), item(1)], in_order=True))
    assert [delivery.state for delivery in told] == ["sent", "not_sent", "not_sent", "sent"]
    assert [type(delivery.error) for delivery in told[1:3]] == [TypeError, ValueError]
    assert len(relay.letters) == 2


def test_send_all_of_what_is_no_iterable() -> None:
    async def asynchronous() -> Any:
        yield item(0)

    class Wrong:
        """An iterable whose `__iter__` raises."""

        def __iter__(self) -> Iterator[Any]:
            raise LookupError

    with mailing() as (relay, mailer):
        for wrong in (5, asynchronous()):
            with pytest.raises(TypeError, match="messages must be an iterable"):
                mailer.send_all(wrong)  # type: ignore[arg-type]
        with pytest.raises(LookupError):
            next(mailer.send_all(Wrong()))
        assert agree(relay, mailer.send_all(items(2)), 2) == {"sent": 2}


ROOM = pytest.mark.parametrize("options", [{}, SMALL], ids=["usual", "small"])


class Counted:
    """Gives `items`, and counts how many of them were asked for.

    Args:
        count: how many there are.
        then: called behind the last.
    """

    def __init__(self, count: int, then: Callable[[], Any] = lambda: None) -> None:
        self.pulled = 0
        self._count = count
        self._then = then

    def __iter__(self) -> Iterator[Any]:
        for number in range(self._count):
            self.pulled += 1
            yield item(number)
        self._then()


@ROOM
@pytest.mark.parametrize("in_order", [False, True])
@pytest.mark.parametrize("count", [0, 1, 64, 100])
def test_send_all_of_an_iterable_that_raises(options: Any, in_order: bool, count: int) -> None:
    """The iterable's exception is raised when the rest is told."""
    error = LookupError("no more")

    def fail() -> None:
        raise error

    told: list[Delivery[Any]] = []
    with mailing(**options) as (relay, mailer):
        with pytest.raises(LookupError) as raised:
            into(told, mailer.send_all(Counted(count, fail), in_order=in_order))
        assert raised.value is error
        assert agree(relay, told, count) == ({"sent": count} if count else {})
        assert mailer.send(b"hi", SENDER, WHO).complete


@ROOM
@pytest.mark.parametrize("count", [1, 2, 10])
def test_send_all_does_not_wait_for_the_next(options: Any, count: int) -> None:
    """The messages of the iterable are sent, however long it takes to give another."""
    arrived = threading.Semaphore(0)

    def arrive(verb: str, line: str) -> None:
        if verb == ".":
            arrived.release()

    def slow() -> Iterator[Any]:
        for number in range(3 * count):
            yield item(number)
            if number % count == count - 1:
                for _ in range(count):
                    assert arrived.acquire(timeout=10)

    with mailing(arrive, **options) as (relay, mailer):
        assert agree(relay, mailer.send_all(slow()), 3 * count) == {"sent": 3 * count}


def test_send_all_does_not_wait_where_the_iterable_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message that comes after a pause is handed over at once, without the timer of a batch."""
    arrived = threading.Semaphore(0)

    def arrive(verb: str, line: str) -> None:
        if verb == ".":
            arrived.release()

    def slow() -> Iterator[Any]:
        for each in items(5):
            time.sleep(2 * blocking.PATIENCE)
            yield each
            assert arrived.acquire(timeout=10)

    monkeypatch.setattr(blocking._Feed, "_wait", lambda feed, meetings: None)
    with mailing(arrive) as (relay, mailer):
        assert agree(relay, mailer.send_all(slow()), 5) == {"sent": 5}


def test_send_all_tells_while_the_iterable_is_slow() -> None:
    told: list[Delivery[Any]] = []
    early = []

    def slow() -> Iterator[Any]:
        for number in range(10):
            yield item(number)
            until(lambda: mailer.stats.sent > number)  # noqa: B023  # called at once
            early.append(number - len(told))

    with mailing() as (relay, mailer):
        into(told, mailer.send_all(slow()))
        assert agree(relay, told, 10) == {"sent": 10}
    assert max(early) <= 2


@pytest.mark.parametrize("in_order", [False, True])
def test_send_all_asks_for_no_more_than_there_is_room_for(in_order: bool) -> None:
    stop = Stop(what="Subject: 0")
    source = Counted(500)
    with mailing(stop, connections=2, window=5) as (relay, mailer):
        sending = aside(lambda: list(mailer.send_all(source, in_order=in_order)))
        assert stop.reached.wait(10)
        until(lambda: mailer.stats.in_flight == 10)
        time.sleep(0.05)  # in which it would ask for all of them
        assert source.pulled < blocking.BATCH + 10  # some may have been handed over as time went by
        assert mailer.stats.in_flight == 10
        stop.go.set()
        assert agree(relay, sending.result(), 500) == {"sent": 500}


def test_send_all_in_order_does_not_pile_up_behind_one_that_waits() -> None:
    """Deliveries that are known and cannot be told yet take room too."""
    retry = Retry(initial=60, within=None)
    source = Counted(500)
    told: list[Delivery[Any]] = []
    with mailing(answering(RCPT_b0="451 4.7.1 later"), connections=1, window=5, retry=retry) as (relay, mailer):
        sending = aside(lambda: into(told, mailer.send_all(source, in_order=True)))
        until(lambda: mailer.stats.sent == 0 and mailer.stats.waiting == 1 and mailer.stats.in_flight == 1)
        time.sleep(0.05)
        assert source.pulled < blocking.BATCH + 5
        mailer.close()
        with pytest.raises(SMTPStateError):
            sending.result()
    states = agree(relay, told, source.pulled)
    assert states["refused"] == 1
    assert 4 <= states["sent"] <= 10


def test_a_consumer_that_stops_stops_nobody_else() -> None:
    source = Counted(150)
    with mailing(**SMALL) as (relay, mailer):
        deliveries = mailer.send_all(source)
        told = [next(deliveries)]
        pulled = source.pulled
        assert mailer.send(b"Subject: hi", SENDER, WHO).complete
        assert aside(lambda: mailer.send(b"Subject: hi", SENDER, WHO)).result().complete
        assert mailer.drain() == []
        assert source.pulled == pulled <= blocking.BATCH
        into(told, deliveries)
        relay.letters[:] = [letter for letter in relay.letters if letter.sender != SENDER]
        assert agree(relay, told, 150) == {"sent": 150}


@ROOM
def test_calls_within_a_send_all(options: Any) -> None:
    """Calls are possible in the loop over a send_all, and in its iterable."""

    def source() -> Iterator[Any]:
        for each in items(70):
            assert mailer.send(b"aside", SENDER, WHO).complete
            yield each

    with mailing(**options) as (relay, mailer):
        told = []
        for delivery in mailer.send_all(source()):
            told.append(delivery)
            assert mailer.send(b"aside", SENDER, WHO).complete
            assert [inner.ok for inner in mailer.send_all([(SENDER, WHO, b"inner")])] == [True]
        assert len(relay.letters) == 4 * 70
        relay.letters[:] = [letter for letter in relay.letters if letter.sender != SENDER]
        assert agree(relay, told, 70) == {"sent": 70}


@ROOM
@pytest.mark.parametrize("in_order", [False, True])
@pytest.mark.parametrize("most", [1, 5, 63, 64, 100])
def test_leaving_the_loop(options: Any, in_order: bool, most: int) -> None:
    """`drain` tells of the messages of which the loop was not told; none that was pulled is forgotten."""
    source = Counted(1000)
    with mailing(**options) as (relay, mailer):
        told = list(itertools.islice(mailer.send_all(source, in_order=in_order), most))
        assert len(told) == most
        told += mailer.drain()
        assert source.pulled < 1000
        agree(relay, told, source.pulled)
        if in_order:
            assert list(map(name, told)) == list(range(len(told)))
        assert mailer.drain() == []
        assert mailer.stats.in_flight == 0


def test_leaving_the_loop_before_all_were_begun() -> None:
    stop = Stop()

    def source() -> Iterator[Any]:
        yield from items(20)
        assert stop.reached.wait(10)
        yield "nonsense"

    with mailing(stop, connections=1, pipelining=False) as (relay, mailer):
        for delivery in mailer.send_all(source()):
            assert (delivery.item, delivery.state) == ("nonsense", "not_sent")
            break
        stop.go.set()
        rest = mailer.drain()
    states = agree(relay, rest, 20)
    assert states["sent"] >= 1
    assert states["not_sent"] >= 10
    assert {str(delivery.error).partition(":")[0] for delivery in rest if not delivery.ok} == {"not begun"}


def test_two_threads_with_a_send_all_each() -> None:
    with mailing(connections=2) as (relay, mailer):
        several = list(items(400))
        told = together(2, lambda number: list(mailer.send_all(several[200 * number : 200 * number + 200])))
        for number in (0, 1):
            assert {name(delivery) for delivery in told[number]} == set(range(200 * number, 200 * number + 200))
        assert agree(relay, [*told[0], *told[1]], 400) == {"sent": 400}
        assert mailer.stats.open <= 2


def test_a_send_all_that_goes_on_in_another_thread() -> None:
    with mailing(**SMALL) as (relay, mailer):
        deliveries = mailer.send_all(items(100))
        told = [next(deliveries)]
        aside(lambda: into(told, deliveries)).result()
        assert agree(relay, told, 100) == {"sent": 100}


def test_a_send_all_that_is_collected_in_the_loops_thread() -> None:
    """The collector may run in any thread, so in the loop's thread too."""
    source = Counted(1000)
    with mailing() as (relay, mailer):
        deliveries = mailer.send_all(source)
        told = [next(deliveries)]
        cycle: list[Any] = [deliveries]
        cycle.append(cycle)
        gc.disable()
        try:
            del deliveries, cycle
            assert mailer._thread is not None
            mailer._thread.soon(gc.collect)
            told += mailer.drain()
        finally:
            gc.enable()
        agree(relay, told, source.pulled)


# ---- Ctrl-C -------------------------------------------------------------------------------------


def test_interrupted_in_the_line() -> None:
    """The interrupted call is taken back, and the mailer goes on."""
    stop = Stop(what="first")
    with mailing(stop, **SMALL) as (relay, mailer):
        first = aside(lambda: mailer.send(b"first", SENDER, WHO))
        assert stop.reached.wait(10)
        with interrupted(stop.reached):
            mailer.send(b"second", SENDER, WHO)
        stop.go.set()
        assert first.result().complete
        assert mailer.send(b"third", SENDER, WHO).complete
        assert (mailer.stats.in_flight, mailer.stats.waiting) == (0, 0)
    assert [letter.content for letter in relay.letters] == [b"first\r\n", b"third\r\n"]


def test_interrupted_under_way() -> None:
    stop = Stop()
    with mailing(stop) as (relay, mailer):
        with interrupted(stop.reached):
            mailer.send(b"first", SENDER, WHO)
        stop.go.set()
        assert mailer.send(b"second", SENDER, WHO).complete
        assert mailer.drain() == []
        assert mailer.stats.in_flight == 0
    assert relay.letters[-1].content == b"second\r\n"


def test_interrupted_before_the_loop_has_seen_the_call() -> None:
    busy, go = threading.Event(), threading.Event()

    def block() -> None:
        busy.set()
        go.wait(10)

    with mailing() as (relay, mailer):
        mailer.send(b"first", SENDER, WHO)
        assert mailer._thread is not None
        mailer._thread.soon(block)
        with interrupted(busy):
            mailer.send(b"second", SENDER, WHO)
        go.set()
        mailer.send(b"third", SENDER, WHO)
    assert [letter.content for letter in relay.letters] == [b"first\r\n", b"third\r\n"]


@pytest.mark.parametrize("before", [False, True], ids=["begun", "not begun"])
def test_interrupted_while_the_thread_is_started(before: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start

    def interrupted_start(thread: threading.Thread) -> None:
        if not before:
            start(thread)
        raise KeyboardInterrupt

    with mailing() as (relay, mailer):
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", interrupted_start)
            with pytest.raises(KeyboardInterrupt):
                mailer.send(b"first", SENDER, WHO)
        mailer.send(b"second", SENDER, WHO)
        until(lambda: len(loop_thread._threads) == 1)
    assert [letter.content for letter in relay.letters] == [b"second\r\n"]


@ROOM
def test_interrupted_in_send_all(options: Any) -> None:
    """Neither deliveries that were known by then nor messages that the iterable gave by then are lost."""
    stop = Stop(what="Subject: 3\r")
    source = Counted(500, lambda: stop.reached.wait(10) and threading.Event().wait(10))
    told: list[Delivery[Any]] = []
    with mailing(stop, **options) as (relay, mailer):
        with interrupted(stop.reached):
            into(told, mailer.send_all(source))
        stop.go.set()
        rest = mailer.drain()
        agree(relay, [*told, *rest], source.pulled)
        assert rest
        assert mailer.send(b"hi", SENDER, WHO).complete


@ROOM
@pytest.mark.parametrize("count", [1, 10, 70])
def test_interrupted_in_the_iterable(options: Any, count: int) -> None:
    waiting = threading.Event()

    def wait() -> None:
        waiting.set()
        threading.Event().wait(10)

    told: list[Delivery[Any]] = []
    with mailing(**options) as (relay, mailer):
        with interrupted(waiting):
            into(told, mailer.send_all(Counted(count, wait)))
        agree(relay, [*told, *mailer.drain()], count)


def test_interrupted_in_the_iterable_while_what_it_gave_waits() -> None:
    """A call that waits for room does not take the deliveries that `drain` is to return."""
    stop = Stop()
    told: list[Delivery[Any]] = []
    with mailing(stop, **SMALL) as (relay, mailer):
        with interrupted(stop.reached):
            into(told, mailer.send_all(Counted(3, lambda: threading.Event().wait(10))))
        stop.go.set()
        assert agree(relay, [*told, *mailer.drain()], 3) == {"sent": 1, "not_sent": 2}


def test_interrupted_in_drain() -> None:
    stop = Stop()
    with mailing(stop) as (_, mailer):
        sending = aside(lambda: mailer.send(b"first", SENDER, WHO))
        with interrupted(stop.reached):
            mailer.drain()
        stop.go.set()
        assert sending.result().complete
        assert mailer.drain() == []


def test_verify() -> None:
    with mailing() as (relay, mailer):
        mailer.verify()
        assert relay.verbs == ["EHLO", "QUIT"]
