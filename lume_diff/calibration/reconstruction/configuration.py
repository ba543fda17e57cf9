"""A reconstruction from a YAML file: model, images, how the bunch is fitted, and what of the machine with it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from lume_diff.calibration.fit.configuration import DataSections, ModelSection, ParameterSection
from lume_diff.calibration.fit.yaml_files import Section

if TYPE_CHECKING:
    from lume_diff.calibration.reconstruction.reconstruction import BeamReconstruction


class ReconstructionConfig(Section):
    """What ``lume-diff reconstruct`` is told.

    Attributes:
        model, data: see there; images of a screen, or a list of such data.
        parameters: of machine and screen that are fitted with the bunch.
        n_particles, dimensions, scale, generator, seed: see ``BeamReconstruction``.
        epochs, ensemble, rate, size_weight, entropy_weight, check_ambiguity: see ``BeamReconstruction.run``.
    """

    model: ModelSection
    data: DataSections
    parameters: list[ParameterSection] = Field(default_factory=list)
    n_particles: int = Field(default=10_000, ge=100)
    dimensions: Literal[4, 6] = 4
    scale: list[float] | None = None
    generator: Literal["network", "flow"] = "network"
    seed: int = 0
    epochs: int = Field(default=1600, ge=1)
    ensemble: int = Field(default=5, ge=1)
    rate: float = Field(default=1e-2, gt=0.0)
    size_weight: float = Field(default=0.3, ge=0.0)
    entropy_weight: float = Field(default=0.0, ge=0.0)
    check_ambiguity: bool = False

    def build(self, folder: Path) -> BeamReconstruction:
        """Return the reconstruction; relative paths start from ``folder``."""
        from lume_diff.calibration.reconstruction.reconstruction import BeamReconstruction

        return BeamReconstruction(
            self.model.build(folder),
            [section.build(folder) for section in self.data],
            self.n_particles,
            self.seed,
            parameters=[parameter.build() for parameter in self.parameters],
            dimensions=self.dimensions,
            scale=self.scale,
            generator=self.generator,
        )

    @property
    def options(self) -> dict[str, Any]:
        """How to run it."""
        names = ("epochs", "ensemble", "rate", "size_weight", "entropy_weight", "check_ambiguity")
        return {name: getattr(self, name) for name in names}
