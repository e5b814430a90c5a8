"""Subclasses that override a step of smtplib's: it is called, or there is an error."""

from __future__ import annotations

import asyncio
import io
import pathlib
import smtplib
import socket
import ssl
from collections.abc import Iterator
from email.message import EmailMessage
from typing import Any

import pytest

import asmtp
from tests.conftest import Certificates
from tests.fakes.background import in_background
from tests.fakes.embedded import PASSWORD, USER, Embedded, embedded
from tests.fakes.relay import Letter, Relay
from tests.fakes.script import expect, fin, nothing_more, send
from tests.sync.facade import BOTH, A, B, C, connected, nothing_left, relay_at, script_at, told

STEPS = ("mail", "rcpt", "data", "putcmd", "getreply", "send")
BY_HAND = ("putcmd", "getreply", "docmd", "send")


@pytest.fixture(autouse=True)
def loops(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[asyncio.AbstractEventLoop]]:
    with nothing_left(monkeypatch) as made:
        yield made


def overriding(base: type, *names: str) -> tuple[Any, list[str]]:
    """A subclass that notes which of its steps are called."""
    calls: list[str] = []

    def noting(name: str) -> Any:
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            return getattr(base, name)(self, *args, **kwargs)

        return method

    return type("Own", (base,), {name: noting(name) for name in names}), calls


@BOTH
@pytest.mark.parametrize("name", STEPS)
def test_a_step_that_is_overridden_is_called(module: Any, name: str) -> None:
    own, calls = overriding(module.SMTP, name)
    with relay_at() as relay, own("127.0.0.1", relay.port, "client.example") as smtp:
        assert smtp.sendmail(A, [B, C], ".one\r\ntwo") == {}
        count = {"mail": 1, "rcpt": 2, "data": 1}.get(name)
        assert len(calls) == count if count else len(calls) >= 4
        message = EmailMessage()
        message["From"], message["To"] = A, B
        message.set_content("hi\n")
        assert smtp.send_message(message) == {}
    assert relay.letters[0].content == b".one\r\ntwo\r\n"
    assert relay.letters[0].recipients == [B, C]
    assert len(relay.letters) == 2
    if module is asmtp:
        assert relay.letters[0].parameters == "size=9"


@BOTH
@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize(
    ("replies", "kind", "attributes", "state"),
    [
        ({"MAIL": "550 no"}, "SMTPSenderRefused", {"smtp_code": 550, "smtp_error": b"no", "sender": A}, "refused"),
        ({"RCPT": "550 no"}, "SMTPRecipientsRefused", {"recipients": {B: (550, b"no"), C: (550, b"no")}}, "refused"),
        ({"DATA": "451 no"}, "SMTPDataError", {"smtp_code": 451, "smtp_error": b"no"}, "refused"),
        ({".": "554 no"}, "SMTPDataError", {"smtp_code": 554, "smtp_error": b"no"}, "refused"),
    ],
)
def test_a_refusal(
    module: Any, name: str, replies: dict[str, str], kind: str, attributes: dict[str, Any], state: str
) -> None:
    own, _ = overriding(module.SMTP, name)
    replies = {**replies}
    relay = Relay(answer=lambda verb, line: replies.get(verb))
    with relay_at(relay), own("127.0.0.1", relay.port, "client.example") as smtp:
        with pytest.raises(getattr(module, kind)) as caught:
            smtp.sendmail(A, [B, C], "hi")
        assert told(caught.value)[1] == attributes
        if module is asmtp:
            assert caught.value.state == state
            assert relay.verbs[-1] == "RSET"
        else:
            smtp.rset()
        replies.clear()
        assert smtp.sendmail(A, [B], "hi") == {}


@BOTH
@pytest.mark.parametrize("name", STEPS)
def test_some_recipients_are_refused(module: Any, name: str) -> None:
    own, _ = overriding(module.SMTP, name)
    relay = Relay(answer=lambda verb, line: "550 no" if verb == "RCPT" and B in line else None)
    with relay_at(relay), own("127.0.0.1", relay.port, "client.example") as smtp:
        assert smtp.sendmail(A, [B, C], "hi", ["BODY=8BITMIME"]) == {B: (550, b"no")}
    assert relay.letters[0].recipients == [C]


