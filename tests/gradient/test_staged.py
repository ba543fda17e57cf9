"""Gradients through the borders of a chain: equal to those of one line, and to differences."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import cheetah
import pytest
import torch
from torch import Tensor, nn

from lume_diff.errors import PhysicsWarning
from lume_diff.models import BunchFromMoments, CheetahModel, StagedModel, TorchModel
from lume_diff.particles import TorchMoments, TorchParticleGroup
from lume_diff.variables import TorchScalarVariable

pytestmark = pytest.mark.gradient

F64 = torch.float64
ENERGY = 6e6


def t(value: Any) -> Tensor:
    return torch.tensor(value, dtype=F64)


def quadrupole(name: str, k1: float) -> cheetah.Element:
    return cheetah.Quadrupole(t(0.12), t(k1), name=name)


def drift(name: str, length: float = 0.4) -> cheetah.Element:
    return cheetah.Drift(t(length), name=name)


def parts(cavity: bool) -> list[list[cheetah.Element]]:
    middle: cheetah.Element = drift("D0", 1.0)
    if cavity:
        middle = cheetah.Cavity(t(1.0), t(4e6), t(12.0), t(1.3e9), name="C1")
    screen = cheetah.Screen(
        resolution=(40, 30), pixel_size=t([2e-4, 2e-4]), method="cloud-in-cell", is_active=True, name="SCR1"
    )
    return [
        [drift("D1"), quadrupole("Q1", 8.0), drift("D2")],
        [quadrupole("Q2", -9.0), middle, quadrupole("Q3", 6.0)],
        [drift("D3"), quadrupole("Q4", 0.0), drift("D4"), screen],
    ]


def bunch() -> TorchParticleGroup:
    made = BunchFromMoments(
        400,
        seed=3,
        mean_energy=ENERGY * 1.002,
        reference_energy=ENERGY,
        norm_emit_x=2e-6,
        norm_emit_y=3e-6,
        beta_x=6.0,
        alpha_x=0.7,
        beta_y=3.0,
        alpha_y=-0.4,
        sigma_t=2e-12,
        sigma_energy=2e4,
        charge=1e-10,
    )
    return made.get("final_particles").detach()


def one_line(cavity: bool) -> CheetahModel:
    elements = [element for part in parts(cavity) for element in part]
    return CheetahModel(cheetah.Segment(elements, name="all"), bunch())


def lines_of(cavity: bool, sizes: Sequence[int] = (1, 1, 1)) -> dict[str, CheetahModel]:
    """Each line is built from the bunch that reaches it, so that it has the reference that the beam has there."""
    lines: dict[str, CheetahModel] = {}
    groups, incoming = iter(parts(cavity)), bunch()
    for index, size in enumerate(sizes):
        elements = [element for _ in range(size) for element in next(groups)]
        lines[f"s{index}"] = CheetahModel(cheetah.Segment(elements, name=f"s{index}"), incoming)
        incoming = lines[f"s{index}"].get("final_particles")
    return lines


def staged(cavity: bool, sizes: Sequence[int] = (1, 1, 1)) -> StagedModel:
    return StagedModel(lines_of(cavity, sizes))


def loss(image: Tensor) -> Tensor:
    weights = (
        torch.linspace(0.0, 1.0, image.shape[-1], dtype=F64) + torch.linspace(0, 2, image.shape[-2], dtype=F64)[:, None]
    )
    return (image / image.detach().sum() * weights).square().sum()


KNOBS = ["Q1.k1", "Q2.k1", "Q3.k1", "Q4.k1"]
CAVITY = pytest.mark.parametrize("cavity", [False, True], ids=["magnets", "with a cavity"])


@CAVITY
@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 1), (1, 2)], ids=str)
def test_an_image_at_the_end_has_the_gradient_of_one_line(cavity: bool, sizes: Sequence[int]) -> None:
    found = []
    for model in (one_line(cavity), staged(cavity, sizes)):
        knobs = {name: t(value).requires_grad_() for name, value in zip(KNOBS, (8.5, -8.0, 5.0, 0.0), strict=True)}
        value = loss(model(knobs, outputs=["SCR1.image"])["SCR1.image"])
        found.append(torch.stack(torch.autograd.grad(value, list(knobs.values()))))
    assert found[0].isfinite().all()
    assert found[0].abs().min() > 0
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=0)


@CAVITY
@pytest.mark.parametrize("mode", ["forward", "reverse"])
def test_the_jacobian_is_that_of_one_line(cavity: bool, mode: str) -> None:
    outputs = ["final.sigma_x", "final.sigma_y"]
    whole, chain = (m.jacobian(outputs, KNOBS, mode=mode) for m in (one_line(cavity), staged(cavity)))
    for output in outputs:
        for knob in KNOBS:
            torch.testing.assert_close(chain[output][knob], whole[output][knob], rtol=1e-9, atol=0)


@CAVITY
def test_values_are_those_of_one_line(cavity: bool) -> None:
    names = ["final.sigma_x", "final.norm_emit_y", "final.mean_energy", "final.mean_t", "final.beta_x", "SCR1.image"]
    whole, chain = (m(outputs=names) for m in (one_line(cavity), staged(cavity)))
    for name in names:
        torch.testing.assert_close(chain[name], whole[name], rtol=1e-9, atol=1e-30)


def test_a_beam_energy_error_acts_in_every_stage() -> None:
    """A stage keeps its own reference, so that a beam that is off in energy is focused differently."""
    found = []
    for model in (one_line(False), staged(False)):
        scale = t(1.0).requires_grad_()
        group = bunch()
        scaled = group.replace(px=group.px * scale, py=group.py * scale, pz=group.pz * scale)
        (gradient,) = torch.autograd.grad(model({"initial_particles": scaled})["final.sigma_x"], scale)
        found.append(gradient)
    torch.testing.assert_close(found[1], found[0], rtol=1e-9, atol=0)
    assert abs(found[0].item()) > 1e-5


def test_the_reference_energy_follows_a_cavity_as_in_one_line() -> None:
    found = []
    for model in (one_line(True), staged(True)):
        voltage = t(5e6).requires_grad_()
        energy = model.reference_energy({"C1.voltage": voltage}, ["Q3"])["Q3"]
        found.append(torch.stack([energy, *torch.autograd.grad(energy, voltage)]))
    assert found[0][1] > 0.5
    torch.testing.assert_close(found[1], found[0], rtol=1e-12, atol=0)


def test_a_chain_in_a_chain_has_the_same_gradient() -> None:
    flat, lines = staged(True), lines_of(True)
    nested = StagedModel({"front": StagedModel({name: lines[name] for name in ("s0", "s1")}), "end": lines["s2"]})
    found = []
    for model in (flat, nested):
        k1 = t(8.5).requires_grad_()
        model.set({"Q1.k1": k1})
        loss(model.get("SCR1.image")).backward()
        found.append(k1.grad)
    torch.testing.assert_close(found[1], found[0], rtol=1e-12, atol=0)


def test_moments_are_handed_over_where_there_are_no_particles() -> None:
    moments = TorchMoments.from_particles(bunch())
    lines = [CheetahModel(cheetah.Segment(part, name=f"m{i}"), moments) for i, part in enumerate(parts(False))]
    elements = [element for part in parts(False) for element in part]
    whole = CheetahModel(cheetah.Segment(elements, name="all"), moments)
    chain = StagedModel(lines)
    assert "initial_moments" in chain.input_names
    for mode in ("forward", "reverse"):
        tables = [model.jacobian(["final.sigma_x"], KNOBS, mode=mode)["final.sigma_x"] for model in (whole, chain)]
        for knob in KNOBS:
            torch.testing.assert_close(tables[1][knob], tables[0][knob], rtol=1e-9, atol=0)


def test_second_derivatives_and_transforms_through_a_border() -> None:
    chain, whole = staged(False), one_line(False)
    x = t([8.5, -8.0, 5.0, 0.0])
    tables = []
    for model in (whole, chain):
        function = model.tensor_function(KNOBS, ["final.sigma_x"])
        tables.append(torch.func.hessian(lambda k, f=function: f(k)[0])(x))
    assert tables[0].abs().min() > 0
    torch.testing.assert_close(tables[1], tables[0], rtol=1e-8, atol=0)


# -- a surrogate injector


class Injector(nn.Module):
    """Moments of a bunch from a phase and a gradient, in single precision, as a network would predict them."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 3)
        with torch.no_grad():
            self.layer.weight.copy_(torch.tensor([[0.1, 0.2], [0.3, -0.1], [0.05, 0.02]]))
            self.layer.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        size = torch.tensor([6.0, 1.5e-6, ENERGY])
        return size * (1.0 + 0.1 * self.layer(x).tanh())


