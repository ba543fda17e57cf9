"""LUME's models here."""

from __future__ import annotations

import copy
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from lume_diff.errors import MissingExtraError, PhysicsWarning, SimulatorError, UnknownVariableError, ValidationError
from lume_diff.testing import check_model

pytest.importorskip("lume.model")
from lume import variables as native
from lume.model import LUMEModel

from lume_diff.blackbox.lume.model import LumeModel, LumeSimulator

Make = Callable[..., Any]


class Oven(LUMEModel):
    """A small model with a memory, written as lume-base wants it."""

    def __init__(self, gain: float = 2.0) -> None:
        self.gain = gain
        self.sets = 0
        self._values: dict[str, Any] = {}
        self.reset()

    @property
    def supported_variables(self) -> dict[str, native.Variable]:
        found = [
            native.ScalarVariable(name="a", default_value=0.5, value_range=(-2.0, 2.0), unit="1/m^2", description="k"),
            native.ScalarVariable(name="b", default_value=1.5, unit="mm"),
            native.IntVariable(name="n", default_value=3, value_range=(1, 9)),
            native.BoolVariable(name="on", default_value=True),
            native.EnumVariable(name="mode", options=["low", "high"], default_value="low"),
            native.EnumVariable(name="order", options=[1, 2], default_value=2),
            native.StrVariable(name="title", default_value="run1", regex="[a-z0-9]+", max_length=8),
            native.NDVariable(name="steer", shape=(2,), default_value=np.array([0.1, -0.2]), unit="rad"),
            native.ScalarVariable(name="y", read_only=True, unit="m"),
            native.NDVariable(name="profile", shape=(3,), read_only=True, dtype=np.dtype(np.float32)),
            native.StrVariable(name="state", read_only=True),
        ]
        return {variable.name: variable for variable in found}

    def _set(self, values: dict[str, Any]) -> None:
        self.sets += 1
        if values.get("b", 0.0) > 100.0:
            raise RuntimeError("the oven burns")
        self._values.update(values)

    def _get(self, names: list[str]) -> dict[str, Any]:
        v = self._values
        a, b = v["a"], v["b"]
        factor = {"low": 1.0, "high": 10.0}[v["mode"]] * self.gain * (1.0 if v["on"] else 0.0)
        outputs = {
            "y": factor * (np.sin(a) * b + v["n"] * a**2 + v["steer"].sum() * a) / v["order"],
            "profile": np.array([a, b, a * b], dtype=np.float32),
            "state": f"{v['title']} at {v['mode']}",
        }
        return {name: outputs[name] if name in outputs else v[name] for name in names}

    def reset(self) -> None:
        self._values = {n: v.default_value for n, v in self.supported_variables.items() if not v.read_only}


@pytest.fixture
def oven() -> Oven:
    return Oven()


def test_variables_are_translated(oven: Oven) -> None:
    model = LumeModel(oven)
    known = model.supported_variables
    assert model.input_names == ["a", "b", "n", "on", "mode", "order", "title", "steer"]
    assert model.output_names == ["y", "profile", "state"]
    kinds = {name: type(variable).__name__ for name, variable in known.items()}
    assert kinds == {
        **{"a": "TorchScalarVariable", "b": "TorchScalarVariable", "n": "IntVariable", "on": "BoolVariable"},
        **{"mode": "EnumVariable", "order": "EnumVariable", "title": "StrVariable", "steer": "TorchNDVariable"},
        **{"y": "TorchScalarVariable", "profile": "TorchNDVariable", "state": "StrVariable"},
    }
    assert (known["a"].unit, known["a"].value_range, known["a"].default_value) == ("1/m^2", (-2.0, 2.0), 0.5)
    assert known["a"].description == "k"
    assert (known["n"].value_range, known["steer"].shape) == ((1, 9), (2,))
    assert (tuple(known["order"].options), known["order"].default_value) == (("1", "2"), "2")
    assert (known["title"].pattern, known["title"].max_length) == ("[a-z0-9]+", 8)


def test_values_and_gradients_pass(oven: Oven) -> None:
    model = LumeModel(oven)
    a = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    steer = torch.tensor([0.3, -0.1], dtype=torch.float64, requires_grad=True)
    inputs = {"a": a, "b": 2.0, "n": 4, "mode": "high", "order": "1", "title": "run2", "steer": steer}
    found = model(inputs)
    expected = 20.0 * (np.sin(0.7) * 2.0 + 4 * 0.7**2 + 0.2 * 0.7)
    assert found["y"].item() == pytest.approx(expected, rel=1e-14)
    assert found["state"] == "run2 at high"
    torch.testing.assert_close(found["profile"].detach(), torch.tensor([0.7, 2.0, 1.4]).double(), rtol=1e-6, atol=0.0)
    found["y"].backward()
    assert a.grad.item() == pytest.approx(20.0 * (np.cos(0.7) * 2.0 + 8 * 0.7 + 0.2), rel=1e-9)
    torch.testing.assert_close(steer.grad, torch.full((2,), 14.0, dtype=torch.float64), rtol=1e-9, atol=0.0)


