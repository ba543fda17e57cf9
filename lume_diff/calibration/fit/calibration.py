"""Calibration: what is off between a model and the machine, from what the machine has shown."""

from __future__ import annotations

import contextlib
import math
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lume_diff.archive import RunArchive
from lume_diff.calibration.data.several import data_sets
from lume_diff.calibration.fit.bunches import effective_particles, is_drawn
from lume_diff.calibration.fit.objective import Objective, Observation, holds_images
from lume_diff.calibration.fit.optimisers import METHODS, STEPS, Optimum
from lume_diff.calibration.fit.parameters import InputParameter, Parameter
from lume_diff.calibration.fit.posterior import Laplace
from lume_diff.calibration.fit.progress import Progress
from lume_diff.calibration.fit.result import CalibrationResult
from lume_diff.calibration.likelihoods.base import Likelihood
from lume_diff.errors import CalibrationError, GradientError, LumeDiffError, PhysicsWarning, ValidationError
from lume_diff.registry import plugin

if TYPE_CHECKING:
    from lume_diff.models import LUMEModel

#: Other bunches that a fit of images looks at: their scatter is known to a sixth.
_BUNCHES = 20
#: Variance from the particles relative to that from the data above which a fit says so.
_GRAIN = 1.0


class Calibration:
    """Fit parameters of a machine to what its instruments have shown.

    Any model will do, black boxes among its stages included: Levenberg-Marquardt takes a Jacobian of the whole chain,
    which costs a black box its own few runs a setting, an iteration.

    Args:
        model: what predicts the data.
        data: a ``ScreenDataset``, a ``Dataset``, or several of them.
        parameters: the unknowns, each with its prior.
        likelihood: how predictions and data are compared: a ``Likelihood``, the name of one (``"images"``,
            ``"profiles"``, ``"moments"``, ``"transport"``, ``"values"``), or one for each data set. By default
            ``"moments"`` for screens, which few macroparticles tell as well as many, and ``"values"`` for numbers.

    Raises:
        ValidationError, UnknownVariableError: for parameters, data or names that do not fit the model.
        CalibrationError: for images of one setting alone, which fit many machines.

    Example:
        >>> fit = Calibration(model, data, [Scale("Q1.k1", Normal(1.0, 0.02))])  # doctest: +SKIP
        >>> print(fit.run())  # doctest: +SKIP
    """

    def __init__(
        self,
        model: LUMEModel,
        data: Any,
        parameters: Sequence[Parameter],
        likelihood: str | Likelihood | Sequence[str | Likelihood] | None = None,
    ) -> None:
        self.model = model
        self.data = data_sets(data)
        self.parameters = list(parameters)
        self.likelihoods = _likelihoods(self.data, likelihood)
        if not self.parameters:
            raise ValidationError("there is nothing to fit: parameters is empty")
        check_parameters(self.parameters, model)
        self.data = [part.check_against(model) for part in self.data]
        if len(self.data) == 1 and holds_images(self.data[0]):
            _require_settings(self.data[0])
        self._observations = []
        particles = effective_particles(model) if any(map(holds_images, self.data)) else None
        self._granular = particles if any(chosen.is_granular for chosen in self.likelihoods) else None
        for part, chosen in zip(self.data, self.likelihoods, strict=True):
            target = chosen.target(part)
            if particles is not None:
                target = chosen.granular(target, particles)
            self._observations.append(Observation(part, chosen, target))

    def objective(self, ledger: RunArchive | None = None, seed: int = 0) -> Objective:
        """Return residuals, cost and derivatives as functions of the parameters, for a fit of one's own.

        Args:
            ledger: keeps every evaluation; None to keep nothing.
            seed: part of the ledger's key.
        """
        return Objective(self.model, self._observations, self.parameters, ledger, seed)

    def _posterior(self, objective: Objective, u: Tensor) -> tuple[Tensor, Laplace, float | None]:
        """Return the most likely point near the minimum of the cost, how sure it is, and which chi² is due to noise.

        Where the particles of the model show, a bunch that is drawn is one of many: the point is where the average
        over others has its minimum, and what is left of their scatter adds to the errors. A bunch that was given is
        the only one, and all of its scatter does.
        """
        if self._granular is None:
            try:
                return u, Laplace.around(objective.linearised(u).slope), None
            except GradientError:
                return u, Laplace.around(objective.jacobian_by_rows(u)), None
        sampling = objective.sampling(u, _BUNCHES)
        left = 1.0
        if is_drawn(self.model):
            u = u - torch.linalg.solve(sampling.precision, sampling.slope)
            left = 1.0 / _BUNCHES
        laplace = Laplace.sandwich(sampling.precision, sampling.noise + left * sampling.granularity)
        _warn_of_grains(self._granular, laplace, Laplace.sandwich(sampling.precision, sampling.noise))
        return u, laplace, float(sampling.chi_square)

    def run(
        self,
        method: str = "auto",
        *,
        steps: int | None = None,
        starts: int = 1,
        seed: int = 0,
        checkpoint: str | os.PathLike[str] | None = None,
        progress: bool | Callable[[int, float, Mapping[str, float]], None] = True,
    ) -> CalibrationResult:
        """Fit, and say how sure the result is.

        Ctrl-C stops the fit and keeps the best point so far. With a checkpoint a fit that was killed goes on where it
        was: every evaluation is on disk when it is made, and none is made twice. A black box needs an ``archive=`` of
        its own for that to hold run by run and bit by bit: it keeps runs and steps.

        Images and profiles by macroparticles take 20 more evaluations at the end, each with another bunch: one that is
        drawn from moments is drawn anew, and the estimate moves to where the average of them fits best; one that was
        given is resampled, which tells the error but not the bias that its particles cause.

        Args:
            method: ``"levenberg-marquardt"`` (the choice of ``"auto"``), ``"lbfgs"`` for models with a reverse mode
                only, ``"adam"`` for rough ones.
            steps: at most; 50, 200 or 500 by default.
            starts: how many starting points: the priors' centres, then random ones of the priors.
            seed: of the random starting points.
            checkpoint: path of a file that keeps every evaluation.
            progress: whether to show a bar, or a function that is given the step, the cost and the estimates.

        Returns:
            The estimates with errors, and everything to judge them by.

        Raises:
            ValidationError: for another method, and for less than one step or start.
            CalibrationError: if no starting point can be evaluated, or the data say nothing at all.
            SimulatorError: if the model fails at the centre of the priors.

        Warns:
            PhysicsWarning: if the particles of the model are too few for the likelihood, and how many would do.
        """
        chosen = "levenberg-marquardt" if method == "auto" else method
        if chosen not in METHODS:
            raise ValidationError(f"method is {method!r}; expected 'auto', " + ", ".join(map(repr, METHODS)))
        for name, number in (("steps", steps), ("starts", starts)):
            if number is not None and number < 1:
                raise ValidationError(f"{name} is {number!r}; expected 1 or more")
        ledger = None if checkpoint is None else RunArchive(checkpoint)
        objective = self.objective(ledger, seed)
        runs, began = self.model.runs, time.perf_counter()
        most = STEPS[chosen] if steps is None else steps
        with Progress(objective, most * starts, progress) as told:
            optima = _optima(objective, chosen, most, _starting_points(len(self.parameters), starts, seed), told)
            best = min(optima, key=lambda optimum: optimum.cost)
            u, laplace, expected = self._posterior(objective, best.u)
        result = CalibrationResult(
            calibration=self,
            u=u,
            cost=best.cost,
            laplace=laplace,
            method=chosen,
            converged=best.converged,
            message=best.message,
            optima=[(optimum.u, optimum.cost) for optimum in optima],
            history=told.history,
            runs=self.model.runs - runs,
            evaluations=objective.evaluations,
            seconds=time.perf_counter() - began,
            seed=seed,
            expected=expected,
        )
        with contextlib.suppress(LumeDiffError):  # the fit is not lost where the model fails once more
            _ = result.residuals  # of the model as it is now: other set-points of it may be changed
        return result


