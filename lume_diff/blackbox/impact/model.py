"""ImpactTModel: an IMPACT-T deck as a model with gradients."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from lume_diff.blackbox.codes.bunch_names import (
    INCOMING,
    OUTGOING,
    default_bunches,
    incoming_bunch,
    incoming_variables,
    knows_bunch,
    select_bunches,
)
from lume_diff.blackbox.codes.model import CodeModel
from lume_diff.blackbox.codes.optics_names import FINAL, OpticsNames
from lume_diff.blackbox.codes.variables import check_names
from lume_diff.blackbox.differences.method import FiniteDifference
from lume_diff.blackbox.impact.deck import Deck, read_deck, used_elements
from lume_diff.blackbox.impact.knobs import Knobs
from lume_diff.blackbox.impact.program import find_program, lume_impact
from lume_diff.blackbox.impact.simulator import Factory, Recipe
from lume_diff.errors import PhysicsWarning, UnknownVariableError, ValidationError, nearest_names
from lume_diff.particles import TorchParticleGroup

_COORDINATES = "IMPACT-T's coordinates"


def ImpactTModel(
    deck: str | os.PathLike[str],
    controls: Sequence[str] | None = None,
    outputs: Sequence[str] | None = None,
    *,
    beam: Any = None,
    start: float | None = None,
    timeout: float | None = 3600.0,
    command: str | os.PathLike[str] | None = None,
    gradient: FiniteDifference | str | None = FiniteDifference(),  # noqa: B008 - immutable
    dtype: torch.dtype = torch.float64,
    device: torch.device | str | None = None,
    **options: Any,
) -> CodeModel:
    """Make an IMPACT-T deck a model that tracks a bunch, with or without space charge.

    Controls are called as lume-impact does, in its units: ``"<element>.<attribute>"``, such as
    ``SOL1.solenoid_field_scale``, ``GUN.rf_field_scale``, ``GUN.theta0_deg`` [deg], ``Q1.b1_gradient`` [T/m],
    ``Q1.L`` [m], ``Q1.zedge`` [m]; ``"<group>.<variable>"`` of its control groups; ``"header.<name>"`` of the real
    numbers in the header (``header.Dt`` [s]); and ``"total_charge"`` [C], by which the bunch acts on itself.

    Outputs are ``final_particles`` at the deck's stop, ``"<element>.particles"`` where an element ends (a
    ``write_beam`` where it stands), and every scalar statistic of openPMD-beamphysics of them (``"final.sigma_x"``,
    ``"SCR1.norm_emit_x"``), computed of the particles and never of IMPACT-T's tables, which have 8 digits.

    IMPACT-T follows a bunch in time. So that stages fit together, it comes in and goes out on planes of constant z: a
    particle is drifted from its place at one time to the plane as if there were no field, so a plane belongs where
    there is none within the bunch's length and a step. z and t are the deck's: its phases count from t = 0. At the
    deck's cathode, z = 0, particles leave one after the other. Particles come out in the order in which they came
    in, with their ids; lost ones are dead. Step and mesh are the deck's; it runs on one processor.

    A bunch acts on itself if the deck's charge (``Bcurr``) is not zero, with the charge that it has; then build the
    model with ``FiniteDifference(particles="collective")`` where something upstream is differentiated.

    Every run has a folder of its own, which is removed. ``model.simulator`` is the ``impact.Impact``; what is changed
    on it counts after ``model.refresh()``.

    Args:
        deck: an ``ImpactT.in``, with its field files beside it, or a lume-impact YAML file.
        controls: names of the inputs; None for strengths and phases of all elements, and the control groups.
        outputs: names of the outputs; None for the bunch and its statistics at the end.
        beam: the incoming bunch: a ``TorchParticleGroup``, a ``beamphysics.ParticleGroup``, a Cheetah beam, or a file;
            it becomes the input ``initial_particles``. None for that of the YAML file or, as no input, the deck's own.
        start: where in the deck the bunch comes in [m]; None for its own z.
        timeout: how long a run may take [s]; it is not tried again then. None for ever.
        command: the serial executable; None for ``$IMPACTT_BIN``, or ``ImpactTexe`` on the path.
        gradient, dtype, device, options: see ``BlackBoxModel``.

    Returns:
        The model.

    Raises:
        MissingExtraError: if lume-impact, distgen or IMPACT-T is not installed; with the way to get it.
        LatticeError: for a deck that is missing or cannot be run.
        UnknownVariableError: for a control or an output that does not exist, with the nearest names.
        ValidationError: for a control that would do nothing, and a bunch that comes in behind the stop.

    Warns:
        PhysicsWarning: where the bunch is not at the beginning of the deck and ``start`` does not say so, and for
            space charge that is not solved in three dimensions, which IMPACT-T may leave out.

    Gradient:
        Estimated, at 2 runs an input; without space charge a bunch passes at 12 more, whatever its size.

    Source:
        J. Qiang et al., Phys. Rev. ST Accel. Beams 9, 044204 (2006), doi:10.1103/PhysRevSTAB.9.044204.

    Example:
        >>> inj = ImpactTModel("ImpactT.in", ["SOL1.solenoid_field_scale"], beam="beam.h5")  # doctest: +SKIP
        >>> inj({"SOL1.solenoid_field_scale": b})["final.sigma_x"].backward()  # doctest: +SKIP
    """
    check_names(controls, outputs)
    lume_impact()
    program = find_program(command)
    if timeout is not None and not timeout > 0.0:
        raise ValidationError(f"timeout is {timeout!r}; expected a time in seconds greater than 0, or None")
    native = read_deck(deck)
    bunch = incoming_bunch(native.initial_particles if beam is None else beam, dtype, device)
    native.initial_particles = None
    if bunch is not None and native.total_charge != 0.0:
        native.total_charge = float((bunch.weight * bunch.alive).detach().sum())
    _doubt_round_space_charge(native)
    names = None if controls is None else [name for name in controls if bunch is None or name != INCOMING]
    knobs = Knobs(native, bunch is not None).choose(names)
    bunches, variables = _outputs(outputs, [element["name"] for element in used_elements(native)])
    recipe = Recipe(
        program=program,
        controls=[knob.name for knob in knobs],
        bunches=bunches,
        timeout=timeout,
        has_bunch=bunch is not None,
    )
    copy = Deck.of(native)
    begin = -math.inf
    if bunch is not None:
        recipe = _started(recipe, bunch, start, copy)
        begin = float(bunch.z.detach().reshape(-1)[0]) + recipe.offset
        copy.check_entry(begin)
    copy.check_places({name: copy.place(e) for name, e in bunches.items() if e is not None}, begin)
    incoming = [] if bunch is None else incoming_variables(bunch, recipe.reference_energy)[:1]
    return CodeModel(
        Factory(native, recipe),
        [*(knob.variable(native) for knob in knobs), *incoming, *variables.variables],
        gradient,
        derived=variables.derived,
        initial=None if bunch is None else {INCOMING: bunch},
        dtype=dtype,
        device=device,
        **options,
    )


def _doubt_round_space_charge(native: Any) -> None:
    """Warn where space charge is left to IMPACT-T's solver for round bunches."""
    if native.total_charge == 0.0:
        return
    full = [float(e["s"]) for e in used_elements(native) if e["type"] == "rotationally_symmetric_to_3d"]
    if not full or full[-1] > 0.0:
        warnings.warn(
            "the deck leaves space charge to IMPACT-T's solver for round bunches, for which serial builds of version "
            "3.0 give zero: add the line '0 0 0 -5 0 0 -1000.0 /', which has it solved in three dimensions throughout",
            PhysicsWarning,
            stacklevel=3,
        )


