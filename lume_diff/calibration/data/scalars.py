"""Dataset: measured numbers over a scan: beam sizes, positions, charges, whatever a model has as an output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import Any, Self

import numpy as np

from lume_diff.calibration.data import agreement, files, hdf5, plots, tables
from lume_diff.calibration.data.arrays import checked_weights, digest, frozen, per_shot, raise_all, real_array
from lume_diff.calibration.data.history import Step, other_histories
from lume_diff.calibration.data.metadata import checked_metadata
from lume_diff.calibration.data.scan import Scan
from lume_diff.calibration.data.settings import Settings
from lume_diff.errors import CalibrationError, LumeDiffError, ShapeError, UnitError, ValidationError
from lume_diff.variables.units import parse_unit


class Dataset(Scan):
    """Hold measured numbers over a scan of settings; immutable, every step gives a new dataset.

    Args:
        settings: what was set, by variable name: arrays ``(n_settings,)``, or numbers for what stayed the same.
        outputs: what was measured, by variable name: ``(settings, shots)``, or ``(settings,)`` for one shot each.
        sigma: standard error of one reading, by variable name: a number or an array; for those left out it is the
            scatter between shots, pooled over all settings.
        units: of settings and outputs; those left out are in the unit of the model's variable.
        weights: how much each shot counts, ``(settings, shots)``.
        metadata: anything by name; ``(value, unit)`` with a unit.
        nan: ``"raise"``, or ``"mask"`` to leave out readings that are not finite.

    Raises:
        ValidationError: NaN, a standard error that is not positive or that nothing tells, or a name given twice.
        ShapeError: shapes that do not fit each other.

    Example:
        >>> data = Dataset({"Q1.k1": [-1.0, 1.0]}, {"final.sigma_x": [1.2e-4, 0.9e-4]}, sigma={"final.sigma_x": 2e-6})
        >>> data.outputs["final.sigma_x"].shape
        (2, 1)
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        outputs: Mapping[str, Any],
        *,
        sigma: Mapping[str, Any] | None = None,
        units: Mapping[str, str] | None = None,
        weights: Any = None,
        metadata: Mapping[str, Any] | None = None,
        nan: str = "raise",
    ) -> None:
        if not isinstance(outputs, Mapping) or not outputs:
            raise ValidationError(
                f"outputs: received {outputs!r}, expected a mapping of variable names to readings, such as "
                '{"final.sigma_x": [1.2e-4, 0.9e-4]}'
            )
        problems: list[LumeDiffError] = []
        found: dict[str, np.ndarray] = {}
        for name, value in outputs.items():
            try:
                found[name] = _readings(name, value)
            except LumeDiffError as problem:
                problems.append(problem)
        raise_all("outputs", problems)
        shape = next(iter(found.values())).shape
        problems += [
            ShapeError(f"output {name!r} has (settings, shots) = {array.shape}, expected {shape} as the first one has")
            for name, array in found.items()
            if array.shape != shape
        ]
        problems += [ValidationError(f"{name!r} is a setting and an output") for name in found if name in settings]
        given = dict(units or {})
        for name, unit in given.items():
            if name not in found and name not in settings:
                problems.append(ValidationError(f"units has {name!r}, which is no setting and no output"))
            try:
                parse_unit(unit)
            except UnitError as problem:
                problems.append(UnitError(f"{name!r}: {problem}"))
        problems += [
            ValidationError(f"sigma has {name!r}, which is no output") for name in sigma or {} if name not in found
        ]
        raise_all("data", problems)
        self._settings = Settings(settings, {n: u for n, u in given.items() if n in settings}, shape[0])
        self._units = {name: unit for name, unit in given.items() if name in found}
        self._weights = checked_weights("weights", weights, (shape[0], shape[1]))
        self._valid = {name: _finite(name, array, nan) for name, array in found.items()}
        self._outputs = {n: frozen(np.where(self._valid[n], array, 0.0)) for n, array in found.items()}
        self._sigma = {
            name: _given_error(name, sigma[name], self._valid[name])
            if sigma is not None and sigma.get(name) is not None
            else _scatter(name, array, self._valid[name] & (self._weights > 0.0))
            for name, array in self._outputs.items()
        }
        self._metadata = checked_metadata(metadata)
        self._history: tuple[Step, ...] = ()

    # -- what it holds ---------------------------------------------------------------------------------------

    @property
    def outputs(self) -> Mapping[str, np.ndarray]:
        """What was measured, by variable name, ``(settings, shots)``, read-only; 0 where ``valid`` is False."""
        return MappingProxyType(self._outputs)

    @property
    def sigma(self) -> Mapping[str, np.ndarray]:
        """Standard error of one reading, by variable name, ``(settings, shots)``, read-only."""
        return MappingProxyType(self._sigma)

    @property
    def valid(self) -> Mapping[str, np.ndarray]:
        """True for readings to be used, by variable name, ``(settings, shots)``, read-only."""
        return MappingProxyType({name: frozen(ok & (self._weights > 0.0)) for name, ok in self._valid.items()})

    @property
    def weights(self) -> np.ndarray:
        """How much each shot counts, ``(settings, shots)``, read-only."""
        return self._weights

    @property
    def units(self) -> Mapping[str, str]:
        """Units of the settings and outputs that were given one."""
        return MappingProxyType({**self._settings.units, **self._units})

    @property
    def shape(self) -> tuple[int, int]:
        """Settings, shots."""
        count, shots = self._weights.shape
        return count, shots

    @cached_property
    def digest(self) -> str:
        """Hash of everything that a fit uses: the same for the same data, wherever they came from."""
        names, measured = sorted(self._settings.values), sorted(self._outputs)
        # Nine digits: a scatter may differ in the last ones between machines.
        sigma = [np.array([float(f"{s:.9g}") for s in self._sigma[name].flat]) for name in measured]
        arrays = [self._settings.values[name] for name in names]
        arrays += [part[name] for name in measured for part in (self._outputs, self._valid)]
        return digest([names, measured, dict(self.units)], (*arrays, *sigma, self._weights))

    # -- for torch and models --------------------------------------------------------------------------------

    def require_scan(self, minimum: int, purpose: str) -> None:
        """Refuse data of too few settings.

        Args:
            minimum: how many have to differ.
            purpose: what they are for, in words.

        Raises:
            CalibrationError: where there are fewer.
        """
        if self.distinct_settings < minimum:
            raise CalibrationError(
                f"data of {', '.join(self._outputs)}: {self.distinct_settings} settings differ, "
                f"{purpose} needs {minimum}"
            )

    check_against = agreement.check_scalars

    # -- parts -----------------------------------------------------------------------------------------------

    @staticmethod
    def join(parts: Sequence[Dataset]) -> Dataset:
        """Return scans of the same quantities one after the other.

        Raises:
            ValidationError, ShapeError, UnitError: for scans of different quantities, shots or units.
        """
        if not parts:
            raise ValidationError("join: no datasets were given")
        first = parts[0]
        for i, other in enumerate(parts[1:], 2):
            if set(other._outputs) != set(first._outputs):
                raise ValidationError(
                    f"join: number {i} has outputs {sorted(other._outputs)}, the first {sorted(first._outputs)}"
                )
            if other.shape[1] != first.shape[1]:
                raise ShapeError(
                    f"join: number {i} has {other.shape[1]} shots, the first {first.shape[1]}; use mean_shots()"
                )
            if other._units != first._units:
                raise UnitError(f"join: units differ: {first._units} and {other._units}; convert one of the two")
        joined = {
            field: {name: frozen(np.concatenate([getattr(p, field)[name] for p in parts])) for name in first._outputs}
            for field in ("_outputs", "_sigma", "_valid")
        }
        return first._with(
            Step("join", {"settings": [len(part) for part in parts]}, other_histories([p.history for p in parts])),
            _settings=Settings.joined([part._settings for part in parts]),
            _weights=frozen(np.concatenate([part._weights for part in parts])),
            _metadata={key: value for part in reversed(parts) for key, value in part._metadata.items()},
            **joined,
        )

    def mean_shots(self) -> Dataset:
        """Return the weighted mean over the shots of each setting, with its standard error.

        Returns:
            New data with one shot, whose weights are the means of those before, each weighted by itself: the error
            says already how many shots there were.
        """
        fields: dict[str, dict[str, np.ndarray]] = {"_outputs": {}, "_sigma": {}, "_valid": {}}
        for name, array in self._outputs.items():
            weights = self._weights * self._valid[name]
            total = weights.sum(1, keepdims=True)
            safe = np.where(total > 0.0, total, 1.0)
            error = np.sqrt(((weights * self._sigma[name]) ** 2).sum(1, keepdims=True)) / safe
            fields["_outputs"][name] = frozen((weights * array).sum(1, keepdims=True) / safe)
            fields["_sigma"][name] = frozen(np.where(total > 0.0, error, 1.0))
            fields["_valid"][name] = frozen(total > 0.0)
        total = self._weights.sum(1, keepdims=True)
        weights = frozen((self._weights**2).sum(1, keepdims=True) / np.where(total > 0.0, total, 1.0))
        return self._with(Step("mean_shots", {"shots": self.shape[1]}), _weights=weights, **fields)

    plot = plots.plot_scalars
    to_npz = files.to_npz
    to_hdf5 = hdf5.to_hdf5
    from_npz = classmethod(tables.scalars_from_npz)
    from_hdf5 = classmethod(hdf5.scalars_from_hdf5)
    from_frame = classmethod(tables.scalars_from_frame)
    from_csv = classmethod(tables.scalars_from_csv)

    def __repr__(self) -> str:
        count, shots = self.shape
        return (
            f"Dataset({', '.join(self._outputs)}: {count} settings of {', '.join(self.scanned) or 'nothing scanned'}, "
            f"{shots} shot{'s' if shots > 1 else ''}, {len(self._history)} steps)"
        )

    # -- building blocks -------------------------------------------------------------------------------------

    def _plain(self) -> dict[str, dict[str, np.ndarray]]:
        """Return what a file keeps besides settings and weights."""
        valid = {name: ok.astype(np.uint8) for name, ok in self._valid.items()}
        return {"outputs": self._outputs, "sigma": self._sigma, "valid": valid}

    def _converted(self, settings: Settings, factors: Mapping[str, float], units: Mapping[str, str]) -> Dataset:
        return self._with(
            Step("check_against", {"units": {**settings.units, **units}}),
            _settings=settings,
            _units={**self._units, **units},
            _outputs={name: frozen(array * factors.get(name, 1.0)) for name, array in self._outputs.items()},
            _sigma={name: frozen(array * abs(factors.get(name, 1.0))) for name, array in self._sigma.items()},
        )

    def _taken(self, index: np.ndarray, step: Step) -> Self:
        taken = {
            field: {name: frozen(array[index]) for name, array in getattr(self, field).items()}
            for field in ("_outputs", "_sigma", "_valid")
        }
        return self._with(step, _settings=self._settings.take(index), _weights=frozen(self._weights[index]), **taken)

    def _with(self, step: Step | None, **changes: Any) -> Self:
        other = object.__new__(type(self))
        other.__dict__.update({k: v for k, v in self.__dict__.items() if k.startswith("_")})
        other.__dict__.update(changes)
        if step is not None:
            other._history = (*self._history, step)
        return other


