"""How statistics are asked for: by name, of all particles or of the living."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch import Tensor

from lume_diff.particles.statistics import BunchStatistics

if TYPE_CHECKING:
    from lume_diff.particles.group import TorchParticleGroup


class StatisticAccess:
    """Statistics by name, of all particles or of the living."""

    __slots__ = ()

    def _statistics(self) -> BunchStatistics:
        raise NotImplementedError

    def cov(self, *keys: str) -> Tensor:
        """Return the covariance matrix of some per-particle arrays.

        Args:
            keys: k array names, such as ``"x", "px"``.

        Returns:
            The weighted, unbiased covariances, (*batch, k, k).

        Gradient: exact.
        """
        return self._statistics().matrix(keys)

    def twiss(self, plane: str = "x", fraction: float = 1.0, p0c: Tensor | float | None = None) -> dict[str, Tensor]:
        """Return Twiss parameters and dispersion (see `BunchStatistics.twiss`)."""
        return self._statistics().twiss(plane, fraction, p0c)

    def statistics(self, keys: Iterable[str]) -> dict[str, Tensor]:
        """Return many statistics at once, sharing what they have in common.

        Args:
            keys: statistics' names, such as ``["sigma_x", "norm_emit_x"]``.

        Returns:
            Name to value, (*batch,) or (*batch, n).

        Raises:
            UnknownVariableError: no such statistic.

        Gradient: exact.
        """
        engine = self._statistics()
        return {key: engine[key] for key in keys}


class AliveOnly(StatisticAccess):
    """Statistics of the living: each particle weighted by its survival probability.

    A loss drops out smoothly. When all are lost, the charge and the counts are 0 and the rest is NaN, with a
    zero gradient.
    """

    __slots__ = ("_bunch",)

    def __init__(self, bunch: TorchParticleGroup) -> None:
        self._bunch = bunch

    def _statistics(self) -> BunchStatistics:
        return BunchStatistics(self._bunch, alive_only=True)

    def __getitem__(self, key: str) -> Tensor:
        return self._statistics()[key]
