"""The command line: what it prints, what it refuses, and that its numbers are right."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner, Result

from lume_diff.cli import app
from lume_diff.errors import LatticeError
from lume_diff.models import CheetahModel
from lume_diff.particles import TorchMoments, sample_bunch

PNG = b"\x89PNG\r\n\x1a\n"
ELEMENTS: dict[str, list] = {
    "D1": ["Drift", {"length": 0.5}],
    "Q1": ["Quadrupole", {"length": 0.2, "k1": 4.0}],
    "D2": ["Drift", {"length": 0.5}],
    "H1": ["HorizontalCorrector", {"length": 0.1, "angle": 0.0}],
    "C1": ["Cavity", {"length": 1.0, "voltage": 2e7, "phase": -5.0, "frequency": 2.856e9}],
    "B1": ["Dipole", {"length": 0.3, "angle": 0.0}],
    "B2": ["Dipole", {"length": 0.3, "angle": 0.0, "k1": 0.5}],
    "BPM1": ["BPM", {"is_active": False}],
    "D3": ["Drift", {"length": 0.7}],
    "Q2": ["Quadrupole", {"length": 0.2, "k1": 0.0}],
    "SCR": ["Screen", {"resolution": [60, 40], "pixel_size": [1e-4, 1e-4], "is_active": False}],
    "Q3": ["Quadrupole", {"length": 0.2, "k1": -3.0}],
}


def write_lattice(path: Path, **changes: list) -> Path:
    """Write the lattice, or the same with elements added behind it."""
    elements = {**ELEMENTS, **changes}
    path.write_text(json.dumps({"root": "line1", "elements": elements, "lattices": {"line1": list(elements)}}))
    return path


@pytest.fixture(scope="module")
def lattice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_lattice(tmp_path_factory.mktemp("lattice") / "line.json")


@pytest.fixture(scope="module")
def beam(tmp_path_factory: pytest.TempPathFactory) -> Path:
    moments = TorchMoments.from_twiss(
        beta_x=8.0,
        alpha_x=0.4,
        norm_emit_x=1e-6,
        beta_y=5.0,
        alpha_y=-0.2,
        norm_emit_y=0.7e-6,
        energy=5e7,
        sigma_t=1e-12,
        sigma_energy=5e4,
        charge=1e-10,
    )
    path = tmp_path_factory.mktemp("beam") / "beam.h5"
    sample_bunch(moments, 300, seed=3).to_openpmd(path)
    return path


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def passed(*arguments: object) -> Result:
    result = call(*arguments)
    assert result.exit_code == 0, result.output
    assert "\x1b" not in result.output, "colours where nobody watches"
    return result


def rows(result: Result, header: str = "knob ") -> list[list[str]]:
    """Return the cells of the plain table that begins with a header; empty cells are lost."""
    lines = result.stdout.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(header))
    cells = [line.split("  ") for line in lines[start + 1 :]]
    table = [[cell.strip() for cell in line if cell.strip()] for line in cells]
    return [line for line in table if len(line) > 2]


def derivatives(result: Result) -> dict[str, float]:
    """Return derivative by knob from the table: behind class, place and setting."""
    return {row[0]: float(row[4]) for row in rows(result)}


def central_difference(lattice: Path, beam: Path, output: str, knob: str, step: float, **at: float) -> float:
    model = CheetahModel.from_file(lattice, beam)
    with torch.no_grad():
        here = at.get(knob, float(model.get(knob)))
        high, low = (float(model({**at, knob: here + sign * step}, outputs=[output])[output]) for sign in (1, -1))
    return (high - low) / (2.0 * step)


# -- the command as a whole -----------------------------------------------------------------------------------------


def test_help_names_every_command() -> None:
    assert {"info", "gradient", "demo"} <= set(passed("--help").stdout.split())


def test_version_is_printed() -> None:
    assert passed("--version").stdout.startswith("lume-diff ")


def test_loading_the_command_loads_no_simulator_and_no_plots() -> None:
    heavy = "{'cheetah', 'beamphysics', 'matplotlib', 'scipy', 'h5py'} & set(sys.modules)"
    code = f"import sys, lume_diff.cli; print(sorted({heavy}))"
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120)
    assert printed.stdout.strip() == "[]"


def test_module_runs_as_a_program(lattice: Path) -> None:
    command = [sys.executable, "-m", "lume_diff.cli", "info", str(lattice)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "Quadrupole" in done.stdout


@pytest.mark.parametrize("arguments", [["--debug", "info"], ["info", "--debug"]], ids=["before", "behind"])
def test_debug_shows_the_traceback(arguments: list[str]) -> None:
    result = call(*arguments, "nowhere.json")
    assert isinstance(result.exception, LatticeError)


# -- info -----------------------------------------------------------------------------------------------------------


def test_info_shows_elements_counts_and_length(lattice: Path) -> None:
    result = passed("info", lattice)
    assert "12 elements, 4 m" in result.stdout
    counts = {row[0]: row[1:] for row in rows(result, "class ") if len(row) == 3}
    assert counts["Quadrupole"] == ["3", "0.6"]
    assert counts["all"] == ["12", "4"]
    elements = {row[1]: row for row in rows(result, " s [m]")}
    assert elements["Q1"][:5] == ["0.5000", "Q1", "Quadrupole", "0.2000", "k1 4 1/m^2"]
    assert "k1" in elements["Q1"][5].split(", ")
    assert elements["C1"][4] == "voltage 20 MV, phase -5 deg"
    assert elements["SCR"][4] == "60 x 40 pixels of 100 µm, off"


def test_info_shows_the_pixels_of_the_image_not_of_the_screen(lattice: Path, tmp_path: Path) -> None:
    content = lattice.read_text(encoding="utf-8").replace('"pixel_size"', '"binning": 4, "pixel_size"')
    (tmp_path / "binned.json").write_text(content, encoding="utf-8")
    elements = {row[1]: row for row in rows(passed("info", tmp_path / "binned.json"), " s [m]")}
    assert elements["SCR"][4] == "15 x 10 pixels of 400 µm, off"


def test_info_with_a_beam_shows_its_energy_at_both_ends(lattice: Path, beam: Path) -> None:
    printed = passed("info", lattice, "--beam", beam).stdout
    assert "300 electrons, 100 pC, 50 MeV at the start, 69.92 MeV at the end" in printed


def test_info_lists_inputs_with_unit_and_default(lattice: Path) -> None:
    inputs = {row[0]: row[1:] for row in rows(passed("info", lattice, "--inputs"), "input ")}
    assert inputs["Q1.k1"][:5] == ["number", "1/m^2", "4", "none", "0.1"]
    assert inputs["SCR.is_active"][:2] == ["switch", "false"]
    assert inputs["reference_energy"][3] == "510999 to inf"


def test_info_lists_outputs_with_unit_and_shape(lattice: Path) -> None:
    outputs = {row[0]: row[1:] for row in rows(passed("info", lattice, "--outputs"), "output ")}
    assert outputs["SCR.image"][:3] == ["array", "C", "40 x 60"]
    assert outputs["final.sigma_x"][:2] == ["number", "m"]


def test_info_of_one_element_shows_only_what_is_its_own(lattice: Path) -> None:
    printed = passed("info", lattice, "--element", "Q2").stdout
    assert "Q2.k1" in printed
    assert "Q2.sigma_x" in printed
    assert "Q1" not in printed


# -- gradient: numbers ----------------------------------------------------------------------------------------------


@pytest.mark.gradient
@pytest.mark.parametrize(
    "knob, step", [("Q1.k1", 1e-4), ("Q2.k1", 1e-4), ("B2.k1", 1e-4), ("C1.voltage", 1e3), ("C1.phase", 1e-2)]
)
def test_gradient_is_that_of_a_central_difference(lattice: Path, beam: Path, knob: str, step: float) -> None:
    printed = derivatives(passed("gradient", "--lattice", lattice, "--beam", beam, "--of", "SCR.sigma_x"))
    assert printed[knob] == pytest.approx(central_difference(lattice, beam, "SCR.sigma_x", knob, step), rel=1e-5)


@pytest.mark.gradient
def test_gradient_at_other_settings(lattice: Path, beam: Path) -> None:
    options = ("--at", "Q1.k1=-2.5", "--at", "Q2.k1=1", "--wrt", "Q1.k1")
    printed = derivatives(passed("gradient", "--lattice", lattice, "--beam", beam, "--of", "SCR.sigma_y", *options))
    settings = {"Q1.k1": -2.5, "Q2.k1": 1.0}
    expected = central_difference(lattice, beam, "SCR.sigma_y", "Q1.k1", 1e-4, **settings)
    assert printed == {"Q1.k1": pytest.approx(expected, rel=1e-5)}


@pytest.mark.gradient
@pytest.mark.parametrize("how", ["sum", "max", "mean"])
def test_gradient_of_a_reduced_array(lattice: Path, beam: Path, how: str) -> None:
    options = ("--of", "line.beta_x", "--reduce", how, "--wrt", "Q1.k1")
    result = passed("gradient", "--lattice", lattice, "--beam", beam, *options)
    model = CheetahModel.from_file(lattice, beam)
    values = [
        float(getattr(model({"Q1.k1": 4.0 + step}, outputs=["line.beta_x"])["line.beta_x"], how)())
        for step in (1e-4, -1e-4)
    ]
    assert result.stdout.startswith(f"{how}(line.beta_x) = ")
    assert derivatives(result)["Q1.k1"] == pytest.approx((values[0] - values[1]) / 2e-4, rel=1e-5)


def test_gradient_with_respect_to_strengths_by_default(lattice: Path, beam: Path) -> None:
    result = passed("gradient", "--lattice", lattice, "--beam", beam, "--of", "final.sigma_x", "--top", 0)
    assert result.stdout.splitlines()[1] == "9 knobs, 1 run and 1 backward pass"
    # A bend without gradient has no supply for one; correctors do not change sizes.
    acting = {"Q1.k1", "Q2.k1", "Q3.k1", "B1.angle", "B2.k1", "B2.angle", "C1.voltage", "C1.phase"}
    assert set(derivatives(result)) <= acting
    assert {"Q1.k1", "Q2.k1", "Q3.k1", "B2.k1", "C1.voltage", "C1.phase"} <= set(derivatives(result))


@pytest.mark.parametrize("sort, column", [("effect", -1), ("derivative", 4)])
def test_gradient_is_sorted(lattice: Path, beam: Path, sort: str, column: int) -> None:
    result = passed("gradient", "--lattice", lattice, "--beam", beam, "--of", "final.sigma_x", "--sort", sort)
    sizes = [abs(float(row[column])) for row in rows(result)]
    assert len(sizes) > 4
    assert sizes == sorted(sizes, reverse=True)


def test_gradient_effect_is_derivative_times_typical_change(lattice: Path, beam: Path) -> None:
    result = passed("gradient", "--lattice", lattice, "--beam", beam, "--of", "final.sigma_x", "--wrt", "Q1.k1")
    (row,) = rows(result)
    assert row[5:7] == ["m/(1/m^2)", "0.1 1/m^2"]
    assert "effect [µm]" in result.stdout
    assert float(row[7]) == pytest.approx(float(row[4]) * 0.1 * 1e6, rel=1e-3)


def test_gradient_shows_the_strongest_only(lattice: Path, beam: Path) -> None:
    result = passed("gradient", "--lattice", lattice, "--beam", beam, "--of", "final.sigma_x", "--top", 2)
    assert len(rows(result)) == 2
    assert "more that act (--top 0 shows all)" in result.stdout


@pytest.mark.parametrize("names", [["Q*.k1"], ["Q1.k1,Q2.k1", "Q3.k1"], ["Q[123].k1", "Q1.k1"]])
def test_gradient_takes_patterns_lists_and_repeats(lattice: Path, beam: Path, names: list[str]) -> None:
    options = [part for name in names for part in ("--wrt", name)]
    result = passed("gradient", "--lattice", lattice, "--beam", beam, "--of", "final.sigma_x", *options)
    assert set(derivatives(result)) == {"Q1.k1", "Q2.k1", "Q3.k1"}


# -- gradient: states of the line -----------------------------------------------------------------------------------


@pytest.mark.parametrize("output, knob", [("BPM1.x", "H1.angle"), ("SCR.image", "Q1.k1")])
def test_reading_of_an_inactive_diagnostic_is_switched_on(lattice: Path, beam: Path, output: str, knob: str) -> None:
    reduce = ["--reduce", "max"] if output.endswith("image") else []
    result = passed("gradient", "--lattice", lattice, "--beam", beam, "--of", output, *reduce)
    place = output.partition(".")[0]
    assert f"note: {place} is off in the lattice; switched on ({place}.is_active=true)" in result.stderr
    assert derivatives(result)[knob] != 0.0


def test_diagnostic_stays_off_where_that_is_asked_for(lattice: Path, beam: Path) -> None:
    options = ("--at", "SCR.is_active=off", "--reduce", "sum")
    result = passed("gradient", "--lattice", lattice, "--beam", beam, "--of", "SCR.image", *options)
    assert "warning: " in result.stderr
    assert "note: " not in result.stderr
    assert "9 of the knobs do not act on it to first order" in result.stdout


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The lattice with a collimator that cuts the beam."""
    path = tmp_path_factory.mktemp("narrow") / "line.json"
    return write_lattice(path, COL=["Aperture", {"x_max": 3e-4, "y_max": 1.0, "is_active": True}])


