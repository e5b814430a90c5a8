"""A mailer at a relay, calls from many threads, Ctrl-C, and a check of what is left, for all tests of Mailer."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import pytest

from asmtp import Mailer
from asmtp.sync import loop_thread
from tests.fakes.relay import SHAPES, Relay
from tests.sync.facade import relay_at

__all__ = [
    "Stop",
    "aside",
    "at",
    "interrupted",
    "into",
    "mailing",
    "nothing_left",
    "program",
    "relay_of",
    "together",
    "until",
]

T = TypeVar("T")

LONG = 20
"""Seconds in which what has to happen does happen."""


class Stop:
    """A relay's `answer` that at one point waits until it is told to go on; the whole server waits.

    Args:
        verb: where, as for :class:`Relay`'s `answer`.
        what: only where this is in the line, or in the content.

    Attributes:
        reached: the server waits.
        go: it shall go on.
        gave_up: it was not told to, for so long that what it was to show was not seen.
    """

    def __init__(self, verb: str = ".", what: str = "") -> None:
        self.reached = threading.Event()
        self.go = threading.Event()
        self.gave_up = False
        self._verb = verb
        self._what = what

    def __call__(self, verb: str, line: str) -> str | None:
        if verb == self._verb and self._what in line:
            self.reached.set()
            self.gave_up = not self.go.wait(LONG)
            assert not self.gave_up
        return None


def relay_of(answer: Any = None) -> Relay:
    """Return a relay that can do everything."""
    return Relay(SHAPES["both"], **({} if answer is None else {"answer": answer}))


def at(relay: Relay, **options: Any) -> Mailer:
    """Return a mailer for a relay."""
    return Mailer(f"smtp://127.0.0.1:{relay.port}", **{"local_hostname": "me.example", **options})


@contextlib.contextmanager
def mailing(answer: Any = None, **options: Any) -> Iterator[tuple[Relay, Mailer]]:
    """Run a relay with these answers, and a mailer for it."""
    with relay_at(relay_of(answer)) as relay, at(relay, **options) as mailer:
        try:
            yield relay, mailer
        finally:
            if isinstance(answer, Stop):
                answer.go.set()
                assert not answer.gave_up


@contextlib.contextmanager
def nothing_left(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Check that no thread goes on, that no exception was lost, and that nothing is dropped open."""
    before = set(threading.enumerate())
    yield
    gc.collect(1)  # what was dropped open says so now, and fails the test: warnings are errors
    until(lambda: not set(threading.enumerate()) - before and not loop_thread._threads)
    assert not [record.getMessage() for record in caplog.records if record.name == "asyncio"]


def into(told: list[T], source: Iterable[T]) -> None:
    """Loop, and keep what came, even if the loop ends with an exception."""
    for each in source:
        told.append(each)  # noqa: PERF402  # list.extend says nothing of that


def until(condition: Callable[[], Any]) -> None:
    """Wait until another thread has made the condition true."""
    end = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def aside(function: Callable[[], T]) -> Future[T]:
    """Call in another thread."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            result = function()
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(result)

    threading.Thread(target=run).start()
    return future


def together(count: int, function: Callable[[int], T]) -> list[T]:
    """Call in so many threads at once."""
    barrier = threading.Barrier(count)

    def run(number: int) -> T:
        barrier.wait(LONG)
        return function(number)

    with ThreadPoolExecutor(count) as threads:
        return list(threads.map(run, range(count)))


@contextlib.contextmanager
def interrupted(when: threading.Event) -> Iterator[None]:
    """Send Ctrl-C when the event comes and the main thread waits, and expect KeyboardInterrupt from the block."""
    main = threading.main_thread().ident
    assert main == threading.get_ident()

    def place() -> tuple[Any, int]:
        frame = sys._current_frames()[main]
        return frame, frame.f_lasti

    def waits() -> bool:
        names = [frame.f_code.co_name for frame, _ in traceback.walk_stack(place()[0])]
        starts_a_thread = "start" in names[:3]  # `Thread.start` waits too, until the thread runs
        return names[0] in {"wait", "join", "_wait_for_tstate_lock"} and not starts_a_thread

    def interrupt() -> None:
        try:
            assert inside.wait(LONG)
            assert when.wait(LONG)
            until(waits)
        finally:
            before = place()
            while place() == before:  # one that comes just before it begins to wait does not wake it
                signal.pthread_kill(main, signal.SIGINT)
                time.sleep(0.01)

    inside = threading.Event()
    came = False
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # it is ignored in what runs in the background
    try:
        done = aside(interrupt)
        try:
            inside.set()
            yield
        finally:
            done.result()  # so that it does not come later
    except KeyboardInterrupt:
        came = True
    finally:
        signal.signal(signal.SIGINT, handler)
    assert came


def program(text: str, relay: Relay) -> None:
    """Run a program that has a `mailer` and a `message`, and check that it ends by itself and says nothing."""
    start = (
        "import asmtp, os, sys, threading\n"
        f"mailer = asmtp.Mailer('smtp://127.0.0.1:{relay.port}', local_hostname='me.example', connections=1)\n"
        "def message(n): return 'a@x.example', 'b@y.example', b'%d' % n\n"
        "def send(n): sender, recipient, content = message(n); return mailer.send(content, sender, recipient)\n"
        "def child(function):\n"
        "    pid = os.fork()\n"
        "    if not pid: function(); sys.exit()\n"
        "    assert os.waitpid(pid, 0)[1] == 0\n"
    )
    # Python 3.12 warns of every fork where there are threads.
    warnings = ["-W", "error", "-W", "ignore:This process:DeprecationWarning"]
    command = [sys.executable, *warnings, "-c", start + text]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, process_group=0) as process:
        try:
            out, err = process.communicate(timeout=LONG)
        finally:
            with contextlib.suppress(ProcessLookupError):  # it and its children have ended
                os.killpg(process.pid, signal.SIGKILL)
    assert (out, err, process.returncode) == ("", "", 0)
