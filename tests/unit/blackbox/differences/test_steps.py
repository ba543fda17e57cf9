"""Difference formulas, and the steps that a calibration chooses for them."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from lume_diff.blackbox.differences.stencil import STENCILS, exact_step, fitted, one_sided
from lume_diff.blackbox.differences.steps import StepCalibration, step_classes
from lume_diff.errors import GradientError, ValidationError

Array = np.ndarray


def known(noise: float, bend: float = 2.0) -> StepCalibration:
    """Return a calibration of one output whose derivatives are all the same."""
    array = np.array([bend])
    return StepCalibration(np.array([noise]), array, np.array([1.0]), 12, array, array, array, array)


# -- formulas ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", [name for name in STENCILS if name != "mixed"])
def test_stencil_has_the_order_and_the_truncation_error_that_it_claims(scheme: str) -> None:
    stencil, h = STENCILS[scheme], 0.5
    top = stencil.power + stencil.order
    for degree in range(top + 1):
        values = (np.array(stencil.offsets) * h) ** degree
        got = np.array(stencil.weights) @ values / h**stencil.power
        exact = math.factorial(degree) if degree == stencil.power else 0.0
        expected = stencil.coefficient * math.factorial(degree) * h**stencil.order if degree == top else 0.0
        assert abs(got - exact) == pytest.approx(expected, abs=1e-12)


def test_central_and_forward_steps_are_those_of_more_and_wild() -> None:
    calibration = known(1e-8)
    assert calibration.steps(1.0) == pytest.approx((3e-8 / 2.0) ** (1 / 3))
    assert calibration.steps(1.0, scheme="forward") == pytest.approx(8**0.25 * math.sqrt(1e-8 / 2.0))


@pytest.mark.parametrize("scheme", STENCILS)
def test_step_minimises_the_mean_square_of_truncation_and_noise(scheme: str) -> None:
    stencil, calibration = STENCILS[scheme], known(1e-8)
    steps = np.geomspace(1e-5, 1.0, 20001)
    square = (stencil.coefficient * 2.0 * steps**stencil.order) ** 2 + (
        stencil.noise * 1e-8 / steps**stencil.power
    ) ** 2
    assert calibration.steps(10.0, scheme=scheme) == pytest.approx(steps[square.argmin()], rel=2e-3)


def test_error_of_a_central_difference_is_three_deviations_of_noise_and_the_whole_truncation() -> None:
    expected = 3 * 1e-8 / (math.sqrt(2) * 1e-3) + 2.0 * 1e-6 / 6
    assert known(1e-8).error(1e-3) == pytest.approx(expected)
    assert known(1e-8).error(-1e-3) == pytest.approx(expected)


def test_unmeasured_derivatives_are_those_of_a_sine() -> None:
    length = 0.1
    calibration = StepCalibration(np.array([1e-8]), np.array([5.0 / length**3]), np.array([5.0]), 12)
    assert [calibration.bend(order)[0] * length**order for order in range(1, 6)] == pytest.approx([5.0] * 5)


def test_step_stays_within_scale_and_room() -> None:
    calibration = known(1e-8, bend=1e-12)
    assert calibration.steps(0.5) == pytest.approx(0.5)
    assert calibration.steps(0.5, room=0.1) == pytest.approx(0.1)
    assert calibration.steps(0.5, room=0.1, scheme="fourth") == pytest.approx(0.05)


def test_unknown_scheme_is_refused() -> None:
    with pytest.raises(ValidationError, match="'backward' is not known; expected one of 'forward', 'central'"):
        known(1e-8).steps(1.0, scheme="backward")


# -- plans ---------------------------------------------------------------------------------------------------


def test_central_difference_shrinks_a_little_near_a_bound_and_gives_way_close_to_it() -> None:
    calibration = known(1e-8)
    best = calibration.steps(1.0)[0]
    (free,) = calibration.plan(1.0)
    (shrunk,) = calibration.plan(1.0, (0.7 * best, math.inf))
    (above,) = calibration.plan(1.0, (0.1 * best, math.inf))
    (below,) = calibration.plan(1.0, (math.inf, 0.1 * best))
    assert (free.scheme, shrunk.scheme, above.scheme, below.scheme) == ("central", "central", "one_sided", "one_sided")
    assert shrunk.step == pytest.approx(0.7 * best)
    assert below.step == pytest.approx(-above.step)
    assert free.error[0] < shrunk.error[0] < above.error[0]


def test_forward_difference_looks_to_where_there_is_room() -> None:
    (part,) = known(1e-8).plan(1.0, (math.inf, 0.0), "forward")
    assert part.scheme == "forward"
    assert part.step < 0


def test_no_room_on_either_side_is_an_error() -> None:
    with pytest.raises(GradientError, match="no room for a difference"):
        known(1e-8).plan(1.0, (0.0, 0.0))


def test_steps_are_exact_differences_near_the_point() -> None:
    (part,) = known(1e-8).plan(1.0, point=1234.5)
    assert (1234.5 + part.step) - 1234.5 == part.step
    assert (1234.5 - part.step) - 1234.5 == -part.step


def test_outputs_within_a_factor_3_share_a_step() -> None:
    classes = step_classes(np.array([1e-3, 2e-5, 1e-5, 2.9e-3, 1.0]))
    assert [outputs.tolist() for _, outputs in classes] == [[1, 2], [0, 3], [4]]
    for step, outputs in classes:
        own = np.array([1e-3, 2e-5, 1e-5, 2.9e-3, 1.0])[outputs]
        assert own.min() <= step * (1 + 1e-12)
        assert step <= own.max() * (1 + 1e-12)


def test_an_output_without_a_signal_spoils_no_other_step() -> None:
    """An orbit that stays at zero within round-off wants a step as long as the machine allows."""
    best = np.array([2.6e-6, 8.2e-6, 2.8e-4, 3.8e-2, 50.0])
    for step, members in step_classes(best):
        assert np.all(np.maximum(step / best[members], best[members] / step) < 3.2)


def test_many_different_steps_make_no_more_classes_than_allowed() -> None:
    steps = np.geomspace(1e-8, 1.0, 1000)
    classes = step_classes(steps, most=3)
    assert len(classes) == 3
    assert np.array_equal(np.sort(np.concatenate([outputs for _, outputs in classes])), np.arange(1000))
    assert all(steps[outputs].max() / steps[outputs].min() < 2000 for _, outputs in classes)


def test_a_side_where_runs_failed_moves_with_the_point() -> None:
    """Runs failed above 0.1 when the input stood at 0: at -1 that is far away, at 0.1 it is at hand."""
    calibration = dataclasses.replace(known(1e-8), room=(math.inf, 0.1), place=0.0)
    assert [calibration.plan(1.0, point=point)[0].scheme for point in (-1.0, 0.1)] == ["central", "one_sided"]
    assert calibration.plan(1.0, point=0.1)[0].step < 0


def test_a_part_of_the_outputs_is_planned_as_if_alone() -> None:
    ones = np.ones(2)
    both = StepCalibration(np.array([1e-16, 1e-6]), ones, ones, 12, ones, ones)
    fine, coarse = both.plan(1.0)
    (alone,) = both.only(np.array([1])).plan(1.0)
    assert alone.step == coarse.step > fine.step
    assert alone.error == coarse.error


# -- steps that are given --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scheme", "room", "expected"),
    [
        pytest.param("central", (1.0, 1.0), ("central", 0.3), id="free"),
        pytest.param("central", (0.2, 1.0), ("central", 0.2), id="shrunk"),
        pytest.param("central", (0.05, 1.0), ("one_sided", 0.3), id="lower-bound"),
        pytest.param("central", (1.0, 0.0), ("one_sided", -0.3), id="upper-bound"),
        pytest.param("central", (0.0, 0.4), ("one_sided", 0.2), id="little-room"),
        pytest.param("fourth", (0.5, 1.0), ("fourth", 0.25), id="fourth-shrunk"),
        pytest.param("fourth", (0.1, 1.0), ("one_sided", 0.3), id="fourth-lower-bound"),
        pytest.param("forward", (0.0, 1.0), ("forward", 0.3), id="forward"),
        pytest.param("forward", (1.0, 0.1), ("forward", -0.3), id="forward-upper-bound"),
    ],
)
def test_a_given_step_is_fitted_between_the_bounds(
    scheme: str, room: tuple[float, float], expected: tuple[str, float]
) -> None:
    name, step = fitted(scheme, 0.3, room)
    assert (name, step) == (expected[0], pytest.approx(expected[1]))


def test_a_given_step_without_room_is_an_error() -> None:
    with pytest.raises(GradientError, match="no room"):
        fitted("central", 0.3, (0.0, 0.0))


def test_the_other_side_can_be_asked_for() -> None:
    assert one_sided(0.3, (1.0, 2.0)) == ("one_sided", 0.3)
    assert one_sided(0.3, (1.0, 2.0), other=True) == ("one_sided", -0.3)


def test_a_given_step_below_the_digits_of_the_point_is_an_error() -> None:
    with pytest.raises(GradientError, match="does not change an input of 1e"):
        exact_step(1e6, 1e-12)
