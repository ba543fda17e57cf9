"""Screens and monitors: what they read is what Cheetah's read, also binned, misaligned, and at the edges."""

from __future__ import annotations

import cheetah
import pytest
import torch

from lume_diff import CheetahModel, GradientError, PhysicsWarning
from lume_diff.models.line import screens

F64 = torch.float64
METHODS = ("cloud-in-cell", "histogram", "kde")
#: What is special -> arguments of the screen.
SCREENS = {
    "plain": {},
    "not-square": {"resolution": (24, 10), "pixel_size": torch.tensor((1e-4, 2.5e-4), dtype=F64)},
    "binned": {"resolution": (24, 18), "binning": 2},
    "binned-with-a-rest": {"resolution": (25, 17), "binning": 3},
    "misaligned": {"misalignment": torch.tensor((2e-4, -3e-4), dtype=F64)},
}


def t(value: float | tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(value, dtype=F64)


def bunch(n: int = 400, seed: int = 5) -> cheetah.ParticleBeam:
    """Particles on the screen, beyond it, exactly on its edges and on those of its pixels, some of them lost."""
    generator = torch.Generator().manual_seed(seed)
    particles = torch.zeros(n, 7, dtype=F64)
    particles[:, :4] = 8e-4 * torch.randn(n, 4, generator=generator, dtype=F64)
    particles[:, 6] = 1.0
    edges = [-1.2e-3, 1.2e-3, 0.0, 1e-4, -1e-4, 1.1e-3, 1.25e-3, -1.25e-3]
    for i, x in enumerate(edges):
        for j, y in enumerate(edges):
            particles[8 * i + j, 0], particles[8 * i + j, 2] = x, y
    alive = torch.ones(n, dtype=F64)
    alive[-20:] = 0.0
    return cheetah.ParticleBeam(
        particles=particles,
        energy=t(1e8),
        particle_charges=1e-12 * torch.rand(n, generator=generator, dtype=F64),
        survival_probabilities=alive,
        species=cheetah.Species("electron", dtype=F64),
    )


def screen(method: str = "cloud-in-cell", active: bool = True, **options: object) -> cheetah.Screen:
    options = {"resolution": (24, 24), "pixel_size": t((1e-4, 1e-4)), **options}
    return cheetah.Screen(**options, method=method, is_active=active, name="SCR", dtype=F64).to(F64)


def assert_image(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-10 * expected.abs().max().item())


def test_large_images_in_single_precision_have_their_charge_where_it_is() -> None:
    pixels = 5000, 5000
    half = (torch.tensor(2500.0), torch.tensor(2500.0))
    x, y = torch.tensor([-1266.0]), torch.tensor([2300.5])
    image = screens.cloud_in_cell(x, y, torch.ones(1), pixels, half)
    assert image.nonzero().tolist() == [[4800, 1233], [4800, 1234]]


def test_pixels_share_what_binning_leaves_of_the_screen() -> None:
    segment = cheetah.Segment([screen(**SCREENS["binned-with-a-rest"])])
    image = CheetahModel(segment, bunch(), outputs=["SCR.image"]).supported_variables["SCR.image"]
    assert image.shape == (5, 8)
    assert image.pixel_size == pytest.approx((25 * 1e-4 / 8, 17 * 1e-4 / 5))


@pytest.mark.parametrize("options", SCREENS.values(), ids=SCREENS)
@pytest.mark.parametrize("method", METHODS)
def test_reading_equals_cheetahs(method: str, options: dict[str, object]) -> None:
    native = screen(method, **options)
    beam = bunch()
    native.track(beam)
    model = CheetahModel(cheetah.Segment([native]), beam, outputs=["SCR.image"])
    assert_image(model.get("SCR.image"), native.reading)
    nx, ny = native.effective_resolution
    assert model.get("SCR.image").shape == model.supported_variables["SCR.image"].shape == (ny, nx)


@pytest.mark.parametrize("method", METHODS)
def test_reading_behind_a_magnet(method: str) -> None:
    line = [cheetah.Quadrupole(t(0.1), t(3.0), name="Q", dtype=F64), screen(method)]
    segment, beam = cheetah.Segment(line).to(F64), bunch()
    segment.track(beam)
    model = CheetahModel(segment, beam, outputs=["SCR.image"])
    assert_image(model.get("SCR.image"), segment.SCR.reading)


def test_rows_rise_with_y_and_columns_with_x() -> None:
    beam = bunch()
    beam.particles = torch.tensor([[8e-4, 0.0, -3e-4, 0.0, 0.0, 0.0, 1.0]], dtype=F64).expand(400, 7).clone()
    image = CheetahModel(cheetah.Segment([screen()]), beam, outputs=["SCR.image"]).get("SCR.image")
    row, column = divmod(int(image.argmax()), 24)
    assert row in (8, 9)
    assert column in (19, 20)


@pytest.mark.parametrize("method", METHODS)
def test_batched_images_equal_a_loop(method: str) -> None:
    line = [cheetah.Quadrupole(t(0.2), t(0.0), name="Q", dtype=F64), screen(method)]
    model = CheetahModel(cheetah.Segment(line), bunch(), outputs=["SCR.image"])
    knobs = {
        "Q.k1": torch.linspace(-5.0, 5.0, 3, dtype=F64),
        "SCR.misalignment_x": torch.linspace(0.0, 2e-4, 3, dtype=F64),
        "SCR.pixel_size_x": torch.linspace(0.8e-4, 1.2e-4, 3, dtype=F64),
        "SCR.pixel_size_y": torch.linspace(1.2e-4, 0.8e-4, 3, dtype=F64),
        "SCR.kde_bandwidth": torch.linspace(1e-4, 2e-4, 3, dtype=F64),
    }
    batched = model(knobs)["SCR.image"]
    assert batched.shape == (3, 24, 24)
    for index in range(3):
        alone = model({name: value[index] for name, value in knobs.items()})["SCR.image"]
        assert_image(batched[index], alone)


@pytest.mark.parametrize("method", METHODS)
def test_vmap_equals_a_batch(method: str) -> None:
    model = CheetahModel(
        cheetah.Segment([cheetah.Quadrupole(t(0.2), t(0.0), name="Q", dtype=F64), screen(method)]),
        bunch(),
        outputs=["SCR.image"],
    )
    k1 = torch.linspace(-5.0, 5.0, 3, dtype=F64)
    mapped = torch.func.vmap(lambda k: model({"Q.k1": k}, outputs=["SCR.image"])["SCR.image"])(k1)
    assert_image(mapped, model({"Q.k1": k1})["SCR.image"])


def test_cloud_in_cell_keeps_the_charge_inside() -> None:
    generator = torch.Generator().manual_seed(1)
    x, y = (2e-3 * (torch.rand(1000, generator=generator, dtype=F64) - 0.5) for _ in "xy")
    charge = torch.rand(1000, generator=generator, dtype=F64)
    image = screens.cloud_in_cell(x, y, charge, (40, 30), (t(2e-3), t(2e-3)))
    torch.testing.assert_close(image.sum(), charge.sum(), rtol=1e-13, atol=0.0)


def test_coordinates_that_are_not_numbers_count_nothing() -> None:
    x = t((float("nan"), float("inf"), -float("inf"), 1e-4))
    for make in (screens.cloud_in_cell, screens.histogram):
        image = make(x, torch.zeros(4, dtype=F64), torch.ones(4, dtype=F64), (6, 4), (t(1e-3), t(1e-3)))
        torch.testing.assert_close(image.sum(), t(1.0))


@pytest.mark.parametrize("method", ["cloud-in-cell", "kde"])
def test_gradient_of_an_image(method: str) -> None:
    line = [cheetah.Quadrupole(t(0.2), t(1.0), name="Q", dtype=F64), screen(method)]
    model = CheetahModel(cheetah.Segment(line), bunch(), outputs=["SCR.image"])
    weight = torch.rand(24, 24, generator=torch.Generator().manual_seed(2), dtype=F64)
    inputs = ("Q.k1", "SCR.misalignment_x", "SCR.pixel_size_y")
    point = {name: model.get(name).detach() for name in inputs}
    brightest = model(point)["SCR.image"].max()

    def value(changed: dict[str, torch.Tensor]) -> torch.Tensor:
        return (model(changed)["SCR.image"] / brightest * weight).sum()

    share = {"cloud-in-cell": 1e-7, "kde": 1e-5}[method]  # of a piecewise linear image: no particle may pass a kink
    for name in inputs:
        leaf = point[name].clone().requires_grad_()
        (found,) = torch.autograd.grad(value({**point, name: leaf}), leaf)
        step = share * max(abs(point[name].item()), 1e-4)
        with torch.no_grad():
            ends = [value({**point, name: point[name] + sign * step}) for sign in (1.0, -1.0)]
        difference = (ends[0] - ends[1]) / (2.0 * step)
        torch.testing.assert_close(found, difference, rtol=2e-5, atol=1e-6 * abs(difference.item()))


def test_a_histogram_refuses_a_gradient_at_once() -> None:
    line = [cheetah.Quadrupole(t(0.2), t(1.0), name="Q", dtype=F64), screen("histogram")]
    model = CheetahModel(cheetah.Segment(line), bunch(), outputs=["SCR.image", "final.sigma_x"])
    k1 = t(1.0).requires_grad_()
    with pytest.raises(GradientError, match=r"'SCR' is a histogram.*cloud-in-cell"):
        model({"Q.k1": k1}, outputs=["SCR.image"])
    with pytest.raises(GradientError, match="cloud-in-cell"):
        torch.func.grad(lambda k: model({"Q.k1": k}, outputs=["SCR.image"])["SCR.image"].sum())(t(1.0))
    with pytest.raises(GradientError, match="cloud-in-cell"):
        torch.func.jvp(lambda k: model({"Q.k1": k}, outputs=["SCR.image"])["SCR.image"], (t(1.0),), (t(1.0),))
    with torch.autograd.forward_ad.dual_level(), pytest.raises(GradientError, match="cloud-in-cell"):
        model({"Q.k1": torch.autograd.forward_ad.make_dual(t(1.0), t(1.0))}, outputs=["SCR.image"])
    with torch.no_grad():
        assert model({"Q.k1": k1}, outputs=["SCR.image"])["SCR.image"].sum() > 0.0
    model({"Q.k1": k1}, outputs=["final.sigma_x"])["final.sigma_x"].backward()
    assert bool(k1.grad.isfinite())


def test_an_inactive_screen_reads_zeros_and_says_so() -> None:
    model = CheetahModel(cheetah.Segment([screen(active=False)]), bunch(), outputs=["SCR.image"])
    with pytest.warns(PhysicsWarning, match=r"'SCR' is not active.*set \{'SCR.is_active': True\}"):
        image = model.get("SCR.image")
    assert image.shape == (24, 24)
    assert not image.any()
    model.set({"SCR.is_active": True})
    assert model.get("SCR.image").sum() > 0.0
    fixed = CheetahModel(cheetah.Segment([screen(active=False)]), bunch(), controls=[], outputs=["SCR.image"])
    with pytest.warns(PhysicsWarning, match="switch it on in the segment"):
        fixed.get("SCR.image")


def test_an_inactive_screen_has_a_gradient_of_zero_to_what_follows() -> None:
    line = [cheetah.Quadrupole(t(0.2), t(1.0), name="Q", dtype=F64), screen(active=False)]
    model = CheetahModel(cheetah.Segment(line), bunch(), outputs=["SCR.image", "final.sigma_x"])
    k1 = torch.linspace(0.0, 1.0, 3, dtype=F64).requires_grad_()
    with pytest.warns(PhysicsWarning):
        out = model({"Q.k1": k1})
    assert out["SCR.image"].shape == (3, 24, 24)
    (out["SCR.image"].sum() + out["final.sigma_x"].sum()).backward()
    assert bool(k1.grad.isfinite().all())


@pytest.mark.parametrize("misalignment", [(0.0, 0.0), (1e-4, -2e-4)], ids=["aligned", "misaligned"])
def test_a_monitor_reads_cheetahs_position(misalignment: tuple[float, float]) -> None:
    native = cheetah.BPM(is_active=True, misalignment=t(misalignment), name="BPM", dtype=F64).to(F64)
    beam = bunch()
    beam.particle_charges = torch.full_like(beam.particle_charges, 1e-12)
    native.track(beam)
    model = CheetahModel(cheetah.Segment([native]), beam, outputs=["BPM.x", "BPM.y"])
    reading = torch.stack((model.get("BPM.x"), model.get("BPM.y")))
    torch.testing.assert_close(reading, native.reading, rtol=1e-10, atol=1e-16)


def test_a_monitor_weighs_particles_by_their_charge() -> None:
    """Cheetah counts every particle alike, which is the same for particles of one charge."""
    native, beam = cheetah.BPM(is_active=True, name="BPM", dtype=F64), bunch()
    model = CheetahModel(cheetah.Segment([native]), beam, outputs=["BPM.x"])
    weight = beam.particle_charges * beam.survival_probabilities
    torch.testing.assert_close(model.get("BPM.x"), (weight * beam.x).sum() / weight.sum(), rtol=1e-10, atol=1e-16)


def test_an_inactive_monitor_reads_nan_and_says_so() -> None:
    native = cheetah.BPM(name="BPM", dtype=F64)
    model = CheetahModel(cheetah.Segment([native]), bunch(), outputs=["BPM.x"])
    with pytest.warns(PhysicsWarning, match="'BPM' is not active and reads NaN"):
        assert bool(model.get("BPM.x").isnan())
    model.set({"BPM.is_active": True})
    assert bool(model.get("BPM.x").isfinite())


def test_a_blocking_screen_images_the_beam_and_stops_it() -> None:
    model = CheetahModel(
        cheetah.Segment([screen(is_blocking=True), cheetah.Marker(name="M")]),
        bunch(),
        outputs=["SCR.image", "M.survival"],
    )
    assert model.get("SCR.image").sum() > 0.0
    assert model.get("M.survival") == 0.0
