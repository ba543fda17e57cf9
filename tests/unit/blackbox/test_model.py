"""BlackBoxModel: runs that are counted, gradients that know their error, failures that say what they are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from lume_diff.blackbox import BlackBoxModel, FiniteDifference, Simulator
from lume_diff.errors import GradientError, ShapeError, SimulatorError, UnknownVariableError, ValidationError
from lume_diff.testing import check_model
from lume_diff.variables import (
    EnumVariable,
    IntVariable,
    ParticleGroupVariable,
    StrVariable,
    TorchNDVariable,
    TorchScalarVariable,
)

D = torch.float64


def scalar(name: str, value: float = 0.0, **options: Any) -> TorchScalarVariable:
    return TorchScalarVariable(name=name, default_value=value, **options)


def formula(a: float, b: float, c: float) -> dict[str, float]:
    return {"y": math.sin(a) * b**2 + c, "z": math.exp(a * b * c)}


def model(**options: Any) -> BlackBoxModel:
    inputs = [scalar("a", 0.3, scale=0.1), scalar("b", 0.5, value_range=(-1.0, 1.0)), scalar("c", -0.2)]
    return BlackBoxModel.from_function(formula, inputs=inputs, outputs=[scalar("y"), scalar("z")], **options)


def test_laws() -> None:
    results = check_model(model())
    assert not [name for name, result in results.items() if result.startswith("skipped")]


def test_forward_runs_once_and_a_gradient_runs_only_what_it_needs() -> None:
    box = model()
    a = torch.tensor(0.3, dtype=D, requires_grad=True)
    value = box({"a": a})["y"]
    assert box.runs == 1
    value.backward()
    measured = sum(calibration.runs for calibration in box._memory.calibrations.values())
    steps = {entry.step for entry in box.gradient_report().entries}
    # The measurement looks at the point itself too, which has been run already.
    assert 2 + 2 * len(steps) < box.runs <= 1 + measured + 2 * len(steps)
    assert a.grad is not None
    assert abs(a.grad.item() - math.cos(0.3) * 0.25) < 1e-10


def test_the_same_point_costs_nothing_again() -> None:
    box = model()
    a = torch.tensor(0.3, dtype=D, requires_grad=True)
    box({"a": a})["y"].backward()
    runs = box.runs
    box({"a": a})["z"].backward()
    torch.func.jvp(lambda x: box({"a": x})["y"], (a.detach(),), (torch.ones_like(a.detach()),))
    assert box.runs == runs


def test_error_estimates_cover_the_errors() -> None:
    box = model()
    leaves = {name: box.get(name).clone().requires_grad_() for name in "abc"}
    values = box(leaves)
    true = {
        ("y", "a"): math.cos(0.3) * 0.25,
        ("y", "b"): 2 * math.sin(0.3) * 0.5,
        ("y", "c"): 1.0,
        ("z", "a"): -0.1 * math.exp(-0.03),
        ("z", "b"): -0.06 * math.exp(-0.03),
        ("z", "c"): 0.15 * math.exp(-0.03),
    }
    torch.autograd.grad(values["y"], list(leaves.values()))
    entries = {(entry.output, entry.input): entry for entry in box.gradient_report().entries}
    for key, expected in true.items():
        entry = entries[key]
        assert entry.derivative is not None
        assert entry.error is not None
        assert abs(entry.derivative - expected) <= entry.error, key
        assert entry.error < 1e-8


@pytest.mark.parametrize("value", [-1.0, 1.0], ids=["lower", "upper"])
def test_at_a_bound_the_stencil_stays_inside(value: float) -> None:
    seen: list[float] = []

    def recorded(a: float, b: float, c: float) -> dict[str, float]:
        seen.append(b)
        return formula(a, b, c)

    inputs = [scalar("a", 0.3), scalar("b", 0.5, value_range=(-1.0, 1.0)), scalar("c", -0.2)]
    box = BlackBoxModel.from_function(recorded, inputs=inputs, outputs=[scalar("y"), scalar("z")])
    b = torch.tensor(value, dtype=D, requires_grad=True)
    box({"b": b})["y"].backward()
    assert min(seen) >= -1.0
    assert max(seen) <= 1.0
    assert b.grad is not None
    assert abs(b.grad.item() - 2 * math.sin(0.3) * value) < 1e-7


@pytest.mark.parametrize("scheme", ["central", "forward", "fourth"])
def test_schemes(scheme: str) -> None:
    box = model(gradient=FiniteDifference(scheme))
    a = torch.tensor(0.3, dtype=D, requires_grad=True)
    box({"a": a})["y"].backward()
    assert a.grad is not None
    assert abs(a.grad.item() - math.cos(0.3) * 0.25) < 1e-6


def test_fixed_steps_need_no_measurement() -> None:
    box = model(gradient=FiniteDifference("central", step={"a": 1e-4, "b": 1e-4, "c": 1e-4}))
    a = torch.tensor(0.3, dtype=D, requires_grad=True)
    box({"a": a})["y"].backward()
    assert box.runs == 3
    assert [entry.step for entry in box.gradient_report().entries] == pytest.approx([1e-4, 1e-4])


def test_batch_runs_every_point() -> None:
    box = model()
    a = torch.linspace(0.1, 0.5, 4, dtype=D, requires_grad=True)
    value = box({"a": a})["y"]
    assert box.runs == 4
    assert value.shape == (4,)
    value.sum().backward()
    assert a.grad is not None
    torch.testing.assert_close(a.grad, a.detach().cos() * 0.25, rtol=1e-9, atol=0)


def test_a_box_without_a_gradient_raises() -> None:
    box = model(gradient=None)
    a = torch.tensor(0.3, dtype=D, requires_grad=True)
    value = box({"a": a})["y"]
    with pytest.raises(GradientError, match="without a gradient"):
        value.backward()


def test_other_kinds_pass_through() -> None:
    def kinds(a: float, n: int, mode: str, wave: Any) -> dict[str, Any]:
        return {"y": a * n * wave.sum(), "label": f"{mode}-{n}", "twice": 2 * n, "shape": a * wave}

    box = BlackBoxModel.from_function(
        kinds,
        inputs=[
            scalar("a", 1.5),
            IntVariable(name="n", default_value=3),
            StrVariable(name="mode", default_value="on"),
            TorchNDVariable(name="wave", shape=(2,), default_value=[1.0, 2.0]),
        ],
        outputs=[
            scalar("y"),
            StrVariable(name="label"),
            IntVariable(name="twice"),
            TorchNDVariable(name="shape", shape=(2,)),
        ],
    )
    found = box.get()
    assert (found["label"], int(found["twice"])) == ("on-3", 6)
    wave = torch.tensor([1.0, 2.0], dtype=D, requires_grad=True)
    out = box({"wave": wave, "n": 4})
    (out["y"] + out["shape"].sum()).backward()
    assert wave.grad is not None
    torch.testing.assert_close(wave.grad, torch.full((2,), 1.5 * 4 + 1.5, dtype=D), rtol=1e-8, atol=0)


def test_a_string_that_is_the_same_all_over_a_batch_is_that_string() -> None:
    box = BlackBoxModel.from_function(
        lambda a: {"y": a, "sign": "plus" if a > 0 else "minus"},
        inputs=[scalar("a", 1.0)],
        outputs=[scalar("y"), EnumVariable(name="sign", options=["plus", "minus"])],
    )
    assert box({"a": torch.tensor([1.0, 2.0], dtype=D)})["sign"] == "plus"
    with pytest.raises(ShapeError, match="'sign' is 'minus', 'plus' within one batch"):
        box({"a": torch.tensor([1.0, -2.0], dtype=D)})


class Fragile(Simulator):
    """Fail where ``a`` is too large."""

    made = 0

    def __init__(self) -> None:
        type(self).made += 1

    def run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
        if inputs["a"] > 1.0:
            raise ArithmeticError("unstable")
        if inputs["a"] < -1.0:
            return {"y": math.nan}
        return {"y": inputs["a"] ** 2}


def fragile() -> BlackBoxModel:
    return BlackBoxModel(Fragile, [scalar("a", 0.5), scalar("y", read_only=True).replace(default_value=None)])


@pytest.mark.parametrize(
    ("value", "text"), [pytest.param(2.0, "unstable", id="raises"), pytest.param(-2.0, "finite", id="nan")]
)
def test_a_failing_run_is_tried_again_then_told_with_its_inputs(value: float, text: str) -> None:
    box = fragile()
    box.get("y")
    made = Fragile.made
    with pytest.raises(SimulatorError, match=text) as caught:
        box.set({"a": value})
    assert "a=" in str(caught.value)
    assert Fragile.made == made + 1
    assert box.get("y").item() == 0.25


def test_a_gradient_beside_a_region_that_fails_is_one_sided() -> None:
    box = fragile()
    a = torch.tensor(1.0, dtype=D, requires_grad=True)
    box({"a": a})["y"].backward()
    assert a.grad is not None
    assert abs(a.grad.item() - 2.0) < 1e-6


@pytest.mark.parametrize(
    ("options", "words"),
    [
        pytest.param({"scheme": "simplex"}, "scheme is 'simplex'; expected one of 'central'", id="scheme"),
        pytest.param({"step": -1.0}, "step is -1.0; expected 'auto' or a positive", id="step"),
        pytest.param({"step": {"a": 0.0}}, "the step of 'a' is 0.0", id="steps"),
        pytest.param({"step": math.inf}, "step is inf", id="endless-step"),
        pytest.param({"step": True}, "step is True", id="no-number"),
        pytest.param({"particles": "some"}, "particles is 'some'; expected one of 'per_particle'", id="particles"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        FiniteDifference(**options)


@pytest.mark.parametrize("name", ["d", "aa", "y"])
def test_a_step_of_what_is_no_input_is_refused(name: str) -> None:
    with pytest.raises(UnknownVariableError, match=f"a step for '{name}', which is no input"):
        model(gradient=FiniteDifference(step={"a": 1e-3, name: 1e-3}))


def test_an_output_that_is_missing_is_named() -> None:
    box = BlackBoxModel.from_function(lambda a: {"x": a}, inputs=[scalar("a", 1.0)], outputs=[scalar("y")])
    with pytest.raises(SimulatorError, match="'y'"):
        box.get("y")


def square(a: float) -> dict[str, float]:
    return {"y": a**2}


def test_worker_processes_give_the_same_gradient() -> None:
    options = {"inputs": [scalar("a", 1.5)], "outputs": [scalar("y")]}
    # A lambda travels by value: the workers cannot import the tests.
    with BlackBoxModel.from_function(lambda a: {"y": a**2}, **options, workers=2, timeout=60.0) as box:
        a = torch.tensor(1.5, dtype=D, requires_grad=True)
        box({"a": a})["y"].backward()
        assert a.grad is not None
        assert abs(a.grad.item() - 3.0) < 1e-8
        assert box.runs > 2


def test_an_archive_saves_every_run(tmp_path: Path) -> None:
    options = {"inputs": [scalar("a", 1.5)], "outputs": [scalar("y")], "archive": tmp_path / "runs.db"}
    gradients, runs = [], []
    for _ in range(2):
        box = BlackBoxModel.from_function(square, **options)
        a = torch.tensor(1.5, dtype=D, requires_grad=True)
        box({"a": a})["y"].backward()
        gradients.append(a.grad)
        runs.append(box.runs)
    assert runs[0] > 2
    assert runs[1] == 0
    assert gradients[0] is not None
    assert torch.equal(gradients[0], gradients[1])


def test_an_archive_takes_lists_and_leaves_out_what_nobody_asked_for(tmp_path: Path) -> None:
    outputs = [TorchNDVariable(name="y", shape=(2,))]
    for made in (1, 0):
        box = BlackBoxModel.from_function(
            lambda a: {"y": [a, 2.0 * a], "log": {"lines": 3}, "other": 5},
            inputs=[scalar("a", 1.5)],
            outputs=outputs,
            archive=tmp_path / "runs.db",
        )
        assert box.get("y").tolist() == [1.5, 3.0]
        assert box.runs == made


def test_archived_points_of_what_is_no_input_are_refused(tmp_path: Path) -> None:
    box = model(archive=tmp_path / "runs.db")
    box({"b": 0.1})
    assert box.archived_points(["b"]).tolist() == [[0.1]]
    with pytest.raises(UnknownVariableError, match="'bb' is not a variable of the inputs; nearest: 'b'"):
        box.archived_points(["bb"])


class Adjustable(Simulator):
    """Multiply by what somebody may change by hand."""

    gain = 2.0

    def run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
        return {"y": self.gain * inputs["a"]}

    def reset(self) -> None:
        self.gain = 2.0


def test_a_reset_undoes_what_was_changed_by_hand_and_its_results() -> None:
    box = BlackBoxModel(Adjustable, [scalar("a", 1.0), scalar("y", read_only=True).replace(default_value=None)])
    assert box.get("y").item() == 2.0
    box.simulator.gain = 5.0
    box.refresh()
    assert box.get("y").item() == 5.0
    box.reset()
    assert (box.get("y").item(), box.simulator.gain) == (2.0, 2.0)
    runs = box.runs
    box.reset()
    assert box.get("y").item() == 2.0
    assert box.runs == runs  # nothing was changed since, so nothing is run again


@pytest.mark.parametrize(
    ("derived", "error", "words"),
    [
        ({"size": ("out", "sigma_x")}, UnknownVariableError, "'size' is not a variable of the outputs"),
        ({"y": ("y", "sigma_x")}, ValidationError, "'y' is a statistic of 'y'; expected .* a bunch: 'out'"),
        ({"y": ("out", "sigmax")}, UnknownVariableError, "sigma_x"),
    ],
    ids=["no-output", "no-bunch", "no-statistic"],
)
def test_what_cannot_be_derived_is_refused(derived: Any, error: type[Exception], words: str) -> None:
    variables = [scalar("a", 1.0), scalar("y", read_only=True), ParticleGroupVariable(name="out", read_only=True)]
    with pytest.raises(error, match=words):
        BlackBoxModel(Adjustable, variables, derived=derived)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        pytest.param({"timeout": 1.0}, "only worker processes can be stopped", id="timeout-without-workers"),
        pytest.param({"workers": -1}, "workers is -1; expected a whole number", id="workers"),
        pytest.param(
            {"workers": 2, "executor": ThreadPoolExecutor(1)}, "choose one of them", id="workers-and-executor"
        ),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        BlackBoxModel.from_function(square, inputs=[scalar("a", 1.5)], outputs=[scalar("y")], **options)
