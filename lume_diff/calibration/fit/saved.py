"""Calibrations from their files: what was found to be off, put into a model again."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import torch

from lume_diff.calibration.fit.calibrated import CalibratedModel
from lume_diff.calibration.fit.parameters import BeamMomentum, Offset, Parameter, Scale, Value
from lume_diff.calibration.fit.priors import Normal
from lume_diff.calibration.fit.result import CalibrationResult
from lume_diff.calibration.fit.screens import Blur, Magnification, Rotation
from lume_diff.errors import ValidationError, nearest_names
from lume_diff.models import LUMEModel

_KINDS: dict[str, Callable[..., Parameter]] = {
    kind.__name__: kind for kind in (Scale, Offset, Value, BeamMomentum, Blur, Magnification, Rotation)
}


def calibrated(model: LUMEModel, path: str | os.PathLike[str]) -> CalibratedModel:
    """Return a model with the machine's errors inside that a saved calibration has found.

    Args:
        model: with the names that the calibration was made with.
        path: what ``CalibrationResult.save`` wrote.

    Raises:
        ValidationError: for a file that is something else, or that was written before it held this.
        UnknownVariableError: for an input that the model does not have.

    Gradient:
        As the model's.

    Example:
        >>> calibrated(model, "calibration/result.yaml").get("final.sigma_x")  # doctest: +SKIP
    """
    found = CalibrationResult.load(path)
    parameters = [_parameter(given, path) for given in found["parameters"]]
    for parameter in parameters:
        parameter.check(model)
    values = torch.tensor([given["value"] for given in found["parameters"]], dtype=model.dtype)
    sizes = {name: (float(size[0]), float(size[1])) for name, size in found.get("pixel_sizes", {}).items()}
    return CalibratedModel(model, parameters, values, sizes)


def acted_names(path: str | os.PathLike[str]) -> set[str]:
    """Return the inputs that a saved calibration acts on.

    Raises:
        ValidationError: for a file that is something else.
    """
    names = set()
    for given in CalibrationResult.load(path)["parameters"]:
        for listed in (given.get("acts") or {}).values():
            names |= set(listed) if isinstance(listed, list) else set()
    return names


def _parameter(given: Mapping[str, Any], path: str | os.PathLike[str]) -> Parameter:
    kind, acts = given["kind"], given.get("acts")
    if kind not in _KINDS:
        raise ValidationError(f"{os.fspath(path)!r}: parameter kind {kind!r} is not known{nearest_names(kind, _KINDS)}")
    if acts is None:
        raise ValidationError(f"{os.fspath(path)!r} does not say what {given['name']!r} acts on: run the fit again")
    prior = Normal(given["value"], given["standard_error"] or 1.0)
    unit = {"unit": given["unit"]} if kind in ("Offset", "Value") else {}
    return _KINDS[kind](prior=prior, name=given["name"], **acts, **unit)
