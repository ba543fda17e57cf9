"""Machine: what a machine file says, as sections that do nothing yet."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Discriminator, Field, PrivateAttr, SerializeAsAny, Tag

from lume_diff.machine.backend import Backend
from lume_diff.machine.backends.staged import StagedBackend
from lume_diff.machine.ioc import IocSection
from lume_diff.machine.nodes import read_nodes
from lume_diff.machine.problems import Problem, raise_problems
from lume_diff.machine.sections import File, Section, Setting, read_section
from lume_diff.machine.site import Site
from lume_diff.machine.variables import VariableSection
from lume_diff.models.facility import FacilityMapping


def _form(value: Any) -> str:
    return "file" if isinstance(value, str) else "mapping"


Mapping = Annotated[Annotated[File, Tag("file")] | Annotated[FacilityMapping, Tag("mapping")], Discriminator(_form)]


class Machine(Section):
    """Everything that a machine file says.

    Attributes:
        model: of what it is made; ``stages`` and ``links`` of a file are a ``staged`` one.
        description: in words.
        allow_outside: whether files may lie outside the folder.
        mapping: the facility's names and units, or a file that holds them.
        calibration: a result that ``lume-diff calibrate`` has saved.
        variables: what is said about single variables, by name.
        set: values of inputs by name; ``reset`` goes back to these.
        ioc: how it is served.

    Example:
        >>> from lume_diff.machine import read
        >>> read("machine.yaml").ioc.prefix  # doctest: +SKIP
        'VA:'
    """

    description: str = ""
    allow_outside: bool = Field(default=False, description="whether files may lie outside the folder of this one")
    model: SerializeAsAny[Backend]
    mapping: Mapping | None = None
    calibration: File | None = None
    variables: dict[str, VariableSection] = Field(default_factory=dict)
    set: dict[str, Setting] = Field(default_factory=dict)
    ioc: IocSection | None = None
    _site: Site = PrivateAttr(default=Site(Path()))

    @property
    def site(self) -> Site:
        """Where the file is, and what may be opened."""
        return self._site

    def facility(self) -> tuple[FacilityMapping, Path]:
        """Return the mapping, and the folder that its files are relative to.

        Raises:
            ValidationError: for a file with mistakes.
        """
        if not isinstance(self.mapping, str):
            return self.mapping or FacilityMapping(), self.site.folder
        path = self.site.path(self.mapping)
        problems: list[Problem] = []
        node = read_nodes(path, problems)
        found = None if node is None else read_section(FacilityMapping, node, "", problems)
        raise_problems(str(path), problems)
        return found or FacilityMapping(), path.parent

    def placed(self, site: Site) -> Machine:
        """Return the same description at another place."""
        found = self.model_copy()
        found._site = site
        return found

    def plain(self) -> dict[str, Any]:
        """Return what a file would hold, as plain data."""
        found = self.model_dump(exclude_unset=True, by_alias=True)
        model = found.pop("model")
        if isinstance(self.model, StagedBackend) and not {"set", "trust"} & set(model):
            parts = {name: model[name] for name in ("stages", "links") if name in model}
        else:
            parts = {"model": model}
        head: dict[str, Any] = {name: found.pop(name) for name in ("description", "allow_outside") if name in found}
        return {**head, **parts, **found}
