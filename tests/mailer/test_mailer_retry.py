"""AsyncMailer.send: which messages are tried again, for which recipients, and when; and which never are."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from typing import Any

import pytest

import asmtp
from asmtp import Envelope, Retry
from tests.fakes.clock import now
from tests.fakes.people import SENDER
from tests.fakes.relay import SHAPES, Relay, relaying
from tests.fakes.script import expect, fin, nothing_more, read_all, rst, scripted, send, silence
from tests.mailer.mailing import answering, comings_and_goings, email, mailer, people, till

ALL = ["b@y.example", "c@y.example", "d@y.example"]
B, C, D = ALL

PLAIN = Retry(jitter=0)  # 0.5 s, 1 s
DOUBTFUL = Retry(jitter=0, in_doubt=True)

pytestmark = [pytest.mark.virtual_clock, pytest.mark.usefixtures("bdat_at_once")]


async def pieces() -> AsyncIterator[bytes]:
    yield b"hi"


def sometimes(verb: str, *replies: str, only: str = "") -> Any:
    """Return an `answer` that gives a verb these replies, one after the other; then the usual one."""
    left = list(replies)

    def answer(seen: str, line: str) -> str | None:
        return left.pop(0) or None if seen == verb and only in line and left else None

    return answer


def recipients(relay: Relay) -> list[list[str]]:
    """Return the recipients of each transaction that was begun."""
    found: list[list[str]] = []
    for line in relay.commands:
        if line.lower().startswith("mail"):
            found.append([])
        elif line.lower().startswith("rcpt"):
            found[-1].append(line[line.index("<") + 1 : line.index(">")])
    return found


# ---- what the server refuses for now ----------------------------------------------------------


@pytest.mark.parametrize("verb", ["MAIL", "RCPT", "."])
async def test_refused_for_now_and_taken_later(verb: str, shape: tuple[str, ...]) -> None:
    relay = Relay(shape, answer=sometimes(verb, "451 4.7.1 later", "450 4.2.0 later"))
    async with relaying(relay), mailer(relay, retry=PLAIN) as posting:
        receipt = await posting.send(b"hi", SENDER, B)
        assert now() == pytest.approx(0.5 + 1)
        assert receipt.attempts == 3
        assert people(receipt.accepted) == {B: (250, "2.1.5")}
        assert (receipt.refused, receipt.failed) == ({}, {})
        assert [letter.content for letter in relay.letters] == [b"hi\r\n"]
        assert posting.stats.retried == 2
        assert posting.stats.sent == 1


@pytest.mark.parametrize(
    ("verb", "kind"), [("MAIL", "SMTPSenderRefused"), ("RCPT", "SMTPRecipientsRefused"), (".", "SMTPDataError")]
)
async def test_refused_for_now_to_the_end(verb: str, kind: str, shape: tuple[str, ...]) -> None:
    """The exception tells of the last try, and that another may succeed."""
    relay = Relay(shape, answer=sometimes(verb, "451 one", "451 two", "451 three"))
    async with relaying(relay), mailer(relay, retry=PLAIN) as posting:
        with pytest.raises(getattr(asmtp, kind)) as caught:
            await posting.send(b"hi", SENDER, B)
        assert caught.value.state == "refused"
        assert caught.value.transient
        assert "three" in str(caught.value)
        assert relay.verbs.count("MAIL") == 3
        assert relay.letters == []
        assert posting.stats.refused == 1


async def test_nothing_is_tried_again_without_a_retry(shape: tuple[str, ...]) -> None:
    relay = Relay(shape, answer=sometimes("RCPT", "451 later"))
    async with relaying(relay), mailer(relay, retry=None) as posting:
        with pytest.raises(asmtp.SMTPRecipientsRefused):
            await posting.send(b"hi", SENDER, B)
        assert now() < 0.2
        receipt = await posting.send(b"hi", SENDER, ALL)
        assert receipt.complete


async def test_what_is_refused_for_good_is_not_tried_again() -> None:
    relay = Relay(answer=sometimes("RCPT", "550 never"))
    async with relaying(relay), mailer(relay, retry=PLAIN) as posting:
        with pytest.raises(asmtp.SMTPRecipientsRefused):
            await posting.send(b"hi", SENDER, B)
        assert posting.stats.retried == 0


async def test_only_within_the_time_that_was_given() -> None:
    """The tries begin at 0, 10 and 30 s; the next one would begin at 70 s, which is too late."""
    relay = Relay(answer=answering(RCPT="451 later"))
    patience = Retry(attempts=10, within=60, initial=10, factor=2, maximum=100, jitter=0)
    async with relaying(relay), mailer(relay, retry=patience) as posting:
        with pytest.raises(asmtp.SMTPRecipientsRefused):
            await posting.send(b"hi", SENDER, B)
        assert now() == pytest.approx(30)
        assert relay.verbs.count("MAIL") == 3


async def test_others_do_not_wait_meanwhile() -> None:
    relay = Relay(SHAPES["both"], answer=sometimes("RCPT", "451 later", only=C))
    async with relaying(relay), mailer(relay, connections=1, retry=PLAIN) as posting:
        late = asyncio.create_task(posting.send(b"late", SENDER, C))
        await till(lambda: posting.stats.retried)
        assert posting.stats.waiting == posting.stats.in_flight == 1
        await posting.send(b"hi", SENDER, B)
        assert now() < 0.2
        assert (await late).attempts == 2
        assert [letter.content for letter in relay.letters] == [b"hi\r\n", b"late\r\n"]


# ---- for some of the recipients ---------------------------------------------------------------


async def test_only_those_refused_for_now_are_tried_again(shape: tuple[str, ...]) -> None:
    """No recipient gets the message twice, and each has the reply that counts."""
    replies = {B: [""], C: ["451 4.2.0 later", "451 4.2.0 later", "250 2.1.5 at last"], D: ["550 5.1.1 no"]}

    def answer(verb: str, line: str) -> str | None:
        return replies[line[line.index("<") + 1 : line.index(">")]].pop(0) or None if verb == "RCPT" else None

    async with relaying(Relay(shape, answer=answer)) as relay, mailer(relay, retry=PLAIN) as posting:
        receipt = await posting.send(b"hi", SENDER, ALL)
        assert recipients(relay) == [ALL, [C], [C]]
        assert [letter.recipients for letter in relay.letters] == [[B], [C]]
        assert receipt.accepted == {B: (250, b"2.1.5 recipient ok"), C: (250, b"2.1.5 at last")}
        assert people(receipt.refused) == {D: (550, "5.1.1")}
        assert receipt.attempts == 3
        assert now() == pytest.approx(1.5)
        assert posting.stats.sent == 1


async def test_all_refused_some_of_them_for_now(shape: tuple[str, ...]) -> None:
    """The first transaction comes to nothing, and the second is for the one that was refused for now."""
    replies = {B: ["550 5.1.1 no"], C: ["451 4.2.0 later", ""]}

    def answer(verb: str, line: str) -> str | None:
        return replies[line[line.index("<") + 1 : line.index(">")]].pop(0) or None if verb == "RCPT" else None

    async with relaying(Relay(shape, answer=answer)) as relay, mailer(relay, retry=PLAIN) as posting:
        receipt = await posting.send(b"hi", SENDER, [B, C])
        assert recipients(relay) == [[B, C], [C]]
        assert people(receipt.accepted) == {C: (250, "2.1.5")}
        assert people(receipt.refused) == {B: (550, "5.1.1")}


async def test_some_are_refused_for_now_to_the_end(shape: tuple[str, ...]) -> None:
    relay = Relay(shape, answer=answering(RCPT_c="451 4.2.0 later"))
    async with relaying(relay), mailer(relay, retry=PLAIN) as posting:
        receipt = await posting.send(b"hi", SENDER, ALL)
        assert list(receipt.accepted) == [B, D]
        assert people(receipt.refused) == {C: (451, "4.2.0")}
        assert receipt.attempts == 3
        with pytest.raises(asmtp.SMTPRecipientsRefused) as caught:
            await posting.send(b"hi", SENDER, ALL, require_all=True)
        assert caught.value.state == "sent"
        assert caught.value.recipients == {C: (451, b"4.2.0 later")}
        assert caught.value.receipt is not None
        assert list(caught.value.receipt.accepted) == [B, D]


async def test_without_retry_those_refused_for_now_are_refused() -> None:
    relay = Relay(answer=answering(RCPT_c="451 4.2.0 later"))
    async with relaying(relay), mailer(relay, retry=None) as posting:
        receipt = await posting.send(b"hi", SENDER, ALL)
        assert people(receipt.refused) == {C: (451, "4.2.0")}
        assert now() < 0.2


async def test_lmtp_refuses_for_now_behind_the_content() -> None:
    lmtp = Relay(SHAPES["both"], lmtp=True, answer=sometimes("." + C, "451 4.2.0 busy"))
    async with relaying(lmtp) as relay, mailer(relay, retry=PLAIN) as posting:
        receipt = await posting.send(b"hi", SENDER, ALL)
        assert [letter.recipients for letter in relay.letters] == [[B, D], [C]]
        assert sorted(receipt.accepted) == ALL
        assert receipt.complete


async def test_the_rest_is_lost_with_the_connection() -> None:
    """B and D have the message; of C it is known only that the server cannot be reached any more."""
    relay = Relay(SHAPES["both"], answer=sometimes("RCPT", "451 4.2.0 later", only=C))
    async with comings_and_goings(relay) as comings, mailer(relay, retry=PLAIN) as posting:
        sending = asyncio.create_task(posting.send(b"hi", SENDER, ALL))
        await till(lambda: posting.stats.retried)
        await comings.shut()
        receipt = await sending
        assert list(receipt.accepted) == [B, D]
        assert list(receipt.failed) == [C]
        assert not receipt.complete
        lost = receipt.failed[C]
        assert isinstance(lost, asmtp.SMTPServerDisconnected)
        assert lost.state == "not_sent"
        assert receipt.refused == {}


# ---- more recipients than the server takes ----------------------------------------------------


def crowd(most: int, reply: str) -> Any:
    """Return an `answer` that takes `most` recipients in a transaction."""
    seen = 0

    def answer(verb: str, line: str) -> str | None:
        nonlocal seen
        if verb == "MAIL":
            seen = 0
        seen += verb == "RCPT"
        return reply if verb == "RCPT" and seen > most else None

    return answer


@pytest.mark.parametrize("reply", ["452 4.5.3 too many recipients", "452 too many", "552 5.5.3 too many recipients"])
async def test_too_many_recipients(reply: str, shape: tuple[str, ...]) -> None:
    """The others get transactions of their own, at once (RFC 5321 §4.5.3.1.10), and the limit is remembered."""
    everyone = [f"b{number}@y.example" for number in range(25)]
    relay = Relay(shape, answer=crowd(10, reply))
    async with relaying(relay), mailer(relay, connections=1) as posting:
        receipt = await posting.send(b"hi", SENDER, everyone)
        assert now() < 0.2
        assert sorted(receipt.accepted) == sorted(everyone)
        assert receipt.complete
        assert receipt.attempts == 1
        assert [len(letter.recipients) for letter in relay.letters] == [10, 10, 5]
        assert sorted(who for letter in relay.letters for who in letter.recipients) == sorted(everyone)
        relay.commands.clear()
        assert (await posting.send(b"hi", SENDER, everyone)).complete
        assert sorted(map(len, recipients(relay))) == [5, 10, 10]
        assert posting.stats.sent == 2


async def test_a_mailbox_with_too_many_messages(shape: tuple[str, ...]) -> None:
    """A full mailbox says nothing of how many recipients the server takes (RFC 3463 §3.3)."""
    answer = answering(RCPT_full="452 4.2.2 mailbox full: too many messages")
    relay = Relay(shape, answer=answer)
    async with relaying(relay), mailer(relay, retry=None) as posting:
        receipt = await posting.send(b"hi", SENDER, ["b@y.example", "full@y.example"])
        assert people(receipt.refused) == {"full@y.example": (452, "4.2.2")}
        assert (await posting.send(b"hi", SENDER, [f"b{number}@y.example" for number in range(9)])).complete
        assert [len(letter.recipients) for letter in relay.letters] == [1, 9]


async def test_the_server_tells_how_many_it_takes(shape: tuple[str, ...]) -> None:
    """A transaction has no more recipients than LIMITS RCPTMAX says (RFC 9422)."""
    everyone = [f"b{number}@y.example" for number in range(25)]
    relay = Relay((*shape, "LIMITS RCPTMAX=10"), answer=crowd(10, "550 I told you"))
    async with relaying(relay), mailer(relay) as posting:
        receipt = await posting.send(b"hi", SENDER, everyone)
        assert receipt.complete
        assert sorted(map(len, recipients(relay))) == [5, 10, 10]


async def test_a_server_that_takes_one_at_a_time_and_refuses_one_of_them() -> None:
    relay = Relay(SHAPES["pipelining"], answer=crowd(1, "452 4.5.3 one only"))
    ones = relay.answer
    relay.answer = lambda verb, line: "550 5.1.1 no" if verb == "RCPT" and C in line else ones(verb, line)
    async with relaying(relay), mailer(relay) as posting:
        receipt = await posting.send(b"hi", SENDER, ALL)
        assert sorted(receipt.accepted) == [B, D]
        assert people(receipt.refused) == {C: (550, "5.1.1")}


# ---- what cannot be read again ----------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda: io.BytesIO(b"hi"), pieces])
@pytest.mark.parametrize("verb", ["RCPT", "."])
async def test_what_cannot_be_read_again_is_not_sent_again(make: Any, verb: str, shape: tuple[str, ...]) -> None:
    relay = Relay(shape, answer=sometimes(verb, "451 later"))
    async with relaying(relay), mailer(relay, retry=PLAIN) as posting:
        with pytest.raises((asmtp.SMTPRecipientsRefused, asmtp.SMTPDataError)) as caught:
            await posting.send(make(), SENDER, B)
        assert caught.value.state == "refused"
        assert relay.verbs.count("MAIL") == 1
        assert relay.letters == []


@pytest.mark.parametrize("reply", ["451 4.2.0 later", "452 4.5.3 too many"])
async def test_nor_for_some_of_the_recipients(reply: str) -> None:
    relay = Relay(SHAPES["both"], answer=sometimes("RCPT", reply, only=C))
    async with relaying(relay), mailer(relay, retry=PLAIN) as posting:
        receipt = await posting.send(pieces(), SENDER, ALL)
        assert receipt.refused == {C: (int(reply[:3]), reply[4:].encode())}
        assert [letter.recipients for letter in relay.letters] == [[B, D]]


@pytest.mark.parametrize("content", ["hi", bytearray(b"hi"), memoryview(b"hi"), email(), "path", b"x" * 100_000])
async def test_what_can_be_read_again_is_the_same_again(content: Any, shape: tuple[str, ...], tmp_path: Any) -> None:
    if content == "path":
        content = tmp_path / "message"
        content.write_bytes(b"hi")
    relay = Relay(shape, answer=sometimes("RCPT", "451 later", only=C))
    async with relaying(relay), mailer(relay, retry=PLAIN) as posting:
        receipt = await posting.send(content, SENDER, [B, C])
        assert receipt.complete
        first, second = relay.letters
        assert (first.recipients, second.recipients) == ([B], [C])
        assert first.content == second.content != b""


# ---- connections that cannot be had, or are lost ----------------------------------------------


async def test_the_server_comes_back() -> None:
    """The server cannot have the message, so it is sent when the server is back."""
    async with comings_and_goings(relay := Relay()) as comings, mailer(relay, retry=PLAIN) as posting:
        await comings.shut()
        sending = asyncio.create_task(posting.send(b"hi", SENDER, B))
        await till(lambda: posting.stats.retried == 2)
        await comings.open()
        assert (await sending).attempts == 3
        assert now() == pytest.approx(1.5)


async def test_the_server_does_not_come_back() -> None:
    async with comings_and_goings(relay := Relay()) as comings, mailer(relay, retry=PLAIN) as posting:
        await comings.shut()
        with pytest.raises(asmtp.SMTPServerDisconnected, match=f"no connection to {relay.host}:{relay.port}") as caught:
            await posting.send(b"hi", SENDER, B)
        assert caught.value.state == "not_sent"
        assert isinstance(caught.value.__cause__, ConnectionRefusedError)
        assert now() == pytest.approx(1.5)
        assert posting.stats.not_sent == 1


HELLO = [send("220 ready"), expect("ehlo me.example"), send("250-here", "250 PIPELINING")]
ENVELOPE = ["mail from:<a@x.example>", "rcpt to:<b@y.example>", "data"]
TAKEN = [
    *HELLO, expect(*ENVELOPE), send("250 ok", "250 ok", "354 go"), expect("hi", "."), send("250 taken"), read_all,
]  # fmt: skip

LOST: dict[str, list[Any]] = {
    "greeting": [fin],
    "EHLO": [send("220 ready"), expect("ehlo me.example"), fin],
    "envelope": [*HELLO, expect(*ENVELOPE), rst],
    "421 for the sender": [*HELLO, expect(*ENVELOPE), send("421 4.3.2 going down"), fin],
    "421 for DATA": [*HELLO, expect(*ENVELOPE), send("250 ok", "250 ok", "421 4.3.2 going down"), fin],
    "421 for the content": [
        *HELLO, expect(*ENVELOPE), send("250 ok", "250 ok", "354 go"), expect("hi", "."), send("421 4.3.2 down"), fin,
    ],
}  # fmt: skip


@pytest.mark.parametrize("point", LOST)
async def test_the_connection_is_lost_and_the_message_is_not_sent(point: str) -> None:
    """The server cannot have the message, so it is sent on another connection."""
    async with scripted(LOST[point], TAKEN) as server, mailer(server, retry=PLAIN) as posting:
        receipt = await posting.send(b"hi", SENDER, B)
        assert receipt.attempts == 2
        assert receipt.reply == (250, b"taken")


@pytest.mark.parametrize("how", [fin, rst])
@pytest.mark.parametrize("retry", [PLAIN, None])
async def test_in_doubt_is_not_sent_again(how: Any, retry: Retry | None) -> None:
    script = [*HELLO, expect(*ENVELOPE), send("250 ok", "250 ok", "354 go"), expect("hi", "."), how]
    async with scripted(script) as server, mailer(server, retry=retry) as posting:
        with pytest.raises(asmtp.SMTPServerDisconnected) as caught:
            await posting.send(b"hi", SENDER, B)
        assert caught.value.state == "in_doubt"
        assert posting.stats.in_doubt == 1
        assert posting.stats.retried == 0


async def test_in_doubt_is_sent_again_where_that_is_asked_for() -> None:
    script = [*HELLO, expect(*ENVELOPE), send("250 ok", "250 ok", "354 go"), expect("hi", "."), fin]
    async with scripted(script, TAKEN) as server, mailer(server, retry=DOUBTFUL) as posting:
        receipt = await posting.send(b"hi", SENDER, B)
        assert receipt.attempts == 2
        assert posting.stats == (1, 0, 0, 0, 1, 0, 0, 0, 1)


@pytest.mark.parametrize(
    "replies", [{"RCPT_c": "550 no"}, {"MAIL": "550 no"}, {"end": "451 later"}, {"RCPT": "550 no"}]
)
async def test_what_an_earlier_try_left_in_doubt_stays_so(replies: dict[str, str]) -> None:
    """The server may have it, though it refuses the message when it is sent again."""
    relay = Relay()

    def answer(verb: str, line: str) -> str | None:
        if verb != "." or relay.answer is not answer:
            return None
        relay.answer = answering(**replies)
        relay.drop()
        return "250 lost on its way"

    relay.answer = answer
    async with relaying(relay), mailer(relay, retry=DOUBTFUL) as posting:
        with pytest.raises(asmtp.SMTPServerDisconnected) as caught:
            await posting.send(b"hi", SENDER, [B, "c@y.example"])
        assert caught.value.state == "in_doubt"
        receipt = caught.value.receipt
        if "RCPT_c" in replies:
            assert receipt is not None
            assert list(receipt.accepted) == [B]
            assert list(receipt.failed) == ["c@y.example"]
            assert receipt.refused == {}
        else:
            assert receipt is None
        assert posting.stats.in_doubt == 1
        assert posting.stats.retried >= 1


async def test_a_server_that_says_nothing_to_the_content() -> None:
    script = [*HELLO, expect(*ENVELOPE), send("250 ok", "250 ok", "354 go"), expect("hi", "."), silence]
    async with scripted(script) as server, mailer(server, retry=PLAIN, timeouts=20) as posting:
        with pytest.raises(asmtp.SMTPTimeoutError) as caught:
            await posting.send(b"hi", SENDER, B)
        assert isinstance(caught.value, TimeoutError)
        assert caught.value.state == "in_doubt"
        assert now() == pytest.approx(20, abs=1)


async def test_a_server_that_does_not_greet() -> None:
    async with scripted([nothing_more], TAKEN) as server, mailer(server, retry=PLAIN, timeouts=20) as posting:
        assert (await posting.send(b"hi", SENDER, B)).reply == (250, b"taken")
        assert now() < 21  # it need not even wait for the deadline


async def test_in_doubt_for_some() -> None:
    """B has the message.  C's transaction ended in doubt: the exception has a receipt that tells of B."""
    first = [
        *HELLO, expect(ENVELOPE[0], "rcpt to:<b@y.example>", "rcpt to:<c@y.example>", "data"),
        send("250 ok", "250 ok", "451 4.2.0 later", "354 go"), expect("hi", "."), send("250 taken"),
        expect(ENVELOPE[0], "rcpt to:<c@y.example>", "data"), send("250 ok", "250 ok", "354 go"),
        expect("hi", "."), fin,
    ]  # fmt: skip
    async with scripted(first) as server, mailer(server, retry=PLAIN) as posting:
        with pytest.raises(asmtp.SMTPServerDisconnected) as caught:
            await posting.send(b"hi", SENDER, [B, C])
        assert caught.value.state == "in_doubt"
        assert caught.value.receipt is not None
        assert people(caught.value.receipt.accepted) == {B: (250, "")}
        assert list(caught.value.receipt.failed) == [C]


