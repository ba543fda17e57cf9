"""Bunches for LUME's models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import lume_diff as ld

Make = Callable[..., Any]


@pytest.fixture(scope="session")
def bunch() -> Make:
    """Make a bunch."""

    def make(count: int = 100, **changes: float) -> ld.TorchParticleGroup:
        twiss = {"beta_x": 5.0, "norm_emit_x": 1e-6, "beta_y": 4.0, "norm_emit_y": 1e-6}
        values = {**twiss, "sigma_t": 1e-12, "sigma_energy": 1e5, **changes}
        return ld.BunchFromMoments(count, mean_energy=1e8, charge=1e-10, **values).get("final_particles")

    return make
