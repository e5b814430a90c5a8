"""The blocking facade: sending mail, beside smtplib's; and what smtplib cannot send."""

from __future__ import annotations

import asyncio
import contextlib
import io
import pathlib
import smtplib
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from email.message import EmailMessage, Message
from email.mime.text import MIMEText
from typing import Any

import anyio
import pytest

import asmtp
from tests.fakes.relay import SHAPES, Letter, Relay
from tests.sync.facade import BOTH, A, B, C, D, connected, nothing_left, relay_at, told


@pytest.fixture(autouse=True)
def loops(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[asyncio.AbstractEventLoop]]:
    with nothing_left(monkeypatch) as made:
        yield made


shapes = pytest.mark.parametrize("offers", SHAPES.values(), ids=SHAPES)


def refusing(places: dict[str, str]) -> Callable[[str, str], str | None]:
    """Answers by verb, or by an address in the line."""

    def answer(verb: str, line: str) -> str | None:
        found = (reply for part, reply in places.items() if "@" in part and part in line)
        return places.get(verb) or next(found, None)

    return answer


# ---- sendmail -----------------------------------------------------------------------------------

CONTENTS: list[tuple[Any, bytes]] = [
    ("", b""),
    ("one", b"one\r\n"),
    ("one\ntwo\rthree\r\nfour", b"one\r\ntwo\r\nthree\r\nfour\r\n"),
    (".\n..\n.x\n", b".\r\n..\r\n.x\r\n"),
    (b"eight bits: \xe9\r\n", b"eight bits: \xe9\r\n"),
    (b"no end", b"no end\r\n"),
    (b"x" * 100_000 + b"\r\n", b"x" * 100_000 + b"\r\n"),
]


@BOTH
@shapes
@pytest.mark.parametrize(("content", "arrives"), CONTENTS, ids=lambda value: f"{value[:12]!r}")
def test_content(module: Any, offers: tuple[str, ...], content: Any, arrives: bytes) -> None:
    with relay_at(Relay(offers)) as relay, connected(module, relay) as smtp:
        refused = smtp.sendmail(A, B, content)
        assert refused == {}
        assert type(refused) is dict
    # An empty message is one line with smtplib, none with BDAT.
    assert relay.letters[0].content in ((b"", b"\r\n") if not content else (arrives,))


@BOTH
def test_content_that_is_not_ascii(module: Any) -> None:
    with relay_at() as relay, connected(module, relay) as smtp, pytest.raises(UnicodeEncodeError):
        smtp.sendmail(A, B, "é")
    assert relay.letters == []


@BOTH
@pytest.mark.parametrize(("to_addrs", "expected"), [
    (B, [B]), ([B], [B]), ((B, C), [B, C]), ({B: 1, C: 2}, [B, C]), (["Bee <b@b.example>"], [B]), ([B, B], [B, B]),
], ids=str)  # fmt: skip
def test_recipients(module: Any, to_addrs: Any, expected: list[str]) -> None:
    with relay_at() as relay, connected(module, relay) as smtp:
        assert smtp.sendmail("A <a@b.example>", to_addrs, "hi") == {}
    assert (relay.letters[0].sender, relay.letters[0].recipients) == (A, expected)


@BOTH
@shapes
def test_parameters(module: Any, offers: tuple[str, ...]) -> None:
    with relay_at(Relay(offers)) as relay, connected(module, relay) as smtp:
        smtp.sendmail(A, [B, C], b"hi\r\n", ["RET=HDRS", "ENVID=x"], ("NOTIFY=NEVER",))
    assert relay.letters[0].parameters == "size=4 RET=HDRS ENVID=x"
    assert [line.lower() for line in relay.commands if line.lower().startswith("rcpt")] == [
        f"rcpt to:<{who}> notify=never" for who in (B, C)
    ]


