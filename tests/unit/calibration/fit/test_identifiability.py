"""A line with 14 unknowns: what the data resolve is right within its errors, and what they do not is named.

The line is that of ``benchmarks/calibration.py``, which repeats the fit often enough to judge the errors closely.
"""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lume_diff.calibration import Calibration, CalibrationResult, Moments

PARTICLES = 500


@pytest.fixture(scope="module")
def bench() -> dict[str, Any]:
    benchmarks = Path(__file__).parents[4] / "benchmarks"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(benchmarks))  # as when it is run
        return runpy.run_path(str(benchmarks / "calibration.py"))


@pytest.fixture(scope="module")
def model(bench: dict[str, Any]) -> Any:
    return bench["line"](PARTICLES, 0)


@pytest.fixture(scope="module")
def machine(bench: dict[str, Any]) -> Any:
    return bench["line"](10_000, 1)


def fit(bench: dict[str, Any], model: Any, machine: Any, settings: dict[str, Any]) -> CalibrationResult:
    unknown = bench["unknowns"]()
    data = bench["measured"](machine, settings, bench["drawn"](unknown, 3), 3)
    return Calibration(model, data, unknown, Moments()).run(progress=False)


def test_all_unknowns_are_found(bench: dict[str, Any], model: Any, machine: Any) -> None:
    result, truth = bench["repeat"](model, machine, Moments(), seed=3)
    assert result.converged
    assert all(result.resolved.values())
    assert not result.unresolved
    for name, pull in bench["pulls"](result, truth).items():
        assert abs(pull) < 3.0, name


@pytest.mark.slow
def test_errors_cover_the_truth(bench: dict[str, Any], machine: Any) -> None:
    model = bench["line"](2000, 0)  # of fewer particles the few in the tails begin to tell
    found: list[float] = []
    for seed in range(10):
        result, truth = bench["repeat"](model, machine, Moments(), seed=100 + seed)
        found += bench["pulls"](result, truth).values()
    covered = np.mean(np.abs(found) < 1.0)
    print(f"{covered:.1%} of {len(found)} intervals cover the truth")
    assert 0.56 < covered < 0.80


def test_quadrupole_scale_against_energy(bench: dict[str, Any], model: Any, machine: Any) -> None:
    """Without a known kick, five gradients that are high and a beam that is as much too stiff look the same."""
    result = fit(bench, model, machine, bench["scan"](12, corrector=0.0))
    assert not result.resolved["beam momentum"]
    (combination, *_) = result.unresolved
    weights = combination.direction
    signs = {name: np.sign(weights[f"scale of {name}.k1"]) for name in bench["QUADRUPOLES"]}
    assert set(signs.values()) == {np.sign(weights["beam momentum"])}
    assert combination.information < 0.2
    assert "warning: not resolved" in str(result)
    assert "beam momentum" in str(combination)


def test_scales_of_quadrupoles_that_are_not_scanned(bench: dict[str, Any], model: Any, machine: Any) -> None:
    """What the first two quadrupoles do to the beam's shape, other Twiss parameters in front of them do as well."""
    result = fit(bench, model, machine, bench["scan"](12, ["Q3", "Q4", "Q5"], corrector=0.0))
    first = ("scale of Q1.k1", "scale of Q2.k1")
    twiss = ("beta_x", "alpha_x", "beta_y", "alpha_y")
    assert not any(result.resolved[name] for name in first)
    mixed = [
        combination.direction
        for combination in result.unresolved
        if max(abs(combination.direction[name]) for name in first) > 0.3
    ]
    assert mixed
    assert any(max(abs(direction[name]) for name in twiss) > 0.03 for direction in mixed)
