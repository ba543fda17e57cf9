"""One evaluation of a black box: what is differentiated, what stays, and how points become runs."""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from lume_diff.blackbox.differences.bunches import (
    COORDINATES_OUT,
    N_OUT,
    BunchBox,
    bunch_data,
    bunch_rows,
    collective_bunch,
)
from lume_diff.blackbox.differences.engine import Column, DifferenceBox
from lume_diff.blackbox.node import black_box
from lume_diff.errors import ShapeError, SimulatorError
from lume_diff.models.derivatives import component_shape
from lume_diff.models.guards import concrete, is_differentiated, refuse_gradient, warn_of_gradient
from lume_diff.models.transforms import in_transform, is_wrapped, tensors_in
from lume_diff.particles import TorchParticleGroup
from lume_diff.variables import ParticleGroupVariable, TorchScalarVariable

if TYPE_CHECKING:
    from lume_diff.blackbox.model import BlackBoxModel

Array = np.ndarray


class Call:
    """Evaluate the outputs of a black box at inputs that may carry gradients and batches.

    Args:
        model: the black box.
        inputs: all of its inputs, checked.
        outputs: what the simulator shall return.
    """

    def __init__(self, model: BlackBoxModel, inputs: Mapping[str, Any], outputs: Sequence[str]) -> None:
        self.model = model
        self.variables = model.supported_variables
        self.inputs = inputs
        self.wanted = list(outputs)
        self.bunches = [n for n in self.wanted if isinstance(self.variables[n], ParticleGroupVariable)]
        self.numbers = [n for n in self.wanted if self.variables[n].is_differentiable and n not in self.bunches]
        self.shapes = {n: component_shape(self.variables[n]) for n in self.numbers}
        self.bunch_name = model._bunch_inputs[0] if model._bunch_inputs else None
        self.active = [n for n, v in inputs.items() if n != self.bunch_name and _wants_gradient(v)]
        shapes = [self.variables[n].batch_shape(value) for n, value in inputs.items()]
        self.batch = tuple(torch.broadcast_shapes(*shapes)) if shapes else ()
        self.bunch_is_active = self.bunch_name is not None and _wants_gradient(inputs[self.bunch_name])
        self.columns = self._columns()
        self.fixed = self._fixed_points()
        self.groups = self._plain_groups()
        self.keys = [self._key(owner) for owner in range(len(self.fixed))]
        self._raw: dict[Any, dict[str, Any]] = {}

    # -- inputs ----------------------------------------------------------------------------------------------

    def _columns(self) -> list[Column]:
        """Return the numbers that are differentiated."""
        found = []
        for name in self.active:
            variable = self.variables[name]
            low, high = getattr(variable, "value_range", None) or (-math.inf, math.inf)
            for index in range(math.prod(component_shape(variable))):
                entry = None if isinstance(variable, TorchScalarVariable) else index
                found.append(Column(name, entry, variable.scale, low, high))  # type: ignore[attr-defined]
        return found

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
            with torch._C._DisableFuncTorch():  # what a transform has not wrapped is a constant to it
                rows = value.detach().expand((*self.batch, *shape)).reshape((-1, *shape)).cpu().numpy()
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
        digest = hashlib.sha1(group["weight"].tobytes() + group["z"].tobytes() + group["status"].tobytes())
        return (*values, digest.digest())

    def _x(self) -> Tensor:
        """Return the numbers that are differentiated, ``(*batch, p)``."""
        pieces = []
        for name in self.active:
            shape = component_shape(self.variables[name])
            value = self.inputs[name].expand((*self.batch, *shape))
            pieces.append(value.reshape((*self.batch, math.prod(shape))))
        if pieces:
            return torch.cat(pieces, dim=-1)
        return torch.zeros((*self.batch, 0), dtype=torch.float64, device=self.model.device)

    def _bunch_x(self, x: Tensor) -> Tensor:
        """Return every particle's coordinates beside the machine's numbers, ``(*batch, n, 6 + p)``."""
        group: TorchParticleGroup = self.inputs[self.bunch_name]  # type: ignore[index]
        shape = (*self.batch, group.n_particle)
        columns = [getattr(group, name).expand(shape) for name in ("x", "px", "y", "py", "t", "pz")]
        numbers = x.unsqueeze(-2).expand((*shape, x.shape[-1]))
        return torch.cat((torch.stack(columns, dim=-1), numbers.to(columns[0].dtype)), dim=-1)

    # -- outputs ---------------------------------------------------------------------------------------------

    def outputs(self) -> dict[str, Any]:
        """Evaluate everything that is wanted."""
        x = self._x()
        found: dict[str, Any] = {}
        rest = [n for n in self.wanted if n not in self.numbers and n not in self.bunches]
        if self.bunches:
            found.update(self._bunch_outputs(x))
        if self.numbers or (rest and not self.bunches):
            found.update(self._number_outputs(x))
        if rest and not in_transform():
            found.update(self._other_outputs(rest))
        return found

    def _number_outputs(self, x: Tensor) -> dict[str, Tensor]:
        labels = [n for n in self.numbers for _ in range(math.prod(self.shapes[n]))]
        model = self.model
        dependent = self._bunch_dependent()
        keys = self.keys if self.bunch_name is None else [(k, self._bunch_digest(i)) for i, k in enumerate(self.keys)]
        box = DifferenceBox(self.evaluate, self.columns, labels, model._gradient, model._memory, keys, model._note)
        if self.active:
            y = black_box(x, box)
        else:
            y = self._constant(box, len(labels))
        found = {}
        start = 0
        for name in self.numbers:
            size = math.prod(self.shapes[name])
            part = y[..., start : start + size].to(model.dtype)
            found[name] = part.reshape((*part.shape[:-1], *self.shapes[name]))
            start += size
            if name in dependent:
                message = (
                    f"{name!r} depends on the bunch {self.bunch_name!r} inside the black box, and only the outgoing "
                    "bunch has a gradient with respect to that: take it from the bunch (`derived`), or detach it"
                )
                anchors = tuple(t for t in tensors_in(self.inputs[str(self.bunch_name)]) if _wants_gradient(t))
                found[name] = found[name] + refuse_gradient(anchors, message)
        return found

    def _bunch_dependent(self) -> set[str]:
        """Return the numbers that change with the bunch, found by moving it once; empty if it has no gradient."""
        if self.bunch_name is None or not self.bunch_is_active:
            return set()
        known = self.model._memory.bunch_dependent
        unknown = [name for name in self.numbers if name not in known]
        if unknown:
            rows = self._bunch_rows(0)
            moved = rows * 1.01 + 0.1 * rows.std(axis=0) + 1e-6 * np.abs(rows).mean(axis=0)
            numbers = self._plain_numbers()[0]
            here, there = self._many([numbers, numbers], [0, 0], [rows, moved])
            for name in unknown:
                if isinstance(here, SimulatorError) or isinstance(there, SimulatorError):
                    known[name] = True
                else:
                    known[name] = not np.array_equal(here[name], there[name])
        return {name for name in self.numbers if known[name]}

    def _plain_numbers(self) -> Array:
        """Return the values of the numbers that are differentiated, ``(points, p)``."""
        with torch._C._DisableFuncTorch():
            plain = [
                concrete(self.inputs[n]).expand((*self.batch, *component_shape(self.variables[n]))) for n in self.active
            ]
            rows = [value.reshape(len(self.fixed), -1).cpu().double() for value in plain]
            return torch.cat(rows, dim=-1).numpy() if rows else np.zeros((len(self.fixed), 0))

    def _bunch_outputs(self, x: Tensor) -> dict[str, TorchParticleGroup]:
        if self.bunch_name is None:
            return {name: self._source_bunch(name, x) for name in self.bunches}
        group: TorchParticleGroup = self.inputs[self.bunch_name]
        model = self.model
        z = self._bunch_x(x)
        found = {}
        for name in self.bunches:
            box = BunchBox(
                functools.partial(self.evaluate_bunch, name=name),
                group.n_particle,
                self.columns,
                model._gradient,
                model._memory,
                [(key, name) for key in self.keys],
                model._note,
                self.bunch_is_active,
            )
            collective = model._gradient is not None and model._gradient.particles == "collective"
            rows = collective_bunch(z, box) if collective else black_box(z, box)
            alive = self._alive(box, z).reshape((*self.batch, group.n_particle)).to(group.dtype)
            found[name] = self._group(name, group, rows.to(group.dtype), alive)
        return found

    def _alive(self, box: BunchBox, z: Tensor) -> Tensor:
        with torch._C._DisableFuncTorch():
            plain = concrete(z)
            wanted = len(self.fixed) * z.shape[-2] if in_transform() else plain.numel() // plain.shape[-1]
            return box.alive(plain.reshape(-1, plain.shape[-1])[:wanted])

    def _group(self, name: str, incoming: TorchParticleGroup, rows: Tensor, alive: Tensor) -> TorchParticleGroup:
        weight = incoming.weight.expand(alive.shape)
        x, px, y, py, z, t, pz = self._guarded(name, rows.unbind(-1), weight * incoming.alive * (1.0 - alive), weight)
        energy, time = self._output_reference(name, incoming.mass, rows, alive)
        leaves = [x, y, z, px, py, pz, t, weight.expand(x.shape), incoming.alive * alive]
        references = [torch.full(x.shape[:-1], value, dtype=x.dtype, device=x.device) for value in (energy, time)]
        return TorchParticleGroup._from_leaves([*leaves, *references], incoming._static)

    @staticmethod
    def _guarded(name: str, columns: tuple[Tensor, ...], lost: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        """Make a gradient warn where particles are lost inside the black box."""
        if in_transform() and any(is_wrapped(value) for value in (lost, weight)):
            return columns
        with torch._C._DisableFuncTorch():
            share = float((lost.sum(-1) / weight.sum(-1)).max())
        if not share > 0.0:
            return columns
        message = (
            f"particles are lost on the way to {name!r} (lost fraction {share:.3g}): the gradient of what is left "
            "leaves out the particles that cross the edge"
        )
        return warn_of_gradient(columns, message)

    def _source_bunch(self, name: str, x: Tensor) -> TorchParticleGroup:
        """Return a bunch that the simulator makes from numbers alone, ``(*batch, n)``."""
        numbers = self._plain_numbers()
        first = [self._result(row, owner)[name] for owner, row in enumerate(numbers)]
        ids = np.asarray(first[0].id)
        labels = [f"{name}.{coordinate}" for _ in ids for coordinate in COORDINATES_OUT]

        def evaluate(rows: Array, owners: Sequence[int]) -> list[Array | SimulatorError]:
            results = self._many(rows, owners, [None] * len(owners))
            return [r if isinstance(r, SimulatorError) else bunch_rows(r[name], ids)[0].ravel() for r in results]

        model = self.model
        box = DifferenceBox(evaluate, self.columns, labels, model._gradient, model._memory, self.keys, model._note)
        y = black_box(x, box) if self.active else self._constant(box, len(labels))
        rows = y.reshape((*y.shape[:-1], len(ids), N_OUT)).to(model.dtype)
        alive = np.stack([bunch_rows(group, ids)[1] for group in first]).reshape((*self.batch, len(ids)))
        weight = np.stack([np.asarray(group.weight) for group in first]).reshape((*self.batch, len(ids)))
        template = TorchParticleGroup.from_particle_group(first[0], dtype=model.dtype, device=model.device)
        living = torch.from_numpy(alive.astype(float)).to(rows.dtype)
        bunch = template._with(weight=torch.from_numpy(weight).to(rows.dtype), alive=torch.ones_like(living))
        return self._group(name, bunch, rows, living)

    def _constant(self, box: DifferenceBox, count: int) -> Tensor:
        with torch._C._DisableFuncTorch():
            points = torch.zeros((len(self.fixed), 0), dtype=torch.float64)
            return box.derivative(points, 0).reshape((*self.batch, count)).to(self.model.device)

    def _output_reference(self, name: str, mass: float, rows: Tensor, alive: Tensor) -> tuple[float, float]:
        """Return the reference of the outgoing bunch: the mean of the first one that came out, for ever."""
        known = self.model._output_references
        if name not in known:
            with torch._C._DisableFuncTorch():
                plain = concrete(rows)
                momenta = plain[..., [1, 3, 6]].square().sum(-1)
                energy = (momenta + mass**2).sqrt()
                living = alive if alive.shape == energy.shape else torch.ones_like(energy)
                total = living.sum().clamp_min(1.0)
                known[name] = (
                    float((energy * living).sum() / total),
                    float((plain[..., 5] * living).sum() / total),
                )
        return known[name]

    def _other_outputs(self, names: Sequence[str]) -> dict[str, Any]:
        """Return the outputs that are not floats, from the runs that were made anyway."""
        found: dict[str, Any] = {}
        results = [self._result(row, owner) for owner, row in enumerate(self._plain_numbers())]
        for name in names:
            values = [result[name] for result in results]
            if not self.batch:
                found[name] = self.variables[name].validate_value(values[0], config="none")
            elif isinstance(values[0], str):
                found[name] = np.array(values, dtype=object).reshape(self.batch).tolist()
            else:
                found[name] = torch.tensor(np.array(values)).reshape(self.batch)
        return found

    # -- runs ------------------------------------------------------------------------------------------------

    def _bunch_rows(self, owner: int) -> Array:
        group: TorchParticleGroup = self.inputs[self.bunch_name]  # type: ignore[index]
        shape = (*self.batch, group.n_particle)
        with torch._C._DisableFuncTorch():
            columns = [
                concrete(getattr(group, name)).expand(shape).reshape(-1, group.n_particle)[owner]
                for name in ("x", "px", "y", "py", "t", "pz")
            ]
            return torch.stack(columns, dim=-1).cpu().double().numpy()

    def _bunch_digest(self, owner: int) -> bytes:
        return hashlib.sha1(self._bunch_rows(owner).tobytes()).digest()

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
            rows = self._bunch_rows(owner) if bunch is None else bunch
            point[self.bunch_name] = bunch_data(rows, self.groups[owner])
        return {name: point[name] for name in self.inputs}

    def _remember(self, owner: int, row: Array, bunch: Array | None) -> Any:
        digest = None if self.bunch_name is None or bunch is None else hashlib.sha1(bunch.tobytes()).digest()
        return owner % len(self.fixed), np.asarray(row, dtype=float).tobytes(), digest

    def _result(self, row: Array, owner: int) -> dict[str, Any]:
        bunch = None if self.bunch_name is None else self._bunch_rows(owner)
        key = self._remember(owner, row, bunch)
        if key not in self._raw:
            (found,) = self.model._simulate([self._point(row, owner, bunch)], self.wanted)
            if isinstance(found, SimulatorError):
                raise found
            self._raw[key] = found
        return self._raw[key]

    def evaluate(self, rows: Array, owners: Sequence[int]) -> list[Array | SimulatorError]:
        """Run rows of the differentiated numbers, with the bunch as it is."""
        bunches = [None if self.bunch_name is None else self._bunch_rows(o % len(self.fixed)) for o in owners]
        results = self._many(rows, owners, bunches)
        return [result if isinstance(result, SimulatorError) else self._row(result) for result in results]

    def evaluate_bunch(
        self, points: Sequence[tuple[Array, Array]], owners: Sequence[int], name: str
    ) -> list[tuple[Array, Array] | SimulatorError]:
        """Run bunches with numbers; see ``BunchBox``."""
        results = self._many([numbers for _, numbers in points], owners, [bunch for bunch, _ in points])
        ids = self.groups[0]["id"]
        return [r if isinstance(r, SimulatorError) else bunch_rows(r[name], ids) for r in results]

    def _many(
        self, rows: Sequence[Array] | Array, owners: Sequence[int], bunches: Sequence[Array | None]
    ) -> list[dict[str, Any] | SimulatorError]:
        """Run points in one batch; a point that this call has run already is not run again."""
        keys = [self._remember(o, row, b) for row, o, b in zip(rows, owners, bunches, strict=True)]
        missing = [i for i, key in enumerate(keys) if key not in self._raw]
        points = [self._point(np.asarray(rows[i]), owners[i], bunches[i]) for i in missing]
        fresh = dict(zip(missing, self.model._simulate(points, self.wanted), strict=True)) if points else {}
        if len(fresh) <= len(self.fixed):  # values, not the shifted points of a difference
            self._raw.update({keys[i]: r for i, r in fresh.items() if not isinstance(r, SimulatorError)})
        return [fresh[i] if i in fresh else self._raw[keys[i]] for i in range(len(keys))]

    def _row(self, result: Mapping[str, Any]) -> Array:
        parts = []
        for name in self.numbers:
            value = np.asarray(result[name], dtype=float)
            if value.shape != self.shapes[name]:
                raise ShapeError(
                    f"the simulator returned {name!r} of shape {value.shape}; its variable says {self.shapes[name]}"
                )
            parts.append(value.reshape(-1))
        return np.concatenate(parts) if parts else np.zeros(0)


def _wants_gradient(value: Any) -> bool:
    """Tell whether a value takes part in differentiation now, in whatever mode, or hides a batch of vmap's."""
    return any(is_wrapped(t) or is_differentiated(t) for t in tensors_in(value) if t.is_floating_point())


def _plain(value: Array) -> Any:
    return value.copy() if value.shape else value.item()
