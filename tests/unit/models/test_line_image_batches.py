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


def test_with_and_without_a_graph_the_numbers_are_the_same() -> None:
    """Particles on the screen, beyond it, on its edge and nowhere at all."""
    generator = torch.Generator().manual_seed(4)
    rows = torch.randn(7, 300, generator=generator, dtype=F64)
    rows[0, :4], rows[2, 4:8] = t((1.0, -1.0, torch.inf, torch.nan)), t((0.5, -0.5, -torch.inf, torch.nan))
    maps = torch.zeros(5, 2, 7, dtype=F64)
    maps[:, 0, 0], maps[:, 1, 2] = torch.linspace(0.5, 1.5, 5), 1.0
    half, offset = (torch.full((5,), 1.0), torch.full((5,), 0.5)), (torch.zeros(5), torch.linspace(0.0, 0.1, 5))
    half, offset = (tuple(value.double() for value in pair) for pair in (half, offset))
    rows[3:] = 0.0
    charge = torch.rand(300, generator=generator, dtype=F64)
    finite = rows.nan_to_num(nan=9.0, posinf=9.0, neginf=-9.0)
    found, expected = (
        cloud_in_cell_batch(maps, finite, charge, (9, 7), half, offset, graph) for graph in (False, True)
    )
    assert torch.equal(found, expected)
    x = finite[0] * maps[:, 0, :1]
    y = finite[2] - offset[1].unsqueeze(-1)
    torch.testing.assert_close(found, cloud_in_cell(x, y, charge, (9, 7), half), rtol=1e-12, atol=1e-12)
    assert bool(cloud_in_cell_batch(maps, rows, charge, (9, 7), half, offset, False).isfinite().all())


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
