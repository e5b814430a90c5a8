"""Events of a connection: their order, and that no secret is in them."""

from __future__ import annotations

import asyncio
import base64
import logging
from typing import Any

import pytest

import asmtp
from asmtp.client.events import EventLog, _commands, _message_id
from asmtp.mailer.mailer import manager_of
from asmtp.protocol.exchange import Group
from asmtp.protocol.state import Trigger
from tests.conftest import Certificates
from tests.fakes.background import in_background
from tests.fakes.embedded import PASSWORD, USER, Embedded, embedded
from tests.fakes.people import SENDER, WHO
from tests.fakes.relay import Relay, relaying
from tests.fakes.scram import Scram
from tests.fakes.script import expect, nothing_more, scripted, send, until

pytestmark = pytest.mark.usefixtures("bdat_at_once")


def kinds(events: list[asmtp.Event], *without: str) -> list[str]:
    return [event.kind for event in events if event.kind not in without]


async def test_a_connection_from_its_begin_to_its_end(certificates: Certificates) -> None:
    events: list[asmtp.Event] = []
    async with embedded(Embedded(), tls=certificates.server) as server:
        smtp = asmtp.AsyncSMTP(
            "127.0.0.1", server.port, "me.example", username=USER, password=PASSWORD, on_event=events.append,
            ssl_context=certificates.trusting,
        )  # fmt: skip
        async with smtp:
            await smtp.sendmail(SENDER, [WHO], b"hi\r\n")
            with pytest.raises(ValueError, match="to_addrs"):
                await smtp.sendmail(SENDER, [], b"hi\r\n")
    assert kinds(events, "write", "replies") == ["connect", "tls", "login", "delivery", "close"]
    assert {event.server for event in events} == {f"127.0.0.1:{server.port}"}
    assert len({event.connection for event in events}) == 1
    told = {event.kind: event for event in events}
    assert told["connect"].fields == {"code": 220}
    assert told["connect"].seconds > 0
    assert told["tls"].fields["version"].startswith("TLSv1.")
    assert told["tls"].fields["resumed"] is False
    assert told["login"].fields == {"mechanism": "CRAM-MD5", "code": 235}
    sent = {"state": "sent", "accepted": 1, "refused": 0, "error": None, "message_id": None, "envid": None}
    assert told["delivery"].fields == sent
    assert told["close"].fields == {"reason": "connection closed on our side"}
    written = [event.fields["commands"] for event in events if event.kind == "write"]
    assert written == [
        ("EHLO",), ("STARTTLS",), ("EHLO",), ("AUTH",), ("response",), ("MAIL", "RCPT", "BDAT"), ("QUIT",),
    ]  # fmt: skip
    codes = [event.fields["codes"] for event in events if event.kind == "replies"]
    assert sum(codes, ()) == (220, 250, 220, 250, 334, 235, 250, 250, 250, 221)


async def test_a_delivery_that_is_none() -> None:
    events: list[asmtp.Event] = []
    refusing = Relay(answer=lambda verb, line: "550 no" if verb == "RCPT" else None)
    async with relaying(refusing), asmtp.AsyncSMTP("127.0.0.1", refusing.port, on_event=events.append) as smtp:
        with pytest.raises(asmtp.SMTPRecipientsRefused) as caught:
            await smtp.sendmail(SENDER, [WHO], b"hi\r\n")
        [event] = [event for event in events if event.kind == "delivery"]
        told = {"state": "refused", "accepted": 0, "refused": 1, "error": caught.value}
        assert event.fields == {**told, "message_id": None, "envid": None}


LETTER = b"Subject: hi\r\nMESSAGE-ID:\r\n <1@a.example>\r\n\r\nhi\r\n"


