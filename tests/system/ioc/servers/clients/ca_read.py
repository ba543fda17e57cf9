"""Read channels by caproto: python ca_read.py NAME...; prints values by name as JSON."""

from __future__ import annotations

import json
import sys

from caproto.threading.client import Context

pvs = Context().get_pvs(*sys.argv[1:])
for pv in pvs:
    pv.wait_for_connection(timeout=10.0)
found = {}
for pv in pvs:
    answer = pv.read(timeout=10.0, data_type="time")
    value = answer.data if isinstance(answer.data, bytes) else answer.data.tolist()
    found[pv.name] = {
        "value": bytes(value).decode() if pv.name.endswith("ERROR") else value,
        "time": answer.metadata.timestamp,
        "severity": int(answer.metadata.severity),
    }
print(json.dumps(found))
