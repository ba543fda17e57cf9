"""Changes of a machine file from the command line: ``stages.injector=surrogate.yaml``."""

from __future__ import annotations

from typing import Any

from lume_diff.errors import ValidationError
from lume_diff.machine.nodes import Node, Unreadable, parse
from lume_diff.machine.problems import Problem

#: Sections whose keys are names of variables, dots included.
_NAMES = ("set",)


def parse_change(text: str) -> tuple[str, Any]:
    """Return the place and the value of ``PLACE=VALUE``; the value is YAML.

    Raises:
        ValidationError: for a text that is not of that form.

    Example:
        >>> parse_change("stages.linac.controls=[Q1.k1]")
        ('stages.linac.controls', ['Q1.k1'])
    """
    place, equals, value = text.partition("=")
    problems: list[Problem] = []
    if not equals or not place.strip():
        raise ValidationError(f"--set {text!r}: expected PLACE=VALUE, such as --set stages.injector=surrogate.yaml")
    try:
        node = parse(value, problems, line=0)
    except Unreadable as error:
        problems.append(error.problem)
    if problems:
        raise ValidationError(f"--set {text!r}: the value {problems[0].message}")
    return place.strip(), node.plain()


def change(root: Node, place: str, value: Any) -> Problem | None:
    """Put a value in a place of a file; return what is wrong with the place, None for nothing.

    Args:
        root: of the file.
        place: keys, joined by dots. Keys may have dots themselves where they stand in the file already.
        value: plain data.

    What an alias (``*name``) shares with another place is changed in this place only.
    """
    node, rest = root, place.split(".")
    passed: list[str] = []
    while True:
        if node.value is None:  # a section that is named and left empty
            node.value = {}
        if not isinstance(node.value, dict):
            return Problem(0, place, f"{'.'.join(passed) or 'the file'} has no parts to change")
        count = next((n for n in range(len(rest), 0, -1) if ".".join(rest[:n]) in node.value), None)
        if passed and passed[-1] in _NAMES and count is None:
            count = len(rest)
        count = count or 1
        key = ".".join(rest[:count])
        if count == len(rest):
            node.value[key] = to_node(value)
            node.key_lines[key] = 0
            return None
        if key in node.value:
            node.value[key] = node.value[key].copy()
        else:
            node.value[key] = Node({}, 0)
            node.key_lines[key] = 0
        node, rest, passed = node.value[key], rest[count:], [*passed, key]


def to_node(value: Any) -> Node:
    """Return plain data as a node that was said on the command line."""
    if isinstance(value, dict):
        node = Node({str(key): to_node(child) for key, child in value.items()}, 0)
        node.key_lines = dict.fromkeys(node.value, 0)
        return node
    if isinstance(value, (list, tuple)):
        return Node([to_node(child) for child in value], 0)
    return Node(value, 0)
