"""Derivatives along a whole machine: the ARES linac, every number of every element at once, against raw Cheetah."""

from __future__ import annotations

import warnings
from pathlib import Path

import cheetah
import pytest
import torch

from lume_diff import CheetahModel, TorchParticleGroup
from lume_diff.models.line.elements import ATTRIBUTES

F64 = torch.float64
pytestmark = pytest.mark.gradient
COORDINATES = ("x", "px", "y", "py", "tau", "p")
SIZES = torch.tensor((2e-4, 2e-5, 3e-4, 1e-5, 2e-4, 1e-3), dtype=F64)
WEIGHTS = torch.randn(8, generator=torch.Generator().manual_seed(0), dtype=F64)
ENERGY = torch.tensor(6e6, dtype=F64)
#: Size of a typical change.
SCALES = {
    **{"length": 0.3, "k1": 5.0, "angle": 0.01, "tilt": 1.0, "misalignment_x": 5e-4, "misalignment_y": 5e-4},
    **{"gap": 0.03, "gap_exit": 0.03, "fringe_integral": 0.5, "fringe_integral_exit": 0.5},
    **{"dipole_e1": 0.3, "dipole_e2": 0.3, "voltage": 2e7, "phase": 40.0, "frequency": 3e9},
    **{"period": 0.03, "kx": 1.0, "ky": 1.0},
}
#: Seed, size of quadrupole strengths [1/m^2] and of cavity phases [deg].
SETTINGS = {"random-1": (1, 4.0, 10.0), "random-2": (2, 4.0, 10.0), "off-crest": (3, 2.0, 70.0)}
Values = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def segment(shared_data: Path) -> cheetah.Segment:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return cheetah.Segment.from_nx_tables(shared_data / "ares_stage4_nxtables.csv").to(F64)


@pytest.fixture(scope="module")
def model(segment: cheetah.Segment) -> CheetahModel:
    return CheetahModel(segment, beam_of(particles()), outputs=["final_particles"])


def particles() -> torch.Tensor:
    coordinates = torch.randn(8, 6, generator=torch.Generator().manual_seed(3), dtype=F64) * SIZES
    return torch.cat((coordinates, torch.ones(8, 1, dtype=F64)), dim=-1)


def beam_of(coordinates: torch.Tensor) -> cheetah.ParticleBeam:
    charges = torch.full((8,), 1e-12, dtype=F64)
    return cheetah.ParticleBeam(
        coordinates, ENERGY, particle_charges=charges, species=cheetah.Species("electron", dtype=F64)
    )


def values_of(model: CheetahModel, segment: cheetah.Segment) -> Values:
    """Return every number of every element that does something to the beam, as the file has it."""
    passive = {e.name for e in segment.elements if type(e).__name__ in ("Screen", "BPM", "Aperture")}
    knobs = [n for n in model.input_names if "." in n and n.rpartition(".")[0] not in passive]
    return {name: model.get(name).clone() for name in knobs}


def settings_of(model: CheetahModel, segment: cheetah.Segment, setting: str) -> Values:
    """Draw strengths, kicks, voltages, phases, tilts and misalignments."""
    seed, strength, phase = SETTINGS[setting]
    generator = torch.Generator().manual_seed(seed)
    kinds = {element.name: type(element).__name__ for element in segment.elements}
    values = values_of(model, segment)
    sizes = {
        **{("Quadrupole", "k1"): strength, ("Dipole", "angle"): 2e-3, ("Cavity", "phase"): phase},
        **{("HorizontalCorrector", "angle"): 2e-4, ("VerticalCorrector", "angle"): 2e-4},
        **{(kind, "tilt"): 0.1 for kind in ("Quadrupole", "Dipole")},
        **{("Quadrupole", f"misalignment_{plane}"): 1e-4 for plane in "xy"},
    }
    for name, value in values.items():
        element, _, attribute = name.rpartition(".")
        draw = 2.0 * torch.rand((), generator=generator, dtype=F64) - 1.0
        values[name] = value + sizes.get((kinds[element], attribute), 0.0) * draw
        if kinds[element] == "Cavity" and attribute == "voltage":
            values[name] = 2e7 + 1e6 * draw
        elif kinds[element] == "Cavity" and attribute == "frequency":
            values[name] = torch.tensor(2.9985e9, dtype=F64)
    return values


