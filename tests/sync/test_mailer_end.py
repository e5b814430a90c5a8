"""Mailer: its end, by close, by the program's end, by garbage collection; and forks."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import anyio
import pytest

import asmtp
from asmtp import Delivery, Mailer, Receipt, Retry, SMTPStateError
from asmtp.sync import loop_thread
from tests.fakes.people import SENDER, WHO
from tests.fakes.relay import Relay
from tests.mailer.mailing import agree, answering, item, items
from tests.sync.facade import relay_at
from tests.sync.threads import (
    Stop,
    aside,
    at,
    interrupted,
    into,
    mailing,
    nothing_left,
    program,
    relay_of,
    together,
    until,
)


@pytest.fixture(autouse=True)
def nothing_is_left_behind(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with nothing_left(caplog):
        yield


def said_goodbye(relay: Relay) -> bool:
    """Return whether there was a connection, and a QUIT on every one."""
    return relay.verbs.count("QUIT") == len(relay.connections) > 0


# ---- close --------------------------------------------------------------------------------------


def test_close() -> None:
    with relay_at(relay_of()) as relay:
        mailer = at(relay)
        mailer.send(b"hi", SENDER, WHO)
        mailer.close()
        assert said_goodbye(relay)
        assert mailer.stats.open == 0
        mailer.close()
        assert mailer.drain() == []  # nothing was given up
        uses: list[Callable[[], Any]] = [
            lambda: mailer.send(b"hi", SENDER, WHO), lambda: mailer.send_all([]), mailer.__enter__,
        ]  # fmt: skip
        for use in uses:
            with pytest.raises(SMTPStateError, match="the mailer was closed"):
                use()


def test_close_without_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading.Thread, "start", lambda thread: pytest.fail(f"{thread} started"))
    mailer = Mailer("smtp://h")
    mailer.send_all(items(3)).close()
    mailer.close()
    with Mailer("smtp://h") as mailer:
        assert mailer.stats.in_flight == 0


def test_close_while_others_send() -> None:
    """close() waits for the messages of others; so does a second close()."""
    stop = Stop()
    with mailing(stop, connections=1) as (relay, mailer):
        sending = aside(lambda: together(5, lambda number: mailer.send(b"hi", SENDER, WHO)))
        assert stop.reached.wait(10)
        until(lambda: mailer.stats.in_flight == 5)
        closing = [aside(mailer.close), aside(mailer.close)]
        until(lambda: mailer._closed)
        with pytest.raises(SMTPStateError):
            mailer.send(b"too late", SENDER, WHO)
        assert mailer.stats.in_flight == 5
        assert not any(each.done() for each in closing)
        stop.go.set()
        assert all(receipt.complete for receipt in sending.result())
        for each in closing:
            each.result()
    assert len(relay.letters) == 5
    assert said_goodbye(relay)


def test_close_may_have_a_limit() -> None:
    stop = Stop()
    with mailing(stop, connections=1) as (relay, mailer):
        sending = aside(lambda: mailer.send(b"hi", SENDER, WHO))
        assert stop.reached.wait(10)
        mailer.close(timeout=0.01)
        with pytest.raises(asmtp.SMTPException) as caught:
            sending.result()
        assert caught.value.state == "in_doubt"
        stop.go.set()


def test_a_limit_holds_though_somebody_waits_without_one() -> None:
    stop = Stop()
    with mailing(stop, connections=1) as (_, mailer):
        sending = aside(lambda: mailer.send(b"hi", SENDER, WHO))
        assert stop.reached.wait(10)
        closing = aside(mailer.close)
        until(lambda: mailer._closed)
        mailer.close(timeout=0.01)
        closing.result()
        with pytest.raises(asmtp.SMTPException) as caught:
            sending.result()
        assert caught.value.state == "in_doubt"


def test_close_at_any_moment() -> None:
    """Each call is carried out, or raises SMTPStateError; none waits for ever."""

    def work(number: int) -> None:
        with pytest.raises(SMTPStateError):
            into(told, iter(lambda: mailer.send(b"hi", SENDER, WHO), None))

    with relay_at(relay_of()) as relay:
        for sent in range(0, 40, 2):
            told: list[Any] = []
            before = len(relay.letters)
            with at(relay, connections=2) as mailer:
                working = aside(lambda: together(8, work))
                until(lambda: len(told) >= sent)  # noqa: B023  # called at once
                mailer.close()
                working.result()
            assert len(relay.letters) == before + len(told)


def test_a_call_in_the_last_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The call is answered like any other."""
    original = asmtp.AsyncMailer.aclose
    sending = []

    async def aclose(self: asmtp.AsyncMailer, timeout: Any = None) -> None:
        await original(self)
        sending.append(aside(lambda: mailer.send(b"hi", SENDER, WHO)))
        until(lambda: thread._calls)

    with mailing() as (_, mailer):
        mailer.send(b"hi", SENDER, WHO)
        assert mailer._thread is not None
        thread = mailer._thread
        monkeypatch.setattr(asmtp.AsyncMailer, "aclose", aclose)
        thread.leave()
        thread.join()
        with pytest.raises(SMTPStateError, match="the mailer was closed"):
            sending[0].result()


