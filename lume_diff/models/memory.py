"""What a model knows and remembers: its variables, and the values of its inputs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Container, Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import nn

from lume_diff.errors import ReadOnlyError, UnitError, ValidationError, unknown_variable
from lume_diff.models.snapshot import to_plain
from lume_diff.models.transforms import (
    copied,
    detached,
    in_transform,
    map_tensors,
    mark,
    marks,
    owned,
    tensors_in,
    without_graph,
)
from lume_diff.variables import Variable
from lume_diff.variables.units import conversion_factor

if TYPE_CHECKING:
    from lume_diff.models.evaluation import Evaluation

_POLICIES = ("error", "warn", "none")


class Memory(nn.Module):
    """Hold the variables of a model, the set-points of its inputs and the baseline that ``reset`` goes back to.

    The values are in dictionaries that are replaced, never changed: whoever holds one sees one whole transaction. See
    ``LUMEModel`` for the arguments.

    Attributes:
        origin: what the model was made from, where that was a file of its own.
    """

    def __init__(
        self,
        variables: Iterable[Variable],
        *,
        initial: Mapping[str, Any] | None = None,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str | None = None,
        validation: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self._variables: dict[str, Variable] = {}
        for variable in variables:
            if variable.name in self._variables:
                raise ValidationError(f"variable {variable.name!r} is given twice: names must be unique in a model")
            self._variables[variable.name] = variable
        self._input_names = tuple(name for name, v in self._variables.items() if not v.read_only)
        self._output_names = tuple(name for name, v in self._variables.items() if v.read_only)
        self._validation = dict(validation or {})
        for name, policy in self._validation.items():
            self._variable(name)
            if policy not in _POLICIES:
                raise ValidationError(f"validation of {name!r} is {policy!r}; expected one of {', '.join(_POLICIES)}")
        self._unlimited = self._without_limits()
        self.dtype = dtype
        self.device = torch.device(device) if device is not None else torch.device("cpu")
        self._lock = threading.RLock()  # held by who writes; who reads needs none
        self._evaluation: Evaluation | None = None
        self._checked: tuple[Mapping[str, Any], tuple[Any, ...]] | None = None
        self._copies: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self._sources: dict[str, tuple[Any, Any]] = {}
        self._listeners: list[Callable[[], None]] = []
        self._rebased: frozenset[str] = frozenset()  # inputs whose baseline ``make_baseline`` has made
        self._revision = 0  # counts ``refresh``: what was computed before does not hold after it
        self.origin: Any = None
        self._baseline = self._first_values(initial or {})
        self._setpoints = dict(self._baseline)

    def _first_values(self, initial: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the inputs start from and ``reset`` goes back to."""
        values = {name: self._variables[name].default_value for name in self._input_names}
        for name, value in initial.items():
            if name not in values:
                raise unknown_variable(name, self._input_names, f"the inputs of {self._title()}")
            values[name] = value
        return {n: None if v is None else owned(self._checked_input(n, v), v) for n, v in values.items()}

    def _without_limits(self) -> frozenset[str]:
        """Return the outputs whose numbers nobody looks at."""
        return frozenset(
            name
            for name in self._output_names
            if getattr(self._variables[name], "value_range", None) is None
            and "default_validation_config" not in self._variables[name].model_fields_set
            and name not in self._validation
        )

    # -- variables -------------------------------------------------------------------------------------------

    def describe(self, variables: Iterable[Variable]) -> None:
        """Describe variables anew: limits, descriptions, alarm and warning ranges.

        Names, kinds, shapes, units and directions stay; a chain that has the model as a stage is told by ``replace``.

        Args:
            variables: such as ``model.supported_variables["Q1.k1"].replace(value_range=(-5, 5))``.

        Raises:
            UnknownVariableError: for a name the model does not have.
            ValidationError: for another kind, shape or direction, and for limits that the set-point is outside of.
            UnitError: for another unit, where there was one.
        """
        fresh = {variable.name: variable for variable in variables}
        for name, variable in fresh.items():
            old = self._variable(name)
            if type(variable) is not type(old) or variable.read_only is not old.read_only:
                raise ValidationError(f"{name!r} cannot become another kind of variable, or an input an output")
            if (shape := getattr(old, "shape", ())) != getattr(variable, "shape", ()):
                raise ValidationError(f"{name!r} has the shape {shape} and cannot be described with another")
            if old.unit and conversion_factor(variable.unit, old.unit) != 1.0:
                raise UnitError(f"{name!r} is in {old.unit!r} and cannot be described in {variable.unit!r}")
        with self._lock:
            for name, variable in fresh.items():
                value = self._setpoints.get(name)
                if value is not None:
                    dtype, device = self._where(name)
                    variable.validate_value(value, dtype=dtype, device=device, config=self._policy(name))
            self._variables = {**self._variables, **fresh}
            self._unlimited = self._without_limits()
            self._evaluation = self._checked = None

    @property
    def supported_variables(self) -> Mapping[str, Variable]:
        """All variables by name, as a view that cannot be changed."""
        return MappingProxyType(self._variables)

    @property
    def input_names(self) -> list[str]:
        """Names of the variables that can be written."""
        return list(self._input_names)

    @property
    def output_names(self) -> list[str]:
        """Names of the variables that can only be read."""
        return list(self._output_names)

    def _title(self) -> str:
        return type(self).__name__

    def _variable(self, name: str) -> Variable:
        try:
            return self._variables[name]
        except (KeyError, TypeError):
            raise unknown_variable(str(name), self._variables, self._title()) from None

    def _names(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return names that can be looked up; whatever is no string is no variable."""
        found = tuple(names)
        if not set(map(type, found)) <= {str}:
            for name in found:
                if not isinstance(name, str):
                    raise unknown_variable(str(name), self._variables, self._title())
        return found

    def _where(self, name: str) -> tuple[torch.dtype, torch.device]:
        """Return the dtype and device of one variable's values."""
        return self.dtype, self.device

    def _policy(self, name: str) -> str | None:
        """Return what a value outside its limits does, None for what the variable says."""
        return self._validation.get(name)

    # -- checks ----------------------------------------------------------------------------------------------

    def _checked_input(self, name: str, value: Any) -> Any:
        dtype, device = self._where(name)
        return self._variable(name).validate_value(value, dtype=dtype, device=device, config=self._policy(name))

    def _checked_inputs(self, values: Mapping[str, Any]) -> dict[str, Any]:
        if not isinstance(values, Mapping):
            raise ValidationError(f"inputs must be a mapping of names to values, got {type(values).__name__}")
        for name in values:
            if name not in self._variables:
                raise unknown_variable(str(name), self._input_names, f"the inputs of {self._title()}")
        for name in values:
            if self._variables[name].read_only:
                raise ReadOnlyError(f"{name!r} is an output of {self._title()} and cannot be written; write its inputs")
        return {name: self._checked_input(name, value) for name, value in values.items()}

    def _merged(self, checked: Mapping[str, Any]) -> dict[str, Any]:
        """Return the set-points, read once, with checked values put in; what changed in place is checked again."""
        self._follow_sources(checked)
        setpoints, kept = self._setpoints, self._checked
        now = marks(setpoints.values())
        if kept is None or kept[0] is not setpoints:
            self._checked = setpoints, now
        elif kept[1] != now:
            changed = [name for name, old, new in zip(setpoints, kept[1], now, strict=True) if old != new]
            for name in changed:
                if name not in checked:
                    self._checked_input(name, setpoints[name])
            if checked.keys().isdisjoint(changed):
                self._checked = setpoints, now
        return {**setpoints, **checked} if checked else setpoints

    def _source(self, given: Any, checked: Any) -> tuple[Any, Any] | None:
        """Return what a set-point was converted from, if that can be changed in place by an optimiser, and its mark."""
        if checked is given or not any(tensor.requires_grad for tensor in tensors_in(given)):
            return None
        return given, mark(given)

    def _follow_sources(self, replaced: Container[str] = ()) -> None:
        """Convert again what was converted, from single precision say, out of tensors that have changed in place."""
        if all(mark(given) == seen for given, seen in self._sources.values()):
            return
        with self._lock:
            fresh = {}
            for name, (given, seen) in self._sources.items():
                if name not in replaced and mark(given) != seen:
                    fresh[name] = owned(self._checked_input(name, given), given)
                    self._sources = {**self._sources, name: (given, mark(given))}
            self._setpoints = {**self._setpoints, **fresh}

    def _shown(self, inputs: Mapping[str, Any], names: Iterable[str]) -> dict[str, Any]:
        """Return set-points as a reader gets them: without a graph as copies, kept while nobody writes to them."""
        if in_transform() or torch.is_inference_mode_enabled():
            return {name: copied(inputs[name]) for name in names}
        found = {}
        for name in names:
            value = inputs[name]
            if isinstance(value, torch.Tensor) and not value.requires_grad:
                kept = self._copies.get(name)
                if kept is None or kept[0] is not value or kept[1]._version or kept[1].requires_grad:
                    kept = self._copies[name] = value, value.clone()
                value = kept[1]
            found[name] = value
        return found

    # -- listeners -------------------------------------------------------------------------------------------

    def on_write(self, notice: Callable[[], None]) -> Callable[[], None]:
        """Call a function after every ``set``, ``restore`` and ``reset`` that has worked, in the writer's thread.

        Args:
            notice: must be quick and must not use the model: the writer still holds its lock.

        Returns:
            What ends it; a copy of the model has no listeners.
        """
        self._listeners = [*self._listeners, notice]

        def forget() -> None:
            self._listeners = [other for other in self._listeners if other is not notice]

        return forget

    def _tell_listeners(self) -> None:
        for notice in self._listeners:
            notice()

    # -- life cycle ------------------------------------------------------------------------------------------

    def baseline(self, name: str) -> Any:
        """Return what ``reset`` would bring an input back to, without its graph.

        Raises:
            UnknownVariableError: for a name that is no input.
        """
        if name not in self._baseline:
            raise unknown_variable(name, self._input_names, f"the inputs of {self._title()}")
        value = self._baseline[name]
        return value if value is None else without_graph(copied(value))

    def make_baseline(self) -> None:
        """Let ``reset`` go back to the present set-points from now on, also after ``refresh``."""
        with self._lock:
            self._follow_sources()
            baseline = self._baseline
            moved = {n: without_graph(copied(v)) for n, v in self._setpoints.items() if v is not baseline[n]}
            self._baseline = {**baseline, **moved}
            self._rebased |= moved.keys()

    def snapshot(self) -> dict[str, Any]:
        """Return the set-points as plain numbers, lists and strings, fit for YAML.

        Bunches are written in full only where they are not the baseline's.
        """
        self._follow_sources()
        setpoints, baseline = self._setpoints, self._baseline
        return {
            name: to_plain(value)
            for name, value in setpoints.items()
            if value is not None and (isinstance(value, (torch.Tensor, str)) or value is not baseline[name])
        }

    def detach_(self) -> Self:
        """Cut the set-points from their graphs, in place; the model's own parameters stay."""
        with self._lock:
            self._follow_sources()
            self._setpoints = {
                name: value
                if isinstance(value, nn.Parameter) and value is self._baseline[name]
                else without_graph(value)
                for name, value in self._setpoints.items()
            }
            self._evaluation = self._checked = None
            self._sources = {}
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """Carry ``.to()``, ``.double()``, ``.cuda()`` to the values too."""
        super()._apply(fn, recurse)
        with self._lock:
            probe = fn(torch.zeros((), dtype=self.dtype, device=self.device))
            self.dtype, self.device = probe.dtype, probe.device
            values = (*self._setpoints.values(), *self._baseline.values())
            moved = {id(value): map_tensors(fn, value) for value in values}  # what was one object stays one
            self._setpoints = {name: moved[id(value)] for name, value in self._setpoints.items()}
            self._baseline = {name: moved[id(value)] for name, value in self._baseline.items()}
            self._evaluation = self._checked = None
        return self

    def __getstate__(self) -> dict[str, Any]:
        with self._lock:
            self._follow_sources()
            state = dict(self.__dict__)
        del state["_lock"]
        state.update(_evaluation=None, _checked=None, _copies={}, _sources={}, _listeners=[])
        state["_setpoints"], state["_baseline"] = detached(state["_setpoints"], state["_baseline"])
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._lock = threading.RLock()

    def __repr__(self) -> str:
        graph = any(t.requires_grad for value in self._setpoints.values() for t in tensors_in(value))
        return (
            f"{self._title()}({len(self._input_names)} inputs, {len(self._output_names)} outputs, "
            f"{str(self.dtype).removeprefix('torch.')}, {self.device}{', with graph' if graph else ''})"
        )
