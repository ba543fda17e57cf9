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
        reason: why they are not part of a matrix; empty for a linear stretch, which is one.
        engine: what tracks them: ``"maps"``, those of this package, or ``"cheetah"``.
    """

    elements: tuple[str, ...]
    reason: str = ""
    engine: str = "maps"

    def __str__(self) -> str:
        is_alone = len(self.elements) == 1
        where = self.elements[0] if is_alone else f"{self.elements[0]} ... {self.elements[-1]}"
        how = self.reason or ("one matrix" if is_alone else "as one matrix")
        return f"{where}  {how}" if is_alone else f"{where}  {len(self.elements)} elements {how}"


class Plan(tuple[Stretch, ...]):
    """The stretches of a line in the order of the beam; prints as a numbered list."""

    __slots__ = ()

    def __str__(self) -> str:
        width = len(str(len(self)))
        return "\n".join(f"{number:{width}}  {stretch}" for number, stretch in enumerate(self, start=1))


def plan_of(
    line: LineMaps, changed: Mapping[str, Tensor], active: Mapping[str, bool], losses: Losses, by_cheetah: bool = False
) -> Plan:
    """Return how a beam of particles passes a line.

    Args:
        line: the line.
        changed, active, losses, by_cheetah: as for ``LineRun``.
    """
    found: list[Stretch] = []
    row: list[str] = []

    def end_row() -> None:
        if row:
            found.append(Stretch(tuple(row), _CHOSEN, "cheetah") if by_cheetah else Stretch(tuple(row)))
            row.clear()

    for element in line.elements:
        is_active = active.get(element.name, element.is_active)
        step = special.step_of(element, is_active, changed, losses, by_cheetah)
        if step is None:
            row.append(element.name)
            continue
        end_row()
        is_native = step in (special.native_track, special.native_aperture)
        found.append(Stretch((element.name,), _reason(step, element), "cheetah" if is_native else "maps"))
    end_row()
    return Plan(found)


_CHOSEN = "tracked by Cheetah, because engine='cheetah'; no vmap, no derivative at zero strength"


def _reason(step: special.Step, element: Element) -> str:
    if step is special.native_track:
        return f"tracked by Cheetah's own {element.kind}, whose gradient is Cheetah's; no vmap"
    reasons: dict[special.Step, str] = {
        special.cavity: "a cavity with a voltage: energy and wave are not linear",
        special.transverse_deflecting_cavity: "a deflecting cavity: its wave is not linear",
        special.blocking_screen: "a screen that stops the beam",
        special.second_order: "tracking_method='second_order'",
        special.drift_kick_drift: "tracking_method='drift_kick_drift'",
        special.native_aperture: "an aperture with a hard edge, tracked by Cheetah, because engine='cheetah'",
        apertures.hard_aperture: "an aperture with a hard edge",
        apertures.soft_aperture: "an aperture with a soft edge",
    }
    return reasons[step]
