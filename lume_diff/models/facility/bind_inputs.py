"""The input side of a mapping: setpoints, choices and free inputs against one model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from lume_diff.errors import LumeDiffError, nearest_names
from lume_diff.models.base import LUMEModel
from lume_diff.models.facility.binding import Binding, fields_of, is_number, is_the_same
from lume_diff.models.facility.entries import Free, RegionOfInterest, Setpoint, State
from lume_diff.models.facility.groups import Groups, Link
from lume_diff.models.facility.inputs import Switch
from lume_diff.models.facility.templates import Placed
from lume_diff.models.stage_state import is_equal
from lume_diff.variables import (
    BoolVariable,
    EnumVariable,
    IntVariable,
    StrVariable,
    TorchNDVariable,
    TorchScalarVariable,
    Variable,
)


@dataclass
class BoundInputs:
    """What the inputs of a facility do.

    Attributes:
        links: conversions of setpoints.
        direct: native inputs that are a variable of the facility as it is, ``{native: name}``.
        settings: of choices, by name.
        adds: setpoints that are added to others.
        given: what setpoints start from, where the mapping says so.
    """

    links: list[Link]
    direct: dict[str, str]
    settings: dict[str, dict[str, dict[str, Any]]]
    adds: set[str]
    given: dict[str, Any]

    def switches(self, model: LUMEModel) -> list[Switch]:
        """Return the choices, with values as the model takes them; its own object where it stands there."""
        found = []
        for name, settings in self.settings.items():
            table: dict[str, dict[str, Any]] = {}
            for option, values in settings.items():
                table[option] = {}
                for native, value in values.items():
                    new, now = model._checked_input(native, value), model._setpoints[native]
                    table[option][native] = now if is_equal(now, new) else new
            found.append(Switch(name, table))
        return found


def bind_inputs(binding: Binding) -> BoundInputs:
    """Make the variables of all inputs; what is wrong is noted in the binding."""
    found = BoundInputs([], {}, {}, set(), {})
    users: dict[str, list[tuple[str, Setpoint, Placed]]] = {}
    for name, entry, placed in binding.of_kind(Setpoint):
        for action in entry.actions():
            users.setdefault(action.native, []).append((name, entry, placed))
    uses = {native: len(acting) for native, acting in users.items()}
    for name, entry, placed in binding.of_kind(Setpoint):
        _bind_setpoint(binding, name, entry, placed, uses, found)
    for native, acting in users.items():
        _refuse_rivals(binding, native, acting)
    for name, entry, placed in binding.of_kind(State):
        _bind_state(binding, name, entry, placed, found)
    for name, entry, placed in binding.of_kind(Free):
        _bind_free(binding, name, entry, placed)
    for native in binding.kept():
        if native in binding.native_inputs:
            if native in users:
                binding.mistakes.add(("keep",), f"{native!r} is kept, and set by {users[native][0][0]!r}: drop one")
            found.direct[native] = native
            binding.variables[native] = binding.natives[native]
    return found


def _refuse_rivals(binding: Binding, native: str, acting: list[tuple[str, Setpoint, Placed]]) -> None:
    main = [(name, placed) for name, entry, placed in acting if not entry.adds]
    if len(main) > 1:
        what = f"{native!r} is set by several setpoints: give all but one of them adds: true"
        for name, _ in main:
            binding.mistakes.add(("variables",), what, name)
    elif not main:
        for name, _, placed in acting:
            what = f"{name!r} is to be added to another setpoint of {native!r}, and there is none: drop adds"
            binding.mistakes.add(placed.where, what)


def _bind_setpoint(
    binding: Binding, name: str, entry: Setpoint, placed: Placed, uses: Mapping[str, int], found: BoundInputs
) -> None:
    actions = entry.actions()
    natives = [binding.native(a.native, placed, name, binding.native_inputs, "input") for a in actions]
    if any(native is None for native in natives):
        return
    first: Any = natives[0]
    if not all(is_number(native) for native in natives):
        _bind_as_it_is(binding, name, entry, placed, found, first)
        return
    if any(getattr(n, "shape", ()) != getattr(first, "shape", ()) for n in natives if n is not None):
        binding.mistakes.add(
            placed.where, "the native inputs have different shapes: one setpoint cannot set them", name
        )
        return
    unit = first.unit if entry.unit is None else entry.unit
    links = [
        binding.link(name, placed, action, native, unit)
        for action, native in zip(actions, natives, strict=True)
        if native is not None
    ]
    known = [link for link in links if link is not None]
    if len(known) < len(links):
        return
    if len(known) == 1 and uses[known[0].native] == 1 and is_the_same(known[0]):
        found.direct[known[0].native] = name
    else:
        found.links += known
    if entry.adds:
        found.adds.add(name)
    if entry.default is not None:
        found.given[name] = entry.default
    fields = fields_of(entry, unit)
    limits = known[0].conversion.setpoint_range
    if "value_range" not in fields and limits is not None:
        fields["value_range"] = limits
    if "scale" not in fields and not _is_bounded(fields.get("value_range")):
        fields["scale"] = _scale(binding, known[0], first)
    if isinstance(first, TorchNDVariable):
        fields = {key: value for key, value in fields.items() if key in TorchNDVariable.model_fields}
        binding.add(placed, name, TorchNDVariable, shape=first.shape, **fields)
    else:
        binding.add(placed, name, TorchScalarVariable, **fields)


def _is_bounded(limits: Any) -> bool:
    return limits is not None and None not in limits


def _scale(binding: Binding, link: Link, native: Variable) -> float | None:
    """Return the size of a typical change of a setpoint: that of what it acts on, where the model stands."""
    scale, value = getattr(native, "scale", None), binding.model._setpoints[native.name]
    energy = None if link.energy is None else binding.energy_of(link.energy)
    if scale is None or value is None or (energy is None and link.energy is not None):
        return None
    model = binding.model
    here = value.detach().reshape(-1)[0].to(torch.float64)
    groups = Groups([link], torch.float64, model.device)
    low, high = (groups.to_setpoint([0], [here + step], [energy])[0] for step in (0.0, scale))
    return abs(float(high - low)) or None


def _bind_as_it_is(
    binding: Binding, name: str, entry: Setpoint, placed: Placed, found: BoundInputs, native: Variable
) -> None:
    """Bind a setpoint of what is no number: it is only renamed."""
    action = entry.actions()[0]
    if len(entry.actions()) > 1 or action.conversion is not None or entry.adds:
        what = f"{native.name!r} is a {type(native).__name__}, which can only be renamed: drop conversion and adds"
        binding.mistakes.add(placed.where, what, name)
        return
    found.direct[native.name] = name
    if entry.default is not None:
        found.given[name] = entry.default
    changes = {"description": entry.description} if entry.description else {}
    with binding.mistakes.noted(placed.where, name):
        binding.variables[name] = native.replace(name=name, **changes)


def _bind_state(binding: Binding, name: str, entry: State, placed: Placed, found: BoundInputs) -> None:
    for option, values in entry.settings.items():
        for native, value in values.items():
            variable = binding.native(native, placed, name, binding.native_inputs, "input")
            if variable is not None:
                try:
                    variable.validate_value(value)
                except LumeDiffError as error:
                    binding.mistakes.add((*placed.where, "settings", option), str(error), name)
    found.settings[name] = {option: dict(values) for option, values in entry.settings.items()}
    default = entry.options[0] if entry.default is None else entry.default
    fields = {"options": list(entry.options), "default_value": default, "description": entry.description}
    binding.add(placed, name, EnumVariable, **fields)


def _bind_free(binding: Binding, name: str, entry: Free, placed: Placed) -> None:
    value, base = (
        entry.value,
        {"description": entry.description, "unit": entry.unit or "", "default_value": entry.value},
    )
    if isinstance(value, bool):
        binding.add(placed, name, BoolVariable, **base)
    elif isinstance(value, str):
        binding.add(placed, name, StrVariable, **base)
    else:
        binding.add(placed, name, TorchScalarVariable, **{**base, **fields_of(entry, entry.unit or "")})


def bind_regions(binding: Binding, pixels: dict[str, tuple[int, int]]) -> dict[str, dict[str, str]]:
    """Make the inputs that crop images, and return them by image and side.

    Args:
        binding: gets the variables.
        pixels: rows and columns of every image of the facility.
    """
    found: dict[str, dict[str, str]] = {}
    for name, entry, placed in binding.of_kind(RegionOfInterest):
        if entry.of not in pixels:
            near = nearest_names(entry.of, pixels)
            binding.mistakes.add(placed.where, f"{entry.of!r} is not an image of the facility{near}", name)
            continue
        if entry.side in found.setdefault(entry.of, {}):
            other = found[entry.of][entry.side]
            binding.mistakes.add(placed.where, f"{entry.side} of {entry.of!r} is {other!r} already", name)
            continue
        found[entry.of][entry.side] = name
        count = pixels[entry.of]["yx".index(entry.side[-1])]
        is_size = entry.side.startswith("size")
        limits = (1, count) if is_size else (0, count - 1)
        fields = {"unit": "px", "description": entry.description, "default_value": count if is_size else 0}
        binding.add(placed, name, IntVariable, value_range=limits, **fields)
    return found
