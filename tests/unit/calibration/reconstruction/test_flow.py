"""Generators: a normalizing flow beside the network, and what entropy does with its density."""

from __future__ import annotations

import sys
from typing import Any

import cheetah
import numpy as np
import pytest
import torch
from torch import nn

import lume_diff as ld
from lume_diff.calibration import BeamReconstruction, ScreenDataset
from lume_diff.calibration.reconstruction.flow import Flow
from lume_diff.calibration.reconstruction.generators import Network, entropy
from lume_diff.errors import MissingExtraError, ValidationError

D = torch.float64
PIXEL = 2e-4
K1 = np.linspace(-8.0, 8.0, 5)
TRUTH = {"beta_x": 6.0, "alpha_x": 0.5, "norm_emit_x": 1.2e-5, "beta_y": 9.0, "alpha_y": -0.5, "norm_emit_y": 8e-6}


def gun(count: int, **twiss: float) -> ld.TorchParticleGroup:
    design = {"beta_x": 8.0, "norm_emit_x": 1e-5, "beta_y": 8.0, "norm_emit_y": 1e-5}
    common = {"mean_energy": 1e8, "sigma_energy": 1e4, "sigma_t": 1e-12, "charge": 1e-10}
    return ld.BunchFromMoments(count, **common, **{**design, **twiss}).get("final_particles")


def line(bunch: ld.TorchParticleGroup) -> ld.CheetahModel:
    def number(value: float) -> torch.Tensor:
        return torch.tensor(value, dtype=D)

    elements = [
        cheetah.Quadrupole(number(0.1), number(0.0), name="Q1", dtype=D),
        cheetah.Drift(number(1.5), name="D1", dtype=D),
        cheetah.Screen((30, 30), torch.tensor([PIXEL, PIXEL], dtype=D), is_active=True, name="SCR1", dtype=D),
    ]
    return ld.CheetahModel(cheetah.Segment(elements, name="line"), bunch, controls=["Q1.k1"], outputs=["SCR1.image"])


@pytest.fixture(scope="module")
def scan() -> ScreenDataset:
    light = line(gun(20_000, **TRUTH))({"Q1.k1": torch.tensor(K1)}, outputs=["SCR1.image"])["SCR1.image"].numpy()
    return ScreenDataset({"Q1.k1": K1}, 1000.0 * light / light.max(), "SCR1.image", PIXEL)


@pytest.mark.parametrize("kind", [Network, Flow], ids=["network", "flow"])
@pytest.mark.parametrize("dimensions", [4, 6])
def test_entropy_is_that_of_the_map(kind: type[nn.Module], dimensions: int, seed: int) -> None:
    if kind is Flow:
        pytest.importorskip("zuko")
    generator = kind(dimensions, seed=seed, dtype=D)
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, dtype=D, generator=torch.Generator().manual_seed(seed)))
    points = torch.randn(20, dimensions, dtype=D, generator=torch.Generator().manual_seed(seed))
    step = 1e-6
    columns = [(generator(points + e) - generator(points - e)) / (2 * step) for e in step * torch.eye(dimensions)]
    expected = torch.linalg.slogdet(torch.stack(columns, -1)).logabsdet.mean() / dimensions
    assert entropy(generator, points).item() == pytest.approx(expected.item(), abs=1e-6)


def test_flow_starts_round_and_repeats_its_seed() -> None:
    pytest.importorskip("zuko")
    points = torch.randn(5000, 4, dtype=D, generator=torch.Generator().manual_seed(0))
    before = torch.get_rng_state()
    first, again, other = (Flow(4, seed=seed)(points) for seed in (3, 3, 4))
    assert torch.equal(before, torch.get_rng_state()), "draws of others are left alone"
    assert first.equal(again)
    assert not first.equal(other)
    assert torch.cov(first.mT).detach().numpy() == pytest.approx(np.eye(4), abs=0.1)


def test_most_entropy_for_a_mean_square_is_a_normal_distribution() -> None:
    pytest.importorskip("zuko")
    flow = Flow(4, seed=0)
    with torch.no_grad():
        flow.linear.weight.mul_(0.4)
    base = torch.randn(500, 4, dtype=D, generator=torch.Generator().manual_seed(0))
    optimiser = torch.optim.Adam(flow.parameters(), 2e-2)
    for _ in range(100):
        optimiser.zero_grad()
        (0.5 * flow(base).square().mean() - entropy(flow, base)).backward()
        optimiser.step()
    assert flow(base).std(0).tolist() == pytest.approx([1.0] * 4, rel=0.1)


@pytest.mark.slow
def test_flow_finds_a_known_bunch(scan: ScreenDataset) -> None:
    pytest.importorskip("zuko")
    task = BeamReconstruction(line(gun(500)), scan, 1000, generator="flow")
    result = task.run(400, ensemble=1, entropy_weight=0.001, progress=False)
    assert isinstance(result.members[0].generator, Flow)
    truth = gun(20_000, **TRUTH)
    for name in ("norm_emit_x", "norm_emit_y", "twiss_beta_x", "twiss_beta_y"):
        assert result.statistic(name)[0] == pytest.approx(float(truth[name]), rel=0.15), name
    assert float(result.fit.image.mean()) < 0.15


def test_missing_zuko_names_the_extra(scan: ScreenDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zuko", None)
    monkeypatch.setitem(sys.modules, "zuko.flows", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'lume-diff\[flow\]'"):
        BeamReconstruction(line(gun(500)), scan, 200, generator="flow")


@pytest.mark.parametrize("generator", ["flows", 3, lambda seed: seed], ids=["name", "number", "no module"])
def test_other_generators_are_refused(scan: ScreenDataset, generator: Any) -> None:
    with pytest.raises(ValidationError, match="expected 'network', 'flow', or a function that makes"):
        BeamReconstruction(line(gun(500)), scan, 200, generator=generator)


def test_any_module_will_do(scan: ScreenDataset) -> None:
    task = BeamReconstruction(line(gun(500)), scan, 500, generator=lambda seed: nn.Linear(4, 4, dtype=D))
    assert task.run(2, progress=False, entropy_weight=0.01).finished
