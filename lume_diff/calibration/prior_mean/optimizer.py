"""ParallelLBFGSOptimizer: Xopt's search of the acquisition function, every start on its own, within a time."""

from __future__ import annotations

import time
import warnings
from typing import Any

from botorch.exceptions.warnings import OptimizationWarning
from botorch.generation.gen import gen_candidates_scipy
from torch import Tensor
from xopt.numerical_optimizer import LBFGSOptimizer

#: What BoTorch's L-BFGS-B says of a start that was told to end.
_TOLD_TO_END = "CALLBACK REQUESTED HALT"


class ParallelLBFGSOptimizer(LBFGSOptimizer):
    """Improve all starts side by side, each as a problem of its own, and keep Xopt's limit of time.

    With a limit, which Xopt sets by default, BoTorch improves all starts as one large problem. A model as the mean
    then takes three times as many steps, however few the data. Here a start is done when it has converged, and one
    that has not when the time is up ends where it is. Constrained and discrete searches are left as they are.

    Xopt's YAML file calls it ``LBFGS`` and loads it as Xopt's own with the same numbers.

    Args:
        n_restarts: how many starts.
        max_iter: steps of each.
        max_time: of the whole search [s]; None for no limit.

    Source:
        Byrd, Lu, Nocedal and Zhu, SIAM J. Sci. Comput. 16 (1995) 1190; BoTorch's ``fmin_l_bfgs_b_batched``.

    Example:
        >>> ParallelLBFGSOptimizer(max_time=2.0).max_time
        2.0
    """

    def optimize(self, function: Any, bounds: Tensor, n_candidates: int = 1, **kwargs: Any) -> Tensor:
        """Return the best candidates.

        Args:
            function: acquisition function of ``(starts, n, d)``.
            bounds: lowest and highest values, ``(2, d)``, in the inputs' units.
            n_candidates: how many are proposed together, ``n``.
            **kwargs: for BoTorch's ``optimize_acqf``.

        Returns:
            ``(n, d)`` in the inputs' units.

        Gradient:
            none.
        """
        if kwargs.get("discrete_choices") is None:
            kwargs["gen_candidates"] = improved
        return super().optimize(function, bounds, n_candidates, **kwargs)


def improved(starts: Tensor, function: Any, timeout_sec: float | None = None, **options: Any) -> tuple[Tensor, Tensor]:
    """Return BoTorch's ``gen_candidates_scipy``, where a limit of time does not make one problem of all starts.

    Args:
        starts: ``(starts, n, d)``.
        function: of such tensors.
        timeout_sec: after which starts end where they are [s].
        **options: of ``gen_candidates_scipy``.

    Returns:
        Points like the starts, and values, ``(starts,)``.
    """
    is_constrained = any(value for name, value in options.items() if name.endswith("_constraints"))
    if timeout_sec is None or is_constrained:
        return gen_candidates_scipy(starts, function, timeout_sec=timeout_sec, **options)
    end = time.monotonic() + timeout_sec

    def stop_when_late(_: Any) -> None:
        if time.monotonic() > end:
            raise StopIteration

    options["options"] = {**(options.get("options") or {}), "callback": stop_when_late}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        result = gen_candidates_scipy(starts, function, **options)
    for warning in told:
        is_late = issubclass(warning.category, OptimizationWarning) and _TOLD_TO_END in str(warning.message)
        if not is_late:  # as a warning it would have the whole search made again
            warnings.warn(warning.message, warning.category, stacklevel=2)
    return result
