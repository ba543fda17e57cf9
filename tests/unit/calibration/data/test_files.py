"""Datasets from and to files and tables, and the two scans that came with the project."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from lume_diff.calibration import Dataset, ScreenDataset
from lume_diff.errors import ShapeError, ValidationError
from tests.unit.calibration.conftest import PIXEL, gaussian_image

Make = Callable[..., ScreenDataset]
K1 = {"Q1.k1": [-1.0, 0.0, 1.0]}


def width(path: Path) -> int:
    with Image.open(path) as picture:
        return picture.size[0]


def assert_same(found: ScreenDataset, data: ScreenDataset) -> None:
    assert found.digest == data.digest
    np.testing.assert_array_equal(found.images, data.images)
    np.testing.assert_array_equal(found.mask, data.mask)
    np.testing.assert_array_equal(found.has_beam, data.has_beam)
    assert (found.noise, found.frame, found.screen) == (data.noise, data.frame, data.screen)
    assert (dict(found.units), dict(found.metadata)) == (dict(data.units), dict(data.metadata))
    assert [str(step) for step in found.history] == [str(step) for step in data.history]
    for mine, other in zip(found.history, data.history, strict=True):
        for name, array in other.arrays.items():
            np.testing.assert_array_equal(mine.arrays[name], array)


@pytest.mark.parametrize("suffix", ["npz", "h5"])
def test_everything_comes_back_from_a_file(make_scan: Make, tmp_path: Path, suffix: str) -> None:
    data = make_scan(
        missing=(3,),
        units={"Q1.k1": "1/m^2"},
        weights=[1.0, 1.0, 2.0, 1.0, 0.5],
        metadata={"energy": (63.0, "MeV"), "operator": "A. N.", "lengths": [0.1, 0.2], "linac": {"phase": 3}},
    )
    data = data.mask_dead().subtract_background().threshold(n_sigma=2.0).crop((4, 76, 2, 58)).bin(2)[1:]
    path = tmp_path / f"scan.{suffix}"
    if suffix == "npz":
        assert data.to_npz(path) == path
        assert_same(ScreenDataset.from_npz(path), data)
    else:
        assert data.to_hdf5(path) == path
        assert_same(ScreenDataset.from_hdf5(path), data)


def test_hdf5_is_readable_by_others(make_scan: Make, tmp_path: Path) -> None:
    data = ScreenDataset(
        {"inj/Q1.k1": [-1.0, 1.0]}, make_scan(n=2).images, "inj/SCR.image", PIXEL, units={"inj/Q1.k1": "1/m^2"}
    )
    with h5py.File(data.to_hdf5(tmp_path / "scan.h5")) as file:
        assert file.attrs["format"] == "lume_diff.ScreenDataset"
        assert file["settings/inj%2FQ1.k1"][()].tolist() == [-1.0, 1.0]
        assert file["settings/inj%2FQ1.k1"].attrs["unit"] == "1/m^2"
        assert file["images"].attrs["pixel_size"].tolist() == [PIXEL, PIXEL]
        np.testing.assert_array_equal(file["images"], data.images)
        assert json.loads(file["header"][()])["screen"] == "inj/SCR.image"
    assert ScreenDataset.from_hdf5(tmp_path / "scan.h5").digest == data.digest


def test_edited_file_is_noticed(make_scan: Make, tmp_path: Path) -> None:
    path = make_scan().to_hdf5(tmp_path / "scan.h5")
    with h5py.File(path, "a") as file:
        file["images"][0, 0, 5, 5] += 1.0
    with pytest.raises(ValidationError, match="damaged or was edited"):
        ScreenDataset.from_hdf5(path)
    with pytest.raises(ValidationError, match=r"holds a 'lume_diff.ScreenDataset', expected 'lume_diff.Dataset'"):
        Dataset.from_hdf5(path)


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("no")
    (tmp_path / "text.png").write_text("no")
    np.savez(tmp_path / "pickled.npz", a=np.array([{}], dtype=object))
    np.savez(tmp_path / "other.npz", k1=np.ones(3), images=np.ones((3, 9, 9)), header="mine")
    whole = (tmp_path / "other.npz").read_bytes()
    (tmp_path / "half.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.npz").write_bytes(b"")
    (tmp_path / "empty.npy").write_bytes(b"")
    with (tmp_path / "one.npz").open("wb") as file:
        np.save(file, np.ones(3))
    for name, message in (
        ("none.npz", "is no file"),
        ("one.npz", "holds one array"),
        ("text.npz", "without pickle"),
        ("pickled.npz", "without pickle"),
        ("half.npz", "without pickle"),
        ("empty.npz", "without pickle"),
    ):
        with pytest.raises(ValidationError, match=message):
            ScreenDataset.from_npz(tmp_path / name, {"k1": "Q1.k1"}, "S")
    with pytest.raises(ValidationError, match=r"say which arrays are what.*'k1', 'images', 'header'"):
        ScreenDataset.from_npz(tmp_path / "other.npz")
    with pytest.raises(ValidationError, match="no pixel_size_m"):
        ScreenDataset.from_npz(tmp_path / "other.npz", {"k1": "Q1.k1"}, "S")
    with pytest.raises(ValidationError, match=r"no array 'K1'; nearest: 'k1'"):
        ScreenDataset.from_npz(tmp_path / "other.npz", {"K1": "Q1.k1"}, "S", pixel_size=PIXEL)
    with pytest.raises(ValidationError, match="is no HDF5 file"):
        ScreenDataset.from_hdf5(tmp_path / "text.npz")
    with pytest.raises(ValidationError, match="cannot be read as an image"):
        ScreenDataset.from_images(K1, [tmp_path / "text.png"] * 3, "S", PIXEL)
    with pytest.raises(ValidationError, match="without pickle"):
        ScreenDataset.from_images(K1, [tmp_path / "empty.npy"] * 3, "S", PIXEL)


def test_parameters_of_steps_may_be_numbers_of_numpy(make_scan: Make, tmp_path: Path) -> None:
    data = make_scan().threshold(np.float32(3.0)).median_filter(np.int64(3))  # type: ignore[arg-type]
    found = ScreenDataset.from_npz(data.to_npz(tmp_path / "scan.npz"))
    assert [dict(step.parameters) for step in found.history] == [{"level": 3.0}, {"size": 3}]


@pytest.mark.parametrize("suffix", ["png", "tiff", "npy"])
def test_image_files_keep_16_bits(tmp_path: Path, suffix: str) -> None:
    images = np.round(np.stack([gaussian_image(peak=p) for p in (50000.0, 60000.0, 65535.0)])).astype(np.uint16)
    paths = [tmp_path / f"shot{i}.{suffix}" for i in range(3)]
    for path, image in zip(paths, images, strict=True):
        if suffix == "npy":
            np.save(path, image)
        else:
            Image.fromarray(image[::-1].copy()).save(path)
    data = ScreenDataset.from_images(K1, paths, "SCR1.image", "100 um")
    np.testing.assert_array_equal(data.images[:, 0], images)
    assert [step.name for step in data.history] == ([] if suffix == "npy" else ["flip"])
    lower = ScreenDataset.from_images(K1, paths, "SCR1.image", "100 um", orientation="lower")
    assert lower.statistics()["mean_y"][0, 0] == pytest.approx(-3e-4 if suffix == "npy" else 3e-4, rel=0.01)


def test_pages_of_a_tiff_and_lists_of_files_are_shots(tmp_path: Path) -> None:
    pages = [Image.fromarray(np.round(gaussian_image(peak=p)).astype(np.uint8)) for p in (100.0, 150.0, 200.0)]
    pages[0].save(tmp_path / "three.tif", save_all=True, append_images=pages[1:])
    pages[0].save(tmp_path / "one.png")
    data = ScreenDataset.from_images(
        K1, [tmp_path / "three.tif", [tmp_path / "one.png"] * 2, tmp_path / "one.png"], "SCR1.image", PIXEL
    )
    assert data.shape[:2] == (3, 3)
    assert data.weights.tolist() == [[1, 1, 1], [1, 1, 0], [1, 0, 0]]
    np.testing.assert_array_equal(data.has_beam, data.weights > 0.0)
    assert not data.mask[2, 1:].any()
    assert np.ma.getmaskarray(data.statistics()["sigma_x"]).tolist() == (data.weights == 0.0).tolist()
    assert data.mean_shots().has_beam.all()


def test_mask_of_settings_with_different_numbers_of_shots(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.npy" for i in range(3)]
    for i, path in enumerate(paths):
        np.save(path, gaussian_image(peak=100.0 + i))
    mask = np.ones((3, 60, 80), bool)
    mask[1, 5] = False
    shots = [paths, paths[:1], paths[:2]]
    data = ScreenDataset.from_images(K1, shots, "S", PIXEL, mask=mask)
    assert data.mask[0].all()
    assert np.argwhere(~data.mask[1, 0].all(1)).tolist() == [[5]]
    assert not data.mask[1, 1:].any()
    with pytest.raises(ValidationError, match="mask has dtype uint8, expected bool"):
        ScreenDataset.from_images(K1, shots, "S", PIXEL, mask=mask.astype(np.uint8))


def test_table_of_images_that_cannot_be_told_apart(tmp_path: Path) -> None:
    np.save(tmp_path / "0.npy", gaussian_image())
    Image.fromarray(gaussian_image().astype(np.uint8)).save(tmp_path / "1.png")
    frame = {"k1": [-1.0, 1.0], "image": ["0.npy", "1.png"]}
    with pytest.raises(ValidationError, match="pictures and NPY files together; give orientation"):
        ScreenDataset.from_frame(frame, ["k1"], "S", PIXEL, folder=tmp_path)
    with pytest.raises(ValidationError, match=r"received the string 'k1'.*write \['k1'\]"):
        ScreenDataset.from_frame(frame, "k1", "S", PIXEL, folder=tmp_path)


def test_pictures_that_do_not_fit(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((10, 12, 3), np.uint8)).save(tmp_path / "colour.png")
    Image.fromarray(np.zeros((10, 12), np.uint8)).save(tmp_path / "small.png")
    Image.fromarray(np.zeros((20, 12), np.uint8)).save(tmp_path / "large.png")
    with pytest.raises(ValidationError, match=r"mode 'RGB'.*grey"):
        ScreenDataset.from_images(K1, [tmp_path / "colour.png"] * 3, "S", PIXEL)
    with pytest.raises(ShapeError, match=r"\(10, 12\), \(20, 12\)"):
        ScreenDataset.from_images(K1, [tmp_path / n for n in ("small.png", "large.png", "small.png")], "S", PIXEL)
    with pytest.raises(ValidationError, match=r"settings \[1\] have no image"):
        ScreenDataset.from_images(K1, [tmp_path / "small.png", [], tmp_path / "small.png"], "S", PIXEL)


@pytest.mark.parametrize("kind", ["arrays", "paths"])
def test_table_with_one_row_a_shot(tmp_path: Path, kind: str) -> None:
    pandas = pytest.importorskip("pandas", reason="pandas is not installed; tables of any kind work alike")
    k1 = [-1.0, -1.0, 1.0, 1.0, 0.5]
    images = [gaussian_image(peak=100.0 + i) for i in range(5)]
    for i, image in enumerate(images):
        np.save(tmp_path / f"{i}.npy", image)
    frame = pandas.DataFrame(
        {"quad": k1, "L1.phase": 2.0, "picture": images if kind == "arrays" else [f"{i}.npy" for i in range(5)]}
    )
    data = ScreenDataset.from_frame(
        frame, {"quad": "Q1.k1", "L1.phase": "L1.phase"}, "SCR1.image", PIXEL, images="picture", folder=tmp_path
    )
    assert data.settings["Q1.k1"].tolist() == [-1.0, 1.0, 0.5]
    assert data.scanned == ("Q1.k1",)
    np.testing.assert_array_equal(data.images[1, 1], images[3])
    assert data.weights.tolist() == [[1, 1], [1, 1], [1, 0]]
    with pytest.raises(ValidationError, match=r"no column 'image'"):
        ScreenDataset.from_frame(frame, ["quad"], "SCR1.image", PIXEL)


def test_measured_scan(shared_data: Path, tmp_path: Path) -> None:
    data = ScreenDataset.from_npz(
        shared_data / "awa_quad_scan.npz", {"k1": "Q1.k1"}, "SCR1.image", units={"Q1.k1": "1/m^2"}
    )
    assert data.shape == (11, 3, 84, 84)
    assert data.pixel_size == pytest.approx((1.2486e-4, 1.2486e-4))
    assert data.metadata["energy"] == (63e6, "eV")
    assert data.metadata["drift_length"] == (3.38, "m")
    assert data.has_beam.all()
    found = data.statistics(aperture=4.0)
    assert np.isfinite(found["sigma_x"]).all()
    # The beam is smallest in x at a negative k1, and in y at a positive one.
    k1 = data.settings["Q1.k1"]
    assert k1[found["sigma_x"].mean(1).argmin()] == pytest.approx(-2.92, abs=0.01)
    assert k1[found["sigma_y"].mean(1).argmin()] > 2.0
    assert (found.cut[k1 < -6.0] > 0.05).all(), "the edge cuts the beam off at the strongest setting"
    fit, check = data.split(every=3)
    assert (len(fit), len(check)) == (7, 4)
    data.plot(tmp_path / "scan.png")
    assert width(tmp_path / "scan.png") > 1000


def test_synthetic_scan(shared_data: Path) -> None:
    data = ScreenDataset.from_npz(shared_data / "synthetic_quad_scan.npz", {"k1": "Q1.k1"}, "SCR1.image")
    assert data.shape == (10, 1, 100, 100)
    assert data.pixel_size == pytest.approx((1e-3, 1e-3))
    assert data.has_beam.all()
    assert "no noise" in data.noise.source


PICTURES: dict[str, Callable[[ScreenDataset], object]] = {
    "one-setting": lambda data: data[0],
    "no-beam": lambda data: data[2],
    "all-shots": lambda data: data,
    "nothing-scanned": lambda data: ScreenDataset({"Q1.k1": 1.0}, data.images, data.screen, PIXEL),
    "two-scanned": lambda data: ScreenDataset(
        {"Q1.k1": data.settings["Q1.k1"], "Q2.k1": data.settings["Q1.k1"] ** 2}, data.images, data.screen, PIXEL
    ),
    "scalars": lambda data: (
        data[:2].subtract_background().to_dataset({"sigma_x": "final.sigma_x", "mean_y": "final.mean_y"}, aperture=4.0)
    ),
    "cleaned": lambda data: data.subtract_background().threshold(n_sigma=3.0).crop("auto"),
}


def test_other_choice_of_shots_is_refused(make_scan: Make) -> None:
    with pytest.raises(ValidationError, match="shots is 'first'"):
        make_scan().plot(shots="first")


@pytest.mark.parametrize("case, shots", [*((case, "mean") for case in PICTURES), ("all-shots", "all")])
def test_pictures_are_drawn(make_scan: Make, tmp_path: Path, case: str, shots: str) -> None:
    data = PICTURES[case](make_scan(n=4, missing=(2,)))
    path = tmp_path / "picture.png"
    if isinstance(data, ScreenDataset):
        figure = data.plot(path, shots=shots)
        images = [axes for axes in figure.axes if axes.images]
        assert len(images) == len(data) * (data.shape[1] if shots == "all" else 1)
        assert all(axes.images[0].origin == "lower" for axes in images)
    else:
        assert isinstance(data, Dataset)
        figure = data.plot(path)
        assert [axes.get_ylabel() for axes in figure.axes] == ["final.sigma_x [µm]", "final.mean_y [µm]"]
    assert width(path) > 500
