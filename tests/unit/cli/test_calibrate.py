"""``lume-diff calibrate`` on a small line: what it writes, what it resumes, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import yaml
from typer.testing import Result

from lume_diff.calibration.data.screens import ScreenDataset
from lume_diff.cli.calibrate import EXAMPLE
from lume_diff.models import BunchFromMoments, CheetahModel
from tests.unit.cli.commands import assert_fault_is_named, assert_no_configuration_is_refused, invoke

PIXEL = 2e-4
ELEMENTS = {
    "Q1": ["Quadrupole", {"length": 0.1, "k1": 0.0}],
    "D1": ["Drift", {"length": 1.5}],
    "SCR1": ["Screen", {"resolution": [40, 40], "pixel_size": [PIXEL, PIXEL], "is_active": True}],
}
K1 = np.linspace(-8.0, 8.0, 5)
CONFIG = """\
model:
  lattice: line.json
  beam: beam.h5
data:
  - {file: scan.npz, screen: SCR1.image, settings: {k1: Q1.k1}, pixel_size: 0.2 mm, noise: 2.0}
parameters:
  - {kind: scale, inputs: Q1.k1, prior: {kind: normal, mean: 1.0, std: 0.03}}
  - {kind: offset, inputs: SCR1.misalignment_x, unit: m, prior: {kind: normal, mean: 0, std: 1e-3}}
