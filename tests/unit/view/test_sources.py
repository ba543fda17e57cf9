"""Sources: a model that is followed, what a page may write, and how frames reach pages."""

from __future__ import annotations

import threading

import pytest

from lume_diff.control.readings import Condition, Severity
from lume_diff.errors import ReadOnlyError, ValidationError
from lume_diff.view.fan_out import FanOut
from lume_diff.view.model_source import ModelSource
from lume_diff.view.session_source import SessionSource
from lume_diff.view.viewer import Viewer
from tests.unit.ioc.conftest import QUENCH, Magnet
from tests.unit.view.conftest import eventually

TOKEN = "correct horse battery staple"


def test_a_model_is_followed_with_its_alarms(source, written):
    assert written(current=3.0) is None
    frame = source.latest()
    assert frame.value("field") == 6.0
    assert frame.readings["field"].severity is Severity.MINOR
    assert frame.value("map").shape == (40, 60)
    assert source.limits("current").drive == (-10.0, 10.0)


def test_what_is_written_to_the_model_elsewhere_shows(source):
    source.model.set({"current": 2.0})
    assert eventually(lambda: source.latest().value("field") == 4.0)


def test_a_failed_evaluation_leaves_old_values_that_do_not_look_fresh(source, written):
    written(current=1.0)
    assert written(current=QUENCH) is not None
    frame = source.latest()
    assert frame.value("field") == 2.0
    assert not frame.is_good("field")
    assert frame.readings["field"].condition is Condition.FAILED
    assert frame.good_until["field"] > 0.0
    written(current=2.0)
    assert source.latest().is_good("field")


def test_snapshots_restore(source, written):
    written(current=1.0, polarity="reversed")
    kept = source.snapshot()
    written(current=4.0, polarity="normal")
    outcome = []
    source.restore(kept, "test", outcome.append)
    assert eventually(lambda: bool(outcome))
    assert outcome == [None]
    assert (source.latest().value("current"), source.latest().value("polarity")) == (1.0, "reversed")


def test_nothing_is_written_unless_allowed():
    with ModelSource(Magnet()) as source:
        with pytest.raises(ReadOnlyError, match="read-only"):
            source.write({"current": 1.0}, "test", print)
        with pytest.raises(ReadOnlyError, match="read-only"):
            source.restore({"current": 1.0}, "test", print)


def test_a_page_writes_only_with_the_token(source):
    page, other = SessionSource(source, TOKEN, "page"), SessionSource(source, TOKEN, "other page")
    outcome = []
    for wrong in ("", "x", TOKEN[:-1], TOKEN + "x", "ü" * 20):
        assert not page.unlock(wrong)
    with pytest.raises(ReadOnlyError, match="token"):
        page.write({"current": 1.0}, "test", outcome.append)
    with pytest.raises(ReadOnlyError, match="token"):
        page.restore({"current": 1.0}, "test", outcome.append)
    assert page.unlock(TOKEN)
    page.write({"current": 1.0}, "test", outcome.append)
    assert eventually(lambda: outcome == [None])
    assert not other.writable
    assert not page.unlock("wrong")
    with pytest.raises(ReadOnlyError):
        page.write({"current": 2.0}, "test", outcome.append)


def test_a_token_opens_nothing_where_the_source_is_read_only():
    with ModelSource(Magnet()) as source:
        page = SessionSource(source, TOKEN, "page")
        assert not page.unlock(TOKEN)
        with pytest.raises(ReadOnlyError, match="--write"):
            page.write({"current": 1.0}, "test", print)


def test_a_write_that_is_refused_is_told_at_once(source):
    with pytest.raises(ValidationError, match="current"):
        source.write({"current": 11.0}, "test", print)


class _Slow:
    """Look at frames, and stand still when told to."""

    def __init__(self):
        self.gate, self.busy, self.seen = threading.Event(), threading.Event(), []
        self.gate.set()

    def prepare(self, frame):
        """Nothing to do."""

    def show(self, frame):
        """Note the frame."""
        self.seen.append(frame)
        self.busy.set()
        self.gate.wait(20.0)

    def wait_sent(self, timeout):
        """Wait for the gate too."""
        self.gate.wait(timeout)


class _Ready(_Slow):
    """Take frames at once, and have them sent when told to."""

    def show(self, frame):
        """Note the frame."""
        self.seen.append(frame)


def test_no_frame_is_worked_out_before_the_last_was_sent(source, written):
    fan_out, viewer = FanOut(source, rate=1000.0), _Ready()
    fan_out.add(viewer)
    assert eventually(lambda: viewer.seen)
    viewer.gate.clear()
    written(current=0.1)
    assert eventually(lambda: viewer.seen[-1].value("current") == pytest.approx(0.1))
    frames = fan_out.frames
    for number in range(2, 8):
        written(current=0.1 * number)
    assert fan_out.frames <= frames + 1  # the page is waited for, or time is up once
    viewer.gate.set()
    assert eventually(lambda: viewer.seen[-1].value("current") == pytest.approx(0.7))
    fan_out.close()


