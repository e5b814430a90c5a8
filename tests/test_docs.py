"""What the documents for maintainers say is true: paths and links lead somewhere, and names are those of the code."""

from __future__ import annotations

import ast
import functools
import importlib
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import asmtp

ROOT = Path(__file__).parent.parent
DOCUMENTS = ["README.md", "CONTRIBUTING.md", "SECURITY.md", "docs/internals.md"]

NOT_A_VERB = {
    "A", "All", "An", "Another", "As", "Each", "Every", "Everything", "For", "From", "Here", "How", "If", "In", "Is",
    "It", "Its", "Just", "Many", "More", "Never", "No", "Nobody", "Not", "Of", "On", "One", "Only", "Several", "Some",
    "Something", "That", "The", "There", "Those", "This", "Two", "Until", "What", "When", "Where", "Whether", "Which",
    "Who", "Whoever",
}  # fmt: skip


def text_of(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


@pytest.mark.parametrize("document", DOCUMENTS)
def test_paths(document: str) -> None:
    """A path is written from the root, or from asmtp/ as in `mailer/pool.py`; it may have an asterisk."""
    text = re.sub(r"<br/>|I/O|\.venv/\S*|\S+://\S+|\S+/(?:s|min|day)\b", " ", text_of(document))
    paths = set(re.findall(r"(?<![\w/.-])((?:[\w.*-]+/)+[\w.*-]*|[\w*]+\.(?:py|md|toml))(?![\w/])", text))
    assert paths
    missing = [
        path for path in paths
        if not path.startswith(("dist/", "letters/")) and not any(list(folder.glob(path)) for folder in folders())
    ]  # fmt: skip
    assert not missing


def folders() -> Iterator[Path]:
    yield from (ROOT, ROOT / "asmtp", ROOT / "docs", ROOT / "tests" / "protocol", ROOT / "tests" / "fakes")
    yield from (ROOT / "asmtp").iterdir()


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links(document: str) -> None:
    for target in re.findall(r"\]\(((?!https:)[^)]+)\)", text_of(document)):
        path, _, anchor = target.partition("#")
        file = ((ROOT / document).parent / path).resolve() if path else ROOT / document
        assert file.is_file(), target
        headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
        anchors = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
        assert not anchor or anchor in anchors, target


@functools.cache
def defined(path: Path) -> set[str]:
    """Return the names that a module defines, those of methods and attributes included."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    names = {node.name for node in ast.walk(tree) if isinstance(node, kinds)}
    names |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return names | {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def test_the_life_of_a_message() -> None:
    """Who takes part is in the module that is named, and has the methods that are called."""
    text = text_of("docs/internals.md")
    where = dict(re.findall(r"participant (\w+) as \w+<br/>([\w/.]+)", text))
    classes = dict(re.findall(r"participant (\w+) as (\w+)<br/>", text))
    assert len(where) > 5
    for participant, path in where.items():
        assert classes[participant] in defined(ROOT / "asmtp" / path), participant
    for participant, method in re.findall(r"->>(\w+): (\w+)\(", text):
        if participant in where:
            assert method in defined(ROOT / "asmtp" / where[participant]), (participant, method)
    for sender, method in re.findall(r"(\w+)-->>?\w+: (\w+)\(", text):
        if sender in where:
            assert method in defined(ROOT / "asmtp" / where[sender]), (sender, method)


def test_the_words() -> None:
    """A word that is the name of a class is explained beside the module that defines the class."""
    table = text_of("docs/internals.md").partition("## Words")[2]
    rows = re.findall(r"^\| ([^|]+) \| [^|]+ \| ([^|]+) \|$", table, re.MULTILINE)
    found = 0
    for words, where in rows:
        for word in words.split(", "):
            name = "".join(part[0].upper() + part[1:] for part in word.split())
            homes = [path for path in (ROOT / "asmtp").rglob("*.py") if name in classes_of(path)]
            found += bool(homes)
            if homes and not word.startswith(("dialogue", "turn")):
                assert any(f"`{path.relative_to(ROOT / 'asmtp').as_posix()}`" in where for path in homes), word
    assert found > 12


@functools.cache
def classes_of(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}


NO_NAMES_OF_CODE = {"refused", "not_sent", "in_doubt", "timeout="}


def test_the_names_in_the_answers() -> None:
    """A name of code is in a module that the same answer names."""
    answers = text_of("docs/internals.md").partition("## Where is")[2].partition("## Words")[0]
    for answer in answers.split("\n\n"):
        quoted = set(re.findall(r"`([^`]+)`", answer))
        paths = {text for text in quoted if text.endswith(".py")}
        modules = [module for path in paths for module in (ROOT / "asmtp").rglob(path.removeprefix("asmtp/"))]
        names = {re.sub(r"\(.*", "", text).rpartition(".")[2] for text in quoted - paths - NO_NAMES_OF_CODE}
        assert names <= set().union(*map(defined, modules)), answer


def test_references_lead_somewhere() -> None:
    """A reference in a docstring is to something that is there, by the name that callers import it by, if they can."""
    found = 0
    for path in (ROOT / "asmtp").rglob("*.py"):
        for dotted in re.findall(
            r":(?:class|attr|meth|func|mod):`~?asmtp\.([\w.]+)`", path.read_text(encoding="utf-8")
        ):
            found += 1
            at: Any = asmtp
            for module, name in itertools.pairwise(("asmtp." + dotted).split(".")):
                if not hasattr(at, name):
                    importlib.import_module(f"{at.__name__}.{name}")
                at = getattr(at, name)
                assert module == "asmtp" or name not in asmtp.__all__ or getattr(asmtp, name) is not at, dotted
    assert found > 50


def test_docstrings_begin_with_a_verb() -> None:
    wrong = []
    for path in sorted((ROOT / "asmtp").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                words = (ast.get_docstring(node) or "Do").split()
                if words[0].strip(",:;") in NOT_A_VERB or not words[0][0].isupper() or words[0].isupper():
                    wrong.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: {' '.join(words[:8])}")
    assert not wrong
