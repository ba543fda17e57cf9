"""Derivatives of numbers where runs fail, near limits, and of outputs that are large."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from lume_diff.blackbox import BlackBoxModel, FiniteDifference
from lume_diff.errors import GradientError
from lume_diff.variables import TorchNDVariable, TorchScalarVariable

D = torch.float64


def model(function: Any, **options: Any) -> BlackBoxModel:
    limits = {name: options.pop(name) for name in ("value_range", "scale") if name in options}
    inputs = [TorchScalarVariable(name="a", default_value=1.0, **limits)]
    return BlackBoxModel.from_function(function, inputs, [TorchScalarVariable(name="y")], **options)


def slope(box: BlackBoxModel, at: float) -> float:
    a = torch.tensor(at, dtype=D, requires_grad=True)
    box({"a": a})["y"].backward()
    assert a.grad is not None
    return a.grad.item()


@pytest.mark.parametrize("step", ["auto", 1e-3])
def test_a_gradient_that_failed_is_taken_anew(step: Any) -> None:
    is_down = True

    def square(a: float) -> float:
        if is_down and a != 1.0:
            raise RuntimeError("the licence server is away")
        return a**2

    box = model(square, gradient=FiniteDifference(step=step))
    for _ in range(2):
        with pytest.raises(GradientError, match="no gradient with respect to 'a' at 1"):
            slope(box, 1.0)
    is_down = False
    assert slope(box, 1.0) == pytest.approx(2.0, rel=1e-6)


@pytest.mark.parametrize("at", [0.0, 1.0], ids=["lower", "upper"])
def test_at_a_limit_a_difference_that_fails_is_tried_closer(at: float) -> None:
    seen = []

    def narrow(a: float) -> float:
        seen.append(a)
        if abs(a - at) > 5e-3:
            raise RuntimeError("out of the aperture")
        return a**2 + a

    box = model(narrow, value_range=(0.0, 1.0), scale=0.1, gradient=FiniteDifference(step=0.1))
    assert slope(box, at) == pytest.approx(2.0 * at + 1.0, rel=1e-6)
    assert 0.0 <= min(seen) <= max(seen) <= 1.0


def test_large_outputs_are_remembered_by_their_size() -> None:
    image = TorchNDVariable(name="y", shape=(100, 100))
    inputs = [TorchScalarVariable(name="a", default_value=1.0)]
    box = BlackBoxModel.from_function(lambda a: np.full((100, 100), a), inputs, [image])
    box._memory._most_bytes = 400_000
    for value in range(20):
        box({"a": float(value)})
    assert len(box._memory._points) == 5  # of 80 kB each
    for value in range(20):
        box({"a": torch.tensor(float(value), dtype=D, requires_grad=True)})
    assert len(box._memory._points) == 2  # with room for a Jacobian of the same size beside each


def test_a_batch_of_nothing_gives_nothing() -> None:
    nothing = torch.zeros(0, dtype=D, requires_grad=True)
    found = model(lambda a: a**2)({"a": nothing})["y"]
    assert found.shape == (0,)
    found.sum().backward()
    assert nothing.grad is not None
    assert nothing.grad.shape == (0,)
