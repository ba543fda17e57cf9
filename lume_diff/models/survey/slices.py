"""A line with its long elements cut into slices, so that the beam is known inside them too."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from lume_diff.models.line.elements import Element

#: Classes whose map is a product of the maps of their slices.
_SLICED = ("Drift", "Quadrupole", "Solenoid")
#: About how many slices a line gets.
_WANTED = 160


def sliced(elements: Sequence[Element]) -> tuple[list[Element], list[int]]:
    """Return the elements of a line, long ones in slices, and the number of the last slice of each.

    Only elements that are a linear map are cut, because only they are the product of their slices exactly.
    """
    lengths = [float(element.length.detach().reshape(-1)[0]) for element in elements]
    step = sum(abs(length) for length in lengths) / _WANTED
    found: list[Element] = []
    last = []
    for element, length in zip(elements, lengths, strict=True):
        count = math.ceil(length / step) if step > 0.0 and _can_be_cut(element) and length > 0.0 else 1
        part = replace(element, values={**element.values, "length": element.length / count}) if count > 1 else element
        found += [part] * count
        last.append(len(found) - 1)
    return found, last


def _can_be_cut(element: Element) -> bool:
    is_linear = element.option("tracking_method", "linear") == "linear"
    return element.kind in _SLICED and is_linear and not element.trained and element.native is None
