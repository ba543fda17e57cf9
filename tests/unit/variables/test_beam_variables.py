"""Bunches and moments as values: conversion, dtype, graph, and numbers that are not finite."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from lume_diff.errors import OutOfRangeWarning, ValidationError
from lume_diff.particles import TorchMoments, TorchParticleGroup
from lume_diff.variables import MomentsVariable, ParticleGroupVariable

F32, F64 = torch.float32, torch.float64


def arrays(n: int = 5) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    fields = {key: 1e-3 * torch.randn(n, generator=generator, dtype=F64) for key in ("x", "y", "z", "px", "py")}
    return fields | {
        "pz": torch.full((n,), 1e8, dtype=F64),
        "t": torch.zeros(n, dtype=F64),
        "weight": torch.full((n,), 1e-12, dtype=F64),
    }


VARIABLE = ParticleGroupVariable(name="initial_particles")


def broken(value: float = float("nan")) -> TorchParticleGroup:
    """Return a bunch that went wrong on its way, as a failed tracking would leave it."""
    bunch = TorchParticleGroup(**arrays())
    x = bunch.x.clone()
    x[2] = value
    return bunch._with(x=x)


def test_a_bunch_that_fits_is_returned_as_it_is() -> None:
    bunch = TorchParticleGroup(**arrays())
    assert VARIABLE.validate_value(bunch) is bunch
    assert VARIABLE.validate_value(bunch, dtype=F64, device="cpu", config="warn") is bunch


def test_a_bunch_is_cast_and_keeps_its_graph() -> None:
    fields = arrays()
    fields["x"].requires_grad_()
    out = VARIABLE.validate_value(TorchParticleGroup(**fields), dtype=F32)
    assert out.x.dtype is out.weight.dtype is out.reference_energy.dtype is F32
    out.x.sum().backward()
    assert fields["x"].grad is not None
    assert torch.equal(fields["x"].grad, torch.ones(5, dtype=F64))


@pytest.mark.parametrize("dtype", [F64, F32], ids=str)
def test_a_beamphysics_group_is_converted(dtype: torch.dtype) -> None:
    from beamphysics import ParticleGroup

    data: dict[str, Any] = {key: value.numpy() for key, value in arrays().items()}
    group = ParticleGroup(data=data | {"species": "electron", "status": np.ones(5, dtype=int)})
    out = VARIABLE.validate_value(group, dtype=dtype)
    assert isinstance(out, TorchParticleGroup)
    assert out.x.dtype is dtype
    assert torch.equal(out.x, torch.from_numpy(group.x).to(dtype))


@pytest.mark.parametrize("policy", ["none", "warn", "error"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf], ids=str)
def test_not_finite_never_passes_on_an_input(policy: str, value: float) -> None:
    with pytest.raises(ValidationError, match="'initial_particles': 1 of 5 values of 'x' are not finite"):
        VARIABLE.validate_value(broken(value), config=policy)


def test_not_finite_follows_the_policy_on_an_output() -> None:
    output, bunch = VARIABLE.replace(read_only=True), broken()
    with pytest.warns(OutOfRangeWarning, match="'x'"):
        assert output.validate_value(bunch) is bunch
    assert output.validate_value(bunch, config="none") is bunch
    with pytest.raises(ValidationError):
        output.validate_value(bunch, config="error")


def test_numbers_whose_sum_overflows_pass() -> None:
    bunch = TorchParticleGroup(**arrays())
    bunch = bunch._with(z=torch.full((5,), 1e308, dtype=F64))
    assert VARIABLE.validate_value(bunch) is bunch


def test_bunches_inside_transforms() -> None:
    bunch = TorchParticleGroup(**arrays())

    def f(x: torch.Tensor) -> torch.Tensor:
        return VARIABLE.validate_value(bunch._with(x=x)).x.square().sum()

    assert torch.allclose(torch.func.grad(f)(bunch.x), 2 * bunch.x)
    assert torch.func.vmap(f)(torch.stack([bunch.x, torch.full_like(bunch.x, torch.nan)])).shape == (2,)


@pytest.mark.parametrize("cls", [ParticleGroupVariable, MomentsVariable])
def test_batch_shape_of_a_batch(cls: Any) -> None:
    fields = {key: value.expand(3, 2, -1) for key, value in arrays().items()}
    bunch = TorchParticleGroup(**fields)
    value = bunch if cls is ParticleGroupVariable else TorchMoments.from_particles(bunch)
    variable = cls(name="a")
    assert variable.batch_shape(variable.validate_value(value)) == (3, 2)


def test_moments_are_cast_and_checked() -> None:
    variable = MomentsVariable(name="final_moments")
    moments = TorchMoments.from_particles(TorchParticleGroup(**arrays()))
    assert variable.validate_value(moments) is moments
    assert variable.validate_value(moments, dtype=F32).cov.dtype is F32
    bad = moments._with(mean=moments.mean * torch.nan)
    with pytest.raises(ValidationError, match="6 of 6 values of 'mean' are not finite"):
        variable.validate_value(bad)
    with pytest.raises(ValidationError, match="of 's' are not finite"):
        variable.validate_value(moments._with(s=moments.s * torch.nan))
    with pytest.raises(ValidationError, match=r"expected a TorchMoments; .*from_particles"):
        variable.validate_value(TorchParticleGroup(**arrays()))


def test_what_is_no_beam_names_the_fix() -> None:
    with pytest.raises(ValidationError, match=r"'initial_particles'.*'beam.h5'.*from_openpmd"):
        VARIABLE.validate_value("beam.h5")