def test_it_keeps_every_law(oven: Oven) -> None:
    model = LumeModel(oven, outputs=["y", "profile"])
    results = check_model(model, inputs=["a", "b"], outputs=["y"])
    assert all(text.startswith("passed") for text in results.values()), results


def test_every_run_writes_everything(oven: Oven) -> None:
    model = LumeModel(oven, ["a", "b"], ["y"])
    before = model({"a": 1.0})["y"].item()
    oven.set({"a": -1.0, "b": 7.0})
    assert model({"a": 1.0})["y"].item() == before


def test_refresh_takes_over_what_was_set_by_hand(oven: Oven) -> None:
    model = LumeModel(oven, ["a", "b"], ["y"])
    first = model.get("y").item()
    assert model.simulator is oven
    oven.set({"b": 3.0})
    oven.gain = 5.0
    model.refresh()
    assert model.get("b").item() == 3.0
    assert model.get("a").item() == 0.5
    assert model.get("y").item() == pytest.approx(5.0 * (np.sin(0.5) * 3.0 + 3 * 0.25 - 0.05) / 2.0)
    assert model.get("y").item() != first
    model.reset()
    assert model.get("b").item() == 3.0


def test_what_is_not_chosen_stays_as_it_is(oven: Oven) -> None:
    oven.set({"mode": "high"})
    model = LumeModel(oven, ["a"], ["y"])
    assert model.input_names == ["a"]
    assert model.get("y").item() == pytest.approx(20.0 * (np.sin(0.5) * 1.5 + 3 * 0.25 - 0.05) / 2.0)


def test_limits_and_nonsense_are_refused_before_the_model_sees_them(oven: Oven) -> None:
    model = LumeModel(oven)
    model.get("y")
    sets = oven.sets
    for bad in ({"a": 3.0}, {"a": float("nan")}, {"b": float("inf")}, {"n": 0}, {"mode": "off"}, {"title": "Run 1"}):
        with pytest.raises(ValidationError):
            model.set(bad)
    assert oven.sets == sets
    with pytest.raises(ValidationError, match="not every model would refuse"):
        LumeSimulator(oven, ["a"]).run({"a": float("nan")}, ["y"])


def test_a_failure_leaves_everything_as_it_was(oven: Oven) -> None:
    model = LumeModel(oven)
    before = model.get("y").item()
    with pytest.raises(SimulatorError, match=r"the oven burns.*b=200"):
        model.set({"b": 200.0})
    assert model.get("b").item() == 1.5
    assert model({})["y"].item() == before


def test_what_is_not_chosen_outlives_a_failure(oven: Oven) -> None:
    oven.set({"mode": "high"})
    model = LumeModel(oven, ["a", "b"], ["y"])
    before = model.get("y").item()
    oven.set({"n": 5})
    model.refresh()
    with pytest.raises(SimulatorError, match="the oven burns"):
        model({"b": 200.0})
    assert oven.get(["mode", "n"]) == {"mode": "high", "n": 5}
    assert model({})["y"].item() != before


def test_a_function_makes_a_model_of_its_own() -> None:
    made: list[Oven] = []

    def make() -> Oven:
        made.append(Oven())
        return made[-1]

    model = LumeModel(make, ["a"], ["y"])
    other = copy.deepcopy(model)
    assert other({"a": 1.0})["y"].item() == model({"a": 1.0})["y"].item()
    assert len(made) == 3  # one to look at, one each to run


def test_a_model_that_cannot_be_copied_is_shared() -> None:
    class Locked(Oven):
        def __init__(self) -> None:
            super().__init__()
            self.lock = threading.Lock()

    model = LumeModel(Locked(), ["a"], ["y"])
    other = copy.deepcopy(model)
    other.set({"a": 1.5})
    assert model({"a": 0.5})["y"].item() == model.get("y").item()


