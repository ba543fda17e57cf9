"""What a model as prior mean saves Xopt, and what it costs where the model misleads, on paired seeds.

    python benchmarks/prior_mean.py --case near --arm none --arm trust --seeds 0:8 --store prior_mean.jsonl
    python benchmarks/prior_mean.py --show --store prior_mean.jsonl

Quadrupoles of ±8 1/m² focus an asymmetric beam; the objective is log10 of its size. The machine is the model's line
with hidden errors; its true optimum is found by many starts. All arms of a seed share errors and 3 random first points.
Every run is one line of the store and is not made again: a run that is cut off goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

import cheetah
import numpy as np
import pandas as pd
import torch
from _rows import Row, note
from botorch.generation.gen import gen_candidates_scipy
from scipy import stats
from xopt import VOCS, Evaluator, Xopt
from xopt.generators.bayesian import UpperConfidenceBoundGenerator
from xopt.generators.bayesian.models.standard import StandardModelConstructor
from xopt.numerical_optimizer import LBFGSOptimizer

from lume_diff import CheetahModel
from lume_diff.calibration import (
    ModelMean,
    Normal,
    ParallelLBFGSOptimizer,
    PriorMeanModelConstructor,
    Scale,
    vocs_from_model,
)
from lume_diff.calibration.prior_mean.model_mean import Response

D = torch.float64
LIMIT, FIRST = 8.0, 3
CASES = ("near", "far", "offsets", "negated")
#: No prior; the model in Xopt's constructor; in ours without trust, and with; learning scales without trust, and with.
ARMS = ("none", "xopt", "fixed", "trust", "unjudged", "learned")
OBJECTIVE = "log_size"
#: Searches of the acquisition function, with limits of time that are never reached, so that the load does not count.
XOPTS, OURS = "Xopt's search", "ParallelLBFGSOptimizer"
SEARCHES = {XOPTS: LBFGSOptimizer(max_time=600.0), OURS: ParallelLBFGSOptimizer(max_time=600.0)}
#: What is wanted: share of runs that arrive [%] and of evaluations, error of scales, regret added by a model that
#: misleads, cost of a step.
REACHED, LEAST, SCALES = {"near": 95.0, "far": 90.0}, {"near": 0.2}, {"far": 0.06}
ADDED, COST = {"offsets": 0.05, "negated": 0.05}, {"fixed": 2.0, "learned": 3.0}


def line(quadrupoles: int) -> CheetahModel:
    """Return a line of quadrupoles and drifts with a beam that differs in x and y."""
    t = lambda value: torch.tensor(value, dtype=D)  # noqa: E731
    elements: list[cheetah.Element] = []
    for i in range(quadrupoles):
        elements.append(cheetah.Quadrupole(t(0.1), t(0.0), name=f"Q{i + 1}", dtype=D))
        elements.append(cheetah.Drift(t(0.6), name=f"D{i + 1}", dtype=D))
    beam = cheetah.ParameterBeam.from_twiss(
        beta_x=t(8.0), alpha_x=t(1.0), emittance_x=t(4e-8), beta_y=t(3.0), alpha_y=t(-1.0), emittance_y=t(1e-8),
        energy=t(1e8), dtype=D,
    )  # fmt: skip
    names = [f"Q{i + 1}.k1" for i in range(quadrupoles)]
    return CheetahModel(cheetah.Segment(elements), beam, controls=names, outputs=["final.sigma_x", "final.sigma_y"])


def log_size(sigma_x: torch.Tensor, sigma_y: torch.Tensor) -> torch.Tensor:
    """Return log10 of the rms size [log10 m]."""
    return 0.5 * torch.log10(0.5 * (sigma_x.square() + sigma_y.square()))


def negated(sigma_x: torch.Tensor, sigma_y: torch.Tensor) -> torch.Tensor:
    """Return what a model with the wrong sign expects of ``log_size``."""
    return -7.0 - log_size(sigma_x, sigma_y)


class Machine:
    """The line with hidden errors of its strengths.

    Args:
        model: the line.
        case: ``near`` (scales 5 % off), ``far`` (30 %), ``offsets`` (sigma 5 1/m²), ``negated`` (5 %).
        seed: of the errors.
    """

    def __init__(self, model: CheetahModel, case: str, seed: int) -> None:
        self.names = [name for name in model.input_names if name.endswith(".k1")]
        random = np.random.default_rng([seed, 1])
        draw = torch.as_tensor(random.standard_normal(len(self.names)))
        self.scale = 1.0 + {"near": 0.05, "far": 0.3, "negated": 0.05}.get(case, 0.0) * draw
        self.offset = (5.0 if case == "offsets" else 0.0) * draw
        self.response: Response = model.tensor_function(self.names, ["final.sigma_x", "final.sigma_y"])

    def __call__(self, k1: torch.Tensor) -> torch.Tensor:
        """Return the objective, ``(*batch,)``, at settings ``(*batch, d)`` [1/m²]."""
        return log_size(*self.response(k1 * self.scale + self.offset).unbind(-1))

    def best(self) -> float:
        """Return the true optimum, by many starts."""
        sobol = torch.quasirandom.SobolEngine(len(self.names), scramble=True, seed=0)
        starts = LIMIT * (2.0 * sobol.draw(4096, dtype=D) - 1.0)
        with torch.no_grad():
            starts = starts[self(starts).argsort()[:40]].unsqueeze(1)
        for keep in (40, 3):
            points, values = gen_candidates_scipy(starts[:keep], lambda x: -self(x[:, 0]), -LIMIT, LIMIT)
            starts = points[values.argsort(descending=True)].detach()
        return -float(values.max())


def constructor(arm: str, model: CheetahModel, names: Sequence[str], case: str) -> StandardModelConstructor:
    """Return what builds the Gaussian processes of an arm."""
    if arm == "none":
        return StandardModelConstructor()
    trainable = [Scale(name, Normal(1.0, 0.3)) for name in names]
    mean = ModelMean(
        model, names, ["final.sigma_x", "final.sigma_y"], negated if case == "negated" else log_size, trainable
    )
    means = {"mean_modules": {OBJECTIVE: mean}}
    if arm == "xopt":
        return StandardModelConstructor(**means)
    learns = [OBJECTIVE] if arm in ("unjudged", "learned") else []
    return PriorMeanModelConstructor(**means, trainable_mean_keys=learns, trust=arm in ("trust", "learned"))


def vocs_of(model: CheetahModel, names: Sequence[str]) -> VOCS:
    """Return variables and objective."""
    sizes = ["final.sigma_x", "final.sigma_y"]
    ranges = dict.fromkeys(names, (-LIMIT, LIMIT))
    return vocs_from_model(model, ranges, {OBJECTIVE: "MINIMIZE"}, outputs={OBJECTIVE: (sizes, log_size)})


def generator_of(vocs: VOCS, gp: StandardModelConstructor, optimizer: LBFGSOptimizer) -> UpperConfidenceBoundGenerator:
    """Return Xopt's generator as it is, but for its search."""
    return UpperConfidenceBoundGenerator(vocs=vocs, gp_constructor=gp, numerical_optimizer=optimizer)


