"""Frames: the newest readings, since when they do not hold, and work that is done once."""

from __future__ import annotations

import math
import threading

import numpy as np
import pytest

from lume_diff.control.readings import Reading, Severity
from lume_diff.view.alarms import SIGNS, alarm_of, duration, worst_of
from lume_diff.view.background import Background
from lume_diff.view.frame import Frame
from lume_diff.view.history import POINTS, SPACING, History
from lume_diff.view.latest import Latest
from lume_diff.view.readbacks import readback_of
from lume_diff.view.shelf import MOST, Shelf
from tests.unit.view.conftest import bad, eventually, frame_of, good


def test_the_same_frame_until_something_changes():
    latest = Latest()
    latest.take({"x": good(1.0)})
    first = latest.frame()
    assert latest.frame() is first
    latest.take({"x": good(2.0, 101.0, 2)})
    assert (latest.frame().value("x"), latest.frame().cycle, latest.frame().time) == (2.0, 2, 101.0)
    assert first.value("x") == 1.0


def test_a_value_that_was_never_good_has_no_age():
    frame = frame_of(x=bad(None))
    assert "x" not in frame.good_until
    assert alarm_of(frame, "x", 500.0).age is None
    assert "never good" in alarm_of(frame, "x", 500.0).text


def test_age_counts_from_when_it_was_last_good_and_not_from_later_complaints():
    latest = Latest()
    latest.take({"x": good(1.0, 100.0)})
    latest.take({"x": bad(1.0, 110.0)})
    latest.take({"x": bad(1.0, 150.0, "still not connected")})
    frame = latest.frame()
    assert not frame.is_good("x")
    assert alarm_of(frame, "x", 170.0).age == 60.0
    assert alarm_of(frame, "x", 170.0).text == "✖ INVALID: still not connected; last good 1 min ago"
    latest.take({"x": good(2.0, 180.0)})
    assert latest.frame().is_good("x")
    assert latest.frame().good_until == {}


def test_a_value_that_is_missing_is_not_good():
    frame = frame_of(x=Reading(None, 1.0, 1))
    assert not frame.is_good("x")
    assert not frame.is_good("y")
    assert alarm_of(frame, "y").severity is Severity.INVALID


def test_work_for_a_frame_is_done_once_and_kept_while_its_readings_stay():
    latest, calls = Latest(), []
    latest.take({"x": good(1.0)})
    for _ in range(3):
        assert latest.frame().once("key", lambda: calls.append(1) or len(calls)) == 1
    latest.touch()
    assert latest.frame().once("key", lambda: 5) == 1
    latest.take({"x": good(1.0)})
    assert latest.frame().once("key", lambda: 5) == 5


def test_work_is_done_anew_when_its_state_is_another_and_the_old_is_dropped():
    frame, made = Frame(0, 0.0, {}), []

    def make():
        made.append(None)
        return len(made)

    assert [frame.once("ages", make, second) for second in (1, 1, 2, 1)] == [1, 1, 2, 3]


def test_who_asks_for_one_result_does_not_wait_for_another():
    frame, begun, go_on = Frame(0, 0.0, {}), threading.Event(), threading.Event()

    def slow():
        begun.set()
        return go_on.wait(20.0)

    worker = threading.Thread(target=lambda: frame.once("slow", slow))
    worker.start()
    assert begun.wait(20.0)
    quick = []
    other = threading.Thread(target=lambda: quick.append(frame.once("quick", lambda: 1)), daemon=True)
    other.start()
    other.join(5.0)
    assert quick == [1]
    go_on.set()
    worker.join(20.0)
    assert frame.once("slow", lambda: "made anew") is True


def test_waiting_ends_with_a_change_or_with_the_time():
    latest = Latest()
    version = latest.wait(-1, 0.0)
    assert latest.wait(version, 0.01) == version
    threading.Timer(0.05, latest.take, [{"x": good(1.0)}]).start()
    assert latest.wait(version, 20.0) == version + 1


