"""Gradients through ImpactX, and the laws of every model."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest

from lume_diff.blackbox import FiniteDifference
from lume_diff.errors import PhysicsWarning
from lume_diff.testing import check_model

pytest.importorskip("impactx")
from impactx import elements as ix

from lume_diff.blackbox.impactx.model import ImpactXModel

Make = Callable[..., Any]


def richardson(model: Any, output: str, name: str, step: float) -> float:
    here = model.get(name).item()

    def difference(h: float) -> float:
        up, down = (model({name: here + sign * h}, outputs=[output])[output].item() for sign in (1, -1))
        return (up - down) / (2 * h)

    table = [difference(step / 2**i) for i in range(5)]
    for order in range(1, 5):
        table = [(4**order * b - a) / (4**order - 1) for a, b in itertools.pairwise(table)]
    return table[0]


@pytest.mark.gradient
@pytest.mark.parametrize("output", ["final.sigma_x", "final.sigma_y", "M.sigma_x"])
@pytest.mark.parametrize("name", ["Q1.k1", "Q2.k1", "D1.length"])
def test_sigma_against_a_knob(output: str, name: str, bunch: Make, line: Make) -> None:
    model = ImpactXModel(line(), ["Q1.k1", "Q2.k1", "D1.length"], [output], beam=bunch())
    found = model.jacobian([output], [name])[output][name].item()
    assert found == pytest.approx(richardson(model, output, name, 0.1), rel=1e-7)
    entries = [entry for entry in model.gradient_report().entries if entry.input == name]
    assert entries
    assert all(entry.error is not None for entry in entries)


def test_it_keeps_every_law(bunch: Make, line: Make) -> None:
    model = ImpactXModel(line(), beam=bunch())
    results = check_model(model)
    assert all(text.startswith("passed") for text in results.values()), results


def test_it_keeps_every_law_with_space_charge(bunch: Make) -> None:
    model = ImpactXModel(
        [ix.Quad(name="Q1", ds=0.2, k=2.0, nslice=2), ix.Drift(name="D1", ds=0.5, nslice=2)],
        ["Q1.k1"],
        ["final.sigma_x", "final.sigma_y"],
        beam=bunch(200, charge=1e-9),
        space_charge="3D",
        n_cell=(16, 16, 16),
        gradient=FiniteDifference(particles="collective"),
    )
    # Reverse mode is not there with collective forces, which is what the laws left out are about.
    reverse = ("gradient", "graphs", "separate_graphs", "jacobian", "transforms", "batches", "inference")
    results = check_model(model, outputs=["final.sigma_x"], skip=reverse)
    assert all(text.startswith(("passed", "skipped")) for text in results.values()), results


def test_particles_that_act_on_each_other_are_noticed(bunch: Make) -> None:
    elements = [ix.Drift(name="D", ds=1.0, nslice=4), ix.Quad(name="Q", ds=0.2, k=1.0, nslice=2)]
    start = bunch(200, charge=1e-9)
    model = ImpactXModel(elements, ["Q.k1"], ["final.sigma_x"], beam=start, space_charge="3D", n_cell=(16, 16, 16))
    x = start.x.clone().requires_grad_()
    value = model({"initial_particles": start.replace(x=x)}, outputs=["final.sigma_x"])["final.sigma_x"]
    with pytest.warns(PhysicsWarning, match=r"off by 0\.\d+ in a random direction"):
        value.backward()
