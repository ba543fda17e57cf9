"""Panels without a browser: what they make of frames."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("panel")

from lume_diff.errors import SimulatorError, UnknownVariableError, ValidationError
from lume_diff.models import LUMEModel
from lume_diff.registry import every_plugin
from lume_diff.variables import TorchNDVariable, TorchScalarVariable
from lume_diff.view.live_view import LiveView
from lume_diff.view.model_source import ModelSource
from lume_diff.view.panels.alarm_banner import AlarmBanner, banner
from lume_diff.view.panels.knobs import Knobs
from lume_diff.view.panels.panel import Panel
from lume_diff.view.panels.screen import Screen
from lume_diff.view.panels.snapshots import Snapshots, compared
from lume_diff.view.panels.strip_chart import StripChart
from tests.unit.ioc.conftest import QUENCH, Magnet
from tests.unit.view.conftest import bad, eventually, frame_of, good

OURS = [AlarmBanner, Knobs, Screen, Snapshots, StripChart]


def test_all_panels_are_found():
    found = every_plugin("panels")
    assert set(OURS) <= set(found)
    assert all(issubclass(one, Panel) and one.title for one in found)


@pytest.mark.parametrize("kind", OURS, ids=lambda kind: kind.__name__)
def test_a_panel_works_by_itself(kind):
    model = Magnet()
    panel = kind(model)
    assert panel.view() is panel.view()
    assert set(panel.names) <= set(model.supported_variables)
    panel.follow()
    model.set({"current": 1.0})
    assert eventually(lambda: panel.source.latest().value("field") == 2.0)
    panel.close()
    panel.close()


def shown(panel: Panel) -> None:
    """Bring the newest frame."""
    frame = panel.source.latest()
    panel.prepare(frame)
    panel.update(frame)


def test_knobs_show_setpoints_limits_and_alarms(source, written):
    knobs = Knobs(source)
    knobs.view()
    written(current=5.0)
    shown(knobs)
    row = json.loads(knobs._table.rows)["current"]
    assert (row["value"], row["limits"], row["at"], row["holds"]) == ("5", "-10 … 10", 0.75, True)
    assert row["alarm"] == "✓ good"
    assert [one["name"] for one in knobs._table.knobs] == ["current", "gap", "polarity"]
    assert knobs._table.knobs[2]["choices"] == ["normal", "reversed"]
    assert knobs._table.writable


def test_knobs_write_what_was_typed_and_tell_what_was_refused(source):
    knobs, answers = Knobs(source, ["current", "polarity"]), []
    for name, text in (("current", "2.5"), ("polarity", "reversed"), ("current", "nonsense"), ("current", "99")):
        knobs._write(name, text, answers.append)
        assert eventually(lambda: answers), "a write was never answered"
        if text in ("2.5", "reversed"):
            assert answers == [None]
        else:
            assert isinstance(answers[0], ValueError)
        answers.clear()
    assert (source.latest().value("current"), source.latest().value("polarity")) == (2.5, "reversed")
    knobs._write("gap", "0.5", answers.append)  # no knob of this panel
    assert source.latest().value("gap") == 0.1
    with pytest.raises(UnknownVariableError, match="currant"):
        Knobs(source, ["currant"])


def test_a_screen_shows_pixels_and_a_veil_when_they_do_not_hold(source, written):
    screen = Screen(source, "map")
    screen.view()
    written(current=2.0)
    shown(screen)
    drawing = screen._drawings[0]
    assert np.all(drawing._image.data["image"][0] == 255)
    assert not drawing.veil._box.visible
    written(current=QUENCH)
    shown(screen)
    assert drawing.veil._box.visible
    assert "last good" in drawing.veil._label.text
    assert "quench" in screen._facts.object
    assert "last good" in drawing.veil._label.text
    written(current=1.0)
    shown(screen)
    assert not drawing.veil._box.visible


class TwoScreens(LUMEModel):
    """A beam on two screens, of which a machine may read one only."""

    def __init__(self) -> None:
        images = [TorchNDVariable(name=name, shape=(3, 4), unit=unit, read_only=True) for name, unit in ("aC", "bV")]
        super().__init__([TorchScalarVariable(name="charge", default_value=1.0), *images])

    def _run(self, inputs, outputs):
        return {name: inputs["charge"] * torch.ones(3, 4, dtype=torch.float64) for name in ("a", "b")}


def test_a_screen_that_is_not_measured_shows_no_image_of_another():
    with ModelSource(TwoScreens()) as source:
        source.wait_ready(60.0)
        source._latest.take_measured({"a": good(np.eye(3, 4))}, {})
        screen = Screen(source)
        screen.view()
        model, measured, difference = screen._drawings
        assert len(measured._image.data["image"]) == len(difference._image.data["image"]) == 1
        screen._choose(SimpleNamespace(new="b"))
        assert measured._image.data["image"] == difference._image.data["image"] == []
        assert "measured: no image of b" in screen._facts.object
        assert model._bar.title == "V per pixel"
        screen._choose(SimpleNamespace(new="a"))
        assert np.array_equal(measured._image.data["image"][0], 255 * np.eye(3, 4))


def test_screens_of_one_frame_share_their_picture(source):
    one, other = Screen(source, "map"), Screen(source, "map")
    one.view()
    other.view()
    assert one._drawings[0].shown is other._drawings[0].shown


def test_a_screen_needs_an_image(source):
    with pytest.raises(ValidationError, match="two dimensions"):
        Screen(source, "field")
    with pytest.raises(UnknownVariableError, match="mop"):
        Screen(source, "mop")


def test_the_banner_counts_and_tells_reasons_in_words():
    frame = frame_of(a=good(1.0), b=bad(1.0, message="b: <gone>"), c=bad(1.0, message="c: <gone>"))
    text = banner(frame, ["a", "b", "c"], 105.0)
    plain = re.sub(r"<[^>]*>", "", text)
    assert 'data-severity="INVALID"' in text
    assert "✖ 2 INVALID, ✓ 1 good" in plain
    assert "b, c — ✖ INVALID: &lt;gone&gt;; never good" in plain


def test_a_snapshot_is_compared():
    units = {"x": "A"}
    assert "All 2" in compared({"x": 1.0, "word": "in"}, {"x": 1.0, "word": "in"}, units)
    text = re.sub(r"<[^>]*>", "|", compared({"x": 1.0, "a": [1.0, 2.0]}, {"x": 1.5, "a": np.array([1.0, 2.0])}, units))
    assert "1 of 2 set-points differ" in text
    assert re.search(r"x\|+1\|+1\.5\|+\+0\.5\|+A\|", text)


def test_snapshots_save_and_restore(source, written):
    panel = Snapshots(source)
    panel.view()
    written(current=1.0)
    panel._label.value = "here"
    panel._on_save(None)
    assert panel._choice.value.endswith("here")
    written(current=3.0)
    shown(panel)
    assert "1 of 3" in panel._compared.object
    panel._on_restore(None)
    assert eventually(lambda: source.latest().value("current") == 1.0)
    assert "current: 1.0" in panel._as_file().getvalue()


def test_strip_charts_draw_what_has_come(source, written):
    chart = StripChart(source, ["field"])
    chart.view()
    written(current=2.0)
    chart._drawn = source.history._noted = 0.0
    shown(chart)
    assert list(chart._charts["field"]._data.data["value"]) == [0.0, 4.0]
    with pytest.raises(UnknownVariableError, match="feild"):
        StripChart(source, ["feild"])


def test_a_view_is_served_at_a_port_and_once(source):
    view = LiveView(source)
    with pytest.raises(ValidationError, match="port=70000"):
        view.start(port=70000)
    view.stop()
    with pytest.raises(SimulatorError, match="was stopped: make a new one"):
        view.start()


def test_a_page_that_was_made_before_there_were_values_is_not_kept(source):
    early, view = LiveView(ModelSource(Magnet())), LiveView(source)
    for one in (early, view):
        one._make_ready()
    assert early._ready is None
    assert view._ready is not None
    for one in (early, view):
        one.stop()


def test_a_token_must_not_be_short(source):
    with pytest.raises(ValidationError, match="16"):
        LiveView(source, token="short")


def test_a_package_that_can_be_called():
    import lume_diff as ld
    import lume_diff.view.panels.panel

    made = ld.view(Magnet())
    assert isinstance(made, LiveView)
    assert len(made.token) >= 16
    made.stop()


def test_a_panel_alone_is_built_before_frames_come_and_then_follows(source, written, caplog):
    screen = Screen(source, "map")
    screen.__panel__()
    written(current=3.0)
    assert eventually(lambda: "sum 7200" in screen._facts.object)
    assert "could not show" not in caplog.text
    screen.close()


def test_in_a_notebook_the_page_is_a_column_that_follows(source, written):
    view = LiveView(source)
    try:
        banner = view.servable()[2]  # below the heading and the field for the token
        written(current=4.5)
        assert eventually(lambda: "MAJOR" in banner.object)
        assert view.pages == 1
    finally:
        view.stop()
    assert view.pages == 0
