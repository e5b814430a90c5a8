"""Runs a target over many inputs, and makes the input of a failure small."""

from __future__ import annotations

import contextlib
import hashlib
import random
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from tests.fuzz.data import FuzzedData

__all__ = ["Failure", "Result", "Target", "attempt", "fuzz", "smallest"]

LONGEST = 20
"""Seconds that one input may take before it is a failure."""


@dataclass(frozen=True)
class Target:
    """A function that is fuzzed.

    Attributes:
        run: raises, AssertionError as a rule, where something is wrong.
        quick: the number of inputs in quick mode.
        size: the longest input, in octets.
    """

    name: str
    run: Callable[[FuzzedData], None]
    quick: int
    size: int

    @property
    def what(self) -> str:
        """The first line of what it says of itself."""
        return (self.run.__doc__ or "").strip().splitlines()[0]


@dataclass(frozen=True)
class Failure:
    """An input for which a target fails."""

    target: str
    data: bytes
    error: BaseException

    @property
    def place(self) -> tuple[str, str, int]:
        """Which failure it is: the exception's type, and where it was raised."""
        frame = traceback.extract_tb(self.error.__traceback__)[-1]
        return type(self.error).__name__, frame.filename, frame.lineno or 0

    def save(self, folder: Path) -> Path:
        """Write the input to a file, for a replay."""
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{self.target}-{hashlib.sha256(self.data).hexdigest()[:12]}"
        file.write_bytes(self.data)
        return file

    def __str__(self) -> str:
        return "".join(traceback.format_exception(self.error))


@dataclass(frozen=True)
class Result:
    """The result of a run."""

    runs: int
    seconds: float
    failure: Failure | None


def attempt(target: Target, data: bytes) -> Failure | None:
    """Run a target on one input."""
    try:
        target.run(FuzzedData(data))
    except Exception as error:
        return Failure(target.name, data, error)
    return None


def fuzz(target: Target, *, seed: int, runs: int | None = None, seconds: float | None = None) -> Result:
    """Run a target on random inputs until one fails, or so many were run, or so many seconds have passed.

    The same seed makes the same inputs.
    """
    begun = time.monotonic()
    generator = random.Random(f"{seed} {target.name}")
    done = 0
    while (runs is None or done < runs) and (seconds is None or time.monotonic() - begun < seconds):
        share = generator.random()  # of the longest; every second one is short
        data = generator.randbytes(int(target.size * share if done % 2 else target.size**share))
        failure = attempt(target, data)
        done += 1
        if failure is not None:
            return Result(done, time.monotonic() - begun, smallest(target, failure))
    return Result(done, time.monotonic() - begun, None)


def smallest(target: Target, failure: Failure, attempts: int = 3000) -> Failure:
    """A small input that fails in the same place: octets are left out, then made 0."""
    best = [failure]
    before = b""
    while before != best[-1].data:
        before = best[-1].data
        for candidate in _smaller(lambda: best[-1].data):
            if attempts <= 0:
                break
            attempts -= 1
            found = attempt(target, candidate)
            if found is not None and found.place == failure.place:
                best.append(found)
    return best[-1]


def _smaller(current: Callable[[], bytes]) -> Iterator[bytes]:
    """Inputs simpler than the current one, which is another when one of them fails too."""
    width = len(current())
    while width:
        start = 0
        while start < len(data := current()):
            yield data[:start] + data[start + width :]
            if current() is data:
                start += width
        width //= 2
    for place in range(len(current())):
        for halved in (False, True):
            data = current()
            if data[place]:
                yield data[:place] + bytes([data[place] // 2 * halved]) + data[place + 1 :]


@contextlib.contextmanager
def limited(target: Target) -> Iterator[Target]:
    """A target whose runs are interrupted, and fail, where they take too long; on Unix, in the main thread."""

    def late(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"more than {LONGEST} seconds")

    def run(data: FuzzedData) -> None:
        signal.alarm(LONGEST)
        try:
            target.run(data)
        finally:
            signal.alarm(0)

    if not hasattr(signal, "alarm"):
        yield target
        return
    before = signal.signal(signal.SIGALRM, late)
    try:
        run.__doc__ = target.run.__doc__
        yield Target(target.name, run, target.quick, target.size)
    finally:
        signal.signal(signal.SIGALRM, before)