def test_losses_are_said_in_one_line(narrow: Path, beam: Path) -> None:
    result = passed("gradient", "--lattice", narrow, "--beam", beam, "--of", "final.sigma_x", "--wrt", "Q1.k1")
    assert result.stderr.startswith("warning: ")
    assert "COL" in result.stderr


def test_transmission_needs_soft_losses(narrow: Path, beam: Path) -> None:
    options = ("gradient", "--lattice", narrow, "--beam", beam, "--of", "final.survival", "--wrt", "Q1.k1")
    hard = call(*options)
    assert hard.exit_code == 2
    assert "losses='soft'" in hard.stderr
    assert derivatives(passed(*options, "--losses", "soft"))["Q1.k1"] != 0.0


# -- gradient: pictures ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("of", ["SCR.sigma_x", "final.beta_y", "B2.mean_x", "D1.sigma_x"])
def test_picture_is_written(lattice: Path, beam: Path, tmp_path: Path, of: str) -> None:
    path = tmp_path / "line.png"
    passed("gradient", "--lattice", lattice, "--beam", beam, "--of", of, "--plot", path)
    assert path.read_bytes().startswith(PNG)


def test_picture_of_a_real_line(shared_data: Path, tmp_path: Path) -> None:
    path = tmp_path / "ares.png"
    lattice, beam = shared_data / "ares_stage4_nxtables.csv", shared_data / "lcls_injector_impact_10000.h5"
    result = passed("gradient", "--lattice", lattice, "--beam", beam, "--of", "AREABSCA1.sigma_x", "--plot", path)
    assert rows(result)[0][0] == "AREAMQZM1.k1"
    assert path.read_bytes().startswith(PNG)


