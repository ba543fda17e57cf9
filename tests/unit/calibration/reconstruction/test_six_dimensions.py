"""Six dimensions from several screens: a cavity that streaks, and a dipole that sends the beam to another screen."""

from __future__ import annotations

import math
from pathlib import Path

import cheetah
import numpy as np
import pytest
import torch

import lume_diff as ld
from lume_diff.calibration import BeamReconstruction, Reconstruction, ScreenDataset
from lume_diff.errors import UnknownVariableError

D = torch.float64
PIXEL = 4e-4
K1 = [-6.0, 0.0, 6.0]
VOLTAGE = 4e6
CHIRP = 8.0


def number(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=D)


def chirped_bunch(count: int = 5000) -> cheetah.ParticleBeam:
    """Return a bunch whose energy follows its time."""
    generator = torch.Generator().manual_seed(7)
    particles = torch.randn(count, 7, dtype=D, generator=generator)
    particles[:, :4] *= torch.tensor([4e-4, 2e-4, 5e-4, 2e-4], dtype=D)
    particles[:, 4] *= 3e-4
    particles[:, 5] = 2e-3 * particles[:, 5] + CHIRP * particles[:, 4]
    particles[:, 6] = 1.0
    charges = torch.full((count,), 1e-10 / count, dtype=D)
    return cheetah.ParticleBeam(particles, number(5e7), particle_charges=charges, dtype=D)


def design_beam() -> cheetah.ParticleBeam:
    names = ("sigma_x", "sigma_px", "sigma_y", "sigma_py", "sigma_tau", "sigma_p")
    sizes = dict(zip(names, map(number, (1e-3, 1e-4, 1e-3, 1e-4, 2e-4, 3e-3)), strict=True))
    torch.manual_seed(5)
    return cheetah.ParticleBeam.from_parameters(
        num_particles=1000, energy=number(5e7), total_charge=number(1e-10), dtype=D, **sizes
    )


def model(beam: cheetah.ParticleBeam) -> ld.CheetahModel:
    """Return a line with a screen before and one behind a dipole that can be switched."""
    pixels = torch.tensor([PIXEL, PIXEL], dtype=D)
    parts = [
        cheetah.Quadrupole(number(0.1), number(0.0), name="Q1", dtype=D),
        cheetah.TransverseDeflectingCavity(
            number(0.2), voltage=number(0.0), frequency=number(3e9), tilt=number(math.pi / 2), name="TDC1", dtype=D
        ),
        cheetah.Drift(number(0.8), name="D1", dtype=D),
        cheetah.Screen((40, 40), pixels, is_active=True, name="SCR1", dtype=D),
        cheetah.Dipole(number(0.3), angle=number(0.0), name="B1", dtype=D),
        cheetah.Drift(number(1.0), name="D2", dtype=D),
        cheetah.Screen((60, 40), pixels, is_active=True, name="SCR2", dtype=D),
    ]
    controls = ["Q1.k1", "TDC1.voltage", "B1.angle"]
    return ld.CheetahModel(
        cheetah.Segment(parts, name="line"), beam, controls=controls, outputs=["SCR1.image", "SCR2.image"], dtype=D
    )


def measured(screen: str, angle: float) -> ScreenDataset:
    """Return a quadrupole scan with the cavity off and on."""
    settings = {"Q1.k1": K1 * 2, "TDC1.voltage": [0.0] * 3 + [VOLTAGE] * 3, "B1.angle": [angle] * 6}
    inputs = {name: torch.tensor(values, dtype=D) for name, values in settings.items()}
    images = model(chirped_bunch())(inputs, outputs=[screen])[screen].numpy()
    return ScreenDataset(settings, 1000.0 * images / images.max(), screen, PIXEL)


@pytest.fixture(scope="module")
def data() -> list[ScreenDataset]:
    return [measured("SCR1.image", 0.0), measured("SCR2.image", 0.5)]


@pytest.fixture(scope="module")
def found(data: list[ScreenDataset]) -> Reconstruction:
    task = BeamReconstruction(model(design_beam()), data, 1000, dimensions=6)
    return task.run(150, ensemble=1, progress=False)


@pytest.mark.slow
def test_length_energy_spread_and_chirp_are_found(found: Reconstruction) -> None:
    truth = ld.TorchParticleGroup.from_cheetah(chirped_bunch())
    for name in ("sigma_t", "sigma_energy", "sigma_x", "sigma_y"):
        value = found.statistic(name)[0]
        print(f"{name}: {value}, true {float(truth[name])}")
        assert value == pytest.approx(float(truth[name]), rel=0.15), name
    both = [float(b["cov_t__energy"] / (b["sigma_t"] * b["sigma_energy"])) for b in (found.beam, truth)]
    print(f"correlation: {both[0]}, true {both[1]}")
    assert both[0] == pytest.approx(both[1], abs=0.15)
    assert len(found.fit.image) == 12


@pytest.mark.slow
def test_screens_are_told_apart(found: Reconstruction, data: list[ScreenDataset], tmp_path: Path) -> None:
    settings = {"Q1.k1": 1.0, "TDC1.voltage": VOLTAGE, "B1.angle": 0.5}
    assert found.predict(settings, 2000, screen="SCR2.image").shape == (1, 40, 60)
    assert found.predict(data[1], 2000).shape == (6, 40, 60)
    assert float(found.evaluate(data[1], 20_000).image.mean()) < 0.5
    with pytest.raises(UnknownVariableError, match=r"'SCR3\.image'.*SCR"):
        found.predict(settings, 2000, screen="SCR3.image")
    found.plot(tmp_path / "bunch.png", 2000)
    found.save(tmp_path / "bunch.yaml")
    known = Reconstruction.load(tmp_path / "bunch.yaml")
    assert [part["screen"] for part in known["data"]] == ["SCR1.image", "SCR2.image"]
    assert known["data"][1]["settings"]["B1.angle"] == [0.5] * 6


def test_each_of_several_data_sets_may_have_one_setting(data: list[ScreenDataset]) -> None:
    task = BeamReconstruction(model(design_beam()), [data[0][[1]], data[1][[4]]], 300)
    result = task.run(2, ensemble=1, progress=False)
    assert np.isfinite(result.fit.image.numpy()).all()
    assert len(result.fit.image) == 2
