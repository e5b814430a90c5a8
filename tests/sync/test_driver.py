"""Driving a coroutine without a task, and what the driven clients have that the async ones have not."""

from __future__ import annotations

import asyncio
import gc
import os
import select
import selectors
import signal
import socket
import threading
from collections.abc import Coroutine, Generator, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

import asmtp
from asmtp.protocol.reply import Reply
from asmtp.sync.client import BlockingClient, BlockingClientSSL, BlockingLMTPClient
from asmtp.sync.driver import drive, in_task, new_selector
from tests.conftest import Certificates
from tests.fakes.background import calling
from tests.fakes.relay import Relay
from tests.fakes.script import Peer, drip, expect, fin, nothing_more, send, silence
from tests.sync.facade import relay_at, script_at


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.SelectorEventLoop()
    complaints: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda loop, context: complaints.append(context))
    threads = set(threading.enumerate())
    yield loop
    assert asyncio._get_running_loop() is None
    assert not asyncio.all_tasks(loop)
    loop.close()
    gc.collect(1)
    assert not complaints
    assert set(threading.enumerate()) <= threads  # an earlier test's worker of anyio's may end meanwhile


class Facade:
    """The least that there can be of one."""

    def __init__(self, loop: asyncio.AbstractEventLoop, client: BlockingClient) -> None:
        self.loop = loop
        self.client = client
        client.facade = lambda: self

    def connect(self, host: str, port: int) -> Any:
        return self.loop.run_until_complete(self.client.connect(host, port))

    def __call__(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return drive(self.loop, self.client, coroutine)

    def close(self) -> None:
        released = self.client.close()

        async def wait() -> None:
            await released

        self.loop.run_until_complete(wait())


@pytest.fixture
def facade(loop: asyncio.AbstractEventLoop) -> Iterator[Facade]:
    made = Facade(loop, BlockingClient(local_hostname="client.example"))
    yield made
    made.close()


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
    """What goes on in this thread meanwhile, in another greenlet, may run one of its own."""
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


# ---- a client, driven -----------------------------------------------------------------------------


def test_commands(facade: Facade) -> None:
    with relay_at(Relay(("PIPELINING", "CHUNKING"))) as relay:
        assert facade.connect("127.0.0.1", relay.port) == (220, b"relay.example ESMTP")
        client = facade.client
        assert facade(client.ehlo()).code == 250
        for number in range(3):
            assert facade(client.sendmail("a@b.example", "c@d.example", f"{number}")) == {}
        assert facade(client.noop()) == (250, b"2.0.0 ok")
        with pytest.raises(asmtp.SMTPResponseException):
            facade(client.data("no recipients"))
        assert facade(client.quit()) == (221, b"2.0.0 bye")
        with pytest.raises(asmtp.SMTPServerDisconnected, match="please run connect"):
            facade(client.noop())
    assert [letter.content for letter in relay.letters] == [b"0\r\n", b"1\r\n", b"2\r\n"]


def test_a_reply_in_pieces_and_what_the_loop_has_to_do_meanwhile(facade: Facade) -> None:
    script = [send("220 hi"), expect("noop"), drip("250-one", "250 two"), expect("noop"), send("250 three"), fin]
    with script_at(script) as server:
        facade.connect("127.0.0.1", server.port)
        assert facade(facade.client.noop()) == (250, b"one\ntwo")
        assert facade(facade.client.noop()) == (250, b"three")
        with pytest.raises(asmtp.SMTPServerDisconnected):
            facade(facade.client.noop())


def test_the_server_closes(facade: Facade) -> None:
    with script_at([send("220 hi"), expect("noop"), fin]) as server:
        facade.connect("127.0.0.1", server.port)
        with pytest.raises(asmtp.SMTPServerDisconnected, match="^Connection unexpectedly closed$"):
            facade(facade.client.noop())
        assert not facade.client.is_connected


def test_deadlines_hold(loop: asyncio.AbstractEventLoop) -> None:
    facade = Facade(loop, BlockingClient(local_hostname="client.example", timeout=0.02))
    with script_at([send("220 hi"), expect("noop"), silence]) as server:
        facade.connect("127.0.0.1", server.port)
        with pytest.raises(asmtp.SMTPTimeoutError, match=r"no answer to a command within 0\.02 seconds"):
            facade(facade.client.noop())
        facade.close()


@pytest.mark.parametrize("limit", [0.05, asmtp.Timeouts(command=0.05)], ids=["all", "one"])
def test_deadlines_hold_where_a_reply_drips_in(limit: Any, loop: asyncio.AbstractEventLoop) -> None:
    async def for_ever(peer: Peer) -> None:
        peer.transport.write(b"250-")
        while not peer.closed.is_set():
            peer.transport.write(b"x")
            await asyncio.sleep(0.001)

    facade = Facade(loop, BlockingClient(local_hostname="client.example", timeout=limit))
    with script_at([send("220 hi"), expect("noop"), for_ever]) as server:
        facade.connect("127.0.0.1", server.port)
        with pytest.raises(asmtp.SMTPTimeoutError, match=r"no answer to a command within 0\.05 seconds"):
            facade(facade.client.noop())
        facade.close()


def test_what_does_not_fit_the_send_buffer_leaves(loop: asyncio.AbstractEventLoop) -> None:
    """It waits until the kernel takes more, and does not look for the reply meanwhile."""
    with relay_at(Relay(("PIPELINING",))) as relay:
        sock = socket.create_connection(("127.0.0.1", relay.port))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        facade = Facade(loop, BlockingClient(local_hostname="client.example", sock=sock))
        facade.connect("", 0)
        facade(facade.client.ehlo())
        assert facade.client._connection is not None
        facade.client._connection._tick = 3600.0  # how long it reads without looking up
        for _ in range(3):
            assert facade(facade.client.sendmail("a@b", "c@d", b"x" * 60_000)) == {}
        facade.close()
    assert [len(letter.content) for letter in relay.letters] == [60_002] * 3


def test_under_tls(loop: asyncio.AbstractEventLoop, certificates: Certificates) -> None:
    facade = Facade(loop, BlockingClientSSL(local_hostname="client.example", ssl_context=certificates.trusting))
    with relay_at(tls=certificates.server) as relay:
        facade.connect("127.0.0.1", relay.port)
        assert facade(facade.client.sendmail("a@b.example", "c@d.example", "x" * 300_000)) == {}
        assert facade(facade.client.noop()) == (250, b"2.0.0 ok")
        facade.close()


def test_lmtp(loop: asyncio.AbstractEventLoop) -> None:
    facade = Facade(loop, BlockingLMTPClient(local_hostname="client.example"))
    with relay_at(Relay(lmtp=True, answer=lambda verb, line: "550 no" if verb == ".e@f" else None)) as relay:
        facade.connect("127.0.0.1", relay.port)
        assert facade(facade.client.sendmail("a@b", ["c@d", "e@f"], "hi")) == {"e@f": (550, b"no")}
        facade.close()


def test_ctrl_c(facade: Facade) -> None:
    pressed: list[int] = []

    def interrupt(number: int, frame: Any) -> None:
        if not pressed:
            pressed.append(number)
            raise KeyboardInterrupt

    async def press(peer: Peer) -> None:
        while not pressed:
            os.kill(os.getpid(), signal.SIGINT)
            await asyncio.sleep(0.01)

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        with script_at([send("220 hi"), expect("noop"), press, nothing_more]) as server:
            facade.connect("127.0.0.1", server.port)
            with pytest.raises(KeyboardInterrupt):
                facade(facade.client.noop())
            facade.close()
    finally:
        signal.signal(signal.SIGINT, before)


# ---- what it has -----------------------------------------------------------------------------------


def test_whose_future_it_is(facade: Facade) -> None:
    def first_await(coroutine: Any) -> Any:
        asyncio._set_running_loop(facade.loop)
        try:
            return coroutine.send(None)
        finally:
            asyncio._set_running_loop(None)

    assert facade.client.connection_of(facade.loop.create_future()) is None
    assert facade.client.readable() is False
    with relay_at() as relay:
        facade.connect("127.0.0.1", relay.port)
        noop = facade.client.noop()
        future = first_await(noop)
        assert facade.client.connection_of(future) is facade.client._connection
        assert facade.client.connection_of(facade.loop.create_future()) is None
        noop.close()


def test_readable(facade: Facade) -> None:
    with script_at([send("220 hi"), nothing_more]) as server:
        facade.connect("127.0.0.1", server.port)
        assert not facade.client.readable()
        calling(lambda: server.peer.transport.write(b"421 bye\r\n"))
        while not facade.client.readable():
            pass
        facade(asyncio.sleep(0))
        assert not facade.client.is_connected
        facade.close()


def test_cut(facade: Facade) -> None:
    facade.client.cut()
    with script_at([send("220 hi"), expect("noop"), silence]) as server:
        facade.connect("127.0.0.1", server.port)
        other = threading.Thread(target=facade.client.cut)
        facade.loop.call_soon(other.start)
        with pytest.raises(asmtp.SMTPServerDisconnected):
            facade(facade.client.noop())
        other.join()
        facade.client.cut()


def test_blocking_work_is_done_here(facade: Facade, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading.Thread, "start", lambda thread: pytest.fail("a thread"))
    assert facade(facade.client._environment.offload(divmod, 7, 2)) == (3, 1)
    assert facade(facade.client._environment.call_out(divmod, 7, 2)) == (3, 1)
    assert facade(facade.client._environment.call_out(asyncio._get_running_loop)) is None
    asked = SimpleNamespace(arguments=())

    def getaddrinfo(*args: Any, **options: Any) -> Generator[Any, None, None]:
        asked.arguments = (*args, options)
        yield "address"

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    assert facade(facade.client._environment.resolve("host.example", 25)) == ["address"]
    assert asked.arguments == ("host.example", 25, {"type": socket.SOCK_STREAM})


def test_a_greeting_is_for_the_caller_to_judge(facade: Facade) -> None:
    with script_at([send("554 no"), nothing_more]) as server:
        assert facade.connect("127.0.0.1", server.port) == (554, b"no")
        assert facade.client.is_connected
        facade.close()
    assert facade.client._welcome(Reply(220, b"")) is True


def test_by_hand(facade: Facade) -> None:
    client = facade.client
    with pytest.raises(asmtp.SMTPServerDisconnected, match="please run connect"):
        facade(client.send(b"noop\r\n"))
    with pytest.raises(asmtp.SMTPServerDisconnected, match="please run connect"):
        facade(client.getreply())
    with relay_at(Relay(("PIPELINING",))) as relay:
        facade.connect("127.0.0.1", relay.port)
        facade(client.send(b""))
        facade(client.send(b"noop 1\r\nnoop 2\r\n"))
        facade(client.send(b"mail from:<>\r\nrcpt to:<a@b>\r\ndata\r\n"))
        assert [facade(client.getreply()).code for _ in range(5)] == [250, 250, 250, 250, 354]
        for part in (b"one\r\n", b"two\r\n.\r\n", b"quit\r\n"):
            facade(client.send(part))
        assert [facade(client.getreply()).code for _ in range(2)] == [250, 221]
        with pytest.raises(asmtp.SMTPServerDisconnected):
            facade(client.getreply())
    assert relay.letters[0].content == b"one\r\ntwo\r\n"


def test_much_by_hand(facade: Facade) -> None:
    """It is not kept in memory until somebody asks for a reply."""
    line = b"x" * 998 + b"\r\n"
    with relay_at() as relay:
        facade.connect("127.0.0.1", relay.port)
        for command in (b"mail from:<>\r\n", b"rcpt to:<a@b>\r\n", b"data\r\n"):
            facade(facade.client.send(command))
            facade(facade.client.getreply())
        facade(facade.client.send(line * 20_000))
        assert facade.client._connection is not None
        assert facade.client._connection.transport.get_write_buffer_size() < 200_000
        facade(facade.client.send(b".\r\n"))
        assert facade(facade.client.getreply()) == (250, b"2.0.0 taken")
    assert relay.letters[0].content == line * 20_000


def test_what_was_sent_by_hand_and_fails(facade: Facade) -> None:
    with script_at([send("220 hi"), expect("noop"), send("250 ok"), expect("noop"), fin]) as server:
        facade.connect("127.0.0.1", server.port)
        facade(facade.client.send(b"noop\r\n"))
        facade(facade.client.send(b"noop\r\n"))
        assert facade(facade.client.getreply()) == (250, b"ok")
        for _ in range(2):
            with pytest.raises(asmtp.SMTPServerDisconnected):
                facade(facade.client.getreply())


def test_what_cannot_be_sent(facade: Facade) -> None:
    with script_at([send("220 hi"), nothing_more]) as server:
        facade.connect("127.0.0.1", server.port)
        facade.client._session.close()
        with pytest.raises(asmtp.SMTPServerDisconnected):
            facade(facade.client.send(b"noop\r\n"))
        facade.close()


def test_replies_of_a_connection_are_not_those_of_the_next(facade: Facade) -> None:
    with relay_at() as relay:
        facade.connect("127.0.0.1", relay.port)
        facade(facade.client.send(b"noop 1\r\n"))
        facade.close()
        facade.connect("127.0.0.1", relay.port)
        facade(facade.client.send(b"noop 2\r\n"))
        assert facade(facade.client.getreply()) == (250, b"2.0.0 ok 2")


def test_responses_are_not_traced(facade: Facade) -> None:
    traced: list[tuple[str, bytes]] = []
    script = [send("220 hi"), expect("AUTH X"), send("334 "), expect("c2VjcmV0"), send("235 ok"), nothing_more]
    with script_at(script) as server:
        facade.connect("127.0.0.1", server.port)
        facade.client.trace = lambda direction, data: traced.append((direction, data))
        assert facade(facade.client.respond(b"AUTH X\r\n")) == (334, b"")
        assert facade(facade.client.respond(b"c2VjcmV0\r\n")) == (235, b"ok")
        facade.close()
    assert traced == [(">", b"(not shown)"), ("<", b"334 "), (">", b"(not shown)"), ("<", b"235 ok")]


def test_a_command_that_hands_out_its_dialogue(loop: asyncio.AbstractEventLoop) -> None:
    client = BlockingClient(local_hostname="client.example")
    command = client.ehlo()
    client.hand_out(True)
    handed: Any = command.send(None)
    client.hand_out(False)
    assert next(handed).data == b"ehlo client.example\r\n"
    with pytest.raises(StopIteration) as caught:
        command.send(Reply(250, b"hi"))
    assert caught.value.value == Reply(250, b"hi")
    assert client.ehlo_resp == b"hi"


def test_a_reply_that_is_kept(loop: asyncio.AbstractEventLoop) -> None:
    client = BlockingClient()
    facade = Facade(loop, client)
    client.keep(Reply(220, b"hi"))
    assert facade(client.getreply()) == (220, b"hi")
    client.ehlo_resp = b"hi"
    client.leave()
    assert client.ehlo_resp is None


def test_no_connection_in_the_words_of_the_system(loop: asyncio.AbstractEventLoop) -> None:
    client = BlockingClient()
    facade = Facade(loop, client)
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        with pytest.raises(ConnectionRefusedError) as caught:
            facade.connect("127.0.0.1", sock.getsockname()[1])
    assert caught.value.strerror == os.strerror(caught.value.errno or 0)
    assert "Connect call failed" in str(caught.value.__cause__)
