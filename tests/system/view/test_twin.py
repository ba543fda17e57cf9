"""The page of a twin in a real browser: what is measured beside the model, and a machine that goes away."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("panel")
pytest.importorskip("p4p")

from lume_diff.control.pva import PVAClient
from lume_diff.ioc import Server
from lume_diff.view.live_view import LiveView
from lume_diff.view.twin_source import TwinSource
from tests.system.ioc.conftest import free_ports, settings_of
from tests.unit.ioc.conftest import Magnet

pytestmark = pytest.mark.system

#: The largest and smallest number of each image that is drawn, in the order of the figures.
_IMAGES = """() => {
  const found = [];
  for (const view of Bokeh.index.all_views())
    if (view.glyph && view.glyph.model.type === "Image") {
      const numbers = Array.from(view.model.data_source.data.image[0]);
      found.push([Math.min(...numbers), Math.max(...numbers)]);
    }
  return found;
}"""


class Weak(Magnet):
    """A magnet whose map is steeper than that of the real one, and lower."""

    def _run(self, inputs, outputs):
        found = super()._run(inputs, outputs)
        found["map"] = 0.5 * found["map"].cumsum(1) / 30.0
        return found


def test_a_twin_shows_what_is_measured_and_that_its_machine_has_gone(window):
    settings = settings_of(free_ports())
    with (
        Server(Magnet(), "M:", ("pva",), settings=settings, search=0.0) as machine,
        PVAClient(settings) as client,
        TwinSource(Weak(), "M:", client, isolation="thread") as twin,
        LiveView(twin) as view,
    ):
        machine.wait_ready(60.0)
        found = window(view.url)
        machine.set({"current": 2.0}, 20.0)
        found.says(re.compile(r"model: σx .* sum 2440"))
        found.says(re.compile(r"measured: σx .* sum 4800"))
        model, measured, difference = found.page.evaluate(_IMAGES)
        assert model[1] == measured[1] == 255
        assert difference[0] < 127 < difference[1]  # of both signs
        assert found.page.get_by_placeholder("Token for writing").count() == 0
        machine.stop()
        found.says(re.compile(r"current, gap, polarity — ✖ INVALID: not connected; last good \d+ s ago"))
        found.says(re.compile(r"measured: map ✖ INVALID: not connected; last good \d+ s ago"))
        found.says(re.compile(r"model: map ✖ INVALID: M:\w+: not connected; last good \d+ s ago"))
