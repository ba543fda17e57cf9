"""Graph rules: when a committed run serves, when it is made again, and what a backward frees."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import cheetah
import pytest
import torch

from lume_diff.errors import GradientError, SimulatorError, ValidationError
from lume_diff.models import CheetahModel, LUMEModel, evaluation
from lume_diff.variables import TorchScalarVariable

F64 = torch.float64


def leaf(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=F64, requires_grad=True)


class Cubic(LUMEModel):
    """y = gain a^3 + b, and z = y^2, which shares y's graph."""

    def __init__(self, trainable: bool = False) -> None:
        inputs = [TorchScalarVariable(name=n, default_value=1.0, value_range=(-5, 5)) for n in "ab"]
        super().__init__([*inputs, *(TorchScalarVariable(name=n, read_only=True) for n in "yz")])
        self.gain = torch.nn.Parameter(torch.tensor(2.0, dtype=F64), requires_grad=trainable)
        self.noise = torch.nn.Dropout(0.5).eval()

    def _run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> torch.Tensor:
        return self.noise(self.gain) * inputs["a"] ** 3 + inputs["b"]

    def _read(self, state: torch.Tensor, outputs: Sequence[str]) -> dict[str, Any]:
        return {name: state * 1.0 if name == "y" else state.square() for name in outputs}


@pytest.fixture
def model() -> Cubic:
    return Cubic()


# -- backward, again and again


def test_set_backward_set_backward(model: Cubic) -> None:
    a = leaf(1.0)
    for turn in range(3):
        model.set({"a": a})
        model.get("y").backward()
        assert a.grad is not None
        assert a.grad.item() == 6.0 * (turn + 1)
    assert model.runs == 3


def test_get_backward_get_backward_runs_again_and_counts(model: Cubic) -> None:
    a = leaf(1.0)
    model.set({"a": a})
    for turn in range(3):
        model.get("y").backward()
        assert model.runs == 1 + turn
    assert a.grad is not None
    assert a.grad.item() == 18.0


def test_a_graph_that_was_retained_serves_again(model: Cubic) -> None:
    model.set({"a": leaf(1.0)})
    value = model.get("z")
    value.backward(retain_graph=True)
    assert model.get("z") is value
    model.get("z").backward()
    assert model.runs == 1


def test_two_backwards_through_one_get_need_retain_graph(model: Cubic) -> None:
    model.set({"a": leaf(1.0)})
    value = model.get("z")
    value.backward()
    with pytest.raises(RuntimeError, match="second time"):
        value.backward()


def test_outputs_of_one_state_share_their_graph_as_in_pytorch(model: Cubic) -> None:
    model.set({"a": leaf(1.0)})
    y, z = model.get("y"), model.get("z")
    y.backward()
    with pytest.raises(RuntimeError, match="second time"):
        z.backward()


def test_an_output_read_after_the_backward_of_another_has_a_graph(model: Cubic) -> None:
    a = leaf(1.0)
    model.set({"a": a})
    model.get("y").backward()
    a.grad = None
    model.get("z").backward()
    assert a.grad is not None
    assert a.grad.item() == 2.0 * 3.0 * 6.0
    assert model.runs == 2


def test_second_derivatives_through_set_and_get(model: Cubic) -> None:
    a = leaf(2.0)
    model.set({"a": a})
    (first,) = torch.autograd.grad(model.get("y"), a, create_graph=True)
    (second,) = torch.autograd.grad(first, a)
    assert (first.item(), second.item()) == (24.0, 24.0)


def test_a_set_point_that_is_no_leaf_keeps_its_own_graph(model: Cubic) -> None:
    """The model builds its own part again; what the user built upstream is the user's."""
    a = leaf(1.0)
    model.set({"a": a * a})
    model.get("y").backward()
    assert model.get("y").item() == 3.0
    with pytest.raises(RuntimeError, match="second time"):
        model.get("y").backward()


def test_a_call_frees_nothing_that_was_read(model: Cubic) -> None:
    a = leaf(1.0)
    model.set({"a": a})
    value = model.get("y")
    model()["y"].backward()
    value.backward()
    assert a.grad is not None
    assert a.grad.item() == 12.0
    model.get("y")
    assert model.runs == 3  # the write, the call, and what the last backward freed


