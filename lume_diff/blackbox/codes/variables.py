"""The variables of a model of an optics code: what every such code shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lume_diff.blackbox.codes.bunch_names import (
    INCOMING,
    REFERENCES,
    Bunches,
    default_bunches,
    incoming_variables,
    knows_bunch,
    select_bunches,
)
from lume_diff.blackbox.codes.optics_names import INITIAL, Optics, OpticsNames, start_variables
from lume_diff.errors import UnknownVariableError, ValidationError, nearest_names
from lume_diff.particles import TorchParticleGroup
from lume_diff.variables import Variable


def check_names(controls: Sequence[str] | None, outputs: Sequence[str] | None) -> None:
    """Refuse a string where a list of names is meant.

    Raises:
        ValidationError: with the list to write.
    """
    for word, names in (("controls", controls), ("outputs", outputs)):
        if isinstance(names, str):
            raise ValidationError(f"{word} must be a list of names, got the string {names!r}: write [{names!r}]")


def is_periodic(periodic: bool | None, beam: Any, initial: Any, controls: Sequence[str] | None) -> bool:
    """Decide between ring and line where the user left it open: a beam or a start makes a line.

    Raises:
        ValidationError: for a ring that is given a start.
    """
    starts = initial is not None or any(name.startswith(f"{INITIAL}.") for name in controls or ())
    if periodic is None:
        return beam is None and not starts
    if periodic and starts:
        raise ValidationError("a ring has no start: leave out initial and 'initial.*', or build with periodic=False")
    return bool(periodic)


def knob_names(controls: Sequence[str] | None, beam: Any) -> list[str] | None:
    """Return the controls that are set on the lattice: not the start of a line, the bunch and its reference."""
    if controls is None:
        return None
    others = () if beam is None else (INCOMING, *REFERENCES)
    return [name for name in controls if not name.startswith(f"{INITIAL}.") and name not in others]


@dataclass(frozen=True)
class OutputPlan:
    """What a code must give.

    Attributes:
        optics: and where.
        bunches: and where; None where no bunch is tracked.
        variables: of all outputs.
    """

    optics: Optics
    bunches: Bunches | None
    variables: list[Variable]

    @property
    def places(self) -> dict[str, int]:
        """Name -> place of the bunches that the code returns."""
        return {} if self.bunches is None else dict(self.bunches.places)

    @property
    def derived(self) -> dict[str, tuple[str, str]]:
        """Statistic -> (bunch, key) of what is computed of them."""
        return {} if self.bunches is None else dict(self.bunches.derived)


def plan_outputs(
    outputs: Sequence[str] | None, finder: OpticsNames, watched: Sequence[str], bunch: TorchParticleGroup | None
) -> OutputPlan:
    """Sort out which outputs are optics and which belong to the bunch.

    Args:
        outputs: names; None for a choice.
        finder: finds elements and optics.
        watched: elements at whose exits everything is chosen: markers and monitors.
        bunch: what is tracked, or None.

    Raises:
        UnknownVariableError: for a name that is neither.
    """
    default = [*finder.defaults(watched), *(default_bunches() if bunch is not None else [])]
    wanted = default if outputs is None else list(dict.fromkeys(outputs))
    of_bunch = [name for name in wanted if bunch is not None and not finder.knows(name) and knows_bunch(name)]
    for name in wanted:
        if name not in of_bunch and not finder.knows(name):
            hint = "; a bunch and its statistics need a beam: give beam=" if bunch is None and knows_bunch(name) else ""
            raise UnknownVariableError(f"output {name!r} is not known{hint or nearest_names(name, default)}")
    optics, variables = finder.select(name for name in wanted if name not in of_bunch)
    bunches = None if bunch is None else select_bunches(of_bunch, finder)
    return OutputPlan(optics, bunches, variables if bunches is None else [*variables, *bunches.variables])


def other_inputs(
    plan: OutputPlan,
    controls: Sequence[str] | None,
    initial: Mapping[str, float] | None,
    bunch: TorchParticleGroup | None,
    periodic: bool,
    reference_energy: float,
    reference_momentum: float,
) -> list[Variable]:
    """Return the inputs that are not set on the lattice: where a line starts, the bunch, its reference.

    Args:
        plan: of the outputs.
        controls, initial, bunch, periodic: as the model was given them.
        reference_energy, reference_momentum: of the lattice [eV], [eV/c].
    """
    found: list[Variable] = []
    if not periodic:
        asked = [name.partition(".")[2] for name in controls or () if name.startswith(f"{INITIAL}.")]
        found += start_variables(plan.optics, asked, initial, bunch, reference_momentum)
    if bunch is not None:
        found += incoming_variables(bunch, reference_energy)
    return found