def run(case: str, arm: str, seed: int, quadrupoles: int, steps: int, stop: bool = False) -> dict[str, object]:
    """Optimise one machine and return what happened; with ``stop`` to the optimum, and 10 points to learn from."""
    model = line(quadrupoles)
    machine = Machine(model, case, seed)
    best = machine.best()
    names = machine.names
    vocs = vocs_of(model, names)
    evaluator = Evaluator(
        function=lambda settings: {OBJECTIVE: float(machine(torch.tensor([settings[name] for name in names], dtype=D)))}
    )
    gp = constructor(arm, model, names, case)
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - what Xopt and botorch draw from
    optimizer = LBFGSOptimizer(max_time=None)  # no clock ends it: runs do not depend on the load
    X = Xopt(evaluator=evaluator, generator=generator_of(vocs, gp, optimizer))
    random = np.random.default_rng([seed, 2])
    X.evaluate_data([dict(zip(names, row, strict=True)) for row in random.uniform(-LIMIT, LIMIT, (FIRST, len(names)))])
    seconds, decisions = [], []
    for _ in range(steps):
        start = time.process_time()
        X.step()
        seconds.append(round(time.process_time() - start, 3))
        is_known = arm not in ("unjudged", "learned") or len(X.data) > 10
        if stop and is_known and X.data[OBJECTIVE].min() - best <= 0.1:
            break
    found: dict[str, object] = {}
    if isinstance(gp, PriorMeanModelConstructor):
        decisions = [round(d.advantage, 2) for d in gp.decisions]
        found["trusted"] = [d.trusted for d in gp.decisions]
        if gp.trainable_mean_keys:
            found["scale_error"] = [
                float(np.mean([abs(v.value - float(s)) for v, s in zip(d.learned, machine.scale, strict=True)]))
                for d in gp.decisions
            ]
    values = X.data[OBJECTIVE].to_numpy()
    regret = (np.minimum.accumulate(values) - best)[FIRST - 1 :]
    return {
        **{"case": case, "arm": arm, "seed": seed, "quadrupoles": quadrupoles, "best": best},
        **{"regret": [round(float(r), 4) for r in regret], "seconds": seconds, "advantage": decisions, **found},
    }


