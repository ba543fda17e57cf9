"""Write one page of the reference for each public package: everything in its ``__all__``, from the docstrings."""

from __future__ import annotations

import importlib
import inspect
import re
from pathlib import Path
from types import ModuleType

PACKAGES = (
    "models",
    "blackbox",
    "variables",
    "particles",
    "calibration",
    "machine",
    "ioc",
    "control",
    "archive",
    "plotting",
    "testing",
    "errors",
)


def write_pages(folder: Path) -> None:
    """Write all pages into a folder, in place of what is there."""
    folder.mkdir(exist_ok=True)
    for name in PACKAGES:
        module = importlib.import_module(f"lume_diff.{name}")
        (folder / f"{name}.rst").write_text(page(module), encoding="utf-8")


def page(module: ModuleType) -> str:
    """Return the page of a package: what it is, a table of its names, and each of them."""
    directives = {name: _directive(getattr(module, name)) for name in names(module)}
    table = "\n".join(f"   {name}" for name in directives)
    title = module.__name__
    head = f"{title}\n{'=' * len(title)}\n\n.. automodule:: {title}\n   :no-members:\n\n.. currentmodule:: {title}\n"
    entries = "\n\n".join(f".. {directive}:: {name}" for name, directive in directives.items())
    return f"{head}\n.. autosummary::\n   :nosignatures:\n\n{table}\n\n{entries}\n"


def names(module: ModuleType) -> list[str]:
    """Return the public classes and functions of a package, but for those that another package documents."""
    everything = getattr(module, "__all__", None) or [n for n, v in vars(module).items() if inspect.isclass(v)]
    others = tuple(f"lume_diff.{name}" for name in PACKAGES if f"lume_diff.{name}" != module.__name__)
    found = {name: getattr(module, name) for name in everything}
    return [name for name, value in found.items() if callable(value) and not value.__module__.startswith(others)]


def literal_stars(lines: list[str]) -> None:
    """Keep reStructuredText from reading ``*batch`` and ``|x|`` as markup, in the lines of a docstring."""
    is_example = False
    for number, line in enumerate(lines):
        is_example = bool(line.strip()) and (is_example or line.lstrip().startswith(">>>"))
        if not is_example:
            parts = line.split("``")
            parts[::2] = [re.sub(r"([*|])", r"\\\1", part) for part in parts[::2]]
            lines[number] = "``".join(parts)


def _directive(value: object) -> str:
    if inspect.isclass(value):
        return "autoexception" if issubclass(value, BaseException) else "autoclass"
    return "autofunction"
