"""The journal of asmtp bulk: what survives, and what is made of it."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from asmtp.cli.bulk import journal as journal_module
from asmtp.cli.bulk.account import Account, Outcome
from asmtp.cli.bulk.journal import Journal, JournalError
from asmtp.cli.demo.server import Inbox, serving

SENT = Outcome("sent", 250, "2.0.0 taken")
REFUSED = Outcome("refused", 550, "5.1.1 no such user")
GREYLISTED = Outcome("refused", 450, "4.7.1 later")
NOT_SENT = Outcome("not_sent", None, "no connection: gone")
IN_DOUBT = Outcome("in_doubt", None, "no connection: gone")
HEADER = b'{"format": "asmtp bulk journal", "version": 1}\n'


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "journal")


@contextlib.contextmanager
def opened(path: str) -> Iterator[Journal]:
    with contextlib.closing(Journal.open(path)) as journal:
        yield journal


def write(journal: Journal) -> None:
    journal.write(journal.take())


# ---- what is known of a message -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcome", "name"),
    [(SENT, "sent"), (REFUSED, "refused"), (GREYLISTED, "left"), (NOT_SENT, "left"), (IN_DOUBT, "in_doubt")],
)
def test_outcomes(path: str, outcome: Outcome, name: str) -> None:
    with opened(path) as journal:
        assert journal.standing("k", ["a"]).left == ("a",)
        journal.begun("k", ["a"])
        assert journal.standing("k", ["a"]).under_way == ("a",)
        journal.ended("k", {"a": outcome})
        assert getattr(journal.standing("k", ["a"]), name) == ("a",)
        write(journal)
    with opened(path) as journal:
        assert getattr(journal.standing("k", ["a"]), name) == ("a",)
        assert journal.standing("other", ["a"]).left == ("a",)
        assert journal.doubtful == ({"k": ["a"]} if name == "in_doubt" else {})


def test_begun_without_outcome_is_in_doubt(path: str) -> None:
    with opened(path) as journal:
        journal.begun("k", ["a", "b"])
        write(journal)
    with opened(path) as journal:
        assert journal.standing("k", ["a", "b", "c"]) == (("c",), (), (), ("a", "b"), ())
        assert journal.doubtful == {"k": ["a", "b"]}


def test_each_recipient_has_an_outcome(path: str) -> None:
    with opened(path) as journal:
        journal.begun("k", ["a", "b", "c", "d"])
        journal.ended("k", {"a": SENT, "b": REFUSED, "c": GREYLISTED})
        assert journal.standing("k", "abcd") == (("c",), ("a",), ("b",), (), ("d",))
        write(journal)
    with opened(path) as journal:
        assert journal.standing("k", "abcd") == (("c",), ("a",), ("b",), ("d",), ())


@pytest.mark.parametrize("died", [True, False])
@pytest.mark.parametrize("outcome", [NOT_SENT, GREYLISTED, SENT, REFUSED])
def test_a_second_try_does_not_settle_what_became_of_the_first(path: str, outcome: Outcome, died: bool) -> None:
    with opened(path) as journal:
        journal.begun("k", ["a"])
        if not died:
            journal.ended("k", {"a": IN_DOUBT})
        write(journal)
    settled = not outcome.transient
    with opened(path) as journal:
        journal.begun("k", ["a"])
        journal.ended("k", {"a": outcome})
        assert bool(journal.standing("k", ["a"]).in_doubt) is not settled
        write(journal)
    with opened(path) as journal:
        assert bool(journal.standing("k", ["a"]).in_doubt) is not settled


@pytest.mark.parametrize("code", [530, 535])
def test_a_refusal_of_us_is_none_of_the_message(code: int) -> None:
    assert Outcome("refused", code).transient
    assert not Outcome("in_doubt", code).transient


def test_giving_up(path: str) -> None:
    account = Account()
    account.begun("k", ["b", "a"])
    assert account.abandon() == {"k": ["a", "b"]}
    assert account.standing("k", ["a"]).in_doubt == ("a",)


def test_without_a_file_nothing_is_noted() -> None:
    journal = Journal()
    journal.begun("k", ["a"])
    assert journal.take() == b""
    journal.write(b"")
    journal.close()


def test_names_may_be_anything(path: str) -> None:
    strange = "/tmp/\udcff \N{SNOWMAN}\n\x00"
    with opened(path) as journal:
        journal.begun(strange, ["j\xf6rg@example.com"])
        journal.ended(strange, {"j\xf6rg@example.com": SENT})
        write(journal)
    assert Path(path).read_bytes().isascii()
    with opened(path) as journal:
        assert journal.standing(strange, ["j\xf6rg@example.com"]).sent


# ---- the file -----------------------------------------------------------------------------------


def test_the_file_is_lines_of_json(path: str) -> None:
    with opened(path) as journal:
        journal.begun("k", ["a"])
        journal.ended("k", {"a": SENT})
        write(journal)
    header, begun, ended = map(json.loads, Path(path).read_text().splitlines())
    assert header == {"format": "asmtp bulk journal", "version": 1}
    assert begun == {"begun": "k", "at": pytest.approx(ended["at"], abs=60), "to": ["a"]}
    assert ended["to"] == {"a": ["sent", 250, "2.0.0 taken"]}
    assert os.stat(path).st_mode & 0o077 == 0  # it has addresses in it


def test_each_write_is_synchronized(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda file: sizes.append(os.fstat(file).st_size))
    with opened(path) as journal:
        assert sizes[0] == len(HEADER)
        assert len(sizes) == 2  # the folder, too
        journal.begun("k", ["a"])
        write(journal)
        assert sizes[2] == os.stat(path).st_size > len(HEADER)


def test_two_processes(path: str) -> None:
    with opened(path), pytest.raises(JournalError, match="another process is using this journal"):
        Journal.open(path)
    with opened(path):
        pass


def test_without_flock(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with pytest.raises(JournalError, match="flock"):
        Journal.open(path)


def test_reading_only(path: str) -> None:
    journal = Journal.open(path, read_only=True)
    assert not os.path.exists(path)
    with opened(path) as owner:
        owner.begun("k", ["a"])
        owner.begun("l", ["a"])
        octets = owner.take()[:-3]
        owner.write(octets)
        journal = Journal.open(path, read_only=True)
        assert journal.doubtful == {"k": ["a"]}
        journal.begun("m", ["a"])
        assert journal.take() == b""
        assert Path(path).read_bytes() == HEADER + octets


def test_a_torn_last_line_is_cut_off(path: str) -> None:
    with opened(path) as journal:
        journal.begun("k", ["a"])
        write(journal)
    whole = Path(path).read_bytes()
    for torn in (b'{"ended": "k", "to": {"a": ["sent"', b'{"begun": "l", "to": []}', b"\0\0\0"):
        Path(path).write_bytes(whole + torn)
        with opened(path) as journal:
            assert journal.doubtful == {"k": ["a"]}
            assert Path(path).read_bytes() == whole
            journal.ended("k", {"a": SENT})
            write(journal)
        with opened(path) as journal:
            assert journal.standing("k", ["a"]).sent


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\0\0\0",
        b"{",
        b"[]",
        b"{}",
        b'{"to": ["a"]}',
        b'{"begun": "k"}',
        b'{"begun": "k", "to": "a"}',
        b'{"begun": "k", "to": [1]}',
        b'{"begun": 1, "to": ["a"]}',
        b'{"begun": "k", "ended": "k", "to": ["a"]}',
        b'{"ended": "k", "to": ["a"]}',
        b'{"ended": "k", "to": {"a": 1}}',
        b'{"ended": "k", "to": {"a": ["lost", 250, ""]}}',
        b'{"ended": "k", "to": {"a": ["refused", "550", ""]}}',
        b'{"ended": "k", "to": {"a": ["sent", 250, "", ""]}}',
        b'{"ended": "\xff", "to": {}}',
    ],
)
def test_an_unreadable_line_is_named(path: str, line: bytes) -> None:
    octets = HEADER + b'{"begun": "k", "to": ["a"]}\n' + line + b"\n" + b'{"begun": "l", "to": ["a"]}\n'
    Path(path).write_bytes(octets)
    with pytest.raises(JournalError, match="line 3 is unreadable"):
        Journal.open(path)
    assert Path(path).read_bytes() == octets


@pytest.mark.parametrize("before", [b"", HEADER])
def test_a_line_that_is_nested_too_deep_is_unreadable(path: str, before: bytes) -> None:
    Path(path).write_bytes(before + b"[" * 100_000 + b"\n")
    with pytest.raises(JournalError):
        Journal.open(path)


@pytest.mark.parametrize("octets", [b"From a\n", b"{}\n", b"1\n", b"secret", b'{"format": "other", "version": 1}\n'])
def test_other_files_are_left_alone(path: str, octets: bytes) -> None:
    Path(path).write_bytes(octets)
    with pytest.raises(JournalError, match="not a journal"):
        Journal.open(path)
    assert Path(path).read_bytes() == octets


def test_versions(path: str) -> None:
    Path(path).write_bytes(HEADER.replace(b"1", b"2"))
    with pytest.raises(JournalError, match="version 2 of the journal; this asmtp knows 1"):
        Journal.open(path)
    Path(path).write_bytes(b'{"format": "asmtp bulk journal"}\n')
    with pytest.raises(JournalError, match="line 1 is unreadable"):
        Journal.open(path)


@pytest.mark.parametrize("size", [0, 1, 20])
def test_a_journal_that_had_just_begun(path: str, size: int) -> None:
    Path(path).write_bytes(HEADER[:size])
    with opened(path):
        assert Path(path).read_bytes() == HEADER


def test_places_where_no_journal_can_be(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="No such file"):
        Journal.open(str(tmp_path / "none" / "journal"))
    with pytest.raises(JournalError, match="directory"):
        Journal.open(str(tmp_path))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(JournalError, match="not a file"):
        Journal.open(str(tmp_path / "pipe"))


# ---- disks that are full ------------------------------------------------------------------------


class Disk:
    """A disk, as os.write and os.fsync see it: `room` octets fit."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.room = 1 << 20
        self.broken = False
        self._write, self._fsync = os.write, os.fsync
        monkeypatch.setattr(os, "write", self.write)
        monkeypatch.setattr(os, "fsync", self.fsync)

    def write(self, file: int, octets: bytes) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = self._write(file, octets[: self.room])
        self.room -= written
        return written

    def fsync(self, file: int) -> None:
        if self.broken:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self._fsync(file)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


