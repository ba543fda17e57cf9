"""What can be set in a deck: names, units, what stands there, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lume_diff.blackbox.impact.deck import Deck, deck_from_state, deck_state, read_deck
from lume_diff.blackbox.impact.knobs import Knobs, write_all
from lume_diff.errors import LatticeError, UnknownVariableError, ValidationError

pytestmark = pytest.mark.usefixtures("lume")
WriteDeck = Callable[..., Path]


def test_strengths_and_phases_are_offered_unasked(write_deck: WriteDeck) -> None:
    deck = write_deck()
    names = [knob.name for knob in Knobs(read_deck(deck), True).choose(None)]
    assert names == ["SOL1.solenoid_field_scale", "Q1.b1_gradient"]
    deck.write_text(deck.read_text().replace("0.1 0.0 0.0 0.0 201", "0.1 1e6 2.856e9 30.0 201"))
    names = [knob.name for knob in Knobs(read_deck(deck), True).choose(None)]
    assert names[:3] == ["SOL1.rf_field_scale", "SOL1.theta0_deg", "SOL1.solenoid_field_scale"]


@pytest.mark.parametrize(
    "name,value,unit,scale",
    [
        ("SOL1.solenoid_field_scale", 0.05, "", 5e-4),
        ("SOL1.theta0_deg", 0.0, "deg", 1.0),
        ("SOL1.rf_frequency", 0.0, "Hz", 1e-2),
        ("Q1.b1_gradient", 0.5, "T/m", 5e-3),
        ("Q1.L_effective", 0.1, "m", 1e-3),
        ("Q1.zedge", 0.3, "m", 1e-3),
        ("Q1.z_rotation", 0.0, "rad", 1e-3),
        ("D2.L", 0.3, "m", 1e-3),
        ("SCR1.s", 0.6, "m", 1e-3),
        ("stop_1.s", 0.8, "m", 1e-3),
        ("header.Dt", 1e-11, "s", 1e-13),
        ("header.Bcurr", 2.0, "A", 2e-2),
        ("total_charge", 2.0 / 2.856e9, "C", 2e-2 / 2.856e9),
    ],
)
def test_names_units_and_values(write_deck: WriteDeck, name: str, value: float, unit: str, scale: float) -> None:
    native = read_deck(write_deck(current=2.0))
    (knob,) = Knobs(native, True).choose([name])
    variable: Any = knob.variable(native)
    assert (variable.default_value, variable.unit) == (value, unit)
    assert variable.scale == pytest.approx(scale, rel=1e-12)
    deck = Deck.of(native)
    write_all([knob], deck, {name: 1.25 * value + 1e-3}, native)
    changed = deck_from_state(deck_state(native))
    changed.input["header"], changed.input["lattice"] = deck.header, deck.lattice
    changed.ele_bookkeeper()
    assert knob.read(changed) == pytest.approx(1.25 * value + 1e-3, rel=1e-14)
    assert knob.read(native) == value


@pytest.mark.parametrize(
    "name,error,words",
    [
        ("SOL1.solenoid_scale", UnknownVariableError, "nearest: 'solenoid_field_scale'"),
        ("SOL2.solenoid_field_scale", UnknownVariableError, "no element 'SOL2'.*nearest: 'SOL1'"),
        ("solenoid_field_scale", UnknownVariableError, "no element"),
        ("SOL1.filename", UnknownVariableError, "cannot be set"),
        ("Q1.s", UnknownVariableError, "cannot be set"),
        ("Q1.x_offset", ValidationError, "Flagerr is 0: set it to 1"),
        ("header.Nx", ValidationError, r"model.simulator.header\['Nx'\]"),
        ("header.Dx", UnknownVariableError, "nearest: 'Dt'"),
        ("header.Tini", ValidationError, "the bunch that is given"),
    ],
)
def test_what_cannot_be_set_is_refused(write_deck: WriteDeck, name: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        Knobs(read_deck(write_deck()), True).choose([name])


def test_two_names_of_the_charge_are_refused(write_deck: WriteDeck) -> None:
    with pytest.raises(ValidationError, match=r"'total_charge' and 'header\.Bcurr' set the same number"):
        Knobs(read_deck(write_deck(current=2.0)), True).choose(["total_charge", "header.Bcurr"])


def test_placement_counts_where_the_deck_looks_at_it(write_deck: WriteDeck) -> None:
    knobs = Knobs(read_deck(write_deck(errors=1)), False).choose(["Q1.x_offset", "header.Tini"])
    assert [knob.unit for knob in knobs] == ["m", "s"]


def test_groups_of_a_yaml_file_act_on_their_elements(write_deck: WriteDeck, tmp_path: Path) -> None:
    write_deck()
    text = "input_file: deck/ImpactT.in\ngroup:\n  both:\n    ele_names: [SOL1, Q1]\n    var_name: up\n"
    text += "    attributes: [solenoid_field_scale, b1_gradient]\n    factors: [1.0, 2.0]\n"
    (tmp_path / "impact.yaml").write_text(text)
    native = read_deck(tmp_path / "impact.yaml")
    knobs = Knobs(native, True).choose(["both.up", "Q1.b1_gradient"])
    deck = Deck.of(native)
    write_all(knobs[:1], deck, {"both.up": 0.01}, native)
    assert deck.elements["SOL1"]["solenoid_field_scale"] == pytest.approx(0.06)
    assert deck.elements["Q1"]["b1_gradient"] == pytest.approx(0.52)
    assert native.ele["Q1"]["b1_gradient"] == 0.5
    native.group["both"]["up"] = 0.02
    again = deck_from_state(deck_state(native))
    assert again.ele["Q1"]["b1_gradient"] == native.ele["Q1"]["b1_gradient"] == pytest.approx(0.54)
    again.group["both"]["up"] = 0.0
    assert again.ele["Q1"]["b1_gradient"] == pytest.approx(0.5)
    assert native.ele["Q1"]["b1_gradient"] == pytest.approx(0.54)
    with pytest.raises(UnknownVariableError, match="known: 'up'"):
        Knobs(native, True).choose(["both.down"])


@pytest.mark.parametrize(
    "old,new,words",
    [
        ("0 0 0 -99 0 0 0.8", "0 0 0 -77 0 0 0.8", "which lume-impact cannot write|is not one that lume-impact takes"),
        (" 201 ", " 202 ", "names a file that is missing"),
        ("100000 1\n", "100000 2\n", "Nbunch is 2"),
        ("16 0 0", "16 1 0", "Rstartflg is 1"),
    ],
)
def test_decks_that_cannot_be_run_are_refused(write_deck: WriteDeck, old: str, new: str, words: str) -> None:
    deck = write_deck()
    assert old in deck.read_text()
    deck.write_text(deck.read_text().replace(old, new))
    with pytest.raises(LatticeError, match=words):
        read_deck(deck)


def test_a_deck_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(LatticeError, match="does not exist"):
        read_deck(tmp_path / "ImpactT.in")


def test_what_was_passed_is_done_already(write_deck: WriteDeck) -> None:
    path = write_deck()
    events = "0 0 0 -4 0 0 {} {} /!name:{}\n"
    lines = events.format(0.05, 2e-12, "dt1") + events.format(0.2, 3e-12, "dt2") + events.format(0.5, 4e-12, "dt3")
    lines += "0 0 0 -8 0 -1 0.1 /!name:off\n0 0 0 -8 0 1 0.7 /!name:on\n"
    path.write_text(path.read_text().replace("0 0 0 -99", lines + "0 0 0 -99"))
    deck = Deck.of(read_deck(path))
    deck.enter_at(0.3)
    assert deck.header["Dt"] == 3e-12
    kept = [(e["name"], e["s"]) for e in deck.lattice if e["type"] in ("change_timestep", "spacecharge")]
    assert kept == [("off", 0.0), ("dt3", 0.5), ("on", 0.7)]
    assert deck.time_steps() == [3e-12, 4e-12]


def test_elements_behind_the_stop_are_not_there(write_deck: WriteDeck) -> None:
    path = write_deck()
    path.write_text(path.read_text() + "0.1 0 0 1 0.9 0.5 0.1 0.015 0 0 0 0 0 /!name:Q9\n")
    native = read_deck(path)
    assert "Q9" not in Deck.of(native).elements
    with pytest.raises(UnknownVariableError, match="Q9"):
        Knobs(native, True).choose(["Q9.b1_gradient"])
