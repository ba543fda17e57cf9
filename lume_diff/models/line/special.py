"""Steps along a line that are not a matrix: cavities, second order, kicks, and what only Cheetah can do."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lume_diff.errors import PhysicsWarning, SimulatorError
from lume_diff.models import optics
from lume_diff.models.line.apertures import Losses, hard_aperture, soft_aperture
from lume_diff.models.line.bunch import Tracked, TrackedBunch
from lume_diff.models.line.elements import Element
from lume_diff.models.line.natives import native_track

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


def step_of(
    element: Element, active: bool, changed: Mapping[str, Tensor], losses: Losses, by_cheetah: bool = False
) -> Step | None:
    """Return how the beam passes an element that is not linear, or None for a linear one.

    Where Cheetah tracks everything, only an aperture stands alone, because its losses are to be noted.
    """
    if by_cheetah:
        return native_aperture if element.kind == "Aperture" and active and not _is_open(element, changed) else None
    if element.native is not None:
        return native_track
    match element.kind:
        case "Cavity":
            return None if _is_fixed(element, "voltage", changed, 0.0) else cavity
        case "Aperture":
            if not active or _is_open(element, changed):
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


def _is_open(element: Element, changed: Mapping[str, Tensor]) -> bool:
    return all(_is_fixed(element, name, changed, math.inf) for name in ("x_max", "y_max"))


def pass_special(step: Step, run: LineRun, index: int, beam: Tracked) -> Any:
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
    if step in (hard_aperture, soft_aperture, native_aperture):
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


def native_aperture(run: LineRun, index: int, bunch: TrackedBunch) -> TrackedBunch:
    """Cut the bunch by Cheetah's own aperture; the note of the cut, which makes gradients warn, is the one here."""
    return replace(native_track(run, index, bunch), cuts=hard_aperture(run, index, bunch).cuts)
