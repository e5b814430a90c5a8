"""AsyncMailer.send: messages of every kind, what the receipt says, and every way in which a server says no."""

from __future__ import annotations

import asyncio
import io
import smtplib
import time
from collections.abc import AsyncIterator, Callable
from email.message import Message
from pathlib import Path
from typing import Any

import pytest

import asmtp
from asmtp import AsyncMailer, Envelope, Receipt
from tests.client.contents import KINDS, ROUTES, pieces
from tests.fakes.people import SENDER, WHO
from tests.fakes.relay import SHAPES, Relay, relaying
from tests.mailer.mailing import answering, email, mailer, people

ALL = ["b@y.example", "c@y.example", "d@y.example"]

# ---- kinds of content -------------------------------------------------------------------------

ENVELOPED = ["small bytes", "large path"]


@pytest.mark.parametrize(
    ("kind", "enveloped"), [*((kind, False) for kind in ROUTES), *((kind, True) for kind in ENVELOPED)]
)
async def test_content_arrives_octet_for_octet(
    kind: str, enveloped: bool, shape: tuple[str, ...], tmp_path: Path
) -> None:
    content, arrives = KINDS[kind](tmp_path / "message")
    async with relaying(Relay(shape)) as relay, mailer(relay, connections=1) as posting:
        if enveloped:
            receipt = await posting.send(Envelope(SENDER, WHO, content=content))
        else:
            receipt = await posting.send(content, SENDER, WHO)
        await posting.send(b"next", SENDER, "c@y.example")  # on the same connection
        assert [letter.recipients for letter in relay.letters] == [[WHO], ["c@y.example"]]
        assert [letter.content for letter in relay.letters] == [arrives, b"next\r\n"]
        assert list(receipt.accepted) == [WHO]
        assert len(relay.connections) == 1


async def test_a_file_stays_open_for_the_caller(tmp_path: Path) -> None:
    content, arrives = KINDS["large binary file"](tmp_path / "message")
    async with relaying(Relay()) as relay, mailer(relay) as posting:
        await posting.send(content, SENDER, WHO)
        assert relay.letters[0].content == arrives
    assert not content.closed
    content.close()


async def test_a_file_is_sent_from_where_it_stands() -> None:
    file = io.BytesIO(b"skipped\r\nsent\r\n")
    file.readline()
    async with relaying(Relay()) as relay, mailer(relay) as posting:
        await posting.send(file, SENDER, WHO)
        assert relay.letters[0].content == b"sent\r\n"


@pytest.mark.parametrize("make", [email, Message])
@pytest.mark.parametrize("lines", [1, 2000, 50_000])  # in one piece, as one that is carried, flattened elsewhere
async def test_message_objects(make: Callable[[], Message], lines: int, shape: tuple[str, ...]) -> None:
    made = make()
    del made["Content-Type"], made["From"], made["To"]
    made["From"] = SENDER
    made["To"] = "Bob <b@y.example>, c@y.example"
    made["Bcc"] = "secret@y.example"
    made.set_payload("line of text to be sent\n" * lines)
    async with relaying(Relay(shape)) as relay, mailer(relay) as posting:
        receipt = await posting.send(made)
        (letter,) = relay.letters
        assert letter.sender == SENDER
        assert sorted(letter.recipients) == sorted(receipt.accepted) == [WHO, "c@y.example", "secret@y.example"]
        assert letter.content.count(b"line of text to be sent\r\n") == lines
        assert b"secret" not in letter.content
    assert made["Bcc"] == "secret@y.example"


async def test_what_is_given_goes_over_the_headers() -> None:
    async with relaying(Relay()) as relay, mailer(relay) as posting:
        await posting.send(email(), "other@x.example")
        await posting.send(email(), recipients=["other@y.example"])
        await posting.send(email(Sender="secretary@x.example"))
        assert [(letter.sender, letter.recipients) for letter in relay.letters] == [
            ("other@x.example", [WHO]), (SENDER, ["other@y.example"]), ("secretary@x.example", [WHO]),
        ]  # fmt: skip