likelihood: moments
"""


def write_files(folder: Path) -> Path:
    """Write a lattice, a beam, images of a machine that is off, and a configuration."""
    twiss = {"beta_x": 8.0, "norm_emit_x": 8e-6, "beta_y": 6.0, "norm_emit_y": 8e-6}
    bunch = BunchFromMoments(500, mean_energy=1e8, sigma_energy=1e4, sigma_t=1e-12, charge=1e-10, **twiss)
    bunch.get("final_particles").to_openpmd(folder / "beam.h5")
    text = json.dumps({"root": "line", "elements": ELEMENTS, "lattices": {"line": list(ELEMENTS)}})
    (folder / "line.json").write_text(text)
    machine = CheetahModel.from_file(folder / "line.json", folder / "beam.h5")
    inputs = {"Q1.k1": torch.tensor(1.03 * K1), "SCR1.misalignment_x": torch.tensor(4e-4, dtype=torch.float64)}
    light = machine(inputs, outputs=["SCR1.image"])["SCR1.image"].numpy()
    images = 1000.0 * light / light.max() + np.random.default_rng(0).normal(0.0, 2.0, light.shape)
    np.savez(folder / "scan.npz", k1=K1, images=images)
    (folder / "fit.yaml").write_text(CONFIG)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_files(tmp_path)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    """Return a folder with a fit in it, and what the command said; the checkpoint is kept beside it."""
    folder = write_files(tmp_path_factory.mktemp("fitted"))
    return folder, calibrate(folder / "fit.yaml", "--out", folder / "result", "--checkpoint", folder / "fit.ckpt")


def calibrate(*arguments: object) -> Result:
    return invoke("calibrate", *arguments)


def test_errors_are_found_and_written(fitted: tuple[Path, Result]) -> None:
    folder, done = fitted
    assert done.exit_code == 0, done.stderr
    assert "scale of Q1.k1" in done.stdout
    known = yaml.safe_load((folder / "result" / "result.yaml").read_text(encoding="utf-8"))
    found = {p["name"]: (p["value"], p["standard_error"]) for p in known["parameters"]}
    for name, truth in (("scale of Q1.k1", 1.03), ("offset of SCR1.misalignment_x", 4e-4)):
        value, error = found[name]
        assert abs(value - truth) < 4.0 * error, name
    with h5py.File(folder / "result" / "result.h5") as file:
        assert file["values"][:].tolist() == [value for value, _ in found.values()]
        assert len(file["residuals"]) > len(K1)
    assert (folder / "result" / "result.png").read_bytes().startswith(b"\x89PNG")
    page = (folder / "result" / "report.html").read_text(encoding="utf-8")
    assert "scale of Q1.k1" in page
    assert "data:image/png;base64," in page
    assert "http" not in page  # one page that needs nothing else
    again = calibrate(folder / "fit.yaml", "--out", folder / "again", "--checkpoint", folder / "fit.ckpt")
    assert " 0 evaluations, 0 simulator runs" in again.stdout
    resumed = yaml.safe_load((folder / "again" / "result.yaml").read_text(encoding="utf-8"))
    assert resumed["parameters"] == known["parameters"]


def test_own_files_and_a_function_do_too(fitted: tuple[Path, Result]) -> None:
    folder, _ = fitted
    arrays = np.load(folder / "scan.npz")
    ScreenDataset({"Q1.k1": K1}, arrays["images"], "SCR1.image", PIXEL, noise=2.0).to_npz(folder / "own.npz")
    (folder / "machine.py").write_text(
        "from lume_diff.models import CheetahModel\n"
        f"def make():\n    return CheetahModel.from_file({str(folder / 'line.json')!r}, {str(folder / 'beam.h5')!r})\n"
    )
    config = yaml.safe_load(CONFIG)
    config["model"], config["data"] = {"entry": "machine.py:make"}, [{"file": "own.npz"}]
    (folder / "own.yaml").write_text(yaml.safe_dump(config))
    assert calibrate(folder / "own.yaml", "--out", folder / "own").exit_code == 0
    files = (folder / name / "result.yaml" for name in ("result", "own"))
    first, second = (yaml.safe_load(file.read_text(encoding="utf-8"))["coordinates"] for file in files)
    assert first == second


def test_example_is_a_configuration(tmp_path: Path) -> None:
    from lume_diff.calibration.fit.configuration import CalibrationConfig
    from lume_diff.calibration.fit.yaml_files import read_config

    assert calibrate("--example").stdout == EXAMPLE
    (tmp_path / "fit.yaml").write_text(EXAMPLE)
    assert len(read_config(tmp_path / "fit.yaml", CalibrationConfig).parameters) == 2


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("likelihood:", "likelyhood:", r"line 9: likelyhood: is not known here; nearest: 'likelihood'"),
        (
            "std: 0.03",
            "sdt: 0.03",
            r"line 7: parameters\[0\]\.prior\.std: is missing: add it; .*nearest: 'std'",
        ),
        ("std: 0.03", "std: wide", r"line 7: parameters\[0\]\.prior\.std: is 'wide': input should be a valid number"),
        ("kind: scale", "kind: factor", r"line 7: parameters\[0\]: kind is 'factor'; expected 'scale', 'offset'"),
        ("  beam: beam.h5\n", "", r"line 1: model: give 'lattice' and 'beam', or 'machine' or 'entry' instead"),
        ("file: scan.npz", "file: other.npz", r"data file .*other\.npz' does not exist"),
        (
            "screen: SCR1.image",
            "outputs: {a: b}",
            r"line 5: data\[0\]: 'pixel_size' is for images, but 'outputs' makes",
        ),
        ("noise: 2.0", "sigma: {SCR1.image: 2.0}", r"line 5: data\[0\]: 'sigma' is for numbers.*give 'noise'"),
        ("scan.npz", "scan.csv", r"line 5: data\[0\]: a CSV file holds numbers: give 'outputs'"),
        ("scan.npz, screen: SCR1.image, settings: {k1: Q1.k1}", "scan.csv", r"data\[0\]: a CSV file needs 'settings'"),
        ("scan.npz, screen: SCR1.image", "scan.csv", r"data\[0\]: 'pixel_size' is for images, but a CSV file holds"),
        ("inputs: Q1.k1", "inputs: Q9.k1", r"'Q9\.k1'.*nearest: 'Q1\.k1'"),
        ("unit: m", "unit: mm", r"'SCR1\.misalignment_x' is in 'm'"),
        ("likelihood: moments", "likelihood: moment", r"'moment' is none of the likelihoods.*'moments'"),
        ("std: 0.03", "std: -0.03", r"std of Normal is -0\.03; expected a positive number"),
        ("{kind: scale", "[kind: scale", r"is no YAML: .*line 7"),
    ],
)
def test_faults_are_named(folder: Path, old: str, new: str, message: str) -> None:
    assert_fault_is_named("calibrate", folder / "fit.yaml", old, new, message)


def test_no_configuration_is_refused(tmp_path: Path) -> None:
    assert_no_configuration_is_refused("calibrate", tmp_path)
