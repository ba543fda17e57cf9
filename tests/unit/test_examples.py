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
#: Modules whose examples run a code that is an extra.
CODES = {"at": "at", "bmad": "pytao", "impact": "impact", "impactx": "impactx", "lume": "lume", "madx": "cpymad"}


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_module(name: str) -> None:
    if name.startswith("lume_diff.blackbox.") and (code := CODES.get(name.split(".")[2])):
        pytest.importorskip(code, reason=f"the code of this extra is not installed: {code}")
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    result = doctest.testmod(importlib.import_module(name), optionflags=options)
    assert result.failed == 0, "see the captured output"
