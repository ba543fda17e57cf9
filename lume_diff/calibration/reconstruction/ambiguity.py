"""Ambiguity: what a scan cannot decide, because the bunch makes up for it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from lume_diff.calibration.reconstruction.training import Options, Training
from lume_diff.calibration.reconstruction.variants import AS_GIVEN, Variant, View

if TYPE_CHECKING:
    from lume_diff.calibration.reconstruction.reconstruction import BeamReconstruction

#: Common factors on the settings that are tried; -1 exchanges the planes.
STRENGTHS = (0.7, 1.4, -1.0)
#: A reading is decided against if its images are this much worse, relative to those of the scan as given, ...
_WORSE = 0.25
#: ... and by this many standard errors over the settings.
_SIGMAS = 2.0


class Alternative(NamedTuple):
    """Another reading of the scan, after a short fit.

    Attributes:
        reading: such as ``"settings × 1.4"`` or ``"image transposed"``.
        distance: mean distance of aligned images on the settings of the fit.
        excess: by how much that is more than as given.
        error: standard error of the excess over the settings.
        decided: whether the scan speaks against it.
        norm_emit_x, norm_emit_y: of its bunch [m].
    """

    reading: str
    distance: float
    excess: float
    error: float
    decided: bool
    norm_emit_x: float
    norm_emit_y: float

    def __str__(self) -> str:
        verdict = "excluded" if self.decided else "NOT excluded"
        return self.line(f"({self.excess:+.3f} ± {self.error:.3f}) {verdict}")

    def line(self, judged: str) -> str:
        """Return it in one line, with what was ``judged`` of it in words."""
        return (
            f"{self.reading:22}  images {self.distance:.3f} {judged:29}  "
            f"norm_emit_x {1e6 * self.norm_emit_x:.3g} µm, norm_emit_y {1e6 * self.norm_emit_y:.3g} µm"
        )


class Ambiguity(NamedTuple):
    """What a scan decides and what not.

    Attributes:
        given: the scan as it was given, after a fit as short as the others.
        alternatives: other readings.
    """

    given: Alternative
    alternatives: list[Alternative]

    @property
    def undecided(self) -> list[str]:
        """Readings that explain the images about as well as the one that was given."""
        return [found.reading for found in self.alternatives if not found.decided]

    def __str__(self) -> str:
        return "\n".join([self.given.line(""), *map(str, self.alternatives)])

    def plain(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return {"given": self.given._asdict(), "alternatives": [found._asdict() for found in self.alternatives]}


def check_ambiguity(
    task: BeamReconstruction,
    *,
    strengths: Sequence[float] = STRENGTHS,
    epochs: int = 120,
    n_particles: int = 4000,
) -> Ambiguity:
    """Fit the images again with other readings of the scan, and say which explain them about as well.

    Other readings are a common factor on the settings, an image with its axes exchanged (of square pixels and frames
    only) and one seen from behind. A reading counts as excluded if its images are worse by a quarter of the distance
    that is left as given, and by two standard errors over the settings: smaller differences are within what the model
    misses anyway.

    Args:
        task: the reconstruction.
        strengths: common factors to try.
        epochs: of each fit.
        n_particles: of each fit.
    """
    views: list[View] = ["mirrored in x"]
    frames = [screen.data.frame for screen in task.screens]
    if all(len(set(frame.full)) == 1 and math.isclose(*frame.pixel, rel_tol=1e-3) for frame in frames):
        views.insert(0, "transposed")
    readings = [*(Variant(strength=factor) for factor in strengths), *(Variant(view=view) for view in views)]
    particles = min(n_particles, task.n_particles)
    given, emittances = _short_fit(task, AS_GIVEN, epochs, particles)
    found = []
    for reading in readings:
        distance, other = _short_fit(task, reading, epochs, particles)
        excess = distance - given
        error = float(excess.std() / math.sqrt(len(excess)))
        mean = float(excess.mean())
        decided = mean > _WORSE * float(given.mean()) and mean > _SIGMAS * error
        found.append(Alternative(str(reading), float(distance.mean()), mean, error, decided, *other))
    return Ambiguity(Alternative(str(AS_GIVEN), float(given.mean()), 0.0, 0.0, True, *emittances), found)


def _short_fit(
    task: BeamReconstruction, reading: Variant, epochs: int, particles: int
) -> tuple[torch.Tensor, tuple[float, float]]:
    """Return the distances of aligned images ``(settings,)`` and the emittances [m] of a reading."""
    other = task.read_as(reading, particles)
    training = Training(other, Options(epochs, ensemble=1, pointing=False))
    member = training.members()[0]
    if not training.finished:
        raise KeyboardInterrupt
    with torch.no_grad():
        bunch = member.bunch(other.entrance)
        return other.distances(member).aligned, (float(bunch["norm_emit_x"]), float(bunch["norm_emit_y"]))
