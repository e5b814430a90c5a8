"""The blocking facade: connecting, what is known then, and the commands, beside smtplib's."""

from __future__ import annotations

import asyncio
import smtplib
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import asmtp
from tests.fakes.background import calling
from tests.fakes.clock import VirtualClockLoop
from tests.fakes.relay import Relay
from tests.fakes.script import expect, fin, nothing_more, send, silence
from tests.sync.facade import BOTH, connected, nothing_left, relay_at, script_at, told

DEFAULT: Any = socket._GLOBAL_DEFAULT_TIMEOUT  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def loops(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[asyncio.AbstractEventLoop]]:
    with nothing_left(monkeypatch) as made:
        yield made


@pytest.fixture
def virtual_time(loops: list[asyncio.AbstractEventLoop], monkeypatch: pytest.MonkeyPatch) -> Any:
    """The facade's loops, which have a clock that jumps."""

    def new_loop() -> asyncio.AbstractEventLoop:
        loops.append(VirtualClockLoop())
        return loops[-1]

    monkeypatch.setattr(asmtp.SMTP, "_new_loop", staticmethod(new_loop))
    monkeypatch.setattr("asmtp.sync.driver._READV", False)  # what reads past the loop waits in real time
    return loops


# ---- connecting --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["SMTP", "SMTP_SSL"])
@pytest.mark.parametrize(
    ("host", "options"),
    [
        ("127.0.0.1", {}),
        ("localhost", {}),
        ("127.0.0.1", {"source_address": ("192.0.2.1", 0)}),
    ],
)
def test_no_connection_is_told_in_smtplibs_words(kind: str, host: str, options: dict[str, Any]) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        told_of = [
            pytest.raises(OSError, getattr(module, kind), host, sock.getsockname()[1], "c.example", **options).value
            for module in (smtplib, asmtp)
        ]
    assert [(type(error), error.args, str(error)) for error in told_of[:1]] == [
        (type(error), error.args, str(error)) for error in told_of[1:]
    ]


@BOTH
@pytest.mark.parametrize("joined", [False, True], ids=["host, port", "host:port"])
def test_the_constructor_connects(module: Any, joined: bool) -> None:
    with relay_at() as relay:
        where = (f"127.0.0.1:{relay.port}",) if joined else ("127.0.0.1", relay.port)
        smtp = module.SMTP(*where)
        assert smtp.sock.getpeername() == ("127.0.0.1", relay.port)
        assert smtp.sock.getsockname() == calling(lambda: relay.connections[0].transport.get_extra_info("peername"))
        assert smtp.sock.fileno() > 0
        assert smtp.sock.family == socket.AF_INET
        assert smtp.sock.getsockopt(socket.SOL_SOCKET, socket.SO_TYPE) == socket.SOCK_STREAM
        assert smtp.noop() == (250, b"2.0.0 ok")
        assert relay.verbs == ["NOOP"]  # nothing is said before it has to be
        assert smtp.quit() == (221, b"2.0.0 bye")
        assert smtp.sock is None


@BOTH
def test_connect(module: Any) -> None:
    with relay_at() as relay:
        smtp = module.SMTP()
        assert smtp.connect(f"127.0.0.1:{relay.port}") == (220, b"relay.example ESMTP")
        assert smtp.quit() == (221, b"2.0.0 bye")
        assert smtp.connect("127.0.0.1", relay.port) == (220, b"relay.example ESMTP")
        smtp.close()


