"""The run archive: durable, shared, without pickle."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from beamphysics import ParticleGroup

from lume_diff.archive import RunArchive, run_key
from lume_diff.archive.values import can_keep, pack, unpack
from lume_diff.errors import ValidationError


def bunch(n: int = 5) -> ParticleGroup:
    ramp = np.linspace(-1e-3, 1e-3, n)
    zero = np.zeros(n)
    data = {"x": ramp, "y": -ramp, "z": zero, "px": 1e3 * ramp, "py": zero, "pz": zero + 1e7, "t": 1e-12 * ramp}
    return ParticleGroup(
        data={**data, "weight": zero + 1e-12, "status": zero.astype(int) + 1, "species": "electron", "id": np.arange(n)}
    )


VALUES = {
    "float": 0.1,
    "negative zero": -0.0,
    "tiny": 5e-324,
    "int": 7,
    "bool": True,
    "text": "SCR1",
    "none": None,
    "array": np.array([[1.0, 2.0], [3.0, np.nextafter(4.0, 5.0)]]),
    "integers": np.arange(3),
}


def test_values_survive_to_the_last_bit() -> None:
    found = unpack(pack({**VALUES, "bunch": bunch()}))
    for name, value in VALUES.items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(found[name], value)
            assert found[name].dtype == value.dtype
        else:
            assert found[name] == value
            assert type(found[name]) is type(value)
    for field in ("x", "px", "t", "id", "status", "weight"):
        np.testing.assert_array_equal(getattr(found["bunch"], field), getattr(bunch(), field))


@pytest.mark.parametrize(
    "value",
    [object(), {"a": 1}, [[1.0], [2.0, 3.0]], ["a"], np.array(["a"])],
    ids=["object", "dictionary", "ragged-lists", "texts", "array-of-texts"],
)
def test_what_cannot_be_kept_is_refused_by_name(value: object) -> None:
    assert not can_keep(value)
    with pytest.raises(ValidationError, match="'deck' is of type"):
        pack({"deck": value})


def test_lists_of_numbers_come_back_as_arrays() -> None:
    assert can_keep([[1.0, 2.0]])
    np.testing.assert_array_equal(unpack(pack({"y": [[1.0, 2.0]]}))["y"], np.array([[1.0, 2.0]]))


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(("code 2", {"a": 1.0}), id="code"),
        pytest.param(("code 1", {"a": np.nextafter(1.0, 2.0)}), id="last-bit"),
        pytest.param(("code 1", {"b": 1.0}), id="name"),
        pytest.param(("code 1", {"a": 1.0, "beam": bunch()}), id="beam"),
        pytest.param(("code 1", {"a": np.array([1.0])}), id="array"),
    ],
)
def test_key_tells_runs_apart(other: tuple[str, dict[str, object]]) -> None:
    assert run_key("code 1", {"a": 1.0}) != run_key(*other)


def test_key_ignores_order_and_the_sign_of_zero() -> None:
    assert run_key("c", {"a": 0.0, "b": 1}) == run_key("c", {"b": 1, "a": -0.0})


def test_get_gives_back_what_was_put(tmp_path: Path) -> None:
    archive = RunArchive(tmp_path / "runs.db")
    assert archive.get("code", {"a": 1.0}, ["y"]) is None
    archive.put("code", {"a": 1.0}, {"y": 2.0})
    assert archive.get("code", {"a": 1.0}, ["y"]) == {"y": 2.0}
    assert archive.get("code", {"a": 1.0}, ["y", "z"]) is None
    archive.put("code", {"a": 1.0}, {"z": 3.0})
    assert archive.get("code", {"a": 1.0}, ["y", "z"]) == {"y": 2.0, "z": 3.0}
    assert len(archive) == 1


def test_failures_are_kept_and_never_reused(tmp_path: Path) -> None:
    archive = RunArchive(tmp_path / "runs.db")
    archive.put_failure("code", {"a": 1.0}, "unstable")
    assert archive.get("code", {"a": 1.0}, ["y"]) is None
    assert [run.message for run in archive] == ["unstable"]
    archive.put("code", {"a": 1.0}, {"y": 1.0})
    archive.put_failure("code", {"a": 1.0}, "later failure")
    assert archive.get("code", {"a": 1.0}, ["y"]) == {"y": 1.0}


def test_facts_are_remembered(tmp_path: Path) -> None:
    archive = RunArchive(tmp_path / "runs.db")
    archive.remember("noise", {"a": [1e-12, 2e-12]})
    assert RunArchive(tmp_path / "runs.db").recall("noise") == {"a": [1e-12, 2e-12]}
    assert archive.recall("other") is None


def test_a_file_that_is_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not a database, " * 100)
    with pytest.raises(ValidationError, match=r"notes\.txt"):
        RunArchive(path)


def test_rows_are_flat(tmp_path: Path) -> None:
    archive = RunArchive(tmp_path / "runs.db")
    archive.put("code", {"a": 1.0, "beam": bunch()}, {"y": np.zeros((2, 3))}, seconds=0.5)
    (row,) = archive.rows()
    assert (row["a"], row["beam"], row["y"], row["seconds"]) == (1.0, "5 particles", "array (2, 3)", 0.5)


def test_two_processes_share_one_archive(tmp_path: Path) -> None:
    path = str(tmp_path / "runs.db")
    program = (
        "import sys\n"
        "from lume_diff.archive import RunArchive\n"
        "archive, start = RunArchive(sys.argv[1]), int(sys.argv[2])\n"
        "for index in range(start, start + 50):\n"
        "    archive.put('code', {'a': float(index)}, {'y': float(index) ** 2})\n"
    )
    processes = [subprocess.Popen([sys.executable, "-c", program, path, start]) for start in ("0", "25")]
    for process in processes:
        assert process.wait(120) == 0
    archive = RunArchive(path)
    assert len(archive) == 75
    assert all(run.outputs["y"] == run.inputs["a"] ** 2 for run in archive)


def test_a_kill_loses_no_finished_run(tmp_path: Path) -> None:
    path = tmp_path / "runs.db"
    program = (
        "import sys\n"
        "from lume_diff.archive import RunArchive\n"
        "archive = RunArchive(sys.argv[1])\n"
        "for index in range(10**6):\n"
        "    archive.put('code', {'a': float(index)}, {'y': 1.0})\n"
        "    print(index, flush=True)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    deadline = time.monotonic() + 60
    last = -1
    while last < 20 and time.monotonic() < deadline:
        last = int(process.stdout.readline())
    os.kill(process.pid, signal.SIGKILL)
    process.wait(10)
    process.stdout.close()
    archive = RunArchive(path)
    assert last >= 20
    assert all(archive.get("code", {"a": float(index)}, ["y"]) == {"y": 1.0} for index in range(last + 1))
