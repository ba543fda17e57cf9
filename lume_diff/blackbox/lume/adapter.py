"""to_lume: a model of this package as LUME's tools want it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from lume_diff.blackbox.codes.plain_bunches import INCOMING, OUTGOING
from lume_diff.blackbox.lume.variables import lume, native_value, native_variable
from lume_diff.errors import ReadOnlyError, ValidationError
from lume_diff.models import LUMEModel


def to_lume(model: LUMEModel) -> Any:
    """Return one of our models as a ``lume.model.LUMEModel``, for lume-pva and other tools of LUME.

    Values are plain: Python numbers, float64 arrays, texts, ``beamphysics.ParticleGroup``. Writes are transactions as
    they are here. A model with ``initial_particles`` or ``final_particles`` has them as attributes too, so that it can
    be a stage of LUME's chains. Moments, which LUME does not know, are left out.

    Args:
        model: any model; it is shared, not copied, and found again as ``.model``.

    Returns:
        The adapter.

    Raises:
        MissingExtraError: if lume-base is not installed.
        ValidationError: for anything but a model.

    Gradient:
        None; values are cut from their graphs.

    Example:
        >>> import lume_diff as ld
        >>> from lume_diff.blackbox import BlackBoxModel
        >>> a = ld.TorchScalarVariable(name="a", default_value=0.5)
        >>> y = ld.TorchScalarVariable(name="y", read_only=True)
        >>> theirs = to_lume(BlackBoxModel.from_function(lambda a: {"y": 2 * a}, [a], [y]))
        >>> theirs.set({"a": 3.0})
        >>> theirs.get(["y"])
        {'y': 6.0}
    """
    if not isinstance(model, LUMEModel):
        raise ValidationError(f"to_lume was given a {type(model).__qualname__}; expected a lume_diff.LUMEModel")
    return _adapter(INCOMING in model.input_names, OUTGOING in model.output_names)(model)


@functools.cache
def _adapter(takes_bunch: bool, gives_bunch: bool) -> Callable[[LUMEModel], Any]:
    """Return the class of adapters for models with these bunches."""
    stages = lume("staged_model")
    read_only = lume("exceptions").ReadOnlyError

    class LumeDiffAdapter(lume("model").LUMEModel):  # type: ignore[misc]
        """One of lume_diff's models as LUME wants it."""

        def __init__(self, model: LUMEModel) -> None:
            super().__init__()
            self.model = model
            found = {name: native_variable(variable) for name, variable in model.supported_variables.items()}
            self._natives = {name: native for name, native in found.items() if native is not None}

        @property
        def supported_variables(self) -> dict[str, Any]:
            return dict(self._natives)

        def _get(self, names: list[str]) -> dict[str, Any]:
            ours = self.model.supported_variables
            with torch.no_grad():
                values = self.model.get(names)
            return {name: native_value(ours[name], values[name]) for name in names}

        def _set(self, values: dict[str, Any]) -> None:
            try:
                with torch.no_grad():
                    self.model.set(values)
            except ReadOnlyError as error:
                raise read_only(str(error)) from error

        def reset(self) -> None:
            self.model.reset()

        def __reduce__(self) -> Any:
            return to_lume, (self.model,)

    bases: list[Any] = [LumeDiffAdapter]
    if gives_bunch:

        class Gives(stages.FinalParticlesMixIn):  # type: ignore[name-defined]
            @property
            def final_particles(self) -> Any:
                return self.get_value(OUTGOING)

        bases.insert(0, Gives)
    if takes_bunch:

        class Takes(stages.InitialParticlesMixIn):  # type: ignore[name-defined]
            @property
            def initial_particles(self) -> Any:
                return self.get_value(INCOMING)

            @initial_particles.setter
            def initial_particles(self, value: Any) -> None:
                self.set({INCOMING: value})

        bases.insert(0, Takes)
    return type("LumeDiffAdapter", tuple(bases), {"__doc__": LumeDiffAdapter.__doc__, "__module__": __name__})
