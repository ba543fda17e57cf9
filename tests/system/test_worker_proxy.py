"""The proxy that stands for the simulators of worker processes."""

from __future__ import annotations

import copy
import os
import pickle
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest

from lume_diff.blackbox.runners.pool import WorkerPool
from lume_diff.blackbox.runners.proxy import SimulatorProxy, ask, fetch
from lume_diff.errors import SimulatorError
from tests.system import toys
from tests.system.toys import noted, points, values

# Tests are not importable in a worker, so their classes go there by value.
cloudpickle.register_pickle_by_value(sys.modules[__name__])
pytestmark = [
    pytest.mark.system,
    pytest.mark.usefixtures("time_limit"),
    pytest.mark.skipif(sys.platform != "linux", reason="looks at processes in /proc"),
]

Make = Callable[..., Any]


class Toy(toys.Toy):
    """Multiply and add; fail once where the inputs say so."""

    def __init__(self, notes: Path | None = None) -> None:
        super().__init__(notes)
        self.table = {"offsets": [0.0, 0.0]}
        self.array = np.zeros(3)
        self.failures = 0

    def run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
        found = super().run(inputs, outputs)
        if inputs.get("fails") and not self.failures:
            self.failures += 1
            raise ArithmeticError("unstable lattice")
        return {**found, "y": found["y"] + self.table["offsets"][0] + self.array.sum()}

    def set_gain(self, gain: float, *, by: float = 1.0) -> float:
        self.gain = gain * by
        return self.gain

    def element(self, index: int) -> list[float]:
        return self.table["offsets"]

    def fail(self) -> None:
        self.gain = -1.0
        raise ArithmeticError("no such thing")

    def identity(self) -> str:
        return "toy-1"


def test_changes_reach_every_worker_and_those_to_come(pool_of: Callable[..., WorkerPool]) -> None:
    pool = pool_of()
    pool.start()
    simulator = pool.simulator
    assert simulator.gain == 2.0
    plain = pool.identity()
    simulator.gain = 3.0
    simulator.table["offsets"][0] = 0.5
    simulator.array[1] = 1.0
    assert simulator.set_gain(5.0, by=2.0) == 10.0
    expected = [10.0 * i + 1.5 for i in range(10)]
    results = pool.run_many(points(10, nap=0.01), ["y"])
    assert values(results) == expected
    assert len({result["pid"] for result in results}) == 2
    for pid in pool.pids():
        os.kill(pid, signal.SIGKILL)
    assert values(pool.run_many(points(10), ["y"])) == expected
    batch = points(10)
    batch[3]["fails"] = True  # its second try has the changes too
    pool.run_many(batch, ["y"])
    assert values(pool.run_many(points(10), ["y"])) == expected
    assert simulator.log == [
        {"do": "set", "on": "simulator", "args": ["gain", 3.0]},
        {"do": "set item", "on": "simulator.table['offsets']", "args": [0, 0.5]},
        {"do": "set item", "on": "simulator.array", "args": [1, 1.0]},
        {"do": "call", "on": "simulator.set_gain", "args": [5.0], "kwargs": {"by": 2.0}},
    ]
    assert plain == "toy-1"
    assert pool.identity() != plain


def test_identity_depends_on_the_changes_alone(pool_of: Callable[..., WorkerPool]) -> None:
    identities = []
    for gain in (3.0, 3.0, 4.0):
        pool = pool_of(workers=1)
        pool.simulator.gain = gain
        identities.append(pool.identity())
        pool.reset()
        assert pool.identity() == "toy-1"
        pool.simulator.gain = gain
        assert pool.identity() == identities[-1]
    assert identities[0] == identities[1] != identities[2]


def test_objects_that_calls_return_can_be_changed(pool_of: Callable[..., WorkerPool]) -> None:
    pool = pool_of()
    pool.start()
    offsets = pool.simulator.element(7)
    assert isinstance(offsets, SimulatorProxy)
    offsets[0] = 4.0
    assert pool.simulator.log[-1] == {"do": "set item", "on": "result_0", "args": [0, 4.0]}
    pool.simulator.table["copy"] = offsets
    assert values(pool.run_many(points(4), ["y"])) == [4.0, 6.0, 8.0, 10.0]
    assert list(pool.simulator.table["copy"]) == [4.0, 0.0]
    pool.reset()
    with pytest.raises(LookupError, match="was reset since"):
        offsets[0]


def test_proxy_reads_like_the_object(pool_of: Callable[..., WorkerPool]) -> None:
    simulator = pool_of(workers=1).simulator
    table, array = simulator.table, simulator.array
    assert list(table) == ["offsets"]
    assert len(table) == 1
    assert "offsets" in table
    assert table
    assert not hasattr(simulator, "nothing")
    assert {"gain", "set_gain", "log"} <= set(dir(simulator))
    with pytest.raises(KeyError):
        table["nothing"]
    with pytest.raises(IndexError):
        table["offsets"][5]
    with pytest.raises(TypeError):
        len(simulator)
    np.testing.assert_array_equal(np.asarray(array) + 1.0, np.ones(3))
    assert fetch(table) == {"offsets": [0.0, 0.0]}
    assert ask(simulator.element, 3) == [0.0, 0.0]
    assert ask(table.get, "nothing", 5.0) == 5.0
    assert repr(table) == "<proxy of {'offsets': [0.0, 0.0]}>"
    with pytest.raises(AttributeError, match="private"):
        simulator._hidden = 1
    assert simulator.log == []
    del table["offsets"][0]
    assert fetch(table) == {"offsets": [0.0]}


def test_change_that_fails_is_made_nowhere(pool_of: Callable[..., WorkerPool]) -> None:
    pool = pool_of()
    pool.start()
    with pytest.raises(SimulatorError, match="ArithmeticError: no such thing"):
        pool.simulator.fail()
    assert pool.simulator.log == []
    assert values(pool.run_many(points(10, nap=0.01), ["y"])) == [2.0 * i for i in range(10)]


def test_reset_reaches_every_worker(pool_of: Callable[..., WorkerPool], tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    pool = pool_of(lambda: Toy(notes))
    pool.start()
    pool.reset()
    assert set(noted(notes, "reset")) == set(pool.pids())
    pool.simulator.gain = 3.0
    pool.reset()
    assert values(pool.run_many(points(10, nap=0.01), ["y"])) == [2.0 * i for i in range(10)]


@pytest.mark.parametrize(
    "twin_of", [copy.deepcopy, lambda pool: pickle.loads(pickle.dumps(pool))], ids=["copy", "pickle"]
)
def test_copies_have_workers_of_their_own(
    pool_of: Callable[..., WorkerPool], twin_of: Callable[[WorkerPool], WorkerPool]
) -> None:
    pool = pool_of(lambda: Toy())
    pool.simulator.gain = 3.0
    with twin_of(pool) as twin:
        assert values(twin.run_many(points(3), ["y"])) == [0.0, 3.0, 6.0]
        assert twin.identity() == pool.identity()
        assert not set(twin.pids()) & set(pool.pids())
        twin.simulator.gain = 4.0
        assert pool.simulator.gain == 3.0
