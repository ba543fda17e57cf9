"""The exceptions and warnings of lume_diff.

Every exception inherits :class:`LumeDiffError` and the nearest builtin, so that both
``except LumeDiffError`` and ``except ValueError`` do what one expects. A message names the
variable, the value received, what was expected, and the fix.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any


class LumeDiffError(Exception):
    """Base class of all errors raised by lume_diff."""


class UnknownVariableError(LumeDiffError, ValueError):
    """A name that the model does not have."""


class ReadOnlyError(LumeDiffError, TypeError):
    """A write to a variable that is read-only."""


class ValidationError(LumeDiffError, ValueError):
    """A value of the wrong type, outside its limits, or not finite."""


class ShapeError(LumeDiffError, ValueError):
    """A value whose shape does not fit, or batches that do not broadcast."""


class UnitError(LumeDiffError, ValueError):
    """A unit that does not parse or does not fit."""


class LatticeError(LumeDiffError, ValueError):
    """A lattice or beam file that does not parse, or an element that is not there."""


class SimulatorError(LumeDiffError, RuntimeError):
    """A simulator that failed; carries the inputs that did it.

    Attributes:
        what: what happened, in words.
        inputs: the plain inputs of the run.
        log: the last lines that the simulator printed.
        exit_code: that of the process it ran in, negative for a signal; None where no process ended.
    """

    what: str = ""
    inputs: Mapping[str, Any] | None = None
    log: str = ""
    exit_code: int | None = None


class GradientError(LumeDiffError, RuntimeError):
    """A gradient that does not exist, where returning one would be wrong."""


class CalibrationError(LumeDiffError, RuntimeError):
    """A fit that cannot be done with the data and parameters given."""


class ControlError(LumeDiffError, RuntimeError):
    """A process variable that does not answer, or a server that refuses."""


class MissingExtraError(LumeDiffError, ImportError):
    """An optional package that is not installed; the message has the pip line."""


class PhysicsWarning(UserWarning):
    """A result that is computed as asked but doubtful as physics."""


class OutOfRangeWarning(UserWarning):
    """A value outside its declared limits that the policy lets pass."""


class TrustWarning(UserWarning):
    """A file that can run code, opened because the caller said that it is trusted."""


def shortened(text: str, most: int = 60) -> str:
    """Return a text for a message, cut off with dots where it is longer than ``most`` characters."""
    return text if len(text) <= most else text[: most - 3] + "..."


def nearest_names(name: str, known: Iterable[str], count: int = 3) -> str:
    """Return ``"; nearest: 'a', 'b'"`` for an unknown name, or a list of a few known ones."""
    name, known = str(name), [str(other) for other in known]
    close = difflib.get_close_matches(name, known, n=count, cutoff=0.5)
    if not close:
        lowered = {k.lower(): k for k in known}
        close = [lowered[m] for m in difflib.get_close_matches(name.lower(), lowered, n=count, cutoff=0.5)]
    if close:
        return "; nearest: " + ", ".join(repr(c) for c in close)
    if not known:
        return "; there are none"
    shown = ", ".join(repr(k) for k in known[:8])
    return f"; known: {shown}" + (f" and {len(known) - 8} more" if len(known) > 8 else "")


def unknown_variable(name: str, known: Iterable[str], where: str) -> UnknownVariableError:
    """Build the error for a name that ``where`` does not have, with the nearest names."""
    return UnknownVariableError(f"{name!r} is not a variable of {where}{nearest_names(name, known)}")
