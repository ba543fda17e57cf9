"""One evaluation of a black box: which outputs have which gradient, and how runs become tensors."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from lume_diff.blackbox.differences.bunch_rows import COORDINATES_OUT, N_IN, N_OUT, all_ids, bunch_rows, weighted_rows
from lume_diff.blackbox.differences.bunches import BunchBox
from lume_diff.blackbox.differences.collective import collective_bunch
from lume_diff.blackbox.differences.engine import DifferenceBox, Evaluate, Native
from lume_diff.blackbox.differences.native import bunch_block, number_block
from lume_diff.blackbox.node import black_box
from lume_diff.blackbox.plain import as_numbers
from lume_diff.blackbox.points import Points, wants_gradient
from lume_diff.errors import ShapeError, SimulatorError
from lume_diff.models.cost import whole_bunches
from lume_diff.models.derivatives import component_shape
from lume_diff.models.guards import concrete, refuse_gradient, warn_of_gradient
from lume_diff.models.transforms import in_transform, is_wrapped, tensors_in
from lume_diff.particles import TorchParticleGroup
from lume_diff.variables import EnumVariable, ParticleGroupVariable, StrVariable

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
        self.wanted = list(outputs)
        self.bunches = [n for n in self.wanted if isinstance(self.variables[n], ParticleGroupVariable)]
        self.numbers = [n for n in self.wanted if self.variables[n].is_differentiable and n not in self.bunches]
        self.shapes = {n: component_shape(self.variables[n]) for n in self.numbers}
        self.points = Points(model, inputs, self.wanted)
        self.readers = [*self.bunches, *([""] if self.numbers else [])]  # who is differentiated on its own, by name

    # -- outputs ---------------------------------------------------------------------------------------------

    def outputs(self) -> dict[str, Any]:
        """Evaluate everything that is wanted."""
        x = self.points.x()
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
        points = self.points
        labels = [n for n in self.numbers for _ in range(math.prod(self.shapes[n]))]
        model = self.model
        dependent = self._bunch_dependent()
        keys = points.keys
        if points.bunch_name is not None:
            keys = [(key, points.bunch_digest(owner)) for owner, key in enumerate(keys)]
        box = self._box(self.evaluate, labels, keys, functools.partial(self._own_numbers, self.shapes))
        y = black_box(x, box) if points.active else self._constant(box, len(labels))
        found = {}
        start = 0
        for name in self.numbers:
            size = math.prod(self.shapes[name])
            part = y[..., start : start + size].to(model.dtype)
            found[name] = part.reshape((*part.shape[:-1], *self.shapes[name]))
            start += size
            if name in dependent:
                message = (
                    f"{name!r} depends on the bunch {points.bunch_name!r} inside the black box, and only the "
                    "outgoing bunch has a gradient with respect to that: take it from the bunch (`derived`), or "
                    "detach it"
                )
                anchors = tuple(t for t in tensors_in(points.inputs[str(points.bunch_name)]) if wants_gradient(t))
                found[name] = found[name] + refuse_gradient(anchors, message)
        return found

    def _bunch_dependent(self) -> set[str]:
        """Return the numbers that change with the bunch, found by moving it once; empty if it has no gradient."""
        points = self.points
        if points.bunch_name is None or not points.bunch_is_active:
            return set()
        known = self.model._memory.bunch_dependent
        unknown = [name for name in self.numbers if name not in known]
        if unknown:
            rows = points.bunch_rows(0)
            moved = rows * 1.01 + 0.1 * rows.std(axis=0) + 1e-6 * np.abs(rows).mean(axis=0)
            numbers = points.numbers()[0]
            with self.model._memory.spending("check"):
                here, there = points.many([numbers, numbers], [0, 0], [rows, moved])
            for name in unknown:
                if isinstance(here, SimulatorError) or isinstance(there, SimulatorError):
                    known[name] = True
                else:
                    known[name] = not np.array_equal(here[name], there[name])
        return {name for name in self.numbers if known[name]}

    def _bunch_outputs(self, x: Tensor) -> dict[str, TorchParticleGroup]:
        points = self.points
        if points.bunch_name is None:
            return {name: self._source_bunch(name, x) for name in self.bunches}
        group: TorchParticleGroup = points.inputs[points.bunch_name]
        model = self.model
        z = points.bunch_x(x)
        found = {}
        for name in self.bunches:
            box = BunchBox(
                name,
                points.bunch_name,
                self.bunches,
                functools.partial(self.evaluate_bunch, name=name),
                group.n_particle,
                points.columns,
                model._gradient,
                model._memory,
                [(key, name) for key in points.keys],
                model._note,
                points.bunch_is_active,
                functools.partial(self._own_bunch, name) if self._has_own else None,
            )
            particles = "stop" if model._gradient is None else model._gradient.particles
            collective = particles == "collective" or (particles == "per_particle" and whole_bunches.get())
            rows = collective_bunch(z, box) if collective else black_box(z, box)
            alive = self._alive(box, z).reshape((*points.batch, group.n_particle)).to(rows.device, group.dtype)
            found[name] = self._group(name, group, rows.to(group.dtype), alive)
        return found

    def _alive(self, box: BunchBox, z: Tensor) -> Tensor:
        with torch._C._DisableFuncTorch():
            plain = concrete(z)
            wanted = len(self.points.fixed) * z.shape[-2] if in_transform() else plain.numel() // plain.shape[-1]
            return box.alive(plain.reshape(-1, plain.shape[-1])[:wanted])

    def _group(self, name: str, incoming: TorchParticleGroup, rows: Tensor, alive: Tensor) -> TorchParticleGroup:
        weight = incoming.weight.expand(alive.shape)
        x, px, y, py, z, t, pz = self._guarded(name, rows.unbind(-1), weight * incoming.alive * (1.0 - alive), weight)
        energy, time = self._output_reference(name, incoming, rows, alive)
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
        """Return a bunch that the simulator makes from numbers alone, ``(*batch, n)``.

        Its weights may depend on the numbers too. A particle that is lost, at the point or at a shifted one, has no
        derivative; the rows of such particles are NaN on their way through the differences.
        """
        model, batch = self.model, self.points.batch
        first = [self.points.result(row, owner)[name] for owner, row in enumerate(self.points.numbers())]
        ids = all_ids(first)
        labels = [f"{name}.{quantity}" for _ in ids for quantity in (*COORDINATES_OUT, "weight")]

        def evaluate(rows: Array, owners: Sequence[int]) -> list[Array | SimulatorError]:
            results = self.points.many(rows, owners, [None] * len(owners), name, self.readers)
            return [r if isinstance(r, SimulatorError) else _of_living(*weighted_rows(r[name], ids)) for r in results]

        keys = [(key, name, ids.tobytes()) for key in self.points.keys]
        box = self._box(evaluate, labels, keys, functools.partial(self._own_source, name, len(ids)))
        y = black_box(x, box) if self.points.active else self._constant(box, len(labels))
        moving = y.reshape((*y.shape[:-1], len(ids), N_OUT + 1))
        parts = (np.stack(part) for part in zip(*(weighted_rows(group, ids) for group in first), strict=True))
        fixed, lives = (torch.from_numpy(part).to(y.device).reshape((*batch, *part.shape[1:])) for part in parts)
        rows = torch.where(lives.unsqueeze(-1), moving, fixed).to(model.dtype)
        alive = lives.to(model.dtype)
        template = TorchParticleGroup.from_particle_group(first[0], dtype=model.dtype, device=model.device)
        static = template._static.replace(id=torch.from_numpy(ids).to(y.device))
        bunch = template._with(static, weight=fixed[..., N_OUT].to(model.dtype), alive=torch.ones_like(alive))
        return self._group(name, bunch, rows[..., :N_OUT], alive)._with(weight=rows[..., N_OUT])

    def _constant(self, box: DifferenceBox, count: int) -> Tensor:
        with torch._C._DisableFuncTorch():
            points = torch.zeros((len(self.points.fixed), 0), dtype=torch.float64)
            return box.derivative(points, 0).reshape((*self.points.batch, count)).to(self.model.device)

    def _output_reference(
        self, name: str, incoming: TorchParticleGroup, rows: Tensor, alive: Tensor
    ) -> tuple[float, float]:
        """Return the reference of the outgoing bunch: the mean of the first one that came out, for ever.

        Until one does it is the incoming one's.
        """
        known = self.model._output_references
        if name not in known:
            with torch._C._DisableFuncTorch():
                plain = concrete(rows)
                momenta = plain[..., [1, 3, 6]].square().sum(-1)
                energy = (momenta + incoming.mass**2).sqrt()
                living = alive if alive.shape == energy.shape else torch.ones_like(energy)
                total = float(living.sum())
                if total == 0.0:
                    before = (concrete(v).reshape(-1)[0] for v in (incoming.reference_energy, incoming.reference_time))
                    energy_before, time_before = map(float, before)
                    return energy_before, time_before
                known[name] = float((energy * living).sum() / total), float((plain[..., 5] * living).sum() / total)
        return known[name]

    def _other_outputs(self, names: Sequence[str]) -> dict[str, Any]:
        """Return the outputs that are not floats, from the runs that were made anyway."""
        found: dict[str, Any] = {}
        results = [self.points.result(row, owner) for owner, row in enumerate(self.points.numbers())]
        for name in names:
            values = [result[name] for result in results]
            if not self.points.batch:
                found[name] = self.variables[name].validate_value(values[0], config="none")
            elif isinstance(self.variables[name], (EnumVariable, StrVariable)):
                if len(set(values)) != 1:
                    seen = ", ".join(map(repr, sorted(set(values))))
                    raise ShapeError(
                        f"output {name!r} is {seen} within one batch, and a string has no batch: evaluate these points "
                        "one by one"
                    )
                found[name] = self.variables[name].validate_value(values[0], config="none")
            else:
                found[name] = torch.tensor(np.array(values)).reshape(self.points.batch)
        return found

    def _box(self, evaluate: Evaluate, labels: Sequence[str], keys: Sequence[Any], own: Native) -> DifferenceBox:
        """Return the black box that gives some numbers; ``own`` asks the simulator for derivatives of its own."""
        model = self.model
        native = own if self._has_own else None
        return DifferenceBox(
            evaluate, self.points.columns, labels, model._gradient, model._memory, keys, model._note, native
        )

    # -- derivatives of the code's own -----------------------------------------------------------------------

    @property
    def _has_own(self) -> bool:
        return self.model._gradient is not None and self.model._gradient.native

    def _active_shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: component_shape(self.variables[name]) for name in self.points.active}

    def _own_numbers(self, outputs: Mapping[str, tuple[int, ...]], rows: Array, owners: Sequence[int]) -> list[Array]:
        points = self.points
        bunches = [None if points.bunch_name is None else points.bunch_rows(o % len(points.fixed)) for o in owners]
        found = points.own_derivatives(rows, owners, bunches, list(outputs), points.active)
        return [number_block(one, outputs, self._active_shapes()) for one in found]

    def _own_source(self, name: str, count: int, rows: Array, owners: Sequence[int]) -> list[Array]:
        """Return what the simulator knows of a bunch that it makes, whose weights stay where it knows the rest."""
        found = []
        for block in self._own_numbers({name: (count, N_OUT)}, rows, owners):
            whole = block.reshape(count, N_OUT, -1)
            of_weight = np.where(np.isnan(whole).all(axis=1, keepdims=True), np.nan, 0.0)
            found.append(np.concatenate([whole, of_weight], axis=1).reshape(count * (N_OUT + 1), -1))
        return found

    def _own_bunch(self, name: str, point: tuple[Array, Array], owner: int) -> Array:
        points, (bunch, numbers) = self.points, point
        incoming = str(points.bunch_name)
        wrt = [*points.active, *([incoming] if points.bunch_is_active else [])]
        (found,) = points.own_derivatives([numbers], [owner], [bunch], [name], wrt)
        sides = len(bunch), N_OUT, N_IN
        return bunch_block(found.get(name, {}), name, incoming, sides, self._active_shapes())

    # -- runs ------------------------------------------------------------------------------------------------

    def evaluate(self, rows: Array, owners: Sequence[int]) -> list[Array | SimulatorError]:
        """Run rows of the differentiated numbers, with the bunch as it is."""
        bunches = [
            None if self.points.bunch_name is None else self.points.bunch_rows(o % len(self.points.fixed))
            for o in owners
        ]
        results = self.points.many(rows, owners, bunches, "", self.readers)
        return [result if isinstance(result, SimulatorError) else self._row(result) for result in results]

    def evaluate_bunch(
        self, points: Sequence[tuple[Array, Array]], owners: Sequence[int], name: str
    ) -> list[tuple[Array, Array] | SimulatorError]:
        """Run bunches with numbers; see ``BunchBox``."""
        rows, bunches = [numbers for _, numbers in points], [bunch for bunch, _ in points]
        results = self.points.many(rows, owners, bunches, name, self.readers)
        ids = self.points.groups[0]["id"]
        return [r if isinstance(r, SimulatorError) else bunch_rows(r[name], ids) for r in results]

    def _row(self, result: Mapping[str, Any]) -> Array:
        parts = []
        for name in self.numbers:
            parts.append(as_numbers(name, result[name], self.shapes[name]).reshape(-1))
        return np.concatenate(parts) if parts else np.zeros(0)


def _of_living(rows: Array, alive: Array) -> Array:
    """Return rows in a line, NaN for who is lost."""
    return np.where(alive[:, None], rows, np.nan).ravel()
