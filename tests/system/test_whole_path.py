"""From the files of a machine to its twin: measure, calibrate, reconstruct, follow, optimise, as a user does it all."""

from __future__ import annotations

import csv
import importlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

import lume_diff as ld
from lume_diff.calibration import CalibrationResult, Reconstruction, ScreenDataset
from lume_diff.cli import app
from tests.system.ioc.conftest import Place, printed

for extra in ("p4p", "xopt"):
    pytest.importorskip(extra)
PVAClient = importlib.import_module("lume_diff.control.pva").PVAClient

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.usefixtures("time_limit")]

SCREEN = "OTRS:DIAG0:420"
IMAGE, SIZES = f"{SCREEN}:IMAGE", [f"{SCREEN}:XRMS", f"{SCREEN}:YRMS"]
QUADRUPOLES = [f"QUAD:DIAG0:{place}:BCTRL" for place in (190, 210, 230, 260)]
THIRD, FOURTH = QUADRUPOLES[2:]
STEERING = ["XCOR:DIAG0:215:BCTRL", "YCOR:DIAG0:216:BCTRL"]
SOLENOID = "SOLN:IN20:121:BCTRL"
#: What the machine is off by, and nobody knows.
HIDDEN = {THIRD: 0.96, FOURTH: 1.05, SOLENOID: 1.01}
#: What nobody can read on a machine, and how a reconstruction calls it.
BEAM = {"TRUE:norm_emit_x": "norm_emit_x", "TRUE:norm_emit_y": "norm_emit_y"}
KICK = 1.5e-3  # [kG m], so that centroids tell strengths apart from the beam
SCAN = {THIRD: [1.0, 1.6, 1.3, 1.3, 1.3, 1.3, 1.3], FOURTH: [-0.5, -0.5, -4.0, -3.0, -2.0, 1.2, 2.4]}  # [kG]
LIMIT = 600.0  # [s]: it takes less than one minute on a computer that does nothing else
NOISE = 0.01  # of the brightest pixel of the faintest image

SPOT = """\
import torch

def log_size(x, y):
    return torch.log10(torch.hypot(x, y))
"""
FIT = """\
model: {machine: machine.yaml}
data: {file: scan.npz}
parameters:
  - {kind: scale, inputs: "QUAD:DIAG0:230:BCTRL", prior: {kind: normal, mean: 1.0, std: 0.05}}
  - {kind: scale, inputs: "QUAD:DIAG0:260:BCTRL", prior: {kind: normal, mean: 1.0, std: 0.05}}
  - {kind: scale, inputs: "SOLN:IN20:121:BCTRL", prior: {kind: normal, mean: 1.0, std: 0.02}}
likelihood: moments
"""
#: The diagnostic line alone, for a bunch that is to be found.
LINE = """\
model:
  backend: cheetah
  lattice: diag0.json
  beam: {mean_energy: ENERGY, charge: 2.5e-10, beta_x: 5, beta_y: 5, norm_emit_x: 4.0e-7, norm_emit_y: 4.0e-7}
mapping:
  keep: [initial_particles]
  elements: {file: line.csv, ignore: [bpm, wire, screen]}
  templates:
    quadrupole:
      BCTRL: {kind: setpoint, native: "{element}.k1", unit: kG, conversion: {kind: quadrupole_field}}
    corrector:
      BCTRL: {kind: setpoint, native: "{element}.angle", unit: kG*m, conversion: {kind: corrector_field}}
  variables:
    "OTRS:DIAG0:420:IMAGE": {kind: reading, native: OTRDG02.image}
"""
#: Strengths are known as well as the calibration knows them.
BUNCH = """\
model: {machine: line.yaml}
data: {file: part.npz}
parameters:
  - {kind: scale, inputs: "QUAD:DIAG0:230:BCTRL", prior: {kind: normal, THIRD}}
  - {kind: scale, inputs: "QUAD:DIAG0:260:BCTRL", prior: {kind: normal, FOURTH}}
n_particles: 2000
epochs: 100
ensemble: 3
"""
OPTIMISATION = """\
model: {machine: twin.yaml}
pvs: {setpoints: same, outputs: same}
variables:
  "QUAD:DIAG0:190:BCTRL": [-5, 5]
  "QUAD:DIAG0:210:BCTRL": [-5, 5]
  "QUAD:DIAG0:230:BCTRL": [-5, 5]
  "QUAD:DIAG0:260:BCTRL": [-5, 5]
objective:
  name: log_size
  output: ["OTRS:DIAG0:420:XRMS", "OTRS:DIAG0:420:YRMS"]
  transform: spot.py:log_size
  goal: minimize
start: 2
steps: 4
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with the machine's files, and another file for the machine as it was built."""
    for file in ld.example_machine().parent.iterdir():
        shutil.copy(file, tmp_path / file.name)
    with (tmp_path / "elements.csv").open(newline="") as table:
        rows = list(csv.DictReader(table))
    with (tmp_path / "built.csv").open("w", newline="") as table:
        writer = csv.DictWriter(table, [*rows[0], "scale"])
        writer.writeheader()
        writer.writerows({**row, "scale": HIDDEN.get(f"{row['name']}:BCTRL", 1.0)} for row in rows)
    machine = yaml.safe_load((tmp_path / "machine.yaml").read_text())
    mapping = machine["mapping"]
    mapping["elements"] = {"file": "built.csv"}
    steps = [{"kind": "linear", "scale": "{scale}"}, {"kind": "quadrupole_field"}]
    mapping["templates"]["quadrupole"]["BCTRL"]["conversion"] = {"kind": "chain", "steps": steps}
    mapping["variables"][SOLENOID]["conversion"]["scale"] *= HIDDEN[SOLENOID]
    for name in BEAM:
        native = name.replace("TRUE:", "linac/final.")
        mapping["variables"][name] = {"kind": "reading", "native": native, "place": "L0B"}
    machine["ioc"] = {"protocols": ["pva"], "isolation": "thread"}
    (tmp_path / "built.yaml").write_text(yaml.safe_dump(machine, sort_keys=False))
    return tmp_path


