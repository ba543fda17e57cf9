"""Backend ``cheetah``: a beamline in a lattice file, tracked by ``CheetahModel``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import Field

from lume_diff.errors import ValidationError
from lume_diff.machine.backend import Backend, BeamBackend, Files
from lume_diff.machine.sections import File
from lume_diff.machine.site import Site
from lume_diff.models import CheetahModel, LUMEModel
from lume_diff.models.line.knobs import GROUP, REFERENCES
from lume_diff.models.line.lattice_writing import write_json
from lume_diff.particles import TorchParticleGroup


class CheetahBackend(BeamBackend):
    """``{backend: cheetah, lattice: line.json, beam: beam.h5}``.

    Attributes:
        lattice: LatticeJSON, Bmad, Elegant, PALS, NX table; Ocelot with ``trust: true``, because it is a program.
        line: which line of the file.
        format: of the lattice, where its suffix does not tell.
        controls, outputs, engine, losses, loss_width, dtype: see ``CheetahModel``.
    """

    lattice: File
    line: str | None = None
    format: Literal["latticejson", "bmad", "elegant", "nxtables", "ocelot", "pals"] | None = None
    controls: list[str] | None = None
    outputs: list[str] | None = None
    engine: Literal["auto", "cheetah"] = "auto"
    losses: Literal["hard", "soft"] = "hard"
    loss_width: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.02
    dtype: Literal["float32", "float64"] = "float64"

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
            dtype=getattr(torch, self.dtype),
        )

    @classmethod
    def of(cls, model: LUMEModel, files: Files) -> Backend | None:
        """Describe a line: its lattice and its bunch go to files of their own."""
        if not isinstance(model, CheetahModel):
            return None
        bunch = model.get(model.input_names).get(GROUP)
        if not isinstance(bunch, TorchParticleGroup) or bunch.batch_shape:
            raise ValidationError("the incoming beam of a line is written only if it is one bunch of particles")
        whole = CheetahModel(model.simulator, bunch, dtype=model.dtype)
        chosen: dict[str, Any] = {}
        lattice, lattice_name = files.new("lattice.json")
        write_json(model.simulator, lattice)
        if not files.fed:
            beam, chosen["beam"] = files.new("beam.h5")
            bunch.detach().to_openpmd(beam)
        given: dict[str, Any] = {
            "engine": model.engine,
            "losses": model._losses.mode,
            "loss_width": model._losses.width,
            "dtype": str(model.dtype).removeprefix("torch."),
        }
        chosen |= {name: value for name, value in given.items() if value != cls.model_fields[name].default}
        if model.input_names != whole.input_names:
            chosen["controls"] = [name for name in model.input_names if name not in (GROUP, *REFERENCES)]
        if model.output_names != whole.output_names:
            chosen["outputs"] = model.output_names
        return cls(backend="cheetah", lattice=lattice_name, **chosen)

    def runs_code(self, site: Site) -> str | None:
        """Tell that an Ocelot lattice is a program."""
        if self.format == "ocelot" or (self.format is None and self.lattice.lower().endswith(".py")):
            return f"{self.lattice!r} is an Ocelot lattice, which is a program"
        return None

    def stand_in(self, site: Site) -> LUMEModel | None:
        """Read the lattice, which is data, for one particle in place of the beam."""
        if self.runs_code(site) or site.wrong(self.lattice):
            return None
        particle = TorchParticleGroup(x=[0.0], y=0.0, z=0.0, px=0.0, py=0.0, pz=1e8, t=0.0, weight=1e-12)
        return self._model(site, particle, trust=False)
