"""Backend ``at``: a lattice of the Accelerator Toolbox (pyAT)."""

from __future__ import annotations

from pathlib import PurePath

from lume_diff.machine.backend import LatticeBoxBackend
from lume_diff.machine.sections import File
from lume_diff.machine.site import Site
from lume_diff.models import LUMEModel


class ATBackend(LatticeBoxBackend):
    """``{backend: at, lattice: ring.json}``.

    Attributes:
        lattice: a file that pyAT reads. Of those JSON and MAT files are data; pyAT evaluates the others, which need
            ``trust: true``.
    """

    lattice: File

    def build(self, site: Site) -> LUMEModel:
        """Return the model."""
        from lume_diff.blackbox import ATModel

        return ATModel(str(site.path(self.lattice)), **self.optics_options(site))

    def runs_code(self, site: Site) -> str | None:
        """Tell what pyAT evaluates."""
        if PurePath(self.lattice).suffix.lower() in (".json", ".mat"):
            return None
        return f"{self.lattice!r} is evaluated by pyAT as Python"
