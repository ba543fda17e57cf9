"""Read, write, be refused and follow by caproto; prints what came of it as JSON."""

from __future__ import annotations

import json
import queue

from caproto import AccessRights, ChannelType
from caproto.threading.client import Context

VALUES = {
    "Q1.k1": [1.5],
    "turns": [7],
    "on": ["False"],
    "mode": ["high"],
    "title": b"short",
    "wave": [0.0, 1.0, 2.0, 3.0, 4.0],
}
REFUSED = {"Q1.k1": [[11.0], [float("nan")], [7.0]], "turns": [[101]], "wave": [[0.0, 1.0]], "mode": [[7]]}

context = Context()
pvs = dict(
    zip(
        (*VALUES, "size", "CAM:Image:ArrayData"),
        context.get_pvs(*("T:" + n for n in (*VALUES, "size", "CAM:Image:ArrayData"))),
        strict=True,
    )
)
for pv in pvs.values():
    pv.wait_for_connection(timeout=10.0)


def read(name: str) -> object:
    data = pvs[name].read(timeout=10.0).data
    return bytes(data).decode() if name == "title" else [float(x) for x in data]


followed: queue.Queue[float] = queue.Queue()
subscription = pvs["size"].subscribe(data_type="time")


def told(subscription: object, response: object) -> None:
    followed.put(float(response.data[0]))


subscription.add_callback(told)
first = followed.get(timeout=10.0)
found = {"read": {name: read(name) for name in (*VALUES, "size")}}
for name, value in VALUES.items():
    status = pvs[name].write(
        value, wait=True, timeout=20.0, data_type=ChannelType.STRING if name in ("on", "mode") else None
    )
    assert status.status.success, name
found["written"] = {name: read(name) for name in (*VALUES, "size")}
found["image_now"] = read("CAM:Image:ArrayData")[7]
found["followed"] = [first, followed.get(timeout=10.0)]
found["refused"] = {
    name: [pvs[name].write(value, wait=True, timeout=20.0).status.name for value in values]
    for name, values in REFUSED.items()
}
found["writable"] = [name for name, pv in pvs.items() if AccessRights.WRITE in pv.access_rights]
found["kept"] = {name: read(name) for name in REFUSED}
print(json.dumps(found))
