"""A calibration through a black box between differentiable stages finds what one through differentiable ones does."""

from __future__ import annotations

from typing import Any

import cheetah
import numpy as np
import pytest
import torch

import lume_diff as ld
from lume_diff.calibration import (
    Calibration,
    CalibrationResult,
    LogNormal,
    Moments,
    Normal,
    Offset,
    Scale,
    ScreenDataset,
    Value,
)

at = pytest.importorskip("at")

pytestmark = [pytest.mark.gradient, pytest.mark.slow]

D = torch.float64
PIXEL, SETTINGS, PARTICLES = 1.5e-4, 6, 500
DESIGN = {"Q1": 4.0, "Q5": -4.0, "Q6": 4.0, "Q9": -3.0}
MIDDLE = ("Q5.k1", "Q6.k1")
TRUTH = {"Q1.k1": 1.02, "Q5.k1": 0.985, "Q6.k1": 1.015, "Q9.k1": 0.99}
OFFSET, EMITTANCE = 2e-4, 1.2e-5


def number(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=D)


def segment(name: str, *parts: tuple[str, float], screen: bool = False) -> cheetah.Segment:
    """Return quadrupoles of 0.1 m, each with a drift behind it."""
    elements: list[cheetah.Element] = []
    for quadrupole, length in parts:
        elements.append(cheetah.Quadrupole(number(0.1), number(DESIGN[quadrupole]), name=quadrupole, dtype=D))
        elements.append(cheetah.Drift(number(length), name=f"D{quadrupole}", dtype=D))
    if screen:
        pixel = torch.tensor([PIXEL, PIXEL], dtype=D)
        elements.append(cheetah.Screen((60, 60), pixel, is_active=True, name="SCR1", dtype=D))
    return cheetah.Segment(elements, name=name)


def chain(black_box: bool, seed: int = 0, particles: int = PARTICLES) -> ld.StagedModel:
    """Return a bunch, a line, a line by pyAT or by Cheetah, and a line with a screen."""
    twiss = {"beta_x": 6.0, "norm_emit_x": 1e-5, "beta_y": 4.0, "norm_emit_y": 1e-5}
    gun = ld.BunchFromMoments(particles, seed, mean_energy=1e8, sigma_energy=1e3, sigma_t=1e-13, charge=1e-10, **twiss)
    first = ld.CheetahModel(segment("first", ("Q1", 0.4)), gun.get("final_particles"))
    bunch = first.get("final_particles")
    if black_box:
        parts = [("Q5", 0.5), ("Q6", 0.4)]
        elements = [e for q, d in parts for e in (at.Quadrupole(q, 0.1, DESIGN[q]), at.Drift(f"D{q}", d))]
        middle: Any = ld.ATModel(at.Lattice(elements, energy=1e8), controls=list(MIDDLE), outputs=[], beam=bunch)
    else:
        middle = ld.CheetahModel(segment("middle", ("Q5", 0.5), ("Q6", 0.4)), bunch)
    last = ld.CheetahModel(segment("last", ("Q9", 1.0), screen=True), middle.get("final_particles"))
    return ld.StagedModel({"gun": gun, "first": first, "middle": middle, "last": last})


@pytest.fixture(scope="module")
def data() -> ScreenDataset:
    """Return what the true machine shows, tracked with other particles than the fits."""
    generator = np.random.default_rng(0)
    settings = {f"{q}.k1": k1 + 3.0 * generator.uniform(-1.0, 1.0, SETTINGS) for q, k1 in DESIGN.items()}
    inputs: dict[str, Any] = {name: torch.tensor(TRUTH[name] * values) for name, values in settings.items()}
    inputs |= {"SCR1.misalignment_x": number(OFFSET), "norm_emit_x": number(EMITTANCE)}
    machine = chain(black_box=False, seed=1, particles=20_000)
    light = machine(inputs, outputs=["SCR1.image"])["SCR1.image"].numpy()
    images = 1000.0 * light / light.max() + generator.normal(0.0, 3.0, light.shape)
    return ScreenDataset(settings, images, "SCR1.image", PIXEL, noise=3.0)


def fit(model: ld.StagedModel, data: ScreenDataset) -> CalibrationResult:
    unknown = [
        *(Scale(name, Normal(1.0, 0.02), name=name) for name in TRUTH),
        Offset("SCR1.misalignment_x", Normal(0.0, 1e-3), name="offset"),
        Value("norm_emit_x", LogNormal(1e-5, 1.3), name="emittance"),
    ]
    return Calibration(model, data, unknown, Moments()).run("levenberg-marquardt", progress=False)


def test_same_estimates_for_few_runs(data: ScreenDataset) -> None:
    direct, mixed = chain(black_box=False), chain(black_box=True)
    expected = fit(direct, data)
    middle = mixed.stages["middle"]
    before = middle.runs
    found = fit(mixed, data)
    runs = middle.runs - before
    assert expected.converged
    assert found.converged
    for name, truth in {**TRUTH, "offset": OFFSET, "emittance": EMITTANCE}.items():
        (value, error), (other, other_error) = found[name], expected[name]
        print(f"{name}: {value} +- {error} by pyAT, {other} +- {other_error} by Cheetah, true {truth}")
        assert abs(value - other) < 0.1 * error, name
        assert error == pytest.approx(other_error, rel=0.05), name
        assert abs(value - truth) < 4.0 * error, name
    jacobian = SETTINGS * (13 + 2 * len(MIDDLE))
    print(f"{runs} runs of pyAT, {runs / jacobian:.2f} Jacobians' worth; {found.evaluations} evaluations")
    assert f"{found.runs} simulator runs" in str(found)
    assert found.runs >= runs > 0
    assert runs <= 8 * jacobian
