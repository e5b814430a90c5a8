"""The blocking facade: calls that are ended from outside, and calls that come while another one is under way."""

from __future__ import annotations

import asyncio
import os
import signal
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import asmtp
from tests.conftest import Certificates
from tests.fakes.background import calling
from tests.fakes.relay import SHAPES, Relay
from tests.fakes.script import Peer, Step, expect, nothing_more, send
from tests.sync.facade import A, B, connected, nothing_left, relay_at, script_at
from tests.sync.threads import together


class TimeLimit(Exception):
    """The exception that a job's time limit raises, out of a signal handler."""


CLASSES = pytest.mark.parametrize("kind", [TimeLimit, KeyboardInterrupt, OSError, asmtp.SMTPServerDisconnected])
TLS = pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
HELLO: list[Step] = [send("220 ready"), expect("ehlo client.example"), send("250-hi", "250 PIPELINING")]
ENVELOPE = expect(b"mail from:<a@b.example>\r\nrcpt to:<b@b.example>\r\ndata\r\n")


@pytest.fixture(autouse=True)
def loops(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[asyncio.AbstractEventLoop]]:
    with nothing_left(monkeypatch) as made:
        yield made


struck: list[int] = []


@pytest.fixture
def limit() -> Iterator[Callable[[Any], None]]:
    """Say what the handler of a signal does, once; the servers' `strike` sends the signal."""
    before = signal.getsignal(signal.SIGUSR1)
    struck.clear()

    def handle(what: Callable[[], None]) -> None:
        def handler(number: int, frame: Any) -> None:
            if not struck:
                struck.append(number)
                what()

        signal.signal(signal.SIGUSR1, handler)

    yield handle
    signal.signal(signal.SIGUSR1, before)


async def strike(peer: Peer) -> None:
    """Send the signal: the server has read what it waited for, so the client waits for an answer now."""
    while not struck:  # a signal just before a system call that waits does not end it
        os.kill(os.getpid(), signal.SIGUSR1)
        await asyncio.sleep(0.01)


def raising(kind: type[BaseException]) -> Callable[[], None]:
    def strike() -> None:
        raise kind("struck")

    return strike


def options(tls: bool, certificates: Certificates) -> tuple[dict[str, Any], dict[str, Any]]:
    """For the client, and for the server."""
    if not tls:
        return {}, {}
    return {"ssl_context": certificates.trusting, "tls": "implicit"}, {"tls": certificates.server}


# ---- exceptions out of a signal handler ------------------------------------------------------------


@TLS
@CLASSES
def test_a_time_limit_ends_the_connection(kind: Any, tls: bool, limit: Any, certificates: Certificates) -> None:
    """Neither is the message finished behind the caller's back, nor does leaving `with` wait for an answer."""
    limit(raising(kind))
    mine, theirs = options(tls, certificates)
    script = [*HELLO, ENVELOPE, strike, nothing_more]
    with script_at(script, **theirs) as server:
        with pytest.raises(kind, match="struck"), connected(asmtp, server, **mine) as smtp, smtp:
            smtp.sendmail(A, B, "hi")
        assert smtp.sock is None
        with pytest.raises(asmtp.SMTPServerDisconnected, match=r"please run connect\(\) first"):
            smtp.sendmail(A, B, "hi")


