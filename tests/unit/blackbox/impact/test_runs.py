"""ImpactTModel at work: what runs leave, workers, copies, the native object, and what is refused."""

from __future__ import annotations

import copy
import os
import pickle
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lume_diff.blackbox.differences.method import FiniteDifference
from lume_diff.blackbox.impact.model import ImpactTModel
from lume_diff.errors import SimulatorError, UnknownVariableError, ValidationError
from tests.unit.blackbox.impact.drift import DRIFT, bunch, number

psutil = pytest.importorskip("psutil", reason="the extra 'impact' is not installed")
pytestmark = pytest.mark.usefixtures("impact_t")
WriteDeck = Callable[..., Path]


def ours() -> set[str]:
    """Return the folders of runs that are there now."""
    return {path.name for path in Path(tempfile.gettempdir()).glob("impact-t-*") if f"-{os.getpid()}-" in path.name}


# -- runs ------------------------------------------------------------------------------------------------------


def test_ten_thousand_in_ten_thousand_out_and_nothing_is_left(
    write_deck: WriteDeck, tmp_path: Path, monkeypatch: Any, capfd: Any
) -> None:
    place = tmp_path / "here"
    place.mkdir()
    monkeypatch.chdir(place)
    before = ours()
    given = bunch(10_000)
    model = ImpactTModel(write_deck(dt=2e-11), ["Q1.b1_gradient"], ["final.sigma_x"], beam=given, timeout=120.0)
    found = model.get("final_particles")
    assert found.n_particle == 10_000
    assert torch.equal(found.id, given.id)
    assert number(found.alive.sum()) == 10_000.0
    again = ImpactTModel(write_deck(dt=2e-11), ["Q1.b1_gradient"], ["final.sigma_x"], beam=given, timeout=120.0)
    assert torch.equal(again.get("final_particles").x, found.x)  # to the last digit
    assert ours() == before
    assert list(place.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_a_run_that_hangs_is_one_error_and_leaves_nothing(write_deck: WriteDeck) -> None:
    before = ours()
    deck = write_deck(dt=1e-22, steps=1000000000)  # which gets nowhere
    model = ImpactTModel(deck, [], ["final.sigma_x"], beam=bunch(10), timeout=1.0)
    begin = time.monotonic()
    with pytest.raises(SimulatorError, match="did not end within the timeout of 1 s") as seen:
        model.get("final.sigma_x")
    assert time.monotonic() - begin < 1.0 + 20.0
    assert "i,t,<z>" in str(seen.value) or "zmin,zmax" in str(seen.value)
    assert psutil.Process().children(recursive=True) == []
    assert ours() == before


def test_too_few_steps_are_an_error(write_deck: WriteDeck) -> None:
    model = ImpactTModel(write_deck(steps=20), [], ["final.sigma_x"], beam=bunch(10))
    with pytest.raises(SimulatorError, match="Ntstep"):
        model.get("final.sigma_x")


def test_numbers_that_are_none_never_reach_impact_t(write_deck: WriteDeck) -> None:
    model = ImpactTModel(write_deck(), ["Q1.b1_gradient"], ["final.sigma_x"], beam=bunch(10), timeout=60.0)
    with pytest.raises(ValidationError):
        model.set({"Q1.b1_gradient": float("nan")})
    simulator = model._runner.simulator
    inputs = {"Q1.b1_gradient": float("nan"), "initial_particles": bunch(10).to_particle_group()}
    with pytest.raises(ValidationError, match=r"'Q1.b1_gradient' is nan, on which IMPACT-T would hang"):
        simulator.run(inputs, ["final_particles"])
    model.simulator.ele["SOL1"]["solenoid_field_scale"] = float("inf")
    model.refresh()
    with pytest.raises(SimulatorError, match=r"'SOL1.solenoid_field_scale' is inf"):
        model.get("final.sigma_x")


@pytest.mark.slow
def test_workers_give_the_same(write_deck: WriteDeck) -> None:
    given = bunch(50)
    options: dict[str, Any] = {"beam": given, "timeout": 60.0, "gradient": FiniteDifference(step=1e-2)}
    here = ImpactTModel(write_deck(), ["Q1.b1_gradient"], ["final.sigma_x"], **options)
    expected = here.jacobian(["final.sigma_x"], ["Q1.b1_gradient"])["final.sigma_x"]["Q1.b1_gradient"]
    with ImpactTModel(write_deck(), ["Q1.b1_gradient"], ["final.sigma_x"], workers=2, **options) as model:
        found = model.jacobian(["final.sigma_x"], ["Q1.b1_gradient"])["final.sigma_x"]["Q1.b1_gradient"]
        assert torch.equal(found, expected)
        model.simulator.ele["Q1"]["b1_gradient"] = 0.7
        model.refresh()
        here.set({"Q1.b1_gradient": 0.7})
        assert number(model.get("Q1.b1_gradient")) == 0.7
        assert number(model.get("final.sigma_x")) == number(here.get("final.sigma_x"))


@pytest.mark.slow
def test_a_worker_whose_run_hangs_is_told_so_once(write_deck: WriteDeck) -> None:
    deck = write_deck(dt=1e-22, steps=1000000000)
    with ImpactTModel(deck, [], ["final.sigma_x"], beam=bunch(10), timeout=1.0, workers=1) as model:
        with pytest.raises(SimulatorError, match="did not end within the timeout of 1 s"):
            model.get("final.sigma_x")
        for worker in psutil.Process().children():
            assert worker.children(recursive=True) == []


# -- the native object -----------------------------------------------------------------------------------------


def test_refresh_reads_what_was_changed_by_hand(write_deck: WriteDeck) -> None:
    model = ImpactTModel(write_deck(), ["Q1.b1_gradient"], ["final.sigma_x"], beam=bunch(50))
    before = number(model.get("final.sigma_x"))
    model.simulator["Q1:b1_gradient"] = 0.8
    model.simulator.ele["SOL1"]["solenoid_field_scale"] = 0.02
    model.refresh()
    after = number(model.get("final.sigma_x"))
    assert number(model.get("Q1.b1_gradient")) == 0.8
    other = ImpactTModel(
        write_deck(), ["Q1.b1_gradient", "SOL1.solenoid_field_scale"], ["final.sigma_x"], beam=bunch(50)
    )
    other.set({"Q1.b1_gradient": 0.8, "SOL1.solenoid_field_scale": 0.02})
    assert after == number(other.get("final.sigma_x")) != before
    assert model.simulator["Q1:b1_gradient"] == 0.8  # runs leave the object alone
    field = model.simulator.fieldmaps["rfdata201"]["field"]["Bz"]["fourier_coefficients"]
    field *= 0.5
    model.refresh()
    assert number(model.get("final.sigma_x")) != after


def test_copies_stay_apart(write_deck: WriteDeck) -> None:
    model = ImpactTModel(write_deck(), ["Q1.b1_gradient"], ["final.sigma_x"], beam=bunch(50))
    first = number(model.get("final.sigma_x"))
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        other.simulator.ele["Q1"]["b1_gradient"] = 0.9
        other.refresh()
        assert number(other.get("final.sigma_x")) != first
        assert model.simulator.ele["Q1"]["b1_gradient"] == 0.5
    assert number(model.get("final.sigma_x")) == first


def test_the_identity_tells_decks_apart(write_deck: WriteDeck, impact_t: Path, tmp_path: Path) -> None:
    def identity(deck: Path, **options: Any) -> str:
        model = ImpactTModel(deck, ["Q1.b1_gradient"], ["final.sigma_x"], **{"beam": bunch(10), **options})
        assert model._runner.identity() == copy.deepcopy(model)._runner.identity()
        return model._runner.identity()

    deck = write_deck()
    first = identity(deck)
    shutil.copytree(deck.parent, tmp_path / "elsewhere")
    assert identity(tmp_path / "elsewhere" / "ImpactT.in") == first
    other = tmp_path / "ImpactTexe"
    other.write_bytes(impact_t.read_bytes() + b" ")
    other.chmod(0o755)
    others = [identity(deck, command=other), identity(write_deck(folder="step", dt=2e-11))]
    changed = write_deck(folder="field")
    numbers = (changed.parent / "rfdata201").read_text()
    (changed.parent / "rfdata201").write_text(numbers.replace("0.5", "0.4"))
    others.append(identity(changed))
    seed = write_deck(folder="seed")
    seed.write_text(seed.read_text().replace("6 100 1", "7 100 1"))
    others.append(identity(seed))
    assert len({first, *others}) == 5


def test_an_archive_keeps_runs_of_the_same_deck_and_bunch(write_deck: WriteDeck, tmp_path: Path) -> None:
    def build(**options: Any) -> Any:
        options = {"beam": bunch(20), "archive": tmp_path / "runs.db", **options}
        return ImpactTModel(write_deck(), ["Q1.b1_gradient"], ["final.sigma_x"], **options)

    first = build()
    value = number(first.get("final.sigma_x"))
    again = build()
    assert number(again.get("final.sigma_x")) == value
    assert (first.runs, again.runs) == (1, 0)
    other = build(beam=bunch(21))
    other.get("final.sigma_x")
    assert other.runs == 1


@pytest.mark.parametrize(
    "change,error,words",
    [
        ({"outputs": ["final.sigmax"]}, UnknownVariableError, "nearest: 'final.sigma_x'"),
        ({"outputs": ["Q9.sigma_x"]}, UnknownVariableError, "no element 'Q9'"),
        ({"outputs": ["final.x"]}, UnknownVariableError, "not known"),
        ({"controls": "Q1.b1_gradient"}, ValidationError, r"write \['Q1.b1_gradient'\]"),
        ({"timeout": 0.0}, ValidationError, "greater than 0"),
        ({"start": float("nan")}, ValidationError, "a place in the deck"),
        ({"command": "/nowhere/ImpactTexe"}, ValidationError, "no executable"),
    ],
)
def test_mistakes_are_refused_when_the_model_is_built(
    write_deck: WriteDeck, change: Any, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        ImpactTModel(write_deck(), **{"beam": bunch(10), **change})


def test_places_too_close_to_each_other_are_an_error(write_deck: WriteDeck) -> None:
    lattice = DRIFT.replace("0.5 /!name:SCR", "0.5 /!name:SCR\n0 1 72 -2 0 0 0.5001 /!name:SCR2")
    model = ImpactTModel(write_deck(lattice), [], ["SCR.sigma_x", "SCR2.sigma_x"], beam=bunch(10))
    with pytest.raises(SimulatorError, match=r"no bunch at 0\.5001 m.*in one step with another place"):
        model.get("SCR2.sigma_x")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        alone = ImpactTModel(write_deck(lattice), [], ["SCR2.sigma_x"], beam=bunch(10))
        assert number(alone.get("SCR2.sigma_x")) > 0.0