# -- what is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options, words",
    [
        (["--of", "final.sigm_x"], ["'final.sigm_x'", "nearest: 'sigma_x'"]),
        (["--of", "Q9.sigma_x"], ["no element 'Q9'", "nearest: 'Q3'"]),
        (["--of", "SCR.image"], ["40 x 60", "--reduce sum"]),
        (["--of", "final.sigma_x", "--reduce", "max"], ["one number already", "--reduce max"]),
        (["--of", "final_particles"], ["ParticleGroupVariable", "'final.sigma_x'"]),
        (["--of", "final.sigma_x", "--wrt", "QX*.k1"], ["--wrt 'QX*.k1' matches no input", "nearest: 'Q"]),
        (["--of", "final.sigma_x", "--wrt", "SCR.is_active"], ["BoolVariable", "no derivative"]),
        (["--of", "final.sigma_x", "--at", "Q1.k1"], ["NAME=VALUE"]),
        (["--of", "final.sigma_x", "--at", "Q1.k1=strong"], ["'strong' is not a number"]),
        (["--of", "final.sigma_x", "--at", "Q1.k1=nan"], ["Q1.k1", "not finite"]),
        (["--of", "final.sigma_x", "--at", "Q1.k2=1"], ["'Q1.k2'", "nearest: 'Q1.k1'"]),
        (["--of", "final.sigma_x", "--at", "Q1.k1=1", "--at", "Q1.k1=2"], ["sets 'Q1.k1' twice"]),
        (["--of", "SCR.image", "--reduce", "sum", "--at", "SCR.is_active=2"], ["'SCR.is_active' is a switch"]),
        (["--of", "final.sigma_x", "--plot", "line.bmp"], [".png"]),
        (["--of", "final.sigma_x", "--plot", "nowhere/line.png"], ["no folder 'nowhere'"]),
    ],
    ids=lambda value: " ".join(value) if value and value[0].startswith("--") else "",
)
def test_gradient_refuses_in_one_line(lattice: Path, beam: Path, options: list[str], words: list[str]) -> None:
    result = call("gradient", "--lattice", lattice, "--beam", beam, *options)
    assert_refused(result, words)


