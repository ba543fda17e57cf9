"""How variables of the stages of a chain are named in the chain."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from lume_diff.errors import LumeDiffError, UnknownVariableError, ValidationError, nearest_names
from lume_diff.models.base import LUMEModel
from lume_diff.variables import Variable

#: What is handed over where both neighbours have it: the first pair that fits is taken.
HAND_OVER = (("final_particles", "initial_particles"), ("final_moments", "initial_moments"))


@dataclass(frozen=True)
class Owner:
    """The stage that a variable of the chain belongs to, and its name there."""

    stage: str
    name: str


def default_links(stages: Mapping[str, LUMEModel]) -> dict[Owner, Owner]:
    """Return what each stage gets from its predecessor: particles, or moments where there are none."""
    links = {}
    names = list(stages)
    for before, after in zip(names, names[1:], strict=False):
        for given, taken in HAND_OVER:
            if given in stages[before].output_names and taken in stages[after].input_names:
                links[Owner(after, taken)] = Owner(before, given)
                break
    return links


def explicit_links(stages: Mapping[str, LUMEModel], links: Mapping[str, str]) -> dict[Owner, Owner]:
    """Return the links that a user gave as ``{"stage/input": "stage/output"}``.

    Raises:
        UnknownVariableError: for a stage or a variable that is not there.
        ValidationError: for a link that runs upstream.
    """
    order = list(stages)
    found = {}
    for target, source in links.items():
        taker, giver = (_owner(stages, text) for text in (target, source))
        if taker.name not in stages[taker.stage].input_names:
            raise UnknownVariableError(
                f"link target {target!r}: stage {taker.stage!r} has no input {taker.name!r}"
                + nearest_names(taker.name, stages[taker.stage].input_names)
            )
        if giver.name not in stages[giver.stage].output_names:
            raise UnknownVariableError(
                f"link source {source!r}: stage {giver.stage!r} has no output {giver.name!r}"
                + nearest_names(giver.name, stages[giver.stage].output_names)
            )
        if order.index(giver.stage) >= order.index(taker.stage):
            raise ValidationError(f"link {source!r} -> {target!r} runs upstream: a stage can only take from earlier ones")
        found[taker] = giver
    return found


def _owner(stages: Mapping[str, LUMEModel], text: str) -> Owner:
    stage, separator, name = text.partition("/")
    if not separator or stage not in stages:
        raise UnknownVariableError(
            f"link end {text!r} must read 'stage/variable'" + nearest_names(stage, stages)
        )
    return Owner(stage, name)


def chain_variables(
    stages: Mapping[str, LUMEModel], linked: Mapping[Owner, Owner]
) -> tuple[dict[str, Variable], dict[str, Owner]]:
    """Name the variables of a chain.

    Bare ``initial_*`` belongs to the first stage and bare ``final*`` to the last; any other name that two stages
    share, and ``initial_*`` and ``final*`` of the stages between, is ``"<stage>/<name>"``. Linked inputs are gone.
    """
    first, last = next(iter(stages)), list(stages)[-1]
    counts = Counter(name for model in stages.values() for name in model.supported_variables)
    variables: dict[str, Variable] = {}
    owners: dict[str, Owner] = {}
    for stage, model in stages.items():
        for name, variable in model.supported_variables.items():
            owner = Owner(stage, name)
            if owner in linked:
                continue
            if name.startswith("initial_"):
                bare = stage == first
            elif name.startswith("final"):
                bare = stage == last
            else:
                bare = counts[name] == 1
            shown = name if bare else f"{stage}/{name}"
            if shown in variables:
                raise LumeDiffError(f"two variables of the chain are called {shown!r}: rename stage {stage!r}")
            variables[shown] = variable if bare else variable.model_copy(update={"name": shown})
            owners[shown] = owner
    return variables, owners
