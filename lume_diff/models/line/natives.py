"""Tracking by Cheetah's own elements, on copies that nobody else sees and with gradients that are looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from lume_diff.errors import GradientError
from lume_diff.models.guards import concrete
from lume_diff.models.line.bunch import Tracked, TrackedBunch, TrackedMoments
from lume_diff.models.line.elements import SWITCHED, Element
from lume_diff.models.line.reference import Reference
from lume_diff.models.transforms import in_transform, in_vmap

if TYPE_CHECKING:
    from lume_diff.models.line.tracking import LineRun

#: Classes whose numbers must have the batch dimensions of the beam, or none.
_NEED_ONE_BATCH = ("SpaceChargeKick", "TransverseDeflectingCavity")


def track(run: LineRun, start: int, stop: int, beam: Tracked) -> Any:
    """Carry a beam from the entrance of one element to that of another by ``cheetah.Segment.track``.

    The elements are copies made for this passage, because Cheetah keeps transfer maps in its elements: those of an
    element whose numbers vary belong to the graph of an earlier passage, so its copy has none, and fresh tensors. The
    copy of any other element has the maps that were kept.

    Raises:
        GradientError: under ``torch.func.vmap``; and in a derivative, where Cheetah's is not a number.
    """
    import cheetah

    if torch.is_inference_mode_enabled():  # Cheetah asks for versions of tensors, which those of this mode do not have.
        with torch.inference_mode(False), torch.no_grad():
            return track(run, start, stop, beam)
    elements = run.line.elements[start:stop]
    numbers = [live_features(run, index) for index in range(start, stop)]
    _refuse_vmap(elements, beam, numbers)
    watch = Watch([element.name for element in elements], run.by_cheetah)
    natives, batch = [], beam.batch_shape
    may_remember = not in_transform() and forward_ad._current_level < 0
    for element, values in zip(elements, numbers, strict=True):
        native = fresh_copy(element.native, may_remember and not values)
        for feature, value in values.items():
            put(native, feature, watch.entering(f"{element.name}.{feature}", value))
            if element.kind in _NEED_ONE_BATCH:
                is_vector = feature in ("grid_extent", "misalignment")
                batch = torch.broadcast_shapes(batch, value.shape[: value.dim() - is_vector])
        if element.kind in SWITCHED:
            native.is_active = run.is_active(element)
        natives.append(native)
    energy = watch.entering("reference_energy", beam.reference.energy)
    outgoing: Any = cheetah.Segment(natives, name="stretch").track(_to_cheetah(beam, energy, batch))
    if may_remember:
        for element, values, native in zip(elements, numbers, natives, strict=True):
            if not values and "_cache" in native.__dict__:
                element.native.__dict__["_cache"] = native.__dict__["_cache"]
    reference = run.reference(stop)
    if run.by_cheetah:
        here = reference  # Not the run: what holds it must not be held by it, or memory is freed late.
        reference = Reference(outgoing.energy, lambda: here.time, lambda: here.s)
    if isinstance(beam, TrackedMoments):
        cov = outgoing.cov
        return beam.moved(watch.leaving(outgoing.mu), cov, reference, charge=outgoing.total_charge)
    particles = watch.leaving(outgoing.particles)
    return beam.moved(particles, reference, alive=outgoing.survival_probabilities)


def native_track(run: LineRun, index: int, bunch: TrackedBunch) -> TrackedBunch:
    """Track one element by Cheetah."""
    return track(run, index, index + 1, bunch)


def screen_image(run: LineRun, index: int, bunch: TrackedBunch) -> Tensor:
    """Return what Cheetah's screen reads, ``(*batch, ny, nx)``."""
    return _recorded(run, index, bunch).reading


def bpm_reading(run: LineRun, index: int, beam: Tracked) -> Tensor:
    """Return what Cheetah's monitor reads [m], ``(*batch, 2)``: the mean of the living, whatever their charge."""
    return _recorded(run, index, beam).reading


def _recorded(run: LineRun, index: int, beam: Tracked) -> Any:
    """Return a copy of a diagnostic that has seen the beam."""
    element, numbers = run.line.elements[index], live_features(run, index)
    _refuse_vmap([element], beam, [numbers])
    native = fresh_copy(element.native)
    for feature, value in numbers.items():
        put(native, feature, value * 1.0)
    native.is_active = True
    native.track(_to_cheetah(beam, beam.reference.energy, beam.batch_shape))
    return native


def _to_cheetah(beam: Tracked, energy: Tensor, batch: Sequence[int]) -> Any:
    import cheetah

    from lume_diff.particles.cheetah_beams import cheetah_species

    if isinstance(beam, TrackedMoments):
        species = cheetah_species(beam.static, beam.mean)
        return cheetah.ParameterBeam(
            mu=beam.mean, cov=beam.cov, energy=energy, total_charge=beam.charge, s=beam.reference.s, species=species
        )
    particles = beam.particles
    return cheetah.ParticleBeam(
        particles=particles.expand(*batch, *particles.shape[-2:]),
        energy=energy,
        particle_charges=beam.weight,
        survival_probabilities=beam.alive,
        s=beam.reference.s,
        species=cheetah_species(beam.static, particles),
    )


