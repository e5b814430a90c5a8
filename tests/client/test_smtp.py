"""One connection's life: greeting, hello, single commands, leaving; and what never reaches the wire."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any

import pytest

import asmtp
from asmtp import AsyncLMTP, AsyncMailer, AsyncSMTP, AsyncSMTP_SSL
from asmtp.client import commands as commands
from asmtp.protocol.extensions import Extensions
from tests.fakes.relay import SHAPES, Relay, relaying
from tests.fakes.script import drip, expect, fin, nothing_more, rst, scripted, send, silence, until

HELLO = [send("220 hi"), expect("ehlo me.example")]


def client(server: Any, **options: Any) -> AsyncSMTP:
    return AsyncSMTP(server.host, server.port, "me.example", **options)


# ---- the greeting -----------------------------------------------------------------------------


@pytest.mark.parametrize("code", [221, 421, 450, 554])
async def test_a_greeting_that_is_no_welcome(code: int) -> None:
    async with scripted([send(f"{code} go away"), nothing_more]) as server:
        smtp = client(server)
        with pytest.raises(asmtp.SMTPConnectError) as caught:
            await smtp.connect()
        assert (caught.value.smtp_code, caught.value.smtp_error) == (code, b"go away")
        assert not smtp.is_connected


@pytest.mark.parametrize("end", [fin, rst])
async def test_no_greeting(end: Any) -> None:
    async with scripted([end]) as server:
        with pytest.raises(asmtp.SMTPServerDisconnected):
            await client(server).connect()


async def test_something_else_than_smtp() -> None:
    async with scripted([send("SSH-2.0-OpenSSH_9.2"), nothing_more]) as server:
        with pytest.raises(asmtp.SMTPProtocolError) as caught:
            await client(server).connect()
        assert caught.value.smtp_code == -1
        assert b"SSH-2.0" in caught.value.smtp_error


async def test_a_greeting_of_several_lines() -> None:
    async with scripted([send("220-hi", "220-no spam", "220 please"), nothing_more]) as server:
        smtp = client(server)
        assert await smtp.connect() == (220, b"hi\nno spam\nplease")
        await smtp.close()


async def test_connecting_twice() -> None:
    async with relaying(Relay()) as relay, client(relay) as smtp:
        with pytest.raises(asmtp.SMTPException, match="already connected"):
            await smtp.connect()
        assert (await smtp.noop()).ok


async def test_while_another_task_connects() -> None:
    """Half a connection (without TLS, or a login) is nobody's."""
    async with relaying(Relay(hold=0)) as relay:
        smtp = client(relay)
        connecting = asyncio.create_task(smtp.connect())
        await relay.held.wait()
        assert not smtp.is_connected
        with pytest.raises(asmtp.SMTPStateError, match="under way"):
            await smtp.connect()
        with pytest.raises(asmtp.SMTPServerDisconnected):
            await smtp.sendmail("a@x.example", "b@y.example", b"hi")
        relay.release()
        assert (await connecting).code == 220
        assert (await smtp.noop()).ok
        assert relay.commands == ["noop"]
        await smtp.quit()


async def test_entering_a_context_with_a_connection_keeps_it() -> None:
    async with relaying(Relay()) as relay:
        smtp = client(relay)
        await smtp.connect()
        async with smtp:
            assert (await smtp.noop()).ok
        assert len(relay.connections) == 1


@pytest.mark.parametrize(("kind", "port"), [(AsyncSMTP, 25), (AsyncSMTP_SSL, 465), (AsyncLMTP, 2003)])
async def test_the_default_ports(kind: type[AsyncSMTP], port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, int]] = []

    async def resolver(host: str, port: int) -> Any:
        asked.append((host, port))
        raise OSError("no")

    monkeypatch.setattr("asmtp.transport.resolve.resolve", resolver)
    with pytest.raises(OSError, match="no"):
        await kind(ssl_context=ssl.create_default_context()).connect()
    with pytest.raises(OSError, match="no"):
        await kind("mx.example:2525", ssl_context=ssl.create_default_context()).connect()
    assert asked == [("localhost", port), ("mx.example", 2525)]


