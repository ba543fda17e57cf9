"""A small deck of our own, and IMPACT-T where it is found."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from lume_diff.blackbox.impact.program import find_program, lume_impact
from lume_diff.errors import MissingExtraError

HEADER = """! a drift, a solenoid and a quadrupole
1 1
{dt!r} {steps} 1
6 100 1 {errors} 2 {cathode} 0.02
{mesh} {mesh} {mesh} 1 0.015 0.015 100.0
16 0 0 {emission} 1.4e-11
0. 0. 0. 1. 1. 0. 0.
0. 0. 0. 1. 1. 0. 0.
0. 0. 0. 1. 1. 0. 0.
{current!r} 1.0 510998.95 -1.0 2.856e9 0.0
"""
LINE = """0.1 0 0 0 0.0 0.015 /!name:D1
0.2 0 0 105 0.1 0.0 0.0 0.0 201 0.015 0 0 0 0 0 0.05 /!name:SOL1
0.2 0 0 1 0.3 0.5 0.1 0.015 0 0 0 0 0 /!name:Q1
0 1 71 -2 0.0 0.0 0.6 /!name:SCR1
0.3 0 0 0 0.5 0.015 /!name:D2
0 0 0 -99 0 0 0.8 /!name:stop_1
"""
IN_3D = "0 0 0 -5 0 0 -1000.0 /!name:in_3d\n"
WriteDeck = Callable[..., Path]


@pytest.fixture(scope="session")
def lume() -> None:
    """Skip the test where lume-impact is not installed."""
    try:
        lume_impact()
    except MissingExtraError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def impact_t(lume: None) -> Path:
    """IMPACT-T's executable; skip the test where it is not found."""
    try:
        return find_program()
    except MissingExtraError as error:
        pytest.skip(str(error))


@pytest.fixture
def write_deck(tmp_path: Path) -> WriteDeck:
    """Write a deck with its field file, of a line or of a mere drift."""

    def write(
        lattice: str = LINE,
        *,
        folder: str = "deck",
        dt: float = 1e-11,
        steps: int = 100000,
        current: float = 0.0,
        mesh: int = 16,
        errors: int = 0,
        cathode: int = 0,
        emission: int = -1,
        radius: float = 0.015,
    ) -> Path:
        place = tmp_path / folder
        place.mkdir(exist_ok=True)
        # No RF field; Bz = (1 + cos(2 pi z / L)) / 2 over L = 0.2 m, in IMPACT-T's Fourier coefficients.
        numbers = [1, 0.0, 0.0, 0.0, 0.0, 3, 0.0, 0.2, 0.2, 1.0, 0.5, 0.0]
        (place / "rfdata201").write_text("\n".join(map(str, numbers)) + "\n")
        values = {"dt": dt, "steps": steps, "current": current, "mesh": mesh, "errors": errors}
        header = HEADER.format(**values, cathode=cathode, emission=emission)
        deck = place / "ImpactT.in"
        deck.write_text(header + (IN_3D if current else "") + lattice.format(radius=radius))
        return deck

    return write