async def test_the_options_of_mail_and_rcpt() -> None:
    async with relaying(Relay()) as relay, mailer(relay) as posting:
        await posting.send(b"hi", SENDER, WHO, mail_options=["RET=HDRS"], rcpt_options=["NOTIFY=NEVER"])
        await posting.send(Envelope(SENDER, WHO, ["RET=FULL"], ["NOTIFY=DELAY"], content=b"hi"))
        await posting.send(email(), mail_options=["ENVID=5"])
        given = [line for line in relay.commands if line[:4] in ("mail", "rcpt")]
        assert [line.rpartition(" ")[2] for line in given[:4]] == [
            "RET=HDRS", "NOTIFY=NEVER", "RET=FULL", "NOTIFY=DELAY",
        ]  # fmt: skip
        assert "ENVID=5" in given[4]


async def test_the_null_sender() -> None:
    async with relaying(Relay()) as relay, mailer(relay) as posting:
        await posting.send(b"a bounce", "", WHO)
        assert relay.letters[0].sender == ""


@pytest.mark.virtual_clock
async def test_the_server_without_8bitmime_gets_seven_bits() -> None:
    """Each try sends the content in the form for the server of that try."""
    made = email()
    made.set_content("Grüße\n", cte="8bit")
    seen: list[str] = []

    def answer(verb: str, line: str) -> str | None:
        if verb == ".":
            seen.append(line)
            relay.common = ()
            return "421 4.3.2 going down" if len(seen) == 1 else None
        return None

    async with relaying(Relay(answer=answer)) as relay, mailer(relay) as posting:
        await posting.send(made)
        first, second = seen
        assert "Grüße" in first.encode("latin-1").decode()
        assert "R3LDvMOfZQ0K" in second
        assert second.isascii()


async def test_an_international_address() -> None:
    async with relaying(Relay()) as relay, mailer(relay) as posting:
        await posting.send(b"hi", SENDER, "δοκιμή@y.example")
        assert relay.letters[0].recipients == ["δοκιμή@y.example"]
        assert "SMTPUTF8" in relay.letters[0].parameters


@pytest.mark.parametrize("content", [b"hi", email()])
async def test_an_international_address_that_the_server_does_not_take(content: Any) -> None:
    """Nothing is written, and there is no other try, as it would end the same."""
    async with relaying(Relay(common=())) as relay, mailer(relay) as posting:
        with pytest.raises(asmtp.SMTPNotSupportedError, match="SMTPUTF8") as caught:
            await posting.send(content, SENDER, "δοκιμή@y.example")
        assert isinstance(caught.value, smtplib.SMTPNotSupportedError)
        assert caught.value.state == "not_sent"
        assert relay.verbs == ["EHLO"]
        assert posting.stats.retried == 0


# ---- wrong arguments --------------------------------------------------------------------------

ENVELOPE = Envelope(SENDER, WHO, content=b"hi")

WRONG: dict[str, tuple[tuple[Any, ...], dict[str, Any], type[Exception], str]] = {
    "no sender": ((b"hi",), {}, ValueError, "^sender: not given"),
    "no recipients": ((b"hi", SENDER), {}, ValueError, "^recipients: not given"),
    "empty recipients": ((b"hi", SENDER, []), {}, ValueError, "^recipients: no recipients$"),
    "a line end in the sender": ((b"hi", "a\r\n@x", WHO), {}, ValueError, "^sender: "),
    "a line end in a recipient": ((b"hi", SENDER, [WHO, "b\n@x"]), {}, ValueError, "^recipients: "),
    "two in one": ((b"hi", SENDER, "b@x, c@x"), {}, ValueError, "^recipients: more than one"),
    "a sender that is no str": ((b"hi", 5, WHO), {}, TypeError, "^sender must be str"),
    "recipients that are none": ((b"hi", SENDER, 5), {}, TypeError, "^recipients must be"),
    "bytes for recipients": ((b"hi", SENDER, b"b@x"), {}, TypeError, "^recipients must be"),
    "mail_options": ((b"hi", SENDER, WHO), {"mail_options": ["A=1\r\nQUIT"]}, ValueError, "mail_options"),
    "rcpt_options": ((b"hi", SENDER, WHO), {"rcpt_options": ["A=1\r\nQUIT"]}, ValueError, "rcpt_options"),
    "no content": ((None, SENDER, WHO), {}, TypeError, "msg must be"),
    "text": ((io.StringIO("hi"), SENDER, WHO), {}, TypeError, "msg must be"),
    "a str that is not ASCII": (("Grüße", SENDER, WHO), {}, UnicodeEncodeError, "ascii"),
    "a message without From": ((Message(),), {}, ValueError, "^sender: "),
    "a message without To": ((Message(), SENDER), {}, ValueError, "^recipients: "),
    "an empty envelope": ((Envelope(SENDER, WHO),), {}, TypeError, "msg must be"),
    "an envelope and a sender": ((ENVELOPE, SENDER), {}, TypeError, "^an Envelope has its own"),
    "an envelope and recipients": ((ENVELOPE, None, WHO), {}, TypeError, "^an Envelope has its own"),
    "an envelope and options": ((ENVELOPE,), {"mail_options": ["A=1"]}, TypeError, "^an Envelope has its own"),
    "an envelope and options for RCPT": ((ENVELOPE,), {"rcpt_options": ["A=1"]}, TypeError, "^an Envelope has its own"),
}


