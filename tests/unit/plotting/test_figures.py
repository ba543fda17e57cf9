"""Figures: shown in a notebook without pyplot, with axes that have a width and numbers that have a unit."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from lume_diff.plotting import LineElement, Shot, plot_beams, plot_sensitivities, quantity
from lume_diff.plotting.lattice import new_figure


def test_a_figure_shows_itself_as_png_and_survives_pickling() -> None:
    figure = new_figure(2.0, 1.5)
    figure.subplots().plot([0.0, 1.0])
    for one in (figure, pickle.loads(pickle.dumps(figure))):
        assert one._repr_png_().startswith(b"\x89PNG")


def test_a_reading_at_the_start_shows_the_whole_line() -> None:
    line = [LineElement("M1", "Marker", 0.0, 0.0), LineElement("Q1", "Quadrupole", 1.0, 0.2, 1.5)]
    low, high = plot_sensitivities(line, [], "M1.sigma_x", "m", at=0.0).axes[-1].get_xlim()
    assert low < 0.0
    assert 1.2 < high < 1.3


def test_light_in_one_pixel_is_shown_in_its_size() -> None:
    image = np.zeros((5, 5))
    image[2, 2] = 1e-12
    coordinates = np.random.default_rng(1).normal(size=(4, 30))
    figure = plot_beams([Shot("one", *coordinates, image, (1e-5, 1e-5))])
    (screen,) = (axes for axes in figure.axes if axes.images)
    low, high = screen.get_xlim()
    assert -low == high
    assert 0.005 <= high <= 0.025  # [mm], between half a pixel and half the screen


@pytest.mark.parametrize(
    "value, unit, shown",
    [(76e6, "V", "76 MV"), (999.96, "V", "1 kV"), (-0.99999, "m", "-1 m"), (999.4, "V", "999.4 V"), (0.0, "m", "0 m")],
)
def test_a_quantity_has_the_prefix_of_the_number_that_is_shown(value: float, unit: str, shown: str) -> None:
    assert quantity(value, unit) == shown
