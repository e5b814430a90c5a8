"""Many messages on one connection: round trips, order, windows, and servers that do not take it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

import asmtp
from asmtp import AsyncSMTP
from tests.fakes.clock import now
from tests.fakes.people import SENDER, WHO
from tests.fakes.relay import SHAPES, Relay, relaying
from tests.fakes.script import expect, nothing_more, scripted, send, until

pytestmark = pytest.mark.usefixtures("bdat_at_once")

LARGE = b"x" * 70 + b"\r\n"
LARGE *= 10_000


def client(relay: Any, **options: Any) -> AsyncSMTP:
    return AsyncSMTP(relay.host, relay.port, "me.example", **options)


# ---- round trips: the relay answers a second after what it reads ------------------------------


@pytest.mark.virtual_clock
@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize(
    ("shape", "content", "trips"),
    [
        ("none", b"hi", lambda n: n + 3),
        ("chunking", b"hi", lambda n: n + 2),
        ("pipelining", b"hi", lambda n: 2),
        ("both", b"hi", lambda n: 1),
        ("none", LARGE, lambda n: n + 3),
        ("pipelining", LARGE, lambda n: 2),
        ("both", LARGE, lambda n: 2),
    ],
)
async def test_round_trips_of_one_message(shape: str, content: bytes, trips: Any, count: int, tmp_path: Path) -> None:
    people = [f"r{number}@y.example" for number in range(count)]
    # A Unix socket, because TCP has timers of its own, which do not jump.
    async with relaying(Relay(SHAPES[shape]), path=str(tmp_path / "s")) as relay, client(relay) as smtp:
        await smtp.ehlo()
        relay.latency = 1
        assert now() == 0
        assert await smtp.sendmail(SENDER, people, content) == {}
        assert now() == trips(count)


@pytest.mark.virtual_clock
@pytest.mark.parametrize(
    ("shape", "options", "trips"),
    [
        ("none", {}, 10 * 4),
        ("chunking", {}, 10 * 3),
        ("pipelining", {}, 10 + 1),
        ("both", {}, 1),
        ("both", {"window": 5}, 2),
        ("both", {"window": 1}, 10),
        ("both", {"window_octets": 1}, 10),
        ("both", {"chunking": False}, 10 + 1),
        ("both", {"pipelining": False}, 10 * 3),
        ("both", {"pipelining": False, "chunking": False}, 10 * 4),
    ],
)
async def test_round_trips_of_ten_messages_at_a_time(shape: str, options: Any, trips: int) -> None:
    async with relaying(Relay(SHAPES[shape])) as relay, client(relay, **options) as smtp:
        await smtp.ehlo()
        relay.latency = 1
        assert await asyncio.gather(*(smtp.sendmail(SENDER, WHO, b"hi") for _ in range(10))) == [{}] * 10
        assert now() == trips
        assert len(relay.letters) == 10


# ---- one write a group ------------------------------------------------------------------------

ENVELOPE = b"mail from:<a@x.example> size=4\r\nrcpt to:<b@y.example>\r\nrcpt to:<c@y.example>\r\n"


@pytest.mark.parametrize(
    ("shape", "groups"),
    [
        ("pipelining", [ENVELOPE + b"data\r\n", b"hi\r\n.\r\n"]),
        ("both", [ENVELOPE + b"BDAT 4 LAST\r\nhi\r\n"]),
        ("chunking", [*ENVELOPE.splitlines(keepends=True), b"BDAT 4 LAST\r\nhi\r\n"]),
        ("none", [*ENVELOPE.splitlines(keepends=True), b"data\r\n", b"hi\r\n.\r\n"]),
    ],
)
async def test_a_group_is_one_write(shape: str, groups: list[bytes], writes: list[bytes]) -> None:
    async with relaying(Relay(SHAPES[shape])) as relay, client(relay) as smtp:
        await smtp.ehlo()
        writes.clear()
        await smtp.sendmail(SENDER, [WHO, "c@y.example"], b"hi\r\n")
        assert writes == groups
        assert relay.reads[1:] == groups


async def test_messages_of_one_pass_of_the_loop_are_one_write(writes: list[bytes]) -> None:
    async with relaying(Relay(SHAPES["both"])) as relay, client(relay) as smtp:
        await smtp.ehlo()
        writes.clear()
        await asyncio.gather(*(smtp.sendmail(SENDER, WHO, b"hi") for _ in range(20)))
        # The first finds the line free and may go at once.
        assert len(writes) <= 2
        assert len(relay.letters) == 20


async def test_the_next_envelope_rides_behind_the_last_dot(writes: list[bytes]) -> None:
    async with relaying(Relay(SHAPES["pipelining"])) as relay, client(relay) as smtp:
        await smtp.ehlo()
        writes.clear()
        await asyncio.gather(smtp.sendmail(SENDER, WHO, b"one"), smtp.sendmail("c@x.example", "d@y.example", b"two"))
        assert writes == [
            b"mail from:<a@x.example> size=5\r\nrcpt to:<b@y.example>\r\ndata\r\n",
            b"one\r\n.\r\nrset\r\nmail from:<c@x.example> size=5\r\nrcpt to:<d@y.example>\r\ndata\r\n",
            b"two\r\n.\r\n",
        ]
        assert [letter.sender for letter in relay.letters] == [SENDER, "c@x.example"]


# ---- fifty at a time --------------------------------------------------------------------------


def picky(verb: str, line: str) -> str | None:
    """Each message is answered by its number."""
    if verb == "MAIL" and "s3" in line:
        return "550 5.7.1 not you"
    if verb == "RCPT" and ("r4" in line or "all" in line):
        return "450 4.2.0 " + line.split("<")[1].split("@")[0]
    if verb == "." and "refuse" in line:
        return "554 5.6.0 " + line.split()[1]
    return None


async def fate(smtp: AsyncSMTP, number: int, content: str) -> str:
    """Send one of several kinds of message, and say what became of it."""
    kind = number % 5
    people = {4: [f"r4{number}@y.example", WHO], 2: [f"all{number}@y.example"]}.get(kind, [f"b{number}@y.example"])
    text = f"refuse {number}" if kind == 1 else content
    try:
        refused = await smtp.sendmail(f"s{kind}.{number}@x.example", people, text.encode())
    except asmtp.SMTPSenderRefused as error:
        return f"sender {error.sender}"
    except asmtp.SMTPRecipientsRefused as error:
        return f"recipients {sorted((who, *reply) for who, reply in error.recipients.items())}"
    except asmtp.SMTPDataError as error:
        return f"data {error.smtp_error!r}"
    return f"sent {refused}"


def expected(number: int) -> str:
    return {
        0: "sent {}",
        1: f"data {f'5.6.0 {number}'.encode()!r}",
        2: f"recipients {[(f'all{number}@y.example', 450, f'4.2.0 all{number}'.encode())]}",
        3: f"sender s3.{number}@x.example",
        4: f"sent {{'r4{number}@y.example': Reply(code=450, message={f'4.2.0 r4{number}'.encode()!r})}}",
    }[number % 5]


@pytest.mark.parametrize("text", ["hello", "streamed\n" * 10_000])
@pytest.mark.parametrize("window", [1, 3, 100])
@pytest.mark.parametrize("shape", SHAPES)
async def test_fifty_tasks_each_get_their_own_result(shape: str, window: int, text: str) -> None:
    async with relaying(Relay(SHAPES[shape], answer=picky)) as relay, client(relay, window=window) as smtp:
        fates = await asyncio.gather(*(fate(smtp, number, text) for number in range(50)))
        assert fates == [expected(number) for number in range(50)]
        # In the order in which they were asked for, each under its own sender, once.
        sent = [number for number in range(50) if number % 5 in (0, 4)]
        assert [letter.sender for letter in relay.letters] == [f"s{number % 5}.{number}@x.example" for number in sent]
        assert [letter.recipients for letter in relay.letters] == [
            [WHO] if number % 5 == 4 else [f"b{number}@y.example"] for number in sent
        ]
        assert (await smtp.noop()).ok


@pytest.mark.parametrize("shape", ["pipelining", "both"])
async def test_rset_in_front_of_every_transaction_behind_an_unanswered_one(shape: str) -> None:
    async with relaying(Relay(SHAPES[shape])) as relay, client(relay) as smtp:
        await smtp.ehlo()
        await asyncio.gather(*(smtp.sendmail(SENDER, WHO, b"hi") for _ in range(10)))
        verbs = relay.verbs
        places = [place for place, verb in enumerate(verbs) if verb == "MAIL"]
        assert [verbs[place - 1] for place in places] == ["EHLO"] + ["RSET"] * 9
        await smtp.sendmail(SENDER, WHO, b"hi")  # whose outcome is known
        assert relay.verbs.count("RSET") == 9


async def test_after_a_refusal_the_connection_is_reset_once() -> None:
    answer: Any = lambda verb, line: "550 no" if verb == "RCPT" and "bad" in line else None  # noqa: E731
    async with relaying(Relay(SHAPES["both"], answer=answer)) as relay, client(relay) as smtp:
        with pytest.raises(asmtp.SMTPRecipientsRefused):
            await smtp.sendmail(SENDER, "bad@y.example", b"hi")
        await smtp.sendmail(SENDER, WHO, b"hi")
        assert relay.verbs == ["EHLO", "MAIL", "RCPT", "BDAT", "RSET", "MAIL", "RCPT", "BDAT"]


async def test_the_window_is_respected() -> None:
    async with relaying(Relay(SHAPES["both"])) as relay, client(relay, window=3) as smtp:
        await smtp.ehlo()
        relay.hold = 0
        tasks = [asyncio.create_task(smtp.sendmail(SENDER, WHO, b"hi")) for _ in range(10)]
        await relay.held.wait()
        for _ in range(20):
            await asyncio.sleep(0)
        assert relay.verbs.count("MAIL") == 3
        relay.release()
        assert await asyncio.gather(*tasks) == [{}] * 10


async def test_the_window_of_octets_is_respected() -> None:
    async with relaying(Relay(SHAPES["both"])) as relay, client(relay, window_octets=50_000) as smtp:
        await smtp.ehlo()
        relay.hold = 0
        tasks = [asyncio.create_task(smtp.sendmail(SENDER, WHO, b"x" * 20_000)) for _ in range(10)]
        await relay.held.wait()
        for _ in range(20):
            await asyncio.sleep(0)
        assert relay.verbs.count("MAIL") == 3
        relay.release()
        assert await asyncio.gather(*tasks) == [{}] * 10


@pytest.mark.parametrize("shape", SHAPES)
async def test_single_commands_and_messages_together(shape: str) -> None:
    async with relaying(Relay(SHAPES[shape])) as relay, client(relay) as smtp:
        results = await asyncio.gather(
            *(
                smtp.sendmail(SENDER, WHO, b"hi") if number % 2 else smtp.docmd("noop", str(number))
                for number in range(20)
            )
        )
        for number, result in enumerate(results):
            assert result == ({} if number % 2 else (250, b"2.0.0 ok %d" % number))
        assert len(relay.letters) == 10


# ---- servers that do not take it --------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 3, 10])
async def test_a_server_that_takes_nothing_behind_an_unanswered_dot(count: int) -> None:
    """Haraka answers 503 to all of it, RSET included: then every message goes on its own, and none twice."""
    relay = Relay(SHAPES["pipelining"], quick_tempered=True)
    async with relaying(relay), client(relay) as smtp:
        await smtp.ehlo()
        results = await asyncio.gather(*(smtp.sendmail(f"s{n}@x.example", WHO, b"hi") for n in range(count)))
        assert results == [{}] * count
        assert sorted(letter.sender for letter in relay.letters) == [f"s{n}@x.example" for n in range(count)]
        # It has learnt: no RSET any more, because nothing is written behind a dot.
        before = len(relay.commands)
        await asyncio.gather(*(smtp.sendmail(SENDER, WHO, b"hi") for _ in range(3)))
        assert relay.verbs[before:] == ["MAIL", "RCPT", "DATA"] * 3


@pytest.mark.virtual_clock
async def test_a_server_that_drops_what_comes_behind_an_unanswered_dot() -> None:
    """Courier does: what was dropped is not sent, and that is known long before RFC 5321's five minutes are over."""
    async with relaying(Relay(SHAPES["pipelining"], forgetful=True)) as relay:
        async with client(relay, timeout=asmtp.Timeouts()) as smtp:
            await smtp.ehlo()
            first, *others = await asyncio.gather(
                *(smtp.sendmail(f"s{n}@x.example", WHO, b"hi") for n in range(3)), return_exceptions=True
            )
            assert first == {}
            assert [type(error) for error in others] == [asmtp.SMTPTimeoutError] * 2
            assert {error.state for error in others if isinstance(error, asmtp.SMTPException)} == {"not_sent"}
            assert "with window=1 there are none" in str(others[0])
            assert 10 <= now() < 12
        async with client(relay, timeout=asmtp.Timeouts(), window=1) as smtp:
            assert await asyncio.gather(*(smtp.sendmail(SENDER, WHO, b"hi") for _ in range(3))) == [{}] * 3
        assert len(relay.letters) == 4


