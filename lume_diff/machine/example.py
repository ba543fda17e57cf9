"""The machine file that comes with the package."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from lume_diff.errors import ValidationError


def example_machine() -> Path:
    """Return the path of a machine file to try things with, and to copy from.

    An injector (a network), a linac with a cavity and a diagnostic line with four quadrupoles, correctors, BPMs, a wire
    scanner and two screens, with about 70 variables named in the manner of LCLS. It is invented: the names are those
    of a real line, and its numbers are not.

    Raises:
        ValidationError: if the package is not installed in a folder.

    Example:
        >>> import lume_diff as ld
        >>> machine = ld.load_model(ld.example_machine())
        >>> machine.set({"QUAD:DIAG0:190:BCTRL": 0.9})  # kG
        >>> machine.get("OTRS:DIAG0:420:IMAGE").shape
        torch.Size([360, 480])
    """
    path = files("lume_diff") / "data" / "machine" / "machine.yaml"
    if not isinstance(path, Path):
        raise ValidationError(f"{path} is no file in a folder: install lume_diff unzipped")
    return path