def evaluations(regret: Sequence[float], within: float) -> int:
    """Return after how many evaluations a run was within reach of the optimum; one more than made if never."""
    return next((i for i, value in enumerate(regret) if value <= within), len(regret))


def ratio(pairs: Sequence[tuple[dict, dict]], within: float) -> tuple[float, float, float]:
    """Return how many evaluations it takes to come within reach, as a share of those without a prior.

    The geometric mean of the pairs with its upper 90 % bound (Student), and the share of the sums. A run that never
    comes counts one more than it made; one that came with the first points counts as one.
    """
    counts = np.array([[max(1, evaluations(row["regret"], within)) for row in pair] for pair in pairs], dtype=float)
    if len(counts) < 2:
        return np.nan, np.nan, np.nan
    logs = np.log(counts[:, 0] / counts[:, 1])
    error = stats.t.ppf(0.9, len(logs) - 1) * logs.std(ddof=1) / len(logs) ** 0.5
    own, plain = counts.sum(0)
    return float(np.exp(logs.mean())), float(np.exp(logs.mean() + error)), float(own / plain)


def added_regret(pairs: Sequence[tuple[dict, dict]]) -> tuple[float, float]:
    """Return the mean regret at the end above that without a prior, and its upper 95 % bound (Student)."""
    differences = np.array([a["regret"][-1] - b["regret"][-1] for a, b in pairs])
    if len(pairs) < 2:
        return np.nan, np.nan
    error = stats.t.ppf(0.95, len(pairs) - 1) * differences.std(ddof=1) / len(pairs) ** 0.5
    return float(differences.mean()), float(differences.mean() + error)


def note_runs(
    who: str, case: str, quads: int, reached: float, share: float, added: float, scales: Sequence[float]
) -> None:
    """Keep the figures of an arm of a case for the page."""
    title = f"Bayesian optimisation: {case}, {quads} quadrupoles"
    least = LEAST.get(case) if quads == 5 else None  # with 8 it is the regret that counts
    note(Row(title, f"{who}: came within 0.1 of the optimum", reached, "%", wanted=REACHED.get(case), more=True))
    if not np.isnan(share):
        note(Row(title, f"{who}: evaluations to get there, of those without a prior", share, wanted=least))
        bound = ADDED.get(case) if not who.startswith("fixed") else None  # without trust it is there to show the harm
        note(Row(title, f"{who}: regret added at the end, upper 95 %", added, wanted=bound))
    if scales:
        note(Row(title, f"{who}: error of the scales at 10 points", statistics.mean(scales), wanted=SCALES.get(case)))


