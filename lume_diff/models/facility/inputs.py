"""From what the facility's inputs stand at to what the model inside runs with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lume_diff.errors import LumeDiffError
from lume_diff.models.base import LUMEModel
from lume_diff.models.facility.energies import Energies
from lume_diff.models.facility.groups import Groups, is_known
from lume_diff.models.facility.sources import Source
from lume_diff.models.transforms import graph_mode, marks, tensors_in


@dataclass(frozen=True)
class Switch:
    """A choice of the facility and the native values that come with each option.

    Attributes:
        name: of the variable of the facility.
        settings: native values, by option and native name.
    """

    name: str
    settings: Mapping[str, Mapping[str, Any]]


@dataclass
class Natives:
    """The native inputs of one evaluation, and what they were made from.

    Attributes:
        inputs: values of the facility.
        marks: of these, in their order.
        values: native values by name; what is missing stays where the model has it.
        at_elements: reference energies [eV].
        energies: what each conversion took as its energy [eV].
        mode: of the graph.
    """

    inputs: Mapping[str, Any]
    marks: tuple[Any, ...]
    values: dict[str, Any] = field(default_factory=dict)
    at_elements: Mapping[str, Tensor] = field(default_factory=dict)
    energies: dict[Source, Tensor] = field(default_factory=dict)
    mode: tuple[bool, bool] = (False, False)

    def changes(self, inputs: Mapping[str, Any], now: Sequence[Any]) -> set[str]:
        """Return the inputs that are other objects, or were written into, since then."""
        before = self.inputs
        return {
            name
            for (name, value), new, old in zip(inputs.items(), now, self.marks, strict=True)
            if value is not before[name] or new != old
        }

    def with_graph(self) -> set[str]:
        """Return the native names whose values hang on a graph, other than being a leaf."""
        return {
            name
            for name, value in self.values.items()
            if any(tensor.requires_grad and not tensor.is_leaf for tensor in tensors_in(value))
        }


class InputPlan:
    """Compute native inputs, each only when something that it depends on has changed.

    Values that did not change stay the same objects, so that the model inside sees what is at rest.

    Args:
        groups: the conversions of all setpoints.
        direct: native inputs that are a variable of the facility as it is, ``{native: name}``.
        switches: choices that set native values.
        energies: where conversions take the energy from.
        sources: of energy, that anything uses.
        named: variables that hold an energy, with True where it is a native one.
    """

    def __init__(
        self,
        groups: Groups,
        direct: Mapping[str, str],
        switches: Sequence[Switch],
        energies: Energies,
        sources: Iterable[Source],
        named: Mapping[str, bool],
    ) -> None:
        self.groups, self.direct, self.switches = groups, dict(direct), tuple(switches)
        self.energies, self.sources, self.named = energies, tuple(dict.fromkeys(sources)), dict(named)
        self._links: dict[str, list[int]] = {}
        for index, link in enumerate(groups.links):
            self._links.setdefault(link.native, []).append(index)
        self._set_by: dict[str, list[Switch]] = {}
        for switch in self.switches:
            for native in {name for setting in switch.settings.values() for name in setting}:
                self._set_by.setdefault(native, []).append(switch)
        self.natives = tuple(dict.fromkeys([*self._links, *self.direct, *self._set_by]))
        self.live = frozenset(link.native for link in groups.links if link.energy is not None)
        self._names = {native: self.names_of(native) for native in self.natives}
        self._touched: dict[str, list[str]] = {}
        for native in self.natives:
            for name in self._names[native]:
                self._touched.setdefault(name, []).append(native)

    def names_of(self, native: str) -> list[str]:
        """Return the variables of the facility that act on a native one, energies apart."""
        found = [self.groups.links[index].name for index in self._links.get(native, ())]
        found += [self.direct[native]] if native in self.direct else []
        return found + [switch.name for switch in self._set_by.get(native, ())]

    def energy_names(self) -> list[str]:
        """Return the variables of the facility that the energies depend on."""
        found = [name for native in self.energies.inputs for name in self.names_of(native)]
        return found + [name for name, is_native in self.named.items() if not is_native]

    def compute(
        self,
        model: LUMEModel,
        inputs: Mapping[str, Any],
        earlier: Natives | None,
        rest: Natives | None = None,
        can_share: bool = True,
        settle: Callable[[str, Any], Any] = lambda _, value: value,
    ) -> Natives:
        """Return the native inputs.

        Args:
            model: the model inside.
            inputs: of the facility, checked.
            earlier: what was computed before and may still hold; None to compute everything.
            rest: what goes with the baseline, and is used again wherever that is set.
            can_share: whether values that hang on the graph of ``earlier`` may be used again.
            settle: takes a native name and its new value and returns what to use.
        """
        found = Natives(inputs, marks(inputs.values()), mode=graph_mode())
        changed: set[str] = set(self.natives)
        if earlier is not None:
            found.values = dict(earlier.values)
            changed = {
                native for name in earlier.changes(inputs, found.marks) for native in self._touched.get(name, ())
            }
            if not can_share:
                changed |= earlier.with_graph()
        early = [native for native in self.natives if native in changed and native not in self.live]
        self._convert(model, found, early, rest, settle)
        moved = self._follow_energies(model, found, earlier, rest, changed, can_share)
        late = [native for native in self.live if native in changed]
        if moved:
            of_native, links = self._links, self.groups.links
            late = [n for n in self.live if n in changed or any(links[i].energy in moved for i in of_native[n])]
        self._convert(model, found, late, rest, settle)
        return found

    def _follow_energies(
        self,
        model: LUMEModel,
        found: Natives,
        earlier: Natives | None,
        rest: Natives | None,
        changed: set[str],
        can_share: bool,
    ) -> set[Source]:
        """Put the energies of the moment in, and return the sources that are not what they were."""
        if not self.sources:
            return set()
        before: dict[Source, Tensor] = {} if earlier is None else earlier.energies
        rests = earlier is not None and changed.isdisjoint(self.energies.inputs)
        if earlier is not None and rests and (can_share or not any(value.requires_grad for value in before.values())):
            found.at_elements = earlier.at_elements
            if not self.named:
                found.energies = earlier.energies
                return set()
        else:
            known = [] if earlier is None else [earlier.at_elements]
            known += [] if rest is None else [rest.at_elements]
            found.at_elements = self.energies.of_model(model, found.values, known)
        like = torch.empty((), dtype=model.dtype, device=model.device)
        values = {
            name: found.values.get(name, model._setpoints[name]) if is_native else found.inputs[name]
            for name, is_native in self.named.items()
        }
        moved = set()
        for source in self.sources:
            old, resting = before.get(source), None if rest is None else rest.energies.get(source)
            new = self.energies.of(source, found.at_elements, values, like)
            new = next((known for known in (old, resting) if known is not None and is_known(known, new)), new)
            found.energies[source] = new
            if new is not old:
                moved.add(source)
        return moved

    def _convert(
        self,
        model: LUMEModel,
        found: Natives,
        natives: Sequence[str],
        rest: Natives | None,
        settle: Callable[[str, Any], Any],
    ) -> None:
        """Compute some native values anew."""
        chosen: list[int] = []
        links = self.groups.links
        for native in natives:
            found.values.pop(native, None)
            if rest is not None and self._rests(native, found, rest):
                if native in rest.values:
                    found.values[native] = rest.values[native]
                continue
            is_set, value = self.switched(native, found.inputs)
            if not is_set and native in self.direct:
                is_set, value = True, found.inputs[self.direct[native]]
            if not is_set:
                of_native = self._links.get(native, ())
                chosen += [index for index in of_native if found.inputs[links[index].name] is not None]
            elif value is not None:
                found.values[native] = settle(native, self._checked(model, native, value))
        values = [found.inputs[links[index].name] for index in chosen]
        energies = [None if (source := links[index].energy) is None else found.energies[source] for index in chosen]
        contributions: dict[str, list[Tensor]] = {}
        for index, value in zip(chosen, self.groups.to_native(chosen, values, energies), strict=True):
            contributions.setdefault(links[index].native, []).append(value)
        for native, parts in contributions.items():
            total = sum(parts[1:], parts[0])
            found.values[native] = settle(native, self._checked(model, native, total))

    def _rests(self, native: str, found: Natives, rest: Natives) -> bool:
        """Tell whether all that a native value is made of stands at the baseline."""
        if any(found.inputs[name] is not rest.inputs[name] for name in self._names[native]):
            return False
        sources = (self.groups.links[index].energy for index in self._links.get(native, ()))
        return all(found.energies[source] is rest.energies[source] for source in sources if source is not None)

    def switched(self, native: str, inputs: Mapping[str, Any]) -> tuple[bool, Any]:
        """Return whether a choice sets a native value, and which one."""
        for switch in self._set_by.get(native, ()):
            setting = switch.settings.get(inputs[switch.name], {})
            if native in setting:
                return True, setting[native]
        return False, None

    def _checked(self, model: LUMEModel, native: str, value: Any) -> Any:
        try:
            return model._checked_input(native, value)
        except LumeDiffError as error:
            names = ", ".join(map(repr, self.names_of(native)))
            error.args = (f"{error} (this is what {names} amounts to)", *error.args[1:])
            raise
