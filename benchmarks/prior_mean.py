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
import torch
from botorch.generation.gen import gen_candidates_scipy
from xopt import Xopt
from xopt.generators.bayesian import UpperConfidenceBoundGenerator
from xopt.generators.bayesian.models.standard import StandardModelConstructor

from lume_diff import CheetahModel
from lume_diff.calibration import ModelMean, Normal, PriorMeanModelConstructor, Scale, vocs_from_model, xopt_evaluator
from lume_diff.calibration.prior_mean.model_mean import Response

D = torch.float64
LIMIT, FIRST = 8.0, 3
CASES = ("near", "far", "offsets", "negated")
ARMS = ("none", "fixed", "trust", "learned")
OBJECTIVE = "log_size"


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
    if arm == "fixed":
        return StandardModelConstructor(**means)
    return PriorMeanModelConstructor(**means, trainable_mean_keys=[OBJECTIVE] if arm == "learned" else [])


def run(case: str, arm: str, seed: int, quadrupoles: int, steps: int) -> dict[str, object]:
    """Optimise one machine and return what happened."""
    model = line(quadrupoles)
    machine = Machine(model, case, seed)
    best = machine.best()
    names = machine.names
    vocs = vocs_from_model(
        model,
        dict.fromkeys(names, (-LIMIT, LIMIT)),
        {OBJECTIVE: "MINIMIZE"},
        outputs={OBJECTIVE: (["final.sigma_x", "final.sigma_y"], log_size)},
    )
    evaluator = xopt_evaluator(model, vocs, readback=None)
    evaluator.function_kwargs = {}
    evaluator.vectorized = False
    evaluator.function = lambda settings: {
        OBJECTIVE: float(machine(torch.tensor([settings[name] for name in names], dtype=D)))
    }
    gp = constructor(arm, model, names, case)
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - what Xopt and botorch draw from
    X = Xopt(evaluator=evaluator, generator=UpperConfidenceBoundGenerator(vocs=vocs, gp_constructor=gp))
    random = np.random.default_rng([seed, 2])
    X.evaluate_data([dict(zip(names, row, strict=True)) for row in random.uniform(-LIMIT, LIMIT, (FIRST, len(names)))])
    seconds, decisions = [], []
    for _ in range(steps):
        start = time.perf_counter()
        X.step()
        seconds.append(round(time.perf_counter() - start, 3))
    found: dict[str, object] = {}
    if isinstance(gp, PriorMeanModelConstructor):
        decisions = [round(d.advantage, 2) for d in gp.decisions]
        found["trusted"] = [d.trusted for d in gp.decisions]
        if arm == "learned":
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


def _ratio(pairs: Sequence[tuple[dict, dict]], within: float) -> float:
    """Return how many evaluations it takes to come within reach, as a share of those without a prior."""
    counts = [[evaluations(row["regret"], within) for row in pair] for pair in pairs]
    return sum(count[0] for count in counts) / sum(count[1] for count in counts) if counts else np.nan


def show(rows: Sequence[dict]) -> None:
    """Print a table of everything in the store."""
    print(f"{'case':10}{'arm':10}{'n':>4}{'reached':>9}{'median':>8}{'ratio':>7}{'regret':>8}{'added':>8}{'±95%':>7}"
          f"{'to 0.2':>8}{'scales':>8}{'trust':>7}{'s/step':>8}")  # fmt: skip
    table = {(r["case"], r["quadrupoles"], r["arm"], r["seed"]): r for r in rows}
    for case, quads, arm in sorted(
        {key[:3] for key in table}, key=lambda k: (CASES.index(k[0]), k[1], ARMS.index(k[2]))
    ):
        own = {k[3]: r for k, r in table.items() if k[:3] == (case, quads, arm)}
        plain = {k[3]: r for k, r in table.items() if k[:3] == (case, quads, "none") and k[3] in own}
        counts = [evaluations(r["regret"], 0.1) for r in own.values()]
        reached = sum(c < len(r["regret"]) for c, r in zip(counts, own.values(), strict=True)) / len(own)
        pairs = [(own[s], plain[s]) for s in plain]
        ratio, two = _ratio(pairs, 0.1), _ratio(pairs, 0.2)
        differences = np.array([a["regret"][-1] - b["regret"][-1] for a, b in pairs])
        added = differences.mean() if pairs else np.nan
        error = 1.645 * differences.std(ddof=1) / len(pairs) ** 0.5 if len(pairs) > 1 else np.nan
        final = statistics.mean(r["regret"][-1] for r in own.values())
        scales = [r["scale_error"][min(7, len(r["scale_error"]) - 1)] for r in own.values() if "scale_error" in r]
        trust = [statistics.mean(r["trusted"]) for r in own.values() if "trusted" in r]
        pace = statistics.median(s for r in own.values() for s in r["seconds"])
        print(f"{case + str(quads):10}{arm:10}{len(own):4}{reached:9.0%}{statistics.median(counts):8.0f}{ratio:7.2f}"
              f"{final:8.3f}"
              f"{added:+8.3f}{error:7.3f}{two:8.2f}{statistics.mean(scales) if scales else np.nan:8.3f}"
              f"{statistics.mean(trust) if trust else np.nan:7.0%}{pace:8.2f}")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, default=Path("prior_mean.jsonl"))
    parser.add_argument("--case", action="append", choices=CASES)
    parser.add_argument("--arm", action="append", choices=ARMS)
    parser.add_argument("--seeds", default="0:8", help="first:last, the last one left out")
    parser.add_argument("--quadrupoles", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--show", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows = [json.loads(text) for text in options.store.read_text().splitlines()] if options.store.exists() else []
    done = {(r["case"], r["arm"], r["seed"], r["quadrupoles"]) for r in rows}
    if not options.show:
        first, last = (int(edge) for edge in options.seeds.split(":"))
        for seed in range(first, last):
            for case in options.case or CASES:
                for arm in options.arm or ARMS:
                    if (case, arm, seed, options.quadrupoles) in done:
                        continue
                    row = run(case, arm, seed, options.quadrupoles, options.steps)
                    rows.append(row)
                    with options.store.open("a") as store:
                        store.write(json.dumps(row) + "\n")
    show(rows)


if __name__ == "__main__":
    main()
