"""Bmad and Elegant files, which are made of the same kind of statements."""

from __future__ import annotations

import bisect
import importlib
import os
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lume_diff.errors import LatticeError, PhysicsWarning, nearest_names
from lume_diff.models.line.lattice_reading import converting, failing_as, lattice_error, read_text, reason

if TYPE_CHECKING:
    import cheetah


@dataclass(frozen=True)
class _Statement:
    text: str
    path: Path
    line: int

    def error(self, problem: str) -> LatticeError:
        return lattice_error(self.path, problem, self.line)


def read_statements(path: Path, name: str | None, code: str) -> cheetah.Segment:
    from cheetah.converters.utils.fortran_namelist import parse_lines

    statements = _statements(path)
    texts = [statement.text for statement in statements]
    with converting():
        with failing_as(lambda error: _unread_statement(statements, parse_lines, error)):
            context = parse_lines(texts)
        reader = _StatementReader(path, code, context, statements)
        segment = reader.segment(_root_line(path, context, name), ())
    cavities = [e.name for e in segment.flattened().elements if type(e).__name__ == "TransverseDeflectingCavity"]
    if cavities:
        warnings.warn(
            f"lattice file {str(path)!r}: Cheetah takes the phase of {', '.join(cavities)}, which Elegant has in "
            f"degrees, for turns: set {cavities[0]}.phase",
            PhysicsWarning,
            stacklevel=3,
        )
    return segment


def _statements(path: Path) -> list[_Statement]:
    """Return the statements of a file and of those it calls, joined and split as Cheetah does, with their lines."""
    lines = list(_lines(path, ()))
    for mark, is_kept in (("&", False), (",", True), ("{", True)):
        joined: list[_Statement] = []
        for line in lines:
            if joined and joined[-1].text.endswith(mark):
                before = joined[-1].text if is_kept else joined[-1].text[:-1]
                joined[-1] = replace(joined[-1], text=before + line.text)
            else:
                joined.append(line)
        lines = [replace(line, text=line.text.strip()) for line in joined]
    parts = [replace(line, text=part.strip()) for line in lines for part in line.text.split("#")[0].split(";")]
    return [part for part in parts if part.text]


def _lines(path: Path, callers: tuple[Path, ...]) -> Iterator[_Statement]:
    """Yield lines without comments, in lower case, and in place of a call those of the file called."""
    for number, raw in enumerate(read_text(path).splitlines(), start=1):
        line = _Statement(raw.partition("!")[0].strip(), path, number)
        call = re.fullmatch(r"(?:call\s*,\s*file\s*=|#include:)\s*(.+)", line.text, re.IGNORECASE)
        if call:
            called = path.parent / os.path.expandvars(call[1].strip("\"' "))
            if called.resolve() in (path.resolve(), *callers):
                raise line.error(f"calls {str(called)!r}, which is being read already")
            if not called.is_file():
                raise line.error(f"calls {str(called)!r}, which is not a file")
            yield from _lines(called, (*callers, path.resolve()))
        elif line.text:
            yield replace(line, text=line.text.lower())


def _unread_statement(
    statements: Sequence[_Statement], parse: Callable[[list[str]], Any], error: Exception
) -> LatticeError:
    """Return the error for the first statement that the parser refuses."""
    texts = [statement.text for statement in statements]

    def is_refused(last: int) -> bool:
        try:
            parse(texts[: last + 1])
        except Exception:
            return True
        return False

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bad = statements[bisect.bisect_left(range(len(texts)), True, key=is_refused)]
    if bad.text.startswith("&"):
        return bad.error(
            f"{bad.text!r:.80} is a command of Elegant; expected the lattice that the commands load (.lte)"
        )
    why = "" if "not understood" in str(error) else f" ({reason(error)})"
    return bad.error(
        f"cannot read {bad.text!r:.80}{why}; expected 'name: class, attribute=value', 'name: line=(a, b)', "
        "'variable=value', 'element[attribute]=value' or 'use, name'"
    )


def _root_line(path: Path, context: dict[str, Any], name: str | None) -> str:
    lines = {key: value for key, value in context.items() if isinstance(value, list)}
    if not lines:
        raise lattice_error(path, "defines no line; expected 'name: line=(a, b)'")
    wanted = context.get("__use__") if name is None else name.lower()
    if wanted is None:
        used = {member.removeprefix("-") for members in lines.values() for member in members}
        free = [line for line in lines if line not in used]
        if len(free) == 1:
            return free[0]
        raise lattice_error(path, f"defines the lines {', '.join(map(repr, lines))}; say with name= which one to read")
    if wanted not in lines:
        raise lattice_error(path, f"has no line {wanted!r}{nearest_names(wanted, lines)}")
    return wanted


@dataclass(frozen=True)
class _StatementReader:
    path: Path
    code: str
    context: dict[str, Any]
    statements: Sequence[_Statement]

    def error(self, name: str, problem: str) -> LatticeError:
        defined = [s for s in self.statements if re.match(rf'"?{re.escape(name)}"?\s*:', s.text)]
        return defined[-1].error(problem) if defined else lattice_error(self.path, problem)

    def segment(self, line: str, inside: tuple[str, ...]) -> cheetah.Segment:
        import cheetah

        if line in inside:
            raise self.error(line, f"line {line!r} contains itself")
        parts = []
        for member in self.context[line]:
            name = member.removeprefix("-") if self.code == "elegant" else member
            found = self.context.get(name)
            if isinstance(found, list):
                part = self.segment(name, (*inside, line))
                parts.append(part if name == member else part.reversed())
            elif isinstance(found, dict) and "element_type" in found:
                parts.append(self.element(name, found))
            else:
                known = [key for key, value in self.context.items() if isinstance(value, (dict, list))]
                raise self.error(line, f"line {line!r} has {name!r}, which is not defined{nearest_names(name, known)}")
        return cheetah.Segment(parts, name=line, sanitize_name=False)

    def element(self, name: str, properties: dict[str, Any]) -> cheetah.Element:
        converter = importlib.import_module(f"cheetah.converters.{self.code}")
        with failing_as(lambda error: self.error(name, _unconverted(name, properties, error))):
            return converter.convert_element(name, self.context, sanitize_name=False, dtype=torch.float64)


def _unconverted(name: str, properties: dict[str, Any], error: Exception) -> str:
    what = f"{properties['element_type']} {name!r}"
    if isinstance(error, KeyError):
        return f"{what} has no {error.args[0]!r}, which Cheetah needs even where there is a default: write it"
    words = ("element_type", "type", "alias", "group", "descrip", "filename")
    wrong = [f"{key}={value!r}" for key, value in properties.items() if isinstance(value, str) and key not in words]
    if wrong and not isinstance(error, ValueError):
        return f"{what} has {', '.join(wrong)}; expected a number or an expression of variables defined above"
    return f"{what} cannot be converted: {reason(error)}"
