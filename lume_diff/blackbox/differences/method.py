"""FiniteDifference: how the gradient of a black box is estimated."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lume_diff.errors import UnknownVariableError, ValidationError, nearest_names

SCHEMES = ("central", "forward", "fourth")
PARTICLES = ("per_particle", "collective", "stop")


@dataclass(frozen=True)
class FiniteDifference:
    """Choose how derivatives are taken.

    Args:
        scheme: ``"central"`` (2 runs an input), ``"forward"`` (1) or ``"fourth"`` (4).
        step: ``"auto"`` measures noise and curvature once per input (12 to 16 runs) and takes the best step for each
            output; a number is the step in multiples of each variable's ``scale``; a mapping gives steps by input
            name in the input's unit, with ``"auto"`` for the others.
        particles: ``"per_particle"`` for codes without forces between particles, whose Jacobian is one 6 by 6 block
            a particle; ``"collective"`` for codes with such forces, in forward mode only; ``"stop"`` for no gradient.
        check: whether to measure once, by 2 runs in a random direction, how far the per-particle form is off, and by
            2 runs an input how far the code's own derivatives are.
        native: whether derivatives that the code has itself (``Simulator.jacobian``) take the place of differences
            where there are some, but for a bunch with collective forces; ``gradient="native"`` is short for it.

    Raises:
        ValidationError: for an option that does not exist, or a step that is not positive.

    Example:
        >>> FiniteDifference("central", step=1e-3).scheme
        'central'
    """

    scheme: str = "central"
    step: str | float | Mapping[str, float] = "auto"
    particles: str = "per_particle"
    check: bool = True
    native: bool = False

    def __post_init__(self) -> None:
        for name, value, allowed in (("scheme", self.scheme, SCHEMES), ("particles", self.particles, PARTICLES)):
            if value not in allowed:
                raise ValidationError(f"{name} is {value!r}; expected one of {', '.join(map(repr, allowed))}")
        steps = self.step if isinstance(self.step, Mapping) else {"step": self.step}
        for name, step in steps.items():
            is_step = isinstance(step, (int, float)) and not isinstance(step, bool) and 0.0 < step < math.inf
            if step != "auto" and not is_step:
                owner = "step" if name == "step" else f"the step of {name!r}"
                raise ValidationError(f"{owner} is {step!r}; expected 'auto' or a positive finite number")

    def fixed_step(self, name: str, scale: float) -> float | None:
        """Return the step for an input in its unit, or None where it is to be chosen.

        Args:
            name: of the input.
            scale: size of its typical change [its unit].
        """
        if isinstance(self.step, Mapping):
            found = self.step.get(name, "auto")
            return None if found == "auto" else float(found)
        return None if self.step == "auto" else float(self.step) * scale


def method_of(gradient: FiniteDifference | str | None, numbers: Sequence[str]) -> FiniteDifference | None:
    """Return how derivatives are taken, for the short name too.

    Args:
        gradient: as ``BlackBoxModel`` was given it.
        numbers: names of the inputs that a step can be given for.

    Raises:
        UnknownVariableError: for a step of something else.
        ValidationError: for anything that is no such method.
    """
    if gradient == "native":
        return FiniteDifference(native=True)
    if isinstance(gradient, FiniteDifference):
        for name in gradient.step if isinstance(gradient.step, Mapping) else ():
            if name not in numbers:
                raise UnknownVariableError(
                    f"gradient has a step for {name!r}, which is no input that is a real number"
                    f"{nearest_names(name, numbers)}"
                )
        return gradient
    if gradient is None:
        return None
    raise ValidationError(f"gradient is {gradient!r}; expected FiniteDifference(), 'native' or None")
