"""Calibration: hidden errors of a small line are found again, with honest errors, and no run is made twice."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cheetah
import numpy as np
import pytest
import torch

import lume_diff as ld
from lume_diff.calibration import (
    BeamMomentum,
    Blur,
    Calibration,
    CalibrationResult,
    Dataset,
    Images,
    LogNormal,
    Magnification,
    Moments,
    Normal,
    Offset,
    Scale,
    ScreenDataset,
    Value,
)
from lume_diff.errors import CalibrationError, ReadOnlyError, UnitError, UnknownVariableError, ValidationError

D = torch.float64
PIXEL = 1.5e-4
K1 = np.linspace(-8.0, 8.0, 6)
TRUTH = {"scale of Q1.k1": 1.03, "offset of SCR1.misalignment_x": 3e-4, "beam/norm_emit_x": 5.2e-6}


def number(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=D)


def line(quadrupoles: int = 1, particles: int = 400) -> ld.StagedModel:
    """Return a bunch from moments, quadrupoles, a drift and a screen."""
    gun = ld.BunchFromMoments(
        particles,
        beta_x=8.0,
        norm_emit_x=4e-6,
        beta_y=6.0,
        norm_emit_y=4e-6,
        mean_energy=1e8,
        sigma_energy=1e4,
        sigma_t=1e-12,
        charge=1e-10,
    )
    elements: list[cheetah.Element] = []
    for index in range(1, quadrupoles + 1):
        elements.append(cheetah.Quadrupole(number(0.1), number(0.0), name=f"Q{index}", dtype=D))
    elements.append(cheetah.BPM(is_active=True, name="BPM1"))
    elements.append(cheetah.Drift(number(1.5), name="D1", dtype=D))
    screen = cheetah.Screen((40, 40), torch.tensor([PIXEL, PIXEL], dtype=D), is_active=True, name="SCR1", dtype=D)
    segment = cheetah.Segment([*elements, screen], name="line")
    return ld.StagedModel({"beam": gun, "line": ld.CheetahModel(segment, gun.get("final_particles"))})


def scan(model: ld.LUMEModel, noise: float = 3.0, **settings: np.ndarray) -> ScreenDataset:
    """Return what the true machine shows, in counts with white noise."""
    settings = {name.replace("_k1", ".k1"): values for name, values in (settings or {"Q1_k1": K1}).items()}
    inputs: dict[str, Any] = {name: torch.tensor(values) for name, values in settings.items()}
    inputs["Q1.k1"] = inputs["Q1.k1"] * TRUTH["scale of Q1.k1"]
    inputs["SCR1.misalignment_x"] = number(TRUTH["offset of SCR1.misalignment_x"])
    inputs["norm_emit_x"] = number(TRUTH["beam/norm_emit_x"])
    images = model(inputs, outputs=["SCR1.image"])["SCR1.image"].numpy()
    images = 1000.0 * images / images.max()
    images = images + np.random.default_rng(0).normal(0.0, noise, images.shape)
    return ScreenDataset(settings, images, "SCR1.image", PIXEL, noise=noise)


def parameters() -> list[Any]:
    return [
        Scale("Q1.k1", Normal(1.0, 0.02)),
        Offset("SCR1.misalignment_x", Normal(0.0, 1e-3)),
        Value("norm_emit_x", LogNormal(4e-6, 1.5), name="beam/norm_emit_x"),
    ]


@pytest.fixture
def model() -> ld.StagedModel:
    return line()


@pytest.fixture
def data(model: ld.StagedModel) -> ScreenDataset:
    return scan(model)


def assert_true_within(result: CalibrationResult, errors: float = 4.0) -> None:
    for name, truth in TRUTH.items():
        value, error = result[name]
        assert abs(value - truth) < errors * error, f"{name}: {value} +- {error}, true {truth}"


@pytest.mark.parametrize("likelihood", [Images(), Moments()], ids=["images", "moments"])
def test_hidden_errors_are_found(likelihood: Any) -> None:
    data = scan(line(particles=100_000))  # a real beam has no grains
    result = Calibration(line(particles=4000), data, parameters(), likelihood).run(progress=False)
    assert result.converged
    assert_true_within(result)
    assert result.errors["scale of Q1.k1"] < 0.018
    scatter = 4.0 * math.sqrt(2.0 / result.degrees_of_freedom)
    assert 1.0 - scatter < result.reduced_chi_square < 1.0 + scatter


def test_methods_agree(model: ld.StagedModel, data: ScreenDataset) -> None:
    fit = Calibration(model, data, parameters(), Moments())
    best = fit.run("levenberg-marquardt", progress=False)
    for method in ("lbfgs", "adam"):
        other = fit.run(method, progress=False)
        assert other.cost == pytest.approx(best.cost, rel=1e-3)
        torch.testing.assert_close(other.u, best.u, rtol=0.0, atol=0.05)


@pytest.mark.filterwarnings("ignore:the model's bunch counts as 400 macroparticles")
def test_blur_of_the_screen_is_found(model: ld.StagedModel) -> None:
    blur = Blur(LogNormal(1e-4, 2.0))
    sharp = scan(model, noise=1e-3).images[:, 0]
    seen = blur.on_image(torch.tensor(np.asarray(sharp, dtype=float)), number(1.7e-4), (PIXEL, PIXEL)).numpy()
    seen = seen + np.random.default_rng(1).normal(0.0, 1.0, seen.shape)
    data = ScreenDataset({"Q1.k1": K1}, seen, "SCR1.image", PIXEL, noise=1.0)
    result = Calibration(model, data, [*parameters(), blur], Images()).run(progress=False)
    assert_true_within(result)
    value, error = result["screen blur"]
    assert abs(value - 1.7e-4) < 4.0 * error < 0.8e-4


def test_numbers_are_fitted_too(model: ld.StagedModel) -> None:
    true = model({"Q1.k1": torch.tensor(K1 * 1.03)}, outputs=["final.sigma_x", "final.sigma_y"])
    noise = np.random.default_rng(0).normal(0.0, 1e-6, (2, len(K1)))
    measured = {name: values.numpy() + part for (name, values), part in zip(true.items(), noise, strict=True)}
    data = Dataset({"Q1.k1": K1}, measured, sigma=dict.fromkeys(measured, 1e-6))
    result = Calibration(model, data, [Scale("Q1.k1", Normal(1.0, 0.05))]).run(progress=False)
    value, error = result["scale of Q1.k1"]
    assert abs(value - 1.03) < 4.0 * error < 0.02


def test_screen_and_monitor_together(model: ld.StagedModel, data: ScreenDataset) -> None:
    """The screen's offset and the beam's own add up on the screen; a monitor tells them apart."""
    orbit = 2.5e-4
    images = np.roll(data.images, round(orbit / PIXEL), axis=-1)
    screen = ScreenDataset({"Q1.k1": np.zeros(3)}, images[2:5], "SCR1.image", PIXEL, noise=3.0)
    noise = np.random.default_rng(2).normal(0.0, 1e-5, 4)
    monitor = Dataset({"Q1.k1": np.zeros(4)}, {"BPM1.x": orbit + noise}, sigma={"BPM1.x": 1e-5})
    unknown = [
        Offset("SCR1.misalignment_x", Normal(0.0, 1e-3), name="screen"),
        Value("mean_x", Normal(0.0, 1e-3), name="beam"),
    ]
    shape = Moments(of=("mean_x",))
    alone = Calibration(model, screen, unknown, shape).run(progress=False)
    assert alone.unresolved
    both = Calibration(model, [screen, monitor], unknown, [shape, "values"]).run(progress=False)
    assert not both.unresolved
    value, error = both["beam"]
    assert abs(value - orbit) < 4.0 * error
    assert error == pytest.approx(1e-5 / 2.0, rel=0.05)
    assert [list(found) for found in both.predict()] == [["SCR1.image"], ["BPM1.x"]]


def test_what_cannot_be_told_apart_is_named() -> None:
    model = line(quadrupoles=2)
    data = scan(model, 0.3, Q1_k1=K1, Q2_k1=K1)
    unknown = [Scale("Q1.k1", Normal(1.0, 0.02)), Scale("Q2.k1", Normal(1.0, 0.02))]
    # Nothing of the second moments in y: one combination of two thin quadrupoles side by side is all that shows.
    result = Calibration(model, data, unknown, Moments(of=("cov_x__x",))).run(progress=False)
    (combination,) = result.unresolved
    weights = combination.direction
    assert weights["scale of Q1.k1"] * weights["scale of Q2.k1"] < 0.0
    assert "not resolved" in str(result)


def test_a_parameter_that_the_data_do_not_see_keeps_its_prior(model: ld.StagedModel, data: ScreenDataset) -> None:
    unseen = Value("charge", LogNormal(1e-10, 1.5))  # the intensity of an image is free
    result = Calibration(model, data, [*parameters(), unseen]).run(progress=False)
    assert not result.resolved["charge"]
    assert result.laplace.errors[-1] == pytest.approx(1.0, abs=1e-6)
    assert_true_within(result)


def test_checkpoint_repeats_no_run(tmp_path: Path) -> None:
    class PowerCutError(Exception):
        pass

    def stop(step: int, cost: float, values: Any) -> None:
        if step == 2:
            raise PowerCutError

    file = tmp_path / "fit.ckpt"
    with pytest.raises(PowerCutError):
        Calibration(line(), scan(line()), parameters()).run(checkpoint=file, progress=stop)
    resumed = Calibration(line(), scan(line()), parameters()).run(checkpoint=file, progress=False)
    whole = Calibration(line(), scan(line()), parameters()).run(progress=False)
    assert resumed.values == whole.values  # to the last bit
    assert 0 < resumed.evaluations < whole.evaluations
    again = Calibration(line(), scan(line()), parameters()).run(checkpoint=file, progress=False)
    assert (again.evaluations, again.runs) == (0, 0)
    assert again.values == whole.values


def test_checkpoint_of_other_data_is_not_used(tmp_path: Path, model: ld.StagedModel, data: ScreenDataset) -> None:
    file = tmp_path / "fit.ckpt"
    first = Calibration(model, data, parameters(), Moments()).run(checkpoint=file, progress=False)
    other = Calibration(model, data[1:], parameters(), Moments()).run(checkpoint=file, progress=False)
    assert other.evaluations > 0
    assert other.values != first.values


def test_interrupt_keeps_the_best(model: ld.StagedModel, data: ScreenDataset) -> None:
    def stop(step: int, cost: float, values: Any) -> None:
        if step == 3:
            raise KeyboardInterrupt

    result = Calibration(model, data, parameters()).run(progress=stop)
    assert not result.converged
    assert "Ctrl-C" in result.message
    assert len(result.history) == 3
    assert result.cost == min(step.cost for step in result.history)


def test_starts_are_reproducible_and_counted(model: ld.StagedModel, data: ScreenDataset) -> None:
    fit = Calibration(model, data, parameters(), Moments())
    first, second = (fit.run(starts=3, seed=4, progress=False) for _ in range(2))
    assert len(first.optima) == 3
    assert first.values == second.values
    assert first.cost == min(cost for _, cost in first.optima)


def test_applied_result_predicts_the_machine(model: ld.StagedModel, data: ScreenDataset) -> None:
    result = Calibration(model, data, parameters()).run(progress=False)
    with pytest.raises(UnknownVariableError, match=r"'Q1\.k1'"):
        result.apply(ld.TorchModel(Root(), [ld.TorchScalarVariable(name="a")], [ld.TorchScalarVariable(name="y")]))
    twin = result.apply()
    assert twin.input_names == model.input_names
    assert float(twin.get("norm_emit_x")) == result.values["beam/norm_emit_x"]
    seen = twin({"Q1.k1": torch.tensor(K1)}, outputs=["SCR1.image"])["SCR1.image"]
    torch.testing.assert_close(seen, result.predict()[0]["SCR1.image"], rtol=1e-12, atol=1e-20)
    k1 = number(2.0).requires_grad_()
    twin({"Q1.k1": k1})["final.sigma_x"].backward()
    assert bool(torch.isfinite(k1.grad))


def test_what_is_done_with_the_model_later_does_not_change_how_well_it_fitted(
    model: ld.StagedModel, data: ScreenDataset
) -> None:
    result = Calibration(model, data, parameters()).run(progress=False)
    model.set({"beta_x": 20.0})
    assert 0.5 < result.reduced_chi_square < 2.0


def test_predictions_take_settings_in_any_unit(model: ld.StagedModel, data: ScreenDataset) -> None:
    result = Calibration(model, data, parameters()).run(progress=False)
    per_mm = ScreenDataset({"Q1.k1": 1e-6 * K1}, data.images, data.screen, PIXEL, units={"Q1.k1": "1/mm^2"})
    (same,), (found,) = result.predict(), result.predict(per_mm)
    torch.testing.assert_close(found["SCR1.image"], same["SCR1.image"], rtol=1e-12, atol=1e-20)
    with pytest.raises(ValidationError, match="expected a ScreenDataset"):
        result.predict({"Q1.k1": K1})


class Root(torch.nn.Module):
    """A model that has no answer below zero."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sqrt()


