"""Viewer: the panels of one page, and the event loop that they are updated in."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from lume_diff.view.frame import Frame
from lume_diff.view.turns import Turns

if TYPE_CHECKING:
    from bokeh.document import Document

    from lume_diff.view.panels.panel import Panel

LOG = logging.getLogger("lume_diff.view")
_OVERDUE = 2.0  # [s] after which a page is asked again whether it has got a frame


class Viewer:
    """Bring frames to the panels of one page.

    There is never more than one frame on its way to a page: the next is not sent before the page has said that it has
    got the last, and then it is the newest.

    Args:
        panels: to update together.
        document: that they are in; in a notebook there is none, and they are updated in the thread that has the frame.
        sent: told of each frame's number when it was sent to the page, which answers by `seen`; None where no page
            answers.
        grow: asked for one more panel, which it has added to the page, with each frame after the first has come. The
            browser gets the new panel and the frame as one message: Panel may send two in the wrong order.
    """

    def __init__(
        self,
        panels: Sequence[Panel],
        document: Document | None = None,
        sent: Callable[[int], None] | None = None,
        grow: Callable[[], Panel | None] | None = None,
    ) -> None:
        self.panels = list(panels)
        self._document, self._sent, self._grow = document, sent, grow
        self._turns = None if document is None else Turns(document)
        self._lock = threading.Lock()
        self._unprepared: set[Panel] = set()  # panels that cannot show what was prepared last
        self._hidden: set[Panel] = set()
        self._newest: Frame | None = None
        self._is_scheduled = False
        self._number, self._seen, self._asked = 0, 0, 0.0
        self._closed = False
        self._idle = threading.Event()
        self._idle.set()

    def prepare(self, frame: Frame) -> None:
        """Work out what will be shown; a panel for which that fails does not hold up the others."""
        failed = set()
        for panel in self.panels:
            try:
                panel.prepare(frame)
            except Exception:
                LOG.exception("panel %s could not prepare a frame", type(panel).__name__)
                failed.add(panel)
        self._unprepared = failed

    def show(self, frame: Frame) -> None:
        """Have a frame shown as soon as the page is ready for it."""
        with self._lock:
            self._newest = frame
        self._schedule()

    def wait_sent(self, timeout: float) -> None:
        """Wait until there is no frame left that the page could be sent, for a time at most [s]."""
        self._idle.wait(timeout)

    def seen(self, number: int) -> None:
        """Note that the page has got a frame."""
        with self._lock:
            self._seen = number
        self._schedule()

    def close(self) -> None:
        """Show nothing more."""
        with self._lock:
            self._closed, self._newest = True, None
        self._idle.set()
        self.panels = []

    def _schedule(self) -> None:
        with self._lock:
            is_waiting = self._sent is not None and self._seen < self._number
            is_overdue = is_waiting and time.monotonic() - self._asked > _OVERDUE
            if self._newest is None or self._is_scheduled or self._closed or (is_waiting and not is_overdue):
                return
            self._is_scheduled = True
            self._idle.clear()
        if self._turns is None:
            self._show()
            self._push()
        else:
            self._turns.ask(self._ask_again if is_overdue else self._show)

    def _ask_again(self) -> None:
        """Ask whether the page is there, and send nothing else: what was sent may have come before it listened."""
        with self._lock:
            self._is_scheduled = False
            self._idle.set()
            if self._closed or self._sent is None:
                return
            self._number += 1
            self._asked, number = time.monotonic(), self._number
        self._sent(number)

    def _show(self) -> None:
        try:
            self._send()
        finally:
            self._idle.set()

    def _send(self) -> None:
        """Update the panels, and have the page answer."""
        with self._lock:
            frame, self._newest = self._newest, None
            self._is_scheduled = False
            if frame is None or self._closed:
                return
            self._number += 1
            self._asked, number, has_come = time.monotonic(), self._number, self._seen > 0
        with self._together():
            for panel in self.panels:
                self._show_or_hide(panel, self._is_updated(panel, frame))
            added = self._grow() if self._grow is not None and has_come else None
            if self._sent is not None:
                self._sent(number)
        if added is not None:
            self.panels.append(added)

    def _is_updated(self, panel: Panel, frame: Frame) -> bool:
        if panel in self._unprepared:
            return False
        try:
            panel.update(frame)
        except Exception:
            LOG.exception("panel %s could not show a frame", type(panel).__name__)
            return False
        return True

    def _show_or_hide(self, panel: Panel, is_updated: bool) -> None:
        """Hide a panel that could not show a frame until it can: what it shows is old and does not look so."""
        if is_updated and panel in self._hidden:
            self._hidden.discard(panel)
            panel.view().visible = True
        elif not is_updated and panel not in self._hidden:
            self._hidden.add(panel)
            panel.view().visible = False

    def _together(self) -> contextlib.AbstractContextManager[Any]:
        """Have all that changes sent as one message."""
        if self._document is None:
            return contextlib.nullcontext()
        from panel.io.document import hold

        found: contextlib.AbstractContextManager[Any] = hold(self._document)
        return found

    def _push(self) -> None:
        """Send what has changed to a notebook."""
        import panel as pn

        pn.io.push_notebook(*(one.view() for one in self.panels))
