"""YAML and JSON texts as plain data and back, by rules that hand-written files can rely on.

PyYAML reads YAML 1.1, where ``off`` is false, ``1e-3`` a text, ``12:30`` a number and ``2024-01-01`` a date. Option
names and limits are written by hand, so files are read by the rules of YAML 1.2; what is written is quoted wherever
the two differ, and so reads the same everywhere. Only plain data are created.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from lume_diff.errors import ValidationError

_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_SafeDumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)

_FLOAT = re.compile(
    r"(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z"
)
_INT = re.compile(r"(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)\Z")
_BOOL = re.compile(r"(?:true|True|TRUE|false|False|FALSE)\Z")
_NULL = re.compile(r"(?:~|null|Null|NULL|)\Z")
_MERGE = re.compile(r"<<\Z")


class _Loader(_SafeLoader):
    """Read by YAML 1.2's rules and refuse a key that is there twice."""

    yaml_implicit_resolvers: dict[str, list[Any]] = {}  # noqa: RUF012  (PyYAML's own name and kind)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Return a mapping, all of whose keys differ."""
        seen: set[str] = set()
        for key, _ in getattr(node, "value", ()):
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value!r} is twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


class _Dumper(_SafeDumper):
    """Quote what either version of YAML would read as something else."""


def _construct_int(loader: Any, node: Any) -> int | float:
    return _whole(loader.construct_scalar(node))


def _whole(text: str) -> int | float:
    try:
        return int(text, 0) if text[:2] in ("0o", "0x") else int(text)
    except ValueError:  # of more digits than Python turns into an integer
        return float(text)


_RESOLVERS: tuple[tuple[str, re.Pattern[str], list[str]], ...] = (
    ("bool", _BOOL, list("tTfF")),
    ("int", _INT, list("-+0123456789")),
    ("float", _FLOAT, list("-+0123456789.")),
    ("null", _NULL, ["~", "n", "N", ""]),
    ("merge", _MERGE, ["<"]),
)
for _tag, _pattern, _first in _RESOLVERS:
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _pattern, _first)
    _Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _pattern, _first)
_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)


def plain_scalar(text: str) -> Any:
    """Return what an unquoted word of a YAML text means: a number, a truth value, None, or the word itself.

    Example:
        >>> plain_scalar("1e-3"), plain_scalar("on"), plain_scalar("true")
        (0.001, 'on', True)
    """
    if _NULL.match(text):
        return None
    first = text[0]
    if first in "+-.0123456789":
        if _INT.match(text):
            return _whole(text)
        if _FLOAT.match(text):
            bare = text.lower()
            return float(bare.replace(".inf", "inf").replace(".nan", "nan") if bare.endswith(("inf", "nan")) else bare)
    elif first in "tTfF" and _BOOL.match(text):
        return first in "tT"
    return text


def dump_yaml(data: Any) -> str:
    """Return plain data as YAML text, in the order given."""
    return str(yaml.dump(data, Dumper=_Dumper, default_flow_style=None, sort_keys=False, allow_unicode=True))


def load_yaml(text: str | Path) -> Any:
    """Return the plain data of a YAML text, or of the file at a `pathlib.Path`.

    Raises:
        ValidationError: not YAML, or a key is there twice; the message has the line.
    """
    try:
        return yaml.load(_read(text), Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValidationError(f"{_origin(text)} is not valid YAML: {' '.join(str(error).split())}") from None


def dump_json(data: Any) -> str:
    """Return plain data as JSON text, in the order given."""
    return json.dumps(data, allow_nan=False, ensure_ascii=False)


def load_json(text: str | Path) -> Any:
    """Return the plain data of a JSON text, or of the file at a `pathlib.Path`.

    Raises:
        ValidationError: not JSON, or a key is there twice; the message has the line or the key.
    """

    def all_differ(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise ValidationError(f"{_origin(text)} is not valid JSON: the key {twice!r} is twice")
        return found

    try:
        return json.loads(_read(text), object_pairs_hook=all_differ)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValidationError(f"{_origin(text)} is not valid JSON: {error}") from None


def _read(text: str | Path) -> str:
    return text.read_text(encoding="utf-8") if isinstance(text, Path) else text


def _origin(text: str | Path) -> str:
    return f"the file {text}" if isinstance(text, Path) else "the text"
