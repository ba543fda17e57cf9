"""BeamReconstruction: the bunch at the entrance of a model, from images at its end."""

from __future__ import annotations

import contextlib
import copy
import functools
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lume_diff.calibration.data.screens import ScreenDataset
from lume_diff.calibration.data.several import screen_data_sets
from lume_diff.calibration.fit.calibration import check_parameters
from lume_diff.calibration.fit.parameters import Pairs, Parameter, acted_image, acted_inputs
from lume_diff.calibration.fit.screens import Blur
from lume_diff.calibration.likelihoods.shots import screen_shots
from lume_diff.calibration.reconstruction.ambiguity import check_ambiguity
from lume_diff.calibration.reconstruction.bunches import Entrance, design_bunch, design_scale
from lume_diff.calibration.reconstruction.flow import Flow
from lume_diff.calibration.reconstruction.generators import DIMENSIONS, Network, entropy, even_points, normal_points
from lume_diff.calibration.reconstruction.grain import Grain, grain_of
from lume_diff.calibration.reconstruction.light import beam_light, warn_of_noise
from lume_diff.calibration.reconstruction.linear_view import LinearView
from lume_diff.calibration.reconstruction.losses import Distance, distances, sizes, target_of
from lume_diff.calibration.reconstruction.member import Member
from lume_diff.calibration.reconstruction.resolution import Aim, point_spread, width_coordinate
from lume_diff.calibration.reconstruction.result import Reconstruction
from lume_diff.calibration.reconstruction.scale import fitted_scale, response
from lume_diff.calibration.reconstruction.training import Listener, Options, Training
from lume_diff.calibration.reconstruction.variants import AS_GIVEN, Variant
from lume_diff.errors import CalibrationError, ValidationError

if TYPE_CHECKING:
    from lume_diff.models import LUMEModel

_POINTING_WEIGHT = 0.05
_ENTROPY_POINTS = 256
_PROBES = 64  # particles of a thin bunch
_PRIOR_WEIGHT = 1e-3  # of a squared standard error beside the images, which ...
_AIM_WEIGHT = 3e-2  # ... for their own grain would have the bunch's images blurred more
_FIXED = 0.02  # relative error of the variance of a blur that was drawn


