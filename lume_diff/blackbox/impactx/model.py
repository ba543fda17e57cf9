"""ImpactXModel: particles through ImpactX, with or without space charge, as a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
from lume_diff.blackbox.codes.optics_names import FINAL, MATRIX, OpticsNames
from lume_diff.blackbox.codes.variables import check_names, knob_names
from lume_diff.blackbox.differences.method import FiniteDifference
from lume_diff.blackbox.impactx.engine import Engine
from lume_diff.blackbox.impactx.knobs import Knobs
from lume_diff.blackbox.impactx.lattice import Lattice, impactx, lattice_data
from lume_diff.blackbox.impactx.simulator import Factory, ImpactXSimulator, Recipe
from lume_diff.blackbox.model import BlackBoxModel
from lume_diff.errors import UnknownVariableError, ValidationError, nearest_names
from lume_diff.variables import TorchNDVariable, TorchScalarVariable, Variable

SPACE_CHARGE = ("2D", "2p5D", "3D", "Gauss3D", "Gauss2p5D")
#: What ImpactX is told where a bunch acts on itself: a direct solver, which needs little room around the bunch.
_COLLECTIVE: Mapping[str, Any] = {
    "particle_shape": 2,
    "poisson_solver": "fft",
    "dynamic_size": True,
    "prob_relative": [1.1],
}
#: ImpactX makes its mesh of blocks of so many cells.
_BLOCK = 8
#: Outputs of a place that are no bunch: name -> (unit, description).
PLACE = {
    "reference_energy": ("eV", "total energy of the reference particle"),
    "s": ("m", "path length of the reference particle from the start"),
}
_COORDINATES = "x [m], px/p0, y [m], py/p0, c t [m], -(E - E0)/(p0 c), t and E relative to the reference particle"


def ImpactXModel(
    lattice: Lattice,
    controls: Sequence[str] | None = None,
    outputs: Sequence[str] | None = None,
    beam: Any = None,
    *,
    space_charge: str | None = None,
    n_cell: Sequence[int] = (32, 32, 32),
    settings: Mapping[str, Any] | None = None,
    reference_energy: float | None = None,
    gradient: FiniteDifference | str | None = FiniteDifference(),  # noqa: B008 - immutable
    **options: Any,
) -> BlackBoxModel:
    """Build a model that tracks a bunch with ImpactX.

    Controls are called ``"<element>.<attribute>"`` by the field's names (``Q1.k1`` [1/m^2], ``B1.angle`` [rad],
    ``D1.length`` [m], ``C1.hkick`` [rad], ``Q1.misalignment_x`` [m], ``Q1.tilt`` [rad]) or by ImpactX's own in its own
    units (``Q1.k``, ``D1.ds``, ``B1.phi`` [deg]). Elements of one name act as one. The bunch, its reference energy and
    time are inputs; the reference starts as the bunch's mean and then stays, so that an energy error acts.

    Outputs are ``final_particles`` and ``<element>.particles``, every scalar statistic of openPMD-beamphysics behind an
    element (``Q1.sigma_x``) or at the end (``final.norm_emit_x``), ``<element>.reference_energy``, ``<element>.s`` and
    ``<element>.r_matrix`` (ImpactX's coordinates). Particles come out in the order in which they came in, with their
    ids; lost ones are dead.

    All models of a process share one ImpactX. A process has room for one AMReX code only: beside another one build
    the model with ``workers=1``.

    Args:
        lattice: ``impactx.elements`` in a row, a function that returns them (called in every process; for elements
            that act through Python functions), or the path of a MAD-X, PALS or ImpactX input file. It is read, never
            changed.
        controls: what can be set; None for strengths and lengths of all elements that have a name.
        outputs: what can be read; None for the bunch and its statistics at the end.
        beam: incoming bunch: a ``TorchParticleGroup``, ``beamphysics.ParticleGroup``, Cheetah beam or a file's path.
        space_charge: None, ``"2D"``, ``"2p5D"``, ``"3D"``, ``"Gauss3D"`` or ``"Gauss2p5D"``. Slices are those of the
            elements (``nslice``). With it build the model with ``FiniteDifference(particles="collective")`` where
            something upstream is differentiated.
        n_cell: cells of the mesh, multiples of 8.
        settings: further attributes of ``impactx.ImpactX``; with space charge the Poisson solver is ``"fft"`` and the
            mesh 1.1 times the bunch unless they say otherwise.
        reference_energy: total energy that the lattice is set for [eV]; None for the bunch's.
        gradient: how derivatives are taken.
        **options: of ``BlackBoxModel``.

    Returns:
        The model; ``simulator`` is the lattice, ``refresh()`` reads again what was changed there.

    Raises:
        MissingExtraError: if ImpactX is not installed.
        LatticeError: for a lattice that cannot be read.
        UnknownVariableError: for a control or an output that does not exist.
        ValidationError: without a beam, and for settings that are not ImpactX's.

    Gradient:
        Estimated, at 2 runs a control and, to the incoming bunch, 12 more; see ``FiniteDifference``.

    Source:
        A. Huebl et al., NAPAC'22, TUYE2, doi:10.18429/JACoW-NAPAC2022-TUYE2.

    Example:
        >>> import torch, lume_diff as ld
        >>> from impactx import elements
        >>> twiss = dict(beta_x=10.0, norm_emit_x=1e-6, beta_y=5.0, norm_emit_y=1e-6)
        >>> beam = ld.BunchFromMoments(100, mean_energy=1e8, charge=1e-10, **twiss).get("final_particles")
        >>> line = [elements.Quad(name="Q1", ds=0.2, k=1.0), elements.Drift(name="D1", ds=1.0)]
        >>> model = ImpactXModel(line, ["Q1.k1"], ["final.sigma_x"], beam)
        >>> k1 = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
        >>> model({"Q1.k1": k1})["final.sigma_x"].backward()
        >>> bool(k1.grad < 0)
        True
    """
    impactx()
    check_names(controls, outputs)
    bunch = incoming_bunch(beam, options.get("dtype", torch.float64), options.get("device"))
    if bunch is None:
        raise ValidationError("ImpactXModel needs the incoming bunch: give beam=")
    energy = float(bunch.reference_energy.detach().reshape(-1)[0]) if reference_energy is None else reference_energy
    data = lattice_data(lattice)
    simulator = ImpactXSimulator(Recipe(data))
    described = simulator.data()
    knobs = Knobs(described).choose(knob_names(controls, bunch))
    last = {element["name"]: place for place, element in enumerate(described, start=1) if element.get("name")}
    place = OpticsNames(last, len(described), False, _COORDINATES)
    wanted = [*default_bunches(), f"{FINAL}.reference_energy"] if outputs is None else list(dict.fromkeys(outputs))
    bunches = select_bunches([name for name in wanted if knows_bunch(name)], place)
    places, place_variables = _places([name for name in wanted if not knows_bunch(name)], place)
    chosen = _settings(space_charge, n_cell, settings)
    if not options.get("workers"):
        with Engine.at_work(chosen):  # what ImpactX refuses shows here
            pass
    recipe = Recipe(
        lattice=data,
        controls=[knob.name for knob in knobs],
        bunches=bunches.places,
        places=places,
        settings=chosen,
        reference_energy=energy,
    )
    return CodeModel(
        Factory(recipe),
        [
            *(knob.variable(described) for knob in knobs),
            *incoming_variables(bunch, energy),
            *bunches.variables,
            *place_variables,
        ],
        gradient,
        derived=bunches.derived,
        initial={INCOMING: bunch},
        **options,
    )


def _settings(space_charge: str | None, n_cell: Sequence[int], settings: Mapping[str, Any] | None) -> dict[str, Any]:
    given = dict(settings or {})
    if space_charge is None:
        return given
    if space_charge not in SPACE_CHARGE:
        raise ValidationError(f"space_charge is {space_charge!r}; expected None or one of {', '.join(SPACE_CHARGE)}")
    cells = [int(n) for n in n_cell]
    if len(cells) != 3 or any(n < _BLOCK or n % _BLOCK for n in cells):
        raise ValidationError(f"n_cell is {tuple(n_cell)}; expected three multiples of {_BLOCK}")
    return {"space_charge": space_charge, "n_cell": cells, **_COLLECTIVE, **given}


def _places(names: Sequence[str], place: OpticsNames) -> tuple[dict[str, tuple[int, str]], list[Variable]]:
    """Return where to look for outputs that are no bunch, and their variables.

    Raises:
        UnknownVariableError: for a name that is nothing.
    """
    places: dict[str, tuple[int, str]] = {}
    variables: list[Variable] = []
    for name in names:
        element, _, quantity = name.rpartition(".")
        if not element or quantity not in (*PLACE, MATRIX):
            choices = [OUTGOING, *(f"{element or FINAL}.{q}" for q in (*PLACE, MATRIX, "sigma_x", "particles"))]
            raise UnknownVariableError(
                f"output {name!r} is not known{nearest_names(name, choices)}; every scalar statistic of "
                "openPMD-beamphysics works too"
            )
        places[name] = (place.place(element, name), quantity)
        if quantity == MATRIX:
            text = f"transfer matrix from the start, in {_COORDINATES}"
            variables.append(TorchNDVariable(name=name, shape=(6, 6), description=text, read_only=True))
        else:
            unit, text = PLACE[quantity]
            variables.append(TorchScalarVariable(name=name, unit=unit, description=text, read_only=True))
    return places, variables
