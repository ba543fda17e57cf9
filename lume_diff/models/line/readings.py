"""How each output is read from a tracked beam."""

from __future__ import annotations

import math
import warnings
from collections.abc import Container
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from lume_diff.errors import GradientError, PhysicsWarning
from lume_diff.models.guards import is_differentiated, refuse_gradient
from lume_diff.models.line import natives, screens
from lume_diff.models.line.apertures import Cut
from lume_diff.models.line.bunch import Tracked, TrackedBunch
from lume_diff.models.line.elements import Element
from lume_diff.models.line.image_batches import cloud_in_cell_batch, together
from lume_diff.models.line.outputs import STATISTICS, Output, stack_along
from lume_diff.models.line.screen_maps import screen_edges
from lume_diff.models.line.tracking import LineRun
from lume_diff.particles import TorchMoments


def read(run: LineRun, output: Output, inputs: Container[str]) -> Any:
    """Return one output of a run, with the batch dimensions of the run.

    Args:
        run: the passage of the bunch.
        output: what to read, and where.
        inputs: names that can be set, for the hints in warnings.
    """
    if output.kind == "along":
        return along(run, output.key)
    beam = run.before(output.place)
    match output.kind:
        case "statistic":
            return _in_batch(_statistic(beam, output.key), run)
        case "place":
            return _in_batch(_place(run, beam, output.key), run)
        case "particles":
            return _bundle(beam.group, beam, run)  # type: ignore[union-attr]
        case "moments":
            return _bundle(beam.moments, beam, run)
        case "bpm":
            return _in_batch(_bpm(run, output.place, beam, output.key, inputs), run)
        case _:
            return _in_batch(_image(run, output.place, beam, inputs), run, inner=2)  # type: ignore[arg-type]


def _in_batch(value: Tensor, run: LineRun, inner: int = 0) -> Tensor:
    """Expand a value that does not depend on what makes the batch."""
    batch = run.batch_shape
    if not batch or value.shape[: value.dim() - inner] == batch:
        return value
    return value.expand(*batch, *value.shape[value.dim() - inner :])


def _bundle(bundle: Any, beam: Tracked, run: LineRun) -> Any:
    """Return a bunch or moments in the batch of the run, with a note and a warning where particles were lost."""
    found, structure = pytree.tree_flatten(bundle)
    leaves: tuple[Tensor, ...] = tuple(found)
    for cut in _cuts(beam):
        leaves = cut.warned(leaves)
    batch, old = run.batch_shape, len(bundle.batch_shape)
    if batch and bundle.batch_shape != batch:
        leaves = tuple(leaf.expand(*batch, *leaf.shape[old:]) for leaf in leaves)
    bundle = pytree.tree_unflatten(leaves, structure)
    for cut in _cuts(beam):
        if isinstance(bundle, TorchMoments):
            bundle = bundle._with(charge=cut.refused(bundle.charge))
        if cut.note not in bundle.notes:
            bundle = bundle._with(static=bundle._static.replace(notes=(*bundle.notes, cut.note)))
    return bundle


def _cuts(beam: Tracked) -> tuple[Cut, ...]:
    return beam.cuts if isinstance(beam, TrackedBunch) else ()


def along(run: LineRun, quantity: str) -> Tensor:
    """Return a statistic or a quantity of the place at the start and behind every element, ``(*batch, count + 1)``."""
    parts: list[Tensor] = []
    for start, stop in run.stretches():
        known = run.statistic_along(start, stop, STATISTICS[quantity]) if quantity in STATISTICS else None
        if known is not None:
            parts.append(_guarded(run.before(start), STATISTICS[quantity], known))
            continue
        beams = run.along(range(start, stop + 1))
        if quantity in STATISTICS:
            values = [_statistic(beam, STATISTICS[quantity]) for beam in beams]
        else:
            values = [_place(run, beam, quantity) for beam in beams]
        parts.append(stack_along(values))
    batch = torch.broadcast_shapes(*(part.shape[:-1] for part in parts))
    whole = torch.cat([part.expand(*batch, part.shape[-1]) for part in parts], dim=-1) if len(parts) > 1 else parts[0]
    return _in_batch(whole, run, inner=1)


def _statistic(beam: Tracked, key: str) -> Tensor:
    return _guarded(beam, key, beam.statistic(key))


def _guarded(beam: Tracked, key: str, value: Tensor) -> Tensor:
    """Make a gradient of a statistic warn or raise where particles were lost."""
    if key in ("n_alive", "n_dead", "n_particle"):
        return _counted(beam, value)
    return _transmitted(beam, value) if key in ("charge", "average_current") else _left(beam, value)


