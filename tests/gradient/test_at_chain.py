"""A differentiable line, a pyAT line and a differentiable line again: one gradient through all three."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lume_diff.blackbox.at.model import ATModel

at = pytest.importorskip("at")

pytestmark = pytest.mark.gradient

MIDDLE = ("Q5.k1", "Q6.k1")


def middle_line() -> Any:
    elements = [at.Quadrupole("Q5", 0.2, 3.0), at.Drift("D5", 0.5), at.Sextupole("S1", 0.1, 50.0), at.Drift("D6", 0.3)]
    return at.Lattice([*elements, at.Quadrupole("Q6", 0.2, -3.0), at.Drift("D7", 0.2)], energy=1e8)


@pytest.fixture(scope="module")
def chain(screen_chain: Any) -> Any:
    return screen_chain(lambda beam: ATModel(middle_line(), controls=list(MIDDLE), outputs=["S1.beta_x"], beam=beam))


def test_gradient_of_a_screen_with_respect_to_all_stages(chain: Any) -> None:
    chain.check_gradient()


def test_all_particles_come_out(chain: Any) -> None:
    chain.check_particles()


def test_report_tells_steps_and_runs(chain: Any) -> None:
    report = chain.model.gradient_report()
    assert {entry.input for entry in report.entries} >= set(MIDDLE)
    assert all(entry.step and entry.runs == 2 for entry in report.entries if entry.input in MIDDLE)


def test_energy_error_reaches_the_middle_stage(chain: Any) -> None:
    """A gradient with respect to the energy that the middle stage is set for, against a difference."""
    energy = torch.tensor(1.002e8, dtype=torch.float64, requires_grad=True)
    name = "linac/reference_energy"
    chain.loss({name: energy}).backward()
    assert energy.grad is not None
    with torch.no_grad():
        wide, narrow = (
            (chain.loss({name: 1.002e8 + h}) - chain.loss({name: 1.002e8 - h})).item() / (2.0 * h) for h in (2e5, 1e5)
        )
    assert energy.grad.item() == pytest.approx((4.0 * narrow - wide) / 3.0, rel=1e-6)
