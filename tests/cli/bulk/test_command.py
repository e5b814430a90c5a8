"""asmtp bulk: what it sends, what it tells, and how it stops."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import functools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import asmtp
from asmtp.cli import main
from asmtp.cli.bulk import command as bulk_module, sending as sending_module
from asmtp.cli.bulk.account import Outcome, Standing, outcomes_of
from asmtp.cli.bulk.journal import Journal
from asmtp.cli.bulk.sending import Sending
from asmtp.cli.bulk.sources import Sources
from asmtp.cli.bulk.tally import Tally, tell
from asmtp.cli.bulk.watching import Watching
from asmtp.cli.demo.server import Inbox, serving
from asmtp.mailer.delivery import FailedDelivery, Receipt
from asmtp.mailer.mailer import AsyncMailer
from asmtp.mailer.policy import Retry
from asmtp.mailer.rate import Rate
from asmtp.protocol.envelope import Envelope
from asmtp.protocol.reply import Reply
from tests.fakes.relay import Relay, relaying

Answer = Callable[[str, str], str | None]


def fill(folder: Path, count: int, **headers: str) -> None:
    for number in range(count):
        fields = {"From": f"a{number}@x.example", "To": f"b{number}@x.example", "Subject": f"{number}"} | headers
        header = "".join(f"{name}: {value}\n" for name, value in fields.items())
        (folder / f"{number:03}.eml").write_text(f"{header}\nletter {number}\n")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "letters"
    made.mkdir()
    return made


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "journal")


class Bench:
    """A Sending, and the journal and tally that it keeps its account in."""

    def __init__(self, relay: Relay | int, folder: Path, path: str | None, options: dict[str, Any]) -> None:
        port = relay if isinstance(relay, int) else relay.port
        self.tally = Tally()
        self.path = path
        self.journal = Journal.open(path) if path else Journal()
        self.said: list[str] = []
        mine = {name: options.pop(name) for name in ("again", "ahead") if name in options}
        options = {"retry": None, "local_hostname": "me.example"} | options
        mailer = AsyncMailer(f"smtp://127.0.0.1:{port}", **options)
        self.sending = Sending(mailer, Sources([str(folder)]), self.journal, self.tally, **mine)
        self.sending.say = self.said.append

    def records(self) -> list[dict[str, Any]]:
        assert self.path is not None
        return [json.loads(line) for line in Path(self.path).read_bytes().splitlines()[1:]]

    def outcomes(self) -> dict[str, Outcome]:
        """Return the outcome of each recipient, as the journal has it."""
        found = {who: Outcome(*o) for r in self.records() if "ended" in r for who, o in r["to"].items()}
        begun = {who for record in self.records() if "begun" in record for who in record["to"]}
        assert found.keys() <= begun
        return found


@contextlib.asynccontextmanager
async def bench(relay: Relay | int, folder: Path, path: str | None = None, **options: Any) -> AsyncIterator[Bench]:
    made = await asyncio.to_thread(Bench, relay, folder, path, options)
    try:
        yield made
    finally:
        made.journal.close()


async def sources(*paths: Path, **options: Any) -> Sources:
    return await asyncio.to_thread(Sources, [str(path) for path in paths], **options)


def answering(**answers: str) -> Answer:
    """Return an `answer` for lines that hold these words."""
    return lambda verb, line: next((answer for word, answer in answers.items() if word in line), None)


# ---- sending ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [True, False])
async def test_everything_is_sent(folder: Path, path: str, kept: bool) -> None:
    fill(folder, 150, Bcc="c@x.example")
    size = await asyncio.to_thread((await sources(folder)).octets)
    async with relaying(Relay(offers=("PIPELINING", "CHUNKING"))) as relay:
        async with bench(relay, folder, path if kept else None) as it:
            await it.sending.run()
            assert it.tally.counts == {"sent": 150, "refused": 0, "not_sent": 0, "in_doubt": 0}
            assert it.tally.complete
            assert it.tally.stopped == ""
            assert it.tally.octets == size
            assert it.journal.doubtful == {}
            if kept:
                assert len(it.outcomes()) == 151
                assert set(it.outcomes().values()) == {Outcome("sent", 250, "2.0.0 taken")}
        letters = {letter.sender: letter for letter in relay.letters}
        assert len(relay.letters) == len(letters) == 150
        assert letters["a7@x.example"].recipients == ["b7@x.example", "c@x.example"]
        expected = "From: a7@x.example\r\nTo: b7@x.example\r\nSubject: 7\r\n\r\nletter 7\r\n"
        assert letters["a7@x.example"].content == expected.encode()


async def test_a_message_is_durably_begun_before_it_is_sent(
    folder: Path, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(folder, 100)
    durable = b""
    original = os.fsync

    def fsync(file: int) -> None:
        nonlocal durable
        original(file)
        with contextlib.suppress(FileNotFoundError):
            durable = Path(path).read_bytes()

    def answer(verb: str, line: str) -> str | None:
        if verb == "RCPT":
            assert f'["{line[9:-1]}"]'.encode() in durable
        return None

    monkeypatch.setattr(os, "fsync", fsync)
    async with relaying(Relay(offers=("PIPELINING",), answer=answer)) as relay, bench(relay, folder, path) as it:
        await it.sending.run()
        assert it.tally.counts["sent"] == 100


async def test_a_large_file_is_streamed(folder: Path, path: str) -> None:
    body = b"".join(b"%075d\r\n" % number for number in range(20000))
    header = b"From: a@x.example\r\nTo: b@x.example\r\n\r\n"
    (folder / "1.eml").write_bytes(header + body)
    (folder / "2.eml").write_bytes(b"Bcc: c@x.example\r\n" + header + body)
    async with relaying(Relay(offers=("CHUNKING",))) as relay, bench(relay, folder, path) as it:
        await it.sending.run()
        assert [letter.content == header + body for letter in relay.letters] == [True, True]


async def test_outcomes_are_recorded(folder: Path, path: str) -> None:
    fill(folder, 10, Cc="everyone@x.example")
    (folder / "bad.eml").write_bytes(b"no message\n")
    answers = answering(**{
        "<b1@": "550 5.1.1 no such user",
        "<b2@": "450 4.7.1 later",
        "<a3@": "553 5.1.8 who are you",
        "letter 4\r\n": "554 5.6.0 spam",
        "letter 5\r\n": "451 4.3.0 full",
    })  # fmt: skip
    async with relaying(Relay(answer=answers)) as relay:
        async with bench(relay, folder, path) as it:
            await it.sending.run()
            assert it.tally.counts == {"sent": 7, "refused": 3, "not_sent": 0, "in_doubt": 0}
            assert it.tally.unreadable == 1
            assert not it.tally.complete
            assert it.tally.recipients_refused == 8
            assert it.tally.kinds.keys() == {
                "unreadable", "550 5.1.1", "450 4.7.1", "553 5.1.8", "554 5.6.0", "451 4.3.0"
            }  # fmt: skip
            assert it.said[0] == f"refused: {folder}/001.eml: b1@x.example: 550 5.1.1 no such user"
            assert len(it.said) == 8
            found = it.outcomes()
            assert found["b0@x.example"] == Outcome("sent", 250, "2.0.0 taken")
            assert found["b1@x.example"] == Outcome("refused", 550, "5.1.1 no such user")
            assert found["b3@x.example"] == Outcome("refused", 553, "5.1.8 who are you")
            assert found["b4@x.example"] == Outcome("refused", 554, "5.6.0 spam")
        # What was refused for now is sent to those, and nobody else.
        relay.letters.clear()
        relay.answer = lambda verb, line: None
        async with bench(relay, folder, path) as it:
            await it.sending.run()
            assert {tuple(letter.recipients) for letter in relay.letters} == {
                ("b2@x.example",), ("b5@x.example", "everyone@x.example"),
            }  # fmt: skip
            assert it.tally.before == {"sent": 5, "refused": 3, "in_doubt": 0, "twice": 0}
            assert not it.tally.complete


async def test_what_is_in_doubt(folder: Path, path: str) -> None:
    fill(folder, 3)

    def answer(verb: str, line: str) -> str | None:
        if verb == "." and "letter 1" in line:
            for conversation in relay.connections:
                conversation.kill()
        return None

    async with relaying(Relay(answer=answer)) as relay:
        async with bench(relay, folder, path, connections=1) as it:
            await it.sending.run()
            assert it.tally.counts == {"sent": 2, "refused": 0, "not_sent": 0, "in_doubt": 1}
            assert [*it.journal.doubtful.values()] == [["b1@x.example"]]
            assert it.outcomes()["b1@x.example"].state == "in_doubt"
        relay.answer = lambda verb, line: None
        relay.letters.clear()
        async with bench(relay, folder, path) as it:
            await it.sending.run()
            assert it.tally.before == {"sent": 2, "refused": 0, "in_doubt": 1, "twice": 0}
            assert not it.tally.complete
            assert relay.letters == []
        async with bench(relay, folder, path, again=True) as it:
            await it.sending.run()
            assert [letter.recipients for letter in relay.letters] == [["b1@x.example"]]
            assert it.tally.complete
            assert it.journal.doubtful == {}


async def test_those_left_of_a_message_in_doubt(folder: Path, path: str) -> None:
    fill(folder, 1)
    async with relaying(Relay()) as relay:
        async with bench(relay, folder, path) as it:
            (item,) = await asyncio.to_thread(list, await sources(folder))
            it.journal.begun(item.key, ["b0@x.example"])
            await asyncio.to_thread(it.journal.write, it.journal.take())
        fill(folder, 1)
        async with bench(relay, folder, path) as it:
            it.sending._items = iter(await sources(folder, recipients=["b0@x.example", "new@x.example"]))
            await it.sending.run()
            assert [letter.recipients for letter in relay.letters] == [["new@x.example"]]
            assert it.tally.counts["sent"] == 1
            assert not it.tally.complete


async def test_what_is_given_twice_is_sent_once(folder: Path, path: str) -> None:
    fill(folder, 2)
    async with relaying(Relay()) as relay, bench(relay, folder) as it:
        it.sending._items = iter(await sources(folder / "001.eml", folder, folder))
        await it.sending.run()
        assert len(relay.letters) == 2
        assert sum(it.tally.before.values()) == 3


# ---- stopping -----------------------------------------------------------------------------------


@pytest.fixture
def shut_port() -> Iterator[int]:
    """Yield a port on which no server can listen: the test has bound it."""
    with socket.socket() as mine:
        mine.bind(("127.0.0.1", 0))
        yield mine.getsockname()[1]


@pytest.mark.sampled
async def test_no_server(folder: Path, path: str, shut_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending_module, "HOPELESS", 20)
    fill(folder, 100)
    async with bench(shut_port, folder, path, connections=1, window=5) as it:
        await it.sending.run()
        assert it.tally.stopped == "20 messages one after the other came to nothing"
        assert it.tally.counts["not_sent"] >= 20
        assert {outcome.state for outcome in it.outcomes().values()} == {"not_sent"}
        begun = sum("begun" in record for record in it.records())
        assert it.tally.counts["not_sent"] <= begun < 100
        assert sum("ended" in record for record in it.records()) == begun
    async with relaying(Relay()) as relay, bench(relay, folder, path) as it:
        await it.sending.run()
        assert it.tally.counts["sent"] == 100


async def test_messages_that_are_to_blame_are_no_reason_to_stop(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending_module, "HOPELESS", 2)
    fill(folder, 10, To="j\xf6rg@x.example")
    async with relaying(Relay(common=())) as relay, bench(relay, folder) as it:
        await it.sending.run()
        assert it.tally.stopped == ""
        assert it.tally.counts["not_sent"] == 10
        assert list(it.tally.kinds) == ["not supported by the server"]


async def test_a_file_that_is_gone(folder: Path, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending_module, "HOPELESS", 1)
    (folder / "1.eml").write_bytes(b"From: a@x.example\nTo: b@x.example\n\n" + b"x" * (2 << 20))
    original = sending_module._batch

    def batch(*arguments: Any) -> Any:
        read = original(*arguments)
        (folder / "1.eml").unlink(missing_ok=True)
        return read

    monkeypatch.setattr(sending_module, "_batch", batch)
    async with relaying(Relay()) as relay, bench(relay, folder, path) as it:
        await it.sending.run()
        assert it.tally.stopped == ""
        assert it.outcomes()["b@x.example"].text.startswith("cannot be read: ")


async def test_interrupted(folder: Path, path: str) -> None:
    """The messages in flight are finished, the others are not begun, and the next run knows which is which."""
    fill(folder, 200)
    async with relaying(Relay(offers=("PIPELINING", "CHUNKING"), hold=10)) as relay:
        async with bench(relay, folder, path, connections=1, window=10) as it:
            task = asyncio.create_task(it.sending.run())
            await relay.held.wait()
            it.sending.interrupt("enough")
            await asyncio.sleep(0)
            assert not task.done()
            relay.release()
            await task
            assert it.sending.interrupted
            assert it.tally.stopped == "enough"
            outcomes = it.outcomes()
            sent = {who for who, outcome in outcomes.items() if outcome.state == "sent"}
            assert sent == {recipient for letter in relay.letters for recipient in letter.recipients}
            assert 0 < len(sent) < 200
            assert {outcome.state for outcome in outcomes.values()} <= {"sent", "not_sent"}
            assert it.journal.abandon() == {}
        async with bench(relay, folder, path) as it:
            await it.sending.run()
            assert it.tally.complete
        assert len(relay.letters) == len({letter.sender for letter in relay.letters}) == 200


async def test_interrupted_twice(folder: Path, path: str) -> None:
    fill(folder, 200)
    async with (
        relaying(Relay(offers=("PIPELINING", "CHUNKING"), hold=10)) as relay,
        bench(relay, folder, path, connections=1, window=10) as it,
    ):
        task = asyncio.create_task(it.sending.run())
        await relay.held.wait()
        it.sending.interrupt("enough")
        it.sending.interrupt("enough!")
        await task
        assert it.tally.stopped == "enough"
        doubtful = {who for recipients in it.journal.abandon().values() for who in recipients}
        outcomes = it.outcomes()
        sent = {who for who, outcome in outcomes.items() if outcome.state == "sent"}
        assert doubtful == {who for who, outcome in outcomes.items() if outcome.state == "in_doubt"}
        assert doubtful
        taken = {recipient for letter in relay.letters for recipient in letter.recipients}
        assert sent <= taken <= sent | doubtful


@pytest.mark.parametrize("times", [1, 2])
async def test_interrupted_while_it_reads(folder: Path, path: str, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """It waits for the thread that reads, which may take its time; but not after a second signal."""
    fill(folder, 10)
    reading = asyncio.Event()
    go_on = threading.Event()
    loop = asyncio.get_running_loop()

    def read(self: Sources) -> Iterator[Any]:
        loop.call_soon_threadsafe(reading.set)
        go_on.wait(30)
        yield from ()

    monkeypatch.setattr(Sources, "__iter__", read)
    async with relaying(Relay()) as relay, bench(relay, folder, path) as it:
        task = asyncio.create_task(it.sending.run())
        await reading.wait()
        for _ in range(times):
            it.sending.interrupt("enough")
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        if times == 1:
            assert not task.done()
            go_on.set()
        await task
        assert relay.letters == []
        assert it.journal.abandon() == {}
        go_on.set()
        for left in asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait([left], timeout=30)


async def test_a_disk_that_is_full(folder: Path, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(folder, 100)
    original = os.fsync
    calls = 0

    def fsync(file: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 10:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(file)

    monkeypatch.setattr(os, "fsync", fsync)
    async with relaying(Relay()) as relay:
        async with bench(relay, folder, path) as it:
            await it.sending.run()
            assert "No space left" in it.tally.stopped
            assert it.tally.counts["sent"] == len(relay.letters) < 100
        async with bench(relay, folder, path) as it:
            await it.sending.run()
        assert len(relay.letters) == len({letter.sender for letter in relay.letters})
        # All that was sent is known, as there was space again in the end.
        assert calls > 10
        assert len(relay.letters) == 100


async def test_nothing_is_sent_that_is_not_known_to_be_begun(
    folder: Path, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(folder, 10)

    def fsync(file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async with relaying(Relay()) as relay:
        async with bench(relay, folder, path) as it:
            monkeypatch.setattr(os, "fsync", fsync)
            await it.sending.run()
            assert "No space left" in it.tally.stopped
            assert it.records() == []
            monkeypatch.undo()
        async with bench(relay, folder, path) as it:
            assert relay.letters == []
            await it.sending.run()
            assert len(relay.letters) == 10


async def test_a_disk_that_stays_full(folder: Path, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(folder, 100)
    original = os.fsync
    calls = 0

    def fsync(file: int) -> None:
        nonlocal calls
        calls += 1
        if calls >= 10:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(file)

    monkeypatch.setattr(os, "fsync", fsync)
    async with relaying(Relay()) as relay:
        async with bench(relay, folder, path) as it:
            await it.sending.run()
            assert "No space left" in it.tally.stopped
        monkeypatch.undo()
        async with bench(relay, folder, path) as it:
            await it.sending.run()
            doubtful = {who for recipients in it.journal.doubtful.values() for who in recipients}
        taken = [recipient for letter in relay.letters for recipient in letter.recipients]
        assert len(taken) == len(set(taken))
        assert {f"b{number}@x.example" for number in range(100)} - set(taken) <= doubtful


@pytest.mark.virtual_clock
async def test_little_is_begun_where_a_rate_holds_it_up(folder: Path, path: str) -> None:
    fill(folder, 30)
    most = 0

    def answer(verb: str, line: str) -> str | None:
        nonlocal most
        records = it.records()
        begun = sum("begun" in record for record in records)
        most = max(most, begun - len(relay.letters))
        return None

    async with (
        relaying(Relay(answer=answer)) as relay,
        bench(relay, folder, path, rate="1/s", ahead=bulk_module._ahead(Rate.of("1/s"))) as it,
    ):
        loop = asyncio.get_running_loop()
        began = loop.time()
        await it.sending.run()
        assert it.tally.counts["sent"] == 30
        assert 28 <= loop.time() - began <= 32
        # A few that wait in the mailer, and a batch.
        assert most <= 12


def test_how_much_waits() -> None:
    for rate, ahead in ((None, 32), ("1/s", 4), ("10/s", 20), ("1000/s", 32), ("600 recipients/min", 20)):
        assert bulk_module._ahead(None if rate is None else Rate.of(rate)) == ahead


# ---- outcomes -----------------------------------------------------------------------------------


def test_outcomes_of_a_message_that_took_several_transactions() -> None:
    lost = asmtp.SMTPServerDisconnected("gone")
    lost.state = "in_doubt"
    reply = Reply(250, b"2.0.0 queued as 7")
    receipt = Receipt(
        {"a": Reply(250, b"ok")},
        {"b": Reply(450, b"x" * 1000)},
        {"c": lost, "d": ValueError("no")},
        reply,
        "x:25",
        1,
        0,
        1,
    )
    envelope = Envelope("s", ["a", "b", "c", "d", "e"])
    assert outcomes_of(FailedDelivery(envelope, envelope, "in_doubt", receipt, lost), envelope.recipients) == {
        "a": Outcome("sent", 250, "2.0.0 queued as 7"),
        "b": Outcome("refused", 450, "x" * 500),
        "c": Outcome("in_doubt", None, "no connection: gone"),
        "d": Outcome("not_sent", None, "cannot be sent: no"),
        "e": Outcome("in_doubt", None, "no connection: gone"),
    }


def test_outcomes_of_a_connection_that_was_refused() -> None:
    error = asmtp.SMTPConnectError(421, b"4.3.2 busy")
    error.state = "not_sent"
    envelope = Envelope("s", ["a"])
    outcomes = outcomes_of(FailedDelivery(envelope, envelope, "not_sent", None, error), envelope.recipients)
    assert outcomes == {"a": Outcome("not_sent", 421, "4.3.2 busy")}


# ---- the tally ----------------------------------------------------------------------------------


def test_the_summary() -> None:
    now = [10.0]
    tally = Tally(lambda: now[0])
    assert tally.rate == 0
    sent = {"a@x": Outcome("sent", 250, "ok")}
    for _ in range(1998):
        tally.arrived("m", "sent", sent)
    tally.arrived("n", "sent", sent | {"b@x": Outcome("refused", 550, "5.1.1 none\nsuch")})
    tally.arrived("o", "not_sent", {"a@x": Outcome("not_sent", None, "no answer in time: too slow")})
    tally.broken("p", "bad")
    tally.skipped(Standing((), ("a",), (), (), ()))
    tally.skipped(Standing((), (), (), (), ("a",)))
    now[0] = 12.0
    assert tally.line() == ("1,999 sent, 1,000/s, 0 refused, 0 in doubt, 1 not sent, 1 unreadable, 2 seen to before")
    tally.stopped = "enough"
    assert (
        tally.text()
        == """\