def _readings(name: Any, value: Any) -> np.ndarray:
    if not isinstance(name, str) or not name:
        raise ValidationError(f"output {name!r}: expected the name of a variable, such as 'final.sigma_x'")
    array = real_array(f"output {name!r}", value).astype(np.float64)
    if array.ndim not in (1, 2) or array.size == 0:
        raise ShapeError(f"output {name!r} has shape {array.shape}, expected (settings, shots) or (settings,)")
    return frozen(array.reshape(len(array), -1).copy())


def _finite(name: str, array: np.ndarray, nan: str) -> np.ndarray:
    if nan not in ("raise", "mask"):
        raise ValidationError(f"nan: received {nan!r}, expected 'raise' or 'mask'")
    finite = np.isfinite(array)
    if not finite.any():
        raise ValidationError(f"output {name!r}: no reading is finite")
    if nan == "raise" and not finite.all():
        where = ", ".join(f"setting {i} shot {j}" for i, j in np.argwhere(~finite)[:5])
        raise ValidationError(
            f"output {name!r}: {int((~finite).sum())} readings are not finite, {where}; "
            "give nan='mask' to leave them out"
        )
    return frozen(finite)


def _given_error(name: str, sigma: Any, valid: np.ndarray) -> np.ndarray:
    """Return standard errors as they were given, ``(settings, shots)``."""
    given = real_array(f"sigma of {name!r}", sigma).astype(np.float64)
    found = per_shot(f"sigma of {name!r}", given, (valid.shape[0], valid.shape[1]))
    wrong = found[valid][~(np.isfinite(found[valid]) & (found[valid] > 0.0))]
    if wrong.size:
        raise ValidationError(f"sigma of {name!r} has {wrong[0]:g}; expected positive standard errors")
    return frozen(np.where(valid, found, 1.0))


def _scatter(name: str, array: np.ndarray, counted: np.ndarray) -> np.ndarray:
    """Return the standard deviation between shots, pooled over all settings, as errors ``(settings, shots)``."""
    counts = counted.sum(1)
    mean = np.where(counted, array, 0.0).sum(1) / np.maximum(counts, 1)
    squares = np.where(counted, (array - mean[:, None]) ** 2, 0.0).sum()
    freedom = int((counts[counts > 1] - 1).sum())
    if freedom == 0 or squares == 0.0:
        why = "a single shot has no scatter" if freedom == 0 else "all shots are the same"
        raise ValidationError(
            f"sigma of {name!r}: {why}; give sigma={{{name!r}: ...}}, the standard error of a reading"
        )
    return frozen(np.full(array.shape, np.sqrt(squares / freedom)))
