"""Derivatives of a simulator are asked for, cost no more than is allowed, and tell what they cost."""

from __future__ import annotations

import numpy as np
import pytest

from lume_diff.view import derivatives
from lume_diff.view.model_source import ModelSource
from lume_diff.view.panels.response_matrix import ResponseMatrix
from tests.unit.blackbox.test_costs import model, truth
from tests.unit.view.panels.conftest import shown

KNOBS = ["a0", "a1", "a2"]
AT = {"a0": 0.3, "a1": 0.35, "a2": 0.4}


def test_they_tell_their_runs_and_errors():
    box = model(3, noise=1e-7)
    found = derivatives.differentiate(box, ["y", "z"], KNOBS, AT)
    assert found.runs == box.runs > 0
    true = truth(3, 0.3).numpy()
    off = np.abs(found.values - true)
    assert np.all(off <= 3.0 * found.errors + 1e-12)
    assert np.all(found.errors[1] > found.errors[0])
    assert found.cost[0].startswith(f"{box.runs} runs of a simulator")
    assert "estimated errors up to" in found.cost[0]


def test_nothing_is_begun_when_the_allowed_runs_are_spent(monkeypatch):
    monkeypatch.setattr(derivatives, "MOST_RUNS", 3)
    found = derivatives.differentiate(model(3), ["y", "z"], KNOBS, AT)
    assert list(found.left) == ["a1", "a2"]
    assert np.isfinite(found.values[:, 0]).all()
    assert np.isnan(found.values[:, 1:]).all()
    assert "2 knobs are left out" in found.cost[1]


@pytest.mark.parametrize("sensitivity", [False, True], ids=["not asked", "asked"])
def test_a_panel_shows_them_only_if_they_are_asked_for(sensitivity):
    box = model(3)
    with ModelSource(box, sensitivity=sensitivity) as source:
        source.wait_ready(60.0)
        panel = ResponseMatrix(source)
        if sensitivity:
            shown(panel)
            assert len(panel._cells.data["value"]) == 6
            assert "runs of a simulator" in panel._notice._shown
        else:
            runs = box.runs
            panel.view()
            assert "ask for it by --sensitivity" in panel._notice._shown
            assert not source.background._results
            assert box.runs == runs
