"""Gradients through Cheetah -> IMPACT-T -> Cheetah, against differences over the whole chain."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import cheetah
import pytest
import torch
from torch import Tensor

import lume_diff as ld
from lume_diff.blackbox.differences.method import FiniteDifference
from lume_diff.blackbox.impact.model import ImpactTModel
from lume_diff.blackbox.impact.program import find_program, lume_impact
from lume_diff.errors import GradientError, MissingExtraError, PhysicsWarning

pytestmark = [pytest.mark.gradient, pytest.mark.slow]
KNOBS = ("QA.k1", "SOL.solenoid_field_scale", "QB.b1_gradient", "QC.k1")
MIDDLE = KNOBS[1:3]
DECK = """1 1
2e-11 100000 1
6 100 1 0 2 0 0.02
8 8 8 1 0.03 0.03 100.0
16 0 0 -1 1.4e-11
0. 0. 0. 1. 1. 0. 0.
0. 0. 0. 1. 1. 0. 0.
0. 0. 0. 1. 1. 0. 0.
{current} 1.0 510998.95 -1.0 2.856e9 0.0
0 0 0 -5 0 0 -1000.0 /!name:in_3d
0.1 0 0 0 0.0 0.03 /!name:DA
0.2 0 0 105 0.1 0.0 0.0 0.0 201 0.03 0 0 0 0 0 0.05 /!name:SOL
0.3 0 0 1 0.3 0.5 0.1 0.03 0 0 0 0 0 /!name:QB
0.2 0 0 0 0.6 0.03 /!name:DB
0 0 0 -99 0 0 0.8 /!name:stop
"""


class Chain(NamedTuple):
    """A chain with one knob before, two in and one behind IMPACT-T."""

    model: ld.StagedModel
    middle: Any
    start: Tensor

    def size(self, values: Tensor) -> Tensor:
        found = self.model(dict(zip(KNOBS, values, strict=True)), outputs=["final.sigma_x", "final.sigma_y"])
        return (1e4 * found["final.sigma_x"]) ** 2 + (1e4 * found["final.sigma_y"]) ** 2


def build(folder: Path, count: int, current: float, **options: Any) -> Chain:
    try:
        lume_impact()
        find_program()
    except MissingExtraError as error:
        pytest.skip(str(error))

    def number(value: float) -> Tensor:
        return torch.tensor(value, dtype=torch.float64)

    # Bz = (1 + cos(2 pi z / L)) / 2 over L = 0.2 m, in IMPACT-T's Fourier coefficients, and no RF field.
    numbers = [1, 0.0, 0.0, 0.0, 0.0, 3, 0.0, 0.2, 0.2, 1.0, 0.5, 0.0]
    (folder / "rfdata201").write_text("\n".join(map(str, numbers)) + "\n")
    (folder / "ImpactT.in").write_text(DECK.format(current=current))
    twiss = {"beta_x": 5.0, "norm_emit_x": 1e-6, "beta_y": 4.0, "norm_emit_y": 1e-6}
    spread = {"sigma_t": 1e-12, "sigma_energy": 3e4}
    bunch = ld.BunchFromMoments(count, mean_energy=3e7, charge=1e-10, **twiss, **spread).get("final_particles")
    ahead = [cheetah.Quadrupole(number(0.2), number(1.5), name="QA"), cheetah.Drift(number(0.5), name="DA")]
    behind = [cheetah.Quadrupole(number(0.2), number(-1.0), name="QC"), cheetah.Drift(number(1.0), name="DC")]
    first = ld.CheetahModel(cheetah.Segment(ahead, name="ahead"), bunch, controls=["QA.k1"])
    middle = ImpactTModel(
        folder / "ImpactT.in", MIDDLE, [], beam=first.get("final_particles"), start=0.0, timeout=300.0, **options
    )
    last = ld.CheetahModel(cheetah.Segment(behind, name="behind"), middle.get("final_particles"), controls=["QC.k1"])
    chain = ld.StagedModel({"ahead": first, "middle": middle, "behind": last})
    return Chain(chain, middle, torch.stack([chain.get(name).detach() for name in KNOBS]))


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    return build(tmp_path_factory.mktemp("free"), 10_000, 0.0)


def test_reverse_mode_without_space_charge(compared: Any, chain: Chain) -> None:
    compared.gradient(chain.size, chain.start)  # measures noise and checks the direction, once
    at = chain.start * 1.01
    before = chain.middle.runs
    found = compared.gradient(chain.size, at)
    assert chain.middle.runs - before <= 13 + 2 * len(MIDDLE)
    assert compared.off(found, compared.whole_chain(chain.size, at, 1e-3)).max() < 1e-8


def test_all_particles_come_through_with_their_ids(chain: Chain) -> None:
    given = chain.model.get("initial_particles")
    for name in ("middle/final_particles", "final_particles"):
        found = chain.model.get(name)
        assert found.n_particle == 10_000
        assert torch.equal(found.id, given.id)
        assert bool((found.alive == 1.0).all())
    assert float(chain.model.get("middle/final_particles").z[0]) == pytest.approx(0.7 + 0.8, rel=1e-12)


def test_forward_mode_with_space_charge(compared: Any, tmp_path: Path) -> None:
    chain = build(tmp_path, 500, 1.0, gradient=FiniteDifference(particles="collective"))
    found = compared.pushed(chain.size, chain.start)
    expected = compared.whole_chain(chain.size, chain.start, 1e-5, levels=1)
    assert compared.off(found, expected).max() < 1e-4
    with pytest.raises(GradientError, match="forward mode"):
        compared.gradient(chain.size, chain.start)


def test_reverse_mode_with_space_charge_says_how_far_it_is_off(compared: Any, tmp_path: Path) -> None:
    chain = build(tmp_path, 500, 1.0)
    with pytest.warns(PhysicsWarning, match=r"off by [\d.]+ in a random direction"):
        found = compared.gradient(chain.size, chain.start)
    wrong = compared.off(found, compared.whole_chain(chain.size, chain.start, 1e-5, levels=1))
    assert wrong[0] > 1e-3  # upstream
    assert wrong[1:].max() < 1e-4  # its own knobs and what lies behind
    assert any("random direction" in note for note in chain.middle.gradient_report().notes)