def test_backward_with_respect_to_particles() -> None:
    t = lambda value: torch.tensor(value, dtype=F64)  # noqa: E731
    line = cheetah.Segment([cheetah.Quadrupole(t(0.2), t(4.0), name="Q1"), cheetah.Drift(t(1.0), name="D1")])
    beam = cheetah.ParticleBeam.from_parameters(num_particles=50, energy=t(1e8))
    model = CheetahModel(line, beam, controls=[], outputs=["final.sigma_x"])
    bunch = model.get("initial_particles")
    x = bunch.x.clone().requires_grad_()
    gradients = []
    for _ in range(2):
        model.set({"initial_particles": bunch.replace(x=x)})
        for _ in range(2):
            x.grad = None
            model.get("final_particles")["sigma_x"].backward()
            assert x.grad is not None
            gradients.append(x.grad)
    assert gradients[0].abs().sum() > 0
    assert all(torch.equal(g, gradients[0]) for g in gradients)


# -- what makes a run stale


def test_a_step_on_a_set_point_is_noticed(model: Cubic) -> None:
    a = leaf(1.0)
    optimiser = torch.optim.SGD([a], lr=0.1)
    model.set({"a": a})
    model.get("y").backward()
    optimiser.step()
    assert model.get("y").item() == pytest.approx(2.0 * 0.4**3 + 1.0, rel=1e-12)
    model.get("y").backward()


def test_a_step_out_of_the_limits_is_refused_until_it_is_mended(model: Cubic) -> None:
    a = leaf(1.0)
    model.set({"a": a})
    with torch.no_grad():
        a += 10.0
    for attempt in (lambda: model.get("y"), lambda: model(), lambda: model.set({"b": 2.0})):
        with pytest.raises(ValidationError, match=r"'a': 11.0 is outside"):
            attempt()
    model.set({"a": 2.0})
    assert model.get("y").item() == 17.0


def test_a_step_to_nan_is_refused(model: Cubic) -> None:
    a = leaf(1.0)
    model.set({"a": a})
    with torch.no_grad():
        a.fill_(torch.nan)
    with pytest.raises(ValidationError, match=r"'a'.*not finite"):
        model.get("y")


def test_a_step_on_the_modules_parameters_is_noticed() -> None:
    model = Cubic(trainable=True)
    optimiser = torch.optim.SGD(model.parameters(), lr=1.0)
    for expected in (3.0, 2.0, 1.0):
        value = model.get("y")
        assert value.item() == expected
        value.backward()
        optimiser.step()
        optimiser.zero_grad()


