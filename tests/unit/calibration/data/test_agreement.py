"""Data against a model: names, units, limits, shapes and pixels, everything that is wrong at once."""

from __future__ import annotations

import cheetah
import numpy as np
import pytest
import torch

from lume_diff import CheetahModel, StagedModel
from lume_diff.calibration import Dataset, ScreenDataset
from lume_diff.errors import LumeDiffError, ReadOnlyError, ShapeError, UnitError, UnknownVariableError, ValidationError
from tests.unit.calibration.conftest import PIXEL, gaussian_image

F64 = torch.float64
IMAGES = np.stack([gaussian_image(peak=10.0 * (i + 1)) for i in range(3)])


@pytest.fixture(scope="module")
def model() -> CheetahModel:
    beam = cheetah.ParticleBeam.from_parameters(num_particles=100, energy=torch.tensor(1e8), dtype=F64)
    line = cheetah.Segment(
        [
            cheetah.Quadrupole(torch.tensor(0.1), torch.tensor(2.0), name="Q1", dtype=F64),
            cheetah.Drift(torch.tensor(1.0), name="D1", dtype=F64),
            cheetah.Screen((80, 60), torch.tensor((PIXEL, PIXEL)), name="SCR1", is_active=True, dtype=F64),
        ]
    ).to(F64)
    return CheetahModel(line, beam)


def scan(**changes: object) -> ScreenDataset:
    given = {"settings": {"Q1.k1": [1.0, 2.0, 3.0]}, "images": IMAGES, "screen": "SCR1.image", "pixel_size": PIXEL}
    return ScreenDataset(**{**given, **changes})  # type: ignore[arg-type]


def test_what_fits_is_returned_as_it_is(model: CheetahModel) -> None:
    data = scan()
    assert data.check_against(model) is data
    part = data.crop((2, 60, 3, 50)).bin(2)
    assert part.check_against(model) is part
    image = model({"Q1.k1": 1.0}, outputs=["SCR1.image"])["SCR1.image"]
    assert tuple(part.frame.view(image).shape) == part.shape[2:]


def test_settings_come_in_the_units_of_the_model(model: CheetahModel) -> None:
    data = scan(settings={"Q1.length": [10.0, 20.0, 30.0]}, units={"Q1.length": "cm"})
    found = data.check_against(model)
    np.testing.assert_allclose(found.settings["Q1.length"], [0.1, 0.2, 0.3])
    assert found.units["Q1.length"] == "m"
    assert found.history[-1].name == "check_against"
    assert found.check_against(model) is found
    zero = scan(settings={"Q1.k1": [1.0, 2.0, 3.0], "Q1.length": 0.0}, units={"Q1.length": "cm"}).check_against(model)
    assert zero.units["Q1.length"] == "m"


CASES: dict[str, tuple[dict[str, object], type[LumeDiffError], str]] = {
    "name": ({"settings": {"Q1.kl": [1.0, 2.0, 3.0]}}, UnknownVariableError, "'Q1.kl'.*nearest: 'Q1.k1'"),
    "output": ({"settings": {"final.sigma_x": [1.0, 2.0, 3.0]}}, ReadOnlyError, "settings are inputs"),
    "bunch": ({"settings": {"initial_particles": [1.0, 2.0, 3.0]}}, ValidationError, "expected a number"),
    "unit": ({"units": {"Q1.k1": "T"}}, UnitError, "setting 'Q1.k1'"),
    "screen": ({"screen": "SCR2.image"}, UnknownVariableError, "'SCR2.image'.*nearest: 'SCR1.image'"),
    "no-image": ({"screen": "final.sigma_x"}, ValidationError, "no image in the model"),
    "shape": ({"images": IMAGES[:, :50]}, ShapeError, r"\(60, 80\) in the model and \(50, 80\).*resolution=\(80, 50\)"),
    "transposed": ({"images": IMAGES.swapaxes(1, 2)}, ShapeError, r"transpose\(\) exchanges"),
    "pixel": (
        {"pixel_size": 1.3e-4},
        ValidationError,
        "are 0.0001 m in x in the model and 0.00013 m",
    ),
    "pixel-factor": ({"pixel_size": "1 mm"}, ValidationError, "are 0.0001 m in y in the model and 0.001 m"),
}


