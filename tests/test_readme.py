"""The README tells the truth: its snippets run, its commands are the ones that run elsewhere."""

from __future__ import annotations

import contextlib
import inspect
import io
import re
from pathlib import Path

import pytest

import asmtp
from asmtp.auth.selection import _KNOWN as KNOWN
from asmtp.cli.demo.server import Inbox, serving
from asmtp.protocol import state

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
PRINTED = [
    "2.1.5 OK\n550 5.1.1 no such user\n",
    "{'sent': 1000, 'refused': 0, 'not_sent': 0, 'in_doubt': 0}\n",
    "1\nsent\n",
    "{}\n",
    "100 sent\n",
    "nobody@example.com was refused: 550 b'5.1.1 no such user'\n",
    "DSN not supported by server: RET needs it\n",
]


def test_each_snippet_is_run() -> None:
    assert len(SNIPPETS) == len(PRINTED)


@pytest.mark.parametrize(
    ("snippet", "printed"),
    list(zip(SNIPPETS, PRINTED, strict=False)),
    ids=["web app", "many", "threads", "connection", "tasks", "legacy", "requests"],
)
def test_snippet(snippet: str, printed: str) -> None:
    with serving(Inbox("PIPELINING", "CHUNKING")) as inbox, contextlib.redirect_stdout(io.StringIO()) as output:
        code = snippet.replace('"localhost", 25', f'"127.0.0.1", {inbox.port}')
        code = code.replace('"smtp://localhost"', f'"smtp://127.0.0.1:{inbox.port}"')
        assert code != snippet
        exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})
    assert output.getvalue() == printed
    assert inbox.letters


def test_the_diagram_is_generated() -> None:
    shown = README.partition("<!-- diagram -->\n")[2].partition("<!-- /diagram -->")[0]
    assert shown == f"```mermaid\n{state.diagram().strip()}\n```\n"


def test_two_commands_do_the_set_up() -> None:
    commands = [line for line in README.splitlines() if line.startswith("python3 -m venv")]
    assert len(commands) == 2
    assert commands[0].endswith("asmtp demo")
    assert "-m pytest" in commands[1]


def test_files_and_options_named_exist() -> None:
    for path in re.findall(r"`((?:asmtp|examples|tests|\.ci)/[\w./]*)`", README):
        assert (ROOT / path).exists(), path


def test_each_request_is_named_and_documented() -> None:
    documented = re.findall(r"^(\w+(?:, \w+)*): ", inspect.getdoc(asmtp.Requests) or "", re.MULTILINE)
    assert {name for names in documented for name in names.split(", ")} == set(asmtp.Requests.__annotations__)
    assert [name for name in asmtp.Requests.__annotations__ if f"`{name}=" not in README] == []


def test_each_mechanism_is_named() -> None:
    assert [name for name in KNOWN if name.removesuffix("-PLUS") not in README] == []
