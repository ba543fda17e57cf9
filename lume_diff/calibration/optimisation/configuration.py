"""An optimisation from a YAML file: the model that knows the machine roughly, the machine, and what is optimised."""

from __future__ import annotations

import runpy
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, model_validator

from lume_diff.calibration.fit.configuration import ModelSection, ParameterSection
from lume_diff.calibration.fit.yaml_files import Section
from lume_diff.calibration.optimisation.process_variables import ProcessVariables, evaluate_on_machine
from lume_diff.calibration.optimisation.study import Study
from lume_diff.calibration.prior_mean.constructor import PriorMeanModelConstructor
from lume_diff.calibration.prior_mean.emulator import Emulator
from lume_diff.calibration.prior_mean.evaluator import xopt_evaluator
from lume_diff.calibration.prior_mean.model_mean import ModelMean
from lume_diff.calibration.prior_mean.vocs import Quantity, quantities_of, vocs_from_model
from lume_diff.control import client_of
from lume_diff.errors import ValidationError, nearest_names

#: Functions of one output that are known by a name.
TRANSFORMS: dict[str, Callable[..., torch.Tensor]] = {
    "log10": torch.log10,
    "log": torch.log,
    "abs": torch.abs,
    "sqrt": torch.sqrt,
    "square": torch.square,
}


class ObjectiveSection(Section):
    """``{name: log_size, output: final.sigma_x, transform: log10, goal: minimize}``.

    Attributes:
        name: of the objective, in Xopt's files and in pictures.
        output: of the model, or a list of outputs that the transform takes.
        transform: ``log10``, ``log``, ``abs``, ``sqrt``, ``square``, or ``file.py:function`` of tensors.
        goal: whether small or large is good.
    """

    name: str = "objective"
    output: str | list[str]
    transform: str | None = None
    goal: Literal["minimize", "maximize"] = "minimize"

    def function(self, folder: Path) -> Callable[..., torch.Tensor] | None:
        """Return the transform; a relative path starts from ``folder``."""
        if self.transform is None or self.transform in TRANSFORMS:
            return None if self.transform is None else TRANSFORMS[self.transform]
        place, _, name = self.transform.rpartition(":")
        if not place.endswith(".py"):
            known = nearest_names(self.transform, TRANSFORMS)
            raise ValidationError(f"transform is {self.transform!r}; expected a name or 'file.py:function'{known}")
        if not (folder / place).is_file():
            raise ValidationError(f"transform {self.transform!r}: {str(folder / place)!r} does not exist")
        known_there = runpy.run_path(str(folder / place))
        if name not in known_there:
            raise ValidationError(f"transform {self.transform!r}: {place!r} has no {name!r}")
        return known_there[name]


class EmulateSection(Section):
    """``{max_runs: 200}``: the model is slow, and this many runs of it may be made; see ``Emulator``."""

    max_runs: int = 200
    initial: int | None = None
    refine: int = 4

    def build(self, seed: int) -> Emulator:
        """Return the settings of the emulator."""
        return Emulator(self.max_runs, self.initial, self.refine, seed=seed)


class PVSection(Section):
    """Process variables of a machine, in the model's units.

    Attributes:
        setpoints: ``{Q1.k1: "QUAD:1:BCTRL"}``, for every variable; ``same`` for a model with the machine's own names.
        outputs: ``{final.sigma_x: "SCREEN:1:XRMS"}``, for every output that the objective is made of; or ``same``.
        readbacks: likewise for inputs, recorded beside the set-points.
        settle: how long to wait between setting and reading [s].
        timeout: for an answer [s].
        protocol: ``pva``, ``ca`` or another client that is installed.
    """

    setpoints: dict[str, str] | Literal["same"]
    outputs: dict[str, str] | Literal["same"]
    readbacks: dict[str, str] = Field(default_factory=dict)
    settle: float = Field(default=0.0, ge=0.0)
    timeout: float = Field(default=5.0, gt=0.0)
    protocol: str = "pva"

    def build(self, variables: Iterable[str], quantities: Mapping[str, Quantity]) -> ProcessVariables:
        """Return the machine, connected.

        Args:
            variables: names of the inputs.
            quantities: what the objective is made of.
        """
        needed = [name for quantity in quantities.values() for name in quantity.outputs]
        made = ProcessVariables(
            _named(self.setpoints, variables),
            _named(self.outputs, needed),
            quantities,
            self.readbacks,
            self.settle,
            self.timeout,
            partial(client_of, self.protocol),
        )
        made.connect()
        return made


