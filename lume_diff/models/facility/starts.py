"""Where the setpoints of a facility start from: what the model inside stands at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from lume_diff.models.base import LUMEModel
from lume_diff.models.facility.inputs import InputPlan
from lume_diff.models.facility.mistakes import Mistakes
from lume_diff.variables import Variable

#: How far two values may differ, relative to their size, to be the same setting.
_SAME = 1e-6


def starting_values(
    model: LUMEModel, plan: InputPlan, variables: Mapping[str, Variable], given: Mapping[str, Any], adds: set[str]
) -> dict[str, Any]:
    """Return what the inputs of a facility start from.

    Args:
        model: the model inside, at the set-points that are to be shown.
        plan: what the inputs do.
        variables: inputs of the facility.
        given: values that the mapping gives.
        adds: setpoints that start from 0 because they are added to others.
    """
    found_by_inverse = {link.name for link in plan.groups.links}
    values: dict[str, Any] = {
        name: None if name in found_by_inverse else variable.default_value for name, variable in variables.items()
    }
    for native, name in plan.direct.items():
        value = model._setpoints[native]
        values[name] = value.detach() if isinstance(value, torch.Tensor) else value
    for name in adds:
        values[name] = torch.zeros((), dtype=model.dtype, device=model.device)
    where: dict[str, Any] = {"dtype": model.dtype, "device": model.device}
    values |= {name: variables[name].validate_value(value, **where) for name, value in given.items()}
    values = {
        name: variables[name].validate_value(value, **where, config="none") if isinstance(value, int | float) else value
        for name, value in values.items()
    }
    with torch.no_grad():
        for live in (False, True):
            _invert(model, plan, values, {*given, *adds}, live)
    return values


def _invert(model: LUMEModel, plan: InputPlan, values: dict[str, Any], known: set[str], live: bool) -> None:
    """Fill in the setpoints whose first action needs an energy, or needs none."""
    links = plan.groups.links
    first: dict[str, int] = {}
    for index, link in enumerate(links):
        if link.name not in known:
            first.setdefault(link.name, index)
    chosen = [index for index in first.values() if (links[index].energy is not None) == live]
    natives = plan.compute(model, values, None)
    added = {link.native for link in links if link.name in known}
    wanted, targets, energies = [], [], []
    for index in chosen:
        native, source = links[index].native, links[index].energy
        target = model._setpoints[native]
        if target is None:
            continue
        is_shared = native in added and not plan.switched(native, values)[0]
        others = natives.values.get(native) if is_shared else None
        target = target.detach().to(model.dtype)
        wanted.append(index)
        targets.append(target if others is None else target - others)
        energies.append(None if source is None else natives.energies[source])
    for index, value in zip(wanted, plan.groups.to_setpoint(wanted, targets, energies), strict=True):
        values[links[index].name] = value


def note_disagreement(
    model: LUMEModel, plan: InputPlan, values: Mapping[str, Any], given: Mapping[str, Any], mistakes: Mistakes
) -> None:
    """Note setpoints of several elements that do not stand where one setpoint would put them."""
    several: dict[str, list[str]] = {}
    for link in plan.groups.links:
        if link.name not in given:
            several.setdefault(link.name, []).append(link.native)
    natives = plan.compute(model, values, None).values
    for name, found in several.items():
        free = [native for native in found if not plan.switched(native, values)[0]]
        off = [native for native in free if not _is_close(natives.get(native), model._setpoints[native])]
        if len(found) > 1 and off:
            what = f"it sets several elements, which do not stand at one setting in the model ({', '.join(off)} differ)"
            mistakes.add(("variables", name), f"{what}: give default")


def _is_close(new: Any, now: Any) -> bool:
    if new is None or now is None:
        return new is now
    return torch.allclose(new, now.to(new.dtype), rtol=_SAME, atol=1e-12)
