"""Fuzzing of asmtp's parsers and of its protocol state: ``python -m tests.fuzz``.

    python -m tests.fuzz --list                        # the targets, and what each looks at
    python -m tests.fuzz --quick                       # all, some thousand inputs each, the same ones every time
    python -m tests.fuzz --seconds 3600 --jobs 2       # all, the time split evenly, two at once
    python -m tests.fuzz reply session --seconds 600   # two of them
    python -m tests.fuzz reply --replay FILE           # an input that failed

``pip install -e '.[test,fuzz]'`` for Atheris, which looks for inputs that reach new code, and keeps those between
runs; where it is not installed, and in quick mode, inputs are random.  An input for which a target fails is made small
and written to ``.fuzz/failures/``; the exit status is 1 then.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.fuzz import engine

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".fuzz"


def arguments() -> argparse.Namespace:
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m tests.fuzz", description=__doc__, formatter_class=layout)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="all, if none is named")
    parser.add_argument("--list", action="store_true", help="print the targets")
    parser.add_argument("--quick", action="store_true", help="few inputs, always the same, under 40 s")
    parser.add_argument("--seconds", type=float, default=60, metavar="N", help="for all targets together; 60")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="targets at once; 1")
    parser.add_argument("--seed", type=int, metavar="N", help="of random inputs; another one each time, if not given")
    parser.add_argument("--random", action="store_true", help="random inputs, where Atheris is installed, too")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="run one target on this input")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="for failures and for Atheris; .fuzz")
    return parser.parse_args()


def main() -> int:
    options = arguments()
    guided = not (options.random or options.quick or options.replay or options.list)
    guided = guided and importlib.util.find_spec("atheris") is not None
    if guided:
        from tests.fuzz import guided as atheris  # before anything of asmtp is imported
    from tests.fuzz.targets import TARGETS

    if options.list:
        for target in TARGETS.values():
            print(f"{target.name:10} {target.what}")
        return 0
    unknown = set(options.targets) - set(TARGETS)
    if unknown or (options.replay and len(options.targets) != 1):
        print(f"unknown: {', '.join(unknown)}" if unknown else "--replay is for one target", file=sys.stderr)
        return 2
    names = options.targets or list(TARGETS)
    if len(names) > 1:
        return several(names, options)
    target = TARGETS[names[0]]
    if options.replay:
        failure = engine.attempt(target, options.replay.read_bytes())
        print(failure or f"{target.name}: passes")
        return int(failure is not None)
    seed = 0 if options.quick else random.randrange(1 << 32) if options.seed is None else options.seed
    if guided:
        atheris.run(target, seed=seed, seconds=options.seconds, folder=options.folder, report=report)
    with engine.limited(target) as interrupted:
        runs, seconds = (target.quick, None) if options.quick else (None, options.seconds)
        result = engine.fuzz(interrupted, seed=seed, runs=runs, seconds=seconds)
    return report(result, target.name, options.folder, f"seed {seed}")


def report(result: engine.Result, name: str, folder: Path, how: str) -> int:
    """Say how it went; the exit status."""
    print(f"{name:10} {result.runs:9} runs in {result.seconds:6.1f} s, {how}: {told(result.failure)}", flush=True)
    if result.failure is None:
        return 0
    file = result.failure.save(folder / "failures")
    print(f"\n{result.failure}\n{len(result.failure.data)} octets: {result.failure.data.hex(' ')}")
    print(f"once more:  python -m tests.fuzz {name} --replay {os.path.relpath(file)}", flush=True)
    return 1


def told(failure: engine.Failure | None) -> str:
    return "passed" if failure is None else "FAILED"


def several(names: list[str], options: argparse.Namespace) -> int:
    """Each target in a process of its own: Atheris ends the one that it runs in."""
    jobs = max(options.jobs, 2 if options.quick else 1)
    words = [sys.executable, "-m", "tests.fuzz", "--seconds", str(options.seconds * jobs / len(names))]
    words += ["--folder", str(options.folder.absolute())]
    words += ["--quick"] * options.quick + ["--random"] * options.random
    words += [] if options.seed is None else ["--seed", str(options.seed)]

    def run(name: str) -> int:
        done = subprocess.run([*words, name], cwd=ROOT, capture_output=True, text=True, check=False)
        told = done.returncode == 0 or "runs in" in done.stdout
        sys.stdout.write(done.stdout if told else f"{name:10} failed to run\n{done.stdout}{done.stderr}")
        sys.stdout.flush()
        return done.returncode

    with ThreadPoolExecutor(jobs) as pool:
        statuses = list(pool.map(run, names))  # each of them, whatever became of the others
    return int(any(statuses))


if __name__ == "__main__":
    sys.exit(main())
