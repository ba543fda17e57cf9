"""Notice: the line of words above what a panel shows."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from panel.viewable import Viewable

_STYLES = {
    "": "padding:3px 10px;color:#333",
    "invalid": "padding:5px 10px;background:#4a4a4a;color:#fff;font-weight:bold",
    "note": "padding:5px 10px;background:#f3f3f3;color:#1a1a1a;border-left:5px solid #8a8a8a",
}


class Notice:
    """Say in words what the colours of a panel mean: that values do not hold, that the beam ends, that work goes on.

    Screen readers speak it; INVALID is white on dark with a sign before it, never by colour alone.
    """

    def __init__(self) -> None:
        import panel as pn

        self._pane = pn.pane.HTML("", sizing_mode="stretch_width", margin=(0, 5), visible=False)
        self._shown = ""

    def view(self) -> Viewable:
        """Return what is shown."""
        return self._pane

    def show(self, invalid: str = "", notes: tuple[str, ...] = ()) -> None:
        """Show why values do not hold, and other notes; nothing hides it.

        Args:
            invalid: why; empty if they hold.
            notes: short sentences.
        """
        lines = [("invalid", f"\u26a0 {invalid}")] if invalid else []
        lines += [("note", note) for note in notes if note]
        html = "".join(f'<div style="{_STYLES[kind]}">{escape(text)}</div>' for kind, text in lines)
        html = f'<div role="status" aria-live="polite" style="font-size:14px">{html}</div>' if html else ""
        if html != self._shown:
            self._shown = html
            self._pane.param.update(object=html, visible=bool(html))
