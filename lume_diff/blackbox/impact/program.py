"""Where IMPACT-T is: the Python package lume-impact, and the executable."""

from __future__ import annotations

import hashlib
import os
import shutil
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

from lume_diff.blackbox.codes.missing import require
from lume_diff.errors import MissingExtraError, ValidationError

#: Environment variable and name that lume-impact looks for as well.
VARIABLE, PROGRAM = "IMPACTT_BIN", "ImpactTexe"
_GET = "conda install -c conda-forge lume-impact impact-t distgen"
_OTHER = "PyPI's 'distgen' is another package: never install that one"


def lume_impact() -> Any:
    """Return the package ``impact``, which is lume-impact.

    Raises:
        MissingExtraError: if it or what it needs is not installed; with the way to get it.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        require("distgen", "distgen (beam physics), which lume-impact needs,", f"{_GET}; {_OTHER}")
        try:
            package = require("impact", "lume-impact", f"{_GET}; {_OTHER}")
        except MissingExtraError:
            raise
        except ImportError as error:
            raise MissingExtraError(f"lume-impact cannot be imported ({error}); {_GET}; {_OTHER}") from error
    if not hasattr(package, "Impact"):
        raise MissingExtraError(f"the package 'impact' in {package.__file__} is not lume-impact; {_GET}")
    return package


def find_program(command: str | os.PathLike[str] | None = None) -> Path:
    """Return the serial executable: the one named, else ``$IMPACTT_BIN``, else ``ImpactTexe`` on the path.

    Raises:
        ValidationError: if the one named is not there.
        MissingExtraError: if there is none.
    """
    if command is not None:
        found = shutil.which(os.path.expanduser(os.fspath(command)))
        if found is None:
            raise ValidationError(f"command is {os.fspath(command)!r}, which is no executable; expected IMPACT-T's")
        return Path(found).absolute()
    for candidate in (os.environ.get(VARIABLE), PROGRAM):
        found = shutil.which(candidate) if candidate else None
        if found is not None:
            return Path(found).absolute()
    raise MissingExtraError(
        f"IMPACT-T is not installed: there is no executable {PROGRAM!r} on the path and none in ${VARIABLE}; {_GET}"
    )


def program_hash(program: Path) -> str:
    """Return a hash of an executable."""
    state = program.stat()
    return _hash(program, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=8)
def _hash(program: Path, *_state: int) -> str:
    return hashlib.sha256(program.read_bytes()).hexdigest()[:16]
