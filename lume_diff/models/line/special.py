"""Steps along a line that are not a matrix: cavities, second order, kicks, and what only Cheetah can do."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lume_diff.errors import GradientError, PhysicsWarning, SimulatorError
from lume_diff.models import optics
from lume_diff.models.line.apertures import Losses, hard_aperture, soft_aperture
from lume_diff.models.line.bunch import TrackedBunch, TrackedMoments
from lume_diff.models.line.elements import Element
from lume_diff.models.transforms import in_vmap

if TYPE_CHECKING:
    from lume_diff.models.line.tracking import LineRun

Step = Callable[["LineRun", int, TrackedBunch], TrackedBunch]


def candidates(elements: Sequence[Element]) -> list[int]:
    """Return the positions of the elements that may turn out not to be linear."""
    return [
        index
        for index, element in enumerate(elements)
        if element.native is not None
        or element.kind in ("Cavity", "Aperture", "TransverseDeflectingCavity")
        or (element.kind == "Screen" and element.option("is_blocking", False))
        or element.option("tracking_method") in _METHODS
    ]


def step_of(element: Element, active: bool, changed: Mapping[str, Tensor], losses: Losses) -> Step | None:
    """Return how the beam passes an element that is not linear, or None for a linear one."""
    if element.native is not None:
        return native_track
    match element.kind:
        case "Cavity":
            return None if _is_fixed(element, "voltage", changed, 0.0) else cavity
        case "Aperture":
            if not active or all(_is_fixed(element, name, changed, math.inf) for name in ("x_max", "y_max")):
                return None
            return soft_aperture if losses.mode == "soft" else hard_aperture
        case "Screen":
            return blocking_screen if active and element.option("is_blocking", False) else None
        case "TransverseDeflectingCavity":
            return transverse_deflecting_cavity
        case _:
            return _METHODS.get(element.option("tracking_method", "linear"))


def _is_fixed(element: Element, name: str, changed: Mapping[str, Tensor], at: float) -> bool:
    """Tell whether a number has a value that nobody trains or changes."""
    value = element.values[name]
    if name in element.trained or value.requires_grad or f"{element.name}.{name}" in changed:
        return False
    return bool((value == at).all())


def pass_special(step: Step, run: LineRun, index: int, beam: TrackedBunch | TrackedMoments) -> Any:
    """Carry particles or moments through an element that is not linear.

    Raises:
        SimulatorError: for moments and an element that needs particles.
    """
    if isinstance(beam, TrackedBunch):
        return step(run, index, beam)
    element = run.line.elements[index]
    if step is cavity:
        mean, cov, _ = optics.cavity_moments(
            beam.mean,
            beam.cov,
            *_wave(run, index),
            beam.reference.energy,
            beam.mass,
            beam.charge_number,
            element.option("cavity_type", "standing_wave"),
        )
        return beam.moved(mean, cov, run.reference(index + 1))
    if step is blocking_screen:
        return beam.blocked(run.reference(index + 1))
    if step in (hard_aperture, soft_aperture):
        warnings.warn(
            f"aperture {element.name!r} does nothing to moments: give the model particles", PhysicsWarning, stacklevel=2
        )
        return beam.passed(run.reference(index + 1))
    raise SimulatorError(
        f"element {element.name!r} ({element.kind}, tracking_method {element.option('tracking_method', 'native')!r}) "
        "needs particles, and the beam is moments: give the model a bunch, or track the element linearly"
    )


def _wave(run: LineRun, index: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    length, voltage, phase, frequency = (
        run.number(index, name) for name in ("length", "voltage", "phase", "frequency")
    )
    return length, voltage, phase, frequency


def cavity(run: LineRun, index: int, bunch: TrackedBunch) -> TrackedBunch:
    """Accelerate; behind it the coordinates refer to another energy."""
    element = run.line.elements[index]
    particles, _ = optics.cavity_track(
        bunch.particles,
        *_wave(run, index),
        bunch.reference.energy,
        bunch.mass,
        bunch.charge_number,
        element.option("cavity_type", "standing_wave"),
    )
    return bunch.moved(particles, run.reference(index + 1))


def _misalignment(run: LineRun, index: int) -> Tensor:
    pair = run.number(index, "misalignment_x"), run.number(index, "misalignment_y")
    return torch.stack(torch.broadcast_tensors(*pair), dim=-1)


def transverse_deflecting_cavity(run: LineRun, index: int, bunch: TrackedBunch) -> TrackedBunch:
    """Deflect each particle by the wave that it meets."""
    particles = optics.track_transverse_deflecting_cavity(
        bunch.particles,
        *_wave(run, index),
        bunch.reference.energy,
        bunch.mass,
        bunch.charge_number,
        tilt=run.number(index, "tilt"),
        misalignment=_misalignment(run, index),
    )
    return bunch.moved(particles, run.reference(index + 1))


def blocking_screen(run: LineRun, index: int, bunch: TrackedBunch) -> TrackedBunch:
    """Stop the whole beam."""
    return bunch.passed(run.reference(index + 1), alive=torch.zeros_like(bunch.alive))


def second_order(run: LineRun, index: int, bunch: TrackedBunch) -> TrackedBunch:
    """Track by a second-order map."""
    element, energy, mass = run.line.elements[index], bunch.reference.energy, bunch.mass

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
    if run.line.elements[index].kind == "RBend":
        half = 0.5 * run.number(index, "angle")
        return run.number(index, "rbend_e1") + half, run.number(index, "rbend_e2") + half
    return run.number(index, "dipole_e1"), run.number(index, "dipole_e2")


def drift_kick_drift(run: LineRun, index: int, bunch: TrackedBunch) -> TrackedBunch:
    """Track each particle at its own momentum."""
    element, energy, mass = run.line.elements[index], bunch.reference.energy, bunch.mass

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


_METHODS: dict[str, Step] = {"second_order": second_order, "drift_kick_drift": drift_kick_drift}


def native_track(run: LineRun, index: int, bunch: TrackedBunch) -> TrackedBunch:
    """Track with Cheetah's own element, on a copy that nobody else sees."""
    import cheetah

    from lume_diff.particles.cheetah_beams import cheetah_species

    element, numbers, particles = run.line.elements[index], _features(run, index), bunch.particles
    if any(in_vmap(value) for value in (particles, bunch.alive, bunch.weight, *numbers.values())):
        raise GradientError(
            f"torch.func.vmap cannot pass element {element.name!r} ({element.kind}), which Cheetah tracks itself: give "
            "the inputs a leading batch dimension instead, model({name: values of shape (batch,)})"
        )
    native = element.native.clone()
    batch = bunch.batch_shape
    for feature, value in numbers.items():
        setattr(native, feature, value)
        if element.kind == "SpaceChargeKick":  # Its numbers must have the batch dimensions of the beam, or none.
            batch = torch.broadcast_shapes(batch, value.shape)
    beam = cheetah.ParticleBeam(
        particles=particles.expand(*batch, *particles.shape[-2:]),
        energy=bunch.reference.energy,
        particle_charges=bunch.weight,
        survival_probabilities=bunch.alive,
        s=bunch.reference.s,
        species=cheetah_species(bunch.static, particles),
    )
    outgoing: Any = native.track(beam)
    return bunch.moved(outgoing.particles, run.reference(index + 1), alive=outgoing.survival_probabilities)


def _features(run: LineRun, index: int) -> dict[str, Tensor]:
    """Return the numbers of an element under Cheetah's names, vectors put together."""
    parts: dict[str, list[Tensor]] = {}
    vectors = set()
    for attribute in run.line.elements[index].attributes:
        parts.setdefault(attribute.feature, []).append(run.number(index, attribute.name))
        if attribute.component is not None:
            vectors.add(attribute.feature)
    return {
        feature: torch.stack(torch.broadcast_tensors(*values), dim=-1) if feature in vectors else values[0]
        for feature, values in parts.items()
    }
