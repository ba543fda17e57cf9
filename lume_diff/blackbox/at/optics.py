"""Linear optics of a pyAT lattice: of a ring by pyAT's own analysis, of a line from where it starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lume_diff.blackbox.at.tracking import reference_momentum
from lume_diff.blackbox.codes.optics_names import INITIAL, MATRIX, START, Optics

Array = np.ndarray
COORDINATES = "pyAT's coordinates (x, px/p0, y, py/p0, dp/p0, ct)"

#: Offset [m] by which pyAT takes differences. Its own, 3e-8, leaves noise of 1e-11 on a matrix where the orbit is a
#: millimetre off, and of 1e-9 on a chromaticity.
STEP = {"XYStep": 1e-6}
#: Between the momentum deviations that give the chromaticity; pyAT's own, 3e-6, leaves ten times the noise.
_DEVIATION = 3e-5


def ring_optics(lattice: Any, optics: Optics) -> dict[str, Any]:
    """Return optics of the periodic solution.

    Raises:
        AtError: for an unstable lattice, an orbit that is not found.
    """
    import at

    places = optics.wanted_places
    try:
        _, data, found = at.linopt6(lattice, refpts=places, **STEP)
        ring = dict(zip(("tune_x", "tune_y"), data.tune, strict=False))
        if optics.needs_chromaticity:
            ring |= zip(("chroma_x", "chroma_y"), _chromaticity(lattice), strict=True)
    except (ValueError, np.linalg.LinAlgError) as error:  # numbers that overflow on the way
        raise at.AtError(f"there is no periodic solution: {error}") from error
    p0 = reference_momentum(lattice)
    table = _table(found.beta, found.alpha, found.mu, found.dispersion, found.closed_orbit, found.s_pos, p0)
    if MATRIX in optics.quantities:
        orbit = at.find_orbit(lattice, **STEP)[0]
        table[MATRIX] = at.find_m66(lattice, refpts=places, orbit=orbit, **STEP)[1]
    return optics.gather(table, places, ring)


def _chromaticity(lattice: Any) -> Array:
    """Return the change of both tunes with the momentum; pyAT's own does not take the steps that it is given."""
    import at

    if not lattice.is_6d:
        found = [at.linopt6(lattice, dp=sign * 0.5 * _DEVIATION, **STEP) for sign in (1.0, -1.0)]
    else:  # the momentum is what the frequency makes it
        share = 0.5 * _DEVIATION * lattice.disable_6d(copy=True).slip_factor
        cavities = {id(element): element for element in lattice if isinstance(element, at.RFCavity)}.values()
        before = [cavity.Frequency for cavity in cavities]
        found = []
        try:
            for sign in (1.0, -1.0):
                for cavity, frequency in zip(cavities, before, strict=True):
                    cavity.Frequency = frequency * (1.0 + sign * share)
                found.append(at.linopt6(lattice, **STEP))
        finally:
            for cavity, frequency in zip(cavities, before, strict=True):
                cavity.Frequency = frequency
    (start_up, up, _), (start_down, down, _) = found
    difference = start_up.closed_orbit[4] - start_down.closed_orbit[4]
    return (np.mod(up.tune[:2] - down.tune[:2] + 0.5, 1.0) - 0.5) / difference


def line_optics(lattice: Any, optics: Optics, inputs: Mapping[str, Any], p0: float) -> dict[str, Any]:
    """Return optics of a line that starts with given values.

    The normal modes that the values at the start define are carried along, so coupling is taken in; beta and alpha are
    those of the first mode in x and of the second in y.

    Args:
        lattice: of pyAT.
        optics: what is wanted.
        inputs: has ``"initial.beta_x"`` and so on, as far as they matter.
        p0: reference momentum [eV/c].
    """
    import at

    places = optics.wanted_places
    start = {name: float(inputs.get(f"{INITIAL}.{name}", 0.0)) for name in START}
    orbit = np.array([start["x"], start["px"] / p0, start["y"], start["py"] / p0, 0.0, 0.0])
    rays = np.asfortranarray(orbit[:, None])
    orbits = at.lattice_track(lattice, rays, refpts=places)[0][:, 0, :, 0].T
    matrices = at.find_m66(lattice, refpts=places, orbit=orbit, **STEP)[1]
    modes = [
        _mode(matrices, start[f"beta_{plane}"] or 1.0, start[f"alpha_{plane}"], first)
        for plane, first in (("x", 0), ("y", 2))
    ]
    beta, alpha, phase = (np.stack(column, axis=-1) for column in zip(*modes, strict=True))
    off_momentum = np.array([start["eta_x"], start["etap_x"], start["eta_y"], start["etap_y"], 1.0, 0.0])
    carried = matrices @ off_momentum
    dispersion = carried[:, :4] / carried[:, 4:5]
    table = _table(beta, alpha, _unwrapped(phase), dispersion, orbits, lattice.get_s_pos(places), p0)
    table[MATRIX] = matrices
    return optics.gather(table, places, {})


def _mode(matrices: Array, beta: float, alpha: float, first: int) -> tuple[Array, Array, Array]:
    """Return beta, alpha and phase of a mode that starts in one plane."""
    root = np.sqrt(beta)
    columns = matrices[:, first : first + 2, first : first + 2] @ np.array([[root, 0.0], [-alpha / root, 1.0 / root]])
    position, slope = columns[:, 0], columns[:, 1]
    return (
        np.sum(position**2, axis=-1),
        -np.sum(position * slope, axis=-1),
        np.arctan2(position[:, 1], position[:, 0]),
    )


def _unwrapped(phase: Array) -> Array:
    """Return phases that only grow along the line."""
    steps = np.diff(phase, axis=0, prepend=np.zeros((1, phase.shape[1])))
    return phase + 2.0 * np.pi * np.cumsum(steps < -1e-3, axis=0)


def _table(
    beta: Array, alpha: Array, phase: Array, dispersion: Array, orbit: Array, s: Sequence[float], p0: float
) -> dict[str, Array]:
    """Return values at places by quantity."""
    table: dict[str, Array] = {"s": np.asarray(s, dtype=float)}
    for i, plane in enumerate("xy"):
        table[f"beta_{plane}"] = beta[:, i]
        table[f"alpha_{plane}"] = alpha[:, i]
        table[f"mu_{plane}"] = phase[:, i]
        table[f"eta_{plane}"] = dispersion[:, 2 * i]
        table[f"etap_{plane}"] = dispersion[:, 2 * i + 1]
        table[plane] = orbit[:, 2 * i]
        table[f"p{plane}"] = p0 * orbit[:, 2 * i + 1]
    return table
