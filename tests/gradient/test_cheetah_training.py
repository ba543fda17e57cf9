"""Trainable numbers in a segment, and graphs over many evaluations: what Cheetah's cache of maps breaks."""

from __future__ import annotations

import copy
import gc
import pickle

import cheetah
import pytest
import torch
from torch import nn

from lume_diff import CheetahModel, ValidationError

F64 = torch.float64
pytestmark = pytest.mark.gradient


def t(value: float | tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(value, dtype=F64)


def beam_of(n: int = 200, seed: int = 9) -> cheetah.ParticleBeam:
    generator = torch.Generator().manual_seed(seed)
    scale = t((4e-4, 2e-4, 3e-4, 1e-4, 2e-4, 2e-3))
    particles = torch.randn(n, 6, generator=generator, dtype=F64) * scale
    return cheetah.ParticleBeam(
        particles=torch.cat((particles, torch.ones(n, 1, dtype=F64)), dim=-1),
        energy=t(1e8),
        particle_charges=torch.full((n,), 1e-13, dtype=F64),
        species=cheetah.Species("electron", dtype=F64),
    )


def line_of(k1: torch.Tensor, method: str = "linear") -> cheetah.Segment:
    return cheetah.Segment(
        [
            cheetah.Quadrupole(t(0.2), k1, tracking_method=method, name="Q1", dtype=F64),
            cheetah.Drift(t(0.6), name="D1", dtype=F64),
            cheetah.Quadrupole(t(0.2), t(-3.0), name="Q2", dtype=F64),
            cheetah.Drift(t(0.4), name="D2", dtype=F64),
        ]
    )


def model_of(k1: torch.Tensor, **options: object) -> CheetahModel:
    return CheetahModel(line_of(k1), beam_of(), outputs=["final.sigma_x", "final.sigma_y"], **options)


def slope(k1: float) -> float:
    """Return d sigma_x / d k1 by a difference of models without anything trainable."""
    high, low = (model_of(t(k1 + step)).get("final.sigma_x").item() for step in (1e-4, -1e-4))
    return (high - low) / 2e-4


CONTROLS = pytest.mark.parametrize("controls", [None, ["Q2.k1"], []], ids=["all", "another", "none"])


@CONTROLS
def test_repeated_backward_through_a_parameter_of_the_segment(controls: list[str] | None) -> None:
    k1 = nn.Parameter(t(2.0))
    model = model_of(k1, controls=controls)
    assert [parameter is k1 for parameter in model.parameters()] == [True]
    for turn in range(4):
        k1.grad = None
        with torch.no_grad():  # poisons Cheetah's own cache
            assert not model.get("final.sigma_x").requires_grad
            assert not model()["final.sigma_x"].requires_grad
        value = model.get("final.sigma_x") if turn % 2 else model()["final.sigma_x"]
        value.backward()
        assert k1.grad.item() == pytest.approx(slope(2.0), rel=1e-6)


@CONTROLS
def test_steps_of_an_optimiser_are_seen(controls: list[str] | None) -> None:
    k1 = nn.Parameter(t(2.0))
    model = model_of(k1, controls=controls)
    optimiser = torch.optim.SGD([k1], lr=1e3)
    for _ in range(3):
        optimiser.zero_grad()
        model.get("final.sigma_x").backward()
        before = model.get("final.sigma_x").item()
        optimiser.step()
        fresh = model_of(k1.detach().clone()).get("final.sigma_x").item()
        assert fresh != before
        assert model.get("final.sigma_x").item() == pytest.approx(fresh, rel=1e-13)
        assert model()["final.sigma_x"].item() == pytest.approx(fresh, rel=1e-13)
        if controls is None:
            assert model.get("Q1.k1") is k1


def test_lbfgs_finds_a_requested_size() -> None:
    k1 = nn.Parameter(t(0.0))
    model = model_of(k1)
    k2 = t(-1.0).requires_grad_()
    model.set({"Q2.k1": k2})
    wanted = model({"Q1.k1": 2.5, "Q2.k1": -2.0})
    target = torch.stack((wanted["final.sigma_x"], wanted["final.sigma_y"])).detach()
    optimiser = torch.optim.LBFGS(
        [k1, k2], max_iter=60, line_search_fn="strong_wolfe", tolerance_grad=0, tolerance_change=0
    )

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        sizes = torch.stack((model.get("final.sigma_x"), model.get("final.sigma_y")))
        loss = ((sizes / target).log()).square().sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    sizes = torch.stack((model.get("final.sigma_x"), model.get("final.sigma_y"))).detach()
    torch.testing.assert_close(sizes, target, rtol=1e-6, atol=0.0)


def test_a_parameter_that_learns_to_require_a_gradient() -> None:
    """Parameters start frozen; whoever calibrates them switches them on."""
    k1 = nn.Parameter(t(2.0), requires_grad=False)
    model = model_of(k1)
    assert not model.get("final.sigma_x").requires_grad
    k1.requires_grad_()
    model.get("final.sigma_x").backward()
    assert k1.grad.item() == pytest.approx(slope(2.0), rel=1e-6)
    k1.requires_grad_(False)
    k1.copy_(t(-1.0))
    assert model.get("final.sigma_x").item() == pytest.approx(model_of(t(-1.0)).get("final.sigma_x").item(), rel=1e-13)
    assert model.get("Q1.k1").item() == -1.0


def test_set_takes_over_from_a_parameter_and_reset_gives_it_back() -> None:
    k1 = nn.Parameter(t(2.0))
    model = model_of(k1)
    model.set({"Q1.k1": 1.0})
    assert model.get("final.sigma_x").item() == pytest.approx(model_of(t(1.0)).get("final.sigma_x").item(), rel=1e-13)
    model.reset()
    assert model.get("Q1.k1") is k1
    model.get("final.sigma_x").backward()
    assert k1.grad.item() == pytest.approx(slope(2.0), rel=1e-6)


def test_writes_to_data_are_seen_by_calls_and_after_refresh() -> None:
    """``.data`` changes no version: a committed run cannot notice it, every call can, and ``refresh`` says it."""
    k1 = nn.Parameter(t(2.0))
    model = model_of(k1)
    before = model.get("final.sigma_x").item()
    expected = model_of(t(3.0)).get("final.sigma_x").item()
    k1.data.fill_(3.0)
    assert model()["final.sigma_x"].item() == pytest.approx(expected, rel=1e-13)
    assert model.get("final.sigma_x").item() == before
    model.refresh()
    assert model.get("final.sigma_x").item() == pytest.approx(expected, rel=1e-13)
    k1.data = t(2.5)
    model.refresh()
    assert model.get("final.sigma_x").item() == pytest.approx(model_of(t(2.5)).get("final.sigma_x").item(), rel=1e-13)


def test_a_parameter_that_is_put_in_later_is_found_by_refresh() -> None:
    model = model_of(t(2.0))
    model.simulator.Q1.k1 = nn.Parameter(t(2.5))
    model.refresh()
    model.get("final.sigma_x").backward()
    assert model.simulator.Q1.k1.grad.item() == pytest.approx(slope(2.5), rel=1e-6)
    del model.simulator.Q1.k1
    model.simulator.Q1.register_buffer("k1", t(2.0))
    model.refresh()
    assert not list(model.parameters())
    assert not model.get("final.sigma_x").requires_grad


def test_a_vector_parameter() -> None:
    """A misalignment is one parameter of two entries and two knobs."""
    segment = line_of(t(2.0))
    offset = nn.Parameter(t((1e-4, -2e-4)))
    segment.Q1.misalignment = offset
    model = CheetahModel(segment, beam_of(), outputs=["final.mean_x", "final.mean_y"])
    assert model.get("Q1.misalignment_y").item() == -2e-4
    (model.get("final.mean_x") + 2.0 * model.get("final.mean_y")).backward()
    jacobian = model.jacobian(["final.mean_x", "final.mean_y"], ["Q1.misalignment_x", "Q1.misalignment_y"])
    expected = [
        jacobian["final.mean_x"]["Q1.misalignment_x"].item(),
        2.0 * jacobian["final.mean_y"]["Q1.misalignment_y"].item(),
    ]
    assert offset.grad.tolist() == pytest.approx(expected, rel=1e-10)
    before = model.get("final.mean_x").item()
    with torch.no_grad():
        offset += 1e-4
    assert model.get("Q1.misalignment_x").item() == 2e-4
    assert model.get("final.mean_x").item() == pytest.approx(before + 1e-4 * expected[0], rel=1e-9)
    other = copy.deepcopy(model)
    with torch.no_grad():
        offset.zero_()
    assert other.get("Q1.misalignment_x").item() == 2e-4
    assert other.get("final.mean_x").item() != model.get("final.mean_x").item()


def test_a_parameter_of_a_transfer_map_and_of_a_foreign_element() -> None:
    class Kick(cheetah.accelerator.Marker):
        """An element that Cheetah does not have."""

        def __init__(self, kick: torch.Tensor, name: str | None = None, **more: object) -> None:
            super().__init__(name=name, sanitize_name=False)
            self.register_buffer_or_parameter("kick", kick)

        is_skippable = False

        def track(self, incoming: cheetah.ParticleBeam) -> cheetah.ParticleBeam:
            outgoing = incoming.clone()
            outgoing.particles = incoming.particles + self.kick * torch.eye(7, dtype=F64)[1]
            return outgoing

        @property
        def defining_features(self) -> list[str]:
            return [*super().defining_features, "kick"]

    matrix, kick = nn.Parameter(torch.eye(7, dtype=F64)), nn.Parameter(t(1e-4))
    with torch.no_grad():
        matrix[0, 1] = 0.3
    segment = cheetah.Segment(
        [
            cheetah.CustomTransferMap(matrix, name="M1"),
            Kick(kick, name="K1"),
            cheetah.Drift(t(2.0), name="D1", dtype=F64),
        ]
    )
    model = CheetahModel(segment, beam_of(), outputs=["final.mean_x", "final.sigma_x"])
    assert {id(parameter) for parameter in model.parameters()} == {id(matrix), id(kick)}
    for _ in range(2):
        matrix.grad = kick.grad = None
        model.get("final.mean_x").backward()
        assert kick.grad.item() == pytest.approx(2.0, rel=1e-12)
        beam = beam_of()
        assert matrix.grad[0, 1].item() == pytest.approx(beam.px.mean().item(), rel=1e-9)
    with torch.no_grad():
        before = model.get("final.mean_x").item()
        kick += 1e-3
        assert model.get("final.mean_x").item() == pytest.approx(before + 2e-3, rel=1e-9)
    assert "K1" in str(model.plan())
    assert "Cheetah's own" in str(model.plan())


def test_pieces_of_a_split_element_act_as_one() -> None:
    whole = cheetah.Quadrupole(t(0.4), t(2.0), name="Q1", dtype=F64)
    halves = [cheetah.Quadrupole(t(0.2), t(2.0), name=f"Q1#{i}", sanitize_name=False, dtype=F64) for i in (1, 2)]
    drift = cheetah.Drift(t(1.0), name="D1", dtype=F64)
    outputs = ["Q1.sigma_x", "final.sigma_x"]
    one = CheetahModel(cheetah.Segment([whole, drift]), beam_of(), outputs=outputs)
    two = CheetahModel(cheetah.Segment([*halves, drift]), beam_of(), outputs=outputs)
    assert "Q1.length" in one.input_names
    assert [n for n in two.input_names if n.startswith("Q1")] == [
        n for n in one.input_names if n.startswith("Q1") and n != "Q1.length"
    ]
    gradients = []
    for model in (one, two):
        k1 = t(-1.5).requires_grad_()
        out = model({"Q1.k1": k1})
        (out["Q1.sigma_x"] + out["final.sigma_x"]).backward()
        gradients.append([out["Q1.sigma_x"].item(), out["final.sigma_x"].item(), k1.grad.item()])
    assert gradients[1] == pytest.approx(gradients[0], rel=1e-12)


def test_parameters_of_pieces_are_all_found() -> None:
    first, second = nn.Parameter(t(2.0)), nn.Parameter(t(2.0))
    halves = [
        cheetah.Quadrupole(t(0.2), k1, name=f"Q.1#{i}", sanitize_name=False, dtype=F64)
        for i, k1 in enumerate((first, second))
    ]
    model = CheetahModel(cheetah.Segment(halves), beam_of(), outputs=["final.sigma_x"])
    assert {id(parameter) for parameter in model.parameters()} == {id(first), id(second)}
    model.get("final.sigma_x").backward()
    assert first.grad.abs() > 0.0
    assert second.grad.abs() > 0.0


def test_state_dict_copies_and_pickles_carry_the_parameters() -> None:
    k1 = nn.Parameter(t(2.0))
    model = model_of(k1)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    assert list(state) == ["Q1__k1"]
    reference = model.get("final.sigma_x").item()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        (own,) = other.parameters()
        assert own is not k1
        assert other.get("Q1.k1") is own
        assert other.simulator.Q1.k1 is own
        with torch.no_grad():
            own.fill_(-2.0)
        assert other.get("final.sigma_x").item() == pytest.approx(
            model_of(t(-2.0)).get("final.sigma_x").item(), rel=1e-13
        )
        assert model.get("final.sigma_x").item() == reference
        other.load_state_dict(state)
        assert other.get("final.sigma_x").item() == pytest.approx(reference, rel=1e-13)
        other.get("final.sigma_x").backward()
        assert own.grad.item() == pytest.approx(slope(2.0), rel=1e-6)
    assert k1.grad is None


def test_to_another_precision_and_back() -> None:
    k1 = nn.Parameter(t(2.0))
    model = model_of(k1)
    reference = model.get("final.sigma_x").item()
    model.to(torch.float32)
    assert (
        next(model.parameters()).dtype == model.get("Q1.k1").dtype == model.get("final.sigma_x").dtype == torch.float32
    )
    model.get("final.sigma_x").backward()
    model.to(F64)
    assert model.get("final.sigma_x").item() == pytest.approx(reference, rel=1e-6)
    k1.grad = None
    model.get("final.sigma_x").backward()
    assert k1.grad.item() == pytest.approx(slope(2.0), rel=1e-4)


def test_a_parameter_of_another_precision_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"Q1.k1 is an nn.Parameter of torch.float32.*segment.to"):
        model_of(nn.Parameter(torch.tensor(2.0)))


