"""BeamReconstruction: the bunch at the entrance of a model, from images at its end."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lume_diff.calibration.data.screens import ScreenDataset
from lume_diff.calibration.fit.calibration import check_parameters
from lume_diff.calibration.fit.parameters import Parameter
from lume_diff.calibration.likelihoods.shots import screen_shots
from lume_diff.calibration.reconstruction.bunches import Frame, design_bunch
from lume_diff.calibration.reconstruction.generators import Network, base_points
from lume_diff.calibration.reconstruction.losses import Distance, Target, centroids, distances, target_of
from lume_diff.calibration.reconstruction.member import Member
from lume_diff.calibration.reconstruction.result import Reconstruction
from lume_diff.calibration.reconstruction.training import Training
from lume_diff.errors import ValidationError

if TYPE_CHECKING:
    from lume_diff.models import LUMEModel

#: Told after every epoch: member, epoch, loss.
Listener = Callable[[int, int, float], None]


class BeamReconstruction:
    """Find the bunch that makes the images which were measured, without an assumption about its shape.

    A small network maps a normal distribution to a bunch, the model tracks it to the screen at every setting, and the
    network is changed until the images agree. Shape and pointing are fitted apart: first the images are compared with
    their centroids laid on each other, then the bunch as a whole is moved. So pointing that jumps from setting to
    setting does not smear the bunch; how much it jumps is part of the result.

    Args:
        model: takes ``initial_particles`` and gives the screen's image; black boxes among its stages will do.
        data: images of one screen at several settings.
        n_particles: while fitting.
        seed: of everything that is drawn.
        parameters: of machine and screen that are fitted with the bunch, such as ``Blur(LogNormal(3e-5, 2.0))``.
        generator: makes the network of a member of the ensemble from its seed; ``Network`` by default.
        dimensions: 4 for a transverse bunch with time and energy of the design bunch, 6 for all.
        scale: size of coordinates of order one at the start, ``(dimensions,)`` [m], [rad]; by default that of the
            design bunch.

    Raises:
        ValidationError: for a model without ``initial_particles``, or data that do not fit it.
        CalibrationError: for fewer than two settings that show the beam.

    Source:
        R. Roussel et al., Phys. Rev. Lett. 130, 145001 (2023), doi:10.1103/PhysRevLett.130.145001.

    Example:
        >>> rec = BeamReconstruction(model, data, n_particles=10_000).run()  # doctest: +SKIP
        >>> rec.beam["norm_emit_x"]  # doctest: +SKIP
    """

    def __init__(
        self,
        model: LUMEModel,
        data: ScreenDataset,
        n_particles: int = 10_000,
        seed: int = 0,
        *,
        parameters: Sequence[Parameter] = (),
        generator: Callable[[int], nn.Module] | None = None,
        dimensions: int = 4,
        scale: Sequence[float] | None = None,
    ) -> None:
        self.model = model
        self.data = data
        self.n_particles = n_particles
        self.seed = seed
        self.parameters = list(parameters)
        if n_particles < 100:
            raise ValidationError(f"n_particles is {n_particles!r}; expected at least 100")
        data.check_against(model)
        data.require_scan(2, "a reconstruction")
        if self.parameters:
            check_parameters(self.parameters, model)
        design = design_bunch(model)
        self.dimensions = dimensions
        self.frame = Frame(design, _scale(design, dimensions) if scale is None else torch.tensor(list(scale)))
        self.generator = (lambda seed: Network(dimensions, seed=seed)) if generator is None else generator
        shots = screen_shots(data)
        self.seen = shots.present.any(1)
        self.target = target_of(shots.mean[self.seen], shots.valid[self.seen], data.pixel_size)

    def run(
        self,
        epochs: int = 400,
        *,
        ensemble: int = 1,
        rate: float = 1e-2,
        size_weight: float = 0.3,
        checkpoint: str | os.PathLike[str] | None = None,
        progress: bool | Listener = True,
    ) -> Reconstruction:
        """Fit, and return the bunch.

        Ctrl-C stops the fit and keeps what there is. With a checkpoint a fit that was killed goes on after the last
        tenth of its epochs.

        Args:
            epochs: of fitting the shape; a fifth as many follow for the pointing.
            ensemble: how many bunches, each from its own first weights and points, and beyond the first one from
                settings drawn with replacement: their spread tells the uncertainty.
            rate: of the optimiser at the start; it falls to zero along a cosine.
            size_weight: of the logarithm of beam sizes beside the images.
            checkpoint: path of a file that keeps the state.
            progress: whether to show a bar, or a function of member, epoch and loss.

        Raises:
            ValidationError: for numbers that are not positive, or a checkpoint of another fit.
        """
        for name, value in (("epochs", epochs), ("ensemble", ensemble), ("rate", rate)):
            if not value > 0:
                raise ValidationError(f"{name} is {value!r}; expected a positive number")
        began, cpu, runs = time.perf_counter(), time.process_time(), self.model.runs
        training = Training(self, epochs, ensemble, rate, size_weight, checkpoint, progress)
        members = training.members()
        return Reconstruction(
            self,
            members,
            history=training.history,
            runs=self.model.runs - runs,
            seconds=time.perf_counter() - began,
            cpu_seconds=time.process_time() - cpu,
            finished=training.finished,
        )

    # -- what a member sees ----------------------------------------------------------------------------------

    def new_member(self, index: int) -> Member:
        """Return a member of the ensemble before it was fitted."""
        seed = self.seed + 7919 * index
        points = base_points(self.n_particles, self.dimensions + 2, seed)
        settings = torch.arange(len(self.target.image))
        if index:
            generator = torch.Generator().manual_seed(seed)
            drawn = torch.randint(len(settings), (len(settings),), generator=generator)
            # Fewer than two different settings would leave the bunch open.
            settings = drawn if len(drawn.unique()) > 1 else settings
        return Member(self.generator(seed), len(self.parameters), points, settings)

    def values(self, member: Member) -> Tensor:
        """Return the values of the machine's parameters, ``(p,)``, each in its unit."""
        parts = [p.prior.at(u) for p, u in zip(self.parameters, member.coordinates.unbind(), strict=True)]
        return torch.stack(parts) if parts else member.coordinates

    def images(self, member: Member, data: ScreenDataset, points: Tensor | None = None) -> Tensor:
        """Return the images of a member's bunch at the settings of data, ``(settings, ny, nx)``."""
        inputs: dict[str, Any] = {**data.inputs(self.model.dtype)}
        inputs["initial_particles"] = member.bunch(self.frame, points)
        values = self.values(member)
        pairs = list(zip(self.parameters, values.unbind(), strict=True))
        touched = {name for parameter, _ in pairs for name in getattr(parameter, "inputs", ())}
        inputs |= {name: value.detach() for name, value in self.model.get(sorted(touched - set(inputs))).items()}
        for parameter, value in pairs:
            inputs = parameter.on_inputs(inputs, value)
        image = self.model(inputs, outputs=[data.screen])[data.screen]
        for parameter, value in pairs:
            image = parameter.on_image(image, value, data.frame.pixel)
        return data.frame.view(image)

    def distances(self, member: Member, data: ScreenDataset | None = None, points: Tensor | None = None) -> Distance:
        """Return how far a member's images are from those of data; of the data of the fit if None."""
        if data is None:
            return distances(self.images(member, self.data[self.seen.numpy()], points), self.target)
        shots = screen_shots(data)
        seen = shots.present.any(1)
        target = target_of(shots.mean[seen], shots.valid[seen], data.pixel_size)
        return distances(self.images(member, data[seen.numpy()], points), target)

    def loss(self, member: Member, size_weight: float) -> tuple[Tensor, Distance]:
        """Return what the shape of a member is fitted by, and the distances in it."""
        image = self.images(member, self.data[self.seen.numpy()])
        found = distances(image, self.target)
        chosen = member.settings
        off = _pointing(image, self.target)
        loss = (found.aligned + size_weight * found.size)[chosen].mean() + 0.05 * off[chosen].mean()
        return loss + 0.5e-3 * member.coordinates.square().sum(), found


def _pointing(image: Tensor, target: Target) -> Tensor:
    """Return the squared distance of centroids in beam sizes, ``(settings,)``: it keeps the bunch on the screen."""
    return ((centroids(image, target) - target.centroid) / target.size).square().sum(-1)


def _scale(design: Any, dimensions: int) -> Tensor:
    """Return the sizes of the design bunch in the coordinates of a generator."""
    with torch.no_grad():
        momentum = design["mean_p"]
        found = [
            design["sigma_x"],
            design["sigma_px"] / momentum,
            design["sigma_y"],
            design["sigma_py"] / momentum,
            299792458.0 * design["sigma_t"],
            design["sigma_energy"] / design["mean_energy"],
        ]
        return torch.stack(found[:dimensions]).double()
