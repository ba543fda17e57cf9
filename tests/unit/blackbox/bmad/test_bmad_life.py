"""What happens to Tao: laws of a model, failures, death, changes by hand."""

from __future__ import annotations

import math
import os
import signal
from typing import Any

import numpy as np
import pytest

from lume_diff.blackbox.bmad.model import BmadModel
from lume_diff.blackbox.runners.proxy import ask
from lume_diff.errors import SimulatorError, ValidationError
from lume_diff.testing import check_model


@pytest.mark.slow
def test_model_keeps_every_law(decks: Any) -> None:
    with BmadModel(decks.ring(), controls=["QF.k1", "OV.a"], outputs=["tune_x", "END0.beta_x"]) as found:
        check_model(found)


@pytest.mark.slow
def test_model_with_a_bunch_keeps_every_law(decks: Any) -> None:
    with BmadModel(decks.init(), controls=["Q5.k1"], outputs=["D3.beta_x", "final.sigma_x"]) as found:
        check_model(found)


def test_unstable_lattice_is_an_error_and_no_end(model: Any) -> None:
    before = model.get("tune_x")
    with pytest.raises(SimulatorError, match=r"(?s)UNSTABLE.*QF\.k1=20"):
        model.set({"QF.k1": 20.0})
    assert model({})["tune_x"].item() == pytest.approx(before.item(), rel=1e-12)


def test_deck_that_is_unstable_can_be_made_stable(decks: Any) -> None:
    deck = decks.write("unstable.bmad", decks.ring().read_text().replace("k1 = 0.3", "k1 = 20"))
    with BmadModel(deck, controls=["QF.k1"], outputs=["tune_x"]) as found:
        with pytest.raises(SimulatorError, match="UNSTABLE"):
            found({})
        assert 0.0 < found({"QF.k1": 0.3})["tune_x"].item() < 0.5


def test_number_that_is_huge_is_an_error(model: Any) -> None:
    with pytest.raises(SimulatorError, match=r"Tao .*QF\.k1=1"):
        model({"QF.k1": 1e300})
    assert math.isfinite(model({"QF.k1": 0.3000001})["tune_x"])


def test_value_that_is_not_finite_is_refused(model: Any) -> None:
    for value in (math.nan, math.inf):
        with pytest.raises(ValidationError, match=r"QF\.k1"):
            model({"QF.k1": value})


def test_killed_worker_is_replaced(model: Any) -> None:
    expected = model({"HK.hkick": 1e-6})["END0.x"].item()
    before = model._runner.pids()
    os.kill(before[0], signal.SIGKILL)
    assert model({"HK.hkick": 2e-6})["END0.x"].item() == pytest.approx(2.0 * expected, rel=1e-3)
    assert model._runner.pids() != before


def test_refresh_reads_what_was_changed_by_hand(decks: Any) -> None:
    with BmadModel(decks.ring(), controls=["QF.k1", "Q2.k1"], outputs=["tune_x"]) as found:
        identity = found._runner.identity()
        found.set({"Q2.k1": 0.01})
        found.simulator.cmd("change ele QF k1 0.01")  # by so much, so that twice is another thing
        found.refresh()
        assert [round(found.get(name).item(), 12) for name in ("QF.k1", "Q2.k1")] == [0.31, 0.01]
        assert found._runner.identity() != identity
        tune = found.get("tune_x").item()
        os.kill(found._runner.pids()[0], signal.SIGKILL)
        assert found({})["tune_x"].item() == pytest.approx(tune, rel=1e-12)
        with pytest.raises(SimulatorError, match="UNSTABLE"):
            found({"QF.k1": 20.0})  # starts Tao anew
        assert found({"Q2.k1": 0.02})["tune_x"].item() != pytest.approx(tune, rel=1e-6)
        np.testing.assert_allclose(ask(found.simulator.lat_list, "QF", "ele.k1"), [0.31, 0.31], rtol=1e-12)


def test_one_tao_in_this_process(decks: Any) -> None:
    with BmadModel(decks.ring(), controls=["QF.k1"], outputs=["tune_x"], workers=0) as found:
        tune = found.get("tune_x").item()
        with pytest.raises(ValidationError, match=r"a Tao already.*workers=1"):
            BmadModel(decks.ring(), controls=["QF.k1"], outputs=["tune_x"], workers=0)
        found.simulator.cmd("set ele QF k1 = 0.31")
        found.refresh()
        assert found.get("QF.k1").item() == 0.31
        moved = found.get("tune_x").item()
        assert moved != tune
        with pytest.raises(SimulatorError, match="UNSTABLE"):
            found({"QF.k1": 20.0})  # starts Tao anew, which is brought to the same state
        assert found({})["tune_x"].item() == pytest.approx(moved, rel=1e-12)
        assert found.simulator.lat_list("QF", "ele.k1")[0] == 0.31
    with BmadModel(decks.ring(), controls=["QF.k1"], outputs=["tune_x"], workers=0) as again:
        assert again.get("tune_x").item() == pytest.approx(tune, rel=1e-12)


def test_identity_tells_version_and_deck(model: Any, tracked: Any) -> None:
    identities = [found._runner.identity() for found in (model, tracked)]
    assert all(identity.startswith("Bmad 2") for identity in identities)
    assert identities[0] != identities[1]