@pytest.mark.parametrize("size", [0, 100_000])
@pytest.mark.parametrize("verb", ["RCPT", "MAIL", "DATA", None])
async def test_which_message_it_was_and_who_was_refused(verb: str | None, size: int) -> None:
    """All recipients of a refused message are counted, and the message is named, whatever was refused."""
    events: list[asmtp.Event] = []
    server = Relay(("PIPELINING", "DSN"), answer=lambda said, line: "550 no" if said == verb else None)
    message = LETTER + b"x" * size
    who = [WHO, f"2{WHO}"]
    async with relaying(server):
        url = f"smtp://127.0.0.1:{server.port}"
        async with asmtp.AsyncMailer(url, on_event=events.append) as mailer:
            await asyncio.gather(mailer.send(message, SENDER, who, envid="17"), return_exceptions=True)
        async with asmtp.AsyncSMTP("127.0.0.1", server.port, on_event=events.append) as smtp:
            await asyncio.gather(smtp.sendmail(SENDER, who, message, envid="17"), return_exceptions=True)
    told = [event.fields for event in events if event.kind == "delivery"]
    assert [(one["message_id"], one["envid"]) for one in told] == [("<1@a.example>", "17")] * 2
    counts = (2, 0) if verb is None else (0, 2)
    assert [(one["accepted"], one["refused"]) for one in told] == [counts] * 2


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"Message-ID: <1@x>\r\n\r\nhi", "<1@x>"),
        (b"Message-Id :<1@x>", "<1@x>"),
        (b"Subject: a\nmessage-id: <1@x>\n\nhi", "<1@x>"),
        (b"Subject: a\r\n\r\nMessage-ID: <1@x>\r\n", None),
        (b"\r\nMessage-ID: <1@x>\r\n", None),
        (b"Message-ID:\r\n\r\nhi", None),
        (b"X-Message-ID: <1@x>\r\n\r\nhi", None),
        (b"Message-ID: <\xff\x1b@x>\r\n\r\nhi", "<\\xff"),
        (b"", None),
    ],
)
def test_the_message_id(content: bytes, found: str | None) -> None:
    assert _message_id(content) == found


@pytest.mark.parametrize("size", [10, 100_000])
async def test_a_message_of_a_mailer_that_is_not_begun(size: int) -> None:
    """A message that cannot be sent is found out before anything is written."""
    events: list[asmtp.Event] = []
    async with relaying(Relay(("PIPELINING", "CHUNKING"))) as relay:
        mailer = asmtp.AsyncMailer(f"smtp://127.0.0.1:{relay.port}", on_event=events.append)
        async with mailer:
            with pytest.raises(asmtp.SMTPNotSupportedError):
                await mailer.send(b"x" * size, SENDER, [WHO], priority=1)
    [event] = [event for event in events if event.kind == "delivery"]
    assert event.fields["state"] == "not_sent"
    assert isinstance(event.fields["error"], asmtp.SMTPNotSupportedError)


async def test_a_message_that_is_withdrawn() -> None:
    """Another has the turn, so nothing of it was written."""
    events: list[asmtp.Event] = []
    script = [
        send("220 hi"), expect("ehlo me.example"), send("250 hi"), expect(f"mail from:<{SENDER}>"), nothing_more,
    ]  # fmt: skip
    async with scripted(script) as server:
        url = f"smtp://{server.host}:{server.port}?local_hostname=me.example"
        mailer = asmtp.AsyncMailer(url, connections=1, on_event=events.append)
        sending = [asyncio.create_task(mailer.send(b"hi", SENDER, [WHO])) for _ in range(3)]
        await until(lambda: server.peers and b"mail" in server.peers[0].received)
        sending[1].cancel()
        await asyncio.wait(sending[1:2])
        told = [event.fields for event in events if event.kind == "delivery"]
        nothing = {"message_id": None, "envid": None}
        assert told == [{"state": "not_sent", "accepted": 0, "refused": 0, "error": None, **nothing}]
        mailer.abort()
        await asyncio.gather(*sending, return_exceptions=True)


@pytest.mark.parametrize("size", [10, 100_000])
async def test_a_mailer(size: int) -> None:
    """Each transaction is told of, on whichever connection it was."""
    events: list[asmtp.Event] = []
    async with relaying(Relay(("PIPELINING", "CHUNKING"))) as relay:
        mailer = asmtp.AsyncMailer(f"smtp://127.0.0.1:{relay.port}", connections=2, on_event=events.append)
        async with mailer:
            await asyncio.gather(*(mailer.send(b"x" * size, SENDER, [WHO]) for _ in range(10)))
    assert kinds(events).count("delivery") == 10
    assert kinds(events).count("connect") == kinds(events).count("close") >= 1
    assert all(event.fields["state"] == "sent" for event in events if event.kind == "delivery")
    assert all(event.seconds >= 0 for event in events if event.kind == "delivery")


