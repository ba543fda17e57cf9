"""pyAT, MAD-X and ImpactX in worker processes: the same numbers as in this process, whatever happens to a worker."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import lume_diff as ld
from lume_diff.blackbox.at.model import ATModel
from lume_diff.blackbox.impactx.model import ImpactXModel
from lume_diff.blackbox.madx.model import MADXModel
from lume_diff.errors import SimulatorError

pytestmark = [
    pytest.mark.system,
    pytest.mark.usefixtures("time_limit"),
    pytest.mark.skipif(sys.platform != "linux", reason="looks at processes in /proc"),
]

Make = Callable[..., Any]
MADX = """
kqf = 0.3;
qf: quadrupole, l = 0.5, k1 := kqf;
qd: quadrupole, l = 0.5, k1 = -0.3;
end: marker;
cell: sequence, l = 10, refer = centre;
qf, at = 0.25; qd, at = 5; end, at = 10;
endsequence;
beam, particle = electron, energy = 1.0;
"""
IMPACTX = """
beam, particle = electron, energy = 0.1;
q1: quadrupole, l = 0.2, k1 = 1.0;
d1: drift, l = 1.0;
q2: quadrupole, l = 0.2, k1 = -1.0;
line: line = (q1, d1, q2);
use, sequence = line;
"""


@dataclass
class Case:
    """A code, and what is done with it.

    Attributes:
        make: makes a model of a lattice, with options.
        lattices: native ones and files, by name.
        point: where it is evaluated.
        output: of which gradients are taken.
        change: changes the native object by hand, in a way that shows if it is done twice.
        bad: inputs that fail, on which the simulator is made anew; empty if there are none.
    """

    make: Make
    lattices: dict[str, Any]
    point: dict[str, float]
    output: str
    change: Callable[[Any], Any]
    bad: dict[str, float]


def at_case(folder: Path) -> Case:
    at = pytest.importorskip("at")
    d = at.Drift("D", 2.0)
    bend = at.Dipole("B", 1.0, 0.1, EntranceAngle=0.09, ExitAngle=0.01)
    cell = at.Lattice([at.Quadrupole("QF", 0.5, 0.5), d, bend, d, at.Quadrupole("QD", 0.5, -0.5), d], energy=1e9)
    file = folder / "cell.json"
    at.save_lattice(cell, str(file))

    def make(lattice: Any, **options: Any) -> Any:
        return ATModel(lattice, ["QF.k1", "QD.k1"], ["tune_y", "final.beta_y"], **options)

    point = {"QF.k1": 0.52, "QD.k1": -0.49}
    lattices = {"object": cell, "file": file}
    return Case(make, lattices, point, "final.beta_y", lambda native: native[2].swap_faces(), {"QF.k1": 9.0})


def madx_case(folder: Path) -> Case:
    pytest.importorskip("cpymad")
    file = folder / "cell.madx"
    file.write_text(MADX)

    def make(lattice: Any, **options: Any) -> Any:
        return MADXModel(lattice, "cell", ["qd.k1"], ["tune_y", "end.beta_y"], **options)

    def change(native: Any) -> None:
        native.input("kqf = kqf + 0.001;")

    return Case(make, {"file": file}, {"qd.k1": -0.31}, "end.beta_y", change, {"qd.k1": 20.0})


def impactx_case(folder: Path) -> Case:
    pytest.importorskip("impactx")
    from impactx import elements as ix

    line = [ix.Quad(name="q1", ds=0.2, k=1.0), ix.Drift(name="d1", ds=1.0), ix.Quad(name="q2", ds=0.2, k=-1.0)]
    file = folder / "line.madx"
    file.write_text(IMPACTX)
    twiss = {"beta_x": 10.0, "norm_emit_x": 1e-6, "beta_y": 5.0, "norm_emit_y": 1e-6}
    beam = ld.BunchFromMoments(100, mean_energy=1e8, charge=1e-10, **twiss).get("final_particles")

    def make(lattice: Any, **options: Any) -> Any:
        return ImpactXModel(lattice, ["q1.k1"], ["final.sigma_x"], beam, **options)

    def change(native: Any) -> None:
        native[2].k = -1.3

    return Case(make, {"object": line, "file": file}, {"q1.k1": 1.1}, "final.sigma_x", change, {})


CASES = {"pyAT": at_case, "MAD-X": madx_case, "ImpactX": impactx_case}


@pytest.fixture
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    return CASES[request.param](tmp_path)


@pytest.fixture
def models(exists: Make, children: Make, wait_until: Make) -> Iterator[Make]:
    """Make models; afterwards no worker may be left, and nothing that a worker started."""
    made: list[Any] = []

    def make(case: Case, kind: str, **options: Any) -> Any:
        made.append(case.make(case.lattices[kind], **options))
        return made[-1]

    yield make
    left = []
    for model in made:
        pids = model._runner.pids() if hasattr(model._runner, "pids") else []
        left += [*pids, *(child for pid in pids for child in children(pid))]
        model.close()
    assert wait_until(lambda: not any(exists(pid) for pid in left))


def gradient(model: Any, case: Case, factor: float = 1.0) -> torch.Tensor:
    """Return the output and its gradient at a point near the case's."""
    leaves = {
        name: torch.tensor(factor * value, dtype=torch.float64, requires_grad=True)
        for name, value in case.point.items()
    }
    found = model(leaves)[case.output]
    found.backward()
    return torch.stack([found.detach(), *(leaf.grad for leaf in leaves.values())])


