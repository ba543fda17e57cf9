"""Backend ``cheetah``: a beamline in a lattice file, tracked by ``CheetahModel``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from lume_diff.machine.backend import BeamBackend
from lume_diff.machine.sections import File
from lume_diff.machine.site import Site
from lume_diff.machine.survey import Survey
from lume_diff.models import CheetahModel, LUMEModel


class CheetahBackend(BeamBackend):
    """``{backend: cheetah, lattice: line.json, beam: beam.h5}``.

    Attributes:
        lattice: LatticeJSON, Bmad, Elegant or NX table; Ocelot only with ``trust: true``, because it is a program.
        line: which line of the file.
        format: of the lattice, where its suffix does not tell.
        controls, outputs, engine, losses, loss_width: see ``CheetahModel``.
    """

    lattice: File
    line: str | None = None
    format: Literal["latticejson", "bmad", "elegant", "nxtables", "ocelot"] | None = None
    controls: list[str] | None = None
    outputs: list[str] | None = None
    engine: Literal["auto", "cheetah"] = "auto"
    losses: Literal["hard", "soft"] = "hard"
    loss_width: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.02

    def build(self, site: Site) -> LUMEModel:
        """Return the model."""
        return self._model(site, self.incoming(site), trust=True)

    def _model(self, site: Site, beam: Any, trust: bool) -> CheetahModel:
        return CheetahModel.from_file(
            site.path(self.lattice),
            beam,
            name=self.line,
            format=self.format,
            trust=trust,
            controls=self.controls,
            outputs=self.outputs,
            engine=self.engine,
            losses=self.losses,
            loss_width=self.loss_width,
        )

    def runs_code(self, site: Site) -> str | None:
        """Tell that an Ocelot lattice is a program."""
        if self.format == "ocelot" or (self.format is None and self.lattice.lower().endswith(".py")):
            return f"{self.lattice!r} is an Ocelot lattice, which is a program"
        return None

    def survey(self, site: Site, first: bool) -> Survey | None:
        """Read the lattice, which is data, and track nothing."""
        if self.runs_code(site) or site.wrong(self.lattice):
            return None
        from lume_diff.particles import TorchParticleGroup

        particle = TorchParticleGroup(x=[0.0], y=0.0, z=0.0, px=0.0, py=0.0, pz=1e8, t=0.0, weight=1e-12)
        return Survey(self._model(site, particle, trust=False).supported_variables)
