"""Cleaning and geometry: each step does what it says, keeps what it took away, and is recorded."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from lume_diff.calibration import ScreenDataset
from lume_diff.errors import CalibrationError, ShapeError, ValidationError
from tests.unit.calibration.conftest import PIXEL, gaussian_image

Make = Callable[..., ScreenDataset]


def one(image: np.ndarray, **options: object) -> ScreenDataset:
    return ScreenDataset({"Q1.k1": [1.0]}, image[None], "SCR1.image", PIXEL, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("way", [{}, {"percentile": 30.0}, {"background": 20.0}, {"background": "dark"}], ids=str)
def test_background(make_scan: Make, way: dict[str, object]) -> None:
    data = make_scan(shots=3)
    if way.get("background") == "dark":
        way = {"background": np.full(data.shape[2:], 20.0)}
    cleaned = data.subtract_background(**way)
    corner = cleaned.images[..., :10, :10].mean((-2, -1))
    assert np.abs(corner).max() < 2.5
    assert (cleaned.images < 0.0).any(), "negative pixels are kept"
    step = cleaned.history[-1]
    assert step.name == "subtract_background"
    assert "negative now and kept" in step.note
    away = step.arrays["background"]
    restored = cleaned.images + (away[..., None, None] if away.shape == data.shape[:2] else away)
    np.testing.assert_allclose(restored, data.images, atol=1e-9)
    assert cleaned.noise.level == 0.0
    assert cleaned.noise.sigma == data.noise.sigma


def test_background_refuses(make_scan: Make) -> None:
    data = make_scan()
    with pytest.raises(ShapeError, match="background has shape"):
        data.subtract_background(np.ones((3, 3)))
    with pytest.raises(ValidationError, match="'corners'"):
        data.subtract_background("edges")
    with pytest.raises(ValidationError, match="0 to 100"):
        data.subtract_background(percentile=101.0)


@pytest.mark.parametrize("aperture", [None, 5.0], ids=("whole", "aperture"))
def test_standard_errors_are_those_of_the_scatter(make_scan: Make, aperture: float | None) -> None:
    data = make_scan(shots=20).subtract_background()
    found = data.statistics(aperture)
    truth = {"mean_x": 4e-4, "mean_y": -3e-4, "sigma_x": (4e-4 + 1e-4 * np.arange(5))[:, None], "sigma_y": 4e-4}
    for name, expected in truth.items():
        pulls = (found[name] - expected) / found.errors[name]
        assert abs(pulls.mean()) < 0.5, name
        assert 0.6 < pulls.std() < 1.4, name
    assert found.cut.max() < 0.1


def test_statistics_of_a_known_image() -> None:
    image = np.zeros((6, 8))
    image[1, 2], image[4, 5] = 1.0, 3.0
    found = one(image, noise=0.1, has_beam=True).statistics()
    x, y = PIXEL * np.array([-1.5, 1.5]), PIXEL * np.array([-1.5, 1.5])
    w = np.array([0.25, 0.75])
    assert found["intensity"][0, 0] == 4.0
    assert found["mean_x"][0, 0] == pytest.approx(w @ x)
    assert found["sigma_y"][0, 0] == pytest.approx(np.sqrt(w @ (y - w @ y) ** 2))
    assert found["cov_x__y"][0, 0] == pytest.approx(w @ ((x - w @ x) * (y - w @ y)))
    assert found.errors["intensity"][0, 0] == pytest.approx(0.1 * np.sqrt(48))


def test_beam_at_the_edge_is_told() -> None:
    inside = one(gaussian_image()).statistics().cut[0, 0]
    cut = one(gaussian_image(mean=(36e-4, 0.0))).statistics().cut[0, 0]
    assert inside < 0.01
    assert cut > 0.5


def test_projections_fill_in_for_dead_pixels() -> None:
    image = gaussian_image()
    mask = np.ones(image.shape, bool)
    mask[::2, 40] = False
    mask[:, 3] = False
    found = one(image, mask=mask).projections("x")
    assert found.shape == (1, 1, 80)
    np.testing.assert_allclose(found[0, 0, 41], image[:, 41].sum())
    np.testing.assert_allclose(found[0, 0, 40], image[:, 40].sum(), rtol=0.01)
    assert np.ma.getmaskarray(found)[0, 0].nonzero()[0].tolist() == [3]
    with pytest.raises(ValidationError, match="'x' or 'y'"):
        one(image).projections("z")


@pytest.mark.parametrize("way", [{"level": 30.0}, {"level": "otsu"}, {"n_sigma": 3.0}, {"fraction": 0.1}], ids=str)
def test_threshold(make_scan: Make, way: dict[str, object]) -> None:
    data = make_scan().subtract_background()
    cleaned = data.threshold(**way)  # type: ignore[arg-type]
    levels = cleaned.history[-1].arrays["level"]
    kept = cleaned.images > 0.0
    np.testing.assert_array_equal(cleaned.images[kept], data.images[kept])
    assert (data.images[~kept] <= levels.max()).all()
    assert not kept[..., :10, :10].mean() > 0.01
    left = cleaned.images.sum((-2, -1)) / data.images.sum((-2, -1))
    np.testing.assert_allclose(cleaned.history[-1].arrays["removed"], 1.0 - left, atol=1e-12)
    assert (left > 0.4).all()
    assert cleaned.noise == data.noise, "the noise is that from before"


def test_otsu_divides_two_classes() -> None:
    image = np.full((60, 80), 10.0)
    image[20:30, 20:30] = 50.0
    image += np.random.default_rng(1).normal(size=image.shape)
    level = one(image).threshold("otsu").history[-1].arrays["level"][0, 0]
    assert 13.0 < level < 47.0


@pytest.mark.parametrize(
    "way",
    [{}, {"level": 1.0, "n_sigma": 3.0}, {"level": "median"}, {"n_sigma": "otsu"}, {"fraction": 2.0}],
    ids=str,
)
def test_threshold_refuses(make_scan: Make, way: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="threshold"):
        make_scan().threshold(**way)  # type: ignore[arg-type]


def test_saturated_pixels() -> None:
    data = one(np.minimum(gaussian_image(), 255.0))
    found = data.mask_saturated()
    assert (~found.mask).sum() == (gaussian_image() >= 255.0).sum()
    assert (~data.mask_saturated(200.0).mask).sum() == (gaussian_image() >= 200.0).sum()
    assert (~data.mask_saturated(grow=1).mask).sum() > (~found.mask).sum()
    assert one(gaussian_image()).mask_saturated().mask.all(), "no plateau, nothing left out"


def test_dead_hot_and_stuck_pixels(make_scan: Make) -> None:
    data = make_scan(n=6, shots=2, pedestal=20.0)
    images = data.images.copy()
    images[..., 10, 10] += 300.0  # hot
    images[..., 27, 44] = 0.0  # dead, in the beam
    images[..., 32, 40] = 400.0  # stuck, in the beam
    cleaned = ScreenDataset(data.settings, images, data.screen, PIXEL).mask_dead()
    assert np.argwhere(cleaned.history[-1].arrays["dead"]).tolist() == [[10, 10], [27, 44], [32, 40]]
    assert not cleaned.mask[..., 10, 10].any()
    known = np.zeros(data.shape[2:], bool)
    known[5, 6] = True
    assert np.argwhere(~data.mask_dead(known).mask[0, 0]).tolist() == [[5, 6]]
    with pytest.raises(ShapeError, match="expected that of one image"):
        data.mask_dead(known[:5])


def test_dead_pixels_are_found_where_shots_are_missing(make_scan: Make) -> None:
    data = make_scan(n=6, shots=4)
    images, weights = data.images.copy(), np.ones((6, 4))
    images[..., 10, 10] += 300.0
    images[1:, 1:], weights[1:, 1:] = 0.0, 0.0
    cleaned = ScreenDataset(data.settings, images, data.screen, PIXEL, weights=weights).mask_dead()
    assert np.argwhere(cleaned.history[-1].arrays["dead"]).tolist() == [[10, 10]]


def test_healthy_camera_has_no_dead_pixels(make_scan: Make) -> None:
    assert not make_scan(n=6, shots=2).mask_dead().history[-1].arrays["dead"].any()


def test_median_filter_removes_single_pixels(make_scan: Make) -> None:
    data = make_scan(pedestal=0.0)
    images = data.images.copy()
    images[..., 5, 5] = 1e4
    cleaned = ScreenDataset(data.settings, images, data.screen, PIXEL).median_filter()
    assert cleaned.images[..., 5, 5].max() < 20.0
    with pytest.raises(ValidationError, match="odd"):
        data.median_filter(4)


def test_crop_keeps_places() -> None:
    data = one(gaussian_image(), noise=0.01)
    whole = data.statistics()
    for part in (data.crop((10, 75, 2, 55)), data.crop((-3.0, 3.5, -2.8, 2.5), "mm"), data.crop("auto", n_sigma=5.0)):
        assert part.shape[2:] != data.shape[2:]
        found = part.statistics()
        for name in ("mean_x", "mean_y", "sigma_x", "sigma_y"):
            assert found[name][0, 0] == pytest.approx(whole[name][0, 0], rel=2e-3)
        assert part.history[-1].arrays["removed"][0, 0] < 1e-3
    assert data.crop(np.array([10, 75, 2, 55])).frame == data.crop((10, 75, 2, 55)).frame
    part = data.crop((-3.0, 3.5, -2.8, 2.5), "mm")
    assert part.frame.extent == pytest.approx((-3.0e-3, 3.5e-3, -2.8e-3, 2.5e-3))


@pytest.mark.parametrize(
    "roi",
    ["middle", (0, 10, 0), (0, 10, 0, 99), (5, 5, 0, 9), (0.5, 9, 0, 9), (0, np.nan, 0, 9)],
    ids=("name", "three", "beyond", "empty", "half", "nan"),
)
def test_crop_refuses(make_scan: Make, roi: object) -> None:
    with pytest.raises(ValidationError, match="crop"):
        make_scan().crop(roi)  # type: ignore[arg-type]


def test_crop_without_beam_refuses(make_scan: Make) -> None:
    with pytest.raises(CalibrationError, match=r"no image of 'SCR1.image' shows a beam"):
        make_scan(missing=(0, 1, 2, 3, 4)).crop()


def test_bin_adds_up(make_scan: Make) -> None:
    data = make_scan()
    binned = data.bin(4)
    assert binned.shape[2:] == (15, 20)
    assert binned.pixel_size == pytest.approx((4e-4, 4e-4))
    np.testing.assert_allclose(binned.images.sum((-2, -1)), data.images.sum((-2, -1)))
    assert binned.noise.sigma == pytest.approx(4.0 * data.noise.sigma)
    scatter = binned.images[..., :5, :5].std()
    assert scatter == pytest.approx(binned.noise.sigma, rel=0.2)
    mask = np.ones(data.shape[2:], bool)
    mask[0, 0] = False
    assert (~data.with_mask(mask).bin(4).mask[0, 0]).sum() == 1
    for n in (0, 2.5, 100):
        with pytest.raises(ValidationError, match="bin"):
            data.bin(n)  # type: ignore[arg-type]


STEPS: dict[str, Callable[[ScreenDataset], ScreenDataset]] = {
    "crop-bin": lambda data: data.crop((10, 70, 5, 50)).bin(3),
    "bin-crop": lambda data: data.bin(2).crop((3, 30, 4, 22)),
    "bin-with-a-rest": lambda data: data.bin(7).bin(2),
}


@pytest.mark.parametrize("case", STEPS)
def test_frame_shows_a_model_the_same_part(case: str) -> None:
    image = gaussian_image()
    data = STEPS[case](one(image))
    np.testing.assert_allclose(data.frame.view(image), data.images[0, 0])
    tensor = torch.tensor(image, requires_grad=True)
    seen = data.frame.view(tensor)
    np.testing.assert_allclose(seen.detach(), data.images[0, 0])
    seen.sum().backward()
    assert tensor.grad is not None
    assert data.frame.shape == data.shape[2:] == (data.frame.y.size, data.frame.x.size)
    centres = np.outer(np.ones(60), (np.arange(80) - 39.5) * PIXEL)
    weighted = data.frame.view(image * centres).sum() / data.images.sum()
    assert data.statistics()["mean_x"][0, 0] == pytest.approx(weighted, abs=3e-6)
    with pytest.raises(ShapeError, match="expected"):
        data.frame.view(image[1:])


def test_flip_transpose_and_upper_images() -> None:
    image = gaussian_image()
    data = one(image).crop((0, 70, 10, 60))
    found = data.statistics()
    assert data.flip("x").statistics()["mean_x"][0, 0] == pytest.approx(-found["mean_x"][0, 0])
    assert data.flip("y").statistics()["mean_y"][0, 0] == pytest.approx(-found["mean_y"][0, 0])
    turned = data.transpose().statistics()
    assert turned["mean_x"][0, 0] == pytest.approx(found["mean_y"][0, 0])
    assert turned["sigma_y"][0, 0] == pytest.approx(found["sigma_x"][0, 0])
    assert data.flip("x").flip("x").digest == data.digest == data.transpose().transpose().digest
    upper = one(image[::-1], orientation="upper")
    np.testing.assert_array_equal(upper.images[0, 0], image)
    assert str(upper.history[0]) == "flip(axis='y')"
    with pytest.raises(ValidationError, match="'x' or 'y'"):
        data.flip("left")


def test_rotate_turns_the_beam() -> None:
    data = one(gaussian_image(shape=(120, 120), mean=(1e-3, 0.0), sigma=(9e-4, 4e-4)), noise=1.0)
    turned = data.rotate(np.pi / 6.0)
    found = turned.statistics()
    assert found["mean_x"][0, 0] == pytest.approx(1e-3 * np.cos(np.pi / 6.0), rel=0.01)
    assert found["mean_y"][0, 0] == pytest.approx(1e-3 * np.sin(np.pi / 6.0), rel=0.01)
    assert found["cov_x__y"][0, 0] == pytest.approx(0.5 * (9e-4**2 - 4e-4**2) * np.sin(np.pi / 3.0), rel=0.03)
    assert not turned.mask[0, 0, 0, 0]
    with pytest.raises(CalibrationError, match="rotate first"):
        data.crop((10, 110, 10, 110)).rotate(0.1)


def test_rotate_of_oblong_pixels() -> None:
    image = gaussian_image(shape=(60, 120), mean=(1e-3, 0.0), sigma=(6e-4, 3e-4))[::1]
    oblong = image[::2]  # rows are twice as high as columns are wide
    data = ScreenDataset({"Q1.k1": [1.0]}, oblong[None], "S", (1e-4, 2e-4), noise=1.0)
    before, found = data.statistics(), data.rotate(0.4).statistics()
    x, y = before["mean_x"][0, 0], before["mean_y"][0, 0]
    assert found["mean_x"][0, 0] == pytest.approx(x * np.cos(0.4) - y * np.sin(0.4), abs=1e-5)
    assert found["mean_y"][0, 0] == pytest.approx(x * np.sin(0.4) + y * np.cos(0.4), abs=1e-5)


@pytest.mark.parametrize("per", ["shot", "setting", "scan"])
def test_centre_keeps_the_shifts(make_scan: Make, per: str) -> None:
    data = make_scan(missing=(2,), pedestal=0.0)
    centred = data.centre(per)
    shift = centred.history[-1].arrays["shift"]
    assert shift.shape == (5, 2, 2)
    np.testing.assert_allclose(shift[[0, 1, 3, 4]], np.broadcast_to([-4e-4, 3e-4], (4, 2, 2)), atol=5e-5)
    assert not shift[2].any(), "no beam, no shift"
    found = centred.statistics(aperture=4.0)
    assert np.abs(found["mean_x"]).max() < 5e-5
    assert np.abs(found["sigma_x"] / data.statistics(aperture=4.0)["sigma_x"] - 1.0).max() < 0.03


def test_mean_over_shots_leaves_out_what_does_not_count(make_scan: Make) -> None:
    data = make_scan(n=3, shots=4, weights=[[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 1]])
    mean = data.mean_shots()
    assert mean.shape[1] == 1
    np.testing.assert_allclose(mean.images[0, 0], data.images[0].mean(0))
    np.testing.assert_allclose(mean.images[1, 0], data.images[1, :2].mean(0))
    assert mean.weights[:, 0].tolist() == [1.0, 0.5, 1.0]
    assert mean.noise.sigma == pytest.approx(data.noise.sigma / 2.0)


def test_every_step_is_recorded_and_leaves_its_source_alone(make_scan: Make) -> None:
    data = make_scan()
    before = data.digest, data.history
    names = []
    step = data
    for name, run in {
        "subtract_background": lambda d: d.subtract_background(),
        "mask_saturated": lambda d: d.mask_saturated(),
        "mask_dead": lambda d: d.mask_dead(),
        "median_filter": lambda d: d.median_filter(),
        "rotate": lambda d: d.rotate(0.01),
        "threshold": lambda d: d.threshold(n_sigma=2.0),
        "flip": lambda d: d.flip("x"),
        "transpose": lambda d: d.transpose(),
        "crop": lambda d: d.crop((2, 58, 4, 76)),
        "centre": lambda d: d.centre(),
        "bin": lambda d: d.bin(2),
        "mean_shots": lambda d: d.mean_shots(),
        "select": lambda d: d[1:],
    }.items():
        names.append(name)
        step = run(step)
        assert [done.name for done in step.history] == names
        assert str(step.history[-1]).startswith(f"{name}(")
    assert (data.digest, data.history) == before
