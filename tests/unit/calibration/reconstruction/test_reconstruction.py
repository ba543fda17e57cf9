"""BeamReconstruction: a hidden bunch is found from its images, fits can be stopped, killed and repeated."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import cheetah
import numpy as np
import pytest
import torch

import lume_diff as ld
from lume_diff.calibration import (
    BeamReconstruction,
    Blur,
    LogNormal,
    Normal,
    Reconstruction,
    Scale,
    ScreenDataset,
    Uniform,
)
from lume_diff.calibration.reconstruction.losses import distances
from lume_diff.errors import CalibrationError, ShapeError, UnknownVariableError, ValidationError

D = torch.float64
PIXEL = 2e-4
K1 = np.linspace(-8.0, 8.0, 6)


def number(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=D)


def hidden_bunch(count: int = 20_000, energy: float = 5e7, emittance: float = 1.0) -> cheetah.ParticleBeam:
    """Return a bunch without symmetry: a Gaussian, tilted in the planes and between them."""
    torch.manual_seed(7)
    z = torch.randn(count, 4, dtype=D)
    root = emittance**0.5
    x, xp = 4e-4 * root * z[:, 0], root * (1.5e-4 * z[:, 1] + 2e-4 * z[:, 0])
    y, yp = root * (5e-4 * z[:, 2] + 2e-4 * z[:, 0]), root * (1e-4 * z[:, 3] - 2e-4 * z[:, 2])
    zero, one = torch.zeros(count, dtype=D), torch.ones(count, dtype=D)
    coordinates = torch.stack((x, xp, y, yp, zero, 1e-4 * torch.randn(count, dtype=D), one), dim=-1)
    charges = torch.full((count,), 1e-10 / count, dtype=D)
    return cheetah.ParticleBeam(coordinates, number(energy), particle_charges=charges, dtype=D)


def line(beam: cheetah.ParticleBeam, pixels: int = 40) -> ld.CheetahModel:
    """Return a quadrupole, a drift and a screen."""
    size = torch.tensor([PIXEL, PIXEL], dtype=D)
    segment = cheetah.Segment(
        [
            cheetah.Quadrupole(number(0.1), number(0.0), name="Q1", dtype=D),
            cheetah.Drift(number(1.5), name="D1", dtype=D),
            cheetah.Screen((pixels, pixels), size, is_active=True, name="SCR1", dtype=D),
        ],
        name="line",
    )
    return ld.CheetahModel(segment, beam, controls=["Q1.k1"], outputs=["SCR1.image"], dtype=D)


def design_beam(sigma: float = 1e-3, sigma_p: float = 1e-4) -> cheetah.ParticleBeam:
    """Return a round bunch of the right energy, which is not the hidden one."""
    names = ("sigma_x", "sigma_px", "sigma_y", "sigma_py", "sigma_tau", "sigma_p")
    sizes = (sigma, 1e-4, sigma, 1e-4, 1e-6, sigma_p)
    options = dict(zip(names, map(number, sizes), strict=True))
    torch.manual_seed(5)
    return cheetah.ParticleBeam.from_parameters(
        num_particles=1000, energy=number(5e7), total_charge=number(1e-10), dtype=D, **options
    )


@pytest.fixture(scope="module")
def scan() -> ScreenDataset:
    """Images of the hidden bunch."""
    images = line(hidden_bunch())({"Q1.k1": torch.tensor(K1)}, outputs=["SCR1.image"])["SCR1.image"]
    return ScreenDataset({"Q1.k1": K1}, 1e15 * images.numpy(), "SCR1.image", PIXEL)


def task(scan: ScreenDataset, count: int = 500, seed: int = 3, **options: Any) -> BeamReconstruction:
    return BeamReconstruction(line(design_beam()), scan, count, seed, **options)


@pytest.fixture(scope="module")
def found(scan: ScreenDataset) -> Reconstruction:
    """A short fit to two thirds of the scan, with an ensemble of two."""
    return task(scan.split(every=3, offset=1)[0], 2000).run(80, ensemble=2, progress=False)


def weights(result: Reconstruction) -> list[torch.Tensor]:
    return [value for member in result.members for value in member.state_dict().values()]


# -- what it finds ---------------------------------------------------------------------------------------------


def test_hidden_bunch_is_found(found: Reconstruction, scan: ScreenDataset) -> None:
    truth = ld.TorchParticleGroup.from_cheetah(hidden_bunch())
    for name in ("norm_emit_x", "norm_emit_y", "sigma_x", "sigma_px", "cov_x__y"):
        value, error = found.statistic(name)
        assert value == pytest.approx(float(truth[name]), rel=0.15), name
        assert error > 0.0
    written = ScreenDataset(scan.settings, scan.images, scan.screen, "200.00000001 um")
    assert found.evaluate(written, 2000).size_error > 0.0
    left_out = found.evaluate(scan.split(every=3, offset=1)[1], 50_000)
    assert float(left_out.image.mean()) < 0.12
    assert left_out.size_error < 0.03
    assert float(found.beam["charge"]) == pytest.approx(1e-10)
    assert len(found.beam) == 2000


@pytest.mark.parametrize("sigma", [1e-6, 0.1], ids=["tiny design bunch", "huge design bunch"])
def test_start_comes_from_measured_sizes(scan: ScreenDataset, sigma: float) -> None:
    truth = ld.TorchParticleGroup.from_cheetah(hidden_bunch())
    start = BeamReconstruction(line(design_beam(sigma)), scan, 500).entrance.scale
    p0 = float(truth["mean_pz"])
    wanted = [float(truth["sigma_x"]), float(truth["sigma_px"]) / p0, float(truth["sigma_y"])]
    assert start[:3].tolist() == pytest.approx(wanted, rel=0.1)


def test_pointing_is_kept_apart_from_the_shape(scan: ScreenDataset) -> None:
    moved = np.array(scan.images)
    for setting, rows in enumerate((3, -3, 2, -2, 3, -3)):
        moved[setting] = np.roll(moved[setting], rows, axis=-2)
    jumping = ScreenDataset({"Q1.k1": K1}, moved, "SCR1.image", PIXEL)
    result = task(jumping, 1000).run(60, ensemble=1, progress=False)
    truth = ld.TorchParticleGroup.from_cheetah(hidden_bunch())
    assert float(result.beam["norm_emit_y"]) == pytest.approx(float(truth["norm_emit_y"]), rel=0.25)
    assert result.jitter["y"] == pytest.approx(PIXEL * 2.7, rel=0.25)
    assert result.jitter["x"] < 0.5 * PIXEL


def test_blur_is_fitted_with_the_bunch(scan: ScreenDataset) -> None:
    blur = Blur(LogNormal(PIXEL, 2.0))
    seen = blur.on_image(torch.tensor(scan.images[:, 0]), number(1.5 * PIXEL), (PIXEL, PIXEL))
    blurred = ScreenDataset({"Q1.k1": K1}, seen.numpy(), "SCR1.image", PIXEL)
    result = task(blurred, 2000, parameters=[blur]).run(120, ensemble=1, progress=False)
    assert result.statistic("screen blur")[0] == pytest.approx(1.5 * PIXEL, rel=0.15)
    assert "screen blur" in result.report()


def test_grain_beyond_the_prior_of_a_blur_takes_it_to_its_end(scan: ScreenDataset) -> None:
    seen = Blur(LogNormal(PIXEL, 2.0)).on_image(torch.tensor(scan.images[:, 0]), number(1.5 * PIXEL), (PIXEL, PIXEL))
    blurred = ScreenDataset({"Q1.k1": K1}, seen.numpy(), "SCR1.image", PIXEL)
    reconstruction = task(blurred, 2000, parameters=[Blur(Uniform(0.1 * PIXEL, 0.5 * PIXEL))])
    assert reconstruction.grain is not None
    assert reconstruction.grain.variance > (0.5 * PIXEL) ** 2
    width = float(reconstruction.values(reconstruction.new_member(0)).detach()[0])
    assert 0.49 * PIXEL < width < 0.5 * PIXEL


def test_without_grain_a_blur_below_what_fits_best_is_as_good(scan: ScreenDataset) -> None:
    # Two images are too few to see grain in.
    reconstruction = task(scan[[1, 4]], parameters=[Blur(LogNormal(PIXEL, 2.0))])
    assert reconstruction.grain is None
    first = reconstruction.new_member(0)
    assert first.aim is None
    drawn = [reconstruction.new_member(index, first).aim for index in range(1, 9)]
    widths = [aim.width() for aim in drawn if aim is not None]
    assert len(set(widths)) == 8
    assert max(widths) < float(reconstruction.values(first).detach()[0])
    assert min(widths) < 0.7 * max(widths)


def test_fit_of_a_quadrupole_scale_with_the_bunch_follows_its_prior(scan: ScreenDataset) -> None:
    # The bunch makes up for a common scale: the estimate is what the prior says, and the emittance goes with it.
    results = [
        task(scan, 1000, parameters=[Scale("Q1.k1", Normal(centre, 1e-3))]).run(60, ensemble=1, progress=False)
        for centre in (1.0, 1.3)
    ]
    scales = [result.statistic("scale of Q1.k1")[0] for result in results]
    assert scales == pytest.approx([1.0, 1.3], abs=0.01)
    assert float(results[1].beam["norm_emit_x"]) < 0.95 * float(results[0].beam["norm_emit_x"])


def test_what_the_scan_cannot_decide_is_said(scan: ScreenDataset) -> None:
    result = task(scan, 1000).run(40, ensemble=1, progress=False)
    assert "not checked" in result.report()
    ambiguity = result.check_ambiguity(epochs=40, strengths=(1.2, 0.0))
    verdict = {found.reading: found.decided for found in ambiguity.alternatives}
    assert not verdict["image mirrored in x"]
    assert not verdict["settings × 1.2"]
    # Without a quadrupole all images are alike: no bunch makes up for that.
    assert verdict["settings × 0"]
    lines = str(ambiguity).splitlines()
    assert len({line.index("norm_emit_x") for line in lines}) == 1, "columns are in line"
    assert "the strength of Q1.k1 as given" in result.conditional_on
    assert "NOT excluded" in result.report()


def test_images_of_a_fit_are_those_of_the_model(scan: ScreenDataset) -> None:
    # Through constant maps, in single precision, where the model need not run; a blur acts on the images only.
    reconstruction = task(scan, 2000, parameters=[Blur(LogNormal(PIXEL, 2.0))])
    member = reconstruction.new_member(0)
    runs = reconstruction.model.runs
    short = reconstruction.distances(member)
    assert reconstruction.passes == 1
    assert reconstruction.model.runs <= runs + 3
    whole = distances(reconstruction.images(member, reconstruction.inputs), reconstruction.target)
    for one, other in zip(short, whole, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-5)
    slopes = [
        torch.autograd.grad(found.aligned.sum() + found.size.sum(), member.generator.linear.weight)[0]
        for found in (short, whole)
    ]
    torch.testing.assert_close(*slopes, rtol=1e-3, atol=1e-3 * float(slopes[1].abs().max()))


def test_model_runs_where_the_fit_changes_its_inputs(scan: ScreenDataset) -> None:
    reconstruction = task(scan, parameters=[Scale("Q1.k1", Normal(1.0, 0.1))])
    reconstruction.distances(reconstruction.new_member(0))
    assert reconstruction.passes == 0


# -- predictions, pictures, files ------------------------------------------------------------------------------


def test_predictions_for_other_settings(found: Reconstruction, scan: ScreenDataset) -> None:
    images = found.predict({"Q1.k1": [0.5, 1.5]}, n_particles=1500)
    assert images.shape == (2, 40, 40)
    assert images.sum((-2, -1)).tolist() == pytest.approx([1.0, 1.0])
    assert found.predict({"Q1.k1": 0.5}, n_particles=1500)[0].equal(images[0])
    many = found.predict(scan, n_particles=400_000)
    assert many.shape == (6, 40, 40)
    with pytest.raises(ShapeError, match="settings have"):
        found.predict({"Q1.k1": [1.0, 2.0], "initial_charge": [1.0, 2.0, 3.0]})
    with pytest.raises(ValidationError, match="n_particles is 0"):
        found.predict({"Q1.k1": 0.5}, n_particles=0)


def test_predictions_take_settings_in_any_unit(found: Reconstruction, scan: ScreenDataset) -> None:
    per_mm = ScreenDataset({"Q1.k1": 1e-6 * K1}, scan.images, scan.screen, PIXEL, units={"Q1.k1": "1/mm^2"})
    torch.testing.assert_close(found.predict(per_mm, 1500), found.predict(scan, 1500), rtol=1e-9, atol=1e-15)


def test_report_names_what_was_found(found: Reconstruction) -> None:
    text = str(found)
    for part in ("norm_emit_x", "twiss_beta_y", "pointing", "L1", "2 bunches", "finished"):
        assert part in text
    with pytest.raises(UnknownVariableError, match="norm_emit"):
        found.statistic("norm_emit")


def test_without_an_ensemble_there_are_no_errors(scan: ScreenDataset) -> None:
    result = task(scan).run(2, ensemble=1, progress=False)
    assert math.isnan(result.statistic("sigma_x")[1])
    assert "ensemble" in result.report()


def test_file_has_numbers_and_bunch(found: Reconstruction, tmp_path: Path) -> None:
    found.save(tmp_path / "bunch.yaml")
    again = Reconstruction.load(tmp_path / "bunch.yaml")
    assert again["statistics"]["norm_emit_x"]["value"] == found.statistic("norm_emit_x")[0]
    assert again["statistics"]["norm_emit_x"]["standard_error"] == found.statistic("norm_emit_x")[1]
    assert float(again["beam"]["norm_emit_x"]) == pytest.approx(float(found.beam["norm_emit_x"]), rel=1e-9)
    (tmp_path / "other.yaml").write_text("a: 1\n", encoding="utf-8")
    with pytest.raises(ValidationError, match="no saved reconstruction"):
        Reconstruction.load(tmp_path / "other.yaml")
    (tmp_path / "other.yaml").write_text("a: [1,", encoding="utf-8")
    with pytest.raises(ValidationError, match="no saved reconstruction"):
        Reconstruction.load(tmp_path / "other.yaml")
    with pytest.raises(ValidationError, match="does not exist"):
        Reconstruction.load(tmp_path / "none.yaml")
    with pytest.raises(ValidationError, match="where the bunch goes; give the name of a YAML file"):
        found.save(tmp_path / "bunch.h5")


def test_picture_is_written(found: Reconstruction, tmp_path: Path) -> None:
    found.plot(tmp_path / "bunch.png", 2000)
    assert (tmp_path / "bunch.png").read_bytes().startswith(b"\x89PNG")


# -- repeated, stopped, killed ---------------------------------------------------------------------------------


def test_seed_repeats_a_fit_bit_by_bit(scan: ScreenDataset) -> None:
    first, second, other = (weights(task(scan, seed=seed).run(5, ensemble=2, progress=False)) for seed in (3, 3, 4))
    assert all(a.equal(b) for a, b in zip(first, second, strict=True))
    assert not first[2].equal(other[2])


@pytest.mark.parametrize("after", [1, 13, 31, 67], ids=["at once", "shape", "pointing", "second bunch"])
def test_killed_fit_goes_on_bit_by_bit(scan: ScreenDataset, tmp_path: Path, after: int) -> None:
    class Killed(Exception):
        pass

    seen = 0

    def kill(member: int, epoch: int, loss: float) -> None:
        nonlocal seen
        seen += 1
        if seen == after:
            raise Killed

    options: dict[str, Any] = {"epochs": 20, "ensemble": 2}
    whole = task(scan).run(**options, progress=False)
    with pytest.raises(Killed):
        task(scan).run(**options, progress=kill, checkpoint=tmp_path / "fit.ckpt")
    resumed = task(scan)
    result = resumed.run(**options, progress=False, checkpoint=tmp_path / "fit.ckpt")
    assert all(a.equal(b) for a, b in zip(weights(whole), weights(result), strict=True))
    assert result.history == whole.history
    if after > 3:
        assert result.runs < whole.runs


def test_ctrl_c_keeps_what_there_is(scan: ScreenDataset) -> None:
    def stop(member: int, epoch: int, loss: float) -> None:
        if epoch == 4:
            raise KeyboardInterrupt

    result = task(scan).run(20, ensemble=2, progress=stop)
    assert not result.finished
    assert len(result.history) == 5
    assert len(result.members) == 1
    assert "STOPPED" in result.report()


def test_checkpoint_of_another_fit_is_refused(scan: ScreenDataset, tmp_path: Path) -> None:
    file = tmp_path / "fit.ckpt"
    task(scan).run(2, progress=False, checkpoint=file)
    with pytest.raises(ValidationError, match="other data or options"):
        task(scan, seed=4).run(2, progress=False, checkpoint=file)
    file.write_bytes(b"nothing")
    with pytest.raises(ValidationError, match="no checkpoint"):
        task(scan).run(2, progress=False, checkpoint=file)


# -- what cannot be --------------------------------------------------------------------------------------------


def test_one_setting_is_no_scan(scan: ScreenDataset) -> None:
    with pytest.raises(CalibrationError, match="1 of 1 settings"):
        task(scan[[2]])


def test_setting_without_a_beam_is_left_out(scan: ScreenDataset) -> None:
    images = np.array(scan.images)
    images[2] = 0.0
    data = ScreenDataset({"Q1.k1": K1}, images, "SCR1.image", PIXEL, black="flag")
    result = task(data).run(3, ensemble=1, progress=False)
    assert len(result.fit.image) == 5
    assert bool(torch.isfinite(result.fit.image).all())


def test_model_without_a_bunch_is_refused(scan: ScreenDataset) -> None:
    twiss = {"beta_x": 8.0, "norm_emit_x": 1e-6, "beta_y": 6.0, "norm_emit_y": 1e-6}
    gun = ld.BunchFromMoments(500, **twiss, mean_energy=5e7, charge=1e-10)
    model = ld.StagedModel({"gun": gun, "line": line(design_beam())})
    with pytest.raises(ValidationError, match="initial_particles"):
        BeamReconstruction(model, scan)


def test_bunch_that_misses_the_screen_is_an_error(scan: ScreenDataset) -> None:
    with pytest.raises(CalibrationError, match="does not reach the screen"):
        task(scan, scale=[10.0, 1e-6, 10.0, 1e-6]).run(1, progress=False)


@pytest.mark.parametrize(
    "options,message",
    [
        ({"count": 10}, "n_particles is 10"),
        ({"dimensions": 5}, "dimensions is 5"),
        ({"scale": [1e-3] * 3}, "scale has 3"),
        ({"scale": [1e-3, 1e-4, 1e-3, 0.0]}, "positive"),
    ],
    ids=["particles", "dimensions", "length of scale", "zero scale"],
)
def test_options_that_cannot_be(scan: ScreenDataset, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        task(scan, **options)


@pytest.mark.parametrize("name", ["epochs", "ensemble", "rate"])
def test_numbers_of_a_fit_are_positive(scan: ScreenDataset, name: str) -> None:
    with pytest.raises(ValidationError, match=f"{name} is 0"):
        task(scan).run(**{name: 0}, progress=False)
