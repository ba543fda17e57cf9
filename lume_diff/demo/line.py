"""The line of the demonstration, and what is measured on its screen."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import as_file, files

import torch
from torch import Tensor

from lume_diff.models import CheetahModel, StagedModel

#: The stages in the order of the beam.
STAGES = ("injector", "linac", "diagnostics")
#: Quadrupoles of all stages.
KNOBS = ("QI1.k1", "QI2.k1", "QL1.k1", "QL2.k1", "QD1.k1", "QD2.k1", "QD3.k1", "QD4.k1")
SCREEN = "SCR"
IMAGE = f"{SCREEN}.image"


def build_line() -> StagedModel:
    """Build the three stages from the files that come with the package.

    Returns:
        The chain: an injector at 60 MeV, a linac to 150 MeV, and a diagnostics line that ends on a screen.

    Gradient:
        Exact, from the screen's image to every knob of every stage.
    """
    stages: dict[str, CheetahModel] = {}
    with as_file(files("lume_diff") / "data") as folder:
        beam: object = folder / "beam.h5"
        for name in STAGES:
            stages[name] = CheetahModel.from_file(folder / f"{name}.json", beam)
            beam = stages[name].get("final_particles")  # a stage's reference energy is that of the beam it was made for
    return StagedModel(stages)


def as_found(line: StagedModel, seed: int, spread: float = 0.2) -> dict[str, float]:
    """Return quadrupole settings [1/m^2] as somebody left them: the design's with random errors.

    Args:
        line: the chain.
        seed: of the errors.
        spread: rms of the errors, relative.
    """
    errors = torch.randn(len(KNOBS), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    design = torch.stack([line.get(name) for name in KNOBS])
    return dict(zip(KNOBS, (design * (1.0 + spread * errors)).tolist(), strict=True))


def stage_of(line: StagedModel, knob: str) -> str:
    """Return the stage of a ``line`` that a ``knob`` belongs to."""
    return next(name for name, stage in line.stages.items() if knob in stage.input_names)


def pixel_size(line: StagedModel) -> tuple[Tensor, Tensor]:
    """Return width and height of the screen's pixels [m]."""
    return line.get(f"{SCREEN}.pixel_size_x"), line.get(f"{SCREEN}.pixel_size_y")


def pixel_centres(line: StagedModel, image: Tensor) -> tuple[Tensor, Tensor]:
    """Return x of the columns and y of the rows [m], ``(nx,)`` and ``(ny,)``."""
    counts = image.shape[-1], image.shape[-2]
    x, y = (
        (torch.arange(n, dtype=image.dtype) - 0.5 * (n - 1)) * size
        for n, size in zip(counts, pixel_size(line), strict=True)
    )
    return x, y


def sizes_on_image(line: StagedModel, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the rms sizes [m] of a screen image, and how much of the bunch's charge it shows.

    Args:
        line: the chain.
        image: charge in each pixel [C], ``(ny, nx)``.

    Gradient:
        Exact.
    """
    seen = image.sum()
    charge = seen.clamp_min(torch.finfo(image.dtype).tiny)  # a beam that misses the screen must not give 0/0
    found = []
    for axis, centres in zip((-2, -1), pixel_centres(line, image), strict=True):
        profile = image.sum(axis) / charge
        mean = (profile * centres).sum()
        found.append((profile * (centres - mean).square()).sum().clamp_min(1e-18).sqrt())
    return found[0], found[1], seen / line.get("initial_particles").charge


def loss_on_image(line: StagedModel, image: Tensor, target: float) -> Tensor:
    """Return how far an image is from that of a round beam: the sum of squared differences over all pixels, relative.

    Args:
        line: the chain.
        image: charge in each pixel [C], ``(ny, nx)``.
        target: rms radius of the round Gaussian beam [m].

    Gradient:
        Exact.
    """
    x, y = pixel_centres(line, image)
    wanted = torch.exp(-0.5 * ((x / target).square() + (y / target).square().unsqueeze(-1)))
    wanted = wanted / wanted.sum() * line.get("initial_particles").charge
    return (image - wanted).square().sum() / wanted.square().sum()


def image_at(line: StagedModel, settings: Mapping[str, float | Tensor]) -> Tensor:
    """Return the screen's image [C] at settings, ``(ny, nx)``, without writing anything."""
    image: Tensor = line(settings, outputs=[IMAGE])[IMAGE]
    return image
