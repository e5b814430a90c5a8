"""The blocking facade: how connections end, by us, by the server, by Ctrl-C, by nobody caring."""

from __future__ import annotations

import asyncio
import functools
import gc
import os
import signal
import smtplib
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import asmtp
from tests.conftest import Certificates
from tests.fakes.background import calling
from tests.fakes.relay import Relay
from tests.fakes.script import Peer, Step, expect, fin, nothing_more, send
from tests.sync.facade import BOTH, connected, nothing_left, relay_at, script_at, seen, told


@pytest.fixture(autouse=True)
def loops(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[asyncio.AbstractEventLoop]]:
    with nothing_left(monkeypatch) as made:
        yield made


def divide(number: int) -> float:
    return number / 0


@BOTH
def test_quit_and_once_more(module: Any) -> None:
    with relay_at() as relay:
        smtp = module.SMTP("127.0.0.1", relay.port, "client.example")
        for number in range(3):
            smtp.ehlo()
            smtp.helo()
            assert smtp.sendmail("a@b.example", "c@d.example", f"{number}") == {}
            assert smtp.quit() == (221, b"2.0.0 bye")
            known = [smtp.sock, smtp.file, smtp.helo_resp, smtp.ehlo_resp, smtp.esmtp_features, smtp.does_esmtp]
            assert known == [None, None, None, None, {}, False]
            with pytest.raises(module.SMTPServerDisconnected):
                smtp.quit()
            smtp.connect("127.0.0.1", relay.port)
        smtp.close()
        assert smtp.sock is None
        with pytest.raises(module.SMTPServerDisconnected):
            smtp.noop()
    assert [letter.content for letter in relay.letters] == [b"0\r\n", b"1\r\n", b"2\r\n"]


def test_connecting_again_closes_the_first_connection() -> None:
    with relay_at() as relay, connected(asmtp, relay) as smtp:
        smtp.ehlo()
        smtp.connect("127.0.0.1", relay.port)
        assert (smtp.ehlo_resp, smtp.does_esmtp) == (None, False)
        assert smtp.noop() == (250, b"2.0.0 ok")
        assert calling(lambda: relay.connections[0].eof)


@BOTH
@pytest.mark.parametrize("reply", ["421 bye now", "221 bye", "250 whatever", "500 what?"])
def test_quit_gives_the_reply(module: Any, reply: str) -> None:
    with script_at([send("220 ready"), expect("quit"), send(reply), fin]) as server:
        smtp = module.SMTP("127.0.0.1", server.port)
        assert smtp.quit() == (int(reply[:3]), reply[4:].encode())
        assert smtp.sock is None


def test_quit_where_the_server_closes_instead() -> None:
    with script_at([send("220 ready"), expect("quit"), fin]) as server:
        smtp = asmtp.SMTP("127.0.0.1", server.port)
        assert smtp.quit() == (-1, b"Connection unexpectedly closed")
        assert smtp.sock is None


@BOTH
def test_with(module: Any) -> None:
    with relay_at() as relay:
        with module.SMTP("127.0.0.1", relay.port) as smtp:
            smtp.noop()
        assert smtp.sock is None
        smtp = module.SMTP("127.0.0.1", relay.port)
        with pytest.raises(ZeroDivisionError), smtp:
            divide(smtp.noop()[0])
        assert smtp.sock is None
        with module.SMTP("127.0.0.1", relay.port) as smtp:
            smtp.quit()
        with module.SMTP():
            pass
    assert [command.lower() for command in relay.commands] == ["noop", "quit", "noop", "quit", "quit"]


@BOTH
@pytest.mark.parametrize("reply", ["421 bye", "250 fine", "500 no"])
def test_with_and_another_answer_to_quit(module: Any, reply: str) -> None:
    with script_at([send("220 ready"), expect("QUIT"), send(reply), nothing_more]) as server:
        with pytest.raises(module.SMTPResponseException) as caught, module.SMTP("127.0.0.1", server.port) as smtp:
            pass
        assert told(caught.value)[1] == {"smtp_code": int(reply[:3]), "smtp_error": reply[4:].encode()}
        assert smtp.sock is None


@BOTH
def test_with_where_the_server_has_gone(module: Any) -> None:
    with script_at([send("220 ready"), expect("QUIT"), fin]) as server, module.SMTP("127.0.0.1", server.port) as smtp:
        pass
    assert smtp.sock is None


