"""The emulator of a slow mean: how many runs it makes, how wrong it is, what it keeps."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("xopt")

from xopt import Xopt
from xopt.generators.bayesian import UpperConfidenceBoundGenerator
from xopt.generators.bayesian.models.standard import StandardModelConstructor
from xopt.numerical_optimizer import LBFGSOptimizer

from lume_diff.blackbox import BlackBoxModel
from lume_diff.calibration import Emulator, ModelMean, PriorMeanModelConstructor, vocs_from_model, xopt_evaluator
from lume_diff.calibration.prior_mean.surface import Surface
from lume_diff.errors import PhysicsWarning, ValidationError
from lume_diff.models import LUMEModel
from lume_diff.variables import TorchScalarVariable

D = torch.float64
X = torch.tensor([[0.3, -0.2], [-1.1, 1.4], [1.2, 0.9]], dtype=D)


def size(a: float, b: float) -> dict[str, float]:
    return {"size": 1e-3 * float(1.5 + np.sin(a) * b + 0.3 * (b - 0.5) ** 2 + 0.2 * a**2)}


def box(function: Callable[..., Any] = size, edge: float | None = 2.0, **options: Any) -> BlackBoxModel:
    limits = None if edge is None else (-edge, edge)
    inputs = [TorchScalarVariable(name=name, default_value=0.5, value_range=limits) for name in "ab"]
    return BlackBoxModel.from_function(function, inputs, [TorchScalarVariable(name="size")], **options)


def emulating(model: LUMEModel, **options: Any) -> ModelMean:
    return ModelMean(model, ["a", "b"], "size", torch.log10, emulate=Emulator(**options))


def optimised(model: BlackBoxModel, mean: ModelMean, steps: int, constructor: Any = PriorMeanModelConstructor) -> Xopt:
    """Return an Xopt that has optimised a machine that is a little off."""
    vocs = vocs_from_model(model, ["a", "b"], {"log": "MINIMIZE"}, outputs={"log": ("size", torch.log10)})
    # A constant in the mean's place would ask the emulator nothing.
    always = {"trust": False} if constructor is PriorMeanModelConstructor else {}
    generator = UpperConfidenceBoundGenerator(
        vocs=vocs,
        gp_constructor=constructor(mean_modules={"log": mean}, **always),
        numerical_optimizer=LBFGSOptimizer(n_restarts=4, max_iter=20, max_time=None),
        n_monte_carlo_samples=16,
    )
    machine = box(lambda a, b: size(1.05 * a, 0.96 * b))
    torch.manual_seed(1)
    xopt = Xopt(evaluator=xopt_evaluator(machine, vocs), generator=generator)
    xopt.random_evaluate(3, seed=1)
    for _ in range(steps):
        xopt.step()
    return xopt


def test_a_surface_knows_its_error() -> None:
    """What is predicted for left-out runs is what new points are wrong by."""
    design = torch.quasirandom.SobolEngine(2, scramble=True, seed=3).draw(30, dtype=D)
    new = torch.quasirandom.SobolEngine(2, scramble=True, seed=4).draw(400, dtype=D)

    def truth(x: torch.Tensor) -> torch.Tensor:
        return (3.0 * x[:, 0]).sin() * x[:, 1] + (4.0 * x[:, 1]).cos()

    surface = Surface(design, truth(design))
    error = float((surface(new) - truth(new)).square().mean().sqrt())
    assert error < 0.05 * float(truth(new).std())
    assert 0.2 < surface.leave_one_out_error() / error < 5.0
    assert 0.2 < float(surface.standard_deviation(new).square().mean().sqrt()) / error < 5.0


def test_leaving_out_is_that_of_conditioning_anew() -> None:
    x = torch.linspace(0.0, 1.0, 9, dtype=D)[:, None]
    surface = Surface(x, (5.0 * x).sin().squeeze(-1))
    covariance = torch.linalg.inv(surface._precision)
    scaled = covariance @ surface._weights
    errors = []
    for i in range(9):
        rest = [j for j in range(9) if j != i]
        predicted = covariance[i, rest] @ torch.linalg.solve(covariance[rest][:, rest], scaled[rest])
        errors.append((predicted - scaled[i]) * surface._unit)
    assert surface.leave_one_out_error() == pytest.approx(float(torch.stack(errors).square().mean().sqrt()), rel=1e-5)


def test_known_points_are_not_run_again() -> None:
    x = torch.rand(8, 2, dtype=D)
    surface = Surface(x, x.sum(-1).sin())
    assert len(surface.most_uncertain(x, 4)) == 0
    far = torch.tensor([[2.0, 2.0], [2.0, 2.0], [-1.0, 2.0]], dtype=D)
    assert sorted(surface.most_uncertain(torch.cat([x, far]), 3).tolist())[-1] == 10


def test_it_answers_for_the_model() -> None:
    model = box()
    mean = emulating(model, max_runs=40, initial=40)
    truth = ModelMean(box(), ["a", "b"], "size", torch.log10)
    with torch.no_grad():
        torch.testing.assert_close(mean(X), truth(X), rtol=0.0, atol=3e-3)
    assert model.runs == 40
    assert mean.emulation is not None
    assert mean.emulation.left_out_error < 0.01
    x = X.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(mean(x).sum(), x)
    for i in range(2):
        move = torch.zeros(2, dtype=D)
        move[i] = 1e-4
        slope = (mean(X + move) - mean(X - move)) / 2e-4
        torch.testing.assert_close(gradient[:, i], slope, rtol=1e-5, atol=1e-8)
    assert model.runs == 40  # neither points nor gradients cost a run


@pytest.mark.parametrize("constructor", [PriorMeanModelConstructor, StandardModelConstructor])
@pytest.mark.filterwarnings("ignore::lume_diff.errors.PhysicsWarning")
def test_runs_are_bounded(constructor: Any) -> None:
    model = box()
    mean = emulating(model, max_runs=18, initial=8, refine=3)
    before = []
    xopt = optimised(model, mean, 1, constructor)
    assert model.runs == 8
    for _ in range(4):
        before.append(model.runs)
        xopt.step()
        assert model.runs - before[-1] <= 3
    assert model.runs == 18
    report = mean.emulation
    assert report is not None
    assert (report.runs, report.is_spent) == (18, True)
    assert report.left_out_error < 0.05
    if constructor is PriorMeanModelConstructor:
        assert "18 runs made" in xopt.generator.gp_constructor.report()


def test_runs_go_where_it_was_asked_last() -> None:
    model = box()
    emulator = emulating(model, max_runs=12, initial=8)._emulator
    assert emulator is not None
    ran: list[torch.Tensor] = []

    def truth(x: torch.Tensor) -> torch.Tensor:
        ran.append(x)
        return x.square().sum(-1).log()

    everywhere = torch.rand(500, 2, dtype=D)  # an optimiser's first look around
    corner = (1.5 + 0.4 * torch.rand(6, 1, 2, dtype=D)).requires_grad_()
    emulator(everywhere, truth)
    emulator(corner, truth)
    first = emulator.surface
    assert emulator.refined(truth) is not first
    assert 1 <= len(ran[1]) <= 4
    assert all(bool((row == corner.detach().squeeze(1)).all(-1).any()) for row in ran[1])
    assert emulator.refined(truth) is emulator.surface
    assert len(ran) == 2  # nothing was asked since


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::lume_diff.errors.PhysicsWarning")
def test_an_archive_takes_the_place_of_runs(tmp_path: Path) -> None:
    first = box(archive=tmp_path / "runs.db")
    optimised(first, emulating(first, max_runs=16, initial=8, refine=4), 4)
    assert first.runs == 16
    again = box(archive=tmp_path / "runs.db")
    mean = emulating(again, max_runs=16, initial=8, refine=4)
    optimised(again, mean, 2)
    assert again.runs == 0
    assert mean.emulation is not None
    assert (mean.emulation.runs, mean.emulation.archived) == (0, 16)


def test_runs_with_other_settings_do_not_count(tmp_path: Path) -> None:
    def response(a: float, b: float) -> dict[str, float]:
        return {"size": 1.0 + (a - b) ** 2}

    first = box(response, archive=tmp_path / "runs.db")
    first({"a": torch.linspace(-1.0, 1.0, 5, dtype=D), "b": 0.5})
    first({"a": torch.linspace(-1.0, 1.0, 4, dtype=D), "b": 1.0})
    points = box(response, archive=tmp_path / "runs.db").archived_points(["a"])
    assert sorted(points.squeeze(-1).tolist()) == [-1.0, -0.5, 0.0, 0.5, 1.0]
    assert len(box(size, archive=tmp_path / "runs.db").archived_points(["a"])) == 0  # another simulator
    assert box(response).archived_points(["a", "b"]).shape == (0, 2)


def test_copies_share_runs_and_files_keep_them() -> None:
    model = box()
    mean = emulating(model, max_runs=12, initial=12)
    with torch.no_grad():
        expected = mean(X)
        again = pickle.loads(pickle.dumps(mean))
        torch.testing.assert_close(again(X), expected)
    assert again.model.runs == model.runs == 12
    assert again.emulation == mean.emulation


@pytest.mark.filterwarnings("ignore::lume_diff.errors.PhysicsWarning")
def test_a_gp_keeps_the_surface_that_it_was_built_with() -> None:
    model = box()
    mean = emulating(model, max_runs=20, initial=8)
    xopt = optimised(model, mean, 2)
    own = xopt.generator.model.models[0].mean_module
    with torch.no_grad():
        before = own.model(X)
    xopt.step()
    with torch.no_grad():
        torch.testing.assert_close(own.model(X), before, rtol=0.0, atol=0.0)
        assert not torch.equal(mean(X), before)


@pytest.mark.filterwarnings("ignore::lume_diff.errors.PhysicsWarning")
def test_points_where_the_simulator_fails_are_left_out() -> None:
    def fails(a: float, b: float) -> dict[str, float]:
        if a > 1.0:
            raise RuntimeError("no stable solution")
        return size(a, b)

    mean = emulating(box(fails), max_runs=60, initial=16)
    with torch.no_grad():
        assert mean(X[:2]).isfinite().all()
    report = mean.emulation
    assert report is not None
    assert report.runs == 32  # a batch, and each of its points
    assert len(mean._emulator._y) < 16


def test_the_same_seed_makes_the_same_emulator() -> None:
    with torch.no_grad():
        values = [emulating(box(), max_runs=12, seed=seed)(X) for seed in (5, 5, 6)]
    assert torch.equal(values[0], values[1])
    assert not torch.equal(values[0], values[2])


def test_an_error_that_matters_is_told() -> None:
    def rugged(a: float, b: float) -> dict[str, float]:
        return {"size": 10.0 ** float(np.sin(17.0 * a) * np.cos(23.0 * b))}

    model = box(rugged)
    mean = emulating(model, max_runs=10)
    with pytest.warns(PhysicsWarning, match=r"emulator of 'log' is wrong by .* noise is .* explains"):
        optimised(model, mean, 1)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"max_runs": 1}, "max_runs is 1; expected 3 or more"),
        ({"initial": 300}, "initial is 300; expected from 3 to max_runs, 200"),
        ({"refine": -1}, "refine is -1"),
        ({"ranges": {"c": (0.0, 1.0)}}, r"ranges has 'c'; the inputs are \['a', 'b'\]"),
        ({"ranges": {"a": (1.0, 1.0)}}, r"range of 'a' is \(1\.0, 1\.0\); expected finite ends, the lower first"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_mistakes_are_told(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        emulating(box(), **options)


def test_inputs_need_a_range() -> None:
    with pytest.raises(ValidationError, match=r"have no range.*Emulator\(ranges="):
        emulating(box(edge=None))(X)
    with pytest.raises(ValidationError, match="emulate is 7; expected True, False or Emulator"):
        ModelMean(box(), ["a", "b"], "size", emulate=7)  # type: ignore[arg-type]
    ranges = {"a": (-2.0, 2.0), "b": (-2.0, 2.0)}
    with torch.no_grad():
        assert emulating(box(edge=None), ranges=ranges)(X).isfinite().all()


@pytest.mark.slow
def test_a_chain_through_tracking_code_is_emulated() -> None:
    """Cheetah, pyAT, Cheetah: as many runs of pyAT as were allowed, whatever the optimiser asks."""
    import cheetah

    at = pytest.importorskip("at")
    from lume_diff.blackbox.at.model import ATModel
    from lume_diff.models import CheetahModel, StagedModel

    def part(name: str, beam: Any) -> CheetahModel:
        def number(value: float) -> torch.Tensor:
            return torch.tensor(value, dtype=D)

        magnet = cheetah.Quadrupole(number(0.1), number(1.0), name=name, dtype=D)
        line = cheetah.Segment([magnet, cheetah.Drift(number(0.7), name=f"D{name}", dtype=D)], name=f"line{name}")
        return CheetahModel(line, beam, controls=[f"{name}.k1"], outputs=["final.sigma_x", "final_particles"])

    from lume_diff.models import BunchFromMoments

    twiss = {"beta_x": 5.0, "norm_emit_x": 2e-6, "beta_y": 3.0, "norm_emit_y": 2e-6}
    source = BunchFromMoments(200, mean_energy=1e8, sigma_energy=1e5, sigma_t=1e-12, charge=1e-10, **twiss)
    first = part("Q1", source.get("final_particles"))
    ring = at.Lattice([at.Quadrupole("Q2", 0.2, 1.0), at.Drift("D2", 0.5)], energy=1e8)
    middle = ATModel(ring, controls=["Q2.k1"], outputs=["Q2.beta_x"], beam=first.get("final_particles"))
    last = part("Q3", middle.get("final_particles"))
    model = StagedModel({"first": first, "middle": middle, "last": last})
    names = ["Q1.k1", "Q2.k1", "Q3.k1"]
    ranges = dict.fromkeys(names, (-4.0, 4.0))
    vocs = vocs_from_model(model, ranges, {"log": "MINIMIZE"}, outputs={"log": ("final.sigma_x", torch.log10)})
    mean = ModelMean(model, names, "final.sigma_x", torch.log10, emulate=Emulator(max_runs=40, ranges=ranges))
    gp = PriorMeanModelConstructor(mean_modules={"log": mean})
    generator = UpperConfidenceBoundGenerator(vocs=vocs, gp_constructor=gp)
    spent = middle.runs
    xopt = Xopt(evaluator=xopt_evaluator(model, vocs), generator=generator)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PhysicsWarning)
        xopt.random_evaluate(3, seed=2)
        for _ in range(7):
            xopt.step()
    assert middle.runs - spent <= 40 + len(xopt.data) + 1
    assert mean.emulation is not None
    assert 20 < mean.emulation.runs <= 40
    best = torch.tensor([[float(xopt.data.loc[xopt.data["log"].idxmin(), name]) for name in names]], dtype=D)
    with torch.no_grad():
        truth = model(dict(zip(names, best[0], strict=True)), ["final.sigma_x"])["final.sigma_x"].log10()
        assert abs(float(mean.bind(names)(best)) - float(truth)) < 0.05
    assert all(decision.trusted for decision in gp.decisions), gp.report()
