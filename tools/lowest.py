"""Print the lowest versions that pyproject.toml allows, as pip constraints ``name==version``.

The core dependencies are taken, and of the extra ``test`` what a plain test run needs; everything else keeps its
version of constraints.txt, so that a run can be repeated. `make lowest` installs them in an environment of its own and
runs the fast tests there, so that the lower bounds stay true.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
TEST_TOOLS = ("pytest", "pytest-xdist", "hypothesis", "mpmath")
FREE = ("pydantic-core",)  # pydantic itself asks for one exact version
REQUIREMENT = re.compile(r"(?P<name>[A-Za-z0-9._-]+)\s*>=\s*(?P<version>[0-9][0-9A-Za-z.]*)\s*(?:,.*)?")


def canonical(name: str) -> str:
    """Return the name of a distribution as pip compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def lowest(requirement: str) -> tuple[str, str]:
    """Return the name and the lowest version of a requirement ``name>=version``."""
    match = REQUIREMENT.fullmatch(requirement)
    if match is None:
        raise SystemExit(f"pyproject.toml: {requirement!r} has no lower bound; write it as 'name>=version'")
    return canonical(match["name"]), match["version"]


def pins(text: str) -> dict[str, str]:
    """Return name and version of every line ``name==version``."""
    lines = (line.split("#")[0].strip() for line in text.splitlines())
    return {canonical(name): version for name, _, version in (line.partition("==") for line in lines if line)}


def main() -> None:
    """Print one constraint a line."""
    if sys.version_info >= (3, 13):
        raise SystemExit("the lowest versions have no wheels for Python 3.13: make LOWEST_PYTHON=python3.11 lowest")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    tools = dict(lowest(requirement) for requirement in project["optional-dependencies"]["test"])
    missing = [name for name in TEST_TOOLS if name not in tools]
    if missing:
        raise SystemExit(f"pyproject.toml: the extra 'test' lacks {', '.join(missing)}")
    versions = pins((ROOT / "constraints.txt").read_text(encoding="utf-8"))
    for name in FREE:
        versions.pop(name, None)
    versions.update(lowest(requirement) for requirement in project["dependencies"])
    versions.update((name, tools[name]) for name in TEST_TOOLS)
    for name, version in sorted(versions.items()):
        sys.stdout.write(f"{name}=={version}\n")


if __name__ == "__main__":
    main()
