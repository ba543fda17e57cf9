"""Jacobians by name and models as functions of one tensor: shapes, modes, costs and refusals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from torch.autograd import forward_ad

from lume_diff.errors import GradientError, ShapeError, SimulatorError, UnknownVariableError, ValidationError
from lume_diff.models import GradientEntry, GradientReport, LUMEModel
from lume_diff.models.forward_mode import directions_at_once
from lume_diff.models.transforms import in_transform
from lume_diff.variables import (
    BoolVariable,
    EnumVariable,
    IntVariable,
    ParticleGroupVariable,
    StrVariable,
    TorchNDVariable,
    TorchScalarVariable,
)

F64 = torch.float64


class Mixed(LUMEModel):
    """Scalars and arrays in, scalars and arrays out, with switches that are no numbers."""

    def __init__(self, **options: Any) -> None:
        super().__init__(
            [
                TorchScalarVariable(name="a", default_value=2.0),
                TorchScalarVariable(name="b", default_value=3.0),
                TorchNDVariable(name="w", shape=(2, 3), default_value=[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]),
                BoolVariable(name="on", default_value=True),
                IntVariable(name="n", default_value=2),
                EnumVariable(name="mode", options=["x", "y"], default_value="x"),
                ParticleGroupVariable(name="bunch"),
                TorchScalarVariable(name="unset"),
                TorchScalarVariable(name="y", read_only=True),
                TorchScalarVariable(name="constant", read_only=True),
                TorchNDVariable(name="v", shape=(3,), read_only=True),
                TorchNDVariable(name="image", shape=(4, 5), read_only=True),
                StrVariable(name="text", read_only=True),
            ],
            **options,
        )

    def _run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
        a, b, w, n = (inputs[name] for name in ("a", "b", "w", "n"))
        v = a[..., None].sin() * w.square().sum(-2) + b[..., None]
        return {
            "y": (a**n) * b + w.sum((-1, -2)),
            "constant": torch.tensor(7.0, dtype=F64),
            "v": v,
            "image": v[..., None, :1] * torch.ones(4, 5, dtype=F64) * inputs["on"],
            "text": inputs["mode"],
        }


@pytest.fixture
def model() -> Mixed:
    return Mixed()


def shapes_of(table: dict[str, dict[str, torch.Tensor]]) -> dict[tuple[str, str], tuple[int, ...]]:
    return {(o, i): tuple(value.shape) for o, row in table.items() for i, value in row.items()}


@pytest.mark.parametrize("mode", ["forward", "reverse", "auto"])
@pytest.mark.parametrize("batch", [(), (4,), (2, 4)], ids=str)
def test_shapes_and_values(model: Mixed, mode: str, batch: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(1)
    a = torch.randn(batch, generator=generator, dtype=F64)
    w = torch.randn(*batch[-1:], 2, 3, generator=generator, dtype=F64)
    table = model.jacobian(["y", "v"], ["a", "w", "b"], at={"a": a, "w": w}, mode=mode)
    inner = {"y": (), "v": (3,)}
    assert shapes_of(table) == {
        (o, i): (*batch, *inner[o], *shape) for o in inner for i, shape in (("a", ()), ("w", (2, 3)), ("b", ()))
    }
    full = w.expand(*batch, 2, 3)
    torch.testing.assert_close(table["y"]["a"], 6.0 * a)
    torch.testing.assert_close(table["v"]["a"], a[..., None].cos() * full.square().sum(-2))
    expected = 2.0 * a.sin()[..., None, None, None] * torch.diag_embed(full).movedim(-2, -3)
    torch.testing.assert_close(table["v"]["w"], expected)
    assert not table["v"]["w"].requires_grad
    assert (table["y"]["w"] == 1.0).all()


@pytest.mark.parametrize("mode", ["forward", "reverse"])
def test_an_output_that_knows_no_batch_and_no_input(model: Mixed, mode: str) -> None:
    at = {"a": torch.ones(3, dtype=F64)}
    table = model.jacobian(["constant", "y", "b"], ["a", "b"], at=at, mode=mode)
    assert set(shapes_of(table).values()) == {(3,)}
    assert table["constant"]["a"].abs().sum() == 0
    assert table["b"]["b"].tolist() == [1.0, 1.0, 1.0]


def test_a_batch_at_the_set_points_counts(model: Mixed) -> None:
    model.set({"b": torch.ones(3, dtype=F64)})
    assert model.jacobian(["y"], ["a"])["y"]["a"].tolist() == [4.0, 4.0, 4.0]


def test_the_point_is_not_written(model: Mixed) -> None:
    model.jacobian(["y"], ["a"], at={"a": 5.0, "on": False})
    assert (model.get("a").item(), model.get("on").item()) == (2.0, True)
    assert model.jacobian(["y"], ["a"], at={"b": 10.0, "n": 1})["y"]["a"].item() == 10.0


@pytest.mark.parametrize(
    "outputs, inputs, mode, passes, other",
    [(["image"], ["a", "b"], "forward", 2, 20), (["y"], ["a", "w"], "reverse", 1, 7), (["y"], ["a"], "reverse", 1, 1)],
    ids=["many outputs", "many inputs", "as many"],
)
def test_auto_takes_the_cheaper_mode_and_says_so(
    model: Mixed, outputs: list[str], inputs: list[str], mode: str, passes: int, other: int
) -> None:
    model.jacobian(outputs, inputs)
    cost = model.gradient_report().jacobian
    assert cost is not None
    (alternative,) = cost.alternatives
    assert (cost.mode, cost.passes, alternative.passes) == (mode, passes, other)
    assert alternative.mode == {"forward": "reverse", "reverse": "forward"}[mode]
    assert model.runs == 1  # all directions go through together
    assert (cost.runs, cost.learning_runs, cost.predicted.runs, alternative.runs) == (0, 0, 0, 0)
    word, other_word = ("passes" if n != 1 else "pass" for n in (passes, other))
    expected = f"Jacobian in {mode} mode: {passes} {word} (would take: {alternative.mode} mode {other} {other_word}); "
    assert expected in str(model.gradient_report())
    assert " against " in cost.reason


@pytest.mark.parametrize("mode", ["forward", "reverse", "collective"])
def test_a_mode_that_was_asked_for_is_taken(model: Mixed, mode: str) -> None:
    model.jacobian(["image"], ["a"], mode=mode)
    cost = model.gradient_report().jacobian
    assert cost is not None
    assert (cost.mode, cost.reason) == (mode, "as asked")
    assert cost.passes == {"forward": 1, "reverse": 20, "collective": 1}[mode]


def test_directions_go_one_after_the_other_where_vmap_does_not_pass() -> None:
    class Square(torch.autograd.Function):
        @staticmethod
        def forward(x: torch.Tensor) -> torch.Tensor:
            return x.square()

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            ctx.save_for_forward(*inputs)

        @staticmethod
        def jvp(ctx: Any, tangent: torch.Tensor) -> torch.Tensor:
            return 2.0 * ctx.saved_tensors[0] * tangent

    class Forward(Mixed):
        def _run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
            return {"v": Square.apply(inputs["w"]).sum(-2) * inputs["b"][..., None]}

    model = Forward()
    table = model.jacobian(["v"], ["w", "b"], mode="forward")["v"]
    w = model.get("w")
    torch.testing.assert_close(table["b"], w.square().sum(-2))
    torch.testing.assert_close(table["w"], 6.0 * torch.diag_embed(w).movedim(-2, -3))
    assert model.runs == 1 + 7  # the first, which does not come through, and one for each component


def test_few_directions_go_together_where_values_are_large() -> None:
    assert [directions_at_once(numbers) for numbers in (0, 1000, 2**22, 2**24, 2**30)] == [32, 32, 4, 1, 1]


def test_auto_goes_back_where_forward_mode_does_not_work() -> None:
    class OneWay(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(x: torch.Tensor) -> torch.Tensor:
            return x.square()

        @staticmethod
        def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
            ctx.save_for_backward(*inputs)

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
            return 2.0 * ctx.saved_tensors[0] * gradient

    class Reverse(Mixed):
        def _run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
            return {"v": OneWay.apply(inputs["a"])[..., None] * torch.ones(3, dtype=F64)}

    model = Reverse()
    assert model.jacobian(["v"], ["a"])["v"]["a"].tolist() == [4.0, 4.0, 4.0]
    cost = model.gradient_report().jacobian
    assert cost is not None
    assert cost.mode == "reverse"
    assert "forward mode does not work here" in cost.reason
    with pytest.raises(GradientError, match="reverse mode"):
        model.jacobian(["v"], ["a"], mode="forward")


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference_mode"])
@pytest.mark.parametrize("mode", ["forward", "reverse"])
def test_grad_modes_around_do_not_matter(model: Mixed, around: Any, mode: str) -> None:
    with around():
        table = model.jacobian(["y"], ["a", "w"], at={"a": 3.0}, mode=mode)
    assert table["y"]["a"].item() == 18.0


@pytest.mark.parametrize(
    "outputs, inputs, options, error, words",
    [
        (["text"], ["a"], {}, GradientError, "'text' is a StrVariable"),
        (["y"], ["n"], {}, GradientError, "'n' is a IntVariable"),
        (["y"], ["bunch"], {}, GradientError, "'bunch' is a ParticleGroupVariable.*backpropagate"),
        (["y"], ["y"], {}, ValidationError, "'y' is an output"),
        (["yy"], ["a"], {}, UnknownVariableError, "'yy'.*nearest: 'y'"),
        ("y", ["a"], {}, ValidationError, r"write \['y'\]"),
        (["y"], "a", {}, ValidationError, r"write \['a'\]"),
        ([], ["a"], {}, ValidationError, "outputs is empty"),
        (["y"], ["unset"], {}, ValidationError, "'unset' has no value"),
        (["y"], ["a"], {"mode": "backward"}, ValidationError, "'auto', 'reverse', 'forward' or 'collective'"),
        (["y"], ["a"], {"at": {"a": float("nan")}}, ValidationError, "not finite"),
        (["y"], ["a"], {"at": {"a": torch.ones(2), "b": torch.ones(3)}}, ShapeError, "'b'.*'a'"),
    ],
)
def test_refusals(
    model: Mixed, outputs: Any, inputs: Any, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        model.jacobian(outputs, inputs, **options)


def test_inside_a_transform_it_says_what_to_do(model: Mixed) -> None:
    with pytest.raises(GradientError, match=r"torch\.func\.jacrev"):
        torch.func.grad(lambda x: model.jacobian(["y"], ["a"], at={"a": x})["y"]["a"])(torch.tensor(1.0, dtype=F64))


def test_a_failing_run_is_not_hidden_by_the_other_mode() -> None:
    class Failing(Mixed):
        def _run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
            raise RuntimeError("no beam")

    with pytest.raises(SimulatorError, match="no beam"):
        Failing().jacobian(["image"], ["a"])


def test_a_batch_of_numbers_that_are_no_inputs_is_refused() -> None:
    x, y = TorchScalarVariable(name="x", default_value=1.0), TorchScalarVariable(name="y", read_only=True)
    slopes = torch.tensor([1.0, 2.0, 3.0], dtype=F64)

    class Slopes(LUMEModel):
        def _run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
            return {"y": slopes * inputs["x"]}

    for mode in ("reverse", "forward"):
        with pytest.raises(ShapeError, match=r"'y' has the batch dimensions \(3,\) and the inputs have \(\)"):
            Slopes([x, y]).jacobian(["y"], ["x"], mode=mode)


# -- tensor_function


def test_columns_are_flattened_in_order(model: Mixed) -> None:
    function = model.tensor_function(["w", "a"], ["v", "y"])
    assert (function.n_in, function.n_out) == (7, 4)
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(5, 2, 7, generator=generator, dtype=F64)
    direct = model({"w": x[..., :6].reshape(5, 2, 2, 3), "a": x[..., 6]}, outputs=["v", "y"])
    torch.testing.assert_close(function(x), torch.cat([direct["v"], direct["y"][..., None]], -1))
    torch.testing.assert_close(function(x[0, 0]), function(x)[0, 0])


def test_outputs_are_brought_to_one_batch(model: Mixed) -> None:
    found = model.tensor_function(["a"], ["constant", "y"])(torch.ones(3, 1, dtype=F64))
    assert found.tolist() == [[7.0, 24.0]] * 3
    model.set({"b": torch.zeros(4, 1, dtype=F64)})
    assert model.tensor_function(["a"], ["constant", "y", "v"])(torch.ones(3, 1, dtype=F64)).shape == (4, 3, 5)


@pytest.mark.parametrize("shape", [(), (6,), (3, 8)], ids=str)
def test_a_wrong_number_of_columns_is_refused(model: Mixed, shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"expected \(\.\.\., 7\) for \['a', 'w'\]"):
        model.tensor_function(["a", "w"], ["y"])(torch.zeros(shape, dtype=F64))


def test_an_input_that_is_named_twice_is_refused(model: Mixed) -> None:
    with pytest.raises(ValidationError, match="input 'a' is named twice"):
        model.tensor_function(["a", "w", "a"], ["y"])


def test_it_follows_the_set_points_and_keeps_parameters(model: Mixed) -> None:
    function = model.tensor_function(["a"], ["y"])
    model.set({"b": 0.0})
    assert function(torch.zeros(1, dtype=F64)).item() == 21.0
    assert isinstance(function, torch.nn.Module)


# -- the report


def test_report_as_a_table() -> None:
    report = GradientReport()
    assert str(report) == "gradients are exact (autograd)"
    report.entries.append(GradientEntry("beta", "k1", "estimated", -1.5, 1e-3, None, 2e-9, 4))
    report.notes.append("one input was calibrated")
    lines = str(report).splitlines()
    assert lines[0] == "one input was calibrated"
    assert lines[1].split() == ["output", "input", "kind", "derivative", "step", "noise", "error", "runs"]
    assert lines[2].split() == ["beta", "k1", "estimated", "-1.5", "0.001", "-", "2e-09", "4"]


# -- the parts of torch that are not public


def test_torch_tells_whether_a_transform_runs() -> None:
    seen: list[tuple[bool, int]] = []

    def look(x: torch.Tensor) -> torch.Tensor:
        seen.append((in_transform(), forward_ad._current_level))
        return x.sum()

    at = torch.ones(2, dtype=F64)
    look(at)
    for run in (torch.func.grad(look), torch.func.vmap(look), lambda x: torch.func.jvp(look, (x,), (x,))):
        run(at)
    with forward_ad.dual_level():
        look(at)
    assert [inside for inside, _ in seen] == [False, True, True, True, False]
    assert seen[0][1] < 0 <= seen[-1][1]
