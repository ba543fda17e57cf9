"""Parameters: what a calibration may change between the settings written down and the image seen."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lume_diff.calibration.fit.priors import Prior
from lume_diff.errors import ReadOnlyError, UnitError, ValidationError, nearest_names, unknown_variable
from lume_diff.variables import TorchScalarVariable

if TYPE_CHECKING:
    from lume_diff.models import LUMEModel


class Parameter(ABC):  # noqa: B024 - a parameter may act on inputs, on images, or on both
    """One unknown number with a prior.

    Attributes:
        name: under which the result reports it.
        prior: what is known beforehand, in ``unit``.
        unit: of the value.
    """

    def __init__(self, name: str, prior: Prior, unit: str) -> None:
        if not isinstance(prior, Prior):
            raise ValidationError(
                f"the prior of {name!r} is {prior!r}; expected a prior such as Normal(1.0, 0.02) or Uniform(-1.0, 1.0)"
            )
        self.name = name
        self.prior = prior
        self.unit = unit

    def check(self, model: LUMEModel) -> None:
        """Raise unless the parameter makes sense for a model."""

    def on_inputs(self, inputs: Mapping[str, Any], value: Tensor) -> dict[str, Any]:
        """Return the model's inputs as they are if the parameter has a value.

        Args:
            inputs: as they are written down, by name.
            value: of the parameter, in its unit, ``()`` or batched.

        Gradient:
            Exact.
        """
        return dict(inputs)

    def on_image(self, image: Tensor, value: Tensor, pixel_size: tuple[float, float]) -> Tensor:
        """Return what the camera sees of what falls on the screen, ``(*batch, ny, nx)``.

        Args:
            image: what falls on the screen, ``(*batch, ny, nx)``.
            value: of the parameter, in its unit, ``()`` or batched.
            pixel_size: width and height of a pixel [m].

        Gradient:
            Exact.
        """
        return image

    def acts(self) -> dict[str, Any]:
        """Return what it acts on, as arguments that make it again."""
        return {}

    def __repr__(self) -> str:
        # What is kept for a fit is found again by this text, so it tells all that the parameter does.
        acts = "".join(f", {name}={value!r}" for name, value in self.acts().items())
        return f"{type(self).__name__}({self.name!r}, {self.prior!r}{acts})"


#: Parameters with their values, each ``()`` or batched, in the order in which they act.
Pairs = Sequence[tuple[Parameter, Tensor]]


def acted_inputs(pairs: Pairs, inputs: Mapping[str, Any], model: LUMEModel) -> dict[str, Any]:
    """Return what the machine has where ``inputs`` were written down; the model's set-points stand in for the rest."""
    changed = dict(inputs)
    touched = {name for parameter, _ in pairs for name in getattr(parameter, "inputs", ())}
    if missing := sorted(touched - set(changed)):
        changed |= {name: value.detach() for name, value in model.get(missing).items()}
    for parameter, value in pairs:
        changed = parameter.on_inputs(changed, value)
    return changed


def acted_image(pairs: Pairs, image: Tensor, pixel_size: tuple[float, float]) -> Tensor:
    """Return what the camera sees, ``(*batch, ny, nx)``, of what falls on the screen; ``pixel_size`` in m."""
    for parameter, value in pairs:
        image = parameter.on_image(image, value, pixel_size)
    return image


class InputParameter(Parameter):
    """A parameter that acts on inputs of the model by name."""

    def __init__(self, inputs: str | Sequence[str], prior: Prior, unit: str | None, name: str | None) -> None:
        self.inputs = [inputs] if isinstance(inputs, str) else list(inputs)
        if not self.inputs:
            raise ValidationError(f"{type(self).__name__} acts on no input: name at least one")
        super().__init__(name or f"{type(self).__name__.lower()} of {', '.join(self.inputs)}", prior, unit or "")

    def check(self, model: LUMEModel) -> None:
        """Raise unless all inputs exist, can be written and are numbers.

        Raises:
            UnknownVariableError, ReadOnlyError, ValidationError: naming the input.
        """
        for name in self.inputs:
            variable = model.supported_variables.get(name)
            if variable is None:
                raise unknown_variable(name, model.input_names, f"parameter {self.name!r}")
            if variable.read_only:
                raise ReadOnlyError(
                    f"{name!r} of parameter {self.name!r} is an output of the model; expected an input"
                    f"{nearest_names(name, model.input_names)}"
                )
            if not isinstance(variable, TorchScalarVariable):
                raise ValidationError(
                    f"{name!r} of parameter {self.name!r} is a {type(variable).__name__}; expected a scalar input"
                )

    def acts(self) -> dict[str, Any]:
        """Return the inputs."""
        return {"inputs": self.inputs}

    def on_inputs(self, inputs: Mapping[str, Any], value: Tensor) -> dict[str, Any]:
        """Return inputs with those of this parameter changed."""
        return {**inputs, **{name: self.change(inputs[name], value) for name in self.inputs}}

    @abstractmethod
    def change(self, setting: Tensor, value: Tensor) -> Tensor:
        """Return what the machine has where ``setting`` was written down."""


class Scale(InputParameter):
    """The true value is the setting times this: a quadrupole's gradient error, a phase scale.

    Args:
        inputs: one input, or several that share the factor.
        prior: of the factor.
        name: in reports; ``"scale of <inputs>"`` unless given.

    Example:
        >>> from lume_diff.calibration import Normal
        >>> Scale("Q1.k1", Normal(1.0, 0.02)).name
        'scale of Q1.k1'
    """

    def __init__(self, inputs: str | Sequence[str], prior: Prior, *, name: str | None = None) -> None:
        super().__init__(inputs, prior, "", name)

    def change(self, setting: Tensor, value: Tensor) -> Tensor:
        """Return ``setting value``."""
        return setting * value


