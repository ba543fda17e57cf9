"""Every model class of the package passes the laws; one without a case here fails."""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from typing import Any

import cheetah
import pytest
import torch
from torch import nn

import lume_diff
from lume_diff.models import BunchFromMoments, CheetahModel, EnsembleModel, GPModel, LUMEModel, StagedModel, TorchModel
from lume_diff.testing import LAWS, check_model
from lume_diff.variables import TorchScalarVariable

F64 = torch.float64
TWISS = {"norm_emit_x": 1e-6, "norm_emit_y": 2e-6, "beta_x": 6.0, "alpha_x": 0.5, "beta_y": 3.0, "alpha_y": -0.3}


def t(value: Any) -> torch.Tensor:
    return torch.tensor(value, dtype=F64)


def make_bunch(n: int = 200) -> BunchFromMoments:
    return BunchFromMoments(n, mean_energy=1e8, charge=1e-10, sigma_t=1e-12, sigma_energy=1e5, **TWISS)


def make_segment(tag: str) -> cheetah.Segment:
    quadrupoles = [cheetah.Quadrupole(t(0.2), t(k1), name=f"Q{i}{tag}") for i, k1 in enumerate((3.0, -2.0))]
    drifts = [cheetah.Drift(t(0.7), name=f"D{i}{tag}") for i in range(2)]
    return cheetah.Segment([quadrupoles[0], drifts[0], quadrupoles[1], drifts[1]], name=f"line{tag}")


def make_line(tag: str = "", beam: str = "final_particles") -> CheetahModel:
    return CheetahModel(make_segment(tag), make_bunch().get(beam))


def make_trainable_line() -> CheetahModel:
    segment = make_segment("")
    segment.Q1.k1 = nn.Parameter(t(-2.0))
    return CheetahModel(segment, make_bunch().get("final_particles"))


def make_network(dtype: torch.dtype = F64) -> TorchModel:
    torch.manual_seed(2)
    net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)).to(dtype)
    inputs = [TorchScalarVariable(name=n, default_value=0.1, value_range=(-2, 2)) for n in ("phase", "charge")]
    outputs = [TorchScalarVariable(name=n, unit="m") for n in ("beta", "emittance")]
    return TorchModel(net, inputs, outputs, (), lambda y: torch.stack([5.0 + y[..., 0], 1e-6 * y[..., 1].exp()], -1))


def make_ensemble() -> EnsembleModel:
    members = [make_network() for _ in range(3)]
    for seed, member in enumerate(members):
        torch.manual_seed(seed)
        for parameter in member.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return EnsembleModel(members)


def make_process() -> GPModel:
    models = pytest.importorskip("botorch.models", reason="BoTorch is not installed")
    transforms = pytest.importorskip("botorch.models.transforms")
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(15, 2, generator=generator, dtype=F64)
    y = torch.stack([(3.0 * x.sum(-1)).sin(), 1e-3 * x.prod(-1)], -1)
    fitted = models.SingleTaskGP(
        x, y, input_transform=transforms.Normalize(2), outcome_transform=transforms.Standardize(2)
    )
    inputs = [TorchScalarVariable(name=n, default_value=0.4, value_range=(0.0, 1.0)) for n in ("phase", "charge")]
    return GPModel(fitted, inputs, [TorchScalarVariable(name=n, unit="m") for n in ("beta", "sigma")])


def make_surrogate_chain() -> StagedModel:
    links = {"bunch/beta_x": "gun/beta", "bunch/norm_emit_x": "gun/emittance"}
    return StagedModel({"gun": make_network(), "bunch": make_bunch(), "line": make_line()}, links)


def make_nested_chain() -> StagedModel:
    inner = StagedModel({"bunch": make_bunch(), "first": make_line("a")})
    return StagedModel({"source": inner, "second": make_line("b")})


def make_box() -> LUMEModel:
    from lume_diff.blackbox import BlackBoxModel

    inputs = [TorchScalarVariable(name=n, default_value=1.0) for n in "ab"]
    outputs = [TorchScalarVariable(name=n) for n in "yz"]
    return BlackBoxModel.from_function(lambda a, b: {"y": a * b**2 + a, "z": a - b}, inputs, outputs)


def make_code() -> LUMEModel:
    at = pytest.importorskip("at", reason="pyAT is not installed")
    from lume_diff.blackbox.at.model import ATModel

    quadrupoles = [at.Quadrupole(name, 0.5, k1) for name, k1 in (("QF", 1.2), ("QD", -1.2))]
    drift = at.Drift("D", 1.0)
    ring = at.Lattice([quadrupoles[0], drift, quadrupoles[1], drift], energy=1e9)
    return ATModel(ring, controls=["QF.k1", "QD.k1"], outputs=["tune_x", "tune_y"])


def make_lume() -> LUMEModel:
    pytest.importorskip("lume", reason="lume-base is not installed")
    from lume_diff.blackbox.lume.model import LumeModel, to_lume

    return LumeModel(to_lume(make_network()))


