"""BmadModel: a deck of Bmad's Tao as a model with gradients."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from lume_diff.blackbox.bmad.deck import deck_file
from lume_diff.blackbox.bmad.knobs import KnobFinder
from lume_diff.blackbox.bmad.optics import COORDINATES
from lume_diff.blackbox.bmad.session import check_installed
from lume_diff.blackbox.bmad.simulator import NO_BETA, Recipe, TaoFactory, start_command
from lume_diff.blackbox.bmad.survey import Survey, Surveyor
from lume_diff.blackbox.bmad.tracking import beam_setup
from lume_diff.blackbox.codes.bunch_names import INCOMING, bunch_on_plane, incoming_bunch, knows_bunch
from lume_diff.blackbox.codes.model import CodeModel
from lume_diff.blackbox.codes.optics_names import INITIAL, MATRIX, PLACE, RING, OpticsNames
from lume_diff.blackbox.codes.plain_bunches import check_mass
from lume_diff.blackbox.codes.variables import check_names, is_periodic, knob_names, other_inputs, plan_outputs
from lume_diff.blackbox.differences.method import FiniteDifference
from lume_diff.blackbox.runners.pool import WorkerPool
from lume_diff.blackbox.runners.proxy import ask
from lume_diff.errors import ValidationError
from lume_diff.variables import Variable

_WATCHING = ("Marker", "Monitor", "Instrument", "Detector")


def BmadModel(
    deck: str | Path,
    controls: Sequence[str] | None = None,
    outputs: Sequence[str] | None = None,
    *,
    beam: Any = None,
    periodic: bool | None = None,
    initial: Mapping[str, float] | None = None,
    seed: int | None = None,
    workers: int = 1,
    gradient: FiniteDifference | str | None = FiniteDifference(),  # noqa: B008 - immutable
    dtype: torch.dtype = torch.float64,
    device: torch.device | str | None = None,
    **options: Any,
) -> CodeModel:
    """Make a Bmad lattice, as Tao computes it, a model: a ring or a line with its optics, or one that tracks a bunch.

    Names are upper-case, as Bmad has them; of several universes and branches it is the first. Inputs are
    ``"<element>.<attribute>"``: ``k1`` [1/m^2], ``k2`` [1/m^3], ``k3``, ``length`` [m], ``angle``, ``e1``, ``e2``,
    ``tilt``, ``hkick``, ``vkick`` [rad], ``ks`` [1/m], ``voltage`` [V], ``frequency`` [Hz], ``phi0`` [turns],
    ``misalignment_x``, ``misalignment_y`` [m], and every other number that Bmad has there by Bmad's name in lower case
    (``"Q1.x_pitch"``, ``"Q1.b1_gradient"``); variables of overlays and groups are called ``"OV1.a"``. Elements of one
    name act as one. What an overlay decides is set there.

    Outputs are as of ``ATModel``: ``tune_x``, ``chroma_x``, ``"<element>.beta_x"``, ``"final.beta_x"``,
    ``"line.beta_x"``, and with a bunch ``final_particles``, ``"<element>.particles"`` and ``"final.sigma_x"``. Beta,
    alpha and phase are those of Bmad's normal modes a (x) and b (y).

    Tao is one per process, so it runs in a worker process, which is replaced when it dies; ``workers=0`` runs it in
    this process, which then has room for one such model. ``model.simulator`` is the ``pytao.Tao``, or a proxy of it;
    what is commanded there counts after ``model.refresh()``. Take it anew after a run: Tao computes nothing in between.

    Args:
        deck: Tao's initialisation file (``tao.init``), or a bare Bmad lattice file.
        controls: names of the inputs; None for strengths, lengths, angles, kicks, cavities and variables of overlays.
        outputs: names of the outputs; None for the ring's, the optics at markers, monitors and the end and along the
            line, and statistics of the bunch at the end.
        beam: the incoming bunch, see ``ATModel``; None for the deck's own where an output asks for a bunch. The deck's
            settings of the bunch other than its tracking (centre, jitter, scaled charge) do not act on it.
        periodic: whether the lattice is a ring; None for what the deck says, and for a line where ``initial`` is given.
        initial: what a line starts with, see ``ATModel``; by default what the deck says, then what the bunch has.
        seed: of Tao's random numbers, 1 or more, set before every run with a bunch; None for the deck's own, or 1. The
            deck's own bunch is drawn with it once.
        workers: how many processes of its own Tao runs in; 0 for this process.
        gradient, dtype, device, options: see ``BlackBoxModel``.

    Returns:
        The model.

    Raises:
        MissingExtraError: if pytao or Tao's library is not installed.
        LatticeError: for a deck that is missing or that Tao does not take.
        UnknownVariableError: for a control or an output that does not exist, with the nearest names.
        ValidationError: for a control that something else decides, a lattice of other particles than the bunch's, a
            seed below 1, or a second Tao in this process.

    Gradient:
        Estimated, at 2 runs an input; a bunch passes at 12 more, whatever its size. Where the deck has CSR or space
        charge on, build with ``FiniteDifference(particles="collective")``. ``gradient="native"`` takes Tao's transfer
        matrices for a line's optics by its start, and for a bunch by the incoming one to first order.

    Source:
        D. Sagan, Nucl. Instrum. Methods A 558, 356 (2006), doi:10.1016/j.nima.2005.11.001; https://www.classe.cornell.edu/bmad.

    Example:
        >>> tao = BmadModel("tao.init", controls=["Q1.k1"], outputs=["END.beta_x"])  # doctest: +SKIP
        >>> tao({"Q1.k1": k1})["END.beta_x"].backward()  # doctest: +SKIP
    """
    check_names(controls, outputs)
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int) or seed < 1):
        raise ValidationError(
            f"seed is {seed!r}; expected a whole number, 1 or more: Tao takes the time for it otherwise"
        )
    path = deck_file(deck)
    check_installed()
    with _Asked(path, here=not workers and options.get("executor") is None) as asked:
        found: Survey = asked("survey")
        bunch = incoming_bunch(beam, dtype, device)
        drawn = found.seed if seed is None else seed
        own = bunch is None and _wants_own_beam(found, outputs)
        if own:
            bunch = bunch_on_plane(asked("beam", drawn, found.particle, found.mass), dtype, device)
            bunch = bunch.replace(reference_energy=found.energy, reference_time=0.0)
        if bunch is not None:
            check_mass(bunch.mass, found.mass, found.particle, "the lattice")
        starts = initial is not None or any(name.startswith(f"{INITIAL}.") for name in controls or ())
        ring = is_periodic(found.closed and not starts if periodic is None else periodic, None, initial, controls)
        knobs = KnobFinder(found.elements, functools.partial(asked, "probe")).choose(knob_names(controls, bunch))
        last = {name: element.place for name, element in found.elements.items() if element.place is not None}
        plan = plan_outputs(outputs, OpticsNames(last, found.count, ring, COORDINATES), _watched(found), bunch)
        others = other_inputs(plan, controls, initial, bunch, ring, found.energy, found.momentum)
        others = _with_deck_start(others, found, initial or {})
        setup = [f"set branch 0 geometry = {'closed' if ring else 'open'}"] if ring != found.closed else []
        setup += [] if ring else _start_setup(others, found)
        recipe = Recipe(
            deck=path,
            survey=found,
            knobs=knobs,
            starts={v.name.partition(".")[2]: v.default_value for v in others if v.name.startswith(f"{INITIAL}.")},
            optics=plan.optics,
            periodic=ring,
            bunches=plan.places,
            setup=[*setup, *beam_setup(plan.places)] if bunch is not None else setup,
            seed=drawn,
        )
        factory = TaoFactory(recipe, asked.keep())
    return CodeModel(
        factory,
        [*(knob.variable() for knob in knobs), *others, *plan.variables],
        gradient,
        derived=plan.derived,
        initial=None if bunch is None else {INCOMING: bunch},
        workers=workers if options.get("executor") is None else 0,
        dtype=dtype,
        device=device,
        **options,
    )


class _Asked:
    """Ask a surveyor, here or in a process of its own.

    Args:
        deck: the file.
        here: whether in this process.
    """

    def __init__(self, deck: Path, here: bool) -> None:
        self._asked = Surveyor(deck) if here else WorkerPool(functools.partial(Surveyor, deck), workers=1)
        self._is_kept = False

    def __call__(self, what: str, *args: Any) -> Any:
        if isinstance(self._asked, Surveyor):
            answer = self._asked.ask(what, *args)
        else:
            answer = ask(self._asked.simulator.ask, what, *args)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def keep(self) -> Any:
        """Return the session, which is then not closed; None of another process."""
        if not isinstance(self._asked, Surveyor):
            return None
        self._is_kept = True
        return self._asked.session

    def __enter__(self) -> _Asked:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._is_kept:
            self._asked.close()


def _wants_own_beam(found: Survey, outputs: Sequence[str] | None) -> bool:
    """Tell whether the deck's own beam is wanted.

    Raises:
        ValidationError: if it is and the deck has none.
    """
    if outputs is None:
        return bool(found.tracks and found.beam)
    optics = (*PLACE, *RING, MATRIX)
    of_bunch = [name for name in outputs if knows_bunch(name) and name.rpartition(".")[2] not in optics]
    if of_bunch and not found.beam:
        raise ValidationError(
            f"output {of_bunch[0]!r} belongs to a bunch, and the deck has none (beam_init%n_particle is 0): give beam="
        )
    return bool(of_bunch)


def _watched(found: Survey) -> list[str]:
    """Return the names of markers and monitors."""
    return [name for name, element in found.elements.items() if element.key in _WATCHING and element.place is not None]


def _with_deck_start(variables: Sequence[Variable], found: Survey, given: Mapping[str, float]) -> list[Variable]:
    """Return variables with what the deck starts with as the default of what the user has not given."""
    changed = []
    for variable in variables:
        head, _, name = variable.name.partition(".")
        standing = found.start.get(name, 0.0)
        if head == INITIAL and name not in given and (standing > 0.0 or (found.start and "beta" not in name)):
            factor = found.momentum if name in ("px", "py") else 1.0
            variable = variable.model_copy(update={"default_value": factor * standing})
        changed.append(variable)
    return changed


def _start_setup(variables: Sequence[Variable], found: Survey) -> list[str]:
    """Return the commands that make the defaults of the start Tao's own, and its beta functions positive."""
    known = {v.name.partition(".")[2]: v.default_value for v in variables if v.name.startswith(f"{INITIAL}.")}
    start = {name: float(value) for name, value in known.items() if value is not None}
    for name in ("beta_x", "beta_y"):
        if found.start.get(name, 0.0) <= 0.0:
            start.setdefault(name, NO_BETA)
    return [start_command(name, value, found.momentum) for name, value in start.items()]