@BOTH
@shapes
def test_some_recipients_are_refused(module: Any, offers: tuple[str, ...]) -> None:
    places = {B: "550 5.1.1 who?", D: "450-later\r\n450 or never"}
    with relay_at(Relay(offers, answer=refusing(places))) as relay, connected(module, relay) as smtp:
        refused = smtp.sendmail(A, [B, C, D], "hi")
        assert refused == {B: (550, b"5.1.1 who?"), D: (450, b"later\nor never")}
        assert list(refused) == [B, D]
        assert smtp.sock is not None
        code, text = refused[B]
        assert (type(code), type(text), len(refused[B])) == (int, bytes, 2)
    assert [letter.recipients for letter in relay.letters] == [[C]]


REFUSALS: dict[str, tuple[dict[str, str], type[Exception], dict[str, Any]]] = {
    "sender": ({"MAIL": "552-no\r\n552 never"}, smtplib.SMTPSenderRefused,
               {"smtp_code": 552, "smtp_error": b"no\nnever", "sender": A}),
    "all recipients": ({"RCPT": "550 no"}, smtplib.SMTPRecipientsRefused,
                       {"recipients": {B: (550, b"no"), C: (550, b"no")}}),
    "DATA": ({"DATA": "451 no"}, smtplib.SMTPDataError, {"smtp_code": 451, "smtp_error": b"no"}),
    "content": ({".": "554 spam"}, smtplib.SMTPDataError, {"smtp_code": 554, "smtp_error": b"spam"}),
}  # fmt: skip


@BOTH
@shapes
@pytest.mark.parametrize("place", REFUSALS)
def test_a_refusal(module: Any, offers: tuple[str, ...], place: str) -> None:
    answers, kind, attributes = REFUSALS[place]
    if "CHUNKING" in offers and place == "DATA":
        offers = tuple(offer for offer in offers if offer != "CHUNKING")
    relay = Relay(offers)
    with relay_at(relay), connected(module, relay) as smtp:
        smtp.ehlo()
        relay.answer = lambda verb, line: answers.get(verb)
        with pytest.raises(getattr(module, kind.__name__)) as caught:
            smtp.sendmail(A, [B, C], "hi")
        assert told(caught.value) == (kind, attributes)
        assert caught.value.args == tuple(attributes.values())
        # The connection is left as it was before, without an open transaction.
        assert smtp.sock is not None
        assert relay.connections[0].sender is None or place == "DATA"
        relay.answer = lambda verb, line: None
        if place == "DATA" and module is smtplib:  # which leaves this one to the caller
            smtp.rset()
        assert smtp.sendmail(D, [D], "hello\r\n") == {}
    assert relay.letters == [Letter(D, [D], b"hello\r\n", "size=7")]


@BOTH
@shapes
@pytest.mark.parametrize("place", REFUSALS)
def test_421_in_place_of_an_answer(module: Any, offers: tuple[str, ...], place: str) -> None:
    answers, kind, attributes = REFUSALS[place]
    if "CHUNKING" in offers and place == "DATA":
        offers = tuple(offer for offer in offers if offer != "CHUNKING")
    verb = next(iter(answers))
    expected = {name: {"smtp_code": 421, "smtp_error": b"bye"}.get(name, value) for name, value in attributes.items()}
    if "recipients" in expected:
        expected["recipients"] = {B: (421, b"bye")}
    relay = Relay(offers, answer=refusing({verb: "421 bye"}))
    with relay_at(relay), connected(module, relay) as smtp:
        with pytest.raises(getattr(module, kind.__name__)) as caught:
            smtp.sendmail(A, [B, C], "hi")
        assert told(caught.value) == (kind, expected)
        with pytest.raises(module.SMTPServerDisconnected):
            smtp.noop()
        assert smtp.sock is None
    assert relay.letters == []


@BOTH
def test_smtputf8(module: Any) -> None:
    with relay_at() as relay, connected(module, relay) as smtp:
        smtp.sendmail("jö@b.example", "sö@b.example", b"hi\r\n", ["SMTPUTF8", "BODY=8BITMIME"])
        smtp.sendmail(A, B, b"hi\r\n")
    assert [(letter.sender, letter.parameters) for letter in relay.letters] == [
        ("jö@b.example", "size=4 SMTPUTF8 BODY=8BITMIME"),
        (A, "size=4"),
    ]


