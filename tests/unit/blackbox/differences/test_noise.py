"""The noise level of outputs from their values on a line."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from lume_diff.blackbox.differences.noise import noise_table

Array = np.ndarray
UNEVEN = np.array([0.0, 1.13, 1.87, 3.21, 3.94, 5.08, 6.17, 7.0])


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
    found = noise_table(values, np.arange(8.0)).noise
    np.testing.assert_allclose(found, [published_ecnoise(column) for column in values.T.tolist()], rtol=1e-6)


@pytest.mark.parametrize("points", [np.arange(8.0), UNEVEN], ids=["even", "uneven"])
@pytest.mark.parametrize("level", [1e-12, 1e-7, 1e-4])
@pytest.mark.parametrize("kind", ["normal", "uniform"])
def test_noise_is_within_a_factor_4_in_95_percent(kind: str, level: float, points: Array) -> None:
    random = np.random.default_rng(2)
    x = 1e-6 * points[:, None]
    smooth = np.sin(random.uniform(0.3, 1.2, 2000) + x)
    noise = random.normal(size=smooth.shape) if kind == "normal" else random.uniform(-1, 1, smooth.shape) * math.sqrt(3)
    ratio = noise_table(smooth + level * noise, points).noise / level
    assert np.mean((ratio > 0.25) & (ratio < 4)) >= 0.95


def test_noise_of_rounded_numbers_is_seen_on_uneven_points() -> None:
    """On an even grid their rounding errors often lie on a line, and one in ten seems to have no noise."""
    random = np.random.default_rng(3)
    slope, start = 10 ** random.uniform(0, 3, 4000), random.uniform(1e5, 2e5, 4000)
    ratio, even = (
        noise_table(np.round(start + np.outer(points, slope)), points).noise * math.sqrt(12)
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
    table = noise_table(values[:, None], np.arange(8.0))
    assert (np.isnan(table.noise) | table.repeats).all()
