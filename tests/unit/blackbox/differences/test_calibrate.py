"""Noise and curvature along an input: the usual and the odd cases."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable

import numpy as np
import pytest

from lume_diff.blackbox.differences.noise import calibrate
from lume_diff.blackbox.differences.steps import StepCalibration, mixed_error
from lume_diff.errors import GradientError, ValidationError

Array = np.ndarray
POINT = 0.3


class Recorder:
    """A function of one number as a probe around a point, which keeps the offsets that it was asked for."""

    def __init__(self, function: Callable[[float], list[float]], point: float = POINT) -> None:
        self.function, self.point = function, point
        self.offsets: list[float] = []

    def __call__(self, offsets: Array) -> Array:
        self.offsets += offsets.tolist()
        return np.array([self.function(self.point + offset) for offset in offsets], dtype=float)


def differentiate(
    calibration: StepCalibration,
    probe: Callable[[Array], Array],
    scale: float,
    room: tuple[float, float] = (math.inf, math.inf),
    scheme: str = "central",
    point: float = POINT,
) -> tuple[Array, Array]:
    """Return derivatives and their estimated errors as the plan has them."""
    found, error = np.full((2, len(calibration.noise)), np.nan)
    for part in calibration.plan(scale, room, scheme, point=point):
        centre, *values = probe(np.array([0.0, *part.offsets]))
        slope = part.derivative(centre, values)
        found[part.outputs], error[part.outputs] = slope[part.outputs], part.error
    return found, error


# -- the usual -----------------------------------------------------------------------------------------------


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


# -- the odd cases -------------------------------------------------------------------------------------------


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


# -- kept for later --------------------------------------------------------------------------------------------


def test_what_was_measured_survives_json() -> None:
    probe = Recorder(lambda x: [math.sin(x), math.nan, 3.0] if x <= POINT else [math.nan] * 3)
    found = calibrate(probe, 1.0)
    again = StepCalibration.from_plain(json.loads(json.dumps(found.plain())))
    assert again.room == found.room
    assert again.runs == found.runs
    for name in ("noise", "size", "first", "second", "third", "fourth", "fifth"):
        np.testing.assert_array_equal(getattr(again, name), getattr(found, name))
