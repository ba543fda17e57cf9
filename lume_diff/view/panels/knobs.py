"""Knobs: set-points with their readbacks, limits and alarms."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from lume_diff.errors import LumeDiffError, unknown_variable
from lume_diff.models import LUMEModel
from lume_diff.variables import BoolVariable, EnumVariable, IntVariable, TorchScalarVariable, Variable
from lume_diff.view.alarms import COLOURS, alarm_of
from lume_diff.view.frame import Frame
from lume_diff.view.panels.panel import Panel
from lume_diff.view.panels.style import readable
from lume_diff.view.readbacks import readback_of
from lume_diff.view.source import Source
from lume_diff.view.turns import Turns

if TYPE_CHECKING:
    from panel.viewable import Viewable

_STEPS = 200  # from one end of the limits to the other, by the arrow keys
_TRUTH = ("False", "True")


@final
class Knobs(Panel):
    """Show inputs as a table, and write to them if the source is writable.

    Enter writes a number that was typed, the arrow keys write one step up or down, Escape leaves it as it was.

    Args:
        source: what to show, or a model.
        names: of inputs; all numbers, choices and truth values if None.
        writable: of a model: whether its knobs can be turned.

    Raises:
        UnknownVariableError: for a name that is no such input.
    """

    title = "Knobs"
    place = 12

    def __init__(self, source: Source | LUMEModel, names: Sequence[str] | None = None, writable: bool = False) -> None:
        super().__init__(source, writable)
        known = _knobs(self.source)
        for name in names or ():
            if name not in known:
                raise unknown_variable(name, known, "the knobs")
        self._names = list(known if names is None else names)
        self._readbacks = {name: readback_of(name, self.source.variables) for name in self._names}

    @classmethod
    def suits(cls, source: Source) -> bool:
        """Tell whether there are inputs."""
        return bool(_knobs(source))

    @property
    def names(self) -> Sequence[str]:
        """The knobs and their readbacks."""
        return [*self._names, *(name for name in self._readbacks.values() if name is not None)]

    def build(self) -> Viewable:
        """Make the table."""
        knobs = [self._described(name) for name in self._names]
        self._table = _table_class()(knobs=knobs, sizing_mode="stretch_width")
        self._table.write = self._write
        return self._table

    def _described(self, name: str) -> dict[str, Any]:
        variable = self.source.variables[name]
        low, high = self.source.limits(name).drive
        step: float | str = (high - low) / _STEPS if math.isfinite(high - low) else "any"
        if isinstance(variable, IntVariable):
            step = 1
        found = {
            "name": name,
            "unit": readable(variable.unit).replace("*", "·") if variable.unit else "",
            "description": variable.description,
            "step": step,
        }
        return found | ({"choices": choices} if (choices := _choices(variable)) else {})

    def prepare(self, frame: Frame) -> None:
        """Write the rows."""
        self._rows(frame)

    def _rows(self, frame: Frame) -> str:
        """Return what the rows show, as JSON, which takes the browser's side less than a tree of values."""
        now = time.time()

        def written() -> str:
            return json.dumps({name: self._row(frame, name, now) for name in self._names})

        limits = tuple(self.source.limits(name).drive for name in self._names)
        return frame.once(("knobs", tuple(self._names)), written, (limits, int(now)))

    def update(self, frame: Frame) -> None:
        """Show set-points, readbacks and alarms."""
        rows = self._rows(frame)
        if rows != self._table.rows:
            self._table.rows = rows
        if self._table.writable != self.source.writable:
            self._table.writable = self.source.writable

    def _row(self, frame: Frame, name: str, now: float) -> dict[str, Any]:
        variable, value, other = self.source.variables[name], frame.value(name), self._readbacks[name]
        low, high = self.source.limits(name).drive
        is_number = isinstance(value, int | float) and math.isfinite(high - low) and high > low
        alarms = [alarm_of(frame, one, now) for one in (name, other) if one is not None]
        worst = max(alarms, key=lambda one: one.severity)
        fill, ink = COLOURS[worst.severity]
        return {
            "value": _text(variable, value),
            "readback": "" if other is None else _text(self.source.variables[other], frame.value(other)),
            "limits": f"{low:.6g} … {high:.6g}" if is_number else "",
            "at": round(min(1.0, max(0.0, (value - low) / (high - low))), 3) if is_number else None,
            "holds": frame.is_good(name),
            "alarm": worst.text,
            "fill": fill,
            "ink": ink,
        }

    def _write(self, name: str, text: str, answer: Any) -> None:
        """Write what was typed."""
        if name not in self._names:
            return
        try:
            value = _parsed(self.source.variables[name], text)
            self.source.write({name: value}, "view", answer)
        except (LumeDiffError, ValueError) as error:
            answer(error)


def _knobs(source: Source) -> list[str]:
    kinds = TorchScalarVariable | IntVariable | BoolVariable | EnumVariable
    return [name for name in source.inputs if isinstance(source.variables[name], kinds)]


def _choices(variable: Variable) -> list[str]:
    if isinstance(variable, BoolVariable):
        return list(_TRUTH)
    return list(variable.options) if isinstance(variable, EnumVariable) else []


def _text(variable: Variable, value: Any) -> str:
    """Return a value as it is shown."""
    if value is None:
        return ""
    if isinstance(value, float):
        precision = getattr(variable, "precision", None)
        return f"{value:.6g}" if precision is None else f"{value:.{precision}f}"
    return str(value)


def _parsed(variable: Variable, text: str) -> Any:
    if isinstance(variable, BoolVariable):
        return text == _TRUTH[1]
    if isinstance(variable, EnumVariable):
        return text
    return int(text) if isinstance(variable, IntVariable) else float(text)


@cache
def _table_class() -> Any:
    """Return the component of the browser."""
    import panel as pn
    import param
    from panel.custom import JSComponent

    class KnobTable(JSComponent):
        """The table in the browser; see the script for what it does."""

        knobs = param.List()
        rows = param.String("{}")
        writable = param.Boolean(False)

        _esm = Path(__file__).with_name("knobs.js")
        write: Any = None  #: told of a name, what was typed, and whom to answer

        def _handle_msg(self, data: Mapping[str, Any]) -> None:
            name = str(data.get("name"))
            turns = None if pn.state.curdoc is None else Turns(pn.state.curdoc)

            def answer(error: Exception | None) -> None:
                found = {"name": name, "error": "" if error is None else str(error)}
                if turns is None:
                    self._send_msg(found)
                else:
                    turns.ask(lambda: self._send_msg(found))

            self.write(name, str(data.get("value")), answer)

    return KnobTable
