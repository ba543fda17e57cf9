"""Figures show themselves in a notebook, without pyplot or a magic command."""

from __future__ import annotations

import pickle

from lume_diff.plotting.lattice import new_figure


def test_a_figure_shows_itself_as_png_and_survives_pickling() -> None:
    figure = new_figure(2.0, 1.5)
    figure.subplots().plot([0.0, 1.0])
    for one in (figure, pickle.loads(pickle.dumps(figure))):
        assert one._repr_png_().startswith(b"\x89PNG")
