"""Hidden errors of quadrupoles, found again from noisy screens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch

from lume_diff.demo.line import IMAGE, KNOBS, pixel_size
from lume_diff.models import StagedModel

if TYPE_CHECKING:
    from lume_diff.calibration import CalibrationResult, ScreenDataset

#: Spread of the hidden errors and of the scan, relative to the settings.
ERROR, SPAN = 0.02, 0.2
SETTINGS = 10
#: Counts of the brightest pixel, and rms noise of every pixel.
_PEAK, _NOISE = 1000.0, 2.0


def hidden_errors(seed: int) -> dict[str, float]:
    """Return what each quadrupole's gradient is times its setting."""
    errors = torch.randn(len(KNOBS), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return dict(zip(KNOBS, (1.0 + ERROR * errors).tolist(), strict=True))


@torch.no_grad()
def measure_screens(
    line: StagedModel, settings: Mapping[str, float], errors: Mapping[str, float], seed: int
) -> ScreenDataset:
    """Return noisy images of a machine whose quadrupoles are not what they are set to.

    Args:
        line: the chain.
        settings: that the scan goes around [1/m^2].
        errors: of the quadrupoles, as factors.
        seed: of the scan and of the noise.
    """
    from lume_diff.calibration import ScreenDataset

    generator = torch.Generator().manual_seed(seed)
    scan = {
        name: k1 * (1.0 + SPAN * (2.0 * torch.rand(SETTINGS, dtype=torch.float64, generator=generator) - 1.0))
        for name, k1 in settings.items()
    }
    light = line({name: k1 * errors[name] for name, k1 in scan.items()}, outputs=[IMAGE])[IMAGE]
    light = _PEAK * light / light.amax()
    images = light + _NOISE * torch.randn(light.shape, dtype=light.dtype, generator=generator)
    size = tuple(float(side) for side in pixel_size(line))
    return ScreenDataset({name: k1.numpy() for name, k1 in scan.items()}, images.numpy(), IMAGE, size, noise=_NOISE)


def find_errors(
    line: StagedModel, data: ScreenDataset, progress: Callable[[int, float, Mapping[str, float]], None]
) -> CalibrationResult:
    """Fit the gradients of all quadrupoles to images.

    Args:
        line: the chain, as it was designed.
        data: the images.
        progress: is called with each step, its cost and its estimates.
    """
    from lume_diff.calibration import Calibration, Moments, Normal, Scale

    unknown = [Scale(name, Normal(1.0, ERROR), name=name) for name in KNOBS]
    return Calibration(line, data, unknown, Moments()).run(progress=progress)


def worst_pull(result: CalibrationResult, errors: Mapping[str, float]) -> float:
    """Return by how many of its standard errors the worst estimate of a ``result`` is off the true ``errors``."""
    return max(abs(value - errors[name]) / result.errors[name] for name, value in result.values.items())
