"""BunchFromMoments: from what an injector surrogate predicts to a bunch that can be tracked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lume_diff.errors import ValidationError, nearest_names
from lume_diff.models.base import LUMEModel
from lume_diff.particles import TorchMoments, sample_bunch
from lume_diff.variables import MomentsVariable, ParticleGroupVariable, TorchScalarVariable

#: name -> (unit, default, lowest value, description); openPMD's names and units.
PARAMETERS: dict[str, tuple[str, float | None, float | None, str]] = {
    "mean_x": ("m", 0.0, None, "mean horizontal position"),
    "mean_px": ("eV/c", 0.0, None, "mean horizontal momentum"),
    "mean_y": ("m", 0.0, None, "mean vertical position"),
    "mean_py": ("eV/c", 0.0, None, "mean vertical momentum"),
    "mean_energy": ("eV", None, None, "mean total energy"),
    "beta_x": ("m", None, 0.0, "horizontal beta function"),
    "alpha_x": ("1", 0.0, None, "horizontal alpha function"),
    "norm_emit_x": ("m", None, 0.0, "horizontal normalised emittance"),
    "beta_y": ("m", None, 0.0, "vertical beta function"),
    "alpha_y": ("1", 0.0, None, "vertical alpha function"),
    "norm_emit_y": ("m", None, 0.0, "vertical normalised emittance"),
    "sigma_t": ("s", 0.0, 0.0, "rms bunch duration"),
    "sigma_energy": ("eV", 0.0, 0.0, "rms energy spread"),
    "cov_t__energy": ("s*eV", 0.0, None, "covariance of time and energy (chirp)"),
    "charge": ("C", 0.0, 0.0, "bunch charge"),
}


class BunchFromMoments(LUMEModel):
    """Turn means, Twiss parameters and emittances into a bunch with exactly those.

    A fixed sample is transformed to the moments (reparametrisation), so that the gradient passes from what is tracked
    to what predicted the moments. As a stage it feeds a line from a surrogate injector: link the surrogate's outputs
    to the inputs here.

    Args:
        n_particles: how many particles, at least 7.
        seed: of the sample.
        species: of the particles.
        reference_energy: total energy that the bunch refers to [eV]; None for the mean energy given in ``values``.
        **values: starting values of the inputs: ``mean_x, mean_px, mean_y, mean_py, mean_energy``, ``beta_x, alpha_x,
            norm_emit_x`` and the same for y, ``sigma_t, sigma_energy, cov_t__energy, charge``, in openPMD's units. Those
            of energy, beta and emittance have no default.

    Raises:
        ValidationError: for a value that is missing, unknown or impossible.

    Gradient:
        Exact, to all inputs.

    Source:
        See ``lume_diff.particles.sample_bunch``.

    Example:
        >>> twiss = dict(beta_x=10.0, norm_emit_x=1e-6, beta_y=5.0, norm_emit_y=1e-6)
        >>> bunch = BunchFromMoments(1000, mean_energy=1e8, charge=1e-10, **twiss)
        >>> round(float(bunch.get("final_particles")["twiss_beta_x"]), 9)
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
            raise ValidationError(f"{unknown[0]!r} is not a parameter of a bunch{nearest_names(unknown[0], PARAMETERS)}")
        missing = [name for name, (_, default, *_) in PARAMETERS.items() if default is None and name not in values]
        if missing:
            raise ValidationError(f"BunchFromMoments needs starting values for {', '.join(missing)}")
        variables = [
            TorchScalarVariable(
                name=name,
                unit=unit,
                default_value=values.get(name, default),
                value_range=None if lowest is None else (lowest, None),
                description=description,
            )
            for name, (unit, default, lowest, description) in PARAMETERS.items()
        ]
        super().__init__(
            [
                *variables,
                TorchScalarVariable(
                    name="reference_energy",
                    unit="eV",
                    default_value=values["mean_energy"] if reference_energy is None else reference_energy,
                    description="total energy that the bunch refers to",
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

    def _run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> TorchMoments:
        del outputs
        values = dict(inputs)
        energy = values.pop("mean_energy")
        return TorchMoments.from_twiss(energy=energy, species=self.species, **values)

    def _read(self, state: TorchMoments, outputs: Sequence[str]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name in outputs:
            found[name] = state if name == "final_moments" else self._sample(state)
        return found

    def _sample(self, moments: TorchMoments) -> Any:
        """Draw the bunch so that the emittances, which openPMD takes from unbiased covariances, come out as given."""
        count = self.n_particles
        unbiased = torch.ones(6, 6, dtype=moments.dtype, device=moments.device)
        unbiased[:4, :4] = (count - 1) / count
        scaled: Tensor = moments.cov * unbiased
        return sample_bunch(moments._with(cov=scaled), count, self.seed)