async def test_a_token_or_password_refused_for_now() -> None:
    relay = Relay(("AUTH PLAIN",), answer=sometimes("AUTH", "454 4.7.0 later", "235 2.7.0 ok"))
    async with relaying(relay):
        options: Any = {"username": "user", "password": "secret", "tls": "none"}
        async with mailer(relay, retry=PLAIN, **options) as posting:
            assert (await posting.send(b"hi", SENDER, B)).attempts == 2


# ---- cancelled --------------------------------------------------------------------------------


async def cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_cancelled_while_it_waits_for_another_try() -> None:
    """The message is not tried any more, and closing does not wait for it."""
    relay = Relay(answer=answering(RCPT="451 later"))
    async with relaying(relay), mailer(relay, retry=Retry(initial=30, jitter=0)) as posting:
        sending = asyncio.create_task(posting.send(b"hi", SENDER, B))
        await till(lambda: posting.stats.retried)
        await cancelled(sending)
        assert posting.stats.in_flight == posting.stats.waiting == 0
        assert await posting.drain() == []
    assert now() < 0.2
    assert relay.verbs.count("MAIL") == 1


async def test_cancelled_when_some_have_it() -> None:
    """The exception tells which recipients have the message."""
    relay = Relay(answer=answering(RCPT_b="451 later"))
    async with relaying(relay), mailer(relay, retry=Retry(initial=30, jitter=0)) as posting:
        sending = asyncio.create_task(posting.send(b"hi", SENDER, [B, "c@y.example"]))
        await till(lambda: posting.stats.retried)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await sending
        told: Any = caught.value
        assert told.state == "sent"
        assert list(told.receipt.accepted) == ["c@y.example"]
        assert not told.receipt.complete
    assert [letter.recipients for letter in relay.letters] == [["c@y.example"]]


