"""Gradients through Cheetah -> ImpactX -> Cheetah, against differences over the whole chain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import lume_diff as ld
from lume_diff.blackbox import FiniteDifference
from lume_diff.errors import GradientError, PhysicsWarning

pytest.importorskip("impactx")
import cheetah
from impactx import elements as ix

from lume_diff.blackbox.impactx.model import ImpactXModel

pytestmark = pytest.mark.gradient
KNOBS = ("QA.k1", "QB.k1", "QC.k1", "QD.k1")
PIXELS = 100


@dataclass
class Chain:
    """A chain with one knob before, two in and one behind ImpactX."""

    model: ld.StagedModel
    middle: Any
    start: Tensor

    def read(self, values: Tensor, outputs: list[str]) -> dict[str, Any]:
        return self.model(dict(zip(KNOBS, values, strict=True)), outputs=outputs)

    def size(self, values: Tensor) -> Tensor:
        found = self.read(values, ["final.sigma_x", "final.sigma_y"])
        return (1e4 * found["final.sigma_x"]) ** 2 + (1e4 * found["final.sigma_y"]) ** 2

    def screen(self, values: Tensor) -> Tensor:
        image = self.read(values, ["SCR.image"])["SCR.image"]
        place = torch.linspace(-1, 1, PIXELS, dtype=torch.float64)
        return 1e3 * ((image / image.sum()) * (place[:, None] ** 2 + 0.5 * place**2)).sum()


def build(count: int, energy: float, charge: float = 1e-9, **options: Any) -> Chain:
    def number(value: float) -> Tensor:
        return torch.tensor(value, dtype=torch.float64)

    twiss = {"beta_x": 5.0, "norm_emit_x": 1e-6, "beta_y": 4.0, "norm_emit_y": 1e-6}
    bunch = ld.BunchFromMoments(
        count, mean_energy=energy, charge=charge, sigma_t=2e-12, sigma_energy=1e-3 * energy, **twiss
    ).get("final_particles")
    before = cheetah.Segment(
        [cheetah.Quadrupole(number(0.2), number(1.5), name="QA"), cheetah.Drift(number(0.5), name="DA")], name="before"
    )
    behind = cheetah.Segment(
        [
            cheetah.Quadrupole(number(0.2), number(-1.0), name="QD"),
            cheetah.Drift(number(1.0), name="DE"),
            cheetah.Screen(
                name="SCR",
                resolution=(PIXELS, PIXELS),
                pixel_size=torch.tensor([2e-5, 2e-5], dtype=torch.float64),
                is_active=True,
                method="cloud-in-cell",
            ),
        ],
        name="behind",
    )
    slices = 2 if "space_charge" in options else 1
    lattice = [
        ix.Quad(name="QB", ds=0.2, k=-1.5, nslice=slices),
        ix.Drift(name="DB", ds=1.0, nslice=slices),
        ix.Quad(name="QC", ds=0.2, k=1.0, nslice=slices),
        ix.Drift(name="DC", ds=0.5, nslice=slices),
    ]
    first = ld.CheetahModel(before, bunch, controls=["QA.k1"])
    middle = ImpactXModel(lattice, ["QB.k1", "QC.k1"], [], beam=first.get("final_particles"), **options)
    last = ld.CheetahModel(behind, middle.get("final_particles"), controls=["QD.k1"])
    chain = ld.StagedModel({"before": first, "middle": middle, "behind": last})
    return Chain(chain, middle, torch.stack([chain.get(name).detach() for name in KNOBS]))


@pytest.fixture(scope="module")
def chain() -> Chain:
    return build(10_000, 1e8)


def test_reverse_mode_without_space_charge(compared: Any, chain: Chain) -> None:
    found = compared.gradient(chain.size, chain.start)
    expected = compared.whole_chain(chain.size, chain.start, 1e-3)
    assert compared.off(found, expected).max() < 1e-9


def test_a_screen_without_space_charge(compared: Any, chain: Chain) -> None:
    # An image is smooth only as long as no particle crosses from one pixel's middle to the next.
    found = compared.gradient(chain.screen, chain.start)
    expected = compared.whole_chain(chain.screen, chain.start, 1e-7, levels=1)
    assert compared.off(found, expected).max() < 1e-6


def test_what_a_gradient_costs(compared: Any, chain: Chain) -> None:
    compared.gradient(chain.size, chain.start)  # measures noise and checks the direction, once
    before = chain.middle.runs
    compared.gradient(chain.size, chain.start + 0.05)
    assert chain.middle.runs - before <= 13 + 2 * 2
    before = chain.middle.runs
    compared.gradient(chain.screen, chain.start + 0.05)
    assert chain.middle.runs == before


def test_all_particles_come_through_with_their_ids(chain: Chain) -> None:
    given = chain.model.get("initial_particles")
    for name in ("middle/final_particles", "final_particles"):
        found = chain.model.get(name)
        assert found.n_particle == 10_000
        assert torch.equal(found.id, given.id)
        assert bool((found.alive == 1.0).all())


def test_forward_mode_without_space_charge(compared: Any, chain: Chain) -> None:
    assert (
        compared.off(compared.pushed(chain.size, chain.start), compared.gradient(chain.size, chain.start)).max() < 1e-9
    )


@pytest.mark.parametrize(
    "count,cells,energy",
    [
        pytest.param(2_000, 16, 1e8, id="2000 particles, 100 MeV"),
        pytest.param(2_000, 16, 3e7, id="2000 particles, 30 MeV"),
        pytest.param(10_000, 32, 1e8, id="10000 particles, 100 MeV", marks=pytest.mark.slow),
    ],
)
def test_forward_mode_with_space_charge(compared: Any, count: int, cells: int, energy: float) -> None:
    chain = build(
        count,
        energy,
        space_charge="3D",
        n_cell=(cells,) * 3,
        gradient=FiniteDifference(particles="collective"),
    )
    found = compared.pushed(chain.size, chain.start)
    expected = compared.whole_chain(chain.size, chain.start, 1e-4, levels=1)
    assert compared.off(found, expected).max() < 1e-4
    ids = chain.model.get("initial_particles").id
    through = chain.model.get("middle/final_particles")
    assert torch.equal(through.id, ids)
    assert through.n_particle == count
    with pytest.raises(GradientError, match="forward mode"):
        compared.gradient(chain.size, chain.start)


def test_reverse_mode_with_space_charge_says_how_far_it_is_off(compared: Any) -> None:
    chain = build(2_000, 1e8, space_charge="3D", n_cell=(16, 16, 16))
    with pytest.warns(PhysicsWarning, match=r"off by 0\.\d+ in a random direction"):
        found = compared.gradient(chain.size, chain.start)
    wrong = compared.off(found, compared.whole_chain(chain.size, chain.start, 1e-4, levels=1))
    assert wrong[0] > 1e-2  # upstream
    assert wrong[1:].max() < 1e-6  # its own knobs and what lies behind
    assert any("random direction" in note for note in chain.middle.gradient_report().notes)
