"""A bunch through a code that knows its own map: no runs but for the checks, and a word where it is wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from lume_diff.blackbox import BlackBoxModel, FiniteDifference, Simulator
from lume_diff.blackbox.differences.bunch_rows import COORDINATES_IN, COORDINATES_OUT
from lume_diff.blackbox.differences.native import bunch_block
from lume_diff.errors import PhysicsWarning
from lume_diff.variables import ParticleGroupVariable, TorchScalarVariable
from tests.unit.blackbox.bunches import P, incoming

D = torch.float64
LENGTH = 2.0  # [m]
OUT, IN = ({name: i for i, name in enumerate(names)} for names in (COORDINATES_OUT, COORDINATES_IN))


class Line(Simulator):
    """A drift and a thin quadrupole of strength ``k``, with a sextupole of which the code's own map knows nothing."""

    def __init__(self, covered: Sequence[str], each: bool, sextupole: float, off: float) -> None:
        self.covered, self.each, self.sextupole, self.off = covered, each, sextupole, off

    def run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
        group = inputs["initial_particles"].copy()
        group.x = group.x + LENGTH * group.px / P
        group.px = group.px - inputs["k"] * P * group.x - self.sextupole * P * group.x**2
        return {"final_particles": group}

    def jacobian(
        self, inputs: Mapping[str, Any], outputs: Sequence[str], wrt: Sequence[str]
    ) -> dict[str, dict[str, np.ndarray]]:
        group, k = inputs["initial_particles"], inputs["k"] + self.off
        matrix = np.zeros((7, 6))
        for name in COORDINATES_IN:
            matrix[OUT[name], IN[name]] = 1.0
        matrix[OUT["x"], IN["px"]] = LENGTH / P
        matrix[OUT["px"], IN["x"]] = -k * P
        matrix[OUT["px"], IN["px"]] = 1.0 - k * LENGTH
        own = np.broadcast_to(matrix, (len(group), 7, 6)) if self.each else matrix
        by_k = np.zeros((len(group), 7))
        by_k[:, OUT["px"]] = -(1.0 + self.off) * P * (group.x + LENGTH * group.px / P)
        found = {"initial_particles": own, "k": by_k}
        return {"final_particles": {name: found[name] for name in self.covered}}


BOTH = ("initial_particles", "k")


def model(
    covered: Sequence[str] = BOTH,
    gradient: Any = "native",
    each: bool = False,
    sextupole: float = 0.0,
    off: float = 0.0,
) -> BlackBoxModel:
    variables = [
        TorchScalarVariable(name="k", default_value=0.5, scale=0.1),
        ParticleGroupVariable(name="initial_particles"),
        ParticleGroupVariable(name="final_particles", read_only=True),
    ]
    factory = lambda: Line(covered, each, sextupole, off)  # noqa: E731
    return BlackBoxModel(factory, variables, gradient, initial={"initial_particles": incoming()})


def gradients(box: BlackBoxModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradient of a function of the outgoing bunch, with respect to the incoming ``px`` and to ``k``."""
    group = incoming()
    px, k = group.px.clone().requires_grad_(), torch.tensor(0.5, dtype=D, requires_grad=True)
    out = box({"initial_particles": group._with(px=px), "k": k})["final_particles"]
    (1e6 * out.x.square().sum() + (out.px / 1e3).square().sum()).backward()
    assert px.grad is not None
    assert k.grad is not None
    return px.grad, k.grad


@pytest.mark.parametrize("each", [False, True], ids=["one-matrix", "one-a-particle"])
def test_the_codes_own_map_costs_no_runs_but_for_the_checks(each: bool) -> None:
    box = model(each=each)
    found, expected = gradients(box), gradients(model(gradient=FiniteDifference()))
    assert box.runs == 1 + 2 + 2  # the value, the random direction, and the check of k
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)
    entries = {(e.output, e.input): e for e in box.gradient_report().entries}
    assert {e.kind for e in entries.values()} == {"native"}
    error = entries["final_particles", "initial_particles"].error
    assert error is not None
    assert error < 1e-8
    assert "saved 14 runs; 4 runs went into checks" in str(box.gradient_report())


@pytest.mark.parametrize(
    ("covered", "runs"),
    [pytest.param(["initial_particles"], 2, id="bunch-only"), pytest.param(["k"], 12, id="number-only")],
)
def test_only_what_is_not_covered_costs_runs(covered: Sequence[str], runs: int) -> None:
    box = model(covered, FiniteDifference(native=True, check=False, step=1e-3))
    found, expected = gradients(box), gradients(model(gradient=FiniteDifference()))
    assert box.runs == 1 + runs
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)


def test_a_code_that_knows_nothing_works_by_differences_and_says_so() -> None:
    box, plain = model([]), model(gradient=FiniteDifference())
    for one, other in zip(gradients(box), gradients(plain), strict=True):
        assert torch.equal(one, other)
    assert box.runs == plain.runs
    assert "gave no derivatives of its own" in str(box.gradient_report())


def test_a_linear_map_of_a_bent_code_is_told_with_its_number() -> None:
    box = model(["initial_particles"], sextupole=10.0)
    with pytest.warns(PhysicsWarning, match=r"own Jacobian of 'final_particles' .* is off by 0\.0\d+ in a random"):
        gradients(box)
    (entry,) = (e for e in box.gradient_report().entries if e.kind == "native")
    assert entry.error is not None
    assert 1e-3 < entry.error < 0.1
    gradients(box)  # told once


def test_a_wrong_derivative_with_respect_to_a_number_is_told_with_its_number() -> None:
    with pytest.warns(PhysicsWarning, match=r"'final_particles\.px' with respect to 'k' is off by .* \(0\.01 of it\)"):
        gradients(model(["k"], off=0.01))


def test_what_is_not_finite_is_not_covered() -> None:
    own = np.ones((7, 6))
    own[2, 3] = np.inf
    by_k = np.ones((2, 7))
    by_k[1, 0] = -np.inf
    block = bunch_block({"in": own, "k": by_k}, "out", "in", (2, 7, 6), {"k": ()})
    assert block.shape == (2, 7, 7)
    assert np.argwhere(np.isnan(block)).tolist() == [[0, 2, 3], [1, 0, 6], [1, 2, 3]]


class Source(Simulator):
    """A gun that makes a bunch of a size, and knows what the size does."""

    shape = np.random.default_rng(4).normal(size=20)

    def run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
        group = incoming(20)._with(x=torch.from_numpy(inputs["size"] * self.shape))
        return {"final_particles": group.to_particle_group()}

    def jacobian(
        self, inputs: Mapping[str, Any], outputs: Sequence[str], wrt: Sequence[str]
    ) -> dict[str, dict[str, np.ndarray]]:
        found = np.zeros((20, 7))
        found[:, OUT["x"]] = self.shape
        return {"final_particles": {"size": found}}


def test_a_bunch_that_is_made_from_numbers_has_them_too() -> None:
    variables = [
        TorchScalarVariable(name="size", default_value=1e-3, scale=1e-3),
        ParticleGroupVariable(name="final_particles", read_only=True),
    ]
    box = BlackBoxModel(Source, variables, "native")
    size = torch.tensor(1e-3, dtype=D, requires_grad=True)
    box({"size": size})["final_particles"].x.square().sum().backward()
    assert size.grad is not None
    assert size.grad.item() == pytest.approx(2e-3 * np.square(Source.shape).sum(), rel=1e-12)
    assert box.runs == 1 + 2