def show(rows: Sequence[dict]) -> None:
    """Print a table of everything in the store."""
    print("reached: within 0.1; to 0.1, to 0.2: evaluations as a share of those without a prior, mean of pairs, its")
    print("upper 90 % bound, and of sums; added: final regret above that without, and its upper 95 % bound; scales:")
    print("mean error at 10 points; trust: share of builds; s: CPU time of a step [s], the median")
    print(f"{'case':10}{'arm':10}{'n':>4}{'reached':>9}{'median':>8}{'to 0.1':>8}{'<':>6}{'sums':>6}"
          f"{'to 0.2':>8}{'<':>6}{'sums':>6}{'regret':>8}{'added':>8}{'<':>7}{'scales':>8}{'trust':>7}{'s':>6}"
          )  # fmt: skip
    table = {(r["case"], r["quadrupoles"], r["arm"], r["seed"]): r for r in rows}
    for case, quads, arm in sorted(
        {key[:3] for key in table}, key=lambda k: (CASES.index(k[0]), k[1], ARMS.index(k[2]))
    ):
        own = {k[3]: r for k, r in table.items() if k[:3] == (case, quads, arm)}
        plain = {k[3]: r for k, r in table.items() if k[:3] == (case, quads, "none") and k[3] in own}
        counts = [evaluations(r["regret"], 0.1) for r in own.values()]
        reached = sum(c < len(r["regret"]) for c, r in zip(counts, own.values(), strict=True)) / len(own)
        pairs = [(own[s], plain[s]) for s in plain]
        one, two = ratio(pairs, 0.1), ratio(pairs, 0.2)
        added = added_regret(pairs)
        final = statistics.mean(r["regret"][-1] for r in own.values())
        scales = [r["scale_error"][7] for r in own.values() if len(r.get("scale_error", [])) > 7]
        trust = [statistics.mean(r["trusted"]) for r in own.values() if "trusted" in r]
        pace = statistics.median(s for r in own.values() for s in r["seconds"])
        if arm != "none" and len(own) > 1:
            note_runs(f"{arm}, {len(own)} seeds", case, quads, 100 * reached, one[0], added[1], scales)
        print(f"{case + str(quads):10}{arm:10}{len(own):4}{reached:9.0%}{statistics.median(counts):8.0f}"
              f"{one[0]:8.2f}{one[1]:6.2f}{one[2]:6.2f}{two[0]:8.2f}{two[1]:6.2f}{two[2]:6.2f}{final:8.3f}"
              f"{added[0]:+8.3f}{added[1]:+7.3f}{statistics.mean(scales) if scales else np.nan:8.3f}"
              f"{statistics.mean(trust) if trust else np.nan:7.0%}{pace:6.2f}")  # fmt: skip


