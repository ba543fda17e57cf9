"""The files of a deck for Tao: what kind they are, and everything that they refer to."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

from lume_diff.errors import LatticeError

_NAMELIST = re.compile(rb"^\s*&(tao_|design_lattice)", re.I | re.M)
#: Whatever may name a file: what is in quotes, behind an equals sign, a comma or ``::``. That it exists decides.
_CANDIDATES = re.compile(r"[\"']([^\"'\n]+)[\"']|(?:=|::|,)[ \t]*([^\s\"',;!{}()=]+)")
_STARTUP = "tao.startup"


def deck_file(deck: str | Path) -> Path:
    """Return the path of a deck.

    Raises:
        LatticeError: if it is none.
    """
    if not isinstance(deck, (str, Path)):
        raise LatticeError(
            f"deck is a {type(deck).__name__}; expected the path of Tao's initialisation file (tao.init) or of a Bmad "
            "lattice file"
        )
    path = Path(deck).expanduser().absolute()
    if not path.is_file():
        raise LatticeError(f"deck {str(path)!r} does not exist; expected a tao.init or a Bmad lattice file")
    return path


def is_initialisation(path: Path) -> bool:
    """Tell whether a file is one of Tao's namelists, not a lattice."""
    return _NAMELIST.search(path.read_bytes()) is not None


def deck_files(deck: Path) -> list[Path]:
    """Return a deck's file and all files that it names, and these name: lattices, beams, field maps, start-up commands.

    A name counts as a file if there is one, relative to the file that names it or to the deck.
    """
    found: dict[Path, None] = {}
    waiting = [deck, deck.parent / _STARTUP]
    while waiting:
        path = waiting.pop(0)
        if path in found or not path.is_file():
            continue
        found[path] = None
        content = path.read_bytes()
        if b"\0" in content[:4096]:
            continue
        names = {a or b for a, b in _CANDIDATES.findall(content.decode(errors="replace"))}
        folders = (path.parent, deck.parent)
        waiting += [Path(os.path.normpath(folder / expanded)) for expanded in _expanded(names) for folder in folders]
    return list(found)


def _expanded(names: Iterable[str]) -> list[str]:
    # "call::field.h5" may be found as a whole
    trimmed = {os.path.expanduser(os.path.expandvars(name.rpartition("::")[2].strip())) for name in names}
    return sorted(name for name in trimmed if name and "\0" not in name and len(name) < 1000)


def deck_hash(deck: Path) -> str:
    """Return a hash of the content of a deck, whatever its files are called."""
    digest = hashlib.sha256()
    for path in deck_files(deck):
        content = path.read_bytes()
        digest.update(f"{len(content)}:".encode() + content)
    return digest.hexdigest()
