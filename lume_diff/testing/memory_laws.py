"""Laws of names, values and memory."""

from __future__ import annotations

import copy
import math
import pickle
import threading
from collections.abc import Callable

import torch

from lume_diff.errors import LumeDiffError, ReadOnlyError, UnknownVariableError
from lume_diff.models.base import LUMEModel
from lume_diff.testing.trial import LawViolation, Trial, Values, same, same_all


def law_names(trial: Trial) -> None:
    """Inputs and outputs together are the variables, and the table of them cannot be changed."""
    model = trial.model
    names = [*model.input_names, *model.output_names]
    trial.demand(sorted(names) == sorted(model.supported_variables), "input_names + output_names are not the variables")
    try:
        model.supported_variables["new"] = None  # type: ignore[index]
    except TypeError:
        return
    raise LawViolation("supported_variables can be written")


def law_unknown(trial: Trial) -> None:
    """A name that is not there raises UnknownVariableError, with the nearest name, wherever it is used."""
    model, output = trial.model, trial.outputs[0]
    wrong = output + "_"
    uses: dict[str, Callable[[], object]] = {
        "get": lambda: model.get(wrong),
        "get of a list": lambda: model.get([output, wrong]),
        "a call's inputs": lambda: model({wrong: 1.0}),
        "a call's outputs": lambda: model(outputs=[wrong]),
        "set": lambda: model.set({wrong: 1.0}),
        "jacobian": lambda: model.jacobian([wrong], trial.inputs),
        "tensor_function": lambda: model.tensor_function(trial.inputs, [wrong]),
        "restore": lambda: model.restore({wrong: 1.0}),
    }
    for what, use in uses.items():
        try:
            use()
        except UnknownVariableError as error:
            trial.demand(wrong in str(error), f"{what}: the message does not have the name: {error}")
        else:
            raise LawViolation(f"{what} took a name that is not there")


def law_get(trial: Trial) -> None:
    """One name gives a value, several give a dictionary in their order, and both agree."""
    names = [*trial.outputs, *trial.inputs]
    table = trial.model.get(names)
    trial.demand(list(table) == names, f"get({names}) returned {list(table)}")
    for name in names:
        trial.demand(same(trial.model.get(name), table[name]), f"get({name!r}) and get([...]) differ")
        trial.demand(same(trial.model.get_value(name), table[name]), f"get_value({name!r}) and get([...]) differ")


def law_set_and_get(trial: Trial) -> None:
    """A value that was set is read back, and outputs are those of a pure call with the same inputs."""
    values = trial.somewhere()
    trial.model.set(values)
    for name, value in values.items():
        trial.demand(same(trial.model.get(name), trial.tensor(value)), f"{name!r} not kept")
    pure = trial.model(values, outputs=[*trial.outputs, *trial.inputs])
    trial.demand(same_all(trial.read(), pure, 1e-12), "set and get differ from a pure call")


def law_pure(trial: Trial) -> None:
    """A call writes nothing and gives the same twice; inputs that it is not given are at the set-points."""
    before = trial.read()
    values = trial.somewhere()
    first, second = (trial.model(values, outputs=trial.outputs) for _ in range(2))
    trial.demand(same_all(first, second, 1e-12), "two calls with the same inputs differ")
    trial.demand(same_all(trial.read(), before, 1e-12), "a call changed what the model remembers")
    trial.demand(
        same_all(trial.model(outputs=list(before)), before, 1e-12), "a call without inputs is not at the set-points"
    )


def law_own_values(trial: Trial) -> None:
    """What was passed in or read out can be written into without changing the model."""
    values = {name: trial.tensor(value) for name, value in trial.somewhere().items()}
    trial.model.set(values)
    before = {name: value.detach().clone() for name, value in trial.read().items()}
    for value in (*values.values(), *trial.read().values()):
        with torch.no_grad():
            value += 1.0 + value.abs()
    trial.demand(same_all(trial.read(), before, 1e-12), "writing into a value that was set or read changed the model")


