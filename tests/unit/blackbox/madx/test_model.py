"""The life of a MAD-X model: failures, dead processes, changes by hand."""

from __future__ import annotations

import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lume_diff.blackbox.madx.knobs import KnobFinder
from lume_diff.blackbox.madx.model import MADXModel
from lume_diff.blackbox.madx.session import MADXSession
from lume_diff.errors import SimulatorError, ValidationError

cpymad = pytest.importorskip("cpymad.madx")

Make = Callable[..., Any]


def test_unstable_lattice_is_an_error_and_no_end(model: Any) -> None:
    before = model.get("tune_x")
    with pytest.raises(SimulatorError, match=r"TWISS failed.*qf\.k1=20"):
        model.set({"qf.k1": 20.0})
    assert torch.equal(model({})["tune_x"], before)


def test_overlap_kills_the_child_and_no_more(model: Any) -> None:
    before = model.get("tune_x")
    with pytest.raises(SimulatorError, match=r"MAD-X died with exit code.*negative drift.*qd\.length=30"):
        model({"qd.length": 30.0})
    assert torch.equal(model({})["tune_x"], before)


def test_dead_child_is_replaced(model: Any) -> None:
    before = model.get("end.beta_x")
    process = model.simulator._process
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert model.simulator._process.pid != process.pid
    os.kill(model.simulator._process.pid, signal.SIGKILL)
    runs = model.runs
    assert model({"hk.hkick": 1e-9})["end.beta_x"].item() == pytest.approx(before.item(), rel=1e-9)
    assert model.runs == runs + 1


def test_close_ends_the_child(folder: Path, fodo: Make) -> None:
    found = MADXModel(fodo(folder), controls=[], outputs=["tune_x"])
    process = found.simulator._process
    found.close()
    assert process.poll() is not None


def test_value_that_is_not_finite_is_refused(model: Any) -> None:
    for value in (math.nan, math.inf):
        with pytest.raises(ValidationError, match=r"qf\.k1"):
            model({"qf.k1": value})


def test_value_that_madx_left_out_is_noticed(folder: Path, fodo: Make) -> None:
    session = MADXSession([fodo(folder)], "cell")
    try:
        (knob,) = KnobFinder(session).choose(["qd.k1"])
        knob.check(session, -0.6)
        session.command(knob.commands(session, math.nan)[0])  # MAD-X takes it for zero, without a word
        with pytest.raises(SimulatorError, match=r"has not taken qd\.k1 = -0\.7"):
            knob.check(session, -0.7)
    finally:
        session.close()


def test_refresh_reads_what_was_changed_by_hand(folder: Path, fodo: Make) -> None:
    with MADXModel(fodo(folder), controls=["qf.k1", "qd.k1"], outputs=["tune_x"]) as found:
        identity = found._runner.identity()
        found.set({"qd.k1": -0.61})
        found.simulator.globals.kqf = 0.32
        found.simulator.elements.qd.k1 = -0.62
        found.refresh()
        assert [found.get(name).item() for name in ("qf.k1", "qd.k1")] == [0.32, -0.61]
        assert found._runner.identity() != identity
        tune = found.get("tune_x")
        with pytest.raises(SimulatorError):
            found({"qf.k1": 20.0})  # starts a fresh process, which is brought to the same state
        assert torch.equal(found({})["tune_x"], tune)
        assert found.simulator.elements.qf.k1 == 0.32
        found.reset()
        assert found.get("qd.k1").item() == -0.62


def test_identity_follows_files_that_the_deck_calls(folder: Path, fodo: Make) -> None:
    inner, outer = folder / "inner.madx", folder / "outer.madx"
    outer.write_text('call, file = "inner.madx";')
    deck = fodo(folder).read_text()
    identities = []
    for extra in ("", "! a note"):
        inner.write_text(deck + extra)
        with MADXModel(outer, controls=[], outputs=["tune_x"]) as found:
            assert math.isfinite(found.get("tune_x"))
            identities.append(found._runner.identity())
    assert identities[0] != identities[1]
    assert identities[0].startswith("MAD-X 5.")
