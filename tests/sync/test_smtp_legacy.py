"""The blocking facade in old code's hands: by hand, subclassed, traced, audited."""

from __future__ import annotations

import asyncio
import functools
import logging
import logging.handlers
import os
import pickle
import re
import smtplib
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from email.message import EmailMessage
from typing import Any

import pytest

import asmtp
from asmtp.cli.demo.server import Inbox, serving
from tests.conftest import Certificates
from tests.fakes.background import calling, in_background, not_of_a_server
from tests.fakes.embedded import PASSWORD, USER, Embedded, embedded
from tests.fakes.relay import Relay
from tests.fakes.script import drip, expect, fin, nothing_more, send
from tests.sync.facade import BOTH, A, B, connected, nothing_left, relay_at, script_at, told


@pytest.fixture(autouse=True)
def loops(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[asyncio.AbstractEventLoop]]:
    with nothing_left(monkeypatch) as made:
        yield made


# ---- by hand --------------------------------------------------------------------------------------


@BOTH
def test_a_whole_dialogue_by_hand(module: Any) -> None:
    with relay_at() as relay, connected(module, relay) as smtp:
        assert smtp.docmd("EHLO", "me")[0] == 250
        assert smtp.putcmd("mail", f"from:<{A}>") is None
        assert smtp.getreply() == (250, b"2.1.0 sender ok")
        smtp.send(f"rcpt to:<{B}>\r\n")
        assert smtp.getreply() == (250, b"2.1.5 recipient ok")
        assert smtp.docmd("data") == (354, b"go ahead")
        smtp.send("one\r\n")
        smtp.send(b"..two\r\nth")
        smtp.send(b"")
        smtp.send("ree\r\n.\r\n")
        assert smtp.getreply() == (250, b"2.0.0 taken")
        assert smtp.docmd("mail", "from:<>")[0] == 250
        assert smtp.rcpt(B)[0] == 250
        smtp.putcmd("data")
        assert smtp.getreply()[0] == 354
        smtp.send(b"x" * 300_000 + b"\r\n")
        assert smtp.docmd(".") == (250, b"2.0.0 taken")
        assert smtp.sendmail(A, B, "after") == {}
    contents = [letter.content for letter in relay.letters]
    assert contents == [b"one\r\n.two\r\nthree\r\n", b"x" * 300_000 + b"\r\n", b"after\r\n"]


@BOTH
def test_several_commands_in_one_write(module: Any) -> None:
    with relay_at(Relay(("PIPELINING",))) as relay, connected(module, relay) as smtp:
        smtp.send(b"NOOP 1\r\nNOOP 2\r\nHELP\r\n")
        smtp.send("NOOP 3\r\n")
        got = [smtp.getreply() for _ in range(4)]
        assert got == [(250, b"2.0.0 ok 1"), (250, b"2.0.0 ok 2"), (500, b"5.5.2 what?"), (250, b"2.0.0 ok 3")]
        assert smtp.noop() == (250, b"2.0.0 ok")


@BOTH
def test_replies_in_pieces(module: Any) -> None:
    replies = [drip("250-one", "250-two", "250 three"), send(b"250 four\n250-five\n250 six\n"), fin]
    script = [send("220 hi"), expect("noop", "noop", "noop"), *replies]
    with script_at(script) as server, connected(module, server) as smtp:
        smtp.send("noop\r\n" * 3)
        assert smtp.getreply() == (250, b"one\ntwo\nthree")
        assert smtp.getreply() == (250, b"four")
        assert smtp.getreply() == (250, b"five\nsix")
        with pytest.raises(module.SMTPServerDisconnected):
            smtp.getreply()


@BOTH
def test_getreply_waits_for_what_nobody_asked_for(module: Any) -> None:
    script = [send("220 hi"), expect("X"), send("250 one"), nothing_more]
    with script_at(script) as server, connected(module, server) as smtp:
        assert smtp.docmd("X") == (250, b"one")
        later = threading.Timer(0, lambda: calling(lambda: server.peer.transport.write(b"299 two\r\n")))
        later.start()
        assert smtp.getreply() == (299, b"two")
        later.join()


