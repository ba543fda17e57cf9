"""Random numbers that depend on nothing but a name, a seed and a count of shots."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence

import torch
from torch import Tensor


def _signed(number: int) -> int:
    """Return a number of 64 bits as the signed one with the same bits."""
    return (number + 2**63) % 2**64 - 2**63


_GOLDEN, _FIRST, _SECOND = map(_signed, (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


class Draws:
    """Draw a standard normal number for each of some names.

    Args:
        names: of the variables.
        seed: of all draws.

    Source:
        G. L. Steele, D. Lea and C. H. Flood, OOPSLA 2014, doi:10.1145/2660193.2660195 (SplitMix64); G. E. P. Box and
        M. E. Muller, Ann. Math. Statist. 29, 610 (1958), doi:10.1214/aoms/1177706645.
    """

    def __init__(self, names: Sequence[str], seed: int) -> None:
        bits = [zlib.crc32(name.encode()) << 32 | zlib.crc32(name[::-1].encode(), 1) for name in names]
        keys = torch.tensor([_signed(number) for number in bits], dtype=torch.int64)
        self._keys = _mixed(keys ^ _mixed(torch.tensor(_signed(seed), dtype=torch.int64)))

    def normal(self, shot: Tensor) -> Tensor:
        """Return one number a name, ``(*batch, n)`` for shots ``(*batch,)``, in double precision.

        Gradient:
            None.
        """
        counters = _mixed(self._keys.to(shot.device) ^ _mixed(shot.unsqueeze(-1)))
        first, second = (_uniform(_mixed(counters + turn)) for turn in (1, 2))
        return torch.sqrt(-2.0 * torch.log(first)) * torch.cos(2.0 * math.pi * second)


def _mixed(x: Tensor) -> Tensor:
    x = x + _GOLDEN
    x = (x ^ _shifted(x, 30)) * _FIRST
    x = (x ^ _shifted(x, 27)) * _SECOND
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, count: int) -> Tensor:
    """Shift bits to the right and zeros in."""
    return (x >> count) & (2 ** (64 - count) - 1)


def _uniform(x: Tensor) -> Tensor:
    """Return numbers above 0 and up to 1."""
    return (_shifted(x, 11).to(torch.float64) + 1.0) * 2.0**-53