def test_a_slow_viewer_gets_the_newest_frame_and_no_queue(source, written):
    fan_out, viewer = FanOut(source, rate=1000.0), _Slow()
    viewer.gate.clear()
    fan_out.add(viewer)
    assert viewer.busy.wait(20.0)
    before = len(viewer.seen)
    for number in range(8):
        written(current=0.1 * number)
    viewer.gate.set()
    assert eventually(lambda: viewer.seen[-1].value("current") == pytest.approx(0.7))
    assert len(viewer.seen) - before <= 2
    fan_out.close()


def test_the_thread_ends_with_the_last_viewer_and_comes_back(source):
    fan_out, viewer = FanOut(source, rate=1000.0), _Slow()
    for _ in range(2):
        fan_out.add(viewer)
        viewer.busy.clear()
        assert viewer.busy.wait(20.0)
        fan_out.remove(viewer)
        assert fan_out.viewers == 0
        source.model.set({"current": 1.5})
        source._latest.touch()
        assert eventually(lambda: not [t for t in threading.enumerate() if t.name == "view fan-out"])
    fan_out.close()


@pytest.fixture
def document():
    """Return a document whose rounds are turned by hand."""
    pytest.importorskip("panel")
    from bokeh.document import Document

    class ByHand(Document):
        def __init__(self):
            super().__init__()
            self.waiting = []

        def add_next_tick_callback(self, callback):
            self.waiting.append(callback)

        def turn(self):
            waiting, self.waiting = self.waiting, []
            for callback in waiting:
                callback()

    return ByHand()


class _Panel:
    """Note what is shown."""

    def __init__(self):
        self.shown, self.visible = [], True

    def view(self):
        """Return what can be hidden."""
        return self

    def prepare(self, frame):
        """Nothing to do."""

    def update(self, frame):
        """Note it."""
        self.shown.append(frame)


def test_a_page_that_does_not_answer_is_sent_one_frame_and_then_the_newest(document):
    panel, sent = _Panel(), []
    viewer = Viewer([panel], document, sent.append)
    for number in range(5):
        viewer.show(number)
    assert len(document.waiting) == 1
    document.turn()
    assert (panel.shown, sent) == ([4], [1])
    for number in range(5, 9):
        viewer.show(number)
    assert document.waiting == []  # the page has not said that it got the first
    viewer.seen(1)
    document.turn()
    assert (panel.shown, sent) == ([4, 8], [1, 2])
    viewer.close()
    viewer.seen(2)
    viewer.show(9)
    document.turn()
    assert panel.shown == [4, 8]


def test_a_page_grows_by_a_panel_with_each_frame_after_the_first_has_come(document):
    first, later = _Panel(), [_Panel(), _Panel()]
    waiting, before = list(later), []

    def grow():
        before.append(len(first.shown))  # within the message of the frame, after what is there already
        return waiting.pop(0) if waiting else None

    viewer = Viewer([first], document, lambda number: None, grow)
    for number in range(1, 5):
        viewer.prepare(number)
        viewer.show(number)
        document.turn()
        viewer.seen(number)
    assert before == [2, 3, 4]
    assert [panel.shown for panel in later] == [[3, 4], [4]]


def test_a_page_that_has_missed_a_frame_is_asked_again_and_sent_nothing_else(document, monkeypatch):
    panel, sent = _Panel(), []
    viewer = Viewer([panel], document, sent.append)
    viewer.show("first")
    document.turn()
    monkeypatch.setattr("lume_diff.view.viewer._OVERDUE", 0.0)
    for _ in range(3):
        viewer.show("newest")
        document.turn()
    assert (panel.shown, sent) == (["first"], [1, 2, 3, 4])
    viewer.seen(4)
    document.turn()
    assert panel.shown == ["first", "newest"]


@pytest.mark.parametrize("step", ["prepare", "update"])
def test_a_panel_that_fails_is_hidden_until_it_shows_what_holds_and_holds_up_no_other(document, caplog, step):
    class Broken(_Panel):
        is_broken = True

        def _fail(self):
            if self.is_broken:
                raise RuntimeError("broken")

        def prepare(self, frame):
            if step == "prepare":
                self._fail()

        def update(self, frame):
            if step == "update":
                self._fail()
            super().update(frame)

    def bring(frame):
        viewer.prepare(frame)
        viewer.show(frame)
        document.turn()
        viewer.seen(frame)

    broken, panel = Broken(), _Panel()
    viewer = Viewer([broken, panel], document, lambda number: None)
    bring(1)
    assert (broken.shown, broken.visible, panel.shown, panel.visible) == ([], False, [1], True)
    assert "Broken" in caplog.text
    broken.is_broken = False
    bring(2)
    assert (broken.shown, broken.visible, panel.shown) == ([2], True, [1, 2])
