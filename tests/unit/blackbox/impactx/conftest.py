"""Bunches and lines for ImpactX."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import lume_diff as ld
from lume_diff.particles import TorchParticleGroup

Make = Callable[..., Any]


@pytest.fixture(scope="session")
def bunch() -> Make:
    """Make a bunch."""

    def make(count: int = 500, energy: float = 1e8, charge: float = 1e-10, **changes: Any) -> TorchParticleGroup:
        twiss = {"beta_x": 5.0, "norm_emit_x": 1e-6, "beta_y": 4.0, "norm_emit_y": 1e-6}
        values = {**twiss, "sigma_t": 1e-12, "sigma_energy": 1e-3 * energy, **changes}
        return ld.BunchFromMoments(count, mean_energy=energy, charge=charge, **values).get("final_particles")

    return make


@pytest.fixture(scope="session")
def line() -> Make:
    """Make a line of two quadrupoles with a marker."""
    from impactx import elements as ix

    def make() -> list[Any]:
        return [
            ix.Quad(name="Q1", ds=0.2, k=2.0),
            ix.Drift(name="D1", ds=1.0),
            ix.Quad(name="Q2", ds=0.2, k=-2.0),
            ix.Marker("M"),
            ix.Drift(name="D2", ds=0.5),
        ]

    return make


@pytest.fixture(scope="session")
def slit() -> Make:
    """Make a line with an aperture."""
    from impactx import elements as ix

    def make(half_width: float) -> list[Any]:
        return [
            ix.Drift(name="D1", ds=0.5),
            ix.Aperture(name="A", aperture_x=half_width, aperture_y=1.0),
            ix.Quad(name="Q", ds=0.1, k=1.0),
            ix.Drift(name="D2", ds=0.5),
        ]

    return make