2,000 messages in 2.0 s (1,000.0/s): 1,999 sent, 0 refused, 1 not sent, 0 in doubt
1 unreadable
According to the journal: 1 sent before, 0 refused before, 0 in doubt (not sent again), 1 given twice
1 recipient refused
  1 x 550 5.1.1, such as n: b@x: 550 5.1.1 none
such
  1 x no answer in time, such as o: a@x: no answer in time: too slow
  1 x unreadable, such as p: bad
Stopped before the end: enough"""
    )


def test_a_summary_of_many_errors_is_short() -> None:
    tally = Tally()
    for number in range(20):
        tally.arrived("m", "refused", {"a": Outcome("refused", 500 + number, "x" * 1000)})
    assert len(tally.text()) < 8 * 400
    assert "  and 12 other kinds of errors" in tally.text()


def test_listed_refusals_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asmtp.cli.bulk.tally.LISTED", 2)
    tally = Tally()
    for _ in range(5):
        tally.arrived("m", "refused", {"a": Outcome("refused", 550, "no")})
    told = json.loads(tally.json({str(number): ["a"] for number in range(5)}))
    assert told["recipients_refused"] == 5
    assert len(told["refusals"]) == len(told["doubtful"]) == 2


def test_what_is_told_is_printable(capsys: pytest.CaptureFixture[str]) -> None:
    tell("\x1b[2J\udcff\xe4\nb", sys.stdout)
    assert capsys.readouterr().out == "\\x1b[2J\\udcff\xe4\nb\n"


# ---- the command --------------------------------------------------------------------------------


@pytest.fixture
def inbox() -> Iterator[Inbox]:
    with serving(Inbox("PIPELINING", "CHUNKING")) as made:
        yield made


def url(inbox: Inbox) -> str:
    return f"smtp://127.0.0.1:{inbox.port}"


Captured = pytest.CaptureFixture[str]


def test_the_command(folder: Path, path: str, inbox: Inbox, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(folder, 3)
    monkeypatch.setenv("ASMTP_URL", url(inbox))
    assert main(["bulk", "--journal", path, str(folder)]) == 0
    output = capsys.readouterr()
    assert output.err == ""
    assert output.out.startswith("3 messages in 0.")
    assert output.out.endswith("/s): 3 sent, 0 refused, 0 not sent, 0 in doubt\n")
    assert main(["bulk", "--journal", path, str(folder)]) == 0
    assert "3 sent before" in capsys.readouterr().out
    assert len(inbox.letters) == 3


def test_refusals(folder: Path, inbox: Inbox, capsys: Captured) -> None:
    fill(folder, 2, Cc="nobody@x.example")
    assert main(["bulk", "--url", url(inbox), "--quiet", str(folder)]) == 1
    output = capsys.readouterr()
    assert sorted(output.err.splitlines()) == [
        f"refused: {folder}/00{number}.eml: nobody@x.example: 550 5.1.1 no such user" for number in range(2)
    ]
    assert "2 recipients refused\n" in output.out
    assert (
        main(["bulk", "--url", url(inbox), "--json", "--recipient", "nobody@x.example", str(folder / "000.eml")]) == 1
    )
    output = capsys.readouterr()
    assert output.err == ""
    told = json.loads(output.out)
    assert told["refusals"] == [
        {
            "message": f"{folder}/000.eml", "recipient": "nobody@x.example", "code": 550,
            "text": "5.1.1 no such user", "transient": False,
        }
    ]  # fmt: skip
    assert (told["messages"], told["sent"], told["refused"], told["stopped"]) == (1, 0, 1, None)


def test_envelopes_that_are_given(folder: Path, inbox: Inbox) -> None:
    fill(folder, 1)
    arguments = ["--sender", "s@x.example", "--recipient", "r@x.example", "--recipient", "t@x.example"]
    assert main(["bulk", "--quiet", "--url", url(inbox), *arguments, str(folder)]) == 0
    assert inbox.letters[0][:2] == ("s@x.example", ["r@x.example", "t@x.example"])


def test_in_doubt_is_listed(folder: Path, path: str, inbox: Inbox, capsys: Captured) -> None:
    fill(folder, 1)
    (item,) = Sources([str(folder)])
    journal = Journal.open(path)
    journal.begun(item.key, ["b0@x.example"])
    journal.write(journal.take())
    journal.close()
    arguments = ["bulk", "--url", url(inbox), "--journal", path, str(folder)]
    assert main(arguments) == 1
    output = capsys.readouterr()
    assert output.err == f"in doubt: {item.key} to b0@x.example\n"
    assert "1 in doubt (not sent again)" in output.out
    assert main([*arguments, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["doubtful"] == [{"message": item.key, "recipients": ["b0@x.example"]}]
    assert inbox.letters == []
    assert main([*arguments, "--retry-in-doubt"]) == 0
    assert len(inbox.letters) == 1


def test_dry_run(folder: Path, path: str, inbox: Inbox, capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ASMTP_URL", raising=False)
    fill(folder, 3, Cc="c@x.example")
    (folder / "bad.eml").write_bytes(b"")
    assert main(["bulk", "--url", url(inbox), "--journal", path, str(folder / "000.eml")]) == 0
    journal = Path(path).read_bytes()
    capsys.readouterr()
    assert main(["bulk", "--dry-run", "--journal", path, "--sender", "", str(folder), str(folder)]) == 1
    told = capsys.readouterr().out
    assert (
        told
        == f"""\
{folder}/001.eml: <> to b1@x.example, c@x.example, 73 octets
{folder}/002.eml: <> to b2@x.example, c@x.example, 73 octets
2 messages to 4 recipients would be sent
2 unreadable
According to the journal: 2 sent before, 0 refused before, 0 in doubt (not sent again), 2 given twice
  2 x unreadable, such as {folder}/bad.eml: no recipients
