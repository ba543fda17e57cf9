"""Our models as LUME's."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import lume_diff as ld
from lume_diff.errors import ShapeError, ValidationError

pytest.importorskip("lume.model")
from lume.exceptions import ReadOnlyError
from lume.model import LUMEModel

from lume_diff.blackbox.lume.model import LumeModel, to_lume

Make = Callable[..., Any]


def test_one_of_ours_there_and_back_is_the_same_model(bunch: Make) -> None:
    import cheetah

    quad = cheetah.Quadrupole(torch.tensor(0.2), torch.tensor(1.5), name="Q")
    segment = cheetah.Segment([quad, cheetah.Drift(torch.tensor(1.0), name="D")], name="line")
    ours = ld.CheetahModel(segment, bunch(), ["Q.k1", "D.length"], ["final.sigma_x", "final.sigma_y"])
    back = LumeModel(to_lume(ours), outputs=["final.sigma_x", "final.sigma_y"])
    for name in ("Q.k1", "final.sigma_x"):
        assert back.supported_variables[name].unit == ours.supported_variables[name].unit
    point = {"Q.k1": 1.7, "D.length": 0.8}
    outputs = ["final.sigma_x", "final.sigma_y"]
    before, after = ours(point, outputs=outputs), back(point, outputs=outputs)
    exact = ours.jacobian(outputs, list(point), at=point)
    estimated = back.jacobian(outputs, list(point), at=point)
    for output in outputs:
        assert after[output].item() == before[output].item()
        for name in point:
            assert estimated[output][name].item() == pytest.approx(exact[output][name].item(), rel=1e-6)


def every_kind() -> ld.LUMEModel:
    from lume_diff.blackbox import BlackBoxModel

    inputs = [
        ld.TorchScalarVariable(name="a", unit="1/m^2", default_value=0.5, value_range=(-2, 2), description="k"),
        ld.TorchNDVariable(name="v", shape=(2,), unit="m", default_value=[1.0, 2.0]),
        ld.IntVariable(name="n", default_value=2, value_range=(0, 9)),
        ld.BoolVariable(name="on", default_value=True),
        ld.EnumVariable(name="mode", options=["low", "high"], default_value="low"),
        ld.StrVariable(name="title", default_value="run1", pattern="[a-z0-9]+"),
    ]
    outputs = [ld.TorchScalarVariable(name="y", unit="m"), ld.TorchNDVariable(name="w", shape=(2,))]

    def function(a: float, v: np.ndarray, n: int, on: bool, mode: str, title: str) -> dict[str, Any]:
        return {"y": a * n * (1.0 if on else 0.0) * len(mode), "w": a * v}

    return BlackBoxModel.from_function(function, inputs, outputs)


def test_variables_and_values_are_plain_there() -> None:
    theirs = to_lume(every_kind())
    assert isinstance(theirs, LUMEModel)
    known = theirs.supported_variables
    assert {name: type(variable).__name__ for name, variable in known.items()} == {
        **{"a": "ScalarVariable", "v": "NDVariable", "n": "IntVariable", "on": "BoolVariable"},
        **{"mode": "EnumVariable", "title": "StrVariable", "y": "ScalarVariable", "w": "NDVariable"},
    }
    assert (known["a"].unit, known["a"].value_range, known["a"].description) == ("1/m^2", (-2.0, 2.0), "k")
    assert (known["y"].read_only, known["v"].shape, known["title"].regex) == (True, (2,), "[a-z0-9]+")
    theirs.set({"a": 1.5, "v": np.array([3.0, 4.0]), "n": 3, "on": True, "mode": "high", "title": "x"})
    values = theirs.get(list(known))
    kinds = {name: type(value) for name, value in values.items()}
    assert kinds == {
        **{"a": float, "v": np.ndarray, "n": int, "on": bool, "mode": str, "title": str, "y": float, "w": np.ndarray}
    }
    assert values["y"] == 18.0
    np.testing.assert_array_equal(values["w"], [4.5, 6.0])
    theirs.reset()
    assert theirs.get_value("a") == 0.5


def test_errors_there_are_those_that_lume_has() -> None:
    theirs = to_lume(every_kind())
    for bad, error in (
        ({"y": 1.0}, ReadOnlyError),
        ({"nothing": 1.0}, ValueError),
        ({"a": 5.0}, ValueError),
        ({"a": float("nan")}, ValueError),
        ({"a": "text"}, TypeError),
        ({"v": np.zeros(3)}, ValueError),
        ({"a": 1.0, "mode": "off"}, ValueError),
    ):
        with pytest.raises(error):
            theirs.set(bad)
    assert theirs.get_value("a") == 0.5
    with pytest.raises(ValueError, match="not supported"):
        theirs.get(["nothing"])
    theirs.model.set({"a": torch.tensor([0.1, 0.2])})
    with pytest.raises(ShapeError, match="batch"):
        theirs.get(["y"])


def test_it_can_be_copied() -> None:
    net = torch.nn.Linear(1, 1, dtype=torch.float64)
    a, y = ld.TorchScalarVariable(name="a", default_value=0.5), ld.TorchScalarVariable(name="y", read_only=True)
    theirs = to_lume(ld.TorchModel(net, [a], [y]))
    for other in (copy.deepcopy(theirs), pickle.loads(pickle.dumps(theirs))):
        assert other.get_value("y") == theirs.get_value("y")
        other.set({"a": 2.0})
        assert theirs.get_value("a") == 0.5
    with pytest.raises(ValidationError, match=r"expected a lume_diff\.LUMEModel"):
        to_lume(theirs)


def test_a_graph_of_ours_does_not_leave() -> None:
    net = torch.nn.Linear(1, 1, dtype=torch.float64)
    a, y = ld.TorchScalarVariable(name="a", default_value=0.5), ld.TorchScalarVariable(name="y", read_only=True)
    ours = ld.TorchModel(net, [a], [y])
    ours.set({"a": torch.tensor(1.0, dtype=torch.float64, requires_grad=True)})
    theirs = to_lume(ours)
    assert type(theirs.get_value("a")) is float
    assert type(theirs.get_value("y")) is float