@pytest.mark.parametrize("options", [{}, {"connections": 1, "window": 1}], ids=["usual", "small"])
@pytest.mark.parametrize("in_order", [False, True])
def test_close_during_send_all(options: Any, in_order: bool) -> None:
    """The loop is told what is known, and then SMTPStateError is raised, unless all was known anyway."""
    pulled = 0

    def source() -> Iterator[Any]:
        nonlocal pulled
        for each in items(1000):
            pulled += 1
            yield each

    with mailing(**options) as (relay, mailer):
        deliveries = mailer.send_all(source(), in_order=in_order)
        told = [next(deliveries)]
        mailer.close()
        with pytest.raises(SMTPStateError, match="the mailer was closed"):
            into(told, deliveries)
        assert 0 < pulled < 1000
        agree(relay, told, pulled)
    with mailing(**options) as (relay, mailer):
        deliveries = mailer.send_all(items(60), in_order=in_order)
        told = [next(deliveries)]
        mailer.close()
        into(told, deliveries)
        agree(relay, told, 60)


def test_close_during_send_all_of_another_thread() -> None:
    """Messages that the iterable gave meanwhile are told of, too."""
    stop = Stop()
    more = threading.Event()

    def source() -> Iterator[Any]:
        yield from items(3)
        assert more.wait(10)
        yield item(3)

    told: list[Delivery[Any]] = []
    with mailing(stop, connections=1, window=1) as (relay, mailer):
        sending = aside(lambda: into(told, mailer.send_all(source())))
        assert stop.reached.wait(10)
        closing = aside(mailer.close)
        until(lambda: mailer.stats.in_flight == 1 and mailer.stats.waiting == 0)
        stop.go.set()
        closing.result()
        more.set()
        with pytest.raises(SMTPStateError):
            sending.result()
        states = agree(relay, told, 4)
    assert states["not_sent"] >= 2
    assert states["sent"] >= 1


def test_a_send_all_that_is_left_after_close() -> None:
    """To leave the loop then is too late, and says nothing."""
    with mailing() as (_, mailer):
        deliveries = mailer.send_all(items(500))
        next(deliveries)
        mailer.close()
        deliveries.close()


def test_with_and_an_exception() -> None:
    """Leaving waits for the messages in flight."""
    stop = Stop()
    with relay_at(relay_of(stop)) as relay:
        sending: list[Future[Receipt]] = []

        def go_on(mailer: Mailer) -> None:
            until(lambda: mailer._closed)
            stop.go.set()

        def fail() -> None:
            with at(relay) as mailer:
                sending.append(aside(lambda: mailer.send(b"hi", SENDER, WHO)))
                assert stop.reached.wait(10)
                aside(lambda: go_on(mailer))
                raise LookupError

        with pytest.raises(LookupError):
            fail()
        assert sending[0].result().complete
        assert said_goodbye(relay)


def test_with_and_ctrl_c() -> None:
    """Leaving does not wait for the messages in flight."""
    stop = Stop()
    with relay_at(relay_of(stop)) as relay:
        with interrupted(stop.reached), at(relay) as mailer:
            sending = aside(lambda: mailer.send(b"hi", SENDER, WHO))
            threading.Event().wait(10)
        with pytest.raises(asmtp.SMTPException) as aborted:
            sending.result()
        assert aborted.value.state == "in_doubt"
        stop.go.set()


def test_with_and_ctrl_c_before_use() -> None:
    with pytest.raises(KeyboardInterrupt), Mailer("smtp://h"):
        raise KeyboardInterrupt


