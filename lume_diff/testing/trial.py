"""What a law is tried on, and when two values are the same."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from lume_diff.errors import LumeDiffError
from lume_diff.models.base import LUMEModel
from lume_diff.models.transforms import tensors_in
from lume_diff.variables import TorchScalarVariable

Values = dict[str, Any]


class LawViolation(LumeDiffError, AssertionError):
    """A model that breaks a law; the message names the law and what was seen."""


@dataclass
class Trial:
    """What the laws are tried on.

    Attributes:
        model: the model, which a law may leave in any state.
        inputs: scalar inputs that may be varied.
        outputs: scalar outputs with a gradient.
        rtol: relative accuracy that gradients must have.
        generator: source of random settings.
        notes: what a law found worth telling.
    """

    model: LUMEModel
    inputs: list[str]
    outputs: list[str]
    rtol: float
    generator: torch.Generator
    notes: list[str] = field(default_factory=list)

    def demand(self, holds: bool, text: str) -> None:
        """Raise ``LawViolation`` with a ``text`` unless the law ``holds`` here."""
        if not holds:
            raise LawViolation(text)

    def variable(self, name: str) -> TorchScalarVariable:
        """Return the description of a scalar input."""
        variable = self.model.supported_variables[name]
        if not isinstance(variable, TorchScalarVariable):
            raise LawViolation(f"{name!r} is not a scalar variable")
        return variable

    def scale(self, name: str) -> float:
        """Return the size of a typical change of an input."""
        return float(self.variable(name).scale or 1.0)

    def noise(self, output: str, name: str) -> float:
        """Return the noise measured in an ``output`` along the input called ``name``, 0 where none was measured."""
        entries = self.model.gradient_report().entries
        return max((e.noise or 0.0 for e in entries if (e.output, e.input) == (output, name)), default=0.0)

    def somewhere(self) -> Values:
        """Return values near the set-points, inside the limits and not on them."""
        values: Values = {}
        for name in self.inputs:
            shift = self.scale(name) * (0.5 + torch.rand((), generator=self.generator, dtype=torch.float64).item())
            here = float(self.model.get(name).detach().reshape(-1)[0])
            low, high = self.variable(name).value_range or (-math.inf, math.inf)
            up, down = 0.9 * (high - here), 0.9 * (here - low)  # what is left lets a difference be taken there
            values[name] = here + shift if shift <= up else here + up if up >= down else here - min(shift, down)
        return values

    def tensor(self, value: float) -> torch.Tensor:
        """Return a number in the model's dtype."""
        return torch.tensor(value, dtype=self.model.dtype, device=self.model.device)

    def leaf(self, name: str) -> torch.Tensor:
        """Return a new setting of an input that requires a gradient."""
        return self.tensor(self.somewhere()[name]).requires_grad_()

    def read(self) -> Values:
        """Return the set-points and the watched outputs."""
        return self.model.get([*self.inputs, *self.outputs])

    def pair(self) -> tuple[str, str]:
        """Return an input and an output that depends on it."""
        at = self.somewhere()
        for output in self.outputs:
            leaves = {name: self.tensor(at[name]).requires_grad_() for name in self.inputs}
            value = self.model(leaves, outputs=[output])[output]
            if not value.requires_grad:
                continue
            found = torch.autograd.grad(value.sum(), list(leaves.values()), allow_unused=True)
            for name, gradient in zip(leaves, found, strict=True):
                if gradient is not None and bool(gradient != 0):
                    return name, output
        raise LawViolation(f"none of the outputs {self.outputs} depends on any of the inputs {self.inputs}")


def same(a: Any, b: Any, rtol: float = 0.0) -> bool:
    """Tell whether two values are equal, NaN to NaN, to a relative tolerance."""
    left, right = list(tensors_in(a)), list(tensors_in(b))
    if not left and not right:
        return bool(a == b)
    return len(left) == len(right) and all(
        x.shape == y.shape and torch.allclose(x.double(), y.double(), rtol=rtol, atol=1e-300, equal_nan=True)
        for x, y in zip(left, right, strict=True)
    )


def same_all(a: Mapping[str, Any], b: Mapping[str, Any], rtol: float = 0.0) -> bool:
    """Tell whether two tables of values are equal."""
    return a.keys() == b.keys() and all(same(a[name], b[name], rtol) for name in a)
