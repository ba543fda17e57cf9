"""Screens of a model, looked at with the library that knows Phoebus' widgets."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from lume_diff.ioc.generate.phoebus import phoebus_screen
from lume_diff.models import LUMEModel
from lume_diff.variables import BoolVariable
from tests.unit.ioc.conftest import Magnet

KNOWN = {
    "label": "Label",
    "textentry": "TextEntry",
    "textupdate": "TextUpdate",
    "combo": "ComboBox",
    "checkbox": "CheckBox",
    "image": "Image",
}


@pytest.fixture
def screen():
    return ElementTree.fromstring(phoebus_screen(Magnet(), "VA:"))


def widgets(screen):
    return {widget.findtext("name"): widget for widget in screen.iter("widget")}


def test_every_variable_has_the_widget_of_its_kind_and_its_pv(screen):
    found = {name: (widget.get("type"), widget.findtext("pv_name")) for name, widget in widgets(screen).items()}
    assert found["current"] == ("textentry", "pva://VA:current")
    assert found["polarity"] == ("combo", "pva://VA:polarity")
    assert found["field"] == ("textupdate", "pva://VA:field")
    assert found["map"] == ("image", "pva://VA:map")
    assert found["STATUS"] == ("textupdate", "pva://VA:SERVER:STATUS")
    assert widgets(screen)["current unit"].findtext("text") == "A"


def test_on_channel_access_images_still_come_by_pvaccess():
    found = widgets(ElementTree.fromstring(phoebus_screen(Magnet(), "VA:", "ca")))
    assert found["current"].findtext("pv_name") == "ca://VA:current"
    assert found["map"].findtext("pv_name") == "pva://VA:map"


def test_switches_and_names_with_markup_are_shown():
    class Lamp(LUMEModel):
        def __init__(self):
            super().__init__([BoolVariable(name="a<b&c", default_value=False)])

        def _run(self, inputs, outputs):
            return {}

    widget = widgets(ElementTree.fromstring(phoebus_screen(Lamp())))["a<b&c"]
    assert (widget.get("type"), widget.findtext("label")) == ("checkbox", "")


def test_widgets_do_not_overlap_and_fit_in(screen):
    boxes = [
        tuple(int(widget.findtext(tag)) for tag in ("x", "y", "width", "height")) for widget in screen.iter("widget")
    ]
    for number, (x, y, width, height) in enumerate(boxes):
        assert x + width <= int(screen.findtext("width"))
        assert y + height <= int(screen.findtext("height"))
        for a, b, c, d in boxes[:number]:
            assert x >= a + c or a >= x + width or y >= b + d or b >= y + height


def test_types_versions_and_properties_are_those_that_phoebus_knows(screen):
    widget_module = pytest.importorskip("phoebusgen.widget")
    for widget in screen.iter("widget"):
        made = getattr(widget_module, KNOWN[widget.get("type")])
        arguments = ["a", "b", "c", 1, 2, 3, 4] if widget.get("type") == "checkbox" else ["a", "b", 1, 2, 3, 4]
        reference = made(*arguments)
        assert widget.attrib == reference.root.attrib
        for child in widget:
            if child.tag == "tooltip":
                reference.tool_tip(child.text)
            assert reference.root.find(child.tag) is not None, child.tag
