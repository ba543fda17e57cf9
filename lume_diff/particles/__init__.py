"""A bunch as tensors: particles, their statistics and moments, and conversions to and from other packages."""

from lume_diff.particles.group import AliveOnly, TorchParticleGroup
from lume_diff.particles.keys import parse_key, statistic_names, statistic_unit
from lume_diff.particles.moment_statistics import moment_statistic_names
from lume_diff.particles.moments import TorchMoments
from lume_diff.particles.sampling import sample_bunch

__all__ = [
    "AliveOnly",
    "TorchMoments",
    "TorchParticleGroup",
    "moment_statistic_names",
    "parse_key",
    "sample_bunch",
    "statistic_names",
    "statistic_unit",
]