def test_close_and_ctrl_c() -> None:
    """close() does not wait any more then."""
    stop = Stop()
    with mailing(stop) as (_, mailer):
        sending = aside(lambda: mailer.send(b"hi", SENDER, WHO))
        left: list[Any] = []
        with interrupted(stop.reached):
            try:
                mailer.close()
            finally:
                left += loop_thread._threads
        assert not left
        with pytest.raises(asmtp.SMTPException) as aborted:
            sending.result()
        assert aborted.value.state == "in_doubt"


# ---- the thread ---------------------------------------------------------------------------------


def test_a_loop_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(function: Any) -> None:
        raise OSError(24, "Too many open files")

    with mailing() as (relay, mailer):
        with monkeypatch.context() as patch:
            patch.setattr(anyio, "run", run)
            for _ in range(2):
                with pytest.raises(OSError, match="Too many open files"):
                    mailer.send(b"hi", SENDER, WHO)
        assert mailer.send(b"hi", SENDER, WHO).complete


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_loop_that_is_ended_by_a_callback() -> None:
    """No caller waits for ever, and each is told if the outcome of its message is not known."""

    def end() -> None:
        raise SystemExit

    with relay_at() as relay:
        port = relay.port
    with Mailer(f"smtp://127.0.0.1:{port}", retry=Retry(initial=60)) as mailer:
        waiting: list[Future[Any]] = [
            aside(lambda: mailer.send(b"hi", SENDER, WHO)),
            aside(lambda: list(mailer.send_all(items(3)))),
        ]
        until(lambda: mailer.stats.retried == 4)
        assert mailer._thread is not None
        mailer._thread.soon(end)
        for each in waiting:
            with pytest.raises(SMTPStateError):
                each.result()
        mailer._thread.join()
        with pytest.raises(SMTPStateError, match="the mailer was closed"):
            mailer.send(b"hi", SENDER, WHO)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_loop_that_is_ended_between_two_deliveries() -> None:
    def end() -> None:
        raise SystemExit

    with relay_at() as relay:
        port = relay.port
    with Mailer(f"smtp://127.0.0.1:{port}", retry=Retry(initial=60)) as mailer:
        deliveries = mailer.send_all(["nonsense", *items(3)])
        assert next(deliveries).item == "nonsense"
        until(lambda: mailer.stats.retried == 3)
        assert mailer._thread is not None
        mailer._thread.soon(end)
        mailer._thread.join()
        with pytest.raises(SMTPStateError, match="thread has ended"):
            next(deliveries)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning", "ignore::ResourceWarning")
def test_a_loop_that_is_ended_by_a_token() -> None:
    """The token's function ends the loop again, while it is being ended."""

    async def token(rejected: bool) -> str:
        raise SystemExit

    with relay_at(Relay(("AUTH XOAUTH2",))) as relay, at(relay, username="u", token=token, tls="none") as mailer:
        with pytest.raises(SMTPStateError, match="thread has ended"):
            mailer.send(b"hi", SENDER, WHO)
        assert mailer._thread is not None
        mailer._thread.join()
        del mailer
        gc.collect()  # the connection is dropped open


def test_the_resolvers_threads_cannot_be_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """The executor of the resolver cannot be shut down, as at the end of a program in Python 3.12."""
    original = asyncio.BaseEventLoop.shutdown_default_executor
    failed = []

    async def shutdown(loop: asyncio.BaseEventLoop, *arguments: Any) -> None:
        await original(loop, *arguments)
        if threading.current_thread().name == "asmtp mailer":
            failed.append(loop)
            raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(asyncio.BaseEventLoop, "shutdown_default_executor", shutdown)
    with mailing() as (_, mailer):
        mailer.send(b"hi", SENDER, WHO)
    assert failed


# ---- garbage ------------------------------------------------------------------------------------


def test_collected() -> None:
    with relay_at(relay_of()) as relay:
        mailer = at(relay)
        mailer.send(b"hi", SENDER, WHO)
        assert mailer._thread is not None
        thread = mailer._thread._thread
        gc.disable()
        try:
            del mailer
            thread.join(10)
        finally:
            gc.enable()
        assert not thread.is_alive()
        assert said_goodbye(relay)