def injector_line(dtype: torch.dtype) -> StagedModel:
    gun = TorchModel(
        Injector().to(dtype),
        [
            TorchScalarVariable(name="phase", default_value=0.3),
            TorchScalarVariable(name="gradient", default_value=-0.2),
        ],
        [
            TorchScalarVariable(name="beta", unit="m"),
            TorchScalarVariable(name="emittance", unit="m"),
            TorchScalarVariable(name="energy", unit="eV"),
        ],
    )
    start = {"norm_emit_x": 1e-6, "norm_emit_y": 1e-6, "beta_x": 5.0, "beta_y": 5.0, "charge": 1e-10}
    made = BunchFromMoments(200, mean_energy=ENERGY, sigma_energy=1e4, sigma_t=1e-12, **start)
    line = CheetahModel(
        cheetah.Segment([e for part in parts(False) for e in part], name="line"), made.get("final_particles")
    )
    links = {"bunch/beta_x": "gun/beta", "bunch/norm_emit_x": "gun/emittance", "bunch/mean_energy": "gun/energy"}
    return StagedModel({"gun": gun, "bunch": made, "line": line}, links)


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_a_surrogates_weights_get_their_gradient_from_a_tracked_screen(dtype: torch.dtype) -> None:
    model = injector_line(dtype)
    weight = model.stages["gun"].module.layer.weight
    loss(model.get("SCR1.image")).backward()
    assert weight.grad is not None
    assert weight.grad.dtype == dtype
    assert weight.grad.isfinite().all()
    assert model.get("SCR1.image").dtype == F64
    reference = injector_line(F64)
    weight64 = reference.stages["gun"].module.layer.weight
    with torch.no_grad():
        weight64.copy_(weight)
    value = reference({}, outputs=["final.sigma_x"])["final.sigma_x"]
    (found,) = torch.autograd.grad(value, weight64)
    step = 1e-4
    for index in [(0, 0), (1, 1), (2, 0)]:
        ends = []
        for sign in (1, -1):
            with torch.no_grad():
                weight64[index] += sign * step
                ends.append(reference(outputs=["final.sigma_x"])["final.sigma_x"].item())
                weight64[index] -= sign * step
        assert found[index].item() == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-6)
    if dtype == torch.float32:
        single = torch.autograd.grad(model(outputs=["final.sigma_x"])["final.sigma_x"], weight)[0]
        torch.testing.assert_close(single.double(), found, rtol=1e-4, atol=0)


