"""The life of a pyAT model: failures, changes by hand, copies, files."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lume_diff.blackbox.at.model import ATModel
from lume_diff.errors import LatticeError, SimulatorError, UnknownVariableError, ValidationError

at = pytest.importorskip("at")

Make = Callable[..., Any]


def test_unstable_lattice_is_an_error_and_no_end(fodo: Make, state_of: Make, same_state: Make) -> None:
    model = ATModel(fodo(), controls=["QF.k1"], outputs=["tune_x"])
    before, state = model.get("tune_x"), state_of(model.simulator)
    with pytest.raises(SimulatorError, match=r"Unstable ring.*QF\.k1=9"):
        model.set({"QF.k1": 9.0})
    assert model.get("QF.k1").item() == 0.5
    assert torch.equal(model.get("tune_x"), before)
    assert torch.equal(model({"QF.k1": 0.5})["tune_x"], before)
    assert same_state(state_of(model.simulator), state)


def test_value_that_is_not_finite_is_refused(fodo: Make) -> None:
    model = ATModel(fodo(), controls=["QF.k1"], outputs=["tune_x"])
    for value in (math.nan, math.inf):
        with pytest.raises(ValidationError, match=r"QF\.k1"):
            model({"QF.k1": value})
    assert model.runs == 0


def test_refresh_reads_what_was_changed_by_hand(fodo: Make, optics_of: Make) -> None:
    own = fodo()
    model = ATModel(own, controls=["QF.k1", "QD.k1"], outputs=["tune_x"])
    model.set({"QD.k1": -0.51})
    model.simulator["QF"][0].K = 0.52
    model.simulator["QD"][0].K = -0.53
    identity = model._runner.identity()
    model.refresh()
    assert [model.get(name).item() for name in ("QF.k1", "QD.k1")] == [0.52, -0.51]
    own["QF"][0].K, own["QD"][0].K = 0.52, -0.51
    assert model.get("tune_x").item() == pytest.approx(optics_of(own)["tune_x"], rel=1e-10)
    model.reset()
    assert model.get("QD.k1").item() == -0.53
    with pytest.raises(SimulatorError):
        model({"QF.k1": 9.0})  # makes a fresh simulator, which keeps what was changed
    assert model.simulator["QF"][0].K == 0.52
    assert model._runner.identity() == identity
    other = pickle.loads(pickle.dumps(model))
    assert torch.equal(other.get("tune_x"), model.get("tune_x"))
    assert other.simulator["QF"][0].K == 0.52
    model.set({"QF.k1": 0.54})
    model.make_baseline()
    model.refresh()
    model.reset()
    assert model.get("QF.k1").item() == 0.54


def test_identity_tells_lattices_apart(fodo: Make) -> None:
    one, other = fodo(), fodo()
    other["D"][0].Length = 2.0 + 1e-12
    identities = {ATModel(lattice, controls=[], outputs=["tune_x"])._runner.identity() for lattice in (one, one, other)}
    assert len(identities) == 2
    assert all(identity.startswith(f"pyAT {at.__version__}:") for identity in identities)


@pytest.mark.parametrize("suffix", [".json", ".m", ".mat", ".repr"])
def test_lattice_is_read_from_a_file(tmp_path: Path, suffix: str, fodo: Make, optics_of: Make) -> None:
    path = tmp_path / f"cell{suffix}"
    at.save_lattice(fodo(), str(path))
    model = ATModel(path, controls=["QF.k1"], outputs=["tune_x"])
    assert model.get("tune_x").item() == pytest.approx(optics_of(fodo())["tune_x"], rel=1e-9)


def test_what_is_no_lattice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.json").write_text("{")
    for lattice in (tmp_path / "none.mat", tmp_path / "bad.json", [at.Drift("D", 1.0)], 3):
        with pytest.raises(LatticeError, match=r"does not exist|not one that pyAT reads|expected an at\.Lattice"):
            ATModel(lattice)


def test_reference_energy_of_elements(fodo: Make, bunch: Make) -> None:
    model = ATModel(fodo(1e8), controls=["QF.k1"], beam=bunch(n=20), outputs=["final.sigma_x"])
    energy = torch.tensor(1.01e8, dtype=torch.float64, requires_grad=True)
    assert model.reference_energy({"reference_energy": energy}, ["QD"])["QD"] is energy
    assert ATModel(fodo()).reference_energy(None, ["QF"])["QF"].item() == 1e9
    with pytest.raises(UnknownVariableError, match="no element"):
        model.reference_energy(None, ["QX"])


def test_reference_energy_behind_a_change_of_it_is_not_told(fodo: Make) -> None:
    lattice = fodo()
    lattice.insert(3, at.Element("UP", PassMethod="ChangePRefPass", FieldScaling=1.1))
    model = ATModel(lattice, controls=["QF.k1"], outputs=["END.s"], periodic=False)
    assert model.reference_energy(None, ["QF", "UP"])["UP"].item() == 1e9
    with pytest.raises(LatticeError, match="'QD' is not known: an element before it changes it"):
        model.reference_energy(None, ["QD"])


def test_copies_live_on_their_own(fodo: Make) -> None:
    model = ATModel(fodo(), controls=["QF.k1"], outputs=["tune_x"])
    other = copy.deepcopy(model)
    other.simulator["QF"][0].K = 0.6
    assert model.simulator["QF"][0].K == 0.5
    assert other.simulator is not model.simulator
