"""Reading a machine file: every mistake with its line, and nothing run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lume_diff.errors import LumeDiffError, nearest_names
from lume_diff.machine.backend import Backend, backend_class, untrusted
from lume_diff.machine.backends.staged import StagedBackend
from lume_diff.machine.changes import change
from lume_diff.machine.description import Machine
from lume_diff.machine.ioc import IocSection
from lume_diff.machine.nodes import Node, read_nodes
from lume_diff.machine.problems import Problem, raise_problems
from lume_diff.machine.sections import Section, read_section, shown
from lume_diff.machine.site import Site
from lume_diff.machine.variables import VariableSection
from lume_diff.models.facility import FacilityMapping

FIELDS = (
    *("description", "allow_outside", "model", "stages", "links"),
    *("mapping", "calibration", "variables", "set", "ioc"),
)


def read_machine(
    path: str | os.PathLike[str],
    *,
    trust: bool | None = None,
    changes: Mapping[str, Any] | None = None,
    site: Site | None = None,
) -> Machine:
    """Read a machine file and build nothing.

    Args:
        path: of the file.
        trust: see ``load_model``.
        changes: see ``load_model``.
        site: of the machine that names this one, if one does.

    Raises:
        ValidationError: with every mistake and its line.
    """
    return Reading(Path(path), trust=trust, changes=changes, site=site).read()


class Reading:
    """A machine file as it was read.

    Attributes:
        problems: what is wrong with it.
        root: its values with their lines; None where it is no YAML.
        site: where it is.
        model: the section of its model; None where that has mistakes.
        mapping: of the facility, from this file or its own; ``mapping_node`` is what it was read from, and files in
            it are relative to ``mapping_folder``.
        variables, settings: what it says about variables, without what has mistakes.
        ioc: how it is served, as far as it can be read.
        machine: all of it; None where there are problems.
    """

    def __init__(
        self,
        path: Path,
        *,
        trust: bool | None = None,
        changes: Mapping[str, Any] | None = None,
        site: Site | None = None,
    ) -> None:
        self.path = path
        self.problems: list[Problem] = []
        self.model: Backend | None = None
        self.mapping: FacilityMapping | None = None
        self.mapping_node: Node | None = None
        self.mapping_folder = path.parent
        self.variables: dict[str, VariableSection] = {}
        self.settings: dict[str, Any] = {}
        self.ioc: IocSection | None = None
        self.machine: Machine | None = None
        within = (*(() if site is None else site.within), path.resolve())
        self.site = Site(path.parent, False, trust if site is None else site.trust, within=within)
        self.root = read_nodes(path, self.problems)
        if self.root is None:
            return
        if not isinstance(self.root.value, dict):
            message = f"is {shown(self.root)}; expected the sections {', '.join(FIELDS)}"
            self.problems.append(Problem(self.root.line, "", message))
            self.root = None
            return
        for target, value in (changes or {}).items():
            if problem := change(self.root, target, value):
                self.problems.append(problem)
        self._read(self.root)

    def _read(self, root: Node) -> None:
        outside = root.child("allow_outside")
        if outside is not None and outside.value is True:
            self.site = Site(self.site.folder, True, self.site.trust, within=self.site.within)
        for name in root.value:
            if name not in FIELDS:
                self.tell(root.line_of(name), name, f"is not known here{nearest_names(name, FIELDS)}")
        self.model = self._whole_model(root)
        self._read_mapping(root)
        self.variables = self._variables(root)
        self.settings = self._settings(root)
        rest = {name: child for name, child in root.value.items() if name in ("description", "allow_outside", "ioc")}
        self.ioc = read_section(IocSection, rest["ioc"], "ioc", self.problems) if "ioc" in rest else None
        if "ioc" in rest and not rest["ioc"].broken and isinstance(rest["ioc"].value, dict):
            self.problems += self.site.file_problems(IocSection, rest["ioc"], "ioc")
        kept = {name: rest[name].plain() for name in ("description", "allow_outside") if name in rest}
        for name, kind, word in (("description", str, "a text"), ("allow_outside", bool, "true or false")):
            if name in kept and type(kept[name]) is not kind and not rest[name].broken:
                self.tell(root.line_of(name), name, f"is {shown(rest[name])}; expected {word}")
        kept |= {"calibration": self._calibration(root)} if "calibration" in root.value else {}
        if self.problems or self.model is None:
            return
        if self.mapping is not None:
            kept["mapping"] = root.value["mapping"].value if self.mapping_file else self.mapping
        given: dict[str, Any] = {"variables": self.variables, "set": self.settings, "ioc": self.ioc}
        kept |= {name: value for name, value in given.items() if value}
        self.machine = Machine(model=self.model, **kept).placed(self.site)

    def read(self) -> Machine:
        """Return what the file says.

        Raises:
            ValidationError: with every mistake and its line.
        """
        raise_problems(str(self.path), self.problems)
        if self.machine is None:
            raise LumeDiffError(f"{str(self.path)!r} could not be read")
        return self.machine

    def tell(self, line: int, where: str, message: str) -> None:
        """Note a mistake."""
        self.problems.append(Problem(line, where, message))

    # -- the model ---------------------------------------------------------------------------------------------

    def _whole_model(self, root: Node) -> Backend | None:
        given = [name for name in ("model", "stages") if name in root.value]
        if len(given) != 1:
            what = "has both 'model' and 'stages'" if given else "has neither 'model' nor 'stages'"
            self.tell(root.line_of("stages"), "", f"{what}: give one of the two")
        if not given:
            return None
        if given[0] == "model":
            if "links" in root.value:
                self.tell(root.line_of("links"), "links", "joins stages, and there are none: leave it out")
            return self._backend(root.value["model"], "model")
        chain = Node({"backend": Node("staged", root.line_of("stages"))}, root.line_of("stages"))
        for name in ("stages", "links"):
            if name in root.value:
                chain.value[name] = root.value[name]
                chain.key_lines[name] = root.line_of(name)
        return self._backend(chain, "")

    def _backend(self, node: Node, where: str) -> Backend | None:
        """Return the section of a model."""
        if node.broken:
            return None
        if isinstance(node.value, str):
            backend = "lume-torch" if self._is_surrogate(node.value) else "machine"
            node = _keyed({"backend": Node(backend, node.line), "file": node}, node.line)
        if not isinstance(node.value, dict):
            self.tell(node.line, where, f"is {shown(node)}; expected a section with 'backend', or a machine file")
            return None
        name = node.child("backend")
        if name is None:
            self.tell(node.line, where, "has no 'backend': name one")
        if name is None or name.broken:
            return None
        try:
            kind = backend_class(str(name.value))
        except LumeDiffError as error:
            self.tell(node.line_of("backend"), f"{where}.backend".removeprefix("."), str(error))
            return None
        if issubclass(kind, StagedBackend):
            node = self._with_stages(node, where)
        section = read_section(kind, node, where, self.problems)
        self.problems += self.site.file_problems(kind, node, where)
        self._nested_files(section, node, where)
        if section is None:
            return None
        code = section.runs_code(self.site)
        if code is not None and not self.site.allows(section.trust):
            self.tell(node.line_of("backend"), where, untrusted(code, self.site))
        self.problems += section.mistakes(node, where, self.site)
        return section

    def _is_surrogate(self, file: str) -> bool:
        """Tell whether a file is a surrogate of lume-torch, and no machine file."""
        root = None if self.site.wrong(file) else read_nodes(self.site.path(file), [])
        return root is not None and root.child("model_class") is not None

    def _nested_files(self, section: Section | None, node: Node, where: str) -> None:
        """Look at the files of sections inside."""
        for name in type(section).model_fields if section is not None else ():
            value, child = getattr(section, name), node.child(name)
            if isinstance(value, Section) and child is not None and isinstance(child.value, dict):
                self.problems += self.site.file_problems(type(value), child, f"{where}.{name}")

    def _with_stages(self, node: Node, where: str) -> Node:
        """Return the node of a chain with its stages read."""
        stages = node.child("stages")
        if stages is None or stages.broken or not isinstance(stages.value, dict):
            return node
        found = {}
        for name, child in stages.value.items():
            place = f"{where}.stages.{name}".removeprefix(".")
            if "/" in name or not name:
                self.tell(stages.line_of(name), place, "a stage's name has no '/', which parts stage and variable")
            section = self._backend(child, place)
            found[name] = Node(section, child.line, broken=section is None)
        whole = Node({name: child for name, child in found.items() if not child.broken}, stages.line)
        whole.key_lines = stages.key_lines
        return _keyed({**node.value, "stages": whole}, node.line, node.key_lines)

    # -- the mapping -------------------------------------------------------------------------------------------

    @property
    def has_mapping(self) -> bool:
        """Whether there is one, be it one that could not be read."""
        return self.root is not None and "mapping" in self.root.value

    @property
    def mapping_file(self) -> str:
        """The file that holds the mapping; empty where this one does."""
        node = None if self.root is None else self.root.child("mapping")
        return node.value if node is not None and isinstance(node.value, str) else ""

    def _read_mapping(self, root: Node) -> None:
        """Read the mapping, from this file or its own."""
        node = root.child("mapping")
        if node is None or node.broken:
            return
        file, problems, folder = self.mapping_file, self.problems, self.site.folder
        if file:
            if problem := self.site.wrong(file):
                self.tell(root.line_of("mapping"), "mapping", problem)
                return
            problems, path = [], self.site.path(file)
            node, folder = read_nodes(path, problems), path.parent
        if node is not None:
            where = "" if file else "mapping"
            self.mapping = read_section(FacilityMapping, node, where, problems)
            table = node.child("elements")
            named = None if table is None else table.child("file")
            if table is not None and named is not None and isinstance(named.value, str) and not named.broken:
                inside = replace(self.site, folder=folder)
                if problem := inside.wrong(named.value):
                    place = f"{where}.elements.file".removeprefix(".")
                    problems.append(Problem(table.line_of("file"), place, problem))
        self.mapping_node, self.mapping_folder = node, folder
        if file:
            self.problems += [problem._replace(file=file) for problem in problems]

    # -- the rest ----------------------------------------------------------------------------------------------

    def _mapping(self, root: Node, name: str) -> dict[str, Node]:
        """Return the parts of a section that is a mapping of names."""
        node = root.child(name)
        if node is None or node.broken or node.value is None:
            return {}
        if not isinstance(node.value, dict):
            self.tell(root.line_of(name), name, f"is {shown(node)}; expected a mapping of names of variables")
            return {}
        return {key: child for key, child in node.value.items() if not child.broken}

    def _variables(self, root: Node) -> dict[str, VariableSection]:
        found = {}
        for name, child in self._mapping(root, "variables").items():
            section = read_section(VariableSection, child, f"variables.{name}", self.problems)
            if section is not None:
                found[name] = section
        return found

    def _settings(self, root: Node) -> dict[str, Any]:
        found = {}
        for name, child in self._mapping(root, "set").items():
            if child.value is None or isinstance(child.value, dict):
                self.tell(child.line, f"set.{name}", f"is {shown(child)}; expected a value")
            else:
                found[name] = child.plain()
        return found

    def _calibration(self, root: Node) -> str | None:
        node = root.value["calibration"]
        if node.broken:
            return None
        if not isinstance(node.value, str) or not node.value:
            self.tell(root.line_of("calibration"), "calibration", f"is {shown(node)}; expected a file")
            return None
        if problem := self.site.wrong(node.value):
            self.tell(root.line_of("calibration"), "calibration", problem)
        return node.value


def _keyed(value: dict[str, Node], line: int, key_lines: Mapping[str, int] | None = None) -> Node:
    node = Node(value, line)
    node.key_lines = {**{name: child.line for name, child in value.items()}, **(key_lines or {})}
    return node