def test_with_left_in_the_middle_of_content() -> None:
    """QUIT would be content, and smtplib would wait for an answer."""
    script = [send("220 ready"), expect("data"), send("354 go on"), expect(b"half a line"), nothing_more]
    with script_at(script) as server, connected(asmtp, server) as smtp:
        smtp.docmd("data")
        smtp.send("half a line")
        with pytest.raises(asmtp.SMTPStateError, match="no command is possible now: 354"):
            smtp.docmd("noop")
        with pytest.raises(ZeroDivisionError), smtp:
            divide(1)
        assert smtp.sock is None


@BOTH
@pytest.mark.parametrize("place", ["NOOP", "MAIL", "RCPT", "DATA", "."])
def test_the_server_closes_instead_of_answering(module: Any, place: str) -> None:
    def answer(verb: str, line: str) -> None:
        if verb == place:
            relay.drop()

    relay = Relay(answer=answer)
    with relay_at(relay), connected(module, relay) as smtp:
        smtp.ehlo()
        call = smtp.noop if place == "NOOP" else functools.partial(smtp.sendmail, "a@b.example", "c@d.example", "hi")
        with pytest.raises(module.SMTPServerDisconnected, match="^Connection unexpectedly closed$"):
            call()
        assert (smtp.sock, smtp.does_esmtp) == (None, True)
        assert seen(smtp.noop) == (smtplib.SMTPServerDisconnected, {})
        assert smtp.connect("127.0.0.1", relay.port)[0] == 220


@BOTH
def test_a_line_that_does_not_end(module: Any) -> None:
    script = [send("220 ready"), expect("noop"), send("250 " + "x" * 9000)]
    with script_at(script) as server, connected(module, server) as smtp:
        with pytest.raises(module.SMTPResponseException) as caught:
            smtp.noop()
        assert caught.value.smtp_code == 500
        assert smtp.sock is None


def test_what_is_no_reply() -> None:
    script = [send("220 ready"), expect("noop"), send("HTTP/1.1 400 Bad Request"), nothing_more]
    with script_at(script) as server, connected(asmtp, server) as smtp:
        with pytest.raises(asmtp.SMTPProtocolError) as caught:
            smtp.noop()
        assert caught.value.smtp_code == -1
        assert smtp.sock is None


# ---- what came while nobody looked ---------------------------------------------------------------


def until_readable(smtp: asmtp.SMTP) -> None:
    """Until the client's kernel has what the server sent."""
    while not smtp._client.readable():
        pass


@pytest.mark.parametrize("news", [b"", b"421 idle for too long\r\n"], ids=["EOF", "421"])
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
def test_an_idle_connection_that_the_server_closed(news: bytes, tls: bool, certificates: Certificates) -> None:
    """Nothing is written, so nothing can be in doubt."""
    script = [send("220 ready"), expect("ehlo client.example"), send("250 ok"), nothing_more]
    options = {"ssl_context": certificates.trusting, "tls": "implicit"} if tls else {}
    where = {"tls": certificates.server} if tls else {}
    with script_at(script, **where) as server, connected(asmtp, server, **options) as smtp:
        smtp.ehlo()
        transport = server.peer.transport
        calling(lambda: transport.write(news) if news else transport.close())
        until_readable(smtp)
        with pytest.raises(asmtp.SMTPServerDisconnected, match="421 idle" if news else "closed") as caught:
            smtp.sendmail("a@b.example", "c@d.example", "hi")
        assert caught.value.state == "not_sent"
        assert smtp.sock is None


def test_a_reply_that_nobody_asked_for() -> None:
    """smtplib takes it for the reply to the next command, and is out of step from there on."""
    with script_at([send("220 ready"), nothing_more]) as server, connected(asmtp, server) as smtp:
        calling(lambda: server.peer.transport.write(b"250 surprise\r\n"))
        until_readable(smtp)
        with pytest.raises(asmtp.SMTPProtocolError, match="a reply that no command is owed: '250 surprise'"):
            smtp.noop()
        assert smtp.sock is None


# ---- Ctrl-C --------------------------------------------------------------------------------------


interruptions: list[int] = []


