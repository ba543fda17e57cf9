"""HealthProbe: a page by HTTP that tells a supervisor whether the server is well."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from lume_diff.errors import SimulatorError

if TYPE_CHECKING:
    from lume_diff.ioc.runtime import Runtime

#: Returns whether all is well, and facts to show.
Look = Callable[[], tuple[bool, Mapping[str, Any]]]


class HealthProbe:
    """Answer ``GET /live`` and ``GET /health`` with 200 or 503 and facts as JSON.

    ``/live`` is 200 as long as requests are taken: restart the server when it is not. ``/health`` is 200 when the model
    has been evaluated and its last evaluation has worked: send nobody here before.

    Args:
        pages: by path, what is looked at.
        port: to listen on; 0 for any that is free.
        interface: to listen on.
    """

    def __init__(self, pages: Mapping[str, Look], port: int, interface: str = "127.0.0.1") -> None:
        self._pages, self._place = pages, (interface, port)
        self._server: ThreadingHTTPServer | None = None
        self.port = port

    def start(self) -> None:
        """Answer from now on.

        Raises:
            SimulatorError: if the port cannot be had.
        """

        class Handler(_Handler):
            looks = self._pages

        try:
            self._server = ThreadingHTTPServer(self._place, Handler)
        except (OSError, OverflowError) as error:
            raise SimulatorError(f"the health probe cannot listen on {self._place}: {error}") from None
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, name="health probe", daemon=True).start()

    def stop(self) -> None:
        """Answer no more; may be called again."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()


class _Handler(BaseHTTPRequestHandler):
    """Answer one request."""

    looks: Mapping[str, Look] = {}
    timeout = 5.0

    def do_GET(self) -> None:
        """Answer with a page."""
        look = self.looks.get(self.path.partition("?")[0].rstrip("/"))
        if look is None:
            self._answer(404, {"error": f"there is {', '.join(self.looks)}"})
            return
        is_well, facts = look()
        self._answer(200 if is_well else 503, facts)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: probes come every few seconds."""

    def _answer(self, code: int, facts: Mapping[str, Any]) -> None:
        page = json.dumps(facts).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        self.wfile.write(page)


def pages(runtime: Runtime) -> dict[str, Look]:
    """Return what a probe shows of a served model."""

    def facts() -> dict[str, Any]:
        evaluated = runtime.evaluated
        return {
            "is_running": runtime.is_running,
            "is_valid": runtime.is_valid,
            "cycle": runtime.cycle,
            "seconds": None if evaluated is None else evaluated.seconds,
            "last_error": runtime.last_error,
            "time": time.time(),
        }

    def live() -> tuple[bool, Mapping[str, Any]]:
        return runtime.is_running, facts()

    def health() -> tuple[bool, Mapping[str, Any]]:
        return runtime.is_running and runtime.is_valid, facts()

    return {"/live": live, "/health": health}