def assert_same(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0.0)


def kill(model: Any) -> None:
    os.kill(model._runner.pids()[0], signal.SIGKILL)


@pytest.mark.filterwarnings("ignore:Our MAD-X and PALS parsers")  # ImpactX's
@pytest.mark.parametrize(
    "case, kind",
    [("pyAT", "object"), ("pyAT", "file"), ("MAD-X", "file"), ("ImpactX", "object"), ("ImpactX", "file")],
    indirect=["case"],
)
def test_two_workers_give_what_this_process_gives(case: Case, kind: str, models: Make) -> None:
    here, there = models(case, kind), models(case, kind, workers=2, timeout=60.0)
    assert_same(gradient(there, case), gradient(here, case))
    assert len(there._runner.pids()) == 2
    assert there.runs == here.runs
    kill(there)
    assert_same(gradient(there, case, 1.001), gradient(here, case, 1.001))
    assert len(set(there._runner.pids())) == 2


@pytest.mark.parametrize("case", list(CASES), indirect=True)
def test_changes_by_hand_are_made_once_everywhere(case: Case, models: Make) -> None:
    kind = next(iter(case.lattices))
    here, there = models(case, kind), models(case, kind, workers=2)
    before = gradient(there, case)
    for model in (here, there):
        case.change(model.simulator)
        model.refresh()
        assert model.input_names == here.input_names
    expected = gradient(here, case)
    assert not torch.allclose(expected, before, rtol=1e-6)
    assert_same(gradient(there, case), expected)
    assert len(there.simulator.log) == 1
    for model in (here, there):
        if case.bad:
            for factor in (1.0, 1.01, 1.02):  # each makes one simulator anew, with what was changed
                with pytest.raises(SimulatorError):
                    model({name: factor * value for name, value in case.bad.items()})
        model.refresh()
    kill(there)
    assert_same(gradient(there, case), expected)
    assert_same(gradient(here, case), expected)
    for model in (here, there):
        model.set(case.point)
        model.reset()  # to the baseline, of which changes by hand are part
    assert_same(gradient(there, case), expected)
    assert_same(gradient(here, case), expected)
    there.refresh()
    assert len(there.simulator.log) == 1
    there._runner.reset()
    there.refresh()
    assert_same(gradient(there, case), before)
