"""Small pyAT lattices, bunches to send through them, and what pyAT itself says."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lume_diff.models import BunchFromMoments
from lume_diff.particles import TorchParticleGroup

Make = Callable[..., Any]

C = 299792458.0


@pytest.fixture(scope="session")
def fodo() -> Make:
    """Make a cell with two quadrupoles, two bends, a sextupole and a corrector."""
    import at

    def make(energy: float = 1e9) -> Any:
        d = at.Drift("D", 2.0)
        b = at.Dipole("B", 1.0, 0.1)
        elements = [at.Quadrupole("QF", 0.5, 0.5), d, at.Sextupole("S", 0.1, 10.0), b, d]
        elements += [at.Quadrupole("QD", 0.5, -0.5), d, b, at.Corrector("C", 0.0, [0.0, 0.0]), d, at.Marker("END")]
        return at.Lattice(elements, energy=energy, name="cell")

    return make


@pytest.fixture(scope="session")
def ring_with_cavity(fodo: Make) -> Make:
    """Make a ring of sixteen cells with a cavity that is on."""
    import at

    def make() -> Any:
        ring = at.Lattice([*fodo()] * 16, energy=1e9).deepcopy()
        for bend in ring["B"]:
            bend.BendingAngle = math.pi / 16
        for quadrupole in ring["QF"]:
            quadrupole.K = 0.52
        ring.append(at.RFCavity("RF", 0.0, 1e6, 300 * C / ring.get_s_pos(len(ring))[0], 300, 1e9))
        return at.Lattice(ring, energy=1e9, harmonic_number=300)

    return make


@pytest.fixture(scope="session")
def bunch() -> Make:
    """Make a bunch."""

    def make(energy: float = 1e8, n: int = 500, **changes: float) -> TorchParticleGroup:
        moments = {"beta_x": 10.0, "norm_emit_x": 1e-7, "beta_y": 5.0, "norm_emit_y": 1e-7, "sigma_t": 1e-12}
        model = BunchFromMoments(
            n, mean_energy=energy, charge=1e-10, sigma_energy=1e-3 * energy, **{**moments, **changes}
        )
        return model.get("final_particles")

    return make


@pytest.fixture(scope="session")
def optics_of() -> Make:
    """Return what pyAT itself says of a ring, at the end of it."""
    import at

    def make(lattice: Any) -> dict[str, float]:
        _, ring, found = at.linopt6(lattice, refpts=range(len(lattice) + 1), get_chrom=True)
        last = found[-1]
        return {
            "tune_x": ring.tune[0],
            "chroma_x": ring.chromaticity[0],
            "beta_x": last.beta[0],
            "alpha_y": last.alpha[1],
            "mu_y": last.mu[1],
            "eta_x": last.dispersion[0],
            "etap_x": last.dispersion[1],
            "x": last.closed_orbit[0],
            "px": last.closed_orbit[1] * lattice.energy,
        }

    return make


@pytest.fixture(scope="session")
def state_of() -> Make:
    """Copy all that the elements of a lattice hold."""

    def make(lattice: Any) -> list[dict[str, Any]]:
        return [{name: np.copy(v) if isinstance(v, np.ndarray) else v for name, v in vars(e).items()} for e in lattice]

    return make


@pytest.fixture(scope="session")
def same_state() -> Make:
    """Compare two such copies."""

    def make(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> bool:
        return all(
            a.keys() == b.keys() and all(np.array_equal(a[n], b[n]) for n in a) for a, b in zip(one, other, strict=True)
        )

    return make
