"""Derivatives that a simulator has itself: used for what they cover, checked once, and never believed blindly."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lume_diff.blackbox import BlackBoxModel, FiniteDifference, Simulator
from lume_diff.errors import PhysicsWarning, ShapeError, ValidationError
from lume_diff.variables import TorchNDVariable, TorchScalarVariable

D = torch.float64


class Numbers(Simulator):
    """``y = a b**2 + sum(w)``, ``z = sin(a) + b`` and ``v = a w``, with as many derivatives as one likes."""

    def __init__(self, covered: Mapping[str, Sequence[str]], wrong: float = 0.0, noise: float = 0.0) -> None:
        self.covered, self.wrong, self.noise = covered, wrong, noise
        self.random = np.random.default_rng(1)

    def run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
        a, b, w = (inputs[name] for name in "abw")
        y = a * b**2 + w.sum() + self.noise * self.random.normal()
        return {"y": y, "z": math.sin(a) + b, "v": a * w}

    def jacobian(
        self, inputs: Mapping[str, Any], outputs: Sequence[str], wrt: Sequence[str]
    ) -> dict[str, dict[str, np.ndarray]]:
        a, b, w = (inputs[name] for name in "abw")
        exact = {
            "y": {"a": b**2 + self.wrong, "b": 2 * a * b, "w": np.ones(2)},
            "z": {"a": math.cos(a), "b": 1.0, "w": np.zeros(2)},
            "v": {"a": w, "b": np.zeros(2), "w": a * np.eye(2)},
        }
        return {o: {i: np.array(exact[o][i]) for i in names} for o, names in self.covered.items()}


ALL = dict.fromkeys("yzv", "abw")
POINT = {"a": 0.3, "b": 0.5, "w": [1.0, 2.0]}
TRUTH = {"a": 0.25 + math.cos(0.3) + 3.0, "b": 0.3 + 1.0, "w": [1.3, 1.3]}


def model(
    covered: Mapping[str, Sequence[str]] = ALL,
    gradient: Any = "native",
    wrong: float = 0.0,
    noise: float = 0.0,
    **options: Any,
) -> BlackBoxModel:
    inputs = [TorchScalarVariable(name=n, default_value=POINT[n]) for n in "ab"]
    outputs = [TorchScalarVariable(name=n, read_only=True) for n in "yz"]
    arrays = [
        TorchNDVariable(name="w", shape=(2,), default_value=POINT["w"]),
        TorchNDVariable(name="v", shape=(2,), read_only=True),
    ]
    return BlackBoxModel(lambda: Numbers(covered, wrong, noise), [*inputs, *outputs, *arrays], gradient, **options)


def gradients(box: BlackBoxModel) -> dict[str, torch.Tensor]:
    """Return the gradient of the sum of all outputs."""
    leaves = {name: torch.tensor(value, dtype=D, requires_grad=True) for name, value in POINT.items()}
    sum(value.sum() for value in box(leaves).values()).backward()
    return {name: leaf.grad for name, leaf in leaves.items()}


def assert_right(found: Mapping[str, torch.Tensor], rtol: float = 1e-8) -> None:
    for name, value in TRUTH.items():
        torch.testing.assert_close(found[name], torch.tensor(value, dtype=D), rtol=rtol, atol=0)


def test_what_the_code_knows_costs_no_runs_but_for_the_check() -> None:
    box = model()
    assert_right(gradients(box), rtol=1e-12)
    assert box.runs == 1 + 2 * 4  # the value, and 2 for each of 4 columns once
    leaves = {name: torch.tensor(value, dtype=D) * 1.1 for name, value in POINT.items()}
    box({**leaves, "a": leaves["a"].requires_grad_()})["y"].backward()
    assert box.runs == 1 + 2 * 4 + 1
    report = box.gradient_report()
    assert {entry.kind for entry in report.entries} == {"native"}
    assert all(entry.error is not None and entry.error < 1e-6 and entry.runs == 0 for entry in report.entries)
    assert "saved 10 runs; 8 runs went into checks" in str(report)


def test_the_check_can_be_left_out() -> None:
    box = model(gradient=FiniteDifference(native=True, check=False))
    assert_right(gradients(box), rtol=1e-12)
    assert box.runs == 1
    assert {entry.error for entry in box.gradient_report().entries} == {None}


def test_only_what_is_not_covered_costs_runs() -> None:
    box = model({"y": "ab", "z": "a", "v": "a"}, FiniteDifference(native=True, check=False, step=1e-4))
    assert_right(gradients(box))
    assert box.runs == 1 + 2 * 3  # b, w[0] and w[1]
    kinds = {(e.output, e.input): e.kind for e in box.gradient_report().entries}
    native = {key for key, kind in kinds.items() if kind == "native"}
    assert native == {("y", "a"), ("y", "b"), ("z", "a"), ("v", "a")}
    assert kinds["z", "b"] == kinds["y", "w[1]"] == "estimated"


def test_numbers_that_are_not_finite_are_not_covered() -> None:
    box = model(wrong=math.nan)
    assert_right(gradients(box))
    kinds = {(e.output, e.input): e.kind for e in box.gradient_report().entries}
    assert kinds["y", "a"] == "estimated"
    assert kinds["z", "a"] == "native"


def test_a_code_that_knows_nothing_works_by_differences_and_says_so() -> None:
    box, plain = model({}), model(gradient=FiniteDifference())
    found, expected = gradients(box), gradients(plain)
    for name in POINT:
        assert torch.equal(found[name], expected[name])
    assert box.runs == plain.runs
    assert "gave no derivatives of its own" in str(box.gradient_report())
    assert "of its own" not in str(plain.gradient_report())


class Failing(Numbers):
    """Cannot tell its derivatives."""

    def jacobian(self, *_: Any) -> dict[str, dict[str, np.ndarray]]:
        raise ArithmeticError("the optics is unstable")


def test_a_code_that_fails_at_its_derivatives_works_by_differences_and_says_so() -> None:
    box = model()
    box._runner._factory = lambda: Failing(ALL)  # type: ignore[attr-defined]
    assert_right(gradients(box))
    assert "its own derivatives failed: jacobian() failed with ArithmeticError" in str(box.gradient_report())


def test_a_wrong_derivative_is_told_with_its_number() -> None:
    with pytest.warns(PhysicsWarning, match=r"'y' with respect to 'a' is off by 0\.001 \(0\.004 of it\)"):
        gradients(box := model(wrong=1e-3))
    (entry,) = (e for e in box.gradient_report().entries if (e.output, e.input) == ("y", "a"))
    assert entry.error == pytest.approx(1e-3, rel=1e-3)
    gradients(box)  # told once


def test_noise_of_the_code_is_not_taken_for_an_error_of_its_derivatives() -> None:
    """At the step of the first look noise makes the difference useless: it is measured before anyone is blamed."""
    box = model(noise=1e-5)
    assert_right(gradients(box), rtol=1e-12)
    errors = {(e.output, e.input): e.error for e in box.gradient_report().entries}
    assert errors["y", "a"] < 2e-2
    assert errors["z", "a"] < 1e-6


@pytest.fixture(params=["workers", "threads", "archive"])
def options(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[dict[str, Any]]:
    with ThreadPoolExecutor(2) as executor:
        yield {
            "workers": {"workers": 2, "timeout": 60.0},
            "threads": {"executor": executor},
            "archive": {"archive": tmp_path / "runs.db"},
        }[request.param]


def source(exact: float, **options: Any) -> BlackBoxModel:
    """Return a model whose simulator travels by value, as workers cannot import the tests."""

    class Square(Simulator):
        def run(self, inputs: Any, outputs: Any) -> dict[str, Any]:
            return {"y": inputs["a"] ** 2}

        def jacobian(self, inputs: Any, outputs: Any, wrt: Any) -> dict[str, dict[str, Any]]:
            if exact == 0.0:
                raise ArithmeticError("unstable")
            assert (outputs, wrt) == (["y"], ["a"])
            return {"y": {"a": exact * inputs["a"]}}

    variables = [TorchScalarVariable(name="a", default_value=1.5), TorchScalarVariable(name="y", read_only=True)]
    return BlackBoxModel(Square, variables, "native", **options)


@pytest.mark.parametrize("exact", [pytest.param(2.0, id="works"), pytest.param(0.0, id="fails")])
def test_every_runner_asks_for_them(options: dict[str, Any], exact: float) -> None:
    with source(exact, **options) as box:
        a = torch.linspace(1.0, 2.0, 3, dtype=D, requires_grad=True)
        box({"a": a})["y"].sum().backward()
        torch.testing.assert_close(a.grad, 2 * a.detach(), rtol=1e-9, atol=0)
        assert {entry.kind for entry in box.gradient_report().entries} == {"native" if exact else "estimated"}
        if exact:
            assert box.runs == 3 + 2
        else:
            assert "unstable" in str(box.gradient_report())


@pytest.mark.parametrize("name", ["reverse", "forward", "batched"])
def test_gradcheck(name: str) -> None:
    box = model()
    flags = {"reverse": {}, "forward": {"check_forward_ad": True}, "batched": {"check_batched_grad": True}}[name]

    def function(a: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(box({"a": a, "w": w}).values())

    leaves = [torch.tensor(POINT[n], dtype=D, requires_grad=True) for n in "aw"]
    assert torch.autograd.gradcheck(function, leaves, **flags)


def test_second_derivatives_are_differences_still() -> None:
    box = model()
    found = torch.func.hessian(lambda x: box({"a": x[0], "b": x[1]})["y"])(torch.tensor([0.3, 0.5], dtype=D))
    torch.testing.assert_close(found, torch.tensor([[0.0, 1.0], [1.0, 0.6]], dtype=D), rtol=0, atol=1e-4)


def test_an_array_of_another_shape_is_named() -> None:
    box = BlackBoxModel(
        lambda: Transposed({"v": "w"}),
        [
            TorchNDVariable(name="w", shape=(3,), default_value=[1.0, 2.0, 3.0]),
            TorchNDVariable(name="v", shape=(2,), read_only=True),
        ],
        "native",
    )
    w = torch.ones(3, dtype=D, requires_grad=True)
    with pytest.raises(ShapeError, match=r"'v' with respect to 'w' with shape \(3, 2\); expected \(2, 3\)"):
        box({"w": w})["v"].sum().backward()


class Transposed(Numbers):
    """Gives the transposed of a Jacobian."""

    def run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
        return {"v": inputs["w"][:2]}

    def jacobian(self, *_: Any) -> dict[str, dict[str, np.ndarray]]:
        return {"v": {"w": np.eye(3)[:, :2]}}


@pytest.mark.parametrize("gradient", ["exact", 3, True])
def test_other_names_are_refused(gradient: Any) -> None:
    with pytest.raises(ValidationError, match="'native'"):
        model(gradient=gradient)
