"""What a gradient costs in runs: measured once, kept in the archive, and told in the report."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lume_diff.archive import RunArchive
from lume_diff.blackbox import BlackBoxModel, FiniteDifference, Simulator
from lume_diff.variables import TorchScalarVariable

D = torch.float64


class Machine(Simulator):
    """Two outputs of p inputs, the second with noise that depends on the inputs alone."""

    version = "1"

    def __init__(self, noise: float) -> None:
        self.noise = noise

    def run(self, inputs: Any, outputs: Any) -> dict[str, Any]:
        x = np.array(list(inputs.values()))
        seed = np.frombuffer(x.tobytes(), dtype=np.uint32)
        smooth = float(np.sin(x).sum() + x.prod())
        return {"y": smooth, "z": smooth + self.noise * np.random.default_rng(seed).normal()}

    def identity(self) -> str:
        return f"machine {self.version} {self.noise}"


def model(count: int, noise: float = 0.0, scale: float = 1.0, **options: Any) -> BlackBoxModel:
    inputs = [TorchScalarVariable(name=f"a{i}", default_value=0.3, scale=scale) for i in range(count)]
    outputs = [TorchScalarVariable(name=name, read_only=True) for name in "yz"]
    return BlackBoxModel(lambda: Machine(noise), [*inputs, *outputs], **options)


def jacobian(box: BlackBoxModel, value: float) -> torch.Tensor:
    """Return the Jacobian of both outputs at a point, ``(2, p)``."""
    names = box.input_names
    x = torch.linspace(value, value + 0.1, len(names), dtype=D)
    return torch.func.jacrev(lambda v: torch.stack(list(box(dict(zip(names, v, strict=True))).values())))(x)


def truth(count: int, value: float) -> torch.Tensor:
    x = torch.linspace(value, value + 0.1, count, dtype=D)
    return x.cos() + x.prod() / x


def spent(box: BlackBoxModel, task: Callable[[], Any]) -> int:
    before = box.runs
    task()
    return box.runs - before


@pytest.mark.parametrize("count", [1, 5, 10])
@pytest.mark.parametrize("noise", [0.0, 1e-4], ids=["one-step", "two-steps"])
def test_a_jacobian_costs_two_runs_an_input_and_step_and_one_for_the_value(count: int, noise: float) -> None:
    box = model(count, noise)
    first = spent(box, lambda: jacobian(box, 0.3))
    steps = 2 if noise else 1
    per_jacobian = 2 * count * steps
    # A measurement takes 12 to 16 runs, one of which is the value.
    assert 11 * count <= first - per_jacobian - 1 <= 15 * count
    found: list[torch.Tensor] = []
    assert spent(box, lambda: found.append(jacobian(box, 0.5))) == per_jacobian + 1
    torch.testing.assert_close(found[0][0], truth(count, 0.5), rtol=1e-8, atol=0)
    torch.testing.assert_close(found[0][1], truth(count, 0.5), rtol=3e-2, atol=0)
    assert spent(box, lambda: jacobian(box, 0.5)) == 0
    report = str(box.gradient_report())
    measured = first - per_jacobian - 1
    inputs = "1 input" if count == 1 else f"{count} inputs"
    assert f"noise and curvature of {inputs} took {measured} runs" in report
    assert f"2 for values, {2 * per_jacobian} for Jacobians" in report
    assert f"the last Jacobian (1 point, {inputs}) took {per_jacobian} runs besides the value" in report


@pytest.mark.parametrize(("scheme", "runs"), [("forward", 1), ("central", 2), ("fourth", 4)])
def test_a_scheme_costs_what_it_says(scheme: str, runs: int) -> None:
    box = model(3, gradient=FiniteDifference(scheme))
    jacobian(box, 0.3)
    assert spent(box, lambda: jacobian(box, 0.5)) == runs * 3 + 1


def test_second_derivatives_are_counted_and_have_errors() -> None:
    box = model(2)
    x = torch.tensor([0.3, 0.4], dtype=D)
    found = torch.func.hessian(lambda v: box({"a0": v[0], "a1": v[1]})["y"])(x)
    report = box.gradient_report()
    assert "6 for second derivatives" in str(report)
    entries = {entry.input: entry for entry in report.entries if entry.output == "y"}
    expected = {"a0, a0": -np.sin(0.3), "a1, a1": -np.sin(0.4), "a0, a1": 1.0}
    for name, value in expected.items():
        error = entries[name].error
        assert error is not None
        assert abs(entries[name].derivative - value) <= error < 1e-4
    torch.testing.assert_close(found[0, 1].item(), 1.0, rtol=0, atol=1e-4)


@pytest.mark.parametrize("value", [-1.0, 0.3, 1.0], ids=["lower", "inside", "upper"])
@pytest.mark.parametrize("step", ["auto", 1e-3])
def test_the_second_derivative_with_respect_to_one_input_stays_inside_its_limits(
    value: float, step: str | float
) -> None:
    variables = [
        TorchScalarVariable(name="a0", default_value=0.3, value_range=(-1.0, 1.0)),
        TorchScalarVariable(name="y", read_only=True),
    ]
    rows: list[float] = []

    class Recording(Machine):
        def run(self, inputs: Any, outputs: Any) -> dict[str, Any]:
            rows.append(inputs["a0"])
            return super().run(inputs, outputs)

    box = BlackBoxModel(lambda: Recording(0.0), variables, FiniteDifference(step=step))
    x = torch.tensor(value, dtype=D)
    found = torch.func.grad(torch.func.grad(lambda v: box({"a0": v})["y"]))(x)
    assert found.item() == pytest.approx(-np.sin(value), abs=1e-4)
    assert -1.0 - 1e-12 <= min(rows) <= max(rows) <= 1.0 + 1e-12
    (error,) = (entry.error for entry in box.gradient_report().entries if entry.input == "a0, a0")
    assert (error is None) == (step != "auto")
    assert error is None or abs(found.item() + np.sin(value)) <= error


# -- in the archive --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 5])
def test_another_model_on_the_same_archive_measures_nothing_again(count: int, tmp_path: Path) -> None:
    first, second = (model(count, archive=tmp_path / "runs.db") for _ in range(2))
    found = jacobian(first, 0.3)
    assert torch.equal(jacobian(second, 0.3), found)
    assert second.runs == 0
    third = model(count, archive=tmp_path / "runs.db")
    jacobian(third, 0.5)
    assert third.runs == 2 * count + 1
    report = str(third.gradient_report())
    assert (
        f"noise and curvature of 0 inputs took 0 runs; those of {count} input{'s' * (count > 1)} came from the archive"
        in report
    )


PROGRAM = """
import sys
import torch
from lume_diff.blackbox import BlackBoxModel
from lume_diff.variables import TorchScalarVariable

