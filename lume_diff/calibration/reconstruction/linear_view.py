"""LinearView: the images of a fit without running the model, where constant maps lead to the screen."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from lume_diff.calibration.reconstruction.bunches import Entrance
from lume_diff.calibration.reconstruction.generators import Network
from lume_diff.calibration.reconstruction.losses import Target
from lume_diff.calibration.reconstruction.member import Member
from lume_diff.models import CheetahModel

if TYPE_CHECKING:
    from lume_diff.calibration.reconstruction.reconstruction import BeamReconstruction
    from lume_diff.models.line.screen_maps import ScreenMaps


class LinearView(NamedTuple):
    """What the settings of a fit have in common, in single precision: its images are compared to 1e-6 at best.

    Attributes:
        maps: from the entrance to the screen; None where the model has to run.
        target: what was measured.
    """

    maps: ScreenMaps | None
    target: Target

    @classmethod
    def of(cls, task: BeamReconstruction) -> LinearView:
        """Return the view of a reconstruction, which holds as long as its settings and its model do."""
        return cls(_constant_maps(task), task.target.to(torch.float32))

    def images(self, member: Member, entrance: Entrance, points: Tensor | None) -> Tensor:
        """Return the images of a member's bunch, ``(settings, ny, nx)``, as the screen sees them."""
        if self.maps is None:
            raise ValueError("no constant maps lead to the screen: the model has to run")
        precision = self.target.image.dtype if isinstance(member.generator, Network) else torch.float64
        coordinates = member.at_entrance(entrance, points, precision)
        return self.maps.images(coordinates, entrance.weights(len(coordinates)))


def _constant_maps(task: BeamReconstruction) -> ScreenMaps | None:
    model, entrance = task.model, task.entrance
    if not isinstance(model, CheetahModel) or any(getattr(parameter, "inputs", ()) for parameter in task.parameters):
        return None
    references = {"reference_energy": entrance.reference_energy, "reference_time": entrance.reference_time}
    if references.keys() & task.inputs.keys() or any(
        not torch.equal(model.get(name), value.to(model.dtype)) for name, value in references.items()
    ):
        return None
    found = model.screen_maps(task.data.screen, task.variant.on_inputs(task.inputs, task.scanned))
    return None if found is None else found.to(torch.float32)
