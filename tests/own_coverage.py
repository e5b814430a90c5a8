"""Each module is covered by its own tests, not by what happens to run through it.

Reads the data of a run under ``coverage run`` with test contexts (see pyproject.toml), counts for each module
of asmtp the lines that its own test modules ran, and fails where they are too few.

    coverage run -m pytest -n auto && coverage combine && python tests/own_coverage.py
"""

from __future__ import annotations

import sys
from pathlib import Path

from coverage import Coverage

ROOT = Path(__file__).parent.parent

# A module's tests are those of the test modules named after it; these are named otherwise.
OWN = {
    "asmtp/__init__.py": ("tests.test_init", "tests.test_sync"),
    "asmtp/__main__.py": ("tests.test_cli",),
    "asmtp/client/smtp.py": (
        "tests.test_client",
        "tests.test_cancellation",
        "tests.test_misbehaving",
        "tests.test_probing",
    ),
    "asmtp/client/commands.py": ("tests.test_client",),
    "asmtp/mailer/delivery.py": ("tests.test_delivery", "tests.test_mailer_deadlines"),
    "asmtp/mailer/connection.py": ("tests.test_lane", "tests.test_pool", "tests.test_probing"),
    "asmtp/mailer/mailer.py": ("tests.test_mailer",),
    "asmtp/mailer/queue.py": ("tests.test_mailer", "tests.test_limits"),
    "asmtp/mailer/pool.py": (
        "tests.test_pool",
        "tests.test_probing",
        "tests.test_limits",
        "tests.test_mailer_trouble",
        "tests.test_mailer_deadlines",
    ),
    "asmtp/protocol/dialogue.py": (
        "tests.protocol.test_dialogue",
        "tests.test_client_tls",
        "tests.test_client_login",
        "tests.test_client_requests",
    ),
    "asmtp/protocol/envelope.py": ("tests.protocol.test_envelope", "tests.protocol.test_parameters"),
    "asmtp/auth/mechanisms.py": (
        "tests.protocol.test_mechanisms",
        "tests.protocol.test_sasl",
        "tests.test_scram",
    ),
    "asmtp/protocol/exchange.py": ("tests.protocol.test_session", "tests.protocol.test_dialogue"),
    "asmtp/protocol/session.py": ("tests.protocol.test_session", "tests.protocol.test_dialogue"),
    "asmtp/transport/connection.py": ("tests.test_transport", "tests.test_cancellation", "tests.test_client_sending"),
    "asmtp/sync/smtp.py": ("tests.test_sync", "tests.test_steps"),
    "asmtp/mailer/bulk.py": ("tests.test_run", "tests.test_blocking", "tests.test_mailer_deadlines"),
    "asmtp/cli/__init__.py": ("tests.test_cli",),
    "asmtp/cli/demo/command.py": ("tests.test_cli",),
    "asmtp/cli/demo/server.py": ("tests.test_cli_server",),
    "asmtp/cli/bulk/account.py": ("tests.test_cli_journal", "tests.test_cli_bulk"),
    "asmtp/cli/bulk/command.py": ("tests.test_cli_bulk",),
    "asmtp/cli/bulk/journal.py": ("tests.test_cli_journal",),
    "asmtp/cli/bulk/progress.py": ("tests.test_cli_progress",),
    "asmtp/cli/bulk/sending.py": ("tests.test_cli_bulk",),
    "asmtp/cli/bulk/sources.py": ("tests.test_cli_sources",),
    "asmtp/cli/bulk/tally.py": ("tests.test_cli_bulk",),
    "asmtp/cli/bulk/watching.py": ("tests.test_cli_watching",),
    "asmtp/cli/bulk/wording.py": ("tests.test_cli_wording",),
}
# Runs in a process of its own.
ELSEWHERE = {"asmtp/__main__.py"}
NEEDED = 0.95


def own_tests(module: str) -> tuple[str, ...]:
    """The prefixes of the contexts that count for a module."""
    path = Path(module)
    package = ".".join(["tests", *path.parts[1:-1]])
    return OWN.get(module, (f"{package}.test_{path.stem}",))


def main() -> int:
    coverage = Coverage()
    coverage.load()
    data = coverage.get_data()
    failures = 0
    for path in sorted((ROOT / "asmtp").rglob("*.py")):
        module = path.relative_to(ROOT).as_posix()
        _, statements, _, _ = coverage.analysis(str(path))[:4]
        if not statements or module in ELSEWHERE:
            continue
        prefixes = own_tests(module)
        # The empty context is the import: definitions, which no test can be said to run.
        covered = {
            line
            for line, contexts in data.contexts_by_lineno(str(path)).items()
            if any(context == "" or context.startswith(prefixes) for context in contexts)
        }
        missing = [line for line in statements if line not in covered]
        share = 1 - len(missing) / len(statements)
        failed = share < NEEDED
        failures += failed
        shown = f"  lines {', '.join(map(str, missing))}" if missing else ""
        print(f"{'FAILED ' if failed else '       '}{share:6.1%} {module}{shown}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