@BOTH
def test_the_defaults_of_connect(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def getaddrinfo(host: str, port: int, *args: Any, **options: Any) -> Any:
        asked.append((host, port))
        raise socket.gaierror(socket.EAI_NONAME, "who?")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    for kind in (module.SMTP, module.SMTP_SSL, module.LMTP):
        with pytest.raises(socket.gaierror, match="who"):
            kind(local_hostname="me").connect()
    assert asked == [("localhost", 25), ("localhost", 465), ("localhost", 25 if module is smtplib else 2003)]


@BOTH
def test_without_a_connection(module: Any) -> None:
    smtp = module.SMTP(local_hostname="client.example")
    known = [smtp.sock, smtp.file, smtp.helo_resp, smtp.ehlo_resp, smtp.esmtp_features, smtp.does_esmtp]
    assert known == [None, None, None, None, {}, False]
    assert (smtp.ehlo_msg, smtp.default_port, smtp.debuglevel, smtp.source_address) == ("ehlo", 25, 0, None)
    assert smtp.local_hostname == "client.example"
    calls: list[Callable[[], Any]] = [
        smtp.noop, smtp.quit, smtp.ehlo, smtp.helo, smtp.starttls, smtp.rset, smtp.help,
        lambda: smtp.send(b"noop\r\n"), lambda: smtp.putcmd("noop"), lambda: smtp.docmd("noop"),
        lambda: smtp.sendmail("a@b.example", "c@d.example", "hi"), lambda: smtp.login("user", "pass"),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(module.SMTPServerDisconnected, match=r"^please run connect\(\) first$"):
            call()
    smtp.close()
    smtp.close()


def test_getreply_without_a_connection() -> None:
    with pytest.raises(asmtp.SMTPServerDisconnected, match=r"please run connect\(\) first"):
        asmtp.SMTP().getreply()


@BOTH
def test_a_port_that_is_no_number(module: Any) -> None:
    with pytest.raises(OSError, match="^nonnumeric port$"):
        module.SMTP("127.0.0.1:smtp")


@BOTH
def test_nobody_listens(module: Any) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))  # and does not listen
        with pytest.raises(ConnectionRefusedError) as caught:
            module.SMTP("127.0.0.1", sock.getsockname()[1])
        assert told(caught.value) == (ConnectionRefusedError, {})


@BOTH
def test_nobody_listens_and_another_family_has_no_way(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))  # and does not listen
        found = [(socket.AF_INET6, "fe80::1"), (socket.AF_INET, "127.0.0.1")]  # the first without a zone
        port = sock.getsockname()[1]
        infos = [(family, socket.SOCK_STREAM, 6, "", (address, port)) for family, address in found]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **options: infos)
        with pytest.raises(ConnectionRefusedError) as caught:
            module.SMTP("mx.example", port)
        assert told(caught.value) == (ConnectionRefusedError, {})


@BOTH
@pytest.mark.parametrize("code", [421, 554])
def test_a_greeting_that_is_no_welcome(module: Any, code: int) -> None:
    with script_at(*[[send(f"{code} go away"), nothing_more]] * 2) as server:
        with pytest.raises(module.SMTPConnectError) as caught:
            module.SMTP("127.0.0.1", server.port)
        assert told(caught.value) == (smtplib.SMTPConnectError, {"smtp_code": code, "smtp_error": b"go away"})
        assert caught.value.args == (code, b"go away")
        smtp = module.SMTP()
        assert smtp.connect("127.0.0.1", server.port) == (code, b"go away")
        smtp.close()


@BOTH
def test_connect_leaves_it_to_the_caller_what_to_do_about_a_greeting(module: Any) -> None:
    with script_at([send("554 go away"), expect("quit"), send("221 bye"), nothing_more]) as server:
        smtp = module.SMTP()
        assert smtp.connect("127.0.0.1", server.port) == (554, b"go away")
        assert smtp.sock is not None
        assert smtp.quit() == (221, b"bye")


@BOTH
def test_no_greeting(module: Any) -> None:
    closed = pytest.raises(module.SMTPServerDisconnected, match="^Connection unexpectedly closed$")
    with script_at([fin]) as server, closed:
        module.SMTP("127.0.0.1", server.port)


@BOTH
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has all of 127/8 on loopback")
def test_source_address(module: Any) -> None:
    with relay_at() as relay:
        for place, arguments in enumerate([{"source_address": ("127.0.0.2", 0)}, {}]):
            smtp = module.SMTP(**arguments)
            smtp.connect("127.0.0.1", relay.port, *([] if arguments else [("127.0.0.3", 0)]))
            ours = ["127.0.0.2", "127.0.0.3"][place]
            assert smtp.source_address == (ours, 0)
            assert calling(lambda: relay.connections[-1].transport.get_extra_info("peername"))[0] == ours
            smtp.close()


