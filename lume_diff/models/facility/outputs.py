"""What a facility shows, and what it takes to show it."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lume_diff.errors import ShapeError
from lume_diff.models.facility.beam_stops import BeamStops, Dark
from lume_diff.models.facility.functions import Function
from lume_diff.models.facility.groups import Groups
from lume_diff.models.facility.noise import Draws
from lume_diff.models.transforms import in_transform, mark

#: How many requests for several variables a plan remembers.
_REMEMBERED = 64


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
        row, column = self._number("min_y", 0, inputs), self._number("min_x", 0, inputs)
        height, width = self._number("size_y", ny, inputs), self._number("size_x", nx, inputs)
        return row, column, min(height, ny - row), min(width, nx - column)

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
        row, column, height, width = self.window(inputs)
        ny, nx = self.pixels
        if (row, column, height, width) == (0, 0, ny, nx):
            return image
        region = image[..., row : row + height, column : column + width]
        return torch.nn.functional.pad(region, (0, nx - width, 0, ny - height))


class OutputPlan:
    """Say what the outputs of a facility are made of.

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
        self._known_readings: dict[tuple[str, ...], list[str]] = {}
        self._known_natives: dict[tuple[str, ...], list[str]] = {}
        self._known_added: tuple[Tensor | None, Any, Tensor] | None = None
        self.noisy = {name: index for index, name in enumerate({**noise, **offsets})}
        self._draws = Draws(list(self.noisy), seed)
        self._rms = torch.tensor([noise.get(n, 0.0) for n in self.noisy], dtype=torch.float64)
        self._offsets = torch.tensor([offsets.get(n, 0.0) for n in self.noisy], dtype=torch.float64)

    # -- what is needed ------------------------------------------------------------------------------------------------

    def readings(self, names: Sequence[str]) -> list[str]:
        """Return the names of the native values behind some names of the facility, each once."""
        key = tuple(names)
        found = self._known_readings.get(key)
        if found is None:
            found = self._known_readings[key] = self._readings_behind(names)
            if len(self._known_readings) > _REMEMBERED:
                self._known_readings = {key: found}
        return found

    def _readings_behind(self, names: Iterable[str]) -> list[str]:
        found: dict[str, None] = {}
        seen: set[str] = set()
        pending = deque(names)
        while pending:
            name = pending.popleft()
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

    def natives(self, names: Sequence[str], inputs: Mapping[str, Any]) -> list[str]:
        """Return the native outputs that it takes, but for those that see no beam."""
        dark, key = self.dark(inputs), tuple(names)
        if dark is None and key in self._known_natives:
            return self._known_natives[key]
        shown = [self.shown[name] for name in self.readings(names)]
        if dark is not None:
            shown = [s for s in shown if s.without is None or not dark.covers(s.place)]
        found = list(dict.fromkeys([s.native for s in shown if not s.is_input]))
        if dark is None:
            known = self._known_natives if len(self._known_natives) < _REMEMBERED else {}
            self._known_natives = {**known, key: found}
        return found

    def dark(self, inputs: Mapping[str, Any]) -> Dark | None:
        """Return where there is no beam, None where there is everywhere."""
        return self.stops.dark(inputs) if self.stops else None

    def in_the_dark(self, names: Sequence[str], inputs: Mapping[str, Any]) -> list[str]:
        """Return those of some names that show, or are derived from, what stands for a reading without beam."""
        dark = self.dark(inputs)
        if dark is None:
            return []
        behind = {name: [self.shown[reading] for reading in self._readings_behind([name])] for name in names}
        return [n for n, some in behind.items() if any(s.without is not None and dark.covers(s.place) for s in some)]

    def added(self, inputs: Mapping[str, Any], like: Tensor) -> Tensor:
        """Return noise and offsets, ``(*batch, n)``, in the order of ``noisy``."""
        shot = None if self._shot is None else inputs[self._shot]
        drawn, now = self._known_added, mark(shot)
        if drawn is not None and drawn[0] is shot and drawn[1] == now:
            return drawn[2]
        total = self._offsets.to(like.device)
        if shot is not None:
            total = total + self._rms.to(like.device) * self._draws.normal(shot)
        found = total.to(like.dtype)
        if not (in_transform() or torch.is_inference_mode_enabled()):
            self._known_added = shot, now, found
        return found

    def places_in_noise(self, names: Sequence[str]) -> list[int]:
        """Return where variables stand in ``noisy``."""
        return [self.noisy[name] for name in names]


def no_beam_value(given: float | None, shape: tuple[int, ...]) -> float:
    """Return what a reading shows without beam: what was given, else 0 in an image and NaN elsewhere."""
    if given is not None:
        return given
    return 0.0 if len(shape) == 2 else math.nan
