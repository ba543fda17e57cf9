"""Backend ``bunch-from-moments``: moments as inputs, a bunch with exactly those as output."""

from __future__ import annotations

from typing import Any

from lume_diff.machine.backend import Backend, BunchSection, Files
from lume_diff.machine.site import Site
from lume_diff.models import BunchFromMoments, LUMEModel


class BunchBackend(Backend, BunchSection):
    """``{backend: bunch-from-moments, mean_energy: 1.0e+8, charge: 1.0e-10, beta_x: 10, ...}``.

    Attributes:
        reference_energy: that the bunch refers to [eV]; the mean energy unless given.
    """

    reference_energy: float | None = None

    def build(self, site: Site) -> LUMEModel:
        """Return the model."""
        return BunchFromMoments(**self._given())

    def _given(self) -> dict[str, Any]:
        given = {name: value for name, value in self.dumped().items() if name in BunchSection.model_fields}
        return {**given, "reference_energy": self.reference_energy}

    @classmethod
    def of(cls, model: LUMEModel, files: Files) -> Backend | None:
        """Describe a bunch made from moments."""
        if not isinstance(model, BunchFromMoments):
            return None
        names = [name for name in BunchSection.model_fields if name in model.input_names]
        variables = model.supported_variables
        return cls(
            backend="bunch-from-moments",
            n_particles=model.n_particles,
            seed=model.seed,
            species=model.species,
            reference_energy=variables["reference_energy"].default_value,
            **{name: variables[name].default_value for name in names},
        )

    def stand_in(self, site: Site) -> LUMEModel | None:
        """Return the same for few particles."""
        return BunchFromMoments(**{**self._given(), "n_particles": 7})
