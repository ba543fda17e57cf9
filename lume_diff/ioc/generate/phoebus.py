"""A Phoebus screen of a model."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree import ElementTree

from lume_diff.errors import ValidationError
from lume_diff.ioc.generate.shown import shown
from lume_diff.models import LUMEModel
from lume_diff.variables import (
    BoolVariable,
    EnumVariable,
    TorchNDVariable,
    Variable,
)

_ROW, _GAP, _LABEL, _FIELD, _UNIT = 24, 6, 260, 140, 70  # [pixels]
_COLUMN = _LABEL + _FIELD + _UNIT + 4 * _GAP
_IMAGE = 320  # [pixels]
_SERVICE = ("STATUS", "CYCLE", "LAST_ERROR")


def phoebus_screen(
    model: LUMEModel, prefix: str = "", protocol: str = "pva", names: Sequence[str] | None = None
) -> str:
    """Return a screen with every input, output and image of a model, as the text of a ``.bob`` file.

    Args:
        model: whose variables are shown; beams are left out.
        prefix: that it is served with.
        protocol: ``"pva"`` or ``"ca"``; images are shown by PVAccess in any case.
        names: variables to show; all if None.

    Returns:
        XML.

    Raises:
        ValidationError: for another protocol.
        UnknownVariableError: for a name that the model does not have.

    Example:
        >>> from lume_diff.models import TorchModel
        >>> from lume_diff.variables import TorchScalarVariable
        >>> inputs = [TorchScalarVariable(name="k1", default_value=0.0)]
        >>> model = TorchModel(lambda k1: 2.0 * k1, inputs, [TorchScalarVariable(name="x", unit="m")])
        >>> "pva://VA:k1" in phoebus_screen(model, prefix="VA:")
        True
    """
    if protocol not in ("pva", "ca"):
        raise ValidationError(f"protocol={protocol!r}; expected 'pva' or 'ca'")
    variables = shown(model, names)
    images = [v for v in variables if isinstance(v, TorchNDVariable) and len(v.shape) == 2]
    rows = [variable for variable in variables if variable not in images]
    inputs = [variable for variable in rows if not variable.read_only]
    outputs = [variable for variable in rows if variable.read_only]
    screen = _Screen(f"{prefix.rstrip(':') or type(model).__name__}", f"{protocol}://{prefix}", f"pva://{prefix}")
    screen.heading()
    depth = max(screen.column(0, "Inputs", inputs), screen.column(1, "Outputs", outputs), screen.images(2, images))
    return screen.text(depth)


class _Screen:
    """Place widgets."""

    def __init__(self, title: str, place: str, image_place: str) -> None:
        self._root = ElementTree.Element("display", version="2.0.0")
        ElementTree.SubElement(self._root, "name").text = title
        self._title, self._place, self._image_place = title, place, image_place
        self._width = 0

    def heading(self) -> None:
        """Place the title and how the server is doing."""
        self._widget("label", "title", 0, 0, 2 * _LABEL, text=self._title)
        for number, name in enumerate(_SERVICE):
            x = number * (_LABEL + _GAP)
            self._widget("textupdate", name, x, _ROW + _GAP, _LABEL, pv_name=f"{self._place}SERVER:{name}")

    def column(self, number: int, title: str, variables: Sequence[Variable]) -> int:
        """Place a column; returns where it ends [pixels]."""
        x, y = number * _COLUMN, 2 * (_ROW + _GAP)
        self._widget("label", title, x, y, _LABEL, text=title)
        for variable in variables:
            y += _ROW + _GAP
            name, pv = variable.name, self._place + variable.name
            self._widget("label", f"{name} label", x, y, _LABEL, text=name, tooltip=variable.description or name)
            self._widget(_kind(variable), name, x + _LABEL + _GAP, y, _FIELD, pv_name=pv)
            if variable.unit:
                place = x + _LABEL + _FIELD + 2 * _GAP
                self._widget("label", f"{name} unit", place, y, _UNIT, text=variable.unit)
        return y + _ROW

    def images(self, number: int, variables: Sequence[Variable]) -> int:
        """Place images below each other; returns where they end [pixels]."""
        x, y = number * _COLUMN, 2 * (_ROW + _GAP)
        for variable in variables:
            self._widget("label", f"{variable.name} label", x, y, _IMAGE, text=variable.name)
            y += _ROW
            pv = self._image_place + variable.name
            self._widget("image", variable.name, x, y, _IMAGE, _IMAGE, pv_name=pv)
            y += _IMAGE + _GAP
        return y

    def text(self, depth: int) -> str:
        """Return the file."""
        for tag, value in (("width", self._width), ("height", depth)):
            ElementTree.SubElement(self._root, tag).text = str(value)
        ElementTree.indent(self._root)
        return ElementTree.tostring(self._root, "unicode", xml_declaration=True) + "\n"

    def _widget(self, kind: str, name: str, x: int, y: int, width: int, height: int = _ROW, **properties: str) -> None:
        widget = ElementTree.SubElement(self._root, "widget", type=kind, version="2.0.0")
        if kind == "checkbox":
            properties["label"] = ""
        places = {"x": x, "y": y, "width": width, "height": height}
        for tag, value in ({"name": name, **properties} | places).items():
            ElementTree.SubElement(widget, tag).text = str(value)
        self._width = max(self._width, x + width)


def _kind(variable: Variable) -> str:
    """Return the widget that shows a variable."""
    if variable.read_only:
        return "textupdate"
    if isinstance(variable, EnumVariable):
        return "combo"
    return "checkbox" if isinstance(variable, BoolVariable) else "textentry"
