"""The blocking facade: from several threads, and from async code."""

from __future__ import annotations

import asyncio
import smtplib
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvloop

import asmtp
from tests.conftest import Certificates
from tests.fakes.background import in_background
from tests.fakes.embedded import PASSWORD, USER, Embedded, embedded
from tests.fakes.relay import Relay
from tests.sync.facade import BOTH, A, B, connected, nothing_left, relay_at, seen


@pytest.fixture(autouse=True)
def loops(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[asyncio.AbstractEventLoop]]:
    with nothing_left(monkeypatch) as made:
        yield made


def in_thread(call: Callable[[], Any]) -> Any:
    got: list[Any] = []
    thread = threading.Thread(target=lambda: got.append(seen(call)))
    thread.start()
    thread.join()
    return got[0]


@BOTH
def test_made_in_one_thread_used_in_others(module: Any) -> None:
    with relay_at(Relay(("PIPELINING",))) as relay:
        smtp = in_thread(lambda: module.SMTP("127.0.0.1", relay.port, "client.example"))
        assert smtp.ehlo()[0] == 250
        assert in_thread(lambda: smtp.sendmail(A, B, "one")) == {}
        assert smtp.sendmail(A, B, "two") == {}
        assert in_thread(smtp.quit) == (221, b"2.0.0 bye")
        assert seen(smtp.noop) == (smtplib.SMTPServerDisconnected, {})
    assert [letter.content for letter in relay.letters] == [b"one\r\n", b"two\r\n"]


@BOTH
def test_no_thread_is_started(module: Any, monkeypatch: pytest.MonkeyPatch, certificates: Certificates) -> None:
    def start(thread: threading.Thread) -> None:
        pytest.fail(f"{thread} started")

    handler = Embedded()
    with in_background(embedded(handler, tls=certificates.server)):
        monkeypatch.setattr(threading.Thread, "start", start)
        threads = set(threading.enumerate())
        with module.SMTP("localhost", handler.port, source_address=("localhost", 0)) as smtp:
            smtp.starttls(context=certificates.trusting)
            smtp.login(USER, PASSWORD)
            smtp.sendmail(A, B, "hi")
            smtp.verify("somebody")
            assert set(threading.enumerate()) <= threads
    assert len(handler.letters) == 1


async def from_async_code(module: Any, port: int) -> list[Any]:
    ran: list[str] = []
    asyncio.get_running_loop().call_soon(ran.append, "something else")
    smtp = module.SMTP("127.0.0.1", port, "client.example")
    results = [smtp.sendmail(A, B, "one"), smtp.noop(), seen(lambda: smtp.sendmail(A, "no@b.example", "two"))]
    with module.SMTP("127.0.0.1", port, "client.example") as another:
        results.append(another.docmd("noop", "another"))
    results.append(smtp.quit())
    assert smtp.sock is None
    smtp.connect("127.0.0.1", port)
    smtp.close()
    results.append(seen(smtp.noop))
    assert ran == []  # it blocks, as smtplib does
    await asyncio.sleep(0)
    assert ran == ["something else"]
    return results


@BOTH
@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_called_from_async_code(module: Any, factory: Any) -> None:
    relay = Relay(("PIPELINING", "CHUNKING"), answer=lambda verb, line: "550 no" if "no@b" in line else None)
    with relay_at(relay), asyncio.Runner(loop_factory=factory) as runner:
        results = runner.run(from_async_code(module, relay.port))
    assert results == [
        {},
        (250, b"2.0.0 ok"),
        (smtplib.SMTPRecipientsRefused, {"recipients": {"no@b.example": (550, b"no")}}),
        (250, b"2.0.0 ok another"),
        (221, b"2.0.0 bye"),
        (smtplib.SMTPServerDisconnected, {}),
    ]


def test_interrupted_before_the_helper_thread_has_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    """It does nothing then, though it may still begin."""
    helpers: list[threading.Thread] = []

    def start(thread: threading.Thread) -> None:
        helpers.append(thread)
        raise KeyboardInterrupt

    async def call(smtp: Any) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", start)
            with pytest.raises(KeyboardInterrupt):
                smtp.noop()

    with relay_at() as relay, connected(asmtp, relay) as smtp:
        asyncio.run(call(smtp))
        helpers[0].run()
        assert smtp.docmd("noop", "after") == (250, b"2.0.0 ok after")
    assert relay.commands == ["noop after"]


def test_under_a_policy_with_loops_of_another_kind() -> None:
    """The private loop is asyncio's, whatever others use."""
    script = (
        "import asyncio, asmtp, sys, uvloop, warnings; warnings.simplefilter('ignore', DeprecationWarning)\n"
        "asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())\n"
        "with asmtp.SMTP('127.0.0.1', int(sys.argv[1])) as smtp: print(smtp.sendmail('a@b.c', 'd@e.f', 'hi'))"
    )
    with relay_at() as relay:
        command = [sys.executable, "-W", "error", "-c", script, str(relay.port)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.stdout, done.stderr, done.returncode) == ("{}\n", "", 0)
