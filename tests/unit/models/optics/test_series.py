"""Power series of transfer maps: the maps themselves to round-off, with their derivatives, as far as they reach."""

from __future__ import annotations

import pytest
import torch

from lume_diff.models.optics import LIMIT, quadrupole, quadrupole_series, sum_of_powers

F64 = torch.float64
MASS = 510998.95


def numbers(count: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    """Return lengths and strengths, zero and both ends of the reach among them."""
    generator = torch.Generator().manual_seed(2)
    length = 0.02 + 0.8 * torch.rand(count, generator=generator, dtype=F64)
    share = 2.0 * torch.rand(count, generator=generator, dtype=F64) - 1.0
    share[:3] = torch.tensor((0.0, 1.0, -1.0))
    length[3] = 0.0
    return length, share * LIMIT / length.clamp_min(0.02).square()


@pytest.mark.parametrize("tilt", [None, 0.3], ids=["straight", "tilted"])
@pytest.mark.parametrize("shift", [None, (1e-3, -2e-3)], ids=["aligned", "displaced"])
def test_the_sum_is_the_map_with_two_derivatives(tilt: float | None, shift: tuple[float, float] | None) -> None:
    length, k1 = numbers()
    energy = torch.tensor(5e6, dtype=F64)
    placed = (
        None if tilt is None else torch.full_like(length, tilt),
        None if shift is None else torch.tensor(shift, dtype=F64).expand(len(length), 2),
    )
    series = quadrupole_series(length, energy, MASS, *placed)
    weights = torch.randn(len(length), 7, 7, generator=torch.Generator().manual_seed(3), dtype=F64)
    found = []
    for make in (lambda k: sum_of_powers(series, k), lambda k: quadrupole(length, k, energy, MASS, *placed)):
        leaf = k1.clone().requires_grad_()
        value = make(leaf)
        (first,) = torch.autograd.grad((value * weights).sum(), leaf, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), leaf)
        found.append((value, first, second))
    for mine, expected in zip(*found, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-12, atol=1e-14 * expected.abs().max().item())


def test_other_shapes_of_matrices() -> None:
    series = torch.randn(3, 13, 8, 8, generator=torch.Generator().manual_seed(5), dtype=F64)
    k = torch.tensor((0.5, 0.0, -1.0), dtype=F64)
    expected = sum(k[:, None, None] ** n * series[:, n] for n in range(13))
    torch.testing.assert_close(sum_of_powers(series, k), expected, rtol=1e-13, atol=1e-14)
    torch.testing.assert_close(torch.func.jacfwd(lambda x: sum_of_powers(series, x))(k)[1, ..., 1], series[1, 1])


@pytest.mark.parametrize("batch", [(4,), (2, 3), (5, 1)], ids=str)
def test_a_batch_of_strengths_is_a_loop(batch: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(6)
    series = torch.randn(3, 13, 8, 8, generator=generator, dtype=F64)
    k = torch.randn(*batch, 3, generator=generator, dtype=F64)
    found = sum_of_powers(series, k)
    assert found.shape == (*batch, 3, 8, 8)
    expected = torch.stack([sum_of_powers(series, row) for row in k.reshape(-1, 3)]).reshape(found.shape)
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-14)