def _place(run: LineRun, beam: Tracked, quantity: str) -> Tensor:
    match quantity:
        case "survival":
            nothing_happened = isinstance(beam, TrackedBunch) and beam.alive is beam.born
            return beam.survival if nothing_happened else _transmitted(beam, beam.survival)
        case "reference_energy":
            return beam.reference.energy
        case _:
            return beam.reference.s - run.before(0).reference.s


def _left(beam: Tracked, value: Tensor) -> Tensor:
    """Make a gradient warn where a hard aperture has cut the bunch."""
    for cut in _cuts(beam):
        (value,) = cut.warned((value,))
    return value


def _transmitted(beam: Tracked, value: Tensor) -> Tensor:
    """Make a gradient of the transmission raise where a hard aperture has cut the bunch."""
    for cut in _cuts(beam):
        value = cut.refused(value)
    return value


def _counted(beam: Tracked, value: Tensor) -> Tensor:
    """Return a number of particles as a float; where particles can be lost, its gradient raises."""
    if not isinstance(beam, TrackedBunch):
        return value
    value = value.to(beam.rows.dtype)
    if beam.alive is beam.born:
        return value
    message = "the number of particles has no gradient: read 'survival' or 'charge' of a model with losses='soft'"
    return value + refuse_gradient((beam.alive, beam.x), message)


def _bpm(run: LineRun, place: int, beam: Tracked, axis: str, inputs: Container[str]) -> Tensor:
    element = run.line.elements[place]
    if run.is_active(element) and run.by_cheetah:
        return _left(beam, natives.bpm_reading(run, place, beam)[..., "xy".index(axis)])
    if run.is_active(element):
        return _left(beam, beam.statistic(f"mean_{axis}")) - run.number(place, f"misalignment_{axis}")
    _warn_inactive(element.name, "NaN", inputs)
    return torch.full_like(beam.reference.energy.detach(), torch.nan)


def _image(run: LineRun, place: int, bunch: TrackedBunch, inputs: Container[str]) -> Tensor:
    element = run.line.elements[place]
    method, (nx, ny) = element.option("method"), element.pixels
    if not run.is_active(element):
        _warn_inactive(element.name, "an image of zeros", inputs)
        return bunch.rows.new_zeros((*bunch.batch_shape, ny, nx))
    charge = bunch.weight * bunch.alive
    half, offset = screen_edges(run, place)
    if run.by_cheetah:
        _refuse_histogram(element, bunch.x, bunch.y, *offset, *half)
        return _left(bunch, natives.screen_image(run, place, bunch))
    if method == "cloud-in-cell":
        return _left(bunch, _cloud_in_cell(bunch, charge, (nx, ny), half, offset))
    x, y = bunch.x - offset[0].unsqueeze(-1), bunch.y - offset[1].unsqueeze(-1)
    if method == "kde":
        image = screens.kernel_density(x, y, charge, (nx, ny), half, run.number(place, "kde_bandwidth"))
    else:
        _refuse_histogram(element, x, y, *half)
        image = screens.histogram(x, y, charge, (nx, ny), half)
    return _left(bunch, image)


def _refuse_histogram(element: Element, *values: Tensor) -> None:
    """Refuse an image without a gradient where one is asked for."""
    if element.option("method") == "histogram" and any(is_differentiated(value) for value in values):
        raise GradientError(
            f"the image of screen {element.name!r} is a histogram, which has no gradient: build the screen "
            "with method='cloud-in-cell', or read it under torch.no_grad()"
        )


def _cloud_in_cell(
    bunch: TrackedBunch, charge: Tensor, pixels: tuple[int, int], half: screens.Pair, offset: screens.Pair
) -> Tensor:
    """Return the image, of a large batch of settings a few at a time."""
    batch = torch.broadcast_shapes(bunch.batch_shape, charge.shape[:-1], *(v.shape for v in (*half, *offset)))
    settings, rows, matrix = math.prod(batch), bunch.rows, bunch.matrix
    if matrix is None or rows.dim() > 2 or charge.dim() > 1 or settings * rows.shape[-1] <= together(rows):
        x, y = bunch.x - offset[0].unsqueeze(-1), bunch.y - offset[1].unsqueeze(-1)
        return screens.cloud_in_cell(x, y, charge, pixels, half)
    maps = torch.stack((matrix[..., 0, :], matrix[..., 2, :]), dim=-2).expand(*batch, 2, 7).reshape(settings, 2, 7)
    width, height, right, up = (value.expand(batch).reshape(settings) for value in (*half, *offset))
    found = cloud_in_cell_batch(maps, rows, charge, pixels, (width, height), (right, up))
    return found.reshape(*batch, *found.shape[1:])


def _warn_inactive(name: str, reads: str, inputs: Container[str]) -> None:
    switch = f"{name}.is_active"
    how = f"set {{{switch!r}: True}}" if switch in inputs else "switch it on in the segment"
    warnings.warn(f"{name!r} is not active and reads {reads}: {how}", PhysicsWarning, stacklevel=2)
