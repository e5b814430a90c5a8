"""The fuzzing harness: every target runs, finds a defect that was planted for it, and can be replayed."""

from __future__ import annotations

import base64
import contextlib
import os
import re
import subprocess
import sys
from email.policy import EmailPolicy
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asmtp import url
from asmtp.cli.account import Account
from asmtp.pool import Pool
from asmtp.protocol import command, envelope, extensions, message, reply, sasl
from asmtp.protocol.content import ContentEncoder
from asmtp.protocol.exchange import Exchange
from asmtp.protocol.session import Session
from asmtp.protocol.transaction import Transaction

from .fuzz import __main__ as cli
from .fuzz import engine
from .fuzz.data import FuzzedData
from .fuzz.targets import TARGETS

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("name", list(TARGETS))
@settings(max_examples=25)
@given(data=st.binary(max_size=300))
def test_every_target_runs(name: str, data: bytes) -> None:
    TARGETS[name].run(FuzzedData(data))


def _forgetful(self: ContentEncoder, chunk: bytes) -> bytes:
    self._pending_cr = False
    return ENCODE(self, chunk)


def _cut(self: reply.ReplyReader, data: bytes) -> list[reply.Reply]:
    return FEED(self, data[:-1] if len(data) == 7 else data)


def _twice(self: Session, exchange: Exchange) -> None:
    FINISH(self, exchange)
    if exchange.owner is not None and exchange.error is not None:
        self.notify(exchange)


def _short(self: EmailPolicy, name: str, value: str) -> bytes:
    return f"{name}: {value}{self.linesep}".encode("ascii", "replace")


def _nothing(*args: Any) -> None:
    pass


ENCODE = ContentEncoder.encode
FEED = reply.ReplyReader.feed
FINISH = Session._finish
CODES = {**reply._CODES, b"600": 600}
LONG_STATUS = re.compile(rb"^([245]\.[0-9]+\.[0-9]+)(?![^ \t])", re.MULTILINE)

# The target that shall find it, and what is patched with what.
PLANTED: dict[str, tuple[str, Any, str, Any]] = {
    "a code over the range": ("reply", reply, "_CODES", CODES),
    "an octet lost between two feeds": ("reply", reply.ReplyReader, "feed", _cut),
    "a status of four digits": ("status", reply, "_ENHANCED", LONG_STATUS),
    "a limit of zero": ("ehlo", extensions, "_LIMIT", re.compile("[0-9]{1,6}")),
    "a CR forgotten between two chunks": ("content", ContentEncoder, "encode", _forgetful),
    "an address that is a parameter, too": ("envelope", envelope, "_PLAIN", re.compile("[^\r\n]*")),
    "a control in a command": ("commands", command, "_CONTROL", re.compile("[\r\n]")),
    "line ends in base64": ("sasl", sasl, "_base64", base64.encodebytes),
    "no end of challenges": ("sasl", sasl, "MAX_CHALLENGES", 1000),
    "an error that quotes the URL": ("url", url, "_split", urlsplit),
    "a doubt forgotten": ("journal", Account, "_doubt", _nothing),
    "a field that is not folded": ("message", message._QuickPolicy, "fold_binary", _short),
    "no RSET where a transaction may be open": ("session", Session, "settled", property(lambda self: True)),
    "a doubt denied": ("session", Transaction, "state", property(lambda self: "not_sent")),
    "somebody told twice": ("session", Session, "_finish", _twice),
    "a cancellation not noticed": ("session", Session, "cancel", _nothing),
    "written to what is closed": ("session", Session, "_drop_output", _nothing),
    "a reply too much taken for none": ("liar", Session, "_unasked", _nothing),
    "sent in spite of a refused envelope": ("liar", Transaction, "_accepted", lambda self: True),
    "a connection that nobody sees to": ("mailing", Pool, "_care", _nothing),
}


def test_there_is_a_defect_for_each_target() -> None:
    assert {name for name, *_ in PLANTED.values()} == set(TARGETS)


