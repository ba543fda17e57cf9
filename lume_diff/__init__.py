"""Differentiable-first virtual accelerators and digital twins."""

from lume_diff.errors import (
    CalibrationError,
    GradientError,
    LatticeError,
    LumeDiffError,
    MissingExtraError,
    OutOfRangeWarning,
    PhysicsWarning,
    ReadOnlyError,
    ShapeError,
    SimulatorError,
    UnitError,
    UnknownVariableError,
    ValidationError,
)
from lume_diff.models import BunchFromMoments, CheetahModel, LUMEModel, StagedModel, TorchModel
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

__all__ = [
    "BoolVariable",
    "BunchFromMoments",
    "CalibrationError",
    "CheetahModel",
    "EnumVariable",
    "GradientError",
    "IntVariable",
    "LUMEModel",
    "LatticeError",
    "LumeDiffError",
    "MissingExtraError",
    "MomentsVariable",
    "OutOfRangeWarning",
    "ParticleGroupVariable",
    "PhysicsWarning",
    "ReadOnlyError",
    "ShapeError",
    "SimulatorError",
    "StagedModel",
    "StrVariable",
    "TorchMoments",
    "TorchModel",
    "TorchNDVariable",
    "TorchParticleGroup",
    "TorchScalarVariable",
    "UnitError",
    "UnknownVariableError",
    "ValidationError",
]
