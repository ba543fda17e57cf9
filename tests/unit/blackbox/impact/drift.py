"""A deck that is a mere drift, and bunches to send through decks."""

from __future__ import annotations

from typing import Any

import lume_diff as ld
from lume_diff.particles import TorchParticleGroup

DRIFT = "1.0 0 0 0 0.0 {radius!r} /!name:D1\n0 1 71 -2 0 0 0.5 /!name:SCR\n0 0 0 -99 0 0 1.0 /!name:stop_1\n"


def bunch(count: int = 200, energy: float = 1e7, charge: float = 1e-10, **changes: Any) -> TorchParticleGroup:
    twiss = {"beta_x": 5.0, "norm_emit_x": 1e-6, "beta_y": 4.0, "norm_emit_y": 1e-6}
    values = {**twiss, "sigma_t": 1e-12, "sigma_energy": 1e-3 * energy, **changes}
    return ld.BunchFromMoments(count, mean_energy=energy, charge=charge, **values).get("final_particles")


def number(value: Any) -> float:
    return float(value.detach())
