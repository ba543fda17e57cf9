"""An environment of Badger: the knobs and the read-outs of a served machine."""

from __future__ import annotations

from typing import ClassVar

from badger import environment


class Environment(environment.Environment):
    """A magnet whose force is to be brought to a target, by current and gap."""

    name = "magnet"
    variables: ClassVar[dict[str, list[float]]] = {"current": [-5.0, 5.0], "gap": [0.2, 1.0]}
    observables: ClassVar[list[str]] = ["force", "field"]
    target: float = 8.0

    def get_variables(self, variable_names: list[str]) -> dict[str, float]:
        """Return set-points."""
        return self.interface.get_values(variable_names)

    def set_variables(self, variable_inputs: dict[str, float]) -> None:
        """Write set-points and wait until they are there."""
        self.interface.set_values(variable_inputs)

    def get_observables(self, observable_names: list[str]) -> dict[str, float]:
        """Return read-outs; ``miss`` is how far the force is from the target."""
        found = self.interface.get_values([name for name in observable_names if name != "miss"] + ["force"])
        return {name: abs(found["force"] - self.target) if name == "miss" else found[name] for name in observable_names}
