"""Read, write, be refused and follow by p4p; prints what came of it as JSON."""

from __future__ import annotations

import json
import queue

import numpy as np
from p4p.client.thread import Context, RemoteError

VALUES = {"Q1.k1": 1.5, "turns": 7, "on": False, "title": "x" * 300, "wave": np.arange(5.0)}
REFUSED = {"Q1.k1": [11.0, float("nan"), 7.0], "turns": [101], "wave": [np.zeros(4)], "size": [1.0], "mode": [7]}


def plain(value: object) -> object:
    return value.tolist() if hasattr(value, "tolist") else value


with Context("pva", nt=False) as context:

    def read(name: str) -> object:
        value = context.get("T:" + name).value
        return plain(value.index) if name == "mode" else plain(value)

    followed: queue.Queue[float] = queue.Queue()
    subscription = context.monitor("T:size", lambda value: followed.put(value.value))
    first = followed.get(timeout=10.0)
    found = {"read": {name: read(name) for name in (*VALUES, "mode", "size")}}
    image = context.get("T:CAM:Image:ArrayData")
    beam = context.get("T:beam")
    found["image"] = [part.size for part in image.dimension]
    found["origin"] = {part.name: part.value for part in image.attribute}["Origin"]
    found["table"] = {name: len(column) for name, column in beam.value.items()}
    for name, value in VALUES.items():
        context.put("T:" + name, value, timeout=20.0)
    context.put("T:mode", {"value.index": 1}, timeout=20.0)
    found["written"] = {name: read(name) for name in (*VALUES, "mode", "size")}
    found["image_now"] = float(context.get("T:CAM:Image:ArrayData").value[7])
    found["followed"] = [first, followed.get(timeout=10.0)]
    found["refused"] = {}
    for name, values in REFUSED.items():
        for value in values:
            try:
                context.put("T:" + name, {"value.index": value} if name == "mode" else value, timeout=20.0)
            except RemoteError as error:
                found["refused"].setdefault(name, []).append(str(error))
    found["kept"] = {name: read(name) for name in REFUSED if name != "size"}
    subscription.close()
print(json.dumps(found))