@BOTH
def test_smtputf8_that_is_not_offered(module: Any) -> None:
    with relay_at(Relay(common=())) as relay, connected(module, relay) as smtp:
        with pytest.raises(module.SMTPNotSupportedError, match="^SMTPUTF8 not supported by server$"):
            smtp.sendmail(A, B, b"hi", ["SMTPUTF8"])
        with pytest.raises(UnicodeEncodeError):
            smtp.sendmail("jö@b.example", B, b"hi")
        with pytest.raises(UnicodeEncodeError):
            smtp.sendmail(A, "jö@b.example", b"hi")
    assert relay.letters == []


@BOTH
def test_what_is_wrong_with_the_arguments(module: Any) -> None:
    with relay_at() as relay, connected(module, relay) as smtp:
        with pytest.raises(ValueError, match="prohibited newline characters"):
            smtp.sendmail(A, B, "hi", ["X=Y\r\nrset"])
        with pytest.raises((TypeError, AttributeError)):
            smtp.sendmail(A, None, "hi")
    assert relay.letters == []


def test_no_recipients() -> None:
    """smtplib sends MAIL and RSET, and raises SMTPRecipientsRefused({})."""
    nobody = pytest.raises(ValueError, match="^to_addrs: no recipients$")
    with relay_at() as relay, connected(asmtp, relay) as smtp, nobody:
        smtp.sendmail(A, [], "hi")
    assert relay.commands == []


# ---- send_message -------------------------------------------------------------------------------


def letter(**fields: str) -> Message:
    message = MIMEText("hello\n.dot\n")
    for name, value in fields.items():
        message[name.replace("_", "-")] = value
    return message


MESSAGES: dict[str, tuple[dict[str, str], str, list[str]]] = {
    "plain": ({"From": f"A <{A}>", "To": f"{B}, Cee <{C}>"}, A, [B, C]),
    "all fields": ({"From": A, "To": B, "Cc": C, "Bcc": D, "Sender": "s@b.example"}, "s@b.example", [B, D, C]),
    "resent": (
        {"From": A, "To": B, "Resent_Date": "Mon, 1 Jan 2024 00:00:00 +0000", "Resent_From": C, "Resent_To": D,
         "Resent_Bcc": "e@b.example"},
        C, [D, "e@b.example"],
    ),
    "resent by another": (
        {"From": A, "To": B, "Resent_Date": "Mon, 1 Jan 2024 00:00:00 +0000", "Resent_From": C, "Resent_Sender": B,
         "Resent_Cc": D},
        B, [D],
    ),
}  # fmt: skip


@BOTH
@pytest.mark.parametrize("name", MESSAGES)
def test_send_message(module: Any, name: str) -> None:
    fields, sender, recipients = MESSAGES[name]
    message = letter(**fields)
    before = message.as_string()
    with relay_at() as relay, connected(module, relay) as smtp:
        assert smtp.send_message(message) == {}
        assert smtp.send_message(message, "x@b.example", ["y@b.example"], ["RET=FULL"], ["NOTIFY=NEVER"]) == {}
    first, second = relay.letters
    assert (first.sender, first.recipients) == (sender, recipients)
    assert (second.sender, second.recipients) == ("x@b.example", ["y@b.example"])
    assert second.parameters.endswith(" RET=FULL")
    assert first.content == second.content
    assert b"bcc" not in first.content.lower()
    assert first.content.endswith(b"\r\n\r\nhello\r\n.dot\r\n")
    assert message.as_string() == before


@BOTH
def test_resent_twice(module: Any) -> None:
    message = letter(From=A, To=B, Resent_Date="Mon, 1 Jan 2024 00:00:00 +0000", Resent_From=A, Resent_To=C)
    message["Resent-Date"] = "Tue, 2 Jan 2024 00:00:00 +0000"
    twice = pytest.raises(ValueError, match="^message has more than one 'Resent-' header block$")
    with relay_at() as relay, connected(module, relay) as smtp, twice:
        smtp.send_message(message)
    assert relay.letters == []


