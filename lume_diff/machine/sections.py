"""Sections: the parts of a machine file, each checked by pydantic, with mistakes told by their line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field
from pydantic import ValidationError as PydanticError

from lume_diff.errors import nearest_names, shortened
from lume_diff.machine.nodes import Node
from lume_diff.machine.problems import Problem


class Section(BaseModel):
    """A part of a file; it knows its fields, takes no others, and a number is not made from a text."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, defer_build=True)

    def dumped(self) -> dict[str, Any]:
        """Return the fields that were given as plain data."""
        return self.model_dump(exclude_unset=True)


class FileMark:
    """Mark a text as the path of a file, relative to the folder of the machine file.

    Attributes:
        exists: whether it must be there already.
    """

    def __init__(self, exists: bool = True) -> None:
        self.exists = exists


#: A file that is read; a file that is written.
File = Annotated[str, Field(min_length=1, description="a file, relative to this one"), FileMark()]
OutFile = Annotated[str, Field(min_length=1, description="a file to write, relative to this one"), FileMark(False)]

Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]
#: What an input can be set to in a file.
Setting = bool | int | float | str | list[Any]

Kind = TypeVar("Kind", bound=BaseModel)


def read_section(kind: type[Kind], node: Node, where: str, problems: list[Problem]) -> Kind | None:
    """Read a section; mistakes are appended to ``problems``.

    Fields with mistakes are left out and the rest is read all the same, so that more mistakes are found in one go;
    None is returned where that cannot be.
    """
    if node.broken:
        return None
    if not isinstance(node.value, dict):
        fields = ", ".join(list(kind.model_fields)[:6])
        problems.append(Problem(node.line, where, f"is {shown(node)}; expected a mapping with fields such as {fields}"))
        return None
    data = node.plain()
    try:
        return kind.model_validate(data)
    except PydanticError as error:
        details = error.errors(include_url=False)
    problems += _told(details, node, where, kind)
    wrong = {detail["loc"][0] for detail in details if detail["loc"]}
    try:
        return kind.model_validate({key: value for key, value in data.items() if key not in wrong})
    except PydanticError:
        return None


def _told(details: list[Any], node: Node, where: str, kind: type[BaseModel]) -> Iterator[Problem]:
    """Yield the mistakes that pydantic has found, of those of the members of a union the first."""
    seen = set()
    for detail in details:
        loc = tuple(detail["loc"])
        line, path, broken = _place(loc, node)
        if broken or path in seen:
            continue
        seen.add(path)
        message = str(detail["msg"]).removeprefix("Value error, ")
        if detail["type"] == "extra_forbidden":
            message = f"is not known here{nearest_names(str(loc[-1]), _known(loc, kind))}"
        elif detail["type"] == "missing":
            message = "is missing: add it"
        elif detail["type"] != "value_error":
            message = f"is {shortened(repr(detail['input']))}: {message[:1].lower()}{message[1:]}"
        yield Problem(line, ".".join(filter(None, (where, path))), message)


def _place(loc: tuple[Any, ...], node: Node) -> tuple[int, str, bool]:
    """Return the line and the path of what pydantic names, and whether it was refused before."""
    line, path, here = node.line, "", node
    for part in loc:
        following = here.child(part)
        if following is None:
            if part is loc[-1] and isinstance(part, str) and isinstance(here.value, dict):
                path += f".{part}"
            continue  # a name that pydantic puts in between, of a member of a union
        line = here.line_of(part) if isinstance(part, str) else following.line
        path += f"[{part}]" if isinstance(part, int) else f".{part}"
        here = following
        if here.broken:
            return line, path, True
    return line, path.removeprefix("."), here.broken


def _known(loc: tuple[Any, ...], kind: type[BaseModel]) -> list[str]:
    """Return the fields that may stand where an unknown one does."""
    for part in loc[:-1]:
        field = kind.model_fields.get(str(part))
        inside = next(_sections_in(field.annotation), None) if field is not None else None
        kind = inside or kind
    return list(kind.model_fields)


def _sections_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _sections_in(part)


def file_fields(section: Section | type[Section]) -> Iterator[tuple[str, FileMark]]:
    """Yield the names of the fields of a section that are paths of files, with their marks."""
    kind = section if isinstance(section, type) else type(section)
    for name, field in kind.model_fields.items():
        for mark in (*field.metadata, *_marks_in(field.annotation)):
            if isinstance(mark, FileMark):
                yield name, mark
                break


def _marks_in(annotation: Any) -> Iterator[FileMark]:
    for mark in getattr(annotation, "__metadata__", ()):
        if isinstance(mark, FileMark):
            yield mark
    for part in get_args(annotation):
        yield from _marks_in(part)


def shown(node: Node) -> str:
    """Return a value for a message."""
    return shortened(repr(node.plain()))
