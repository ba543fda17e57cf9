"""StagedModel: models in a row, with the gradient passing through every border."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch

from lume_diff.errors import LumeDiffError, UnknownVariableError, ValidationError, nearest_names, unknown_variable
from lume_diff.models.base import LUMEModel
from lume_diff.models.evaluation import Evaluation
from lume_diff.models.report import GradientReport
from lume_diff.models.stage_names import Owner, chain_variables, default_links, explicit_links
from lume_diff.models.transforms import map_tensors, tensors_in


class StagedModel(LUMEModel):
    """Chain models: each stage hands its ``final_particles`` to the next, and gradients come back the same way.

    The chain is a ``LUMEModel`` with the variables of its stages, and can be a stage itself. Bare ``initial_*``
    means the first stage and bare ``final*`` the last; any other name that two stages share is
    ``"<stage>/<name>"``. A write re-runs the stages that it changes and those downstream, no others.

    Args:
        stages: models in the order of the beam; a dictionary names them, a list calls them ``stage0, stage1, ...``.
        links: further values to hand over, ``{"stage/input": "stage/output"}``; by default ``final_particles`` goes
            to ``initial_particles`` of the next stage, or ``final_moments`` to ``initial_moments``.
        validation: see ``LUMEModel``.

    Raises:
        ValidationError: for no stages, a stage that hands nothing over, or a stage name with a slash.

    Gradient:
        That of the stages, by the chain rule.

    Example:
        >>> line = StagedModel({"injector": injector, "linac": linac})  # doctest: +SKIP
        >>> line({"Q1.k1": k})["SCR1.image"].square().sum().backward()  # doctest: +SKIP
    """

    def __init__(
        self,
        stages: Mapping[str, LUMEModel] | Sequence[LUMEModel],
        links: Mapping[str, str] | None = None,
        *,
        validation: Mapping[str, str] | None = None,
    ) -> None:
        named = dict(stages) if isinstance(stages, Mapping) else {f"stage{i}": s for i, s in enumerate(stages)}
        _check_stages(named)
        self._build(named, dict(links or {}), validation)

    def _build(
        self, stages: dict[str, LUMEModel], links: dict[str, str], validation: Mapping[str, str] | None
    ) -> None:
        joined = {**default_links(stages), **explicit_links(stages, links)}
        _check_joined(stages, joined)
        variables, owners = chain_variables(stages, joined)
        initial = {}
        for shown, owner in owners.items():
            if owner.name in stages[owner.stage].input_names:
                initial[shown] = stages[owner.stage].get(owner.name)
        lead = next(iter(stages.values()))
        super().__init__(
            variables.values(), initial=initial, dtype=lead.dtype, device=lead.device, validation=validation
        )
        self._links, self._joined, self._owners = links, joined, owners
        self._stage_keys = {}
        for index, (name, stage) in enumerate(stages.items()):
            key = f"stage{index}_" + re.sub(r"\W", "_", name)
            self.add_module(key, stage)
            self._stage_keys[name] = key
        for name, variable in variables.items():
            owner = owners[name]
            if not variable.read_only:
                self._baseline[name] = stages[owner.stage]._baseline[owner.name]

    @property
    def stages(self) -> Mapping[str, LUMEModel]:
        """The stages by name, in the order of the beam."""
        return MappingProxyType({name: self._modules[key] for name, key in self._stage_keys.items()})

    def replace(self, stage: str, model: LUMEModel) -> None:
        """Put another model in the place of a stage, all or nothing.

        Set-points of variables that stay keep their values.

        Raises:
            UnknownVariableError: if there is no such stage.
            ValidationError: if the new model cannot take or hand over what its neighbours need.
        """
        with self._lock:
            stages = dict(self.stages)
            if stage not in stages:
                raise UnknownVariableError(f"{stage!r} is not a stage of this chain{nearest_names(stage, stages)}")
            stages[stage] = model
            fresh = StagedModel.__new__(StagedModel)
            fresh._build(stages, self._links, None)
            kept = {
                name: value
                for name, value in self._setpoints.items()
                if name in fresh._setpoints and self._owners[name].stage != stage
            }
            fresh._setpoints.update(kept)
            fresh._validation = {name: how for name, how in self._validation.items() if name in fresh._variables}
            lock, runs = self._lock, self.runs - sum(s.runs for s in stages.values())
            self.__dict__.clear()
            self.__dict__.update(fresh.__dict__)
            self._lock, self._runs = lock, runs

    # -- evaluation ------------------------------------------------------------------------------------------

    def _run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> StagedState:
        return self._run_stages(inputs, outputs, None, share_graphs=False)

    def _evaluate(
        self,
        inputs: dict[str, Any],
        outputs: Sequence[str],
        previous: Evaluation | None,
        share_graphs: bool = True,
    ) -> Evaluation:
        old = previous.state if previous is not None else None
        return Evaluation(self, inputs, self._run_stages(inputs, outputs, old, share_graphs))

    def _run_stages(
        self, inputs: Mapping[str, Any], outputs: Sequence[str], old: StagedState | None, share_graphs: bool
    ) -> StagedState:
        """Evaluate the stages that the outputs need, each only if its inputs changed."""
        stages = self.stages
        wanted = self._wanted_by_stage(outputs)
        own_inputs: dict[str, dict[str, Any]] = {name: {} for name in stages}
        for shown, value in inputs.items():
            owner = self._owners[shown]
            own_inputs[owner.stage][owner.name] = value
        state = StagedState()
        for name, stage in stages.items():
            if name not in wanted:
                continue
            values = own_inputs[name]
            for taker, giver in self._joined.items():
                if taker.stage == name:
                    values[taker.name] = _handed_over(state[giver.stage], stages[giver.stage], giver.name, stage)
            before = old.get(name) if old is not None else None
            usable = before is not None and (share_graphs or not before.needs_graph)
            if usable and before.is_current(stage, values):
                state[name] = before
                continue
            with stage._lock:
                stage._check_batches(values)
                try:
                    state[name] = stage._evaluate(values, wanted[name], before, share_graphs)
                except LumeDiffError as error:
                    error.add_note(f"in stage {name!r}")
                    raise
        return state

    def _wanted_by_stage(self, outputs: Sequence[str]) -> dict[str, list[str]]:
        """Return which outputs of which stages it takes, hand-overs included."""
        wanted: dict[str, list[str]] = {}
        for shown in outputs:
            owner = self._owners[shown]
            wanted.setdefault(owner.stage, []).append(owner.name)
        for name in reversed(self.stages):
            if name not in wanted:
                continue
            for taker, giver in self._joined.items():
                if taker.stage == name and giver.name not in wanted.setdefault(giver.stage, []):
                    wanted[giver.stage].append(giver.name)
        return wanted

    def _read(self, state: StagedState, outputs: Sequence[str]) -> dict[str, Any]:
        stages = self.stages
        found = {}
        for shown in outputs:
            owner = self._owners[shown]
            found[shown] = state[owner.stage].read(stages[owner.stage], (owner.name,))[owner.name]
        return found

    def _reset_simulator(self) -> None:
        for stage in self.stages.values():
            stage._reset_simulator()

    @property
    def runs(self) -> int:
        """How many times the simulations of all stages have run; ``stages[name].runs`` tells each."""
        return self._runs + sum(stage.runs for stage in self.stages.values())

    def gradient_report(self) -> GradientReport:
        """Return the derivatives known in all stages, and the cost of the chain's last Jacobian."""
        entries, notes = [], []
        for name, stage in self.stages.items():
            report = stage.gradient_report()
            entries += report.entries
            notes += [f"{name}: {note}" for note in report.notes]
        self._report.entries, self._report.notes = entries, notes
        return self._report

    def reference_energy(self, inputs: Mapping[str, Any] | None, elements: Sequence[str]) -> dict[str, torch.Tensor]:
        """Return the reference energy [eV] at the entrance of elements, ``"<stage>/<element>"`` or the bare name.

        Raises:
            UnknownVariableError: if no stage has the element.
        """
        checked = self._checked_inputs(inputs or {})
        merged = {**self._setpoints, **checked}
        found = {}
        for element in elements:
            stage_name, _, bare = element.rpartition("/")
            candidates = {stage_name: self.stages[stage_name]} if stage_name in self.stages else self.stages
            for name, stage in candidates.items():
                own = {o.name: merged[shown] for shown, o in self._owners.items() if o.stage == name and shown in merged}
                try:
                    found[element] = stage.reference_energy(own, [bare])[bare]
                    break
                except UnknownVariableError:
                    continue
            else:
                raise unknown_variable(element, (), "any stage with beamline elements")
        return found


