"""Losses at apertures: hard edges say that gradients are biased or absent, soft edges give them with a stated bias."""

from __future__ import annotations

import math
import warnings

import cheetah
import pytest
import torch

from lume_diff import CheetahModel, GradientError, PhysicsWarning, StagedModel, TorchParticleGroup, ValidationError

F64 = torch.float64
OUTPUTS = ["final.sigma_x", "final.survival", "final.charge", "final.mean_x", "A1.n_alive"]
LOST = r"lost at aperture 'A1' \(lost fraction 0.1"


def t(value: float | tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(value, dtype=F64)


def beam_of(n: int) -> cheetah.ParticleBeam:
    """A Gaussian bunch of well-spread particles, 0.71 mm and 0.47 mrad in x."""
    uniform = torch.quasirandom.SobolEngine(4, scramble=True, seed=3).draw(n, dtype=F64)
    size = t((7.13e-4, 4.68e-4, 2e-4, 1e-4))
    particles = torch.zeros(n, 7, dtype=F64)
    particles[:, :4] = torch.special.ndtri(uniform.clamp(1e-12, 1.0 - 1e-12)) * size
    particles[:, 6] = 1.0
    charges = torch.full((n,), 1e-10 / n, dtype=F64)
    return cheetah.ParticleBeam(
        particles, t(1e8), particle_charges=charges, species=cheetah.Species("electron", dtype=F64)
    )


def model_of(n: int = 20_000, size: float = 1e-3, shape: str = "rectangular", **options: object) -> CheetahModel:
    line = [
        cheetah.Quadrupole(t(0.2), t(2.0), name="Q1", dtype=F64),
        cheetah.Drift(t(1.0), name="D1", dtype=F64),
        cheetah.Aperture(t(size), t(size), shape=shape, name="A1", dtype=F64),
    ]
    return CheetahModel(cheetah.Segment(line), beam_of(n), outputs=[*OUTPUTS, "D1.sigma_x"], **options)


def read(model: CheetahModel, output: str, k1: torch.Tensor) -> torch.Tensor:
    return model({"Q1.k1": k1}, outputs=[output])[output]


def difference(model: CheetahModel, output: str, step: float) -> float:
    with torch.no_grad():
        return ((read(model, output, t(2.0 + step)) - read(model, output, t(2.0 - step))) / (2.0 * step)).item()


def gradient(model: CheetahModel, output: str) -> float:
    k1 = t(2.0).requires_grad_()
    read(model, output, k1).backward()
    return k1.grad.item()


def ways(model: CheetahModel, output: str) -> dict[str, object]:
    """Return every way to take a derivative, as functions to call."""
    at, one = t(2.0), t(1.0)

    def value(k1: torch.Tensor) -> torch.Tensor:
        return read(model, output, k1)

    def dual() -> torch.Tensor:
        with torch.autograd.forward_ad.dual_level():
            return torch.autograd.forward_ad.unpack_dual(value(torch.autograd.forward_ad.make_dual(at, one))).tangent

    return {
        "backward": lambda: gradient(model, output),
        "dual numbers": dual,
        "func.grad": lambda: torch.func.grad(value)(at),
        "func.jvp": lambda: torch.func.jvp(value, (at,), (one,))[1],
        "func.vjp": lambda: torch.func.vjp(value, at)[1](one),
        "func.jacfwd": lambda: torch.func.jacfwd(value)(at),
        "func.hessian": lambda: torch.func.hessian(value)(at),
        "vmap of grad": lambda: torch.func.vmap(torch.func.grad(value))(t((2.0, 2.0))),
        "jacobian, forward": lambda: model.jacobian([output], ["Q1.k1"], mode="forward"),
        "jacobian, reverse": lambda: model.jacobian([output], ["Q1.k1"], mode="reverse"),
    }


WAYS = pytest.mark.parametrize("way", ways(model_of(10), "final.sigma_x"))


@WAYS
def test_hard_losses_warn_with_the_lost_fraction(way: str) -> None:
    with pytest.warns(PhysicsWarning, match=LOST):
        ways(model_of(), "final.sigma_x")[way]()


@WAYS
@pytest.mark.parametrize("output", ["final.survival", "final.charge", "A1.n_alive"])
def test_hard_transmission_refuses_a_gradient(way: str, output: str) -> None:
    with pytest.raises(GradientError, match="losses='soft'"):
        ways(model_of(), output)[way]()


@WAYS
@pytest.mark.parametrize("output", ["final.sigma_x", "final.survival", "final.charge"])
def test_without_a_loss_nothing_is_said(way: str, output: str) -> None:
    model = model_of(size=1e-2)
    if way == "backward" and output != "final.sigma_x":
        assert not read(model, output, t(2.0).requires_grad_()).requires_grad  # it does not depend on the setting here
        return
    ways(model, output)[way]()


@WAYS
def test_upstream_of_the_aperture_nothing_is_said(way: str) -> None:
    ways(model_of(), "D1.sigma_x")[way]()


def test_values_are_read_without_a_word() -> None:
    model = model_of()
    model.set({"Q1.k1": t(2.0).requires_grad_()})
    assert model.get("final.survival").item() == pytest.approx(0.86, abs=0.01)
    assert model.get("A1.n_alive").dtype == F64
    assert model.get("final.charge").item() == pytest.approx(1e-10 * model.get("final.survival").item(), rel=1e-12)


def test_a_gradient_to_the_charges_exists() -> None:
    """Of the transmission only what depends on the edge is refused: the charges of the survivors count as they are."""
    model = model_of(100)
    bunch = model.get("initial_particles")
    weight = bunch.weight.clone().requires_grad_()
    model({"initial_particles": bunch.replace(weight=weight)}, outputs=["final.charge"])["final.charge"].backward()
    assert set(weight.grad.tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("output", ["final.sigma_x", "final.survival"])
def test_the_size_of_a_hard_aperture_has_no_gradient(output: str) -> None:
    model = model_of()
    x_max = t(1e-3).requires_grad_()
    with pytest.raises(GradientError, match="size of the aperture"):
        model({"A1.x_max": x_max}, outputs=[output])[output].backward()
    with pytest.raises(GradientError, match="size of the aperture"):
        torch.func.jvp(lambda x: model({"A1.x_max": x}, outputs=[output])[output], (t(1e-3),), (t(1.0),))


def test_bunches_and_moments_carry_the_word_on() -> None:
    model = model_of()
    k1 = t(2.0).requires_grad_()
    out = model({"Q1.k1": k1}, outputs=["final_particles", "final_moments"])
    bunch, moments = out["final_particles"], out["final_moments"]
    assert any("lost at aperture 'A1'" in note for note in bunch.notes)
    for value in (bunch["sigma_x"], bunch.alive_only["charge"], moments["sigma_x"]):
        with pytest.warns(PhysicsWarning, match=LOST):
            value.backward(retain_graph=True)
    with pytest.raises(GradientError, match="losses='soft'"):
        moments["charge"].backward()


@pytest.mark.parametrize("apertures", [0, 1], ids=["clean", "lossy"])
def test_the_next_stage_knows(apertures: int) -> None:
    line = [cheetah.Drift(t(0.1), name="D2", dtype=F64)]
    line += [cheetah.Aperture(t(8e-4), t(1e-2), name="A2", dtype=F64)] * apertures
    second = CheetahModel(
        cheetah.Segment(line), beam_of(20_000), outputs=["final.sigma_x", "final.charge", "final.survival"]
    )
    chain = StagedModel([model_of(), second])

    def value(output: str, k1: torch.Tensor) -> torch.Tensor:
        return chain({"Q1.k1": k1}, outputs=[output])[output]

    k1 = t(2.0).requires_grad_()
    with pytest.warns(PhysicsWarning, match="particles are lost at aperture"):
        value("final.sigma_x", k1).backward()
    if not apertures:  # all that entered the second line leave it
        k1.grad = None
        with pytest.warns(PhysicsWarning, match="particles are lost at aperture"):
            value("final.survival", k1).backward()
        assert k1.grad == 0.0
    for output in ("final.charge", "final.survival")[: 1 + apertures]:
        with pytest.raises(GradientError, match="losses='soft'"):
            value(output, k1).backward()
        with pytest.warns(PhysicsWarning), pytest.raises(GradientError, match="losses='soft'"):
            torch.func.jvp(lambda k, output=output: value(output, k), (t(2.0),), (t(1.0),))


@pytest.mark.parametrize("shape", ["rectangular", "elliptical"])
def test_soft_losses_equal_wide_differences_of_hard_ones(shape: str) -> None:
    soft, hard = model_of(100_000, shape=shape, losses="soft"), model_of(100_000, shape=shape)
    for output, step in (("final.sigma_x", 0.4), ("final.survival", 0.4), ("final.charge", 0.4)):
        assert gradient(soft, output) == pytest.approx(difference(hard, output, step), rel=0.03)
        assert gradient(soft, output) == pytest.approx(difference(soft, output, 1e-4), rel=1e-6)
    x_max = t(1e-3).requires_grad_()
    soft({"A1.x_max": x_max}, outputs=["final.survival"])["final.survival"].backward()
    high, low = (hard({"A1.x_max": 1e-3 + h}, outputs=["final.survival"])["final.survival"] for h in (5e-5, -5e-5))
    assert x_max.grad.item() == pytest.approx(((high - low) / 1e-4).item(), rel=0.03)


@WAYS
def test_soft_losses_say_nothing_and_agree(way: str) -> None:
    model = model_of(losses="soft")
    found = ways(model, "final.survival")[way]()
    if way == "func.hessian":
        return
    if isinstance(found, dict):
        found = found["final.survival"]["Q1.k1"]
    expected = gradient(model, "final.survival")
    torch.testing.assert_close(
        torch.as_tensor(found), torch.full_like(torch.as_tensor(found), expected), rtol=1e-9, atol=0.0
    )


def test_the_report_tells_the_bias_of_soft_losses() -> None:
    soft, hard = model_of(losses="soft", loss_width=0.05), model_of()
    for k1 in (2.0, -1.0):
        soft.set({"Q1.k1": k1})
        (note,) = soft.gradient_report().notes
        values = [read(model, "final.survival", t(k1)).item() for model in (soft, hard)]
        assert "soft over 0.05 of each aperture's half size" in note
        assert f"transmission {values[0]:.6g}, with hard edges {values[1]:.6g}" in note
        assert f"bias {values[0] - values[1]:+.2g}" in note
    soft.set({"Q1.k1": t((2.0, 20.0))})
    assert "largest of the batch" in str(soft.gradient_report())
    soft.set({"Q1.k1": 2.0, "A1.is_active": False})
    assert not soft.gradient_report().notes
    assert not hard.gradient_report().notes


def test_the_bias_shrinks_with_the_width() -> None:
    hard = read(model_of(100_000), "final.survival", t(2.0)).item()
    bias = [
        abs(read(model_of(100_000, losses="soft", loss_width=width), "final.survival", t(2.0)).item() - hard)
        for width in (0.1, 0.03, 0.01)
    ]
    assert bias[0] > 5.0 * bias[1] > 10.0 * bias[2]


@pytest.mark.parametrize("losses", ["hard", "soft"])
def test_nothing_passes_an_aperture_of_negative_size(losses: str) -> None:
    model = model_of(1000, losses=losses)
    assert model({"A1.x_max": t(-1e-3)}, outputs=["final.survival"])["final.survival"].item() < 1e-12


def test_what_came_in_lost_has_no_survival_and_spoils_no_other() -> None:
    bunch, scale = model_of(100).get("initial_particles"), t(1.0).requires_grad_()
    alive = torch.stack((torch.ones_like(bunch.x), torch.zeros_like(bunch.x)))
    batch = TorchParticleGroup(
        **{name: getattr(bunch, name) for name in ("x", "y", "z", "px", "py", "pz", "t", "weight")},
        alive=0.5 * scale * alive,
        reference_energy=bunch.reference_energy,
    )
    model = model_of(100, losses="soft")
    survival = model({"initial_particles": batch}, outputs=["final.survival"])["final.survival"]
    assert 0.5 < survival[0].item() < 1.0
    assert survival[1].isnan()
    survival.nansum().backward()
    assert abs(scale.grad.item()) < 1e-12  # both charges of the first are proportional to it


def test_open_apertures_stay_open_when_soft() -> None:
    line = [cheetah.Aperture(name="A1", dtype=F64), cheetah.Aperture(t(1e-3), name="A2", dtype=F64)]
    model = CheetahModel(cheetah.Segment(line), beam_of(1000), outputs=["A1.survival", "final.survival"], losses="soft")
    assert model.get("A1.survival") == 1.0
    assert 0.5 < model.get("final.survival") < 1.0
    scale = t(1.0).requires_grad_()
    bunch = model.get("initial_particles")
    model({"initial_particles": bunch.replace(x=bunch.x * scale)}, outputs=["final.survival"])[
        "final.survival"
    ].backward()
    assert scale.grad < 0.0


def test_a_bunch_that_is_lost_entirely_spoils_no_other() -> None:
    model = model_of(1000, size=1e-2)
    sizes = t((1e-2, 1e-9))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = model({"A1.x_max": sizes}, outputs=["final.sigma_x", "final.survival"])
    assert out["final.survival"].tolist() == [1.0, 0.0]
    assert bool(out["final.sigma_x"][0].isfinite())
    assert math.isnan(out["final.sigma_x"][1].item())
    k1 = t((2.0, 2.0)).requires_grad_()
    values = model({"A1.x_max": sizes, "Q1.k1": k1}, outputs=["final.sigma_x"])["final.sigma_x"]
    with pytest.warns(PhysicsWarning, match="lost fraction 1"):
        values[0].backward()
    assert bool(k1.grad.isfinite().all())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"losses": "medium"}, "expected 'hard' or 'soft'"),
        ({"losses": "difference"}, "use losses='soft'"),
        ({"losses": "soft", "loss_width": 0.0}, "loss_width is 0.0"),
    ],
    ids=["unknown", "difference", "width"],
)
def test_bad_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        model_of(10, **options)


@pytest.mark.slow
def test_two_million_particles() -> None:
    """The case that shows it: autograd is more than three times too large with hard edges, and right with soft ones."""
    hard, soft = model_of(2_000_000), model_of(2_000_000, losses="soft")
    differences = [difference(hard, "final.sigma_x", step) for step in (0.4, 0.2, 0.1)]
    assert differences == pytest.approx([-2.2e-5] * 3, rel=0.01)
    with pytest.warns(PhysicsWarning, match=LOST):
        assert gradient(hard, "final.sigma_x") == pytest.approx(-7.3e-5, rel=0.005)
    assert gradient(soft, "final.sigma_x") == pytest.approx(differences[0], rel=0.02)
    assert gradient(soft, "final.survival") == pytest.approx(difference(hard, "final.survival", 0.2), rel=0.01)
