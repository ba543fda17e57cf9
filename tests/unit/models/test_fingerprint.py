"""Fingerprints: the same for the same model built twice, and another one for everything that changes predictions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cheetah
import pytest
import torch

import lume_diff as ld
from lume_diff.models.fingerprint import fingerprint
from lume_diff.variables import TorchScalarVariable

TWISS = {"beta_x": 8.0, "norm_emit_x": 4e-6, "beta_y": 6.0, "norm_emit_y": 4e-6, "mean_energy": 1e8, "charge": 1e-10}


def number(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


def chain(
    count: int = 100,
    seed: int = 0,
    drift: float = 1.5,
    method: str = "linear",
    name: str = "beam",
    linked: bool = False,
    sextupole: bool = False,
    **options: Any,
) -> ld.LUMEModel:
    """Return a bunch from moments and a line of which only one knob is an input."""
    gun = ld.BunchFromMoments(count, seed, **TWISS)
    elements = [
        cheetah.Quadrupole(number(0.1), number(0.0), name="Q1", tracking_method=method, dtype=torch.float64),
        cheetah.Drift(number(drift), name="D1", dtype=torch.float64),
        cheetah.BPM(is_active=True, name="BPM1"),
    ]
    if sextupole:
        elements.append(cheetah.Sextupole(number(0.1), number(3.0), name="S1", dtype=torch.float64))
    segment = cheetah.Segment(elements, name="line")
    start = ld.BunchFromMoments(100, **TWISS).get("final_particles")
    line = ld.CheetahModel(segment, start, controls=["Q1.k1"], **options)
    links = {"line/reference_energy": f"{name}/final.mean_energy"} if linked else {}
    return ld.StagedModel({name: gun, "line": line}, links)


def variables() -> tuple[list[TorchScalarVariable], list[TorchScalarVariable]]:
    return [TorchScalarVariable(name="a", default_value=1.0)], [TorchScalarVariable(name="y")]


def surrogate(seed: int = 0, width: int = 3) -> ld.LUMEModel:
    torch.manual_seed(seed)
    network = torch.nn.Sequential(torch.nn.Linear(1, width), torch.nn.Tanh(), torch.nn.Linear(width, 1))
    return ld.TorchModel(network, *variables())


def function(slope: float = 2.0) -> ld.LUMEModel:
    return ld.TorchModel(lambda a: slope * a, *variables())


def squared(a: float) -> float:
    return a**2


def cubed(a: float) -> float:
    return a**3


def box(code: Callable[[float], float] = squared) -> ld.LUMEModel:
    return ld.BlackBoxModel.from_function(code, *variables())


SLOPE = 2.0


def looped(a: torch.Tensor) -> torch.Tensor:
    return sum(SLOPE * a for _ in range(2))


def facility(unit: str = "kG", strength: float = 0.0, unnamed: float = 0.0) -> ld.LUMEModel:
    """Return a line under other names, of whose two quadrupoles the mapping names one."""
    elements = [cheetah.Quadrupole(number(0.1), number(0.0), name=name) for name in ("Q1", "Q2")]
    start = ld.BunchFromMoments(100, **TWISS).get("final_particles")
    line = ld.CheetahModel(cheetah.Segment(elements, name="line"), start, controls=["Q1.k1", "Q2.k1"])
    line.set({"Q2.k1": unnamed})
    field = {
        "kind": "setpoint",
        "native": "Q1.k1",
        "unit": unit,
        "length": 0.1,
        "conversion": {"kind": "quadrupole_field"},
    }
    model = ld.FacilityModel(line, {"variables": {"Q1:BCTRL": field}, "keep": ["final.*"]})
    model.set({"Q1:BCTRL": strength})
    return model


MODELS = {"facility": facility, "chain": chain, "surrogate": surrogate, "function": function, "black box": box}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_same_model_has_the_same_one(make: Callable[[], ld.LUMEModel]) -> None:
    model = make()
    before = fingerprint(model)
    assert fingerprint(make()) == before
    runs = model.runs
    model({next(iter(model.input_names)): 1.5})
    model.get()
    assert model.runs > runs
    assert fingerprint(model) == before  # what a run leaves behind is no part of it


def test_none_is_made_for_it() -> None:
    model = box()
    fingerprint(model)
    assert model.runs == 0


@pytest.mark.parametrize(
    "make, changes",
    [
        (chain, {"count": 101}),
        (chain, {"seed": 1}),
        (chain, {"drift": 1.501}),
        (chain, {"method": "second_order"}),
        (chain, {"name": "gun"}),
        (chain, {"linked": True}),
        (chain, {"sextupole": True}),
        (chain, {"engine": "cheetah"}),
        (chain, {"losses": "soft"}),
        (surrogate, {"seed": 1}),
        (surrogate, {"width": 4}),
        (function, {"slope": 2.1}),
        (box, {"code": cubed}),
        (facility, {"unit": "T"}),
        (facility, {"strength": 0.1}),
        (facility, {"unnamed": 1.0}),
    ],
    ids=lambda value: value.__name__ if callable(value) else "-".join(value),
)
def test_other_predictions_have_another_one(make: Callable[..., ld.LUMEModel], changes: dict[str, Any]) -> None:
    assert fingerprint(make(**changes)) != fingerprint(make())


def test_a_number_inside_of_a_comprehension_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    before = fingerprint(ld.TorchModel(looped, *variables()))
    monkeypatch.setitem(globals(), "SLOPE", 3.0)
    assert fingerprint(ld.TorchModel(looped, *variables())) != before


def test_set_points_count_unless_left_out() -> None:
    model, other = chain(), chain()
    other.set({"Q1.k1": 2.0})
    assert fingerprint(other) != fingerprint(model)
    assert fingerprint(other, without=["Q1.k1"]) == fingerprint(model, without=["Q1.k1"])


def test_cheetah_engine_leaves_nothing_behind() -> None:
    model = chain(engine="cheetah")
    before = fingerprint(model)
    model.get()
    assert fingerprint(model) == before
