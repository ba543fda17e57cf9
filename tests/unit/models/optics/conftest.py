"""Random settings and the tools that the optics tests share."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

Uniform = Callable[..., torch.Tensor]


@pytest.fixture(scope="session")
def cheetah() -> object:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("cheetah")


@pytest.fixture(scope="session")
def electron(cheetah):
    return cheetah.Species("electron", dtype=torch.float64)


@pytest.fixture
def uniform() -> Uniform:
    seed = 20240607
    print(f"seed = {seed}")
    generator = torch.Generator().manual_seed(seed)

    def draw(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator, dtype=torch.float64)

    return draw


def _settings(kind: str, draw: Uniform) -> SimpleNamespace:
    n = 40
    s = SimpleNamespace(
        length=draw(0.05, 2.0, n),
        k1=draw(-20.0, 20.0, n),
        k2=draw(-200.0, 200.0, n),
        k=draw(-3.0, 3.0, n),
        angle=draw(-1.2, 1.2, n),
        e1=draw(-0.6, 0.6, n),
        e2=draw(-0.6, 0.6, n),
        tilt=draw(-3.0, 3.0, n),
        misalignment=draw(-2e-3, 2e-3, n, 2),
        gap=draw(0.0, 0.05, n),
        gap_exit=draw(0.0, 0.05, n),
        fint=draw(0.0, 0.7, n),
        fintx=draw(0.0, 0.7, n),
        period=draw(-0.03, 0.06, n),
        kx=draw(0.0, 3.0, n),
        ky=draw(0.0, 3.0, n),
        energy=10 ** draw(6.5, 10.0, n),
        particles=torch.cat((1e-3 * draw(-1.0, 1.0, n, 30, 6), torch.ones(n, 30, 1, dtype=torch.float64)), -1),
    )
    strengths = ("k1", "k2", "k", "angle", "e1", "e2", "tilt", "misalignment", "kx", "ky")
    if kind == "zero":
        for name in strengths:
            setattr(s, name, 0.0 * getattr(s, name))
    elif kind == "tiny":
        for name in strengths:
            setattr(s, name, 1e-9 * getattr(s, name))
    elif kind == "strong":
        s.k1, s.k, s.angle, s.energy = 3.0 * s.k1, 5.0 * s.k, 1.2 * s.angle, 3e6 + 0.0 * s.energy
    return s


@pytest.fixture(params=["random", "zero", "tiny", "strong"])
def settings(request, uniform) -> SimpleNamespace:
    """Parameters of 40 elements of each kind."""
    return _settings(request.param, uniform)


@pytest.fixture
def random_settings(uniform) -> SimpleNamespace:
    return _settings("random", uniform)