def assert_refused(result: Result, words: list[str]) -> None:
    assert result.exit_code == 2
    assert result.stdout == ""
    (line,) = (line for line in result.stderr.splitlines() if not line.startswith("note: "))
    assert line.startswith("error: ")
    for word in words:
        assert word in line


@pytest.mark.parametrize(
    "name, text, words",
    [
        ("absent.json", None, ["absent.json", "does not exist"]),
        ("broken.json", '{"root": "a",\n "elements": }', ["broken.json", "line 2"]),
        ("line.xyz", "nothing", ["'.xyz'"]),
    ],
    ids=["absent", "broken", "unknown-suffix"],
)
def test_info_refuses_files_in_one_line(tmp_path: Path, name: str, text: str | None, words: list[str]) -> None:
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    assert_refused(call("info", path), words)


def test_info_refuses_an_unknown_element(lattice: Path) -> None:
    assert_refused(call("info", lattice, "--element", "QQ1"), ["--element 'QQ1'", "nearest: 'Q1'"])


def test_beam_file_that_is_none_is_refused(lattice: Path, tmp_path: Path) -> None:
    path = tmp_path / "beam.h5"
    path.write_text("no particles here")
    assert_refused(call("info", lattice, "--beam", path), ["beam.h5"])


@pytest.mark.parametrize(
    "arguments", [["info"], ["gradient"], ["gradient", "--top", "-1"], ["nonsense"], ["demo", "--target", "1"]]
)
def test_wrong_usage_ends_with_two(arguments: list[str]) -> None:
    result = call(*arguments)
    assert result.exit_code == 2
    assert "Traceback" not in result.output


# -- demo -----------------------------------------------------------------------------------------------------------


def test_demo_refuses_a_folder_that_is_a_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("")
    assert_refused(call("demo", "--out", path), ["file"])
