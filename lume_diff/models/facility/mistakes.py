"""What is wrong with a mapping, all of it at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from lume_diff.errors import LumeDiffError, ValidationError

Location = tuple[str | int, ...]

#: How many names a message has before it counts the rest.
_NAMED = 12


class MappingError(ValidationError):
    """A mapping that does not fit its model.

    Attributes:
        mistakes: where each mistake is in the mapping, as keys and indices from its top, and what it is.
    """

    mistakes: tuple[tuple[Location, str], ...] = ()


class Mistakes:
    """Collect mistakes; one that many elements share is told once, with their names."""

    def __init__(self) -> None:
        self._found: dict[tuple[Location, str], list[str]] = {}

    def add(self, where: Location, what: str, name: str = "") -> None:
        """Note a mistake, and the name of the element or variable that it is about."""
        names = self._found.setdefault((where, what), [])
        if name and name not in names:
            names.append(name)

    @contextmanager
    def noted(self, where: Location, name: str = "") -> Iterator[None]:
        """Note an error of this package instead of raising it."""
        try:
            yield
        except LumeDiffError as error:
            self.add(where, str(error), name)

    def __bool__(self) -> bool:
        return bool(self._found)

    def refuse(self) -> None:
        """Raise if there are any.

        Raises:
            MappingError: with all of them.
        """
        if not self._found:
            return
        found = tuple((where, what + _words(names)) for (where, what), names in self._found.items())
        lines = [f"{'.'.join(map(str, where)) or 'mapping'}: {what}" for where, what in found]
        head = f"the facility mapping has {len(found)} mistake{'s' if len(found) > 1 else ''}:\n  "
        error = MappingError(head + "\n  ".join(lines))
        error.mistakes = found
        raise error


def _words(names: list[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f" [{', '.join(names[:_NAMED])}{more}]"
