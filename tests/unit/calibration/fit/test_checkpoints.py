"""Checkpoints: what was kept is used for the same model only."""

from __future__ import annotations

from pathlib import Path

import cheetah
import numpy as np
import pytest
import torch

import lume_diff as ld
from lume_diff.calibration import (
    BeamMomentum,
    BeamReconstruction,
    Calibration,
    Dataset,
    Moments,
    Normal,
    Scale,
    ScreenDataset,
)
from lume_diff.errors import ValidationError

PIXEL = 2e-4
K1 = np.linspace(-8.0, 8.0, 4)
TWISS = {"beta_x": 8.0, "norm_emit_x": 4e-6, "beta_y": 6.0, "norm_emit_y": 4e-6, "mean_energy": 1e8, "charge": 1e-10}


def line(beam: ld.TorchParticleGroup, drift: float = 1.5) -> ld.CheetahModel:
    """Return a quadrupole, a drift that is no input, and a screen."""

    def number(value: float) -> torch.Tensor:
        return torch.tensor(value, dtype=torch.float64)

    segment = cheetah.Segment(
        [
            cheetah.Quadrupole(number(0.1), number(0.0), name="Q1", dtype=torch.float64),
            cheetah.Drift(number(drift), name="D1", dtype=torch.float64),
            cheetah.Screen((30, 30), torch.tensor([PIXEL, PIXEL]), is_active=True, name="SCR1", dtype=torch.float64),
        ],
        name="line",
    )
    return ld.CheetahModel(segment, beam, controls=["Q1.k1"], outputs=["SCR1.image"])


def gun(count: int = 200, seed: int = 0) -> ld.BunchFromMoments:
    return ld.BunchFromMoments(count, seed, sigma_energy=1e4, sigma_t=1e-12, **TWISS)


def start() -> ld.TorchParticleGroup:
    return gun().get("final_particles")


def chain(count: int = 200, seed: int = 0, drift: float = 1.5) -> ld.StagedModel:
    return ld.StagedModel({"gun": gun(count, seed), "line": line(start(), drift)})


@pytest.fixture(scope="module")
def scan() -> ScreenDataset:
    images = chain()({"Q1.k1": torch.tensor(1.03 * K1)}, outputs=["SCR1.image"])["SCR1.image"].numpy()
    return ScreenDataset({"Q1.k1": K1}, 1000.0 * images / images.max(), "SCR1.image", PIXEL, noise=2.0)


@pytest.mark.parametrize(
    "changes, used",
    [({}, True), ({"count": 300}, False), ({"seed": 1}, False), ({"drift": 1.52}, False)],
    ids=["unchanged", "particles", "seed", "drift"],
)
def test_calibration_uses_what_its_own_model_gave(
    scan: ScreenDataset, tmp_path: Path, changes: dict[str, float], used: bool
) -> None:
    def fit(model: ld.LUMEModel, checkpoint: Path) -> ld.calibration.CalibrationResult:
        task = Calibration(model, scan, [Scale("Q1.k1", Normal(1.0, 0.05))], Moments())
        return task.run(checkpoint=checkpoint, progress=False)

    file = tmp_path / "fit.ckpt"
    fit(chain(), file)
    found, fresh = fit(chain(**changes), file), fit(chain(**changes), tmp_path / "other.ckpt")
    assert found.values == fresh.values
    assert (found.evaluations, found.runs) == ((0, 0) if used else (fresh.evaluations, fresh.runs))


def test_calibration_uses_what_parameters_of_the_same_inputs_gave(tmp_path: Path) -> None:
    variable = ld.TorchScalarVariable
    inputs = [variable(name="a", default_value=1.0), variable(name="b", default_value=1.0)]
    model = ld.TorchModel(torch.nn.Linear(2, 1), inputs, [variable(name="y", read_only=True)])
    data = Dataset({"a": [1.0, 2.0], "b": [2.0, 1.0]}, {"y": [0.5, -1.0]}, sigma={"y": 0.1})

    def fit(strengths: list[str], checkpoint: Path) -> ld.calibration.CalibrationResult:
        task = Calibration(model, data, [BeamMomentum(strengths, Normal(1.0, 0.2))])
        return task.run(checkpoint=checkpoint, progress=False)

    fit(["a"], tmp_path / "fit.ckpt")
    found, fresh = fit(["a", "b"], tmp_path / "fit.ckpt"), fit(["a", "b"], tmp_path / "other.ckpt")
    assert found.values == fresh.values
    assert found.evaluations == fresh.evaluations > 0


def test_calibration_uses_what_the_same_code_gave(tmp_path: Path) -> None:
    def fit(power: int) -> tuple[float, int]:
        variable = ld.TorchScalarVariable
        model = ld.BlackBoxModel.from_function(
            lambda a: a**power, [variable(name="a", default_value=1.0)], [variable(name="y")]
        )
        settings = np.linspace(1.0, 2.0, 5)
        data = Dataset({"a": settings}, {"y": (1.1 * settings) ** power}, sigma={"y": 1e-3})
        task = Calibration(model, data, [Scale("a", Normal(1.0, 0.2))])
        found = task.run(checkpoint=tmp_path / "fit.ckpt", progress=False)
        return found.values["scale of a"], found.runs

    first, runs = fit(2)
    assert runs > 0
    assert fit(2) == (first, 0)
    assert fit(3)[1] > 0


@pytest.mark.parametrize("drift", [1.5, 1.52])
def test_reconstruction_goes_on_with_its_own_model_only(scan: ScreenDataset, tmp_path: Path, drift: float) -> None:
    file = tmp_path / "fit.ckpt"
    scale = [5e-4, 1e-4, 5e-4, 1e-4]
    BeamReconstruction(line(start()), scan, 200, scale=scale).run(2, progress=False, checkpoint=file)
    other = BeamReconstruction(line(start(), drift), scan, 200, scale=scale)
    if drift == 1.5:
        assert other.run(2, progress=False, checkpoint=file).finished
    else:
        with pytest.raises(ValidationError, match=r"fit\.ckpt' is of a fit with another model.*name another file"):
            other.run(2, progress=False, checkpoint=file)
