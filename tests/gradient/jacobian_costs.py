"""Models whose Jacobians cost simulator runs, and a check that what was foretold is what is spent."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import cheetah
import torch
from torch import Tensor

from lume_diff.blackbox import BlackBoxModel, FiniteDifference
from lume_diff.blackbox.simulator import Simulator
from lume_diff.errors import PhysicsWarning
from lume_diff.models import BunchFromMoments, CheetahModel, JacobianCost, LUMEModel, StagedModel
from lume_diff.variables import ParticleGroupVariable, TorchScalarVariable

F64 = torch.float64
PARTICLES = 50
MODES = ("reverse", "forward", "collective")


def t(value: Any) -> Tensor:
    return torch.tensor(value, dtype=F64)


class Kicks(Simulator):
    """Thin lenses with a drift in between, and a force towards the centre of the bunch that all particles make."""

    def __init__(self, force: float = 0.0) -> None:
        self.force = force

    def run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
        bunch, found = inputs["initial_particles"].copy(), {}
        for knob, name in (("k1", "middle_particles"), ("k2", "final_particles")):
            bunch.px = bunch.px - inputs[knob] * bunch.x * bunch.pz
            bunch.py = bunch.py + inputs[knob] * bunch.y * bunch.pz
            bunch.px = bunch.px - self.force * (bunch.x - bunch.x.mean()) * bunch.x.std() / 1e-3 * bunch.pz
            bunch.x = bunch.x + 0.5 * bunch.px / bunch.pz
            bunch.y = bunch.y + 0.5 * bunch.py / bunch.pz
            found[name] = bunch.copy()
        return {**found, "trace": 2.0 - 0.5 * inputs["k1"] * inputs["k2"]}


def kicks(beam: Any, particles: str = "per_particle", force: float = 0.0, **options: Any) -> BlackBoxModel:
    knobs = [TorchScalarVariable(name=name, default_value=0.3, scale=0.1) for name in ("k1", "k2")]
    variables = [
        ParticleGroupVariable(name="initial_particles"),
        *knobs,
        ParticleGroupVariable(name="middle_particles", read_only=True),
        ParticleGroupVariable(name="final_particles", read_only=True),
        TorchScalarVariable(name="trace", read_only=True),
        TorchScalarVariable(name="middle.sigma_x", read_only=True),
        TorchScalarVariable(name="final.sigma_x", read_only=True),
    ]
    return BlackBoxModel(
        lambda: Kicks(force),
        variables,
        FiniteDifference(particles=particles, **options),
        derived={f"{place}.sigma_x": (f"{place}_particles", "sigma_x") for place in ("middle", "final")},
        initial={"initial_particles": beam},
    )


def line(name: str, beam: Any, count: int) -> CheetahModel:
    """Return quadrupoles ``<name>1.k1`` and so on, with drifts, and a screen behind them."""
    elements: list[cheetah.Element] = []
    for i in range(1, count + 1):
        elements.append(cheetah.Quadrupole(t(0.1), t(2.0 * (-1) ** i), name=f"{name}{i}"))
        elements.append(cheetah.Drift(t(0.3), name=f"{name}D{i}"))
    screen = cheetah.Screen(
        (8, 6), t([2e-4, 2e-4]), method="kde", kde_bandwidth=t(2e-4), is_active=True, name=f"{name}S"
    )
    return CheetahModel(cheetah.Segment([*elements, screen], name=name), beam)


def chain(middle: str = "per_particle", force: float = 0.0, before: int = 8, **options: Any) -> StagedModel:
    """Return Cheetah, a black box, and Cheetah; noise and curvature of the box's knobs are measured already."""
    twiss = {"norm_emit_x": 1e-6, "norm_emit_y": 1e-6, "beta_x": 4.0, "beta_y": 5.0}
    source = BunchFromMoments(
        PARTICLES, seed=1, mean_energy=1e8, sigma_energy=1e5, sigma_t=1e-12, charge=1e-10, **twiss
    )
    first = line("A", source.get("final_particles"), before)
    box = kicks(first.get("final_particles"), middle, force, **options)
    last = line("Z", box.get("final_particles"), 3)
    model = StagedModel({"first": first, "box": box, "last": last})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PhysicsWarning)
        model.jacobian(["final.sigma_x", "trace"], ["k1", "k2", "A1.k1"], at={"k1": 0.31}, mode="forward")
    return model


SHIFTS = itertools.count(1)


def fresh(inputs: Sequence[str]) -> dict[str, float]:
    """Return a point that no model has been at."""
    return {name: 0.3 + 1e-4 * next(SHIFTS) for name in inputs}


def spend(
    model: LUMEModel, outputs: Sequence[str], inputs: Sequence[str], mode: str = "auto", **at: Any
) -> tuple[dict[str, dict[str, Tensor]], JacobianCost]:
    """Take a Jacobian and check that it spent what it says, and what was foretold."""
    before = model._spent()[0]
    table = model.jacobian(outputs, inputs, at=at or fresh(inputs), mode=mode)
    cost = model.gradient_report().jacobian
    assert cost is not None
    assert cost.runs + cost.learning_runs == model._spent()[0] - before
    assert {cost.mode, *(other.mode for other in cost.alternatives)} >= {"reverse", "forward"}
    return table, cost


def runs_of(cost: JacobianCost) -> dict[str, int | None]:
    return {other.mode: other.runs for other in (cost.predicted, *cost.alternatives)}
