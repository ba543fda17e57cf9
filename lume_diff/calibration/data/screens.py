"""ScreenDataset: the screen images of a scan, with everything that a fit needs to know about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from lume_diff.calibration.data import agreement, cleaning, files, geometry, hdf5, moments, plots, reading
from lume_diff.calibration.data.arrays import checked_weights, digest, frozen, per_shot
from lume_diff.calibration.data.checks import checked_images, checked_mask, refuse_black, refuse_joining
from lume_diff.calibration.data.frame import Frame
from lume_diff.calibration.data.history import Step, other_histories
from lume_diff.calibration.data.metadata import checked_metadata
from lume_diff.calibration.data.noise import NoiseModel, as_noise, estimate_noise, mean_noise
from lume_diff.calibration.data.pixels import read_pixel_size
from lume_diff.calibration.data.scan import Scan
from lume_diff.calibration.data.settings import Settings
from lume_diff.calibration.data.signal import sees_beam
from lume_diff.errors import CalibrationError, ValidationError

if TYPE_CHECKING:
    import torch


class ScreenDataset(Scan):
    """Hold the images of one screen over a scan of settings; immutable, every step gives a new dataset.

    Row 0 is at the lowest y and column 0 at the lowest x; the centre of the frame is x = y = 0.

    Args:
        settings: what was set, by variable name: arrays ``(n_settings,)``, or numbers for what stayed the same.
        images: intensities ``(settings, shots, ny, nx)``, or ``(settings, ny, nx)`` for one shot each.
        screen: name of the model's variable that predicts them, such as ``"SCR1.image"``.
        pixel_size: width and height of a pixel on the screen, one number or ``(x, y)`` [m]; or ``"125 um"``.
        units: of the settings; those left out are in the unit of the model's variable.
        mask: True for pixels to be used, of the images' shape or of one image's.
        noise: of the pixels: a `NoiseModel`, a standard deviation [intensity], or None to estimate it from the images.
        weights: how much each image counts, ``(settings, shots)`` or a number for each setting: in a calibration one of
            weight 1/4 as one of twice the noise, in a reconstruction among the shots of its setting; 0 for no image.
        has_beam: whether the beam is on the screen, ``(settings, shots)``; None to look for it.
        metadata: anything by name: numbers, strings, lists; ``(63.0, "MeV")`` with a unit.
        orientation: ``"lower"`` where row 0 is at the lowest y, ``"upper"`` for pictures that begin at the top.
        nan: ``"raise"``, or ``"mask"`` to leave pixels out that are not finite.
        black: ``"raise"`` for images without any light or noise, or ``"flag"`` where the beam missed the screen.

    Raises:
        ValidationError: NaN, black images, an implausible pixel size, or another argument that cannot be.
        ShapeError: shapes that do not fit each other.

    Example:
        >>> image = np.exp(-0.5 * np.linspace(-3, 3, 20) ** 2)
        >>> data = ScreenDataset({"Q1.k1": [-1.0, 0.0, 1.0]}, [np.outer(image, image)] * 3, "SCR1.image", "0.1 mm")
        >>> data.shape, data.scanned
        ((3, 1, 20, 20), ('Q1.k1',))
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        images: Any,
        screen: str,
        pixel_size: Any,
        *,
        units: Mapping[str, str] | None = None,
        mask: Any = None,
        noise: NoiseModel | float | None = None,
        weights: Any = None,
        has_beam: Any = None,
        metadata: Mapping[str, Any] | None = None,
        orientation: str = "lower",
        nan: str = "raise",
        black: str = "raise",
    ) -> None:
        if not isinstance(screen, str) or not screen:
            raise ValidationError(f"screen: received {screen!r}, expected the name of an output, such as 'SCR1.image'")
        numbers, finite, steps = checked_images(screen, images, nan)
        count, shots, ny, nx = numbers.shape
        self._screen = screen
        self._settings = Settings(settings, units, count)
        self._frame = Frame.of((ny, nx), read_pixel_size(pixel_size, (ny, nx)))
        self._images = numbers
        self._valid = checked_mask(screen, mask, finite, numbers.shape)
        self._weights = checked_weights(f"{screen}: weights", weights, (count, shots))
        refuse_black(screen, self, black)
        self._beam = None if has_beam is None else _truths(screen, has_beam, (count, shots))
        self._noise = as_noise(noise)
        self._metadata = checked_metadata(metadata)
        self._history: tuple[Step, ...] = tuple(steps)
        if orientation not in ("lower", "upper"):
            raise ValidationError(f"orientation: received {orientation!r}, expected 'lower' or 'upper'")
        if orientation == "upper":
            self.__dict__.update(geometry.flip(self, "y").__dict__)

    # -- what it holds ---------------------------------------------------------------------------------------

    @property
    def screen(self) -> str:
        """Name of the variable that predicts the images."""
        return self._screen

    @property
    def units(self) -> Mapping[str, str]:
        """Units of the settings that were given one."""
        return self._settings.units

    @property
    def images(self) -> np.ndarray:
        """Intensities, ``(settings, shots, ny, nx)``, read-only; `tensor` has them for torch."""
        return self._images

    @property
    def outputs(self) -> Mapping[str, np.ndarray]:
        """What was measured, by variable name: the images."""
        return MappingProxyType({self._screen: self._images})

    @property
    def mask(self) -> np.ndarray:
        """True for pixels to be used, ``(settings, shots, ny, nx)``, read-only."""
        return np.broadcast_to(self._valid, self._images.shape)

    @property
    def _counted(self) -> np.ndarray:
        """True for pixels to be used of images that count, ``(settings, shots, ny, nx)``."""
        return np.asarray(self.mask & (self._weights > 0.0)[..., None, None])

    @property
    def weights(self) -> np.ndarray:
        """How much each image counts, ``(settings, shots)``, read-only."""
        return self._weights

    @cached_property
    def has_beam(self) -> np.ndarray:
        """Whether there is a beam on the image, ``(settings, shots)``, read-only."""
        found = sees_beam(self._images, self.mask) if self._beam is None else self._beam
        return frozen(found & (self._weights > 0.0))

    @cached_property
    def noise(self) -> NoiseModel:
        """Noise of the pixels, estimated from the images where it was not given."""
        return estimate_noise(self._images, self._counted) if self._noise is None else self._noise

    @cached_property
    def sigma(self) -> np.ndarray:
        """Standard deviation of every pixel [intensity], ``(settings, shots, ny, nx)``, from the smoothed image."""
        from scipy import ndimage

        smooth = ndimage.gaussian_filter(np.where(self.mask, self._images, self.noise.level), (0.0, 0.0, 1.0, 1.0))
        return frozen(np.asarray(self.noise.std(smooth.astype(np.float64))))

    @property
    def frame(self) -> Frame:
        """Where the pixels are, and what part of the camera's frame they are."""
        return self._frame

    @property
    def pixel_size(self) -> tuple[float, float]:
        """Width and height of a pixel [m]."""
        return self._frame.pixel_size

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Settings, shots, ny, nx."""
        count, shots, ny, nx = self._images.shape
        return count, shots, ny, nx

    @cached_property
    def digest(self) -> str:
        """Hash of everything that a fit uses: the same for the same data, wherever they came from."""
        # Nine digits: estimates may differ in the last ones between machines.
        noise = {k: f"{v:.9g}" for k, v in self.noise.plain().items() if k != "source"}
        frame = [self._frame.full, self._frame.pixel, self._frame.window, self._frame.binning]
        names = sorted(self._settings.values)
        header = [self._screen, names, dict(self.units), frame, noise]
        settings = (self._settings.values[name] for name in names)
        valid = np.broadcast_to(self._valid, self._images.shape)
        return digest(header, (*settings, self._images, valid, self._weights, self.has_beam))

    # -- for torch and models --------------------------------------------------------------------------------

    def tensor(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Return the images as a tensor ``(settings, shots, ny, nx)``, float64 unless asked otherwise; a copy."""
        import torch

        return torch.tensor(self._images, dtype=dtype or torch.float64)

    def require_scan(self, minimum: int, purpose: str) -> None:
        """Refuse data of too few settings.

        Args:
            minimum: how many have to differ and show the beam.
            purpose: what they are for, in words.

        Raises:
            CalibrationError: where there are fewer.
        """
        seen = self.has_beam.any(1)
        found = self._settings.take(np.flatnonzero(seen)).distinct if seen.any() else 0
        if found < minimum:
            raise CalibrationError(
                f"{self._screen}: {found} of {len(self)} settings differ and show the beam, {purpose} needs {minimum}; "
                f"measured: {', '.join(map(self._settings.describe, range(min(len(self), 5))))}; add settings, or tell "
                "by with_beam(...) which images show the beam"
            )

    check_against = agreement.check_screens

    # -- parts -----------------------------------------------------------------------------------------------

    @staticmethod
    def join(parts: Sequence[ScreenDataset]) -> ScreenDataset:
        """Return scans of one screen one after the other.

        Args:
            parts: with the same screen, pixels, shots and names of settings.

        Raises:
            ValidationError, ShapeError, UnitError: what differs, all of it at once.
        """
        refuse_joining(parts)
        first = parts[0]
        return first._with(
            Step("join", {"settings": [len(part) for part in parts]}, other_histories([p.history for p in parts])),
            _settings=Settings.joined([part._settings for part in parts]),
            _valid=frozen(np.concatenate([part.mask for part in parts])),
            _noise=mean_noise([part.noise for part in parts], [len(part) for part in parts]),
            _metadata={key: value for part in reversed(parts) for key, value in part._metadata.items()},
            _images=frozen(np.concatenate([part._images for part in parts])),
            _weights=frozen(np.concatenate([part._weights for part in parts])),
            _beam=frozen(np.concatenate([part.has_beam for part in parts])),
        )

    mean_shots = cleaning.mean_shots

    def with_noise(self, noise: NoiseModel | float | str) -> ScreenDataset:
        """Return the data with another noise model.

        Args:
            noise: a `NoiseModel`, a standard deviation [intensity], or ``"local"`` or ``"shots"`` to estimate one from
                these images; see `estimate_noise`.
        """
        model = estimate_noise(self._images, self._counted, noise) if isinstance(noise, str) else as_noise(noise)
        return self._with(Step("with_noise", {} if model is None else model.plain()), _noise=model)

    def with_beam(self, has_beam: Any) -> ScreenDataset:
        """Return the data with another judgement of which images show the beam, ``(settings, shots)``."""
        seen = _truths(self._screen, has_beam, (self.shape[0], self.shape[1]))
        return self._with(Step("with_beam", {"images": int(seen.sum())}), _beam=seen)

    def with_mask(self, mask: Any) -> ScreenDataset:
        """Return the data without the pixels where ``mask`` is False either; of one image's shape or of all of them."""
        both = checked_mask(self._screen, mask, self._valid, self._images.shape)
        return self._with(Step("with_mask", {"left_out": int((~np.broadcast_to(both, self.shape)).sum())}), _valid=both)

    # -- cleaning, geometry, numbers, pictures, files: one file each -----------------------------------------

    subtract_background = cleaning.subtract_background
    threshold = cleaning.threshold
    mask_saturated = cleaning.mask_saturated
    mask_dead = cleaning.mask_dead
    median_filter = cleaning.median_filter
    crop = geometry.crop
    bin = geometry.bin
    flip = geometry.flip
    transpose = geometry.transpose
    rotate = geometry.rotate
    centre = geometry.centre
    statistics = moments.statistics
    projections = moments.projections
    to_dataset = moments.to_dataset
    plot = plots.plot_screens
    to_npz = files.to_npz
    to_hdf5 = hdf5.to_hdf5
    from_npz = classmethod(reading.screens_from_npz)
    from_hdf5 = classmethod(hdf5.screens_from_hdf5)
    from_images = classmethod(reading.screens_from_images)
    from_frame = classmethod(reading.screens_from_frame)

    def __repr__(self) -> str:
        count, shots, ny, nx = self.shape
        width, height = (f"{1e6 * size:.4g}" for size in self.pixel_size)
        pixels = f"{width} µm" if width == height else f"{width} x {height} µm"
        return (
            f"ScreenDataset({self._screen!r}: {count} settings of {', '.join(self.scanned) or 'nothing scanned'}, "
            f"{shots} shot{'s' if shots > 1 else ''} of {nx} x {ny} pixels of {pixels}, {len(self._history)} steps)"
        )

    # -- building blocks -------------------------------------------------------------------------------------

    def _taken(self, index: np.ndarray, step: Step) -> Self:
        valid = self._valid[index] if self._valid.shape[0] > 1 else self._valid
        changes = {name: frozen(getattr(self, name)[index]) for name in ("_images", "_weights")}
        # What was worked out from all settings stays, so that both parts of a split are judged alike.
        return self._with(
            step,
            _settings=self._settings.take(index),
            _valid=frozen(valid),
            _beam=frozen(self.has_beam[index]),
            **changes,
        )

    def _with(self, step: Step | None, **changes: Any) -> Self:
        """Return a copy with other fields; what was worked out once (noise, beam) stays unless it is changed."""
        other = object.__new__(type(self))
        other.__dict__.update({k: v for k, v in self.__dict__.items() if k.startswith("_")})
        other._noise = self._noise if "_noise" in changes else self.noise
        other._beam = self._beam if "_beam" in changes else self.has_beam
        other.__dict__.update(changes)
        if step is not None:
            other._history = (*self._history, step)
        return other


def _truths(screen: str, has_beam: Any, shape: tuple[int, int]) -> np.ndarray:
    return frozen(per_shot(f"{screen}: has_beam", has_beam, shape).astype(bool))