def _warn_of_grains(particles: float, laplace: Laplace, without: Laplace) -> None:
    """Warn if the chance positions of particles are a large part of the variance of an estimate."""
    grain = float((laplace.errors / without.errors).square().max()) - 1.0
    if grain > _GRAIN:
        digits = 10.0 ** math.floor(math.log10(particles * grain / _GRAIN))
        enough = math.ceil(particles * grain / _GRAIN / digits) * digits
        warnings.warn(
            f"the model's bunch counts as {particles:.0f} macroparticles, which make up {grain / (1.0 + grain):.0%} "
            "of the variance of an estimate; its error includes that, but it may be biased too: "
            f"use {enough:.0f} particles, or the likelihood 'moments'",
            PhysicsWarning,
            stacklevel=4,
        )


def _optima(
    objective: Objective, method: str, steps: int, starting_points: Sequence[Tensor], told: Progress
) -> list[Optimum]:
    """Return where each start leads; what was reached when Ctrl-C is pressed is the last."""
    optima = []
    for start in starting_points:
        try:
            optima.append(METHODS[method](objective, start, steps, told))
        except KeyboardInterrupt:
            if told.best is None:
                raise
            u, cost = told.best
            optima.append(Optimum(u, cost, converged=False, message="stopped by Ctrl-C"))
            break
        except CalibrationError:
            if start is starting_points[-1] and not optima:
                raise
    return optima


