"""What can be set on a line: variables and values of its knobs, switches and beam."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor

from lume_diff.errors import LatticeError, UnknownVariableError, nearest_names
from lume_diff.models.line.elements import SWITCHED, Attribute, is_number
from lume_diff.models.line.maps import LineMaps
from lume_diff.models.line.outputs import FINAL, LINE
from lume_diff.particles import TorchMoments, TorchParticleGroup
from lume_diff.variables import (
    BoolVariable,
    MomentsVariable,
    ParticleGroupVariable,
    TorchScalarVariable,
    Variable,
)

#: Names of the inputs that are not knobs.
GROUP, MOMENTS = "initial_particles", "initial_moments"
REFERENCES = ("reference_energy", "reference_time")

#: Typical change of the voltage of a cavity that is off [V].
_LEAST_VOLTAGE = 1e5


def check_names(names: Iterable[str]) -> None:
    """Refuse elements whose names mean something else here.

    Raises:
        LatticeError: for an element called ``final`` or ``line``.
    """
    for name in names:
        if name in (FINAL, LINE):
            raise LatticeError(f"an element is called {name!r}, which stands for the {name} of the model: rename it")


def knob_values(line: LineMaps) -> dict[str, Tensor]:
    """Return the numbers that the line was read with, by knob; of a trained one, the tensor that is trained."""
    return {name: line.elements[places[0]].number(attribute.name) for name, (attribute, places) in line.knobs.items()}


def switch_values(line: LineMaps) -> dict[str, bool]:
    """Return which elements are switched on, by switch."""
    return {f"{e.name}.is_active": e.is_active for e in line.elements if e.kind in SWITCHED}


def knob_variables(line: LineMaps, controls: Sequence[str] | None) -> tuple[list[Variable], dict[str, Any]]:
    """Return the variables of the knobs and switches that are wanted, and their values.

    Raises:
        UnknownVariableError: for a control that does not exist, with the nearest names.
    """
    values, switches = knob_values(line), switch_values(line)
    chosen = [*values, *switches] if controls is None else list(dict.fromkeys(controls))
    variables: list[Variable] = []
    initial: dict[str, Any] = {}
    for name in chosen:
        if name in values:
            attribute, positions = line.knobs[name]
            element, value = line.elements[positions[0]], values[name].detach()
            has_value = is_number(value)
            variables.append(
                TorchScalarVariable(
                    name=name,
                    unit=attribute.unit,
                    default_value=float(value) if has_value and value.dim() == 0 else None,
                    scale=_typical_change(attribute, value),
                    description=f"{attribute.description} of {element.kind} {element.name}",
                )
            )
            if has_value:
                initial[name] = values[name]
        elif name in switches:
            variables.append(BoolVariable(name=name, default_value=switches[name], description="whether it acts"))
        elif name not in (*REFERENCES, GROUP, MOMENTS):
            raise UnknownVariableError(
                f"control {name!r} is not a knob of the line{nearest_names(name, [*values, *switches])}"
            )
    return variables, initial


def _typical_change(attribute: Attribute, value: Tensor) -> float | None:
    """Return the scale of a knob; a cavity that is off is one that may be switched on."""
    if attribute.unit == "V" and bool((value == 0).all()):
        return _LEAST_VOLTAGE
    return attribute.scale


def beam_variables(beam: TorchParticleGroup | TorchMoments, name: str) -> list[Variable]:
    """Return the variables of the incoming beam and of the line's reference."""
    described = ParticleGroupVariable if name == GROUP else MomentsVariable
    return [
        described(name=name, description="beam at the entrance of the line"),
        TorchScalarVariable(
            name="reference_energy",
            unit="eV",
            value_range=(beam.mass, None),
            scale=1e-3 * float(beam.reference_energy.detach().mean()),
            description="total energy that the magnets' normalised strengths and the coordinates refer to",
        ),
        TorchScalarVariable(
            name="reference_time", unit="s", scale=1e-12, description="time that the coordinates refer to"
        ),
    ]
