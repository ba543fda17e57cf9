"""Optics of a MAD-X sequence and their gradients, against MAD-X itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lume_diff.blackbox.madx.model import MADXModel
from lume_diff.testing import check_model

cpymad = pytest.importorskip("cpymad.madx")

Make = Callable[..., Any]


@pytest.fixture(scope="module")
def own(folder: Path, fodo: Make) -> Iterator[Any]:
    """MAD-X itself, with the deck loaded."""
    with open(folder / "own.log", "wb") as log, cpymad.Madx(stdout=log, stderr=log) as madx:
        madx.call(str(fodo(folder)))
        madx.use("cell")
        yield madx


KNOBS = [
    ("qf.k1", 0.31, "qf, k1 = 0.31", "qf, k1 := kboth"),
    ("qd.length", 0.52, "qd, l = 0.52; use, sequence = cell", "qd, l = 0.5; use, sequence = cell"),
    ("bb.angle", 0.11, "bb, angle = 0.11", "bb, angle = 0.1"),
    ("hk.hkick", 1e-4, "hk, kick = 1e-4", "hk, kick = 0"),
    ("mm.k1l", 0.02, "mm, knl = {0, 0.02}", "mm, knl = {0, 0.01}"),
    ("mm.k2sl", 0.5, "mm, ksl = {0, 0, 0.5}", "mm, ksl = {0, 0, 0}"),
    ("qd.tilt", 0.01, "qd, tilt = 0.01", "qd, tilt = 0"),
]


def _matrix(own: Any, table: Any, node: int) -> np.ndarray:
    """Return the R-matrix from the start to a node of a ring, for which MAD-X has the one of a turn from the node."""
    start = ", ".join(f"{name} = {float(table[name][0])!r}" for name in ("x", "px", "y", "py", "t", "pt"))
    own.input(f"twiss, sequence = cell, rmatrix, betx = 1, bety = 1, {start}, table = along;")
    return np.array([[own.table.along[f"re{i}{j}"][node] for j in range(1, 7)] for i in range(1, 7)])


@pytest.mark.parametrize("name, value, there, back", KNOBS, ids=[knob[0] for knob in KNOBS])
def test_optics_are_those_of_madx(model: Any, own: Any, name: str, value: float, there: str, back: str) -> None:
    before = model.get()
    found = model({name: value})
    own.input(there)
    try:
        own.input("twiss, sequence = cell, rmatrix, chrom, table = own;")
        table = own.table.own
        node = table.row_names().index("qd")
        pc = 1e9 * own.sequence.cell.beam.pc
        expected = {
            "tune_x": table.mux[-1],
            "tune_y": table.muy[-1],
            "chroma_x": table.dmux[-1],
            "end.beta_x": table.betx[-1],
            "end.eta_x": table.dx[-1],
            "end.x": table.x[-1],
            "end.px": table.px[-1] * pc,
            "qd.r_matrix": _matrix(own, table, node),
            "line.beta_y": table.bety,
        }
        for shown, numbers in expected.items():
            np.testing.assert_allclose(found[shown].numpy(), numbers, rtol=1e-6, atol=1e-9, err_msg=shown)
        assert found["tune_x"].item() == pytest.approx(table.summary.q1, abs=1e-9)
    finally:
        own.input(back)
    assert all(torch.equal(value, before[shown]) for shown, value in model({}).items())
    assert model.simulator.elements.qf.cmdpar.k1.definition == "kboth"


def test_dispersion_and_chromaticity_are_by_the_momentum(folder: Path, fodo: Make) -> None:
    outputs = ["end.eta_x", "end.etap_x", "chroma_x"]
    with MADXModel(fodo(folder, "proton", 1.2), controls=[], outputs=outputs) as found:
        values = found.get()
        ends = []
        for deviation in (1e-4, -1e-4):
            found.simulator.input(f"twiss, sequence = cell, deltap = {deviation}, table = off;")
            table = found.simulator.table.off
            ends.append(np.array([table.x[-1], table.px[-1], table.mux[-1]]))
        slope = (ends[0] - ends[1]) / 2e-4
        np.testing.assert_allclose([values[name].item() for name in outputs], slope, rtol=1e-5)


def test_line_starts_where_it_is_told(folder: Path, own: Any, fodo: Make) -> None:
    start = {"beta_x": 8.0, "alpha_x": -0.5, "beta_y": 3.0, "eta_x": 0.2, "x": 1e-4, "px": 1e5}
    outputs = ["end.beta_x", "end.mu_x", "end.eta_x", "end.x", "end.px"]
    with MADXModel(fodo(folder), controls=["kqf"], outputs=outputs, initial=start) as found:
        values = [value.item() for value in found({"kqf": 0.31}, outputs=outputs).values()]
    beam = own.sequence.cell.beam
    own.globals.kqf = 0.31
    px = 1e5 / (1e9 * beam.pc)
    given = f"betx = 8, alfx = -0.5, bety = 3, dx = {0.2 / beam.beta}, x = 1e-4, px = {px}"
    own.input(f"twiss, sequence = cell, {given}, table = own;")
    own.globals.kqf = 0.3
    table = own.table.own
    factors = (1.0, 2.0 * math.pi, beam.beta, 1.0, 1e9 * beam.pc)
    expected = [
        table[name][-1] * factor for name, factor in zip(("betx", "mux", "dx", "x", "px"), factors, strict=True)
    ]
    np.testing.assert_allclose(values, expected, rtol=1e-9)


@pytest.mark.gradient
@pytest.mark.parametrize("knob", ["qf.k1", "qd.k1"])
def test_gradient_of_optics(model: Any, knob: str, richardson: Make) -> None:
    k1 = model.get(knob).clone().requires_grad_()
    outputs = {"end.beta_x": 1e-8, "tune_x": 3e-6, "tune_y": 3e-6}
    found = model({knob: k1}, outputs=list(outputs))
    for name, tolerance in outputs.items():
        (slope,) = torch.autograd.grad(found[name], k1, retain_graph=True)

        def at_value(x: float, name: str = name) -> float:
            return model({knob: x}, outputs=[name])[name].item()

        assert slope.item() == pytest.approx(richardson(at_value, k1.item(), 1e-3), rel=tolerance), name


def test_variable_of_the_deck_has_a_gradient(folder: Path, fodo: Make, richardson: Make) -> None:
    with MADXModel(fodo(folder), controls=["kqf"], outputs=["tune_x"]) as found:
        kqf = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
        found({"kqf": kqf})["tune_x"].backward()
        expected = richardson(lambda x: found({"kqf": x})["tune_x"].item(), 0.3, 1e-3)
        assert kqf.grad is not None
        assert kqf.grad.item() == pytest.approx(expected, rel=1e-8)


@pytest.mark.slow
def test_model_keeps_every_law(folder: Path, fodo: Make) -> None:
    outputs = ["tune_x", "end.beta_x"]
    with MADXModel(fodo(folder), sequence="cell", controls=["qf.k1", "qd.k1"], outputs=outputs) as found:
        check_model(found)