CHANGES = {
    "in place": lambda m: torch.no_grad()(m.gain.mul_)(2.0),
    "replaced": lambda m: setattr(m, "gain", torch.nn.Parameter(torch.tensor(4.0, dtype=F64), requires_grad=False)),
    "loaded": lambda m: m.load_state_dict({"gain": torch.tensor(4.0, dtype=F64)}),
    "training mode": lambda m: m.train(),
    "submodule": lambda m: setattr(m, "noise", torch.nn.Identity()),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_of_the_module_is_noticed(model: Cubic, change: Any) -> None:
    model.get("y")
    change(model)
    model.get("y")
    assert model.runs == 2


def test_a_parameter_that_becomes_trainable_is_noticed(model: Cubic) -> None:
    assert not model.get("y").requires_grad
    model.gain.requires_grad_()
    model.get("y").backward()
    assert model.gain.grad is not None


def test_what_stayed_the_same_is_not_run_again(model: Cubic) -> None:
    model.set({"a": leaf(1.0)})
    for _ in range(3):
        model.get(["y", "z", "a"])
    assert model.runs == 1


# -- grad modes


def test_no_grad_in_between(model: Cubic) -> None:
    a = leaf(1.0)
    with torch.no_grad():
        model.set({"a": a})
    assert model.get("y").requires_grad
    with torch.no_grad():
        assert not model.get("y").requires_grad
    model.get("y").backward()
    assert a.grad is not None
    assert a.grad.item() == 6.0


def test_no_grad_costs_nothing_where_there_is_no_graph(model: Cubic) -> None:
    model.set({"a": 2.0})
    with torch.no_grad():
        model.get("y")
    model.get("z")
    assert model.runs == 1


def test_inference_mode_in_between(model: Cubic) -> None:
    a = leaf(2.0)
    with torch.inference_mode():
        model.set({"a": torch.tensor(2.0, dtype=F64), "b": 1.0})
        assert model.get("y").is_inference()
        assert model.get("a").item() == 2.0
    assert not model.get("y").is_inference()
    assert not model.get("a").is_inference()
    model.set({"a": a})
    with torch.inference_mode():
        model.get(["y", "z"])
    model.get("z").backward()
    assert a.grad is not None
    assert a.grad.item() == 2.0 * 17.0 * 24.0


def test_detach_cuts_the_graph_and_the_tie_to_the_leaf(model: Cubic) -> None:
    a = leaf(2.0)
    assert model.set({"a": a}) is None
    assert model.detach_() is model
    with torch.no_grad():
        a += 1.0
    assert model.get("y").item() == 17.0
    assert not model.get("y").requires_grad
    assert not model.get("a").requires_grad


# -- the memory inside transforms


def test_what_is_read_inside_a_transform_does_not_stay(model: Cubic) -> None:
    model.set({"a": 2.0})
    model.get("y")
    at = torch.tensor(3.0, dtype=F64)
    for transform in (torch.func.grad, torch.func.jacrev, torch.func.jacfwd):
        assert transform(lambda x: x * model.get("z") * model.get("y"))(at).item() == 17.0**3
    runs = model.runs
    assert not torch._C._functorch.is_functorch_wrapped_tensor(model.get("z"))
    assert model.get("z").item() == 289.0
    assert model.runs == runs


@pytest.mark.parametrize("write", [lambda m, x: m.set({"a": x}), lambda m, x: m.restore({"a": x})])
def test_a_transform_must_not_write(model: Cubic, write: Any) -> None:
    with pytest.raises(GradientError, match=r"torch\.func transform.*tensor_function"):
        torch.func.grad(lambda x: write(model, x) or x)(torch.tensor(1.0, dtype=F64))
    assert model.get("y").item() == 3.0


def test_a_simulation_that_vmap_cannot_pass_names_the_batch_dimension() -> None:
    class Branching(Cubic):
        def _run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> torch.Tensor:
            return inputs["a"] if inputs["b"].item() > 0 else inputs["b"]

    function = Branching().tensor_function(["a", "b"], ["y"])
    with pytest.raises(GradientError, match=r"Branching cannot pass.*leading batch dimension.*\(batch,\)"):
        torch.func.vmap(function)(torch.ones(3, 2, dtype=F64))
    assert torch.func.grad(lambda x: function(x).sum())(torch.ones(2, dtype=F64)).tolist() == [1.0, 0.0]


def test_a_simulation_that_fails_inside_a_transform_is_a_simulator_error() -> None:
    class Failing(Cubic):
        def _run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> torch.Tensor:
            raise ValueError("no beam")

    with pytest.raises(SimulatorError, match="no beam"):
        torch.func.grad(lambda x: Failing()({"a": x})["y"])(torch.tensor(1.0, dtype=F64))


def test_only_float_outputs_and_inputs_are_returned_under_a_transform(model: Cubic) -> None:
    def call(x: torch.Tensor) -> dict[str, torch.Tensor]:
        return model({"a": x}, outputs=["y", "a"])

    found = torch.func.jacrev(call)(torch.tensor(2.0, dtype=F64))
    assert {name: value.item() for name, value in found.items()} == {"y": 24.0, "a": 1.0}


# -- threads


def test_lazy_reading_from_many_threads_computes_once() -> None:
    class Slow(Cubic):
        reads = 0

        def _read(self, state: torch.Tensor, outputs: Sequence[str]) -> dict[str, Any]:
            Slow.reads += len(outputs)
            threading.Event().wait(0.02)
            return super()._read(state, outputs)

    model = Slow()
    model.set({"a": 2.0})
    found: list[Any] = []
    threads = [threading.Thread(target=lambda: found.append(model.get("z"))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert Slow.reads == 1
    assert len({id(value) for value in found}) == 1


def test_runs_are_counted_from_all_threads(model: Cubic) -> None:
    threads = [threading.Thread(target=lambda: [model() for _ in range(50)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert model.runs == 200


# -- the parts of torch that are not public


def test_torch_tells_whether_a_backward_keeps_its_graph() -> None:
    assert evaluation._keep_graph is not None
    seen: list[bool] = []
    y = leaf(1.0) * 2.0
    assert y.grad_fn is not None
    y.grad_fn.register_prehook(lambda _: seen.append(evaluation._keep_graph()))  # type: ignore[misc]
    y.backward(retain_graph=True)
    y.backward()
    assert seen == [True, False]


def test_without_that_every_backward_counts_as_one_that_frees(model: Cubic, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "_keep_graph", None)
    a = leaf(1.0)
    model.set({"a": a})
    model.get("y").backward(retain_graph=True)
    model.get("y").backward()
    assert a.grad is not None
    assert a.grad.item() == 12.0
    assert model.runs == 2