@BOTH
def test_an_international_message(module: Any) -> None:
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = "jö@b.example", B, "Grüße"
    message.set_content("häh\n", cte="8bit")
    with relay_at() as relay, connected(module, relay) as smtp:
        assert smtp.send_message(message) == {}
        del smtp.esmtp_features["smtputf8"]
        with pytest.raises(module.SMTPNotSupportedError, match="does not advertise the required SMTPUTF8"):
            smtp.send_message(message)
    assert len(relay.letters) == 1
    assert relay.letters[0].sender == "jö@b.example"
    assert relay.letters[0].parameters.endswith(" SMTPUTF8 BODY=8BITMIME")
    assert "Subject: Grüße\r\n".encode() in relay.letters[0].content


@BOTH
def test_8bit_parts_go_as_they_are(module: Any) -> None:
    message = EmailMessage()
    message["From"], message["To"] = A, B
    message.set_content("häh\n", cte="8bit")
    with relay_at(Relay(common=())) as relay, connected(module, relay) as smtp:
        smtp.send_message(message)
    assert relay.letters[0].content.endswith("\r\n\r\nhäh\r\n".encode())


@BOTH
def test_send_message_says_hello_first(module: Any) -> None:
    relay = Relay(answer=lambda verb, line: "500 no" if verb in ("EHLO", "HELO") else None)
    with relay_at(relay), connected(module, relay) as smtp, pytest.raises(module.SMTPHeloError):
        smtp.send_message(letter(From=A, To=B))


# ---- what smtplib cannot send ---------------------------------------------------------------------

BIG = b"".join(b"line %d of many\r\n" % number for number in range(40_000))


async def pieces(wait: Callable[[], Any]) -> AsyncIterator[bytes]:
    for start in range(0, len(BIG), 100_000):
        await wait()
        yield BIG[start : start + 100_000]


async def with_a_limit() -> None:
    async with asyncio.timeout(60):
        await asyncio.sleep(0)


async def in_a_thread() -> None:
    await anyio.to_thread.run_sync(str)


SOURCES: dict[str, Callable[[pathlib.Path], Any]] = {
    "bytes": lambda path: BIG,
    "memoryview": lambda path: memoryview(BIG),
    "path": lambda path: path,
    "file": lambda path: path.open("rb"),
    "BytesIO": lambda path: io.BytesIO(BIG),
    "iterator": lambda path: pieces(lambda: asyncio.sleep(0)),
    "iterator with a limit": lambda path: pieces(with_a_limit),
    "iterator with a thread": lambda path: pieces(in_a_thread),
}


