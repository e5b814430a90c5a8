"""Tells people on stderr how far ``asmtp bulk`` has come: a bar where rich is installed and they watch, else lines."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, Self, TextIO

from asmtp.cli.bulk.tally import Tally, shown, tell

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Progress"]


class _Display(Protocol):
    """A display of how far the run has come."""

    interval: float
    """Seconds between two looks."""

    def show(self, tally: Tally) -> None:
        """Show how far the run has come."""

    def say(self, line: str) -> None:
        """Print a line that stays."""

    def close(self, tally: Tally) -> None:
        """End the display: what is seen last is how the run ended."""


class _Lines:
    """A line every few seconds."""

    def __init__(self, stream: TextIO, *, quiet: bool = False) -> None:
        self.interval = 5.0
        self._stream = stream
        self._quiet = quiet

    def show(self, tally: Tally) -> None:
        if not self._quiet:
            tell(tally.line(), self._stream)

    def say(self, line: str) -> None:
        tell(line, self._stream)

    def close(self, tally: Tally) -> None:
        pass  # the summary follows


class _Bar:
    """A bar, by octets of the sources.

    Args:
        total: finds out how many there are.
    """

    def __init__(self, console: Console, total: Callable[[], int]) -> None:
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        self.interval = 0.2
        self._total = total
        columns = (BarColumn(), TaskProgressColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
        self._bar = Progress(
            *columns, console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False
        )
        self._task = self._bar.add_task("", total=None)
        self._bar.start()

    def show(self, tally: Tally) -> None:
        if self._bar.tasks[0].total is None:
            self._bar.update(self._task, total=self._total() or 1)
        self._bar.update(self._task, completed=tally.octets, description=tally.line())
        self._bar.refresh()

    def say(self, line: str) -> None:
        self._bar.console.print(shown(line), markup=False, highlight=False, soft_wrap=True)

    def close(self, tally: Tally) -> None:
        self.show(tally)
        self._bar.stop()


class Progress:
    """Looks at a tally now and then, in a thread of its own: a slow terminal does not hold up the sending.

    Args:
        total: finds out how many octets the sources have; may block.
        quiet: show no progress, only what is said.
    """

    def __init__(self, tally: Tally, total: Callable[[], int], stream: TextIO, *, quiet: bool = False) -> None:
        self._tally = tally
        self._display = _display(stream, total, quiet=quiet)
        self._said: deque[str] = deque()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="asmtp bulk progress", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def say(self, line: str) -> None:
        """Tell something that is not progress."""
        self._said.append(line)

    def _run(self) -> None:
        while not self._over.wait(self._display.interval):
            self._say()
            self._display.show(self._tally)
        self._say()
        self._display.close(self._tally)

    def _say(self) -> None:
        while self._said:
            self._display.say(self._said.popleft())


def _display(stream: TextIO, total: Callable[[], int], *, quiet: bool) -> _Display:
    if not quiet and stream.isatty():
        try:
            from rich.console import Console
        except ModuleNotFoundError:
            return _Lines(stream)
        console = Console(file=stream)
        if console.is_terminal and not console.is_dumb_terminal:
            return _Bar(console, total)
    return _Lines(stream, quiet=quiet)
