"""What a user may get wrong: fits and reconstructions name it, and say what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cheetah
import numpy as np
import pytest
import torch

import lume_diff as ld
from lume_diff.calibration import BeamReconstruction, Calibration, Dataset, Normal, Scale, ScreenDataset
from lume_diff.errors import CalibrationError, LumeDiffError, ShapeError, UnitError, ValidationError

PIXEL = 2e-4
K1 = np.linspace(-8.0, 8.0, 4)
TWISS = {"beta_x": 8.0, "norm_emit_x": 4e-6, "beta_y": 6.0, "norm_emit_y": 4e-6, "mean_energy": 1e8, "charge": 1e-10}


def number(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


@pytest.fixture(scope="module")
def model() -> ld.CheetahModel:
    """A line whose pixel size is no input."""
    bunch = ld.BunchFromMoments(200, sigma_energy=1e4, sigma_t=1e-12, **TWISS).get("final_particles")
    segment = cheetah.Segment(
        [
            cheetah.Quadrupole(number(0.1), number(0.0), name="Q1", dtype=torch.float64),
            cheetah.Drift(number(1.5), name="D1", dtype=torch.float64),
            cheetah.Screen((30, 24), torch.tensor([PIXEL, PIXEL]), is_active=True, name="SCR1", dtype=torch.float64),
        ],
        name="line",
    )
    return ld.CheetahModel(segment, bunch, controls=["Q1.k1"], outputs=["SCR1.image", "final.sigma_x"])


@pytest.fixture(scope="module")
def images(model: ld.CheetahModel) -> np.ndarray:
    light = model({"Q1.k1": torch.tensor(K1)}, outputs=["SCR1.image"])["SCR1.image"].numpy()
    return 1000.0 * light / light.max() + np.random.default_rng(0).normal(0.0, 2.0, light.shape)


def screens(images: Any, k1: Any = K1, pixel_size: Any = PIXEL, **options: Any) -> ScreenDataset:
    return ScreenDataset({"Q1.k1": k1}, images, "SCR1.image", pixel_size, **options)


def with_nan(images: np.ndarray) -> np.ndarray:
    found = images.copy()
    found[1, 3, 4] = np.nan
    return found


CASES: dict[str, tuple[Callable[[np.ndarray], Any], type[LumeDiffError], str]] = {
    "black": (lambda i: screens(0.0 * i), ValidationError, "all 4 images are black.*check camera"),
    "black but flagged": (lambda i: screens(0.0 * i, black="flag"), ValidationError, "all 4 images are black"),
    "one black": (lambda i: screens(i * [[[1]], [[1]], [[0]], [[1]]]), ValidationError, "setting 2 is black.*leave"),
    "one colour": (lambda i: screens(0.0 * i + 1.0), ValidationError, "of one colour"),
    "no beam": (lambda i: screens(i, has_beam=0 * K1), CalibrationError, "show.* the beam.*with_beam"),
    "NaN": (lambda i: screens(with_nan(i)), ValidationError, "1 pixels are not finite, in setting 1.*nan='mask'"),
    "one setting": (lambda i: screens(i[:1], K1[:1]), CalibrationError, "1 of 1 settings .*needs 2.*add sett"),
    "one with a beam": (lambda i: screens(i, has_beam=[0, 1, 0, 0]), CalibrationError, "1 of 4 settings .*with_beam"),
    "fewer settings": (lambda i: screens(i, K1[:3]), ShapeError, "'Q1.k1' has 3 values, expected 4"),
    "single image": (lambda i: screens(i[0], K1[:1]), ShapeError, r"images have shape \(24, 30\), expected"),
    "other resolution": (lambda i: screens(i[:, :20]), ShapeError, r"\(24, 30\) in the model and \(20, 30\).*give"),
    "pixels in mm": (lambda i: screens(i, pixel_size=0.2), ValidationError, "if it is in mm, give pixel_size='0.2 mm'"),
    "pixels in um": (lambda i: screens(i, pixel_size=200), ValidationError, "if it is in um, give pixel_size='200 um'"),
    "pixels of mm": (lambda i: screens(i, pixel_size="200 mm"), ValidationError, "6 m wide; there is none: check"),
    "pixels of ms": (lambda i: screens(i, pixel_size="200 ms"), UnitError, "give a length, such as '125 um'"),
    "pixels of a wrong factor": (lambda i: screens(i, pixel_size="2 mm"), ValidationError, "0.0002 m .* 0.002 m"),
    "pixels of nothing": (lambda i: screens(i, pixel_size=None), ValidationError, "received None, expected the size"),
    "unit of a setting": (lambda i: screens(i, units={"Q1.k1": "T"}), UnitError, "'Q1.k1': cannot convert from 'T'"),
    "array": (lambda i: i, ValidationError, "received a ndarray, expected a ScreenDataset"),
    "file": (lambda i: "scan.npz", ValidationError, "received 'scan.npz', expected.*from_npz"),
    "no data": (lambda i: [], ValidationError, "data is empty"),
}


def calibrate(model: ld.LUMEModel, data: Any) -> object:
    return Calibration(model, data, [Scale("Q1.k1", Normal(1.0, 0.02))])


def reconstruct(model: ld.LUMEModel, data: Any) -> object:
    return BeamReconstruction(model, data, 200)


@pytest.mark.parametrize("fit", [calibrate, reconstruct], ids=["calibration", "reconstruction"])
@pytest.mark.parametrize("case", CASES)
def test_wrong_data_are_named(
    model: ld.CheetahModel, images: np.ndarray, case: str, fit: Callable[[ld.LUMEModel, Any], object]
) -> None:
    make, error, message = CASES[case]
    with pytest.raises(error, match=message):
        fit(model, make(images))


def test_same_setting_again_is_no_scan(model: ld.CheetahModel, images: np.ndarray) -> None:
    with pytest.raises(CalibrationError, match="1 of 4 settings differ and show the beam, a reconstruction needs 2"):
        reconstruct(model, screens(images, 0 * K1))


def test_numbers_are_no_images(model: ld.CheetahModel) -> None:
    data = Dataset({"Q1.k1": K1}, {"final.sigma_x": 1e-4 + 0.0 * K1}, sigma={"final.sigma_x": 1e-6})
    with pytest.raises(ValidationError, match=r"data of final\.sigma_x are numbers; a reconstruction needs images"):
        BeamReconstruction(model, data, 200)  # type: ignore[arg-type]
