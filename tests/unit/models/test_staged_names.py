"""What the variables of a chain are called, what is handed over, and which chains are refused."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch

from lume_diff.errors import UnitError, UnknownVariableError, ValidationError
from lume_diff.models import LUMEModel, StagedModel
from lume_diff.variables import IntVariable, TorchNDVariable, TorchScalarVariable

F64 = torch.float64


class Stage(LUMEModel):
    """Any names; every output is the sum of all inputs."""

    def __init__(self, inputs: str, outputs: str, **units: str) -> None:
        def variable(name: str, read_only: bool) -> TorchScalarVariable:
            return TorchScalarVariable(
                name=name, default_value=None if read_only else 1.0, read_only=read_only, unit=units.get(name, "")
            )

        super().__init__(
            [*(variable(name, False) for name in inputs.split()), *(variable(name, True) for name in outputs.split())]
        )

    def _run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
        return dict.fromkeys(self.output_names, sum(inputs.values()))


def chain(*stages: tuple[str, str], names: str = "abcdef", links: dict[str, str] | None = None) -> StagedModel:
    models = {name: Stage(*stage) for name, stage in zip(names, stages, strict=False)}
    order = list(models)
    joined = {f"{after}/in": f"{before}/out" for before, after in pairwise(order)}
    return StagedModel(models, joined if links is None else links)


RULE = {
    "all different": ([("x", "out y"), ("in q", "z")], ["x", "out", "y", "q", "z"]),
    "shared": ([("k1", "out s"), ("in k1", "s")], ["a/k1", "out", "a/s", "b/k1", "b/s"]),
    "initial of the first": (
        [("initial_x", "out"), ("in initial_x initial_y", "z")],
        ["initial_x", "out", "b/initial_x", "b/initial_y", "z"],
    ),
    "final of the last": (
        [("x", "out final.s final_moments"), ("in", "final.s")],
        ["x", "out", "a/final.s", "a/final_moments", "final.s"],
    ),
    "between": (
        [("x", "out"), ("in initial_t", "out final.s"), ("in", "z")],
        ["x", "a/out", "b/initial_t", "b/out", "b/final.s", "z"],
    ),
    "in and out of one name": ([("x", "out s"), ("in s", "z")], ["x", "out", "a/s", "b/s", "z"]),
    "dots and reserved words": (
        [("type", "out Q1.k1"), ("in train", "Q1.k1")],
        ["type", "out", "a/Q1.k1", "train", "b/Q1.k1"],
    ),
}


@pytest.mark.parametrize("stages, expected", RULE.values(), ids=RULE)
def test_the_rule_of_names(stages: list[tuple[str, str]], expected: list[str]) -> None:
    model = chain(*stages)
    assert list(model.supported_variables) == expected
    assert all(variable.name == name for name, variable in model.supported_variables.items())
    model.get()


def test_a_shared_name_is_read_and_written_by_stage() -> None:
    model = chain(("k1", "out"), ("in k1", "s"))
    model.set({"a/k1": 10.0, "b/k1": 100.0})
    assert model.get("s").item() == 110.0
    with pytest.raises(UnknownVariableError, match=r"'k1'.*nearest: '[ab]/k1', '[ab]/k1'"):
        model.set({"k1": 1.0})


def test_an_error_has_the_name_of_the_chain() -> None:
    with pytest.raises(ValidationError, match=r"'b/k1'.*not finite"):
        chain(("k1", "out"), ("in k1", "s")).set({"b/k1": float("nan")})


@pytest.mark.parametrize("names", [["type", "train"], ["forward", "a.b"], ["x y", "modules"], ["ä", "1"]], ids=str)
def test_any_name_can_be_a_stage(names: list[str]) -> None:
    models = [Stage("k1", "out"), Stage("in k1", "s")]
    model = StagedModel(dict(zip(names, models, strict=True)), {f"{names[1]}/in": f"{names[0]}/out"})
    assert list(model.stages) == names
    model.set({f"{names[1]}/k1": 5.0})
    assert copy.deepcopy(model).get("s").item() == 6.0


def test_a_list_of_stages_is_numbered() -> None:
    model = StagedModel([Stage("k1", "final_particles"), Stage("k1 in", "s")], {"stage1/in": "stage0/final_particles"})
    assert list(model.stages) == ["stage0", "stage1"]
    assert model.input_names == ["stage0/k1", "stage1/k1"]


# -- chains of chains


def test_names_of_a_chain_in_a_chain() -> None:
    inner = chain(("k1", "out"), ("in k1", "u"))
    outer = StagedModel({"head": Stage("k1 x", "v"), "inner": inner}, {"inner/a/k1": "head/v"})
    assert list(outer.supported_variables) == ["k1", "x", "v", "out", "b/k1", "u"]
    twice = StagedModel(
        {"one": chain(("k1", "out"), ("in k1", "u")), "two": chain(("k1", "out"), ("in k1", "u"))},
        {"two/a/k1": "one/u"},
    )
    assert list(twice.supported_variables) == [
        "one/a/k1",
        "one/out",
        "one/b/k1",
        "one/u",
        "two/out",
        "two/b/k1",
        "two/u",
    ]
    twice.set({"one/b/k1": 2.0, "two/b/k1": 4.0})
    assert twice.get("two/u").item() == 1.0 + 2.0 + 4.0


def test_a_name_of_an_inner_chain_that_reads_like_an_outer_one_gets_its_stage() -> None:
    inner = chain(("k1", "v"), ("in k1", "u"), links={"b/in": "a/v"})
    outer = StagedModel(
        {"a": Stage("k1", "out"), "inner": inner, "c": Stage("k1 i", "w")}, {"inner/b/k1": "a/out", "c/i": "inner/u"}
    )
    assert outer.input_names == ["a/k1", "inner/a/k1", "c/k1"]
    outer.set({"a/k1": 1.0, "inner/a/k1": 10.0, "c/k1": 100.0})
    assert outer.get("w").item() == 111.0


# -- links


def test_a_link_may_skip_stages_and_feed_several() -> None:
    links = {"b/in": "a/out", "c/in": "a/out", "c/more": "b/p"}
    model = chain(("x", "out"), ("in", "p"), ("in more", "q"), links=links)
    model.set({"x": 2.0})
    assert model.get("q").item() == 4.0
    assert model.input_names == ["x"]


def test_a_link_converts_units() -> None:
    models = {"a": Stage("x", "out", x="mm", out="mm"), "b": Stage("in", "s", **{"in": "m"})}
    x = torch.tensor(5.0, dtype=F64, requires_grad=True)
    found = StagedModel(models, {"b/in": "a/out"})({"x": x})["s"]
    found.backward()
    assert found.item() == pytest.approx(0.005, rel=1e-14)
    assert x.grad is not None
    assert x.grad.item() == pytest.approx(0.001, rel=1e-14)


class Other(LUMEModel):
    def __init__(self) -> None:
        super().__init__([IntVariable(name="n"), TorchNDVariable(name="w", shape=(3,)), TorchScalarVariable(name="i")])

    def _run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
        return {}


REFUSED: dict[str, tuple[Any, dict[str, str], type[Exception], str]] = {
    "no stage": ({}, {}, ValidationError, "at least one stage"),
    "no model": ({"a": torch.nn.Linear(1, 1)}, {}, ValidationError, "stage 'a' is a Linear; expected a LUMEModel"),
    "slash": ({"a/b": Stage("x", "y")}, {}, ValidationError, "'a/b' must be .* without '/'"),
    "empty name": ({"": Stage("x", "y")}, {}, ValidationError, "non-empty"),
    "nothing handed over": (
        [Stage("x", "y"), Stage("p", "q")],
        {},
        ValidationError,
        "'stage0' hands nothing over to 'stage1'.*outputs y.*inputs p",
    ),
    "no such stage": ([Stage("x", "y"), Stage("p", "q")], {"stage2/p": "stage0/y"}, UnknownVariableError, "nearest"),
    "no slash": ([Stage("x", "y"), Stage("p", "q")], {"p": "stage0/y"}, UnknownVariableError, "'stage/variable'"),
    "no such input": (
        [Stage("x", "y"), Stage("p", "q")],
        {"stage1/pp": "stage0/y"},
        UnknownVariableError,
        "'stage1' has no input 'pp'; nearest: 'p'",
    ),
    "no such output": (
        [Stage("x", "y"), Stage("p", "q")],
        {"stage1/p": "stage0/x"},
        UnknownVariableError,
        "'stage0' has no output 'x'",
    ),
    "upstream": ([Stage("x", "y"), Stage("p", "q")], {"stage0/x": "stage1/q"}, ValidationError, "runs upstream"),
    "other kind": (
        [Stage("x", "y"), Other()],
        {"stage1/n": "stage0/y"},
        ValidationError,
        "TorchScalarVariable to a Int",
    ),
    "other shape": ([Stage("x", "y"), Other()], {"stage1/w": "stage0/y"}, ValidationError, r"of shape \(3,\)"),
    "other dimension": (
        [Stage("x", "y", y="eV"), Stage("p", "q", p="m")],
        {"stage1/p": "stage0/y"},
        UnitError,
        "'stage0/y' -> 'stage1/p'.*'eV'.*'m'",
    ),
}


@pytest.mark.parametrize("stages, links, error, words", REFUSED.values(), ids=REFUSED)
def test_refused(stages: Any, links: dict[str, str], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        StagedModel(stages, links)


def test_one_model_cannot_be_two_stages() -> None:
    stage = Stage("x", "y")
    with pytest.raises(ValidationError, match=r"stages 'a' and 'b'.*copy.deepcopy"):
        StagedModel({"a": stage, "b": stage}, {"b/x": "a/y"})
    inner = StagedModel({"one": stage})
    with pytest.raises(ValidationError, match="stages 'inner' and 'b'"):
        StagedModel({"inner": inner, "b": stage}, {"b/x": "inner/y"})
    StagedModel({"a": stage, "b": copy.deepcopy(stage)}, {"b/x": "a/y"})


def test_what_is_handed_over_is_checked_as_if_written() -> None:
    class Limited(Stage):
        def __init__(self, **options: Any) -> None:
            variables = [
                TorchScalarVariable(name="p", value_range=(0, 3)),
                TorchScalarVariable(name="q", read_only=True),
            ]
            LUMEModel.__init__(self, variables, **options)

    model = StagedModel({"a": Stage("x", "y"), "b": Limited()}, {"b/p": "a/y"})
    assert model.get("q").item() == 1.0
    with pytest.raises(ValidationError, match=r"in stage 'b': variable 'p': 4.0 is outside value_range"):
        model.set({"x": 4.0})
    with pytest.raises(ValidationError, match=r"in stage 'b'.*not finite"):
        StagedModel({"a": Broken("x", "y"), "b": Limited()}, {"b/p": "a/y"}).get("q")
    free = StagedModel({"a": Stage("x", "y"), "b": Limited(validation={"p": "none"})}, {"b/p": "a/y"})
    free.set({"x": 4.0})
    assert free.get("q").item() == 4.0


class Broken(Stage):
    def _run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
        return {name: value / 0.0 - value / 0.0 for name, value in super()._run(inputs, outputs).items()}


# -- replace


@pytest.fixture
def three() -> StagedModel:
    """s = x + p + q, by three stages."""
    model = chain(("x", "out"), ("in p", "out d"), ("in q", "s"))
    model.set({"x": 2.0, "p": 3.0, "q": 4.0})
    return model


def runs(model: StagedModel) -> list[int]:
    return [stage.runs for stage in model.stages.values()]


def state_of(model: StagedModel) -> dict[str, float]:
    return {name: value.item() for name, value in model.get().items()}


def test_replace_keeps_the_rest_and_its_runs(three: StagedModel) -> None:
    fresh, total = Stage("in other", "out d2"), three.runs
    three.register_forward_hook(lambda *_: None)
    three.replace("b", fresh)
    assert three.runs == total
    assert three.input_names == ["x", "other", "q"]
    assert three.get("s").item() == 2.0 + 1.0 + 4.0
    assert runs(three) == [1, 1, 2]
    assert three.stages["b"] is fresh
    assert len(three._forward_hooks) == 1
    three.reset()
    assert three.get("s").item() == 3.0


def test_replace_keeps_set_points_and_policies_whose_name_changes() -> None:
    models = {"a": Stage("k", "out"), "b": Stage("in k", "s")}
    model = StagedModel(models, {"b/in": "a/out"}, validation={"b/k": "warn", "a/k": "none"})
    model.set({"b/k": 7.0, "a/k": 5.0})
    model.replace("a", Stage("x", "out"))
    assert model.input_names == ["x", "k"]
    assert (model.get("k").item(), model.get("x").item()) == (7.0, 1.0)
    assert model._validation == {"k": "warn"}


OTHERS = {
    "unknown": ("q", lambda m: Stage("k", "out"), UnknownVariableError, "'q' is not a stage"),
    "no model": ("b", lambda m: torch.nn.Linear(1, 1), ValidationError, "expected a LUMEModel"),
    "there already": ("b", lambda m: m.stages["a"], ValidationError, "one model stands in the stages"),
    "takes nothing": ("b", lambda m: Stage("p", "out"), UnknownVariableError, "'b' has no input 'in'"),
    "gives nothing": ("b", lambda m: Stage("in p", "d"), UnknownVariableError, "'b' has no output 'out'"),
}


@pytest.mark.parametrize("stage, other, error, words", OTHERS.values(), ids=OTHERS)
def test_replace_is_all_or_nothing(three: StagedModel, stage: str, other: Any, error: Any, words: str) -> None:
    before, stages = state_of(three), dict(three.stages)
    with pytest.raises(error, match=words):
        three.replace(stage, other(three))
    assert dict(three.stages) == stages
    assert state_of(three) == before


def test_replacing_a_stage_by_itself_changes_nothing(three: StagedModel) -> None:
    three.replace("b", three.stages["b"])
    assert state_of(three)["s"] == 9.0
    assert runs(three) == [1, 1, 1]


def test_an_inner_chain_that_was_changed_must_be_told_to_the_outer_one() -> None:
    inner = chain(("x", "out"), ("in p", "s"))
    outer = StagedModel({"inner": inner})
    outer.get()
    inner.replace("b", Stage("in q", "s"))
    with pytest.raises(ValidationError, match=r"variables of stage 'inner' have changed.*replace\('inner'"):
        outer.set({"x": 2.0})
    outer.replace("inner", inner)
    assert outer.input_names == ["x", "q"]
    outer.set({"x": 2.0})
    assert copy.deepcopy(outer).get("s").item() == 3.0
