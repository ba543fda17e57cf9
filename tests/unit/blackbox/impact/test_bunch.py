"""From a z-plane to what IMPACT-T takes, and back from what it leaves; without IMPACT-T."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from beamphysics import ParticleGroup

from lume_diff.blackbox.impact.bunch import Dump, Incoming, read_dump
from lume_diff.errors import ValidationError

C = 299792458.0
MASS = 510998.95069


def header(**changes: Any) -> dict[str, Any]:
    found = {"Bmass": 510998.95, "Bcharge": -1.0, "Bcurr": 0.0, "Bfreq": 2.856e9, "Flagimg": 0, "Nemission": -1}
    return {**found, "Bkenergy": 1.0, **changes}


def group(count: int = 50, z: float = 0.3, **changes: Any) -> ParticleGroup:
    draw = np.random.default_rng(1).normal
    data = {
        **{name: 1e-4 * draw(size=count) for name in ("x", "y")},
        **{name: 1e3 * draw(size=count) for name in ("px", "py")},
        "pz": 1e7 * (1.0 + 1e-3 * draw(size=count)),
        "t": 2e-9 + 1e-12 * draw(size=count),
        "z": np.full(count, z),
        "weight": np.full(count, 1e-12),
        "status": np.ones(count, dtype=int),
        "species": "electron",
        "id": np.arange(count)[::-1] + 7,
        **changes,
    }
    return ParticleGroup(data=data)


@pytest.mark.parametrize("offset", [0.0, -0.3, 2.0])
def test_a_bunch_comes_back_to_its_plane(offset: float) -> None:
    given, deck = group(), header()
    time = float(given.t.min()) - 1e-12
    incoming = Incoming(given, deck, offset, time)
    assert (deck["Tini"], deck["Np"], deck["Flagdist"], deck["Bmass"]) == (time, 50, 16, given.mass)
    assert (incoming.rows[:, 4] < incoming.plane).all()  # nobody is beyond the plane yet
    assert incoming.plane == pytest.approx(0.3 + offset, rel=1e-15)
    found = incoming.behind(Dump(np.arange(50), incoming.rows, time), incoming.plane)
    for name, size in (("x", 1e-4), ("px", 1e3), ("y", 1e-4), ("py", 1e3), ("pz", 1e7), ("z", 1.0), ("t", 1e-9)):
        np.testing.assert_allclose(getattr(found, name), getattr(given, name), rtol=0, atol=1e-14 * size)
    assert (found.id == given.id).all()
    assert (found.weight == given.weight).all()


def test_particles_keep_their_rows_whatever_order_they_come_back_in() -> None:
    given = group(6, status=np.array([1, 1, 0, 1, 1, 1]))
    incoming = Incoming(given, header(), 0.0)
    assert len(incoming.rows) == 5
    order = np.array([4, 0, 3])  # of the five that were sent, two are lost
    rows = incoming.rows[order].copy()
    rows[2, 5] = -1.0  # and one flies back
    found = incoming.behind(Dump(order, rows, float(given.t.min())), 0.3)
    assert found.status.tolist() == [1, 0, 0, 0, 0, 1]
    assert (found.id == given.id).all()
    np.testing.assert_allclose(found.x[[0, 5]], given.x[[0, 5]], rtol=1e-12)
    assert np.isfinite(found.data["pz"]).all()
    assert (found.z == 0.3).all()


def test_the_start_time_changes_nothing_but_where_particles_wait() -> None:
    given = group()
    first = Incoming(given, header(), 0.0, 1.9e-9)
    second = Incoming(given, header(), 0.0, 1.8e-9)
    energy = np.sqrt(given.px**2 + given.py**2 + given.pz**2 + given.mass**2)
    way = 1e-10 * C * given.pz / energy
    np.testing.assert_allclose(first.rows[:, 4] - second.rows[:, 4], way, rtol=1e-12)


def test_a_cathode_lets_them_go_one_after_the_other() -> None:
    given = group(z=0.0, pz=np.full(50, 5.0))
    deck = header(Flagimg=1, Nemission=100)
    incoming = Incoming(given, deck, 0.0)
    speed = np.sqrt(1.0 - 1.0 / (1.0 + 1.0 / given.mass) ** 2) * C
    assert deck["Flagimg"] == 1
    assert deck["Tini"] == pytest.approx(given.t.min(), rel=1e-12)
    assert deck["Temission"] == pytest.approx(np.ptp(given.t), rel=1e-9)
    np.testing.assert_allclose(incoming.rows[:, 4], -speed * (given.t - given.t.min()), rtol=1e-6, atol=1e-18)
    np.testing.assert_allclose(incoming.rows[:, 5] * given.mass, 15.0)  # those that hardly move are pushed


@pytest.mark.parametrize(
    "changes,deck,words",
    [
        ({"pz": np.full(5, -1.0)}, {}, "fly backwards"),
        ({"status": np.zeros(5, dtype=int)}, {}, "lives"),
        ({"x": np.array([0.0, np.nan, 0.0, 0.0, 0.0])}, {}, "not finite"),
        ({"species": "positron"}, {}, "Bcharge is -1"),
        ({"species": "proton"}, {}, "set it for what is"),
        ({"z": np.zeros(5)}, {"Flagimg": 1, "Nemission": 0}, "Nemission above 0"),
    ],
)
def test_bunches_that_cannot_start_are_refused(changes: Any, deck: Any, words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Incoming(group(5, **changes), header(**deck), 0.0)


@pytest.mark.parametrize("current,equal,kind", [(0.0, False, 16), (1.0, True, 16), (1.0, False, 166)])
def test_weights_are_written_where_they_act(tmp_path: Path, current: float, equal: bool, kind: int) -> None:
    weight = np.full(5, 2e-12) if equal else 1e-12 * np.arange(1.0, 6.0)
    deck = header(Bcurr=current)
    incoming = Incoming(group(5, weight=weight), deck, 0.0)
    incoming.write(tmp_path, deck)
    first, *rows = (tmp_path / "partcl.data").read_text().splitlines()
    table = np.array([row.split() for row in rows], dtype=float)
    assert (first, deck["Flagdist"], table.shape) == ("5", kind, (5, 6 if kind == 16 else 9))
    assert (table[:, :6] == incoming.rows).all()
    if kind == 166:
        np.testing.assert_allclose(table[:, 7], -current / 2.856e9 * weight / weight.sum(), rtol=1e-15)
        assert table[:, 8].tolist() == [1, 2, 3, 4, 5]


def test_dumps_are_read_and_what_is_none_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "fort.50"
    file.write_text("")
    assert read_dump(file)[1].shape == (0, 6)
    file.write_text("-0.54535708731315543E-4 1 2 3 4 19.5 -0.19569511835591833E-5 -0.0 3.0000000000000000 \n")
    index, rows = read_dump(file)
    assert index.tolist() == [2]
    assert rows.tolist() == [[-0.54535708731315543e-4, 1.0, 2.0, 3.0, 4.0, 19.5]]
    file.write_text("1 2 3\n")
    with pytest.raises(ValueError, match="3 columns"):
        read_dump(file)
