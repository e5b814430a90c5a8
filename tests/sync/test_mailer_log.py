"""Log handlers that mail through a Mailer, and who handles what its thread logs."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest

import asmtp
from asmtp.client.events import is_handling
from asmtp.sync import loop_thread
from tests.fakes.background import not_of_a_server
from tests.fakes.people import SENDER, WHO
from tests.fakes.relay import SHAPES, Relay
from tests.sync.facade import relay_at
from tests.sync.threads import aside, at

ENOUGH = 500  # letters, of which there are some sixty


class Mailing(logging.Handler):
    """A handler that mails what is logged, and holds its lock meanwhile, as handlers do."""

    def __init__(self, mailer: asmtp.Mailer) -> None:
        super().__init__()
        self.mailer = mailer
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
        assert len(self.lines) < ENOUGH
        self.mailer.send(b"Subject: log\r\n\r\n", "log@x.example", WHO)


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """Set the root logger to DEBUG, with the test's handlers only."""
    logger = logging.getLogger()
    before = logger.level, logger.handlers[:]
    logger.setLevel(logging.DEBUG)
    yield logger
    logger.setLevel(before[0])
    logger.handlers[:] = before[1]


def ours(record: logging.LogRecord) -> bool:
    return record.name in ("asmtp", "app", "asyncio") and not_of_a_server(record)


def mailing(logger: logging.Logger, mailer: asmtp.Mailer) -> Mailing:
    handler = Mailing(mailer)
    handler.addFilter(ours)
    logger.handlers[:] = [handler]
    return handler


@pytest.mark.parametrize("threads", [1, 8])
def test_a_handler_that_mails(threads: int, root: logging.Logger) -> None:
    """There is no deadlock, though the caller holds the handler's lock, and no endless mail about mail."""
    with relay_at(Relay(SHAPES["both"])) as relay:
        mailer = at(relay)
        handler = mailing(root, mailer)
        calls = [aside(lambda: logging.getLogger("app").info("hello")) for _ in range(threads)]
        for call in calls:
            call.result(30)
        assert mailer.send(b"hi", SENDER, WHO).complete
        assert handler.lines.count("hello") == threads
        assert any("> mail from" in line for line in handler.lines)
        assert len(relay.letters) == len(handler.lines) + 1
        root.handlers.clear()
        mailer.close()


def test_a_handler_that_mails_what_another_mailer_logs(root: logging.Logger) -> None:
    with relay_at(Relay(SHAPES["both"])) as relay:
        handler = mailing(root, at(relay))
        with at(relay) as mailer:
            assert mailer.send(b"hi", SENDER, WHO).complete
            assert [delivery.state for delivery in mailer.send_all([(SENDER, WHO, b"hi")] * 3)] == ["sent"] * 3
        assert any("sent to 1 recipients" in line for line in handler.lines)
        assert any("QUIT" in line.upper() for line in handler.lines)
        root.handlers.clear()
        handler.mailer.close()
        assert len(relay.letters) == len(handler.lines) + 4


def test_a_handler_that_mails_what_an_async_mailer_logs(root: logging.Logger) -> None:
    """The handler blocks the AsyncMailer's loop, for which the other mailer does not wait."""

    async def send(relay: Relay) -> list[asmtp.Receipt]:
        async with asmtp.AsyncMailer(f"smtp://{relay.host}:{relay.port}") as mailer:
            return await asyncio.gather(*(mailer.send(b"hi", SENDER, WHO) for _ in range(3)))

    with relay_at(Relay(SHAPES["both"])) as relay, relay_at(Relay(SHAPES["both"])) as logs:
        handler = mailing(root, at(logs))
        assert all(receipt.complete for receipt in asyncio.run(send(relay)))
        root.handlers.clear()
        handler.mailer.close()
        assert len(logs.letters) == len(handler.lines) > 3


class Noting(logging.Handler):
    """A handler that notes in which thread a line was handled."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[tuple[str, str]] = []
        self.last = ("", "")  # of asmtp's lines; asyncio logs more in debug mode

    def emit(self, record: logging.LogRecord) -> None:
        assert is_handling() or record.name != "asmtp"
        line = threading.current_thread().name, record.getMessage()
        self.lines.append(line)
        if record.name == "asmtp":
            self.last = line


def noting(logger: logging.Logger) -> Noting:
    handler = Noting()
    handler.addFilter(ours)
    logger.handlers[:] = [handler]
    return handler


def test_who_waits_handles_what_is_logged(root: logging.Logger) -> None:
    """A caller that waits handles records at once, before the call returns; the next caller those of times between."""
    with relay_at(Relay(SHAPES["both"])) as relay:
        handler = noting(root)
        mailer = at(relay)
        mailer.send(b"hi", SENDER, WHO)
        assert any("sent to 1 recipients" in line for _, line in handler.lines)
        assert mailer._thread is not None
        mailer._thread.soon(logging.getLogger("asmtp").warning, "nobody waits")
        mailer.drain()
        assert "nobody waits" in [line for _, line in handler.lines]
        mailer.close()
        assert "closed: connection closed on our side" in handler.last[1]
        assert {name for name, _ in handler.lines} == {threading.current_thread().name}


def test_what_a_mailer_logs_that_is_dropped(root: logging.Logger) -> None:
    """No caller waits for the thread of a dropped mailer, which handles its records itself when it ends."""
    with relay_at(Relay(SHAPES["both"])) as relay:
        handler = noting(root)
        mailer = at(relay)
        mailer.send(b"hi", SENDER, WHO)
        thread = mailer._thread
        assert thread is not None
        del mailer
        gc.collect()
        thread._thread.join(30)
        assert handler.last[0] == "asmtp mailer"
        assert "closed: connection closed on our side" in handler.last[1]


def test_a_handler_that_mails_at_the_end_of_the_program(root: logging.Logger, monkeypatch: pytest.MonkeyPatch) -> None:
    """There the loop runs in the caller's thread."""
    monkeypatch.setattr(loop_thread, "ending", lambda: True)
    with relay_at(Relay(SHAPES["both"])) as relay:
        mailer = at(relay)
        handler = mailing(root, mailer)
        logging.getLogger("app").info("hello")
        assert handler.lines[0] == "hello"
        root.handlers.clear()
        mailer.close()
        assert len(relay.letters) == len(handler.lines)


def test_an_interrupted_caller_leaves_what_was_logged_to_the_next(root: logging.Logger) -> None:
    with relay_at(Relay(SHAPES["both"])) as relay:
        handler = noting(root)
        mailer = at(relay)
        mailer.send(b"hi", SENDER, WHO)
        log: Any = mailer._thread and mailer._thread._records
        call: Any = Future()
        record = logging.makeLogRecord({"name": "asmtp", "levelno": logging.WARNING, "msg": "left"})
        with pytest.raises(KeyboardInterrupt), log.heard_until(call):
            log.keep(record)
            call.set_result(None)
            raise KeyboardInterrupt
        assert "left" not in [line for _, line in handler.lines]
        mailer.drain()
        assert "left" in [line for _, line in handler.lines]
        mailer.close()