@pytest.mark.parametrize("case", WRONG)
async def test_wrong_arguments(case: str) -> None:
    """The error names what is wrong, nothing is written, and nothing is left in line."""
    arguments, options, kind, words = WRONG[case]
    async with relaying(Relay()) as relay, mailer(relay) as posting:
        with pytest.raises(kind, match=words):
            await posting.send(*arguments, **options)
        assert relay.connections == []
        assert sum(posting.stats) == 0
        await posting.send(b"hi", SENDER, WHO)
    assert len(relay.letters) == 1


async def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    async with relaying(Relay()) as relay, mailer(relay) as posting:
        with pytest.raises(FileNotFoundError):
            await posting.send(tmp_path / "none", SENDER, WHO)
        assert "MAIL" not in relay.verbs
        await posting.send(b"hi", SENDER, WHO)


async def test_content_that_fails_half_way(shape: tuple[str, ...]) -> None:
    async def failing() -> AsyncIterator[bytes]:
        yield b"x" * 1000
        raise ZeroDivisionError

    async with relaying(Relay(shape)) as relay, mailer(relay) as posting:
        with pytest.raises(ZeroDivisionError):
            await posting.send(failing(), SENDER, WHO)
        await posting.send(b"hi", SENDER, WHO)
        assert [letter.content for letter in relay.letters] == [b"hi\r\n"]


# ---- receipts ---------------------------------------------------------------------------------


async def test_what_a_receipt_says(shape: tuple[str, ...]) -> None:
    answer = answering(RCPT_c="250-2.1.5 two\r\n250 lines", end="250 2.6.0 queued as 5")
    async with relaying(Relay(shape, answer=answer)) as relay, mailer(relay) as posting:
        before = time.time()
        receipt = await posting.send(b"hi", SENDER, [WHO, "c@y.example"])
        after = time.time()
        assert type(receipt) is Receipt
        assert receipt.accepted == {WHO: (250, b"2.1.5 recipient ok"), "c@y.example": (250, b"2.1.5 two\nlines")}
        assert people(receipt.accepted) == {WHO: (250, "2.1.5"), "c@y.example": (250, "2.1.5")}
        assert (receipt.refused, receipt.failed, receipt.complete) == ({}, {}, True)
        assert receipt.reply == (250, b"2.6.0 queued as 5")
        assert (receipt.reply.ok, receipt.reply.enhanced) == (True, "2.6.0")
        assert "queued as 5" in receipt.reply.text
        assert receipt.relay == f"{relay.host}:{relay.port}"
        assert receipt.attempts == 1
        assert before <= receipt.started <= receipt.finished <= after