def test_collected_with_messages_in_flight() -> None:
    """The messages in flight are finished."""
    stop = Stop()
    with relay_at(relay_of(stop)) as relay:
        mailer = at(relay)
        deliveries = mailer.send_all([item(0), "nonsense"])
        assert next(deliveries).item == "nonsense"
        assert stop.reached.wait(10)
        gone = weakref.ref(mailer)
        del mailer, deliveries
        assert gone() is None
        stop.go.set()
        until(lambda: not loop_thread._threads)
        assert len(relay.letters) == 1
        assert said_goodbye(relay)


def test_collected_in_the_loops_thread() -> None:
    with relay_at(relay_of()) as relay:
        mailer = at(relay)
        mailer.send(b"hi", SENDER, WHO)
        thread = mailer._thread
        assert thread is not None
        cycle: list[Any] = [mailer]
        cycle.append(cycle)
        gc.disable()
        try:
            del mailer, cycle
            thread.soon(gc.collect)
            thread._thread.join(10)
        finally:
            gc.enable()
        assert not thread._thread.is_alive()


def test_a_mailer_lives_as_long_as_its_send_all() -> None:
    with relay_at(relay_of()) as relay:
        assert agree(relay, at(relay).send_all(items(100)), 100) == {"sent": 100}


# ---- the end of the program ---------------------------------------------------------------------

PROGRAMS = {
    "send": "send(1)",
    "send_all, in the middle": "deliveries = mailer.send_all(map(message, range(500)))\nnext(deliveries)",
    "dropped": "send(1)\ndel mailer",
    "closed": "send(1)\nmailer.close()",
    "an exception in another thread's way": (
        "try: mailer.send(b'hi', 'a@x.example', 'no@y.example')\nexcept asmtp.SMTPRecipientsRefused: pass"
    ),
    "another thread waits": "thread = threading.Thread(target=send, args=(1,), daemon=True)\nthread.start()\nsend(2)",
    "atexit": "import atexit\nsend(1)\natexit.register(send, 2)",
}


def test_all_are_closed_at_exit() -> None:
    with relay_at(relay_of()) as relay:
        mailers = [at(relay) for _ in range(3)]
        for mailer in mailers[:2]:
            mailer.send(b"hi", SENDER, WHO)
        loop_thread._at_exit()
        assert not loop_thread._threads
        assert said_goodbye(relay)
        for mailer in mailers[:2]:
            with pytest.raises(SMTPStateError):
                mailer.send(b"hi", SENDER, WHO)


def test_a_server_that_does_not_answer_does_not_hold_up_the_end() -> None:
    stop = Stop()
    with mailing(stop, connections=1, close_timeout=0.01) as (_, mailer):
        sending = aside(lambda: mailer.send(b"hi", SENDER, WHO))
        assert stop.reached.wait(10)
        loop_thread._at_exit()
        assert not loop_thread._threads
        with pytest.raises(asmtp.SMTPException) as caught:
            sending.result()
        assert caught.value.state == "in_doubt"
        stop.go.set()


@pytest.mark.sampled
@pytest.mark.parametrize("text", PROGRAMS.values(), ids=PROGRAMS)
def test_a_program_that_forgets_to_close(text: str) -> None:
    with relay_at(relay_of(answering(RCPT_no="550 5.1.1 no"))) as relay:
        program(text, relay)
    assert said_goodbye(relay)


# ---- forks --------------------------------------------------------------------------------------

FORKS = {
    "used in the parent, the child, and the parent again": ([1, 2, 3], "send(1); child(lambda: send(2)); send(3)"),
    "made before, used in the children": ([1, 2], "child(lambda: send(1)); child(lambda: send(2))"),
    "used in the parent only": ([1, 2], "send(1); child(lambda: None); send(2)"),
    "closed in the child": ([1, 2], "send(1); child(mailer.close); send(2)"),
    "a child's child": ([1, 2, 3, 4], "send(1); child(lambda: (send(2), child(lambda: send(3)))); send(4)"),
    "within with": ([1, 2], "with mailer: send(1); child(lambda: None); send(2)"),
    "within with, used in the child": ([1, 2], "with mailer: send(1); child(lambda: (send(2), mailer.close()))"),
    "within a send_all": (
        [0, 1, 2, 3],
        """
for delivery in mailer.send_all(map(message, range(3)), in_order=True):
    if delivery.item[2] == b"1":
        child(lambda: send(3))
""",
    ),
    "within a send_all that the child goes on with": (
        list(range(201)),
        """
deliveries = mailer.send_all(map(message, range(200)))
next(deliveries)
def go_on():
    try:
        list(deliveries)
    except asmtp.SMTPStateError:
        send(200)
child(go_on)
assert len(list(deliveries)) == 199
""",
    ),
    "while another thread starts one": (
        [1, 2],
        """
begun, go = threading.Event(), threading.Event()
def hold():
    with asmtp.sync.loop_thread._starting:
        begun.set()
        go.wait()
thread = threading.Thread(target=hold)
thread.start()
begun.wait()
child(lambda: send(1))
go.set()
thread.join()
send(2)
""",
    ),
    "while others send": (
        [2, 3, 4, 5],
        """
send(1)
go = threading.Event()
def work():
    while not go.is_set():
        send(1)
threads = [threading.Thread(target=work) for _ in range(4)]
for thread in threads:
    thread.start()
for number in range(2, 6):
    child(lambda: send(number))
go.set()
for thread in threads:
    thread.join()
""",
    ),
}


