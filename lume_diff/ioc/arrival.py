"""Arrival: what a client writes, checked before anything is done with it."""

from __future__ import annotations

from typing import Any

from lume_diff.errors import ReadOnlyError, ShapeError, ValidationError
from lume_diff.ioc.limits import PVLimits
from lume_diff.ioc.plain import to_plain
from lume_diff.variables import MomentsVariable, ParticleGroupVariable, Variable


def checked(variable: Variable, value: Any, limits: PVLimits) -> Any:
    """Return a written value as a plain one, or refuse it; nothing is clamped.

    Args:
        variable: what is written.
        value: as the client sent it; of an enumeration the word, or the index.
        limits: of the variable, as they are now.

    Raises:
        ReadOnlyError: for an output, or a beam.
        ValidationError: for a value of the wrong type, not finite, no option, or outside the limits.
        ShapeError: for an array of another shape.
    """
    name = variable.name
    if variable.read_only:
        raise ReadOnlyError(f"{name!r} is an output of the model and cannot be written")
    if isinstance(variable, MomentsVariable | ParticleGroupVariable):
        raise ReadOnlyError(f"{name!r} is a beam, which is not written through a control system: set it on the model")
    accepted = variable.validate_value(value, config="error")
    if len(variable.batch_shape(accepted)):
        raise ShapeError(f"{name!r} takes one value, received {tuple(variable.batch_shape(accepted))} of them")
    plain = to_plain(variable, accepted)
    check_drive(variable, plain, limits)
    return plain


def check_drive(variable: Variable, plain: Any, limits: PVLimits) -> None:
    """Refuse a number outside the drive limits.

    Raises:
        ValidationError: with the limits.
    """
    low, high = limits.drive
    if isinstance(plain, float | int) and not low <= plain <= high:
        raise ValidationError(
            f"{variable.name!r}: {plain:g}{' ' + variable.unit if variable.unit else ''} is outside its drive limits "
            f"[{low:g}, {high:g}]; write a value inside"
        )
