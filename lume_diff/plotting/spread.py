"""Intervals on a line that must not overlap: bars, labels."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise


def spread_out(
    centres: Sequence[float],
    widths: float | Sequence[float],
    low: float = float("-inf"),
    high: float = float("inf"),
) -> list[float]:
    """Move intervals apart, as little as possible.

    Args:
        centres: where they want to be, in rising order.
        widths: of each, or of all.
        low, high: where they must stay, as far as they fit.

    Returns:
        New centres, in the same order.

    Source:
        Isotonic regression by pooling adjacent violators: M. Ayer et al., Ann. Math. Stat. 26, 641 (1955),
        doi:10.1214/aoms/1177728423.

    Example:
        >>> spread_out([0.0, 0.0, 5.0], 1.0)
        [-0.5, 0.5, 5.0]
    """
    sizes = [widths] * len(centres) if isinstance(widths, (int, float)) else list(widths)
    if not sizes:
        return []
    # In coordinates in which neighbours that touch are at one point, "no overlap" means "not falling".
    offsets = [0.0]
    for left, right in pairwise(sizes):
        offsets.append(offsets[-1] + 0.5 * (left + right))
    pools: list[tuple[float, int]] = []
    for centre, offset in zip(centres, offsets, strict=True):
        pool = (centre - offset, 1)
        while pools and pools[-1][0] > pool[0]:
            mean, count = pools.pop()
            pool = ((mean * count + pool[0] * pool[1]) / (count + pool[1]), count + pool[1])
        pools.append(pool)
    first = low + 0.5 * sizes[0]
    last = max(first, high - 0.5 * sizes[-1] - offsets[-1])
    levels = [min(max(mean, first), last) for mean, count in pools for _ in range(count)]
    return [level + offset for level, offset in zip(levels, offsets, strict=True)]
