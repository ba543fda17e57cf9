"""CheetahModel: a beamline from Cheetah as a model with named knobs and diagnostics."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lume_diff.errors import (
    GradientError,
    LatticeError,
    PhysicsWarning,
    UnknownVariableError,
    ValidationError,
    nearest_names,
)
from lume_diff.models.base import LUMEModel
from lume_diff.models.guards import refuse_gradient
from lume_diff.models.line import screens
from lume_diff.models.line.beams import as_beam
from lume_diff.models.line.bunch import TrackedBunch, TrackedMoments
from lume_diff.models.line.elements import SWITCHED, read_segment
from lume_diff.models.line.maps import LineMaps
from lume_diff.models.line.outputs import FINAL, LINE, STATISTICS, Output, OutputTable, stack_along
from lume_diff.models.line.special import Losses
from lume_diff.models.line.tracking import LineRun
from lume_diff.models.transforms import in_transform, tensors_in
from lume_diff.particles import TorchMoments, TorchParticleGroup
from lume_diff.variables import (
    BoolVariable,
    MomentsVariable,
    ParticleGroupVariable,
    TorchScalarVariable,
    Variable,
)

if TYPE_CHECKING:
    import cheetah

_GROUP, _MOMENTS = "initial_particles", "initial_moments"
_REFERENCES = ("reference_energy", "reference_time")


class CheetahModel(LUMEModel):
    """Track a beam along a Cheetah segment, with gradients that are right at every setting.

    Knobs are called ``"<element>.<attribute>"`` (``Q1.k1``, ``BPM1.misalignment_x``, ``SCR1.is_active``), readings
    ``BPM1.x``, ``SCR1.image``, ``<element>.sigma_x`` and so on behind any element, ``final.sigma_x`` at the end, and
    ``line.beta_x`` as an array along the line. Any scalar statistic of openPMD-beamphysics can be named behind an
    element. Pieces of a split element (``Q1#1``, ``Q1#2``) act as one.

    The reference energy and time are inputs of their own; they start as the incoming bunch's and then stay, so that
    an energy error of the bunch acts in the magnets.

    Args:
        segment: a ``cheetah.Segment``; it is read, never changed.
        beam: the incoming beam: a ``TorchParticleGroup``, ``TorchMoments``, ``beamphysics.ParticleGroup``, a Cheetah
            beam, or the path of an openPMD or Astra file. Moments give moments only: no images, no particles.
        controls: names of the knobs that are inputs; None for all. The bunch and its reference always are.
        outputs: names of what can be read; None for everything.
        losses: ``"hard"`` cuts at apertures as Cheetah does; then a gradient of the beam behind warns with the lost
            fraction and a gradient of the transmission raises. ``"soft"`` lets the survival probability fall smoothly.
        loss_width: width of the soft edge as a share of the aperture's half size.
        dtype, device, validation: see ``LUMEModel``.

    Raises:
        UnknownVariableError: for a control or an output that does not exist.
        LatticeError: for an empty segment or an element called ``final`` or ``line``.

    Gradient:
        Exact, at zero strength too, of any order, forward and reverse. None through a ``histogram`` screen.

    Source:
        Cheetah, J. Kaiser et al., Phys. Rev. Accel. Beams 27, 054601 (2024),
        doi:10.1103/PhysRevAccelBeams.27.054601.

    Example:
        >>> import cheetah, torch
        >>> q1 = cheetah.Quadrupole(torch.tensor(0.2), torch.tensor(0.0), name="Q1")
        >>> line = cheetah.Segment([q1, cheetah.Drift(torch.tensor(1.0), name="D1")], name="line1")
        >>> beam = cheetah.ParticleBeam.from_parameters(num_particles=100, energy=torch.tensor(1e8))
        >>> model = CheetahModel(line, beam, controls=["Q1.k1"], outputs=["final.sigma_x"])
        >>> k1 = torch.tensor(0.0, dtype=torch.float64, requires_grad=True)
        >>> model({"Q1.k1": k1})["final.sigma_x"].backward()
        >>> bool(k1.grad.isfinite())
        True
    """

    def __init__(
        self,
        segment: cheetah.Segment,
        beam: Any,
        controls: Sequence[str] | None = None,
        outputs: Sequence[str] | None = None,
        *,
        losses: str = "hard",
        loss_width: float = 0.02,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str | None = None,
        validation: Mapping[str, str] | None = None,
    ) -> None:
        if losses == "difference":
            raise ValidationError(
                "losses='difference' needs finite differences over the whole line, which are not part of this version: "
                "use losses='soft', or wrap the line as a black box"
            )
        if losses not in ("hard", "soft"):
            raise ValidationError(f"losses is {losses!r}; expected 'hard' or 'soft'")
        if not 0.0 < loss_width < 1.0:
            raise ValidationError(f"loss_width is {loss_width}; expected a share of the aperture between 0 and 1")
        for word, names in (("controls", controls), ("outputs", outputs)):
            if isinstance(names, str):
                raise ValidationError(f"{word} must be a list of names, got the string {names!r}: write [{names!r}]")
        place = torch.device(device) if device is not None else torch.device("cpu")
        elements = read_segment(segment, dtype, place)
        _check_names(element.name for element in elements)
        bunch = as_beam(beam, dtype, place)
        maps = LineMaps(elements, dtype, place)
        table = OutputTable(elements, isinstance(bunch, TorchParticleGroup))
        readings = table.everything() if outputs is None else [table.named(name) for name in outputs]
        if outputs is not None:
            known = {reading.variable.name for reading in readings}
            hand_over = ("final_moments", "final_particles") if isinstance(bunch, TorchParticleGroup) else ("final_moments",)
            readings += [table.named(name) for name in hand_over if name not in known]
        knobs, initial = _knob_variables(maps, controls)
        beam_name = _GROUP if isinstance(bunch, TorchParticleGroup) else _MOMENTS
        variables = [*knobs, *_beam_variables(bunch, beam_name), *(reading.variable for reading in readings)]
        initial |= {
            beam_name: bunch,
            "reference_energy": bunch.reference_energy.detach(),
            "reference_time": bunch.reference_time.detach(),
        }
        super().__init__(variables, initial=initial, dtype=dtype, device=place, validation=validation)
        self._native = (segment,)
        self._maps = maps
        self._readings = {reading.variable.name: reading for reading in readings}
        self._losses = Losses(losses, loss_width)
        self._beam_name = beam_name
        self._incoming: tuple[Any, ...] | None = None
        self._register_parameters()

    def _register_parameters(self) -> None:
        """Make the segment's own trainable parameters those of the model, under names that a module can have."""
        for element in self._maps.elements:
            for name, value in element.values.items():
                if isinstance(value, nn.Parameter):
                    self.register_parameter(f"{element.name}__{name}".replace(".", "_"), value)

    # -- running ---------------------------------------------------------------------------------------------

    def _run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> LineRun:
        changed, active = {}, {}
        for name, value in inputs.items():
            if value is self._baseline[name]:
                continue
            if name in self._maps.knobs:
                changed[name] = value
            elif isinstance(self._variables[name], BoolVariable):
                active[name.rpartition(".")[0]] = bool(value)
        run = LineRun(self._maps, self._incoming_beam(inputs), changed, active, self._losses)
        run.before(max((self._readings[name].place for name in outputs), default=self._maps.count))
        return run

    def _incoming_beam(self, inputs: Mapping[str, Any]) -> TrackedBunch | TrackedMoments:
        """Return the incoming beam at the line's reference, converted once while it stays the same."""
        given = [inputs[self._beam_name], *(inputs[name] for name in _REFERENCES)]
        convert = TrackedBunch.from_group if self._beam_name == _GROUP else TrackedMoments.from_moments
        if given[0] is None:
            raise ValidationError(f"input {self._beam_name!r} has no value: set it or pass it")
        leaves = [tensor for value in given for tensor in tensors_in(value)]
        if in_transform() or any(leaf.requires_grad for leaf in leaves) or torch.is_inference_mode_enabled():
            return convert(*given)
        versions = [leaf._version for leaf in leaves]
        kept = self._incoming
        if kept is None or kept[1] != versions or any(a is not b for a, b in zip(kept[0], given, strict=True)):
            kept = (given, versions, convert(*given))
            self._incoming = kept
        return kept[2]

    def _read(self, state: LineRun, outputs: Sequence[str]) -> dict[str, Any]:
        places = sorted({self._readings[name].place for name in outputs})
        state.along(places)
        return {name: self._read_one(state, self._readings[name]) for name in outputs}

    def _read_one(self, run: LineRun, output: Output) -> Any:
        if output.kind == "along":
            return self._read_along(run, output.key)
        beam = run.before(output.place)
        match output.kind:
            case "statistic":
                return self._statistic(run, beam, output.key)
            case "place":
                return self._place(run, beam, output.key)
            case "particles":
                return beam.group
            case "moments":
                return beam.moments
            case "bpm":
                return self._bpm(run, output.place, beam, output.key)
            case _:
                return self._image(run, output.place, beam)

    def _read_along(self, run: LineRun, quantity: str) -> Tensor:
        places = list(range(self._maps.count + 1))
        beams = run.along(places)
        if quantity in STATISTICS:
            return stack_along(self._statistic(run, beam, STATISTICS[quantity]) for beam in beams)
        return stack_along(self._place(run, beam, quantity) for beam in beams)

    def _statistic(self, run: LineRun, beam: TrackedBunch | TrackedMoments, key: str) -> Tensor:
        value = beam.statistic(key)
        return self._guarded(run, beam, value) if key in ("charge", "average_current", "n_alive", "n_dead") else value

    def _place(self, run: LineRun, beam: TrackedBunch | TrackedMoments, quantity: str) -> Tensor:
        match quantity:
            case "survival":
                return self._guarded(run, beam, beam.survival)
            case "reference_energy":
                return beam.reference.energy
            case _:
                return beam.reference.s - run.before(0).reference.s

    def _guarded(self, run: LineRun, beam: TrackedBunch | TrackedMoments, value: Tensor) -> Tensor:
        """Make a gradient of the transmission raise where a hard aperture has cut the bunch."""
        is_hard = self._losses.mode == "hard" and isinstance(beam, TrackedBunch) and beam.alive is not beam.born
        if not is_hard or not beam.particles.requires_grad and not in_transform():
            return value
        message = (
            "the charge left behind a hard aperture has no gradient: it depends on the settings only through the "
            "particles at the edge; build the model with losses='soft'"
        )
        return refuse_gradient(value, beam.particles, message, 1.0 - beam.survival.detach())

    # -- diagnostics -----------------------------------------------------------------------------------------

    def _bpm(self, run: LineRun, place: int, beam: TrackedBunch | TrackedMoments, axis: str) -> Tensor:
        element = self._maps.elements[place]
        value = beam.statistic(f"mean_{axis}") - run.number(place, f"misalignment_{axis}")
        if run.is_active(element):
            return value
        self._warn_inactive(element.name, "NaN")
        return torch.full_like(value.detach(), torch.nan)

    def _image(self, run: LineRun, place: int, bunch: TrackedBunch) -> Tensor:
        element = self._maps.elements[place]
        method, pixels = element.option("method"), element.pixels
        if not run.is_active(element):
            self._warn_inactive(element.name, "an image of zeros")
            return bunch.particles.new_zeros((*bunch.particles.shape[:-2], pixels[1], pixels[0]))
        x = bunch.x - run.number(place, "misalignment_x").unsqueeze(-1)
        y = bunch.y - run.number(place, "misalignment_y").unsqueeze(-1)
        charge = bunch.weight * bunch.alive
        size = torch.stack(
            torch.broadcast_tensors(run.number(place, "pixel_size_x"), run.number(place, "pixel_size_y")), dim=-1
        ) * element.option("binning", 1)
        if method == "kde":
            return screens.kernel_density(x, y, charge, pixels, size, run.number(place, "kde_bandwidth"))
        if method == "histogram":
            if (x.requires_grad or y.requires_grad) and torch.is_grad_enabled():
                raise GradientError(
                    f"the image of screen {element.name!r} is a histogram, which has no gradient: build the screen "
                    "with method='cloud-in-cell', or read it under torch.no_grad()"
                )
            return screens.histogram(x, y, charge, pixels, size)
        return screens.cloud_in_cell(x, y, charge, pixels, size)

    def _warn_inactive(self, name: str, reads: str) -> None:
        switch = f"{name}.is_active"
        how = f"set {{{switch!r}: True}}" if switch in self._variables else "switch it on in the segment"
        warnings.warn(f"{name!r} is not active and reads {reads}: {how}", PhysicsWarning, stacklevel=3)

    # -- the rest --------------------------------------------------------------------------------------------

    def reference_energy(self, inputs: Mapping[str, Any] | None, elements: Sequence[str]) -> dict[str, Tensor]:
        """Return the reference energy [eV] at the entrance of elements, ``(*batch,)``, without tracking.

        Raises:
            UnknownVariableError: for an element that is not in the line.

        Gradient:
            Exact.
        """
        checked = {**self._setpoints, **self._checked_inputs(inputs or {})}
        changed = {n: v for n, v in checked.items() if n in self._maps.knobs and v is not self._baseline[n]}
        beam = checked[self._beam_name]
        energies = self._maps.energies(checked["reference_energy"], changed, beam.charge_number)
        first: dict[str, int] = {}
        for position, element in enumerate(self._maps.elements):
            first.setdefault(element.name, position)
        found = {}
        for name in elements:
            if name not in first:
                raise UnknownVariableError(f"there is no element {name!r} in the line{nearest_names(name, first)}")
            found[name] = energies[..., 0] if energies.shape[-1] == 1 else energies[..., first[name]]
        return found

    @property
    def simulator(self) -> cheetah.Segment:
        """The segment that the model was built from; call ``refresh()`` after changing it."""
        return self._native[0]

    def refresh(self) -> None:
        """Read the segment again: what was changed on it becomes the baseline, and knobs that were not set follow.

        Raises:
            LatticeError: if elements were added, removed or renamed; build a new model then.
        """
        elements = read_segment(self.simulator, self.dtype, self.device)
        if [(e.name, e.kind) for e in elements] != [(e.name, e.kind) for e in self._maps.elements]:
            raise LatticeError("the segment's elements are not those the model was built from: build a new model")
        maps = LineMaps(elements, self.dtype, self.device)
        with self._lock:
            fresh = _knob_values(maps)
            for name in self._input_names:
                if name in fresh:
                    value = self._checked_input(name, fresh[name])
                    if self._setpoints[name] is self._baseline[name]:
                        self._setpoints = {**self._setpoints, name: value}
                    self._baseline[name] = value
            self._maps, self._evaluation = maps, None

    def _apply(self, fn: Any, recurse: bool = True) -> CheetahModel:
        super()._apply(fn, recurse)
        for element in self._maps.elements:
            element.values = {
                name: value if isinstance(value, nn.Parameter) else fn(value) for name, value in element.values.items()
            }
            if element.native is not None:
                element.native._apply(fn)
        self._maps = LineMaps(self._maps.elements, self.dtype, self.device)
        self._incoming = None
        return self

    @classmethod
    def from_file(cls, lattice: str | Path, beam: Any, **options: Any) -> CheetahModel:
        """Build a model from a lattice file and a beam.

        Args:
            lattice: LatticeJSON (``.json``), Bmad (``.bmad``), Elegant (``.lte``), NX table (``.csv``) or Ocelot
                (``.py``, with ``trust=True`` because it is run) file.
            beam: see ``CheetahModel``.
            **options: ``name`` of the line for Elegant, ``trust``, and the arguments of ``CheetahModel``.

        Raises:
            LatticeError: for a file that does not parse, with the file and, where known, the line.
        """
        from lume_diff.models.line.files import read_lattice

        reading = {key: options.pop(key) for key in ("name", "trust") if key in options}
        return cls(read_lattice(Path(lattice), **reading), beam, **options)


def _check_names(names: Any) -> None:
    for name in names:
        if name in (FINAL, LINE):
            raise LatticeError(f"an element is called {name!r}, which stands for the {name} of the model: rename it")


def _knob_values(maps: LineMaps) -> dict[str, Tensor]:
    return {
        name: maps.elements[positions[0]].values[attribute.name]
        for name, (attribute, positions) in maps.knobs.items()
    }


def _knob_variables(maps: LineMaps, controls: Sequence[str] | None) -> tuple[list[Variable], dict[str, Any]]:
    """Return the variables of the knobs and switches that are wanted, and their values."""
    values: dict[str, Any] = dict(_knob_values(maps))
    switches = {f"{e.name}.is_active": e.is_active for e in maps.elements if e.kind in SWITCHED}
    chosen = [*values, *switches] if controls is None else list(dict.fromkeys(controls))
    variables: list[Variable] = []
    initial: dict[str, Any] = {}
    for name in chosen:
        if name in values:
            attribute, positions = maps.knobs[name]
            element = maps.elements[positions[0]]
            value = values[name]
            default = float(value.detach()) if value.dim() == 0 and bool(value.isfinite()) else None
            variables.append(
                TorchScalarVariable(
                    name=name,
                    unit=attribute.unit,
                    default_value=default,
                    scale=attribute.scale,
                    description=f"{attribute.description} of {element.kind} {element.name}",
                )
            )
            if bool(value.isfinite().all()):
                initial[name] = value
        elif name in switches:
            variables.append(BoolVariable(name=name, default_value=switches[name], description="whether it acts"))
        elif name not in (*_REFERENCES, _GROUP, _MOMENTS):
            raise UnknownVariableError(
                f"control {name!r} is not a knob of the line{nearest_names(name, [*values, *switches])}"
            )
    return variables, initial


def _beam_variables(beam: TorchParticleGroup | TorchMoments, name: str) -> list[Variable]:
    described = ParticleGroupVariable if name == _GROUP else MomentsVariable
    return [
        described(name=name, description="beam at the entrance of the line"),
        TorchScalarVariable(
            name="reference_energy",
            unit="eV",
            value_range=(beam.mass, None),
            scale=1e-3 * float(beam.reference_energy.detach().mean()),
            description="total energy that the magnets' normalised strengths and the coordinates refer to",
        ),
        TorchScalarVariable(
            name="reference_time", unit="s", scale=1e-12, description="time that the coordinates refer to"
        ),
    ]
