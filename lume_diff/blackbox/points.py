"""Points: the inputs of one evaluation, split into what is differentiated and what stays, and their runs."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch._C import _functorch
from torch.autograd import forward_ad

from lume_diff.blackbox.differences.bunch_rows import bunch_data
from lume_diff.blackbox.differences.memory import Column
from lume_diff.errors import SimulatorError
from lume_diff.models.derivatives import component_shape
from lume_diff.models.guards import concrete, is_differentiated
from lume_diff.models.transforms import is_wrapped, tensors_in
from lume_diff.particles import TorchParticleGroup
from lume_diff.variables import TorchScalarVariable, Variable

if TYPE_CHECKING:
    from lume_diff.blackbox.model import BlackBoxModel

Array = np.ndarray


class Points:
    """Turn inputs that may carry gradients and batches into plain points, and run them, none twice.

    Args:
        model: the black box.
        inputs: all of its inputs, checked.
        outputs: what the simulator shall return.

    Attributes:
        active: inputs that are differentiated, the bunch apart.
        columns: their numbers.
        batch: shape of the batch; its members are counted in one line, and ``owner`` is the place of one of them.
        fixed: for each of them the inputs that are not differentiated, as plain values.
        bunch_name: the input that is a bunch, or None.
        groups: for each member what that bunch has besides its coordinates.
        keys: for each member what its results depend on besides the numbers that are differentiated.
    """

    def __init__(self, model: BlackBoxModel, inputs: Mapping[str, Any], outputs: Sequence[str]) -> None:
        self.model = model
        self.variables = model.supported_variables
        self.inputs = inputs
        self.outputs = list(outputs)
        self.bunch_name = model._bunch_inputs[0] if model._bunch_inputs else None
        self.active = [n for n, v in inputs.items() if n != self.bunch_name and wants_gradient(v)]
        shapes = [self.variables[n].batch_shape(value) for n, value in inputs.items()]
        self.batch = tuple(torch.broadcast_shapes(*shapes)) if shapes else ()
        self.bunch_is_active = self.bunch_name is not None and wants_gradient(inputs[self.bunch_name])
        self.columns = columns_of(self.variables, self.active)
        self.fixed = self._fixed_points()
        self.groups = self._plain_groups()
        self.keys = [self._key(owner) for owner in range(len(self.fixed))]
        self._raw: dict[Any, dict[str, Any]] = {}
        self._waiting: dict[Any, tuple[Any, set[str]]] = {}  # shifted points, for those who have not read them yet

    # -- inputs ----------------------------------------------------------------------------------------------

    def _fixed_points(self) -> list[dict[str, Any]]:
        """Return, for each batch member, the inputs that are not differentiated, as plain values."""
        points: list[dict[str, Any]] = [{} for _ in range(math.prod(self.batch))]
        for name, value in self.inputs.items():
            if name in self.active or name == self.bunch_name:
                continue
            if not isinstance(value, Tensor):
                for point in points:
                    point[name] = value
                continue
            shape = tuple(value.shape[len(self.variables[name].batch_shape(value)) :])
            with torch._C._DisableFuncTorch():  # what does not vary is a constant to a transform
                rows = concrete(value).expand((*self.batch, *shape)).reshape((-1, *shape)).cpu().numpy()
            for point, row in zip(points, rows, strict=True):
                point[name] = _plain(row)
        return points

    def _plain_groups(self) -> list[dict[str, Any]]:
        """Return, for each batch member, what a ParticleGroup has besides its coordinates."""
        if self.bunch_name is None:
            return []
        group: TorchParticleGroup = self.inputs[self.bunch_name]
        shape = (*self.batch, group.n_particle)
        with torch._C._DisableFuncTorch():
            fields = {name: concrete(getattr(group, name)) for name in ("z", "weight", "alive")}
            columns = {name: v.expand(shape).reshape(-1, shape[-1]).cpu().numpy() for name, v in fields.items()}
            ids = group.id.cpu().numpy()
        return [
            {
                "z": columns["z"][owner],
                "weight": columns["weight"][owner],
                "status": (columns["alive"][owner] > 0.5).astype(int),
                "species": group.species,
                "id": ids,
            }
            for owner in range(len(self.fixed))
        ]

    def _key(self, owner: int) -> Any:
        values = tuple((n, v.tobytes() if isinstance(v, np.ndarray) else v) for n, v in self.fixed[owner].items())
        if not self.groups:
            return values
        group = self.groups[owner]
        digest = hashlib.sha1(str(group["species"]).encode())
        for name in ("weight", "z", "status", "id"):
            digest.update(group[name].tobytes())
        return (*values, digest.digest())

    def x(self) -> Tensor:
        """Return the numbers that are differentiated, ``(*batch, p)``."""
        pieces = []
        for name in self.active:
            shape = component_shape(self.variables[name])
            value = self.inputs[name].expand((*self.batch, *shape))
            pieces.append(value.reshape((*self.batch, math.prod(shape))))
        if pieces:
            return torch.cat(pieces, dim=-1)
        return torch.zeros((*self.batch, 0), dtype=torch.float64, device=self.model.device)

    def bunch_x(self, x: Tensor) -> Tensor:
        """Return every particle's coordinates beside the machine's numbers, ``(*batch, n, 6 + p)``."""
        group: TorchParticleGroup = self.inputs[self.bunch_name]  # type: ignore[index]
        shape = (*self.batch, group.n_particle)
        columns = [getattr(group, name).expand(shape) for name in ("x", "px", "y", "py", "t", "pz")]
        numbers = x.unsqueeze(-2).expand((*shape, x.shape[-1]))
        return torch.cat((torch.stack(columns, dim=-1), numbers.to(columns[0].dtype)), dim=-1)

    def numbers(self) -> Array:
        """Return the values of the numbers that are differentiated, ``(points, p)``."""
        with torch._C._DisableFuncTorch():
            plain = [
                concrete(self.inputs[n]).expand((*self.batch, *component_shape(self.variables[n]))) for n in self.active
            ]
            rows = [value.reshape(len(self.fixed), -1).cpu().double() for value in plain]
            return torch.cat(rows, dim=-1).numpy() if rows else np.zeros((len(self.fixed), 0))

    # -- runs ------------------------------------------------------------------------------------------------

    def bunch_rows(self, owner: int) -> Array:
        """Return the incoming bunch of a member, ``(n, 6)``."""
        group: TorchParticleGroup = self.inputs[self.bunch_name]  # type: ignore[index]
        shape = (*self.batch, group.n_particle)
        with torch._C._DisableFuncTorch():
            columns = [
                concrete(getattr(group, name)).expand(shape).reshape(-1, group.n_particle)[owner]
                for name in ("x", "px", "y", "py", "t", "pz")
            ]
            return torch.stack(columns, dim=-1).cpu().double().numpy()

    def bunch_digest(self, owner: int) -> bytes:
        """Return a hash of the incoming bunch of a member."""
        return hashlib.sha1(self.bunch_rows(owner).tobytes()).digest()

    def _point(self, row: Array, owner: int, bunch: Array | None = None) -> dict[str, Any]:
        """Return the plain inputs of a run."""
        owner = owner % len(self.fixed)
        point = dict(self.fixed[owner])
        start = 0
        for name in self.active:
            shape = component_shape(self.variables[name])
            size = math.prod(shape)
            point[name] = _plain(np.array(row[start : start + size]).reshape(shape))
            start += size
        if self.bunch_name is not None:
            rows = self.bunch_rows(owner) if bunch is None else bunch
            point[self.bunch_name] = bunch_data(rows, self.groups[owner])
        return {name: point[name] for name in self.inputs}

    def _raw_key(self, owner: int, row: Array, bunch: Array | None) -> Any:
        digest = None if self.bunch_name is None or bunch is None else hashlib.sha1(bunch.tobytes()).digest()
        return owner % len(self.fixed), np.asarray(row, dtype=float).tobytes(), digest

    def result(self, row: Array, owner: int) -> dict[str, Any]:
        """Run one point with the bunch as it is, or return what it gave before."""
        bunch = None if self.bunch_name is None else self.bunch_rows(owner)
        key = self._raw_key(owner, row, bunch)
        if key not in self._raw:
            (found,) = self.model._simulate([self._point(row, owner, bunch)], self.outputs)
            if isinstance(found, SimulatorError):
                raise found
            self._raw[key] = found
        return self._raw[key]

    def many(
        self,
        rows: Sequence[Array] | Array,
        owners: Sequence[int],
        bunches: Sequence[Array | None],
        reader: str = "",
        readers: Sequence[str] = (),
    ) -> list[dict[str, Any] | SimulatorError]:
        """Run points in one batch; a point that this call has run already is not run again.

        Args:
            rows, owners, bunches: the points.
            reader: who asks.
            readers: who will ask for the same points; these are kept until all have.
        """
        keys = [self._raw_key(o, row, b) for row, o, b in zip(rows, owners, bunches, strict=True)]
        missing = [i for i, key in enumerate(keys) if key not in self._raw and key not in self._waiting]
        points = [self._point(np.asarray(rows[i]), owners[i], bunches[i]) for i in missing]
        fresh = dict(zip(missing, self.model._simulate(points, self.outputs), strict=True)) if points else {}
        good = {keys[i]: result for i, result in fresh.items() if not isinstance(result, SimulatorError)}
        if len(fresh) <= len(self.fixed):  # values, not the shifted points of a difference
            self._raw.update(good)
        elif len(readers) > 1:
            self._waiting.update({key: (result, set(readers)) for key, result in good.items()})
        found = [
            fresh[i] if i in fresh else (self._raw.get(key) or self._waiting[key][0]) for i, key in enumerate(keys)
        ]
        for key in keys:
            if key in self._waiting:
                self._waiting[key][1].discard(reader)
                if not self._waiting[key][1]:
                    del self._waiting[key]
        return found

    def own_derivatives(
        self,
        rows: Sequence[Array] | Array,
        owners: Sequence[int],
        bunches: Sequence[Array | None],
        outputs: Sequence[str],
        wrt: Sequence[str],
    ) -> list[dict[str, dict[str, Array]]]:
        """Ask the simulator for derivatives of its own; where it fails it has none."""
        points = [self._point(np.asarray(row), o, b) for row, o, b in zip(rows, owners, bunches, strict=True)]
        found: list[dict[str, dict[str, Array]]] = []
        for answer in self.model._runner.jacobians(points, outputs, wrt):
            if isinstance(answer, SimulatorError):
                self.model._memory.native.failure = str(answer)
            found.append({} if isinstance(answer, SimulatorError) else answer)
        return found


def columns_of(variables: Mapping[str, Variable], names: Sequence[str]) -> list[Column]:
    """Return the numbers that some inputs consist of."""
    found = []
    for name in names:
        variable = variables[name]
        low, high = getattr(variable, "value_range", None) or (-math.inf, math.inf)
        for index in range(math.prod(component_shape(variable))):
            entry = None if isinstance(variable, TorchScalarVariable) else index
            found.append(Column(name, entry, variable.scale, low, high))  # type: ignore[attr-defined]
    return found


def wants_gradient(value: Any) -> bool:
    """Tell whether a value takes part in differentiation now, in whatever mode, or hides a batch of vmap's."""
    return any(_varies(tensor) for tensor in tensors_in(value) if tensor.is_floating_point())


def _varies(value: Tensor) -> bool:
    """Tell whether a tensor varies: a transform wraps constants too, and only the innermost can tell which they are."""
    if not is_wrapped(value):
        return is_differentiated(value)
    below = _functorch.get_unwrapped(value)
    if _functorch.is_batchedtensor(value) or is_wrapped(below) or _functorch.maybe_get_level(value) != _level():
        return True
    if value.requires_grad or forward_ad.unpack_dual(value).tangent is not None:
        return True
    with torch._C._DisableFuncTorch():
        return is_differentiated(below)


def _level() -> int:
    running = _functorch.peek_interpreter_stack()
    return -1 if running is None else int(running.level())


def _plain(value: Array) -> Any:
    return value.copy() if value.shape else value.item()
