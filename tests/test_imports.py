"""Limit the longest chain of imports, which a reader goes down to understand the mailer, and look for circles."""

from __future__ import annotations

import ast
import functools
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOP = "asmtp.mailer.mailer"
MOST = 11
"""Modules in the longest chain."""


def file_of(module: str) -> Path | None:
    """Return the file of a module or package of asmtp; None if the name is no module."""
    path = ROOT.joinpath(*module.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def imported(statements: list[ast.stmt]) -> Iterator[str]:
    """Yield the modules of asmtp that are imported when a module is: not in functions, not for type checkers."""
    for statement in statements:
        if isinstance(statement, ast.Import):
            names = [alias.name for alias in statement.names]
        elif isinstance(statement, ast.ImportFrom):
            assert statement.level == 0, "a relative import"
            base = statement.module or ""
            names = [name if file_of(name := f"{base}.{alias.name}") else base for alias in statement.names]
        elif isinstance(statement, ast.If) and "TYPE_CHECKING" in ast.unparse(statement.test):
            names = [*imported(statement.orelse)]
        else:
            function = isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef)
            blocks = [] if function else [getattr(statement, name, []) for name in ("body", "orelse", "finalbody")]
            names = [name for block in blocks for name in imported(block)]
        yield from (name for name in names if name.startswith("asmtp") and file_of(name))


@functools.cache
def longest_chain(module: str) -> tuple[str, ...]:
    """Return the modules of the longest chain from a module down, the module first."""
    file = file_of(module)
    assert file is not None
    below = sorted({*imported(ast.parse(file.read_text("utf-8")).body)} - {module})
    return (module, *max(map(longest_chain, below), key=len, default=()))


def test_the_longest_chain_of_imports() -> None:
    """Run pytest with -s to see the chain."""
    chain = longest_chain(TOP)
    print(f"{len(chain)} modules: {' -> '.join(name.removeprefix('asmtp.') for name in chain)}")
    assert len(chain) <= MOST


@pytest.mark.parametrize("folder", ["auth", "cli", "client", "mailer", "protocol", "sync", "transport"])
def test_no_circle(folder: str) -> None:
    """Modules of one folder do not import one another in a circle, not even in functions or for type checkers."""
    below: dict[str, set[str]] = {}
    for file in sorted((ROOT / "asmtp" / folder).rglob("*.py")):
        froms = [node for node in ast.walk(ast.parse(file.read_text("utf-8"))) if isinstance(node, ast.ImportFrom)]
        module = ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        below[module] = {name for node in froms for name in imported([node]) if f".{folder}" in name} - {module}
    assert list(graphlib.TopologicalSorter(below).static_order())  # raises CycleError, which shows the circle