def _outputs(outputs: Sequence[str] | None, elements: Sequence[str]) -> tuple[dict[str, str | None], Any]:
    """Return bunch output -> element, and the variables of all outputs.

    Raises:
        UnknownVariableError: for a name that is nothing.
    """
    wanted = default_bunches() if outputs is None else list(dict.fromkeys(outputs))
    place = OpticsNames({name: index for index, name in enumerate(elements)}, len(elements), False, _COORDINATES)
    for name in wanted:
        if not knows_bunch(name):
            element = name.rpartition(".")[0] or FINAL
            choices = [OUTGOING, *(f"{element}.{quantity}" for quantity in ("sigma_x", "mean_energy", "particles"))]
            raise UnknownVariableError(
                f"output {name!r} is not known{nearest_names(name, choices)}; every scalar statistic of "
                "openPMD-beamphysics works too"
            )
    found = select_bunches(wanted, place)
    named: list[str | None] = [*elements, None]
    return {name: named[index] for name, index in found.places.items()}, found


def _started(recipe: Recipe, bunch: TorchParticleGroup, start: float | None, deck: Deck) -> Recipe:
    """Say where and when runs begin: before the first particle comes to the plane, the same for small changes.

    Raises:
        ValidationError: for a place that is not a number.
    """
    z = float(bunch.z.detach().reshape(-1)[0])
    if start is None and z != 0.0:
        warnings.warn(
            f"the bunch comes in at z = {z:g} m of the deck, which is where it says it is; give start={z!r} if that is "
            "meant, or start=0.0 if the deck begins where the bunch is",
            PhysicsWarning,
            stacklevel=3,
        )
    place = z if start is None else float(start)
    if not math.isfinite(place):
        raise ValidationError(f"start is {start!r}; expected a place in the deck [m]")
    t = bunch.t.detach()[bunch.alive.detach() > 0.5]
    if not len(t):
        raise ValidationError("no particle of the incoming bunch lives, so there is nothing to track")
    length = float(t.max() - t.min())
    room = 0.1 * length + float(deck.header["Dt"])
    return replace(
        recipe,
        offset=place - z,
        start_time=float(t.min()) - room,
        patience=10.0 * (length + room),
        reference_energy=float(bunch.reference_energy.detach().reshape(-1)[0]),
    )
