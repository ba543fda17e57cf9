"""BeamReconstruction on a measured scan, and on a published synthetic one whose screen is blurred."""

from __future__ import annotations

from pathlib import Path

import cheetah
import numpy as np
import pytest
import torch

import lume_diff as ld
from lume_diff.calibration import BeamReconstruction, Blur, LogNormal, ScreenDataset

pytestmark = pytest.mark.slow

D = torch.float64


def number(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=D)


def scan_of(file: Path) -> tuple[ld.CheetahModel, ScreenDataset]:
    """Return quadrupole, drift and screen of a scan, and its images."""
    stored = np.load(file)
    images = stored["images"].astype(float)
    pixel, energy = float(stored["pixel_size_m"]), float(stored["energy_eV"])
    size = torch.tensor([pixel, pixel], dtype=D)
    segment = cheetah.Segment(
        [
            cheetah.Quadrupole(number(float(stored["quadrupole_length_m"])), number(0.0), name="Q1", dtype=D),
            cheetah.Drift(number(float(stored["drift_length_m"])), name="D1", dtype=D),
            cheetah.Screen((images.shape[-1], images.shape[-2]), size, is_active=True, name="SCR1", dtype=D),
        ],
        name="line",
    )
    sizes = {"sigma_x": 1e-3, "sigma_px": 1e-4, "sigma_y": 1e-3, "sigma_py": 1e-4, "sigma_tau": 1e-4, "sigma_p": 1e-3}
    beam = cheetah.ParticleBeam.from_parameters(
        num_particles=1000,
        energy=number(energy),
        total_charge=number(1e-9),
        dtype=D,
        **{name: number(value) for name, value in sizes.items()},
    )
    model = ld.CheetahModel(segment, beam, controls=["Q1.k1"], outputs=["SCR1.image"], dtype=D)
    return model, ScreenDataset({"Q1.k1": stored["k1"]}, images, "SCR1.image", pixel)


def test_measured_scan_predicts_settings_that_were_left_out(shared_data: Path) -> None:
    model, data = scan_of(shared_data / "awa_quad_scan.npz")
    fit, check = data.split(every=3)
    result = BeamReconstruction(model, fit, 10_000, seed=0).run(ensemble=1, progress=False)
    found = result.evaluate(check, n_particles=400_000)
    assert float(found.image.mean()) <= 0.26
    assert float(found.aligned.mean()) <= 0.15
    assert found.size_error <= 0.08


def test_measured_scan_decides_neither_strength_nor_orientation(shared_data: Path) -> None:
    model, data = scan_of(shared_data / "awa_quad_scan.npz")
    result = BeamReconstruction(model, data, 4000, seed=0).run(100, ensemble=1, check_ambiguity=True, progress=False)
    assert len(result.conditional_on) == 2
    assert "if the strength of Q1.k1 as given and the camera's orientation as given" in result.report()
    assert result.ambiguity is not None
    by_reading = {other.reading: other for other in result.ambiguity.alternatives}
    # The emittance goes as one over the strength.
    ratio = by_reading["settings × 0.7"].norm_emit_x / result.ambiguity.given.norm_emit_x
    assert ratio == pytest.approx(1.0 / 0.7, rel=0.15)


def test_blurred_scan_predicts_settings_that_were_left_out(shared_data: Path) -> None:
    model, data = scan_of(shared_data / "synthetic_quad_scan.npz")
    fit, check = data.split(every=3, offset=1)
    blur = Blur(LogNormal(0.5 * data.pixel_size[0], 2.0))
    result = BeamReconstruction(model, fit, 10_000, seed=0, parameters=[blur]).run(progress=False)
    found = result.evaluate(check, n_particles=400_000)
    assert float(found.image.mean()) <= 0.05
    assert found.size_error <= 0.03
    # The images were made with about a pixel of blur.
    assert result.statistic("screen blur")[0] == pytest.approx(1e-3, rel=0.2)
    known = emittances(shared_data / "synthetic_quad_scan.npz")
    for name, expected in zip(("norm_emit_x", "norm_emit_y"), known, strict=True):
        value, error = result.statistic(name)
        assert value == pytest.approx(expected, rel=0.1)
        assert abs(value - expected) < 3.0 * error
        assert error < 0.1 * value


def emittances(file: Path) -> list[float]:
    """Return the emittances [m] by the squares of sizes, less the spots of single particles, one pixel wide.

    Only settings whose images have no light at their edges count: there the squares are linear to 1e-7.
    """
    stored = np.load(file)
    pixel, gamma = float(stored["pixel_size_m"]), float(stored["energy_eV"]) / 510998.95
    images, k1 = stored["images"].astype(float), stored["k1"].astype(float)
    edge = np.concatenate([images[:, :2], images[:, -2:], images.mT[:, :2], images.mT[:, -2:]], 1).sum((1, 2))
    quiet = edge < 1e-6
    found = []
    for axis, sign in ((-2, 1.0), (-1, -1.0)):
        profile = images[quiet].sum(axis) / images[quiet].sum((-2, -1))[:, None]
        place = (np.arange(profile.shape[-1]) - 49.5) * pixel
        square = (profile * (place - (profile @ place)[:, None]) ** 2).sum(-1) - pixel**2
        root, length = np.emath.sqrt(sign * k1[quiet]), float(stored["quadrupole_length_m"])
        drift = float(stored["drift_length_m"])
        r11 = (np.cos(root * length) - drift * root * np.sin(root * length)).real
        r12 = (np.sin(root * length) / root + drift * np.cos(root * length)).real
        a, b, c = np.linalg.lstsq(np.stack([r11**2, 2 * r11 * r12, r12**2], -1), square, rcond=None)[0]
        found.append(float(np.sqrt((gamma**2 - 1.0) * (a * c - b**2))))
    return found
