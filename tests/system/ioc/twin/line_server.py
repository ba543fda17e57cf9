"""A second control system, as one file: lines of JSON over TCP.

``{"id": 1, "get": ["a"]}``, ``{"id": 2, "put": {"a": 1}}``, ``{"id": 3, "follow": ["a"]}``; every answer has the id,
and what a follower is told has the name of the variable. Announced as an entry point of ``lume_diff.servers``.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import socketserver
import threading
from typing import Any, final

import numpy as np

from lume_diff.control.readings import Reading, Update
from lume_diff.errors import LumeDiffError
from lume_diff.ioc.served import ControlServer, Served


@final
class LineServer(ControlServer):
    """Serve every variable on the port of ``LINE_SERVER_PORT``."""

    def __init__(self, served: Served) -> None:
        super().__init__(served)
        self._peers: set[_Peer] = set()
        self._lock = threading.Lock()
        self._server: socketserver.ThreadingTCPServer | None = None

    def start(self) -> None:
        """Go online."""
        outer = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                peer = _Peer(outer.served, self.connection, f"somebody@{self.client_address[0]}")
                with outer._lock:
                    outer._peers.add(peer)
                try:
                    for line in self.rfile:
                        peer.asked(json.loads(line))
                finally:
                    with outer._lock:
                        outer._peers.discard(peer)

        socketserver.ThreadingTCPServer.allow_reuse_address = True
        address = self.served.interface, int(os.environ["LINE_SERVER_PORT"])
        self._server = socketserver.ThreadingTCPServer(address, Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, name="lines", daemon=True).start()

    def publish(self, update: Update) -> None:
        """Tell those that follow."""
        with self._lock:
            peers = list(self._peers)
        for peer in peers:
            for name, reading in update.readings.items():
                peer.tell(name, reading)

    def stop(self) -> None:
        """Go offline."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()
        with self._lock:
            peers = list(self._peers)
        for peer in peers:
            peer.close()


class _Peer:
    """One client."""

    def __init__(self, served: Served, connection: socket.socket, name: str) -> None:
        self._served, self._connection, self._name = served, connection, name
        self._followed: set[str] = set()
        self._lock = threading.Lock()

    def asked(self, request: dict[str, Any]) -> None:
        runtime, prefix = self._served.runtime, self._served.prefix
        if "put" in request:
            values = {name.removeprefix(prefix): value for name, value in request["put"].items()}

            def done(error: Exception | None, cycle: int) -> None:
                self._send(id=request["id"], error=None if error is None else str(error))

            try:
                runtime.write(values, self._name, done)
            except LumeDiffError as error:
                done(error, 0)
            return
        names = {name: name.removeprefix(prefix) for name in request.get("get") or request["follow"]}
        if "follow" in request:
            self._followed |= set(names.values())
        known = {name: _coded(runtime.reading(own)) for name, own in names.items() if own in runtime.variables}
        self._send(id=request["id"], readings=known)

    def tell(self, name: str, reading: Reading) -> None:
        if name in self._followed:
            self._send(name=self._served.prefix + name, reading=_coded(reading))

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def _send(self, **answer: Any) -> None:
        with self._lock:
            try:
                self._connection.sendall(json.dumps(answer).encode() + b"\n")
            except OSError:
                self._followed.clear()


def _coded(reading: Reading) -> dict[str, Any]:
    value = reading.value.tolist() if isinstance(reading.value, np.ndarray) else reading.value
    return {
        "value": value,
        "time": reading.time,
        "severity": int(reading.severity),
        "condition": reading.condition.value,
        "message": reading.message,
    }
