"""Derivatives of optics that follow from a code's transfer matrices, without another run of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from lume_diff.blackbox.codes.optics_names import INITIAL, START, Optics

Array = np.ndarray
#: Quantity -> input -> derivative at every place.
Table = dict[str, dict[str, Array]]
#: Output -> input -> derivative.
Found = dict[str, dict[str, Array]]

#: Entries of a matrix that are taken for zero.
SMALL = 1e-12
_ORBIT = ("x", "px", "y", "py")
_DISPERSION = ("eta_x", "etap_x", "eta_y", "etap_y")


def by_start(matrices: Array, start: Mapping[str, float], p0: float, deviation: int) -> Table:
    """Return derivatives of a line's optics with respect to what it starts with.

    The orbit moves as the matrices about it say, and they are taken to be those about the orbit; what moves with them
    (a beta function with the orbit, in a sextupole) is left out.

    Args:
        matrices: from the start to all places, in x, px/p0, y, py/p0 and two more coordinates, ``(places, 6, 6)``.
        start: value by name of ``START``.
        p0: reference momentum [eV/c].
        deviation: which coordinate is the one that dispersion is by.

    Source:
        E. D. Courant and H. S. Snyder, Ann. Phys. 3, 1 (1958), doi:10.1016/0003-4916(58)90012-5.
    """
    nothing = np.zeros(len(matrices))
    table: Table = {"s": dict.fromkeys(START, nothing)}
    units = (1.0, p0, 1.0, p0)
    for i, name in enumerate(_ORBIT):
        moves = {other: matrices[:, i, j] * (units[i] / units[j]) for j, other in enumerate(_ORBIT)}
        table[name] = {**dict.fromkeys(START, nothing), **moves}
    still = dict.fromkeys((name for name in START if name not in _ORBIT), nothing)
    for plane, first in (("x", 0), ("y", 2)):
        beta, alpha = start.get(f"beta_{plane}") or 1.0, start.get(f"alpha_{plane}", 0.0)
        for quantity, slopes in _twiss(matrices[:, first : first + 2, first : first + 2], beta, alpha).items():
            own = dict(zip((f"beta_{plane}", f"alpha_{plane}"), slopes, strict=True))
            table[f"{quantity}_{plane}"] = {**still, **own}
    vector = np.zeros(6)
    vector[:4] = [start.get(name, 0.0) for name in _DISPERSION]
    vector[deviation] = 1.0
    carried = matrices @ vector
    share = carried[:, deviation]
    for i, name in enumerate(_DISPERSION):
        slope = {
            other: (matrices[:, i, j] - carried[:, i] / share * matrices[:, deviation, j]) / share
            for j, other in enumerate(_DISPERSION)
        }
        table[name] = {**still, **slope}
    return {quantity: {f"{INITIAL}.{name}": values for name, values in row.items()} for quantity, row in table.items()}


def known_by_start(table: Table, matrices: Array) -> Table:
    """Return those derivatives that hold for a line.

    Those of optics do not where the planes are coupled, and those of dispersion where particles are accelerated.

    Args:
        table: of ``by_start``.
        matrices: from the start to all places, energy or momentum in the last coordinate.
    """
    coupled = max(np.abs(matrices[:, :2, 2:4]).max(), np.abs(matrices[:, 2:4, :2]).max()) > SMALL
    accelerated = np.abs(matrices[:, 5] - np.eye(6)[5]).max() > SMALL
    left_out = [*(("beta", "alpha", "mu") if coupled else ()), *(("eta", "etap") if accelerated else ())]
    return {quantity: row for quantity, row in table.items() if quantity.partition("_")[0] not in left_out}


def _twiss(block: Array, beta: float, alpha: float) -> dict[str, tuple[Array, Array]]:
    """Return derivatives of beta, alpha and phase behind 2 by 2 matrices with respect to beta and alpha before them."""
    (a, b), (c, d) = block.transpose(1, 2, 0)
    gamma = (1.0 + alpha**2) / beta
    along, across = a * beta - b * alpha, b
    return {
        "beta": (a * a - b * b * gamma / beta, -2.0 * a * b + 2.0 * b * b * alpha / beta),
        "alpha": (-a * c + b * d * gamma / beta, a * d + b * c - 2.0 * b * d * alpha / beta),
        "mu": (-a * b / (along**2 + across**2), b * b / (along**2 + across**2)),
    }


def by_kick(matrices: Array, kicks: Iterable[tuple[int, Array]], p0: float, closed: int) -> dict[str, Array]:
    """Return derivatives of the orbit with respect to a corrector.

    Args:
        matrices: about the orbit, from the start to all places, ``(places, 6, 6)``.
        kicks: places behind the corrector, and how the coordinates there change with it, ``(6,)``.
        p0: reference momentum [eV/c].
        closed: how many coordinates close after a turn: 0 for a line, 4 for a ring of constant momentum, 6.

    Returns:
        Derivatives of x, px, y, py at all places.
    """
    moved = np.zeros((len(matrices), 6))
    for place, change in kicks:
        moved[place:] += matrices[place:] @ np.linalg.solve(matrices[place], change)
    if closed:
        start = np.zeros(6)
        turn = np.eye(closed) - matrices[-1][:closed, :closed]
        start[:closed] = np.linalg.solve(turn, moved[-1][:closed])
        moved += matrices @ start
    units = (1.0, p0, 1.0, p0)
    return {name: units[i] * moved[:, i] for i, name in enumerate(_ORBIT)}


def gathered(optics: Optics, table: Table, outputs: Sequence[str], wrt: Sequence[str]) -> Found:
    """Return what is known of the outputs that are wanted.

    Args:
        optics: which outputs there are.
        table: derivatives at all places.
        outputs, wrt: names that are wanted.
    """
    found: Found = {}
    for name in outputs:
        place, quantity = optics.places.get(name, (slice(None), optics.along.get(name, "")))
        row = {other: values[place].copy() for other, values in table.get(quantity, {}).items() if other in wrt}
        if row:
            found[name] = row
    return found
