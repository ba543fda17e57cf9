"""A differentiable line, a Bmad line and a differentiable line again: one gradient through all three."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cheetah
import pytest
import torch

from lume_diff.blackbox.bmad.model import BmadModel
from lume_diff.blackbox.bmad.session import check_installed
from lume_diff.errors import MissingExtraError
from lume_diff.models import CheetahModel, StagedModel

try:
    check_installed()
except MissingExtraError as error:
    pytest.skip(str(error), allow_module_level=True)

pytestmark = pytest.mark.gradient

DTYPE = torch.float64
PARTICLES = 10_000
KNOBS = {"Q1.k1": 2.0, "Q2.k1": -3.0, "Q5.k1": 3.0, "Q6.k1": -3.0, "Q9.k1": -1.0}
MIDDLE = ("Q5.k1", "Q6.k1")
LINE = """
parameter[geometry] = open
parameter[particle] = electron
beginning[e_tot] = 1e8
beginning[beta_a] = 3
beginning[beta_b] = 2
q5: quadrupole, l = 0.2, k1 = 3
d5: drift, l = 0.5
s1: sextupole, l = 0.1, k2 = 100
d6: drift, l = 0.3
q6: quadrupole, l = 0.2, k1 = -3
d7: drift, l = 0.2
middle: line = (q5, d5, s1, d6, q6, d7)
use, middle
"""


def number(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=DTYPE)


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StagedModel]:
    """Build the chain, with noise and curvature of the middle stage measured already."""

    def quadrupole(name: str, k1: float) -> Any:
        return cheetah.Quadrupole(number(0.1), number(k1), name=name, dtype=DTYPE)

    def drift(name: str, length: float) -> Any:
        return cheetah.Drift(number(length), name=name, dtype=DTYPE)

    torch.manual_seed(0)
    sizes = {f"sigma_{name}": number(1e-4) for name in ("x", "px", "y", "py", "tau")}
    beam = cheetah.ParticleBeam.from_parameters(
        num_particles=PARTICLES,
        sigma_p=number(1e-3),
        energy=number(1e8),
        total_charge=number(1e-10),
        dtype=DTYPE,
        **sizes,
    )
    screen = cheetah.Screen(
        resolution=(50, 40),
        pixel_size=torch.tensor([8e-5, 8e-5], dtype=DTYPE),
        method="kde",  # smooth, so that a difference over the whole chain is worth comparing with
        kde_bandwidth=number(8e-5),
        is_active=True,
        name="SCR1",
        dtype=DTYPE,
    )
    deck = tmp_path_factory.mktemp("chain") / "middle.bmad"
    deck.write_text(LINE)
    first = [quadrupole("Q1", 2.0), drift("D1", 0.3), quadrupole("Q2", -3.0), drift("D2", 0.3)]
    last = [quadrupole("Q9", -1.0), drift("D9", 1.0), screen]
    injector = CheetahModel(cheetah.Segment(first, name="first"), beam)
    given = injector.get("final_particles")
    with BmadModel(deck, controls=list(MIDDLE), outputs=["S1.beta_x", "final_particles"], beam=given) as linac:
        diagnostics = CheetahModel(cheetah.Segment(last, name="last"), linac.get("final_particles"))
        model = StagedModel({"injector": injector, "linac": linac, "diagnostics": diagnostics})
        loss(model, {name: number(value).requires_grad_() for name, value in KNOBS.items()}).backward()
        yield model


def loss(model: StagedModel, knobs: dict[str, Any]) -> torch.Tensor:
    image = model(knobs, outputs=["SCR1.image"])["SCR1.image"]
    y, x = torch.meshgrid(torch.linspace(-1, 1, 40, dtype=DTYPE), torch.linspace(-1, 1, 50, dtype=DTYPE), indexing="ij")
    weight = x**2 + 0.7 * y**2 + 0.3 * x * y + 0.2 * x
    return (image * weight).sum()


def test_gradient_of_a_screen_with_respect_to_all_stages(chain: StagedModel) -> None:
    linac = chain.stages["linac"]
    point = {name: value + 0.01 for name, value in KNOBS.items()}
    knobs = {name: number(value).requires_grad_() for name, value in point.items()}
    before = linac.runs
    loss(chain, knobs).backward()
    assert linac.runs - before == 13 + 2 * len(MIDDLE)
    with torch.no_grad():
        size = loss(chain, point)

        def slope(name: str, step: float) -> float:
            up, down = (loss(chain, {**point, name: point[name] + h}) * 1.0 for h in (step, -step))
            return ((up - down) / (2.0 * step)).item()

        for name, knob in knobs.items():
            assert knob.grad is not None
            wide, narrow = slope(name, 2e-3), slope(name, 1e-3)
            expected = (4.0 * narrow - wide) / 3.0
            assert abs(expected) > 1e-6 * size.item(), name
            assert knob.grad.item() == pytest.approx(expected, rel=1e-6), name


def test_all_particles_come_out(chain: StagedModel) -> None:
    given = chain.stages["injector"].get("final_particles")
    found = chain.get("final_particles")
    assert len(found) == PARTICLES
    assert found.alive.sum().item() == PARTICLES
    assert torch.equal(found.id, given.id)
    assert torch.equal(chain.get("linac/final_particles").id, given.id)
