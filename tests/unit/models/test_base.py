"""LUMEModel: names, values, memory and policies, on a small model that counts what it does."""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch

from lume_diff.errors import OutOfRangeWarning, ShapeError, SimulatorError, UnknownVariableError, ValidationError
from lume_diff.models import LUMEModel
from lume_diff.variables import (
    BoolVariable,
    EnumVariable,
    IntVariable,
    StrVariable,
    TorchNDVariable,
    TorchScalarVariable,
)

F64 = torch.float64


def number(name: str, default: float | None = 0.0, **fields: Any) -> TorchScalarVariable:
    return TorchScalarVariable(name=name, default_value=default, **fields)


class Machine(LUMEModel):
    """y = gain (a^2 + sum(w)) + n; an image that is slow to make; a label."""

    def __init__(self, **options: Any) -> None:
        super().__init__(
            [
                number("a", 1.0, value_range=(-10, 10)),
                number("b", 2.0, value_range=(-10, 10), default_validation_config="warn"),
                TorchNDVariable(name="w", shape=(3,), default_value=[1.0, 2.0, 3.0]),
                IntVariable(name="n", default_value=4),
                BoolVariable(name="on", default_value=True),
                EnumVariable(name="mode", options=["slow", "fast"], default_value="slow"),
                StrVariable(name="note", default_value="none"),
                number("y", None, value_range=(-1e3, 1e3), read_only=True),
                number("z", None, read_only=True),
                TorchNDVariable(name="image", shape=(2, 3), read_only=True),
                EnumVariable(name="label", options=["small", "large"], read_only=True),
            ],
            **options,
        )
        self.gain = torch.nn.Parameter(torch.tensor(1.0, dtype=F64), requires_grad=False)
        self.reads: list[str] = []
        self.failure: BaseException | None = None
        self.in_run: Any = None

    def _run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
        if self.failure is not None:
            raise self.failure
        if self.in_run is not None:
            self.in_run()
        total = self.gain * (inputs["a"].square() + inputs["w"].sum(-1)) + inputs["n"]
        return {"y": total, "z": total - inputs["b"], "on": inputs["on"]}

    def _read(self, state: dict[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
        self.reads += outputs
        made = {
            "image": lambda: state["y"][..., None, None].expand(*state["y"].shape, 2, 3) * state["on"],
            "label": lambda: "small" if state["y"] < 20 else "large",
        }
        return {name: made[name]() if name in made else state[name] for name in outputs}


@pytest.fixture
def machine() -> Machine:
    return Machine()


# -- variables


def test_variables_are_inputs_and_outputs_in_their_order(machine: Machine) -> None:
    assert machine.input_names == ["a", "b", "w", "n", "on", "mode", "note"]
    assert machine.output_names == ["y", "z", "image", "label"]
    assert list(machine.supported_variables) == [*machine.input_names, *machine.output_names]
    machine.input_names.append("more")
    assert "more" not in machine.input_names


@pytest.mark.parametrize(
    "options, words",
    [
        ({"initial": {"aa": 1.0}}, "'aa'.*nearest: 'a'"),
        ({"initial": {"y": 1.0}}, "'y'"),
        ({"initial": {"a": 11.0}}, "value_range"),
        ({"validation": {"q": "warn"}}, "'q'"),
        ({"validation": {"a": "loud"}}, "loud.*error, warn, none"),
    ],
    ids=["unknown", "output", "limits", "policy name", "policy"],
)
def test_bad_construction_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises((UnknownVariableError, ValidationError), match=words):
        Machine(**options)


def test_a_name_can_be_there_once_only() -> None:
    class Twice(Machine):
        def __init__(self) -> None:
            LUMEModel.__init__(self, [number("a"), number("a")])

    with pytest.raises(ValidationError, match="'a' is given twice"):
        Twice()


# -- forward


def test_forward_takes_set_points_for_what_is_not_passed(machine: Machine) -> None:
    machine.set({"w": [0.0, 0.0, 1.0]})
    assert machine({"a": 3.0}, outputs=["y"])["y"].item() == 9.0 + 1.0 + 4.0
    assert machine.get("a").item() == 1.0


def test_forward_without_names_gives_all_outputs(machine: Machine) -> None:
    assert list(machine()) == machine.output_names


def test_forward_gives_inputs_too_without_running(machine: Machine) -> None:
    found = machine({"a": 3}, outputs=iter(["mode", "a", "w"]))
    assert list(found) == ["mode", "a", "w"]
    assert (found["mode"], found["a"].item(), found["a"].dtype) == ("slow", 3.0, F64)
    assert machine.runs == 0


def test_forward_reads_set_points_once(machine: Machine) -> None:
    """A write in the middle of a call does not show in it."""
    machine.in_run = lambda: setattr(machine, "in_run", None) or machine.set({"a": 5.0, "b": 5.0})
    found = machine(outputs=["y", "z", "a", "b"])
    assert [found[name].item() for name in ("y", "z", "a", "b")] == [11.0, 9.0, 1.0, 2.0]
    assert machine.get("a").item() == 5.0


@pytest.mark.parametrize("outputs", ["y", ["y", "q"]], ids=["string", "unknown"])
def test_forward_refuses_names(machine: Machine, outputs: Any) -> None:
    with pytest.raises((ValidationError, UnknownVariableError), match=r"write \['y'\]|'q'"):
        machine(outputs=outputs)


# -- set


def state_of(machine: Machine) -> dict[str, Any]:
    return {name: value.tolist() if hasattr(value, "tolist") else value for name, value in machine.get().items()}


FAILURES = [
    RuntimeError,
    ValueError,
    KeyError,
    TypeError,
    ZeroDivisionError,
    OSError,
    AssertionError,
    NotImplementedError,
]


@pytest.mark.parametrize("kind", FAILURES)
def test_a_failing_run_is_a_simulator_error_and_changes_nothing(machine: Machine, kind: type[Exception]) -> None:
    machine.set({"a": 2.0})
    before = state_of(machine)
    machine.failure = kind("out of beam")
    with pytest.raises(
        SimulatorError, match=r"Machine failed: \w+: .*out of beam.*; the inputs were a=3\.0, "
    ) as caught:
        machine.set({"a": 3.0, "mode": "fast"})
    assert caught.value.__cause__ is machine.failure
    assert "mode='fast'" in str(caught.value)
    machine.failure = None
    assert state_of(machine) == before


@pytest.mark.parametrize("kind", [SimulatorError, ShapeError, KeyboardInterrupt, SystemExit, MemoryError, UserWarning])
def test_what_is_ours_or_not_the_simulators_passes_and_changes_nothing(
    machine: Machine, kind: type[BaseException]
) -> None:
    before = state_of(machine)
    machine.failure = kind("as it is")
    with pytest.raises(kind, match=r"^as it is$"):
        machine.set({"a": 3.0})
    machine.failure = None
    assert state_of(machine) == before


def test_a_failing_read_is_a_simulator_error_too(machine: Machine) -> None:
    machine.get("y")
    batch = torch.zeros(2, dtype=F64)  # a label of a batch cannot be made
    machine.set({"a": batch})
    with pytest.raises(SimulatorError, match=r"Machine failed: RuntimeError.*a of shape \(2,\)"):
        machine.get("label")
    assert machine.get("y").shape == (2,)


def test_an_output_that_is_not_returned_is_named() -> None:
    class Forgetful(Machine):
        def _read(self, state: Any, outputs: Sequence[str]) -> dict[str, Any]:
            return {}

    with pytest.raises(SimulatorError, match="did not return its output 'y'"):
        Forgetful().get("y")


def test_outputs_are_made_what_their_variables_say() -> None:
    class Plain(Machine):
        def _run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
            return {"y": 1, "z": 2.0, "image": [[1, 2, 3], [4, 5, 6]], "label": "small"}

        def _read(self, state: Any, outputs: Sequence[str]) -> dict[str, Any]:
            return LUMEModel._read(self, state, outputs)

    found = Plain().get(["y", "z", "image"])
    assert all(value.dtype == F64 for value in found.values())
    assert found["image"].shape == (2, 3)


def test_an_output_of_another_shape_is_refused() -> None:
    class Flat(Machine):
        def _read(self, state: Any, outputs: Sequence[str]) -> dict[str, Any]:
            return {name: torch.zeros(6, dtype=F64) for name in outputs}

    with pytest.raises(ShapeError, match=r"'image'.*\(6,\).*\(\*batch, 2, 3\)"):
        Flat().get("image")


@pytest.mark.parametrize("values", [{"a": 2.0, "b": torch.zeros(3)}, {"a": torch.zeros(2), "w": torch.zeros(5, 3)}])
def test_batches_that_do_not_broadcast_name_both_variables(machine: Machine, values: dict[str, Any]) -> None:
    values = {**values, "n": torch.zeros(4, dtype=torch.int64)}
    last = "'n'|'w'"
    with pytest.raises(ShapeError, match=rf"batch dimensions .* of ({last}) do not broadcast with .* of '[abw]'"):
        machine.set(values)


def test_set_copies_what_has_no_graph_and_keeps_what_has(machine: Machine) -> None:
    plain, leaf = torch.tensor(2.0, dtype=F64), torch.tensor(3.0, dtype=F64, requires_grad=True)
    machine.set({"a": plain, "b": leaf})
    plain += 1
    assert machine.get("a").item() == 2.0
    assert machine.get("b") is leaf


def test_a_value_that_was_read_is_nobodys_memory(machine: Machine) -> None:
    for name in ("a", "y", "image"):
        machine.get(name).add_(100.0)
    assert [machine.get(name).max().item() for name in ("a", "y", "image")] == [1.0, 11.0, 11.0]
    machine.reset()
    assert machine.get("a").item() == 1.0


# -- get


def test_get_gives_a_value_or_a_dictionary(machine: Machine) -> None:
    assert machine.get("y").item() == machine.get_value("y").item() == 11.0
    assert list(machine.get(["y", "a"])) == ["y", "a"]
    assert list(machine.get(name for name in ["y", "a"])) == ["y", "a"]
    assert list(machine.get()) == list(machine.supported_variables)


def test_set_value_writes_one(machine: Machine) -> None:
    machine.set_value("a", 0.0)
    assert machine.get("y").item() == 10.0


def test_outputs_are_read_once_and_only_when_asked(machine: Machine) -> None:
    machine.set({"a": 2.0})
    assert machine.reads == []
    for _ in range(3):
        machine.get(["y", "z", "y"])
    assert sorted(machine.reads) == ["y", "z"]
    machine.get()
    assert sorted(machine.reads) == ["image", "label", "y", "z"]
    assert machine.runs == 1


def test_inputs_are_read_without_a_run(machine: Machine) -> None:
    machine.get(machine.input_names)
    assert machine.runs == 0


def test_reset_takes_no_run_until_something_is_read(machine: Machine) -> None:
    machine.set({"a": 2.0, "mode": "fast"})
    machine.reset()
    assert machine.runs == 1
    assert (machine.get("mode"), machine.get("y").item()) == ("slow", 11.0)
    assert machine.runs == 2


# -- policies


POLICIES = [
    ("a", None, "error"),
    ("a", "warn", "warn"),
    ("a", "none", "none"),
    ("b", None, "warn"),
    ("b", "error", "error"),
    ("b", "none", "none"),
]


@pytest.mark.parametrize("name, policy, expected", POLICIES, ids=[f"{n}-{p}" for n, p, _ in POLICIES])
def test_policy_of_a_write(name: str, policy: str | None, expected: str) -> None:
    machine = Machine(validation={name: policy} if policy else None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if expected == "error":
            with pytest.raises(ValidationError, match=f"'{name}'.*12.*value_range"):
                machine.set({name: 12.0})
        else:
            machine.set({name: 12.0})
            assert machine.get(name).item() == 12.0
    assert [w.category for w in caught] == ([OutOfRangeWarning] if expected == "warn" else [])


@pytest.mark.parametrize("policy", ["error", "warn", "none"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")], ids=str)
def test_no_policy_lets_nan_or_infinity_be_written(policy: str, bad: float) -> None:
    with pytest.raises(ValidationError, match="not finite"):
        Machine(validation={"a": policy}).set({"a": bad})


@pytest.mark.parametrize("policy", [None, "error", "warn", "none"])
def test_policy_of_an_output(policy: str | None) -> None:
    machine = Machine(validation={"y": policy} if policy else None)
    machine.set({"n": 5000})
    if policy == "error":
        with pytest.raises(ValidationError, match=r"'y'.*value_range"):
            machine.get("y")
    elif policy == "none":
        machine.get("y")
    else:
        with pytest.warns(OutOfRangeWarning, match=r"'y'.*value_range"):
            machine.get("y")


def test_a_policy_makes_nan_of_an_output_without_limits_seen() -> None:
    class Broken(Machine):
        def _read(self, state: Any, outputs: Sequence[str]) -> dict[str, Any]:
            return dict.fromkeys(outputs, torch.tensor(float("nan"), dtype=F64))

    assert Broken().get("z").isnan()
    with pytest.warns(OutOfRangeWarning, match=r"'z'.*not finite"):
        Broken(validation={"z": "warn"}).get("z")


# -- the rest


def test_repr_tells_the_essentials(machine: Machine) -> None:
    assert repr(machine) == "Machine(7 inputs, 4 outputs, float64, cpu)"
    machine.set({"a": torch.tensor(1.0, requires_grad=True)})
    assert repr(machine).endswith("with graph)")


def test_readers_do_not_wait_for_a_writer(machine: Machine) -> None:
    """What was committed is served while a write runs."""
    machine.get("y")
    started, finish = threading.Event(), threading.Event()
    machine.in_run = lambda: started.set() or finish.wait(30)
    writer = threading.Thread(target=machine.set, args=({"a": 2.0},))
    writer.start()
    assert started.wait(30)
    seen = machine.get(["a", "y"])
    finish.set()
    writer.join(30)
    assert (seen["a"].item(), seen["y"].item()) == (1.0, 11.0)
    assert machine.get("y").item() == 14.0


@pytest.mark.parametrize("name", ["Q1.k1", "type", "train", "forward", "a/b", "set", "QUAD:LI21:201:BCTRL", "x y"])
def test_any_name_can_be_a_variable(name: str) -> None:
    class Named(LUMEModel):
        def _run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
            return {f"{name}.out": inputs[name] * 2.0}

    model = Named([number(name, 1.0), number(f"{name}.out", None, read_only=True)])
    model.set({name: 3.0})
    assert copy.deepcopy(model).get(f"{name}.out").item() == 6.0
    assert model.jacobian([f"{name}.out"], [name])[f"{name}.out"][name].item() == 2.0
