"""A line that panels show, followed, and what brings them its newest frame."""

from __future__ import annotations

from collections.abc import Iterator

import cheetah
import pytest
import torch

pytest.importorskip("panel")

from lume_diff.models import CheetahModel
from lume_diff.view.frame import Frame
from lume_diff.view.model_source import ModelSource
from lume_diff.view.panels.panel import Panel
from tests.unit.view.conftest import eventually

READINGS = [*(f"{place}.sigma_{plane}" for place in ("Q1", "D1", "Q2", "D2") for plane in "xy"), "BPM1.x", "D2.charge"]


def number(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


@pytest.fixture(scope="module")
def followed() -> Iterator[ModelSource]:
    """Return a line of two quadrupoles, a corrector and a monitor, which is followed."""
    torch.manual_seed(1)
    elements = [
        cheetah.Quadrupole(number(0.2), number(4.0), name="Q1"),
        cheetah.Drift(number(2.0), name="D1"),
        cheetah.HorizontalCorrector(number(0.1), number(1e-4), name="HC"),
        cheetah.Quadrupole(number(0.2), number(-3.0), name="Q2"),
        cheetah.BPM(is_active=True, name="BPM1"),
        cheetah.Drift(number(1.0), name="D2"),
    ]
    beam = cheetah.ParticleBeam.from_parameters(
        num_particles=3000, sigma_x=number(2e-4), sigma_px=number(2e-5), sigma_y=number(1e-4), sigma_py=number(1e-5),
        sigma_tau=number(1e-4), sigma_p=number(1e-3), energy=number(1e8), total_charge=number(1e-10),
        dtype=torch.float64,
    )  # fmt: skip
    knobs = ["Q1.k1", "Q2.k1", "HC.angle"]
    model = CheetahModel(cheetah.Segment(elements, name="line1"), beam, controls=knobs, outputs=READINGS)
    with ModelSource(model) as source:
        yield source.wait_ready(60.0)


def shown(panel: Panel) -> Frame:
    """Bring the newest frame to a panel, with what is worked out in the background for it; returns the frame."""
    panel.view()
    source = panel.source
    frame = source.latest()
    panel.prepare(frame)
    asked = getattr(panel, "_derivatives", None)
    if asked is not None:
        assert eventually(lambda: (found := asked(frame)) is not None and found.cycle == frame.cycle)
    panel.update(frame)
    return frame


def moved(source: ModelSource, **settings: float) -> None:
    """Write knobs, dots as two underscores, and wait until that shows."""
    values = {name.replace("__", "."): value for name, value in settings.items()}
    source.model.set(values)
    assert eventually(lambda: all(source.latest().value(name) == value for name, value in values.items()))
    assert eventually(lambda: source.latest().is_good("D2.sigma_x"))
