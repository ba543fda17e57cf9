"""YAML files whose faults are told with their line, their field and the fix."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict
from pydantic import ValidationError as PydanticError

from lume_diff.errors import ValidationError, nearest_names

_SHOWN = 5


class Section(BaseModel):
    """A part of a file; a field that it does not know is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Config = TypeVar("Config", bound=Section)


def read_config(path: Path, kind: type[Config]) -> Config:
    """Read and check a YAML file.

    Args:
        path: of the file.
        kind: what it must hold.

    Raises:
        ValidationError: with the file, the line, the field, what was found and what was expected.

    Example:
        >>> from lume_diff.calibration.fit.configuration import CalibrationConfig
        >>> read_config(Path("fit.yaml"), CalibrationConfig)  # doctest: +SKIP
    """
    import yaml

    if not path.is_file():
        raise ValidationError(f"configuration {str(path)!r} does not exist; name a YAML file")
    text = path.read_text(encoding="utf-8")
    try:
        tree, content = yaml.compose(text, yaml.SafeLoader), yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValidationError(f"{path} is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise ValidationError(f"{path}: expected the sections {', '.join(kind.model_fields)}, received {content!r}")
    try:
        return kind.model_validate(content)
    except PydanticError as error:
        problems = error.errors(include_url=False)
    shown = "; ".join(_told(problem, tree, kind) for problem in problems[:_SHOWN])
    more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
    raise ValidationError(f"{path}: {shown}{more}")


def _told(problem: Any, tree: Any, kind: type[Section]) -> str:
    """Return line, field and fault of one thing that pydantic refuses."""
    field, line = _place(problem["loc"], tree)
    message = str(problem["msg"]).removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        message = f"is not known here{nearest_names(str(problem['loc'][-1]), _known(problem['loc'], kind))}"
    elif problem["type"] == "missing":
        message = "is missing: add it"
    elif problem["type"] == "union_tag_not_found":
        message = "has no 'kind': add it"
    elif problem["type"] == "union_tag_invalid":
        message = f"kind is {problem['ctx']['tag']!r}; expected {problem['ctx']['expected_tags']}"
    elif problem["type"] != "value_error":
        message = f"is {problem['input']!r}: {message[0].lower()}{message[1:]}"
    return f"line {line}: {field or 'the file'}: {message}"


def _place(loc: tuple[Any, ...], tree: Any) -> tuple[str, int]:
    """Return the field's path as the file has it, and its line; pydantic puts names of its own between."""
    import yaml

    node, path, line = tree, "", 1
    for part in loc:
        if isinstance(node, yaml.MappingNode):
            found = next(((key, value) for key, value in node.value if key.value == str(part)), None)
            if found is not None:
                line, node = found[0].start_mark.line + 1, found[1]
            if found is not None or (part is loc[-1] and isinstance(part, str)):
                path += f".{part}" if path else str(part)
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
            path += f"[{part}]"
    return path, line


def _known(loc: tuple[Any, ...], kind: type[Section]) -> list[str]:
    """Return the names that may stand where an unknown one does."""
    for part in reversed(loc[:-1]):
        for section in _sections(kind):
            if part in _tags(section) or part == section.__name__:
                return list(section.model_fields)
        if part in kind.model_fields:
            inside = next(_sections_in(kind.model_fields[str(part)].annotation), None)
            return [] if inside is None else list(inside.model_fields)
    return list(kind.model_fields)


def _sections(kind: type[Section]) -> Iterator[type[Section]]:
    """Yield all sections that a section can hold, at any depth."""
    for field in kind.model_fields.values():
        for section in _sections_in(field.annotation):
            yield section
            yield from _sections(section)


def _sections_in(annotation: Any) -> Iterator[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for part in get_args(annotation):
        yield from _sections_in(part)


def _tags(section: type[Section]) -> tuple[Any, ...]:
    """Return what ``kind`` may say for a section."""
    field = section.model_fields.get("kind")
    return get_args(field.annotation) if field is not None and get_origin(field.annotation) is Literal else ()