@BOTH
def test_local_hostname(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_address(name: str) -> str:
        raise socket.gaierror

    with relay_at() as relay:
        monkeypatch.setattr(socket, "getfqdn", lambda: "host.example")
        monkeypatch.setattr(socket, "gethostname", lambda: "host")
        with connected(module, relay, local_hostname=None) as smtp:
            assert smtp.local_hostname == "host.example"
            smtp.ehlo()
            smtp.helo()
            smtp.ehlo("another.example")
            smtp.local_hostname = "third.example"
            smtp.helo()
        monkeypatch.setattr(socket, "getfqdn", lambda: "host")
        monkeypatch.setattr(socket, "gethostbyname", lambda name: {"host": "10.1.2.3"}[name])
        assert module.SMTP().local_hostname == "[10.1.2.3]"
        monkeypatch.setattr(socket, "gethostbyname", no_address)
        assert module.SMTP().local_hostname == "[127.0.0.1]"
        with connected(module, relay, local_hostname="given") as smtp:
            assert smtp.local_hostname == "given"
            smtp.ehlo()
    names = ["ehlo host.example", "helo host.example", "ehlo another.example", "helo third.example", "ehlo given"]
    assert relay.commands == names


# ---- deadlines ---------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize(("arguments", "default", "expected"), [
    ({}, None, None), ({}, 7.0, 7.0), ({"timeout": None}, 7.0, None), ({"timeout": 5}, None, 5),
    ({"timeout": 5}, 7.0, 5),
], ids=str)  # fmt: skip
def test_timeout(module: Any, arguments: Any, default: float | None, expected: float | None) -> None:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(default)
    try:
        with relay_at() as relay, connected(module, relay, **arguments) as smtp:
            assert smtp.timeout == arguments.get("timeout", DEFAULT)
            assert smtp.sock.gettimeout() == expected
            socket.setdefaulttimeout(99)
            assert smtp.sock.gettimeout() == expected
    finally:
        socket.setdefaulttimeout(before)


@BOTH
def test_a_timeout_of_nothing(module: Any) -> None:
    with pytest.raises(ValueError, match=r"Non-blocking socket \(timeout=0\) is not supported"):
        module.SMTP("127.0.0.1", 9, timeout=0)


def test_no_limit() -> None:
    with relay_at() as relay, connected(asmtp, relay, timeout=None) as smtp:
        assert smtp.noop() == (250, b"2.0.0 ok")
        assert smtp.sock.gettimeout() is None


def test_a_limit_that_is_set_on_the_socket_counts(virtual_time: Any) -> None:
    with script_at([send("220 ready"), expect("noop"), silence]) as server, connected(asmtp, server) as smtp:
        smtp.sock.settimeout(0.5)
        assert smtp.sock.gettimeout() == 0.5
        with pytest.raises(asmtp.SMTPTimeoutError, match=r"no answer to a command within 0\.5 seconds"):
            smtp.noop()
        assert smtp.sock is None


@pytest.mark.parametrize("way", ["none", "close", "shutdown"])
def test_the_socket_is_closed_by_hand(way: str) -> None:
    with relay_at() as relay, connected(asmtp, relay) as smtp:
        smtp.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        assert smtp.sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        kept = smtp.sock
        if way == "none":
            smtp.sock = None
        elif way == "close":
            smtp.sock.close()
        else:
            smtp.sock.shutdown(socket.SHUT_RDWR)
        with pytest.raises(asmtp.SMTPServerDisconnected):
            smtp.noop()
        kept.close()
        assert smtp.connect("127.0.0.1", relay.port)[0] == 220
        assert smtp.noop()[0] == 250


def test_what_is_no_socket_is_not_set() -> None:
    with relay_at() as relay, connected(asmtp, relay) as smtp:
        with pytest.raises(TypeError, match="^sock: a connected socket without TLS, or None"):
            smtp.sock = smtp.sock
        assert smtp.noop()[0] == 250


