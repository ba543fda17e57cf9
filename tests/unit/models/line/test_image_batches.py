"""Images of many settings at once, a few at a time: the same images and gradients as one setting after another."""

from __future__ import annotations

import cheetah
import pytest
import torch

from lume_diff import CheetahModel
from lume_diff.models.line import image_batches
from lume_diff.models.line.image_batches import cloud_in_cell_batch
from lume_diff.models.line.screens import cloud_in_cell

F64 = torch.float64


def t(value: float | tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(value, dtype=F64)


@pytest.fixture(autouse=True)
def few_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let pieces be small, so that small batches have many, the last one shorter."""
    monkeypatch.setattr(image_batches, "together", lambda _: 600)
    monkeypatch.setattr("lume_diff.models.line.readings.together", lambda _: 600)


@pytest.fixture
def model() -> CheetahModel:
    generator = torch.Generator().manual_seed(3)
    particles = torch.randn(200, 6, generator=generator, dtype=F64) * t((4e-4, 2e-4, 3e-4, 1e-4, 2e-4, 1e-3))
    alive = torch.ones(200, dtype=F64)
    alive[:9] = 0.0
    beam = cheetah.ParticleBeam(
        particles=torch.cat((particles, torch.ones(200, 1, dtype=F64)), dim=-1),
        energy=t(1e8),
        particle_charges=torch.rand(200, generator=generator, dtype=F64) * 1e-13,
        survival_probabilities=alive,
        species=cheetah.Species("electron", dtype=F64),
    )
    elements = [
        cheetah.Quadrupole(t(0.2), t(3.0), name="Q1", dtype=F64),
        cheetah.Drift(t(0.5), name="D1", dtype=F64),
        cheetah.Screen((16, 12), t((1e-4, 1.5e-4)), misalignment=t((1e-4, 0.0)), is_active=True, name="S", dtype=F64),
    ]
    return CheetahModel(cheetah.Segment(elements), beam, outputs=["S.image"])


def image(model: CheetahModel, **knobs: torch.Tensor) -> torch.Tensor:
    values = {name.replace("__", "."): value for name, value in knobs.items()}
    return model(values, outputs=["S.image"])["S.image"]


@pytest.mark.parametrize("has_graph", [False, True])
def test_one_setting_of_a_bunch_larger_than_a_piece(
    has_graph: bool, model: CheetahModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    k1 = t(2.0).requires_grad_(has_graph)
    pieces = image(model, Q1__k1=k1)
    monkeypatch.setattr("lume_diff.models.line.readings.together", lambda _: 100)
    found = image(model, Q1__k1=k1)
    assert found.shape == (12, 16)
    torch.testing.assert_close(found, pieces, rtol=1e-10, atol=1e-12 * float(pieces.detach().max()))
    assert found.requires_grad == has_graph


@pytest.mark.parametrize("batch", [(7,), (3,), (2, 5)], ids=str)
@pytest.mark.parametrize("knob", ["Q1__k1", "S__misalignment_x", "S__pixel_size_y"])
def test_a_batch_equals_one_after_another(knob: str, batch: tuple[int, ...], model: CheetahModel) -> None:
    start = {"Q1__k1": -4.0, "S__misalignment_x": -3e-4, "S__pixel_size_y": 5e-5}[knob]
    count = int(torch.tensor(batch).prod())
    values = torch.linspace(start, 2.0 * start + 1e-4, count, dtype=F64)
    alone = torch.stack([image(model, **{knob: value}) for value in values])
    together = image(model, **{knob: values.reshape(batch)})
    assert together.shape == (*batch, 12, 16)
    torch.testing.assert_close(together.reshape(alone.shape), alone, rtol=1e-12, atol=1e-12 * alone.max().item())
    with_graph = image(model, **{knob: values.reshape(batch).requires_grad_()})
    torch.testing.assert_close(with_graph.detach(), together, rtol=1e-13, atol=1e-13 * alone.max().item())


Given = tuple[torch.Tensor, ...]


def batch_of_maps(generator: torch.Generator) -> Given:
    """Return maps of five settings, rows, charges, half sizes and offsets; a third of the particles is off."""
    maps = torch.randn(5, 2, 7, generator=generator, dtype=F64)
    rows = 0.3 * torch.randn(7, 300, generator=generator, dtype=F64)
    charge = torch.rand(300, generator=generator, dtype=F64)
    half = torch.stack((torch.full((5,), 1.0), torch.linspace(0.6, 0.9, 5))).double()
    offset = torch.stack((torch.zeros(5), torch.linspace(0.0, 0.1, 5))).double()
    return maps, rows, charge, half, offset


def drawn(given: Given) -> torch.Tensor:
    maps, rows, charge, half, offset = given
    return cloud_in_cell_batch(maps, rows, charge, (9, 7), (half[0], half[1]), (offset[0], offset[1]))


def by_operations(given: Given) -> torch.Tensor:
    maps, rows, charge, half, offset = given
    x, y = (maps.transpose(0, 1) @ rows - offset.unsqueeze(-1)).unbind()
    return cloud_in_cell(x, y, charge, (9, 7), (half[0], half[1]))


def test_particles_beyond_the_screen_on_its_edge_and_nowhere_at_all() -> None:
    maps, rows, charge, half, offset = batch_of_maps(torch.Generator().manual_seed(4))
    maps = torch.zeros_like(maps)
    maps[:, 0, 0], maps[:, 1, 2] = torch.linspace(0.5, 1.5, 5), 1.0
    rows[0, :4], rows[2, 4:8] = t((1.0, -1.0, torch.inf, torch.nan)), t((0.5, -0.5, -torch.inf, torch.nan))
    rows[3:] = 0.0
    finite = rows.nan_to_num(nan=9.0, posinf=9.0, neginf=-9.0)
    expected = by_operations((maps, finite, charge, half, offset))
    torch.testing.assert_close(drawn((maps, finite, charge, half, offset)), expected, rtol=1e-12, atol=1e-12)
    leaf = rows.clone().requires_grad_()
    found = drawn((maps, leaf, charge, half, offset))
    assert bool(found.isfinite().all())
    found.sum().backward()
    assert leaf.grad is not None
    assert bool(leaf.grad.isfinite().all())


@pytest.mark.parametrize("name", ["maps", "rows", "charge", "half", "offset"])
def test_derivatives_of_images_drawn_in_place_equal_those_of_operations(name: str) -> None:
    given = batch_of_maps(torch.Generator().manual_seed(5))
    place = ("maps", "rows", "charge", "half", "offset").index(name)
    weights = torch.randn(5, 7, 9, generator=torch.Generator().manual_seed(6), dtype=F64)
    slopes, curvatures = [], []
    for draw in (drawn, by_operations):
        leaves = tuple(value.clone().requires_grad_(at in (place, 1)) for at, value in enumerate(given))
        slopes.append(torch.autograd.grad((draw(leaves) * weights).square().sum(), leaves[place])[0])
        again = torch.autograd.grad((draw(leaves) * weights).square().sum(), leaves[place], create_graph=True)[0]
        torch.testing.assert_close(again, slopes[-1])
        curvatures.append(torch.autograd.grad(again.square().sum(), leaves[1])[0])
    assert bool(slopes[0].any())
    torch.testing.assert_close(*slopes, rtol=1e-9, atol=1e-9 * slopes[0].abs().max().item())
    torch.testing.assert_close(*curvatures, rtol=1e-9, atol=1e-9 * curvatures[0].abs().max().item())


def test_images_pull_back_whatever_was_drawn_since() -> None:
    maps, rows, charge, half, offset = batch_of_maps(torch.Generator().manual_seed(7))
    slopes = []
    for others in (0, 1):
        leaf = rows.clone().requires_grad_()
        image = drawn((maps, leaf, charge, half, offset)).square().sum()
        for _ in range(others):
            drawn((maps, 0.5 * rows, charge, half, offset))
        slopes += [torch.autograd.grad(image, leaf, retain_graph=True)[0] for _ in range(2)]
    assert all(torch.equal(slope, slopes[0]) for slope in slopes)


def test_gradients_of_a_batch_equal_those_of_one_after_another(model: CheetahModel) -> None:
    k1 = torch.linspace(-3.0, 3.0, 7, dtype=F64)
    weights = torch.randn(12, 16, generator=torch.Generator().manual_seed(1), dtype=F64)
    leaf = k1.clone().requires_grad_()
    (image(model, Q1__k1=leaf) * weights).sum().backward()
    alone = [torch.func.grad(lambda k: (image(model, Q1__k1=k) * weights).sum())(value) for value in k1]
    torch.testing.assert_close(leaf.grad, torch.stack(alone), rtol=1e-10, atol=0.0)
    forward = torch.func.jvp(lambda k: (image(model, Q1__k1=k) * weights).sum(), (k1,), (torch.ones_like(k1),))[1]
    torch.testing.assert_close(forward, leaf.grad.sum(), rtol=1e-10, atol=0.0)
    mapped = torch.func.vmap(lambda k: image(model, Q1__k1=k))(k1)
    torch.testing.assert_close(mapped, image(model, Q1__k1=k1), rtol=1e-12, atol=1e-25)
