"""Time what a model adds to what it wraps: a network, many variables, a chain; on one torch thread.

    python benchmarks/models.py [--rounds 9]

Every row compares two things that are timed in turns within one run, the best of several rounds each, so that what
else the machine does hits both alike.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from _rows import Row, note
from torch import nn

from lume_diff.models import BunchFromMoments, CheetahModel, StagedModel, TorchModel
from lume_diff.particles import TorchParticleGroup
from lume_diff.variables import TorchScalarVariable

F64 = torch.float64
Work = Callable[[], object]


def best(works: dict[str, Work], rounds: int, budget: float = 0.05) -> dict[str, float]:
    """Return the shortest CPU time [s] of each piece of work, all of them timed in turns."""
    repeats = {}
    for name, work in works.items():
        work()
        start = time.process_time()
        work()
        repeats[name] = max(1, int(budget / max(time.process_time() - start, 1e-7)))
    found = dict.fromkeys(works, float("inf"))
    for _ in range(rounds):
        for name, work in works.items():
            start = time.process_time()
            for _ in range(repeats[name]):
                work()
            found[name] = min(found[name], (time.process_time() - start) / repeats[name])
    return found


def show(title: str, times: dict[str, float], base: str) -> None:
    """Print a table of times, of what they add to the base, and of ratios to it."""
    print(f"\n{title}")
    for name, seconds in times.items():
        added, ratio = (seconds - times[base]) * 1e6, seconds / times[base]
        if name != base:
            note(Row(title, name, 1e6 * seconds, "us", base, 1e6 * times[base]))
        print(f"  {name:<44}{seconds * 1e6:>12.1f} us{added:>+12.1f} us{ratio:>9.2f} x")


def network(n_inputs: int) -> tuple[nn.Module, TorchModel]:
    """Return a network and the model of it."""
    net = nn.Sequential(nn.Linear(n_inputs, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 5)).double()
    net.requires_grad_(False)
    inputs = [TorchScalarVariable(name=f"x{i}", default_value=0.0, value_range=(-5, 5)) for i in range(n_inputs)]
    return net, TorchModel(net, inputs, [TorchScalarVariable(name=f"y{i}") for i in range(5)])


def bench_network(n_inputs: int, rounds: int) -> None:
    """Set and get against the raw network."""
    net, model = network(n_inputs)
    row = torch.zeros(1, n_inputs, dtype=F64)
    values = dict.fromkeys(model.input_names, 0.1)
    tensors = {name: torch.tensor(0.1, dtype=F64) for name in values}
    outputs = model.output_names

    def set_and_get() -> None:
        model.set(values)
        model.get(outputs)

    works: dict[str, Work] = {
        "raw network": lambda: net(row),
        "model(numbers)": lambda: model(values),
        "model(tensors)": lambda: model(tensors),
        "set + get of the outputs": set_and_get,
    }
    show(f"network, {n_inputs} inputs, 5 outputs", best(works, rounds), "raw network")


def wide_model(count: int) -> TorchModel:
    """Return a model of many variables, half of them outputs."""
    inputs = [TorchScalarVariable(name=f"x{i}", default_value=0.0) for i in range(count // 2)]
    return TorchModel(nn.Identity(), inputs, [TorchScalarVariable(name=f"y{i}") for i in range(count // 2)])


def bench_get(rounds: int) -> None:
    """Reading everything, for more and more variables."""
    models = {count: wide_model(count) for count in (250, 500, 1000, 2000, 4000)}
    times = best({f"get of {count} variables": model.get for count, model in models.items()}, rounds)
    show("get, once it was computed", times, "get of 1000 variables")

    def fresh(model: TorchModel) -> Work:
        def work() -> None:
            model.set({"x0": 1.0})
            model.get()

        return work

    works = {f"set of 1 + get of {count} variables": fresh(model) for count, model in models.items()}
    show("get, right after a write", best(works, rounds), "set of 1 + get of 1000 variables")


def bench_reset(rounds: int) -> None:
    """A reset against a forward call."""
    net, model = network(10)
    row = torch.zeros(1, 10, dtype=F64)
    runs = model.runs
    model.reset()
    print(f"\nreset took {model.runs - runs} runs")

    def reset_and_get() -> None:
        model.reset()
        model.get("y0")

    works: dict[str, Work] = {"raw network": lambda: net(row), "reset": model.reset, "reset + get": reset_and_get}
    show("reset, 10 inputs", best(works, rounds), "raw network")


def chain_and_line(n_particles: int) -> tuple[StagedModel, CheetahModel]:
    """Return three stages of 20 elements, and the same 60 elements as one line."""
    import cheetah

    def t(value: float) -> torch.Tensor:
        return torch.tensor(value, dtype=F64)

    def cells(stage: int) -> list[cheetah.Element]:
        found: list[cheetah.Element] = []
        for cell in range(5):
            for sign in (1, -1):
                name = f"{stage}_{cell}_{'FD'[sign < 0]}"
                found += [
                    cheetah.Quadrupole(t(0.2), t(2.0 * sign), name=f"Q{name}"),
                    cheetah.Drift(t(0.8), name=f"D{name}"),
                ]
        return found

    twiss = {"norm_emit_x": 1e-6, "norm_emit_y": 1e-6, "beta_x": 5.0, "beta_y": 3.0}
    source = BunchFromMoments(n_particles, mean_energy=1e8, sigma_energy=1e5, sigma_t=1e-12, charge=1e-10, **twiss)
    bunch: TorchParticleGroup = source.get("final_particles")
    line = CheetahModel(cheetah.Segment([e for s in range(3) for e in cells(s)], name="line"), bunch)
    stages, incoming = {}, bunch
    for stage in range(3):
        stages[f"s{stage}"] = CheetahModel(cheetah.Segment(cells(stage), name=f"s{stage}"), incoming)
        incoming = stages[f"s{stage}"].get("final_particles")
    return StagedModel(stages), line


def bench_chain(n_particles: int, rounds: int) -> None:
    """A chain against the same elements in one line."""
    chain, line = chain_and_line(n_particles)
    chain.get("final.sigma_x")  # what is committed upstream serves calls that change something downstream
    line.get("final.sigma_x")
    settings = iter(range(10**9))

    def forward(model: StagedModel | CheetahModel, knob: str) -> Work:
        return lambda: model({knob: 2.0 + 1e-6 * next(settings)}, outputs=["final.sigma_x"])

    def backward(model: StagedModel | CheetahModel, knob: str) -> Work:
        def work() -> None:
            k1 = torch.tensor(2.0 + 1e-6 * next(settings), dtype=F64, requires_grad=True)
            model({knob: k1}, outputs=["final.sigma_x"])["final.sigma_x"].backward()

        return work

    for make, what in ((forward, "forward"), (backward, "forward and backward")):
        works: dict[str, Work] = {
            "one line, a knob at the start": make(line, "Q0_0_F.k1"),
            "three stages, a knob of the first": make(chain, "Q0_0_F.k1"),
            "three stages, a knob of the last": make(chain, "Q2_0_F.k1"),
        }
        title = f"chain of 3 x 20 elements, {n_particles} particles, {what}"
        show(title, best(works, rounds, 0.2), "one line, a knob at the start")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--particles", type=int, default=10_000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread, float64: time, added to the base, ratio to it")
    bench_network(10, arguments.rounds)
    bench_network(50, arguments.rounds)
    bench_get(arguments.rounds)
    bench_reset(arguments.rounds)
    bench_chain(arguments.particles, arguments.rounds)


if __name__ == "__main__":
    main()
