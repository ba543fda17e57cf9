"""LUME's models here and ours there."""

from __future__ import annotations

import copy
import pickle
import sys
import threading
from typing import Any

import numpy as np
import pytest
import torch

import lume_diff as ld
from lume_diff.errors import (
    MissingExtraError,
    PhysicsWarning,
    ShapeError,
    SimulatorError,
    UnknownVariableError,
    ValidationError,
)
from lume_diff.testing import check_model

pytest.importorskip("lume.model")
from lume import variables as native
from lume.exceptions import ReadOnlyError
from lume.model import LUMEModel
from lume.staged_model import FinalParticlesMixIn, InitialParticlesMixIn, StagedModel

from lume_diff.blackbox.lume.model import LumeModel, LumeSimulator, to_lume


def number(value: torch.Tensor) -> float:
    return float(value.detach())


def bunch(count: int = 100, **changes: float) -> ld.TorchParticleGroup:
    twiss = {"beta_x": 5.0, "norm_emit_x": 1e-6, "beta_y": 4.0, "norm_emit_y": 1e-6}
    values = {**twiss, "sigma_t": 1e-12, "sigma_energy": 1e5, **changes}
    return ld.BunchFromMoments(count, mean_energy=1e8, charge=1e-10, **values).get("final_particles")


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


# -- theirs here -----------------------------------------------------------------------------------------------


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
    assert number(found["y"]) == pytest.approx(expected, rel=1e-14)
    assert found["state"] == "run2 at high"
    torch.testing.assert_close(found["profile"].detach(), torch.tensor([0.7, 2.0, 1.4]).double(), rtol=1e-6, atol=0.0)
    found["y"].backward()
    assert number(a.grad) == pytest.approx(20.0 * (np.cos(0.7) * 2.0 + 8 * 0.7 + 0.2), rel=1e-9)
    torch.testing.assert_close(steer.grad, torch.full((2,), 14.0, dtype=torch.float64), rtol=1e-9, atol=0.0)


def test_it_keeps_every_law(oven: Oven) -> None:
    model = LumeModel(oven, outputs=["y", "profile"])
    results = check_model(model, inputs=["a", "b"], outputs=["y"])
    assert all(text.startswith("passed") for text in results.values()), results


def test_every_run_writes_everything(oven: Oven) -> None:
    model = LumeModel(oven, ["a", "b"], ["y"])
    before = number(model({"a": 1.0})["y"])
    oven.set({"a": -1.0, "b": 7.0})
    assert number(model({"a": 1.0})["y"]) == before


def test_refresh_takes_over_what_was_set_by_hand(oven: Oven) -> None:
    model = LumeModel(oven, ["a", "b"], ["y"])
    first = number(model.get("y"))
    assert model.simulator is oven
    oven.set({"b": 3.0})
    oven.gain = 5.0
    model.refresh()
    assert number(model.get("b")) == 3.0
    assert number(model.get("a")) == 0.5
    assert number(model.get("y")) == pytest.approx(5.0 * (np.sin(0.5) * 3.0 + 3 * 0.25 - 0.05) / 2.0)
    assert number(model.get("y")) != first
    model.reset()
    assert number(model.get("b")) == 3.0


def test_what_is_not_chosen_stays_as_it_is(oven: Oven) -> None:
    oven.set({"mode": "high"})
    model = LumeModel(oven, ["a"], ["y"])
    assert model.input_names == ["a"]
    assert number(model.get("y")) == pytest.approx(20.0 * (np.sin(0.5) * 1.5 + 3 * 0.25 - 0.05) / 2.0)


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
    before = number(model.get("y"))
    with pytest.raises(SimulatorError, match=r"the oven burns.*b=200"):
        model.set({"b": 200.0})
    assert number(model.get("b")) == 1.5
    assert number(model({})["y"]) == before


def test_a_function_makes_a_model_of_its_own() -> None:
    made: list[Oven] = []

    def make() -> Oven:
        made.append(Oven())
        return made[-1]

    model = LumeModel(make, ["a"], ["y"])
    other = copy.deepcopy(model)
    assert number(other({"a": 1.0})["y"]) == number(model({"a": 1.0})["y"])
    assert len(made) == 3  # one to look at, one each to run


def test_a_model_that_cannot_be_copied_is_shared() -> None:
    class Locked(Oven):
        def __init__(self) -> None:
            super().__init__()
            self.lock = threading.Lock()

    model = LumeModel(Locked(), ["a"], ["y"])
    other = copy.deepcopy(model)
    other.set({"a": 1.5})
    assert number(model({"a": 0.5})["y"]) == number(model.get("y"))


def test_two_threads_do_not_read_each_others_settings(oven: Oven) -> None:
    expected = {value: number(LumeModel(Oven(), ["a"], ["y"])({"a": value})["y"]) for value in (0.25, 1.75)}
    wrong: list[float] = []

    def work(value: float) -> None:
        model = LumeModel(oven, ["a"], ["y"])
        for _ in range(50):
            model.refresh()
            found = number(model({"a": value})["y"])
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
    assert number(model.get("y")) == 8.0
    assert number(model.jacobian(["y"], ["x"])["y"]["x"]) == pytest.approx(12.0, rel=1e-9)
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
    assert number(LumeModel(Model(), ["a"], ["y"]).get("y")) == number(LumeModel(Oven(), ["a"], ["y"]).get("y"))


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


