"""CPython's own tests of smtplib, against asmtp: those of the interpreter that runs this."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import asmtp
from tests.cpython.harness import NOT_APPLICABLE, TIME_LIMIT

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Run the tests in a process of their own, and return what they said: they patch modules, and start servers."""
    folder = tmp_path_factory.mktemp("cpython")
    output = folder / "report.json"
    command = [sys.executable, "-W", "default", "-m", "tests.cpython.harness", str(output)]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}"}
    done = subprocess.run(
        command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
        timeout=TIME_LIMIT + 20,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(output.read_text())
    if "missing" in report:
        why = f"this interpreter is without CPython's tests: {report['missing']}"
        if os.environ.get("ASMTP_REQUIRE_INTEROP") == "1":
            pytest.fail(f"ASMTP_REQUIRE_INTEROP=1, but {why}")
        pytest.skip(why)
    return report


def having(report: dict[str, Any], outcome: str) -> dict[str, str]:
    return {name: why for name, (was, why, _) in report["tests"].items() if was == outcome}


def test_nothing_fails(report: dict[str, Any]) -> None:
    assert report["module"] == asmtp.__file__
    assert "\n\n".join(f"{name}: {why}" for name, why in having(report, "failed").items()) == ""


def test_everything_ran(report: dict[str, Any]) -> None:
    assert len(having(report, "passed")) + len(having(report, "failed")) >= 80
    assert having(report, "not run") == NOT_APPLICABLE
    assert having(report, "skipped") == {}
    assert "SMTPHandlerTest.test_basic" in having(report, "passed")


def test_nothing_is_left_behind(report: dict[str, Any]) -> None:
    """No unclosed sockets or loops, no threads, no exceptions in finalisers."""
    assert {name: left for name, (_, _, left) in report["tests"].items() if left} == {}


def test_api_surface(report: dict[str, Any]) -> None:
    """Everything public of smtplib is there, and takes every call that smtplib takes."""
    assert report["points"] >= 250
    assert report["surface"] == []
