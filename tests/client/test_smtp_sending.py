"""Messages, delivered octet for octet; and every way in which a server says no."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable
from email.message import EmailMessage, Message
from pathlib import Path
from typing import Any

import pytest

import asmtp
from asmtp import AsyncSMTP
from asmtp.client.content import WHOLE
from tests.client.contents import KINDS, LARGE, LARGE_SENT, ROUTES, pieces
from tests.fakes.people import SENDER, WHO
from tests.fakes.relay import SHAPES, Relay, relaying

pytestmark = pytest.mark.usefixtures("bdat_at_once")


def message(text: str = "hello\n", **fields: str) -> EmailMessage:
    made = EmailMessage()
    for name, value in ({"From": SENDER, "To": WHO, "Subject": "hi"} | fields).items():
        made[name] = value
    made.set_content(text)
    return made


def compat32() -> Message:
    made = Message()
    made["From"] = SENDER
    made["Subject"] = "hi"
    made.set_payload("hello\n")
    return made


def client(relay: Relay, **options: Any) -> AsyncSMTP:
    return AsyncSMTP(relay.host, relay.port, "me.example", **options)


# ---- kinds of content -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ROUTES)
async def test_content_arrives_octet_for_octet(kind: str, shape: tuple[str, ...], tmp_path: Path) -> None:
    content, arrives = KINDS[kind](tmp_path / "message")
    async with relaying(Relay(shape)) as relay, client(relay) as smtp:
        assert await smtp.sendmail(SENDER, WHO, content) == {}
        # And a second one behind it.
        assert await smtp.sendmail(SENDER, "c@y.example", b"next") == {}
        assert [letter.recipients for letter in relay.letters] == [[WHO], ["c@y.example"]]
        assert [letter.content for letter in relay.letters] == [arrives, b"next\r\n"]


async def test_a_file_stays_open_for_the_caller(tmp_path: Path) -> None:
    content, arrives = KINDS["large binary file"](tmp_path / "message")
    async with relaying(Relay()) as relay, client(relay) as smtp:
        await smtp.sendmail(SENDER, WHO, content)
        assert relay.letters[0].content == arrives
    assert not content.closed
    content.close()


async def test_a_memoryview_that_is_not_of_octets() -> None:
    async with relaying(Relay()) as relay, client(relay) as smtp:
        await smtp.sendmail(SENDER, WHO, memoryview(b"hello!\r\n").cast("H"))
        await smtp.sendmail(SENDER, WHO, memoryview(LARGE + b"\n").cast("I" if len(LARGE) % 4 == 3 else "B"))
        assert [letter.content for letter in relay.letters] == [b"hello!\r\n", LARGE_SENT]


async def test_an_empty_message(shape: tuple[str, ...]) -> None:
    async with relaying(Relay(shape)) as relay, client(relay) as smtp:
        await smtp.sendmail(SENDER, WHO, b"")
        await smtp.sendmail(SENDER, WHO, pieces(b"", 1))
        assert [letter.content for letter in relay.letters] == [b"", b""]


@pytest.mark.parametrize("make", [message, compat32])
async def test_message_objects(make: Callable[[], Message], shape: tuple[str, ...]) -> None:
    made = make()
    made["Bcc"] = "secret@y.example"
    async with relaying(Relay(shape)) as relay, client(relay) as smtp:
        assert await smtp.sendmail(SENDER, WHO, made) == {}
        content = relay.letters[0].content
        assert b"Subject: hi\r\n" in content
        assert content.endswith(b"\r\n\r\nhello\r\n")
        assert b"secret" not in content
    assert made["Bcc"] == "secret@y.example"


async def test_a_large_message_object_is_flattened_elsewhere(shape: tuple[str, ...]) -> None:
    made = message("line of text\n" * 50_000)
    async with relaying(Relay(shape)) as relay, client(relay) as smtp:
        assert await smtp.send_message(made) == {}
        assert await smtp.sendmail(SENDER, WHO, made) == {}
        assert [letter.content.count(b"line of text\r\n") for letter in relay.letters] == [50_000, 50_000]


@pytest.mark.parametrize("content", [None, 5, ["line"], object(), io.StringIO("text")])
async def test_content_of_another_type(content: Any) -> None:
    async with relaying(Relay()) as relay, client(relay) as smtp:
        with pytest.raises(TypeError, match="^msg must be"):
            await smtp.sendmail(SENDER, WHO, content)
        assert relay.verbs == ["EHLO"]


async def test_a_text_file(tmp_path: Path) -> None:
    path = tmp_path / "message"
    path.write_text("hi")
    async with relaying(Relay()) as relay, client(relay) as smtp:
        with path.open() as file, pytest.raises(TypeError, match="^msg must be"):
            await smtp.sendmail(SENDER, WHO, file)  # type: ignore[arg-type]  # that is the point
        assert relay.verbs == ["EHLO"]


async def test_a_str_that_is_not_ascii() -> None:
    async with relaying(Relay()) as relay, client(relay) as smtp:
        with pytest.raises(UnicodeEncodeError):
            await smtp.sendmail(SENDER, WHO, "Grüße")
        assert relay.verbs == []


async def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    async with relaying(Relay()) as relay, client(relay) as smtp:
        with pytest.raises(FileNotFoundError):
            await smtp.sendmail(SENDER, WHO, tmp_path / "none")
        assert relay.verbs == ["EHLO"]
        assert (await smtp.noop()).ok


async def test_a_file_is_sent_from_where_it_stands() -> None:
    file = io.BytesIO(b"skipped\r\nsent\r\n")
    file.readline()
    async with relaying(Relay()) as relay, client(relay) as smtp:
        await smtp.sendmail(SENDER, WHO, file)
        assert relay.letters[0].content == b"sent\r\n"


# ---- content that fails half-way --------------------------------------------------------------


class Failing(io.RawIOBase):
    """A file that cannot be read to its end."""

    def __init__(self, good: int) -> None:
        self.good = good

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        if not self.good:
            raise OSError(5, "Input/output error")
        self.good -= 1
        return b"x" * 100_000


class NotBytes:
    """An async iterator that yields something else."""

    def __aiter__(self) -> NotBytes:
        return self

    async def __anext__(self) -> str:
        return "text"


FAILURES: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "first read": (lambda: Failing(0), OSError, "Input/output error"),
    "later read": (lambda: Failing(20), OSError, "Input/output error"),
    "not bytes": (NotBytes, TypeError, "msg: an async iterator must yield bytes, not str"),
}


@pytest.mark.parametrize("failure", FAILURES)
async def test_content_that_fails(failure: str, shape: tuple[str, ...]) -> None:
    """In the middle of DATA there is no way back but closing; BDAT is given up with RSET."""
    make, kind, words = FAILURES[failure]
    async with relaying(Relay(shape)) as relay, client(relay) as smtp:
        with pytest.raises(kind, match=words):
            await smtp.sendmail(SENDER, WHO, make())
        assert relay.letters == []
        if "CHUNKING" in shape:
            assert smtp.is_connected
        else:
            assert not smtp.is_connected
            await smtp.close()
            await relay.quiet()
            await smtp.connect()
        assert await smtp.sendmail("c@x.example", "d@y.example", b"next") == {}
        assert [(letter.sender, letter.recipients) for letter in relay.letters] == [("c@x.example", ["d@y.example"])]


async def test_a_file_given_as_a_path_is_closed_whatever_happens(shape: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "message"
    path.write_bytes(LARGE)
    refusing = Relay(shape, answer=lambda verb, line: "550 no" if verb == "RCPT" else None)
    async with relaying(refusing) as relay, client(relay) as smtp:
        with pytest.raises(asmtp.SMTPRecipientsRefused):
            await smtp.sendmail(SENDER, WHO, path)
        assert str(path) not in opened_files()


def opened_files() -> set[str]:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # closed since
            found.add(os.readlink(f"/proc/self/fd/{name}"))
    return found


# ---- refusals ---------------------------------------------------------------------------------


def refusing(verb: str, reply: str, *, only: str = "") -> Callable[[str, str], str | None]:
    return lambda seen, line: reply if seen == verb and only in line else None


async def in_step(smtp: AsyncSMTP, relay: Relay) -> None:
    """The next message is delivered, and only it, under its own sender."""
    relay.answer = lambda verb, line: None
    relay.letters.clear()
    assert await smtp.sendmail("next@x.example", "after@y.example", b"next") == {}
    assert [(letter.sender, letter.recipients) for letter in relay.letters] == [("next@x.example", ["after@y.example"])]


async def test_the_sender_is_refused(shape: tuple[str, ...]) -> None:
    async with relaying(Relay(shape, answer=refusing("MAIL", "550 5.7.1 not you"))) as relay, client(relay) as smtp:
        with pytest.raises(asmtp.SMTPSenderRefused) as caught:
            await smtp.sendmail(SENDER, WHO, b"hi")
        error = caught.value
        assert (error.smtp_code, error.smtp_error, error.sender) == (550, b"5.7.1 not you", SENDER)
        assert error.state == "refused"
        assert not error.transient
        await in_step(smtp, relay)


async def test_every_recipient_is_refused(shape: tuple[str, ...]) -> None:
    people = ["b@y.example", "c@y.example"]
    async with relaying(Relay(shape, answer=refusing("RCPT", "451 4.7.1 later"))) as relay, client(relay) as smtp:
        with pytest.raises(asmtp.SMTPRecipientsRefused) as caught:
            await smtp.sendmail(SENDER, people, b"hi")
        assert caught.value.recipients == dict.fromkeys(people, (451, b"4.7.1 later"))
        assert caught.value.state == "refused"
        assert caught.value.transient
        assert relay.letters == []
        await in_step(smtp, relay)


async def test_some_recipients_are_refused(shape: tuple[str, ...]) -> None:
    people = ["b@y.example", "nobody@y.example", "c@y.example"]
    answer = refusing("RCPT", "550-5.1.1 no\r\n550 such user", only="nobody")
    async with relaying(Relay(shape, answer=answer)) as relay, client(relay) as smtp:
        refused = await smtp.sendmail(SENDER, people, b"hi")
        assert refused == {"nobody@y.example": (550, b"5.1.1 no\nsuch user")}
        assert refused["nobody@y.example"].code == 550
        assert relay.letters[0].recipients == ["b@y.example", "c@y.example"]
        await in_step(smtp, relay)


@pytest.mark.parametrize("content", [b"hi", LARGE])
async def test_the_content_is_refused(content: bytes, shape: tuple[str, ...]) -> None:
    async with relaying(Relay(shape, answer=refusing(".", "554 5.6.0 spam"))) as relay, client(relay) as smtp:
        with pytest.raises(asmtp.SMTPDataError) as caught:
            await smtp.sendmail(SENDER, WHO, content)
        assert (caught.value.smtp_code, caught.value.smtp_error) == (554, b"5.6.0 spam")
        assert caught.value.state == "refused"
        assert relay.letters == []
        await in_step(smtp, relay)


@pytest.mark.parametrize("shape_name", ["none", "pipelining"])
async def test_data_is_refused(shape_name: str) -> None:
    relay = Relay(SHAPES[shape_name], answer=refusing("DATA", "451 4.3.0 disk full"))
    async with relaying(relay), client(relay) as smtp:
        with pytest.raises(asmtp.SMTPDataError) as caught:
            await smtp.sendmail(SENDER, WHO, b"hi")
        assert (caught.value.smtp_code, caught.value.transient, caught.value.state) == (451, True, "refused")
        await in_step(smtp, relay)


@pytest.mark.parametrize("shape_name", ["chunking", "both"])
async def test_a_chunk_is_refused(shape_name: str) -> None:
    relay = Relay(SHAPES[shape_name], answer=refusing("BDAT", "452 4.3.1 disk full"))
    async with relaying(relay), client(relay) as smtp:
        with pytest.raises(asmtp.SMTPDataError) as caught:
            await smtp.sendmail(SENDER, WHO, LARGE)
        assert (caught.value.smtp_code, caught.value.state) == (452, "refused")
        await in_step(smtp, relay)


@pytest.mark.parametrize("verb", ["MAIL", "RCPT", "DATA", "."])
async def test_421_closes(verb: str, shape: tuple[str, ...]) -> None:
    if verb == "DATA" and "CHUNKING" in shape:
        verb = "BDAT"
    relay = Relay(shape, answer=refusing(verb, "421 4.3.2 shutting down"))
    async with relaying(relay):
        smtp = client(relay)
        await smtp.connect()
        with pytest.raises(asmtp.SMTPException) as caught:
            await smtp.sendmail(SENDER, WHO, b"hi")
        assert "421" in str(caught.value) or caught.value.recipients[WHO][0] == 421  # type: ignore[attr-defined]
        assert caught.value.state == "refused"
        await smtp.close()
        assert not smtp.is_connected


# ---- extensions -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["small", "large", "file"])
async def test_size_is_checked_before_anything_is_written(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "message"
    path.write_bytes(b"x" * 41)
    content: Any = {"small": b"x" * 39 + b"\n", "large": b"x" * 2 * WHOLE, "file": path}[kind]
    async with relaying(Relay(common=("SIZE 40",))) as relay, client(relay) as smtp:
        with pytest.raises(asmtp.SMTPSenderRefused, match="over the server's limit of 40") as caught:
            await smtp.sendmail(SENDER, WHO, content)
        assert caught.value.smtp_code == 552
        assert caught.value.state == "refused"
        assert relay.verbs == ["EHLO"]
        # As many as there may be, with their line ends, may pass.
        assert await smtp.sendmail(SENDER, WHO, b"x" * 18 + b"\n" + b"x" * 18 + b"\n") == {}
        assert relay.letters[0].parameters == "size=40"


@pytest.mark.parametrize("size", ["SIZE", "SIZE 0", "SIZE many"])
async def test_a_size_that_is_no_limit(size: str) -> None:
    async with relaying(Relay(common=(size,))) as relay, client(relay) as smtp:
        await smtp.sendmail(SENDER, WHO, b"hi")
        assert relay.letters[0].parameters == "size=4"  # with the line end that is added


async def test_8bitmime_is_declared_where_needed_and_offered() -> None:
    async with relaying(Relay()) as relay, client(relay) as smtp:
        await smtp.sendmail(SENDER, WHO, b"plain")
        await smtp.sendmail(SENDER, WHO, "Grüße".encode())
        await smtp.sendmail(SENDER, WHO, "Grüße".encode(), ["BODY=BINARYMIME"])
        assert [letter.parameters for letter in relay.letters] == [
            "size=7", "size=9 BODY=8BITMIME", "size=9 BODY=BINARYMIME",
        ]  # fmt: skip
    async with relaying(Relay(common=())) as relay, client(relay) as smtp:
        await smtp.sendmail(SENDER, WHO, "Grüße".encode())
        assert relay.letters[0].parameters == ""


async def test_a_message_object_is_made_7_bit_for_a_server_without_8bitmime() -> None:
    made = message()
    made.set_content("Grüße\n", cte="8bit")
    async with relaying(Relay(common=())) as relay, client(relay) as smtp:
        await smtp.send_message(made)
        await smtp.sendmail(SENDER, WHO, made)
        for letter in relay.letters:
            assert letter.content.isascii()
            assert b"Content-Transfer-Encoding: 8bit" not in letter.content
    async with relaying(Relay(common=("8BITMIME",))) as relay, client(relay) as smtp:
        await smtp.send_message(made)
        assert "Grüße".encode() in relay.letters[0].content
        assert relay.letters[0].parameters == "BODY=8BITMIME"


async def test_smtputf8_only_where_a_local_part_needs_it() -> None:
    async with relaying(Relay()) as relay, client(relay) as smtp:
        await smtp.sendmail(SENDER, "b@bücher.example", b"hi")
        await smtp.sendmail(SENDER, "bärbel@bücher.example", b"hi")
        assert relay.letters[0].recipients == ["b@xn--bcher-kva.example"]
        assert relay.letters[0].parameters == "size=4"
        assert relay.letters[1].recipients == ["bärbel@bücher.example"]
        assert relay.letters[1].parameters == "size=4 SMTPUTF8 BODY=8BITMIME"


async def test_an_address_of_a_header_is_no_encoded_word_where_there_is_smtputf8() -> None:
    """RFC 2047 §5: an encoded word must not stand in an address; with SMTPUTF8, the field is in UTF-8 (RFC 6532)."""
    made = EmailMessage()
    made["From"] = author = "jürgen@example.com"
    made["To"] = WHO[0]
    made["Subject"] = "Grüße"
    made.set_content("hi\n")
    async with relaying(Relay()) as relay, client(relay) as smtp:
        await smtp.sendmail(author, WHO, made)
        await smtp.send_message(made)
        for letter in relay.letters:
            assert "From: jürgen@example.com\r\n".encode() in letter.content
            assert "Subject: Grüße\r\n".encode() in letter.content
        await smtp.sendmail(SENDER, WHO, made)  # nothing asks for SMTPUTF8
        assert relay.letters[2].content.isascii()


async def test_smtputf8_where_it_is_not_offered() -> None:
    async with relaying(Relay(common=("8BITMIME",))) as relay, client(relay) as smtp:
        for who in ((SENDER, "bärbel@y.example"), ("bärbel@x.example", WHO)):
            with pytest.raises(asmtp.SMTPNotSupportedError, match="SMTPUTF8"):
                await smtp.sendmail(*who, b"hi")
            with pytest.raises(asmtp.SMTPNotSupportedError, match="SMTPUTF8"):
                await smtp.send_message(message(), *who)
        with pytest.raises(asmtp.SMTPNotSupportedError):
            await smtp.sendmail(SENDER, WHO, b"hi", ["SMTPUTF8"])
        assert relay.verbs == ["EHLO"]
        assert await smtp.sendmail(SENDER, "b@bücher.example", b"hi") == {}


# ---- send_message -----------------------------------------------------------------------------


async def test_send_message_reads_the_headers() -> None:
    made = message(Cc="Cee <c@y.example>", Bcc="d@y.example")
    async with relaying(Relay()) as relay, client(relay) as smtp:
        assert await smtp.send_message(made) == {}
        assert await smtp.send_message(made, "<>", ["other@y.example"], ["RET=HDRS"], ["NOTIFY=NEVER"]) == {}
        first, second = relay.letters
        assert (first.sender, first.recipients) == (SENDER, [WHO, "d@y.example", "c@y.example"])
        assert (second.sender, second.recipients) == ("", ["other@y.example"])
        assert "RET=HDRS" in second.parameters
        assert relay.commands[-2] == "rcpt to:<other@y.example> NOTIFY=NEVER"
        assert b"d@y.example" not in first.content


async def test_send_message_says_what_is_missing() -> None:
    nobody = message()
    del nobody["To"]
    anonymous = message()
    del anonymous["From"]
    async with relaying(Relay()) as relay, client(relay) as smtp:
        with pytest.raises(ValueError, match="^to_addrs: no recipients$"):
            await smtp.send_message(nobody)
        with pytest.raises(ValueError, match="^from_addr: "):
            await smtp.send_message(anonymous)
        assert relay.verbs == ["EHLO"]


async def test_lmtp_tells_of_each_recipient(shape: tuple[str, ...]) -> None:
    people = ["b@y.example", "full@y.example", "c@y.example", "nobody@y.example"]

    def answer(verb: str, line: str) -> str | None:
        if verb == "RCPT" and "nobody" in line:
            return "550 5.1.1 who?"
        return "452 4.2.2 full" if verb == ".full@y.example" else None

    async with relaying(Relay(shape, lmtp=True, answer=answer)) as relay:
        async with asmtp.AsyncLMTP(relay.host, relay.port, "me.example") as lmtp:
            assert await lmtp.sendmail(SENDER, people, b"hi") == {
                "full@y.example": (452, b"4.2.2 full"),
                "nobody@y.example": (550, b"5.1.1 who?"),
            }
            assert await lmtp.sendmail(SENDER, WHO, LARGE) == {}
            with pytest.raises(asmtp.SMTPRecipientsRefused) as caught:
                await lmtp.sendmail(SENDER, ["full@y.example"], b"hi")
            assert caught.value.recipients == {"full@y.example": (452, b"4.2.2 full")}
        assert [letter.recipients for letter in relay.letters] == [["b@y.example", "c@y.example"], [WHO]]
        assert relay.verbs[0] == "LHLO"
