"""The injector surrogate that comes with the package: small, and as good as its file says."""

from __future__ import annotations

import importlib.util
from importlib.resources import as_file, files
from pathlib import Path
from types import ModuleType

import pytest
import torch

from lume_diff.models import BunchFromMoments, StagedModel, TorchModel

ROOT = Path(__file__).parents[4]


@pytest.fixture(scope="module")
def surrogate() -> TorchModel:
    with as_file(files("lume_diff") / "data" / "machine") as folder:
        assert (folder / "surrogate.pt").stat().st_size < 100_000
        return TorchModel.from_file(folder / "surrogate.yaml")


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "make_injector_surrogate", ROOT / "tools" / "make_injector_surrogate.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_predicts_what_the_simulation_gives(surrogate: TorchModel, tool: ModuleType) -> None:
    x, y = tool.simulated(64, 3)
    found = surrogate(dict(zip(surrogate.input_names, x.unbind(-1), strict=True)))
    for index, name in enumerate(tool.OUTPUTS):
        scale = y[:, index].abs() if index in tool.POSITIVE else y[:, index].std()
        assert float(((found[name] - y[:, index]) / scale).abs().max()) < 0.03, name


def test_it_feeds_a_bunch(surrogate: TorchModel) -> None:
    start = {name: float(surrogate.get(name)) for name in surrogate.output_names}
    bunch = BunchFromMoments(200, charge=1e-10, **start)
    chain = StagedModel(
        {"injector": surrogate, "bunch": bunch}, {f"bunch/{name}": f"injector/{name}" for name in start}
    )
    field = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(chain({"solenoid_field": field})["final.sigma_x"], field)
    assert bool(gradient.isfinite())
    assert gradient.item() != 0.0