def test_step_to_where_the_model_has_no_answer_is_made_shorter() -> None:
    scalar = ld.TorchScalarVariable
    model = ld.TorchModel(Root(), [scalar(name="a", default_value=1.0)], [scalar(name="y", read_only=True)])
    data = Dataset({"a": np.zeros(4)}, {"y": np.full(4, 0.1)}, sigma={"y": 1e-3})
    result = Calibration(model, data, [Value("a", Normal(1.0, 1.0))]).run(progress=False)
    assert result.converged
    assert result.values["a"] == pytest.approx(0.01, abs=5e-4)
    with pytest.raises(CalibrationError, match="is not finite at a = -1: narrow the priors"):
        Calibration(model, data, [Value("a", Normal(-1.0, 0.1))]).run(progress=False)


@pytest.mark.parametrize("name, content", [("no.yaml", None), ("fit.yaml", "a: [1,"), ("fit.h5", "text")])
def test_files_that_hold_no_result(tmp_path: Path, name: str, content: str | None) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ValidationError, match="does not exist" if content is None else "is no saved calibration"):
        CalibrationResult.load(tmp_path / name)


def test_result_is_written_read_and_drawn(tmp_path: Path, model: ld.StagedModel, data: ScreenDataset) -> None:
    result = Calibration(model, data, parameters()).run(progress=False)
    result.save(tmp_path / "fit.yaml")
    known = CalibrationResult.load(tmp_path / "fit.yaml")
    assert {p["name"]: p["value"] for p in known["parameters"]} == result.values
    assert known["runs"] == result.runs > 0
    result.save(tmp_path / "fit.h5")
    assert CalibrationResult.load(tmp_path / "fit.h5") == known
    figure = result.plot(tmp_path / "fit.png")
    assert len(figure.subfigs) == 2
    assert (tmp_path / "fit.png").stat().st_size > 20_000
    text = str(result)
    for name in TRUTH:
        assert name in text


