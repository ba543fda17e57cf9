"""Parameters of screen and camera: exact derivatives in reverse and forward mode, which fits take."""

from __future__ import annotations

import pytest
import torch

from lume_diff.calibration import Blur, LogNormal, Magnification, Normal, Parameter, Rotation

pytestmark = pytest.mark.gradient

PIXEL = (1e-3, 2e-3)
CASES: dict[str, tuple[Parameter, float]] = {
    "blur": (Blur(LogNormal(1e-3, 2.0)), 1.3e-3),
    "larger": (Magnification(Normal(1.0, 0.05)), 1.23),
    "smaller in x": (Magnification(Normal(1.0, 0.05), axis="x"), 0.87),
    "rotation": (Rotation(Normal(0.0, 0.1)), 0.31),
}


@pytest.mark.parametrize("name", CASES)
def test_derivatives_of_what_the_camera_sees(name: str) -> None:
    parameter, start = CASES[name]
    image = torch.rand(2, 6, 5, dtype=torch.float64, requires_grad=True)
    value = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    given = (image, value)
    assert torch.autograd.gradcheck(lambda i, v: parameter.on_image(i, v, PIXEL), given, check_forward_ad=True)


@pytest.mark.parametrize("name", CASES)
def test_forward_mode_of_a_model_in_single_precision(name: str) -> None:
    parameter, start = CASES[name]
    image = torch.rand(2, 6, 5, dtype=torch.float64)
    at, direction = torch.tensor(start, dtype=torch.float64), torch.ones((), dtype=torch.float64)

    def seen(value: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        return parameter.on_image(image.to(dtype), value.to(dtype), PIXEL)

    def pushed(dtype: torch.dtype) -> torch.Tensor:
        found: torch.Tensor = torch.func.jvp(lambda value: seen(value, dtype), (at,), (direction,))[1]
        return found

    assert seen(at, torch.float32).dtype is torch.float32
    expected = pushed(torch.float64)
    scale = float(expected.abs().max())
    torch.testing.assert_close(pushed(torch.float32).double(), expected, rtol=1e-4, atol=1e-5 * scale)


@pytest.mark.parametrize(("parameter", "value"), [CASES["larger"], CASES["rotation"]], ids=["larger", "rotation"])
def test_camera_interpolates_between_pixels(parameter: Parameter, value: float) -> None:
    image = torch.rand(2, 6, 5, dtype=torch.float64)
    seen = parameter.on_image(image, torch.tensor(value).double(), PIXEL)
    cosine, sine = torch.cos(torch.tensor(value)), torch.sin(torch.tensor(value))
    ratio = PIXEL[1] * 6 / (PIXEL[0] * 5)
    turned = torch.stack((torch.stack((cosine, -sine * ratio)), torch.stack((sine / ratio, cosine)))).double()
    matrix, factor = (turned, 1.0) if isinstance(parameter, Rotation) else (value * torch.eye(2).double(), value**2)
    places = torch.cat((matrix, torch.zeros(2, 1, dtype=torch.float64)), dim=-1).expand(2, 2, 3)
    grid = torch.nn.functional.affine_grid(places, [2, 1, 6, 5], align_corners=False)
    expected = factor * torch.nn.functional.grid_sample(image.unsqueeze(1), grid, align_corners=False)[:, 0]
    torch.testing.assert_close(seen, expected, rtol=1e-6, atol=1e-7)
