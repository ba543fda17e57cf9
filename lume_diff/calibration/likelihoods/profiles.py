"""Profiles: projections of images against those of a prediction of free intensity."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from lume_diff.calibration.likelihoods.detail import Detail, DetailLikelihood
from lume_diff.calibration.likelihoods.measures import fitted_amplitude


class Profiles(DetailLikelihood):
    """Compare the projections of images on x and on y: robust against noise of single pixels, and cheap.

    Columns and rows are weighted by their errors and compared by smooth bumps, see ``Images``.

    Args:
        detail: standard deviation of the bumps in rms sizes of each measured beam; 0 for single columns and rows.
        robust: see ``Likelihood``.

    Raises:
        ValidationError: for a detail that is negative or coarser than 2 rms sizes.

    Gradient:
        Exact.
    """

    def measured_share(self, target: Detail) -> Tensor:
        """Return the variance that the noise of the data gives to every deviation, ``(n,)``."""
        return torch.cat([rows.square() @ share for rows, share in _shares(target)])

    def measured_noise(self, slope: Tensor, target: Detail) -> Tensor:
        """Return the covariance that the noise of the data gives to ``slope^T deviations``; bumps share pixels."""
        shares = list(_shares(target))
        found = slope.new_zeros(slope.shape[-1], slope.shape[-1])
        for (rows, share), part in zip(shares, slope.split([len(rows) for rows, _ in shares]), strict=True):
            lines = (part.mT @ rows) * share.sqrt()
            found = found + lines @ lines.mT
        return found

    def deviations(self, predicted: Mapping[str, Tensor], target: Detail) -> Tensor:
        """Return the deviation of every bump along x and y that counts, ``(n,)``."""
        shots = target.shots
        expected, measured = shots.valid * predicted[shots.output], shots.valid * shots.mean
        variance = shots.valid * shots.sigma.square()
        found = []
        for place, rows in _lines(target):
            error = _or_one(_line(variance, place)).sqrt()
            here, there = (rows @ (_line(image, place) / error) for image in (expected, measured))
            # The factor is fitted to bumps: that which fits noisy profiles best is too small.
            factor = fitted_amplitude(here, there, torch.ones_like(there), (-1,))
            found.append(factor * here - there)
        return torch.cat(found)


def _lines(target: Detail) -> Iterator[tuple[tuple[int, int], Tensor]]:
    """Yield for each profile that counts its setting, the axis that is summed over, and its bumps."""
    for setting in target.seen:
        along, across = target.bumps[setting]
        yield (setting, -2), across
        yield (setting, -1), along


def _shares(target: Detail) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield for each profile that counts its bumps, and the data's share in the variance of its columns or rows."""
    variance = target.shots.valid * target.shots.sigma.square()
    for place, rows in _lines(target):
        yield rows, _line(target.measured * variance, place) / _or_one(_line(variance, place))


def _line(images: Tensor, place: tuple[int, int]) -> Tensor:
    setting, axis = place
    return images[setting].sum(axis)


def _or_one(variance: Tensor) -> Tensor:
    """Return variances, and 1 for rows and columns that are masked."""
    return torch.where(variance > 0.0, variance, torch.ones_like(variance))