def show_cost(sizes: Sequence[int] = (5, 10, 20), machines: int = 10) -> None:
    """Print the CPU time of one step, training and proposal, of all arms on the same data, in turn."""
    model = line(5)
    # How many steps a search takes depends on the data, by a factor of ten without a prior: the mean over several
    # machines is shown.
    ratios: dict[tuple[str, str, str], list[float]] = {}
    rows: dict[str, list[Row]] = {search: [] for search in SEARCHES}
    for points in sizes:
        spent: dict[tuple[str, str], list[float]] = {(search, arm): [] for search in SEARCHES for arm in ARMS}
        for seed in range(machines):
            data = random_data(Machine(model, "near", seed), points, seed)
            for search, arm in spent:
                spent[search, arm].append(seconds_of_step(model, arm, data, SEARCHES[search], seed))
        means = {key: statistics.mean(seconds) for key, seconds in spent.items()}
        for search in SEARCHES:
            print(f"CPU time of a step at {points} points, {search}: [s], and as a multiple of that without a prior,")
            print("with the same search and with Xopt's")
            for arm in ARMS:
                mean, title = means[search, arm], f"CPU time of a step, {search}"
                multiples = {plain: mean / means[plain, "none"] for plain in dict.fromkeys((search, XOPTS))}
                print(f"  {arm:10} {mean:6.3f}", *(f"{multiple:6.2f}" for multiple in multiples.values()), flush=True)
                for plain, multiple in multiples.items():
                    ratios.setdefault((search, arm, plain), []).append(multiple)
                    if arm != "none":
                        what, beside = f"{arm}, {points} points", f"without a prior, {plain}"
                        row = Row(title, what, mean, "s", beside, means[plain, "none"], COST.get(arm))
                        rows[search].append(row)
    for (search, arm, plain), found in ratios.items():
        if arm != "none":
            what = f"{arm}, mean of {', '.join(map(str, sizes))} points, times without a prior, {plain}"
            row = Row(f"CPU time of a step, {search}", what, statistics.mean(found), wanted=COST.get(arm))
            rows[search].append(row)
    for row in (row for found in rows.values() for row in found):
        note(row)


def random_data(machine: Machine, points: int, seed: int) -> pd.DataFrame:
    """Return settings and objective of a machine at random points."""
    x = np.random.default_rng(seed).uniform(-LIMIT, LIMIT, (points, len(machine.names)))
    return pd.DataFrame(x, columns=machine.names).assign(**{OBJECTIVE: machine(torch.as_tensor(x)).numpy()})


def seconds_of_step(model: CheetahModel, arm: str, data: pd.DataFrame, optimizer: LBFGSOptimizer, seed: int) -> float:
    """Return the CPU time [s] of one step of an arm: a new generator that knows the data and proposes a point."""
    names = [name for name in data if name != OBJECTIVE]
    generator = generator_of(vocs_of(model, names), constructor(arm, model, names, "near"), optimizer)
    generator.add_data(data)
    torch.manual_seed(seed)
    start = time.process_time()
    generator.generate(1)
    return time.process_time() - start


def same_machine(row: dict, case: str, seed: int, options: argparse.Namespace) -> bool:
    """Tell whether a run without a prior was made on the same machine: one that is negated is only called so."""
    kind = ("near", "negated")
    wanted = ("none", seed, options.quadrupoles, options.steps + 1)
    found = (row["arm"], row["seed"], row["quadrupoles"], len(row["regret"]))
    return case in kind and row["case"] in kind and found == wanted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, default=Path("prior_mean.jsonl"))
    parser.add_argument("--case", action="append", choices=CASES)
    parser.add_argument("--arm", action="append", choices=ARMS)
    parser.add_argument("--seeds", default="0:8", help="first:last, the last one left out")
    parser.add_argument("--quadrupoles", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--stop", action="store_true", help="end runs of near and far at the optimum")
    parser.add_argument("--show", action="store_true")
    parser.add_argument("--cost", action="store_true", help="CPU time of one step of each arm; no runs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if options.cost:
        show_cost()
        if not options.show:
            return
    rows = [json.loads(text) for text in options.store.read_text().splitlines()] if options.store.exists() else []
    done = {(r["case"], r["arm"], r["seed"], r["quadrupoles"]) for r in rows}
    if not options.show:
        first, last = (int(edge) for edge in options.seeds.split(":"))
        for seed in range(first, last):
            for case in options.case or CASES:
                for arm in options.arm or ARMS:
                    if (case, arm, seed, options.quadrupoles) in done:
                        continue
                    stop = options.stop and case in ("near", "far") and arm != "none"
                    twin = next((r for r in rows if arm == "none" and same_machine(r, case, seed, options)), None)
                    row = run(case, arm, seed, options.quadrupoles, options.steps, stop) if twin is None else twin
                    row = {**row, "case": case}
                    rows.append(row)
                    with options.store.open("a") as store:
                        store.write(json.dumps(row) + "\n")
    show(rows)


if __name__ == "__main__":
    main()
