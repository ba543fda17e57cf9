"""Who may write, how much, and what is noted of it."""

from __future__ import annotations

import json
import logging
import threading

import numpy as np
import pytest

from lume_diff.errors import LumeDiffError, ReadOnlyError, ValidationError
from lume_diff.ioc.access import Access
from lume_diff.ioc.limits import LimitStore
from lume_diff.ioc.runtime import Runtime
from lume_diff.ioc.thread_engine import ThreadEngine
from lume_diff.ioc.write_log import WriteLog


@pytest.mark.parametrize(
    "allow, client, may",
    [
        (None, "anne@10.0.0.5:40000", True),
        ({"users": ["anne"]}, "anne@10.0.0.5:40000", True),
        ({"users": ["anne"]}, "bob@10.0.0.5:40000", False),
        ({"hosts": ["10.0.0.5"]}, "bob@10.0.0.5:40000", True),
        ({"hosts": ["10.0.0.5"]}, "bob@10.0.0.6:40000", False),
        ({"hosts": ["10.0.0.5"]}, "bob@10.0.0.55", False),
        ({"hosts": ["localhost"]}, "bob@127.0.0.1:40000", True),
        ({"hosts": ["::1"]}, "bob@[::1]:40000", True),
        ({"hosts": ["10.0.0.5"], "users": ["anne"]}, "bob@10.0.0.5:40000", False),
        ({"hosts": ["10.0.0.5"], "users": ["anne"]}, "anne@10.0.0.6:40000", False),
        ({"hosts": []}, "anne@10.0.0.5:40000", False),
        ({"users": ["anne"]}, "this process", True),
    ],
)
def test_clients_go_by_user_and_host(allow, client, may):
    access = Access.of(False, allow)
    if may:
        access.check(client, {"k1": 1.0})
    else:
        with pytest.raises(ReadOnlyError, match="k1"):
            access.check(client, {"k1": 1.0})


def test_read_only_is_for_clients_and_not_for_this_process():
    access = Access.of(True, None)
    access.check("this process", {"k1": 1.0})
    with pytest.raises(ReadOnlyError, match="read-only"):
        access.check("anne@127.0.0.1:4", {"k1": 1.0})


@pytest.mark.parametrize("value", [np.zeros((4, 3)), [0.0] * 12, tuple(range(12))], ids=["array", "list", "tuple"])
def test_large_arrays_are_refused(value):
    Access.of(False, None, largest_array=12).check("anne@h", {"map": value})
    with pytest.raises(ValidationError, match="at most 11"):
        Access.of(False, None, largest_array=11).check("anne@h", {"map": value})


@pytest.fixture
def noted(magnet, tmp_path):
    """Return what writes, and what the file says then."""
    log = WriteLog(tmp_path / "writes.jsonl", "M:")
    names = list(magnet.supported_variables)
    access = Access.of(False, {"users": ["anne"]})
    runtime = Runtime(
        ThreadEngine(magnet, names), names, LimitStore(magnet.supported_variables), access=access, writes=log
    )
    runtime.start()

    def write(client, **values):
        done = threading.Event()
        try:
            runtime.write(values, client, lambda error, cycle: done.set())
        except LumeDiffError:
            done.set()
        assert done.wait(20.0)
        return [json.loads(line) for line in (tmp_path / "writes.jsonl").read_text().splitlines()]

    yield write
    runtime.stop()
    log.close()


def test_every_write_is_noted_with_who_old_and_new(noted):
    noted("anne@h:1", current=2.0)
    noted("anne@h:1", current=20.0)
    noted("bob@h:2", current=3.0)
    lines = noted("anne@h:1", current=7.0)
    told = [(line["outcome"], line["client"], line["name"], line["old"], line["new"]) for line in lines]
    assert told == [
        ("accepted", "anne@h:1", "M:current", 0.0, 2.0),
        ("refused", "anne@h:1", "M:current", 2.0, 20.0),
        ("refused", "bob@h:2", "M:current", 2.0, 3.0),
        ("failed", "anne@h:1", "M:current", 2.0, 7.0),
    ]
    assert lines[0]["cycle"] >= 1
    assert "outside" in lines[1]["reason"]
    assert "not among those" in lines[2]["reason"]
    assert "quench" in lines[3]["reason"]


def test_files_of_writes_are_bounded_in_size_and_number(tmp_path):
    log = WriteLog(tmp_path / "w.jsonl", max_bytes=2000, keep=2)
    for cycle in range(200):
        log.accepted("anne@h", "k1", 0.0, 1.0, cycle)
    log.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["w.jsonl", "w.jsonl.1", "w.jsonl.2"]
    assert all(path.stat().st_size <= 2000 for path in tmp_path.iterdir())


def test_a_large_array_is_noted_by_its_shape(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "lume_diff.ioc.writes"):
        WriteLog().accepted("anne@h", "map", None, np.zeros((40, 60)), 1)
    assert "array of shape (40, 60)" in caplog.text
