"""Backend ``lume``: a model of LUME that an installed package announces."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from lume_diff.machine.backend import BoxBackend
from lume_diff.machine.site import Site
from lume_diff.models import LUMEModel
from lume_diff.registry import plugin


class LumeBackend(BoxBackend):
    """``{backend: lume, factory: my-injector, arguments: {...}}``.

    Attributes:
        factory: an entry point of the group ``lume_diff.lume_models``: a function, or class, that makes a LUME model.
        arguments: what it is called with.
        units: ``{name: unit}`` where LUME's is missing or wrong.
    """

    factory: str
    arguments: dict[str, Any] = Field(default_factory=dict)
    units: dict[str, str] | None = None

    def build(self, site: Site) -> LUMEModel:
        """Return the model."""
        from lume_diff.blackbox import LumeModel

        model = plugin("lume_models", self.factory)(**self.arguments)
        return LumeModel(model, units=self.units, **self.options(site))
