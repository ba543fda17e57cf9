"""Bad input to every kind of model: a clear error of this package, and the model as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cheetah
import numpy as np
import pytest
import torch

from lume_diff.errors import (
    GradientError,
    LumeDiffError,
    ReadOnlyError,
    ShapeError,
    UnknownVariableError,
    ValidationError,
)
from lume_diff.models import BunchFromMoments, CheetahModel, LUMEModel, StagedModel, TorchModel
from lume_diff.particles import TorchMoments, TorchParticleGroup
from lume_diff.variables import TorchNDVariable, TorchScalarVariable

F64 = torch.float64


def t(value: Any) -> torch.Tensor:
    return torch.tensor(value, dtype=F64)


def make_bunch() -> BunchFromMoments:
    twiss = {"norm_emit_x": 1e-6, "norm_emit_y": 2e-6, "beta_x": 6.0, "beta_y": 3.0}
    return BunchFromMoments(40, mean_energy=1e8, charge=1e-10, sigma_t=1e-12, sigma_energy=1e5, **twiss)


def make_line(beam: str = "final_particles") -> CheetahModel:
    elements = [cheetah.Quadrupole(t(0.2), t(3.0), name="Q1"), cheetah.Drift(t(0.7), name="D1")]
    return CheetahModel(cheetah.Segment(elements, name="line"), make_bunch().get(beam))


def make_network() -> TorchModel:
    inputs = [
        TorchScalarVariable(name="Q1.k1", default_value=3.0, value_range=(-10, 10), unit="1/m^2"),
        TorchScalarVariable(name="beta_x", default_value=3.0, value_range=(0, None), unit="m"),
        TorchNDVariable(name="profile", shape=(3,), default_value=[1.0, 2.0, 3.0]),
    ]
    outputs = [TorchScalarVariable(name="final.sigma_x"), TorchNDVariable(name="image", shape=(2, 2))]
    return TorchModel(torch.nn.Identity(), inputs, outputs)


def make_chain() -> StagedModel:
    return StagedModel({"bunch": make_bunch(), "line": make_line()})


MODELS: dict[str, tuple[Callable[[], LUMEModel], str, str]] = {
    "network": (make_network, "Q1.k1", "beta_x"),
    "bunch": (make_bunch, "beta_x", "alpha_x"),
    "line": (make_line, "Q1.k1", "reference_energy"),
    "chain": (make_chain, "Q1.k1", "beta_x"),
}
EACH = pytest.mark.parametrize("kind", MODELS)

BAD: dict[str, tuple[Any, type[LumeDiffError], str]] = {
    "NaN": (float("nan"), ValidationError, "nan.*not finite.*finite numbers"),
    "infinity": (-np.inf, ValidationError, "inf.*not finite"),
    "NaN in a batch": (t([1.0, float("nan"), 2.0]), ValidationError, r"nan.*batch index \(1,\)"),
    "text": ("three", ValidationError, "'three' .str.*real number"),
    "None": (None, ValidationError, "None.*real number"),
    "a truth value": (True, ValidationError, "True.*real numbers"),
    "a complex number": (1 + 2j, ValidationError, "real numbers"),
    "a complex tensor": (torch.zeros(2, dtype=torch.complex128), ValidationError, "complex128.*real numbers"),
    "a mask": (np.array([True, False]), ValidationError, "bool.*real numbers"),
    "uneven lists": ([[1.0, 2.0], [3.0]], ShapeError, "unequal length"),
    "a dictionary": ({"value": 1.0}, ValidationError, "real number"),
    "too large": (10**400, ValidationError, "a float can hold"),
}


def state_of(model: LUMEModel) -> dict[str, Any]:
    found = {}
    for name, value in model.get().items():
        leaves = value._leaves().values() if hasattr(value, "_leaves") else [value]
        found[name] = [leaf.detach().tolist() if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
    return found


WAYS: dict[str, Callable[[LUMEModel, dict[str, Any]], Any]] = {
    "set": lambda model, values: model.set(values),
    "call": lambda model, values: model(values),
    "restore": lambda model, values: model.restore(values),
    "jacobian": lambda model, values: model.jacobian(["final.sigma_x"], model.input_names[:1], at=values),
}


@EACH
@pytest.mark.parametrize("way", WAYS)
def test_bad_values(kind: str, way: str) -> None:
    make, name, other = MODELS[kind]
    model = make()
    before = state_of(model)
    for value, error, words in BAD.values():
        with pytest.raises(error, match=f"variable '{name}': .*{words}"):
            WAYS[way](model, {other: 2e8 if other == "reference_energy" else 4.0, name: value})
    assert state_of(model) == before


@EACH
@pytest.mark.parametrize("way", WAYS)
def test_bad_names(kind: str, way: str) -> None:
    make, name, _ = MODELS[kind]
    model = make()
    before = state_of(model)
    with pytest.raises(UnknownVariableError, match=rf"'{name}s' is not a variable of .*; nearest: '{name}'"):
        WAYS[way](model, {name: 4.0, name + "s": 1.0})
    with pytest.raises(ReadOnlyError, match=r"'final\.sigma_x' is an output of \w+ and cannot be written"):
        WAYS[way](model, {name: 4.0, "final.sigma_x": 1.0})
    assert state_of(model) == before


@EACH
def test_names_that_are_no_names(kind: str) -> None:
    model, name = MODELS[kind][0](), MODELS[kind][1]
    for bad in (3, None, ("a", "b")):
        with pytest.raises(UnknownVariableError):
            model.set({bad: 1.0})
        for read in (model.get, lambda names: model(outputs=names)):
            with pytest.raises(UnknownVariableError):
                read([bad])
            with pytest.raises(UnknownVariableError):
                read([name, [bad]])
    with pytest.raises(ValidationError, match="mapping of names to values, got list"):
        model.set([(name, 1.0)])
    with pytest.raises(UnknownVariableError, match=f"nearest: '{name}'"):
        model.get(name.upper() if name.upper() != name else name.lower())


@EACH
def test_batches_that_do_not_broadcast(kind: str) -> None:
    make, name, other = MODELS[kind]
    model = make()
    before = state_of(model)
    one, two = torch.full((3,), 4.0), torch.full((2,), 2e8 if other == "reference_energy" else 4.0)
    for way in ("set", "call", "jacobian"):
        with pytest.raises(
            ShapeError, match=rf"batch dimensions .*'({name}|{other})' do not broadcast.*'({name}|{other})'"
        ):
            WAYS[way](model, {name: one, other: two})
    assert state_of(model) == before


@pytest.mark.parametrize("value", [11.0, -10.1, t([1.0, 12.0]), np.float32(1e9), 11], ids=str)
def test_a_value_outside_its_limits(value: Any) -> None:
    model = make_network()
    before = state_of(model)
    with pytest.raises(ValidationError, match=r"'Q1\.k1': .* 1/m\^2.* is outside value_range \[-10, 10\] 1/m\^2"):
        model.set({"beta_x": 1.0, "Q1.k1": value})
    assert state_of(model) == before


@pytest.mark.parametrize(
    "value", [1.0, [1.0, 2.0], np.zeros((3, 2)), t([[1.0, 2.0]])], ids=["number", "2", "3x2", "1x2"]
)
def test_an_array_of_the_wrong_shape(value: Any) -> None:
    model = make_network()
    with pytest.raises(ShapeError, match=r"'profile': received shape .*expected \(\*batch, 3\)"):
        model.set({"profile": value})


# -- beams


BEAMS: dict[str, tuple[Any, str]] = {
    "a number": (1.0, "1.0 .float., expected a TorchParticleGroup"),
    "an array": (np.zeros((10, 6)), "ndarray.*expected a TorchParticleGroup"),
    "moments": (lambda: make_bunch().get("final_moments"), "TorchMoments.*expected a TorchParticleGroup"),
    "a file name": ("beam.h5", "from_openpmd"),
    "NaN in it": (lambda: with_nan(make_bunch().get("final_particles")), "1 of 40 values of 'x' are not finite"),
}


def with_nan(bunch: TorchParticleGroup) -> TorchParticleGroup:
    x = bunch.x.detach().clone()
    x[3] = torch.nan
    return bunch._with(x=x)


@pytest.mark.parametrize("value, words", BEAMS.values(), ids=BEAMS)
def test_a_bad_bunch(value: Any, words: str) -> None:
    model = make_line()
    before = state_of(model)
    value = value() if callable(value) else value
    for way in ("set", "call"):
        with pytest.raises(ValidationError, match=f"'initial_particles': .*{words}"):
            WAYS[way](model, {"Q1.k1": 4.0, "initial_particles": value})
    assert state_of(model) == before


def test_an_empty_bunch_cannot_be_made() -> None:
    with pytest.raises(ShapeError, match="particle"):
        TorchParticleGroup(torch.zeros(0), 0.0, 0.0, 0.0, 0.0, 1e8, 0.0, 1e-12)


def test_particles_for_a_model_of_moments() -> None:
    model = make_line("final_moments")
    assert isinstance(model.get("initial_moments"), TorchMoments)
    with pytest.raises(ValidationError, match=r"'initial_moments'.*TorchMoments.from_particles"):
        model.set({"initial_moments": make_bunch().get("final_particles")})
    with pytest.raises(UnknownVariableError, match="nearest: 'initial_moments'"):
        model.set({"initial_particles": make_bunch().get("final_particles")})


def test_a_snapshot_of_a_bunch_with_a_hole_in_it() -> None:
    model = make_line()
    model.set({"initial_particles": make_bunch()({"beta_x": 5.0})["final_particles"]})
    snapshot = model.snapshot()
    before = state_of(model)
    del snapshot["initial_particles"]["pz"]
    with pytest.raises(ValidationError, match="'initial_particles' has no 'pz'"):
        model.restore(snapshot)
    assert state_of(model) == before


@EACH
def test_an_element_that_is_not_there(kind: str) -> None:
    with pytest.raises(UnknownVariableError, match="'Q9'"):
        MODELS[kind][0]().reference_energy(None, ["Q9"])


@pytest.mark.parametrize("kind", [kind for kind in MODELS if kind != "network"])
@pytest.mark.parametrize("beam", ["final_particles", "final_moments"])
def test_a_beam_has_no_table_of_derivatives(kind: str, beam: str) -> None:
    make, name, _ = MODELS[kind]
    with pytest.raises(GradientError, match=f"'{beam}'.*backpropagate"):
        make().jacobian([beam], [name])
