"""Coordinates behind every class of element, and their derivatives to every number of it and to the particles.

Each derivative is that of a random combination of one coordinate over all particles. It is compared with Cheetah's own
autograd where that is right, and with eighth-order differences of Cheetah's values at and near zero strength, where it
is NaN or off.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import nullcontext

import cheetah
import pytest
import torch

from lume_diff import CheetahModel, PhysicsWarning, TorchParticleGroup
from lume_diff.models.line.elements import ATTRIBUTES

F64 = torch.float64
pytestmark = pytest.mark.gradient
Numbers = dict[str, torch.Tensor]
COORDINATES = ("x", "px", "y", "py", "tau", "p")
SIZES = torch.tensor((4e-4, 2e-4, 3e-4, 1e-4, 2e-4, 2e-3), dtype=F64)
METHODS = ("linear", "second_order", "drift_kick_drift")

PLACED = "tilt misalignment_x misalignment_y"
BEND = "length angle tilt gap gap_exit fringe_integral fringe_integral_exit"
FACES = {"Dipole": "dipole_e1 dipole_e2", "RBend": "rbend_e1 rbend_e2"}


def bends() -> dict[str, tuple[str, str, dict[str, object]]]:
    found: dict[str, tuple[str, str, dict[str, object]]] = {}
    for kind, faces in FACES.items():
        found[f"{kind}-linear"] = kind, f"{BEND} k1 {faces}", {"tracking_method": "linear"}
        found[f"{kind}-second_order"] = kind, f"{BEND} {faces}", {"tracking_method": "second_order"}
        found[f"{kind}-second_order-k1"] = kind, f"{BEND} k1 {faces}", {"tracking_method": "second_order"}
        for at in ("neither", "entrance", "exit", "both") if kind == "Dipole" else ("both",):
            options = {"tracking_method": "drift_kick_drift", "fringe_at": at}
            found[f"{kind}-drift_kick_drift-{at}"] = kind, f"{BEND} {faces}", options
    return found


#: Class, its numbers, and its options.
CASES: dict[str, tuple[str, str, dict[str, object]]] = {
    **{f"Drift-{method}": ("Drift", "length", {"tracking_method": method}) for method in METHODS},
    **{
        f"Quadrupole-{method}": ("Quadrupole", f"length k1 {PLACED}", {"tracking_method": method}) for method in METHODS
    },
    "Quadrupole-sliced": (
        "Quadrupole",
        f"length k1 {PLACED}",
        {"tracking_method": "drift_kick_drift", "num_steps": 3},
    ),
    **bends(),
    **{
        f"Sextupole-{method}": ("Sextupole", f"length k2 {PLACED}", {"tracking_method": method})
        for method in METHODS[:2]
    },
    "Solenoid": ("Solenoid", "length k misalignment_x misalignment_y", {}),
    "HorizontalCorrector": ("HorizontalCorrector", "length angle", {}),
    "VerticalCorrector": ("VerticalCorrector", "length angle", {}),
    "CombinedCorrector": ("CombinedCorrector", "length horizontal_angle vertical_angle", {}),
    "Undulator": ("Undulator", "length period kx ky", {}),
    **{
        f"Cavity-{kind}": ("Cavity", "length voltage phase frequency", {"cavity_type": kind})
        for kind in ("standing_wave", "traveling_wave")
    },
    "TransverseDeflectingCavity": (
        "TransverseDeflectingCavity",
        f"length voltage phase frequency {PLACED}",
        {},
    ),
    "Marker": ("Marker", "", {}),
    "BPM": ("BPM", "misalignment_x misalignment_y", {"is_active": True}),
    "Screen": ("Screen", "misalignment_x misalignment_y", {"is_active": True, "resolution": (20, 10)}),
    **{
        f"Aperture-{shape}": ("Aperture", "", {"x_max": 4e-4, "y_max": 5e-4, "shape": shape})
        for shape in ("rectangular", "elliptical")
    },
    "CustomTransferMap": ("CustomTransferMap", "", {}),
}

#: Size of a typical value.
SCALES = {
    **{"length": 0.5, "tilt": 1.0, "misalignment_x": 5e-4, "misalignment_y": 5e-4, "k1": 5.0, "k2": 50.0, "k": 2.0},
    **{"angle": 0.4, "gap": 0.03, "gap_exit": 0.03, "fringe_integral": 0.5, "fringe_integral_exit": 0.5},
    **dict.fromkeys(("dipole_e1", "dipole_e2", "rbend_e1", "rbend_e2"), 0.3),
    **{"horizontal_angle": 1e-3, "vertical_angle": 1e-3, "period": 0.04, "kx": 1.0, "ky": 1.0},
    **{"voltage": 5e6, "phase": 40.0, "frequency": 2e9},
}
SPECIAL_SCALES = {
    ("HorizontalCorrector", "angle"): 1e-3,
    ("VerticalCorrector", "angle"): 1e-3,
    ("TransverseDeflectingCavity", "voltage"): 1e6,
    ("TransverseDeflectingCavity", "phase"): 0.2,
}
POSITIVE = {"length", "gap", "gap_exit", "fringe_integral", "fringe_integral_exit", "frequency", "period", "kx", "ky"}
NEVER_ZERO = {"length", "period", "frequency"}

#: Seed, energy [eV], factor on strengths, factor on lengths.
SETTINGS = {
    "random-1": (1, 25e6, 1.0, 1.0),
    "random-2": (2, 60e6, 1.0, 1.0),
    "strong-slow": (3, 3e6, 2.5, 1.5),
    "fast": (4, 15e9, 1.0, 1.0),
    "zero": (5, 25e6, 0.0, 1.0),
    "tiny": (6, 25e6, 1e-9, 1.0),
}
IS_NEAR_ZERO = {"zero", "tiny"}


def t(value: object) -> torch.Tensor:
    return torch.tensor(value, dtype=F64)


def scale_of(kind: str, name: str) -> float:
    return SPECIAL_SCALES.get((kind, name), SCALES[name])


def numbers_of(case: str, setting: str) -> Numbers:
    """Draw the numbers of an element, each between 0.3 and 1 of its scale, of either sign where it may have one."""
    kind, names, _ = CASES[case]
    seed, _, strength, stretch = SETTINGS[setting]
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name in names.split():
        draw = 2.0 * torch.rand((), generator=generator, dtype=F64) - 1.0
        draw = draw.sign() * (0.3 + 0.7 * draw.abs())
        if name in POSITIVE or (kind == "Cavity" and name == "voltage"):  # the crest is on the gaining side
            draw = draw.abs()
        factor = {"length": stretch}.get(name, 1.0) if name in NEVER_ZERO else min(strength, 1.0)
        if strength > 1.0 and name in ("k1", "k2", "k", "voltage", "angle"):
            factor = strength
        found[name] = factor * scale_of(kind, name) * draw
    return found


def particles(seed: int = 3, n: int = 8) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    coordinates = (torch.randn(n, 6, generator=generator, dtype=F64) + 0.3) * SIZES
    return torch.cat((coordinates, torch.ones(n, 1, dtype=F64)), dim=-1)


def beam_of(coordinates: torch.Tensor, energy: torch.Tensor) -> cheetah.ParticleBeam:
    charges = torch.full(coordinates.shape[:-1], 1e-12, dtype=F64)
    species = cheetah.Species("electron", dtype=F64)
    return cheetah.ParticleBeam(coordinates, energy, particle_charges=charges, species=species)


def element(case: str, numbers: Numbers) -> cheetah.accelerator.Element:
    """Build an element, its numbers under Cheetah's names: a misalignment is one vector."""
    kind, _, options = CASES[case]
    values = dict(numbers)
    if "misalignment_x" in values:
        values["misalignment"] = torch.stack(
            torch.broadcast_tensors(values.pop("misalignment_x"), values.pop("misalignment_y")), dim=-1
        )
    options = {name: t(value) if isinstance(value, float) else value for name, value in options.items()}
    if kind == "CustomTransferMap":
        matrix = torch.eye(7, dtype=F64) + 0.2 * torch.randn(7, 7, generator=torch.Generator().manual_seed(1)).double()
        matrix[6] = torch.eye(7, dtype=F64)[6]
        options = {"predefined_transfer_map": matrix}
    return getattr(cheetah, kind)(**values, **options, name="E", dtype=F64)


