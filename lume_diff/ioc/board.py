"""Board: what everybody may see of a served model, and those who show it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from lume_diff.control.readings import Condition, Reading, Severity, Update
from lume_diff.ioc.judging import judged
from lume_diff.ioc.limits import LimitStore
from lume_diff.ioc.plain import as_lists
from lume_diff.ioc.publisher import Publisher
from lume_diff.ioc.service import Service
from lume_diff.variables import Variable

LOG = logging.getLogger("lume_diff.ioc")


class Board:
    """Hold the readings of all variables, judge what is to be shown, and hand it to every publisher.

    Args:
        variables: of the model, as far as they are served.
        limits: of the variables.
        setpoints: plain values of the inputs as the model begins; shown until the first cycle.
        service: variables about the server, shown beside the model's.
    """

    def __init__(
        self,
        variables: Mapping[str, Variable],
        limits: LimitStore,
        setpoints: Mapping[str, Any] | None = None,
        service: Service | None = None,
    ) -> None:
        self._limits = limits
        self.model_variables = dict(variables)
        self.variables = dict(variables)
        self._inputs = [name for name, variable in variables.items() if not variable.read_only]
        self._outputs = [name for name, variable in variables.items() if variable.read_only]
        self._output_set = frozenset(self._outputs)
        self._faults: dict[str, tuple[Condition, str]] = {}
        self._publishers: list[Publisher] = []
        self._publishing, self._reading = threading.RLock(), threading.Lock()
        self.cycle = 0
        self._readings = self._first(setpoints or {})
        if service is not None:
            self.variables |= service.variables
            self._readings |= self._judged(service.first(), time.time())

    def _first(self, setpoints: Mapping[str, Any]) -> dict[str, Reading]:
        """Return what is shown before the first evaluation: the outputs as undefined."""
        now, text = time.time(), "not evaluated yet"
        undefined = Reading(None, now, 0, Severity.INVALID, Condition.UNDEFINED, text)
        known = {name: setpoints[name] for name in self.variables if setpoints.get(name) is not None}
        return dict.fromkeys(self.variables, undefined) | self._judged(known, now)

    def add(self, publisher: Publisher) -> None:
        """Show readings there too, from the next cycle on."""
        self._publishers.append(publisher)

    # -- what is shown ---------------------------------------------------------------------------------------

    def reading(self, name: str) -> Reading:
        """Return what is shown of a variable."""
        return self._readings[name]

    def readings(self) -> dict[str, Reading]:
        """Return all that is shown, of one cycle."""
        with self._reading:
            return dict(self._readings)

    def point(self) -> dict[str, Any]:
        """Return the inputs as they are shown, beams left out."""
        readings = self.readings()
        return {
            name: readings[name].value
            for name in self._inputs
            if readings[name].value is not None and not isinstance(readings[name].value, dict)
        }

    def setpoints(self) -> dict[str, Any]:
        """Return the inputs as they are shown, arrays as lists, beams left out."""
        return as_lists(self.point())

    def snapshot(self) -> tuple[int, dict[str, Any]]:
        """Return the inputs of one cycle, and its number."""
        with self._publishing:
            return max(reading.cycle for reading in self._readings.values()), self.setpoints()

    # -- showing ---------------------------------------------------------------------------------------------

    def show(self, values: Mapping[str, Any]) -> None:
        """Publish values that come from elsewhere than the model, with the time and no new cycle."""
        self._post(values, time.time())

    def show_again(self, names: Iterable[str], values: Mapping[str, Any]) -> None:
        """Publish variables as they are, for clients that have tried to write something else, beside other values."""
        with self._publishing:
            now = time.time()
            again = {name: replace(self._readings[name], time=now) for name in names if name in self._readings}
            self._post(values, now, again)

    def limits_changed(self, name: str) -> None:
        """Publish a variable again, judged by its limits as they are now."""
        for publisher in self._publishers:
            publisher.limits_changed(name)
        with self._publishing:
            before = self._readings[name]
            if before.value is not None and before.condition is not Condition.FAILED:
                self.show({name: before.value})

    def fault(self, name: str, condition: Condition, message: str) -> None:
        """Mark an input as one that must not be trusted, and with it every output, until `clear_fault`.

        Args:
            name: of the input, which keeps its value.
            condition, message: what is the matter with it.
        """
        self.change_faults({name: (condition, message)})

    def clear_fault(self, name: str) -> None:
        """Trust an input again."""
        self.change_faults({name: None})

    def change_faults(self, changes: Mapping[str, tuple[Condition, str] | None]) -> None:
        """Mark inputs as ones that must not be trusted, or None to trust them again, and publish that at once.

        Args:
            changes: condition and message by the name of the input.
        """
        with self._publishing:
            changed = {name: fault for name, fault in changes.items() if self._faults.get(name) != fault}
            if not changed:
                return
            faults, now = {**self._faults, **changed}, time.time()
            self._faults = {name: fault for name, fault in faults.items() if fault is not None}
            shown = {name: self._readings[name].value for name in changed}
            shown |= {
                output: self._readings[output].value
                for output in self._outputs
                if self._readings[output].condition not in (Condition.FAILED, Condition.UNDEFINED)
            }
            self._post(shown, now)

    def _shown(self, names: Iterable[str]) -> dict[str, Any]:
        """Return the values that are shown of those names that there are."""
        return {name: self._readings[name].value for name in names if name in self._readings}

    def _judged(self, values: Mapping[str, Any], now: float) -> dict[str, Reading]:
        """Return values of this cycle with their alarms."""
        cycle, limits, fault_of = self.cycle, self._limits.all, self._fault_of if self._faults else _trusted
        return {name: judged(name, value, now, cycle, limits[name], fault_of(name)) for name, value in values.items()}

    def _fault_of(self, name: str) -> tuple[Condition, str] | None:
        """Return what makes a variable untrustworthy: an output does not hold where any input does not."""
        fault = self._faults.get(name)
        if fault is None and name in self._output_set:
            return next(iter(self._faults.values()))
        return fault

    def _post(self, values: Mapping[str, Any], now: float, readings: Mapping[str, Reading] | None = None) -> None:
        """Publish values, judged by what holds at that moment, beside readings."""
        with self._publishing:
            shown = {**(readings or {}), **self._judged(values, now)}
            with self._reading:
                self._readings.update(shown)
            update = Update(self.cycle, now, shown)
            for publisher in self._publishers:
                try:
                    publisher.publish(update)
                except Exception:
                    LOG.exception("publishing to %s failed", type(publisher).__name__)


def _trusted(name: str) -> None:
    """Return what makes a variable untrustworthy while nothing does."""
