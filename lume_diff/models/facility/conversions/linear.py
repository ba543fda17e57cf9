"""Linear conversions, and those between units."""

from __future__ import annotations

import math
from typing import Literal, final

from torch import Tensor

from lume_diff.errors import ValidationError
from lume_diff.models.facility.conversions.base import Conversion, Numbers, Place
from lume_diff.variables.units import conversion_factor


@final
class Linear(Conversion):
    """``native = scale * setpoint + offset``.

    Args:
        scale: native unit per unit of the setpoint, not zero; None for the factor between the two units.
        offset: in the native unit.

    Gradient:
        Exact.
    """

    kind: Literal["linear"] = "linear"
    scale: float | None = None
    offset: float = 0.0

    def numbers(self, place: Place) -> dict[str, float]:
        """Return scale and offset."""
        scale = conversion_factor(place.unit, place.native_unit) if self.scale is None else self.scale
        if scale == 0.0 or not math.isfinite(scale) or not math.isfinite(self.offset):
            raise ValidationError(
                f"a linear conversion with scale={scale!r} and offset={self.offset!r} is not strictly monotone: give a "
                "finite scale other than 0"
            )
        return {"scale": scale, "offset": self.offset}

    def to_native(self, setpoint: Tensor, numbers: Numbers, energy: Tensor | None) -> Tensor:
        """Return ``scale * setpoint + offset``."""
        return setpoint * numbers["scale"] + numbers["offset"]

    def to_setpoint(self, native: Tensor, numbers: Numbers, energy: Tensor | None) -> Tensor:
        """Return ``(native - offset) / scale``."""
        return (native - numbers["offset"]) / numbers["scale"]
