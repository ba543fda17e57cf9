"""Make the files of the demonstration in lume_diff/data, three lattices and a bunch, from the numbers below alone.

    python tools/make_demo_data.py [FOLDER]

The line is invented, in the manner of an S-band photoinjector linac: an injector section at 60 MeV with two
quadrupoles and a corrector pair, a linac with two cavities and a doublet that ends at 150 MeV, and a diagnostics
line with four matching quadrupoles and a screen.
"""

from __future__ import annotations

import sys
from pathlib import Path

import cheetah
import torch

from lume_diff.particles import TorchMoments, TorchParticleGroup, sample_bunch

FOLDER = Path(__file__).parents[1] / "lume_diff" / "data"
N_PARTICLES = 4000
SEED = 1
ABERRATION = 3e5  # x' = -ABERRATION r^2 x [1/m^3]


def number(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


def drift(name: str, length: float) -> cheetah.Drift:
    return cheetah.Drift(number(length), name=name)


def quadrupole(name: str, k1: float) -> cheetah.Quadrupole:
    return cheetah.Quadrupole(number(0.15), number(k1), name=name)


def cavity(name: str) -> cheetah.Cavity:
    settings = {"voltage": number(45.5e6), "phase": number(-8.0), "frequency": number(2.856e9)}
    return cheetah.Cavity(number(3.0), **settings, name=name)


def bpm(name: str) -> cheetah.BPM:
    return cheetah.BPM(is_active=True, name=name)


def segments() -> dict[str, cheetah.Segment]:
    """Return the three parts of the line, in the order of the beam."""
    injector = [
        drift("DI1", 0.4),
        quadrupole("QI1", 3.0),
        drift("DI2", 0.3),
        cheetah.HorizontalCorrector(number(0.1), number(0.0), name="HI1"),
        drift("DI3", 0.3),
        quadrupole("QI2", -4.0),
        drift("DI4", 0.3),
        cheetah.VerticalCorrector(number(0.1), number(0.0), name="VI1"),
        drift("DI5", 0.3),
        bpm("BPMI1"),
        drift("DI6", 0.3),
    ]
    linac = [
        drift("DL1", 0.3),
        cavity("CL1"),
        drift("DL2", 0.4),
        quadrupole("QL1", 2.5),
        drift("DL3", 0.6),
        quadrupole("QL2", -2.5),
        drift("DL4", 0.2),
        bpm("BPML1"),
        drift("DL5", 0.2),
        cavity("CL2"),
        drift("DL6", 0.4),
    ]
    diagnostics = [
        drift("DD1", 0.3),
        quadrupole("QD1", 3.0),
        drift("DD2", 0.6),
        quadrupole("QD2", -3.0),
        drift("DD3", 0.4),
        cheetah.HorizontalCorrector(number(0.1), number(0.0), name="HD1"),
        drift("DD4", 0.3),
        quadrupole("QD3", 3.0),
        drift("DD5", 0.6),
        quadrupole("QD4", -3.0),
        drift("DD6", 0.3),
        bpm("BPMD1"),
        drift("DD7", 2.2),
        cheetah.Screen(
            resolution=(400, 400),
            pixel_size=torch.tensor([2.5e-5, 2.5e-5], dtype=torch.float64),
            method="cloud-in-cell",
            is_active=True,
            name="SCR",
        ),
    ]
    return {
        "injector": cheetah.Segment(injector, name="injector"),
        "linac": cheetah.Segment(linac, name="linac"),
        "diagnostics": cheetah.Segment(diagnostics, name="diagnostics"),
    }


def bunch() -> TorchParticleGroup:
    """Return the bunch at the entrance: Gaussian, 100 pC, with tails from a spherical aberration upstream."""
    moments = TorchMoments.from_twiss(
        beta_x=9.0,
        alpha_x=0.5,
        norm_emit_x=1.0e-6,
        beta_y=6.0,
        alpha_y=-0.3,
        norm_emit_y=0.8e-6,
        energy=60e6,
        sigma_t=1e-12,
        sigma_energy=60e3,
        charge=100e-12,
    )
    gaussian = sample_bunch(moments, N_PARTICLES, seed=SEED)
    bend = ABERRATION * (gaussian.x.square() + gaussian.y.square())
    return gaussian.replace(
        px=gaussian.px - bend * gaussian.x * gaussian.pz, py=gaussian.py - bend * gaussian.y * gaussian.pz
    )


def main(folder: Path = FOLDER) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, segment in segments().items():
        segment.to_lattice_json(
            str(folder / f"{name}.json"), title=f"lume_diff demo: {name}", info="made by tools/make_demo_data.py"
        )
    bunch().to_openpmd(folder / "beam.h5")
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        print(f"{path.stat().st_size:8d} bytes  {path}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
