"""The beamline panel draws the elements and colours them by the Jacobian."""

from __future__ import annotations

import re

import numpy as np
import pytest

from lume_diff.control.readings import Condition
from lume_diff.errors import UnknownVariableError
from lume_diff.models.survey import LineElement
from lume_diff.view.doubt import doubt_of
from lume_diff.view.panels import shapes
from lume_diff.view.panels.beamline import Beamline
from tests.unit.view.conftest import bad, eventually, frame_of, good
from tests.unit.view.panels.conftest import moved, shown

KNOBS = ["Q1.k1", "Q2.k1", "HC.angle"]


def test_colours_are_the_jacobian_by_the_scale_of_the_knob(followed):
    moved(followed, Q1__k1=4.5)
    panel, model = Beamline(followed, "D2.sigma_x"), followed.model
    shown(panel)
    expected = model.jacobian(["D2.sigma_x"], KNOBS)["D2.sigma_x"]
    drawn = dict(zip(panel._elements.data["name"], panel._elements.data["effect"], strict=True))
    for element, knob in (("Q1", "Q1.k1"), ("Q2", "Q2.k1")):
        effect = float(expected[knob]) * model.supported_variables[knob].scale
        assert drawn[element] == pytest.approx(effect, rel=1e-12)
    assert np.isnan(drawn["BPM1"])
    assert panel._bars.data["name"] == ["Q1", "Q2"]  # a corrector does not change a size
    info = panel._elements.data["info"][0]
    slope = re.search(r"changes D2.sigma_x by ([-+0-9.e]+) m/\(1/m²\)", info)
    assert float(slope[1]) == pytest.approx(float(expected["Q1.k1"]), rel=1e-3)


def test_another_output_can_be_chosen(followed):
    panel = Beamline(followed)
    assert panel.output == "Q1.sigma_x"
    panel.view()
    panel._choice.value = "BPM1.x"
    shown(panel)
    slope = float(followed.model.jacobian(["BPM1.x"], ["HC.angle"])["BPM1.x"]["HC.angle"])
    drawn = dict(zip(panel._elements.data["name"], panel._elements.data["effect"], strict=True))
    scale = followed.model.supported_variables["HC.angle"].scale
    assert drawn["HC"] == pytest.approx(slope * scale, rel=1e-12)
    assert "BPM1.x" in panel._chart.title.text


def test_an_unknown_output_is_refused(followed):
    with pytest.raises(UnknownVariableError, match=r"D2\.sigma_x"):
        Beamline(followed, "D2.sigma_z")


@pytest.mark.parametrize(
    "kind,strength,low,high",
    [
        ("Quadrupole", 3.0, 0.0, 1.0),
        ("Quadrupole", -3.0, -1.0, 0.0),
        ("HorizontalCorrector", 0.0, 0.0, 1.0),
        ("VerticalCorrector", 0.0, -1.0, 0.0),
    ],
)
def test_signs_and_planes_point_up_and_down(kind, strength, low, high):
    xs, ys = shapes.outline(LineElement("E", kind, 1.0, 0.5, strength), 10.0)
    assert low <= min(ys) < max(ys) <= high
    assert (min(xs), max(xs)) == pytest.approx((1.0, 1.5))


@pytest.mark.parametrize("kind", [*shapes.KIND_NAMES, "Marker", "package.Element"])
def test_every_kind_is_drawn_where_it_stands(kind):
    xs, ys = shapes.outline(LineElement("E", kind, 5.0, 0.0, 1.0), 10.0)
    assert 4.0 < np.nanmin(xs) < np.nanmax(xs) < 6.0
    assert np.nanmax(np.abs(ys)) <= 1.0


def test_drifts_are_the_axis():
    assert shapes.outline(LineElement("D", "Drift", 0.0, 1.0), 10.0) is None


def test_a_value_that_does_not_hold_greys_the_line_and_says_since_when(followed):
    panel = Beamline(followed, "D2.sigma_x")
    shown(panel)
    assert not any(veil._box.visible for veil in panel._veils)
    runtime = followed._server.runtime
    runtime.fault("Q1.k1", Condition.DISCONNECTED, "Q1.k1: not connected")
    try:
        assert eventually(lambda: doubt_of(followed.latest()) is not None)
        shown(panel)
        assert all(veil._box.visible and "last good" in veil._label.text for veil in panel._veils)
        assert re.search(r"INVALID: Q1.k1: not connected.*last good \d+ s ago", panel._notice._shown)
        assert panel._bars.data["name"] == ["Q1", "Q2"]  # what was known stays, under the veil
    finally:
        runtime.clear_fault("Q1.k1")
    assert eventually(lambda: doubt_of(followed.latest()) is None)
    shown(panel)
    assert not any(veil._box.visible for veil in panel._veils)


def test_a_value_that_is_not_finite_says_something_about_itself_only():
    from lume_diff.control.readings import Reading, Severity

    dark = Reading(float("nan"), 100.0, 1, Severity.INVALID, Condition.NOT_FINITE, "nan")
    assert doubt_of(frame_of(a=good(1.0), b=dark)) is None
    assert "not connected" in doubt_of(frame_of(a=bad(1.0), b=dark)).text
