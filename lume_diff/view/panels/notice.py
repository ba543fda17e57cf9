"""Notice: the line of words above what a panel shows."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from lume_diff.control.readings import Severity
from lume_diff.view.alarms import COLOURS, Alarm
from lume_diff.view.panels.figures import TEXT_SIZE

if TYPE_CHECKING:
    from panel.viewable import Viewable

_FILL, _INK = COLOURS[Severity.INVALID]
_STYLES = {
    "invalid": f"padding:5px 10px;background:{_FILL};color:{_INK};font-weight:bold",
    "note": "padding:5px 10px;background:#f3f3f3;color:#1a1a1a;border-left:5px solid #8a8a8a",
}
_PLACE = {"flex": "1 1 300px"}  # beside a choice, or below it


class Notice:
    """Say in words what the colours of a panel mean: that values do not hold, that the beam ends, that work goes on.

    Screen readers speak it; INVALID has its sign and its age, and is not told by colour alone.
    """

    def __init__(self) -> None:
        import panel as pn

        self._pane = pn.pane.HTML("", sizing_mode="stretch_width", margin=(0, 5), visible=False, styles=_PLACE)
        self._shown = ""

    def view(self) -> Viewable:
        """Return what is shown."""
        return self._pane

    def show(self, alarm: Alarm | None = None, notes: Sequence[str] = ()) -> None:
        """Show why values do not hold, and other notes.

        Args:
            alarm: why; None if they hold.
            notes: short sentences.
        """
        lines = [] if alarm is None else [("invalid", f"{alarm.name} {alarm.text}".strip())]
        lines += [("note", note) for note in notes]
        html = "".join(f'<div style="{_STYLES[kind]}">{escape(text)}</div>' for kind, text in lines)
        html = f'<div role="status" aria-live="polite" style="font-size:{TEXT_SIZE}">{html}</div>' if html else ""
        if html != self._shown:
            self._shown = html
            self._pane.param.update(object=html, visible=bool(html))
