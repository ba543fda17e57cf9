"""Which engine tracks a line: maps of our own, Cheetah where it must, Cheetah for everything where it is asked for."""

from __future__ import annotations

import copy
import pickle
import warnings

import cheetah
import pytest
import torch

from lume_diff import CheetahModel, GradientError, PhysicsWarning, SimulatorError, TorchMoments, ValidationError
from lume_diff.testing import check_model

F64 = torch.float64
OUTPUTS = ["BPM1.x", "SCR1.image", "final.sigma_x", "final.beta_y", "final.survival", "final.mean_energy", "line.s"]


def t(value: float | tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(value, dtype=F64)


@pytest.fixture(scope="module")
def beam() -> cheetah.ParticleBeam:
    generator = torch.Generator().manual_seed(5)
    particles = torch.randn(400, 6, generator=generator, dtype=F64) * t((4e-4, 1e-4, 3e-4, 1e-4, 2e-4, 1e-3)) + 1e-5
    return cheetah.ParticleBeam(
        particles=torch.cat((particles, torch.ones(400, 1, dtype=F64)), dim=-1),
        energy=t(5e7),
        particle_charges=torch.full((400,), 1e-13, dtype=F64),
        species=cheetah.Species("electron", dtype=F64),
    )


def line(k1: float = 3.0) -> list[cheetah.accelerator.Element]:
    return [
        cheetah.Quadrupole(t(0.2), t(k1), name="Q1", dtype=F64),
        cheetah.Drift(t(0.5), name="D1", dtype=F64),
        cheetah.BPM(is_active=True, misalignment=t((1e-4, 0.0)), name="BPM1", dtype=F64),
        cheetah.Aperture(t(1e-3), t(1e-3), name="A1", dtype=F64),
        cheetah.Cavity(t(1.0), t(5e6), t(10.0), t(1.3e9), name="C1", dtype=F64),
        cheetah.Quadrupole(t(0.2), t(-2.0), name="Q2", dtype=F64),
        cheetah.Screen((30, 20), t((1e-4, 1e-4)), misalignment=t((0.0, 2e-4)), is_active=True, name="SCR1", dtype=F64),
        cheetah.Drift(t(0.3), name="D2", dtype=F64),
    ]


def model_of(beam: object, engine: str = "cheetah", k1: float = 3.0, **options: object) -> CheetahModel:
    return CheetahModel(cheetah.Segment(line(k1)), beam, outputs=OUTPUTS, engine=engine, **options)


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], rtol: float = 1e-9) -> None:
    for name in OUTPUTS:
        atol = 1e-12 * expected[name].abs().max().item()
        torch.testing.assert_close(found[name], expected[name], rtol=rtol, atol=atol)


# -- the option ------------------------------------------------------------------------------------------------


def test_another_engine_is_refused(beam: cheetah.ParticleBeam) -> None:
    with pytest.raises(ValidationError, match=r"engine is 'fast'; expected 'auto' .* or 'cheetah'"):
        model_of(beam, "fast")
    with pytest.raises(ValidationError, match=r"losses='soft' with engine='cheetah'.*engine='auto'"):
        model_of(beam, losses="soft")
    assert CheetahModel(cheetah.Segment(line()), beam).engine == "auto"


def test_plan_says_which_engine_and_why(beam: cheetah.ParticleBeam) -> None:
    plan = model_of(beam).plan()
    assert [(stretch.elements, stretch.engine) for stretch in plan] == [
        (("Q1", "D1", "BPM1"), "cheetah"),
        (("A1",), "cheetah"),
        (("C1", "Q2", "SCR1", "D2"), "cheetah"),
    ]
    assert all("because engine='cheetah'" in stretch.reason for stretch in plan)
    assert str(plan).splitlines()[0].startswith("1  Q1 ... BPM1  3 elements tracked by Cheetah, because")
    mine = model_of(beam, "auto").plan()
    assert {stretch.engine for stretch in mine} == {"maps"}
    assert [stretch.elements for stretch in mine] == [("Q1", "D1", "BPM1"), ("A1",), ("C1",), ("Q2", "SCR1", "D2")]


# -- the same interface ----------------------------------------------------------------------------------------