"""
    )
    assert main(["bulk", "--dry-run", "--json", "--url", "smtp://nowhere.invalid", str(folder / "000.eml")]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["messages"] == [
        {"message": f"{folder}/000.eml", "sender": "a0@x.example", "recipients": ["b0@x.example", "c@x.example"]}
    ]
    assert Path(path).read_bytes() == journal
    assert len(inbox.letters) == 1


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--url", "smtp://user:secret@ho st"], "URL: whitespace"),
        (["--url", "http://user:secret@host"], "URL: the scheme must be one of"),
        (["--url", "smtp://user:sec/ret@host"], "percent-encoded"),
        ([], "ASMTP_URL is not set"),
        (["--url", "smtp://h", "--rate", "fast"], "rate: not a rate"),
        (["--url", "smtp://h", "--timeout", "-1"], "timeout"),
        (["--url", "smtp://h", "--sender", "a, b"], "sender: more than one address"),
        (["--url", "smtp://h", "/no/such/path"], "/no/such/path: No such file or directory"),
        (["--url", "smtp://h", "smtp://user:secret@host"], "a PATH is a URL"),
        (["--url", "smtp://h", "--journal", "/no/such/journal"], "/no/such/journal: No such file or directory"),
        (["--url", "smtp://user:secret@h?tls=none"], ""),
        (["--sender", "smtp://u:secret@h"], "--sender: is a URL, which belongs behind --url"),
        (["--recipient", "smtp://u:secret@h"], "--recipient: is a URL"),
        (["--rate", "smtp://u:secret@h"], "--rate: is a URL"),
        (["--journal", "smtp://u:secret@h"], "--journal: is a URL"),
        (["--url-file", "smtp://u:secret@h"], "--url-file: is a URL"),
        (["--url", "smtp://u:secret@h", "--url-file", "/dev/null"], "--url and --url-file: only one"),
        (["--url-file", "/no/such/file"], "/no/such/file: No such file or directory"),
        (["--url-file", "/dev/null"], "/dev/null: no URL is in it"),
    ],
)
def test_what_cannot_be_run(
    folder: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch, arguments: list[str], error: str
) -> None:
    monkeypatch.delenv("ASMTP_URL", raising=False)
    if error:
        assert main(["bulk", str(folder), *arguments]) == 2
    else:
        main(["bulk", str(folder), *arguments])
    output = capsys.readouterr()
    assert "secret" not in output.out + output.err
    if error:
        assert output.err.startswith("asmtp bulk: ")
        assert error in output.err


@pytest.mark.parametrize("arguments", [["--ulr=smtp://u:secret@h"], ["x", "--ulr", "smtp://u:secret@h", "-q"]])
def test_arguments_that_there_are_not(capsys: Captured, arguments: list[str]) -> None:
    with pytest.raises(SystemExit):
        main(["bulk", "x.eml", *arguments])
    assert "secret" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["bulk", "x.eml", "--connections", "smtp://u:se cret@h"],
        ["bulk", "x.eml", "--retry=smtp://u:se cret@h"],
        ["bulk", "x.eml", "--timeout", "smtp://u:se cret@h"],
        ["bulk", "x.eml", "--json=smtp://u:se cret@h"],
        ["bulk", "x.eml", "--re=smtp://u:se cret@h"],
        ["smtp://u:se cret@h"],
    ],
)
def test_a_url_behind_a_wrong_option_is_not_shown(capsys: Captured, arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert "cret" not in told
    assert "(a URL, which is not shown)" in told


@pytest.mark.parametrize("more", [[], ["--dry-run"], ["--json"]])
def test_nothing_to_send(tmp_path: Path, capsys: Captured, more: list[str]) -> None:
    assert main(["bulk", str(tmp_path), "--url", "smtp://127.0.0.1:1", *more]) == 1
    assert "warning: there is no message at PATH" in capsys.readouterr().err


@pytest.mark.parametrize("written", ["\n {} \n", "\ufeff{}\r\n"], ids=["white space", "by a Windows editor"])
def test_a_file_with_the_url(written: str, folder: Path, inbox: Inbox, tmp_path: Path) -> None:
    fill(folder, 3)
    (tmp_path / "url").write_text(written.format(url(inbox)), encoding="utf-8")
    assert main(["bulk", str(folder), "--quiet", "--url-file", str(tmp_path / "url")]) == 0
    assert len(inbox.letters) == 3


async def test_a_signal_that_is_ignored_stays_so(folder: Path) -> None:
    """SIGHUP stays ignored if nohup has started the command."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        async with bench(1, folder) as it:
            with it.sending._signals():
                assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(("offers", "most"), [(("PIPELINING",), 3), ((), 3), (("PIPELINING", "CHUNKING"), 1000)])
