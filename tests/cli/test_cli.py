"""The command line."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from asmtp import __version__
from asmtp.cli import main
from asmtp.cli.demo.command import demo
from asmtp.cli.demo.server import Inbox


def test_demo(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo"]) == 0
    output = capsys.readouterr().out
    assert output.count("Three tasks, one connection") == 3
    assert "BDAT 187 LAST" in output
    assert "SMTPRecipientsRefused({'nobody@example.com': Reply(code=550, message=b'5.1.1 no such user')})" in output
    assert "demo@example.com -> carol@example.com: 'old', 20 octets" in output
    # With CHUNKING two turns for the first message, by DATA, the probe, two messages, and the RSET behind the refusal.
    waits = re.findall(r"waited for the server (\d+) times", output)
    assert waits == ["6", "4", "11"]
    assert "refused: nobody@example.com: SMTPRecipientsRefused(" in output
    assert re.search(r"999 of 1000 sent in [\d.]+ s, [\d,]+/s", output)
    assert output.endswith("The server received 999.\n")


def test_demo_without_rich(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """It runs without the bar."""
    monkeypatch.setitem(sys.modules, "rich.progress", None)
    assert main(["demo"]) == 0
    assert "999 of 1000 sent" in capsys.readouterr().out


def test_demo_at_a_server_that_loses_a_letter(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def forget(inbox: Inbox, server: Any, session: Any, envelope: Any) -> str:
        return "250 2.0.0 OK"

    monkeypatch.setattr(Inbox, "handle_DATA", forget)
    assert main(["demo"]) == 1
    assert capsys.readouterr().out.endswith("  2 letters were expected\n")


@pytest.mark.long
def test_demo_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "asmtp", "demo"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


@pytest.mark.parametrize("lines", [0, 5, 30])
def test_a_demo_that_nobody_reads_to_its_end(lines: int) -> None:
    """As `asmtp demo | head`: it ends at once, with 1, and without a word."""
    command = [sys.executable, "-u", "-m", "asmtp", "demo"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as demo:
        assert demo.stdout is not None
        for _ in range(lines):
            demo.stdout.readline()
        demo.stdout.close()
        assert demo.wait(60) == 1
        assert demo.stderr is not None
        assert demo.stderr.read() == ""


def test_a_demo_on_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo ends if its dialogue cannot be printed, but not in the middle of that dialogue."""

    class Full(io.StringIO):
        def write(self, text: str) -> int:
            if "C: mail" in text:
                raise OSError(28, "No space left on device")
            return len(text)

    monkeypatch.setattr(sys, "stdout", Full())
    with pytest.raises(OSError, match="No space"):
        demo()


@pytest.mark.parametrize("closed", ["stdout", "stderr"])
def test_a_stream_that_was_closed(closed: str, tmp_path: Path) -> None:
    """A closed stream is not written to, and everything else goes on."""
    path = tmp_path / "one.eml"
    path.write_bytes(b"From: a@x.example\nTo: b@y.example\n\nhi\n")
    command = f"{sys.executable} -m asmtp bulk --dry-run {path} {'>&-' if closed == 'stdout' else '2>&-'}"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert ("b@y.example" in done.stdout) == (closed == "stderr")


@pytest.mark.parametrize(
    ("error", "said"), [(OSError(28, "No space"), "asmtp: [Errno 28] No space\n"), (BrokenPipeError(), "")]
)
@pytest.mark.parametrize("command", [["demo"], ["bulk", "x.eml"]])
def test_output_that_cannot_be_written(
    command: list[str],
    error: OSError,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A full disk is told of; not a reader who has seen enough.  What is left in the buffer goes nowhere."""

    def fail(*_: object) -> int:
        print("something")
        raise error

    monkeypatch.setattr("asmtp.cli.demo.command.demo", fail)
    monkeypatch.setattr("asmtp.cli.bulk.command.bulk", fail)
    stdout = io.TextIOWrapper(io.FileIO(os.dup(1), "w"))
    monkeypatch.setattr(sys, "stdout", stdout)
    assert main(command) == 1
    stdout.flush()
    assert capfd.readouterr() == ("", said)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
def test_a_full_disk(tmp_path: Path) -> None:
    path = tmp_path / "one.eml"
    path.write_bytes(b"From: a@x.example\nTo: b@y.example\n\nhi\n")
    command = f"{sys.executable} -m asmtp bulk --dry-run {path} > /dev/full"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr == "asmtp: [Errno 28] No space left on device\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["demo", "foo", "bar"], "error: 2 arguments too many"),
        (["bulk", "x.eml", "--frob=smtp://u:secret@h"], "error: unrecognized arguments: --frob"),
        (["bulk", "x.eml", "--connections", "0"], "--connections: must be a whole number, at least 1, not '0'"),
        (["bulk", "x.eml", "--retry", "two"], "--retry: must be a whole number, at least 0, not 'two'"),
    ],
)
def test_wrong_arguments(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.rstrip().endswith(said)
    assert "secret" not in error


def test_paths_behind_two_hyphens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [tmp_path / name for name in ("one.eml", "two.eml")]
    for path in paths:
        path.write_bytes(b"From: a@x.example\nTo: %s@y.example\n\nhi\n" % path.stem.encode())
    assert main(["bulk", str(paths[0]), "--dry-run", "--quiet", "--", str(paths[1])]) == 0
    output = capsys.readouterr().out
    assert "one@y.example" in output
    assert "two@y.example" in output


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"asmtp {__version__}\n"


def test_without_aiosmtpd(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("asmtp.cli.demo.command", "asmtp.cli.demo.server"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "aiosmtpd", None)
    monkeypatch.setitem(sys.modules, "aiosmtpd.smtp", None)
    assert main(["demo"]) == 2
    assert capsys.readouterr().err == "asmtp demo needs aiosmtpd: pip install 'asmtp[demo]'\n"