class Offset(InputParameter):
    """The true value is the setting plus this: a misalignment, a remanent field, a phase offset.

    Args:
        inputs: one input, or several that share the offset.
        prior: of the offset, in the input's unit.
        unit: taken from the model unless given; must be the input's.
        name: in reports; ``"offset of <inputs>"`` unless given.

    Example:
        >>> from lume_diff.calibration import Normal
        >>> Offset("SCR1.misalignment_x", Normal(0.0, 1e-3)).inputs
        ['SCR1.misalignment_x']
    """

    def __init__(
        self, inputs: str | Sequence[str], prior: Prior, *, unit: str | None = None, name: str | None = None
    ) -> None:
        super().__init__(inputs, prior, unit, name)

    def check(self, model: LUMEModel) -> None:
        """Raise unless all inputs exist and have the parameter's unit; take the unit from them otherwise."""
        super().check(model)
        self.unit = _common_unit(self, model)

    def change(self, setting: Tensor, value: Tensor) -> Tensor:
        """Return ``setting + value``."""
        return setting + value


class Value(InputParameter):
    """The true value is this, whatever the setting: beam energy, a Twiss parameter of the incoming beam.

    Args:
        inputs: one input, or several that share the value.
        prior: of the value, in the input's unit.
        unit: taken from the model unless given; must be the input's.
        name: in reports; the name of the input unless given.

    Example:
        >>> from lume_diff.calibration import LogNormal
        >>> Value("norm_emit_x", LogNormal(1e-6, 2.0)).name
        'norm_emit_x'
    """

    def __init__(
        self, inputs: str | Sequence[str], prior: Prior, *, unit: str | None = None, name: str | None = None
    ) -> None:
        names = [inputs] if isinstance(inputs, str) else list(inputs)
        super().__init__(inputs, prior, unit, name or ", ".join(names))

    def check(self, model: LUMEModel) -> None:
        """Raise unless all inputs exist and have the parameter's unit; take the unit from them otherwise."""
        super().check(model)
        self.unit = _common_unit(self, model)

    def change(self, setting: Tensor, value: Tensor) -> Tensor:
        """Return the value in the shape of the setting."""
        return value + torch.zeros_like(setting)


class BeamMomentum(InputParameter):
    """The true beam momentum is this times the one that strengths were computed with.

    A magnet's field is known, its strength (``k1`` [1/m^2], ``angle`` [rad]) is the field over the beam's rigidity: all
    strengths go down by this factor, and the energy of the beam up.

    Args:
        strengths: inputs that are fields over the rigidity of the nominal beam.
        prior: of the factor, around 1.
        energy: the input that is the beam's total energy [eV], or several of them: a stage that tracks relative to a
            reference energy has it as an input too.
        rest_energy: of a particle [eV]; the electron's by default.
        name: in reports.

    Source:
        ``p c = sqrt(E^2 - (m c^2)^2)``.

    Example:
        >>> from lume_diff.calibration import Normal
        >>> BeamMomentum(["Q1.k1", "C1.angle"], Normal(1.0, 0.02), energy="mean_energy").name
        'beam momentum'
    """

    def __init__(
        self,
        strengths: str | Sequence[str],
        prior: Prior,
        *,
        energy: str | Sequence[str] | None = None,
        rest_energy: float = 510998.95069,
        name: str = "beam momentum",
    ) -> None:
        self.strengths = [strengths] if isinstance(strengths, str) else list(strengths)
        self.energies = [energy] if isinstance(energy, str) else list(energy or ())
        self.rest_energy = rest_energy
        super().__init__([*self.strengths, *self.energies], prior, "", name)

    def check(self, model: LUMEModel) -> None:
        """Raise unless all inputs exist and energies are in eV."""
        super().check(model)
        for name in self.energies:
            unit = model.supported_variables[name].unit
            if unit and unit != "eV":
                raise UnitError(
                    f"energy {name!r} of parameter {self.name!r} is in {unit!r}; expected an input in 'eV', as the "
                    "rest energy is"
                )

    def acts(self) -> dict[str, Any]:
        """Return strengths and energies."""
        return {"strengths": self.strengths, "energy": self.energies, "rest_energy": self.rest_energy}

    def on_inputs(self, inputs: Mapping[str, Any], value: Tensor) -> dict[str, Any]:
        """Return inputs with weaker magnets and a faster beam."""
        changed = {**inputs, **{name: self.change(inputs[name], value) for name in self.strengths}}
        for name in self.energies:
            momentum = inputs[name].square() - self.rest_energy**2
            changed[name] = torch.sqrt(value.square() * momentum + self.rest_energy**2)
        return changed

    def change(self, setting: Tensor, value: Tensor) -> Tensor:
        """Return ``setting / value``."""
        return setting / value


def _common_unit(parameter: InputParameter, model: LUMEModel) -> str:
    """Return the unit that all inputs of a parameter have."""
    units = {name: model.supported_variables[name].unit or "" for name in parameter.inputs}
    expected = parameter.unit or next(iter(units.values()))
    for name, unit in units.items():
        if unit != expected:
            raise UnitError(
                f"parameter {parameter.name!r} is in {expected!r}, but its input {name!r} is in {unit!r}; "
                "give the prior in the input's unit, and one parameter for each unit"
            )
    return expected
