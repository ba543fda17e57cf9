"""Read, write, be refused and follow by pyepics; prints what came of it as JSON."""

from __future__ import annotations

import json
import queue

import epics

VALUES = {"Q1.k1": 1.5, "turns": 7, "on": 0, "mode": "high", "title": "x" * 300, "wave": [0.0, 1.0, 2.0, 3.0, 4.0]}
REFUSED = {"Q1.k1": [11.0, float("nan"), 7.0], "turns": [101], "mode": [7], "Q1.k1.DRVH": [50.0]}


def read(name: str) -> object:
    value = epics.caget("T:" + name, timeout=10.0, as_string=name == "title", use_monitor=False)
    return value.tolist() if hasattr(value, "tolist") else value


followed: queue.Queue[float] = queue.Queue()
size = epics.PV("T:size", auto_monitor=True, callback=lambda value, **_: followed.put(value))
first = followed.get(timeout=10.0)
found = {"read": {name: read(name) for name in (*VALUES, "size")}}
found["limits"] = epics.PV("T:Q1.k1").get_ctrlvars(timeout=10.0)
found["fields"] = {name: read("Q1.k1." + name) for name in ("DRVH", "DRVL", "EGU", "DESC", "HOPR")}
found["long string"] = epics.caget("T:title.VAL$", as_string=True)
for name, value in VALUES.items():
    epics.caput("T:" + name, value, wait=True, timeout=20.0)
found["written"] = {name: read(name) for name in (*VALUES, "size")}
found["image_now"] = float(epics.caget("T:CAM:Image:ArrayData")[7])
found["followed"] = [first, followed.get(timeout=10.0)]
for name, values in REFUSED.items():
    for value in values:
        epics.caput("T:" + name, value, wait=True, timeout=20.0)
found["kept"] = {name: read(name) for name in REFUSED}
found["writable"] = [
    name for name in (*VALUES, "size") if (pv := epics.PV("T:" + name)).wait_for_connection(10.0) and pv.write_access
]
print(json.dumps(found))