# -- ours there ------------------------------------------------------------------------------------------------


def test_one_of_ours_there_and_back_is_the_same_model() -> None:
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
        assert number(after[output]) == number(before[output])
        for name in point:
            assert number(estimated[output][name]) == pytest.approx(number(exact[output][name]), rel=1e-6)


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


# -- bunches ---------------------------------------------------------------------------------------------------


def cheetah_stage(k1: float, name: str) -> ld.CheetahModel:
    import cheetah

    quad = cheetah.Quadrupole(torch.tensor(0.2), torch.tensor(k1), name=f"Q{name}")
    segment = cheetah.Segment([quad, cheetah.Drift(torch.tensor(1.0), name=f"D{name}")], name=name)
    return ld.CheetahModel(segment, bunch(), [f"Q{name}.k1"], ["final.sigma_x"])


def test_ours_are_stages_of_a_chain_there() -> None:
    from beamphysics import ParticleGroup

    first, second = cheetah_stage(1.5, "A"), cheetah_stage(-1.0, "B")
    ours = ld.StagedModel([copy.deepcopy(first), copy.deepcopy(second)])
    stages = [to_lume(first), to_lume(second)]
    assert all(isinstance(stage, InitialParticlesMixIn) and isinstance(stage, FinalParticlesMixIn) for stage in stages)
    stages[1].initial_particles = stages[0].final_particles
    assert stages[1].get_value("final.sigma_x") == pytest.approx(number(ours.get("final.sigma_x")), rel=1e-12)
    assert isinstance(stages[1].final_particles, ParticleGroup)


class Telescope(LUMEModel, InitialParticlesMixIn, FinalParticlesMixIn):
    """A stage of LUME's: its bunches are attributes, not variables."""

    def __init__(self, start: Any) -> None:
        self._start, self._factor = start, 2.0

    @property
    def supported_variables(self) -> dict[str, native.Variable]:
        return {"factor": native.ScalarVariable(name="factor", default_value=2.0)}

    @property
    def initial_particles(self) -> Any:
        return self._start

    @initial_particles.setter
    def initial_particles(self, value: Any) -> None:
        self._start = value

    @property
    def final_particles(self) -> Any:
        found = self._start.copy()
        found.x, found.px = self._factor * self._start.x, self._start.px / self._factor
        return found

    def _set(self, values: dict[str, Any]) -> None:
        self._factor = values.get("factor", self._factor)

    def _get(self, names: list[str]) -> dict[str, Any]:
        return {"factor": self._factor}

    def reset(self) -> None:
        self._factor = 2.0


def test_a_stage_of_theirs_in_a_chain_of_ours() -> None:
    start = bunch()
    middle = LumeModel(Telescope(start.to_particle_group()))
    assert middle.input_names == ["factor", "initial_particles"]
    assert middle.output_names == ["final_particles"]
    before, behind = cheetah_stage(1.5, "A"), cheetah_stage(-1.0, "B")
    chain = ld.StagedModel({"before": before, "middle": middle, "behind": behind})
    k1 = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    factor = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)

    def size(k1: Any, factor: Any) -> torch.Tensor:
        return chain({"QA.k1": k1, "factor": factor}, outputs=["final.sigma_x"])["final.sigma_x"]

    size(k1, factor).backward()
    for leaf, move in ((k1, (1e-4, 0.0)), (factor, (0.0, 1e-4))):
        up, down = (number(size(1.5 + sign * move[0], 2.0 + sign * move[1])) for sign in (1, -1))
        assert number(leaf.grad) == pytest.approx((up - down) / 2e-4, rel=1e-6)


def test_stages_of_both_kinds_in_a_chain_there() -> None:
    start = bunch().to_particle_group()
    chain = StagedModel([Telescope(start), to_lume(cheetah_stage(1.5, "A"))])
    chain.set({"factor": 3.0})
    alone = cheetah_stage(1.5, "A")
    wide = start.copy()
    wide.x, wide.px = 3.0 * start.x, start.px / 3.0
    alone.set({"initial_particles": wide})
    assert chain.get(["final.sigma_x"])["final.sigma_x"] == pytest.approx(number(alone.get("final.sigma_x")), rel=1e-12)


def test_a_bunch_from_nowhere_is_refused() -> None:
    class Gun(Oven):
        @property
        def supported_variables(self) -> dict[str, native.Variable]:
            made = native.ParticleGroupVariable(name="final_particles", read_only=True)
            return {**super().supported_variables, "final_particles": made}

    with pytest.raises(ValidationError, match="takes none"):
        LumeModel(Gun())
    assert "y" in LumeModel(Gun(), outputs=["y"]).output_names
