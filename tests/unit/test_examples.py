"""The examples in the docstrings run, and print what they say."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in sorted((ROOT / "lume_diff").rglob("*.py"))
    if ">>>" in path.read_text(encoding="utf-8")
]
#: What the examples of a package need that is an extra.
EXTRAS = {
    "lume_diff.blackbox.at": "at",
    "lume_diff.blackbox.bmad": "pytao",
    "lume_diff.blackbox.impact": "impact",
    "lume_diff.blackbox.impactx": "impactx",
    "lume_diff.blackbox.lume": "lume",
    "lume_diff.blackbox.madx": "cpymad",
    "lume_diff.calibration.optimisation": "xopt",
    "lume_diff.calibration.prior_mean": "xopt",
    "lume_diff.calibration.reconstruction.flow": "zuko",
    "lume_diff.ioc.ca": "caproto",
    "lume_diff.ioc.pva": "p4p",
}


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_module(name: str) -> None:
    for package, needed in EXTRAS.items():
        if f"{name}.".startswith(f"{package}."):
            pytest.importorskip(needed, reason=f"what this extra brings is not installed: {needed}")
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    result = doctest.testmod(importlib.import_module(name), optionflags=options)
    assert result.failed == 0, "see the captured output"
