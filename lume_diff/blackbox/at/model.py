"""ATModel: a lattice of the Accelerator Toolbox (pyAT) as a model with gradients."""

from __future__ import annotations

import hashlib
import threading
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lume_diff.blackbox.at.derivatives import bunch_derivatives, optics_derivatives
from lume_diff.blackbox.at.knobs import Knob, Knobs, at_values
from lume_diff.blackbox.at.optics import COORDINATES, line_optics, ring_optics
from lume_diff.blackbox.at.tracking import BunchTracker, changes_reference, check_tracking, reference_momentum
from lume_diff.blackbox.codes.bunch_names import INCOMING, incoming_bunch
from lume_diff.blackbox.codes.missing import require
from lume_diff.blackbox.codes.model import CodeModel, CodeSimulator
from lume_diff.blackbox.codes.optics_names import INITIAL, Optics, OpticsNames
from lume_diff.blackbox.codes.variables import check_names, is_periodic, knob_names, other_inputs, plan_outputs
from lume_diff.blackbox.difference import FiniteDifference
from lume_diff.errors import LatticeError

#: pyAT keeps the last lattice in a global of its own, and warnings are turned into errors for the time of a run.
_AT_WORK = threading.RLock()


def ATModel(
    lattice: Any,
    controls: Sequence[str] | None = None,
    outputs: Sequence[str] | None = None,
    *,
    beam: Any = None,
    periodic: bool | None = None,
    initial: Mapping[str, float] | None = None,
    gradient: FiniteDifference | str | None = FiniteDifference(),  # noqa: B008 - immutable
    dtype: torch.dtype = torch.float64,
    device: torch.device | str | None = None,
    **options: Any,
) -> CodeModel:
    """Make a pyAT lattice a model: a ring with its optics, or a line that tracks a bunch.

    Inputs are called ``"<element>.<attribute>"``: ``k1`` [1/m^2], ``k2`` [1/m^3], ``k3`` (as in MAD, so ``k2`` is twice
    pyAT's ``H``), ``k1s`` and so on for skew ones, ``k1l`` for thin ones, ``length`` [m], ``angle``, ``e1``, ``e2``,
    ``hkick``, ``vkick``, ``tilt`` [rad], ``misalignment_x``, ``misalignment_y`` [m], ``ks`` [1/m], ``voltage`` [V],
    ``frequency`` [Hz], ``time_lag`` [m]. Elements of one name act as one.

    Outputs are ``tune_x``, ``chroma_x`` and their likes of a ring; ``"<element>.beta_x"``, ``alpha_x``, ``mu_x`` [rad],
    ``eta_x`` [m], ``etap_x``, the orbit ``x`` [m] and ``px`` [eV/c], ``s`` [m] and ``r_matrix`` at an element's exit,
    where the last one of a name counts; the same at the end of the line as ``"final.beta_x"`` and along it as
    ``"line.beta_x"``. With a bunch also ``final_particles``, ``"<element>.particles"`` and every scalar statistic of
    openPMD-beamphysics (``"final.sigma_x"``, ``"Q1.norm_emit_x"``).

    The lattice is copied. ``model.simulator`` is the copy, and what is changed on it counts after ``model.refresh()``.
    Optics is that of the lattice as it stands, which may be one period of a ring. Energies do not change in a lattice
    whose cavities are off: call ``lattice.enable_6d()`` before.

    Args:
        lattice: an ``at.Lattice``, or a file of one that pyAT reads (``.mat``, ``.m``, ``.json``, ``.repr``, ...).
        controls: names of the inputs; None for strengths, lengths, angles, kicks and cavities that are on.
        outputs: names of the outputs; None for the ring's, the optics at markers, monitors and the end and along the
            line, and statistics of the bunch at the end.
        beam: the incoming bunch: a ``TorchParticleGroup``, a ``beamphysics.ParticleGroup``, a Cheetah beam, or a file.
            It becomes the input ``initial_particles``, with the lattice's ``reference_energy`` [eV], which an energy
            error of the bunch acts against, and a ``reference_time`` [s]. It passes once.
        periodic: whether optics is the periodic solution; None for a ring where neither a beam nor a start is given.
        initial: what a line starts with, such as ``{"beta_x": 10.0, "beta_y": 5.0}``; these are inputs called
            ``"initial.beta_x"`` and so on. By default a bunch tells beta and alpha, the rest is zero.
        gradient, dtype, device, options: see ``BlackBoxModel``.

    Returns:
        The model.

    Raises:
        MissingExtraError: if pyAT is not installed.
        LatticeError: for a file that is not a lattice.
        UnknownVariableError: for a control or an output that does not exist, with the nearest names.
        ValidationError: for a control of elements that differ, or a lattice set for other particles than the bunch's.

    Gradient:
        Estimated, at 2 runs an input; a bunch passes at 12 more, whatever its size. With ``gradient="native"`` the
        code's transfer matrices take the place of differences for the orbit by correctors, for what a line starts with,
        and for bunches by the incoming one, where they are its linear part.

    Source:
        pyAT, https://atcollab.github.io/at/.

    Example:
        >>> import at, torch
        >>> qf, qd, d = at.Quadrupole("QF", 0.5, 1.2), at.Quadrupole("QD", 0.5, -1.2), at.Drift("D", 1.0)
        >>> cell = [qf, d, qd, d]
        >>> ring = ATModel(at.Lattice(cell, energy=1e9), controls=["QF.k1"], outputs=["tune_x"])
        >>> k1 = torch.tensor(1.2, dtype=torch.float64, requires_grad=True)
        >>> ring({"QF.k1": k1})["tune_x"].backward()
        >>> bool(k1.grad > 0)
        True
    """
    check_names(controls, outputs)
    native = _read_lattice(lattice)
    bunch = incoming_bunch(beam, dtype, device)
    if bunch is not None:
        check_tracking(native)
    ring = is_periodic(periodic, beam, initial, controls)
    knobs = Knobs(native).choose(knob_names(controls, beam))
    finder = OpticsNames({e.FamName: index + 1 for index, e in enumerate(native)}, len(native), ring, COORDINATES)
    plan = plan_outputs(outputs, finder, _watched(native), bunch)
    momentum = reference_momentum(native, None if bunch is None else bunch.mass)
    others = other_inputs(plan, controls, initial, bunch, ring, float(native.energy), momentum)
    return CodeModel(
        _Factory(native, knobs, plan.optics, plan.places, ring),
        [*(knob.variable() for knob in knobs), *others, *plan.variables],
        gradient,
        derived=plan.derived,
        initial=None if bunch is None else {INCOMING: bunch},
        dtype=dtype,
        device=device,
        **options,
    )


def _read_lattice(lattice: Any) -> Any:
    """Return a lattice of our own.

    Raises:
        MissingExtraError, LatticeError
    """
    at = require("at", "pyAT", 'pip install "lume_diff[at]"')
    if isinstance(lattice, (str, Path)):
        path = Path(lattice)
        if not path.is_file():
            raise LatticeError(f"lattice file {str(path)!r} does not exist")
        try:
            return at.load_lattice(str(path))
        except Exception as error:
            raise LatticeError(f"lattice file {str(path)!r} is not one that pyAT reads: {error}") from error
    if isinstance(lattice, at.Lattice):
        if not len(lattice):
            raise LatticeError("the lattice has no elements")
        return lattice.deepcopy()
    raise LatticeError(
        f"lattice is a {type(lattice).__module__}.{type(lattice).__qualname__}; expected an at.Lattice or the path of "
        "a file that pyAT reads; a list of elements becomes one by at.Lattice(elements, energy=1e9)"
    )


def _watched(lattice: Any) -> list[str]:
    """Return the names of markers and monitors."""
    import at

    return list(dict.fromkeys(e.FamName for e in lattice if isinstance(e, (at.Marker, at.Monitor))))


class _Factory:
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
