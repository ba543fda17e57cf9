"""Differentiable, vectorised accelerator optics: pure functions of broadcastable tensors."""

from __future__ import annotations

from .cavity import cavity_matrix, cavity_moments, cavity_reference_energy, cavity_track, longitudinal_terms
from .drift_kick_drift import track_dipole, track_drift, track_quadrupole, track_transverse_deflecting_cavity
from .linear import (
    corrector,
    dipole,
    drift,
    identity,
    quadrupole,
    rbend,
    sextupole,
    solenoid,
    undulator,
)
from .second_order import (
    dispersion_integrals,
    second_order_dipole,
    second_order_drift,
    second_order_quadrupole,
    second_order_sextupole,
)
from .second_order_tracking import apply_second_order
from .series import LIMIT, quadrupole_series, sum_of_powers
from .special import log1p_over_x, relativistic_factors, sinc, sqrt1p_minus_1, stumpff

__all__ = [
    "LIMIT",
    "apply_second_order",
    "cavity_matrix",
    "cavity_moments",
    "cavity_reference_energy",
    "cavity_track",
    "corrector",
    "dipole",
    "dispersion_integrals",
    "drift",
    "identity",
    "log1p_over_x",
    "longitudinal_terms",
    "quadrupole",
    "quadrupole_series",
    "rbend",
    "relativistic_factors",
    "second_order_dipole",
    "second_order_drift",
    "second_order_quadrupole",
    "second_order_sextupole",
    "sextupole",
    "sinc",
    "solenoid",
    "sqrt1p_minus_1",
    "stumpff",
    "sum_of_powers",
    "track_dipole",
    "track_drift",
    "track_quadrupole",
    "track_transverse_deflecting_cavity",
    "undulator",
]
