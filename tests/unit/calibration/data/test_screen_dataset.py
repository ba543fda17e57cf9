"""ScreenDataset: what it takes, what it refuses, how it is divided, and that it does not change."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch

from lume_diff.calibration import NoiseModel, ScreenDataset
from lume_diff.errors import CalibrationError, LumeDiffError, ShapeError, UnitError, ValidationError
from tests.unit.calibration.conftest import PIXEL, gaussian_image

Make = Callable[..., ScreenDataset]
IMAGES = np.stack([gaussian_image(peak=10.0 * (i + 1)) for i in range(3)])
K1 = {"Q1.k1": [-1.0, 0.0, 1.0]}


def test_images_without_shots_are_one_shot_each() -> None:
    data = ScreenDataset(K1, IMAGES, "SCR1.image", PIXEL)
    assert data.shape == (3, 1, 60, 80)
    np.testing.assert_array_equal(data.images[:, 0], IMAGES)
    assert data.outputs["SCR1.image"] is data.images


def test_numbers_and_tensors_are_taken() -> None:
    data = ScreenDataset({"Q1.k1": torch.tensor([-1.0, 0.0, 1.0]), "Q2.k1": 2.5}, torch.tensor(IMAGES), "S", PIXEL)
    np.testing.assert_array_equal(data.settings["Q2.k1"], [2.5, 2.5, 2.5])
    assert data.scanned == ("Q1.k1",)
    assert data.tensor().dtype is torch.float64
    assert data.inputs()["Q1.k1"].tolist() == [-1.0, 0.0, 1.0]


def test_16_bit_counts_are_kept_exactly() -> None:
    images = np.linspace(0, 65535, 3 * 60 * 80).astype(np.uint16).reshape(3, 60, 80)
    np.testing.assert_array_equal(ScreenDataset(K1, images, "S", PIXEL).images[:, 0], images)


def test_one_weight_a_setting_serves_its_shots(make_scan: Make) -> None:
    for shots in (1, 3):
        data = make_scan(n=3, shots=shots, weights=[1.0, 0.0, 2.0], has_beam=[True, True, False])
        np.testing.assert_array_equal(data.weights, np.outer([1.0, 0.0, 2.0], np.ones(shots)))
        assert data.has_beam.all(1).tolist() == [True, False, False]


def test_nothing_can_be_written() -> None:
    source = IMAGES.copy()
    data = ScreenDataset(K1, source, "SCR1.image", PIXEL)
    for array in (data.images, data.weights, data.has_beam, data.mask):
        with pytest.raises(ValueError, match=r"read-only|WRITEABLE"):
            array[0] = 0
    before = data.digest
    source[:] = 0.0
    data.settings["Q1.k1"][:] = 7.0
    assert ScreenDataset(data.settings, data.images, data.screen, PIXEL).digest == before


REFUSED: dict[str, tuple[dict[str, object], type[LumeDiffError], str]] = {
    "mismatched": ({"settings": {"Q1.k1": [1.0, 2.0]}}, ShapeError, r"'Q1.k1' has 2 values, expected 3"),
    "setting-by-shot": ({"settings": {"Q1.k1": np.ones((3, 2))}}, ShapeError, "expected \\(n_settings,\\)"),
    "nan-setting": ({"settings": {"Q1.k1": [0.0, np.nan, 1.0]}}, ValidationError, r"not finite at \[1\]"),
    "no-settings": ({"settings": {}}, ValidationError, "expected a mapping"),
    "two-at-once": ({"settings": {"A": [1.0], "B": ["x"] * 3}}, LumeDiffError, r"(?s)2 problems.*'[AB]'.*'[AB]'"),
    "flat-images": ({"images": np.ones((3, 4))}, ShapeError, r"\(settings, shots, ny, nx\)"),
    "text-images": ({"images": [["a"]]}, ValidationError, "expected real numbers"),
    "millimetres": ({"pixel_size": 0.125}, ValidationError, r"'0.125 mm' or 0.000125"),
    "micrometres": ({"pixel_size": 125}, ValidationError, r"'125 um' or 0.000125"),
    "small-millimetres": ({"pixel_size": (0.0125, 0.0125)}, ValidationError, r"'0.0125 mm'"),
    "no-unit": ({"pixel_size": "0.125"}, UnitError, "'125 um'"),
    "no-length": ({"pixel_size": "0.125 s"}, UnitError, "give a length"),
    "negative": ({"pixel_size": -1e-4}, ValidationError, "expected a positive size"),
    "three": ({"pixel_size": (1e-4, 1e-4, 1e-4)}, ShapeError, "expected one or"),
    "mask-shape": ({"mask": np.ones((5, 5), bool)}, ShapeError, r"expected that of an image \(60, 80\)"),
    "mask-kind": ({"mask": np.ones((60, 80))}, ValidationError, "expected bool"),
    "mask-all": ({"mask": np.zeros((60, 80), bool)}, ValidationError, "leaves no pixel"),
    "weights-shape": ({"weights": np.ones(5)}, ShapeError, r"\(settings, shots\)"),
    "weights-sign": ({"weights": -1.0}, ValidationError, "not negative"),
    "noise-zero": ({"noise": 0.0}, ValidationError, "sigma is 0.0; expected positive"),
    "unit-of-nothing": ({"units": {"Q9.k1": "1/m^2"}}, ValidationError, "'Q9.k1', which is no setting"),
    "unit": ({"units": {"Q1.k1": "parsnip"}}, UnitError, "'Q1.k1'"),
    "metadata": ({"metadata": {"camera": object()}}, ValidationError, "metadata 'camera'"),
    "metadata-unit": ({"metadata": {"energy": (1.0, "parsnip")}}, UnitError, "metadata 'energy'"),
    "orientation": ({"orientation": "sideways"}, ValidationError, "'lower' or 'upper'"),
    "screen": ({"screen": ""}, ValidationError, "'SCR1.image'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_refused(case: str) -> None:
    changes, error, message = REFUSED[case]
    given = {"settings": K1, "images": IMAGES, "screen": "SCR1.image", "pixel_size": PIXEL, **changes}
    with pytest.raises(error, match=message):
        ScreenDataset(**given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "given, size",
    [("125 um", (1.25e-4, 1.25e-4)), (("0.1mm", 2e-4), (1e-4, 2e-4)), ("5 mm", (5e-3, 5e-3)), (np.float32(1e-3), None)],
    ids=("string", "mixed", "sure-of-it", "float32"),
)
def test_pixel_size(given: object, size: tuple[float, float] | None) -> None:
    found = ScreenDataset(K1, IMAGES, "S", given).pixel_size
    assert found == pytest.approx(size or (1e-3, 1e-3), rel=1e-6)


def test_nan_pixels_are_named_and_can_be_left_out() -> None:
    images = IMAGES.copy()
    images[1, 7, 9] = np.nan
    images[2, 0, 0] = np.inf
    with pytest.raises(
        ValidationError, match=r"2 pixels are not finite, in setting 1, setting 2.*row 7, column 9.*nan='mask'"
    ):
        ScreenDataset(K1, images, "SCR1.image", PIXEL)
    data = ScreenDataset(K1, images, "SCR1.image", PIXEL, nan="mask")
    assert np.isfinite(data.images).all()
    assert (~data.mask).sum() == 2
    assert not data.mask[1, 0, 7, 9]
    assert "2 pixels" in str(data.history[0])
    assert np.isfinite(data.statistics()["sigma_x"]).all()


def test_black_image_is_named_and_can_be_flagged() -> None:
    images = IMAGES.copy()
    images[1] = 0.0
    with pytest.raises(ValidationError, match=r"setting 1 is black.*black='flag'"):
        ScreenDataset(K1, images, "SCR1.image", PIXEL)
    data = ScreenDataset(K1, images, "SCR1.image", PIXEL, black="flag")
    assert data.has_beam[:, 0].tolist() == [True, False, True]
    found = data.statistics()
    assert found["sigma_x"].mask[:, 0].tolist() == [False, True, False]
    assert np.isfinite(found["sigma_x"].data).all()


def test_all_black_is_refused_whatever_is_asked() -> None:
    with pytest.raises(ValidationError, match="all 3 images are black"):
        ScreenDataset(K1, 0.0 * IMAGES, "SCR1.image", PIXEL, black="flag")


@pytest.mark.parametrize("missing", [(), (0,), (1, 3)], ids=str)
def test_missed_screen_is_seen_in_noise(make_scan: Make, missing: tuple[int, ...]) -> None:
    data = make_scan(missing=missing, shots=3)
    assert (~data.has_beam).all(1).nonzero()[0].tolist() == list(missing)
    assert data.has_beam.any(1).sum() == 5 - len(missing)
    cleaned = data.subtract_background().threshold(n_sigma=3.0)
    np.testing.assert_array_equal(cleaned.has_beam, data.has_beam)
    for name in ("mean_x", "sigma_y", "intensity", "cov_x__y"):
        found = cleaned.statistics(aperture=4.0)[name]
        np.testing.assert_array_equal(np.ma.getmaskarray(found), ~data.has_beam)
        assert np.isfinite(found.data).all()


def test_hot_pixel_is_no_beam(make_scan: Make) -> None:
    data = make_scan(missing=(2,))
    images = data.images.copy()
    images[2, :, 30, 30] += 5000.0
    again = ScreenDataset(data.settings, images, data.screen, PIXEL)
    assert not again.has_beam[2].any()
    assert again.has_beam.sum() == 8


def test_one_setting_is_allowed_and_told(make_scan: Make) -> None:
    data = make_scan(n=1)
    assert (len(data), data.distinct_settings, data.scanned) == (1, 1, ())
    with pytest.raises(CalibrationError, match="1 of 1 settings differ and show the beam, a fit of the beam needs 3"):
        data.require_scan(3, "a fit of the beam")
    make_scan(n=3).require_scan(3, "a fit of the beam")
    with pytest.raises(CalibrationError, match="2 of 3 settings"):
        make_scan(n=3, missing=(1,)).require_scan(3, "a fit of the beam")


def test_selection(make_scan: Make) -> None:
    data = make_scan()
    for index, expected in (
        (slice(1, 3), [1, 2]),
        (-1, [4]),
        ([0, 4], [0, 4]),
        (data.settings["Q1.k1"] > 0.5, [3, 4]),
    ):
        part = data[index]
        np.testing.assert_array_equal(part.images, data.images[expected])
        np.testing.assert_array_equal(part.settings["Q1.k1"], data.settings["Q1.k1"][expected])
        assert part.noise == data.noise
        assert part.history[-1].name == "select"
    assert [part.settings["Q1.k1"][0] for part in data] == data.settings["Q1.k1"].tolist()
    with pytest.raises(IndexError, match="of 5"):
        data[5]
    with pytest.raises(ShapeError, match="mask of shape"):
        data[np.array([True, False])]
    with pytest.raises(ValidationError, match="selects none"):
        data[data.settings["Q1.k1"] > 99.0]


def test_split_by_every_third(make_scan: Make) -> None:
    data = make_scan(n=7)
    fit, check = data.split(every=3, offset=1)
    k1 = data.settings["Q1.k1"]
    np.testing.assert_array_equal(check.settings["Q1.k1"], k1[[1, 4]])
    np.testing.assert_array_equal(fit.settings["Q1.k1"], k1[[0, 2, 3, 5, 6]])
    assert fit.noise == check.noise == data.noise


def test_split_at_random_is_reproducible(make_scan: Make) -> None:
    data = make_scan(n=7)
    fit, check = data.split(fraction=0.6, seed=3)
    again, _ = data.split(fraction=0.6, seed=3)
    assert fit.digest == again.digest
    assert (len(fit), len(check)) == (4, 3)
    together = np.sort(np.concatenate((fit.settings["Q1.k1"], check.settings["Q1.k1"])))
    np.testing.assert_array_equal(together, data.settings["Q1.k1"])


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"every": 3, "fraction": 0.5},
        {"every": 1},
        {"every": 3, "offset": 3},
        {"fraction": 1.0},
        {"every": 9, "offset": 8},
    ],
    ids=str,
)
def test_split_refuses(make_scan: Make, given: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match="split"):
        make_scan(n=5).split(**given)  # type: ignore[arg-type]


def test_join_is_the_opposite_of_split(make_scan: Make) -> None:
    data = make_scan()
    joined = ScreenDataset.join([data[:2], data[2:]])
    np.testing.assert_array_equal(joined.images, data.images)
    assert joined.digest == data.digest
    metres, microns, computed = (ScreenDataset(K1, IMAGES, "S", size) for size in (3e-5, "30 um", 3e-5 * (1.0 + 1e-9)))
    assert metres.digest == microns.digest
    assert len(ScreenDataset.join([metres, microns, computed])) == 9
    with pytest.raises(ShapeError, match="number 2 has Frame"):
        ScreenDataset.join([metres, ScreenDataset(K1, IMAGES, "S", 3.01e-5)])
    cleaned = ScreenDataset.join([data[:2], data[2:].subtract_background()])
    assert "number 2 was made by: select" in cleaned.history[-1].note
    assert "subtract_background" in cleaned.history[-1].note
    with pytest.raises(LumeDiffError, match=r"(?s)2 problems.*\(shots, ny, nx\)"):
        ScreenDataset.join([data, data.crop((0, 40, 0, 40))])


def test_joined_scans_keep_the_noise_from_before_cleaning(make_scan: Make) -> None:
    parts = [make_scan(n=3, noise=noise).threshold(n_sigma=3.0) for noise in (3.0, 4.0)]
    joined = ScreenDataset.join(parts)
    assert joined.noise.sigma == pytest.approx(np.sqrt(12.5), rel=0.05)
    assert "mean over 2 parts" in joined.noise.source


def test_digest_tells_data_apart_and_nothing_else(make_scan: Make) -> None:
    data = make_scan(noise=3.0)
    same = ScreenDataset(
        data.settings, data.images, data.screen, ("0.1 mm", PIXEL), metadata={"a": 1}, has_beam=data.has_beam
    )
    assert same.digest == data.digest
    images = data.images.copy()
    images[2, 1, 30, 30] += 1e-6
    changed = {
        "image": ScreenDataset(data.settings, images, data.screen, PIXEL),
        "setting": ScreenDataset({"Q1.k1": data.settings["Q1.k1"] + 1e-9}, data.images, data.screen, PIXEL),
        "name": ScreenDataset({"Q2.k1": data.settings["Q1.k1"]}, data.images, data.screen, PIXEL),
        "pixel": ScreenDataset(data.settings, data.images, data.screen, 1.1e-4),
        "noise": data.with_noise(4.0),
        "beam": data.with_beam(np.zeros((5, 2), bool)),
        "part": data[:4],
        "mask": data.with_mask(gaussian_image() > 1e-3),
    }
    digests = {name: other.digest for name, other in changed.items()}
    assert len({data.digest, *digests.values()}) == 1 + len(changed), digests


def test_digest_does_not_depend_on_dtype() -> None:
    whole = np.round(IMAGES)
    assert (
        ScreenDataset(K1, whole.astype(np.float32), "S", PIXEL, noise=1.0).digest
        == ScreenDataset(K1, whole, "S", PIXEL, noise=1.0).digest
    )


def test_copies_and_pickles(make_scan: Make) -> None:
    data = make_scan(metadata={"energy": (63.0, "MeV")}).bin(2)
    for again in (copy.deepcopy(data), pickle.loads(pickle.dumps(data))):
        assert again.digest == data.digest
        assert again.metadata["energy"] == (63.0, "MeV")
        assert [str(step) for step in again.history] == [str(step) for step in data.history]


def test_noise_is_that_of_the_images(make_scan: Make) -> None:
    data = make_scan(n=6, shots=4, noise=3.0, gain=0.5)
    for method in ("local", "shots"):
        found = data.with_noise(method).noise
        assert found.sigma == pytest.approx(3.0, rel=0.1), method
        assert found.gain == pytest.approx(0.5, rel=0.25), method
        assert found.level == pytest.approx(20.0, abs=0.5), method
    assert data.with_noise("shots").noise.relative < 0.02


def test_images_that_do_not_count_have_no_noise(make_scan: Make) -> None:
    data = make_scan(n=6, shots=1)
    images = data.images.copy()
    images[3:] = 0.0  # a camera that was not read out
    weights = [1.0, 1.0, 1.0, 0.0, 0.0, 0.0]
    found = ScreenDataset(data.settings, images, data.screen, PIXEL, weights=weights)
    for noise in (found.noise, found.with_noise("local").noise):
        assert noise.sigma == pytest.approx(3.0, rel=0.1)
        assert noise.level == pytest.approx(20.0, abs=0.5)
    with pytest.raises(CalibrationError, match="no image that counts has a valid pixel"):
        _ = ScreenDataset(data.settings, images, data.screen, PIXEL, weights=0.0).noise


def test_noise_of_images_of_which_strips_are_left() -> None:
    mask = np.zeros(IMAGES.shape[1:], bool)
    mask[:, ::4] = True  # no pixel has all its neighbours
    images = IMAGES + np.random.default_rng(0).normal(0.0, 2.0, IMAGES.shape)
    assert ScreenDataset(K1, images, "S", PIXEL, mask=mask).noise.sigma == pytest.approx(2.0, rel=0.2)


def test_gain_by_many_shots_is_that_of_the_camera(make_scan: Make) -> None:
    data = make_scan(n=6, shots=20, noise=3.0, gain=0.5)
    assert data.with_noise("shots").noise.gain == pytest.approx(0.5, rel=0.05)


def test_jitter_shows_between_shots_only() -> None:
    generator = np.random.default_rng(3)
    light = np.stack([[gaussian_image(peak=p) for p in 800.0 * (1.0 + 0.1 * generator.normal(size=20))]])
    images = light + 3.0 * generator.normal(size=light.shape)
    data = ScreenDataset({"Q1.k1": [1.0]}, images, "S", PIXEL)
    spread = float(light.max((-2, -1)).std(ddof=1) / light.max((-2, -1)).mean())
    assert data.with_noise("shots").noise.relative == pytest.approx(spread, rel=0.15)
    assert data.with_noise("local").noise.relative == 0.0


def test_images_without_noise_have_a_floor_that_is_told() -> None:
    noise = ScreenDataset(K1, IMAGES, "S", PIXEL).noise
    assert noise.sigma == pytest.approx(1e-4 * IMAGES.max(), rel=0.05)
    assert "no noise" in noise.source


def test_rounding_of_the_camera_is_noise() -> None:
    data = ScreenDataset(K1, 4.0 * np.round(IMAGES), "S", PIXEL)
    assert data.noise.sigma == pytest.approx(4.0 / np.sqrt(12.0))


def test_noise_model_takes_tensors_with_gradient() -> None:
    signal = torch.tensor([0.0, 5.0, 40.0], dtype=torch.float64, requires_grad=True)
    model = NoiseModel(sigma=2.0, gain=0.5, relative=0.1, level=4.0)
    assert torch.autograd.gradcheck(model.variance, signal)
    np.testing.assert_allclose(model.std(signal).detach(), model.std(signal.detach().numpy()))


def test_repr_says_what_it_is(make_scan: Make) -> None:
    text = repr(make_scan())
    assert "'SCR1.image': 5 settings of Q1.k1, 2 shots of 80 x 60 pixels of 100 µm" in text
