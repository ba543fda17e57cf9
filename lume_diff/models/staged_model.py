"""StagedModel: models in a row, with the gradient passing through every border."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Self, cast

import torch

from lume_diff.errors import UnknownVariableError, ValidationError, nearest_names, unknown_variable
from lume_diff.models.base import LUMEModel
from lume_diff.models.cost import DerivativeCost, Question
from lume_diff.models.evaluation import Evaluation, check_batches
from lume_diff.models.report import GradientReport
from lume_diff.models.stage_names import Owner, chain_variables, check_stages, join, link_factor
from lume_diff.models.stage_state import StagedState, in_stage, settled
from lume_diff.models.transforms import in_transform
from lume_diff.variables import MomentsVariable, ParticleGroupVariable


class StagedModel(LUMEModel):
    """Chain models: each stage hands its ``final_particles`` to the next, and gradients come back the same way.

    The chain is a ``LUMEModel`` with the variables of its stages, and can be a stage itself. Bare ``initial_*``
    means the first stage and bare ``final*`` the last; any other name that two stages share is
    ``"<stage>/<name>"``. The chain starts from the set-points that the stages have and keeps its own from then on.

    Every stage keeps its own reference energy and time, so build it from the bunch that reaches it:
    ``CheetahModel(linac, injector.get("final_particles"))``.

    Only stages whose inputs or parameters changed run, and those downstream of them; writing a number that is there
    already changes nothing. Values read after two writes share the graph of a stage that stayed the same, so that
    backward passes through both need ``retain_graph``, or one sum.

    Args:
        stages: models in the order of the beam; a dictionary names them, a list calls them ``stage0, stage1, ...``.
        links: further values to hand over, ``{"stage/input": "stage/output"}``; by default ``final_particles`` goes
            to ``initial_particles`` of the next stage, or ``final_moments`` to ``initial_moments``. What is handed over
            is converted to the taker's unit and dtype, and checked as if it were written.
        validation: see ``LUMEModel``; for outputs it comes on top of what their stage does.

    Raises:
        ValidationError: for no stages, a stage that hands nothing over, one model in two stages, a stage name with a
            slash, or a link between values of different kinds.
        UnknownVariableError: for a link to something that is not there.
        UnitError: for a link between units of different dimensions.

    Gradient:
        That of the stages, by the chain rule.

    Example:
        >>> from lume_diff.models import BunchFromMoments, TorchModel
        >>> from lume_diff.variables import TorchScalarVariable
        >>> phase = TorchScalarVariable(name="phase", default_value=0.1)
        >>> energy = TorchScalarVariable(name="energy", unit="MeV")
        >>> gun = TorchModel(lambda x: 100.0 * x.cos(), [phase], [energy])
        >>> twiss = dict(norm_emit_x=1e-6, norm_emit_y=1e-6, beta_x=10.0, beta_y=5.0)
        >>> bunch = BunchFromMoments(100, mean_energy=1e8, charge=1e-10, **twiss)
        >>> line = StagedModel({"gun": gun, "bunch": bunch}, {"bunch/mean_energy": "gun/energy"})
        >>> line.get("final_particles")["mean_energy"]
        tensor(99500416.5278, dtype=torch.float64)
    """

    def __init__(
        self,
        stages: Mapping[str, LUMEModel] | Sequence[LUMEModel],
        links: Mapping[str, str] | None = None,
        *,
        validation: Mapping[str, str] | None = None,
    ) -> None:
        named = dict(stages) if isinstance(stages, Mapping) else {f"stage{i}": s for i, s in enumerate(stages)}
        self._build(named, dict(links or {}), validation)

    def _build(self, stages: dict[str, LUMEModel], links: dict[str, str], validation: Mapping[str, str] | None) -> None:
        check_stages(stages)
        joined = join(stages, links)
        variables, owners = chain_variables(stages, joined)
        lead = next(iter(stages.values()))
        super().__init__(variables.values(), dtype=lead.dtype, device=lead.device, validation=validation)
        self._links, self._joined, self._owners = links, joined, owners
        self._known = {name: stage._variables for name, stage in stages.items()}
        self._homes: dict[str, Owner] = {}
        self._on_request = frozenset(n for n, owner in owners.items() if owner.name in stages[owner.stage]._on_request)
        self._stage_keys = {}
        for index, (name, stage) in enumerate(stages.items()):
            key = f"stage{index}_" + re.sub(r"\W", "_", name)
            self.add_module(key, stage)
            self._stage_keys[name] = key
        self._setpoints = self._of_stages("_setpoints")
        self._baseline = self._of_stages("_baseline")

    def _first_values(self, initial: Mapping[str, Any]) -> dict[str, Any]:
        # The stages' own objects are taken later, so that a stage sees which of its inputs stand at its baseline.
        return {}

    def _of_stages(self, table: str) -> dict[str, Any]:
        stages = self.stages
        owned = {shown: self._owners[shown] for shown in self._input_names}
        return {shown: getattr(stages[owner.stage], table)[owner.name] for shown, owner in owned.items()}

    def _follow_baseline(self) -> None:
        """Take over the stages' baselines, but for those of the chain's own; set-points that stood there follow."""
        old = self._baseline
        self._baseline = {n: old[n] if n in self._rebased else v for n, v in self._of_stages("_baseline").items()}
        self._setpoints = {n: self._baseline[n] if v is old[n] else v for n, v in self._setpoints.items()}
        self._evaluation = self._checked = None

    @property
    def stages(self) -> Mapping[str, LUMEModel]:
        """The stages by name, in the order of the beam."""
        return MappingProxyType({name: self._stage(name) for name in self._stage_keys})

    @property
    def links(self) -> dict[str, str]:
        """What is handed over besides the beam, as it was given."""
        return dict(self._links)

    def _stage(self, name: str) -> LUMEModel:
        return cast(LUMEModel, self._modules[self._stage_keys[name]])

    def replace(self, stage: str, model: LUMEModel) -> None:
        """Put another model in the place of a stage, all or nothing.

        The other stages keep their set-points and their runs; the new one brings its own set-points. Not to be called
        while other threads read the chain.

        Args:
            stage: its name.
            model: what takes its place, under the same name.

        Raises:
            UnknownVariableError: if there is no such stage, or a link needs what the new model does not have.
            ValidationError: if the new model cannot take or hand over what its neighbours need.
        """
        with self._lock:
            stages = dict(self.stages)
            if stage not in stages:
                raise UnknownVariableError(f"{stage!r} is not a stage of this chain{nearest_names(stage, stages)}")
            if model is stages[stage] and model._variables is self._known[stage]:
                return
            fresh = StagedModel.__new__(StagedModel)
            fresh._build({**stages, stage: model}, self._links, None)
            now = {owner: name for name, owner in fresh._owners.items() if owner.stage != stage}
            kept = {name: now[owner] for name, owner in self._owners.items() if owner in now}
            fresh._validation = {kept[name]: how for name, how in self._validation.items() if name in kept}
            fresh._unlimited = fresh._unlimited.difference(fresh._validation)
            fresh._rebased = frozenset(kept[name] for name in self._rebased if name in kept)
            fresh._baseline |= {kept[name]: self._baseline[name] for name in self._rebased if name in kept}
            fresh._setpoints |= {kept[name]: value for name, value in self._setpoints.items() if name in kept}
            fresh._sources = {kept[name]: source for name, source in self._sources.items() if name in kept}
            fresh._runs = self._runs + stages[stage].runs - model.runs
            if self._evaluation is not None:
                state = StagedState(fresh._setpoints, self._evaluation.state, True)
                state.earlier.pop(stage, None)
                fresh._evaluation = Evaluation(fresh, {}, state)  # holds for no inputs; its parts may be used again
            old = self._stage_keys.values()
            fresh._modules.update({key: child for key, child in self._modules.items() if key not in old})
            self.__dict__.update({name: fresh.__dict__[name] for name in _REPLACED})

    # -- evaluation ------------------------------------------------------------------------------------------

    def _where(self, name: str) -> tuple[torch.dtype, torch.device]:
        owner = self._owners[name]
        return self._stage(owner.stage)._where(owner.name)

    def _policy(self, name: str) -> str | None:
        owner = self._owners[name]
        return self._validation.get(name) or self._stage(owner.stage)._policy(owner.name)

    def _merged(self, checked: Mapping[str, Any]) -> dict[str, Any]:
        """Return set-points with checked values put in; an equal number stays the same object, its stage at rest."""
        return super()._merged(settled(checked, self._setpoints))

    def _run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> StagedState:
        raise NotImplementedError("a chain runs its stages in _evaluate")

    def _evaluate(
        self,
        inputs: dict[str, Any],
        outputs: Sequence[str],
        previous: Evaluation | None,
        share_graphs: bool = True,
    ) -> Evaluation:
        state = StagedState(inputs, None if previous is None else previous.state, share_graphs)
        evaluation = Evaluation(self, inputs, state, lasting=share_graphs)
        self._complete(state, outputs)
        return evaluation

    def _complete(self, state: StagedState, outputs: Sequence[str]) -> None:
        """Evaluate the stages that the outputs need, each only if its inputs changed."""
        for name, wanted in self._wanted_by_stage(outputs).items():
            if name in state:
                continue
            stage, share = self._stage(name), state.share_graphs
            if stage._variables is not self._known[name]:
                raise ValidationError(
                    f"the variables of stage {name!r} have changed since the chain was built (a stage of its own was "
                    f"replaced?): tell the chain by replace({name!r}, stages[{name!r}])"
                )
            values = self._stage_inputs(state, name)
            before = state.earlier.pop(name, None)
            if before is not None and (share or not before.needs_graph) and before.holds(stage, values, wanted):
                state[name] = before
                continue
            with in_stage(name):
                check_batches(stage._variables, values)
                state[name] = stage._evaluate(values, wanted, before, share)

    def _wanted_by_stage(self, outputs: Sequence[str]) -> dict[str, list[str]]:
        """Return which outputs of which stages it takes, hand-overs included, in the order of the beam."""
        wanted: dict[str, list[str]] = {}
        for shown in outputs:
            owner = self._owners[shown]
            wanted.setdefault(owner.stage, []).append(owner.name)
        for name in reversed(list(self._stage_keys)):
            if name not in wanted:
                continue
            for taker, giver in self._joined.items():
                if taker.stage == name and giver.name not in wanted.setdefault(giver.stage, []):
                    wanted[giver.stage].append(giver.name)
        return {name: wanted[name] for name in self._stage_keys if name in wanted}

    def _stage_inputs(self, state: StagedState, name: str) -> dict[str, Any]:
        """Return the inputs of one stage: what belongs to it, and what earlier stages hand over."""
        values: dict[str, Any] = dict.fromkeys(self._stage(name)._input_names)
        for shown, value in state.inputs.items():
            owner = self._owners[shown]
            if owner.stage == name:
                values[owner.name] = value
        for taker, giver in self._joined.items():
            if taker.stage == name:
                values[taker.name] = self._handed_over(state[giver.stage], giver, taker)
        return values

    def _handed_over(self, evaluation: Evaluation, giver: Owner, taker: Owner) -> Any:
        """Return an output of one stage as a later one takes it, converted and checked once."""
        if (giver, taker) in evaluation.memo:
            return evaluation.memo[giver, taker]
        source, target = self._stage(giver.stage), self._stage(taker.stage)
        with in_stage(giver.stage):
            value = evaluation.read(source, (giver.name,))[giver.name]
        factor = link_factor(source._variables[giver.name], target._variables[taker.name])
        with in_stage(taker.stage):
            value = target._checked_input(taker.name, value if factor == 1.0 else value * factor)
        if evaluation.lasting and not in_transform():
            evaluation.memo[giver, taker] = value
        return value

    def _take(self, evaluation: Evaluation, names: Sequence[str]) -> dict[str, Any]:
        state: StagedState = evaluation.state
        self._complete(state, names)
        found = {}
        for shown in names:
            owner = self._owners[shown]
            with in_stage(owner.stage):
                found[shown] = state[owner.stage].read(self._stage(owner.stage), (owner.name,))[owner.name]
        return found

    def _checked_outputs(self, values: Mapping[str, Any], names: Sequence[str], inputs: Any) -> dict[str, Any]:
        """Judge by the chain's own policies; the stages have looked at everything already."""
        judged = [name for name in names if name in self._validation]
        return {**values, **super()._checked_outputs(values, judged, inputs)}

    # -- what it cost, and the rest --------------------------------------------------------------------------

    def _derivative_cost(self, question: Question) -> DerivativeCost:
        """Add up what the stages take: those that the derivative reaches, and those that something else has moved."""
        earlier = question.earlier
        kept = {} if earlier is None else StagedState({}, earlier.state, False).earlier
        total, asked = DerivativeCost(), dict[str, Question]()
        for name, outputs in self._wanted_by_stage(question.outputs).items():
            stage = self._stage(name)
            own = {shown: owner.name for shown, owner in self._owners.items() if owner.stage == name}
            values = {own[shown]: value for shown, value in question.values.items() if shown in own}
            reach = {own[shown]: parts for shown, parts in question.reach.items() if shown in own}
            givers = {taker.name: giver.stage for taker, giver in self._joined.items() if taker.stage == name}
            reach |= {name: asked[giver].components for name, giver in givers.items() if giver in asked}
            reach = {name: parts for name, parts in reach.items() if parts}
            rests = name in kept and all(kept[name].inputs[n] is value for n, value in values.items())
            if rests and not reach and asked.keys().isdisjoint(givers.values()):
                continue
            batches = [asked[giver].batch for giver in givers.values() if giver in asked]
            batches += [check_batches(stage._variables, values), question.batch if reach else ()]
            batch = tuple(torch.broadcast_shapes(*batches))
            asked[name] = Question(values, reach, outputs, batch, kept.get(name))
            total += stage._derivative_cost(asked[name])
        return total

    @property
    def runs(self) -> int:
        """How many times the simulations of all stages have run; ``stages[name].runs`` tells each."""
        return self._runs + sum(stage.runs for stage in self.stages.values())

    def gradient_report(self) -> GradientReport:
        """Return the derivatives known in all stages, by the chain's names, and what its last Jacobian cost."""
        shown = {owner: name for name, owner in self._owners.items()}
        entries, notes = [], []
        for name, stage in self.stages.items():
            report = stage.gradient_report()
            for entry in report.entries:
                ends = (Owner(name, entry.output), Owner(name, entry.input))
                output, input = (shown.get(end, str(end)) for end in ends)
                entries.append(replace(entry, output=output, input=input))
            notes += [f"{name}: {note}" for note in report.notes]
        self._report.entries, self._report.notes = entries, notes
        return self._report

    def reference_energy(self, inputs: Mapping[str, Any] | None, elements: Sequence[str]) -> dict[str, torch.Tensor]:
        """Return the reference energy [eV] at the entrance of elements, ``"<stage>/<element>"`` or the bare name.

        A bare name means the first stage that has such an element. Nothing is tracked, except where a link gives a
        stage its reference.

        Raises:
            UnknownVariableError: if no stage has the element.
        """
        state = StagedState(self._merged(self._checked_inputs({} if inputs is None else inputs)), None, False)
        given: dict[str, dict[str, Any]] = {}

        def energies(name: str, own: list[str]) -> dict[str, torch.Tensor]:
            if name not in given:
                given[name] = self._scalar_inputs(state, name)
            return self._stage(name).reference_energy(given[name], own)

        for element in elements:
            if element not in self._homes:
                self._homes[element] = self._home_of(element, energies)
        found: dict[str, torch.Tensor] = {}
        for name in self.stages:
            own = {element: self._homes[element].name for element in elements if self._homes[element].stage == name}
            values = energies(name, list(dict.fromkeys(own.values()))) if own else {}
            found |= {element: values[bare] for element, bare in own.items()}
        return {element: found[element] for element in elements}

    def _home_of(self, element: str, energies: Callable[[str, list[str]], Any]) -> Owner:
        """Return the stage that has an element, and the element's name there."""
        stage, separator, rest = element.partition("/")
        is_qualified = bool(separator) and stage in self.stages
        for name in [stage] if is_qualified else list(self.stages):
            own = Owner(name, rest if is_qualified else element)
            with suppress(UnknownVariableError):
                energies(name, [own.name])
                return own
        raise unknown_variable(element, (), "any stage with beamline elements")

    def _scalar_inputs(self, state: StagedState, name: str) -> dict[str, Any]:
        """Return the inputs of a stage except the beam that it is handed."""
        stage = self._stage(name)
        own = {shown: owner.name for shown, owner in self._owners.items() if owner.stage == name}
        values = {own[shown]: value for shown, value in state.inputs.items() if shown in own}
        for taker, giver in self._joined.items():
            if taker.stage == name and not isinstance(stage._variables[taker.name], _BEAMS):
                self._complete(state, [shown for shown, owner in self._owners.items() if owner == giver])
                values[taker.name] = self._handed_over(state[giver.stage], giver, taker)
        return {key: value for key, value in values.items() if value is not None}

    @property
    def simulator(self) -> Mapping[str, Any]:
        """The native objects of the stages by name; call ``refresh()`` after changing one."""
        return MappingProxyType({name: stage.simulator for name, stage in self.stages.items()})

    def refresh(self) -> None:
        """Read again what was changed on the native objects of all stages.

        A baseline that ``make_baseline`` has made stays.
        """
        with self._lock:
            for stage in self.stages.values():
                stage.refresh()
            self._follow_baseline()

    def _reset_simulator(self) -> None:
        for stage in self.stages.values():
            stage._reset_simulator()

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        with self._lock:
            self._follow_baseline()
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._follow_baseline()


#: What ``replace`` changes: everything that follows from the stages.
_REPLACED = (
    *("_variables", "_input_names", "_output_names", "_unlimited", "_validation", "dtype", "device"),
    *("_baseline", "_rebased", "_setpoints", "_evaluation", "_checked", "_copies", "_sources", "_runs"),
    *("_joined", "_owners", "_known", "_on_request", "_homes", "_stage_keys", "_modules"),
)
_BEAMS = (ParticleGroupVariable, MomentsVariable)
