"""Fits of images by few particles: what their chance positions do to an estimate is in its error."""

from __future__ import annotations

from typing import Any

import cheetah
import numpy as np
import pytest
import torch

import lume_diff as ld
from lume_diff.calibration import Calibration, Images, LogNormal, Normal, Offset, Profiles, Scale, ScreenDataset, Value
from lume_diff.calibration.fit.bunches import effective_particles, is_drawn, other_bunches
from lume_diff.errors import PhysicsWarning

D = torch.float64
PIXEL = 1.5e-4
K1 = np.linspace(-8.0, 8.0, 6)
TRUTH = {"scale of Q1.k1": 1.03, "offset of SCR1.misalignment_x": 3e-4, "norm_emit_x": 5.2e-6}


def number(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=D)


def gun(particles: int, seed: int) -> ld.BunchFromMoments:
    twiss = {"beta_x": 8.0, "norm_emit_x": 4e-6, "beta_y": 6.0, "norm_emit_y": 4e-6}
    return ld.BunchFromMoments(particles, seed, mean_energy=1e8, sigma_energy=1e4, charge=1e-10, **twiss)


def transport(bunch: Any) -> ld.CheetahModel:
    elements = [
        cheetah.Quadrupole(number(0.1), number(0.0), name="Q1", dtype=D),
        cheetah.Drift(number(1.5), name="D1", dtype=D),
        cheetah.Screen((40, 40), torch.tensor([PIXEL, PIXEL], dtype=D), is_active=True, name="SCR1", dtype=D),
    ]
    return ld.CheetahModel(cheetah.Segment(elements, name="line"), bunch)


def line(particles: int, seed: int = 0) -> ld.StagedModel:
    source = gun(particles, seed)
    return ld.StagedModel({"beam": source, "line": transport(source.get("final_particles"))})


def scan(seed: int) -> ScreenDataset:
    """Return noisy images of a beam without grains."""
    inputs = {
        "Q1.k1": torch.tensor(K1) * TRUTH["scale of Q1.k1"],
        "SCR1.misalignment_x": number(TRUTH["offset of SCR1.misalignment_x"]),
        "norm_emit_x": number(TRUTH["norm_emit_x"]),
    }
    images = line(100_000, 123)(inputs, outputs=["SCR1.image"])["SCR1.image"].numpy()
    images = 1000.0 * images / images.max()
    images = images + np.random.default_rng(seed).normal(0.0, 3.0, images.shape)
    return ScreenDataset({"Q1.k1": K1}, images, "SCR1.image", PIXEL, noise=3.0)


def test_other_bunches_are_drawn_with_the_same_moments() -> None:
    model = line(500)
    before = model.get("final_particles").x.clone()
    assert is_drawn(model)
    assert effective_particles(model) == pytest.approx(500.0)
    seen = [other.get("final_particles").x.clone() for other, given in other_bunches(model, 3) if not given]
    assert len({float(x[0]) for x in (before, *seen)}) == 4
    for x in seen:
        assert float(x.std()) == pytest.approx(float(before.std()), rel=1e-6)
    torch.testing.assert_close(model.get("final_particles").x, before, rtol=0.0, atol=0.0)


def test_a_given_bunch_is_resampled() -> None:
    bunch = gun(500, 0).get("final_particles")
    model = transport(bunch)
    assert not is_drawn(model)
    for _, given in other_bunches(model, 2):
        weight = given["initial_particles"].weight
        assert float(weight.sum()) == pytest.approx(float(bunch.weight.sum()))
        assert len(weight.unique()) > 3


@pytest.mark.slow
@pytest.mark.parametrize("likelihood", [Images(), Profiles()], ids=["images", "profiles"])
def test_errors_hold_for_few_particles(likelihood: Any) -> None:
    """Bunches of 1500 particles, each a stranger to the data: over all of them the errors are what they say."""
    pulls, chi = [], []
    for seed in range(6):
        parameters = [
            Scale("Q1.k1", Normal(1.0, 0.02)),
            Offset("SCR1.misalignment_x", Normal(0.0, 5e-4)),
            Value("norm_emit_x", LogNormal(4.5e-6, 1.5), name="norm_emit_x"),
        ]
        result = Calibration(line(1500, seed), scan(seed), parameters, likelihood).run(progress=False)
        chi.append(result.reduced_chi_square)
        pulls += [(result[name][0] - truth) / result[name][1] for name, truth in TRUTH.items()]
    assert 0.5 < np.sqrt(np.mean(np.square(pulls))) < 1.5
    assert max(map(abs, pulls)) < 4.0
    # The settings share one bunch, so that a profile or two decide.
    assert 0.6 < np.mean(chi) < 1.5


def test_too_few_particles_are_named() -> None:
    model = transport(gun(300, 0).get("final_particles"))
    fit = Calibration(model, scan(0), [Offset("SCR1.misalignment_x", Normal(0.0, 5e-4))], Images())
    with pytest.warns(PhysicsWarning, match=r"counts as 300 macroparticles.*use \d+ particles"):
        fit.run(progress=False)
