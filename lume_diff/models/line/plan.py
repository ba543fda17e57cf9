"""How a beam passes a line: which elements as one matrix, which alone, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from lume_diff.models.line import apertures, special
from lume_diff.models.line.apertures import Losses
from lume_diff.models.line.elements import Element
from lume_diff.models.line.maps import LineMaps


@dataclass(frozen=True)
class Stretch:
    """Elements in a row that the beam passes in one step.

    Attributes:
        elements: their names.
        reason: why an element stands alone; empty for a linear stretch, which is one matrix.
    """

    elements: tuple[str, ...]
    reason: str = ""

    def __str__(self) -> str:
        if self.reason:
            return f"{self.elements[0]}  {self.reason}"
        if len(self.elements) == 1:
            return f"{self.elements[0]}  one matrix"
        return f"{self.elements[0]} ... {self.elements[-1]}  {len(self.elements)} elements as one matrix"


class Plan(tuple[Stretch, ...]):
    """The stretches of a line in the order of the beam; prints as a numbered list."""

    __slots__ = ()

    def __str__(self) -> str:
        width = len(str(len(self)))
        return "\n".join(f"{number:{width}}  {stretch}" for number, stretch in enumerate(self, start=1))


def plan_of(line: LineMaps, changed: Mapping[str, Tensor], active: Mapping[str, bool], losses: Losses) -> Plan:
    """Return how a beam of particles passes a line.

    Args:
        line: the line.
        changed, active, losses: as for ``LineRun``.
    """
    found: list[Stretch] = []
    row: list[str] = []
    for element in line.elements:
        step = special.step_of(element, active.get(element.name, element.is_active), changed, losses)
        if step is None:
            row.append(element.name)
            continue
        if row:
            found.append(Stretch(tuple(row)))
            row = []
        found.append(Stretch((element.name,), _reason(step, element)))
    if row:
        found.append(Stretch(tuple(row)))
    return Plan(found)


def _reason(step: special.Step, element: Element) -> str:
    if step is special.native_track:
        return f"tracked by Cheetah's own {element.kind}, whose gradient is Cheetah's; no vmap"
    reasons: dict[special.Step, str] = {
        special.cavity: "a cavity with a voltage: energy and wave are not linear",
        special.transverse_deflecting_cavity: "a deflecting cavity: its wave is not linear",
        special.blocking_screen: "a screen that stops the beam",
        special.second_order: "tracking_method='second_order'",
        special.drift_kick_drift: "tracking_method='drift_kick_drift'",
        apertures.hard_aperture: "an aperture with a hard edge",
        apertures.soft_aperture: "an aperture with a soft edge",
    }
    return reasons[step]
