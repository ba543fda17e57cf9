"""FacilityModel: any model under the names and in the units of a control system."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch

from lume_diff.models.base import LUMEModel
from lume_diff.models.cost import DerivativeCost, Question
from lume_diff.models.evaluation import Evaluation, check_batches, guarded
from lume_diff.models.facility.assembly import Assembly
from lume_diff.models.facility.inputs import Natives
from lume_diff.models.facility.mapping import FacilityMapping
from lume_diff.models.facility.reader import Reader
from lume_diff.models.facility.state import FacilityState
from lume_diff.models.facility.templates import as_mapping
from lume_diff.models.report import GradientReport
from lume_diff.models.stage_state import is_equal, settled
from lume_diff.models.transforms import graph_mode, in_transform, marks, owned
from lume_diff.variables import Variable


class FacilityModel(LUMEModel):
    """Show a model by a facility's names and in its units, with the gradient passing through every conversion.

    Setpoints are the facility's state: where a conversion goes by the energy at its element, a cavity upstream changes
    the strengths behind it at constant field. An inserted screen ends the beam: what lies behind shows NaN, images are
    0, a bunch is dead, unless the mapping says otherwise; the same holds for a screen that is out.

    The facility starts from the set-points that the model has, and keeps its own from then on. Inputs of the model that
    the mapping does not name stay where the model has them; call ``refresh()`` after changing those.

    Args:
        model: any model; it is used, not copied.
        mapping: a ``FacilityMapping``, or the same as plain data.
        folder: that the mapping's files are relative to; None for the current one.
        validation: see ``LUMEModel``.

    Raises:
        MappingError: with everything that is wrong: names that the model does not have, doubled ones, conversions that
            are not strictly monotone or have no energy, units that do not fit, limits that the model is outside of.

    Gradient:
        That of the model; conversions are exact.

    Example:
        >>> import torch
        >>> from lume_diff.models import TorchModel
        >>> from lume_diff.variables import TorchScalarVariable
        >>> angle = TorchScalarVariable(name="C1.angle", unit="rad", default_value=0.0)
        >>> orbit = TorchScalarVariable(name="B1.x", unit="m")
        >>> model = TorchModel(lambda x: 2.0 * x, [angle], [orbit])
        >>> field = {"kind": "corrector_field"}
        >>> bctrl = {"kind": "setpoint", "native": "C1.angle", "unit": "kG*m", "conversion": field}
        >>> reading = {"kind": "reading", "native": "B1.x", "unit": "mm"}
        >>> names = {"XCOR:1:BCTRL": bctrl, "BPMS:1:X": reading}
        >>> energy = {"kind": "constant", "value": 1e8}
        >>> facility = FacilityModel(model, {"variables": names, "energy": energy})
        >>> facility.set({"XCOR:1:BCTRL": 0.01})
        >>> round(float(facility.get("BPMS:1:X")), 3)
        5.996
    """

    def __init__(
        self,
        model: LUMEModel,
        mapping: FacilityMapping | Mapping[str, Any],
        *,
        folder: Path | str | None = None,
        validation: Mapping[str, str] | None = None,
    ) -> None:
        mapping = as_mapping(mapping)
        assembly = Assembly(model, mapping, folder)
        plan = assembly.input_plan(model)
        starts = {name: value for name, value in assembly.starts(model, plan).items() if value is not None}
        super().__init__(
            assembly.variables.values(), initial=starts, dtype=model.dtype, device=model.device, validation=validation
        )
        self.model = model
        self.mapping = mapping
        self._assembly = assembly
        self._inputs, self._outputs = plan, assembly.output_plan(model)
        self._rest: Natives | None = None
        self._on_request = self._found_on_request()

    def _found_on_request(self) -> frozenset[str]:
        """Return the outputs that show what the model computes only on request."""
        asked = self.model._on_request
        return frozenset(
            name
            for name in self._output_names
            if any(self._outputs.shown[shown].native in asked for shown in self._outputs.readings([name]))
        )

    def describe(self, variables: Iterable[Variable]) -> None:
        """Describe variables anew, see ``LUMEModel``; outputs that show their limits follow."""
        fresh = self._assembly.with_limits({variable.name: variable for variable in variables})
        with self._lock:
            super().describe(fresh.values())
            self._assembly.describe(fresh)
            self._outputs = self._assembly.output_plan(self.model)

    # -- evaluation ----------------------------------------------------------------------------------------------------

    def _merged(self, checked: Mapping[str, Any]) -> dict[str, Any]:
        """Return set-points with checked values put in; an equal number stays the same object, and is not converted."""
        return super()._merged(settled(checked, self._setpoints))

    def _run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> FacilityState:
        raise NotImplementedError("a facility runs the model inside in _evaluate")

    def _evaluate(
        self,
        inputs: dict[str, Any],
        outputs: Sequence[str],
        previous: Evaluation | None,
        share_graphs: bool = True,
    ) -> Evaluation:
        before = marks(inputs.values()) if share_graphs else ()
        state = guarded(self, inputs, self._state, inputs, previous, share_graphs)
        wanted = self._outputs.natives(outputs, inputs)
        if wanted:
            self._inner(state, wanted)
        return Evaluation(self, inputs, state, before, share_graphs, outputs)

    def _state(self, inputs: Mapping[str, Any], previous: Evaluation | None, share_graphs: bool) -> FacilityState:
        natives = self._natives(inputs, previous, share_graphs)
        earlier = None if previous is None else previous.state.inner or previous.state.earlier
        return FacilityState(natives, self.model._merged(natives.values), earlier, share_graphs)

    def _natives(self, inputs: Mapping[str, Any], previous: Evaluation | None, share_graphs: bool) -> Natives:
        """Return the native inputs; what does not change stays the same object."""
        rest = self._resting()
        if previous is None or previous.state.natives.mode != graph_mode():
            return self._inputs.compute(self.model, inputs, rest, rest)
        can_share = share_graphs and not previous.freed
        return self._inputs.compute(self.model, inputs, previous.state.natives, rest, can_share)

    def _resting(self) -> Natives:
        """Return the native inputs at the baseline: the model's own objects wherever the conversion gives them back."""
        rest = self._rest
        if rest is None:
            with torch.inference_mode(False), torch.no_grad():
                rest = self._inputs.compute(self.model, self._baseline, None, settle=self._settled)
            if not in_transform():
                self._rest = rest
        return rest

    def _settled(self, native: str, value: Any) -> Any:
        now = self.model._setpoints[native]
        if not (isinstance(now, torch.Tensor) and isinstance(value, torch.Tensor) and now.shape == value.shape):
            return value
        if not now.is_floating_point() or now.dtype != value.dtype:
            return now if is_equal(now, value) else value
        close = (value - now).abs() <= 64.0 * torch.finfo(now.dtype).eps * now.abs()
        return now if bool(close.all()) else value

    def _inner(self, state: FacilityState, wanted: Sequence[str]) -> Evaluation:
        """Return the evaluation of the model inside, made now if nothing has needed it yet."""
        if state.inner is None:
            before, share = state.earlier, state.share_graphs
            if (
                before is None
                or not (share or not before.needs_graph)
                or not before.holds(self.model, state.values, wanted)
            ):
                check_batches(self.model._variables, state.values)
                before = self.model._evaluate(dict(state.values), wanted, before, share)
            state.inner, state.earlier = before, None
        return state.inner

    def _take(self, evaluation: Evaluation, names: Sequence[str]) -> dict[str, Any]:
        state: FacilityState = evaluation.state

        def take(wanted: list[str]) -> Mapping[str, Any]:
            return self._inner(state, wanted).read(self.model, wanted) if wanted else {}

        def batch() -> tuple[int, ...]:
            return check_batches(self._variables, evaluation.inputs)

        like = torch.empty((), dtype=self.dtype, device=self.device)
        reader = Reader(self._outputs, evaluation.inputs, state.natives, state.values, take, batch, like)
        found: dict[str, Any] = guarded(self, evaluation.inputs, reader.read, names)
        return found

    def _checked_outputs(self, values: Mapping[str, Any], names: Sequence[str], inputs: Any) -> dict[str, Any]:
        """Judge what sees the beam; what does not shows what the mapping says, NaN for instance."""
        dark = self._outputs.in_the_dark(names, inputs)
        judged = super()._checked_outputs(values, [name for name in names if name not in dark], inputs)
        return {**judged, **{name: values[name] for name in dark}}

    # -- what it cost, and the rest ------------------------------------------------------------------------------------

    def _derivative_cost(self, question: Question) -> DerivativeCost:
        """Return what the model inside takes, asked by its own names."""
        known = {name: value for name, value in question.values.items() if value is not None}
        inputs = {**self._setpoints, **known}
        state = self._state(inputs, None, share_graphs=False)
        plan, reach = self._inputs, question.reach
        by_energy = frozenset().union(*(reach.get(name, frozenset()) for name in plan.energy_names()))
        native_reach = {}
        for native in plan.natives:
            parts = [reach.get(name, frozenset()) for name in plan.names_of(native)]
            found = frozenset().union(*parts, by_energy if native in plan.live else frozenset())
            if found:
                native_reach[native] = found
        outputs = self._outputs.natives(question.outputs, inputs)
        earlier = None if question.earlier is None else question.earlier.state.inner
        return self.model._derivative_cost(Question(state.values, native_reach, outputs, question.batch, earlier))

    @property
    def runs(self) -> int:
        """How many times the simulation inside has run."""
        return self.model.runs

    def gradient_report(self) -> GradientReport:
        """Return what the model inside knows of its derivatives, by its own names, and what the last Jacobian cost."""
        inner = self.model.gradient_report()
        self._report.entries, self._report.notes = list(inner.entries), list(inner.notes)
        return self._report

    def reference_energy(self, inputs: Mapping[str, Any] | None, elements: Sequence[str]) -> dict[str, torch.Tensor]:
        """Return the reference energy [eV] at the entrance of elements, by the model's names, without tracking.

        Raises:
            UnknownVariableError: if the model inside does not have them.
        """
        checked = self._merged(self._checked_inputs({} if inputs is None else inputs))
        values = self._natives(checked, None, share_graphs=False).values
        return self.model.reference_energy(values, elements)

    @property
    def simulator(self) -> Any:
        """The native object of the model inside; call ``refresh()`` after changing it."""
        return self.model.simulator

    def refresh(self) -> None:
        """Read again what was changed on the model inside, or its native object; setpoints that were not set follow.

        A baseline that ``make_baseline`` has made stays.
        """
        self.model.refresh()
        with self._lock:
            self._replan()
            fresh = self._assembly.starts(self.model, self._inputs)
            old = self._baseline
            baseline = {}
            for name, value in fresh.items():
                checked = None if value is None else owned(self._checked_input(name, value), value)
                stays = name in self._rebased or is_equal(old[name], checked)
                baseline[name] = old[name] if stays else checked
            self._setpoints = {n: baseline[n] if v is old[n] else v for n, v in self._setpoints.items()}
            self._baseline = {name: baseline[name] for name in old}
            self._evaluation = self._checked = None

    def _replan(self) -> None:
        self._inputs = self._assembly.input_plan(self.model)
        self._outputs = self._assembly.output_plan(self.model)
        self._rest = None

    def _reset_simulator(self) -> None:
        self.model._reset_simulator()

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        with self._lock:
            self._replan()
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_rest": None}
