"""Fuzzing with Atheris, which looks for inputs that reach code not reached before."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import atheris  # type: ignore[import-untyped]

with atheris.instrument_imports(include=["asmtp"]):
    from tests.fuzz import targets  # noqa: F401  # and all of asmtp with it

from tests.fuzz.engine import LONGEST, Result, Target, attempt, smallest

__all__ = ["run"]


def run(
    target: Target, *, seed: int, seconds: float, folder: Path, report: Callable[[Result, str, Path, str], int]
) -> NoReturn:
    """Fuzz until an input fails or the time is over, report, and leave the process: libFuzzer does not return.

    Inputs that reached new code are kept in a folder, and are where the next run begins.
    """
    corpus = folder / "corpus" / target.name
    corpus.mkdir(parents=True, exist_ok=True)
    generator = random.Random(seed)
    for number in range(32 if not any(corpus.iterdir()) else 0):
        (corpus / str(number)).write_bytes(generator.randbytes(int(target.size ** generator.random())))
    begun = time.monotonic()
    done = 0

    def one(data: bytes) -> None:
        nonlocal done
        failure = attempt(target, data)
        done += 1
        passed = time.monotonic() - begun
        if failure is not None or passed > seconds:
            signal.setitimer(signal.ITIMER_REAL, 0)  # libFuzzer's, for -timeout: to make it small takes a while
            found = failure and smallest(target, failure)
            status = report(Result(done, passed, found), target.name, folder, "guided by coverage")
            os._exit(status)

    options = [f"-seed={seed % (1 << 31) + 1}", f"-max_len={target.size}", f"-timeout={LONGEST}"]
    options += [f"-artifact_prefix={folder}{os.sep}", "-len_control=0", "-verbosity=0"]
    with contextlib.suppress(SystemExit):
        atheris.Setup([sys.argv[0], *options, str(corpus)], one)
        atheris.Fuzz()
    os._exit(3)
