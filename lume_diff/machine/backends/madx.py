"""Backend ``madx``: a MAD-X deck."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from lume_diff.machine.backend import LatticeBoxBackend
from lume_diff.machine.sections import File
from lume_diff.machine.site import Site
from lume_diff.models import LUMEModel


class MADXBackend(LatticeBoxBackend):
    """``{backend: madx, deck: line.madx, trust: true}``; a deck is a program.

    Attributes:
        deck: the file.
        sequence: its name, where the deck has several.
    """

    deck: File
    sequence: Annotated[str, Field(min_length=1)] | None = None

    def build(self, site: Site) -> LUMEModel:
        """Return the model."""
        from lume_diff.blackbox import MADXModel

        options: dict[str, Any] = self.optics_options(site)
        return MADXModel(site.path(self.deck), self.sequence, **options)

    def runs_code(self, site: Site) -> str | None:
        """Tell that a deck is a program."""
        return f"{self.deck!r} is a MAD-X deck, which may run any command (SYSTEM)"
