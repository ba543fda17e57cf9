"""A reconstruction through a black box between differentiable stages finds the bunch, and says what it has cost."""

from __future__ import annotations

import cheetah
import numpy as np
import pytest
import torch

import lume_diff as ld
from lume_diff.calibration import BeamReconstruction, ScreenDataset

at = pytest.importorskip("at")

pytestmark = [pytest.mark.gradient, pytest.mark.slow]

D = torch.float64
PIXEL, PARTICLES, EPOCHS = 1.5e-4, 500, 40
K1 = np.linspace(-10.0, 8.0, 5)
DESIGN = {"beta_x": 4.0, "norm_emit_x": 2.5e-5, "beta_y": 4.0, "norm_emit_y": 2.5e-5}
TRUTH = {"beta_x": 3.0, "alpha_x": 0.4, "norm_emit_x": 3e-5, "beta_y": 5.0, "alpha_y": -0.3, "norm_emit_y": 2e-5}


def number(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=D)


def bunch(count: int, twiss: dict[str, float]) -> ld.TorchParticleGroup:
    gun = ld.BunchFromMoments(count, mean_energy=1e8, sigma_energy=1e3, sigma_t=1e-13, charge=1e-10, **twiss)
    return gun.get("final_particles")


def chain(start: ld.TorchParticleGroup, black_box: bool) -> ld.StagedModel:
    """Return a quadrupole, another one by pyAT or by Cheetah, and a drift with a screen."""
    first = ld.CheetahModel(
        cheetah.Segment([cheetah.Quadrupole(number(0.1), number(0.0), name="Q1", dtype=D)], name="first"), start
    )
    handed = first.get("final_particles")
    if black_box:
        ring = at.Lattice([at.Quadrupole("Q2", 0.1, 2.0), at.Drift("D2", 0.4)], energy=1e8)
        middle: ld.LUMEModel = ld.ATModel(ring, controls=["Q2.k1"], outputs=[], beam=handed)
    else:
        elements = [
            cheetah.Quadrupole(number(0.1), number(2.0), name="Q2", dtype=D),
            cheetah.Drift(number(0.4), name="D2", dtype=D),
        ]
        middle = ld.CheetahModel(cheetah.Segment(elements, name="middle"), handed)
    elements = [
        cheetah.Drift(number(1.0), name="D3", dtype=D),
        cheetah.Screen((60, 60), torch.tensor([PIXEL, PIXEL], dtype=D), is_active=True, name="SCR1", dtype=D),
    ]
    last = ld.CheetahModel(cheetah.Segment(elements, name="last"), middle.get("final_particles"))
    return ld.StagedModel({"first": first, "middle": middle, "last": last})


def test_same_bunch_through_a_simulator() -> None:
    machine = chain(bunch(20_000, TRUTH), black_box=False)
    light = machine({"Q1.k1": torch.tensor(K1)}, outputs=["SCR1.image"])["SCR1.image"].numpy()
    data = ScreenDataset({"Q1.k1": K1}, 1000.0 * light / light.max(), "SCR1.image", PIXEL)

    mixed = chain(bunch(PARTICLES, DESIGN), black_box=True)
    before = mixed.stages["middle"].runs
    found = BeamReconstruction(mixed, data, PARTICLES).run(EPOCHS, progress=False)
    runs = mixed.stages["middle"].runs - before
    direct = BeamReconstruction(chain(bunch(PARTICLES, DESIGN), black_box=False), data, PARTICLES)
    expected = direct.run(EPOCHS, progress=False)

    truth = bunch(20_000, TRUTH)
    for name in ("norm_emit_x", "norm_emit_y", "twiss_beta_x", "twiss_beta_y"):
        value = found.statistic(name)[0]
        print(f"{name}: {value} by pyAT, {expected.statistic(name)[0]} by Cheetah, true {float(truth[name])}")
        assert value == pytest.approx(expected.statistic(name)[0], rel=0.03), name
        assert value == pytest.approx(float(truth[name]), rel=0.25), name
    epochs = len(found.history)
    print(f"{runs} runs of pyAT in {epochs} epochs of {len(K1)} settings: {runs / epochs / len(K1):.2f} each")
    assert found.runs >= runs
    assert 0 < runs <= 15 * epochs * len(K1)
    assert f"{found.runs} model runs" in found.report()