def raw(case: str, numbers: Numbers, coordinates: torch.Tensor, energy: torch.Tensor) -> torch.Tensor:
    """Track by Cheetah."""
    return cheetah.Segment([element(case, numbers)]).track(beam_of(coordinates, energy)).particles


WEIGHTS = torch.randn(8, generator=torch.Generator().manual_seed(0), dtype=F64)


def combined(coordinates: torch.Tensor) -> torch.Tensor:
    """Return a random combination of each coordinate over the particles."""
    return WEIGHTS @ coordinates[..., :6]


def derivatives(out: torch.Tensor, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return, for each input, the derivatives of the six outputs to it."""
    rows = [torch.autograd.grad(value, inputs, retain_graph=True, materialize_grads=True) for value in combined(out)]
    return [torch.stack(column) for column in zip(*rows, strict=True)]


STENCIL = t((-4.0, -3.0, -2.0, -1.0, 1.0, 2.0, 3.0, 4.0))
DIFFERENCE = t((1 / 280, -4 / 105, 1 / 5, -4 / 5, 4 / 5, -1 / 5, 4 / 105, -1 / 280))


def difference(function: Callable[[torch.Tensor], torch.Tensor], step: float) -> torch.Tensor:
    """Return the six derivatives at zero of a function of a batch, by central differences of eighth order."""
    return DIFFERENCE @ function(STENCIL * step).expand(8, 6) / step


@functools.cache
class Comparison:
    """Our coordinates and derivatives beside Cheetah's, at one setting of one element."""

    def __init__(self, case: str, setting: str) -> None:
        self.case, self.kind, self.is_near_zero = case, CASES[case][0], setting in IS_NEAR_ZERO
        self.numbers, self.start = numbers_of(case, setting), particles()
        self.energy = t(SETTINGS[setting][1])
        self.names = list(self.numbers)
        segment = cheetah.Segment([element(case, self.numbers)])
        self.model = CheetahModel(segment, beam_of(self.start, self.energy), outputs=["final_particles"])
        self.ours, self.our_slopes = self.differentiated(self.track)
        self.theirs, self.their_slopes = self.differentiated(lambda *given: raw(case, *given, self.energy))
        self.size = self.theirs.abs().amax(0)[:6].clamp_min(1e-12)

    def track(self, numbers: Numbers, coordinates: torch.Tensor) -> torch.Tensor:
        """Track by our own maps."""
        bunch = TorchParticleGroup.from_cheetah(beam_of(coordinates, self.energy))
        knobs = {f"E.{name}": value for name, value in numbers.items()}
        return self.model({**knobs, "initial_particles": bunch})["final_particles"].to_cheetah().particles

    def differentiated(
        self, track: Callable[[Numbers, torch.Tensor], torch.Tensor]
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        leaves = {name: value.clone().requires_grad_() for name, value in self.numbers.items()}
        coordinates = self.start.clone().requires_grad_()
        out = track(leaves, coordinates)
        return out.detach(), derivatives(out, [*leaves.values(), coordinates])

    def differenced(self, name: str, step: float = 0.01, of: Callable[..., torch.Tensor] | None = None) -> torch.Tensor:
        """Return the derivatives of Cheetah's values, or of others, to one number."""
        track = of or (lambda *given: raw(self.case, *given, self.energy))
        step *= scale_of(self.kind, name)
        return difference(
            lambda shift: combined(track({**self.numbers, name: self.numbers[name] + shift}, self.start)), step
        )

    def floor(self, name: str) -> torch.Tensor:
        """Return the round-off of a derivative in double precision.

        Arrival times count from the start of the line, so that a length moves them by 1 / (beta c); what it moves tau
        by is a difference from that, some 1e-6 of it at 25 MeV and 1e-12 at 15 GeV.
        """
        # Cheetah's exact bend loses four digits where the angle vanishes.
        noise = 1e-11 if self.kind in FACES and "drift_kick_drift" in self.case and self.is_near_zero else 1e-13
        found = noise * self.size / scale_of(self.kind, name)
        found[4] += 2e-15 * WEIGHTS.abs().sum() if name == "length" else 0.0
        return found

    def assert_close(self, name: str, expected: torch.Tensor, columns: list[int], floor: torch.Tensor) -> None:
        found = self.our_slopes[self.names.index(name)]
        for column in columns:
            off = (found[column] - expected[column]).abs()
            assert off <= 1e-8 * expected[column].abs() + floor[column], (
                f"d {COORDINATES[column]} / d {name}: {found[column].item():.12g}, "
                f"expected {expected[column].item():.12g}"
            )


def tau_is_ours(case: str, setting: str) -> bool:
    """Tell whether tau is better here than in Cheetah, which cancels or expands; other tests hold it then."""
    if case in ("Quadrupole-drift_kick_drift", "Quadrupole-sliced"):
        return True
    if case.endswith("second_order-k1"):
        return setting != "zero"
    return case.startswith("Cavity")


@pytest.mark.parametrize("kind", [kind for kind in ATTRIBUTES if kind != "SpaceChargeKick"])
def test_every_class_and_method_has_a_case(kind: str) -> None:
    """Space charge is Cheetah's own."""
    methods = {options.get("tracking_method") for owner, _, options in CASES.values() if owner == kind}
    assert methods, f"{kind} has no case: add one to CASES"
    supported = set(getattr(getattr(cheetah, kind), "supported_tracking_methods", ()))
    assert methods == {None} or methods == supported
    names = {name for owner, names, _ in CASES.values() if owner == kind for name in names.split()}
    left_out = {a.name for a in ATTRIBUTES[kind]} - names
    assert left_out <= {"x_max", "y_max", "pixel_size_x", "pixel_size_y", "kde_bandwidth", "length"}
    assert "length" not in left_out or kind == "CustomTransferMap"


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("case", CASES)
def test_element_equals_cheetahs(case: str, setting: str) -> None:
    """Values to 1e-10, derivatives to 1e-8."""
    loses = case.startswith("Aperture")
    with pytest.warns(PhysicsWarning, match="particles are lost") if loses else nullcontext():
        both = Comparison(case, setting)
    columns = [0, 1, 2, 3, 5] if tau_is_ours(case, setting) else list(range(6))
    off = ((both.ours - both.theirs).abs().amax(0)[:6] / both.size)[columns]
    assert off.max() <= 1e-10, f"values are off by {off.max().item():.2g}"

    for name in both.names:
        expected = both.their_slopes[both.names.index(name)]
        is_strength = name not in ("length", "misalignment_x", "misalignment_y", "tilt")
        if (both.is_near_zero and is_strength) or not bool(expected.isfinite().all()):
            assert both.is_near_zero or (name == "length" and "second_order" in case)
            # The round-off of a difference: that of the values over the step.
            floor = both.floor(name) + 1e-9 * both.size / scale_of(both.kind, name)
            both.assert_close(name, both.differenced(name), columns, floor)
        else:
            both.assert_close(name, expected, columns, both.floor(name))


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("case", [case for case in CASES if not case.startswith("Aperture")])
def test_derivatives_to_the_particles_equal_cheetahs(case: str, setting: str) -> None:
    """Along one random direction against differences of Cheetah's values, and to each particle against its autograd."""
    both = Comparison(case, setting)
    columns = [0, 1, 2, 3, 5] if tau_is_ours(case, setting) else list(range(6))
    mine, theirs = both.our_slopes[-1][..., :6] * SIZES, both.their_slopes[-1][..., :6] * SIZES
    direction = torch.randn(8, 6, generator=torch.Generator().manual_seed(5), dtype=F64)
    shift = torch.cat((direction * SIZES, torch.zeros(8, 1, dtype=F64)), dim=-1)
    along = (mine * direction).sum((-2, -1))
    moved = difference(
        lambda part: combined(raw(case, both.numbers, both.start + part[:, None, None] * shift, both.energy)), 0.02
    )
    assert ((along - moved).abs() <= 1e-8 * moved.abs() + 3e-10 * both.size)[columns].all()
    if both.kind == "Quadrupole" and setting == "zero":
        assert bool(theirs.isfinite().all()) == (both.case in ("Quadrupole-linear", "Quadrupole-second_order"))
    else:
        largest = theirs.abs().amax((-2, -1), keepdim=True) + 1e-6 * both.size[:, None, None]
        assert ((mine - theirs).abs() <= 1e-8 * largest)[columns].all()


@pytest.mark.parametrize("setting", [name for name in SETTINGS if name != "zero"])
@pytest.mark.parametrize("case", [f"{kind}-second_order-k1" for kind in FACES])
def test_tau_behind_a_second_order_bend_with_a_gradient(case: str, setting: str) -> None:
    """Cheetah's J_3 diverges there; ours is the integral, whose derivatives are those of its own values."""
    both = Comparison(case, setting)
    assert (both.ours - both.theirs)[:, 4].abs().max() <= 1e-3 * both.size[4]
    for name in both.names:
        expected = both.differenced(name, of=both.track)
        both.assert_close(name, expected, [4], both.floor(name) + 1e-9 * both.size / scale_of(both.kind, name))


@pytest.mark.parametrize("case", ["Quadrupole-linear", "Quadrupole-second_order", "Dipole-linear"])
def test_raw_cheetahs_autograd_is_off_near_zero(case: str) -> None:
    """The reason for differences there: at a billionth of the usual strength Cheetah has seven or eight digits."""
    both = Comparison(case, "tiny")
    place, expected = both.names.index("k1"), both.differenced("k1")
    ours, theirs = (
        (slopes[place] / expected - 1.0)[[0, 2]].abs().max() for slopes in (both.our_slopes, both.their_slopes)
    )
    assert ours < 1e-11
    assert theirs > 1e-8