def test_training_the_surrogate_through_the_line() -> None:
    """A fit of the weights to a wanted beam size goes down and runs what follows the surrogate only once a step."""
    model = injector_line(F64)
    optimiser = torch.optim.Adam(model.stages["gun"].parameters(), lr=0.05)
    losses = []
    for _ in range(5):
        optimiser.zero_grad()
        value = (model.get("final.sigma_x") * 1e3 - 1.0).square()
        value.backward()
        optimiser.step()
        losses.append(value.item())
    assert all(after < before for before, after in pairwise(losses))
    assert model.stages["line"].runs == 5


# -- a stage that takes the whole beam


def test_a_stage_that_loses_everything_ends_the_beam_but_not_the_model() -> None:
    blocked = [cheetah.Aperture(t(1e-12), t(1e-12), is_active=True, name="A1"), drift("D0")]
    first, last = parts(False)[0], parts(False)[2]
    lines = [
        CheetahModel(cheetah.Segment(part, name=f"l{i}"), bunch()) for i, part in enumerate((first, blocked, last))
    ]
    chain = StagedModel({"a": lines[0], "b": lines[1], "c": lines[2]})
    k1 = t(8.0).requires_grad_()
    chain.set({"Q1.k1": k1})
    assert chain.get("final.charge").item() == 0.0
    assert chain.get("SCR1.image").abs().sum() == 0.0
    assert chain.get("final_particles").alive.sum() == 0
    assert chain.get("a/final.sigma_x").item() > 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PhysicsWarning)
        (gradient,) = torch.autograd.grad(chain.get("SCR1.image").sum(), k1, materialize_grads=True)
    assert gradient.item() == 0.0
    (upstream,) = torch.autograd.grad(chain.get("a/final.sigma_x"), k1)
    assert upstream.isfinite()
