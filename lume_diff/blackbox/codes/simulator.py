"""The contract of a simulator that works on a native object, with no torch in it: workers load it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from lume_diff.blackbox.simulator import PlainValue, Simulator
from lume_diff.errors import LatticeError


class CodeSimulator(Simulator):
    """A simulator that works on a native object: a lattice, a session with a code.

    Between runs the native object stands at the baseline: a run puts back what it has set.
    """

    @property
    @abstractmethod
    def native(self) -> Any:
        """The native object."""

    @property
    @abstractmethod
    def baseline(self) -> Mapping[str, float]:
        """The inputs as they stand on the native object now."""

    @property
    @abstractmethod
    def elements(self) -> tuple[str, ...]:
        """Names of the elements."""

    @property
    @abstractmethod
    def reference_energy(self) -> float:
        """Total energy that the native object is set for [eV]."""

    @property
    def accelerated(self) -> tuple[str, ...]:
        """Names of the elements that the beam reaches at another reference energy than the one at the start."""
        return ()

    def energies(self, inputs: Mapping[str, PlainValue], names: Sequence[str]) -> dict[str, float]:
        """Return the reference energy [eV] at the entrance of accelerated elements.

        Raises:
            LatticeError: where the code does not tell it.
        """
        raise LatticeError(
            f"the reference energy at {names[0]!r} is not known: an element before it changes it, and the code does "
            "not tell by how much"
        )
