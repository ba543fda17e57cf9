"""The laws of models catch those that break them: one small broken model a law."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch

from lume_diff.blackbox import BlackBoxModel
from lume_diff.errors import LumeDiffError, ValidationError
from lume_diff.models import LUMEModel
from lume_diff.models.transforms import in_vmap
from lume_diff.testing import LAWS, LawViolation, Trial, check_model
from lume_diff.variables import TorchScalarVariable

F64 = torch.float64


class Good(LUMEModel):
    """y = a^2 b, z = a + b."""

    def __init__(self) -> None:
        inputs = [TorchScalarVariable(name=n, default_value=1.0, value_range=(-4, 4)) for n in "ab"]
        super().__init__([*inputs, *(TorchScalarVariable(name=n, read_only=True) for n in "yz")])

    def _run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
        a, b = inputs["a"], inputs["b"]
        return {"y": a.square() * b, "z": a + b}


class ForgetsAnOutput(Good):
    @property
    def output_names(self) -> list[str]:
        return ["y"]


class TakesUnknownNames(Good):
    def get(self, names: Any = None) -> Any:
        return None if names == "y_" else super().get(names)


class SortsNames(Good):
    def get(self, names: Any = None) -> Any:
        return super().get(names if isinstance(names, str | None) else sorted(names))


class RoundsValues(Good):
    def _checked_input(self, name: str, value: Any) -> Any:
        return super()._checked_input(name, value).round()


class Counts(Good):
    def _run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
        return {name: value + self._runs for name, value in super()._run(inputs, outputs).items()}


class GivesItsMemory(Good):
    def _shown(self, inputs: Mapping[str, Any], names: Any) -> dict[str, Any]:
        with torch.no_grad():
            return {name: inputs[name].data for name in names}


class WritesOneByOne(Good):
    def set(self, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            super().set({name: value})


class ResetsHalf(Good):
    def reset(self) -> None:
        super().set({"a": 1.0})


class SnapsHalf(Good):
    def snapshot(self) -> dict[str, Any]:
        return {"a": float(self.get("a").detach())}


class SharesItsMemory(Good):
    def __deepcopy__(self, memo: dict[int, Any]) -> Good:
        copied = type(self)()
        copied.__dict__ = self.__dict__ if self._runs else copied.__dict__
        return copied


class RunsAtEveryRead(Good):
    def get(self, names: Any = None) -> Any:
        self._evaluation = None
        return super().get(names)


class KeepsItsDtype(Good):
    def _apply(self, fn: Any, recurse: bool = True) -> Good:
        return torch.nn.Module._apply(self, fn, recurse)


class TearsTransactions(Good):
    def set(self, values: Mapping[str, Any]) -> None:
        for name in values:
            super().set({name: values[name]})
            threading.Event().wait(0.002)


class LosesTheBatch(Good):
    def _run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
        return {name: value.mean() for name, value in super()._run(inputs, outputs).items()}


class HalvesGradients(Good):
    def _run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
        return super()._run({name: 0.5 * value + 0.5 * value.detach() for name, value in inputs.items()}, outputs)


class NeverRunsAgain(Good):
    def _committed(self, outputs: Sequence[str]) -> Any:
        return self._evaluation or super()._committed(outputs)


class CallsItsMemory(Good):
    def forward(self, inputs: Any = None, outputs: Any = None) -> dict[str, Any]:
        return self.get(outputs) if not inputs else super().forward(inputs, outputs)


class KeepsInferenceTensors(Good):
    def set(self, values: Mapping[str, Any]) -> None:
        super().set(values)
        if torch.is_inference_mode_enabled():
            self._setpoints = {name: value.clone() for name, value in self._setpoints.items()}


class TurnsTheJacobian(Good):
    def jacobian(self, outputs: Any, inputs: Any, at: Any = None, mode: str = "auto") -> dict[str, dict[str, Any]]:
        table = super().jacobian(outputs, inputs, at, mode)
        return table if mode == "reverse" else {o: {i: -value for i, value in row.items()} for o, row in table.items()}


class DiffersUnderVmap(Good):
    def _run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
        extra = 1.0 if any(in_vmap(value) for value in inputs.values()) else 0.0
        return {name: value + extra for name, value in super()._run(inputs, outputs).items()}


BROKEN: dict[str, type[Good]] = {
    "names": ForgetsAnOutput,
    "unknown": TakesUnknownNames,
    "get": SortsNames,
    "set_and_get": RoundsValues,
    "pure": Counts,
    "own_values": GivesItsMemory,
    "atomic": WritesOneByOne,
    "reset": ResetsHalf,
    "snapshot": SnapsHalf,
    "copies": SharesItsMemory,
    "runs": RunsAtEveryRead,
    "dtype": KeepsItsDtype,
    "threads": TearsTransactions,
    "batches": LosesTheBatch,
    "gradient": HalvesGradients,
    "graphs": NeverRunsAgain,
    "separate_graphs": CallsItsMemory,
    "inference": KeepsInferenceTensors,
    "jacobian": TurnsTheJacobian,
    "transforms": DiffersUnderVmap,
}


def test_a_good_model_passes_every_law() -> None:
    results = check_model(Good())
    assert list(results) == list(LAWS)
    assert set(results.values()) == {"passed"}


def test_every_law_has_a_model_that_breaks_it() -> None:
    assert set(BROKEN) == set(LAWS)


@pytest.mark.parametrize("law", LAWS)
def test_a_law_catches_the_model_that_breaks_it(law: str) -> None:
    with pytest.raises(LawViolation, match=rf"^law '{law}' \(.+\): .+"):
        check_model(BROKEN[law](), inputs=["a", "b"], outputs=["y", "z"], only=[law])


@pytest.mark.parametrize("law", LAWS)
def test_every_law_says_what_it_demands(law: str) -> None:
    text = (LAWS[law].__doc__ or "").strip()
    assert text.endswith(".")
    assert "\n" not in text


def test_violations_are_both_ours_and_assertions() -> None:
    assert issubclass(LawViolation, LumeDiffError)
    assert issubclass(LawViolation, AssertionError)


def test_the_model_is_left_as_it_was() -> None:
    model = Good()
    model.set({"a": 2.0})
    check_model(model)
    assert model.get("a").item() == 2.0
    assert model.runs == 1


def test_laws_can_be_left_out_and_that_is_said() -> None:
    results = check_model(Counts(), inputs=["a"], outputs=["y"], only=["names", "get"], skip=["get"])
    assert results["names"] == "passed"
    assert {name for name, result in results.items() if result == "skipped"} == set(LAWS) - {"names"}


@pytest.mark.parametrize("options", [{"skip": ["gradients"]}, {"only": ["gradients"]}], ids=["skip", "only"])
def test_a_law_that_does_not_exist_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="'gradients' is not a law; nearest: 'gradient'"):
        check_model(Good(), **options)


class Constant(Good):
    def _run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
        return {name: torch.tensor(1.0, dtype=F64) for name in "yz"}


class WithoutInputs(Good):
    def __init__(self) -> None:
        LUMEModel.__init__(self, [TorchScalarVariable(name="y", read_only=True)])


class Fails(Good):
    def _reset_simulator(self) -> None:
        raise OSError("the simulator is gone")


NOTHING_TO_TRY: list[tuple[Callable[[], LUMEModel], str]] = [
    (Constant, "no scalar output has a gradient"),
    (WithoutInputs, "no scalar input with a value"),
    (Fails, "law 'unknown'|law 'reset'.*OSError: the simulator is gone"),
]


@pytest.mark.parametrize("make, words", NOTHING_TO_TRY, ids=["constant", "no inputs", "error"])
def test_a_model_that_cannot_be_tried_is_told_why(make: Callable[[], LUMEModel], words: str) -> None:
    with pytest.raises(LawViolation, match=words):
        check_model(make())


def test_refused_vmap_is_noted() -> None:
    class ByRows(Good):
        def _run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
            if torch._C._functorch.is_batchedtensor(inputs["a"]):
                inputs["a"].item()
            return super()._run(inputs, outputs)

    assert check_model(ByRows(), only=["transforms"])["transforms"] == "passed, vmap is refused"


def test_the_gradient_law_allows_for_the_noise_that_a_model_has_measured() -> None:
    """Eight printed digits: the law's own difference has a step for exact models, and is the worse of the two."""

    def printed(a: float, b: float) -> dict[str, float]:
        return {"y": float(f"{1e-3 * (2.0 + 0.02 * a + b**2):.7e}")}

    inputs = [TorchScalarVariable(name=n, default_value=1.0, scale=1e-2) for n in "ab"]
    model = BlackBoxModel.from_function(printed, inputs, [TorchScalarVariable(name="y")])
    assert check_model(model, only=["gradient"], rtol=1e-4)["gradient"] == "passed"


