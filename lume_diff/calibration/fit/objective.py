"""Objective: residuals of model against data, of which every optimiser sees just what it needs."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from lume_diff.archive import RunArchive
from lume_diff.calibration.fit.bunches import other_bunches
from lume_diff.calibration.fit.parameters import Parameter, acted_image, acted_inputs
from lume_diff.calibration.likelihoods.base import Likelihood
from lume_diff.errors import CalibrationError, GradientError, SimulatorError, ValidationError
from lume_diff.models.cost import Question
from lume_diff.models.derivatives import component_shape
from lume_diff.models.fingerprint import fingerprint
from lume_diff.models.forward_mode import directions_at_once, pushed
from lume_diff.models.transforms import tensors_in

if TYPE_CHECKING:
    from lume_diff.models import LUMEModel


class Observation(NamedTuple):
    """A data set and how it is compared with predictions.

    Attributes:
        data: the data set.
        likelihood: the comparison.
        target: what the comparison needs of the data.
    """

    data: Any
    likelihood: Likelihood
    target: Any


class Sampling(NamedTuple):
    """How the slope of the cost, ``J^T r``, scatters at one point: with the data's noise and with the particles.

    Attributes:
        precision: ``J^T J``, prior included, ``(p, p)``.
        noise: covariance of the slope from the noise of the data and the width of the prior, ``(p, p)``.
        granularity: its covariance from where the particles of one bunch happen to be, ``(p, p)``.
        slope: its mean over bunches other than the model's own, ``(p,)``.
        chi_square: the sum of the squared deviations that noise of data and particles alone would make, ``()``.
    """

    precision: Tensor
    noise: Tensor
    granularity: Tensor
    slope: Tensor
    chi_square: Tensor


class Linearised(NamedTuple):
    """What a Gauss-Newton step needs, however many residuals there are.

    Attributes:
        cost: half the sum of the squared residuals, prior included.
        slope: ``Q^T J``, ``(p + 1, p)``, in an orthonormal basis Q whose first vector points along the residuals:
            its product with its transpose is ``J^T J``, its first row times their length is ``J^T r``.
    """

    cost: float
    slope: Tensor


class Objective:
    """Compare a model with data at coordinates ``u``, ``(p,)``, in which every prior is a standard normal distribution.

    Args:
        model: what predicts.
        observations: what was measured.
        parameters: what is unknown.
        ledger: keeps every evaluation, so that a fit that was killed repeats none; None to keep nothing.
        seed: part of the ledger's key.
        given: values of the model's inputs other than its set-points, for all data.
    """

    def __init__(
        self,
        model: LUMEModel,
        observations: Sequence[Observation],
        parameters: Sequence[Parameter],
        ledger: RunArchive | None = None,
        seed: int = 0,
        given: Mapping[str, Any] | None = None,
    ) -> None:
        self.model = model
        self.observations = list(observations)
        self.parameters = list(parameters)
        self.evaluations = 0
        self._ledger = ledger
        self._seed = seed
        self._given = dict(given or {})

    @cached_property
    def identity(self) -> str:
        """A text that changes with the model as it is at first use, the data, the likelihoods and the parameters."""
        data = [(observation.data.digest, repr(observation.likelihood)) for observation in self.observations]
        text = repr((fingerprint(self.model), data, [repr(p) for p in self.parameters], self._seed))
        return "calibration " + hashlib.sha256(text.encode()).hexdigest()

    @property
    def count(self) -> int:
        """How many parameters there are."""
        return len(self.parameters)

    # -- predictions -----------------------------------------------------------------------------------------

    def values(self, u: Tensor) -> Tensor:
        """Return the parameters' values in their units at ``u (*batch, p)``."""
        return torch.stack([p.prior.at(part) for p, part in zip(self.parameters, u.unbind(-1), strict=True)], dim=-1)

    def predictions(self, values: Tensor) -> list[dict[str, Tensor]]:
        """Return for each data set what it should have measured, ``{output: (settings, *shape)}``.

        Args:
            values: of the parameters, ``(p,)``, each in its unit.

        Gradient:
            As the model's.
        """
        return [self.predict(values, observation.data) for observation in self.observations]

    def predict(self, values: Tensor, data: Any) -> dict[str, Tensor]:
        """Return what instruments should have shown at the settings of a data set, ``{output: (settings, *shape)}``.

        Args:
            values: of the parameters, ``(p,)``, each in its unit.
            data: a data set.

        Gradient:
            As the model's.
        """
        pairs = list(zip(self.parameters, values.to(self.model.dtype).unbind(-1), strict=True))
        inputs = acted_inputs(pairs, data.inputs(self.model.dtype), self.model)
        seen = {}
        for name, value in self.model({**self._given, **inputs}, outputs=list(data.outputs)).items():
            value = value.expand(len(data), *component_shape(self.model.supported_variables[name]))
            if holds_images(data):
                value = data.frame.view(acted_image(pairs, value, data.frame.pixel))
            seen[name] = value
        return seen

    def residuals(self, u: Tensor) -> Tensor:
        """Return all residuals in standard deviations, those of the prior last, ``(n + p,)``.

        Gradient:
            As the model's.
        """
        return torch.cat([*self._deviations(u), u])

    def _deviations(self, u: Tensor) -> list[Tensor]:
        """Return the residuals of each data set, ``(n,)``."""
        return [
            observation.likelihood.residuals(predicted, observation.target).reshape(-1)
            for observation, predicted in zip(self.observations, self.predictions(self.values(u)), strict=True)
        ]

    # -- what optimisers ask for -----------------------------------------------------------------------------

    def cost(self, u: Tensor) -> float:
        """Return minus the log posterior at ``u``, but for a constant."""

        def evaluate() -> dict[str, Any]:
            with torch.no_grad():
                return {"cost": 0.5 * float(self._checked(u).square().sum())}

        return self._kept("cost", u, evaluate)["cost"]

    def gradient(self, u: Tensor) -> tuple[float, Tensor]:
        """Return the cost and its gradient ``(p,)``, by one backward."""

        def evaluate() -> dict[str, Any]:
            leaf = u.detach().clone().requires_grad_()
            cost = 0.5 * self._checked(leaf).square().sum()
            (slope,) = torch.autograd.grad(cost, leaf)
            return {"cost": float(cost.detach()), "slope": slope.cpu().numpy()}

        found = self._kept("gradient", u, evaluate)
        return found["cost"], torch.as_tensor(found["slope"])

    def linearised(self, u: Tensor) -> Linearised:
        """Return what a Gauss-Newton step needs, by forward mode: p directions."""

        def evaluate() -> dict[str, Any]:
            residuals, jacobian = self.jacobian(u)
            return {"cost": 0.5 * float(residuals.square().sum()), "slope": _compressed(residuals, jacobian).numpy()}

        found = self._kept("linearised", u, evaluate)
        return Linearised(found["cost"], torch.as_tensor(found["slope"]))

    def sampling(self, u: Tensor, count: int) -> Sampling:
        """Return how the slope of the cost scatters at ``u``, by running the model with ``count`` other bunches."""

        def evaluate() -> dict[str, Any]:
            try:
                jacobian = self.jacobian(u)[1]
            except GradientError:
                jacobian = self.jacobian_by_rows(u)
            with torch.no_grad():
                shares = [
                    observation.likelihood.measured_share(observation.target).expand(len(part))
                    for observation, part in zip(self.observations, self._deviations(u), strict=True)
                ]
                others = []
                for model, given in other_bunches(self.model, count):
                    other = Objective(model, self.observations, self.parameters, given=given)
                    others.append(other._checked(u))
            residuals = torch.stack(others)
            slopes = residuals @ jacobian
            parts = jacobian.split([*map(len, shares), len(u)])
            noise = parts[-1].mT @ parts[-1]
            for observation, part in zip(self.observations, parts[:-1], strict=True):
                noise = noise + observation.likelihood.measured_noise(part, observation.target)
            found = {
                "precision": jacobian.mT @ jacobian,
                "noise": noise,
                "granularity": torch.cov(slopes.mT).reshape(len(u), len(u)),
                "slope": slopes.mean(0),
                "chi_square": torch.cat(shares).sum() + residuals.var(0).sum(),
            }
            return {name: value.cpu().numpy() for name, value in found.items()}

        return Sampling(**{n: torch.as_tensor(v) for n, v in self._kept(f"sampling {count}", u, evaluate).items()})

    def jacobian(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return all residuals ``(n,)`` and their derivatives ``(n, p)``, by forward mode."""
        if not self.count:
            raise ValidationError("there is nothing to fit: give at least one parameter")
        residuals, columns = pushed(self.residuals, [u], [torch.eye(self.count, dtype=u.dtype)], self._at_once)
        return self._finite(residuals, u), columns.mT

    @cached_property
    def _at_once(self) -> int:
        """How many directions go through the model together; one after the other through a black box."""
        taken = sum(
            tensor.numel() for value in self.model.get(self.model.input_names).values() for tensor in tensors_in(value)
        )
        numbers = 0
        for data in (observation.data for observation in self.observations):
            if not self.model._derivative_cost(Question({}, {}, list(data.outputs), ())).is_free:
                return 1
            made = (math.prod(component_shape(self.model.supported_variables[name])) for name in data.outputs)
            numbers += len(data) * (sum(made) + taken)
        return directions_at_once(numbers)

    def jacobian_by_rows(self, u: Tensor) -> Tensor:
        """Return derivatives of all residuals ``(n, p)`` by reverse mode, for chains without a forward mode."""
        leaf = u.detach().clone().requires_grad_()
        rows = [torch.autograd.grad(r, leaf, retain_graph=True)[0] for r in self.residuals(leaf)]
        return torch.stack(rows)

    def _checked(self, u: Tensor) -> Tensor:
        return self._finite(self.residuals(u), u)

    def _finite(self, residuals: Tensor, u: Tensor) -> Tensor:
        if not bool(torch.isfinite(residuals).all()):
            values = self.values(u.detach()).tolist()
            shown = ", ".join(
                f"{p.name} = {v:.6g} {p.unit}".strip() for p, v in zip(self.parameters, values, strict=True)
            )
            raise CalibrationError(f"the comparison with the data is not finite at {shown}: narrow the priors")
        return residuals

    def _kept(self, kind: str, u: Tensor, evaluate: Any) -> dict[str, Any]:
        """Return an evaluation from the ledger, or make it and put it there."""
        point = {"u": u.detach().cpu().numpy()}
        if self._ledger is not None:
            known = self._ledger.get(f"{self.identity} {kind}", point, [])
            if known is not None:
                return known
        self.evaluations += 1
        try:
            found = evaluate()
        except (SimulatorError, ValidationError) as error:
            if math.isfinite(float(u.detach().abs().max())):
                raise
            raise CalibrationError(f"the fit has left the region where the model works: {error}") from error
        if self._ledger is not None:
            self._ledger.put(f"{self.identity} {kind}", point, found)
        return found


def holds_images(data: Any) -> bool:
    """Tell whether a data set holds images."""
    return hasattr(data, "pixel_size")


def _compressed(residuals: Tensor, jacobian: Tensor) -> Tensor:
    """Return ``Q^T J``; see ``Linearised``."""
    length = residuals.norm()
    along = residuals / torch.where(length > 0, length, torch.ones_like(length))
    first = along @ jacobian
    rest = torch.linalg.qr(jacobian - torch.outer(along, first), mode="r").R
    return torch.cat((first.unsqueeze(0), rest))
