"""YAML texts as plain data that know their lines; nothing is made from them but mappings, lists and scalars.

The text is read event by event, without recursion: tags are refused, every key may stand once, and size, depth and
what aliases unfold to are bounded. Plain scalars are read by YAML 1.2's rules: ``1e-3`` is a number, ``on`` a word.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from lume_diff.machine.problems import Problem
from lume_diff.variables.text import plain_scalar

LARGEST_FILE = 8_000_000  # bytes
MOST_NODES = 300_000  # with what aliases stand for
DEEPEST = 32

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Node:
    """One value of a file.

    Attributes:
        value: a dictionary of nodes, a list of nodes, or a text, number, truth value or None.
        line: where it stands, counted from 1; 0 for what was said on the command line.
        broken: whether it was refused, and its value means nothing.
        size: how many nodes it is made of.
    """

    __slots__ = ("broken", "key_lines", "line", "size", "value")

    def __init__(self, value: Any, line: int, broken: bool = False) -> None:
        self.value = value
        self.line = line
        self.broken = broken
        self.size = 1
        self.key_lines: dict[str, int] = {}

    def copy(self) -> Node:
        """Return another node with the same children."""
        other = Node(self.value.copy() if isinstance(self.value, (dict, list)) else self.value, self.line, self.broken)
        other.size, other.key_lines = self.size, dict(self.key_lines)
        return other

    def plain(self) -> Any:
        """Return the value as plain dictionaries, lists and scalars, without broken parts of mappings."""
        if isinstance(self.value, dict):
            return {key: child.plain() for key, child in self.value.items() if not child.broken}
        if isinstance(self.value, list):
            return [child.plain() for child in self.value]
        return self.value

    def child(self, *path: str | int) -> Node | None:
        """Return what stands inside, None where there is nothing."""
        node = self
        for part in path:
            value = node.value
            is_there = part in value if isinstance(value, dict) else isinstance(part, int) and part < _length(value)
            if not is_there:
                return None
            node = value[part]
        return node

    def line_of(self, key: str) -> int:
        """Return the line of a key, or of the mapping where it is not there."""
        return self.key_lines.get(key, self.line)


def _length(value: Any) -> int:
    return len(value) if isinstance(value, list) else 0


class Unreadable(Exception):
    """A text that cannot be read to its end."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(str(problem))
        self.problem = problem


def read_nodes(path: Path, problems: list[Problem]) -> Node | None:
    """Read a file; mistakes are appended to ``problems``, and None is returned where nothing can be read."""
    try:
        if path.stat().st_size > LARGEST_FILE:
            raise Unreadable(Problem(1, "", f"is larger than {LARGEST_FILE} bytes: keep data in files of their own"))
        return parse(path.read_text(encoding="utf-8"), problems)
    except Unreadable as error:
        problems.append(error.problem)
    except FileNotFoundError:
        problems.append(Problem(1, "", f"there is no file {str(path)!r}; name a machine file (YAML)"))
    except (OSError, UnicodeDecodeError) as error:
        problems.append(Problem(1, "", f"{str(path)!r} cannot be read: {error}"))
    return None


def parse(text: str, problems: list[Problem], line: int | None = None) -> Node:
    """Read a text; mistakes that leave the rest readable are appended to ``problems``.

    Args:
        text: YAML, one document.
        problems: is extended.
        line: of all nodes, in place of their own.

    Raises:
        Unreadable: for a text that is no YAML, or too large.
    """
    builder = _Builder(problems, line)
    try:
        for event in yaml.parse(text, Loader=_Loader):
            builder.take(event)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = 1 if mark is None else mark.line + 1
        raise Unreadable(Problem(at if line is None else line, "", f"is no YAML: {error.problem}")) from None
    except yaml.YAMLError as error:
        raise Unreadable(Problem(1, "", f"is no YAML: {' '.join(str(error).split())}")) from None
    return builder.root if builder.root is not None else Node(None, 1)