@pytest.fixture
def machine(folder: Path) -> Iterator[Place]:
    """Return where the machine is served; what this process and its twin ask for, they ask there."""
    place = Place(folder)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in place.settings.items():
            patch.setenv(name, value)
        place.ready(place.start(str(folder / "built.yaml")))
        yield place
    place.end()


@pytest.fixture
def beside(folder: Path, machine: Place) -> Iterator[Place]:
    """Return where its twin is to be served."""
    place = Place(folder)
    place.settings["EPICS_PVA_NAME_SERVERS"] = machine.settings["EPICS_PVA_NAME_SERVERS"]
    yield place
    place.end()


def command(*arguments: object) -> str:
    """Run ``lume-diff`` and return what it prints."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, f"{done.output}\n{done.exception}"
    return str(done.output)


def shown(client: Any, *names: str) -> list[float]:
    """Return numbers that a control system shows."""
    found = client.get(list(names), timeout=20.0)
    return [found[name].value for name in names]


class Scan:
    """A quadrupole scan with a steered beam, seen by a camera with noise.

    Args:
        client: of the control system.
        settings: of all magnets; those that are scanned have their own.
    """

    def __init__(self, client: Any, settings: Mapping[str, float]) -> None:
        images = []
        for third, fourth in zip(SCAN[THIRD], SCAN[FOURTH], strict=True):
            client.put({THIRD: third, FOURTH: fourth}, timeout=20.0)
            images.append(client.get([IMAGE], timeout=20.0)[IMAGE].value)
        brightest = min(float(image.max()) for image in images)
        noise = np.random.default_rng(0).normal(0.0, NOISE * brightest, (len(images), *images[0].shape))
        self.images, self.settings = np.stack(images) + noise, {**settings, **SCAN}
        self.pixel = f"{shown(client, f'{SCREEN}:RESOLUTION')[0]} um"

    def write(self, path: Path, names: Iterable[str] | None = None) -> None:
        """Write the images with the settings of some magnets, in pixels of twice the size."""
        settings = {name: self.settings[name] for name in (self.settings if names is None else names)}
        ScreenDataset(settings, self.images, IMAGE, self.pixel).bin(2).to_npz(path)


def agree(some: Sequence[Any], others: Sequence[Any]) -> bool:
    """Tell whether beam sizes are the same within 2 %."""
    known = [value for value in (*some, *others) if value is not None]
    return len(known) == len(some) + len(others) and bool(np.allclose(some, others, rtol=0.02))


def calibrated(folder: Path, scan: Scan) -> dict[str, tuple[float, float]]:
    """Fit what the machine is off by, and return it with standard errors; the twin of it is in ``twin.yaml``."""
    scan.write(folder / "scan.npz")
    (folder / "fit.yaml").write_text(FIT)
    command("calibrate", folder / "fit.yaml", "--out", folder / "fit")
    twin = ld.load_model(folder / "machine.yaml", changes={"calibration": "fit/result.yaml"})
    ld.save_model(twin, folder / "twin.yaml")
    fitted = CalibrationResult.load(folder / "fit" / "result.yaml")["parameters"]
    return {name: (one["value"], one["standard_error"]) for name, one in zip(HIDDEN, fitted, strict=True)}


def reconstructed(
    folder: Path, scan: Scan, energy: float, scales: Mapping[str, tuple[float, float]]
) -> Mapping[str, Any]:
    """Reconstruct the beam at the entrance of the diagnostic line, by the strengths that were found."""
    first, *rows = (folder / "elements.csv").read_text().splitlines()
    (folder / "line.csv").write_text("\n".join([first, *(row for row in rows if "DIAG0" in row)]))
    (folder / "line.yaml").write_text(LINE.replace("ENERGY", repr(energy)))
    scan.write(folder / "part.npz", [*QUADRUPOLES, *STEERING])
    priors = [f"mean: {value!r}, std: {error!r}" for value, error in (scales[THIRD], scales[FOURTH])]
    (folder / "bunch.yaml").write_text(BUNCH.replace("THIRD", priors[0]).replace("FOURTH", priors[1]))
    command("reconstruct", folder / "bunch.yaml", "--out", folder / "bunch")
    return Reconstruction.load(folder / "bunch" / "result.yaml")["statistics"]


def test_from_files_to_a_twin_that_optimises_the_machine(
    folder: Path, machine: Place, beside: Place, wait_until: Callable[..., bool]
) -> None:
    with PVAClient() as client:
        # The machine as it was built is set to what its files say, but for the steering.
        design = ld.load_model(folder / "machine.yaml")
        settings = {name: float(design.get(name)) for name in design.input_names if name.endswith("BCTRL")}
        client.put({**settings, **dict.fromkeys(STEERING, KICK)}, timeout=20.0)
        scan = Scan(client, {**settings, **dict.fromkeys(STEERING, KICK)})

        errors = calibrated(folder, scan)
        for name, (value, error) in errors.items():
            assert error < 5e-3
            assert abs(value - HIDDEN[name]) < 3.0 * error
            assert abs(value - 1.0) > 5.0 * error

        energy, *truth = shown(client, "REFS:DIAG0:1:EACT", *BEAM)
        beam = reconstructed(folder, scan, 1e6 * energy, errors)
        for name, true in zip(BEAM.values(), truth, strict=True):
            found = beam[name]
            assert found["standard_error"] < 0.5 * abs(true)
            assert abs(found["value"] - true) < 3.0 * found["standard_error"]

        # The twin follows the machine, and shows what its screen does; what was designed would not.
        client.put(settings, timeout=20.0)
        follow = "--remote", "same", "--prefix", "TWIN:", "--isolation", "thread", "--protocol", "pva"
        process = beside.start(str(folder / "twin.yaml"), *follow, command="twin")
        assert wait_until(lambda: printed(process), 100.0)
        start = shown(client, *SIZES)
        with PVAClient({**beside.settings, "EPICS_PVA_NAME_SERVERS": f"127.0.0.1:{beside.base}"}) as twin:
            twins = [f"TWIN:{name}" for name in SIZES]
            assert wait_until(lambda: agree(shown(twin, *twins), start), 20.0), printed(process)
            assert not agree([float(design.get(name)) for name in SIZES], start)

            # With the twin as prior mean; the machine ends at the best settings.
            (folder / "spot.py").write_text(SPOT)
            (folder / "optimise.yaml").write_text(OPTIMISATION)
            command("optimize", folder / "optimise.yaml", "--out", folder / "optimisation")
            end = shown(client, *SIZES)
            assert np.hypot(*end) < 0.4 * np.hypot(*start)
            assert wait_until(lambda: agree(shown(twin, *twins), end), 20.0), printed(process)
