"""What a black box remembers of its points: no more than so many, and no more than so much."""

from __future__ import annotations

import copy

from lume_diff.blackbox.differences.memory import BlackBoxMemory


def kept(memory: BlackBoxMemory, count: int) -> list[int]:
    """Return which of some points still have their notes, the oldest asked last so that asking moves nothing out."""
    return sorted(i for i in reversed(range(count)) if i in memory._points)


def test_the_oldest_points_go_first() -> None:
    memory = BlackBoxMemory(most=3)
    for i in range(5):
        memory.at(i)["value"] = i
        memory.at(0)
    assert kept(memory, 5) == [0, 3, 4]
    assert memory.at(4) == {"value": 4}


def test_large_points_go_by_their_size() -> None:
    memory = BlackBoxMemory(most=100, most_bytes=1000)
    for i in range(5):
        memory.at(i, 400)["value"] = i
    assert kept(memory, 5) == [3, 4]
    memory.at(5, 5000)
    assert kept(memory, 6) == [5]
    memory.at(6)
    assert kept(memory, 7) == [6]


def test_a_copy_starts_without_points() -> None:
    memory = BlackBoxMemory(most_bytes=1000)
    memory.at(1, 900)
    other = copy.deepcopy(memory)
    other.at(2, 900)
    assert kept(other, 3) == [2]
    assert kept(memory, 3) == [1]
    memory.clear()
    memory.at(3, 900)
    assert kept(memory, 4) == [3]