@pytest.mark.parametrize(
    ("timeout", "shown", "limit"),
    [(17, 17, 17), (asmtp.Timeouts(command=23), 23, 23), (DEFAULT, None, 300)],
    ids=["number", "Timeouts", "default"],
)
def test_no_answer_in_time(timeout: Any, shown: float | None, limit: float, virtual_time: Any) -> None:
    script = [send("220 ready"), expect("noop"), silence]
    with script_at(script) as server, connected(asmtp, server, timeout=timeout) as smtp:
        assert smtp.sock.gettimeout() == shown
        began = virtual_time[0].time()
        words = f"no answer to a command within {limit} seconds"
        with pytest.raises(asmtp.SMTPTimeoutError, match=words) as caught:
            smtp.noop()
        assert told(caught.value) == (smtplib.SMTPServerDisconnected, {})
        assert limit <= virtual_time[0].time() - began <= limit + 1
        assert smtp.sock is None
        with pytest.raises(smtplib.SMTPServerDisconnected):
            smtp.noop()


def test_a_timeout_set_later_holds_for_the_next_connection(virtual_time: Any) -> None:
    with script_at([silence]) as server:
        smtp = asmtp.SMTP()
        smtp.timeout = 11
        with pytest.raises(asmtp.SMTPTimeoutError, match="no answer to the greeting within 11 seconds"):
            smtp.connect("127.0.0.1", server.port)
    assert smtp.sock is None


# ---- what the server offers ---------------------------------------------------------------------


@BOTH
def test_ehlo(module: Any) -> None:
    offers = ("AUTH PLAIN", "AUTH=LOGIN CRAM-MD5", "SIZE 1000", "x-Mixed  some  parameters ", "8BITMIME")
    with relay_at(Relay(offers=offers, common=())) as relay, connected(module, relay) as smtp:
        text = b"relay.example\nAUTH PLAIN\nAUTH=LOGIN CRAM-MD5\nSIZE 1000\nx-Mixed  some  parameters\n8BITMIME"
        assert smtp.ehlo() == (250, text)
        features = {
            "auth": " PLAIN LOGIN CRAM-MD5",
            "size": "1000",
            "x-mixed": "some  parameters",
            "8bitmime": "",
        }
        assert smtp.esmtp_features == features
        assert (smtp.does_esmtp, smtp.ehlo_resp, smtp.helo_resp) == (True, text, None)
        assert [smtp.has_extn(name) for name in ("size", "SIZE", "X-Mixed", "chunking")] == [True, True, True, False]
        assert smtp.helo() == (250, b"relay.example")
        assert (smtp.does_esmtp, smtp.ehlo_resp, smtp.helo_resp) == (True, text, b"relay.example")
        assert smtp.esmtp_features == features


@BOTH
def test_ehlo_refused(module: Any) -> None:
    relay = Relay(answer=lambda verb, line: "502 no" if verb == "EHLO" else None)
    with relay_at(relay), connected(module, relay) as smtp:
        smtp.esmtp_features = {"size": ""}
        assert smtp.ehlo() == (502, b"no")
        assert (smtp.does_esmtp, smtp.ehlo_resp, smtp.esmtp_features) == (False, b"no", {})
        assert smtp.ehlo_or_helo_if_needed() is None  # it was said, though in vain
        assert smtp.sendmail("a@b.example", "c@d.example", b"hi", ["X=Y"], ["Z"]) == {}
    assert relay.verbs[:2] == ["EHLO", "MAIL"]
    assert relay.letters[0].parameters == ""


@BOTH
def test_helo_where_ehlo_is_refused(module: Any) -> None:
    relay = Relay(answer=lambda verb, line: "502 no" if verb == "EHLO" else None)
    with relay_at(relay), connected(module, relay) as smtp:
        smtp.ehlo_or_helo_if_needed()
        smtp.ehlo_or_helo_if_needed()
        assert (smtp.does_esmtp, smtp.helo_resp, smtp.ehlo_resp) == (False, b"relay.example", b"no")
    assert relay.commands == ["ehlo client.example", "helo client.example"]


@BOTH
def test_helo_by_hand_is_enough(module: Any) -> None:
    with relay_at() as relay, connected(module, relay) as smtp:
        smtp.helo()
        assert smtp.sendmail("a@b.example", "c@d.example", b"hi", ["X=Y"]) == {}
    assert relay.verbs == ["HELO", "MAIL", "RCPT", "DATA"]
    assert relay.letters[0].parameters == ""