def law_atomic(trial: Trial) -> None:
    """A write that fails changes nothing, whatever was wrong with it."""
    good = trial.somewhere()
    name = trial.inputs[0]
    bad: dict[str, tuple[Values, type[Exception]]] = {
        "an unknown name": ({**good, "no such variable": 1.0}, UnknownVariableError),
        "a read-only name": ({**good, trial.outputs[0]: 1.0}, ReadOnlyError),
        "NaN": ({**good, name: math.nan}, ValueError),
        "infinity": ({**good, name: math.inf}, ValueError),
        "a string": ({**good, name: "three"}, ValueError),
        "a complex number": ({**good, name: 1.0 + 2.0j}, ValueError),
    }
    _, high = trial.variable(name).value_range or (-math.inf, math.inf)
    policy = trial.model._policy(name) or trial.variable(name).default_validation_config
    if policy == "error" and high != math.inf:
        bad["a value above the limit"] = ({**good, name: high + abs(high) + 1.0}, ValueError)
    if len(trial.inputs) > 1:
        shapes = {trial.inputs[0]: torch.zeros(2) + good[name], trial.inputs[1]: torch.zeros(3)}
        bad["batches that do not broadcast"] = ({**good, **shapes}, ValueError)
    before = trial.read()
    for what, (values, expected) in bad.items():
        try:
            trial.model.set(values)
        except expected as error:
            trial.demand(isinstance(error, LumeDiffError), f"{what}: {type(error).__name__} is not a LumeDiffError")
        else:
            raise LawViolation(f"set accepted {what}")
        trial.demand(same_all(trial.read(), before), f"set failed because of {what}, but changed the model")


def law_reset(trial: Trial) -> None:
    """Reset brings the baseline back, at one run at most."""
    trial.model.reset()
    before = trial.read()
    trial.model.set(trial.somewhere())
    runs = trial.model.runs
    trial.model.reset()
    trial.demand(trial.model.runs <= runs + 1, f"reset took {trial.model.runs - runs} runs")
    trial.demand(same_all(trial.read(), before), "reset did not bring the baseline back")


def law_snapshot(trial: Trial) -> None:
    """A snapshot survives YAML and restores the set-points."""
    import yaml

    trial.model.set(trial.somewhere())
    before = trial.read()
    text = yaml.safe_dump(trial.model.snapshot())
    trial.model.reset()
    trial.model.restore(yaml.safe_load(text))
    trial.demand(same_all(trial.read(), before, 1e-12), "restore(snapshot()) through YAML changed values")


def law_copies(trial: Trial) -> None:
    """Deep copies and pickles give the same values and live on their own."""
    trial.model.set({trial.inputs[0]: trial.leaf(trial.inputs[0]) * 1.0})  # a set-point that cannot be copied as it is
    before = trial.read()
    makers: list[tuple[str, Callable[[], LUMEModel]]] = [("deepcopy", lambda: copy.deepcopy(trial.model))]
    try:
        data = pickle.dumps(trial.model)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        trial.notes.append(f"not pickled: {error}")
    else:
        makers.append(("pickle", lambda: pickle.loads(data)))
    for how, make in makers:
        other = make()
        trial.demand(same_all(other.get(list(before)), before, 1e-12), f"{how} changed values")
        other.set(trial.somewhere())
        trial.demand(same_all(trial.read(), before), f"writing a {how} changed the original")


def law_runs(trial: Trial) -> None:
    """Runs are counted, and reading after a write costs none."""
    trial.model.set(trial.somewhere())
    before = trial.model.runs
    trial.read()
    trial.read()
    trial.demand(trial.model.runs == before, "reading after a write ran the simulation again")
    trial.demand(before > 0, "runs are not counted")


def law_dtype(trial: Trial) -> None:
    """Values have the model's dtype, also after .to(), and a state_dict loads."""
    model = copy.deepcopy(trial.model)
    for dtype in (torch.float32, torch.float64):
        model.to(dtype)
        for name in [*trial.inputs, *trial.outputs]:
            found = model.get(name).dtype
            trial.demand(found == dtype, f"{name!r} is {found} after .to({dtype})")
    model.load_state_dict(copy.deepcopy(model.state_dict()))


def law_threads(trial: Trial) -> None:
    """Readers see whole transactions, whatever writers do at the same time."""
    model, states = trial.model, [trial.somewhere(), trial.somewhere()]
    valid = []
    for state in states:
        model.set(state)
        valid.append(trial.read())
    failures: list[str] = []
    stop = threading.Event()

    def attempt(work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:
            failures.append(f"{type(error).__name__}: {error}")
        finally:
            stop.set()

    def write() -> None:
        for turn in range(20):
            model.set(states[turn % 2])

    def look() -> None:
        while not stop.is_set():
            called = model(outputs=[*trial.inputs, *trial.outputs])
            for seen in (trial.read(), called):
                if not any(same_all(seen, state, 1e-12) for state in valid):
                    failures.append(f"saw a mixture: {seen}")
                    return

    threads = [threading.Thread(target=attempt, args=(work,), daemon=True) for work in (write, look, look)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        trial.demand(not thread.is_alive(), "a thread that reads or writes hangs")
    trial.demand(not failures, failures[0] if failures else "")
