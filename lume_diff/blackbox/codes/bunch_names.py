"""Names and variables of a bunch that a code tracks: the bunch at places of the line, and its statistics."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch

from lume_diff.blackbox.codes.optics_names import FINAL, OpticsNames
from lume_diff.blackbox.codes.plain_bunches import INCOMING, OUTGOING
from lume_diff.errors import UnknownVariableError, ValidationError
from lume_diff.models.line.beams import as_beam
from lume_diff.particles import TorchParticleGroup, parse_key, statistic_unit
from lume_diff.variables import ParticleGroupVariable, TorchScalarVariable, Variable

PARTICLES = "particles"
REFERENCES = ("reference_energy", "reference_time")

#: Statistics at the end of the line that are declared when everything is asked for.
STATISTICS = (
    *(f"{operator}_{key}" for operator in ("mean", "sigma") for key in ("x", "y", "px", "py", "t", "energy")),
    *(f"norm_emit_{plane}" for plane in "xy"),
    *(f"twiss_{name}_{plane}" for plane in "xy" for name in ("beta", "alpha")),
    "charge",
)


@dataclass
class Bunches:
    """What bunches are wanted of a code.

    Attributes:
        places: name of a bunch output -> place, counted in elements before it.
        derived: statistic output -> (bunch output, openPMD key).
        variables: of both.
    """

    places: dict[str, int] = field(default_factory=dict)
    derived: dict[str, tuple[str, str]] = field(default_factory=dict)
    variables: list[Variable] = field(default_factory=list)


def default_bunches() -> list[str]:
    """Return the names that are declared when everything is asked for."""
    return [OUTGOING, *(f"{FINAL}.{key}" for key in STATISTICS)]


def knows_bunch(name: str) -> bool:
    """Tell whether a name is that of a bunch or of a scalar statistic, by its form."""
    quantity = name.rpartition(".")[2]
    if name == OUTGOING or quantity == PARTICLES:
        return True
    try:
        return "." in name and not parse_key(quantity).per_particle
    except UnknownVariableError:
        return False


def select_bunches(names: Iterable[str], place: OpticsNames) -> Bunches:
    """Return which bunches a code must give for these outputs; the one at the end always.

    Args:
        names: such as ``"final_particles"``, ``"Q1.particles"``, ``"final.sigma_x"``, ``"Q1.sigma_x"``.
        place: finds elements.

    Raises:
        UnknownVariableError: for an element that is not there.
    """
    found = Bunches()

    def bunch(element: str, asked: str) -> str:
        name = OUTGOING if element == FINAL else f"{element}.{PARTICLES}"
        if name not in found.places:
            found.places[name] = place.place(element, asked)
            where = "at the end" if element == FINAL else f"behind {element}"
            found.variables.append(ParticleGroupVariable(name=name, read_only=True, description=f"bunch {where}"))
        return name

    bunch(FINAL, OUTGOING)
    for name in dict.fromkeys(names):
        element, _, quantity = name.rpartition(".")
        if name == OUTGOING:
            continue
        owner = bunch(element, name)
        if quantity != PARTICLES:
            found.derived[name] = (owner, quantity)
            unit, text = statistic_unit(quantity), f"{quantity} of the bunch"
            found.variables.append(TorchScalarVariable(name=name, unit=unit, read_only=True, description=text))
    return found


def incoming_variables(beam: TorchParticleGroup, reference_energy: float) -> list[Variable]:
    """Return the inputs that come with a bunch: itself, and the reference energy and time of the line.

    Args:
        beam: the bunch; its reference time becomes the line's.
        reference_energy: of the lattice [eV].
    """
    return [
        ParticleGroupVariable(name=INCOMING, description="bunch at the start, on a plane of constant z"),
        TorchScalarVariable(
            name="reference_energy",
            unit="eV",
            default_value=reference_energy,
            value_range=(beam.mass, None),
            scale=1e-3 * reference_energy,
            description="total energy that the lattice is set for",
        ),
        TorchScalarVariable(
            name="reference_time",
            unit="s",
            default_value=float(beam.reference_time.detach().reshape(-1)[0]),
            scale=1e-12,
            description="time at which the reference particle starts",
        ),
    ]


def incoming_bunch(beam: object, dtype: torch.dtype, device: torch.device | str | None) -> TorchParticleGroup | None:
    """Return what a user gave as the incoming beam as a bunch on a z-plane, None for None.

    Raises:
        ValidationError: for moments, which a tracking code cannot take.
    """
    return None if beam is None else bunch_on_plane(beam, dtype, device)


def bunch_on_plane(beam: object, dtype: torch.dtype, device: torch.device | str | None) -> TorchParticleGroup:
    """Return a beam as a bunch on a z-plane.

    Raises:
        ValidationError: for moments, which a tracking code cannot take.
    """
    bunch = as_beam(beam, dtype, torch.device(device or "cpu"))
    if not isinstance(bunch, TorchParticleGroup):
        raise ValidationError(f"beam is moments ({type(beam).__name__}) and this code tracks particles: give a bunch")
    return bunch
