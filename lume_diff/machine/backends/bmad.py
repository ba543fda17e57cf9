"""Backend ``bmad``: a lattice of Bmad, opened by Tao."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from lume_diff.machine.backend import LatticeBoxBackend
from lume_diff.machine.sections import File
from lume_diff.machine.site import Site
from lume_diff.models import LUMEModel


class BmadBackend(LatticeBoxBackend):
    """``{backend: bmad, deck: tao.init, trust: true}``; what Tao reads may run commands.

    Attributes:
        deck: Tao's initialisation file, or a Bmad lattice.
        seed: of Tao's random numbers.
    """

    deck: File
    seed: Annotated[int, Field(ge=1)] | None = None

    def build(self, site: Site) -> LUMEModel:
        """Return the model."""
        from lume_diff.blackbox import BmadModel

        return BmadModel(site.path(self.deck), seed=self.seed, **self.optics_options(site))

    def runs_code(self, site: Site) -> str | None:
        """Tell that Tao runs commands."""
        return f"{self.deck!r} is opened by Tao, whose start-up files may run any command"
