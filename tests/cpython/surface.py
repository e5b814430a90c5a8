"""Compare what two modules offer: names, values, signatures."""

from __future__ import annotations

import inspect
from types import ModuleType
from typing import Any

CLASSES = ("SMTP", "SMTP_SSL", "LMTP")
CONTEXT_MANAGER = ("__enter__", "__exit__")


def accepts(have: inspect.Signature, want: inspect.Signature) -> bool:
    """Return whether every call that `want` takes means the same to `have`, which may take more."""
    ours, theirs = have.parameters, want.parameters
    keyword_only = inspect.Parameter.KEYWORD_ONLY
    by_place = [name for name, parameter in theirs.items() if parameter.kind is not keyword_only]
    if list(ours)[: len(by_place)] != by_place:
        return False
    for name, parameter in theirs.items():
        other = ours.get(name)
        if other is None or other.default != parameter.default:
            return False
        if other.kind is not parameter.kind and parameter.kind is not keyword_only:
            return False
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    added = [parameter for name, parameter in ours.items() if name not in theirs]
    return all(parameter.default is not parameter.empty or parameter.kind in variadic for parameter in added)


class Comparison:
    """Collects differences."""

    def __init__(self) -> None:
        self.points = 0
        self.found: list[str] = []

    def point(self, ok: bool, text: str) -> None:
        self.points += 1
        if not ok:
            self.found.append(text)

    def signatures(self, name: str, have: Any, want: Any) -> None:
        ours, theirs = inspect.signature(have), inspect.signature(want)
        self.point(accepts(ours, theirs), f"{name}{ours} does not take all calls of {name}{theirs}")

    def module(self, have: ModuleType, want: ModuleType) -> None:
        for name, value in vars(want).items():
            imported = inspect.ismodule(value) or getattr(value, "__module__", want.__name__) != want.__name__
            if name.startswith("_") or imported:
                continue
            self.point(hasattr(have, name), f"no {name}")
            if hasattr(have, name):
                self.value(name, getattr(have, name), value)
        missing = set(want.__all__) - set(have.__all__)
        self.point(not missing, f"__all__ lacks {missing}")

    def value(self, name: str, have: Any, want: Any) -> None:
        if not inspect.isclass(want):
            if inspect.isfunction(want):
                self.signatures(name, have, want)
            else:
                self.point(have == want, f"{name} is {have!r}, not {want!r}")
        elif issubclass(want, Exception):
            self.point(issubclass(have, want), f"{name} is not caught by `except smtplib.{name}`")
        else:
            self.signatures(name, have, want)

    def methods(self, name: str, have: type, want: type) -> None:
        for attribute in dir(want):
            if attribute.startswith("_") and attribute not in CONTEXT_MANAGER:
                continue
            self.point(hasattr(have, attribute), f"{name} has no {attribute}")
            if inspect.isfunction(function := getattr(want, attribute)) and hasattr(have, attribute):
                self.signatures(f"{name}.{attribute}", getattr(have, attribute), function)
        ours = have()
        for attribute in vars(want()):
            if not attribute.startswith("_"):
                self.point(hasattr(ours, attribute), f"{name}() has no {attribute}")
        ours.close()


def differences(want: ModuleType, have: ModuleType) -> tuple[int, list[str]]:
    """Count the points that were compared, and return where `have` does not do for `want`."""
    comparison = Comparison()
    comparison.module(have, want)
    for name in CLASSES:
        if hasattr(want, name) and hasattr(have, name):
            comparison.methods(name, getattr(have, name), getattr(want, name))
    return comparison.points, comparison.found