def make_calibrated() -> LUMEModel:
    from lume_diff.calibration import CalibratedModel, Normal, Offset, Scale, Value

    model = StagedModel({"bunch": make_bunch(), "line": make_line()})
    parameters = [
        Scale("Q0.k1", Normal(1.0, 0.02)),
        Offset("Q1.k1", Normal(0.0, 0.1)),
        Value("beta_x", Normal(6.0, 1.0)),
    ]
    return CalibratedModel(model, parameters, t([1.02, -0.05, 6.5]))


def make_facility() -> LUMEModel:
    from tests.unit.models.facility.machines import facility

    return facility()


Case = tuple[Callable[[], LUMEModel], dict[str, Any]]

KNOBS = {"inputs": ["Q0.k1", "Q1.k1", "reference_energy"], "outputs": ["final.sigma_x", "final.beta_y", "D0.sigma_y"]}

CASES: dict[str, dict[str, Case]] = {
    "TorchModel": {"network": (make_network, {})},
    "BunchFromMoments": {
        "first inputs": (make_bunch, {}),
        "sizes": (
            make_bunch,
            {
                "inputs": ["beta_x", "norm_emit_x", "mean_energy", "charge"],
                "outputs": ["final.sigma_x", "final.sigma_px", "final.beta_x", "final.charge"],
            },
        ),
    },
    "CheetahModel": {
        "particles": (make_line, KNOBS),
        "moments": (lambda: make_line(beam="final_moments"), KNOBS),
        "trainable": (make_trainable_line, KNOBS),
    },
    "StagedModel": {
        "particles": (
            lambda: StagedModel({"one": make_line("a"), "two": make_line("b")}),
            {"inputs": ["Q0a.k1", "Q1b.k1"], "outputs": ["final.sigma_x", "D1b.sigma_y", "one/final.beta_x"]},
        ),
        "moments": (
            lambda: StagedModel([make_line("a", "final_moments"), make_line("b", "final_moments")]),
            {"inputs": ["Q0a.k1", "Q1b.k1"], "outputs": ["final.sigma_x", "D1b.sigma_y"]},
        ),
        "surrogate": (
            make_surrogate_chain,
            {"inputs": ["phase", "Q0.k1"], "outputs": ["final.sigma_x", "final.norm_emit_x", "beta"]},
        ),
        "nested": (
            make_nested_chain,
            {"inputs": ["beta_x", "Q0a.k1", "Q1b.k1"], "outputs": ["final.sigma_x", "D0a.sigma_y"]},
        ),
    },
    "EnsembleModel": {"networks": (make_ensemble, {"outputs": ["beta", "beta.std", "emittance.std"]})},
    "GPModel": {"two outputs": (make_process, {"outputs": ["beta", "beta.std", "sigma.std"]})},
    "BlackBoxModel": {"function": (make_box, {"rtol": 1e-5})},
    "CalibratedModel": {
        "chain": (make_calibrated, {"inputs": ["Q0.k1", "Q1.k1", "beta_x"], "outputs": KNOBS["outputs"]}),
    },
    "FacilityModel": {
        "line": (
            make_facility,
            {
                "inputs": ["CAV:ADES", "Q0:BCTRL", "Q0:TRIM", "C0:BCTRL"],
                "outputs": ["S1:XRMS", "B1:X", "Q0:BACT", "S1:AREA", "D1.beta_y"],
            },
        ),
    },
    "CodeModel": {"ring": (make_code, {"rtol": 1e-5})},
    "LumeBox": {"network": (make_lume, {"rtol": 1e-5})},
}


def subclasses(cls: type) -> Iterator[type]:
    for sub in cls.__subclasses__():
        yield sub
        yield from subclasses(sub)


def registered() -> list[type[LUMEModel]]:
    """Return the model classes that the package defines, wherever it does."""
    for module in pkgutil.walk_packages(lume_diff.__path__, "lume_diff."):
        if not module.name.endswith("__main__"):
            try:
                importlib.import_module(module.name)
            except ModuleNotFoundError as error:
                if (error.name or "").startswith("lume_diff"):  # else an extra that is not installed
                    raise
    found = {cls for cls in subclasses(LUMEModel) if cls.__module__.split(".")[0] == "lume_diff"}
    return sorted((cls for cls in found if not inspect.isabstract(cls)), key=lambda cls: cls.__name__)


def test_every_model_class_has_a_case() -> None:
    missing = [cls.__name__ for cls in registered() if cls.__name__ not in CASES]
    assert not missing, f"add a case to CASES for {missing}"


@functools.cache
def made(make: Callable[[], LUMEModel]) -> LUMEModel:
    """Build a model once: checking does not change it."""
    return make()


FLAT = [(cls, name, *case) for cls, cases in CASES.items() for name, case in cases.items()]


@pytest.mark.parametrize("cls, make", [(f[0], f[2]) for f in FLAT], ids=[f"{f[0]}-{f[1]}" for f in FLAT])
def test_every_case_is_of_its_class(cls: str, make: Callable[[], LUMEModel]) -> None:
    assert type(make()).__name__ == cls


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("make, options", [f[2:] for f in FLAT], ids=[f"{f[0]}-{f[1]}" for f in FLAT])
def test_law(make: Callable[[], LUMEModel], options: dict[str, Any], law: str) -> None:
    assert check_model(made(make), only=[law], **options)[law].startswith("passed")
