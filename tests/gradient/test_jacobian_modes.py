"""The cheapest correct way to a Jacobian: what is foretold is what is spent, and "auto" takes the least of it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import pytest
import torch

from lume_diff.blackbox import BlackBoxModel, FiniteDifference
from lume_diff.errors import GradientError, PhysicsWarning
from lume_diff.models import LUMEModel, StagedModel
from lume_diff.variables import TorchScalarVariable
from tests.gradient.jacobian_costs import MODES, SHIFTS, chain, fresh, line, runs_of, spend, t

pytestmark = pytest.mark.gradient


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
        shift = 1e-3 * next(SHIFTS)
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
