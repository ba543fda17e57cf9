"""Optimisers: from a starting point to the most likely one, each step told to a listener."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lume_diff.calibration.fit.objective import Linearised, Objective
from lume_diff.errors import CalibrationError, SimulatorError, ValidationError

#: How far the first step may go, in standard deviations of the priors.
_REACH = 3.0
#: A step that lowers the cost by less moves no estimate by more than a twentieth of its standard error.
_NEGLIGIBLE = 1e-3

#: Told after every accepted step: where it is and what it costs there.
Listener = Callable[[Tensor, float], None]


@dataclass(frozen=True)
class Optimum:
    """Where an optimiser stopped.

    Attributes:
        u: the coordinates, ``(p,)``.
        cost: minus the log posterior there.
        converged: whether it found that nothing more is to be gained.
        message: why it stopped.
    """

    u: Tensor
    cost: float
    converged: bool
    message: str


def levenberg_marquardt(objective: Objective, start: Tensor, steps: int, listener: Listener) -> Optimum:
    """Follow the linearised residuals inside a trust region: few evaluations, one Jacobian an accepted step.

    Args:
        objective: what is minimised.
        start: where, ``(p,)``.
        steps: evaluations of the residuals at most.
        listener: told after every accepted step.

    Source:
        J. J. Moré, in Numerical Analysis, Lecture Notes in Mathematics 630 (1978), doi:10.1007/BFb0067700;
        SciPy's ``least_squares``.
    """
    from scipy.optimize import least_squares

    def residuals(u: np.ndarray) -> np.ndarray:
        # Only their length matters to the trust region: it lies along the first vector of the basis of `slope`.
        return np.concatenate([[_length(objective, torch.as_tensor(u), first)], np.zeros(len(u))])

    def slope(u: np.ndarray, *_: Any) -> np.ndarray:
        found = objective.linearised(torch.as_tensor(u))
        listener(torch.as_tensor(u).clone(), found.cost)
        here = torch.as_tensor(u).clone()
        if _to_be_gained(found) < _NEGLIGIBLE:
            raise _ArrivedError(here, found.cost, f"less than {_NEGLIGIBLE:g} is left to be gained")
        # Images of macroparticles have kinks, between which a slope promises what no step can keep.
        if 0.0 <= costs[-1] - found.cost < _NEGLIGIBLE:
            raise _ArrivedError(here, found.cost, f"a step gained less than {_NEGLIGIBLE:g}")
        costs.append(found.cost)
        return found.slope.numpy()

    first, costs = start.numpy().copy(), [math.inf]
    try:
        found = least_squares(
            residuals,
            first,
            jac=slope,
            method="trf",
            x_scale=_REACH,
            xtol=1e-6,
            ftol=1e-9,
            gtol=1e-6,
            max_nfev=max(steps, 1),
        )
    except _ArrivedError as arrived:
        u, cost, message = arrived.args
        return Optimum(u, cost, converged=True, message=message)
    return Optimum(torch.as_tensor(found.x), float(found.cost), found.status > 0, str(found.message))


class _ArrivedError(Exception):
    """Leaves SciPy's loop at a point from which no step is worth its runs."""


def _to_be_gained(found: Linearised) -> float:
    """Return what a full step would lower the cost by: half the squared distance to the best fit, in its errors."""
    slope = found.slope
    along = math.sqrt(2.0 * found.cost) * slope[0]
    return 0.5 * float(along @ torch.linalg.lstsq(slope.mT @ slope, along.unsqueeze(-1)).solution.squeeze(-1))


def _length(objective: Objective, u: Tensor, first: np.ndarray) -> float:
    """Return the length of the residuals; infinite, which shortens the step, where the model cannot run."""
    try:
        return math.sqrt(2.0 * objective.cost(u))
    except (CalibrationError, SimulatorError, ValidationError):
        if np.array_equal(u.numpy(), first):
            raise
        return math.inf


def lbfgs(objective: Objective, start: Tensor, steps: int, listener: Listener) -> Optimum:
    """Follow the gradient with a memory of curvature: one backward a step.

    Args:
        objective, start, steps, listener: see ``levenberg_marquardt``.

    Source:
        R. H. Byrd et al., SIAM J. Sci. Comput. 16, 1190 (1995), doi:10.1137/0916069; SciPy's ``minimize``.
    """
    from scipy.optimize import minimize

    def cost(u: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope = objective.gradient(torch.as_tensor(u))
        return value, slope.numpy()

    def told(intermediate_result: Any) -> None:
        listener(torch.as_tensor(intermediate_result.x).clone(), float(intermediate_result.fun))

    found = minimize(
        cost,
        start.numpy().copy(),
        jac=True,
        method="L-BFGS-B",
        callback=told,
        options={"maxiter": steps, "ftol": 1e-10, "gtol": 1e-5},
    )
    return Optimum(torch.as_tensor(found.x), float(found.fun), bool(found.success), str(found.message))


def adam(objective: Objective, start: Tensor, steps: int, listener: Listener, rate: float = 0.1) -> Optimum:
    """Take many small steps along a smoothed gradient, shorter and shorter ones; the best point counts.

    Args:
        objective, start, steps, listener: see ``levenberg_marquardt``.
        rate: of the first steps, in standard deviations of the priors.

    Source:
        D. P. Kingma and J. Ba, ICLR (2015), arXiv:1412.6980.
    """
    u = start.clone().requires_grad_()
    optimiser = torch.optim.Adam([u], lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(steps, 1))
    best, least, slope = start.clone(), math.inf, torch.full_like(start, math.inf)
    for _ in range(steps):
        cost, slope = objective.gradient(u.detach())
        if cost < least:
            best, least = u.detach().clone(), cost
        listener(u.detach().clone(), cost)
        u.grad = slope
        optimiser.step()
        schedule.step()
    flat = float(slope.abs().max()) < 1e-2
    return Optimum(best, least, flat, "the gradient vanishes" if flat else f"{steps} steps were taken")


METHODS: dict[str, Callable[[Objective, Tensor, int, Listener], Optimum]] = {
    "levenberg-marquardt": levenberg_marquardt,
    "lbfgs": lbfgs,
    "adam": adam,
}
STEPS = {"levenberg-marquardt": 50, "lbfgs": 200, "adam": 500}