@pytest.mark.parametrize("reply", ["421 4.3.2 too busy", "521 5.3.2 no mail here"])
def test_a_server_that_does_not_stay_for_helo(reply: str) -> None:
    script = [send("220 hi"), expect("ehlo client.example"), send(reply), fin]
    with script_at(script) as server, connected(asmtp, server) as smtp:
        with pytest.raises(asmtp.SMTPHeloError) as caught:
            smtp.sendmail("a@b.example", "c@d.example", "hi")
        assert (caught.value.smtp_code, caught.value.smtp_error) == (int(reply[:3]), reply[4:].encode())
        assert caught.value.state == "not_sent"


def test_a_server_that_closes_instead_of_answering_helo() -> None:
    script = [send("220 hi"), expect("ehlo client.example"), send("554 no"), expect("helo client.example"), fin]
    with (
        script_at(script) as server,
        connected(asmtp, server) as smtp,
        pytest.raises(asmtp.SMTPServerDisconnected, match="; to EHLO it had said 554 'no'"),
    ):
        smtp.sendmail("a@b.example", "c@d.example", "hi")


@BOTH
def test_both_refused(module: Any) -> None:
    relay = Relay(answer=lambda verb, line: f"50{len(verb)} no to {verb}" if verb in ("EHLO", "HELO") else None)
    with relay_at(relay), connected(module, relay) as smtp:
        with pytest.raises(module.SMTPHeloError) as caught:
            smtp.sendmail("a@b.example", "c@d.example", "hi")
        assert told(caught.value) == (smtplib.SMTPHeloError, {"smtp_code": 504, "smtp_error": b"no to HELO"})
        assert smtp.sock is not None


@BOTH
def test_features_that_are_edited_are_obeyed(module: Any) -> None:
    with relay_at(Relay(("PIPELINING", "CHUNKING"))) as relay, connected(module, relay) as smtp:
        smtp.ehlo()
        del smtp.esmtp_features["size"]
        for name in ("chunking", "pipelining", "8bitmime"):
            smtp.esmtp_features.pop(name)
        assert not smtp.has_extn("size")
        smtp.sendmail("a@b.example", "c@d.example", b"hi")
        assert [relay.letters[0].parameters, relay.verbs] == ["", ["EHLO", "MAIL", "RCPT", "DATA"]]
        smtp.esmtp_features["size"] = "1000"
        smtp.sendmail("a@b.example", "c@d.example", b"hi\r\n")
        assert relay.letters[1].parameters == "size=4"
        smtp.esmtp_features = {"smtputf8": ""}
        smtp.sendmail("a@b.example", "c@d.example", b"hi", ["SMTPUTF8"])
        assert relay.letters[2].parameters == "SMTPUTF8"
        smtp.does_esmtp = False
        smtp.sendmail("a@b.example", "c@d.example", b"hi", ["X=Y"])
        assert relay.letters[3].parameters == ""


# ---- commands -----------------------------------------------------------------------------------

COMMANDS: list[tuple[str, tuple[Any, ...], str, Any]] = [
    ("noop", (), "noop", (299, b"noop")),
    ("rset", (), "rset", (299, b"rset")),
    ("help", (), "help", b"help"),
    ("help", ("mail",), "help mail", b"help mail"),
    ("verify", ("Jo <jo@b.example>",), "vrfy jo@b.example", (299, b"vrfy jo@b.example")),
    ("vrfy", ("jo",), "vrfy jo", (299, b"vrfy jo")),
    ("expn", ("Some List <list>",), "expn list", (299, b"expn list")),
    ("docmd", ("XFOO",), "xfoo", (299, b"xfoo")),
    ("docmd", ("XFOO", "a b"), "xfoo a b", (299, b"xfoo a b")),
    ("mail", ("a@b.example",), "mail from:<a@b.example>", (299, b"mail from:<a@b.example>")),
    ("mail", ("",), "mail from:<>", (299, b"mail from:<>")),
    ("mail", ("A <a@b>", ["X=Y", "Z"]), "mail from:<a@b> x=y z", (299, b"mail from:<a@b> x=y z")),
    ("rcpt", ("a@b.example", ("NOTIFY=NEVER",)), "rcpt to:<a@b.example> notify=never",
     (299, b"rcpt to:<a@b.example> notify=never")),
]  # fmt: skip