@shapes
@pytest.mark.parametrize("source", SOURCES)
def test_streams(offers: tuple[str, ...], source: str, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "letter"
    path.write_bytes(BIG)
    with relay_at(Relay(offers)) as relay, connected(asmtp, relay) as smtp, contextlib.ExitStack() as stack:
        content = SOURCES[source](path)
        if isinstance(content, io.IOBase):
            stack.enter_context(content)
        assert smtp.sendmail(A, [B, C], content) == {}
        assert smtp.sendmail(A, D, "after") == {}
    assert [letter.recipients for letter in relay.letters] == [[B, C], [D]]
    assert relay.letters[0].content == BIG


def test_an_iterator_that_fails() -> None:
    async def failing() -> AsyncIterator[bytes]:
        yield b"beginning"
        raise LookupError("no more")

    with relay_at() as relay, connected(asmtp, relay) as smtp:
        with pytest.raises(LookupError, match="no more"):
            smtp.sendmail(A, B, failing())
        with pytest.raises(TypeError, match="msg must be str, bytes"):
            smtp.sendmail(A, B, 7)
    assert relay.letters == []


@pytest.mark.usefixtures("bdat_at_once")
def test_a_refusal_while_content_is_written() -> None:
    """The reply to a chunk that was written by then is read and dropped, and the connection goes on."""
    begun, second, raised = threading.Event(), threading.Event(), threading.Event()

    def answer(verb: str, line: str) -> str | None:
        if line != "BDAT 1000":
            return None
        if not begun.is_set():
            begun.set()
            return "552 too much" if second.wait(20) else "421 too late"
        return "503 no mail" if raised.wait(20) else "421 too late"

    class Pieces(io.BytesIO):
        count = 0

        def read(self, size: int | None = -1) -> bytes:
            self.count += 1
            if self.count > 1:
                assert begun.wait(20)
            if self.count > 2:
                second.set()
            return b"x" * 1000

    with relay_at(Relay(SHAPES["both"], answer=answer)) as relay, asmtp.SMTP("127.0.0.1", relay.port, "me") as smtp:
        with pytest.raises(asmtp.SMTPDataError) as caught:
            smtp.sendmail(A, B, Pieces())
        raised.set()
        assert (caught.value.smtp_code, caught.value.state) == (552, "refused")
        assert smtp.sendmail(A, B, "hi") == {}
    assert len(relay.connections) == 1
    assert relay.commands.count("BDAT 1000") > 1


def test_an_email_message_is_content_too() -> None:
    message = letter(From=A, To="somebody@else.example")
    with relay_at() as relay, connected(asmtp, relay) as smtp:
        assert smtp.sendmail(A, B, message) == {}
    assert relay.letters[0].recipients == [B]
    assert b"\r\nTo: somebody@else.example\r\n" in relay.letters[0].content


# ---- LMTP ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("unix", [False, True], ids=["TCP", "Unix socket"])
@shapes
def test_lmtp(offers: tuple[str, ...], unix: bool, tmp_path: pathlib.Path) -> None:
    """smtplib reads one reply for all recipients, and the others as replies to what comes next."""
    relay = Relay(offers, lmtp=True, answer=refusing({"." + C: "552 full", "d@b": "550 who?"}))
    with relay_at(relay, **({"path": f"{tmp_path}/lmtp"} if unix else {})):
        where = (relay.host,) if unix else (f"{relay.host}:{relay.port}",)
        with asmtp.LMTP(*where, local_hostname="client.example") as lmtp:
            assert lmtp.sendmail(A, [B, C, D], "hi") == {C: (552, b"full"), D: (550, b"who?")}
            assert (lmtp.does_esmtp, lmtp.ehlo_msg, lmtp.default_port) == (True, "lhlo", 2003)
            with pytest.raises(asmtp.SMTPRecipientsRefused) as caught:
                lmtp.sendmail(A, [C], "hi")
            assert told(caught.value) == (smtplib.SMTPRecipientsRefused, {"recipients": {C: (552, b"full")}})
            assert lmtp.noop() == (250, b"2.0.0 ok")
            assert lmtp.mail(A) == (250, b"2.1.0 sender ok")
            lmtp.rcpt(B)
            lmtp.rcpt(C)
            assert lmtp.data("by hand") == (552, b"full")
            assert lmtp.noop() == (250, b"2.0.0 ok")
            assert lmtp.sock is not None
            assert lmtp.sock.family == (socket.AF_UNIX if unix else socket.AF_INET)
    assert [letter.recipients for letter in relay.letters] == [[B], [B]]
    assert relay.commands[0] == "lhlo client.example"


@pytest.mark.parametrize("kind", [smtplib.LMTP, asmtp.LMTP], ids=["smtplib", "asmtp"])
def test_no_unix_socket(kind: Any, tmp_path: pathlib.Path) -> None:
    with pytest.raises(FileNotFoundError):
        kind(f"{tmp_path}/nothing", local_hostname="client.example")
    with pytest.raises(ValueError, match="timeout=0"):
        kind(f"{tmp_path}/nothing", timeout=0)


@pytest.mark.parametrize("kind", [smtplib.LMTP, asmtp.LMTP], ids=["smtplib", "asmtp"])
def test_lmtp_with_one_recipient(kind: Any) -> None:
    with relay_at(Relay(lmtp=True)) as relay, kind(relay.host, relay.port, "client.example", None, 30) as lmtp:
        assert lmtp.sendmail(A, B, "hi") == {}
        assert lmtp.timeout == 30
    assert relay.commands[0] == "lhlo client.example"
