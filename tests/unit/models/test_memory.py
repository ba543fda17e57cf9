"""What a model remembers: snapshots, copies, dtypes."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
import yaml

from lume_diff.errors import UnknownVariableError, ValidationError
from lume_diff.models import BunchFromMoments, CheetahModel, LUMEModel, StagedModel
from lume_diff.particles import TorchMoments, TorchParticleGroup
from lume_diff.variables import (
    BoolVariable,
    EnumVariable,
    IntVariable,
    MomentsVariable,
    ParticleGroupVariable,
    StrVariable,
    TorchNDVariable,
    TorchScalarVariable,
)

F64 = torch.float64


class Machine(LUMEModel):
    """y = gain (a^2 + sum(w)) + n, beside inputs of every kind."""

    def __init__(self) -> None:
        super().__init__(
            [
                TorchScalarVariable(name="a", default_value=1.0, value_range=(-10, 10)),
                TorchScalarVariable(name="b", default_value=2.0),
                TorchNDVariable(name="w", shape=(3,), default_value=[1.0, 2.0, 3.0]),
                IntVariable(name="n", default_value=4),
                BoolVariable(name="on", default_value=True),
                EnumVariable(name="mode", options=["slow", "fast"], default_value="slow"),
                StrVariable(name="note", default_value="none"),
                ParticleGroupVariable(name="bunch"),
                MomentsVariable(name="moments"),
                TorchScalarVariable(name="y", read_only=True),
            ]
        )
        self.gain = torch.nn.Parameter(torch.tensor(1.0, dtype=F64), requires_grad=False)

    def _run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
        return {"y": self.gain * (inputs["a"].square() + inputs["w"].sum(-1)) + inputs["n"]}


@pytest.fixture
def machine() -> Machine:
    return Machine()


def state_of(machine: Machine) -> dict[str, Any]:
    return {name: value.tolist() if hasattr(value, "tolist") else value for name, value in machine.get().items()}


SETTINGS: dict[str, Any] = {"a": 2.5, "w": [0.1, 0.2, 0.3], "n": 7, "on": False, "mode": "fast", "note": "x: y"}


def test_snapshot_is_plain_and_survives_yaml(machine: Machine) -> None:
    machine.set(SETTINGS)
    before = state_of(machine)
    text = yaml.safe_dump(machine.snapshot())
    assert yaml.safe_load(text) == {"b": 2.0, **SETTINGS}
    machine.reset()
    machine.restore(yaml.safe_load(text))
    assert state_of(machine) == before


def test_snapshot_of_a_batch_survives_yaml(machine: Machine) -> None:
    batch = {"a": torch.tensor([1.0, 2.0]), "n": torch.tensor([1, 2]), "on": torch.tensor([True, False])}
    machine.set(batch)
    text = yaml.safe_dump(machine.snapshot())
    machine.reset()
    machine.restore(yaml.safe_load(text))
    assert [machine.get(name).dtype for name in batch] == [F64, torch.int64, torch.bool]
    assert machine.get("y").tolist() == [8.0, 12.0]


def test_restore_is_all_or_nothing_and_leaves_the_rest_at_the_baseline(machine: Machine) -> None:
    machine.set(SETTINGS)
    before = state_of(machine)
    for bad in ({"a": 1.0, "n": "many"}, {"a": 99.0}, {"q": 1.0}):
        with pytest.raises((ValidationError, UnknownVariableError)):
            machine.restore(bad)
        assert state_of(machine) == before
    machine.restore({"a": 3.0})
    assert state_of(machine)["mode"] == "slow"
    assert machine.get("y").item() == 19.0


@pytest.mark.parametrize("make", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_copies_cut_graphs_keep_leaves_and_live_on_their_own(machine: Machine, make: Any) -> None:
    leaf = torch.tensor(3.0, dtype=F64, requires_grad=True)
    machine.set({"a": leaf * 2.0, "b": leaf})
    other = make(machine)
    assert other.get("a").is_leaf
    assert not other.get("a").requires_grad
    assert other.get("b").requires_grad
    assert other.get("b") is not leaf
    assert other.get("y").item() == machine.get("y").item() == 46.0
    assert other.gain is not machine.gain
    other.set({"a": 0.0})
    assert machine.get("y").item() == 46.0


def test_a_parameter_as_set_point_stays_one_object_in_a_copy(machine: Machine) -> None:
    machine.set({"a": machine.gain})
    other = copy.deepcopy(machine)
    with torch.no_grad():
        other.gain += 1.0
    assert other.get("y").item() == 2.0 * (4.0 + 6.0) + 4.0
    assert machine.get("y").item() == 11.0


def test_dtype_and_state_dict(machine: Machine) -> None:
    machine.set({"a": 1.5})
    machine.float()
    found = machine.get(["a", "w", "y"])
    assert {value.dtype for value in found.values()} == {torch.float32}
    assert machine.get("n").dtype == torch.int64
    assert machine.dtype == torch.float32
    machine.set({"a": 2.0})
    machine.double().load_state_dict({"gain": torch.tensor(3.0, dtype=F64)})
    assert machine.get("y").item() == 3.0 * 10.0 + 4.0


# -- beams


def make_bunch(beta: float, **options: Any) -> BunchFromMoments:
    twiss = {"norm_emit_x": 1e-6, "norm_emit_y": 2e-6, "beta_x": beta, "beta_y": 3.0}
    return BunchFromMoments(12, mean_energy=2e9, charge=1e-10, sigma_t=1e-12, sigma_energy=1e5, **twiss, **options)


def same(a: TorchParticleGroup | TorchMoments, b: TorchParticleGroup | TorchMoments) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a._leaves().values(), b._leaves().values(), strict=True))


@pytest.mark.parametrize("species", ["electron", "proton"])
def test_beams_survive_yaml(machine: Machine, species: str) -> None:
    source = make_bunch(6.0, species=species)
    bunch = source.get("final_particles")
    bunch = bunch.replace(id=torch.arange(12).flip(0), alive=torch.linspace(0, 1, 12, dtype=F64))
    machine.set({"bunch": bunch, "moments": source.get("final_moments")})
    text = yaml.safe_dump(machine.snapshot())
    machine.reset()
    assert machine.get("bunch") is None
    machine.restore(yaml.safe_load(text))
    found = machine.get(["bunch", "moments"])
    assert same(found["bunch"], bunch)
    assert same(found["moments"], source.get("final_moments"))
    assert found["bunch"].id.tolist() == bunch.id.tolist()
    assert found["bunch"].species == found["moments"].species == species


def test_a_batch_of_bunches_of_an_unknown_species_survives_yaml(machine: Machine) -> None:
    batch = make_bunch(6.0)({"beta_x": torch.tensor([4.0, 5.0])})["final_particles"]
    bunch = batch.replace(species="kaonium", mass=1e9, species_charge=2.0)
    machine.set({"bunch": bunch})
    machine.restore(yaml.safe_load(yaml.safe_dump(machine.snapshot())))
    found = machine.get("bunch")
    assert (found.mass, found.charge_number, found.batch_shape) == (1e9, 2.0, (2,))
    assert same(found, bunch)


def test_a_bunch_is_written_only_where_it_is_not_the_baselines() -> None:
    import cheetah

    line = cheetah.Segment([cheetah.Drift(torch.tensor(1.0, dtype=F64), name="D1")], name="line")
    model = CheetahModel(line, make_bunch(6.0).get("final_particles"), outputs=["final.sigma_x"])
    model.set({"D1.length": 2.0})
    snapshot = model.snapshot()
    assert "initial_particles" not in snapshot
    model.set({"initial_particles": make_bunch(9.0).get("final_particles"), "D1.length": 3.0})
    assert "initial_particles" in model.snapshot()
    model.restore(snapshot)
    assert model.get("D1.length").item() == 2.0
    assert model.get("initial_particles")["twiss_beta_x"].item() == pytest.approx(6.0, rel=1e-9)


@pytest.mark.parametrize("make", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_a_bunch_with_a_graph_is_copied_without(machine: Machine, make: Any) -> None:
    beta = torch.tensor(5.0, dtype=F64, requires_grad=True)
    machine.set({"bunch": make_bunch(6.0)({"beta_x": beta})["final_particles"]})
    found = make(machine).get("bunch")
    assert same(found, machine.get("bunch"))
    assert machine.get("bunch").requires_grad
    assert not found.requires_grad
    machine.detach_()
    assert not machine.get("bunch").requires_grad


# -- outputs on request


class WithDump(Machine):
    """The dump is made by a run that is asked for it, and by no other."""

    _on_request = frozenset({"dump"})

    def __init__(self) -> None:
        super().__init__()
        LUMEModel.__init__(
            self, [*self.supported_variables.values(), TorchNDVariable(name="dump", shape=(2,), read_only=True)]
        )
        self.gain = torch.nn.Parameter(torch.tensor(1.0, dtype=F64), requires_grad=False)

    def _run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
        found = super()._run(inputs, outputs)
        return {**found, "dump": torch.stack([found["y"]] * 2)} if "dump" in outputs else found


@pytest.mark.parametrize("make", [WithDump, lambda: StagedModel({"only": WithDump()})], ids=["model", "chain"])
def test_an_output_that_needs_a_run_of_its_own_gets_one_when_it_is_read(make: Any) -> None:
    model = make()
    model.set({"a": 2.0})
    model.get("y")
    assert model.runs == 1
    a = torch.tensor(2.0, dtype=F64, requires_grad=True)
    model.set({"a": a})
    for _ in range(3):
        assert model.get("dump").tolist() == [14.0, 14.0]
    assert model.runs == 3
    model.get("dump").sum().backward()
    assert a.grad is not None
    assert a.grad.item() == 8.0
    assert model({"a": 1.0}, outputs=["dump", "y"])["dump"].shape == (2,)
    assert model.runs == 4


# -- set-points that were converted


@pytest.mark.parametrize("make", [lambda leaf: leaf, lambda leaf: [leaf, leaf]], ids=["single precision", "a list"])
@pytest.mark.parametrize("chained", [False, True], ids=["model", "chain"])
def test_a_step_on_what_was_converted_is_noticed(make: Any, chained: bool) -> None:
    model = StagedModel({"only": Machine()}) if chained else Machine()
    leaf = torch.tensor(2.0, requires_grad=True)  # torch's default is single precision
    optimiser = torch.optim.SGD([leaf], lr=0.25)
    model.set({"a": make(leaf)})
    model.get("y").mean().backward()
    optimiser.step()
    assert leaf.item() == 1.0
    assert model.get("y").mean().item() == model()["y"].mean().item() == 11.0
    assert (model.get("a").mean().item(), model.get("a").dtype) == (1.0, F64)
    with torch.no_grad():
        leaf.fill_(3.0)
    model.reset()
    assert model.get("y").item() == 11.0


def test_a_step_out_of_the_limits_on_what_was_converted_is_refused(machine: Machine) -> None:
    leaf = torch.tensor(2.0, requires_grad=True)
    machine.set({"a": leaf})
    with torch.no_grad():
        leaf.fill_(20.0)
    for attempt in (lambda: machine.get("y"), machine, lambda: machine.set({"b": 1.0})):
        with pytest.raises(ValidationError, match=r"'a': 20\.0 is outside"):
            attempt()
    machine.set({"a": 3.0})
    assert machine.get("y").item() == 19.0
    with torch.no_grad():
        leaf.fill_(1.0)
    assert machine.get("y").item() == 19.0


def test_what_follows_a_converted_parameter_follows_its_steps(machine: Machine) -> None:
    weight = torch.nn.Parameter(torch.tensor(2.0))  # single precision: the set-point is a conversion of it
    machine.set({"a": weight})
    steps = []
    for read in (
        lambda: machine.get("a"),
        lambda: machine.snapshot()["a"],
        lambda: copy.deepcopy(machine).get("a"),
        lambda: machine.make_baseline() or machine.baseline("a"),
        lambda: machine.detach_().get("a"),
    ):
        with torch.no_grad():
            weight += 1.0
        steps.append(torch.as_tensor(read()).item())
    assert steps == [3.0, 4.0, 5.0, 6.0, 7.0]
