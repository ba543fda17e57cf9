"""``lume-diff reconstruct`` on a small line: what it writes, what it resumes, what it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import Result

from lume_diff.calibration import Reconstruction
from lume_diff.cli.reconstruct import EXAMPLE
from lume_diff.models import BunchFromMoments, CheetahModel
from tests.unit.cli.commands import assert_fault_is_named, assert_no_configuration_is_refused, invoke

PIXEL = 2e-4
K1 = np.linspace(-8.0, 8.0, 5)
CONFIG = """\
model: {lattice: line.json, beam: design.h5}
data:
  {file: scan.npz, screen: SCR1.image, settings: {k1: Q1.k1}, pixel_size: 0.2 mm}
parameters:
  - {kind: blur, prior: {kind: lognormal, median: 2.0e-5, factor: 1.5}}
n_particles: 500
epochs: 30
ensemble: 2
"""


def write_line(folder: Path, drift: float = 1.5) -> None:
    """Write a lattice file."""
    elements = {
        "Q1": ["Quadrupole", {"length": 0.1, "k1": 0.0}],
        "D1": ["Drift", {"length": drift}],
        "SCR1": ["Screen", {"resolution": [30, 30], "pixel_size": [PIXEL, PIXEL], "is_active": True}],
    }
    text = json.dumps({"root": "line", "elements": elements, "lattices": {"line": list(elements)}})
    (folder / "line.json").write_text(text)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write a lattice, a design beam, images of another beam, and a configuration."""
    write_line(tmp_path)
    common = {"mean_energy": 1e8, "sigma_energy": 1e4, "sigma_t": 1e-12, "charge": 1e-10}
    for name, beta, emittance in (("design", 8.0, 8e-6), ("true", 5.0, 1e-5)):
        twiss = {"beta_x": beta, "norm_emit_x": emittance, "beta_y": beta, "norm_emit_y": emittance}
        beam = BunchFromMoments(2000, **common, **twiss).get("final_particles")
        beam.to_openpmd(tmp_path / f"{name}.h5")
    machine = CheetahModel.from_file(tmp_path / "line.json", tmp_path / "true.h5")
    light = machine({"Q1.k1": torch.tensor(K1)}, outputs=["SCR1.image"])["SCR1.image"].numpy()
    np.savez(tmp_path / "scan.npz", k1=K1, images=1000.0 * light / light.max())
    (tmp_path / "fit.yaml").write_text(CONFIG)
    return tmp_path


def reconstruct(*arguments: object) -> Result:
    return invoke("reconstruct", *arguments)


def test_bunch_is_found_written_and_resumed(folder: Path) -> None:
    options = ("--checkpoint", folder / "fit.ckpt", "--out")
    done = reconstruct(folder / "fit.yaml", *options, folder / "result")
    assert done.exit_code == 0, done.stderr
    assert "norm_emit_x" in done.stdout
    known = Reconstruction.load(folder / "result" / "result.yaml")
    assert known["beam"]["norm_emit_x"].item() == pytest.approx(1e-5, rel=0.1)  # the design has 8e-6
    assert len(known["beam"]) == 500
    assert known["statistics"]["norm_emit_x"]["standard_error"] > 0.0
    assert list(known["parameters"]) == ["screen blur"]
    assert (folder / "result" / "result.png").read_bytes().startswith(b"\x89PNG")
    page = (folder / "result" / "report.html").read_text(encoding="utf-8")
    for part in ("norm_emit_x", "screen blur", "not checked", "data:image/png;base64,"):
        assert part in page
    assert "http" not in page  # one page that needs nothing else

    again = reconstruct(folder / "fit.yaml", *options, folder / "again")
    assert again.exit_code == 0, again.stderr
    resumed = Reconstruction.load(folder / "again" / "result.yaml")
    assert resumed["history"] == known["history"]
    assert resumed["runs"] < 0.25 * known["runs"]

    write_line(folder, drift=1.6)
    other = reconstruct(folder / "fit.yaml", *options, folder / "other")
    assert other.exit_code == 2
    assert "is of a fit with another model" in other.stderr


def test_example_is_a_configuration(tmp_path: Path) -> None:
    from lume_diff.calibration.fit.yaml_files import read_config
    from lume_diff.calibration.reconstruction.configuration import ReconstructionConfig

    assert reconstruct("--example").stdout == EXAMPLE
    (tmp_path / "fit.yaml").write_text(EXAMPLE)
    assert read_config(tmp_path / "fit.yaml", ReconstructionConfig).options["ensemble"] == 3


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("epochs:", "epoch:", r"line 7: epoch: is not known here; nearest: 'epochs'"),
        ("epochs: 30", "epochs: 0", r"line 7: epochs: is 0: input should be greater than or equal to 1"),
        ("n_particles: 500", "n_particles: 5", r"line 6: n_particles: is 5: .*100"),
        ("ensemble: 2", "dimensions: 5", r"line 8: dimensions: is 5: input should be 4 or 6"),
        ("ensemble: 2", "generator: flows", r"line 8: generator: is 'flows': input should be 'network' or 'flow'"),
        ("ensemble: 2", "scale: [1.0e-3]", r"scale has 1 numbers; expected 4"),
        ("screen:", "screne:", r"line 3: data\.screne: is not known here; nearest: 'screen'"),
        ("factor: 1.5", "fator: 1.5", r"line 5: parameters\[0\]\.prior\.factor: is missing"),
        ("file: scan.npz", "file: other.npz", r"data file .*other\.npz' does not exist"),
        ("screen: SCR1.image", "screen: SCR2.image", r"'SCR2\.image'.*nearest: 'SCR1\.image'"),
        ("screen: SCR1.image", "outputs: {images: Q1.k1}", r"line 2: data: 'pixel_size' is for images, but 'outputs'"),
    ],
)
def test_faults_are_named(folder: Path, old: str, new: str, message: str) -> None:
    assert_fault_is_named("reconstruct", folder / "fit.yaml", old, new, message)


def test_several_data_sets_are_fitted_together(folder: Path) -> None:
    section = "{file: scan.npz, screen: SCR1.image, settings: {k1: Q1.k1}, pixel_size: 0.2 mm}"
    text = CONFIG.replace("data:\n  {file: scan.npz", "data:\n  - {file: scan.npz").replace(
        "ensemble: 2", "ensemble: 1"
    )
    (folder / "fit.yaml").write_text(text.replace("parameters:", f"  - {section}\nparameters:").replace("30", "3"))
    done = reconstruct(folder / "fit.yaml", "--out", folder / "result")
    assert done.exit_code == 0, done.stderr
    known = Reconstruction.load(folder / "result" / "result.yaml")
    assert [part["screen"] for part in known["data"]] == ["SCR1.image"] * 2
    assert len(known["fit"]["image"]) == 2 * len(K1)
    assert "SCR1.image, 5 settings of Q1.k1; SCR1.image, 5 settings" in (folder / "result" / "report.html").read_text()


def test_numbers_are_no_images(folder: Path) -> None:
    (folder / "scan.csv").write_text("k1,x\n1.0,2.0\n2.0,3.0\n")
    section = "{file: scan.csv, settings: {k1: Q1.k1}, outputs: {x: final.sigma_x}, sigma: {final.sigma_x: 0.1}}"
    (folder / "fit.yaml").write_text(f"model: {{lattice: line.json, beam: design.h5}}\ndata: {section}\n")
    assert re.search(r"data of final\.sigma_x are numbers; .*images", reconstruct(folder / "fit.yaml").stderr)


def test_no_configuration_is_refused(tmp_path: Path) -> None:
    assert_no_configuration_is_refused("reconstruct", tmp_path)
