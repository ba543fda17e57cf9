"""What can be set on a MAD-X deck, by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lume_diff.blackbox.madx.model import MADXModel
from lume_diff.errors import LatticeError, UnknownVariableError, ValidationError

cpymad = pytest.importorskip("cpymad.madx")

Make = Callable[..., Any]


def test_variables_are_found(folder: Path, capfd: pytest.CaptureFixture[str], fodo: Make) -> None:
    with MADXModel(fodo(folder)) as found:
        assert {"kqf", "qd.k1", "bb.angle", "bb2.angle", "hk.hkick", "mm.k1l", "qf.length"} <= set(found.input_names)
        assert not {"qf.k1", "kboth"} & set(found.input_names)  # bound to kqf
        assert {"tune_x", "chroma_y", "end.beta_x", "final.eta_x", "line.beta_y"} <= set(found.output_names)
        assert found.supported_variables["qd.k1"].unit == "1/m^2"
        assert math.isfinite(found.get("tune_x"))
        assert found.reference_energy(None, ["qf"])["qf"].item() == 1e9
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "options, message",
    [
        ({"controls": ["QF.k1"]}, "nearest: 'qf.k1'"),
        ({"controls": ["qf.k1x"]}, "nearest: 'k1'"),
        ({"controls": ["kqg"]}, "nearest: 'kqf'"),
        ({"outputs": ["ende.beta_x"]}, "nearest: 'end'"),
        ({"outputs": ["tunex"]}, "nearest: 'tune_x'"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_unknown_name_is_refused(folder: Path, options: dict[str, Any], message: str, fodo: Make) -> None:
    with pytest.raises(UnknownVariableError, match=message):
        MADXModel(fodo(folder), **options)


def test_bound_controls_are_refused(folder: Path, fodo: Make) -> None:
    with pytest.raises(ValidationError, match=r"'qf\.k1' and 'kqf'.*choose one"):
        MADXModel(fodo(folder), controls=["qf.k1", "kqf"])


def test_what_is_no_deck_is_refused(folder: Path, fodo: Make) -> None:
    broken, nothing = folder / "broken.madx", folder / "nothing.madx"
    broken.write_text('call, file = "is_not_there.madx";')
    nothing.write_text("a = 1;")
    for deck, sequence, message in (
        (folder / "none.madx", None, "does not exist"),
        (broken, None, "MAD-X does not take"),
        (nothing, None, "the deck has 0"),
        (fodo(folder), "cel", "nearest: 'cell'"),
    ):
        with pytest.raises(LatticeError, match=message):
            MADXModel(deck, sequence=sequence)
