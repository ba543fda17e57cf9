"""Transfer maps and reference energies of all elements of a line, a class of elements at a time."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lume_diff.models import optics
from lume_diff.models.line.elements import Element, knobs
from lume_diff.models.line.special import candidates
from lume_diff.models.line.stack import Numbers, Stack
from lume_diff.models.transforms import in_transform

#: Classes of zero length that leave the beam as it is.
THIN = ("Marker", "BPM", "Screen", "Aperture", "SpaceChargeKick")


class LineMaps:
    """A line as stacks of numbers, from which its maps are made.

    Args:
        elements: the line.
        dtype, device: of the numbers.
    """

    def __init__(self, elements: Sequence[Element], dtype: torch.dtype, device: torch.device) -> None:
        self.elements = list(elements)
        self.count = len(self.elements)
        self.device = device
        self.knobs = knobs(self.elements)
        self.candidates = candidates(self.elements)
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
        numbers = (v for e in self.elements for name, v in e.values.items() if name != "transfer_map")
        #: Leading dimensions of the numbers that were built in.
        self.batch_shape = torch.broadcast_shapes(*{number.shape for number in numbers})
        live = (
            any(value.requires_grad for value in e.values.values()) or any(True for _ in e.parameters())
            for e in self.elements
        )
        self._first_live = next((place for place, is_live in enumerate(live) if is_live), self.count)
        self._kept: KeptMaps | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None}

    def first_varying(self, changed: Mapping[str, Tensor], active: Mapping[str, bool]) -> int:
        """Return the position of the first element that is not what it was, or has something to train."""
        places = [self.knobs[name][1][0] for name in changed]
        places += [place for place, element in enumerate(self.elements) if element.name in active] if active else []
        return min([*places, self._first_live])

    def accelerates_anew(self, changed: Mapping[str, Tensor]) -> bool:
        """Tell whether energies are not those of the line as it was read."""
        return any(stack.varying(changed, ("voltage", "phase")) for stack in self._cavities)

    def energies(
        self, energy: Tensor, changed: Mapping[str, Tensor], charge_number: float, live: bool = True
    ) -> Tensor:
        """Return the reference energy [eV] at the entrance of every element and at the end, ``(*batch, count + 1)``.

        One column stands for all where nothing accelerates.
        """
        total = energy.unsqueeze(-1)
        for stack, steps in zip(self._cavities, self._cavity_steps, strict=True):
            number = Numbers(stack, changed, stack.everyone, live)
            voltage = number.or_none("voltage")
            if voltage is not None:
                zero = torch.zeros_like(voltage)
                gain = optics.cavity_reference_energy(zero, voltage, number("phase"), charge_number)
                total = total + gain @ steps
        return total

    def positions_along(self, changed: Mapping[str, Tensor]) -> Tensor:
        """Return the path length [m] from the start to every entrance and to the end, ``(*batch, count + 1)``."""
        found = [Numbers(stack, changed, stack.everyone)("length") for stack in self.stacks]
        lengths = torch.cat(_same_batch(found, 1), dim=-1).index_select(-1, self._gather)
        return torch.nn.functional.pad(lengths.cumsum(-1), (1, 0))

    def kept(self, energy: Tensor, mass: float, charge_number: float) -> KeptMaps:
        """Return the maps of the line as it was read, at a reference energy [eV] ``(*batch,)``; once where possible."""
        kept = self._kept
        if kept is None or not kept.hold_for(energy, mass, charge_number):
            kept = KeptMaps(self, energy, mass, charge_number)
            if kept.can_stay:
                self._kept = kept
        return kept

    def matrices(self, energies: Tensor, mass: float, charge_number: float) -> Tensor:
        """Return the linear map of every element as it was read, ``(*batch, count, 7, 7)``."""
        found = [
            matrices_of(Numbers(stack, {}, stack.everyone, live=False), energies, mass, charge_number)
            for stack in self.stacks
        ]
        return torch.cat(_same_batch(found, 3), dim=-3).index_select(-3, self._gather)


class KeptMaps:
    """The maps of a line as it was read, at one reference energy."""

    def __init__(self, line: LineMaps, energy: Tensor, mass: float, charge_number: float) -> None:
        self.can_stay = not (energy.requires_grad or in_transform() or torch.is_inference_mode_enabled())
        self._key = (energy, None if energy.is_inference() else energy._version, mass, charge_number)
        self.energies = line.energies(energy, {}, charge_number, live=False)
        self._matrices = line.matrices(self.energies, mass, charge_number)
        self._between: dict[tuple[int, int, tuple[int, ...]], Tensor] = {}

    def hold_for(self, energy: Tensor, mass: float, charge_number: float) -> bool:
        """Tell whether these maps are those at an energy."""
        kept, version, *rest = self._key
        if kept is not energy or version is None or energy.requires_grad:
            return False
        return version == energy._version and rest == [mass, charge_number]

    def between(self, start: int, stop: int, varying: tuple[int, ...]) -> Tensor:
        """Return the maps of what lies before, between and behind the elements that vary, ``(..., n + 1, 7, 7)``."""
        key = (start, stop, varying)
        found = self._between.get(key)
        if found is None:
            edges = zip((start, *(place + 1 for place in varying)), (*varying, stop), strict=True)
            found = torch.stack([product(self._matrices[..., a:b, :, :]) for a, b in edges], dim=-3)
            if self.can_stay and not in_transform() and not torch.is_inference_mode_enabled():
                if len(self._between) > 200:
                    self._between.clear()
                self._between[key] = found
        return found


class Maps:
    """The maps of a line with some of its numbers changed.

    Args:
        line: the line.
        energy: reference energy at its entrance [eV], ``(*batch,)``.
        changed: numbers that differ from those of the line, by knob.
        special: positions of the elements that do not pass the beam by a map.
        mass, charge_number: of the particles.

    Attributes:
        energies: reference energy [eV] at every entrance and at the end, or one for all.
        are_kept: whether all maps are those of the line as it was read, but for the elements that are changed.
    """

    def __init__(
        self,
        line: LineMaps,
        energy: Tensor,
        changed: Mapping[str, Tensor],
        special: Collection[int],
        mass: float,
        charge_number: float,
    ) -> None:
        self._kept = None if line.accelerates_anew(changed) else line.kept(energy, mass, charge_number)
        if self._kept is None:
            self.energies = line.energies(energy, changed, charge_number)
        else:
            self.energies = self._kept.energies
        places: list[int] = []
        found = []
        for stack in line.stacks:
            if self._kept is not None:
                if stack.kind in THIN:
                    continue
                members = tuple(i for i in stack.varying(changed) if stack.positions[i] not in special)
            else:
                members = stack.everyone
            if members:
                places += [stack.positions[i] for i in members]
                found.append(matrices_of(Numbers(stack, changed, members), self.energies, mass, charge_number))
        self.are_kept = self._kept is not None
        self._places = sorted(places)
        self._matrices: Tensor | None = None
        if len(found) == 1:
            self._matrices = found[0]
        elif found:
            order = torch.tensor(sorted(range(len(places)), key=places.__getitem__), device=line.device)
            self._matrices = torch.cat(_same_batch(found, 3), dim=-3).index_select(-3, order)

    def stretch(self, start: int, stop: int) -> Tensor:
        """Return the map from the entrance of one element to that of another, ``(*batch, 7, 7)``."""
        if self._kept is None:
            return product(self._matrices[..., start:stop, :, :])  # type: ignore[index]
        first, last = bisect_left(self._places, start), bisect_left(self._places, stop)
        between = self._kept.between(start, stop, tuple(self._places[first:last]))
        if first == last or self._matrices is None:
            return between[..., 0, :, :]
        varying = self._matrices[..., first:last, :, :]
        return between[..., -1, :, :] @ product(varying @ between[..., :-1, :, :])


def _same_batch(tensors: Sequence[Tensor], inner: int) -> list[Tensor]:
    """Expand leading dimensions to a common batch; the last ``inner`` ones stay."""
    shapes = {t.shape[: t.dim() - inner] for t in tensors}
    if len(shapes) == 1:
        return list(tensors)
    batch = torch.broadcast_shapes(*shapes)
    return [t.expand(*batch, *t.shape[t.dim() - inner :]) for t in tensors]


def matrices_of(number: Numbers, energies: Tensor, mass: float, charge_number: float) -> Tensor:
    """Return the linear maps of some elements of one class, ``(*batch, count, 7, 7)``.

    Args:
        number: their numbers.
        energies: reference energy [eV] at every entrance of the line, or one for all.
        mass, charge_number: of the particles.
    """
    energy = energies if energies.shape[-1] == 1 else energies[..., number.positions]
    maybe = number.or_none
    length = number("length")
    match number.kind:
        case "Quadrupole":
            matrix = optics.quadrupole(length, number("k1"), energy, mass, maybe("tilt"), number.pair("misalignment"))
        case "Dipole":
            faces = maybe("dipole_e1"), maybe("dipole_e2")
            fringe = maybe("tilt"), maybe("gap"), maybe("fringe_integral"), number("fringe_integral_exit")
            matrix = optics.dipole(length, number("angle"), energy, mass, maybe("k1"), *faces, *fringe)
        case "RBend":
            faces = maybe("rbend_e1"), maybe("rbend_e2")
            fringe = maybe("tilt"), maybe("gap"), maybe("fringe_integral"), number("fringe_integral_exit")
            matrix = optics.rbend(length, number("angle"), energy, mass, maybe("k1"), *faces, *fringe)
        case "Solenoid":
            matrix = optics.solenoid(length, number("k"), energy, mass, number.pair("misalignment"))
        case "HorizontalCorrector":
            matrix = optics.corrector(length, energy, mass, horizontal_angle=number("angle"))
        case "VerticalCorrector":
            matrix = optics.corrector(length, energy, mass, vertical_angle=number("angle"))
        case "CombinedCorrector":
            matrix = optics.corrector(length, energy, mass, number("horizontal_angle"), number("vertical_angle"))
        case "Undulator":
            matrix = optics.undulator(length, energy, mass, number("period"), number("kx"), number("ky"))
        case "CustomTransferMap":
            matrix = number("transfer_map")
        case "Cavity":  # One that is off: a drift, but for the r56 that a travelling wave never has.
            numbers = torch.zeros_like(length), number("phase"), number("frequency"), energy, mass, charge_number
            matrix = optics.cavity_matrix(length, *numbers, number.option("cavity_type"))
        case kind if kind in THIN:
            matrix = optics.identity(length)
        case _:
            matrix = optics.drift(length, energy, mass)
    return matrix.expand(*matrix.shape[:-3], len(number.positions), 7, 7)


def product(matrices: Tensor) -> Tensor:
    """Return the map of elements in a row, ``(*batch, count, 7, 7) -> (*batch, 7, 7)``, the first applied first.

    Neighbours are multiplied pairwise, so that the depth is logarithmic; none in a row is the identity.
    """
    count = matrices.shape[-3]
    if count == 0:
        eye = torch.eye(7, dtype=matrices.dtype, device=matrices.device)
        return eye.expand(*matrices.shape[:-3], 7, 7)
    while count > 1:
        pairs = matrices[..., 1:count:2, :, :] @ matrices[..., 0 : count - 1 : 2, :, :]
        matrices = torch.cat((pairs, matrices[..., -1:, :, :]), dim=-3) if count % 2 else pairs
        count = matrices.shape[-3]
    return matrices[..., 0, :, :]
