"""Differentiable-first virtual accelerators and digital twins.

Names load what they need when they are first used, so that importing the package costs next to nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lume_diff import view
    from lume_diff.archive import RunArchive
    from lume_diff.blackbox import (
        ATModel,
        BlackBoxModel,
        BmadModel,
        FiniteDifference,
        ImpactTModel,
        ImpactXModel,
        LumeModel,
        MADXModel,
        Simulator,
        to_lume,
    )
    from lume_diff.errors import (
        CalibrationError,
        ControlError,
        GradientError,
        LatticeError,
        LumeDiffError,
        MissingExtraError,
        OutOfRangeWarning,
        PhysicsWarning,
        ReadOnlyError,
        ShapeError,
        SimulatorError,
        TrustWarning,
        UnitError,
        UnknownVariableError,
        ValidationError,
    )
    from lume_diff.ioc import LiveTwin, Server, serve
    from lume_diff.machine import example_machine, load_model, save_model
    from lume_diff.models import (
        BunchFromMoments,
        CheetahModel,
        EnsembleModel,
        FacilityMapping,
        FacilityModel,
        GPModel,
        LUMEModel,
        StagedModel,
        TorchModel,
    )
    from lume_diff.particles import TorchMoments, TorchParticleGroup
    from lume_diff.variables import (
        BoolVariable,
        EnumVariable,
        IntVariable,
        MomentsVariable,
        ParticleGroupVariable,
        StrVariable,
        TorchNDVariable,
        TorchScalarVariable,
    )

__version__ = "0.1.0"

_HOMES = {
    "lume_diff.archive": ("RunArchive",),
    "lume_diff.blackbox": (
        *(
            "ATModel",
            "BlackBoxModel",
            "BmadModel",
            "FiniteDifference",
            "ImpactTModel",
            "ImpactXModel",
            "LumeModel",
            "MADXModel",
        ),
        *("Simulator", "to_lume"),
    ),
    "lume_diff.errors": (
        *("CalibrationError", "ControlError", "GradientError", "LatticeError", "LumeDiffError", "MissingExtraError"),
        *("OutOfRangeWarning", "PhysicsWarning", "ReadOnlyError", "ShapeError", "SimulatorError", "UnitError"),
        *("TrustWarning", "UnknownVariableError", "ValidationError"),
    ),
    "lume_diff.machine": ("example_machine", "load_model", "save_model"),
    "lume_diff.models": (
        *("BunchFromMoments", "CheetahModel", "EnsembleModel", "FacilityMapping", "FacilityModel", "GPModel"),
        *("LUMEModel", "StagedModel", "TorchModel"),
    ),
    "lume_diff.ioc": ("LiveTwin", "Server", "serve"),
    "lume_diff.particles": ("TorchMoments", "TorchParticleGroup"),
    "lume_diff.variables": (
        *("BoolVariable", "EnumVariable", "IntVariable", "MomentsVariable", "ParticleGroupVariable", "StrVariable"),
        *("TorchNDVariable", "TorchScalarVariable"),
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "ATModel",
    "BlackBoxModel",
    "BmadModel",
    "BoolVariable",
    "BunchFromMoments",
    "CalibrationError",
    "CheetahModel",
    "ControlError",
    "EnsembleModel",
    "EnumVariable",
    "FacilityMapping",
    "FacilityModel",
    "FiniteDifference",
    "GPModel",
    "GradientError",
    "ImpactTModel",
    "ImpactXModel",
    "IntVariable",
    "LUMEModel",
    "LatticeError",
    "LiveTwin",
    "LumeDiffError",
    "LumeModel",
    "MADXModel",
    "MissingExtraError",
    "MomentsVariable",
    "OutOfRangeWarning",
    "ParticleGroupVariable",
    "PhysicsWarning",
    "ReadOnlyError",
    "RunArchive",
    "Server",
    "ShapeError",
    "Simulator",
    "SimulatorError",
    "StagedModel",
    "StrVariable",
    "TorchMoments",
    "TorchModel",
    "TorchNDVariable",
    "TorchParticleGroup",
    "TorchScalarVariable",
    "TrustWarning",
    "UnitError",
    "UnknownVariableError",
    "ValidationError",
    "example_machine",
    "load_model",
    "save_model",
    "serve",
    "to_lume",
    "view",
]


def __getattr__(name: str) -> Any:
    if name == "view":  # a package that can be called
        return importlib.import_module("lume_diff.view")
    if name not in _HOME_OF:
        raise AttributeError(f"module 'lume_diff' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
