"""BunchFromMoments: from what an injector surrogate predicts to a bunch that can be tracked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import torch

from lume_diff.errors import ValidationError, nearest_names
from lume_diff.models.base import LUMEModel
from lume_diff.models.line.outputs import STATISTICS
from lume_diff.particles import TorchMoments, TorchParticleGroup, sample_bunch, statistic_unit
from lume_diff.particles.statistics import BunchStatistics
from lume_diff.variables import MomentsVariable, ParticleGroupVariable, TorchScalarVariable


class Parameter(NamedTuple):
    """One parameter of a bunch, under openPMD's name.

    Attributes:
        unit: openPMD's.
        default: where it starts unless something is given; None where something must be given.
        lowest: the smallest value that makes sense, None where any does.
        scale: the size of a typical change where the value is 0; otherwise that is a hundredth of the value.
        description: in words.
    """

    unit: str
    default: float | None
    lowest: float | None
    scale: float
    description: str


PARAMETERS: dict[str, Parameter] = {
    "mean_x": Parameter("m", 0.0, None, 1e-5, "mean horizontal position"),
    "mean_px": Parameter("eV/c", 0.0, None, 1e2, "mean horizontal momentum"),
    "mean_y": Parameter("m", 0.0, None, 1e-5, "mean vertical position"),
    "mean_py": Parameter("eV/c", 0.0, None, 1e2, "mean vertical momentum"),
    "mean_energy": Parameter("eV", None, None, 1e6, "mean total energy"),
    "beta_x": Parameter("m", None, 0.0, 0.1, "horizontal beta function"),
    "alpha_x": Parameter("1", 0.0, None, 0.1, "horizontal alpha function"),
    "norm_emit_x": Parameter("m", None, 0.0, 1e-8, "horizontal normalised emittance"),
    "beta_y": Parameter("m", None, 0.0, 0.1, "vertical beta function"),
    "alpha_y": Parameter("1", 0.0, None, 0.1, "vertical alpha function"),
    "norm_emit_y": Parameter("m", None, 0.0, 1e-8, "vertical normalised emittance"),
    "sigma_t": Parameter("s", 0.0, 0.0, 1e-14, "rms bunch duration"),
    "sigma_energy": Parameter("eV", 0.0, 0.0, 1e2, "rms energy spread"),
    "cov_t__energy": Parameter("s*eV", 0.0, None, 1e-13, "covariance of time and energy (chirp)"),
    "charge": Parameter("C", None, 0.0, 1e-13, "bunch charge"),
}


class BunchFromMoments(LUMEModel):
    """Turn means, Twiss parameters and emittances into a bunch with exactly those.

    A fixed sample is transformed to the moments (reparametrisation), so that the gradient passes from what is tracked
    to what predicted the moments. As a stage it feeds a line from a surrogate injector: link the surrogate's outputs
    to the inputs here. Outputs are ``final_particles``, ``final_moments`` and ``final.<statistic>`` as of a line.

    Twiss parameters, emittances and the chirp of the bunch are those given in openPMD's sense, with Bessel's
    correction; sizes in time and energy come out as given without it, as openPMD has them.

    Args:
        n_particles: how many particles, at least 7.
        seed: of the sample.
        species: of the particles.
        reference_energy: total energy that the bunch refers to [eV]; None for the mean energy given in ``values``.
        dtype, device, validation: see ``LUMEModel``.
        **values: starting values of the inputs: ``mean_x, mean_px, mean_y, mean_py, mean_energy``, ``beta_x, alpha_x,
            norm_emit_x`` and the same for y, ``sigma_t, sigma_energy, cov_t__energy, charge``, in openPMD's units.
            Those of mean energy, beta, emittance and charge have no default, the others are 0.

    Raises:
        ValidationError: for a value that is missing, unknown or impossible.

    Gradient:
        Exact, to all inputs.

    Source:
        See ``lume_diff.particles.sample_bunch``.

    Example:
        >>> twiss = dict(beta_x=10.0, norm_emit_x=1e-6, beta_y=5.0, norm_emit_y=1e-6)
        >>> bunch = BunchFromMoments(1000, mean_energy=1e8, sigma_energy=1e4, charge=1e-10, **twiss)
        >>> round(float(bunch.get("final_particles")["twiss_beta_x"]), 6)
        10.0
    """

    def __init__(
        self,
        n_particles: int = 10_000,
        seed: int = 0,
        *,
        species: str = "electron",
        reference_energy: float | None = None,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str | None = None,
        validation: Mapping[str, str] | None = None,
        **values: float,
    ) -> None:
        unknown = [name for name in values if name not in PARAMETERS]
        if unknown:
            raise ValidationError(
                f"{unknown[0]!r} is not a parameter of a bunch{nearest_names(unknown[0], PARAMETERS)}"
            )
        missing = [name for name, p in PARAMETERS.items() if p.default is None and name not in values]
        if missing:
            raise ValidationError(f"BunchFromMoments needs starting values for {', '.join(missing)}")
        start = {name: values.get(name, parameter.default) for name, parameter in PARAMETERS.items()}
        variables = [
            TorchScalarVariable(
                name=name,
                unit=p.unit,
                default_value=start[name],
                value_range=None if p.lowest is None else (p.lowest, None),
                scale=1e-2 * abs(start[name] or 0.0) or p.scale,
                description=p.description,
            )
            for name, p in PARAMETERS.items()
        ]
        super().__init__(
            [
                *variables,
                TorchScalarVariable(
                    name="reference_energy",
                    unit="eV",
                    default_value=start["mean_energy"] if reference_energy is None else reference_energy,
                    scale=1e-2 * values["mean_energy"],
                    description="total energy that the bunch refers to",
                ),
                *(
                    TorchScalarVariable(name=f"final.{name}", unit=statistic_unit(key), read_only=True)
                    for name, key in STATISTICS.items()
                ),
                ParticleGroupVariable(name="final_particles", read_only=True, description="the bunch"),
                MomentsVariable(name="final_moments", read_only=True, description="its moments"),
            ],
            dtype=dtype,
            device=device,
            validation=validation,
        )
        self.n_particles, self.seed, self.species = n_particles, seed, species
        self.get("final_particles")  # What is wrong with the values shows here.

    def _run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> _Sample:
        del outputs
        values = dict(inputs)
        energy = values.pop("mean_energy")
        moments = TorchMoments.from_twiss(energy=energy, species=self.species, **values)
        return _Sample(moments, self.n_particles, self.seed)

    def _read(self, state: _Sample, outputs: Sequence[str]) -> dict[str, Any]:
        return {name: state.read(name) for name in outputs}


class _Sample:
    """Moments, and the bunch drawn from them when somebody asks for it."""

    def __init__(self, moments: TorchMoments, count: int, seed: int) -> None:
        self.moments, self.count, self.seed = moments, count, seed

    def read(self, name: str) -> Any:
        """Return one output."""
        if name == "final_moments":
            return self.moments
        return self.bunch if name == "final_particles" else self._statistics[STATISTICS[name.removeprefix("final.")]]

    @cached_property
    def bunch(self) -> TorchParticleGroup:
        """The bunch, whose covariance is the given one after Bessel's correction, spreads in time and energy apart."""
        smaller = (self.count - 1) / self.count
        factors = [[1.0 if i == j and i >= 4 else smaller for j in range(6)] for i in range(6)]
        moments = self.moments
        scaled = moments.cov * torch.tensor(factors, dtype=moments.dtype, device=moments.device)
        return sample_bunch(moments._with(cov=scaled), self.count, self.seed)

    @cached_property
    def _statistics(self) -> BunchStatistics:
        return BunchStatistics(self.bunch)
