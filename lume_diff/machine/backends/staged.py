"""Backend ``staged``: models in a row, the beam handed on from each to the next."""

from __future__ import annotations

from typing import Any

from pydantic import Field, SerializeAsAny

from lume_diff.errors import LumeDiffError
from lume_diff.machine.backend import Backend, Files
from lume_diff.machine.nodes import Node
from lume_diff.machine.problems import Problem
from lume_diff.machine.site import Site
from lume_diff.models import LUMEModel, StagedModel


class StagedBackend(Backend):
    """``{backend: staged, stages: {gun: gun.yaml, linac: {backend: cheetah, ...}}, links: {linac/x: gun/y}}``.

    Attributes:
        stages: sections, or machine files, by name in the order of the beam.
        links: see ``StagedModel``.
    """

    stages: dict[str, SerializeAsAny[Backend]] = Field(min_length=1)
    links: dict[str, str] = Field(default_factory=dict)

    def build(self, site: Site) -> LUMEModel:
        """Return the chain; a stage without a beam of its own is built for the one that reaches it."""
        models: dict[str, LUMEModel] = {}
        chain: LUMEModel | None = site.upstream
        for name, section in self.stages.items():
            try:
                models[name] = section.model(site.behind(chain))
            except LumeDiffError as error:
                error.add_note(f"in stage {name!r}")
                raise
            chain = models[name] if len(models) == 1 else StagedModel(models, self._links_among(models))
        return chain if isinstance(chain, StagedModel) else StagedModel(models, self.links)

    def _links_among(self, models: dict[str, LUMEModel]) -> dict[str, str]:
        return {taker: giver for taker, giver in self.links.items() if taker.partition("/")[0] in models}

    @classmethod
    def of(cls, model: LUMEModel, files: Files) -> Backend | None:
        """Describe a chain."""
        if not isinstance(model, StagedModel):
            return None
        stages = {
            name: files.part(stage, name, position > 0 or files.fed)
            for position, (name, stage) in enumerate(model.stages.items())
        }
        given: dict[str, Any] = {"stages": stages} | ({"links": model.links} if model.links else {})
        return cls(backend="staged", **given)

    def mistakes(self, node: Node, where: str, site: Site) -> list[Problem]:
        """Tell links to stages that are not there."""
        found = []
        links = node.child("links")
        for taker, giver in self.links.items():
            for end in (taker, giver):
                if "/" not in end or end.partition("/")[0] not in self.stages:
                    line = links.line_of(taker) if links is not None else node.line
                    message = f"{end!r} is no end of a link: expected 'stage/variable', stages are {[*self.stages]}"
                    found.append(Problem(line, f"{where}.links".removeprefix("."), message))
        return found
