"""A whole machine: the ARES linac with random settings, against raw Cheetah at every tenth element."""

from __future__ import annotations

import warnings
from pathlib import Path

import cheetah
import pytest
import torch

from lume_diff import CheetahModel

F64 = torch.float64


def t(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=F64)


@pytest.fixture(scope="module")
def segment(shared_data: Path) -> cheetah.Segment:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return cheetah.Segment.from_nx_tables(shared_data / "ares_stage4_nxtables.csv").to(F64)


@pytest.fixture(scope="module")
def beam() -> cheetah.ParticleBeam:
    return cheetah.ParticleBeam.from_parameters(
        num_particles=300,
        energy=t(6e6),
        sigma_x=t(2e-4),
        sigma_y=t(3e-4),
        sigma_px=t(1e-5),
        sigma_py=t(2e-5),
        sigma_tau=t(3e-4),
        sigma_p=t(1e-3),
        total_charge=t(1e-11),
        dtype=F64,
    )


def random_settings(segment: cheetah.Segment, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Return settings of every quadrupole, corrector, cavity and bend."""

    def draw(size: float) -> torch.Tensor:
        return size * (2.0 * torch.rand((), generator=generator, dtype=F64) - 1.0)

    settings = {}
    for element in segment.elements:
        match type(element).__name__:
            case "Quadrupole":
                settings[f"{element.name}.k1"] = draw(8.0)
            case "HorizontalCorrector" | "VerticalCorrector":
                settings[f"{element.name}.angle"] = draw(2e-4)
            case "Cavity":
                settings[f"{element.name}.voltage"] = 2e7 + draw(1e6)
                settings[f"{element.name}.phase"] = draw(10.0)
                settings[f"{element.name}.frequency"] = t(2.9985e9)
            case "Dipole" | "RBend":
                settings[f"{element.name}.angle"] = draw(2e-3)
    return settings


@pytest.mark.parametrize("seed", [1, 2])
def test_the_line_equals_raw_cheetah(segment: cheetah.Segment, beam: cheetah.ParticleBeam, seed: int) -> None:
    settings = random_settings(segment, torch.Generator().manual_seed(seed))
    kinds = {type(element).__name__ for element in segment.elements}
    assert {"Quadrupole", "Cavity", "HorizontalCorrector", "Screen", "BPM", "Aperture"} <= kinds
    places = [*range(9, len(segment.elements), 10), len(segment.elements) - 1]
    outputs = [f"{segment.elements[place].name}.particles" for place in places]
    model = CheetahModel(segment, beam, outputs=outputs)
    found = model(settings, outputs=outputs)

    raw = segment.clone()
    for name, value in settings.items():
        element, attribute = name.split(".")
        setattr(getattr(raw, element), attribute, value)
    bunch, start = beam, 0
    for place, output in zip(places, outputs, strict=True):
        bunch = cheetah.Segment(list(raw.elements[start : place + 1])).track(bunch)
        start = place + 1
        mine = found[output].to_cheetah()
        expected = bunch.particles.reshape(-1, 7)  # Cheetah's reader writes (1,) where it means a number
        size = expected.abs().amax(0)
        worst = ((mine.particles - expected).abs().amax(0) / size).max().item()
        assert worst <= 1e-10, f"{output} is off by {worst:.2g} of the largest coordinate"
        torch.testing.assert_close(mine.energy, bunch.energy.reshape(()), rtol=1e-13, atol=0.0)
        torch.testing.assert_close(mine.s, bunch.s.reshape(()), rtol=1e-12, atol=0.0)
    assert bunch.energy > 2e7
    again = model(settings, outputs=outputs[-1:])[outputs[-1]]
    torch.testing.assert_close(again.x, found[outputs[-1]].x, rtol=1e-10, atol=1e-16)


def test_gradients_along_the_line_are_finite_and_right(segment: cheetah.Segment, beam: cheetah.ParticleBeam) -> None:
    """At the file's own settings, where everything is zero, with respect to every knob at once."""
    model = CheetahModel(segment, beam, outputs=["final.sigma_x", "final.sigma_y"])
    values = {name: model.get(name) for name in model.input_names if "." in name and not name.endswith(".is_active")}
    leaves = {name: value.clone().requires_grad_() for name, value in values.items() if value is not None}
    knobs = list(leaves)
    out = model(leaves, outputs=["final.sigma_x", "final.sigma_y"])
    for output in ("final.sigma_x", "final.sigma_y"):
        gradients = torch.autograd.grad(out[output], list(leaves.values()), allow_unused=True, retain_graph=True)
        found = dict(zip(knobs, gradients, strict=True))
        assert not [name for name, g in found.items() if g is not None and not bool(g.isfinite())]
        quadrupoles = [name for name in knobs if name.endswith(".k1")][::4]
        for name in quadrupoles:
            with torch.no_grad():
                high, low = (model({name: leaves[name] + h}, outputs=[output])[output] for h in (1e-3, -1e-3))
            difference = ((high - low) / 2e-3).item()
            natural = abs(out[output].item())
            assert found[name].item() == pytest.approx(difference, rel=1e-5, abs=1e-8 * natural)
