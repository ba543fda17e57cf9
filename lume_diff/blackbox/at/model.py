"""ATModel: a lattice of the Accelerator Toolbox (pyAT) as a model with gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lume_diff.blackbox.at.knobs import Knobs
from lume_diff.blackbox.at.optics import COORDINATES
from lume_diff.blackbox.at.simulator import ATFactory
from lume_diff.blackbox.at.tracking import check_tracking, reference_momentum
from lume_diff.blackbox.codes.bunch_names import INCOMING, incoming_bunch
from lume_diff.blackbox.codes.missing import require
from lume_diff.blackbox.codes.model import CodeModel
from lume_diff.blackbox.codes.optics_names import OpticsNames
from lume_diff.blackbox.codes.variables import check_names, is_periodic, knob_names, other_inputs, plan_outputs
from lume_diff.blackbox.differences.method import FiniteDifference
from lume_diff.errors import LatticeError


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
        ATFactory(native, knobs, plan.optics, plan.places, ring),
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