async def test_no_more_is_begun_than_is_under_way(folder: Path, path: str, offers: tuple[str, ...], most: int) -> None:
    """After a crash, at whichever command, the messages without an outcome on the disk are in doubt."""
    fill(folder, 60)
    seen = 0

    def answer(verb: str, line: str) -> str | None:
        nonlocal seen
        begun = {record["begun"] for record in it.records() if "begun" in record}
        ended = {record["ended"] for record in it.records() if "ended" in record}
        seen = max(seen, len(begun - ended))
        return None

    async with relaying(Relay(offers, answer=answer)) as relay, bench(relay, folder, path, connections=2) as it:
        await it.sending.run()
        assert it.tally.counts["sent"] == 60
    assert 1 <= seen <= most


@pytest.mark.parametrize("arguments", [["--connections", "0"], ["--retry", "-1"], ["--retry", "x"], []])
def test_usage(capsys: Captured, arguments: list[str]) -> None:
    paths = ["x.eml"] if arguments else []
    with pytest.raises(SystemExit) as ended:
        main(["bulk", *arguments, *paths])
    assert ended.value.code == 2
    assert "usage: asmtp bulk" in capsys.readouterr().err


def test_a_journal_that_is_in_use(folder: Path, path: str, capsys: Captured) -> None:
    journal = Journal.open(path)
    assert main(["bulk", "--url", "smtp://h", "--journal", path, str(folder)]) == 2
    assert "another process is using this journal" in capsys.readouterr().err
    journal.close()