async def press_ctrl_c(peer: Peer) -> None:
    """Send the signal: the server has read what it waited for, so the client waits for an answer now."""
    while not interruptions:  # a signal just before a system call that waits does not end it
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(0.01)


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    def interrupt(number: int, frame: Any) -> None:
        if not interruptions:
            interruptions.append(number)
            raise KeyboardInterrupt

    interruptions.clear()
    before = signal.signal(signal.SIGINT, interrupt)
    yield
    signal.signal(signal.SIGINT, before)


HELLO: list[Step] = [send("220 ready"), expect("ehlo client.example"), send("250-hi", "250-STARTTLS", "250 PIPELINING")]


def interrupted(smtp: Any, call: Callable[[], Any]) -> None:
    with pytest.raises(KeyboardInterrupt):
        call()
    assert smtp.sock is None
    with pytest.raises(smtplib.SMTPServerDisconnected, match=r"please run connect\(\) first"):
        smtp.noop()


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("place", ["reply", "content", "task"])
def test_ctrl_c(place: str) -> None:
    mail = b"mail from:<a@b.example>\r\nrcpt to:<c@d.example>\r\ndata\r\n"
    steps: dict[str, list[Step]] = {
        "reply": [*HELLO, expect("noop")],
        "content": [*HELLO, expect(mail), send("250 ok", "250 ok", "354 go on"), expect("hi", ".")],
        "task": [*HELLO, expect("STARTTLS")],
    }
    with script_at([*steps[place], press_ctrl_c, nothing_more]) as server, connected(asmtp, server) as smtp:
        smtp.ehlo()
        calls: dict[str, Callable[[], Any]] = {
            "reply": smtp.noop,
            "content": lambda: smtp.sendmail("a@b.example", "c@d.example", "hi"),
            "task": smtp.starttls,
        }
        interrupted(smtp, calls[place])


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_while_connecting() -> None:
    with script_at([press_ctrl_c, nothing_more]) as server:
        smtp = asmtp.SMTP()
        interrupted(smtp, lambda: smtp.connect("127.0.0.1", server.port))


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_under_tls(certificates: Certificates) -> None:
    script = [send("220 ready"), expect("noop"), press_ctrl_c, nothing_more]
    with script_at(script, tls=certificates.server) as server:
        options = {"ssl_context": certificates.trusting, "tls": "implicit"}
        with connected(asmtp, server, **options) as smtp:
            interrupted(smtp, smtp.noop)


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("connecting", [False, True], ids=["reply", "connecting"])
def test_ctrl_c_while_a_helper_thread_waits(connecting: bool) -> None:
    """Called from async code, under a loop that leaves Ctrl-C alone."""
    script: list[Step] = [] if connecting else [*HELLO, expect("noop")]
    with script_at([*script, press_ctrl_c, nothing_more]) as server:
        smtp = asmtp.SMTP(local_hostname="client.example")

        async def work() -> None:
            smtp.connect("127.0.0.1", server.port)
            smtp.ehlo()
            assert smtp._client._connection is not None
            smtp._client._connection._tick = 60.0  # how long it reads without looking up
            smtp.noop()

        loop = asyncio.new_event_loop()
        task = loop.create_task(work())
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(task)
        assert time.monotonic() - began < 30
        loop.close()
        assert isinstance(task.exception(), KeyboardInterrupt)
        interrupted_since = seen(smtp.noop)
        assert interrupted_since == (smtplib.SMTPServerDisconnected, {})


# ---- nobody cares --------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("running", [False, True], ids=["no loop", "a loop runs"])
def test_an_object_that_is_dropped_closes_at_once(module: Any, running: bool) -> None:
    """Forgetting close() is a habit, and a collector may not come for long."""

    def drop() -> None:
        smtp = module.SMTP("127.0.0.1", relay.port, "client.example")
        smtp.sendmail("a@b.example", "c@d.example", "hi")
        with pytest.warns(ResourceWarning, match="^unclosed <"):
            del smtp

    async def drop_in_a_loop() -> None:
        loop = asyncio.get_running_loop()
        drop()
        assert asyncio.get_running_loop() is loop

    gc.disable()
    try:
        with relay_at() as relay:
            asyncio.run(drop_in_a_loop()) if running else drop()
            while not calling(lambda: relay.connections[0].eof):
                pass
    finally:
        gc.enable()
    assert len(relay.letters) == 1


def test_an_object_whose_constructor_failed_is_dropped_in_silence() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'colour'"):
        asmtp.SMTP(colour="red")  # type: ignore[call-arg]