@pytest.mark.parametrize(
    "unknown, error, message",
    [
        (lambda: [], ValidationError, "parameters is empty"),
        (lambda: [Scale("Q9.k1", Normal(1.0, 0.1))], UnknownVariableError, r"'Q9\.k1'.*nearest: 'Q1\.k1'"),
        (lambda: [Scale("final.sigma_x", Normal(1.0, 0.1))], ReadOnlyError, r"'final\.sigma_x'"),
        (lambda: [Offset("Q1.k1", Normal(0.0, 0.1), unit="m")], UnitError, r"'Q1\.k1' is in '1/m\^2'"),
        (lambda: [*parameters(), Scale("Q1.k1", Normal(1.0, 0.1))], ValidationError, "two parameters are called"),
        (lambda: [Scale("Q1.k1", 1.0)], ValidationError, "expected a prior"),  # type: ignore[arg-type]
        (lambda: [Magnification(Normal(1.0, 0.1), axis="z")], ValidationError, "axis of 'magnification' is 'z'"),
    ],
)
def test_bad_parameters(
    model: ld.StagedModel, data: ScreenDataset, unknown: Callable[[], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Calibration(model, data, unknown())


def test_bad_options(model: ld.StagedModel, data: ScreenDataset) -> None:
    with pytest.raises(ValidationError, match="compares numbers"):
        Calibration(model, data, parameters(), "values")
    fit = Calibration(model, data, parameters())
    with pytest.raises(ValidationError, match="method is 'newton'"):
        fit.run("newton", progress=False)
    for name in ("starts", "steps"):
        with pytest.raises(ValidationError, match=f"{name} is 0"):
            fit.run(**{name: 0}, progress=False)


def test_energy_in_other_units_is_refused() -> None:
    scalar = ld.TorchScalarVariable
    inputs = [scalar(name="k1", default_value=1.0), scalar(name="energy", unit="MeV", default_value=63.0)]
    model = ld.TorchModel(torch.nn.Linear(2, 1), inputs, [scalar(name="y", read_only=True)])
    data = Dataset({"k1": [1.0, 2.0]}, {"y": [1.0, 2.0]}, sigma={"y": 0.1})
    with pytest.raises(UnitError, match=r"energy 'energy' of parameter 'beam momentum' is in 'MeV'; expected .* 'eV'"):
        Calibration(model, data, [BeamMomentum("k1", Normal(1.0, 0.02), energy="energy")])
