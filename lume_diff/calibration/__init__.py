"""Calibration: measured data, and the fit of models to them.

Names load what they need when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lume_diff.calibration.data.frame import Frame
    from lume_diff.calibration.data.history import Step
    from lume_diff.calibration.data.moments import ScreenStatistics
    from lume_diff.calibration.data.noise import NoiseModel, estimate_noise
    from lume_diff.calibration.data.scalars import Dataset
    from lume_diff.calibration.data.screens import ScreenDataset
    from lume_diff.calibration.fit.calibrated import CalibratedModel
    from lume_diff.calibration.fit.calibration import Calibration
    from lume_diff.calibration.fit.parameters import BeamMomentum, Offset, Parameter, Scale, Value
    from lume_diff.calibration.fit.priors import Bounded, LogNormal, Normal, Prior, Uniform
    from lume_diff.calibration.fit.result import CalibrationResult
    from lume_diff.calibration.fit.screens import Blur, Magnification, Rotation
    from lume_diff.calibration.likelihoods.base import Likelihood
    from lume_diff.calibration.likelihoods.images import Images
    from lume_diff.calibration.likelihoods.moments import Moments
    from lume_diff.calibration.likelihoods.profiles import Profiles
    from lume_diff.calibration.likelihoods.transport import Transport
    from lume_diff.calibration.likelihoods.values import Values
    from lume_diff.calibration.prior_mean.calibrated import OutputOffset, OutputScale
    from lume_diff.calibration.prior_mean.constructor import PriorMeanModelConstructor
    from lume_diff.calibration.prior_mean.emulator import Emulator
    from lume_diff.calibration.prior_mean.evaluator import xopt_evaluator
    from lume_diff.calibration.prior_mean.model_mean import ModelMean
    from lume_diff.calibration.prior_mean.optimizer import ParallelLBFGSOptimizer
    from lume_diff.calibration.prior_mean.vocs import vocs_from_model
    from lume_diff.calibration.reconstruction.reconstruction import BeamReconstruction
    from lume_diff.calibration.reconstruction.result import Reconstruction

_HOME_OF = {
    "BeamMomentum": "fit.parameters",
    "BeamReconstruction": "reconstruction.reconstruction",
    "Blur": "fit.screens",
    "Bounded": "fit.priors",
    "CalibratedModel": "fit.calibrated",
    "Calibration": "fit.calibration",
    "CalibrationResult": "fit.result",
    "Dataset": "data.scalars",
    "Emulator": "prior_mean",
    "Frame": "data.frame",
    "Images": "likelihoods.images",
    "Likelihood": "likelihoods.base",
    "LogNormal": "fit.priors",
    "Magnification": "fit.screens",
    "ModelMean": "prior_mean",
    "Moments": "likelihoods.moments",
    "NoiseModel": "data.noise",
    "Normal": "fit.priors",
    "Offset": "fit.parameters",
    "OutputOffset": "prior_mean",
    "OutputScale": "prior_mean",
    "ParallelLBFGSOptimizer": "prior_mean",
    "Parameter": "fit.parameters",
    "Prior": "fit.priors",
    "PriorMeanModelConstructor": "prior_mean",
    "Profiles": "likelihoods.profiles",
    "Reconstruction": "reconstruction.result",
    "Rotation": "fit.screens",
    "Scale": "fit.parameters",
    "ScreenDataset": "data.screens",
    "ScreenStatistics": "data.moments",
    "Step": "data.history",
    "Transport": "likelihoods.transport",
    "Uniform": "fit.priors",
    "Value": "fit.parameters",
    "Values": "likelihoods.values",
    "estimate_noise": "data.noise",
    "vocs_from_model": "prior_mean",
    "xopt_evaluator": "prior_mean",
}

__all__ = [
    "BeamMomentum",
    "BeamReconstruction",
    "Blur",
    "Bounded",
    "CalibratedModel",
    "Calibration",
    "CalibrationResult",
    "Dataset",
    "Emulator",
    "Frame",
    "Images",
    "Likelihood",
    "LogNormal",
    "Magnification",
    "ModelMean",
    "Moments",
    "NoiseModel",
    "Normal",
    "Offset",
    "OutputOffset",
    "OutputScale",
    "ParallelLBFGSOptimizer",
    "Parameter",
    "Prior",
    "PriorMeanModelConstructor",
    "Profiles",
    "Reconstruction",
    "Rotation",
    "Scale",
    "ScreenDataset",
    "ScreenStatistics",
    "Step",
    "Transport",
    "Uniform",
    "Value",
    "Values",
    "estimate_noise",
    "vocs_from_model",
    "xopt_evaluator",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'lume_diff.calibration' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"lume_diff.calibration.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
