"""Canaries: each name of asyncio that the driver uses and that is private, and each of its words that the facade reads.

If one of these fails with a new Python, nothing else says as plainly what has changed.
"""

from __future__ import annotations

import ast
import asyncio
import errno
import re
import socket
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import aiohappyeyeballs
import pytest

import asmtp
from asmtp.sync.client import _WORDS

PRIVATE = {"_set_running_loop", "_get_running_loop", "_asyncio_future_blocking", "_thread_id"}
"""The names that have a test here."""


def test_private_names_are_used_in_the_driver_alone() -> None:
    names = {name for kind in (asyncio, asyncio.Future, asyncio.BaseEventLoop, asyncio.Task) for name in dir(kind)}
    private = {name for name in names if re.fullmatch("_[a-z][a-z_]+", name)} - {"_loop"} | PRIVATE
    for path in Path(asmtp.__file__).parent.rglob("*.py"):
        used = {
            node.attr
            for node in ast.walk(ast.parse(path.read_text("utf-8")))
            if isinstance(node, ast.Attribute)
            and node.attr in private
            and not (isinstance(node.value, ast.Name) and node.value.id == "self")
        }
        assert used == (PRIVATE if path.name == "driver.py" else set()), path


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.SelectorEventLoop()
    yield loop
    asyncio._set_running_loop(None)
    loop.close()


def test_set_running_loop_and_get_running_loop(loop: asyncio.AbstractEventLoop) -> None:
    """The loop that is set is the one that coroutines find; None is none."""
    assert asyncio._get_running_loop() is None
    asyncio._set_running_loop(loop)
    assert asyncio._get_running_loop() is loop
    assert asyncio.get_running_loop() is loop
    asyncio._set_running_loop(None)
    assert asyncio._get_running_loop() is None
    with pytest.raises(RuntimeError):
        asyncio.get_running_loop()


def test_a_loop_runs_if_none_is_set_as_running(loop: asyncio.AbstractEventLoop) -> None:
    """As it does while a coroutine is driven, whose own steps have it set as running."""
    asyncio._set_running_loop(loop)
    with pytest.raises(RuntimeError):
        loop.run_until_complete(done := asyncio.sleep(0))
    done.close()
    asyncio._set_running_loop(None)
    loop.run_until_complete(asyncio.sleep(0))
    assert asyncio._get_running_loop() is None


def test_asyncio_future_blocking(loop: asyncio.AbstractEventLoop) -> None:
    """A coroutine yields the future that it awaits, marked; whoever drives it takes the mark away, as a task does."""

    async def wait(future: asyncio.Future[str]) -> str:
        return await future

    future: asyncio.Future[str] = loop.create_future()
    assert future._asyncio_future_blocking is False
    waiting: Coroutine[Any, Any, str] = wait(future)
    assert waiting.send(None) is future
    assert future._asyncio_future_blocking is True
    future._asyncio_future_blocking = False
    future.set_result("done")
    with pytest.raises(StopIteration) as stopped:
        waiting.send(None)
    assert stopped.value.value == "done"


def test_a_pass_of_the_loop_is_a_bare_yield() -> None:
    """asyncio.sleep(0) yields None."""
    assert asyncio.sleep(0).send(None) is None


def test_a_coroutine_can_be_driven_without_a_task(loop: asyncio.AbstractEventLoop) -> None:
    async def work() -> Any:
        return asyncio.current_task()

    asyncio._set_running_loop(loop)
    working = work()
    with pytest.raises(StopIteration) as stopped:
        working.send(None)
    assert stopped.value.value is None


def test_thread_id(loop: asyncio.AbstractEventLoop) -> None:
    """A loop runs if it has one; a loop that was interrupted as it ended a run keeps it, and then says that it runs."""
    found: list[Any] = []
    loop.call_soon(lambda: found.append(vars(loop)["_thread_id"]))
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert found != [None]
    assert vars(loop)["_thread_id"] is None
    loop._thread_id = 1  # type: ignore[attr-defined]
    assert loop.is_running()
    loop._thread_id = None  # type: ignore[attr-defined]
    assert not loop.is_running()


def test_the_socket_of_a_transport_has_a_descriptor_to_read(loop: asyncio.AbstractEventLoop) -> None:
    """get_extra_info("socket") returns the socket that the loop reads; no other reads what the loop has read."""

    async def connect(ours: socket.socket) -> asyncio.Transport:
        transport, _ = await loop.create_connection(asyncio.Protocol, sock=ours)
        return transport

    ours, theirs = socket.socketpair()
    with theirs:
        ours.setblocking(False)
        transport = loop.run_until_complete(connect(ours))
        sock = transport.get_extra_info("socket")
        assert sock.fileno() == ours.fileno()
        assert sock.family == socket.AF_UNIX
        theirs.send(b"x")
        assert ours.recv(1) == b"x"
        assert transport.get_write_buffer_size() == 0
        assert transport.get_extra_info("sslcontext") is None
        transport.abort()
        loop.run_until_complete(asyncio.sleep(0))


# ---- the words ------------------------------------------------------------------------------------

REFUSING = 1  # a port of this machine at which nobody listens


def told(loop: asyncio.AbstractEventLoop, connecting: Coroutine[Any, Any, Any]) -> OSError:
    with pytest.raises(OSError, match=".") as caught:
        loop.run_until_complete(connecting)
    return caught.value


def test_connect_call_failed(loop: asyncio.AbstractEventLoop) -> None:
    with socket.socket() as sock:
        sock.setblocking(False)
        error = told(loop, loop.sock_connect(sock, ("127.0.0.1", REFUSING)))
    assert error.errno == errno.ECONNREFUSED
    assert str(error.strerror).startswith(_WORDS[0])


def test_multiple_exceptions(loop: asyncio.AbstractEventLoop) -> None:
    infos: Any = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, REFUSING)) for host in ("127.0.0.1", "127.0.0.2")]
    error = told(loop, aiohappyeyeballs.start_connection(infos, happy_eyeballs_delay=0.25, loop=loop))
    assert str(error.strerror).startswith(_WORDS[1])


def test_error_while_attempting_to_bind(loop: asyncio.AbstractEventLoop) -> None:
    infos: Any = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", REFUSING))]
    local: Any = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 0))]  # RFC 5737: nobody's
    error = told(loop, aiohappyeyeballs.start_connection(infos, local_addr_infos=local, loop=loop))
    assert error.errno == errno.EADDRNOTAVAIL
    assert str(error.strerror).startswith(_WORDS[2])
