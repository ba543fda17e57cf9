"""What users see of every public name: a docstring that says what it takes, and names nothing that is not there."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from typing import Any

import pytest

import lume_diff

PACKAGES = ["lume_diff", *(m.name for m in pkgutil.walk_packages(lume_diff.__path__, "lume_diff.") if m.ispkg)]
ARGUMENTS = re.compile(r"^Args:\n((?:    .*\n|\n)*)", re.MULTILINE)
ARGUMENT = re.compile(r"^    (\*{0,2}\w+(?:, \*{0,2}\w+)*):", re.MULTILINE)


def exported(package: str) -> Iterator[tuple[str, Any]]:
    """Yield the public classes and functions of a package that are ours and can be loaded here."""
    module = importlib.import_module(package)
    for name in getattr(module, "__all__", ()):
        try:
            found = getattr(module, name)
        except ImportError:
            continue  # by an extra that is not installed
        if (inspect.isclass(found) or inspect.isfunction(found)) and found.__module__.startswith("lume_diff"):
            yield name, found


def functions_of(cls: type) -> Iterator[tuple[str, Any, bool]]:
    """Yield the public methods and properties that a class defines, and whether a base has described them."""
    for name, value in list(cls.__dict__.items()):  # pydantic completes a class while it is looked at
        found = getattr(value, "__func__", getattr(value, "fget", value))
        if not name.startswith("_") and inspect.isfunction(found):
            bases = [base.__dict__[name] for base in cls.__mro__[1:] if name in base.__dict__]
            yield f"{cls.__name__}.{name}", found, any(inspect.getdoc(base) for base in bases)


def faults(label: str, thing: Any, is_method: bool = False) -> Iterator[str]:
    """Yield what is wrong with the docstring of a class, a function or a method."""
    text = inspect.cleandoc(thing.__doc__ or "")
    if not text:
        yield f"{label} has no docstring"
        return
    if inspect.isclass(thing) and "__init__" not in thing.__dict__:
        return
    parameters = list(inspect.signature(thing).parameters.values())
    # "data" is the owner in functions that a class takes over as methods.
    if is_method and parameters and parameters[0].name in ("self", "cls", "data"):
        parameters = parameters[1:]
    names = [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    missing = [name for name in names if not re.search(rf"\b{name}\b", text)]
    if missing and len(names) > 1 and not re.search(r"\bsee `", text, re.IGNORECASE):
        yield f"{label} does not tell what {', '.join(missing)} is"
    section = ARGUMENTS.search(text + "\n")
    if section and not any(p.kind is p.VAR_KEYWORD for p in parameters):
        told = {name.lstrip("*") for line in ARGUMENT.findall(section[1]) for name in line.split(", ")}
        fields = getattr(thing, "model_fields", {})
        stale = told - {p.name for p in parameters} - set(fields)
        if stale:
            yield f"{label} tells what {', '.join(sorted(stale))} is, which it does not take"


@pytest.mark.parametrize("package", PACKAGES)
def test_public_names_say_what_they_take(package: str) -> None:
    try:
        found = list(exported(package))
    except ImportError as error:
        pytest.skip(f"needs an extra: {error}")
    wrong = []
    for name, thing in found:
        wrong += faults(name, thing)
        if inspect.isclass(thing):
            wrong += [
                w for label, f, is_told in functions_of(thing) if not is_told for w in faults(label, f, is_method=True)
            ]
    assert wrong == []