async def test_connect_takes_another_host() -> None:
    async with relaying(Relay()) as relay:
        smtp = AsyncSMTP("elsewhere.example", 2525, "me.example")
        await smtp.connect(relay.host, relay.port)
        assert (await smtp.noop()).ok
        await smtp.quit()


# ---- EHLO and HELO ----------------------------------------------------------------------------


async def test_ehlo() -> None:
    async with relaying(Relay(("PIPELINING", "AUTH PLAIN LOGIN"))) as relay, client(relay) as smtp:
        assert (smtp.ehlo_resp, smtp.does_esmtp, smtp.esmtp_features) == (None, False, {})
        reply = await smtp.ehlo()
        assert reply.ok
        assert smtp.ehlo_resp == reply.message
        assert smtp.does_esmtp
        assert smtp.esmtp_features == {
            "8bitmime": "", "size": "50000000", "smtputf8": "", "dsn": "", "pipelining": "", "auth": " PLAIN LOGIN",
        }  # fmt: skip
        assert smtp.has_extn("PipeLining")
        assert not smtp.has_extn("chunking")
        assert relay.commands == ["ehlo me.example"]


async def test_ehlo_with_another_name() -> None:
    async with relaying(Relay()) as relay, client(relay) as smtp:
        await smtp.ehlo("other.example")
        await smtp.helo("again.example")
        assert smtp.helo_resp == b"relay.example"
        assert relay.commands == ["ehlo other.example", "helo again.example"]


async def test_ehlo_refused_helo_taken() -> None:
    script = [
        *HELLO, send("502 what?"), expect("helo me.example"), send("250 hi"),
        expect("mail from:<a@x.example>"), send("250 ok"), expect("rcpt to:<b@y.example>"), send("250 ok"),
        expect("data"), send("354 go"), expect("hi", "."), send("250 taken"), nothing_more,
    ]  # fmt: skip
    async with scripted(script) as server:
        smtp = client(server)
        await smtp.connect()
        # Without ESMTP no parameters are sent, whatever is given.
        assert await smtp.sendmail("a@x.example", "b@y.example", b"hi", ["BODY=8BITMIME"], ["NOTIFY=NEVER"]) == {}
        assert smtp.helo_resp == b"hi"
        assert not smtp.does_esmtp
        await smtp.close()


async def test_ehlo_and_helo_refused() -> None:
    async with scripted([*HELLO, send("502 what?"), expect("helo me.example"), send("550 no"), nothing_more]) as server:
        smtp = client(server)
        await smtp.connect()
        with pytest.raises(asmtp.SMTPHeloError) as caught:
            await smtp.sendmail("a@x.example", "b@y.example", b"hi")
        assert (caught.value.smtp_code, caught.value.smtp_error) == (550, b"no")
        await smtp.close()


@pytest.mark.parametrize("reply", ["421 4.3.2 too busy", "521 5.3.2 no mail here"])
async def test_a_server_that_does_not_stay_for_helo(reply: str) -> None:
    async with scripted([*HELLO, send(reply), fin]) as server:
        smtp = client(server)
        await smtp.connect()
        with pytest.raises(asmtp.SMTPHeloError) as caught:
            await smtp.sendmail("a@x.example", "b@y.example", b"hi")
        assert (caught.value.smtp_code, caught.value.smtp_error) == (int(reply[:3]), reply[4:].encode())
        assert (caught.value.state, caught.value.transient) == ("not_sent", reply[0] == "4")
        await smtp.close()


async def test_a_server_that_closes_instead_of_answering_helo() -> None:
    async with scripted([*HELLO, send("554 5.7.1 listed\a"), expect("helo me.example"), fin]) as server:
        smtp = client(server)
        await smtp.connect()
        with pytest.raises(asmtp.SMTPServerDisconnected) as caught:
            await smtp.sendmail("a@x.example", "b@y.example", b"hi")
        assert str(caught.value) == "Connection unexpectedly closed; to EHLO it had said 554 '5.7.1 listed\\x07'"
        assert caught.value.state == "not_sent"
        await smtp.close()


