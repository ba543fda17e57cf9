"""Machine files and calibrations: a fit of a machine from its file, and its result inside the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import lume_diff as ld
from lume_diff.calibration.fit.configuration import CalibrationConfig
from lume_diff.calibration.fit.yaml_files import read_config
from lume_diff.cli import app
from lume_diff.errors import ValidationError

K1 = np.linspace(-4.0, 4.0, 5)
FIT = """\
model: {machine: machine.yaml}
data:
  - file: scan.csv
    settings: {k1: Q1.k1}
    outputs: {size: SCR1.sigma_x, centre: SCR1.mean_x}
    sigma: {SCR1.sigma_x: 1.0e-7, SCR1.mean_x: 1.0e-6}
parameters:
  - {kind: scale, inputs: Q1.k1, prior: {kind: normal, mean: 1.0, std: 0.05}}
  - {kind: value, inputs: C1.angle, prior: {kind: normal, mean: 0.0, std: 1.0e-3}}
"""


@pytest.fixture
def fitted(folder: Path) -> Path:
    """Fit the machine to one whose quadrupole is 3 % too strong and whose corrector is off zero."""
    model = ld.load_model(folder / "machine.yaml")
    truth = {"Q1.k1": torch.tensor(1.03 * K1), "C1.angle": 2e-4}
    found = model(truth, outputs=["SCR1.sigma_x", "SCR1.mean_x"])
    rows = zip(K1.tolist(), found["SCR1.sigma_x"].tolist(), found["SCR1.mean_x"].tolist(), strict=True)
    text = "k1,size,centre\n" + "".join(f"{k1!r},{size!r},{centre!r}\n" for k1, size, centre in rows)
    (folder / "scan.csv").write_text(text)
    (folder / "fit.yaml").write_text(FIT)
    done = CliRunner().invoke(app, ["calibrate", str(folder / "fit.yaml"), "--out", str(folder / "out")])
    assert done.exit_code == 0, done.output
    return folder


def test_the_result_of_a_fit_acts_in_the_file(fitted: Path) -> None:
    text = (fitted / "machine.yaml").read_text()
    (fitted / "calibrated.yaml").write_text(text + "calibration: out/result.yaml\n")
    machine = ld.load_model(fitted / "calibrated.yaml")
    plain = ld.load_model(fitted / "machine.yaml")
    assert dict(machine.supported_variables).keys() == dict(plain.supported_variables).keys()
    np.testing.assert_allclose(float(machine.get("C1.angle")), 2e-4, rtol=1e-2)
    expected = plain({"Q1.k1": 1.03 * 2.0, "C1.angle": 2e-4}, outputs=["SCR1.sigma_x"])["SCR1.sigma_x"]
    np.testing.assert_allclose(float(machine.get("SCR1.sigma_x")), float(expected), rtol=1e-4)
    assert abs(float(plain.get("SCR1.sigma_x")) / float(expected) - 1.0) > 1e-3
    ld.save_model(machine, fitted / "again.yaml")
    assert float(ld.load_model(fitted / "again.yaml").get("SCR1.sigma_x")) == float(machine.get("SCR1.sigma_x"))


def test_it_acts_beneath_the_names_of_a_facility(fitted: Path) -> None:
    mapping = (
        'mapping: {variables: {"Q:B": {kind: setpoint, native: Q1.k1}, "S:X": {kind: reading, native: SCR1.sigma_x}}}\n'
    )
    text = (fitted / "machine.yaml").read_text().split("variables:")[0] + mapping
    (fitted / "facility.yaml").write_text(text + "calibration: out/result.yaml\n")
    machine = ld.load_model(fitted / "facility.yaml")
    plain = ld.load_model(fitted / "machine.yaml", changes={"set": {}})
    expected = plain({"Q1.k1": 1.03 * 2.0, "C1.angle": 2e-4}, outputs=["SCR1.sigma_x"])["SCR1.sigma_x"]
    np.testing.assert_allclose(float(machine.get("S:X")), float(expected), rtol=1e-4)


def test_a_file_that_is_no_calibration_is_refused(folder: Path) -> None:
    (folder / "no.yaml").write_text("a: 1\n")
    with pytest.raises(ValidationError, match="no saved calibration"):
        ld.load_model(folder / "machine.yaml", changes={"calibration": "no.yaml"})


def test_a_fit_says_one_way_to_its_model(folder: Path) -> None:
    (folder / "scan.csv").write_text("k1,size\n1,2\n")
    (folder / "fit.yaml").write_text(FIT.replace("machine: machine.yaml", "machine: machine.yaml, entry: 'a:b'"))
    with pytest.raises(ValidationError, match="'machine' or 'entry' instead"):
        read_config(folder / "fit.yaml", CalibrationConfig)