def _named(given: dict[str, str] | Literal["same"], names: Iterable[str]) -> dict[str, str]:
    """Return process variables by the model's names."""
    return {name: name for name in names} if given == "same" else given


class OptimisationConfig(Section):
    """What ``lume-diff optimize`` is told.

    Attributes:
        model: what is known of the machine: the prior mean.
        machine: a model in the machine's place, or
        pvs: the machine itself.
        variables: names of inputs, or ranges by name, within the model's limits.
        objective: what is optimised.
        trainable: scales and offsets of the model that are learned on the way.
        trust: whether a constant takes over where the model loses against the data.
        emulate: for a model that is slow: how many runs of it may be made.
        generator: Xopt's.
        start: how many random points come first.
        steps: how many follow them.
        compare: whether to do the same without the model, on a machine that is a model.
        seed: of random points and optimiser.
    """

    model: ModelSection
    machine: ModelSection | None = None
    pvs: PVSection | None = None
    variables: list[str] | dict[str, tuple[float, float] | None]
    objective: ObjectiveSection
    trainable: list[ParameterSection] | None = None
    trust: bool = True
    emulate: EmulateSection | None = None
    generator: Literal["upper_confidence_bound", "expected_improvement"] = "upper_confidence_bound"
    start: int = Field(default=3, ge=1)
    steps: int = Field(default=20, ge=1)
    compare: bool = True
    seed: int = 0

    @model_validator(mode="after")
    def _one_machine(self) -> OptimisationConfig:
        measured = self.measured
        given = measured.setpoints if isinstance(measured, PVSection) else "same"
        if given != "same" and set(given) != set(self.variables):
            raise ValueError(f"pvs.setpoints has {sorted(given)}; expected {sorted(self.variables)}")
        return self

    @property
    def measured(self) -> ModelSection | PVSection:
        """The machine itself, or the model in its place."""
        given = [section for section in (self.machine, self.pvs) if section is not None]
        if len(given) != 1:
            raise ValueError("give 'machine', a model in its place, or 'pvs', and not both")
        return given[0]

    def build(self, folder: Path) -> Study:
        """Return the study; relative paths start from ``folder``."""
        model = self.model.build(folder)
        name = self.objective.name
        made = (self.objective.output, self.objective.function(folder))
        vocs = vocs_from_model(model, self.variables, {name: self.objective.goal.upper()}, outputs={name: made})
        mean = ModelMean(
            model,
            list(self.variables),
            *made,
            None if self.trainable is None else [section.build() for section in self.trainable],
            emulate=False if self.emulate is None else self.emulate.build(self.seed),
        )
        prior = PriorMeanModelConstructor(
            mean_modules={name: mean}, trainable_mean_keys=[name] if self.trainable else [], trust=self.trust
        )
        measured, machine = self.measured, None
        if isinstance(measured, PVSection):
            machine = measured.build(self.variables, quantities_of(vocs))
            evaluator: Any = {"function": evaluate_on_machine, "function_kwargs": {"machine": machine}}
        else:
            evaluator = xopt_evaluator(measured.build(folder), vocs)
        return Study(
            vocs,
            evaluator,
            prior,
            generator=self.generator,
            start=self.start,
            steps=self.steps,
            compare=self.compare and machine is None,
            seed=self.seed,
            machine=machine,
        )