@pytest.mark.parametrize(("wrong", "kind"), [("hello", asmtp.SMTPProtocolError), ("", asmtp.SMTPTimeoutError)])
@pytest.mark.virtual_clock
async def test_a_server_that_breaks_the_protocol_at_helo(wrong: str, kind: type[Exception]) -> None:
    async with scripted(
        [*HELLO, send("502 what?"), expect("helo me.example"), *([send(wrong)] if wrong else []), nothing_more]
    ) as server:
        smtp = client(server)
        await smtp.connect()
        with pytest.raises(kind):
            await smtp.ehlo_or_helo_if_needed()
        await smtp.close()


async def test_many_first_calls_say_ehlo_once() -> None:
    async with relaying(Relay(SHAPES["both"])) as relay, client(relay) as smtp:
        results = await asyncio.gather(*(smtp.sendmail("a@x.example", "b@y.example", b"hi") for _ in range(10)))
        assert results == [{}] * 10
        assert relay.verbs.count("EHLO") == 1


async def test_the_name_of_this_machine_is_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asmtp.transport.connect.local_hostname", lambda: "[192.0.2.1]")
    async with relaying(Relay()) as relay, AsyncSMTP(relay.host, relay.port) as smtp:
        await smtp.ehlo()
        assert smtp.local_hostname == "[192.0.2.1]"
        assert relay.commands == ["ehlo [192.0.2.1]"]


@pytest.mark.virtual_clock
async def test_the_name_of_this_machine_is_not_waited_for_longer_than_a_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A resolver that does not answer holds nothing up."""
    loop = asyncio.get_running_loop()
    monkeypatch.setattr("asmtp.client.environment.call_in_thread", lambda function, abandon: asyncio.sleep(3600))
    async with relaying(Relay()) as relay, AsyncSMTP(relay.host, relay.port, timeout=7) as smtp:
        await smtp.ehlo()
        assert loop.time() == pytest.approx(7)
        await smtp.ehlo()  # it is not asked again
        assert relay.commands == ["ehlo [127.0.0.1]"] * 2
    async with relaying(Relay()) as relay, AsyncMailer(f"smtp://{relay.host}:{relay.port}", timeouts=8) as mailer:
        await mailer.send(b"hi", "a@x.example", "b@y.example")
        assert relay.commands[0] == "ehlo [127.0.0.1]"
        assert loop.time() == pytest.approx(15)


@pytest.mark.usefixtures("bdat_at_once")
async def test_features_can_be_edited() -> None:
    """As smtplib's could: code in the wild does so."""
    async with relaying(Relay(SHAPES["both"])) as relay, client(relay) as smtp:
        await smtp.ehlo()
        del smtp.esmtp_features["chunking"]
        await smtp.sendmail("a@x.example", "b@y.example", b"hi")
        assert "BDAT" not in relay.verbs
        smtp.esmtp_features = {"chunking": ""}
        assert isinstance(smtp.esmtp_features, Extensions)
        await smtp.sendmail("a@x.example", "b@y.example", b"hi")
        assert relay.verbs[-1] == "BDAT"
        smtp.does_esmtp = False
        await smtp.sendmail("a@x.example", "b@y.example", b"hi", ["BODY=8BITMIME"])
        assert relay.letters[-1].parameters == ""


# ---- one command at a time --------------------------------------------------------------------


async def test_single_commands() -> None:
    script = [
        send("220 hi"),
        expect("noop"), send("250 ok"),
        expect("rset"), send("250 reset"),
        expect("help"), send("214-talk", "214 to us"),
        expect("help mail"), send("214 mail from"),
        expect("vrfy a@x.example"), send("252 perhaps"),
        expect("expn list"), send("250-A <a@x.example>", "250 B <b@y.example>"),
        expect("xyzzy one two"), send("500 what?"),
        expect("xyzzy"), send("500 what?"),
        nothing_more,
    ]  # fmt: skip
    async with scripted(script) as server:
        smtp = client(server)
        await smtp.connect()
        assert await smtp.noop() == (250, b"ok")
        assert await smtp.rset() == (250, b"reset")
        assert await smtp.help() == b"talk\nto us"
        assert await smtp.help("mail") == b"mail from"
        assert await smtp.verify("A <a@x.example>") == (252, b"perhaps")
        assert await smtp.expn("list") == (250, b"A <a@x.example>\nB <b@y.example>")
        assert await smtp.docmd("xyzzy", "one two") == (500, b"what?")
        assert await smtp.docmd("xyzzy") == (500, b"what?")
        await smtp.close()