def _starting_points(count: int, starts: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    centre = torch.zeros(count, dtype=torch.float64)
    others = [torch.randn(count, dtype=torch.float64, generator=generator) for _ in range(starts - 1)]
    return [centre, *others]


def _require_settings(data: Any) -> None:
    """Raise CalibrationError where a single setting shows the beam: many machines make one image."""
    seen = int(data.has_beam.any(1).sum())
    if seen == 1:
        raise CalibrationError(
            f"{data.screen}: 1 of {len(data)} settings shows the beam, a calibration needs 2; add settings, or data of "
            "another instrument, or tell by with_beam(...) which images show the beam"
        )


def _likelihoods(data: Sequence[Any], likelihood: Any) -> list[Likelihood]:
    """Return a likelihood for each data set."""
    given = list(likelihood) if isinstance(likelihood, (list, tuple)) else [likelihood] * len(data)
    if len(given) != len(data):
        raise ValidationError(f"there are {len(data)} data sets and {len(given)} likelihoods; expected one for each")
    found = []
    for part, choice in zip(data, given, strict=True):
        images = holds_images(part)
        if choice is None:
            choice = "moments" if images else "values"
        chosen = plugin("likelihoods", choice)() if isinstance(choice, str) else choice
        if not isinstance(chosen, Likelihood):
            raise ValidationError(f"likelihood is {choice!r}; expected a Likelihood or the name of one")
        if chosen.images != images:
            raise ValidationError(
                f"{chosen!r} compares {'images' if chosen.images else 'numbers'}, but the data set of "
                f"{', '.join(part.outputs)} holds {'images' if images else 'numbers'}"
            )
        found.append(chosen)
    return found


def check_parameters(parameters: Sequence[Parameter], model: LUMEModel) -> None:
    """Raise unless parameters fit a model and each other.

    Raises:
        ValidationError, UnknownVariableError, ReadOnlyError, UnitError: naming the parameter.
    """
    for parameter in parameters:
        if not isinstance(parameter, Parameter):
            raise ValidationError(f"{parameter!r} is no parameter; expected Scale, Offset, Value, Blur or another one")
        parameter.check(model)
    names = [parameter.name for parameter in parameters]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValidationError(f"two parameters are called {twice[0]!r}: give each its own name")
    kinds = [(type(p), tuple(p.inputs)) for p in parameters if isinstance(p, InputParameter)]
    for kind in kinds:
        if kinds.count(kind) > 1:
            raise ValidationError(f"two parameters are {kind[0].__name__} of {', '.join(kind[1])}: leave one out")