def cube(a):
    return {"y": a**3}

box = BlackBoxModel.from_function(
    cube, [TorchScalarVariable(name="a", default_value=1.0)], [TorchScalarVariable(name="y")], archive=sys.argv[1]
)
a = torch.tensor(float(sys.argv[2]), dtype=torch.float64, requires_grad=True)
box({"a": a})["y"].backward()
print(box.runs, a.grad.item())
"""


@pytest.mark.system
def test_another_process_on_the_same_archive_measures_nothing_again(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)

    def run(value: float) -> tuple[int, float]:
        command = [sys.executable, str(program), str(tmp_path / "runs.db"), str(value)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=dict(os.environ), check=False)
        assert done.returncode == 0, done.stderr
        runs, slope = done.stdout.split()
        return int(runs), float(slope)

    assert run(1.0)[0] >= 12
    assert run(1.0)[0] == 0
    runs, slope = run(2.0)
    assert runs == 3
    assert slope == pytest.approx(12.0, rel=1e-8)


def test_facts_are_no_runs(tmp_path: Path) -> None:
    box = model(1, archive=tmp_path / "runs.db")
    jacobian(box, 0.3)
    assert len(RunArchive(tmp_path / "runs.db")) == box.runs


@pytest.mark.parametrize("change", ["identity", "scale", "outputs", "refresh"])
def test_what_was_measured_of_something_else_is_not_used(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "runs.db"
    jacobian(model(1, archive=path), 0.3)
    if change == "identity":
        monkeypatch.setattr(Machine, "version", "2")
    box = model(1, archive=path, scale=0.5 if change == "scale" else 1.0)
    if change == "refresh":
        box.refresh()
    if change == "outputs":
        variables = [TorchScalarVariable(name="a0", scale=1.0), TorchScalarVariable(name="z", read_only=True)]
        box = BlackBoxModel(lambda: Machine(0.0), variables, archive=path)
        box({"a0": torch.tensor(0.5, dtype=D, requires_grad=True)})["z"].backward()
    else:
        jacobian(box, 0.5)
    assert box.runs >= 12 + 2
    report = str(box.gradient_report())
    assert "noise and curvature of 1 input " in report
    assert "came from the archive" not in report
