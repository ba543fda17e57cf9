"""What a fit is given as its data: one data set or several, and nothing else."""

from __future__ import annotations

from typing import Any

from lume_diff.calibration.data.scalars import Dataset
from lume_diff.calibration.data.screens import ScreenDataset
from lume_diff.errors import ValidationError


def data_sets(given: Any) -> list[Any]:
    """Return the data sets of a fit as a list.

    Args:
        given: a ``ScreenDataset``, a ``Dataset``, or a list of them.

    Raises:
        ValidationError: for an empty list, or anything else.
    """
    found = list(given) if isinstance(given, (list, tuple)) else [given]
    if not found:
        raise ValidationError("data is empty; give a ScreenDataset, a Dataset, or a list of them")
    for part in found:
        if not isinstance(part, (ScreenDataset, Dataset)):
            shown = repr(part) if isinstance(part, (str, type(None))) else f"a {type(part).__name__}"
            raise ValidationError(
                f"data: received {shown}, expected a ScreenDataset, a Dataset, or a list of them; ScreenDataset takes "
                "settings and images, ScreenDataset.from_npz and its likes take files"
            )
    return found


def screen_data_sets(given: Any) -> list[ScreenDataset]:
    """Return the data sets of a reconstruction as a list.

    Args:
        given: a ``ScreenDataset`` or a list of them.

    Raises:
        ValidationError: for numbers, an empty list, or anything else.
    """
    found = data_sets(given)
    for part in found:
        if not isinstance(part, ScreenDataset):
            raise ValidationError(
                f"data of {', '.join(part.outputs)} are numbers; a reconstruction needs images of a screen: "
                "give a ScreenDataset"
            )
    return found
