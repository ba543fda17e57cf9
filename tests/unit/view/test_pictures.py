"""Pictures: what is shown of an image, and what is read off it."""

from __future__ import annotations

import numpy as np
import pytest

from lume_diff.view.pictures import SHOWN, difference, picture, shrunk


def spot(ny: int, nx: int, x: float, y: float, size: float) -> np.ndarray:
    """Return a Gaussian spot, in pixels from the lower left corner."""
    rows, columns = np.arange(ny)[:, None] + 0.5, np.arange(nx)[None, :] + 0.5
    return np.exp(-0.5 * ((columns - x) ** 2 + (rows - y) ** 2) / size**2)


def test_centroid_and_sizes_are_those_of_the_image():
    found = picture(spot(200, 300, 180.0, 80.0, 9.0), (10e-6, 20e-6))
    assert found.mean == pytest.approx((0.3, -0.4), abs=1e-6)  # [mm] from the middle
    assert found.sigma == pytest.approx((0.09, 0.18), rel=1e-6)
    assert found.extent == pytest.approx((-1.5, -2.0, 3.0, 4.0))
    assert not found.in_pixels


def test_pixels_span_the_scale_and_keep_rows_upwards():
    image = np.zeros((30, 40))
    image[0, 39], image[29, 0] = 2.0, 1.0
    found = picture(image)
    assert found.pixels.dtype == np.uint8
    assert (found.pixels[0, 39], found.pixels[29, 0], found.pixels[10, 10]) == (255, 128, 0)
    assert (found.low, found.high, found.in_pixels) == (0.0, 2.0, True)


def test_a_large_image_is_averaged():
    image = np.arange(1802.0 * 2402.0).reshape(1802, 2402)
    small = shrunk(image, SHOWN)
    assert max(small.shape) <= SHOWN
    assert small[0, 0] == pytest.approx(image[:7, :7].mean())
    found = picture(image)
    assert found.pixels.shape == small.shape
    assert (found.profile_x.size, found.profile_y.size) == small.shape[::-1]


@pytest.mark.parametrize(
    "image", [np.zeros((20, 20)), np.full((20, 20), np.nan), -np.ones((20, 20))], ids=["empty", "nan", "negative"]
)
def test_an_image_without_a_beam_has_no_size(image):
    found = picture(image)
    assert np.isnan(found.sigma).all()
    assert not found.pixels.any()
    assert np.isfinite([found.low, found.high]).all()


def test_equal_images_in_different_units_do_not_differ():
    image = spot(40, 50, 20.0, 20.0, 4.0)
    found = difference(image, 1e-12 * image)
    assert found.high == pytest.approx(0.0, abs=1e-15)


def test_a_difference_has_zero_in_the_middle():
    found = difference(spot(60, 60, 20.0, 30.0, 4.0), spot(60, 60, 40.0, 30.0, 4.0))
    assert found.low == -found.high
    assert found.pixels[30, 20] == 255
    assert found.pixels[30, 40] == 0
    assert found.pixels[2, 2] == 128