@pytest.mark.parametrize("controls", [None, []], ids=["all", "none"])
def test_a_number_with_a_graph_keeps_it(controls: list[str] | None) -> None:
    """A number that hangs on a graph of its owner's; copies are cut from it."""
    k1 = t(2.0).requires_grad_()
    model = model_of(2.0 * (0.5 * k1), controls=controls)
    for _ in range(2):
        k1.grad = None
        model.get("final.sigma_x").backward(retain_graph=True)
        assert k1.grad.item() == pytest.approx(slope(2.0), rel=1e-6)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert not other.get("final.sigma_x").requires_grad


def test_memory_does_not_grow() -> None:
    """No reference cycles: what a pass has made is freed when the pass is over, without the garbage collector."""
    screen = cheetah.Screen(resolution=(50, 50), pixel_size=t((1e-4, 1e-4)), is_active=True, name="SCR", dtype=F64)
    cavity = cheetah.Cavity(t(1.0), t(1e6), t(10.0), t(1.3e9), name="C1", dtype=F64)
    segment = cheetah.Segment([*line_of(t(2.0)).elements, cavity, screen])
    names = ["SCR.image", "final.sigma_x", "line.sigma_x", "final.mean_t"]
    model = CheetahModel(segment, beam_of(2000), outputs=names)

    def alive() -> int:
        return sum(1 for thing in gc.get_objects() if type(thing) is torch.Tensor and thing.numel() >= 2000)

    counts = []
    gc.collect()
    gc.disable()
    try:
        for turn in range(100):
            k1 = t(2.0 + 0.01 * turn).requires_grad_()
            if turn % 2:
                out = model({"Q1.k1": k1, "C1.voltage": 1e6 + turn}, outputs=names)
            else:
                model.set({"Q1.k1": k1, "C1.voltage": 1e6 + turn})
                out = model.get(names)
            sum(value.sum() for value in out.values()).backward()
            del out, k1
            if turn % 20 == 19:
                counts.append(alive())
    finally:
        gc.enable()
    assert counts[-1] <= counts[1]