@pytest.mark.parametrize("case", CASES)
def test_what_does_not_fit(model: CheetahModel, case: str) -> None:
    changes, error, message = CASES[case]
    with pytest.raises(error, match=message):
        scan(**changes).check_against(model)


def test_everything_is_named_at_once(model: CheetahModel) -> None:
    data = scan(settings={"Q9.k1": [1.0, 2.0, 3.0], "Q1.k1": 1.0}, units={"Q1.k1": "T"}, pixel_size=(1.3e-4, 1.4e-4))
    with pytest.raises(LumeDiffError) as caught:
        data.check_against(model)
    text = str(caught.value)
    assert "4 problems" in text
    for part in ("'Q9.k1'", "'T'", "m in x in the model", "m in y in the model"):
        assert part in text


def test_values_outside_limits() -> None:
    from lume_diff import LUMEModel, TorchNDVariable, TorchScalarVariable

    class Camera(LUMEModel):
        def _run(self, inputs: object, outputs: object) -> object:
            raise AssertionError("nothing needs to run")

    knob = TorchScalarVariable(name="Q1.k1", unit="1/m^2", default_value=0.0, value_range=(-2.0, 2.0))
    camera = Camera([knob, TorchNDVariable(name="SCR1.image", shape=(60, 80), read_only=True)])
    assert scan(settings={"Q1.k1": [-2.0, 0.0, 2.0]}).check_against(camera)
    with pytest.raises(ValidationError, match=r"3.0 1/m\^2.*outside value_range"):
        scan().check_against(camera)


@pytest.mark.parametrize("controls", [None, ["Q1.k1"]], ids=["all inputs", "pixel size no input"])
def test_binned_screens_have_larger_pixels(controls: list[str] | None) -> None:
    beam = cheetah.ParticleBeam.from_parameters(num_particles=100, energy=torch.tensor(1e8), dtype=F64)
    pixel = torch.tensor((0.5 * PIXEL, 0.5 * PIXEL), dtype=F64)
    line = cheetah.Segment(
        [
            cheetah.Quadrupole(torch.tensor(0.1), torch.tensor(2.0), name="Q1", dtype=F64),
            cheetah.Screen((160, 120), pixel, binning=2, name="SCR1", is_active=True, dtype=F64),
        ]
    ).to(F64)
    binned = CheetahModel(line, beam, controls=controls)
    assert scan().check_against(binned)
    with pytest.raises(ValidationError, match=r"are 0\.0001 m in x in the model and 5e-05 m"):
        scan(pixel_size=0.5 * PIXEL).check_against(binned)


def test_pixels_are_those_that_are_set(model: CheetahModel) -> None:
    model.set({"SCR1.pixel_size_x": 2 * PIXEL})
    assert scan(pixel_size=(2 * PIXEL, PIXEL)).check_against(model)
    model.reset()


def test_stages(model: CheetahModel) -> None:
    drift = CheetahModel(
        cheetah.Segment([cheetah.Drift(torch.tensor(1.0), name="D0", dtype=F64)]).to(F64),
        model.get("initial_particles"),
    )
    assert scan().check_against(StagedModel([drift, model]))


def test_numbers(model: CheetahModel) -> None:
    settings = {"Q1.k1": [1.0, 2.0]}
    data = Dataset(
        settings, {"final.sigma_x": [100.0, 200.0]}, sigma={"final.sigma_x": 1.0}, units={"final.sigma_x": "um"}
    )
    found = data.check_against(model)
    np.testing.assert_allclose(found.outputs["final.sigma_x"][:, 0], [1e-4, 2e-4])
    np.testing.assert_allclose(found.sigma["final.sigma_x"], 1e-6)
    assert found.units["final.sigma_x"] == "m"
    assert found.check_against(model) is found
    for outputs, error in (
        ({"final.sigma_q": [1.0, 2.0]}, UnknownVariableError),
        ({"SCR1.image": [1.0, 2.0]}, ValidationError),
    ):
        with pytest.raises(error, match=r"final\.sigma_q|expected a number"):
            Dataset(settings, outputs, sigma=dict.fromkeys(outputs, 1.0)).check_against(model)
    with pytest.raises(UnitError, match=r"'final\.sigma_x'"):
        Dataset(
            settings, {"final.sigma_x": [1.0, 2.0]}, sigma={"final.sigma_x": 1.0}, units={"final.sigma_x": "s"}
        ).check_against(model)