@pytest.mark.virtual_clock
async def test_and_a_mailer_sends_them_all() -> None:
    async with relaying(Relay(SHAPES["pipelining"], forgetful=True)) as relay:
        mailer = asmtp.AsyncMailer(f"smtp://127.0.0.1:{relay.port}", connections=2)
        async with mailer:
            receipts = await asyncio.gather(*(mailer.send(b"hi", f"s{n}@x.example", [WHO]) for n in range(40)))
        assert all(receipt.complete for receipt in receipts)
        assert len(relay.letters) == 40
        assert now() < 20


class Grudging:
    """Refuses RSET, and MAIL behind it."""

    refused = False

    def __call__(self, verb: str, line: str) -> str | None:
        answer = "502 no" if verb == "RSET" else "503 not now" if verb == "MAIL" and self.refused else None
        self.refused = verb == "RSET"
        return answer


@pytest.mark.parametrize("shape", ["pipelining", "both"])
async def test_a_server_that_never_takes_rset(shape: str) -> None:
    """Nothing can be sent safely any more: what was not begun is not sent, and the connection is closed."""
    async with relaying(Relay(SHAPES[shape], answer=Grudging())) as relay, client(relay) as smtp:
        await smtp.ehlo()
        first, second = await asyncio.gather(
            *(smtp.sendmail(SENDER, WHO, b"hi") for _ in range(2)), return_exceptions=True
        )
        assert first == {}
        assert isinstance(second, asmtp.SMTPResponseException)
        assert (second.smtp_code, second.smtp_error, second.state) == (502, b"no", "not_sent")
        assert len(relay.letters) == 1
        assert not smtp.is_connected


