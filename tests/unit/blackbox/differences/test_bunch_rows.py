"""Bunches as rows: in the order of their ids, with what a code left out put back as dead."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from beamphysics import ParticleGroup

from lume_diff.blackbox.differences.bunch_rows import COORDINATES_OUT, all_ids, bunch_rows, weighted_rows


def group(ids: Sequence[int], lost: Sequence[int] = ()) -> ParticleGroup:
    """Return particles whose coordinates are their ids, and whose weights are a tenth of these."""
    numbers = np.array(ids, dtype=float)
    status = np.where(np.isin(ids, lost), 0, 1)
    data = dict.fromkeys(COORDINATES_OUT, numbers) | {"weight": 0.1 * numbers, "status": status, "id": np.array(ids)}
    return ParticleGroup(data={**data, "species": "electron"})


@pytest.mark.parametrize(
    ("given", "lost", "expected", "alive"),
    [
        pytest.param([3, 5, 9], [], [3, 5, 9], [1, 1, 1], id="in-order"),
        pytest.param([9, 3, 5], [], [3, 5, 9], [1, 1, 1], id="shuffled"),
        pytest.param([9, 3], [], [3, 0, 9], [1, 0, 1], id="one-left-out"),
        pytest.param([5, 9, 3], [9], [3, 5, 9], [1, 1, 0], id="one-lost"),
        pytest.param([], [], [0, 0, 0], [0, 0, 0], id="all-left-out"),
        pytest.param([7, 8], [], [0, 0, 0], [0, 0, 0], id="only-others"),
    ],
)
def test_rows_come_in_the_order_of_the_ids(
    given: list[int], lost: list[int], expected: list[int], alive: list[int]
) -> None:
    wanted = np.array([3, 5, 9])
    rows, lives = bunch_rows(group(given, lost), wanted)
    np.testing.assert_array_equal(rows, np.tile(np.array(expected, dtype=float)[:, None], len(COORDINATES_OUT)))
    np.testing.assert_array_equal(lives, np.array(alive, dtype=bool))
    with_weights, _ = weighted_rows(group(given, lost), wanted)
    np.testing.assert_allclose(with_weights, np.column_stack([rows, 0.1 * np.array(expected)]))


def test_a_coordinate_that_is_not_finite_is_a_loss() -> None:
    bunch = group([1, 2])
    bunch.px = np.array([1.0, np.nan])
    rows, lives = bunch_rows(bunch, np.array([1, 2]))
    assert lives.tolist() == [True, False]
    assert np.isfinite(rows).all()


def test_ids_of_several_bunches_are_those_of_any() -> None:
    assert all_ids([group([4, 2])]).tolist() == [4, 2]
    assert all_ids([group([4, 2]), group([2, 7, 4])]).tolist() == [4, 2, 7]
