"""Set-points in a file: durable, bounded in rate, and restored as far as they are accepted."""

from __future__ import annotations

import json
import os
import threading
import time

import pytest

from lume_diff.errors import ValidationError
from lume_diff.ioc.autosave import Autosave, save_setpoints, saved_setpoints
from lume_diff.ioc.limits import LimitStore
from lume_diff.ioc.restoring import saved, write_each
from lume_diff.ioc.runtime import Runtime
from lume_diff.ioc.thread_engine import ThreadEngine
from tests.unit.ioc.conftest import QUENCH


@pytest.fixture
def runtime(magnet):
    names = list(magnet.supported_variables)
    made = Runtime(ThreadEngine(magnet, names), names, LimitStore(magnet.supported_variables))
    yield made
    made.stop()


def test_a_file_gives_back_what_was_saved_to_the_last_bit(tmp_path):
    values = {"k1": 0.1 + 0.2, "count": 3, "lamp": True, "mode": "on", "map": [[1.5, 2.5]]}
    save_setpoints(tmp_path / "s.json", values)
    assert saved_setpoints(tmp_path / "s.json") == values
    assert [path.name for path in tmp_path.iterdir()] == ["s.json"]
    assert saved_setpoints(tmp_path / "none.json") == {}


def test_a_save_that_fails_leaves_the_last_file(tmp_path, monkeypatch):
    path = tmp_path / "s.json"
    save_setpoints(path, {"k1": 1.0})

    def full(descriptor):
        raise OSError(28, "no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        save_setpoints(path, {"k1": 2.0})
    assert saved_setpoints(path) == {"k1": 1.0}
    assert [found.name for found in tmp_path.iterdir()] == ["s.json"]


def test_a_file_that_is_cut_is_moved_aside(tmp_path, caplog):
    path = tmp_path / "s.json"
    path.write_text('{"format": "lume_diff')
    with pytest.raises(ValidationError, match="move it away"):
        saved_setpoints(path)
    assert saved(path, {"k1": 0.0}) == {}
    assert "nothing is restored" in caplog.text
    assert (tmp_path / "s.json.bad").exists()
    assert not path.exists()


def test_a_burst_is_saved_at_once_and_again_after_the_interval(tmp_path):
    path, values = tmp_path / "s.json", {"k1": 0.0}
    autosave = Autosave(path, lambda: dict(values), interval=0.3)
    autosave.publish(None)  # not restored yet: nothing may be overwritten
    autosave.begin()
    seen = set()
    for number in range(100):
        values["k1"] = float(number)
        autosave.publish(None)
        time.sleep(0.005)
        if path.exists():
            seen.add(path.stat().st_ino)
    autosave.stop()
    assert saved_setpoints(path) == {"k1": 99.0}
    assert 1 <= len(seen) <= 6


@pytest.mark.parametrize(
    "given, expected",
    [
        ({"current": 2.0, "polarity": "reversed"}, (2.0, 0.1, "reversed")),
        ({"current": 20.0, "gap": 0.5}, (0.0, 0.5, "normal")),
        ({"current": "much", "gap": 0.5}, (0.0, 0.5, "normal")),
        ({"current": QUENCH, "gap": 0.5, "polarity": "reversed"}, (0.0, 0.5, "reversed")),
        ({"current": QUENCH}, (0.0, 0.1, "normal")),
        ({}, (0.0, 0.1, "normal")),
    ],
    ids=["all", "out-of-limits", "no-number", "model-fails", "model-fails-alone", "nothing"],
)
def test_what_is_accepted_is_restored_and_the_rest_stays(runtime, given, expected):
    finished = threading.Event()
    write_each(runtime, given, finished.set)
    runtime.start()
    assert finished.wait(20.0)
    assert runtime.first_cycle.wait(20.0)
    done = threading.Event()
    runtime.write({"gap": runtime.reading("gap").value or 0.1}, "test", lambda error, cycle: done.set())
    assert done.wait(20.0)
    assert tuple(runtime.reading(name).value for name in ("current", "gap", "polarity")) == expected


def test_saved_setpoints_of_no_input_are_left_out_with_a_warning(tmp_path, caplog):
    save_setpoints(tmp_path / "s.json", {"k1": 1.0, "gone": 2.0})
    assert saved(tmp_path / "s.json", {"k1": 0.0}) == {"k1": 1.0}
    assert "gone is not restored" in caplog.text


def test_the_file_is_json_that_people_can_read(tmp_path):
    save_setpoints(tmp_path / "s.json", {"k1": 1.0})
    content = json.loads((tmp_path / "s.json").read_text())
    assert content["values"] == {"k1": 1.0}
    assert content["time"].endswith("+00:00")


def test_inputs_that_follow_a_machine_are_left_out_of_what_is_restored(runtime, caplog):
    runtime.reserve({"current": "it follows PS:I"}, "live twin")
    finished = threading.Event()
    write_each(runtime, {"current": 2.0, "gap": 0.5}, finished.set)
    runtime.start()
    assert finished.wait(20.0)
    assert (runtime.reading("current").value, runtime.reading("gap").value) == (0.0, 0.5)
    assert "saved set-point current is not restored" in caplog.text
