"""Clients of four kinds, in processes of their own, cannot tell the served model from a machine."""

from __future__ import annotations

from typing import Any

import pytest

from tests.system.ioc.servers.conftest import Running, ask

pytestmark = [pytest.mark.slow, pytest.mark.system]


@pytest.fixture(autouse=True)
def at_baseline(pva: Any) -> None:
    """Begin with the machine as it was."""
    pva.put("T:SERVER:RESET", True, timeout=20.0)


def test_p4p_reads_writes_is_refused_and_follows(machine: Running) -> None:
    found = ask("by_p4p.py", machine.settings)
    assert found["read"] == {
        "Q1.k1": 0.0,
        "turns": 3,
        "on": True,
        "title": "first light",
        "wave": [0.0] * 5,
        "mode": 0,
        "size": 0.0,
    }
    assert found["image"] == [30, 20]
    assert found["origin"] == "lower"
    assert found["table"] == dict.fromkeys(("x", "y", "z", "px", "py", "pz", "t", "weight", "alive"), 8)
    assert found["written"] == {
        "Q1.k1": 1.5,
        "turns": 7,
        "on": False,
        "title": "x" * 300,
        "wave": [0.0, 1.0, 2.0, 3.0, 4.0],
        "mode": 1,
        "size": 3.0,
    }
    assert found["image_now"] == 1.5
    assert found["followed"] == [0.0, 3.0]
    phrases = {
        "Q1.k1": ["outside", "nan", "quench"],
        "turns": ["outside"],
        "wave": ["shape"],
        "size": ["output"],
        "mode": ["no choice 7"],
    }
    assert {name: len(texts) for name, texts in found["refused"].items()} == {n: len(p) for n, p in phrases.items()}
    for name, texts in found["refused"].items():
        for text, phrase in zip(texts, phrases[name], strict=True):
            assert phrase in text
    assert found["kept"] == {name: found["written"][name] for name in found["kept"]}


def test_caproto_reads_writes_is_refused_and_follows(machine: Running) -> None:
    found = ask("by_caproto.py", machine.settings)
    assert found["read"] == {
        "Q1.k1": [0.0],
        "turns": [3.0],
        "on": [1.0],
        "mode": [0.0],
        "title": "first light",
        "wave": [0.0] * 5,
        "size": [0.0],
    }
    assert found["written"] == {
        "Q1.k1": [1.5],
        "turns": [7.0],
        "on": [0.0],
        "mode": [1.0],
        "title": "short",
        "wave": [0.0, 1.0, 2.0, 3.0, 4.0],
        "size": [3.0],
    }
    assert found["image_now"] == 1.5
    assert found["followed"] == [0.0, 3.0]
    assert {status for statuses in found["refused"].values() for status in statuses} == {"ECA_PUTFAIL"}
    assert set(found["writable"]) == {"Q1.k1", "turns", "on", "mode", "title", "wave"}
    assert found["kept"] == {name: found["written"][name] for name in found["kept"]}


def test_pyepics_reads_writes_is_refused_and_follows(machine: Running) -> None:
    pytest.importorskip("epics")
    found = ask("by_pyepics.py", machine.settings)
    assert found["read"] == {
        "Q1.k1": 0.0,
        "turns": 3,
        "on": 1,
        "mode": 0,
        "title": "first light",
        "wave": [0.0] * 5,
        "size": 0.0,
    }
    assert found["limits"]["lower_ctrl_limit"] == found["limits"]["lower_disp_limit"] == -10.0
    assert found["limits"]["units"] == "1/m^2"
    assert found["fields"] == {"DRVH": 10.0, "DRVL": -10.0, "EGU": "1/m^2", "DESC": "of the quadrupole", "HOPR": 10.0}
    assert found["long string"] == "first light"
    assert found["written"] == {
        "Q1.k1": 1.5,
        "turns": 7,
        "on": 0,
        "mode": 1,
        "title": "x" * 300,
        "wave": [0.0, 1.0, 2.0, 3.0, 4.0],
        "size": 3.0,
    }
    assert found["image_now"] == 1.5
    assert found["followed"] == [0.0, 3.0]
    assert found["kept"] == {"Q1.k1": 1.5, "turns": 7, "mode": 1, "Q1.k1.DRVH": 10.0}
    assert "size" not in found["writable"]
    assert len(found["writable"]) == 6


def test_aioca_reads_writes_is_refused_and_follows(machine: Running) -> None:
    pytest.importorskip("aioca")
    found = ask("by_aioca.py", machine.settings)
    assert found["read"] == {"Q1.k1": 0.0, "turns": 3, "on": 1, "mode": 0, "wave": [0.0] * 5, "size": 0.0}
    assert found["title"] == "first light"
    assert found["written"] == {
        "Q1.k1": 1.5,
        "turns": 7,
        "on": 0,
        "mode": 1,
        "wave": [0.0, 1.0, 2.0, 3.0, 4.0],
        "size": 3.0,
    }
    assert found["title_now"] == "x" * 300
    assert found["image_now"] == 1.5
    assert found["followed"] == [0.0, 3.0]
    assert {name: len(texts) for name, texts in found["refused"].items()} == {
        "Q1.k1": 3,
        "turns": 1,
        "wave": 1,
        "size": 1,
        "mode": 1,
    }
    assert found["kept"] == {name: found["written"][name] for name in found["kept"]}
