"""Dataset: measured numbers, their errors, and where they come from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from lume_diff.calibration import Dataset, ScreenDataset, Values
from lume_diff.errors import (
    CalibrationError,
    LumeDiffError,
    ShapeError,
    UnitError,
    UnknownVariableError,
    ValidationError,
)

K1 = {"Q1.k1": [-1.0, 0.0, 1.0]}
SIZE = "final.sigma_x"
READINGS = np.array([[1.0, 1.2], [2.0, 2.4], [3.0, 3.2]])


def readings(**options: object) -> Dataset:
    return Dataset(K1, {SIZE: READINGS}, **options)  # type: ignore[arg-type]


def test_sigma_is_pooled_over_settings() -> None:
    expected = np.sqrt((0.1**2 + 0.1**2 + 0.2**2 + 0.2**2 + 0.1**2 + 0.1**2) / 3)
    np.testing.assert_allclose(readings().sigma[SIZE], expected)


def test_readings_that_do_not_count_have_no_scatter() -> None:
    wild = np.column_stack((READINGS, [50.0, -70.0, 90.0]))
    data = Dataset(K1, {SIZE: wild}, weights=[[1.0, 1.0, 0.0]] * 3)
    np.testing.assert_allclose(data.sigma[SIZE], readings().sigma[SIZE][0, 0])


@pytest.mark.parametrize("sigma", [0.5, [0.5, 0.5, 0.5], np.full((3, 2), 0.5)], ids=("number", "settings", "shots"))
def test_sigma_as_given(sigma: object) -> None:
    np.testing.assert_array_equal(readings(sigma={SIZE: sigma}).sigma[SIZE], np.full((3, 2), 0.5))


REFUSED: dict[str, tuple[dict[str, object], type[LumeDiffError], str]] = {
    "nan": (
        {"outputs": {SIZE: [1.0, np.nan, 2.0]}},
        ValidationError,
        r"1 readings are not finite, setting 1 shot 0.*nan='mask'",
    ),
    "all-nan": ({"outputs": {SIZE: [np.nan] * 3}, "nan": "mask"}, ValidationError, "no reading is finite"),
    "length": ({"outputs": {SIZE: [1.0, 2.0]}}, ShapeError, "'Q1.k1' has 3 values, expected 2"),
    "shots-differ": ({"outputs": {SIZE: READINGS, "b": [1.0, 2.0, 3.0]}}, ShapeError, r"output 'b'.*\(3, 1\)"),
    "empty": ({"outputs": {}}, ValidationError, "expected a mapping"),
    "no-scatter": ({"outputs": {SIZE: [1.0, 2.0, 3.0]}}, ValidationError, r"single shot has no scatter; give sigma="),
    "same-shots": ({"outputs": {SIZE: [[1.0, 1.0]] * 3}}, ValidationError, "all shots are the same"),
    "sigma": ({"sigma": {SIZE: 0.0}}, ValidationError, "expected positive standard errors"),
    "sigma-of-nothing": ({"sigma": {"b": 1.0}}, ValidationError, "'b', which is no output"),
    "units-of-nothing": ({"units": {"b": "m"}}, ValidationError, "'b', which is no setting and no output"),
    "unit": ({"units": {SIZE: "parsnip"}}, UnitError, f"'{SIZE}'"),
    "both": ({"outputs": {"Q1.k1": READINGS}}, ValidationError, "a setting and an output"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_refused(case: str) -> None:
    changes, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        Dataset(**{"settings": K1, "outputs": {SIZE: READINGS}, **changes})  # type: ignore[arg-type]


def test_nan_can_be_left_out() -> None:
    values = READINGS.copy()
    values[1, 0] = np.nan
    data = Dataset(K1, {SIZE: values}, sigma={SIZE: 0.1}, nan="mask")
    assert np.isfinite(data.outputs[SIZE]).all()
    assert data.valid[SIZE].tolist() == [[True, True], [False, True], [True, True]]
    mean = data.mean_shots()
    assert mean.outputs[SIZE][:, 0] == pytest.approx([1.1, 2.4, 3.1])
    assert mean.sigma[SIZE][:, 0] == pytest.approx([0.1 / np.sqrt(2), 0.1, 0.1 / np.sqrt(2)])


@pytest.mark.parametrize("weights", [1.0, 0.5, [[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]]], ids=["one", "half", "some"])
def test_mean_over_shots_tells_a_fit_as_much_as_the_shots(weights: object) -> None:
    data = readings(sigma={SIZE: 0.1}, weights=weights)
    shots, mean = (Values().target(part) for part in (data, data.mean_shots()))
    torch.testing.assert_close(mean.mean[SIZE], shots.mean[SIZE])
    torch.testing.assert_close(mean.error[SIZE], shots.error[SIZE])
    assert torch.equal(mean.counted[SIZE], shots.counted[SIZE])


def test_sizes_of_mean_images_tell_a_fit_as_much_as_those_of_shots(make_scan: Callable[..., ScreenDataset]) -> None:
    screens = make_scan(n=3, shots=4, weights=[[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 1]]).subtract_background()
    name = {"mean_x": "SCR1.mean_x"}
    shots, mean = (Values().target(part.to_dataset(name)) for part in (screens, screens.mean_shots()))
    torch.testing.assert_close(mean.error["SCR1.mean_x"], shots.error["SCR1.mean_x"], rtol=0.1, atol=0.0)


def test_parts() -> None:
    data = readings(units={SIZE: "mm"})
    fit, check = data.split(every=3, offset=1)
    assert check.outputs[SIZE].tolist() == [[2.0, 2.4]]
    assert fit.settings["Q1.k1"].tolist() == [-1.0, 1.0]
    np.testing.assert_array_equal(fit.sigma[SIZE], data.sigma[SIZE][[0, 2]])
    assert Dataset.join([data[:1], data[1:]]).digest == data.digest
    assert len(list(data)) == 3
    assert Dataset.join([data, data]).history[-1].note == ""
    assert "number 2 was made by: split" in Dataset.join([data, fit]).history[-1].note
    with pytest.raises(ValidationError, match="has outputs"):
        Dataset.join([data, Dataset(K1, {"b": READINGS})])
    with pytest.raises(CalibrationError, match="1 settings differ, a fit needs 2"):
        data[0].require_scan(2, "a fit")


def test_digest() -> None:
    data = readings()
    others = [
        readings(sigma={SIZE: 0.3}),
        readings(units={SIZE: "mm"}),
        readings(weights=np.array([[1, 1], [1, 0], [1, 1]])),
        Dataset(K1, {SIZE: READINGS + 1e-12}),
        data[:2],
    ]
    assert len({data.digest, *(other.digest for other in others)}) == 6
    assert readings(metadata={"a": 1}).digest == data.digest


@pytest.mark.parametrize("suffix", ["npz", "h5"])
def test_everything_comes_back_from_a_file(tmp_path: Path, suffix: str) -> None:
    data = readings(units={SIZE: "mm", "Q1.k1": "1/m^2"}, metadata={"energy": (63.0, "MeV")})[1:]
    path = tmp_path / f"scan.{suffix}"
    found = Dataset.from_npz(data.to_npz(path)) if suffix == "npz" else Dataset.from_hdf5(data.to_hdf5(path))
    assert found.digest == data.digest
    assert dict(found.units) == dict(data.units)
    assert dict(found.metadata) == dict(data.metadata)
    assert [str(step) for step in found.history] == [str(step) for step in data.history]


def test_anybodys_npz(tmp_path: Path) -> None:
    np.savez(tmp_path / "scan.npz", k1=K1["Q1.k1"], sx=READINGS, energy_eV=63e6)
    data = Dataset.from_npz(tmp_path / "scan.npz", {"k1": "Q1.k1"}, {"sx": SIZE})
    assert data.digest == readings().digest
    assert data.metadata["energy"] == (63e6, "eV")


CSV = """Q1.k1 [1/m^2],final.sigma_x [mm],error
-1,1.0,0.1
-1,1.2,0.1
0,2.0,0.2
1,3.0,0.1
1,3.2,0.1
"""


def test_csv_with_units_and_errors(tmp_path: Path) -> None:
    path = tmp_path / "scan.csv"
    path.write_text(CSV)
    data = Dataset.from_csv(path, ["Q1.k1"], sigma={SIZE: "error"})
    assert data.settings["Q1.k1"].tolist() == [-1.0, 0.0, 1.0]
    assert list(data.outputs) == [SIZE]
    assert data.outputs[SIZE].tolist() == [[1.0, 1.2], [2.0, 0.0], [3.0, 3.2]]
    assert data.valid[SIZE].tolist() == [[True, True], [True, False], [True, True]]
    assert data.sigma[SIZE][1, 0] == 0.2
    assert dict(data.units) == {"Q1.k1": "1/m^2", SIZE: "mm"}


def test_csv_with_errors_in_a_unit_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "scan.csv"
    path.write_text(CSV.replace("error", "error [um]"))
    data = Dataset.from_csv(path, ["Q1.k1"], sigma={SIZE: "error"})
    assert data.sigma[SIZE][1, 0] == pytest.approx(2e-4)
    assert data.units[SIZE] == "mm"
    metres = Dataset.from_csv(path, ["Q1.k1"], sigma={SIZE: "error"}, units={SIZE: "m"})
    assert metres.sigma[SIZE][1, 0] == pytest.approx(2e-7)
    path.write_text(CSV.replace("error", "error [s]"))
    with pytest.raises(UnitError, match=r"standard errors of 'final\.sigma_x' in column 'error'"):
        Dataset.from_csv(path, ["Q1.k1"], sigma={SIZE: "error"})
    path.write_text(CSV.replace("error", "error [um]").replace(" [mm]", ""))
    with pytest.raises(UnitError, match=r"'final\.sigma_x' has no unit"):
        Dataset.from_csv(path, ["Q1.k1"], sigma={SIZE: "error"})


def test_readings_without_an_error_are_left_out() -> None:
    frame = {"k": [-1.0, 0.0, 1.0], "sx": [1.0, 2.0, 3.0], "error": [0.1, float("nan"), 0.1]}
    data = Dataset.from_frame(frame, {"k": "Q1.k1"}, {"sx": SIZE}, sigma={SIZE: "error"}, nan="mask")
    assert data.valid[SIZE].tolist() == [[True], [False], [True]]
    with pytest.raises(ValidationError, match="nan: received 'drop'"):
        Dataset.from_frame(frame, {"k": "Q1.k1"}, {"sx": SIZE}, sigma={SIZE: "error"}, nan="drop")


@pytest.mark.parametrize(
    "text, message",
    [
        ("Q1.k1,final.sigma_x\n", "has 1 lines"),
        ("Q1.k1,b\n1,2,3\n", "row 2 has 3"),
        ("Q1.k1,b\n1,x\n2,3\n", "expected numbers"),
    ],
    ids=("empty", "ragged", "words"),
)
def test_bad_csv(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "scan.csv"
    path.write_text(text)
    with pytest.raises(ValidationError, match=message):
        Dataset.from_csv(path, ["Q1.k1"])


def test_table_like_pandas() -> None:
    frame = {"k": [-1, -1, 0, 0, 1, 1], "sx": READINGS.ravel().tolist()}
    data = Dataset.from_frame(frame, {"k": "Q1.k1"}, {"sx": SIZE})
    assert data.digest == readings().digest
    with pytest.raises(ValidationError, match=r"no column 'sy'; nearest: 'sx'"):
        Dataset.from_frame(frame, {"k": "Q1.k1"}, {"sy": SIZE})


def test_sizes_of_images(make_scan: Callable[..., ScreenDataset]) -> None:
    screens = make_scan(missing=(2,), units={"Q1.k1": "1/m^2"}).subtract_background()
    data = screens.to_dataset({"sigma_x": "SCR1.sigma_x", "mean_y": "SCR1.mean_y"}, aperture=5.0)
    found = screens.statistics(aperture=5.0)
    seen = screens.has_beam
    np.testing.assert_array_equal(data.valid["SCR1.sigma_x"], seen)
    np.testing.assert_array_equal(data.outputs["SCR1.sigma_x"][seen], found["sigma_x"].compressed())
    np.testing.assert_array_equal(data.sigma["SCR1.mean_y"][seen], found.errors["mean_y"].compressed())
    assert dict(data.units) == {"Q1.k1": "1/m^2", "SCR1.sigma_x": "m", "SCR1.mean_y": "m"}
    assert [step.name for step in data.history] == ["subtract_background", "to_dataset"]
    with pytest.raises(UnknownVariableError, match=r"nearest: .*'sigma_x'"):
        screens.to_dataset({"sigma_z": "SCR1.sigma_x"})