@pytest.mark.parametrize("name", ["rcpt", "getreply"])
@pytest.mark.parametrize("verb", ["MAIL", "RCPT", "DATA", "."])
def test_a_server_that_leaves(name: str, verb: str) -> None:
    own, _ = overriding(asmtp.SMTP, name)
    relay = Relay(answer=lambda said, line: "421 4.3.2 bye" if said == verb else None)
    with relay_at(relay), own("127.0.0.1", relay.port, "client.example") as smtp:
        with pytest.raises(asmtp.SMTPException) as caught:
            smtp.sendmail(A, [B, C], "hi")
        assert caught.value.state == "refused"
        assert smtp.sock is None


@pytest.mark.parametrize(("place", "state"), [("rcpt", "not_sent"), (".", "in_doubt")])
def test_a_connection_that_is_lost(place: str, state: str) -> None:
    own, _ = overriding(asmtp.SMTP, "putcmd")
    before = [send("220 hi"), expect("ehlo client.example"), send("502 what?"), expect("helo client.example")]
    before += [send("250 hi"), expect(f"mail FROM:<{A}>"), send("250 ok"), expect(f"rcpt TO:<{B}>")]
    behind = [send("250 ok"), expect("data"), send("354 go"), expect(b"hi\r\n.\r\n")] if place == "." else []
    with script_at([*before, *behind, fin]) as server, own("127.0.0.1", server.port, "client.example") as smtp:
        with pytest.raises(asmtp.SMTPServerDisconnected) as caught:
            smtp.sendmail(A, [B], "hi", ["X=Y"], ["NOTIFY=NEVER"])  # without ESMTP they are not sent
        assert caught.value.state == state


def test_a_step_that_the_object_has_or_a_test_has_patched(monkeypatch: pytest.MonkeyPatch) -> None:
    with relay_at() as relay, connected(asmtp, relay) as smtp:
        smtp.mail = lambda sender, options: (250, b"ok")
        with pytest.raises(asmtp.SMTPRecipientsRefused):
            smtp.sendmail(A, [B], "hi")  # the server has seen no MAIL
        del smtp.mail
        assert smtp.sendmail(A, [B], "hi") == {}
        monkeypatch.setattr(asmtp.SMTP, "data", lambda self, msg: (250, b"mocked"))
        assert smtp.sendmail(A, [B], "hi") == {}
        monkeypatch.undo()
    assert len(relay.letters) == 1


@pytest.mark.parametrize("kind", ["str", "bytes", "bytearray", "path", "file"])
def test_what_can_be_sent_in_steps(kind: str, tmp_path: pathlib.Path) -> None:
    own, _ = overriding(asmtp.SMTP, "rcpt")
    where = tmp_path / "letter"
    where.write_bytes(b"hi\r\n")
    content: dict[str, Any] = {
        "str": "hi\r\n", "bytes": b"hi\r\n", "bytearray": bytearray(b"hi\r\n"), "path": where,
        "file": io.BytesIO(b"hi\r\n"),
    }  # fmt: skip
    with relay_at() as relay, own("127.0.0.1", relay.port, "client.example") as smtp:
        assert smtp.sendmail(A, [B], content[kind]) == {}
    assert relay.letters == [Letter(A, [B], b"hi\r\n", "size=4")]


def test_what_cannot() -> None:
    async def pieces() -> Any:
        yield b"hi"

    own, _ = overriding(asmtp.SMTP, "rcpt")
    with relay_at() as relay, own("127.0.0.1", relay.port, "client.example") as smtp:
        with pytest.raises(
            TypeError, match=r"^msg: async_generator is not possible where a subclass has its own rcpt\(\)"
        ):
            smtp.sendmail(A, [B], pieces())
        with pytest.raises(TypeError, match=r"^envid= is not possible where a subclass has its own rcpt\(\)"):
            smtp.sendmail(A, [B], "hi", envid="1")
    assert relay.verbs == ["EHLO", "QUIT"]
    own, _ = overriding(asmtp.LMTP, "rcpt")
    with (
        relay_at(Relay(lmtp=True)) as relay,
        own("127.0.0.1", relay.port, "client.example") as smtp,
        pytest.raises(TypeError, match=r"^LMTP is not possible where a subclass has its own rcpt\(\)"),
    ):
        smtp.sendmail(A, [B], "hi")


def test_smtputf8_in_steps() -> None:
    own, _ = overriding(asmtp.SMTP, "putcmd")
    with relay_at() as relay, own("127.0.0.1", relay.port, "client.example") as smtp:
        assert smtp.sendmail("jö@b.example", [B], "hi", ["SMTPUTF8"]) == {}
        with pytest.raises(UnicodeEncodeError):
            smtp.sendmail("jö@b.example", [B], "hi") if smtp.rset() else None
    assert relay.letters[0].sender == "jö@b.example"


