"""StagedModel: what runs again, what is shared, what is replaced, and who is to blame."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from lume_diff.errors import (
    GradientError,
    OutOfRangeWarning,
    ShapeError,
    SimulatorError,
    UnknownVariableError,
    ValidationError,
)
from lume_diff.models import GradientEntry, LUMEModel, StagedModel
from lume_diff.variables import TorchScalarVariable

F64 = torch.float64


def number(name: str, default: float | None = 1.0, **fields: Any) -> TorchScalarVariable:
    return TorchScalarVariable(name=name, default_value=default, **fields)


class Stage(LUMEModel):
    """out = weight (in^2 + k), and a diagnostic d = out^3 of which nobody but the reader knows."""

    def __init__(self, k: str, *, first: str = "in", out: str = "out", d: str = "d", **options: Any) -> None:
        inputs = [number(first), number(k, value_range=(-50, 50))]
        outputs = [number(name, None, read_only=True) for name in (out, d)]
        super().__init__([*inputs, *outputs], **options)
        self.weight = torch.nn.Parameter(torch.tensor(1.0, dtype=self.dtype), requires_grad=False)
        self.names = first, k, out, d
        self.failure: Exception | None = None

    def _run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> Tensor:
        if self.failure is not None:
            raise self.failure
        return self.weight * (inputs[self.names[0]].square() + inputs[self.names[1]])

    def _read(self, state: Tensor, outputs: Sequence[str]) -> dict[str, Any]:
        return {name: state * 1.0 if name == self.names[2] else state**3 for name in outputs}

    def reference_energy(self, inputs: Any, elements: Sequence[str]) -> dict[str, Tensor]:
        if any(element != "Q" for element in elements):
            raise UnknownVariableError(f"no {elements}")
        return dict.fromkeys(elements, self._checked_inputs(inputs)[self.names[1]] * 100.0)


LINKS = {"b/in": "a/out", "c/in": "b/out"}


def make_chain(**options: Any) -> StagedModel:
    stages = {
        "a": Stage("ka", first="start", d="da"),
        "b": Stage("kb", d="db", out="out"),
        "c": Stage("kc", d="dc", out="end"),
    }
    return StagedModel(stages, LINKS, **options)


@pytest.fixture
def model() -> StagedModel:
    made = make_chain()
    made.get()
    return made


def runs(model: StagedModel) -> dict[str, int]:
    return {name: stage.runs for name, stage in model.stages.items()}


def leaf(value: float) -> Tensor:
    return torch.tensor(value, dtype=F64, requires_grad=True)


def by_hand(ka: Any = 1.0, kb: Any = 1.0, kc: Any = 1.0) -> Any:
    return ((1.0 + ka) ** 2 + kb) ** 2 + kc


# -- only what changed


@pytest.mark.parametrize(
    "write, again",
    [("ka", "abc"), ("start", "abc"), ("kb", "bc"), ("kc", "c")],
)
def test_a_write_runs_its_stage_and_those_downstream(model: StagedModel, write: str, again: str) -> None:
    model.set({write: 2.0})
    model.get()
    assert runs(model) == {name: 1 + (name in again) for name in "abc"}
    assert model.runs == 3 + len(again)


@pytest.mark.parametrize("outputs, again", [(["da"], "a"), (["db"], "ab"), (["end"], "abc"), (["da", "dc"], "abc")])
def test_a_call_runs_what_its_outputs_need(outputs: list[str], again: str) -> None:
    fresh = make_chain()
    fresh({"ka": 2.0}, outputs=outputs)
    assert runs(fresh) == {name: int(name in again) for name in "abc"}


def test_a_call_uses_what_was_committed_upstream(model: StagedModel) -> None:
    assert model({"kc": 3.0}, outputs=["end"])["end"].item() == by_hand(kc=3.0)
    assert runs(model) == {"a": 1, "b": 1, "c": 2}


def test_a_number_that_is_there_already_changes_nothing(model: StagedModel) -> None:
    model.set({"start": 1.0, "ka": torch.tensor(1.0), "kb": 1, "kc": 3.0})
    assert model({"ka": 1.0, "kc": 4.0})["end"].item() == by_hand(kc=4.0)
    assert runs(model) == {"a": 1, "b": 1, "c": 3}


def test_reading_one_stage_after_another_runs_each_once() -> None:
    fresh = make_chain()
    for name in ("da", "db", "end", "dc"):
        fresh.get(name)
    assert runs(fresh) == {"a": 1, "b": 1, "c": 1}
    fresh.reset()
    assert fresh.get("da").item() == 8.0
    assert runs(fresh) == {"a": 2, "b": 1, "c": 1}


def test_a_step_on_one_stages_weight_runs_it_and_those_downstream(model: StagedModel) -> None:
    with torch.no_grad():
        model.stages["b"].weight.mul_(2.0)
    assert model.get("da").item() == 8.0
    assert model.get("end").item() == 10.0**2 + 1.0
    assert runs(model) == {"a": 1, "b": 2, "c": 2}


def test_set_points_of_a_stage_itself_are_not_those_of_the_chain(model: StagedModel) -> None:
    model.stages["c"].set({"kc": 30.0})
    assert model.get("end").item() == by_hand()
    model.set({"kc": 2.0})
    assert model.stages["c"].get("kc").item() == 30.0


def test_a_chain_starts_where_its_stages_stand() -> None:
    stage = Stage("k")
    stage.set({"k": 7.0})
    chain = StagedModel({"only": stage})
    assert chain.get("k").item() == 7.0
    chain.reset()
    assert chain.get("k").item() == 1.0


# -- graphs


def test_gradient_through_all_borders(model: StagedModel) -> None:
    ka = leaf(2.0)
    for _ in range(2):
        ka.grad = None
        model.set({"ka": ka})
        model.get("end").backward()
        assert ka.grad is not None
        assert ka.grad.item() == 2 * (3.0**2 + 1) * 2 * 3.0


def test_optimisation_of_the_last_stage_leaves_the_first_at_rest(model: StagedModel) -> None:
    kc = leaf(2.0)
    optimiser = torch.optim.SGD([kc], lr=0.01)
    model.set({"kc": kc})
    for _ in range(3):
        optimiser.zero_grad()
        model.get("dc").backward()
        optimiser.step()
        kc.data.clamp_(-50, 50)
    model.get("dc")
    assert runs(model)["a"] == runs(model)["b"] == 1
    assert runs(model)["c"] == 5


def test_what_a_backward_has_freed_upstream_is_made_again(model: StagedModel) -> None:
    ka, kc = leaf(1.0), leaf(1.0)
    model.set({"ka": ka})
    for turn in range(3):
        model.set({"kc": kc})
        model.get("end").backward()
        assert runs(model) == {"a": 2 + turn, "b": 2 + turn, "c": 3 + turn}
    assert ka.grad is not None
    assert ka.grad.item() == 3 * 2 * 5.0 * 2 * 2.0


def test_a_backward_that_stops_downstream_frees_nothing_upstream(model: StagedModel) -> None:
    ka, kc = leaf(1.0), leaf(1.0)
    model.set({"ka": ka, "kc": kc})
    torch.autograd.grad(model.get("dc"), kc)
    torch.autograd.grad(model.get("dc"), kc)
    assert runs(model) == {"a": 2, "b": 2, "c": 3}


def test_two_writes_share_the_graph_of_a_stage_that_stayed(model: StagedModel) -> None:
    ka = leaf(1.0)
    model.set({"ka": ka, "kc": 1.0})
    first = model.get("end")
    model.set({"kc": 2.0})
    (first + model.get("end")).backward()
    assert ka.grad is not None
    assert ka.grad.item() == 2 * 2 * 5.0 * 2 * 2.0
    assert runs(model) == {"a": 2, "b": 2, "c": 3}


def test_a_call_never_frees_what_was_committed(model: StagedModel) -> None:
    ka = leaf(1.0)
    model.set({"ka": ka})
    value = model.get("end")
    for _ in range(2):
        model({"kc": 5.0})["end"].backward()
    value.backward()
    assert ka.grad is not None
    assert ka.grad.item() == 3 * 2 * 5.0 * 2 * 2.0


def test_reading_upstream_inside_a_transform_leaves_no_wrapper(model: StagedModel) -> None:
    fresh = make_chain()
    fresh.get("da")
    found = torch.func.grad(lambda x: fresh({"kc": x}, outputs=["dc"])["dc"])(torch.tensor(1.0, dtype=F64))
    assert found.item() == 3 * 26.0**2
    assert fresh.get("dc").item() == 26.0**3
    assert not torch._C._functorch.is_functorch_wrapped_tensor(fresh.get("db"))


def test_jacobian_of_a_chain(model: StagedModel) -> None:
    table = model.jacobian(["da", "end"], ["ka", "kc"], at={"ka": torch.tensor([1.0, 2.0])})
    assert table["da"]["kc"].tolist() == [0.0, 0.0]
    assert table["end"]["ka"].tolist() == [2 * 5.0 * 4.0, 2 * 10.0 * 6.0]
    assert table["end"]["kc"].tolist() == [1.0, 1.0]
    assert model.gradient_report().jacobian is not None


def test_trainable_weights_of_all_stages_are_parameters_of_the_chain(model: StagedModel) -> None:
    assert len(list(model.parameters())) == 3
    model.requires_grad_(True)
    model.get("end").backward()
    assert all(p.grad is not None and p.grad != 0 for p in model.parameters())
    weights = {name: p.detach() * 2.0 for name, p in model.named_parameters()}
    found = torch.func.functional_call(model, weights, ({"ka": 3.0},), {"outputs": ["end"]})["end"]
    assert found.item() == 2 * ((2 * ((2 * (1 + 3.0)) ** 2 + 1)) ** 2 + 1)


# -- batches, dtypes, copies


def test_batches_go_through_and_broadcast(model: StagedModel) -> None:
    found = model({"ka": torch.ones(3, 1, dtype=F64), "kc": torch.zeros(2, dtype=F64)})
    assert found["end"].shape == (3, 2)
    assert found["da"].shape == (3, 1)
    with pytest.raises(ShapeError, match=r"'kc'.*'ka'"):
        model({"ka": torch.ones(3, dtype=F64), "kc": torch.zeros(2, dtype=F64)})


def test_stages_of_different_precision() -> None:
    stages = {"a": Stage("ka", d="da", dtype=torch.float32), "b": Stage("kb", d="db", first="p", out="end")}
    chain = StagedModel(stages, {"b/p": "a/out"})
    ka = leaf(2.0)
    chain.set({"ka": ka, "kb": torch.tensor(3.0, dtype=torch.float32)})
    assert {name: chain.get(name).dtype for name in ("da", "kb", "end")} == {
        "da": torch.float32,
        "kb": F64,
        "end": F64,
    }
    chain.get("end").backward()
    assert ka.grad is not None
    assert ka.grad.item() == 6.0
    assert chain.jacobian(["end", "da"], ["ka", "kb"])["end"]["ka"].item() == 6.0
    assert chain.tensor_function(["ka", "kb"], ["da", "end"])(torch.ones(2, dtype=F64)).tolist() == [8.0, 5.0]
    assert chain.float().get("end").dtype == torch.float32


@pytest.mark.parametrize("make", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_copies_live_on_their_own_and_still_share_with_their_stages(model: StagedModel, make: Any) -> None:
    model.set({"ka": leaf(2.0) * 1.0})
    other = make(model)
    assert other.get("end").item() == by_hand(ka=2.0)
    other.set({"ka": 1.0})
    assert model.get("end").item() == by_hand(ka=2.0)
    for chain in (model, other, copy.deepcopy(model).float()):
        stage = chain.stages["b"]
        assert chain._baseline["kb"] is stage._baseline["kb"]
        assert chain._setpoints["kb"] is stage._baseline["kb"]


def test_snapshot_through_yaml(model: StagedModel) -> None:
    model.set({"ka": 2.0, "kc": 4.0})
    text = yaml.safe_dump(model.snapshot())
    model.reset()
    model.restore(yaml.safe_load(text))
    assert model.get("end").item() == by_hand(ka=2.0, kc=4.0)


# -- failures


def test_a_failing_stage_is_named_and_changes_nothing(model: StagedModel) -> None:
    model.set({"ka": 2.0})
    before = {name: value.item() for name, value in model.get().items()}
    model.stages["b"].failure = RuntimeError("quench")
    with pytest.raises(SimulatorError, match=r"^in stage 'b': Stage failed: RuntimeError: quench; .*kb=5\.0"):
        model.set({"ka": 3.0, "kb": 5.0})
    model.stages["b"].failure = None
    assert {name: value.item() for name, value in model.get().items()} == before


def test_a_failing_stage_of_a_chain_in_a_chain_is_named_by_its_way(model: StagedModel) -> None:
    outer = StagedModel({"line": model})
    model.stages["c"].failure = ValueError("no")
    with pytest.raises(SimulatorError, match=r"^in stage 'line': in stage 'c': Stage failed"):
        outer.set({"kc": 2.0})


def test_policies_of_stages_and_of_the_chain() -> None:
    def stage(policy: str) -> Stage:
        return Stage("ka", d="da", validation={"ka": policy})

    StagedModel({"a": stage("none")}).set({"ka": 60.0})
    with pytest.warns(OutOfRangeWarning, match="'ka'"):
        StagedModel({"a": stage("none")}, validation={"ka": "warn"}).set({"ka": 60.0})
    with pytest.raises(ValidationError, match="'ka'"):
        StagedModel({"a": stage("none")}, validation={"ka": "error"}).set({"ka": 60.0})
    with pytest.raises(ValidationError, match="'ka'"):
        StagedModel({"a": Stage("ka")}).set({"ka": 60.0})


def test_set_in_a_transform_is_refused(model: StagedModel) -> None:
    with pytest.raises(GradientError, match=r"StagedModel\.set"):
        torch.func.vmap(lambda x: model.set({"ka": x}) or x)(torch.ones(2, dtype=F64))


# -- what the chain asks its stages


def test_gradient_report_speaks_in_the_chains_names(model: StagedModel) -> None:
    shared = StagedModel({"x": Stage("k", d="d1"), "y": Stage("k", d="d2", first="p")}, {"y/p": "x/out"})
    shared.stages["y"].gradient_report().entries.append(GradientEntry("d2", "k"))
    shared.stages["y"].gradient_report().entries.append(GradientEntry("d2", "p"))
    shared.stages["x"].gradient_report().notes.append("calibrated")
    report = shared.gradient_report()
    assert [(e.output, e.input) for e in report.entries] == [("d2", "y/k"), ("d2", "y/p")]
    assert report.notes == ["x: calibrated"]
    assert shared.stages["y"].gradient_report().entries[0].input == "k"


def test_reference_energy_is_asked_of_the_right_stage(model: StagedModel) -> None:
    outer = StagedModel({"first": Stage("k0", d="d0", out="o"), "line": model}, {"line/start": "first/o"})
    kb = leaf(4.0)
    assert outer.reference_energy({"kb": kb}, ["line/b/Q"])["line/b/Q"].item() == 400.0
    assert outer.reference_energy(None, ["Q", "line/Q"]) == {"Q": torch.tensor(100.0), "line/Q": torch.tensor(100.0)}
    outer.reference_energy({"kb": kb}, ["line/b/Q"])["line/b/Q"].backward()
    assert kb.grad is not None
    assert kb.grad.item() == 100.0
    with pytest.raises(UnknownVariableError, match="'line/b/R'"):
        outer.reference_energy(None, ["line/b/R"])


def test_a_reference_that_is_handed_over_is_followed() -> None:
    chain = StagedModel({"a": Stage("ka", d="da"), "b": Stage("kb", d="db", first="p")}, {"b/kb": "a/out"})
    assert chain.reference_energy({"ka": 3.0}, ["b/Q"])["b/Q"].item() == 400.0


def test_simulators_and_refresh(model: StagedModel) -> None:
    assert dict(model.simulator) == {"a": None, "b": None, "c": None}
    model.set({"kc": 2.0})
    model.refresh()
    model.get()
    assert runs(model) == {"a": 2, "b": 2, "c": 3}
