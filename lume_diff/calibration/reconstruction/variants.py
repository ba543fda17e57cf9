"""Variants: other readings of the same scan, which the bunch may be able to make up for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

#: How the camera may have turned the image.
View = Literal["as given", "transposed", "mirrored in x", "mirrored in y"]


@dataclass(frozen=True)
class Variant:
    """A reading of a scan.

    Attributes:
        strength: factor on all scanned settings.
        view: what the camera has done to the image.
    """

    strength: float = 1.0
    view: View = "as given"

    def on_inputs(self, inputs: Mapping[str, Any], scanned: Sequence[str]) -> dict[str, Any]:
        """Return the settings as this reading has them."""
        if self.strength == 1.0:
            return dict(inputs)
        return {name: value * self.strength if name in scanned else value for name, value in inputs.items()}

    def on_image(self, image: Tensor) -> Tensor:
        """Return what the camera would show, ``(..., ny, nx)``."""
        if self.view == "transposed":
            return image.mT
        if self.view == "mirrored in x":
            return image.flip(-1)
        return image.flip(-2) if self.view == "mirrored in y" else image

    def __str__(self) -> str:
        parts = [] if self.strength == 1.0 else [f"settings × {self.strength:g}"]
        parts += [] if self.view == "as given" else [f"image {self.view}"]
        return ", ".join(parts) or "as given"


AS_GIVEN = Variant()
