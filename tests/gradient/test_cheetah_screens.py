"""Derivatives of what screens and monitors read, against Cheetah's own autograd: also binned, misaligned, batched."""

from __future__ import annotations

import cheetah
import pytest
import torch

from lume_diff import CheetahModel, TorchParticleGroup

F64 = torch.float64
pytestmark = pytest.mark.gradient
KNOBS = ("Q.k1", "Q.tilt", "SCR.misalignment_x", "SCR.misalignment_y", "SCR.pixel_size_x", "SCR.pixel_size_y")
#: What is special -> arguments of the screen.
SCREENS: dict[str, dict[str, object]] = {
    "plain": {},
    "not-square": {"resolution": (24, 10)},
    "binned": {"resolution": (24, 18), "binning": 2},
    "binned-with-a-rest": {"resolution": (25, 17), "binning": 3},
    "few-pixels": {"resolution": (5, 4)},
    "kde": {"method": "kde", "kde_bandwidth": 1.5e-4},
    "kde-binned": {"method": "kde", "kde_bandwidth": 1.5e-4, "resolution": (24, 18), "binning": 2},
}
#: Values of KNOBS; the first strength is a batch of three.
ALIGNED = (2.0, 0.0, 0.0, 0.0, 1.3e-4, 0.9e-4)
MISALIGNED = (-3.0, 0.4, 2e-4, -3e-4, 1.3e-4, 0.9e-4)
Values = dict[str, torch.Tensor]
Reading = tuple[torch.Tensor, list[torch.Tensor | None]]


def t(value: object, dtype: torch.dtype = F64) -> torch.Tensor:
    return torch.tensor(value, dtype=dtype)


def particles(n: int = 300) -> torch.Tensor:
    """Particles of which a third misses the screen."""
    coordinates = torch.randn(n, 6, generator=torch.Generator().manual_seed(5), dtype=F64)
    coordinates = coordinates * t((1e-3, 2e-4, 8e-4, 1e-4, 1e-4, 1e-3))
    return torch.cat((coordinates, torch.ones(n, 1, dtype=F64)), dim=-1)


def charges(n: int = 300) -> torch.Tensor:
    return 1e-12 * torch.rand(n, generator=torch.Generator().manual_seed(6), dtype=F64)


def beam_of(coordinates: torch.Tensor, charge: torch.Tensor) -> cheetah.ParticleBeam:
    dtype = coordinates.dtype
    alive = torch.ones(coordinates.shape[-2], dtype=dtype)
    alive[-20:] = 0.0
    return cheetah.ParticleBeam(
        coordinates, t(1e8, dtype), particle_charges=charge, survival_probabilities=alive,
        species=cheetah.Species("electron", dtype=dtype),
    )  # fmt: skip


def line_of(values: Values, options: dict[str, object], dtype: torch.dtype = F64) -> cheetah.Segment:
    options = {name: t(value, dtype) if isinstance(value, float) else value for name, value in options.items()}
    options = {"resolution": (24, 24), **options}
    pairs = (
        torch.stack([values[f"SCR.{feature}_{plane}"] for plane in "xy"], dim=-1)
        for feature in ("misalignment", "pixel_size")
    )
    placed = dict(zip(("misalignment", "pixel_size"), pairs, strict=True))
    return cheetah.Segment(
        [
            cheetah.Quadrupole(t(0.3, dtype), values["Q.k1"], tilt=values["Q.tilt"], name="Q", dtype=dtype),
            cheetah.Drift(t(0.5, dtype), name="D", dtype=dtype),
            cheetah.BPM(is_active=True, name="BPM", dtype=dtype),
            cheetah.Screen(**options, **placed, is_active=True, name="SCR", dtype=dtype),
        ]
    )


def images(
    numbers: tuple[float, ...], options: dict[str, object], batch: int = 0, dtype: torch.dtype = F64
) -> tuple[Reading, ...]:
    """Return the image and the derivatives of a random combination of its pixels, ours and Cheetah's.

    Derivatives are to KNOBS, to the particles and to their charges, in units near their size; None where Cheetah has
    no graph.
    """
    found = []
    for is_ours in (True, False):
        values = {name: t(value, dtype) for name, value in zip(KNOBS, numbers, strict=True)}
        if batch:
            values["Q.k1"] = torch.linspace(-4.0, 3.0, batch, dtype=dtype)
        leaves = {name: value.clone().requires_grad_() for name, value in values.items()}
        rows, charge = particles().to(dtype).requires_grad_(), charges().to(dtype).requires_grad_()
        beam = beam_of(rows, charge)
        if is_ours:
            plain = {**values, "Q.k1": values["Q.k1"].reshape(-1)[0]}
            still = beam_of(rows.detach(), charge.detach())
            model = CheetahModel(line_of(plain, options, dtype), still, outputs=["SCR.image"], dtype=dtype)
            image = model({**leaves, "initial_particles": TorchParticleGroup.from_cheetah(beam)})["SCR.image"]
        else:
            segment = line_of(leaves, options, dtype)
            segment.track(beam)
            image = segment.SCR.reading
        unit = 1.0 if "method" in options else 1e-12
        generator = torch.Generator().manual_seed(8)
        weights = torch.rand(image.shape, generator=generator, dtype=F64).to(dtype)
        total = (image / unit * weights).sum()
        slopes = torch.autograd.grad(total, [*leaves.values(), rows, charge], allow_unused=not is_ours)
        sizes = [1.0, 1.0, 1e-4, 1e-4, 1e-4, 1e-4, t((1e-4, 1e-4, 1e-4, 1e-4, 1e-4, 1e-3, 0.0), dtype), 1e-12]
        scaled = [None if slope is None else slope * size for slope, size in zip(slopes, sizes, strict=True)]
        found.append((image.detach() / unit, scaled))
    return tuple(found)