async def test_a_transaction_by_hand() -> None:
    async with relaying(Relay()) as relay, client(relay) as smtp:
        await smtp.ehlo()
        assert (await smtp.mail("a@x.example", ["size=5"])).code == 250
        assert (await smtp.rcpt("b@y.example", ["NOTIFY=NEVER"])).code == 250
        assert (await smtp.data(".dot\nlone\r\n")).code == 250
        letter = relay.letters[0]
        assert (letter.sender, letter.recipients, letter.parameters) == ("a@x.example", ["b@y.example"], "size=5")
        assert letter.content == b".dot\r\nlone\r\n"
        assert relay.commands[2] == "rcpt to:<b@y.example> NOTIFY=NEVER"
        # And the connection is where it was.
        assert await smtp.sendmail("c@x.example", "d@y.example", b"hi") == {}
        assert relay.verbs[-4:] == ["DATA", "MAIL", "RCPT", "DATA"]


async def test_data_refused_by_hand() -> None:
    async with relaying(Relay()) as relay, client(relay) as smtp:
        await smtp.ehlo()
        with pytest.raises(asmtp.SMTPDataError) as caught:
            await smtp.data(b"hi")
        assert caught.value.smtp_code == 503
        assert (await smtp.noop()).ok


async def test_smtputf8_by_hand() -> None:
    async with relaying(Relay()) as relay, client(relay) as smtp:
        await smtp.ehlo()
        assert (await smtp.mail("ä@x.example", ["SMTPUTF8"])).ok
        assert (await smtp.rcpt("ö@y.example")).ok
        assert relay.commands[1:] == ["mail from:<ä@x.example> SMTPUTF8", "rcpt to:<ö@y.example>"]
        await smtp.rset()
        with pytest.raises(UnicodeEncodeError):
            await smtp.rcpt("ö@y.example")
        del smtp.esmtp_features["smtputf8"]
        with pytest.raises(asmtp.SMTPNotSupportedError):
            await smtp.mail("ä@x.example", ["SMTPUTF8"])


async def test_lmtp_by_hand_gives_the_first_refusal() -> None:
    def full(verb: str, line: str) -> str | None:
        return "452 4.2.2 full" if verb == ".c@y.example" else None

    async with relaying(Relay(lmtp=True, answer=full)) as relay:
        async with AsyncLMTP(relay.host, relay.port, "me.example") as lmtp:
            await lmtp.ehlo()
            await lmtp.mail("a@x.example")
            for who in ("b@y.example", "c@y.example", "d@y.example"):
                await lmtp.rcpt(who)
            assert await lmtp.data(b"hi") == (452, b"4.2.2 full")
            assert (await lmtp.noop()).ok
        assert [letter.recipients for letter in relay.letters] == [["b@y.example", "d@y.example"]]
        assert relay.commands[0] == "lhlo me.example"


async def test_a_line_end_anywhere_in_a_reply() -> None:
    """However the octets of the replies fall, they pair."""
    script = [
        drip("220-hi", "220 there"), expect("ehlo me.example"), drip("250-hi", "250-PIPELINING", "250 "),
        expect("mail from:<a@x.example>", "rcpt to:<b@y.example>", "data"),
        drip(b"250 ok\n250\r\n354-go\r\n354 on\r\n"), expect("hi", "."), drip("250 taken"),
        expect("quit"), drip("221 bye"), fin,
    ]  # fmt: skip
    async with scripted(script) as server, client(server) as smtp:
        assert await smtp.sendmail("a@x.example", "b@y.example", b"hi") == {}


# ---- leaving ----------------------------------------------------------------------------------


