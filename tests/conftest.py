"""What all tests share: one seed that is printed, one torch thread, and the way to the measured data."""

from __future__ import annotations

import os
import random
import secrets
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import register_random, settings

SEED_VARIABLE = "LUME_DIFF_TEST_SEED"
SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"

# Tests share helpers; last, so that an installed package comes before the checkout's.
sys.path.append(str(Path(__file__).parents[1]))


class TorchRandom:
    """Torch's global generator, as hypothesis wants it: it seeds it before each example and puts it back afterwards."""

    def seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def getstate(self) -> torch.Tensor:
        return torch.get_rng_state()

    def setstate(self, state: torch.Tensor) -> None:
        torch.set_rng_state(state)


TORCH_RANDOM = TorchRandom()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, default=None, help=f"seed of all tests (default: {SEED_VARIABLE}, else drawn)")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    # Worker processes get the options of the first process, and so the seed that it drew.
    if config.option.seed is None:
        config.option.seed = int(os.environ.get(SEED_VARIABLE) or secrets.randbelow(2**31))
    if config.option.hypothesis_seed is None:
        config.option.hypothesis_seed = str(config.option.seed)
    torch.set_num_threads(1)
    register_random(TORCH_RANDOM)
    # No deadline: speed is for the benchmarks.
    settings.register_profile("lume_diff", deadline=None, print_blob=True)
    settings.load_profile("lume_diff")


@pytest.fixture(autouse=True)
def default_dtype() -> Iterator[None]:
    """Begin in torch's usual precision: importing Xopt makes it double for the whole process."""
    torch.set_default_dtype(torch.float32)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def double_by_default(default_dtype: None) -> None:
    """Take double precision by default, as Xopt does when it is imported, and needs."""
    torch.set_default_dtype(torch.float64)


def pytest_report_header(config: pytest.Config) -> list[str]:
    names = ("torch", "numpy", "cheetah-accelerator", "openpmd-beamphysics", "pydantic")
    return [
        f"seed: {config.option.seed} (the same again: --seed={config.option.seed})",
        "versions: " + ", ".join(f"{name} {version(name)}" for name in names),
    ]


@pytest.fixture(scope="session")
def seed(request: pytest.FixtureRequest) -> int:
    """The seed of this run."""
    return request.config.option.seed


@pytest.fixture(autouse=True)
def _same_start(seed: int) -> None:
    """Start every test from the same random state, whatever ran before it."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - for libraries that draw from it
    torch.manual_seed(seed)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of measured data beside the project; tests that need it are skipped where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip("the measured data are not here: no folder ../shared/data beside the project")
    return SHARED_DATA