class _Builder:
    """Put nodes together from YAML's events."""

    def __init__(self, problems: list[Problem], line: int | None) -> None:
        self.problems = problems
        self.line = line
        self.root: Node | None = None
        self.open: list[tuple[Node, str | None]] = []  # containers, with their anchors
        self.keys: list[Node | None] = []  # of each container: the key that waits for its value
        self.anchors: dict[str, Node] = {}
        self.count = 0
        self.documents = 0

    def take(self, event: Any) -> None:
        """Take one event."""
        if isinstance(event, yaml.ScalarEvent):
            self.add(self.scalar(event), event.anchor)
        elif isinstance(event, (yaml.MappingStartEvent, yaml.SequenceStartEvent)):
            is_mapping = isinstance(event, yaml.MappingStartEvent)
            node = Node({} if is_mapping else [], self.at(event))
            self.refuse_tag(event, node)
            if len(self.open) >= DEEPEST:
                raise Unreadable(Problem(node.line, "", f"is nested more than {DEEPEST} deep: flatten it"))
            self.open.append((node, event.anchor))
            self.keys.append(None)
        elif isinstance(event, (yaml.MappingEndEvent, yaml.SequenceEndEvent)):
            node, anchor = self.open.pop()
            self.keys.pop()
            self.add(node, anchor)
        elif isinstance(event, yaml.AliasEvent):
            self.add(self.alias(event), None)
        elif isinstance(event, yaml.DocumentStartEvent):
            self.documents += 1
            if self.documents > 1:
                raise Unreadable(Problem(self.at(event), "", "a second document begins: a file holds one"))

    def at(self, event: Any) -> int:
        return event.start_mark.line + 1 if self.line is None else self.line

    def scalar(self, event: Any) -> Node:
        node = Node(plain_scalar(event.value) if event.implicit[0] else event.value, self.at(event))
        self.refuse_tag(event, node)
        if not self.keys or self.keys[-1] is not None or not isinstance(self.open[-1][0].value, dict):
            return node
        node.value = event.value  # a key is always text
        return node

    def alias(self, event: Any) -> Node:
        found = self.anchors.get(event.anchor)
        if found is None:
            message = f"the alias *{event.anchor} stands for nothing that ends before it: write the value out"
            self.problems.append(Problem(self.at(event), "", message))
            return Node(None, self.at(event), broken=True)
        self.expect(found.size, self.at(event))
        return found

    def expect(self, more: int, line: int) -> None:
        """Count values that come in."""
        self.count += more
        if self.count > MOST_NODES:
            message = f"holds more than {MOST_NODES} values, aliases unfolded: keep data in files of their own"
            raise Unreadable(Problem(line, "", message))

    def refuse_tag(self, event: Any, node: Node) -> None:
        if event.tag is not None and event.tag != "!":
            tag = event.tag.replace("tag:yaml.org,2002:", "!!")
            message = f"the tag {tag!r} is refused: a file holds plain data, and nothing is made from it"
            self.problems.append(Problem(node.line, "", message))
            node.broken = True

    def add(self, node: Node, anchor: str | None) -> None:
        """Put a finished node where it belongs."""
        self.expect(1, node.line)
        if anchor is not None:
            self.anchors[anchor] = node
        if not self.open:
            self.root = node
            return
        parent = self.open[-1][0]
        parent.size += node.size
        if isinstance(parent.value, list):
            parent.value.append(node)
            return
        key = self.keys[-1]
        if key is None:
            self.keys[-1] = node
            return
        self.keys[-1] = None
        self.enter(parent, key, node)

    def enter(self, parent: Node, key: Node, node: Node) -> None:
        name = key.value
        if not isinstance(name, str):
            self.problems.append(Problem(key.line, "", "a key is a list or a mapping; expected a text"))
        elif name == "<<":
            self.problems.append(Problem(key.line, "", "'<<' merges no mappings here: write the fields out"))
        elif name in parent.value:
            first = parent.key_lines[name]
            message = f"{name!r} stands here a second time; the first is in line {first}: keep one"
            self.problems.append(Problem(key.line, "", message))
        else:
            if node.line > key.line:  # a section is where its name is; what an alias stands for is further up
                node.line = key.line
            parent.value[name] = node
            parent.key_lines[name] = key.line
