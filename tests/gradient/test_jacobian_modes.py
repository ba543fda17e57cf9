"""The cheapest correct way to a Jacobian: what is foretold is what is spent, and "auto" takes the least of it."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import cheetah
import numpy as np
import pytest
import torch
from torch import Tensor

from lume_diff.blackbox import BlackBoxModel, FiniteDifference
from lume_diff.blackbox.simulator import Simulator
from lume_diff.errors import GradientError, PhysicsWarning
from lume_diff.models import BunchFromMoments, CheetahModel, JacobianCost, LUMEModel, StagedModel
from lume_diff.variables import ParticleGroupVariable, TorchNDVariable, TorchScalarVariable

pytestmark = pytest.mark.gradient

F64 = torch.float64
PARTICLES = 50
MODES = ("reverse", "forward", "collective")


def t(value: Any) -> Tensor:
    return torch.tensor(value, dtype=F64)


class Kicks(Simulator):
    """Thin lenses with a drift in between, and a force towards the centre of the bunch that all particles make."""

    def __init__(self, force: float = 0.0) -> None:
        self.force = force

    def run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
        bunch, found = inputs["initial_particles"].copy(), {}
        for knob, name in (("k1", "middle_particles"), ("k2", "final_particles")):
            bunch.px = bunch.px - inputs[knob] * bunch.x * bunch.pz
            bunch.py = bunch.py + inputs[knob] * bunch.y * bunch.pz
            bunch.px = bunch.px - self.force * (bunch.x - bunch.x.mean()) * bunch.x.std() / 1e-3 * bunch.pz
            bunch.x = bunch.x + 0.5 * bunch.px / bunch.pz
            bunch.y = bunch.y + 0.5 * bunch.py / bunch.pz
            found[name] = bunch.copy()
        return {**found, "trace": 2.0 - 0.5 * inputs["k1"] * inputs["k2"]}


def kicks(beam: Any, particles: str = "per_particle", force: float = 0.0, **options: Any) -> BlackBoxModel:
    knobs = [TorchScalarVariable(name=name, default_value=0.3, scale=0.1) for name in ("k1", "k2")]
    variables = [
        ParticleGroupVariable(name="initial_particles"),
        *knobs,
        ParticleGroupVariable(name="middle_particles", read_only=True),
        ParticleGroupVariable(name="final_particles", read_only=True),
        TorchScalarVariable(name="trace", read_only=True),
        TorchScalarVariable(name="middle.sigma_x", read_only=True),
        TorchScalarVariable(name="final.sigma_x", read_only=True),
    ]
    return BlackBoxModel(
        lambda: Kicks(force),
        variables,
        FiniteDifference(particles=particles, **options),
        derived={f"{place}.sigma_x": (f"{place}_particles", "sigma_x") for place in ("middle", "final")},
        initial={"initial_particles": beam},
    )


def line(name: str, beam: Any, count: int) -> CheetahModel:
    """Return quadrupoles ``<name>1.k1`` and so on, with drifts, and a screen behind them."""
    elements: list[cheetah.Element] = []
    for i in range(1, count + 1):
        elements.append(cheetah.Quadrupole(t(0.1), t(2.0 * (-1) ** i), name=f"{name}{i}"))
        elements.append(cheetah.Drift(t(0.3), name=f"{name}D{i}"))
    screen = cheetah.Screen(
        (8, 6), t([2e-4, 2e-4]), method="kde", kde_bandwidth=t(2e-4), is_active=True, name=f"{name}S"
    )
    return CheetahModel(cheetah.Segment([*elements, screen], name=name), beam)


def chain(middle: str = "per_particle", force: float = 0.0, before: int = 8, **options: Any) -> StagedModel:
    """Return Cheetah, a black box, and Cheetah; noise and curvature of the box's knobs are measured already."""
    twiss = {"norm_emit_x": 1e-6, "norm_emit_y": 1e-6, "beta_x": 4.0, "beta_y": 5.0}
    source = BunchFromMoments(
        PARTICLES, seed=1, mean_energy=1e8, sigma_energy=1e5, sigma_t=1e-12, charge=1e-10, **twiss
    )
    first = line("A", source.get("final_particles"), before)
    box = kicks(first.get("final_particles"), middle, force, **options)
    last = line("Z", box.get("final_particles"), 3)
    model = StagedModel({"first": first, "box": box, "last": last})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PhysicsWarning)
        model.jacobian(["final.sigma_x", "trace"], ["k1", "k2", "A1.k1"], at={"k1": 0.31}, mode="forward")
    return model