def test_replies_that_are_not_fetched_do_not_disturb_the_rest() -> None:
    """smtplib gives them to whoever asks next."""
    with relay_at() as relay, connected(asmtp, relay) as smtp:
        smtp.putcmd("noop", "1")
        assert smtp.docmd("noop", "2") == (250, b"2.0.0 ok 2")
        assert smtp.sendmail(A, B, "hi") == {}
        assert smtp.getreply() == (250, b"2.0.0 ok 1")


@BOTH
def test_putcmd_before_the_last_reply_was_fetched(module: Any) -> None:
    with relay_at(Relay(("PIPELINING",))) as relay, connected(module, relay) as smtp:
        for number in range(3):
            smtp.putcmd("noop", str(number))
        smtp.putcmd("quit")
        texts = [b"2.0.0 ok 0", b"2.0.0 ok 1", b"2.0.0 ok 2", b"2.0.0 bye"]
        assert [smtp.getreply()[1] for _ in texts] == texts


def test_content_waits_for_the_reply_to_data() -> None:
    """smtplib writes it at once, and has broken the protocol."""
    with relay_at() as relay, connected(asmtp, relay) as smtp:
        smtp.mail(A)
        smtp.rcpt(B)
        smtp.putcmd("data")
        smtp.send("early\r\n.\r\n")
        assert smtp.getreply() == (354, b"go ahead")
        assert smtp.getreply() == (250, b"2.0.0 taken")
    assert relay.letters[0].content == b"early\r\n"


def test_no_command_within_content() -> None:
    with relay_at() as relay, connected(asmtp, relay) as smtp:
        smtp.mail(A)
        smtp.rcpt(B)
        assert smtp.docmd("data")[0] == 354
        with pytest.raises(asmtp.SMTPStateError, match="is not possible now: 354: content comes next"):
            smtp.noop()
        smtp.send(".\r\n")
        assert smtp.getreply()[0] == 250
        assert smtp.noop()[0] == 250
    assert relay.letters[0].content == b""


def test_an_error_of_what_was_sent_by_hand() -> None:
    """A write that had to wait, and is not possible when its time has come, says so to who fetches its reply."""
    script = [send("220 hi"), expect("data"), send("354 go on"), expect("hi", "."), send("250 ok"), nothing_more]
    with script_at(script) as server, connected(asmtp, server) as smtp:
        smtp.putcmd("data")
        with pytest.raises(asmtp.SMTPStateError):
            smtp.noop()
        assert smtp.getreply() == (354, b"go on")
        smtp.send("hi\r\n.\r\n")
        assert smtp.getreply() == (250, b"ok")


# ---- what it writes to stderr ---------------------------------------------------------------------


