"""What can be read along a line: names, variables, and how each is taken from a tracked beam."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lume_diff.errors import UnknownVariableError, nearest_names
from lume_diff.models.line.elements import Element
from lume_diff.particles import moment_statistic_names, parse_key, statistic_unit
from lume_diff.variables import MomentsVariable, ParticleGroupVariable, TorchNDVariable, TorchScalarVariable, Variable

#: Statistics of the beam behind an element that are declared when everything is asked for: name -> openPMD key.
STATISTICS = {
    **{f"mean_{key}": f"mean_{key}" for key in ("x", "y", "px", "py", "t", "energy")},
    **{f"sigma_{key}": f"sigma_{key}" for key in ("x", "y", "px", "py", "t", "energy")},
    **{f"norm_emit_{plane}": f"norm_emit_{plane}" for plane in "xy"},
    **{f"{name}_{plane}": f"twiss_{name}_{plane}" for plane in "xy" for name in ("beta", "alpha", "eta", "etap")},
    "charge": "charge",
}
#: Of these, the ones that are also given as arrays along the line.
ALONG = (
    *("mean_x", "mean_y", "sigma_x", "sigma_y", "sigma_t", "sigma_energy", "norm_emit_x", "norm_emit_y"),
    *(f"{name}_{plane}" for plane in "xy" for name in ("beta", "alpha", "eta")),
)
#: Quantities of the place rather than of the beam: name -> (unit, description).
PLACE = {
    "survival": ("1", "share of the charge that lives"),
    "reference_energy": ("eV", "reference energy"),
    "s": ("m", "path length from the start"),
}
#: Prefixes that are not element names.
FINAL, LINE = "final", "line"


@dataclass(frozen=True)
class Output:
    """One thing that can be read.

    Attributes:
        variable: its description.
        kind: ``"statistic"``, ``"place"``, ``"particles"``, ``"moments"``, ``"image"``, ``"bpm"`` or ``"along"``.
        place: at the entrance of which element; the number of elements means the end of the line.
        key: openPMD key, quantity, or coordinate, as the kind wants it.
    """

    variable: Variable
    kind: str
    place: int
    key: str = ""


class OutputTable:
    """Find outputs by name.

    Args:
        elements: the line.
        has_particles: whether the beam is particles; moments have no images.
    """

    def __init__(self, elements: Sequence[Element], has_particles: bool) -> None:
        self._has_particles = has_particles
        self._count = len(elements)
        self._last = {element.name: position for position, element in enumerate(elements)}
        self._elements = list(elements)

    def everything(self) -> list[Output]:
        """Return all outputs that need no asking for by name."""
        found: list[Output] = []
        for name, position in self._last.items():
            found += self._of_element(name, position)
        found += self._of_place(FINAL, self._count)
        found += [self._along(key) for key in (*ALONG, *PLACE)]
        found.append(self.named("final_moments"))
        if self._has_particles:
            found.append(self.named("final_particles"))
        return found

    def named(self, name: str) -> Output:
        """Return one output: one of ``everything()``, or ``"<element>.<key>"`` with any scalar openPMD key.

        Raises:
            UnknownVariableError: for an element or a key that does not exist, with the nearest names.
        """
        variable: Variable
        if name == "final_particles" and self._has_particles:
            variable = ParticleGroupVariable(name=name, read_only=True, description="bunch at the end of the line")
            return Output(variable, "particles", self._count)
        if name == "final_moments":
            variable = MomentsVariable(name=name, read_only=True, description="moments at the end of the line")
            return Output(variable, "moments", self._count)
        place, _, quantity = name.rpartition(".")
        if place == LINE and quantity in (*ALONG, *PLACE):
            return self._along(quantity)
        position = self._count if place == FINAL else self._last.get(place, -1) + 1
        if position == 0:
            wanted, places = place or name, (*self._last, FINAL)
            known = places if quantity else [f"{n}.sigma_x" for n in places]
            raise UnknownVariableError(
                f"output {name!r}: there is no element {wanted!r} in the line{nearest_names(wanted, known)}"
            )
        own = {o.variable.name: o for o in self._of_place(place, position)}
        if place != FINAL:
            own |= {o.variable.name: o for o in self._of_element(place, position - 1)}
        if name in own:
            return own[name]
        try:
            parsed = parse_key(quantity)
        except UnknownVariableError:
            parsed = None
        is_known = parsed is not None and not parsed.per_particle
        if not self._has_particles:
            is_known = is_known and quantity in moment_statistic_names()
        if not is_known:
            choices = [n.rpartition(".")[2] for n in own]
            others = "openPMD-beamphysics" if self._has_particles else "TorchMoments, which the beam is,"
            raise UnknownVariableError(
                f"output {name!r}: {quantity!r} is not something to read at {place!r}"
                f"{nearest_names(quantity, choices)}; any scalar statistic of {others} works too"
            )
        variable = TorchScalarVariable(name=name, read_only=True, unit=statistic_unit(quantity))
        return Output(variable, "statistic", position, quantity)

    def _of_element(self, name: str, position: int) -> list[Output]:
        found = self._of_place(name, position + 1)
        element = self._elements[position]
        if element.kind == "BPM":
            for axis in "xy":
                variable = TorchScalarVariable(
                    name=f"{name}.{axis}", unit="m", read_only=True, description=f"{axis} reading of the monitor"
                )
                found.append(Output(variable, "bpm", position, axis))
        if element.kind == "Screen" and self._has_particles:
            nx, ny = element.pixels
            is_density = element.option("method") == "kde"
            image = TorchNDVariable(
                name=f"{name}.image",
                shape=(ny, nx),
                unit="1" if is_density else "C",
                read_only=True,
                pixel_size=_pixel_size(element),
                description="share of the charge in each pixel, smoothed" if is_density else "charge in each pixel",
            )
            found.append(Output(image, "image", position))
        if self._has_particles:
            bunch = ParticleGroupVariable(name=f"{name}.particles", read_only=True, description=f"bunch behind {name}")
            found.append(Output(bunch, "particles", position + 1))
        return found

    def _of_place(self, name: str, place: int) -> list[Output]:
        found = []
        for short, key in STATISTICS.items():
            variable = TorchScalarVariable(name=f"{name}.{short}", unit=statistic_unit(key), read_only=True)
            found.append(Output(variable, "statistic", place, key))
        for quantity, (unit, description) in PLACE.items():
            variable = TorchScalarVariable(
                name=f"{name}.{quantity}", unit=unit, read_only=True, description=description
            )
            found.append(Output(variable, "place", place, quantity))
        return found

    def _along(self, quantity: str) -> Output:
        unit = PLACE[quantity][0] if quantity in PLACE else statistic_unit(STATISTICS[quantity])
        variable = TorchNDVariable(
            name=f"{LINE}.{quantity}",
            shape=(self._count + 1,),
            unit=unit,
            read_only=True,
            description=f"{quantity} at the start and behind every element",
        )
        return Output(variable, "along", self._count, quantity)


def _pixel_size(screen: Element) -> tuple[float, float] | None:
    """Return width and height of a pixel of the image [m] as built; None for a batch of sizes.

    What is left of the screen where binning does not divide it goes to all pixels.
    """
    sizes = [screen.number(f"pixel_size_{axis}").detach() for axis in "xy"]
    if any(size.numel() != 1 for size in sizes):
        return None
    width, height = (
        whole / count * float(size)
        for whole, count, size in zip(screen.option("resolution"), screen.pixels, sizes, strict=True)
    )
    return width, height


def stack_along(values: Iterable[Tensor]) -> Tensor:
    """Stack values at places along the line as the last dimension."""
    return torch.stack(torch.broadcast_tensors(*values), dim=-1)
