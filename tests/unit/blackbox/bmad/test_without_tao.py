"""What BmadModel does where Tao is not needed, or not there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lume_diff.blackbox.bmad.deck import deck_file, deck_files, deck_hash, is_initialisation
from lume_diff.blackbox.bmad.model import BmadModel
from lume_diff.blackbox.bmad.session import number
from lume_diff.errors import LatticeError, MissingExtraError, ValidationError


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "sub").mkdir()
    write(tmp_path / "sub", magnets__bmad="q1: quadrupole, l = 0.1", field__h5="\0\0 call, file = other.bmad")
    return write(
        tmp_path,
        tao__init='&tao_design_lattice\n design_lattice(1)%file = "lat.bmad"\n/\n&tao_start\n startup_file = go.tao\n/',
        lat__bmad="call, file = sub/magnets.bmad\nl1: lcavity, l = 0.2, grid_field = call::sub/field.h5\nuse, l1",
        go__tao="set global random_seed = 3",
        other__bmad="! not of this deck",
    )


def test_kind_of_a_deck_is_told_by_its_content(folder: Path) -> None:
    assert is_initialisation(folder / "tao.init")
    assert not is_initialisation(folder / "lat.bmad")


def test_all_files_of_a_deck_are_found(folder: Path) -> None:
    names = ["tao.init", "lat.bmad", "go.tao", "sub/magnets.bmad", "sub/field.h5"]
    assert sorted(deck_files(folder / "tao.init")) == sorted(folder / name for name in names)


@pytest.mark.parametrize("changed", ["tao.init", "lat.bmad", "go.tao", "sub/magnets.bmad", "sub/field.h5"])
def test_hash_follows_every_file(folder: Path, changed: str) -> None:
    before = deck_hash(folder / "tao.init")
    (folder / "other.bmad").write_text("! something else")
    assert deck_hash(folder / "tao.init") == before
    with open(folder / changed, "a") as file:
        file.write(" ")
    assert deck_hash(folder / "tao.init") != before


def test_what_is_no_deck_is_refused(folder: Path) -> None:
    with pytest.raises(LatticeError, match=r"'.*none\.init' does not exist"):
        deck_file(folder / "none.init")
    with pytest.raises(LatticeError, match="deck is a int"):
        deck_file(3)  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match=r"write \['Q1\.k1'\]"):
        BmadModel(folder / "tao.init", controls="Q1.k1")


@pytest.mark.parametrize("given", [0, -1, 1.5, True])
def test_seed_that_is_none_is_refused(folder: Path, given: Any) -> None:
    with pytest.raises(ValidationError, match=r"seed is .*1 or more"):
        BmadModel(folder / "tao.init", seed=given)


@pytest.mark.parametrize("value", [0.1, -3.0000000000000004, 1e-300, 123456789.123456789])
def test_numbers_keep_all_digits(value: float) -> None:
    assert float(number(value)) == value


def test_missing_tao_tells_the_way(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTAO_LIB_PATH", str(folder))
    with pytest.raises(MissingExtraError, match=r"lume_diff\[bmad\].*conda install -c conda-forge bmad"):
        BmadModel(folder / "tao.init")
