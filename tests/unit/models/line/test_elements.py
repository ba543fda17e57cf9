"""Every element class of Cheetah, alone and in a line: what comes out is what raw Cheetah gives."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator

import cheetah
import pytest
import torch

from lume_diff import CheetahModel, GradientError, TorchParticleGroup

F64 = torch.float64
Element = cheetah.accelerator.Element


def t(value: float | tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(value, dtype=F64)


@pytest.fixture(scope="module")
def beam() -> cheetah.ParticleBeam:
    """500 electrons off axis, a few of them already lost, at an energy where velocities differ."""
    generator = torch.Generator().manual_seed(3)
    scale = t((4e-4, 2e-4, 3e-4, 1e-4, 2e-4, 2e-3))
    offset = t((3e-4, -1e-4, -2e-4, 5e-5, 3e-5, 4e-4))
    particles = torch.randn(500, 6, generator=generator, dtype=F64) * scale + offset
    alive = torch.ones(500, dtype=F64)
    alive[::50] = 0.0
    return cheetah.ParticleBeam(
        particles=torch.cat((particles, torch.ones(500, 1, dtype=F64)), dim=-1),
        energy=t(25e6),
        particle_charges=torch.rand(500, generator=generator, dtype=F64) * 1e-12,
        survival_probabilities=alive,
        s=t(1.5),
        species=cheetah.Species("electron", dtype=F64),
    )


def bend(kind: type, method: str, **more: object) -> Element:
    faces = ("rbend_e1", "rbend_e2") if kind is cheetah.RBend else ("dipole_e1", "dipole_e2")
    numbers = {
        **{"angle": t(0.3), faces[0]: t(0.1), faces[1]: t(-0.05), "tilt": t(0.2), "gap": t(0.02), "gap_exit": t(0.03)},
        **{"fringe_integral": t(0.5), "fringe_integral_exit": t(0.3)},
    }
    return kind(t(0.5), **numbers, **more, tracking_method=method, dtype=F64)


def quadrupole(method: str, k1: float = 4.2, **more: object) -> Element:
    placed = {"tilt": t(0.3), "misalignment": t((1e-4, -2e-4))}
    return cheetah.Quadrupole(t(0.3), t(k1), **placed, tracking_method=method, **more, dtype=F64)


def cavity(kind: str, voltage: float = 8e6, phase: float = 25.0) -> Element:
    return cheetah.Cavity(t(1.0), t(voltage), t(phase), t(1.3e9), cavity_type=kind, dtype=F64)


def deflector() -> Element:
    placed = {"tilt": t(0.4), "misalignment": t((2e-4, 1e-4))}
    return cheetah.TransverseDeflectingCavity(t(0.4), t(1e5), t(0.2), t(3e9), **placed, dtype=F64)


def custom_map() -> Element:
    matrix = quadrupole("linear").first_order_transfer_map(t(25e6), cheetah.Species("electron", dtype=F64))
    return cheetah.CustomTransferMap(matrix, length=t(0.3), dtype=F64)


def screen(**options: object) -> Element:
    return cheetah.Screen(resolution=(20, 10), pixel_size=t((2e-4, 3e-4)), is_active=True, **options, dtype=F64)


CASES: dict[str, tuple[type, Callable[[], Element]]] = {
    "drift-linear": (cheetah.Drift, lambda: cheetah.Drift(t(0.7), dtype=F64)),
    "drift-second_order": (cheetah.Drift, lambda: cheetah.Drift(t(0.7), tracking_method="second_order", dtype=F64)),
    "drift-drift_kick_drift": (
        cheetah.Drift,
        lambda: cheetah.Drift(t(0.7), tracking_method="drift_kick_drift", dtype=F64),
    ),
    "drift-backwards": (cheetah.Drift, lambda: cheetah.Drift(t(-0.2), dtype=F64)),
    "quadrupole-linear": (cheetah.Quadrupole, lambda: quadrupole("linear")),
    "quadrupole-defocusing": (cheetah.Quadrupole, lambda: quadrupole("linear", -7.0)),
    "quadrupole-off": (cheetah.Quadrupole, lambda: quadrupole("linear", 0.0)),
    "quadrupole-second_order": (cheetah.Quadrupole, lambda: quadrupole("second_order")),
    "quadrupole-drift_kick_drift": (cheetah.Quadrupole, lambda: quadrupole("drift_kick_drift", num_steps=3)),
    "dipole-linear": (cheetah.Dipole, lambda: bend(cheetah.Dipole, "linear", k1=t(0.8))),
    "dipole-second_order": (cheetah.Dipole, lambda: bend(cheetah.Dipole, "second_order")),
    **{
        f"dipole-drift_kick_drift-{faces}": (
            cheetah.Dipole,
            lambda faces=faces: bend(cheetah.Dipole, "drift_kick_drift", fringe_at=faces),
        )
        for faces in ("neither", "entrance", "exit", "both")
    },
    "dipole-straight": (cheetah.Dipole, lambda: cheetah.Dipole(t(0.5), t(0.0), t(1.0), dtype=F64)),
    "rbend-linear": (cheetah.RBend, lambda: bend(cheetah.RBend, "linear", k1=t(0.8))),
    "rbend-second_order": (cheetah.RBend, lambda: bend(cheetah.RBend, "second_order")),
    "rbend-drift_kick_drift": (cheetah.RBend, lambda: bend(cheetah.RBend, "drift_kick_drift")),
    "solenoid": (
        cheetah.Solenoid,
        lambda: cheetah.Solenoid(t(0.4), t(2.0), misalignment=t((1e-4, 2e-4)), dtype=F64),
    ),
    "horizontal_corrector": (
        cheetah.HorizontalCorrector,
        lambda: cheetah.HorizontalCorrector(t(0.1), t(1e-3), dtype=F64),
    ),
    "vertical_corrector": (cheetah.VerticalCorrector, lambda: cheetah.VerticalCorrector(t(0.1), t(-2e-3), dtype=F64)),
    "combined_corrector": (
        cheetah.CombinedCorrector,
        lambda: cheetah.CombinedCorrector(t(0.1), t(1e-3), t(-2e-3), dtype=F64),
    ),
    "cavity-standing_wave": (cheetah.Cavity, lambda: cavity("standing_wave")),
    "cavity-traveling_wave": (cheetah.Cavity, lambda: cavity("traveling_wave")),
    "cavity-decelerating": (cheetah.Cavity, lambda: cavity("standing_wave", phase=160.0)),
    "cavity-off": (cheetah.Cavity, lambda: cavity("standing_wave", voltage=0.0)),
    "cavity-off-traveling_wave": (cheetah.Cavity, lambda: cavity("traveling_wave", voltage=0.0)),
    "transverse_deflecting_cavity": (cheetah.TransverseDeflectingCavity, deflector),
    "undulator": (
        cheetah.Undulator,
        lambda: cheetah.Undulator(t(1.0), period=t(0.03), kx=t(1.2), ky=t(0.7), dtype=F64),
    ),
    "sextupole-second_order": (
        cheetah.Sextupole,
        lambda: cheetah.Sextupole(t(0.2), t(30.0), misalignment=t((1e-4, 2e-4)), tilt=t(0.1), dtype=F64),
    ),
    "sextupole-linear": (
        cheetah.Sextupole,
        lambda: cheetah.Sextupole(t(0.2), t(30.0), tracking_method="linear", dtype=F64),
    ),
    "marker": (cheetah.Marker, lambda: cheetah.Marker(dtype=F64)),
    "bpm": (cheetah.BPM, lambda: cheetah.BPM(is_active=True, misalignment=t((1e-4, 2e-4)), dtype=F64)),
    "screen": (cheetah.Screen, screen),
    "screen-blocking": (cheetah.Screen, lambda: screen(is_blocking=True)),
    "aperture-rectangular": (cheetah.Aperture, lambda: cheetah.Aperture(t(4e-4), t(5e-4), dtype=F64)),
    "aperture-elliptical": (
        cheetah.Aperture,
        lambda: cheetah.Aperture(t(6e-4), t(5e-4), shape="elliptical", dtype=F64),
    ),
    "aperture-open": (cheetah.Aperture, lambda: cheetah.Aperture(dtype=F64)),
    "aperture-inactive": (cheetah.Aperture, lambda: cheetah.Aperture(t(4e-4), t(5e-4), is_active=False, dtype=F64)),
    "custom_transfer_map": (cheetah.CustomTransferMap, custom_map),
    "space_charge_kick": (
        cheetah.SpaceChargeKick,
        lambda: cheetah.SpaceChargeKick(t(0.3), grid_shape=(8, 8, 8), dtype=F64),
    ),
    "superimposed": (
        cheetah.Superimposed,
        lambda: cheetah.Superimposed(quadrupole("linear"), cheetah.Marker(dtype=F64)),
    ),
    "segment": (
        cheetah.Segment,
        lambda: cheetah.Segment([quadrupole("linear"), cheetah.Segment([cavity("standing_wave"), deflector()])]),
    ),
}


def classes(of: type = Element) -> Iterator[type]:
    for kind in of.__subclasses__():
        if kind.__module__.startswith("cheetah."):
            yield kind
        yield from classes(kind)


@pytest.mark.parametrize("kind", sorted(set(classes()), key=lambda kind: kind.__name__), ids=lambda kind: kind.__name__)
def test_every_class_has_a_case(kind: type) -> None:
    assert any(kind is covered for covered, _ in CASES.values()), f"{kind.__name__} has no case: add one to CASES"


@pytest.mark.parametrize("kind", sorted(set(classes()), key=lambda kind: kind.__name__), ids=lambda kind: kind.__name__)
def test_every_tracking_method_has_a_case(kind: type) -> None:
    methods = getattr(kind, "supported_tracking_methods", ["linear"])
    covered = {getattr(make(), "tracking_method", None) for owner, make in CASES.values() if owner is kind}
    assert len(methods) == 1 or covered == set(methods)


def named(element: Element, name: str = "E") -> Element:
    element.name = name
    return element.to(F64)


def raw_track(elements: list[Element], beam: cheetah.ParticleBeam) -> cheetah.ParticleBeam:
    """Track by Cheetah."""
    return cheetah.Segment(elements).track(beam.clone())


#: Cheetah expands the velocity in momentum here, which costs it 1e-13 m of tau; see optics.track_quadrupole.
TOLERANCE = {"quadrupole-drift_kick_drift": 1e-9}


def assert_same(found: TorchParticleGroup, raw: cheetah.ParticleBeam, rtol: float = 1e-10) -> None:
    """Compare all coordinates, each relative to its largest value in the bunch."""
    mine = found.to_cheetah()
    for column, name in enumerate(("x", "px", "y", "py", "tau", "p")):
        expected = raw.particles[..., column].expand(mine.particles.shape[:-1])
        size = expected.abs().max().clamp_min(1e-30)
        worst = ((mine.particles[..., column] - expected).abs().max() / size).item()
        assert worst <= rtol, f"{name} is off by {worst:.2g} of its largest value"
    assert torch.equal(
        mine.survival_probabilities, raw.survival_probabilities.expand(mine.survival_probabilities.shape)
    )
    torch.testing.assert_close(mine.particle_charges, raw.particle_charges, rtol=1e-15, atol=0.0)
    torch.testing.assert_close(mine.energy, raw.energy, rtol=1e-14, atol=0.0)
    torch.testing.assert_close(mine.s, raw.s, rtol=1e-14, atol=1e-15)


def knobs_of(model: CheetahModel) -> list[str]:
    return [n for n in model.input_names if "." in n and not n.endswith(".is_active") and model.get(n) is not None]


ENGINES = pytest.mark.parametrize("engine", ["auto", "cheetah"])


@ENGINES
@pytest.mark.parametrize("name", CASES)
def test_alone(name: str, engine: str, beam: cheetah.ParticleBeam) -> None:
    element = named(CASES[name][1]())
    model = CheetahModel(cheetah.Segment([element]), beam, controls=[], outputs=["final_particles"], engine=engine)
    assert_same(model.get("final_particles"), raw_track([element], beam), TOLERANCE.get(name, 1e-10))


@ENGINES
@pytest.mark.parametrize("name", CASES)
def test_in_a_line(name: str, engine: str, beam: cheetah.ParticleBeam) -> None:
    before = [named(cheetah.Drift(t(0.3), dtype=F64), "D1"), named(quadrupole("linear", 6.0), "Q1")]
    after = [named(cavity("standing_wave", phase=10.0), "C2"), named(quadrupole("linear", -5.0), "Q2")]
    element = named(CASES[name][1]())
    line = [*before, element, *after]
    last = element.flattened().elements[-1].name if hasattr(element, "flattened") else "E"
    outputs = ["Q1.particles", f"{last}.particles", "final_particles"]
    model = CheetahModel(cheetah.Segment(line), beam, controls=[], outputs=outputs, engine=engine)
    for output, count in zip(outputs, (2, 3, 5), strict=True):
        assert_same(model.get(output), raw_track(line[:count], beam), TOLERANCE.get(name, 1e-10))


@ENGINES
@pytest.mark.parametrize("name", CASES)
def test_as_knobs(name: str, engine: str, beam: cheetah.ParticleBeam) -> None:
    """Numbers that are passed act as numbers that are built in, also those of a batch of settings."""
    element = named(CASES[name][1]())
    model = CheetahModel(cheetah.Segment([element]), beam, outputs=["final_particles"], engine=engine)
    values = {n: model.get(n).clone() for n in knobs_of(model)}
    expected = raw_track([element], beam)
    assert_same(model(values)["final_particles"], expected, TOLERANCE.get(name, 1e-10))
    if values:
        batched = model({n: value.expand(3) for n, value in values.items()})["final_particles"]
        assert batched.batch_shape == (3,)
        assert_same(batched.batch_item(1), expected, TOLERANCE.get(name, 1e-10))


def turned(knob: str, value: torch.Tensor) -> torch.Tensor:
    """Return another setting of a knob, off zero."""
    return value * 1.05 + {"k1": 0.02, "voltage": 1e5}.get(knob.rpartition(".")[2], 1e-3)


#: Elements that differ from Cheetah's on purpose, see CHANGELOG.
DIFFERENT = ("dipole-second_order", "rbend-second_order", "cavity-standing_wave", "cavity-decelerating", "segment")


@pytest.mark.parametrize("name", CASES)
def test_both_engines_turn_knobs_alike(name: str, beam: cheetah.ParticleBeam) -> None:
    element = named(CASES[name][1]())
    models = [CheetahModel(cheetah.Segment([element]), beam, engine=engine) for engine in ("auto", "cheetah")]
    tolerance = 3e-5 if name in DIFFERENT else max(TOLERANCE.get(name, 1e-10), 1e-10)
    for knob in knobs_of(models[0]):
        value = turned(knob, models[0].get(knob))
        for number in (value, torch.stack((value, value))):
            mine, cheetahs = (model({knob: number}, outputs=["final_particles"])["final_particles"] for model in models)
            assert_same(mine, cheetahs.to_cheetah(), tolerance)


@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith(("aperture", "marker"))])
def test_both_engines_have_the_same_gradients(name: str, beam: cheetah.ParticleBeam) -> None:
    """At strengths that are not zero, where Cheetah's are right."""
    element = named(CASES[name][1]())
    models = [CheetahModel(cheetah.Segment([element]), beam, engine=engine) for engine in ("auto", "cheetah")]
    for knob in knobs_of(models[0]):
        value = turned(knob, models[0].get(knob))
        found = [gradient_of(model, knob, value) for model in models]
        if found[1] is None:  # Cheetah has none and says so.
            continue
        tolerance = 1e-4 if name in DIFFERENT else 1e-7
        torch.testing.assert_close(found[0], found[1], rtol=tolerance, atol=tolerance * 1e-2)


