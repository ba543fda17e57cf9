"""Page: everything that one browser window shows."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lume_diff.view.browser import link_class, template_class
from lume_diff.view.fan_out import FanOut
from lume_diff.view.lock import lock
from lume_diff.view.panels.alarm_banner import AlarmBanner
from lume_diff.view.panels.panel import Panel
from lume_diff.view.session_source import SessionSource
from lume_diff.view.viewer import Viewer

if TYPE_CHECKING:
    from bokeh.document import Document
    from panel.viewable import Viewable

#: Where the keyboard is, for everybody to see: Panel's own mark is a dotted line of a pixel.
_FOCUS = """
:is(button, input, select, .bk-btn, .bk-input, .choices__inner):is(:focus-visible, :focus-within) {
  outline: 3px solid #0072b2 !important; outline-offset: 1px;
}
"""
_TEMPLATE = Path(__file__).with_name("page.html")
_AT_FIRST = 3  # panels that come with the page
_SLOT = 200  # [px] of a panel that is still to come


class Page:
    """Build the panels of one browser window, and bring frames to them while it is open.

    The first panels, which fill a screen, come with the page; of the others one comes with each frame after the first.

    Args:
        source: as this window sees it.
        fan_out: brings the frames.
        panels: kinds of panels; those that suit the source are shown, and the banner always.
        heading: of the page.
        needs_token: whether a token unlocks writing.
    """

    def __init__(
        self, source: SessionSource, fan_out: FanOut, panels: Sequence[type[Panel]], heading: str, needs_token: bool
    ) -> None:
        self._source, self._fan_out = source, fan_out
        self._heading, self._needs_token = heading, needs_token
        self._banner = AlarmBanner(source)
        self._panels = made_panels(source, panels)
        self._slots: deque[tuple[Any, Panel]] = deque()
        self._viewer: Viewer | None = None

    def template(self) -> Any:
        """Return the page for the browser."""
        import panel as pn

        page = template_class()(_TEMPLATE.read_text())
        link = link_class()()
        page.add_panel("link", link)
        lock_view = lock(self._source, self._needs_token)
        page.add_panel("lock", lock_view)
        page.add_panel("banner", self._banner.view())
        cards = [
            {"key": f"panel{number}", "title": panel.title, "wide": panel.wide}
            for number, panel in enumerate(self._panels)
        ]
        for number, (card, panel) in enumerate(zip(cards, self._panels, strict=True)):
            view = panel.view()  # made now, though it may come later
            if number >= _AT_FIRST:
                view = pn.Column(sizing_mode="stretch_width", min_height=_SLOT)
                self._slots.append((view, panel))
            page.add_panel(str(card["key"]), view)
        show_focus(lock_view, *(panel.view() for panel in self._panels))
        page.add_variable("heading", self._heading)
        page.add_variable("cards", cards)
        self._link = link
        return page

    def column(self) -> Any:
        """Return the panels below each other, for a notebook, which is a page already."""
        import panel as pn

        parts: list[Any] = [pn.pane.Markdown(f"## {self._heading}"), self._banner.view()]
        if self._needs_token:
            parts.insert(1, lock(self._source, True))
        for panel in self._panels:
            parts += [pn.pane.Markdown(f"### {panel.title}", margin=(10, 5, 0, 5)), panel.view()]
        return pn.Column(*parts, sizing_mode="stretch_width")

    def open(self, document: Document | None) -> None:
        """Bring frames to the page from now on, or to the output of a notebook, which has no document."""
        if document is None:
            self._viewer = Viewer([self._banner, *self._panels])
            self._fan_out.add(self._viewer)
            return

        def sent(number: int) -> None:
            self._link.sent = number

        viewer = Viewer([self._banner, *self._panels[:_AT_FIRST]], document, sent, self._next_panel)
        self._link.param.watch(lambda event: viewer.seen(event.new), "seen")
        self._viewer = viewer
        self._fan_out.add(viewer)

    def _next_panel(self) -> Panel | None:
        """Add the next panel to the page, and return it; None if all are there."""
        if not self._slots:
            return None
        slot, panel = self._slots.popleft()
        slot.append(panel.view())
        return panel

    def close(self) -> None:
        """Let everything go."""
        if self._viewer is not None:
            self._fan_out.remove(self._viewer)
            self._viewer.close()
            self._viewer = None
        for panel in (self._banner, *self._panels):
            panel.close()
        self._source.close()


def show_focus(*parts: Viewable) -> None:
    """Outline what the keyboard is on."""
    import panel as pn

    for part in parts:
        for widget in part.select(pn.widgets.Widget):
            widget.stylesheets = [*widget.stylesheets, _FOCUS]


def made_panels(source: SessionSource, panels: Sequence[type[Panel]]) -> list[Panel]:
    """Return the panels that have something to show, in the order of their places."""
    suited = [kind for kind in panels if kind is not AlarmBanner and kind.suits(source)]
    return [panel for kind in sorted(suited, key=lambda kind: kind.place) for panel in kind.for_page(source)]
