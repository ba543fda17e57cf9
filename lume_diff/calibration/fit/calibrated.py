"""CalibratedModel: a model with the errors of the machine that a calibration has found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lume_diff.calibration.fit.parameters import Parameter, Value, acted_image, acted_inputs
from lume_diff.models import LUMEModel
from lume_diff.models.evaluation import Evaluation
from lume_diff.variables import TorchNDVariable


class CalibratedModel(LUMEModel):
    """A model that takes settings as they are written down, and has the machine's errors inside.

    Its variables are those of the model. What was found to be a value of an input becomes its set-point; every other
    parameter acts on the inputs before the model runs, or on its screens after.

    Args:
        model: which was calibrated.
        parameters: what was found to be off.
        values: of the parameters, ``(p,)``, each in its unit.
        pixel_size: of each screen that camera parameters act on [m], by output name.

    Gradient:
        As the model's.
    """

    def __init__(
        self,
        model: LUMEModel,
        parameters: Sequence[Parameter],
        values: Tensor,
        pixel_size: Mapping[str, tuple[float, float]] | None = None,
    ) -> None:
        initial = {name: value for name, value in model.get(model.input_names).items() if value is not None}
        pairs = list(zip(parameters, values.detach().to(model.dtype).unbind(), strict=True))
        for parameter, value in pairs:
            if isinstance(parameter, Value):
                initial.update(dict.fromkeys(parameter.inputs, value))
        super().__init__(model.supported_variables.values(), initial=initial, dtype=model.dtype, device=model.device)
        self.model = model
        self._on_request = model._on_request
        acting = [(parameter, value) for parameter, value in pairs if not isinstance(parameter, Value)]
        self._acting = [parameter for parameter, _ in acting]
        self._values: torch.Tensor
        self.register_buffer("_values", torch.stack([value for _, value in acting]) if acting else values.new_zeros(0))
        self._pixel_size = dict(pixel_size or {})

    def _run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> Evaluation:
        model = self.model
        changed = acted_inputs(self._pairs, inputs, model)
        return model._evaluate(model._merged(model._checked_inputs(changed)), outputs, None, share_graphs=False)

    def _read(self, state: Evaluation, outputs: Sequence[str]) -> dict[str, Any]:
        found = dict(state.read(self.model, list(outputs)))
        for name, pixel_size in self._pixel_size.items():
            if name in found and isinstance(self.supported_variables[name], TorchNDVariable):
                found[name] = acted_image(self._pairs, found[name], pixel_size)
        return found

    @property
    def _pairs(self) -> list[tuple[Parameter, Tensor]]:
        """Parameters that act when the model runs, with their values."""
        return list(zip(self._acting, self._values.unbind(), strict=True))

    @property
    def runs(self) -> int:
        """How often the model inside has run."""
        return self.model.runs

    def gradient_report(self) -> Any:
        """Return the report of the model inside."""
        return self.model.gradient_report()

    @property
    def simulator(self) -> Any:
        """The native object of the model inside."""
        return self.model.simulator

    def reference_energy(self, inputs: Mapping[str, Any] | None, elements: Sequence[str]) -> dict[str, Tensor]:
        """Return the reference energy [eV] at elements of the model inside, ``(*batch,)``, errors included."""
        checked = self._merged(self._checked_inputs({} if inputs is None else inputs))
        return self.model.reference_energy(acted_inputs(self._pairs, checked, self.model), elements)

    def _reset_simulator(self) -> None:
        self.model._reset_simulator()

    def refresh(self) -> None:
        """Re-read what was changed on the simulator inside."""
        self.model.refresh()
        super().refresh()
