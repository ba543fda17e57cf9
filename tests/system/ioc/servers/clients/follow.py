"""Follow an image and say so: python follow.py pva|ca; stopped by whoever has started it."""

from __future__ import annotations

import sys
import time

NAME = "T:CAM:Image:ArrayData"


def told(*_: object, **__: object) -> None:
    print("following", flush=True)


if sys.argv[1] == "pva":
    from p4p.client.thread import Context

    context = Context("pva", nt=False)
    held = context.monitor(NAME, told)
else:
    from caproto.threading.client import Context as CAContext

    (pv,) = CAContext().get_pvs(NAME)
    pv.wait_for_connection(timeout=10.0)
    held = pv.subscribe()
    held.add_callback(told)
time.sleep(100.0)
