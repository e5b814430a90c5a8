"""Check that each module is covered by its own tests, not by what happens to run through it.

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
    "asmtp/__init__.py": ("tests.test_init", "tests.sync.test_smtp"),
    "asmtp/__main__.py": ("tests.cli.test_cli",),
    "asmtp/auth/mechanisms.py": ("tests.auth.test_mechanisms", "tests.auth.test_scram", "tests.protocol.test_sasl"),
    "asmtp/cli/__init__.py": ("tests.cli.test_cli",),
    "asmtp/cli/demo/command.py": ("tests.cli.test_cli",),
    "asmtp/cli/bulk/account.py": ("tests.cli.bulk.test_journal", "tests.cli.bulk.test_command"),
    "asmtp/cli/bulk/sending.py": ("tests.cli.bulk.test_command",),
    "asmtp/cli/bulk/tally.py": ("tests.cli.bulk.test_command",),
    "asmtp/client/commands.py": ("tests.client.test_smtp", "tests.client.test_login"),
    "asmtp/mailer/bulk.py": ("tests.mailer.test_bulk", "tests.sync.test_mailer", "tests.mailer.test_mailer_deadlines"),
    "asmtp/mailer/message.py": ("tests.mailer.test_message", "tests.mailer.test_mailer_deadlines"),
    "asmtp/mailer/delivery.py": ("tests.mailer.test_delivery", "tests.mailer.test_message"),
    "asmtp/mailer/connection.py": (
        "tests.mailer.test_connection",
        "tests.mailer.test_pool",
        "tests.client.test_smtp_probing",
    ),
    "asmtp/mailer/manager.py": ("tests.mailer.test_mailer", "tests.mailer.test_bulk_end"),
    "asmtp/mailer/queue.py": ("tests.mailer.test_mailer", "tests.mailer.test_queue", "tests.mailer.test_pool"),
    "asmtp/mailer/pool.py": (
        "tests.mailer.test_pool",
        "tests.mailer.test_queue_limits",
        "tests.mailer.test_mailer_deadlines",
        "tests.mailer.test_mailer_trouble",
        "tests.client.test_smtp_probing",
    ),
    "asmtp/protocol/dialogue.py": (
        "tests.protocol.test_dialogue",
        "tests.client.test_smtp_tls",
        "tests.client.test_smtp_requests",
        "tests.client.test_login",
    ),
    "asmtp/protocol/envelope.py": ("tests.protocol.test_envelope", "tests.protocol.test_parameters"),
    "asmtp/protocol/exchange.py": ("tests.protocol.test_exchange", "tests.protocol.test_session"),
    "asmtp/protocol/inbound.py": ("tests.protocol.test_inbound", "tests.protocol.test_session"),
    "asmtp/protocol/session.py": ("tests.protocol.test_session", "tests.protocol.test_dialogue"),
    "asmtp/protocol/transaction.py": ("tests.protocol.test_transaction", "tests.protocol.test_dialogue"),
    "asmtp/client/environment.py": ("tests.client.test_smtp", "tests.transport.test_offload"),
    "asmtp/client/link.py": ("tests.client.test_smtp", "tests.transport.test_connect"),
    "asmtp/client/address.py": ("tests.client.test_address", "tests.client.test_settings"),
    "asmtp/client/events.py": ("tests.client.test_events", "tests.sync.test_smtp", "tests.sync.test_mailer_log"),
    "asmtp/client/login.py": (
        "tests.client.test_login",
        "tests.sync.test_smtp_token",
        "tests.auth.test_scram",
        "tests.mailer.test_mailer_deadlines",
    ),
    "asmtp/sync/calls.py": ("tests.sync.test_smtp", "tests.sync.test_steps"),
    "asmtp/sync/driver.py": ("tests.sync.test_driver", "tests.sync.test_smtp"),
    "asmtp/sync/client.py": ("tests.sync.test_client", "tests.sync.test_smtp"),
    "asmtp/sync/loop_thread.py": ("tests.sync.test_mailer",),
    "asmtp/sync/smtp.py": ("tests.sync.test_smtp", "tests.sync.test_steps"),
    "asmtp/sync/variants.py": ("tests.sync.test_smtp",),
    "asmtp/transport/connect.py": ("tests.transport.test_connect", "tests.transport.test_proxy"),
    "asmtp/transport/connection.py": (
        "tests.transport.test_connect",
        "tests.client.test_smtp_cancellation",
        "tests.client.test_smtp_sending",
    ),
}
# Runs in a process of its own.
ELSEWHERE = {"asmtp/__main__.py"}
NEEDED = 0.95


def own_tests(module: str) -> tuple[str, ...]:
    """Return the prefixes of the contexts that count for a module."""
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
