"""Driving a coroutine without a task."""

from __future__ import annotations

import asyncio
import select
import selectors
import socket
from typing import Any

import pytest

from asmtp.sync.driver import in_task, new_selector
from tests.sync.driven import Facade

# ---- drive --------------------------------------------------------------------------------------


def test_a_result(facade: Facade) -> None:
    async def work() -> str:
        assert asyncio.get_running_loop() is facade.loop
        assert asyncio.current_task() is None
        return "done"

    assert facade(work()) == "done"


def test_passes_of_the_loop(facade: Facade) -> None:
    async def work() -> list[int]:
        seen: list[int] = []
        for number in range(3):
            facade.loop.call_soon(seen.append, number)
            await asyncio.sleep(0)
        return seen

    assert facade(work()) == [0, 1, 2]


def test_futures_that_are_not_the_connections(facade: Facade) -> None:
    async def work() -> list[Any]:
        futures: list[asyncio.Future[str]] = [facade.loop.create_future() for _ in range(3)]
        facade.loop.call_soon(futures[0].set_result, "soon")
        facade.loop.call_later(0.001, futures[1].set_result, "later")
        futures[2].set_result("already")
        event = asyncio.Event()
        facade.loop.call_soon(event.set)
        return [*[await future for future in futures], await event.wait(), await asyncio.sleep(0.001, "slept")]

    assert facade(work()) == ["soon", "later", "already", True, "slept"]


def test_a_future_with_an_exception_or_cancelled(facade: Facade) -> None:
    async def work() -> list[str]:
        caught: list[str] = []
        for kind in (ValueError, asyncio.CancelledError):
            future: asyncio.Future[None] = facade.loop.create_future()
            if kind is ValueError:
                facade.loop.call_soon(future.set_exception, ValueError("bad"))
            else:
                facade.loop.call_soon(future.cancel)
            try:
                await future
            except kind as error:
                caught.append(type(error).__name__)
        return caught

    assert facade(work()) == ["ValueError", "CancelledError"]


def test_an_exception(facade: Facade) -> None:
    closed: list[str] = []

    async def work() -> None:
        try:
            await asyncio.sleep(0)
            raise LookupError("of its own")
        finally:
            closed.append("closed")

    with pytest.raises(LookupError, match="of its own"):
        facade(work())
    assert closed == ["closed"]


def test_the_loop_that_was_stopped_too_early_goes_on(facade: Facade) -> None:
    """A stop that was meant for somebody else is no result."""

    async def work() -> str:
        future: asyncio.Future[str] = facade.loop.create_future()
        facade.loop.call_soon(facade.loop.stop)
        facade.loop.call_later(0.001, future.set_result, "all the same")
        return await future

    assert facade(work()) == "all the same"


@pytest.mark.parametrize("place", ["in the loop", "in the coroutine"])
def test_an_interruption_closes_the_coroutine(place: str, facade: Facade) -> None:
    ended: list[str] = []

    def interrupt() -> None:
        raise KeyboardInterrupt

    async def work() -> None:
        try:
            if place == "in the coroutine":
                interrupt()
            facade.loop.call_soon(interrupt)
            await facade.loop.create_future()
        except GeneratorExit:
            ended.append("closed")
            raise
        except KeyboardInterrupt:
            ended.append("interrupted")
            raise

    coroutine = work()
    with pytest.raises(KeyboardInterrupt):
        facade(coroutine)
    assert ended == ["closed" if place == "in the loop" else "interrupted"]


def test_in_a_task(facade: Facade) -> None:
    async def work() -> str:
        assert asyncio.current_task() is not None
        async with asyncio.timeout(5):
            await asyncio.sleep(0)
        return "done"

    assert facade(in_task(work())) == "done"


def test_what_is_raised_in_a_callback(facade: Facade) -> None:
    async def work() -> None:
        facade.loop.call_soon(divmod, 1, 0)
        await facade.loop.create_future()

    facade.loop.set_exception_handler(facade.client.strike)
    with pytest.raises(ZeroDivisionError):
        facade(work())
    assert isinstance(facade.client.struck, ZeroDivisionError)


@pytest.mark.parametrize(
    "context", [{}, {"exception": ValueError("lost"), "future": None}], ids=["no exception", "lost"]
)
def test_what_else_the_loop_tells(context: dict[str, Any], facade: Facade, caplog: pytest.LogCaptureFixture) -> None:
    facade.client.strike(facade.loop, {"message": "something", **context})
    assert facade.client.struck is None
    assert [record.getMessage().partition("\n")[0] for record in caplog.records] == ["something"]


@pytest.mark.parametrize("poll", [True, False], ids=["poll", "none"])
def test_a_selector(poll: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """gevent puts a class in the place of the function, eventlet takes it away, and Windows has none."""
    if not poll:
        monkeypatch.delattr(select, "poll")
    selector = new_selector()
    assert isinstance(selector, selectors.PollSelector) is poll
    left, right = socket.socketpair()
    with left, right:
        selector.register(left, selectors.EVENT_READ)
        right.send(b"x")
        assert [key.fileobj for key, _ in selector.select(5)] == [left]
        selector.close()


def test_no_loop_runs_while_it_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another greenlet of this thread may run a loop of its own meanwhile."""
    running: list[Any] = []

    class Green(selectors.SelectSelector):
        def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
            running.append(asyncio._get_running_loop())
            return super().select(timeout)

    with monkeypatch.context() as patch:
        patch.delattr(select, "poll")
        patch.setattr(selectors, "DefaultSelector", Green)
        loop = asyncio.SelectorEventLoop(new_selector())
    seen: list[Any] = []
    loop.call_soon(lambda: seen.append(asyncio._get_running_loop()))
    loop.call_soon(loop.stop)
    loop.run_forever()
    loop.close()
    assert running == [None]
    assert seen == [loop]
