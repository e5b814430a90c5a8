"""Calls that would block: in a thread, or in place when the program ends; and programs that send as they end."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from typing import Any

import anyio.to_thread
import pytest

from asmtp.transport.offload import call_in_thread
from tests.fakes.relay import SHAPES, Relay
from tests.sync.facade import relay_at


class Ended(threading.Thread):
    """A main thread that has ended."""


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "main_thread", Ended)


async def no_thread(*args: Any, **options: Any) -> None:
    raise RuntimeError("can't create new thread at interpreter shutdown")


def test_in_a_thread() -> None:
    assert asyncio.run(call_in_thread(threading.current_thread)) is not threading.current_thread()
    assert asyncio.run(call_in_thread(divmod, 7, 2, abandon=True)) == (3, 1)


@pytest.mark.usefixtures("ended")
def test_in_its_place() -> None:
    here = threading.current_thread()
    assert asyncio.run(call_in_thread(threading.current_thread)) is here


def test_where_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anyio.to_thread, "run_sync", no_thread)
    assert asyncio.run(call_in_thread(divmod, 7, 2)) == (3, 1)


def test_what_the_function_raises() -> None:
    calls: list[int] = []

    def fail() -> None:
        calls.append(1)
        raise RuntimeError("its own")

    with pytest.raises(RuntimeError, match="its own"):
        asyncio.run(call_in_thread(fail))
    assert calls == [1]


SENDS = {
    "SMTP": """
        with asmtp.SMTP(HOST, PORT, "me.example") as smtp:
            smtp.sendmail("a@b.example", "c@d.example", b"1")""",
    "AsyncSMTP": """
        async def main():
            async with asmtp.AsyncSMTP(HOST, PORT) as smtp:
                await smtp.sendmail("a@b.example", "c@d.example", b"1")
        asyncio.run(main())""",
    "AsyncMailer": """
        async def main():
            async with asmtp.AsyncMailer(f"smtp://{HOST}:{PORT}") as mailer:
                await mailer.send(b"1", "a@b.example", "c@d.example")
        asyncio.run(main())""",
    "Mailer": """
        with asmtp.Mailer(f"smtp://{HOST}:{PORT}") as mailer:
            mailer.send(b"1", "a@b.example", "c@d.example")""",
}
WHEN = {
    "at exit": "atexit.register(send)",
    "in a thread that outlives the main one": "threading.Thread(target=outlive).start()",
}


@pytest.mark.sampled
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
@pytest.mark.parametrize("when", WHEN)
@pytest.mark.parametrize("name", SENDS)
def test_a_program_that_ends_can_send(name: str, when: str, host: str) -> None:
    with relay_at(Relay(SHAPES["both"])) as relay:
        program = (
            f"import asyncio, atexit, threading\nHOST, PORT = {host!r}, {relay.port}\n"
            f"def send():\n        import asmtp{SENDS[name]}\n"
            "def outlive():\n    threading.main_thread().join()\n    send()\n"
            f"{WHEN[when]}\n"
        )
        command = [sys.executable, "-W", "error", "-c", program]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)
    assert [letter.content for letter in relay.letters] == [b"1\r\n"]