# ---- commands by hand ----------------------------------------------------------------------------


def traced(base: type, *names: str) -> tuple[Any, list[Any]]:
    """A subclass that notes its steps, with their arguments and results."""
    calls: list[Any] = []

    def noting(name: str) -> Any:
        def method(self: Any, *args: Any) -> Any:
            # smtplib says FROM: and TO:, and from Python 3.13 on from: and to:
            calls.append((name, *[arg.lower() if isinstance(arg, str) else arg for arg in args]))
            result = getattr(base, name)(self, *args)
            calls.append(result)
            return result

        return method

    return type("Own", (base,), {name: noting(name) for name in names}), calls


def all_commands(module: Any, *names: str) -> tuple[list[Any], list[Any]]:
    """Say every command; return the calls that a subclass sees, and the results that its caller gets."""
    own, calls = traced(module.SMTP, *names)
    relay = Relay(("SIZE 1000", "8BITMIME", "SMTPUTF8"))
    with relay_at(relay):
        smtp = own("127.0.0.1", relay.port, "client.example")
        got = [smtp.ehlo(), smtp.ehlo_resp, dict(smtp.esmtp_features), smtp.does_esmtp, smtp.helo("x.example")]
        got += [smtp.helo_resp, smtp.noop(), smtp.rset(), smtp.help(), smtp.help("me"), smtp.vrfy(A), smtp.expn("all")]
        got += [smtp.mail(A, ["SIZE=3"]), smtp.rcpt(B, ["NOTIFY=NEVER"]), smtp.data("hi\r\n.x")]
        got += [smtp.mail("jö@b.example", ["SMTPUTF8"]), smtp._rset(), smtp.docmd("noop", "x"), smtp.docmd("noop")]
        got += [smtp.putcmd("noop", "1"), smtp.getreply(), smtp.send(b"noop 2\r\n"), smtp.getreply()]
        got += [smtp.sendmail(A, [B], "hi\r\n"), smtp.quit(), smtp.sock, smtp.ehlo_resp, smtp.helo_resp, smtp._rset()]
        for call in (smtp.noop, smtp.ehlo, smtp.quit, smtp.rset):
            got.append(pytest.raises(module.SMTPServerDisconnected, call).type is module.SMTPServerDisconnected)
    assert [letter.content for letter in relay.letters] == [b"hi\r\n.x\r\n", b"hi\r\n"]
    return calls, got


@pytest.mark.parametrize("names", [*((name,) for name in BY_HAND), BY_HAND, ()], ids=str)
def test_all_commands_go_through_what_is_overridden_as_in_smtplib(names: tuple[str, ...]) -> None:
    assert all_commands(asmtp, *names) == all_commands(smtplib, *names)


@BOTH
@pytest.mark.parametrize("name", ["putcmd", "docmd", "send"])
@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN"])
def test_a_login_goes_through_it(module: Any, name: str, mechanism: str) -> None:
    own, calls = traced(module.SMTP, name)
    handler = Embedded(mechanisms=(mechanism,))
    with in_background(embedded(handler)), own("127.0.0.1", handler.port, "client.example") as smtp:
        with pytest.raises(module.SMTPAuthenticationError):
            smtp.login(USER, "wrong")
        calls.clear()
        assert smtp.login(USER, PASSWORD)[0] == 235
        said = [call for call in calls if isinstance(call, tuple) and call[0] == name]
        assert "".join(said[0][1:3]).startswith("auth")
        assert len(said) == (1 if mechanism == "PLAIN" else 2)
        if module is asmtp:
            assert PASSWORD not in repr(calls)
        assert smtp.sendmail(A, [B], "hi") == {}


@BOTH
@pytest.mark.parametrize("name", BY_HAND)
def test_starttls_goes_through_it(module: Any, name: str, certificates: Certificates) -> None:
    own, calls = traced(module.SMTP, name)
    with (
        in_background(embedded(Embedded(), tls=certificates.server)) as server,
        own("localhost", server.port, "client.example") as smtp,
    ):
        assert smtp.starttls(context=certificates.trusting) == (220, b"Ready to start TLS")
        assert any("starttls" in str(call) or call == (220, b"Ready to start TLS") for call in calls)
        assert smtp.ehlo_resp is None
        sock: Any = smtp.sock
        assert sock.version().startswith("TLS")
        assert smtp.sendmail(A, [B], "hi") == {}


