"""ImpactX lattices from elements, functions and files, and changes by hand."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lume_diff.errors import LatticeError, SimulatorError

pytest.importorskip("impactx")
import impactx
from impactx import elements as ix

from lume_diff.blackbox.impactx.lattice import element_data
from lume_diff.blackbox.impactx.model import ImpactXModel
from lume_diff.blackbox.impactx.simulator import ImpactXSimulator, Recipe

Make = Callable[..., Any]

EXAMPLES = Path(impactx.__file__).parent / "examples"


def test_the_lattice_given_is_not_changed(bunch: Make, line: Make) -> None:
    elements = line()
    model = ImpactXModel(elements, beam=bunch())
    model.set({"Q1.k1": 3.0, "D1.length": 2.0})
    assert (elements[0].k, elements[1].ds) == (2.0, 1.0)
    model.simulator.select(name="Q1")[0].k = 7.0
    assert elements[0].k == 2.0


def test_refresh_reads_what_was_changed_by_hand(bunch: Make, line: Make) -> None:
    model = ImpactXModel(line(), ["Q1.k1"], ["final.sigma_x"], beam=bunch())
    before = model.get("final.sigma_x").item()
    model.simulator.select(name="Q1")[0].k = 5.0
    model.simulator.select(name="D2")[0].ds = 1.5
    model.refresh()
    after = model.get("final.sigma_x").item()
    assert model.get("Q1.k1").item() == 5.0
    fresh = line()
    fresh[0].k, fresh[-1].ds = 5.0, 1.5
    assert after == ImpactXModel(fresh, [], ["final.sigma_x"], beam=bunch()).get("final.sigma_x").item()
    assert after != before
    model.simulator.append(ix.Marker("new"))
    with pytest.raises(LatticeError, match="build a new model"):
        model.refresh()


def test_elements_that_act_through_python_come_from_a_function(bunch: Make, line: Make) -> None:
    calls = []

    def lattice() -> list[Any]:
        element = ix.Programmable(name="P", ds=0.0)
        element.push = lambda beam, step, period: calls.append(step)
        return [*line(), element]

    model = ImpactXModel(lattice, ["Q1.k1"], ["final.sigma_x"], beam=bunch())
    model.set({"Q1.k1": 1.0})
    assert calls
    with pytest.raises(LatticeError, match="function that returns"):
        ImpactXModel(lattice(), beam=bunch())


@pytest.mark.parametrize("name", ["fodo.madx", "input_fodo.in"])
def test_lattices_are_read_from_files(name: str, bunch: Make) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Our MAD-X and PALS parsers", RuntimeWarning)
        model = ImpactXModel(str(EXAMPLES / "fodo" / name), beam=bunch())
    strengths = {round(model.get(n).item(), 9) for n in model.input_names if n.endswith(".k1")}
    assert strengths == {1.0, -1.0}
    assert model.get("final.sigma_x").item() > 0


def test_the_identity_tells_lattices_and_settings_apart(line: Make) -> None:
    data = [element_data(element) for element in line()]
    first = ImpactXSimulator(Recipe(data, ["Q1.k1"]))
    same = ImpactXSimulator(Recipe(data, ["Q1.k1"]))
    assert first.identity() == same.identity()
    assert impactx.__version__ in first.identity()
    same.native.select(name="D2")[0].ds = 3.0
    others = [same, ImpactXSimulator(Recipe(data, ["Q1.k1"], settings={"space_charge": "3D"}))]
    assert len({first.identity(), *(other.identity() for other in others)}) == 3


def test_changes_by_hand_outlive_a_failed_run_and_copies(bunch: Make, line: Make) -> None:
    model = ImpactXModel(line(), ["Q1.k1"], ["final.sigma_x"], beam=bunch())
    model.simulator.select(name="D2")[0].ds = 1.5
    model.refresh()
    before = model.get("final.sigma_x")
    backwards = model.get("initial_particles")
    with pytest.raises(SimulatorError, match="fly backwards"):  # twice, the second time on a fresh simulator
        model({"initial_particles": backwards.replace(pz=-backwards.pz)})
    assert model.simulator.select(name="D2")[0].ds == 1.5
    assert torch.equal(model({})["final.sigma_x"], before)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.simulator.select(name="D2")[0].ds == 1.5
        assert torch.equal(other({"Q1.k1": model.get("Q1.k1")})["final.sigma_x"], before)
    model.simulator.append(ix.Marker("new"))
    with pytest.raises(SimulatorError, match="build a new model"):
        model({"Q1.k1": 2.5})
