"""Time simulator runs: what a model adds, how much of the ideal workers reach, how soon they are back after a failure.

    python benchmarks/workers.py [--workers 2] [--runs 200] [--rounds 5]

"of ideal" is runs x 10 ms / workers over the time taken; "of bare" is the time of the same work as one long run in each
worker, measured in turns with it, over the time taken: it tells what handing out costs when something else uses the
cores as well.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _rows import Row, note

from lume_diff.blackbox import BlackBoxModel
from lume_diff.blackbox.runners.executors import ExecutorRunner
from lume_diff.blackbox.runners.pool import WorkerPool
from lume_diff.blackbox.runners.runner import InProcess, Runner
from lume_diff.blackbox.simulator import Simulator
from lume_diff.variables import TorchScalarVariable

RUN = 0.01  # [s]


class Busy(Simulator):
    """Take 10 ms, computing or asleep, as many times as asked, or go wrong once."""

    def run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
        """Do what the inputs say."""
        for _ in range(int(inputs.get("times", 0))):
            if inputs["asleep"]:
                time.sleep(RUN)
            else:
                end = time.perf_counter() + RUN
                while time.perf_counter() < end:
                    pass
        if "once" in inputs and not Path(inputs["once"]).exists():
            Path(inputs["once"]).touch()
            if inputs["what"] == "raise":
                raise ArithmeticError
            if inputs["what"] == "exit":
                os._exit(3)
            if inputs["what"] == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(100.0)
        return {"y": inputs.get("x", 0.0)}


def seconds(function: Callable[[], Any]) -> float:
    """Return how long a call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


@contextmanager
def runners(workers: int) -> Iterator[dict[str, Runner]]:
    """Open one runner of each kind, warm."""
    with (
        WorkerPool(Busy, workers) as pool,
        ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as processes,
        ThreadPoolExecutor(workers) as threads,
    ):
        found = {
            "in this process": InProcess(Busy),
            "WorkerPool": pool,
            "ProcessPoolExecutor": ExecutorRunner(Busy, processes),
            "ThreadPoolExecutor": ExecutorRunner(Busy, threads),
        }
        pool.start()
        for runner in found.values():
            runner.run_many([{"times": 5, "asleep": True}] * workers, ["y"])
        yield found