async def test_quit_says_so_and_closes() -> None:
    async with scripted([send("220 hi"), expect("quit"), send("221 bye"), silence]) as server:
        smtp = client(server)
        await smtp.connect()
        assert await smtp.quit() == (221, b"bye")
        assert not smtp.is_connected
        await server.peer.closed.wait()


@pytest.mark.parametrize("end", [fin, rst])
async def test_quit_where_the_server_just_closes(end: Any) -> None:
    async with scripted([send("220 hi"), expect("quit"), end]) as server:
        smtp = client(server)
        await smtp.connect()
        code, why = await smtp.quit()
        assert code == -1
        assert b"closed" in why


async def test_quit_waits_for_what_is_under_way() -> None:
    async with relaying(Relay(SHAPES["both"])) as relay:
        smtp = client(relay)
        await smtp.connect()
        await smtp.ehlo()
        sending = [asyncio.create_task(smtp.sendmail("a@x.example", "b@y.example", b"hi")) for _ in range(5)]
        await asyncio.sleep(0)
        assert (await smtp.quit()).code == 221
        assert await asyncio.gather(*sending) == [{}] * 5


async def test_a_client_can_be_used_again() -> None:
    async with relaying(Relay()) as relay:
        smtp = client(relay)
        for _ in range(3):
            async with smtp:
                await smtp.sendmail("a@x.example", "b@y.example", b"hi")
            assert smtp.ehlo_resp is None
            assert smtp.esmtp_features == {}
        assert len(relay.letters) == 3
        assert relay.verbs.count("EHLO") == 3


@pytest.mark.parametrize("awaited", [True, False])
async def test_close_is_done_when_the_call_returns(awaited: bool) -> None:
    async with scripted([send("220 hi"), nothing_more]) as server:
        smtp = client(server)
        await smtp.connect()
        closing = smtp.close()
        assert not smtp.is_connected
        if awaited:
            await closing
        with pytest.raises(asmtp.SMTPServerDisconnected, match=r"please run connect\(\) first"):
            await smtp.noop()
        await server.peer.closed.wait()
        await smtp.close()


async def test_close_tells_who_still_waits() -> None:
    async with scripted([send("220 hi"), expect("noop"), nothing_more]) as server:
        smtp = client(server)
        await smtp.connect()
        waiting = asyncio.create_task(smtp.noop())
        await until(lambda: server.received)
        smtp.close()
        with pytest.raises(asmtp.SMTPServerDisconnected):
            await waiting


async def test_the_context_says_quit() -> None:
    async with relaying(Relay()) as relay:
        async with client(relay) as smtp:
            pass
        assert relay.commands == ["quit"]
        assert not smtp.is_connected


async def test_the_context_says_quit_after_an_error_of_the_caller_s() -> None:
    async with relaying(Relay()) as relay:
        with pytest.raises(ZeroDivisionError):
            async with client(relay):
                raise ZeroDivisionError
        assert relay.commands == ["quit"]


async def test_the_context_does_not_wait_when_cancelled() -> None:
    async with relaying(Relay()) as relay:
        with pytest.raises(asyncio.CancelledError):
            async with client(relay):
                raise asyncio.CancelledError
        assert relay.commands == []


@pytest.mark.parametrize("refusal", ["421 closing", "500 no"])
async def test_the_context_is_left_quietly_whatever_quit_is_answered(refusal: str) -> None:
    async with scripted([send("220 hi"), expect("quit"), send(refusal), nothing_more]) as server, client(server):
        pass


async def test_the_context_is_left_in_the_middle_of_a_login_by_hand() -> None:
    """QUIT would be taken for a response: there is nothing to do but close."""
    async with scripted([send("220 hi"), expect("auth login"), send("334 "), nothing_more]) as server:
        async with client(server) as smtp:
            assert (await smtp.docmd("auth", "login")).code == 334
        assert not smtp.is_connected


# ---- what the server says unasked -------------------------------------------------------------