_shifts = itertools.count(1)


def fresh(inputs: Sequence[str]) -> dict[str, float]:
    """Return a point that no model has been at."""
    return {name: 0.3 + 1e-4 * next(_shifts) for name in inputs}


def spend(
    model: LUMEModel, outputs: Sequence[str], inputs: Sequence[str], mode: str = "auto", **at: Any
) -> tuple[dict[str, dict[str, Tensor]], JacobianCost]:
    """Take a Jacobian and check that it spent what it says, and what was foretold."""
    before = model._spent()[0]
    table = model.jacobian(outputs, inputs, at=at or fresh(inputs), mode=mode)
    cost = model.gradient_report().jacobian
    assert cost is not None
    assert cost.runs + cost.learning_runs == model._spent()[0] - before
    assert {cost.mode, *(other.mode for other in cost.alternatives)} >= {"reverse", "forward"}
    return table, cost


def runs_of(cost: JacobianCost) -> dict[str, int | None]:
    return {other.mode: other.runs for other in (cost.predicted, *cost.alternatives)}


# -- a box of numbers


def numbers(count: int, **options: Any) -> BlackBoxModel:
    def function(**inputs: Any) -> dict[str, Any]:
        total = sum(i * float(np.sum(np.sin(value))) for i, value in enumerate(inputs.values(), 1))
        return {"y": total, "w": np.array([total**2, np.cos(total), total])}

    names = [f"a{i}" for i in range(count)]
    return BlackBoxModel.from_function(
        function,
        inputs=[TorchScalarVariable(name=name, default_value=0.4, scale=0.1, value_range=(0.0, 2.0)) for name in names],
        outputs=[TorchScalarVariable(name="y"), TorchNDVariable(name="w", shape=(3,))],
        gradient=FiniteDifference(**options),
    )


@pytest.mark.parametrize("mode", ["auto", "reverse", "forward"])
@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("scheme, per_input", [("central", 2), ("forward", 1), ("fourth", 4)])
def test_a_box_of_numbers_takes_its_runs_once(mode: str, count: int, scheme: str, per_input: int) -> None:
    model = numbers(count, scheme=scheme, step=1e-3)
    _, cost = spend(model, ["y", "w"], model.input_names, mode)
    assert runs_of(cost) == {"reverse": 1 + per_input * count, "forward": 1 + per_input * count}
    assert (cost.runs, cost.learning_runs) == (cost.predicted.runs, 0)
    assert cost.mode == ("forward" if count < 4 else "reverse") if mode == "auto" else mode


def test_noise_is_measured_once_and_counted_apart() -> None:
    model = numbers(3)
    _, first = spend(model, ["y", "w"], model.input_names)
    assert 3 * 8 <= first.learning_runs <= 3 * 16
    for mode in ("reverse", "forward"):
        _, cost = spend(model, ["y", "w"], model.input_names, mode)
        assert cost.learning_runs == 0
        assert cost.runs == cost.predicted.runs == runs_of(cost)["forward"]
        assert 1 + 2 * 3 <= cost.runs <= 1 + 3 * 2 * 3


def test_a_known_point_costs_nothing_more() -> None:
    model = numbers(2, step=1e-3)
    point = fresh(model.input_names)
    tables = [spend(model, ["y"], model.input_names, mode, **point) for mode in ("reverse", "forward", "auto")]
    assert [cost.runs for _, cost in tables] == [5, 0, 0]
    assert {cost.predicted.runs for _, cost in tables} == {5}
    assert tables[0][0]["y"]["a1"].item() == pytest.approx(2.0 * np.cos(point["a1"]), rel=1e-6)
    assert all(table["y"]["a1"] == tables[0][0]["y"]["a1"] for table, _ in tables)


