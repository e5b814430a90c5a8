"""The clients that a facade drives, and what they have that the async ones have not."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
from collections.abc import Generator
from types import SimpleNamespace
from typing import Any

import pytest

import asmtp
from asmtp.protocol.reply import Reply
from asmtp.sync.client import BlockingClient, BlockingLMTPClient, BlockingSSLClient
from tests.conftest import Certificates
from tests.fakes.background import calling
from tests.fakes.relay import Relay
from tests.fakes.script import Peer, drip, expect, fin, nothing_more, send, silence
from tests.sync.driven import Facade
from tests.sync.facade import relay_at, script_at

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
    facade = Facade(loop, BlockingSSLClient(local_hostname="client.example", ssl_context=certificates.trusting))
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