@BOTH
def test_starttls_that_is_refused(module: Any) -> None:
    own, _ = overriding(module.SMTP, "docmd")
    relay = Relay(("STARTTLS",), answer=lambda verb, line: "454 not now" if verb == "STARTTLS" else None)
    with relay_at(relay), own("127.0.0.1", relay.port, "client.example") as smtp:
        with pytest.raises(module.SMTPResponseException) as caught:
            smtp.starttls()
        assert caught.value.smtp_code == 454
        assert smtp.noop()[0] == 250


@BOTH
def test_steps_that_need_no_server(module: Any) -> None:
    """As tests have it that patch them."""
    smtp, said = module.SMTP(local_hostname="client.example"), []
    smtp.putcmd = lambda *args: said.append(args)
    smtp.getreply = lambda: (250, b"here\nSIZE 5")
    assert smtp.ehlo() == (250, b"here\nSIZE 5")
    assert smtp.esmtp_features == {"size": "5"}
    assert smtp.rset() == smtp.rcpt(B) == smtp.quit() == (250, b"here\nSIZE 5")
    assert said[:2] == [("ehlo", "client.example"), ("rset", "")]
    assert said[2][1].lower() == f"to:<{B}>"
    assert said[3] == ("quit", "")


@BOTH
def test_what_a_step_raises(module: Any) -> None:
    own = type("Own", (module.SMTP,), {"getreply": lambda self: 1 / 0})
    smtp = own(local_hostname="client.example")
    smtp.putcmd = lambda *args: None
    for call in (smtp.ehlo, smtp.noop, smtp.docmd, smtp.data, smtp.mail):
        with pytest.raises(ZeroDivisionError):
            call(*([] if call in (smtp.ehlo, smtp.noop) else ["x"]))


@BOTH
def test_a_patched_send_sees_what_is_sent(module: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Any] = []
    original = module.SMTP.send

    def send(self: Any, s: Any) -> None:
        sent.append(s)
        original(self, s)

    monkeypatch.setattr(module.SMTP, "send", send)
    with relay_at(Relay(("PIPELINING", "CHUNKING"))) as relay, connected(module, relay) as smtp:
        assert smtp.sendmail(A, [B], "one\n.two") == {}
    assert sent[-4].lower().startswith(f"mail from:<{A}>")
    assert sent[-3].lower() == f"rcpt to:<{B}>\r\n"
    assert sent[-2:] == ["data\r\n", b"one\r\n..two\r\n.\r\n"]


def test_a_server_that_closes_instead_of_answering_quit() -> None:
    own, calls = overriding(asmtp.SMTP, "docmd")
    with script_at([send("220 hi"), expect("quit"), fin]) as server:
        smtp = own("127.0.0.1", server.port, "client.example")
        assert smtp.quit()[0] == -1
        assert smtp.sock is None
    assert calls == ["docmd"]


@BOTH
def test_a_hello_of_its_own(module: Any) -> None:
    own = type("Own", (module.SMTP,), {"ehlo_msg": "XEHLO"})
    script = [send("220 hi"), expect("XEHLO client.example"), send("250-hi\r\n250 SIZE"), nothing_more]
    with script_at(script) as server, own("127.0.0.1", server.port, "client.example") as smtp:
        assert smtp.ehlo()[0] == 250
        assert smtp.has_extn("size")
        smtp.close()


# ---- the socket --------------------------------------------------------------------------------


def through(base: type, **attributes: Any) -> tuple[Any, list[Any]]:
    """A subclass with a `_get_socket` of its own, which goes wherever the test says."""
    calls: list[Any] = []

    def get_socket(self: Any, host: str, port: int, timeout: float) -> Any:
        calls.append((host, port, timeout))
        return socket.create_connection(("127.0.0.1", self.proxy_port), timeout)

    return type("Through", (base,), {"_get_socket": get_socket, **attributes}), calls


@BOTH
def test_an_overridden_get_socket_is_called_and_its_socket_used(module: Any) -> None:
    with relay_at() as relay:
        own, calls = through(module.SMTP, proxy_port=relay.port)
        with own("mail.invalid", 2525, "client.example", timeout=7) as smtp:
            assert smtp.sendmail(A, [B], "hi") == {}
        assert calls == [("mail.invalid", 2525, 7)]
    assert len(relay.letters) == 1


