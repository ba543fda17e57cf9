"""Checking a machine file: whether everything that it names is there, as far as data tell."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lume_diff.errors import LumeDiffError, nearest_names
from lume_diff.machine.backend import Backend, BeamBackend
from lume_diff.machine.backends.staged import StagedBackend
from lume_diff.machine.mapping import bound_variables, located
from lume_diff.machine.nodes import Node
from lume_diff.machine.problems import Problem, sorted_problems
from lume_diff.machine.reading import Reading
from lume_diff.machine.site import Site
from lume_diff.models import FacilityModel, LUMEModel, StagedModel
from lume_diff.models.facility.mistakes import MappingError
from lume_diff.variables import TorchScalarVariable, Variable


def check(
    path: str | os.PathLike[str], *, trust: bool | None = None, changes: Mapping[str, Any] | None = None
) -> list[Problem]:
    """Return every mistake in a machine file, and run nothing: no simulator, no lattice that is a program.

    Names of variables are checked where lattices are data; ``lume-diff check`` tells where they are not.

    Args:
        path: of the file.
        trust, changes: see ``load_model``.

    Returns:
        The mistakes in the order of the lines; none for a file that is right.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "machine.yaml"
        >>> _ = path.write_text("model: {backend: cheetah, lattice: line.json}")
        >>> for problem in check(path):
        ...     print(problem.where, problem.message.partition(" in ")[0])
        model.lattice there is no file 'line.json'
        model has no 'beam', and no stage before it that hands one over: add it
    """
    return Inspection(Path(path), trust=trust, changes=changes).problems


class Inspection:
    """What can be said about a machine without building it.

    Args:
        path: of the file.
        site: of the machine that names this one, if one does.
        trust, changes: see ``load_model``.

    Attributes:
        reading: the file.
        problems: what is wrong with it.
        stand_in: a model like the machine's that is never evaluated; None where making it would run codes.
        variables: of the machine, as the file describes them; None where they are not known.
    """

    def __init__(
        self,
        path: Path,
        site: Site | None = None,
        *,
        trust: bool | None = None,
        changes: Mapping[str, Any] | None = None,
    ) -> None:
        self.reading = Reading(path, trust=trust, changes=changes, site=site)
        self.is_stage = site is not None
        self.found = list(self.reading.problems)
        self.variables: dict[str, Variable] | None = None
        self.stand_in = self._look()
        self.problems = sorted_problems(self.found)

    def _look(self) -> LUMEModel | None:
        """Look at all names, and return a stand-in as the file describes it."""
        root, section = self.reading.root, self.reading.model
        if root is None or section is None:
            return None
        node = root.child("model") or root  # stages and links are the root's own
        model = self._stand_in(section, node, "model" if node is not root else "", not self.is_stage)
        if model is None:
            return None
        known = self._mapped(model)
        if known is None:
            return None
        self.variables = self._described(root, known)
        self._check_settings(root, "", self.reading.settings, self.variables)
        self._check_settling(root, self.variables)
        return self._outermost(model)

    def _mapped(self, model: LUMEModel) -> Mapping[str, Variable] | None:
        """Return the variables that the mapping makes of a model's."""
        reading = self.reading
        if reading.mapping is None or reading.mapping_node is None:
            return None if reading.has_mapping else model.supported_variables
        file = reading.mapping_file
        try:
            return bound_variables(model, reading.mapping, reading.mapping_folder)
        except MappingError as error:
            self.found += located(error, reading.mapping_node, "" if file else "mapping", file)
        except LumeDiffError as error:
            self.tell(reading.mapping_node.line, "mapping", str(error))
        return None

    def _outermost(self, model: LUMEModel) -> LUMEModel | None:
        """Return the stand-in under the names of the mapping."""
        if self.reading.mapping is None:
            return model
        if not self.is_stage:
            return None
        try:
            return FacilityModel(model, self.reading.mapping, folder=self.reading.mapping_folder)
        except LumeDiffError:  # limits that the stand-in, whose energy is any, is outside of
            return None

    def _stand_in(self, section: Backend, node: Node, where: str, first: bool) -> LUMEModel | None:
        """Return a stand-in for one model, for a chain a chain of those of its stages."""
        if isinstance(section, BeamBackend) and section.needs_beam and first and node.child("beam") is None:
            self.tell(node.line, where, "has no 'beam', and no stage before it that hands one over: add it")
        try:
            if isinstance(section, StagedBackend):
                model = self._chain(section, node, where, first)
            else:
                model = section.stand_in(self.reading.site)
        except LumeDiffError as error:
            self.tell(node.line, where, str(error))
            return None
        if model is not None:
            self._check_settings(node, where, section.set, model.supported_variables)
        return model

    def _chain(self, section: StagedBackend, node: Node, where: str, first: bool) -> LUMEModel | None:
        written = node.child("stages")
        names = list(written.value) if written is not None else []
        known = {}
        for name, stage in section.stages.items():
            inner = node.child("stages", name) or node
            place = f"{where}.stages.{name}".removeprefix(".")
            model = self._stand_in(stage, inner, place, first and name == names[0])
            if model is not None:
                known[name] = model
        return StagedModel(known, section.links) if list(known) == names else None

    def _described(self, root: Node, known: Mapping[str, Variable]) -> dict[str, Variable]:
        found = dict(known)
        node = root.child("variables")
        for name, section in self.reading.variables.items():
            line = 0 if node is None else node.line_of(name)
            if name not in known:
                self.tell(line, f"variables.{name}", unknown(name, known))
                continue
            try:
                found[name] = section.applied(known[name])
            except LumeDiffError as error:
                self.tell(line, f"variables.{name}", str(error))
        return found

    def _check_settings(
        self, node: Node, where: str, settings: Mapping[str, Any], known: Mapping[str, Variable]
    ) -> None:
        """Look at the values of inputs that a section sets."""
        given = node.child("set")
        for name, value in settings.items():
            line = node.line if given is None else given.line_of(name)
            place = f"{where}.set.{name}".removeprefix(".")
            if name not in known:
                self.tell(line, place, unknown(name, known))
            elif known[name].read_only:
                self.tell(line, place, "is an output, which cannot be set")
            else:
                try:
                    known[name].validate_value(value)
                except LumeDiffError as error:
                    self.tell(line, place, str(error))

    def _check_settling(self, root: Node, known: Mapping[str, Variable]) -> None:
        """Look at the names of the set-points that take their time."""
        settling = None if self.reading.ioc is None else self.reading.ioc.settling
        given = root.child("ioc", "settling")
        for name in settling or {}:
            line = root.line if given is None else given.line_of(name)
            place = f"ioc.settling.{name}"
            if name not in known:
                self.tell(line, place, unknown(name, known))
            elif known[name].read_only or not isinstance(known[name], TorchScalarVariable):
                self.tell(line, place, "cannot settle: that takes an input that is a floating-point number")

    def tell(self, line: int, where: str, message: str) -> None:
        """Note a mistake."""
        self.found.append(Problem(line, where, message))


def unknown(name: str, known: Mapping[str, Variable]) -> str:
    """Return what is said about a variable that is not there."""
    element = name.rpartition(".")[0]
    elements = {other.rpartition(".")[0] for other in known}
    if element and element not in elements:
        return f"there is no element {element!r}{nearest_names(element, sorted(elements - {''}))}"
    return f"there is no variable {name!r}{nearest_names(name, known)}"
