"""Random numbers that depend on nothing but a name, a seed and a count of shots."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class Draws:
    """Draw a standard normal number for each of some names, which depends on nothing but name, seed and shot.

    Args:
        names: of the variables.
        seed: of all draws.

    Source:
        G. L. Steele, D. Lea and C. H. Flood, OOPSLA 2014, doi:10.1145/2660193.2660195 (SplitMix64); G. E. P. Box and
        M. E. Muller, Ann. Math. Statist. 29, 610 (1958), doi:10.1214/aoms/1177706645.
    """

    def __init__(self, names: Sequence[str], seed: int) -> None:
        keys = np.array([zlib.crc32(name.encode()) for name in names], dtype=np.uint64)
        twins = np.array([zlib.crc32(name[::-1].encode(), 1) for name in names], dtype=np.uint64)
        self._keys = _mixed((keys << np.uint64(32)) ^ twins ^ _mixed(np.array([seed % 2**64], dtype=np.uint64)))

    def normal(self, shot: Tensor | int) -> np.ndarray:
        """Return one number a name, ``(*batch, n)`` for shots ``(*batch,)``."""
        shots = np.asarray(shot.cpu().numpy() if isinstance(shot, Tensor) else shot, dtype=np.int64).astype(np.uint64)
        counters = _mixed(self._keys ^ _mixed(shots[..., None] + _GOLDEN))
        first, second = (_uniform(_mixed(counters + np.uint64(turn))) for turn in (1, 2))
        return np.sqrt(-2.0 * np.log(first)) * np.cos(2.0 * np.pi * second)


def _mixed(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        x = x + _GOLDEN
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _uniform(x: np.ndarray) -> np.ndarray:
    """Return numbers above 0 and up to 1."""
    return ((x >> np.uint64(11)).astype(np.float64) + 1.0) * 2.0**-53


def as_tensor(values: np.ndarray, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return numbers as a tensor of the model."""
    return torch.from_numpy(np.ascontiguousarray(values)).to(dtype=dtype, device=device)
