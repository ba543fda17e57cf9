"""Which settings: by index, by mask, and the split into a part to fit and a part to check it on."""

from __future__ import annotations

from typing import Any

import numpy as np

from lume_diff.errors import ShapeError, ValidationError


def positions(index: Any, count: int) -> np.ndarray:
    """Return the positions that an index selects.

    Args:
        index: a whole number, a slice, a mask ``(n_settings,)``, or a list of whole numbers.
        count: the number of settings.

    Raises:
        IndexError: a number beyond the end.
        ShapeError: a mask of another length.
        ValidationError: nothing selected, or no index at all.
    """
    if isinstance(index, slice):
        found = np.arange(count)[index]
    else:
        array = np.asarray(index)
        if array.dtype == bool:
            if array.shape != (count,):
                raise ShapeError(f"mask of shape {array.shape}, expected ({count},), one for each setting")
            found = np.flatnonzero(array)
        elif array.dtype.kind in "iu" and array.ndim <= 1:
            found = np.atleast_1d(array)
            if ((found < -count) | (found >= count)).any():
                raise IndexError(f"setting {found.tolist()} of {count}: beyond the end")
            found = found % count
        elif array.size == 0:
            found = np.zeros(0, dtype=int)
        else:
            raise ValidationError(f"index {index!r}: expected whole numbers, a slice or a mask of settings")
    if found.size == 0:
        raise ValidationError(f"index {index!r} selects none of the {count} settings; select at least one")
    return found


def split_positions(
    count: int, every: int | None, offset: int, fraction: float | None, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the positions to fit and those left out.

    Args:
        count: the number of settings.
        every: leave out every n-th setting, the first of them at ``offset``.
        offset: from 0 to ``every - 1``.
        fraction: the share to fit, drawn at random, between 0 and 1; instead of ``every``.
        seed: of the draw.

    Raises:
        ValidationError: both or none of the two ways, values out of range, or a part that would be empty.
    """
    if (every is None) == (fraction is None):
        raise ValidationError(f"split: received every={every}, fraction={fraction}; give one: every=3 or fraction=0.7")
    if every is not None:
        if every < 2 or not 0 <= offset < every:
            raise ValidationError(
                f"split: received every={every}, expected 2 or more: every other setting, or fewer, is left out"
                if every < 2
                else f"split: received offset={offset}, expected 0 to {every - 1} for every={every}"
            )
        left_out = np.arange(count)[offset::every]
    elif fraction is not None:
        if not 0.0 < fraction < 1.0:
            raise ValidationError(f"split: received fraction={fraction}, expected between 0 and 1, the share to fit")
        order = np.random.default_rng(seed).permutation(count)
        left_out = np.sort(order[round(fraction * count) :])
    kept = np.setdiff1d(np.arange(count), left_out)
    if not kept.size or not left_out.size:
        raise ValidationError(
            f"split: {count} settings give {kept.size} to fit and {left_out.size} to check; need both"
        )
    return kept, left_out