def test_in_what_takes_itself_for_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mailer acts as in a child, but in this process, where the test can look at it."""
    with mailing() as (relay, mailer):
        mailer.send(b"hi", SENDER, WHO)
        deliveries = mailer.send_all(items(3))
        next(deliveries)
        parents = mailer._thread
        assert parents is not None
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda: -1)
            with pytest.raises(SMTPStateError, match="in another process"):
                into([], deliveries)
            loop_thread._at_exit()
            mailer.send(b"hi", SENDER, WHO)
            assert mailer._thread is not parents
            assert mailer.stats.sent == 1
            mailer.close()
            assert parents in loop_thread._threads
            parents.leave()
        assert not parents.ended
        parents.end()
        assert said_goodbye(relay)


def test_the_lock_after_a_fork() -> None:
    """The child has a lock of its own: the thread that held the parent's is not there."""
    begun, go = threading.Event(), threading.Event()

    def hold() -> None:
        with loop_thread._starting:
            begun.set()
            go.wait(10)

    holding = aside(hold)
    assert begun.wait(10)
    loop_thread._forked()
    with mailing() as (_, mailer):
        assert mailer.send(b"hi", SENDER, WHO).complete
    go.set()
    holding.result()


@pytest.mark.sampled
@pytest.mark.parametrize(("numbers", "text"), FORKS.values(), ids=FORKS)
def test_fork(numbers: list[int], text: str) -> None:
    """Parent and child have connections of their own, and each of them says QUIT."""
    with relay_at(relay_of()) as relay:
        program(text, relay)
    sent = sorted(int(letter.content) for letter in relay.letters)
    assert [number for number in sent if number != 1 or 1 in numbers] == numbers
    assert said_goodbye(relay)


# ---- where no thread is started any more ------------------------------------------------------------


@pytest.fixture
def ending(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make it look as if the main thread has ended, after which Python 3.12 starts no threads."""
    monkeypatch.setattr(loop_thread, "ending", lambda: True)


@pytest.mark.usefixtures("ending")
def test_at_the_end_it_runs_in_who_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    with relay_at(relay_of()) as relay:
        with at(relay) as mailer, monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", lambda thread: pytest.fail("a thread"))
            mailer.verify()
            assert mailer.send(b"0", "a@x.example", "b@y.example").complete
            messages = [("a@x.example", "b@y.example", b"%d" % number) for number in range(1, 200)]
            assert all(delivery.ok for delivery in mailer.send_all(messages))
            assert mailer.drain() == []
        with pytest.raises(asmtp.SMTPStateError, match="the mailer was closed"):
            mailer.send(b"0", "a@x.example", "b@y.example")
        mailer.close()
    assert len(relay.letters) == 200


@pytest.mark.usefixtures("ending")
def test_at_the_end_threads_wait_for_each_other() -> None:
    with relay_at(relay_of()) as relay, at(relay) as mailer:
        receipts = together(8, lambda number: mailer.send(b"%d" % number, "a@x.example", "b@y.example"))
        assert all(receipt.complete for receipt in receipts)
        for _ in mailer.send_all([("a@x.example", "b@y.example", b"8")] * 5):
            break
        loop_thread._at_exit()
        with pytest.raises(asmtp.SMTPStateError, match="the mailer was closed"):
            mailer.drain()
    assert len(relay.letters) >= 9