def test_two_threads_do_not_read_each_others_settings(oven: Oven) -> None:
    expected = {value: LumeModel(Oven(), ["a"], ["y"])({"a": value})["y"].item() for value in (0.25, 1.75)}
    wrong: list[float] = []

    def work(value: float) -> None:
        model = LumeModel(oven, ["a"], ["y"])
        for _ in range(50):
            model.refresh()
            found = model({"a": value})["y"].item()
            if found != expected[value]:
                wrong.append(found)

    threads = [threading.Thread(target=work, args=(value,)) for value in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


class TensorScalar(native.ScalarVariable):
    """A variable that wants tensors, as lume-torch has it."""

    @staticmethod
    def _validate_value_type(value: Any) -> None:
        if not isinstance(value, torch.Tensor):
            raise TypeError(f"expected a tensor, got {type(value)}")


class TensorModel(LUMEModel):
    """A model that could be differentiated and is a black box all the same."""

    def __init__(self) -> None:
        self.x = torch.tensor(2.0, dtype=torch.float64)

    @property
    def supported_variables(self) -> dict[str, native.Variable]:
        return {"x": TensorScalar(name="x"), "y": TensorScalar(name="y", read_only=True)}

    def _set(self, values: dict[str, Any]) -> None:
        self.x = values["x"]

    def _get(self, names: list[str]) -> dict[str, Any]:
        table = {"x": self.x, "y": (self.x.clone().requires_grad_() ** 3)}
        return {name: table[name] for name in names}

    def reset(self) -> None:
        self.x = torch.tensor(2.0, dtype=torch.float64)


def test_a_model_of_tensors_is_a_black_box_too() -> None:
    model = LumeModel(TensorModel())
    assert model.get("y").item() == 8.0
    assert model.jacobian(["y"], ["x"])["y"]["x"].item() == pytest.approx(12.0, rel=1e-9)
    assert model.runs > 2


def test_an_unknown_unit_warns_and_can_be_given() -> None:
    class Odd(Oven):
        @property
        def supported_variables(self) -> dict[str, native.Variable]:
            return {"a": native.ScalarVariable(name="a", default_value=1.0, unit="furlong/fortnite")}

    with pytest.warns(PhysicsWarning, match="furlong"):
        model = LumeModel(Odd())
    assert model.supported_variables["a"].unit == ""
    assert LumeModel(Odd(), units={"a": "T"}).supported_variables["a"].unit == "T"


def test_a_variable_without_a_counterpart_is_named() -> None:
    class Strange(native.Variable):
        def validate_value(self, value: Any, config: Any = None) -> None:
            pass

    class Model(Oven):
        @property
        def supported_variables(self) -> dict[str, native.Variable]:
            return {**super().supported_variables, "odd": Strange(name="odd")}

        def reset(self) -> None:
            self._values = dict(Oven()._values)

    with pytest.raises(ValidationError, match=r"'odd' is a .*Strange"):
        LumeModel(Model())
    assert LumeModel(Model(), ["a"], ["y"]).get("y").item() == LumeModel(Oven(), ["a"], ["y"]).get("y").item()


def test_the_identity_follows_what_results_depend_on(oven: Oven) -> None:
    def identity(model: Oven, *controls: str) -> str:
        return LumeSimulator(model, controls).identity()

    first = identity(oven, "a", "b")
    assert first.startswith(f"{Oven.__module__}.Oven")
    assert identity(Oven(), "a", "b") == first
    assert identity(Oven(gain=3.0), "a", "b") != first
    simulator = LumeSimulator(Oven(), ["a", "b"])
    simulator.run({"a": 1.0, "b": 2.0}, ["y"])
    assert simulator.identity() == first
    simulator.native.set({"mode": "high"})
    assert simulator.identity() != first


@pytest.mark.parametrize(
    "change,error,words",
    [
        ({"model": 3}, ValidationError, "expected a lume.model.LUMEModel"),
        ({"controls": ["c"]}, UnknownVariableError, "control 'c'"),
        ({"controls": "a"}, ValidationError, r"write \['a'\]"),
        ({"controls": ["y"]}, ValidationError, "read-only"),
        ({"outputs": ["a"]}, ValidationError, "can be written"),
        ({"units": {"z": "m"}}, UnknownVariableError, "units of 'z'"),
    ],
)
def test_mistakes_are_refused(oven: Oven, change: dict[str, Any], error: type[Exception], words: str) -> None:
    options = {"model": oven, **change}
    with pytest.raises(error, match=words):
        LumeModel(options.pop("model"), **options)


def test_without_lume_base_it_says_how_to_get_it(oven: Oven, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("lume.model", "lume.variables", "lume.staged_model"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match="pip install"):
        LumeModel(oven)


def test_a_bunch_from_nowhere_is_refused() -> None:
    class Gun(Oven):
        @property
        def supported_variables(self) -> dict[str, native.Variable]:
            made = native.ParticleGroupVariable(name="final_particles", read_only=True)
            return {**super().supported_variables, "final_particles": made}

    with pytest.raises(ValidationError, match="takes none"):
        LumeModel(Gun())
    assert "y" in LumeModel(Gun(), outputs=["y"]).output_names


def test_limits_are_judged_as_the_variable_says() -> None:
    class Lenient(Oven):
        policy = "none"

        @property
        def supported_variables(self) -> dict[str, native.Variable]:
            a = native.ScalarVariable(
                name="a", default_value=0.5, value_range=(-2.0, 2.0), default_validation_config=self.policy
            )
            return {**super().supported_variables, "a": a}

    class Warning(native.ScalarVariable):
        default_validation_config: native.ConfigEnum = "warn"

    class Warned(Oven):
        @property
        def supported_variables(self) -> dict[str, native.Variable]:
            return {**super().supported_variables, "a": Warning(name="a", default_value=0.5, value_range=(-2.0, 2.0))}

    model = LumeModel(Lenient(), ["a"], ["y"])
    assert model.supported_variables["a"].default_validation_config == "none"
    model.set({"a": 3.0})
    assert model.get("a").item() == 3.0
    with pytest.raises(ValidationError, match="not finite"):
        model.set({"a": float("inf")})
    assert LumeModel(Warned(), ["a"], ["y"]).supported_variables["a"].default_validation_config == "warn"
    assert LumeModel(Oven(), ["a"], ["y"]).supported_variables["a"].default_validation_config == "error"