@pytest.mark.parametrize("planted", list(PLANTED))
def test_a_planted_defect_is_found_and_replayed(planted: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    name, where, what, instead = PLANTED[planted]
    target = TARGETS[name]
    with monkeypatch.context() as patch:
        patch.setattr(reply, "_SEEN", {})
        patch.setattr(where, what, instead)
        failure = engine.fuzz(target, seed=0, runs=target.quick).failure
        assert failure is not None
        assert len(failure.data) <= 100, "not made small"
        file = failure.save(tmp_path)
        again = engine.attempt(target, file.read_bytes())
        assert again is not None
        assert again.place == failure.place
    assert engine.attempt(target, file.read_bytes()) is None


def test_the_same_seed_makes_the_same_inputs() -> None:
    seen: dict[int, list[bytes]] = {}
    for number, seed in enumerate([1, 1, 2]):
        inputs = seen[number] = []
        watched = engine.Target("watched", lambda data, inputs=inputs: inputs.append(data.octets(1000)), 1, 1000)
        engine.fuzz(watched, seed=seed, runs=50)
    assert seen[0] == seen[1] != seen[2]
    assert {len(data) > 500 for data in seen[0]} == {True, False}


def test_choices_come_to_an_end() -> None:
    data = FuzzedData(b"\x05")
    assert [data.below(10), data.between(3, 9), data.flag(), data.pick("ab"), data.text("ab", 9)] == [
        5,
        3,
        False,
        "a",
        "",
    ]
    assert data.octets(5) == b""
    assert not data.left


@given(st.binary(), st.binary(max_size=20))
def test_pieces_are_the_whole(octets: bytes, whole: bytes) -> None:
    assert b"".join(FuzzedData(octets).pieces(whole)) == whole


def command_line(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.fuzz", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_the_command_line(tmp_path: Path) -> None:
    listed = command_line("--list")
    assert [line.split()[0] for line in listed.stdout.splitlines()] == list(TARGETS)
    done = command_line("commands", "status", "--seconds", "0.2", "--random", "--seed", "5", "--folder", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert re.findall(r"^(\w+) +\d+ runs in +[\d.]+ s, seed 5: passed$", done.stdout, re.MULTILINE) == [
        "commands",
        "status",
    ]
    file = tmp_path / "input"
    file.write_bytes(b"some octets")
    assert command_line("reply", "--replay", str(file)).stdout == "reply: passes\n"
    assert command_line("reply", "status", "--replay", str(file)).returncode == 2
    assert command_line("nothing").returncode == 2


def test_a_failure_does_not_stop_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begun: list[str] = []

    def run(words: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        begun.append(words[-1])
        return subprocess.CompletedProcess(words, len(begun) % 2, f"{words[-1]} runs in no time\n", "noise\n")

    monkeypatch.setattr(sys, "argv", ["fuzz", "--quick"])
    monkeypatch.setattr(subprocess, "run", run)
    assert cli.main() == 1
    assert set(begun) == set(TARGETS)
    assert "noise" not in (shown := capsys.readouterr().out)
    assert len(shown.splitlines()) == len(TARGETS)


def test_a_failure_is_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(command, "_CONTROL", re.compile("[\r\n]"))
    folder = ["--folder", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["fuzz", "commands", "--seconds", "60", "--seed", "0", "--random", *folder])
    monkeypatch.setattr(engine, "limited", contextlib.nullcontext)
    assert cli.main() == 1
    shown = capsys.readouterr().out
    assert "FAILED" in shown
    assert "AssertionError: a control character" in shown
    [file] = (tmp_path / "failures").iterdir()
    assert f"python -m tests.fuzz commands --replay {os.path.relpath(file)}" in shown
    monkeypatch.setattr(sys, "argv", ["fuzz", "commands", "--replay", str(file)])
    assert cli.main() == 1
    assert "AssertionError: a control character" in capsys.readouterr().out