async def test_cancelled_while_another_waits_for_what_is_in_flight() -> None:
    relay = Relay(answer=answering(RCPT="451 later"))
    async with relaying(relay), mailer(relay, retry=Retry(initial=30, jitter=0)) as posting:
        sending = asyncio.create_task(posting.send(b"hi", SENDER, B))
        await till(lambda: posting.stats.retried)
        draining = asyncio.create_task(posting.drain())
        await asyncio.sleep(1)
        await cancelled(sending)
        await draining
        assert now() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("reply", ["451 4.2.0 later", "452 4.5.3 too many"])
async def test_cancelled_when_it_is_written(reply: str) -> None:
    """The server takes the message for some recipients; the others get no second transaction after the cancellation."""
    relay = Relay(SHAPES["both"], latency=1, answer=answering(RCPT_c=reply))
    async with relaying(relay), mailer(relay, retry=PLAIN) as posting:
        sending = asyncio.create_task(posting.send(b"hi", SENDER, [B, C]))
        await till(lambda: len(relay.reads) == 2)
        await cancelled(sending)
        await posting.drain()
        await asyncio.sleep(30)
        assert [letter.recipients for letter in relay.letters] == [[B]]
        assert relay.verbs.count("MAIL") == 1
        assert posting.stats.sent == 1  # so it is counted, though the caller was not told


async def test_cancelled_before_anything_is_written() -> None:
    """All connections are busy, and the message waits in line."""
    relay = Relay(latency=1)
    async with relaying(relay), mailer(relay, connections=1) as posting:
        first = asyncio.create_task(posting.send(b"first", SENDER, B))
        others = [asyncio.create_task(posting.send(b"others", SENDER, C)) for _ in range(20)]
        await till(lambda: "DATA" in relay.verbs)
        for other in others:
            await cancelled(other)
        await first
        await posting.drain()
        assert [letter.content for letter in relay.letters] == [b"first\r\n"]
        assert posting.stats.not_sent == 20


async def test_cancelled_with_content_that_is_read() -> None:
    going = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        going.set()
        while True:
            yield b"x" * 1000
            await asyncio.sleep(1)

    async with relaying(Relay(SHAPES["both"])) as relay, mailer(relay) as posting:
        sending = asyncio.create_task(posting.send(endless(), SENDER, B))
        await going.wait()
        await cancelled(sending)
        await posting.send(Envelope(SENDER, C, content=b"next"))
        assert [letter.content for letter in relay.letters] == [b"next\r\n"]