def ours(model: CheetahModel, values: Values, coordinates: torch.Tensor) -> torch.Tensor:
    bunch = TorchParticleGroup.from_cheetah(beam_of(coordinates))
    return model({**values, "initial_particles": bunch})["final_particles"].to_cheetah().particles


def raw(segment: cheetah.Segment, values: Values, coordinates: torch.Tensor) -> torch.Tensor:
    clone = segment.clone()
    for element in clone.elements:
        vectors: dict[str, list[torch.Tensor]] = {}
        for attribute in ATTRIBUTES[type(element).__name__]:
            value = values.get(f"{element.name}.{attribute.name}")
            if value is not None and attribute.component is None:
                setattr(element, attribute.feature, value)
            elif value is not None:
                vectors.setdefault(attribute.feature, []).append(value)
        for feature, parts in vectors.items():
            setattr(element, feature, torch.stack(parts, dim=-1))
    found = clone.track(beam_of(coordinates)).particles
    return found[0] if found.shape[0] == 1 else found  # Cheetah's reader writes (1,) where it means a number


def differentiated(out: torch.Tensor, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return, for each input, the derivatives of a random combination of each coordinate over the particles."""
    rows = [
        torch.autograd.grad(value, inputs, retain_graph=True, materialize_grads=True) for value in WEIGHTS @ out[:, :6]
    ]
    return [torch.stack(column) for column in zip(*rows, strict=True)]


class Comparison:
    """Coordinates at the end and their derivatives, ours beside Cheetah's."""

    def __init__(self, model: CheetahModel, segment: cheetah.Segment, values: Values) -> None:
        self.names, self.values = list(values), values
        results = []
        for track in (lambda *given: ours(model, *given), lambda *given: raw(segment, *given)):
            leaves = {name: value.clone().requires_grad_() for name, value in values.items()}
            coordinates = particles().requires_grad_()
            out = track(leaves, coordinates)
            results.append((out.detach(), differentiated(out, [*leaves.values(), coordinates])))
        (self.ours, mine), (self.theirs, theirs) = results
        self.size = self.theirs.abs().amax(0)[:6]
        self.mine = dict(zip(self.names, mine, strict=False))
        self.raw = dict(zip(self.names, theirs, strict=False))
        self.to_particles = mine[-1][..., :6] * SIZES, theirs[-1][..., :6] * SIZES

    def floor(self, name: str) -> torch.Tensor:
        """Return the round-off of a derivative; arrival times count from the start of the line."""
        attribute = name.rpartition(".")[2]
        found = 1e-12 * self.size / SCALES[attribute]
        found[4] += 1e-14 if attribute == "length" else 0.0
        return found

    def assert_close(self, name: str, expected: torch.Tensor, noise: float = 0.0) -> None:
        floor = self.floor(name) + noise * self.size / SCALES[name.rpartition(".")[2]]
        off = (self.mine[name] - expected).abs() - 1e-8 * expected.abs() - floor
        worst = int(off.argmax())
        assert off[worst] <= 0.0, (
            f"d {COORDINATES[worst]} / d {name}: {self.mine[name][worst].item():.12g}, "
            f"expected {expected[worst].item():.12g}"
        )


STENCIL = torch.tensor((-4.0, -3.0, -2.0, -1.0, 1.0, 2.0, 3.0, 4.0), dtype=F64)
DIFFERENCE = torch.tensor((1 / 280, -4 / 105, 1 / 5, -4 / 5, 4 / 5, -1 / 5, 4 / 105, -1 / 280), dtype=F64)


def difference(segment: cheetah.Segment, values: Values, name: str) -> torch.Tensor:
    """Return the derivatives to one number by eighth-order differences of Cheetah's coordinates."""
    step = 0.01 * SCALES[name.rpartition(".")[2]]
    out = raw(segment, {**values, name: values[name] + step * STENCIL}, particles())
    return DIFFERENCE @ (WEIGHTS @ out[..., :6]) / step


@pytest.mark.parametrize("setting", SETTINGS)
def test_derivatives_equal_cheetahs(model: CheetahModel, segment: cheetah.Segment, setting: str) -> None:
    """Every coordinate at the end to every number and every particle; values to 1e-10, derivatives to 1e-8."""
    both = Comparison(model, segment, settings_of(model, segment, setting))
    assert ((both.ours - both.theirs).abs().amax(0)[:6] <= 1e-10 * both.size).all()
    assert len(both.names) > 300
    for name in both.names:
        if bool(both.raw[name].isfinite().all()):
            both.assert_close(name, both.raw[name])
        else:  # Cheetah's own derivative is NaN at zero gradient
            assert name.endswith(".k1")
            assert both.values[name] == 0.0
            both.assert_close(name, difference(segment, both.values, name), noise=1e-10)
    mine, theirs = both.to_particles
    largest = theirs.abs().amax((-2, -1), keepdim=True)
    assert ((mine - theirs).abs() <= 1e-8 * largest).all()


def test_derivatives_at_the_files_own_settings(model: CheetahModel, segment: cheetah.Segment) -> None:
    """Where every strength is zero: Cheetah's autograd where it is a number, and differences where it is not."""
    both = Comparison(model, segment, values_of(model, segment))
    assert ((both.ours - both.theirs).abs().amax(0)[:6] <= 1e-10 * both.size).all()
    broken = [name for name in both.names if not bool(both.raw[name].isfinite().all())]
    assert len(broken) > 30
    assert {name.rpartition(".")[2] for name in broken} >= {"k1", "angle"}
    for name in both.names:
        assert bool(both.mine[name].isfinite().all())
        if name not in broken:
            both.assert_close(name, both.raw[name])
    # A cavity's second-order terms begin with a jump at the first volt: no difference across it means anything.
    cavities = {e.name for e in segment.elements if type(e).__name__ == "Cavity"}
    for name in [name for name in broken if name.rpartition(".")[0] not in cavities][::3]:
        both.assert_close(name, difference(segment, both.values, name), noise=1e-10)
    mine, theirs = both.to_particles
    assert ((mine - theirs).abs() <= 1e-8 * theirs.abs().amax((-2, -1), keepdim=True)).all()


def test_vmap_of_a_gradient_equals_a_loop(segment: cheetah.Segment) -> None:
    """Over every number of the line at once, at three settings, one of which has every strength at zero."""
    outputs = ["final.sigma_x", "final.sigma_y", "final.mean_x", "final.mean_y", "final.sigma_t", "final.mean_energy"]
    model = CheetahModel(segment, beam_of(particles()), outputs=outputs)
    settings = [values_of(model, segment), *(settings_of(model, segment, name) for name in ("random-1", "off-crest"))]
    names = list(settings[0])
    points = torch.stack([torch.stack([values[name] for name in names]) for values in settings])
    units = torch.tensor((1e-3, 1e-3, 1e-3, 1e-3, 1e-12, 1e7), dtype=F64)

    def total(point: torch.Tensor) -> torch.Tensor:
        found = model(dict(zip(names, point.unbind(), strict=True)), outputs=outputs)
        return torch.stack([found[name] for name in outputs]) @ (1.0 / units)

    scales = torch.tensor([SCALES[name.rpartition(".")[2]] for name in names], dtype=F64)
    mapped = torch.func.vmap(torch.func.grad(total))(points) * scales
    assert bool(mapped.isfinite().all())
    for point, found in zip(points, mapped, strict=True):
        leaf = point.clone().requires_grad_()
        (expected,) = torch.autograd.grad(total(leaf), leaf)
        assert ((found - expected * scales).abs() <= 1e-9 * (expected * scales).abs().max()).all()
