"""Writing a segment as LatticeJSON, every parameter of every element but its metadata."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lume_diff.errors import LatticeError

if TYPE_CHECKING:
    import cheetah

_NOT_WRITTEN = ("name", "sanitize_name", "device", "dtype", "metadata")


def write_json(segment: cheetah.Segment, path: Path) -> None:
    """Write a beamline as a LatticeJSON file that ``read_lattice`` reads back with the same numbers.

    Args:
        segment: the line; lines inside are written as such.
        path: of the file; an existing one is replaced.

    Raises:
        LatticeError: for two elements of one name that differ, one that is called as its line, and one that a file
            cannot hold.

    Example:
        >>> import cheetah, tempfile
        >>> path = Path(tempfile.mkdtemp()) / "line.json"
        >>> write_json(cheetah.Segment([cheetah.Drift(torch.tensor(1.0), name="D1")], name="line1"), path)
        >>> json.loads(path.read_text())["elements"]["D1"]
        ['Drift', {'length': 1.0, 'tracking_method': 'linear'}]
    """
    writer = _Writer()
    writer.add_segment(segment)
    content = {"version": "lume_diff", "root": segment.name, "elements": writer.elements, "lattices": writer.lattices}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


class _Writer:
    def __init__(self) -> None:
        self.elements: dict[str, Any] = {}
        self.lattices: dict[str, list[str]] = {}

    def add_segment(self, segment: cheetah.Segment) -> None:
        import cheetah

        for element in segment.elements:
            if isinstance(element, cheetah.Segment):
                self.add_segment(element)
            else:
                self.add_element(element)
        self.put(self.lattices, segment.name, [element.name for element in segment.elements])
        for name in self.lattices.keys() & self.elements.keys():
            raise LatticeError(f"a line and an element of it are called {name!r}; rename one to write them to a file")

    def add_element(self, element: cheetah.Element) -> None:
        kind = type(element)
        known = [name for name in inspect.signature(kind).parameters if name not in _NOT_WRITTEN]
        missing = [name for name in known if not hasattr(element, name)]
        if missing:
            raise LatticeError(
                f"{kind.__name__} {element.name!r} has no {missing[0]!r} and cannot be written to a file"
            )
        self.put(self.elements, element.name, [kind.__name__, {name: self.plain(element, name) for name in known}])

    def plain(self, element: cheetah.Element, name: str) -> Any:
        import cheetah

        value = getattr(element, name)
        if isinstance(value, cheetah.Element):
            self.add_element(value)
            return value.name
        if isinstance(value, torch.Tensor):
            return value.detach().tolist()
        return list(value) if isinstance(value, tuple) else value

    @staticmethod
    def put(table: dict[str, Any], name: str, value: Any) -> None:
        if table.setdefault(name, value) != value:
            raise LatticeError(
                f"two elements are called {name!r} and differ; a file holds one of each name: rename one"
            )