def test_the_facade() -> None:
    events: list[asmtp.Event] = []
    with in_background(relaying(Relay())) as relay:
        smtp = asmtp.SMTP("127.0.0.1", relay.port, "me.example", on_event=events.append)
        smtp.sendmail(SENDER, [WHO], "hi")
        smtp.quit()
    assert kinds(events, "write", "replies") == ["connect", "delivery", "close"]


async def test_a_hook_that_raises(caplog: pytest.LogCaptureFixture) -> None:
    """A hook that raises does not stop the mail."""

    def hook(event: asmtp.Event) -> None:
        raise LookupError(event.kind)

    async with relaying(Relay()) as relay, asmtp.AsyncSMTP("127.0.0.1", relay.port, on_event=hook) as smtp:
        assert await smtp.sendmail(SENDER, [WHO], b"hi\r\n") == {}
    assert "on_event raised" in caplog.text
    assert "LookupError: delivery" in caplog.text


class Loose(logging.Handler):
    """Lets out what it meets."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def emit(self, record: logging.LogRecord) -> None:
        raise self.error


async def test_a_log_handler_that_raises(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """It stops no mail, and is shown as logging shows it."""
    caplog.set_level(logging.DEBUG, "asmtp")
    logger = logging.getLogger("asmtp")
    monkeypatch.setattr(logger, "handlers", [Loose(LookupError("no disk"))])
    async with relaying(Relay()) as relay, asmtp.AsyncSMTP("127.0.0.1", relay.port) as smtp:
        assert await smtp.sendmail(SENDER, [WHO], b"hi\r\n") == {}
    assert capsys.readouterr().err.count("LookupError: no disk") > 10
    monkeypatch.setattr(logger, "handlers", [Loose(KeyboardInterrupt())])
    with pytest.raises(KeyboardInterrupt):
        logger.warning("it is the user who ends it")


async def test_nothing_is_told_of_what_cannot_be_written() -> None:
    events: list[asmtp.Event] = []
    async with relaying(Relay()) as relay, asmtp.AsyncSMTP("127.0.0.1", relay.port, on_event=events.append) as smtp:
        await smtp.ehlo()
        await smtp.mail(SENDER)
        await smtp.rcpt(WHO)
        assert (await smtp.docmd("DATA")).code == 354
        events.clear()
        with pytest.raises(asmtp.SMTPStateError):
            await smtp.noop()
        assert events == []
        await smtp.close()


def test_a_hook_that_is_none() -> None:
    with pytest.raises(TypeError, match="^on_event must be a function, not int$"):
        asmtp.AsyncSMTP(on_event=5)  # type: ignore[arg-type]


# ---- the log ------------------------------------------------------------------------------------


async def test_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "asmtp")
    script = [
        send("220 hi"), expect("ehlo me.example"), send("250-hi", "250-PIPELINING", "250 CHUNKING"),
        expect(f"mail from:<{SENDER}>", f"rcpt to:<{WHO}>", "BDAT 4 LAST", "hi"),
        send("250 ok", "250 ok", "250 2.0.0 \u00fc"),
        expect("quit"), send("221 bye"), nothing_more,
    ]  # fmt: skip
    async with scripted(script) as server, asmtp.AsyncSMTP(server.host, server.port, "me.example") as smtp:
        await smtp.sendmail(SENDER, [WHO], b"hi\r\n")
    records = [record for record in caplog.records if record.name == "asmtp"]
    number = records[0].connection  # type: ignore[attr-defined]
    prefix = f"[{number} {server.host}:{server.port}] "
    lines = [record.getMessage() for record in records]
    assert all(line.startswith(prefix) for line in lines)
    assert [line.removeprefix(prefix) for line in lines if line[len(prefix)] in "<>"] == [
        "< 220 hi",
        "> ehlo me.example",
        "< 250 hi\\nPIPELINING\\nCHUNKING",
        f"> mail from:<{SENDER}>",
        f"> rcpt to:<{WHO}>",
        "> BDAT 4 LAST",
        "> (4 octets of content)",
        "< 250 ok",
        "< 250 ok",
        "< 250 2.0.0 \\xc3\\xbc",
        "> quit",
        "< 221 bye",
    ]
    assert lines[-1].endswith("closed: connection closed on our side")


async def test_nothing_is_told_where_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    """It costs one look a write, and one a read."""
    monkeypatch.setattr(logging.getLogger("asmtp"), "level", logging.WARNING)
    assert EventLog.of("mx:25", None) is None
    async with relaying(Relay()) as relay, asmtp.AsyncSMTP("127.0.0.1", relay.port) as smtp:
        assert smtp._session.display.observer is None


def test_content_that_looks_like_commands() -> None:
    data = b"mail from:<a@x>\r\nBDAT 9 LAST\r\nBDAT 9\r\nx"
    assert _commands(data) == ([b"mail from:<a@x>", b"BDAT 9 LAST"], 9)
    assert _commands(b"noop\r\n") == ([b"noop"], 0)
    assert _commands(b"") == ([], 0)
    log = EventLog("mx:25", None)
    log.wrote(Group(b"BDAT 1\r\nx", (Trigger.bdat,)))


# ---- secrets ------------------------------------------------------------------------------------

TOKEN = "t0ken-of-the-one-who-logs-in"


def forms(secret: str) -> list[str]:
    """The text, and what base64 makes of it wherever it stands in what is encoded."""
    shifted = [base64.b64encode(b"x" * shift + secret.encode()).decode()[4:-8] for shift in range(3)]
    return [secret, *shifted]


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN", "CRAM-MD5", "SCRAM-SHA-256"])
@pytest.mark.parametrize("right", [True, False])
async def test_no_password_in_a_full_run(
    mechanism: str, right: bool, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """In no log, repr, exception, event, trace or output, at any level."""
    caplog.set_level(logging.DEBUG)
    seen: list[Any] = []
    password = PASSWORD if right else "another-s3cret"
    server = Scram("SCRAM-SHA-256") if "SCRAM" in mechanism else Embedded(mechanisms=(mechanism,))
    async with embedded(server):
        options: dict[str, Any] = {"username": USER, "password": password, "tls": "none", "on_event": seen.append}
        smtp = asmtp.AsyncSMTP("127.0.0.1", server.port, "me.example", **options)
        smtp.trace = lambda direction, data: seen.append((direction, data))
        seen += [smtp]
        try:
            await smtp.connect()
            await smtp.sendmail(SENDER, [WHO], b"hi")
            await smtp.quit()
        except asmtp.SMTPException as error:
            seen.append(error)
        await smtp.close()
        mailer = asmtp.AsyncMailer(f"smtp://{USER}:{password}@127.0.0.1:{server.port}", tls="none", retry=None)
        seen += [mailer, *manager_of(mailer).settings.relays]
        async with mailer:
            try:
                seen.append(await mailer.send(b"hi", SENDER, [WHO]))
            except asmtp.SMTPException as error:
                seen += [error, error.__cause__, error.__context__, error.args]
    text = caplog.text + "".join(capsys.readouterr()) + "".join(f"{thing!r}{thing!s}" for thing in seen)
    assert "AUTH (not shown)" in text
    for form in forms(password):
        assert form not in text


async def test_no_token_in_a_full_run(caplog: pytest.LogCaptureFixture) -> None:
    """Not even of a server that repeats it."""
    caplog.set_level(logging.DEBUG)
    seen: list[Any] = []
    relay = Relay(("AUTH XOAUTH2",), answer=lambda verb, line: f"535 5.7.8 {line} {TOKEN}" if verb == "AUTH" else None)
    async with relaying(relay):
        smtp = asmtp.AsyncSMTP(
            "127.0.0.1", relay.port, username=USER, token=lambda force: TOKEN, tls="none", on_event=seen.append
        )
        with pytest.raises(asmtp.SMTPAuthenticationError) as caught:
            await smtp.connect()
    seen += [caught.value, caught.value.args, smtp]
    text = caplog.text + "".join(f"{thing!r}{thing!s}" for thing in seen)
    assert "(not shown)" in text
    for form in forms(TOKEN):
        assert form not in text
