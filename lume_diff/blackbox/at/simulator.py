"""pyAT as a simulator, with no torch in it: workers load it."""

from __future__ import annotations

import hashlib
import threading
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lume_diff.blackbox.at.derivatives import bunch_derivatives, optics_derivatives
from lume_diff.blackbox.at.knobs import Knob, Knobs, at_values
from lume_diff.blackbox.at.optics import line_optics, ring_optics
from lume_diff.blackbox.at.tracking import BunchTracker, changes_reference, reference_momentum
from lume_diff.blackbox.codes.optics_names import INITIAL, Optics
from lume_diff.blackbox.codes.plain_bunches import INCOMING
from lume_diff.blackbox.codes.simulator import CodeSimulator

#: pyAT keeps the last lattice in a global of its own, and warnings are turned into errors for the time of a run.
_AT_WORK = threading.RLock()


class ATFactory:
    """Make simulators that share one lattice, so that what was changed on it outlives a failed run."""

    def __init__(
        self, lattice: Any, knobs: Sequence[Knob], optics: Optics, bunches: Mapping[str, int], periodic: bool
    ) -> None:
        self.parts = (lattice, tuple(knobs), optics, dict(bunches), periodic)

    def __call__(self) -> ATSimulator:
        return ATSimulator(*self.parts)

    def __getstate__(self) -> dict[str, Any]:
        lattice, knobs, *rest = self.parts
        return {"lattice": lattice, "names": [knob.name for knob in knobs], "rest": rest}

    def __setstate__(self, state: dict[str, Any]) -> None:
        knobs = Knobs(state["lattice"]).choose(state["names"])
        self.parts = (state["lattice"], tuple(knobs), *state["rest"])


class ATSimulator(CodeSimulator):
    """Run pyAT on a lattice; see ``ATModel``, which builds it.

    Args:
        lattice: of pyAT; between runs it stands as the user left it.
        knobs: what is set on it.
        optics: what is computed.
        bunches: name -> place of the bunches that are returned.
        periodic: whether optics is the periodic solution.
    """

    def __init__(
        self, lattice: Any, knobs: Sequence[Knob], optics: Optics, bunches: Mapping[str, int], periodic: bool
    ) -> None:
        self._lattice = lattice
        self._knobs = tuple(knobs)
        self._optics = optics
        self._bunches = dict(bunches)
        self._periodic = periodic
        self._known: tuple[Any, dict[str, Any]] | None = None

    @property
    def native(self) -> Any:
        """The lattice."""
        return self._lattice

    @property
    def baseline(self) -> dict[str, float]:
        """What stands on the lattice now."""
        found = {knob.name: knob.value for knob in self._knobs}
        return {**found, "reference_energy": self.reference_energy} if self._bunches else found

    @property
    def elements(self) -> tuple[str, ...]:
        """Names of the elements."""
        return tuple(dict.fromkeys(element.FamName for element in self._lattice))

    @property
    def reference_energy(self) -> float:
        """Total energy that the lattice is set for [eV]; pyAT refers strengths to it behind cavities too."""
        return float(self._lattice.energy)

    @property
    def accelerated(self) -> tuple[str, ...]:
        """Names of the elements behind the first one that changes the reference momentum."""
        changes = [place for place, element in enumerate(self._lattice) if changes_reference(element)]
        if not changes:
            return ()
        before = {element.FamName for element in self._lattice[: changes[0] + 1]}
        return tuple(name for name in self.elements if name not in before)

    def run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> dict[str, Any]:
        """Compute optics and track the bunch.

        Raises:
            AtError: for an unstable lattice.
        """
        import at

        with _AT_WORK, at_values(self._knobs, inputs), self._energy(inputs), warnings.catch_warnings():
            warnings.simplefilter("error", at.AtWarning)
            return {**self._compute_optics(inputs), **self._track(inputs)}

    def jacobian(
        self, inputs: Mapping[str, Any], outputs: Sequence[str], wrt: Sequence[str]
    ) -> dict[str, dict[str, np.ndarray]]:
        """Return what pyAT's transfer matrices tell.

        These are optics of a line by where it starts (exact), the orbit by the kicks of correctors (exact), and bunches
        by the incoming one: the linear part about the trajectory of its centroid.
        """
        import at

        with _AT_WORK, at_values(self._knobs, inputs), self._energy(inputs), warnings.catch_warnings():
            warnings.simplefilter("error", at.AtWarning)
            lattice = self._lattice
            found = optics_derivatives(lattice, self._optics, inputs, self._knobs, self._periodic, outputs, wrt)
            places = {name: place for name, place in self._bunches.items() if name in outputs}
            group = inputs.get(INCOMING)
            if group is not None and INCOMING in wrt and places and np.ptp(group.z) == 0.0:
                bunches = bunch_derivatives(lattice, group, float(inputs["reference_time"]), places)
                found |= {name: {INCOMING: values} for name, values in bunches.items()}
            return found

    def _energy(self, inputs: Mapping[str, Any]) -> _Energy:
        return _Energy(self._lattice, inputs.get("reference_energy"))

    def _compute_optics(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return optics, which a shifted bunch does not change."""
        if not self._optics:
            return {}
        starts = tuple((name, value) for name, value in inputs.items() if name.startswith(f"{INITIAL}."))
        key = (content_hash(self._lattice), starts)
        if self._known is None or self._known[0] != key:
            if self._periodic:
                found = ring_optics(self._lattice, self._optics)
            else:
                p0 = reference_momentum(self._lattice)
                found = line_optics(self._lattice, self._optics, inputs, p0)
            self._known = (key, found)
        return dict(self._known[1])

    def _track(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        if not self._bunches:
            return {}
        return BunchTracker(self._lattice, inputs[INCOMING], float(inputs["reference_time"])).run(self._bunches)

    def identity(self) -> str:
        """Return pyAT's version and a hash of the lattice and of what is computed."""
        import at

        what = repr((self._periodic, self._optics, self._bunches)).encode()
        digest = hashlib.sha256(content_hash(self._lattice) + what).hexdigest()[:16]
        return f"pyAT {at.__version__}:{digest}"


class _Energy:
    """Set the energy of a lattice for the time of a block."""

    def __init__(self, lattice: Any, energy: float | None) -> None:
        self._lattice, self._before = lattice, lattice.energy
        self._energy = lattice.energy if energy is None else float(energy)

    def __enter__(self) -> None:
        if self._energy != self._before:
            self._lattice.energy = self._energy

    def __exit__(self, *_: object) -> None:
        if self._energy != self._before:
            self._lattice.energy = self._before


def content_hash(lattice: Any) -> bytes:
    """Return a hash of everything that pyAT computes with."""
    digest = hashlib.sha256()
    digest.update(repr((float(lattice.energy), str(lattice.particle), lattice.periodicity)).encode())
    digest.update(repr(getattr(lattice, "_cell_harmnumber", None)).encode())
    for element in lattice:
        digest.update(type(element).__name__.encode())
        for name, value in sorted(vars(element).items()):
            digest.update(name.encode())
            if isinstance(value, np.ndarray) and value.dtype != object:
                digest.update(repr(value.shape).encode() + np.ascontiguousarray(value).tobytes())
            else:
                digest.update(repr(value).encode())
    return digest.digest()
