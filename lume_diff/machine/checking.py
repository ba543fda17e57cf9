"""Checking a machine file: whether everything that it names is there, as far as data tell."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from lume_diff.errors import LumeDiffError, nearest_names
from lume_diff.machine.backend import Backend, BeamBackend
from lume_diff.machine.backends.staged import StagedBackend
from lume_diff.machine.nodes import Node
from lume_diff.machine.problems import Problem, sorted_problems
from lume_diff.machine.reading import Reading
from lume_diff.machine.site import Site
from lume_diff.machine.survey import Survey, chained
from lume_diff.variables import Variable


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

    Attributes:
        reading: the file.
        problems: what is wrong with it.
        survey: the variables of the machine; None where they are not known before it is built.
    """

    def __init__(
        self,
        path: Path,
        site: Site | None = None,
        first: bool = True,
        *,
        trust: bool | None = None,
        changes: Mapping[str, Any] | None = None,
    ) -> None:
        self.reading = Reading(path, trust=trust, changes=changes, site=site)
        self.first = first
        found = list(self.reading.problems)
        self.survey = self._survey(found)
        self.problems = sorted_problems(found)

    def _survey(self, found: list[Problem]) -> Survey | None:
        """Look at all names, and return the variables as the file describes them."""
        reading, root = self.reading, self.reading.root
        if root is None or reading.model is None:
            return None
        node = root.child("model") or root  # stages and links are the root's own
        survey = self._surveyed(reading.model, node, "model" if node is not root else "", self.first, found)
        if survey is None:
            return None
        described = self._described(root, survey.supported_variables, found)
        _check_settings(root, "", reading.settings, described, found)
        return Survey.of(described.values())

    def _surveyed(self, section: Backend, node: Node, where: str, first: bool, found: list[Problem]) -> Survey | None:
        """Return the variables of one model, of a chain those of its stages."""
        site = self.reading.site
        if isinstance(section, BeamBackend) and section.needs_beam and first and node.child("beam") is None:
            found.append(Problem(node.line, where, "has no 'beam', and no stage before it that hands one over: add it"))
        survey: Survey | None
        try:
            if isinstance(section, StagedBackend):
                survey = self._chain(section, node, where, first, found)
            else:
                survey = section.survey(site, first)
        except LumeDiffError as error:
            found.append(Problem(node.line, where, str(error)))
            return None
        if survey is not None and section.set:
            _check_settings(node, where, section.set, survey.supported_variables, found)
        return survey

    def _chain(
        self, section: StagedBackend, node: Node, where: str, first: bool, found: list[Problem]
    ) -> Survey | None:
        parts = {}
        for position, (name, stage) in enumerate(section.stages.items()):
            inner = node.child("stages", name) or node
            place = f"{where}.stages.{name}".removeprefix(".")
            parts[name] = self._surveyed(stage, inner, place, first and position == 0, found)
        known = {name: part for name, part in parts.items() if part is not None}
        return chained(known, section.links) if len(known) == len(parts) else None

    def _described(self, root: Node, known: Mapping[str, Variable], found: list[Problem]) -> dict[str, Variable]:
        variables = dict(known)
        node = root.child("variables")
        for name, section in self.reading.variables.items():
            line = 0 if node is None else node.line_of(name)
            if name not in known:
                found.append(Problem(line, f"variables.{name}", unknown(name, known)))
                continue
            try:
                variables[name] = section.applied(known[name])
            except LumeDiffError as error:
                found.append(Problem(line, f"variables.{name}", str(error)))
        return variables

    @cached_property
    def unseen(self) -> bool:
        """Whether names could not be checked."""
        return self.survey is None and self.reading.model is not None


def _check_settings(
    node: Node, where: str, settings: Mapping[str, Any], known: Mapping[str, Variable], found: list[Problem]
) -> None:
    """Look at the values of inputs that a section sets."""
    given = node.child("set")
    for name, value in settings.items():
        line = node.line if given is None else given.line_of(name)
        place = f"{where}.set.{name}".removeprefix(".")
        if name not in known:
            found.append(Problem(line, place, unknown(name, known)))
        elif known[name].read_only:
            found.append(Problem(line, place, "is an output, which cannot be set"))
        else:
            try:
                known[name].validate_value(value)
            except LumeDiffError as error:
                found.append(Problem(line, place, str(error)))


def unknown(name: str, known: Mapping[str, Variable]) -> str:
    """Return what is said about a variable that is not there."""
    element = name.rpartition(".")[0]
    elements = {other.rpartition(".")[0] for other in known}
    if element and element not in elements:
        return f"there is no element {element!r}{nearest_names(element, sorted(elements - {''}))}"
    return f"there is no variable {name!r}{nearest_names(name, known)}"
