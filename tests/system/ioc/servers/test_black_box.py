"""The Jacobian of a served black box over the wire: its runs, errors and cycle, where it stops, and who goes first."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("p4p")

from tests.system.ioc.servers.conftest import HERE, Running, settings

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.usefixtures("time_limit")]
ARRAYS = ["u", "v", "w"]  # that the response matrix leaves out


class Box:
    """A black box that is served, and what it was asked."""

    def __init__(self, folder: Path) -> None:
        self._log = folder / "runs.jsonl"
        self.running = Running([sys.executable, str(HERE / "served_black_box.py"), str(self._log)], folder, settings())

    def runs(self) -> list[dict[str, Any]]:
        """Return the inputs of all runs."""
        *whole, _ = self._log.read_text().split("\n")
        return [json.loads(line) for line in whole]


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    """Return a served black box that keeps its response matrix."""
    made = Box(tmp_path_factory.mktemp("box"))
    made.running.wait_ready()
    yield made
    made.running.end()


@pytest.fixture
def pva(box: Box) -> Iterator[Any]:
    """Return a p4p client of the box that gives whole structures."""
    from p4p.client.thread import Context

    environment = {key: value for key, value in box.running.settings.items() if key.startswith("EPICS_PVA_")}
    with Context("pva", conf=environment, useenv=False, nt=False) as context:
        yield context


def jacobian(pva: Any, inputs: list[str], **limits: int) -> Any:
    """Ask for derivatives."""
    from p4p.nt import NTURI

    kinds = {"outputs": "as", "inputs": "as", **dict.fromkeys(limits, "l")}
    asked = NTURI(list(kinds.items())).wrap("JACOBIAN", kws={"outputs": ["y"], "inputs": inputs, **limits})
    return pva.rpc("T:SERVER:JACOBIAN", asked, timeout=30.0)


def slopes(table: Any) -> list[float]:
    """Return the only row of a table."""
    return [column[0] for _, column in table.value.items()][1:]


def point(table: Any) -> dict[str, Any]:
    """Return where a table was taken."""
    return dict(zip(table.point.names, table["point.values"], strict=True))


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 20.0
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_the_call_tells_runs_errors_and_cycle(pva: Any) -> None:
    pva.put("T:v", [2.0, 3.0])
    cycle = pva.get("T:y").timeStamp.userTag
    table = jacobian(pva, ["a", *ARRAYS])
    assert list(table.labels) == ["output", "a", *(f"{name}[{index}]" for name in ARRAYS for index in (0, 1))]
    np.testing.assert_allclose(slopes(table), [12.0, 3.0, 3.0, 12.0, 27.0, 3.0, 3.0], rtol=1e-6)
    assert np.all(table.errors > 0.0)
    assert table.runs >= 14
    assert table.seconds > 0.4
    assert (table.cycle, point(table)["a"], list(point(table)["v"])) == (cycle, 2.0, [2.0, 3.0])


def test_the_response_matrix_follows_every_input(pva: Any) -> None:
    for name, value, a in (("a", 3.0, 27.0), ("u", [2.0, 2.0], 27.0)):  # an array has no column, and moves the point
        pva.put(f"T:{name}", value)
        cycle = pva.get("T:y").timeStamp.userTag
        wait_until(lambda cycle=cycle: pva.get("T:SERVER:SENS").cycle >= cycle)
        matrix = pva.get("T:SERVER:SENS")
        assert list(matrix.labels) == ["output", "a", "b"]
        np.testing.assert_allclose(slopes(matrix), [a, 12.0], rtol=1e-6)
        assert np.all(matrix.errors > 0.0)
        assert matrix.runs >= 4
        assert matrix.alarm.severity == 0


def test_it_stops_at_the_runs_that_are_allowed(pva: Any) -> None:
    from p4p.client.thread import RemoteError

    pva.put("T:u", [1.0, 2.0])
    with pytest.raises(RemoteError, match=r"given up after [2-9]\d* runs.* 1 of 3 pieces.*max_runs=1"):
        jacobian(pva, ARRAYS, max_runs=1)


def test_a_put_goes_before_the_rest_of_it_and_does_not_move_its_point(pva: Any, box: Box) -> None:
    pva.put("T:u", [1.0, 1.5])
    cycle, before = pva.get("T:y").timeStamp.userTag, len(box.runs())
    answers: list[Any] = []
    asking = threading.Thread(target=lambda: answers.append(jacobian(pva, ARRAYS)))
    asking.start()
    wait_until(lambda: any(run["u"][0] not in (1.0, 2.0) for run in box.runs()[before:]))  # its first piece has begun
    pva.put("T:u", [4.0, 4.0])
    asking.join(30.0)
    (table,) = answers
    assert (table.cycle, list(point(table)["u"])) == (cycle, [1.0, 1.5])
    assert slopes(table)[:2] == pytest.approx([3.0, 6.75], rel=1e-6)
    made = box.runs()[before:]
    put = next(index for index, run in enumerate(made) if run["u"] == [4.0, 4.0])
    rest = [index for index, run in enumerate(made) if run["u"] == [1.0, 1.5] and run["w"] != [1.0, 1.0]]
    assert rest
    assert put < min(rest)
