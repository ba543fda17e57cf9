"""Any model as the prior mean of Xopt's Bayesian optimisation, and its way into Xopt: VOCS and evaluator.

Names load Xopt and gpytorch when they are first used: ``pip install lume-diff[xopt]``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from lume_diff.errors import MissingExtraError

if TYPE_CHECKING:
    from lume_diff.calibration.prior_mean.calibrated import OutputOffset, OutputScale
    from lume_diff.calibration.prior_mean.constructor import PriorMeanModelConstructor
    from lume_diff.calibration.prior_mean.emulator import Emulator
    from lume_diff.calibration.prior_mean.evaluator import xopt_evaluator
    from lume_diff.calibration.prior_mean.model_mean import ModelMean
    from lume_diff.calibration.prior_mean.optimizer import ParallelLBFGSOptimizer
    from lume_diff.calibration.prior_mean.vocs import vocs_from_model

_HOME_OF = {
    "Emulator": "emulator",
    "ModelMean": "model_mean",
    "OutputOffset": "calibrated",
    "OutputScale": "calibrated",
    "ParallelLBFGSOptimizer": "optimizer",
    "PriorMeanModelConstructor": "constructor",
    "vocs_from_model": "vocs",
    "xopt_evaluator": "evaluator",
}

__all__ = [
    "Emulator",
    "ModelMean",
    "OutputOffset",
    "OutputScale",
    "ParallelLBFGSOptimizer",
    "PriorMeanModelConstructor",
    "vocs_from_model",
    "xopt_evaluator",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'lume_diff.calibration.prior_mean' has no attribute {name!r}")
    try:
        module = importlib.import_module(f"lume_diff.calibration.prior_mean.{_HOME_OF[name]}")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("xopt", "botorch", "gpytorch", "gest_api", "pandas"):
            raise
        raise MissingExtraError(f"{name} needs {error.name}: pip install lume-diff[xopt]") from error
    value = getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