class StagedState(dict[str, Evaluation]):
    """The evaluations of the stages that have run."""

    @property
    def freed(self) -> bool:
        """Whether a backward has freed the graph of any stage."""
        return any(evaluation.freed for evaluation in self.values())


def _handed_over(evaluation: Evaluation, giver: LUMEModel, name: str, taker: LUMEModel) -> Any:
    """Return an output of one stage as the next one takes it: same dtype and device, converted once."""
    value = evaluation.read(giver, (name,))[name]
    if all(t.dtype == taker.dtype and t.device == taker.device for t in tensors_in(value) if t.is_floating_point()):
        return value
    key = f"{name} as {taker.dtype} on {taker.device}"
    if key not in evaluation.memo:
        evaluation.memo[key] = map_tensors(
            lambda t: t.to(device=taker.device, dtype=taker.dtype if t.is_floating_point() else t.dtype), value
        )
    return evaluation.memo[key]


def _check_stages(stages: Mapping[str, LUMEModel]) -> None:
    if not stages:
        raise ValidationError("a StagedModel needs at least one stage, got none")
    for name, stage in stages.items():
        if not isinstance(stage, LUMEModel):
            raise ValidationError(f"stage {name!r} is a {type(stage).__name__}; expected a LUMEModel")
        if not name or "/" in name:
            raise ValidationError(f"stage name {name!r} must be non-empty and without '/', which separates stage and variable")
    if len({id(stage) for stage in stages.values()}) != len(stages):
        raise ValidationError("one model stands in two stages: give each stage a model of its own (copy.deepcopy)")


def _check_joined(stages: Mapping[str, LUMEModel], joined: Mapping[Owner, Owner]) -> None:
    names = list(stages)
    for before, after in zip(names, names[1:], strict=False):
        if not any(taker.stage == after for taker in joined):
            raise ValidationError(
                f"stage {before!r} hands nothing over to {after!r}: one needs the output 'final_particles' (or "
                f"'final_moments') and the other the input 'initial_particles' (or 'initial_moments'), or a link; "
                f"{before!r} has outputs {_few(stages[before].output_names)}, "
                f"{after!r} has inputs {_few(stages[after].input_names)}"
            )


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
