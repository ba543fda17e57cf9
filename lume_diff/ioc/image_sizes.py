"""Sizes of images beside them, as areaDetector has them and displays ask for them."""

from __future__ import annotations

from collections.abc import Container, Mapping

from lume_diff.variables import IntVariable, TorchNDVariable, Variable

_PIXELS = "ArrayData"
_MOST = 2**31 - 1  # pixels, which every protocol can carry


def image_sizes(variables: Mapping[str, Variable]) -> list[tuple[IntVariable, int]]:
    """Return variables for the sizes of images, each with its value, for those names that are still free.

    ``CAM:Image:ArrayData`` gets ``CAM:Image:ArraySize0_RBV``, the number of columns, and ``ArraySize1_RBV``, that of
    rows; an image with another name gets ``NAME:ArraySize0_RBV`` and so on.
    """
    found: dict[str, tuple[IntVariable, int]] = {}
    for name, variable in variables.items():
        if isinstance(variable, TorchNDVariable) and len(variable.shape) > 1:
            found.update(_sizes(name, variable.shape, variables))
    return list(found.values())


def _sizes(name: str, shape: tuple[int, ...], taken: Container[str]) -> dict[str, tuple[IntVariable, int]]:
    stem = name.removesuffix(_PIXELS) if name.endswith(_PIXELS) else f"{name}:"
    sizes = {f"{stem}ArraySize{number}_RBV": size for number, size in enumerate(reversed(shape))}
    return {
        size_name: (
            IntVariable(name=size_name, description=f"pixels of {name}", value_range=(0, 2**31 - 1), read_only=True),
            size,
        )
        for size_name, size in sizes.items()
        if size_name not in taken
    }