@BOTH
@pytest.mark.parametrize(("name", "arguments", "line", "result"), COMMANDS, ids=lambda value: str(value)[:30])
def test_commands(module: Any, name: str, arguments: tuple[Any, ...], line: str, result: Any) -> None:
    relay = Relay(answer=lambda verb, line: None if verb == "EHLO" else f"299 {line.lower()}")
    with relay_at(relay), connected(module, relay) as smtp:
        smtp.ehlo()
        got = getattr(smtp, name)(*arguments)
        assert got == result
        assert isinstance(got, type(result))
        if isinstance(got, tuple):
            code, text = got
            assert (type(code), type(text)) == (int, bytes)
        assert [command.lower() for command in relay.commands[1:]] == [line]


@BOTH
def test_a_transaction_by_hand(module: Any) -> None:
    with relay_at() as relay, connected(module, relay) as smtp:
        smtp.ehlo()
        assert smtp.mail("a@b.example", ["size=9"]) == (250, b"2.1.0 sender ok")
        assert smtp.rcpt("c@d.example") == (250, b"2.1.5 recipient ok")
        assert smtp.data("one\n.two\r") == (250, b"2.0.0 taken")
        assert smtp.mail("a@b.example") == (250, b"2.1.0 sender ok")
        with pytest.raises(module.SMTPDataError) as caught:
            smtp.data(b"without recipients")
        assert told(caught.value)[1] == {"smtp_code": 503, "smtp_error": b"5.5.1 no valid recipients"}
        assert smtp.rset() == (250, b"2.0.0 reset")
        assert smtp.sendmail("e@f.example", "c@d.example", "three") == {}
    assert [(letter.sender, letter.content) for letter in relay.letters] == [
        ("a@b.example", b"one\r\n.two\r\n"),
        ("e@f.example", b"three\r\n"),
    ]


@BOTH
def test_smtputf8_by_hand(module: Any) -> None:
    with relay_at() as relay, connected(module, relay) as smtp:
        smtp.ehlo()
        assert smtp.command_encoding == "ascii"
        with pytest.raises(UnicodeEncodeError):
            smtp.mail("jö@b.example")
        smtp.mail("jö@b.example", ["smtputf8"])
        assert smtp.command_encoding == "utf-8"
        smtp.rcpt("sö@b.example")
        smtp.rset()
        assert smtp.command_encoding == "ascii"
        with pytest.raises(UnicodeEncodeError):
            smtp.rcpt("jö@b.example")
        del smtp.esmtp_features["smtputf8"]
        with pytest.raises(module.SMTPNotSupportedError, match="^SMTPUTF8 not supported by server$"):
            smtp.mail("a@b.example", ["SMTPUTF8"])
    lines = ["ehlo client.example", "mail from:<jö@b.example> smtputf8", "rcpt to:<sö@b.example>", "rset"]
    assert [command.lower() for command in relay.commands] == lines


@BOTH
def test_line_ends_do_not_get_into_a_command(module: Any) -> None:
    with relay_at() as relay, connected(module, relay) as smtp:
        smtp.ehlo()
        calls: list[Callable[[], Any]] = [
            lambda: smtp.docmd("noop\r\nrset"),
            lambda: smtp.docmd("noop", "a\nb"),
            lambda: smtp.putcmd("a\rb"),
            lambda: smtp.mail("a@b.example", ["X\r\nY"]),
            lambda: smtp.ehlo("me\r\nrset"),
            lambda: smtp.help("a\nb"),
        ]
        for call in calls:
            with pytest.raises(ValueError, match="contain prohibited newline characters"):
                call()
        smtp.noop()
    assert relay.verbs == ["EHLO", "NOOP"]


@BOTH
def test_local_hostname_is_a_word(module: Any) -> None:
    prohibited = pytest.raises(ValueError, match="contain prohibited newline characters")
    with relay_at() as relay, connected(module, relay, local_hostname="a\r\nrset") as smtp, prohibited:
        smtp.ehlo()
    assert relay.commands == []
