"""ParallelLBFGSOptimizer beside Xopt's own: what is found, how often is asked, and when the time is up."""

from __future__ import annotations

import time
import warnings

import pytest
import torch
from torch import Tensor

pytest.importorskip("xopt")

from botorch.generation.gen import gen_candidates_scipy
from xopt import VOCS, Evaluator, Xopt
from xopt.generators.bayesian import UpperConfidenceBoundGenerator
from xopt.numerical_optimizer import LBFGSOptimizer, NumericalOptimizer

from lume_diff.calibration import ParallelLBFGSOptimizer
from lume_diff.calibration.prior_mean.optimizer import improved

BOUNDS = torch.tensor([[-2.0, -2.0], [2.0, 2.0]], dtype=torch.float64)
#: Where Rosenbrock's function is least, and what starts from there and elsewhere see.
BEST = torch.ones(2, dtype=torch.float64)


class Valley(torch.nn.Module):
    """Rosenbrock's function, upside down; counts how often it is asked, and takes its time."""

    def __init__(self, seconds: float = 0.0) -> None:
        super().__init__()
        self.asked, self.seconds = 0, seconds

    def forward(self, x: Tensor) -> Tensor:
        self.asked += 1
        time.sleep(self.seconds)
        a, b = x[..., 0, :].unbind(-1)
        return -((1.0 - a) ** 2 + 100.0 * (b - a**2) ** 2)


def found(optimizer: NumericalOptimizer, function: torch.nn.Module, **options: object) -> Tensor:
    torch.manual_seed(3)
    return optimizer.optimize(function, BOUNDS, **options)


@pytest.mark.parametrize("max_time", [None, 60.0], ids=["no limit", "a limit"])
def test_the_optimum_is_found(max_time: float | None) -> None:
    optimizer = ParallelLBFGSOptimizer(max_time=max_time, n_restarts=8)
    assert torch.allclose(found(optimizer, Valley()), BEST, atol=1e-3)


def test_a_limit_that_is_not_reached_changes_nothing() -> None:
    with_limit = found(ParallelLBFGSOptimizer(max_time=60.0, n_restarts=8), Valley())
    assert torch.equal(with_limit, found(LBFGSOptimizer(max_time=None, n_restarts=8), Valley()))


def test_fewer_questions_than_as_one_problem() -> None:
    ours, xopts = Valley(), Valley()
    found(ParallelLBFGSOptimizer(max_time=60.0, n_restarts=8), ours)
    found(LBFGSOptimizer(max_time=60.0, n_restarts=8), xopts)
    assert ours.asked < 0.7 * xopts.asked


def test_the_limit_ends_the_search_with_the_best_so_far() -> None:
    patient, hurried = Valley(), Valley(seconds=0.02)
    found(ParallelLBFGSOptimizer(max_time=60.0, n_restarts=4), patient)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        point = found(ParallelLBFGSOptimizer(max_time=0.2, n_restarts=4), hurried)
    assert hurried.asked < 0.6 * patient.asked  # and no second try with other starts
    assert ((point >= BOUNDS[0]) & (point <= BOUNDS[1])).all()
    starts = torch.tensor([[[-1.5, 1.5]], [[1.5, -1.5]]], dtype=torch.float64)
    points, values = improved(starts, Valley(seconds=0.02), timeout_sec=0.1, lower_bounds=-2.0, upper_bounds=2.0)
    assert (values > Valley()(starts)).all()
    assert torch.allclose(values, Valley()(points))


def test_other_warnings_of_the_search_are_told() -> None:
    def broken(x: Tensor) -> Tensor:
        warnings.warn("a warning of the acquisition function", UserWarning, stacklevel=1)
        return -x.square().sum((-1, -2))

    starts = torch.full((2, 1, 2), 0.5, dtype=torch.float64)
    with pytest.warns(UserWarning, match="a warning of the acquisition function"):
        improved(starts, broken, timeout_sec=60.0, lower_bounds=-2.0, upper_bounds=2.0)


def test_constrained_searches_are_left_to_botorch() -> None:
    starts = torch.tensor([[[-1.0, 0.5]], [[0.5, 0.5]]], dtype=torch.float64)
    at_most = [(torch.tensor([0]), torch.tensor([-1.0], dtype=torch.float64), -0.5)]  # x0 <= 0.5
    options = {"lower_bounds": -2.0, "upper_bounds": 2.0, "inequality_constraints": at_most}
    ours, _ = improved(starts, Valley(), timeout_sec=60.0, **options)
    own, _ = gen_candidates_scipy(starts, Valley(), timeout_sec=60.0, **options)
    assert torch.equal(ours, own)
    assert (ours[..., 0] <= 0.5 + 1e-9).all()


def test_discrete_choices_are_searched_as_by_xopt() -> None:
    choices = torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]], dtype=torch.float64)
    assert torch.equal(found(ParallelLBFGSOptimizer(), Valley(), discrete_choices=choices), BEST.unsqueeze(0))


def test_fixed_features_are_kept() -> None:
    fixed = [{0: 0.5}, {0: 1.0}]
    point = found(ParallelLBFGSOptimizer(max_time=60.0, n_restarts=4), Valley(), fixed_features_list=fixed)
    assert torch.allclose(point, BEST, atol=1e-3)


def test_xopts_file_loads_as_xopts_own() -> None:
    vocs = VOCS(variables={"a": [-2.0, 2.0]}, objectives={"y": "MINIMIZE"})
    optimizer = ParallelLBFGSOptimizer(n_restarts=7, max_time=3.0)
    generator = UpperConfidenceBoundGenerator(vocs=vocs, numerical_optimizer=optimizer)
    text = Xopt(evaluator=Evaluator(function=found), generator=generator).yaml()
    loaded = Xopt.from_yaml(text).generator.numerical_optimizer
    assert type(loaded) is LBFGSOptimizer
    assert loaded.model_dump() == optimizer.model_dump()