async def test_each_task_gets_its_own_receipt(shape: tuple[str, ...]) -> None:
    """Every reply has the message's number in it."""

    def answer(verb: str, line: str) -> str | None:
        if verb == "RCPT":
            code = "550 5.1.1" if "no" in line else "250 2.1.5"
            return f"{code} {line[line.index('<') + 1 : line.index('>')]}"
        return f"250 2.0.0 {line}".strip() if verb == "." else None

    async def one(number: int) -> None:
        good, bad = f"b{number}@y.example", f"no{number}@y.example"
        receipt = await posting.send(b"%d" % number, SENDER, [bad, good] if number % 2 else [good])
        assert receipt.accepted == {good: (250, b"2.1.5 %b" % good.encode())}
        assert receipt.refused == ({bad: (550, b"5.1.1 %b" % bad.encode())} if number % 2 else {})
        assert receipt.reply == (250, b"2.0.0 %d" % number)

    async with relaying(Relay(shape, answer=answer)) as relay, mailer(relay) as posting:
        await asyncio.gather(*map(one, range(200)))
        assert len(relay.letters) == 200
        assert len(relay.connections) <= 4


async def test_some_recipients_are_refused(shape: tuple[str, ...]) -> None:
    answer = answering(RCPT_c="550-5.1.1 no\r\n550 such user")
    async with relaying(Relay(shape, answer=answer)) as relay, mailer(relay) as posting:
        receipt = await posting.send(b"hi", SENDER, ALL)
        assert list(receipt.accepted) == [WHO, "d@y.example"]
        assert receipt.refused == {"c@y.example": (550, b"5.1.1 no\nsuch user")}
        assert receipt.refused["c@y.example"].enhanced == "5.1.1"
        assert not receipt.complete
        assert relay.letters[0].recipients == list(receipt.accepted)
        assert posting.stats.sent == 1


async def test_require_all(shape: tuple[str, ...]) -> None:
    """The others have the message all the same, and the exception says so."""
    answer = answering(RCPT_c="550 5.1.1 no")
    async with relaying(Relay(shape, answer=answer)) as relay, mailer(relay) as posting:
        with pytest.raises(asmtp.SMTPRecipientsRefused) as caught:
            await posting.send(b"hi", SENDER, ALL, require_all=True)
        assert isinstance(caught.value, smtplib.SMTPRecipientsRefused)
        assert caught.value.recipients == {"c@y.example": (550, b"5.1.1 no")}
        assert caught.value.state == "sent"
        assert caught.value.receipt is not None
        assert list(caught.value.receipt.accepted) == relay.letters[0].recipients == [WHO, "d@y.example"]
        assert posting.stats.sent == 1
        assert (await posting.send(b"hi", SENDER, [WHO], require_all=True)).complete


async def test_lmtp_has_a_verdict_for_each_recipient(shape: tuple[str, ...]) -> None:
    def answer(verb: str, line: str) -> str | None:
        if verb == "RCPT" and "d@" in line:
            return "550 5.1.1 no"
        return "552 5.2.2 full" if verb == ".c@y.example" else None

    async with relaying(Relay(shape, lmtp=True, answer=answer)) as relay, mailer(relay) as posting:
        receipt = await posting.send(b"hi", SENDER, ALL)
        assert people(receipt.accepted) == {WHO: (250, "2.0.0")}
        assert people(receipt.refused) == {"c@y.example": (552, "5.2.2"), "d@y.example": (550, "5.1.1")}
        assert relay.letters[0].recipients == [WHO]
        assert relay.verbs[0] == "LHLO"


async def test_lmtp_refused_for_all_behind_the_content() -> None:
    lmtp = Relay(SHAPES["both"], lmtp=True, answer=lambda verb, line: "552 5.2.2 full" if verb[0] == "." else None)
    async with relaying(lmtp) as relay, mailer(relay) as posting:
        with pytest.raises(asmtp.SMTPRecipientsRefused) as caught:
            await posting.send(b"hi", SENDER, [WHO, "c@y.example"])
        assert caught.value.state == "refused"
        assert caught.value.recipients == dict.fromkeys([WHO, "c@y.example"], (552, b"5.2.2 full"))


async def test_the_same_recipient_twice() -> None:
    async with relaying(Relay(SHAPES["both"])) as relay, mailer(relay) as posting:
        receipt = await posting.send(b"hi", SENDER, [WHO, WHO, "c@y.example"])
        assert list(receipt.accepted) == [WHO, "c@y.example"]


# ---- the server says no -----------------------------------------------------------------------

