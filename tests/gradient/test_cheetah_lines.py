"""Gradients of whole lines: through energy changes, references, transforms, and what only Cheetah can track."""

from __future__ import annotations

import cheetah
import pytest
import torch

from lume_diff import CheetahModel, GradientError, TorchParticleGroup
from lume_diff.testing import check_model

F64 = torch.float64
pytestmark = pytest.mark.gradient


def t(value: float | tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(value, dtype=F64)


@pytest.fixture(scope="module")
def beam() -> cheetah.ParticleBeam:
    generator = torch.Generator().manual_seed(17)
    scale = t((4e-4, 2e-4, 3e-4, 1e-4, 2e-4, 2e-3))
    particles = (torch.randn(300, 6, generator=generator, dtype=F64) + 0.2) * scale
    return cheetah.ParticleBeam(
        particles=torch.cat((particles, torch.ones(300, 1, dtype=F64)), dim=-1),
        energy=t(25e6),
        particle_charges=torch.full((300,), 1e-12, dtype=F64),
        species=cheetah.Species("electron", dtype=F64),
    )


def quadrupole(name: str, k1: float, method: str = "linear") -> cheetah.Quadrupole:
    return cheetah.Quadrupole(t(0.2), t(k1), tracking_method=method, name=name, dtype=F64)


def drift(name: str, length: float = 0.5) -> cheetah.Drift:
    return cheetah.Drift(t(length), name=name, dtype=F64)


def cavity(voltage: float = 6e6, phase: float = 20.0) -> cheetah.Cavity:
    return cheetah.Cavity(t(1.0), t(voltage), t(phase), t(1.3e9), name="C1", dtype=F64)


def screen(**options: object) -> cheetah.Screen:
    options = {"resolution": (30, 20), "pixel_size": t((2e-4, 2e-4)), "is_active": True, **options}
    return cheetah.Screen(**options, name="SCR", dtype=F64)


def lines() -> dict[str, list[cheetah.accelerator.Element]]:
    """One line for each kind of step, and one with all."""
    bend = cheetah.Dipole(t(0.3), t(0.2), dipole_e1=t(0.1), name="B1", dtype=F64)
    exact = cheetah.RBend(t(0.3), t(0.2), tracking_method="drift_kick_drift", name="B2", dtype=F64)
    deflector = cheetah.TransverseDeflectingCavity(t(0.4), t(1e5), t(0.1), t(3e9), name="T1", dtype=F64)
    sextupole = cheetah.Sextupole(t(0.2), t(20.0), name="S1", dtype=F64)
    space_charge = cheetah.SpaceChargeKick(t(0.3), grid_shape=(8, 8, 8), name="SC1", dtype=F64)
    return {
        "linear": [quadrupole("Q1", 0.0), drift("D1"), bend, quadrupole("Q2", -3.0), drift("D2")],
        "second_order": [quadrupole("Q1", 2.0, "second_order"), drift("D1"), sextupole, drift("D2")],
        "drift_kick_drift": [quadrupole("Q1", 2.0, "drift_kick_drift"), exact, drift("D2")],
        "cavities": [quadrupole("Q1", 2.0), cavity(), drift("D1"), deflector, quadrupole("Q2", -3.0), drift("D2")],
        "screen": [quadrupole("Q1", 2.0), drift("D1"), screen()],
        "space-charge": [quadrupole("Q1", 2.0), space_charge, drift("D1")],
        "everything": [
            *(
                quadrupole("Q1", 2.0),
                cavity(),
                bend,
                sextupole,
                exact,
                deflector,
                quadrupole("Q2", -3.0, "second_order"),
            ),
            *(drift("D1"), cheetah.Aperture(t(0.1), t(0.1), name="A1", dtype=F64), screen()),
        ],
    }


@pytest.mark.parametrize("name", lines())
def test_laws(name: str, beam: cheetah.ParticleBeam) -> None:
    inputs = {"cavities": ["Q1.k1", "C1.voltage", "C1.phase"], "space-charge": ["Q1.k1", "SC1.effect_length"]}
    # Cheetah's own space charge loses digits: its kicks are differences of a potential on a grid.
    options = {"rtol": 1e-4} if name == "space-charge" else {}
    model = CheetahModel(
        cheetah.Segment(lines()[name]), beam, outputs=["final.sigma_x", "final.sigma_y", "final.mean_x"]
    )
    results = check_model(model, inputs=inputs.get(name, ["Q1.k1", "Q1.tilt"]), **options)
    assert {result.split(",")[0] for result in results.values()} <= {"passed", "skipped"}


@pytest.mark.parametrize("losses", ["hard", "soft"])
@pytest.mark.parametrize("moments", [False, True], ids=["particles", "moments"])
def test_laws_with_everything_readable(moments: bool, losses: str, beam: cheetah.ParticleBeam) -> None:
    incoming = beam.as_parameter_beam() if moments else beam
    line = [
        quadrupole("Q1", 0.0),
        drift("D1"),
        cheetah.BPM(is_active=True, name="M1", dtype=F64),
        quadrupole("Q2", -3.0),
    ]
    model = CheetahModel(cheetah.Segment(line), incoming, losses=losses)
    results = check_model(model, inputs=["Q1.k1", "Q2.k1", "reference_energy"])
    assert {result.split(",")[0] for result in results.values()} <= {"passed"}


def central(function: object, at: torch.Tensor, step: float) -> torch.Tensor:
    """Return the derivative by two central differences."""
    wide, narrow = ((function(at + h) - function(at - h)) / (2.0 * h) for h in (step, step / 2.0))
    return (4.0 * narrow - wide) / 3.0


@pytest.mark.parametrize("knob", ["C1.voltage", "C1.phase", "C1.length", "C1.frequency"])
@pytest.mark.parametrize("downstream", ["drift", "linear bend", "exact bend"])
def test_gradient_through_a_change_of_energy(knob: str, downstream: str, beam: cheetah.ParticleBeam) -> None:
    """What comes behind a cavity depends on its energy: the slip of a drift, the dispersion of a bend."""
    bend = cheetah.Dipole(
        t(0.3),
        t(0.3),
        tracking_method="linear" if downstream == "linear bend" else "drift_kick_drift",
        name="B1",
        dtype=F64,
    )
    line = [cavity(), drift("D1"), *([] if downstream == "drift" else [bend]), drift("D2", 1.0)]
    outputs = [
        "final.sigma_x",
        "final.mean_x",
        "final.mean_t",
        "final.sigma_t",
        "final.mean_energy",
        "final.reference_energy",
    ]
    model = CheetahModel(cheetah.Segment(line), beam, outputs=outputs)

    def value(x: torch.Tensor) -> torch.Tensor:
        return torch.stack([model({knob: x}, outputs=[name])[name] for name in outputs])

    here = model.get(knob)
    found = torch.func.jacfwd(value)(here)
    step = {"C1.voltage": 1e3, "C1.phase": 0.02, "C1.length": 1e-4, "C1.frequency": 1e6}[knob]
    expected = central(value, here, step)
    round_off = 1e-15 * value(here).abs() / step
    for name, a, b, noise in zip(outputs, found, expected, round_off, strict=True):
        assert abs(a - b) <= 1e-6 * abs(b) + 100.0 * noise, (
            f"d {name} / d {knob}: {a.item()!r}, difference {b.item()!r}"
        )
    torch.testing.assert_close(torch.func.jacrev(value)(here), found, rtol=1e-9, atol=1e-12 * found.abs().max().item())


def test_an_energy_error_of_the_bunch_acts_in_the_magnets(beam: cheetah.ParticleBeam) -> None:
    """The reference stays what it was, so a bunch of too high an energy is focused less."""
    line = [
        piece
        for i in range(4)
        for piece in (quadrupole(f"Q{i}", 6.0 * (-1.0) ** i, "drift_kick_drift"), drift(f"D{i}", 0.4))
    ]
    model = CheetahModel(cheetah.Segment(line), beam, outputs=["final.sigma_x"])
    bunch: TorchParticleGroup = model.get("initial_particles")

    def size(scale: torch.Tensor) -> torch.Tensor:
        scaled = bunch.replace(px=bunch.px * scale, py=bunch.py * scale, pz=bunch.pz * scale)
        return model({"initial_particles": scaled}, outputs=["final.sigma_x"])["final.sigma_x"]

    scale = t(1.0).requires_grad_()
    size(scale).backward()
    expected = central(size, t(1.0), 1e-3)
    assert scale.grad.item() == pytest.approx(expected.item(), rel=1e-6)
    assert abs(scale.grad.item()) > 0.1 * size(t(1.0)).item()
    assert model.get("reference_energy") == 25e6

    def from_reference(energy: torch.Tensor) -> torch.Tensor:
        return model({"reference_energy": energy}, outputs=["final.sigma_x"])["final.sigma_x"]

    energy = t(25e6).requires_grad_()
    from_reference(energy).backward()
    assert energy.grad.item() == pytest.approx(central(from_reference, t(25e6), 1e4).item(), rel=1e-6)


@pytest.mark.parametrize("name", [name for name in lines() if name != "space-charge"])
def test_vmap_and_its_gradient_equal_a_loop(name: str, beam: cheetah.ParticleBeam) -> None:
    model = CheetahModel(cheetah.Segment(lines()[name]), beam, outputs=["final.sigma_x", "final.mean_y"])
    function = model.tensor_function(["Q1.k1", "Q1.tilt", "reference_energy"], ["final.sigma_x", "final.mean_y"])
    points = t(((0.0, 0.0, 25e6), (1.0, 0.1, 25.1e6), (-3.0, 0.0, 24.9e6)))
    torch.testing.assert_close(
        torch.func.vmap(function)(points), torch.stack([function(x) for x in points]), rtol=1e-10, atol=1e-18
    )
    jacobians = torch.func.vmap(torch.func.jacrev(function))(points)
    torch.testing.assert_close(
        jacobians, torch.stack([torch.func.jacfwd(function)(x) for x in points]), rtol=1e-7, atol=1e-15
    )


def test_vmap_over_cheetahs_own_engine_is_refused_by_name(beam: cheetah.ParticleBeam) -> None:
    model = CheetahModel(cheetah.Segment(lines()["space-charge"]), beam, outputs=["Q1.sigma_x", "final.sigma_x"])
    k1 = t((1.0, 2.0))
    with pytest.raises(GradientError, match=r"'SC1' \(SpaceChargeKick\).*leading batch dimension"):
        torch.func.vmap(lambda k: model({"Q1.k1": k}, outputs=["final.sigma_x"])["final.sigma_x"])(k1)
    line = [*lines()["space-charge"], quadrupole("Q9", 1.0)]
    longer = CheetahModel(cheetah.Segment(line), beam, outputs=["final.sigma_x"])
    behind = torch.func.vmap(lambda k: longer({"Q9.k1": k}, outputs=["final.sigma_x"])["final.sigma_x"])(k1)
    torch.testing.assert_close(behind, longer({"Q9.k1": k1})["final.sigma_x"], rtol=1e-12, atol=0.0)
    upstream = torch.func.vmap(lambda k: model({"Q1.k1": k}, outputs=["Q1.sigma_x"])["Q1.sigma_x"])(k1)
    batched = model({"Q1.k1": k1}, outputs=["Q1.sigma_x", "final.sigma_x"])
    torch.testing.assert_close(upstream, batched["Q1.sigma_x"], rtol=1e-12, atol=0.0)
    loop = torch.stack([model({"Q1.k1": k}, outputs=["final.sigma_x"])["final.sigma_x"] for k in k1])
    torch.testing.assert_close(batched["final.sigma_x"], loop, rtol=1e-10, atol=0.0)


def test_gradient_through_cheetahs_own_space_charge(beam: cheetah.ParticleBeam) -> None:
    intense = beam.clone()
    intense.particle_charges = intense.particle_charges * 100.0
    model = CheetahModel(cheetah.Segment(lines()["space-charge"]), intense, outputs=["final.sigma_x"])

    def size(length: torch.Tensor) -> torch.Tensor:
        return model({"SC1.effect_length": length}, outputs=["final.sigma_x"])["final.sigma_x"]

    length = t(0.3).requires_grad_()
    size(length).backward()
    assert length.grad.item() == pytest.approx(central(size, t(0.3), 1e-3).item(), rel=1e-5)
    assert length.grad.item() > 0.0


def test_gradient_of_an_image_to_a_magnet_far_upstream(beam: cheetah.ParticleBeam) -> None:
    model = CheetahModel(cheetah.Segment(lines()["everything"]), beam, outputs=["SCR.image"])
    weight = torch.rand(20, 30, generator=torch.Generator().manual_seed(6), dtype=F64)

    def value(k1: torch.Tensor) -> torch.Tensor:
        return (model({"Q1.k1": k1}, outputs=["SCR.image"])["SCR.image"] * weight).sum() * 1e12

    found = torch.func.grad(value)(t(2.0))
    narrow = (value(t(2.0 + 1e-7)) - value(t(2.0 - 1e-7))) / 2e-7
    assert found.item() == pytest.approx(narrow.item(), rel=1e-5)
