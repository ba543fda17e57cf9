"""Simulator: what a code without gradients must do to become a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

#: What goes into and comes out of a simulator: numbers, arrays, strings, ``beamphysics.ParticleGroup``.
PlainValue = Any


class Simulator(ABC):
    """Run a code without gradients on plain values: floats, numpy arrays, strings, ``beamphysics.ParticleGroup``.

    A simulator knows nothing of torch. It may have a memory (a loaded lattice, a child process); two runs with the
    same inputs must give the same outputs all the same, up to the noise of the code.
    """

    @abstractmethod
    def run(self, inputs: Mapping[str, PlainValue], outputs: Sequence[str]) -> dict[str, PlainValue]:
        """Run at ``inputs`` and return at least the named outputs.

        Args:
            inputs: every input by name, in the unit of its variable: a float, int, bool or string, an array of the
                variable's shape, or a ``beamphysics.ParticleGroup``.
            outputs: names of the outputs that are wanted.

        Returns:
            ``{output: value}`` in the units of the variables, of the same kinds; more than was asked for does no harm.

        Raises:
            Exception: whatever the code raises; the caller adds the inputs that did it.
        """

    def reset(self) -> None:
        """Bring the code back to its start."""

    def close(self) -> None:
        """Give up what the code holds: child processes, files."""

    def identity(self) -> str:
        """Return a text that changes whenever the results may: code version, content of decks and beams, seed."""
        return f"{type(self).__module__}.{type(self).__qualname__}"

    def jacobian(
        self, inputs: Mapping[str, PlainValue], outputs: Sequence[str], wrt: Sequence[str]
    ) -> dict[str, dict[str, np.ndarray]]:
        """Return derivatives that the code computes itself, for what it covers; ``gradient="native"`` uses them.

        Args:
            inputs: as in ``run``; a bunch in them is ``beamphysics.ParticleGroup`` with ``n`` particles.
            outputs: names of the outputs whose derivatives are wanted.
            wrt: names of the inputs that they are wanted with respect to, a bunch among them.

        Returns:
            ``{output: {input: array}}`` in the units of the variables. What is not covered, here or at all, is left
            out, and differences take its place; so do they where an array is not finite. Shapes are

            - number or array by number or array: ``(*out_shape, *in_shape)``;
            - bunch by bunch: ``(7, 6)`` for a map that is the same for all particles, or ``(n, 7, 6)``, particles in
              the order of the incoming bunch: derivatives of x, px, y, py, z, t, pz
              (``differences.bunch_rows.COORDINATES_OUT``) with respect to x, px, y, py, t, pz (``COORDINATES_IN``), in
              m, eV/c and s;
            - bunch by number or array: ``(n, 7, *in_shape)``; particles in the order of the incoming bunch, or of
              ``run``'s where there is none, whose weights are then taken to stay.

            Entries that were not asked for do no harm. It is no run, and is not counted as one.

        Raises:
            Exception: whatever the code raises; differences take the place of everything at this point.
        """
        return {}


class FunctionSimulator(Simulator):
    """Make a plain function a simulator.

    Args:
        function: takes the inputs by keyword and returns ``{output: value}``, or a single value if there is one output.
        outputs: names of the outputs.
    """

    def __init__(self, function: Callable[..., Any], outputs: Sequence[str]) -> None:
        self.function = function
        self.outputs = list(outputs)

    def run(self, inputs: Mapping[str, PlainValue], outputs: Sequence[str]) -> dict[str, PlainValue]:
        """Call the function."""
        found = self.function(**inputs)
        if isinstance(found, Mapping):
            return dict(found)
        if len(self.outputs) == 1:
            return {self.outputs[0]: found}
        raise TypeError(f"the function returned {type(found).__name__}; expected a dictionary with {self.outputs}")

    def identity(self) -> str:
        """Return the function's name and a hash of its code, of what it closes over, and of its module's own numbers.

        What it calls in other modules, and files that it reads, are not seen: wrap a ``Simulator`` where these change.
        """
        from lume_diff.models.fingerprint import code_fingerprint

        name = getattr(self.function, "__qualname__", type(self.function).__qualname__)
        return f"{name}:{code_fingerprint(self.function)[:16]}"