def test_functional_call_puts_other_parameters_in() -> None:
    k1 = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
    magnet = cheetah.Quadrupole(torch.tensor(0.2, dtype=torch.float64), k1, name="Q1", dtype=torch.float64)
    drift = cheetah.Drift(torch.tensor(1.0, dtype=torch.float64), name="D1", dtype=torch.float64)
    beam = cheetah.ParticleBeam.from_parameters(
        num_particles=500, energy=torch.tensor(1e8, dtype=torch.float64), dtype=torch.float64
    )
    segment = cheetah.Segment([magnet, drift], name="line1")
    trained = CheetahModel(segment, beam, controls=[], outputs=["final.sigma_x"])
    plain = CheetahModel(segment, beam, controls=["Q1.k1"], outputs=["final.sigma_x"])
    (key,) = dict(trained.named_parameters())

    def size(value: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(trained, {key: value}, kwargs={"outputs": ["final.sigma_x"]})["final.sigma_x"]

    three = torch.tensor(3.0, dtype=torch.float64)
    torch.testing.assert_close(size(three), plain({"Q1.k1": three})["final.sigma_x"], rtol=1e-12, atol=0)
    slope = plain.jacobian(["final.sigma_x"], ["Q1.k1"], at={"Q1.k1": three})["final.sigma_x"]["Q1.k1"]
    torch.testing.assert_close(torch.func.grad(size)(three), slope, rtol=1e-10, atol=0)