def assert_same(
    ours: Reading,
    theirs: Reading,
    value: float = 1e-10,
    slope: float = 1e-8,
) -> None:
    assert ours[0].shape == theirs[0].shape
    assert (ours[0] - theirs[0]).abs().max() <= value * theirs[0].abs().max()
    for name, mine, raw in zip((*KNOBS, "particles", "charges"), ours[1], theirs[1], strict=True):
        assert bool(mine.isfinite().all())
        if raw is None:  # Cheetah's smooth image does not know the size of its pixels
            assert name.startswith("SCR.pixel_size")
            continue
        off = ((mine - raw).abs().max() / raw.abs().max().clamp_min(1e-6)).item()
        assert off <= slope, f"the derivative to {name} is off by {off:.2g} of its largest"


@pytest.mark.parametrize("numbers", [ALIGNED, MISALIGNED], ids=["aligned", "misaligned"])
@pytest.mark.parametrize("options", SCREENS.values(), ids=SCREENS)
def test_image_and_derivatives_equal_cheetahs(options: dict[str, object], numbers: tuple[float, ...]) -> None:
    ours, theirs = images(numbers, options)
    assert_same(ours, theirs)
    assert ours[0].sum() > 0.0
    if "method" not in options:
        assert ours[0].sum() < 0.9 * charges().sum() / 1e-12  # what misses the screen is not on it


@pytest.mark.parametrize("options", SCREENS.values(), ids=SCREENS)
def test_batched_images_and_derivatives_equal_cheetahs(options: dict[str, object]) -> None:
    ours, theirs = images(MISALIGNED, options, batch=3)
    assert ours[0].dim() == 3
    assert_same(ours, theirs)


@pytest.mark.parametrize("batch", [0, 3], ids=["one", "batch"])
@pytest.mark.parametrize("name", ["plain", "binned", "kde"])
def test_single_precision_is_kept_and_agrees(name: str, batch: int) -> None:
    """With Cheetah's in single precision, and with our own in double."""
    ours, theirs = images(MISALIGNED, SCREENS[name], batch, torch.float32)
    assert ours[0].dtype == torch.float32
    # A particle within round-off of a pixel's centre may fall on either side of the kink there.
    assert_same(ours, theirs, value=2e-5, slope=5e-3)
    double, _ = images(MISALIGNED, SCREENS[name], batch)
    assert_same((ours[0].double(), [slope.double() for slope in ours[1]]), double, value=2e-5, slope=5e-3)


def test_no_pixel_moves_with_a_beam_that_misses_the_screen() -> None:
    ours, theirs = images((2.0, 0.0, 0.1, 0.1, 1.3e-4, 0.9e-4), {})
    assert not ours[0].any()
    assert not theirs[0].any()
    assert all(bool(slope.isfinite().all()) and not slope.any() for slope in ours[1])


def test_a_monitor_follows_the_beam_as_cheetahs_does() -> None:
    found = []
    numbers = {name: t(value) for name, value in zip(KNOBS, MISALIGNED, strict=True)}
    alike = torch.full((300,), 1e-12, dtype=F64)
    weights = t((1.0, 2.0))
    for is_ours in (True, False):
        leaves = {name: numbers[name].clone().requires_grad_() for name in KNOBS[:2]}
        rows = particles().requires_grad_()
        beam = beam_of(rows, alike)
        if is_ours:
            still = beam_of(rows.detach(), alike)
            model = CheetahModel(line_of(numbers, {}), still, outputs=["BPM.x", "BPM.y"])
            out = model({**leaves, "initial_particles": TorchParticleGroup.from_cheetah(beam)})
            reading = torch.stack((out["BPM.x"], out["BPM.y"]))
        else:
            segment = line_of({**numbers, **leaves}, {})
            segment.track(beam)
            reading = segment.BPM.reading
        found.append((reading.detach(), torch.autograd.grad(reading @ weights, [*leaves.values(), rows])))
    (mine, our_slopes), (theirs, their_slopes) = found
    torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-16)
    for ours, raw in zip(our_slopes, their_slopes, strict=True):
        ours, raw = (slope[..., :6] if slope.dim() else slope for slope in (ours, raw))
        assert ((ours - raw).abs() <= 1e-8 * raw.abs().max()).all()