class Limited(Good):
    """The same with other limits."""

    def __init__(self, here: float, limits: tuple[float, float], scale: float | None) -> None:
        a = TorchScalarVariable(name="a", default_value=here, value_range=limits, scale=scale)
        b = TorchScalarVariable(name="b", default_value=1.0)
        LUMEModel.__init__(self, [a, b, *(TorchScalarVariable(name=n, read_only=True) for n in "yz")])


@pytest.mark.parametrize(
    "here, limits, scale",
    [
        pytest.param(0.0, (0.0, 1.0), 5.0, id="scale beyond the range"),
        pytest.param(1.0, (0.0, 1.0), None, id="upper limit"),
        pytest.param(0.0, (0.0, 1.0), None, id="lower limit"),
        pytest.param(0.5, (0.0, 1.0), 5.0, id="middle"),
        pytest.param(2.0, (2.0, float("inf")), 1.0, id="no upper limit"),
        pytest.param(2.0, (-float("inf"), 2.0), 1.0, id="no lower limit"),
    ],
)
def test_inputs_are_moved_within_their_limits_and_not_onto_them(
    here: float, limits: tuple[float, float], scale: float | None
) -> None:
    trial = Trial(Limited(here, limits, scale), ["a"], ["y"], 1e-6, torch.Generator())
    values = [trial.somewhere()["a"] for _ in range(50)]
    assert all(limits[0] < value < limits[1] for value in values)
    assert all(abs(value - here) > 0.04 for value in values)
    assert check_model(trial.model, inputs=["a", "b"])["gradient"] == "passed"
