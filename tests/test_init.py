"""The package itself: which names users type, and that each is there for a type checker and at run time alike."""

from __future__ import annotations

import ast
import importlib
import inspect

import pytest

import asmtp


def for_type_checkers() -> dict[str, str]:
    """Return the names under `if TYPE_CHECKING`, each with its module."""
    tree = ast.parse(inspect.getsource(asmtp))
    block = next(node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    assert all(alias.name == alias.asname for node in imports for alias in node.names)
    return {alias.name: node.module or "" for node in imports for alias in node.names}


def test_names_are_the_same_for_type_checkers() -> None:
    assert for_type_checkers() == asmtp._HOMES


def test_every_name_is_there() -> None:
    for name in asmtp.__all__:
        value = getattr(asmtp, name)
        assert name not in asmtp._HOMES or value is getattr(importlib.import_module(asmtp._HOMES[name]), name)


def test_dir() -> None:
    assert dir(asmtp) == sorted(set(asmtp.__all__))


def test_star() -> None:
    names: dict[str, object] = {}
    exec("from asmtp import *", names)
    del names["__builtins__"]
    assert sorted(names) == dir(asmtp)


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="^module 'asmtp' has no attribute 'Smtp'$"):
        asmtp.Smtp  # type: ignore[attr-defined]  # noqa: B018


def test_types_that_annotations_need() -> None:
    types = {"Content", "Options", "MailerOptions", "Statistics", "Token", "Mechanisms", "Hook", "Deliveries"}
    assert types | {"TLSMode", "Mechanism"} <= set(dir(asmtp))
