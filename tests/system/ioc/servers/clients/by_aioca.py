"""Read, write, be refused and follow by aioca; prints what came of it as JSON."""

from __future__ import annotations

import asyncio
import json

import aioca

VALUES = {"Q1.k1": 1.5, "turns": 7, "on": 0, "mode": 1, "wave": [0.0, 1.0, 2.0, 3.0, 4.0]}
REFUSED = {"Q1.k1": [11.0, float("nan"), 7.0], "turns": [101], "wave": [[0.0, 1.0]], "size": [1.0], "mode": [7]}


async def read(name: str) -> object:
    value = await aioca.caget("T:" + name, timeout=10.0)
    return value.tolist() if hasattr(value, "tolist") else value


async def main() -> None:
    followed: asyncio.Queue[float] = asyncio.Queue()
    aioca.camonitor("T:size", lambda value: followed.put_nowait(float(value)))
    first = await asyncio.wait_for(followed.get(), 10.0)
    found = {"read": {name: await read(name) for name in (*VALUES, "size")}}
    found["title"] = await aioca.caget("T:title", datatype=aioca.DBR_CHAR_STR)
    for name, value in VALUES.items():
        await aioca.caput("T:" + name, value, wait=True, timeout=20.0)
    await aioca.caput("T:title", "x" * 300, datatype=aioca.DBR_CHAR_STR, wait=True)
    found["written"] = {name: await read(name) for name in (*VALUES, "size")}
    found["title_now"] = await aioca.caget("T:title", datatype=aioca.DBR_CHAR_STR)
    found["image_now"] = float((await aioca.caget("T:CAM:Image:ArrayData"))[7])
    found["followed"] = [first, await asyncio.wait_for(followed.get(), 10.0)]
    found["refused"] = {}
    for name, values in REFUSED.items():
        for value in values:
            done = await aioca.caput("T:" + name, value, wait=True, timeout=20.0, throw=False)
            if not done.ok:
                found["refused"].setdefault(name, []).append(str(done))
    found["kept"] = {name: await read(name) for name in REFUSED if name != "size"}
    print(json.dumps(found))


aioca.run(main())
