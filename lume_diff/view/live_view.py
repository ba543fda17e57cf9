"""LiveView: a page that shows a source to any number of browsers."""

from __future__ import annotations

import logging
import secrets
import socket
import threading
from collections.abc import Sequence
from typing import Any, Self

from lume_diff.errors import LumeDiffError, SimulatorError, ValidationError
from lume_diff.models import LUMEModel
from lume_diff.registry import every_plugin
from lume_diff.view.extension import check_extension, load_extension
from lume_diff.view.fan_out import FanOut
from lume_diff.view.model_source import ModelSource
from lume_diff.view.page import Page
from lume_diff.view.panels.panel import Panel
from lume_diff.view.session_source import SessionSource
from lume_diff.view.source import Source

LOG = logging.getLogger("lume_diff.view")
LOOPBACK = "127.0.0.1"
_LOOK, _UNUSED = 1000, 10_000  # [ms] how often closed pages are looked for, and after how long they are gone
_SHORTEST = 16  # characters of a token
_LATER = 3.0  # [s] without a new page until the next one is made ready


class LiveView:
    """Show a model or a server in the browser.

    Args:
        source: what to show, or a model, which is followed then.
        writable: of a model: whether pages may write to it once they were given the token.
        panels: kinds of panels; all that are installed if None.
        token: that unlocks writing on a page; one is made if None.
        rate: updates of a page per second, at most.
        sensitivity: of a model: whether derivatives are worked out also where they take runs of a simulator.

    Raises:
        MissingExtraError: if the package panel is not installed.
        ValidationError: for a token that is easily guessed.

    Example:
        >>> LiveView(machine).servable()  # doctest: +SKIP
    """

    def __init__(
        self,
        source: Source | LUMEModel,
        writable: bool = False,
        panels: Sequence[type[Panel]] | None = None,
        token: str | None = None,
        rate: float = 10.0,
        sensitivity: bool = False,
    ) -> None:
        check_extension()
        if token is not None and len(token) < _SHORTEST:
            raise ValidationError(f"the token has {len(token)} characters; expected {_SHORTEST} at least")
        if not rate > 0.0:
            raise ValidationError(f"rate={rate}; expected a positive number of updates per second")
        self._owns_source = isinstance(source, LUMEModel)
        if isinstance(source, LUMEModel):
            source = ModelSource(source, writable, sensitivity=sensitivity).start()
        self.source: Source = source
        self.token = token or secrets.token_urlsafe(18)
        self._panels: Sequence[type[Panel]] = every_plugin("panels") if panels is None else panels
        self._fan_out = FanOut(self.source, rate)
        self._pages: set[Page] = set()
        self._ready: tuple[Page, Any] | None = None
        self._later: threading.Timer | None = None
        self._stopped = False
        self._lock = threading.Lock()
        self._server: Any = None
        self._belongs_to = _document()  # with ``panel serve`` every page has a view of its own
        self._thread: threading.Thread | None = None

    @property
    def pages(self) -> int:
        """How many browser windows are open."""
        with self._lock:
            return len(self._pages)

    @property
    def frames(self) -> int:
        """How many frames were brought to the pages."""
        return self._fan_out.frames

    # -- one page --------------------------------------------------------------------------------------------

    def page(self) -> Any:
        """Return a new page, for the document that is being made."""
        import panel as pn

        with self._lock:
            ready, self._ready = self._ready, None
        page, template = self._page_and_template() if ready is None else ready
        document = pn.state.curdoc
        if document is not None:
            with self._lock:
                self._pages.add(page)
            page.open(document)
            document.on_session_destroyed(lambda context: self._left(page, document))
            self._make_ready_later()
        return template

    def _page(self) -> Page:
        source = SessionSource(self.source, self.token, "view")
        return Page(source, self._fan_out, self._panels, self.source.title, self.source.writable)

    def _page_and_template(self) -> tuple[Page, Any]:
        page = self._page()
        return page, page.template()

    def _make_ready(self) -> None:
        """Make the next page before somebody asks for it: the first takes seconds, as everything is imported for it.

        One that was made while no output had a value is not kept: its panels did not know what to begin with.
        """
        frame = self.source.latest()
        is_early = not any(frame.value(name) is not None for name in self.source.outputs)
        made = self._page_and_template()
        with self._lock:
            if self._ready is None and not self._stopped and not is_early:
                self._ready = made
                return
        made[0].close()

    def _make_ready_later(self) -> None:
        """Make the next page when nobody has asked for one for some time."""
        with self._lock:
            if self._later is not None:
                self._later.cancel()
            if self._server is not None and not self._stopped:
                self._later = threading.Timer(_LATER, self._make_ready)
                self._later.daemon = True
                self._later.start()

    def _left(self, page: Page, document: Any) -> None:
        with self._lock:
            self._pages.discard(page)
            is_last = not self._pages
        page.close()
        if is_last and self._belongs_to is document:
            self.stop()

    def servable(self) -> Any:
        """Show the panels in a notebook, or the page where ``panel serve`` runs this script or notebook."""
        import panel as pn

        load_extension()
        if pn.state.curdoc is not None:
            return self.page().servable(title=self.source.title)
        page = self._page()
        with self._lock:
            self._pages.add(page)
        column = page.column()
        page.open(None)
        return column

    # -- a server --------------------------------------------------------------------------------------------

    def start(self, address: str = LOOPBACK, port: int = 0, origins: Sequence[str] = ()) -> Self:
        """Serve the page, in a thread of its own; returns when it can be loaded.

        Args:
            address: to listen on; only this computer unless told otherwise.
            port: 0 for any that is free.
            origins: further ``host:port`` under which browsers may load the page, such as that of a proxy.

        Raises:
            SimulatorError: if it is served already, or was stopped.
            ValidationError: if the port is taken, or is none.
        """
        if self._server is not None or self._stopped:
            state = "was stopped" if self._stopped else "is served already"
            raise SimulatorError(f"this view {state}: make a new one")
        if not 0 <= port < 1 << 16:
            raise ValidationError(f"port={port}; expected 0 for any that is free, or up to 65535")
        self._make_ready()
        ready = threading.Event()
        failed: list[Exception] = []
        self._thread = threading.Thread(
            target=self._serve, args=(address, port, origins, ready, failed), name="view server", daemon=True
        )
        self._thread.start()
        ready.wait()
        if failed:
            raise failed[0]
        return self

    @property
    def url(self) -> str:
        """Where the page is."""
        if self._server is None:
            raise LumeDiffError("this view is not served: call start()")
        host = self._server.address or LOOPBACK
        return f"http://{f'[{host}]' if ':' in host else host}:{self._server.port}/"

    def stop(self) -> None:
        """Serve no more, and follow no more; may be called again."""
        server, self._server = self._server, None
        if server is not None:
            server.io_loop.add_callback(server.io_loop.stop)
        if self._thread is not None:
            self._thread.join()
        with self._lock:
            pages, self._pages = list(self._pages), set()
            self._stopped = True
            if self._later is not None:
                self._later.cancel()
            if self._ready is not None:
                pages.append(self._ready[0])
                self._ready = None
        for page in pages:
            page.close()
        self._fan_out.close()
        if self._owns_source:
            self.source.close()

    def __enter__(self) -> Self:
        return self if self._server is not None else self.start()

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def _serve(
        self, address: str, port: int, origins: Sequence[str], ready: threading.Event, failed: list[Exception]
    ) -> None:
        """Run the server until its loop is stopped."""
        import asyncio

        from panel.io.server import get_server

        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        loop.set_exception_handler(_told_of)
        logging.getLogger("bokeh.server.views.ws").addFilter(_is_news)
        try:
            server = get_server(
                self.page, port=port, address=address, websocket_origin=[*origins, *_own_origins(address, port)],
                title=self.source.title, start=False, show=False, admin=False,
                check_unused_sessions_milliseconds=_LOOK, unused_session_lifetime_milliseconds=_UNUSED,
            )  # fmt: skip
        except OSError as error:
            failed.append(ValidationError(f"{address}:{port} cannot be listened on: {error.strerror or error}"))
        except Exception as error:  # raised by `start`, which waits
            failed.append(error)
        if failed:
            ready.set()
            return
        for listening in server._http._sockets.values():
            # Connections inherit it: else the last, short part of each frame waits 40 ms for an acknowledgement.
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._server = server
        server.io_loop.add_callback(ready.set)
        server.start()
        server.io_loop.start()
        server.stop()
        loop.close()


def _told_of(loop: Any, context: dict[str, Any]) -> None:
    """Pass on what goes wrong in the server's loop, but for messages that come too late for pages that were closed."""
    from tornado.iostream import StreamClosedError
    from tornado.websocket import WebSocketClosedError

    if not isinstance(context.get("exception"), StreamClosedError | WebSocketClosedError):
        loop.default_exception_handler(context)


def _document() -> Any:
    import panel as pn

    return pn.state.curdoc


def _is_news(record: logging.LogRecord) -> bool:
    return "connection was closed" not in record.getMessage()


def _own_origins(address: str, port: int) -> list[str]:
    """Return the hosts under which a browser may load the page."""
    hosts = [address, "localhost"] if address in (LOOPBACK, "::1") else [address]
    return [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host in hosts]