@BOTH
def test_debuglevel_1(module: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with relay_at(Relay(("AUTH PLAIN",), common=())) as relay:
        smtp = module.SMTP(local_hostname="client.example")
        smtp.set_debuglevel(1)
        smtp.connect(f"127.0.0.1:{relay.port}", source_address=("127.0.0.1", 0))
        smtp.ehlo()
        smtp.docmd("noop", "x")
        smtp.set_debuglevel(0)
        smtp.noop()
        smtp.set_debuglevel(True)
        assert smtp.debuglevel == 1
        smtp.quit()
    assert capsys.readouterr().err.splitlines() == [
        f"connect: to ('127.0.0.1', {relay.port}) ('127.0.0.1', 0)",
        r"reply: b'220 relay.example ESMTP\r\n'",
        "reply: retcode (220); Msg: b'relay.example ESMTP'",
        "connect: b'relay.example ESMTP'",
        r"send: 'ehlo client.example\r\n'",
        r"reply: b'250-relay.example\r\n'",
        r"reply: b'250 AUTH PLAIN\r\n'",
        r"reply: retcode (250); Msg: b'relay.example\nAUTH PLAIN'",
        r"send: 'noop x\r\n'",
        r"reply: b'250 2.0.0 ok x\r\n'",
        "reply: retcode (250); Msg: b'2.0.0 ok x'",
        r"send: 'quit\r\n'",
        r"reply: b'221 2.0.0 bye\r\n'",
        "reply: retcode (221); Msg: b'2.0.0 bye'",
    ]


@pytest.mark.parametrize("shown", range(13))
def test_debug_output_that_cannot_be_written(shown: int) -> None:
    """Each line in turn: the caller gets what is raised, as from smtplib, and the object can be used again."""
    lines = 0

    class Shown(asmtp.SMTP):
        def _print_debug(self, *args: Any) -> None:
            nonlocal lines
            lines += 1
            if lines == shown + 1:
                raise BrokenPipeError(lines)

    with relay_at(Relay(("PIPELINING",))) as relay:
        smtp = Shown(local_hostname="me.example")
        smtp.set_debuglevel(1)
        with pytest.raises(BrokenPipeError):
            smtp.connect("127.0.0.1", relay.port)
            smtp.sendmail(A, [B], "hi")
            smtp.sendmail(A, [B], "hi")
        if smtp.sock is None:
            smtp.connect("127.0.0.1", relay.port)
        relay.letters.clear()
        assert smtp.sendmail(A, [B], "again") == {}
        smtp.quit()
        assert [letter.content for letter in relay.letters] == [b"again\r\n"]


@BOTH
def test_debuglevel_2_tells_the_time(module: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with relay_at() as relay, connected(module, relay) as smtp:
        smtp.set_debuglevel(2)
        smtp.noop()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert re.fullmatch(r"\d\d:\d\d:\d\d\.\d{6} send: 'noop\\r\\n'", lines[0])


def test_content_is_shown_and_credentials_are_not(capsys: pytest.CaptureFixture[str]) -> None:
    handler = Embedded(offers=("PIPELINING",))
    with in_background(embedded(handler)), connected(asmtp, handler) as smtp:
        smtp.set_debuglevel(1)
        smtp.login(USER, PASSWORD)
        smtp.docmd("AUTH", "LOGIN")
        smtp.sendmail(A, B, "é".encode())
    shown = capsys.readouterr().err
    assert r"send: b'\xc3\xa9\r\n.\r\n'" in shown
    assert "send: '(not shown)'" in shown or "send: b'(not shown)'" in shown
    for secret in (PASSWORD, USER):
        assert secret not in shown


def test_lmtp_on_a_unix_socket_is_traced(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with relay_at(Relay(lmtp=True), path=f"{tmp_path}/lmtp") as relay:
        lmtp = asmtp.LMTP()
        lmtp.set_debuglevel(1)
        lmtp.connect(relay.host)
        lmtp.quit()
    assert capsys.readouterr().err.startswith(f"connect: to {tmp_path}/lmtp None\nreply: b'220")


# ---- audit events ---------------------------------------------------------------------------------


class Ears:
    """An audit hook, which cannot be taken away again, but told to hear nothing."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, Any, Any]] | None = None

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        if self.heard is not None and event.startswith("smtplib."):
            self.heard.append((event, args[0], args[1:] if event == "smtplib.connect" else args[1]))
            if event == "smtplib.send" and b"forbidden" in args[1]:
                raise PermissionError("by policy")


@functools.cache
def ears() -> Ears:
    hook = Ears()
    sys.addaudithook(hook)
    return hook


@pytest.fixture
def heard() -> Iterator[list[tuple[str, Any, Any]]]:
    """The events of smtplib: name, object, data."""
    events: list[tuple[str, Any, Any]] = []
    ears().heard = events
    yield events
    ears().heard = None


@BOTH
def test_audit_events(module: Any, heard: list[tuple[str, Any, Any]]) -> None:
    with relay_at() as relay, connected(module, relay) as smtp:
        smtp.ehlo()
        smtp.putcmd("noop", "x")
        smtp.getreply()
        smtp.sendmail(A, B, "hi\r\n")
    assert heard.pop(0) == ("smtplib.connect", smtp, ("127.0.0.1", relay.port))
    assert [(event, who, data.lower()) for event, who, data in heard] == [
        ("smtplib.send", smtp, b"ehlo client.example\r\n"),
        ("smtplib.send", smtp, b"noop x\r\n"),
        ("smtplib.send", smtp, b"mail from:<a@b.example> size=4\r\n"),
        ("smtplib.send", smtp, b"rcpt to:<b@b.example>\r\n"),
        ("smtplib.send", smtp, b"data\r\n"),
        ("smtplib.send", smtp, b"hi\r\n.\r\n"),
    ]


@BOTH
@pytest.mark.usefixtures("heard")
def test_an_audit_hook_that_forbids(module: Any) -> None:
    with relay_at() as relay, connected(module, relay) as smtp:
        with pytest.raises(PermissionError, match="by policy"):
            smtp.help("forbidden")
        assert smtp.noop() == (250, b"2.0.0 ok")
        smtp.ehlo()
        smtp.mail(A)
        smtp.rcpt(B)
        with pytest.raises(PermissionError, match="by policy"):
            smtp.data("forbidden")
        if module is asmtp:  # between 354 and content there is no way back
            assert smtp.sock is None
    assert relay.letters == []
    assert "HELP" not in relay.verbs


def test_audit_hooks_do_not_see_credentials(heard: list[tuple[str, Any, Any]]) -> None:
    handler = Embedded()
    with in_background(embedded(handler)), connected(asmtp, handler) as smtp:
        smtp.login(USER, PASSWORD)
    assert [data for event, _, data in heard if event == "smtplib.send"][1:] == [b"(not shown)"] * 2


def test_the_async_client_is_the_object_of_its_own_events(heard: list[tuple[str, Any, Any]]) -> None:
    async def main(port: int) -> asmtp.AsyncSMTP:
        async with asmtp.AsyncSMTP("127.0.0.1", port) as smtp:
            return smtp

    with relay_at() as relay:
        smtp = asyncio.run(main(relay.port))
    assert heard == [("smtplib.connect", smtp, ("127.0.0.1", relay.port))]


# ---- logging in: see test_auth -------------------------------------------------------------------


@BOTH
def test_login(module: Any) -> None:
    handler = Embedded(mechanisms=("PLAIN",))
    with in_background(embedded(handler)), connected(module, handler) as smtp:
        with pytest.raises(module.SMTPAuthenticationError):
            smtp.login(USER, "wrong")
        assert smtp.login(USER, PASSWORD)[0] == 235
        smtp.esmtp_features["auth"] = "NTLM"
        with pytest.raises(module.SMTPException, match="No suitable authentication method"):
            smtp.login(USER, PASSWORD)
        del smtp.esmtp_features["auth"]
        with pytest.raises(module.SMTPNotSupportedError):
            smtp.login(USER, PASSWORD)
    assert handler.logins == [("PLAIN", False), ("PLAIN", True)]


# ---- subclasses, handlers ------------------------------------------------------------------------


@BOTH
def test_steps_that_a_subclass_overrides(module: Any) -> None:
    steps: list[str] = []

    class Own(module.SMTP):  # type: ignore[misc]
        ehlo_msg = "EHLO"
        debuglevel = 0

        def connect(self, *args: Any, **options: Any) -> Any:
            steps.append("connect")
            return super().connect(*args, **options)

        def ehlo(self, name: str = "") -> Any:
            steps.append("ehlo")
            return super().ehlo(name)

        def helo(self, name: str = "") -> Any:
            steps.append("helo")
            return super().helo("own.example")

        def sendmail(self, *args: Any, **options: Any) -> Any:
            steps.append("sendmail")
            return super().sendmail(*args, **options)

        def close(self) -> None:
            steps.append("close")
            super().close()

    message = EmailMessage()
    message["From"], message["To"] = A, B
    relay = Relay(answer=lambda verb, line: "500 no" if verb == "EHLO" else None)
    with relay_at(relay), Own("127.0.0.1", relay.port, "client.example") as smtp:
        assert smtp.send_message(message) == {}
    assert steps == ["connect", "ehlo", "helo", "sendmail", "close"]
    assert "helo own.example" in relay.commands


@pytest.mark.parametrize("tls", ["none", "opportunistic"])
@pytest.mark.parametrize("level", [logging.DEBUG, logging.WARNING])
def test_a_log_handler_that_mails_what_asmtp_logs(level: int, tls: Any) -> None:
    """Each record is mailed, those of the mail too, but not those of a mail about a record of asmtp's."""
    relay = Relay(("STARTTLS",), answer=lambda verb, line: "454 not now" if verb == "STARTTLS" else None)
    mailed: list[str] = []

    class Mailing(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            with asmtp.SMTP("127.0.0.1", relay.port, "client.example", tls=tls) as smtp:
                smtp.sendmail(A, B, "Subject: log\r\n\r\n")
            mailed.append(record.name)

    root, handler = logging.getLogger(), Mailing()
    handler.addFilter(not_of_a_server)
    if os.environ.get("PYTHONASYNCIODEBUG"):  # then asyncio logs whatever was slow
        handler.addFilter(lambda record: record.name != "asyncio")
    before = root.level
    with relay_at(relay):
        root.addHandler(handler)
        root.setLevel(level)
        try:
            logging.getLogger("app").error("it broke")
        finally:
            root.removeHandler(handler)
            root.setLevel(before)
    assert len(relay.letters) == len(mailed)
    assert mailed.count("app") == 1
    assert set(mailed) <= {"app", "asmtp"}
    if level == logging.DEBUG or tls == "opportunistic":
        assert 1 < len(mailed) < 30


@BOTH
def test_mix_ins_with_arguments_of_their_own(module: Any) -> None:
    class Mixed(module.SMTP):  # type: ignore[misc]
        def __init__(self, colour: str) -> None:
            self.colour = colour

    class Own(module.SMTP_SSL, Mixed):  # type: ignore[misc]
        pass

    made: Any = Own  # its constructor is SMTP_SSL's
    assert made(local_hostname="client.example").default_port == 465

    class Keywords(module.SMTP):  # type: ignore[misc]
        def __init__(self, host: str = "", port: int = 0, **options: Any) -> None:
            self.options = options
            super().__init__(host, port, **options)

    class OwnLMTP(module.LMTP, Keywords):  # type: ignore[misc]
        pass

    assert set(OwnLMTP(local_hostname="client.example").options) == {"local_hostname", "source_address", "timeout"}


@BOTH
def test_a_subclass_whose_init_calls_none(module: Any) -> None:
    """As those of tests, which connect to nothing."""

    class Fake(module.SMTP):  # type: ignore[misc]
        def __init__(self, *args: Any, **options: Any) -> None:
            self.sent: list[Any] = []

        def ehlo_or_helo_if_needed(self) -> None:
            pass

        def sendmail(self, *args: Any, **options: Any) -> Any:
            self.sent.append(args[:2])
            return {}

    smtp = Fake("mail.invalid", 25)
    assert (smtp.sock, smtp.ehlo_resp, smtp.helo_resp, smtp.does_esmtp, smtp.debuglevel) == (None, None, None, False, 0)
    smtp.esmtp_features, smtp.local_hostname, smtp.timeout = {"size": ""}, "client.example", 5
    assert smtp.has_extn("SIZE")
    message = EmailMessage()
    message["From"], message["To"] = A, B
    with smtp as entered:
        assert entered.send_message(message) == {}
    with pytest.raises(module.SMTPServerDisconnected):
        smtp.noop()
    smtp.close()
    assert smtp.sent == [(A, [B])]


@BOTH
def test_one_that_connects_all_the_same(module: Any) -> None:
    class Own(module.SMTP):  # type: ignore[misc]
        def __init__(self) -> None:
            self.timeout, self.local_hostname, self.source_address = 7, "client.example", None
            self.esmtp_features: Any = {}
            self.command_encoding = "ascii"

    with relay_at() as relay, Own() as smtp:
        assert smtp.connect("127.0.0.1", relay.port)[0] == 220
        assert smtp.sock.gettimeout() == 7
        assert smtp.sendmail(A, B, "hi") == {}
    assert relay.commands[0] == "ehlo client.example"


@BOTH
@pytest.mark.parametrize("kind", ["SMTP", "SMTP_SSL"])
def test_a_port_of_its_own(module: Any, kind: str, certificates: Certificates) -> None:
    handler = Embedded()
    tls: dict[str, Any] = {"tls": certificates.server, "implicit": True} if kind == "SMTP_SSL" else {}
    arguments = {"context": certificates.trusting} if tls else {}
    with in_background(embedded(handler, **tls)):
        own = type("Own", (getattr(module, kind),), {"default_port": handler.port})
        with own("localhost", local_hostname="client.example", **arguments) as smtp:
            assert smtp.noop()[0] == 250
            smtp.close()
            smtp.connect("localhost")


def test_init_that_is_called_again(certificates: Certificates) -> None:
    """A class that derives from SMTP_SSL and from another subclass of SMTP calls both __init__; the context stays."""

    class Own(asmtp.SMTP):
        def __init__(self, colour: str, **options: Any) -> None:
            self.colour = colour
            asmtp.SMTP.__init__(self, **options)

    class OwnSSL(asmtp.SMTP_SSL, Own):
        def __init__(self, context: Any, **options: Any) -> None:
            asmtp.SMTP_SSL.__init__(self, context=context, **options)
            Own.__init__(self, "red", **options)

    handler = Embedded()
    with (
        in_background(embedded(handler, tls=certificates.server, implicit=True)),
        OwnSSL(certificates.trusting, host="localhost", port=handler.port, local_hostname="c.example") as smtp,
    ):
        assert smtp.context is certificates.trusting
        assert smtp.sendmail(A, [B], "hi") == {}


def test_half_a_line_is_not_waited_for() -> None:
    with relay_at() as relay, connected(asmtp, relay) as smtp:
        with pytest.raises(ValueError, match="^s: a command line without its end"):
            smtp.send("NOOP")
        assert smtp.noop()[0] == 250
        smtp.send("NOOP\r\n")
        assert smtp.getreply()[0] == 250
    assert relay.verbs == ["NOOP", "NOOP"]


def test_logging_handler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "smtplib", asmtp)
    inbox = Inbox("PIPELINING", "CHUNKING")
    with serving(inbox):
        handler = logging.handlers.SMTPHandler(("127.0.0.1", inbox.port), A, [B, "nobody@b.example"], "It broke")
        record = logging.makeLogRecord({"msg": "disk full: %s", "args": ("/var",)})
        monkeypatch.setattr(handler, "handleError", lambda record: pytest.fail("not sent"))
        handler.handle(record)
    assert inbox.letters[0].recipients == [B]
    assert inbox.letters[0].content.endswith(b"\r\n\r\ndisk full: /var\r\n")


@BOTH
def test_exceptions_can_be_pickled(module: Any) -> None:
    relay = Relay(answer=lambda verb, line: "550 no" if verb in ("RCPT", "VRFY") else None)
    with relay_at(relay), connected(module, relay) as smtp:
        errors = [
            pytest.raises(module.SMTPRecipientsRefused, smtp.sendmail, A, B, "hi").value,
            pytest.raises(module.SMTPDataError, smtp.data, "hi").value,
        ]
    for error in errors:
        again = pickle.loads(pickle.dumps(error))
        assert type(again) is type(error)
        assert (told(again), again.args) == (told(error), error.args)


# ---- the module ----------------------------------------------------------------------------------


def test_in_an_isolated_subinterpreter() -> None:
    with relay_at() as relay:
        inner = (
            f"import sys; sys.path[:] = {sys.path!r}\n"
            "import asmtp\n"
            f"with asmtp.SMTP('127.0.0.1', {relay.port}, 'client.example') as smtp:\n"
            f"    assert smtp.sendmail({A!r}, {B!r}, 'hi') == {{}}\n"
        )
        outer = (
            "try:\n    import _xxsubinterpreters as interpreters\n"
            "except ImportError:\n    import _interpreters as interpreters\n"
            "made = interpreters.create()\n"
            f"failed = interpreters.run_string(made, {inner!r})\n"
            "print(failed, flush=True)\n"
            "interpreters.destroy(made)\n"
        )
        # Python 3.12.1 aborts where one is destroyed that has imported ssl, so the exit status says nothing.
        done = subprocess.run([sys.executable, "-c", outer], capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout == "None\n", done.stderr
    assert len(relay.letters) == 1


def test_import_is_cheap() -> None:
    """Modules that take long to import are imported when they are first used."""
    script = (
        "import sys, asmtp\n"
        "print(sorted({'asyncio', 'anyio', 'idna', 'asmtp.client.smtp', 'asmtp.sync.smtp'} & set(sys.modules)))\n"
        "asmtp.SMTP; print('asmtp.sync.smtp' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "[]\nTrue\n"


def test_names() -> None:
    assert set(smtplib.__all__) <= set(asmtp.__all__) <= set(dir(asmtp))
    namespace: dict[str, Any] = {}
    exec("from asmtp import *", namespace)
    for name in asmtp.__all__:
        assert namespace[name] is getattr(asmtp, name)
    assert (asmtp.SMTP_PORT, asmtp.SMTP_SSL_PORT, asmtp.LMTP_PORT) == (25, 465, 2003)
    assert (asmtp.CRLF, asmtp.bCRLF) == ("\r\n", b"\r\n")
    for name in ("quoteaddr", "quotedata", "OLDSTYLE_AUTH"):
        assert getattr(asmtp, name) is getattr(smtplib, name)
    with pytest.raises(AttributeError, match="module 'asmtp' has no attribute 'SMPT'"):
        asmtp.SMPT  # type: ignore[attr-defined]  # noqa: B018


def test_what_old_code_reaches_through_the_module() -> None:
    for name in set(vars(smtplib)) - set(smtplib.__all__):
        if not name.startswith(("__", "LMTP")):
            assert getattr(asmtp, name) is getattr(smtplib, name), name
    assert "socket" not in dir(asmtp)
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        with pytest.raises(asmtp.socket.error):  # type: ignore[attr-defined]
            asmtp.SMTP("127.0.0.1", sock.getsockname()[1], timeout=5)


class Bad:
    """Has no use as any argument."""

    def __iter__(self) -> Any:
        raise ValueError("bad")


MADE: dict[str, Callable[[], object]] = {
    "AsyncSMTP": lambda: asmtp.AsyncSMTP("h", local_hostname="a\nb"),
    "AsyncSMTP_SSL": lambda: asmtp.AsyncSMTP_SSL("h", local_hostname="a\nb"),
    "AsyncLMTP": lambda: asmtp.AsyncLMTP("h", timeout=-1),
    "SMTP": lambda: asmtp.SMTP(tls="bogus"),  # type: ignore[arg-type]
    "AsyncMailer": lambda: asmtp.AsyncMailer("smtp://h:99999"),
    "Mailer": lambda: asmtp.Mailer("smtp://h:99999"),
    "Envelope": lambda: asmtp.Envelope("a@b.example", Bad()),
    "Relay": lambda: asmtp.Relay("h", 99999),
    "Retry": lambda: asmtp.Retry(attempts=-1),
    "Rate": lambda: asmtp.Rate(-1),
    "Timeouts": lambda: asmtp.Timeouts(command=-1),
}


@pytest.mark.parametrize("name", MADE)
def test_what_was_half_made_can_be_shown(name: str) -> None:
    """Error reporters show what the frames of a traceback hold, at the very moment of a wrong argument."""
    shown: list[str] = []
    with pytest.raises((ValueError, TypeError)) as caught:
        MADE[name]()
    for frame, _ in traceback.walk_tb(caught.value.__traceback__):
        for value in frame.f_locals.values():
            if type(value).__module__.startswith("asmtp"):
                shown.append(repr(value))
    assert any(name in text for text in shown), shown


def test_the_class_has_the_attributes_of_its_objects() -> None:
    """So that mocks made from the class have them."""
    for name in ("helo_resp", "ehlo_resp", "esmtp_features", "does_esmtp", "local_hostname", "file", "debuglevel"):
        assert not getattr(asmtp.SMTP, name)
