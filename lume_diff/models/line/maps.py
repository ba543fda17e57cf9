"""Transfer maps and reference energies of all elements of a line, a class of elements at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lume_diff.models import optics
from lume_diff.models.line.elements import Element, knobs

#: Classes of zero length that leave the beam as it is.
THIN = ("Marker", "BPM", "Screen", "Aperture", "SpaceChargeKick")


class Stack:
    """The numbers of all elements of one class side by side, ``(*batch, count)`` each.

    Args:
        elements: the line.
        positions: which of its elements belong here.
    """

    def __init__(self, elements: Sequence[Element], positions: Sequence[int]) -> None:
        self.positions = list(positions)
        self.kind = elements[positions[0]].kind
        members = [elements[position] for position in positions]
        names = list(dict.fromkeys(name for member in members for name in member.values))
        self._constants: dict[str, Tensor] = {}
        self._parameters: dict[str, list[tuple[int, Tensor]]] = {}
        self._is_zero: dict[str, bool] = {}
        for name in names:
            values = [member.values[name] for member in members]
            trainable = [(i, value) for i, value in enumerate(values) if value.requires_grad]
            plain = [value.detach() for value in values]
            if name == "transfer_map":
                self._constants[name] = torch.stack(torch.broadcast_tensors(*plain), dim=-3)
            else:
                self._constants[name] = torch.stack(torch.broadcast_tensors(*plain), dim=-1)
            if trainable:
                self._parameters[name] = trainable
            self._is_zero[name] = not trainable and bool((self._constants[name] == 0).all())
        self._knobs: dict[str, dict[str, list[int]]] = {}
        for index, member in enumerate(members):
            for name in names:
                self._knobs.setdefault(name, {}).setdefault(f"{member.name}.{name}", []).append(index)

    def number(self, name: str, changed: Mapping[str, Tensor]) -> Tensor:
        """Return one number of all members, with the changed ones put in their places."""
        constant = self._constants[name]
        places: dict[int, Tensor] = dict(self._parameters.get(name, ()))
        for knob, indices in self._knobs[name].items():
            if knob in changed:
                places.update(dict.fromkeys(indices, changed[knob]))
        if not places:
            return constant
        values = list(places.values())
        if any(value.shape != values[0].shape for value in values):
            values = list(torch.broadcast_tensors(*values))
        if len(places) == constant.shape[-1]:
            ordered = [value for _, value in sorted(zip(places, values, strict=True), key=lambda pair: pair[0])]
            return torch.stack(ordered, dim=-1)
        stacked = torch.stack(values, dim=-1)
        batch = torch.broadcast_shapes(constant.shape[:-1], stacked.shape[:-1])
        count = constant.shape[-1]
        source = list(range(count))
        for slot, index in enumerate(places):
            source[index] = count + slot
        both = torch.cat((constant.expand(*batch, count), stacked.expand(*batch, len(places))), dim=-1)
        return both.index_select(-1, torch.tensor(source, device=both.device))

    def number_or_none(self, name: str, changed: Mapping[str, Tensor]) -> Tensor | None:
        """Return one number of all members, or None where it is zero for all and nobody changed it."""
        if self._is_zero[name] and not any(knob in changed for knob in self._knobs[name]):
            return None
        return self.number(name, changed)

    def pair_or_none(self, name: str, changed: Mapping[str, Tensor]) -> Tensor | None:
        """Return a vector such as the misalignment, ``(*batch, count, 2)``, or None where it is zero for all."""
        x, y = self.number_or_none(f"{name}_x", changed), self.number_or_none(f"{name}_y", changed)
        if x is None and y is None:
            return None
        x = torch.zeros_like(y) if x is None else x  # type: ignore[arg-type]
        y = torch.zeros_like(x) if y is None else y
        return torch.stack(torch.broadcast_tensors(x, y), dim=-1)


class LineMaps:
    """Compute what a whole line needs in one call a class: energies, lengths, linear maps.

    Args:
        elements: the line.
        dtype, device: of the numbers.
    """

    def __init__(self, elements: Sequence[Element], dtype: torch.dtype, device: torch.device) -> None:
        self.elements = list(elements)
        self.count = len(self.elements)
        self.knobs = knobs(self.elements)
        by_kind: dict[tuple[str, Any], list[int]] = {}
        for position, element in enumerate(self.elements):
            by_kind.setdefault((element.kind, element.option("cavity_type")), []).append(position)
        self.stacks = [Stack(self.elements, positions) for positions in by_kind.values()]
        order = [position for stack in self.stacks for position in stack.positions]
        self._gather = torch.tensor(sorted(range(self.count), key=order.__getitem__), device=device)
        self._cavities = [stack for stack in self.stacks if stack.kind == "Cavity"]
        self._cavity_steps = [
            torch.tensor(
                [[float(entrance > cavity) for entrance in range(self.count + 1)] for cavity in stack.positions],
                dtype=dtype,
                device=device,
            )
            for stack in self._cavities
        ]

    def energies(self, energy: Tensor, changed: Mapping[str, Tensor], charge_number: float) -> Tensor:
        """Return the reference energy [eV] at the entrance of every element and at the end, ``(*batch, count + 1)``.

        One column stands for all where nothing accelerates.
        """
        total = energy.unsqueeze(-1)
        for stack, steps in zip(self._cavities, self._cavity_steps, strict=True):
            voltage = stack.number_or_none("voltage", changed)
            if voltage is None:
                continue
            gain = optics.cavity_reference_energy(
                torch.zeros_like(voltage), voltage, stack.number("phase", changed), charge_number
            )
            total = total + gain @ steps
        return total

    def positions_along(self, changed: Mapping[str, Tensor]) -> Tensor:
        """Return the path length [m] from the start to every entrance and to the end, ``(*batch, count + 1)``."""
        lengths = torch.cat(_same_batch([stack.number("length", changed) for stack in self.stacks], 1), dim=-1)
        return torch.nn.functional.pad(lengths.index_select(-1, self._gather).cumsum(-1), (1, 0))

    def matrices(
        self, energies: Tensor, changed: Mapping[str, Tensor], mass: float, charge_number: float
    ) -> Tensor:
        """Return the linear map of every element, ``(*batch, count, 7, 7)``."""
        uniform = energies.shape[-1] == 1
        found = []
        for stack in self.stacks:
            entrance = energies if uniform else energies[..., stack.positions]
            found.append(_matrices_of(stack, entrance, changed, mass, charge_number))
        return torch.cat(_same_batch(found, 3), dim=-3).index_select(-3, self._gather)


def _same_batch(tensors: Sequence[Tensor], inner: int) -> list[Tensor]:
    """Expand leading dimensions to a common batch; the last ``inner`` ones stay."""
    batch = torch.broadcast_shapes(*(t.shape[: t.dim() - inner] for t in tensors))
    return [t.expand(*batch, *t.shape[t.dim() - inner :]) for t in tensors]


def _matrices_of(
    stack: Stack, energy: Tensor, changed: Mapping[str, Tensor], mass: float, charge_number: float
) -> Tensor:
    def get(name: str) -> Tensor:
        return stack.number(name, changed)

    def maybe(name: str) -> Tensor | None:
        return stack.number_or_none(name, changed)

    length = get("length")
    match stack.kind:
        case "Quadrupole":
            placed = maybe("tilt"), stack.pair_or_none("misalignment", changed)
            matrix = optics.quadrupole(length, get("k1"), energy, mass, *placed)
        case "Dipole":
            faces = maybe("dipole_e1"), maybe("dipole_e2")
            fringe = maybe("tilt"), maybe("gap"), maybe("fringe_integral"), get("fringe_integral_exit")
            matrix = optics.dipole(length, get("angle"), energy, mass, maybe("k1"), *faces, *fringe)
        case "RBend":
            faces = maybe("rbend_e1"), maybe("rbend_e2")
            fringe = maybe("tilt"), maybe("gap"), maybe("fringe_integral"), get("fringe_integral_exit")
            matrix = optics.rbend(length, get("angle"), energy, mass, maybe("k1"), *faces, *fringe)
        case "Solenoid":
            matrix = optics.solenoid(length, get("k"), energy, mass, stack.pair_or_none("misalignment", changed))
        case "HorizontalCorrector":
            matrix = optics.corrector(length, energy, mass, horizontal_angle=get("angle"))
        case "VerticalCorrector":
            matrix = optics.corrector(length, energy, mass, vertical_angle=get("angle"))
        case "CombinedCorrector":
            matrix = optics.corrector(length, energy, mass, get("horizontal_angle"), get("vertical_angle"))
        case "Undulator":
            matrix = optics.undulator(length, energy, mass, get("period"), get("kx"), get("ky"))
        case "CustomTransferMap":
            matrix = stack._constants["transfer_map"]
        case kind if kind in THIN:
            matrix = optics.identity(length)
        case _:
            matrix = optics.drift(length, energy, mass)
    return matrix.expand(*matrix.shape[:-3], len(stack.positions), 7, 7)


def product(matrices: Tensor) -> Tensor:
    """Return the map of elements in a row, ``(*batch, count, 7, 7) -> (*batch, 7, 7)``, the first applied first.

    Neighbours are multiplied pairwise, so that the depth is logarithmic.
    """
    while matrices.shape[-3] > 1:
        count = matrices.shape[-3]
        pairs = matrices[..., 1 : count : 2, :, :] @ matrices[..., 0 : count - 1 : 2, :, :]
        matrices = torch.cat((pairs, matrices[..., -1:, :, :]), dim=-3) if count % 2 else pairs
    return matrices[..., 0, :, :]