def test_values_equal_those_of_raw_cheetah(beam: cheetah.ParticleBeam) -> None:
    segment = cheetah.Segment(line())
    raw = segment.track(beam)
    found = model_of(beam).get(OUTPUTS)
    torch.testing.assert_close(found["SCR1.image"], segment.SCR1.reading, rtol=1e-12, atol=0.0)
    torch.testing.assert_close(found["BPM1.x"], segment.BPM1.reading[0], rtol=1e-12, atol=0.0)
    bunch = model_of(beam).get("final_particles").to_cheetah()
    torch.testing.assert_close(bunch.particles, raw.particles, rtol=1e-11, atol=1e-15)
    assert torch.equal(bunch.survival_probabilities, raw.survival_probabilities)


def test_settings_batches_and_switches_as_with_maps(beam: cheetah.ParticleBeam) -> None:
    models = [model_of(beam, engine) for engine in ("auto", "cheetah")]
    for values in (
        {},
        {"Q1.k1": 2.0, "C1.voltage": 2e6, "BPM1.misalignment_x": 0.0, "SCR1.misalignment_y": -1e-4},
        {"Q1.k1": t((1.0, 2.0, -3.0)), "C1.phase": t((0.0, 10.0, 20.0))},
        {"reference_energy": 5.1e7, "reference_time": 1e-9, "A1.is_active": False},
    ):
        mine, cheetahs = (model(values, outputs=OUTPUTS) for model in models)
        assert_same(cheetahs, mine)
        for model in models:
            model.set(values)
        assert_same(models[1].get(OUTPUTS), mine)
        for model in models:
            model.reset()
    with pytest.warns(PhysicsWarning, match="'SCR1' is not active and reads an image of zeros"):
        assert models[1]({"SCR1.is_active": False}, outputs=["SCR1.image"])["SCR1.image"].abs().sum() == 0.0


def test_all_laws_hold_with_cheetahs_engine_too(beam: cheetah.ParticleBeam) -> None:
    """In inference mode Cheetah's memory of maps would ask tensors for versions that they do not have."""
    elements = [element for element in line() if element.name != "A1"]
    outputs = ["final.sigma_x", "final.beta_y", "SCR1.image"]
    options = {"controls": ["Q1.k1", "Q2.k1"], "outputs": outputs, "engine": "cheetah"}
    found = check_model(CheetahModel(cheetah.Segment(elements), beam, **options))
    assert found["transforms"] == "passed, vmap is refused"
    assert {words for law, words in found.items() if law != "transforms"} == {"passed"}


def test_moments_are_tracked_by_cheetah_too(beam: cheetah.ParticleBeam) -> None:
    moments = TorchMoments.from_cheetah(beam.as_parameter_beam())
    elements = [element for element in line() if element.name != "A1"]
    names = ["BPM1.x", "final.sigma_x", "final.beta_y", "final.mean_energy", "final.survival"]
    values = [
        CheetahModel(cheetah.Segment(elements), moments, outputs=names, engine=engine).get(names)
        for engine in ("auto", "cheetah")
    ]
    for name in names:
        torch.testing.assert_close(values[0][name], values[1][name], rtol=1e-9, atol=0.0)
    blocking = cheetah.Screen(is_active=True, is_blocking=True, name="SCR", dtype=F64)
    assert CheetahModel(cheetah.Segment([blocking]), moments, engine="cheetah").get("final.survival") == 0.0


def test_copies_and_files_keep_the_engine(beam: cheetah.ParticleBeam) -> None:
    model = model_of(beam)
    model.set({"Q1.k1": 2.5})
    expected = model.get(OUTPUTS)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.engine == "cheetah"
        assert {stretch.engine for stretch in other.plan()} == {"cheetah"}
        assert_same(other.get(OUTPUTS), expected, rtol=0.0)
    model.simulator.Q2.k1 = t(-4.0)
    model.refresh()
    assert {stretch.engine for stretch in model.plan()} == {"cheetah"}
    assert model.get("final.sigma_x") != expected["final.sigma_x"]
    single = model.to(torch.float32).get(["final.sigma_x", "final_particles"])
    assert single["final_particles"].dtype == torch.float32


