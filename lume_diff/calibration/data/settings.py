"""The settings of a scan: what was set on the machine, by variable name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from lume_diff.calibration.data.arrays import frozen, raise_all, real_array
from lume_diff.errors import LumeDiffError, ShapeError, UnitError, ValidationError
from lume_diff.variables.units import parse_unit


class Settings:
    """Hold what was set on the machine for each setting of a scan; immutable.

    Args:
        values: by variable name: an array ``(n_settings,)``, or a number for what was the same all along.
        units: of some or all of them; a setting without one is in the unit of the model's variable.
        count: the number of settings, where it is known from elsewhere.

    Raises:
        ValidationError: no settings, not finite, not numbers, or a unit for something that is no setting.
        ShapeError: lengths that differ.
        UnitError: a unit that is not known.
    """

    def __init__(
        self, values: Mapping[str, Any], units: Mapping[str, str] | None = None, count: int | None = None
    ) -> None:
        if not isinstance(values, Mapping) or not values:
            raise ValidationError(
                f"settings: received {values!r}, expected a mapping of variable names to what was set, "
                'such as {"Q1.k1": [-2.0, 0.0, 2.0]}'
            )
        problems: list[LumeDiffError] = []
        found: dict[str, np.ndarray] = {}
        for name, value in values.items():
            try:
                found[name] = _checked(name, value)
            except LumeDiffError as problem:
                problems.append(problem)
        lengths = {name: array.size for name, array in found.items() if array.ndim}
        count = count if count is not None else max(lengths.values(), default=1)
        problems += [
            ShapeError(f"setting {name!r} has {length} values, expected {count}, one for each setting of the data")
            for name, length in lengths.items()
            if length != count
        ]
        units = dict(units or {})
        for name, unit in units.items():
            if name not in values:
                problems.append(
                    ValidationError(
                        f"units has {name!r}, which is no setting; settings: {', '.join(map(repr, values))}"
                    )
                )
            try:
                parse_unit(unit)
            except UnitError as problem:
                problems.append(UnitError(f"setting {name!r}: {problem}"))
        raise_all("settings", problems)
        self._values = {name: frozen(np.broadcast_to(array, (count,)).copy()) for name, array in found.items()}
        self._units = units
        self.count = count

    @property
    def values(self) -> Mapping[str, np.ndarray]:
        """Arrays ``(n_settings,)`` by variable name."""
        return MappingProxyType(self._values)

    @property
    def units(self) -> Mapping[str, str]:
        """Units by variable name, of those that were given one."""
        return MappingProxyType(self._units)

    @property
    def scanned(self) -> tuple[str, ...]:
        """Names of what is not the same in all settings."""
        return tuple(name for name, array in self._values.items() if np.ptp(array) > 0.0)

    @property
    def distinct(self) -> int:
        """Number of settings that differ from each other."""
        return len(np.unique(np.stack(list(self._values.values()), 1), axis=0))

    def take(self, index: np.ndarray) -> Settings:
        """Return the settings at positions ``index``."""
        return Settings({name: array[index] for name, array in self._values.items()}, self._units, len(index))

    def describe(self, position: int) -> str:
        """Return one setting in words, what was scanned first, such as ``"Q1.k1 = 2.5 1/m^2"``."""
        names = self.scanned or tuple(self._values)[:1]
        return ", ".join(
            f"{n} = {self._values[n][position] + 0.0:.4g} {self._units.get(n, '')}".rstrip() for n in names
        )

    @staticmethod
    def joined(parts: Sequence[Settings]) -> Settings:
        """Return settings one after the other; they must have the same names and units."""
        first = parts[0]
        for other in parts[1:]:
            if set(other._values) != set(first._values):
                differing = sorted(set(other._values) ^ set(first._values))
                raise ValidationError(
                    f"join: settings {', '.join(map(repr, differing))} are not in all datasets; give what was the same "
                    "all along as a number"
                )
            if other._units != first._units:
                raise UnitError(f"join: units differ: {first._units} and {other._units}; convert one of the two")
        values = {name: np.concatenate([part._values[name] for part in parts]) for name in first._values}
        return Settings(values, first._units, sum(part.count for part in parts))

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Settings)
            and self._units == other._units
            and self._values.keys() == other._values.keys()
            and all(np.array_equal(array, other._values[name]) for name, array in self._values.items())
        )

    __hash__ = None  # type: ignore[assignment]


def _checked(name: Any, value: Any) -> np.ndarray:
    if not isinstance(name, str) or not name:
        raise ValidationError(f"setting {name!r}: expected the name of a variable, such as 'Q1.k1'")
    array = real_array(f"setting {name!r}", value).astype(np.float64)
    if array.ndim > 1:
        raise ShapeError(
            f"setting {name!r} has shape {array.shape}, expected (n_settings,) or a number: "
            "shots share their setting; give what differs from shot to shot as a setting of its own"
        )
    if not np.isfinite(array).all():
        where = np.flatnonzero(~np.isfinite(np.atleast_1d(array))).tolist()
        raise ValidationError(
            f"setting {name!r} is not finite at {where}; give finite numbers or leave these settings out"
        )
    return array
