"""Scale: how large a bunch must be at the entrance to make images of the measured size, before anything is fitted."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_STEPS = 12  # enlargements or reductions of a probe
_FACTOR = 4.0
_LARGEST = (1.0, 0.1, 1.0, 0.1)  # [m], [rad]


def response(
    images: Callable[[Tensor], tuple[Tensor, Tensor]], first: Tensor, pixel_size: tuple[float, float]
) -> tuple[Tensor, Tensor] | None:
    """Return how the centroid on the screen moves with the start of a thin bunch.

    Each coordinate is tried with larger and smaller steps until the bunch moves by pixels and stays on the screen.

    Args:
        images: gives the light on the screen ``(settings,)`` and the centroid ``(settings, 2)`` [m] of a thin bunch
            that starts at ``(4,)`` [m], [rad].
        first: steps to begin with, ``(4,)`` [m], [rad].
        pixel_size: of the screen [m].

    Returns:
        Derivatives ``(settings, 2, 4)``, and which settings show a bunch on the axis, ``(settings,)``; None if none do.
    """
    light, centre = images(torch.zeros(4, dtype=torch.float64))
    seen = light > 0.5 * light.max().clamp_min(torch.finfo(light.dtype).tiny)
    if not bool(seen.any()):
        return None
    pixel = torch.tensor(pixel_size, dtype=torch.float64)
    columns = []
    for coordinate in range(4):
        step = float(first[coordinate])
        column = torch.zeros_like(centre)
        for _ in range(_STEPS):
            start = torch.zeros(4, dtype=torch.float64)
            start[coordinate] = step
            reached, moved = images(start)
            found = (moved - centre) / step
            inside = bool((reached > 0.5 * light)[seen].all())
            far = bool((((moved - centre) / pixel).abs()[seen] > 3.0).any())
            if inside:
                column = found
            if (inside and far) or step >= _LARGEST[coordinate]:
                break
            if not inside and bool(column.any()):
                break
            step = step * _FACTOR if inside else step / _FACTOR
        columns.append(column)
    derivatives = torch.stack(columns, dim=-1)
    return (derivatives, seen) if bool(torch.isfinite(derivatives).all()) else None


def fitted_scale(derivatives: Tensor, size: Tensor) -> Tensor | None:
    """Return the rms size of each coordinate of the bunch that measured sizes ask for, ``(4,)`` [m], [rad].

    Squares of sizes on the screen are linear in the second moments of the bunch, which are fitted with variances that
    are not negative; each is kept within what a single image allows.

    Args:
        derivatives: of the centroid, ``(settings, 2, 4)``.
        size: on the screen in x and y, ``(settings, 2)`` [m].

    Returns:
        None if a coordinate does not reach the screen at all.

    Source:
        M. G. Minty and F. Zimmermann, Measurement and Control of Charged Particle Beams (Springer, 2003), 4.1.2.
    """
    from scipy.optimize import lsq_linear

    reach = derivatives.abs().amax(1)
    if not bool((reach.amax(0) > 0.0).all()):
        return None
    x, xp, y, yp = derivatives.unbind(-1)
    terms = torch.stack((x**2, 2 * x * xp, xp**2, y**2, 2 * y * yp, yp**2), dim=-1) / size.square().unsqueeze(-1)
    rows = terms.reshape(-1, 6)
    width = rows.norm(dim=0).clamp_min(torch.finfo(rows.dtype).tiny)
    lowest = [0.0, -torch.inf, 0.0] * 2
    found = lsq_linear((rows / width).numpy(), torch.ones(len(rows)).numpy(), bounds=(lowest, torch.inf), method="bvls")
    moments = torch.tensor(found.x) / width
    # A coordinate alone may not make an image larger than the largest one.
    alone = size.amax(1).unsqueeze(-1) / reach.clamp_min(1e-3 * reach.amax(0))
    fitted = moments[[0, 2, 3, 5]].clamp_min(0.0).sqrt()
    return torch.maximum(torch.minimum(fitted, alone.amax(0)), 0.1 * alone.amin(0))