def test_dtypes_are_not_mixed() -> None:
    """Numbers that were left out have torch's default dtype in Cheetah, on which a line of float64 fails."""
    elements = [cheetah.Quadrupole(t(0.2), t(1.0), name="Q"), cheetah.Dipole(t(0.2), t(0.1), name="B")]
    single = cheetah.ParticleBeam.from_parameters(num_particles=20)
    model = CheetahModel(cheetah.Segment(elements), single, outputs=["final_particles"], engine="cheetah")
    assert model.get("final_particles").dtype == F64


# -- gradients -------------------------------------------------------------------------------------------------


def test_gradients_equal_those_of_the_maps(beam: cheetah.ParticleBeam) -> None:
    knobs = {"Q1.k1": t(2.0), "Q2.k1": t(-1.0), "C1.voltage": t(4e6), "reference_energy": t(5e7), "D1.length": t(0.5)}
    outputs = ["SCR1.image", "final.sigma_x", "BPM1.x"]
    found = []
    for engine in ("auto", "cheetah"):
        model = model_of(beam, engine)
        model.set({"A1.is_active": False})
        leaves = {name: value.clone().requires_grad_() for name, value in knobs.items()}
        values = model(leaves, outputs=outputs)
        total = values["SCR1.image"].square().sum() * 1e24 + values["final.sigma_x"] * 1e4 + values["BPM1.x"] * 1e5
        found.append(torch.autograd.grad(total, list(leaves.values())))
    for name, mine, cheetahs in zip(knobs, *found, strict=True):
        torch.testing.assert_close(cheetahs, mine, rtol=1e-6, atol=0.0, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("way", ["backward", "grad", "jvp"])
def test_no_derivative_at_zero_strength_is_silently_nan(way: str, beam: cheetah.ParticleBeam) -> None:
    model = CheetahModel(cheetah.Segment(line(0.0)), beam, outputs=["D1.sigma_x"], engine="cheetah")

    def size(k1: torch.Tensor) -> torch.Tensor:
        return model({"Q1.k1": k1}, outputs=["D1.sigma_x"])["D1.sigma_x"]

    ways = {
        "backward": lambda: size(t(0.0).requires_grad_()).backward(),
        "grad": lambda: torch.func.grad(size)(t(0.0)),
        "jvp": lambda: torch.func.jvp(size, (t(0.0),), (t(1.0),)),
    }
    words = "'Q1" if way == "jvp" else "'Q1.k1', which is 0,"
    with pytest.raises(GradientError, match=f"{words}.*not finite in Cheetah's own tracking.*engine='auto'"):
        ways[way]()
    with pytest.raises(GradientError, match="not finite"):
        size(t((1.0, 0.0)).requires_grad_()).sum().backward()


def test_what_cheetah_keeps_breaks_no_graph(beam: cheetah.ParticleBeam) -> None:
    """Its memory of transfer maps: a second backward, a first track without a graph, a write to ``.data``."""
    elements = line()
    elements[0].k1 = torch.nn.Parameter(t(2.0))
    parameter = elements[0].k1
    model = CheetahModel(cheetah.Segment(elements), beam, outputs=["D1.sigma_x"], engine="cheetah")
    with torch.no_grad():
        without = model(outputs=["D1.sigma_x"])["D1.sigma_x"]
    gradients = []
    for _ in range(2):
        value = model(outputs=["D1.sigma_x"])["D1.sigma_x"]
        assert value == without
        gradients.append(torch.autograd.grad(value, parameter)[0])
    assert gradients[0] == gradients[1] != 0.0
    parameter.data = t(2.5)
    assert model(outputs=["D1.sigma_x"])["D1.sigma_x"] != without
    with torch.no_grad():
        parameter.copy_(t(2.0))
    assert model.get("D1.sigma_x") == without
    swapped = torch.func.functional_call(model, {"Q1__k1": t(2.5)}, (None, ["D1.sigma_x"]))["D1.sigma_x"]
    assert swapped != without
    assert torch.equal(elements[0].k1, parameter)


def test_maps_that_are_kept_of_unchanged_elements_are_never_stale(beam: cheetah.ParticleBeam) -> None:
    """A plain call, then other energies, derivatives to these in both modes, a batch, and the first again."""
    names = ["final.sigma_x", "final.sigma_t"]
    models = [
        CheetahModel(cheetah.Segment([*line()[:3], *line()[4:]]), beam, outputs=names, engine=engine)
        for engine in ("auto", "cheetah")
    ]

    def values(model: CheetahModel, energy: torch.Tensor) -> torch.Tensor:
        found = model({"reference_energy": energy}, outputs=names)
        return torch.stack((found["final.sigma_x"] / 1e-4, found["final.sigma_t"] / 1e-12))

    def all_ways(model: CheetahModel) -> list[torch.Tensor]:
        energy, one = t(5.1e7), t(1e6)
        slope = torch.autograd.functional.jacobian(lambda e: values(model, e * 1e6), t(51.0))
        forward = torch.func.jvp(lambda e: values(model, e), (energy,), (one,))[1]
        torch.testing.assert_close(forward, slope, rtol=1e-9, atol=0.0)
        batch = values(model, t((5e7, 5.1e7)))
        return [values(model, t(5e7)), values(model, energy), slope, batch, values(model, t(5e7))]

    for mine, cheetahs in zip(*map(all_ways, models), strict=True):
        torch.testing.assert_close(cheetahs, mine, rtol=1e-8, atol=1e-12)


def test_vmap_names_the_batch_dimension(beam: cheetah.ParticleBeam) -> None:
    models = [
        CheetahModel(cheetah.Segment(line()), beam, outputs=["D1.sigma_x"], engine=engine)
        for engine in ("auto", "cheetah")
    ]

    def sizes(model: CheetahModel, k1: torch.Tensor) -> torch.Tensor:
        return model({"Q1.k1": k1}, outputs=["D1.sigma_x"])["D1.sigma_x"]

    k1 = t((1.0, 2.0))
    with pytest.raises(GradientError, match=r"vmap cannot pass this line.*leading batch dimension"):
        torch.func.vmap(lambda k: sizes(models[1], k))(k1)
    assert sizes(models[1], k1).shape == (2,)
    mine, cheetahs = (torch.func.jacrev(lambda k, model=model: sizes(model, k))(k1) for model in models)
    torch.testing.assert_close(cheetahs, mine, rtol=1e-9, atol=0.0)


def test_losses_are_noted_as_with_maps(beam: cheetah.ParticleBeam) -> None:
    values = []
    for engine in ("auto", "cheetah"):
        model = model_of(beam, engine)
        model.set({"A1.x_max": 4e-4})
        values.append(model.get("final.survival"))
        k1 = t(3.0).requires_grad_()
        with pytest.warns(PhysicsWarning, match="lost at aperture 'A1'"):
            model({"Q1.k1": k1}, outputs=["final.sigma_x"])["final.sigma_x"].backward()
        with pytest.raises(GradientError, match="lost at aperture 'A1'"):
            model({"Q1.k1": k1}, outputs=["final.survival"])["final.survival"].backward()
    assert values[0] == values[1] < 1.0


def test_histograms_have_no_gradient_and_say_so(beam: cheetah.ParticleBeam) -> None:
    elements = line()
    elements[6].method = "histogram"
    model = CheetahModel(cheetah.Segment(elements), beam, outputs=["SCR1.image"], engine="cheetah")
    assert model.get("SCR1.image").sum() > 0.0
    with pytest.raises(GradientError, match="histogram"):
        model({"Q1.k1": t(1.0).requires_grad_()}, outputs=["SCR1.image"])


# -- what only Cheetah can do ----------------------------------------------------------------------------------


class Kicker(cheetah.Element):
    """A user's own element, of which this package knows nothing; it says nothing of its number to Cheetah either."""

    def __init__(self, strength: torch.Tensor, name: str) -> None:
        super().__init__(name=name)
        self.register_buffer("strength", strength)  # single precision by torch's default, as the length is

    @property
    def is_skippable(self) -> bool:
        return False

    def track(self, incoming: cheetah.Beam) -> cheetah.Beam:
        outgoing = incoming.clone()
        kick = torch.zeros(7, dtype=incoming.particles.dtype)
        kick[1] = self.strength
        outgoing.particles = incoming.particles + kick + 0.0 * self.length
        return outgoing

    def plot(self, *_: object, **__: object) -> None:
        raise NotImplementedError


class OwnQuadrupole(cheetah.Quadrupole):
    """A subclass of an element that is known."""


@pytest.mark.parametrize("kind", ["space charge", "unknown", "subclass"])
def test_only_the_stretch_that_has_no_map_goes_through_cheetah(kind: str, beam: cheetah.ParticleBeam) -> None:
    own = {
        "space charge": lambda: cheetah.SpaceChargeKick(t(0.3), grid_shape=(8, 8, 8), name="X", dtype=F64),
        "unknown": lambda: Kicker(torch.tensor(1e-3), name="X"),
        "subclass": lambda: OwnQuadrupole(t(0.2), t(1.0), name="X", dtype=F64),
    }[kind]()
    elements = [*line()[:3], own, cheetah.Quadrupole(t(0.2), t(-2.0), name="Q2", dtype=F64)]
    names = ["final.sigma_x", "final.mean_px", "D1.sigma_x", "final_particles"]
    model = CheetahModel(cheetah.Segment(elements), beam, outputs=names)
    plan = model.plan()
    assert [(stretch.elements, stretch.engine) for stretch in plan] == [
        (("Q1", "D1", "BPM1"), "maps"),
        (("X",), "cheetah"),
        (("Q2",), "maps"),
    ]
    assert f"tracked by Cheetah's own {model._line.elements[3].kind}" in str(plan)
    raw = beam
    for element in elements:
        raw = (element.double() if kind == "unknown" else element).track(raw)
    found = model.get("final_particles").to_cheetah()
    torch.testing.assert_close(found.particles, raw.particles, rtol=1e-9, atol=1e-15)
    k1 = t((2.9, 3.0, 3.1)).requires_grad_()
    sizes = model({"Q1.k1": k1}, outputs=["final.sigma_x"])["final.sigma_x"]
    (gradient,) = torch.autograd.grad(sizes[1], k1)
    h = 1e-4
    ends = model({"Q1.k1": t((3.0 + h, 3.0 - h))}, outputs=["final.sigma_x"])["final.sigma_x"]
    difference = (ends[0] - ends[1]) / (2.0 * h)
    torch.testing.assert_close(gradient[1], difference, rtol=1e-4 if kind == "space charge" else 1e-6, atol=0.0)
    with pytest.raises(GradientError, match=r"vmap cannot pass element 'X'.*leading batch dimension"):
        torch.func.vmap(lambda k: model({"Q1.k1": k}, outputs=["final.sigma_x"])["final.sigma_x"])(k1.detach())


def test_a_knob_of_an_own_subclass_at_zero_raises(beam: cheetah.ParticleBeam) -> None:
    elements = [OwnQuadrupole(t(0.2), t(0.0), name="X", dtype=F64), cheetah.Drift(t(0.5), name="D1", dtype=F64)]
    model = CheetahModel(cheetah.Segment(elements), beam, outputs=["final.sigma_x"])
    with pytest.raises(GradientError, match=r"'X.k1', which is 0, is not finite in Cheetah's own tracking"):
        model({"X.k1": t(0.0).requires_grad_()}, outputs=["final.sigma_x"])["final.sigma_x"].backward()


def test_a_gradient_that_was_nan_before_is_not_blamed_on_cheetah(beam: cheetah.ParticleBeam) -> None:
    model = CheetahModel(cheetah.Segment(line()), beam, outputs=["D1.sigma_x"], engine="cheetah")
    k1 = t(2.0).requires_grad_()
    (model({"Q1.k1": k1}, outputs=["D1.sigma_x"])["D1.sigma_x"] * torch.nan).backward()
    assert k1.grad.isnan()


def test_what_cheetah_cannot_track_says_what(beam: cheetah.ParticleBeam) -> None:
    moments = TorchMoments.from_cheetah(beam.as_parameter_beam())
    elements = [cheetah.Sextupole(t(0.2), t(10.0), name="S1", dtype=F64)]
    with pytest.raises(SimulatorError, match="ParticleBeam"):
        CheetahModel(cheetah.Segment(elements), moments, engine="cheetah").get("final.sigma_x")


def test_the_segment_is_not_changed(beam: cheetah.ParticleBeam) -> None:
    segment = cheetah.Segment(line())
    before = {name: value.clone() for name, value in segment.state_dict().items()}
    model = CheetahModel(segment, beam, outputs=OUTPUTS, engine="cheetah")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model({"Q1.k1": t((1.0, 2.0)).requires_grad_(), "SCR1.misalignment_x": 1e-4}, outputs=OUTPUTS)
    assert segment.SCR1.get_read_beam() is None
    assert all(torch.equal(segment.state_dict()[name], value) for name, value in before.items())
