"""How long an import takes, in fresh interpreters, in turn; asmtp imports lazily, so its use is timed too."""

from __future__ import annotations

import statistics
import subprocess
import sys
from dataclasses import dataclass

from .clients import installed
from .servers import ROOT

STATEMENTS = {
    "import smtplib": "smtplib",
    "import asmtp": "asmtp",
    "import asmtp; asmtp.SMTP": "asmtp",
    "import asmtp; asmtp.AsyncSMTP": "asmtp",
    "import asyncio, smtplib": "smtplib",
    "import aiosmtplib": "aiosmtplib",
    "import smtpproto.client": "smtpproto.client",
}
BASE = "import smtplib"
TARGETS = {"import asmtp": 1.3}

TIMED = "import time; begin = time.perf_counter(); {}; print(time.perf_counter() - begin)"


@dataclass
class Imported:
    """The median of one statement in ms, None where it is not installed."""

    statement: str
    milliseconds: float | None
    ratio: float | None = None


def once(statement: str) -> float:
    command = [sys.executable, "-c", TIMED.format(statement)]
    return float(subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout) * 1000


def run(repetitions: int) -> list[Imported]:
    present = [statement for statement, module in STATEMENTS.items() if installed(module)]
    taken: dict[str, list[float]] = {statement: [] for statement in present}
    for statement in present:
        once(statement)  # the compiled files and the page cache
    for _ in range(repetitions):
        for statement in present:
            taken[statement].append(once(statement))
    base = statistics.median(taken[BASE])
    medians = {statement: statistics.median(values) for statement, values in taken.items()}
    return [Imported(x, medians.get(x), medians[x] / base if x in medians else None) for x in STATEMENTS]