@BOTH
def test_one_that_calls_smtplibs(module: Any) -> None:
    class Keeping(module.SMTP):  # type: ignore[misc]
        def _get_socket(self, host: str, port: int, timeout: Any) -> socket.socket:
            made: socket.socket = super()._get_socket(host, port, timeout)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            return made

    with relay_at() as relay, Keeping("127.0.0.1", relay.port, "client.example") as smtp:
        assert smtp.sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert smtp.noop()[0] == 250


def test_timeouts_and_unix_sockets(tmp_path: pathlib.Path) -> None:
    with relay_at() as relay:
        own, calls = through(asmtp.SMTP, proxy_port=relay.port)
        own("mail.invalid:2525", local_hostname="client.example", timeout=asmtp.Timeouts(connect=3)).close()
        assert calls == [("mail.invalid", 2525, 3)]
    own, calls = through(asmtp.LMTP)
    with relay_at(Relay(lmtp=True), path=str(tmp_path / "socket")), own(str(tmp_path / "socket"), 0, "client.example"):
        assert calls == []


def test_tls_is_begun_on_it(certificates: Certificates) -> None:
    with in_background(embedded(Embedded(), tls=certificates.server, implicit=True)) as server:
        own, calls = through(asmtp.SMTP_SSL, proxy_port=server.port)
        with own("localhost", 4650, "client.example", context=certificates.trusting) as smtp:
            assert smtp.sendmail(A, [B], "hi") == {}
        assert calls[0][:2] == ("localhost", 4650)
        with pytest.raises(ssl.SSLCertVerificationError):
            own("mail.invalid", 4650, "client.example", context=certificates.trusting)


def test_one_that_has_tls_already(certificates: Certificates) -> None:
    class Wrapping(asmtp.SMTP_SSL):
        def _get_socket(self, host: str, port: int, timeout: Any) -> socket.socket:
            made = super()._get_socket(host, port, timeout)
            return self.context.wrap_socket(made, server_hostname="localhost")

    with (
        in_background(embedded(Embedded(), tls=certificates.server, implicit=True)) as server,
        pytest.raises(TypeError, match=r"^_get_socket returned a socket with TLS, .* proxy='socks5://...'"),
    ):
        Wrapping("127.0.0.1", server.port, "client.example", context=certificates.trusting)


@pytest.mark.parametrize("wrong", [None, 5, io.BytesIO()])
def test_one_that_returns_no_socket(wrong: Any) -> None:
    own = type("Own", (asmtp.SMTP,), {"_get_socket": lambda self, host, port, timeout: wrong})
    with pytest.raises(
        TypeError, match="^_get_socket must return a connected socket.socket, not .*; there is proxy= too"
    ):
        own("mail.invalid", 25, "client.example")


@pytest.mark.parametrize(("host", "local"), [("localhost", True), ("127.0.0.1", True), ("mail.invalid", False)])
def test_a_password_is_not_for_who_is_behind_a_local_proxy(host: str, local: bool) -> None:
    """The other end of the socket is on this machine, but the server is not."""
    with in_background(embedded(Embedded(mechanisms=("PLAIN",)))) as server:
        own, _ = through(asmtp.SMTP, proxy_port=server.port)
        with own(host, 25, "client.example") as smtp:
            if local:
                assert smtp.login(USER, PASSWORD)[0] == 235
            else:
                with pytest.raises(asmtp.SMTPNotSupportedError, match="for everybody on the way to read"):
                    smtp.login(USER, PASSWORD)


# ---- a socket that is set ------------------------------------------------------------------------


def connected_socket(relay: Relay | Embedded) -> socket.socket:
    return socket.create_connection(("127.0.0.1", relay.port), 5)


@BOTH
def test_a_socket_that_is_set_before_its_greeting_was_read(module: Any) -> None:
    with relay_at() as relay:
        smtp = module.SMTP(local_hostname="client.example")
        smtp.sock = sock = connected_socket(relay)
        assert smtp.sock is sock
        assert smtp.getreply() == (220, b"relay.example ESMTP")
        assert smtp.ehlo()[0] == 250
        assert smtp.sendmail(A, [B], "hi") == {}
        assert smtp.quit()[0] == 221
        assert smtp.sock is None
        smtp.connect("127.0.0.1", relay.port)
        assert smtp.sendmail(A, [B], "hi") == {}
        smtp.close()
    assert len(relay.letters) == 2


