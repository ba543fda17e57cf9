"""Elements, a beam and its sizes behind a line, for the tests of lattice files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cheetah
import torch

from lume_diff.models.cheetah_model import CheetahModel

SIZES = ["final.sigma_x", "final.sigma_y", "final.sigma_px", "final.sigma_energy"]


def number(value: Any) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


def drift(length: float, name: str) -> cheetah.Drift:
    return cheetah.Drift(number(length), name=name, sanitize_name=False)


def quadrupole(length: float, k1: float, name: str) -> cheetah.Quadrupole:
    return cheetah.Quadrupole(number(length), number(k1), name=name, sanitize_name=False, dtype=torch.float64)


def incoming() -> cheetah.ParticleBeam:
    values = {"sigma_x": 1e-4, "sigma_px": 2e-5, "sigma_y": 3e-4, "sigma_py": 1e-5, "sigma_p": 1e-3, "energy": 1e8}
    return cheetah.ParticleBeam.from_parameters(
        500, **{name: number(value) for name, value in values.items()}, dtype=torch.float64
    )


def sizes(segment: cheetah.Segment, beam: Any) -> torch.Tensor:
    return torch.stack([CheetahModel(segment, beam, outputs=SIZES).get(name) for name in SIZES])


def written(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path
