"""The maps of a line: what is kept, what is computed anew, and that nobody can tell the difference."""

from __future__ import annotations

import itertools
import sys
from concurrent.futures import ThreadPoolExecutor

import cheetah
import pytest
import torch

from lume_diff import CheetahModel, LatticeError, ShapeError, TorchParticleGroup
from lume_diff.models.line.products import product

F64 = torch.float64


def t(value: float | tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(value, dtype=F64)


@pytest.fixture(scope="module")
def beam() -> cheetah.ParticleBeam:
    generator = torch.Generator().manual_seed(21)
    particles = torch.randn(50, 6, generator=generator, dtype=F64) * t((4e-4, 2e-4, 3e-4, 1e-4, 2e-4, 2e-3))
    return cheetah.ParticleBeam(
        particles=torch.cat((particles, torch.ones(50, 1, dtype=F64)), dim=-1),
        energy=t(25e6),
        particle_charges=torch.full((50,), 1e-13, dtype=F64),
        species=cheetah.Species("electron", dtype=F64),
    )


def line() -> list[cheetah.accelerator.Element]:
    """Linear stretches of several classes around a cavity, an aperture and a second-order bend."""
    return [
        cheetah.Quadrupole(t(0.2), t(2.0), tilt=t(0.1), name="Q1", dtype=F64),
        cheetah.Drift(t(0.3), name="D1", dtype=F64),
        cheetah.Quadrupole(t(0.2), t(-2.5), name="Q2", dtype=F64),
        cheetah.HorizontalCorrector(t(0.1), t(1e-4), name="H1", dtype=F64),
        cheetah.Drift(t(0.2), name="D2", dtype=F64),
        cheetah.Quadrupole(t(0.2), t(1.5), misalignment=t((1e-4, 0.0)), name="Q3", dtype=F64),
        cheetah.Cavity(t(1.0), t(5e6), t(15.0), t(1.3e9), name="C1", dtype=F64),
        cheetah.Marker(name="M1", sanitize_name=False),
        cheetah.Quadrupole(t(0.2), t(-2.0), name="Q4", dtype=F64),
        cheetah.Dipole(t(0.3), t(0.2), tracking_method="second_order", name="B1", dtype=F64),
        cheetah.Solenoid(t(0.2), t(0.5), name="S1", dtype=F64),
        cheetah.Quadrupole(t(0.2), t(1.0), name="Q5", dtype=F64),
    ]


OUTPUTS = [
    "Q2.sigma_x",
    "M1.sigma_y",
    "final.sigma_x",
    "final.mean_x",
    "final.sigma_t",
    "final.mean_t",
    "line.reference_energy",
]
KNOBS = (
    "Q1.k1",
    "Q2.k1",
    "Q3.tilt",
    "Q5.length",
    "H1.angle",
    "D1.length",
    "C1.voltage",
    "C1.phase",
    "B1.angle",
    "S1.k",
)


def fresh(beam: cheetah.ParticleBeam, values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the outputs of a model that has the values built in."""
    elements = line()
    for name, value in values.items():
        element, attribute = name.split(".")
        setattr(next(e for e in elements if e.name == element), attribute, value)
    return CheetahModel(cheetah.Segment(elements), beam, controls=[], outputs=OUTPUTS).get(OUTPUTS)


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], rtol: float = 1e-12) -> None:
    for name in OUTPUTS:
        torch.testing.assert_close(found[name], expected[name], rtol=rtol, atol=1e-16 if "mean_x" in name else 0.0)


@pytest.mark.parametrize("count", [1, 2])
def test_a_knob_that_is_turned_equals_a_line_built_that_way(count: int, beam: cheetah.ParticleBeam) -> None:
    """Every knob and every pair of knobs, one model for all: what was kept from before must not show."""
    model = CheetahModel(cheetah.Segment(line()), beam, outputs=OUTPUTS)
    for knobs in itertools.combinations(KNOBS, count):
        values = {name: model.get(name) * 1.05 + 1e-3 for name in knobs}
        assert_same(model(values, outputs=OUTPUTS), fresh(beam, values))
    assert_same(model.get(OUTPUTS), fresh(beam, {}))


def test_a_batch_in_the_middle_of_what_is_kept(beam: cheetah.ParticleBeam) -> None:
    model = CheetahModel(cheetah.Segment(line()), beam, outputs=OUTPUTS)
    k1 = torch.linspace(-2.0, 2.0, 3, dtype=F64)
    for name in ("Q2.k1", "Q5.k1"):
        batched = model({name: k1}, outputs=OUTPUTS)
        for index in range(3):
            alone = model({name: k1[index]}, outputs=OUTPUTS)
            for output in OUTPUTS:
                assert batched[output].shape[0] == 3
                torch.testing.assert_close(batched[output][index], alone[output], rtol=1e-12, atol=1e-18)


def test_what_is_behind_unchanged_steps_is_kept_and_never_stale(beam: cheetah.ParticleBeam) -> None:
    """Any order of turning knobs before and behind the cavity and the bend, batches, gradients and beams between."""
    model = CheetahModel(cheetah.Segment(line()), beam, outputs=OUTPUTS)
    order = ("Q5.k1", "Q1.k1", "Q4.k1", "S1.k", "C1.voltage", "Q5.k1", "B1.angle", "Q5.length", "C1.phase", "S1.k")
    for turn, name in enumerate(order):
        value = model.get(name) * 1.1 + 1e-3 * turn
        assert_same(model({name: value}, outputs=OUTPUTS), fresh(beam, {name: value}))
        model({"C1.voltage": t((1e6, 2e6)), "Q5.k1": value}, outputs=OUTPUTS)
        leaf = value.clone().requires_grad_()
        model({name: leaf}, outputs=["final.sigma_x"])["final.sigma_x"].backward()
        ends = [model({name: value * (1.0 + h)}, outputs=["final.sigma_x"])["final.sigma_x"] for h in (1e-5, -1e-5)]
        difference = ((ends[0] - ends[1]) / (2e-5 * value)).item()
        assert leaf.grad.item() == pytest.approx(difference, rel=1e-6, abs=1e-12)
    assert_same(model.get(OUTPUTS), fresh(beam, {}))
    other = beam.clone()
    other.particles = other.particles * t((2.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0))
    wider = model({"initial_particles": TorchParticleGroup.from_cheetah(other), "Q5.k1": 2.0}, outputs=OUTPUTS)
    assert_same(wider, fresh(other, {"Q5.k1": t(2.0)}))


def test_threads_do_not_mix_what_is_kept(beam: cheetah.ParticleBeam) -> None:
    model = CheetahModel(cheetah.Segment(line()), beam, outputs=OUTPUTS)
    bunch = model.get("initial_particles")
    calls = [
        {"initial_particles": bunch.replace(x=bunch.x * (1.0 + scale)), name: model.get(name) * 1.1 + 1e-3}
        for scale in (0.0, 0.5, 1.0)
        for name in ("Q5.k1", "Q1.k1", "B1.angle")
    ]
    expected = [model(values, outputs=OUTPUTS) for values in calls]

    def work(number: int) -> None:
        for turn in range(20):
            which = (number + turn) % len(calls)
            assert_same(model(calls[which], outputs=OUTPUTS), expected[which])

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, range(4)))
    finally:
        sys.setswitchinterval(interval)


def test_a_device_by_another_name_is_where_parameters_are(beam: cheetah.ParticleBeam) -> None:
    """On a GPU ``"cuda"`` and ``"cuda:0"`` are such names."""
    quadrupole = cheetah.Quadrupole(t(0.2), torch.nn.Parameter(t(2.0)), name="Q1", dtype=F64)
    model = CheetahModel(cheetah.Segment([quadrupole]), beam, outputs=["final.sigma_x"], device="cpu:0")
    model.get("final.sigma_x").backward()
    assert quadrupole.k1.grad is not None


def test_switches_upstream_are_noticed(beam: cheetah.ParticleBeam) -> None:
    aperture = cheetah.Aperture(t(4e-4), t(1.0), name="A1", dtype=F64)
    model = CheetahModel(cheetah.Segment([aperture, *line()]), beam, outputs=["final.survival"])
    cut = model({"Q5.k1": 2.0}, outputs=["final.survival"])["final.survival"]
    assert cut < 1.0
    for active, expected in ((False, 1.0), (True, cut), (False, 1.0)):
        assert model({"Q5.k1": 2.0, "A1.is_active": active}, outputs=["final.survival"])["final.survival"] == expected
    model.set({"A1.is_active": False})
    assert model.get("final.survival") == 1.0
    model.reset()
    assert model.get("final.survival") == cut


def test_transforms_do_not_spoil_what_is_kept(beam: cheetah.ParticleBeam) -> None:
    """The first use may be inside a transform or in inference mode, whose tensors must not stay."""
    k1 = t((1.0, 2.0))

    def call(k: torch.Tensor) -> torch.Tensor:
        return model({"Q2.k1": k}, outputs=["final.sigma_x"])["final.sigma_x"]

    for first in (
        torch.func.vmap(call),
        torch.func.jacrev(call),
        torch.func.jacfwd(call),
        torch.inference_mode()(call),
    ):
        model = CheetahModel(cheetah.Segment(line()), beam, outputs=OUTPUTS)
        first(k1)
        leaf = k1.clone().requires_grad_()
        call(leaf).sum().backward()
        expected = torch.func.vmap(torch.func.grad(call))(k1)
        torch.testing.assert_close(leaf.grad, expected, rtol=1e-10, atol=0.0)


def test_another_reference_energy_is_noticed(beam: cheetah.ParticleBeam) -> None:
    model = CheetahModel(cheetah.Segment(line()), beam, outputs=OUTPUTS)
    before = model.get(OUTPUTS)
    model.set({"reference_energy": 25.5e6})
    changed = model.get(OUTPUTS)
    assert changed["final.sigma_x"] != before["final.sigma_x"]
    other = CheetahModel(cheetah.Segment(line()), beam, outputs=OUTPUTS)
    assert_same(other({"reference_energy": t(25.5e6)}, outputs=OUTPUTS), changed)
    energy = t(25e6).requires_grad_()
    model.set({"reference_energy": energy})
    with torch.no_grad():
        energy += 0.5e6
    assert_same({name: value.detach() for name, value in model.get(OUTPUTS).items()}, changed)


def test_energy_follows_the_cavities_live(beam: cheetah.ParticleBeam) -> None:
    model = CheetahModel(cheetah.Segment(line()), beam, outputs=OUTPUTS)
    voltage = t(7e6).requires_grad_()
    energies = model.reference_energy({"C1.voltage": voltage}, ["Q1", "C1", "Q4", "Q5"])
    gain = 7e6 * torch.cos(torch.deg2rad(t(15.0)))
    torch.testing.assert_close(torch.stack(list(energies.values())), t(25e6) + t((0.0, 0.0, 1.0, 1.0)) * gain)
    energies["Q5"].backward()
    torch.testing.assert_close(voltage.grad, gain / 7e6)
    along = model({"C1.voltage": voltage}, outputs=["line.reference_energy"])["line.reference_energy"]
    assert along.shape == (13,)
    torch.testing.assert_close(along[6:8], torch.stack((energies["C1"], energies["Q4"])))
    batched = model.reference_energy({"C1.phase": t((0.0, 90.0))}, ["Q4"])["Q4"]
    torch.testing.assert_close(batched, t((30e6, 25e6)))


def test_refresh_reads_the_segment_again(beam: cheetah.ParticleBeam) -> None:
    segment = cheetah.Segment(line())
    model = CheetahModel(segment, beam, outputs=OUTPUTS)
    model.set({"Q2.k1": -3.0})
    segment.Q1.k1 = t(2.7)
    segment.Q2.k1 = t(-9.0)
    segment.D1.length = t(0.35)
    assert model.get("Q1.k1") == 2.0
    model.refresh()
    assert (model.get("Q1.k1"), model.get("Q2.k1"), model.get("D1.length")) == (2.7, -3.0, 0.35)
    assert_same(model.get(OUTPUTS), fresh(beam, {"Q1.k1": t(2.7), "D1.length": t(0.35), "Q2.k1": t(-3.0)}))
    model.reset()
    assert model.get("Q2.k1") == -9.0
    segment.elements.append(cheetah.Marker(name="M9", sanitize_name=False))
    with pytest.raises(LatticeError, match="build a new model"):
        model.refresh()
    assert model.get("Q2.k1") == -9.0


def test_refresh_reads_switches_and_screens_again(beam: cheetah.ParticleBeam) -> None:
    screen = cheetah.Screen(resolution=(10, 8), pixel_size=t((1e-3, 1e-3)), name="SCR", dtype=F64)
    model = CheetahModel(cheetah.Segment([screen]), beam, outputs=["SCR.image"])
    screen.is_active = True
    model.refresh()
    assert bool(model.get("SCR.is_active"))
    assert model.get("SCR.image").sum() > 0.0
    screen.resolution = (12, 8)
    with pytest.raises(LatticeError, match="build a new model"):
        model.refresh()


def test_elements_with_a_batch_of_their_own(beam: cheetah.ParticleBeam) -> None:
    """Cheetah's elements may be vectorised themselves."""
    elements = line()
    elements[0].k1 = t((1.0, 2.0, 3.0))
    model = CheetahModel(cheetah.Segment(elements), beam, controls=["Q2.k1"], outputs=OUTPUTS)
    out = model.get(OUTPUTS)
    for index, k1 in enumerate((1.0, 2.0, 3.0)):
        expected = fresh(beam, {"Q1.k1": t(k1)})
        for name in OUTPUTS:
            torch.testing.assert_close(out[name][index], expected[name], rtol=1e-12, atol=1e-18)


def test_maps_of_a_batch_give_every_output_the_batch(beam: cheetah.ParticleBeam) -> None:
    matrices = torch.eye(7, dtype=F64).repeat(3, 1, 1)
    matrices[:, 0, 1] = t((1.0, 2.0, 3.0))
    elements = [line()[1], cheetah.CustomTransferMap(matrices, length=t(1.0), name="X", dtype=F64)]
    model = CheetahModel(cheetah.Segment(elements), beam)
    assert {model.get(name).shape for name in ("D1.sigma_x", "final.sigma_x", "final.s", "final.charge")} == {(3,)}
    for index, drift in enumerate((1.0, 2.0, 3.0)):
        straight = cheetah.Segment([line()[1], cheetah.Drift(t(drift), name="D9", dtype=F64)])
        expected = CheetahModel(straight, beam, outputs=["final.sigma_x"]).get("final.sigma_x")
        torch.testing.assert_close(model.get("final.sigma_x")[index], expected, rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("name", ["Q2", "D1"], ids=["of one class", "of another"])
def test_batches_that_do_not_fit_are_named(name: str, beam: cheetah.ParticleBeam) -> None:
    elements = line()
    elements[0].k1 = t((1.0, 2.0, 3.0))
    next(element for element in elements if element.name == name).length = t((0.1, 0.2))
    with pytest.raises(ShapeError, match=rf"Q1\.k1 \(3,\), {name}\.length \(2,\)"):
        CheetahModel(cheetah.Segment(elements), beam)


@pytest.mark.parametrize("count", [*range(8), 11, 12, 22, 27])
def test_product_of_maps(count: int) -> None:
    matrices = torch.randn(2, count, 7, 7, generator=torch.Generator().manual_seed(count), dtype=F64)
    expected = torch.eye(7, dtype=F64).expand(2, 7, 7)
    for index in range(count):
        expected = matrices[:, index] @ expected
    torch.testing.assert_close(product(matrices), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(product(matrices[1]), expected[1], rtol=1e-12, atol=1e-12)


def test_plan_tells_stretches_and_reasons(beam: cheetah.ParticleBeam) -> None:
    aperture = cheetah.Aperture(t(1e-2), t(1e-2), is_active=False, name="A1", dtype=F64)
    model = CheetahModel(cheetah.Segment([*line(), aperture]), beam)
    plan = model.plan()
    assert [stretch.elements for stretch in plan] == [
        ("Q1", "D1", "Q2", "H1", "D2", "Q3"),
        ("C1",),
        ("M1", "Q4"),
        ("B1",),
        ("S1", "Q5", "A1"),
    ]
    assert str(plan).splitlines() == [
        "1  Q1 ... Q3  6 elements as one matrix",
        "2  C1  a cavity with a voltage: energy and wave are not linear",
        "3  M1 ... Q4  2 elements as one matrix",
        "4  B1  tracking_method='second_order'",
        "5  S1 ... A1  3 elements as one matrix",
    ]
    model.set({"A1.is_active": True, "C1.voltage": 1e6})
    assert str(model.plan()).splitlines()[-2:] == [
        "5  S1 ... Q5  2 elements as one matrix",
        "6  A1  an aperture with a hard edge",
    ]
