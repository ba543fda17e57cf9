"""The bunch that tests send through their lines."""

from __future__ import annotations

import numpy as np

from lume_diff.particles import TorchParticleGroup

P = 1e8  # reference momentum [eV/c]


def incoming(n: int = 50, species: str = "electron") -> TorchParticleGroup:
    x, px, y, py, t, pz = np.random.default_rng(3).normal(size=(6, n))
    return TorchParticleGroup(
        x=1e-3 * x, px=1e3 * px, y=1e-3 * y, py=1e3 * py, z=np.zeros(n), pz=P + 1e4 * pz, t=1e-12 * t,
        weight=np.full(n, 1e-12 / n), species=species,
    )  # fmt: skip
