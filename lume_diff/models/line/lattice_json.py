"""LatticeJSON files."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

import torch

from lume_diff.errors import LatticeError, nearest_names
from lume_diff.models.line.lattice_reading import converting, failing_as, lattice_error, reason

if TYPE_CHECKING:
    import cheetah


def read_json(path: Path, text: str, name: str | None) -> cheetah.Segment:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise lattice_error(path, f"{twice!r} is defined twice; expected every name once")
        return found

    try:
        content = json.loads(text, object_pairs_hook=unique)
    except json.JSONDecodeError as error:
        raise lattice_error(path, f"is not JSON: {error.msg}, column {error.colno}", error.lineno) from error
    except RecursionError as error:
        raise lattice_error(path, "is nested too deeply") from error
    kinds = {"root": (str, "a name"), "lattices": (dict, "an object"), "elements": (dict, "an object")}
    for key, (kind, expected) in kinds.items():
        if not isinstance(content, dict) or not isinstance(content.get(key), kind):
            raise lattice_error(
                path, f"is JSON but not LatticeJSON: {key!r} is missing or not {expected}; expected {list(kinds)}"
            )
    reader = _JsonReader(path, text, content["lattices"], content["elements"])
    root = content["root"] if name is None else name
    if root not in reader.lattices:
        word = "root" if name is None else "name"
        raise lattice_error(
            path, f"{word} is {root!r}, which is not one of the lattices{nearest_names(root, reader.lattices)}"
        )
    with converting():
        return reader.segment(root, ())


@dataclass(frozen=True)
class _JsonReader:
    path: Path
    text: str
    lattices: dict[str, Any]
    elements: dict[str, Any]

    def error(self, name: str, problem: str) -> LatticeError:
        found = re.search(rf"{re.escape(json.dumps(name, ensure_ascii=self.text.isascii()))}\s*:\s*\[", self.text)
        return lattice_error(self.path, problem, self.text.count("\n", 0, found.start()) + 1 if found else None)

    def segment(self, name: str, inside: tuple[str, ...]) -> cheetah.Segment:
        import cheetah

        members = self.lattices[name]
        if name in inside:
            raise self.error(name, f"lattice {name!r} contains itself")
        if not isinstance(members, list) or not all(isinstance(member, str) for member in members):
            raise self.error(name, f"lattice {name!r} is {members!r:.80}; expected a list of names")
        for member in members:
            if member not in self.lattices and member not in self.elements:
                known = [*self.elements, *self.lattices]
                raise self.error(
                    name, f"lattice {name!r} has {member!r}, which is not defined{nearest_names(member, known)}"
                )
        parts = [
            self.segment(member, (*inside, name)) if member in self.lattices else self.element(member, ())
            for member in members
        ]
        return cheetah.Segment(parts, name=name, sanitize_name=False)

    def element(self, name: str, inside: tuple[str, ...]) -> cheetah.Element:
        match self.elements[name]:
            case [str(kind), dict(given)]:
                pass
            case other:
                raise self.error(name, f"element {name!r} is {other!r:.80}; expected [class, {{parameter: value}}]")
        if name in inside:
            raise self.error(name, f"element {name!r} contains itself")
        classes = _element_classes()
        if kind not in classes:
            raise self.error(name, f"element {name!r} has the unknown class {kind!r}{nearest_names(kind, classes)}")
        known = dict(inspect.signature(classes[kind]).parameters)
        for own in ("name", "sanitize_name", "device", "dtype"):
            known.pop(own, None)
        for key in given:
            if key not in known:
                raise self.error(name, f"{kind} {name!r} has no parameter {key!r}{nearest_names(key, known)}")
        for key, parameter in known.items():
            if parameter.default is parameter.empty and key not in given:
                raise self.error(name, f"{kind} {name!r} has no {key!r}, which is required")
        values = {key: self.value(name, key, value, known[key].annotation, inside) for key, value in given.items()}
        with failing_as(lambda error: self.error(name, f"{kind} {name!r} cannot be built: {reason(error)}")):
            return classes[kind](**values, name=name, sanitize_name=False)

    def value(self, name: str, key: str, value: Any, annotation: Any, inside: tuple[str, ...]) -> Any:
        """Return a parameter as Cheetah wants it; LatticeJSON of other tools has whole numbers for numbers."""
        import cheetah

        accepted = get_args(annotation) if isinstance(annotation, UnionType) else (annotation,)
        if value is None and NoneType in accepted:
            return None
        if torch.Tensor in accepted:
            expected = "two numbers, x and y" if key in ("misalignment", "pixel_size") else "a number"
            numbers = _numbers(value)
            if numbers is not None and (expected == "a number" or numbers.shape[-1:] == (2,)):
                return numbers
        elif cheetah.Element in accepted:
            expected = "the name of an element"
            if isinstance(value, str) and value in self.elements:
                return self.element(value, (*inside, name))
        elif get_origin(annotation) is Literal:
            expected = " or ".join(map(repr, get_args(annotation)))
            if value in get_args(annotation):
                return value
        else:
            kind = get_origin(accepted[0]) or accepted[0]
            count = len(get_args(accepted[0]))
            words = {bool: "true or false", int: "a whole number", tuple: f"{count} whole numbers", dict: "an object"}
            expected = words.get(kind, "")
            if kind is tuple and isinstance(value, list) and [type(entry) for entry in value] == [int] * count:
                return tuple(value)
            if not expected or type(value) is kind:
                return value
        raise self.error(name, f"{key} of {name!r} is {value!r:.80}; expected {expected}")


def _numbers(value: Any) -> torch.Tensor | None:
    """Return numbers, nested at will, as a tensor; None for anything else and for NaN."""
    try:
        numbers = torch.tensor(value, dtype=torch.float64)
        is_number = torch.tensor(value).dtype != torch.bool
    except (TypeError, ValueError, RuntimeError):
        return None
    return numbers if is_number and numbers.numel() and not numbers.isnan().any() else None


def _element_classes() -> dict[str, Callable[..., cheetah.Element]]:
    import cheetah

    return {
        name: value
        for name, value in vars(cheetah).items()
        if isinstance(value, type)
        and issubclass(value, cheetah.Element)
        and value not in (cheetah.Element, cheetah.Segment)
    }