@CLASSES
@pytest.mark.parametrize("shape", ["both", "pipelining"])
def test_what_was_struck_as_tls_wrote_it_is_not_written_again(
    shape: str, kind: Any, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """asyncio keeps what it has not seen leave, and a close that says goodbye writes it all first."""
    armed: list[bytes] = []
    write = ssl.SSLObject.write

    def struck(self: ssl.SSLObject, data: Any) -> int:
        written = write(self, data)
        if armed and armed[0] in bytes(data):
            armed.clear()
            raise kind("struck")
        return written

    monkeypatch.setattr(ssl.SSLObject, "write", struck)
    mine, theirs = options(True, certificates)
    with relay_at(Relay(SHAPES[shape]), **theirs) as relay, connected(asmtp, relay, **mine) as smtp:
        smtp.ehlo()
        armed.append(b"X-Id")
        # OSError is what transports themselves are ended by: it is the cause then.
        with pytest.raises((kind, asmtp.SMTPServerDisconnected), match="struck"):
            smtp.sendmail(A, B, b"X-Id: 1\r\n\r\nx")
        assert smtp.sock is None
        assert calling(lambda: not [command for command in relay.commands if command.lower() == "quit"])
    assert len(relay.letters) <= 1


@pytest.mark.parametrize("kind", [TimeLimit, KeyboardInterrupt])
def test_what_is_raised_in_a_callback_of_the_loop_is_raised(kind: Any) -> None:
    """The loop of asyncio tells its handler of it, and goes on."""
    with script_at([*HELLO, expect("noop"), nothing_more]) as server, connected(asmtp, server) as smtp:
        smtp.ehlo()
        loop = smtp._loop
        assert loop is not None
        assert smtp._client._connection is not None
        smtp._client._connection._tick = 0.01  # how long it reads without looking up
        loop.call_soon(raising(kind))
        with pytest.raises(kind, match="struck"):
            smtp.noop()
        assert smtp.sock is None


def test_what_is_raised_in_the_last_callback_is_raised() -> None:
    with relay_at() as relay, connected(asmtp, relay) as smtp:
        smtp.ehlo()

        def audit(*args: Any) -> None:
            if not raised:
                raised.append(args)
                loop.call_exception_handler({"message": "Fatal error", "exception": TimeLimit("struck")})

        loop = smtp._loop
        assert loop is not None
        raised: list[Any] = []
        smtp._client._session.audit = audit
        with pytest.raises(TimeLimit, match="struck"):
            smtp.noop()
        assert smtp.sock is None


def test_an_exception_that_leaves_nothing_in_the_middle_leaves_the_connection() -> None:
    with relay_at(Relay(SHAPES["both"])) as relay, connected(asmtp, relay) as smtp:
        smtp.send("noop one\r\n")  # its reply is fetched later
        with pytest.raises(ValueError, match="cmd"):
            smtp.docmd("noop\n")
        with pytest.raises(asmtp.SMTPResponseException):
            smtp.data("no recipients")
        assert smtp.getreply() == (250, b"2.0.0 ok one")
        assert smtp.noop() == (250, b"2.0.0 ok")


@pytest.mark.parametrize("place", ["as the loop is marked", "as the mark is taken away"])
def test_the_thread_is_not_left_marked_as_running_a_loop(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    real = asyncio._set_running_loop
    armed: list[str] = []

    def mark(loop: asyncio.AbstractEventLoop | None) -> None:
        if armed and threading.current_thread() is threading.main_thread():
            if loop is not None and place == "as the loop is marked":
                armed.clear()
                real(loop)
                raise TimeLimit
            if loop is None and place != "as the loop is marked":
                armed.clear()
                raise TimeLimit
        real(loop)

    monkeypatch.setattr(asyncio, "_set_running_loop", mark)
    with relay_at() as relay, connected(asmtp, relay) as smtp:
        armed.append("now")
        with pytest.raises(TimeLimit):
            smtp.noop()
        assert asyncio._get_running_loop() is None
        assert smtp.sock is None


def test_a_loop_that_was_struck_as_it_ended_a_run_is_closed() -> None:
    with relay_at() as relay, connected(asmtp, relay) as smtp:
        assert smtp._loop is not None
        smtp._loop._thread_id = threading.get_ident()
        with pytest.raises(asmtp.SMTPServerDisconnected):
            smtp.close()
            smtp.noop()


# ---- a fork -----------------------------------------------------------------------------------------


FORKED = """
import os, ssl, sys, warnings
import asmtp
warnings.simplefilter("ignore")  # of the child's, that it was not closed
context = ssl.create_default_context(cafile=sys.argv[2])
smtp = asmtp.SMTP_SSL("localhost", int(sys.argv[1]), "client.example", context=context)
smtp.ehlo()
pid = os.fork()
if not pid:
    if sys.argv[3] == "close":
        smtp.close()
    elif sys.argv[3] == "del":
        del smtp
    sys.exit()
os.waitpid(pid, 0)
print(smtp.sendmail("a@b.example", "b@b.example", "hi"), smtp.quit()[0])
"""


@pytest.mark.parametrize("end", ["exit", "del", "close"])
def test_a_child_does_not_say_goodbye_on_its_parents_connection(
    end: str, certificates: Certificates, tmp_path: Any
) -> None:
    trusted = tmp_path / "ca.pem"
    certificates.ca.cert_pem.write_to_path(str(trusted))
    with relay_at(tls=certificates.server) as relay:
        command = [sys.executable, "-c", FORKED, str(relay.port), str(trusted), end]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.stdout, done.stderr, done.returncode) == ("{} 221\n", "", 0)
    assert len(relay.letters) == 1


# ---- calls while another one is under way -----------------------------------------------------------


def test_forty_threads_on_one_object() -> None:
    with relay_at(Relay(SHAPES["both"])) as relay, connected(asmtp, relay) as smtp:
        assert together(40, lambda number: smtp.sendmail(A, B, f"{number}")) == [{}] * 40
    assert sorted(letter.content for letter in relay.letters) == sorted(b"%d\r\n" % number for number in range(40))


CALLS: dict[str, Callable[[Any], Any]] = {
    "noop": lambda smtp: smtp.noop(),
    "sendmail": lambda smtp: smtp.sendmail(A, B, "nested"),
    "close": lambda smtp: smtp.close(),
    "quit": lambda smtp: smtp.quit(),
    "connect": lambda smtp: smtp.connect("127.0.0.1", 1),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_call_out_of_a_signal_handler(call: str, limit: Any) -> None:
    """It is told so before a byte is written, and the call that was under way goes on."""
    told: list[BaseException] = []

    def nested() -> None:
        try:
            CALLS[call](smtp)
        except asmtp.SMTPStateError as error:
            told.append(error)

    limit(nested)
    script = [*HELLO, expect("noop"), strike, send("250 the outer one"), nothing_more]
    with script_at(script) as server, connected(asmtp, server) as smtp:
        smtp.ehlo()
        assert smtp.noop() == (250, b"the outer one")
    assert [str(error) for error in told] == [
        "a call in the middle of another one: from a signal handler, or from a callback"
    ]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("running", [False, True], ids=["no loop", "a loop runs"])
def test_a_call_out_of_a_callback(call: str, running: bool) -> None:
    """If a loop runs, a helper thread drives, and the two threads would wait for each other."""
    told: list[str] = []

    def token(force: bool) -> str:
        with pytest.raises(asmtp.SMTPStateError, match="in the middle of another one"):
            CALLS[call](smtp)
        told.append(call)
        return "token"

    async def in_a_loop() -> Any:
        return smtp.connect("127.0.0.1", server.port)

    hello = [send("220 hi"), expect("ehlo client.example"), send("250-hi", "250 AUTH XOAUTH2")]
    smtp = asmtp.SMTP(local_hostname="client.example", username="me", token=token, tls="none")
    script = [*hello, expect("AUTH XOAUTH2 dXNlcj1tZQFhdXRoPUJlYXJlciB0b2tlbgEB"), send("235 ok"), nothing_more]
    with script_at(script) as server:
        greeting = asyncio.run(in_a_loop()) if running else smtp.connect("127.0.0.1", server.port)
        assert greeting == (220, b"hi")
        smtp.close()
    assert told == [call]


def test_a_call_out_of_a_signal_handler_while_a_helper_thread_drives(limit: Any) -> None:
    told: list[str] = []

    def nested() -> None:
        for name, call in CALLS.items():
            with pytest.raises(asmtp.SMTPStateError, match="in the middle of another one"):
                call(smtp)
            told.append(name)

    async def work() -> Any:
        return smtp.noop()

    limit(nested)
    script = [*HELLO, expect("noop"), strike, send("250 the outer one"), nothing_more]
    with script_at(script) as server, connected(asmtp, server) as smtp:
        smtp.ehlo()
        loop = asyncio.new_event_loop()
        assert loop.run_until_complete(work()) == (250, b"the outer one")
        loop.close()
    assert told == list(CALLS)


def test_an_authobject_may_call_back() -> None:
    """As smtplib's own may: between two lines of the exchange nothing is under way."""
    script: list[Step] = [
        send("220 hi"),
        expect("AUTH X"),
        send("334 "),
        expect("eQ=="),
        send("334 more"),
        expect("eg=="),
    ]
    with script_at([*script, send("235 ok"), nothing_more]) as server, connected(asmtp, server) as smtp:

        def authobject(challenge: bytes | None = None) -> str | None:
            if challenge is None:
                return None
            assert smtp.sock is not None
            if challenge == b"":
                assert smtp.docmd("eQ==") == (334, b"more")
            return "z"

        assert smtp.auth("X", authobject) == (235, b"ok")
