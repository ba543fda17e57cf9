"""Statistics behind linear stretches come from moments: the same numbers and gradients as from particles, and fast."""

from __future__ import annotations

from collections.abc import Callable

import cheetah
import pytest
import torch

from lume_diff import CheetahModel, TorchParticleGroup
from lume_diff.models.line import bunch as bunches
from lume_diff.models.line.linear_statistics import is_linear
from lume_diff.models.line.outputs import ALONG, STATISTICS

F64 = torch.float64
KEYS = [
    *STATISTICS.values(),
    *("cov_x__px", "cov_x__energy", "cov_px__t", "cov_y__p", "sigma_p", "mean_p", "mean_gamma", "sigma_gamma"),
    *("mean_kinetic_energy", "sigma_kinetic_energy", "norm_emit_4d", "twiss_emit_x", "twiss_gamma_y"),
    *("twiss_norm_emit_x", "cov_energy__energy"),
]


def t(value: float | tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(value, dtype=F64)


@pytest.fixture(scope="module")
def beam() -> TorchParticleGroup:
    """Particles with unlike charges, some lost, with all correlations, at an energy where velocities differ."""
    generator = torch.Generator().manual_seed(12)
    mixing = torch.randn(6, 6, generator=generator, dtype=F64) * 0.3 + torch.eye(6, dtype=F64)
    scale = t((4e-4, 2e-4, 3e-4, 1e-4, 2e-4, 2e-3))
    particles = torch.randn(300, 6, generator=generator, dtype=F64) @ mixing * scale + 0.2 * scale
    alive = torch.ones(300, dtype=F64)
    alive[::40] = 0.0
    return TorchParticleGroup.from_cheetah(
        cheetah.ParticleBeam(
            particles=torch.cat((particles, torch.ones(300, 1, dtype=F64)), dim=-1),
            energy=t(25e6),
            particle_charges=torch.rand(300, generator=generator, dtype=F64) * 1e-12,
            survival_probabilities=alive,
            s=t(0.3),
            species=cheetah.Species("electron", dtype=F64),
        )
    )


def linear_line() -> list[cheetah.accelerator.Element]:
    """Every class that is linear."""
    placed = {"tilt": t(0.2), "misalignment": t((1e-4, -2e-4))}
    return [
        cheetah.Quadrupole(t(0.2), t(3.0), **placed, name="Q1", dtype=F64),
        cheetah.Drift(t(0.5), name="D1", dtype=F64),
        cheetah.Dipole(t(0.3), t(0.2), t(0.3), dipole_e1=t(0.1), tilt=t(0.1), name="B1", dtype=F64),
        cheetah.BPM(is_active=True, misalignment=t((1e-4, 0.0)), name="BPM1", dtype=F64),
        cheetah.HorizontalCorrector(t(0.1), t(2e-4), name="H1", dtype=F64),
        cheetah.VerticalCorrector(t(0.1), t(-2e-4), name="V1", dtype=F64),
        cheetah.CombinedCorrector(t(0.1), t(1e-4), t(1e-4), name="K1", dtype=F64),
        cheetah.Solenoid(t(0.2), t(0.8), name="S1", dtype=F64),
        cheetah.RBend(t(0.3), t(-0.2), name="B2", dtype=F64),
        cheetah.Undulator(t(0.5), period=t(0.03), kx=t(1.0), ky=t(0.0), name="U1", dtype=F64),
        cheetah.Cavity(t(0.5), t(0.0), t(0.0), t(1.3e9), name="C1", dtype=F64),
        cheetah.Sextupole(t(0.1), t(5.0), tracking_method="linear", name="SX1", dtype=F64),
        cheetah.Screen(is_active=True, name="SCR1", dtype=F64),
        cheetah.Aperture(t(1e-9), t(1e-9), is_active=False, name="A1", dtype=F64),
        cheetah.Marker(name="M1"),
        cheetah.Quadrupole(t(0.2), t(-4.0), name="Q2", dtype=F64),
    ]


def models_of(elements: list[cheetah.accelerator.Element], beam: object, names: list[str]) -> list[CheetahModel]:
    """Return a model that may use moments, and one to be given a bunch on a graph, which particles must carry."""
    return [CheetahModel(cheetah.Segment(elements), beam, outputs=names) for _ in range(2)]


def on_a_graph(bunch: TorchParticleGroup) -> TorchParticleGroup:
    return bunch.replace(x=bunch.x.clone().requires_grad_())


@pytest.fixture
def particles_used(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note each time that coordinates of particles are asked for."""
    asked: list[str] = []
    whole, one = bunches.TrackedBunch._all_rows, bunches.TrackedBunch.coordinate

    def noted(name: str, function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def call(*args: object) -> torch.Tensor:
            asked.append(name)
            return function(*args)

        return call

    monkeypatch.setattr(bunches.TrackedBunch, "_all_rows", noted("all", whole))
    monkeypatch.setattr(bunches.TrackedBunch, "coordinate", noted("one", one))
    return asked


@pytest.mark.parametrize("place", ["final", "D1", "S1"])
def test_statistics_equal_those_of_particles(place: str, beam: TorchParticleGroup, particles_used: list[str]) -> None:
    names = [f"{place}.{key}" for key in KEYS] + ["BPM1.x", "BPM1.y"]
    by_moments, by_particles = models_of(linear_line(), beam, names)
    found = by_moments.get(names)
    assert not particles_used
    expected = by_particles({"initial_particles": on_a_graph(beam)}, outputs=names)
    assert particles_used
    for name in names:
        size = expected[name.replace("mean", "sigma")] if "mean" in name else expected[name]
        torch.testing.assert_close(found[name], expected[name].detach(), rtol=1e-10, atol=1e-11 * size.abs().item())


def test_final_moments_equal_those_of_particles(beam: TorchParticleGroup, particles_used: list[str]) -> None:
    by_moments, by_particles = models_of(linear_line(), beam, ["final.sigma_x"])
    found = by_moments({"Q1.k1": t((2.0, 3.0))}, outputs=["final_moments"])["final_moments"]
    assert not particles_used
    values = {"Q1.k1": t((2.0, 3.0)), "initial_particles": on_a_graph(beam)}
    expected = by_particles(values, outputs=["final_moments"])["final_moments"]
    size = expected.cov.diagonal(dim1=-2, dim2=-1).sqrt().detach()
    assert ((found.cov - expected.cov) / size.unsqueeze(-1) / size.unsqueeze(-2)).abs().max() < 1e-11
    assert ((found.mean - expected.mean) / size).abs().max() < 1e-11
    for name in ("charge", "reference_energy", "reference_time", "s"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name).detach(), rtol=1e-14, atol=0.0)


def test_particles_are_used_where_moments_do_not_say_all(beam: TorchParticleGroup) -> None:
    for key in ("sigma_pz", "mean_xp", "ptp_x", "percentile_90_x", "sigma_beta_z", "mean_r", "average_current"):
        assert not is_linear(key)
        model = CheetahModel(cheetah.Segment(linear_line()), beam, outputs=[f"final.{key}", "final_particles"])
        expected = model.get("final_particles").alive_only[key]
        torch.testing.assert_close(model.get(f"final.{key}"), expected, rtol=1e-10, atol=0.0)


KNOBS = {
    **{"Q1.k1": 3.0, "Q1.tilt": 0.2, "Q1.misalignment_x": 1e-4, "Q2.length": 0.2, "B1.angle": 0.2, "B1.k1": 0.3},
    **{"H1.angle": 2e-4, "S1.k": 0.8, "U1.kx": 1.0, "D1.length": 0.5, "B2.rbend_e1": 0.0, "BPM1.misalignment_x": 1e-4},
}
SOME = ["final.sigma_x", "final.mean_y", "final.beta_x", "final.eta_x", "final.norm_emit_y", "final.sigma_t", "BPM1.x"]


@pytest.mark.parametrize("where", ["built", "zero", "strong"])
@pytest.mark.parametrize("knob", KNOBS)
def test_gradients_equal_those_of_particles_and_differences(knob: str, where: str, beam: TorchParticleGroup) -> None:
    value = {"built": t(KNOBS[knob]), "zero": t(0.0), "strong": t(5.0 * KNOBS[knob])}[where]
    by_moments, by_particles = models_of(linear_line(), beam, SOME)

    def values(model: CheetahModel, number: torch.Tensor, **more: object) -> torch.Tensor:
        found = model({knob: number, **more}, outputs=SOME)
        return torch.stack([found[name] for name in SOME])

    if where == "zero" and knob in ("Q2.length", "D1.length"):
        value = t(1e-3)
    found = torch.autograd.functional.jacobian(lambda k: values(by_moments, k), value, create_graph=False)
    others = {"initial_particles": on_a_graph(beam)}
    expected = torch.autograd.functional.jacobian(lambda k: values(by_particles, k, **others), value)
    size = values(by_moments, value).abs() / max(abs(KNOBS[knob]), 1e-3)
    assert bool(found.isfinite().all())
    assert ((found - expected).abs() <= 1e-9 * expected.abs() + 3e-9 * size).all()
    torch.testing.assert_close(torch.func.jacfwd(lambda k: values(by_moments, k))(value), found, rtol=1e-9, atol=1e-13)
    h = 1e-4 * max(abs(KNOBS[knob]), 1e-3)
    wide, narrow = ((values(by_moments, value + d) - values(by_moments, value - d)) / (2.0 * d) for d in (h, h / 2.0))
    # An emittance is a small difference of large products: its own difference quotients carry their round-off.
    share = torch.stack([t(1e-4 if "emit" in name else 1e-6) for name in SOME])
    assert ((found - (4.0 * narrow - wide) / 3.0).abs() <= 1e-6 * found.abs() + share * size).all()


def test_second_derivatives_equal_those_of_particles(beam: TorchParticleGroup) -> None:
    by_moments, by_particles = models_of(linear_line(), beam, ["final.sigma_x", "final.beta_y"])
    others = {"initial_particles": on_a_graph(beam)}
    for point in (t((3.0, -4.0)), t((0.0, 0.0))):

        def total(k: torch.Tensor, model: CheetahModel, **more: object) -> torch.Tensor:
            found = model({"Q1.k1": k[0], "Q2.k1": k[1], **more}, outputs=["final.sigma_x", "final.beta_y"])
            return found["final.sigma_x"] * 1e3 + found["final.beta_y"]

        hessian = torch.autograd.functional.hessian
        found = hessian(lambda k: total(k, by_moments), point)
        expected = hessian(lambda k: total(k, by_particles, **others), point)
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-9 * expected.abs().max().item())
        torch.testing.assert_close(
            torch.func.hessian(lambda k: total(k, by_moments))(point),
            found,
            rtol=1e-9,
            atol=1e-10,
        )


@pytest.mark.parametrize("way", ["particles", "reference_energy", "forward mode", "vmap"])
def test_what_the_bunch_itself_hangs_on_keeps_its_gradient(way: str, beam: TorchParticleGroup) -> None:
    """Also when its moments are known from a call before."""
    model = CheetahModel(cheetah.Segment(linear_line()), beam, outputs=["final.sigma_x"])

    def size(stretch: torch.Tensor) -> torch.Tensor:
        values: dict[str, object] = {"initial_particles": beam.replace(x=beam.x * stretch)}
        if way == "reference_energy":
            values = {"reference_energy": 25e6 * stretch}
        return model(values, outputs=["final.sigma_x"])["final.sigma_x"]

    before = model.get("final.sigma_x")
    difference = (size(t(1.0 + 1e-5)) - size(t(1.0 - 1e-5))) / 2e-5
    one = t(1.0).requires_grad_()
    if way == "forward mode":
        found = torch.func.jvp(size, (t(1.0),), (t(1.0),))[1]
    elif way == "vmap":
        found = torch.func.vmap(torch.func.grad(size))(t((1.0, 1.0)))[1]
    else:
        (found,) = torch.autograd.grad(size(one), one)
    torch.testing.assert_close(found, difference, rtol=1e-7, atol=0.0)
    assert model.get("final.sigma_x") == before


def test_another_bunch_has_other_moments(beam: TorchParticleGroup) -> None:
    model = CheetahModel(cheetah.Segment(linear_line()), beam, outputs=["final.sigma_x", "final.survival"])
    first = model.get("final.sigma_x")
    wider = beam.replace(x=2.0 * beam.x)
    assert model({"initial_particles": wider}, outputs=["final.sigma_x"])["final.sigma_x"] != first
    model.set({"initial_particles": wider})
    assert model.get("final.sigma_x") != first
    with torch.no_grad():  # in place, as an optimiser would
        wider.x.copy_(beam.x)
    assert model.get("final.sigma_x") == first
    both = TorchParticleGroup.stack([beam, beam.replace(x=2.0 * beam.x)])
    sizes = model({"initial_particles": both, "Q1.k1": t((3.0, 3.0))[:, None]}, outputs=["final.sigma_x"])
    assert sizes["final.sigma_x"].shape == (2, 2)
    torch.testing.assert_close(sizes["final.sigma_x"][0, 0], first, rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)], ids=str)
def test_batches_of_settings(batch: tuple[int, ...], beam: TorchParticleGroup) -> None:
    by_moments, by_particles = models_of(linear_line(), beam, SOME)
    k1 = torch.linspace(-3.0, 3.0, max(1, int(torch.tensor(batch).prod())), dtype=F64).reshape(batch)
    found = by_moments({"Q1.k1": k1}, outputs=SOME)
    expected = by_particles({"Q1.k1": k1, "initial_particles": on_a_graph(beam)}, outputs=SOME)
    for name in SOME:
        assert found[name].shape == batch
        atol = 1e-12 * expected[name].abs().max().item()
        torch.testing.assert_close(found[name], expected[name].detach(), rtol=1e-10, atol=max(atol, 1e-16))


@pytest.mark.parametrize("between", ["cavity", "aperture", "soft aperture", "second order", "custom map", "blocked"])
def test_behind_what_is_not_linear(between: str, beam: TorchParticleGroup, particles_used: list[str]) -> None:
    """Moments again behind the last element that is not linear, as long as nothing before it changes."""
    matrix = torch.eye(7, dtype=F64)
    matrix[5, 0], matrix[0, 1] = 0.3, 1.0
    special = {
        "cavity": lambda: cheetah.Cavity(t(1.0), t(5e6), t(10.0), t(1.3e9), name="X", dtype=F64),
        "aperture": lambda: cheetah.Aperture(t(5e-4), t(5e-4), name="X", dtype=F64),
        "soft aperture": lambda: cheetah.Aperture(t(5e-4), t(5e-4), name="X", dtype=F64),
        "second order": lambda: cheetah.Dipole(t(0.3), t(0.1), tracking_method="second_order", name="X", dtype=F64),
        "custom map": lambda: cheetah.CustomTransferMap(matrix, length=t(1.0), name="X", dtype=F64),
        "blocked": lambda: cheetah.Screen(is_active=True, is_blocking=True, name="X", dtype=F64),
    }[between]()
    elements = [*linear_line()[:2], special, *linear_line()[2:]]
    names = [*SOME, "D1.sigma_x", "final.survival", "final.charge", "final.sigma_energy"]
    losses = "soft" if between == "soft aperture" else "hard"
    model = CheetahModel(cheetah.Segment(elements), beam, outputs=names, losses=losses)
    first = model(outputs=names)
    particles_used.clear()
    again = model({"Q2.k1": -4.0}, outputs=names)
    assert between in ("custom map", "blocked") or not particles_used
    expected = CheetahModel(cheetah.Segment(elements), beam, outputs=names, losses=losses)(
        {"initial_particles": on_a_graph(beam)}, outputs=names
    )
    for name in names:
        torch.testing.assert_close(first[name], again[name], rtol=1e-12, atol=1e-25, equal_nan=True)
        torch.testing.assert_close(again[name], expected[name].detach(), rtol=1e-10, atol=1e-14, equal_nan=True)


@pytest.mark.parametrize("between", ["nothing", "cavity", "second order", "custom map", "aperture"])
def test_arrays_along_the_line(between: str, beam: TorchParticleGroup, particles_used: list[str]) -> None:
    """All places of a stretch at once: what is read at one place after another, with the same gradients."""
    matrix = torch.eye(7, dtype=F64)
    matrix[5, 0], matrix[0, 1] = 0.3, 1.0
    special = {
        "nothing": lambda: cheetah.Marker(name="X"),
        "cavity": lambda: cheetah.Cavity(t(1.0), t(5e6), t(10.0), t(1.3e9), name="X", dtype=F64),
        "second order": lambda: cheetah.Dipole(t(0.3), t(0.1), tracking_method="second_order", name="X", dtype=F64),
        "custom map": lambda: cheetah.CustomTransferMap(matrix, length=t(1.0), name="X", dtype=F64),
        "aperture": lambda: cheetah.Aperture(t(4e-4), t(4e-4), name="X", dtype=F64),
    }[between]()
    elements = [*linear_line()[:3], special, *linear_line()[3:]]
    names = [element.name for element in elements]
    model = CheetahModel(cheetah.Segment(elements), beam, controls=["Q1.k1", "Q2.k1", "S1.k"])
    start = CheetahModel(cheetah.Segment([cheetah.Marker(name="M0"), *elements]), beam)
    for k1, k2 in ((t(2.0), t(-4.0)), (t((2.0, -2.0)), t(-4.0)), (t(3.0), t((-4.0, 4.0)))):
        values = {"Q1.k1": k1, "Q2.k1": k2}
        for quantity in ALONG:
            particles_used.clear()
            along = model(values, outputs=[f"line.{quantity}"])[f"line.{quantity}"]
            assert between != "nothing" or not particles_used
            alone = model(values, outputs=[f"{name}.{quantity}" for name in names])
            first = start(values, outputs=[f"M0.{quantity}"])[f"M0.{quantity}"]
            expected = torch.stack(torch.broadcast_tensors(first, *alone.values()), dim=-1)
            atol = 1e-12 * expected.abs().max().item()
            torch.testing.assert_close(along, expected, rtol=1e-10, atol=atol)
    if between == "aperture":
        return
    k1 = t(3.0)
    for quantity in ("sigma_x", "beta_y", "eta_x"):
        one = torch.func.jacfwd(lambda k: model({"Q1.k1": k}, outputs=[f"line.{quantity}"])[f"line.{quantity}"])(k1)  # noqa: B023
        wanted = [f"{name}.{quantity}" for name in names]
        each = torch.func.jacfwd(lambda k: torch.stack(list(model({"Q1.k1": k}, outputs=wanted).values())))(k1)  # noqa: B023
        torch.testing.assert_close(one[1:], each, rtol=1e-9, atol=1e-12 * each.abs().max().item())
        torch.testing.assert_close(
            torch.func.jacrev(lambda k: model({"Q1.k1": k}, outputs=[f"line.{quantity}"])[f"line.{quantity}"])(k1),  # noqa: B023
            one,
            rtol=1e-9,
            atol=1e-12 * each.abs().max().item(),
        )


def test_a_strong_waist_loses_no_more_digits_than_particles(beam: TorchParticleGroup) -> None:
    """A covariance would lose twice as many: at a demagnification of 1e6 four of its digits are left."""
    focal = 1.0
    x = torch.linspace(-1.0, 1.0, 300, dtype=F64) * 1e-2
    reference = t(1e8)
    momentum = (reference.square() - beam.mass**2).sqrt()
    tiny = torch.sin(torch.arange(300, dtype=F64)) * 1e-8
    pz = (momentum.square() - ((-x / focal + tiny) * momentum).square()).sqrt()
    px = (-x / focal + tiny) * momentum
    bunch = TorchParticleGroup(x, 0.0, 0.0, px, 0.0, pz, 0.0, 1e-15, reference_energy=reference)
    elements = [cheetah.Drift(t(focal), name="D1", dtype=F64)]
    model = CheetahModel(cheetah.Segment(elements), bunch, outputs=["final.sigma_x", "final_particles"])
    torch.testing.assert_close(model.get("final.sigma_x"), model.get("final_particles")["sigma_x"], rtol=1e-9, atol=0.0)
    assert model.get("final.sigma_x") < 2e-8


def few(bunch: TorchParticleGroup, count: int) -> TorchParticleGroup:
    """Return the second particle and those behind it, as many as wanted; the first is lost."""
    fields = ("x", "y", "z", "px", "py", "pz", "t", "weight")
    chosen = {name: getattr(bunch, name)[1 : 1 + count] for name in fields}
    return TorchParticleGroup(**chosen, reference_energy=bunch.reference_energy)


@pytest.mark.parametrize("kind", ["one particle", "two", "cold", "all lost"])
def test_bunches_that_are_degenerate(kind: str, beam: TorchParticleGroup) -> None:
    bunch = {
        "one particle": lambda: few(beam, 1),
        "two": lambda: few(beam, 2),
        "cold": lambda: beam.replace(x=torch.zeros_like(beam.x), px=torch.zeros_like(beam.x)),
        "all lost": lambda: beam.replace(alive=torch.zeros_like(beam.alive)),
    }[kind]()
    names = ["final.sigma_x", "final.mean_x", "final.norm_emit_x", "final.charge"]
    elements = [cheetah.Drift(t(1.0), name="D1", dtype=F64), cheetah.Quadrupole(t(0.2), t(0.0), name="Q1", dtype=F64)]
    by_moments, by_particles = models_of(elements, bunch, names)
    leaves = [t(1.0).requires_grad_() for _ in range(2)]
    found = by_moments({"Q1.k1": leaves[0]}, outputs=names)
    expected = by_particles({"Q1.k1": leaves[1], "initial_particles": on_a_graph(bunch)}, outputs=names)
    for name in names:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-10, atol=1e-12, equal_nan=True)
    gradients = [
        torch.autograd.grad(values["final.sigma_x"], leaf, allow_unused=True)[0]
        for values, leaf in zip((found, expected), leaves, strict=True)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-16, equal_nan=True)