def _refuse_vmap(elements: Sequence[Element], beam: Tracked, numbers: Sequence[Mapping[str, Tensor]]) -> None:
    of_beam = (beam.mean, beam.cov) if isinstance(beam, TrackedMoments) else (beam.particles, beam.alive, beam.weight)
    values = (*of_beam, beam.reference.energy, *(value for each in numbers for value in each.values()))
    if any(in_vmap(value) for value in values):
        one = elements[0]
        what = f"element {one.name!r} ({one.kind})" if len(elements) == 1 else "this line"
        raise GradientError(
            f"torch.func.vmap cannot pass {what}, which Cheetah tracks itself: give the inputs a leading batch "
            "dimension instead, model({name: values of shape (batch,)})"
        )


# -- copies of elements ----------------------------------------------------------------------------------------


def fresh_copy(native: Any, with_maps: bool = False) -> Any:
    """Return an element that shares its numbers with another, but not what is put in it.

    Args:
        native: the element.
        with_maps: whether it has the transfer maps that Cheetah has kept. The copy of an element with numbers of this
            run must not have them: they belong to the graph of another run. They are copied too, so that no thread
            writes to what another one reads.
    """
    copy = object.__new__(type(native))
    copy.__dict__.update(native.__dict__)
    for table in ("_buffers", "_parameters", "_modules"):
        copy.__dict__[table] = dict(native.__dict__[table])
    kept = copy.__dict__.pop("_cache", None)
    if with_maps and kept is not None:
        copy.__dict__["_cache"] = {name: dict(known) for name, known in kept.items()}
    return copy


def put(native: Any, feature: str, value: Tensor) -> None:
    """Set a number of a copy, even where the element has a parameter, and whatever Cheetah calls it inside."""
    before = getattr(native, feature)
    for name, parameter in list(native._parameters.items()):
        if parameter is before:
            native._buffers[name] = native._parameters.pop(name)
    setattr(native, feature, value)


def live_features(run: LineRun, index: int) -> dict[str, Tensor]:
    """Return the numbers of an element that this run changes or trains, by Cheetah's names, vectors put together."""
    element = run.line.elements[index]
    parts: dict[str, list[Tensor]] = {}
    live = run.changed_features(index)
    if element.kind == "RBend" and "angle" in live:  # Cheetah would keep the angles against the sector bend's faces.
        live |= {"rbend_e1", "rbend_e2"}
    for attribute in element.attributes:
        if attribute.feature in live:
            parts.setdefault(attribute.feature, []).append(run.number(index, attribute.name))
    found = {
        feature: values[0] if len(values) == 1 else torch.stack(torch.broadcast_tensors(*values), dim=-1)
        for feature, values in parts.items()
    }
    if "transfer_map" in element.values and (
        "transfer_map" in element.trained or element.values["transfer_map"].requires_grad
    ):
        found["predefined_transfer_map"] = element.number("transfer_map")
    return found


# -- gradients that are not numbers ----------------------------------------------------------------------------


class Watch:
    """Look at the derivatives that pass through Cheetah: what went in finite and comes out NaN raises.

    Args:
        names: of the elements.
        by_choice: whether the maps here would do as well.
    """

    def __init__(self, names: Sequence[str], by_choice: bool) -> None:
        self._names = ", ".join(repr(name) for name in names[:3]) + (" ..." if len(names) > 3 else "")
        maps = "build the model with engine='auto', whose maps have the right one"
        self._way_out = maps if by_choice else "move it off this value"
        self._is_clean = True

    def entering(self, name: str, value: Tensor) -> Tensor:
        """Return a number as a fresh tensor; a gradient to it that is not finite raises."""

        def backward(gradient: Tensor) -> None:
            if self._is_clean and not _is_finite(gradient):
                here = concrete(value)
                shown = f"{here.item():g}" if here.numel() == 1 else f"of shape {tuple(here.shape)}"
                raise GradientError(
                    f"the gradient to {name!r}, which is {shown}, is not finite in Cheetah's own tracking, whose "
                    f"transfer maps divide by a strength of zero: {self._way_out}"
                )

        return _Pass.apply(backward, None, value)

    def leaving(self, value: Tensor) -> Tensor:
        """Return coordinates behind the elements; a forward derivative that is not finite raises."""

        def backward(gradient: Tensor) -> None:
            self._is_clean = _is_finite(gradient)

        def forward(tangent: Tensor) -> None:
            if not _is_finite(tangent):
                raise GradientError(
                    f"a derivative through {self._names} is not finite in Cheetah's own tracking, whose transfer maps "
                    f"divide by a strength of zero: {self._way_out}"
                )

        return _Pass.apply(backward, forward, value)


def _is_finite(value: Tensor) -> bool:
    return bool(concrete(value).isfinite().all())


class _Pass(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(backward: Any, forward: Any, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.looks = inputs[:2]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, Tensor]:
        ctx.looks[0](gradient)
        return None, None, gradient

    @staticmethod
    def jvp(ctx: Any, _: None, __: None, tangent: Tensor) -> Tensor:
        if ctx.looks[1] is not None:
            ctx.looks[1](tangent)
        return tangent.clone()
