"""LumeModel: any model of LUME (lume-base) as a black box; ``to_lume`` is the other way."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lume_diff.blackbox.differences.method import FiniteDifference
from lume_diff.blackbox.lume.adapter import to_lume
from lume_diff.blackbox.lume.simulator import LumeSimulator, current, lock_of, model_from, variables_of
from lume_diff.blackbox.lume.variables import translated
from lume_diff.blackbox.model import BlackBoxModel
from lume_diff.blackbox.runners.proxy import SimulatorProxy, ask, last_change
from lume_diff.errors import UnknownVariableError, ValidationError, nearest_names
from lume_diff.variables import ParticleGroupVariable


class LumeBox(BlackBoxModel):
    """Make a model of LUME a node of the graph; ``LumeModel`` builds it."""

    _last_change = 0  # made through the proxy when the inputs were read last

    @property
    def simulator(self) -> Any:
        """LUME's model; call ``refresh()`` after changing it."""
        return self._runner.simulator.native

    def refresh(self) -> None:
        """Take over the inputs that were changed on LUME's model, and forget what was computed before."""
        simulator = self._runner.simulator
        if not isinstance(simulator, SimulatorProxy):
            fresh = simulator.changes()
            simulator.look_anew()
        else:  # the workers' own memories differ: what each of them has run last does
            last = last_change(simulator)
            fresh = {} if last == self._last_change else ask(simulator.changes)
            self._last_change = last
        values = {name: self._checked_input(name, fresh[name]) for name in fresh}
        super().refresh()
        with self._lock:
            self._setpoints, self._baseline = {**self._setpoints, **values}, {**self._baseline, **values}


def LumeModel(
    model: Any,
    controls: Sequence[str] | None = None,
    outputs: Sequence[str] | None = None,
    *,
    units: Mapping[str, str] | None = None,
    gradient: FiniteDifference | str | None = FiniteDifference(),  # noqa: B008 - immutable
    **options: Any,
) -> LumeBox:
    """Build a model around any model of LUME (lume-base 0.6 or later).

    Names, units, limits and kinds of the variables are LUME's. Limits are enforced on writes, as everywhere here,
    unless the variable was given another ``default_validation_config``; numbers that are not finite never pass. A model
    that could be differentiated itself (lume-torch) is a black box here all the same: give its network to
    ``TorchModel`` instead.

    Args:
        model: a ``lume.model.LUMEModel``, or a function that makes one; with workers each makes or gets its own.
        controls: names of the inputs; None for all variables that can be written.
        outputs: names of the outputs; None for all that are read-only.
        units: ``{name: unit}`` where the declared unit is missing, wrong or not known.
        gradient: how derivatives are taken.
        **options: of ``BlackBoxModel``.

    Returns:
        The model; ``simulator`` is LUME's, call ``refresh()`` after changing it. Every run writes all inputs.

    Raises:
        MissingExtraError: if lume-base is not installed.
        ValidationError: for anything that is not a LUME model, and a variable of a kind that has no counterpart.
        UnknownVariableError: for a control or an output that it does not have.

    Warns:
        PhysicsWarning: for a unit that is not known.

    Gradient:
        Estimated, at 2 runs an input; see ``FiniteDifference``.

    Example:
        >>> import torch, lume_diff as ld
        >>> net = ld.TorchModel(
        ...     torch.nn.Linear(1, 1, dtype=torch.float64),
        ...     [ld.TorchScalarVariable(name="a", default_value=0.5)],
        ...     [ld.TorchScalarVariable(name="y", read_only=True)],
        ... )
        >>> again = LumeModel(to_lume(net))
        >>> bool(again.get("y") == net.get("y"))
        True
    """
    native = model_from(model)
    variables = variables_of(native)
    chosen = [
        _chosen("control", controls, variables, read_only=False),
        _chosen("output", outputs, variables, read_only=True),
    ]
    units = dict(units or {})
    unknown = [name for name in units if name not in variables]
    if unknown:
        raise UnknownVariableError(f"units of {unknown[0]!r}, which is not there{nearest_names(unknown[0], variables)}")
    with lock_of(native):
        values = {name: current(native, name, variables[name]) for name in chosen[0]}
    ours, initial, kept = [], {}, {}
    for name in (*chosen[0], *chosen[1]):
        variable = translated(variables[name], units.get(name), values.get(name)).variable
        kept[name] = variable.unit
        if isinstance(variable, ParticleGroupVariable) and values.get(name) is not None:
            initial[name] = values[name]
        ours.append(variable)
    _check_bunches(ours)
    return LumeBox(_Factory(model, tuple(chosen[0]), kept), ours, gradient, initial=initial, **options)


@dataclass(frozen=True)
class _Factory:
    """Make simulators of one model.

    A deep copy has a copy of the model, or shares one that cannot be copied, which is safe because every run writes all
    inputs.
    """

    source: Any
    controls: tuple[str, ...]
    units: Mapping[str, str]

    def __call__(self) -> LumeSimulator:
        return LumeSimulator(self.source, self.controls, self.units)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Factory:
        try:
            source = copy.deepcopy(self.source, memo)
        except Exception:  # open files, locks, child processes
            source = self.source
        return _Factory(source, self.controls, self.units)


def _chosen(kind: str, names: Sequence[str] | None, variables: Mapping[str, Any], *, read_only: bool) -> list[str]:
    if names is None:
        return [name for name, variable in variables.items() if bool(variable.read_only) is read_only]
    if isinstance(names, str):
        raise ValidationError(f"{kind}s must be a list of names, got the string {names!r}: write [{names!r}]")
    for name in names:
        if name not in variables:
            raise UnknownVariableError(f"{kind} {name!r} is not one of the model's{nearest_names(name, variables)}")
        if bool(variables[name].read_only) is not read_only:
            word = "read-only" if not read_only else "one that can be written"
            raise ValidationError(f"{kind} {name!r} is {word} in the model: it cannot be a {kind}")
    return list(dict.fromkeys(names))


def _check_bunches(variables: Sequence[Any]) -> None:
    bunches = [v for v in variables if isinstance(v, ParticleGroupVariable)]
    if bunches and all(v.read_only for v in bunches):
        names = [v.name for v in bunches]
        raise ValidationError(
            f"outputs {names} are bunches, and the model takes none: particles are followed by their ids from an "
            "incoming bunch; name the other outputs"
        )


__all__ = ["LumeModel", "LumeSimulator", "to_lume"]
