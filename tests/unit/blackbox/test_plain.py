"""The short way through a black box: one point without gradients, as the long way gives it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from beamphysics import ParticleGroup
from torch import Tensor

from lume_diff.blackbox import BlackBoxModel
from lume_diff.blackbox.call import Call
from lume_diff.blackbox.plain import plain_run
from lume_diff.blackbox.simulator import Simulator
from lume_diff.errors import ShapeError, SimulatorError
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


def everything(a: float, w: np.ndarray, on: bool, n: int, mode: str) -> dict[str, Any]:
    sign = {"up": 1.0, "down": -1.0}[mode]
    return {
        "y": sign * a**n,
        "np": np.float64(a),
        "v": w.sum(axis=0) * a,
        "count": n + 1,
        "is_on": not on,
        "text": mode.upper(),
    }


def model(**options: Any) -> BlackBoxModel:
    return BlackBoxModel.from_function(
        everything,
        [
            TorchScalarVariable(name="a", default_value=2.0),
            TorchNDVariable(name="w", shape=(2, 3), default_value=[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]),
            BoolVariable(name="on", default_value=True),
            IntVariable(name="n", default_value=3),
            EnumVariable(name="mode", options=["up", "down"], default_value="up"),
        ],
        [
            TorchScalarVariable(name="y"),
            TorchScalarVariable(name="np"),
            TorchNDVariable(name="v", shape=(3,)),
            IntVariable(name="count"),
            BoolVariable(name="is_on"),
            StrVariable(name="text"),
        ],
        **options,
    )


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return bool(torch.equal(one, other)) and (one.dtype, one.device) == (other.dtype, other.device)
    return bool(one == other)


@pytest.mark.parametrize("dtype", [torch.float32, F64], ids=str)
def test_both_ways_give_the_same(dtype: torch.dtype) -> None:
    box = model(dtype=dtype)
    inputs = box._merged(box._checked_inputs({"a": 1.7, "mode": "down"}))
    short, long = plain_run(box, inputs, box.output_names), Call(box, inputs, box.output_names).outputs()
    assert short is not None
    assert short.keys() == long.keys()
    assert all(same(short[name], long[name]) for name in short), (short, long)
    assert short["y"].dtype == dtype
    assert short["y"].item() == pytest.approx(-(1.7**3), rel=1e-6)


@pytest.mark.parametrize(
    "values",
    [{"a": torch.tensor([1.0, 2.0], dtype=F64)}, {"w": torch.ones(4, 2, 3, dtype=F64)}, {"n": torch.tensor([1, 2])}],
    ids=["numbers", "arrays", "integers"],
)
def test_a_batch_goes_the_long_way(values: dict[str, Tensor]) -> None:
    box = model()
    inputs = box._merged(box._checked_inputs(values))
    assert plain_run(box, inputs, box.output_names) is None
    assert box(values, outputs=["y"])["y"].shape == next(iter(values.values())).shape[:1]


def test_a_gradient_goes_the_long_way() -> None:
    box, a = model(), torch.tensor(1.5, dtype=F64, requires_grad=True)
    assert box({"a": a})["y"].requires_grad
    with torch.no_grad():
        assert not box({"a": a})["y"].requires_grad
    assert torch.func.grad(lambda x: box({"a": x}, outputs=["y"])["y"])(a.detach()).item() == pytest.approx(6.75)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(a.detach(), torch.ones_like(a.detach()))
        pushed = torch.autograd.forward_ad.unpack_dual(box({"a": dual}, outputs=["y"])["y"]).tangent
        assert pushed is not None
        assert pushed.item() == pytest.approx(6.75)


def test_a_point_is_run_once() -> None:
    box = model()
    for _ in range(2):
        box({"a": 1.5})
        box.set({"a": 1.5})
        assert box.get()["text"] == "UP"
    assert box.runs == 1
    box({"a": 1.5, "w": 2.0 * torch.ones(2, 3)})
    box({"a": 1.5, "mode": "down"})
    assert box.runs == 3
    box.refresh()
    box({"a": 1.5})
    assert box.runs == 4


def test_what_is_returned_can_be_written_to() -> None:
    box = model()
    box({"a": 1.5})["v"].zero_()
    assert box({"a": 1.5})["v"].abs().min() > 0


@pytest.mark.parametrize("values", [{}, {"a": torch.ones(2, dtype=F64)}], ids=["one", "batch"])
def test_an_output_of_another_shape_is_refused(values: dict[str, Any]) -> None:
    box = BlackBoxModel.from_function(
        lambda a: {"v": np.ones(2)},
        [TorchScalarVariable(name="a", default_value=1.0)],
        [TorchNDVariable(name="v", shape=(3,))],
    )
    with pytest.raises(ShapeError, match=r"'v' of shape \(2,\); its variable says \(3,\)"):
        box(values)


def test_a_failure_says_what_did_it_and_is_not_kept() -> None:
    box = model()
    with pytest.raises(SimulatorError, match=r"a=1\.0"):
        box({"a": 1e300})
    with pytest.raises(SimulatorError):
        box({"a": 1e300})
    assert box.runs == 4


# -- many points, and bunches from nowhere


@pytest.mark.parametrize("differentiate", [False, True], ids=["values", "gradient"])
def test_a_batch_may_be_larger_than_the_memory(differentiate: bool) -> None:
    box = BlackBoxModel.from_function(
        lambda a: {"y": a**2}, [TorchScalarVariable(name="a", default_value=1.0)], [TorchScalarVariable(name="y")]
    )
    a = torch.linspace(0.5, 2.0, 700, dtype=F64, requires_grad=differentiate)
    y = box({"a": a})["y"]
    torch.testing.assert_close(y.detach(), a.detach() ** 2)
    assert box.runs == 700
    if differentiate:
        y.sum().backward()
        torch.testing.assert_close(a.grad, 2.0 * a.detach(), rtol=1e-6, atol=0)


class Source(Simulator):
    """Make a bunch of twenty particles whose width is the square of an input."""

    def run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
        x = np.linspace(-1e-3, 1e-3, 20)
        zero = np.zeros_like(x)
        data = {"x": x * inputs["a"] ** 2, "px": zero, "y": zero, "py": zero, "z": zero, "pz": zero + 1e8, "t": zero}
        bunch = ParticleGroup(data={**data, "weight": zero + 1e-12, "status": 1, "species": "electron"})
        return {"y": inputs["a"] ** 2, "cube": inputs["a"] ** 3, "final_particles": bunch}


def test_a_source_gives_numbers_beside_its_bunch() -> None:
    outputs = [TorchScalarVariable(name=name, read_only=True) for name in ("y", "cube")]
    bunch = ParticleGroupVariable(name="final_particles", read_only=True)
    box = BlackBoxModel(Source, [TorchScalarVariable(name="a", default_value=2.0), *outputs, bunch])
    assert (box.get("y").item(), box.get("cube").item()) == (4.0, 8.0)
    a = torch.tensor(3.0, dtype=F64, requires_grad=True)
    found = box({"a": a})
    assert (found["y"].item(), found["cube"].item()) == (9.0, 27.0)
    torch.testing.assert_close(found["final_particles"].x[-1].item(), 9e-3)
    for value, slope in ((found["cube"], 27.0), (found["final_particles"]["sigma_x"], None)):
        (gradient,) = torch.autograd.grad(value, a, retain_graph=True)
        expected = slope if slope is not None else 2.0 / 3.0 * value.item()
        assert gradient.item() == pytest.approx(expected, rel=1e-6)
