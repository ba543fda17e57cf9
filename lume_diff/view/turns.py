"""Turns: what other threads have done in the event loop that a page belongs to."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bokeh.document import Document

LOG = logging.getLogger("lume_diff.view")
_AGAIN = 0.05  # [s] until a page that is still being made is looked at again


class Turns:
    """Have work done where a document may be changed, asked for from any thread.

    Bokeh's ``add_next_tick_callback`` tells of a callback by an event of the document, which is lost if another thread
    adds it just while Panel holds the document's events: the page would wait for ever.

    Args:
        document: of the page; to be made in its event loop.
    """

    def __init__(self, document: Document) -> None:
        self._document = document
        self._tasks: set[asyncio.Task[None]] = set()
        try:
            self._loop: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:  # no loop turns here, such as in a test
            self._loop = None

    def ask(self, work: Callable[[], Any]) -> None:
        """Have work done soon; returns at once."""
        if self._loop is None:
            self._document.add_next_tick_callback(work)
            return
        try:
            self._loop.call_soon_threadsafe(self._begin, self._loop, work)
        except RuntimeError:
            LOG.debug("the server of a page has stopped")

    def _begin(self, loop: asyncio.AbstractEventLoop, work: Callable[[], Any]) -> None:
        context: Any = self._document.session_context
        if context is None or context.destroyed:
            return
        if context.session is None or self._is_loading(context.session):
            loop.call_later(_AGAIN, self._begin, loop, work)
            return
        task = loop.create_task(self._do(context, work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _is_loading(self, session: Any) -> bool:
        """Tell whether the browser may have the document already while Panel still drops what changes in it."""
        from panel.io.state import state

        return bool(session._subscribed_connections) and not state._connected.get(self._document)

    async def _do(self, context: Any, work: Callable[[], Any]) -> None:
        from panel.io.state import set_curdoc

        async def locked(document: Document) -> None:
            with set_curdoc(document):
                work()

        try:
            await context.with_locked_document(locked)
        except Exception:
            if not context.destroyed:
                LOG.exception("a page could not be changed")