REFUSALS: dict[str, tuple[dict[str, str], type[asmtp.SMTPException], type[Exception], Any]] = {
    "sender": (
        {"MAIL": "550 5.7.1 not you"},
        asmtp.SMTPSenderRefused,
        smtplib.SMTPSenderRefused,
        lambda error: (error.smtp_code, error.smtp_error, error.sender) == (550, b"5.7.1 not you", SENDER),
    ),
    "recipients": (
        {"RCPT": "550 5.1.1 unknown"},
        asmtp.SMTPRecipientsRefused,
        smtplib.SMTPRecipientsRefused,
        lambda error: error.recipients == dict.fromkeys(ALL, (550, b"5.1.1 unknown")),
    ),
    "content": (
        {"end": "554 5.6.0 spam"},
        asmtp.SMTPDataError,
        smtplib.SMTPDataError,
        lambda error: (error.smtp_code, error.smtp_error) == (554, b"5.6.0 spam"),
    ),
}


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("case", REFUSALS)
async def test_the_server_says_no(case: str, streamed: bool, shape: tuple[str, ...]) -> None:
    """The caller gets smtplib's exception, with a state; there is no other try, and the next message goes."""
    replies, kind, smtplibs, right = REFUSALS[case]
    async with relaying(Relay(shape, answer=answering(**replies))) as relay, mailer(relay) as posting:
        with pytest.raises(smtplibs) as caught:
            await posting.send(pieces(b"hi") if streamed else b"hi", SENDER, ALL)
        error = caught.value
        assert type(error) is kind
        assert right(error), vars(error)
        assert (error.state, error.receipt) == ("refused", None)
        assert not error.transient
        assert relay.letters == []
        assert relay.verbs.count("MAIL") == 1
        assert posting.stats == (1, 0, 0, 0, 0, 1, 0, 0, 0)
        relay.answer = answering()
        await posting.send(b"next", "next@x.example", "after@y.example")
        assert [(letter.sender, letter.recipients) for letter in relay.letters] == [
            ("next@x.example", ["after@y.example"])
        ]


async def test_a_message_over_the_size_that_the_server_takes() -> None:
    async with relaying(Relay(common=("SIZE 1000",))) as relay, mailer(relay) as posting:
        with pytest.raises(asmtp.SMTPSenderRefused) as caught:
            await posting.send(b"x" * 2000, SENDER, WHO)
        assert (caught.value.smtp_code, caught.value.state) == (552, "refused")
        assert relay.verbs == ["EHLO"]


async def test_the_greeting_says_no() -> None:
    async with relaying(Relay(greeting="554 5.3.2 go away")) as relay, mailer(relay) as posting:
        with pytest.raises(asmtp.SMTPConnectError) as caught:
            await posting.send(b"hi", SENDER, WHO)
        assert (caught.value.smtp_code, caught.value.state) == (554, "not_sent")
        assert len(relay.connections) == 1  # it was said for good
        assert posting.stats.not_sent == 1


async def test_each_task_gets_an_exception_of_its_own() -> None:
    """Each task has a copy: an exception that is raised twice collects tracebacks, and the notes of all callers."""
    async with relaying(Relay(greeting="554 go away")) as relay, mailer(relay, connections=1) as posting:
        sends = (posting.send(b"hi", SENDER, WHO) for _ in range(10))
        errors = await asyncio.gather(*sends, return_exceptions=True)
        assert {type(error) for error in errors} == {asmtp.SMTPConnectError}
        assert len(set(map(id, errors))) == 10


async def test_a_password_is_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    secret = "s3cret-Pa55"
    relay = Relay(("AUTH PLAIN LOGIN",), answer=answering(AUTH="535 5.7.8 no"))
    async with relaying(relay):
        url = f"smtp://user:{secret}@{relay.host}:{relay.port}?tls=none&local_hostname=me.example"
        async with AsyncMailer(url) as posting:
            assert secret not in repr(posting)
            with pytest.raises(asmtp.SMTPAuthenticationError) as caught:
                await posting.send(b"hi", SENDER, WHO)
    assert caught.value.state == "not_sent"
    assert secret not in repr(caught.value) + str(caught.value) + caplog.text
    assert len([verb for verb in relay.verbs if verb == "MAIL"]) == 0
