"""Browsers without a screen: they load the page, take every patch and acknowledge frames, as the real ones do.

``python benchmarks/_view_clients.py URL COUNT SECONDS`` prints the frames a second that each client got, as JSON.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
import urllib.request

from tornado.httpclient import HTTPRequest
from tornado.websocket import websocket_connect

_EVENT = {"type": "event", "name": "document_ready", "values": {"type": "map"}}
_READY = {"kind": "MessageSent", "msg_type": "bokeh_event", "msg_data": _EVENT}


class Client:
    """One page that is open."""

    def __init__(self, url: str) -> None:
        self.url, self.frames, self.size = url, 0, 0

    async def follow(self, seconds: float) -> None:
        """Load the page and follow it for some time [s]."""
        html = await asyncio.to_thread(lambda: urllib.request.urlopen(self.url, timeout=300.0).read().decode())
        token = re.search(r'"token":\s*"([^"]+)"', html)
        if token is None:
            raise RuntimeError("the page has no token")
        asked = HTTPRequest(self.url.replace("http", "ws", 1) + "ws", connect_timeout=300.0, request_timeout=300.0)
        line = await websocket_connect(asked, subprotocols=["bokeh", token.group(1)], max_message_size=1 << 28)
        line.protocol.set_nodelay(True)  # as browsers do: small messages are not held back
        await self._receive(line)  # that the server is ready
        await self._ask(line, "PULL-DOC-REQ", {})
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            header, content = await self._receive(line)
            if header["msgtype"] == "PULL-DOC-REPLY":
                await self._ask(line, "PATCH-DOC", {"events": [_READY]})
                for model, number in _come(content["doc"]):
                    await self._acknowledge(line, model, number)
            for event in content.get("events", ()):
                if event.get("kind") == "ModelChanged" and event.get("attr") == "sent":
                    self.frames += 1
                    await self._acknowledge(line, event["model"]["id"], event["new"])
        line.close()

    async def _receive(self, line) -> tuple[dict, dict]:
        header = json.loads(await asyncio.wait_for(line.read_message(), 300.0))
        await line.read_message()
        text = await line.read_message()
        for _ in range(2 * header.get("num_buffers", 0)):
            self.size += len(await line.read_message())
        self.size += len(text)
        return header, json.loads(text)

    async def _acknowledge(self, line, model: str, number: int) -> None:
        event = {"kind": "ModelChanged", "model": {"id": model}, "attr": "seen", "new": number}
        await self._ask(line, "PATCH-DOC", {"events": [event]})

    async def _ask(self, line, kind: str, content: dict) -> None:
        for part in ({"msgid": str(time.monotonic_ns()), "msgtype": kind}, {}, content):
            await line.write_message(json.dumps(part))


def _come(found: object) -> list[tuple[str, int]]:
    """Return what acknowledges, and the number of the frame that came with the page, if one did."""
    waiting, come = [found], []
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            if "sent" in one.get("attributes", {}):
                come.append((one["id"], one["attributes"]["sent"]))
            waiting.extend(one.values())
        elif isinstance(one, list):
            waiting.extend(one)
    return come


async def crowd(url: str, count: int, seconds: float) -> list[Client]:
    """Open pages and follow them all."""
    clients = [Client(url) for _ in range(count)]
    await asyncio.gather(*(one.follow(seconds) for one in clients))
    return clients


if __name__ == "__main__":
    place, number, duration = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    done = asyncio.run(crowd(place, number, duration))
    print(json.dumps([[one.frames / duration, one.size / duration] for one in done]))
