"""Lines in PALS files, and a bunch to track through them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import cheetah
import torch

from lume_diff.models.line.files import read_lattice
from lume_diff.particles import TorchParticleGroup

C = 299792458.0
ENERGY = 1e8
MASS = {"electron": 510998.95069, "proton": 938272089.43}


def t(value: Any) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


def bunch(species: str = "electron", energy: float = ENERGY) -> TorchParticleGroup:
    """Return four particles beside the axis, with angles."""
    momentum = math.sqrt(energy**2 - MASS[species] ** 2)
    x, y = t([1e-4, -2e-4, 0.0, 3e-4]), t([2e-4, 1e-4, -1e-4, 0.0])
    px, py = momentum * t([1e-5, 0.0, 2e-5, -1e-5]), momentum * t([0.0, 3e-5, 1e-5, 1e-5])
    pz = (momentum**2 - px**2 - py**2).sqrt()
    zero = torch.zeros(4, dtype=torch.float64)
    return TorchParticleGroup(
        x=x, y=y, z=zero, px=px, py=py, pz=pz, t=zero, weight=zero + 1e-12, species=species, reference_energy=t(energy)
    )


def written(tmp_path: Path, text: str, name: str = "line.pals.yaml") -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def line(tmp_path: Path, elements: str, **options: Any) -> cheetah.Segment:
    """Read the elements of one line, each of them one YAML flow mapping."""
    items = "\n".join(f"        - {{{element}}}" for element in elements.strip().splitlines())
    return read_lattice(
        written(tmp_path, f"PALS:\n  facility:\n    - cell:\n        kind: BeamLine\n        line:\n{items}\n"),
        **options,
    )
