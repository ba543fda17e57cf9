"""Names and variables of linear optics, the same for every code that computes them.

``"<element>.beta_x"`` is a value at the exit of an element, ``"final.beta_x"`` at the end of the line,
``"line.beta_x"`` all values along it, ``"initial.beta_x"`` the one that a line starts with, and ``"tune_x"`` one of a
ring.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from lume_diff.errors import LatticeError, UnknownVariableError, nearest_names

if TYPE_CHECKING:
    from lume_diff.variables import Variable

FINAL, LINE, INITIAL = "final", "line", "initial"
MATRIX = "r_matrix"

#: Values at a place: name -> (unit, description).
PLACE: dict[str, tuple[str, str]] = {
    "beta_x": ("m", "horizontal beta function"),
    "alpha_x": ("", "horizontal alpha function"),
    "mu_x": ("rad", "horizontal phase advance from the start"),
    "eta_x": ("m", "horizontal dispersion, per relative momentum deviation"),
    "etap_x": ("", "derivative of the horizontal momentum, in units of the reference, by the momentum deviation"),
    "beta_y": ("m", "vertical beta function"),
    "alpha_y": ("", "vertical alpha function"),
    "mu_y": ("rad", "vertical phase advance from the start"),
    "eta_y": ("m", "vertical dispersion, per relative momentum deviation"),
    "etap_y": ("", "derivative of the vertical momentum, in units of the reference, by the momentum deviation"),
    "x": ("m", "horizontal orbit"),
    "px": ("eV/c", "horizontal momentum of the orbit"),
    "y": ("m", "vertical orbit"),
    "py": ("eV/c", "vertical momentum of the orbit"),
    "s": ("m", "path length from the start"),
}
#: Values of a ring.
RING: dict[str, tuple[str, str]] = {
    "tune_x": ("", "horizontal tune"),
    "tune_y": ("", "vertical tune"),
    "chroma_x": ("", "horizontal chromaticity, per relative momentum deviation"),
    "chroma_y": ("", "vertical chromaticity, per relative momentum deviation"),
}
#: What a line starts with; the beta functions have no default of their own.
START = ("beta_x", "alpha_x", "eta_x", "etap_x", "beta_y", "alpha_y", "eta_y", "etap_y", "x", "px", "y", "py")
_SCALES = {"beta": 0.1, "alpha": 0.1, "eta": 1e-2, "etap": 1e-2, "x": 1e-4, "y": 1e-4}
_SMALLEST_BETA = 1e-6


@dataclass
class Optics:
    """What optics is wanted of a code, and where.

    Attributes:
        ring: names of ``RING``.
        places: output name -> (place, quantity); a place counts the elements before it.
        along: output name -> quantity.
        count: number of elements.
    """

    count: int
    ring: list[str] = field(default_factory=list)
    places: dict[str, tuple[int, str]] = field(default_factory=dict)
    along: dict[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.ring or self.places or self.along)

    @property
    def quantities(self) -> set[str]:
        """Everything that is wanted anywhere."""
        return {*self.ring, *self.along.values(), *(quantity for _, quantity in self.places.values())}

    @property
    def needs_chromaticity(self) -> bool:
        """Whether a chromaticity is wanted."""
        return any(name.startswith("chroma") for name in self.ring)

    @property
    def wanted_places(self) -> list[int]:
        """Places that must be looked at; all of them where a phase has to be followed along the line."""
        if self.along or any(quantity.startswith("mu_") for quantity in self.quantities):
            return list(range(self.count + 1))
        return sorted({place for place, _ in self.places.values()})

    def gather(
        self, table: Mapping[str, np.ndarray], places: Sequence[int], ring: Mapping[str, float]
    ) -> dict[str, Any]:
        """Return the wanted outputs from values at places.

        Args:
            table: quantity -> values at the places, the first dimension.
            places: which these are.
            ring: values of the ring.
        """
        row = {place: index for index, place in enumerate(places)}
        found: dict[str, Any] = {name: float(ring[name]) for name in self.ring}
        for name, (place, quantity) in self.places.items():
            value = table[quantity][row[place]]
            found[name] = np.array(value, dtype=float) if quantity == MATRIX else float(value)
        for name, quantity in self.along.items():
            found[name] = np.array(table[quantity], dtype=float)
        return found


class OpticsNames:
    """Find the optics outputs of a lattice by name.

    Args:
        last: element name -> place behind its last occurrence.
        count: number of elements.
        periodic: whether there is a periodic solution.
        coordinates: of the transfer matrix, for the description.
    """

    def __init__(self, last: Mapping[str, int], count: int, periodic: bool, coordinates: str) -> None:
        self._last = last
        self._count = count
        self._periodic = periodic
        self._coordinates = coordinates

    def defaults(self, elements: Iterable[str]) -> list[str]:
        """Return the names that are declared when everything is asked for.

        Args:
            elements: those whose exits are worth looking at one by one.
        """
        places = [*(name for name in elements if name not in (FINAL, LINE, INITIAL)), FINAL]
        ring = list(RING) if self._periodic else []
        tunes, chromaticities = ring[:2], ring[2:]
        scalars = [f"{place}.{quantity}" for place in places for quantity in PLACE]
        return [*tunes, *scalars, *chromaticities, *(f"{LINE}.{quantity}" for quantity in PLACE), f"{FINAL}.{MATRIX}"]

    def knows(self, name: str) -> bool:
        """Tell whether a name is one of optics, by its form."""
        return name in RING or name.rpartition(".")[2] in (*PLACE, MATRIX)

    def place(self, element: str, name: str) -> int:
        """Return the place behind an element.

        Raises:
            UnknownVariableError: if there is none of that name; ``name`` is the output that asked.
            LatticeError: for an element that is called as the end of the line is.
        """
        if element == FINAL:
            if FINAL in self._last:
                raise LatticeError(
                    f"output {name!r}: an element is called {FINAL!r}, which stands for the end of the line: rename it"
                )
            return self._count
        if element not in self._last:
            raise UnknownVariableError(
                f"output {name!r}: there is no element {element!r} in the lattice"
                f"{nearest_names(element, [*self._last, FINAL])}"
            )
        return self._last[element]

    def select(self, names: Iterable[str]) -> tuple[Optics, list[Variable]]:
        """Return what a code must compute for these outputs, and their variables.

        Raises:
            UnknownVariableError: for a name that is none of optics.
        """
        optics = Optics(self._count)
        variables: list[Variable] = []
        for name in dict.fromkeys(names):
            element, _, quantity = name.rpartition(".")
            if name in RING:
                if not self._periodic:
                    raise UnknownVariableError(
                        f"output {name!r} belongs to a ring, and this is a line: build the model with periodic=True"
                    )
                optics.ring.append(name)
                variables.append(_scalar(name, *RING[name]))
                continue
            if quantity not in PLACE and quantity != MATRIX:
                raise UnknownVariableError(
                    f"output {name!r} is not known{nearest_names(quantity or name, [*PLACE, MATRIX, *RING])}"
                )
            if element == LINE and quantity != MATRIX:
                optics.along[name] = quantity
                variables.append(_array(name, (self._count + 1,), *PLACE[quantity]))
                continue
            optics.places[name] = (self.place(element, name), quantity)
            if quantity == MATRIX:
                text = f"transfer matrix from the start, in {self._coordinates}"
                variables.append(_array(name, (6, 6), "", text))
            else:
                variables.append(_scalar(name, *PLACE[quantity]))
        return optics, variables


def _scalar(name: str, unit: str, description: str) -> Variable:
    from lume_diff.variables import TorchScalarVariable  # brings torch, which workers do without

    return TorchScalarVariable(name=name, unit=unit, description=description, read_only=True)


def _array(name: str, shape: tuple[int, ...], unit: str, description: str) -> Variable:
    from lume_diff.variables import TorchNDVariable

    return TorchNDVariable(name=name, shape=shape, unit=unit, description=description, read_only=True)


def start_variables(
    optics: Optics, asked: Iterable[str], given: Mapping[str, float] | None, beam: Any, reference_momentum: float
) -> list[Variable]:
    """Return the inputs that a line needs to start with.

    Args:
        optics: what is wanted: an orbit needs no beta function.
        asked: names, without ``"initial."``, of inputs that are wanted all the same.
        given: values by name, without ``"initial."``.
        beam: a bunch whose Twiss parameters are the defaults, or None.
        reference_momentum: [eV/c].

    Raises:
        UnknownVariableError: for a name in ``asked`` or ``given`` that is not one of these.
    """
    from lume_diff.variables import TorchScalarVariable

    given = dict(given or {})
    asked = {*asked, *given}
    unknown = sorted(name for name in asked if name not in START)
    if unknown:
        raise UnknownVariableError(f"initial value {unknown[0]!r} is not known{nearest_names(unknown[0], START)}")
    bodies = {quantity.rpartition("_")[0] or quantity for quantity in optics.quantities}
    needed = {"x", "px", "y", "py"} if bodies - {"s"} else set()
    if bodies & {"beta", "alpha", "mu"}:
        needed |= {f"{body}_{plane}" for body in ("beta", "alpha") for plane in "xy"}
    if bodies & {"eta", "etap"}:
        needed |= {f"{body}_{plane}" for body in ("eta", "etap") for plane in "xy"}
    variables: list[Variable] = []
    for name in START:
        if name not in needed and name not in asked:
            continue
        unit, description = PLACE[name]
        body = name.rpartition("_")[0] or name
        default = given.get(name, _of_beam(beam, name))
        variables.append(
            TorchScalarVariable(
                name=f"{INITIAL}.{name}",
                unit=unit,
                description=f"{description} at the start",
                default_value=default,
                value_range=(_SMALLEST_BETA, None) if body == "beta" else None,
                scale=_SCALES.get(body, 1e-4 * reference_momentum)
                * (max(1.0, abs(default)) if body == "beta" and default else 1.0),
            )
        )
    return variables


def _of_beam(beam: Any, name: str) -> float | None:
    """Return a default from the bunch, where it has a sound one."""
    body = name.rpartition("_")[0]
    if not body or body in ("eta", "etap"):  # dispersion of a bunch is mostly noise of its particles
        return 0.0
    if beam is not None:
        value = float(beam.alive_only[f"twiss_{name}"].detach().reshape(-1)[0])
        if np.isfinite(value) and (body != "beta" or value > _SMALLEST_BETA):
            return value
    return None if body == "beta" else 0.0
