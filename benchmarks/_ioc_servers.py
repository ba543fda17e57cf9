"""Servers to compare, each in a process of its own: ours, p4p with nothing around it, and lume-pva.

    python benchmarks/_ioc_servers.py KIND SHAPE ISOLATION PREFIX

KIND is ``pva``, ``ca``, ``both``, ``bare`` or ``lume-pva``; SHAPE a number of outputs, or ``image``. The process prints
``ready SECONDS``, what the server took from its making until it was online; then, at the end of its input, ``late``
and how late its handlers learnt of puts into ``other`` [ms].
"""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import Any

import numpy as np

PIXELS = 1000
BUSY = -1.0  # [s] of input x: the model computes for as long as this is negative
LATE: list[float] = []  # [ms]


def main(kind: str, shape: str, isolation: str, prefix: str) -> None:
    """Serve until the input ends."""
    start = {"bare": bare, "lume-pva": lume_pva}.get(kind, ours)
    stop, seconds = start(kind, shape, isolation, prefix)
    print("ready", seconds, flush=True)
    sys.stdin.read()
    print("late", *LATE, flush=True)
    stop()


def outputs(shape: str) -> list[str]:
    """Return the names of the outputs."""
    return ["image"] if shape == "image" else [f"y{number}" for number in range(int(shape))]


def arrived(value: float) -> None:
    """Note how late a put is that carries the time at which it was sent."""
    if value > 0.0:
        LATE.append(1e3 * (time.monotonic() - value))


def ours(kind: str, shape: str, isolation: str, prefix: str) -> tuple[Any, float]:
    """Serve a model."""
    import caproto.asyncio.server  # noqa: F401  (what imports take is left out for all servers)
    import p4p.server.raw  # noqa: F401

    from benchmarks._ioc_models import Fan
    from lume_diff.ioc.server import Server

    model = Fan(shape)
    begun = time.perf_counter()
    server = Server(model, prefix, ("pva", "ca") if kind == "both" else (kind,), isolation=isolation)
    runtime = server.runtime
    write = runtime.write

    def timed(values: Any, *args: Any) -> None:
        if "other" in values:
            arrived(values["other"])
        write(values, *args)

    runtime.write = timed  # type: ignore[method-assign]
    server.start()
    seconds = time.perf_counter() - begun
    server.wait_ready(120.0)
    return server.stop, seconds


def bare(kind: str, shape: str, isolation: str, prefix: str) -> tuple[Any, float]:
    """Serve with p4p alone, posting every output in the handler."""
    from p4p.nt import NTNDArray, NTScalar
    from p4p.server import Server, StaticProvider
    from p4p.server.raw import SharedPV

    begun = time.perf_counter()
    number = NTScalar("d", display=True, control=True, valueAlarm=True)
    pvs: dict[str, SharedPV] = {}
    ones = np.ones((PIXELS, PIXELS))

    class Handler:
        """Post what was put."""

        def __init__(self, name: str) -> None:
            self.name = name

        def put(self, pv: SharedPV, op: Any) -> None:
            """Post it, and every output."""
            value, now = float(op.value().raw.value), time.time()
            pv.post(value, timestamp=now)
            if self.name == "other":
                arrived(value)
            elif shape == "image":
                pvs["image"].post(value * ones, timestamp=now)
            else:
                for name in outputs(shape):
                    pvs[name].post(value, timestamp=now)
            op.done()

    provider = StaticProvider("bare")
    for name in ("x", "other", *outputs(shape)):
        is_image = name == "image"
        first = ones if is_image else 0.0
        handler = Handler(name) if name in ("x", "other") else None
        pvs[name] = SharedPV(handler=handler, nt=NTNDArray() if is_image else number, initial=first)
        provider.add(prefix + name, pvs[name])
    server = Server(providers=[provider])
    return server.stop, time.perf_counter() - begun


def lume_pva(kind: str, shape: str, isolation: str, prefix: str) -> tuple[Any, float]:
    """Serve with lume-pva, which has to be on the path."""
    from lume.model import LUMEModel
    from lume.variables import ScalarVariable
    from lume_pva.runner import PutMode, Runner

    class Fan(LUMEModel):
        """Give every output the value of the input."""

        def __init__(self) -> None:
            self._variables = {name: ScalarVariable(name=name, read_only=True) for name in outputs(shape)}
            self._variables |= {name: ScalarVariable(name=name, default_value=0.0) for name in ("x", "other")}
            self._values = {"x": 0.0, "other": 0.0}

        @property
        def supported_variables(self) -> dict[str, Any]:
            """Return the variables."""
            return self._variables

        def _get(self, names: list[str]) -> dict[str, Any]:
            return {name: self._values.get(name, self._values["x"]) for name in names}

        def _set(self, values: dict[str, Any]) -> None:
            self._values |= values

        def reset(self) -> None:
            """Start again."""
            self._values = {"x": 0.0, "other": 0.0}

    model = Fan()
    begun = time.perf_counter()
    config = Runner.generate_config(model, prefix, put_mode=PutMode.Complete)
    config["protocol"] = ["pva"]
    runner = Runner(model, config=config)
    threading.Thread(target=runner.run, daemon=True).start()
    return lambda: os._exit(0), time.perf_counter() - begun


if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    main(*sys.argv[1:])