def gradient_of(model: CheetahModel, knob: str, value: torch.Tensor) -> torch.Tensor | None:
    """Return the gradient of some statistics, None where it is not finite in Cheetah."""
    leaf = value.clone().requires_grad_()
    values = model({knob: leaf}, outputs=["final.sigma_x", "final.mean_y", "final.sigma_t"])
    total = values["final.sigma_x"] / 1e-4 + values["final.mean_y"] / 1e-4 + values["final.sigma_t"] / 1e-12
    if not total.requires_grad:
        return t(0.0)
    try:
        (gradient,) = torch.autograd.grad(total, leaf, allow_unused=True)
    except GradientError as error:
        if model.engine == "cheetah" and "not finite in Cheetah" in str(error):
            return None
        raise
    return t(0.0) if gradient is None else gradient


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("marker", "aperture-open")])
def test_vmap_equals_a_batch(name: str, beam: cheetah.ParticleBeam) -> None:
    element = named(CASES[name][1]())
    model = CheetahModel(cheetah.Segment([element]), beam, outputs=["final.sigma_x", "final.mean_y", "final.sigma_t"])
    factors = t((0.9, 1.0, 1.1))
    values = {n: model.get(n) * factors for n in knobs_of(model)}
    outputs = ["final.sigma_x", "final.mean_y", "final.sigma_t"]

    def call(one: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return model(one, outputs=outputs)

    if name == "space_charge_kick":
        with pytest.raises(GradientError, match="leading batch dimension"):
            torch.func.vmap(call)(values)
        return
    mapped, batched = torch.func.vmap(call)(values), call(values)
    for output in outputs:
        torch.testing.assert_close(mapped[output], batched[output], rtol=1e-10, atol=1e-25, equal_nan=True)


def test_vmap_over_all_knobs_of_a_line_of_all_classes(beam: cheetah.ParticleBeam) -> None:
    """Every class that has maps here, in one line, all its numbers turned at once; also a gradient below vmap."""
    cases = [name for name in CASES if name not in ("space_charge_kick", "screen-blocking", "superimposed", "segment")]
    elements = [named(CASES[name][1](), f"E{number}") for number, name in enumerate(cases)]
    outputs = ["final.sigma_x", "final.beta_y", "final.sigma_energy", "line.mean_x"]
    model = CheetahModel(cheetah.Segment(elements), beam, outputs=outputs)
    model.set({f"E{number}.is_active": False for number, name in enumerate(cases) if name.startswith("aperture")})
    assert {stretch.engine for stretch in model.plan()} == {"maps"}
    factors = t((0.99, 1.0, 1.01))
    values = {n: model.get(n) * factors for n in knobs_of(model)}

    def call(one: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return model(one, outputs=outputs)

    mapped, batched = torch.func.vmap(call)(values), call(values)
    for output in outputs:
        assert bool(batched[output].isfinite().all())
        torch.testing.assert_close(mapped[output], batched[output], rtol=1e-9, atol=1e-18)
    knob = "E4.k1"
    gradients = torch.func.vmap(torch.func.grad(lambda k: model({knob: k}, outputs=outputs)["final.sigma_x"]))(
        values[knob]
    )
    leaf = values[knob].clone().requires_grad_()
    model({knob: leaf}, outputs=outputs)["final.sigma_x"].sum().backward()
    torch.testing.assert_close(gradients, leaf.grad, rtol=1e-9, atol=0.0)


@pytest.mark.parametrize("name", ["positron", "proton"])
def test_other_species(name: str, beam: cheetah.ParticleBeam) -> None:
    other = beam.clone()
    other.species = cheetah.Species(name, dtype=F64)
    other.energy = t(25e6 if name == "positron" else 2e9)
    line = [
        named(CASES[case][1](), f"E{number}")
        for number, case in enumerate(("quadrupole-linear", "cavity-standing_wave", "dipole-drift_kick_drift-both"))
    ]
    model = CheetahModel(cheetah.Segment(line), other, controls=[], outputs=["final_particles"])
    assert_same(model.get("final_particles"), raw_track(line, other))


@pytest.mark.parametrize("kind", [cheetah.Dipole, cheetah.RBend], ids=lambda kind: kind.__name__)
def test_second_order_bends_with_a_gradient_differ_in_tau_only(kind: type, beam: cheetah.ParticleBeam) -> None:
    """Cheetah's integral of the cubed dispersion diverges there; the maps here have it right."""
    element = named(bend(kind, "second_order", k1=t(0.8)))
    model = CheetahModel(cheetah.Segment([element]), beam, controls=[], outputs=["final_particles"])
    mine, raw = model.get("final_particles").to_cheetah(), raw_track([element], beam)
    off = ((mine.particles - raw.particles).abs().amax(0) / raw.particles.abs().amax(0))[:6]
    assert off[[0, 1, 2, 3, 5]].max() < 1e-10
    assert 1e-6 < off[4] < 1e-4


def test_the_segment_is_not_changed(beam: cheetah.ParticleBeam) -> None:
    element = named(quadrupole("linear"))
    segment = cheetah.Segment([element])
    before = {name: value.clone() for name, value in segment.state_dict().items()}
    model = CheetahModel(segment, beam, outputs=["final.sigma_x"])
    model.set({"E.k1": 1.0, "E.tilt": 0.1})
    model.to(torch.float32)
    after = segment.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(after[name], value) and after[name].dtype == F64 for name, value in before.items())


def test_mixed_dtypes_cannot_happen() -> None:
    """Attributes that were left out have torch's default dtype in Cheetah, whatever the rest is."""
    line = [cheetah.Quadrupole(t(0.2), t(1.0), name="Q"), cheetah.Dipole(t(0.2), t(0.1), name="B")]
    beam = cheetah.ParticleBeam.from_parameters(num_particles=20)  # single precision
    model = CheetahModel(cheetah.Segment(line), beam)
    dtypes = {name: model.get(name).dtype for name in model.input_names if isinstance(model.get(name), torch.Tensor)}
    assert set(dtypes.values()) == {F64}
    assert model.get("final.sigma_x").dtype == F64
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert model({"Q.k1": 1.0, "B.angle": torch.tensor(0.1)})["final_particles"].dtype == F64
