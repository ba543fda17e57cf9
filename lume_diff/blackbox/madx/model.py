"""MADXModel: a MAD-X deck as a model with gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lume_diff.blackbox.codes.bunch_names import INCOMING, incoming_bunch
from lume_diff.blackbox.codes.model import CodeModel
from lume_diff.blackbox.codes.optics_names import OpticsNames
from lume_diff.blackbox.codes.variables import check_names, is_periodic, knob_names, other_inputs, plan_outputs
from lume_diff.blackbox.differences.method import FiniteDifference
from lume_diff.blackbox.madx.knobs import KnobFinder, values
from lume_diff.blackbox.madx.session import MADXSession
from lume_diff.blackbox.madx.simulator import MADXFactory
from lume_diff.blackbox.madx.tracking import check_species
from lume_diff.errors import LatticeError

COORDINATES = "MAD-X's coordinates (x, px/p0, y, py/p0, -c dt, dE/(p0 c))"
_WATCHING = ("marker", "monitor", "hmonitor", "vmonitor", "instrument")


def MADXModel(
    deck: str | Path | Sequence[str | Path],
    sequence: str | None = None,
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
    """Make a MAD-X deck a model: a ring or a line with its optics, or a line that tracks a bunch.

    Names are lower-case, as MAD-X has them. Inputs are ``"<element>.<attribute>"``: ``k1`` [1/m^2], ``k1s``, ``k2``
    [1/m^3], ``k3``, ``k1l`` and so on of multipoles, ``length`` [m], ``angle``, ``e1``, ``e2``, ``tilt``, ``hkick``,
    ``vkick`` [rad], ``ks`` [1/m], ``voltage`` [V], ``frequency`` [Hz], ``lag`` [turns]; and the deck's variables
    (``"kqf"``). An attribute that the deck binds to a variable is overridden where it differs from the deck's value.

    Outputs are as of ``ATModel``: ``tune_x``, ``chroma_x``, ``"<element>.beta_x"``, ``"final.beta_x"``,
    ``"line.beta_x"``, and with a bunch, which PTC tracks, ``final_particles``, ``"<element>.particles"`` and
    ``"final.sigma_x"``. Dispersion and chromaticity are by the relative momentum. Tunes are MAD-X's phase advance over
    the sequence, which has all digits where its summary has ten.

    MAD-X runs in a child process, which is replaced when it dies. ``model.simulator`` is the ``Madx`` object; what is
    commanded there counts after ``model.refresh()``, and is commanded again to every later process. A failed run ends
    the process: take ``model.simulator`` anew then. A change of a length expands the sequence anew, which drops errors
    that were assigned to it.

    Args:
        deck: the file, or several that are called in this order; with a BEAM command.
        sequence: its name; None for the one in use, or the only one.
        controls: names of the inputs; None for all strengths, lengths, angles, kicks and cavities, or the variables
            that they are bound to.
        outputs: names of the outputs; None for the ring's, the optics at markers, monitors and the end and along the
            line, and statistics of the bunch at the end.
        beam: the incoming bunch, see ``ATModel``; the reference energy is that of the BEAM command.
        periodic: whether optics is the periodic solution; None for a ring where neither a beam nor a start is given.
        initial: what a line starts with, see ``ATModel``.
        gradient, dtype, device, options: see ``BlackBoxModel``.

    Returns:
        The model.

    Raises:
        MissingExtraError: if cpymad is not installed.
        LatticeError: for a deck that is missing or that MAD-X does not take.
        UnknownVariableError: for a control or an output that does not exist, with the nearest names.
        ValidationError: for a control that is bound to another, or a BEAM of other particles than the bunch's.

    Gradient:
        Estimated, at 2 runs an input; a bunch passes at 12 more, whatever its size. With ``gradient="native"`` the
        code's transfer matrices take the place of differences for the orbit by correctors, for what a line starts with,
        and for bunches by the incoming one, where they are its linear part.

    Source:
        MAD-X, https://madx.web.cern.ch; cpymad, https://hibtc.github.io/cpymad.

    Example:
        >>> mad = MADXModel("fodo.madx", sequence="cell", controls=["qf.k1"], outputs=["tune_x"])  # doctest: +SKIP
        >>> mad({"qf.k1": k1})["tune_x"].backward()  # doctest: +SKIP
    """
    check_names(controls, outputs)
    files = _files(deck)
    bunch = incoming_bunch(beam, dtype, device)
    ring = is_periodic(periodic, beam, initial, controls)
    session = MADXSession(files, sequence)
    try:
        with session.own_work():
            if bunch is not None:
                check_species(session, bunch.mass)
            knobs = KnobFinder(session).choose(knob_names(controls, beam))
            nodes, elements = session.node_names(), set(session.element_names())
            last = {name: place for place, name in enumerate(nodes) if name in elements}
            finder = OpticsNames(last, len(nodes) - 1, ring, COORDINATES)
            plan = plan_outputs(outputs, finder, _watched(session), bunch)
            energy, momentum = 1e9 * float(session.beam.energy), 1e9 * float(session.beam.pc)
            others = other_inputs(plan, controls, initial, bunch, ring, energy, momentum)
            present = values(session, knobs)
            inputs = [knob.variable(present[knob.name]) for knob in knobs]
        factory = MADXFactory(files, session.sequence, knobs, plan.optics, plan.places, ring)
        if options.get("workers"):
            session.close()
        else:
            factory.session = session
        return CodeModel(
            factory,
            [*inputs, *others, *plan.variables],
            gradient,
            derived=plan.derived,
            initial=None if bunch is None else {INCOMING: bunch},
            dtype=dtype,
            device=device,
            **options,
        )
    except BaseException:
        session.close()
        raise


def _files(deck: str | Path | Sequence[str | Path]) -> list[Path]:
    """Return the files of a deck; MAD-X would die of a missing one."""
    if not isinstance(deck, (str, Path)) and not isinstance(deck, Sequence):
        raise LatticeError(f"deck is a {type(deck).__name__}; expected a file of MAD-X commands, or a list of files")
    files = [Path(file).absolute() for file in ([deck] if isinstance(deck, (str, Path)) else deck)]
    if not files:
        raise LatticeError("deck has no file; give one at least")
    for file in files:
        if not file.is_file():
            raise LatticeError(f"deck {str(file)!r} does not exist; expected a file of MAD-X commands")
    return files


def _watched(session: MADXSession) -> list[str]:
    """Return the names of markers and monitors."""
    elements = session.madx.elements
    return [name for name in session.element_names() if elements[name].base_type.name in _WATCHING]
