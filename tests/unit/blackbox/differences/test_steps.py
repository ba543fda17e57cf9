"""Noise, curvature and steps: formulas, the odd cases, and whether the error estimates are honest."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest

from lume_diff.blackbox.differences.noise import calibrate, noise_of
from lume_diff.blackbox.differences.steps import STENCILS, Calibration, mixed_error, step_classes
from lume_diff.errors import GradientError, ValidationError

Array = np.ndarray
POINT = 0.3
UNEVEN = np.array([0.0, 1.13, 1.87, 3.21, 3.94, 5.08, 6.17, 7.0])


class Recorder:
    """A function of one number as a probe around a point, which keeps the offsets that it was asked for."""

    def __init__(self, function: Callable[[float], list[float]], point: float = POINT) -> None:
        self.function, self.point = function, point
        self.offsets: list[float] = []

    def __call__(self, offsets: Array) -> Array:
        self.offsets += offsets.tolist()
        return np.array([self.function(self.point + offset) for offset in offsets], dtype=float)


def differentiate(
    calibration: Calibration,
    probe: Callable[[Array], Array],
    scale: float,
    room: tuple[float, float] = (math.inf, math.inf),
    scheme: str = "central",
    point: float = POINT,
) -> tuple[Array, Array]:
    """Return derivatives and their estimated errors as the plan has them."""
    found, error = np.full((2, len(calibration.noise)), np.nan)
    for part in calibration.plan(scale, room, scheme, point=point):
        stencil = STENCILS[part.scheme]
        values = probe(part.step * np.array(stencil.offsets))
        slope = np.array(stencil.weights) @ values / part.step**stencil.power
        found[part.outputs], error[part.outputs] = slope[part.outputs], part.error
    return found, error


def known(noise: float, bend: float = 2.0) -> Calibration:
    """Return a calibration of one output whose derivatives are all the same."""
    array = np.array([bend])
    return Calibration(np.array([noise]), array, np.array([1.0]), 12, array, array, array, array)


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
    calibration = Calibration(np.array([1e-8]), np.array([5.0 / length**3]), np.array([5.0]), 12)
    assert [calibration.bend(order)[0] * length**order for order in range(1, 6)] == pytest.approx([5.0] * 5)


def test_step_stays_within_scale_and_room() -> None:
    calibration = known(1e-8, bend=1e-12)
    assert calibration.steps(0.5) == pytest.approx(0.5)
    assert calibration.steps(0.5, room=0.1) == pytest.approx(0.1)
    assert calibration.steps(0.5, room=0.1, scheme="fourth") == pytest.approx(0.05)


def test_unknown_scheme_is_refused() -> None:
    with pytest.raises(ValidationError, match="'backward' is not known; expected one of 'forward', 'central'"):
        known(1e-8).steps(1.0, scheme="backward")


# -- noise ---------------------------------------------------------------------------------------------------


def published_ecnoise(values: list[float]) -> float:
    """Return the noise level by the algorithm as published, step by step on an even grid; NaN if it finds none."""
    count, table = len(values), list(values)
    levels, changes, gamma = [], [], 1.0
    for order in range(1, count):
        table = [b - a for a, b in itertools.pairwise(table)]
        gamma *= 0.5 * order / (2 * order - 1)
        levels.append(math.sqrt(gamma * sum(d * d for d in table) / len(table)))
        changes.append(min(table) < 0 < max(table))
    for order in range(count - 3):
        if max(levels[order : order + 3]) <= 4 * min(levels[order : order + 3]) and changes[order]:
            return levels[order]
    return math.nan


def test_noise_on_an_even_grid_is_that_of_the_published_algorithm() -> None:
    random = np.random.default_rng(11)
    values = 10.0 + np.outer(np.arange(8.0), random.normal(size=200)) * 1e-3 + 1e-4 * random.normal(size=(8, 200))
    np.testing.assert_allclose(noise_of(values), [published_ecnoise(column) for column in values.T.tolist()], rtol=1e-6)


@pytest.mark.parametrize("points", [None, UNEVEN], ids=["even", "uneven"])
@pytest.mark.parametrize("level", [1e-12, 1e-7, 1e-4])
@pytest.mark.parametrize("kind", ["normal", "uniform"])
def test_noise_is_within_a_factor_4_in_95_percent(kind: str, level: float, points: Array | None) -> None:
    random = np.random.default_rng(2)
    x = 1e-6 * (np.arange(8.0) if points is None else points)[:, None]
    smooth = np.sin(random.uniform(0.3, 1.2, 2000) + x)
    noise = random.normal(size=smooth.shape) if kind == "normal" else random.uniform(-1, 1, smooth.shape) * math.sqrt(3)
    ratio = noise_of(smooth + level * noise, points) / level
    assert np.mean((ratio > 0.25) & (ratio < 4)) >= 0.95


def test_noise_of_rounded_numbers_is_seen_on_uneven_points() -> None:
    """On an even grid their rounding errors often lie on a line, and one in ten seems to have no noise."""
    random = np.random.default_rng(3)
    slope, start = 10 ** random.uniform(0, 3, 4000), random.uniform(1e5, 2e5, 4000)
    ratio, even = (
        noise_of(np.round(start + np.outer(points, slope)), points) * math.sqrt(12)
        for points in (UNEVEN, np.arange(8.0))
    )
    assert np.mean((ratio > 0.25) & (ratio < 4)) >= 0.98
    assert np.mean(even < 0.25) > 0.05


@pytest.mark.parametrize(
    "values",
    [np.zeros(8), np.repeat([1.0, 1.1], 4), np.exp(np.arange(8.0)), np.exp(1e-2 * np.arange(8.0))],
    ids=["constant", "repeating", "moving too much", "smooth"],
)
def test_no_noise_is_reported_where_none_shows(values: Array) -> None:
    assert np.isnan(noise_of(values[:, None])).all()


# -- calibration: the usual ----------------------------------------------------------------------------------


def test_a_smooth_function_takes_12_runs() -> None:
    probe = Recorder(lambda x: [math.sin(x), math.exp(x)])
    calibration = calibrate(probe, 1.0)
    assert calibration.runs == len(probe.offsets) == 12
    np.testing.assert_allclose(calibration.size, [math.sin(POINT), math.exp(POINT)])
    np.testing.assert_allclose(calibration.third, [math.cos(POINT), math.exp(POINT)], rtol=1e-3)
    assert np.all((calibration.noise > 1e-17) & (calibration.noise < 1e-15))
    slope, error = differentiate(calibration, probe, 1.0)
    assert np.all(np.abs(slope - [math.cos(POINT), math.exp(POINT)]) <= error)
    assert error.max() < 1e-10


def test_outputs_of_different_noise_take_16_runs_and_two_steps() -> None:
    random = np.random.default_rng(4)
    probe = Recorder(lambda x: [math.sin(x), math.exp(x) + 1e-4 * random.normal()])
    calibration = calibrate(probe, 1.0)
    assert calibration.runs == 16
    fine, coarse = calibration.plan(1.0)
    assert fine.outputs.tolist() == [0]
    assert fine.step < 1e-4 < 1e-2 < coarse.step
    np.testing.assert_allclose(calibration.third, [math.cos(POINT), math.exp(POINT)], rtol=0.5)


def test_derivatives_of_all_orders_are_seen_through_small_noise() -> None:
    calibration = calibrate(Recorder(lambda x: [math.exp(2 * x)]), 0.5)
    for order in range(1, 5):
        assert calibration.bend(order)[0] == pytest.approx(2**order * math.exp(2 * POINT), rel=0.05)
    assert calibration.bend(5)[0] == pytest.approx(2**5 * math.exp(2 * POINT), rel=2.0)


@pytest.mark.parametrize("scheme", ["forward", "central", "fourth", "second"])
def test_every_scheme_keeps_its_word(scheme: str) -> None:
    """In 93 % of the cases, as the noise is known from eight numbers only."""
    random = np.random.default_rng(5)
    probe = Recorder(lambda x: [2.0 + math.sin(x) + 1e-8 * random.normal()])
    truth = -math.sin(POINT) if scheme == "second" else math.cos(POINT)
    found, error = (
        np.array([differentiate(calibrate(probe, 1.0), probe, 1.0, scheme=scheme) for _ in range(100)])
        .squeeze(axis=-1)
        .T
    )
    limits = {"forward": 1e-3, "central": 1e-4, "fourth": 1e-5, "second": 1e-2}
    assert np.mean(np.abs(found - truth) <= error) >= 0.93
    assert np.median(error) < limits[scheme]


def test_a_mixed_derivative_keeps_its_word() -> None:
    random = np.random.default_rng(6)

    def function(x: float, y: float) -> float:
        return math.sin(x + 0.3) * math.exp(0.7 * y) + 1e-9 * random.normal()

    a = calibrate(lambda offsets: np.array([[function(o, 0.2)] for o in offsets]), 1.0)
    b = calibrate(lambda offsets: np.array([[function(0.0, 0.2 + o)] for o in offsets]), 1.0)
    (h,), (k,) = a.steps(1.0, scheme="mixed"), b.steps(1.0, scheme="mixed")
    corners = function(h, 0.2 + k) + function(-h, 0.2 - k) + 2 * function(0, 0.2)
    sides = function(h, 0.2) + function(-h, 0.2) + function(0, 0.2 + k) + function(0, 0.2 - k)
    found = np.array([(corners - sides) / (2 * h * k)])
    error = mixed_error(a, b, h, k, found)
    assert abs(found[0] - 0.7 * math.cos(0.3) * math.exp(0.14)) <= error[0] < 1e-2


def test_thousands_of_outputs_share_12_runs() -> None:
    random = np.random.default_rng(7)
    rate, phase = random.uniform(0.5, 2.0, 5000), random.uniform(0, 2 * np.pi, 5000)

    def probe(offsets: Array) -> Array:
        return 3.0 + np.sin(np.outer(offsets, rate) + phase) + 1e-9 * random.normal(size=(len(offsets), 5000))

    calibration = calibrate(probe, 1.0)
    assert calibration.runs == 12
    slope, error = differentiate(calibration, probe, 1.0, point=0.0)
    assert np.mean(np.abs(slope - rate * np.cos(phase)) <= error) >= 0.93
    assert np.median(error) < 1e-5


# -- calibration: the odd cases ------------------------------------------------------------------------------


def test_constant_outputs_have_neither_noise_nor_error_and_no_step_of_their_own() -> None:
    probe = Recorder(lambda x: [3.0, 0.0, math.sin(x)])
    calibration = calibrate(probe, 1.0)
    assert calibration.runs == 12
    assert calibration.noise[:2].tolist() == calibration.third[:2].tolist() == [0.0, 0.0]
    assert len(calibration.plan(1.0)) == 1
    slope, error = differentiate(calibration, probe, 1.0)
    assert slope[:2].tolist() == error[:2].tolist() == [0.0, 0.0]


def test_nothing_but_constants_is_no_trouble() -> None:
    probe = Recorder(lambda x: [3.0, 0.0])
    slope, error = differentiate(calibrate(probe, 1.0), probe, 1.0)
    assert slope.tolist() == error.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("noise", [1e-7, 1e-4])
def test_linear_function_gets_a_step_of_the_order_of_the_scale(noise: float) -> None:
    random = np.random.default_rng(8)
    probe = Recorder(lambda x: [1.0 + 2.0 * x + noise * random.normal()])
    calibration = calibrate(probe, 0.5)
    assert calibration.runs == 16
    assert 0.1 < calibration.steps(0.5)[0] <= 0.5
    slope, error = differentiate(calibration, probe, 0.5)
    assert abs(slope[0] - 2.0) <= error[0] < 30 * noise


def test_exactly_linear_function_is_differentiated_to_the_last_digits() -> None:
    probe = Recorder(lambda x: [1.0 + 2.0 * x])
    calibration = calibrate(probe, 1.0)
    slope, error = differentiate(calibration, probe, 1.0)
    assert abs(slope[0] - 2.0) <= error[0] < 1e-11


@pytest.mark.parametrize(
    "function, truth",
    [(lambda x: x, 1.0), (math.sin, 1.0), (lambda x: x * x, 0.0), (lambda x: 1 + x * x, 0.0), (lambda x: x**3, 0.0)],
    ids=["x", "sin x", "x^2", "1 + x^2", "x^3"],
)
def test_outputs_and_slopes_of_size_zero(function: Callable[[float], float], truth: float) -> None:
    probe = Recorder(lambda x: [function(x)], point=0.0)
    slope, error = differentiate(calibrate(probe, 1.0), probe, 1.0, point=0.0)
    assert abs(slope[0] - truth) <= error[0] < 1e-12


def test_zero_with_noise_does_not_disturb_other_outputs() -> None:
    random = np.random.default_rng(9)
    probe = Recorder(lambda x: [1e-16 * random.normal(), math.sin(x)])
    slope, error = differentiate(calibrate(probe, 1.0), probe, 1.0)
    assert np.all(np.abs(slope - [0.0, math.cos(POINT)]) <= error)
    assert error[0] < 1e-13
    assert error[1] < 1e-10


@pytest.mark.parametrize(
    "limit, side",
    [(0.0, 1), (0.0, -1), (1e-4, 1), (1e-4, -1), (1e-4, 0)],
    ids=["at once above", "at once below", "soon above", "soon below", "soon on both sides"],
)
def test_runs_that_fail_are_left_out(limit: float, side: int) -> None:
    def function(x: float) -> list[float]:
        beyond = abs(x - POINT) > limit if side == 0 else side * (x - POINT) > limit
        return [math.nan] if beyond else [math.sin(x)]

    probe = Recorder(function)
    calibration = calibrate(probe, 1.0)
    assert calibration.runs == len(probe.offsets) <= 24
    slope, error = differentiate(calibration, probe, 1.0)
    assert abs(slope[0] - math.cos(POINT)) <= error[0] < 1e-9


@pytest.mark.parametrize("side", [1, -1], ids=["above", "below"])
def test_side_on_which_all_fails_is_kept_out_of_the_plan(side: int) -> None:
    calibration = calibrate(Recorder(lambda x: [math.sin(x) if side * (x - POINT) <= 0 else math.nan]), 1.0)
    (part,) = calibration.plan(1.0, point=POINT)
    assert part.scheme == "one_sided"
    assert part.step * side < 0


def test_one_failed_run_changes_little() -> None:
    failing = itertools.count()
    probe = Recorder(lambda x: [math.nan if next(failing) in (3, 9) else math.sin(x)])
    calibration = calibrate(probe, 1.0)
    assert calibration.runs == 12
    assert calibration.third[0] == pytest.approx(math.cos(POINT), rel=0.05)


def test_output_that_is_no_number_has_an_infinite_error_and_leaves_others_alone() -> None:
    probe = Recorder(lambda x: [math.nan, math.sin(x), math.nan if x > POINT + 1e-7 else 1.0])
    calibration = calibrate(probe, 1.0)
    assert calibration.runs == 12
    assert np.isnan(calibration.noise).tolist() == [True, False, True]
    (part,) = calibration.plan(1.0)
    assert np.isinf(part.error).tolist() == [True, False, True]
    assert part.error[1] < 1e-10


def test_failure_at_the_point_itself_is_an_error() -> None:
    with pytest.raises(GradientError, match="the run at the point itself failed"):
        calibrate(Recorder(lambda x: [math.nan]), 1.0)


def test_failure_all_around_the_point_is_an_error() -> None:
    with pytest.raises(GradientError, match="failed, on both sides; move the point"):
        calibrate(Recorder(lambda x: [1.0 if x == POINT else math.nan]), 1.0)


@pytest.mark.parametrize("room", [(0.0, math.inf), (math.inf, 0.0), (1e-3, 1.0), (1e-3, 1e-3), (0.0, 1e-9)])
def test_bounds_are_kept(room: tuple[float, float]) -> None:
    probe = Recorder(lambda x: [math.sin(x)])
    calibration = calibrate(probe, 1.0, room)
    slope, error = differentiate(calibration, probe, 1.0, room)
    assert min(probe.offsets) >= -room[0] * (1 + 1e-9)
    assert max(probe.offsets) <= room[1] * (1 + 1e-9)
    assert abs(slope[0] - math.cos(POINT)) <= error[0]
    assert error[0] < (1e-9 if room[1] > 1e-6 else 1e-6)


def test_no_room_at_all_is_an_error() -> None:
    with pytest.raises(GradientError, match="no room for a difference"):
        calibrate(Recorder(lambda x: [x]), 1.0, (0.0, 0.0))
    with pytest.raises(GradientError, match="no room for a difference"):
        known(1e-8).plan(1.0, (0.0, 0.0))


@pytest.mark.parametrize("scale", [0.0, -1.0, math.inf, math.nan])
def test_scale_must_be_positive_and_finite(scale: float) -> None:
    with pytest.raises(ValidationError, match="expected a positive finite number"):
        calibrate(Recorder(lambda x: [x]), scale)


@pytest.mark.parametrize("wrong", [1e-6, 1e-3, 1e3, 1e6])
def test_a_scale_that_is_far_off_costs_runs_but_not_honesty(wrong: float) -> None:
    probe = Recorder(lambda x: [math.sin(x)])
    calibration = calibrate(probe, wrong)
    assert calibration.runs <= 24
    slope, error = differentiate(calibration, probe, wrong)
    assert abs(slope[0] - math.cos(POINT)) <= error[0] < 1e-8


@pytest.mark.parametrize("unit", [1e-18, 1e-9, 1e9, 1e18])
@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_units_do_not_matter(unit: float, size: float) -> None:
    probe = Recorder(lambda x: [size * math.sin(x / unit)], point=POINT * unit)
    calibration = calibrate(probe, unit)
    assert calibration.runs == 12
    slope, error = differentiate(calibration, probe, unit, point=POINT * unit)
    assert abs(slope[0] - size / unit * math.cos(POINT)) <= error[0] < 1e-9 * size / unit


def test_scale_below_the_digits_of_the_point_is_an_error() -> None:
    probe = Recorder(lambda x: [math.sin(x)], point=1e6)
    with pytest.raises(GradientError, match="does not change an input of 1e"):
        differentiate(calibrate(probe, 1e-12), probe, 1e-12, point=1e6)


@pytest.mark.parametrize("digit", [1e-5, 1e-8, 1e-11])
def test_rounded_outputs(digit: float) -> None:
    probe = Recorder(lambda x: [round(math.sin(x) / digit) * digit])
    calibration = calibrate(probe, 1.0)
    assert calibration.noise[0] == pytest.approx(digit / math.sqrt(12), rel=3.0)
    slope, error = differentiate(calibration, probe, 1.0)
    assert abs(slope[0] - math.cos(POINT)) <= error[0] < 30 * digit ** (2 / 3)


def test_rounded_output_that_stands_still_nearby_is_not_taken_for_a_constant() -> None:
    probe = Recorder(lambda x: [round((1 + 1e-5 * math.sin(x)) / 1e-8) * 1e-8])
    slope, error = differentiate(calibrate(probe, 1.0), probe, 1.0)
    assert abs(slope[0] - 1e-5 * math.cos(POINT)) <= error[0]


@pytest.mark.parametrize("cell", [1e-5, 1e-4, 1e-3, 1e-2])
@pytest.mark.parametrize("kind", ["kinks", "jumps"])
def test_small_cell_crossings_count_as_noise(kind: str, cell: float) -> None:
    """What particles do that cross the cells of a mesh: the derivative wanted is that of the smooth part."""

    def crossing(x: float) -> float:
        if kind == "kinks":
            return 2 * abs(x / cell % 1 - 0.5)
        return math.floor(x / cell) * 2654435761 % 1000 / 1000

    probe = Recorder(lambda x: [math.sin(x) + 1e-7 * crossing(x)])
    slope, error = differentiate(calibrate(probe, 1.0), probe, 1.0)
    assert abs(slope[0] - math.cos(POINT)) <= 3 * error[0]
    assert error[0] < 1e-3


def test_jump_further_off_than_the_step_does_no_harm() -> None:
    probe = Recorder(lambda x: [math.sin(x) + 1e-3 * (x > POINT + 1e-4)])
    slope, error = differentiate(calibrate(probe, 1.0), probe, 1.0)
    assert abs(slope[0] - math.cos(POINT)) <= error[0] < 1e-9


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


def test_steps_are_exact_differences_near_the_point() -> None:
    (part,) = known(1e-8).plan(1.0, point=1234.5)
    assert (1234.5 + part.step) - 1234.5 == part.step
    assert (1234.5 - part.step) - 1234.5 == -part.step


def test_a_tolerance_saves_steps_where_one_is_good_enough() -> None:
    ones = np.ones(2)
    calibration = Calibration(np.full(2, 1e-16), np.array([1.0, 1e-9]), ones, 12, ones, ones)
    assert len(calibration.plan(1.0)) == 2
    (part,) = calibration.plan(1.0, tolerance=1e-6)
    assert part.outputs.tolist() == [0, 1]
    assert np.all(part.error <= 1e-6)


def test_outputs_within_a_factor_3_share_a_step() -> None:
    classes = step_classes(np.array([1e-3, 2e-5, 1e-5, 2.9e-3, 1.0]))
    assert [outputs.tolist() for _, outputs in classes] == [[1, 2], [0, 3], [4]]
    for step, outputs in classes:
        own = np.array([1e-3, 2e-5, 1e-5, 2.9e-3, 1.0])[outputs]
        assert own.min() <= step * (1 + 1e-12)
        assert step <= own.max() * (1 + 1e-12)


def test_many_different_steps_make_no_more_classes_than_allowed() -> None:
    steps = np.geomspace(1e-8, 1.0, 1000)
    classes = step_classes(steps, most=3)
    assert len(classes) == 3
    assert np.array_equal(np.sort(np.concatenate([outputs for _, outputs in classes])), np.arange(1000))
    assert all(steps[outputs].max() / steps[outputs].min() < 2000 for _, outputs in classes)


# -- statistics ----------------------------------------------------------------------------------------------

SHAPES: dict[str, Callable[[Array], Array]] = {
    "sin": np.sin,
    "exp": np.exp,
    "resonance": lambda z: 1 / (1 + z * z),
    "tanh": np.tanh,
    "log": lambda z: np.log(5.0 + z),
    "hyperbola": lambda z: np.sqrt(1 + z * z),
    "gauss": lambda z: np.exp(-z * z / 2),
    "cubic": lambda z: 1 + z + z**2 / 2 - z**3 / 3,
    "quotient": lambda z: np.cos(z) / (1.5 + np.sin(z)),
    "two waves": lambda z: 3 + np.sin(2 * z) + 0.3 * np.cos(5 * z),
}


@pytest.mark.parametrize("relative_noise", [1e-7, 1e-4])
def test_error_is_near_the_least_possible_and_the_estimate_is_honest(relative_noise: float) -> None:
    """100 functions of random place, length, size and scale; benchmarks/differences.py has many more and real codes."""
    random = np.random.default_rng(12)
    errors, estimates, least = np.empty((3, 100))
    for index in range(100):
        shape = list(SHAPES.values())[index % len(SHAPES)]
        place, length, size = random.uniform(-1.5, 1.5), 10 ** random.uniform(-2, 2), 10 ** random.uniform(-3, 3)
        scale = length * 10 ** random.uniform(-0.5, 0.5)
        noise = relative_noise * abs(size * float(shape(np.array(place))))

        def smooth(
            x: Array, shape: Callable = shape, place: float = place, length: float = length, size: float = size
        ) -> Array:
            return size * shape(place + x / length)

        def probe(offsets: Array, smooth: Callable = smooth, noise: float = noise) -> Array:
            return (smooth(offsets) + noise * random.normal(size=offsets.shape))[:, None]

        slope, estimate = differentiate(calibrate(probe, scale), probe, scale, point=0.0)
        truth = size / length * float(np.imag(shape(np.array(place + 1e-30j))) / 1e-30)
        steps = scale * np.geomspace(1e-6, 1.0, 400)
        bias = (smooth(steps) - smooth(-steps)) / (2 * steps) - truth
        least[index] = np.sqrt(bias**2 + (noise / steps) ** 2 / 2).min()
        errors[index], estimates[index] = abs(slope[0] - truth), estimate[0]
    assert np.mean(errors <= 3 * least) >= 0.95
    assert np.mean(estimates >= errors) >= 0.93
    assert np.mean(estimates <= 10 * errors) >= 0.75


# -- real codes ----------------------------------------------------------------------------------------------


def romberg(code: Callable[[float], Array], x: float, widest: float, levels: int = 7) -> Array:
    """Return the derivatives of a code itself, extrapolated from central differences whose step halves."""
    rows = [(code(x + h) - code(x - h)) / (2 * h) for h in widest / 2.0 ** np.arange(levels)]
    best, change = rows[0], np.full(rows[0].shape, np.inf)
    for order in range(1, levels):
        finer = [b + (b - a) / (4.0**order - 1) for a, b in itertools.pairwise(rows)]
        for old, new in zip(rows[1:], finer, strict=True):
            best, change = np.where(np.abs(new - old) < change, new, best), np.minimum(np.abs(new - old), change)
        rows = finer
    return best


def relative_errors(code: Callable[[float], Array], k1: float) -> tuple[Array, Array, int]:
    """Return true and estimated relative errors of all outputs, and the runs of the calibration."""
    probe = Recorder(lambda x: code(x).tolist(), point=k1)
    calibration = calibrate(probe, 0.3)
    slope, error = differentiate(calibration, probe, 0.3, point=k1)
    truth = np.median([romberg(code, k1, width) for width in (0.04, 0.05, 0.06)], axis=0)
    return np.abs(slope - truth) / np.abs(truth), error / np.abs(truth), calibration.runs


def test_pyat_beta_and_tune_to_1e_8() -> None:
    at = pytest.importorskip("at")
    knobs = [at.Quadrupole("QF", 0.15, 2.0), at.Quadrupole("QF", 0.15, 2.0)]
    cell = [knobs[0], at.Drift("D1", 1.0), at.Quadrupole("QD", 0.3, -2.0), at.Drift("D2", 1.0), knobs[1]]
    ring = at.Lattice(cell, energy=1e9, periodicity=1)

    def code(k1: float) -> Array:
        for knob in knobs:
            knob.PolynomB[1] = k1
        _, data, optics = ring.linopt6(refpts=[0, 2])
        return np.concatenate([optics.beta.ravel(), data.tune[:2]])

    for k1 in (1.8, 2.0, 2.3):
        errors, estimates, runs = relative_errors(code, k1)
        assert runs <= 16
        assert errors.max() <= 1e-8
        assert np.all(errors <= 3 * estimates)
        assert estimates.max() <= 1e-8


@pytest.mark.system
def test_madx_beta_to_1e_8_and_tune_to_3e_6() -> None:
    """The tune is read as it is printed, to 11 digits: on an even grid its noise may not show at all."""
    madx = pytest.importorskip("cpymad.madx").Madx(stdout=False)
    madx.input("""
        kf = 2;
        qf: quadrupole, l=0.15, k1:=kf; qd: quadrupole, l=0.3, k1=-2;
        cell: sequence, l=2.6, refer=entry; qf, at=0; m1: marker, at=1.15; qd, at=1.15; qf, at=2.45; endsequence;
        beam, particle=electron, energy=1; use, sequence=cell;
    """)

    def code(k1: float) -> Array:
        madx.globals["kf"] = k1
        twiss = madx.twiss()
        rows = [list(twiss.name).index(name) for name in ("cell$start:1", "m1:1")]
        return np.concatenate([twiss.betx[rows], twiss.bety[rows], [twiss.summary.q1, twiss.summary.q2]])

    for k1 in (1.8, 2.0, 2.3):
        errors, estimates, runs = relative_errors(code, k1)
        assert runs <= 16
        assert errors[:4].max() <= 1e-8
        assert errors[4:].max() <= 3e-6
        assert np.all(errors <= 3 * estimates)
    madx.exit()