@pytest.mark.parametrize(("shape", "state"), [("pipelining", "not_sent"), ("both", "in_doubt")])
async def test_a_server_that_refuses_rset_and_takes_the_rest(shape: str, state: str) -> None:
    """A message that the server takes then may be under another sender: it is never a success."""
    relay = Relay(SHAPES[shape], answer=lambda verb, line: "502 no" if verb == "RSET" else None)
    async with relaying(relay), client(relay) as smtp:
        await smtp.ehlo()
        first, second = await asyncio.gather(
            *(smtp.sendmail(SENDER, WHO, b"hi") for _ in range(2)), return_exceptions=True
        )
        assert first == {}
        assert isinstance(second, asmtp.SMTPProtocolError)
        assert second.state == state
        assert not smtp.is_connected


async def test_a_refusal_and_a_server_that_does_not_take_rset() -> None:
    answer: Any = lambda verb, line: "502 no" if verb == "RSET" else "550 no" if verb == "RCPT" else None  # noqa: E731
    async with relaying(Relay(SHAPES["both"], answer=answer)) as relay, client(relay) as smtp:
        with pytest.raises(asmtp.SMTPRecipientsRefused):
            await smtp.sendmail(SENDER, WHO, b"hi")
        assert not smtp.is_connected


@pytest.mark.parametrize("shape", ["pipelining", "both"])
async def test_a_thousand_recipients_and_a_server_that_waits_for_its_replies_to_be_read(shape: str) -> None:
    people = [f"recipient{number}.{'x' * 400}@y.example" for number in range(1000)]
    answer: Any = lambda verb, line: f"250 2.1.5 {line} ok" if verb == "RCPT" else None  # noqa: E731
    relay = Relay(SHAPES[shape], stalling=True, answer=answer)
    async with relaying(relay, send_buffer=1 << 12), client(relay) as smtp:
        assert await smtp.sendmail(SENDER, people, b"hi") == {}
        assert len(relay.letters[0].recipients) == 1000
        assert relay.stalls > 0


