"""Shots: the images of a data set as tensors, averaged over the shots of each setting."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lume_diff.errors import CalibrationError

if TYPE_CHECKING:
    from lume_diff.calibration.data.screens import ScreenDataset


class Shots(NamedTuple):
    """Images of a screen and their standard errors.

    Attributes:
        output: which variable of the model predicts them.
        pixel_size: width and height of a pixel [m].
        each: every shot less the level of its background, ``(settings, shots, ny, nx)``.
        present: which shots show the beam, ``(settings, shots)``.
        mean: over the shots that do, ``(settings, ny, nx)``.
        sigma: standard error of that, ``(settings, ny, nx)``: an image of weight 1/4 counts as one of twice the noise.
        weight: sum of the weights of these shots, ``(settings,)``; as many as they are unless told otherwise.
        valid: 1 for pixels to be used in all shots of a setting, 0 for others, ``(settings, ny, nx)``.
        counted: whether a pixel of a setting with a beam is used, ``(settings, ny, nx)``.
    """

    output: str
    pixel_size: tuple[float, float]
    each: Tensor
    present: Tensor
    mean: Tensor
    sigma: Tensor
    weight: Tensor
    valid: Tensor
    counted: Tensor


def screen_shots(data: ScreenDataset) -> Shots:
    """Return a data set's images as likelihoods want them.

    Raises:
        CalibrationError: if no image shows the beam.
    """
    present = np.asarray(data.has_beam & (data.weights > 0.0))
    if not present.any():
        raise CalibrationError(
            f"{data.screen}: none of the {present.size} images shows the beam; check the screen, the threshold and the "
            "mask, or tell by with_beam(...) which do"
        )
    weights = np.where(present, data.weights, 0.0)[..., None, None]
    total = weights.sum(1)
    share = weights / np.where(total > 0.0, total, 1.0)[:, None]
    valid = np.asarray((data.mask | (weights == 0.0)).all(1))
    light = np.where(data.mask, data.images - data.noise.level, 0.0)
    mean = (share * light).sum(1)
    sigma = np.sqrt((share * np.square(data.sigma)).sum(1) / np.where(total > 0.0, total, 1.0))
    seen = np.asarray(present.any(1))
    sigma = np.where(seen[:, None, None], sigma, 1.0)
    as_tensor = lambda array: torch.tensor(np.asarray(array, dtype=np.float64))  # noqa: E731
    return Shots(
        output=data.screen,
        pixel_size=data.pixel_size,
        each=as_tensor(light),
        present=torch.tensor(present),
        mean=as_tensor(mean),
        sigma=as_tensor(sigma),
        weight=as_tensor(total[:, 0, 0]),
        valid=as_tensor(valid & seen[:, None, None]),
        counted=torch.tensor(valid & seen[:, None, None]),
    )
