"""Backend ``impact``: an IMPACT-T deck."""

from __future__ import annotations

from typing import Any, ClassVar

from lume_diff.machine.backend import BeamBackend, BoxBackend
from lume_diff.machine.sections import File
from lume_diff.machine.site import Site
from lume_diff.models import LUMEModel


class ImpactTBackend(BoxBackend, BeamBackend):
    """``{backend: impact, deck: ImpactT.in}``.

    Attributes:
        deck: an ``ImpactT.in``, or a lume-impact YAML file.
        start: where in the deck the bunch comes in [m].
        command: the executable, which is run: only with ``trust: true``.
    """

    needs_beam: ClassVar[bool] = False
    deck: File
    start: float | None = None
    command: str | None = None

    def build(self, site: Site) -> LUMEModel:
        """Return the model."""
        from lume_diff.blackbox import ImpactTModel

        options: dict[str, Any] = self.options(site)
        if self.command is not None:
            options["command"] = self.command
        return ImpactTModel(site.path(self.deck), beam=self.incoming(site), start=self.start, **options)

    def runs_code(self, site: Site) -> str | None:
        """Tell that the file names an executable."""
        return None if self.command is None else f"'command' names the executable {self.command!r}"