async def test_data_accepted_though_no_recipient_was() -> None:
    """RFC 2920 §3.1: a lone dot ends it; nothing is sent."""
    script = [
        send("220 hi"), expect("ehlo me.example"), send("250-hi", "250 PIPELINING"),
        expect("mail from:<a@x.example>", "rcpt to:<b@y.example>", "data"), send("250 ok", "550 no", "354 go on"),
        expect("."), send("554 no valid recipients"), expect("rset"), send("250 ok"), nothing_more,
    ]  # fmt: skip
    async with scripted(script) as server:
        smtp = client(server)
        await smtp.connect()
        with pytest.raises(asmtp.SMTPRecipientsRefused):
            await smtp.sendmail(SENDER, WHO, b"hi")
        await smtp.close()


@pytest.mark.parametrize("shape", ["pipelining", "both"])
async def test_the_server_goes_with_messages_under_way(shape: str) -> None:
    async with relaying(Relay(SHAPES[shape])) as relay:
        smtp = client(relay)
        await smtp.connect()
        await smtp.ehlo()
        relay.hold = 0
        tasks = [asyncio.create_task(smtp.sendmail(f"s{number}@x.example", WHO, b"hi")) for number in range(5)]
        await until(lambda: "RCPT" in relay.verbs)
        relay.drop()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        states = [getattr(result, "state", None) for result in results]
        assert all(isinstance(result, asmtp.SMTPServerDisconnected) for result in results)
        # What was written whole, the server may have; of the rest it cannot.
        assert states == (["in_doubt"] * 5 if shape == "both" else ["not_sent"] * 5)
        await smtp.close()


async def test_421_in_the_middle_of_the_line() -> None:
    """The first is sent, the second was answered 421, the third was not looked at."""

    def answer(verb: str, line: str) -> str | None:
        return "421 4.3.2 shutting down" if "s1@" in line else None

    async with relaying(Relay(SHAPES["both"], answer=answer)) as relay:
        smtp = client(relay)
        await smtp.connect()
        await smtp.ehlo()
        tasks = [smtp.sendmail(f"s{number}@x.example", WHO, b"hi") for number in range(3)]
        sent, refused, untouched = await asyncio.gather(*tasks, return_exceptions=True)
        assert sent == {}
        assert isinstance(refused, asmtp.SMTPException)
        assert refused.state == "refused"
        assert isinstance(untouched, asmtp.SMTPServerDisconnected)
        assert untouched.state == "not_sent"
        await smtp.close()