@pytest.mark.parametrize("mode", ["reverse", "forward"])
def test_a_batch_and_a_limit_are_foretold(mode: str) -> None:
    """Next to a limit the stencil of four points becomes a one-sided one of two."""
    model = numbers(2, scheme="fourth", step=1e-2)
    _, cost = spend(model, ["y"], ["a0", "a1"], mode, a0=t([0.0, 1.0, 1.5]), a1=0.7)
    assert cost.runs == cost.predicted.runs == 3 * 1 + (2 + 4 + 4) + 3 * 4


def test_a_box_without_a_gradient_says_so_in_every_mode() -> None:
    names = [TorchScalarVariable(name="a", default_value=1.0)]
    model = BlackBoxModel.from_function(lambda a: a, names, [TorchScalarVariable(name="y")], gradient=None)
    for mode in ("auto", *MODES):
        with pytest.raises(GradientError, match="built without a gradient"):
            model.jacobian(["y"], ["a"], mode=mode)


class HalfNative(Simulator):
    """Know one of two derivatives."""

    def run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
        return {"y": inputs["a"] ** 2 * inputs["b"] ** 3}

    def jacobian(
        self, inputs: Mapping[str, Any], outputs: Sequence[str], wrt: Sequence[str]
    ) -> dict[str, dict[str, np.ndarray]]:
        return {"y": {"a": np.array(2.0 * inputs["a"] * inputs["b"] ** 3)}}


@pytest.mark.parametrize("mode", ["auto", "reverse", "forward"])
def test_derivatives_of_the_codes_own_are_free(mode: str) -> None:
    knobs = [TorchScalarVariable(name=name, default_value=0.5, scale=0.1) for name in "ab"]
    output = TorchScalarVariable(name="y", read_only=True)
    model = BlackBoxModel(HalfNative, [*knobs, output], FiniteDifference(native=True, step=1e-3))
    _, first = spend(model, ["y"], ["a", "b"], mode)
    assert (first.runs, first.learning_runs) == (3, 2)
    table, cost = spend(model, ["y"], ["a", "b"], mode, a=0.5, b=0.6)
    assert cost.runs == cost.predicted.runs == 3
    assert table["y"]["a"].item() == pytest.approx(0.6**3, rel=1e-12)


class Wrapped(LUMEModel):
    """Take the sum of what a box gives, under the box's names."""

    def __init__(self, model: LUMEModel) -> None:
        super().__init__(model.supported_variables.values())
        self.model = model

    def _run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
        return {name: 2.0 * value for name, value in self.model(inputs, outputs=outputs).items()}


@pytest.mark.parametrize("mode", ["auto", "reverse", "forward"])
def test_a_box_in_a_wrapper_is_foretold(mode: str) -> None:
    model = Wrapped(numbers(2, step=1e-3))
    table, cost = spend(model, ["w"], ["a0", "a1"], mode, a0=0.5, a1=0.6)
    assert cost.runs == cost.predicted.runs == 5
    assert table["w"]["a0"][2].item() == pytest.approx(2.0 * np.cos(0.5), rel=1e-5)


# -- a bunch through a box between differentiable lines


@pytest.fixture(scope="module")
def blocks() -> StagedModel:
    return chain()