@BOTH
@pytest.mark.parametrize("names", [(), ("putcmd",)], ids=str)
def test_one_whose_greeting_the_caller_has_read(module: Any, names: tuple[str, ...]) -> None:
    own, _ = overriding(module.SMTP, *names)
    with relay_at() as relay, own(local_hostname="client.example", timeout=7) as smtp:
        sock = connected_socket(relay)
        assert sock.recv(100).startswith(b"220 ")
        smtp.sock = sock
        assert smtp.ehlo()[0] == 250
        assert smtp.has_extn("size")
        assert smtp.sendmail(A, [B], "hi") == {}
    assert relay.verbs == ["EHLO", "MAIL", "RCPT", "DATA", "QUIT"]


@BOTH
def test_a_recipe_for_proxies(module: Any) -> None:
    """It calls no `__init__`, speaks to the proxy on `sock`, and reads the greeting by `getreply`."""

    class Through(module.SMTP):  # type: ignore[misc]
        def __init__(self, host: str, port: int, proxy: tuple[str, int]) -> None:
            self.timeout, self.local_hostname, self.source_address = 7, "client.example", None
            self.esmtp_features: Any = {}
            self.command_encoding = "ascii"
            self.proxy = proxy
            code, message = self.connect(host, port)
            if code != 220:
                raise module.SMTPConnectError(code, message)

        def connect(self, host: str = "localhost", port: int = 0, source_address: Any = None) -> Any:
            self.sock = socket.create_connection(self.proxy, self.timeout)
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            return self.getreply()

    with relay_at() as relay, Through("mail.invalid", 25, ("127.0.0.1", relay.port)) as smtp:
        assert smtp.sendmail(A, [B], "hi") == {}
    assert len(relay.letters) == 1


def test_debug_output_shows_no_greeting_twice(capsys: pytest.CaptureFixture[str]) -> None:
    with relay_at() as relay:
        smtp = asmtp.SMTP(local_hostname="client.example")
        sock = connected_socket(relay)
        sock.recv(100)
        smtp.set_debuglevel(1)
        smtp.sock = sock
        smtp.noop()
        smtp.quit()
    assert "220" not in capsys.readouterr().err


@BOTH
def test_one_that_is_never_used(module: Any) -> None:
    with relay_at() as relay:
        smtp = module.SMTP(local_hostname="client.example")
        smtp.sock = sock = connected_socket(relay)
        sock.recv(100)
        smtp.close()
        assert sock.fileno() == -1
        assert smtp.sock is None


def test_one_that_takes_the_place_of_a_connection() -> None:
    with relay_at() as relay, connected(asmtp, relay) as smtp:
        smtp.ehlo()
        before = smtp.sock.getsockname()
        smtp.sock = connected_socket(relay)
        assert smtp.getreply()[0] == 220
        assert smtp.sock.getsockname() != before
        assert smtp.quit()[0] == 221
        smtp.sock = sock = connected_socket(relay)
        sock.recv(100)
        smtp.connect("127.0.0.1", relay.port)
        assert smtp.noop()[0] == 250


def test_starttls_on_it(certificates: Certificates) -> None:
    with in_background(embedded(Embedded(), tls=certificates.server)) as server:
        smtp = asmtp.SMTP(local_hostname="client.example")
        smtp.sock = connected_socket(server)
        smtp.getreply()
        smtp.starttls(context=certificates.trusting)
        sock: Any = smtp.sock
        assert sock.version().startswith("TLS")
        assert smtp.quit()[0] == 221


@pytest.mark.parametrize("spoken", [True, False])
def test_a_password_is_not_for_whom_it_leads_to(spoken: bool) -> None:
    with in_background(embedded(Embedded(mechanisms=("PLAIN",)))) as server:
        smtp = asmtp.SMTP(local_hostname="client.example")
        sock = connected_socket(server)
        if spoken:
            sock.recv(100)
        smtp.sock = sock
        if not spoken:
            smtp.getreply()
        with pytest.raises(asmtp.SMTPNotSupportedError, match="for everybody on the way to read"):
            smtp.login(USER, PASSWORD)
        smtp.close()


def test_a_socket_that_will_not_do(certificates: Certificates) -> None:
    with relay_at() as relay, connected(asmtp, relay) as smtp:
        wrapped = certificates.trusting.wrap_socket(
            socket.socket(), server_hostname="localhost", do_handshake_on_connect=False
        )
        for wrong in (5, smtp.sock, wrapped, io.BytesIO()):
            with pytest.raises(TypeError, match="^sock: a connected socket without TLS, or None"):
                smtp.sock = wrong
        assert smtp.noop()[0] == 250
        wrapped.close()