@pytest.mark.parametrize("step", [send("421 shutting down"), fin, rst, send("250 surprise")])
async def test_gone_while_idle(step: Any) -> None:
    """The next call says so, and writes nothing."""
    async with scripted([send("220 hi"), expect("noop"), send("250 ok"), step, nothing_more]) as server:
        smtp = client(server)
        await smtp.connect()
        await smtp.noop()
        await until(lambda: not smtp.is_connected)
        with pytest.raises(asmtp.SMTPServerDisconnected):
            await smtp.noop()
        with pytest.raises(asmtp.SMTPServerDisconnected):
            await smtp.sendmail("a@x.example", "b@y.example", b"hi")
        assert smtp.sock is None
        await smtp.close()


async def test_421_while_idle_is_in_the_error() -> None:
    async with relaying(Relay()) as relay, client(relay) as smtp:
        await smtp.noop()
        relay.say("421 4.3.2 shutting down")
        await until(lambda: not smtp.is_connected)
        with pytest.raises(asmtp.SMTPServerDisconnected, match="421 4.3.2 shutting down"):
            await smtp.noop()
        # Gone is gone; but one can connect again.
        await smtp.connect()
        assert (await smtp.noop()).ok


async def test_calls_before_connecting() -> None:
    smtp = AsyncSMTP("127.0.0.1")
    for call in (smtp.noop, smtp.quit, smtp.ehlo):
        with pytest.raises(asmtp.SMTPServerDisconnected, match=r"please run connect\(\) first"):
            await call()
    await smtp.close()


# ---- what is shown ----------------------------------------------------------------------------


async def test_repr() -> None:
    async with relaying(Relay(("AUTH PLAIN",))) as relay:
        smtp = AsyncSMTP(relay.host, relay.port, username="tester", password="s3cret", tls="none")
        assert repr(smtp) == f"<asmtp.client.smtp.AsyncSMTP 127.0.0.1:{relay.port} not connected>"
        smtp = client(relay)
        await smtp.connect()
        assert repr(smtp) == f"<asmtp.client.smtp.AsyncSMTP 127.0.0.1:{relay.port} ready>"
        smtp.password = "s3cret"
        assert "s3cret" not in repr(smtp)
        await smtp.quit()


async def test_trace() -> None:
    seen: list[tuple[str, bytes]] = []
    async with relaying(Relay()) as relay:
        smtp = client(relay)
        assert smtp.trace is None
        smtp.trace = lambda direction, octets: seen.append((direction, octets))
        await smtp.connect()
        await smtp.noop()
        await smtp.quit()
    assert [(direction, octets.strip()) for direction, octets in seen] == [
        ("<", b"220 relay.example ESMTP"),
        (">", b"noop"), ("<", b"250 2.0.0 ok"),
        (">", b"quit"), ("<", b"221 2.0.0 bye"),
    ]  # fmt: skip
    assert smtp.trace is not None


@pytest.mark.parametrize("kind", [BrokenPipeError, asyncio.CancelledError])
@pytest.mark.parametrize("shape", SHAPES)
async def test_what_a_trace_raises(kind: type[BaseException], shape: str, caplog: pytest.LogCaptureFixture) -> None:
    """Each time: it stops no mail, and whoever waits is told of the end, though the connection is reset."""

    def trace(direction: str, octets: bytes) -> None:
        raise kind(f"{direction} {octets!r}")

    async with relaying(Relay(SHAPES[shape])) as relay:
        smtp = client(relay)
        smtp.trace = trace
        await smtp.connect()
        sending = (smtp.sendmail("a@x.example", ["b@y.example"], b"hi\r\n") for _ in range(3))
        assert await asyncio.gather(*sending) == [{}, {}, {}]
        assert smtp.trace is trace
        await smtp.quit()
        assert len(relay.letters) == 3
    async with scripted([*HELLO, send("250 hi"), expect("noop"), send("250 o"), rst]) as server:
        smtp = client(server)
        smtp.trace = trace
        await smtp.connect()
        await smtp.ehlo()
        await smtp.noop()
        with pytest.raises(asmtp.SMTPServerDisconnected):
            await smtp.noop()
    assert "trace raised" in caplog.text
    assert f"{kind.__name__}: < b'220 hi'" in caplog.text
