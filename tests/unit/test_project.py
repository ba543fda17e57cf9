"""The project as a package: what it imports, declares, pins and ships."""

from __future__ import annotations

import ast
import functools
import importlib
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import entry_points, metadata, packages_distributions
from importlib.resources import files
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import lume_diff

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "lume_diff"
MODULES = sorted(PACKAGE.rglob("*.py"))

# Slow to import, or optional: loaded when used.
LAZY = {
    *("cheetah", "beamphysics", "matplotlib", "scipy", "pint", "h5py", "typer", "rich", "IPython", "pandas"),
    *("xopt", "botorch", "gpytorch", "p4p", "caproto", "pytao", "impact", "impactx", "at", "cpymad", "distributed"),
    *("lume", "lume_torch", "pals", "amrex", "cloudpickle", "zuko"),
}
EXTRAS = {
    *("xopt", "epics", "bmad", "impact", "impactx", "at", "madx", "lume", "ocelot", "pals", "dask", "nuts", "flow"),
    *("view", "test", "all", "badger"),
}
# Optional modules whose distribution has another name, for when they are not installed.
OPTIONAL = {
    "at": "accelerator-toolbox",
    "impact": "lume-impact",
    "impactx": "impactx-noacc",
    "lume": "lume-base",
    "pals": "pals-schema",
    "pyro": "pyro-ppl",
    **{name: name for name in ("xopt", "botorch", "gpytorch", "p4p", "caproto", "pytao", "cpymad", "distributed")},
}


@functools.cache
def installed() -> dict[str, list[str]]:
    """Return the distributions that each importable top-level name comes from."""
    return dict(packages_distributions())


def run_python(code: str) -> str:
    """Run code in a fresh interpreter and return what it prints."""
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120).stdout


def imports(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield every absolute import of a file, inside functions too: the module, and the names taken from it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module or "", [alias.name for alias in node.names]


@functools.cache
def all_imports() -> list[tuple[str, str, list[str]]]:
    """Return every import of the package: the file, the module, and the names taken from it."""
    return [(path.relative_to(PACKAGE).as_posix(), *found) for path in MODULES for found in imports(path)]


def requirements() -> dict[str, Requirement]:
    """Return every requirement of the core and of all extras, by canonical name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values()]
    parsed = [Requirement(text) for texts in lists for text in texts]
    return {canonicalize_name(req.name): req for req in parsed if req.name != "lume-diff"}


def pins() -> dict[str, Version]:
    """Return the exact versions of constraints.txt, by canonical name."""
    lines = [line.split("#")[0].strip() for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()]
    exact = [re.fullmatch(r"([A-Za-z0-9._-]+)==([0-9A-Za-z.]+)", line) for line in lines if line]
    assert all(exact), "constraints.txt holds lines 'name==version' and comments only"
    return {canonicalize_name(match[1]): Version(match[2]) for match in exact if match}


def test_import_loads_nothing_heavy() -> None:
    loaded = json.loads(
        run_python(
            "import sys, json, torch; before = set(sys.modules); import lume_diff;"
            "print(json.dumps(sorted({name.split('.')[0] for name in set(sys.modules) - before})))"
        )
    )
    assert LAZY.isdisjoint(loaded), f"loaded by 'import lume_diff': {sorted(LAZY.intersection(loaded))}"


def test_simulators_load_without_torch() -> None:
    """Worker processes start ten times as fast without it."""
    codes = sorted(path.parent.name for path in PACKAGE.glob("blackbox/*/simulator.py"))
    names = [f"lume_diff.blackbox.{code}.simulator" for code in codes if code != "lume"]  # lume needs variables
    assert "lume_diff.blackbox.at.simulator" in names
    assert run_python(f"import sys, {', '.join(names)}; print('torch' in sys.modules)") == "False\n"


@pytest.mark.parametrize("name", lume_diff.__all__)
def test_public_name_exists(name: str) -> None:
    assert hasattr(lume_diff, name)


def test_public_names_are_listed_by_dir() -> None:
    assert set(lume_diff.__all__) <= set(dir(lume_diff))


def test_no_module_imports_test_code() -> None:
    test_code = {"tests", "pytest", "hypothesis", "mpmath"}
    assert not [(file, module) for file, module, _ in all_imports() if module.split(".")[0] in test_code]


def test_no_module_goes_around_the_layers() -> None:
    """The package itself imports every layer, so a module that imports it could reach any other one."""
    submodules = {child.stem for child in PACKAGE.iterdir()}
    around = [
        (file, names)
        for file, module, names in all_imports()
        if module == "lume_diff" and file != "__init__.py" and not (names and set(names) <= submodules)
    ]
    assert not around, "import the module that is meant, not the whole package"


def test_modules_import_only_what_is_declared() -> None:
    declared, undeclared = set(requirements()), []
    for file, module, _ in all_imports():
        top = module.split(".")[0]
        if top in sys.stdlib_module_names or top == "lume_diff":
            continue
        owners = {canonicalize_name(name) for name in [*installed().get(top, []), OPTIONAL.get(top, top)]}
        if not owners & declared:
            undeclared.append((file, top))
    assert not undeclared, "not declared in pyproject.toml"


def test_extras_are_the_documented_ones() -> None:
    assert set(metadata("lume-diff").get_all("Provides-Extra") or []) == EXTRAS


def test_extra_all_is_every_run_time_extra() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    (everything,) = project["optional-dependencies"]["all"]
    assert Requirement(everything).extras == EXTRAS - {"all", "badger", "test"}


@pytest.mark.parametrize("name", sorted(requirements()))
def test_requirement_has_a_lower_bound_and_a_pin(name: str) -> None:
    requirement = requirements()[name]
    assert [specifier.operator for specifier in requirement.specifier] == [">="]
    assert name in pins(), f"{name} is not in constraints.txt"
    assert pins()[name] in requirement.specifier


def test_unrelated_distgen_is_never_installed() -> None:
    """The beam generator of that name is not the distribution of that name."""
    assert "distgen" not in requirements()
    assert "distgen" not in pins()


def test_lowest_versions_are_the_bounds() -> None:
    printed = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "lowest.py")], check=True, capture_output=True, text=True, timeout=60
    ).stdout
    lowest = dict(line.split("==") for line in printed.splitlines())
    core = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    for requirement in map(Requirement, core):
        (specifier,) = requirement.specifier
        assert lowest[canonicalize_name(requirement.name)] == specifier.version


def test_package_says_that_it_is_typed() -> None:
    assert (files("lume_diff") / "py.typed").is_file()


def test_every_data_file_is_installed() -> None:
    for path in (PACKAGE / "data").rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            assert files("lume_diff").joinpath(*path.relative_to(PACKAGE).parts).is_file()


def test_command_points_at_something_callable() -> None:
    (command,) = entry_points(group="console_scripts", name="lume-diff")
    module, _, name = command.value.partition(":")
    assert callable(getattr(importlib.import_module(module), name))
