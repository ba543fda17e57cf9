"""Fingerprint: a text that changes when the predictions of a model may, made without a run."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import re
import types
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from lume_diff.models.base import LUMEModel
from lume_diff.models.facility import FacilityModel
from lume_diff.models.snapshot import _GROUP_FIELDS, _MOMENT_FIELDS
from lume_diff.particles import TorchMoments, TorchParticleGroup

_PACKAGES = ("lume-diff", "cheetah-accelerator")
_KNOWN = ("lume_diff", "torch", "cheetah", "builtins", "abc")  # their classes change with their version only
#: What models of this package keep to themselves that predictions depend on, but for what has a branch of its own.
_DECIDING = ("_links", "_by_cheetah", "_losses", "_gradient", "_derived", "_acting", "_pixel_size")
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def fingerprint(model: LUMEModel, without: Collection[str] = ()) -> str:
    """Return a hash of everything known about a model that its predictions depend on.

    That is the set-points, the weights, the composition of a chain and its links, particle number and seed of bunches
    that are drawn, elements of lines with all their numbers, the identity of simulators, and the code of functions and
    classes from elsewhere with the numbers that they refer to. It cannot see what an own class keeps in attributes
    with a leading underscore, nor files that code reads as it runs.

    Args:
        model: any model; it is neither run nor changed. The simulator of a black box is asked for its identity.
        without: inputs whose set-points do not matter.

    Example:
        >>> from lume_diff.models import BunchFromMoments
        >>> twiss = dict(beta_x=10.0, norm_emit_x=1e-6, beta_y=5.0, norm_emit_y=1e-6, mean_energy=1e8, charge=1e-10)
        >>> fingerprint(BunchFromMoments(100, **twiss)) == fingerprint(BunchFromMoments(100, seed=1, **twiss))
        False
    """
    names = [name for name in model.input_names if name not in without]
    return _digest({"versions": _versions(), "inputs": model.get(names), "model": model})


def code_fingerprint(function: Callable[..., Any]) -> str:
    """Return a hash of a function's code and of what it refers to in its module and in the functions around it."""
    return _digest(function)


def _digest(value: Any) -> str:
    digest = hashlib.sha256()
    for part in _parts(value, set()):
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _parts(value: Any, open_: set[int]) -> Iterator[bytes]:
    """Yield what an object consists of; one that contains itself is left out there."""
    if isinstance(value, (torch.Tensor, np.ndarray)):
        array = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else value
        yield f"{array.dtype} {array.shape}".encode()
        yield np.ascontiguousarray(array).tobytes() if array.dtype != object else repr(array.tolist()).encode()
        return
    if isinstance(value, (bytes, str, bool, int, float, complex, type(None))):
        yield f"{type(value).__name__} {value!r}".encode()
        return
    if isinstance(value, (type, types.ModuleType)):
        yield repr(value).encode()
        return
    if id(value) in open_:
        return
    open_.add(id(value))
    try:
        yield f"{type(value).__module__}.{type(value).__qualname__}".encode()
        for part in _inside(value):
            yield from _parts(part, open_)
    finally:
        open_.remove(id(value))


def _inside(value: Any) -> Iterator[Any]:
    """Yield the parts of anything but numbers and texts."""
    if isinstance(value, (TorchParticleGroup, TorchMoments)):
        names = _GROUP_FIELDS if isinstance(value, TorchParticleGroup) else _MOMENT_FIELDS
        yield from (value.species, [getattr(value, name) for name in names])
    elif isinstance(value, nn.Module):
        yield from _inside_module(value)
    elif isinstance(value, Mapping):
        for key in sorted(value, key=repr):
            yield from (key, value[key])
    elif isinstance(value, Sequence):
        yield from value
    elif isinstance(value, AbstractSet):
        yield from sorted(value, key=repr)
    elif isinstance(value, (types.FunctionType, types.MethodType)):
        yield from _inside_function(value)
    elif isinstance(value, types.CodeType):
        yield from (value.co_code, value.co_consts, value.co_names)
    elif isinstance(value, functools.partial):
        yield from (value.func, value.args, value.keywords)
    elif is_dataclass(value):
        yield [getattr(value, field.name) for field in fields(value)]
    else:
        yield from _own_code(value)
        yield _public(value) or _ADDRESS.sub("", repr(value))


def _inside_module(module: nn.Module) -> Iterator[Any]:
    """Yield weights and parts of a module, and what a model has besides."""
    yield from _own_code(module)
    yield _public(module)
    yield dict(module._parameters)
    yield {name: value for name, value in module._buffers.items() if name != "reading"}  # of a monitor: a result
    yield list(module._modules.items())
    if isinstance(module, LUMEModel):
        yield {name: getattr(module, name) for name in _DECIDING if hasattr(module, name)}
        yield list(getattr(module, "_stage_keys", ()))
        for element in getattr(getattr(module, "_line", None), "elements", ()):
            yield {**vars(element), "attributes": None}
        runner = getattr(module, "_runner", None)
        if runner is not None:
            yield runner.identity()
    if isinstance(module, FacilityModel):
        inner, inputs, outputs = module.model, module._inputs, module._outputs
        yield inner.get([name for name in inner.input_names if name not in inputs.natives])
        yield from (inputs.groups.links, inputs.direct, outputs.groups.links, outputs.shown, outputs.follows)


def _inside_function(function: Any) -> Iterator[Any]:
    """Yield the code of a function, and the values and functions of its module that it refers to."""
    if isinstance(function, types.MethodType):
        yield from (function.__self__, function.__func__)
        return
    code, known = function.__code__, function.__globals__
    yield from (function.__qualname__, code, function.__defaults__, function.__kwdefaults__)
    for cell in function.__closure__ or ():
        yield cell.cell_contents
    for name in _names_in(code):
        value = known.get(name)
        own = isinstance(value, types.FunctionType) and value.__module__ == function.__module__
        if own or isinstance(value, (str, bool, int, float, complex, tuple, list, dict, torch.Tensor, np.ndarray)):
            yield value


def _names_in(code: types.CodeType) -> Iterator[str]:
    """Yield the names that a piece of code refers to, also from comprehensions and functions inside of it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names_in(constant)


def _own_code(value: Any) -> Iterator[Any]:
    """Yield the methods of classes that change without a version."""
    for kind in type(value).__mro__:
        if kind.__module__.partition(".")[0] not in _KNOWN:
            yield [member for member in vars(kind).values() if isinstance(member, types.FunctionType)]


def _public(value: Any) -> dict[str, Any]:
    """Return the attributes that a user can see, but for the switch between training and evaluation."""
    own = getattr(value, "__dict__", {})
    return {name: part for name, part in own.items() if not name.startswith("_") and name != "training"}
