"""The lines that people see on stderr while asmtp bulk goes on."""

from __future__ import annotations

import io
import sys
import threading

import pytest

from asmtp.cli.bulk import progress as progress_module
from asmtp.cli.bulk.account import Outcome
from asmtp.cli.bulk.progress import Progress, _Bar, _display, _Lines
from asmtp.cli.bulk.tally import Tally


class Terminal(io.StringIO):
    """A stream that claims to be a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def tally() -> Tally:
    made = Tally(lambda: 0.0)
    made.arrived("m", "sent", {"a": Outcome("sent", 250, "ok")})
    made.octets = 50
    return made


def nothing() -> int:
    raise AssertionError("nobody asked")


def test_lines(tally: Tally) -> None:
    stream = io.StringIO()
    display = _display(stream, nothing, quiet=False)
    display.show(tally)
    display.say("refused: \x1b")
    display.close(tally)
    assert stream.getvalue() == "1 sent, 0/s, 0 refused, 0 in doubt, 0 not sent\nrefused: \\x1b\n"


def test_quiet(tally: Tally) -> None:
    stream = Terminal()
    display = _display(stream, nothing, quiet=True)
    display.show(tally)
    assert stream.getvalue() == ""
    display.say("refused")
    assert stream.getvalue() == "refused\n"


def test_a_bar(tally: Tally) -> None:
    pytest.importorskip("rich")
    stream = Terminal()
    display = _display(stream, lambda: 100, quiet=False)
    assert isinstance(display, _Bar)
    display.show(tally)
    display.say("refused: [bold]\x1b[2J")
    tally.octets = 100
    tally.counts["sent"] = 7
    display.close(tally)  # what came after the last look
    seen = stream.getvalue()
    assert "7 sent" in seen
    assert " 50%" in seen
    assert "100%" in seen
    assert "1 sent" in seen
    assert "refused: [bold]\\x1b[2J" in seen


def test_a_bar_for_nothing(tally: Tally) -> None:
    display = _display(Terminal(), lambda: 0, quiet=False)
    display.show(tally)
    display.close(tally)


def test_without_rich(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert isinstance(_display(Terminal(), nothing, quiet=False), _Lines)


def test_a_terminal_that_can_do_little(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(_display(Terminal(), nothing, quiet=False), _Lines)


class Watched(_Lines):
    """Tells that it was looked at."""

    def __init__(self, looks: int) -> None:
        super().__init__(io.StringIO())
        self.interval = 0.0
        self.looks = looks
        self.seen = threading.Event()
        self.lines: list[str] = []
        self.closed = False

    def show(self, tally: Tally) -> None:
        self.looks -= 1
        if self.looks == 0:
            self.seen.set()

    def say(self, line: str) -> None:
        self.lines.append(line)

    def close(self, tally: Tally) -> None:
        self.closed = True


def test_it_looks_again_and_again(tally: Tally, monkeypatch: pytest.MonkeyPatch) -> None:
    display = Watched(3)
    monkeypatch.setattr(progress_module, "_display", lambda *_, **__: display)
    with Progress(tally, nothing, io.StringIO()) as progress:
        progress.say("one")
        assert display.seen.wait(30)
        progress.say("two")
    assert display.lines == ["one", "two"]
    assert display.closed