class BeamReconstruction:
    """Find the bunch that makes the images which were measured, without an assumption about its shape.

    A small network maps a normal distribution to a bunch, the model tracks it to the screen at every setting, and the
    network is changed until the images agree. Shape and pointing are fitted apart: first the images are compared with
    their centroids laid on each other, then the bunch as a whole is moved. So pointing that jumps from setting to
    setting does not smear the bunch; how much it jumps is part of the result.

    Args:
        model: takes ``initial_particles`` and gives the screen's image; black boxes among its stages will do.
        data: images of a screen at several settings, or a list of such data: several screens, such as one behind a
            dipole, or one screen with a cavity off and on. The first one tells the size to start from.
        n_particles: while fitting.
        seed: of everything that is drawn.
        parameters: of machine and screen that are fitted with the bunch, such as ``Blur(LogNormal(3e-5, 2.0))``.
        generator: what maps a normal distribution to a bunch: ``"network"``, ``"flow"`` (a normalizing flow, by the
            extra ``flow``), or a function that makes a module of ``(n, dimensions)`` to ``(n, dimensions)`` from the
            seed of a member of the ensemble.
        dimensions: 4 for a transverse bunch with time and energy of the design bunch, 6 for all.
        scale: size of coordinates of order one at the start, ``(dimensions,)`` [m], [rad], for six [m], [1]; by default
            what the measured sizes ask for, by the response of the model to thin bunches.

    Raises:
        ValidationError: for a model without ``initial_particles``, or data that do not fit it.
        MissingExtraError: for a flow without zuko.
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
        data: ScreenDataset | Sequence[ScreenDataset],
        n_particles: int = 10_000,
        seed: int = 0,
        *,
        parameters: Sequence[Parameter] = (),
        generator: str | Callable[[int], nn.Module] = "network",
        dimensions: int = 4,
        scale: Sequence[float] | None = None,
    ) -> None:
        if n_particles < 100:
            raise ValidationError(f"n_particles is {n_particles!r}; expected at least 100")
        if dimensions not in DIMENSIONS:
            raise ValidationError(f"dimensions is {dimensions!r}; expected one of {', '.join(map(str, DIMENSIONS))}")
        self.model = model
        self.design = design_bunch(model)
        self.parameters = list(parameters)
        blurs = [place for place, parameter in enumerate(self.parameters) if isinstance(parameter, Blur)]
        self._blur = blurs[0] if len(blurs) == 1 else None
        first, *rest = screen_data_sets(data)
        self._watch(first)
        if not rest:
            self.data.require_scan(2, "a reconstruction")
        self.n_particles, self.seed, self.dimensions = n_particles, seed, dimensions
        if self.parameters:
            check_parameters(self.parameters, model)
        self.generator, self.variant = _generator(generator, dimensions), AS_GIVEN
        self.scanned = tuple(dict.fromkeys(name for part in (first, *rest) for name in part.scanned))
        self._others: list[BeamReconstruction] = []
        self._passes = 0
        self._given_scale = None if scale is None else torch.tensor(list(scale), dtype=torch.float64)
        if self._given_scale is not None and len(self._given_scale) != dimensions:
            raise ValidationError(f"scale has {len(self._given_scale)} numbers; expected {dimensions}")
        self.entrance = Entrance(self.design, self._scale())
        self._others = [self._on(part) for part in rest]

    @property
    def screens(self) -> list[BeamReconstruction]:
        """This reconstruction as each of its data sets sees it; the first is itself."""
        return [self, *self._others]

    def _on(self, data: ScreenDataset) -> BeamReconstruction:
        """Return the same reconstruction, looking at other data alone."""
        other = copy.copy(self)
        other._others, other._passes = [], 0
        other._watch(data)
        return other

    @property
    def passes(self) -> int:
        """How often constant maps stood in for a run of the model."""
        return sum(screen._passes for screen in self.screens)

    def _watch(self, data: ScreenDataset) -> None:
        self.data = data.check_against(self.model)
        shots, size = screen_shots(self.data), self.data.pixel_size
        self.seen = shots.present.any(1)
        whole, valid = shots.mean[self.seen], shots.valid[self.seen]
        self.light = beam_light(whole, valid, size)
        warn_of_noise(self.light, self.data.screen)
        self.target = target_of(self.light.image, self.light.valid, size)
        self.inputs = self.data[self.seen.numpy()].inputs(self.model.dtype)
        self.grain: Grain | None = None if self._blur is None else grain_of(whole * valid, size)
        self._linear: LinearView | None = None

    def run(
        self,
        epochs: int = 1600,
        *,
        ensemble: int = 5,
        rate: float = 1e-2,
        size_weight: float = 0.3,
        entropy_weight: float = 0.0,
        check_ambiguity: bool = False,
        checkpoint: str | os.PathLike[str] | None = None,
        progress: bool | Listener = True,
    ) -> Reconstruction:
        """Fit, and return the bunch.

        Ctrl-C stops the fit and keeps what there is. With a checkpoint a fit that was killed goes on after the last
        tenth of its epochs.

        Args:
            epochs: of fitting the shape; a tenth as many, at least 40, follow for the pointing.
            ensemble: how many bunches: the one that is reported, and others that go on from it for some more
                epochs with what could have been otherwise, see ``Reconstruction.statistic``: they tell the errors.
            rate: of the optimiser at the start; it falls to zero along a cosine.
            size_weight: of the logarithm of beam sizes beside the images.
            entropy_weight: of the bunch's entropy per coordinate, which fills what the images leave open.
            check_ambiguity: whether to find out by short fits what the scan cannot decide, see
                ``Reconstruction.check_ambiguity``.
            checkpoint: path of a file that keeps the state.
            progress: whether to show a bar, or a function of member, epoch and loss.

        Raises:
            ValidationError: for numbers that are not positive, or a checkpoint of another fit.
            CalibrationError: if the loss is no number, or no image of the bunch at the start reaches the screen.
        """
        for name, value in (("epochs", epochs), ("ensemble", ensemble), ("rate", rate)):
            if not value > 0:
                raise ValidationError(f"{name} is {value!r}; expected a positive number")
        for screen in self.screens:
            screen._linear = None  # The model may have other set-points than last time.
        began, cpu, runs = time.perf_counter(), time.process_time(), self.model.runs + self.passes
        training = Training(self, Options(epochs, ensemble, rate, size_weight, entropy_weight), checkpoint, progress)
        members = training.members()
        result = Reconstruction(
            self,
            members,
            history=training.history,
            runs=self.model.runs + self.passes - runs,
            seconds=time.perf_counter() - began,
            cpu_seconds=time.process_time() - cpu,
            finished=training.finished,
        )
        if check_ambiguity and training.finished:
            with contextlib.suppress(KeyboardInterrupt):  # keep the fit
                result.check_ambiguity()
        return result

    def check_ambiguity(self, **options: Any) -> Any:
        """Find out what the scan cannot decide; see ``Reconstruction.check_ambiguity``."""
        return check_ambiguity(self, **options)

    # -- what a member sees ----------------------------------------------------------------------------------

    def new_member(self, index: int, first: Member | None = None) -> Member:
        """Return a member of the ensemble before it is fitted.

        Args:
            index: in the ensemble.
            first: the member that others go on from.

        Raises:
            CalibrationError: where its bunch does not reach the screen.
        """
        seed = self.seed + 7919 * index
        even = even_points(self.n_particles, self.dimensions + 2, seed)
        settings = torch.arange(sum(len(screen.target.image) for screen in self.screens))
        if index:
            generator = torch.Generator().manual_seed(seed)
            drawn = torch.randint(len(settings), (len(settings),), generator=generator)
            # Fewer than two different settings would leave the bunch open.
            settings = drawn if len(drawn.unique()) > 1 else settings
        member = Member(self.generator(seed), len(self.parameters), even, settings)
        with torch.no_grad():
            if first is not None:
                member.load_state_dict(first.state_dict())
                # What the images hardly tell ends near where it began: from many starts the spread shows it.
                start = torch.Generator().manual_seed(seed + 1)
                member.coordinates.normal_(generator=start)
            if self._blur is not None:
                member.aim = self._aim(member, first, seed + 2, self._blur)
                if member.aim is not None:
                    prior = self.parameters[self._blur].prior
                    member.coordinates[self._blur] = width_coordinate(prior, member.aim.width())
            for screen in self.screens:
                lit = (screen.images(member, screen.inputs) * screen.target.valid).sum((-2, -1)) > 0.0
                if not bool(lit.any()):
                    raise CalibrationError(
                        f"{screen.data.screen}: a bunch of the scale {self.entrance.scale.tolist()} does not reach the "
                        "screen at any setting; check the model against the measured optics, or give a smaller scale"
                    )
        return member

    def _aim(self, member: Member, first: Member | None, seed: int, blur: int) -> Aim | None:
        """Return what the blur of a member should be: by the grain, or drawn from its prior below the first one's."""
        screen = next((screen for screen in self.screens if screen.grain is not None), None)
        if screen is not None and screen.grain is not None:
            if first is not None and first.aim is not None:
                return first.aim.drawn(seed)
            # A blur much narrower than a pixel has another variance on pixels.
            member.coordinates[blur] = width_coordinate(self.parameters[blur].prior, screen.grain.variance**0.5)
            images = functools.partial(screen._thin_images, member)
            spread = point_spread(images, self.entrance.scale[:4], screen.target.pixel_size)
            own = spread - float(self.values(member)[blur]) ** 2
            return Aim(screen.grain.variance - own, screen.grain.error)
        if first is None:
            return None
        below = torch.special.ndtr(first.coordinates[blur])
        share = torch.rand((), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        variance = float(self.parameters[blur].prior.at(torch.special.ndtri(share * below))) ** 2
        return Aim(variance, _FIXED * variance)

    def values(self, member: Member) -> Tensor:
        """Return the values of the machine's parameters, ``(p,)``, each in its unit."""
        parts = [p.prior.at(u) for p, u in zip(self.parameters, member.coordinates.unbind(), strict=True)]
        return torch.stack(parts) if parts else member.coordinates

    def images(self, member: Member, settings: Mapping[str, Tensor], points: Tensor | None = None) -> Tensor:
        """Return the images of a member's bunch, ``(settings, ny, nx)``, as the camera of the data sees them.

        Args:
            member: of the ensemble.
            settings: of the model's inputs by name, ``(settings,)`` each.
            points: that the bunch is made of, ``(n, d + 2)``; those of the fit if None.

        Gradient:
            Exact, or the model's, to everything that is fitted.
        """
        return self._seen_by_camera(member, settings, member.bunch(self.entrance, points))

    def _seen_by_camera(self, member: Member | None, settings: Mapping[str, Tensor], bunch: Any) -> Tensor:
        inputs: dict[str, Any] = {**self.variant.on_inputs(settings, self.scanned), "initial_particles": bunch}
        pairs = [] if member is None else self._pairs(member)
        inputs = acted_inputs(pairs, inputs, self.model)
        return self._on_camera(pairs, self.model(inputs, outputs=[self.data.screen])[self.data.screen].double())

    def _pairs(self, member: Member) -> list[tuple[Parameter, Tensor]]:
        return list(zip(self.parameters, self.values(member).unbind(), strict=True))

    def _on_camera(self, pairs: Pairs, image: Tensor) -> Tensor:
        image = acted_image(pairs, image, self.data.frame.pixel)
        view: Tensor = self.data.frame.view(self.variant.on_image(image))
        return view

    def distances(self, member: Member, points: Tensor | None = None) -> Distance:
        """Return how far the images of a ``member``, of ``points`` as in ``images``, are off, ``(settings,)`` each."""
        each = [screen._own_distances(member, points) for screen in self.screens]
        return each[0] if len(each) == 1 else Distance(*map(torch.cat, zip(*each, strict=True)))

    def _own_distances(self, member: Member, points: Tensor | None) -> Distance:
        """Return the distances of this data set, by constant maps where these lead to its screen."""
        if self._linear is None:
            self._linear = LinearView.of(self)
        if self._linear.maps is None:
            return distances(self.images(member, self.inputs, points), self.target)
        self._passes += 1
        image = self._linear.images(member, self.entrance, points)
        return distances(self._on_camera(self._pairs(member), image), self._linear.target)

    def loss(
        self, member: Member, size_weight: float = 0.3, entropy_weight: float = 0.0, points: Tensor | None = None
    ) -> tuple[Tensor, Distance]:
        """Return what the shape of a member is fitted by, and the distances in it.

        Args:
            member: of the ensemble.
            size_weight, entropy_weight: see ``run``.
            points: that the bunch is made of, ``(n, d + 2)``; those of the member if None.

        Gradient:
            Exact, or the model's, to everything that is fitted.
        """
        found = self.distances(member, points)
        each = found.aligned + size_weight * found.size + _POINTING_WEIGHT * found.pointing
        loss = each.dot(member.shares.to(each.dtype))
        if entropy_weight:
            few = normal_points(member.even[:_ENTROPY_POINTS, : self.dimensions]).double()
            loss = loss - entropy_weight * entropy(member.generator, few)
        if self.parameters:
            loss = loss + 0.5 * _PRIOR_WEIGHT * member.coordinates.square().sum()
        if member.aim is not None and self._blur is not None:
            loss = loss + 0.5 * _AIM_WEIGHT * member.aim.misfit(self.values(member)[self._blur]).square()
        return loss, found

    # -- other readings of the scan --------------------------------------------------------------------------

    def read_as(self, variant: Variant, n_particles: int) -> BeamReconstruction:
        """Return the same with a ``variant``, another reading of settings and camera, and with ``n_particles``."""
        other = copy.copy(self)
        other.variant, other.n_particles, other._linear = variant, n_particles, None
        other.entrance = Entrance(self.design, other._scale())
        other._others = [other._on(screen.data) for screen in self._others]
        return other

    def _thin_images(self, member: Member | None, start: Tensor) -> Tensor:
        """Return the images of a bunch without size that starts at ``(4,)`` [m], [rad]."""
        points = torch.zeros(_PROBES, self.dimensions, dtype=torch.float64)
        points[:, :4] = start
        thin = Entrance(self.design, torch.ones(self.dimensions, dtype=torch.float64))
        bunch = thin.bunch(points, torch.zeros(_PROBES, 2, dtype=torch.float64))
        return self._seen_by_camera(member, self.inputs, bunch)

    def _scale(self) -> Tensor:
        """Return what coordinates of order one are at the start, ``(d,)``."""
        if self._given_scale is not None:
            return self._given_scale
        scale = design_scale(self.design)[: self.dimensions]

        def thin_bunch(start: Tensor) -> tuple[Tensor, Tensor]:
            image = self._thin_images(None, start) * self.target.valid
            return image.sum((-2, -1)), sizes(image, self.target.pixel_size)[0]

        with torch.no_grad():
            ny, nx = self.target.image.shape[-2:]
            width, height = (0.2 * n * p for n, p in zip((nx, ny), self.target.pixel_size, strict=True))
            first = torch.stack((torch.tensor(width).double(), scale[1], torch.tensor(height).double(), scale[3]))
            found = response(thin_bunch, first.clamp_min(1e-7), self.target.pixel_size)
        if found is None:
            return scale.clamp_min(1e-9)
        derivatives, seen = found
        fitted = fitted_scale(derivatives[seen], self.target.size[seen])
        # Three digits: the same for design bunches that differ in how they were drawn.
        rounded = (
            scale[:4]
            if fitted is None
            else torch.tensor([float(f"{s:.3g}") for s in fitted.tolist()], dtype=torch.float64)
        )
        return torch.cat((rounded, scale[4:])).clamp_min(1e-9)


def _generator(given: str | Callable[[int], nn.Module], dimensions: int) -> Callable[[int], nn.Module]:
    """Return what makes a generator from a seed."""
    kinds: dict[str, Callable[..., nn.Module]] = {"network": Network, "flow": Flow}
    if isinstance(given, str) and given in kinds:
        kind = kinds[given]
        given = lambda seed: kind(dimensions, seed=seed)  # noqa: E731
    if not callable(given) or not isinstance(given(0), nn.Module):
        raise ValidationError(
            f"generator is {given!r}; expected {', '.join(map(repr, kinds))}, or a function that makes a "
            "torch.nn.Module from a seed"
        )
    return given