def test_the_worst_alarm_is_told():
    frame = frame_of(a=good(1.0), b=Reading(9.0, 1.0, 1, Severity.MINOR, message="b is high"), c=bad(1.0))
    assert worst_of(frame, ["a"]) is None
    assert worst_of(frame, ["a", "b"]).text == "▲ MINOR: is high"
    assert worst_of(frame, ["a", "b", "c"]).name == "c"


def test_every_severity_has_a_sign_of_its_own():
    assert len(set(SIGNS.values())) == len(Severity)


@pytest.mark.parametrize(
    "seconds,words",
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (60, "1 min"),
        (200, "3 min 20 s"),
        (7500, "2 h 5 min"),
        (90000, "1 d 1 h"),
        (-3, "0 s"),
    ],
)
def test_durations_read_well(seconds, words):
    assert duration(seconds) == words


def test_history_breaks_where_a_value_does_not_hold_and_is_bounded():
    history = History()
    history.keep(["x", "y"])
    history.note(frame_of(x=good(1.0), y=good("text")), 10.0)
    history.note(frame_of(x=good(2.0)), 10.0 + 0.5 * SPACING)
    history.note(frame_of(x=bad(2.0)), 10.0 + SPACING)
    times, values, measured = history.points("x")
    np.testing.assert_array_equal(times, [10.0, 10.0 + SPACING])
    np.testing.assert_array_equal(values, [1.0, math.nan])
    assert np.isnan(measured).all()
    assert np.isnan(history.points("y")[1]).all()
    for number in range(2 * POINTS):
        history.note(frame_of(x=good(1.0)), 100.0 + number)
    assert history.points("x")[0].size == POINTS
    assert history.points("nobody asked")[0].size == 0


def test_background_does_the_newest_of_each_kind_and_keeps_the_last_result():
    told, gate, begun = threading.Semaphore(0), threading.Event(), threading.Event()
    background = Background(told.release)

    def first():
        begun.set()
        assert gate.wait(20.0)
        return "first"

    assert background.ask("kind", 1, first) is None
    assert begun.wait(20.0)
    done = []
    for cycle in (2, 3, 4):  # while the first is under way
        background.ask("kind", cycle, lambda cycle=cycle: done.append(cycle) or cycle)
    gate.set()
    assert told.acquire(timeout=20.0)
    assert told.acquire(timeout=20.0)
    found = background.ask("kind", 4, lambda: 0)
    assert (found.cycle, found.value, done) == (4, 4, [4])
    background.close()
    assert background.ask("kind", 5, lambda: 0).cycle == 4


def test_background_tells_what_went_wrong():
    background = Background(lambda: None)
    background.ask("kind", 1, lambda: 1 / 0)
    assert eventually(lambda: background.ask("kind", 1, lambda: 1 / 0) is not None)
    assert background.ask("kind", 1, lambda: 0).error == "division by zero"
    background.close()


def test_shelf_keeps_labels_apart_and_drops_the_oldest():
    shelf = Shelf()
    first, second = shelf.add("  a  b ", {"x": 1.0}, 0.0), shelf.add("a b", {"x": 2.0}, 0.0)
    assert first != second
    assert shelf.get(first) == {"x": 1.0}
    shelf.get(first)["x"] = 7.0
    assert shelf.get(first) == {"x": 1.0}
    for _ in range(MOST):
        shelf.add("more", {}, 0.0)
    assert shelf.get(first) is None
    assert len(shelf.labels) == MOST


@pytest.mark.parametrize(
    "name,there,found",
    [
        ("Q:BCTRL", ["Q:BACT"], "Q:BACT"),
        ("A_PDES", ["A_S_AV", "A_S_PV"], "A_S_PV"),
        ("X", ["X_RBV"], "X_RBV"),
        ("Q:BCTRL", ["Q:BCTRL"], None),
    ],
)
def test_readbacks_are_found_by_the_ends_of_names(name, there, found):
    assert readback_of(name, dict.fromkeys(there)) == found
