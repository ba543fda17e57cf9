"""The one ImpactX of a process."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("impactx")
import impactx
from impactx import elements as ix

from lume_diff.blackbox.impactx.model import ImpactXModel

Make = Callable[..., Any]

EXAMPLES = Path(impactx.__file__).parent / "examples"


def test_models_of_one_process_share_impactx_and_stay_apart(bunch: Make, line: Make) -> None:
    start = bunch(charge=1e-9)
    plain = ImpactXModel(line(), ["Q1.k1"], ["final.sigma_x"], beam=start)
    dense = ImpactXModel(line(), ["Q1.k1"], ["final.sigma_x"], beam=start, space_charge="3D", n_cell=(16, 16, 16))
    other = copy.deepcopy(plain)
    again = pickle.loads(pickle.dumps(dense))
    first = plain.get("final.sigma_x").item(), dense.get("final.sigma_x").item()
    assert first[1] > 1.001 * first[0]
    for value in (1.5, 2.5, 2.0):
        plain.set({"Q1.k1": value})
        dense.set({"Q1.k1": value})
    assert (plain.get("final.sigma_x").item(), dense.get("final.sigma_x").item()) == first
    assert (other.get("final.sigma_x").item(), again.get("final.sigma_x").item()) == first
    dense.close()
    plain.set({"Q1.k1": 2.0})
    assert plain.get("final.sigma_x").item() == first[0]


def test_nothing_is_printed_and_no_file_is_left(
    tmp_path: Path, monkeypatch: Any, capfd: Any, bunch: Make, line: Make, slit: Make
) -> None:
    monkeypatch.chdir(tmp_path)
    elements = [*line(), ix.BeamMonitor("MON", backend="h5"), *slit(1e-4)]
    for name in ("fft", "multigrid"):
        model = ImpactXModel(
            elements,
            ["Q1.k1"],
            ["MON.sigma_x"],
            beam=bunch(),
            space_charge="3D",
            n_cell=(16, 16, 16),
            settings={"poisson_solver": name, "prob_relative": [3.0]},
        )
        model.get("MON.sigma_x")
    model = ImpactXModel(str(EXAMPLES / "fodo" / "input_fodo.in"), beam=bunch())
    model.get("final.sigma_x")
    model.close()
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


ALONE = """
    import os, signal, time, impactx, lume_diff as ld
    from impactx import elements as ix
    from lume_diff.blackbox.impactx.model import ImpactXModel

    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background

    def theirs():
        sim = impactx.ImpactX()
        sim.verbose, sim.diagnostics, sim.tiny_profiler, sim.space_charge = 0, False, False, False
        sim.init_grids()
        return sim

    twiss = dict(beta_x=5.0, norm_emit_x=1e-6, beta_y=4.0, norm_emit_y=1e-6)
    beam = ld.BunchFromMoments(100, mean_energy=1e8, charge=1e-10, **twiss).get("final_particles")
    line = [ix.Quad(name="Q", ds=0.2, k=1.0)]
    sim = theirs()
    try:
        ImpactXModel(line, beam=beam)
    except ld.SimulatorError as error:
        print("refused:", error)
    sim.finalize()

    model = ImpactXModel(line, ["Q.k1"], ["final.sigma_x"], beam=beam)
    before = float(model.get("final.sigma_x"))
    theirs().finalize()
    model.refresh()
    print("after a foreign finalize:", float(model.get("final.sigma_x")) == before)

    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
    except KeyboardInterrupt:
        print("interrupted")
"""


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[str]:
    """A process that also uses ImpactX by hand, and is interrupted."""
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(ALONE)],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path_factory.mktemp("alone"),
    )


@pytest.mark.system
def test_an_impactx_of_the_users_own_is_noticed(alone: subprocess.CompletedProcess[str]) -> None:
    assert "workers=1" in alone.stdout.partition("refused:")[2].splitlines()[0], alone.stderr


@pytest.mark.system
def test_a_foreign_finalize_does_not_end_the_process(alone: subprocess.CompletedProcess[str]) -> None:
    assert "after a foreign finalize: True" in alone.stdout, alone.stderr


@pytest.mark.system
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_interrupts_stay_pythons(alone: subprocess.CompletedProcess[str]) -> None:
    assert alone.stdout.splitlines()[-1] == "interrupted", alone.stderr
    assert (alone.returncode, alone.stderr) == (0, "")
