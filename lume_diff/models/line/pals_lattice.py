"""Lattices in the Particle Accelerator Lattice Standard (PALS), https://pals-project.readthedocs.io.

Lines are expanded here, and each element is then checked by its class of pals-schema. The reader of pals-schema 0.3.0
itself does neither ``inherit`` nor ``repeat``, drops what it does not know, and takes an element of an unknown kind for
another one without a word.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lume_diff.errors import LumeDiffError, nearest_names
from lume_diff.models.line.lattice_reading import converting, lattice_error
from lume_diff.models.line.pals_elements import PalsReference, convert

if TYPE_CHECKING:
    import cheetah

Fields = dict[str, Any]

_ROOT_KEYS = ("version", "facility", "extension_labels", "phase_space_coordinates")
_LINE_KEYS = {"kind", "line", "periodic", "MetaP"}
_ITEM_KEYS = {"repeat", "direction"}
_LARGEST = 100_000  # elements; more is a mistake in a repetition


def read_pals(path: Path, text: str, name: str | None, reference: PalsReference) -> cheetah.Segment:
    """Read a line.

    Args:
        path: for messages.
        text: YAML or JSON, of which YAML is a superset.
        name: of a BeamLine or Lattice; None for what the file uses, its only lattice, or its only line.
        reference: what fields refer to where the file does not say it.

    Raises:
        LatticeError: for mistakes, unknown elements and unknown parameters: all of them at once.
        MissingExtraError: if pals-schema is not installed.
    """
    import cheetah

    facility = _Facility(path)
    facility.read(*_entries(path, text))
    root = facility.root(name)
    elements = list(facility.expanded(root, ()))
    with converting():
        parts = convert(elements, reference, facility.mistakes)
        if facility.mistakes:
            raise lattice_error(path, "; ".join(dict.fromkeys(facility.mistakes)))
        return cheetah.Segment(parts, name=root, sanitize_name=False)


def _entries(path: Path, text: str) -> tuple[list[Any], set[str]]:
    """Return what the file defines, in order, and the names of its extensions, which are for other programs."""
    from lume_diff.variables.text import load_yaml

    try:
        data = load_yaml(text)
    except (LumeDiffError, RecursionError) as error:
        raise lattice_error(path, f"is not YAML: {error}") from error
    data = data.get("PALS", data) if isinstance(data, dict) else data
    if not isinstance(data, dict):
        raise lattice_error(path, f"is a {type(data).__name__}; expected a mapping with PALS, or a line")
    if "facility" not in data:
        return [{name: value} for name, value in data.items()], set()
    unknown = [repr(key) for key in data if key not in _ROOT_KEYS]
    if unknown:
        raise lattice_error(path, f"has {', '.join(unknown)} beside the facility, which cannot be read here")
    if not isinstance(data["facility"], list):
        raise lattice_error(path, f"facility is {data['facility']!r:.60}; expected a list")
    labels = data.get("extension_labels") or {}
    return data["facility"], set(labels.get("names") or {})


@dataclass
class _Facility:
    path: Path
    definitions: dict[str, Fields] = field(default_factory=dict)
    used: list[str] = field(default_factory=list)
    mistakes: list[str] = field(default_factory=list)
    _count: int = 0

    def read(self, entries: list[Any], extensions: set[str]) -> None:
        for entry in entries:
            found = _item(entry)
            if found is None:
                self.mistakes.append(f"{entry!r:.60} is not understood; expected 'name: {{kind: ...}}' or 'use: name'")
                continue
            name, fields = found
            if isinstance(entry, str) or "use" in entry:
                self.used.append(name)
                continue
            if name in self.definitions:
                self.mistakes.append(f"{name!r} is defined twice")
            if not fields.keys() & {"kind", "inherit"} and not fields.keys() <= extensions:
                self.mistakes.append(f"{name!r} has neither kind nor inherit, and commands cannot be read here")
            self.definitions[name] = {key: value for key, value in fields.items() if key not in extensions}

    def root(self, name: str | None) -> str:
        """Return the name of the line to read."""
        kinds = {key: fields.get("kind") for key, fields in self.definitions.items()}
        lattices, lines = ([key for key, kind in kinds.items() if kind == wanted] for wanted in ("Lattice", "BeamLine"))
        if name is None and self.used:
            name = self.used[-1]
        if name is None:
            inner = {key for line in lines for key, _ in _items(self.definitions[line].get("line"), [])}
            free = lattices or [line for line in lines if line not in inner]
            if len(free) != 1:
                raise lattice_error(self.path, f"has the lattices and lines {free}; say with name= which one to read")
            name = free[0]
        if name not in (*lattices, *lines):
            known = [*lattices, *lines]
            raise lattice_error(self.path, f"has no lattice or line {name!r}{nearest_names(name, known)}")
        if name not in lattices:
            return name
        branches = [key for key, _ in _items(self.definitions[name].get("branches"), self.mistakes)]
        if len(branches) != 1:
            raise lattice_error(
                self.path, f"lattice {name!r} has the branches {branches}; say with name= which to read"
            )
        return self.root(branches[0])

    def expanded(self, line: str, inside: tuple[str, ...]) -> Iterator[tuple[str, Fields]]:
        """Yield the elements of a line, those of lines within it in their place."""
        if line in inside:
            raise lattice_error(self.path, f"line {line!r} contains itself")
        fields = self.definitions[line]
        self._refuse(f"line {line!r}", set(fields) - _LINE_KEYS)
        for name, given in _items(fields.get("line"), self.mistakes):
            repeat, direction = given.get("repeat", 1), given.get("direction", 1)
            if not isinstance(repeat, int) or isinstance(repeat, bool):
                self.mistakes.append(f"repeat of {name!r} in line {line!r} is {repeat!r}; expected a whole number")
                continue
            if direction != 1:
                self.mistakes.append(f"{name!r} in line {line!r} is reversed, which cannot be read here")
            own = {key: value for key, value in given.items() if key not in _ITEM_KEYS}
            if self.definitions.get(name, {}).get("kind") == "BeamLine":
                self._refuse(f"{name!r} in line {line!r}", set(own))
                members = list(self.expanded(name, (*inside, line)))
            else:
                members = [(name, self.resolved(name, own, ()))]
            self._count += abs(repeat) * len(members)
            if self._count > _LARGEST:
                raise lattice_error(self.path, f"has more than {_LARGEST} elements: look at the repetitions")
            for _ in range(abs(repeat)):
                yield from members if repeat > 0 else reversed(members)

    def resolved(self, name: str, own: Fields, inside: tuple[str, ...]) -> Fields:
        """Return the parameters of an element, with those that it inherits."""
        parent = own.get("inherit", name if "kind" not in own else None)
        if parent is None:
            return own
        if parent not in self.definitions or parent in inside:
            problem = "inherits from itself" if parent in inside else "is not defined"
            self.mistakes.append(f"{parent!r} {problem}{nearest_names(str(parent), self.definitions)}")
            return {"kind": None}
        theirs = self.definitions[parent]
        if "kind" not in theirs or "inherit" in theirs:
            theirs = (
                self.resolved(parent, theirs, (*inside, parent)) if "inherit" in theirs else {"kind": None} | theirs
            )
        return _merged(theirs, {key: value for key, value in own.items() if key != "inherit"})

    def _refuse(self, what: str, keys: set[str]) -> None:
        if keys:
            self.mistakes.append(f"{what} has {', '.join(sorted(map(str, keys)))}, which cannot be read here")


def _items(line: Any, mistakes: list[str]) -> list[tuple[str, Fields]]:
    """Return names and parameters of what a line or lattice consists of."""
    if not isinstance(line, list):
        mistakes.append(f"a line is {line!r:.60}; expected a list")
        return []
    found: list[tuple[str, Fields]] = []
    for entry in line:
        item = _item(entry)
        if item is None:
            mistakes.append(f"{entry!r:.60} in a line is not understood; expected a name or 'name: {{...}}'")
        else:
            found.append(item)
    return found


def _item(entry: Any) -> tuple[str, Fields] | None:
    """Return the name and the parameters of an entry: a name alone, ``use: name``, or ``name: {...}``."""
    if isinstance(entry, str):
        return entry, {}
    if not isinstance(entry, dict) or len(entry) != 1:
        return None
    ((name, fields),) = entry.items()
    if name == "use" and isinstance(fields, str):
        return fields, {}
    return (str(name), dict(fields or {})) if isinstance(fields, dict | None) else None


def _merged(theirs: Fields, own: Fields) -> Fields:
    """Return parameters of which single ones of a group may be changed."""
    return theirs | {
        key: theirs[key] | value if isinstance(value, dict) and isinstance(theirs.get(key), dict) else value
        for key, value in own.items()
    }
