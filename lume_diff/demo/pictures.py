"""Before and after: the beam on the screen, and its envelope along the line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from lume_diff.demo.line import IMAGE, SCREEN, pixel_size
from lume_diff.models import StagedModel
from lume_diff.plotting import Envelope, Shot, elements_along, plot_beams, plot_envelopes

_ALONG = ("s", "sigma_x", "sigma_y", "reference_energy")


@torch.no_grad()
def take_shot(line: StagedModel, settings: Mapping[str, float], label: str) -> Shot:
    """Return the beam on the screen of a ``line`` at ``settings`` [1/m^2], with a ``label`` for its picture."""
    particles = f"{SCREEN}.particles"
    found = line(settings, outputs=[IMAGE, particles])
    bunch = found[particles]
    width, height = (float(size) for size in pixel_size(line))
    x, px, y, py = (getattr(bunch, name).numpy() for name in ("x", "px", "y", "py"))
    return Shot(label, x, px, y, py, found[IMAGE].numpy(), (width, height))


@torch.no_grad()
def trace_envelope(line: StagedModel, settings: Mapping[str, float], label: str) -> Envelope:
    """Return sizes and energy along a whole ``line`` at ``settings`` [1/m^2], with a ``label`` for their picture."""
    names = {stage: [f"{stage}/line.{key}" for key in _ALONG] for stage in line.stages}
    found = line(settings, outputs=[name for group in names.values() for name in group])
    parts: list[list[np.ndarray]] = [[] for _ in _ALONG]
    start = 0.0
    for group in names.values():
        s, *others = (found[name].numpy() for name in group)
        # The reference energy is one number where nothing accelerates.
        for part, values in zip(parts, (s + start, *others), strict=True):
            part.append(np.broadcast_to(values, s.shape))
        start += float(s[-1])
    s, sigma_x, sigma_y, energy = (np.concatenate(part) for part in parts)
    return Envelope(s, sigma_x, sigma_y, label, energy)


def write_pictures(
    line: StagedModel, before: Mapping[str, float], after: Mapping[str, float], target: float, folder: Path
) -> list[Path]:
    """Write ``beam_before_after.png`` and ``envelope.png``.

    Args:
        line: the chain, at the settings ``after``, which the lattice is drawn with.
        before, after: quadrupole settings [1/m^2].
        target: requested rms radius [m].
        folder: where to.
    """
    shots = [take_shot(line, before, "before"), take_shot(line, after, "after")]
    envelopes = [trace_envelope(line, before, "before"), trace_envelope(line, after, "after")]
    size = f"{target * 1e6:.0f} µm"
    beams = plot_beams(shots, f"Beam on the screen before and after matching to a round {size}", target)
    along = plot_envelopes(
        elements_along(line),
        envelopes,
        f"Envelope through all stages before and after matching to a round {size}",
        target=(float(envelopes[-1].s[-1]), target),
    )
    written = [folder / "beam_before_after.png", folder / "envelope.png"]
    for figure, path in zip((beams, along), written, strict=True):
        figure.savefig(path)
    return written
