"""Site: where the files of a machine are, which of them may be opened, and what stands upstream."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lume_diff.errors import ValidationError
from lume_diff.machine.nodes import Node
from lume_diff.machine.problems import Problem
from lume_diff.machine.sections import Section, file_fields

if TYPE_CHECKING:
    from lume_diff.models import LUMEModel


@dataclass(frozen=True)
class Site:
    """Where a machine file stands.

    Attributes:
        folder: of the file; paths in it start there.
        outside: whether they may leave it.
        trust: whether files that are programs may be run: True, False, or what the file says if None.
        upstream: the model that hands its beam to the one that is built.
        within: machine files that are being read, the outermost first.
    """

    folder: Path
    outside: bool = False
    trust: bool | None = None
    upstream: LUMEModel | None = None
    within: tuple[Path, ...] = ()

    def behind(self, upstream: LUMEModel | None) -> Site:
        """Return the site of the next stage."""
        return replace(self, upstream=upstream)

    def path(self, file: str) -> Path:
        """Return where a file is.

        Raises:
            ValidationError: if it is outside the folder and may not be.
        """
        if not self.outside and self.leaves(file):
            raise ValidationError(f"{file!r} {OUTSIDE}")
        return self.folder / file

    def leaves(self, file: str) -> bool:
        """Tell whether a path ends outside the folder, links followed."""
        try:
            return not (self.folder / file).resolve().is_relative_to(self.folder.resolve())
        except (OSError, ValueError, RuntimeError):
            return True

    def allows(self, given: bool) -> bool:
        """Tell whether a file that is a program may be run, given what stands in the machine file."""
        return given if self.trust is None else self.trust

    def file_problems(self, kind: type[Section], node: Node, where: str) -> list[Problem]:
        """Return what is wrong with the files that a section names."""
        found = []
        for name, mark in file_fields(kind):
            given = node.child(name)
            if given is None or given.broken or not isinstance(given.value, str) or not given.value:
                continue
            if problem := self.wrong(given.value, mark.exists):
                found.append(Problem(node.line_of(name), f"{where}.{name}".removeprefix("."), problem))
        return found

    def wrong(self, file: str, exists: bool = True) -> str | None:
        """Return what is wrong with a path, None for nothing."""
        if not self.outside and self.leaves(file):
            return f"{file!r} {OUTSIDE}"
        path = self.folder / file
        if exists and not path.is_file():
            return f"there is no file {file!r} in {str(self.folder)!r}"
        if not exists and not path.parent.is_dir():
            return f"there is no folder {str(path.parent)!r} to write {file!r} in: make it first"
        return None


OUTSIDE = "is outside the folder of this file: move it inside, or say 'allow_outside: true' in the file"


def beam_of(upstream: LUMEModel | None) -> Any:
    """Return the beam that a model hands over, None where it has none."""
    if upstream is None:
        return None
    for name in ("final_particles", "final_moments"):
        if name in upstream.output_names:
            return upstream.get(name)
    return None
