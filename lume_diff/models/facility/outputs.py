"""From what the model inside has computed to what the facility shows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lume_diff.errors import ShapeError
from lume_diff.models.facility.beam_stops import BeamStops, Dark, without_beam
from lume_diff.models.facility.functions import Function
from lume_diff.models.facility.groups import Groups, has_derivative
from lume_diff.models.facility.inputs import Natives
from lume_diff.models.facility.noise import Draws, as_tensor


@dataclass(frozen=True)
class Shown:
    """A native value under a name of the facility.

    Attributes:
        native: its name in the model.
        is_input: whether it is an input there.
        link: index of its conversion, None where the number is the same.
        place: along the beam, None where that does not matter.
        without: number that it shows without beam; None for a bunch, or what is no number.
        shape: of one value, None for what is no tensor of floats.
    """

    native: str
    is_input: bool
    link: int | None
    place: float | None
    without: float | None
    shape: tuple[int, ...] | None


@dataclass(frozen=True)
class Crop:
    """The region of an image that is shown: names of the variables with its edges and sizes.

    Attributes:
        sides: variable by side.
        pixels: (ny, nx) of the whole image.
    """

    sides: Mapping[str, str]
    pixels: tuple[int, int]

    def window(self, inputs: Mapping[str, Any]) -> tuple[int, int, int, int]:
        """Return first row, first column, number of rows and of columns."""
        ny, nx = self.pixels
        top, left = self._number("min_y", 0, inputs), self._number("min_x", 0, inputs)
        height, width = self._number("size_y", ny, inputs), self._number("size_x", nx, inputs)
        return top, left, min(height, ny - top), min(width, nx - left)

    def _number(self, side: str, otherwise: int, inputs: Mapping[str, Any]) -> int:
        if side not in self.sides:
            return otherwise
        value = inputs[self.sides[side]]
        if value.numel() != 1:
            raise ShapeError(
                f"{self.sides[side]!r} has shape {tuple(value.shape)}; a region of interest is one for the whole batch"
            )
        return int(value)

    def cut(self, image: Tensor, inputs: Mapping[str, Any]) -> Tensor:
        """Return an image of the same size with the region in its first rows and columns, and 0 elsewhere."""
        top, left, height, width = self.window(inputs)
        ny, nx = self.pixels
        if (top, left, height, width) == (0, 0, ny, nx):
            return image
        region = image[..., top : top + height, left : left + width]
        return torch.nn.functional.pad(region, (0, nx - width, 0, ny - height))


class OutputPlan:
    """Compute what the facility shows.

    Args:
        groups: the conversions of all readings.
        shown: native values by name of the facility.
        follows: the variable that each readback follows.
        derived: functions of other variables; names of theirs that the facility has not are native.
        fixed: values that never change.
        crops: regions of images.
        sizes: the image whose size a variable tells, and the axis.
        stops: where the beam may end.
        noise: rms noise by name.
        offsets: what is always added, by name.
        seed: of the noise.
        shot: the variable that counts the shots; None where nothing has noise.
    """

    def __init__(
        self,
        groups: Groups,
        shown: Mapping[str, Shown],
        follows: Mapping[str, str],
        derived: Mapping[str, Function],
        fixed: Mapping[str, Any],
        crops: Mapping[str, Crop],
        sizes: Mapping[str, tuple[str, str]],
        stops: BeamStops,
        noise: Mapping[str, float],
        offsets: Mapping[str, float],
        seed: int,
        shot: str | None,
    ) -> None:
        self.groups, self.shown, self.follows, self.derived = groups, dict(shown), dict(follows), dict(derived)
        self.fixed, self.crops, self.sizes, self.stops = dict(fixed), dict(crops), dict(sizes), stops
        self._shot = shot
        self._added = {name: index for index, name in enumerate({**noise, **offsets})}
        self._draws = Draws(list(self._added), seed)
        self._rms = torch.tensor([noise.get(n, 0.0) for n in self._added], dtype=torch.float64).numpy()
        self._offsets = torch.tensor([offsets.get(n, 0.0) for n in self._added], dtype=torch.float64).numpy()

    # -- what is needed ------------------------------------------------------------------------------------------------

    def readings(self, names: Iterable[str]) -> list[str]:
        """Return the native values behind some names of the facility, in order, each once."""
        found: dict[str, None] = {}
        seen: set[str] = set()
        pending = list(names)
        while pending:
            name = pending.pop()
            if name in seen:
                continue
            seen.add(name)
            if name in self.shown:
                found[name] = None
            elif name in self.follows:
                pending.append(self.follows[name])
            elif name in self.derived:
                pending += self.derived[name].sources()
        return list(found)

    def natives(self, names: Iterable[str], inputs: Mapping[str, Any]) -> list[str]:
        """Return the native outputs that it takes, but for those that see no beam."""
        dark = self.stops.dark(inputs) if self.stops else Dark()
        shown = (self.shown[name] for name in self.readings(names))
        return list(
            dict.fromkeys(
                s.native for s in shown if not s.is_input and not (dark.covers(s.place) and s.without is not None)
            )
        )

    # -- what is shown -------------------------------------------------------------------------------------------------

    def read(
        self,
        names: Sequence[str],
        inputs: Mapping[str, Any],
        natives: Natives,
        standing: Mapping[str, Any],
        take: Callable[[list[str]], Mapping[str, Any]],
        like: Tensor,
    ) -> dict[str, Any]:
        """Return what the facility shows.

        Args:
            names: of its variables.
            inputs: of the facility.
            natives: what the model ran with.
            standing: values of native inputs that the facility does not touch.
            take: gives native outputs by name.
            like: a tensor whose dtype and device to take.
        """
        dark = self.stops.dark(inputs) if self.stops else Dark()
        wanted = self.readings(names)
        values = take(self.natives(names, inputs))
        found = self._readings(wanted, natives, standing, values, dark, like)
        for name in wanted:
            if name in self.crops and isinstance(found[name], Tensor):
                found[name] = self.crops[name].cut(found[name], inputs)
        self._add(found, [name for name in wanted if name in self._added], inputs, like)
        follows = [name for name in names if name in self.follows]
        found |= self._followed(follows, found, inputs, like)
        for name in names:
            if name not in found:
                found[name] = self._other(name, found, inputs, like)
        return {name: found[name] for name in names}

    def _readings(
        self,
        names: Sequence[str],
        natives: Natives,
        standing: Mapping[str, Any],
        values: Mapping[str, Any],
        dark: Dark,
        like: Tensor,
    ) -> dict[str, Any]:
        found: dict[str, Any] = {}
        converted: list[tuple[str, int, Tensor]] = []
        for name in names:
            shown = self.shown[name]
            if dark.covers(shown.place) and shown.without is not None:
                found[name] = torch.full(shown.shape or (), shown.without, dtype=like.dtype, device=like.device)
                continue
            value: Any
            if shown.is_input:
                value = natives.values.get(shown.native, standing.get(shown.native))
                value = value.clone() if isinstance(value, Tensor) else value
            else:
                value = values[shown.native]
            if dark.covers(shown.place):
                value = without_beam(value)
            if shown.link is None:
                found[name] = value
            else:
                converted.append((name, shown.link, value if value.dtype == like.dtype else value.to(like.dtype)))
        chosen = [link for _, link, _ in converted]
        sources = (self.groups.links[link].energy for link in chosen)
        energies = [None if source is None else natives.energies[source] for source in sources]
        results = self.groups.to_setpoint(chosen, [value for _, _, value in converted], energies)
        return found | {name: value for (name, _, _), value in zip(converted, results, strict=True)}

    def _followed(
        self, names: Sequence[str], found: dict[str, Any], inputs: Mapping[str, Any], like: Tensor
    ) -> dict[str, Any]:
        """Return readbacks: copies, with noise and offset."""
        copies = {name: self._other(self.follows[name], found, inputs, like) for name in names}
        plain = [n for n, v in copies.items() if isinstance(v, Tensor) and n not in self._added]
        for name in plain:
            if has_derivative(copies[name]) or copies[name].dim():
                copies[name] = copies[name].clone()
        together: dict[torch.dtype, list[str]] = {}
        for name in plain:
            if not has_derivative(copies[name]) and not copies[name].dim():
                together.setdefault(copies[name].dtype, []).append(name)
        for group in together.values():
            copies.update(zip(group, torch.stack([copies[name] for name in group]).unbind(), strict=True))
        self._add(copies, [name for name in names if name in self._added], inputs, like)
        return copies

    def _add(self, values: dict[str, Any], names: Sequence[str], inputs: Mapping[str, Any], like: Tensor) -> None:
        """Add noise and offsets to values, in place of the table."""
        if not names:
            return
        total = self._offsets
        if self._shot is not None:
            total = total + self._rms * self._draws.normal(inputs[self._shot])
        added = as_tensor(total, like.dtype, like.device)
        together: list[str] = []
        for name in names:
            if has_derivative(values[name]) or values[name].dim() or added.dim() > 1:
                values[name] = values[name] + added[..., self._added[name]]
            else:
                together.append(name)
        if together:
            chosen = added[[self._added[name] for name in together]]
            whole = torch.stack([values[name] for name in together]) + chosen
            values.update(zip(together, whole.unbind(), strict=True))

    def _other(self, name: str, found: dict[str, Any], inputs: Mapping[str, Any], like: Tensor) -> Any:
        """Return a derived value, a constant or a size."""
        if name in found:
            return found[name]
        if name in inputs:
            return inputs[name]
        if name in self.fixed:
            value = self.fixed[name]
            return value.clone() if isinstance(value, Tensor) else value
        if name in self.sizes:
            image, axis = self.sizes[name]
            _, _, height, width = self.crops[image].window(inputs)
            return torch.tensor(width if axis == "x" else height, device=like.device)
        if name in self.follows:
            return self._followed([name], found, inputs, like)[name]
        function = self.derived[name]
        parts = {source: self._other(source, found, inputs, like) for source in function.sources()}
        table = {name: function.compute(parts)}
        self._add(table, [name] if name in self._added else [], inputs, like)
        return table[name]


def no_beam_value(given: float | None, shape: tuple[int, ...]) -> float:
    """Return what a reading shows without beam: what was given, else 0 in an image and NaN elsewhere."""
    if given is not None:
        return given
    return 0.0 if len(shape) == 2 else math.nan