def test_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = argparse.Namespace(
        url=["smtp://h?timeout=5", "smtp://i"], timeout=7.0, retry=0, retry_in_doubt=True, connections=3
    )
    made: dict[str, Any] = {}
    monkeypatch.setattr(bulk_module, "AsyncMailer", lambda relays, **options: made.update(options, relays=relays))
    bulk_module._mailer(arguments, None, Watching())
    assert made["retry"] == Retry(attempts=1, in_doubt=True)
    assert made["connections"] == 3
    assert [relay.host for relay in made["relays"]] == ["h", "i"]
    assert {relay.timeouts for relay in made["relays"]} == {asmtp.Timeouts.of(7)}


def test_interrupted_before_it_begins(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(bulk_module, "Sources", interrupt)
    assert main(["bulk", str(folder)]) == 130


class Signalling(Inbox):
    """A server that sends its client a signal at the so-manieth message."""

    process: subprocess.Popen[str] | None = None
    signal: signal.Signals
    times = 1
    after = 20

    async def handle_DATA(self, *arguments: Any) -> str:
        reply = await super().handle_DATA(*arguments)
        if len(self.letters) == self.after and self.process is not None:
            for _ in range(self.times):
                self.process.send_signal(self.signal)
        return reply


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals(folder: Path, path: str, number: signal.Signals, request: pytest.FixtureRequest) -> None:
    fill(folder, 300)
    # The tests may run under nohup, and what is ignored here is ignored there.
    request.addfinalizer(functools.partial(signal.signal, number, signal.getsignal(number)))
    signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    with serving(Signalling("PIPELINING", "CHUNKING")) as inbox:
        assert isinstance(inbox, Signalling)
        inbox.signal = number
        server = f"{url(inbox)}?window=8"
        command = [sys.executable, "-m", "asmtp", "bulk", "--url", server, "--journal", path, str(folder)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            inbox.process = process
            out, err = process.communicate(timeout=60)
        assert process.returncode == 130, err
        assert f"Stopped before the end: interrupted by {number.name}" in out
        assert 20 <= len(inbox.letters) < 300
        inbox.process = None
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0
        assert "0 in doubt (not sent again)" in done.stdout
        assert len(inbox.letters) == len({letter.sender for letter in inbox.letters}) == 300


def test_an_interrupt(folder: Path, capsys: Captured) -> None:
    fill(folder, 300)

    class Rude(Inbox):
        async def handle_DATA(self, *arguments: Any) -> str:
            if len(self.letters) == 5:
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            return await super().handle_DATA(*arguments)

    with serving(Rude("PIPELINING", "CHUNKING")) as inbox:
        assert main(["bulk", "--quiet", "--json", "--url", f"{url(inbox)}?window=8", str(folder)]) == 130
        told = json.loads(capsys.readouterr().out)
        assert told["stopped"] == "interrupted by SIGINT"
        assert told["sent"] == len(inbox.letters) < 300
        assert told["doubtful"] == []


def test_a_reader_that_has_seen_enough(folder: Path) -> None:
    fill(folder, 300)
    command = [sys.executable, "-m", "asmtp", "bulk", "--dry-run", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(60) in (0, 1)  # 0 where all of it fitted into the pipe
