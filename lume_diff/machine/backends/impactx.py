"""Backend ``impactx``: particles through ImpactX."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from lume_diff.machine.backend import BeamBackend, BoxBackend
from lume_diff.machine.sections import File
from lume_diff.machine.site import Site
from lume_diff.models import LUMEModel


class ImpactXBackend(BoxBackend, BeamBackend):
    """``{backend: impactx, lattice: line.madx, beam: beam.h5}``.

    Attributes:
        lattice: a MAD-X, PALS or ImpactX input file.
        space_charge, n_cell, settings, reference_energy: see ``ImpactXModel``.
    """

    needs_beam: ClassVar[bool] = True
    lattice: File
    space_charge: Literal["2D", "2p5D", "3D", "Gauss3D", "Gauss2p5D"] | None = None
    n_cell: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=3, max_length=3)] = Field(
        default_factory=lambda: [32, 32, 32]
    )
    settings: dict[str, Any] | None = None
    reference_energy: float | None = None

    def build(self, site: Site) -> LUMEModel:
        """Return the model."""
        from lume_diff.blackbox import ImpactXModel

        return ImpactXModel(
            site.path(self.lattice),
            beam=self.incoming(site),
            space_charge=self.space_charge,
            n_cell=self.n_cell,
            settings=self.settings,
            reference_energy=self.reference_energy,
            **self.options(site),
        )
