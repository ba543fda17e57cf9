"""Transfer maps and reference energies of all elements of a line, a class of elements at a time."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lume_diff.errors import ShapeError
from lume_diff.models import optics
from lume_diff.models.line.elements import Element, knobs
from lume_diff.models.line.products import chain, chains, padded, product, same_batch
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
        #: Leading dimensions of the numbers that were built in.
        self.batch_shape = _batch_of(self.elements)
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
        live = (
            any(value.requires_grad for value in e.values.values()) or any(True for _ in e.parameters())
            for e in self.elements
        )
        self._first_live = next((place for place, is_live in enumerate(live) if is_live), self.count)
        self._free = [place for place, element in enumerate(self.elements) if element.kind == "CustomTransferMap"]
        self._kept: KeptMaps | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None}

    def keeps_momentum(self, start: int, stop: int) -> bool:
        """Tell whether linear maps between two entrances leave the momentum alone; those that a user made may not."""
        return not any(start <= place < stop for place in self._free)

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
        lengths = torch.cat(same_batch(found, 1), dim=-1).index_select(-1, self._gather)
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
        return torch.cat(same_batch(found, 3), dim=-3).index_select(-3, self._gather)


def _batch_of(elements: Sequence[Element]) -> torch.Size:
    """Return the leading dimensions of the numbers of a line.

    Raises:
        ShapeError: where those of two elements do not fit.
    """
    shapes = {
        f"{element.name}.{name}": value.shape[: -2 if name == "transfer_map" else None]
        for element in elements
        for name, value in element.values.items()
    }
    try:
        return torch.broadcast_shapes(*set(shapes.values()))
    except RuntimeError:
        batches = ", ".join(f"{name} {tuple(shape)}" for name, shape in shapes.items() if shape)
        raise ShapeError(
            f"the segment's numbers have batches that do not fit: {batches}; expected one shape, or ones that broadcast"
        ) from None


class KeptMaps:
    """The maps of a line as it was read, at one reference energy."""

    def __init__(self, line: LineMaps, energy: Tensor, mass: float, charge_number: float) -> None:
        self.can_stay = not (energy.requires_grad or in_transform() or torch.is_inference_mode_enabled())
        self._key = (energy, None if energy.is_inference() else energy._version, mass, charge_number)
        self.energies = line.energies(energy, {}, charge_number, live=False)
        self._matrices = line.matrices(self.energies, mass, charge_number)
        self._mass = mass
        self._between: dict[tuple[int, int, tuple[int, ...]], Tensor] = {}
        self._series: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}
        self._folded: dict[tuple[int, int, tuple[int, ...]], Tensor] = {}

    def hold_for(self, energy: Tensor, mass: float, charge_number: float) -> bool:
        """Tell whether these maps are those at an energy."""
        kept, version, *rest = self._key
        if kept is not energy or version is None or energy.requires_grad:
            return False
        return version == energy._version and rest == [mass, charge_number]

    def matrices(self, start: int, stop: int) -> Tensor:
        """Return the maps of the elements between two entrances, ``(*batch, stop - start, 7, 7)``."""
        return self._matrices[..., start:stop, :, :]

    def between(self, start: int, stop: int, varying: tuple[int, ...]) -> Tensor:
        """Return the maps of what lies before, between and behind the elements that vary, ``(..., n + 1, 8, 8)``."""
        key = (start, stop, varying)
        found = self._between.get(key)
        if found is None:
            edges = zip((start, *(place + 1 for place in varying)), (*varying, stop), strict=True)
            found = padded(torch.stack([product(self._matrices[..., a:b, :, :]) for a, b in edges], dim=-3))
            self._keep(self._between, key, found)
        return found

    def series(self, stack: Stack, members: tuple[int, ...], changed: Mapping[str, Tensor]) -> Series | None:
        """Return the maps of quadrupoles as power series in their strengths.

        None where more than the strength varies, or where a strength is too large for the series.
        """
        if stack.kind != "Quadrupole" or in_transform() or not stack.varies_only("k1", changed):
            return None
        values = list(stack.fresh("k1", changed, members, live=True).values())
        if len(values) < len(members):
            return None
        known = self._series.get(members)  # asked once: another thread may clear the table
        if known is None:
            known = self._expanded(stack, members)
            self._keep(self._series, members, known)
        series, largest = known
        strength = torch.stack(
            torch.broadcast_tensors(*values) if any(v.shape != values[0].shape for v in values) else values, dim=-1
        )
        # Elements may have a batch of their own.
        if series.dim() != 4 or not bool((strength.detach().abs() <= largest).all()):
            return None
        return Series(series, strength)

    def _expanded(self, stack: Stack, members: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """Return coefficients ``(n, 13, 8, 8)`` and the largest strength that they are good for, ``(n,)``."""
        number = Numbers(stack, {}, members, live=False)
        energy = self.energies if self.energies.shape[-1] == 1 else self.energies[..., number.positions]
        length, placed = number("length"), (number.or_none("tilt"), number.pair("misalignment"))
        series = optics.quadrupole_series(length, energy, self._mass, *placed)
        return padded(series), optics.LIMIT / length.square()

    def folded(self, series: Tensor, start: int, stop: int, varying: tuple[int, ...]) -> Tensor | None:
        """Return the coefficients of elements that vary times the maps of what lies between, ``(n, 13, 8, 8)``."""
        key = (start, stop, varying)
        known = self._folded.get(key)
        if known is not None:
            return known
        between = self.between(start, stop, varying)
        if between.dim() > 3:
            return None
        found = series @ between[:-1].unsqueeze(1)
        found = torch.cat((found[:-1], between[-1] @ found[-1:]))
        self._keep(self._folded, key, found)
        return found

    def _keep(self, where: dict[Any, Any], key: Any, value: Any) -> None:
        if self.can_stay and not in_transform() and not torch.is_inference_mode_enabled():
            if len(where) > 200:
                where.clear()
            where[key] = value


class Series(NamedTuple):
    """Maps as power series, ``(n, 13, 8, 8)``, in strengths ``(*batch, n)``."""

    coefficients: Tensor
    strength: Tensor


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
        found: list[Tensor | Series] = []
        for stack in line.stacks:
            if self._kept is not None:
                if stack.kind in THIN:
                    continue
                members = tuple(i for i in stack.varying(changed) if stack.positions[i] not in special)
            else:
                members = stack.everyone
            if members:
                places += [stack.positions[i] for i in members]
                series = None if self._kept is None else self._kept.series(stack, members, changed)
                if series is None:
                    numbers = Numbers(stack, changed, members)
                    found.append(padded(matrices_of(numbers, self.energies, mass, charge_number)))
                else:
                    found.append(series)
        self.are_kept = self._kept is not None
        self._places = sorted(places)
        self._order = sorted(range(len(places)), key=places.__getitem__)
        self._found = found
        self._series = found[0] if len(found) == 1 and isinstance(found[0], Series) else None
        self._varying: Tensor | None = None

    @property
    def _matrices(self) -> Tensor | None:
        """The maps of all elements that vary, ``(*batch, n, 8, 8)``, in the order of the beam."""
        if self._varying is None and self._found:
            made = [optics.sum_of_powers(*each) if isinstance(each, Series) else each for each in self._found]
            if len(made) == 1:
                self._varying = made[0]
            else:
                order = torch.tensor(self._order, device=made[0].device)
                self._varying = torch.cat(same_batch(made, 3), dim=-3).index_select(-3, order)
        return self._varying

    def stretch(self, start: int, stop: int) -> Tensor:
        """Return the map from the entrance of one element to that of another, ``(*batch, 7, 7)``."""
        matrices: Tensor | None
        if self._kept is None:
            matrices = self._matrices[..., start:stop, :, :]  # type: ignore[index]
            return product(matrices[..., :7, :7]) if start == stop else chain(matrices)[..., :7, :7]
        first, last = bisect_left(self._places, start), bisect_left(self._places, stop)
        varying = tuple(self._places[first:last])
        if self._series is not None and varying:
            coefficients, strength = self._series
            if len(varying) < len(self._places):
                coefficients, strength = coefficients[first:last], strength[..., first:last]
            folded = self._kept.folded(coefficients, start, stop, varying)
            if folded is not None:
                return chain(optics.sum_of_powers(folded, strength))[..., :7, :7]
        between = self._kept.between(start, stop, varying)
        if not varying:
            return between[..., 0, :7, :7]
        matrices = self._matrices[..., first:last, :, :]  # type: ignore[index]
        return (between[..., -1, :, :] @ chain(matrices @ between[..., :-1, :, :]))[..., :7, :7]

    def along(self, start: int, stop: int) -> Tensor:
        """Return the maps from an entrance to itself and those up to another, ``(*batch, stop - start + 1, 7, 7)``."""
        if self._kept is None:
            matrices = self._matrices[..., start:stop, :, :]  # type: ignore[index]
        else:
            matrices = padded(self._kept.matrices(start, stop))
            first, last = bisect_left(self._places, start), bisect_left(self._places, stop)
            if first < last and self._matrices is not None:
                places = torch.tensor(self._places[first:last], device=matrices.device) - start
                varying, matrices = same_batch((self._matrices[..., first:last, :, :], matrices), 3)
                matrices = matrices.index_copy(-3, places, varying)
        eye = torch.eye(8, dtype=matrices.dtype, device=matrices.device).expand(*matrices.shape[:-3], 1, 8, 8)
        return torch.cat((eye, chains(matrices)), dim=-3)[..., :7, :7]


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