ABOVE = [f"A{i}.k1" for i in range(1, 9)]
CASES = {
    "one upstream": (["A1.k1"], 12, 2),
    "five upstream, one of its own": ([*ABOVE[:5], "k1"], 14, 12),
    "six upstream": (ABOVE[:6], 12, 12),
    "eight upstream": (ABOVE, 12, 16),
    "eight upstream, two of its own": ([*ABOVE, "k1", "k2"], 16, 20),
    "its own": (["k1", "k2"], 4, 4),
    "one of its own and two behind": (["k1", "Z1.k1", "Z2.k1"], 2, 2),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("inputs, by_blocks, whole", CASES.values(), ids=CASES)
def test_every_mode_takes_what_was_foretold(
    blocks: StagedModel, inputs: list[str], by_blocks: int, whole: int, mode: str
) -> None:
    _, cost = spend(blocks, ["final.sigma_x"], inputs, mode)
    assert (cost.mode, cost.reason, cost.learning_runs) == (mode, "as asked", 0)
    assert cost.runs == cost.predicted.runs == 1 + (whole if mode == "collective" else by_blocks)
    assert {"reverse": 1 + by_blocks, "forward": 1 + by_blocks}.items() <= runs_of(cost).items()


@pytest.mark.parametrize(
    "outputs, inputs, mode, runs",
    [
        (["final.sigma_x"], ["A1.k1"], "collective", 3),
        (["final.sigma_x"], ABOVE, "reverse", 13),
        (["ZS.image"], ABOVE, "forward", 13),
        (["ZS.image"], [*ABOVE, "k1", "k2", "Z3.k1"], "forward", 17),
        (["final.sigma_x", "final.sigma_y"], [*ABOVE, "k1", "k2", "Z3.k1"], "reverse", 17),
        (["box/final.sigma_x"], ["A1.k1", "k1"], "collective", 5),
        (["trace"], ["k1", "k2"], "reverse", 5),
        (["middle.sigma_x", "final.sigma_x"], [*ABOVE, "k1", "k2"], "reverse", 17),
        (["trace", "ZS.image"], ["k1"], "forward", 5),
        (["final.sigma_x"], ["Z1.k1", "Z2.k1"], "reverse", 0),
        (["A8.k1", "final.sigma_x"], ["Z1.k1"], "forward", 0),
    ],
    ids=lambda value: value if isinstance(value, str) else str(len(value)) if isinstance(value, list) else str(value),
)
def test_auto_takes_the_fewest_runs_then_the_fewest_passes(
    blocks: StagedModel, outputs: list[str], inputs: list[str], mode: str, runs: int
) -> None:
    blocks.get()
    table, cost = spend(blocks, outputs, inputs)
    assert (cost.mode, cost.runs, cost.learning_runs) == (mode, runs, 0)
    assert cost.predicted.runs == runs
    assert all(other.runs is None or other.runs >= runs for other in cost.alternatives)
    assert all(value.isfinite().all() for row in table.values() for value in row.values())


def test_all_modes_give_one_jacobian(blocks: StagedModel) -> None:
    inputs, outputs = ["A1.k1", "A8.k1", "k1", "k2", "Z2.k1"], ["final.sigma_x", "final.norm_emit_y"]
    point = fresh(inputs)
    tables = [spend(blocks, outputs, inputs, mode, **point)[0] for mode in MODES]
    for output, name in itertools.product(outputs, inputs):
        values = torch.stack([table[output][name] for table in tables])
        torch.testing.assert_close(values, values[:1].expand(3), rtol=1e-6, atol=1e-14)


def test_a_direction_that_is_known_is_not_run_again(blocks: StagedModel) -> None:
    point = fresh(["A1.k1", "A2.k1"])
    costs = [spend(blocks, ["final.sigma_x"], list(point), "collective", **point)[1] for _ in range(2)]
    assert [cost.runs for cost in costs] == [5, 0]


def test_a_batch_of_bunches_is_foretold(blocks: StagedModel) -> None:
    values = t([0.41, 0.42, 0.43])
    for mode, runs in (("reverse", 3 * 15), ("forward", 3 * 15), ("collective", 3 * 5)):
        shift = 1e-3 * next(_shifts)
        point = {"A1.k1": values + shift, "k1": 0.3}
        _, cost = spend(blocks, ["final.sigma_x"], list(point), mode, **point)
        assert cost.runs == cost.predicted.runs == runs


def test_a_stage_that_something_else_moves_runs_for_its_value(blocks: StagedModel) -> None:
    blocks.get()
    _, cost = spend(blocks, ["final.sigma_x"], ["Z1.k1"], **{"Z1.k1": 0.3, **fresh(["k2"])})
    assert cost.runs == cost.predicted.runs == 1


@pytest.mark.parametrize("step, runs", [(None, 1 + 12 + 2 * 2 + 2 * 2), (1e-3, 1 + 12 + 2 * 2)], ids=["auto", "given"])
@pytest.mark.parametrize("mode", ["reverse", "forward"])
def test_numbers_and_bunches_share_the_runs_of_a_given_step(step: float | None, runs: int, mode: str) -> None:
    model = chain(before=2, **({} if step is None else {"step": step}))
    _, cost = spend(model, ["trace", "middle.sigma_x", "final.sigma_x"], ["A1.k1", "k1", "k2"], mode)
    assert cost.learning_runs == 0
    assert cost.runs == cost.predicted.runs == runs


def test_a_chain_in_a_chain_is_foretold(blocks: StagedModel) -> None:
    model = chain(before=2)
    stages = model.stages
    nested = StagedModel({"front": StagedModel({n: stages[n] for n in ("first", "box")}), "last": stages["last"]})
    nested.get()
    for inputs, mode, runs in ((["A1.k1", "k1"], "reverse", 15), (["A1.k1", "k1"], "auto", 5), (["Z1.k1"], "auto", 0)):
        _, cost = spend(nested, ["final.sigma_x"], inputs, mode)
        assert cost.runs == cost.predicted.runs == runs


def test_the_report_tells_what_else_there_was(blocks: StagedModel) -> None:
    point = fresh(ABOVE[:2])
    spend(blocks, ["final.sigma_x"], ABOVE[:2], **point)
    text = str(blocks.gradient_report()).splitlines()[-1]
    assert text == (
        "Jacobian in collective mode: 2 passes, 5 simulator runs (would take: reverse mode 1 pass and 13 runs, "
        "forward mode 2 passes and 13 runs); 5 simulator runs against 13"
    )
    _, again = spend(blocks, ["final.sigma_x"], ABOVE[:2], **point)
    assert "2 passes, 0 simulator runs (5 at a new point) (would take:" in str(again)


# -- collective forces


@pytest.fixture(scope="module")
def collective() -> StagedModel:
    return chain("collective", force=0.3)


@pytest.mark.parametrize(
    "inputs, runs", [(["A1.k1"], 3), (ABOVE, 17), ([*ABOVE, "k1"], 19), (["k2", "Z1.k1"], 3), (["Z1.k1"], 0)], ids=str
)
@pytest.mark.parametrize("mode", ["auto", "forward"])
def test_collective_forces_take_two_runs_a_component(
    collective: StagedModel, inputs: list[str], runs: int, mode: str
) -> None:
    collective.get()
    _, cost = spend(collective, ["final.sigma_x"], inputs, mode)
    assert cost.runs == cost.predicted.runs == runs
    is_reached = inputs != ["Z1.k1"]
    assert cost.mode == ("forward" if is_reached or mode != "auto" else "reverse")
    assert runs_of(cost)["reverse"] == (None if is_reached else 0)
    assert (cost.reason == "no other mode works") == (is_reached and mode == "auto")


def test_collective_forces_have_no_reverse_mode(collective: StagedModel) -> None:
    with pytest.raises(GradientError, match="forward mode"):
        collective.jacobian(["final.sigma_x"], ["A1.k1"], mode="reverse")


def difference(model: LUMEModel, output: str, name: str, point: Mapping[str, float], step: float) -> float:
    up, down = (model({**point, name: point[name] + h}, outputs=[output])[output].item() for h in (step, -step))
    return (up - down) / (2.0 * step)


def test_a_box_that_is_not_a_block_a_particle_is_found_out() -> None:
    """The first Jacobian measures that blocks are wrong, and takes whole bunches instead; the next one knows."""
    model = chain(force=0.3, check=False)
    box = model.stages["box"]
    assert isinstance(box, BlackBoxModel)
    box._gradient = FiniteDifference()
    point = fresh(ABOVE)
    with pytest.warns(PhysicsWarning, match="particles act on each other"):
        table, cost = spend(model, ["final.sigma_x"], ABOVE, **point)
    assert (cost.mode, cost.learning_runs) == ("collective", 2)
    assert cost.runs - (1 + 12 + 16) in (0, 1)  # one more where the other mode meets the bunch with other round-off
    assert "reverse mode is not correct here: particles act on each other" in cost.reason
    assert all(other.flaw for other in cost.alternatives)
    assert "reverse mode 1 pass and 13 runs, and be wrong" in str(cost)
    for name in ("A1.k1", "A8.k1"):
        expected = difference(model, "final.sigma_x", name, point, 1e-3)
        assert table["final.sigma_x"][name].item() == pytest.approx(expected, rel=1e-5)
    _, cost = spend(model, ["final.sigma_x"], ABOVE)
    assert (cost.mode, cost.runs, cost.predicted.runs) == ("collective", 17, 17)
    with_blocks = model.jacobian(["final.sigma_x"], ["A1.k1"], at=point, mode="reverse")["final.sigma_x"]["A1.k1"]
    assert with_blocks.item() != pytest.approx(table["final.sigma_x"]["A1.k1"].item(), rel=1e-2)


def test_its_own_knobs_are_right_all_the_same() -> None:
    model = chain(force=0.3)
    assert model.stages["box"].gradient_report().notes[-1].startswith("the per-particle form")
    table, cost = spend(model, ["final.sigma_x", "final.sigma_y"], ["k1", "k2", "Z1.k1"], k1=0.33, k2=0.34)
    assert (cost.mode, cost.runs, cost.predicted.flaw) == ("reverse", 5, "")
    expected = difference(model, "final.sigma_x", "k1", {"k1": 0.33, "k2": 0.34}, 1e-4)
    assert table["final.sigma_x"]["k1"].item() == pytest.approx(expected, rel=1e-6)


# -- several boxes


def test_boxes_of_several_kinds_add_up() -> None:
    """A box of numbers sets a knob of a line, behind which a box with blocks and one with collective forces stand."""
    model = chain(before=2)
    stages = dict(model.stages)
    supply = BlackBoxModel.from_function(
        lambda current, gain: {"strength": 0.5 * gain * current},
        [TorchScalarVariable(name=name, default_value=1.0, scale=0.1) for name in ("current", "gain")],
        [TorchScalarVariable(name="strength")],
        gradient=FiniteDifference(step=1e-3),
    )
    stages = {"supply": supply, **stages}
    joined = StagedModel(stages, {"first/A1.k1": "supply/strength"})
    joined.get()
    _, cost = spend(joined, ["final.sigma_x"], ["current", "gain", "A2.k1", "k1"], "reverse")
    assert cost.runs == cost.predicted.runs == (1 + 4) + (1 + 12 + 2)
    assert runs_of(cost) == {"reverse": 20, "forward": 20, "collective": (1 + 4) + (1 + 8)}
    _, cost = spend(joined, ["final.sigma_x"], ["current", "gain", "A2.k1", "k1"])
    assert (cost.mode, cost.runs) == ("collective", 14)
    stiff = chain("collective", force=0.3, before=2).stages["box"]
    last = line("Y", joined.get("final_particles"), 1)
    stages = {**joined.stages, "stiff": stiff, "end": last}
    longer = StagedModel(stages, {"first/A1.k1": "supply/strength"})
    longer.get()
    for mode in ("forward", "auto"):
        _, cost = spend(longer, ["final.sigma_x"], ["gain", "box/k1", "stiff/k1"], mode)
        whole = (1 + 2) + (1 + 2 * 2) + (1 + 2 * 3)
        by_blocks = (1 + 2) + (1 + 12 + 2) + (1 + 2 * 3)
        assert runs_of(cost) == {"reverse": None, "forward": by_blocks, "collective": whole}
        assert cost.runs == cost.predicted.runs == (by_blocks if mode == "forward" else whole)
