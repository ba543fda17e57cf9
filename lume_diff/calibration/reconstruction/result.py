"""Reconstruction: the bunch that was found, how sure that is, and what it predicts."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from lume_diff.calibration.data.screens import ScreenDataset
from lume_diff.calibration.likelihoods.shots import screen_shots
from lume_diff.calibration.reconstruction.ambiguity import Ambiguity, check_ambiguity
from lume_diff.calibration.reconstruction.generators import even_points, normal_points
from lume_diff.calibration.reconstruction.light import beam_light
from lume_diff.calibration.reconstruction.losses import distances, sizes, target_of
from lume_diff.errors import ShapeError, ValidationError, unknown_variable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lume_diff.calibration.reconstruction.member import Member
    from lume_diff.calibration.reconstruction.reconstruction import BeamReconstruction
    from lume_diff.calibration.reconstruction.training import Epoch
    from lume_diff.particles import TorchParticleGroup

#: What is reported of the bunch, with its unit.
STATISTICS = {
    "norm_emit_x": "m",
    "norm_emit_y": "m",
    "twiss_beta_x": "m",
    "twiss_alpha_x": "",
    "twiss_beta_y": "m",
    "twiss_alpha_y": "",
    "sigma_x": "m",
    "sigma_px": "eV/c",
    "sigma_y": "m",
    "sigma_py": "eV/c",
}
#: And of a bunch in six dimensions.
LONGITUDINAL = {"sigma_t": "s", "sigma_energy": "eV", "cov_t__energy": "s*eV"}
_AT_ONCE = 1_000_000  # particles times settings in one run


class Evaluation(NamedTuple):
    """How well images are predicted, ``(settings,)`` each.

    Attributes:
        image: sum of absolute differences of images of unit sum, between 0 and 2.
        aligned: the same after centroids were laid on each other.
        size_x, size_y: ratio of predicted and measured rms size less 1.
        off_x, off_y: centroid measured less predicted [m].
    """

    image: Tensor
    aligned: Tensor
    size_x: Tensor
    size_y: Tensor
    off_x: Tensor
    off_y: Tensor

    @property
    def size_error(self) -> float:
        """Mean size of the relative errors of both rms sizes."""
        return float(torch.cat((self.size_x, self.size_y)).abs().mean())

    def __str__(self) -> str:
        return (
            f"images {float(self.image.mean()):.3f}, with centroids aligned {float(self.aligned.mean()):.3f} (L1), "
            f"sizes {100.0 * self.size_error:.1f} % off"
        )


class Reconstruction:
    """The bunch of a reconstruction, with an ensemble of others that the images allow.

    Attributes:
        task: what was fitted.
        members: the ensemble; the first is fitted to all settings, see ``statistic`` for the others.
        history: every epoch.
        runs: simulator runs that the fit took.
        seconds, cpu_seconds: that the fit took.
        finished: False where Ctrl-C has stopped it.
        ambiguity: what the scan cannot decide; None before ``check_ambiguity`` was called.
    """

    def __init__(
        self,
        task: BeamReconstruction,
        members: Sequence[Member],
        history: Sequence[Epoch],
        runs: int,
        seconds: float,
        cpu_seconds: float,
        finished: bool,
    ) -> None:
        self.task = task
        self.members = list(members)
        self.history = list(history)
        self.runs = runs
        self.seconds, self.cpu_seconds = seconds, cpu_seconds
        self.finished = finished
        self.ambiguity: Ambiguity | None = None
        self.beams = [self.bunch(index) for index in range(len(self.members))]
        self._drawn = [self._drawn_bunch(index) for index in range(1, len(self.members))]
        each = [self._evaluated(screen, screen.data, task.n_particles, 0) for screen in task.screens]
        self.fit = Evaluation(*map(torch.cat, zip(*each, strict=True)))

    # -- the bunch -------------------------------------------------------------------------------------------

    @property
    def beam(self) -> TorchParticleGroup:
        """The bunch that fits all settings."""
        return self.beams[0]

    def bunch(self, member: int = 0, n_particles: int | None = None) -> TorchParticleGroup:
        """Return a bunch of the ensemble.

        Args:
            member: 0 for the one fitted to all settings.
            n_particles: as many as in the fit if None.
        """
        with torch.no_grad():
            return self.members[member].bunch(self.task.entrance, self._points(n_particles))

    def _drawn_bunch(self, member: int) -> TorchParticleGroup:
        """Return a bunch of as many particles as the images have grains, drawn at random."""
        task = self.task
        grain = next((screen.grain for screen in task.screens if screen.grain is not None), None)
        count = task.n_particles if grain is None else round(grain.particles)
        random = torch.Generator().manual_seed(task.seed + member)
        points = normal_points(torch.rand(count, task.dimensions + 2, dtype=torch.float64, generator=random))
        with torch.no_grad():
            return self.members[member].bunch(task.entrance, points)

    @property
    def reported(self) -> dict[str, str]:
        """What is reported of the bunch, with its unit."""
        return {**STATISTICS, **LONGITUDINAL} if self.task.dimensions == 6 else dict(STATISTICS)

    def statistic(self, name: str) -> tuple[float, float]:
        """Return a statistic of the bunch, or a parameter of the machine, and its standard error.

        The value is that of the bunch which is fitted to all settings. The others of the ensemble differ from it by
        what could have been otherwise: which settings were measured (drawn again with replacement), how the
        particles were drawn whose grain the images show, and the screen's blur, where it is fitted: within the error
        that the grain of the images gives or, without grain, below what fits best as its prior has it, since a softer
        bunch and a sharper screen make the same images. Machine parameters besides the blur start from their priors.
        The error is the rms deviation from the first; without an ensemble it is NaN. Not in it is what is wrong for
        all alike: the strength of the settings, see ``check_ambiguity``, and light beyond the edge of the screen.

        Args:
            name: such as ``"norm_emit_x"``, ``"twiss_beta_x"``, ``"cov_x__py"``, or the name of a parameter.

        Raises:
            UnknownVariableError: for neither of them.

        Source:
            B. Efron and R. J. Tibshirani, An Introduction to the Bootstrap (Chapman & Hall, 1993), 6.
        """
        parameters = [parameter.name for parameter in self.task.parameters]
        if name in parameters:
            place = parameters.index(name)
            with torch.no_grad():
                found = [float(self.task.values(member)[place]) for member in self.members]
        else:
            try:
                found = [float(beam[name]) for beam in self.beams]
            except (LookupError, ValueError, TypeError) as problem:
                raise unknown_variable(name, [*self.reported, *parameters], "this reconstruction") from problem
            found[1:] = [float(bunch[name]) for bunch in self._drawn]
        off = [other - found[0] for other in found[1:]]
        error = math.sqrt(sum(value**2 for value in off) / len(off)) if off else math.nan
        return found[0], error

    # -- predictions -----------------------------------------------------------------------------------------

    def predict(
        self,
        settings: Mapping[str, Any] | ScreenDataset,
        n_particles: int = 400_000,
        member: int = 0,
        screen: str | None = None,
    ) -> Tensor:
        """Return the images that the bunch makes, ``(settings, ny, nx)``, each of unit sum.

        Args:
            settings: of the model's inputs by name in its units, numbers or ``(settings,)`` each; or those of a data
                set, which are converted to them.
            n_particles: of the bunch; many make smooth images.
            member: of the ensemble.
            screen: where there are several, which one; by default the data's, or the first.

        Raises:
            ShapeError: settings of different lengths.
            ValidationError: for fewer than one particle, or data that do not fit the model.
            UnknownVariableError: for a screen that was not fitted.
        """
        if isinstance(settings, ScreenDataset):
            settings = settings.check_against(self.task.model)
            screen = settings.screen if screen is None else screen
        return self._predicted(self._screen(screen), settings, n_particles, member)

    def _screen(self, name: str | None) -> BeamReconstruction:
        """Return the task as one of its screens sees it."""
        known = {screen.data.screen: screen for screen in reversed(self.task.screens)}
        if name is not None and name not in known:
            raise unknown_variable(name, list(known), "the screens of this reconstruction")
        return self.task if name is None else known[name]

    def _predicted(
        self, screen: BeamReconstruction, settings: Mapping[str, Any] | ScreenDataset, n_particles: int, member: int
    ) -> Tensor:
        inputs = settings.inputs(self.task.model.dtype) if isinstance(settings, ScreenDataset) else _as_inputs(settings)
        count = len(next(iter(inputs.values())))
        points = self._points(n_particles)
        step = max(_AT_ONCE // n_particles, 1)
        with torch.no_grad():
            parts = [
                screen.images(self.members[member], {n: v[first : first + step] for n, v in inputs.items()}, points)
                for first in range(0, count, step)
            ]
        images = torch.cat(parts)
        total = images.sum((-2, -1), keepdim=True)
        return images / torch.where(total > 0.0, total, torch.ones_like(total))

    def evaluate(self, data: ScreenDataset, n_particles: int = 400_000, member: int = 0) -> Evaluation:
        """Compare predicted images with measured ones, such as those that were left out of the fit.

        Args:
            data: of a screen of the fit; settings without a beam are left out.
            n_particles: of the bunch.
            member: of the ensemble.

        Raises:
            CalibrationError: if no image shows the beam.
            ShapeError: for images of another shape.
            UnknownVariableError: for another screen.
        """
        screen, checked = self._screen(data.screen), data.check_against(self.task.model)
        if not checked.frame.agrees(screen.data.frame):
            raise ShapeError(
                f"{data.screen}: the frame is {checked.frame}; expected that of the fit, {screen.data.frame}"
            )
        return self._evaluated(screen, checked, n_particles, member)

    def _evaluated(
        self, screen: BeamReconstruction, checked: ScreenDataset, n_particles: int, member: int
    ) -> Evaluation:
        shots = screen_shots(checked)
        seen = shots.present.any(1)
        light = beam_light(shots.mean[seen], shots.valid[seen], checked.pixel_size)
        target = target_of(light.image, light.valid, checked.pixel_size)
        image = self._predicted(screen, checked[seen.numpy()], n_particles, member)
        found = distances(image, target)
        centroid, size = sizes(image * target.valid, target.pixel_size)
        ratio, off = size / target.size - 1.0, target.centroid - centroid
        return Evaluation(found.image, found.aligned, ratio[:, 0], ratio[:, 1], off[:, 0], off[:, 1])

    @property
    def jitter(self) -> dict[str, float]:
        """Rms of centroids off the prediction from setting to setting, and of shots off their mean [m]."""
        found = {"x": float(self.fit.off_x.square().mean().sqrt()), "y": float(self.fit.off_y.square().mean().sqrt())}
        squares, freedom = torch.zeros(2, dtype=torch.float64), 0.0
        for screen in self.task.screens:
            shots = screen_shots(screen.data)
            valid = shots.valid.unsqueeze(1).expand_as(shots.each)
            light = beam_light(shots.each.flatten(0, 1), valid.flatten(0, 1), shots.pixel_size)
            centroid = sizes(light.image, shots.pixel_size)[0].unflatten(0, shots.present.shape)
            present = shots.present.unsqueeze(-1).double()
            count = present.sum(1)
            mean = (present * centroid).sum(1) / count.clamp_min(1.0)
            squares = squares + (present * (centroid - mean.unsqueeze(1)).square()).sum((0, 1))
            freedom += float((count - 1.0).clamp_min(0.0).sum())
        if freedom:
            spread = (squares / freedom).sqrt()
            found |= {"shot x": float(spread[0]), "shot y": float(spread[1])}
        return found

    # -- what is open ----------------------------------------------------------------------------------------

    def check_ambiguity(self, **options: Any) -> Ambiguity:
        """Find out by short fits what the scan cannot decide, and keep that with the result.

        Args:
            **options: ``strengths``, ``epochs``, ``n_particles``, see `ambiguity.check_ambiguity`.
        """
        self.ambiguity = check_ambiguity(self.task, **options)
        return self.ambiguity

    @property
    def conditional_on(self) -> list[str]:
        """On what emittances and Twiss parameters depend that the scan itself cannot tell, in words."""
        if self.ambiguity is None:
            return ["the strength of the settings and the camera's orientation as given (not checked)"]
        names = ", ".join(self.task.scanned)
        found = []
        if any(reading.startswith("settings") for reading in self.ambiguity.undecided):
            found.append(f"the strength of {names} as given")
        if any(reading.startswith("image") for reading in self.ambiguity.undecided):
            found.append("the camera's orientation as given")
        return found

    # -- for people ------------------------------------------------------------------------------------------

    def report(self) -> str:
        """Return everything that was found as a table."""
        from lume_diff.calibration.reconstruction.report import as_text

        return as_text(self)

    def __str__(self) -> str:
        return self.report()

    def plot(self, path: str | os.PathLike[str] | None = None, n_particles: int = 100_000) -> Figure:
        """Draw measured and predicted images, the bunch in all planes, and the course of the fit as one picture.

        Args:
            path: of the picture; None to write none.
            n_particles: of the bunch that is drawn.

        Returns:
            A matplotlib figure, which a notebook shows.
        """
        from lume_diff.calibration.reconstruction.pictures import plot_reconstruction

        return plot_reconstruction(self, path, n_particles)

    # -- on disk ---------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write numbers as YAML, and the bunch beside them as openPMD, ``<name>.h5``.

        Raises:
            ValidationError: for a path that ends with ``.h5``, where the bunch goes.
        """
        import yaml

        from lume_diff.calibration.reconstruction.report import as_plain

        file = Path(path)
        bunch = file.with_suffix(".h5")
        if bunch == file:
            raise ValidationError(f"path is {str(file)!r}, where the bunch goes; give the name of a YAML file")
        self.beam.to_openpmd(bunch)
        file.write_text(
            yaml.safe_dump({**as_plain(self), "beam": bunch.name}, sort_keys=False, allow_unicode=True),
            encoding="utf-8",
        )

    @staticmethod
    def load(path: str | os.PathLike[str]) -> dict[str, Any]:
        """Read what ``save`` wrote; ``"beam"`` is the bunch.

        Raises:
            ValidationError: for a file that does not exist or is something else.
        """
        import yaml

        from lume_diff.particles import TorchParticleGroup

        file = Path(path)
        if not file.is_file():
            raise ValidationError(f"{str(file)!r} does not exist; give the file that Reconstruction.save wrote")
        try:
            found = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (ValueError, yaml.YAMLError) as error:
            raise ValidationError(f"{str(file)!r} is no saved reconstruction: {error}") from error
        if not isinstance(found, dict) or "statistics" not in found or "beam" not in found:
            raise ValidationError(f"{str(file)!r} is no saved reconstruction: it has no 'statistics' and 'beam'")
        return {**found, "beam": TorchParticleGroup.from_openpmd(file.with_name(found["beam"]))}

    def _points(self, n_particles: int | None) -> Tensor | None:
        task = self.task
        if n_particles is None or n_particles == task.n_particles:
            return None
        if n_particles < 1:
            raise ValidationError(f"n_particles is {n_particles!r}; expected a positive number")
        return normal_points(even_points(n_particles, task.dimensions + 2, task.seed + 1))


def _as_inputs(settings: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return settings as tensors of one length."""
    found = {name: torch.atleast_1d(torch.as_tensor(value, dtype=torch.float64)) for name, value in settings.items()}
    lengths = {name: len(value) for name, value in found.items()}
    count = max(lengths.values(), default=0)
    if count == 0 or any(length not in (1, count) for length in lengths.values()):
        raise ShapeError(f"settings have {lengths} values; expected numbers, or the same count for all")
    return {name: value.expand(count) for name, value in found.items()}
