"""Small MAD-X decks, and models of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lume_diff.blackbox.madx.model import MADXModel

Make = Callable[..., Any]

FODO = """
kqf = 0.3;
kboth := kqf;
qf: quadrupole, l = 0.5, k1 := kboth;
qd: quadrupole, l = 0.5, k1 = -0.6;
bb: sbend, l = 1.0, angle = 0.1;
hk: hkicker, l = 0.1;
mm: multipole, knl = {0, 0.01};
end: marker;
cell: sequence, l = 10, refer = centre;
qf, at = 0.25; bb, at = 2; hk, at = 3; mm, at = 4; qd, at = 5.25; bb2: bb, at = 7; qf, at = 9.25; end, at = 10;
endsequence;
beam, particle = PARTICLE, energy = ENERGY;
"""


@pytest.fixture(scope="session")
def fodo() -> Make:
    """Write the deck of a cell."""

    def make(folder: Path, particle: str = "electron", energy: float = 1.0) -> Path:
        path = folder / f"fodo_{particle}.madx"
        path.write_text(FODO.replace("PARTICLE", particle).replace("ENERGY", repr(energy)))
        return path

    return make


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("decks")


@pytest.fixture(scope="module")
def model(folder: Path, fodo: Make) -> Iterator[Any]:
    controls = ["qf.k1", "qd.k1", "qd.length", "bb.angle", "hk.hkick", "mm.k1l", "mm.k2sl", "qd.tilt"]
    outputs = [
        "tune_x",
        "tune_y",
        "chroma_x",
        "end.beta_x",
        "end.eta_x",
        "end.x",
        "end.px",
        "qd.r_matrix",
        "line.beta_y",
    ]
    with MADXModel(fodo(folder), sequence="cell", controls=controls, outputs=outputs) as found:
        yield found


@pytest.fixture(scope="session")
def richardson() -> Make:
    """Return a derivative, of sixth order in the step."""

    def make(function: Callable[[float], float], x: float, step: float) -> float:
        """Return a derivative, of sixth order in the step."""
        slopes = [(function(x + h) - function(x - h)) / (2.0 * h) for h in (step, step / 2, step / 4)]
        first, second = (4.0 * slopes[1] - slopes[0]) / 3.0, (4.0 * slopes[2] - slopes[1]) / 3.0
        return (16.0 * second - first) / 15.0

    return make
