"""Steps along a line that are not a matrix: cavities, apertures, second order, kicks, and what only Cheetah can do."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lume_diff.errors import GradientError, PhysicsWarning, SimulatorError
from lume_diff.models import optics
from lume_diff.models.guards import warn_of_gradient
from lume_diff.models.line.bunch import TrackedBunch, TrackedMoments
from lume_diff.models.line.elements import ATTRIBUTES, Element
from lume_diff.models.transforms import in_vmap

if TYPE_CHECKING:
    from lume_diff.models.line.tracking import LineRun

Step = Callable[["LineRun", int, TrackedBunch], TrackedBunch]


@dataclass(frozen=True)
class Losses:
    """How apertures act.

    Attributes:
        mode: ``"hard"`` cuts, and a gradient of what depends on the cut warns; ``"soft"`` lets the survival
            probability fall smoothly over ``width``.
        width: of the soft edge, as a share of the aperture's half size.
    """

    mode: str = "hard"
    width: float = 0.02


def step_of(element: Element, active: bool, changed: Mapping[str, Tensor], losses: Losses) -> Step | None:
    """Return how the beam passes an element that is not linear, or None for a linear one."""
    match element.kind:
        case "Cavity":
            voltage = f"{element.name}.voltage"
            is_off = voltage not in changed and not element.values["voltage"].requires_grad
            return None if is_off and bool((element.values["voltage"] == 0).all()) else _cavity
        case "Aperture":
            return (_soft_aperture if losses.mode == "soft" else _hard_aperture) if active else None
        case "Screen":
            return _blocking_screen if active and element.option("is_blocking", False) else None
        case "TransverseDeflectingCavity":
            return _transverse_deflecting_cavity
        case "Drift" | "Quadrupole" | "Dipole" | "RBend" | "Sextupole":
            return _METHODS.get(element.option("tracking_method", "linear"))
        case kind if kind not in ATTRIBUTES or kind == "SpaceChargeKick":
            return _native
    return None


def pass_special(step: Step, run: LineRun, index: int, beam: TrackedBunch | TrackedMoments) -> Any:
    """Carry particles or moments through an element that is not linear.

    Raises:
        SimulatorError: for moments and an element that needs particles.
    """
    if isinstance(beam, TrackedBunch):
        return step(run, index, beam)
    element = run.maps.elements[index]
    if step is _cavity:
        mean, cov, _ = optics.cavity_moments(
            beam.mean,
            beam.cov,
            *(run.number(index, name) for name in ("length", "voltage", "phase", "frequency")),
            beam.reference.energy,
            beam.mass,
            beam.charge_number,
            element.option("cavity_type", "standing_wave"),
        )
        return beam.moved(mean, cov, run.reference(index + 1))
    if step is _blocking_screen:
        return beam.blocked(run.reference(index + 1))
    if step in (_hard_aperture, _soft_aperture):
        warnings.warn(
            f"aperture {element.name!r} does nothing to moments: give the model particles", PhysicsWarning, stacklevel=2
        )
        return beam.moved(beam.mean, beam.cov, run.reference(index + 1))
    raise SimulatorError(
        f"element {element.name!r} ({element.kind}, tracking_method {element.option('tracking_method', 'native')!r}) "
        "needs particles, and the beam is moments: give the model a bunch, or track the element linearly"
    )


def _cavity(run: LineRun, index: int, bunch: TrackedBunch) -> TrackedBunch:
    element = run.maps.elements[index]
    particles, _ = optics.cavity_track(
        bunch.particles,
        *(run.number(index, name) for name in ("length", "voltage", "phase", "frequency")),
        bunch.reference.energy,
        bunch.mass,
        bunch.charge_number,
        element.option("cavity_type", "standing_wave"),
    )
    return bunch.moved(particles, run.reference(index + 1))


def _misalignment(run: LineRun, index: int) -> Tensor:
    pair = run.number(index, "misalignment_x"), run.number(index, "misalignment_y")
    return torch.stack(torch.broadcast_tensors(*pair), dim=-1)


def _transverse_deflecting_cavity(run: LineRun, index: int, bunch: TrackedBunch) -> TrackedBunch:
    particles = optics.track_transverse_deflecting_cavity(
        bunch.particles,
        *(run.number(index, name) for name in ("length", "voltage", "phase", "frequency")),
        bunch.reference.energy,
        bunch.mass,
        bunch.charge_number,
        tilt=run.number(index, "tilt"),
        misalignment=_misalignment(run, index),
    )
    return bunch.moved(particles, run.reference(index + 1))


def _inside(run: LineRun, index: int, bunch: TrackedBunch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x_max, y_max = (run.number(index, name).unsqueeze(-1) for name in ("x_max", "y_max"))
    return bunch.x, bunch.y, x_max, y_max


def _hard_aperture(run: LineRun, index: int, bunch: TrackedBunch) -> TrackedBunch:
    """Cut the bunch as Cheetah does; autograd leaves out how the cut moves through the bunch, and says so."""
    element = run.maps.elements[index]
    x, y, x_max, y_max = _inside(run, index, bunch)
    if element.option("shape") == "elliptical":
        passed = (x / x_max).square() + (y / y_max).square() <= 1.0
    else:
        passed = (x.abs() < x_max) & (y.abs() < y_max)
    alive = bunch.alive * passed
    here = bunch.weight * bunch.alive
    lost = 1.0 - (here * passed).sum(-1).detach() / here.sum(-1).detach().clamp_min(torch.finfo(here.dtype).tiny)
    message = (
        f"particles are lost at aperture {element.name!r}: the gradient of what is left leaves out the particles that "
        "cross its edge; build the model with losses='soft' for one that does not"
    )
    return bunch.moved(warn_of_gradient(bunch.particles, message, lost), run.reference(index + 1), alive)


def _soft_aperture(run: LineRun, index: int, bunch: TrackedBunch) -> TrackedBunch:
    """Let the survival probability fall over a share of the half size, one half at the edge."""
    x, y, x_max, y_max = _inside(run, index, bunch)
    if run.maps.elements[index].option("shape") == "elliptical":
        square = (x / x_max).square() + (y / y_max).square()
        alive = torch.sigmoid((1.0 - square.clamp_min(torch.finfo(square.dtype).tiny).sqrt()) / run.losses.width)
    else:
        alive = _soft_slit(x, x_max, run.losses.width) * _soft_slit(y, y_max, run.losses.width)
    return bunch.moved(bunch.particles, run.reference(index + 1), bunch.alive * alive)


def _soft_slit(position: Tensor, half: Tensor, width: float) -> Tensor:
    is_open = torch.isinf(half)
    half = torch.where(is_open, 1.0, half)
    passed = torch.sigmoid((half - position) / (width * half)) * torch.sigmoid((half + position) / (width * half))
    return torch.where(is_open, 1.0, passed)


def _blocking_screen(run: LineRun, index: int, bunch: TrackedBunch) -> TrackedBunch:
    return bunch.moved(bunch.particles, run.reference(index + 1), torch.zeros_like(bunch.alive))


def _second_order(run: LineRun, index: int, bunch: TrackedBunch) -> TrackedBunch:
    element, energy, mass = run.maps.elements[index], bunch.reference.energy, bunch.mass

    def get(name: str) -> Tensor:
        return run.number(index, name)

    match element.kind:
        case "Drift":
            tensor = optics.second_order_drift(get("length"), energy, mass)
        case "Quadrupole":
            tensor = optics.second_order_quadrupole(
                get("length"), get("k1"), energy, mass, get("tilt"), _misalignment(run, index)
            )
        case "Sextupole":
            tensor = optics.second_order_sextupole(
                get("length"), get("k2"), energy, mass, get("tilt"), _misalignment(run, index)
            )
        case _:
            tensor = optics.second_order_dipole(
                get("length"), get("angle"), energy, mass, get("k1"), *_faces(run, index), get("tilt"), get("gap"),
                get("fringe_integral"), get("fringe_integral_exit"),
            )  # fmt: skip
    return bunch.moved(optics.apply_second_order(tensor, bunch.particles), run.reference(index + 1))


def _faces(run: LineRun, index: int) -> tuple[Tensor, Tensor]:
    """Return the face angles of a bend as a sector bend has them."""
    if run.maps.elements[index].kind == "RBend":
        half = 0.5 * run.number(index, "angle")
        return run.number(index, "rbend_e1") + half, run.number(index, "rbend_e2") + half
    return run.number(index, "dipole_e1"), run.number(index, "dipole_e2")


def _drift_kick_drift(run: LineRun, index: int, bunch: TrackedBunch) -> TrackedBunch:
    element, energy, mass = run.maps.elements[index], bunch.reference.energy, bunch.mass

    def get(name: str) -> Tensor:
        return run.number(index, name)

    match element.kind:
        case "Drift":
            particles = optics.track_drift(bunch.particles, get("length"), energy, mass)
        case "Quadrupole":
            particles = optics.track_quadrupole(
                bunch.particles, get("length"), get("k1"), energy, mass, get("tilt"), _misalignment(run, index),
                num_steps=element.option("num_steps", 1),
            )  # fmt: skip
        case _:
            particles = optics.track_dipole(
                bunch.particles, get("length"), get("angle"), energy, mass, *_faces(run, index), get("tilt"),
                get("gap"), get("gap_exit"), get("fringe_integral"), get("fringe_integral_exit"),
                fringe_at=element.option("fringe_at", "both"),
            )  # fmt: skip
    return bunch.moved(particles, run.reference(index + 1))


_METHODS: dict[str, Step] = {"second_order": _second_order, "drift_kick_drift": _drift_kick_drift}


def _native(run: LineRun, index: int, bunch: TrackedBunch) -> TrackedBunch:
    """Track with Cheetah's own element, on a copy that nobody else sees."""
    import cheetah

    from lume_diff.particles.cheetah_beams import cheetah_species

    element = run.maps.elements[index]
    if in_vmap(bunch.particles) or any(in_vmap(value) for value in run.changed.values()):
        raise GradientError(
            f"torch.func.vmap cannot pass element {element.name!r} ({element.kind}), which Cheetah tracks itself: give "
            "the inputs a leading batch dimension instead, model({name: values of shape (batch,)})"
        )
    native = element.native.clone()
    for attribute in element.attributes:
        setattr(native, attribute.feature, run.number(index, attribute.name))
    beam = cheetah.ParticleBeam(
        particles=bunch.particles,
        energy=bunch.reference.energy,
        particle_charges=bunch.weight,
        survival_probabilities=bunch.alive,
        s=bunch.reference.s,
        species=cheetah_species(bunch.static, bunch.particles),
    )
    outgoing: Any = native.track(beam)
    return bunch.moved(outgoing.particles, run.reference(index + 1), outgoing.survival_probabilities)
