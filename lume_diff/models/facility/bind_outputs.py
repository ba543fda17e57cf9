"""The output side of a mapping: readings, readbacks and what is derived from them, against one model."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch

from lume_diff.errors import ValidationError, nearest_names
from lume_diff.models.facility.beam_stops import BeamOrder, BeamStops, Stop, order_of_names
from lume_diff.models.facility.bind_inputs import bind_regions
from lume_diff.models.facility.binding import Binding, fields_of, is_number, is_the_same
from lume_diff.models.facility.entries import ArraySize, Derived, Fixed, Limit, Readback, Reading, State
from lume_diff.models.facility.functions import Function
from lume_diff.models.facility.groups import Link
from lume_diff.models.facility.noise import Draws
from lume_diff.models.facility.outputs import Crop, Shown, no_beam_value
from lume_diff.models.facility.templates import Placed
from lume_diff.variables import (
    BoolVariable,
    IntVariable,
    StrVariable,
    TorchNDVariable,
    TorchScalarVariable,
    Variable,
)

#: The shot whose draws are the offsets that stay.
_ONCE = torch.tensor(-1)


@dataclass
class BoundOutputs:
    """What the outputs of a facility show.

    Attributes:
        links: conversions of readings.
        shown, follows, derived, fixed, crops, sizes, stops, noise, offsets: as in ``OutputPlan``.
        limits: the variable whose limit an output shows, and the end of its range; the number stands in ``fixed``.
    """

    links: list[Link] = field(default_factory=list)
    shown: dict[str, Shown] = field(default_factory=dict)
    follows: dict[str, str] = field(default_factory=dict)
    derived: dict[str, Function] = field(default_factory=dict)
    fixed: dict[str, Any] = field(default_factory=dict)
    limits: dict[str, tuple[str, str]] = field(default_factory=dict)
    crops: dict[str, Crop] = field(default_factory=dict)
    sizes: dict[str, tuple[str, str]] = field(default_factory=dict)
    stops: BeamStops = field(default_factory=lambda: BeamStops(()))
    noise: dict[str, float] = field(default_factory=dict)
    offsets: dict[str, float] = field(default_factory=dict)


def bind_outputs(binding: Binding) -> BoundOutputs:
    """Make the variables of all outputs, and of what crops images; what is wrong is noted in the binding."""
    found = BoundOutputs()
    order = _bind_stops(binding, found)
    for name, entry, placed in binding.of_kind(Reading):
        _bind_reading(binding, name, entry, placed, found, order)
    for native in binding.kept():
        if native not in binding.native_inputs:
            binding.variables[native] = binding.natives[native]
            found.shown[native] = _shown(binding, native, native, None, None, order, Placed(None, ("keep",)))
    _bind_images(binding, found)
    for name, entry, _ in binding.of_kind(Fixed):
        found.fixed[name] = _bind_constant(binding, name, entry)
    _bind_followers(binding, found)
    _bind_derived(binding, found, order)
    for name, entry, placed in binding.of_kind(Limit):
        _bind_limit(binding, name, entry, placed, found)
    _bind_noise(binding, found)
    return found


# -- readings ----------------------------------------------------------------------------------------------------------


def _bind_reading(
    binding: Binding, name: str, entry: Reading, placed: Placed, found: BoundOutputs, order: BeamOrder | None
) -> None:
    native = binding.native(entry.native, placed, name, binding.natives, "variable")
    if native is None:
        return
    if not is_number(native):
        if entry.conversion is not None or entry.unit is not None:
            what = f"{native.name!r} is a {type(native).__name__}, which can only be renamed: drop conversion and unit"
            binding.mistakes.add(placed.where, what, name)
            return
        changes: dict[str, Any] = {"description": entry.description} if entry.description else {}
        changes |= {"default_value": None, "read_only": True, "name": name}
        with binding.mistakes.noted(placed.where, name):
            binding.variables[name] = native.replace(**changes)
        found.shown[name] = _shown(binding, name, native.name, None, entry, order, placed)
        return
    unit = native.unit if entry.unit is None else entry.unit
    link = binding.link(name, placed, entry, native, unit)
    if link is None:
        return
    index = None
    if not is_the_same(link):
        index = len(found.links)
        found.links.append(link)
    found.shown[name] = _shown(binding, name, native.name, index, entry, order, placed)
    _add_number(binding, name, placed, native, unit)


def _add_number(binding: Binding, name: str, placed: Placed, like: Variable, unit: str) -> None:
    """Make the variable of a number that can only be read."""
    fields = fields_of(placed.entry, unit)
    if isinstance(like, TorchNDVariable):
        fields = {key: value for key, value in fields.items() if key in TorchNDVariable.model_fields}
        binding.add(placed, name, TorchNDVariable, read_only=True, shape=like.shape, **fields)
    else:
        binding.add(placed, name, TorchScalarVariable, read_only=True, **fields)


def _shown(
    binding: Binding,
    name: str,
    native: str,
    link: int | None,
    entry: Reading | None,
    order: BeamOrder | None,
    placed: Placed,
) -> Shown:
    variable, is_input = binding.natives[native], native in binding.native_inputs
    shape = tuple(getattr(variable, "shape", ())) if is_number(variable) else None
    place = None
    given = None if entry is None else entry.place
    if order is not None and (given is not None or not is_input):
        with binding.mistakes.noted(placed.where, name):
            element = native.rpartition(".")[0] or ("final" if native.rpartition("/")[2].startswith("final") else "")
            place = order.place(given or element)
    without = None if shape is None else no_beam_value(None if entry is None else entry.without_beam, shape)
    return Shown(native, is_input, link, place, without, shape)


def _bind_images(binding: Binding, found: BoundOutputs) -> None:
    """Bind what crops images and what tells their sizes."""
    shapes: dict[str, tuple[int, ...]] = {
        name: getattr(binding.variables.get(name), "shape", ()) for name in found.shown
    }
    pixels = {name: (shape[0], shape[1]) for name, shape in shapes.items() if len(shape) == 2}
    sides = bind_regions(binding, pixels)
    for name, entry, placed in binding.of_kind(ArraySize):
        if entry.of not in pixels:
            near = nearest_names(entry.of, pixels)
            binding.mistakes.add(placed.where, f"{entry.of!r} is not an image of the facility{near}", name)
            continue
        found.sizes[name] = entry.of, entry.axis
        binding.add(placed, name, IntVariable, read_only=True, unit="px", description=entry.description)
    for image in {*sides, *(of for of, _ in found.sizes.values())}:
        found.crops[image] = Crop(sides.get(image, {}), pixels[image])


# -- what follows other variables of the facility ----------------------------------------------------------------------


def _bind_constant(binding: Binding, name: str, entry: Fixed) -> Any:
    placed, value = binding.entries[name], entry.value
    fields: dict[str, Any] = {"read_only": True, "description": entry.description, "default_value": value}
    if isinstance(value, bool):
        binding.add(placed, name, BoolVariable, **fields)
        return torch.tensor(value)
    if isinstance(value, str):
        binding.add(placed, name, StrVariable, **fields)
        return value
    binding.add(placed, name, TorchScalarVariable, unit=entry.unit or "", **fields)
    return torch.tensor(value, dtype=torch.float64)


def _bind_followers(binding: Binding, found: BoundOutputs) -> None:
    """Bind readbacks, those of readbacks after what they follow."""
    waiting = {name: (entry, placed) for name, entry, placed in binding.of_kind(Readback)}
    late = {name for name, _, _ in binding.of_kind(Derived, Limit)}
    while waiting:
        ready = [name for name, (entry, _) in waiting.items() if entry.of in binding.variables]
        for name in ready:
            entry, placed = waiting.pop(name)
            found.follows[name] = entry.of
            source = binding.variables[entry.of]
            if is_number(source):
                _add_number(binding, name, placed, source, source.unit if entry.unit is None else entry.unit)
                if entry.unit not in (None, source.unit):
                    what = f"its unit is {entry.unit!r} and that of {entry.of!r} is {source.unit!r}: drop the unit"
                    binding.mistakes.add(placed.where, what, name)
            else:
                with binding.mistakes.noted(placed.where, name):
                    text = {"description": entry.description} if entry.description else {}
                    binding.variables[name] = source.replace(name=name, read_only=True, default_value=None, **text)
        if not ready:
            break
    for name, (entry, placed) in waiting.items():
        if entry.of in binding.entries and entry.of not in late and entry.of not in waiting:
            continue  # What is wrong with that one has been noted.
        near = nearest_names(entry.of, [n for n in binding.variables if n not in late])
        binding.mistakes.add(placed.where, f"there is no variable {entry.of!r} to follow{near}", name)


def _bind_derived(binding: Binding, found: BoundOutputs, order: BeamOrder | None) -> None:
    entries = {name: (entry, placed) for name, entry, placed in binding.of_kind(Derived)}
    waiting = dict(entries)
    while waiting:
        ready = [n for n, (entry, _) in waiting.items() if waiting.keys().isdisjoint(entry.function.sources())]
        for name in ready:
            entry, placed = waiting.pop(name)
            for source in entry.function.sources():
                _bind_source(binding, name, source, placed, found, order)
            found.derived[name] = entry.function
            binding.add(placed, name, TorchScalarVariable, read_only=True, **fields_of(entry, entry.unit or ""))
        if not ready:
            for name, (_, placed) in waiting.items():
                binding.mistakes.add(placed.where, "it is derived from itself, by way of others: cut the circle", name)
            return


def _bind_source(
    binding: Binding, name: str, source: str, placed: Placed, found: BoundOutputs, order: BeamOrder | None
) -> None:
    """Find what a derived variable is made of: a variable of the facility, or else a native one."""
    if source in binding.entries or source in binding.variables:
        variable = binding.variables.get(source)
        if variable is not None and not isinstance(variable, TorchScalarVariable):
            what = f"{source!r} is a {type(variable).__name__}; derived variables are made of single numbers"
            binding.mistakes.add(placed.where, what, name)
        return
    if source not in binding.natives:
        near = nearest_names(source, [*binding.entries, *binding.natives])
        binding.mistakes.add(placed.where, f"there is no variable {source!r}, here or in the model{near}", name)
    elif not isinstance(binding.natives[source], TorchScalarVariable):
        binding.mistakes.add(placed.where, f"{source!r} of the model is not a single number", name)
    elif source not in found.shown:
        found.shown[source] = _shown(binding, source, source, None, None, order, placed)


def _bind_limit(binding: Binding, name: str, entry: Limit, placed: Placed, found: BoundOutputs) -> None:
    if entry.of not in binding.entries:
        near = nearest_names(entry.of, binding.entries)
        binding.mistakes.add(placed.where, f"there is no variable {entry.of!r} whose limit it could show{near}", name)
        return
    variable = binding.variables.get(entry.of)
    if variable is None:
        return
    try:
        limit = limit_of(variable, entry.end)
    except ValidationError as error:
        binding.mistakes.add(placed.where, str(error), name)
        return
    if entry.unit not in (None, variable.unit):
        what = f"its unit is {entry.unit!r} and that of {entry.of!r} is {variable.unit!r}: drop the unit"
        binding.mistakes.add(placed.where, what, name)
    found.fixed[name], found.limits[name] = torch.tensor(limit, dtype=torch.float64), (entry.of, entry.end)
    fields = {"unit": variable.unit, "description": entry.description, "default_value": limit}
    binding.add(placed, name, TorchScalarVariable, read_only=True, **fields)


def limit_of(variable: Variable, end: str) -> float:
    """Return the ``"low"`` or the ``"high"`` limit of a variable.

    Raises:
        ValidationError: if it has none.
    """
    limits = getattr(variable, "value_range", None)
    limit = None if limits is None else limits[end == "high"]
    if limit is None or math.isinf(limit):
        raise ValidationError(f"{variable.name!r} has no {end} limit, which another variable shows: give value_range")
    return float(limit)


def _bind_noise(binding: Binding, found: BoundOutputs) -> None:
    for name, entry, placed in binding.of_kind(Reading, Readback, Derived):
        if not (entry.noise or entry.offset or entry.offset_spread):
            continue
        if name in binding.variables and not isinstance(binding.variables[name], TorchScalarVariable):
            what = "noise and offsets are for single numbers: drop them"
            binding.mistakes.add(placed.where, what, name)
        if entry.noise:
            found.noise[name] = entry.noise
        drawn = (
            entry.offset_spread * Draws([name], binding.mapping.seed).normal(_ONCE)[0] if entry.offset_spread else 0.0
        )
        if entry.offset or drawn:
            found.offsets[name] = entry.offset + float(drawn)
    shot = binding.mapping.shot
    if found.noise:
        if shot in binding.entries or shot in binding.variables:
            binding.mistakes.add(("shot",), f"{shot!r}, which counts the shots, is another variable too: rename it")
        text = "counts the shots; another number draws other noise"
        binding.variables[shot] = IntVariable(name=shot, default_value=0, value_range=(0, None), description=text)


# -- where the beam ends -----------------------------------------------------------------------------------------------


def _bind_stops(binding: Binding, found: BoundOutputs) -> BeamOrder | None:
    """Bind choices that can end the beam; without any the order of the beam does not matter."""
    stopping = [
        (name, entry, placed)
        for name, entry, placed in binding.of_kind(State)
        if entry.blocks or entry.reads is not None
    ]
    if not stopping:
        return None
    try:
        names = [binding.model.input_names, binding.model.output_names]
        order = BeamOrder(binding.expansion.order or order_of_names(names))
    except ValidationError as error:
        binding.mistakes.add(("order",), str(error))
        return None
    stops = []
    for name, entry, placed in stopping:
        with binding.mistakes.noted(placed.where, name):
            reads = entry.reads if entry.reads is not None else entry.blocks
            place = order.place(str(entry.element))
            stops.append(Stop(name, place, frozenset(entry.blocks), frozenset(reads)))
    found.stops = BeamStops(stops)
    return order


__all__ = ["BoundOutputs", "bind_outputs", "limit_of"]
