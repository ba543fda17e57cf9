"""How variables of the stages of a chain are named in the chain, and which of them are handed over."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from lume_diff.errors import UnitError, UnknownVariableError, ValidationError, nearest_names
from lume_diff.models.base import LUMEModel
from lume_diff.variables import TorchNDVariable, Variable
from lume_diff.variables.units import conversion_factor

#: What is handed over where both neighbours have it: the first pair that fits is taken.
HAND_OVER = (("final_particles", "initial_particles"), ("final_moments", "initial_moments"))


@dataclass(frozen=True)
class Owner:
    """The stage that a variable of the chain belongs to, and its name there."""

    stage: str
    name: str

    def __str__(self) -> str:
        return f"{self.stage}/{self.name}"


def check_stages(stages: Mapping[str, LUMEModel]) -> None:
    """Raise unless these can be the stages of a chain."""
    if not stages:
        raise ValidationError("a StagedModel needs at least one stage, got none")
    owners: dict[int, str] = {}
    for name, stage in stages.items():
        if not isinstance(stage, LUMEModel):
            raise ValidationError(f"stage {name!r} is a {type(stage).__name__}; expected a LUMEModel")
        if not isinstance(name, str) or not name or "/" in name:
            raise ValidationError(
                f"stage name {name!r} must be a non-empty string without '/', which separates stage and variable"
            )
        for model in (module for module in stage.modules() if isinstance(module, LUMEModel)):
            if owners.setdefault(id(model), name) != name:
                raise ValidationError(
                    f"one model stands in the stages {owners[id(model)]!r} and {name!r}: give each stage a model of "
                    "its own (copy.deepcopy)"
                )


def join(stages: Mapping[str, LUMEModel], links: Mapping[str, str]) -> dict[Owner, Owner]:
    """Return what each stage takes from an earlier one, ``{taker: giver}``.

    By default that is particles from the predecessor, or moments where there are none; ``links`` come on top.

    Raises:
        UnknownVariableError: for a link to a stage or a variable that is not there.
        ValidationError: for a link that runs upstream or joins values of different kinds, and for a stage that takes
            nothing from its predecessors.
        UnitError: for a link between units of different dimensions.
    """
    names = list(stages)
    found = {}
    for before, after in pairwise(names):
        for given, taken in HAND_OVER:
            if given in stages[before].output_names and taken in stages[after].input_names:
                found[Owner(after, taken)] = Owner(before, given)
                break
    found.update(_explicit(stages, links))
    for before, after in pairwise(names):
        if not any(taker.stage == after for taker in found):
            raise ValidationError(
                f"stage {before!r} hands nothing over to {after!r}: one needs the output 'final_particles' (or "
                f"'final_moments') and the other the input 'initial_particles' (or 'initial_moments'), or a link; "
                f"{before!r} has outputs {_few(stages[before].output_names)}, "
                f"{after!r} has inputs {_few(stages[after].input_names)}"
            )
    return found


def _explicit(stages: Mapping[str, LUMEModel], links: Mapping[str, str]) -> dict[Owner, Owner]:
    order = list(stages)
    found = {}
    for target, source in links.items():
        taker = _owner(stages, target, "input")
        giver = _owner(stages, source, "output")
        if order.index(giver.stage) >= order.index(taker.stage):
            raise ValidationError(f"link {source!r} -> {target!r} runs upstream: a stage takes from earlier ones only")
        given = stages[giver.stage].supported_variables[giver.name]
        taken = stages[taker.stage].supported_variables[taker.name]
        if type(given) is not type(taken) or getattr(given, "shape", ()) != getattr(taken, "shape", ()):
            raise ValidationError(f"link {source!r} -> {target!r} joins {_kind(given)} to {_kind(taken)}")
        try:
            link_factor(given, taken)
        except UnitError as error:
            raise UnitError(f"link {source!r} -> {target!r}: {error}") from None
        found[taker] = giver
    return found


def _owner(stages: Mapping[str, LUMEModel], text: str, kind: str) -> Owner:
    stage, separator, name = text.partition("/")
    if not separator or stage not in stages:
        raise UnknownVariableError(f"link end {text!r} must read 'stage/variable'{nearest_names(stage, stages)}")
    known = stages[stage].input_names if kind == "input" else stages[stage].output_names
    if name not in known:
        raise UnknownVariableError(
            f"link end {text!r}: stage {stage!r} has no {kind} {name!r}{nearest_names(name, known)}"
        )
    return Owner(stage, name)


def link_factor(given: Variable, taken: Variable) -> float:
    """Return what a handed-over value is multiplied by: 1 where a unit is not stated.

    Raises:
        UnitError: for units of different dimensions.
    """
    return conversion_factor(given.unit, taken.unit) if given.unit and taken.unit else 1.0


def _kind(variable: Variable) -> str:
    shape = f" of shape {variable.shape}" if isinstance(variable, TorchNDVariable) else ""
    return f"a {type(variable).__name__}{shape}"


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")


def chain_variables(
    stages: Mapping[str, LUMEModel], linked: Mapping[Owner, Owner]
) -> tuple[dict[str, Variable], dict[str, Owner]]:
    """Name the variables of a chain.

    Bare ``initial_*`` belongs to the first stage and bare ``final*`` to the last; any other name that two stages
    share, and ``initial_*`` and ``final*`` of the stages between, is ``"<stage>/<name>"``. Linked inputs are gone. A
    name that is alone but reads like the ``"<stage>/<name>"`` of another (in a chain of chains) gets its stage too.
    """
    first, last = next(iter(stages)), list(stages)[-1]
    counts = Counter(name for model in stages.values() for name in model.supported_variables)
    every = [Owner(stage, name) for stage, model in stages.items() for name in model.supported_variables]

    def is_bare(owner: Owner) -> bool:
        if owner.name.startswith("initial_"):
            return owner.stage == first
        if owner.name.startswith("final"):
            return owner.stage == last
        return counts[owner.name] == 1

    qualified = {str(owner) for owner in every if not is_bare(owner)}
    variables: dict[str, Variable] = {}
    owners: dict[str, Owner] = {}
    for owner in every:
        if owner in linked:
            continue
        shown = owner.name if is_bare(owner) and owner.name not in qualified else str(owner)
        if shown in variables:
            raise ValidationError(f"two variables of the chain are called {shown!r}: rename stage {owner.stage!r}")
        variable = stages[owner.stage].supported_variables[owner.name]
        variables[shown] = variable if shown == owner.name else variable.replace(name=shown)
        owners[shown] = owner
    return variables, owners
