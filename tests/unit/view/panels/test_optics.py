"""The optics panel shows the model's own beam sizes at every element."""

from __future__ import annotations

import numpy as np
import pytest

import lume_diff as ld
from lume_diff.view import line
from lume_diff.view.model_source import ModelSource
from lume_diff.view.panels.optics import Optics
from tests.unit.view.panels.conftest import moved, shown


@pytest.mark.parametrize("k1", [4.0, -2.5], ids=lambda k1: f"k1={k1:g}")
def test_the_envelope_is_sigma_behind_every_element(followed, k1):
    moved(followed, Q1__k1=k1)
    panel, model = Optics(followed), followed.model
    frame = shown(panel)
    behind = line.along(followed, frame).value.behind
    for element in ("Q1", "D1", "Q2", "D2"):
        for plane in "xy":
            expected = float(model.get(f"{element}.sigma_{plane}"))
            assert panel._along.data[plane][behind[element]] == pytest.approx(expected, rel=1e-9)
    assert panel._along.data["s"][-1] == pytest.approx(3.5)
    assert panel._along.data["s"].size > 100  # it bends inside the elements too


def test_a_function_is_chosen_with_its_unit(followed):
    panel = Optics(followed)
    shown(panel)
    assert panel._functions.figure.yaxis.axis_label == "Twiss β [m]"
    panel._choice.value = "emittance"
    assert panel._functions.figure.yaxis.axis_label == "norm. emittance [µm]"
    found = line.along(followed, followed.latest()).value
    assert np.array_equal(panel._along.data["function_x"], found.values["norm_emit_x"])
    assert panel._functions.figure.y_range.start == 0.0
    panel._choice.value = "alpha"
    lowest = min(panel._along.data[f"function_{plane}"].min() for plane in "xy")
    assert panel._functions.figure.y_range.start < lowest < 0.0


def test_the_same_frame_is_sent_once(followed):
    panel = Optics(followed)
    frame = shown(panel)
    before = panel._along.data
    panel.update(frame)
    assert panel._along.data is before


def test_behind_an_inserted_screen_it_is_hatched():
    machine = ld.load_model(ld.example_machine())
    with ModelSource(machine) as source:
        source.wait_ready(120.0)
        panel = Optics(source)
        shown(panel)
        assert all(one.dark._box.visible and one.dark._box.left == pytest.approx(9.3) for one in panel._charts)
        assert "OTRS:DIAG0:420:PNEUMATIC ends the beam" in panel._notice._shown
        assert "injector" in panel._strip.data["name"]
