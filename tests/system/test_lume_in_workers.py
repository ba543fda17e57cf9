"""LUME's models in worker processes: what is changed by hand is taken over, and looking at it changes nothing."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import cloudpickle
import pytest

pytest.importorskip("lume.model")
from lume import variables as native
from lume.model import LUMEModel

from lume_diff.blackbox.lume.model import LumeModel

# Tests are not importable in a worker, so their classes go there by value.
cloudpickle.register_pickle_by_value(sys.modules[__name__])
pytestmark = [pytest.mark.system, pytest.mark.usefixtures("time_limit")]


class Lamp(LUMEModel):
    """A model with a memory."""

    def __init__(self) -> None:
        self.gain = 2.0
        self.values = {"a": 0.5, "b": 1.0}

    @property
    def supported_variables(self) -> dict[str, native.Variable]:
        inputs = {name: native.ScalarVariable(name=name, default_value=self.values[name]) for name in self.values}
        return {**inputs, "y": native.ScalarVariable(name="y", read_only=True)}

    def _set(self, values: dict[str, Any]) -> None:
        self.values = {**self.values, **values}

    def _get(self, names: list[str]) -> dict[str, Any]:
        found = {**self.values, "y": self.gain * self.values["a"] + self.values["b"]}
        return {name: found[name] for name in names}

    def reset(self) -> None:
        self.values = {"a": 0.5, "b": 1.0}


def test_refresh_is_no_change_and_takes_over_changes() -> None:
    with LumeModel(Lamp(), ["a", "b"], ["y"], workers=2) as model:
        identity = model._runner.identity()
        model.refresh()
        assert model.simulator.log == []
        assert model._runner.identity() == identity
        model.simulator.set({"b": 3.0})
        model.simulator.gain = 5.0
        model.refresh()
        assert len(model.simulator.log) == 2
        assert model._runner.identity() != identity
        assert model.get(["a", "b", "y"]) == {"a": 0.5, "b": 3.0, "y": 5.5}
        assert model({"a": [1.0, 2.0, 3.0]})["y"].tolist() == [8.0, 13.0, 18.0]
        model.set({"b": 7.0})
        os.kill(model._runner.pids()[0], signal.SIGKILL)
        model.refresh()  # asks a worker that has not run since the change, and still nothing is new
        assert model.get(["b", "y"]) == {"b": 7.0, "y": 9.5}
        model._runner.reset()
        assert model._runner.identity() == identity


def test_a_failed_run_leaves_changes_made_once() -> None:
    class Fuse(Lamp):
        """Fails once in a while, and takes a change for a step."""

        def step(self) -> None:
            self.gain += 1.0

        def _set(self, values: dict[str, Any]) -> None:
            if values.get("a", 0.0) > 10.0:
                raise RuntimeError("the fuse has blown")
            super()._set(values)

    with LumeModel(Fuse(), ["a", "b"], ["y"], workers=2) as model:
        model.simulator.step()
        model.refresh()
        for value in (11.0, 12.0, 13.0):
            with pytest.raises(Exception, match="the fuse has blown"):
                model({"a": value})
        assert model.simulator.gain == 3.0
        assert model({"a": [1.0, 2.0]})["y"].tolist() == [4.0, 7.0]
