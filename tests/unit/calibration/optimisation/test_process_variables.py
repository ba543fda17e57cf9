"""A machine behind process variables: a real PVAccess server, set and read by an optimisation."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("xopt")
pytest.importorskip("p4p")

from p4p.client.thread import Context
from p4p.nt import NTScalar
from p4p.server import Server
from p4p.server.thread import SharedPV
from xopt import Xopt
from xopt.generators.sequential.neldermead import NelderMeadGenerator

from lume_diff.calibration import ModelMean, PriorMeanModelConstructor, vocs_from_model
from lume_diff.calibration.optimisation.process_variables import ProcessVariables, evaluate_on_machine
from lume_diff.calibration.optimisation.study import Study
from lume_diff.calibration.prior_mean.storing import loaded_module
from lume_diff.calibration.prior_mean.vocs import quantities_of
from lume_diff.errors import LumeDiffError
from lume_diff.models import TorchModel
from lume_diff.variables import TorchScalarVariable as Scalar

SETPOINTS = {"a": "TEST:A:SET", "b": "TEST:B:SET"}
START = {"a": 0.5, "b": -0.5}


def size(a: float, b: float) -> float:
    return 1e-3 * (1.0 + (a - 0.7) ** 2 + (b + 0.4 * a) ** 2)


class Accelerator:
    """A server whose beam size follows its set-points; readbacks are a little off."""

    def __init__(self) -> None:
        self.pvs = {name: SharedPV(nt=NTScalar("d"), initial=START[name[5].lower()]) for name in SETPOINTS.values()}
        self.pvs |= {
            "TEST:SIZE": SharedPV(nt=NTScalar("d"), initial=size(**START)),
            "TEST:A:RBV": SharedPV(nt=NTScalar("d"), initial=0.0),
            "TEST:DEAD": SharedPV(nt=NTScalar("d"), initial=float("nan")),
        }
        self._busy = threading.Lock()
        for name in SETPOINTS.values():
            self.pvs[name].put(self._put)
        self.server = Server(providers=[self.pvs], isolate=True)

    def _put(self, pv: SharedPV, operation: Any) -> None:
        with self._busy:  # puts of a group come in several threads
            pv.post(operation.value())
            a, b = (float(self.pvs[name].current()) for name in SETPOINTS.values())
            self.pvs["TEST:SIZE"].post(size(a, b))
            self.pvs["TEST:A:RBV"].post(a + 1e-3)
        operation.done()

    def settings(self) -> dict[str, float]:
        return {name: float(self.pvs[pv].current()) for name, pv in SETPOINTS.items()}


class PlainClient:
    """What an optimisation asks of a client, by p4p alone."""

    def __init__(self, configuration: Mapping[str, str]) -> None:
        self._context = Context("pva", conf=dict(configuration), useenv=False)

    def get(self, names: Sequence[str], timeout: float = 5.0) -> dict[str, float]:
        return {n: float(v) for n, v in zip(names, self._context.get(list(names), timeout=timeout), strict=True)}

    def put(self, values: Mapping[str, Any], timeout: float = 5.0) -> None:
        self._context.put(list(values), list(values.values()), timeout=timeout)

    def close(self) -> None:
        self._context.close()


@pytest.fixture
def accelerator() -> Iterator[Accelerator]:
    made = Accelerator()
    yield made
    made.server.stop()


@pytest.fixture
def client(accelerator: Accelerator) -> Iterator[PlainClient]:
    made = PlainClient(accelerator.server.conf())
    yield made
    made.close()


def build_model() -> TorchModel:
    def respond(x: torch.Tensor) -> torch.Tensor:
        a, b = x.unbind(-1)
        return 1e-3 * (1.0 + (a - 0.6).square() + (b + 0.5 * a).square()).unsqueeze(-1)

    knobs = [Scalar(name=name, default_value=0.0, value_range=(-2.0, 2.0)) for name in "ab"]
    return TorchModel(respond, knobs, [Scalar(name="size", unit="m")])


def study(client: PlainClient, steps: int = 3, **options: Any) -> Study:
    model = build_model()
    vocs = vocs_from_model(model, ["a", "b"], {"log": "MINIMIZE"}, outputs={"log": ("size", torch.log10)})
    mean = ModelMean(model, ["a", "b"], "size", torch.log10)
    given = {"setpoints": SETPOINTS, "outputs": {"size": "TEST:SIZE"}, "readbacks": {"a": "TEST:A:RBV"}, **options}
    machine = ProcessVariables(quantities=quantities_of(vocs), client=lambda: client, **given)
    evaluator = {"function": evaluate_on_machine, "function_kwargs": {"machine": machine}}
    prior = PriorMeanModelConstructor(mean_modules={"log": mean})
    return Study(vocs, evaluator, prior, steps=steps, compare=False, machine=machine)


def test_a_machine_is_optimised_and_left_at_its_best(accelerator: Accelerator, client: PlainClient) -> None:
    result = study(client).run()
    (arm,) = result.arms
    data = arm.xopt.data
    assert len(data) == 6
    assert arm.best_so_far[-1] < torch.log10(torch.tensor(1.05e-3))
    assert (data["a_RBV"] - data["a"]).to_numpy() == pytest.approx(1e-3)
    best = arm.best
    assert accelerator.settings() == pytest.approx({"a": best["a"], "b": best["b"]})


def test_a_machine_that_stops_answering_is_put_back(accelerator: Accelerator, client: PlainClient) -> None:
    with pytest.raises(LumeDiffError, match=r"with the model: evaluation 1 failed: .*'TEST:DEAD' is nan"):
        study(client, outputs={"size": "TEST:DEAD"}).run()
    assert accelerator.settings() == START


def test_a_machine_that_does_not_take_its_best_is_put_back(accelerator: Accelerator) -> None:
    class LateFailure(PlainClient):
        """A client whose put after the last evaluation gets half of its way."""

        puts = 0

        def put(self, values: Mapping[str, Any], timeout: float = 5.0) -> None:
            self.puts += 1
            if self.puts == 4:
                super().put(dict(list(values.items())[:1]), timeout)
                raise TimeoutError("TEST:B:SET does not answer")
            super().put(values, timeout)

    client = LateFailure(accelerator.server.conf())
    with pytest.raises(TimeoutError, match="does not answer"):
        study(client, steps=0).run()
    client.close()
    assert client.puts == 5
    assert accelerator.settings() == START


def test_xopts_file_finds_the_machine_again(
    accelerator: Accelerator, client: PlainClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    server = dict(accelerator.server.conf())
    it = study(client)
    it._machine._make_client = functools.partial(PlainClient, server)
    X = Xopt(evaluator=it._evaluator, generator=NelderMeadGenerator(vocs=it.vocs), serialize_torch=True)
    X.dump("run.yml")
    found = Xopt.from_file("run.yml").evaluator.evaluate({"a": 0.25, "b": 0.5})
    assert accelerator.settings() == {"a": 0.25, "b": 0.5}
    assert 10.0 ** found["log"] == pytest.approx(size(0.25, 0.5))
    loaded_module("function_kwargs_machine.pt").connect().close()


def test_another_generator_takes_the_machine(client: PlainClient) -> None:
    it = study(client)
    X = Xopt(evaluator=it._evaluator, generator=NelderMeadGenerator(vocs=it.vocs))
    X.random_evaluate(1, seed=0)
    for _ in range(3):
        X.step()
    assert X.data["log"].notna().all()


def test_outputs_that_no_variable_gives_are_told() -> None:
    model = build_model()
    vocs = vocs_from_model(model, ["a", "b"], {"size": "MINIMIZE"})
    with pytest.raises(LumeDiffError, match=r"no process variable gives \['size'\].*pvs.outputs"):
        ProcessVariables(SETPOINTS, {}, quantities_of(vocs))
