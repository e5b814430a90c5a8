"""Print the lowest versions that pyproject.toml names of what the tests need, as constraints for pip.

python tests/lowest_versions.py >constraints && pip install -c constraints -e '.[test]'
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).parent.parent / "pyproject.toml"
_BOUND = re.compile(r"(?P<name>[A-Za-z0-9_.-]+)(?:\[[^\]]*\])?>=(?P<version>[0-9.]+)")


def lowest() -> dict[str, str]:
    """Return the lowest version of each requirement, those of the extras that the tests install included.

    Raises:
        ValueError: a requirement names none.
    """
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    ours = re.search(r"asmtp\[(.*)\]", extras["test"][0])
    assert ours is not None
    requirements = [*project["dependencies"], *extras["test"][1:]]
    for extra in ours[1].split(","):
        requirements += extras[extra]
    bounds = {}
    for requirement in requirements:
        found = _BOUND.match(requirement)
        if found is None:
            raise ValueError(f"{requirement}: has no lowest version")
        bounds[found["name"]] = found["version"]
    return bounds


if __name__ == "__main__":
    print("\n".join(f"{name}=={version}" for name, version in lowest().items()))
