"""The response matrix is the Jacobian, made comparable."""

from __future__ import annotations

import numpy as np
import pytest

from lume_diff.errors import GradientError, ValidationError
from lume_diff.models import TorchModel
from lume_diff.variables import TorchScalarVariable
from lume_diff.view import line
from lume_diff.view.model_source import ModelSource
from lume_diff.view.panels.response_matrix import WAYS, ResponseMatrix, table_of
from tests.unit.view.conftest import frame_of, good
from tests.unit.view.panels.conftest import READINGS, moved, shown

KNOBS = ["Q1.k1", "Q2.k1", "HC.angle", "reference_energy", "reference_time"]


def test_per_unit_it_is_the_jacobian(followed):
    moved(followed, Q1__k1=3.5)
    panel = ResponseMatrix(followed, way="per unit")
    shown(panel)
    expected = followed.model.jacobian(READINGS, KNOBS)
    cells = panel._cells.data
    assert len(cells["value"]) > 8
    for output, knob, value in zip(cells["output"], cells["knob"], cells["value"], strict=True):
        slope = float(expected[output][knob])
        largest = max(abs(float(d)) for d in expected[output].values())
        assert value == pytest.approx(slope, rel=1e-12, abs=1e-6 * largest)


@pytest.mark.parametrize("way", WAYS)
def test_every_way_has_a_scale_that_fits(followed, way):
    panel = ResponseMatrix(followed, way=way)
    shown(panel)
    values = np.array(panel._cells.data["value"])
    assert panel._colours.high == -panel._colours.low > 0.0
    assert np.nanmax(np.abs(values)) > 0.0
    if way == "by row":
        assert np.nanmax(np.abs(values)) == pytest.approx(1.0)
    assert way in panel._buttons.options
    assert WAYS[way].split(",")[0] in panel._notice._shown.replace("&#x27;", "'")


def test_patterns_choose_the_outputs(followed):
    panel = ResponseMatrix(followed, "Q?.sigma_x, D2.c*")
    shown(panel)
    assert set(panel._cells.data["output"]) == {"Q1.sigma_x", "Q2.sigma_x"}  # nothing acts on the charge
    assert "follow a knob: 1" in panel._notice._shown
    panel._everything.value = True
    assert set(panel._cells.data["output"]) == {"Q1.sigma_x", "Q2.sigma_x", "D2.charge"}


def test_readbacks_and_what_has_no_value_are_told_apart():
    knob = TorchScalarVariable(name="current", unit="A", default_value=1.0, scale=0.5)
    seen = [
        TorchScalarVariable(name="readback", unit="A", read_only=True),
        TorchScalarVariable(name="field", unit="T", read_only=True),
        TorchScalarVariable(name="dark", unit="T", read_only=True),
    ]
    model = TorchModel(lambda x: x * 0.0, [knob], seen)
    found = line.Derivatives(("readback", "field", "dark"), ("current",), np.array([[1.0], [2.0], [3.0]]), {})
    frame = frame_of(readback=good(1.0), field=good(4.0), dark=good(float("nan")))
    table = table_of(found, ModelSource(model), frame, "by size")
    assert table.is_telling == [False, True, False]
    assert table.shown[1, 0] == pytest.approx(2.0 * 0.5 / 4.0)
    assert np.isnan(table.shown[2, 0])
    assert "no value now" in table.info(2, 0)
    assert "+2 T/A" in table.info(1, 0)


def test_a_row_without_a_derivative_leaves_the_others():
    class Partly(TorchModel):
        def jacobian(self, outputs, inputs, at=None, mode="auto"):
            if "lost" in outputs:
                raise GradientError("'lost' has no derivative")
            return super().jacobian(outputs, inputs, at=at, mode=mode)

    x = TorchScalarVariable(name="x", default_value=1.0)
    names = [TorchScalarVariable(name=name, read_only=True) for name in ("twice", "lost")]
    import torch

    model = Partly(lambda v: torch.cat((2.0 * v, 3.0 * v), dim=-1), [x], names)
    found = line.differentiate(model, ["twice", "lost"], ["x"], {})
    assert found.values[0, 0] == pytest.approx(2.0)
    assert np.isnan(found.values[1, 0])
    assert "no derivative" in found.refused["lost"]


def test_another_way_is_refused(followed):
    with pytest.raises(ValidationError, match="by row"):
        ResponseMatrix(followed, way="by colour")
