"""The phase space panel counts all the charge and shows the model's statistics."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lume_diff.errors import UnknownVariableError, ValidationError
from lume_diff.models.survey import survey_of
from lume_diff.particles import TorchMoments
from lume_diff.view.densities import BINS, PLANES, picture_of, robust_range
from lume_diff.view.panels.phase_space import PhaseSpace
from tests.unit.view.panels.conftest import moved, shown


@pytest.fixture
def bunch(followed):
    return survey_of(followed.model).beam("D2")


@pytest.mark.parametrize("plane", PLANES, ids="-".join)
def test_a_density_sums_to_the_charge(bunch, plane):
    density = picture_of(bunch).densities[plane]
    total = float(density.charge.astype(np.float64).sum()) + density.outside
    assert total == pytest.approx(float(bunch.charge), rel=1e-5)
    assert density.outside < 0.02 * total
    assert density.charge.shape == (BINS, BINS)


def test_a_particle_is_in_its_bin(bunch):
    alone = bunch._with(weight=torch.where(torch.arange(bunch.x.numel()) == 7, bunch.weight, 0.0))
    density = picture_of(alone).densities["x", "y"]
    row, column = np.argwhere(density.charge)[0]
    for index, (low, high), value in ((column, density.x, alone.x[7]), (row, density.y, alone.y[7])):
        width = (high - low) / BINS
        assert low + index * width <= float(value) <= low + (index + 1) * width


def test_the_dead_do_not_count(bunch):
    half = bunch._with(alive=(torch.arange(bunch.x.numel()) % 2).to(bunch.alive.dtype))
    picture = picture_of(half)
    assert picture.statistics["n_alive"] == bunch.x.numel() // 2
    assert picture.statistics["sigma_x"] == pytest.approx(float(half.alive_only["sigma_x"]), rel=1e-12)
    assert picture_of(bunch._with(alive=torch.zeros_like(bunch.alive))).is_lost


def test_what_is_not_finite_has_no_density(bunch):
    x = torch.where(torch.arange(bunch.x.numel()) < 2, torch.nan, bunch.x)
    broken = torch.utils._pytree.tree_map(lambda leaf: x if leaf is bunch.x else leaf, bunch)
    with pytest.raises(ValidationError, match="x of 2 of 3000 living particles"):
        picture_of(broken)


def test_a_few_strays_do_not_stretch_the_axes():
    values = np.concatenate([np.random.default_rng(1).normal(size=10_000), [500.0, -900.0]])
    low, high = robust_range(values)
    assert -8.0 < low < -2.5
    assert 2.5 < high < 8.0


@pytest.mark.parametrize("values", [[3.0], [0.0, 0.0], [1e-30, 2e-30], [5.0, 5.0 + 1e-15]], ids=str)
def test_a_range_is_never_empty(values):
    low, high = robust_range(np.array(values))
    assert low < min(values) <= max(values) < high


def test_moments_are_shown_as_a_gaussian_beam(bunch):
    moments = TorchMoments.from_particles(bunch)
    picture = picture_of(moments)
    density = picture.densities["x", "px"]
    assert not picture.has_particles
    assert float(density.charge.sum()) == pytest.approx(float(bunch.charge), rel=1e-4)
    centres = density.x[0] + (np.arange(BINS) + 0.5) * (density.x[1] - density.x[0]) / BINS
    profile = density.charge.sum(axis=0) / density.charge.sum()
    mean = (profile * centres).sum()
    sigma = float(np.sqrt((profile * (centres - mean) ** 2).sum()))
    assert sigma == pytest.approx(float(moments["sigma_x"]), rel=0.02)


def test_the_panel_shows_the_beam_at_the_element_that_is_chosen(followed):
    moved(followed, Q1__k1=3.0)
    panel = PhaseSpace(followed, "Q1")
    shown(panel)
    expected = picture_of(survey_of(followed.model).beam("Q1"))
    image = panel._pictures["x", "px"].data.data["image"][0]
    assert np.array_equal(image, expected.densities["x", "px"].charge)
    sigma = float(followed.model.get("Q1.sigma_x"))
    assert f"{1e6 * sigma:.4g} µm" in panel._table.object
    panel._choice.value = "BPM1"
    later = picture_of(survey_of(followed.model).beam("BPM1"))
    image = panel._pictures["x", "px"].data.data["image"][0]
    assert np.array_equal(image, later.densities["x", "px"].charge)
    assert panel._pictures["t", "energy"].figure.xaxis.axis_label.startswith("t − ⟨t⟩ [")


def test_an_unknown_element_is_refused(followed):
    with pytest.raises(UnknownVariableError, match="Q1"):
        PhaseSpace(followed, "Q11")