@pytest.mark.parametrize("room", [0, 10])
def test_what_did_not_fit_is_written_later(path: str, disk: Disk, room: int) -> None:
    with opened(path) as journal:
        disk.room = room
        journal.begun("k", ["a"])
        with pytest.raises(JournalError, match="No space left"):
            write(journal)
        assert Path(path).read_bytes() == HEADER
        disk.room = 1000
        journal.ended("k", {"a": SENT})
        write(journal)
    with opened(path) as journal:
        assert journal.standing("k", ["a"]).sent == ("a",)
        assert Path(path).read_bytes().count(b"\n") == 3


def test_what_could_not_be_synchronized_is_written_anew(path: str, disk: Disk) -> None:
    with opened(path) as journal:
        disk.broken = True
        journal.begun("k", ["a"])
        with pytest.raises(JournalError, match="error"):
            write(journal)
        assert Path(path).read_bytes() == HEADER
        disk.broken = False
        write(journal)
        assert Path(path).read_bytes().count(b"\n") == 2


def test_a_file_that_cannot_be_repaired(path: str, disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    def ftruncate(file: int, size: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with opened(path) as journal:
        disk.room = 10
        monkeypatch.setattr(os, "ftruncate", ftruncate)
        journal.begun("k", ["a"])
        with pytest.raises(JournalError, match="No space left"):
            write(journal)
        disk.room = 1000
        with pytest.raises(JournalError, match="any more"):
            write(journal)
    monkeypatch.undo()
    with opened(path) as journal:
        assert journal.doubtful == {}


def test_a_folder_that_cannot_be_synchronized(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: str) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(journal_module, "_sync_folder", refuse)
    with opened(path):
        assert Path(path).read_bytes() == HEADER


# ---- crashes, simulated -------------------------------------------------------------------------

OUTCOMES = st.sampled_from([SENT, REFUSED, GREYLISTED, NOT_SENT, IN_DOUBT, None])
RECIPIENTS = ("a", "b", "c")


class World:
    """The true state of the messages, whatever the journal says."""

    def __init__(self) -> None:
        self.begun: set[tuple[str, str]] = set()
        self.got: Counter[tuple[str, str]] = Counter()
        self.refused: set[tuple[str, str]] = set()

    def send(self, key: str, left: tuple[str, ...], data: st.DataObject) -> dict[str, Outcome]:
        """Hand a message over; what the client is told of it."""
        outcomes: dict[str, Outcome] = {}
        for recipient in left:
            outcome = data.draw(OUTCOMES)
            self.begun.add((key, recipient))
            if outcome is SENT or (outcome in (IN_DOUBT, None) and data.draw(st.booleans())):
                self.got[key, recipient] += 1
            if outcome is REFUSED:
                self.refused.add((key, recipient))
            if outcome is not None:
                outcomes[recipient] = outcome
        return outcomes


def run(journal: Journal, world: World, data: st.DataObject) -> int:
    """Send six messages in three groups, or fewer; the octets that are durable when it ends."""
    durable = 0
    for group in (("k0", "k1"), ("k2",), ("k3", "k4", "k5"))[: data.draw(st.integers(1, 3))]:
        ready = [(key, left) for key in group if (left := journal.standing(key, RECIPIENTS).left)]
        for key, left in ready:
            journal.begun(key, left)
        write(journal)
        assert journal._file is not None
        durable = os.fstat(journal._file).st_size
        for key, left in ready:
            journal.ended(key, world.send(key, left, data))
    write(journal)
    return durable


@pytest.mark.long
@settings(max_examples=200)
@given(st.data())
def test_a_crash_at_any_octet_is_safe(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "journal")
        world = World()
        for _ in range(data.draw(st.integers(1, 4))):
            with opened(path) as journal:
                durable = run(journal, world, data)
            octets = Path(path).read_bytes()
            # A power cut may leave a part of what was not synchronized.
            kept = octets[: durable + int((len(octets) - durable) * data.draw(st.floats(0, 1)))]
            Path(path).write_bytes(kept)
            with opened(path) as journal:
                check(journal, world)
            assert kept.startswith(Path(path).read_bytes())


def check(journal: Journal, world: World) -> None:
    assert max(world.got.values(), default=0) <= 1  # nothing twice
    for key in (f"k{number}" for number in range(6)):
        standing = journal.standing(key, RECIPIENTS)
        assert not standing.under_way
        for recipient in standing.left:  # it will be sent again, so the server must not have it
            assert not world.got[key, recipient]
            assert (key, recipient) not in world.refused
        for recipient in standing.sent:  # it never will
            assert world.got[key, recipient]
        for recipient in standing.refused:
            assert (key, recipient) in world.refused
        for recipient in standing.in_doubt:
            assert (key, recipient) in world.begun


@settings(max_examples=300)
@given(st.integers(0, 2000))
def test_any_beginning_of_a_journal_can_be_read(size: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "journal")
        with opened(path) as journal:
            for number in range(10):
                journal.begun(f"k{number}", ["a", "b"])
                journal.ended(f"k{number}", {"a": SENT, "b": IN_DOUBT})
            write(journal)
        octets = Path(path).read_bytes()[:size]
        Path(path).write_bytes(octets)
        with opened(path) as journal:
            records = max(0, octets.count(b"\n") - 1)
            ended = records // 2
            for number in range(10):
                standing = journal.standing(f"k{number}", ["a", "b"])
                if number < ended:
                    assert standing == ((), ("a",), (), ("b",), ())
                elif number < records - ended:
                    assert standing.in_doubt == ("a", "b")
                else:
                    assert standing.left == ("a", "b")


# ---- crashes, real ------------------------------------------------------------------------------


class Executioner(Inbox):
    """A server that kills its client at the so-manieth command or message."""

    def __init__(self, *offers: str) -> None:
        super().__init__(*offers)
        self.fuse = 0
        self.process: subprocess.Popen[bytes] | None = None

    def strike(self) -> None:
        self.fuse -= 1
        if self.fuse == 0 and self.process is not None:
            self.process.send_signal(signal.SIGKILL)

    async def handle_RCPT(self, *arguments: Any) -> str:
        self.strike()
        return await super().handle_RCPT(*arguments)

    async def handle_DATA(self, *arguments: Any) -> str:
        self.strike()
        reply = await super().handle_DATA(*arguments)
        self.strike()
        return reply


MESSAGES = 400


def maildir(path: Path) -> None:
    for name in ("cur", "new", "tmp"):
        (path / name).mkdir(parents=True)
    for number in range(MESSAGES):
        text = f"From: a@example.com\nTo: b{number}@example.com, c{number}@example.com\nSubject: {number}\n\nhello\n"
        (path / "new" / f"{number:04}.host").write_text(text)


def bulk(port: int, *arguments: str) -> list[str]:
    url = f"smtp://127.0.0.1:{port}?window=8"
    return [sys.executable, "-m", "asmtp", "bulk", "--quiet", "--url", url, "--connections", "2", *arguments]


def started(inbox: Executioner, command: list[str]) -> int:
    """Run it to its end; its exit status."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        inbox.process = process
        try:
            return process.wait(60)
        finally:
            inbox.process = None
            process.kill()


def in_doubt_now(path: str) -> set[str]:
    """The messages that one who is told of a crash has to look for."""
    return set(Journal.open(path, read_only=True).doubtful) if Path(path).exists() else set()


def received(inbox: Inbox) -> Counter[str]:
    return Counter(recipient for letter in inbox.letters for recipient in letter.recipients)


@pytest.mark.long
@pytest.mark.parametrize("offers", [("PIPELINING", "CHUNKING"), ("PIPELINING",), ()])
def test_kill_minus_nine(tmp_path: Path, path: str, offers: tuple[str, ...]) -> None:
    box = tmp_path / "box"
    maildir(box)
    everyone = {f"{letter}{number}@example.com" for number in range(MESSAGES) for letter in "bc"}
    with serving(Executioner(*offers)) as inbox:
        assert isinstance(inbox, Executioner)
        command = bulk(inbox.port, "--journal", path, str(box))
        for kills in range(4):
            inbox.fuse = random.randrange(1, 300)
            if started(inbox, command) != -signal.SIGKILL:
                assert kills  # by now everything was begun
                break
            if "CHUNKING" not in offers:  # else there is a window of messages under way
                assert len(in_doubt_now(path)) <= 3 * (kills + 1)
            for file in sorted((box / "new").iterdir())[:20]:  # somebody reads his mail meanwhile
                file.rename(box / "cur" / f"{file.name}:2,S")
        inbox.fuse = 0
        status = started(inbox, command)
        counts = received(inbox)
        assert set(counts.values()) <= {1}  # nothing twice
        with opened(path) as journal:
            doubtful = {recipient for recipients in journal.doubtful.values() for recipient in recipients}
            sent = set()
            for line in Path(path).read_text().splitlines()[1:]:
                record = json.loads(line)
                if "ended" in record:
                    sent |= {who for who, outcome in record["to"].items() if outcome[0] == "sent"}
        assert sent <= counts.keys() <= sent | doubtful
        assert sent | doubtful == everyone  # nothing lost
        assert not sent & doubtful
        assert status == (1 if doubtful else 0)
        assert started(inbox, [*command, "--retry-in-doubt"]) == 0
        counts = received(inbox)
        assert counts.keys() == everyone
        assert {who for who, times in counts.items() if times > 1} <= doubtful
        assert started(inbox, command) == 0
        assert received(inbox) == counts
