"""A model in a process of its own that is gone and cannot be brought back at once."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from lume_diff.errors import SimulatorError
from lume_diff.ioc.process_engine import ProcessEngine
from lume_diff.models import LUMEModel
from lume_diff.variables import TorchScalarVariable

# A process of its own finds no tests to import.
cloudpickle.register_pickle_by_value(sys.modules[__name__])


class Licensed(LUMEModel):
    """The sum of its inputs, as long as there is a licence."""

    def __init__(self, licence: Path) -> None:
        variables = [TorchScalarVariable(name=name, default_value=0.0) for name in "ab"]
        super().__init__([*variables, TorchScalarVariable(name="sum", read_only=True)])
        self.licence = licence

    def _run(self, inputs: Any, outputs: Any) -> dict[str, Any]:
        if not self.licence.exists():
            raise RuntimeError("no licence")
        return {"sum": inputs["a"] + inputs["b"]}


@pytest.fixture
def licence(tmp_path: Path) -> Path:
    path = tmp_path / "licence"
    path.touch()
    return path


def error_of(engine: ProcessEngine, values: dict[str, float]) -> str:
    with pytest.raises(SimulatorError) as caught:
        engine.evaluate(values)
    return str(caught.value)


def test_a_new_process_that_cannot_be_brought_to_the_last_good_set_points_is_not_used(licence):
    model = Licensed(licence)
    engine = ProcessEngine(lambda: model, model.supported_variables, list(model.supported_variables))
    try:
        engine.start()
        assert engine.evaluate({"b": 3.0}).values["sum"] == 3.0
        engine.interrupt()
        licence.unlink()
        errors = [error_of(engine, {"a": 1.0})]
        if "SIGKILL" in errors[0]:  # it was still dying: the next evaluation starts another one
            errors.append(error_of(engine, {"a": 1.0}))
        assert "no licence" in errors[-1]
        assert engine.pid is None  # the next request starts another one, and does not find b at zero
        assert engine.snapshot()["b"] == 3.0
    finally:
        engine.stop()