def efficiency(found: Mapping[str, Runner], workers: int, runs: int, rounds: int) -> None:
    """Print the share of the ideal throughput."""
    print(f"\n{runs} runs of 10 ms on {workers} workers{'of ideal':>20}{'best':>8}{'of bare':>9}")
    ideal = runs * RUN / workers
    for asleep in (False, True):
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in found if name != "in this process"}
        for _ in range(rounds):
            bare = [{"times": runs // workers, "asleep": asleep}] * workers
            for name, record in times.items():
                longest = seconds(lambda name=name, bare=bare: found[name].run_many(bare, ["y"]))
                batch = [{"times": 1, "asleep": asleep}] * runs
                record.append((longest, seconds(lambda name=name, batch=batch: found[name].run_many(batch, ["y"]))))
        for name, record in times.items():
            if name == "ThreadPoolExecutor" and not asleep:
                continue  # threads cannot compute at once
            share = [ideal / took for _, took in record]
            against = np.median([longest / took for longest, took in record])
            label = f"  {name}, {'asleep' if asleep else 'computing'}"
            note(
                Row(
                    f"{runs} runs of 10 ms on {workers} workers",
                    f"{label.strip()}, of bare",
                    100 * against,
                    "%",
                    more=True,
                )
            )
            print(f"{label:<39}{np.median(share):>8.1%}{max(share):>8.1%}{against:>9.1%}")


def overhead(found: Mapping[str, Runner], rounds: int) -> None:
    """Print the time of a call to a simulator that does nothing."""
    payloads = {
        "1 number": 1.0,
        "6 x 10 000 numbers": np.ones((6, 10_000)),
        "1000 x 1000 numbers": np.ones((1000, 1000)),
    }
    print(f"\n{'there and back [us]':<24}" + "".join(f"{name:>22}" for name in found))
    for label, value in payloads.items():
        count = 300 if isinstance(value, float) else 20
        row = []
        for runner in found.values():
            one = [{"x": value}]
            times = [seconds(lambda r=runner, p=one: r.run_many(p, ["y"])) for _ in range(count * rounds)]
            row.append(1e6 * float(np.median(times)))
        for name, spent in zip(found, row, strict=True):
            note(Row(f"there and back, {label}", name, spent, "us"))
        print(f"{label:<24}" + "".join(f"{time_us:>22.1f}" for time_us in row))


def calls(rounds: int) -> None:
    """Print what a model's call adds to a simulator in this process, for a function that takes about a microsecond."""
    titles = ("function", 10), ("model(...)", 12), ("set + get", 11), ("gradient", 10)
    print(f"\n{'a call beyond the function [us]':<34}" + "".join(f"{title:>{width}}" for title, width in titles))
    for n_in, n_out in ((2, 1), (3, 2), (5, 3)):
        names, outputs = [f"x{i}" for i in range(n_in)], [f"y{i}" for i in range(n_out)]

        def function(outputs: Sequence[str] = outputs, **inputs: float) -> dict[str, float]:
            total = sum(inputs.values())
            return {name: total * place for place, name in enumerate(outputs)}

        model = BlackBoxModel.from_function(
            function,
            inputs=[TorchScalarVariable(name=name, default_value=1.0, scale=0.1) for name in names],
            outputs=[TorchScalarVariable(name=name) for name in outputs],
        )
        steps, base = itertools.count(1), dict.fromkeys(names, 1.0)

        def fresh(steps: Iterator[int] = steps) -> dict[str, float]:
            return {"x0": 1.0 + 1e-6 * next(steps)}

        def call(model: BlackBoxModel = model, fresh: Any = fresh) -> None:
            model(fresh())

        def set_and_get(model: BlackBoxModel = model, fresh: Any = fresh, outputs: list[str] = outputs) -> None:
            model.set(fresh())
            model.get(outputs)

        def gradient(model: BlackBoxModel = model, fresh: Any = fresh) -> None:
            x = torch.tensor(fresh()["x0"], dtype=torch.float64, requires_grad=True)
            model({"x0": x})["y0"].backward()

        gradient()  # measures the noise
        own = least(functools.partial(function, **base), rounds)
        added = [least(work, rounds) - own for work in (call, set_and_get)] + [least(gradient, rounds) - 3 * own]
        for (title, _), spent in zip(titles[1:], added, strict=True):
            note(
                Row("a call beyond a function of a microsecond", f"{title}, {n_in} in, {n_out} out", 1e6 * spent, "us")
            )
        row = "".join(f"{1e6 * t:>{width}.1f}" for t, (_, width) in zip((own, *added), titles, strict=True))
        print(f"  {n_in} numbers in, {n_out} out".ljust(34) + row)


def least(function: Callable[[], Any], rounds: int, repeats: int = 500) -> float:
    """Return how long a call takes, the best of several rounds."""
    return min(seconds(lambda: [function() for _ in range(repeats)]) for _ in range(rounds)) / repeats


def recovery(workers: int, rounds: int) -> None:
    """Print the time from a failure to the result of the second try."""
    print("\nstart and recovery [s]")
    starts = []
    for _ in range(rounds):
        with WorkerPool(Busy, workers) as pool:
            starts.append(seconds(pool.start))
    print(f"  start of {workers} workers at once{np.median(starts):>20.2f}")
    with tempfile.TemporaryDirectory() as folder, WorkerPool(Busy, workers, timeout=2.0) as pool:
        pool.start()
        for what in ("raise", "exit", "kill", "hang"):
            times = []
            for number in range(rounds):
                point = {"what": what, "once": f"{folder}/{what}{number}"}
                times.append(seconds(lambda p=point: pool.run_many([p], ["y"])) - (2.0 if what == "hang" else 0.0))
            when = " after its timeout" if what == "hang" else ""
            note(Row("start and recovery", f"{what}{when}", float(np.median(times)), "s"))
            print(f"  {what + when:<40}{np.median(times):>8.3f}")


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    torch.set_num_threads(1)
    calls(arguments.rounds)
    with runners(arguments.workers) as found:
        efficiency(found, arguments.workers, arguments.runs, arguments.rounds)
        overhead(found, arguments.rounds)
    recovery(arguments.workers, arguments.rounds)


if __name__ == "__main__":
    main()
