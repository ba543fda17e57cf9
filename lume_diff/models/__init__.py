"""Models: the contract, Cheetah beamlines, networks, and chains of any of them."""

from lume_diff.models.base import LUMEModel
from lume_diff.models.bunch_model import BunchFromMoments
from lume_diff.models.cheetah_model import CheetahModel
from lume_diff.models.derivatives import TensorFunction
from lume_diff.models.ensemble_model import EnsembleModel
from lume_diff.models.facility import FacilityMapping, FacilityModel
from lume_diff.models.gp_model import GPModel
from lume_diff.models.report import GradientEntry, GradientReport, JacobianCost
from lume_diff.models.staged_model import StagedModel
from lume_diff.models.survey import Survey, survey_of
from lume_diff.models.torch_model import TorchModel

__all__ = [
    "BunchFromMoments",
    "CheetahModel",
    "EnsembleModel",
    "FacilityMapping",
    "FacilityModel",
    "GPModel",
    "GradientEntry",
    "GradientReport",
    "JacobianCost",
    "LUMEModel",
    "StagedModel",
    "Survey",
    "TensorFunction",
    "TorchModel",
    "survey_of",
]
