"""``lume-diff optimize`` on a small line: what it writes, what goes on from there, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import Result

pytest.importorskip("xopt")

from xopt import Xopt

from lume_diff.calibration import PriorMeanModelConstructor
from lume_diff.cli.optimize import EXAMPLE
from lume_diff.models import BunchFromMoments
from tests.unit.cli.commands import assert_fault_is_named, assert_no_configuration_is_refused, invoke

ELEMENTS = {
    "Q1": ["Quadrupole", {"length": 0.1, "k1": 0.0}],
    "D1": ["Drift", {"length": 0.6}],
    "Q2": ["Quadrupole", {"length": 0.1, "k1": 0.0}],
    "D2": ["Drift", {"length": 1.0}],
}
CONFIG = """\
model: {lattice: line.json, beam: beam.h5}
machine: {entry: machine.py:as_built}
variables: {Q1.k1: [-8, 8], Q2.k1: [-8, 8]}
objective: {name: log_size, output: [final.sigma_x, final.sigma_y], transform: machine.py:log_size}
steps: 2
"""
MACHINE = """\
from lume_diff.models import CheetahModel

def as_built():
    line = CheetahModel.from_file({lattice!r}, {beam!r})
    line.set({{"D1.length": 0.61}})
    return line

def log_size(x, y):
    return 0.5 * (x**2 + y**2).log10()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write a lattice, a beam, a machine that is a little longer, and a configuration."""
    twiss = {"beta_x": 8.0, "norm_emit_x": 8e-6, "beta_y": 6.0, "norm_emit_y": 3e-6, "alpha_x": 1.0}
    bunch = BunchFromMoments(500, mean_energy=1e8, sigma_energy=1e4, sigma_t=1e-12, charge=1e-10, **twiss)
    bunch.get("final_particles").to_openpmd(tmp_path / "beam.h5")
    text = json.dumps({"root": "line", "elements": ELEMENTS, "lattices": {"line": list(ELEMENTS)}})
    (tmp_path / "line.json").write_text(text)
    names = {"lattice": str(tmp_path / "line.json"), "beam": str(tmp_path / "beam.h5")}
    (tmp_path / "machine.py").write_text(MACHINE.format(**names))
    (tmp_path / "opt.yaml").write_text(CONFIG)
    return tmp_path


def optimize(*arguments: object) -> Result:
    return invoke("optimize", *arguments)


def test_both_arms_are_run_and_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = folder / "result"
    done = optimize(folder / "opt.yaml", "--out", out)
    assert done.exit_code == 0, done.stderr
    assert "with the model: 5 of 5 evaluations, best" in done.stderr
    assert "without the model: best of 5 evaluations: Q1.k1" in done.stdout
    assert "log_size: prior mean is the model" in done.stdout
    assert (out / "convergence.png").read_bytes().startswith(b"\x89PNG")
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "data:image/png;base64," in page
    assert "http" not in page
    first, second = ((out / f"evaluations_{arm}_the_model.csv").read_text().splitlines() for arm in ("with", "without"))
    assert len(first) == len(second) == 6
    settings = [[[float(cell) for cell in line.split(",")[1:3]] for line in arm[1:4]] for arm in (first, second)]
    assert settings[0] == settings[1]  # both begin at the same random points
    monkeypatch.chdir(out)
    again = Xopt.from_file("xopt.yaml")
    assert isinstance(again.generator.gp_constructor, PriorMeanModelConstructor)
    again.step()
    assert len(again.data) == 6


def test_example_is_a_configuration(tmp_path: Path) -> None:
    from lume_diff.calibration.fit.yaml_files import read_config
    from lume_diff.calibration.optimisation.configuration import OptimisationConfig

    assert optimize("--example").stdout == EXAMPLE
    (tmp_path / "opt.yaml").write_text(EXAMPLE)
    assert read_config(tmp_path / "opt.yaml", OptimisationConfig).steps == 20
    machine = "machine: {entry: my_machine.py:as_built}          # a model in its place, or the machine itself:\n"
    assert machine in EXAMPLE
    on_pvs = EXAMPLE.replace(machine, "").replace("# pvs", "pvs").replace("#   ", "  ")
    (tmp_path / "pvs.yaml").write_text(on_pvs)
    settings = read_config(tmp_path / "pvs.yaml", OptimisationConfig)
    assert settings.pvs is not None
    assert settings.pvs.settle == 0.5


def test_a_model_with_the_machines_names_needs_no_table_of_them(tmp_path: Path) -> None:
    from lume_diff.calibration.fit.yaml_files import read_config
    from lume_diff.calibration.optimisation.configuration import OptimisationConfig
    from lume_diff.calibration.prior_mean.vocs import Quantity

    pytest.importorskip("p4p")
    model, rest = EXAMPLE.splitlines()[0], EXAMPLE[EXAMPLE.index("variables:") :]
    (tmp_path / "pvs.yaml").write_text(f"{model}\npvs: {{setpoints: same, outputs: same}}\n{rest}")
    settings = read_config(tmp_path / "pvs.yaml", OptimisationConfig)
    assert settings.pvs is not None
    machine = settings.pvs.build(settings.variables, {"log_size": Quantity(["final.sigma_x"], None)})
    assert machine._setpoints == {"Q1.k1": "Q1.k1", "Q2.k1": "Q2.k1"}
    assert machine._outputs == {"final.sigma_x": "final.sigma_x"}
    machine.connect().close()


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("machine: ", "mashine: ", r"line 2: mashine: is not known here; nearest: 'machine'"),
        ("machine: {entry: machine.py:as_built}\n", "", r"give 'machine', a model in its place, or 'pvs'"),
        ("[-8, 8], Q2", "[-8, wide], Q2", r"line 2: variables.*'wide'|line 3: variables.*'wide'"),
        ("Q2.k1:", "Q9.k1:", r"'Q9\.k1' is not an input of the model; nearest: 'Q2\.k1', 'Q1\.k1'"),
        (
            "final.sigma_x,",
            "final.sigma,",
            r"'final\.sigma' is not an output of the model; nearest: .*'final\.sigma_x'",
        ),
        ("machine.py:log_size", "log11", r"transform is 'log11'; expected a name .*nearest: 'log10'"),
        ("machine.py:log_size", "machine.py:log", r"has no 'log'"),
        ("steps: 2", "steps: 0", r"line 5: steps: is 0"),
        (
            "machine: {entry: machine.py:as_built}",
            "pvs: {setpoints: {Q1.k1: A}, outputs: {final.sigma_x: B}}",
            r"pvs\.setpoints has \['Q1\.k1'\]; expected \['Q1\.k1', 'Q2\.k1'\]",
        ),
        (
            "machine: {entry: machine.py:as_built}",
            "pvs: {setpoints: {Q1.k1: A, Q2.k1: C}, outputs: {final.sigma_x: B}}",
            r"no process variable gives \['final\.sigma_y'\]",
        ),
    ],
)
def test_faults_are_named(folder: Path, old: str, new: str, message: str) -> None:
    assert_fault_is_named("optimize", folder / "opt.yaml", old, new, message)


def test_a_slow_model_is_emulated(folder: Path) -> None:
    config = yaml.safe_load(CONFIG) | {"emulate": {"max_runs": 30}, "compare": False, "steps": 1}
    (folder / "opt.yaml").write_text(yaml.safe_dump(config))
    done = optimize(folder / "opt.yaml", "--out", folder / "result")
    assert done.exit_code == 0, done.stderr
    assert "emulator: 12 runs made" in done.stdout


def test_no_configuration_is_refused(tmp_path: Path) -> None:
    assert_no_configuration_is_refused("optimize", tmp_path)
