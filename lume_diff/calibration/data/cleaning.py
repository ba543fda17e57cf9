"""Cleaning of images: background, threshold, pixels that cannot be used, and the mean over shots.

Every step is recorded in the history with its parameters and with what it took away.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from lume_diff.calibration.data.arrays import frozen, real_array
from lume_diff.calibration.data.history import Step, share
from lume_diff.calibration.data.signal import background_levels
from lume_diff.errors import ShapeError, ValidationError

if TYPE_CHECKING:
    from lume_diff.calibration.data.screens import ScreenDataset

_PLATEAU = 5  # pixels at exactly the highest value: a saturated camera; noise puts one or two there
_HOT, _LIT = 8.0, 5.0  # standard deviations
_MANY = 10  # images: in fewer, rounding may make a pixel the same in all of them


def subtract_background(
    data: ScreenDataset, background: Any = "corners", *, percentile: float | None = None
) -> ScreenDataset:
    """Subtract the background; pixels that become negative are kept, since they average out the positive noise.

    Args:
        background: ``"corners"`` for the mean of each image's two darkest corners; or an image taken without beam, of
            the shape of one image or of all of them, or a number [intensity].
        percentile: instead, the level that this percentage of each image's valid pixels is below.

    Returns:
        New data; the history keeps what was subtracted, ``"background"``.

    Raises:
        ValidationError: a percentile that is none, or a background that is not finite.
        ShapeError: an image of another shape.
    """
    error = 0.0
    if percentile is not None:
        if not 0.0 <= percentile <= 100.0:
            raise ValidationError(f"percentile is {percentile!r}; expected 0 to 100")
        numbers = np.where(data.mask, data.images, np.nan)
        levels = np.zeros(data.shape[:2])
        known = data.mask.any((-2, -1))
        levels[known] = np.nanpercentile(numbers[known], percentile, axis=(-2, -1))
        parameters: dict[str, Any] = {"percentile": float(percentile)}
        away = levels[..., None, None]
    elif isinstance(background, str):
        if background != "corners":
            raise ValidationError(f"background is {background!r}; expected 'corners', an image or a number")
        parameters = {"background": "corners"}
        levels, _, counts = background_levels(data.images, data.mask)
        away = levels[..., None, None]
        error = data.noise.sigma / max(float(counts.min()), 1.0) ** 0.5
    else:
        away = real_array("background", background).astype(np.float64)
        if not np.isfinite(away).all():
            raise ValidationError("background: not all pixels are finite")
        if away.ndim == 3:
            away = away[:, None]
        try:
            np.broadcast_to(away, data.shape)
        except ValueError:
            raise ShapeError(
                f"background has shape {away.shape}, expected that of one image {data.shape[2:]} or of all {data.shape}"
            ) from None
        parameters = {"background": float(away)} if away.ndim == 0 else {"background": f"array {away.shape}"}
    images = (data.images - away).astype(data.images.dtype)
    negative = float((images[data.mask] < 0.0).mean()) if data.mask.any() else 0.0
    note = f"{np.mean(away):.4g} on average; {share(negative)} of the pixels are negative now and kept"
    kept = frozen(np.array(away.squeeze() if away.ndim == 4 else away))
    # The level that the noise is counted from goes with the background.
    noise = replace(data.noise, level=0.0, level_error=error)
    return data._with(
        Step("subtract_background", parameters, note, {"background": kept}), _images=frozen(images), _noise=noise
    )


def threshold(
    data: ScreenDataset,
    level: float | str | None = None,
    *,
    n_sigma: float | None = None,
    fraction: float | None = None,
) -> ScreenDataset:
    """Set pixels below a level to zero.

    Args:
        level: the level [intensity], or ``"otsu"`` for the one that divides an image's pixels best into two classes.
        n_sigma: instead, a number of the noise's standard deviations above its level.
        fraction: instead, a share of each image's brightest pixel.

    Returns:
        New data; the history keeps ``"level"`` and ``"removed"``, the share of light taken away, of each image.

    Raises:
        ValidationError: none or several of the three, or a number out of range.

    Source:
        N. Otsu, "A threshold selection method from gray-level histograms", IEEE Trans. Syst. Man Cybern. 9, 62 (1979),
        doi:10.1109/TSMC.1979.4310076.
    """
    given = {"level": level, "n_sigma": n_sigma, "fraction": fraction}
    chosen = {name: value for name, value in given.items() if value is not None}
    if len(chosen) != 1:
        raise ValidationError(f"threshold: received {chosen or 'nothing'}; give one of level, n_sigma, fraction")
    ((name, value),) = chosen.items()
    is_otsu = name == "level" and value == "otsu"
    if not is_otsu and (isinstance(value, str) or not np.isfinite(value)):
        raise ValidationError(f"threshold: {name} is {value!r}; expected a number" + " or 'otsu'" * (name == "level"))
    if name == "fraction" and not 0.0 < float(value) < 1.0:
        raise ValidationError(f"threshold: fraction is {value!r}; expected between 0 and 1")
    valid, images = data.mask, data.images
    if is_otsu:
        levels = np.array(
            [[_otsu(image[ok]) for image, ok in zip(*shots, strict=True)] for shots in zip(images, valid, strict=True)]
        )
    elif name == "n_sigma":
        levels = np.full(data.shape[:2], data.noise.level + float(value) * data.noise.sigma)
    elif name == "fraction":
        levels = float(value) * np.maximum(np.where(valid, images, 0.0).max((-2, -1)), 0.0).astype(np.float64)
    else:
        levels = np.full(data.shape[:2], float(value))
    below = images < levels[..., None, None]
    light = np.where(valid, images, 0.0)
    total, gone = (part.sum((-2, -1), dtype=np.float64) for part in (light, np.where(below, light, 0.0)))
    removed = np.where(total > 0.0, gone / np.where(total > 0.0, total, 1.0), 0.0)
    lost = float(removed[data.has_beam].mean()) if data.has_beam.any() else 0.0
    note = f"{share(float(below[valid].mean()))} of the pixels set to 0, with {share(lost)} of the light"
    step = Step("threshold", {name: value}, note, {"level": frozen(levels), "removed": frozen(removed)})
    return data._with(step, _images=frozen(np.where(below, np.zeros((), images.dtype), images)))


def _otsu(values: np.ndarray) -> float:
    if values.size == 0 or np.ptp(values) == 0.0:
        return float(values.max(initial=0.0))
    counts, edges = np.histogram(values, bins=256)
    centres = 0.5 * (edges[:-1] + edges[1:])
    below = np.cumsum(counts)[:-1]
    above = counts.sum() - below
    first = np.cumsum(counts * centres)[:-1]
    between = below * above * (first / np.maximum(below, 1) - ((counts @ centres) - first) / np.maximum(above, 1)) ** 2
    return float(edges[1:-1][np.argmax(between)])


def mask_saturated(data: ScreenDataset, level: float | None = None, *, grow: int = 0) -> ScreenDataset:
    """Leave out pixels at or above the level at which the camera saturates.

    Args:
        level: that level [intensity]; None looks for a plateau: five pixels of an image at exactly the highest value
            of all. Look before the background is subtracted.
        grow: leave out this many pixels around them as well.

    Returns:
        New data; where there is no plateau, all pixels stay.

    Raises:
        ValidationError: ``grow`` is negative.
    """
    highest = float(data.images[data.mask].max())
    if level is None:
        plateau = ((data.images == highest) & data.mask).sum((-2, -1)).max()
        found = np.zeros(data.shape, dtype=bool) if plateau < _PLATEAU else data.images >= highest
        looked = f"looked for a plateau at the highest value, {highest:.6g}: "
    else:
        found, looked = data.images >= level, ""
    bad = _grown(found, grow)
    hit = int((found & data.mask).any((-2, -1)).sum())
    note = f"{looked}{int((bad & data.mask).sum())} pixels left out in {hit} of {data.weights.size} images"
    return data._with(Step("mask_saturated", {"level": level, "grow": grow}, note), _valid=frozen(data.mask & ~bad))


def _grown(found: np.ndarray, grow: int) -> np.ndarray:
    if grow < 0:
        raise ValidationError(f"grow is {grow!r}; expected 0 or more pixels")
    if not grow or not found.any():
        return found
    from scipy import ndimage

    grown: np.ndarray = ndimage.binary_dilation(found, np.ones((1, 1, 3, 3)), iterations=grow)
    return grown


def mask_dead(data: ScreenDataset, mask: Any = None) -> ScreenDataset:
    """Leave out pixels that do not follow the light: dead ones, stuck ones and hot ones.

    Args:
        mask: True for pixels that are known to be bad, ``(ny, nx)``; None looks for them: pixels that stand out of the
            median around them, always to the same side, in most images, or never change where that median does.

    Returns:
        New data; the history keeps the map of what was found, ``"dead"``.

    Raises:
        ShapeError: a map of another shape.
    """
    if mask is None:
        bad, how = _found_dead(data), "looked for: "
    else:
        bad, how = np.asarray(mask, dtype=bool), ""
        if bad.shape != data.shape[2:]:
            raise ShapeError(f"mask_dead: mask has shape {bad.shape}, expected that of one image, {data.shape[2:]}")
    note = f"{how}{int(bad.sum())} of {bad.size} pixels left out"
    step = Step("mask_dead", {"given": mask is not None}, note, {"dead": frozen(bad.astype(np.uint8))})
    return data._with(step, _valid=frozen(data._valid & ~bad))


def _found_dead(data: ScreenDataset) -> np.ndarray:
    from scipy import ndimage

    counted = (data.weights > 0.0) & data.mask.any((-2, -1))
    if not counted.any():
        return np.zeros(data.shape[2:], dtype=bool)
    images = np.where(data.mask[counted], data.images[counted], data.noise.level).astype(np.float64)
    around = ndimage.median_filter(images, (1, 3, 3))
    # What a steep flank of the beam does to a pixel is allowed for by the spread of its neighbours.
    steep = ndimage.maximum_filter(around, (1, 3, 3)) - ndimage.minimum_filter(around, (1, 3, 3))
    limit = _HOT * np.asarray(data.noise.std(around)) + steep
    odd = np.sign(images - around) * (np.abs(images - around) > limit)
    stands_out: np.ndarray = np.abs(odd.sum(0)) > 0.5 * len(images)
    # A pixel that never changes is stuck where the light around it does, or where there is light in many images.
    follows = np.ptp(around, axis=0) > 2.0 * limit.max(0)
    lit = around.mean(0) - data.noise.level > _LIT * data.noise.sigma
    stuck: np.ndarray = (np.ptp(images, axis=0) == 0.0) & (follows | (lit & (len(images) >= _MANY)))
    return stands_out | stuck


def median_filter(data: ScreenDataset, size: int = 3) -> ScreenDataset:
    """Replace each pixel by the median of those around it, which removes single bright pixels and blurs a little.

    The noise model stays that of single pixels.

    Args:
        size: width and height of the neighbourhood [pixels], odd.

    Returns:
        New data.

    Raises:
        ValidationError: not an odd number above 1.
    """
    from scipy import ndimage

    if size < 3 or size % 2 == 0:
        raise ValidationError(f"median_filter: size is {size!r}; expected an odd number of pixels, 3 or more")
    images = np.where(data.mask, data.images, np.asarray(data.noise.level, dtype=data.images.dtype))
    filtered = ndimage.median_filter(images, (1, 1, size, size))
    change = float(np.abs(filtered - images).sum() / (np.abs(images).sum() or 1.0))
    return data._with(
        Step("median_filter", {"size": size}, f"changed by {share(change)} of the light"), _images=frozen(filtered)
    )


def mean_shots(data: ScreenDataset) -> ScreenDataset:
    """Return the weighted mean over the shots of each setting, of those with beam where there are any.

    Returns:
        New data with one shot; its noise is that of a mean of the usual number of shots, and its weights are the sums
        over that number: 1, and less for settings with fewer shots.
    """
    weights = data.weights * np.where(data.has_beam.any(1, keepdims=True), data.has_beam, 1.0)
    shares = np.where(data.mask, weights[..., None, None], 0.0)
    total = shares.sum(1, keepdims=True)
    images = (shares * data.images).sum(1, keepdims=True) / np.where(total > 0.0, total, 1.0)
    counts = weights.sum(1) ** 2 / np.maximum((weights**2).sum(1), np.finfo(float).tiny)
    usual = float(np.median(counts[counts > 0.0])) if (counts > 0.0).any() else 1.0
    return data._with(
        Step("mean_shots", {"shots": data.shape[1]}, "", {"weights": frozen(weights)}),
        _images=frozen(images.astype(data.images.dtype)),
        _valid=frozen(np.asarray(total > 0.0)),
        _weights=frozen(weights.sum(1, keepdims=True) / usual),
        _beam=frozen(np.asarray(data.has_beam.any(1, keepdims=True))),
        _noise=data.noise.averaged(usual),
    )
