"""Small random bunches."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from lume_diff.particles import TorchParticleGroup


def random_bunch(n: int = 12, seed: int = 0, batch: tuple[int, ...] = (), **changes: object) -> TorchParticleGroup:
    """Return electrons of about 100 MeV with unequal weights, off any plane."""
    generator = torch.Generator().manual_seed(seed)

    def normal(scale: float, mean: float = 0.0) -> torch.Tensor:
        return mean + scale * torch.randn(*batch, n, generator=generator, dtype=torch.float64)

    x = normal(1e-4)
    fields: dict[str, object] = {
        "x": x,
        "y": normal(2e-4),
        "z": normal(1e-4, 0.5),
        "px": normal(1e3) + x * 1e7,
        "py": normal(1e3),
        "pz": normal(1e5, 1e8),
        "t": normal(1e-12, 2e-9),
        "weight": 1e-13 * (0.5 + torch.rand(*batch, n, generator=generator, dtype=torch.float64)),
    }
    return TorchParticleGroup(**(fields | changes))  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def make_bunch() -> Callable[..., TorchParticleGroup]:
    """A factory of random bunches: n, seed, batch, and fields to change."""
    return random_bunch
