"""The contract of a conversion between a control system's number and the model's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from lume_diff.errors import ValidationError
from lume_diff.models.facility.installed import Installed
from lume_diff.models.facility.part import Part

Numbers = Mapping[str, Tensor]


@dataclass(frozen=True)
class Place:
    """What a conversion may need to know of where it acts.

    Attributes:
        unit: of the control system's number.
        native_unit: of the model's number.
        length: of the element [m], None where nobody said.
        mass: rest energy of a particle [eV].
        charge: of a particle [elementary charges].
        value_range: declared limits of the control system's number, None for none.
    """

    unit: str = ""
    native_unit: str = ""
    length: float | None = None
    mass: float = 510998.95069
    charge: float = -1.0
    value_range: tuple[float, float] | None = None


class Conversion(Part, ABC):
    """Turn a setpoint as the control system has it into the model's number, and back.

    A conversion is strictly monotone over its range and its inverse is exact; both carry gradients and batches. A class
    is one file with a field ``kind: Literal["name"] = "name"``; it becomes known through an entry point of the group
    ``lume_diff.conversions`` with that name.

    What acts on numbers gets these as tensors: conversions of one kind are stacked, their numbers side by side in the
    last dimension, and converted together. So ``to_native`` and ``to_setpoint`` must take every number from
    ``numbers`` and none from ``self``.
    """

    #: Whether the energy [eV] at the element enters.
    needs_energy: ClassVar[bool] = False

    kind: str

    @abstractmethod
    def numbers(self, place: Place) -> dict[str, Any]:
        """Return the numbers of the conversion at a place: floats, or lists of floats.

        Raises:
            ValidationError, UnitError: if it cannot be used there, or is not strictly monotone.
        """

    @abstractmethod
    def to_native(self, setpoint: Tensor, numbers: Numbers, energy: Tensor | None) -> Tensor:
        """Return the model's numbers ``(*batch, n)``, from ``setpoint`` ``(*batch, n)``.

        Args:
            setpoint: in the control system's units.
            numbers: what ``numbers`` gave for each of the n, floats as ``(n,)`` and lists as ``(n, k)``.
            energy: total energy [eV], ``(*batch, n)``, None where ``needs_energy`` is False.
        """

    @abstractmethod
    def to_setpoint(self, native: Tensor, numbers: Numbers, energy: Tensor | None) -> Tensor:
        """Return the control system's numbers; the exact inverse, see ``to_native``."""

    def signature(self) -> Hashable:
        """Return what two conversions must share so that they can be stacked, beside the shapes of their numbers."""
        return type(self)

    @property
    def is_live(self) -> bool:
        """Whether this conversion needs the energy."""
        return self.needs_energy

    @property
    def setpoint_range(self) -> tuple[float, float] | None:
        """The range of setpoints that the conversion was made for, None for all numbers."""
        return None

    def forward(self, setpoint: Any, energy: Any = None, place: Place | None = None) -> Tensor:
        """Return the model's number for one setpoint, or for a batch of them.

        Args:
            setpoint: in the unit of ``place``, ``(*batch,)``.
            energy: total energy [eV] where the conversion needs it, ``(*batch,)``.
            place: units, length and particle.

        Returns:
            In the native unit of ``place``, ``(*batch,)``.

        Gradient:
            Exact, to the setpoint and the energy.

        Example:
            >>> from lume_diff.models.facility import Linear
            >>> Linear(scale=2.0, offset=1.0).forward(3.0)
            tensor(7., dtype=torch.float64)
        """
        return self._alone(self.to_native, setpoint, energy, place)

    def inverse(self, native: Any, energy: Any = None, place: Place | None = None) -> Tensor:
        """Return the setpoint for a number of the model; see ``forward``.

        Gradient:
            Exact, to the native number and the energy.
        """
        return self._alone(self.to_setpoint, native, energy, place)

    def known(self, energy: Tensor | None) -> Tensor:
        """Return the energy.

        Raises:
            ValidationError: if there is none.
        """
        if energy is None:
            raise ValidationError(f"conversion {self.kind!r} needs the energy [eV] at the element: pass energy=")
        return energy

    def _alone(self, convert: Any, value: Any, energy: Any, place: Place | None) -> Tensor:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            value = torch.as_tensor(value, dtype=torch.float64)
        if self.is_live:
            energy = self.known(energy)
        if energy is not None:
            energy = torch.as_tensor(energy, dtype=value.dtype, device=value.device).unsqueeze(-1)
        numbers = stacked([self.numbers(place or Place())], value.dtype, value.device)
        return convert(value.unsqueeze(-1), numbers, energy).squeeze(-1)


def stacked(
    tables: list[dict[str, Any]], dtype: torch.dtype, device: torch.device | str | None = None
) -> dict[str, Tensor]:
    """Return the numbers of several conversions side by side, ``(n,)`` or ``(n, k)`` each."""
    return {key: torch.tensor([table[key] for table in tables], dtype=dtype, device=device) for key in tables[0]}


AnyConversion = Annotated[Conversion, Installed("conversions")]
