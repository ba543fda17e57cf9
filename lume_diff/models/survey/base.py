"""Survey: what a model tells of its line at one setting: elements, beam along s, beam at an element."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from lume_diff.particles import TorchMoments, TorchParticleGroup

#: What is told of the beam along the line, by openPMD's names, unless something else is asked for.
QUANTITIES = (
    *("sigma_x", "sigma_y", "sigma_t", "sigma_energy", "mean_x", "mean_y", "mean_energy"),
    *(f"{name}_{plane}" for plane in "xy" for name in ("norm_emit", "beta", "alpha", "eta")),
    "charge",
)
#: The kind of a stage that has no elements to show: a network, or a simulator that does not tell.
BOX = "Model"


@dataclass(frozen=True)
class LineElement:
    """One element as it stands in the line.

    Attributes:
        name: of the element; the control system's name of the device in a facility.
        kind: class of the element, as Cheetah calls it; ``"Model"`` for a stage without elements.
        s: where it begins [m].
        length: [m].
        strength: the number that its class goes by, in its own unit; None for elements without one, NaN for a batch.
        stage: the stage that it belongs to, where there are several.
        attribute: what the strength is called, such as ``k1``.
        unit: of the strength.
        native: its name in the model that has the element.
        knobs: inputs of the surveyed model that act on it.
    """

    name: str
    kind: str
    s: float
    length: float
    strength: float | None = None
    stage: str = ""
    attribute: str = ""
    unit: str = ""
    native: str = ""
    knobs: tuple[str, ...] = ()

    @property
    def centre(self) -> float:
        """The middle of the element [m]."""
        return self.s + 0.5 * self.length

    @property
    def end(self) -> float:
        """Where it ends [m]."""
        return self.s + self.length


@dataclass(frozen=True)
class BeamAlong:
    """Statistics of the beam along a line.

    Attributes:
        s: places [m], ``(n,)``, rising.
        values: by openPMD name, ``(n,)`` each, in openPMD's units.
        units: by the same names.
        behind: index of the place at the exit of each element, by its name.
    """

    s: np.ndarray
    values: Mapping[str, np.ndarray]
    units: Mapping[str, str]
    behind: Mapping[str, int] = field(default_factory=dict)

    def renamed(self, names: Mapping[str, str]) -> BeamAlong:
        """Return the same with other names of the elements."""
        behind = {names.get(name, name): index for name, index in self.behind.items()}
        return BeamAlong(self.s, self.values, self.units, behind)


@dataclass(frozen=True)
class BeamStop:
    """Something inserted that ends the beam.

    Attributes:
        variable: the input that put it in.
        s: where [m].
    """

    variable: str
    s: float


class Survey(ABC):
    """A line at one setting, computed as far as somebody asks; it writes nothing to the model.

    Attributes:
        elements: in the order of the beam.
        stop: what ends the beam before the end of the line; None for nothing.
    """

    elements: tuple[LineElement, ...]
    stop: BeamStop | None = None

    @abstractmethod
    def along(self, quantities: Sequence[str] = QUANTITIES) -> BeamAlong | None:
        """Return statistics of the beam along the line, None where they are not known.

        Args:
            quantities: openPMD names.

        Gradient:
            None: these are numbers to look at.
        """

    @abstractmethod
    def beam(self, element: str) -> TorchParticleGroup | TorchMoments | None:
        """Return the beam behind an element, as far as the model has it; None where it is not known.

        Args:
            element: name of one of ``elements``, or its native name.

        Gradient:
            None: it is detached.
        """

    @property
    def end(self) -> float:
        """Where the line ends [m]."""
        return max((element.end for element in self.elements), default=0.0)

    def find(self, name: str) -> LineElement | None:
        """Return an element by its name or its native name, None if there is none."""
        found = (element for element in self.elements if name in (element.name, element.native))
        return next(found, None)


def joined(parts: Sequence[tuple[float, BeamAlong]], quantities: Sequence[str]) -> BeamAlong | None:
    """Return statistics along lines in a row as those along one line, None for none.

    Args:
        parts: where each begins [m], and what is known along it.
        quantities: in the order wanted; what a part does not know is NaN there.
    """
    if not parts:
        return None
    behind: dict[str, int] = {}
    count = 0
    for _, part in parts:
        behind |= {name: index + count for name, index in part.behind.items()}
        count += part.s.size
    units = {key: unit for _, part in parts for key, unit in part.units.items()}
    values = {
        key: np.concatenate([part.values.get(key, np.full(part.s.size, np.nan)) for _, part in parts])
        for key in quantities
        if key in units
    }
    return BeamAlong(np.concatenate([part.s + start for start, part in parts]), values, units, behind)
