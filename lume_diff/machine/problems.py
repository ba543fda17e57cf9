"""What is wrong with a file: where, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from lume_diff.errors import ValidationError


class Problem(NamedTuple):
    """One mistake.

    Attributes:
        line: in the file, counted from 1; 0 for what was said on the command line.
        where: path of the field, such as ``stages.linac.lattice``; empty for the whole file.
        message: what was found, what was expected, and the fix.
        file: its name, where it is another file that the first one names.
    """

    line: int
    where: str
    message: str
    file: str = ""

    def __str__(self) -> str:
        place = f"line {self.line}" if self.line else "command line"
        return ": ".join(part for part in (self.file, place, self.where, self.message) if part)


def raise_problems(title: str, problems: Iterable[Problem]) -> None:
    """Raise one error for all mistakes, or none for none.

    Raises:
        ValidationError: with a line for each.
    """
    found = sorted_problems(problems)
    if len(found) == 1:
        raise ValidationError(f"{title}, {found[0]}")
    if found:
        raise ValidationError("\n  ".join([f"{title} has {len(found)} mistakes:", *lines_of(found)]))


def lines_of(problems: Iterable[Problem]) -> list[str]:
    """Return one line for each mistake."""
    return [" ".join(str(problem).split()) for problem in problems]


def sorted_problems(problems: Iterable[Problem]) -> list[Problem]:
    """Return mistakes in the order of the lines, each once."""
    return sorted(dict.fromkeys(problems), key=lambda problem: (problem.file, problem.line))
