"""Chains of LUME's stages and ours, here and there."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch

import lume_diff as ld

pytest.importorskip("lume.model")
from lume import variables as native
from lume.model import LUMEModel
from lume.staged_model import FinalParticlesMixIn, InitialParticlesMixIn, StagedModel

from lume_diff.blackbox.lume.model import LumeModel, to_lume

Make = Callable[..., Any]


def cheetah_stage(k1: float, name: str, bunch: Make) -> ld.CheetahModel:
    import cheetah

    quad = cheetah.Quadrupole(torch.tensor(0.2), torch.tensor(k1), name=f"Q{name}")
    segment = cheetah.Segment([quad, cheetah.Drift(torch.tensor(1.0), name=f"D{name}")], name=name)
    return ld.CheetahModel(segment, bunch(), [f"Q{name}.k1"], ["final.sigma_x"])


def test_ours_are_stages_of_a_chain_there(bunch: Make) -> None:
    from beamphysics import ParticleGroup

    first, second = cheetah_stage(1.5, "A", bunch), cheetah_stage(-1.0, "B", bunch)
    ours = ld.StagedModel([copy.deepcopy(first), copy.deepcopy(second)])
    stages = [to_lume(first), to_lume(second)]
    assert all(isinstance(stage, InitialParticlesMixIn) and isinstance(stage, FinalParticlesMixIn) for stage in stages)
    stages[1].initial_particles = stages[0].final_particles
    assert stages[1].get_value("final.sigma_x") == pytest.approx(ours.get("final.sigma_x").item(), rel=1e-12)
    assert isinstance(stages[1].final_particles, ParticleGroup)


class Telescope(LUMEModel, InitialParticlesMixIn, FinalParticlesMixIn):
    """A stage of LUME's: its bunches are attributes, not variables."""

    def __init__(self, start: Any) -> None:
        self._start, self._factor = start, 2.0

    @property
    def supported_variables(self) -> dict[str, native.Variable]:
        return {"factor": native.ScalarVariable(name="factor", default_value=2.0)}

    @property
    def initial_particles(self) -> Any:
        return self._start

    @initial_particles.setter
    def initial_particles(self, value: Any) -> None:
        self._start = value

    @property
    def final_particles(self) -> Any:
        found = self._start.copy()
        found.x, found.px = self._factor * self._start.x, self._start.px / self._factor
        return found

    def _set(self, values: dict[str, Any]) -> None:
        self._factor = values.get("factor", self._factor)

    def _get(self, names: list[str]) -> dict[str, Any]:
        return {"factor": self._factor}

    def reset(self) -> None:
        self._factor = 2.0


def test_a_stage_of_theirs_in_a_chain_of_ours(bunch: Make) -> None:
    start = bunch()
    middle = LumeModel(Telescope(start.to_particle_group()))
    assert middle.input_names == ["factor", "initial_particles"]
    assert middle.output_names == ["final_particles"]
    before, behind = cheetah_stage(1.5, "A", bunch), cheetah_stage(-1.0, "B", bunch)
    chain = ld.StagedModel({"before": before, "middle": middle, "behind": behind})
    k1 = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    factor = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)

    def size(k1: Any, factor: Any) -> torch.Tensor:
        return chain({"QA.k1": k1, "factor": factor}, outputs=["final.sigma_x"])["final.sigma_x"]

    size(k1, factor).backward()
    for leaf, move in ((k1, (1e-4, 0.0)), (factor, (0.0, 1e-4))):
        up, down = (size(1.5 + sign * move[0], 2.0 + sign * move[1]).item() for sign in (1, -1))
        assert leaf.grad.item() == pytest.approx((up - down) / 2e-4, rel=1e-6)


def test_stages_of_both_kinds_in_a_chain_there(bunch: Make) -> None:
    start = bunch().to_particle_group()
    chain = StagedModel([Telescope(start), to_lume(cheetah_stage(1.5, "A", bunch))])
    chain.set({"factor": 3.0})
    alone = cheetah_stage(1.5, "A", bunch)
    wide = start.copy()
    wide.x, wide.px = 3.0 * start.x, start.px / 3.0
    alone.set({"initial_particles": wide})
    assert chain.get(["final.sigma_x"])["final.sigma_x"] == pytest.approx(alone.get("final.sigma_x").item(), rel=1e-12)
